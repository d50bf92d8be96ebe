"""What pg_dump says of a schema, to compare two ways of building it."""

from __future__ import annotations

import re

from support.database import Database


def dump(database: Database, schema: str = "inturn") -> str:
    """Return the definition of a schema as pg_dump writes it, grants and comments included."""
    dsn = database.server.dsn(database.name, user="postgres")
    text = database.server.run("pg_dump", "--schema-only", "--schema", schema, "--dbname", dsn)
    # \restrict and \unrestrict carry a random token.
    kept = [line for line in text.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))]
    # The tests' own trigger is no part of the schema, see support.door.
    return re.sub(
        r"--\n-- Name: key_cursor put_key; Type: TRIGGER.*?;\n\n\n(?=--\n)",
        "",
        "\n".join(kept),
        flags=re.DOTALL,
    )
