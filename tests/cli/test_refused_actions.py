"""An operator's action that makes no sense is refused with what would: in the words of a shell, at night."""

from __future__ import annotations

import pytest
from support.database import Database
from support.process import run_inturn


@pytest.fixture
def night(witness: Database) -> Database:
    """Keys that each wait for something else: a number, a number for too long, their topic, numbering."""
    for topic, timeout in (("gap", "1 hour"), ("late", "1 ms")):
        witness.execute(
            "SELECT inturn.create_topic(%s, 'sql:app.apply_order', numbering => 'given', gap_timeout => %s)",
            [topic, timeout],
        )
        witness.execute("SELECT inturn.append(%s, %s, 'insert', seq => 2)", [topic, topic])
    witness.execute("SELECT inturn.create_topic('still'), inturn.append('still', 'still', 'insert')")
    witness.execute("SELECT inturn.pause_topic('still')")
    witness.execute("SELECT inturn.create_topic('new', numbering => 'arrival')")
    witness.execute("SELECT inturn.append('new', 'new', 'insert')")
    witness.execute("CALL inturn.apply()")
    assert witness.value("SELECT held_at IS NOT NULL FROM inturn.key_cursor WHERE key = 'late'")
    return witness


#: What is typed, and how the refusal ends.
WRONG = {
    "skip gap --seq 1 --reason r": "waits for command 1, which nobody has appended."
    " To go on without it, use fill-gap",
    "retry gap": "Append the command that it waits for, or go on without it by fill-gap",
    "resume late": "It is held at a missing number: retry it to wait once more, or use fill-gap",
    "resume still": "is ready, not paused. Its whole topic is paused: resume the topic, without a key",
    "retry new": "the commands of key new have no number yet, so nothing can be done to it."
    " What they wait for says: inturn why new",
    "retry nobody": "no topic has a key nobody. Look for keys like it with: inturn why nobody",
}


def test_a_retry_at_a_gap_says_what_the_key_waits_for_and_how_to_go_on(night: Database) -> None:
    night.execute("UPDATE inturn.topic SET gap_timeout = '1 hour' WHERE name = 'late'")
    for line in ("retry late", "retry --all --topic late"):
        code, out, _ = run_inturn(night.dsn, *line.split(), "--dry-run")
        assert code == 0
        assert out == (
            "dry run, nothing changed: late late: held -> ready; it waits for command 1 once more."
            " To go on without it: inturn fill-gap --seq 1 --reason TEXT late --topic late\n"
        )
    said = run_inturn(night.dsn, "retry", "late")[1]
    night.execute("CALL inturn.apply()")
    assert night.value("SELECT waiting_at IS NOT NULL FROM inturn.key_cursor WHERE key = 'late'")
    assert run_inturn(night.dsn, *said.partition(": inturn ")[2].split())[0] == 0
    night.execute("CALL inturn.apply()")
    assert night.value("SELECT applied_seq FROM inturn.progress('late', 'late')") == 2


def test_the_wrong_action_is_refused_with_the_right_one(night: Database) -> None:
    for line, ends in WRONG.items():
        code, out, err = run_inturn(night.dsn, *line.split())
        assert (code, out) == (1, ""), line
        assert err.endswith(f"{ends}\n"), (line, err)
