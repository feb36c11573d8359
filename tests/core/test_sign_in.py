"""Sign-in: when a session ends, and until when nobody may try."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from app.core.sign_in import locked_until, session_end

NOW = datetime(2026, 5, 5, 12, tzinfo=UTC)
TICK = timedelta(microseconds=1)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def ago(*minutes: float) -> list[datetime]:
    return [NOW - minute * MINUTE for minute in minutes]


@pytest.mark.parametrize(
    ("began", "seen", "ends"),
    [
        # Nothing was done in it: 12 hours after it began.
        (NOW, NOW, NOW + 12 * HOUR),
        # Something was: 12 hours after that.
        (NOW - DAY, NOW, NOW + 12 * HOUR),
        (NOW - 6.5 * DAY, NOW, NOW + 12 * HOUR),
        # But 7 days after it began it is over.
        (NOW - 6.75 * DAY, NOW, NOW + 6 * HOUR),
        (NOW - 7 * DAY, NOW, NOW),
    ],
)
def test_a_session_ends_when_it_is_idle_and_for_good(
    began: datetime, seen: datetime, ends: datetime
) -> None:
    assert session_end(began + 7 * DAY, seen) == ends


@pytest.mark.parametrize(
    ("of_account", "of_address", "until"),
    [
        ([], [], None),
        (ago(1, 2, 3, 4), ago(1, 2, 3, 4), None),
        # The fifth for an account: until the first of them is a quarter of an hour ago.
        (ago(1, 2, 3, 4, 5), ago(1), NOW + 10 * MINUTE),
        (ago(0, 0, 0, 0, 0), [], NOW + 15 * MINUTE),
        # In any order, and whatever went before.
        (ago(5, 1, 3, 2, 4), [], NOW + 10 * MINUTE),
        (ago(14, 5, 4, 3, 2, 1), [], NOW + 10 * MINUTE),
        # Over to the very instant.
        ([NOW - 15 * MINUTE, *ago(1, 2, 3, 4)], [], None),
        ([NOW - 15 * MINUTE + TICK, *ago(1, 2, 3, 4)], [], NOW + TICK),
        # The twentieth from an address.
        ([], ago(*range(1, 15), *[0] * 5), None),
        ([], ago(*range(1, 15), *[0] * 6), NOW + MINUTE),
        # Whichever lasts longer.
        (ago(1, 2, 3, 4, 5), ago(*[2] * 20), NOW + 13 * MINUTE),
        (ago(1, 1, 1, 1, 1), ago(*[2] * 20), NOW + 14 * MINUTE),
    ],
)
def test_too_many_failures_lock_until_fewer_count(
    of_account: list[datetime], of_address: list[datetime], until: datetime | None
) -> None:
    assert locked_until(of_account, of_address, NOW) == until
