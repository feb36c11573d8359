"""Windows: which period of a limit an instant falls in.

Owns the names of windows, and the calendar of each in the billing time zone, for enforcement, API
and dashboard alike. Owns no totals.

Invariants: periods of one window neither overlap nor leave gaps; a period is half-open
`[start, end)` in UTC; `lifetime` is one period without end, and so is a rolling window: what has
slid out of it is taken off its total. A day has 23 to 25 hours where the zone's clocks change;
hours are counted from its midnight, so that they part the day whatever the clocks do meanwhile.
"""

import re
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import msgspec

from app.core.faults import Fault

Window = str
"""`hour`, `day`, `month`, `lifetime`, or `rolling:<hours>h` with 1 to 8760 hours."""

CALENDAR_WINDOWS: tuple[Window, ...] = ("hour", "day", "month")
LIFETIME: Window = "lifetime"
ROLLING_HOURS_MAX = 8760

_ROLLING = re.compile(r"rolling:0*([1-9][0-9]{0,3}) ?h")

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)

_LENGTHS = {"hour": HOUR, "day": DAY, "month": 31 * DAY}


class InvalidWindow(Fault):
    """A window that there is not; the message says which there are."""


def check_window(name: str) -> Window:
    """Return a window as it is written here, or raise `InvalidWindow`."""
    if name in CALENDAR_WINDOWS or name == LIFETIME:
        return name
    found = _ROLLING.fullmatch(name)
    if found is None or int(found[1]) > ROLLING_HOURS_MAX:
        raise InvalidWindow(
            "window",
            "must be one of hour, day, month, lifetime, or rolling:<hours>h with "
            "1 to {most} hours, such as rolling:24h",
            most=ROLLING_HOURS_MAX,
        )
    return f"rolling:{found[1]}h"


def rolling(window: Window) -> timedelta | None:
    """Return how long a rolling window is; None if it is none."""
    if not window.startswith("rolling:"):
        return None
    return timedelta(hours=int(window[len("rolling:") : -1]))


def window_order(window: Window) -> timedelta:
    """Sort windows by this: the shortest first, as the limits of one owner are looked at."""
    return rolling(window) or _LENGTHS.get(window, timedelta.max)


class Period(msgspec.Struct, frozen=True, gc=False):
    """One period of a window: `[start, end)` in UTC; `end` is None when it never ends."""

    start: datetime
    end: datetime | None

    def holds(self, at: datetime) -> bool:
        """Tell whether the instant lies in this period."""
        return self.start <= at and (self.end is None or at < self.end)


def period_of(window: Window, at: datetime, zone: ZoneInfo) -> Period:
    """Return the period of `window` that the aware instant `at` falls in, by the zone's clock."""
    if window == LIFETIME or window.startswith("rolling:"):
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
        self._zoned: dict[str, Calendar] = {}

    def of(self, zone: str | None) -> "Calendar":
        """Return the calendar of another zone, or this one: that of whoever has none of their own.

        Raises `zoneinfo`'s errors for a zone that there is not.
        """
        if zone is None or zone == self.zone.key:
            return self
        if zone not in self._zoned:
            self._zoned[zone] = Calendar(ZoneInfo(zone))
        return self._zoned[zone]

    def period(self, window: Window, at: datetime) -> Period:
        """Return the period of `window` at the aware instant `at`."""
        latest = self._latest.get(window)
        if latest is None or not latest.holds(at):
            latest = self._latest[window] = period_of(window, at, self.zone)
        return latest
