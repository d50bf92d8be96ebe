"""HTTP targets: an address holds no secret, a caller chooses no host, and a secret is one topic's."""

from __future__ import annotations

import asyncio
import base64
from datetime import UTC, datetime
from unittest.mock import Mock

import pytest
from standardwebhooks import Webhook
from support.database import Database
from support.process import run_inturn
from support.refusal import refusal
from support.roles import DEPLOYER

from inturn.applier.command import ClaimedCommand
from inturn.applier.http.effect import HttpEffect
from inturn.applier.http.signature import Signer, signer_of
from inturn.applier.outside.effect import Failed, Timeouts
from inturn.applier.receiver import receive
from inturn.applier.secrets import read_secrets
from inturn.schema.errors import SecretRefused, SignatureRefused, TargetRefused

SECRET = "whsec_" + base64.b64encode(b"a secret of twenty-four b").decode()
AT = datetime(2030, 1, 1, tzinfo=UTC)
OTHER = "whsec_" + base64.b64encode(b"another secret of some by").decode()


#: With a secret, or with a hole outside their path.
REFUSED_ADDRESSES = [
    "https://{key}.evil.example/",
    "https://{name}/",
    "https://b.internal:{key}/",
    "https://b.internal{key}/x",
    "https://b.internal/x?to={key}",
    "https://b.internal?{name}",
    "https://b.internal/{topic}",
    "https://b.internal/{{name}}",
    "https://b.internal/{name",
    "https:///path",
    "https://:80/",
    "https://b.internal:99x/",
    # The library of C makes 34463 of it: somebody else may listen there.
    "https://b.internal:99999/",
    "http://127.0.0.1:65536",
    "https://[::1]:0/x",
    "https://b%2einternal/",
    "https://user@b.internal/",
    "https://user:s3cret@b.internal/",
    "https://{key}@b.internal/",
    "https://b.internal/x?token=s3cret",
    "https://b.internal/x?a=1&API-KEY=s3cret",
    "https://b.internal/x?a=1&api_key=s3cret",
    "https://b.internal/x?X-Amz-Signature=s3cret",
    "https://b.internal/x?key=s3cret",
    "https://b.internal/x?access_token",
    "ftp://user:s3cret@b.internal/",
]


def test_an_address_with_a_secret_or_a_hole_outside_its_path_is_refused(database: Database) -> None:
    database.execute("SELECT inturn.create_topic('there', 'https://b.internal/')")
    deployer = database.connect(user=DEPLOYER)
    for address in REFUSED_ADDRESSES:
        for call in ("inturn.create_topic('posts', %s)", "inturn.set_topic('there', target => %s)"):
            said = refusal(deployer, f"SELECT {call}", [address])
            assert said.sqlstate == "IT011", address
            assert "s3cret" not in said.message + said.hint
    assert database.execute("SELECT name, target FROM inturn.topic") == [("there", "https://b.internal/")]


def test_the_command_line_refuses_such_an_address_without_its_secret(database: Database) -> None:
    for address in REFUSED_ADDRESSES:
        code, out, err = run_inturn(database.dsn, "topic", "create", "posts", "--target", address)
        assert code != 0, address
        assert "s3cret" not in out + err
    assert database.execute("SELECT name FROM inturn.topic") == []


def test_an_address_is_taken(database: Database) -> None:
    for address in (
        "https://b.internal",
        "https://b.internal:8443/{name}/{key}",
        "https://b.internal:65535?version=2",
        "http://[::1]:80/a/{key}.json",
        "https://b.internal/x?version=2&country=de",
        "http://127.0.0.1/x-{name}",
    ):
        assert database.value("SELECT inturn.create_topic(%s, %s)", [address, address]) is True


def posted(address: str, name: str, key: str) -> Failed | None:
    """Post to a port that nobody listens on; return what failed."""

    async def post() -> Failed | None:
        effect = HttpEffect(address, None, Timeouts(connect=5, read=5, whole=5))
        lease = Mock(alive=lambda: True, database_time=lambda: 0.0)
        order = Mock(spec=ClaimedCommand, topic="t", key=key, seq=1, epoch=1, attempt=1, payload="{}")
        order.name = name
        try:
            return await effect.apply(order, lease)
        finally:
            await effect.close()

    return asyncio.run(post())


@pytest.mark.parametrize(
    ("template", "name", "key"),
    [
        ("a/{name}/b", "..", "k"),
        ("a/{key}", "n", "."),
        ("a/{name}{key}/b", ".", "."),
        ("a/.{key}/b", "n", "."),
        # What many a server decodes, and then resolves.
        ("a/{key}", "n", "../../admin"),
        ("a/{name}", "x/../../../admin", "k"),
        ("a/{key}", "n", "x\\..\\..\\admin"),
        ("a/{key}/b", "n", "x/.."),
        ("a/{name}{key}", "x/.", "./y"),
        ("a/{key}", "n", "x/./y"),
    ],
)
def test_a_caller_does_not_climb_up_the_path(template: str, name: str, key: str) -> None:
    failed = posted(f"http://127.0.0.1:1/{template}", name, key)
    assert failed is not None
    assert "make no address" in failed.error
    assert failed.outage is False


@pytest.mark.parametrize(
    "key", ["x/y..", "..a/..b", "k?token=1", "k#x", "@evil.example", "{name}", "\\evil", "%2e%2e/x", "a b\n"]
)
def test_a_key_stays_one_segment_of_the_path(key: str) -> None:
    failed = posted("http://127.0.0.1:1/a/{key}/b?version=2", "n", key)
    assert failed is not None
    address = failed.error.split()[1]
    assert address.startswith("http://127.0.0.1:1/a/")
    assert address.count("/") == 5
    assert "version" not in failed.error, "the query is not kept with errors"


def test_a_secret_of_two_topics_is_refused() -> None:
    environment = {"INTURN_HTTP_SECRET_A_B": SECRET, "INTURN_HTTP_SECRET": OTHER}
    assert signer_of("a-b", environment, ["a-b", "c"]) is not None
    for topic in ("a-b", "a.b", "A_B"):
        with pytest.raises(TargetRefused, match=r"INTURN_HTTP_SECRET_A_B is the secret of topic .* and of "):
            signer_of(topic, environment, ["a-b", "a.b", "A_B"])
    assert signer_of("a.b", {"INTURN_HTTP_SECRET": OTHER}, ["a-b", "a.b"]) is not None


def test_an_applier_does_not_start_with_a_secret_of_two_topics(database: Database) -> None:
    database.execute(
        "SELECT inturn.create_topic(n, 'http://127.0.0.1:1/') FROM unnest('{a-b,a.b}'::text[]) n"
    )
    for only in ((), ("--topic", "a-b")):
        code, _, said = run_inturn(database.dsn, "apply", "--drain", *only, INTURN_HTTP_SECRET_A_B=SECRET)
        assert code != 0
        assert "INTURN_HTTP_SECRET_A_B is the secret of topic" in said
        assert SECRET[6:] not in said


def encoded(octets: int) -> str:
    return "whsec_" + base64.b64encode(b"x" * octets).decode()


@pytest.mark.parametrize(
    "secret",
    ["", " ", "whsec_", "whsec_a", "no-secret", encoded(23), encoded(65), SECRET[:-4] + "***", f"{SECRET} x",
     " ".join([SECRET] * 11)],
)  # fmt: skip
def test_who_sends_and_who_receives_refuse_the_same_secrets(secret: str) -> None:
    with pytest.raises(TargetRefused) as sending:
        Signer(secret, "INTURN_HTTP_SECRET")
    with pytest.raises(SecretRefused) as receiving:
        receive({}, b"", secret=secret)
    for refused in (sending, receiving):
        assert "24 to 64 octets" in refused.value.hint
        assert not secret.strip() or secret not in refused.value.message


@pytest.mark.parametrize(
    "secret", [SECRET, SECRET.removeprefix("whsec_"), encoded(24), encoded(64), encoded(24).rstrip("=")]
)
def test_who_sends_and_who_receives_take_the_same_secrets(secret: str) -> None:
    (octets,) = read_secrets(secret)
    assert [octets] == read_secrets([secret])
    signed = Signer(secret, "here").sign("id", "{}", int(AT.timestamp()))
    assert signed["webhook-signature"] == Webhook(octets).sign("id", AT, "{}")


def test_while_a_secret_is_exchanged_any_of_them_verifies() -> None:
    assert read_secrets(f"{SECRET}\n{OTHER}") == read_secrets([SECRET, OTHER])
    with pytest.raises(SignatureRefused, match="not signed"):
        receive({}, b"", secret=f"{SECRET} {OTHER}")
