"""Invitations: what a link by which a member chooses a password is worth at some time.

Owns how long such a link lasts, what status it is in, and what may still be done with it. Owns no
member, no secret and no clock.

Invariants: a link that was accepted or revoked stays so; one is good until the instant that it is
shown to expire, and from that instant on it is not.
"""

from datetime import datetime, timedelta
from typing import Final, Literal

Purpose = Literal["join", "reset"]
"""`join`: to a first password; `reset`: to another one, for who forgot theirs."""

InvitationStatus = Literal["pending", "accepted", "expired", "revoked"]

DAYS_DEFAULT: Final = 7
DAYS_MAX: Final = 30


def purpose_of(has_password: bool) -> Purpose:
    """Return what a link is to a member."""
    return "reset" if has_password else "join"


def expiry(issued_at: datetime, days: int) -> datetime:
    """Return when a link that is made now is over."""
    return issued_at + timedelta(days=days)


def renewed_expiry(issued_at: datetime, expires_at: datetime, at: datetime) -> datetime:
    """Return when the next link is over: it lasts as long as the one before."""
    return at + (expires_at - issued_at)


def status_of(
    accepted_at: datetime | None,
    revoked_at: datetime | None,
    expires_at: datetime,
    at: datetime,
) -> InvitationStatus:
    """Return the status of an invitation at an instant."""
    if accepted_at is not None:
        return "accepted"
    if revoked_at is not None:
        return "revoked"
    return "expired" if expires_at <= at else "pending"


def may_renew(status: InvitationStatus) -> bool:
    """Tell whether another link may be made in place of one: what is over for good stays over."""
    return status in ("pending", "expired")
