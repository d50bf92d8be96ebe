"""What an applier's login can and cannot do by hand."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from support.database import Database
from support.logins import connect_as
from support.refusal import refusal
from support.roles import APPLIER

#: Claims key a, and reports on it what the parameters say.
FINISH = "SELECT inturn.finish('orders', '{{a}}', '{{{epoch}}}', '{{{first}}}', '{{{last}}}', 'me')"


@pytest.fixture
def applier(witness: Database) -> psycopg.Connection[Any]:
    """An applier's session, whose transaction has claimed key a: commands 1 and 2; b is applied."""
    witness.execute("SELECT inturn.append('orders', 'b', 'insert')")
    witness.execute("CALL inturn.apply()")
    witness.execute("SELECT inturn.append('orders', 'a', 'insert'), inturn.append('orders', 'a', 'delete')")
    session = connect_as(witness, "inturn_applier")
    session.autocommit = False
    assert session.execute("SELECT key, epoch, applied_seq FROM inturn.claim('orders')").fetchall() == [
        ("a", 1, 0)
    ]
    return session


@pytest.mark.parametrize(
    ("report", "sqlstate"),
    [
        (FINISH.format(epoch=1, first=1, last=3), "IT032"),
        (FINISH.format(epoch=1, first=1, last=10**15), "IT032"),
        (FINISH.format(epoch=1, first=1, last=-5), "IT032"),
        (FINISH.format(epoch=2, first=1, last=2), "IT030"),
        (FINISH.format(epoch=1, first=2, last=2), "IT030"),
        ("SELECT inturn._finish('orders', '{a}', '{1}', '{1}', '{3}', 'me')", "IT032"),
        ("SELECT inturn.fail('orders', 'a', 1, 1, 3, 'x', 'me')", "IT032"),
        ("SELECT inturn.fail('orders', 'a', 1, 1, 3, 'x', 'me', 'skip')", "IT032"),
        ("SELECT inturn.fail('orders', 'a', 1, 1, 0, 'x', 'me')", "IT032"),
        ("SELECT inturn._end_turn_alone('orders', 'a', 1, 2)", "IT030"),
        ("SELECT inturn._hold_lease('orders', 'a', 0)", "IT030"),
    ],
)
def test_what_an_applier_reports_is_what_is_there_and_what_it_has(
    applier: psycopg.Connection,
    witness: Database,
    report: str,
    sqlstate: str,
) -> None:
    assert refusal(applier, report).sqlstate == sqlstate
    applier.rollback()
    assert witness.value("SELECT inturn.append('orders', 'a', 'insert')") == 3


def test_it_reads_no_commands_but_of_what_it_has_claimed(
    applier: psycopg.Connection[Any], witness: Database
) -> None:
    batch = "SELECT key, seq FROM inturn._batch_commands('orders', '{a,b,c}', '-infinity', 'infinity', 9)"
    claimed = "SELECT key, seq FROM inturn._turn_commands('orders', '{a,b}', '{1,2}', '{0,0}', 9)"
    leased = "SELECT key, seq FROM inturn._turn_commands('orders', '{a,b}', '{0,1}', '{0,0}', 9)"
    for query, found in ((batch, [("a", 1), ("a", 2)]), (claimed, [("a", 1), ("a", 2)]), (leased, [])):
        assert applier.execute(query).fetchall() == found
    applier.rollback()
    with connect_as(witness, "inturn_applier", "inturn_caller") as other:
        for query in (batch, claimed, leased):
            assert other.execute(query).fetchall() == []


def test_it_claims_by_hand_nothing_that_is_held_paused_or_leased(witness: Database) -> None:
    """What has a ticket's lock counts as its claim: a held key would be moved past what failed."""
    witness.execute("UPDATE inturn.topic SET max_attempts = 1")
    witness.execute("SELECT inturn.append('orders', 'held', 'fail')")
    witness.execute("CALL inturn.apply()")
    witness.execute("SELECT inturn.append('orders', k, 'insert') FROM unnest('{paused,leased}'::text[]) k")
    witness.execute("SELECT inturn.pause('orders', 'paused')")
    witness.execute("SELECT inturn.claim('{orders}', 9, '1 minute', 'other')")
    states = "SELECT key, inturn.key_state(c), epoch FROM inturn.key_cursor c ORDER BY key"
    before = witness.execute(states)
    assert [(key, state) for key, state, _ in before] == [(key, key) for key in ("held", "leased", "paused")]
    for key, _, epoch in before:
        _check_refused(witness, "SELECT inturn._lock_ticket('orders', %s, %s)", key, epoch)
        if key != "leased":  # whoever guesses the epoch of a lease has it
            _check_refused(witness, PROGRESS, key, epoch)
    assert witness.execute(states) == before


#: Reports nothing on a lease but that it goes on.
PROGRESS = """
    SELECT inturn._record_progress('{orders}', ARRAY[%s], ARRAY[%s]::bigint[], '{NULL}', '{false}')
"""


def _check_refused(database: Database, lock: str, key: str, epoch: int) -> None:
    """Make sure that after a lock of a key no turn of it can be ended."""
    with database.connect(user=APPLIER, autocommit=False) as session:
        session.execute(lock.encode(), [key, epoch])
        finish = "SELECT inturn.finish('orders', ARRAY[%s], ARRAY[%s]::bigint[], '{1}', '{1}', 'me')"
        assert refusal(session, finish, [key, epoch + 1]).sqlstate == "IT030"
        session.rollback()


def test_its_target_runs_as_itself(witness: Database) -> None:
    witness.execute("""
        CREATE TABLE app.ran (as_role text, path text);
        CREATE FUNCTION app.who(command inturn.command) RETURNS void LANGUAGE sql AS
            $$INSERT INTO app.ran VALUES (current_user, current_setting('search_path'))$$;
        GRANT USAGE ON SCHEMA app TO inturn_applier;
        GRANT INSERT ON app.ran TO inturn_applier;
        SELECT inturn.create_topic('who', 'sql:app.who'), inturn.append('who', 'a', 'insert'),
               inturn.append('who', 'a', 'insert');
    """)
    with connect_as(witness, "inturn_applier") as session:
        session.execute("SET search_path = app, public")
        session.execute("CALL inturn.apply(max_seconds => 30)")
        assert witness.execute("SELECT * FROM app.ran") == [(session.info.user, "app, public")] * 2


def test_what_its_constraints_do_is_done_as_itself(witness: Database) -> None:
    witness.execute("""
        CREATE TABLE app.checked (as_role text);
        CREATE TABLE app.orders (id integer);
        CREATE FUNCTION app.check_order() RETURNS trigger LANGUAGE plpgsql AS
            $$BEGIN INSERT INTO app.checked VALUES (current_user); RETURN NULL; END$$;
        CREATE CONSTRAINT TRIGGER late AFTER INSERT ON app.orders DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION app.check_order();
        CREATE FUNCTION app.insert_order(command inturn.command) RETURNS void LANGUAGE sql AS
            $$INSERT INTO app.orders VALUES (1)$$;
        GRANT USAGE ON SCHEMA app TO inturn_applier;
        GRANT INSERT ON app.orders, app.checked TO inturn_applier;
        SELECT inturn.create_topic('late', 'sql:app.insert_order'), inturn.append('late', 'a', 'insert');
    """)
    with connect_as(witness, "inturn_applier") as session:
        session.execute("CALL inturn.apply(max_seconds => 30)")
        claimed = session.execute("SELECT inturn.apply_batch('late', '-infinity', 1, 'me')")
        assert claimed.fetchall()
        assert set(witness.execute("SELECT * FROM app.checked")) == {(session.info.user,)}
