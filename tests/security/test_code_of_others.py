"""Whose code runs with whose rights: only deployers name code, and code that changes hands is not called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from support.database import Database, until
from support.logins import connect_as, login
from support.process import InturnProcess, run_inturn
from support.race import replace_in
from support.refusal import refusal
from support.roles import APPLIER, OWNER, SUPERUSER

from inturn.applier import Fleet
from inturn.schema.errors import OwnerChanged, from_database
from inturn.schema.install import upgrade

DENIED = "42501"
OWNER_CHANGED = "IT013"
MERGE = "SELECT inturn.merge_rule('orders', 'a', 'b', 'sql:app.combine')"
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
    witness.execute("""
        GRANT USAGE ON SCHEMA app TO PUBLIC;
        GRANT ALL ON ALL TABLES IN SCHEMA app TO PUBLIC;
        GRANT ALL ON ALL SEQUENCES IN SCHEMA app TO PUBLIC;
        CREATE FUNCTION app.combine(first inturn.command, second inturn.command) RETURNS jsonb
            LANGUAGE sql AS 'SELECT first.payload || second.payload';
        SELECT inturn.append('orders', 'x', 'insert');
    """)
    return witness


def _mallory(database: Database) -> str:
    """Return the name of a new role that may create in app."""
    name = f"mallory_{database.name}"
    database.execute(f"CREATE ROLE {name} IN ROLE inturn_caller; GRANT CREATE, USAGE ON SCHEMA app TO {name}")
    return name


def _owner(database: Database) -> str:
    owner: str = database.value("SELECT target_owner FROM inturn.topic WHERE name = 'orders'")
    return owner


def _key(database: Database) -> tuple[Any, ...]:
    """Return what became of key x: how far it is, how often it was tried."""
    return database.execute("SELECT applied_seq, attempts, epoch FROM inturn.key_cursor WHERE key = 'x'")[0]


def _warnings(connection: psycopg.Connection[Any]) -> list[tuple[str, str]]:
    """Return the list of warnings that the session gets from now on: SQLSTATE and message."""
    warnings: list[tuple[str, str]] = []

    def note(said: psycopg.errors.Diagnostic) -> None:
        if said.severity_nonlocalized == "WARNING":
            warnings.append((said.sqlstate or "", said.message_primary or ""))

    connection.add_notice_handler(note)
    return warnings


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
    mallory, was = _mallory(orders), _owner(orders)
    change(orders, mallory)
    applier = connect_as(orders, "inturn_applier")
    warnings = _warnings(applier)
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
    _alter_owner(orders, _mallory(orders))
    assert connect_as(orders, "inturn_applier").execute("CALL inturn.apply()").fetchone() == (1, 0)
    assert _key(orders) == (0, 0, 0)


def test_creating_the_topic_again_is_not_setting_its_target_again(orders: Database) -> None:
    """As every deployment does: it would take over what nobody has looked at."""
    was = _owner(orders)
    _alter_owner(orders, _mallory(orders))
    create = "SELECT inturn.create_topic('orders', 'sql:app.apply_order', backoff_base => '10 ms')"
    assert orders.value(create) is False
    assert _owner(orders) == was


@pytest.mark.parametrize("careful", ["20", "0"], ids=["alone", "together"])
def test_within_a_call_of_apply_it_ends_that_and_charges_nobody(orders: Database, careful: str) -> None:
    """Where it changes hands between the look at the topic and a claim."""
    replace_in(orders, "apply", ("IF inturn._leave_out.*?END IF;", ""))
    _create_anew(orders, _mallory(orders))
    applier = connect_as(orders, "inturn_applier")
    applier.execute(f"SET inturn.careful_keys = {careful}")
    said = refusal(applier, "CALL inturn.apply()")
    assert said.sqlstate == OWNER_CHANGED
    assert _key(orders) == (0, 0, 0)


def test_without_the_look_in_the_claim_it_would_be_called(orders: Database) -> None:
    mallory = _mallory(orders)
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
    _alter_owner(orders, _mallory(orders))
    fleet = Fleet(login(orders, "inturn_applier"), drain=True)
    fleet.start()
    assert fleet.wait(60)
    outcome = fleet.end(1)
    assert isinstance(outcome.error, OwnerChanged)
    assert outcome.commands == 1
    assert _key(orders) == (0, 0, 0)


def test_the_command_line_says_why(orders: Database) -> None:
    mallory = _mallory(orders)
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


# The role, not its name.


@pytest.fixture
def made(orders: Database) -> str:
    """A role that owns the target and the function that merges, as recorded; a and b are pending on m."""
    maker = f"maker_{orders.name}"
    orders.administer(f"CREATE ROLE {maker}; GRANT CREATE, USAGE ON SCHEMA app TO {maker}")
    orders.administer(f"GRANT ALL ON ALL TABLES IN SCHEMA app TO {maker}")
    _give(orders, maker)
    orders.execute("SELECT inturn.set_topic('orders', target => 'sql:app.apply_order')")
    orders.execute(MERGE)
    orders.execute("SELECT inturn.append_many('orders', '{m,m}', '{a,b}')")
    return maker


def _give(database: Database, name: str) -> None:
    for function in ("apply_order", "combine"):
        database.administer(f"ALTER FUNCTION app.{function} OWNER TO {name}")


def _apply(database: Database) -> tuple[Any, ...] | None:
    """Return how many commands CALL apply has applied, and how many have failed."""
    return database.connect(user=APPLIER).execute("CALL inturn.apply()").fetchone()


def _refused(database: Database, says: str) -> psycopg.errors.Diagnostic:
    """Make sure that nothing is applied, and return what was said."""
    before = database.execute("SELECT key, applied_seq, attempts FROM inturn.key_cursor ORDER BY 1")
    session = database.connect(user=APPLIER)
    with pytest.raises(psycopg.Error) as raised:
        session.execute("SELECT * FROM inturn.apply_batch('orders', '-infinity', 10, 'me')")
    assert raised.value.sqlstate == OWNER_CHANGED
    assert says in (raised.value.diag.message_primary or "")
    assert session.execute("CALL inturn.apply()").fetchone() == (0, 0)
    assert database.execute("SELECT key, applied_seq, attempts FROM inturn.key_cursor ORDER BY 1") == before
    return raised.value.diag


def test_an_owner_that_is_renamed_is_the_one_that_was_recorded(orders: Database, made: str) -> None:
    renamed = f"re{made}"
    orders.administer(f"ALTER ROLE {made} RENAME TO {renamed}")
    assert orders.value("SELECT target_owner FROM inturn.topic") == made
    upgrade(orders.dsn)
    assert orders.value("SELECT target_owner FROM inturn.topic") == renamed
    assert orders.value("SELECT function_owner FROM inturn.merge_rule") == renamed
    orders.administer(f"ALTER ROLE {renamed} RENAME TO {made}")
    assert _apply(orders) == (3, 0)
    assert orders.execute("SELECT seq FROM app.witness WHERE key = 'm'") == [(2,)]


def test_by_its_name_alone_it_would_not_be(orders: Database, made: str) -> None:
    replace_in(orders, "_require_owner", (r"owner = name OR owner_id = .*? NOT LIKE '/%'", "owner = name"))
    orders.administer(f"ALTER ROLE {made} RENAME TO re{made}")
    _refused(orders, f"belongs to re{made} now, and belonged to {made} when it was set")


def _make_again(database: Database, name: str) -> None:
    """Drop a role with what it owns, and make one of the same name that owns functions of the same names."""
    database.administer(f"DROP OWNED BY {name}; DROP ROLE {name}; CREATE ROLE {name}")
    database.execute("""
        CREATE FUNCTION app.apply_order(command inturn.command) RETURNS void LANGUAGE sql AS 'SELECT';
        CREATE FUNCTION app.combine(first inturn.command, second inturn.command) RETURNS jsonb
            LANGUAGE sql AS 'SELECT first.payload';
    """)
    database.administer(f"GRANT CREATE, USAGE ON SCHEMA app TO {name}")
    _give(database, name)


def test_a_role_that_is_made_again_under_its_name_is_another(orders: Database, made: str) -> None:
    _make_again(orders, made)
    another = f"belongs to {made} now, and belonged to another role of this name when it was set"
    _refused(orders, f"what merges 'a' and 'b' of topic 'orders' is not called: app.combine{_TWO} {another}")
    upgrade(orders.dsn)  # which is no remedy
    assert orders.value(MERGE) is True
    hint = _refused(orders, f"app.apply_order(inturn.command) {another}").message_hint or ""
    assert "inturn upgrade" not in hint
    orders.execute("SELECT inturn.set_topic('orders', target => 'sql:app.apply_order')")
    assert _apply(orders) == (3, 0)


#: Of the function that merges.
_TWO = "(inturn.command,inturn.command)"


def test_by_name_it_would_be_the_same(orders: Database, made: str) -> None:
    replace_in(orders, "_require_owner", (r"split_part\(owner_id, '/', 2\) = now_owned_by::text", "true"))
    _make_again(orders, made)
    assert _apply(orders) == (3, 0)


# Copies on other servers, whose roles are others.


def _restore_elsewhere(database: Database, oid: str) -> None:
    """Have the records that a dump brings from another server: its identifier, and an oid of its own."""
    for table, column in (("topic", "target_owner_id"), ("merge_rule", "function_owner_id")):
        database.execute(f"UPDATE inturn.{table} SET {column} = '1/' || {oid}")


def test_in_a_restore_elsewhere_upgrade_says_that_the_roles_are_the_same(orders: Database, made: str) -> None:
    _restore_elsewhere(orders, "4294967295")
    said = _refused(orders, f"belongs to {made} now, and was set on another server, whose roles are others")
    assert "run: inturn upgrade. Or whoever has inturn_admin sets it again" in (said.message_hint or "")
    operator = login(orders, "inturn_operator")
    _, printed, _ = run_inturn(operator, "why", "m", "--json")
    assert "inturn upgrade  # by who owns the schema" in printed
    _, printed, _ = run_inturn(operator, "doctor")
    assert "let who owns the schema run: inturn upgrade" in " ".join(printed.split())
    code, printed, _ = run_inturn(orders.dsn, "upgrade")
    assert code == 0
    assert (
        "targets and merge functions called again, whose owners were recorded on another server: 2" in printed
    )
    assert "SELECT inturn.set_topic('orders', target => 'sql:app.apply_order')" in printed
    assert len(run_inturn(orders.dsn, "upgrade")[1].splitlines()) == 1
    assert _apply(orders) == (3, 0)


def test_but_not_of_one_that_belongs_to_somebody_else_there(orders: Database, made: str) -> None:
    """Also where that has the oid, there, that the owner had here."""
    mallory = _mallory(orders)
    _give(orders, mallory)
    _restore_elsewhere(orders, f"'{mallory}'::regrole::oid")
    upgrade(orders.dsn)
    _refused(orders, f"belongs to {mallory} now, and belonged to {made} when it was set")


def test_after_pg_upgrade_which_keeps_names_and_oids_all_goes_on(orders: Database, made: str) -> None:
    _restore_elsewhere(orders, f"'{made}'::regrole::oid")
    assert _apply(orders) == (3, 0)
    assert len(run_inturn(orders.dsn, "upgrade")[1].splitlines()) == 1
    orders.administer(f"ALTER ROLE {made} RENAME TO re{made}")
    orders.execute("SELECT inturn.append('orders', 'x', 'insert')")
    assert _apply(orders) == (1, 0)


def test_where_a_server_does_not_tell_which_it_is_a_renamed_owner_is_set_again(orders: Database) -> None:
    orders.administer("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    mallory = _mallory(orders)
    _alter_owner(orders, mallory)
    orders.execute("SELECT inturn.set_topic('orders', target => 'sql:app.apply_order')")
    oid = orders.value("SELECT %s::regrole::oid::text", [mallory])
    assert orders.value("SELECT target_owner_id FROM inturn.topic") == f"/{oid}"
    orders.execute(f"GRANT EXECUTE ON FUNCTION app.apply_order(inturn.command) TO {APPLIER}")
    orders.administer(f"ALTER ROLE {mallory} RENAME TO re{mallory}")
    _refused(orders, f"belongs to re{mallory} now, and belonged to {mallory} when it was set")
    orders.administer(f"ALTER ROLE re{mallory} RENAME TO {mallory}")
    orders.administer(f"GRANT ALL ON ALL TABLES IN SCHEMA app TO {mallory}")
    assert _apply(orders) == (1, 0)


# What merges is refused as a target is: the topic as a whole, by every way of applying.

Way = Callable[[Database], str]


def _by_sql(statement: str, *settings: str) -> Way:
    """Return a way that returns what the statement was refused with, or has warned of."""

    def take(database: Database) -> str:
        applier = database.connect(user=APPLIER)
        warnings = _warnings(applier)
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
    mallory = _mallory(orders)
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
    orders.administer(f"ALTER FUNCTION app.combine OWNER TO {_mallory(orders)}")
    claimed = orders.execute("SELECT topic, key FROM inturn.claim('{orders,others}', 10, NULL, 'me')")
    assert claimed == [("others", "y")]


def test_without_the_look_before_the_claim_a_merge_would_be_charged_but_not_called(orders: Database) -> None:
    """As where the function changes hands between the two."""
    orders.execute(MERGE)
    assert orders.value("SELECT function_owner FROM inturn.merge_rule") == orders.value("SELECT session_user")
    mallory = _mallory(orders)
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
        warnings = _warnings(connection)
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
