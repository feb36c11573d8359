"""Members sign in: their sessions, the tries that failed, and passwords that must be changed.

Revision: 0005
Follows: 0004
"""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

UPGRADE = """
-- Someone else chose this password: its member chooses another one before anything else.
ALTER TABLE members ADD COLUMN must_change_password boolean NOT NULL DEFAULT false;

-- The token itself is in the member's cookie and nowhere else.
CREATE TABLE member_sessions (
    id uuid PRIMARY KEY,
    member_id uuid NOT NULL REFERENCES members,
    digest bytea NOT NULL UNIQUE,
    user_agent text NOT NULL,
    address text NOT NULL,
    created_at timestamptz NOT NULL,
    last_seen_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    revoked_at timestamptz
);
CREATE INDEX member_sessions_member ON member_sessions (member_id, id);

-- An account is named by a digest: people type passwords where addresses belong.
CREATE TABLE sign_in_failures (
    id uuid PRIMARY KEY,
    account bytea NOT NULL,
    address text NOT NULL,
    at timestamptz NOT NULL
);
CREATE INDEX sign_in_failures_account ON sign_in_failures (account, at);
CREATE INDEX sign_in_failures_address ON sign_in_failures (address, at);
CREATE INDEX sign_in_failures_at ON sign_in_failures (at);
"""

DOWNGRADE = """
DROP TABLE sign_in_failures, member_sessions;
ALTER TABLE members DROP COLUMN must_change_password;
"""


def run(script: str) -> None:
    """Run a script of many statements as it stands."""
    op.get_bind().connection.driver_connection.execute(script)


def upgrade() -> None:
    """Add them."""
    run(UPGRADE)


def downgrade() -> None:
    """Drop them; everybody is signed out."""
    run(DOWNGRADE)
