"""Money: integer nano-USD inside, decimal strings outside.

Owns the two conversions between what people write ("4.90") and what the books hold
(4_900_000_000), and the one rule of rounding. Owns no rate and no price: see `pricing`.

Invariants: no float ever takes part; an amount fits PostgreSQL's BIGINT; what was written comes
back with the same value.
"""

from decimal import Context, Decimal, Inexact, InvalidOperation

from app.core.faults import Fault

NANO_PER_USD = 1_000_000_000
BIGINT_MAX = 2**63 - 1
AMOUNT_NANO_MAX = 10**18
"""The largest cap: a billion USD. Sums of many amounts below it stay inside BIGINT."""
AMOUNT_TOKENS_MAX = 10**18

# Arithmetic that raises rather than lose a digit, with room for every amount that is allowed.
_EXACT = Context(prec=40, traps=[Inexact, InvalidOperation])
_NANO = Decimal("1e-9")


class InvalidAmount(Fault):
    """An amount that cannot be booked; the message says what to write instead."""


def usd_to_nano(value: Decimal | int | str) -> int:
    """Turn USD as a person or a JSON document wrote it into nano-USD.

    Raises `InvalidAmount` for anything that is not a number from 0 to a billion with at most nine
    decimal places: a cap that is silently rounded is a cap that nobody set.
    """
    if isinstance(value, bool):
        raise InvalidAmount("usd_not_bool", "must be a decimal number of USD, not true or false")
    try:
        amount = Decimal(value)
    except (InvalidOperation, ValueError, TypeError):
        raise InvalidAmount(
            "usd_unreadable", "must be a decimal number of USD such as 12.50"
        ) from None
    if not amount.is_finite():
        raise InvalidAmount("usd_not_finite", "must be a finite number of USD")
    if amount < 0:
        raise InvalidAmount("usd_negative", "must be 0 or more USD")
    if amount > AMOUNT_NANO_MAX // NANO_PER_USD:
        raise InvalidAmount("usd_too_much", "must be at most 1000000000 USD")
    try:
        return int(amount.quantize(_NANO, context=_EXACT).scaleb(9))
    except Inexact:
        raise InvalidAmount("decimals", "must have at most {most} decimal places", most=9) from None


def nano_to_usd(nano: int) -> str:
    """Write nano-USD as a decimal string: every digit that counts, and at least two places."""
    sign = "-" if nano < 0 else ""
    whole, part = divmod(abs(nano), NANO_PER_USD)
    places = f"{part:09d}".rstrip("0")
    return f"{sign}{whole}.{places:0<2}"


def ceil_div(numerator: int, denominator: int) -> int:
    """Divide and round up: how a cost becomes nano-USD, once per call."""
    return -(-numerator // denominator)
