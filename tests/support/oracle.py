"""The oracle: what must hold in every single snapshot of the database, while all are at work."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from support.database import Database, until
from support.roles import OWNER

#: Adds to `witness` what proves who came after whom. The snapshot in which an effect (or a receipt)
#: was written sees the one before it as committed, or both are of one transaction: so the one
#: transaction had ended before the other did, and nothing of it can have run beside the other.
_EVIDENCE = """
    ALTER TABLE app.witness ADD seen pg_snapshot NOT NULL DEFAULT pg_current_snapshot();
    CREATE TABLE app.receipt (
        key text COLLATE "C" NOT NULL, seq bigint NOT NULL,
        xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
        seen pg_snapshot NOT NULL DEFAULT pg_current_snapshot());
    -- What lease clients did outside the transactions of their claims, in one order with the witness;
    -- and the epochs that leases took, of which not every one has a turn.
    CREATE TABLE app.outside (
        id bigint PRIMARY KEY DEFAULT nextval('app.witness_id_seq'), key text COLLATE "C" NOT NULL,
        seq bigint NOT NULL, epoch bigint NOT NULL, n bigint,
        xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
        seen pg_snapshot NOT NULL DEFAULT pg_current_snapshot());
    CREATE INDEX ON app.outside (key, seq);
    CREATE TABLE app.lease (topic text, key text, epoch bigint, PRIMARY KEY (topic, key, epoch));
    CREATE TABLE app.fence (key text COLLATE "C" PRIMARY KEY, epoch bigint NOT NULL);
    CREATE FUNCTION app.claim(topics text[], max_keys integer, applier text)
    RETURNS TABLE (topic text, key text, epoch bigint, seq bigint, payload jsonb)
    LANGUAGE sql VOLATILE AS $$
        WITH claimed AS MATERIALIZED (
            SELECT c.* FROM inturn.claim(topics, max_keys, NULL, applier) c),
        noted AS (INSERT INTO app.lease SELECT DISTINCT c.topic, c.key, c.epoch FROM claimed c)
        SELECT c.topic, c.key, c.epoch, c.seq, c.payload FROM claimed c
    $$;
    -- The receiver of outside effects: it refuses an epoch below one that it has seen.
    CREATE FUNCTION app.effect(key text, seq bigint, epoch bigint, n bigint DEFAULT NULL) RETURNS boolean
    LANGUAGE plpgsql VOLATILE AS $$
    BEGIN
        INSERT INTO app.fence AS f (key, epoch) VALUES (effect.key, effect.epoch)
        ON CONFLICT ON CONSTRAINT fence_pkey DO UPDATE SET epoch = EXCLUDED.epoch
            WHERE f.epoch <= EXCLUDED.epoch;
        IF NOT FOUND THEN
            RETURN false;
        END IF;
        -- A statement of its own, whose snapshot shows the effect before it.
        INSERT INTO app.outside (key, seq, epoch, n) VALUES (effect.key, effect.seq, effect.epoch, effect.n);
        RETURN true;
    END $$;
"""

#: One statement, so one snapshot. Every row is a broken promise.
_VIOLATIONS = r"""
WITH
asked AS (SELECT %s::text AS keys),
log AS (SELECT *, lag(created_at) OVER one AS before FROM inturn.command_log
        WHERE key LIKE (SELECT keys FROM asked) WINDOW one AS (PARTITION BY topic, key ORDER BY seq)),
known AS (SELECT log.topic, key, count(*) AS commands, max(seq) AS last, t.numbering = 'given' AS given,
                 bool_and(log.created_at >= coalesce(before, log.created_at)) AS forward
          FROM log JOIN inturn.topic t ON t.name = log.topic GROUP BY log.topic, key, t.numbering),
outside AS (SELECT o.*, max(o.seq) OVER earlier AS furthest, max(o.epoch) OVER earlier AS newest
            FROM app.outside o WHERE o.key LIKE (SELECT keys FROM asked)
            WINDOW earlier AS (PARTITION BY o.key ORDER BY o.id ROWS UNBOUNDED PRECEDING)),
-- An outside effect may be repeated, wait for its record, or belong to what was passed over at last.
done AS (SELECT id, key, seq, xid, seen FROM app.witness WHERE key LIKE (SELECT keys FROM asked)
         UNION ALL (SELECT DISTINCT ON (o.key, o.seq) o.id, o.key, o.seq, o.xid, o.seen
                    FROM outside o JOIN inturn.key_cursor c ON c.key = o.key AND o.seq <= c.applied_seq
                    WHERE NOT EXISTS (SELECT FROM inturn.skip p
                                      WHERE p.topic = c.topic AND p.key = o.key AND p.seq = o.seq)
                      AND NOT EXISTS (SELECT FROM app.witness w WHERE w.key = o.key AND w.seq = o.seq)
                    ORDER BY o.key, o.seq, o.id)),
effect AS (SELECT *, row_number() OVER one AS place, lag(xid) OVER one AS before FROM done
           WINDOW one AS (PARTITION BY key ORDER BY id)),
applied AS (SELECT key, count(*) AS effects, max(seq) AS last FROM effect GROUP BY key),
receipt AS (SELECT *, lag(xid) OVER one AS before, row_number() OVER one AS place FROM app.receipt
            WHERE key LIKE (SELECT keys FROM asked) WINDOW one AS (PARTITION BY key ORDER BY seq)),
skip AS (SELECT * FROM inturn.skip WHERE key LIKE (SELECT keys FROM asked)),
skipped AS (SELECT topic, key, count(*) AS skips, max(seq) AS last FROM skip GROUP BY topic, key),
-- Where an effect has its place among the numbers that were not passed over.
expected AS (SELECT *, place + count(*) FILTER (WHERE place IS NULL)
                                   OVER (PARTITION BY key ORDER BY seq) AS due
             FROM (SELECT key, seq, place FROM effect UNION ALL SELECT key, seq, NULL FROM skip) mixed),
-- What passed over commands under one epoch: the failed end of a turn, or an operator.
move AS (SELECT topic, key, epoch, min(seq) AS first, max(seq) AS last, count(*) AS skips,
                bool_or(skipped_by = 'operator') AS by_operator FROM skip GROUP BY topic, key, epoch),
turn AS (SELECT * FROM inturn.turn WHERE key LIKE (SELECT keys FROM asked) AND outcome <> 'idle'),
step AS (SELECT topic, key, epoch, t.from_seq, t.to_seq, t.outcome, m.first, m.last, m.skips, m.by_operator,
                coalesce(t.from_seq, m.first) AS begins, coalesce(m.last, t.to_seq) AS ends
         FROM turn t FULL JOIN move m USING (topic, key, epoch)),
history AS (SELECT *, lag(ends, 1, 0::bigint) OVER one AS before
            FROM step WINDOW one AS (PARTITION BY topic, key ORDER BY epoch)),
key AS (SELECT k.*, coalesce(c.applied_seq, 0) AS applied_seq,
               c.ready_at, c.held_at, c.paused_at, coalesce(a.effects, 0) AS effects,
               (SELECT array_agg(i.epoch) FROM inturn.ticket i
                WHERE i.topic = k.topic AND i.key = k.key) AS tickets,
               (SELECT max(ARRAY[u.epoch, u.applied_seq, u.drained::integer]) FROM inturn.turn u
                WHERE u.topic = k.topic AND u.key = k.key) AS last_turn,
               coalesce(a.last, 0) AS last_effect,
               coalesce(p.skips, 0) AS skips, coalesce(p.last, 0) AS last_skip,
               c.paused_at IS NOT NULL AND c.paused_until IS NULL AS paused_for_good,
               c.waiting_at, c.claimed_by, c.lease_until,
               EXISTS (SELECT FROM log l
                       WHERE l.topic = k.topic AND l.key = k.key
                         AND l.seq = coalesce(c.applied_seq, 0) + 1) AS pending
        FROM known k LEFT JOIN inturn.key_cursor c USING (topic, key)
        LEFT JOIN applied a USING (key)
        LEFT JOIN skipped p USING (topic, key))
SELECT 'P1: seqs have a hole', key, commands, last FROM key WHERE commands <> last AND NOT given
UNION ALL SELECT 'P1: created_at runs backwards', key, commands, last FROM key WHERE NOT forward AND NOT given
UNION ALL SELECT 'P1: committed before the seq before it', key, seq, place FROM receipt
    WHERE before <> xid AND NOT pg_visible_in_snapshot(before, seen)
UNION ALL SELECT 'P1: a seq given twice or rolled back and kept', key, seq, place FROM receipt
    WHERE seq <> place
UNION ALL SELECT 'P2: worked beside the turn before it', key, seq, place FROM effect
    WHERE before <> xid AND NOT pg_visible_in_snapshot(before, seen)
UNION ALL SELECT 'P2: turns do not join', key, begins, before FROM history WHERE begins <> before + 1
UNION ALL SELECT 'P2: a fenced one has taken effect', key, seq, epoch FROM outside WHERE epoch < newest
UNION ALL SELECT 'P2: ready under a lease', key, applied_seq, last FROM key WHERE ready_at < lease_until
UNION ALL SELECT 'P2: half a lease', key, applied_seq, last FROM key
    WHERE (claimed_by IS NULL) <> (lease_until IS NULL) OR lease_until IS NOT NULL AND held_at IS NOT NULL
UNION ALL SELECT 'P3: an outside effect repeated behind a later one', key, seq, furthest
    FROM outside WHERE seq < furthest
UNION ALL SELECT 'P3: an outside effect before its turn', o.key, o.seq, c.applied_seq
    FROM outside o JOIN inturn.key_cursor c USING (key) WHERE o.seq > c.applied_seq + 1
UNION ALL SELECT 'P3: skips do not join their turn', key, first, last FROM history
    WHERE coalesce(outcome IN ('skipped', 'cancelled'), true) <> (first IS NOT NULL)
        OR (outcome IS NULL) <> coalesce(by_operator, false) OR first <> to_seq + 1
        OR skips <> last - first + 1 OR outcome = 'skipped' AND skips <> 1
UNION ALL SELECT 'P3: applied out of turn', key, seq, place FROM expected WHERE seq <> due
UNION ALL SELECT 'P3: applied, not committed', key, last_effect, last FROM key WHERE last_effect > last
UNION ALL SELECT 'P3: applied, not in the log', key, effects, 0 FROM applied a
    WHERE NOT EXISTS (SELECT FROM known k WHERE k.key = a.key)
UNION ALL SELECT 'P3: skipped, not behind the cursor', key, last_skip, applied_seq FROM key
    WHERE last_skip > applied_seq
UNION ALL SELECT 'P7: effects are not what the cursor says', key, effects + skips, applied_seq FROM key
    WHERE effects + skips <> applied_seq
UNION ALL SELECT 'P3: held and ready at once', key, applied_seq, last FROM key
    WHERE held_at IS NOT NULL AND ready_at IS NOT NULL
UNION ALL SELECT 'P3: held and paused at once', key, applied_seq, last FROM key
    WHERE held_at IS NOT NULL AND paused_at IS NOT NULL
UNION ALL SELECT 'P3: paused for good and ready at once', key, applied_seq, last FROM key
    WHERE paused_for_good AND ready_at IS NOT NULL
UNION ALL SELECT 'P4: lost: unapplied and idle', key, last, applied_seq FROM key
    WHERE pending AND ready_at IS NULL AND held_at IS NULL AND NOT coalesce(paused_for_good, false)
        AND NOT EXISTS (SELECT FROM inturn.wake_hint h WHERE h.topic = key.topic AND h.key = key.key)
UNION ALL SELECT 'P4: a gap that nobody knows of', key, last, applied_seq FROM key
    WHERE last > applied_seq AND NOT pending AND ready_at IS NULL AND held_at IS NULL AND waiting_at IS NULL
        AND NOT coalesce(paused_for_good, false)
        AND NOT EXISTS (SELECT FROM inturn.wake_hint h WHERE h.topic = key.topic AND h.key = key.key)
UNION ALL SELECT 'P4: the next append will not wake it', key, last, applied_seq FROM key
    WHERE tickets IS NULL AND NOT given AND (last_turn[3] = 1) IS NOT TRUE
UNION ALL SELECT 'P4: a ticket that is never ready', key, last, applied_seq FROM key
    WHERE tickets IS NOT NULL AND ready_at IS NULL AND num_nonnulls(held_at, paused_at, waiting_at) = 0
UNION ALL SELECT 'P2: two tickets', key, last, applied_seq FROM key WHERE cardinality(tickets) > 1
UNION ALL SELECT 'P2: a ticket behind the last turn', key, tickets[1], last_turn[1] FROM key
    WHERE tickets[1] < last_turn[1]
UNION ALL SELECT 'P3: a mark that no ticket knows of', key, epoch, 0 FROM inturn.key_mark m
    WHERE key LIKE (SELECT keys FROM asked) AND NOT EXISTS (
        SELECT FROM inturn.ticket i WHERE (i.topic, i.key, i.epoch) = (m.topic, m.key, m.epoch) AND i.marked)
UNION ALL SELECT 'P3: a ticket without its mark', key, epoch, 0 FROM inturn.ticket i
    WHERE key LIKE (SELECT keys FROM asked) AND marked AND NOT EXISTS (
        SELECT FROM inturn.key_mark m WHERE (m.topic, m.key, m.epoch) = (i.topic, i.key, i.epoch))
LIMIT 20
"""


#: How long the oracle rests after its first look, in seconds; after each further one twice as long.
_FIRST_PAUSE = 0.005


class Oracle:
    """Watches the database of the fixture `witness`, from the moment it is made."""

    def __init__(self, database: Database) -> None:
        database.execute(_EVIDENCE)
        self._database = database
        # Without statistics the planner takes the crowd for a handful. Before 18, what is off costs so much
        # that the statement would be compiled.
        self._connection = database.connect(
            options="-c enable_nestloop=off -c work_mem=64MB -c jit=off", user=OWNER
        )

    def violations(self, keys: str = "%") -> list[tuple[object, ...]]:
        """Return what is broken in one snapshot, for keys LIKE a pattern."""
        return self._connection.execute(_VIOLATIONS, [keys]).fetchall()

    def check(self, keys: str = "%") -> None:
        """Assert that nothing is broken."""
        found = self.violations(keys)
        assert not found, found

    def check_drained(self, keys: str = "%") -> int:
        """Assert that every key is idle, its commands applied or skipped; return how many there are."""
        self.check(keys)
        assert not self._database.execute(
            "SELECT * FROM inturn.key_cursor"
            " WHERE key LIKE %s AND (ready_at IS NOT NULL OR held_at IS NOT NULL)",
            [keys],
        )
        commands, effects = self._database.execute(
            "SELECT (SELECT count(*) FROM inturn.command_log WHERE key LIKE %s),"
            " (SELECT count(*) FROM (SELECT key, seq FROM app.witness UNION SELECT key, seq FROM app.outside"
            " UNION SELECT key, seq FROM inturn.skip WHERE EXISTS (SELECT FROM inturn.command_log l"
            "   WHERE (l.topic, l.key, l.seq) = (skip.topic, skip.key, skip.seq))) done WHERE key LIKE %s)",
            [keys, keys],
        )[0]
        assert commands == effects
        return int(commands)

    def wait_no_key_ready(self) -> None:
        """Wait until appliers have left no key ready: an empty turn puts it off for some ms."""
        until(
            lambda: (
                not self._database.value("SELECT count(*) FROM inturn.key_cursor WHERE ready_at IS NOT NULL")
            ),
            "no key ready",
        )

    @contextmanager
    def watching(self, seconds_between: float = 0.1) -> Iterator[Watch]:
        """Check again and again while the block runs; at its end, assert that nothing was broken."""
        watch = Watch(self, seconds_between)
        with watch:
            yield watch
        assert not watch.seen, watch.seen
        assert watch.looks > 1, "the run was over before it was watched"


class Watch:
    """A thread that looks at one snapshot after the other."""

    def __init__(self, oracle: Oracle, seconds_between: float) -> None:
        self._oracle = oracle
        self._seconds_between = seconds_between
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="oracle", daemon=True)
        self._failure: BaseException | None = None
        self.looks = 0
        self.seen: list[tuple[object, ...]] = []

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._failure is not None and error is None:
            raise self._failure

    def _run(self) -> None:
        try:
            pause = _FIRST_PAUSE  # a run may be short
            while not self.seen:
                self.seen = self._oracle.violations()
                self.looks += 1
                pause = min(pause * 2, self._seconds_between)
                if self._stop.wait(pause):
                    return
        except BaseException as failure:  # noqa: BLE001 - raised again by the thread that waits
            self._failure = failure
