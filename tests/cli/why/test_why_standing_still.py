"""`why` of a key that failed, is paused, is leased, or waits for a number."""

from __future__ import annotations

import re
import shlex

import pytest
from support.database import Database, Session, until
from support.process import run_inturn
from support.race import append
from support.roles import APPLIER, OWNER
from support.why_answers import asked, backends, caller_of, explained

# Standing still.


def test_a_key_is_held(witness: Database) -> None:
    witness.execute("UPDATE inturn.topic SET max_attempts = 1")
    witness.execute("SELECT inturn.append('orders', 'a', 'fail')")
    witness.execute("CALL inturn.apply()")
    answer, out = explained(witness, "a", "held")
    assert answer["since"] == witness.value("SELECT held_at FROM inturn.key_cursor")
    assert (answer["details"]["attempts"], answer["details"]["seq"]) == (1, 1)
    assert "refused a" in answer["details"]["error"]
    assert "Its next command, 1 (fail), failed for good at attempt 1 of 1: refused a" in " ".join(out.split())
    shown, retry, amend, skip = (line.partition("  # ")[0] for line in answer["to_do"].splitlines())
    for advice in (shown, amend, retry, skip):
        line = advice.replace("{topic}", "orders").replace("{key}", "a")
        assert f"$ {line}" in out
        code, _, err = run_inturn(witness.dsn, *line.split()[1:], EDITOR="sed -i 's/}/\"b\": 1}/'")
        assert (code, err) == (0, ""), line


def test_a_key_is_tried_again_later(witness: Database) -> None:
    witness.execute("UPDATE inturn.topic SET backoff_base = '1 hour', backoff_cap = '2 hours'")
    witness.execute("SELECT inturn.append('orders', 'a', 'fail')")
    witness.execute("CALL inturn.apply()")
    answer, out = explained(witness, "a", "retrying")
    assert (answer["details"]["attempts"], answer["details"]["max_attempts"]) == (1, 5)
    assert ", again in " in out.splitlines()[0]
    assert "at attempt 1 of 5: refused a" in " ".join(out.split())
    assert "It is tried again at 2" in " ".join(out.split())
    witness.execute("UPDATE inturn.key_cursor SET ready_at = now()")
    assert "refused a" in explained(witness, "a", "no_applier")[0]["says"]


def test_a_key_that_was_put_off_without_an_attempt_says_until_when_and_why(witness: Database) -> None:
    """An outage counts as no attempt, so the key is ready, but not now."""
    witness.execute("UPDATE inturn.topic SET backoff_base = '1 hour', backoff_cap = '2 hours'")
    append(witness, "a")
    applier = witness.session()
    applier.execute("SELECT FROM inturn.claim('orders')")
    applier.execute("SELECT inturn.fail('orders', 'a', 1, 1, 1, 'the bank is away', 'me', 'outage')")
    applier.commit()
    answer, out = explained(witness, "a", "retrying")
    details = answer["details"]
    assert (details["attempts"], details["error"]) == (0, "the bank is away")
    assert ", again in " in out.splitlines()[0]
    said = " ".join(out.split())
    assert "Its next command, 1 (insert), was put off, which counts as no attempt: the bank is away." in said
    assert "It is tried again at 2" in said
    assert "inturn retry" not in answer["to_do"], "which would be refused: nothing has failed"


def test_a_key_that_only_a_hint_tells_of_is_ready_and_not_broken(drained: Database) -> None:
    """A caller on a snapshot cannot wake the key; an applier will."""
    caller = drained.session()
    caller.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    append(caller, "a")
    caller.commit()
    assert drained.execute("SELECT FROM inturn.verify('orders')") == []
    answer, _ = explained(drained, "a", "no_applier")
    assert answer["since"] == drained.value("SELECT left_at FROM inturn.wake_hint")
    applier = drained.connect(user=APPLIER)
    applier.execute("SELECT inturn.announce_applier('node:7', '{orders}', 'b1', 4711, '0001')")
    assert "0 keys are ready for longer" in explained(drained, "a", "queued")[0]["says"]
    drained.execute("CALL inturn.apply()")
    explained(drained, "a", "nothing_pending")


def test_a_key_is_paused_by_somebody_for_a_reason(drained: Database) -> None:
    drained.execute("SET inturn.os_user = 'alice@desk'")
    drained.execute("SELECT inturn.pause('orders', 'a', 'the customer calls', now() + interval '90 minutes')")
    answer, out = explained(drained, "a", "paused")
    assert "for another 1h" in out.splitlines()[0]
    said = " ".join(out.split())
    assert "alice@desk paused it until 2" in said
    assert ": the customer calls. Nothing is pending on it now." in said
    assert "$ inturn resume --topic orders a" in out
    append(drained, "a")
    drained.execute("SET inturn.acting_as = 'bob'")
    drained.execute("SELECT inturn.pause('orders', 'a')")
    answer, out = explained(drained, "a", "paused")
    assert "bob paused it until it is resumed. No reason was given." in " ".join(out.split())
    assert answer["details"]["acting_as"] == "bob"


def test_its_topic_is_paused(drained: Database) -> None:
    append(drained, "a")
    drained.execute("SELECT inturn.pause_topic('orders', 'the shop moves')")
    answer, out = explained(drained, "a", "topic_paused")
    assert answer["since"] == drained.value("SELECT paused_at FROM inturn.topic")
    assert "paused its whole topic until it is resumed: the shop moves." in " ".join(out.split())
    assert "$ inturn resume --topic orders\n" in out
    drained.execute("SELECT inturn.resume_topic('orders')")
    assert asked(drained, "a")["cause"] == "no_applier"


def test_its_target_belongs_to_somebody_else_now(drained: Database) -> None:
    """Why and doctor advise the same, which is pasted."""
    append(drained, "a")
    drained.execute("""
        CREATE FUNCTION app.combine(inturn.command, inturn.command) RETURNS jsonb
            LANGUAGE sql IMMUTABLE AS 'SELECT NULL::jsonb'
    """)
    drained.execute("SELECT inturn.merge_rule('orders', 'put in', 'it''s', 'sql:app.combine')")
    other = f"other_{drained.name}"
    drained.administer(f"CREATE ROLE {other}")
    try:
        _check_advice_for(drained, other)
    finally:
        drained.administer(f"REASSIGN OWNED BY {other} TO {OWNER}; DROP ROLE {other}")


def _check_advice_for(drained: Database, other: str) -> None:
    for function, again in (
        ("apply_order", "topic set --target sql:app.apply_order orders"),
        ("combine", "topic merge orders 'put in' 'it'\"'\"'s' sql:app.combine"),
    ):
        drained.administer(f"ALTER FUNCTION app.{function} OWNER TO {other}")
        answer, out = explained(drained, "a", "target_refused")
        assert f"belongs to {other} now" in answer["says"]
        assert f"$ inturn {again}" in out
        doctor = run_inturn(drained.dsn, "doctor")[1]
        assert f"By a deployer, who has looked at what it does now: inturn {again}\n" in doctor
        code, _, err = run_inturn(drained.dsn, *shlex.split(again))
        assert (code, err) == (0, "")
        assert asked(drained, "a")["cause"] == "no_applier"


def test_an_idle_key_with_something_pending_is_called_broken(drained: Database) -> None:
    append(drained, "a")
    drained.execute("UPDATE inturn.key_cursor SET ready_at = NULL")
    assert "$ inturn verify --topic orders --key a" in explained(drained, "a", "broken")[1]


# Leases.


@pytest.fixture
def leased(witness: Database) -> Database:
    """Key a with two commands, which `node:7` has by lease for ten minutes."""
    witness.execute("UPDATE inturn.topic SET lease = '10 minutes'")
    append(witness, "a")
    append(witness, "a")
    witness.execute(
        "SELECT * FROM inturn.claim(topics => '{orders}', max_keys => 1, lease => NULL, applier => 'node:7')"
    )
    return witness


def test_an_applier_has_it_by_lease(leased: Database) -> None:
    answer, out = explained(leased, "a", "leased")
    claimed_at, lease_until = leased.execute("SELECT claimed_at, lease_until FROM inturn.key_cursor")[0]
    assert answer["since"] == claimed_at
    details = answer["details"]
    assert (details["applier"], details["seq"], details["attempt"], details["epoch"]) == ("node:7", 1, 1, 1)
    assert details["until"] == leased.value("SELECT to_jsonb(%s::timestamptz)", [lease_until])
    assert re.match(r"a of topic orders: leased for \d+s, for another 9m\n", out)
    assert "node:7 has it by lease until" in out
    assert "is at command 1 (insert), attempt 1 of 5." in " ".join(out.split())
    leased.execute("SELECT inturn.advance('orders', 'a', 1, 1)")
    assert explained(leased, "a", "leased")[0]["details"]["seq"] == 2
    leased.execute("SELECT inturn.advance('orders', 'a', 1, 2)")
    assert "has recorded every command it can apply" in explained(leased, "a", "leased")[0]["says"]
    leased.execute("SELECT inturn.release('orders', 'a', 1)")
    explained(leased, "a", "nothing_pending")


def test_a_lease_of_an_applier_that_is_gone_is_ended_by_what_is_advised(leased: Database) -> None:
    _, out = explained(leased, "a", "leased")
    assert "$ psql \"$INTURN_DSN\" -c \"SELECT inturn.release('orders', 'a', 1)\"\n" in out
    for key in ("a", "it's {key} $"):
        append(leased, key)
        leased.execute("SELECT FROM inturn.claim('{orders}', 9, '1 hour', 'node:7')")
        _, release = asked(leased, key)["to_do"].splitlines()
        *psql, statement = shlex.split(release.partition("  # ")[0])
        assert psql == ["psql", "$INTURN_DSN", "-c"]
        assert re.search(r"[{$!`]", statement) is None
        with leased.connect(user=APPLIER) as applier:
            applier.execute(statement.encode())
        assert asked(leased, key)["cause"] in {"no_applier", "queued"}


def test_an_applier_that_announced_itself_is_named_with_its_place_and_said_to_be_gone(
    leased: Database,
) -> None:
    announce = "SELECT inturn.announce_applier('node:7', '{orders}', 'b1', 4711, '0001')"
    applier = leased.connect(user=APPLIER)
    applier.execute(announce)
    answer, out = explained(leased, "a", "leased")
    assert (answer["details"]["host"], answer["details"]["alive"]) == ("b1", True)
    assert "node:7 (host b1, pid 4711) has it by lease" in " ".join(out.split())
    listed = "SELECT alive, doing, topic, key, seq, leases, pid FROM inturn.list_appliers()"
    assert leased.execute(listed) == [(True, "applying", "orders", "a", 1, 1, 4711)]
    applier.close()
    until(lambda: leased.execute(listed)[0][:2] == (False, "gone"), "its session gone")
    _, out = explained(leased, "a", "leased")
    assert "That applier is gone: it was last seen at" in " ".join(out.split())


def test_an_applier_that_never_announced_itself_is_known_by_its_leases(leased: Database) -> None:
    listed = leased.execute("SELECT applier, topics, alive, doing, key, leases FROM inturn.list_appliers()")
    assert listed == [("node:7", ["orders"], True, "applying", "a", 1)]
    append(leased, "b")
    answer, _ = explained(leased, "b", "queued")
    assert [each["applier"] for each in answer["details"]["appliers"]] == ["node:7"]


def test_a_lease_that_ran_out_is_said(leased: Database) -> None:
    """And what comes of it: the first loss is a suspicion, the next one a failed attempt."""
    run_out = "UPDATE inturn.key_cursor SET lease_until = clock_timestamp(), ready_at = clock_timestamp()"
    leased.execute(run_out)
    answer, _ = explained(leased, "a", "no_applier")
    assert "The lease of node:7 ran out at" in answer["says"]
    assert "takes it alone, and counts no attempt" in answer["says"]
    leased.execute(
        "SELECT * FROM inturn.claim(topics => '{orders}', max_keys => 1, lease => NULL, applier => 'node:8')"
    )
    answer, _ = explained(leased, "a", "leased")
    assert (answer["details"]["applier"], answer["details"]["attempt"]) == ("node:8", 1)
    leased.execute(run_out)
    answer, _ = explained(leased, "a", "no_applier")
    assert "counts that as a failed attempt" in answer["says"]


def test_a_pause_goes_before_the_lease_and_says_that_the_command_in_hand_is_finished(
    leased: Database,
) -> None:
    leased.execute("SELECT inturn.pause('orders', 'a', 'audit')")
    answer, _ = explained(leased, "a", "paused")
    assert ". node:7 has it by lease until " in answer["says"]
    leased.execute("SELECT inturn.resume('orders', 'a')")
    leased.execute("SELECT inturn.pause_topic('orders', 'audit')")
    assert "node:7 has it by lease" in explained(leased, "a", "topic_paused")[0]["says"]


# Numbers that callers give.


@pytest.fixture
def gap(witness: Database) -> Database:
    """Key a of topic `given`: 1 is applied, 2 is missing, 3 and 5 are there."""
    witness.execute(
        "SELECT inturn.create_topic('given', 'sql:app.apply_order', numbering => 'given',"
        " gap_timeout => '1 hour')"
    )
    for seq in (1, 3, 5):
        give(witness, seq)
    witness.execute("CALL inturn.apply()")
    return witness


def give(session: Database | Session, seq: int) -> None:
    session.execute("SELECT inturn.append('given', 'a', 'insert', seq => %s)", [seq])


def test_it_waits_for_a_number_that_nobody_appended(gap: Database) -> None:
    answer, out = explained(gap, "a", "waiting", "given")
    assert answer["since"] == gap.value("SELECT waiting_at FROM inturn.key_cursor")
    details = answer["details"]
    assert [details[name] for name in ("seq", "until_seq", "later", "last_seq")] == [2, 2, 2, 5]
    text = " ".join(out.split())
    assert "It waits for command 2, which nobody has appended. 2 later ones are there, 3 to 5." in text
    assert re.search(r"It will be held at [\d :-]+ UTC if command 2 does not come\.", text)
    assert "inturn fill-gap --topic given --seq 2 --reason TEXT a" in text
    words = answer["to_do"].replace("TEXT", "lost").replace("{topic}", "given").replace("{key}", "a").split()
    code, out, err = run_inturn(gap.dsn, *words[1 : words.index("#")])
    assert (code, err) == (0, "")
    assert out == "given a: waiting -> ready; missing command 2 is skipped\n"
    gap.execute("CALL inturn.apply()")
    give(gap, 9)
    answer, _ = explained(gap, "a", "waiting", "given")
    assert "It waits for command 4, which" in answer["says"]
    gap.execute("SELECT inturn.fill_gap('given', 'a', 4, 'lost')")
    gap.execute("CALL inturn.apply()")
    assert "It waits for commands 6 to 8, which" in explained(gap, "a", "waiting", "given")[0]["says"]


def test_the_missing_number_is_being_appended(gap: Database) -> None:
    caller = caller_of(gap)
    give(caller, 2)
    answer, _ = explained(gap, "a", "appending", "given")
    assert (backends(answer), answer["details"]["next_seq"]) == ([caller.pid], 2)
    assert "Its next command, 2, is being appended" in answer["says"]
    caller.rollback()
    assert gap.value("SELECT count(*) FROM inturn.command_log") == 3
    give(caller, 4)
    answer, out = explained(gap, "a", "waiting", "given")
    assert backends(answer) == [caller.pid]
    assert "Callers have to wait for an open transaction of another command" in " ".join(out.split())
    caller.commit()


def test_of_a_key_whose_callers_number_another_number_is_being_appended(gap: Database) -> None:
    for seq in (2, 4):
        give(gap, seq)
    gap.execute("CALL inturn.apply()")
    caller = caller_of(gap)
    give(caller, 8)
    answer, _ = explained(gap, "a", "appending", "given")
    assert answer["details"]["next_seq"] is None
    assert answer["says"].startswith("A command of it is being appended")
    caller.rollback()
    explained(gap, "a", "nothing_pending", "given")


def test_a_key_that_waited_too_long_is_held_and_says_so(gap: Database) -> None:
    gap.execute("SELECT inturn.set_topic('given', gap_timeout => '1 ms')")
    gap.execute("UPDATE inturn.key_cursor SET ready_at = clock_timestamp()")
    gap.execute("CALL inturn.apply()")
    answer, out = explained(gap, "a", "held", "given")
    assert answer["since"] == gap.value("SELECT held_at FROM inturn.key_cursor")
    assert (
        "It waited for command 2, which nobody appended, for longer than the topic's gap_timeout"
        in " ".join(out.split())
    )
    assert [line.split()[1] for line in answer["to_do"].splitlines()] == ["retry", "fill-gap"]
    caller = caller_of(gap)
    give(caller, 2)
    explained(gap, "a", "appending", "given")


def test_a_pause_goes_before_a_gap_and_says_that_one_is_there(gap: Database) -> None:
    gap.execute("SELECT inturn.pause('given', 'a')")
    answer, _ = explained(gap, "a", "paused", "given")
    assert answer["says"].endswith("Its next command, 2, is missing too")


def test_where_nothing_may_be_written_a_gap_is_explained_too(gap: Database) -> None:
    caller = caller_of(gap)
    give(caller, 2)
    reader = gap.connect(user=OWNER, options="-c default_transaction_read_only=on")
    rows = reader.execute("SELECT cause, says FROM inturn.why('given', 'a')").fetchall()
    assert [cause for cause, _ in rows] == ["waiting"]
    assert "open transaction" in rows[0][1]
