"""Top-ups: each way of writing an expiry stands for one instant, in the billing zone.

To add one, add a row to `EXPIRIES`: what is written, the zone, when, and the instant or what is
said.
"""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from app.core.top_ups import InvalidExpiry, expiry
from app.core.windows import Calendar

NOW = "2026-03-28T23:30:00+00:00"

EXPIRIES: list[tuple[str, str, str, str]] = [
    # Today and this month are the zone's; in Berlin it is Sunday already, an hour short.
    ("day", "UTC", NOW, "2026-03-29T00:00:00+00:00"),
    ("day", "Europe/Berlin", NOW, "2026-03-30T00:00:00+02:00"),
    ("day", "America/New_York", NOW, "2026-03-29T00:00:00-04:00"),
    ("period", "UTC", NOW, "2026-04-01T00:00:00+00:00"),
    ("period", "Europe/Berlin", NOW, "2026-04-01T00:00:00+02:00"),
    ("period", "UTC", "2026-12-31T23:59:59.999999+00:00", "2027-01-01T00:00:00+00:00"),
    # A date is its end.
    ("2026-03-29", "Europe/Berlin", NOW, "2026-03-30T00:00:00+02:00"),
    ("2026-03-28", "UTC", NOW, "2026-03-29T00:00:00+00:00"),
    ("2026-10-25", "Europe/Berlin", NOW, "2026-10-26T00:00:00+01:00"),
    ("2027-03-28", "UTC", NOW, "2027-03-29T00:00:00+00:00"),
    # An instant is itself.
    ("2026-03-28T23:30:00.000001Z", "Asia/Tokyo", NOW, "2026-03-28T23:30:00.000001+00:00"),
    ("2026-03-30T01:00:00+02:00", "UTC", NOW, "2026-03-29T23:00:00+00:00"),
    ("2027-03-29T23:30:00Z", "UTC", NOW, "2027-03-29T23:30:00+00:00"),
    # In the future, within a year.
    ("2026-03-28T23:30:00Z", "UTC", NOW, "must lie in the future"),
    ("2026-03-28", "Europe/Berlin", NOW, "must lie in the future"),
    ("2025-01-01", "UTC", NOW, "must lie in the future"),
    ("0001-01-01", "UTC", NOW, "must lie in the future"),
    ("2027-03-29T23:30:00.000001Z", "UTC", NOW, "must lie within a year"),
    ("2027-03-30", "UTC", NOW, "must lie within a year"),
    ("9999-12-31", "UTC", NOW, "must lie within a year"),
    ("9999-12-31T23:59:59-12:00", "UTC", NOW, "must lie within a year"),
    # Nothing else.
    ("", "UTC", NOW, "must be"),
    ("month", "UTC", NOW, "must be"),
    ("2026-02-30", "UTC", NOW, "must be"),
    ("2026-13-01T00:00:00Z", "UTC", NOW, "must be"),
    ("2026-04-01T00:00:00", "UTC", NOW, "must be"),
    ("0000-00-00", "UTC", NOW, "must be"),
    ("20260401", "UTC", NOW, "must be"),
    ("٢٠٢٦-٠٤-٠١", "UTC", NOW, "must be"),
    ("2026-04-01\n", "UTC", NOW, "must be"),
]


@pytest.mark.parametrize(("written", "zone", "now", "expected"), EXPIRIES)
def test_an_expiry_is_an_instant_to_come(written: str, zone: str, now: str, expected: str) -> None:
    calendar, at = Calendar(ZoneInfo(zone)), datetime.fromisoformat(now)
    if expected.startswith("must"):
        with pytest.raises(InvalidExpiry, match=expected):
            expiry(written, at, calendar)
        return
    found = expiry(written, at, calendar)
    assert found == datetime.fromisoformat(expected)
    assert found.utcoffset() == datetime.fromisoformat(NOW).utcoffset()
