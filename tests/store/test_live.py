"""What one process tells of the ledger's batches, and what its streams hear, over a real channel."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from app.core.live import News
from app.ids import uuid7
from app.store.database import Pool
from app.store.directory import Directory
from app.store.live import CHANNEL, PACE_S, TOUCHED_MAX, Live, Stream

MANY = TOUCHED_MAX + 1


class Replica:
    """What one process has of it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.pool = Pool(url)
        self.directory = Directory(self.pool, url, lambda *_: "")
        self.live = Live(self.pool, url, self.directory)

    async def start(self) -> Replica:
        await self.pool.open()
        await self.directory.start()
        await self.live.start()
        return self

    async def stop(self) -> None:
        await self.live.stop()
        await self.directory.stop()
        await self.pool.close()

    async def listen(self, member_id: str | None = None) -> Stream:
        """Open a stream of a member, or of an admin, which others know of."""
        await until(
            lambda: self.sql(
                "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()"
                " AND query = 'SELECT 1' AND state = 'idle'"
            )
        )
        role: Any = "admin" if member_id is None else "member"
        stream = self.live.open(role, member_id, frozenset({uuid7()}))
        await self.live.say_here()
        return stream

    def sql(self, statement: str, *values: Any) -> list[Any]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    def allocations(self, count: int) -> tuple[str, list[str]]:
        """Add a member with allocations."""
        member_id = uuid7()
        self.sql("INSERT INTO members (id, email) VALUES (%s, %s)", member_id, f"{member_id}@x")
        rows = self.sql(
            "INSERT INTO allocations (id, member_id, name, models)"
            " SELECT gen_random_uuid(), %s, 'a', '{m}' FROM generate_series(1, %s)"
            " RETURNING id::text",
            member_id,
            count,
        )
        return member_id, [id for (id,) in rows]


async def until(check: Any, within: float = 10) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + within
    while not check():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def hears(stream: Stream, seconds: float = 1.5) -> list[News]:
    """Return what a stream hears in a while, but for the overview."""
    heard: list[News] = []
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        heard += [one for one in await stream.next(left) or [] if one[0] != "overview"]
    return heard


@pytest.fixture
async def replicas(database_url: str) -> AsyncIterator[list[Replica]]:
    """Two replicas on one database."""
    both = [await Replica(database_url).start() for _ in range(2)]
    yield both
    for one in both:
        await one.stop()


async def test_what_one_replica_books_another_hears_once_for_all_batches(
    replicas: list[Replica],
) -> None:
    here, there = replicas
    member_id, ids = here.allocations(3)
    await there.directory.refresh()
    await here.directory.refresh()
    stream, other = await here.listen(member_id), await here.listen(uuid7())
    await until(lambda: there.live.watched)
    for _ in range(50):
        there.live.booked([ids[0], ids[1], uuid7(), None])
    there.live.session("call", member_id)
    heard = await hears(stream)
    assert sorted(heard) == sorted(
        [("allocation", ids[0]), ("allocation", ids[1]), ("session", "call")]
    )
    assert await hears(other, 0.1) == []


async def test_while_nobody_listens_nothing_is_told(replicas: list[Replica]) -> None:
    here, there = replicas
    _, ids = here.allocations(1)
    await there.directory.refresh()
    with psycopg.connect(here.url, autocommit=True) as connection:
        connection.execute(f"LISTEN {CHANNEL}")
        for _ in range(5):
            there.live.booked(ids)
            await asyncio.sleep(PACE_S)
        assert list(connection.notifies(timeout=0.5)) == []
        stream = await here.listen()
        await until(lambda: there.live.watched)
        there.live.booked(ids)
        assert ("allocation", ids[0]) in await hears(stream)
        told = [one.payload for one in connection.notifies(timeout=0.5)]
    assert told == ["here -", f"allocation - {ids[0]}"]


async def test_very_many_are_told_of_in_messages_that_fit_or_as_many(
    replicas: list[Replica],
) -> None:
    here, there = replicas
    member_id, ids = here.allocations(MANY)
    await here.directory.refresh()
    await there.directory.refresh()
    stream = await here.listen(member_id)
    await until(lambda: there.live.watched)
    with psycopg.connect(here.url, autocommit=True) as connection:
        connection.execute(f"LISTEN {CHANNEL}")
        there.live.booked(ids[:450])
        assert sorted(await hears(stream)) == sorted(("allocation", id) for id in ids[:450])
        there.live.booked(ids)
        assert await hears(stream) == [("allocation", None)]
        told = [one.payload for one in connection.notifies(timeout=0.5)]
    assert [len(one.split(" ")) - 2 for one in told] == [200, 200, 50, 0]
    assert max(map(len, told)) < 8000


async def test_a_slow_listener_is_told_late_and_briefly(replicas: list[Replica]) -> None:
    here, there = replicas
    member_id, ids = here.allocations(1000)
    await here.directory.refresh()
    await there.directory.refresh()
    stream, quick = await here.listen(member_id), await here.listen(member_id)
    await until(lambda: there.live.watched)
    for n in range(0, 1000, 200):
        there.live.booked(ids[n : n + 200])
        assert len(await hears(quick, 0.6)) == 200
    assert await hears(stream, 0.2) == [("allocation", None)]


async def test_a_stream_is_told_so_often_and_no_more(replicas: list[Replica]) -> None:
    here, _ = replicas
    stream = await here.listen()
    times: dict[str, list[float]] = {"overview": [], "key": []}
    deadline = time.monotonic() + 2.4
    while (left := deadline - time.monotonic()) > 0:
        stream.add("overview", None)
        stream.add("key", "k")
        for kind, _id in await stream.next(min(left, 0.05)) or []:
            times[kind].append(time.monotonic())
    assert len(times["overview"]) == 2
    assert 6 <= len(times["key"]) <= 11


async def test_what_could_not_be_told_is_told_later(replicas: list[Replica]) -> None:
    here, there = replicas
    member_id, ids = here.allocations(1)
    await here.directory.refresh()
    await there.directory.refresh()
    stream = await here.listen(member_id)
    await until(lambda: there.live.watched)
    pool, there.live.pool = there.live.pool, Pool("host=127.0.0.1 port=9 connect_timeout=1")
    there.live.booked(ids)
    assert await hears(stream, 0.6) == []
    there.live.pool = pool
    assert await hears(stream, 4) == [("allocation", ids[0])]


async def test_a_process_that_is_about_to_stop_opens_no_stream(replicas: list[Replica]) -> None:
    here, _ = replicas
    stream = await here.listen()
    here.live.close()
    assert await stream.next(5) is None
    late = await here.listen()
    assert await late.next(5) is None
