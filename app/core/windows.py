"""Windows: which period of a limit an instant falls in.

Owns the calendar of every window in the billing time zone, for enforcement, API and dashboard
alike. Owns no totals.

Invariants: periods of one window neither overlap nor leave gaps; a period is half-open
`[start, end)` in UTC; `lifetime` is one period without end. A day has 23 to 25 hours where the
zone's clocks change.
"""

from datetime import UTC, datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

import msgspec

Window = Literal["hour", "day", "month", "lifetime"]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Period(msgspec.Struct, frozen=True, gc=False):
    """One period of a window: `[start, end)` in UTC; `end` is None when it never ends."""

    start: datetime
    end: datetime | None

    def holds(self, at: datetime) -> bool:
        """Tell whether the instant lies in this period."""
        return self.start <= at and (self.end is None or at < self.end)


def period_of(window: Window, at: datetime, zone: ZoneInfo) -> Period:
    """Return the period of `window` that the aware instant `at` falls in, by the zone's clock."""
    if window == "lifetime":
        return Period(EPOCH, None)
    local = at.astimezone(zone)
    if window == "hour":
        # Local hours repeat or vanish when clocks change; elapsed hours, aligned to the zone's
        # minutes, neither overlap nor leave gaps.
        past = timedelta(minutes=local.minute, seconds=local.second, microseconds=local.microsecond)
        start = at.astimezone(UTC) - past
        return Period(start, start + timedelta(hours=1))
    day = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    if window == "day":
        # Arithmetic on an aware datetime moves its wall clock: the next midnight, however far.
        return Period(day.astimezone(UTC), (day + timedelta(days=1)).astimezone(UTC))
    month = day.replace(day=1)
    # 32 days from the first of any month lie in the next one.
    following = (month + timedelta(days=32)).replace(day=1)
    return Period(month.astimezone(UTC), following.astimezone(UTC))


class Calendar:
    """`period_of` for one zone, remembering the period in force: calls come in time order."""

    def __init__(self, zone: ZoneInfo) -> None:
        self.zone = zone
        self._latest: dict[Window, Period] = {}

    def period(self, window: Window, at: datetime) -> Period:
        """Return the period of `window` at the aware instant `at`."""
        latest = self._latest.get(window)
        if latest is None or not latest.holds(at):
            latest = self._latest[window] = period_of(window, at, self.zone)
        return latest
