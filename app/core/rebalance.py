"""Rebalance: a pool shares out the token caps of its members by what each used last month.

Owns the arithmetic and the words of it, and when a month's run is due. Owns no calendar, no books
and no log; whoever runs it writes the caps and the log, or, for a dry run, shows the same result
and writes nothing. USD caps
are not its business: nothing here can name one.

Invariants:

- the caps that take part add up to the same after as before, to the token, at any size;
- no cap that takes part ends below its floor or above what a cap may be;
- a locked allocation, a service allocation and one without a cap keep what they have, and what
  they have is not shared out;
- the order in which allocations are given decides nothing.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime

import msgspec

from app.core.faults import Fault
from app.core.money import AMOUNT_TOKENS_MAX
from app.core.windows import DAY, Period

DUE_FOR = 2 * DAY
"""How far into a month its run may still be made up for: later, caps are in use as they are."""


class CannotRebalance(Fault):
    """A pool whose caps cannot be shared out; the message says what to change."""


class Share(msgspec.Struct, frozen=True):
    """An allocation of the pool, with its cap and its use of last month."""

    allocation_id: str
    cap_tokens: int | None
    used_tokens: int
    floor_tokens: int
    """The least that its cap may become. With 0, an allocation nobody used ends up with a cap of
    0, which blocks it: so there is no default."""
    locked: bool = False
    service: bool = False


class Change(msgspec.Struct, frozen=True):
    """What becomes of one allocation's cap, and why; `before` and `after` may be the same."""

    allocation_id: str
    before_tokens: int | None
    after_tokens: int | None
    reason: str


class Rebalance(msgspec.Struct, frozen=True):
    """The outcome of a run: one change per allocation, in the order they were given."""

    total_tokens: int
    """What was shared out: the same before and after."""
    changes: tuple[Change, ...]


def rebalance(shares: Sequence[Share]) -> Rebalance:
    """Share out the caps of a pool by last month's use, or raise `CannotRebalance`.

    Each allocation gets the part of the total that it had of the use. Where that is less than a
    floor it gets the floor, and the others share the rest by the same rule. What division leaves
    over goes to the largest user, of equals to the first by id. If nobody used anything, nothing
    tells who needs more: the caps themselves are the measure then, so that they stay as they are
    unless a floor says otherwise.
    """
    _check(shares)
    taking_part = sorted(
        (share for share in shares if _left_out(share) is None),
        key=lambda share: share.allocation_id,
    )
    total = sum(share.cap_tokens or 0 for share in taking_part)
    floors = sum(share.floor_tokens for share in taking_part)
    if floors > total:
        raise CannotRebalance(
            "floors_above_caps",
            "the floors add up to {floors} tokens and the caps to {caps}: lower floors or raise "
            "caps by {missing} tokens in all",
            floors=floors,
            caps=total,
            missing=floors - total,
        )
    # Corrections can leave a month with less than nothing used.
    weights = {share.allocation_id: max(0, share.used_tokens) for share in taking_part}
    used = sum(weights.values())
    if used == 0:
        weights = {share.allocation_id: share.cap_tokens or 0 for share in taking_part}
    parts = _shared_out(taking_part, weights, total)
    changes = []
    for share in shares:
        reason = _left_out(share)
        after = share.cap_tokens
        if reason is None:
            after = parts.after[share.allocation_id]
            reason = _reason(share, parts, used)
        changes.append(Change(share.allocation_id, share.cap_tokens, after, reason))
    return Rebalance(total, tuple(changes))


def is_due(at: datetime, month: Period, months: Iterable[Period]) -> bool:
    """Tell whether a month's run is to be made now: at its start, once it has begun for everyone.

    `month` is the pool's own, `months` are those that the allocations are in, each in its own time
    zone: months of one name begin within hours of each other.
    """
    begun = all(abs(one.start - month.start) < 15 * DAY for one in months)
    return begun and month.start <= at < month.start + DUE_FOR


class _Parts(msgspec.Struct):
    """How a total is shared out, by allocation id."""

    after: dict[str, int]
    at_floor: set[str]
    largest: str | None = None
    remainder: int = 0


def _check(shares: Sequence[Share]) -> None:
    if len({share.allocation_id for share in shares}) < len(shares):
        raise CannotRebalance("allocation_twice", "an allocation is given twice: give each once")
    for share in shares:
        if (share.cap_tokens or 0) < 0 or share.floor_tokens < 0:
            raise CannotRebalance(
                "share_negative",
                "the cap and the floor of allocation {allocation} must be 0 or more",
                allocation=share.allocation_id,
            )


def _left_out(share: Share) -> str | None:
    """Say why an allocation takes no part; None if it does."""
    if share.cap_tokens is None:
        return "unlimited: it has no cap to share"
    if share.locked:
        return "locked: its cap stays"
    if share.service:
        return "a service allocation: its cap stays"
    return None


def _shared_out(taking_part: Sequence[Share], weights: dict[str, int], total: int) -> _Parts:
    """Share out a total by weight; `taking_part` is in the order in which equals come."""
    parts = _Parts({}, set())
    sharing, rest = list(taking_part), total
    while True:
        weight = sum(weights[share.allocation_id] for share in sharing)
        # Exact: the part is below the floor exactly when the products are.
        low = [s for s in sharing if rest * weights[s.allocation_id] < s.floor_tokens * weight]
        if not low:
            break
        # Whoever gets a floor gets more than a part. The parts of the others only shrink by it, so
        # that no one who is below a floor now would come out above it later.
        for share in low:
            parts.after[share.allocation_id] = share.floor_tokens
            parts.at_floor.add(share.allocation_id)
            rest -= share.floor_tokens
            sharing.remove(share)
    if weight == 0:
        # No one takes part, or every cap is 0: the floors cannot be more than that.
        parts.after.update((share.allocation_id, 0) for share in sharing)
        return parts
    for share in sharing:
        parts.after[share.allocation_id] = rest * weights[share.allocation_id] // weight
    largest = max(sharing, key=lambda share: weights[share.allocation_id]).allocation_id
    parts.largest, parts.remainder = largest, total - sum(parts.after.values())
    parts.after[largest] += parts.remainder
    if parts.after[largest] > AMOUNT_TOKENS_MAX:
        raise CannotRebalance(
            "share_too_much",
            "allocation {allocation} would get more than {most} tokens, the most that a "
            "cap may be: lock it, or lower caps",
            allocation=largest,
            most=AMOUNT_TOKENS_MAX,
        )
    return parts


def _reason(share: Share, parts: _Parts, used: int) -> str:
    """Say where a cap comes from."""
    id = share.allocation_id
    if used > 0:
        reason = f"used {max(0, share.used_tokens)} of {used} tokens last month"
        reason += ": its floor" if id in parts.at_floor else ": its part"
    else:
        reason = "nobody used any tokens last month"
        if id in parts.at_floor:
            reason += ": its floor"
        else:
            reason += (
                ": what it had, less what floors took" if parts.at_floor else ": it keeps its cap"
            )
    if id == parts.largest and parts.remainder:
        reason += f", and {parts.remainder} left over by the division"
    return reason
