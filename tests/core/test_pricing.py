"""Pricing: what a usage costs, exactly, rounded up once.

To add a scenario, add a row: the rates as an admin types them (`unit: "usd per n"`), the usage, and
its cost in nano-USD (None: unpriced).
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.metering import UNITS, Quantity, Usage
from app.core.pricing import (
    COST_NANO_MAX,
    PARENT,
    PER_MAX,
    InvalidRates,
    Price,
    Rate,
    check_rates,
    make_price,
    price_at,
)

NOW = datetime(2026, 5, 5, tzinfo=UTC)
Rates = Mapping[str, str]

CHAT: Rates = {"input_token": "0.15 per 1000000", "output_token": "0.60 per 1000000"}
CACHING: Rates = {**CHAT, "cached_input_token": "0.075 per 1000000", "cache_write_token": "0.1875 per 1000000"}  # fmt: skip


def rates_of(rates: Rates) -> list[Rate]:
    split = [(unit, *text.split(" per ")) for unit, text in rates.items()]
    return [Rate(unit, Decimal(usd), int(per)) for unit, usd, per in split]


def price_of(rates: Rates) -> Price:
    return make_price("id", "model", NOW, rates_of(rates))


@pytest.mark.parametrize(
    ("rates", "usage", "nano"),
    [
        # Exactness: small costs are not nothing, and parts are not rounded one by one.
        ({"input_token": "0.02 per 1000000"}, {"input_token": 20}, 400),
        ({"input_token": "0.02 per 1000000"}, {"input_token": 1}, 20),
        ({"input_token": "0.00002 per 1000000"}, {"input_token": 1}, 1),
        ({"second": "0.034 per 60"}, {"second": 60}, 34_000_000),
        ({"second": "0.034 per 60"}, {"second": 1}, 566_667),
        ({"second": "0.034 per 60"}, {"second": 3}, 1_700_000),
        ({"second": "0.034 per 60"}, {"second": Decimal("0.5")}, 283_334),
        ({"second": "0.006 per 60"}, {"second": Decimal("12.34")}, 1_234_000),
        ({"second": "0.006 per 60"}, {"second": Decimal("0.000000000001")}, 1),
        (CHAT, {"input_token": 1000, "output_token": 500}, 450_000),
        ({"input_token": "1 per 3000000000", "output_token": "1 per 3000000000"}, {"input_token": 1, "output_token": 1}, 1),
        ({"page": "0.001 per 1"}, {"page": 12}, 12_000_000),
        ({"page": "1 per 1000"}, {"page": 12}, 12_000_000),
        ({"character": "15 per 1000000"}, {"character": 4096}, 61_440_000),
        ({"query": "2.00 per 1000", "request": "0.01 per 1"}, {"query": 1, "request": 1}, 12_000_000),
        ({"image": "0 per 1"}, {"image": 4}, 0),
        (CHAT, {}, 0),
        ({}, {}, 0),
        # A part without a rate of its own takes its parent's.
        (CHAT, {"cached_input_token": 1000}, 150_000),
        (CHAT, {"cache_write_token": 1000}, 150_000),
        (CHAT, {"reasoning_token": 1000}, 600_000),
        ({"input_audio_token": "1 per 1000"}, {"cached_input_audio_token": 3}, 3_000_000),
        (CACHING, {"input_token": 1000, "cached_input_token": 1000, "cache_write_token": 1000}, 412_500),
        # Nothing else falls back, and a unit without a rate makes the whole call unpriced.
        (CHAT, {"input_audio_token": 1}, None),
        (CHAT, {"output_audio_token": 1}, None),
        (CHAT, {"input_image_token": 1}, None),
        (CHAT, {"output_token": 10, "page": 1}, None),
        ({"cached_input_token": "1 per 1"}, {"input_token": 1}, None),
        ({"reasoning_token": "1 per 1"}, {"output_token": 1}, None),
        ({"input_token": "1 per 1"}, {"cached_input_audio_token": 1}, None),
        ({}, {"request": 1}, None),
        # A provider that reports nonsense is still bookable.
        ({"page": "1000 per 1"}, {"page": 10**12}, COST_NANO_MAX),
    ],
)  # fmt: skip
def test_a_usage_costs_exactly(rates: Rates, usage: Usage, nano: int | None) -> None:
    cost = price_of(rates).cost_nano(usage)
    assert cost == nano
    assert cost is None or type(cost) is int


def test_a_million_calls_add_up_exactly() -> None:
    price = price_of({"input_token": "0.02 per 1000000", "second": "0.034 per 60"})
    costs = [price.cost_nano({"input_token": 20, "second": 3 * (n % 7)}) for n in range(1_000_000)]
    threes = sum(n % 7 for n in range(1_000_000))
    assert sum(cost for cost in costs if cost is not None) == 400 * 1_000_000 + 1_700_000 * threes


@pytest.mark.parametrize(
    ("rates", "usage", "exact"),
    [
        # A ceiling counts everything as the parent, which may turn out as the dearest part.
        (CACHING, {"input_token": 1000}, Fraction(187_500)),
        (CACHING, {"cached_input_token": 1000}, Fraction(75_000)),
        ({**CHAT, "reasoning_token": "1.20 per 1000000"}, {"output_token": 1000}, Fraction(1_200_000)),
        ({**CHAT, "reasoning_token": "0.10 per 1000000"}, {"output_token": 1000}, Fraction(600_000)),
        (CHAT, {"input_token": 7, "output_token": 1}, Fraction(1_650)),
        ({"second": "0.034 per 60"}, {"second": Decimal("0.5")}, Fraction(850_000, 3)),
        (CHAT, {"page": 1}, None),
    ],
)  # fmt: skip
def test_a_ceiling_costs_what_its_dearest_part_would(
    rates: Rates, usage: Usage, exact: Fraction | None
) -> None:
    price = price_of(rates)
    ceiling = price.ceiling_exact(usage)
    assert (None if ceiling is None else Fraction(ceiling) / price.denominator) == exact


# Properties

_usd = st.decimals(0, 1000, places=9) | st.decimals(0, 1, places=18)
_per = st.sampled_from([1, 3, 60, 1000, 1_000_000]) | st.integers(1, PER_MAX)


@st.composite
def prices(draw: st.DrawFn) -> Price:
    """A price with rates for some units."""
    units = draw(st.sets(st.sampled_from(sorted(UNITS))))
    rates = [Rate(unit, draw(_usd), draw(_per)) for unit in sorted(units)]
    return make_price("id", "model", NOW, rates)


_whole = st.integers(0, 10**6)
_quantity = _whole | st.decimals(0, 10**6, places=6)
_usages = st.dictionaries(st.sampled_from(sorted(UNITS)), _quantity, max_size=5)


@given(prices(), _usages)
def test_a_cost_is_the_exact_sum_rounded_up_once(price: Price, usage: Usage) -> None:
    cost = price.cost_nano(usage)
    if any(unit not in price.numerators for unit in usage):
        assert cost is None
        return
    exact = sum(
        Fraction(q) * Fraction(price.numerators[u], price.denominator) for u, q in usage.items()
    )
    assert cost == min(ceil(exact), COST_NANO_MAX)


@given(st.data(), prices(), _usages)
def test_no_usage_within_a_ceiling_costs_more_than_the_ceiling(
    data: st.DataObject, price: Price, ceiling: Usage
) -> None:
    """Within: no more of each unit, and any of it may turn out as a part of that unit."""
    actual: dict[str, Quantity] = {}
    for unit, most in ceiling.items():
        left = int(most)
        for name in [unit, *(part for part, parent in PARENT.items() if parent == unit)]:
            used = data.draw(st.integers(0, left))
            left -= used
            actual[name] = actual.get(name, 0) + used
    exact = price.ceiling_exact(ceiling)
    if exact is None:
        return
    cost = price.cost_exact(actual)
    assert cost is not None, "what a ceiling can price, a usage within it has a price for"
    assert cost <= exact


# What an admin may set


def rejected(*rates: Rate) -> str:
    with pytest.raises(InvalidRates) as caught:
        check_rates(rates, UNITS)
    return str(caught.value)


@pytest.mark.parametrize(
    ("usd", "per", "message"),
    [
        ("-0.01", 1, "must be 0 or more"),
        ("NaN", 1, "must be 0 or more"),
        ("sNaN", 1, "must be 0 or more"),
        ("Infinity", 1, "must be 0 or more"),
        ("-Infinity", 1, "must be 0 or more"),
        ("1e999999", 1, "must be 0 or more"),
        ("1e-19", 1, "at most 18 decimal places"),
        ("1e-999999", 1, "at most 18 decimal places"),
        ("1", 0, "from 1 to"),
        ("1", -1, "from 1 to"),
        ("1", PER_MAX + 1, "from 1 to"),
        ("1000.01", 1, "may cost at most 1000 USD"),
        ("60001", 60, "may cost at most 1000 USD"),
    ],
)
def test_a_rate_that_cannot_be_is_refused_with_a_reason(usd: str, per: int, message: str) -> None:
    text = rejected(Rate("page", Decimal(usd), per))
    assert message in text
    assert "page" in text


def test_rates_name_known_units_once_and_at_least_one() -> None:
    cent = Decimal("0.01")
    assert "at least one unit" in rejected()
    assert "unknown unit 'token'" in rejected(Rate("token", cent))
    assert "two rates" in rejected(Rate("page", cent), Rate("query", cent), Rate("page", cent))


@pytest.mark.parametrize(
    ("usd", "per"), [("0", 1), ("1000", 1), ("1e15", PER_MAX), ("0.000000000000000001", PER_MAX)]
)
def test_rates_at_the_edge_are_taken(usd: str, per: int) -> None:
    check_rates([Rate(unit, Decimal(usd), per) for unit in sorted(UNITS)], UNITS)


# Versions


@pytest.mark.parametrize(
    ("instant", "version"),
    [("2025-12-31", None), ("2026-01-01", "jan"), ("2026-02-28", "jan"), ("2026-03-01", "mar"), ("2030-01-01", "mar")],
)  # fmt: skip
def test_a_version_is_in_force_from_its_instant_until_the_next(
    instant: str, version: str | None
) -> None:
    versions = [
        make_price(id, "model", datetime.fromisoformat(f"2026-{month}-01T00:00:00+00:00"), [])
        for id, month in (("jan", "01"), ("mar", "03"))
    ]
    found = price_at(versions, datetime.fromisoformat(f"{instant}T00:00:00+00:00"))
    assert (found and found.id) == version


def test_a_model_without_versions_has_no_price() -> None:
    assert price_at([], NOW + timedelta(days=1)) is None
