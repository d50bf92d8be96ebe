"""Further logins of a test's own, beside those of support.roles."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from support.database import Database
from support.roles import OWNER


def login(database: Database, *roles: str) -> str:
    """Create a login with these roles, named for the test's database, and return its DSN."""
    name = "_".join([database.name, *(role.rpartition("_")[2] for role in roles)])
    owner = database.as_login(OWNER)
    owner.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
    for role in roles:
        owner.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(role), sql.Identifier(name)))
    return make_conninfo(database.dsn, user=name)


def let_owner_become(database: Database, name: str) -> None:
    """Let the tests' owner become a login that it has made. From 16 on it may: see roles.SELF_GRANT."""
    if database.server.version < 16:
        database.execute(f"GRANT {name} TO {OWNER}")


def connect_as(database: Database, *roles: str) -> psycopg.Connection[Any]:
    """Return a connection, in autocommit, of a new login with these roles."""
    return database.connect(user=str(conninfo_to_dict(login(database, *roles))["user"]))


def let_apply(witness: Database) -> None:
    """Let appliers run the target of a witness database; append a command to key a."""
    witness.execute("""
        GRANT USAGE ON SCHEMA app TO inturn_applier;
        GRANT EXECUTE ON FUNCTION app.apply_order TO inturn_applier;
        GRANT INSERT ON app.witness TO inturn_applier;
        GRANT USAGE ON SEQUENCE app.witness_id_seq TO inturn_applier;
        SELECT inturn.append('orders', 'a', 'insert');
    """)
