"""Suggestions: what models cost by public lists, beside the price in force.

Owns the documents. Owns no list (see `market`), no unit and no comparison (see
`core.suggestions`), and applies nothing: an admin adds a price, or does not.

Invariants: rates are exact, and can be sent to `POST /api/admin/prices` as they are; a model that
no list knows is shown as such, and never with a rate of 0.
"""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Literal

import msgspec
from litestar import Router, get
from litestar.di import NamedDependency
from litestar.params import FromQuery

from app import market
from app.control import records, wire
from app.control.desk import Desk
from app.control.errors import documented, unknown
from app.control.wire import Page
from app.core.faults import Fault, Value
from app.core.pricing import Rate
from app.core.suggestions import Suggested, differences, suggest
from app.market import Offer, Wanted
from app.store import catalogue
from app.store.catalogue import ModelRecord, PriceRecord, ProviderRecord, RateRecord
from app.store.database import Connection


class RateDifference(msgspec.Struct, frozen=True):
    """One unit, as it is priced now and as it would be."""

    unit: str
    change: Literal["unchanged", "changed", "added", "removed"]
    current: RateRecord | None
    suggested: RateRecord | None


class Note(msgspec.Struct, frozen=True):
    """Something to look at: in English, and for programs."""

    message: str
    code: str
    values: dict[str, Value]


class SuggestionDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What a list says that a model costs. No `source`: no list knows it."""

    model: str
    state: Literal["unknown", "same", "different", "unpriced"]
    """`unpriced`: it has no price in force, and could have this one."""
    source: str | None
    note: str | None
    """What the rates leave out, or what to look at before taking them: all `notes`."""
    notes: list[Note]
    rates: list[RateRecord]
    current_price_id: str | None
    current_effective_from: datetime | None
    differences: list[RateDifference]


@get("/price-suggestions", summary="Suggest prices from public lists, by model")
async def suggest_prices(
    desk: NamedDependency[Desk],
    cursor: FromQuery[str | None] = None,
    limit: FromQuery[int] = wire.PAGE_DEFAULT,
    model: FromQuery[str | None] = None,
) -> Page[SuggestionDocument]:
    """Nothing is applied: send the rates to `POST /api/admin/prices` to take them.

    The lists come with the version of this software, and are as old as it is.
    """
    database = desk.deps.database
    if model is None:
        page = await records.page(desk, catalogue.models, cursor, limit)
    else:
        async with database.snapshot() as connection:
            named = await catalogue.models.find(connection, wire.slug("model", model))
        if named is None:
            raise unknown("model")
        page = Page([named], None)
    async with database.snapshot() as connection:
        providers = await _providers(connection, page.items)
        prices = await _prices(connection, page.items, desk.at)
    wanted = [_wanted(one, providers[one.provider_id]) for one in page.items]
    offers = await market.offers(wanted, desk.at)
    return Page(
        [
            _suggestion(one, offer, prices.get(one.slug))
            for one, offer in zip(page.items, offers, strict=True)
        ],
        page.next,
    )


async def _providers(
    connection: Connection, models: Sequence[ModelRecord]
) -> dict[str, ProviderRecord]:
    ids = sorted({model.provider_id for model in models})
    return {one.id: one for one in await catalogue.providers.find_all(connection, ids)}


async def _prices(
    connection: Connection, models: Sequence[ModelRecord], at: datetime
) -> dict[str, PriceRecord]:
    slugs = [model.slug for model in models]
    in_force = await catalogue.prices_in_force(connection, slugs, at)
    found = await catalogue.prices.find_all(connection, sorted(in_force))
    return {price.model: price for price in found}


def _wanted(model: ModelRecord, provider: ProviderRecord) -> Wanted:
    return Wanted(model.upstream_model, provider.kind, provider.base_url)


def _suggestion(
    model: ModelRecord, offer: Offer | None, price: PriceRecord | None
) -> SuggestionDocument:
    suggested = Suggested((), ())
    if offer is not None:
        suggested = suggest(offer.listed, model.endpoints or ())
    current = [] if price is None else [_rate(rate) for rate in price.rates]
    # A list that knows nothing does not say that what there is should go.
    compared = differences(current, suggested.rates) if suggested.rates else []
    notes = [*suggested.notes]
    if offer is not None and offer.by_name_alone:
        notes.append(
            Fault(
                "listed_by_name",
                "Found by the model's name alone: its provider may charge something else.",
            )
        )
    if offer is not None and offer.varies:
        notes.append(
            Fault(
                "listed_by_hour",
                "It depends on the hour of the day: these are the rates of this hour.",
            )
        )
    state: Literal["unknown", "same", "different", "unpriced"] = "unknown"
    if suggested.rates:
        same = all(one.change == "unchanged" for one in compared)
        state = "unpriced" if price is None else "same" if same else "different"
    return SuggestionDocument(
        model=model.slug,
        state=state,
        source=None if offer is None else offer.source,
        note=" ".join(map(str, notes)) or None,
        notes=[Note(str(note), note.code, note.values) for note in notes],
        rates=[_shown(rate) for rate in suggested.rates],
        current_price_id=None if price is None else price.id,
        current_effective_from=None if price is None else price.effective_from,
        differences=[
            RateDifference(
                one.unit,
                one.change,
                None if one.current is None else _shown(one.current),
                None if one.suggested is None else _shown(one.suggested),
            )
            for one in compared
        ],
    )


def _rate(rate: RateRecord) -> Rate:
    return Rate(rate.unit, Decimal(rate.usd), rate.per)


def _shown(rate: Rate) -> RateRecord:
    return RateRecord(rate.unit, format(rate.usd, "f"), rate.per)


def suggestion_router() -> Router:
    """Make the router of suggestions."""
    return Router("/", route_handlers=documented([suggest_prices]), tags=["Prices"])
