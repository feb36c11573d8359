"""Adjustments are listed in the order in which they were made: their ids tell it, as calls' do.

Revision: 0007
Follows: 0004
"""

from alembic import op

revision = "0007"
down_revision = "0004"
branch_labels = None
depends_on = None

UPGRADE = """
-- What the ledger writes in passing has no id of its own.
CREATE FUNCTION uuid7(at timestamptz) RETURNS uuid LANGUAGE sql VOLATILE STRICT AS $$
    SELECT overlay(
        overlay(gen_random_uuid()::text PLACING left(uuid7_floor(at)::text, 13) FROM 1)
        PLACING '7' FROM 15)::uuid
$$;
UPDATE adjustments SET id = uuid7(created_at);
ALTER TABLE adjustments ALTER COLUMN id SET DEFAULT uuid7(now());
"""

DOWNGRADE = """
ALTER TABLE adjustments ALTER COLUMN id SET DEFAULT gen_random_uuid();
DROP FUNCTION uuid7(timestamptz);
"""


def upgrade() -> None:
    """Number them by time."""
    op.get_bind().connection.driver_connection.execute(UPGRADE)


def downgrade() -> None:
    """Number new ones at random again."""
    op.get_bind().connection.driver_connection.execute(DOWNGRADE)
