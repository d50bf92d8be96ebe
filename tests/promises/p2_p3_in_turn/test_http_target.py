"""The HTTP target: what is posted, and what becomes of a command by the service's answer."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx2
import pytest
from standardwebhooks import Webhook
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
from support.process import run_apply
from support.refusal import refusal

from inturn.applier import Fleet
from inturn.applier.http.answer import LONGEST_RETRY_AFTER, retry_after

SECRET = "whsec_" + base64.b64encode(b"a secret of twenty-four b").decode()


@pytest.fixture
def b() -> Iterator[B]:
    with B() as service:
        yield service


def test_the_commands_of_a_key_are_posted_one_after_the_other_and_keys_side_by_side(
    database: Database, b: B
) -> None:
    open_topic(database, b.url)
    gate = Gate()

    async def wait(post: Post, writer: asyncio.StreamWriter) -> None:
        if post.seq == 1:
            await gate.passed()
        writer.write(answer())

    b.say = wait
    put_keys(database, 20, 3)
    with at_work(database):
        until(lambda: gate.standing == 20, "the first of every key")
        assert [post.seq for post in b.log] == [1] * 20
        gate.open()
        wait_applied(database)
    assert_in_turn(database, b.log)
    assert len(b.log) == 60
    assert database.execute("SELECT DISTINCT from_seq, to_seq, outcome FROM inturn.turn") == [
        (1, 3, "applied")
    ]
    assert b.connections == 20, "kept alive"


def test_a_post_carries_the_payload_as_it_is_and_its_place_in_headers(database: Database, b: B) -> None:
    open_topic(database, f"{b.url}/{{name}}?v=1")
    database.execute(
        "SELECT inturn.append(%s, E'k\\u00e9y \\t%%/\\U0001F600', 'set / it', %s)",
        [TOPIC, '{"big": 12345678901234567890.123456789, "e": "\u00e9"}'],
    )
    assert apply_all(database).commands == 1
    (post,) = b.log
    assert post.path == "/commands/set%20%2F%20it?v=1"
    assert post.body.decode() == database.value("SELECT payload::text FROM inturn.command_log")
    assert b"12345678901234567890.123456789" in post.body
    assert post.headers["inturn-key"] == "k%C3%A9y%20%09%25/%F0%9F%98%80"
    assert (post.key, post.name, post.seq, post.epoch, post.attempt) == ("kéy \t%/😀", "set / it", 1, 1, 1)
    assert post.headers["inturn-topic"] == TOPIC
    assert post.headers["content-type"] == "application/json"
    assert "webhook-signature" not in post.headers
    assert "cookie" not in post.headers


def test_idempotency_keys_stay_over_retries_and_differ_between_commands(database: Database, b: B) -> None:
    open_topic(database, b.url)

    async def third_time(post: Post, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(200 if post.attempt == 3 or post.seq == 1 else 503, set_cookie="a=b"))

    b.say = third_time
    put(database, "a", "one", "two")
    put(database, "a\x01", "one")
    with at_work(database):
        wait_applied(database)
    assert [(post.seq, post.attempt) for post in b.of("a")] == [(1, 1), (2, 1), (2, 2), (2, 3)]
    assert len({post.idempotency_key for post in b.log}) == 3
    assert_in_turn(database, b.log)
    assert not any("cookie" in post.headers for post in b.log)


def test_posts_are_signed_by_standard_webhooks_when_a_secret_is_set(
    database: Database, b: B, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = "whsec_" + base64.b64encode(b"another secret of some by").decode()
    monkeypatch.setenv("INTURN_HTTP_SECRET", other)
    monkeypatch.setenv("INTURN_HTTP_SECRET_POSTS", f"{SECRET} {other}")
    open_topic(database, b.url)
    put(database, "a", "one")
    apply_all(database)
    (post,) = b.log
    assert post.headers["webhook-id"] == post.idempotency_key
    for secret in (SECRET, other):
        assert Webhook(secret).verify(post.body, post.headers) == {"name": "one"}
    with pytest.raises(Exception, match="No matching signature"):
        Webhook(SECRET).verify(post.body + b" ", post.headers)


def test_secrets_are_in_no_output_and_not_in_the_database(
    database: Database, b: B, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("secret") / "secret"
    file.write_text(f"{SECRET}\n")
    file.chmod(0o600)

    async def echo(post: Post, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(422, f"no: {post.headers['webhook-signature']}".encode()))

    b.say = echo
    open_topic(database, b.url)
    put(database, "a", "one")
    _, out, err = run_apply(database.dsn, "--drain", app=None, INTURN_HTTP_SECRET_FILE=str(file))
    assert "1 key held" in out
    Webhook(SECRET).verify(b.log[0].body, b.log[0].headers)
    for broken in ("no-secret-at-all", f"{SECRET[:-4]}***", ""):
        code, *said = run_apply(database.dsn, "--drain", app=None, INTURN_HTTP_SECRET=broken)
        assert code == 1
        assert "INTURN_HTTP_SECRET holds no secret that can be used" in said[1]
        out, err = out + said[0], err + said[1]
    code, *said = run_apply(database.dsn, "--drain", app=None, INTURN_HTTP_SECRET_FILE=str(file / "no"))
    assert code == 1
    assert "INTURN_HTTP_SECRET_FILE" in said[1]
    dump = database.server.run("pg_dump", "-d", database.dsn)
    for text in (out, err, dump):
        assert SECRET[6:30] not in text
        assert "no-secret" not in text


_STATUSES: list[tuple[int, dict[str, str], str]] = [
    (200, {}, "applied"),
    (204, {}, "applied"),
    (409, {"inturn_outcome": "already-applied"}, "applied"),
    (409, {}, "held"),
    (409, {"inturn_outcome": "else"}, "held"),
    (400, {}, "held"),
    (404, {}, "held"),
    (422, {}, "held"),
    (301, {"location": "/elsewhere"}, "held"),
    (307, {"location": "/elsewhere"}, "held"),
    (408, {}, "retrying"),
    (425, {}, "retrying"),
    (429, {}, "retrying"),
    (500, {}, "retrying"),
    (503, {"retry_after": "3600"}, "retrying"),
]


def test_the_status_decides(database: Database, b: B) -> None:
    open_topic(database, b.url, "backoff_base => '1 hour', backoff_cap => '1 hour'")
    held = 0
    for number, (status, headers, expected) in enumerate(_STATUSES, 1):
        body = b"" if status == 204 else b"because\0 of \xff " + b"x" * 5000
        b.say = _says(answer(status, body, **headers))
        key = f"{status} {headers}"
        put(database, key, "one")
        outcome = apply_all(database)
        assert len(b.log) == number, "a redirect is not followed"
        if expected == "applied":
            assert (outcome.commands, outcome.failures) == (1, 0), key
            assert state(database, key) == ("idle", 1, 0, None)
            continue
        held += expected == "held"  # those that are, with what was held before
        assert (outcome.commands, outcome.failures, outcome.held) == (0, 1, held), key
        name, seq, attempts, error = state(database, key)
        assert (name, seq, attempts) == (expected, 0, 1), key
        assert str(error).startswith(f"POST {b.url}: {status} Said\n\nbecause\\x00 of \ufffd xxx")
        assert len(str(error)) < 2200


def _says(said: bytes) -> Answer:
    async def say(_: Post, writer: asyncio.StreamWriter) -> None:
        writer.write(said)

    return say


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_honoured_in_seconds(database: Database, b: B, status: int) -> None:
    open_topic(database, b.url)

    async def say(_: Post, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(status, retry_after="120"))

    b.say = say
    put(database, "a", "one")
    apply_all(database)
    wait = "SELECT extract(epoch FROM ready_at - clock_timestamp()) FROM inturn.key_cursor"
    assert 100 < database.value(wait) <= 120


def test_retry_after_as_a_date_counts_from_the_answers_own_date() -> None:
    now = datetime(2031, 5, 1, 12, tzinfo=UTC)
    until_ = format_datetime(now + timedelta(seconds=90), usegmt=True)

    def read(**headers: str) -> float | None:
        return retry_after(
            httpx2.Headers({k.replace("_", "-"): v for k, v in headers.items()}), now.timestamp()
        )

    assert read(retry_after=until_) == 90
    hour_off = format_datetime(now + timedelta(hours=1), usegmt=True)
    assert (
        read(retry_after=format_datetime(now + timedelta(hours=1, seconds=5), usegmt=True), date=hour_off)
        == 5
    )
    assert read(retry_after=format_datetime(now - timedelta(days=1), usegmt=True)) == 0
    assert read(retry_after="99999999999999999999999") == LONGEST_RETRY_AFTER
    assert read(retry_after=format_datetime(now + timedelta(days=999), usegmt=True)) == LONGEST_RETRY_AFTER
    for nonsense in ("", "soon", "-1", "1.5", "1e9", "Mon, 99 Foo 2031 00:00:00 GMT"):
        assert read(retry_after=nonsense) is None
    assert read() is None


def test_after_a_failure_the_key_goes_on_and_nothing_overtakes(database: Database, b: B) -> None:
    open_topic(database, b.url)
    failed: set[tuple[str, int]] = set()

    async def once_each(post: Post, writer: asyncio.StreamWriter) -> None:
        first = (post.key, post.seq) not in failed
        failed.add((post.key, post.seq))
        writer.write(answer(429 if first and post.seq % 2 else 200))

    b.say = once_each
    put_keys(database, 10, 5)
    with at_work(database):
        wait_applied(database)
    assert_in_turn(database, b.log)
    assert len(b.log) == 10 * (5 + 3)


def test_the_limit_of_a_topic_holds(database: Database, b: B) -> None:
    open_topic(database, b.url, "max_in_flight => 3")
    at_once = [0, 0]

    async def count(_: Post, writer: asyncio.StreamWriter) -> None:
        at_once[0] += 1
        at_once[1] = max(at_once)
        await asyncio.sleep(0.005)
        at_once[0] -= 1
        writer.write(answer())

    b.say = count
    put_keys(database, 30)
    assert apply_all(database).commands == 30
    assert at_once[1] == 3


@pytest.mark.parametrize(
    "target",
    [
        "http://user:geheim@b.internal/",
        "https://geheim@b.internal",
        "http://b.internal/a b",
        "http://b.internal/#x",
    ],
)
def test_an_address_with_a_password_or_no_address_is_refused(database: Database, target: str) -> None:
    refused = refusal(database, "SELECT inturn.create_topic('x', %s)", [target])
    assert refused.sqlstate == "IT011"
    assert "geheim" not in f"{refused.message}{refused}"
    database.execute("SELECT inturn.create_topic('y', 'http://b.internal/?a=x@y')")


def test_a_topic_that_appears_later_is_served_beside_the_others(database: Database, b: B) -> None:
    with at_work(database):
        open_topic(database, b.url)
        put(database, "a", "one")
        wait_applied(database)
    assert_in_turn(database, b.log)


def test_sql_and_http_topics_are_drained_together(witness: Database, b: B) -> None:
    open_topic(witness, b.url)
    witness.execute("SELECT inturn.append('orders', 'x', 'insert')")
    put(witness, "a", "one")
    outcome = apply_all(witness)
    assert (outcome.commands, outcome.error) == (2, None)
    ((applier,),) = witness.execute("SELECT applier FROM inturn.applier WHERE topics = '{posts}'")
    assert witness.execute("SELECT applier FROM inturn.turn WHERE topic = 'posts'") == [(applier,)]


def test_an_idle_applier_hears_of_a_command_at_once(database: Database, b: B) -> None:
    open_topic(database, b.url)
    with at_work(database):
        put(database, "a", "one")
        wait_applied(database)
        asleep = "SELECT count(*) FROM inturn.listener WHERE asleep_until > now() + interval '1.1 seconds'"
        until(lambda: database.value(asleep), "asleep")
        put(database, "a", "two")
        wait_applied(database)
        waited = (
            "SELECT extract(epoch FROM max(t.started_at) - max(l.created_at))"
            " FROM inturn.turn t, inturn.command_log l"
        )
        assert database.value(waited) < 0.5


def test_without_the_extra_the_error_says_what_to_install(
    database: Database, b: B, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_topic(database, b.url)
    monkeypatch.setitem(__import__("sys").modules, "inturn.applier.http.effect", None)
    with pytest.raises(Exception, match=r"pip install 'inturn\[http\]'"):
        Fleet(database.applier_dsn, topics=[TOPIC]).start()


def test_a_changed_address_is_followed(database: Database, b: B, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inturn.applier.pacing.CHOOSE_SECONDS", 0.05)
    open_topic(database, b.url)
    with at_work(database):
        put(database, "a", "one")
        wait_applied(database)
        database.execute("SELECT inturn.set_topic('posts', target => %s)", [f"{b.url}/new"])
        put(database, "a", *["more"] * 3)
        wait_applied(database)

        def moved() -> bool:
            put(database, "a", "more")
            wait_applied(database)
            return b.log[-1].path == "/commands/new"

        until(moved, "the new address")
    assert_in_turn(database, b.log)


def test_posts_json_is_what_json_reads(database: Database, b: B) -> None:
    open_topic(database, b.url)
    put(database, "a", "one")
    apply_all(database)
    assert json.loads(b.log[0].body) == {"name": "one"}
