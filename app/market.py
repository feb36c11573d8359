"""The market: what models cost by the lists that a library carries along.

Owns finding a model of ours in those lists, and reading its prices as they are. Owns no unit of
ours (see `core.suggestions`), and asks no network: the lists are as old as the library.

Invariants: a model that was found by its name alone is said to be; the library is loaded only when
it is asked, and in a thread, since its lists are long.
"""

import asyncio
from datetime import datetime
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

import msgspec

from app.core.access import ProviderKind
from app.core.suggestions import Listed

if TYPE_CHECKING:
    from genai_prices.data_snapshot import DataSnapshot

LIBRARY: Final = "genai-prices"

KINDS: Final[dict[ProviderKind, str]] = {
    "openai": "openai",
    "azure": "azure",
    "mistral": "mistral",
    "anthropic": "anthropic",
    "cohere": "cohere",
}
"""Whose list to look into; a provider of another kind is known by its address."""


class Wanted(msgspec.Struct, frozen=True):
    """A model to look for: the name that its provider knows it by, and who that is."""

    upstream_model: str
    kind: ProviderKind
    base_url: str


class Offer(msgspec.Struct, frozen=True):
    """What a list says of a model."""

    source: str
    """Which list, and by which name the model is in it."""
    listed: dict[str, Listed]
    by_name_alone: bool
    varies: bool
    """Whether the prices depend on the hour of the day."""


async def offers(wanted: list[Wanted], at: datetime) -> list[Offer | None]:
    """Look models up, as of an instant; None: a model is in no list."""
    return await asyncio.to_thread(lambda: [_offer(one, at) for one in wanted])


@cache
def _lists() -> "DataSnapshot":
    from genai_prices.data_snapshot import get_snapshot

    return get_snapshot()


def _offer(wanted: Wanted, at: datetime) -> Offer | None:
    found = _found(wanted)
    if found is None:
        return None
    provider, model, by_name_alone = found
    listed: dict[str, Listed] = {}
    for name, price in vars(model.get_prices(at)).items():
        if price is None:
            continue
        tiers = getattr(price, "tiers", None)
        if tiers is None:
            listed[name] = Listed(price)
        else:
            listed[name] = Listed(price.base, tiers[0].start if tiers else None)
    constraints = [getattr(one, "constraint", None) for one in _versions(model)]
    return Offer(
        source=f"{LIBRARY} {version(LIBRARY)}: {provider.name}, {model.id}",
        listed=listed,
        by_name_alone=by_name_alone,
        varies=any(hasattr(one, "start_time") for one in constraints),
    )


def _versions(model: Any) -> list[Any]:
    return model.prices if isinstance(model.prices, list) else []


def _found(wanted: Wanted) -> tuple[Any, Any, bool] | None:
    lists = _lists()
    kind = KINDS.get(wanted.kind)
    ways: list[tuple[str | None, str | None]] = [(kind, None)]
    if kind is None:
        ways = [(None, wanted.base_url), (None, None)]
    for provider_id, address in ways:
        try:
            provider, model = lists.find_provider_model(
                wanted.upstream_model, None, provider_id, address
            )
        except LookupError:
            continue
        return provider, model, (provider_id, address) == (None, None)
    return None
