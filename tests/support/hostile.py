"""Arguments that nobody means, for everything that takes some; and whether a database is as it was."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.database import Database

#: Topics and keys that are there, see `shop`, beside what is not.
TOPICS = ("orders", "given", "posts", "merged", "paused", "nowhere", "")
KEYS = ("x", "y", "held", "z", "", "inturn.x")
#: What means something somewhere: states, orders, targets, rules, roles, filters.
WORDS = (
    "held", "retrying", "ready,held", "idle", "lag", "age", "attempts", "python", "sql:app.apply_order",
    "sql:pg_catalog.lower", "sql:nowhere.nothing", "sql:", "http://b.invalid/{key}",
    "https://u:p@b.invalid/?token=x", "assigned", "given", "arrival", "hold", "skip", "cancel-rest",
    "last", "nothing", "merge", "both", "insert", "update", "caller", "applier", "operator", "because",
    "me", "base", "-infinity", "infinity", "now", "1 day", "9999-12-31",
)  # fmt: skip
#: Empty, blank, long, cut off, foreign, and what a shell, SQL, LIKE, JSON or a terminal would obey.
HOSTILE = (
    "", " ", "\u2003", "\\", "%\\", "_", "%", "'", '"', "'; DROP TABLE inturn.command_log; --", "$$",
    "{", "}", "{}", "[1", "null", "\ud7ff", "\U0001f600", "\u202e", "\x1b[2J", "\x01", "\n", "a\nb",
    "x" * 129, "x" * 513, "\u00e9" * 300, "x" * 5000, "-1", "0", "1e400", "NaN", "inf",
    "9223372036854775808", "-9223372036854775809", "178000000 years", "24:60", "--", "-", "-x", "NULL",
    "inturn.replay:1", "pg_temp.f", "../../etc/passwd", "$(id)", "%s", "%(x)s", "{0.__class__}",
)  # fmt: skip
NUMBERS = (0, 1, 2, 3, 7, -1, 100, 2**31 - 1, -(2**31))
LARGE = (2**31, 2**53, 2**63 - 2, 2**63 - 1, -(2**63))
SPANS = (
    "0",
    "1 microsecond",
    "1 second",
    "-1 second",
    "1 day",
    "400 days",
    "1 mon",
    "178000000 years",
    "-178000000 years",
)
TIMES = (
    "now",
    "epoch",
    "-infinity",
    "infinity",
    "4713-01-01 BC",
    "9999-12-31",
    "10000-01-01",
    "294276-12-31",
    "tomorrow",
)
DOCUMENTS = (
    "{}",
    "null",
    "0",
    '"x"',
    "[]",
    '{"a": {"b": [1, 2.5, "c"]}}',
    "1e300",
    "[" * 200 + "]" * 200,
    '"{\\"a\\": 1}"',
)

#: Characters that PostgreSQL stores, and of those the odd ones.
texts = st.one_of(
    st.sampled_from(WORDS),
    st.sampled_from(HOSTILE),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20),
)
topics = st.one_of(st.sampled_from(TOPICS[:5]), st.sampled_from(TOPICS), texts)
keys = st.one_of(st.sampled_from(KEYS[:4]), st.sampled_from(KEYS), texts)
integers = st.one_of(st.sampled_from(NUMBERS), st.integers(-(2**31), 2**31 - 1))
bigints = st.one_of(st.sampled_from(NUMBERS + LARGE), st.integers(-(2**63), 2**63 - 1))
floats = st.one_of(
    st.sampled_from((0.0, 0.001, 1.0, -1.0, float("nan"), float("inf"), float("-inf"), 1e308)), st.floats()
)


def attack(examples: int, *arguments: Any) -> Callable[[Callable[..., None]], None]:
    """Return what calls a function with so many arguments of each strategy, the same ones in every run."""

    def run(function: Callable[..., None]) -> None:
        of_hypothesis = settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=True,
            print_blob=False,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        )
        attacked: Any = given(*arguments)
        called: Any = of_hypothesis(attacked(function))
        called()

    return run


#: What says that somebody is there, or waits, or where a pass began: written also for who is refused later.
_PASSING = {"waiter", "listener", "applier", "saved_pass", "arrival_pass", "prune_pass"}


class Digest:
    """What the tables of the schema, and those of the targets, hold."""

    def __init__(self, database: Database) -> None:
        self._database = database
        names = database.execute("""
            SELECT c.oid::regclass::text, c.relname::text FROM pg_class c
            WHERE c.relnamespace IN ('inturn'::regnamespace, 'app'::regnamespace) AND c.relkind = 'r'
            ORDER BY 1""")
        tables = [table for table, name in names if name not in _PASSING]
        self._query = " UNION ALL ".join(
            f"SELECT '{table}', count(*), sum(hashtextextended(t::text, 0)) FROM {table} t"
            for table in tables
        )

    def read(self) -> list[tuple[Any, ...]]:
        """Return how many rows each table has, and a sum of their hashes."""
        return self._database.execute(self._query)


def shop(witness: Database) -> Database:
    """Fill a database: topics of every numbering, a merge rule, keys that are applied, held and pending."""
    witness.execute("""
        GRANT USAGE ON SCHEMA app TO PUBLIC;
        GRANT ALL ON ALL TABLES IN SCHEMA app TO PUBLIC;
        GRANT ALL ON ALL SEQUENCES IN SCHEMA app TO PUBLIC;
        SELECT inturn.create_topic('given', 'sql:app.apply_order', numbering => 'given'),
               inturn.create_topic('posts', 'sql:app.apply_order', numbering => 'arrival'),
               inturn.create_topic('merged', 'sql:app.apply_order', max_attempts => 1),
               inturn.create_topic('paused', 'python'), inturn.pause_topic('paused'),
               inturn.merge_rule('merged', 'insert', 'update', 'last');
        SELECT inturn.append(t, k, n) FROM unnest('{orders,merged,paused}'::text[]) t,
            unnest('{x,x,y,held}'::text[], '{insert,update,insert,fail}'::text[]) c (k, n);
        SELECT inturn.append('given', 'x', 'insert', seq => 1),
               inturn.append('given', 'y', 'insert', seq => 3), inturn.append('posts', 'x', 'insert');
    """)
    witness.execute("CALL inturn.apply()")
    witness.execute("SELECT inturn.append(t, 'z', 'insert') FROM unnest('{orders,merged,posts}'::text[]) t")
    return witness


def unbroken(database: Database) -> list[tuple[Any, ...]]:
    """Return the promises that are broken: none."""
    return database.execute("SELECT v.* FROM inturn.verify_topics() t (name), inturn.verify(t.name) v")


def one_line(text: str) -> bool:
    """Return whether an error's text is a line that can be printed, and says something."""
    return bool(text.strip()) and not re.search(r"[\n\r\x00-\x08\x1b]", text)
