"""Alembic's entry: runs the migrations on the connection, or into the buffer, that install.py gave."""

from __future__ import annotations

from alembic import context
from sqlalchemy import inspect

schema: str = context.config.attributes["schema"]
connection = context.config.attributes["connection"]

context.configure(
    connection=connection,
    dialect_name=None if connection is not None else "postgresql",
    version_table="schema_version",
    version_table_schema=schema,
    transactional_ddl=True,
)
with context.begin_transaction():
    # Where it exists already, a DBA may have made it for a login that may not.
    if connection is None or not inspect(connection).has_schema(schema):
        context.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
    context.run_migrations()
