"""What the tests of the real ledger need: calls to make, ledgers to make them on, rows to look at."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import psycopg
from psycopg.rows import TupleRow

from app.core.ledger import (
    NOTHING,
    AccountKey,
    Actual,
    CallFacts,
    Demand,
    OpenDemand,
    OwnerKind,
    Settlement,
)
from app.core.preflight import Paths
from app.core.refusals import Outcome, Refusal
from app.core.windows import Calendar, Window
from app.ids import uuid7
from app.store.batch import Granted, Settled, Stale
from app.store.ledger import Ledger
from app.store.reconcile import reconcile
from app.store.spool import Spool

USD = 10**9
ALLOCATION, OTHER, POOL, KEY, MEMBER, PRICE = (str(UUID(int=n)) for n in range(1, 7))
OWNERS: tuple[tuple[OwnerKind, str], ...] = (("allocation", ALLOCATION),)


class Call:
    """One call: its facts, its path, and what it asks of a ledger."""

    def __init__(
        self,
        *,
        owners: tuple[tuple[OwnerKind, str], ...] = OWNERS,
        tokens: int = 10,
        nano: int | None = USD,
        at: datetime | None = None,
        key_id: str = KEY,
        request_id: str = "r",
        endpoint: str = "chat/completions",
    ) -> None:
        now = at or datetime.now(UTC)
        limited: dict[str, tuple[Window, ...]] = {POOL: ("month",)}
        paths = Paths(Calendar(ZoneInfo("UTC")))
        self.path: tuple[AccountKey, ...] = paths.of(owners, now, limited)
        self.facts = CallFacts(
            uuid7(now),
            request_id,
            ALLOCATION,
            key_id,
            MEMBER,
            "model",
            endpoint,
            PRICE,
            now,
            tuple(key.id for key in self.path),
        )
        self.id = self.facts.id
        self.demand = Demand(self.path, tokens, True, nano, 1, None)

    async def reserve(
        self, ledger: Ledger, version: int = 0, *, one_shot: bool = False
    ) -> Granted | Refusal | Stale:
        """Ask to hold what it needs."""
        return await ledger.reserve(self.facts, self.demand, version, one_shot=one_shot)

    def more(self, tokens: int, nano: int | None, open_: OpenDemand | None = None) -> Demand:
        """What it may ask for beyond its hold."""
        return Demand(self.path, tokens, True, nano, 1, open_)

    def settlement(
        self,
        tokens: int = 7,
        nano: int | None = USD // 2,
        *,
        outcome: Outcome = "success",
        error_message: str | None = None,
    ) -> Settlement:
        """How it ends."""
        actual = Actual({"output_token": tokens}, tokens, nano)
        return Settlement(
            self.facts, outcome, 200, actual, datetime.now(UTC), error_message=error_message
        )

    async def settle(self, ledger: Ledger, tokens: int = 7, nano: int | None = USD // 2) -> Settled:
        """End, having used that."""
        return await ledger.settle(self.settlement(tokens, nano), self.path)

    async def void(self, ledger: Ledger) -> Settled:
        """End, having used nothing."""
        ended = Settlement(self.facts, "upstream_error", 502, NOTHING, datetime.now(UTC))
        return await ledger.settle(ended, self.path)


@contextlib.asynccontextmanager
async def running(dsn: str, directory: Path, **options: Any) -> AsyncIterator[Ledger]:
    """A started ledger with a spool in a directory; stopped at the end."""
    ledger = Ledger(dsn, Spool(directory), **options)
    await ledger.start()
    try:
        yield ledger
    finally:
        await ledger.stop()
        ledger.spool.close()


class Rows:
    """The tables, looked at over a connection of one's own."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn

    async def all(self, query: str, *values: Any) -> list[TupleRow]:
        """Run a statement and return its rows, if it has any."""
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as connection:
            cursor = await connection.execute(query, values)  # type: ignore[arg-type]
            return await cursor.fetchall() if cursor.description else []

    async def one(self, query: str, *values: Any) -> Any:
        """Return the first column of the only row."""
        [row] = await self.all(query, *values)
        return row[0]

    async def limit(
        self, meter: str, amount: int, owner: OwnerKind = "allocation", owner_id: str = ALLOCATION
    ) -> None:
        """Limit an owner by month, before it has been used.

        Calls are charged to the owners that these tests say: there is no directory to be behind.
        """
        await self.all("ALTER TABLE limits DISABLE TRIGGER limits_touch")
        await self.all(
            "INSERT INTO limits (owner_id, meter, window_kind, owner, amount)"
            " VALUES (%s, %s, 'month', %s, %s)",
            owner_id,
            meter,
            owner,
            amount,
        )

    async def booked(self) -> dict[str, str]:
        """Return the outcome of every call that is booked; its id is unique by the primary key."""
        return dict(await self.all("SELECT id::text, outcome FROM calls"))

    async def assert_sound(self, *, at_rest: bool = True) -> None:
        """Every invariant holds."""
        assert await reconcile(self.dsn, at_rest=at_rest) == []


async def until(condition: Callable[[], Any], within_s: float = 20) -> Any:
    """Wait until a condition (which may be a coroutine function) is true, and return its value."""
    deadline = time.monotonic() + within_s
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {within_s} s"
        await asyncio.sleep(0.02)
