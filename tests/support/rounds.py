"""Healthy work in rounds, an attempt of a bad key in each: what it took, counted without a clock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass

import psycopg

from support import roles
from support.database import Database, until
from support.race import replace_in

#: So many healthy keys there are in each topic; each gets a command in each round.
KEYS = {"bad": 60, "other": 20}
#: Enough where each is a lease of its own: no batches, and nothing that is done to the first ones only.
FEW_KEYS = {"bad": 24, "other": 8}
#: Rounds that are counted, and before them those in which the failure is new.
ROUNDS, NEW = 3, 2
WORKERS = 2

_WATCHED = """
    CREATE SEQUENCE bad.calls; CREATE SEQUENCE bad.alone;
    SELECT nextval('bad.calls'), nextval('bad.alone');
    GRANT USAGE ON SCHEMA bad TO PUBLIC; GRANT USAGE ON SEQUENCE bad.calls, bad.alone TO PUBLIC;
    CREATE FUNCTION bad.count_up() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM nextval(TG_ARGV[0]::regclass);
        RETURN NEW;
    END $$;
    -- What is rolled back is counted too. What is recorded under a lease may write its mark again, in a later
    -- transaction than its claim.
    CREATE TRIGGER count_alone BEFORE INSERT ON inturn.key_mark FOR EACH ROW
        WHEN (NEW.claimed_by IS NOT NULL AND NEW.claimed_at >= now() AND NEW.key <> 'bad')
        EXECUTE FUNCTION bad.count_up('bad.alone');
"""
_CALLED = """
    CREATE TRIGGER count_calls BEFORE INSERT ON bad.witness FOR EACH ROW
        WHEN (NEW.key <> 'bad') EXECUTE FUNCTION bad.count_up('bad.calls');
"""
_COUNTS = """
    SELECT (SELECT last_value FROM bad.calls), (SELECT last_value FROM bad.alone),
           (SELECT count(*) FROM inturn.turn WHERE key <> 'bad')
"""


@dataclass(frozen=True, slots=True)
class Took:
    """What so many healthy commands took: calls of their target, claims by lease, and turns."""

    commands: int
    calls: int
    leases: int
    turns: int


_SESSIONS = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
        AND (application_name = 'inturn apply' OR query ILIKE '%claim%')
"""
_END_LEASES = """
    WITH leased AS (
        SELECT t.topic, t.key FROM inturn.ticket t JOIN inturn.key_mark m USING (topic, key, epoch)
        WHERE m.lease_until > now() FOR UPDATE OF t),  -- first, as whoever records something does
    gone AS (
        UPDATE inturn.key_mark m SET lease_until = now() FROM leased l
        WHERE (m.topic, m.key) = (l.topic, l.key) RETURNING m.topic, m.key)
    UPDATE inturn.ticket t SET ready_at = now() FROM gone g WHERE (t.topic, t.key) = (g.topic, g.key)
"""


def watch(database: Database) -> None:
    """Count from now on; the topics are there."""
    database.execute(_WATCHED)
    if database.value("SELECT to_regclass('bad.witness')"):
        database.execute(_CALLED)
    database.execute(
        "SELECT inturn.set_topic(name, max_attempts => 10000, backoff_base => '1 hour',"
        " backoff_cap => '1 hour') FROM inturn.topic"
    )


def shorten_leases(database: Database) -> None:
    """Let that of a key that was lost before, and is taken alone, take a second too and not ten."""
    replace_in(database, "_claim_alone", (r"interval '10 s'", "interval '1 s'"))


def run(database: Database, *, end_lease: bool = True, keys: Mapping[str, int] = KEYS) -> Took:
    """Go through the rounds, beside whoever applies; the first ones are not counted.

    end_lease: of the bad key, at the beginning of each, if there is one. Not where its holder may be alive:
    it would be believed to have nothing in hand, and another key would be lost with it.
    """
    # The bad key's command comes first of all: a COMMIT of its own commits nothing of others.
    _wait(database, [(0, 0)])
    for _ in range(NEW):
        _round(database, keys, end_lease=end_lease)
    before = database.execute(_COUNTS)[0]
    for _ in range(ROUNDS):
        _round(database, keys, end_lease=end_lease)
    calls, leases, turns = (
        after - was for after, was in zip(database.execute(_COUNTS)[0], before, strict=True)
    )
    return Took(ROUNDS * sum(keys.values()), calls, leases, turns)


def _round(database: Database, keys: Mapping[str, int], *, end_lease: bool) -> None:
    tried = _tries(database)
    for topic, count in keys.items():
        database.execute(
            "SELECT inturn.append_many(%s, array_agg('k' || n), array_agg('insert'::text))"
            " FROM generate_series(1, %s) n",
            [topic, count],
        )
    # Where the bad key's commands take effect, each round needs one of its own.
    database.execute("SELECT inturn.append('bad', 'bad', 'insert')")
    # Its wait is over, or the lease of who was lost with it. Not by the door: appliers are at work on it.
    if end_lease:
        database.execute("""
            UPDATE inturn.ticket SET ready_at = now() WHERE key = 'bad' AND ready_at < 'infinity';
            UPDATE inturn.key_mark SET lease_until = now() WHERE key = 'bad' AND lease_until IS NOT NULL;
        """)
    else:
        # Who has it in hand may wait for another thread, which asks on this connection.
        database.execute("""
            UPDATE inturn.ticket t SET ready_at = now() FROM (
                SELECT topic, key, epoch FROM inturn.ticket WHERE key = 'bad' AND ready_at < 'infinity'
                FOR UPDATE SKIP LOCKED) free
            WHERE (t.topic, t.key, t.epoch) = (free.topic, free.key, free.epoch) AND NOT EXISTS (
                SELECT FROM inturn.key_mark m WHERE m.key = 'bad' AND m.lease_until > now())
        """)
    _wait(database, tried)


def wait_gone(database: Database) -> None:
    """Wait until the server has noticed that whoever applied is dead: what he had sent, it does until then.

    A claim among that would begin after his leases were ended, and take a key beside the one he died of.
    """
    until(lambda: not database.value(_SESSIONS), "the end of the sessions of who is dead")


def end_leases(database: Database) -> None:
    """Let every lease be over: whoever had one is gone.

    A session of his may be recording something still, in another order of keys: then once more.
    """
    while True:
        with suppress(psycopg.errors.DeadlockDetected):
            database.execute(_END_LEASES)
            return


def _wait(database: Database, tried: object) -> None:
    """Wait until the healthy keys have nothing pending, and the bad one was tried once more, or is held."""
    pending = "SELECT count(*) FROM inturn.ticket WHERE key <> 'bad'"
    held = "SELECT count(*) FROM inturn.key_mark WHERE key = 'bad' AND held_at IS NOT NULL"
    try:
        until(lambda: not database.value(pending), "the healthy keys")
        # What a service refuses is held at its first attempt.
        until(lambda: _tries(database) != tried or database.value(held), "an attempt of the bad one")
    except AssertionError as error:
        raise AssertionError(f"{error}: {_standing(database)}") from None


def _standing(database: Database) -> object:
    """Return some of the keys that stand still, and what the others are at."""
    keys = database.execute(
        "SELECT c.key, c.applied_seq, c.ready_at - now(), attempts, lost, left(last_error, 100), claimed_by,"
        " lease_until - now() FROM inturn.key_cursor c JOIN inturn.ticket t USING (topic, key, epoch)"
        " ORDER BY key = 'bad' DESC LIMIT 5"
    )
    sessions = database.execute(
        "SELECT pid, state, wait_event, now() - query_start, left(query, 150), pg_blocking_pids(pid)"
        " FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    return keys, sessions


def _tries(database: Database) -> object:
    return database.execute(
        "SELECT (SELECT count(*) FROM inturn.turn WHERE key = 'bad'),"
        " (SELECT empty_turns FROM inturn.ticket WHERE key = 'bad')"
    )


@contextmanager
def beside(work: Callable[[threading.Event], object], threads: int) -> Iterator[None]:
    """Have so many threads work until they are told, at the end of the block."""
    over = threading.Event()
    working = [threading.Thread(target=work, args=(over,)) for _ in range(threads)]
    with ExitStack() as stack:
        for thread in working:
            thread.start()
            stack.callback(thread.join)
        stack.callback(over.set)
        yield


def called(database: Database, *settings: str) -> AbstractContextManager[None]:
    """Call apply again and again, on another connection after each error, while the block runs.

    settings: statements, of each connection.
    """

    def call(over: threading.Event) -> None:
        while not over.is_set():
            with suppress(psycopg.DatabaseError), database.connect(user=roles.APPLIER) as session:
                for setting in ("SET inturn.careful_keys = 20", *settings):  # the default
                    session.execute(setting)
                while not over.is_set():
                    session.execute("CALL inturn.apply()")
                    session.execute("SELECT pg_sleep(0.03)")

    return beside(call, WORKERS)
