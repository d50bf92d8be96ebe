"""Pruning beside a snapshot that is held for days: what it keeps of what went before is not walked over."""

from __future__ import annotations

from support.database import Database
from support.plans import buffers, explain
from support.race import append, replaced
from support.roles import OPERATOR, OWNER

_APPLY = "CALL inturn.apply()"
#: From where a prune reads a key's history: in a function, the bound.
_BOUNDS = (
    ("_find_cuts", r" AND w\.epoch >= f\.epoch"),
    ("_find_cuts", r" AND w\.epoch >= coalesce\(s\.history_epoch, 0\)"),
    ("_cut_commands", r" AND l\.seq >= c\.from_seq"),
    ("_cut_turns", r" AND u\.epoch >= c\.from_epoch"),
    ("_cut_history", r" AND l\.seq >= coalesce\(cut\.kept_to \+ 1, cut\.kept_from, cut\.from_seq\)"),
)


def _hold_snapshot(database: Database) -> None:
    holder = database.session()
    holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    holder.execute("SELECT FROM inturn.schema_version")


def test_a_prune_does_not_walk_over_versions_of_keys_that_a_held_snapshot_keeps(witness: Database) -> None:
    for number in range(20):
        append(witness, f"k{number}")
    witness.execute(_APPLY)
    _hold_snapshot(witness)
    batch = "SELECT * FROM inturn.prune_batch('orders', older_than => '1 day')"
    with witness.connect(user=OPERATOR) as operator:
        explain(operator, batch)
        few = buffers(explain(operator, batch))
        for _ in range(200):
            witness.execute("UPDATE inturn.key_sequence SET kept_seq = NULL")
        assert buffers(explain(operator, batch)) < 2 * few


def _turns(database: Database, number: int) -> None:
    """Apply so many commands of key deep, each in a turn of its own."""
    database.execute("SELECT inturn.append('orders', 'deep', 'insert') FROM generate_series(1, %s)", [number])
    database.execute(_APPLY)


def _walked(database: Database) -> int:
    """Apply another command; return how many entries of indexes a prune reads that removes it."""
    _turns(database, 1)
    counter = (
        "SELECT pg_stat_get_xact_tuples_returned('inturn.turn_pkey'::regclass)"
        " + pg_stat_get_xact_tuples_returned('inturn.command_log_pkey'::regclass)"
    )
    prune = "SELECT commands FROM inturn.prune_batch('orders', older_than => '0')"
    with database.connect(user=OWNER, autocommit=False) as connection:
        before, removed, after = (
            connection.execute(each).fetchall()[0][0] for each in (counter, prune, counter)
        )
        connection.commit()
    assert removed == 1
    return int(after - before)


def test_a_prune_walks_over_nothing_that_others_have_removed_of_a_history(witness: Database) -> None:
    witness.execute("SELECT inturn.set_topic('orders', batch_commands => 1)")
    _hold_snapshot(witness)
    _turns(witness, 300)
    witness.execute("CALL inturn.prune(older_than => '0')")
    assert _walked(witness) < 50
    for function, bound in _BOUNDS:
        with replaced(witness, function, (bound, "")):
            assert _walked(witness) >= 300, (function, bound)


def test_what_was_forgotten_has_a_new_version_only_where_it_rises(witness: Database) -> None:
    """Beside a held snapshot the first append to any key would walk over all of them."""
    witness.execute("UPDATE inturn.topic SET retain = '0', forget_idle_after = '0'")
    # Numbers and turns: a 3 and 1, b 2 and 2, c 1 and 1.
    witness.execute("SELECT inturn.append('orders', k, 'insert') FROM unnest('{a,a,a,b,c}'::text[]) k")
    witness.execute(_APPLY)
    append(witness, "b")
    witness.execute(_APPLY)
    marks = []
    for key in "abc":
        others = witness.session(user=OWNER)
        others.execute("SELECT FROM inturn.key_sequence WHERE key <> %s FOR UPDATE", [key])
        assert witness.execute("SELECT forgotten FROM inturn.prune_batch('orders')") == [(1,)]
        others.rollback()
        marks += witness.execute("SELECT seq, epoch, ctid FROM inturn.forgotten")
    assert [mark[:2] for mark in marks] == [(3, 1), (3, 2), (3, 2)]
    assert marks[0][2] != marks[1][2] == marks[2][2]
