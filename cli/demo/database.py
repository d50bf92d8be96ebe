"""The demo's database: service B's orders, what A called, what B carried out, and what went wrong by that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from inturn.cli.demo.plan import Orders
from inturn.cli.errors import Failure
from inturn.schema.connection import connect

_DATABASE = "inturn_demo"
_MARK = "made by inturn demo; removed by its next run"

#: The topic that B's machines fill by A's numbers.
NUMBERED = "orders-numbered"
#: The topic in which an insert and a delete that are both pending become nothing.
MERGED = "orders-merged"

# The witness is append-only; the machine is that of the session, see machine_dsn.
_SETUP = """
CREATE TABLE orders (way text, id text, PRIMARY KEY (way, id));
CREATE TABLE called (way text, key text, seq bigint, name text, PRIMARY KEY (way, key, seq));
CREATE TABLE witness (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    way text, key text, seq bigint, name text,
    machine text DEFAULT current_setting('demo.machine', true),
    at timestamptz DEFAULT clock_timestamp()
);
CREATE FUNCTION carry_out(way text, key text, seq bigint, name text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.witness (way, key, seq, name) VALUES (way, key, seq, name);
    IF name = 'insert' THEN
        INSERT INTO public.orders AS o VALUES (way, key) ON CONFLICT DO NOTHING;
    ELSE
        DELETE FROM public.orders o WHERE o.way = carry_out.way AND o.id = key;
    END IF;
END
$$;
CREATE FUNCTION apply_order(command inturn.command) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_sleep((command.payload ->> 'work')::double precision);
    PERFORM public.carry_out(command.topic, command.key, command.seq, command.name);
END
$$;
"""

_FINDINGS = """
SELECT
    (SELECT count(*) FROM called WHERE way = %(way)s),
    (SELECT count(*) FROM (SELECT DISTINCT ON (key) key, name FROM called WHERE way = %(way)s
                           ORDER BY key, seq DESC) last
     WHERE (last.name = 'insert') <> EXISTS (SELECT FROM orders WHERE way = %(way)s AND id = last.key)),
    (SELECT count(*) FROM called c WHERE way = %(way)s AND NOT EXISTS (
         SELECT FROM witness w WHERE (w.way, w.key, w.seq) = (c.way, c.key, c.seq))
     AND NOT EXISTS (SELECT FROM inturn.merge m WHERE (m.topic, m.key, m.seq) = (c.way, c.key, c.seq))),
    (SELECT count(*) - count(DISTINCT (key, seq)) FROM witness WHERE way = %(way)s),
    (SELECT max(n) / sum(n) FROM (SELECT count(*) AS n FROM witness WHERE way = %(way)s GROUP BY machine) m),
    (SELECT count(*) FROM inturn.merge WHERE topic = %(way)s)
"""


@dataclass(frozen=True, slots=True)
class Findings:
    """What came of one way.

    Attributes:
        commands: how many A gave.
        wrong: orders that exist and should be gone, or the other way round.
        lost: commands that B never carried out, and that were not merged.
        doubled: how often B carried one out once more.
        busiest: the share of the busiest machine in what was carried out, 0 to 1.
        merged: commands that became nothing by a merge rule.
    """

    commands: int
    wrong: int
    lost: int
    doubled: int
    busiest: float
    merged: int = 0


def make_database(dsn: str) -> str:
    """Make the demo's database anew on the server of the given one; return its connection string."""
    # Slow to import, and a machine has no use for them.
    from inturn.schema.install import upgrade
    from inturn.schema.receiver import upgrade_receiver

    own = make_conninfo(dsn, dbname=_DATABASE)
    # The demo itself says to export it, and from a database it cannot be dropped.
    is_own = conninfo_to_dict(dsn).get("dbname") == _DATABASE
    beside = make_conninfo(dsn, dbname="postgres") if is_own else dsn
    with connect(beside) as connection:
        row = connection.execute(
            "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s",
            (_DATABASE,),
        ).fetchone()
        if row is not None and row[0] != _MARK:
            raise Failure(
                f"there is a database {_DATABASE} that the demo did not make",
                hint="Rename it, or run the demo on another server",
            )
        name = sql.Identifier(_DATABASE)
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(name))
        connection.execute(sql.SQL("CREATE DATABASE {}").format(name))
        connection.execute(sql.SQL("COMMENT ON DATABASE {} IS {}").format(name, sql.Literal(_MARK)))
    upgrade(own)
    upgrade_receiver(own)
    with connect(own, autocommit=False, for_handlers=True) as connection:
        connection.execute(_SETUP)
        connection.execute(
            "SELECT inturn.create_topic(%s, 'sql:public.apply_order', numbering => 'given')", (NUMBERED,)
        )
        connection.execute("SELECT inturn.create_topic(%s, 'sql:public.apply_order')", (MERGED,))
        connection.execute("SELECT inturn.merge_rule(%s, 'insert', 'delete', 'nothing')", (MERGED,))
        connection.execute("SELECT inturn.pause_topic(%s)", (MERGED,))
    return own


def create_posted(
    connection: psycopg.Connection[Any], topic: str, target: str, numbering: str = "assigned"
) -> None:
    """Create a topic whose commands are posted to B."""
    connection.execute(
        "SELECT inturn.create_topic(%s, %s, backoff_base => '100 ms', max_attempts => 20, numbering => %s)",
        (topic, target, numbering),
    )


def machine_dsn(dsn: str, machine: str) -> str:
    """Return the connection string for sessions of a machine, by which the witness knows it."""
    options = conninfo_to_dict(dsn).get("options", "")
    return make_conninfo(dsn, options=f"{options} -c demo.machine={machine}")


def shown_dsn(dsn: str) -> str:
    """Return the connection string without what is secret or ours alone."""
    shown = {"host", "port", "user", "dbname"}
    return make_conninfo("", **{k: v for k, v in conninfo_to_dict(dsn).items() if k in shown})


def note_calls(connection: psycopg.Connection[Any], way: str, orders: Orders) -> None:
    """Write down what A is about to call."""
    with connection.cursor() as cursor, cursor.copy("COPY called FROM STDIN") as copy:
        for order in orders:
            for call in order:
                copy.write_row((way, call.key, call.seq, call.name))


def is_applied(connection: psycopg.Connection[Any], topic: str, orders: Orders) -> bool:
    """Whether inturn has nothing left to do in a topic into which all calls were appended."""
    row = connection.execute(
        "SELECT sum(applied_seq), bool_and(ready_at IS NULL AND held_at IS NULL)"
        " FROM inturn.key_cursor WHERE topic = %s",
        (topic,),
    ).fetchone()
    return row == (sum(map(len, orders)), True)


def find(connection: psycopg.Connection[Any], way: str) -> Findings:
    """Count what came of a way."""
    row = connection.execute(_FINDINGS, {"way": way}).fetchone()
    assert row is not None  # noqa: S101 - for mypy: one row
    commands, wrong, lost, doubled, busiest, merged = row
    return Findings(commands, wrong, lost, doubled, float(busiest or 0), merged)
