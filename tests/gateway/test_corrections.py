"""Corrections on a running gateway: what is booked beside calls counts for the next one."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.gateway.kit import DIME, House, Json, Server, Tenant, refused, served


def reprice(house: House, model: str, **fields: Any) -> Json:
    body = {"model": model, "reason": "it had no price"} | fields
    answer: Json = house.api("POST", "/admin/repricing", body)
    return answer


def adjust(house: House, **fields: Any) -> Json:
    answer: Json = house.api("POST", "/admin/adjustments", {"reason": "agreed"} | fields)
    return answer


def an_hour_ago() -> str:
    return (datetime.now(UTC) - timedelta(hours=1)).isoformat()


def test_an_unpriced_model_is_priced_afterwards_and_then_the_cap_refuses(
    house: House, second_server: Server
) -> None:
    model = house.model(None)
    tenant = house.tenant(model, usd="1")
    for _ in range(3):
        served(tenant.chat(max_tokens=4))
    card = tenant.standing()
    assert (card["cost_used_this_month"], card["unpriced_calls_this_month"]) == ("0.00", 3)
    # As if it had had a price from the start.
    house.price(model, DIME, effective_from=an_hour_ago())
    preview = reprice(house, model)
    assert (preview["calls_changed"], preview["difference_usd"]) == (3, "1.20")
    assert tenant.standing()["cost_used_this_month"] == "0.00"
    done = reprice(house, model, dry_run=False)
    assert done | {"dry_run": True, "to": None} == preview | {"to": None}
    card = tenant.standing()
    assert (card["cost_used_this_month"], card["unpriced_calls_this_month"]) == ("1.20", 0)
    assert card["state"] == "exhausted"
    assert [call["cost_usd"] for call in tenant.calls()] == [None, None, None]
    usage = house.api("GET", f"/admin/usage?group_by=model&allocation_id={tenant.allocation_id}")
    assert [(row["cost_usd"], row["unpriced_calls"]) for row in usage["items"]] == [("1.20", 0)]
    again = reprice(house, model, dry_run=False)
    assert (again["calls_changed"], again["difference_usd"]) == (0, "0.00")
    for server in (house.server, second_server):
        error = refused(tenant.chat(max_tokens=1, server=server), 429, "cost_quota_exceeded")
        assert (error["limit"]["used"], error["limit"]["remaining"]) == ("1.20", "0.00")
    # What is taken back can be used again at once.
    adjust(house, allocation_id=tenant.allocation_id, meter="usd", amount="-0.50")
    served(tenant.chat(max_tokens=3))
    assert tenant.standing()["cost_used_this_month"] == "1.00"


def test_a_corrected_call_makes_room_in_every_limit_that_it_counts_in(house: House) -> None:
    model = house.model(DIME)
    limits = [{"meter": "usd", "window": window, "amount": "0.5"} for window in ("hour", "day")]
    tenant = house.tenant(model, usd="0.5", key={"limits": limits, "token_budget": 50})
    call = tenant.booked(served(tenant.chat(max_tokens=5)))
    refused(tenant.chat(max_tokens=1), 429, "cost_quota_exceeded")
    adjust(house, call_id=call["id"], meter="usd", amount="-0.3")
    refused(tenant.chat(max_tokens=4), 429, "cost_quota_exceeded")
    served(tenant.chat(max_tokens=3))
    adjust(house, call_id=call["id"], meter="tokens", amount=100)
    shown = tenant.get("/v1/key").json()
    used = {(one["meter"], one["window"]): one["used"] for one in shown["limits"]}
    assert used == {("tokens", "lifetime"): 128, ("usd", "day"): "0.50", ("usd", "hour"): "0.50"}
    assert all("state" in one["projection"] for one in shown["limits"])
    assert shown["allocations"][0]["cost_projection"]["state"] == "reached"


def test_calls_go_on_while_others_are_priced_again(house: House) -> None:
    model = house.model(None)
    tenants = [house.tenant(model) for _ in range(2)]
    made = [0] * 4

    def call(tenant: Tenant, n: int) -> None:
        for _ in range(12):
            served(tenant.chat(max_tokens=2))
            made[n] += 1

    threads = [threading.Thread(target=call, args=(tenants[n % 2], n)) for n in range(4)]
    for thread in threads:
        thread.start()
    house.price(model, DIME, effective_from=an_hour_ago())
    while any(thread.is_alive() for thread in threads):
        reprice(house, model, dry_run=False)
    for thread in threads:
        thread.join()
    assert made == [12] * 4
    reprice(house, model, dry_run=False)
    for tenant in tenants:
        card = tenant.standing()
        assert (card["cost_used_this_month"], card["unpriced_calls_this_month"]) == ("4.80", 0)
