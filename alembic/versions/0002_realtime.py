"""Realtime: the hold of a running session can carry the order to stop.

Revision: 0002
Follows: 0001
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the order."""
    op.execute("ALTER TABLE holds ADD COLUMN stopped boolean NOT NULL DEFAULT false")


def downgrade() -> None:
    """Drop it."""
    op.execute("ALTER TABLE holds DROP COLUMN stopped")
