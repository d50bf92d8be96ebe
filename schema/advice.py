"""What messages say: on one line, with command lines that are completed, so that they work where pasted."""

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
# A quotation begins after no letter but the E of PostgreSQL, and ends before none: "inturn's" has none.
# One that is longer than a key can be is none of ours.
_QUOTED_OR_BLANK = re.compile(
    r"""(?P<quoted>(?:(?<!\w)|(?<=\bE))(?:'(?:[^']|''){,1024}+'|"(?:[^"]|""){,1024}+")(?!\w))|\s+"""
)


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


def one_line(text: str) -> str:
    """Return text on one line: a blank for whatever blanks there are, but for those in a quoted name.

    A name may have any characters in it. Those that are not plainly visible there become escapes, like `\\n`.
    """
    return _QUOTED_OR_BLANK.sub(_kept, text).strip()


def _kept(found: re.Match[str]) -> str:
    quoted = found["quoted"] or " "
    if quoted.isprintable():
        return quoted
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in quoted)
