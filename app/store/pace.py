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
from sqlalchemy import ColumnElement, func, select, true, union_all

from app.core.ledger import METERS, Meter
from app.core.money import nano_to_usd
from app.core.projection import WEEK, Basis, Outlook, Pace, project
from app.core.windows import DAY, Period, Window, rolling
from app.store import schema
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
    meter: Meter,
    window: Window,
    amount: int,
    used: int,
    pace: Pace,
    period: Period,
    now: datetime,
    zone: ZoneInfo,
) -> ProjectionDocument:
    """Show when a limit is reached."""
    length = rolling(window)
    if length is not None:
        # By then all that is used now will have slid out.
        period = Period(period.start, now + length)
    found = project(amount, used, pace, period, now, zone)
    per_day: int | str | None = found.per_day
    if meter == "usd" and found.per_day is not None:
        per_day = nano_to_usd(found.per_day)
    return ProjectionDocument(
        state=found.outlook,
        on=found.on,
        at=None if found.at is None else found.at.astimezone(UTC),
        basis=found.basis,
        per_day=per_day,
    )


async def paces(
    connection: Connection,
    owner: Literal["allocation", "key"],
    owner_ids: Sequence[str],
    at: datetime,
) -> dict[tuple[str, Meter], Pace]:
    """Return how fast each of these owners uses each meter."""
    if not owner_ids:
        return {}
    calls, late = schema.calls, schema.adjustments
    owners = schema.allocations if owner == "allocation" else schema.keys
    of = calls.c[f"{owner}_id"]
    day, week = func.uuid7_floor(_whole(at - DAY)), func.uuid7_floor(_whole(at - WEEK))
    first = (
        select(calls.c.started_at)
        .where(of == owners.c.id)
        .order_by(calls.c.id)
        .limit(1)
        .correlate(owners)
        .lateral("first")
    )
    lately = [of == owners.c.id, calls.c.id >= week]
    parts = [
        select(calls.c.id, calls.c.tokens, calls.c.cost_nano.label("usd")).where(*lately),
        select(calls.c.id, late.c.tokens, late.c.nano)
        .join_from(calls, late, late.c.call_id == calls.c.id)
        .where(*lately),
    ]
    if owner == "allocation":
        made = [late.c.allocation_id == owners.c.id, late.c.call_id.is_(None), late.c.id >= week]
        parts.append(select(late.c.id, late.c.tokens, late.c.nano).where(*made))
    used = union_all(*(part.correlate(owners) for part in parts)).lateral("used")

    def total(name: str, *since: ColumnElement[bool]) -> ColumnElement[int]:
        summed = func.sum(used.c[name])
        return func.coalesce(summed.filter(*since) if since else summed, 0)

    totals = select(
        *(total(meter, used.c.id >= day).label(f"{meter}_day") for meter in METERS),
        *(total(meter).label(f"{meter}_week") for meter in METERS),
    ).lateral("totals")
    rows = await connection.execute(
        select(owners.c.id, first.c.started_at, *totals.c)
        .join_from(owners, first, true())
        .join(totals, true())
        .where(owners.c.id.in_(set(owner_ids)))
    )
    return {
        (row["id"], meter): Pace(
            row["started_at"], int(row[f"{meter}_day"]), int(row[f"{meter}_week"])
        )
        for row in rows.mappings()
        for meter in METERS
    }


def _whole(at: datetime) -> datetime:
    """Return an instant in the milliseconds that ids have."""
    return at - timedelta(microseconds=at.microsecond % 1000)
