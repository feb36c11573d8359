"""A batch: what a group of operations locks, decides and writes, in one transaction.

Owns the operations, the statements of the group commit, and the way from rows to `Books` and back.
Owns no connection and no decision: when a batch is sent, and what happens when PostgreSQL is away,
is `store.ledger`; which call is admitted and what is booked is `core.ledger.Books`.

A batch is decided on what this process believes, if it believes anything of all it touches
(`believing`): then what to verify, to write and to commit is sent in one go. Else it goes the long
way: it locks the touched account rows in the order of their ids, reads limits and holds under those
locks, decides, and writes. Mostly that is known once the locks are won (`at_once`). If not, it says
what stands in its way: accounts that do not exist yet (`missing`), accounts of a call that nobody
locked (`wider`), or calls that may be in the books already (`questions`).

Invariant: locks are taken in one order everywhere: accounts by id, then holds, then keys.
"""

import asyncio
import time
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, cast

import msgspec
from psycopg.pq.abc import PGresult

from app.core.alerts import Rule
from app.core.ledger import (
    NO_TERMS,
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
    owner_terms,
)
from app.core.refusals import Outcome, Reason, Refusal
from app.core.windows import EPOCH
from app.store.beliefs import Beliefs, write_accounts
from app.store.pipe import Command, array
from app.store.rolling import SLIDE_SQL
from app.store.spool import Answer

LOCK_SQL = b"""
SELECT id, used_tokens, used_nano, held_tokens, held_nano,
       unpriced_calls, overrun_tokens, overrun_nano, xmin
FROM accounts WHERE id = ANY($1::uuid[]) ORDER BY id FOR UPDATE
"""

# A statement of its own, after the locks: it sees everything that committed before they were won.
# So is its clock: top-ups begin and end under the locks, maybe while the transaction waited.
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
        'amount', CASE WHEN topped_until > statement_timestamp() THEN amount + (
            SELECT coalesce(sum(t.amount), 0)::bigint FROM top_ups t
            WHERE t.owner_id = l.owner_id AND t.meter = l.meter AND t.window_kind = l.window_kind
                AND t.starts_at <= statement_timestamp()
                AND t.expires_at > statement_timestamp()) ELSE amount END))::text
     FROM limits l WHERE owner_id = ANY($3::uuid[]) AND amount IS NOT NULL),
    (SELECT json_agg(ended)::text FROM ended),
    (SELECT json_agg(kept)::text FROM kept),
    (SELECT json_agg(json_build_object(
        'id', id, 'owner_id', owner_id, 'meter', meter, 'window', window_kind,
        'threshold', threshold, 'percent', percent))::text
     FROM alert_rules WHERE owner_id = ANY($3::uuid[]) AND enabled),
    (SELECT string_agg(owner_id::text, ',')
     FROM limits WHERE owner_id = ANY($3::uuid[]) AND topped_until > statement_timestamp())
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
# counts in them as well, whether they were brought up to that or not. So it does in those that were
# there, of a window that none on its path ($3) is of: it was let through by a replica that was cut
# off, and did not know of them.
OPENED_SQL = b"""
SELECT id FROM accounts a
WHERE owner_id = ANY($1::uuid[])
    AND period_start <= $2::timestamptz AND (period_end IS NULL OR period_end > $2::timestamptz)
    AND (opened_at > $2::timestamptz OR NOT EXISTS (SELECT FROM accounts p
        WHERE p.id = ANY($3::uuid[]) AND p.owner_id = a.owner_id AND p.window_kind = a.window_kind))
    AND EXISTS (SELECT FROM limits l WHERE l.owner_id = a.owner_id AND l.owner_id = ANY($1::uuid[])
        AND l.window_kind = a.window_kind AND (l.amount IS NOT NULL OR l.watched))
"""

ONE_SHOT_SQL = b"""
SELECT id FROM keys
WHERE id = ANY($1::uuid[]) AND used_at IS NULL AND revoked_at IS NULL FOR UPDATE
"""

_CALL_COLUMNS = (
    "id uuid, request_id text, allocation_id uuid, key_id uuid, member_id uuid, model text, "
    "endpoint text, outcome text, close_reason text, status_code integer, started_at timestamptz, "
    "finished_at timestamptz, usage jsonb, tokens bigint, cost_nano bigint, price_id uuid, "
    "estimated boolean, overrun_tokens bigint, overrun_nano bigint, error_message text, "
    "shortfall jsonb, account_ids uuid[]"
)
_CALL_NAMES = ", ".join(column.split()[0] for column in _CALL_COLUMNS.split(", "))

WRITE_SLID = b"""
UPDATE accounts a SET slid_to = v.slid_to, slid_tokens = v.slid_tokens, slid_nano = v.slid_nano
FROM json_to_recordset($1::json)
    AS v(id uuid, slid_to timestamptz, slid_tokens bigint, slid_nano bigint)
WHERE a.id = ANY(ARRAY[v.id])
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
WHERE h.call_id = ANY(ARRAY[v.call_id])
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

encode = msgspec.json.Encoder(decimal_format="number").encode
_decode_limits = msgspec.json.Decoder(list[Limit] | None).decode
_decode_rules = msgspec.json.Decoder(list[Rule] | None).decode
_decode_keys = msgspec.json.Decoder(list[AccountKey] | None).decode
_decode_holds = msgspec.json.Decoder(list[Hold] | None).decode


def keys_in(found: PGresult) -> list[AccountKey]:
    """Read what `KEYS_SQL` found."""
    return _decode_keys(found.get_value(0, 0) or b"null") or []


def _holds(read: PGresult, column: int) -> list[Hold]:
    return _decode_holds(read.get_value(0, column) or b"null") or []


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


class Operation:
    """One queued operation and the waiter for its result."""

    __slots__ = ("careful", "created", "doubted", "future")

    def __init__(self) -> None:
        self.created = time.monotonic()
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.careful = False
        """Whether it may have been done before, or may spoil its batch."""
        self.doubted = False
        """Whether it was decided on a belief that was wrong: then it goes the long way."""

    def done(self, result: object) -> None:
        if not self.future.done():
            self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)
            # The waiter may have gone; an error nobody retrieves is not news.
            self.future.exception()


class Reserve(Operation):
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


class Settle(Operation):
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


class Recover(Operation):
    __slots__ = ("account_ids", "call_id")

    def __init__(self, call_id: str, account_ids: tuple[str, ...]) -> None:
        super().__init__()
        self.call_id, self.account_ids = call_id, account_ids


class Extend(Operation):
    __slots__ = ("call_id", "checkpoint", "demand")

    def __init__(self, call_id: str, demand: Demand, checkpoint: Actual | None) -> None:
        super().__init__()
        self.call_id, self.demand, self.checkpoint = call_id, demand, checkpoint


class Batch:
    """Operations that are decided together."""

    def __init__(
        self,
        ops: Sequence[Operation],
        *,
        beliefs: Beliefs,
        around: Surroundings,
        widened: Mapping[str, Iterable[str]],
        known_events: Container[str],
        hold_deadline: bytes,
    ) -> None:
        self.ops = ops
        self.accounts: dict[str, AccountKey | None] = {}
        """What is locked; None for an account that only a hold names."""
        self.owners: set[str] = set()
        self.results: list[tuple[Operation, object]] = []
        """What was decided, true once it is committed."""
        self.told: list[Told] = []
        self.decided = False
        self._beliefs = beliefs
        self._books: Books | None = None
        self._written: Collection[str] = ()
        """The accounts that are written."""
        self._around = around
        self._known_events = known_events
        self._hold_deadline = hold_deadline
        self._settled: list[str] = []
        self._expected: list[str] = []
        self._looked: list[str] = []
        self._careful: list[str] = []
        self._one_shots: list[str] = []
        for op in ops:
            match op:
                case Reserve():
                    self._path(op.demand.accounts)
                    if op.one_shot:
                        self._one_shots.append(op.facts.key_id)
                case Settle():
                    call_id = op.settlement.facts.id
                    self._path(op.accounts)
                    self._name(widened.get(call_id, ()))
                    self._settled.append(call_id)
                    # A call refused before the ledger saw it has neither hold nor account.
                    if op.accounts:
                        self._expected.append(call_id)
                    if op.careful:
                        self._careful.append(call_id)
                case Extend():
                    self._path(op.demand.accounts)
                    self._name(widened.get(op.call_id, ()))
                    self._looked.append(op.call_id)
                case Recover():
                    self._name(op.account_ids)
                    self._name(widened.get(op.call_id, ()))
                    self._looked.append(op.call_id)
                    self._careful.append(op.call_id)
        self._keys = {id: key for id, key in self.accounts.items() if key is not None}
        self._sliding: list[str] = []
        self._found: list[PGresult] = []
        self._ended: list[Hold] = []
        self._kept: list[Hold] = []
        self._booked: dict[str, Booked] = {}
        self._late: list[Settle] = []

    def _path(self, path: Iterable[AccountKey]) -> None:
        for key in path:
            self.accounts[key.id] = key
            self.owners.add(key.owner_id)

    def _name(self, account_ids: Iterable[str]) -> None:
        for account_id in account_ids:
            self.accounts.setdefault(account_id, None)

    # On beliefs

    def believing(self) -> list[Command] | None:
        """Decide on what is believed; return the whole transaction, which verifies that first.

        The end of the round trip commits it. It fails with a division by zero if a belief is wrong:
        then `refuted` is to be told, and another batch of the same operations goes the long way.
        None if something is not believed, or never is: whatever is out of the ordinary.
        """
        if self._looked or self._careful or self._one_shots or self.unknown:
            return None
        version = self._beliefs.version
        for op in self.ops:
            if op.careful or op.doubted or (isinstance(op, Reserve) and op.version != version):
                return None
        if len(set(self._expected)) < len(self._expected):
            return None
        believed = self._beliefs.of(self.accounts, self.owners, self._expected)
        if believed is None:
            return None
        for hold in believed.holds:
            if any(id not in self.accounts for id in hold.account_ids):
                return None
        books = Books(
            believed.accounts,
            believed.terms,
            believed.holds,
            keys=self._keys,
            around=self._around,
        )
        writes = self._decide(books, version, set())
        # A refusal, too, is only right if the accounts are as they were left.
        self._written = books.accounts
        return [*believed.verify(), *writes]

    def refuted(self) -> None:
        """Be told that a belief was wrong."""
        self._beliefs.refuted(self.accounts)
        for op in self.ops:
            op.doubted = True

    def committed(self, results: Sequence[PGresult]) -> None:
        """Be told that what was decided is true, and what came back of the writing."""
        assert self._books is not None
        writer = text(results[0], 0, 1) if self._written else ""
        self._beliefs.committed(self._books, self._written, writer, self._settled)

    # Before the locks

    @property
    def unknown(self) -> list[str]:
        """The accounts of which it is not known whose they are."""
        return [id for id in self.accounts if id not in self._keys]

    def learn(self, keys: Iterable[AccountKey]) -> None:
        """Be told whose they are."""
        for key in keys:
            self._keys[key.id] = key
            self.owners.add(key.owner_id)

    def locks(self) -> list[Command]:
        """Return what begins the transaction, locks, and reads under the locks."""
        self._sliding = [id for id, key in self._keys.items() if key.window.startswith("rolling:")]
        commands: list[Command] = [
            (b"BEGIN", ()),
            (LOCK_SQL, [array(self.accounts)]),
            (READ_SQL, [array(self._settled), array(self._looked), array(self.owners)]),
        ]
        if self._one_shots:
            commands.append((ONE_SHOT_SQL, [array(self._one_shots)]))
        if self._sliding:
            commands.append((SLIDE, [array(self._sliding)]))
        return commands

    # Under the locks

    def at_once(self, found: list[PGresult]) -> list[Command] | None:
        """Take in what the locks found; return what to write if that is all there is to know."""
        self._found = found
        self._ended, self._kept = _holds(found[2], 2), _holds(found[2], 3)
        if found[1].ntuples < len(self.accounts) or self._doubtful() or self.wider():
            return None
        return self.decide()

    def missing(self) -> list[AccountKey | None]:
        """Return the accounts that do not exist yet; None for one that only a hold names."""
        locked = self._found[1]
        if locked.ntuples == len(self.accounts):
            return []
        known = {text(locked, row) for row in range(locked.ntuples)}
        return [key for id, key in self.accounts.items() if id not in known]

    def wider(self) -> dict[str, tuple[str, ...]]:
        """Return calls that count in an account which is not locked, with all their accounts."""
        late = [op.settlement.facts for op in self._late]
        rows: list[Hold | Booked | CallFacts] = [*self._ended, *self._kept]
        rows += [*self._booked.values(), *(row for row in late if row.id not in self._booked)]
        return {
            row.id if isinstance(row, CallFacts) else row.call_id: row.account_ids
            for row in rows
            if row.account_ids and any(id not in self.accounts for id in row.account_ids)
        }

    def _doubtful(self) -> list[str]:
        # Only then can the books already have a call: it has no hold (any more), or it comes again.
        known = {hold.call_id for hold in self._ended}
        return [id for id in self._expected if id not in known] + self._careful

    def questions(self) -> list[Command]:
        """Ask what the books have of calls without a hold, and which accounts they would join."""
        doubtful = self._doubtful()
        among = set(doubtful)
        self._late = [op for op in self.ops if isinstance(op, Settle) and op.spent_among(among)]
        return [(BOOKED_SQL, [array(doubtful)]), *map(_unknown_to, self._late)]

    def answered(self, answers: Sequence[PGresult]) -> None:
        """Be told; then `wider` may have more to say."""
        rows, *since = answers
        booked = (_booked(rows, row) for row in range(rows.ntuples))
        self._booked = {one.call_id: one for one in booked}
        for op, opened in zip(self._late, since, strict=True):
            _join(op, [text(opened, row) for row in range(opened.ntuples)], self._booked)

    def decide(self) -> list[Command]:
        """Decide every operation on what was found; return what to write, with the commit."""
        _, locked, read, *more = self._found
        usable: set[str] = set()
        if self._one_shots:
            usable = {text(more[0], row) for row in range(more[0].ntuples)}
        accounts = [_account(locked, row) for row in range(locked.ntuples)]
        writers = {text(locked, row): text(locked, row, 8) for row in range(locked.ntuples)}
        terms = owner_terms(
            _decode_limits(read.get_value(0, 1) or b"null") or [],
            _decode_rules(read.get_value(0, 4) or b"null") or [],
        )
        books = Books(
            accounts,
            terms,
            [*self._ended, *self._kept],
            list(self._booked.values()),
            keys=self._keys,
            around=self._around,
        )
        version = int(read.get_value(0, 0) or b"0")
        rolling = set(self._sliding)
        self._beliefs.found(
            version,
            [(account, writers[account.id]) for account in accounts if account.id not in rolling],
            terms,
            self.owners,
            topped=text(read, 0, 5).split(","),
        )
        if self._sliding:
            _slide(books, more[-1])
        writes = self._decide(books, version, usable)
        if books.touched:
            self._written = books.touched
            touched = [books.accounts[id] for id in books.touched]
            writes.insert(0, write_accounts(touched, [writers[one.id] for one in touched]))
        return [*writes, (b"COMMIT", ())]

    def _decide(self, books: Books, version: int, usable: set[str]) -> list[Command]:
        answers: list[dict[str, object]] = []
        used_keys: list[str] = []
        self.results = _decided(self.ops, books, version, usable, used_keys, answers)
        self.told = list(books.told)
        self.decided = True
        self._books = books
        return self._writes(books, used_keys, answers)

    def _writes(
        self,
        books: Books,
        used_keys: list[str],
        answers: list[dict[str, object]],
    ) -> list[Command]:
        commands: list[Command] = []
        if books.slid:
            slid = [_slid_row(books.accounts[id]) for id in books.slid]
            commands.append((WRITE_SLID, [encode(slid)]))
        if books.told:
            news = [one for one in books.told if one.event.id not in self._known_events]
            # In one order everywhere: replicas may write the same events at the same time.
            news.sort(key=lambda told: told.event.id)
            if news:
                commands.append((WRITE_EVENTS, [encode([_event_row(one) for one in news])]))
        if books.new_holds:
            added = encode(list(books.new_holds.values()))
            commands.append((WRITE_HOLDS, [self._hold_deadline, added]))
        if books.calls:
            commands.append((WRITE_CALLS, [encode([_call_row(row) for row in books.calls])]))
        if books.changed_holds:
            held = encode(list(books.changed_holds.values()))
            commands.append((CHANGE_HOLDS, [self._hold_deadline, held]))
        # Those of settled calls went when they were read.
        ended = books.ended_holds.difference(self._settled)
        if ended:
            commands.append((END_HOLDS, [array(ended)]))
        if books.adjustments:
            commands.append((WRITE_ADJUSTMENTS, [encode(books.adjustments)]))
        if answers:
            commands.append((WRITE_ANSWERS, [encode(answers)]))
        if used_keys:
            commands.append((USE_KEYS, [array(used_keys)]))
        return commands


def _decided(
    ops: Sequence[Operation],
    books: Books,
    version: int,
    usable: set[str],
    used_keys: list[str],
    answers: list[dict[str, object]],
) -> list[tuple[Operation, object]]:
    """Decide every operation: what frees room first, then what asks for it."""
    results: list[tuple[Operation, object]] = []
    booked: list[tuple[Settle, Booking]] = []
    granted: list[tuple[Reserve, Grant]] = []
    now = datetime.now(UTC)
    for op in ops:
        if isinstance(op, Settle):
            booking = books.settle(op.settlement)
            if op.answer is not None and booking == "booked":
                answers.append(_answer_row(op.settlement.facts, op.answer))
            booked.append((op, booking))
        elif isinstance(op, Recover):
            results.append((op, books.recover(op.call_id, now)))
    results.extend(
        (op, books.extend(op.call_id, op.demand, op.checkpoint))
        for op in ops
        if isinstance(op, Extend)
    )
    for op in ops:
        if not isinstance(op, Reserve):
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


def text(result: PGresult, row: int, column: int = 0) -> str:
    return (result.get_value(row, column) or b"").decode()


def _account(result: PGresult, row: int) -> Account:
    value = result.get_value
    used_tokens, used_nano, held_tokens, held_nano, unpriced, over_tokens, over_nano = (
        int(value(row, column) or 0) for column in range(1, 8)
    )
    return Account(
        text(result, row),
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
        text(result, row),
        cast(Outcome, text(result, row, 1)),
        int(text(result, row, 2)),
        None if nano is None else int(nano),
        text(result, row, 4) == "t",
        tuple(text(result, row, 5).split(",")) if text(result, row, 5) else (),
    )


class _Standings:
    """How it stands on every path of a batch."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._known: dict[int, Standing] = {}

    def of(self, path: Sequence[AccountKey]) -> Standing:
        """Return the least that is left on a path, by meter."""
        # Calls on one path mostly share it as an object, which the operations keep alive.
        known = self._known.get(id(path))
        if known is not None:
            return known
        left: dict[Meter, int] = {}
        for key in path:
            account = self._books.accounts[key.id]
            for limit in self._books.terms.get(key.owner_id, NO_TERMS).limits:
                if limit.window == key.window:
                    taken = account.used(limit.meter) + account.held(limit.meter)
                    rest = max(0, limit.amount - taken)
                    left[limit.meter] = min(rest, left.get(limit.meter, rest))
        standing = self._known[id(path)] = Standing(left.get("tokens"), left.get("usd"))
        return standing


def _unknown_to(op: Settle) -> Command:
    """Ask for the accounts that a call counts in, although it was admitted without them."""
    facts = op.settlement.facts
    owners = {key.owner_id for key in op.accounts} | {facts.key_id}
    path = array(key.id for key in op.accounts)
    return OPENED_SQL, [array(owners), facts.started_at.isoformat().encode(), path]


def _join(op: Settle, opened: Sequence[str], booked: dict[str, Booked]) -> None:
    """Let a call that has no hold, so that nobody could join it, count in more accounts."""
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
        id = text(found, row)
        edge, slid_tokens, slid_nano, tokens, nano, former = (
            int(text(found, row, column)) for column in range(1, 7)
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
