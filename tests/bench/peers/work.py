"""What every peer has to do: the loads, and the one UPDATE of a command, which also checks the order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

#: A row a key. Counted is every command that was not the successor of its key's last one.
TABLE = """
CREATE SCHEMA app;
CREATE TABLE app.account (
    key text PRIMARY KEY,
    last_number bigint NOT NULL DEFAULT 0,
    applied bigint NOT NULL DEFAULT 0,
    out_of_order bigint NOT NULL DEFAULT 0,
    last_at timestamptz);
CREATE TABLE app.run (begun_at timestamptz NOT NULL DEFAULT clock_timestamp());
"""

#: What a process does when it has started and its workers have not: from then on its time is measured.
BEGIN = "INSERT INTO app.run DEFAULT VALUES"

_EFFECT = """
UPDATE app.account
SET last_number = {number},
    applied = applied + 1,
    out_of_order = out_of_order + CASE WHEN {number} = last_number + 1 THEN 0 ELSE 1 END,
    last_at = clock_timestamp()
WHERE key = {key}
"""
#: The effect of a command, as psycopg writes parameters.
EFFECT = _EFFECT.format(key="%(key)s", number="%(number)s::bigint")
#: The same as PostgreSQL numbers them, which is what Node's driver takes.
EFFECT_NUMBERED = _EFFECT.format(key="$1", number="$2::bigint")
#: The same in a function that gets the command of an inturn topic.
EFFECT_OF_COMMAND = _EFFECT.format(key="command.key", number="(command.payload ->> 'number')::bigint")

#: How many commands took effect, how many of these out of order, and in how many seconds.
RESULT = """
SELECT coalesce(sum(applied), 0)::bigint,
       coalesce(sum(out_of_order), 0)::bigint,
       extract(epoch FROM max(last_at) - (SELECT max(begun_at) FROM app.run))::float8
FROM app.account
"""

#: How many commands are sent in a transaction at most.
CHUNK = 1000


@dataclass(frozen=True, slots=True)
class Workload:
    """A load: so many keys, each with so many commands, all there before the first is applied."""

    name: str
    keys: int
    depth: int

    @property
    def commands(self) -> int:
        return self.keys * self.depth

    def chunks(self) -> Iterator[list[tuple[str, int]]]:
        """Give the commands, each a key and its number, in the transactions in which they are sent.

        No transaction has two commands of one key: some peers order by the time of the transaction.
        """
        for number in range(1, self.depth + 1):
            for first in range(0, self.keys, CHUNK):
                yield [(f"key-{key}", number) for key in range(first, min(first + CHUNK, self.keys))]

    def scaled(self, share: float) -> Workload:
        """Return a smaller load of the same kind: fewer keys, or where there is one, fewer commands."""
        if share == 1:
            return self
        name = f"{share:g} of: {self.name}"
        if self.keys == 1:
            return replace(self, name=name, depth=max(1, round(self.depth * share)))
        return replace(self, name=name, keys=max(1, round(self.keys * share)))


WORKLOADS = (
    Workload("1,000 keys, 50 deep", 1_000, 50),
    Workload("20,000 keys, one command each", 20_000, 1),
    Workload("one key", 1, 5_000),
)
