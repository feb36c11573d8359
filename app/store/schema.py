"""The tables as the control plane's statements name them.

Owns the names and types of columns, once, for SQLAlchemy. Owns neither the schema itself, which
the migrations make, with its indexes, checks and triggers, nor the ledger's statements, which are
plain SQL because they are hot.

Invariant: every column here is one of the migrated database, with that type (a test compares them).
"""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    FetchedValue,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, UUID

_id: Final = UUID(as_uuid=False)
ID: Final = _id
_instant: Final = DateTime(timezone=True)

metadata: Final = MetaData()

installation: Final = Table(
    "installation",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("directory_version", BigInteger),
)

admin_tokens: Final = Table(
    "admin_tokens",
    metadata,
    Column("id", _id, primary_key=True),
    Column("name", Text),
    Column("digest", LargeBinary),
    Column("revoked_at", _instant),
)

members: Final = Table(
    "members",
    metadata,
    Column("id", _id, primary_key=True),
    Column("email", Text),
    Column("display_name", Text),
    Column("role", Text),
    Column("status", Text),
    Column("password_hash", Text),
    Column("must_change_password", Boolean),
    Column("created_at", _instant),
)

member_sessions: Final = Table(
    "member_sessions",
    metadata,
    Column("id", _id, primary_key=True),
    Column("member_id", _id),
    Column("digest", LargeBinary),
    Column("user_agent", Text),
    Column("address", Text),
    Column("created_at", _instant),
    Column("last_seen_at", _instant),
    Column("expires_at", _instant),
    Column("revoked_at", _instant),
    Column("with_password", Boolean),
)

identities: Final = Table(
    "identities",
    metadata,
    Column("id", _id, primary_key=True),
    Column("member_id", _id),
    Column("issuer", Text),
    Column("subject", Text),
    Column("created_at", _instant),
)

used_states: Final = Table(
    "used_states",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("at", _instant),
)

sign_in_failures: Final = Table(
    "sign_in_failures",
    metadata,
    Column("id", _id, primary_key=True),
    Column("account", LargeBinary),
    Column("address", Text),
    Column("at", _instant),
)

invitations: Final = Table(
    "invitations",
    metadata,
    Column("id", _id, primary_key=True),
    Column("member_id", _id),
    Column("purpose", Text),
    Column("digest", LargeBinary),
    Column("invited_by", Text),
    Column("created_at", _instant),
    Column("issued_at", _instant),
    Column("expires_at", _instant),
    Column("accepted_at", _instant),
    Column("revoked_at", _instant),
)

providers: Final = Table(
    "providers",
    metadata,
    Column("id", _id, primary_key=True),
    Column("name", Text),
    Column("kind", Text),
    Column("base_url", Text),
    Column("credential", LargeBinary),
    Column("credential_version", Integer),
    Column("created_at", _instant),
)

models: Final = Table(
    "models",
    metadata,
    Column("slug", Text, primary_key=True),
    Column("provider_id", _id),
    Column("upstream_model", Text),
    Column("endpoints", ARRAY(Text)),
    Column("context_window", BigInteger),
    Column("max_output_tokens", BigInteger),
    Column("bytes_per_token", Integer),
    Column("image_tokens_max", Integer),
    Column("created_at", _instant),
)

prices: Final = Table(
    "prices",
    metadata,
    Column("id", _id, primary_key=True),
    Column("model", Text),
    Column("effective_from", _instant),
    Column("rates", JSONB),
    Column("created_at", _instant),
)

allocations: Final = Table(
    "allocations",
    metadata,
    Column("id", _id, primary_key=True),
    Column("member_id", _id),
    Column("name", Text),
    Column("models", ARRAY(Text)),
    Column("status", Text),
    Column("pool_id", _id),
    Column("overrun_policy", Text),
    Column("ledger_outage", Text),
    Column("unpriced", Text),
    Column("billing_timezone", Text),
    Column("floor_tokens", BigInteger),
    Column("locked", Boolean),
    Column("service", Boolean),
    Column("created_at", _instant),
)

pools: Final = Table(
    "pools",
    metadata,
    Column("id", _id, primary_key=True),
    Column("parent_id", _id),
    Column("name", Text),
    Column("shares_out", Boolean),
    Column("created_at", _instant),
)

rebalances: Final = Table(
    "rebalances",
    metadata,
    Column("id", _id, primary_key=True),
    Column("pool_id", _id),
    Column("month", _instant),
    Column("automatic", Boolean),
    Column("actor", Text),
    Column("total_tokens", BigInteger),
    Column("changes", JSONB),
    Column("created_at", _instant),
)

chats: Final = Table(
    "chats",
    metadata,
    Column("id", _id, primary_key=True),
    Column("root_id", _id),
    Column("parent_id", _id),
    Column("member_id", _id),
    Column("key_id", _id),
    Column("created_at", _instant),
    Column("deleted_at", _instant),
)

keys: Final = Table(
    "keys",
    metadata,
    Column("id", _id, primary_key=True),
    Column("member_id", _id),
    Column("name", Text),
    Column("digest", LargeBinary),
    Column("hint", Text),
    Column("allocation_ids", ARRAY(_id)),
    Column("expires_at", _instant),
    Column("revoked_at", _instant),
    Column("one_shot", Boolean),
    Column("used_at", _instant),
    Column("created_at", _instant),
)

limits: Final = Table(
    "limits",
    metadata,
    Column("owner_id", _id, primary_key=True),
    Column("meter", Text, primary_key=True),
    Column("window_kind", Text, primary_key=True),
    Column("owner", Text),
    Column("amount", BigInteger),
    Column("baseline", BigInteger),
    Column("baseline_account", _id),
    Column("set_at", _instant),
    Column("watched", Boolean),
    Column("topped_until", _instant),
)

top_ups: Final = Table(
    "top_ups",
    metadata,
    Column("id", _id, primary_key=True),
    Column("owner_id", _id),
    Column("meter", Text),
    Column("window_kind", Text),
    Column("amount", BigInteger),
    Column("starts_at", _instant),
    Column("expires_at", _instant),
    Column("reason", Text),
    Column("request_id", _id),
    Column("actor", Text),
    Column("created_at", _instant),
)

top_up_requests: Final = Table(
    "top_up_requests",
    metadata,
    Column("id", _id, primary_key=True),
    Column("allocation_id", _id),
    Column("member_id", _id),
    Column("meter", Text),
    Column("amount", BigInteger),
    Column("reason", Text),
    Column("expires", Text),
    Column("status", Text),
    Column("decided_by", Text),
    Column("decided_at", _instant),
    Column("decision_reason", Text),
    Column("top_up_id", _id),
    Column("created_at", _instant),
)

accounts: Final = Table(
    "accounts",
    metadata,
    Column("id", _id, primary_key=True),
    Column("owner", Text),
    Column("owner_id", _id),
    Column("window_kind", Text),
    Column("period_start", _instant),
    Column("period_end", _instant),
    Column("used_tokens", BigInteger),
    Column("used_nano", BigInteger),
    Column("held_tokens", BigInteger),
    Column("held_nano", BigInteger),
    Column("unpriced_calls", BigInteger),
    Column("overrun_tokens", BigInteger),
    Column("overrun_nano", BigInteger),
    Column("opened_at", _instant),
    Column("slid_to", _instant),
    Column("slid_tokens", BigInteger),
    Column("slid_nano", BigInteger),
)

holds: Final = Table(
    "holds",
    metadata,
    Column("call_id", _id, primary_key=True),
    Column("tokens", BigInteger),
    Column("nano", BigInteger),
    Column("facts", JSONB),
    Column("checkpoint", JSONB),
    Column("account_ids", ARRAY(_id)),
    Column("stopped", Boolean),
)

calls: Final = Table(
    "calls",
    metadata,
    Column("id", _id, primary_key=True),
    Column("request_id", Text),
    Column("allocation_id", _id),
    Column("key_id", _id),
    Column("member_id", _id),
    Column("model", Text),
    Column("endpoint", Text),
    Column("outcome", Text),
    Column("close_reason", Text),
    Column("status_code", Integer),
    Column("started_at", _instant),
    Column("finished_at", _instant),
    Column("usage", JSONB),
    Column("tokens", BigInteger),
    Column("cost_nano", BigInteger),
    Column("price_id", _id),
    Column("estimated", Boolean),
    Column("error_message", Text),
    Column("shortfall", JSONB),
    Column("account_ids", ARRAY(_id)),
)

adjustments: Final = Table(
    "adjustments",
    metadata,
    # The database makes one where the ledger and limits write them.
    Column("id", _id, primary_key=True, server_default=FetchedValue()),
    Column("call_id", _id),
    Column("account_ids", ARRAY(_id)),
    Column("tokens", BigInteger),
    Column("nano", BigInteger),
    Column("reason", Text),
    Column("unpriced", BigInteger),
    Column("allocation_id", _id),
    Column("price_id", _id),
    Column("actor", Text),
    Column("note", Text),
    Column("created_at", _instant),
)

destinations: Final = Table(
    "destinations",
    metadata,
    Column("id", _id, primary_key=True),
    Column("name", Text),
    Column("kind", Text),
    Column("address", Text),
    Column("events", ARRAY(Text)),
    Column("secret", LargeBinary),
    Column("secret_version", Integer),
    Column("former_secret", LargeBinary),
    Column("former_version", Integer),
    Column("former_until", _instant),
    Column("key_id", _id),
    Column("enabled", Boolean),
    Column("created_at", _instant),
)

alert_rules: Final = Table(
    "alert_rules",
    metadata,
    Column("id", _id, primary_key=True),
    Column("destination_id", _id),
    Column("owner", Text),
    Column("owner_id", _id),
    Column("meter", Text),
    Column("window_kind", Text),
    Column("threshold", BigInteger),
    Column("percent", Boolean),
    Column("enabled", Boolean),
    Column("created_at", _instant),
)

events: Final = Table(
    "events",
    metadata,
    Column("id", _id, primary_key=True),
    Column("kind", Text),
    Column("rule_id", _id),
    Column("body", Text),
    Column("created_at", _instant),
    Column("routed_at", _instant),
)

deliveries: Final = Table(
    "deliveries",
    metadata,
    Column("id", _id, primary_key=True),
    Column("event_id", _id),
    Column("destination_id", _id),
    Column("status", Text),
    Column("attempts", Integer),
    Column("first_at", _instant),
    Column("next_at", _instant),
    Column("last_status", Integer),
    Column("last_error", Text),
    Column("delivered_at", _instant),
    Column("created_at", _instant),
)

delivery_attempts: Final = Table(
    "delivery_attempts",
    metadata,
    Column("id", _id, primary_key=True),
    Column("delivery_id", _id),
    Column("at", _instant),
    Column("status_code", Integer),
    Column("error", Text),
    Column("duration_ms", Integer),
)

audit: Final = Table(
    "audit",
    metadata,
    Column("id", _id, primary_key=True),
    Column("at", _instant),
    Column("actor", Text),
    Column("actor_id", _id),
    Column("event", Text),
    Column("object", Text),
    Column("object_id", Text),
    Column("before", JSONB(none_as_null=True)),
    Column("after", JSONB(none_as_null=True)),
    Column("reason", Text),
    Column("request_id", Text),
)
