"""Windows: which period of a limit an instant falls in.

Owns the calendar of every window in the billing time zone, for enforcement, API and dashboard
alike. Owns no totals.

Invariants: periods of one window neither overlap nor leave gaps; a period is half-open
`[start, end)` in UTC; `lifetime` is one period without end. A day has 23 to 25 hours where the
zone's clocks change; hours are counted from its midnight, so that they part the day whatever the
clocks do meanwhile.
"""

from datetime import UTC, date, datetime, time, timedelta
from typing import Literal, get_args
from zoneinfo import ZoneInfo

import msgspec

Window = Literal["hour", "day", "month", "lifetime"]

WINDOWS: tuple[Window, ...] = get_args(Window)
"""The shortest first: the order in which the limits of one owner are looked at."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


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
    shown = at.astimezone(zone).date()
    # Clocks that change close to midnight show a date that is over, or that has not begun.
    day = next(d for d in (shown, shown + DAY, shown - DAY) if _day(d, zone).holds(at))
    if window == "month":
        first = day.replace(day=1)
        # 32 days from the first of any month lie in the next one.
        return Period(_midnight(first, zone), _midnight((first + 32 * DAY).replace(day=1), zone))
    period = _day(day, zone)
    if window == "day":
        return period
    assert period.end is not None
    start = at.astimezone(UTC) - (at - period.start) % HOUR
    return Period(start, min(start + HOUR, period.end))


def _midnight(day: date, zone: ZoneInfo) -> datetime:
    """Return the first instant of a date: where midnight comes twice, the first of the two."""
    return datetime.combine(day, time(), zone).astimezone(UTC)


def _day(day: date, zone: ZoneInfo) -> Period:
    return Period(_midnight(day, zone), _midnight(day + DAY, zone))


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
