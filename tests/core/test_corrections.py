"""Corrections: how much may be corrected, what they tell, and what a call priced again is due."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from app.core.alerts import (
    AllocationExhausted,
    CostThresholdCrossed,
    Rule,
    TokenThresholdCrossed,
)
from app.core.corrections import Due, Priced, Undue, bounds, reprice, told
from app.core.ledger import AccountKey, Meter, OwnerKind, RollingAccount, Told
from app.core.money import AMOUNT_NANO_MAX, AMOUNT_TOKENS_MAX
from app.core.pricing import Price, Rate, make_price
from app.core.windows import Period, Window

AT = datetime(2026, 3, 10, tzinfo=UTC)
TOP = AMOUNT_NANO_MAX

# By hand

BOUNDS: list[tuple[str, list[tuple[RollingAccount, bool]], Meter, int, int]] = [
    # What is shown, accounts (and whether it has slid out of them), meter -> least, most
    ("no more is taken than was used", [(RollingAccount("a", 7, 50), False)], "usd", -50, TOP - 50),
    ("tokens are looked at by themselves", [(RollingAccount("a", 7, 50), False)], "tokens",
     -7, AMOUNT_TOKENS_MAX - 7),
    ("the account with the least decides", [(RollingAccount("a", 0, 50), False), (RollingAccount("b", 0, 9), False)],
     "usd", -9, TOP - 50),
    ("what is held is not there to be taken", [(RollingAccount("a", 1, 1, 90, 90), False)], "usd",
     -1, TOP - 1),
    ("of a rolling window only what is left in it is taken",
     [(RollingAccount("a", 0, 50, slid_to=AT, slid_nano=45), False)], "usd", -5, TOP - 50),
    ("of what has slid out only that is taken",
     [(RollingAccount("a", 50, 0, slid_to=AT, slid_tokens=45), True)], "tokens", -45, TOP - 50),
    ("nothing is taken where nothing is", [(RollingAccount("a", 0, -3), False)], "usd", 0, TOP),
    ("overrun that was recorded takes room", [(RollingAccount("a", 0, 5, overrun_nano=TOP), False)], "usd",
     -5, 0),
    ("what is more than full takes no more", [(RollingAccount("a", 0, TOP + 9), False)], "usd", -TOP, 0),
    ("nobody corrects more than the largest amount", [(RollingAccount("a", 0, 2 * TOP), False)], "usd",
     -TOP, 0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("accounts", "meter", "least", "most"), [row[1:] for row in BOUNDS], ids=[r[0] for r in BOUNDS]
)
def test_a_correction_stays_within_what_the_accounts_take(
    accounts: list[tuple[RollingAccount, bool]], meter: Meter, least: int, most: int
) -> None:
    assert bounds(accounts, meter) == (least, most)


# What there is to tell

JANUARY = Period(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC))
TODAY = Period(AT, AT + timedelta(days=1))


def moved(owner: OwnerKind, window: Window, was: int, now: int, **limits: int) -> list[Told]:
    key = AccountKey("a", owner, owner, window, JANUARY.start, JANUARY.end)
    rules = [
        Rule("ten", owner, "usd", window, 10),
        Rule("half", owner, "tokens", window, 5000, percent=True),
        Rule("hourly", owner, "usd", "hour", 10),
    ]
    before, after = RollingAccount("a", was, was), RollingAccount("a", now, now)
    return told(key, before, after, limits, rules, TODAY, AT)  # type: ignore[arg-type]


TOLD: list[tuple[str, OwnerKind, Window, int, int, dict[str, int], list[str | None]]] = [
    # What is shown, the account, used before and after, its limits -> whose rules are told
    ("a threshold that is crossed is told of", "key", "day", 9, 10, {}, ["ten"]),
    ("one that was crossed is not", "key", "day", 10, 11, {}, []),
    ("nor one that is not reached", "key", "day", 1, 9, {}, []),
    ("nor one that is left", "key", "day", 11, 5, {}, []),
    ("nor that of another window", "key", "month", 1, 9, {"usd": 9}, []),
    ("a part of a limit is a threshold", "key", "day", 1, 9, {"tokens": 18}, ["half"]),
    ("an allocation may be used up", "allocation", "month", 1, 9, {"usd": 9}, [None]),
    ("in each meter", "allocation", "month", 1, 30, {"usd": 30, "tokens": 30},
     ["half", None, "ten", None]),
    ("a rolling window is told of by the day", "key", "rolling:2h", 1, 10, {}, ["ten"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("owner", "window", "was", "now", "limits", "rules"),
    [row[1:] for row in TOLD],
    ids=[row[0] for row in TOLD],
)
def test_what_a_correction_crosses_is_told(
    owner: OwnerKind,
    window: Window,
    was: int,
    now: int,
    limits: dict[str, int],
    rules: list[str | None],
) -> None:
    found = moved(owner, window, was, now, **limits)
    assert [one.rule_id for one in found] == rules
    for one in found:
        body = one.event.body
        assert isinstance(body, TokenThresholdCrossed | CostThresholdCrossed | AllocationExhausted)
        assert body.timestamp == AT
        if not isinstance(body, AllocationExhausted):
            assert (body.key_id, body.allocation_id) == (
                owner if owner == "key" else None,
                owner if owner == "allocation" else None,
            )
            assert body.period == (AT if window == "rolling:2h" else JANUARY.start)


# Priced again


def price(id: str, from_: datetime, **rates: str) -> Price:
    return make_price(id, "m", from_, [Rate(unit, Decimal(usd)) for unit, usd in rates.items()])


USD = 10**9
BEFORE, AFTER = AT - timedelta(days=1), AT + timedelta(days=1)
DOLLAR = price("dollar", BEFORE, input_token="1")
DIME = price("dime", AT, input_token="0.1")
LATER = price("later", AFTER, input_token="9")
PAGES = price("pages", BEFORE, page="1")
SECONDS = price("seconds", BEFORE, second="1")
TOKENS = price("tokens", BEFORE, input_audio_token="1", output_token="2")
BOTH = price("both", BEFORE, second="1", output_token="2")


def call(usage: dict[str, int | Decimal], nano: int | None, price_id: str | None, **more: object):  # type: ignore[no-untyped-def]
    endpoint = more.pop("endpoint", "chat/completions")
    return Priced(endpoint, AT, usage, nano, price_id, **more)  # type: ignore[arg-type]


def session(usage: dict[str, int | Decimal], nano: int | None, price_id: str | None):  # type: ignore[no-untyped-def]
    return call(usage, nano, price_id, endpoint="realtime")


TWO = {"input_token": 2}

REPRICED: list[tuple[str, Priced, list[Price], Due | Undue]] = [
    # What is shown, the call, the model's versions -> what is due
    ("an unpriced call costs what its model costs", call(TWO, None, None), [DOLLAR],
     Due(2 * USD, -1, "dollar")),
    ("a call at a wrong price costs the difference", call(TWO, 2 * USD, "dollar"), [DOLLAR, DIME],
     Due(-1_800_000_000, 0, "dime")),
    ("a later version is not in force yet", call(TWO, 2 * USD, "dollar"), [DOLLAR, LATER],
     "unchanged"),
    ("nothing is due at the same price", call(TWO, 2 * USD, "dollar"), [DOLLAR], "unchanged"),
    ("nothing is due a second time",
     call(TWO, None, None, adjusted_nano=2 * USD, adjusted_unpriced=-1), [DOLLAR], "unchanged"),
    ("a price that changes again brings the rest, and no second call",
     call(TWO, None, None, adjusted_nano=2 * USD, adjusted_unpriced=-1), [DOLLAR, DIME],
     Due(-1_800_000_000, 0, "dime")),
    ("what was corrected by hand counts", call(TWO, None, None, adjusted_nano=USD), [DOLLAR],
     Due(USD, -1, "dollar")),
    ("a call that turns out free is unpriced no more", call(TWO, None, None),
     [price("free", BEFORE, input_token="0")], Due(0, -1, "free")),
    ("without a version nothing is known", call(TWO, None, None), [], "unpriced"),
    ("a version that comes later prices nothing", call(TWO, None, None), [LATER], "unpriced"),
    ("a version without the unit prices nothing", call(TWO, None, None), [PAGES], "unpriced"),
    ("a call that used nothing costs nothing", call({}, 0, None), [DOLLAR], "unchanged"),
    ("nor does it without any price", call({}, 0, None), [], "unchanged"),
    ("a call recovered at its hold has no usage to be priced by", call({}, 2 * USD, "dollar"),
     [DOLLAR], "usage_unknown"),
    ("nor has an unpriced one", call({}, None, None), [DOLLAR], "usage_unknown"),
    ("what came after a recovery came without usage", call(TWO, 2 * USD, "dollar", late=True),
     [DOLLAR, DIME], "usage_unknown"),
    ("a cost that does not follow from the usage is let be", call(TWO, 5 * USD, "dollar"),
     [DOLLAR, DIME], "usage_unknown"),
    ("a price of another model explains nothing", call(TWO, 2 * USD, "other"), [DOLLAR, DIME],
     "usage_unknown"),
    ("a fraction is rounded up once", call({"second": Decimal("0.5")}, None, None),
     [price("s", BEFORE, second="0.000000001")], Due(1, -1, "s")),
    # Sessions without a price are measured in seconds and in tokens, and paid by one of them.
    ("a session is paid by the second", session({"second": 3, "output_token": 4}, None, None),
     [SECONDS], Due(3 * USD, -1, "seconds")),
    ("a session is paid by the token", session({"second": 3, "output_token": 4}, None, None),
     [TOKENS], Due(8 * USD, -1, "tokens")),
    ("seconds stand for the audio that is heard",
     session({"second": 3, "input_audio_token": 30, "output_token": 4}, None, None), [BOTH],
     Due(11 * USD, -1, "both")),
    ("but not for what has no rate",
     session({"second": 3, "input_image_token": 30}, None, None), [BOTH], "unpriced"),
    ("a session that was not measured in seconds is not paid by them",
     session({"output_token": 4}, None, None), [SECONDS], "unpriced"),
    ("a session that was measured in seconds alone is not paid by tokens",
     session({"second": 3}, 3 * USD, "seconds"), [SECONDS, price("t", AT, output_token="2")],
     "unpriced"),
    ("a session of two models is let be", session({"output_token": 4}, 99, "tokens"),
     [TOKENS], "usage_unknown"),
    ("a session at a wrong price is priced again", session({"output_token": 4}, 8 * USD, "tokens"),
     [TOKENS, price("t", AT, output_token="1")], Due(-4 * USD, 0, "t")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("priced", "versions", "due"), [row[1:] for row in REPRICED], ids=[row[0] for row in REPRICED]
)
def test_what_is_due_when_a_call_is_priced_again(
    priced: Priced, versions: list[Price], due: Due | Undue
) -> None:
    assert reprice(priced, versions) == due
