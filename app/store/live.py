"""Live: what changes on any replica is heard of on all of them, within a moment.

Owns the channel, the one connection of this process that listens to it, what the ledger of this
process has touched and not yet told of, and the streams that are open here. Owns no figure and no
protocol, and not who hears what (see `core.live`).

A message is a kind, whose it is (or `-`), and ids. Changes through the control plane are told of by
a trigger, in their own transaction. The ledger's batches are not: whoever notifies queues up with
everyone else who does. What they touch is collected instead, and told at most four times a second
over a connection of the pool; and only while someone listens somewhere, which those who do repeat.

Invariants:

- Whoever was not heard for a while misses nothing: streams end when the connection is made anew,
  and those who open them again ask for everything again.
- A stream ends with the credential that opened it, and none holds up a shutdown.
- Nothing here grows with how much happens, but with how much there is.
"""

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Any, Final, cast

import psycopg
import structlog
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from app.core.access import Role
from app.core.live import Kind, News, Waiting, hears_all
from app.store.database import hung_up_after
from app.store.directory import Directory
from app.tasks import cancelled

log = structlog.get_logger(__name__)

CHANNEL: Final = "spendgate_live"
NOBODY: Final = "-"

PACE_S: Final = 0.25
"""Between two messages of one process, and between two of one stream."""
OVERVIEW_PACE_S: Final = 2.0
"""Between two times that a stream tells of the overview, which costs more to look at."""
HERE_S: Final = 10.0
"""How often a process with open streams says so."""
WATCHED_S: Final = 3 * HERE_S
"""How long it is believed."""
LISTEN_S: Final = 5.0
"""How long the listener takes silence for no news; then it looks whether it is still heard."""
QUERY_S: Final = 5.0
IDS_IN_MESSAGE: Final = 200
"""Of 37 bytes each: a message has less than 8000."""
TOUCHED_MAX: Final = 4000
"""Above that, only that there are many."""


class Stream:
    """One listener: what it has yet to hear, and whether there will be more."""

    def __init__(self, credentials: frozenset[str], role: Role, member_id: str | None) -> None:
        self.credentials = credentials
        self.member_id = member_id
        self.hears_all = hears_all(role)
        self.ended = False
        self._waiting = Waiting()
        self._told = asyncio.Event()
        self._due_at = 0.0
        self._overview = False
        self._overview_at = 0.0

    def add(self, kind: Kind, id: str | None) -> None:
        """Tell it that something has changed."""
        if kind == "overview":
            self._overview = True
        else:
            self._waiting.add(kind, id)
        self._told.set()

    def end(self) -> None:
        """Tell it that there is no more."""
        self.ended = True
        self._told.set()

    async def next(self, within: float) -> list[News] | None:
        """Return what has changed: nothing, if nothing does in time; None at the end."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + within
        while not self.ended:
            now = clock()
            if now >= self._due_at and (news := self._take(now)):
                self._due_at = now + PACE_S
                return news
            if now >= deadline:
                return []
            until = deadline
            if self._waiting:
                until = min(until, self._due_at)
            if self._overview:
                until = min(until, max(self._due_at, self._overview_at))
            self._told.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(until - now):
                    await self._told.wait()
        return None

    def _take(self, now: float) -> list[News]:
        news = self._waiting.take()
        if self._overview and now >= self._overview_at:
            self._overview, self._overview_at = False, now + OVERVIEW_PACE_S
            news.append(("overview", None))
        return news


class Live:
    """The channel, as one process speaks and hears it."""

    def __init__(self, pool: AsyncConnectionPool[Any], dsn: str, directory: Directory) -> None:
        self.pool = pool
        self.dsn = dsn
        self.directory = directory
        self._all: set[Stream] = set()
        """Those that hear everything."""
        self._members: dict[str, set[Stream]] = {}
        """Those that hear what is a member's."""
        self._touched: set[str | None] = set()
        self._sessions: set[tuple[str, str]] = set()
        self._wake = asyncio.Event()
        self._watched_until = 0.0
        self._said_here = 0.0
        self._closing = False
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Listen, and tell."""
        self._tasks = [
            asyncio.create_task(self._listen(), name="live"),
            asyncio.create_task(self._tell(), name="live-tell"),
            asyncio.create_task(self._stay(), name="live-stay"),
        ]

    async def stop(self) -> None:
        """Stop both."""
        self.close()
        await cancelled(self._tasks)

    def close(self) -> None:
        """End every stream, and open no more: this process is about to stop."""
        self._closing = True
        self._end_all()

    # What this process does

    def booked(self, owner_ids: Iterable[str | None]) -> None:
        """Note which owners a batch of the ledger has touched; of several at a time, whoever."""
        self._touched.update(owner_ids)
        self._wake.set()

    def session(self, call_id: str, member_id: str) -> None:
        """Note that a realtime session began, used something, or ended."""
        self._sessions.add((member_id, call_id))
        self._wake.set()

    # Streams

    def open(self, role: Role, member_id: str | None, credentials: frozenset[str]) -> Stream:
        """Begin to hear; see to it that `leave` follows."""
        stream = Stream(credentials, role, member_id)
        if self._closing:
            stream.end()
        elif stream.hears_all:
            self._all.add(stream)
        elif member_id is not None:
            self._members.setdefault(member_id, set()).add(stream)
        return stream

    def leave(self, stream: Stream) -> None:
        """Hear no more."""
        self._all.discard(stream)
        of_member = self._members.get(stream.member_id or "")
        if of_member is not None:
            of_member.discard(stream)
            if not of_member:
                del self._members[stream.member_id or ""]

    def count(self, credential: str) -> int:
        """Return how many streams a credential has opened."""
        return sum(credential in stream.credentials for stream in self._streams())

    def _streams(self) -> list[Stream]:
        return [*self._all, *(one for some in self._members.values() for one in some)]

    def _end_all(self) -> None:
        for stream in self._streams():
            stream.end()

    # Telling

    @property
    def watched(self) -> bool:
        """Whether anyone listens, on whichever replica."""
        return asyncio.get_running_loop().time() < self._watched_until

    async def _tell(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            touched, self._touched = self._touched, set()
            sessions, self._sessions = self._sessions, set()
            if self.watched:
                known = self.directory.allocations
                allocations = [id for id in touched if id is not None and id in known]
                messages = [*_messages("allocation", NOBODY, allocations)]
                for member_id in {member_id for member_id, _ in sessions}:
                    ids = [id for whose, id in sessions if whose == member_id]
                    messages += _messages("session", member_id, ids)
                try:
                    await self._notify(messages)
                except (psycopg.Error, PoolTimeout, OSError) as error:
                    log.debug("live_not_told", error=type(error).__name__)
                    # Later, then; those who listen have most likely been cut off as well.
                    if len(self._touched) + len(self._sessions) < TOUCHED_MAX:
                        self._touched |= touched
                        self._sessions |= sessions
                        self._wake.set()
            await asyncio.sleep(PACE_S)

    async def _stay(self) -> None:
        while True:
            await asyncio.sleep(HERE_S)
            if self._all or self._members:
                self._said_here = 0.0
                await self.say_here()

    async def say_here(self) -> None:
        """Have all replicas tell of what they do, for a while."""
        now = asyncio.get_running_loop().time()
        if now - self._said_here < HERE_S / 2 and self.watched:
            return
        try:
            await self._notify([f"here {NOBODY}"])
        except (psycopg.Error, PoolTimeout, OSError) as error:
            log.debug("live_not_told", error=type(error).__name__)
        else:
            self._said_here = now

    async def _notify(self, messages: list[str]) -> None:
        if not messages:
            return
        async with self.pool.connection(timeout=2) as connection:
            with hung_up_after(connection, QUERY_S):
                await connection.execute(
                    "SELECT pg_notify(%s, message) FROM unnest(%s::text[]) AS message",
                    [CHANNEL, messages],
                )

    # Hearing

    async def _listen(self) -> None:
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(
                    self.dsn, autocommit=True, connect_timeout=3
                ) as connection:
                    with hung_up_after(connection, QUERY_S):
                        await connection.execute(f"LISTEN {CHANNEL}")
                    # Whatever was said meanwhile was not heard.
                    self._end_all()
                    while True:
                        # A connection that died in silence is found out here.
                        with hung_up_after(connection, QUERY_S):
                            await connection.execute("SELECT 1")
                        async for told in connection.notifies(timeout=LISTEN_S):
                            self._hear(told.payload)
            except (psycopg.Error, OSError) as error:
                log.debug("live_away", error=type(error).__name__)
                await asyncio.sleep(0.2)

    def _hear(self, message: str) -> None:
        kind, _, rest = message.partition(" ")
        whose, *ids = rest.split(" ")
        if kind == "here":
            self._watched_until = asyncio.get_running_loop().time() + WATCHED_S
        elif kind == "end":
            for stream in self._streams():
                if not stream.credentials.isdisjoint(ids):
                    stream.end()
        elif self._all or self._members:
            for stream in self._all:
                stream.add("overview", None)
            if kind == "pool":
                for id in self._allocations_in(ids):
                    self._spread("allocation", NOBODY, id)
            elif kind != "overview":
                named: list[str | None] = [*ids] or [None]
                for one in named:
                    self._spread(cast(Kind, kind), whose, one)

    def _spread(self, kind: Kind, whose: str, id: str | None) -> None:
        """Tell those who hear of it."""
        if id is None and whose == NOBODY:
            hearing: Iterable[Stream] = self._streams()
        else:
            member_id = self._owner_of(id) if whose == NOBODY else whose
            hearing = [*self._all, *self._members.get(member_id or "", ())]
        for stream in hearing:
            stream.add(kind, id)

    def _owner_of(self, allocation_id: str | None) -> str | None:
        known = self.directory.allocations.get(allocation_id or "")
        return None if known is None else known.member_id

    def _allocations_in(self, pool_ids: list[str]) -> list[str]:
        return [
            allocation.id
            for allocation in self.directory.allocations.values()
            if not set(pool_ids).isdisjoint(self.directory.pools_above(allocation))
        ]


def _messages(kind: Kind, whose: str, ids: list[str]) -> list[str]:
    """Write messages of at most so many ids; of very many, one without any."""
    if len(ids) > TOUCHED_MAX:
        return [f"{kind} {whose}"]
    return [
        " ".join([kind, whose, *ids[n : n + IDS_IN_MESSAGE]])
        for n in range(0, len(ids), IDS_IN_MESSAGE)
    ]
