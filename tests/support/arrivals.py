"""Commands of topic `posts`, which numbers on arrival: appended, and numbered by passes taken by hand."""

from __future__ import annotations

from support.database import Database, Session

APPEND = "SELECT inturn.append('posts', %s, %s)"


def arrive(session: Session | Database, key: str, name: str) -> None:
    """Append a command; it has no number then."""
    assert session.execute(APPEND, [key, name]) == [(None,)]


def number(session: Session | Database, max_commands: int = 10000) -> int:
    """Take one pass in the session's transaction; return how many commands it numbered."""
    found: int = session.execute("SELECT numbered FROM inturn._number_topic('posts', %s)", [max_commands])[0][
        0
    ]
    return found


def appended(database: Database, key: str, name: str) -> None:
    """Append a command and have it numbered."""
    arrive(database, key, name)
    assert number(database) == 1


def numbered(database: Database, key: str) -> list[str]:
    """Return the names of the key's commands in the order of their numbers, which have no holes."""
    rows = database.execute(
        "SELECT seq, name FROM inturn.command_log WHERE topic = 'posts' AND key = %s ORDER BY seq", [key]
    )
    assert [seq for seq, _ in rows] == list(range(1, len(rows) + 1))
    return [name for _, name in rows]
