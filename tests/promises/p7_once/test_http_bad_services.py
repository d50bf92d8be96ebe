"""Bad days of a service over HTTP: each key in order as it saw it, nothing lost, nothing done late."""

from __future__ import annotations

import asyncio

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
from support.http_days import (
    PATIENT,
    SHORT_LEASE,
    all_held_back,
)

from inturn.applier import Applier, Fleet, Timeouts
from inturn.applier.breaker import OPENING_FAILURES, TargetDown


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


def test_a_dead_service_is_probed_and_costs_the_others_and_the_keys_nothing(
    database: Database, b: B, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what opened the breaker counts as attempts, and no probe does."""
    monkeypatch.setattr("inturn.applier.pacing.CHOOSE_SECONDS", 0.1)
    open_topic(database, b.url)
    dead = B()
    with dead:
        url = dead.url
    database.execute(
        "SELECT inturn.create_topic('dead', %s, max_attempts => 3, backoff_base => '10 ms')", [url]
    )
    database.execute("SELECT count(inturn.append('dead', 'd' || i, 'one')) FROM generate_series(1, 100) i")
    attempts = "SELECT coalesce(sum(attempts), 0) FROM inturn.key_cursor WHERE topic = 'dead'"
    tried = (
        "SELECT EXISTS (SELECT FROM inturn.key_cursor k, inturn.applier a"
        " WHERE k.topic = 'dead' AND k.key = a.down -> 'dead' ->> 'key' AND k.attempts = 0)"
    )
    with at_work(database):
        until(lambda: database.value("SELECT bool_or(down ? 'dead') FROM inturn.applier"), "the breaker open")
        put_keys(database, 50)
        until(
            lambda: database.value("SELECT count(*) = 50 FROM inturn.turn WHERE topic = 'posts'"),
            "the others",
        )
        # It opens, and is announced, before the failures that opened it are recorded.
        opened = until(
            lambda: (found := database.value(attempts)) >= OPENING_FAILURES and found, "they count"
        )
        assert opened < 50
        until(lambda: database.value(tried), "a probe of a key that had not failed yet", 60)
        assert database.value(attempts) == opened
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
