"""Top-ups, pools that share out and zones, where they matter: at the next call of any replica."""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.gateway.kit import DIME, House, Server, Tenant, refused, served


def top_up(tenant: Tenant, meter: str, amount: Any, **more: Any) -> str:
    body = {
        "allocation_id": tenant.allocation_id,
        "meter": meter,
        "amount": amount,
        "reason": "exam week",
        "expires": "period",
    }
    id: str = tenant.house.api("POST", "/admin/top-ups", body | more)["id"]
    return id


def end(tenant: Tenant, id: str) -> None:
    answer = tenant.house.client().delete(
        f"/api/admin/top-ups/{id}", headers={"authorization": f"Bearer {tenant.house.token}"}
    )
    assert answer.status_code == 204, answer.text


def pool(house: House, **fields: Any) -> Any:
    name = f"pool {secrets.token_hex(6)}"
    return house.api("POST", "/admin/pools", {"name": name} | fields)


CODES = {"usd": "cost_quota_exceeded", "tokens": "quota_exceeded"}


@pytest.mark.parametrize(
    ("meter", "cap", "more"), [("usd", "1.00", "1.00"), ("usd", "0", "2.00"), ("tokens", 40, 21)]
)
def test_a_top_up_holds_for_the_next_call_on_every_replica_and_ends_at_once(
    house: House, second_server: Server, meter: str, cap: Any, more: Any
) -> None:
    tenant = house.tenant(house.model(DIME), **{meter: cap})
    if cap != "0":
        served(tenant.chat(max_tokens=10))
    refused(tenant.chat(max_tokens=10), 429, CODES[meter])
    first = top_up(tenant, meter, more)
    served(tenant.chat(max_tokens=10, server=second_server))
    if cap == "0":
        served(tenant.chat(max_tokens=10))
    error = refused(tenant.chat(max_tokens=10), 429, CODES[meter])
    standing = tenant.standing()
    effective = {"usd": "effective_cost_usd_per_month", "tokens": "effective_tokens_per_month"}
    assert error["limit"]["amount"] == standing[effective[meter]]
    second = top_up(tenant, meter, "2.00" if meter == "usd" else 50, expires="day")
    served(tenant.chat(max_tokens=10))
    for id in (first, second):
        end(tenant, id)
    error = refused(tenant.chat(max_tokens=10, server=second_server), 429, CODES[meter])
    assert error["limit"]["amount"] == ("0.00" if cap == "0" else cap)
    assert tenant.standing()["state"] == "exhausted"


def test_a_top_up_is_shared_by_concurrent_calls_to_the_cent(house: House) -> None:
    tenant = house.tenant(house.model(DIME), usd="2.00")
    top_up(tenant, "usd", "3.00")
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda _: tenant.chat(max_tokens=10), range(16)))
    assert sum(answer.status_code == 200 for answer in answers) == 5
    assert tenant.standing()["cost_used_this_month"] == "5.00"


def test_a_top_up_that_expires_is_over_without_anyone_doing_anything(house: House) -> None:
    tenant = house.tenant(house.model(DIME), usd="1.00")
    soon = datetime.now(UTC) + timedelta(seconds=3)
    top_up(tenant, "usd", "9.00", expires=soon.isoformat())
    served(tenant.chat(max_tokens=10))
    served(tenant.chat(max_tokens=10))
    house.sql("SELECT pg_sleep_until(%s)", soon)
    refused(tenant.chat(max_tokens=10), 429, "cost_quota_exceeded")
    assert tenant.standing()["top_ups"] == []


def test_a_zone_of_its_own_takes_along_what_was_used(house: House) -> None:
    tenant = house.tenant(house.model(DIME), usd="2.00")
    served(tenant.chat(max_tokens=10))
    moved = tenant.change(billing_timezone="Etc/GMT+1")
    assert moved["cost_used_this_month"] == "1.00"
    served(tenant.chat(max_tokens=10))
    error = refused(tenant.chat(max_tokens=10), 429, "cost_quota_exceeded")
    assert error["limit"]["resets_at"] == moved["resets_at"]
    back = tenant.change(billing_timezone=None)
    assert back["cost_used_this_month"] == "2.00"
    refused(tenant.chat(max_tokens=10), 429, "cost_quota_exceeded")


def test_a_pool_refuses_what_its_allocation_has_left_and_is_shown_as_what_binds(
    house: House,
) -> None:
    above = pool(house, limits=[{"meter": "usd", "window": "day", "amount": "2.00"}])
    nearest = pool(house, parent_id=above["id"], quota_cost_usd_per_month="9")
    slug = house.model(DIME)
    ann, bob = [house.tenant(slug, usd="5.00", pool_id=nearest["id"]) for _ in range(2)]
    served(ann.chat(max_tokens=10))
    served(bob.chat(max_tokens=10))
    error = refused(ann.chat(max_tokens=10), 429, "cost_quota_exceeded")
    assert (error["limit"]["owner"], error["limit"]["owner_id"]) == ("pool", above["id"])
    binds = ann.get("/v1/key").json()["allocations"][0]["binds"]
    assert (binds["owner_id"], binds["used"], binds["remaining"]) == (above["id"], "2.00", "0.00")
    for id in (above["id"], nearest["id"]):
        shown = house.api("GET", f"/admin/pools/{id}")
        assert (shown["cost_used_this_month"], shown["tokens_used_this_month"]) == ("2.00", 40)
    # Out of the pool, and back in: what was called meanwhile is not the pool's.
    ann.change(pool_id=None)
    served(ann.chat(max_tokens=10))
    ann.change(pool_id=nearest["id"])
    refused(ann.chat(max_tokens=10), 429, "cost_quota_exceeded")
    house.api("PATCH", f"/admin/pools/{nearest['id']}", {"parent_id": None})
    served(ann.chat(max_tokens=10))
    assert house.api("GET", f"/admin/pools/{nearest['id']}")["cost_used_this_month"] == "3.00"
    assert house.api("GET", f"/admin/pools/{above['id']}")["cost_used_this_month"] == "2.00"


def test_caps_that_were_shared_out_hold_for_the_next_call(house: House) -> None:
    shared = pool(house)
    slug = house.model(DIME)
    ann, bob = [house.tenant(slug, tokens=cap, pool_id=shared["id"]) for cap in (20, 300)]
    served(bob.chat(max_tokens=10))
    refused(ann.chat(max_tokens=20), 429, "quota_exceeded")
    house.api("PATCH", f"/admin/allocations/{ann.allocation_id}", {"floor_tokens": 310})
    body = {"dry_run": False}
    done = house.api("POST", f"/admin/pools/{shared['id']}/rebalance", body)
    assert [one["after_tokens"] for one in done["changes"]] == [10, 310]
    served(ann.chat(max_tokens=10))
    refused(bob.chat(max_tokens=10), 429, "quota_exceeded")
