"""A server that a test may stop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from support.database import Database
from support.server import Server


@contextmanager
def own_database(
    server: Server | int, *, extra_settings: str = "", distinct: bool = False
) -> Iterator[Database]:
    """Give a database, with the schema, on a server of the test's own, of the same version or of this one.

    distinct: as for `Server`.
    """
    version = server if isinstance(server, int) else server.version
    own = Server(version, extra_settings=extra_settings, distinct=distinct)
    own.start()
    try:
        database = Database(own, "own")
        try:
            database.install()
            yield database
        finally:
            database.close()
    finally:
        own.remove()
