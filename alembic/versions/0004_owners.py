"""Every kind of owner and limit, and what tells of them: pools, chats, top-ups, alerts.

Revision: 0004
Follows: 0003
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

UPGRADE = """
-- Pools nest; what is charged to an allocation is charged to every pool above it.
CREATE TABLE pools (
    id uuid PRIMARY KEY,
    parent_id uuid REFERENCES pools,
    name text NOT NULL,
    shares_out boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    revision bigint NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX pools_name ON pools (lower(name));
CREATE INDEX pools_parent ON pools (parent_id);
CREATE INDEX pools_revision ON pools (revision);
CREATE TRIGGER pools_touch BEFORE INSERT OR UPDATE OF parent_id ON pools
    FOR EACH ROW EXECUTE FUNCTION directory_touch();

-- What sharing out a pool's tokens leaves alone, and the least that it leaves to each.
ALTER TABLE allocations
    ADD FOREIGN KEY (pool_id) REFERENCES pools,
    ADD COLUMN billing_timezone text,
    ADD COLUMN floor_tokens bigint NOT NULL DEFAULT 0 CHECK (floor_tokens >= 0),
    ADD COLUMN locked boolean NOT NULL DEFAULT false,
    ADD COLUMN service boolean NOT NULL DEFAULT false;
CREATE INDEX allocations_pool ON allocations (pool_id);

CREATE TABLE rebalances (
    id uuid PRIMARY KEY,
    pool_id uuid NOT NULL REFERENCES pools,
    month timestamptz NOT NULL,
    automatic boolean NOT NULL,
    actor text NOT NULL,
    total_tokens bigint NOT NULL,
    changes jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX rebalances_once ON rebalances (pool_id, month) WHERE automatic;
CREATE INDEX rebalances_pool ON rebalances (pool_id, id);

-- A tree of conversations; only its root is an owner. Nothing is ever given back.
CREATE TABLE chats (
    id uuid PRIMARY KEY,
    root_id uuid NOT NULL REFERENCES chats,
    parent_id uuid REFERENCES chats,
    member_id uuid NOT NULL REFERENCES members,
    key_id uuid NOT NULL REFERENCES keys,
    created_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz
);
CREATE INDEX chats_member ON chats (member_id, id);
CREATE INDEX chats_root ON chats (root_id);
CREATE INDEX chats_parent ON chats (parent_id);

-- `watched`: the window's account is kept although it has no amount, for alerts on its total.
-- `topped_until`: until then there may be top-ups of it.
ALTER TABLE limits
    ADD COLUMN watched boolean NOT NULL DEFAULT false,
    ADD COLUMN topped_until timestamptz;
DROP TRIGGER limits_touch ON limits;
-- The months of allocations and pools are charged anyway, and chats are looked up by each call.
CREATE TRIGGER limits_touch BEFORE INSERT OR UPDATE ON limits
    FOR EACH ROW WHEN (NEW.owner <> 'chat'
        AND (NEW.owner, NEW.window_kind) NOT IN (('allocation', 'month'), ('pool', 'month')))
    EXECUTE FUNCTION directory_touch();

-- Of a rolling window, one account goes on for ever: what calls admitted before `slid_to` used has
-- slid out of it. `opened_at`: what had been used before came in when its limit was opened.
ALTER TABLE accounts
    ADD COLUMN opened_at timestamptz,
    ADD COLUMN slid_to timestamptz,
    ADD COLUMN slid_tokens bigint NOT NULL DEFAULT 0,
    ADD COLUMN slid_nano bigint NOT NULL DEFAULT 0;

CREATE TABLE top_ups (
    id uuid PRIMARY KEY,
    owner_id uuid NOT NULL,
    meter text NOT NULL CHECK (meter IN ('tokens', 'usd')),
    window_kind text NOT NULL DEFAULT 'month',
    amount bigint NOT NULL CHECK (amount > 0),
    starts_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    reason text NOT NULL,
    request_id uuid,
    actor text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX top_ups_owner ON top_ups (owner_id, meter, window_kind, expires_at);

CREATE TABLE top_up_requests (
    id uuid PRIMARY KEY,
    allocation_id uuid NOT NULL REFERENCES allocations,
    member_id uuid NOT NULL REFERENCES members,
    meter text NOT NULL CHECK (meter IN ('tokens', 'usd')),
    amount bigint NOT NULL CHECK (amount > 0),
    reason text NOT NULL,
    expires text NOT NULL,
    status text NOT NULL DEFAULT 'open'
        CHECK (status IN ('open', 'approved', 'declined', 'withdrawn')),
    decided_by text,
    decided_at timestamptz,
    decision_reason text,
    top_up_id uuid REFERENCES top_ups,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX top_up_requests_open ON top_up_requests (allocation_id) WHERE status = 'open';
CREATE INDEX top_up_requests_member ON top_up_requests (member_id, id);

-- Corrections say who made them and why; a repriced call is not unpriced any more.
ALTER TABLE adjustments
    ADD COLUMN unpriced bigint NOT NULL DEFAULT 0,
    ADD COLUMN allocation_id uuid,
    ADD COLUMN price_id uuid,
    ADD COLUMN actor text,
    ADD COLUMN note text;
CREATE INDEX adjustments_call ON adjustments (call_id);
CREATE INDEX adjustments_allocation ON adjustments (allocation_id, id);

-- Where alerts go. `events` are those beside thresholds that it wants to hear of.
CREATE TABLE destinations (
    id uuid PRIMARY KEY,
    name text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('webhook', 'email')),
    address text NOT NULL,
    events text[] NOT NULL DEFAULT '{}',
    secret bytea,
    secret_version integer NOT NULL DEFAULT 1,
    former_secret bytea,
    former_version integer,
    former_until timestamptz,
    key_id uuid UNIQUE REFERENCES keys,
    enabled boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE alert_rules (
    id uuid PRIMARY KEY,
    destination_id uuid NOT NULL REFERENCES destinations,
    owner text NOT NULL CHECK (owner IN ('key', 'allocation', 'pool')),
    owner_id uuid NOT NULL,
    meter text NOT NULL CHECK (meter IN ('tokens', 'usd')),
    window_kind text NOT NULL,
    threshold bigint NOT NULL CHECK (threshold > 0),
    percent boolean NOT NULL,
    enabled boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX alert_rules_owner ON alert_rules (owner_id) WHERE enabled;
CREATE INDEX alert_rules_destination ON alert_rules (destination_id);

-- The outbox: written by the transaction that an event tells of, routed to destinations later.
CREATE TABLE events (
    id uuid PRIMARY KEY,
    kind text NOT NULL,
    rule_id uuid,
    body text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    routed_at timestamptz
);
CREATE INDEX events_unrouted ON events (created_at) WHERE routed_at IS NULL;
CREATE INDEX events_created ON events (created_at);

CREATE TABLE deliveries (
    id uuid PRIMARY KEY,
    event_id uuid NOT NULL REFERENCES events,
    destination_id uuid NOT NULL REFERENCES destinations,
    status text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'delivered', 'dead')),
    attempts integer NOT NULL DEFAULT 0,
    first_at timestamptz NOT NULL DEFAULT now(),
    next_at timestamptz NOT NULL DEFAULT now(),
    last_status integer,
    last_error text,
    delivered_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (event_id, destination_id)
);
CREATE INDEX deliveries_due ON deliveries (next_at) WHERE status = 'pending';
CREATE INDEX deliveries_destination ON deliveries (destination_id, id);

CREATE TABLE delivery_attempts (
    id uuid PRIMARY KEY,
    delivery_id uuid NOT NULL REFERENCES deliveries,
    at timestamptz NOT NULL DEFAULT now(),
    status_code integer,
    error text,
    duration_ms integer NOT NULL
);
CREATE INDEX delivery_attempts_delivery ON delivery_attempts (delivery_id, id);
"""

DOWNGRADE = """
DROP TABLE delivery_attempts, deliveries, events, alert_rules, destinations, top_up_requests,
    top_ups, chats, rebalances;
DROP INDEX adjustments_call, adjustments_allocation;
ALTER TABLE adjustments DROP COLUMN unpriced, DROP COLUMN allocation_id, DROP COLUMN price_id,
    DROP COLUMN actor, DROP COLUMN note;
ALTER TABLE accounts DROP COLUMN opened_at, DROP COLUMN slid_to, DROP COLUMN slid_tokens,
    DROP COLUMN slid_nano;
DROP TRIGGER limits_touch ON limits;
DELETE FROM limits WHERE owner IN ('chat', 'pool') OR window_kind LIKE 'rolling:%';
ALTER TABLE limits DROP COLUMN watched, DROP COLUMN topped_until;
CREATE TRIGGER limits_touch BEFORE INSERT OR UPDATE ON limits
    FOR EACH ROW WHEN ((NEW.owner, NEW.window_kind) <> ('allocation', 'month'))
    EXECUTE FUNCTION directory_touch();
DROP INDEX allocations_pool;
ALTER TABLE allocations DROP CONSTRAINT allocations_pool_id_fkey, DROP COLUMN billing_timezone,
    DROP COLUMN floor_tokens, DROP COLUMN locked, DROP COLUMN service;
UPDATE allocations SET pool_id = NULL;
DROP TABLE pools;
"""


def run(script: str) -> None:
    """Run a script of many statements as it stands."""
    op.get_bind().connection.driver_connection.execute(script)


def upgrade() -> None:
    """Add them."""
    run(UPGRADE)


def downgrade() -> None:
    """Drop them; limits of chats and pools, and those of rolling windows, are gone."""
    run(DOWNGRADE)
