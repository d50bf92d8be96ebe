"""Topic by topic: who is granted one may act on it, and nobody else of that role."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from support.database import Database
from support.logins import connect_as, login
from support.process import run_inturn
from support.race import replace_in
from support.refusal import refusal
from support.roles import OWNER

from inturn.outbox import append

NOT_GRANTED = "IT014"
GRANT = "SELECT inturn.grant_topic(%s, %s, %s, 'because')"
APPEND = "SELECT inturn.append(%s, 'x', 'insert')"


@pytest.fixture
def two(witness: Database) -> Database:
    """Topics `orders` and `stock`, a command pending on key x of each; topics `given` and `posts`."""
    witness.execute("GRANT USAGE ON SCHEMA app TO PUBLIC")
    witness.execute("GRANT ALL ON ALL TABLES IN SCHEMA app TO PUBLIC")
    witness.execute("GRANT ALL ON ALL SEQUENCES IN SCHEMA app TO PUBLIC")
    witness.execute("SELECT inturn.create_topic('stock', 'sql:app.apply_order')")
    witness.execute("SELECT inturn.create_topic('given', numbering => 'given')")
    witness.execute("SELECT inturn.create_topic('posts', 'sql:app.apply_order', numbering => 'arrival')")
    for topic in ("orders", "stock"):
        witness.execute(APPEND, [topic])
    return witness


def _user(database: Database, role: str, name: str) -> psycopg.Connection[Any]:
    """Return a session of a new login NAME_DATABASE with the role."""
    user = f"{name}_{database.name}"
    database.execute(f"CREATE ROLE {user} LOGIN IN ROLE inturn_{role}")
    return database.connect(user=user)


def _grant(database: Database, topic: str, role: str, connection: psycopg.Connection[Any]) -> None:
    database.execute(GRANT, [topic, role, connection.info.user])


#: all that a caller can do on a topic
CALLS = (
    "SELECT inturn.append('{topic}', 'x', 'insert')",
    "SELECT inturn.append('{topic}', 'new', 'insert')",
    "SELECT inturn.append_many('{topic}', '{{x,y}}', '{{a,b}}')",
    "INSERT INTO inturn.outbox (topic, key, name) VALUES ('{topic}', 'x', 'insert')",
    "SELECT inturn.progress('{topic}', 'x')",
    "SELECT inturn.wait_state('{topic}', 'x', 1)",
    "SELECT inturn.announce_wait('{topic}', 'x')",
    "SELECT inturn.wait('{topic}', 'x', 0)",
)


@pytest.mark.parametrize("of_a_group", [False, True])
def test_whoever_is_granted_a_topic_itself_is_known_by_one_probe(two: Database, of_a_group: bool) -> None:
    """What an append pays for grants: no call, but for what a role has through another one."""
    shop = _user(two, "caller", "shop")
    if of_a_group:
        two.execute(f"CREATE ROLE group_{two.name} IN ROLE inturn_caller")
        two.execute(f"GRANT group_{two.name} TO {shop.info.user}")
    two.execute(GRANT, ["orders", "caller", f"group_{two.name}" if of_a_group else shop.info.user])
    two.administer(f"ALTER DATABASE {two.name} SET track_functions = 'all'")
    with two.connect(user=shop.info.user, autocommit=False) as session:
        session.execute(APPEND, ["orders"])
        called = "SELECT funcname FROM pg_stat_xact_user_functions WHERE schemaname = 'inturn'"
        names = {name for (name,) in session.execute(called)}
    assert "append" in names
    assert ({"_require_grant", "_is_granted"} <= names) == of_a_group
    assert ({"_require_grant", "_is_granted"} & names != set()) == of_a_group


def test_a_caller_appends_to_its_own_topic_and_to_no_other(two: Database) -> None:
    shop, pay = _user(two, "caller", "shop"), _user(two, "caller", "pay")
    _grant(two, "orders", "caller", shop)
    for call in CALLS:
        shop.execute(call.format(topic="orders"))
        before = two.value("SELECT count(*) FROM inturn.command_log")
        said = refusal(pay, call.format(topic="orders"))
        assert said.sqlstate == NOT_GRANTED, call
        assert said.message == f"topic 'orders' is not granted to {pay.info.user} as caller"
        assert two.value("SELECT count(*) FROM inturn.command_log") == before, call
        # A topic that is granted to nobody is open to the role.
        pay.execute(call.format(topic="stock"))
        shop.execute(call.format(topic="stock"))
    assert two.value("SELECT count(*) FROM inturn.key_sequence WHERE topic = 'orders'") == 3


def test_an_operator_of_the_topic_waits_as_its_callers_do(two: Database) -> None:
    shop, ops, others = (
        _user(two, "caller", "shop"),
        _user(two, "operator", "ops"),
        _user(two, "operator", "oth"),
    )
    _grant(two, "orders", "caller", shop)
    ops.execute("SELECT inturn.wait('orders', 'x', 0)")
    _grant(two, "orders", "operator", ops)
    ops.execute("SELECT inturn.wait('orders', 'x', 0)")
    assert refusal(others, "SELECT inturn.wait('orders', 'x', 0)").sqlstate == NOT_GRANTED


@pytest.mark.parametrize(("topic", "arguments"), [("given", ", seq => 1"), ("posts", ""), ("given", "")])
def test_it_holds_however_the_topic_numbers(two: Database, topic: str, arguments: str) -> None:
    shop, pay = _user(two, "caller", "shop"), _user(two, "caller", "pay")
    _grant(two, topic, "caller", shop)
    append_it = f"SELECT inturn.append('{topic}', 'x', 'insert'{arguments})"
    assert refusal(pay, append_it).sqlstate == NOT_GRANTED
    assert two.value("SELECT count(*) FROM inturn.intake") == 0
    if (topic, arguments) != ("given", ""):
        shop.execute(append_it)


def test_a_group_counts_for_its_members_and_set_role_counts_as_the_role(two: Database) -> None:
    pool = _user(two, "caller", "pool")
    group, service = f"group_{two.name}", f"service_{two.name}"
    two.execute(f"CREATE ROLE {group} IN ROLE inturn_caller; CREATE ROLE {service} IN ROLE inturn_caller")
    two.execute(f"GRANT {group}, {service} TO {pool.info.user}")
    two.execute(GRANT, ["orders", "caller", group])
    pool.execute(APPEND, ["orders"])  # as a member
    pool.execute(f"SET ROLE {service}")  # which is none
    assert (
        refusal(pool, APPEND, ["orders"]).message == f"topic 'orders' is not granted to {service} as caller"
    )
    pool.execute(f"SET ROLE {group}")
    pool.execute(APPEND, ["orders"])


def test_within_a_function_of_another_owner_the_session_counts(two: Database) -> None:
    shop, pay = _user(two, "caller", "shop"), _user(two, "caller", "pay")
    _grant(two, "orders", "caller", shop)
    two.execute("""
        CREATE FUNCTION app.place() RETURNS bigint LANGUAGE sql SECURITY DEFINER
        AS $$ SELECT inturn.append('orders', 'x', 'insert') $$""")
    assert refusal(pay, "SELECT app.place()").sqlstate == NOT_GRANTED
    shop.execute("SELECT app.place()")


@pytest.mark.parametrize("setting", ["role", "session_authorization"])
def test_a_caller_cannot_say_that_it_is_somebody_else(two: Database, setting: str) -> None:
    shop, pay = _user(two, "caller", "shop"), _user(two, "caller", "pay")
    _grant(two, "orders", "caller", shop)
    said = refusal(pay, "SELECT set_config(%s, %s, false)", [setting, shop.info.user])
    assert said.sqlstate == "42501"
    assert refusal(pay, APPEND, ["orders"]).sqlstate == NOT_GRANTED
    assert refusal(pay, "INSERT INTO inturn.topic_grant VALUES ('orders', 'caller', 'x')").sqlstate == "42501"
    assert refusal(pay, GRANT, ["orders", "caller", pay.info.user]).sqlstate == "42501"


@pytest.mark.parametrize("role", ["caller", "applier", "operator"])
def test_no_role_grants_anything_to_itself(two: Database, role: str) -> None:
    mallory = _user(two, role, "mallory")
    for function in ("grant_topic", "revoke_topic"):
        said = refusal(mallory, f"SELECT inturn.{function}('orders', %s, %s)", [role, mallory.info.user])
        assert said.sqlstate == "42501"


CLAIMS = (
    "SELECT * FROM inturn.claim('orders')",
    "SELECT * FROM inturn.claim_commands('orders')",
    "SELECT * FROM inturn.claim(ARRAY['stock', 'orders'], 5, NULL, 'me')",
    "SELECT * FROM inturn.apply_batch('orders', '-infinity', 5, 'me')",
    "CALL inturn.apply('{orders}')",
)


@pytest.mark.parametrize("claim", CLAIMS)
def test_an_applier_claims_from_its_own_topics_only(two: Database, claim: str) -> None:
    shop, pay = _user(two, "applier", "worker"), _user(two, "applier", "pay_worker")
    _grant(two, "orders", "applier", shop)
    assert refusal(pay, claim).sqlstate == NOT_GRANTED
    assert two.execute("SELECT FROM inturn.turn") == []
    shop.execute(claim)


def test_apply_without_topics_serves_those_that_the_session_may(two: Database) -> None:
    shop, pay = _user(two, "applier", "worker"), _user(two, "applier", "pay_worker")
    _grant(two, "orders", "applier", shop)
    pay.execute("CALL inturn.apply()")
    assert two.execute("SELECT topic FROM inturn.turn") == [("stock",)]
    shop.execute("CALL inturn.apply()")
    assert two.value("SELECT count(*) FROM inturn.turn WHERE topic = 'orders'") == 1


def test_inturn_apply_serves_those_that_its_login_may(two: Database) -> None:
    shop, pay = login(two, "inturn_applier"), _user(two, "applier", "pay_worker")
    _grant(two, "orders", "applier", pay)
    code, out, err = run_inturn(shop, "apply", "--topic", "orders", "--drain")
    assert (code != 0, "is not granted to" in out + err) == (True, True), (code, out, err)
    code, out, err = run_inturn(shop, "apply", "--drain")
    assert code == 0, (out, err)
    assert two.execute("SELECT topic FROM inturn.turn") == [("stock",)]


_BEGIN = "SELECT inturn._begin_saved_pass('{orders}', NULL)"
_SUSPECT = "SELECT inturn._next_suspect('{orders}', NULL, now())"
ACTIONS = (
    "pause('orders', 'x', 'because')",
    "skip('orders', 'x', 1, 'because')",
    "cancel_rest('orders', 'x', 'because')",
    "amend('orders', 'x', 1, 'because', name => 'other')",
    "pause_topic('orders', 'because')",
    "set_topic('orders', max_attempts => 9)",
)


@pytest.mark.parametrize("action", ACTIONS)
def test_an_operator_acts_on_its_own_topics_only(two: Database, action: str) -> None:
    shop, pay = _user(two, "operator", "ops"), _user(two, "operator", "pay_ops")
    _grant(two, "orders", "operator", shop)
    assert refusal(pay, f"SELECT inturn.{action}").sqlstate == NOT_GRANTED
    assert (
        two.value("SELECT count(*) FROM inturn.operator_action WHERE action NOT IN ('create', 'grant')") == 0
    )
    shop.execute(f"SELECT inturn.{action}")
    pay.execute(f"SELECT inturn.{action.replace('orders', 'stock')}")


def test_an_operator_replays_its_own_topics_commands_only(two: Database) -> None:
    shop, pay = _user(two, "operator", "ops"), _user(two, "operator", "pay_ops")
    _grant(two, "orders", "operator", shop)
    two.execute("CALL inturn.apply()")
    assert refusal(pay, "SELECT inturn.replay('orders', 'x', 1, 'because')").sqlstate == NOT_GRANTED
    assert two.value("SELECT count(*) FROM inturn.command_log WHERE topic = 'orders'") == 1
    shop.execute("SELECT inturn.replay('orders', 'x', 1, 'because')")


@pytest.mark.parametrize("topic", ["orders", "given"])
def test_a_replay_that_is_refused_says_nothing_of_other_operators_topics(two: Database, topic: str) -> None:
    """What is refused tells who acted on the key last, and for what reason."""
    shop, pay = _user(two, "operator", "ops"), _user(two, "operator", "pay_ops")
    _grant(two, topic, "operator", shop)
    two.execute("SELECT inturn.append('given', 'x', 'insert', seq => 1)")
    shop.execute("SELECT inturn.pause(%s, 'x', 'a secret')", [topic])
    replay = f"SELECT inturn.replay('{topic}', 'x', 1, 'because')"
    assert "a secret" in refusal(shop, replay).message
    assert refusal(pay, replay).sqlstate == NOT_GRANTED


def test_actions_on_all_topics_leave_out_those_of_others(two: Database) -> None:
    shop, pay = _user(two, "operator", "ops"), _user(two, "operator", "pay_ops")
    _grant(two, "orders", "operator", shop)
    for topic in ("orders", "stock"):
        two.execute("SELECT inturn.append(%s, 'f', 'fail')", [topic])
    two.execute("CALL inturn.apply()")
    assert pay.execute("SELECT topic FROM inturn.retry_all(of_state => 'retrying')").fetchall() == [
        ("stock",)
    ]
    query = "SELECT topic FROM inturn.cancel_rest_all('because', of_state => 'retrying')"
    assert pay.execute(query).fetchall() == []
    assert shop.execute(query).fetchall() == [("orders",)]


def test_progress_tells_how_far_a_key_is_and_nothing_of_what_it_holds(two: Database) -> None:
    caller = connect_as(two, "inturn_caller")
    progress = "SELECT * FROM inturn.progress('orders', 'x')"
    assert caller.execute(progress).fetchall() == [(0, "ready")]
    two.execute("CALL inturn.apply()")
    assert caller.execute(progress).fetchall() == [(1, "idle")]
    append(caller, "orders", "x", "fail", {"secret": 1})
    two.execute("CALL inturn.apply()")
    assert caller.execute(progress).fetchall() == [(1, "retrying")]
    assert caller.execute("SELECT * FROM inturn.progress('orders', 'never')").fetchall() == [(None, None)]
    assert refusal(caller, "SELECT inturn.progress('nowhere', 'x')").sqlstate == "IT001"
    assert refusal(caller, "SELECT * FROM inturn.key_cursor").sqlstate == "42501"


def test_with_the_last_grant_the_topic_is_open_again(two: Database) -> None:
    shop, pay = _user(two, "caller", "shop"), _user(two, "caller", "pay")
    _grant(two, "orders", "caller", shop)
    revoke = "SELECT (inturn.revoke_topic('orders', 'caller', %s)).after -> 'open'"
    _grant(two, "orders", "caller", pay)
    assert two.value(revoke, [shop.info.user]) is False
    assert refusal(shop, APPEND, ["orders"]).sqlstate == NOT_GRANTED
    assert two.value(revoke, [pay.info.user]) is True
    shop.execute(APPEND, ["orders"])


def test_grants_are_recorded_and_refused_where_they_make_no_sense(two: Database) -> None:
    shop = _user(two, "caller", "shop")
    admin = two.connect(user=OWNER)
    _grant(two, "orders", "caller", shop)
    assert refusal(admin, GRANT, ["orders", "caller", shop.info.user]).sqlstate == "IT041"
    assert refusal(admin, GRANT, ["orders", "caller", "nobody there"]).sqlstate == "IT011"
    assert refusal(admin, GRANT, ["orders", "owner", shop.info.user]).sqlstate == "IT011"
    assert refusal(admin, GRANT, ["nowhere", "caller", shop.info.user]).sqlstate == "IT001"
    assert refusal(admin, "SELECT inturn.revoke_topic('orders', 'applier', 'x')").sqlstate == "IT041"
    assert two.execute(
        "SELECT topic, key, action, reason, after FROM inturn.operator_action WHERE action = 'grant'"
    ) == [("orders", "", "grant", "because", {"role": "caller", "login": shop.info.user})]
    # The topic's settings are the same as before.
    assert (
        two.value("SELECT inturn.create_topic('orders', 'sql:app.apply_order', backoff_base => '10 ms')")
        is False
    )


def test_a_login_that_was_dropped_is_in_nobodys_way(two: Database) -> None:
    shop, gone = _user(two, "caller", "shop"), f"gone_{two.name}"
    two.execute(f"CREATE ROLE {gone}")
    two.execute(GRANT, ["orders", "caller", gone])
    two.execute(f"DROP ROLE {gone}")
    assert refusal(shop, APPEND, ["orders"]).sqlstate == NOT_GRANTED
    _grant(two, "orders", "caller", shop)
    shop.execute(APPEND, ["orders"])


def test_the_command_line_grants_shows_and_revokes(two: Database) -> None:
    shop = _user(two, "caller", "shop").info.user
    code, out, err = run_inturn(two.dsn, "topic", "grant", "orders", "--caller", shop, "--operator", shop)
    assert code == 0, err
    assert f"granted to {shop} as caller" in out
    code, out, _ = run_inturn(two.dsn, "topic", "show", "orders")
    assert [line.split() for line in out.splitlines()[-3:]] == [
        ["caller", shop],
        ["applier", "every", "applier"],
        ["operator", shop],
    ]
    code, out, _ = run_inturn(two.dsn, "topic", "revoke", "orders", "--caller", shop)
    assert (code, "open to every caller now" in out) == (0, True)
    code, _, err = run_inturn(two.dsn, "topic", "grant", "orders", "--caller", "nobody")
    assert (code != 0, "the server has no such role" in err) == (True, True)
    assert run_inturn(two.dsn, "topic", "grant", "orders")[0] == 2


@pytest.mark.parametrize(
    ("function", "edit", "role", "call"),
    [
        ("_begin_append", ("IF callers IS NOT NULL THEN", "IF false THEN"), "caller", CALLS[0]),
        ("_append_given", ("IF settings.callers IS NOT NULL THEN", "IF false THEN"), "caller", "given"),
        ("progress", ("PERFORM inturn._require_grant[^;]*;", ""), "caller", CALLS[4]),
        (
            "claim(text,timestamptz,integer)",
            ("PERFORM inturn._require_grant[^;]*;", "NULL;"),
            "applier",
            CLAIMS[0],
        ),
        ("_begin_pass", ("PERFORM inturn._require_grant[^;]*;", ""), "applier", _BEGIN),
        ("_next_suspect", ("PERFORM inturn._require_grant[^;]*;", ""), "applier", _SUSPECT),
    ],
)
def test_without_the_guard_anybody_would(
    two: Database, function: str, edit: tuple[str, str], role: str, call: str
) -> None:
    """Each of them is needed."""
    topic = "given" if call == "given" else "orders"
    call = "SELECT inturn.append('given', 'x', 'insert', seq => 1)" if call == "given" else call
    pay = _user(two, role, "pay")
    two.execute(f"CREATE ROLE other_{two.name}")
    two.execute(GRANT, [topic, role, f"other_{two.name}"])
    call = call.replace("{topic}", topic).replace("{{", "{").replace("}}", "}")
    assert refusal(pay, call).sqlstate == NOT_GRANTED
    replace_in(two, function, edit)
    pay.execute(call)
