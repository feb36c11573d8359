"""Monthly: what happens at a month's start without anyone asking.

Owns the round that shares out the tokens of pools that want it. Owns no decision (see
`core.rebalance`) and no SQL (see `store.rebalances`).

Invariants: any number of workers may make the round, and a pool is shared out once a month all the
same; a pool that cannot be shared out keeps no other from it, is logged, and is tried again with
the next round while the month is young.
"""

from collections.abc import Callable
from datetime import datetime
from functools import partial

import structlog

from app.core.rebalance import CannotRebalance
from app.core.windows import Calendar
from app.store import rebalances
from app.store.database import Conflict, Connection, Database
from app.store.rebalances import RebalanceRecord

log = structlog.get_logger(__name__)


class Monthly:
    """The monthly work of one process."""

    def __init__(
        self, database: Database, calendar: Calendar, clock: Callable[[], datetime]
    ) -> None:
        self.database = database
        self.calendar = calendar
        self.clock = clock

    async def share_out(self) -> int:
        """Share out every pool whose run of this month is due; return how many were."""
        at = self.clock()
        async with self.database.snapshot() as connection:
            waiting = await rebalances.waiting(connection, self.calendar, at)
        done = 0
        for pool_id in waiting:
            try:
                run = await self.database.transaction(partial(self._run, pool_id, at))
            except (CannotRebalance, Conflict) as error:
                log.warning("pool_not_shared_out", pool_id=pool_id, reason=str(error))
                continue
            if run is not None:
                done += 1
                log.info("pool_shared_out", pool_id=pool_id, total_tokens=run.total_tokens)
        return done

    async def _run(
        self, pool_id: str, at: datetime, connection: Connection
    ) -> RebalanceRecord | None:
        return await rebalances.share_out(connection, pool_id, self.calendar, at)
