"""The catalogue: providers, models, prices, members, allocations, keys, and their caps, as rows.

Owns the statements that read and change them, and the records in which they are shown. Owns no
rule about what may be written (see `app.control`) and no running total (see `usage`).

Invariants:

- A record shows no secret: no credential, no digest, no hash, only whether there is one.
- Prices are only ever added.
- A cap is set under the lock of the account it limits, so that what it starts from is exact: what
  the owner has used and what its calls in flight hold, at that moment.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Generic, TypeVar

import msgspec
from sqlalchemy import (
    ColumnElement,
    Select,
    Table,
    Text,
    cast,
    delete,
    func,
    insert,
    literal,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, distinct_on
from sqlalchemy.dialects.postgresql import insert as upsert

from app.core.access import (
    AllocationStatus,
    MemberStatus,
    OutagePolicy,
    OverrunPolicy,
    ProviderKind,
    Role,
    UnpricedPolicy,
)
from app.core.ledger import Account, AccountKey, Meter
from app.core.pricing import Rate
from app.store import schema
from app.store.database import Connection
from app.store.directory import rates_json

Record = TypeVar("Record", bound=msgspec.Struct)


class ProviderRecord(msgspec.Struct, frozen=True):
    """An upstream account."""

    id: str
    name: str
    kind: ProviderKind
    base_url: str
    has_credential: bool
    created_at: datetime


class ModelRecord(msgspec.Struct, frozen=True):
    """A model by the name that clients use."""

    slug: str
    provider_id: str
    upstream_model: str
    endpoints: list[str] | None
    context_window: int | None
    max_output_tokens: int | None
    bytes_per_token: int
    image_tokens_max: int
    created_at: datetime


class RateRecord(msgspec.Struct, frozen=True):
    """`usd`, a decimal string, for every `per` of one unit."""

    unit: str
    usd: str
    per: int


class PriceRecord(msgspec.Struct, frozen=True):
    """One version of the rates of one model."""

    id: str
    model: str
    effective_from: datetime
    rates: list[RateRecord]
    created_at: datetime


class MemberRecord(msgspec.Struct, frozen=True):
    """A person who signs in."""

    id: str
    email: str
    display_name: str
    role: Role
    status: MemberStatus
    has_password: bool
    created_at: datetime


class AllocationRecord(msgspec.Struct, frozen=True):
    """What a member may use, with its caps; `usage.standing` adds what is used of them."""

    id: str
    member_id: str
    name: str
    models: list[str]
    status: AllocationStatus
    pool_id: str | None
    overrun_policy: OverrunPolicy
    ledger_outage: OutagePolicy
    unpriced: UnpricedPolicy
    created_at: datetime
    cap_tokens: int | None
    cap_nano: int | None

    def cap(self, meter: Meter) -> int | None:
        """Return the monthly cap in the meter's unit; None: there is none."""
        return self.cap_tokens if meter == "tokens" else self.cap_nano


class KeyRecord(msgspec.Struct, frozen=True):
    """A bearer secret of a member, without the secret."""

    id: str
    member_id: str
    name: str
    hint: str
    allocation_ids: list[str]
    expires_at: datetime | None
    one_shot: bool
    used_at: datetime | None
    revoked_at: datetime | None
    created_at: datetime


class Collection(Generic[Record]):
    """The rows of one table, as records."""

    def __init__(
        self,
        table: Table,
        record: type[Record],
        statement: Select[Any],
        *,
        key: str = "id",
        newest_first: bool = True,
    ) -> None:
        self.table = table
        self.record = record
        self.key: ColumnElement[str] = table.c[key]
        self._statement = statement
        self._newest_first = newest_first

    async def find(self, connection: Connection, key: str) -> Record | None:
        """Return the record with this key."""
        rows = await connection.execute(self._statement.where(self.key == key))
        row = rows.mappings().first()
        return None if row is None else self._record(row)

    async def find_all(self, connection: Connection, keys: Sequence[str]) -> list[Record]:
        """Return the records with these keys, in their order; unknown ones are left out."""
        rows = await connection.execute(self._statement.where(self.key.in_(keys)))
        found = {row[self.key.key or ""]: self._record(row) for row in rows.mappings()}
        return [found[key] for key in keys if key in found]

    async def page(
        self,
        connection: Connection,
        *,
        after: str | None,
        limit: int,
        equal: Mapping[str, str | None] = {},
    ) -> list[Record]:
        """Return records beyond a key, in order; `equal` filters by column."""
        order = self.key.desc() if self._newest_first else self.key.asc()
        statement = self._statement.order_by(order).limit(limit)
        if after is not None:
            beyond = self.key < after if self._newest_first else self.key > after
            statement = statement.where(beyond)
        for column, value in equal.items():
            if value is not None:
                statement = statement.where(self.table.c[column] == value)
        rows = await connection.execute(statement)
        return [self._record(row) for row in rows.mappings()]

    async def add(self, connection: Connection, **values: object) -> None:
        """Add a row."""
        await connection.execute(insert(self.table).values(**values))

    async def change(self, connection: Connection, key: str, values: Mapping[str, object]) -> None:
        """Change columns of a row."""
        if values:
            await connection.execute(update(self.table).where(self.key == key).values(**values))

    def _record(self, row: Mapping[Any, Any]) -> Record:
        return msgspec.convert({str(name): value for name, value in row.items()}, self.record)


def _columns(table: Table, *names: str) -> list[ColumnElement[Any]]:
    return [table.c[name] for name in names]


def _cap(meter: Meter, label: str) -> ColumnElement[Any]:
    limits = schema.limits.alias(f"cap_{meter}")
    return (
        select(limits.c.amount)
        .where(
            limits.c.owner_id == schema.allocations.c.id,
            limits.c.meter == meter,
            limits.c.window_kind == "month",
        )
        .scalar_subquery()
        .label(label)
    )


providers = Collection(
    schema.providers,
    ProviderRecord,
    select(
        *_columns(schema.providers, "id", "name", "kind", "base_url", "created_at"),
        schema.providers.c.credential.is_not(None).label("has_credential"),
    ),
)

models = Collection(
    schema.models, ModelRecord, select(schema.models), key="slug", newest_first=False
)

prices = Collection(schema.prices, PriceRecord, select(schema.prices))

members = Collection(
    schema.members,
    MemberRecord,
    select(
        *_columns(schema.members, "id", "email", "display_name", "role", "status", "created_at"),
        schema.members.c.password_hash.is_not(None).label("has_password"),
    ),
)

allocations = Collection(
    schema.allocations,
    AllocationRecord,
    select(schema.allocations, _cap("tokens", "cap_tokens"), _cap("usd", "cap_nano")),
)

keys = Collection(
    schema.keys,
    KeyRecord,
    select(
        *_columns(
            schema.keys,
            "id",
            "member_id",
            "name",
            "hint",
            "allocation_ids",
            "expires_at",
            "one_shot",
            "used_at",
            "revoked_at",
            "created_at",
        )
    ),
)


async def _scalar(connection: Connection, statement: Select[Any]) -> Any:
    return (await connection.execute(statement)).scalar_one_or_none()


# Bearers


async def admin_token(connection: Connection, digest: bytes) -> tuple[str, str] | None:
    """Return id and name of the admin token with this digest, unless it is revoked."""
    table = schema.admin_tokens
    statement = select(table.c.id, table.c.name).where(
        table.c.digest == digest, table.c.revoked_at.is_(None)
    )
    row = (await connection.execute(statement)).first()
    return None if row is None else (row.id, row.name)


# What is taken


async def provider_named(connection: Connection, name: str) -> str | None:
    """Return the id of the provider with this name."""
    table = schema.providers
    found: str | None = await _scalar(connection, select(table.c.id).where(table.c.name == name))
    return found


async def member_with(connection: Connection, email: str) -> str | None:
    """Return the id of the member with this address, in whatever case it is written."""
    table = schema.members
    found: str | None = await _scalar(
        connection, select(table.c.id).where(func.lower(table.c.email) == func.lower(email))
    )
    return found


async def unknown_models(connection: Connection, slugs: Sequence[str]) -> list[str]:
    """Return those slugs that are no model's."""
    known = {model.slug for model in await models.find_all(connection, slugs)}
    return [slug for slug in slugs if slug not in known]


async def keys_opening(connection: Connection, allocation_id: str) -> list[KeyRecord]:
    """Return the keys, other than revoked ones, that open an allocation."""
    table = schema.keys
    statement = select(table.c.id).where(
        table.c.allocation_ids.contains([allocation_id]), table.c.revoked_at.is_(None)
    )
    found = (await connection.execute(statement)).scalars().all()
    return await keys.find_all(connection, found)


# Credentials


async def credential_version(connection: Connection, provider_id: str) -> int:
    """Return the version at which the credential of a provider is sealed."""
    table = schema.providers
    version: int = (
        await connection.execute(
            select(table.c.credential_version).where(table.c.id == provider_id)
        )
    ).scalar_one()
    return version


# Prices


async def has_price(connection: Connection, model: str, effective_from: datetime) -> bool:
    """Tell whether a model has a price from exactly this instant on."""
    table = schema.prices
    statement = select(table.c.id).where(
        table.c.model == model, table.c.effective_from == effective_from
    )
    return await _scalar(connection, statement) is not None


async def add_price(
    connection: Connection, *, id: str, model: str, effective_from: datetime, rates: list[Rate]
) -> None:
    """Add a version of a model's rates, exactly as the directory reads them."""
    await prices.add(
        connection,
        id=id,
        model=model,
        effective_from=effective_from,
        rates=cast(literal(rates_json(rates), Text), JSONB),
    )


async def prices_in_force(
    connection: Connection, slugs: Sequence[str], at: datetime
) -> frozenset[str]:
    """Return the ids of the prices that these models have at an instant."""
    table = schema.prices
    statement = (
        select(table.c.id)
        .ext(distinct_on(table.c.model))
        .where(table.c.model.in_(slugs), table.c.effective_from <= at)
        .order_by(table.c.model, table.c.effective_from.desc())
    )
    return frozenset((await connection.execute(statement)).scalars())


# Caps


async def set_cap(
    connection: Connection, account: AccountKey, meter: Meter, amount: int | None, at: datetime
) -> None:
    """Limit an owner in the window of an account, from now on; None: no longer."""
    limits, accounts = schema.limits, schema.accounts
    if amount is None:
        await connection.execute(
            delete(limits).where(
                limits.c.owner_id == account.owner_id,
                limits.c.meter == meter,
                limits.c.window_kind == account.window,
            )
        )
        return
    # A period's first call may come at the same moment: a row that is missing locks nothing.
    await connection.execute(
        upsert(accounts)
        .values(
            id=account.id,
            owner=account.owner,
            owner_id=account.owner_id,
            window_kind=account.window,
            period_start=account.start,
            period_end=account.end,
        )
        .on_conflict_do_nothing()
    )
    locked = select(*_columns(accounts, *Account.__struct_fields__))
    row = (
        await connection.execute(locked.where(accounts.c.id == account.id).with_for_update())
    ).one()
    standing = Account(**row._mapping)
    values = {
        "amount": amount,
        "baseline": standing.used(meter) + standing.held(meter),
        "baseline_account": account.id,
        "set_at": at,
    }
    await connection.execute(
        upsert(limits)
        .values(
            owner_id=account.owner_id,
            meter=meter,
            window_kind=account.window,
            owner=account.owner,
            **values,
        )
        .on_conflict_do_update(index_elements=["owner_id", "meter", "window_kind"], set_=values)
    )
