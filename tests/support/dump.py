"""What pg_dump says of a schema, to compare two ways of building it."""

from __future__ import annotations

from support.database import Database


def dump(database: Database, schema: str = "inturn") -> str:
    """Return the definition of a schema as pg_dump writes it, grants and comments included."""
    text = database.server.run("pg_dump", "--schema-only", "--schema", schema, "--dbname", database.dsn)
    # \restrict and \unrestrict carry a random token.
    kept = [line for line in text.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))]
    return "\n".join(kept)
