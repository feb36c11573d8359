"""Streams: the provider's bytes, billed always, to the client that stays and the one that leaves."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import httpx2
import psycopg
import pytest

from app.simulator import RunningSimulator
from tests.gateway.kit import (
    DIME,
    PROVIDER_KEY,
    QUESTION,
    House,
    Tenant,
    events,
    eventually,
    refused,
    served,
)

RATES = {"input_token": "0.001", "output_token": "0.1"}
"""Sixteen tokens of answer to ten of question cost 1.61."""
EXACT = {"input_token": 10, "output_token": 16}

MULTIBYTE = "Ünïcödé — 日本語のトークン 🦊🪶, zażółć gęślą jaźń"


@pytest.fixture
def tenant(house: House) -> Tenant:
    return house.tenant(house.model(RATES), usd="100")


def _direct(sim: RunningSimulator, **fields: Any) -> bytes:
    """Ask the provider itself."""
    body = {"model": "gpt-4o", "messages": QUESTION, "stream": True} | fields
    headers = {"authorization": f"Bearer {PROVIDER_KEY}"}
    answer = httpx2.post(f"{sim.openai_url}/chat/completions", json=body, headers=headers)
    assert answer.status_code == 200
    return answer.content


def _timeless(body: bytes) -> bytes:
    """Leave out what differs between any two answers."""
    body = re.sub(rb"chatcmpl-sim\d+", b"chatcmpl", body)
    return re.sub(rb'"created":\d+', b'"created":0', body)


def _without_usage(body: bytes, end: bytes) -> bytes:
    """Leave out the event that the client did not ask for."""
    return b"".join(
        event + end * 2 for event in body.split(end * 2)[:-1] if b'"prompt_tokens"' not in event
    )


WRITTEN = [
    {},
    {"crlf": True},
    {"split": "1"},
    {"split": "3", "crlf": True},
    {"split": "utf8", "text": MULTIBYTE},
    {"split": "1", "text": MULTIBYTE, "crlf": True},
    {"text": MULTIBYTE * 20},
    {"tool_call": True},
]
ASKED = {"stream_options": {"include_usage": True}}


@pytest.mark.parametrize("knobs", WRITTEN, ids=str)
@pytest.mark.parametrize("asked", [True, False], ids=["usage asked for", "usage not asked for"])
def test_a_stream_is_the_providers_bytes_with_usage_only_for_who_asked(
    tenant: Tenant, sim: RunningSimulator, knobs: dict[str, Any], asked: bool
) -> None:
    sim.set(**knobs)
    expected = _direct(sim, **ASKED)
    if not asked:
        expected = _without_usage(expected, b"\r\n" if knobs.get("crlf") else b"\n")
        assert b'"prompt_tokens"' not in expected
    fields = ASKED if asked else {}
    answer = served(tenant.chat(stream=True, max_tokens=None, **fields))
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert _timeless(answer.content) == _timeless(expected)
    assert answer.content.count(b"[DONE]") == 1
    row = tenant.booked(answer)
    tokens_out = 16 if "text" not in knobs else len(knobs["text"].encode()) // 4
    assert row["usage"] == {"input_token": 10, "output_token": tokens_out}
    assert (row["outcome"], row["estimated"]) == ("success", False)


@pytest.mark.parametrize(
    "options", [None, {}, {"include_usage": False}, {"include_usage": None}], ids=str
)
def test_usage_is_asked_of_the_provider_whatever_the_client_asked(
    tenant: Tenant, sim: RunningSimulator, options: Any
) -> None:
    fields = {} if options is None else {"stream_options": options}
    answer = served(tenant.chat(stream=True, **fields))
    assert sim.calls[-1].json()["stream_options"]["include_usage"] is True
    assert not any(chunk != "[DONE]" and chunk.get("usage") for chunk in events(answer.content))
    assert tenant.booked(answer)["usage"] == EXACT


def test_other_stream_options_of_the_client_stay(tenant: Tenant, sim: RunningSimulator) -> None:
    options = {"include_obfuscation": False}
    served(tenant.chat(stream=True, stream_options=options))
    assert sim.calls[-1].json()["stream_options"] == options | {"include_usage": True}


@pytest.mark.parametrize("split", [None, "1"])
def test_usage_on_a_chunk_with_choices_is_nulled_for_who_did_not_ask(
    tenant: Tenant, sim: RunningSimulator, split: str | None
) -> None:
    sim.set(usage="on_choices", split=split)
    expected = _direct(sim, **ASKED)
    nulled = re.sub(rb'"usage":\{.*?\}\}(?=\})', b'"usage":null', expected)
    assert nulled != expected
    answer = served(tenant.chat(stream=True))
    assert _timeless(answer.content) == _timeless(nulled)
    assert tenant.booked(answer)["usage"] == EXACT
    asked = served(tenant.chat(stream=True, **ASKED))
    assert _timeless(asked.content) == _timeless(expected)


def test_mistral_reports_usage_unasked_and_is_not_asked(
    house: House, sim: RunningSimulator
) -> None:
    # Its API refuses `stream_options`, and its clients expect the usage they did not ask for.
    sim.set(refuse="stream_options")
    model = house.model(RATES, "mistral-small-latest", kind="mistral")
    tenant = house.tenant(model, usd="100")
    answer = served(tenant.chat(stream=True, max_tokens=16))
    assert events(answer.content)[-2]["usage"]["total_tokens"] == 26
    assert tenant.booked(answer)["usage"] == EXACT


def test_a_stream_without_usage_is_billed_by_an_estimate_that_is_flagged(
    tenant: Tenant, sim: RunningSimulator
) -> None:
    sim.set(usage="missing")
    row = tenant.booked(served(tenant.chat(stream=True)))
    assert (row["outcome"], row["estimated"]) == ("success", True)
    assert row["usage"]["output_token"] >= 16
    assert row["usage"]["input_token"] >= 10


# Clients that leave


def _leave_after(tenant: Tenant, chunks: int, **fields: Any) -> httpx2.Response:
    """Read so many events of a stream, then hang up."""
    with tenant.stream(**fields) as answer:
        assert answer.status_code == 200, answer.read()
        seen = b""
        for piece in answer.iter_raw():
            seen += piece
            if seen.count(b"\n\n") >= chunks:
                break
    return answer


def test_a_client_that_leaves_mid_stream_pays_exactly_for_the_whole(
    tenant: Tenant, sim: RunningSimulator
) -> None:
    sim.set(chunk_delay=0.04)
    row = tenant.booked(_leave_after(tenant, 3))
    assert row["outcome"] == "client_disconnected"
    assert row["usage"] == EXACT
    assert (row["estimated"], row["cost_usd"]) == (False, "1.61")


def test_a_client_that_leaves_just_before_the_usage_pays_exactly(
    tenant: Tenant, sim: RunningSimulator
) -> None:
    sim.set(chunk_delay=0.05)
    # The role, sixteen words, the reason to finish; then the usage would come.
    row = tenant.booked(_leave_after(tenant, 18, **ASKED))
    assert row["outcome"] == "client_disconnected"
    assert (row["usage"], row["estimated"]) == (EXACT, False)


def test_a_client_that_leaves_before_the_first_byte_pays_exactly(
    tenant: Tenant, sim: RunningSimulator
) -> None:
    sim.set(latency=1.2)
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.post(
            f"{tenant.house.url()}/v1/chat/completions",
            headers={"authorization": f"Bearer {tenant.secret}"},
            json={"model": tenant.model, "messages": QUESTION, "stream": True},
            timeout=0.2,
        )
    [row] = eventually(tenant.calls, within=15)
    assert row["outcome"] == "client_disconnected"
    assert (row["usage"], row["estimated"]) == (EXACT, False)


def test_when_the_client_left_before_the_first_byte_the_provider_has_five_seconds_too(
    tenant: Tenant, sim: RunningSimulator
) -> None:
    sim.set(latency=0.8, stall="after:9")
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.post(
            f"{tenant.house.url()}/v1/chat/completions",
            headers={"authorization": f"Bearer {tenant.secret}"},
            json={"model": tenant.model, "messages": QUESTION, "stream": True},
            timeout=0.2,
        )
    [row] = eventually(tenant.calls, within=12)
    assert (row["outcome"], row["estimated"]) == ("client_disconnected", True)
    assert row["usage"]["output_token"] >= 8


@pytest.mark.parametrize("kind", ["chat", "ocr"])
def test_a_client_that_leaves_before_a_whole_answer_pays_exactly(
    house: House, sim: RunningSimulator, kind: str
) -> None:
    model = house.model(
        RATES | {"page": "0.1"}, "mistral-ocr-latest" if kind == "ocr" else "gpt-4o"
    )
    tenant = house.tenant(model, usd="100")
    sim.set(latency=1.2)
    document = {"type": "image_url", "image_url": "data:image/png;base64,iVBORw0KGgo="}
    path, body = (
        ("/v1/chat/completions", {"messages": QUESTION})
        if kind == "chat"
        else ("/v1/ocr", {"document": document})
    )
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.post(
            house.url() + path,
            headers={"authorization": f"Bearer {tenant.secret}"},
            json=body | {"model": model},
            timeout=0.2,
        )
    [row] = eventually(tenant.calls, within=15)
    assert row["outcome"] == "client_disconnected"
    assert row["usage"] == (EXACT if kind == "chat" else {"page": 1})


def test_when_the_client_has_left_and_the_provider_stalls_an_estimate_is_billed(
    tenant: Tenant, sim: RunningSimulator
) -> None:
    sim.set(stall="after:9")
    begun = time.monotonic()
    row = tenant.booked(_leave_after(tenant, 9))
    assert 4.5 < time.monotonic() - begun < 10, "the provider has five seconds"
    assert (row["outcome"], row["estimated"]) == ("client_disconnected", True)
    # The role and eight words had come.
    assert row["usage"]["output_token"] >= 8
    assert row["usage"]["input_token"] >= 10
    assert Decimal(row["cost_usd"]) >= Decimal("0.81")
    # Nobody waits for the rest: the connection to the provider is closed.
    eventually(lambda: sim.calls[-1].ended == "client_left")


# Providers that break


def _broken(tenant: Tenant) -> tuple[httpx2.Response, list[Any]]:
    answer = tenant.chat(stream=True, max_tokens=100)
    return answer, events(answer.content) if answer.status_code == 200 else []


@pytest.mark.parametrize(
    "knobs", [{"disconnect": "before-headers"}, {"status": 500}, {"status": 503}], ids=str
)
def test_a_stream_that_never_begins_is_a_502_and_free(
    tenant: Tenant, sim: RunningSimulator, knobs: dict[str, Any]
) -> None:
    sim.set(**knobs)
    answer, _ = _broken(tenant)
    error = refused(answer, 502, "upstream_error")
    assert error["type"] == "upstream_error"
    row = tenant.booked(answer)
    assert (row["outcome"], row["status_code"]) == ("upstream_error", 502)
    assert (row["usage"], row["cost_usd"], row["tokens"]) == ({}, "0.00", 0)


@pytest.mark.parametrize(
    "knobs",
    [
        {"disconnect": "after:0"},
        {"disconnect": "after:1"},
        {"error_event": "after:0"},
        {"error_event": "after:1"},
        {"garbage": True},
    ],
    ids=str,
)
def test_a_stream_that_breaks_before_any_output_is_free(
    tenant: Tenant, sim: RunningSimulator, knobs: dict[str, Any]
) -> None:
    sim.set(**knobs)
    answer, seen = _broken(tenant)
    if answer.status_code == 200:
        assert "error" in seen[-1], "the client is told"
    else:
        refused(answer, 502, "upstream_error")
    row = tenant.booked(answer)
    assert row["outcome"] == "upstream_error"
    assert (row["usage"], row["cost_usd"], row["tokens"]) == ({}, "0.00", 0)
    standing = tenant.standing()
    assert (standing["cost_used_this_month"], standing["cost_held"]) == ("0.00", "0.00")


@pytest.mark.parametrize("knobs", [{"disconnect": "after:9"}, {"error_event": "after:9"}], ids=str)
def test_a_stream_that_breaks_after_some_output_costs_what_came(
    tenant: Tenant, sim: RunningSimulator, knobs: dict[str, Any]
) -> None:
    sim.set(**knobs)
    answer, seen = _broken(tenant)
    came = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in seen[:-1])
    assert len(came.split()) == 8
    assert "error" in seen[-1]
    row = tenant.booked(answer)
    assert (row["outcome"], row["estimated"]) == ("upstream_error", True)
    # Two bytes a token at the least.
    assert row["usage"]["output_token"] == -(-len(came.encode()) // 2)
    assert row["usage"]["input_token"] >= 10
    assert Decimal(row["cost_usd"]) > Decimal("0.8")


def test_a_stream_that_breaks_after_its_usage_costs_exactly_that(
    tenant: Tenant, sim: RunningSimulator
) -> None:
    sim.set(disconnect="before-done")
    answer, seen = _broken(tenant)
    assert "[DONE]" not in seen
    assert "error" in seen[-1]
    row = tenant.booked(answer)
    assert (row["usage"], row["estimated"], row["cost_usd"]) == (EXACT, False, "1.61")


def test_a_stream_request_that_is_answered_in_one_piece_is_metered_like_one(
    house: House, sim: RunningSimulator
) -> None:
    # Embeddings know no streams: the field is the provider's to judge.
    model = house.model({"input_token": "0.01"}, "text-embedding-3-small")
    tenant = house.tenant(model, usd="1")
    body = {"model": model, "input": "x" * 80, "stream": True, "dimensions": 4}
    answer = served(tenant.post("/v1/embeddings", json=body))
    assert tenant.booked(answer)["cost_usd"] == "0.20"


def test_a_comment_without_end_is_not_kept_in_memory_for_ever(
    tenant: Tenant, sim: RunningSimulator
) -> None:
    sim.set(giant=40 * 2**20)
    answer, seen = _broken(tenant)
    assert "error" in seen[-1]
    row = tenant.booked(answer)
    assert (row["outcome"], row["cost_usd"]) == ("upstream_error", "0.00")


# Nobody has a whole answer that is not in the books


@contextmanager
def _books_locked(tenant: Tenant) -> Iterator[psycopg.Connection[Any]]:
    """Keep the allocation's account from being settled; nothing else can commit meanwhile."""
    with psycopg.connect(tenant.house.dsn) as connection:
        connection.execute(
            "SELECT id FROM accounts WHERE owner_id = %s FOR UPDATE", [tenant.allocation_id]
        )
        yield connection


def test_done_arrives_only_when_the_call_is_booked(tenant: Tenant, sim: RunningSimulator) -> None:
    served(tenant.chat(max_tokens=1))
    sim.set(chunk_delay=0.05, answer_tokens=4)
    body = b""
    held_back = threading.Event()
    with tenant.stream(max_tokens=10) as answer, _books_locked(tenant) as books:

        def release() -> None:
            # Long after the provider has said all.
            eventually(lambda: sim.calls[-1].ended == "answered")
            time.sleep(0.5)
            held_back.set()
            books.commit()

        releasing = threading.Thread(target=release)
        releasing.start()
        for piece in answer.iter_raw():
            body += piece
            if b"[DONE]" in body:
                break
        assert held_back.is_set(), "[DONE] came before the books were written"
        call_id = answer.headers["x-spendgate-call-id"]
        seen = tenant.get(f"/v1/calls/{call_id}")
        assert seen.status_code == 200
        assert seen.json()["usage"] == {"input_token": 10, "output_token": 4}
        releasing.join()


@pytest.mark.parametrize("kind", ["chat", "speech"])
def test_the_last_byte_of_any_answer_arrives_only_when_the_call_is_booked(
    house: House, sim: RunningSimulator, kind: str
) -> None:
    model = house.model(DIME | {"character": "0.001"}, "gpt-4o" if kind == "chat" else "tts-1")
    tenant = house.tenant(model, usd="100")
    requests: dict[str, tuple[str, dict[str, Any]]] = {
        "chat": ("/v1/chat/completions", {"messages": QUESTION, "max_tokens": 3}),
        "speech": ("/v1/audio/speech", {"input": "Hello there", "voice": "alloy"}),
    }
    path, fields = requests[kind]
    body = fields | {"model": model}
    served(tenant.post(path, json=body))
    sim.set(latency=0.3)
    answers: list[httpx2.Response] = []
    caller = threading.Thread(target=lambda: answers.append(tenant.post(path, json=body)))
    caller.start()
    eventually(lambda: sim.app.total == 2)
    with _books_locked(tenant) as books:
        eventually(lambda: sim.calls[-1].ended == "answered")
        time.sleep(0.5)
        assert not answers
        books.commit()
    caller.join()
    served(answers[0])


def test_a_stream_is_passed_on_chunk_by_chunk(tenant: Tenant, sim: RunningSimulator) -> None:
    sim.set(stall="after:3")
    begun = time.monotonic()
    with tenant.stream() as answer:
        seen = b""
        for piece in answer.iter_raw():
            seen += piece
            if seen.count(b"\n\n") == 3:
                break
        assert time.monotonic() - begun < 2
        sim.app.close()
