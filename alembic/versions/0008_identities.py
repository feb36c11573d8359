"""Members sign in with an identity provider: who they are there.

Revision: 0008
Follows: 0007
"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

UPGRADE = """
-- A subject is one member for good, and a member has one subject of an issuer at most.
CREATE TABLE identities (
    id uuid PRIMARY KEY,
    member_id uuid NOT NULL REFERENCES members,
    issuer text NOT NULL,
    subject text NOT NULL,
    created_at timestamptz NOT NULL,
    UNIQUE (issuer, subject),
    UNIQUE (member_id, issuer)
);

-- What somebody was sent to their provider with comes back once; it is kept while it could again.
CREATE TABLE used_states (
    digest bytea PRIMARY KEY,
    at timestamptz NOT NULL
);
CREATE INDEX used_states_at ON used_states (at);

-- Who came in without their password need not have, or change, one.
ALTER TABLE member_sessions ADD COLUMN with_password boolean NOT NULL DEFAULT true;
"""

DOWNGRADE = """
DELETE FROM member_sessions WHERE NOT with_password;
ALTER TABLE member_sessions DROP COLUMN with_password;
DROP TABLE used_states, identities;
"""


def run(script: str) -> None:
    """Run a script of many statements as it stands."""
    op.get_bind().connection.driver_connection.execute(script)


def upgrade() -> None:
    """Add them."""
    run(UPGRADE)


def downgrade() -> None:
    """Drop them; who came in without a password is signed out."""
    run(DOWNGRADE)
