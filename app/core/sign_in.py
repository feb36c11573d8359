"""Sign-in: how long a session lasts, and how many wrong passwords are too many.

Owns the two ends of a session and the lockout. Owns no password, no session and no clock.

Invariants: a session ends a time after it began whatever is done in it, and sooner if nothing is;
an account is locked by its own failures only, and whoever waits until the instant that they are
told may try again.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

SESSION_LIFE = timedelta(days=7)
SESSION_IDLE = timedelta(hours=12)

FAILURES_WITHIN = timedelta(minutes=15)
ACCOUNT_FAILURES_MAX = 5
ADDRESS_FAILURES_MAX = 20


def session_end(expires_at: datetime, last_seen_at: datetime) -> datetime:
    """Return when a session ends if nothing more is done in it."""
    return min(expires_at, last_seen_at + SESSION_IDLE)


def locked_until(
    of_account: Sequence[datetime], of_address: Sequence[datetime], at: datetime
) -> datetime | None:
    """Return when to try again, after failures for an account and from an address; None: now."""
    ends = (
        _free_at(of_account, ACCOUNT_FAILURES_MAX),
        _free_at(of_address, ADDRESS_FAILURES_MAX),
    )
    return max((end for end in ends if end is not None and end > at), default=None)


def _free_at(failures: Sequence[datetime], most: int) -> datetime | None:
    """Return when there are fewer than `most` within the time that counts; None: always were."""
    return None if len(failures) < most else sorted(failures)[-most] + FAILURES_WITHIN
