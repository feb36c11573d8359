"""The queue of deliveries: events to destinations, tries to whoever has a hand free.

Owns the statements by which the worker routes events, takes what is due, and writes down how it
went. Owns no decision of when to try again (see `core.alerts`), and sends nothing.

Invariants:

- A delivery is taken by moving its time ahead: a lease. Whoever took it holds no lock while it
  sends, and if it dies the lease runs out and another one takes it, with the same event id.
- Who lost the lease meanwhile does not decide what comes next; that it arrived, anyone may say.
- A destination is given a few tries at a time, so that one with a long queue fills no one's hands.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec
import psycopg
from psycopg.rows import class_row

from app.ids import uuid7

LEASE_S = 30
"""Longer than a try can take, writing it down included."""
ROUTED_MAX = 500
PRUNED_MAX = 10_000
KEPT_DAYS = 90

Connection = psycopg.AsyncConnection[Any]


class Due(msgspec.Struct, frozen=True):
    """A delivery to try now, with all that sending takes."""

    id: str
    event_id: str
    destination_id: str
    body: str
    kind: Literal["webhook", "email"]
    address: str
    secret: bytes | None
    secret_version: int
    former_secret: bytes | None
    """None if there is none, or if it is not in use any more."""
    former_version: int | None
    attempts: int
    first_at: datetime
    taken_at: datetime
    """By the database's clock, which all of its times are by."""
    lease: datetime


class Outcome(msgspec.Struct, frozen=True):
    """How a try went; without an error, it arrived."""

    status_code: int | None
    error: str | None
    duration_ms: int


# Of a threshold, its rule's destination is told; of everything else, whoever lists it.
ROUTE_SQL = """
SELECT e.id::text, d.id::text
FROM (
    SELECT id, kind, rule_id FROM events WHERE routed_at IS NULL
    ORDER BY created_at LIMIT %(most)s FOR UPDATE SKIP LOCKED
) e
LEFT JOIN alert_rules r ON r.id = e.rule_id AND r.enabled
LEFT JOIN destinations d ON d.enabled
    AND CASE WHEN e.rule_id IS NULL THEN e.kind = ANY(d.events) ELSE d.id = r.destination_id END
"""
QUEUE_SQL = """
INSERT INTO deliveries (id, event_id, destination_id)
SELECT * FROM unnest(%s::uuid[], %s::uuid[], %s::uuid[]) ON CONFLICT DO NOTHING
"""
ROUTED_SQL = "UPDATE events SET routed_at = now() WHERE id = ANY(%s::uuid[])"

TAKE_SQL = """
WITH busy AS (
    SELECT * FROM unnest(%(busy)s::uuid[], %(counts)s::int[]) AS b (destination_id, n)
), due AS (
    SELECT d.id, d.next_at, coalesce(b.n, 0) + row_number() OVER (
        PARTITION BY d.destination_id ORDER BY d.next_at, d.id
    ) AS nth
    FROM deliveries d
    JOIN destinations t ON t.id = d.destination_id AND t.enabled
    LEFT JOIN busy b ON b.destination_id = d.destination_id
    WHERE d.status = 'pending' AND d.next_at <= now() AND d.id <> ALL(%(running)s::uuid[])
), taken AS (
    SELECT id FROM deliveries
    WHERE id IN (SELECT id FROM due WHERE nth <= %(each)s ORDER BY next_at LIMIT %(most)s)
        AND status = 'pending' AND next_at <= now()
    FOR UPDATE SKIP LOCKED
)
UPDATE deliveries d SET next_at = now() + make_interval(secs => %(lease)s)
FROM taken, events e, destinations t
WHERE d.id = taken.id AND e.id = d.event_id AND t.id = d.destination_id
RETURNING d.id::text, e.id::text AS event_id, t.id::text AS destination_id, e.body, t.kind,
    t.address, t.secret, t.secret_version,
    CASE WHEN t.former_until > now() THEN t.former_secret END AS former_secret, t.former_version,
    d.attempts, d.first_at, now() AS taken_at, d.next_at AS lease
"""

# A destination may have been deleted meanwhile, and its log with it.
TRIED_SQL = """
INSERT INTO delivery_attempts (id, delivery_id, at, status_code, error, duration_ms)
SELECT %(attempt)s, id, %(at)s, %(status)s, %(error)s, %(duration)s
FROM deliveries WHERE id = %(id)s FOR KEY SHARE
"""
DELIVERED_SQL = """
UPDATE deliveries SET status = 'delivered', attempts = attempts + 1, delivered_at = now(),
    last_status = %(status)s, last_error = NULL
WHERE id = %(id)s AND status <> 'delivered'
"""
FAILED_SQL = """
UPDATE deliveries SET status = CASE WHEN %(next)s::timestamptz IS NULL THEN 'dead' ELSE status END,
    attempts = attempts + 1, next_at = coalesce(%(next)s, next_at),
    last_status = %(status)s, last_error = %(error)s
WHERE id = %(id)s AND status = 'pending' AND next_at = %(lease)s
"""
RELEASE_SQL = """
UPDATE deliveries SET next_at = now() WHERE id = %s AND status = 'pending' AND next_at = %s
"""

PRUNE_SQL = """
WITH old AS (
    SELECT id FROM deliveries
    WHERE status <> 'pending'
        AND coalesce(delivered_at, next_at) < now() - make_interval(days => %(days)s)
    LIMIT %(most)s
), tries AS (
    DELETE FROM delivery_attempts WHERE delivery_id IN (SELECT id FROM old)
)
DELETE FROM deliveries WHERE id IN (SELECT id FROM old)
"""
PRUNE_EVENTS_SQL = """
DELETE FROM events WHERE id IN (
    SELECT id FROM events e
    WHERE e.created_at < now() - make_interval(days => %(days)s) AND e.routed_at IS NOT NULL
        AND NOT EXISTS (SELECT FROM deliveries d WHERE d.event_id = e.id)
    LIMIT %(most)s
)
"""


async def route(connection: Connection) -> int:
    """Turn events that are new into deliveries; return how many events."""
    async with connection.transaction():
        rows = await (await connection.execute(ROUTE_SQL, {"most": ROUTED_MAX})).fetchall()
        if not rows:
            return 0
        pairs = [(event, destination) for event, destination in rows if destination is not None]
        columns = [[uuid7(), *pair] for pair in pairs]
        if columns:
            await connection.execute(
                QUEUE_SQL, [list(column) for column in zip(*columns, strict=True)]
            )
        events = list({event for event, _ in rows})
        await connection.execute(ROUTED_SQL, [events])
        return len(events)


async def take(connection: Connection, most: int, each: int, running: Sequence[Due]) -> list[Due]:
    """Take up to `most` deliveries that are due, leaving `each` destination so many at a time.

    `running` are those that are being sent by whoever asks.
    """
    counts: dict[str, int] = {}
    for due in running:
        counts[due.destination_id] = counts.get(due.destination_id, 0) + 1
    async with connection.cursor(row_factory=class_row(Due)) as cursor:
        await cursor.execute(
            TAKE_SQL,
            {
                "busy": list(counts),
                "counts": list(counts.values()),
                "running": [due.id for due in running],
                "each": each,
                "most": most,
                "lease": LEASE_S,
            },
        )
        return await cursor.fetchall()


async def write_down(
    connection: Connection, due: Due, outcome: Outcome, next_at: datetime | None
) -> None:
    """Log a try, and say what becomes of the delivery; `next_at` None: nothing any more."""
    values = {
        "id": due.id,
        "attempt": uuid7(),
        "at": due.taken_at,
        "status": outcome.status_code,
        "error": outcome.error,
        "duration": outcome.duration_ms,
        "next": next_at,
        "lease": due.lease,
    }
    async with connection.transaction():
        await connection.execute(TRIED_SQL, values)
        await connection.execute(DELIVERED_SQL if outcome.error is None else FAILED_SQL, values)


async def release(connection: Connection, left: Collection[Due]) -> None:
    """Give back what was taken and not tried to the end: another one may take it at once."""
    for due in left:
        await connection.execute(RELEASE_SQL, [due.id, due.lease])


async def prune(connection: Connection) -> None:
    """Forget what ended long ago, some at a time."""
    values = {"days": KEPT_DAYS, "most": PRUNED_MAX}
    for statement in (PRUNE_SQL, PRUNE_EVENTS_SQL):
        while (await connection.execute(statement, values)).rowcount == PRUNED_MAX:
            pass
