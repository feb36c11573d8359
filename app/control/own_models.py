"""Own models: what the models of one's allocations can be asked for.

Owns the document that tells whoever has a key how to use it. Owns no SQL, and no rule of what a
model serves: that is its record's.

Invariant: a model that no allocation of the caller names does not show.
"""

import msgspec
from litestar import Router, get
from litestar.di import NamedDependency

from app.control import wire
from app.control.desk import Desk
from app.control.errors import documented
from app.control.wire import Page
from app.store import catalogue


class OwnModel(msgspec.Struct, frozen=True):
    """A model that one may call: the endpoints it serves, and the units its price names."""

    slug: str
    endpoints: list[str] | None
    """null: whatever its provider serves; its units tell what that is."""
    units: list[str]


@get("/models", summary="List the models of one's own allocations")
async def my_models(desk: NamedDependency[Desk]) -> Page[OwnModel]:
    """All on one page, by name."""
    async with desk.deps.database.snapshot() as connection:
        owned = await catalogue.allocations.page(
            connection, after=None, limit=wire.PAGE_MAX, equal={"member_id": desk.member_id}
        )
        slugs = sorted({slug for allocation in owned for slug in allocation.models})
        models = await catalogue.models.find_all(connection, slugs)
        in_force = await catalogue.prices_in_force(connection, slugs, desk.at)
        prices = await catalogue.prices.find_all(connection, sorted(in_force))
    units = {price.model: [rate.unit for rate in price.rates] for price in prices}
    shown = [OwnModel(one.slug, one.endpoints, units.get(one.slug, [])) for one in models]
    return Page(shown, None)


def own_models_router() -> Router:
    """Make the router of what members look up to use their keys."""
    return Router("/", route_handlers=documented([my_models]), tags=["Me"])
