"""Providers that fail, and what must stay between them and us: their key, their address, our keys."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import httpx2
import pytest

from app.simulator import RunningSimulator
from tests.gateway.kit import (
    DIME,
    KINDS,
    PROVIDER_KEY,
    QUESTION,
    House,
    Kind,
    Server,
    Tenant,
    eventually,
    refused,
    served,
)

JSON_KINDS = [kind for kind in KINDS.values() if kind.name not in ("speech", "transcription")]


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Every kind of call."""
    return request.param  # type: ignore[no-any-return]


def _is_void(tenant: Tenant, answer: httpx2.Response, status: int) -> dict[str, Any]:
    """Check that a call came to nothing and cost nothing."""
    row = tenant.booked(answer)
    assert (row["outcome"], row["status_code"]) == ("upstream_error", status)
    assert (row["usage"], row["tokens"], row["cost_usd"]) == ({}, 0, "0.00")
    assert row["error_message"]
    standing = tenant.standing()
    assert (standing["cost_used_this_month"], standing["cost_held"]) == ("0.00", "0.00")
    assert (standing["tokens_used_this_month"], standing["tokens_held"]) == (0, 0)
    return row


# Errors


@pytest.mark.parametrize(
    ("status", "retry"),
    [
        (400, "false"),
        (401, "false"),
        (403, "false"),
        (404, "false"),
        (408, "true"),
        (409, "false"),
        (418, "false"),
        (422, "false"),
        (429, "true"),
    ],
)
def test_an_error_of_the_client_is_passed_on_as_the_provider_says_it(
    house: House, sim: RunningSimulator, status: int, retry: str
) -> None:
    tenant = house.tenant(house.model(DIME), usd="10")
    sim.set(status=status, message="What the provider says.")
    answer = tenant.chat(max_tokens=5)
    assert answer.status_code == status
    assert answer.json()["error"]["message"] == "What the provider says."
    assert answer.headers["x-should-retry"] == retry
    assert answer.headers["x-request-id"]
    row = _is_void(tenant, answer, status)
    assert "What the provider says." in row["error_message"]


def test_any_other_error_of_the_provider_is_a_502(
    house: House, sim: RunningSimulator, kind: Kind
) -> None:
    tenant = house.tenant(house.model_for(kind), usd="10")
    statuses = (301, 304, 307, 500, 502, 503, 529)
    for status in statuses:
        sim.set(status=status, message="What only we are told.")
        answer = tenant.ask(kind)
        error = refused(answer, 502, "upstream_error")
        assert error["type"] == "upstream_error"
        assert answer.headers["x-should-retry"] == "true"
        assert "only we are told" not in answer.text
        _is_void(tenant, answer, 502)
    assert sim.app.total == len(statuses), "neither repeated nor redirected"


def test_a_provider_that_hangs_up_is_a_502(house: House, sim: RunningSimulator, kind: Kind) -> None:
    tenant = house.tenant(house.model_for(kind), usd="10")
    sim.set(disconnect="before-headers")
    answer = tenant.ask(kind)
    refused(answer, 502, "upstream_error")
    _is_void(tenant, answer, 502)
    assert sim.app.total == 1, "what may have reached a provider is not sent twice"


@pytest.mark.parametrize("kind", JSON_KINDS, ids=lambda kind: kind.name)
def test_a_provider_that_hangs_up_in_the_middle_of_a_whole_answer_is_a_502(
    house: House, sim: RunningSimulator, kind: Kind
) -> None:
    if kind.name == "stream":
        kind = KINDS["transcription"]
    tenant = house.tenant(house.model_for(kind), usd="10")
    sim.set(disconnect="after:1")
    answer = tenant.ask(kind)
    refused(answer, 502, "upstream_error")
    _is_void(tenant, answer, 502)


def test_a_provider_that_hangs_up_in_the_middle_of_speech_is_paid_and_the_client_sees_the_cut(
    house: House, sim: RunningSimulator
) -> None:
    tenant = house.tenant(house.model({"character": "0.01"}, "tts-1"), usd="10")
    sim.set(disconnect="after:2")
    # How the server breaks an answer off.
    house.expected_in_log.append("ASGI callable returned without completing response")
    body = {"model": tenant.model, "input": "x" * 100, "voice": "alloy"}
    with pytest.raises(httpx2.RemoteProtocolError):
        tenant.post("/v1/audio/speech", json=body)
    [row] = eventually(tenant.calls)
    assert (row["outcome"], row["estimated"]) == ("upstream_error", True)
    assert row["usage"] == {"character": 100}


def test_a_provider_that_cannot_be_reached_is_a_502(house: House, kind: Kind) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        nobody = house.provider(base_url=f"http://127.0.0.1:{port}/v1")
        tenant = house.tenant(house.model_for(kind, provider_id=nobody), usd="10")
        answer = tenant.ask(kind)
    refused(answer, 502, "upstream_error")
    row = _is_void(tenant, answer, 502)
    assert str(port) not in answer.text + row["error_message"]


@pytest.mark.parametrize("stall", ["before-headers", "after:0", "after:1"])
def test_a_provider_that_goes_silent_is_a_504(
    house: House, sim: RunningSimulator, second_server: Server, stall: str
) -> None:
    kind = KINDS["chat"]
    tenant = house.tenant(house.model_for(kind), usd="10")
    sim.set(stall=stall)
    begun = time.monotonic()
    answer = tenant.ask(kind, server=second_server)
    assert 0.9 < time.monotonic() - begun < 5
    error = refused(answer, 504, "upstream_timeout")
    assert error["type"] == "upstream_error"
    assert answer.headers["x-should-retry"] == "true"
    _is_void(tenant, answer, 504)
    # Nobody waits for it any longer.
    eventually(lambda: sim.calls[-1].ended == "client_left")


def test_a_stream_that_goes_silent_ends_with_an_error_and_costs_what_came(
    house: House, sim: RunningSimulator, second_server: Server
) -> None:
    tenant = house.tenant(house.model({"input_token": "0", "output_token": "0.1"}), usd="10")
    sim.set(stall="after:5")
    answer = tenant.chat(stream=True, max_tokens=20, server=second_server)
    assert answer.status_code == 200
    assert b'"code":"upstream_timeout"' in answer.content
    assert b"[DONE]" not in answer.content
    row = tenant.booked(answer)
    assert (row["outcome"], row["estimated"]) == ("upstream_error", True)
    assert float(row["cost_usd"]) >= 0.4


@pytest.mark.parametrize("kind", JSON_KINDS, ids=lambda kind: kind.name)
def test_a_200_that_is_no_answer_is_free(house: House, sim: RunningSimulator, kind: Kind) -> None:
    tenant = house.tenant(house.model_for(kind), usd="10")
    sim.set(garbage=True)
    answer = tenant.ask(kind)
    if kind.name == "stream":
        assert b'"code":"upstream_error"' in answer.content
    else:
        refused(answer, 502, "upstream_error")
    _is_void(tenant, answer, 502)


def test_a_provider_without_a_credential_is_a_503_and_nothing_is_held(
    house: House, sim: RunningSimulator
) -> None:
    none = house.provider(api_key=None)
    tenant = house.tenant(house.model(DIME, provider_id=none), usd="10")
    answer = tenant.chat(max_tokens=5)
    error = refused(answer, 503, "provider_unavailable")
    assert error["type"] == "service_unavailable"
    assert tenant.booked(answer)["outcome"] == "rejected_unavailable"
    assert tenant.standing()["cost_held"] == "0.00"
    assert sim.app.total == 0
    # Once it has one, the next call is served.
    house.api("PATCH", f"/admin/providers/{none}", {"api_key": PROVIDER_KEY})
    served(tenant.chat(max_tokens=5))


def test_providers_are_addressed_as_their_kind_wants(house: House, sim: RunningSimulator) -> None:
    for kind, base_url, path, header in (
        ("openai", sim.base_url, "/v1/chat/completions", "authorization"),
        ("openai", f"{sim.base_url}/v1/", "/v1/chat/completions", "authorization"),
        ("mistral", sim.base_url, "/v1/chat/completions", "authorization"),
        ("compatible", f"{sim.base_url}/openai/v1", "/openai/v1/chat/completions", "authorization"),
        ("azure", sim.base_url, "/openai/deployments/gpt-4o/chat/completions", "api-key"),
        ("azure", f"{sim.base_url}/openai/v1", "/openai/v1/chat/completions", "api-key"),
    ):
        provider = house.provider(kind, base_url=base_url)
        tenant = house.tenant(house.model(DIME, provider_id=provider))
        served(tenant.chat(max_tokens=1))
        call = sim.calls[-1]
        assert call.path == path, kind
        assert header in call.headers, kind
        assert call.credential == PROVIDER_KEY
        assert call.query.startswith("api-version=") == ("deployments" in path)


# Secrets


def _hides(text: str, sim: RunningSimulator) -> None:
    assert PROVIDER_KEY not in text
    assert PROVIDER_KEY[-12:] not in text
    assert f"127.0.0.1:{sim.port}" not in text
    assert sim.base_url not in text


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 503])
def test_the_providers_key_and_address_are_in_no_error(
    house: House, sim: RunningSimulator, status: int
) -> None:
    tenant = house.tenant(house.model(DIME), usd="10")
    sim.set(status=status, leak=True)
    for stream in (False, True):
        answer = tenant.chat(max_tokens=5, stream=stream)
        row = tenant.booked(answer)
        for text in (answer.text, str(answer.headers), str(row), str(tenant.calls())):
            _hides(text, sim)
        if status < 500:
            assert "[redacted]" in answer.text


def test_a_masked_echo_of_a_wrong_key_is_redacted(house: House, sim: RunningSimulator) -> None:
    wrong = "sk-wrong-and-also-a-secret-of-somebody"
    provider = house.provider(api_key=wrong)
    tenant = house.tenant(house.model(DIME, provider_id=provider), usd="10")
    answer = tenant.chat(max_tokens=5)
    assert answer.status_code == 401
    row = tenant.booked(answer)
    for text in (answer.text, str(row)):
        assert wrong[:8] not in text
        assert wrong[-4:] not in text.replace("somebody else", "")
    assert wrong not in house.server.log()


@pytest.mark.parametrize("told", ["{key} at {url}", "key {key}", "see {url}/v1/chat"])
def test_the_providers_key_and_address_are_in_no_error_inside_a_stream(
    house: House, sim: RunningSimulator, told: str
) -> None:
    tenant = house.tenant(house.model(DIME), usd="10")
    message = told.format(key=PROVIDER_KEY, url=sim.base_url)
    sim.set(error_event="after:4", message=message)
    answer = tenant.chat(max_tokens=8, stream=True)
    assert b'"error"' in answer.content
    for text in (answer.text, str(tenant.booked(answer))):
        _hides(text, sim)


def test_the_providers_key_and_address_are_nowhere_else(
    house: House, sim: RunningSimulator, kind: Kind
) -> None:
    tenant = house.tenant(house.model_for(kind), usd="10")
    headers = {"authorization": f"Bearer {house.token}"}
    answers = [tenant.ask(kind), tenant.get("/v1/models"), tenant.get("/v1/key")]
    answers += [
        house.client().get(path, headers=headers)
        for path in ("/api/admin/models", "/api/admin/calls", "/api/admin/audit", "/metrics")
    ]
    for answer in answers:
        text = answer.content.decode("latin-1") + str(answer.headers)
        assert PROVIDER_KEY not in text
        assert f"127.0.0.1:{sim.port}" not in text or "audit" in str(answer.url)
    shown = house.client().get("/api/admin/providers", headers=headers).text
    assert PROVIDER_KEY not in shown


def test_of_the_clients_headers_nothing_reaches_the_provider(
    house: House, sim: RunningSimulator, kind: Kind
) -> None:
    tenant = house.tenant(house.model_for(kind), usd="10")
    private = {
        "cookie": "session=private-cookie",
        "x-api-key": "private-api-key",
        "openai-organization": "private-organization",
        "user-agent": "private-agent/1",
        "x-forwarded-for": "192.0.2.7",
        "referer": "https://private.example/",
        "x-stainless-os": "private-os",
        "x-request-id": "private-request-id",
        "accept-encoding": "gzip, br",
        "proxy-authorization": "Basic private",
    }
    answer = tenant.post(kind.path + "?private=query", headers=private, **kind.body(tenant.model))
    served(answer)
    call = sim.calls[-1]
    assert call.credential == PROVIDER_KEY
    assert call.query == ""
    sent = str(call.headers) + call.body
    assert tenant.secret not in sent
    for value in private.values():
        assert value not in sent
    assert "private" not in sent
    assert tenant.model not in sent, "our name of the model is not the provider's business"


def test_of_the_providers_headers_only_harmless_ones_reach_the_client(
    house: House, sim: RunningSimulator
) -> None:
    tenant = house.tenant(house.model(DIME))
    answer = served(tenant.chat(max_tokens=1))
    assert answer.headers["content-type"] == "application/json"
    assert "openai-organization" not in answer.headers
    assert "server" not in answer.headers
    assert not answer.headers["x-request-id"].startswith("req_sim")


def test_a_redirect_does_not_take_the_key_elsewhere(house: House, sim: RunningSimulator) -> None:
    tenant = house.tenant(house.model(DIME), usd="1")
    sim.set(status=302)
    refused(tenant.chat(max_tokens=1), 502, "upstream_error")
    assert sim.app.by_path == {"/v1/chat/completions": 1}


# Slow answers


def test_a_slow_call_keeps_its_hold_past_the_deadline_and_pays_once(
    house: House, sim: RunningSimulator, servers_dir: Any
) -> None:
    server = Server(
        servers_dir / f"hasty-{time.monotonic_ns()}",
        house.dsn,
        hold_deadline_s=1,
        reaper_period_s=0.2,
    ).start()
    house.servers.append(server)
    try:
        tenant = house.tenant(house.model(DIME), usd="1")
        sim.set(latency=3)
        answers: list[httpx2.Response] = []
        caller = threading.Thread(
            target=lambda: answers.append(tenant.chat(max_tokens=10, server=server))
        )
        caller.start()
        eventually(lambda: sim.app.total == 1)
        time.sleep(2)
        assert tenant.standing()["cost_held"] == "1.00"
        caller.join()
        served(answers[0])
        [row] = tenant.calls()
        assert (row["outcome"], row["cost_usd"], row["estimated"]) == ("success", "1.00", False)
    finally:
        house.servers.remove(server)
        server.stop()


def test_messages_reach_the_provider_as_they_were_written(
    house: House, sim: RunningSimulator
) -> None:
    tenant = house.tenant(house.model(DIME))
    content = 'Zażółć gęślą jaźń 🦊 \u2028 \\u0041 " \\'
    served(tenant.chat(messages=[*QUESTION, {"role": "user", "content": content}], max_tokens=1))
    assert sim.calls[-1].json()["messages"] == [*QUESTION, {"role": "user", "content": content}]
