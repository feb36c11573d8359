"""Corrections: what may be booked beside a call, and what a call should have cost.

Owns the bounds of a correction by hand, what is to be told of one, and the decision what is due
when a booked call is priced again. Owns no rows: the store brings accounts, calls and prices, and
books what comes out.

Invariants:

- Nothing is ever edited: what is due is a difference, for an adjustment beside the call.
- After a correction by hand no account has less than nothing used, and none has more than fits.
- Pricing a call again is idempotent: what was booked for it counts, so a second time nothing is
  due. A call is priced again only if its booked usage is known to be what it cost.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Literal

import msgspec

from app.core.alerts import Cause, Movement, Rule, crossings, exhausted_event, threshold_event
from app.core.ledger import METERS, REALTIME, AccountKey, Meter, RollingAccount, Told
from app.core.metering import TOKEN_UNITS, Usage
from app.core.money import AMOUNT_NANO_MAX, AMOUNT_TOKENS_MAX
from app.core.pricing import Price, price_at
from app.core.windows import Period, rolling

HEARD = frozenset({"input_audio_token", "cached_input_audio_token"})
"""What seconds of audio are another measure of."""

_MOST: dict[Meter, int] = {"tokens": AMOUNT_TOKENS_MAX, "usd": AMOUNT_NANO_MAX}


def bounds(accounts: Iterable[tuple[RollingAccount, bool]], meter: Meter) -> tuple[int, int]:
    """Return the least and the most that one correction of these accounts may be.

    Each comes with whether what is corrected has slid out of it: then it is taken from there.
    """
    least, most = -_MOST[meter], _MOST[meter]
    for account, is_slid in accounts:
        if meter == "tokens":
            all_used, slid, overrun = (
                account.used_tokens,
                account.slid_tokens,
                account.overrun_tokens,
            )
        else:
            all_used, slid, overrun = account.used_nano, account.slid_nano, account.overrun_nano
        least = max(least, -(slid if is_slid else all_used - slid))
        # What is added counts as overrun, too, which is never taken back.
        most = min(most, _MOST[meter] - max(all_used, overrun))
    return min(0, least), max(0, most)


def told(
    key: AccountKey,
    before: RollingAccount,
    after: RollingAccount,
    limits: Mapping[Meter, int],
    rules: Sequence[Rule],
    day: Period,
    at: datetime,
) -> list[Told]:
    """Return what is to be told of a correction of one account: what it crosses, no call will.

    `limits` and `rules` are those of the owner; `day` is the billing day that it is.
    """
    # It has no periods: whoever is told of it is told once a day.
    period = Period(key.start, key.end) if rolling(key.window) is None else day
    cause = Cause(
        key.owner_id if key.owner == "key" else None,
        key.owner_id if key.owner == "allocation" else None,
    )
    news: list[Told] = []
    for meter in METERS:
        was, now, limit = before.used(meter), after.used(meter), limits.get(meter)
        movement = Movement(key.owner_id, meter, key.window, period, was, now, limit)
        news += [
            Told(threshold_event(crossing, cause, at), crossing.rule_id)
            for crossing in crossings(rules, movement)
        ]
        exhausted = exhausted_event(movement, cause, at) if key.owner == "allocation" else None
        if exhausted is not None:
            news.append(Told(exhausted))
    return news


class Priced(msgspec.Struct, frozen=True):
    """A booked call, and what the books have for it by now."""

    endpoint: str
    started_at: datetime
    usage: Usage
    nano: int | None
    """What it was booked at; None: unpriced."""
    price_id: str | None
    adjusted_nano: int = 0
    """The sum of its adjustments so far."""
    adjusted_unpriced: int = 0
    """-1 once it has been priced after all."""
    late: bool = False
    """Whether its real settlement came after a recovery: it brought totals, and no usage."""


class Due(msgspec.Struct, frozen=True):
    """What is to be booked beside a call."""

    nano: int
    unpriced: int
    price_id: str


Undue = Literal["unchanged", "unpriced", "usage_unknown"]
"""`unpriced`: the version in force has no rate for it. `usage_unknown`: its cost does not follow
from its usage, so a new one would not either."""


def reprice(call: Priced, versions: Sequence[Price]) -> Due | Undue:
    """Tell what is due for a call at the version in force when it began.

    `versions` are all there are of its model, in order of `effective_from`. The usage says what a
    call cost unless it was recovered at its hold, was settled after its recovery, or is a session
    of more than one model: such calls stay as they are.
    """
    if call.late or not _explained(call, versions):
        return "usage_unknown"
    price = price_at(versions, call.started_at)
    cost = None if price is None else _cost(call, price)
    if price is None or cost is None:
        return "unchanged" if call.nano == 0 and not call.usage else "unpriced"
    difference = cost - (call.nano or 0) - call.adjusted_nano
    unpriced = -1 if call.nano is None and call.adjusted_unpriced == 0 else 0
    if difference == 0 and unpriced == 0:
        return "unchanged"
    return Due(difference, unpriced, price.id)


def _explained(call: Priced, versions: Sequence[Price]) -> bool:
    """Tell whether the booked cost follows from the booked usage."""
    if call.nano is None:
        return bool(call.usage)
    if not call.usage:
        return call.nano == 0
    own = next((price for price in versions if price.id == call.price_id), None)
    return own is not None and _cost(call, own) == call.nano


def _cost(call: Priced, price: Price) -> int | None:
    if call.endpoint != REALTIME:
        return price.cost_nano(call.usage)
    usage = _session_usage(call.usage, price)
    return None if usage is None else price.cost_nano(usage)


def _session_usage(usage: Usage, price: Price) -> Usage | None:
    """Return the part of a session's usage that its price is by; None: that was not measured.

    A session without a price is measured both in seconds and in what its provider reported.
    """
    rates = price.numerators
    if "second" not in rates:
        told = {unit: n for unit, n in usage.items() if unit != "second"}
        return told or None
    if "second" not in usage:
        return None
    if TOKEN_UNITS.isdisjoint(rates):
        return {"second": usage["second"]}
    return {unit: n for unit, n in usage.items() if unit in rates or unit not in HEARD}
