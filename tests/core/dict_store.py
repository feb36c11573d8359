"""The ledger's tables as dicts: what `app.store.ledger` is to PostgreSQL, without PostgreSQL.

A transaction hands `Books` copies of the rows it asks for, and writes back only what `Books` says
is to be written. So a decision that forgets to mark a row shows up as it would in the database.
"""

import contextlib
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from uuid import UUID

import msgspec

from app.core.ledger import (
    Account,
    AccountKey,
    Actual,
    Adjustment,
    Booked,
    Books,
    CallRow,
    Hold,
    Limit,
    Meter,
    RollingAccount,
    owner_terms,
)
from app.core.windows import EPOCH, Window, rolling


def admitted(call_id: str) -> datetime:
    """Return when a call was admitted, as its id says."""
    return EPOCH + timedelta(milliseconds=UUID(call_id).int >> 80)


class Cap(msgspec.Struct):
    """A row of `limits`: the amount, and what was used and held when it was set, and where."""

    owner_id: str
    meter: Meter
    window: Window
    amount: int
    baseline: int = 0
    baseline_account: str | None = None


class DictStore:
    """Accounts, limits, holds, calls and adjustments, by their keys."""

    def __init__(self) -> None:
        self.keys: dict[str, AccountKey] = {}
        self.accounts: dict[str, Account] = {}
        self.caps: dict[tuple[str, Meter, Window], Cap] = {}
        self.holds: dict[str, Hold] = {}
        self.calls: dict[str, CallRow] = {}
        self.adjustments: list[Adjustment] = []

    def open(self, path: Iterable[AccountKey]) -> None:
        """Create the accounts of a path that are not there yet."""
        for key in path:
            self.keys[key.id] = key
            length = rolling(key.window)
            fresh = Account(key.id) if length is None else RollingAccount(key.id, slid_to=EPOCH)
            self.accounts.setdefault(key.id, fresh)

    @contextlib.contextmanager
    def transaction(
        self,
        account_ids: Iterable[str],
        call_ids: Iterable[str],
        now: datetime | None = None,
    ) -> Iterator[Books]:
        """Lend `Books` of these accounts and calls, and write what they decided."""
        accounts = [msgspec.structs.replace(self.accounts[id]) for id in set(account_ids)]
        owners = {self.keys[account.id].owner_id for account in accounts}
        limits = [
            Limit(cap.owner_id, cap.meter, cap.window, cap.amount)
            for cap in self.caps.values()
            if cap.owner_id in owners
        ]
        asked = set(call_ids)
        holds = [hold for id, hold in self.holds.items() if id in asked]
        adjusted = {adjustment.call_id for adjustment in self.adjustments}
        booked = [
            Booked(
                id,
                self.calls[id].settlement.outcome,
                self.calls[id].settlement.actual.tokens,
                self.calls[id].settlement.actual.nano,
                id in adjusted,
                self.calls[id].settlement.facts.account_ids,
            )
            for id in asked & self.calls.keys()
        ]
        books = Books(accounts, owner_terms(limits), holds, booked)
        for account in accounts:
            length = rolling(self.keys[account.id].window)
            if length is not None:
                assert now is not None, "a rolling window ends now"
                assert isinstance(account, RollingAccount)
                books.slide(account.id, *self._gone(account, now - length))
        yield books
        self._write(books)

    def _gone(self, account: RollingAccount, edge: datetime) -> tuple[datetime, int, int]:
        """Sum up what slides out of a window that begins later than it did."""
        assert account.slid_to is not None
        edge = max(edge, account.slid_to)
        gone = {
            id
            for id, row in self.calls.items()
            if account.id in row.settlement.facts.account_ids
            and account.slid_to <= admitted(id) < edge
        }
        late = [one for one in self.adjustments if one.call_id in gone]
        actuals = [self.calls[id].settlement.actual for id in gone]
        tokens = sum(one.tokens for one in [*actuals, *late])
        return edge, tokens, sum(one.nano or 0 for one in [*actuals, *late])

    def _write(self, books: Books) -> None:
        for id in books.touched:
            account = books.accounts[id]
            former = self.accounts[id]
            if isinstance(account, RollingAccount) and id not in books.slid:
                # Columns of their own, written when they change.
                assert isinstance(former, RollingAccount)
                account.slid_to, account.slid_tokens, account.slid_nano = (
                    former.slid_to,
                    former.slid_tokens,
                    former.slid_nano,
                )
            self.accounts[id] = account
        for id in books.slid - books.touched:
            self.accounts[id] = books.accounts[id]
        for id, hold in books.new_holds.items():
            assert id not in self.holds, "a call has one hold"
            self.holds[id] = hold
        for id, hold in books.changed_holds.items():
            assert id in self.holds, "a hold that is changed is there"
            # Whoever extends a hold is alive: its deadline moves.
            self.holds[id] = msgspec.structs.replace(hold, expired=False)
        for id in books.ended_holds:
            del self.holds[id]
        for row in books.calls:
            id = row.settlement.facts.id
            assert id not in self.calls, "a call is booked once"
            self.calls[id] = row
        self.adjustments += books.adjustments

    def set_limit(self, key: AccountKey, meter: Meter, amount: int | None) -> None:
        """Limit an owner in the window of an account, as an admin would; None: no longer."""
        self.open([key])
        name = (key.owner_id, meter, key.window)
        if amount is None:
            self.caps.pop(name, None)
            return
        account = self.accounts[key.id]
        baseline = account.used(meter) + account.held(meter)
        self.caps[name] = Cap(*name, amount, baseline, key.id)

    def expire(self, call_id: str) -> None:
        """Let the deadline of a hold pass."""
        self.holds[call_id] = msgspec.structs.replace(self.holds[call_id], expired=True)

    def checkpoint(self, call_id: str, actual: Actual) -> None:
        """Note what a call has used so far."""
        self.holds[call_id] = msgspec.structs.replace(self.holds[call_id], checkpoint=actual)
