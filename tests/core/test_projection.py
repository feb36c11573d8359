"""Projection: when a limit is reached if its use goes on as it does.

To add a scenario, add a row: the limit, what is used of it, the age of the owner in days, what it
used in the last day and week, the period's end in days from now (None: it never ends), and what
comes of it: an outlook, or the days until the limit is reached.
"""

from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.projection import DATA_MIN, SIGHT, WEEK, Basis, Outlook, Pace, Projection, project
from app.core.windows import DAY, Period

NOW = datetime(2026, 5, 10, 12, 0, tzinfo=UTC)
UTC_ZONE = ZoneInfo("UTC")


def ends_in(days: float | None) -> Period:
    start = NOW - timedelta(days=9.5)
    return Period(start, None if days is None else NOW + timedelta(days=days))


def pace(age_days: float | None, day: int, week: int) -> Pace:
    return Pace(None if age_days is None else NOW - timedelta(days=age_days), day, week)


@pytest.mark.parametrize(
    ("amount", "used", "age", "day", "week", "end", "expected", "basis"),
    [
        # The higher of the two rates, whichever it is.
        (1000, 500, 30, 100, 350, 21.5, 5, "day"),
        (1000, 500, 30, 10, 700, 21.5, 5, "week"),
        (1000, 500, 30, 100, 700, 21.5, 5, "day"),
        (1000, 500, 30, 0, 700, 21.5, 5, "week"),
        (1000, 500, 30, 100, 100, 21.5, 5, "day"),
        (1000, 999, 30, 8, 8, 21.5, 0.125, "day"),
        # An owner of four days did not use its week's total in seven.
        (1000, 500, 4, 10, 400, 21.5, 5, "week"),
        (1000, 500, 3, 10, 300, 21.5, 5, "week"),
        (1000, 500, 7, 10, 700, 21.5, 5, "week"),
        # Too young to tell.
        (1000, 500, 2.99, 400, 400, 21.5, "too_little_data", None),
        (1000, 500, 0, 400, 400, 21.5, "too_little_data", None),
        (1000, 0, None, 0, 0, 21.5, "too_little_data", None),
        # The clock of another machine is ahead.
        (1000, 500, -1, 400, 400, 21.5, "too_little_data", None),
        # Reached already, whatever the data.
        (1000, 1000, 30, 10, 10, 21.5, "reached", None),
        (1000, 1001, 1, 10, 10, 21.5, "reached", None),
        (0, 0, None, 0, 0, 21.5, "reached", None),
        # Nothing used lately; and corrections took more than was used.
        (1000, 500, 30, 0, 0, 21.5, "no_use", None),
        (1000, 500, 30, -10, -20, 21.5, "no_use", None),
        (1000, 500, 30, -10, 700, 21.5, 5, "week"),
        # The period ends first, or in that very instant.
        (1000, 500, 30, 100, 700, 4.9, "not_before_reset", "day"),
        (1000, 500, 30, 100, 700, 5, "not_before_reset", "day"),
        (1000, 500, 30, 100, 700, 5.1, 5, "day"),
        (10**18, 0, 30, 1, 1, 21.5, "not_before_reset", "day"),
        # Without an end: however far it may be, up to ten years.
        (1000, 500, 30, 100, 700, None, 5, "day"),
        (3653, 0, 30, 1, 7, None, 3653, "day"),
        (3654, 0, 30, 1, 7, None, "not_in_sight", "day"),
        (10**18, 0, 30, 0, 1, None, "not_in_sight", "week"),
        (10**18, 10**18 - 1, 30, 10**18, 10**18, None, 0, "day"),
    ],
)  # fmt: skip
def test_a_limit_is_reached_at_the_higher_rate(
    amount: int,
    used: int,
    age: float | None,
    day: int,
    week: int,
    end: float | None,
    expected: Outlook | float,
    basis: Basis | None,
) -> None:
    found = project(amount, used, pace(age, day, week), ends_in(end), NOW, UTC_ZONE)
    assert found.basis == basis
    assert (found.per_day is None) == (basis is None)
    if isinstance(expected, str):
        assert (found.outlook, found.at, found.on) == (expected, None, None)
    else:
        at = NOW + timedelta(days=expected)
        assert found.outlook == "projected"
        assert found.at is not None
        # Whole microseconds: the limit is reached within the one after.
        assert timedelta(0) <= found.at - at <= timedelta(microseconds=1)
        assert found.on == found.at.date()


def test_the_rate_is_shown_rounded_up() -> None:
    found = project(1000, 0, pace(30, 0, 50), ends_in(None), NOW, UTC_ZONE)
    assert (found.basis, found.per_day) == ("week", 8)


@pytest.mark.parametrize(
    ("zone", "on"),
    [
        ("UTC", date(2026, 5, 15)),
        ("Pacific/Kiritimati", date(2026, 5, 16)),
        ("America/Los_Angeles", date(2026, 5, 15)),
    ],
)
def test_the_date_is_the_billing_zones(zone: str, on: date) -> None:
    now = NOW.astimezone(ZoneInfo("Asia/Tokyo"))
    found = project(1000, 500, pace(30, 100, 700), ends_in(21.5), now, ZoneInfo(zone))
    assert found == Projection("projected", NOW + 5 * DAY, on, "day", 100)
    assert found.at is not None
    assert found.at.tzinfo is UTC


def test_three_days_are_72_hours_whatever_the_clocks_do() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    now = datetime(2026, 3, 30, 12, 0, tzinfo=berlin)
    period = Period(datetime(2026, 3, 1, tzinfo=UTC), None)
    for hours, outlook in ((71, "too_little_data"), (72, "projected")):
        since = (now.astimezone(UTC) - timedelta(hours=hours)).astimezone(berlin)
        found = project(1000, 500, Pace(since, 100, 100), period, now, berlin)
        assert found.outlook == outlook


@given(
    amount=st.integers(0, 10**18),
    used=st.integers(0, 10**18),
    age=st.timedeltas(timedelta(0), timedelta(days=40)),
    day=st.integers(-(10**6), 10**18) | st.integers(0, 100),
    week=st.integers(-(10**6), 10**18) | st.integers(0, 100),
    end=st.none() | st.timedeltas(timedelta(microseconds=1), timedelta(days=31)),
)
def test_at_the_instant_projected_the_limit_is_reached_and_not_before(
    amount: int, used: int, age: timedelta, day: int, week: int, end: timedelta | None
) -> None:
    period = Period(NOW - DAY, None if end is None else NOW + end)
    found = project(amount, used, Pace(NOW - age, day, week), period, NOW, UTC_ZONE)
    if used >= amount:
        assert found == Projection("reached")
        return
    if age < DATA_MIN:
        assert found == Projection("too_little_data")
        return
    microsecond = timedelta(microseconds=1)
    rate = max(Fraction(day, DAY // microsecond), Fraction(week, min(age, WEEK) // microsecond))
    if rate <= 0:
        assert found == Projection("no_use")
        return

    def reached_after(wait: timedelta) -> bool:
        return used + rate * (wait // microsecond) >= amount

    if found.outlook == "projected":
        assert found.at is not None
        assert found.at > NOW
        assert end is None or found.at < NOW + end
        assert reached_after(found.at - NOW)
        assert not reached_after(found.at - NOW - microsecond)
    elif found.outlook == "not_before_reset":
        assert end is not None
        assert not reached_after(end - microsecond)
    else:
        assert found.outlook == "not_in_sight"
        assert end is None
        assert not reached_after(SIGHT)
