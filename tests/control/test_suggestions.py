"""Prices are suggested from public lists; an admin takes them, or does not."""

from __future__ import annotations

from decimal import Decimal
from typing import Any


async def suggestion(plane: Any, model: str) -> Any:
    """Return what is suggested for a model."""
    page = await plane.ok("GET", f"/admin/price-suggestions?model={model}")
    assert page["next"] is None
    [one] = page["items"]
    return one


async def test_a_suggestion_can_be_taken_as_it_is_and_then_there_is_no_difference(
    plane: Any,
) -> None:
    await plane.model("small", upstream_model="gpt-4o-mini")
    one = await suggestion(plane, "small")
    assert one["state"] == "unpriced"
    assert one["source"].startswith("genai-prices ")
    assert one["source"].endswith("OpenAI, gpt-4o-mini")
    assert {rate["unit"]: (rate["usd"], rate["per"]) for rate in one["rates"]} == {
        "input_token": ("0.15", 1_000_000),
        "cached_input_token": ("0.075", 1_000_000),
        "output_token": ("0.6", 1_000_000),
    }
    assert {change["change"] for change in one["differences"]} == {"added"}
    assert "web_searches" in one["note"]
    assert (await plane.ok("GET", "/admin/prices?model=small"))["items"] == []
    price = await plane.ok("POST", "/admin/prices", {"model": "small", "rates": one["rates"]})
    again = await suggestion(plane, "small")
    assert again["state"] == "same"
    assert again["current_price_id"] == price["id"]
    assert {change["change"] for change in again["differences"]} == {"unchanged"}


async def test_differences_are_shown_unit_by_unit(plane: Any) -> None:
    await plane.model("small", upstream_model="gpt-4o-mini")
    rates = [
        {"unit": "input_token", "usd": "0.00015", "per": 1000},
        {"unit": "output_token", "usd": "5", "per": 1_000_000},
        {"unit": "image", "usd": "0.01", "per": 1},
    ]
    await plane.ok("POST", "/admin/prices", {"model": "small", "rates": rates})
    one = await suggestion(plane, "small")
    assert one["state"] == "different"
    changes = {change["unit"]: change for change in one["differences"]}
    assert {unit: change["change"] for unit, change in changes.items()} == {
        "input_token": "unchanged",
        "output_token": "changed",
        "cached_input_token": "added",
        "image": "removed",
    }
    assert changes["output_token"]["current"] == rates[1]
    assert changes["output_token"]["suggested"]["usd"] == "0.6"
    assert changes["image"]["suggested"] is None


async def test_every_model_is_shown_page_by_page_and_one_that_no_list_knows_as_unknown(
    plane: Any,
) -> None:
    ours = await plane.provider(kind="compatible", base_url="http://gpu.internal/v1")
    mistral = await plane.provider(kind="mistral", base_url="https://api.mistral.ai")
    await plane.model("a-own", provider_id=ours["id"], upstream_model="our-own-model-7")
    await plane.model("b-ocr", provider_id=mistral["id"], upstream_model="mistral-ocr-latest")
    await plane.model("c-named", provider_id=ours["id"], upstream_model="gpt-4o-mini")
    await plane.model("d-tiers", upstream_model="whisper-1")
    first = await plane.ok("GET", "/admin/price-suggestions?limit=2")
    rest = await plane.ok("GET", f"/admin/price-suggestions?limit=2&cursor={first['next']}")
    own, ocr, named, whisper = [*first["items"], *rest["items"]]
    assert (own["state"], own["source"], own["rates"], own["differences"]) == (
        "unknown",
        None,
        [],
        [],
    )
    assert ocr["rates"][0]["unit"] == "page"
    assert ocr["rates"][0]["per"] == 1000
    assert "name alone" in named["note"]
    [second] = whisper["rates"]
    assert (second["unit"], second["per"]) == ("second", 3600)
    assert Decimal(second["usd"]) > 0


async def test_an_unknown_model_is_not_there(plane: Any) -> None:
    answer = await plane.call("GET", "/admin/price-suggestions?model=nothing")
    assert answer.status_code == 404


async def test_an_auditor_may_look(town: Any) -> None:
    auditor = await town.inside("auditor")
    assert await auditor.browser.status("GET", "/admin/price-suggestions") == 200
