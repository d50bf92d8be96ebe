"""The core: topics, the command log, claiming and applying.

Revision ID: 0001
"""

from inturn.schema.revisions import frozen

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    frozen.run("0001_core.sql")


def downgrade() -> None:
    frozen.run("0001_core_down.sql")
