"""A steady load that is pruned and vacuumed stays as large as it is: no table and no index grows for ever."""

from __future__ import annotations

from support.combinations import sizes
from support.database import Database

#: Of each cycle; what the last two have appended is kept, and keys that came in none of them are forgotten.
_KEYS, _EACH = 20, 15
_SETTLED = 6
_BLOCKS = """
    SELECT relname::text, pg_relation_size(oid) / 8192 FROM pg_class
    WHERE relnamespace = 'inturn'::regnamespace AND relkind IN ('r', 'i')
"""
_TABLES = """
    SELECT relname::text FROM pg_class WHERE relnamespace = 'inturn'::regnamespace AND relkind = 'r'
"""


def _sizes(database: Database) -> dict[str, int]:
    """Return the blocks of each table and index, and the rows of each table."""
    count = "SELECT 'rows of {0}', count(*) FROM inturn.{0}"
    rows = " UNION ALL ".join(count.format(name) for (name,) in database.execute(_TABLES))
    return dict(database.execute(f"{_BLOCKS} UNION ALL {rows}"))


def _cycle(database: Database, number: int) -> None:
    """Append and apply as much as in each, to keys that come again and to one that does not."""
    database.execute(
        "SELECT inturn.append('orders', k, 'insert', idempotency_key => %s || '-' || n)"
        " FROM unnest(ARRAY(SELECT 'k' || i FROM generate_series(1, %s) i) || ('new' || %s)) k,"
        " generate_series(1, %s) n",
        [str(number), _KEYS, str(number), _EACH],
    )
    database.execute("CALL inturn.apply()")


@sizes("cycles", 15, rest=60)
def test_nothing_grows_once_as_much_goes_as_comes(witness: Database, cycles: int) -> None:
    witness.execute("SELECT inturn.set_topic('orders', batch_commands => 5)")
    keep = (
        "UPDATE inturn.topic SET retain = clock_timestamp() - %s, forget_idle_after = clock_timestamp() - %s"
    )
    vacuum = "VACUUM " + ", ".join(f"inturn.{name}" for (name,) in witness.execute(_TABLES))
    ends, seen = [], []
    for number in range(cycles):
        _cycle(witness, number)
        ends.append(witness.value("SELECT clock_timestamp()"))
        if number >= 2:
            witness.execute(keep, [ends[-3], ends[-3]])
            witness.execute("CALL inturn.prune()")
        witness.execute(vacuum)
        seen.append(_sizes(witness))
    most = {name: max(each[name] for each in seen[:_SETTLED]) for name in seen[0]}
    # Pages split now here, now there; what is not used again is a page or more in each cycle.
    bounds = {name: size if name.startswith("rows") else 1.5 * size + 1 for name, size in most.items()}
    grown = {name: [each[name] for each in seen] for name in most if seen[-1][name] > bounds[name]}
    assert grown == {}
    assert most["rows of command_log"] >= 2 * _KEYS * _EACH
