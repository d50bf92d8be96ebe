"""The database side of inturn: its SQL, its migrations, its errors.

Installing and upgrading is in `inturn.schema.install`, which alone needs Alembic.
"""

from inturn.schema.errors import InturnError
from inturn.schema.source import DEFAULT_SCHEMA
from inturn.schema.version import HEAD, check_version

__all__ = ["DEFAULT_SCHEMA", "HEAD", "InturnError", "check_version"]
