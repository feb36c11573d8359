"""Idempotency-Key: one call for any number of tries, billed once, answered alike."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from app.simulator import RunningSimulator
from tests.gateway.kit import (
    DIME,
    KINDS,
    QUESTION,
    House,
    Kind,
    Server,
    Tenant,
    eventually,
    refused,
    served,
    wav,
)

SAME = {"idempotency-key": "same"}


@pytest.fixture
def tenant(house: House) -> Tenant:
    return house.tenant(house.model(DIME), usd="10")


def _replayed(again: httpx2.Response, first: httpx2.Response) -> None:
    assert again.status_code == first.status_code
    assert again.content == first.content
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["content-type"] == first.headers["content-type"]
    assert again.headers["x-spendgate-call-id"] == first.headers["x-spendgate-call-id"]
    assert again.headers["x-request-id"]


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS.values() if kind.name != "transcription"], ids=lambda k: k.name
)
def test_the_same_request_again_is_answered_alike_without_call_or_bill_on_any_replica(
    house: House, sim: RunningSimulator, second_server: Server, kind: Kind
) -> None:
    tenant = house.tenant(house.model_for(kind), usd="10")
    first = served(tenant.ask(kind, headers=SAME))
    assert "idempotent-replayed" not in first.headers
    for server in (None, second_server):
        _replayed(tenant.ask(kind, headers=SAME, server=server), first)
    assert sim.app.total == 1
    assert len(tenant.calls()) == 1
    assert tenant.standing()["cost_used_this_month"] == first_cost(tenant, first)


def first_cost(tenant: Tenant, answer: httpx2.Response) -> str:
    """Return what the call behind an answer cost."""
    cost: str = tenant.booked(answer)["cost_usd"]
    return cost


def test_a_form_is_replayed_if_it_is_the_same_to_the_byte(
    house: House, sim: RunningSimulator
) -> None:
    tenant = house.tenant(house.model({"second": "0.1"}, "whisper-1"), usd="10")
    request = httpx2.Request(
        "POST",
        "http://x",
        data={"model": tenant.model},
        files={"file": ("a.wav", wav(1))},
        headers={"content-type": "multipart/form-data; boundary=fixed"},
    )
    body = request.read()
    headers = SAME | {"content-type": request.headers["content-type"]}
    first = served(tenant.post("/v1/audio/transcriptions", content=body, headers=headers))
    _replayed(tenant.post("/v1/audio/transcriptions", content=body, headers=headers), first)
    assert sim.app.total == 1


def test_another_body_or_endpoint_under_the_same_key_is_a_422(
    house: House, sim: RunningSimulator
) -> None:
    tenant = house.tenant(house.model(DIME), usd="10")
    served(tenant.chat(max_tokens=1, headers=SAME))
    error = refused(tenant.chat(max_tokens=2, headers=SAME), 422, "idempotency_key_reused")
    assert error["type"] == "invalid_request_error"
    same_body = {"model": tenant.model, "messages": QUESTION, "max_tokens": 1}
    refused(
        tenant.post("/v1/embeddings", json=same_body | {"input": "x"}, headers=SAME),
        422,
        "idempotency_key_reused",
    )
    assert sim.app.total == 1
    assert len(tenant.calls()) == 1


def test_a_call_that_is_still_running_is_a_409_until_it_is_booked(
    tenant: Tenant, sim: RunningSimulator, second_server: Server
) -> None:
    sim.set(latency=0.6)
    answers: list[httpx2.Response] = []
    caller = threading.Thread(
        target=lambda: answers.append(tenant.chat(max_tokens=1, headers=SAME))
    )
    caller.start()
    eventually(lambda: sim.app.total == 1)
    for server in (None, second_server):
        answer = tenant.chat(max_tokens=1, headers=SAME, server=server)
        refused(answer, 409, "idempotency_key_in_use")
    caller.join()
    _replayed(tenant.chat(max_tokens=1, headers=SAME), served(answers[0]))
    assert sim.app.total == 1


def test_many_tries_at_once_make_one_call(
    tenant: Tenant, sim: RunningSimulator, second_server: Server
) -> None:
    sim.set(latency=0.2)
    served(tenant.chat(max_tokens=1, server=second_server))

    def once(number: int) -> str:
        server = second_server if number % 2 else None
        answer = tenant.chat(max_tokens=7, headers=SAME, server=server)
        if answer.status_code == 200:
            return "replayed" if "idempotent-replayed" in answer.headers else "served"
        return str(answer.json()["error"]["code"])

    with ThreadPoolExecutor(16) as pool:
        ends = Counter(pool.map(once, range(16)))
    assert ends["served"] == 1
    assert ends["served"] + ends["replayed"] + ends["idempotency_key_in_use"] == 16
    assert sim.app.total == 2
    assert tenant.standing()["cost_used_this_month"] == "0.80"


def test_a_key_of_a_refused_call_is_free_again(tenant: Tenant, sim: RunningSimulator) -> None:
    refused(tenant.chat(max_tokens=101, headers=SAME), 429, "cost_quota_exceeded")
    tenant.change(quota_cost_usd_per_month="20")
    served(tenant.chat(max_tokens=101, headers=SAME))
    assert sim.app.total == 1


@pytest.mark.parametrize(
    ("knobs", "status"),
    [
        ({"status": 400}, 400),
        ({"status": 429}, 429),
        ({"status": 500}, 502),
        ({"disconnect": "before-headers"}, 502),
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_key_of_a_failed_call_is_free_again(
    tenant: Tenant, sim: RunningSimulator, knobs: dict[str, Any], status: int, stream: bool
) -> None:
    sim.set(**knobs)
    assert tenant.chat(max_tokens=1, headers=SAME, stream=stream).status_code == status
    sim.reset()
    again = served(tenant.chat(max_tokens=1, headers=SAME, stream=stream))
    assert "idempotent-replayed" not in again.headers


def test_a_key_of_a_stream_that_broke_is_free_again(tenant: Tenant, sim: RunningSimulator) -> None:
    sim.set(disconnect="after:4")
    tenant.chat(max_tokens=9, headers=SAME, stream=True)
    sim.reset()
    again = served(tenant.chat(max_tokens=9, headers=SAME, stream=True))
    assert "idempotent-replayed" not in again.headers
    assert again.content.rstrip().endswith(b"data: [DONE]")


def test_a_bad_request_does_not_take_the_key(tenant: Tenant) -> None:
    answer = tenant.post(
        "/v1/chat/completions", json={"model": tenant.model, "messages": 7}, headers=SAME
    )
    refused(answer, 400, "invalid_request")
    served(tenant.chat(max_tokens=1, headers=SAME))


def test_a_client_that_left_has_the_whole_stream_replayed(
    tenant: Tenant, sim: RunningSimulator
) -> None:
    sim.set(chunk_delay=0.03, answer_tokens=6)
    with tenant.stream(headers=SAME) as answer:
        next(answer.iter_raw())
    row = tenant.booked(answer)
    assert row["outcome"] == "client_disconnected"
    again = tenant.chat(stream=True, headers=SAME)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.content.startswith(b"data: {")
    assert again.content.rstrip().endswith(b"data: [DONE]")
    assert sim.app.total == 1


def test_a_replayed_stream_is_the_same_to_the_byte(tenant: Tenant, sim: RunningSimulator) -> None:
    sim.set(crlf=True, split="utf8", text="żółć 🦊 " * 5)
    first = served(tenant.chat(stream=True, headers=SAME))
    again = tenant.chat(stream=True, headers=SAME)
    _replayed(again, first)
    assert again.headers["content-type"] == "text/event-stream; charset=utf-8"


def test_keys_of_two_api_keys_have_nothing_to_do_with_each_other(
    tenant: Tenant, sim: RunningSimulator
) -> None:
    other = tenant.another_key()
    served(tenant.chat(max_tokens=1, headers=SAME))
    answer = served(other.chat(max_tokens=1, headers=SAME))
    assert "idempotent-replayed" not in answer.headers
    assert sim.app.total == 2


def test_a_replay_is_served_above_the_cap(tenant: Tenant) -> None:
    first = served(tenant.chat(max_tokens=16, headers=SAME))
    tenant.change(quota_cost_usd_per_month=0)
    refused(tenant.chat(max_tokens=1), 429, "cost_quota_exceeded")
    _replayed(tenant.chat(max_tokens=16, headers=SAME), first)


def test_a_replay_is_not_served_to_a_key_that_is_revoked(house: House, tenant: Tenant) -> None:
    served(tenant.chat(max_tokens=1, headers=SAME))
    house.api("POST", f"/admin/keys/{tenant.key_id}/revoke")
    eventually(
        lambda: tenant.chat(max_tokens=1, headers=SAME).status_code == 401,
        within=1,
        what="the key's end",
    )


@pytest.mark.parametrize("key", [b"", b"x" * 256, b"two words", b"\xff", "ż".encode()], ids=ascii)
def test_a_key_that_cannot_be_kept_is_a_400(
    tenant: Tenant, sim: RunningSimulator, key: bytes
) -> None:
    answer = tenant.chat(max_tokens=1, headers={"idempotency-key": key})
    error = refused(answer, 400, "invalid_request")
    assert error["param"] == "Idempotency-Key"
    assert sim.app.total == 0
