"""Overview: how everything stands, in a few statements over one snapshot.

Owns those statements. Owns no standing of a single allocation (see `usage`), no state's threshold
(see `core.ledger`) and no word on what a provider's errors mean.

Invariants: calls are read from the last day on, by id, and in one pass; those of the month only if
they are unpriced, by an index of those; what was spent in a month is what the accounts say, so it
agrees with the caps.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
from sqlalchemy import select, text

from app.core.ledger import CRITICAL, NEAR, REALTIME
from app.core.windows import Calendar
from app.store import schema
from app.store.database import Connection
from app.store.usage import id_floor

HOUR: Final = timedelta(hours=1)
QUARTER: Final = timedelta(minutes=15)
DAY: Final = timedelta(days=1)

REACHED: Final = ("success", "client_disconnected", "cut_off")
FAILED: Final = "upstream_error"

# Each allocation by the month of its own zone. A cap of 0 is one that is just reached.
STANDING: Final = """
WITH months AS (
    SELECT * FROM unnest(CAST(:zones AS text[]), CAST(:starts AS timestamptz[])) AS m(zone, starts)
), standing AS MATERIALIZED (
    SELECT a.id, coalesce(c.used_nano, 0) AS nano, coalesce(c.used_tokens, 0) AS tokens,
        CASE WHEN a.status = 'active' THEN (
            SELECT max(CASE WHEN e.amount = 0 THEN 1 ELSE e.used / e.amount END)
            FROM (
                SELECT CASE l.meter WHEN 'usd' THEN coalesce(c.used_nano, 0)
                        ELSE coalesce(c.used_tokens, 0) END::numeric AS used,
                    l.amount + CASE WHEN l.topped_until > :at THEN (
                        SELECT coalesce(sum(t.amount), 0) FROM top_ups t
                        WHERE t.owner_id = l.owner_id AND t.meter = l.meter
                            AND t.window_kind = l.window_kind
                            AND t.starts_at <= :at AND t.expires_at > :at) ELSE 0 END AS amount
                FROM limits l
                WHERE l.owner_id = a.id AND l.window_kind = 'month' AND l.amount IS NOT NULL
            ) AS e
        ) END AS share
    FROM allocations a
    JOIN months m ON m.zone = coalesce(a.billing_timezone, '')
    LEFT JOIN accounts c ON c.owner_id = a.id AND c.window_kind = 'month'
        AND c.period_start = m.starts
)
"""
"""What begins a statement over `standing`: each allocation's `id`, `nano`, `tokens` and `share` of
the cap that it is nearest to (null: none, or not active). Its values: see `months`."""

_STANDING = text(
    STANDING
    + """
SELECT
    (SELECT coalesce(sum(nano), 0) FROM standing) AS nano,
    (SELECT count(*) FROM standing WHERE share >= :near AND share < :critical) AS near,
    (SELECT count(*) FROM standing WHERE share >= :critical AND share < 1) AS critical,
    (SELECT count(*) FROM standing WHERE share >= 1) AS exhausted,
    (SELECT json_agg(id) FROM (SELECT id FROM standing WHERE share >= :near
        ORDER BY share DESC, id LIMIT :tight) AS s) AS tight,
    (SELECT json_agg(s) FROM (
        SELECT s.id, a.name, a.member_id, e.email, s.nano, s.tokens
        FROM standing s JOIN allocations a ON a.id = s.id JOIN members e ON e.id = a.member_id
        WHERE s.nano > 0 ORDER BY s.nano DESC, s.id LIMIT :spenders) AS s) AS spenders
"""
)

_RECENT = text("""
SELECT model,
    count(*) FILTER (WHERE id >= CAST(:hour AS uuid)) AS hour_calls,
    count(*) FILTER (WHERE id >= CAST(:hour AS uuid) AND outcome LIKE 'rejected%')
        AS hour_refused,
    count(*) FILTER (WHERE id >= CAST(:today AS uuid)) AS calls,
    count(*) FILTER (WHERE id >= CAST(:today AS uuid) AND outcome LIKE 'rejected%') AS refused,
    coalesce(sum(cost_nano) FILTER (WHERE id >= CAST(:today AS uuid)), 0) AS nano,
    count(*) FILTER (WHERE id >= CAST(:quarter AS uuid)
        AND outcome = ANY(CAST(:reached AS text[]) || CAST(:failed AS text))) AS asked,
    count(*) FILTER (WHERE id >= CAST(:quarter AS uuid) AND outcome = :failed) AS errors,
    max(finished_at) FILTER (WHERE outcome = ANY(CAST(:reached AS text[]))) AS succeeded,
    max(finished_at) FILTER (WHERE outcome = :failed) AS errored
FROM calls WHERE id >= CAST(:since AS uuid) GROUP BY model
""")

_ADJUSTED = text("""
SELECT (SELECT coalesce(sum(a.nano), 0) FROM adjustments a
        WHERE a.call_id >= CAST(:today AS uuid))
    + (SELECT coalesce(sum(a.nano), 0) FROM adjustments a
        WHERE a.call_id IS NULL AND a.allocation_id IS NOT NULL AND a.id >= CAST(:today AS uuid))
""")

_UNPRICED = text("""
SELECT c.model, count(*) AS calls FROM calls c
WHERE c.cost_nano IS NULL AND c.id >= CAST(:month AS uuid)
    AND NOT EXISTS (SELECT FROM adjustments a WHERE a.call_id = c.id AND a.unpriced < 0)
GROUP BY c.model ORDER BY calls DESC, c.model LIMIT :most
""")

_COUNTS = text("""
SELECT
    (SELECT count(*) FROM holds) AS holds,
    (SELECT count(*) FROM holds WHERE deadline < now()) AS overdue,
    (SELECT count(*) FROM holds WHERE facts ->> 'endpoint' = :realtime) AS sessions,
    (SELECT count(*) FROM top_up_requests WHERE status = 'open') AS requests,
    (SELECT count(*) FROM deliveries WHERE status = 'dead') AS dead
""")


class Spender(msgspec.Struct, frozen=True):
    """An allocation that spends."""

    id: str
    name: str
    member_id: str
    email: str
    nano: int
    tokens: int


class Standing(msgspec.Struct, frozen=True):
    """How all allocations stand this month."""

    nano: int
    near: int
    critical: int
    exhausted: int
    tight: list[str]
    """The nearest to a cap, or the furthest beyond, first."""
    spenders: list[Spender]


class Recent(msgspec.Struct, frozen=True):
    """What became of a model's calls: within the hour, today, a quarter of an hour and a day."""

    model: str
    hour_calls: int
    hour_refused: int
    calls: int
    refused: int
    nano: int
    asked: int
    errors: int
    succeeded: datetime | None
    errored: datetime | None


class Unpriced(msgspec.Struct, frozen=True):
    """A model, and how many of its calls this month have no price (any more)."""

    model: str
    calls: int


class Counts(msgspec.Struct, frozen=True):
    """What there is of what waits or runs."""

    holds: int
    overdue: int
    sessions: int
    requests: int
    dead: int


async def be_one_snapshot(connection: Connection) -> None:
    """Let all that is read from this connection be as of one instant; before anything is."""
    await connection.execution_options(isolation_level="REPEATABLE READ")


async def months(connection: Connection, calendar: Calendar, at: datetime) -> dict[str, object]:
    """Return the values of `STANDING`: when the month began in each zone that there is."""
    table = schema.allocations
    zones = list((await connection.execute(select(table.c.billing_timezone).distinct())).scalars())
    return {
        "zones": [zone or "" for zone in zones],
        "starts": [calendar.of(zone).period("month", at).start for zone in zones],
        "at": at,
    }


async def standing(
    connection: Connection, calendar: Calendar, at: datetime, *, tight: int, spenders: int
) -> Standing:
    """Sum up allocations."""
    row = await _one(
        connection,
        _STANDING,
        **await months(connection, calendar, at),
        near=NEAR,
        critical=CRITICAL,
        tight=tight,
        spenders=spenders,
    )
    return msgspec.convert(
        {
            **row,
            "nano": int(row["nano"]),
            "tight": row["tight"] or [],
            "spenders": row["spenders"] or [],
        },
        Standing,
    )


async def recent(
    connection: Connection, calendar: Calendar, at: datetime
) -> tuple[list[Recent], int]:
    """Sum up the calls of the last day by model; and what was adjusted of today's, in nano-USD."""
    today = calendar.period("day", at).start
    rows = await connection.execute(
        _RECENT,
        {
            "since": id_floor(min(today, at - DAY)),
            "today": id_floor(today),
            "hour": id_floor(at - HOUR),
            "quarter": id_floor(at - QUARTER),
            "reached": list(REACHED),
            "failed": FAILED,
        },
    )
    found = [msgspec.convert({**row, "nano": int(row["nano"])}, Recent) for row in rows.mappings()]
    adjusted = await connection.execute(_ADJUSTED, {"today": id_floor(today)})
    return found, int(adjusted.scalar_one())


async def unpriced(
    connection: Connection, calendar: Calendar, at: datetime, *, most: int
) -> Sequence[Unpriced]:
    """Return the models whose calls of this month lack a price, the most called first."""
    month = calendar.period("month", at).start
    rows = await connection.execute(_UNPRICED, {"month": id_floor(month), "most": most})
    return [Unpriced(row.model, row.calls) for row in rows]


async def counts(connection: Connection) -> Counts:
    """Count what waits or runs."""
    return msgspec.convert(dict(await _one(connection, _COUNTS, realtime=REALTIME)), Counts)


async def _one(connection: Connection, statement: Any, **values: object) -> Mapping[Any, Any]:
    return (await connection.execute(statement, values)).mappings().one()
