"""Command lines that messages advise: each is completed here, so that it works where it is pasted."""

from __future__ import annotations

import re
from shlex import quote

DEFAULT_SCHEMA = "inturn"

#: The commands that work on a schema, of all that the command line has.
COMMANDS = (
    *("append", "wait", "apply", "demo", "upgrade", "downgrade", "topic", "prune"),
    *("status", "keys", "why", "show", "doctor", "metrics", "verify"),
    *("retry", "skip", "fill-gap", "amend", "replay", "pause", "resume", "cancel-rest"),
)
_LINE = rf"(?<![\w-])inturn(?: --schema \w+)?(?= (?:{'|'.join(COMMANDS)})\b)"
_IN_SQL = re.compile(_LINE)
# What is quoted for a shell is what a user has given, such as a key: it stays as it is.
_IN_TEXT = re.compile(rf"""(?<!\S)(?:'[^']*'|"'")+|(?P<line>{_LINE})""")


def program(schema: str) -> str:
    """Return how a command line begins that works on a schema."""
    return "inturn" if schema == DEFAULT_SCHEMA else f"inturn --schema {quote(str(schema))}"


def advised(text: str, schema: str) -> str:
    """Return a text of ours in which every command line of inturn names the schema.

    Args:
        text: it may quote for a shell what users have given, but hold nothing else of theirs.
    """
    return begin(text, program(schema))


def begin(text: str, beginning: str) -> str:
    """Return a text of ours in which every command line of inturn begins so; see advised and program."""
    return _IN_TEXT.sub(lambda found: beginning if found["line"] else found[0], text)


def advised_in_sql(sql: str, schema: str) -> str:
    """Return SQL of ours in whose messages every command line of inturn names the schema.

    Args:
        schema: a checked name.
    """
    return _IN_SQL.sub(program(schema), sql)
