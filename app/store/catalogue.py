"""The catalogue: providers, models, prices, members, allocations, keys, and their caps, as rows.

Owns the statements that read and change them, and the records in which they are shown. Owns no
rule about what may be written (see `app.control`) and no running total (see `usage`).

Invariants:

- A record shows no secret: no credential, no digest, no hash, only whether there is one.
- Prices are only ever added.
- A cap is set under the lock of the account it limits, so that what it starts from is exact: what
  the owner has used and what its calls in flight hold, at that moment.
"""

from collections.abc import Collection as Some
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

import msgspec
from sqlalchemy import (
    ColumnElement,
    Select,
    Table,
    Text,
    cast,
    false,
    func,
    insert,
    literal,
    select,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, aggregate_order_by, distinct_on
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
from app.core.ledger import AccountKey, Meter, RollingAccount
from app.core.pricing import Rate
from app.core.windows import Window, rolling
from app.store import schema
from app.store.database import Connection
from app.store.directory import rates_json

Record = TypeVar("Record", bound=msgspec.Struct)
T = TypeVar("T")


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
    must_change_password: bool
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
    billing_timezone: str | None
    """Whose months its caps count; None: those of the installation."""
    floor_tokens: int
    locked: bool
    service: bool
    cap_tokens: int | None
    cap_nano: int | None

    def cap(self, meter: Meter) -> int | None:
        """Return the monthly cap in the meter's unit; None: there is none."""
        return self.cap_tokens if meter == "tokens" else self.cap_nano


class PoolRecord(msgspec.Struct, frozen=True):
    """A parent of allocations and of pools, with limits of its own."""

    id: str
    parent_id: str | None
    name: str
    shares_out: bool
    """Whether the token caps of its allocations are shared out anew at every month's start."""
    created_at: datetime
    limits: "list[LimitRecord]"


class LimitRecord(msgspec.Struct, frozen=True):
    """A limit: the most in each period of a window, in tokens or nano-USD."""

    meter: Meter
    window: Window
    amount: int


class KeyRecord(msgspec.Struct, frozen=True):
    """A bearer secret of a member, without the secret; `usage.key_views` adds what is used."""

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
    limits: list[LimitRecord]
    alert_threshold: int | None
    alert_webhook: str | None


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
        conditions = [
            self.table.c[column] == value for column, value in equal.items() if value is not None
        ]
        if after is not None:
            conditions.append(self.key < after if self._newest_first else self.key > after)
        return await self.where(connection, *conditions, limit=limit)

    async def where(
        self, connection: Connection, *conditions: ColumnElement[bool], limit: int | None = None
    ) -> list[Record]:
        """Return the records that meet conditions, in order."""
        order = self.key.desc() if self._newest_first else self.key.asc()
        statement = self._statement.where(*conditions).order_by(order).limit(limit)
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


def _limits_of(owners: Table) -> ColumnElement[Any]:
    table = schema.limits
    limit = func.jsonb_build_object(
        "meter", table.c.meter, "window", table.c.window_kind, "amount", table.c.amount
    )
    listed = func.jsonb_agg(aggregate_order_by(limit, table.c.window_kind, table.c.meter))
    return (
        select(func.coalesce(listed, cast(literal("[]"), JSONB)))
        .where(table.c.owner_id == owners.c.id, table.c.amount.is_not(None))
        .scalar_subquery()
        .label("limits")
    )


def _alert() -> list[ColumnElement[Any]]:
    """Return where a key alerts, and at how many tokens: its own destination, and its one rule."""
    destinations, rules = schema.destinations, schema.alert_rules
    own = destinations.c.key_id == schema.keys.c.id
    address = select(destinations.c.address).where(own)
    threshold = (
        select(func.min(rules.c.threshold))
        .join_from(rules, destinations, rules.c.destination_id == destinations.c.id)
        .where(own)
    )
    return [
        threshold.scalar_subquery().label("alert_threshold"),
        address.scalar_subquery().label("alert_webhook"),
    ]


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
        *_columns(
            schema.members,
            "id",
            "email",
            "display_name",
            "role",
            "status",
            "must_change_password",
            "created_at",
        ),
        schema.members.c.password_hash.is_not(None).label("has_password"),
    ),
)

allocations = Collection(
    schema.allocations,
    AllocationRecord,
    select(schema.allocations, _cap("tokens", "cap_tokens"), _cap("usd", "cap_nano")),
)

pools = Collection(
    schema.pools, PoolRecord, select(schema.pools, _limits_of(schema.pools)), newest_first=False
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
        ),
        _limits_of(schema.keys),
        *_alert(),
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


# Limits


async def set_limit(
    connection: Connection,
    account: AccountKey,
    meter: Meter,
    amount: int | None,
    at: datetime,
    charged: Sequence[AccountKey] = (),
) -> None:
    """Limit an owner in the window of an account: `set_limits` for one."""
    await set_limits(connection, {(account, meter): amount}, at, charged)


async def set_limits(
    connection: Connection,
    amounts: Mapping[tuple[AccountKey, Meter], int | None],
    at: datetime,
    charged: Some[AccountKey] = (),
) -> None:
    """Limit owners in the windows of accounts, from now on; None: no longer.

    Each starts from what was used in the period so far. `charged` are accounts that calls of their
    owners are charged to already: while they are locked, none of those can begin. What is not among
    them is of one owner, and is opened. All accounts are locked at once, in the order in which
    everyone locks them, and for a few statements: however many there are, calls wait meanwhile.
    """
    limits = schema.limits
    set_ = {name: amount for name, amount in amounts.items() if amount is not None}
    lifted = [
        (account.owner_id, meter, account.window) for account, meter in amounts.keys() - set_.keys()
    ]
    if lifted:
        name = tuple_(limits.c.owner_id, limits.c.meter, limits.c.window_kind)
        await connection.execute(update(limits).where(name.in_(lifted)).values(amount=None))
    if not set_:
        return
    known = await _keep(connection, {account for account, _ in set_}, at, charged)
    await _put_limits(
        connection,
        [
            _limit_row(account, meter)
            | {
                "amount": amount,
                "baseline": known[account.id].used(meter) + known[account.id].held(meter),
                "baseline_account": account.id,
                "set_at": at,
            }
            for (account, meter), amount in set_.items()
        ],
    )


def _some(rows: Sequence[T], most: int = 1000) -> list[Sequence[T]]:
    """Return them in parts that fit into a statement."""
    return [rows[n : n + most] for n in range(0, len(rows), most)]


async def watch(
    connection: Connection,
    account: AccountKey,
    meter: Meter,
    at: datetime,
    charged: Sequence[AccountKey] = (),
) -> None:
    """Keep the total of an owner in the window of an account, limited or not, from now on."""
    if account.window not in await kept_windows(connection, account.owner_id):
        await _keep(connection, {account}, at, charged)
    await _put_limits(connection, [_limit_row(account, meter) | {"watched": True}])


async def unwatch(connection: Connection, owner_id: str, meter: Meter, window: Window) -> None:
    """Keep the total of an owner only where it is limited."""
    limits = schema.limits
    await connection.execute(
        update(limits)
        .where(
            limits.c.owner_id == owner_id,
            limits.c.meter == meter,
            limits.c.window_kind == window,
        )
        .values(watched=False)
    )


async def go_over(
    connection: Connection,
    former: Sequence[AccountKey],
    accounts: Sequence[AccountKey],
    at: datetime,
) -> None:
    """Go over to other accounts of an owner: its calendar is another one from now on."""
    locked = await lock_accounts(connection, {*former, *accounts})
    await _open(connection, [key for key in accounts if key not in former], locked, at)


async def lock_account(connection: Connection, account: AccountKey) -> None:
    """Lock an account: no call is admitted until what it is judged by has been changed."""
    await lock_accounts(connection, {account})


def _limit_row(account: AccountKey, meter: Meter) -> dict[str, object]:
    return {
        "owner_id": account.owner_id,
        "meter": meter,
        "window_kind": account.window,
        "owner": account.owner,
    }


async def _put_limits(connection: Connection, rows: Sequence[dict[str, object]]) -> None:
    """Add limits, or change what the rows say beside whose limit it is."""
    key = ("owner_id", "meter", "window_kind")
    for some in _some(rows):
        put = upsert(schema.limits).values(some)
        changed = {name: put.excluded[name] for name in some[0] if name not in (*key, "owner")}
        await connection.execute(put.on_conflict_do_update(index_elements=key, set_=changed))


async def kept_windows(connection: Connection, owner_id: str) -> set[Window]:
    """Return the windows in which an owner is limited or watched."""
    limits = schema.limits
    kept = select(limits.c.window_kind).where(
        limits.c.owner_id == owner_id, limits.c.amount.is_not(None) | limits.c.watched
    )
    return set((await connection.execute(kept)).scalars())


async def _keep(
    connection: Connection, keys: Some[AccountKey], at: datetime, charged: Some[AccountKey]
) -> dict[str, RollingAccount]:
    """Lock accounts that their owners' calls are charged to from now on, up to date."""
    already = set(charged)
    fresh = [key for key in keys if key not in already]
    if fresh:
        [owner_id] = {key.owner_id for key in fresh}
        # Calls are charged to an account already, if another limit needs it.
        kept = await kept_windows(connection, owner_id)
        fresh = [key for key in fresh if key.window not in kept]
    locked = await lock_accounts(connection, {*keys, *already})
    return locked | await _open(connection, fresh, locked, at)


async def lock_accounts(
    connection: Connection, needed: Some[AccountKey]
) -> dict[str, RollingAccount]:
    """Lock accounts, in the order in which everyone locks them; make those that are missing."""
    accounts = schema.accounts
    found: dict[str, RollingAccount] = {}
    for some in _some(sorted(needed, key=lambda key: key.id)):
        # A period's first call may come at the same moment: a row that is missing locks nothing.
        await connection.execute(
            upsert(accounts)
            .values(
                [
                    {
                        "id": key.id,
                        "owner": key.owner,
                        "owner_id": key.owner_id,
                        "window_kind": key.window,
                        "period_start": key.start,
                        "period_end": key.end,
                    }
                    for key in some
                ]
            )
            .on_conflict_do_nothing()
        )
        locked = (
            select(*_columns(accounts, *RollingAccount.__struct_fields__))
            .where(accounts.c.id.in_([key.id for key in some]))
            .order_by(accounts.c.id)
            .with_for_update()
        )
        rows = await connection.execute(locked)
        found |= {row.id: RollingAccount(**row._mapping) for row in rows}
    return found


async def _open(
    connection: Connection,
    keys: Sequence[AccountKey],
    accounts: Mapping[str, RollingAccount],
    at: datetime,
) -> dict[str, RollingAccount]:
    """Bring accounts up to what their one owner used in each period, and to what its calls hold.

    Calls stay as they were booked: what they used comes in as one adjustment. Calls in flight
    count in the accounts from now on. However many there are, calls are looked through once.
    """
    if not keys:
        return {}
    late, holds = schema.adjustments, schema.holds
    starts = {key.id: _start(key, at) for key in keys}
    first = min(starts.values())
    for key in keys:
        if rolling(key.window) is not None:
            # Whatever was there has slid out.
            account = accounts[key.id]
            account.slid_to = starts[key.id]
            account.slid_tokens, account.slid_nano = account.used_tokens, account.used_nano
    began = cast(holds.c.facts["started_at"].astext, schema.calls.c.started_at.type)
    running = (
        select(
            holds.c.call_id,
            holds.c.account_ids,
            holds.c.tokens,
            holds.c.nano,
            began.label("started_at"),
        )
        .where(await _in_flight(connection, keys[0]), began >= first)
        .order_by(holds.c.call_id)
        .with_for_update()
    )
    held = (await connection.execute(running)).all()
    sums = await _used_since(connection, keys, starts)
    opened: dict[str, RollingAccount] = {}
    for key in keys:
        account = accounts[key.id]
        tokens = sums[key.id][0] - account.used("tokens")
        nano = sums[key.id][1] - account.used("usd")
        joining = [
            row
            for row in held
            if row.started_at >= starts[key.id] and key.id not in row.account_ids
        ]
        opened[key.id] = msgspec.structs.replace(
            account,
            used_tokens=account.used_tokens + tokens,
            used_nano=account.used_nano + nano,
            held_tokens=account.held_tokens + sum(row.tokens for row in joining),
            held_nano=account.held_nano + sum(row.nano or 0 for row in joining),
        )
        if tokens or nano:
            await connection.execute(
                insert(late).values(
                    account_ids=[key.id], tokens=tokens, nano=nano, reason="limit_opened"
                )
            )
        if joining:
            await connection.execute(
                update(holds)
                .where(holds.c.call_id.in_([row.call_id for row in joining]))
                .values(
                    account_ids=func.array_append(holds.c.account_ids, cast(key.id, schema.ID)),
                    facts=func.jsonb_set(
                        holds.c.facts,
                        cast(literal("{account_ids}"), ARRAY(Text)),
                        holds.c.facts["account_ids"].op("||")(cast(literal(f'"{key.id}"'), JSONB)),
                    ),
                )
            )
        values = {name: getattr(opened[key.id], name) for name in RollingAccount.__struct_fields__}
        values["opened_at"] = func.clock_timestamp()
        table = schema.accounts
        await connection.execute(update(table).where(table.c.id == key.id).values(**values))
    return opened


def _start(key: AccountKey, at: datetime) -> datetime:
    """Return since when what was used counts in an account that is opened now."""
    length = rolling(key.window)
    if length is None:
        return key.start
    # Ids, which tell when a call was admitted, have milliseconds.
    return at - length - timedelta(microseconds=at.microsecond % 1000)


async def _in_flight(connection: Connection, key: AccountKey) -> ColumnElement[bool]:
    """Say which calls in flight are an owner's."""
    holds = schema.holds
    its: ColumnElement[bool] = holds.c.facts[f"{key.owner}_id"].astext == key.owner_id
    if key.owner == "pool":
        months = await _months_of(connection, key.owner_id)
        its = holds.c.account_ids.overlap(cast(months, ARRAY(schema.ID)))
    return its


async def _months_of(connection: Connection, pool_id: str) -> list[str]:
    """Return the accounts of a pool's months: every call of it is charged to one of them."""
    accounts = schema.accounts
    months = select(accounts.c.id).where(
        accounts.c.owner_id == pool_id, accounts.c.window_kind == "month"
    )
    return list((await connection.execute(months)).scalars())


async def _used_since(
    connection: Connection, keys: Sequence[AccountKey], starts: Mapping[str, datetime]
) -> dict[str, tuple[int, int]]:
    """Return, by account of one owner, the tokens and nano-USD it used from its start on."""
    calls, late, accounts = schema.calls, schema.adjustments, schema.accounts
    owner, owner_id = keys[0].owner, keys[0].owner_id
    sums: dict[str, tuple[int, int]] = {}
    looked_up = []
    for key in keys:
        if owner == "pool" and key.end is None:
            # Everything that was ever charged to it: its months add it up already.
            total = select(
                func.coalesce(func.sum(accounts.c.used_tokens), 0),
                func.coalesce(func.sum(accounts.c.used_nano), 0),
            ).where(accounts.c.owner_id == owner_id, accounts.c.window_kind == "month")
            tokens, nano = (await connection.execute(total)).one()
            sums[key.id] = int(tokens), int(nano)
        else:
            looked_up.append(key)
    if not looked_up:
        return sums
    first = min(starts[key.id] for key in looked_up)
    ranged = [calls.c.id >= func.uuid7_floor(first)]
    made = [late.c.call_id.is_(None), late.c.reason == "correction", late.c.created_at >= first]
    if owner == "pool":
        months = cast(await _months_of(connection, owner_id), ARRAY(schema.ID))
        ranged.append(calls.c.account_ids.overlap(months))
        made.append(late.c.account_ids.overlap(months))
    else:
        ranged.append(calls.c[f"{owner}_id"] == owner_id)
        # Corrections that name no call are of allocations, and so of the pools above.
        made.append(late.c.allocation_id == owner_id if owner == "allocation" else false())
    parts = union_all(
        select(calls.c.id, calls.c.tokens, calls.c.cost_nano.label("nano")).where(*ranged),
        select(calls.c.id, late.c.tokens, late.c.nano)
        .join_from(late, calls, late.c.call_id == calls.c.id)
        .where(*ranged),
        select(func.uuid7_floor(late.c.created_at), late.c.tokens, late.c.nano).where(*made),
    ).subquery()
    columns: list[ColumnElement[Any]] = []
    for key in looked_up:
        inside = [parts.c.id >= func.uuid7_floor(starts[key.id])]
        if key.end is not None:
            inside.append(parts.c.id < func.uuid7_floor(key.end))
        columns += [
            func.coalesce(func.sum(parts.c[name]).filter(*inside), 0) for name in ("tokens", "nano")
        ]
    found = (await connection.execute(select(*columns))).one()
    for n, key in enumerate(looked_up):
        sums[key.id] = int(found[2 * n]), int(found[2 * n + 1])
    return sums
