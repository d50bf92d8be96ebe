"""inturn: the fleet that `inturn apply` runs, with a handler in Python or with a SQL target."""

from __future__ import annotations

import time
from typing import Any

import psycopg
from psycopg.types.json import Jsonb
from support.roles import APPLIER, as_role

from bench.peers.peer import Job, PythonPeer, serve
from bench.peers.work import EFFECT, EFFECT_OF_COMMAND
from inturn.applier import Applier, Command, Fleet
from inturn.schema.install import upgrade

_TOPIC = "account"
_FUNCTION = f"""
CREATE FUNCTION app.apply_command(command inturn.command) RETURNS void LANGUAGE plpgsql AS $$
BEGIN {EFFECT_OF_COMMAND}; END $$;
"""

_GRANTS = f"""
GRANT USAGE ON SCHEMA app TO {APPLIER};
GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA app TO {APPLIER};
"""

WITH_PYTHON = PythonPeer("inturn, Python target", __name__, ["inturn", "psycopg"], "python")
WITH_SQL = PythonPeer("inturn, SQL target", __name__, ["inturn"], "sql:app.apply_command")


def load(job: Job, target: str) -> None:
    upgrade(job.dsn)
    with psycopg.connect(job.dsn, autocommit=True) as connection:
        connection.execute(_FUNCTION)
        connection.execute(_GRANTS)
        connection.execute("SELECT inturn.create_topic(%s, %s)", [_TOPIC, target])
        # Appliers were at work before, and have ended as they should: see _careful_keys.
        before = Fleet(as_role(job.dsn, APPLIER), _applier(target), topics=[_TOPIC], drain=True)
        before.start()
        before.wait(60)
        before.end(5)
        for chunk in job.workload.chunks():
            connection.execute(
                "SELECT inturn.append_many(%s, %s::text[], %s::text[], %s::jsonb[])",
                [
                    _TOPIC,
                    [key for key, _ in chunk],
                    ["update"] * len(chunk),
                    [Jsonb({"number": number}) for _, number in chunk],
                ],
            )


def apply(job: Job, target: str) -> None:
    """Apply with a fleet that runs as a daemon does, and end it when all is applied or time is up."""
    fleet = Fleet(as_role(job.dsn, APPLIER), _applier(target), topics=[_TOPIC], workers=job.workers)
    end_at = time.monotonic() + job.seconds
    fleet.start()
    while fleet.totals.commands < job.workload.commands and time.monotonic() < end_at:
        time.sleep(0.02)
    outcome = fleet.end(5)
    if outcome.error is not None:
        raise outcome.error


def _applier(target: str) -> Applier:
    applier = Applier()
    if target == "python":

        @applier.handler(_TOPIC)
        def handle(connection: psycopg.Connection[Any], command: Command) -> None:
            connection.execute(EFFECT, {"key": command.key, "number": command.payload["number"]})

    return applier


if __name__ == "__main__":
    serve(load, apply)
