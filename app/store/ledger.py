"""The group-commit loop: lock, decide in `app.core.ledger`, write, commit, answer.

Owns the one connection through which a process touches accounts and holds, the queue in front of
it, and what happens to queued operations when PostgreSQL is away. Owns neither what a batch says to
PostgreSQL (`store.batch`) nor a decision (`core.ledger.Books`).

Every process runs one loop. It takes every queued operation, locks the touched account rows in the
order of their ids, reads limits and holds under those locks, decides, writes everything, commits,
answers the waiters, and starts again: batch size follows load, and an idle system answers at once.
A batch is two round trips; or one, if it can be decided on what this process read or wrote last,
which PostgreSQL then verifies under the locks (`store.beliefs`).

Invariants:

- An answer leaves only after the commit that makes it true (or, for a settlement while PostgreSQL
  is away, after it is safe in the spool).
- A reserve that could not be confirmed is refused, and a settlement that releases whatever hold it
  may have left behind follows it.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import psycopg
import structlog
from psycopg.pq.abc import PGresult

from app.core.ledger import (
    NOWHERE,
    AccountKey,
    Actual,
    Booking,
    CallFacts,
    Demand,
    Grant,
    Settlement,
    Surroundings,
)
from app.core.refusals import Refusal
from app.store.batch import (
    KEYS_SQL,
    Batch,
    Extend,
    Granted,
    Operation,
    Recover,
    Reserve,
    Settle,
    Settled,
    Stale,
    encode,
    keys_in,
    text,
)
from app.store.beliefs import Beliefs
from app.store.pipe import Pipe, array
from app.store.spool import Answer, Entry, Spool
from app.tasks import cancelled

log = structlog.get_logger(__name__)

NEW_ACCOUNTS = b"""
INSERT INTO accounts (id, owner, owner_id, window_kind, period_start, period_end)
SELECT * FROM json_to_recordset($1::json)
    AS v(id uuid, owner text, owner_id uuid, "window" text, start timestamptz, "end" timestamptz)
ORDER BY id ON CONFLICT DO NOTHING
"""

# Of the months that the ids say, as PostgreSQL reads them: then no id can be left without one.
MAKE_PARTITIONS = b"""
SELECT ensure_calls_partition(month) FROM (
    SELECT DISTINCT date_trunc('month', to_timestamp(milliseconds / 1000.0), 'UTC') AS month
    FROM (SELECT ('x' || left(replace(id::text, '-', ''), 12))::bit(48)::bigint AS milliseconds
          FROM unnest($1::uuid[]) AS id) AS ids
) AS months
"""
# A hold that is locked is being settled or extended: waiting for it here could lock both out.
REFRESH_HOLDS = b"""
WITH live AS (
    SELECT h.call_id, v.checkpoint
    FROM holds h JOIN json_to_recordset($2::json) AS v(call_id uuid, checkpoint jsonb)
        ON h.call_id = ANY(ARRAY[v.call_id])
    FOR UPDATE OF h SKIP LOCKED
)
UPDATE holds h SET deadline = now() + $1::interval,
    checkpoint = coalesce(live.checkpoint, h.checkpoint)
FROM live WHERE h.call_id = ANY(ARRAY[live.call_id])
RETURNING h.call_id, h.stopped
"""
OPTIONS = (
    # A replica that stalls with locks in its hands must not stall the others.
    "-c lock_timeout=4s -c idle_in_transaction_session_timeout=5s"
    # Nor must one whose host is gone in the middle of a message, to which that does not apply.
    " -c tcp_keepalives_idle=5 -c tcp_keepalives_interval=2 -c tcp_keepalives_count=3"
    # What was committed while a lock was waited for is to be seen, whatever the database's default.
    " -c default_transaction_isolation=read\\ committed"
    # The statements are few and find everything by id: planning them anew costs as much as running.
    " -c plan_cache_mode=force_generic_plan"
    # Nor is a table as small for long as it was when a statement was planned: holds come and go.
    # Rows that are handed in are joined by `id = ANY(ARRAY[v.id])`: only by looking each up in the
    # index. With `=`, each would be compared with each where the table was empty.
    " -c enable_seqscan=off -c enable_hashjoin=off -c enable_mergejoin=off"
)

# The same over a network that is there and lets nothing through; PostgreSQL 17 and newer.
LIMIT_TRANSACTIONS = b"SET transaction_timeout = '6s'"
LIMITS_TRANSACTIONS = 170000

EVENTS_KNOWN = 1000

AWAY = ("08", "25006", "53", "57")
"""SQLSTATEs of a server that takes no writes for now, whatever they are."""


class LedgerUnavailable(Exception):
    """PostgreSQL could not confirm the operation; nothing may be forwarded on its strength."""


class Ledger:
    """The group-commit loop of one process."""

    def __init__(
        self,
        dsn: str,
        spool: Spool,
        *,
        hold_deadline_s: float = 60,
        wait_s: float = 3,
        batch_max: int = 256,
        around: Surroundings = NOWHERE,
    ) -> None:
        self.dsn = dsn
        self.around = around
        self.spool = spool
        self.hold_deadline_s = hold_deadline_s
        self.wait_s = wait_s
        self.batch_max = batch_max
        self.live: dict[str, Actual | None] = {}
        """Calls of this process that hold something, and what they used by last account."""
        self._widened: dict[str, tuple[str, ...]] = {}
        """Accounts of a call beside those of its path: a limit was added while it ran."""
        self._known_events: dict[str, None] = {}
        """Events that are written already: those that are set off again and again."""
        self.on_stopped: Callable[[str], None] | None = None
        """Told of a call of this process that was ordered to stop, until it has settled."""
        self.on_booked: Callable[[Iterable[str | None]], None] | None = None
        """Told the owners that a committed batch has touched."""
        self.batches = 0
        self.believed = 0
        """Of these, how many were decided on beliefs."""
        self.refuted = 0
        """How many more were, and had to be decided again."""
        self.operations = 0
        self._beliefs = Beliefs()
        self._queue: deque[Operation] = deque()
        self._batch: Batch | None = None
        self._wake = asyncio.Event()
        self._pipe: Pipe | None = None
        self._deadline = f"{hold_deadline_s} seconds".encode()
        self._tasks: list[asyncio.Task[None]] = []
        self._down_since: float | None = None
        self._stopping = False

    @property
    def available(self) -> bool:
        """Whether the last contact with PostgreSQL went well."""
        return self._down_since is None

    # Life

    async def start(self) -> None:
        """Start the loop; it connects by itself and goes on connecting while PostgreSQL is away."""
        self._tasks = [
            asyncio.create_task(self._run(), name="ledger"),
            asyncio.create_task(self._replay_spool(), name="ledger-spool"),
            asyncio.create_task(self._refresh_holds(), name="ledger-holds"),
        ]

    async def stop(self) -> None:
        """Finish what is queued (or spool it), then close."""
        self._stopping = True
        self._wake.set()
        await cancelled(self._tasks[1:])
        if self._tasks:
            await asyncio.wait(self._tasks[:1], timeout=self.wait_s + 2)
        await cancelled(self._tasks)
        # The loop may have been stopped in the middle of a batch that hung.
        hung = () if self._batch is None else self._batch.ops
        for op in dict.fromkeys([*hung, *self._queue]):
            if op.future.cancelled() or not op.future.done():
                self._give_up(op)
        self._queue.clear()
        await self._disconnect()

    # Operations

    async def reserve(
        self,
        facts: CallFacts,
        demand: Demand,
        version: int,
        *,
        one_shot: bool = False,
        checkpoint: Actual | None = None,
    ) -> Granted | Refusal | Stale:
        """Ask to hold what a call may use. Raises `LedgerUnavailable`.

        If the waiter is cancelled the hold, should it be won, is released by the caller's
        settlement like any other: cancel only where one follows.
        """
        op = Reserve(facts, demand, version, one_shot, checkpoint)
        result: Granted | Refusal | Stale = await self._submit(op)
        if isinstance(result, Granted):
            self.live[facts.id] = checkpoint
        return result

    async def settle(
        self,
        settlement: Settlement,
        accounts: tuple[AccountKey, ...],
        *,
        answer: Answer | None = None,
        replayed: bool = False,
    ) -> Settled:
        """Book how a call ended; returns when it is in the books, or safe in the spool."""
        self.live.pop(settlement.facts.id, None)
        op = Settle(settlement, accounts, answer)
        op.careful = replayed
        result: Settled = await self._submit(op)
        self._widened.pop(settlement.facts.id, None)
        if result.booking != "spooled":
            self.spool.settled(settlement.facts.id)
        return result

    async def extend(
        self, call_id: str, demand: Demand, *, checkpoint: Actual | None = None
    ) -> Grant | Refusal | None:
        """Add to the hold of a call in flight, and note what it used so far.

        Returns what it holds in all, or None if it has no hold. Raises `LedgerUnavailable`.
        """
        if checkpoint is not None and call_id in self.live:
            self.live[call_id] = checkpoint
        result: Grant | Refusal | None = await self._submit(Extend(call_id, demand, checkpoint))
        return result

    async def recover(self, call_id: str, account_ids: tuple[str, ...]) -> Booking | None:
        """Book a call whose hold has outlived its deadline. Raises `LedgerUnavailable`."""
        result: Booking | None = await self._submit(Recover(call_id, account_ids))
        self._widened.pop(call_id, None)
        return result

    def _submit(self, op: Operation) -> asyncio.Future[Any]:
        if self._stopping:
            self._give_up(op)
        else:
            self._queue.append(op)
            self._wake.set()
        return op.future

    # The loop

    async def _run(self) -> None:
        while True:
            try:
                if not await self._turn():
                    return
            except Exception:
                # Whatever it was, nobody waits for an answer that will not come.
                log.exception("ledger_loop_failed")
                await self._disconnect()
                self._went_down()
                for op in () if self._batch is None else self._batch.ops:
                    if not op.future.done():
                        self._give_up(op)
                self._batch = None

    async def _turn(self) -> bool:
        """Commit one batch, once there is something to commit; False if there will not be."""
        if not self._queue:
            if self._stopping:
                return False
            self._wake.clear()
            await self._wake.wait()
            return True
        if (self._pipe is None or self._pipe.broken) and not await self._reconnect():
            if self._stopping and not self._queue:
                return False
            await asyncio.sleep(0.1)
            return True
        if ops := self._take():
            self._batch = self._batch_of(ops)
            await self._run_batch(self._batch)
            self._batch = None
        return True

    def _take(self) -> list[Operation]:
        ops: list[Operation] = []
        queue = self._queue
        while queue and len(ops) < self.batch_max:
            op = queue.popleft()
            if isinstance(op, Reserve) and op.future.done():
                continue
            ops.append(op)
        return ops

    def _batch_of(self, ops: Sequence[Operation]) -> Batch:
        return Batch(
            ops,
            beliefs=self._beliefs,
            around=self.around,
            widened=self._widened,
            known_events=self._known_events,
            hold_deadline=self._deadline,
        )

    async def _run_batch(self, batch: Batch) -> None:
        try:
            # A connection that hangs is a connection that is gone.
            async with asyncio.timeout(self.wait_s + 2):
                await self._commit_or_prepare(batch)
        except (psycopg.errors.DeadlockDetected, psycopg.errors.LockNotAvailable):
            await self._rollback()
            self._try_again(batch.ops)
        except (psycopg.OperationalError, psycopg.InterfaceError, TimeoutError, OSError) as error:
            log.warning("ledger_connection_lost", error=type(error).__name__)
            await self._disconnect()
            self._went_down()
            for op in batch.ops:
                self._give_up(op)
        except psycopg.Error as error:
            await self._rollback()
            if (error.sqlstate or "").startswith(AWAY):
                # It answers, but takes nothing: a standby, a full disk, a shutdown.
                log.warning("ledger_refused", error=type(error).__name__)
                await self._disconnect()
                self._went_down()
                for op in batch.ops:
                    self._give_up(op)
            elif self._pipe is None:
                # PostgreSQL ended the session, as it does when it waited too long for us.
                self._try_again(batch.ops)
            else:
                await self._one_by_one(batch.ops, error)
        except Exception as error:
            log.exception("ledger_batch_failed")
            await self._rollback()
            await self._one_by_one(batch.ops, error)

    async def _commit_or_prepare(self, batch: Batch) -> None:
        """Commit a batch; or make the partition that it lacks, and leave it for the next turn."""
        try:
            await self._commit(batch)
        except psycopg.errors.CheckViolation as error:
            # No constraint of a table is broken by a row that has no partition to go to.
            if error.diag.constraint_name is not None:
                raise
            await self._rollback()
            await self._make_partitions(batch.ops)
            self._queue.extendleft(reversed(batch.ops))

    def _try_again(self, ops: Sequence[Operation]) -> None:
        """Put a batch back in front of the queue, but for what has waited long enough."""
        now = time.monotonic()
        for op in reversed(ops):
            if now - op.created < self.wait_s:
                self._queue.appendleft(op)
            else:
                self._give_up(op)

    async def _one_by_one(self, ops: Sequence[Operation], error: Exception) -> None:
        """Find the operation that spoils its batch, so that the others need not suffer."""
        if len(ops) == 1 and ops[0].careful:
            log.error("ledger_operation_failed", error=str(error))
            ops[0].fail(error)
            return
        for position, op in enumerate(ops):
            if self._pipe is None:
                # It went meanwhile; what is left goes over the next connection.
                self._queue.extendleft(reversed(ops[position:]))
                return
            op.careful = True
            await self._run_batch(self._batch_of([op]))

    async def _commit(self, batch: Batch) -> None:
        pipe = self._pipe
        assert pipe is not None
        verified = batch.believing()
        if verified is not None:
            try:
                results = await pipe.run(verified)
            except psycopg.errors.DivisionByZero:
                self.refuted += 1
                batch.refuted()
                self._queue.extendleft(reversed(batch.ops))
            else:
                self.believed += 1
                self._done(batch, results)
            return
        if unknown := batch.unknown:
            [keys] = await pipe.run([(KEYS_SQL, [array(unknown)])])
            batch.learn(keys_in(keys))
        results = await pipe.run(batch.locks(), batch.at_once)
        if not batch.decided:
            # The usual case has been written at once, without a turn of the event loop in between.
            if missing := batch.missing():
                await self._rollback()
                await self._create_accounts(missing)
                self._queue.extendleft(reversed(batch.ops))
                return
            if not batch.wider():
                batch.answered(await pipe.run(batch.questions()))
            if widened := batch.wider():
                await self._rollback()
                self._widened |= widened
                self._queue.extendleft(reversed(batch.ops))
                return
            results = await pipe.run(batch.decide())
        self._done(batch, results)

    def _done(self, batch: Batch, results: Sequence[PGresult]) -> None:
        """Tell everybody what has become true."""
        batch.committed(results)
        self.batches += 1
        self.operations += len(batch.ops)
        if self.on_booked is not None:
            self.on_booked(batch.owners)
            # A refused call is booked to an allocation, but in none of its accounts.
            settlements = (op.settlement for op in batch.ops if isinstance(op, Settle))
            self.on_booked(settlement.facts.allocation_id for settlement in settlements)
        for one in batch.told:
            self._known_events[one.event.id] = None
        while len(self._known_events) > EVENTS_KNOWN:
            del self._known_events[next(iter(self._known_events))]
        for op, result in batch.results:
            op.done(result)
        if self._down_since is not None:
            self._down_since = None
            log.info("ledger_back")

    # Around the loop

    async def _reconnect(self) -> bool:
        """Try to connect; nobody waits longer for PostgreSQL because that takes its time."""
        connecting = asyncio.create_task(self._connect())
        try:
            while not (await asyncio.wait([connecting], timeout=0.1))[0]:
                if self._down_since is not None:
                    self._shed()
        finally:
            connecting.cancel()
        if not connecting.result():
            self._shed()
        return connecting.result()

    async def _connect(self) -> bool:
        await self._disconnect()
        try:
            self._pipe = pipe = await Pipe.open(self.dsn, options=OPTIONS)
            self._beliefs = Beliefs()
            if pipe.server_version >= LIMITS_TRANSACTIONS:
                async with asyncio.timeout(self.wait_s):
                    await pipe.run([(LIMIT_TRANSACTIONS, ())])
        except (psycopg.Error, OSError) as error:
            # What it may still say would be taken for the answer to the next question.
            await self._disconnect()
            self._went_down()
            log.debug("ledger_connect_failed", error=type(error).__name__)
            return False
        return True

    async def _disconnect(self) -> None:
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            with contextlib.suppress(Exception):
                await pipe.close()

    async def _rollback(self) -> None:
        if self._pipe is None:
            return
        try:
            async with asyncio.timeout(self.wait_s):
                await self._pipe.run([(b"ROLLBACK", ())])
        except (psycopg.Error, OSError):
            await self._disconnect()

    def _went_down(self) -> None:
        if self._down_since is None:
            self._down_since = time.monotonic()
            log.warning("ledger_away")

    def _shed(self) -> None:
        """While PostgreSQL is away: spool settlements at once, let the rest wait a little."""
        now = time.monotonic()
        away = now - (self._down_since or now)
        waiting: deque[Operation] = deque()
        for op in self._queue:
            patient = not isinstance(op, Settle) and not self._stopping
            if patient and away < self.wait_s and now - op.created < self.wait_s:
                waiting.append(op)
            else:
                self._give_up(op)
        self._queue = waiting

    def _give_up(self, op: Operation) -> None:
        """Answer an operation that PostgreSQL did not confirm."""
        if not isinstance(op, Settle):
            op.fail(LedgerUnavailable())
            return
        try:
            self.spool.append(op.settlement, op.accounts, op.answer)
        except OSError as error:
            # Neither the database nor the disk takes it: what is left is to recover its hold.
            log.critical("settlement_lost", call=op.settlement.facts.id, error=str(error))
            op.fail(LedgerUnavailable())
        else:
            op.done(Settled("spooled", None))

    async def _create_accounts(self, missing: Sequence[AccountKey | None]) -> None:
        """Create the accounts of a period's first calls, in a transaction of their own.

        Inserting them while others are locked would lock out of order.
        """
        if None in missing:
            raise LookupError("a hold names an account that does not exist")
        if self._pipe is None:
            raise psycopg.OperationalError("the connection went")
        await self._pipe.run([(NEW_ACCOUNTS, [encode(missing)])])

    async def _make_partitions(self, ops: Iterable[Operation]) -> None:
        if self._pipe is None:
            raise psycopg.OperationalError("the connection went")
        ids = [op.settlement.facts.id for op in ops if isinstance(op, Settle)]
        ids += [op.call_id for op in ops if isinstance(op, Recover) and op.account_ids]
        await self._pipe.run([(MAKE_PARTITIONS, [array(ids)])])

    async def _replay_spool(self) -> None:
        """Hand spooled settlements to the loop once PostgreSQL is back."""
        while True:
            if not self.spool.pending or not self.available:
                if not self.available and not self._queue:
                    self._probe()
                await asyncio.sleep(0.2)
                continue
            entries = self.spool.take()
            results = await asyncio.gather(
                *(
                    self.settle(e.settlement, e.accounts, answer=e.answer, replayed=True)
                    for e in entries
                ),
                return_exceptions=True,
            )
            answered: list[Entry] = []
            refused: list[Entry] = []
            for entry, result in zip(entries, results, strict=True):
                if isinstance(result, Settled):
                    if result.booking != "spooled":
                        answered.append(entry)
                elif not isinstance(result, LedgerUnavailable):
                    refused.append(entry)
            try:
                if refused:
                    log.error("spool_entries_refused", count=len(refused))
                    self.spool.keep_refused(refused)
                self.spool.replayed([*answered, *refused])
            except OSError as error:
                log.critical("spool_not_written", error=str(error))
            if len(answered) < len(entries):
                await asyncio.sleep(0.2)

    def _probe(self) -> None:
        """Wake the loop with an operation that changes nothing, to find PostgreSQL again."""
        self._submit(Recover("00000000-0000-0000-0000-000000000000", ()))

    async def _refresh_holds(self) -> None:
        """Keep the holds of live calls alive, with what they used so far."""
        period_s = min(5.0, self.hold_deadline_s / 4)
        while True:
            await asyncio.sleep(period_s)
            if not self.live:
                continue
            try:
                # An attempt that hangs leaves time for another one before the deadline.
                async with asyncio.timeout(period_s):
                    pipe = await Pipe.open(self.dsn, options=OPTIONS)
                    try:
                        # Not earlier: an extension may have noted more meanwhile.
                        rows = [
                            {"call_id": id, "checkpoint": used} for id, used in self.live.items()
                        ]
                        [held] = await pipe.run([(REFRESH_HOLDS, [self._deadline, encode(rows)])])
                    finally:
                        await pipe.close()
            except (psycopg.Error, OSError) as error:
                log.warning("holds_not_refreshed", error=type(error).__name__)
                continue
            # Whoever was to be told of it at once may not have been.
            for row in range(held.ntuples):
                if text(held, row, 1) == "t" and self.on_stopped is not None:
                    try:
                        self.on_stopped(text(held, row))
                    except Exception:
                        # Whatever becomes of it, the other calls live on.
                        log.exception("order_to_stop_failed")
