"""Suggestions: rates as others list them, in our units, beside the rates that are in force.

Owns which of our units a listed price is of, what has to be said of one that does not fit them
whole, and the difference between two sets of rates. Owns no list of prices, and applies none.

Invariants: nothing is converted but the quantity that a rate is for, so every rate stays exact; a
listed price that none of our units is of is left out, and said to be.
"""

from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Final, Literal

import msgspec

from app.core.faults import Fault
from app.core.pricing import Rate

MILLION: Final = 10**6

LISTED: Final[dict[str, tuple[str, int]]] = {
    "input_mtok": ("input_token", MILLION),
    "input_text_mtok": ("input_token", MILLION),
    "cache_read_mtok": ("cached_input_token", MILLION),
    "cache_write_mtok": ("cache_write_token", MILLION),
    "cache_write_5m_mtok": ("cache_write_token", MILLION),
    "output_mtok": ("output_token", MILLION),
    "output_text_mtok": ("output_token", MILLION),
    "output_reasoning_mtok": ("reasoning_token", MILLION),
    "input_audio_mtok": ("input_audio_token", MILLION),
    "cache_audio_read_mtok": ("cached_input_audio_token", MILLION),
    "output_audio_mtok": ("output_audio_token", MILLION),
    "input_image_mtok": ("input_image_token", MILLION),
    "output_image_mtok": ("output_image_token", MILLION),
    "input_document_kpages": ("page", 1000),
    "input_mchars": ("character", MILLION),
    "input_audio_hours": ("second", 3600),
    "audio_hours": ("second", 3600),
    "requests_kcount": ("request", 1000),
}
"""By the name of a listed price: our unit, and how many of it the price is for. Of several for one
unit the first counts."""

METERED_IN: Final[dict[str, str]] = {"ocr": "page", "audio/speech": "character"}
"""What calls of an endpoint are counted in, where that is always the same."""


class Listed(msgspec.Struct, frozen=True):
    """A price as it is listed, and above how many tokens of input it is another one."""

    usd: Decimal
    above: int | None = None


class Suggested(msgspec.Struct, frozen=True):
    """Rates in our units, and what they leave out."""

    rates: tuple[Rate, ...]
    notes: tuple[Fault, ...]


class Difference(msgspec.Struct, frozen=True):
    """One unit, as it is priced now and as it would be."""

    unit: str
    change: Literal["unchanged", "changed", "added", "removed"]
    current: Rate | None
    suggested: Rate | None


def suggest(listed: Mapping[str, Listed], endpoints: Collection[str]) -> Suggested:
    """Turn listed prices into rates; `endpoints` are those by which the model is called."""
    rates: dict[str, Rate] = {}
    notes: list[Fault] = []
    above = sorted({price.above for price in listed.values() if price.above is not None})
    if above:
        notes.append(
            Fault(
                "listed_more_above",
                "It costs more above {above} tokens of input: these are the rates below.",
                above=above[0],
            )
        )
    for name, (unit, per) in LISTED.items():
        price = listed.get(name)
        if price is None:
            continue
        known = rates.setdefault(unit, Rate(unit, price.usd, per))
        if known.usd != price.usd:
            notes.append(
                Fault(
                    "listed_twice",
                    "Also listed for {unit}, and left out: {name} at {usd}.",
                    unit=unit,
                    name=name,
                    usd=str(price.usd),
                )
            )
    left = sorted(listed.keys() - LISTED.keys())
    if left:
        notes.append(
            Fault(
                "listed_not_counted",
                "Listed as well, but not counted here: {names}.",
                names=", ".join(left),
            )
        )
    missing = sorted({METERED_IN[name] for name in endpoints if name in METERED_IN} - rates.keys())
    if missing and rates:
        notes.append(
            Fault(
                "counted_not_listed",
                "Calls are counted by {units} as well, without a price here.",
                units=", ".join(missing),
            )
        )
    return Suggested(tuple(rates.values()), tuple(notes))


def differences(current: Sequence[Rate], suggested: Sequence[Rate]) -> list[Difference]:
    """Compare two sets of rates by unit: 0.15 per million and 0.00015 per 1000 are the same."""
    now = {rate.unit: rate for rate in current}
    then = {rate.unit: rate for rate in suggested}
    found: list[Difference] = []
    for unit in [*then, *(unit for unit in now if unit not in then)]:
        was, would = now.get(unit), then.get(unit)
        change: Literal["unchanged", "changed", "added", "removed"]
        if was is None:
            change = "added"
        elif would is None:
            change = "removed"
        else:
            same = Fraction(was.usd) / was.per == Fraction(would.usd) / would.per
            change = "unchanged" if same else "changed"
        found.append(Difference(unit, change, was, would))
    return found
