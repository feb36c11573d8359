"""Rebalance: a pool's token caps are shared out by last month's use, and add up to the same.

To add a scenario, add a name and its allocations to `SCENARIOS`: id, cap, used, floor, then after
the arrow the cap it gets; `locked` and `service` are words in between, a cap of `-` is none.
"""

import inspect
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from itertools import permutations
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core import rebalance as module
from app.core.money import AMOUNT_TOKENS_MAX
from app.core.rebalance import CannotRebalance, Change, Rebalance, Share, is_due, rebalance
from app.core.windows import period_of

SCENARIOS = {
    "by last month's use": """
        ann   100  300   0  -> 300
        bob   300  100   0  -> 100
    """,
    "nothing changes where use was as the caps are": """
        ann   300  30    0  -> 300
        bob   100  10    0  -> 100
    """,
    "who used nothing ends with its floor, the rest goes by use": """
        ann   100  0    40  -> 40
        bob   100  10   40  -> 65
        cyd   100  30   40  -> 195
    """,
    "without a floor, with nothing": """
        ann   100  0     0  -> 0
        bob   100  1     0  -> 200
    """,
    "a floor may lower the parts of others below theirs": """
        ann   100  0   150  -> 150
        bob   100  55   70  -> 75
        cyd   100  45   75  -> 75
    """,
    "floors that are all there is": """
        ann   100  9    50  -> 50
        bob   100  1   150  -> 150
    """,
    "what is left over goes to the largest": """
        ann   100  10    0  -> 27
        bob     0  11    0  -> 30
        cyd     0  15    0  -> 43
    """,
    "… of equals to the first by id": """
        cyd    50  1     0  -> 33
        ann     0  1     0  -> 34
        bob    50  1     0  -> 33
    """,
    "ten billion tokens": """
        ann   10000000000  1           0  -> 3333333333
        bob   0            2           0  -> 6666666667
    """,
    "ten billion tokens by ten billion used": """
        ann   9999999999   9999999998  0  -> 9999999998
        bob   1            2           0  -> 2
    """,
    "as many tokens as a cap can be": """
        ann   333333333333333333  1000000000000000000  1  -> 999999999999999998
        bob   666666666666666667  1                    2  -> 2
    """,
    "a locked one, a service and an unlimited one keep theirs, and it is not shared": """
        ann   100  300           0  -> 150
        bob   100  100           0  -> 50
        cyd   500  999   locked  0  -> 500
        bot   700  0    service  9999  -> 700
        dan   -    999           0  -> -
        eve   0    5     locked  service  0  -> 0
    """,
    "nobody used anything: caps stay": """
        ann   100  0     0  -> 100
        bob   300  0   300  -> 300
    """,
    "… but for floors": """
        ann   10   0    50  -> 50
        bob   300  0     0  -> 270
        cyd   100  0     0  -> 90
    """,
    "a month of corrections only is one of no use": """
        ann   100  -5    0  -> 100
        bob   300  0     0  -> 300
    """,
    "a correction does not take away more than all": """
        ann   100  -5    0  -> 0
        bob   300  1     0  -> 400
    """,
    "caps of 0 stay 0": """
        ann   0    0     0  -> 0
        bob   0    0     0  -> 0
    """,
    "… also where there was use": """
        ann   0    5     0  -> 0
        bob   0    2     0  -> 0
    """,
    "alone": """
        ann   7    0     7  -> 7
    """,
    "nobody takes part": """
        ann   7    3 locked  0  -> 7
    """,
    "an empty pool": "",
}


def parse(text: str) -> tuple[list[Share], list[int | None]]:
    shares, after = [], []
    for line in text.strip().splitlines():
        left, _, right = line.partition("->")
        id, cap, used, *words, floor = left.split()
        shares.append(
            Share(
                id,
                None if cap == "-" else int(cap),
                int(used),
                int(floor),
                locked="locked" in words,
                service="service" in words,
            )
        )
        after.append(None if right.strip() == "-" else int(right))
    return shares, after


@pytest.mark.parametrize("name", SCENARIOS)
def test_caps_are_shared_out(name: str) -> None:
    shares, expected = parse(SCENARIOS[name])
    done = rebalance(shares)
    assert [change.after_tokens for change in done.changes] == expected
    assert [change.allocation_id for change in done.changes] == [s.allocation_id for s in shares]
    assert [change.before_tokens for change in done.changes] == [s.cap_tokens for s in shares]
    assert all(change.reason for change in done.changes)
    taking_part = [
        n for n, s in enumerate(shares) if s.cap_tokens is not None and not s.locked | s.service
    ]
    assert done.total_tokens == sum(expected[n] or 0 for n in taking_part)


def test_each_change_says_why() -> None:
    shares, _ = parse("""
        ann   100  20            0  -> 0
        bob   100  10            0  -> 0
        cyd   100  0            10  -> 0
        dan   1    1     locked  0  -> 0
        bot   1    1    service  0  -> 0
        eve   -    1             0  -> 0
    """)
    assert rebalance(shares) == Rebalance(
        300,
        (
            Change("ann", 100, 194, "used 20 of 30 tokens last month: its part, and 1 left over by the division"),
            Change("bob", 100, 96, "used 10 of 30 tokens last month: its part"),
            Change("cyd", 100, 10, "used 0 of 30 tokens last month: its floor"),
            Change("dan", 1, 1, "locked: its cap stays"),
            Change("bot", 1, 1, "a service allocation: its cap stays"),
            Change("eve", None, None, "unlimited: it has no cap to share"),
        ),
    )  # fmt: skip


def test_a_month_without_use_says_so() -> None:
    shares, _ = parse("""
        ann   10   0    50  -> 0
        bob   300  0     0  -> 0
    """)
    assert [change.reason for change in rebalance(shares).changes] == [
        "nobody used any tokens last month: its floor",
        "nobody used any tokens last month: what it had, less what floors took",
    ]
    shares, _ = parse("ann   10   0    5  -> 0")
    (change,) = rebalance(shares).changes
    assert change.reason == "nobody used any tokens last month: it keeps its cap"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ann 10 1 6 -> 0 \n bob 0 5 5 -> 0", "the floors add up to 11 tokens and the caps to 10: lower floors or raise caps by 1 tokens in all"),
        ("ann 0 0 1 -> 0", "the floors add up to 1 tokens and the caps to 0"),
        # What a locked allocation has is not there to pay floors with.
        ("ann 10 1 11 -> 0 \n bob 90 5 locked 0 -> 0", "the floors add up to 11 tokens and the caps to 10"),
        ("ann -1 1 0 -> 0", "the cap and the floor of allocation ann must be 0 or more"),
        ("ann 1 1 -1 -> 0", "the cap and the floor of allocation ann must be 0 or more"),
        ("ann 1 1 0 -> 0 \n ann 1 1 0 -> 0", "an allocation is given twice"),
        (f"ann {AMOUNT_TOKENS_MAX} 1 0 -> 0 \n bob 1 0 0 -> 0", "allocation ann would get more than 1000000000000000000 tokens"),
    ],
)  # fmt: skip
def test_what_cannot_be_shared_out_is_refused(text: str, message: str) -> None:
    shares, _ = parse(text)
    with pytest.raises(CannotRebalance) as refused:
        rebalance(shares)
    assert str(refused.value).startswith(message)


def test_the_largest_caps_are_shared_out_as_long_as_each_is_one() -> None:
    shares = [Share(str(n), AMOUNT_TOKENS_MAX, 5, AMOUNT_TOKENS_MAX) for n in range(50)]
    done = rebalance(shares)
    assert done.total_tokens == 50 * AMOUNT_TOKENS_MAX
    assert {change.after_tokens for change in done.changes} == {AMOUNT_TOKENS_MAX}


def test_no_order_of_allocations_gets_another_result() -> None:
    shares, expected = parse(SCENARIOS["… of equals to the first by id"])
    caps = {share.allocation_id: cap for share, cap in zip(shares, expected, strict=True)}
    for order in permutations(shares):
        assert {c.allocation_id: c.after_tokens for c in rebalance(order).changes} == caps


def test_usd_caps_do_not_exist_here() -> None:
    """Nothing that goes in or comes out can name a USD cap, so that none can be touched."""
    structs = [
        value
        for _, value in inspect.getmembers(module, inspect.isclass)
        if issubclass(value, msgspec.Struct)
    ]
    assert {Share, Change, Rebalance} <= set(structs)
    for struct in structs:
        for field in msgspec.structs.fields(struct):
            assert not any(word in field.name for word in ("usd", "nano", "cost", "meter"))
            if field.type in (int, int | None) and struct in (Share, Change, Rebalance):
                assert field.name.endswith("_tokens")
    assert not any(word in name for name in vars(module) for word in ("usd", "nano", "NANO"))


DUE: list[tuple[str, str, list[str], bool]] = [
    # when, the pool's zone, those of the allocations -> whether
    ("2026-03-01T00:00:00+00:00", "UTC", [], True),
    ("2026-03-01T00:00:00+00:00", "UTC", ["UTC"], True),
    ("2026-03-02T23:59:59+00:00", "UTC", ["UTC"], True),
    ("2026-03-03T00:00:00+00:00", "UTC", ["UTC"], False),
    ("2026-03-17T00:00:00+00:00", "UTC", [], False),
    ("2026-02-28T23:59:59+00:00", "UTC", ["UTC"], False),
    # It waits for the last to begin the month, and does not begin with the first.
    ("2026-03-01T07:59:59+00:00", "UTC", ["UTC", "America/Los_Angeles"], False),
    ("2026-03-01T08:00:00+00:00", "UTC", ["UTC", "America/Los_Angeles"], True),
    ("2026-02-28T10:00:00+00:00", "UTC", ["Pacific/Kiritimati"], False),
    ("2026-03-01T00:00:00+00:00", "UTC", ["Pacific/Kiritimati"], True),
    ("2026-03-01T10:59:59+00:00", "Pacific/Kiritimati", ["Pacific/Pago_Pago"], False),
    ("2026-03-01T11:00:00+00:00", "Pacific/Kiritimati", ["Pacific/Pago_Pago"], True),
]


@pytest.mark.parametrize(("when", "zone", "zones", "due"), DUE)
def test_a_run_is_due_when_the_month_has_begun_for_everyone(
    when: str, zone: str, zones: list[str], due: bool
) -> None:
    at = datetime.fromisoformat(when)
    month = period_of("month", at, ZoneInfo(zone))
    months = [period_of("month", at, ZoneInfo(one)) for one in zones]
    assert is_due(at, month, months) is due


def test_a_run_is_never_due_before_its_month() -> None:
    month = period_of("month", datetime(2026, 3, 1, tzinfo=UTC), ZoneInfo("UTC"))
    assert not is_due(month.start - timedelta(seconds=1), month, [])


AMOUNTS = st.integers(0, 10) | st.integers(0, 10**10) | st.integers(0, AMOUNT_TOKENS_MAX // 20)


@st.composite
def pools(draw: st.DrawFn) -> list[Share]:
    """A pool of up to 20 whose floors fit and whose total is a cap."""
    shares = []
    for n in range(draw(st.integers(0, 20))):
        cap = draw(st.none() | AMOUNTS)
        floor = draw(st.integers(0, cap or 0) | st.just(0))
        shares.append(
            Share(
                f"a{n:02}",
                cap,
                draw(AMOUNTS),
                floor,
                locked=draw(st.sampled_from([False, False, True])),
                service=draw(st.sampled_from([False, False, False, True])),
            )
        )
    # Floors are within the sum of caps, not each within its own.
    taking_part = [n for n, share in enumerate(shares) if share.cap_tokens is not None]
    taking_part = [n for n in taking_part if not shares[n].locked and not shares[n].service]
    turned = draw(st.permutations(taking_part))
    floors = {n: shares[m].floor_tokens for n, m in zip(taking_part, turned, strict=True)}
    return [
        msgspec.structs.replace(share, floor_tokens=floors.get(n, share.floor_tokens))
        for n, share in enumerate(shares)
    ]


@given(pools(), st.randoms(use_true_random=False))
def test_the_total_is_conserved_and_shared_fairly(shares: list[Share], random: object) -> None:
    done = rebalance(shares)
    after = {change.allocation_id: change.after_tokens for change in done.changes}
    part = []
    for share in shares:
        if share.cap_tokens is None or share.locked or share.service:
            assert after[share.allocation_id] == share.cap_tokens
        else:
            part.append((share, after[share.allocation_id] or 0))
    assert sum(cap for _, cap in part) == sum(share.cap_tokens or 0 for share, _ in part)
    for share, cap in part:
        assert share.floor_tokens <= cap <= AMOUNT_TOKENS_MAX
    if any(share.used_tokens for share, _ in part):
        # One rate holds for all who are above their floor, to the token; the largest user of them
        # has what is left over besides, less than a token for each of the others.
        above = [(s, cap) for s, cap in part if cap > s.floor_tokens and s.used_tokens]
        if above:
            largest = max(s.used_tokens for s, _ in above)
            rates = [
                (Fraction(cap, s.used_tokens), Fraction(cap + 1, s.used_tokens))
                for s, cap in above
                if s.used_tokens < largest
            ]
            assert max((low for low, _ in rates), default=Fraction(0)) < min(
                (high for _, high in rates), default=Fraction(1)
            )
            for s, cap in part:
                if cap == s.floor_tokens:
                    assert all(s.used_tokens * low <= cap + 1 for low, _ in rates)
    else:
        low = [s for s, _ in part if s.floor_tokens > (s.cap_tokens or 0)]
        if not low:
            assert all(cap == share.cap_tokens for share, cap in part)
    random.shuffle(shares)  # type: ignore[attr-defined]
    again = rebalance(shares)
    assert {change.allocation_id: change.after_tokens for change in again.changes} == after
