"""The release after this one, made up: a package with one revision more, in a folder of the test's own.

Its revision holds one of everything that a revision may: a column, a table, a new function, a frozen copy
of a function whose body changed, and one of a function that takes a parameter more. The last is dropped
and made again, which is not compatible with the appliers of today; the compatible revision does without.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.config import Config

import inturn.schema.install
import inturn.schema.privileges
import inturn.schema.revisions.walk
import inturn.schema.version
from inturn.schema import HEAD
from inturn.schema.source import DEFAULT_SCHEMA, grants_script, script
from inturn.schema.version import check_version

NEXT = f"{int(HEAD) + 1:04}"
#: What the body of `append` says from that revision on.
MARK = f"-- as of revision {NEXT}"

_MODULE = f'''"""One of everything.

Revision ID: {NEXT}
"""

from inturn.schema.revisions import frozen

revision = "{NEXT}"
down_revision = "{HEAD}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    frozen.run(__file__, "{NEXT}_later.sql")


def downgrade() -> None:
    frozen.run(__file__, "{NEXT}_later_down.sql")
'''

_FINISH_GRANTS = """
REVOKE ALL ON FUNCTION inturn.finish FROM PUBLIC;
GRANT EXECUTE ON FUNCTION inturn.finish TO inturn_applier;
"""

#: What its grants.sql has beside today's.
_LATER_GRANTS = """
GRANT EXECUTE ON FUNCTION
    inturn.finish(text, text[], bigint[], bigint[], bigint[], text, text)
TO inturn_applier;
"""

_NEW = """
ALTER TABLE inturn.topic ADD COLUMN shelf text;
CREATE TABLE inturn.shelf (name text PRIMARY KEY);
CREATE FUNCTION inturn.shelve(topic text, shelf text) RETURNS void LANGUAGE sql AS $$
    UPDATE inturn.topic t SET shelf = shelve.shelf WHERE t.name = shelve.topic
$$;
REVOKE ALL ON FUNCTION inturn.shelve FROM PUBLIC;
GRANT EXECUTE ON FUNCTION inturn.shelve TO inturn_operator;
"""

_OLD = """
DROP FUNCTION inturn.shelve;
DROP TABLE inturn.shelf;
ALTER TABLE inturn.topic DROP COLUMN shelf;
"""

_SINCE = "CREATE OR REPLACE VIEW inturn.compatible_since AS\nSELECT '{}'::text AS version_num;\n"


class NextRelease:
    """That package. What it does is done with its revision and its HEAD; between, the package is today's.

    Args:
        folder: where its revision is put.
        compatible: whether the appliers of today go on working on it.
        renamed: functions of today that have another name in it, and nothing else is changed: no table, so
            that it does not wait for the end of turns.
    """

    def __init__(self, folder: Path, *, compatible: bool = False, renamed: Sequence[str] = ()) -> None:
        self._folder = folder
        up, down = _renaming(renamed) if renamed else _one_of_everything(compatible=compatible)
        (folder / f"{NEXT}_later.py").write_text(_MODULE)
        (folder / f"{NEXT}_later.sql").write_text(up)
        (folder / f"{NEXT}_later_down.sql").write_text(down)

    def upgrade(self, dsn: str, *, schema: str = DEFAULT_SCHEMA) -> tuple[str | None, str]:
        with self.installed():
            return inturn.schema.install.upgrade(dsn, schema=schema)

    def downgrade(self, dsn: str, **options: Any) -> None:
        with self.installed():
            inturn.schema.install.downgrade(dsn, **options)

    def script(self, **options: Any) -> str:
        with self.installed():
            return inturn.schema.install.upgrade_script(**options)

    def check_version(self, connection: psycopg.Connection[Any]) -> None:
        with self.installed():
            check_version(connection)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Be that package, in all threads of this process, for a block."""
        todays = inturn.schema.revisions.walk.config

        def config() -> Config:
            found = todays()
            versions = Path(found.get_main_option("script_location") or "") / "versions"
            found.set_main_option("version_locations", os.pathsep.join([str(versions), str(self._folder)]))
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(inturn.schema.revisions.walk, "config", config)
            todays_grants = grants_script()
            patch.setattr(inturn.schema.privileges, "grants_script", lambda: todays_grants + _LATER_GRANTS)
            for module in (inturn.schema.install, inturn.schema.version):
                patch.setattr(module, "HEAD", NEXT)
            yield


def _one_of_everything(*, compatible: bool) -> tuple[str, str]:
    """Return the SQL of its upgrade and of its downgrade."""
    append, finish = _living("append"), _living("finish")
    newer_append = append.replace("AS $$", f"AS $$\n{MARK}", 1)
    newer_finish = finish.replace(") RETURNS", ", shelf text DEFAULT NULL) RETURNS", 1)
    up, down = _NEW, _OLD
    if not compatible:
        drop = "DROP FUNCTION inturn.finish;\n"
        up += drop + newer_finish + _FINISH_GRANTS + _SINCE.format(NEXT)
        down += drop + finish + _FINISH_GRANTS + _SINCE.format(HEAD)
    return up + _replacing(newer_append), down + _replacing(append)


def _renaming(functions: Sequence[str]) -> tuple[str, str]:
    """Do the same, of the one that renames functions and is not compatible."""
    rename = "ALTER FUNCTION inturn.{} RENAME TO {};\n"
    up = "".join(rename.format(name, f"{name}_later") for name in functions)
    down = "".join(rename.format(f"{name}_later", name) for name in functions)
    return up + _SINCE.format(NEXT), down + _SINCE.format(HEAD)


def _living(name: str) -> str:
    """Return what today's script says of a function: its statement and its comment."""
    found = re.search(
        rf"^CREATE FUNCTION inturn\.{name}\(.*?^\$\$;\nCOMMENT ON FUNCTION inturn\.{name} .*?;\n",
        script(),
        re.MULTILINE | re.DOTALL,
    )
    assert found, f"no function {name} in today's script"
    return found[0]


def _replacing(function: str) -> str:
    return function.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION", 1)
