"""Bad days of an HTTP target: each key in order as the service saw it, nothing lost, nothing done late."""

from __future__ import annotations

import asyncio
import base64
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import psycopg
import pytest
from support.b_server import (
    TOPIC,
    Answer,
    B,
    Gate,
    Post,
    answer,
    apply_all,
    assert_in_turn,
    at_work,
    open_topic,
    put,
    put_keys,
    state,
    wait_applied,
)
from support.database import Database, until
from support.lease_scenes import expire
from support.own_server import own_database
from support.process import InturnProcess, inturn_apply, run_apply
from support.server import Server

from inturn.applier import Applier, Fleet, Timeouts
from inturn.applier.breaker import OPENING_FAILURES, TargetDown
from inturn.applier.command import Order
from inturn.applier.http.effect import HttpEffect
from inturn.applier.outside.effect import LeaseOver
from inturn.applier.outside.leases import Lease

PATIENT = Timeouts(3600, 3600, 3600)
SHORT_LEASE = "lease => '400 ms', backoff_base => '10 ms'"
#: It runs out where a test says so, and however slow the machine is, not before.
LONG_LEASE = "lease => '1 hour', backoff_base => '10 ms'"


@pytest.fixture
def b() -> Iterator[B]:
    with B() as service:
        yield service


def facts(database: Database) -> list[tuple[object, ...]]:
    """Return all that an applier writes about keys."""
    return [
        *database.execute(
            "SELECT key, applied_seq, epoch, attempts, claimed_by FROM inturn.key_cursor ORDER BY key"
        ),
        *database.execute(
            "SELECT key, epoch, from_seq, to_seq, outcome, applier FROM inturn.turn ORDER BY key, epoch"
        ),
    ]


def held_back(gate: Gate) -> Answer:
    """Answer at once, but the first post only once the gate is open."""

    async def say(post: Post, writer: asyncio.StreamWriter) -> None:
        if post.number == 0:
            await gate.passed()
        writer.write(answer())

    return say


def all_held_back(gate: Gate) -> Answer:
    """Answer the posts of the first command only once the gate is open."""

    async def say(post: Post, writer: asyncio.StreamWriter) -> None:
        if post.seq == 1:
            await gate.passed()
        writer.write(answer())

    return say


def posts_elsewhere(database: Database) -> InturnProcess:
    return inturn_apply(database.dsn, app=None)


def wait_fenced(process: InturnProcess) -> None:
    until(lambda: "fenced off" in process.err, "the late applier to learn that it is fenced off")


# The service.


def test_an_answer_after_the_lease_finds_it_renewed(database: Database, b: B) -> None:
    open_topic(database, b.url, SHORT_LEASE)
    gate = Gate()
    b.say = all_held_back(gate)
    put(database, "a", "one", "two")
    with at_work(database), at_work(database):
        # A machine that stands still for long loses a lease all the same; of the next one the same holds.
        leased = "SELECT epoch FROM inturn.key_cursor WHERE lease_until > "
        longer, stays = (
            leased + "claimed_at + interval '1.2 s'",
            leased + "clock_timestamp() + interval '9 min'",
        )
        until(lambda: database.execute(longer), "the lease renewed over and over")
        # From the next renewal on it stays, so that what is answered is answered under it.
        database.execute("SELECT inturn.set_topic('posts', lease => '1 hour')")
        epoch = until(lambda: database.execute(stays), "the lease renewed for long")[0][0]
        gate.open()
        wait_applied(database)
    assert [(post.seq, post.epoch) for post in b.log][-2:] == [(1, epoch), (2, epoch)]
    assert_in_turn(database, b.log)


def test_an_answer_that_is_lost_makes_a_repeat_with_the_same_key(database: Database, b: B) -> None:
    open_topic(database, b.url)
    lost: set[str] = set()

    async def say(post: Post, writer: asyncio.StreamWriter) -> bool:
        first = post.idempotency_key not in lost
        lost.add(post.idempotency_key)
        if first and post.seq % 2:
            return False
        writer.write(answer())
        return True

    b.say = say
    put_keys(database, 5, 4)
    with at_work(database):
        wait_applied(database)
    assert_in_turn(database, b.log)
    assert len(b.log) == 5 * (4 + 2)


async def _garbage(_: Post, writer: asyncio.StreamWriter) -> None:
    writer.write(answer(200, b"\x00\xff<not json" * 10))


async def _huge(_: Post, writer: asyncio.StreamWriter) -> None:
    writer.write(answer(200, b"x" * 10_000_000))


async def _endless(_: Post, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"1000\r\n" + b"x" * 0x1000 + b"\r\n")
        await writer.drain()


async def _dripping(_: Post, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"1\r\nx\r\n")
        await writer.drain()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("say", [_garbage, _huge, _endless, _dripping])
def test_what_a_200_has_in_its_body_does_not_matter(database: Database, b: B, say: Answer) -> None:
    open_topic(database, b.url, "max_attempts => 1")
    b.say = say
    put(database, "a", "one", "two")
    # No timeout of a post ends it: the rest of an answer is read for a second at most.
    outcome = apply_all(database, http_timeouts=PATIENT)
    assert (outcome.commands, outcome.failures) == (2, 0)
    assert [post.seq for post in b.log] == [1, 2]


@pytest.mark.parametrize("status", [500, 400])
def test_of_an_endless_failure_a_part_is_kept(database: Database, b: B, status: int) -> None:
    open_topic(database, b.url, "max_attempts => 1")

    async def say(_: Post, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {status} No\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        while True:
            writer.write(b"1000\r\n" + b"x" * 0x1000 + b"\r\n")
            await writer.drain()

    b.say = say
    put(database, "a", "one")
    assert apply_all(database).held == 1
    error = str(state(database, "a")[3])
    assert error.startswith(f"POST {b.url}: {status} No\n\nxxx")
    assert error.endswith("x...")


@pytest.mark.parametrize("answered", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 200 OK\r\ncontent-len", b""])
def test_what_is_no_answer_is_tried_again(database: Database, b: B, answered: bytes) -> None:
    open_topic(database, b.url)

    async def say(post: Post, writer: asyncio.StreamWriter) -> bool:
        if post.attempt == 1:
            writer.write(answered)
            return False
        writer.write(answer())
        return True

    b.say = say
    put(database, "a", "one", "two")
    with at_work(database):
        wait_applied(database)
    assert_in_turn(database, b.log)


def test_kept_connections_that_the_service_closes_are_no_failures(database: Database, b: B) -> None:
    open_topic(database, b.url, "max_attempts => 1")

    async def say(_: Post, writer: asyncio.StreamWriter) -> bool:
        writer.write(answer())
        await writer.drain()
        return False

    b.say = say
    put_keys(database, 20, 20)
    outcome = apply_all(database)
    assert (outcome.commands, outcome.failures) == (400, 0)
    assert_in_turn(database, b.log)
    assert b.connections >= 400


def test_a_kept_connection_that_ends_with_the_next_post_costs_no_attempt(database: Database, b: B) -> None:
    """Whether the service read that post is not to be known: it is sent again at once, on a new one."""
    open_topic(database, b.url, "max_attempts => 1")
    used: set[int] = set()

    async def say(post: Post, writer: asyncio.StreamWriter) -> bool:
        if post.connection in used:
            return False
        used.add(post.connection)
        writer.write(answer())
        return True

    b.say = say
    put(database, "a", "one", "two", "three")
    outcome = apply_all(database)
    assert (outcome.commands, outcome.failures) == (3, 0)
    assert [(post.seq, post.attempt) for post in b.log] == [(1, 1), (2, 1), (2, 1), (3, 1), (3, 1)]
    assert_in_turn(database, b.log)


def test_of_an_endless_answer_little_is_read(database: Database, b: B) -> None:
    open_topic(database, b.url)
    sent = [0]

    async def say(_: Post, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"40000\r\n" + b"x" * 0x40000 + b"\r\n")
            await writer.drain()
            sent[0] += 0x40000

    b.say = say
    put(database, "a", "one")
    assert apply_all(database).commands == 1
    assert sent[0] < 16_000_000, "what the buffers of two sockets hold, and not what a second can carry"


def test_a_name_that_does_not_resolve_is_tried_again_and_keeps_no_other_topic(
    database: Database, b: B
) -> None:
    database.execute(
        "SELECT inturn.create_topic('nowhere', 'http://nowhere.invalid/x',"
        " backoff_base => '1 hour', backoff_cap => '1 hour')"
    )
    database.execute("SELECT count(inturn.append('nowhere', 'n' || i, 'one')) FROM generate_series(1, 3) i")
    open_topic(database, b.url)
    put_keys(database, 20)
    outcome = apply_all(database)
    assert (outcome.commands, outcome.failures, outcome.error) == (20, 3, None)
    name, seq, attempts, error = state(database, "n1")
    assert (name, seq, attempts) == ("retrying", 0, 1)
    assert "POST http://nowhere.invalid/x: " in str(error)
    assert {post.headers["inturn-topic"] for post in b.log} == {TOPIC}


def test_a_dead_service_is_probed_and_costs_the_others_and_the_keys_nothing(database: Database, b: B) -> None:
    """Only what opened the breaker, and the probes, count as attempts."""
    open_topic(database, b.url)
    dead = B()
    with dead:
        url = dead.url
    database.execute(
        "SELECT inturn.create_topic('dead', %s, max_attempts => 3, backoff_base => '10 ms')", [url]
    )
    database.execute("SELECT count(inturn.append('dead', 'd' || i, 'one')) FROM generate_series(1, 100) i")
    attempts = "SELECT coalesce(sum(attempts), 0) FROM inturn.key_cursor WHERE topic = 'dead'"
    with at_work(database):
        until(lambda: database.value(attempts) >= OPENING_FAILURES + 1, "a probe")
        put_keys(database, 50)
        until(
            lambda: database.value("SELECT count(*) = 50 FROM inturn.turn WHERE topic = 'posts'"),
            "the others",
        )
        # One of its 100 keys at a time, after a pause each.
        assert database.value(attempts) < 50
        assert database.value("SELECT count(*) FROM inturn.key_cursor WHERE held_at IS NOT NULL") == 0
        with B(port=dead.port) as back:
            wait_applied(database, 60)
    assert_in_turn(database, [*b.log, *back.log])


def test_a_service_that_hangs_is_asked_by_one_key_at_a_time(database: Database, b: B) -> None:
    open_topic(database, b.url, "max_attempts => 100, backoff_base => '10 ms'")
    hanging: list[Post] = []
    at_once: list[int] = []
    well = Gate()

    async def hang(post: Post, writer: asyncio.StreamWriter) -> None:
        hanging.append(post)
        at_once.append(sum(not b.hung_up(each) for each in hanging))
        while not well._open.is_set() and not b.hung_up(post):
            await asyncio.sleep(0.002)
        hanging.remove(post)
        writer.write(answer())

    b.say = hang
    put_keys(database, 40)
    crowd_is_over = """SELECT sum(attempts) >= %s AND count(*) FILTER (WHERE claimed_by IS NOT NULL) <= 1
                       FROM inturn.key_cursor WHERE topic = 'posts'"""
    with at_work(database, http_timeouts=Timeouts(5, 0.5, 5)):
        until(lambda: database.value(crowd_is_over, [OPENING_FAILURES]), "the end of the crowd")
        seen = len(at_once)
        until(lambda: len(at_once) >= seen + 2, "two probes")
        assert set(at_once[seen:]) == {1}
        well.open()
        wait_applied(database)
    assert max(at_once) > 1
    assert_in_turn(database, b.log)


def test_a_drain_leaves_a_dead_service_and_says_so(database: Database) -> None:
    with B() as dead:
        url = dead.url
    open_topic(database, url, "max_attempts => 100")
    put_keys(database, 30)
    fleet = Fleet(database.applier_dsn, Applier(), drain=True)
    fleet.start()
    assert fleet.wait(60)
    outcome = fleet.end(0)
    assert isinstance(outcome.error, TargetDown)
    assert "was not drained: its target does not answer" in str(outcome.error)
    assert database.value("SELECT count(*) FROM inturn.key_cursor WHERE claimed_by IS NOT NULL") == 0


# The applier.


def test_an_applier_killed_between_the_answer_and_the_record_leaves_a_repeat(
    database: Database, b: B
) -> None:
    open_topic(database, b.url, LONG_LEASE)
    gate = Gate()
    b.say = held_back(gate)
    put(database, "a", "one", "two", "three")
    with posts_elsewhere(database) as process:
        until(lambda: gate.standing, "the post")
        lock = database.session()
        lock.execute("SELECT FROM inturn.ticket FOR UPDATE")
        gate.open()
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        until(lambda: database.value(waits), "it to record the answer")
        process.kill()
        until(lambda: not database.value(waits) or _kill_waiting(database), "its backend gone")
        lock.rollback()
    expire(database)
    with at_work(database):
        wait_applied(database)
    assert [(post.seq, post.attempt) for post in b.log] == [(1, 1), (1, 1), (2, 1), (3, 1)]
    assert_in_turn(database, b.log)
    outcome = "SELECT outcome FROM inturn.turn WHERE epoch = %s"
    assert database.execute(outcome, [b.log[0].epoch]) == [("lost",)]


def _kill_waiting(database: Database) -> bool:
    # A backend that waits for a lock does not notice that its client is gone.
    database.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'inturn apply' AND wait_event_type = 'Lock'"
    )
    return False


@pytest.mark.parametrize("answered", [True, False])
def test_an_applier_stopped_past_its_lease_is_fenced_off_and_changes_nothing(
    database: Database, b: B, answered: bool
) -> None:
    """Its post is answered while it is stopped, or only after it goes on."""
    # It learns of its end when it renews its lease, after half of that; the others keep theirs.
    open_topic(database, b.url, "lease => '10 seconds', backoff_base => '10 ms'")
    gate = Gate()
    b.say = held_back(gate)
    put(database, "a", "one", "two", "three")
    with posts_elsewhere(database) as late:
        until(lambda: gate.standing, "the post")
        late.send(signal.SIGSTOP)
        if answered:
            gate.open()
        database.execute("SELECT inturn.set_topic('posts', lease => '1 hour')")
        expire(database)
        with at_work(database):
            wait_applied(database)
        before, seen = facts(database), len(b.log)
        assert seen == 4
        late.send(signal.SIGCONT)
        wait_fenced(late)
        gate.open()
        assert facts(database) == before
        put(database, "a", "four")
        wait_applied(database)
        assert [post.seq for post in b.log[seen:]] == [4], "it is fenced off from one turn, not out of work"
    assert_in_turn(database, b.log)


def test_work_on_a_key_stops_at_once_when_the_lease_is_found_gone(database: Database, b: B) -> None:
    open_topic(database, b.url, "lease => '5 seconds'")
    gate = Gate()
    b.say = held_back(gate)
    put(database, "a", "one", "two")
    with at_work(database, http_timeouts=PATIENT):
        until(lambda: gate.standing, "the post")
        database.execute("""
            DO $$ BEGIN
                UPDATE inturn.key_cursor SET ready_at = clock_timestamp(), lease_until = clock_timestamp();
                PERFORM inturn.claim('{posts}'::text[], 1, '1 hour', 'another');
            END $$""")
        before = facts(database)
        assert before[0][-1] == "another"
        epoch = database.value("SELECT epoch FROM inturn.key_cursor")
        until(lambda: b.hung_up(b.log[0]), "the request cancelled")
        gate.open()
        assert facts(database) == before
        database.execute("SELECT inturn.release('posts', 'a', %s)", [epoch])
        wait_applied(database)
    assert [post.seq for post in b.log] == [1, 1, 2]
    assert b.log[0].epoch < epoch < b.log[1].epoch
    assert_in_turn(database, b.log)


def test_a_lease_that_cannot_be_renewed_ends_its_work(database: Database, b: B) -> None:
    open_topic(database, b.url, "lease => '5 seconds'")
    gate = Gate()
    b.say = held_back(gate)
    put(database, "a", "one", "two")
    lock = database.session()
    with at_work(database, http_timeouts=PATIENT):
        until(lambda: gate.standing, "the post")
        lock.execute("SELECT FROM inturn.ticket FOR UPDATE")
        until(lambda: b.hung_up(b.log[0]), "the request cancelled when the lease could not be renewed")
        assert len(b.log) == 1
        lock.rollback()
        gate.open()
        wait_applied(database)
    assert_in_turn(database, b.log)


def test_nothing_is_sent_on_a_lease_that_ran_out_before_the_connection_was_there(b: B) -> None:
    now = datetime.now(UTC)
    order = Order(TOPIC, "a", 1, "one", "{}", now, 1, 1)

    async def post(seconds: float) -> object:
        lease = Lease(TOPIC, "a", 1, 1.0, time.monotonic() + seconds, 0.0, [order])
        effect = HttpEffect(b.url, None, Timeouts())
        try:
            return await effect.apply(order, lease)
        finally:
            await effect.close()

    assert asyncio.run(post(60)) is None
    with pytest.raises(LeaseOver):
        asyncio.run(post(-0.001))
    until(lambda: b.connections == 2, "the second connection, which B hears of in its own time")
    assert len(b.log) == 1


def test_the_clocks_of_two_appliers_do_not_matter(database: Database, b: B) -> None:
    open_topic(database, b.url, "lease => '10 seconds'")
    secret = "whsec_" + base64.b64encode(b"a secret of twenty-four b").decode()

    async def slow(post: Post, writer: asyncio.StreamWriter) -> None:
        # One key is in hand for longer than the others.
        await asyncio.sleep(6 if (post.key, post.seq) == ("k1", 1) else 0.01)
        writer.write(answer())

    b.say = slow
    put_keys(database, 20, 5)
    with (
        inturn_apply(database.dsn, app="support.late_clock:applier", INTURN_HTTP_SECRET=secret) as late,
        inturn_apply(database.dsn, app="support.early_clock:applier", INTURN_HTTP_SECRET=secret) as early,
    ):
        until(lambda: "applying" in late.err and "applying" in early.err, "both at work")
        put_keys(database, 20, 5)
        wait_applied(database)
        assert late.err[:13] < early.err[:13], "their clocks differ"
    assert_in_turn(database, b.log)
    assert len(b.log) == 200, "no lease was taken for over"
    now = datetime.now(UTC).timestamp()
    assert all(abs(int(post.headers["webhook-timestamp"]) - now) < 60 for post in b.log)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_the_database_restarts_while_a_hundred_posts_are_in_flight(server: Server, b: B, mode: str) -> None:
    gate = Gate()
    answered = 0

    async def wait(post: Post, writer: asyncio.StreamWriter) -> None:
        nonlocal answered
        if post.seq == 1:
            await gate.passed()
        writer.write(answer())
        answered += 1

    b.say = wait
    with own_database(server) as database:
        open_topic(database, b.url)
        put_keys(database, 100, 3)
        with posts_elsewhere(database) as process:
            until(lambda: gate.standing == 100, "a hundred posts")
            database.server.stop(mode)
            until(lambda: "lost the database" in process.err, "it to notice")
            gate.open()
            until(lambda: answered == 100, "all answers")
            database.server.start()
            until(lambda: _reconnected(database), "the server")
            wait_applied(database, 60)
            process.send(signal.SIGTERM)
            assert process.exit_code() == 0
        assert_in_turn(database, b.log)
        assert len(b.log) == 300, "what was answered meanwhile is recorded, not repeated"


def _reconnected(database: Database) -> bool:
    try:
        database.execute("SELECT")
    except psycopg.OperationalError:
        return False
    return True


# The end.


def test_a_stop_lets_the_post_in_hand_end_and_begins_no_further_one(database: Database, b: B) -> None:
    open_topic(database, b.url)
    gate = Gate()
    b.say = held_back(gate)
    put(database, "a", "one", "two")
    fleet = Fleet(database.applier_dsn, Applier())
    fleet.start()
    until(lambda: gate.standing, "the post")
    fleet.request_stop()
    gate.open()
    assert fleet.wait(60)
    outcome = fleet.end(0)
    assert (outcome.commands, outcome.failures, outcome.cut) == (1, 0, False)
    assert state(database, "a") == ("ready", 1, 0, None)
    assert database.execute("SELECT from_seq, to_seq, outcome FROM inturn.turn") == [(1, 1, "applied")]
    assert run_apply(database.dsn, "--drain", app=None)[0] == 0
    assert_in_turn(database, b.log)
    assert len(b.log) == 2


def test_when_the_grace_is_over_the_post_is_cut_off_and_its_key_is_free_at_once(
    database: Database, b: B
) -> None:
    open_topic(database, b.url, "lease => '1 hour'")
    gate = Gate()
    b.say = held_back(gate)
    put(database, "a", "one", "two")
    with posts_elsewhere(database) as process:
        until(lambda: gate.standing, "the post")
        process.send(signal.SIGTERM)
        process.send(signal.SIGINT)
        assert process.exit_code() == 6
    assert state(database, "a") == ("ready", 0, 0, None)
    gate.open()
    assert run_apply(database.dsn, "--drain", app=None)[0] == 0
    assert [(post.seq, post.attempt) for post in b.log] == [(1, 1), (1, 1), (2, 1)]
    assert_in_turn(database, b.log)


def test_an_idle_applier_without_a_database_stops_at_once(server: Server, b: B) -> None:
    with own_database(server) as database:
        open_topic(database, b.url)
        put(database, "a", "one")
        with posts_elsewhere(database) as process:
            wait_applied(database)
            database.server.stop("immediate")
            until(lambda: "lost the database" in process.err, "it to notice")
            process.send(signal.SIGTERM)
            assert process.exit_code() == 0
