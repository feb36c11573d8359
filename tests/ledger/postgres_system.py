"""The ledger on PostgreSQL as a system that the machine can drive: one replica of it, or several.

Which replica does something, the machine says (`turns`). All of them run on one event loop of their
own, each with its connection and its beliefs; a further connection looks over their shoulders.

Where rolling windows begin, PostgreSQL reckons by its clock. Here that is the machine's: a function
of the same name, in a schema that connections to this database look into first.
"""

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import psycopg
from psycopg import sql

from app.core.ledger import METERS, Account, AccountKey, Actual, Meter, RollingAccount
from app.core.windows import EPOCH, rolling
from app.store.batch import Granted, Settled, encode
from app.store.catalogue import set_limit
from app.store.database import Database
from app.store.ledger import Ledger
from app.store.reconcile import reconcile
from app.store.rolling import SLIDE_SQL
from app.store.spool import Spool
from tests.ledger import strategies
from tests.ledger.machine import LedgerMachine
from tests.ledger.model import (
    AdjustmentRow,
    CallRow,
    Extend,
    HoldRow,
    Operation,
    Recover,
    Reserve,
    Result,
    Settle,
    State,
)

ACCOUNTS = """
SELECT id::text, used_tokens, used_nano, held_tokens, held_nano,
       unpriced_calls, overrun_tokens, overrun_nano FROM accounts
"""
HOLDS = "SELECT call_id::text, account_ids::text[], tokens, nano, checkpoint::text FROM holds"
CALLS = """
SELECT id::text, account_ids::text[], outcome, close_reason, tokens, cost_nano,
       overrun_tokens, overrun_nano, estimated FROM calls
"""
ADJUSTMENTS = "SELECT call_id::text, account_ids::text[], tokens, nano FROM adjustments"

SLID = SLIDE_SQL.format(ids="%s::uuid[]")

CLOCK = """
CREATE SCHEMA machine;
CREATE TABLE machine.clock AS SELECT now() AS shows;
CREATE FUNCTION machine.clock_timestamp() RETURNS timestamptz LANGUAGE sql
    AS 'SELECT shows FROM machine.clock';
"""
# As it is left when its limit is opened, before any call.
ROLLS = """
INSERT INTO accounts (id, owner, owner_id, window_kind, period_start, slid_to)
VALUES (%(id)s, %(owner)s, %(owner_id)s, %(window)s, %(start)s, %(slid_to)s)
"""

_decode = msgspec.json.Decoder(Actual | None).decode


class PostgresSystem:
    """Some `Ledger`s on an event loop of their own, and a connection to look over their shoulders.

    They are as many as there are directories for their spools.
    """

    rolls = True

    def __init__(self, dsn: str, *directories: Path) -> None:
        self.dsn = dsn
        self.directories = directories
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="ledger-loop")
        self.turns: Sequence[int] = [0]
        """Which replica does what the machine does next, and then next, over and over."""
        self.done = 0

    def __enter__(self) -> Self:
        self.thread.start()
        self.connection = psycopg.connect(
            self.dsn, autocommit=True, options="-c plan_cache_mode=force_generic_plan"
        )
        row = self.connection.execute("SELECT directory_version FROM installation").fetchone()
        assert row is not None
        self.version = row[0]
        self.connection.execute(CLOCK)
        name = sql.Identifier(self.connection.info.dbname)
        path = "machine, pg_catalog, public"
        self.connection.execute(
            sql.SQL("ALTER DATABASE {} SET search_path = {}").format(name, sql.SQL(path))
        )
        self.connection.execute(sql.SQL("SET search_path = {}").format(sql.SQL(path)))
        self.await_(self.start())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.await_(self.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()
        self.connection.close()

    async def start(self) -> None:
        self.database = Database(self.dsn)
        self.ledgers = [
            Ledger(self.dsn, Spool(directory), hold_deadline_s=3600)
            for directory in self.directories
        ]
        for ledger in self.ledgers:
            await ledger.start()
        # When a hold is refreshed, and with what, is for the machine to say and not for the clock.
        for task in asyncio.all_tasks():
            if task.get_name() == "ledger-holds":
                task.cancel()

    async def stop(self) -> None:
        for ledger in self.ledgers:
            await ledger.stop()
            ledger.spool.close()
        await self.database.close()

    def await_(self, work: Coroutine[Any, Any, Any]) -> Any:
        future: Future[Any] = asyncio.run_coroutine_threadsafe(work, self.loop)
        return future.result(timeout=60)

    # What the machine asks for

    def at(self, now: datetime) -> None:
        if now != self.now:
            self.now = now
            self.connection.execute("UPDATE machine.clock SET shows = %s", [now])

    def reset(self) -> None:
        self.connection.execute("TRUNCATE accounts, limits, holds, calls, adjustments")
        # Calls are charged to what the machine says: there is no directory to be behind.
        self.connection.execute("ALTER TABLE limits DISABLE TRIGGER limits_touch")
        self.now = EPOCH
        [rolls] = strategies.keys_of((strategies.ROLLING,), strategies.CALENDAR, strategies.START)
        length = rolling(rolls.window)
        assert length is not None
        self.connection.execute(
            ROLLS, msgspec.structs.asdict(rolls) | {"slid_to": strategies.START - length}
        )
        for ledger in self.ledgers:
            ledger.live.clear()
        self.turns, self.done = [0], 0

    def run(self, operations: list[Operation]) -> list[Result]:
        ledger = self.ledgers[self.turns[self.done % len(self.turns)]]
        self.done += 1
        results: list[Result] = self.await_(self.batch(ledger, operations))
        return results

    def run_at_once(
        self,
        batches: Sequence[list[Operation]],
        limit: tuple[AccountKey, Meter, int | None] | None,
    ) -> list[list[Result]]:
        """Do a batch on each replica, and change a limit, all at the same time."""

        async def everything() -> list[list[Result]]:
            parts = zip(self.ledgers, batches, strict=True)
            work = [self.batch(ledger, operations) for ledger, operations in parts]
            *results, _ = await asyncio.gather(*work, self.change(limit))
            return results

        results: list[list[Result]] = self.await_(everything())
        return results

    async def batch(self, ledger: Ledger, operations: list[Operation]) -> list[Result]:
        # Queued before the loop runs again, hence one batch.
        return await asyncio.gather(*(self.one(ledger, operation) for operation in operations))

    async def one(self, ledger: Ledger, operation: Operation) -> Result:
        match operation:
            case Reserve(facts, demand, checkpoint):
                reserved = await ledger.reserve(facts, demand, self.version, checkpoint=checkpoint)
                return reserved.grant if isinstance(reserved, Granted) else reserved  # type: ignore[return-value]
            case Extend(call_id, demand, checkpoint):
                return await ledger.extend(call_id, demand, checkpoint=checkpoint)
            case Settle(settlement, path):
                settled: Settled = await ledger.settle(settlement, path)
                return settled.booking  # type: ignore[return-value]
            case Recover(call_id, account_ids):
                return await ledger.recover(call_id, account_ids)

    def set_limit(self, key: AccountKey, meter: Meter, amount: int | None) -> None:
        self.await_(self.change((key, meter, amount)))

    async def change(self, limit: tuple[AccountKey, Meter, int | None] | None) -> None:
        """Change a limit as the control plane does."""
        if limit is None:
            return
        key, meter, amount = limit
        now = self.now
        await self.database.transaction(
            lambda connection: set_limit(connection, key, meter, amount, now, charged=[key])
        )

    def checkpoint(self, call_id: str, actual: Actual) -> None:
        self.connection.execute(
            "UPDATE holds SET checkpoint = %s::jsonb WHERE call_id = %s",
            [encode(actual).decode(), call_id],
        )

    def expire(self, call_id: str) -> None:
        # A process that has died refreshes nothing.
        for ledger in self.ledgers:
            self.loop.call_soon_threadsafe(ledger.live.pop, call_id, None)
        self.connection.execute(
            "UPDATE holds SET deadline = now() - interval '1 second' WHERE call_id = %s", [call_id]
        )

    def snapshot(self) -> State:
        [rolls] = strategies.keys_of((strategies.ROLLING,), strategies.CALENDAR, strategies.START)
        with self.connection.pipeline():
            accounts, holds, calls, adjustments = (
                self.connection.execute(query) for query in (ACCOUNTS, HOLDS, CALLS, ADJUSTMENTS)
            )
            slid = self.connection.execute(SLID, [[rolls.id]])
        known = {row[0]: Account(*row) for row in accounts}
        for _, _, slid_tokens, slid_nano, tokens, nano, _ in slid:
            known[rolls.id] = RollingAccount(
                **msgspec.structs.asdict(known[rolls.id]),
                slid_tokens=slid_tokens + tokens,
                slid_nano=slid_nano + nano,
            )
        return State(
            known,
            [
                HoldRow(id, tuple(ids), tokens, nano, _decode(checkpoint or "null"))
                for id, ids, tokens, nano, checkpoint in holds
            ],
            [CallRow(id, tuple(ids), *rest) for id, ids, *rest in calls],
            [AdjustmentRow(id, tuple(ids), *rest) for id, ids, *rest in adjustments],
        )

    def rest(self) -> None:
        """What `spendgate reconcile` says is what the model says: nothing is wrong."""
        assert asyncio.run(reconcile(self.dsn, at_rest=True)) == []


class PostgresMachine(LedgerMachine):
    """The machine on PostgreSQL."""

    system: PostgresSystem

    def look(self, state: State) -> None:
        super().look(state)
        # What is in the window depends on the clock as well: the rows alone do not say it.
        for id, account in state.accounts.items():
            if isinstance(account, RollingAccount):
                for meter in METERS:
                    assert account.used(meter) == self.model.used(id, meter), meter
