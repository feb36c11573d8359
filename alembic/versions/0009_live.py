"""Live: what changes is told of while it is committed, and so is the end of a credential.

Revision: 0009
Follows: 0006
"""

from alembic import op

revision = "0009"
down_revision = "0006"
branch_labels = None
depends_on = None

UPGRADE = """
-- Every change is audited, whoever makes it: so one trigger tells of all of them. What is told is
-- a kind, whose it is (or `-`), and ids. Of the ledger's batches another one tells: app/store/live.
CREATE FUNCTION live_audit() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    kind text := 'overview';
    whose uuid;
BEGIN
    IF NEW.object_id ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' THEN
        CASE NEW.object
            WHEN 'allocation' THEN
                kind := 'allocation';
                SELECT member_id INTO whose FROM allocations WHERE id = NEW.object_id::uuid;
            WHEN 'key' THEN
                kind := 'key';
                SELECT member_id INTO whose FROM keys WHERE id = NEW.object_id::uuid;
            WHEN 'request' THEN
                kind := 'request';
                SELECT member_id INTO whose FROM top_up_requests WHERE id = NEW.object_id::uuid;
            WHEN 'realtime_session' THEN
                kind := 'session';
                SELECT (facts ->> 'member_id')::uuid INTO whose
                    FROM holds WHERE call_id = NEW.object_id::uuid;
            WHEN 'pool' THEN
                kind := 'pool';
            ELSE
        END CASE;
    END IF;
    PERFORM pg_notify('spendgate_live', concat_ws(' ', kind, coalesce(whose::text, '-'),
        CASE WHEN kind <> 'overview' THEN NEW.object_id END));
    RETURN NULL;
END $$;
CREATE TRIGGER audit_live AFTER INSERT ON audit FOR EACH ROW EXECUTE FUNCTION live_audit();

-- Streams that a credential opened end with it; after a change of role a new one may hear else.
CREATE FUNCTION live_end() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('spendgate_live', 'end - ' || NEW.id);
    RETURN NULL;
END $$;
CREATE TRIGGER member_sessions_live AFTER UPDATE OF revoked_at ON member_sessions FOR EACH ROW
    WHEN (NEW.revoked_at IS NOT NULL) EXECUTE FUNCTION live_end();
CREATE TRIGGER admin_tokens_live AFTER UPDATE OF revoked_at ON admin_tokens FOR EACH ROW
    WHEN (NEW.revoked_at IS NOT NULL) EXECUTE FUNCTION live_end();
CREATE TRIGGER members_live AFTER UPDATE OF role, status ON members FOR EACH ROW
    WHEN ((OLD.role, OLD.status) <> (NEW.role, NEW.status)) EXECUTE FUNCTION live_end();

-- What the overview counts: calls of this month without a price, and deliveries that were given up.
CREATE INDEX calls_unpriced ON calls (model, id) WHERE cost_nano IS NULL;
CREATE INDEX deliveries_dead ON deliveries (id) WHERE status = 'dead';
"""

DOWNGRADE = """
DROP INDEX deliveries_dead;
DROP INDEX calls_unpriced;
DROP TRIGGER members_live ON members;
DROP TRIGGER admin_tokens_live ON admin_tokens;
DROP TRIGGER member_sessions_live ON member_sessions;
DROP TRIGGER audit_live ON audit;
DROP FUNCTION live_end();
DROP FUNCTION live_audit();
"""


def run(script: str) -> None:
    """Run a script of many statements as it stands."""
    op.get_bind().connection.driver_connection.execute(script)


def upgrade() -> None:
    """Tell of changes."""
    run(UPGRADE)


def downgrade() -> None:
    """Keep them to oneself."""
    run(DOWNGRADE)
