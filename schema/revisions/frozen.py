"""How a revision runs the SQL that it froze."""

from __future__ import annotations

from importlib.resources import files

from alembic import context, op

from inturn.schema.source import rename


def run(name: str) -> None:
    """Run versions/NAME in the schema being installed, or print it when a script is asked for."""
    script = (files("inturn.schema.revisions.versions") / name).read_text("utf-8")
    sql = rename(script, context.config.attributes["schema"])
    if context.is_offline_mode():
        op.get_context().impl.static_output(sql)
    else:
        # Without parameters: the script is many statements, and a % in it is a %.
        op.get_bind().execution_options(no_parameters=True).exec_driver_sql(sql)
