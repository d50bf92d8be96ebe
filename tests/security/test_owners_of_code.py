"""Who owns the code that is called: the recorded role, not its name, here and in a copy on another server."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from support.code_of_others import MERGE, OWNER_CHANGED, create_mallory, open_to_all
from support.database import Database
from support.logins import login
from support.process import run_inturn
from support.race import replace_in
from support.roles import APPLIER

from inturn.schema.install import upgrade


@pytest.fixture
def orders(witness: Database) -> Database:
    """The witness database, whose target appliers may run; a merge function; a command on key x."""
    open_to_all(witness)
    return witness


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
    assert "By who owns the schema, after a restore or a move: inturn upgrade; or by" in printed
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
    mallory = create_mallory(orders)
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
    mallory = create_mallory(orders)
    orders.administer(f"ALTER FUNCTION app.apply_order OWNER TO {mallory}")
    orders.execute("SELECT inturn.set_topic('orders', target => 'sql:app.apply_order')")
    oid = orders.value("SELECT %s::regrole::oid::text", [mallory])
    assert orders.value("SELECT target_owner_id FROM inturn.topic") == f"/{oid}"
    orders.execute(f"GRANT EXECUTE ON FUNCTION app.apply_order(inturn.command) TO {APPLIER}")
    orders.administer(f"ALTER ROLE {mallory} RENAME TO re{mallory}")
    _refused(orders, f"belongs to re{mallory} now, and belonged to {mallory} when it was set")
    orders.administer(f"ALTER ROLE re{mallory} RENAME TO {mallory}")
    orders.administer(f"GRANT ALL ON ALL TABLES IN SCHEMA app TO {mallory}")
    assert _apply(orders) == (1, 0)
