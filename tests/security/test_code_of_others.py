"""Whose code runs with whose rights: only deployers name code, and code that changes hands is not called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from support.code_of_others import MERGE, OWNER_CHANGED, create_mallory, open_to_all, warnings_of
from support.database import Database, until
from support.logins import connect_as, login
from support.process import InturnProcess, run_inturn
from support.race import replace_in
from support.refusal import refusal
from support.roles import APPLIER, OWNER, SUPERUSER

from inturn.applier import Fleet
from inturn.schema.errors import OwnerChanged, from_database

DENIED = "42501"
#: What names code, and so is a deployer's to do.
NAMES_CODE = (
    "SELECT inturn.create_topic('mine', 'sql:app.apply_order')",
    "SELECT inturn.create_topic('mine', 'http://127.0.0.1:9/commands')",
    "SELECT inturn.set_topic('orders', target => 'sql:app.apply_order')",
    "SELECT inturn.set_topic('orders', target => 'python')",
    "SELECT inturn.set_topic('orders', target => 'http://127.0.0.1:9/commands')",
    MERGE,
)
#: What does not, and stays an operator's.
NAMES_NONE = (
    "SELECT inturn.create_topic('mine', max_attempts => 3)",
    "SELECT inturn.set_topic('orders', max_attempts => 7)",
    "SELECT inturn.set_topic('orders', lease => '1 minute')",
    "SELECT inturn.pause_topic('orders')",
    "SELECT inturn.pause('orders', 'x')",
    "SELECT inturn.merge_rule('orders', 'a', 'b', 'last')",
)


@pytest.fixture
def orders(witness: Database) -> Database:
    """The witness database, whose target appliers may run; a merge function; a command on key x."""
    open_to_all(witness)
    return witness


def _owner(database: Database) -> str:
    owner: str = database.value("SELECT target_owner FROM inturn.topic WHERE name = 'orders'")
    return owner


def _key(database: Database) -> tuple[Any, ...]:
    """Return what became of key x: how far it is, how often it was tried."""
    return database.execute("SELECT applied_seq, attempts, epoch FROM inturn.key_cursor WHERE key = 'x'")[0]


# Only who deploys names code.


def test_an_operator_does_not_name_code(orders: Database) -> None:
    before = orders.execute("SELECT t FROM inturn.topic t")
    operator = connect_as(orders, "inturn_operator")
    others = [connect_as(orders, role) for role in ("inturn_caller", "inturn_applier")]
    for call in NAMES_CODE:
        said = refusal(operator, call)
        assert said.sqlstate == DENIED, call
        assert "inturn_admin" in said.message
        assert "GRANT inturn_admin TO" in said.hint
        for other in others:
            assert refusal(other, call).sqlstate == DENIED, call
    assert orders.execute("SELECT t FROM inturn.topic t") == before
    assert orders.execute("SELECT FROM inturn.merge_rule") == []


def test_who_has_the_role_does(orders: Database) -> None:
    admin = connect_as(orders, "inturn_admin")
    for call in NAMES_CODE[:2] + NAMES_CODE[3:]:
        with admin.transaction(force_rollback=True):
            admin.execute(call)


def test_what_names_no_code_stays_an_operators(orders: Database) -> None:
    operator = connect_as(orders, "inturn_operator")
    for call in NAMES_NONE:
        with operator.transaction(force_rollback=True):
            operator.execute(call)


def test_without_the_check_an_operator_would(orders: Database) -> None:
    for function in ("create_topic", "set_topic", "merge_rule"):
        replace_in(orders, function, ("PERFORM inturn._require_admin[^;]*;", "NULL;"))
    operator = connect_as(orders, "inturn_operator")
    operator.execute(NAMES_CODE[0])
    operator.execute(NAMES_CODE[3])
    operator.execute(MERGE)


def test_who_owns_the_schema_needs_no_role(orders: Database) -> None:
    user = f"owner_{orders.name}"
    orders.administer(f"CREATE ROLE {user} LOGIN IN ROLE {OWNER}")
    orders.connect(user=user).execute("SELECT inturn.set_topic('orders', target => 'python')")


def test_who_deploys_may_on_a_topic_that_is_granted_to_operators(orders: Database) -> None:
    operator, admin = connect_as(orders, "inturn_operator"), connect_as(orders, "inturn_admin")
    orders.execute("SELECT inturn.grant_topic('orders', 'operator', %s)", [operator.info.user])
    admin.execute("SELECT inturn.set_topic('orders', target => 'python')")
    assert orders.value("SELECT db_user FROM inturn.operator_action WHERE action = 'set'") == admin.info.user


def test_who_deploys_neither_appends_nor_applies_nor_reads_payloads(orders: Database) -> None:
    admin = connect_as(orders, "inturn_admin")
    for attempt in (
        "SELECT inturn.append('orders', 'x', 'insert')",
        "CALL inturn.apply()",
        "SELECT inturn.claim('orders')",
        "SELECT FROM inturn.command_log",
        "SELECT inturn.skip('orders', 'x', 1, 'because')",
        "SELECT inturn.grant_topic('orders', 'caller', session_user::text)",
        "UPDATE inturn.topic SET target = 'sql:app.other'",
        "SET ROLE inturn_operator",
    ):
        assert refusal(admin, attempt).sqlstate == DENIED, attempt


# A session's own schema.


@pytest.mark.parametrize("role", ["inturn_operator", "inturn_admin"])
@pytest.mark.parametrize("schema", ["pg_temp", None])
def test_a_function_of_a_session_is_nobodys_target(orders: Database, role: str, schema: str | None) -> None:
    """The attack: a superuser's CALL apply would run it."""
    attacker = connect_as(orders, role)
    attacker.execute(f"""
        CREATE FUNCTION pg_temp.pwn(command inturn.command) RETURNS void LANGUAGE plpgsql AS
        'BEGIN EXECUTE ''ALTER ROLE {attacker.info.user} SUPERUSER''; END'
    """)
    row = attacker.execute("SELECT pg_my_temp_schema()::regnamespace::text").fetchone()
    assert row
    for call in (
        f"SELECT inturn.create_topic('mine', 'sql:{schema or row[0]}.pwn')",
        f"SELECT inturn.set_topic('orders', target => 'sql:{schema or row[0]}.pwn')",
    ):
        said = refusal(attacker, call)
        assert said.sqlstate == (DENIED if role == "inturn_operator" else "IT012")
    # Also where the topic says so by other means, as one of an older inturn.
    orders.execute(
        "UPDATE inturn.topic SET max_attempts = 1, target = %s, target_owner = %s,"
        " target_owner_id = inturn._role_id(%s::regrole)",
        [f"sql:{row[0]}.pwn", attacker.info.user, attacker.info.user],
    )
    orders.connect(user=SUPERUSER).execute("CALL inturn.apply()")
    assert "session's own schema" in orders.value("SELECT last_error FROM inturn.key_cursor")
    assert orders.value("SELECT rolsuper FROM pg_roles WHERE rolname = %s", [attacker.info.user]) is False


# A function that changes hands.


def _alter_owner(database: Database, name: str) -> None:
    database.administer(f"ALTER FUNCTION app.apply_order OWNER TO {name}")


def _create_anew(database: Database, name: str) -> None:
    database.execute("DROP FUNCTION app.apply_order")
    database.administer(f"""
        SET ROLE {name};
        CREATE FUNCTION app.apply_order(command inturn.command) RETURNS void LANGUAGE sql AS 'SELECT';
        RESET ROLE;
    """)


def _plant_before_one_for_batches(database: Database, name: str) -> None:
    """A function of one command goes before one of several."""
    database.execute("DROP FUNCTION app.apply_order")
    database.execute("CREATE FUNCTION app.apply_order(c inturn.command[]) RETURNS void LANGUAGE sql AS ''")
    database.execute("SELECT inturn.set_topic('orders', max_attempts => 7)")
    database.administer(f"""
        SET ROLE {name};
        CREATE FUNCTION app.apply_order(command inturn.command) RETURNS void LANGUAGE sql AS 'SELECT';
        RESET ROLE;
    """)


@pytest.mark.parametrize("change", [_alter_owner, _create_anew, _plant_before_one_for_batches])
def test_it_is_not_called_and_no_command_is_charged_until_it_is_set_again(
    orders: Database, change: Any
) -> None:
    mallory, was = create_mallory(orders), _owner(orders)
    change(orders, mallory)
    applier = connect_as(orders, "inturn_applier")
    warnings = warnings_of(applier)
    assert applier.execute("CALL inturn.apply()").fetchone() == (0, 0)
    ((sqlstate, warned),) = warnings
    assert sqlstate == OWNER_CHANGED
    said = refusal(applier, "SELECT * FROM inturn.apply_batch('orders', '-infinity', 10, 'me')")
    assert said.sqlstate == OWNER_CHANGED
    assert said.message == warned
    assert said.message == (
        "the target of topic 'orders' is not called: app.apply_order(inturn.command) belongs to"
        f" {mallory} now, and belonged to {was} when it was set"
    )
    assert "SELECT inturn.set_topic('orders', target => 'sql:app.apply_order')" in said.hint
    assert _key(orders) == (0, 0, 0)
    admin = connect_as(orders, "inturn_admin")
    orders.execute("GRANT EXECUTE ON FUNCTION app.apply_order(inturn.command) TO PUBLIC")
    admin.execute("SELECT inturn.set_topic('orders', target => 'sql:app.apply_order')")
    assert _owner(orders) == mallory
    assert applier.execute("CALL inturn.apply()").fetchone() == (1, 0)


def test_the_other_topics_go_on(orders: Database) -> None:
    orders.execute("CREATE FUNCTION app.other(c inturn.command) RETURNS void LANGUAGE sql AS 'SELECT'")
    orders.execute("SELECT inturn.create_topic('others', 'sql:app.other')")
    orders.execute("SELECT inturn.append('others', 'y', 'insert')")
    _alter_owner(orders, create_mallory(orders))
    assert connect_as(orders, "inturn_applier").execute("CALL inturn.apply()").fetchone() == (1, 0)
    assert _key(orders) == (0, 0, 0)


def test_creating_the_topic_again_is_not_setting_its_target_again(orders: Database) -> None:
    """As every deployment does: it would take over what nobody has looked at."""
    was = _owner(orders)
    _alter_owner(orders, create_mallory(orders))
    create = "SELECT inturn.create_topic('orders', 'sql:app.apply_order', backoff_base => '10 ms')"
    assert orders.value(create) is False
    assert _owner(orders) == was


@pytest.mark.parametrize("careful", ["20", "0"], ids=["alone", "together"])
def test_within_a_call_of_apply_it_ends_that_and_charges_nobody(orders: Database, careful: str) -> None:
    """Where it changes hands between the look at the topic and a claim."""
    replace_in(orders, "apply", ("IF inturn._leave_out.*?END IF;", ""))
    _create_anew(orders, create_mallory(orders))
    applier = connect_as(orders, "inturn_applier")
    applier.execute(f"SET inturn.careful_keys = {careful}")
    said = refusal(applier, "CALL inturn.apply()")
    assert said.sqlstate == OWNER_CHANGED
    assert _key(orders) == (0, 0, 0)


def test_without_the_look_in_the_claim_it_would_be_called(orders: Database) -> None:
    mallory = create_mallory(orders)
    _create_anew(orders, mallory)
    orders.execute("GRANT EXECUTE ON FUNCTION app.apply_order(inturn.command) TO PUBLIC")
    look = (r"inturn\._require_target\(settings\)", "inturn._target_function(topic, settings.target)")
    replace_in(orders, "apply_batch", look)
    applier = connect_as(orders, "inturn_applier")
    row = applier.execute("SELECT commands FROM inturn.apply_batch('orders', '-infinity', 10, 'me')")
    assert row.fetchone() == (1,)


@pytest.mark.parametrize("careful", [True, False])
def test_a_worker_leaves_the_topic_out_and_a_drain_says_so(
    orders: Database, careful: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inturn.applier.inside.visits.STARTS_CAREFULLY", careful)
    orders.execute("CREATE FUNCTION app.other(c inturn.command) RETURNS void LANGUAGE sql AS 'SELECT'")
    orders.execute("SELECT inturn.create_topic('others', 'sql:app.other')")
    orders.execute("SELECT inturn.append('others', 'y', 'insert')")
    _alter_owner(orders, create_mallory(orders))
    fleet = Fleet(login(orders, "inturn_applier"), drain=True)
    fleet.start()
    assert fleet.wait(60)
    outcome = fleet.end(1)
    assert isinstance(outcome.error, OwnerChanged)
    assert outcome.commands == 1
    assert _key(orders) == (0, 0, 0)


def test_the_command_line_says_why(orders: Database) -> None:
    mallory = create_mallory(orders)
    _alter_owner(orders, mallory)
    code, _, said = run_inturn(login(orders, "inturn_applier"), "apply", "--drain")
    assert code == 1
    assert f"belongs to {mallory} now" in said
    assert "Traceback" not in said
    operator = login(orders, "inturn_operator")
    code, printed, _ = run_inturn(operator, "why", "x", "--json")
    assert '"target_refused"' in printed
    code, printed, _ = run_inturn(operator, "doctor")
    assert f"belongs to {mallory} now" in printed


def test_one_whose_owner_was_never_recorded_is_not_called(orders: Database) -> None:
    orders.execute("UPDATE inturn.topic SET target_owner_id = NULL")
    said = refusal(orders, "SELECT * FROM inturn.apply_batch('orders', '-infinity', 10, 'me')")
    assert said.sqlstate == OWNER_CHANGED
    assert said.message.endswith("to whom it belonged when it was set is not known")


def test_the_error_is_of_the_one_tree(orders: Database) -> None:
    orders.execute("UPDATE inturn.topic SET target_owner_id = NULL")
    with pytest.raises(psycopg.Error) as raised:
        orders.connect(user=APPLIER).execute(
            "SELECT * FROM inturn.apply_batch('orders', '-infinity', 10, 'me')"
        )
    assert isinstance(from_database(raised.value), OwnerChanged)


# What merges is refused as a target is: the topic as a whole, by every way of applying.

Way = Callable[[Database], str]


def _by_sql(statement: str, *settings: str) -> Way:
    """Return a way that returns what the statement was refused with, or has warned of."""

    def take(database: Database) -> str:
        applier = database.connect(user=APPLIER)
        warnings = warnings_of(applier)
        for setting in settings:
            applier.execute(setting)
        try:
            applier.execute(statement)
        except psycopg.Error as error:
            return f"{error.sqlstate}: {error.diag.message_primary}"
        return "".join(said for sqlstate, said in warnings if sqlstate == OWNER_CHANGED)

    return take


def _by_fleet(*, careful: bool) -> Way:
    def take(database: Database) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("inturn.applier.inside.visits.STARTS_CAREFULLY", careful)
            fleet = Fleet(database.applier_dsn, drain=True)
            fleet.start()
            assert fleet.wait(60)
            error = fleet.end(1).error
        assert error is None or isinstance(error, OwnerChanged)
        return "" if error is None else error.message

    return take


#: How a SQL target is reached; and, with the function that merges, how else commands are read.
TO_THE_TARGET: dict[str, Way] = {
    "apply, alone": _by_sql("CALL inturn.apply()"),
    "apply, together": _by_sql("CALL inturn.apply()", "SET inturn.careful_keys = 0"),
    "apply_batch": _by_sql("SELECT * FROM inturn.apply_batch('orders', '-infinity', 10, 'me')"),
    "worker, alone": _by_fleet(careful=True),
    "worker, together": _by_fleet(careful=False),
}
TO_THE_COMMANDS: dict[str, Way] = {
    "claim_commands": _by_sql("SELECT * FROM inturn.claim_commands('orders', '-infinity', 10)"),
    "claim by lease": _by_sql("SELECT * FROM inturn.claim('{orders}', 10, NULL, 'me')"),
    "claim by lease of several": _by_sql("SELECT * FROM inturn.claim('{orders,others}', 10, NULL, 'me')"),
}
WAYS = TO_THE_TARGET | TO_THE_COMMANDS


@pytest.mark.parametrize(
    ("function", "way"),
    [*(("apply_order", way) for way in TO_THE_TARGET), *(("combine", way) for way in WAYS)],
)
def test_either_is_refused_as_a_whole_by_every_way_until_it_is_set_again(
    orders: Database, function: str, way: str
) -> None:
    orders.execute(MERGE)
    orders.execute("SELECT inturn.append_many('orders', '{m,m}', '{a,b}')")
    mallory = create_mallory(orders)
    orders.administer(f"GRANT ALL ON ALL TABLES IN SCHEMA app TO {mallory}")
    orders.administer(f"ALTER FUNCTION app.{function} OWNER TO {mallory}")
    orders.execute("SELECT inturn.create_topic('others', 'sql:app.apply_order')")
    assert f"belongs to {mallory} now" in WAYS[way](orders)
    standing = orders.execute("SELECT DISTINCT applied_seq, attempts, epoch FROM inturn.key_cursor")
    assert standing == [(0, 0, 0)]
    assert orders.execute("SELECT FROM inturn.turn") == []
    if way == "apply_batch":  # of each function: these ask the database, whatever was tried
        assert '"target_refused"' in run_inturn(orders.dsn, "why", "m", "--json")[1]
        assert f"belongs to {mallory} now" in run_inturn(orders.dsn, "doctor")[1]
    again = "SELECT inturn.set_topic('orders', target => 'sql:app.apply_order')"
    orders.execute(MERGE if function == "combine" else again)
    assert WAYS[way](orders) == ""
    if way in TO_THE_TARGET:
        until(lambda: WAYS[way](orders) == "" and not orders.value("SELECT count(*) FROM inturn.ticket"), way)
        assert orders.execute("SELECT key, seq FROM app.witness ORDER BY 1") == [("m", 2), ("x", 1)]


def test_the_other_topics_of_a_claim_by_lease_go_on(orders: Database) -> None:
    orders.execute("SELECT inturn.create_topic('others', 'sql:app.apply_order')")
    orders.execute("SELECT inturn.append('others', 'y', 'insert')")
    orders.execute(MERGE)
    orders.administer(f"ALTER FUNCTION app.combine OWNER TO {create_mallory(orders)}")
    claimed = orders.execute("SELECT topic, key FROM inturn.claim('{orders,others}', 10, NULL, 'me')")
    assert claimed == [("others", "y")]


def test_without_the_look_before_the_claim_a_merge_would_be_charged_but_not_called(orders: Database) -> None:
    """As where the function changes hands between the two."""
    orders.execute(MERGE)
    assert orders.value("SELECT function_owner FROM inturn.merge_rule") == orders.value("SELECT session_user")
    mallory = create_mallory(orders)
    orders.administer(f"ALTER FUNCTION app.combine OWNER TO {mallory}")
    orders.execute("SELECT inturn.append_many('orders', '{m,m}', '{a,b}')")
    replace_in(orders, "_require_merges", ("IF settings.merges THEN", "IF false THEN"))
    WAYS["apply, together"](orders)
    (error,) = orders.execute("SELECT error FROM inturn.turn WHERE key = 'm' AND error IS NOT NULL")[0]
    assert f"app.combine(inturn.command,inturn.command) belongs to {mallory} now" in error
    assert "(SQLSTATE IT013)" in error
    assert orders.value(MERGE) is True
    assert orders.value("SELECT function_owner FROM inturn.merge_rule") == mallory
    assert orders.value(MERGE) is False


# Who applies as a superuser.


def test_apply_warns_a_superuser_once_and_nobody_else(orders: Database) -> None:
    for connection, expected in (
        (orders.connect(user=SUPERUSER), 1),
        (orders.connect(user=APPLIER), 0),
    ):
        warnings = warnings_of(connection)
        connection.execute("CALL inturn.apply()")
        assert len([said for _, said in warnings if "a superuser" in said]) == expected


@pytest.mark.parametrize("more", [(), ("--processes", "2")])
def test_the_command_line_warns_a_superuser_once_and_nobody_else(
    orders: Database, more: tuple[str, ...]
) -> None:
    for dsn, expected in ((orders.as_superuser(), 1), (orders.applier_dsn, 0)):
        with InturnProcess(dsn, "apply", "--drain", "--workers", "2", *more) as process:
            assert process.exit_code() == 0
            assert process.err.count("a superuser") == expected
