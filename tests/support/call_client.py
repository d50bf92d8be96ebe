"""A client that calls apply again and again, as a process."""

from __future__ import annotations

import sys

import psycopg

from support.receiving import Process


def call_client(dsn: str) -> Process:
    """Start one."""
    return Process("support.call_client", dsn)


def _main(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute("SET inturn.careful_keys = 20")  # the default
        print("ready", flush=True)
        while True:
            session.execute("CALL inturn.apply()")
            session.execute("SELECT pg_sleep(0.03)")


if __name__ == "__main__":
    _main(sys.argv[1])
