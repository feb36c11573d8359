"""Money: what people write becomes nano-USD exactly, or is refused; and comes back the same.

To add a scenario, add a row: what was written, and the nano-USD it is (or why it is refused).
"""

from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.core.money import (
    AMOUNT_NANO_MAX,
    BIGINT_MAX,
    NANO_PER_USD,
    InvalidAmount,
    ceil_div,
    nano_to_usd,
    usd_to_nano,
)


@pytest.mark.parametrize(
    ("written", "nano"),
    [
        # written                        nano-USD
        ("0", 0),
        ("0.00", 0),
        ("-0", 0),
        ("4.90", 4_900_000_000),
        ("0.000000001", 1),
        ("0.1", 100_000_000),
        ("0.6619999999", None),
        ("1e3", 1_000_000_000_000),
        ("2E-9", 2),
        ("1.50000000000000000000000000000000000000000000", 1_500_000_000),
        ("1000000000", AMOUNT_NANO_MAX),
        ("1000000000.000000001", None),
        (12, 12_000_000_000),
        (Decimal("12.50"), 12_500_000_000),
        # More digits than decimal arithmetic keeps by default must not vanish by rounding.
        ("1.00000000000000000000000000000000001", None),
        ("999999999.1234567890000000000000000001", None),
        ("1e-10", None),
        ("1e-2000000", None),
        ("0e-2000000", 0),
        # Not an amount of money at all.
        ("-0.01", None),
        (-1, None),
        ("NaN", None),
        ("sNaN", None),
        ("Infinity", None),
        ("-Infinity", None),
        (True, None),
        (False, None),
        (10**30, None),
        ("1e999999999", None),
        ("", None),
        ("five", None),
        ("$5", None),
        ("1,50", None),
        (None, None),
        ([1], None),
        ({}, None),
        (0.1, None),
    ],
    ids=repr,
)
def test_an_amount_is_booked_as_written_or_refused(written: object, nano: int | None) -> None:
    if nano is None:
        with pytest.raises(InvalidAmount, match=r"^must "):
            usd_to_nano(written)  # type: ignore[arg-type]
    else:
        booked = usd_to_nano(written)  # type: ignore[arg-type]
        assert (booked, type(booked)) == (nano, int)


@pytest.mark.parametrize(
    ("nano", "shown"),
    [
        (0, "0.00"),
        (1, "0.000000001"),
        (400, "0.0000004"),
        (100_000_000, "0.10"),
        (120_000_000, "0.12"),
        (123_000_000, "0.123"),
        (NANO_PER_USD, "1.00"),
        (4_900_000_000, "4.90"),
        (-1, "-0.000000001"),
        (-1_500_000_000, "-1.50"),
        (AMOUNT_NANO_MAX, "1000000000.00"),
        (BIGINT_MAX, "9223372036.854775807"),
    ],
)
def test_an_amount_is_shown_with_every_digit_that_counts(nano: int, shown: str) -> None:
    assert nano_to_usd(nano) == shown


@given(st.integers(0, AMOUNT_NANO_MAX))
def test_what_is_shown_is_booked_as_the_same_amount(nano: int) -> None:
    assert usd_to_nano(nano_to_usd(nano)) == nano


@given(st.integers(-BIGINT_MAX, BIGINT_MAX))
def test_what_is_shown_is_worth_what_is_booked(nano: int) -> None:
    assert Decimal(nano_to_usd(nano)) * NANO_PER_USD == nano


@given(st.decimals(allow_nan=True, allow_infinity=True) | st.text() | st.floats() | st.integers())
@example(Decimal("1E-1000000"))
def test_no_amount_is_rounded_or_breaks_the_conversion(written: object) -> None:
    try:
        nano = usd_to_nano(written)  # type: ignore[arg-type]
    except InvalidAmount:
        return
    # Comparing decimals is exact whatever their length, unlike computing with them.
    assert Decimal(nano).scaleb(-9) == Decimal(written)  # type: ignore[arg-type]
    assert 0 <= nano <= AMOUNT_NANO_MAX


@pytest.mark.parametrize(
    ("numerator", "denominator", "quotient"),
    [(0, 3, 0), (1, 3, 1), (3, 3, 1), (4, 3, 2), (10**30 + 1, 10**12, 10**18 + 1)],
)
def test_a_cost_is_rounded_up(numerator: int, denominator: int, quotient: int) -> None:
    assert ceil_div(numerator, denominator) == quotient
