"""The state machine on PostgreSQL, through the real group-commit loop."""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import psycopg
import pytest
from hypothesis.stateful import run_state_machine_as_test

from app.core.ledger import Account, AccountKey, Actual, Meter
from app.store.batch import Granted, Settled, encode
from app.store.ledger import Ledger
from app.store.reconcile import reconcile
from app.store.spool import Spool
from tests.ledger.machine import SHRINKING_S, SOAK, LedgerMachine, bounded
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

LIMIT = """
INSERT INTO limits (owner_id, meter, window_kind, owner, amount, baseline, baseline_account)
SELECT %(owner_id)s, %(meter)s, %(window)s, %(owner)s, %(amount)s,
       CASE WHEN %(meter)s = 'tokens' THEN used_tokens + held_tokens ELSE used_nano + held_nano END,
       id
FROM accounts WHERE id = %(id)s
ON CONFLICT (owner_id, meter, window_kind) DO UPDATE
SET amount = excluded.amount, baseline = excluded.baseline,
    baseline_account = excluded.baseline_account, set_at = %(start)s
"""
ACCOUNT = """
INSERT INTO accounts (id, owner, owner_id, window_kind, period_start, period_end)
VALUES (%(id)s, %(owner)s, %(owner_id)s, %(window)s, %(start)s, %(end)s) ON CONFLICT DO NOTHING
"""
NO_LIMIT = """
DELETE FROM limits
WHERE owner_id = %(owner_id)s AND meter = %(meter)s AND window_kind = %(window)s
"""

_decode = msgspec.json.Decoder(Actual | None).decode


class PostgresSystem:
    """A `Ledger` on an event loop of its own, and a second connection to look over its shoulder."""

    rolls = False

    def at(self, now: datetime) -> None:
        """Its clock is the server's."""

    def __init__(self, dsn: str, directory: Path) -> None:
        self.dsn = dsn
        self.directory = directory
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="ledger-loop")

    def __enter__(self) -> Self:
        self.thread.start()
        self.connection = psycopg.connect(self.dsn, autocommit=True)
        row = self.connection.execute("SELECT directory_version FROM installation").fetchone()
        assert row is not None
        self.version = row[0]
        self.await_(self.start())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.await_(self.ledger.stop())
        self.ledger.spool.close()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()
        self.connection.close()

    async def start(self) -> None:
        self.ledger = Ledger(self.dsn, Spool(self.directory), hold_deadline_s=3600)
        await self.ledger.start()
        # When a hold is refreshed, and with what, is for the machine to say and not for the clock.
        for task in asyncio.all_tasks():
            if task.get_name() == "ledger-holds":
                task.cancel()

    def await_(self, work: Coroutine[Any, Any, Any]) -> Any:
        future: Future[Any] = asyncio.run_coroutine_threadsafe(work, self.loop)
        return future.result(timeout=60)

    # What the machine asks for

    def reset(self) -> None:
        self.connection.execute("TRUNCATE accounts, limits, holds, calls, adjustments")
        # Calls are charged to what the machine says: there is no directory to be behind.
        self.connection.execute("ALTER TABLE limits DISABLE TRIGGER limits_touch")
        self.ledger.live.clear()

    def run(self, operations: list[Operation]) -> list[Result]:
        results: list[Result] = self.await_(self.batch(operations))
        return results

    async def batch(self, operations: list[Operation]) -> list[Result]:
        # Queued before the loop runs again, hence one batch.
        return await asyncio.gather(*(self.one(operation) for operation in operations))

    async def one(self, operation: Operation) -> Result:
        match operation:
            case Reserve(facts, demand, checkpoint):
                reserved = await self.ledger.reserve(
                    facts, demand, self.version, checkpoint=checkpoint
                )
                return reserved.grant if isinstance(reserved, Granted) else reserved  # type: ignore[return-value]
            case Extend(call_id, demand, checkpoint):
                return await self.ledger.extend(call_id, demand, checkpoint=checkpoint)
            case Settle(settlement, path):
                settled: Settled = await self.ledger.settle(settlement, path)
                return settled.booking  # type: ignore[return-value]
            case Recover(call_id, account_ids):
                return await self.ledger.recover(call_id, account_ids)

    def set_limit(self, key: AccountKey, meter: Meter, amount: int | None) -> None:
        values = {
            "id": key.id,
            "owner": key.owner,
            "owner_id": key.owner_id,
            "window": key.window,
            "start": key.start,
            "end": key.end,
            "meter": meter,
            "amount": amount,
        }
        if amount is None:
            self.connection.execute(NO_LIMIT, values)
        else:
            with self.connection.transaction():
                self.connection.execute(ACCOUNT, values)
                self.connection.execute(LIMIT, values)

    def checkpoint(self, call_id: str, actual: Actual) -> None:
        self.connection.execute(
            "UPDATE holds SET checkpoint = %s::jsonb WHERE call_id = %s",
            [encode(actual).decode(), call_id],
        )

    def expire(self, call_id: str) -> None:
        # A process that has died refreshes nothing.
        self.loop.call_soon_threadsafe(self.ledger.live.pop, call_id, None)
        self.connection.execute(
            "UPDATE holds SET deadline = now() - interval '1 second' WHERE call_id = %s", [call_id]
        )

    def snapshot(self) -> State:
        with self.connection.pipeline():
            accounts, holds, calls, adjustments = (
                self.connection.execute(query) for query in (ACCOUNTS, HOLDS, CALLS, ADJUSTMENTS)
            )
        return State(
            {row[0]: Account(*row) for row in accounts},
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


@pytest.mark.timeout(0 if SOAK else SHRINKING_S)
def test_the_ledger_on_postgresql_is_the_model(database_url: str, tmp_path: Path) -> None:
    with PostgresSystem(database_url, tmp_path / "spool") as postgres:

        class PostgresMachine(LedgerMachine):
            system = postgres

        run_state_machine_as_test(PostgresMachine, settings=bounded(examples=240, steps=35))
