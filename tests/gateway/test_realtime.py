"""Realtime sessions as their clients meet them: opened or refused, relayed, metered, and cut at
the cap. How they end otherwise is in `test_realtime_ends.py`."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import openai
import psutil
import pytest
from openai.types.websocket_reconnection import ReconnectingEvent
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection

from tests.gateway.kit import (
    CENT,
    G711,
    PCM,
    PROVIDER_KEY,
    TALK,
    House,
    Server,
    Tenant,
    Wild,
    configure,
    conversation,
    eventually,
    last_session,
    only_call,
    refused,
    say,
    session,
    talker,
    transcriber,
    transcription,
    used,
)

# Over the cap


@pytest.mark.parametrize("kind", [transcriber, talker])
def test_audio_over_the_usd_cap_is_cut_and_billed_to_the_nano(house: House, kind: Any) -> None:
    tenant = house.tenant(kind(house, {"second": "0.0333333333"}), usd="0.05")
    query = "" if kind is talker else "intent=transcription&"
    with session(tenant, f"{query}model={tenant.model}") as socket:
        socket.until("session.created")
        socket.flood(0.1, frames=100)
        error = socket.refused("cost_quota_exceeded")
        assert socket.closed == (1008, "cost_exceeded")
    assert error["limit"]["amount"] == "0.05"
    call = only_call(tenant)
    assert (call["outcome"], call["close_reason"]) == ("cut_off", "cost_exceeded")
    # The sixteenth tenth of a second would have cost 0.053333334.
    assert (call["usage"], call["cost_usd"]) == ({"second": 1.5}, "0.05")
    assert call["estimated"] is False
    assert last_session(house).audio_bytes == 1.5 * PCM
    before = len(house.sim.calls)
    with session(tenant, f"{query}model={tenant.model}") as socket:
        socket.refused("cost_quota_exceeded")
    assert len(house.sim.calls) == before, "the provider is not reached any more"
    assert [call["outcome"] for call in tenant.calls()][1:] == ["rejected_cost_quota_exceeded"]


def test_at_normal_pace_the_close_comes_within_two_seconds_of_the_money_running_out(
    house: House,
) -> None:
    tenant = house.tenant(transcriber(house), usd="0.012")
    with transcription(tenant) as socket:
        began = time.monotonic()
        for _ in range(200):
            try:
                socket.append(0.02)
            except ConnectionClosed:
                break
            time.sleep(0.02)
        assert socket.end() == (1008, "cost_exceeded")
        assert time.monotonic() - began < 1.2 * 1.2 + 2
    assert only_call(tenant)["cost_usd"] == "0.012"


def test_over_the_token_cap_a_transcription_is_closed(house: House) -> None:
    rates = {"input_audio_token": "0.001", "input_token": "0.001", "output_token": "0.001"}
    tenant = house.tenant(transcriber(house, rates), tokens=300)
    house.sim.set(vad_seconds=0.5)
    with transcription(tenant) as socket:
        socket.flood(0.2, frames=600, pause=0.01)
        socket.refused("quota_exceeded")
        assert socket.closed == (1008, "token_exceeded")
    call = only_call(tenant)
    assert (call["outcome"], call["close_reason"]) == ("cut_off", "token_exceeded")
    assert 200 <= call["tokens"] <= 300
    reported = last_session(house).reported["transcription"]["total_tokens"]
    assert call["tokens"] >= reported


@pytest.mark.parametrize("cap", [{"tokens": 3000}, {"usd": "3"}], ids=["tokens", "usd"])
def test_a_conversation_is_closed_when_a_limit_pays_for_no_more(house: House, cap: Any) -> None:
    tenant = house.tenant(talker(house), **cap)
    code = "quota_exceeded" if "tokens" in cap else "cost_quota_exceeded"
    close = "token_exceeded" if "tokens" in cap else "cost_exceeded"
    with conversation(tenant) as socket:
        with contextlib.suppress(ConnectionClosed, AssertionError):
            while True:
                say(socket, "x" * 100)
                socket.until("response.done")
        socket.end()
        assert socket.closed == (1008, close)
    assert socket.seen[-1]["error"]["code"] == code
    call = only_call(tenant)
    assert (call["outcome"], call["close_reason"]) == ("cut_off", close)
    told = last_session(house).reported["response"]["total_tokens"]
    assert call["tokens"] == told
    assert 1500 <= told <= 3000
    assert Decimal(call["cost_usd"]) == told * Decimal("0.001")
    caps = {"quota_tokens_per_month": told, "quota_cost_usd_per_month": call["cost_usd"]}
    tenant.change(**dict([list(caps.items())["usd" in cap]]))
    before = len(house.sim.calls)
    with session(tenant) as socket:
        socket.refused(code)
    assert len(house.sim.calls) == before


@pytest.mark.parametrize("parallel", [2, 20])
def test_parallel_sessions_of_one_allocation_on_two_replicas_stay_within_the_cap(
    house: House, second_server: Server, parallel: int
) -> None:
    tenant = house.tenant(transcriber(house), usd="0.5")

    def one(number: int) -> str:
        server = (house.server, second_server)[number % 2]
        query = f"intent=transcription&model={tenant.model}"
        with session(tenant, query, server=server) as socket:
            first = socket.next()
            if first is not None and first["type"] == "error":
                return str(first["error"]["code"])
            socket.flood(0.25, frames=400, pause=0.01)
            socket.end()
        assert socket.closed is not None
        return socket.closed[1]

    with ThreadPoolExecutor(parallel) as pool:
        ends = list(pool.map(one, range(parallel)))
    assert set(ends) <= {"cost_exceeded", "cost_quota_exceeded", "quota_reserved"}
    assert ends.count("cost_exceeded") >= 2
    heard = sum(
        Decimal(call.realtime.audio_bytes) / PCM
        for call in house.sim.calls
        if call.realtime is not None
    )
    assert used(tenant) == heard * Decimal("0.01")
    assert Decimal("0.45") <= used(tenant) <= Decimal("0.5")


def test_parallel_conversations_on_two_replicas_stay_within_the_cap(
    house: House, second_server: Server
) -> None:
    """Also if each asks for many answers at once, as long as they come."""
    tenant = house.tenant(talker(house), usd="3")

    def one(number: int) -> tuple[int, str]:
        server = (house.server, second_server)[number % 2]
        with session(tenant, server=server) as socket, contextlib.suppress(ConnectionClosed):
            first = socket.next()
            while first is not None and first["type"] != "error":
                for _ in range(3):
                    aside = {"conversation": "none", "max_output_tokens": "inf"}
                    socket.send("response.create", response=aside | {"instructions": "x" * 50})
                say(socket, "x" * 100)
                for _ in range(4):
                    if socket.next() is None:
                        break
                socket.until("response.done")
        return socket.closed or socket.end()

    def safely(number: int) -> str:
        try:
            return one(number)[1]
        except AssertionError:
            return "cost_exceeded"

    with ThreadPoolExecutor(6) as pool:
        ends = list(pool.map(safely, range(6)))
    assert set(ends) <= {"cost_exceeded", "cost_quota_exceeded", "quota_reserved"}
    told = sum(
        sums["response"]["total_tokens"]
        for call in house.sim.calls
        if call.realtime is not None
        for sums in (call.realtime.reported, call.realtime.unreported)
        if "response" in sums
    )
    assert told * Decimal("0.001") <= used(tenant) <= 3
    assert used(tenant) > 1


def test_a_frame_worth_more_than_the_cap_is_not_forwarded(house: House) -> None:
    tenant = house.tenant(transcriber(house, {"second": "0.1"}), usd="1")
    with transcription(tenant) as socket:
        socket.append(100)
        socket.refused("cost_quota_exceeded")
        assert socket.closed == (1008, "cost_exceeded")
    assert only_call(tenant)["cost_usd"] == "0.00"
    assert last_session(house).audio_bytes == 0


def test_lowering_the_cap_ends_a_session_even_one_that_is_silent(house: House) -> None:
    tenant = house.tenant(transcriber(house), usd="5")
    with transcription(tenant) as socket:
        socket.append(5)
        eventually(lambda: Decimal(tenant.standing()["cost_held"]) > 0)
        time.sleep(0.6)
        tenant.change(quota_cost_usd_per_month="0.02")
        lowered = time.monotonic()
        socket.refused("cost_quota_exceeded")
        assert time.monotonic() - lowered < 2.5
    assert only_call(tenant)["cost_usd"] == "0.05"


def test_raising_the_cap_lets_a_session_go_on(house: House) -> None:
    tenant = house.tenant(transcriber(house), usd="0.05")
    with transcription(tenant) as socket:
        socket.append(4.9)
        tenant.change(quota_cost_usd_per_month="1")
        socket.append(20)
        eventually(lambda: last_session(house).audio_seconds == 24.9)
    assert only_call(tenant)["cost_usd"] == "0.249"


# What is metered

PRICES = {
    "second": ({"second": "0.006"}, 1, "0.006"),
    "minute": ({"second": "0.36"}, 60, "0.006"),
    "audio token": (
        {"input_audio_token": "6", "input_token": "0", "output_token": "0"},
        10_000,
        "0.006",
    ),
}


@pytest.mark.parametrize("price", PRICES)
def test_a_second_of_audio_is_a_second(house: House, price: str) -> None:
    rates, per, each = PRICES[price]
    tenant = house.tenant(transcriber(house, rates, per=per), usd="10")
    for form, rate, seconds in (("audio/pcm", PCM, 90), ("audio/pcmu", G711, 60)):
        what = {"type": form, "rate": 24_000} if rate == PCM else {"type": form}
        with transcription(tenant, update={"format": what, "turn_detection": None}) as socket:
            for _ in range(10):
                socket.append(seconds / 10, rate)
            socket.send("input_audio_buffer.commit")
            socket.until("conversation.item.input_audio_transcription.completed")
        eventually(lambda number=rate: len(tenant.calls()) == (1 if number == PCM else 2))
        call = tenant.calls()[-1]
        assert Decimal(call["cost_usd"]) == seconds * Decimal(each)
        assert call["estimated"] is False
        if price != "audio token":
            assert call["usage"] == {"second": seconds}
        assert (call["outcome"], call["close_reason"]) == ("success", "normal")


def test_a_change_of_format_rates_nothing_anew(house: House) -> None:
    tenant = house.tenant(transcriber(house), usd="10")
    with transcription(tenant, update={"turn_detection": None}) as socket:
        socket.append(5)
        configure(socket, {"format": {"type": "audio/pcmu"}})
        socket.append(3, G711)
        # Not waited for: which of them is in force is not known when the next frame is sent.
        socket.send(
            "session.update",
            session={
                "type": "transcription",
                "audio": {"input": {"format": {"type": "audio/pcm", "rate": 24_000}}},
            },
        )
        socket.append(2)
        socket.until("session.updated")
        socket.append(1)
        eventually(lambda: last_session(house).audio_seconds == 11)
    assert only_call(tenant)["usage"] == {"second": 11}


def test_the_beta_shape_is_metered_alike(house: House) -> None:
    tenant = house.tenant(transcriber(house), usd="10")
    headers = {"authorization": f"Bearer {tenant.secret}", "openai-beta": "realtime=v1"}
    with session(tenant, "intent=transcription", headers=headers) as socket:
        socket.until("transcription_session.created")
        socket.append(2)
        update = {"input_audio_format": "g711_alaw", "turn_detection": None}
        socket.send("transcription_session.update", session=update)
        socket.until("transcription_session.updated")
        socket.append(3, G711)
        eventually(lambda: last_session(house).audio_seconds == 5)
    assert only_call(tenant)["usage"] == {"second": 5}


def test_a_provider_that_reports_seconds_is_not_counted_twice(house: House) -> None:
    tenant = house.tenant(transcriber(house, CENT, "whisper-1"), usd="10")
    house.sim.set(vad_seconds=1, transcriber="whisper-1", usage="twice")
    with transcription(tenant) as socket:
        for _ in range(5):
            socket.append(1)
            socket.until("conversation.item.input_audio_transcription.completed")
    call = only_call(tenant)
    assert (call["usage"], call["cost_usd"]) == ({"second": 5}, "0.05")


def test_a_claimed_format_that_the_provider_refuses_changes_nothing(house: House) -> None:
    tenant = house.tenant(transcriber(house), usd="10")
    with transcription(tenant, update={"turn_detection": None}) as socket:
        configure(socket, {"format": {"type": "audio/pcmu"}})
        socket.send(
            "session.update",
            event_id="mine",
            session={"type": "transcription", "audio": {"input": {"format": {"type": "flac"}}}},
        )
        socket.append(3, G711)
        assert socket.until("error")["error"]["event_id"] == "mine"
        eventually(lambda: last_session(house).audio_seconds == 3)
    assert only_call(tenant)["usage"] == {"second": 3}


def test_a_model_is_checked_whenever_an_update_names_one(house: House) -> None:
    first = transcriber(house)
    second = transcriber(house, {"second": "0.02"}, "gpt-4o-mini-transcribe")
    unpriced = transcriber(house, None)
    outside = transcriber(house)
    tenant = house.tenant(first, second, unpriced, usd="10")
    with transcription(tenant) as socket:
        for model in (outside, "whatever", unpriced):
            socket.append(1)
            update = {"audio": {"input": {"transcription": {"model": model}}}}
            socket.send("session.update", event_id="e1", session={"type": "transcription"} | update)
            error = socket.until("error")["error"]
            code = "model_unpriced" if model == unpriced else "model_mismatch"
            assert (error["code"], error["event_id"]) == (code, "e1")
        configure(socket, {"transcription": {"model": second}})
        socket.append(1)
        eventually(lambda: last_session(house).audio_seconds == 4)
    updates = [f.json() for f in last_session(house).frames if f.type == "session.update"]
    [asked] = [u["session"]["audio"]["input"]["transcription"]["model"] for u in updates]
    assert asked == "gpt-4o-mini-transcribe"
    call = only_call(tenant)
    assert (call["usage"], call["cost_usd"]) == ({"second": 4}, "0.05")


def test_before_any_audio_an_update_may_choose_a_model_without_a_price(house: House) -> None:
    priced, unpriced = transcriber(house), transcriber(house, None, "gpt-4o-mini-transcribe")
    for policy in ("allow", "deny"):
        tenant = house.tenant(priced, unpriced, usd="10", unpriced=policy)
        with transcription(tenant, priced) as socket:
            update = {"audio": {"input": {"transcription": {"model": unpriced}}}}
            socket.send("session.update", session={"type": "transcription"} | update)
            if policy == "allow":
                socket.until("session.updated")
            else:
                assert socket.until("error")["error"]["code"] == "model_unpriced"
            socket.append(1)
            eventually(lambda: last_session(house).audio_seconds == 1)
        call = only_call(tenant)
        expected = (unpriced, None) if policy == "allow" else (priced, "0.01")
        assert (call["model"], call["cost_usd"]) == expected


def test_an_unpriced_model_runs_on_and_is_recorded_with_its_seconds(house: House) -> None:
    tenant = house.tenant(transcriber(house, None), usd="0.000001")
    with transcription(tenant) as socket:
        for _ in range(10):
            socket.append(10)
        eventually(lambda: last_session(house).audio_seconds == 100)
    call = only_call(tenant)
    assert (call["usage"]["second"], call["cost_usd"]) == (100, None)
    assert (call["outcome"], call["close_reason"]) == ("success", "normal")


@pytest.mark.parametrize("how", ["normal", "twice", "late", "missing"])
def test_usage_is_counted_once_however_it_is_told(house: House, how: str) -> None:
    tenant = house.tenant(talker(house), usd="10")
    if how == "late":
        house.sim.set(usage_delay=1)
    elif how != "normal":
        house.sim.set(usage=how)
    with conversation(tenant) as socket:
        say(socket, "x" * 40)
        # The client leaves in the middle, and does not hear of what the usage was.
        socket.until("response.done" if how != "late" else "response.output_item.done")
    call = only_call(tenant)
    told = last_session(house)
    if how == "missing":
        assert call["estimated"] is True
        assert call["tokens"] >= told.unreported["response"]["total_tokens"]
    else:
        assert call["estimated"] is False
        assert call["tokens"] == told.reported["response"]["total_tokens"] == 26
        assert call["usage"] == {"input_token": 10, "output_token": 16}
        assert call["cost_usd"] == "0.026"


def test_who_leaves_during_a_response_pays_for_it(house: House) -> None:
    tenant = house.tenant(talker(house), usd="10")
    house.sim.set(chunk_delay=0.1)
    with conversation(tenant) as socket:
        say(socket, "x" * 40)
        socket.until("response.output_text.delta")
        socket.abort()
    call = only_call(tenant)
    assert (call["outcome"], call["close_reason"]) == ("client_disconnected",) * 2
    told = last_session(house).reported["response"]
    assert call["tokens"] == told["total_tokens"]
    assert 10 < call["tokens"] < 26


def test_seconds_and_tokens_of_one_session_are_one_call(house: House) -> None:
    listener = transcriber(house)
    tenant = house.tenant(talker(house), listener, usd="10")
    house.sim.set(pace=0, vad_seconds=1)
    with conversation(tenant) as socket:
        audio = {"input": {"transcription": {"model": listener}}}
        socket.send("session.update", session={"type": "realtime", "audio": audio})
        socket.until("session.updated")
        socket.append(2)
        socket.until("response.done")
    call = only_call(tenant)
    told = last_session(house).reported["response"]
    assert call["usage"]["second"] == 2
    tokens = sum(n for unit, n in call["usage"].items() if unit.endswith("token"))
    assert tokens == told["total_tokens"]
    assert Decimal(call["cost_usd"]) == Decimal("0.02") + tokens * Decimal("0.001")


# Who may open one


def _no_key(house: House, tenant: Tenant) -> dict[str, str]:
    return {}


def _bad_key(house: House, tenant: Tenant) -> dict[str, str]:
    return {"authorization": "Bearer sg_nobody"}


def _revoked(house: House, tenant: Tenant) -> None:
    house.api("POST", f"/admin/keys/{tenant.key_id}/revoke", {})


def _disabled(house: House, tenant: Tenant) -> None:
    house.api("PATCH", f"/admin/members/{tenant.member_id}", {"status": "disabled"})


REFUSALS: dict[str, tuple[Any, str, str | None]] = {
    "no key": (_no_key, "invalid_api_key", None),
    "a bad key": (_bad_key, "invalid_api_key", None),
    "a revoked key": (_revoked, "invalid_api_key", None),
    "paused": (lambda h, t: t.change(status="paused") and None, "allocation_paused", "inactive"),
    "disabled": (_disabled, "member_disabled", "inactive"),
    "a cap of nothing": (
        lambda h, t: t.change(quota_cost_usd_per_month="0") and None,
        "cost_quota_exceeded",
        "cost_quota_exceeded",
    ),
}


@pytest.mark.parametrize("why", REFUSALS)
def test_who_may_not_call_is_refused_before_the_provider_is_connected(
    house: House, why: str
) -> None:
    act, code, outcome = REFUSALS[why]
    tenant = house.tenant(transcriber(house), usd="1")
    headers = act(house, tenant)
    for query in (f"model={tenant.model}", f"intent=transcription&model={tenant.model}"):
        with session(tenant, query, headers=headers) as socket:
            error = socket.refused(code)
            assert socket.closed == (1008, code)
        assert "sg_" not in error["message"] or "sg_…" in error["message"]
    assert house.sim.calls == []
    recorded = [] if outcome is None else [f"rejected_{outcome}"] * 2
    assert [call["outcome"] for call in tenant.calls()] == recorded
    assert all(call["endpoint"] == "realtime" for call in tenant.calls())


def test_an_expired_key_is_refused(house: House) -> None:
    tenant = house.tenant(transcriber(house))
    expired = tenant.another_key(expires_at="2020-01-01T00:00:00Z")
    with session(expired) as socket:
        socket.refused("invalid_api_key")
    assert house.sim.calls == []


def test_a_model_that_is_not_for_realtime_or_not_the_keys_is_refused(house: House) -> None:
    chat = house.model(TALK, endpoints=["chat/completions"])
    outside = talker(house)
    tenant = house.tenant(chat)
    for query in (f"model={chat}", f"model={outside}", "model=unheard-of"):
        for intent in ("", "intent=transcription&"):
            with session(tenant, intent + query) as socket:
                socket.refused("model_mismatch")
    with session(tenant, "") as socket:
        assert socket.refused("invalid_request")["param"] == "model"
    with session(tenant, f"model={chat}&model={chat}") as socket:
        socket.refused("invalid_request")
    with session(tenant, f"model={chat}&intent=singing") as socket:
        socket.refused("invalid_request")
    assert house.sim.calls == []
    assert [call["outcome"] for call in tenant.calls()] == ["rejected_model_mismatch"] * 6


def test_nothing_else_under_v1_is_a_socket_and_the_session_is_nothing_but_one(
    house: House,
) -> None:
    tenant = house.tenant(talker(house))
    refused(tenant.get("/v1/realtime"), 426, "upgrade_required")
    refused(tenant.post("/v1/realtime", json={}), 426, "upgrade_required")
    for path in ("/v1/chat/completions", "/v1/realtime/sessions", "/realtime"):
        with pytest.raises(InvalidStatus), connect(house.url().replace("http", "ws") + path):
            pass
    assert house.sim.calls == []


def test_a_browser_gives_its_key_as_a_subprotocol(house: House) -> None:
    tenant = house.tenant(talker(house), usd="1")
    key = f"openai-insecure-api-key.{tenant.secret}"
    with session(tenant, headers={}, subprotocols=["realtime", key]) as socket:
        socket.until("session.created")
        assert socket.connection.subprotocol == "realtime"
        assert tenant.secret not in str(socket.connection.response)
    with session(tenant, headers={}, subprotocols=[key + "x", "realtime"]) as socket:
        socket.refused("invalid_api_key")
    [call] = house.sim.calls
    assert call.credential == PROVIDER_KEY
    assert tenant.secret not in str(call.headers)
    beta = ["realtime", key, "openai-beta.realtime-v1"]
    with session(tenant, headers={}, subprotocols=beta) as socket:
        created = socket.until("session.created")
    assert "modalities" in created["session"], "the shape is beta's"


def test_a_transcription_client_may_name_its_model_in_its_first_update(house: House) -> None:
    first, second = transcriber(house), transcriber(house, {"second": "0.02"})
    tenant = house.tenant(first, second, usd="1")
    with session(tenant, "intent=transcription") as socket:
        configure(socket, {"transcription": {"model": second}})
        socket.append(1)
        eventually(lambda: last_session(house).audio_seconds == 1)
    call = only_call(tenant)
    assert (call["model"], call["cost_usd"]) == (second, "0.02")


# The SDK


def _until_closed(connection: Any) -> Iterator[Any]:
    with contextlib.suppress(ConnectionClosed):
        yield from connection


# The SDK's way to connect is one that the library below it would rather not see.
@pytest.mark.filterwarnings(r"ignore:connect\(\) must be used:DeprecationWarning")
def test_the_openai_sdk_converses_and_does_not_reconnect_after_a_cap(house: House) -> None:
    tenant = house.tenant(talker(house), usd="0.3")
    reconnects: list[ReconnectingEvent] = []
    client = openai.OpenAI(base_url=f"{house.url()}/v1", api_key=tenant.secret, max_retries=0)
    code = None
    with (
        client,
        client.realtime.connect(
            model=tenant.model, on_reconnecting=lambda event: reconnects.append(event)
        ) as connection,
    ):
        connection.session.update(session={"type": "realtime", "output_modalities": ["text"]})
        text = ""
        for event in _until_closed(connection):
            if event.type == "session.updated" or event.type == "response.done":
                connection.conversation.item.create(
                    item={
                        "type": "message",
                        "role": "user",
                        "content": [{"type": "input_text", "text": "y" * 40}],
                    }
                )
                connection.response.create()
            elif event.type == "response.output_text.delta":
                text += event.delta
            elif event.type == "error":
                code = event.error.code
    assert text
    assert code == "cost_quota_exceeded"
    assert not reconnects
    call = only_call(tenant)
    assert (call["outcome"], call["close_reason"]) == ("cut_off", "cost_exceeded")
    assert len(house.sim.calls) == 1


# The relay


def test_frames_pass_unchanged_and_in_order_in_both_directions(house: House, wild: Wild) -> None:
    got: list[str | bytes] = []

    def echo(connection: ServerConnection) -> None:
        for frame in connection:
            got.append(frame)
            connection.send(frame)

    wild.act = echo
    tenant = wild.tenant(house, usd="10")
    sent: list[str | bytes] = [
        '{"type" : "x.unknown",  "text": "Grüße, \\u4e16界 🦀",\n "n": 1.0e0}',
        '{"type":"input_audio_buffer.append","audio":"AAAA"}',
        bytes(range(256)) * 10,
        b"",
        *[f'{{"type":"x.{n}"}}' for n in range(200)],
    ]
    with session(tenant) as socket:
        socket.until("session.created")
        for frame in sent:
            socket.connection.send(frame)
        back = [socket.connection.recv(10) for _ in sent]
    assert got == sent
    assert back == sent
    assert only_call(tenant)["outcome"] == "success"


def test_a_frame_that_cannot_be_read_is_refused_and_the_session_goes_on(house: House) -> None:
    tenant = house.tenant(talker(house), usd="10")
    with conversation(tenant) as socket:
        for frame in ("no json at all", "", "[1, 2]", '{"type": "session.update", "se'):
            socket.connection.send(frame)
            socket.until("error")
        say(socket)
        socket.until("response.done")
    assert last_session(house).frames_received == 2
    only_call(tenant)


def test_frames_of_many_mebibytes_pass_up_to_sixteen(house: House, wild: Wild) -> None:
    def echo(connection: ServerConnection) -> None:
        for frame in connection:
            connection.send(frame)

    wild.act = echo
    tenant = wild.tenant(house, usd="1000")
    with session(tenant) as socket:
        socket.until("session.created")
        for size in (3 * 2**20, 15 * 2**20, 2**24 - 64):
            frame = '{"type":"input_audio_buffer.append","audio":"' + "A" * size
            frame = frame[: size - 2] + '"}'
            socket.connection.send(frame)
            assert socket.connection.recv(20) == frame
        # Whether a client sees the close frame that it writes past is up to TCP.
        with contextlib.suppress(ConnectionClosed):
            socket.connection.send("x" * (2**24 + 1))
        assert socket.end()[0] in (1009, 1006)
    assert only_call(tenant)["outcome"] == "client_disconnected"


def _memory(server: Server) -> int:
    assert server._process is not None
    return int(psutil.Process(server._process.pid).memory_info().rss)


@pytest.mark.parametrize("slow", ["provider", "client"])
def test_what_one_side_does_not_read_the_other_is_not_asked_for(
    house: House, wild: Wild, slow: str
) -> None:
    frame = json.dumps({"type": "x.blob", "data": "z" * 100_000})
    done = threading.Event()
    progress = [0]

    def pour(send: Callable[[str], None]) -> None:
        with_end = time.monotonic() + 2
        while time.monotonic() < with_end and progress[0] < 4000:
            try:
                send(frame)
            except (ConnectionClosed, TimeoutError):
                return
            progress[0] += 1

    def act(connection: ServerConnection) -> None:
        if slow == "client":
            pour(connection.send)
        done.wait(10)
        connection.close()

    wild.act = act
    tenant = wild.tenant(house, usd="10")
    with session(tenant, max_queue=1, close_timeout=1) as socket:
        socket.until("session.created")
        before = _memory(house.server)
        if slow == "provider":
            pourer = threading.Thread(target=pour, args=(socket.connection.send,), daemon=True)
            pourer.start()
        time.sleep(2)
        grown = _memory(house.server) - before
        done.set()
        socket.abort()
    assert progress[0] < 400, "whoever speaks is held up"
    assert grown < 40 * 2**20
    only_call(tenant, within=20)


def test_pings_are_answered(house: House) -> None:
    tenant = house.tenant(talker(house), usd="1")
    with conversation(tenant) as socket:
        assert socket.connection.ping("there?").wait(2)
    only_call(tenant)


def test_azure_addresses_are_azures(house: House) -> None:
    for suffix, path in (("", "/openai/realtime"), ("/openai/v1", "/openai/v1/realtime")):
        provider = house.provider("azure", base_url=house.sim.base_url + suffix)
        talks = talker(house, provider_id=provider)
        hears = transcriber(house, provider_id=provider)
        tenant = house.tenant(talks, hears, usd="10")
        with conversation(tenant):
            pass
        with transcription(tenant, hears) as socket:
            socket.append(1)
            eventually(lambda: last_session(house).audio_seconds == 1)
        first, second = house.sim.calls[-2:]
        assert first.path == second.path == path
        assert first.headers["api-key"] == PROVIDER_KEY
        assert "intent=transcription" in second.query
        eventually(lambda tenant=tenant: len(tenant.calls()) == 2)


def test_frames_of_a_format_are_base64_like_any(house: House) -> None:
    """What the simulator hears is what was billed, padding and all."""
    tenant = house.tenant(transcriber(house), usd="10")
    with transcription(tenant, update={"turn_detection": None}) as socket:
        sizes = (1, 2, 3, 1199, 4096)
        for size in sizes:
            audio = base64.b64encode(bytes(size)).decode()
            socket.send("input_audio_buffer.append", audio=audio)
        eventually(lambda: last_session(house).audio_bytes == sum(sizes))
    seconds = Decimal(sum(sizes)) / PCM
    assert abs(Decimal(str(only_call(tenant)["usage"]["second"])) - seconds) < Decimal("1e-8")
