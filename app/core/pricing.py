"""Pricing: what a usage costs under one version of a model's rates.

Owns rates, their parents (a part without a rate of its own takes its parent's), and the rounding
of a call's cost: up, once, to a nano-USD. Owns no table of prices and no choice of model.

Invariants: a usage with a unit that has no rate costs None, never 0 and never a part of the sum;
the ceiling of a usage costs at least what any usage within it costs; all arithmetic is exact.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from math import lcm

import msgspec

from app.core.faults import Fault
from app.core.metering import Quantity, Usage
from app.core.money import NANO_PER_USD

PARENT: dict[str, str] = {
    "cached_input_token": "input_token",
    "cache_write_token": "input_token",
    "reasoning_token": "output_token",
    "cached_input_audio_token": "input_audio_token",
}
"""Whose rate a part takes that has none of its own. Nothing else falls back."""

PER_MAX = 10**12
USD_PER_UNIT_MAX = 1000
"""Dearer than anything sold by the unit; keeps every cost well inside a BIGINT."""
COST_NANO_MAX = 10**18


class InvalidRates(Fault):
    """Rates that cannot make a price; the message says what to change."""


class Rate(msgspec.Struct, frozen=True):
    """`usd` for every `per` of one unit, both exact: 0.15 USD per 1_000_000 tokens."""

    unit: str
    usd: Decimal
    per: int = 1


class Price(msgspec.Struct, frozen=True):
    """One version of the rates of one model, in force from an instant until the next version."""

    id: str
    model: str
    effective_from: datetime
    numerators: dict[str, int]
    """By unit, with parents filled in: nano-USD of one unit, times `denominator`."""
    denominator: int
    worst: dict[str, int]
    """By unit: the highest numerator that a quantity counted under that unit can turn out at."""

    def cost_exact(self, usage: Mapping[str, Quantity]) -> int | Fraction | None:
        """Return the cost times `denominator`, or None if a unit of the usage has no rate."""
        return _sum(self.numerators, usage)

    def cost_nano(self, usage: Mapping[str, Quantity]) -> int | None:
        """Return what the usage costs in nano-USD, rounded up once; None if it is unpriced."""
        exact = _sum(self.numerators, usage)
        # The bound is for a provider that reports nonsense: the books must be able to take it.
        return None if exact is None else min(-int(-exact // self.denominator), COST_NANO_MAX)

    def ceiling_exact(self, usage: Mapping[str, Quantity]) -> int | Fraction | None:
        """Return the most the usage can cost times `denominator`; None if it is unpriced.

        A ceiling counts all input as `input_token` although a part may turn out cached or written
        to a cache, and all output as `output_token` although a part may be reasoning.
        """
        return _sum(self.worst, usage)


def make_price(id: str, model: str, effective_from: datetime, rates: Iterable[Rate]) -> Price:
    """Compile rates into a price: every rate over one common denominator, in integers."""
    exact = {r.unit: Fraction(r.usd) * NANO_PER_USD / r.per for r in rates}
    for part, parent in PARENT.items():
        if part not in exact and parent in exact:
            exact[part] = exact[parent]
    denominator = lcm(1, *(rate.denominator for rate in exact.values()))
    numerators = {unit: int(rate * denominator) for unit, rate in exact.items()}
    worst = dict(numerators)
    for part, parent in PARENT.items():
        if parent in worst:
            worst[parent] = max(worst[parent], numerators[part])
    return Price(id, model, effective_from, numerators, denominator, worst)


def check_rates(rates: Sequence[Rate], units: frozenset[str]) -> None:
    """Raise `InvalidRates` unless every rate is a finite, non-negative price of a known unit."""
    if not rates:
        raise InvalidRates("rates_none", "rates must name at least one unit")
    seen: set[str] = set()
    for rate in rates:
        if rate.unit not in units:
            raise InvalidRates(
                "rate_unknown_unit",
                "unknown unit {unit!r}; known: {known}",
                unit=rate.unit,
                known=", ".join(sorted(units)),
            )
        if rate.unit in seen:
            raise InvalidRates(
                "rate_twice", "unit {unit!r} has two rates; keep one", unit=rate.unit
            )
        seen.add(rate.unit)
        if not rate.usd.is_finite() or rate.usd < 0 or rate.usd > 10**15:
            raise InvalidRates(
                "rate_usd",
                "usd of {unit!r} must be 0 or more, and a sensible amount",
                unit=rate.unit,
            )
        if int(rate.usd.as_tuple().exponent) < -18:
            raise InvalidRates(
                "rate_decimals",
                "usd of {unit!r} must have at most {most} decimal places",
                unit=rate.unit,
                most=18,
            )
        if not 1 <= rate.per <= PER_MAX:
            raise InvalidRates(
                "rate_per",
                "per of {unit!r} must be from 1 to {most}",
                unit=rate.unit,
                most=PER_MAX,
            )
        if rate.usd > USD_PER_UNIT_MAX * rate.per:
            raise InvalidRates(
                "rate_dear",
                "one {unit!r} may cost at most {most} USD",
                unit=rate.unit,
                most=USD_PER_UNIT_MAX,
            )


def price_at(versions: Sequence[Price], at: datetime) -> Price | None:
    """Return the version in force at an instant; `versions` are in order of `effective_from`."""
    for price in reversed(versions):
        if price.effective_from <= at:
            return price
    return None


def _sum(numerators: Mapping[str, int], usage: Mapping[str, Quantity]) -> int | Fraction | None:
    """Sum quantity times numerator, exactly: in int unless a quantity is not whole."""
    total: int | Fraction = 0
    for unit, quantity in usage.items():
        numerator = numerators.get(unit)
        if numerator is None:
            return None
        if isinstance(quantity, int):
            total += quantity * numerator
        else:
            total += Fraction(quantity) * numerator
    return total


__all__ = [
    "PARENT",
    "InvalidRates",
    "Price",
    "Rate",
    "Usage",
    "check_rates",
    "make_price",
    "price_at",
]
