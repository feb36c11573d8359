"""Chats: trees of conversations whose root may carry a spend limit for good."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from app.simulator import RunningSimulator
from tests.gateway.kit import (
    DIME,
    KINDS,
    House,
    Server,
    Tenant,
    eventually,
    only_call,
    refused,
    served,
    session,
    transcriber,
)


def chat(tenant: Tenant, limit: Any = None, parent: str | None = None) -> Any:
    """Make a chat with the tenant's key."""
    body = {"spend_limit_usd": limit, "parent_id": parent}
    answer = tenant.post("/v1/chats", json={k: v for k, v in body.items() if v is not None})
    assert answer.status_code == 201, answer.text
    return answer.json()


def shown(tenant: Tenant, id: str) -> Any:
    answer = tenant.get(f"/v1/chats/{id}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def within(id: str) -> dict[str, Any]:
    return {"X-Spendgate-Chat": id}


def test_the_roots_limit_covers_the_root_and_all_descendants_for_good(house: House) -> None:
    tenant = house.tenant(house.model(DIME))
    root = chat(tenant, "1.00")
    child = chat(tenant, parent=root["id"])
    grandchild = chat(tenant, parent=child["id"])
    assert grandchild["root_id"] == root["id"]
    assert grandchild["spend_limit_usd"] == "1.00"
    served(tenant.chat(max_tokens=4, headers=within(root["id"])))
    served(tenant.chat(max_tokens=5, headers=within(grandchild["id"])))
    answer = tenant.chat(max_tokens=2, headers=within(child["id"]))
    error = refused(answer, 409, "chat_spend_limit_exceeded")
    assert error["type"] == "insufficient_quota"
    assert error["scope"] == "chat_lifetime"
    assert answer.headers["x-should-retry"] == "false"
    limit = error["limit"]
    assert (limit["owner"], limit["owner_id"]) == ("chat", root["id"])
    assert (limit["meter"], limit["window"], limit["resets_at"]) == ("usd", "lifetime", None)
    assert (limit["amount"], limit["used"], limit["remaining"]) == ("1.00", "0.90", "0.10")
    assert tenant.booked(answer)["outcome"] == "rejected_chat_limit_exceeded"
    served(tenant.chat(max_tokens=1, headers=within(child["id"])))
    tree = shown(tenant, child["id"])
    assert (tree["spent_usd"], tree["held_usd"], tree["remaining_usd"]) == ("1.00", "0.00", "0.00")
    # Who names no chat, or another one, is not concerned.
    served(tenant.chat(max_tokens=2))
    served(tenant.chat(max_tokens=2, headers=within(chat(tenant)["id"])))


def test_deleting_a_chat_gives_nothing_back_and_ends_its_use(house: House) -> None:
    tenant = house.tenant(house.model(DIME))
    root = chat(tenant, 1)
    child = chat(tenant, parent=root["id"])
    served(tenant.chat(max_tokens=9, headers=within(child["id"])))
    deleted = house.client().delete(
        f"/v1/chats/{child['id']}", headers={"authorization": f"Bearer {tenant.secret}"}
    )
    assert deleted.status_code == 200
    assert deleted.json()["deleted_at"]
    refused(tenant.chat(max_tokens=1, headers=within(child["id"])), 404, "not_found")
    refused(tenant.chat(max_tokens=2, headers=within(root["id"])), 409, "chat_spend_limit_exceeded")
    answer = tenant.post("/v1/chats", json={"parent_id": child["id"]})
    refused(answer, 404, "not_found")
    assert shown(tenant, root["id"])["spent_usd"] == "0.90"


def test_a_chat_is_decided_before_the_limits_of_the_account(house: House) -> None:
    tenant = house.tenant(
        house.model(DIME),
        usd="0.50",
        key={"limits": [{"meter": "usd", "window": "day", "amount": "0.50"}]},
    )
    root = chat(tenant, "0.40")
    error = refused(
        tenant.chat(max_tokens=6, headers=within(root["id"])), 409, "chat_spend_limit_exceeded"
    )
    assert error["scope"] == "chat_lifetime"
    error = refused(tenant.chat(max_tokens=6), 429, "cost_quota_exceeded")
    assert error["scope"] == "account_period"
    # Refused by the chat, it holds in none; refused by the key, neither in the chat.
    served(tenant.chat(max_tokens=3, headers=within(root["id"])))
    refused(tenant.chat(max_tokens=3), 429, "cost_quota_exceeded")
    assert shown(tenant, root["id"])["spent_usd"] == "0.30"


def test_spend_counts_priced_calls_only(house: House) -> None:
    tenant = house.tenant(house.model(DIME), house.model(None))
    root = chat(tenant, "0.20")
    priced, unpriced = tenant.models
    served(tenant.chat(priced, max_tokens=2, headers=within(root["id"])))
    served(tenant.chat(unpriced, max_tokens=50, headers=within(root["id"])))
    refused(
        tenant.chat(priced, max_tokens=1, headers=within(root["id"])),
        409,
        "chat_spend_limit_exceeded",
    )
    assert shown(tenant, root["id"])["spent_usd"] == "0.20"


def test_a_chat_is_its_members_alone(house: House) -> None:
    tenant, stranger = house.tenant(house.model(DIME)), house.tenant(house.model(DIME))
    root = chat(tenant, "1")
    refused(stranger.chat(max_tokens=1, headers=within(root["id"])), 404, "not_found")
    refused(stranger.get(f"/v1/chats/{root['id']}"), 404, "not_found")
    refused(stranger.post("/v1/chats", json={"parent_id": root["id"]}), 404, "not_found")
    answer = house.client().delete(
        f"/v1/chats/{root['id']}", headers={"authorization": f"Bearer {stranger.secret}"}
    )
    refused(answer, 404, "not_found")
    # Another key of the same member is the same caller.
    served(tenant.another_key().chat(max_tokens=1, headers=within(root["id"])))
    assert shown(tenant, root["id"])["spent_usd"] == "0.10"
    for name in (b"x", b"\xc3\xa9", b"", b"00000000-0000-7000-8000-000000000000"):
        headers = {"X-Spendgate-Chat": name}
        refused(tenant.chat(max_tokens=1, headers=headers), 404, "not_found")


@pytest.mark.parametrize(
    "body",
    [
        b'{"spend_limit_usd": 0}',
        b'{"spend_limit_usd": -1}',
        b'{"spend_limit_usd": "NaN"}',
        b'{"spend_limit_usd": NaN}',
        b'{"spend_limit_usd": true}',
        b'{"spend_limit_usd": 1e30}',
        b'{"spend_limit_usd": "0.0000000001"}',
        b'{"spend_limit_usd": "ten"}',
        b'{"spend_limit_usd": "1_000"}',
        b'{"limit": 1}',
        b"[]",
        b'{"parent_id": 7}',
        b"{",
    ],
)
def test_a_chat_that_makes_no_sense_is_not_made(house: House, body: bytes) -> None:
    tenant = house.tenant(house.model(DIME))
    answer = tenant.post("/v1/chats", content=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert house.sql("SELECT count(*) FROM chats WHERE member_id = %s", tenant.member_id) == [(0,)]


def test_only_a_root_carries_a_limit(house: House) -> None:
    tenant = house.tenant(house.model(DIME))
    root = chat(tenant, "1")
    answer = tenant.post("/v1/chats", json={"parent_id": root["id"], "spend_limit_usd": "2"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "spend_limit_usd"


def test_a_chat_needs_a_key_and_knows_its_methods(house: House) -> None:
    assert house.client().post("/v1/chats", json={}).status_code == 401
    tenant = house.tenant(house.model(DIME))
    assert tenant.get("/v1/chats").status_code == 405
    assert tenant.post("/v1/chats/x", json={}).status_code == 405
    assert tenant.get("/v1/chats/x/y").status_code == 404


def test_sixteen_calls_at_once_on_two_replicas_stay_within_a_chat(
    house: House, second_server: Server
) -> None:
    tenant = house.tenant(house.model(DIME))
    root = chat(tenant, "1")
    children = [chat(tenant, parent=root["id"])["id"] for _ in range(4)]
    house.client(second_server)
    answers: list[int] = []

    def ask(n: int) -> None:
        answer = tenant.chat(
            max_tokens=2,
            headers=within(children[n % 4]),
            server=second_server if n % 2 else None,
        )
        answers.append(answer.status_code)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers.count(200) == 5, answers
    assert set(answers) <= {200, 409, 429}
    assert shown(tenant, root["id"])["spent_usd"] == "1.00"


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_every_kind_of_call_is_charged_to_its_chat(house: House, kind: Any) -> None:
    tenant = house.tenant(house.model_for(kind))
    free, tight = chat(tenant, "100"), chat(tenant, "0.001")
    served(tenant.ask(kind, headers=within(free["id"])))
    eventually(lambda: shown(tenant, free["id"])["held_usd"] == "0.00")
    [call] = tenant.calls()
    assert shown(tenant, free["id"])["spent_usd"] == call["cost_usd"]
    answer = tenant.ask(kind, headers=within(tight["id"]))
    refused(answer, 409, "chat_spend_limit_exceeded")
    assert shown(tenant, tight["id"])["spent_usd"] == "0.00"


def test_a_stream_is_cut_at_the_limit_of_its_chat(house: House, sim: RunningSimulator) -> None:
    tenant = house.tenant(house.model({"input_token": "0", "output_token": "0.001"}))
    root = chat(tenant, "3")
    sim.set(answer_tokens=8000)
    with tenant.stream(headers=within(root["id"])) as running:
        text = running.read().decode()
    assert "chat_spend_limit_exceeded" in text
    assert text.rstrip().endswith("data: [DONE]")
    eventually(lambda: shown(tenant, root["id"])["held_usd"] == "0.00")
    # A slice is reckoned at two bytes a token, so that it is cut a little early.
    assert 1 < float(shown(tenant, root["id"])["spent_usd"]) <= 3


@pytest.mark.parametrize("how", ["chat", "chat_id", "header"])
def test_a_session_names_its_chat_in_its_address_and_is_cut_at_its_limit(
    house: House, how: str
) -> None:
    tenant = house.tenant(transcriber(house))
    root = chat(tenant, "0.05")
    child = chat(tenant, parent=root["id"])
    query = f"intent=transcription&model={tenant.model}"
    headers = {"authorization": f"Bearer {tenant.secret}"}
    if how == "header":
        headers |= within(child["id"])
    else:
        query += f"&{how}={child['id']}"
    with session(tenant, query, headers=headers) as socket:
        socket.until("session.created")
        socket.flood(0.5, frames=40)
        socket.refused("chat_spend_limit_exceeded")
        assert socket.closed == (1008, "cost_exceeded")
    call = only_call(tenant)
    assert (call["outcome"], call["close_reason"]) == ("cut_off", "cost_exceeded")
    assert call["cost_usd"] == "0.05"
    assert shown(tenant, root["id"])["spent_usd"] == "0.05"
    with session(tenant, query, headers=headers) as socket:
        error = socket.refused("chat_spend_limit_exceeded")
    assert error["scope"] == "chat_lifetime"
    assert tenant.calls()[-1]["outcome"] == "rejected_chat_limit_exceeded"


def test_a_session_in_a_chat_of_someone_else_is_refused(house: House) -> None:
    tenant, stranger = house.tenant(transcriber(house)), house.tenant(transcriber(house))
    root = chat(tenant)
    with session(
        stranger, f"intent=transcription&model={stranger.model}&chat={root['id']}"
    ) as socket:
        socket.refused("not_found")
    assert stranger.calls() == []
