"""The operators' side: finding, explaining and putting right a key that stands still.

Revision ID: 0002
"""

from inturn.schema.revisions import frozen

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    frozen.run("0002_operator.sql")


def downgrade() -> None:
    frozen.run("0002_operator_down.sql")
