"""Pruning: what goes, what never goes, and that all that is left still fits together."""

from __future__ import annotations

import pytest
from support.database import Database, Session
from support.history import append, make_history
from support.refusal import refusal
from support.roles import CALLER, DEPLOYER, OPERATOR, OWNER
from support.verifying import undone

_TABLES = ("command_log", "turn", "skip", "operator_action", "key_sequence")


def prune(database: Database, topic: str = "orders", older_than: str | None = "0") -> tuple[int, int, int]:
    """Prune once over a topic's keys; return how many commands, turns and keys went."""
    ((commands, turns, forgotten, done),) = database.execute(
        "CALL inturn.prune(%s, older_than => %s)", [topic, older_than]
    )
    assert done
    return commands, turns, forgotten


def violations(database: Database | Session, topic: str = "orders") -> set[tuple[str, str, int | None]]:
    return set(database.execute("SELECT violation, key, seq FROM inturn.verify(%s)", [topic]))


def _left(database: Database, key: str) -> dict[str, int]:
    return {
        table: int(database.value(f"SELECT count(*) FROM inturn.{table} WHERE key = %s", [key]))
        for table in _TABLES
    }


def _age(database: Database, how: str, epochs: str = "true") -> None:
    """Let turns, and the commands that they applied, lie back by an interval."""
    database.execute(
        "UPDATE inturn.turn SET started_at = started_at - %s::interval,"
        f" finished_at = finished_at - %s::interval WHERE {epochs}",
        [how, how],
    )
    database.execute(
        "UPDATE inturn.command_log l SET created_at = l.created_at - %s::interval"
        " WHERE seq <= (SELECT max(applied_seq) FROM inturn.turn u"
        f" WHERE (u.topic, u.key) = (l.topic, l.key) AND ({epochs}))",
        [how],
    )


def _apply(database: Database) -> None:
    database.execute("CALL inturn.apply()")


def test_a_whole_history_goes_but_its_last_turn_and_verify_stays_clean(witness: Database) -> None:
    make_history(witness)
    # Of c, which is held, and of d, which is paused, nothing may go.
    append(witness, "c", "insert")
    kept = {key: _left(witness, key) for key in "bcd"}
    stand = witness.execute("SELECT * FROM inturn.key_cursor ORDER BY key")
    assert violations(witness) == set()
    assert prune(witness) == (13, 9, 0)
    assert violations(witness) == set()
    assert witness.execute("SELECT * FROM inturn.key_cursor ORDER BY key") == stand
    assert _left(witness, "a") == {**dict.fromkeys(_TABLES, 0), "turn": 1, "key_sequence": 1}
    assert {key: _left(witness, key) for key in "bcd"} == kept
    append(witness, "a", "insert")
    assert witness.value("SELECT max(seq) FROM inturn.command_log WHERE key = 'a'") == 13
    _apply(witness)
    assert witness.value("SELECT max(seq) FROM app.witness WHERE key = 'a'") == 13
    assert violations(witness) == set()
    assert prune(witness)[:2] == (2, 1)  # b's too, which was ready
    assert violations(witness) == set()


@pytest.mark.parametrize("epoch", range(1, 11))
def test_a_history_may_be_cut_after_any_turn(witness: Database, epoch: int) -> None:
    make_history(witness)
    witness.execute("SELECT inturn.set_topic('orders', retain => '30 days')")
    assert prune(witness, older_than=None) == (0, 0, 0)
    _age(witness, "31 days", f"key = 'a' AND epoch <= {epoch}")
    witness.execute("DELETE FROM inturn.prune_pass")
    prune(witness, older_than=None)
    assert violations(witness) == set()
    last = witness.value("SELECT max(epoch) FROM inturn.turn WHERE key = 'a' AND epoch <= %s", [epoch])
    row = witness.execute("SELECT history_seq, history_epoch FROM inturn.key_sequence WHERE key = 'a'")[0]
    applied = witness.value("SELECT applied_seq FROM inturn.turn WHERE key = 'a' AND epoch = %s", [last])
    # Nothing is gone where all that is old is the first turn's failure.
    assert row in {(applied + 1, last), (None, None)}
    assert witness.value("SELECT min(seq) FROM inturn.command_log WHERE key = 'a'") in {applied + 1, None}
    append(witness, "a", "insert", "insert")
    _apply(witness)
    assert violations(witness) == set()


def test_a_pending_command_and_what_a_held_or_paused_key_did_stay(witness: Database) -> None:
    witness.execute("UPDATE inturn.topic SET max_attempts = 1")
    for key in ("held", "paused", "pending"):
        append(witness, key, "insert", "insert")
    _apply(witness)
    append(witness, "held", "fail", "insert")
    _apply(witness)
    witness.execute("SELECT inturn.pause('orders', 'paused', 'not now')")
    append(witness, "pending", "insert")
    before = {key: _left(witness, key) for key in ("held", "paused")}
    prune(witness)
    assert {key: _left(witness, key) for key in ("held", "paused")} == before
    assert _left(witness, "pending")["command_log"] == 1
    witness.execute("SELECT inturn.skip('orders', 'held', 3, 'never'), inturn.resume('orders', 'paused')")
    _apply(witness)
    prune(witness)
    assert violations(witness) == set()
    assert witness.value("SELECT count(*) FROM inturn.command_log") == 0
    assert witness.execute("SELECT key, seq FROM app.witness WHERE name = 'insert' ORDER BY key, seq") == [
        ("held", 1), ("held", 2), ("held", 4), ("paused", 1), ("paused", 2),
        ("pending", 1), ("pending", 2), ("pending", 3),
    ]  # fmt: skip


def test_nothing_of_a_paused_topic_goes(witness: Database) -> None:
    append(witness, "a", "insert")
    _apply(witness)
    witness.execute("SELECT inturn.pause_topic('orders')")
    assert prune(witness) == (0, 0, 0)
    witness.execute("SELECT inturn.resume_topic('orders')")
    assert prune(witness) == (1, 0, 0)


#: what is done by hand to a pruned key: SQL → what verify must find.
PLANTS = {
    "turns and commands removed by hand": (
        (
            "DELETE FROM inturn.command_log WHERE key = 'a' AND seq = 3;"
            "DELETE FROM inturn.turn u USING inturn.key_sequence s WHERE u.key = 'a' AND s.key = 'a'"
            " AND u.epoch = s.history_epoch"
        ),
        {"seq-missing", "history-malformed"},
    ),
    "the beginning of the history lost": (
        "UPDATE inturn.key_sequence SET history_seq = NULL, history_epoch = NULL WHERE key = 'a'",
        {"seq-missing"},
    ),
    "a beginning too late": (
        "UPDATE inturn.key_sequence SET history_seq = history_seq + 1 WHERE key = 'a'",
        {"history-malformed", "history-left"},
    ),
    "a beginning too early": (
        "UPDATE inturn.key_sequence SET history_seq = history_seq - 1 WHERE key = 'a'",
        {"history-malformed", "seq-missing"},
    ),
    "half a beginning": (
        "UPDATE inturn.key_sequence SET history_epoch = NULL WHERE key = 'a'",
        {"history-malformed"},
    ),
    "a command from before": (
        "INSERT INTO inturn.command_log VALUES ('orders', 'a', 1, 'x', '{}')",
        {"history-left"},
    ),
    "a command kept for no idempotency key that was to be kept": (
        "INSERT INTO inturn.command_log VALUES ('orders', 'a', 1, 'x', '{}', 'once')",
        {"history-left"},
    ),
    "a skip from before": (
        "INSERT INTO inturn.skip VALUES ('orders', 'a', 2, 1, 'operator', 'by hand')",
        {"history-left", "skip-without-action", "epoch-repeated", "passed-twice"},
    ),
    "a command after the beginning lost": (
        "DELETE FROM inturn.command_log WHERE key = 'a' AND seq = 3",
        {"seq-missing"},
    ),
}


def test_what_is_done_to_a_pruned_history_by_hand_is_found(witness: Database) -> None:
    append(witness, "a", "insert", "insert")
    _apply(witness)
    _age(witness, "1 day")
    append(witness, "a", "insert")
    _apply(witness)
    append(witness, "a", "insert")
    _apply(witness)
    assert prune(witness, older_than="1 hour") == (2, 0, 0)
    assert violations(witness) == set()
    session = witness.session(user=OWNER)
    for planted, (statement, found) in PLANTS.items():
        with undone(session):
            session.execute(statement)
            assert {violation for violation, _, _ in violations(session)} == found, planted


def test_pruning_by_hand_is_found_still(witness: Database) -> None:
    make_history(witness)
    witness.execute("DELETE FROM inturn.command_log WHERE key = 'a' AND seq <= 5")
    witness.execute("DELETE FROM inturn.turn WHERE key = 'a' AND epoch <= 3")
    assert {"seq-missing", "passed-unaccounted"} <= {violation for violation, _, _ in violations(witness)}


def test_an_idempotency_key_lives_as_long_as_the_topic_says(witness: Database) -> None:
    witness.execute("SELECT inturn.set_topic('orders', retain => '1 day', retain_idempotency => '30 days')")
    once = "SELECT inturn.append('orders', 'a', 'insert', idempotency_key => %s)"
    assert [witness.value(once, [key]) for key in ("x", None, "y")] == [1, 2, 3]
    _apply(witness)
    _age(witness, "2 days")
    assert prune(witness, older_than=None)[0] == 1
    assert violations(witness) == set()
    assert witness.execute("SELECT history_seq, kept_seq FROM inturn.key_sequence") == [(4, 1)]
    # A caller that asks again is told the number that it had.
    assert [witness.value(once, [key]) for key in ("x", "y", "z")] == [1, 3, 4]
    _apply(witness)
    witness.execute(
        "UPDATE inturn.command_log SET created_at = created_at - interval '29 days' WHERE seq = 1"
    )
    assert prune(witness, older_than=None)[0] == 1
    assert witness.execute("SELECT history_seq, kept_seq FROM inturn.key_sequence") == [(4, 3)]
    assert violations(witness) == set()
    # From now on it is a new command.
    assert [witness.value(once, [key]) for key in ("x", "y")] == [5, 3]
    witness.execute("SELECT inturn.set_topic('orders', retain => '0', retain_idempotency => '0')")
    prune(witness)
    assert witness.execute("SELECT seq FROM inturn.command_log ORDER BY seq") == [(5,)]
    assert violations(witness) == set()


def test_an_older_than_takes_no_idempotency_key_that_retain_still_protects(witness: Database) -> None:
    once = "SELECT inturn.append('orders', 'a', 'insert', idempotency_key => %s)"
    witness.execute("SELECT inturn.set_topic('orders', retain => '30 days')")
    assert [witness.value(once, [key]) for key in ("x", None, "y")] == [1, 2, 3]
    _apply(witness)
    assert prune(witness, older_than="0")[0] == 1
    assert [witness.value(once, [key]) for key in ("x", "y")] == [1, 3]
    assert violations(witness) == set()
    _age(witness, "31 days")
    assert prune(witness, older_than=None)[0] == 2
    # A topic that keeps everything protects nothing from a prune that says how old.
    witness.execute("SELECT inturn.set_topic('orders', retain => '0')")
    assert witness.value(once, ["x"]) == 4
    _apply(witness)
    assert prune(witness, older_than="0")[0] == 1
    assert violations(witness) == set()


def test_a_kept_command_that_was_amended_may_be_repeated_as_its_caller_gave_it(witness: Database) -> None:
    witness.execute("SELECT inturn.set_topic('orders', retain => '1 day', retain_idempotency => '30 days')")
    once = "SELECT inturn.append('orders', 'a', 'insert', '{\"n\": 1}', 'x')"
    assert witness.value(once) == 1
    witness.execute("SELECT inturn.amend('orders', 'a', 1, 'wrong', payload => '{\"n\": 2}')")
    append(witness, "a", "insert")
    _apply(witness)
    _age(witness, "2 days")
    assert prune(witness, older_than=None)[0] == 1
    assert witness.value(once) == 1
    assert violations(witness) == set()
    witness.execute("SELECT inturn.set_topic('orders', retain_idempotency => '0')")
    assert prune(witness)[0] == 1
    assert witness.value("SELECT count(*) FROM inturn.operator_action WHERE action = 'amend'") == 0
    assert violations(witness) == set()


def test_who_waits_for_a_key_whose_commands_were_all_pruned_is_told_that_it_is_applied(
    witness: Database,
) -> None:
    append(witness, "a", "insert", "insert")
    _apply(witness)
    assert prune(witness)[0] == 2
    assert witness.execute("SELECT * FROM inturn.wait('orders', 'a', timeout => '0')") == [(2, False)]
    assert refusal(witness, "SELECT inturn.wait('orders', 'b', timeout => '0')").sqlstate == "IT040"


def test_a_key_is_not_forgotten_while_a_command_of_it_is_kept(witness: Database) -> None:
    """Though it has been idle for longer: its command may have been appended by a clock that was ahead."""
    witness.execute(
        "SELECT inturn.set_topic('orders', retain => '1 day', retain_idempotency => '2 days',"
        " forget_idle_after => '2 days')"
    )
    once = "SELECT inturn.append('orders', 'a', 'insert', idempotency_key => 'x')"
    assert witness.value(once) == 1
    _apply(witness)
    _age(witness, "3 days")
    witness.execute("UPDATE inturn.command_log SET created_at = now() - interval '1 hour'")
    assert prune(witness, older_than=None)[2] == 0
    assert witness.value(once) == 1
    assert violations(witness) == set()
    witness.execute("UPDATE inturn.command_log SET created_at = now() - interval '3 days'")
    prune(witness, older_than=None)
    prune(witness, older_than=None)
    assert witness.value("SELECT count(*) FROM inturn.key_sequence") == 0
    assert witness.value("SELECT count(*) FROM inturn.command_log") == 0


def test_a_replayed_command_is_replayed_once_and_a_pruned_one_not_at_all(witness: Database) -> None:
    append(witness, "a", "insert", "insert")
    _apply(witness)
    prune(witness)
    with witness.connect(user=OPERATOR) as operator:
        said = refusal(operator, "SELECT inturn.replay('orders', 'a', 1, 'again')")
        assert (said.sqlstate, "no command 1 any more: its history begins at 3" in said.message) == (
            "IT041",
            True,
        )
        said = refusal(operator, "SELECT inturn.amend('orders', 'a', 2, 'no', 'other')")
        assert (said.sqlstate, "its history begins at 3" in said.message) == ("IT041", True)
    append(witness, "a", "insert")
    _apply(witness)
    witness.execute("SELECT inturn.replay('orders', 'a', 3, 'again')")
    _apply(witness)
    assert violations(witness) == set()
    prune(witness)
    assert violations(witness) == set()
    assert witness.value("SELECT count(*) FROM inturn.operator_action WHERE key = 'a'") == 0


def test_a_given_number_that_was_pruned_is_refused_and_the_next_is_taken(database: Database) -> None:
    database.execute("""
        CREATE FUNCTION public.nothing(command inturn.command) RETURNS void LANGUAGE plpgsql
        AS $$ BEGIN END $$;
        SELECT inturn.create_topic('orders', 'sql:public.nothing', numbering => 'given', first_seq => 10);
        SELECT inturn.append('orders', 'a', 'insert', seq => n) FROM generate_series(10, 11) n;
    """)
    _apply(database)
    database.execute("SELECT inturn.append('orders', 'a', 'insert', seq => 14)")
    assert prune(database)[0] == 2
    assert violations(database) == set()
    with database.connect(user=CALLER) as caller:
        said = refusal(caller, "SELECT inturn.append('orders', 'a', 'insert', seq => 11)")
        assert (said.sqlstate, "its history begins at 12" in said.message) == ("IT071", True)
    database.execute("SELECT inturn.append('orders', 'a', 'insert', seq => 12)")
    _apply(database)
    assert violations(database) == set()
    database.execute("SELECT inturn.fill_gap('orders', 'a', 13, 'lost')")
    _apply(database)
    prune(database)
    assert violations(database) == set()
    database.execute("SELECT inturn.append('orders', 'a', 'insert', seq => 15)")
    _apply(database)
    assert violations(database) == set()


@pytest.mark.parametrize("numbering", ["assigned", "arrival"])
def test_a_forgotten_key_that_comes_back_goes_on_above_every_number_it_had(
    witness: Database, numbering: str
) -> None:
    witness.execute(
        "SELECT inturn.create_topic('short', 'sql:app.apply_order', numbering => %s,"
        " retain => '1 day', forget_idle_after => '2 days')",
        [numbering],
    )
    for key, count in (("a", 3), ("b", 1)):
        for _ in range(count):
            witness.execute("SELECT inturn.append('short', %s, 'insert')", [key])
            _apply(witness)
    _age(witness, "36 hours")
    assert prune(witness, "short", None)[2] == 0
    _age(witness, "36 hours", "key = 'a'")
    witness.execute("DELETE FROM inturn.prune_pass")
    assert prune(witness, "short", None)[2] == 1
    assert _left(witness, "a") == dict.fromkeys(_TABLES, 0)
    assert violations(witness, "short") == set()
    epoch = witness.value("SELECT epoch FROM inturn.forgotten")
    for key in "abc":
        witness.execute("SELECT inturn.append('short', %s, 'insert')", [key])
    _apply(witness)
    assert violations(witness, "short") == set()
    rows = witness.execute("SELECT key, applied_seq, epoch > %s FROM inturn.key_cursor ORDER BY key", [epoch])
    assert rows == [("a", 4, True), ("b", 2, False), ("c", 4, True)]
    assert witness.execute("SELECT seq FROM app.witness WHERE key = 'a' ORDER BY id") == [
        (1,),
        (2,),
        (3,),
        (4,),
    ]
    _age(witness, "3 days")
    witness.execute("DELETE FROM inturn.prune_pass")
    assert prune(witness, "short", None)[2] == 3
    assert violations(witness, "short") == set()
    assert witness.value("SELECT count(*) FROM inturn.turn") == 0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("retain => '-1 day'", "retain is"),
        ("retain_idempotency => '1 day'", "no retain"),
        ("forget_idle_after => '1 day'", "no retain"),
        ("retain => '2 days', forget_idle_after => '1 day'", "not be shorter"),
        (
            "retain => '1 day', retain_idempotency => '3 days', forget_idle_after => '2 days'",
            "not be shorter",
        ),
        ("retain => '1 day', forget_idle_after => '2 days', numbering => 'given'", "callers give"),
    ],
)
def test_a_retention_that_cannot_be_is_refused(database: Database, settings: str, says: str) -> None:
    with database.connect(user=OPERATOR) as operator:
        said = refusal(operator, f"SELECT inturn.create_topic('x', 'python', {settings})")
    assert said.sqlstate == "IT011"
    assert says in said.message


def test_what_cannot_be_pruned_says_why(witness: Database) -> None:
    with witness.connect(user=OPERATOR) as operator:
        assert refusal(operator, "SELECT inturn.prune_batch('none')").sqlstate == "IT001"
        said = refusal(operator, "SELECT inturn.prune_batch('orders')")
        assert (said.sqlstate, "--retain" in said.hint) == ("IT070", True)
        assert (
            refusal(operator, "SELECT inturn.prune_batch('orders', older_than => '-1 s')").sqlstate == "IT070"
        )
        operator.execute("SET default_transaction_isolation = 'repeatable read'")
        assert (
            refusal(operator, "SELECT inturn.prune_batch('orders', older_than => '1 s')").sqlstate == "IT031"
        )
        # The procedure sets what it needs.
        operator.execute("CALL inturn.prune('orders', older_than => '1 s')")


def test_a_batch_may_be_as_large_as_a_number_is(witness: Database) -> None:
    append(witness, "a", "insert", "insert")
    _apply(witness)
    batch = "SELECT commands FROM inturn.prune_batch('orders', older_than => '0', max_rows => 2147483647)"
    assert witness.value(batch) == 2


def test_a_deep_key_goes_bit_by_bit_and_every_batch_is_bounded(witness: Database) -> None:
    witness.execute("SELECT inturn.set_topic('orders', batch_commands => 10)")
    witness.execute(
        "SELECT inturn.append('orders', k, 'insert')"
        " FROM unnest(ARRAY['deep', 'also']) k, generate_series(1, 500)"
    )
    _apply(witness)
    from_key, batches = "", []
    while from_key is not None:
        from_key, commands, turns, _ = witness.execute(
            "SELECT * FROM inturn.prune_batch('orders', %s, '0', 100)", [from_key]
        )[0]
        batches.append(commands + turns)
        assert violations(witness) == set()
    assert sum(batches) == 1000 + 98
    assert max(batches) < 2 * 100
    assert len(batches) >= 10


def test_a_prune_looks_once_at_a_key_of_which_nothing_is_due(witness: Database) -> None:
    for number in range(20):
        append(witness, f"k{number}", "insert")
    _apply(witness)
    counter = "SELECT pg_stat_get_xact_numscans('inturn.turn_pkey'::regclass)"
    cuts = (
        "SELECT count(*) FROM inturn.topic t, inturn._find_cuts(t, ARRAY(SELECT key FROM"
        " inturn.key_sequence), now() - interval '1 day', now() - interval '1 day', NULL, 1000)"
    )
    with witness.connect(user=OWNER, autocommit=False) as connection:
        before, found, after = (
            connection.execute(each).fetchall()[0][0] for each in (counter, cuts, counter)
        )
    assert (found, after - before) == (0, 20)


def test_a_prune_of_all_topics_leaves_those_of_other_operators_and_goes_on(witness: Database) -> None:
    witness.execute("SELECT inturn.create_topic('posts', 'sql:app.apply_order')")
    for topic in ("orders", "posts"):
        witness.execute("SELECT inturn.append(%s, 'a', 'insert')", [topic])
    _apply(witness)
    witness.execute("SELECT inturn.grant_topic('orders', 'operator', %s)", [DEPLOYER])
    with witness.connect(user=OPERATOR) as operator:
        row = operator.execute("CALL inturn.prune(older_than => '0')").fetchone()
        assert row == (1, 0, 0, True)
        assert refusal(operator, "CALL inturn.prune('orders', older_than => '0')").sqlstate == "IT014"
        # A topic's own retain is everybody's.
        witness.execute("SELECT inturn.set_topic('orders', retain => '1 us')")
        assert operator.execute("CALL inturn.prune()").fetchone() == (1, 0, 0, True)
