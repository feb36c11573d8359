"""Prices as others list them: in our units, and beside ours."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from app.core.metering import UNITS
from app.core.pricing import Rate, check_rates, make_price
from app.core.suggestions import LISTED, METERED_IN, Difference, Listed, differences, suggest

NOW = datetime(2026, 1, 1, tzinfo=UTC)

D = Decimal


@pytest.mark.parametrize(
    ("name", "usd", "unit", "quantity", "nano"),
    [
        ("input_mtok", "0.15", "input_token", 1_000_000, 150_000_000),
        ("cache_read_mtok", "0.075", "cached_input_token", 2_000_000, 150_000_000),
        ("cache_write_mtok", "3.75", "cache_write_token", 1_000_000, 3_750_000_000),
        ("output_mtok", "0.6", "output_token", 1000, 600_000),
        ("input_audio_mtok", "32", "input_audio_token", 1000, 32_000_000),
        ("cache_audio_read_mtok", "0.4", "cached_input_audio_token", 1000, 400_000),
        ("output_audio_mtok", "64", "output_audio_token", 1000, 64_000_000),
        ("input_document_kpages", "4", "page", 250, 1_000_000_000),
        ("input_mchars", "15", "character", 1000, 15_000_000),
        ("audio_hours", "0.36", "second", 60, 6_000_000),
        ("input_audio_hours", "0.006", "second", 600, 1_000_000),
        ("requests_kcount", "5", "request", 1, 5_000_000),
    ],
)
def test_a_listed_price_costs_the_same_in_our_units(
    name: str, usd: str, unit: str, quantity: int, nano: int
) -> None:
    suggested = suggest({name: Listed(D(usd))}, ())
    [rate] = suggested.rates
    assert (rate.unit, rate.usd, suggested.notes) == (unit, D(usd), ())
    assert make_price("p", "m", NOW, [rate]).cost_nano({unit: quantity}) == nano


def test_every_rate_that_is_suggested_is_one_that_can_be_taken() -> None:
    rates = suggest({name: Listed(D("0.1")) for name in LISTED}, ()).rates
    check_rates(rates, UNITS)
    assert set(METERED_IN.values()) <= UNITS


def test_tiers_are_said_to_be_left_out_and_the_first_is_suggested() -> None:
    listed = {
        "input_mtok": Listed(D("1.25"), above=200_000),
        "output_mtok": Listed(D("10"), above=200_000),
    }
    suggested = suggest(listed, ())
    assert suggested.rates == (
        Rate("input_token", D("1.25"), 10**6),
        Rate("output_token", D("10"), 10**6),
    )
    [note] = suggested.notes
    assert "above 200000 tokens" in str(note)


def test_what_no_unit_of_ours_is_of_is_left_out_and_said_to_be() -> None:
    suggested = suggest(
        {
            "web_searches_kcount": Listed(D("10")),
            "input_mtok": Listed(D("1")),
            "cache_write_1h_mtok": Listed(D("6")),
        },
        ("chat/completions",),
    )
    assert [rate.unit for rate in suggested.rates] == ["input_token"]
    assert [str(note) for note in suggested.notes] == [
        "Listed as well, but not counted here: cache_write_1h_mtok, web_searches_kcount."
    ]


def test_of_two_prices_for_one_unit_the_first_is_suggested_and_another_one_is_told() -> None:
    same = suggest({"audio_hours": Listed(D("0.36")), "input_audio_hours": Listed(D("0.36"))}, ())
    assert same.notes == ()
    other = suggest({"audio_hours": Listed(D("0.4")), "input_audio_hours": Listed(D("0.36"))}, ())
    assert other.rates == (Rate("second", D("0.36"), 3600),)
    [note] = other.notes
    assert str(note) == "Also listed for second, and left out: audio_hours at 0.4."


def test_calls_that_are_counted_otherwise_are_told_of() -> None:
    listed = {"input_mtok": Listed(D("0.6")), "output_mtok": Listed(D("12"))}
    [note] = suggest(listed, ("audio/speech",)).notes
    assert "counted by character" in str(note)
    assert suggest({}, ("audio/speech",)) == suggest({}, ())
    assert suggest({"input_mchars": Listed(D("15"))}, ("audio/speech",)).notes == ()


def test_rates_are_compared_by_what_one_unit_costs() -> None:
    same, was = Rate("input_token", D("0.00015"), 1000), Rate("output_token", D("1"), 1)
    gone = Rate("page", D("1"), 1)
    listed = Rate("input_token", D("0.15"), 10**6)
    would, new = Rate("output_token", D("0.6"), 10**6), Rate("second", D("0.36"), 3600)
    assert differences([same, was, gone], [listed, would, new]) == [
        Difference("input_token", "unchanged", same, listed),
        Difference("output_token", "changed", was, would),
        Difference("second", "added", None, new),
        Difference("page", "removed", gone, None),
    ]
    assert differences([], []) == []
