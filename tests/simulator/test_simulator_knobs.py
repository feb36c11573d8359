"""Each knob, the record of calls, and the serving, seen on the wire."""

import asyncio
import hashlib
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import msgspec
import pytest

from app.simulator import RunningSimulator, running_simulator, serve_in_thread
from app.simulator.knobs import KnobError

KEY = {"authorization": "Bearer sim-key"}


@pytest.fixture(scope="module")
def served() -> Iterator[RunningSimulator]:
    with serve_in_thread() as running:
        yield running


@pytest.fixture
def sim(served: RunningSimulator) -> RunningSimulator:
    served.reset()
    return served


@pytest.fixture
async def http(sim: RunningSimulator) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=sim.base_url, headers=KEY) as client:
        yield client


def chat(directive: str = "", **body: Any) -> dict[str, Any]:
    text = f"hello [[sim {directive}]]" if directive else "hello"
    return {"model": "gpt-4o", "messages": [{"role": "user", "content": text}]} | body


def stream(directive: str = "", *, usage: bool = True, **body: Any) -> dict[str, Any]:
    return chat(directive, stream=True, stream_options={"include_usage": usage}, **body)


def events(text: str) -> list[Any]:
    """The decoded data of a whole SSE text; `[DONE]` as itself."""
    found = re.findall(r"^data: (.*?)\r?$", text, re.MULTILINE)
    return [data if data == "[DONE]" else msgspec.json.decode(data) for data in found]


async def until_broken(http: httpx2.AsyncClient, body: dict[str, Any]) -> list[Any]:
    """The events that arrive before the connection breaks."""
    return events((await bytes_until_broken(http, "/v1/chat/completions", body)).decode())


async def bytes_until_broken(http: httpx2.AsyncClient, path: str, body: dict[str, Any]) -> bytes:
    received = b""
    try:
        async with http.stream("POST", path, json=body) as answer:
            async for chunk in answer.aiter_raw():
                received += chunk
    except httpx2.RemoteProtocolError:
        return received
    pytest.fail("the connection did not break")


async def ended(sim: RunningSimulator, how: str) -> None:
    """Wait until the last call ended that way and nothing is open."""
    for _ in range(200):
        if sim.calls[-1].ended == how and sim.app.open == 0:
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"the call is {sim.calls[-1].ended}, not {how}")


# --- Where knobs come from --------------------------------------------------------------


async def test_directives_beat_headers_beat_runtime_beat_construction() -> None:
    async with (
        running_simulator(tokens_in=1, tokens_out=1, cached=1, pages=1) as sim,
        httpx2.AsyncClient(base_url=sim.base_url, headers=KEY) as http,
    ):
        await http.put("/_control", json={"tokens_out": 2, "tokens_in": 20})
        answer = await http.post(
            "/v1/chat/completions",
            json=chat("tokens_out=4"),
            headers={"x-sim-tokens-out": "3", "x-sim": "reasoning=3"},
        )
        usage = answer.json()["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (20, 4)
        assert usage["prompt_tokens_details"]["cached_tokens"] == 1
        assert usage["completion_tokens_details"]["reasoning_tokens"] == 3
        await http.delete("/_control")
        usage = (await http.post("/v1/chat/completions", json=chat())).json()["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (1, 1)


async def test_directives_work_in_the_models_name_and_are_not_answered_back(
    http: httpx2.AsyncClient,
) -> None:
    body = chat(model='gpt-4o[[sim usage=missing text="two words"]]')
    answer = (await http.post("/v1/chat/completions", json=body)).json()
    assert answer["model"] == "gpt-4o"
    assert answer["choices"][0]["message"]["content"] == "two words"
    assert "usage" not in answer


@pytest.mark.parametrize(
    "directive", ["latencey=1", "latency=-1", "disconnect=soon", "usage=none", "status"]
)
async def test_a_wrong_knob_is_refused_aloud(
    http: httpx2.AsyncClient, sim: RunningSimulator, directive: str
) -> None:
    answer = await http.post("/v1/chat/completions", json=chat(directive))
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "simulator_knob"
    name, _, value = directive.partition("=")
    with pytest.raises(KnobError):
        sim.set(**{name: value})
    assert (await http.put("/_control", json={name: value})).status_code == 400


async def test_an_open_quotation_mark_is_refused_aloud(http: httpx2.AsyncClient) -> None:
    answer = await http.post("/v1/chat/completions", json=chat('text="a'))
    assert answer.json()["error"]["code"] == "simulator_knob"


async def test_knobs_for_some_calls_only(http: httpx2.AsyncClient) -> None:
    await http.put("/_control", json={"status": 500, "times": 2})
    statuses = [(await http.post("/v1/chat/completions", json=chat())).status_code for _ in "abc"]
    assert statuses == [500, 500, 200]


# --- Time -------------------------------------------------------------------------------


async def test_latency_comes_before_the_headers(http: httpx2.AsyncClient) -> None:
    start = time.monotonic()
    async with http.stream(
        "POST", "/v1/chat/completions", json=stream("latency=0.15 chunk_delay=0.02")
    ) as answer:
        assert time.monotonic() - start >= 0.15
        await answer.aread()
    assert time.monotonic() - start >= 0.15 + 20 * 0.02


async def test_a_stall_ends_only_when_the_client_leaves(
    http: httpx2.AsyncClient, sim: RunningSimulator
) -> None:
    with pytest.raises(httpx2.ReadTimeout):
        await http.post("/v1/chat/completions", json=chat("stall=true"), timeout=0.1)
    await ended(sim, "client_left")
    with pytest.raises(httpx2.ReadTimeout):
        await http.post("/v1/chat/completions", json=stream("stall=after:3"), timeout=0.1)
    await ended(sim, "client_left")
    assert sim.calls[-1].events_sent == 3


async def test_a_client_that_leaves_a_stream_is_noticed(
    http: httpx2.AsyncClient, sim: RunningSimulator
) -> None:
    body = stream("chunk_delay=0.02 answer_tokens=1000")
    async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        async for _ in answer.aiter_raw():
            break
    await ended(sim, "client_left")
    assert 1 <= sim.calls[-1].events_sent < 20


async def test_stopping_does_not_wait_for_stalled_answers() -> None:
    async with httpx2.AsyncClient(headers=KEY) as http:
        async with running_simulator(stall="before-headers") as sim:
            url = f"{sim.openai_url}/chat/completions"
            request = asyncio.create_task(http.post(url, json=chat()))
            await asyncio.sleep(0.1)
            assert sim.app.open == 1
            start = time.monotonic()
        assert time.monotonic() - start < 1
        with pytest.raises(httpx2.RemoteProtocolError):
            await request


# --- Disconnects ------------------------------------------------------------------------


async def test_disconnect_before_the_headers(
    http: httpx2.AsyncClient, sim: RunningSimulator
) -> None:
    with pytest.raises(httpx2.RemoteProtocolError):
        await http.post("/v1/chat/completions", json=chat("disconnect=before-headers"))
    assert (sim.calls[-1].ended, sim.calls[-1].status) == ("cut", None)
    assert sim.app.total == 1


async def test_disconnect_after_some_chunks(
    http: httpx2.AsyncClient, sim: RunningSimulator
) -> None:
    assert await until_broken(http, stream("disconnect=after:0")) == []
    assert len(await until_broken(http, stream("disconnect=after:3"))) == 3
    assert sim.calls[-1].ended == "cut"


async def test_disconnect_just_before_usage_and_just_before_done(
    http: httpx2.AsyncClient,
) -> None:
    got = await until_broken(http, stream("disconnect=before-usage"))
    assert got[-1]["choices"][0]["finish_reason"] == "stop"
    got = await until_broken(http, stream("disconnect=before-done"))
    assert got[-1]["usage"]["total_tokens"] > 0


async def test_a_json_answer_breaks_in_its_middle(http: httpx2.AsyncClient) -> None:
    with pytest.raises(httpx2.RemoteProtocolError):
        await http.post("/v1/chat/completions", json=chat("disconnect=after:1"))


async def test_audio_breaks_after_some_chunks(http: httpx2.AsyncClient) -> None:
    body = {"model": "tts-1", "voice": "alloy", "input": "x" * 60 + "[[sim disconnect=after:2]]"}
    assert len(await bytes_until_broken(http, "/v1/audio/speech", body)) == 2 * 16_384


async def test_an_error_in_the_middle_of_a_stream(http: httpx2.AsyncClient) -> None:
    answer = await http.post("/v1/chat/completions", json=stream("error_event=after:2"))
    got = events(answer.text)
    assert len(got) == 3
    assert got[-1]["error"]["type"] == "server_error"
    body = {"model": "c", "max_tokens": 9, "stream": True} | {"messages": chat()["messages"]}
    answer = await http.post("/v1/messages", json=body, headers={"x-sim": "error_event=after:4"})
    assert events(answer.text)[-1]["error"]["type"] == "overloaded_error"


# --- Bytes of the stream ----------------------------------------------------------------


async def test_crlf_line_ends(http: httpx2.AsyncClient) -> None:
    plain = await http.post("/v1/chat/completions", json=stream("crlf=false"))
    crlf = await http.post("/v1/chat/completions", json=stream("crlf=true"))
    assert crlf.text.count("\r\n") == crlf.text.count("\n") == plain.text.count("\n")
    assert events(crlf.text)[-1] == "[DONE]"


@pytest.mark.parametrize("split", ["1", "7", "utf8"])
async def test_split_streams_say_the_same(
    http: httpx2.AsyncClient, sim: RunningSimulator, split: str
) -> None:
    text = "Grüße, 世界 🌍 — fin"
    body = stream(f'split={split} text="{text}"')
    chunks: list[bytes] = []
    async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        chunks = [chunk async for chunk in answer.aiter_raw()]
    got = events(b"".join(chunks).decode())
    assert got[-1] == "[DONE]"
    said = "".join(choice["delta"].get("content", "") for e in got[:-1] for choice in e["choices"])
    assert said == text
    assert len(chunks) > sim.calls[-1].events_sent


# --- Usage ------------------------------------------------------------------------------


async def test_missing_usage(http: httpx2.AsyncClient) -> None:
    whole = (await http.post("/v1/chat/completions", json=chat("usage=missing"))).json()
    assert "usage" not in whole
    answer = await http.post("/v1/chat/completions", json=stream("usage=missing"))
    assert not any(event.get("usage") for event in events(answer.text)[:-1])
    ocr = {
        "model": "mistral-ocr-latest",
        "document": {"type": "file", "file_id": "[[sim usage=missing]]"},
    }
    assert "usage_info" not in (await http.post("/v1/ocr", json=ocr)).json()


async def test_usage_on_a_chunk_with_choices(http: httpx2.AsyncClient) -> None:
    answer = await http.post("/v1/chat/completions", json=stream("usage=on_choices"))
    *rest, last, done = events(answer.text)
    assert done == "[DONE]"
    assert last["choices"][0]["finish_reason"] == "stop"
    assert last["usage"]["total_tokens"] > 0
    assert all(event["usage"] is None for event in rest)
    answer = await http.post("/v1/chat/completions", json=stream("usage=on_choices", usage=False))
    assert not any("usage" in event for event in events(answer.text)[:-1])


async def test_fixed_counts_and_their_parts(http: httpx2.AsyncClient) -> None:
    directive = (
        "tokens_in=1000 cached=100 cache_write=20 audio_in=40 "
        "tokens_out=50 reasoning=30 audio_out=5"
    )
    answer = await http.post("/v1/chat/completions", json=chat(directive, max_tokens=3))
    assert answer.json()["usage"] == {
        "prompt_tokens": 1000,
        "completion_tokens": 50,
        "total_tokens": 1050,
        "prompt_tokens_details": {
            "cached_tokens": 100,
            "audio_tokens": 40,
            "cache_write_tokens": 20,
        },
        "completion_tokens_details": {
            "reasoning_tokens": 3,
            "audio_tokens": 5,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


async def test_parts_never_exceed_their_whole(http: httpx2.AsyncClient) -> None:
    directive = (
        "tokens_in=10 cached=8 cache_write=8 audio_in=8 tokens_out=4 reasoning=9 audio_out=9"
    )
    usage = (await http.post("/v1/chat/completions", json=chat(directive))).json()["usage"]
    details = usage["prompt_tokens_details"]
    assert (details["cached_tokens"], details["cache_write_tokens"]) == (8, 2)
    assert details["audio_tokens"] == 0
    details = usage["completion_tokens_details"]
    assert (details["reasoning_tokens"], details["audio_tokens"]) == (4, 0)


async def test_the_same_request_has_the_same_answer(http: httpx2.AsyncClient) -> None:
    first, second = [
        (await http.post("/v1/chat/completions", json=chat())).json() for _ in range(2)
    ]
    assert first["choices"] == second["choices"]
    assert first["usage"] == second["usage"]
    assert first["id"] != second["id"]


async def test_an_answer_may_be_empty(http: httpx2.AsyncClient) -> None:
    usage = (await http.post("/v1/chat/completions", json=chat("text="))).json()["usage"]
    assert usage["completion_tokens"] == 0


# --- Errors -----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 403, 404, 408, 429, 500, 503])
async def test_status(http: httpx2.AsyncClient, status: int) -> None:
    answer = await http.post(
        "/v1/chat/completions", json=chat(f"status={status} retry_after=7 message='so there'")
    )
    assert answer.status_code == status
    assert answer.headers["retry-after"] == "7"
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.json()["error"]["message"] == "so there"


async def test_a_redirect(http: httpx2.AsyncClient) -> None:
    answer = await http.post("/v1/chat/completions", json=chat("status=302"))
    assert (answer.status_code, answer.headers["location"]) == (302, "/v1/models")


async def test_leak_puts_the_secrets_into_the_error(
    http: httpx2.AsyncClient, sim: RunningSimulator
) -> None:
    answer = await http.post("/v1/chat/completions", json=chat("status=400 leak=true"))
    assert "sim-key" in answer.text
    assert sim.base_url in answer.text


async def test_refused_parameters(http: httpx2.AsyncClient) -> None:
    answer = await http.post(
        "/v1/chat/completions", json=chat("refuse=top_k,max_tokens", max_tokens=4)
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "max_tokens"
    assert answer.json()["error"]["code"] == "unsupported_parameter"


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b"{", "application/json"),
        (b"[]", "application/json"),
        (b'{"model": "\xff"}', "application/json"),
        (b"[" * 100_000, "application/json"),
        (b"{}", "application/json"),
        (b'{"model": "gpt-4o"}', "application/json"),
        (b'{"model": "gpt-4o", "messages": 3}', "application/json"),
        (b'{"model": "gpt-4o", "messages": [{}], "max_tokens": true}', "application/json"),
        (b'{"model": "gpt-4o", "messages": [{}], "n": 0}', "application/json"),
        (b'{"model": "gpt-4o", "messages": [{}]}', "text/plain"),
    ],
)
async def test_malformed_requests(http: httpx2.AsyncClient, raw: bytes, kind: str) -> None:
    answer = await http.post("/v1/chat/completions", content=raw, headers={"content-type": kind})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_malformed_forms(http: httpx2.AsyncClient) -> None:
    for kind in ("multipart/form-data", "multipart/form-data; boundary=x", "application/json"):
        answer = await http.post(
            "/v1/audio/transcriptions", content=b"{}", headers={"content-type": kind}
        )
        assert answer.status_code == 400


async def test_paths_methods_and_credentials(http: httpx2.AsyncClient) -> None:
    assert (await http.post("/v1/nothing", json={})).status_code == 404
    assert (await http.post("/chat/completions", json=chat())).status_code == 404
    assert (await http.get("/v1/chat/completions")).status_code == 405
    azure = "/openai/deployments/d/chat/completions"
    assert (await http.post(azure, json=chat())).status_code == 404
    for key in ({"authorization": ""}, {"authorization": "Bearer no"}):
        answer = await http.post("/v1/chat/completions", json=chat(), headers=key)
        assert answer.status_code == 401
    # Nobody learns from a broken body whether it would have been looked at.
    answer = await http.post("/v1/chat/completions", content=b"{", headers={"authorization": ""})
    assert answer.status_code == 401


async def test_without_a_key_everybody_may_call() -> None:
    async with (
        running_simulator(api_key=None) as sim,
        httpx2.AsyncClient(base_url=sim.base_url) as http,
    ):
        assert (await http.post("/v1/chat/completions", json=chat())).status_code == 200
        assert sim.calls[0].credential is None


async def test_garbage(http: httpx2.AsyncClient) -> None:
    for body in (chat("garbage=true"), stream("garbage=true")):
        answer = await http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200
        assert answer.text.startswith("<html>")


async def test_giant_answers_are_still_right(http: httpx2.AsyncClient) -> None:
    answer = await http.post("/v1/chat/completions", json=chat("giant=3000000"))
    assert len(answer.content) > 3_000_000
    assert answer.json()["usage"]["completion_tokens"] == 16
    answer = await http.post("/v1/chat/completions", json=stream("giant=3000000"))
    assert len(answer.content) > 3_000_000
    assert events(answer.text)[-1] == "[DONE]"


# --- The record -------------------------------------------------------------------------


async def test_calls_are_recorded_with_what_reached_us(
    http: httpx2.AsyncClient, sim: RunningSimulator
) -> None:
    raw = msgspec.json.encode(stream())
    await http.post(
        "/v1/chat/completions?a=b",
        content=raw,
        headers={"content-type": "application/json", "x-mine": "yes"},
    )
    call = sim.calls[-1]
    assert (call.number, call.method, call.path) == (1, "POST", "/v1/chat/completions")
    assert (call.query, call.headers["x-mine"], call.credential) == ("a=b", "yes", "sim-key")
    assert (call.body_bytes, call.body_sha256) == (len(raw), hashlib.sha256(raw).hexdigest())
    assert call.json() == msgspec.json.decode(raw)
    assert (call.model, call.stream, call.status, call.ended) == ("gpt-4o", True, 200, "answered")
    record = (await http.get("/_control/calls")).json()
    assert record["total"] == 1
    assert record["by_path"] == {"/v1/chat/completions": 1}
    assert record["calls"] == [msgspec.to_builtins(call)]
    await http.delete("/_control/calls")
    assert (await http.get("/_control/calls")).json()["calls"] == []


async def test_the_record_is_bounded(http: httpx2.AsyncClient, sim: RunningSimulator) -> None:
    await http.post("/v1/embeddings", json={"model": "m", "input": "x" * 1_000_000})
    assert len(sim.calls[-1].body) <= 16_384
    for _ in range(1_005):
        await http.get("/v1/models")
    assert len(sim.calls) == 1_000
    assert sim.app.total == 1_006
    await asyncio.gather(*(http.get(f"/v1/models/{index}") for index in range(20)))
    assert set(sim.app.by_path) == {"/v1/models", "/v1/embeddings"}


async def test_concurrency_is_counted(http: httpx2.AsyncClient, sim: RunningSimulator) -> None:
    body = chat("latency=0.1")
    await asyncio.gather(*(http.post("/v1/chat/completions", json=body) for _ in range(8)))
    assert sim.app.open_peak == 8
    await ended(sim, "answered")


# --- Serving ----------------------------------------------------------------------------


async def test_serving_in_a_thread() -> None:
    def use() -> int:
        with serve_in_thread(answer_tokens=3) as sim:
            assert sim.base_url.startswith("http://127.0.0.1:")
            answer = httpx2.post(f"{sim.openai_url}/chat/completions", json=chat(), headers=KEY)
            assert len(sim.calls) == 1
            return int(answer.json()["usage"]["completion_tokens"])

    assert await asyncio.to_thread(use) == 3


async def test_a_port_in_use_is_an_error_at_once(sim: RunningSimulator) -> None:
    def use() -> None:
        with serve_in_thread(port=sim.port):
            pass

    with pytest.raises(OSError, match="in use"):
        await asyncio.to_thread(use)
    with pytest.raises(OSError, match="in use"):
        async with running_simulator(port=sim.port):
            pass


async def test_alone_from_the_command_line() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app.simulator", "--port", "0", "answer_tokens=2"),
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout
        line = (await asyncio.wait_for(process.stdout.readline(), 20)).decode()
        url = line.split()[2]
        async with httpx2.AsyncClient(base_url=url, headers=KEY) as http:
            answer = await http.post("/v1/chat/completions", json=chat())
        assert answer.json()["usage"]["completion_tokens"] == 2
    finally:
        process.terminate()
        assert await process.wait() == 0
