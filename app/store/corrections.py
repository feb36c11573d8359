"""Corrections: adjustments that people make, and calls to be priced again, as rows.

Owns the statements that read and book them, and the document of an adjustment. Owns neither how
much may be corrected nor what a call should have cost: see `core.corrections`.

Invariants:

- Accounts are locked in the order of their ids, before anything that a decision rests on is read;
  and an adjustment is booked in the transaction that moves its accounts by just as much.
- A threshold that is crossed is told of in the same transaction.
- What is added is recorded as overrun, too: a limit that is passed by it was not passed by a call.
- Calls are only ever read.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Literal

import msgspec
from sqlalchemy import (
    ColumnElement,
    Text,
    bindparam,
    cast,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB

from app.core.alerts import Rule
from app.core.corrections import Priced, told
from app.core.ledger import AccountKey, Meter, RollingAccount, account_key
from app.core.metering import Quantity
from app.core.money import nano_to_usd
from app.core.pricing import Price, make_price
from app.core.windows import Calendar, Period, Window
from app.store import journal, pools, schema
from app.store.catalogue import AllocationRecord
from app.store.database import Connection
from app.store.directory import read_rates
from app.store.usage import id_floor

BATCH = 500
"""Calls that are priced again in one transaction: their accounts are locked for that long."""


Kind = Literal["correction", "repriced", "late_settlement"]


class AdjustmentDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What was booked beside a call, or for an allocation alone; negative: taken back."""

    id: str
    call_id: str | None
    allocation_id: str | None
    kind: Kind
    """`late_settlement`: by itself, when a call that was recovered settled after all."""
    tokens: int
    cost_usd: str
    unpriced_calls: int
    """-1: a call that was unpriced is so no more."""
    price_id: str | None
    actor: str | None
    reason: str | None
    created_at: datetime


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """An adjustment to be booked, of a call or (no call) of an allocation alone."""

    id: str
    account_ids: tuple[str, ...]
    tokens: int = 0
    nano: int = 0
    unpriced: int = 0
    kind: Kind
    call_id: str | None = None
    allocation_id: str | None = None
    price_id: str | None = None


class BookedCall(msgspec.Struct, frozen=True, kw_only=True):
    """What a booked call counts in, and what it was booked at."""

    id: str
    allocation_id: str | None
    key_id: str
    account_ids: tuple[str, ...]
    endpoint: str
    started_at: datetime
    usage: dict[str, Quantity]
    nano: int | None
    price_id: str | None


# Reading


async def adjustments(
    connection: Connection,
    *,
    below: str | None,
    limit: int,
    equal: Mapping[str, str | None],
) -> list[AdjustmentDocument]:
    """Return adjustments, newest first, from below an id on; `equal` filters by column."""
    table, calls = schema.adjustments, schema.calls
    of = func.coalesce(table.c.allocation_id, calls.c.allocation_id)
    statement = (
        select(table, of.label("of"))
        .join_from(table, calls, table.c.call_id == calls.c.id, isouter=True)
        # The others bring an account up to what its owner had used: nothing was corrected.
        .where(table.c.call_id.is_not(None) | table.c.allocation_id.is_not(None))
        .order_by(table.c.id.desc())
        .limit(limit)
    )
    if below is not None:
        statement = statement.where(table.c.id < below)
    for name, value in equal.items():
        if value is not None:
            statement = statement.where((of if name == "allocation_id" else table.c[name]) == value)
    rows = await connection.execute(statement)
    return [
        AdjustmentDocument(
            id=row.id,
            call_id=row.call_id,
            allocation_id=row.of,
            kind=row.reason,
            tokens=row.tokens,
            cost_usd=nano_to_usd(row.nano),
            unpriced_calls=row.unpriced,
            price_id=row.price_id,
            actor=row.actor,
            reason=row.note,
            created_at=row.created_at,
        )
        for row in rows
    ]


async def calls_of(
    connection: Connection, where: Iterable[ColumnElement[bool]], limit: int
) -> list[BookedCall]:
    """Return booked calls, the oldest first."""
    table = schema.calls
    rows = await connection.execute(
        select(
            *(table.c[name] for name in BookedCall.__struct_fields__ if name != "nano"),
            table.c.cost_nano.label("nano"),
        )
        .where(*where)
        .order_by(table.c.id)
        .limit(limit)
    )
    return [
        BookedCall(**{**row, "account_ids": tuple(row["account_ids"])}) for row in rows.mappings()
    ]


async def find_call(connection: Connection, call_id: str) -> BookedCall | None:
    """Return the call with this id."""
    found = await calls_of(connection, [schema.calls.c.id == call_id], 1)
    return found[0] if found else None


async def calls_to_reprice(
    connection: Connection, model: str, since: datetime, until: datetime, after: str | None
) -> list[BookedCall]:
    """Return the next calls of a model that used something, admitted in a time."""
    table = schema.calls
    where = [
        table.c.model == model,
        table.c.id < id_floor(until),
        or_(
            table.c.usage != cast(literal("{}", Text), JSONB), table.c.cost_nano.is_distinct_from(0)
        ),
        table.c.id >= id_floor(since) if after is None else table.c.id > after,
    ]
    return await calls_of(connection, where, BATCH)


async def price_versions(connection: Connection, model: str) -> list[Price]:
    """Return all versions of a model's rates, the earliest first."""
    table = schema.prices
    rows = await connection.execute(
        select(table.c.id, table.c.effective_from, cast(table.c.rates, Text).label("rates"))
        .where(table.c.model == model)
        .order_by(table.c.effective_from)
    )
    return [make_price(row.id, model, row.effective_from, read_rates(row.rates)) for row in rows]


async def with_adjustments(
    connection: Connection, calls: Sequence[BookedCall]
) -> list[tuple[BookedCall, Priced]]:
    """Return calls with what the books have for them by now."""
    late = schema.adjustments
    rows = await connection.execute(
        select(
            late.c.call_id,
            func.sum(late.c.nano),
            func.sum(late.c.unpriced),
            func.bool_or(late.c.reason == "late_settlement"),
        )
        .where(late.c.call_id.in_([call.id for call in calls]))
        .group_by(late.c.call_id)
    )
    known = {id: (int(nano), int(unpriced), late) for id, nano, unpriced, late in rows}
    return [
        (
            call,
            Priced(
                call.endpoint,
                call.started_at,
                call.usage,
                call.nano,
                call.price_id,
                *known.get(call.id, (0, 0, False)),
            ),
        )
        for call in calls
    ]


# Accounts


async def standing_accounts(
    connection: Connection, record: AllocationRecord, calendar: Calendar, at: datetime
) -> list[AccountKey]:
    """Return the accounts that a call of an allocation would be charged to, but for its key's."""
    limits = schema.limits
    above = await pools.above(connection, [] if record.pool_id is None else [record.pool_id])
    rows = await connection.execute(
        select(limits.c.owner_id, limits.c.window_kind)
        .where(limits.c.owner_id.in_([record.id, *above]), _stands())
        .distinct()
    )
    windows: dict[str, set[Window]] = {id: {"month"} for id in (record.id, *above)}
    for owner_id, window in rows:
        windows[owner_id].add(window)
    own = calendar.of(record.billing_timezone)
    keys = [
        account_key("allocation", record.id, window, own.period(window, at))
        for window in windows[record.id]
    ]
    keys += [
        account_key("pool", pool_id, window, calendar.period(window, at))
        for pool_id in above
        for window in windows[pool_id]
    ]
    return keys


async def opened_since(
    connection: Connection, calls: Sequence[BookedCall], at: datetime
) -> dict[str, tuple[str, ...]]:
    """Return, by call, the accounts that count it although it was admitted before they were kept.

    An account that is opened in the middle of its period is brought up to what its owner used: from
    then on a correction of an earlier call is one of that, too.
    """
    accounts = schema.accounts
    named = {id for call in calls for id in call.account_ids}
    rows = await connection.execute(
        select(accounts.c.id, accounts.c.owner_id).where(accounts.c.id.in_(named))
    )
    owner_of = {row.id: row.owner_id for row in rows}
    owners = set(owner_of.values()) | {call.key_id for call in calls}
    kept = await connection.execute(
        select(
            accounts.c.id,
            accounts.c.owner_id,
            accounts.c.period_start,
            accounts.c.period_end,
            accounts.c.opened_at,
        )
        .where(
            accounts.c.owner_id.in_(owners),
            accounts.c.opened_at.is_not(None),
            or_(accounts.c.period_end.is_(None), accounts.c.period_end > at),
            exists().where(
                schema.limits.c.owner_id == accounts.c.owner_id,
                schema.limits.c.window_kind == accounts.c.window_kind,
                _stands(),
            ),
        )
        .order_by(accounts.c.id)
    )
    standing = kept.all()
    found: dict[str, tuple[str, ...]] = {}
    for call in calls:
        of_call = {owner_of[id] for id in call.account_ids if id in owner_of} | {call.key_id}
        found[call.id] = tuple(
            row.id
            for row in standing
            if row.owner_id in of_call
            and row.id not in call.account_ids
            # Those that were kept before are those of a calendar that has been left.
            and row.opened_at > call.started_at
            and row.period_start <= call.started_at
            and (row.period_end is None or call.started_at < row.period_end)
        )
    return found


def _stands() -> ColumnElement[bool]:
    limits = schema.limits
    return or_(limits.c.amount.is_not(None), limits.c.watched)


async def lock(connection: Connection, account_ids: Iterable[str]) -> dict[str, RollingAccount]:
    """Lock accounts that there are, in the order in which everyone locks them."""
    table = schema.accounts
    rows = await connection.execute(
        select(*(table.c[name] for name in RollingAccount.__struct_fields__))
        .where(table.c.id.in_(set(account_ids)))
        .order_by(table.c.id)
        .with_for_update()
    )
    return {row.id: RollingAccount(**row._mapping) for row in rows}


def has_slid(account: RollingAccount, call_id: str | None) -> bool:
    """Tell whether a call has slid out of an account; what is of no call is of now."""
    return call_id is not None and account.lies_behind(call_id)


# Writing


def moved(
    entries: Sequence[Entry], accounts: Mapping[str, RollingAccount]
) -> dict[str, RollingAccount]:
    """Return how accounts stand once adjustments are booked on them."""
    after: dict[str, RollingAccount] = {}
    for entry in entries:
        for id in entry.account_ids:
            account = after.get(id, accounts[id])
            slid = has_slid(account, entry.call_id)
            after[id] = msgspec.structs.replace(
                account,
                used_tokens=account.used_tokens + entry.tokens,
                used_nano=account.used_nano + entry.nano,
                unpriced_calls=account.unpriced_calls + entry.unpriced,
                overrun_tokens=account.overrun_tokens + max(0, entry.tokens),
                overrun_nano=account.overrun_nano + max(0, entry.nano),
                slid_tokens=account.slid_tokens + (entry.tokens if slid else 0),
                slid_nano=account.slid_nano + (entry.nano if slid else 0),
            )
    return after


async def book(
    connection: Connection,
    entries: Sequence[Entry],
    before: Mapping[str, RollingAccount],
    after: Mapping[str, RollingAccount],
    *,
    at: datetime,
    day: Period,
    actor: str,
    note: str,
) -> None:
    """Book adjustments, which bring accounts that are locked from `before` to `after`."""
    rows: list[dict[str, object]] = []
    for entry in entries:
        rows.append(
            {
                "id": entry.id,
                "call_id": entry.call_id,
                "account_ids": entry.account_ids,
                "tokens": entry.tokens,
                "nano": entry.nano,
                "reason": entry.kind,
                "unpriced": entry.unpriced,
                "allocation_id": entry.allocation_id,
                "price_id": entry.price_id,
                "actor": actor,
                "note": note,
            }
        )
        # That of a call is made now, under the locks; that of a month, in the month it is booked.
        if entry.call_id is None:
            rows[-1]["created_at"] = at
    await connection.execute(insert(schema.adjustments), rows)
    table = schema.accounts
    names = [name for name in RollingAccount.__struct_fields__ if name != "id"]
    changed = update(table).where(table.c.id == bindparam("account"))
    await connection.execute(
        changed.values({name: bindparam(f"new_{name}") for name in names}),
        [
            {"account": account.id, **{f"new_{n}": getattr(account, n) for n in names}}
            for account in after.values()
        ],
    )
    await _tell(connection, before, after, day, at)


async def _tell(
    connection: Connection,
    before: Mapping[str, RollingAccount],
    after: Mapping[str, RollingAccount],
    day: Period,
    at: datetime,
) -> None:
    """Write into the outbox what is to be told of accounts that were moved."""
    accounts, limits, rules = schema.accounts, schema.limits, schema.alert_rules
    rows = await connection.execute(
        select(
            *(accounts.c[name] for name in ("id", "owner", "owner_id")),
            accounts.c.window_kind.label("window"),
            accounts.c.period_start.label("start"),
            accounts.c.period_end.label("end"),
        ).where(accounts.c.id.in_(list(after)))
    )
    keys = [AccountKey(**row) for row in rows.mappings()]
    owners = {key.owner_id for key in keys}
    enabled = await connection.execute(
        select(
            *(rules.c[name] for name in ("id", "owner_id", "meter", "threshold", "percent")),
            rules.c.window_kind.label("window"),
        ).where(rules.c.owner_id.in_(owners), rules.c.enabled)
    )
    asked: dict[str, list[Rule]] = {}
    for row in enabled.mappings():
        asked.setdefault(row["owner_id"], []).append(Rule(**row))
    standing: dict[tuple[str, Window], dict[Meter, int]] = {}
    for owner_id, window, meter, amount in await connection.execute(
        select(limits.c.owner_id, limits.c.window_kind, limits.c.meter, amount_at(at)).where(
            limits.c.owner_id.in_(owners), limits.c.amount.is_not(None)
        )
    ):
        standing.setdefault((owner_id, window), {})[meter] = int(amount)
    for key in keys:
        of_owner = standing.get((key.owner_id, key.window), {})
        news = told(
            key, before[key.id], after[key.id], of_owner, asked.get(key.owner_id, []), day, at
        )
        for one in news:
            await journal.announce(connection, one.event, one.rule_id)


def amount_at(at: datetime) -> ColumnElement[int]:
    """Return the amount of a limit with the top-ups of it that hold at an instant."""
    limits, top_ups = schema.limits, schema.top_ups
    extra = (
        select(func.coalesce(func.sum(top_ups.c.amount), 0))
        .where(
            top_ups.c.owner_id == limits.c.owner_id,
            top_ups.c.meter == limits.c.meter,
            top_ups.c.window_kind == limits.c.window_kind,
            top_ups.c.starts_at <= at,
            top_ups.c.expires_at > at,
        )
        .scalar_subquery()
    )
    return limits.c.amount + extra
