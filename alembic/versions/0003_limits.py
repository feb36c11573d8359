"""Limits of every owner and window: the directory knows which there are.

Revision: 0003
Follows: 0002
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

UPGRADE = """
-- A limit that is lifted stays, without an amount: replicas learn of it by its revision.
ALTER TABLE limits ALTER COLUMN amount DROP NOT NULL,
    ADD COLUMN revision bigint NOT NULL DEFAULT 0;
CREATE INDEX limits_revision ON limits (revision);
-- What is charged to the month of an allocation is charged there anyway: its caps need no version.
CREATE TRIGGER limits_touch BEFORE INSERT OR UPDATE ON limits
    FOR EACH ROW WHEN ((NEW.owner, NEW.window_kind) <> ('allocation', 'month'))
    EXECUTE FUNCTION directory_touch();
"""

DOWNGRADE = """
DROP TRIGGER limits_touch ON limits;
DELETE FROM limits WHERE amount IS NULL;
ALTER TABLE limits DROP COLUMN revision, ALTER COLUMN amount SET NOT NULL;
"""


def upgrade() -> None:
    """Let limits be lifted, and be followed."""
    op.get_bind().connection.driver_connection.execute(UPGRADE)


def downgrade() -> None:
    """Undo it; lifted limits are gone."""
    op.get_bind().connection.driver_connection.execute(DOWNGRADE)
