"""A model of all promises at once: callers, appliers, lease clients, operators and faults, on two keys."""

from __future__ import annotations

import itertools
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import psycopg
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from support.database import Database, Session, until
from support.lease_scenes import Lease, claim
from support.oracle import Oracle
from support.race import blocked, kill
from support.roles import OPERATOR, OWNER

_TARGET = """
    ALTER TABLE app.witness ADD n bigint;
    CREATE TABLE app.poison (n bigint PRIMARY KEY, state text NOT NULL);
    CREATE FUNCTION app.apply_model(command inturn.command) RETURNS void LANGUAGE plpgsql AS $$
    DECLARE
        state text;
    BEGIN
        INSERT INTO app.witness (key, seq, name, n)
        VALUES (command.key, command.seq, command.name, (command.payload->>'n')::bigint);
        PERFORM pg_advisory_xact_lock_shared(4242);
        SELECT p.state INTO state FROM app.poison p WHERE p.n = (command.payload->>'n')::bigint;
        IF FOUND THEN
            RAISE EXCEPTION USING ERRCODE = state, MESSAGE = 'poison';
        END IF;
    END $$;
"""
_examples = itertools.count(1)
_numbers = itertools.count(1)


@dataclass
class Caller:
    """A caller's session, and what its open transaction has appended: per savepoint a list of (key, n)."""

    session: Session
    levels: list[list[tuple[str, int]]] = field(default_factory=lambda: [[]])
    waiting: tuple[str, int, Future[Any]] | None = None

    @property
    def appended(self) -> list[tuple[str, int]]:
        return list(itertools.chain.from_iterable(self.levels))

    def kill(self, database: Database) -> None:
        kill(database, self.session, self.waiting[2] if self.waiting else None)

    def forget(self) -> None:
        self.levels, self.waiting = [[]], None


class Machine(RuleBasedStateMachine):
    """Three callers, an applier that may leave its turn open, lease clients and an operator, on two keys."""

    database: Database
    oracle: Oracle
    operator: psycopg.Connection[Any]
    #: Of the owner, who may set times.
    clock: psycopg.Connection[Any]

    def __init__(self) -> None:
        super().__init__()
        self.topic = f"model{next(_examples)}"
        self.database.execute(
            "SELECT inturn.create_topic(%s, 'sql:app.apply_model', max_attempts => 3,"
            " backoff_base => '1 microsecond', batch_commands => 3)",
            [self.topic],
        )
        self.callers = [Caller(self.database.session()) for _ in range(3)]
        #: A caller with one old snapshot, and how many commands each key had in it.
        self.early = self.database.session()
        self.seen: dict[str, int] | None = None
        self.applier = self.database.session()
        self.turn_open = False
        self.client = self.database.session(autocommit=True)
        #: What clients have, or believe to have; those that were found to be fenced off are gone.
        self.leases: list[Lease] = []
        self.committed: dict[str, list[int]] = {f"{self.topic} {name}": [] for name in "ab"}
        #: Which commands fail now, and with which SQLSTATE; which ever did.
        self.poison: dict[int, str] = {}
        self.ever_poison: set[tuple[int, str]] = set()
        #: What operators have passed over.
        self.passed: set[int] = set()

    @initialize(counts=st.tuples(st.integers(0, 4), st.integers(0, 4)))
    def begin_with_commands(self, counts: tuple[int, int]) -> None:
        for what, count in enumerate(counts):
            for _ in range(count):
                self.append_and_commit(0, what)

    # Callers.

    @rule(who=st.integers(0, 2), what=st.integers(0, 1))
    def append(self, who: int, what: int) -> None:
        caller, key = self.callers[who], list(self.committed)[what]
        holders = [other for other in self.callers if other is not caller and key in dict(other.appended)]
        if caller.waiting or any(other.waiting for other in [*holders, *self._waiters_on(key)]):
            return  # it is busy, or would wait for one who waits: that may end in a deadlock
        n = next(_numbers)
        running = caller.session.begin(
            "SELECT inturn.append(%s, %s, 'insert', jsonb_build_object('n', %s::bigint))",
            [self.topic, key, n],
        )
        caller.waiting = key, n, running
        waits = blocked(self.database, caller.session, running)
        if holders:
            assert waits, "appended to a key that another caller holds"
        assert not waits or holders or self.turn_open, "waits for nobody"
        self._settle()

    @rule(who=st.integers(0, 2), what=st.integers(0, 1))
    def append_and_commit(self, who: int, what: int) -> None:
        self.append(who, what)
        self.commit(who)

    @rule(who=st.integers(0, 2))
    def savepoint(self, who: int) -> None:
        caller = self.callers[who]
        if not caller.waiting:
            caller.session.execute("SAVEPOINT s")
            caller.levels.append([])

    @rule(who=st.integers(0, 2))
    def roll_back_to_savepoint(self, who: int) -> None:
        caller = self.callers[who]
        if not caller.waiting and len(caller.levels) > 1:
            caller.session.execute("ROLLBACK TO s")
            caller.session.execute("RELEASE s")
            caller.levels.pop()
            self._settle()

    @rule(who=st.integers(0, 2))
    def commit(self, who: int) -> None:
        caller = self.callers[who]
        if not caller.waiting:
            caller.session.commit()
            for key, n in caller.appended:
                self.committed[key].append(n)
            caller.forget()
            self._settle()

    @rule(who=st.integers(0, 2))
    def roll_back(self, who: int) -> None:
        caller = self.callers[who]
        if not caller.waiting:
            caller.session.rollback()
            caller.forget()
            self._settle()

    @rule(who=st.integers(0, 2))
    def kill_caller(self, who: int) -> None:
        caller = self.callers[who]
        caller.kill(self.database)
        self.callers[who] = Caller(self.database.session())
        self._settle()

    @rule(then=st.sampled_from(["nothing", "drain", "drain and append"]), what=st.integers(0, 1))
    def take_a_snapshot(self, then: str, what: int) -> None:
        self.early.rollback()
        self.early.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        self.early.execute("SELECT FROM inturn.schema_version")
        self.seen = {key: len(numbers) for key, numbers in self.committed.items()}
        if "drain" in then and not self.turn_open:
            self.drain()
        if "append" in then and not self.turn_open:
            self.append_on_the_snapshot(what)

    @precondition(lambda self: self.seen is not None and not self.turn_open)
    @rule(what=st.integers(0, 1))
    def append_on_the_snapshot(self, what: int) -> None:
        """Asked to try again just when the key has commands that the snapshot lacks."""
        key = list(self.committed)[what]
        if self.seen is None or any(
            key in dict(caller.appended) or caller.waiting for caller in self.callers
        ):
            return  # it would wait for them
        n = next(_numbers)
        running = self.early.begin(
            "SELECT inturn.append(%s, %s, 'insert', jsonb_build_object('n', %s::bigint))",
            [self.topic, key, n],
        )
        assert not blocked(self.database, self.early, running), "waits for nobody"
        error = running.exception()
        if len(self.committed[key]) > self.seen[key]:
            assert getattr(error, "sqlstate", None) == "40001", error
            self.early.rollback()
        else:
            assert error is None, error
            self.early.commit()
            self.committed[key].append(n)
        self.seen = None

    # Appliers.

    @precondition(lambda self: not self.turn_open)
    @rule(max_keys=st.integers(1, 2))
    def take_turns(self, max_keys: int) -> None:
        assert not blocked(self.database, self.applier, self._apply(max_keys)), (
            "an applier waits for a caller"
        )
        self.turn_open = True

    @precondition(lambda self: self.turn_open)
    @rule(how=st.sampled_from(["commit", "commit", "commit", "rollback", "kill"]))
    def end_turns(self, how: str) -> None:
        if how == "kill":
            self._kill_applier()
        else:
            {"commit": self.applier.commit, "rollback": self.applier.rollback}[how]()
        self.turn_open = False
        self._settle()

    @precondition(lambda self: not self.turn_open)
    @rule(max_keys=st.integers(1, 2))
    def kill_applier_in_its_first_handler(self, max_keys: int) -> None:
        with self.database.connect(user=OWNER) as gate:
            gate.execute("SELECT pg_advisory_lock(4242)")
            running = self._apply(max_keys)
            if blocked(self.database, self.applier, running):
                self._kill_applier(running)
            else:
                self.applier.commit()
        self._settle()

    # Lease clients.

    @rule(max_keys=st.integers(1, 2))
    def claim_by_lease(self, max_keys: int) -> None:
        self.leases += claim(self.client, max_keys, "client", self.topic)

    @precondition(lambda self: self.leases and not self.turn_open)
    @rule(
        which=st.integers(0, 9),
        step=st.sampled_from(["work", "work", "work", "work", "effect", "renew", "release", "retry", "skip"]),
    )
    def take_a_step(self, which: int, step: str) -> None:
        """A step succeeds just while nobody else has had the key, however late it comes."""
        lease = self.leases[which % len(self.leases)]
        position, epoch, leased = self.database.execute(
            "SELECT applied_seq, epoch, claimed_by IS NOT NULL FROM inturn.key_cursor"
            " WHERE (topic, key) = (%s, %s)",
            [self.topic, lease.key],
        )[0]
        seq = next((seq for seq in lease.seqs if seq > position), None)
        if seq is None and step != "renew":
            step = "release"
        n = self.committed[lease.key][seq - 1] if seq is not None else None
        if step in {"work", "effect"}:
            done = self.client.execute("SELECT app.effect(%s, %s, %s, %s)", [lease.key, seq, lease.epoch, n])
            if step == "effect":
                return
            if not done[0][0]:
                assert (epoch, leased) != (lease.epoch, True), "the receiver knows of a later lease"
        statement, parameters = {
            "work": lease.advance(seq),
            "renew": lease.step("renew"),
            "release": lease.step("release"),
            "retry": lease.fail(seq),
            "skip": lease.step("fail", seq, "no", '{"verdict": "skip"}'),
        }[step]
        running = self.client.begin(statement, parameters)
        assert not blocked(self.database, self.client, running), "a lease waits for somebody"
        error = running.exception()
        assert (error is None) == ((epoch, leased) == (lease.epoch, True)), error
        assert error is None or getattr(error, "sqlstate", None) == "IT030", error
        if error is not None or step not in {"work", "renew"} or running.result() == [(None,)]:
            self.leases.remove(lease)
        if error is None and n is not None:
            self.ever_poison |= (
                {(n, {"retry": "failed", "skip": "IT022"}[step])} if step in {"retry", "skip"} else set()
            )

    @rule()
    def let_leases_run_out(self) -> None:
        """As if an hour went by."""
        for key, applied in self._applied().items():
            leased = self.database.execute(
                "SELECT FROM inturn.key_cursor WHERE topic = %s AND key = %s AND lease_until IS NOT NULL",
                [self.topic, key],
            )
            if leased and applied < len(self.committed[key]):
                self.ever_poison.add((self.committed[key][applied], "ran out"))
            self._act(
                "count(*) FROM (SELECT FROM inturn.ticket WHERE topic = %s AND key = %s FOR UPDATE) locked",
                key,
                then="UPDATE inturn.key_cursor SET lease_until = now(),"
                " ready_at = CASE WHEN ready_at IS NOT NULL THEN greatest(now(), paused_until) END"
                " WHERE topic = %s AND key = %s AND lease_until > now()",
            )

    @precondition(lambda self: not self.turn_open)
    @rule()
    def drain(self) -> None:
        """Afterwards every key is applied up to its end or up to its poison."""
        self.let_leases_run_out()
        if self.database.value(
            "SELECT paused_at IS NOT NULL FROM inturn.topic WHERE name = %s", [self.topic]
        ):
            return
        mine = (
            f"SELECT count(*) FROM inturn.key_cursor WHERE topic = '{self.topic}'"
            " AND ready_at < clock_timestamp() + interval '10 minutes'"
        )
        held = {key for caller in self.callers for key, _ in caller.appended}

        def drained() -> bool:
            self.database.execute("SELECT inturn._take_hints(ARRAY[%s])", [self.topic])
            # One key at a time: beside others, a poisoned key only asks for that (redo).
            self.database.execute("SELECT inturn.apply_batch(%s, '-infinity', 1, 'drain')", [self.topic])
            return bool(self.database.value(f"{mine} AND key <> ALL (%s)", [list(held)]) == 0)

        until(drained, "all keys drained that no caller holds", patience=5)
        for key, applied in self._applied().items():
            numbers = self.committed[key]
            if key not in held:
                assert applied == len(numbers) or numbers[applied] in self._standing_at()

    @rule(which=st.integers(0, 99), state=st.sampled_from(["XX001", "XX001", "IT020", "IT021", "IT022"]))
    def poison_a_command(self, which: int, state: str) -> None:
        pending = [n for key, applied in self._applied().items() for n in self.committed[key][applied:]]
        if pending and not self.turn_open:
            n = pending[which % len(pending)]
            self.poison[n] = state
            self.ever_poison.add((n, state))
            self.database.execute(
                "INSERT INTO app.poison VALUES (%s, %s) ON CONFLICT (n) DO UPDATE SET state = EXCLUDED.state",
                [n, state],
            )

    @rule()
    def cure_all(self) -> None:
        self.poison.clear()
        self.database.execute("DELETE FROM app.poison")

    # Operators.

    @rule(what=st.integers(0, 1), action=st.sampled_from(["skip", "skip", "cancel_rest"]))
    def pass_over(self, what: int, action: str) -> None:
        self.operate(what, action)

    @rule(what=st.integers(0, 1), action=st.sampled_from(["retry", "pause", "pause_until", "resume"]))
    def operate(self, what: int, action: str) -> None:
        """An action succeeds just when it makes sense in the key's state, or is told that the key is busy."""
        key = list(self.committed)[what]
        state, applied, for_good = self._stand(key)
        numbers = self.committed[key]
        pending = applied < len(numbers)
        allowed = {
            "skip": pending,
            "cancel_rest": pending,
            "retry": state in {"held", "retrying"},
            "pause": state != "held" and not for_good,
            "pause_until": state != "held",
            "resume": state == "paused",
        }[action]
        done = self._act(
            {
                "skip": f"inturn.skip(%s, %s, {applied + 1}, 'model')",
                "cancel_rest": "inturn.cancel_rest(%s, %s, 'model')",
                "pause_until": "inturn.pause(%s, %s, NULL, clock_timestamp() + '1 hour')",
            }.get(action, f"inturn.{action}(%s, %s)"),
            key,
        )
        if done == "IT042":
            appending = any(key in dict(caller.appended) for caller in self.callers)
            leased = any(lease.key == key for lease in self.leases)
            assert self.turn_open or appending or leased, "busy with nobody"
        elif state is None:
            assert done == "IT040"
        else:
            assert done == ("done" if allowed else "IT041"), (action, state)
        if done == "done" and action in {"skip", "cancel_rest"}:
            self.passed.update(numbers[applied : applied + 1] if action == "skip" else numbers[applied:])

    @rule(
        change=st.sampled_from(["hold", "skip", "cancel-rest", "pause", "resume", "later"]),
        n=st.integers(1, 3),
    )
    def change_topic(self, change: str, n: int) -> None:
        if change == "later":
            self._let_pauses_end()
        elif change in {"pause", "resume"}:
            self.pause_topic(change)
        else:
            settings = f"max_attempts => {n}, on_exhausted => '{change}'"
            self._act(f"inturn.set_topic(%s, %s, {settings})", "why")

    def pause_topic(self, change: str) -> None:
        done = self._act(f"inturn.{change}_topic(%s, %s)", "why")
        assert done in {"done", "IT041"}

    def _let_pauses_end(self) -> None:
        """As if an hour went by."""
        for key in self.committed:
            self._act(
                "count(*) FROM (SELECT FROM inturn.ticket WHERE topic = %s AND key = %s FOR UPDATE) locked",
                key,
                then="UPDATE inturn.key_cursor SET paused_until = now() - interval '1 s',"
                " ready_at = CASE WHEN ready_at IS NOT NULL THEN greatest(now(), lease_until) END"
                " WHERE topic = %s AND key = %s AND paused_until > now()",
            )

    # What holds after every step.

    @invariant()
    def promises_hold(self) -> None:
        self.oracle.check(f"{self.topic} %")

    @invariant()
    def log_and_witness_are_the_model(self) -> None:
        log: dict[str, list[int]] = {key: [] for key in self.committed}
        log.update(
            self.database.execute(
                "SELECT key, array_agg((payload->>'n')::bigint ORDER BY seq) FROM inturn.command_log"
                " WHERE topic = %s GROUP BY key",
                [self.topic],
            )
        )
        assert log == self.committed
        for key, applied in self._applied().items():
            passed = self._passed(key)
            assert self._witness(key) == [n for n in self.committed[key][:applied] if n not in passed]

    def teardown(self) -> None:
        """Let everybody end; then nothing may be left behind."""
        for caller in self.callers:
            caller.kill(self.database)
        self.callers.clear()
        self.applier.rollback()
        self.turn_open = False
        try:
            self.pause_topic("resume")
            self.drain()
            self.promises_hold()
            self.log_and_witness_are_the_model()
        finally:
            for session in (self.early, self.applier, self.client):
                session.close()

    # Helpers.

    def _waiters_on(self, key: str) -> list[Caller]:
        return [caller for caller in self.callers if caller.waiting and caller.waiting[0] == key]

    def _settle(self) -> None:
        """Take the result of every append that goes on now: its seq is the key's next."""
        for caller in self.callers:
            if caller.waiting is None:
                continue
            key, n, running = caller.waiting
            if blocked(self.database, caller.session, running):
                continue
            before = sum(other == key for other, _ in caller.appended)
            assert running.result() == [(len(self.committed[key]) + before + 1,)]
            caller.levels[-1].append((key, n))
            caller.waiting = None

    def _apply(self, max_keys: int) -> Future[list[tuple[Any, ...]]]:
        return self.applier.begin(
            "SELECT inturn.apply_batch(%s, '-infinity', %s, 'model')", [self.topic, max_keys]
        )

    def _kill_applier(self, running: Future[Any] | None = None) -> None:
        kill(self.database, self.applier, running)
        self.applier = self.database.session()

    def _applied(self) -> dict[str, int]:
        return dict.fromkeys(self.committed, 0) | dict(
            self.database.execute(
                "SELECT key, applied_seq FROM inturn.key_cursor WHERE topic = %s", [self.topic]
            )
        )

    def _standing_at(self) -> set[int]:
        """The numbers of the commands that keys do not get past: poison, or the key is held or paused."""
        rows = self.database.execute(
            "SELECT key, applied_seq FROM inturn.key_cursor c"
            " WHERE topic = %s AND inturn.key_state(c) IN ('held', 'paused')",
            [self.topic],
        )
        there = {self.committed[key][applied] for key, applied in rows if applied < len(self.committed[key])}
        return there | set(self.poison)

    def _stand(self, key: str) -> tuple[str | None, int, bool]:
        """Return a key's state, its applied_seq, and whether it is paused for good."""
        rows = self.database.execute(
            "SELECT inturn.key_state(c), applied_seq, paused_at IS NOT NULL AND paused_until IS NULL"
            " FROM inturn.key_cursor c WHERE topic = %s AND key = %s",
            [self.topic, key],
        )
        return rows[0] if rows else (None, 0, False)

    def _act(self, action: str, what: str, then: str = "") -> str:
        """Do what an operator does, or then what time does; return done, or the SQLSTATE of the refusal."""
        who = self.clock if then else self.operator
        try:
            with who.transaction():
                who.execute(f"SELECT {action}", [self.topic, what])
                if then:
                    who.execute(then, [self.topic, what])
        except psycopg.Error as error:
            if error.sqlstate not in {"IT040", "IT041", "IT042", "55P03"}:
                raise
            return error.sqlstate
        return "done"

    def _passed(self, key: str) -> set[int]:
        """The numbers of the commands that were passed over, each for a reason that the model knows."""
        passed = set()
        first: dict[int, bool] = {}
        for seq, epoch, by in self.database.execute(
            "SELECT seq, epoch, skipped_by FROM inturn.skip WHERE topic = %s AND key = %s ORDER BY seq",
            [self.topic, key],
        ):
            n = self.committed[key][seq - 1]
            passed.add(n)
            assert (by == "operator") == (n in self.passed)
            if by == "handler":
                assert (n, "IT022") in self.ever_poison
            elif by == "attempts" and epoch not in first:
                assert n in {poisoned for poisoned, _ in self.ever_poison}, "passed over without a failure"
            first[epoch] = True
        assert self.passed & set(self.committed[key]) <= passed
        return passed

    def _witness(self, key: str) -> list[int]:
        """The numbers of the commands in the order of their effects, inside and outside."""
        rows = self.database.execute(
            "WITH done AS (SELECT id, n FROM app.witness WHERE key = %(key)s UNION ALL"
            "   (SELECT DISTINCT ON (o.n) o.id, o.n FROM app.outside o JOIN inturn.key_cursor c USING (key)"
            "    WHERE key = %(key)s AND o.seq <= c.applied_seq"
            "      AND NOT EXISTS (SELECT FROM inturn.skip p WHERE p.key = o.key AND p.seq = o.seq)"
            "      AND NOT EXISTS (SELECT FROM app.witness w WHERE w.key = o.key AND w.seq = o.seq)"
            "    ORDER BY o.n, o.id))"
            " SELECT n FROM done ORDER BY id",
            {"key": key},  # type: ignore[arg-type]
        )
        return [n for (n,) in rows]


def prepare(database: Database) -> None:
    """Let the model walk on the database of the fixture `witness`."""
    database.execute(_TARGET)
    Machine.database, Machine.oracle = database, Oracle(database)
    Machine.operator = database.connect(user=OPERATOR, options="-c lock_timeout=20ms")
    Machine.clock = database.connect(user=OWNER, options="-c lock_timeout=20ms")
