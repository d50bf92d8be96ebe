"""What a command may leave in the session that the next one works in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
from psycopg.adapt import Loader
from psycopg.rows import dict_row


class _Nonsense(Loader):
    def load(self, data: Any) -> Any:
        raise ValueError("cannot be read")


def _runs(statement: str) -> Callable[[psycopg.Connection[Any]], object]:
    return lambda connection: connection.execute(statement)


def _use_dicts(connection: psycopg.Connection[Any]) -> None:
    connection.row_factory = dict_row


def read_nonsense(connection: psycopg.Connection[Any]) -> None:
    for type_ in ("int8", "text", "timestamptz"):
        connection.adapters.register_loader(type_, _Nonsense)


#: What is never shared: inturn has its own.
NEVER_SHARED = {"register_loader": read_nonsense}
#: What is put back before the very next command.
AT_ONCE = {
    "row_factory": _use_dicts,
    "search_path": _runs("SET search_path = nowhere"),
    "search_path of the transaction": _runs("SET LOCAL search_path = nowhere"),
    "role": _runs("SET ROLE inturn_applier"),
    "role of the transaction": _runs("SET LOCAL ROLE inturn_applier"),
    "a custom setting": _runs("SELECT set_config('app.tenant', 'one', false)"),
    "a custom setting of the transaction": _runs("SELECT set_config('app.tenant', 'one', true)"),
    "search_path by set_config": _runs("SELECT set_config('search_path', 'nowhere', false)"),
    "DateStyle": _runs("SET DateStyle = German"),
    "client_encoding by a function": _runs("DO $$ BEGIN EXECUTE 'SET client_encoding = LATIN1'; END $$"),
    "statement_timeout": _runs("SET statement_timeout = '1 ms'"),
    "TimeZone": _runs("SET TIME ZONE 'Asia/Tokyo'"),
    "default_transaction_isolation": _runs("SET default_transaction_isolation = 'serializable'"),
    "default_transaction_read_only": _runs("SET default_transaction_read_only = on"),
    "the session's characteristics": _runs(
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"
    ),
}
#: What is found out by the next claim.
BY_THE_NEXT_CLAIM = {
    "search_path by a function": _runs("DO $$ BEGIN EXECUTE 'SET search_path = nowhere'; END $$"),
    "a setting of inturn by a function": _runs("DO $$ BEGIN EXECUTE 'SET inturn.notify = off'; END $$"),
}
#: What costs the connection.
BY_A_NEW_CONNECTION = {
    "a temporary table": _runs("CREATE TEMP TABLE ticket (n integer)"),
    "an advisory lock": _runs("SELECT pg_advisory_lock(1)"),
    "LISTEN": _runs("LISTEN mine"),
    "a prepared statement": _runs("PREPARE mine AS SELECT 1"),
}
#: Statements of a SQL target: what they set is in force for the next call, where nothing is done about it.
IN_SQL = {
    "search_path": "SET search_path = nowhere",
    "search_path by a function": "PERFORM set_config('search_path', 'nowhere', false)",
    "DateStyle": "SET DateStyle = German",
    "TimeZone": "SET TIME ZONE 'Asia/Tokyo'",
    "lock_timeout": "SET lock_timeout = '1 ms'",
    "statement_timeout": "SET statement_timeout = '1 ms'",
    "row_security": "SET row_security = off",
    "default_transaction_isolation": "SET default_transaction_isolation = 'serializable'",
    "default_transaction_read_only": "SET default_transaction_read_only = on",
    "the session's characteristics": "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
}
