"""Beliefs: what this process last read or wrote of accounts, limits and holds.

Owns that memory, and the statements by which PostgreSQL verifies it. Owns no decision, and is never
the reason for one: a batch that is decided on beliefs sends them along, and PostgreSQL compares
them with its rows, under the locks, in the transaction that writes what was decided. If one of them
is not so, nothing is written, and the batch goes the long way: lock, read, decide, write. What is
decided is a function of what is verified, so a belief can cost time, but never a wrong decision.

A verified batch is one round trip instead of two. Where several replicas charge the same accounts,
beliefs are mostly wrong; so an account is believed only after it was found as it was left.

An account is as it was left if its row was last written by the transaction that left it so. The
numbers of transactions are one server's, and begin again after 2^32: so beliefs are given up with
the connection, and once an hour.

Never believed: rolling accounts, which move by themselves; owners with top-ups, whose limits do.
"""

import copy
import time
from collections.abc import Callable, Collection, Container, Iterable, Mapping

import msgspec

from app.core.ledger import NO_TERMS, Account, Books, Hold, OwnerTerms
from app.store.pipe import Command, array

KNOWN_MAX = 100_000
TRUSTED = 1
"""How often in a row an account was found as it was left, to be believed."""
REFUTED = -4
"""Where that count begins after a belief was wrong."""
KEPT_S = 3600.0
"""No server comes to 2^32 transactions in that time."""

ACCOUNT_COLUMNS = (
    "used_tokens",
    "used_nano",
    "held_tokens",
    "held_nano",
    "unpriced_calls",
    "overrun_tokens",
    "overrun_nano",
)

# Of accounts that were last written by the transactions $2; else it fails with a division by zero.
# They are found and locked one by one, in the order of $1.
WRITE_ACCOUNTS = f"""
WITH written AS (
    UPDATE accounts a SET {", ".join(f"{name} = v.{name}" for name in ACCOUNT_COLUMNS)}
    FROM ROWS FROM (
        json_to_recordset($1::json)
            AS (id uuid, {", ".join(f"{name} bigint" for name in ACCOUNT_COLUMNS)}),
        unnest($2::xid[])
    ) AS v(id, {", ".join(ACCOUNT_COLUMNS)}, writer)
    WHERE a.id = ANY(ARRAY[v.id]) AND a.xmin = v.writer
    RETURNING a.id
)
SELECT 1 / (count(*) = cardinality($2::xid[]))::int, pg_current_xact_id()::xid FROM written
""".encode()

# A statement of its own, after the locks: it sees everything that committed before they were won.
# Holds that end are deleted here, like those that are read.
VERIFY_REST = b"""
WITH ended AS (
    DELETE FROM holds WHERE call_id = ANY($1::uuid[])
    RETURNING call_id,
        concat_ws('|', tokens, coalesce(nano::text, '-'), array_to_string(account_ids, '|'))
            AS state
), found AS (
    SELECT concat_ws('|', owner_id, meter, window_kind,
                     CASE WHEN topped_until > now() THEN 'topped' ELSE amount::text END) AS line
    FROM limits WHERE owner_id = ANY($3::uuid[]) AND amount IS NOT NULL
    UNION ALL
    SELECT concat_ws('|', owner_id, id, meter, window_kind, threshold, percent)
    FROM alert_rules WHERE owner_id = ANY($3::uuid[]) AND enabled
)
SELECT 1 / ((SELECT directory_version FROM installation) = $5::bigint
    AND (SELECT coalesce(array_agg(state ORDER BY call_id), '{}') FROM ended) = $2::text[]
    AND (SELECT coalesce(array_agg(line ORDER BY line COLLATE "C"), '{}') FROM found) = $4::text[]
)::int
"""


def write_accounts(accounts: Collection[Account], writers: Iterable[str]) -> Command:
    """Say how accounts are to be left, if these transactions were the last to write them."""
    return WRITE_ACCOUNTS, [msgspec.json.encode(accounts), array(writers)]


class _Standing:
    """An account as it was left, by which transaction, and how often in a row it was found so."""

    __slots__ = ("account", "streak", "writer")

    def __init__(self, account: Account, writer: str, streak: int) -> None:
        self.account = account
        self.writer = writer
        self.streak = streak


class _Lines:
    """The terms of an owner, and what PostgreSQL would make of them."""

    __slots__ = ("lines", "terms")

    def __init__(self, terms: OwnerTerms) -> None:
        self.terms = terms
        lines = [f"{one.owner_id}|{one.meter}|{one.window}|{one.amount}" for one in terms.limits]
        lines += [
            f"{one.owner_id}|{one.id}|{one.meter}|{one.window}|{one.threshold}"
            f"|{'t' if one.percent else 'f'}"
            for one in terms.rules
        ]
        self.lines = sorted(lines)


class Believed:
    """What a batch is decided on, and what has to be so: all of it in the order of the ids."""

    def __init__(
        self,
        version: int,
        standings: list[_Standing],
        owners: list[str],
        known: list[_Lines],
        holds: list[Hold],
    ) -> None:
        # What is decided changes them, and may not come true.
        self.accounts = [copy.copy(one.account) for one in standings]
        self.writers = [one.writer for one in standings]
        self.terms = {owner: one.terms for owner, one in zip(owners, known, strict=True)}
        self.holds = holds
        self._rest: Command = (
            VERIFY_REST,
            [
                array([hold.call_id for hold in holds]),
                array([_hold_state(hold) for hold in holds]),
                array(owners),
                array([line for one in known for line in one.lines]),
                b"%d" % version,
            ],
        )

    def verify(self) -> list[Command]:
        """Return what has to be so, and how the accounts are to be left."""
        if not self.accounts:
            return [self._rest]
        return [write_accounts(self.accounts, self.writers), self._rest]


class Beliefs:
    """What one process believes, as long as a connection lasts."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._version = -1
        self._accounts: dict[str, _Standing] = {}
        self._terms: dict[str, _Lines] = {}
        self._holds: dict[str, Hold] = {}

    def of(
        self, account_ids: Iterable[str], owners: Iterable[str], call_ids: Iterable[str]
    ) -> Believed | None:
        """Return what to decide on; None if anything of it is not believed."""
        now = self._clock()
        if now - self._since > KEPT_S:
            self._since = now
            self._accounts.clear()
        standings: list[_Standing] = []
        for id in sorted(account_ids):
            standing = self._accounts.get(id)
            if standing is None or standing.streak < TRUSTED:
                return None
            standings.append(standing)
        owners = sorted(owners)
        known = [self._terms.get(owner) for owner in owners]
        holds = [self._holds.get(id) for id in sorted(call_ids)]
        if None in known or None in holds:
            return None
        return Believed(
            self._version,
            standings,
            owners,
            [one for one in known if one is not None],
            [hold for hold in holds if hold is not None],
        )

    @property
    def version(self) -> int:
        """The version of the directory."""
        return self._version

    def found(
        self,
        version: int,
        accounts: Iterable[tuple[Account, str]],
        terms: Mapping[str, OwnerTerms],
        owners: Iterable[str],
        *,
        topped: Container[str],
    ) -> None:
        """Take in what the locks found, before anything is decided.

        `accounts` come with the transactions that left them so, and without rolling ones.
        """
        self._version = version
        for account, writer in accounts:
            standing = self._accounts.get(account.id)
            if standing is None:
                self._accounts[account.id] = _Standing(copy.copy(account), writer, 0)
            elif standing.writer == writer:
                standing.streak += 1
            else:
                standing.account, standing.writer = copy.copy(account), writer
                standing.streak = min(0, standing.streak)
        for owner in owners:
            if owner in topped:
                self._terms.pop(owner, None)
                continue
            found, known = terms.get(owner, NO_TERMS), self._terms.get(owner)
            if known is None or known.terms != found:
                self._terms[owner] = _Lines(found)

    def committed(
        self, books: Books, written: Iterable[str], writer: str, settled: Iterable[str]
    ) -> None:
        """Take in what was written, and the number of the transaction that wrote the accounts."""
        for id in written:
            standing = self._accounts.get(id)
            if standing is not None:
                standing.account, standing.writer = books.accounts[id], writer
        for id in settled:
            self._holds.pop(id, None)
        for id in books.ended_holds:
            self._holds.pop(id, None)
        self._holds |= books.new_holds
        for id, hold in books.changed_holds.items():
            if id in self._holds:
                self._holds[id] = hold
        for known in (self._accounts, self._terms, self._holds):
            if len(known) > KNOWN_MAX:
                known.clear()

    def refuted(self, account_ids: Iterable[str]) -> None:
        """Be told that something was not so: of which of these accounts, nobody knows."""
        for id in account_ids:
            standing = self._accounts.get(id)
            if standing is not None:
                standing.streak = REFUTED


def _hold_state(hold: Hold) -> str:
    nano = "-" if hold.nano is None else hold.nano
    return f"{hold.tokens}|{nano}|{'|'.join(hold.account_ids)}"
