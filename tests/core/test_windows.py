"""Windows: which period an instant falls in, by the billing zone's clock.

To add a scenario, add a row: window, zone, instant (with its offset), then the start and end of its
period as the zone's clock shows them.
"""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.core.windows import (
    CALENDAR_WINDOWS,
    EPOCH,
    LIFETIME,
    Calendar,
    InvalidWindow,
    Period,
    Window,
    check_window,
    period_of,
    rolling,
    window_order,
)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


H = timedelta(hours=1)

PERIODS: list[tuple[Window, str, str, str, str, timedelta]] = [
    # window, zone, instant -> start, end, length
    # Months end where the calendar says, leap years included.
    ("month", "UTC", "2026-01-31T23:59:59.999999+00:00", "2026-01-01T00:00+00:00", "2026-02-01T00:00+00:00", 31 * 24 * H),
    ("month", "UTC", "2026-02-01T00:00:00+00:00", "2026-02-01T00:00+00:00", "2026-03-01T00:00+00:00", 28 * 24 * H),
    ("month", "UTC", "2028-02-29T12:00:00+00:00", "2028-02-01T00:00+00:00", "2028-03-01T00:00+00:00", 29 * 24 * H),
    ("month", "UTC", "2026-12-31T23:00:00+00:00", "2026-12-01T00:00+00:00", "2027-01-01T00:00+00:00", 31 * 24 * H),
    # A month is the zone's, not late by the offset, and an hour off when its clocks change in it.
    ("month", "America/New_York", "2026-04-01T03:59:59+00:00", "2026-03-01T00:00-05:00", "2026-04-01T00:00-04:00", 31 * 24 * H - H),
    ("month", "America/New_York", "2026-04-01T04:00:00+00:00", "2026-04-01T00:00-04:00", "2026-05-01T00:00-04:00", 30 * 24 * H),
    ("month", "Europe/Berlin", "2026-10-15T00:00:00+00:00", "2026-10-01T00:00+02:00", "2026-11-01T00:00+01:00", 31 * 24 * H + H),
    ("month", "Asia/Kathmandu", "2026-05-31T18:14:59+00:00", "2026-05-01T00:00+05:45", "2026-06-01T00:00+05:45", 31 * 24 * H),
    ("month", "Asia/Kathmandu", "2026-05-31T18:15:00+00:00", "2026-06-01T00:00+05:45", "2026-07-01T00:00+05:45", 30 * 24 * H),
    ("month", "Pacific/Kiritimati", "2026-01-31T10:00:00+00:00", "2026-02-01T00:00+14:00", "2026-03-01T00:00+14:00", 28 * 24 * H),
    # Days have 23, 24 or 25 hours; or 23.5 and 24.5 on Lord Howe.
    ("day", "UTC", "2026-03-29T01:00:00+00:00", "2026-03-29T00:00+00:00", "2026-03-30T00:00+00:00", 24 * H),
    ("day", "Europe/Berlin", "2026-03-29T12:00:00+02:00", "2026-03-29T00:00+01:00", "2026-03-30T00:00+02:00", 23 * H),
    ("day", "Europe/Berlin", "2026-10-25T12:00:00+01:00", "2026-10-25T00:00+02:00", "2026-10-26T00:00+01:00", 25 * H),
    ("day", "Australia/Lord_Howe", "2026-10-04T12:00:00+11:00", "2026-10-04T00:00+10:30", "2026-10-05T00:00+11:00", 23.5 * H),
    ("day", "Australia/Lord_Howe", "2026-04-05T12:00:00+10:30", "2026-04-05T00:00+11:00", "2026-04-06T00:00+10:30", 24.5 * H),
    ("day", "Asia/Kolkata", "2026-06-30T18:30:00+00:00", "2026-07-01T00:00+05:30", "2026-07-02T00:00+05:30", 24 * H),
    # Clocks that change at midnight: a midnight that is skipped, one that comes twice.
    ("day", "America/Havana", "2026-03-08T12:00:00-04:00", "2026-03-08T00:00-05:00", "2026-03-09T00:00-04:00", 23 * H),
    ("day", "America/Havana", "2026-11-01T00:30:00-04:00", "2026-11-01T00:00-04:00", "2026-11-02T00:00-05:00", 25 * H),
    ("day", "America/Havana", "2026-11-01T00:30:00-05:00", "2026-11-01T00:00-04:00", "2026-11-02T00:00-05:00", 25 * H),
    # Clocks that were put back across midnight showed yesterday again; today had begun all the same.
    ("day", "America/St_Johns", "2010-11-07T00:00:30-02:30", "2010-11-07T00:00-02:30", "2010-11-08T00:00-03:30", 25 * H),
    ("day", "America/St_Johns", "2010-11-06T23:30:00-03:30", "2010-11-07T00:00-02:30", "2010-11-08T00:00-03:30", 25 * H),
    # Clocks that were put forward across midnight: the day begins when midnight would have come.
    ("day", "America/Toronto", "1919-03-31T00:30:00-04:00", "1919-03-30T00:00-05:00", "1919-03-31T01:00-04:00", 24 * H),
    # A day that the zone left out altogether.
    ("day", "Pacific/Apia", "2011-12-29T23:59:59-10:00", "2011-12-29T00:00-10:00", "2011-12-31T00:00+14:00", 24 * H),
    ("day", "Pacific/Apia", "2011-12-31T00:00:00+14:00", "2011-12-31T00:00+14:00", "2012-01-01T00:00+14:00", 24 * H),
    # Hours begin with the zone's own, half-hour and quarter-hour zones included.
    ("hour", "UTC", "2026-05-05T10:59:59.999999+00:00", "2026-05-05T10:00+00:00", "2026-05-05T11:00+00:00", H),
    ("hour", "Asia/Kolkata", "2026-05-05T10:29:00+00:00", "2026-05-05T15:00+05:30", "2026-05-05T16:00+05:30", H),
    ("hour", "Asia/Kolkata", "2026-05-05T10:30:00+00:00", "2026-05-05T16:00+05:30", "2026-05-05T17:00+05:30", H),
    ("hour", "Asia/Kathmandu", "2026-05-05T10:14:00+00:00", "2026-05-05T15:00+05:45", "2026-05-05T16:00+05:45", H),
    # An hour that the clocks show twice is two hours; one that they skip is none.
    ("hour", "Europe/Berlin", "2026-10-25T02:30:00+02:00", "2026-10-25T02:00+02:00", "2026-10-25T02:00+01:00", H),
    ("hour", "Europe/Berlin", "2026-10-25T02:30:00+01:00", "2026-10-25T02:00+01:00", "2026-10-25T03:00+01:00", H),
    ("hour", "Europe/Berlin", "2026-03-29T01:59:59+01:00", "2026-03-29T01:00+01:00", "2026-03-29T03:00+02:00", H),
    # Half an hour put back: hours go on by the hour, and the last of that day is a half.
    ("hour", "Australia/Lord_Howe", "2026-04-05T01:45:00+11:00", "2026-04-05T01:00+11:00", "2026-04-05T01:30+10:30", H),
    ("hour", "Australia/Lord_Howe", "2026-04-05T01:45:00+10:30", "2026-04-05T01:30+10:30", "2026-04-05T02:30+10:30", H),
    ("hour", "Australia/Lord_Howe", "2026-04-05T23:45:00+10:30", "2026-04-05T23:30+10:30", "2026-04-06T00:00+10:30", H / 2),
    ("hour", "Australia/Lord_Howe", "2026-04-06T00:45:00+10:30", "2026-04-06T00:00+10:30", "2026-04-06T01:00+10:30", H),
]  # fmt: skip


@pytest.mark.parametrize(
    ("window", "zone", "instant", "start", "end", "length"),
    PERIODS,
    ids=[f"{window} {zone} {instant}" for window, zone, instant, *_ in PERIODS],
)
def test_a_period_is_the_zones(
    window: Window, zone: str, instant: str, start: str, end: str, length: timedelta
) -> None:
    period = period_of(window, at(instant), ZoneInfo(zone))
    assert period == Period(at(start), at(end))
    assert period.start.tzinfo is UTC
    assert period.end is not None
    assert period.end.tzinfo is UTC
    assert period.end - period.start == length


def test_a_lifetime_is_one_period_without_end() -> None:
    zone = ZoneInfo("Asia/Tokyo")
    for instant in ("1970-01-01T00:00:00+00:00", "2026-05-05T10:00:00-07:00"):
        period = period_of("lifetime", at(instant), zone)
        assert period == Period(EPOCH, None)
        assert period.holds(at(instant))


@pytest.mark.parametrize(
    ("written", "window", "hours"),
    [
        ("rolling:1h", "rolling:1h", 1),
        ("rolling:24 h", "rolling:24h", 24),
        ("rolling:007h", "rolling:7h", 7),
        ("rolling:8760h", "rolling:8760h", 8760),
    ],
)
def test_a_rolling_window_is_named_by_its_hours(written: str, window: str, hours: int) -> None:
    assert check_window(written) == window
    assert rolling(window) == timedelta(hours=hours)
    # It has one account, out of which things slide.
    assert period_of(window, at("2026-05-05T10:00:00-07:00"), ZoneInfo("UTC")).end is None


@pytest.mark.parametrize("window", [*CALENDAR_WINDOWS, LIFETIME])
def test_other_windows_are_named_as_they_are_and_do_not_roll(window: str) -> None:
    assert check_window(window) == window
    assert rolling(window) is None


@pytest.mark.parametrize(
    "written",
    ["", "week", "Month", "rolling", "rolling:", "rolling:h", "rolling:0h", "rolling:8761h",
     "rolling:-1h", "rolling:1.5h", "rolling:24", "rolling:24d", "rolling:24hh", "rolling:99999h"],
)  # fmt: skip
def test_a_window_that_there_is_not_is_refused_with_those_that_there_are(written: str) -> None:
    with pytest.raises(InvalidWindow, match="hour, day, month, lifetime, or rolling"):
        check_window(written)


def test_windows_are_looked_at_from_the_shortest_on() -> None:
    named = ["lifetime", "month", "rolling:8760h", "rolling:2h", "day", "hour", "rolling:25h"]
    assert sorted(named, key=window_order) == [
        "hour",
        "rolling:2h",
        "day",
        "rolling:25h",
        "month",
        "rolling:8760h",
        "lifetime",
    ]


def test_a_calendar_knows_those_of_other_zones() -> None:
    calendar = Calendar(ZoneInfo("UTC"))
    assert calendar.of(None) is calendar
    assert calendar.of("UTC") is calendar
    taipei = calendar.of("Asia/Taipei")
    assert taipei is calendar.of("Asia/Taipei")
    assert taipei.zone == ZoneInfo("Asia/Taipei")


def test_a_period_holds_its_start_and_not_its_end() -> None:
    period = Period(at("2026-01-01T00:00+00:00"), at("2026-02-01T00:00+00:00"))
    assert not period.holds(at("2025-12-31T23:59:59.999999+00:00"))
    assert period.holds(at("2026-01-01T00:00+00:00"))
    assert period.holds(at("2026-01-31T23:59:59.999999+00:00"))
    assert not period.holds(at("2026-02-01T00:00+00:00"))


ZONES = ["UTC", "Europe/Berlin", "America/New_York", "America/St_Johns", "America/Havana", "America/Sao_Paulo",
         "America/Caracas", "America/Toronto", "Asia/Kathmandu", "Asia/Kolkata", "Asia/Pyongyang", "Asia/Gaza",
         "Asia/Tehran", "Africa/Casablanca", "Africa/Monrovia", "Australia/Lord_Howe", "Australia/Eucla",
         "Pacific/Apia", "Pacific/Chatham", "Pacific/Kiritimati", "Antarctica/Troll"]  # fmt: skip


@given(
    window=st.sampled_from(["hour", "day", "month"]),
    zone=st.sampled_from(ZONES),
    instant=st.datetimes(datetime(1970, 2, 1), datetime(2037, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
)
# Where clocks have changed by other than whole hours, or across midnight.
@example("hour", "Australia/Lord_Howe", at("2026-04-04T15:10:00+00:00"))
@example("hour", "America/Caracas", at("2016-05-01T07:10:00+00:00"))
@example("hour", "Asia/Pyongyang", at("2015-08-14T15:10:00+00:00"))
@example("hour", "Africa/Monrovia", at("1972-01-07T00:50:00+00:00"))
@example("day", "America/St_Johns", at("2006-10-29T02:40:00+00:00"))
@example("month", "America/St_Johns", at("1992-11-01T02:40:00+00:00"))
def test_periods_neither_overlap_nor_leave_gaps(
    window: Window, zone: str, instant: datetime
) -> None:
    where = ZoneInfo(zone)
    period = period_of(window, instant, where)
    assert period.holds(instant), "an instant lies in its own period"
    assert period.end is not None
    inside = [
        period.start,
        period.start + (period.end - period.start) / 3,
        period.end - timedelta(microseconds=1),
    ]
    assert [period_of(window, one, where) for one in inside] == [period] * 3
    assert period_of(window, period.end, where).start == period.end
    before = period_of(window, period.start - timedelta(microseconds=1), where)
    assert before.end == period.start


@pytest.mark.parametrize("window", [*CALENDAR_WINDOWS, LIFETIME])
def test_a_calendar_says_what_the_zone_says_in_any_order(window: Window) -> None:
    zone = ZoneInfo("America/New_York")
    calendar = Calendar(zone)
    start = at("2026-02-27T21:10:00-05:00")
    instants = [start + timedelta(minutes=47 * step) for step in range(120)]
    for instant in [*instants, *reversed(instants)]:
        assert calendar.period(window, instant) == period_of(window, instant, zone)


def test_a_calendar_gives_the_same_period_while_it_lasts() -> None:
    calendar = Calendar(ZoneInfo("UTC"))
    first, later = at("2026-02-01T00:00:00+00:00"), at("2026-02-28T23:00:00+00:00")
    assert calendar.period("month", first) is calendar.period("month", later)


def test_a_year_of_periods_is_a_year() -> None:
    """Every period of 2026 in turn, in a zone whose clocks change by half an hour."""
    zone = ZoneInfo("Australia/Lord_Howe")
    first, last = at("2026-01-01T00:00+11:00"), at("2027-01-01T00:00+11:00")
    for window, count in (("hour", 363 * 24 + 24 + 25), ("day", 365), ("month", 12)):
        starts = [first]
        while starts[-1] < last:
            end = period_of(window, starts[-1], zone).end  # type: ignore[arg-type]
            assert end is not None
            starts.append(end)
        assert starts[-1] == last
        assert len(list(pairwise(starts))) == count
