"""Pace: how fast owners use what they have, and when each of their limits is reached at that.

Owns the sums of the last day and week, and the document of a projection. Owns neither the choice of
the rate nor the date: see `core.projection`.

Invariant: one statement reads the pace of all owners that are shown together, each by the index of
its own calls; corrections count where the calls count that they are of.
"""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

import msgspec
from sqlalchemy import Subquery, func, select, true, union_all

from app.core.ledger import METERS, Meter
from app.core.money import nano_to_usd
from app.core.projection import WEEK, Basis, Outlook, Pace, project
from app.core.windows import DAY, Period, rolling
from app.store import schema
from app.store.catalogue import LimitRecord
from app.store.database import Connection

UNUSED = Pace(None, 0, 0)


class ProjectionDocument(msgspec.Struct, frozen=True, kw_only=True):
    """When a limit is reached if its use goes on as it did in the last day or week.

    `date` and `at` are null unless `state` is `projected`; `per_day` is the rate it was told by.
    """

    state: Outlook
    on: date | None = msgspec.field(name="date")
    at: datetime | None
    basis: Basis | None
    per_day: int | str | None


def projection(
    limit: LimitRecord,
    used: int,
    pace: Pace,
    period: Period,
    now: datetime,
    zone: ZoneInfo,
) -> ProjectionDocument:
    """Show when a limit is reached."""
    length = rolling(limit.window)
    if length is not None:
        # By then all that is used now will have slid out.
        period = Period(period.start, now + length)
    found = project(limit.amount, used, pace, period, now, zone)
    per_day: int | str | None = found.per_day
    if limit.meter == "usd" and found.per_day is not None:
        per_day = nano_to_usd(found.per_day)
    return ProjectionDocument(
        state=found.outlook,
        on=found.on,
        at=None if found.at is None else found.at.astimezone(UTC),
        basis=found.basis,
        per_day=per_day,
    )


Paced = Literal["allocation", "key", "pool"]


async def paces(
    connection: Connection, owner: Paced, owner_ids: Sequence[str], at: datetime
) -> dict[tuple[str, Meter], Pace]:
    """Return how fast each of these owners, if it was ever called, uses each meter.

    The calls of a pool are those of the allocations that are in it, or below it, now.
    """
    if not owner_ids:
        return {}
    calls, late = schema.calls, schema.adjustments
    sources = _sources(owner, owner_ids)
    of = calls.c.key_id if owner == "key" else calls.c.allocation_id
    day, week = func.uuid7_floor(_whole(at - DAY)), func.uuid7_floor(_whole(at - WEEK))
    first = (
        select(calls.c.started_at)
        .where(of == sources.c.source)
        .order_by(calls.c.id)
        .limit(1)
        .correlate(sources)
        .lateral("first")
    )
    lately = [of == sources.c.source, calls.c.id >= week]
    parts = [
        select(calls.c.id, calls.c.tokens, calls.c.cost_nano.label("usd")).where(*lately),
        select(calls.c.id, late.c.tokens, late.c.nano)
        .join_from(calls, late, late.c.call_id == calls.c.id)
        .where(*lately),
    ]
    if owner != "key":
        made = [late.c.allocation_id == sources.c.source, late.c.call_id.is_(None)]
        parts.append(select(late.c.id, late.c.tokens, late.c.nano).where(*made, late.c.id >= week))
    used = union_all(*(part.correlate(sources) for part in parts)).lateral("used")
    totals = select(
        *(
            func.sum(used.c[meter]).filter(used.c.id >= day).label(f"{meter}_day")
            for meter in METERS
        ),
        *(func.sum(used.c[meter]).label(f"{meter}_week") for meter in METERS),
    ).lateral("totals")
    rows = await connection.execute(
        select(
            sources.c.owner,
            func.min(first.c.started_at).label("since"),
            *(func.coalesce(func.sum(total), 0).label(total.name) for total in totals.c),
        )
        .join_from(sources, first, true())
        .join(totals, true())
        .group_by(sources.c.owner)
    )
    return {
        (row["owner"], meter): Pace(
            row["since"], int(row[f"{meter}_day"]), int(row[f"{meter}_week"])
        )
        for row in rows.mappings()
        for meter in METERS
    }


def _sources(owner: Paced, owner_ids: Sequence[str]) -> Subquery:
    """Return by whose calls each owner is paced: by its own, or a pool by its allocations'."""
    allocations, pools = schema.allocations, schema.pools
    if owner != "pool":
        table = allocations if owner == "allocation" else schema.keys
        ids = table.c.id
        named = select(ids.label("owner"), ids.label("source")).where(ids.in_(set(owner_ids)))
        return named.subquery("sources")
    roots = select(pools.c.id.label("owner"), pools.c.id).where(pools.c.id.in_(set(owner_ids)))
    above = roots.cte("above", recursive=True)
    below = select(above.c.owner, pools.c.id).join_from(
        above, pools, pools.c.parent_id == above.c.id
    )
    within = above.union(below)
    return (
        select(within.c.owner, allocations.c.id.label("source"))
        .join_from(within, allocations, allocations.c.pool_id == within.c.id)
        .subquery("sources")
    )


def _whole(at: datetime) -> datetime:
    """Return an instant in the milliseconds that ids have."""
    return at - timedelta(microseconds=at.microsecond % 1000)
