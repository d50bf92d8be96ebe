"""The whole schema: until the first release, what the files of sql/ say today.

Revision ID: 0001
"""

from inturn.schema import source
from inturn.schema.revisions import frozen

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    frozen.execute(source.script())


def downgrade() -> None:
    frozen.drop(source.script())
