"""Keys of which only a hint tells: everybody who looks says what the next applier will find, in one word."""

from __future__ import annotations

import json

import pytest
from support.database import Database, until
from support.process import run_inturn

#: What a key has, what a caller then appends on a snapshot, and the state that everybody sees, before and
#: after an applier has looked.
SCENES = {
    "idle": (1, 2, "ready"),
    "idle, and a later one comes": (1, 3, "waiting"),
    "waiting": (2, 1, "ready"),
    "waiting, and a later one comes": (2, 3, "waiting"),
    "held at a gap": (2, 1, "ready"),
    "held at a gap, and a later one comes": (2, 3, "held"),
    "paused": (2, 1, "paused"),
}
#: The causes of why that a state may have here.
CAUSES = {
    "ready": {"no_applier", "queued"},
    "waiting": {"waiting"},
    "held": {"held"},
    "paused": {"paused"},
}


@pytest.fixture
def given(witness: Database) -> Database:
    """A key for each scene, in which callers with old snapshots have appended and nobody has looked."""
    witness.execute("SELECT inturn.create_topic('given', 'sql:app.apply_order', numbering => 'given')")
    witness.execute("SELECT inturn.set_topic('given', gap_timeout => '1 ms')")
    put = "SELECT inturn.append('given', %s, 'insert', seq => %s)"
    for scene, (first, _, _) in SCENES.items():
        if scene.startswith(("held", "idle")):
            witness.execute(put, [scene, first])
    stored = "SELECT count(*) FROM inturn.key_cursor WHERE held_at IS NOT NULL OR applied_seq = 1"
    until(lambda: (witness.execute("CALL inturn.apply()"), witness.value(stored) == 4)[1], "held, and idle")
    witness.execute("SELECT inturn.set_topic('given', gap_timeout => '1 hour')")
    for scene, (first, _, _) in SCENES.items():
        if not scene.startswith(("held", "idle")):
            witness.execute(put, [scene, first])
    witness.execute("SELECT inturn.pause('given', 'paused', 'a test')")
    caller = witness.session()
    caller.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    for scene, (_, then, _) in SCENES.items():
        caller.execute(put, [scene, then])
    caller.commit()
    return witness


def _words(database: Database, key: str) -> set[str]:
    """Return the words that are used for the state of a key, all in all."""
    said = {
        *database.execute("SELECT inturn.key_state(c) FROM inturn.key_cursor c WHERE key = %s", [key]),
        *database.execute("SELECT state FROM inturn.list_keys('given', of_like => %s)", [key]),
        *database.execute(
            "SELECT state FROM inturn.list_keys('given', sort_by => 'lag') WHERE key = %s", [key]
        ),
        *database.execute("SELECT state FROM inturn.progress('given', %s)", [key]),
        *database.execute("SELECT state FROM inturn.wait_state('given', %s)", [key]),
    }
    (shown,) = json.loads(run_inturn(database.dsn, "show", key, "--json")[1])
    assert run_inturn(database.dsn, "show", key)[0] == 0
    return {word for (word,) in said} | {shown["state"]}


def test_a_key_that_only_a_hint_tells_of_has_one_state_for_everybody(given: Database) -> None:
    for taken in (False, True):
        if taken:  # what was seen is what an applier finds
            given.execute("SELECT inturn._take_hints('{given}')")
        for scene, (_, _, state) in SCENES.items():
            assert _words(given, scene) == {state}, (scene, taken)
            cause = given.value("SELECT cause FROM inturn.why('given', %s)", [scene])
            assert cause in CAUSES[state], (scene, taken)
            for listed in CAUSES:
                keys = given.execute("SELECT key FROM inturn.list_keys('given', %s)", [listed])
                assert ((scene,) in keys) == (listed == state), (scene, listed, taken)
        states = [state for _, _, state in SCENES.values()]
        counts = [states.count(state) for state in CAUSES]
        row = "SELECT ready, waiting, held, paused FROM inturn.topic_status('given')"
        assert given.execute(row) == [tuple(counts)], taken
        metric = (
            "SELECT value FROM inturn.topic_metrics() WHERE metric = 'inturn_keys' AND labels = %s::jsonb"
        )
        for state, count in zip(CAUSES, counts, strict=True):
            labels = json.dumps({"topic": "given", "state": state})
            assert given.value(metric, [labels]) == count, (state, taken)


def test_a_refusal_names_the_state_that_everybody_sees(given: Database) -> None:
    said = run_inturn(given.dsn, "retry", "waiting", "--topic", "given", "--reason", "a test")[2]
    assert "is ready: there is no failed command to retry" in said
