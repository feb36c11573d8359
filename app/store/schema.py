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
    Column("created_at", _instant),
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
    Column("created_at", _instant),
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
)

adjustments: Final = Table(
    "adjustments",
    metadata,
    Column("id", _id, primary_key=True),
    Column("call_id", _id),
    Column("account_ids", ARRAY(_id)),
    Column("tokens", BigInteger),
    Column("nano", BigInteger),
    Column("reason", Text),
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
