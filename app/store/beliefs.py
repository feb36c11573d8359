"""Beliefs: what this process last read or wrote of accounts, limits and holds.

Owns that memory, and the statements by which PostgreSQL verifies it. Owns no decision, and is never
the reason for one: a batch that is decided on beliefs sends them along, and PostgreSQL compares
them with its rows, under the locks, in the transaction that writes what was decided. If one of them
is not so, nothing is written, and the batch goes the long way: lock, read, decide, write. What is
decided is a function of what is verified, so a belief can cost time, but never a wrong decision.

A verified batch is one round trip instead of two. Where several replicas charge the same accounts,
beliefs are mostly wrong; so an account is believed only after it was found as it was left.

Never believed: rolling accounts, which move by themselves; owners with top-ups, whose limits do.
"""

import copy
from collections.abc import Container, Iterable

from app.core.alerts import Rule
from app.core.ledger import Account, Books, Hold, Limit
from app.store.pipe import Command, array

KNOWN_MAX = 100_000
TRUSTED = 1
"""How often in a row an account was found as it was left, to be believed."""
REFUTED = -4
"""Where that count begins after a belief was wrong."""

VERIFY_ACCOUNTS = b"""
WITH locked AS MATERIALIZED (
    SELECT id, concat_ws('|', used_tokens, used_nano, held_tokens, held_nano,
                         unpriced_calls, overrun_tokens, overrun_nano) AS state
    FROM accounts WHERE id = ANY($1::uuid[]) ORDER BY id FOR UPDATE
)
SELECT 1 / (coalesce(array_agg(state ORDER BY id), '{}') = $2::text[])::int FROM locked
"""

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


class _Standing:
    """An account as it was left, and how often in a row it was found so."""

    __slots__ = ("account", "streak")

    def __init__(self, account: Account, streak: int) -> None:
        self.account = account
        self.streak = streak


class _Terms:
    """The limits and rules of an owner, and what PostgreSQL would make of them."""

    __slots__ = ("limits", "lines", "rules")

    def __init__(self, limits: list[Limit], rules: list[Rule]) -> None:
        self.limits = limits
        self.rules = rules
        lines = [f"{one.owner_id}|{one.meter}|{one.window}|{one.amount}" for one in limits]
        lines += [
            f"{one.owner_id}|{one.id}|{one.meter}|{one.window}|{one.threshold}"
            f"|{'t' if one.percent else 'f'}"
            for one in rules
        ]
        self.lines = sorted(lines)


class Believed:
    """What a batch is decided on, and what has to be so: all of it in the order of the ids."""

    def __init__(
        self,
        version: int,
        accounts: list[Account],
        terms: list[_Terms],
        owners: Iterable[str],
        holds: list[Hold],
    ) -> None:
        self.accounts = accounts
        self.limits = [limit for one in terms for limit in one.limits]
        self.rules = [rule for one in terms for rule in one.rules]
        self.holds = holds
        self.verify: list[Command] = [
            (
                VERIFY_ACCOUNTS,
                [array([one.id for one in accounts]), array([_state(one) for one in accounts])],
            ),
            (
                VERIFY_REST,
                [
                    array([hold.call_id for hold in holds]),
                    array([_hold_state(hold) for hold in holds]),
                    array(owners),
                    array([line for one in terms for line in one.lines]),
                    b"%d" % version,
                ],
            ),
        ]


class Beliefs:
    """What one process believes."""

    def __init__(self) -> None:
        self._version = -1
        self._accounts: dict[str, _Standing] = {}
        self._terms: dict[str, _Terms] = {}
        self._holds: dict[str, Hold] = {}

    def of(
        self, account_ids: Iterable[str], owners: Iterable[str], call_ids: Iterable[str]
    ) -> Believed | None:
        """Return what to decide on; None if anything of it is not believed."""
        accounts: list[Account] = []
        for id in sorted(account_ids):
            standing = self._accounts.get(id)
            if standing is None or standing.streak < TRUSTED:
                return None
            # What is decided changes it, and may not come true.
            accounts.append(copy.copy(standing.account))
        owners = sorted(owners)
        terms = [self._terms.get(owner) for owner in owners]
        holds = [self._holds.get(id) for id in sorted(call_ids)]
        if None in terms or None in holds:
            return None
        return Believed(
            self._version,
            accounts,
            [one for one in terms if one is not None],
            owners,
            [hold for hold in holds if hold is not None],
        )

    @property
    def version(self) -> int:
        """The version of the directory."""
        return self._version

    def found(
        self,
        version: int,
        accounts: Iterable[Account],
        owners: Iterable[str],
        books: Books,
        *,
        topped: Container[str],
    ) -> None:
        """Take in what the locks found, before anything is decided; no rolling accounts."""
        self._version = version
        for account in accounts:
            standing = self._accounts.get(account.id)
            if standing is None:
                self._accounts[account.id] = _Standing(copy.copy(account), 0)
            elif standing.account == account:
                standing.streak += 1
            else:
                standing.account = copy.copy(account)
                standing.streak = min(0, standing.streak)
        for owner in owners:
            if owner in topped:
                self._terms.pop(owner, None)
                continue
            limits, rules = books.limits.get(owner, []), books.rules.get(owner, [])
            known = self._terms.get(owner)
            if known is None or known.limits != limits or known.rules != rules:
                self._terms[owner] = _Terms(limits, rules)

    def committed(self, books: Books, settled: Iterable[str]) -> None:
        """Take in what was written."""
        for id in books.touched:
            account = books.accounts[id]
            standing = self._accounts.get(id)
            if standing is not None:
                standing.account = account
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


def _state(account: Account) -> str:
    return (
        f"{account.used_tokens}|{account.used_nano}|{account.held_tokens}|{account.held_nano}"
        f"|{account.unpriced_calls}|{account.overrun_tokens}|{account.overrun_nano}"
    )


def _hold_state(hold: Hold) -> str:
    nano = "-" if hold.nano is None else hold.nano
    return f"{hold.tokens}|{nano}|{'|'.join(hold.account_ids)}"
