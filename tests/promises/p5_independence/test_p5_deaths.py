"""P5: one command that kills the process of its applier costs the others nothing, and is held."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from support import bad_company, bad_outside, deaths
from support.bad_company import HEALTHY, OTHERS, innocent_and_charged
from support.database import Database, until
from support.process import inturn_apply


def _is_over(database: Database) -> bool:
    held = database.value("SELECT held_at IS NOT NULL FROM inturn.key_cursor WHERE key = 'bad'")
    return bool(held) and bad_outside.is_healed(database)


def _ways_and_workers() -> Iterator[Any]:
    """Go through the ways, with one worker and with three; `make test` tries one of these in most of them."""
    for number, (way, what) in enumerate(deaths.WAYS.items()):
        is_core = way == "a handler in Python"
        for other, workers in enumerate([1] if what in deaths.CLIENTS else [1, 3]):
            if what != "call":  # which goes on: see below
                marks = [] if is_core else [pytest.mark.slow]  # each death is followed by the rest of a lease
                if (number + other) % 2 and not (is_core or what in deaths.CLIENTS):
                    marks.append(pytest.mark.rest)
                yield pytest.param(way, workers, marks=marks)


@pytest.mark.long
@pytest.mark.parametrize(("way", "workers"), [*_ways_and_workers()])
def test_p5_a_command_that_kills_its_process_is_held_and_the_others_go_on(
    database: Database, way: str, workers: int
) -> None:
    """A supervisor starts it again and again: it is not the one key for ever that it dies of."""
    with deaths.company(database, way) as run:
        starts = 0
        while not _is_over(database):
            starts += 1
            assert starts < 12, "died of it again and again"
            run(partial(_is_over, database), "--workers", str(workers))
    assert innocent_and_charged(database) == []
    assert "the lease of" in database.value("SELECT last_error FROM inturn.key_cursor WHERE key = 'bad'")
    ((cause, says),) = database.execute("SELECT cause, says FROM inturn.why('bad', 'bad')")
    assert cause == "held"
    assert "the lease of" in says
    if database.value("SELECT to_regclass('bad.witness') IS NOT NULL"):
        assert database.value("SELECT count(*) FROM bad.witness WHERE key = 'bad'") == 0
        assert database.value("SELECT count(*) FROM bad.witness") == HEALTHY + OTHERS


def test_p5_a_call_whose_client_dies_goes_on_and_nobody_is_charged(database: Database) -> None:
    """The server does not look for its client before the CALL ends."""
    with deaths.company(database, "the client of a CALL") as run:
        run(lambda: False)
        pending = "SELECT count(*) FROM inturn.ticket"
        until(lambda: not database.value(pending), "the end of the CALL")
    assert database.value("SELECT count(*) FROM inturn.turn WHERE outcome NOT IN ('applied', 'idle')") == 0
    assert innocent_and_charged(database) == []
    assert database.value("SELECT count(*) FROM bad.witness") == HEALTHY + OTHERS + 1
    assert database.value("SELECT cause FROM inturn.why('bad', 'bad')") == "nothing_pending"


@pytest.mark.slow
@pytest.mark.parametrize("way", deaths.BUSY_OUTSIDE)
def test_p5_a_command_that_keeps_its_interpreter_busy_charges_nobody_else(
    database: Database, way: str
) -> None:
    """The leases of all that its process has in hand run out, and another process may take their keys."""
    bad_outside.prepare(database, bad_outside.Fault(""), lease=deaths.LEASE)
    app = f"support.deaths:{deaths.BUSY[way]}"
    with inturn_apply(database.dsn, app=app) as one:
        until(lambda: _who_has_it(database) == ("leased", one.pid), "the bad one in hand")
        with inturn_apply(database.dsn, app=app) as other:
            until(lambda: bad_outside.is_healed(database), "the healthy keys", 100)
            over = "SELECT held_at IS NOT NULL OR applied_seq = 1 FROM inturn.key_cursor WHERE key = 'bad'"
            until(lambda: database.value(over), "the bad one", 100)
            # Neither has ended, and each ends well when it is asked to.
            for process in (one, other):
                process.send(signal.SIGTERM)
                assert process.exit_code() == 0
    assert innocent_and_charged(database) == []
    # One that was in hand with it may be taken once more.
    assert database.value("SELECT count(*) FROM inturn.turn WHERE key <> 'bad'") <= 2 * (HEALTHY + OTHERS)
    ((cause, says),) = database.execute("SELECT cause, says FROM inturn.why('bad', 'bad')")
    held = database.value("SELECT held_at IS NOT NULL FROM inturn.key_cursor WHERE key = 'bad'")
    assert cause == ("held" if held else "nothing_pending")
    assert ("the lease of" in says) == held


@pytest.mark.slow
@pytest.mark.parametrize(
    "way",
    [pytest.param(way, marks=pytest.mark.rest if "batch" in way else []) for way in deaths.BUSY_INSIDE],
)
def test_p5_a_handler_that_keeps_its_interpreter_busy_has_its_key_until_it_returns(
    database: Database, way: str
) -> None:
    """Its transaction keeps it, however long; another process has the others meanwhile."""
    bad_company.prepare(database, bad_company.Fault(""), target="python")
    app = f"support.deaths:{deaths.BUSY[way]}"
    with inturn_apply(database.dsn, app=app) as one:
        until(lambda: _who_has_it(database)[0] == "applying", "the bad one in hand")
        with inturn_apply(database.dsn, app=app) as other:
            until(lambda: not database.value("SELECT count(*) FROM inturn.ticket"), "all of them", 100)
            for process in (one, other):
                process.send(signal.SIGTERM)
                assert process.exit_code() == 0
    assert innocent_and_charged(database) == []
    assert database.value("SELECT count(*) FROM inturn.turn WHERE outcome NOT IN ('applied', 'idle')") == 0
    assert database.value("SELECT count(*) FROM bad.witness") == HEALTHY + OTHERS + 1


def _who_has_it(database: Database) -> tuple[str, int]:
    """Return what `why` says of the bad key, and which process it names."""
    ((cause, details),) = database.execute("SELECT cause, details FROM inturn.why('bad', 'bad')")
    return cause, details.get("pid")
