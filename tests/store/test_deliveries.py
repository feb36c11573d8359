"""The queue of deliveries: each is taken once, given back by the clock, and forgotten in the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from app.ids import uuid7
from app.store import deliveries
from app.store.deliveries import Due, Outcome

ARRIVED = Outcome(200, None, 5)
FAILED = Outcome(500, "the answer was 500", 5)


class Queue:
    """A database with destinations and events, and connections to it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.connections: list[psycopg.AsyncConnection[Any]] = []

    async def connection(self) -> psycopg.AsyncConnection[Any]:
        connection = await psycopg.AsyncConnection.connect(self.url, autocommit=True)
        self.connections.append(connection)
        return connection

    async def sql(self, statement: str, *values: Any) -> list[Any]:
        if not self.connections:
            await self.connection()
        cursor = await self.connections[0].execute(statement, values)
        return await cursor.fetchall() if cursor.description else []

    async def destination(self, *events: str) -> str:
        id = uuid7()
        await self.sql(
            "INSERT INTO destinations (id, name, kind, address, events)"
            " VALUES (%s, 'ops', 'webhook', 'https://example.org/', %s)",
            id,
            list(events),
        )
        return id

    async def event(self, kind: str = "request_raised") -> str:
        id = uuid7()
        await self.sql("INSERT INTO events (id, kind, body) VALUES (%s, %s, '{}')", id, kind)
        return id

    async def take(self, most: int = 100, each: int = 100, running: Any = ()) -> list[Due]:
        connection = await self.connection()
        return await deliveries.take(connection, most, each, running)


@pytest.fixture
async def queue(database_url: str) -> AsyncIterator[Queue]:
    queue = Queue(database_url)
    yield queue
    for connection in queue.connections:
        await connection.close()


async def test_an_event_is_routed_once_whoever_routes_it(queue: Queue) -> None:
    wanted, unwanted = await queue.destination("request_raised"), await queue.destination("other")
    ids = [await queue.event() for _ in range(50)]
    await queue.event("nobody's")
    counts = await asyncio.gather(
        *[deliveries.route(await queue.connection()) for _ in range(4)],
    )
    assert sum(counts) == 51
    rows = await queue.sql("SELECT event_id::text, destination_id::text FROM deliveries")
    assert sorted(rows) == sorted((id, wanted) for id in ids)
    assert unwanted not in {destination for _, destination in rows}
    assert await deliveries.route(await queue.connection()) == 0


async def test_each_delivery_is_taken_once_and_again_when_its_lease_is_over(queue: Queue) -> None:
    await queue.destination("request_raised")
    for _ in range(60):
        await queue.event()
    await deliveries.route(await queue.connection())
    taken = await asyncio.gather(*[queue.take(most=20) for _ in range(4)])
    ids = [due.id for some in taken for due in some]
    assert len(ids) == len(set(ids))
    ids += [due.id for due in await queue.take()]
    assert len(ids) == len(set(ids)) == 60
    assert await queue.take() == []
    await queue.sql("UPDATE deliveries SET next_at = now()")
    again = await queue.take()
    assert {due.id for due in again} == set(ids)
    assert all(due.lease - due.taken_at == timedelta(seconds=30) for due in again)


async def test_a_destination_is_given_a_few_at_a_time_those_under_way_among_them(
    queue: Queue,
) -> None:
    first, second = [await queue.destination("request_raised") for _ in range(2)]
    for _ in range(5):
        await queue.event()
    await deliveries.route(await queue.connection())

    def told(some: list[Due]) -> list[int]:
        return [sum(due.destination_id == id for due in some) for id in (first, second)]

    running = await queue.take(each=2)
    assert told(running) == [2, 2]
    assert await queue.take(each=2, running=running) == []
    left = [due for due in running if due.destination_id == first][1:]
    assert told(await queue.take(each=2, running=left)) == [1, 2]
    # What is under way is not taken a second time, whatever its time says.
    await queue.sql("UPDATE deliveries SET next_at = now()")
    again = await queue.take(each=100, running=running)
    assert not {due.id for due in again} & {due.id for due in running}


async def test_who_lost_the_lease_does_not_decide_what_comes_next_but_arrived_is_arrived(
    queue: Queue,
) -> None:
    await queue.destination("request_raised")
    await queue.event()
    connection = await queue.connection()
    await deliveries.route(connection)
    [slow] = await queue.take()
    await queue.sql("UPDATE deliveries SET next_at = now()")
    [quick] = await queue.take()
    later = quick.taken_at + timedelta(seconds=7)
    await deliveries.write_down(connection, quick, FAILED, later)
    row = "SELECT status, attempts, next_at, last_status FROM deliveries"
    assert await queue.sql(row) == [("pending", 1, later, 500)]
    await deliveries.write_down(connection, slow, FAILED, None)
    assert await queue.sql(row) == [("pending", 1, later, 500)]
    await deliveries.release(connection, [slow])
    assert await queue.sql(row) == [("pending", 1, later, 500)]
    await deliveries.write_down(connection, slow, ARRIVED, None)
    assert [one[0] for one in await queue.sql(row)] == ["delivered"]
    await deliveries.write_down(connection, quick, FAILED, later)
    assert [one[0] for one in await queue.sql(row)] == ["delivered"]
    assert await queue.sql("SELECT count(*) FROM delivery_attempts") == [(4,)]


async def test_a_try_of_what_was_deleted_meanwhile_is_not_written_down(queue: Queue) -> None:
    await queue.destination("request_raised")
    await queue.event()
    connection = await queue.connection()
    await deliveries.route(connection)
    [due] = await queue.take()
    await queue.sql("DELETE FROM deliveries")
    await deliveries.write_down(connection, due, ARRIVED, None)
    assert await queue.sql("SELECT * FROM delivery_attempts") == []


async def test_what_ended_90_days_ago_is_forgotten_and_nothing_else(queue: Queue) -> None:
    destination = await queue.destination("request_raised")
    kept, now = {}, datetime.now(UTC)
    for name, status, days in [
        ("old", "delivered", 91),
        ("old and dead", "dead", 91),
        ("recent", "delivered", 89),
        ("recently dead", "dead", 89),
        ("on its way", "pending", 91),
    ]:
        event, delivery, then = await queue.event(), uuid7(), now - timedelta(days=days)
        await queue.sql("UPDATE events SET created_at = now() - interval '100 days'")
        await queue.sql("UPDATE events SET routed_at = now() - interval '100 days'")
        await queue.sql(
            "INSERT INTO deliveries (id, event_id, destination_id, status, next_at, delivered_at)"
            " VALUES (%s, %s, %s, %s, %s, %s)",
            delivery,
            event,
            destination,
            status,
            then if status != "delivered" else now,
            then if status == "delivered" else None,
        )
        await queue.sql(
            "INSERT INTO delivery_attempts (id, delivery_id, duration_ms) VALUES (%s, %s, 1)",
            uuid7(),
            delivery,
        )
        if not name.startswith("old"):
            kept[event] = delivery
    heard_by_nobody, unrouted = await queue.event(), await queue.event()
    await queue.sql("UPDATE events SET created_at = now() - interval '100 days'")
    await queue.sql("UPDATE events SET routed_at = now() WHERE id = %s", heard_by_nobody)
    await deliveries.prune(await queue.connection())
    left = await queue.sql("SELECT event_id::text, id::text FROM deliveries")
    assert dict(left) == kept
    events = {id for (id,) in await queue.sql("SELECT id::text FROM events")}
    assert events == {*kept, unrouted}
    tries = {id for (id,) in await queue.sql("SELECT delivery_id::text FROM delivery_attempts")}
    assert tries == set(kept.values())
