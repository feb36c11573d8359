"""The worker: what has to happen without anyone asking.

Owns the reaper (holds past their deadline are settled as recovered), making the partitions of
coming months, dropping what is kept for a while (answers that are replayed, alerts that arrived),
and the pace of the monthly work (see `monthly`). Owns no decision: `core.ledger` says what a
recovered call is billed.

Invariants: any number of workers may run; an advisory lock leaves each round to one of them, and
the ledger makes doing a thing twice harmless. A worker that stalls, or that meets what it cannot
settle, keeps no other from its work, and goes on with its next round.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import psycopg
import structlog
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from app.store import deliveries
from app.store.ledger import Ledger, LedgerUnavailable
from app.tasks import cancelled

log = structlog.get_logger(__name__)

REAPER_LOCK = 0x5BE9D6A7
BATCH = 500
PARTITIONS_AHEAD = 2
HOUSEKEEPING_EVERY = timedelta(hours=1)
ROUND_S = 30.0
"""The longest that a round may take: a connection that hangs is a connection that is gone."""

# The transaction holds it, not the session: PostgreSQL takes it from a reaper that stalls.
REAPER_LOCK_SQL = """
SELECT set_config('idle_in_transaction_session_timeout', '5s', true),
       pg_try_advisory_xact_lock(%s)
"""
EXPIRED_SQL = """
SELECT call_id::text, account_ids::text[] FROM holds WHERE deadline < now()
ORDER BY deadline LIMIT %s
"""


class Worker:
    """The periodic work of one process."""

    def __init__(
        self,
        pool: AsyncConnectionPool[Any],
        ledger: Ledger,
        *,
        reaper_period_s: float,
        share_out: Callable[[], Awaitable[int]] | None = None,
    ) -> None:
        self.pool = pool
        self.ledger = ledger
        self.reaper_period_s = reaper_period_s
        self.share_out = share_out
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start the rounds."""
        self._tasks = [
            asyncio.create_task(self._every(self.reaper_period_s, self.reap), name="reaper"),
            asyncio.create_task(
                self._every(HOUSEKEEPING_EVERY.total_seconds(), self.keep_house),
                name="housekeeping",
            ),
        ]
        if self.share_out is not None:
            sharing = self._every(HOUSEKEEPING_EVERY.total_seconds(), self.share_out)
            self._tasks.append(asyncio.create_task(sharing, name="sharing out"))

    async def stop(self) -> None:
        """Stop the rounds."""
        await cancelled(self._tasks)

    async def _every(self, period_s: float, work: Any) -> None:
        while True:
            try:
                async with asyncio.timeout(ROUND_S):
                    await work()
            except (psycopg.Error, PoolTimeout, OSError, TimeoutError, LedgerUnavailable) as error:
                log.debug("round_broken_off", work=work.__name__, error=type(error).__name__)
            except Exception:
                log.exception("round_failed", work=work.__name__)
            await asyncio.sleep(period_s)

    async def reap(self) -> int:
        """Settle every call whose hold has outlived its deadline; return how many."""
        settled = 0
        async with self.pool.connection() as connection, connection.transaction():
            row = await (await connection.execute(REAPER_LOCK_SQL, [REAPER_LOCK])).fetchone()
            if row is None or not row[1]:
                return 0
            while True:
                expired = await (await connection.execute(EXPIRED_SQL, [BATCH])).fetchall()
                if not expired:
                    return settled
                results = await asyncio.gather(
                    *(self.ledger.recover(id, tuple(accounts)) for id, accounts in expired),
                    return_exceptions=True,
                )
                booked = sum(result == "booked" for result in results)
                settled += booked
                if booked:
                    log.warning("calls_recovered", count=booked)
                failed = [result for result in results if isinstance(result, BaseException)]
                if failed:
                    # One hold that cannot be recovered must not keep the others waiting.
                    log.error("calls_not_recovered", count=len(failed), error=repr(failed[0]))
                if not any(isinstance(result, str) for result in results):
                    return settled

    async def keep_house(self) -> None:
        """Make the partitions of this month and the next ones; drop what is kept for a while."""
        async with self.pool.connection() as connection:
            # Making a partition locks the table of calls for a moment, and whoever waits for that
            # lock keeps everyone behind it waiting.
            await connection.execute("SET lock_timeout = '1s'")
            for ahead in range(PARTITIONS_AHEAD + 1):
                await connection.execute(
                    "SELECT ensure_calls_partition(now() + make_interval(months => %s))", [ahead]
                )
            await connection.execute(
                "DELETE FROM answers WHERE created_at < now() - interval '1 day'"
            )
            await connection.execute("RESET lock_timeout")
            await deliveries.prune(connection)
