"""The group-commit loop: lock, decide in `app.core.ledger`, write, commit, answer.

Owns the one connection through which a process touches accounts and holds, the queue in front of
it, and what happens to queued operations when PostgreSQL is away. Owns no decision: which call is
admitted and what is booked is `core.ledger.Books`.

Every process runs one loop. It takes every queued operation, locks the touched account rows in the
order of their ids, reads limits and holds under those locks, decides, writes everything with one
statement, commits, answers the waiters, and starts again: batch size follows load, and an idle
system answers at once. A batch is two round trips.

Invariants:

- An answer leaves only after the commit that makes it true (or, for a settlement while PostgreSQL
  is away, after it is safe in the spool).
- A reserve that could not be confirmed is refused, and a settlement that releases whatever hold it
  may have left behind follows it.
- Locks are taken in one order everywhere: accounts by id, then holds, then keys.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, cast

import msgspec
import psycopg
import structlog
from psycopg.pq.abc import PGresult

from app.core.alerts import Rule
from app.core.ledger import (
    NOWHERE,
    Account,
    AccountKey,
    Actual,
    Booked,
    Booking,
    Books,
    CallFacts,
    CallRow,
    Demand,
    Grant,
    Hold,
    Limit,
    Meter,
    RollingAccount,
    Settlement,
    Surroundings,
    Told,
)
from app.core.refusals import Outcome, Reason, Refusal
from app.core.windows import EPOCH
from app.store.pipe import Command, Pipe
from app.store.rolling import SLIDE_SQL
from app.store.spool import Answer, Entry, Spool
from app.tasks import cancelled

log = structlog.get_logger(__name__)

LOCK_SQL = b"""
SELECT id, used_tokens, used_nano, held_tokens, held_nano,
       unpriced_calls, overrun_tokens, overrun_nano
FROM accounts WHERE id = ANY($1::uuid[]) ORDER BY id FOR UPDATE
"""

# A statement of its own, after the locks: it sees everything that committed before they were won.
READ_SQL = b"""
WITH ended AS (
    DELETE FROM holds WHERE call_id = ANY($1::uuid[])
    RETURNING call_id, account_ids, tokens, nano
), kept AS (
    SELECT call_id, account_ids, tokens, nano, facts, checkpoint, deadline < now() AS expired
    FROM holds WHERE call_id = ANY($2::uuid[]) FOR UPDATE
)
SELECT
    (SELECT directory_version FROM installation),
    (SELECT json_agg(json_build_object(
        'owner_id', owner_id, 'meter', meter, 'window', window_kind,
        'amount', CASE WHEN topped_until > now() THEN amount + (
            SELECT coalesce(sum(t.amount), 0)::bigint FROM top_ups t
            WHERE t.owner_id = l.owner_id AND t.meter = l.meter AND t.window_kind = l.window_kind
                AND t.starts_at <= now() AND t.expires_at > now()) ELSE amount END))::text
     FROM limits l WHERE owner_id = ANY($3::uuid[]) AND amount IS NOT NULL),
    (SELECT json_agg(ended)::text FROM ended),
    (SELECT json_agg(kept)::text FROM kept),
    (SELECT json_agg(json_build_object(
        'id', id, 'owner_id', owner_id, 'meter', meter, 'window', window_kind,
        'threshold', threshold, 'percent', percent))::text
     FROM alert_rules WHERE owner_id = ANY($3::uuid[]) AND enabled)
"""

SLIDE = SLIDE_SQL.format(ids="$1::uuid[]").encode()

KEYS_SQL = b"""
SELECT json_agg(json_build_object(
    'id', id, 'owner', owner, 'owner_id', owner_id, 'window', window_kind,
    'start', period_start, 'end', period_end))::text
FROM accounts WHERE id = ANY($1::uuid[])
"""

BOOKED_SQL = b"""
SELECT c.id, c.outcome, c.tokens, c.cost_nano,
       EXISTS (SELECT FROM adjustments a
               WHERE a.call_id = c.id AND a.reason = 'late_settlement'),
       array_to_string(c.account_ids, ',')
FROM calls c WHERE c.id = ANY($1::uuid[])
"""

# Accounts that were opened after a call was admitted, in whose period it falls: what it has used
# counts in them as well, whether they were brought up to that or not.
OPENED_SQL = b"""
SELECT id FROM accounts a
WHERE owner_id = ANY($1::uuid[]) AND opened_at > $2::timestamptz
    AND period_start <= $2::timestamptz AND (period_end IS NULL OR period_end > $2::timestamptz)
    AND EXISTS (SELECT FROM limits l WHERE l.owner_id = a.owner_id
        AND l.window_kind = a.window_kind AND (l.amount IS NOT NULL OR l.watched))
"""

ONE_SHOT_SQL = b"""
SELECT id FROM keys
WHERE id = ANY($1::uuid[]) AND used_at IS NULL AND revoked_at IS NULL FOR UPDATE
"""

_ACCOUNT_COLUMNS = (
    "id uuid, used_tokens bigint, used_nano bigint, held_tokens bigint, held_nano bigint, "
    "unpriced_calls bigint, overrun_tokens bigint, overrun_nano bigint"
)
_CALL_COLUMNS = (
    "id uuid, request_id text, allocation_id uuid, key_id uuid, member_id uuid, model text, "
    "endpoint text, outcome text, close_reason text, status_code integer, started_at timestamptz, "
    "finished_at timestamptz, usage jsonb, tokens bigint, cost_nano bigint, price_id uuid, "
    "estimated boolean, overrun_tokens bigint, overrun_nano bigint, error_message text, "
    "shortfall jsonb, account_ids uuid[]"
)
_CALL_NAMES = ", ".join(column.split()[0] for column in _CALL_COLUMNS.split(", "))

WRITE_ACCOUNTS = f"""
UPDATE accounts a SET used_tokens = v.used_tokens, used_nano = v.used_nano,
    held_tokens = v.held_tokens, held_nano = v.held_nano, unpriced_calls = v.unpriced_calls,
    overrun_tokens = v.overrun_tokens, overrun_nano = v.overrun_nano
FROM json_to_recordset($1::json) AS v({_ACCOUNT_COLUMNS}) WHERE a.id = v.id
""".encode()
WRITE_SLID = b"""
UPDATE accounts a SET slid_to = v.slid_to, slid_tokens = v.slid_tokens, slid_nano = v.slid_nano
FROM json_to_recordset($1::json)
    AS v(id uuid, slid_to timestamptz, slid_tokens bigint, slid_nano bigint) WHERE a.id = v.id
"""
WRITE_EVENTS = b"""
INSERT INTO events (id, kind, rule_id, body)
SELECT * FROM json_to_recordset($1::json) AS v(id uuid, kind text, rule_id uuid, body text)
ON CONFLICT DO NOTHING
"""
WRITE_HOLDS = b"""
INSERT INTO holds (call_id, account_ids, tokens, nano, facts, checkpoint, deadline)
SELECT call_id, account_ids, tokens, nano, facts, checkpoint, now() + $1::interval
FROM json_to_recordset($2::json) AS v(
    call_id uuid, account_ids uuid[], tokens bigint, nano bigint, facts jsonb, checkpoint jsonb)
"""
WRITE_CALLS = f"""
INSERT INTO calls ({_CALL_NAMES})
SELECT {_CALL_NAMES} FROM json_to_recordset($1::json) AS v({_CALL_COLUMNS})
""".encode()
CHANGE_HOLDS = b"""
UPDATE holds h SET tokens = v.tokens, nano = v.nano, deadline = now() + $1::interval,
    checkpoint = coalesce(v.checkpoint, h.checkpoint)
FROM json_to_recordset($2::json) AS v(call_id uuid, tokens bigint, nano bigint, checkpoint jsonb)
WHERE h.call_id = v.call_id
"""
# A hold that is locked is being settled or extended: waiting for it here could lock both out.
REFRESH_HOLDS = b"""
WITH live AS (
    SELECT h.call_id, v.checkpoint
    FROM holds h JOIN json_to_recordset($2::json) AS v(call_id uuid, checkpoint jsonb)
        ON h.call_id = v.call_id
    FOR UPDATE OF h SKIP LOCKED
)
UPDATE holds h SET deadline = now() + $1::interval,
    checkpoint = coalesce(live.checkpoint, h.checkpoint)
FROM live WHERE h.call_id = live.call_id
RETURNING h.call_id, h.stopped
"""
END_HOLDS = b"DELETE FROM holds WHERE call_id = ANY($1::uuid[])"
WRITE_ADJUSTMENTS = b"""
INSERT INTO adjustments (call_id, account_ids, tokens, nano, reason)
SELECT call_id, account_ids, tokens, nano, reason FROM json_to_recordset($1::json)
    AS v(call_id uuid, account_ids uuid[], tokens bigint, nano bigint, reason text)
"""
# The answer is kept in the transaction that books the call: replayed if booked, only if booked.
WRITE_ANSWERS = b"""
UPDATE answers a SET status_code = v.status_code, headers = v.headers,
    body = decode(v.body, 'base64')
FROM json_to_recordset($1::json)
    AS v(call_id uuid, key_id uuid, status_code integer, headers jsonb, body text)
WHERE a.key_id = v.key_id AND a.call_id = v.call_id
"""
USE_KEYS = b"UPDATE keys SET used_at = now() WHERE id = ANY($1::uuid[])"

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
OPTIONS = (
    # A replica that stalls with locks in its hands must not stall the others.
    "-c lock_timeout=4s -c idle_in_transaction_session_timeout=5s"
    # The statements are few and find everything by id: planning them anew costs as much as running.
    " -c plan_cache_mode=force_generic_plan"
)

EVENTS_KNOWN = 1000

AWAY = ("08", "25006", "53", "57")
"""SQLSTATEs of a server that takes no writes for now, whatever they are."""

encode = msgspec.json.Encoder(decimal_format="number").encode
_decode_limits = msgspec.json.Decoder(list[Limit] | None).decode
_decode_rules = msgspec.json.Decoder(list[Rule] | None).decode
_decode_keys = msgspec.json.Decoder(list[AccountKey] | None).decode


_decode_holds = msgspec.json.Decoder(list[Hold] | None).decode


def _holds(read: PGresult, column: int) -> list[Hold]:
    return _decode_holds(read.get_value(0, column) or b"null") or []


class LedgerUnavailable(Exception):
    """PostgreSQL could not confirm the operation; nothing may be forwarded on its strength."""


class Stale(msgspec.Struct, frozen=True, gc=False):
    """The directory that the reserve was prepared on is older than the database's."""

    version: int


class Standing(msgspec.Struct, frozen=True, gc=False):
    """What is left of an account after an operation, where it is limited; nano-USD and tokens."""

    remaining_tokens: int | None
    remaining_nano: int | None


class Granted(msgspec.Struct, frozen=True, gc=False):
    """A committed reserve."""

    grant: Grant
    standing: Standing


class Settled(msgspec.Struct, frozen=True, gc=False):
    """A committed settlement, or one that is safe in the spool (`standing` unknown)."""

    booking: Booking | Literal["spooled"]
    standing: Standing | None


class _Op:
    """One queued operation and the waiter for its result."""

    __slots__ = ("careful", "created", "future")

    def __init__(self) -> None:
        self.created = time.monotonic()
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.careful = False

    def done(self, result: object) -> None:
        if not self.future.done():
            self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)
            # The waiter may have gone; an error nobody retrieves is not news.
            self.future.exception()


class _Reserve(_Op):
    __slots__ = ("checkpoint", "demand", "facts", "one_shot", "version")

    def __init__(
        self,
        facts: CallFacts,
        demand: Demand,
        version: int,
        one_shot: bool,
        checkpoint: Actual | None,
    ) -> None:
        super().__init__()
        self.facts, self.demand, self.version, self.one_shot = facts, demand, version, one_shot
        self.checkpoint = checkpoint


class _Settle(_Op):
    __slots__ = ("accounts", "answer", "settlement")

    def __init__(
        self, settlement: Settlement, accounts: tuple[AccountKey, ...], answer: Answer | None
    ) -> None:
        super().__init__()
        self.settlement, self.accounts, self.answer = settlement, accounts, answer

    def spent_among(self, call_ids: Container[str]) -> bool:
        """Tell whether it is one of these calls, and may have used something."""
        actual = self.settlement.actual
        # Not so a refusal, which is most of what has no hold.
        used = bool(actual.tokens or actual.nano is None or actual.nano)
        return bool(self.accounts) and used and self.settlement.facts.id in call_ids


class _Recover(_Op):
    __slots__ = ("account_ids", "call_id")

    def __init__(self, call_id: str, account_ids: tuple[str, ...]) -> None:
        super().__init__()
        self.call_id, self.account_ids = call_id, account_ids


class _Extend(_Op):
    __slots__ = ("call_id", "checkpoint", "demand")

    def __init__(self, call_id: str, demand: Demand, checkpoint: Actual | None) -> None:
        super().__init__()
        self.call_id, self.demand, self.checkpoint = call_id, demand, checkpoint


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
        self.operations = 0
        self._queue: deque[_Op] = deque()
        self._batch: list[_Op] = []
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
        for op in dict.fromkeys([*self._batch, *self._queue]):
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
        op = _Reserve(facts, demand, version, one_shot, checkpoint)
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
        op = _Settle(settlement, accounts, answer)
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
        result: Grant | Refusal | None = await self._submit(_Extend(call_id, demand, checkpoint))
        return result

    async def recover(self, call_id: str, account_ids: tuple[str, ...]) -> Booking | None:
        """Book a call whose hold has outlived its deadline. Raises `LedgerUnavailable`."""
        result: Booking | None = await self._submit(_Recover(call_id, account_ids))
        self._widened.pop(call_id, None)
        return result

    def _submit(self, op: _Op) -> asyncio.Future[Any]:
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
                for op in self._batch:
                    if not op.future.done():
                        self._give_up(op)
                self._batch = []

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
        self._batch = self._take()
        if self._batch:
            await self._run_batch(self._batch)
            self._batch = []
        return True

    def _take(self) -> list[_Op]:
        batch: list[_Op] = []
        queue = self._queue
        while queue and len(batch) < self.batch_max:
            op = queue.popleft()
            if isinstance(op, _Reserve) and op.future.done():
                continue
            batch.append(op)
        return batch

    async def _run_batch(self, batch: list[_Op]) -> None:
        try:
            # A connection that hangs is a connection that is gone.
            async with asyncio.timeout(self.wait_s + 2):
                await self._commit_or_prepare(batch)
        except (psycopg.errors.DeadlockDetected, psycopg.errors.LockNotAvailable):
            await self._rollback()
            self._try_again(batch)
        except (psycopg.OperationalError, psycopg.InterfaceError, TimeoutError, OSError) as error:
            log.warning("ledger_connection_lost", error=type(error).__name__)
            await self._disconnect()
            self._went_down()
            for op in batch:
                self._give_up(op)
        except psycopg.Error as error:
            await self._rollback()
            if (error.sqlstate or "").startswith(AWAY):
                # It answers, but takes nothing: a standby, a full disk, a shutdown.
                log.warning("ledger_refused", error=type(error).__name__)
                await self._disconnect()
                self._went_down()
                for op in batch:
                    self._give_up(op)
            elif self._pipe is None:
                # PostgreSQL ended the session, as it does when it waited too long for us.
                self._try_again(batch)
            else:
                await self._one_by_one(batch, error)
        except Exception as error:
            log.exception("ledger_batch_failed")
            await self._rollback()
            await self._one_by_one(batch, error)

    async def _commit_or_prepare(self, batch: list[_Op]) -> None:
        """Commit a batch; or make the partition that it lacks, and leave it for the next turn."""
        try:
            await self._commit(batch)
        except psycopg.errors.CheckViolation as error:
            if "no partition" not in str(error):
                raise
            await self._rollback()
            await self._make_partitions(batch)
            self._queue.extendleft(reversed(batch))

    def _try_again(self, batch: list[_Op]) -> None:
        """Put a batch back in front of the queue, but for what has waited long enough."""
        now = time.monotonic()
        for op in reversed(batch):
            if now - op.created < self.wait_s:
                self._queue.appendleft(op)
            else:
                self._give_up(op)

    async def _one_by_one(self, batch: list[_Op], error: Exception) -> None:
        """Find the operation that spoils its batch, so that the others need not suffer."""
        if len(batch) == 1 and batch[0].careful:
            log.error("ledger_operation_failed", error=str(error))
            batch[0].fail(error)
            return
        for position, op in enumerate(batch):
            if self._pipe is None:
                # It went meanwhile; what is left goes over the next connection.
                self._queue.extendleft(reversed(batch[position:]))
                return
            op.careful = True
            await self._run_batch([op])

    async def _commit(self, batch: list[_Op]) -> None:
        pipe = self._pipe
        assert pipe is not None
        accounts: dict[str, AccountKey | None] = {}
        owners: set[str] = set()
        settled: list[str] = []
        expected: list[str] = []
        looked: list[str] = []
        careful: list[str] = []
        one_shots: list[str] = []
        for op in batch:
            match op:
                case _Reserve():
                    self._path(op.demand.accounts, accounts, owners)
                    if op.one_shot:
                        one_shots.append(op.facts.key_id)
                case _Settle():
                    self._path(op.accounts, accounts, owners)
                    self._widen(op.settlement.facts.id, accounts)
                    settled.append(op.settlement.facts.id)
                    # A call refused before the ledger saw it has neither hold nor account.
                    if op.accounts:
                        expected.append(op.settlement.facts.id)
                    if op.careful:
                        careful.append(op.settlement.facts.id)
                case _Extend():
                    self._path(op.demand.accounts, accounts, owners)
                    self._widen(op.call_id, accounts)
                    looked.append(op.call_id)
                case _Recover():
                    for account_id in op.account_ids:
                        accounts.setdefault(account_id, None)
                    self._widen(op.call_id, accounts)
                    looked.append(op.call_id)
                    careful.append(op.call_id)
        keys = await self._keys_of(accounts)
        owners.update(key.owner_id for id, key in keys.items() if accounts[id] is None)
        sliding = [id for id, key in keys.items() if key.window.startswith("rolling:")]
        commands: list[Command] = [
            (b"BEGIN", ()),
            (LOCK_SQL, [_array(accounts)]),
            (READ_SQL, [_array(settled), _array(looked), _array(owners)]),
        ]
        if one_shots:
            commands.append((ONE_SHOT_SQL, [_array(one_shots)]))
        if sliding:
            commands.append((SLIDE, [_array(sliding)]))
        results: list[tuple[_Op, object]] = []
        told: list[Told] = []

        def holds_in(read: PGresult) -> tuple[list[Hold], list[Hold]]:
            return _holds(read, 2), _holds(read, 3)

        def decide(
            found: list[PGresult], holds: Iterable[Hold], booked: Sequence[Booked]
        ) -> list[Command]:
            _, locked, read, *more = found
            usable: set[str] = set()
            if one_shots:
                usable = {_text(more[0], row) for row in range(more[0].ntuples)}
            books = Books(
                [_account(locked, row) for row in range(locked.ntuples)],
                _decode_limits(read.get_value(0, 1) or b"null") or [],
                holds,
                booked,
                keys=keys,
                rules=_decode_rules(read.get_value(0, 4) or b"null") or [],
                around=self.around,
            )
            if sliding:
                _slide(books, more[-1])
            answers: list[dict[str, object]] = []
            used_keys: list[str] = []
            version = int(read.get_value(0, 0) or b"0")
            results.extend(self._decide(batch, books, version, usable, used_keys, answers))
            told.extend(books.told)
            return self._writes(books, set(settled), used_keys, answers)

        def doubtful(ended: Iterable[Hold]) -> list[str]:
            # Only then can the books already have a call: it has no hold (any more), or it comes
            # again.
            known = {hold.call_id for hold in ended}
            return [id for id in expected if id not in known] + careful

        def wider(rows: Iterable[Hold | Booked | CallFacts]) -> dict[str, tuple[str, ...]]:
            # Calls that count in an account which is not locked.
            return {
                row.id if isinstance(row, CallFacts) else row.call_id: row.account_ids
                for row in rows
                if row.account_ids and any(id not in accounts for id in row.account_ids)
            }

        def at_once(found: list[PGresult]) -> list[Command] | None:
            # The usual case needs nothing more, and no turn of the event loop in between.
            if found[1].ntuples < len(accounts):
                return None
            ended, kept = holds_in(found[2])
            if doubtful(ended) or wider([*ended, *kept]):
                return None
            return decide(found, [*ended, *kept], ())

        found = await pipe.run(commands, at_once)
        if not results:
            if found[1].ntuples < len(accounts):
                known = {_text(found[1], row) for row in range(found[1].ntuples)}
                await self._rollback()
                await self._create_accounts([k for id, k in accounts.items() if id not in known])
                self._queue.extendleft(reversed(batch))
                return
            ended, kept = holds_in(found[2])
            if widened := wider([*ended, *kept]):
                await self._rollback()
                self._widened |= widened
                self._queue.extendleft(reversed(batch))
                return
            alone = doubtful(ended)
            among = set(alone)
            late = [op for op in batch if isinstance(op, _Settle) and op.spent_among(among)]
            rows, *since = await pipe.run(
                [(BOOKED_SQL, [_array(alone)]), *map(_opened_since, late)]
            )
            booked = {one.call_id: one for one in (_booked(rows, n) for n in range(rows.ntuples))}
            for op, opened in zip(late, since, strict=True):
                _join(op, [_text(opened, n) for n in range(opened.ntuples)], booked)
            settled_late = [
                booked.get(op.settlement.facts.id) or op.settlement.facts for op in late
            ]
            if widened := wider([*booked.values(), *settled_late]):
                await self._rollback()
                self._widened |= widened
                self._queue.extendleft(reversed(batch))
                return
            await pipe.run(decide(found, [*ended, *kept], list(booked.values())))
        self.batches += 1
        self.operations += len(batch)
        if self.on_booked is not None:
            self.on_booked(owners)
            # A refused call is booked to an allocation, but in none of its accounts.
            settlements = (op.settlement for op in batch if isinstance(op, _Settle))
            self.on_booked(settlement.facts.allocation_id for settlement in settlements)
        for one in told:
            self._known_events[one.event.id] = None
        while len(self._known_events) > EVENTS_KNOWN:
            del self._known_events[next(iter(self._known_events))]
        for op, result in results:
            op.done(result)
        if self._down_since is not None:
            self._down_since = None
            log.info("ledger_back")

    async def _keys_of(self, accounts: Mapping[str, AccountKey | None]) -> dict[str, AccountKey]:
        """Return which accounts these are; those that a hold alone names are looked up."""
        known = {id: key for id, key in accounts.items() if key is not None}
        if len(known) < len(accounts):
            assert self._pipe is not None
            named = _array(id for id, key in accounts.items() if key is None)
            [found] = await self._pipe.run([(KEYS_SQL, [named])])
            known |= {key.id: key for key in _decode_keys(found.get_value(0, 0) or b"null") or []}
        return known

    def _widen(self, call_id: str, accounts: dict[str, AccountKey | None]) -> None:
        for account_id in self._widened.get(call_id, ()):
            accounts.setdefault(account_id, None)

    @staticmethod
    def _path(
        path: Iterable[AccountKey], accounts: dict[str, AccountKey | None], owners: set[str]
    ) -> None:
        for key in path:
            accounts[key.id] = key
            owners.add(key.owner_id)

    def _decide(
        self,
        batch: Sequence[_Op],
        books: Books,
        version: int,
        usable: set[str],
        used_keys: list[str],
        answers: list[dict[str, object]],
    ) -> list[tuple[_Op, object]]:
        """Decide every operation: what frees room first, then what asks for it."""
        results: list[tuple[_Op, object]] = []
        booked: list[tuple[_Settle, Booking]] = []
        granted: list[tuple[_Reserve, Grant]] = []
        now = datetime.now(UTC)
        for op in batch:
            if isinstance(op, _Settle):
                booking = books.settle(op.settlement)
                if op.answer is not None and booking == "booked":
                    answers.append(_answer_row(op.settlement.facts, op.answer))
                booked.append((op, booking))
            elif isinstance(op, _Recover):
                results.append((op, books.recover(op.call_id, now)))
        results.extend(
            (op, books.extend(op.call_id, op.demand, op.checkpoint))
            for op in batch
            if isinstance(op, _Extend)
        )
        for op in batch:
            if not isinstance(op, _Reserve):
                continue
            result: object
            if op.version != version:
                result = Stale(version)
            elif op.one_shot and op.facts.key_id not in usable:
                result = Refusal(Reason.INVALID_KEY)
            else:
                result = books.reserve(op.facts, op.demand, op.checkpoint)
                if isinstance(result, Grant):
                    granted.append((op, result))
                    if op.one_shot:
                        usable.discard(op.facts.key_id)
                        used_keys.append(op.facts.key_id)
                    continue
            results.append((op, result))
        # How it stands when all is done: the same for all on one path.
        standing = _Standings(books)
        results.extend((op, Settled(one, standing.of(op.accounts))) for op, one in booked)
        results.extend((op, Granted(one, standing.of(op.demand.accounts))) for op, one in granted)
        return results

    def _writes(
        self,
        books: Books,
        settled: set[str],
        used_keys: list[str],
        answers: list[dict[str, object]],
    ) -> list[Command]:
        commands: list[Command] = []
        if books.touched:
            touched = [books.accounts[id] for id in books.touched]
            commands.append((WRITE_ACCOUNTS, [encode(touched)]))
        if books.slid:
            commands.append(
                (WRITE_SLID, [encode([_slid_row(books.accounts[id]) for id in books.slid])])
            )
        if books.told:
            news = [one for one in books.told if one.event.id not in self._known_events]
            # In one order everywhere: replicas may write the same events at the same time.
            news.sort(key=lambda told: told.event.id)
            if news:
                commands.append((WRITE_EVENTS, [encode([_event_row(one) for one in news])]))
        if books.new_holds:
            added = encode(list(books.new_holds.values()))
            commands.append((WRITE_HOLDS, [self._deadline, added]))
        if books.calls:
            commands.append((WRITE_CALLS, [encode([_call_row(row) for row in books.calls])]))
        if books.changed_holds:
            changed = encode(list(books.changed_holds.values()))
            commands.append((CHANGE_HOLDS, [self._deadline, changed]))
        # Those of settled calls went when they were read.
        ended = books.ended_holds - settled
        if ended:
            commands.append((END_HOLDS, [_array(ended)]))
        if books.adjustments:
            commands.append((WRITE_ADJUSTMENTS, [encode(books.adjustments)]))
        if answers:
            commands.append((WRITE_ANSWERS, [encode(answers)]))
        if used_keys:
            commands.append((USE_KEYS, [_array(used_keys)]))
        commands.append((b"COMMIT", ()))
        return commands

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
            self._pipe = await Pipe.open(self.dsn, options=OPTIONS)
        except (psycopg.Error, OSError) as error:
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
        waiting: deque[_Op] = deque()
        for op in self._queue:
            patient = not isinstance(op, _Settle) and not self._stopping
            if patient and away < self.wait_s and now - op.created < self.wait_s:
                waiting.append(op)
            else:
                self._give_up(op)
        self._queue = waiting

    def _give_up(self, op: _Op) -> None:
        """Answer an operation that PostgreSQL did not confirm."""
        if not isinstance(op, _Settle):
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

    async def _make_partitions(self, batch: Iterable[_Op]) -> None:
        if self._pipe is None:
            raise psycopg.OperationalError("the connection went")
        ids = [op.settlement.facts.id for op in batch if isinstance(op, _Settle)]
        ids += [op.call_id for op in batch if isinstance(op, _Recover) and op.account_ids]
        await self._pipe.run([(MAKE_PARTITIONS, [_array(ids)])])

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
        self._submit(_Recover("00000000-0000-0000-0000-000000000000", ()))

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
                if _text(held, row, 1) == "t" and self.on_stopped is not None:
                    try:
                        self.on_stopped(_text(held, row))
                    except Exception:
                        # Whatever becomes of it, the other calls live on.
                        log.exception("order_to_stop_failed")


def _array(ids: Iterable[str]) -> bytes:
    """Write ids as an array literal; they are UUIDs, so nothing needs quoting."""
    return b"{" + ",".join(ids).encode() + b"}"


def _text(result: PGresult, row: int, column: int = 0) -> str:
    return (result.get_value(row, column) or b"").decode()


def _account(result: PGresult, row: int) -> Account:
    value = result.get_value
    used_tokens, used_nano, held_tokens, held_nano, unpriced, over_tokens, over_nano = (
        int(value(row, column) or 0) for column in range(1, 8)
    )
    return Account(
        _text(result, row),
        used_tokens,
        used_nano,
        held_tokens,
        held_nano,
        unpriced,
        over_tokens,
        over_nano,
    )


def _booked(result: PGresult, row: int) -> Booked:
    nano = result.get_value(row, 3)
    return Booked(
        _text(result, row),
        cast(Outcome, _text(result, row, 1)),
        int(_text(result, row, 2)),
        None if nano is None else int(nano),
        _text(result, row, 4) == "t",
        tuple(_text(result, row, 5).split(",")) if _text(result, row, 5) else (),
    )


class _Standings:
    """How it stands on every path of a batch."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._known: dict[tuple[str, ...], Standing] = {}

    def of(self, path: Sequence[AccountKey]) -> Standing:
        """Return the least that is left on a path, by meter."""
        ids = tuple([key.id for key in path])
        known = self._known.get(ids)
        if known is not None:
            return known
        left: dict[Meter, int] = {}
        for key in path:
            account = self._books.accounts[key.id]
            for limit in self._books.limits.get(key.owner_id, ()):
                if limit.window == key.window:
                    taken = account.used(limit.meter) + account.held(limit.meter)
                    rest = max(0, limit.amount - taken)
                    left[limit.meter] = min(rest, left.get(limit.meter, rest))
        standing = self._known[ids] = Standing(left.get("tokens"), left.get("usd"))
        return standing


def _opened_since(op: _Settle) -> Command:
    """Ask for the accounts that were opened after a call was admitted."""
    facts = op.settlement.facts
    owners = {key.owner_id for key in op.accounts} | {facts.key_id}
    return OPENED_SQL, [_array(owners), facts.started_at.isoformat().encode()]


def _join(op: _Settle, opened: Sequence[str], booked: dict[str, Booked]) -> None:
    """Let a call that has no hold, so that nobody could join it, count in accounts opened since."""
    facts = op.settlement.facts
    known = booked.get(facts.id)
    named = facts.account_ids if known is None else known.account_ids or ()
    joined = (*named, *(id for id in opened if id not in named))
    if known is not None:
        booked[facts.id] = msgspec.structs.replace(known, account_ids=joined)
    else:
        facts = msgspec.structs.replace(facts, account_ids=joined)
        op.settlement = msgspec.structs.replace(op.settlement, facts=facts)


def _slide(books: Books, found: PGresult) -> None:
    """Let rolling windows begin where they do now."""
    for row in range(found.ntuples):
        id = _text(found, row)
        edge, slid_tokens, slid_nano, tokens, nano, former = (
            int(_text(found, row, column)) for column in range(1, 7)
        )
        account = RollingAccount(**msgspec.structs.asdict(books.accounts[id]))
        account.slid_to = EPOCH + timedelta(milliseconds=former)
        account.slid_tokens, account.slid_nano = slid_tokens, slid_nano
        books.accounts[id] = account
        books.slide(id, EPOCH + timedelta(milliseconds=edge), tokens, nano)


def _slid_row(account: Account) -> dict[str, object]:
    assert isinstance(account, RollingAccount)
    return {
        "id": account.id,
        "slid_to": account.slid_to,
        "slid_tokens": account.slid_tokens,
        "slid_nano": account.slid_nano,
    }


def _event_row(told: Told) -> dict[str, object]:
    body = told.event.body
    return {
        "id": told.event.id,
        "kind": body.__struct_config__.tag,
        "rule_id": told.rule_id,
        "body": msgspec.json.encode(body).decode(),
    }


def _call_row(row: CallRow) -> dict[str, object]:
    settlement = row.settlement
    facts, actual = settlement.facts, settlement.actual
    return {
        "id": facts.id,
        "request_id": facts.request_id,
        "allocation_id": facts.allocation_id,
        "key_id": facts.key_id,
        "member_id": facts.member_id,
        "model": facts.model,
        "endpoint": facts.endpoint,
        "outcome": settlement.outcome,
        "close_reason": settlement.close_reason,
        "status_code": settlement.status_code,
        "started_at": facts.started_at,
        "finished_at": settlement.finished_at,
        "usage": actual.usage,
        "tokens": actual.tokens,
        "cost_nano": actual.nano,
        "price_id": facts.price_id,
        "estimated": settlement.estimated,
        "overrun_tokens": row.overrun_tokens,
        "overrun_nano": row.overrun_nano,
        "error_message": settlement.error_message,
        "shortfall": settlement.shortfall,
        "account_ids": facts.account_ids,
    }


def _answer_row(facts: CallFacts, answer: Answer) -> dict[str, object]:
    return {
        "call_id": facts.id,
        "key_id": facts.key_id,
        "status_code": answer.status_code,
        "headers": answer.headers,
        "body": answer.body,
    }
