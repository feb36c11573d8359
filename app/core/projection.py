"""Projection: the date on which a limit is reached if its use goes on as it does.

Owns the choice of the rate and the arithmetic of the date. Owns no totals: what was used in the
last day and week is added up by the store.

Invariants: all arithmetic is exact, in integers and fractions; at the instant projected the limit
is reached, and a microsecond earlier it is not; no date is given that lies past the period's end,
nor one that rests on less than three days.

What is held plays no part: a hold is gone in minutes, a projection looks ahead by days.
"""

from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from typing import Literal
from zoneinfo import ZoneInfo

import msgspec

from app.core.money import ceil_div
from app.core.windows import DAY, Period

WEEK = 7 * DAY
DATA_MIN = 3 * DAY
MICROSECOND = timedelta(microseconds=1)
SIGHT = 3653 * DAY
"""Ten years. A later date says nothing, and the last ones do not even exist."""

Basis = Literal["day", "week"]
Outlook = Literal[
    "reached", "too_little_data", "no_use", "not_before_reset", "not_in_sight", "projected"
]
"""`reached`: already. `not_before_reset`: the period ends first. `not_in_sight`: not in ten years,
of a limit that never resets. Only `projected` comes with a date."""


class Pace(msgspec.Struct, frozen=True):
    """How fast an owner uses a meter: what its calls used lately, in tokens or nano-USD."""

    since: datetime | None
    """Its first call, in whatever period; None if there is none."""
    day: int
    """Used in the 24 hours up to now."""
    week: int
    """Used in the 7 times 24 hours up to now, or since the first call."""


class Projection(msgspec.Struct, frozen=True):
    """When a limit is reached; `on` is the date of `at` by the billing zone's calendar."""

    outlook: Outlook
    at: datetime | None = None
    on: date | None = None
    basis: Basis | None = None
    per_day: int | None = None
    """The rate that was taken, rounded up; None where none was."""


def project(
    amount: int, used: int, pace: Pace, period: Period, now: datetime, zone: ZoneInfo
) -> Projection:
    """Tell when `used` reaches `amount` at the higher of the last day's and the last week's rate.

    An owner younger than a week has its use divided by its age, not by seven days that it did not
    have. A rolling window is given as a period that ends when all that is used now will have slid
    out: a limit that is not reached by then is not reached at this rate at all, and one that is may
    be reached later than said, never sooner.
    """
    if used >= amount:
        return Projection("reached")
    # Two instants of one zone subtract by its clocks, which change.
    now = now.astimezone(UTC)
    if pace.since is None or now - pace.since < DATA_MIN:
        return Projection("too_little_data")
    by_day = Fraction(pace.day, DAY // MICROSECOND)
    by_week = Fraction(pace.week, min(WEEK, now - pace.since) // MICROSECOND)
    basis: Basis = "day" if by_day >= by_week else "week"
    rate = max(by_day, by_week)
    # Corrections can leave a day, and even a week, with less than nothing.
    if rate <= 0:
        return Projection("no_use")
    per_day = rate * (DAY // MICROSECOND)
    shown = ceil_div(per_day.numerator, per_day.denominator)
    wait = Fraction(amount - used) / rate
    microseconds = ceil_div(wait.numerator, wait.denominator)
    # Compared as numbers: a date that far away need not exist.
    if period.end is not None and microseconds >= (period.end - now) // MICROSECOND:
        return Projection("not_before_reset", basis=basis, per_day=shown)
    if microseconds > SIGHT // MICROSECOND:
        return Projection("not_in_sight", basis=basis, per_day=shown)
    at = now + microseconds * MICROSECOND
    return Projection("projected", at, at.astimezone(zone).date(), basis, shown)
