"""Own keys: members may tighten the limits of their keys, and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from app.core.own_keys import loosened, outlives

NOW = datetime(2026, 5, 5, 12, tzinfo=UTC)
TICK = timedelta(microseconds=1)

DAY, MONTH, BUDGET = ("usd", "day"), ("usd", "month"), ("tokens", "lifetime")


@pytest.mark.parametrize(
    ("former", "wanted", "looser"),
    [
        # Nothing is asked for, or nothing that changes anything.
        ({}, {}, None),
        ({DAY: 5}, {}, None),
        ({DAY: 5}, {DAY: 5}, None),
        ({DAY: 0}, {DAY: 0}, None),
        ({}, {DAY: None}, None),
        # A limit more, or a lower one.
        ({}, {DAY: 5}, None),
        ({}, {DAY: 0}, None),
        ({DAY: 5}, {MONTH: 10**15}, None),
        ({DAY: 5}, {DAY: 4}, None),
        ({DAY: 5}, {DAY: 0}, None),
        ({DAY: 5, BUDGET: 100}, {DAY: 1, BUDGET: 99, MONTH: 7}, None),
        # A higher one, or one less.
        ({DAY: 5}, {DAY: 6}, DAY),
        ({DAY: 0}, {DAY: 1}, DAY),
        ({DAY: 5}, {DAY: None}, DAY),
        ({DAY: 0}, {DAY: None}, DAY),
        ({BUDGET: 100}, {BUDGET: None}, BUDGET),
        # What is tightened beside it does not pay for it.
        ({DAY: 5, BUDGET: 100}, {DAY: 0, BUDGET: 101}, BUDGET),
        ({DAY: 5, BUDGET: 100}, {MONTH: 1, DAY: 6, BUDGET: 101}, DAY),
    ],
)
def test_a_limit_is_added_or_lowered_but_neither_raised_nor_lifted(
    former: dict[tuple[str, str], int],
    wanted: dict[tuple[str, str], int | None],
    looser: tuple[str, str] | None,
) -> None:
    assert loosened(former, wanted) == looser


@pytest.mark.parametrize(
    ("former", "wanted", "later"),
    [
        (None, None, False),
        (None, NOW, False),
        (NOW, NOW, False),
        (NOW, NOW - TICK, False),
        (NOW, NOW + TICK, True),
        (NOW, None, True),
    ],
)
def test_a_key_expires_earlier_but_not_later(
    former: datetime | None, wanted: datetime | None, later: bool
) -> None:
    assert outlives(former, wanted) is later
