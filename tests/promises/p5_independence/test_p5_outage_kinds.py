"""P5: which failures look like an outage of what commands need, by what the server says."""

from __future__ import annotations

import psycopg
import pytest
from support.database import Database

from inturn.applier.breaker import is_outage


def test_p5_what_looks_like_an_outage_is_the_same_in_sql_and_in_python(database: Database) -> None:
    """It is by its SQLSTATE, or by what extensions and languages say that have none for it."""
    for state, said, is_down in (
        ("08001", 'could not connect to server "shop"', True),
        ("08006", "server closed the connection unexpectedly", True),
        ("08P01", "server login has been failing", True),
        ("HV00N", "could not connect", True),
        ("57P01", "terminating connection due to administrator command", True),
        ("57P03", "the database system is starting up", True),
        ("XX000", "Failed to connect to shop port 80 after 0 ms: Couldn't connect to server", True),
        ("XX000", "Could not resolve host: shop", True),
        ("38000", "requests.exceptions.ConnectTimeout: HTTPSConnectionPool: Max retries exceeded", True),
        ("38000", "urllib.error.URLError: <urlopen error [Errno 111] Connection refused>", True),
        ("38000", "KeyError: 'amount'", False),
        ("XX000", "cache lookup failed for type 1", False),
        ("P0001", "could not connect to server", False),
        ("23505", "duplicate key value violates unique constraint", False),
        ("57014", "canceling statement due to statement timeout", False),
        ("40001", "could not serialize access", False),
        ("53000", "insufficient resources", True),
        ("53100", 'could not extend file "base/5/16390": No space left on device', True),
        ("53200", "out of shared memory", True),
        ("53300", "too many connections", True),
        ("53400", "temporary file size exceeds temp_file_limit (1024kB)", False),
        ("58000", "could not fsync file", True),
        ("58030", 'could not read blocks 0..0 in file "base/5/16390": Input/output error', True),
        ("58P01", 'could not access file "$libdir/gone": No such file or directory', False),
    ):
        found = "SELECT inturn._outage_of(%s, %s, 'k', 1, 1, 1, 'e', '0') IS NOT NULL"
        assert database.value(found, [state, said]) == is_down, state
        with pytest.raises(psycopg.Error) as raised:
            database.execute(
                f"DO $$BEGIN RAISE EXCEPTION USING ERRCODE = '{state}', MESSAGE = $m${said}$m$; END$$"
            )
        assert is_outage(raised.value) == is_down, state
