"""Usage: what was called, what it cost, and how near to their caps owners are.

Owns the reading of calls, accounts and sums, and the documents in which the data plane and the
control plane show them. Writes nothing, and decides nothing: see `core.ledger`.

Invariants:

- USD are summed as integers and shown as decimal strings; a call whose cost is unknown shows null,
  adds nothing to a sum and is counted as unpriced.
- The sums of a period include the adjustments of its calls, and what was corrected in it without
  naming a call, so they agree with the accounts.
- Quantities are summed within one unit only, exactly.
- Pages and sums name the ids they range over, so that months outside are not touched.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, TypeVar, get_args
from urllib.parse import urlsplit
from uuid import UUID

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import (
    ColumnElement,
    Date,
    FromClause,
    Integer,
    Numeric,
    Select,
    Text,
    and_,
    case,
    func,
    literal,
    null,
    select,
    union_all,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.sql.selectable import Subquery

from app.core.access import AllocationStatus, Key
from app.core.ledger import (
    METERS,
    Account,
    AccountKey,
    Meter,
    OwnerKind,
    RollingAccount,
    account_key,
    account_state,
)
from app.core.metering import UNITS, Quantity
from app.core.money import nano_to_usd, usd_to_nano
from app.core.pools import Bound, binding, pools_above
from app.core.projection import Pace
from app.core.refusals import LimitDocument, Outcome, Shortfall, limit_document
from app.core.windows import Calendar, Period, Window, rolling
from app.store import pools, schema, top_ups
from app.store.catalogue import (
    AllocationRecord,
    KeyRecord,
    LimitRecord,
    PoolRecord,
    allocations,
    keys,
)
from app.store.database import Connection, Database
from app.store.pace import UNUSED, ProjectionDocument, paces, projection
from app.store.rolling import recovers_at, slid_out
from app.store.top_ups import TopUpRecord

Quantities = Annotated[
    dict[str, Quantity],
    # A Decimal would be documented as a string, and is encoded as a number.
    msgspec.Meta(
        description="Quantities by unit.",
        extra_json_schema={"extra": {"additionalProperties": {"type": "number"}}},
    ),
]

State = Literal["ok", "near", "critical", "exhausted", "paused"]


def id_floor(at: datetime) -> str:
    """Return the least id that a call admitted at an instant can have: its milliseconds."""
    return str(UUID(int=max(0, int(at.timestamp() * 1000)) << 80))


# Calls


class CallDocument(msgspec.Struct, frozen=True):
    """A call as it was booked. `cost_usd` is null if the call is unpriced."""

    id: str
    request_id: str
    allocation_id: str | None
    key_id: str
    member_id: str
    model: str
    endpoint: str
    outcome: Outcome
    close_reason: str | None
    status_code: int
    started_at: datetime
    finished_at: datetime
    usage: Quantities
    tokens: int
    cost_usd: str | None
    price_id: str | None
    estimated: bool
    error_message: str | None
    limit: LimitDocument | None


async def call_document(
    database: Database, call_id: str, *, key_id: str | None = None
) -> dict[str, Any] | None:
    """Return a booked call, if `key_id` made it; quantities may be decimals: encode as numbers."""
    async with database.snapshot() as connection:
        call = await find_call(connection, call_id)
    if call is None or (key_id is not None and call.key_id != key_id):
        return None
    return msgspec.structs.asdict(call)


async def find_call(connection: Connection, call_id: str) -> CallDocument | None:
    """Return the call with this id."""
    rows = await connection.execute(select(schema.calls).where(schema.calls.c.id == call_id))
    row = rows.mappings().first()
    return None if row is None else _call(row)


async def calls(
    connection: Connection,
    *,
    below: str | None,
    limit: int,
    since: datetime | None = None,
    until: datetime | None = None,
    equal: Mapping[str, str | None] = {},
) -> list[CallDocument]:
    """Return calls, newest first, from below an id on; `equal` filters by column."""
    table = schema.calls
    statement = select(table).order_by(table.c.id.desc()).limit(limit)
    if below is not None:
        statement = statement.where(table.c.id < below)
    statement = statement.where(*_between(since, until), *_equal(equal))
    return [_call(row) for row in (await connection.execute(statement)).mappings()]


def _call(row: Mapping[Any, Any]) -> CallDocument:
    fields = {name: row[name] for name in CallDocument.__struct_fields__ if name in row}
    cost, shortfall = row["cost_nano"], row["shortfall"]
    return CallDocument(
        **fields,
        cost_usd=None if cost is None else nano_to_usd(cost),
        limit=None if shortfall is None else limit_document(msgspec.convert(shortfall, Shortfall)),
    )


def _between(since: datetime | None, until: datetime | None) -> list[ColumnElement[bool]]:
    table = schema.calls
    conditions: list[ColumnElement[bool]] = []
    if since is not None:
        conditions.append(table.c.id >= id_floor(since))
    if until is not None:
        conditions.append(table.c.id < id_floor(until))
    return conditions


def _equal(equal: Mapping[str, str | None]) -> list[ColumnElement[bool]]:
    return [schema.calls.c[column] == value for column, value in equal.items() if value is not None]


# Standing


class TopUpShown(msgspec.Struct, frozen=True, kw_only=True):
    """A raise of a cap that is in force: USD as decimal strings, tokens as numbers."""

    id: str
    meter: Meter
    amount: int | str
    reason: str
    expires_at: datetime


class BindingLimit(msgspec.Struct, frozen=True, kw_only=True):
    """Of all limits above a call, the one with the least left in share of its amount."""

    owner: OwnerKind
    owner_id: str
    owner_name: str
    meter: Meter
    window: Window
    amount: int | str
    used: int | str
    held: int | str
    remaining: int | str
    resets_at: datetime | None


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """An allocation, its caps, and what this month's calls have used and hold of them.

    The effective caps are those with the top-ups that are in force: `state` and `binds` go by them.
    """

    id: str
    name: str
    models: list[str]
    status: AllocationStatus
    quota_tokens_per_month: int | None
    tokens_used_this_month: int
    tokens_held: int
    quota_cost_usd_per_month: str | None
    cost_used_this_month: str
    cost_held: str
    unpriced_calls_this_month: int
    resets_at: datetime | None
    state: State
    effective_tokens_per_month: int | None
    effective_cost_usd_per_month: str | None
    cost_projection: ProjectionDocument | None
    """When the effective cap is reached; null without one."""
    tokens_projection: ProjectionDocument | None
    top_ups: list[TopUpShown]
    binds: BindingLimit | None
    """Of its own caps and the limits of all pools above; null: nothing limits it."""


class KeyStanding(Standing, frozen=True, kw_only=True):
    """The same, with what is left; null where there is no cap."""

    tokens_remaining: int | None
    cost_remaining: str | None


class LimitStanding(msgspec.Struct, frozen=True, kw_only=True):
    """A limit and how it stands: USD as decimal strings, tokens as numbers.

    `percent` is of what is used, and null of a limit of 0. A rolling window never resets: of one
    that is exceeded, `recovers_at` tells when enough will have slid out of it.
    """

    meter: Meter
    window: Window
    amount: int | str
    used: int | str
    held: int | str
    remaining: int | str
    percent: float | None
    exceeded: bool
    resets_at: datetime | None
    projection: ProjectionDocument
    recovers_at: datetime | None = None


class KeyView(msgspec.Struct, frozen=True, kw_only=True):
    """A key without its secret, and how its limits stand."""

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
    token_budget: int | None
    """The lifetime tokens it may use; null is unlimited."""
    limits: list[LimitStanding]
    alert_threshold: int | None
    """The lifetime tokens at which `alert_webhook` is told."""
    alert_webhook: str | None


AnyKey = TypeVar("AnyKey", bound=KeyView)


class KeyDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it sees itself."""

    id: str
    name: str
    hint: str
    expires_at: datetime | None
    allocations: list[KeyStanding]
    token_budget: int | None
    limits: list[LimitStanding]
    alert_threshold: int | None
    alert_webhook: str | None
    tokens_used_this_month: int
    cost_used_this_month: str
    unpriced_calls_this_month: int
    resets_at: datetime | None


class Cards:
    """What is shown of allocations at an instant, read for all of them at once."""

    def __init__(self, calendar: Calendar, at: datetime) -> None:
        self.calendar = calendar
        self.at = at
        self.accounts: dict[str, Account] = {}
        self.top_ups: dict[str, list[TopUpRecord]] = {}
        self.pools: dict[str, PoolRecord] = {}
        self.parents: dict[str, str | None] = {}
        self.paces: dict[tuple[str, Meter], Pace] = {}

    async def read(self, connection: Connection, records: Sequence[AllocationRecord]) -> None:
        """Read what the cards of these allocations show."""
        pool_ids = [record.pool_id for record in records if record.pool_id is not None]
        self.pools = await pools.above(connection, pool_ids)
        self.parents = {pool.id: pool.parent_id for pool in self.pools.values()}
        self.top_ups = await top_ups.in_force(
            connection, [record.id for record in records], self.at
        )
        keys = [self.key(record) for record in records]
        for pool in self.pools.values():
            keys += [self.pool_key(pool, limit.window) for limit in pool.limits]
        self.accounts = await accounts_at(connection, [key.id for key in keys])
        capped = [record.id for record in records if self.caps(record)]
        self.paces = await paces(connection, "allocation", capped, self.at)

    def period(self, record: AllocationRecord) -> Period:
        """Return the month of an allocation, by its own zone."""
        return self.calendar.of(record.billing_timezone).period("month", self.at)

    def key(self, record: AllocationRecord) -> AccountKey:
        """Name the account of an allocation's month."""
        return account_key("allocation", record.id, "month", self.period(record))

    def pool_key(self, pool: PoolRecord, window: Window) -> AccountKey:
        """Name the account of a pool in a window."""
        return account_key("pool", pool.id, window, self.calendar.period(window, self.at))

    def account(self, record: AllocationRecord) -> Account:
        """Return what an allocation used this month; it may be nothing yet."""
        key = self.key(record)
        return self.accounts.get(key.id, Account(key.id))

    def caps(self, record: AllocationRecord) -> dict[Meter, int]:
        """Return the caps that there are, with what tops them up."""
        caps: dict[Meter, int] = {}
        for meter in METERS:
            cap = record.cap(meter)
            if cap is not None:
                caps[meter] = cap + top_ups.in_all(self.top_ups[record.id], meter)
        return caps

    def projection(self, record: AllocationRecord, meter: Meter) -> ProjectionDocument | None:
        """Tell when a cap is reached, as it is topped up now; None: there is none."""
        cap = self.caps(record).get(meter)
        if cap is None:
            return None
        return projection(
            LimitRecord(meter, "month", cap),
            self.account(record).used(meter),
            self.paces.get((record.id, meter), UNUSED),
            self.period(record),
            self.at,
            self.calendar.of(record.billing_timezone).zone,
        )

    def binds(self, record: AllocationRecord) -> Bound | None:
        """Return the limit that binds an allocation."""
        account, key = self.account(record), self.key(record)
        path = [
            [
                _bound(key, record.name, LimitRecord(meter, "month", cap), account)
                for meter, cap in self.caps(record).items()
            ]
        ]
        for pool_id in pools_above(record.pool_id, self.parents):
            pool = self.pools[pool_id]
            keys = [self.pool_key(pool, limit.window) for limit in pool.limits]
            path.append(
                [
                    _bound(key, pool.name, limit, self.accounts.get(key.id, Account(key.id)))
                    for key, limit in zip(keys, pool.limits, strict=True)
                ]
            )
        return binding(path)

    def standing(self, record: AllocationRecord) -> Standing:
        """Show how an allocation stands."""
        account, caps, binds = self.account(record), self.caps(record), self.binds(record)
        return Standing(
            id=record.id,
            name=record.name,
            models=record.models,
            status=record.status,
            quota_tokens_per_month=record.cap_tokens,
            tokens_used_this_month=account.used_tokens,
            tokens_held=account.held_tokens,
            quota_cost_usd_per_month=_usd(record.cap_nano),
            cost_used_this_month=nano_to_usd(account.used_nano),
            cost_held=nano_to_usd(account.held_nano),
            unpriced_calls_this_month=account.unpriced_calls,
            resets_at=self.period(record).end,
            state=account_state(record.status, caps, account),
            effective_tokens_per_month=caps.get("tokens"),
            effective_cost_usd_per_month=_usd(caps.get("usd")),
            cost_projection=self.projection(record, "usd"),
            tokens_projection=self.projection(record, "tokens"),
            top_ups=[
                TopUpShown(
                    id=one.id,
                    meter=one.meter,
                    amount=in_meter(one.meter, one.amount),
                    reason=one.reason,
                    expires_at=one.expires_at,
                )
                for one in self.top_ups[record.id]
            ],
            binds=None if binds is None else binding_limit(binds),
        )


async def accounts_at(connection: Connection, ids: Sequence[str]) -> dict[str, Account]:
    """Return those of these accounts that there are, by id."""
    table = schema.accounts
    columns = [table.c[name] for name in Account.__struct_fields__]
    rows = await connection.execute(select(*columns).where(table.c.id.in_(ids)))
    return {row["id"]: Account(**row) for row in rows.mappings()}


async def standings(
    connection: Connection, records: Sequence[AllocationRecord], calendar: Calendar, at: datetime
) -> list[Standing]:
    """Show how allocations stand at an instant."""
    cards = Cards(calendar, at)
    await cards.read(connection, records)
    return [cards.standing(record) for record in records]


def in_meter(meter: Meter, value: int) -> int | str:
    """Write an amount as people read it."""
    return nano_to_usd(value) if meter == "usd" else value


def _bound(key: AccountKey, name: str, limit: LimitRecord, account: Account) -> Bound:
    return Bound(
        key.owner,
        key.owner_id,
        name,
        limit.meter,
        limit.window,
        limit.amount,
        account.used(limit.meter),
        account.held(limit.meter),
        key.end,
    )


def binding_limit(bound: Bound) -> BindingLimit:
    """Show the limit that binds."""
    return BindingLimit(
        owner=bound.owner,
        owner_id=bound.owner_id,
        owner_name=bound.owner_name,
        meter=bound.meter,
        window=bound.window,
        amount=in_meter(bound.meter, bound.amount),
        used=in_meter(bound.meter, bound.used),
        held=in_meter(bound.meter, bound.held),
        remaining=in_meter(bound.meter, bound.remaining),
        resets_at=bound.resets_at,
    )


def limit_standing(
    limit: LimitRecord,
    account: Account | None,
    period: Period,
    projected: ProjectionDocument,
) -> LimitStanding:
    """Show how a limit stands in a period; no account: nothing was called yet."""
    known = account if account is not None else Account("")
    used, held = known.used(limit.meter), known.held(limit.meter)

    def shown(value: int) -> int | str:
        return nano_to_usd(value) if limit.meter == "usd" else value

    return LimitStanding(
        meter=limit.meter,
        window=limit.window,
        amount=shown(limit.amount),
        used=shown(used),
        held=shown(held),
        remaining=shown(max(0, limit.amount - used - held)),
        percent=None if limit.amount == 0 else round(100 * used / limit.amount, 2),
        exceeded=used >= limit.amount,
        resets_at=period.end,
        projection=projected,
    )


async def key_views(
    connection: Connection, records: Sequence[KeyRecord], calendar: Calendar, at: datetime
) -> list[KeyView]:
    """Show keys and how their limits stand."""
    windows = {limit.window for record in records for limit in record.limits}
    periods = {window: calendar.period(window, at) for window in windows}
    ids = {
        (record.id, limit.window): account_key(
            "key", record.id, limit.window, periods[limit.window]
        ).id
        for record in records
        for limit in record.limits
    }
    table = schema.accounts
    columns = [table.c[name] for name in RollingAccount.__struct_fields__]
    accounts: dict[str, Account] = {}
    if ids:
        rows = await connection.execute(select(*columns).where(table.c.id.in_(list(ids.values()))))
        accounts = {row["id"]: RollingAccount(**row) for row in rows.mappings()}
        sliding = [id for (_, window), id in ids.items() if rolling(window) is not None]
        for id, (tokens, nano) in (await slid_out(connection, sliding)).items():
            account = accounts[id]
            assert isinstance(account, RollingAccount)
            account.slid_tokens += tokens
            account.slid_nano += nano
    known = await paces(connection, "key", [record.id for record in records if record.limits], at)

    async def shown(record: KeyRecord, limit: LimitRecord) -> LimitStanding:
        account = accounts.get(ids[record.id, limit.window])
        period = periods[limit.window]
        projected = projection(
            limit,
            account.used(limit.meter) if account is not None else 0,
            known.get((record.id, limit.meter), UNUSED),
            period,
            at,
            calendar.zone,
        )
        standing = limit_standing(limit, account, period, projected)
        return await _recovering(connection, record.id, limit, standing, at)

    views = []
    for record in records:
        fields = msgspec.structs.asdict(record)
        fields["limits"] = [await shown(record, limit) for limit in record.limits]
        views.append(KeyView(**fields, token_budget=token_budget(record)))
    return views


async def _recovering(
    connection: Connection, key_id: str, limit: LimitRecord, shown: LimitStanding, at: datetime
) -> LimitStanding:
    """Say of a rolling window that is exceeded when it is so no more; a limit of 0 always is."""
    if rolling(limit.window) is None or not shown.exceeded or limit.amount == 0:
        return shown
    used = usd_to_nano(shown.used) if limit.meter == "usd" else int(shown.used)
    recovers = await recovers_at(
        connection, key_id, limit.meter, limit.window, used - limit.amount, at
    )
    return msgspec.structs.replace(shown, recovers_at=recovers)


def discreet(view: AnyKey) -> AnyKey:
    """Return a key as its member may see it: where it alerts, without what may be a secret."""
    if view.alert_webhook is None:
        return view
    parts = urlsplit(view.alert_webhook)
    return msgspec.structs.replace(view, alert_webhook=f"{parts.scheme}://{parts.hostname}/…")


def token_budget(record: KeyRecord) -> int | None:
    """Return the lifetime tokens that a key may use; None: no end of them."""
    return next(
        (
            limit.amount
            for limit in record.limits
            if (limit.meter, limit.window) == ("tokens", "lifetime")
        ),
        None,
    )


async def key_document(
    database: Database, calendar: Calendar, key: Key, at: datetime
) -> dict[str, Any]:
    """Return a key's own name, its allocations with what is left of them, and what it used."""
    period = calendar.period("month", at)
    async with database.snapshot() as connection:
        record = await keys.find(connection, key.id)
        opened = await allocations.find_all(connection, key.allocation_ids)
        cards = Cards(calendar, at)
        await cards.read(connection, opened)
        used = UsageRow(
            calls=0, refused_calls=0, unpriced_calls=0, tokens=0, cost_usd="0.00", units={}
        )
        query = UsageQuery(("key",), period.start, period.end, {"key_id": key.id}, "UTC")
        async for row in usage_rows(connection, query, units=()):
            used = row
        views = await key_views(connection, [] if record is None else [record], calendar, at)
    document = KeyDocument(
        id=key.id,
        name=record.name if record is not None else "",
        hint=record.hint if record is not None else "",
        expires_at=key.expires_at,
        allocations=[_key_standing(cards, one) for one in opened],
        token_budget=views[0].token_budget if views else None,
        limits=views[0].limits if views else [],
        alert_threshold=record.alert_threshold if record is not None else None,
        alert_webhook=discreet(views[0]).alert_webhook if views else None,
        tokens_used_this_month=used.tokens,
        cost_used_this_month=used.cost_usd,
        unpriced_calls_this_month=used.unpriced_calls,
        resets_at=period.end,
    )
    return msgspec.structs.asdict(document)


def _key_standing(cards: Cards, record: AllocationRecord) -> KeyStanding:
    account, caps = cards.account(record), cards.caps(record)
    left = {
        meter: max(0, cap - account.used(meter) - account.held(meter))
        for meter, cap in caps.items()
    }
    return KeyStanding(
        **msgspec.structs.asdict(cards.standing(record)),
        tokens_remaining=left.get("tokens"),
        cost_remaining=_usd(left.get("usd")),
    )


def _usd(nano: int | None) -> str | None:
    return None if nano is None else nano_to_usd(nano)


# Sums

Dimension = Literal["allocation", "member", "pool", "key", "model", "endpoint", "day", "hour"]

DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)

UNIT_COLUMNS: tuple[str, ...] = tuple(sorted(UNITS))
"""Units in the order in which they are shown."""

_TOTALS = ("calls", "refused_calls", "unpriced_calls", "tokens")


class UsageQuery(msgspec.Struct, frozen=True):
    """Which calls to sum, and by what."""

    group_by: tuple[Dimension, ...]
    since: datetime
    until: datetime | None
    equal: Mapping[str, str | None]
    zone: str
    """Whose midnights separate days."""


class UsageRow(msgspec.Struct, frozen=True, kw_only=True):
    """The sums of one group; only what it is grouped by is named.

    Corrections that name no call have an allocation, and no key, model or endpoint.
    """

    day: date | UnsetType = UNSET
    hour: datetime | UnsetType = UNSET
    member_id: str | UnsetType = UNSET
    member_email: str | UnsetType | None = UNSET
    allocation_id: str | UnsetType | None = UNSET
    allocation_name: str | UnsetType | None = UNSET
    pool_id: str | UnsetType | None = UNSET
    pool_name: str | UnsetType | None = UNSET
    key_id: str | UnsetType | None = UNSET
    key_name: str | UnsetType | None = UNSET
    model: str | UnsetType | None = UNSET
    endpoint: str | UnsetType | None = UNSET
    calls: int
    refused_calls: int
    unpriced_calls: int
    tokens: int
    cost_usd: str
    units: Quantities


async def usage_rows(
    connection: Connection,
    query: UsageQuery,
    *,
    units: Sequence[str] = UNIT_COLUMNS,
    most: int | None = None,
) -> AsyncGenerator[UsageRow, None]:
    """Yield the sums of each group, in order. Close it if you leave before its end.

    Of quantities, only those in `units`: adding up all of them takes most of the time.
    """
    async with connection.stream(_sums(query, units).limit(most)) as rows:
        async for row in rows.mappings():
            fields = {str(name): value for name, value in row.items()}
            quantities = {unit: fields.pop(unit) for unit in units}
            for name in _TOTALS:
                fields[name] = int(fields[name])
            cost = nano_to_usd(int(fields.pop("cost_nano")))
            yield UsageRow(
                **fields,
                cost_usd=cost,
                units={unit: _whole(n) for unit, n in quantities.items() if n},
            )


async def be_patient(connection: Connection) -> None:
    """Let whoever reads from this connection take minutes between two rows."""
    await connection.execute(
        select(func.set_config("idle_in_transaction_session_timeout", "5min", True))
    )


def _whole(quantity: Decimal) -> Quantity:
    return int(quantity) if quantity == quantity.to_integral_value() else quantity


class _Source:
    """Where a part of what was used is found: what it is grouped and filtered by."""

    def __init__(self, joined: FromClause, columns: Mapping[str, ColumnElement[Any]]) -> None:
        self.joined = joined
        self.columns = columns

    def select(self, query: UsageQuery, *totals: ColumnElement[Any]) -> Select[Any]:
        """Return the rows of it that a query is about."""
        by = [self._dimension(name, query.zone) for name in DIMENSIONS if name in query.group_by]
        statement: Select[Any] = select(*by, *totals).select_from(self.joined)
        statement = statement.where(self.columns["id"] >= id_floor(query.since))
        if query.until is not None:
            statement = statement.where(self.columns["id"] < id_floor(query.until))
        for name, value in query.equal.items():
            if value is not None:
                statement = statement.where(self.columns[name] == value)
        return statement

    def _dimension(self, name: Dimension, zone: str) -> ColumnElement[Any]:
        at = self.columns["at"]
        match name:
            case "day":
                return sql_cast(func.timezone(zone, at), Date).label("day")
            case "hour":
                # Hours are counted from midnight, however the clocks change in between.
                midnight = func.date_trunc("day", at, zone)
                hours = func.floor(func.extract("epoch", at - midnight) / 3600)
                return (midnight + hours * timedelta(hours=1)).label("hour")
            case "model" | "endpoint":
                return self.columns[name].label(name)
            case _:
                return self.columns[f"{name}_id"].label(f"{name}_id")


def _sources(query: UsageQuery) -> tuple[_Source, _Source, _Source]:
    """Return calls, what was adjusted of calls, and what was corrected without a call."""
    calls, late, owners = schema.calls, schema.adjustments, schema.allocations
    names = ("id", "allocation_id", "member_id", "key_id", "model", "endpoint")
    columns: dict[str, ColumnElement[Any]] = {name: calls.c[name] for name in names}
    columns |= {"at": calls.c.started_at, "pool_id": owners.c.pool_id}
    made: FromClause = calls
    if "pool" in query.group_by or query.equal.get("pool_id") is not None:
        made = calls.outerjoin(owners, calls.c.allocation_id == owners.c.id)
    by_hand = late.join(owners, and_(late.c.allocation_id == owners.c.id, late.c.call_id.is_(None)))
    of_hand: dict[str, ColumnElement[Any]] = {
        "id": late.c.id,
        "at": late.c.created_at,
        "allocation_id": late.c.allocation_id,
        "member_id": owners.c.member_id,
        "pool_id": owners.c.pool_id,
        "key_id": sql_cast(null(), schema.ID),
        "model": sql_cast(null(), Text),
        "endpoint": sql_cast(null(), Text),
    }
    return (
        _Source(made, columns),
        _Source(made.join(late, late.c.call_id == calls.c.id), columns),
        _Source(by_hand, of_hand),
    )


def _sums(query: UsageQuery, units: Sequence[str]) -> Select[Any]:
    calls, late = schema.calls, schema.adjustments
    booked, adjusted, by_hand = _sources(query)
    nothing = [sql_cast(null(), Numeric).label(unit) for unit in units]
    zero = literal(0, Integer)
    parts = union_all(
        booked.select(
            query,
            literal(1, Integer).label("calls"),
            case((calls.c.outcome.like("rejected%"), 1), else_=0).label("refused_calls"),
            case((calls.c.cost_nano.is_(None), 1), else_=0).label("unpriced_calls"),
            calls.c.tokens.label("tokens"),
            func.coalesce(calls.c.cost_nano, 0).label("cost_nano"),
            *(sql_cast(calls.c.usage[unit].astext, Numeric).label(unit) for unit in units),
        ),
        adjusted.select(query, zero, zero, late.c.unpriced, late.c.tokens, late.c.nano, *nothing),
        by_hand.select(query, zero, zero, late.c.unpriced, late.c.tokens, late.c.nano, *nothing),
    ).subquery()
    totals = (*_TOTALS, "cost_nano", *units)
    groups = [column for column in parts.c if column.name not in totals]
    sums = (
        select(*groups, *(func.sum(parts.c[name]).label(name) for name in totals))
        .group_by(*groups)
        .subquery()
    )
    return _named(sums, query.group_by).order_by(*(sums.c[column.name] for column in groups))


def _named(sums: Subquery, group_by: Sequence[Dimension]) -> Select[Any]:
    """Say what the ids of the groups are called by people."""
    statement: Select[Any] = select(sums)
    for dimension, table, column, label in (
        ("allocation", schema.allocations, "name", "allocation_name"),
        ("member", schema.members, "email", "member_email"),
        ("pool", schema.pools, "name", "pool_name"),
        ("key", schema.keys, "name", "key_name"),
    ):
        if dimension in group_by:
            statement = statement.add_columns(table.c[column].label(label)).outerjoin(
                table, table.c.id == sums.c[f"{dimension}_id"]
            )
    return statement


def month_so_far(calendar: Calendar, at: datetime) -> datetime:
    """Return the start of the billing month, from which sums are taken if nothing else is said."""
    return calendar.period("month", at).start.astimezone(UTC)
