"""Every number, span and time that a topic or an action takes: refused where it is set, or it works."""

from __future__ import annotations

from itertools import product

import psycopg
import pytest
from support.database import Database
from support.refusal import refusal
from support.roles import OPERATOR, OWNER

FUNCTIONS = (
    "create_topic",
    "set_topic",
    "pause_topic",
    "pause",
    "skip",
    "replay",
    "amend",
    "fill_gap",
    "retry_all",
    "cancel_rest_all",
    "append",
    "claim",
    "renew",
    "advance",
    "list_keys",
    "list_errors",
    "topic_status",
    "timeline",
    "prune_batch",
)
#: the ends of each type, and what is next to them or odd
EXTREMES = {
    "integer": ["-2147483648", "-1", "0", "1", "2147483647"],
    "bigint": ["-9223372036854775808", "-1", "0", "1", "9223372036854775806", "9223372036854775807"],
    "interval": [
        "-178000000 years",
        "-1 microsecond",
        "0",
        "1 microsecond",
        "1 day",
        "400 days",
        "178000000 years",
    ],
    "timestamp with time zone": [
        "-infinity",
        "4713-01-01 BC",
        "9999-12-30",
        "10000-01-01",
        "294276-12-31",
        "infinity",
    ],
}
#: what else each function is given, by the names of its arguments
GIVEN = {
    "name": "'new'",
    "topic": "'orders'",
    "key": "'x'",
    "reason": "'because'",
    "topics": "'{orders}'",
    "of_topic": "'orders'",
    "of_key": "'x'",
    "target": "'sql:app.apply_order'",
    "seq": "1",
    "epoch": "1",
    "max_keys": "1",
    "payload": "'{}'",
    "lease": "NULL::interval",
    "applier": "'me'",
}
_ARGUMENTS = """
    SELECT p.oid::regprocedure::text, a.name, format_type(p.proargtypes[a.place - 1], NULL),
           p.pronargs - p.pronargdefaults, p.proargnames, p.pronargs
    FROM pg_proc p, unnest(p.proargnames[1:p.pronargs]) WITH ORDINALITY a (name, place)
    WHERE p.pronamespace = 'inturn'::regnamespace AND p.proname = ANY (%s) ORDER BY 1, a.place
"""
#: how a refusal begins: inturn's own, a parameter of a claim, a LIMIT below 0
_REFUSED = ("IT", "22023", "2201W")


@pytest.fixture
def shop(witness: Database) -> Database:
    """Topic `orders` with key x: 1 was applied, 2 fails and is retried."""
    witness.execute("SELECT inturn.append('orders', 'x', n) FROM unnest(ARRAY['insert', 'fail']) n")
    witness.execute("CALL inturn.apply()")
    return witness


def _calls(database: Database) -> list[str]:
    """Return a call for each extreme of each argument of each function."""
    calls = []
    for function, name, kind, required, names, count in database.execute(_ARGUMENTS, [list(FUNCTIONS)]):
        for extreme in EXTREMES.get(kind, []):
            given = {one: GIVEN[one] for one in names[:required] if one in GIVEN}
            if function.startswith("inturn.create_topic") and name in ("first_seq", "max_ahead"):
                given["numbering"] = "'given'"
            if function.startswith("inturn.retry_all"):
                given["of_state"] = "NULL"
            given[name] = f"'{extreme}'::{kind}"
            assert count >= len(given)
            listed = ", ".join(f"{one} => {value}" for one, value in given.items())
            calls.append(f"SELECT * FROM {function.partition('(')[0]}({listed})")
    return calls


#: all that may stumble over what was set, and what a client reads
_GO_ON = (
    "UPDATE inturn.ticket SET ready_at = now() WHERE ready_at < 'infinity' AND NOT marked",
    "SELECT inturn.append(t.name, 'x', 'insert') FROM inturn.topic t WHERE t.numbering <> 'given'",
    "SELECT inturn.append(name, 'y', 'fail', seq => first_seq) FROM inturn.topic WHERE numbering = 'given'",
    "SELECT a.* FROM inturn.topic, inturn.apply_batch(name, '-infinity', 9, 'me') a WHERE target <> 'python'",
    "SELECT a.* FROM inturn.topic, inturn.apply_batch(name, '-infinity', 9, 'me') a WHERE target <> 'python'",
    "SELECT inturn.list_keys(), inturn.topic_status()",
    "SELECT p.* FROM inturn.topic t, inturn.prune_batch(t.name) p WHERE t.retain IS NOT NULL",
    "SELECT inturn._prune_idle()",
    "SELECT inturn.why(t.name, k) FROM inturn.topic t, unnest(ARRAY['x', 'y']) k",
    "SELECT * FROM inturn.topic, inturn.key_cursor, inturn.operator_action",
)


# Each on one session: what it has planned for one of its functions is there for the next.
@pytest.mark.parametrize("functions", [FUNCTIONS[::2], FUNCTIONS[1::2]], ids=["some", "others"])
def test_an_extreme_value_is_refused_by_name_or_all_goes_on_with_it(
    shop: Database, functions: tuple[str, ...]
) -> None:
    connection = shop.connect(autocommit=False, user=OWNER)
    calls = [
        call
        for call in _calls(shop)
        if call.startswith(tuple(f"SELECT * FROM inturn.{f}(" for f in functions))
    ]
    assert all(any(f"inturn.{function}(" in call for call in calls) for function in functions)
    for call in calls:
        try:
            connection.execute(call).fetchall()
        except psycopg.Error as error:
            if not (error.sqlstate or "").startswith(_REFUSED):
                raise AssertionError(f"{call}: {error}") from error
        else:
            for query in _GO_ON:
                try:
                    connection.execute(query).fetchall() if query[0] == "S" else connection.execute(query)
                except Exception as error:
                    # What it is there for: callers are refused, and nothing else is tried.
                    if "max_pending" in call and getattr(error, "sqlstate", None) == "IT009":
                        break
                    raise AssertionError(f"after {call}: {query}: {error}") from error
            else:
                found = connection.execute(
                    "SELECT v.* FROM inturn.topic t, inturn.verify(t.name) v"
                ).fetchall()
                assert found == []
        connection.rollback()


#: What nobody means, and its SQLSTATE.
MISTAKES = [
    ("create_topic('new', lease => '1 microsecond')", "IT011"),
    ("set_topic('orders', lease => '1 microsecond')", "IT011"),
    ("create_topic('new', numbering => 'given', gap_timeout => '178000000 years')", "IT011"),
    ("create_topic('new', timeout => '1 microsecond')", "IT011"),
    ("create_topic('new', max_attempts => 2147483647)", "IT011"),
    ("create_topic('new', numbering => 'given', first_seq => 9223372036854775807)", "IT011"),
    ("create_topic('new', numbering => 'given', max_ahead => 9223372036854775807)", "IT011"),
    ("pause('orders', 'x', until => '10000-01-01')", "IT041"),
    ("pause_topic('orders', until => '294276-12-31')", "IT041"),
    ("pause_topic('orders', until => '-infinity')", "IT041"),
    ("retry_all(older_than => '178000000 years')", "IT044"),
    ("claim(ARRAY['orders'], 1, '1 microsecond', 'me')", "22023"),
]


def test_what_nobody_means_is_refused_where_it_is_set(shop: Database) -> None:
    connection = shop.connect(user=OWNER)
    for call, sqlstate in MISTAKES:
        assert refusal(connection, f"SELECT inturn.{call}").sqlstate == sqlstate, call


def test_a_topic_that_is_paused_until_infinity_is_paused_for_good(shop: Database) -> None:
    shop.execute("SELECT inturn.pause_topic('orders', until => 'infinity')")
    assert shop.value("SELECT paused_until FROM inturn.topic") is None


#: White_Space of Unicode 16, and what has no width
BLANK = [
    *map(chr, [*range(9, 14), *range(0x1C, 0x21), 0x85, 0xA0, 0xAD, 0x1680, 0x180E, *range(0x2000, 0x2010)]),
    *map(chr, [0x2028, 0x2029, 0x202F, 0x205F, 0x2060, 0x3000, 0xFEFF]),
]
_NEED_A_REASON = (
    "skip('orders', 'x', 2, reason => %s)",
    "cancel_rest('orders', 'x', %s)",
    "cancel_rest_all(%s)",
    "replay('orders', 'x', 1, %s)",
    "amend('orders', 'x', 2, %s, name => 'insert')",
    "fill_gap('orders', 'x', 2, %s)",
)


def test_a_reason_of_which_nothing_can_be_seen_is_none(shop: Database) -> None:
    connection = shop.connect(user=OWNER)
    for call, reason in product(_NEED_A_REASON, ("", None, *BLANK, "".join(BLANK))):
        assert refusal(connection, f"SELECT inturn.{call}", [reason]).sqlstate == "IT043", (call, reason)
    assert shop.execute("SELECT FROM inturn.operator_action WHERE action <> 'create'") == []


def test_a_reason_that_can_be_seen_is_one(shop: Database) -> None:
    operator = shop.connect(user=OPERATOR)
    for reason in ("\u00e9", " x ", "\u3000\u5b57", "\u2063x", "0", "\U0001f600"):
        with operator.transaction(force_rollback=True):
            operator.execute("SELECT inturn.skip('orders', 'x', 2, %s)", [reason])
            noted = operator.execute("SELECT reason FROM inturn.operator_action WHERE action <> 'create'")
            assert noted.fetchall() == [(reason.strip(" "),)]


def test_a_blank_reason_where_none_is_needed_is_recorded_as_none(shop: Database) -> None:
    shop.execute("SELECT inturn.pause('orders', 'x', E'\u2003')")
    assert shop.execute("SELECT reason FROM inturn.operator_action WHERE action <> 'create'") == [(None,)]
