"""The dict model: what the ledger has promised, said again in the simplest way.

It keeps no running totals. What an account has used is summed up from the calls each time, what it
holds from the holds, and what fits is found by trying. So it shares no arithmetic with
`app.core.ledger`, and the two agree only if both are right.
"""

from bisect import bisect_right
from collections.abc import Sequence
from datetime import datetime

import msgspec

from app.core.ledger import (
    METERS,
    Account,
    AccountKey,
    Actual,
    Booking,
    CallFacts,
    Demand,
    Grant,
    Meter,
    Settlement,
)
from app.core.refusals import Outcome, Reason, Refusal, Shortfall
from app.core.windows import EPOCH, Window, rolling
from tests.core.dict_store import admitted


class Reserve(msgspec.Struct, frozen=True):
    """A call asks to hold what it may use."""

    facts: CallFacts
    demand: Demand
    checkpoint: Actual | None = None


class Extend(msgspec.Struct, frozen=True):
    """A call in flight asks for more, and may say what it used so far."""

    call_id: str
    demand: Demand
    checkpoint: Actual | None = None


class Settle(msgspec.Struct, frozen=True):
    """A call has ended."""

    settlement: Settlement
    path: tuple[AccountKey, ...]


class Recover(msgspec.Struct, frozen=True):
    """The reaper comes by a hold."""

    call_id: str
    account_ids: tuple[str, ...]
    at: datetime


Operation = Reserve | Extend | Settle | Recover
Result = Grant | Refusal | Booking | None


class HoldRow(msgspec.Struct):
    """A call in flight, what it holds, and what it used so far, if it said."""

    call_id: str
    account_ids: tuple[str, ...]
    tokens: int
    nano: int | None
    checkpoint: Actual | None


class CallRow(msgspec.Struct):
    """A booked call."""

    call_id: str
    account_ids: tuple[str, ...]
    outcome: Outcome
    close_reason: str | None
    tokens: int
    nano: int | None
    overrun_tokens: int
    overrun_nano: int
    estimated: bool


class AdjustmentRow(msgspec.Struct):
    """A correction of a booked call."""

    call_id: str
    account_ids: tuple[str, ...]
    tokens: int
    nano: int


class State(msgspec.Struct):
    """Every row of the ledger at one instant, as a system under test shows it."""

    accounts: dict[str, Account]
    holds: list[HoldRow]
    calls: list[CallRow]
    adjustments: list[AdjustmentRow]


class LimitRow(msgspec.Struct):
    """A limit, and what was used and held when it was set, in the account of that moment."""

    amount: int
    baseline: int
    baseline_account: str


class Flight(msgspec.Struct):
    """What the model knows of a call in flight beside its hold."""

    facts: CallFacts
    path: tuple[AccountKey, ...]
    expired: bool = False


class Model:
    """What must be in the books."""

    def __init__(self) -> None:
        self.now = EPOCH
        self.keys: dict[str, AccountKey] = {}
        self.limits: dict[tuple[str, Meter, Window], LimitRow] = {}
        self.holds: dict[str, HoldRow] = {}
        self.flights: dict[str, Flight] = {}
        self.calls: dict[str, CallRow] = {}
        self.settled: dict[str, Flight] = {}
        self.adjustments: dict[str, AdjustmentRow] = {}

    # Totals, from the rows

    def used(self, account_id: str, meter: Meter) -> int:
        """Sum what the calls of an account have used, corrections included."""
        length = rolling(self.keys[account_id].window)
        since = EPOCH if length is None else self.now - length
        return sum(
            _worth(row, meter)
            for row in [*self.calls.values(), *self.adjustments.values()]
            if account_id in row.account_ids and admitted(row.call_id) >= since
        )

    def held(self, account_id: str, meter: Meter) -> int:
        """Sum what the calls in flight of an account hold."""
        return sum(
            _worth(hold, meter) for hold in self.holds.values() if account_id in hold.account_ids
        )

    # Operations

    def apply(self, operation: Operation) -> Result:
        """Do what an operation must do, and return what it must answer."""
        match operation:
            case Reserve():
                return self.reserve(operation)
            case Extend():
                return self.extend(operation)
            case Settle():
                return self.settle(operation.settlement, operation.path)
            case Recover():
                return self.recover(operation.call_id, operation.at)

    def set_limit(self, key: AccountKey, meter: Meter, amount: int | None) -> None:
        """Limit an owner, or no longer."""
        name = (key.owner_id, meter, key.window)
        self.keys[key.id] = key
        if amount is None:
            self.limits.pop(name, None)
        else:
            baseline = self.used(key.id, meter) + self.held(key.id, meter)
            self.limits[name] = LimitRow(amount, baseline, key.id)

    def reserve(self, operation: Reserve) -> Grant | Refusal:
        """Admit a call if all it needs at least fits every limit on its path."""
        facts, demand = operation.facts, operation.demand
        self._know(demand.accounts)
        fit = self._fit(demand)
        if isinstance(fit, Grant):
            nano = None if demand.cost is None else fit.nano
            self.holds[facts.id] = HoldRow(
                facts.id, facts.account_ids, fit.tokens, nano, operation.checkpoint
            )
            self.flights[facts.id] = Flight(facts, demand.accounts)
        return fit

    def extend(self, operation: Extend) -> Grant | Refusal | None:
        """Add to a hold what a reserve would be granted; who asks is alive, also if refused."""
        hold = self.holds.get(operation.call_id)
        if hold is None:
            return None
        self.flights[operation.call_id].expired = False
        hold.checkpoint = operation.checkpoint or hold.checkpoint
        fit = self._fit(operation.demand)
        if isinstance(fit, Refusal):
            return fit
        hold.tokens += fit.tokens
        # What has no price at first has none later.
        hold.nano = None if hold.nano is None else hold.nano + fit.nano
        return Grant(hold.tokens, hold.nano or 0, fit.granted, fit.limited)

    def settle(self, settlement: Settlement, path: tuple[AccountKey, ...]) -> Booking:
        """Book the end of a call the first time; make good a recovery, once."""
        self._know(path)
        facts, actual = settlement.facts, settlement.actual
        hold = self.holds.pop(facts.id, None)
        self.flights.pop(facts.id, None)
        booked = self.calls.get(facts.id)
        if booked is None:
            self.calls[facts.id] = CallRow(
                facts.id,
                facts.account_ids,
                settlement.outcome,
                settlement.close_reason,
                actual.tokens,
                actual.nano,
                max(0, actual.tokens - (hold.tokens if hold else 0)),
                max(0, (actual.nano or 0) - ((hold.nano or 0) if hold else 0)),
                settlement.estimated,
            )
            self.settled[facts.id] = Flight(facts, path)
            return "booked"
        if (
            booked.outcome != "recovered"
            or facts.id in self.adjustments
            or settlement.outcome == "recovered"
        ):
            return "duplicate"
        known = actual.nano is not None and booked.nano is not None
        self.adjustments[facts.id] = AdjustmentRow(
            facts.id,
            facts.account_ids,
            actual.tokens - booked.tokens,
            (actual.nano or 0) - (booked.nano or 0) if known else 0,
        )
        return "adjusted"

    def recover(self, call_id: str, at: datetime) -> Booking | None:
        """Book a call past its deadline at its checkpoint, else at its hold."""
        flight, hold = self.flights.get(call_id), self.holds.get(call_id)
        if flight is None or hold is None or not flight.expired:
            return None
        if call_id in self.calls:
            del self.holds[call_id], self.flights[call_id]
            return "duplicate"
        actual = hold.checkpoint or Actual({}, hold.tokens, hold.nano)
        settlement = Settlement(flight.facts, "recovered", 200, actual, at, estimated=True)
        if flight.facts.endpoint == "realtime":
            settlement = msgspec.structs.replace(settlement, close_reason="recovered")
        return self.settle(settlement, flight.path)

    # Parts

    def _fit(self, demand: Demand) -> Grant | Refusal:
        """Find by trying how much of a demand every limit on its path allows."""
        concerned = [
            (key, meter, limit)
            for key, meter, limit in self._limits_on(demand.accounts)
            if (demand.counts_tokens if meter == "tokens" else demand.cost is not None)
        ]
        strict = demand.policy == "strict"
        need = {"tokens": demand.tokens_at(1), "usd": demand.nano_at(1)}
        for key, meter, limit in concerned:
            refusal = self._refusal(key, meter, limit, need[meter] if strict else 1)
            if refusal is not None:
                return refusal

        left = {
            meter: min(
                (
                    limit.amount - self._standing(key, meter)
                    for key, m, limit in concerned
                    if m == meter
                ),
                default=None,
            )
            for meter in METERS
        }

        def fits(granted: int) -> bool:
            tokens, usd = left["tokens"], left["usd"]
            return (tokens is None or demand.tokens_at(granted) <= tokens) and (
                usd is None or demand.nano_at(granted) <= usd
            )

        granted = None
        if demand.open is not None:
            granted = most = demand.open.most
            if strict:
                # So much room that more of it makes no difference.
                plenty = 2 * (most + demand.open.all_below)
                room = bisect_right(range(1, plenty + 1), False, key=lambda n: not fits(n))
                granted = min(most, room // 2 if room // 2 >= demand.open.all_below else room)
        tokens, nano = demand.tokens_at(granted or 0), demand.nano_at(granted or 0)
        if not strict:
            tokens = tokens if left["tokens"] is None else min(tokens, left["tokens"])
            nano = nano if left["usd"] is None else min(nano, left["usd"])
        return Grant(tokens, nano, granted, bool(concerned))

    def _know(self, path: Sequence[AccountKey]) -> None:
        for key in path:
            self.keys[key.id] = key

    def _limits_on(self, path: Sequence[AccountKey]) -> list[tuple[AccountKey, Meter, LimitRow]]:
        return [
            (key, meter, self.limits[key.owner_id, meter, key.window])
            for key in path
            for meter in METERS
            if (key.owner_id, meter, key.window) in self.limits
        ]

    def _standing(self, key: AccountKey, meter: Meter) -> int:
        return self.used(key.id, meter) + self.held(key.id, meter)

    def _refusal(
        self, key: AccountKey, meter: Meter, limit: LimitRow, needed: int
    ) -> Refusal | None:
        used, held = self.used(key.id, meter), self.held(key.id, meter)
        if limit.amount > 0 and used + held + needed <= limit.amount:
            return None
        if limit.amount > 0 and used + needed <= limit.amount:
            reason = Reason.RESERVED
        else:
            reason = Reason.TOKENS_EXCEEDED if meter == "tokens" else Reason.COST_EXCEEDED
            if key.owner == "chat":
                reason = Reason.CHAT_EXCEEDED
            elif (meter, key.owner, key.window) == ("tokens", "key", "lifetime"):
                reason = Reason.BUDGET_EXCEEDED
        return Refusal(
            reason,
            Shortfall(
                key.owner,
                key.owner_id,
                meter,
                key.window,
                limit.amount,
                used,
                held,
                needed,
                key.end,
            ),
        )


def _worth(row: HoldRow | CallRow | AdjustmentRow, meter: Meter) -> int:
    return row.tokens if meter == "tokens" else row.nano or 0
