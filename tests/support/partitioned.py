"""A schema whose log and history are partitioned by the hash of the key, as limits.md allows."""

from __future__ import annotations

import re

from inturn.schema.install import upgrade_script
from support import roles
from support.database import Database

#: The tables that may be: no function keeps the place of a row of theirs longer than a statement.
TABLES = ("command_log", "turn")


def script(partitions: int) -> str:
    """Return the script that installs it so."""
    text = upgrade_script()
    for table in TABLES:
        text, found = re.subn(
            rf"(CREATE TABLE inturn\.{table} \([^;]*\n\)) (WITH \([^;]*\));",
            lambda made, table=table: (  # type: ignore[misc]
                f"{made[1]} PARTITION BY HASH (key);"
                + "".join(
                    f"\nCREATE TABLE inturn.{table}_{number} PARTITION OF inturn.{table}"
                    f" FOR VALUES WITH (MODULUS {partitions}, REMAINDER {number}) {made[2]};"
                    for number in range(partitions)
                )
            ),
            text,
        )
        assert found == 1, table
    return text


def install(database: Database, partitions: int) -> None:
    """Install it instead of `Database.install`."""
    with database.connect(user=roles.OWNER) as owner:
        owner.execute(script(partitions).encode())
    database.execute(roles.THEIR_TABLES)
