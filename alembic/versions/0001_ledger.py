"""The directory, the ledger, and the journal.

Revision: 0001
Follows: nothing
"""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

UPGRADE = """
-- One row for the whole installation. `directory_version` grows with every change to what admission
-- depends on; the ledger compares it inside the reserving transaction, so that no replica admits a
-- call on a directory that is out of date.
CREATE TABLE installation (
    id integer PRIMARY KEY DEFAULT 1 CHECK (id = 1),
    directory_version bigint NOT NULL DEFAULT 0,
    secret_fingerprint text,
    created_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO installation DEFAULT VALUES;

CREATE FUNCTION directory_touch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE installation SET directory_version = directory_version + 1
        RETURNING directory_version INTO NEW.revision;
    PERFORM pg_notify('spendgate_directory', NEW.revision::text);
    RETURN NEW;
END $$;

CREATE TABLE members (
    id uuid PRIMARY KEY,
    email text NOT NULL,
    display_name text NOT NULL DEFAULT '',
    role text NOT NULL DEFAULT 'member' CHECK (role IN ('admin', 'auditor', 'member')),
    status text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'disabled')),
    password_hash text,
    created_at timestamptz NOT NULL DEFAULT now(),
    revision bigint NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX members_email ON members (lower(email));
CREATE INDEX members_revision ON members (revision);

CREATE TABLE admin_tokens (
    id uuid PRIMARY KEY,
    name text NOT NULL,
    digest bytea NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now(),
    revoked_at timestamptz
);

CREATE TABLE providers (
    id uuid PRIMARY KEY,
    name text NOT NULL UNIQUE,
    kind text NOT NULL
        CHECK (kind IN ('openai', 'azure', 'mistral', 'anthropic', 'cohere', 'compatible')),
    base_url text NOT NULL,
    credential bytea,
    credential_version integer NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    revision bigint NOT NULL DEFAULT 0
);
CREATE INDEX providers_revision ON providers (revision);

CREATE TABLE models (
    slug text PRIMARY KEY,
    provider_id uuid NOT NULL REFERENCES providers,
    upstream_model text NOT NULL,
    endpoints text[],
    context_window bigint CHECK (context_window > 0),
    max_output_tokens bigint CHECK (max_output_tokens > 0),
    bytes_per_token integer NOT NULL DEFAULT 2 CHECK (bytes_per_token BETWEEN 1 AND 8),
    image_tokens_max integer NOT NULL DEFAULT 3000 CHECK (image_tokens_max > 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    revision bigint NOT NULL DEFAULT 0
);
CREATE INDEX models_revision ON models (revision);

-- Append-only: a wrong price is followed by a right one, never edited.
CREATE TABLE prices (
    id uuid PRIMARY KEY,
    model text NOT NULL REFERENCES models,
    effective_from timestamptz NOT NULL,
    rates jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    revision bigint NOT NULL DEFAULT 0,
    UNIQUE (model, effective_from)
);
CREATE INDEX prices_revision ON prices (revision);
CREATE FUNCTION append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME;
END $$;
CREATE TRIGGER prices_append_only BEFORE UPDATE OR DELETE ON prices
    FOR EACH ROW EXECUTE FUNCTION append_only();

CREATE TABLE allocations (
    id uuid PRIMARY KEY,
    member_id uuid NOT NULL REFERENCES members,
    name text NOT NULL,
    models text[] NOT NULL,
    status text NOT NULL DEFAULT 'active'
        CHECK (status IN ('active', 'paused', 'quarantined', 'revoked')),
    pool_id uuid,
    overrun_policy text NOT NULL DEFAULT 'strict' CHECK (overrun_policy IN ('strict', 'last_call')),
    ledger_outage text NOT NULL DEFAULT 'deny' CHECK (ledger_outage IN ('deny', 'allow')),
    unpriced text NOT NULL DEFAULT 'allow' CHECK (unpriced IN ('allow', 'deny')),
    created_at timestamptz NOT NULL DEFAULT now(),
    revision bigint NOT NULL DEFAULT 0
);
CREATE INDEX allocations_member ON allocations (member_id);
CREATE INDEX allocations_revision ON allocations (revision);

CREATE TABLE keys (
    id uuid PRIMARY KEY,
    member_id uuid NOT NULL REFERENCES members,
    name text NOT NULL,
    digest bytea NOT NULL UNIQUE,
    hint text NOT NULL,
    allocation_ids uuid[] NOT NULL,
    expires_at timestamptz,
    revoked_at timestamptz,
    one_shot boolean NOT NULL DEFAULT false,
    used_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    revision bigint NOT NULL DEFAULT 0
);
CREATE INDEX keys_member ON keys (member_id);
CREATE INDEX keys_revision ON keys (revision);

CREATE TRIGGER members_touch BEFORE INSERT OR UPDATE OF status ON members
    FOR EACH ROW EXECUTE FUNCTION directory_touch();
CREATE TRIGGER providers_touch BEFORE INSERT OR UPDATE ON providers
    FOR EACH ROW EXECUTE FUNCTION directory_touch();
CREATE TRIGGER models_touch BEFORE INSERT OR UPDATE ON models
    FOR EACH ROW EXECUTE FUNCTION directory_touch();
CREATE TRIGGER prices_touch BEFORE INSERT ON prices
    FOR EACH ROW EXECUTE FUNCTION directory_touch();
CREATE TRIGGER allocations_touch BEFORE INSERT OR UPDATE ON allocations
    FOR EACH ROW EXECUTE FUNCTION directory_touch();
-- Not `used_at`: a one-shot key is used up inside the reserving transaction itself.
CREATE TRIGGER keys_touch
    BEFORE INSERT OR UPDATE OF digest, allocation_ids, expires_at, revoked_at, one_shot ON keys
    FOR EACH ROW EXECUTE FUNCTION directory_touch();

-- Limits are read under the account locks of each reserve, so they need no version.
-- `baseline` is what was used and held when the limit was set, in the period it was set in: where
-- that is above the amount, the excess is nobody's overrun (I3).
CREATE TABLE limits (
    owner_id uuid NOT NULL,
    meter text NOT NULL CHECK (meter IN ('tokens', 'usd')),
    window_kind text NOT NULL,
    owner text NOT NULL CHECK (owner IN ('chat', 'key', 'allocation', 'pool')),
    amount bigint NOT NULL CHECK (amount >= 0),
    baseline bigint NOT NULL DEFAULT 0,
    baseline_account uuid,
    set_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (owner_id, meter, window_kind)
);

CREATE TABLE accounts (
    id uuid PRIMARY KEY,
    owner text NOT NULL,
    owner_id uuid NOT NULL,
    window_kind text NOT NULL,
    period_start timestamptz NOT NULL,
    period_end timestamptz,
    used_tokens bigint NOT NULL DEFAULT 0,
    used_nano bigint NOT NULL DEFAULT 0,
    held_tokens bigint NOT NULL DEFAULT 0 CHECK (held_tokens >= 0),
    held_nano bigint NOT NULL DEFAULT 0 CHECK (held_nano >= 0),
    unpriced_calls bigint NOT NULL DEFAULT 0,
    overrun_tokens bigint NOT NULL DEFAULT 0,
    overrun_nano bigint NOT NULL DEFAULT 0,
    UNIQUE (owner_id, window_kind, period_start)
) WITH (fillfactor = 30, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

CREATE TABLE holds (
    call_id uuid PRIMARY KEY,
    account_ids uuid[] NOT NULL,
    tokens bigint NOT NULL,
    nano bigint,
    facts jsonb NOT NULL,
    checkpoint jsonb,
    deadline timestamptz NOT NULL
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
CREATE INDEX holds_deadline ON holds (deadline);

-- A call's id is a UUIDv7 of the instant it was admitted, so months are ranges of ids: the id alone
-- finds the partition, and is unique over all of them.
CREATE TABLE calls (
    id uuid NOT NULL,
    request_id text NOT NULL,
    allocation_id uuid,
    key_id uuid NOT NULL,
    member_id uuid NOT NULL,
    model text NOT NULL,
    endpoint text NOT NULL,
    outcome text NOT NULL,
    close_reason text,
    status_code integer NOT NULL,
    started_at timestamptz NOT NULL,
    finished_at timestamptz NOT NULL,
    usage jsonb NOT NULL,
    tokens bigint NOT NULL,
    cost_nano bigint,
    price_id uuid,
    estimated boolean NOT NULL,
    overrun_tokens bigint NOT NULL,
    overrun_nano bigint NOT NULL,
    error_message text,
    shortfall jsonb,
    account_ids uuid[] NOT NULL,
    PRIMARY KEY (id)
) PARTITION BY RANGE (id);
CREATE INDEX calls_allocation ON calls (allocation_id, id);
CREATE INDEX calls_member ON calls (member_id, id);
CREATE INDEX calls_key ON calls (key_id, id);

-- The first id of an instant: its milliseconds, then zeros.
CREATE FUNCTION uuid7_floor(at timestamptz) RETURNS uuid LANGUAGE sql IMMUTABLE STRICT AS $$
    SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0')
            || repeat('0', 20))::uuid
$$;

CREATE FUNCTION ensure_calls_partition(at timestamptz) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    first timestamptz := date_trunc('month', at, 'UTC');
    following timestamptz := (first AT TIME ZONE 'UTC' + interval '1 month') AT TIME ZONE 'UTC';
    partition text := 'calls_' || to_char(first AT TIME ZONE 'UTC', 'YYYYMM');
BEGIN
    IF to_regclass(partition) IS NOT NULL THEN
        RETURN;
    END IF;
    -- Replicas find the month missing at the same moment.
    PERFORM pg_advisory_xact_lock(hashtext('spendgate_calls_partition'));
    EXECUTE format(
        'CREATE TABLE IF NOT EXISTS %I PARTITION OF calls FOR VALUES FROM (%L) TO (%L)',
        partition, uuid7_floor(first), uuid7_floor(following));
END $$;

CREATE TABLE adjustments (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    call_id uuid,
    account_ids uuid[] NOT NULL,
    tokens bigint NOT NULL,
    nano bigint NOT NULL,
    reason text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX adjustments_late ON adjustments (call_id) WHERE reason = 'late_settlement';

CREATE TABLE answers (
    key_id uuid NOT NULL,
    idempotency_key text NOT NULL,
    body_digest bytea NOT NULL,
    call_id uuid NOT NULL,
    status_code integer,
    headers jsonb,
    body bytea,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (key_id, idempotency_key)
);
CREATE INDEX answers_created ON answers (created_at);

CREATE TABLE audit (
    id uuid PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    actor text NOT NULL,
    actor_id uuid,
    event text NOT NULL,
    object text NOT NULL,
    object_id text NOT NULL,
    before jsonb,
    after jsonb,
    reason text,
    request_id text
);
CREATE INDEX audit_object ON audit (object_id, id);
CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE ON audit
    FOR EACH ROW EXECUTE FUNCTION append_only();

SELECT ensure_calls_partition(now()),
       ensure_calls_partition(now() + interval '1 month');
"""

DOWNGRADE = """
DROP TABLE audit, answers, adjustments, calls, holds, accounts, limits, keys, allocations, prices,
    models, providers, admin_tokens, members, installation;
DROP FUNCTION ensure_calls_partition(timestamptz);
DROP FUNCTION uuid7_floor(timestamptz);
DROP FUNCTION append_only();
DROP FUNCTION directory_touch();
"""


def run(script: str) -> None:
    """Run a script of many statements as it stands: no bind parameters, no escaping."""
    op.get_bind().connection.driver_connection.execute(script)


def upgrade() -> None:
    run(UPGRADE)


def downgrade() -> None:
    run(DOWNGRADE)
