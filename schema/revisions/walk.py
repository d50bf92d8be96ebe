"""Runs the revisions from one to another, statement by statement, and keeps the number of the last one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.resources import files

from alembic.config import Config
from alembic.script import Script, ScriptDirectory
from alembic.script.revision import RevisionError
from alembic.util import CommandError

from inturn.schema.revisions import frozen
from inturn.schema.source import revision_sql

Emit = Callable[[str], None]


def up(emit: Emit, *, schema: str, installed: str | None, head: str) -> None:
    """Run the upgrades after what is installed, up to the revision `head`.

    Args:
        emit: is given one statement after the other.
        installed: the revision that is there; None: none is, but the schema itself is there.

    Raises:
        alembic.util.CommandError: there is no such revision.
    """
    with frozen.running(schema, emit):
        for revision in reversed([*_between(head, installed or "base")]):
            revision.module.upgrade()
            # The first one says its number itself.
            if revision.down_revision is not None:
                emit(revision_sql(revision.revision, schema))


def down(emit: Emit, *, schema: str, installed: str, revision: str) -> None:
    """Run the downgrades from what is installed to an earlier revision; `base`: to before the first.

    Raises:
        alembic.util.CommandError: there is no such revision, or it is later than the installed one.
    """
    with frozen.running(schema, emit):
        for each in _between(installed, revision):
            each.module.downgrade()
            if isinstance(each.down_revision, str):
                emit(revision_sql(each.down_revision, schema))


def _between(later: str, earlier: str) -> Iterator[Script]:
    """Yield the revisions above the earlier one, up to the later one; the latest first.

    Raises:
        alembic.util.CommandError: there is no such revision, or it is later than the other one.
    """
    if not earlier:  # Alembic takes it for granted that it is a name
        raise CommandError("there is no revision without a name")
    try:
        yield from ScriptDirectory.from_config(config()).iterate_revisions(later, earlier)
    except RevisionError as error:
        raise CommandError(str(error)) from error


def config() -> Config:
    """Return where the revisions lie, as Alembic takes it."""
    found = Config()
    found.set_main_option("script_location", str(files("inturn.schema") / "revisions"))
    found.set_main_option("path_separator", "os")
    return found
