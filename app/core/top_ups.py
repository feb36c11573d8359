"""Top-ups: until when a temporary raise of a cap lasts.

Owns how an expiry is written and the instant that it stands for. Owns no amount (the ledger adds
those that are in force to the cap) and no clock.

Invariants: a top-up ends in the future and within a year; days and months are those of the
allocation's billing zone.
"""

import re
from datetime import UTC, date, datetime, time, timedelta

import msgspec

from app.core.faults import Fault
from app.core.windows import DAY, Calendar, period_of

YEAR: timedelta = 366 * DAY

_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


class InvalidExpiry(Fault):
    """No instant at which a top-up can end; the message says what to write instead."""


def expiry(expires: str, at: datetime, calendar: Calendar) -> datetime:
    """Return the instant that an expiry, as people write it, stands for at the instant `at`.

    `day` is the end of today, `period` the end of the month, a date its end, each in the calendar's
    zone; anything else is an instant with its offset. Raises `InvalidExpiry`.
    """
    end = _instant(expires, at, calendar)
    if end <= at:
        raise InvalidExpiry("not_in_future", "must lie in the future")
    if end > at + YEAR:
        raise InvalidExpiry("beyond_a_year", "must lie within a year")
    return end.astimezone(UTC)


def _instant(expires: str, at: datetime, calendar: Calendar) -> datetime:
    if expires in ("day", "period"):
        end = calendar.period("day" if expires == "day" else "month", at).end
        assert end is not None, "days and months end"
        return end
    try:
        if not _DATE.fullmatch(expires):
            instant = msgspec.convert(expires, datetime)
            if instant.tzinfo is not None:
                return instant
        else:
            noon = datetime.combine(date.fromisoformat(expires), time(12), calendar.zone)
            if abs(noon - at) > YEAR + DAY:
                # Refused either way, and the last date of all has no end.
                return noon
            end = period_of("day", noon, calendar.zone).end
            assert end is not None, "days end"
            return end
    except ValueError:
        pass
    raise InvalidExpiry(
        "expiry_unreadable",
        'must be "day", "period", a date such as 2026-01-31, or an instant with its offset such '
        "as 2026-01-31T18:00:00Z",
    )
