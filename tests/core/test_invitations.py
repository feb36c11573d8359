"""Invitations: what a link is worth at some time, and what may still be done with it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from app.core.invitations import (
    InvitationStatus,
    expiry,
    may_renew,
    purpose_of,
    renewed_expiry,
    status_of,
)

NOW = datetime(2026, 5, 5, 12, tzinfo=UTC)
TICK, HOUR, DAY = timedelta(microseconds=1), timedelta(hours=1), timedelta(days=1)


@pytest.mark.parametrize(
    ("accepted_at", "revoked_at", "expires_at", "status"),
    [
        # Good until the instant that is shown, and not at that instant.
        (None, None, NOW + DAY, "pending"),
        (None, None, NOW + TICK, "pending"),
        (None, None, NOW, "expired"),
        (None, None, NOW - DAY, "expired"),
        # What was accepted stays so, whatever time does.
        (NOW - HOUR, None, NOW + DAY, "accepted"),
        (NOW - HOUR, None, NOW - TICK, "accepted"),
        # And so does what was revoked.
        (None, NOW - HOUR, NOW + DAY, "revoked"),
        (None, NOW - HOUR, NOW - TICK, "revoked"),
        (None, NOW, NOW, "revoked"),
    ],
)
def test_an_invitation_is_in_one_state_at_a_time(
    accepted_at: datetime | None,
    revoked_at: datetime | None,
    expires_at: datetime,
    status: InvitationStatus,
) -> None:
    assert status_of(accepted_at, revoked_at, expires_at, NOW) == status


@pytest.mark.parametrize(
    ("status", "may"),
    [("pending", True), ("expired", True), ("accepted", False), ("revoked", False)],
)
def test_what_is_over_for_good_is_not_renewed(status: InvitationStatus, may: bool) -> None:
    assert may_renew(status) is may


def test_whoever_has_a_password_chooses_another_one_and_others_join() -> None:
    assert (purpose_of(True), purpose_of(False)) == ("reset", "join")


def test_a_link_lasts_for_days_and_the_next_one_as_long() -> None:
    assert expiry(NOW, 7) == NOW + 7 * DAY
    assert renewed_expiry(NOW - 3 * DAY, NOW - DAY, NOW) == NOW + 2 * DAY
