"""Pools: parents of allocations and of pools, with limits of their own.

Owns the bodies in which admins send them, which of them fit what there is, how they are shown, and
how admins have them shared out. Owns no SQL, no rule of nesting (see `core.pools`) and no reading
of limits (see `limits`).

Invariants: every field of a body is stored and shown again, or the body is refused; every change
leaves its event in the same transaction; what was called before an allocation came into a pool is
not the pool's.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Final
from uuid import UUID

import msgspec
from litestar import Router, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody
from msgspec import UNSET, UnsetType

from app.control import records, wire
from app.control.desk import Change, Desk
from app.control.errors import Refused, documented, invalid, misfit, taken, unknown
from app.control.limits import (
    QUOTA,
    LimitInput,
    LimitName,
    read_limits,
    read_quotas,
    set_limits,
)
from app.control.wire import Input, Page
from app.core.ledger import Account, AccountKey, Meter, account_key
from app.core.money import nano_to_usd
from app.core.pools import InvalidNesting, check_nesting
from app.core.rebalance import CannotRebalance
from app.core.windows import Window
from app.ids import uuid7
from app.store import catalogue, pools, rebalances, usage
from app.store.catalogue import LimitRecord, PoolRecord
from app.store.database import Connection
from app.store.pace import UNUSED, paces, projection
from app.store.pools import Contents
from app.store.rebalances import CapChange, Plan, RebalanceRecord
from app.store.usage import LimitStanding

MONTH: Final[Window] = "month"


class PoolInput(Input):
    """A pool to add. The quotas are short for its limits by month; 0 blocks, null is none."""

    name: str
    parent_id: UUID | None = None
    limits: tuple[LimitInput, ...] = ()
    quota_tokens_per_month: int | None = None
    quota_cost_usd_per_month: Decimal | None = None
    shares_out: bool = False
    reason: str | None = None


class PoolPatch(Input):
    """What to change of a pool. `limits` replaces all that there are."""

    name: str | UnsetType = UNSET
    parent_id: UUID | UnsetType | None = UNSET
    limits: list[LimitInput] | UnsetType = UNSET
    quota_tokens_per_month: int | UnsetType | None = UNSET
    quota_cost_usd_per_month: Decimal | UnsetType | None = UNSET
    shares_out: bool | UnsetType = UNSET
    reason: str | None = None


class PoolDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A pool, how its limits stand, and what was charged to it this month."""

    id: str
    name: str
    parent_id: str | None
    shares_out: bool
    """Whether the token caps of its allocations are shared out anew at every month's start."""
    created_at: datetime
    limits: list[LimitStanding]
    quota_tokens_per_month: int | None
    quota_cost_usd_per_month: str | None
    tokens_used_this_month: int
    tokens_held: int
    cost_used_this_month: str
    cost_held: str
    unpriced_calls_this_month: int
    resets_at: datetime | None
    allocations: int
    """How many are in the pool itself, not counting those of pools inside it."""
    pools: int


@post("/pools", summary="Add a pool")
async def add_pool(data: JSONBody[PoolInput], desk: NamedDependency[Desk]) -> PoolDocument:
    """Whatever its allocations call must fit its limits, and those of every pool it lies in."""
    id = uuid7()
    name = wire.text("name", data.name)
    parent_id = None if data.parent_id is None else str(data.parent_id)
    limits = read_limits(data.limits, "pool")
    wanted: dict[LimitName, int | None] = {**limits}
    quotas = read_quotas(data.quota_tokens_per_month, data.quota_cost_usd_per_month)
    for meter, quota in quotas.items():
        if quota is not None:
            _agrees(meter, quota, limits)
            wanted[meter, MONTH] = quota
    reason = wire.reason(data.reason)

    async def work(change: Change) -> PoolRecord:
        await _free_name(change, name, None)
        await _fits(change, id, parent_id)
        await catalogue.pools.add(
            change.connection,
            id=id,
            name=name,
            parent_id=parent_id,
            shares_out=data.shares_out,
        )
        added = await records.again(change, catalogue.pools, id)
        after = {
            field: getattr(added, field) for field in ("id", "name", "parent_id", "shares_out")
        }
        await change.record("pool_created", "pool", id, after=after, reason=reason)
        await _set_limits(change, added, wanted, reason)
        return await records.again(change, catalogue.pools, id)

    return await _document(desk, await desk.write(work))


@get("/pools", summary="List pools, the oldest first")
async def list_pools(
    desk: NamedDependency[Desk],
    cursor: FromQuery[str | None] = None,
    limit: FromQuery[int] = wire.PAGE_DEFAULT,
    parent_id: FromQuery[str | None] = None,
) -> Page[PoolDocument]:
    parent = wire.id_filter("parent_id", parent_id)
    page = await records.page(desk, catalogue.pools, cursor, limit, parent_id=parent)
    async with desk.deps.database.snapshot() as connection:
        return Page(await _documents(connection, desk, page.items), page.next)


@get("/pools/{id:str}", summary="Show a pool")
async def show_pool(id: FromPath[str], desk: NamedDependency[Desk]) -> PoolDocument:
    record = await records.found(desk, catalogue.pools, wire.path_id(id, "pool"), "pool")
    return await _document(desk, record)


@patch("/pools/{id:str}", summary="Change a pool or its limits, or move it")
async def change_pool(
    id: FromPath[str], data: JSONBody[PoolPatch], desk: NamedDependency[Desk]
) -> PoolDocument:
    """A new limit holds for the next call on every replica; so does a new place."""
    pool_id = wire.path_id(id, "pool")
    values = records.given(shares_out=data.shares_out)
    if data.name is not UNSET:
        values["name"] = wire.text("name", data.name)
    parent_id: str | None = None
    if data.parent_id is not UNSET:
        values["parent_id"] = parent_id = None if data.parent_id is None else str(data.parent_id)
    asked = None if data.limits is UNSET else read_limits(data.limits, "pool")
    quotas = read_quotas(data.quota_tokens_per_month, data.quota_cost_usd_per_month)
    for meter, quota in quotas.items():
        _agrees(meter, quota, asked or {})
    reason = wire.reason(data.reason)

    async def work(change: Change) -> PoolRecord:
        record = await records.current(change, catalogue.pools, pool_id, "pool")
        if "name" in values:
            await _free_name(change, str(values["name"]), pool_id)
        await _fits(change, pool_id, parent_id)
        record = await records.update(
            change, catalogue.pools, "pool", record, values, reason=reason
        )
        wanted: dict[LimitName, int | None] = {}
        if asked is not None:
            wanted = {(limit.meter, limit.window): None for limit in record.limits}
            wanted |= asked
        for meter, quota in quotas.items():
            wanted[meter, MONTH] = quota
        await _set_limits(change, record, wanted, reason)
        return await records.again(change, catalogue.pools, pool_id)

    return await _document(desk, await desk.write(work))


# Sharing out


class RebalanceInput(Input):
    """Whether to do it, or only to show what it would do."""

    dry_run: bool = True
    reason: str | None = None


class RebalanceDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What sharing out did to the token caps of a pool's allocations, or would do."""

    id: str | None
    """Null of a dry run, as are `actor` and `created_at`."""
    pool_id: str
    dry_run: bool
    automatic: bool
    month: datetime
    total_tokens: int
    """What is shared out: the same before and after."""
    changes: list[CapChange]
    actor: str | None
    created_at: datetime | None


@post(
    "/pools/{id:str}/rebalance",
    status_code=200,
    summary="Share out the token caps of a pool's allocations by last month's use",
)
async def rebalance_pool(
    id: FromPath[str], data: JSONBody[RebalanceInput], desk: NamedDependency[Desk]
) -> RebalanceDocument:
    """A dry run, unless told otherwise. USD caps stay as they are."""
    pool_id = wire.path_id(id, "pool")
    reason = wire.reason(data.reason)
    calendar = desk.deps.calendar

    async def plan(connection: Connection) -> Plan:
        pool = await catalogue.pools.find(connection, pool_id)
        if pool is None:
            raise unknown("pool")
        try:
            return await rebalances.plan(connection, pool, calendar, desk.at)
        except CannotRebalance as error:
            raise Refused(422, error, detail=f"This pool cannot be shared out: {error}.") from None

    async def work(change: Change) -> RebalanceDocument:
        planned = await plan(change.connection)
        done = await rebalances.carry_out(
            change.connection, planned, calendar, desk.author, change.at, reason=reason
        )
        return _rebalance(done)

    if not data.dry_run:
        return await desk.write(work)
    async with desk.deps.database.snapshot() as connection:
        planned = await plan(connection)
    return RebalanceDocument(
        id=None,
        pool_id=pool_id,
        dry_run=True,
        automatic=False,
        month=planned.month,
        total_tokens=planned.total_tokens,
        changes=planned.changes,
        actor=None,
        created_at=None,
    )


@get("/pools/{id:str}/rebalances", summary="List what sharing out did, the latest run first")
async def list_rebalances(
    id: FromPath[str],
    desk: NamedDependency[Desk],
    cursor: FromQuery[str | None] = None,
    limit: FromQuery[int] = wire.PAGE_DEFAULT,
) -> Page[RebalanceDocument]:
    pool_id = wire.path_id(id, "pool")
    async with desk.deps.database.snapshot() as connection:
        if await catalogue.pools.find(connection, pool_id) is None:
            raise unknown("pool")
    page = await records.page(desk, rebalances.rebalances, cursor, limit, pool_id=pool_id)
    return Page([_rebalance(one) for one in page.items], page.next)


def _rebalance(record: RebalanceRecord) -> RebalanceDocument:
    return RebalanceDocument(**msgspec.structs.asdict(record), dry_run=False)


# What they do alike


def _agrees(meter: Meter, quota: int | None, limits: Mapping[LimitName, int]) -> None:
    if limits.get((meter, MONTH), quota) != quota:
        raise invalid(
            QUOTA[meter],
            "quota_disagrees",
            "is not what `limits` says of the month's {meter}",
            meter=meter,
        )


async def _free_name(change: Change, name: str, pool_id: str | None) -> None:
    owner = await pools.named(change.connection, name)
    if owner is not None and owner != pool_id:
        raise taken("name", "name_taken", "{name!r} is another {what}'s", name=name, what="pool")


async def _fits(change: Change, pool_id: str, parent_id: str | None) -> None:
    if parent_id is None:
        return
    parents = await pools.parents(change.connection)
    if parent_id not in parents:
        raise invalid("parent_id", "no_such_id", "is no {what}'s", what="pool")
    try:
        check_nesting(pool_id, parent_id, parents)
    except InvalidNesting as error:
        raise misfit("parent_id", error) from None


async def _set_limits(
    change: Change,
    record: PoolRecord,
    wanted: Mapping[LimitName, int | None],
    reason: str | None,
) -> None:
    month = change.desk.deps.calendar.period(MONTH, change.at)
    charged = [account_key("pool", record.id, MONTH, month)]
    await set_limits(
        change, "pool", record.id, record.limits, wanted, charged=charged, reason=reason
    )


async def _document(desk: Desk, record: PoolRecord) -> PoolDocument:
    """Show a pool; not within a change, where others would wait for the sums."""
    async with desk.deps.database.snapshot() as connection:
        return (await _documents(connection, desk, [record]))[0]


async def _documents(
    connection: Connection, desk: Desk, found: Sequence[PoolRecord]
) -> list[PoolDocument]:
    """Show pools: what is in each and what was charged to it, asked for all at once."""
    calendar = desk.deps.calendar
    windows = {MONTH} | {limit.window for record in found for limit in record.limits}
    periods = {window: calendar.period(window, desk.at) for window in windows}

    def key(record: PoolRecord, window: Window) -> AccountKey:
        return account_key("pool", record.id, window, periods[window])

    ids = [key(record, window).id for record in found for window in windows]
    accounts = await usage.accounts_at(connection, ids)
    contents = await pools.contents(connection, [record.id for record in found])
    limited = [record.id for record in found if record.limits]
    known_paces = await paces(connection, "pool", limited, desk.at)

    def standing(record: PoolRecord, limit: LimitRecord) -> LimitStanding:
        account, period = accounts.get(key(record, limit.window).id), periods[limit.window]
        projected = projection(
            limit,
            account.used(limit.meter) if account is not None else 0,
            known_paces.get((record.id, limit.meter), UNUSED),
            period,
            desk.at,
            calendar.zone,
        )
        return usage.limit_standing(limit, account, period, projected)

    def document(record: PoolRecord) -> PoolDocument:
        month = key(record, MONTH)
        known = accounts.get(month.id, Account(month.id))
        inside = contents.get(record.id, Contents())
        limits = [standing(record, limit) for limit in record.limits]
        by_month = {limit.meter: limit.amount for limit in record.limits if limit.window == MONTH}
        usd = by_month.get("usd")
        return PoolDocument(
            id=record.id,
            name=record.name,
            parent_id=record.parent_id,
            shares_out=record.shares_out,
            created_at=record.created_at,
            limits=limits,
            quota_tokens_per_month=by_month.get("tokens"),
            quota_cost_usd_per_month=None if usd is None else nano_to_usd(usd),
            tokens_used_this_month=known.used_tokens,
            tokens_held=known.held_tokens,
            cost_used_this_month=nano_to_usd(known.used_nano),
            cost_held=nano_to_usd(known.held_nano),
            unpriced_calls_this_month=known.unpriced_calls,
            resets_at=month.end,
            allocations=inside.allocations,
            pools=inside.pools,
        )

    return [document(record) for record in found]


def pool_router() -> Router:
    """Make the router of pools."""
    handlers = [
        add_pool,
        list_pools,
        show_pool,
        change_pool,
        rebalance_pool,
        list_rebalances,
    ]
    return Router("/", route_handlers=documented(handlers), tags=["Pools"])
