"""Preflight: what a ceiling asks of the ledger, on which accounts.

To add a scenario, add a row: rates, the bundles of a ceiling, what it leaves open; then the tokens
and nano-USD it needs at a grant of 0 and of 10.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from app.core.access import Key, key_refusal
from app.core.ceilings import Ceiling, OpenQuantity
from app.core.ledger import AccountKey, OwnerKind, account_key
from app.core.metering import TOKEN_UNITS, UNITS, Quantity, Usage, tokens_of
from app.core.preflight import Paths, another_slice, dearest, demand_for, stays
from app.core.pricing import PARENT, Price, Rate, make_price, price_at
from app.core.windows import Calendar, Period, Window, period_of

NOW = datetime(2026, 5, 5, 12, tzinfo=UTC)
UTC_ZONE = ZoneInfo("UTC")


def price_of(**nano_each: int) -> Price:
    """A price in nano-USD of one unit."""
    return make_price("p", "m", NOW, [Rate(u, Decimal(n), 10**9) for u, n in nano_each.items()])


def path_of(at: datetime = NOW) -> tuple[AccountKey, ...]:
    owners = (("allocation", "a"), ("pool", "p"))
    return Paths(Calendar(UTC_ZONE)).of(owners, at, {"p": ("month",)})  # type: ignore[arg-type]


CHAT = price_of(input_token=1, output_token=4, reasoning_token=5)
SPEECH = price_of(character=7)

DEMANDS: list[tuple[Price | None, Ceiling, bool, tuple[int, int | None], tuple[int, int | None]]] = [
    # price, ceiling, whether token limits meter it; (tokens, nano) at 0 and at 10 granted
    (CHAT, Ceiling(({"input_token": 100, "output_token": 50},)), True, (150, 350), (150, 350)),
    (CHAT, Ceiling(({"input_token": 100},), OpenQuantity("output_token", 999, 1024)), True, (100, 100), (110, 150)),
    (CHAT, Ceiling(({"input_token": 100},), OpenQuantity("output_token", 999, 1024, times=3)), True, (100, 100), (130, 250)),
    # The dearest of the alternatives in USD, the largest of them in tokens.
    (price_of(input_token=1, input_audio_token=9), Ceiling(({"input_token": 100}, {"input_audio_token": 20})), True, (100, 180), (100, 180)),
    # An alternative without a price is not how this model is billed.
    (SPEECH, Ceiling(({"character": 30}, {"input_token": 50, "output_audio_token": 60})), False, (0, 210), (0, 210)),
    (CHAT, Ceiling(({"character": 30}, {"input_token": 50, "output_token": 6})), True, (56, 80), (56, 80)),
    # None of them has one: unpriced, but its tokens count, at the worst.
    (None, Ceiling(({"character": 30}, {"input_token": 50})), True, (50, None), (50, None)),
    (price_of(page=1), Ceiling(({"input_token": 5}, {"input_audio_token": 8})), True, (8, None), (8, None)),
    (None, Ceiling(({},), OpenQuantity("output_token", 999, 1024, times=2)), True, (0, None), (20, None)),
    # What is open has no price: unpriced as a whole.
    (price_of(input_token=1), Ceiling(({"input_token": 5},), OpenQuantity("output_token", 999, 1024)), True, (5, None), (15, None)),
    # Pages and characters are nothing to a token limit.
    (price_of(page=3), Ceiling(({},), OpenQuantity("page", 1000, 8)), False, (0, 0), (0, 30)),
    (price_of(page=3), Ceiling(({"page": 4},)), False, (0, 12), (0, 12)),
    (None, Ceiling(({},), OpenQuantity("page", 1000, 8)), False, (0, None), (0, None)),
    # Free is a price.
    (price_of(input_token=0), Ceiling(({"input_token": 5},)), True, (5, 0), (5, 0)),
]  # fmt: skip


@pytest.mark.parametrize(("price", "ceiling", "counts_tokens", "at_0", "at_10"), DEMANDS)
def test_a_ceiling_asks_for_the_most_it_can_use(
    price: Price | None,
    ceiling: Ceiling,
    counts_tokens: bool,
    at_0: tuple[int, int | None],
    at_10: tuple[int, int | None],
) -> None:
    demand = demand_for(ceiling, price, path_of(), "last_call")
    assert demand.counts_tokens is counts_tokens
    for granted, (tokens, nano) in ((0, at_0), (10, at_10)):
        assert demand.tokens_at(granted) == tokens
        assert demand.nano_at(granted) == (nano or 0)
        assert (demand.cost is None) is (nano is None)
    assert (demand.accounts, demand.policy) == (path_of(), "last_call")
    if ceiling.open is not None:
        assert demand.open is not None
        asked = (demand.open.most, demand.open.all_below, demand.open.times)
        assert asked == (ceiling.open.most, ceiling.open.all_below, ceiling.open.times)
    else:
        assert demand.open is None


PLAIN = {
    "input_audio_token": "input_token",
    "cached_input_audio_token": "input_token",
    "input_image_token": "input_token",
    "output_audio_token": "output_token",
}

PLAIN = {
    "input_audio_token": "input_token",
    "input_image_token": "input_token",
    "output_audio_token": "output_token",
}
REPORTS: list[Callable[[str], str]] = [lambda unit: unit, lambda unit: PLAIN.get(unit, unit)]
"""A provider tells kinds of tokens apart, or it does not."""

_rate = st.decimals(0, 1, places=9)
_quantity = st.integers(0, 10**6)


@given(st.data(), st.sets(st.sampled_from(sorted(UNITS))))
def test_a_demand_covers_whatever_usage_its_ceiling_allows(
    data: st.DataObject, priced: set[str]
) -> None:
    """At any grant, and for any alternative that has a price."""
    per = st.sampled_from([1, 3, 60, 10**6])
    price = make_price("p", "m", NOW, [Rate(u, data.draw(_rate), data.draw(per)) for u in priced])
    units = st.sampled_from(sorted(UNITS - set(PARENT)))
    bundles = data.draw(
        st.lists(
            st.dictionaries(units, _quantity | st.decimals(0, 10**4, places=3), max_size=3),
            min_size=1,
            max_size=3,
        )
    )
    bundles = [
        {u: int(q) if u in TOKEN_UNITS else q for u, q in bundle.items()} for bundle in bundles
    ]
    unit = data.draw(st.sampled_from([None, "output_token", "output_audio_token", "page"]))
    times = data.draw(st.integers(1, 4))
    open_ = None if unit is None else OpenQuantity(unit, 10**6, 1024, times)
    demand = demand_for(Ceiling(tuple(bundles), open_), price, path_of(), "strict")
    granted = data.draw(st.integers(0, 10**6))
    bundle = data.draw(st.sampled_from(bundles))
    within: dict[str, Quantity] = dict(bundle)
    if open_ is not None:
        within[open_.unit] = within.get(open_.unit, 0) + times * granted
    report = data.draw(st.sampled_from(REPORTS))
    actual: dict[str, Quantity] = {}
    for unit_, most in within.items():
        left = int(most)
        reported = report(unit_)
        for name in [reported, *(part for part, parent in PARENT.items() if parent == reported)]:
            used = data.draw(st.integers(0, left))
            left -= used
            actual[name] = actual.get(name, 0) + used

    def priced(usage: Usage) -> bool:
        return any({name(unit) for unit in usage} <= price.numerators.keys() for name in REPORTS)

    some_priced = any(priced(other) for other in bundles)
    open_priced = open_ is None or priced({open_.unit: 1})
    assert (demand.cost is None) is not (some_priced and open_priced)
    if priced(bundle) or not some_priced:
        # Only how a model is billed counts; without any price, it could be any.
        assert demand.tokens_at(granted) >= tokens_of(actual)
    cost = price.cost_nano(actual)
    if demand.cost is not None and cost is not None:
        assert demand.nano_at(granted) >= cost


# Paths


def test_a_path_keeps_the_order_of_its_owners() -> None:
    assert [(key.owner, key.owner_id, key.window) for key in path_of()] == [
        ("allocation", "a", "month"),
        ("pool", "p", "month"),
    ]


@pytest.mark.parametrize(
    ("limited", "accounts"),
    [
        ({}, ["allocation a month"]),
        ({"k": ("hour", "lifetime")}, ["key k hour", "key k lifetime", "allocation a month"]),
        # What is on the cards is there anyway, and once.
        ({"a": ("day", "month")}, ["allocation a day", "allocation a month"]),
        ({"a": ("day",)}, ["allocation a month", "allocation a day"]),
        ({"other": ("day",)}, ["allocation a month"]),
    ],
)
def test_an_owner_is_charged_in_the_windows_in_which_it_is_limited(
    limited: dict[str, tuple[Window, ...]], accounts: list[str]
) -> None:
    path = Paths(Calendar(UTC_ZONE)).of((("key", "k"), ("allocation", "a")), NOW, limited)
    assert [f"{key.owner} {key.owner_id} {key.window}" for key in path] == accounts


def test_chats_and_pools_have_accounts_also_where_they_are_not_limited() -> None:
    owners = (("chat", "c"), ("key", "k"), ("allocation", "a"), ("pool", "p"), ("pool", "q"))
    path = Paths(Calendar(UTC_ZONE)).of(owners, NOW, {"q": ("day",)})  # type: ignore[arg-type]
    assert [f"{key.owner} {key.owner_id} {key.window}" for key in path] == [
        "chat c lifetime",
        "allocation a month",
        "pool p month",
        "pool q month",
        "pool q day",
    ]


def test_the_months_of_an_allocation_can_be_those_of_another_zone() -> None:
    """The last hours of May in UTC are June in Tokyo, for the allocation and nobody else."""
    paths = Paths(Calendar(UTC_ZONE))
    late = datetime(2026, 5, 31, 20, tzinfo=UTC)
    owners = (("key", "k"), ("allocation", "a"), ("pool", "p"))
    key, allocation, pool = paths.of(owners, late, {"k": ("month",)}, "Asia/Tokyo")  # type: ignore[arg-type]
    assert allocation.start == datetime(2026, 5, 31, 15, tzinfo=UTC)
    assert key.start == pool.start == datetime(2026, 5, 1, tzinfo=UTC)
    # And back, when the zone is the installation's again.
    [again] = paths.of((("allocation", "a"),), late)
    assert again.start == datetime(2026, 5, 1, tzinfo=UTC)


def test_no_more_paths_are_remembered_than_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.core.preflight.PATHS_KNOWN", 3)
    paths = Paths(Calendar(UTC_ZONE))
    made = [paths.account("chat", f"c{n}", NOW, "lifetime") for n in range(10)]
    assert [paths.account("chat", f"c{n}", NOW, "lifetime") for n in range(10)] == made
    assert len(paths._known) <= 3


def test_a_path_changes_with_the_month_and_back() -> None:
    paths = Paths(Calendar(ZoneInfo("Asia/Tokyo")))
    may = datetime(2026, 5, 31, 14, 59, 59, tzinfo=UTC)
    june = may + timedelta(seconds=1)
    for at in (may, june, may):
        expected = account_key(
            "allocation", "a", "month", period_of("month", at, ZoneInfo("Asia/Tokyo"))
        )
        assert paths.account("allocation", "a", at) == expected
    first, second = paths.account("allocation", "a", may), paths.account("allocation", "a", june)
    assert (first.end, first.id != second.id) == (second.start, True)


def test_a_path_is_remembered_while_its_period_lasts() -> None:
    paths = Paths(Calendar(UTC_ZONE))
    assert paths.account("pool", "p", NOW) is paths.account("pool", "p", NOW + timedelta(hours=1))
    lifetime = paths.account("pool", "p", NOW, "lifetime")
    assert lifetime.end is None
    assert paths.account("pool", "p", NOW + timedelta(days=4000), "lifetime") is lifetime
    assert paths.account("pool", "p", NOW).window == "month"


# How long what is known of a call serves others

DAY = timedelta(days=1)
MONTH = period_of("month", NOW, UTC_ZONE)


def at_prices(*effective_from: datetime) -> list[Price]:
    return [make_price(f"p{at}", "m", at, [Rate("page", Decimal(1))]) for at in effective_from]


STAYS: list[tuple[datetime | None, list[datetime], Period]] = [
    # when the key expires, when prices begin: from when until when all is as it is now
    (None, [], MONTH),
    (NOW + DAY, [], Period(MONTH.start, NOW + DAY)),
    (NOW + 99 * DAY, [], MONTH),
    # The price in force began in this month, or before.
    (None, [NOW - DAY], Period(NOW - DAY, MONTH.end)),
    (None, [NOW], Period(NOW, MONTH.end)),
    (None, [NOW - 99 * DAY], MONTH),
    (None, [NOW - 2 * DAY, NOW - DAY], Period(NOW - DAY, MONTH.end)),
    # The next one begins in this month, or later.
    (None, [NOW + DAY], Period(MONTH.start, NOW + DAY)),
    (None, [NOW - DAY, NOW + DAY, NOW + 2 * DAY], Period(NOW - DAY, NOW + DAY)),
    (None, [NOW + 99 * DAY], MONTH),
    (NOW + 3 * DAY, [NOW + 2 * DAY], Period(MONTH.start, NOW + 2 * DAY)),
    (NOW + 2 * DAY, [NOW + 3 * DAY], Period(MONTH.start, NOW + 2 * DAY)),
]


@pytest.mark.parametrize(("expires_at", "prices", "expected"), STAYS)
def test_what_is_known_of_a_call_serves_until_something_of_it_changes(
    expires_at: datetime | None, prices: list[datetime], expected: Period
) -> None:
    key = Key("k", "ann", ("a",), expires_at=expires_at)
    assert stays(key, at_prices(*prices), path_of(), NOW) == expected


def test_what_is_known_of_a_call_without_a_month_or_a_price_serves_for_ever() -> None:
    path = (Paths(Calendar(UTC_ZONE)).account("chat", "c", NOW, "lifetime"),)
    assert stays(Key("k", "ann", ("a",)), (), path, NOW).end is None


INSTANTS = st.integers(-90 * 86400, 90 * 86400).map(lambda s: NOW + timedelta(seconds=s))


@given(
    key=st.builds(Key, st.just("k"), st.just("ann"), st.just(("a",)), expires_at=INSTANTS),
    prices=st.lists(INSTANTS, max_size=4).map(lambda starts: at_prices(*sorted(starts))),
    zone=st.sampled_from([None, "Asia/Tokyo", "America/New_York"]),
    known_at=INSTANTS,
    at=INSTANTS,
)
def test_within_that_time_key_price_and_path_are_the_same(
    key: Key, prices: list[Price], zone: str | None, known_at: datetime, at: datetime
) -> None:
    assume(key_refusal(key, known_at) is None)
    paths = Paths(Calendar(UTC_ZONE))
    owners: list[tuple[OwnerKind, str]] = [("key", "k"), ("allocation", "a"), ("pool", "p")]
    limited: dict[str, tuple[Window, ...]] = {"k": ("day", "lifetime")}

    def known(at: datetime) -> object:
        return price_at(prices, at), paths.of(owners, at, limited, zone), key_refusal(key, at)

    period = stays(key, prices, paths.of(owners, known_at, limited, zone), known_at)
    assert period.holds(known_at)
    # Near its edges, too.
    for near in (at, period.start, (period.end or at) - timedelta(microseconds=1)):
        if period.holds(near):
            assert known(near) == known(known_at)


# What a usage that was never reported is billed at


@pytest.mark.parametrize(
    ("price", "bundles", "billed"),
    [
        (CHAT, [{"input_token": 1}, {"input_token": 9}, {"input_token": 5}], {"input_token": 9}),
        (SPEECH, [{"input_token": 10**6}, {"character": 1}], {"character": 1}),
        (SPEECH, [{"page": 3}, {"query": 1}], {"page": 3}),
        (None, [{"character": 1}, {"input_token": 10**6}], {"character": 1}),
        (price_of(page=0, query=0), [{"page": 3}, {"query": 1}], {"page": 3}),
    ],
)
def test_a_usage_nobody_reported_is_billed_at_the_dearest(
    price: Price | None, bundles: list[Usage], billed: Usage
) -> None:
    assert dearest(bundles, price) == billed


# Another slice of a stream.


@pytest.mark.parametrize(
    ("price", "needed", "least", "at_ten"),
    [
        (CHAT, 0, (0, 0), (10, 50)),
        (CHAT, 7, (7, 35), (17, 85)),
        (None, 7, (7, None), (17, None)),
    ],
)
def test_another_slice_asks_for_what_has_come_and_a_slice_ahead(
    price: Price | None, needed: int, least: tuple[int, int | None], at_ten: tuple[int, int | None]
) -> None:
    opened = OpenQuantity("output_token", 2048, 1024, times=3)
    first = demand_for(Ceiling(({"input_token": 100},), opened), price, path_of(), "strict")
    more = another_slice(first, needed)
    assert more.accounts == first.accounts
    assert more.open is not None
    assert (more.open.most, more.open.times, more.policy) == (2048, 1, "strict")

    def at(granted: int) -> tuple[int, int | None]:
        return more.tokens_at(granted), None if price is None else more.nano_at(granted)

    assert (at(0), at(10)) == (least, at_ten)
