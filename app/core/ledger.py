"""The ledger: reserve, extend, settle, void and recover over the values of one transaction.

Owns every decision about accounts and holds. It is given the locked rows (accounts, the limits on
them, the holds asked for, calls already booked) as `Books`, decides operation by operation, and
leaves behind the rows to write. Owns no SQL, no lock, no clock; `app.store.ledger` brings the rows
and commits the result, the tests bring a dict.

Invariants, for every account and both meters (ledger.md, I1 to I5):

- a reserve or extend is admitted only if `used + held + hold <= amount` for every limit on its
  path, and then the hold is on every account of the path, or else on none;
- settling is unconditional, and idempotent on the call id: the first settlement of a call moves
  its hold to used; a second one changes nothing; the real settlement of a call that had been
  recovered books the difference as an adjustment;
- what is booked above a hold is recorded as overrun, for exactly the excess;
- a threshold that a settlement crosses is told with it, whatever the order of settlements.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from hashlib import blake2b
from typing import Literal
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec

from app.core.access import OverrunPolicy
from app.core.alerts import (
    Cause,
    Event,
    Movement,
    Rule,
    crossings,
    exhausted_event,
    session_cut_event,
    threshold_event,
    unpriced_event,
)
from app.core.metering import Usage
from app.core.money import ceil_div
from app.core.pricing import COST_NANO_MAX
from app.core.refusals import Outcome, Reason, Refusal, Shortfall, exceeded_by
from app.core.windows import EPOCH, Period, Window, period_of, rolling

Meter = Literal["tokens", "usd"]
OwnerKind = Literal["chat", "key", "allocation", "pool"]

REALTIME = "realtime"
"""The endpoint whose calls are sessions: they are closed, for a reason."""

UTC_ZONE = ZoneInfo("UTC")

SLID_AT_LEAST = timedelta(minutes=1)
"""So far a window has to have moved to be written although nothing slid out of it."""

METERS: tuple[Meter, Meter] = ("tokens", "usd")
"""In the order in which the limits of one owner are looked at."""


class AccountKey(msgspec.Struct, frozen=True, gc=False):
    """Which account: one owner in one period of one window."""

    id: str
    owner: OwnerKind
    owner_id: str
    window: Window
    start: datetime
    end: datetime | None


def account_key(owner: OwnerKind, owner_id: str, window: Window, period: Period) -> AccountKey:
    """Name an account; its id follows from what it is, so that no one has to look it up."""
    name = f"{owner}|{owner_id}|{window}|{period.start.isoformat()}"
    digest = blake2b(name.encode(), digest_size=16).digest()
    return AccountKey(str(UUID(bytes=digest)), owner, owner_id, window, period.start, period.end)


class Account(msgspec.Struct):
    """The running totals of one owner in one period: tokens, and nano-USD."""

    id: str
    used_tokens: int = 0
    used_nano: int = 0
    held_tokens: int = 0
    held_nano: int = 0
    unpriced_calls: int = 0
    overrun_tokens: int = 0
    overrun_nano: int = 0

    def used(self, meter: Meter) -> int:
        """Return what is used, in the meter's unit."""
        return self.used_tokens if meter == "tokens" else self.used_nano

    def held(self, meter: Meter) -> int:
        """Return what calls in flight hold, in the meter's unit."""
        return self.held_tokens if meter == "tokens" else self.held_nano


class RollingAccount(Account):
    """The account of a rolling window, which goes on for ever.

    Its totals are those of all its calls, like any account's; what calls admitted before `slid_to`
    used has slid out of the window.
    """

    slid_to: datetime | None = None
    slid_tokens: int = 0
    slid_nano: int = 0

    def used(self, meter: Meter) -> int:
        """Return what is used within the window, in the meter's unit."""
        if meter == "tokens":
            return self.used_tokens - self.slid_tokens
        return self.used_nano - self.slid_nano

    def lies_behind(self, call_id: str) -> bool:
        """Tell whether a call was admitted before the window begins: its id says when it was."""
        admitted = EPOCH + timedelta(milliseconds=UUID(call_id).int >> 80)
        return self.slid_to is not None and admitted < self.slid_to

    def slide(self, to: datetime, tokens: int, nano: int) -> None:
        """Let the window begin at an instant, and what calls before that used slide out of it."""
        self.slid_to = to
        self.slid_tokens += tokens
        self.slid_nano += nano


class Limit(msgspec.Struct, frozen=True, gc=False):
    """The most an owner may use in each period of a window, in tokens or nano-USD."""

    owner_id: str
    meter: Meter
    window: Window
    amount: int


class OwnerTerms(msgspec.Struct, frozen=True, gc=False):
    """What an owner is judged by: its limits, in the order of `METERS`, and its rules."""

    limits: tuple[Limit, ...] = ()
    rules: tuple[Rule, ...] = ()


NO_TERMS = OwnerTerms()


def owner_terms(limits: Iterable[Limit], rules: Iterable[Rule] = ()) -> dict[str, OwnerTerms]:
    """Sort out whose limits and rules they are."""
    limited: dict[str, list[Limit]] = {}
    for limit in sorted(limits, key=lambda limit: METERS.index(limit.meter)):
        limited.setdefault(limit.owner_id, []).append(limit)
    watched: dict[str, list[Rule]] = {}
    for rule in rules:
        watched.setdefault(rule.owner_id, []).append(rule)
    return {
        owner: OwnerTerms(tuple(limited.get(owner, ())), tuple(watched.get(owner, ())))
        for owner in limited.keys() | watched.keys()
    }


class OpenDemand(msgspec.Struct, frozen=True, gc=False):
    """A quantity that the client left open: the ledger grants as much of it as fits.

    `most` and the grant count one choice; a call has `times` choices.
    """

    most: int
    all_below: int
    times: int
    tokens_each: int
    cost_each: int
    """Exact cost of one, times the demand's `denominator`."""


class Demand(msgspec.Struct, frozen=True, gc=False):
    """What a call asks of the ledger: its path, and the most it can use."""

    accounts: tuple[AccountKey, ...]
    """In precedence order: chat, key, allocation, pools from the nearest up."""
    tokens: int
    counts_tokens: bool
    """False for calls that no token limit meters (OCR, speech by characters …)."""
    cost: int | Fraction | None
    """Exact cost in nano-USD times `denominator`; None for an unpriced call."""
    denominator: int
    open: OpenDemand | None
    policy: OverrunPolicy = "strict"

    def tokens_at(self, granted: int) -> int:
        """Return the tokens of the call if `granted` of the open quantity were used."""
        if self.open is None:
            return self.tokens
        return self.tokens + self.open.tokens_each * self.open.times * granted

    def nano_at(self, granted: int) -> int:
        """Return the cost in nano-USD at `granted`, rounded up; 0 for an unpriced call."""
        if self.cost is None:
            return 0
        cost = self.cost
        if self.open is not None:
            cost += self.open.cost_each * self.open.times * granted
        if isinstance(cost, Fraction):
            return int(-(-cost // self.denominator))
        return ceil_div(cost, self.denominator)

    def room_in(self, meter: Meter, left: int) -> int | None:
        """Return how much of the open quantity `left` pays for; None: any amount."""
        assert self.open is not None
        if meter == "tokens":
            each = self.open.tokens_each * self.open.times
            return None if each == 0 else (left - self.tokens) // each
        each = self.open.cost_each * self.open.times
        if self.cost is None or each == 0:
            return None
        # Exact: rounding the cost up keeps it within `left` exactly when the cost is.
        return int((left * self.denominator - self.cost) // each)


class CallFacts(msgspec.Struct, frozen=True, gc=False):
    """What is known of a call when it is admitted; kept in its hold for a recovery."""

    id: str
    request_id: str
    allocation_id: str | None
    key_id: str
    member_id: str
    model: str
    endpoint: str
    price_id: str | None
    started_at: datetime
    account_ids: tuple[str, ...] = ()


class Hold(msgspec.Struct, frozen=True, gc=False):
    """What is set aside for one call in flight; `nano` is None for an unpriced call."""

    call_id: str
    account_ids: tuple[str, ...]
    tokens: int
    nano: int | None
    facts: CallFacts | None = None
    checkpoint: "Actual | None" = None
    expired: bool = False


class Actual(msgspec.Struct, frozen=True, gc=False):
    """What a call used. `nano` is None when its cost is unknown."""

    usage: Usage
    tokens: int
    nano: int | None


NOTHING = Actual({}, 0, 0)


class Booked(msgspec.Struct, frozen=True, gc=False):
    """A call that the books already have, and whether a recovery was made good."""

    call_id: str
    outcome: Outcome
    tokens: int
    nano: int | None
    adjusted: bool = False
    account_ids: tuple[str, ...] | None = None
    """The accounts that it counts in, if it was booked by another transaction."""


class Grant(msgspec.Struct, frozen=True, gc=False):
    """An admitted reserve: the hold, and how much of the open quantity it pays for."""

    tokens: int
    nano: int
    granted: int | None
    """Of the open quantity, for one choice; None if nothing was open."""
    limited: bool
    """Whether any limit was in force: only then must the grant be written upstream."""


class Settlement(msgspec.Struct, frozen=True, gc=False):
    """How a call ended. A void is a settlement of `NOTHING`."""

    facts: CallFacts
    outcome: Outcome
    status_code: int
    actual: Actual
    finished_at: datetime
    estimated: bool = False
    error_message: str | None = None
    close_reason: str | None = None
    shortfall: Shortfall | None = None


class CallRow(msgspec.Struct, frozen=True, gc=False):
    """A call as it is booked, once and for all."""

    settlement: Settlement
    overrun_tokens: int = 0
    overrun_nano: int = 0


class Told(msgspec.Struct, frozen=True):
    """An event that a settlement set off, and the rule that asked for it; None: nobody's rule."""

    event: Event
    rule_id: str | None = None


def _no_service(model: str) -> str | None:
    return None


def _day_in_utc(at: datetime) -> Period:
    return period_of("day", at, UTC_ZONE)


class Surroundings(msgspec.Struct, frozen=True):
    """What events say of the world around a call."""

    service_of: Callable[[str], str | None] = _no_service
    """The name of the provider that serves a model."""
    day_of: Callable[[datetime], Period] = _day_in_utc
    """The billing day of an instant."""


NOWHERE = Surroundings()


class Adjustment(msgspec.Struct, frozen=True):
    """A correction of a booked call; the call itself stays as it was."""

    call_id: str
    account_ids: tuple[str, ...]
    tokens: int
    nano: int
    reason: str


Booking = Literal["booked", "adjusted", "duplicate"]


class Books:
    """The rows of one transaction, decided on in place."""

    def __init__(
        self,
        accounts: Iterable[Account],
        terms: Mapping[str, OwnerTerms],
        holds: Iterable[Hold] = (),
        booked: Iterable[Booked] = (),
        *,
        keys: Mapping[str, AccountKey] = {},
        around: Surroundings = NOWHERE,
    ) -> None:
        self.accounts: dict[str, Account] = {a.id: a for a in accounts}
        self.keys = keys
        self.around = around
        self.terms = terms
        """By owner; who is missing has no limits and no rules."""
        self.holds: dict[str, Hold] = {h.call_id: h for h in holds}
        self.booked: dict[str, Booked] = {b.call_id: b for b in booked}
        self.touched: set[str] = set()
        self.new_holds: dict[str, Hold] = {}
        self.changed_holds: dict[str, Hold] = {}
        self.ended_holds: set[str] = set()
        self.calls: list[CallRow] = []
        self.adjustments: list[Adjustment] = []
        self.slid: set[str] = set()
        """Rolling accounts of which more has slid out than is written."""
        self.told: list[Told] = []

    # Reserve and extend

    def reserve(
        self, facts: CallFacts, demand: Demand, checkpoint: "Actual | None" = None
    ) -> Grant | Refusal:
        """Admit a call and hold what it may use, or refuse it and touch nothing.

        A call that reports as it goes has a `checkpoint` from the start.
        """
        fit = self._fit(demand)
        if isinstance(fit, Refusal):
            return fit
        tokens, nano = fit.tokens, fit.nano
        hold = Hold(
            facts.id,
            facts.account_ids,
            tokens,
            None if demand.cost is None else nano,
            facts,
            checkpoint,
        )
        self._move_held(hold.account_ids, tokens, nano)
        self.holds[hold.call_id] = self.new_holds[hold.call_id] = hold
        return fit

    def extend(
        self, call_id: str, demand: Demand, checkpoint: "Actual | None" = None
    ) -> Grant | Refusal | None:
        """Add to the hold of a call in flight, and note what it used so far.

        Returns what it holds in all; None if it has no hold any more.
        """
        hold = self.holds.get(call_id)
        if hold is None:
            return None
        if checkpoint is not None:
            hold = msgspec.structs.replace(hold, checkpoint=checkpoint)
        if len(hold.account_ids) > len(demand.accounts):
            # Limits that were added while it runs have a say in it from now on.
            named = {key.id for key in demand.accounts}
            added = [self.keys[id] for id in hold.account_ids if id not in named]
            demand = msgspec.structs.replace(demand, accounts=(*demand.accounts, *added))
        fit = self._fit(demand)
        if not isinstance(fit, Refusal):
            tokens, nano = fit.tokens, 0 if hold.nano is None else fit.nano
            hold = msgspec.structs.replace(
                hold,
                tokens=hold.tokens + tokens,
                nano=None if hold.nano is None else hold.nano + nano,
            )
            self._move_held(hold.account_ids, tokens, nano)
            fit = Grant(hold.tokens, hold.nano or 0, fit.granted, fit.limited)
        self.holds[call_id] = hold
        changed = self.new_holds if call_id in self.new_holds else self.changed_holds
        changed[call_id] = hold
        return fit

    def _fit(self, demand: Demand) -> Grant | Refusal:
        """Grant as much of a demand as every limit on its path allows, or refuse it."""
        last_call = demand.policy == "last_call"
        limited = False
        room: int | None = None
        left: dict[Meter, int] = {}
        least = {"tokens": demand.tokens_at(1), "usd": demand.nano_at(1)}
        for key in demand.accounts:
            for limit in self.terms.get(key.owner_id, NO_TERMS).limits:
                meter = limit.meter
                if limit.window != key.window or not _metered(meter, demand):
                    continue
                limited = True
                # Under `last_call` anything left admits the call, whatever it may cost.
                needed = 1 if last_call else least[meter]
                account = self.accounts[key.id]
                remaining = limit.amount - account.used(meter) - account.held(meter)
                # A limit of 0 blocks everything it meters, also what happens to cost nothing.
                if remaining < needed or limit.amount == 0:
                    return _refusal(key, account, limit, needed)
                left[meter] = min(remaining, left.get(meter, remaining))
                if demand.open is not None:
                    fits = demand.room_in(meter, remaining)
                    if fits is not None:
                        room = fits if room is None else min(room, fits)
        granted = _granted(demand, None if last_call else room)
        if granted is None:
            tokens, nano = least["tokens"], least["usd"]
        else:
            tokens, nano = demand.tokens_at(granted), demand.nano_at(granted)
        # Only a call without any USD limit can come near the bound; the books must take it.
        nano = min(nano, COST_NANO_MAX)
        if last_call:
            tokens = min(tokens, left.get("tokens", tokens))
            nano = min(nano, left.get("usd", nano))
        return Grant(tokens, nano, granted, limited)

    # Settle, void and recover

    def settle(self, settlement: Settlement) -> Booking:
        """Book how a call ended, whatever the limits say; a second time changes nothing."""
        booked = self.booked.get(settlement.facts.id)
        hold = self._end_hold(settlement.facts.id)
        if booked is not None:
            return self._settle_again(settlement, booked)
        if hold is not None and hold.account_ids != settlement.facts.account_ids:
            # A limit that was added meanwhile has an account that the call counts in, too.
            widened = msgspec.structs.replace(settlement.facts, account_ids=hold.account_ids)
            settlement = msgspec.structs.replace(settlement, facts=widened)
        facts = settlement.facts
        held_tokens = hold.tokens if hold is not None else 0
        held_nano = (hold.nano or 0) if hold is not None else 0
        actual = settlement.actual
        nano = actual.nano or 0
        row = CallRow(
            settlement,
            overrun_tokens=max(0, actual.tokens - held_tokens),
            overrun_nano=max(0, nano - held_nano),
        )
        self._use(settlement, actual.tokens, nano, row.overrun_tokens, row.overrun_nano)
        self._tell(settlement)
        if actual.nano is None:
            for account_id in facts.account_ids:
                self.accounts[account_id].unpriced_calls += 1
        self.calls.append(row)
        self.booked[facts.id] = Booked(facts.id, settlement.outcome, actual.tokens, actual.nano)
        return "booked"

    def recover(self, call_id: str, at: datetime) -> Booking | None:
        """Book a call whose process died, from its last checkpoint or else its hold.

        None if there is nothing to recover: the call settled or was refreshed meanwhile.
        """
        hold = self.holds.get(call_id)
        if hold is None or not hold.expired:
            return None
        if call_id in self.booked:
            # The reserve reached the database after its call had ended without it.
            self._end_hold(call_id)
            return "duplicate"
        assert hold.facts is not None, "a hold keeps the facts of its call"
        actual = hold.checkpoint or Actual({}, hold.tokens, hold.nano)
        return self.settle(
            Settlement(
                hold.facts,
                "recovered",
                200,
                actual,
                at,
                estimated=True,
                close_reason="recovered" if hold.facts.endpoint == REALTIME else None,
            )
        )

    # Parts

    def _settle_again(self, settlement: Settlement, booked: Booked) -> Booking:
        """Settle a call the books already have: a recovery is made good, once."""
        if booked.outcome != "recovered" or booked.adjusted:
            return "duplicate"
        if settlement.outcome == "recovered":
            return "duplicate"
        if booked.account_ids is not None:
            # It may count in more accounts than it set out with: limits that were added meanwhile.
            counted = msgspec.structs.replace(settlement.facts, account_ids=booked.account_ids)
            settlement = msgspec.structs.replace(settlement, facts=counted)
        facts, actual = settlement.facts, settlement.actual
        tokens = actual.tokens - booked.tokens
        # An unknown cost on either side: the books keep what they have rather than guess.
        known = actual.nano is not None and booked.nano is not None
        nano = (actual.nano or 0) - (booked.nano or 0) if known else 0
        self._use(settlement, tokens, nano, max(0, tokens), max(0, nano))
        self.adjustments.append(
            Adjustment(facts.id, facts.account_ids, tokens, nano, "late_settlement")
        )
        self.booked[facts.id] = msgspec.structs.replace(booked, adjusted=True)
        return "adjusted"

    def _end_hold(self, call_id: str) -> Hold | None:
        """Release the hold of a call, if it has one."""
        hold = self.holds.pop(call_id, None)
        if hold is None:
            return None
        self._move_held(hold.account_ids, -hold.tokens, -(hold.nano or 0))
        self.changed_holds.pop(call_id, None)
        if self.new_holds.pop(call_id, None) is None:
            self.ended_holds.add(call_id)
        return hold

    def _move_held(self, account_ids: Iterable[str], tokens: int, nano: int) -> None:
        for account_id in account_ids:
            account = self.accounts[account_id]
            account.held_tokens += tokens
            account.held_nano += nano
            self.touched.add(account_id)

    def _use(
        self, settlement: Settlement, tokens: int, nano: int, over_tokens: int, over_nano: int
    ) -> None:
        facts = settlement.facts
        for account_id in facts.account_ids:
            account = self.accounts[account_id]
            account.used_tokens += tokens
            account.used_nano += nano
            account.overrun_tokens += over_tokens
            account.overrun_nano += over_nano
            self.touched.add(account_id)
            if isinstance(account, RollingAccount) and account.lies_behind(facts.id):
                # It began so long ago that it has slid out already.
                account.slid_tokens += tokens
                account.slid_nano += nano
                self.slid.add(account_id)
                continue
            key = self.keys.get(account_id)
            if key is not None and (
                self.terms.get(key.owner_id, NO_TERMS).rules
                or (key.owner == "allocation" and self._used_up(key, account, tokens, nano))
            ):
                self._moved(settlement, key, account, (tokens, nano))

    def _used_up(self, key: AccountKey, account: Account, tokens: int, nano: int) -> bool:
        """Tell whether so much is what a limit was used up by."""
        for limit in self.terms.get(key.owner_id, NO_TERMS).limits:
            if limit.window == key.window:
                by = tokens if limit.meter == "tokens" else nano
                used = account.used(limit.meter)
                if used - by < limit.amount <= used:
                    return True
        return False

    def slide(self, account_id: str, to: datetime, tokens: int, nano: int) -> None:
        """Let a rolling window begin at an instant; calls before that used so much of it."""
        account = self.accounts[account_id]
        assert isinstance(account, RollingAccount)
        # Calls that used nothing need not be looked through for ever either.
        further = account.slid_to is None or to - account.slid_to >= SLID_AT_LEAST
        account.slide(to, tokens, nano)
        if tokens or nano or further:
            self.slid.add(account_id)

    # What there is to tell

    def _moved(
        self, settlement: Settlement, key: AccountKey, account: Account, by: tuple[int, int]
    ) -> None:
        """Tell of the thresholds that a settlement crossed, and of a limit that it used up."""
        terms = self.terms.get(key.owner_id, NO_TERMS)
        limits = {limit.meter: limit.amount for limit in terms.limits if limit.window == key.window}
        period = Period(key.start, key.end)
        if rolling(key.window) is not None:
            # It has no periods: whoever is told of it is told once a day.
            period = self.around.day_of(settlement.finished_at)
        for meter, more in zip(METERS, by, strict=True):
            if more <= 0:
                continue
            after = account.used(meter)
            movement = Movement(
                key.owner_id, meter, key.window, period, after - more, after, limits.get(meter)
            )
            for crossing in crossings(terms.rules, movement):
                event = threshold_event(crossing, self._cause(settlement), settlement.finished_at)
                self.told.append(Told(event, crossing.rule_id))
            if key.owner == "allocation":
                self._told(
                    exhausted_event(movement, self._cause(settlement), settlement.finished_at)
                )

    def _tell(self, settlement: Settlement) -> None:
        """Tell of a call whose cost is unknown, and of a session that was cut."""
        facts, actual, at = settlement.facts, settlement.actual, settlement.finished_at
        if actual.nano is None:
            day = self.around.day_of(facts.started_at)
            self._told(unpriced_event(facts.model, day, self._cause(settlement), at))
        if settlement.close_reason is not None:
            self._told(
                session_cut_event(
                    facts.id,
                    facts.model,
                    settlement.close_reason,
                    actual.tokens,
                    actual.nano,
                    self._cause(settlement),
                    at,
                )
            )

    def _told(self, event: Event | None) -> None:
        if event is not None:
            self.told.append(Told(event))

    def _cause(self, settlement: Settlement) -> Cause:
        facts = settlement.facts
        return Cause(facts.key_id, facts.allocation_id, self.around.service_of(facts.model))


def _metered(meter: Meter, demand: Demand) -> bool:
    """Tell whether a limit in this meter has a say in the call at all."""
    return demand.counts_tokens if meter == "tokens" else demand.cost is not None


def _refusal(key: AccountKey, account: Account, limit: Limit, needed: int) -> Refusal:
    """Refuse what does not fit the limit: for the period, or only until holds are released."""
    used, held = account.used(limit.meter), account.held(limit.meter)
    exceeded = limit.amount == 0 or used + needed > limit.amount
    reason = exceeded_by(key.owner, limit.meter, limit.window) if exceeded else Reason.RESERVED
    return Refusal(
        reason,
        Shortfall(
            key.owner,
            key.owner_id,
            limit.meter,
            limit.window,
            limit.amount,
            used,
            held,
            needed,
            key.end,
        ),
    )


def _granted(demand: Demand, room: int | None) -> int | None:
    """Share out an open quantity: the most, or half of what is left, or all of a small rest."""
    if demand.open is None:
        return None
    if room is None:
        return demand.open.most
    half = room // 2
    return min(demand.open.most, half if half >= demand.open.all_below else room)


NEAR = Decimal("0.75")
CRITICAL = Decimal("0.9")
"""The shares of a cap from which on it is said to be near, and critical."""


def account_state(
    status: str, limits: Mapping[Meter, int], account: Account | None
) -> Literal["ok", "near", "critical", "exhausted", "paused"]:
    """Tell how near an allocation is to its caps: near from 75 %, critical from 90 %."""
    if status != "active":
        return "paused"
    share = Decimal(0)
    for meter, amount in limits.items():
        used = account.used(meter) if account is not None else 0
        if used >= amount:
            return "exhausted"
        share = max(share, Decimal(used) / amount)
    if share >= CRITICAL:
        return "critical"
    return "near" if share >= NEAR else "ok"
