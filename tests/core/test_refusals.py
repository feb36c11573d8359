"""Refusals: a closed set in order of precedence, each recorded under an outcome.

To add a reason, add it to `app.core.refusals` and a row here.
"""

from datetime import UTC, datetime
from typing import get_args

import pytest

from app.core.refusals import (
    DELIVERED,
    OUTCOME_OF,
    LimitDocument,
    Outcome,
    Reason,
    Refusal,
    Shortfall,
    limit_document,
)

# In order of precedence: the reason as clients see it, and the outcome of the call.
REASONS: list[tuple[str, str | None]] = [
    ("invalid_api_key", None),
    ("model_mismatch", "rejected_model_mismatch"),
    ("model_unpriced", "rejected_model_mismatch"),
    ("member_disabled", "rejected_inactive"),
    ("allocation_paused", "rejected_inactive"),
    ("allocation_quarantined", "rejected_inactive"),
    ("allocation_revoked", "rejected_inactive"),
    ("chat_spend_limit_exceeded", "rejected_chat_limit_exceeded"),
    ("token_budget_exceeded", "rejected_quota_exceeded"),
    ("quota_exceeded", "rejected_quota_exceeded"),
    ("cost_quota_exceeded", "rejected_cost_quota_exceeded"),
    ("quota_reserved", "rejected_quota_reserved"),
    ("provider_unavailable", "rejected_unavailable"),
    ("ledger_unavailable", "rejected_unavailable"),
]


def test_reasons_stand_in_order_of_precedence_and_each_has_its_outcome() -> None:
    assert [(reason.value, OUTCOME_OF[reason]) for reason in Reason] == REASONS


def test_a_refusal_is_recorded_as_a_rejection_and_never_as_delivered() -> None:
    recorded = {outcome for outcome in OUTCOME_OF.values() if outcome is not None}
    assert all(outcome.startswith("rejected_") for outcome in recorded)
    assert recorded <= set(get_args(Outcome))
    assert not recorded & DELIVERED


def test_what_delivered_something_is_an_outcome() -> None:
    assert set(get_args(Outcome)) >= DELIVERED
    assert not any(outcome.startswith("rejected_") for outcome in DELIVERED)


@pytest.mark.parametrize(
    ("amount", "used", "held", "remaining"),
    [(100, 0, 0, 100), (100, 60, 30, 10), (100, 60, 40, 0), (100, 100, 20, 0), (0, 0, 0, 0)],
)
def test_what_remains_is_neither_used_nor_held_and_never_negative(
    amount: int, used: int, held: int, remaining: int
) -> None:
    shortfall = Shortfall("pool", "p", "usd", "month", amount, used, held, 1, None)
    assert shortfall.remaining == remaining


@pytest.mark.parametrize(
    ("meter", "amount", "used", "held", "needed", "remaining"),
    [
        # Money is written as decimal strings, tokens are counted.
        ("usd", "0.0000001", "0.00000002", "0.00000003", "0.00000006", "0.00000005"),
        ("tokens", 100, 20, 30, 60, 50),
    ],
)
def test_a_shortfall_is_written_as_people_read_it(
    meter: str,
    amount: int | str,
    used: int | str,
    held: int | str,
    needed: int | str,
    remaining: int | str,
) -> None:
    resets_at = datetime(2026, 2, 1, tzinfo=UTC)
    shortfall = Shortfall("pool", "p", meter, "month", 100, 20, 30, 60, resets_at)
    assert limit_document(shortfall) == LimitDocument(
        "pool", "p", meter, "month", amount, used, held, needed, remaining, resets_at
    )


def test_a_refusal_needs_no_more_than_a_reason() -> None:
    refusal = Refusal(Reason.INVALID_KEY)
    assert (refusal.shortfall, refusal.detail) == (None, "")
