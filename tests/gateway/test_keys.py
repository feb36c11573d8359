"""Keys: who may call what, with effect at once on every replica; and what a key can read."""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest

from app.simulator import RunningSimulator
from tests.gateway.kit import (
    DIME,
    KINDS,
    PAGE,
    QUESTION,
    House,
    Server,
    Tenant,
    eventually,
    next_month,
    refused,
    served,
)

CHAT = "/v1/chat/completions"


@pytest.fixture
def tenant(house: House) -> Tenant:
    return house.tenant(house.model(DIME), usd="10")


def _unauthorized(answer: httpx2.Response) -> None:
    error = refused(answer, 401, "invalid_api_key")
    assert error["type"] == "authentication_error"
    assert answer.headers["x-should-retry"] == "false"
    assert "x-spendgate-call-id" not in answer.headers


def _refused_keys(house: House) -> float:
    text = house.client().get("/metrics").text
    found = re.search(r"^spendgate_refused_keys_total (\S+)$", text, re.MULTILINE)
    assert found
    return float(found[1])


# 401: nobody we know


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer sg_unknown",
        "Bearer " + "x" * 5000,
        "Bearer \xff\xfe",
        "Basic c2c6c2c=",
        "{secret}",
        "Bearer {secret}x",
        "Bearer x{secret}",
        "Bearer {token}",
    ],
)
def test_without_a_key_that_is_known_nothing_is_served_and_no_call_recorded(
    house: House, sim: RunningSimulator, tenant: Tenant, authorization: str | None
) -> None:
    before = _refused_keys(house)
    headers: dict[str, Any] = {}
    if authorization is not None:
        value = authorization.format(secret=tenant.secret, token=house.token)
        headers["authorization"] = value.encode("latin-1")
    client = house.client()
    _unauthorized(client.post(CHAT, headers=headers, json={"model": "x", "messages": QUESTION}))
    _unauthorized(client.post(CHAT, headers=headers, content=b"not looked at"))
    for path in ("/v1/models", "/v1/key", "/v1/calls/0", f"/v1/models/{tenant.model}"):
        _unauthorized(client.get(path, headers=headers))
    assert tenant.calls() == []
    assert sim.app.total == 0
    assert _refused_keys(house) == before + 6


def test_the_scheme_may_be_written_in_any_case(tenant: Tenant) -> None:
    headers = {"authorization": f"bEARER   {tenant.secret}"}
    served(tenant.chat(max_tokens=1, headers=headers))


def test_a_revoked_key_opens_nothing_from_then_on_on_any_replica(
    house: House, tenant: Tenant, second_server: Server
) -> None:
    other = tenant.another_key()
    for server in (None, second_server):
        served(tenant.chat(max_tokens=1, server=server))
    house.api("POST", f"/admin/keys/{tenant.key_id}/revoke")
    for server in (second_server, None):
        _unauthorized(tenant.chat(max_tokens=1, server=server))
        eventually(
            lambda server=server: tenant.get("/v1/models", server=server).status_code == 401,
            within=1,
        )
    served(other.chat(max_tokens=1))
    assert len(tenant.calls()) == 2


def test_a_key_made_on_one_replica_opens_at_once_on_the_other(
    house: House, tenant: Tenant, second_server: Server
) -> None:
    allocation = tenant.standing()
    for maker, user in ((None, second_server), (second_server, None)) * 3:
        made = Tenant(house, allocation, house.key(allocation, server=maker))
        served(made.chat(max_tokens=1, server=user))


def test_a_rotated_key_opens_with_its_new_secret_only(
    house: House, tenant: Tenant, second_server: Server
) -> None:
    served(tenant.chat(max_tokens=1, server=second_server))
    rotated = house.api("POST", f"/admin/keys/{tenant.key_id}/rotate")
    assert rotated["key"] != tenant.secret
    for server in (second_server, None):
        _unauthorized(tenant.chat(max_tokens=1, server=server))
        served(tenant.post(CHAT, key=rotated["key"], server=server, json=_one_token(tenant)))


def _one_token(tenant: Tenant) -> dict[str, Any]:
    return {"model": tenant.model, "messages": QUESTION, "max_tokens": 1}


def test_an_expired_key_opens_nothing(house: House, tenant: Tenant) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=1)
    other = tenant.another_key(expires_at=soon.isoformat())
    served(other.chat(max_tokens=1))
    eventually(lambda: datetime.now(UTC) > soon)
    _unauthorized(other.chat(max_tokens=1))
    assert len(other.calls()) == 1


def test_a_one_shot_key_opens_once_on_all_replicas_together(
    house: House, tenant: Tenant, second_server: Server
) -> None:
    once = tenant.another_key(one_shot=True)
    # Reading does not use it up, nor does a call that is refused.
    assert once.get("/v1/models").status_code == 200
    refused(once.chat("another-model"), 403, "model_mismatch")
    refused(once.chat(max_tokens=1000), 429, "cost_quota_exceeded")
    served(once.chat(max_tokens=1))
    for server in (None, second_server):
        _unauthorized(once.chat(max_tokens=1, server=server))
    outcomes = [call["outcome"] for call in once.calls()]
    assert outcomes == ["rejected_model_mismatch", "rejected_cost_quota_exceeded", "success"]


# 403: not for this key


def test_a_model_that_the_key_does_not_open_is_refused_and_recorded(
    house: House, sim: RunningSimulator, tenant: Tenant
) -> None:
    other = house.tenant(house.model(DIME))
    for model in (other.model, "no-such-model"):
        answer = tenant.chat(model)
        error = refused(answer, 403, "model_mismatch")
        assert (error["type"], error["param"]) == ("permission_error", "model")
        row = tenant.booked(answer)
        assert row["outcome"] == "rejected_model_mismatch"
        assert (row["model"], row["key_id"]) == (model, tenant.key_id)
        assert (row["status_code"], row["cost_usd"]) == (403, "0.00")
    assert sim.app.total == 0


@pytest.mark.parametrize("status", ["paused", "quarantined", "revoked"])
def test_an_allocation_that_is_not_active_is_refused_at_once_everywhere(
    house: House, sim: RunningSimulator, tenant: Tenant, second_server: Server, status: str
) -> None:
    served(tenant.chat(max_tokens=1, server=second_server))
    tenant.change(status=status)
    for server in (second_server, None):
        answer = tenant.chat(max_tokens=1, server=server)
        error = refused(answer, 403, f"allocation_{status}")
        assert error["type"] == "permission_error"
        row = tenant.booked(answer)
        assert row["outcome"] == "rejected_inactive"
        assert row["allocation_id"] == tenant.allocation_id
    assert sim.app.total == 1
    tenant.change(status="active")
    for server in (second_server, None):
        served(tenant.chat(max_tokens=1, server=server))


def test_the_keys_of_a_disabled_member_stop_at_once_everywhere(
    house: House, sim: RunningSimulator, tenant: Tenant, second_server: Server
) -> None:
    served(tenant.chat(max_tokens=1, server=second_server))
    path = f"/admin/members/{tenant.member_id}"
    house.api("PATCH", path, {"status": "disabled"})
    for server in (second_server, None):
        answer = tenant.chat(max_tokens=1, server=server)
        refused(answer, 403, "member_disabled")
        assert tenant.booked(answer)["outcome"] == "rejected_inactive"
    assert sim.app.total == 1
    house.api("PATCH", path, {"status": "active"})
    served(tenant.chat(max_tokens=1, server=second_server))


def test_a_key_that_has_ended_reads_nothing_on_any_replica_from_then_on(
    house: House, tenant: Tenant, second_server: Server
) -> None:
    for change in ("revoke", "rotate"):
        # Several, as whether news of a change comes before the next request is a matter of luck.
        for other in [tenant.another_key() for _ in range(5)]:
            for server in (None, second_server):
                assert other.get("/v1/key", server=server).status_code == 200
            house.api("POST", f"/admin/keys/{other.key_id}/{change}")
            for server, path in ((second_server, "/v1/key"), (None, "/v1/models")):
                _unauthorized(other.get(path, server=server))


def test_the_keys_of_a_disabled_member_read_nothing_and_make_no_chat(
    house: House, tenant: Tenant, second_server: Server
) -> None:
    paths = ("/v1/key", "/v1/models", f"/v1/models/{tenant.model}", "/v1/calls/0")
    house.api("PATCH", f"/admin/members/{tenant.member_id}", {"status": "disabled"})
    for server in (second_server, None):
        for path in paths:
            refused(tenant.get(path, server=server), 403, "member_disabled")
        refused(tenant.post("/v1/chats", server=server, json={}), 403, "member_disabled")


def test_the_first_reason_in_order_of_precedence_is_told(house: House) -> None:
    tenant = house.tenant(house.model(DIME), usd=0, tokens=0)
    refused(tenant.chat(max_tokens=1), 429, "quota_exceeded")
    tenant.change(status="paused")
    refused(tenant.chat(max_tokens=1), 403, "allocation_paused")
    refused(tenant.chat("no-such-model"), 403, "model_mismatch")
    house.api("POST", f"/admin/keys/{tenant.key_id}/revoke")
    _unauthorized(tenant.chat(max_tokens=1))


def test_models_taken_off_and_put_on_an_allocation_count_from_the_next_call(
    house: House, tenant: Tenant, second_server: Server
) -> None:
    first, second = tenant.model, house.model(DIME)
    refused(tenant.chat(second), 403, "model_mismatch")
    tenant.change(models=[second])
    served(tenant.chat(second, max_tokens=1, server=second_server))
    refused(tenant.chat(first, server=second_server), 403, "model_mismatch")
    refused(tenant.chat(first), 403, "model_mismatch")


def test_the_model_of_a_call_picks_the_allocation_that_pays(house: House) -> None:
    chat, ocr = house.model(DIME), house.model(PAGE, "mistral-ocr-latest")
    member = house.member()
    rich, poor = house.allocation(member, chat, usd="5"), house.allocation(member, ocr, usd="0.3")
    tenant = Tenant(house, rich, house.key(rich, poor))
    served(tenant.chat(chat, max_tokens=5))
    served(tenant.ocr(3, ocr))
    error = refused(tenant.ocr(1, ocr), 429, "cost_quota_exceeded")
    assert error["limit"]["owner_id"] == poor["id"]
    served(tenant.chat(chat, max_tokens=5))
    paid = {call["model"]: call["allocation_id"] for call in tenant.calls()}
    assert paid == {chat: rich["id"], ocr: poor["id"]}


# What a key can read


def test_a_key_reads_the_calls_that_it_made_and_no_others(house: House, tenant: Tenant) -> None:
    answer = served(tenant.chat(max_tokens=2))
    call_id = answer.headers["x-spendgate-call-id"]
    found = tenant.get(f"/v1/calls/{call_id}")
    assert found.status_code == 200
    assert found.headers["x-request-id"]
    call = found.json()
    assert call["id"] == call_id
    assert call["request_id"] == answer.headers["x-request-id"]
    assert (call["outcome"], call["cost_usd"], call["model"]) == ("success", "0.20", tenant.model)
    assert call["usage"] == {"input_token": 10, "output_token": 2}
    assert call["started_at"] <= call["finished_at"]
    assert call["finished_at"].endswith("Z")
    # A refused call is in the books as well.
    no = tenant.chat("no-such-model")
    seen = tenant.get(f"/v1/calls/{no.headers['x-spendgate-call-id']}").json()
    assert seen["outcome"] == "rejected_model_mismatch"
    # Another key of the same member did not make it.
    for other in (tenant.another_key(), house.tenant(tenant.model)):
        refused(other.get(f"/v1/calls/{call_id}"), 404, "not_found")


@pytest.mark.parametrize(
    "call_id",
    [
        "0197c5a0-0000-7000-8000-000000000000",
        "0197c5a0",
        "x" * 300,
        "%00",
        "'; DROP TABLE calls; --",
        "0197C5A0-0000-7000-8000-000000000000",
    ],
)
def test_a_call_that_there_is_not_is_a_404(tenant: Tenant, call_id: str) -> None:
    refused(tenant.get(f"/v1/calls/{call_id}"), 404, "not_found")


def test_a_key_reads_its_own_limits_and_use(house: House, tenant: Tenant) -> None:
    served(tenant.chat(max_tokens=3))
    found = tenant.get("/v1/key")
    assert found.status_code == 200
    shown = found.json()
    assert shown["id"] == tenant.key_id
    assert tenant.secret not in found.text
    assert shown["cost_used_this_month"] == "0.30"
    assert shown["tokens_used_this_month"] == 13
    assert shown["resets_at"] == next_month()
    [allocation] = shown["allocations"]
    assert allocation["id"] == tenant.allocation_id
    assert allocation["quota_cost_usd_per_month"] == "10.00"
    assert allocation["cost_used_this_month"] == "0.30"
    assert allocation["cost_remaining"] == "9.70"
    assert allocation["quota_tokens_per_month"] is None
    assert allocation["tokens_remaining"] is None
    # What another key of the same allocation used counts there, not here.
    served(tenant.another_key().chat(max_tokens=1))
    shown = tenant.get("/v1/key").json()
    assert shown["cost_used_this_month"] == "0.30"
    assert shown["allocations"][0]["cost_used_this_month"] == "0.40"


def test_a_key_lists_the_models_that_it_opens(house: House) -> None:
    slashed = f"vendor/{secrets.token_hex(4)}/model:v1"
    models = [house.model(DIME), house.model(None), house.model(DIME, slug=slashed)]
    tenant = house.tenant(*models)
    listed = tenant.get("/v1/models").json()
    assert listed["object"] == "list"
    assert {card["id"] for card in listed["data"]} == set(models)
    for card in listed["data"]:
        assert card["object"] == "model"
        assert isinstance(card["created"], int)
        assert isinstance(card["owned_by"], str)
        assert tenant.get(f"/v1/models/{card['id']}").json() == card
    other = house.model(DIME)
    error = refused(tenant.get(f"/v1/models/{other}"), 404, "not_found")
    assert other in error["message"]
    served(tenant.chat(slashed, max_tokens=1))
    # What an inactive allocation opens cannot be called, so it is not listed.
    tenant.change(status="paused")
    eventually(lambda: tenant.get("/v1/models").json()["data"] == [], within=1)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_answers_carry_the_calls_ids_cost_and_what_is_left(house: House, kind: Any) -> None:
    tenant = house.tenant(house.model_for(kind), usd="5", tokens=1000)
    answer = served(tenant.ask(kind))
    row = tenant.booked(answer)
    assert answer.headers["x-request-id"] == row["request_id"]
    left = float(answer.headers["x-spendgate-remaining-usd"])
    cost = float(row["cost_usd"])
    if kind.name == "stream":
        # Its cost is not known before the headers leave: what is left is that beside the hold.
        assert "x-spendgate-cost-usd" not in answer.headers
        assert left <= 5 - cost
    else:
        assert answer.headers["x-spendgate-cost-usd"] == row["cost_usd"]
        assert left == pytest.approx(5 - cost)
        assert int(answer.headers["x-spendgate-remaining-tokens"]) == 1000 - row["tokens"]
