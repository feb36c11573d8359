"""Thresholds: what calls cross is told once, by the transaction that books them.

How it is delivered is `test_alert_delivery`'s; here destinations are disabled, and the events are
read where settlements write them.
"""

from __future__ import annotations

import json
import secrets
import threading
from typing import Any

import pytest

from app.simulator import RunningSimulator
from tests.gateway.kit import (
    DIME,
    House,
    Server,
    Tenant,
    eventually,
    served,
    session,
    transcriber,
)

PLAIN = {"input_token": "0.01", "output_token": "0.01"}
"""A call of QUESTION with so many tokens more comes to ten more than those."""


@pytest.fixture(scope="module")
def destination(estate: House) -> str:
    """A place that nothing is sent to."""
    body = {
        "name": f"nowhere {secrets.token_hex(4)}",
        "kind": "webhook",
        "address": "https://8.8.8.8/hook",
        "enabled": False,
    }
    id: str = estate.api("POST", "/admin/destinations", body)["id"]
    return id


def rule(
    house: House, destination: str, owner: str, owner_id: str, window: str = "month", **what: Any
) -> str:
    body = {
        "destination_id": destination,
        "owner": owner,
        "owner_id": owner_id,
        "meter": "tokens",
        "window": window,
    } | what
    id: str = house.api("POST", "/admin/alert-rules", body)["id"]
    return id


def told(house: House, rule_id: str) -> list[Any]:
    rows = house.sql("SELECT body FROM events WHERE rule_id = %s ORDER BY created_at", rule_id)
    return [json.loads(body) for (body,) in rows]


def use(tenant: Tenant, tokens: int, **more: Any) -> None:
    """Use so many tokens in all: ten of the question, and an answer."""
    served(tenant.chat(max_tokens=tokens - 10, **more))


@pytest.mark.parametrize(
    ("before", "tokens", "fires"),
    [(0, 101, True), (0, 100, True), (0, 99, False), (101, 20, False)],
)
def test_a_threshold_of_100_tokens_is_told_when_it_is_crossed(
    house: House, sim: RunningSimulator, destination: str, before: int, tokens: int, fires: bool
) -> None:
    sim.set(answer_tokens=1000)
    tenant = house.tenant(house.model(PLAIN))
    if before:
        use(tenant, before)
    id = rule(house, destination, "allocation", tenant.allocation_id, threshold=100)
    use(tenant, tokens)
    if fires or before:
        use(tenant, 50)
    bodies = told(house, id)
    assert len(bodies) == fires
    if fires:
        [body] = bodies
        provider = house.api("GET", f"/admin/models/{tenant.model}")["provider_id"]
        service = house.api("GET", f"/admin/providers/{provider}")["name"]
        timestamp = body.pop("timestamp")
        assert timestamp.endswith("Z")
        assert body.pop("period").endswith("-01T00:00:00Z")
        assert body == {
            "event": "token_threshold_crossed",
            "key_id": tenant.key_id,
            "allocation_id": tenant.allocation_id,
            "service": service,
            "threshold": 100,
            "total_tokens": tokens,
            "limit": None,
            "window": "month",
        }


def test_two_calls_of_ten_at_once_from_90_tell_it_once(
    house: House, sim: RunningSimulator, destination: str, second_server: Server
) -> None:
    sim.set(answer_tokens=1000, latency=0.2)
    tenant = house.tenant(house.model({"input_token": "0", "output_token": "0.01"}))
    id = rule(house, destination, "key", tenant.key_id, "lifetime", threshold=100)
    use(tenant, 80)
    house.client(second_server)
    # Each of them counts eleven: 80, 91, 102.
    threads = [
        threading.Thread(target=use, args=(tenant, 11), kwargs={"server": server})
        for server in (None, second_server)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [body] = told(house, id)
    assert (body["total_tokens"], body["window"], body["period"]) == (102, "lifetime", None)


@pytest.mark.parametrize(
    ("owner", "window"),
    [
        (owner, window)
        for owner in ("key", "allocation", "pool")
        for window in ("hour", "day", "month", "lifetime")
    ]
    + [("key", "rolling:5h")],
)
def test_totals_of_every_owner_and_window_have_thresholds(
    house: House, sim: RunningSimulator, destination: str, owner: str, window: str
) -> None:
    """Also where there is no limit, and counting what was used before the rule was made."""
    sim.set(answer_tokens=1000)
    pool = house.api("POST", "/admin/pools", {"name": secrets.token_hex(6)})["id"]
    tenant = house.tenant(house.model(PLAIN), pool_id=pool)
    use(tenant, 60)
    owner_id = {"key": tenant.key_id, "allocation": tenant.allocation_id, "pool": pool}[owner]
    tokens = rule(house, destination, owner, owner_id, window, threshold=100)
    dollars = rule(house, destination, owner, owner_id, window, meter="usd", threshold="1.00")
    use(tenant, 30)
    assert told(house, tokens) == told(house, dollars) == []
    use(tenant, 30)
    [body] = told(house, tokens)
    assert (body["total_tokens"], body["window"], body["limit"]) == (120, window, None)
    [body] = told(house, dollars)
    assert body["event"] == "cost_threshold_crossed"
    assert (body["threshold"], body["total_cost_usd"]) == ("1.00", "1.20")
    use(tenant, 100)
    assert len(told(house, tokens)) == len(told(house, dollars)) == 1


def test_a_part_of_a_cap_moves_with_the_cap(
    house: House, sim: RunningSimulator, destination: str
) -> None:
    sim.set(answer_tokens=1000)
    tenant = house.tenant(house.model(DIME), usd="10.00")
    id = rule(house, destination, "allocation", tenant.allocation_id, meter="usd", percent=80)
    served(tenant.chat(max_tokens=79))
    assert told(house, id) == []
    served(tenant.chat(max_tokens=1))
    [body] = told(house, id)
    assert (body["threshold"], body["total_cost_usd"], body["limit"]) == ("8.00", "8.00", "10.00")
    tenant.change(quota_cost_usd_per_month="20.00")
    served(tenant.chat(max_tokens=79))
    assert len(told(house, id)) == 1
    served(tenant.chat(max_tokens=1))
    assert [body["threshold"] for body in told(house, id)] == ["8.00", "16.00"]


def test_a_rule_that_is_disabled_or_deleted_tells_nothing(
    house: House, sim: RunningSimulator, destination: str
) -> None:
    sim.set(answer_tokens=1000)
    tenant = house.tenant(house.model(PLAIN))
    disabled = rule(house, destination, "key", tenant.key_id, "day", threshold=20)
    deleted = rule(house, destination, "key", tenant.key_id, "hour", threshold=20)
    house.api("PATCH", f"/admin/alert-rules/{disabled}", {"enabled": False})
    answer = house.client().delete(
        f"/api/admin/alert-rules/{deleted}", headers={"authorization": f"Bearer {house.token}"}
    )
    assert answer.is_success
    use(tenant, 50)
    assert told(house, disabled) == told(house, deleted) == []


def events_of(house: House, kind: str, field: str, value: str) -> list[Any]:
    rows = house.sql("SELECT body FROM events WHERE kind = %s ORDER BY created_at", kind)
    return [body for (text,) in rows if (body := json.loads(text))[field] == value]


def test_a_model_without_a_price_is_told_once_a_day(house: House, second_server: Server) -> None:
    tenant = house.tenant(house.model(None))
    for server in (None, second_server, None):
        served(tenant.chat(max_tokens=1, server=server))
    [body] = events_of(house, "unpriced_model_seen", "model", tenant.model)
    assert body["allocation_id"] == tenant.allocation_id
    assert body["period"].endswith("T00:00:00Z")


def test_an_allocation_that_is_used_up_is_told_and_again_when_it_was_raised(house: House) -> None:
    tenant = house.tenant(house.model(DIME), usd="0.50")

    def exhausted() -> list[Any]:
        return events_of(house, "allocation_exhausted", "allocation_id", tenant.allocation_id)

    served(tenant.chat(max_tokens=4))
    assert exhausted() == []
    served(tenant.chat(max_tokens=1))
    [body] = exhausted()
    assert (body["meter"], body["total"], body["limit"]) == ("usd", "0.50", "0.50")
    assert body["resets_at"]
    tenant.change(quota_cost_usd_per_month="0.80")
    served(tenant.chat(max_tokens=3))
    assert [body["limit"] for body in exhausted()] == ["0.50", "0.80"]


def test_a_session_that_is_cut_is_told(house: House) -> None:
    tenant = house.tenant(transcriber(house), usd="0.05")
    with session(tenant, f"intent=transcription&model={tenant.model}") as socket:
        socket.until("session.created")
        socket.flood(0.5, frames=40)
        socket.refused("cost_quota_exceeded")
    [body] = eventually(
        lambda: events_of(house, "realtime_session_cut", "allocation_id", tenant.allocation_id)
    )
    assert (body["close_reason"], body["cost_usd"]) == ("cost_exceeded", "0.05")
