"""Rebalances: pools that share out the token caps of their allocations, on the books.

Owns the reading of what a run needs, the writing of what it decided, and the log of runs. Owns no
arithmetic and no rule (see `core.rebalance`), and no clock.

Invariants: a run is written whole, with an event for each cap that it changed, or not at all; a
month has one run that nobody asked for, over all replicas; USD caps are neither read nor written.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

import msgspec
from sqlalchemy import func, insert, select

from app.core.ledger import AccountKey, Meter, account_key
from app.core.money import BIGINT_MAX
from app.core.rebalance import CannotRebalance, Share, is_due, rebalance
from app.core.windows import Calendar
from app.ids import uuid7
from app.store import catalogue, journal, schema
from app.store.catalogue import AllocationRecord, Collection, PoolRecord
from app.store.database import Connection
from app.store.journal import Author

JOB: Final = "monthly job"
"""Who runs what nobody asked for, as the audit log names it."""

_HALF_A_MONTH: Final = timedelta(days=14)


class CapChange(msgspec.Struct, frozen=True):
    """What becomes of one allocation's token cap, and why."""

    allocation_id: str
    allocation_name: str
    used_tokens: int
    """Last month."""
    before_tokens: int | None
    after_tokens: int | None
    reason: str


class Plan(msgspec.Struct, frozen=True):
    """What a run would do to a pool as it stands."""

    pool: PoolRecord
    records: list[AllocationRecord]
    month: datetime
    """The start of the month that it is for, in the installation's time zone."""
    total_tokens: int
    """What is shared out: the same before and after."""
    changes: list[CapChange]


class RebalanceRecord(msgspec.Struct, frozen=True):
    """A run, as it was done."""

    id: str
    pool_id: str
    month: datetime
    automatic: bool
    actor: str
    total_tokens: int
    changes: list[CapChange]
    created_at: datetime


rebalances = Collection(schema.rebalances, RebalanceRecord, select(schema.rebalances))


async def plan(connection: Connection, pool: PoolRecord, calendar: Calendar, at: datetime) -> Plan:
    """Say what sharing out a pool would do at an instant. Raises `CannotRebalance`."""
    records = await catalogue.allocations.where(connection, schema.allocations.c.pool_id == pool.id)
    used = await _used_last_month(connection, records, calendar, at)
    result = rebalance(
        [
            Share(
                record.id,
                record.cap_tokens,
                used.get(record.id, 0),
                record.floor_tokens,
                record.locked,
                record.service,
            )
            for record in records
        ]
    )
    if result.total_tokens > BIGINT_MAX:
        raise CannotRebalance(
            "shares_too_much",
            "the caps add up to {total} tokens and the log takes {most}: lock "
            "some of the allocations, or lower caps",
            total=result.total_tokens,
            most=BIGINT_MAX,
        )
    changes = [
        CapChange(
            record.id,
            record.name,
            used.get(record.id, 0),
            change.before_tokens,
            change.after_tokens,
            change.reason,
        )
        for record, change in zip(records, result.changes, strict=True)
    ]
    month = calendar.period("month", at).start
    return Plan(pool, records, month, result.total_tokens, changes)


async def carry_out(
    connection: Connection,
    planned: Plan,
    calendar: Calendar,
    author: Author,
    at: datetime,
    *,
    automatic: bool = False,
    reason: str | None = None,
) -> RebalanceRecord:
    """Set the caps of a plan, in the transaction that made it, and write what was done."""
    pool = planned.pool
    done = RebalanceRecord(
        uuid7(at),
        pool.id,
        planned.month,
        automatic,
        author.actor,
        planned.total_tokens,
        planned.changes,
        at,
    )
    await connection.execute(
        insert(schema.rebalances).values(
            **msgspec.structs.asdict(done) | {"changes": msgspec.to_builtins(done.changes)}
        )
    )
    said = f": {reason}" if reason else ""
    amounts = {}
    for record, change in zip(planned.records, planned.changes, strict=True):
        if change.after_tokens is None or change.after_tokens == change.before_tokens:
            continue
        month = calendar.of(record.billing_timezone).period("month", at)
        amounts[account_key("allocation", record.id, "month", month)] = change.after_tokens
        await journal.record(
            connection,
            author,
            "allocation_token_quota_updated",
            "allocation",
            record.id,
            at=at,
            nth=len(amounts),
            before=change.before_tokens,
            after=change.after_tokens,
            reason=f"shared out in pool {pool.name}, {change.reason}{said}",
        )
    await journal.record(
        connection,
        author,
        "pool_shared_out",
        "pool",
        pool.id,
        at=at,
        after={
            "rebalance_id": done.id,
            "total_tokens": done.total_tokens,
            "allocations_changed": len(amounts),
        },
        reason=reason,
    )
    # Last of all: calls of these allocations wait from here on until it is committed.
    caps: dict[tuple[AccountKey, Meter], int | None] = {
        (account, "tokens"): amount for account, amount in amounts.items()
    }
    await catalogue.set_limits(connection, caps, at, charged=amounts.keys())
    return done


async def _used_last_month(
    connection: Connection, records: Sequence[AllocationRecord], calendar: Calendar, at: datetime
) -> dict[str, int]:
    """Return what allocations used in the month before, each by its own zone.

    One that was in another zone then has the account of that; if it has two of that month, the
    later one took along what the other had.
    """
    table = schema.accounts
    middles: dict[datetime, list[str]] = {}
    for record in records:
        month = calendar.of(record.billing_timezone).period("month", at)
        middles.setdefault(month.start - _HALF_A_MONTH, []).append(record.id)
    used: dict[str, int] = {}
    for middle, ids in middles.items():
        rows = await connection.execute(
            select(table.c.owner_id, func.max(table.c.used_tokens))
            .where(
                table.c.owner_id.in_(ids),
                table.c.window_kind == "month",
                table.c.period_start <= middle,
                table.c.period_end > middle,
            )
            .group_by(table.c.owner_id)
        )
        used.update((owner_id, int(tokens)) for owner_id, tokens in rows)
    return used


# Every month


async def waiting(connection: Connection, calendar: Calendar, at: datetime) -> list[str]:
    """Return the pools that share out every month and have not done so this month."""
    pools, done = schema.pools, schema.rebalances
    month = calendar.period("month", at).start
    run = select(done.c.id).where(done.c.pool_id == pools.c.id, done.c.month == month)
    statement = (
        select(pools.c.id)
        .where(pools.c.shares_out, ~run.where(done.c.automatic).exists())
        .order_by(pools.c.id)
    )
    return list((await connection.execute(statement)).scalars())


async def share_out(
    connection: Connection, pool_id: str, calendar: Calendar, at: datetime
) -> RebalanceRecord | None:
    """Do a pool's run of this month, if it is due and nobody has; raises `CannotRebalance`.

    To be called in a control write: those are serial, so that there is one run over all replicas.
    """
    if pool_id not in await waiting(connection, calendar, at):
        return None
    pool = await catalogue.pools.find(connection, pool_id)
    assert pool is not None, "pools are never deleted"
    records = await catalogue.allocations.where(connection, schema.allocations.c.pool_id == pool_id)
    months = [calendar.of(record.billing_timezone).period("month", at) for record in records]
    if not is_due(at, calendar.period("month", at), months):
        return None
    planned = await plan(connection, pool, calendar, at)
    author = Author(JOB, None, uuid7())
    return await carry_out(connection, planned, calendar, author, at, automatic=True)
