"""Invitations: links by which members choose a password, a first one or another one.

Revision: 0009
Follows: 0008
"""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

UPGRADE = """
-- The secret itself is in the link and nowhere else.
CREATE TABLE invitations (
    id uuid PRIMARY KEY,
    member_id uuid NOT NULL REFERENCES members,
    purpose text NOT NULL CHECK (purpose IN ('join', 'reset')),
    digest bytea NOT NULL UNIQUE,
    -- The address of whoever invites; none if it was an admin token.
    invited_by text,
    created_at timestamptz NOT NULL,
    issued_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL CHECK (expires_at > issued_at),
    accepted_at timestamptz,
    revoked_at timestamptz,
    CHECK (accepted_at IS NULL OR revoked_at IS NULL)
);
CREATE INDEX invitations_member ON invitations (member_id, id);
"""

DOWNGRADE = """
DROP TABLE invitations;
"""


def run(script: str) -> None:
    """Run a script of many statements as it stands."""
    op.get_bind().connection.driver_connection.execute(script)


def upgrade() -> None:
    """Add them."""
    run(UPGRADE)


def downgrade() -> None:
    """Drop them; links that were not used open nothing any more."""
    run(DOWNGRADE)
