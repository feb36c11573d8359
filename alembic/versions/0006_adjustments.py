"""Adjustments tell when they were made: by their ids, as calls do, and to the instant.

Revision: 0006
Follows: 0005
"""

from alembic import op

revision = "0006"
down_revision = "0005"
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
-- Under the locks of the accounts that it moves: a transaction may have begun long before it had
-- them, and what matters is whether an account was opened before or after.
ALTER TABLE adjustments ALTER COLUMN id SET DEFAULT uuid7(clock_timestamp()),
    ALTER COLUMN created_at SET DEFAULT clock_timestamp();
"""

DOWNGRADE = """
ALTER TABLE adjustments ALTER COLUMN id SET DEFAULT gen_random_uuid(),
    ALTER COLUMN created_at SET DEFAULT now();
DROP FUNCTION uuid7(timestamptz);
"""


def upgrade() -> None:
    """Number them by time."""
    op.get_bind().connection.driver_connection.execute(UPGRADE)


def downgrade() -> None:
    """Number new ones at random again."""
    op.get_bind().connection.driver_connection.execute(DOWNGRADE)
