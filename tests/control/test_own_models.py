"""What members look up to use their keys: their models, and no one else's."""

from __future__ import annotations

from typing import Any

from tests.control.browser import Somebody, Town


async def models_of(somebody: Somebody) -> Any:
    answer = await somebody.browser.call("GET", "/me/models")
    assert answer.status_code == 200, answer.text
    return answer.json()["items"]


async def test_models_show_what_they_serve_and_what_their_price_counts(town: Town) -> None:
    plane, ada = town.plane, await town.inside()
    await plane.model("reader", endpoints=["ocr"])
    await plane.model("writer")
    rates = [{"unit": "page", "usd": "2", "per": 1000}]
    await plane.ok("POST", "/admin/prices", {"model": "reader", "rates": rates})
    await plane.allocation(ada.member["id"], ["writer"])
    await plane.allocation(ada.member["id"], ["reader", "writer"])
    assert await models_of(ada) == [
        {"slug": "reader", "endpoints": ["ocr"], "units": ["page"]},
        {"slug": "writer", "endpoints": None, "units": []},
    ]


async def test_models_of_other_members_do_not_show(town: Town) -> None:
    plane, ada, bob = town.plane, await town.inside(), await town.inside()
    await plane.model("writer")
    await plane.allocation(ada.member["id"], ["writer"])
    assert await models_of(bob) == []


async def test_calls_are_filtered_by_endpoint(town: Town) -> None:
    plane, ada = town.plane, await town.inside()
    tenant = await plane.tenant("writer")
    booked = plane.book(tenant, endpoint="chat/completions")
    plane.book(tenant, endpoint="ocr")
    path = "/admin/calls?endpoint=chat/completions"
    assert [call["id"] for call in (await plane.ok("GET", path))["items"]] == [booked]
    answer = await ada.browser.call("GET", "/me/calls?endpoint=ocr")
    assert answer.json()["items"] == []
