"""Pools: which of them lie above an allocation, and which of all limits binds it.

Owns the nesting of pools and the choice of the one limit that is shown as binding. Owns no totals
(they are given) and refuses no call: that is `ledger`'s, which looks at every limit.

Invariants: no pool lies inside itself; no chain of pools is longer than `NESTING_MAX`; the limit
that binds is the one with the least left in share of its amount, of equals the one that would
refuse a call first.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from fractions import Fraction

import msgspec

from app.core.faults import Fault
from app.core.ledger import METERS, Meter, OwnerKind
from app.core.windows import Window, window_order

NESTING_MAX = 8
"""Pools above an allocation: each is an account that every call of it is charged to."""


class InvalidNesting(Fault):
    """A pool cannot go where it was sent; the message says why."""


def pools_above(pool_id: str | None, parents: Mapping[str, str | None]) -> list[str]:
    """Return a pool and those it lies in, the nearest first; None has none above it."""
    above: list[str] = []
    while pool_id is not None and len(above) < NESTING_MAX:
        above.append(pool_id)
        pool_id = parents.get(pool_id)
    return above


def check_nesting(pool_id: str, parent_id: str | None, parents: Mapping[str, str | None]) -> None:
    """Raise `InvalidNesting` if a pool, with all that is inside it, cannot lie in another."""
    above = pools_above(parent_id, parents)
    if pool_id in above:
        raise InvalidNesting("pool_in_itself", "is the pool itself, or a pool inside it")
    chains = [pools_above(id, parents) for id in parents]
    height = max((chain.index(pool_id) + 1 for chain in chains if pool_id in chain), default=1)
    if len(above) + height > NESTING_MAX:
        raise InvalidNesting(
            "pools_too_deep",
            "would make {pools} pools inside one another, and {most} is the most",
            pools=len(above) + height,
            most=NESTING_MAX,
        )


class Bound(msgspec.Struct, frozen=True, gc=False):
    """A limit and how its owner stands to it, in the meter's unit (tokens, or nano-USD)."""

    owner: OwnerKind
    owner_id: str
    owner_name: str
    meter: Meter
    window: Window
    amount: int
    used: int
    held: int
    resets_at: datetime | None

    @property
    def remaining(self) -> int:
        """What is neither used nor held."""
        return max(0, self.amount - self.used - self.held)


def binding(path: Iterable[Sequence[Bound]]) -> Bound | None:
    """Return the limit that binds: the least left in share of its amount; None: nothing limits.

    `path` holds the limits of each owner, the allocation's first, then the pools' from the nearest
    up. A limit of 0 has nothing left.
    """
    in_order = [bound for limits in path for bound in sorted(limits, key=_order)]
    return min(in_order, key=_share_left, default=None)


def _order(bound: Bound) -> tuple[object, int]:
    return window_order(bound.window), METERS.index(bound.meter)


def _share_left(bound: Bound) -> Fraction:
    return Fraction(bound.remaining, bound.amount) if bound.amount else Fraction(0)
