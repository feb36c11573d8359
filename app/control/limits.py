"""Limits: how the limits of an owner are read from a body, set, and recorded.

Owns the checks of limits as admins and members write them, and the audit event of a change. Owns no
SQL (see `store.catalogue`) and no total (see `store.usage`).

Invariants: an amount is exact or refused; a change of limits is one event, with what it was and
what it is; limits that are not named stay as they are.
"""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Final

from msgspec import UNSET, UnsetType

from app.control import wire
from app.control.desk import Change
from app.control.errors import invalid, misfit
from app.control.wire import Input
from app.core.ledger import AccountKey, Meter, OwnerKind, account_key
from app.core.money import AMOUNT_TOKENS_MAX, nano_to_usd
from app.core.windows import LIFETIME, InvalidWindow, Window, check_window, rolling
from app.store import catalogue
from app.store.catalogue import LimitRecord

LIMITS_MAX: Final = 20
"""Limits of one owner: each is an account that every call of it is charged to."""

LimitName = tuple[Meter, Window]
QUOTA: Final[dict[Meter, str]] = {
    "tokens": "quota_tokens_per_month",
    "usd": "quota_cost_usd_per_month",
}
"""The fields that are short for the limits of a month."""
BUDGET: Final[LimitName] = ("tokens", LIFETIME)


class LimitInput(Input):
    """A limit: an amount of tokens (a number) or of USD (a decimal string) for each window."""

    meter: Meter
    window: str
    amount: Decimal


def read_window(field: str, name: str, owner: OwnerKind) -> Window:
    """Check the window of a limit or a total: only those of keys roll."""
    try:
        window = check_window(name)
    except InvalidWindow as error:
        raise misfit(field, error) from None
    if owner != "key" and rolling(window) is not None:
        raise invalid(
            field, "window_rolls", "can roll for keys only: use hour, day, month or lifetime"
        )
    return window


def read_limits(asked: Sequence[LimitInput], owner: OwnerKind) -> dict[LimitName, int]:
    """Check limits, and turn their amounts into tokens and nano-USD."""
    if len(asked) > LIMITS_MAX:
        raise invalid("limits", "limits_at_most", "must be at most {most}", most=LIMITS_MAX)
    limits: dict[LimitName, int] = {}
    for n, limit in enumerate(asked):
        field = f"limits[{n}]"
        window = read_window(f"{field}.window", limit.window, owner)
        if (limit.meter, window) in limits:
            raise invalid(
                field,
                "limit_twice",
                "limits {meter} by the {window} a second time",
                meter=limit.meter,
                window=window,
            )
        limits[limit.meter, window] = read_amount(f"{field}.amount", limit.meter, limit.amount)
    return limits


def read_amount(field: str, meter: Meter, amount: Decimal) -> int:
    """Check an amount, and turn it into tokens or nano-USD."""
    if meter == "usd":
        nano = wire.cap_nano(field, amount)
        assert nano is not None, "only null is none"
        return nano
    # In this order: a number of a million digits is not written out first.
    if not amount.is_finite() or not 0 <= amount <= AMOUNT_TOKENS_MAX:
        raise invalid(
            field, "tokens_between", "must be from 0 to {most} tokens", most=AMOUNT_TOKENS_MAX
        )
    if amount != amount.to_integral_value():
        raise invalid(field, "tokens_whole", "must be a whole number of tokens")
    return int(amount)


def read_quotas(
    tokens: int | UnsetType | None, usd: Decimal | UnsetType | None
) -> dict[Meter, int | None]:
    """Check the monthly quotas that are named, and turn them into tokens and nano-USD."""
    quotas: dict[Meter, int | None] = {}
    if tokens is not UNSET:
        quotas["tokens"] = wire.cap_tokens(QUOTA["tokens"], tokens)
    if usd is not UNSET:
        quotas["usd"] = wire.cap_nano(QUOTA["usd"], usd)
    return quotas


def read_budget(value: int | None, limits: Mapping[LimitName, int | None]) -> int | None:
    """Check a token budget: a limit of the lifetime's tokens, of which 0 is none."""
    budget = wire.cap_tokens("token_budget", value) or None
    if budget is not None and limits.get(BUDGET, budget) != budget:
        raise invalid(
            "token_budget",
            "budget_disagrees",
            "is not what `limits` says of the lifetime's tokens",
        )
    return budget


def shown(meter: Meter, amount: int | None) -> int | str | None:
    """Write an amount as people read it."""
    return nano_to_usd(amount) if meter == "usd" and amount is not None else amount


async def set_limits(
    change: Change,
    owner: OwnerKind,
    owner_id: str,
    known: Sequence[LimitRecord],
    wanted: Mapping[LimitName, int | None],
    *,
    charged: Sequence[AccountKey],
    reason: str | None,
) -> None:
    """Set those limits of an owner that differ from what is known; None lifts one.

    `charged` are accounts that every call of the owner is charged to already.
    """
    calendar = change.desk.deps.calendar
    former = {(limit.meter, limit.window): limit.amount for limit in known}
    before: dict[str, object] = {}
    after: dict[str, object] = {}
    amounts: dict[tuple[AccountKey, Meter], int | None] = {}
    for (meter, window), amount in wanted.items():
        was = former.get((meter, window))
        if amount == was:
            continue
        account = account_key(owner, owner_id, window, calendar.period(window, change.at))
        amounts[account, meter] = amount
        before[f"{meter} per {window}"] = shown(meter, was)
        after[f"{meter} per {window}"] = shown(meter, amount)
    await catalogue.set_limits(change.connection, amounts, change.at, charged=charged)
    if after:
        await change.record(
            f"{owner}_limits_updated", owner, owner_id, before=before, after=after, reason=reason
        )
