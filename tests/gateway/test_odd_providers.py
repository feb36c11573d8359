"""Providers that tell less, or more, than they should; and requests that try a way around a cap."""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.gateway.kit import PROVIDER_KEY, QUESTION, House, Tenant, refused, served, wav

RATES = {"input_token": "0.01", "output_token": "0.01"}


class Odd(ThreadingHTTPServer):
    """A provider that answers every POST with what `answer` makes of it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer: Any = {}
        self.kind = "application/json"
        self.status = 200
        self.headers: dict[str, str] = {}
        self.asked: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Odd

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.asked.append(json.loads(body) if body.startswith(b"{") else {})
        answer = self.server.answer
        if callable(answer):
            answer = answer(self)
        pieces = answer if isinstance(answer, list) else []
        data = b"".join(pieces) or (
            answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        )
        self.send_response(self.server.status)
        self.send_header("content-type", self.server.kind)
        self.send_header("content-length", str(len(data)))
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        for piece in pieces or [data]:
            self.wfile.write(piece)
            if pieces:
                time.sleep(0.005)

    def handle(self) -> None:
        with contextlib.suppress(ConnectionAbortedError):
            super().handle()

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def odd() -> Iterator[Odd]:
    server = Odd()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def tenant_of(house: House, odd: Odd, rates: dict[str, str], **fields: Any) -> Tenant:
    provider = house.provider("compatible", base_url=odd.url, name=f"odd {odd.url}")
    return house.tenant(house.model(rates, provider_id=provider), **fields)


@pytest.mark.parametrize(
    "more",
    [
        {"modalities": ["text", "audio"]},
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
                    ],
                }
            ]
        },
        {"messages": [{"role": "user", "content": "hi", "audio": {"id": "x"}}]},
    ],
    ids=["a spoken answer", "audio", "an earlier answer"],
)
def test_asking_for_audio_is_no_way_around_a_spent_cap(
    house: House, odd: Odd, more: dict[str, Any]
) -> None:
    tenant = tenant_of(house, odd, RATES, usd="0")
    body = {"model": tenant.model, "messages": QUESTION} | more
    refused(tenant.post("/v1/chat/completions", json=body), 429, "cost_quota_exceeded")
    assert odd.asked == []


def test_a_transcription_priced_by_tokens_is_no_way_around_a_spent_cap(
    house: House, odd: Odd
) -> None:
    tenant = tenant_of(house, odd, RATES, usd="0")
    answer = tenant.post(
        "/v1/audio/transcriptions",
        data={"model": tenant.model},
        files={"file": ("talk.wav", wav(2), "audio/wav")},
    )
    refused(answer, 429, "cost_quota_exceeded")
    assert odd.asked == []


def test_a_format_that_is_no_text_is_refused_or_left_to_the_provider(
    house: House, odd: Odd
) -> None:
    odd.answer = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
    tenant = tenant_of(house, odd, RATES)
    part = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": []}}
    body = {"model": tenant.model, "messages": [{"role": "user", "content": [part]}]}
    assert tenant.post("/v1/chat/completions", json=body).status_code < 500


def test_a_model_with_half_a_price_is_unpriced_where_that_is_denied(house: House, odd: Odd) -> None:
    tenant = tenant_of(house, odd, {"input_token": "0.01"})
    tenant.change(unpriced="deny")
    refused(tenant.chat(), 403, "model_unpriced")
    assert odd.asked == []


def test_a_minimal_answer_is_enough(house: House, odd: Odd) -> None:
    odd.answer = {"usage": {"prompt_tokens": 20, "completion_tokens": 10}}
    tenant = tenant_of(house, odd, RATES, usd="10")
    row = tenant.booked(served(tenant.chat(max_tokens=10)))
    assert (row["usage"], row["cost_usd"]) == ({"input_token": 20, "output_token": 10}, "0.30")


def test_an_answer_without_usage_is_billed_the_estimate(house: House, odd: Odd) -> None:
    odd.answer = {"choices": [{"message": {"role": "assistant", "content": "x" * 5000}}]}
    tenant = tenant_of(house, odd, RATES, usd="100")
    row = tenant.booked(served(tenant.chat(max_tokens=10)))
    assert row["estimated"] is True
    assert row["usage"]["output_token"] == 10, "no more than the provider was allowed"


def test_an_error_with_status_200_costs_nothing(house: House, odd: Odd) -> None:
    odd.answer = {"error": {"message": "no capacity"}}
    tenant = tenant_of(house, odd, RATES, usd="10")
    refused(tenant.chat(max_tokens=10), 502, "upstream_error")
    assert tenant.standing()["cost_used_this_month"] == "0.00"


def test_an_error_with_status_200_is_no_speech(house: House, odd: Odd) -> None:
    odd.answer = {"error": {"message": "no capacity"}}
    tenant = tenant_of(house, odd, {"character": "0.01"}, usd="10")
    body = {"model": tenant.model, "input": "Hello", "voice": "alloy"}
    refused(tenant.post("/v1/audio/speech", json=body), 502, "upstream_error")
    assert tenant.standing()["cost_used_this_month"] == "0.00"


def test_speech_in_json_is_passed_on_and_paid(house: House, odd: Odd) -> None:
    odd.answer = {"audio_data": "A" * 300_000}
    tenant = tenant_of(house, odd, {"character": "0.01"}, usd="10")
    body = {"model": tenant.model, "input": "Hello", "voice": "alloy"}
    answer = served(tenant.post("/v1/audio/speech", json=body))
    assert answer.json() == odd.answer
    assert tenant.booked(answer)["cost_usd"] == "0.05"


def test_an_error_event_before_any_output_costs_nothing(house: House, odd: Odd) -> None:
    odd.kind = "text/event-stream"
    odd.answer = b'data: {"error": {"message": "no capacity"}}\n\ndata: [DONE]\n\n'
    tenant = tenant_of(house, odd, RATES, usd="10")
    with tenant.stream(max_tokens=10) as answer:
        answer.read()
    row = tenant.booked(answer)
    assert (row["outcome"], row["cost_usd"], row["usage"]) == ("upstream_error", "0.00", {})


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["content-disposition", "content-type", "openai-processing-ms"])
def test_a_header_of_a_provider_that_is_not_ascii_does_not_lose_the_answer(
    house: House, odd: Odd, name: str, stream: bool
) -> None:
    odd.answer = {"usage": {"prompt_tokens": 20, "completion_tokens": 10}}
    if name == "content-type":
        odd.kind = "application/json; r\u00e9ponse"
    else:
        odd.headers = {name: "r\u00e9ponse"}
    tenant = tenant_of(house, odd, RATES, usd="10")
    answer = served(tenant.chat(max_tokens=10, stream=stream))
    assert answer.json() == odd.answer
    assert name == "content-type" or name not in answer.headers
    assert tenant.booked(answer)["cost_usd"] == "0.30"


def chunk(text: str, completion_tokens: int | None = None) -> bytes:
    said: dict[str, Any] = {"choices": [{"delta": {"content": text}}]}
    if completion_tokens is not None:
        said["usage"] = {"prompt_tokens": 10, "completion_tokens": completion_tokens}
    return b"data: " + json.dumps(said).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def test_usage_on_every_chunk_is_no_way_around_a_cap(house: House, odd: Odd) -> None:
    odd.kind = "text/event-stream"
    # Each chunk is metered as it comes: one read of the whole would be at its end at once.
    odd.answer = lambda _: [chunk("word " * 40, 50 * n) for n in range(1, 101)] + [DONE]
    tenant = tenant_of(house, odd, {"input_token": "0", "output_token": "0.001"}, usd="3")
    answer = tenant.chat(stream=True)
    assert b"cost_quota_exceeded" in answer.content
    row = tenant.booked(answer)
    assert row["outcome"] == "cut_off"
    # The chunk that the cap does not pay for is not passed on, but the provider has said it.
    assert answer.content.count(b"choices") == 60
    assert row["usage"]["output_token"] == 3050


def test_a_stream_that_runs_on_after_it_reported_its_usage_costs_what_came(
    house: House, odd: Odd
) -> None:
    odd.kind = "text/event-stream"
    odd.answer = chunk("He", 0) + chunk("x" * 400) + DONE
    tenant = tenant_of(house, odd, RATES, usd="10")
    row = tenant.booked(served(tenant.chat(stream=True, max_tokens=300)))
    assert row["usage"] == {"input_token": 10, "output_token": 200}
    assert row["estimated"] is True


def test_a_stream_that_runs_on_is_billed_no_more_than_it_was_allowed(
    house: House, odd: Odd
) -> None:
    odd.kind = "text/event-stream"
    odd.answer = chunk("He", 1) + chunk("x" * 400) + DONE
    tenant = tenant_of(house, odd, RATES, usd="10")
    row = tenant.booked(served(tenant.chat(stream=True, max_tokens=20)))
    assert row["usage"] == {"input_token": 10, "output_token": 20}


@pytest.mark.parametrize("then", ["hangs up", "stays silent"])
def test_an_answer_that_is_complete_waits_for_no_end_of_the_connection(
    house: House, odd: Odd, then: str
) -> None:
    more = 10**6

    def answer(request: BaseHTTPRequestHandler) -> bytes:
        request.send_response(200)
        request.send_header("content-type", "text/event-stream")
        request.send_header("content-length", str(more))
        request.end_headers()
        request.wfile.write(body)
        if then == "stays silent":
            silent.wait(20)
        request.close_connection = True
        raise ConnectionAbortedError

    silent = threading.Event()
    body = chunk("Hello", 5) + DONE
    odd.answer = answer
    tenant = tenant_of(house, odd, RATES, usd="10")
    begun = time.monotonic()
    try:
        sent = served(tenant.chat(stream=True, max_tokens=20))
    finally:
        silent.set()
    assert time.monotonic() - begun < 5
    assert sent.content.endswith(DONE)
    assert b"error" not in sent.content
    row = tenant.booked(sent)
    assert (row["outcome"], row["status_code"], row["cost_usd"]) == ("success", 200, "0.15")


def test_the_case_of_a_content_type_is_of_no_account(house: House, odd: Odd) -> None:
    odd.kind = "Text/Event-Stream; Charset=UTF-8"
    odd.answer = chunk("Hello", 5) + DONE
    tenant = tenant_of(house, odd, RATES, usd="10")
    answer = served(tenant.chat(stream=True, max_tokens=20))
    assert answer.content.endswith(DONE)
    assert tenant.booked(answer)["cost_usd"] == "0.15"


def test_a_stream_without_content_is_a_502_and_free(house: House, odd: Odd) -> None:
    odd.kind = "text/event-stream"
    odd.status = 204
    odd.answer = b""
    tenant = tenant_of(house, odd, RATES, usd="10")
    answer = tenant.chat(stream=True, max_tokens=20)
    refused(answer, 502, "upstream_error")
    assert tenant.booked(answer)["cost_usd"] == "0.00"


@pytest.mark.parametrize("stream", [False, True])
def test_a_compressed_answer_that_nobody_asked_for_is_read_all_the_same(
    house: House, odd: Odd, stream: bool
) -> None:
    def answer(request: BaseHTTPRequestHandler) -> bytes:
        asked.append(request.headers["accept-encoding"])
        return gzip.compress(plain)

    said = {"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 5}}
    plain = chunk("Hello", 5) + DONE if stream else json.dumps(said).encode()
    asked: list[str | None] = []
    odd.answer = answer
    odd.kind = "text/event-stream" if stream else "application/json"
    odd.headers = {"content-encoding": "gzip"}
    tenant = tenant_of(house, odd, RATES, usd="10")
    answered = served(tenant.chat(stream=stream, max_tokens=20))
    assert asked == ["identity"]
    assert "content-encoding" not in answered.headers
    if not stream:
        assert answered.content == plain
    assert answered.content.endswith(plain[-14:])
    assert tenant.booked(answered)["cost_usd"] == "0.15"


def test_a_compressed_error_reaches_the_client_in_words(house: House, odd: Odd) -> None:
    error = json.dumps({"error": {"message": f"no such thing for {PROVIDER_KEY}"}})
    odd.answer = gzip.compress(error.encode())
    odd.status = 404
    odd.headers = {"content-encoding": "gzip"}
    tenant = tenant_of(house, odd, RATES, usd="10")
    answer = tenant.chat(max_tokens=20)
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == "no such thing for [redacted]"


def test_an_error_in_the_name_of_an_event_costs_nothing(house: House, odd: Odd) -> None:
    odd.kind = "text/event-stream"
    odd.answer = b'event: error\ndata: {"message": "no capacity"}\n\n' + DONE
    tenant = tenant_of(house, odd, RATES, usd="10")
    answer = served(tenant.chat(stream=True, max_tokens=10))
    assert answer.content == odd.answer
    row = tenant.booked(answer)
    assert (row["outcome"], row["cost_usd"], row["usage"]) == ("upstream_error", "0.00", {})


def test_pages_that_nobody_counted_are_not_free(house: House, odd: Odd) -> None:
    odd.answer = {"model": "reader"}
    tenant = tenant_of(house, odd, {"page": "0.10"}, usd="0.40")
    document = {"type": "document_url", "document_url": "https://example.com/a.pdf"}
    row = tenant.booked(
        served(tenant.post("/v1/ocr", json={"model": tenant.model, "document": document}))
    )
    assert (row["usage"], row["estimated"]) == ({"page": 1}, True)
    assert odd.asked[0]["pages"] == [0, 1, 2, 3], "no more than the cap can pay for"


def test_a_document_of_unknown_length_is_sent_as_it_came_where_the_cap_allows(
    house: House, odd: Odd
) -> None:
    odd.answer = {"pages": [], "usage_info": {"pages_processed": 3}}
    tenant = tenant_of(house, odd, {"page": "0.001"}, usd="50")
    document = {"type": "document_url", "document_url": "https://example.com/a.pdf"}
    body = {"model": tenant.model, "document": document}
    row = tenant.booked(served(tenant.post("/v1/ocr", json=body)))
    assert row["usage"] == {"page": 3}
    assert "pages" not in odd.asked[0]


@pytest.mark.parametrize("stream", [False, True])
def test_a_provider_that_echoes_its_credential_is_not_repeated(
    house: House, odd: Odd, stream: bool
) -> None:
    def echo(request: BaseHTTPRequestHandler) -> bytes:
        said = json.dumps(
            {
                "choices": [
                    {"delta": {"content": f"{request.headers['authorization']} {odd.url}"}}
                ],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1},
            }
        )
        return f"data: {said}\n\ndata: [DONE]\n\n".encode() if stream else said.encode()

    odd.answer = echo
    odd.kind = "text/event-stream" if stream else "application/json"
    tenant = tenant_of(house, odd, RATES)
    answer = served(tenant.chat(stream=stream))
    assert "[redacted]" in answer.text
    assert PROVIDER_KEY not in answer.text
    assert odd.url not in answer.text


def test_no_retry_after_of_a_provider_makes_a_client_sleep(house: House) -> None:
    tenant = house.tenant(house.model(RATES))
    content = "[[sim status=429 retry_after=30]] hello"
    answer = tenant.chat(messages=[{"role": "user", "content": content}])
    assert answer.status_code == 429
    assert "retry-after" not in answer.headers
    assert answer.headers["x-should-retry"] == "true"
