"""Work outside the database by lease, and numbers that callers give.

Revision ID: 0003
"""

from inturn.schema.revisions import frozen

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    frozen.run("0003_outside.sql")


def downgrade() -> None:
    frozen.run("0003_outside_down.sql")
