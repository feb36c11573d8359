"""A provider is tested without a call: its address, its credential, its models."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

import pytest

from app.control import provider_tests
from app.simulator import RunningSimulator, serve_in_thread

KEY = "sk-upstream-7Qm2-credential-of-the-provider-Zx9"


@pytest.fixture(scope="module")
def sim() -> Iterator[RunningSimulator]:
    with serve_in_thread(api_key=KEY) as running:
        yield running


@pytest.fixture
def odd() -> Iterator[Any]:
    """A provider that answers as it is told."""

    class Odd(BaseHTTPRequestHandler):
        answer: tuple[int, str] = (200, "{}")
        asked: ClassVar[list[tuple[str, dict[str, str]]]] = []

        def do_GET(self) -> None:
            self.asked.append((self.path, {n.lower(): v for n, v in self.headers.items()}))
            status, text = self.answer
            self.send_response(status)
            self.send_header("content-length", str(len(text.encode())))
            if 300 <= status < 400:
                self.send_header("location", "http://127.0.0.1:9/")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Odd)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    Odd.url = f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
    yield Odd
    server.shutdown()
    thread.join()
    server.server_close()


async def looked_at(plane: Any, provider: Any, **body: Any) -> Any:
    """Test a provider, which must always be answered."""
    return await plane.ok("POST", f"/admin/providers/{provider['id']}/test", body)


async def test_a_provider_that_works_is_said_to_and_it_is_audited(
    plane: Any, sim: RunningSimulator
) -> None:
    provider = await plane.provider(base_url=sim.openai_url, api_key=KEY)
    shown = await looked_at(plane, provider)
    assert (shown["ok"], shown["status"], shown["model_listed"]) == (True, 200, None)
    assert shown["models"] > 3
    assert 0 <= shown["latency_ms"] < 10_000
    await plane.model("small", provider_id=provider["id"], upstream_model="gpt-4o-mini")
    await plane.model("other", provider_id=provider["id"], upstream_model="no-such-model")
    assert (await looked_at(plane, provider, model="small"))["model_listed"] is True
    assert (await looked_at(plane, provider, model="other"))["model_listed"] is False
    events = [
        one for one in await plane.events(provider["id"]) if one["event"] == "provider_tested"
    ]
    assert [one["after"] for one in events] == [
        {"ok": True, "status": 200, "model": None},
        {"ok": True, "status": 200, "model": "small"},
        {"ok": True, "status": 200, "model": "other"},
    ]


async def test_a_credential_that_was_just_changed_is_the_one_that_is_tested(
    plane: Any, sim: RunningSimulator
) -> None:
    provider = await plane.provider(base_url=sim.openai_url, api_key="sk-wrong-0000-wrong-9999")
    shown = await looked_at(plane, provider)
    assert (shown["ok"], shown["status"]) == (False, 401)
    assert "credential" in shown["message"]
    assert "sk-wrong-0000-wrong-9999" not in shown["message"]
    await plane.ok("PATCH", f"/admin/providers/{provider['id']}", {"api_key": KEY})
    assert (await looked_at(plane, provider))["ok"]
    await plane.ok("PATCH", f"/admin/providers/{provider['id']}", {"api_key": None})
    shown = await looked_at(plane, provider)
    assert (shown["ok"], shown["status"]) == (False, None)
    assert "api_key" in shown["message"]


@pytest.mark.parametrize(
    ("kind", "path", "asked", "header"),
    [
        ("openai", "/v1", "/v1/models", "authorization"),
        ("mistral", "", "/v1/models", "authorization"),
        ("compatible", "/proxy/v1", "/proxy/v1/models", "authorization"),
        ("cohere", "/compatibility/v1", "/compatibility/v1/models", "authorization"),
        ("anthropic", "", "/v1/models", "x-api-key"),
        ("azure", "", "/openai/models?api-version=2025-04-01-preview", "api-key"),
        ("azure", "/openai/v1", "/openai/v1/models", "api-key"),
    ],
)
async def test_each_kind_is_asked_where_and_as_it_wants_to_be(
    plane: Any, odd: Any, kind: str, path: str, asked: str, header: str
) -> None:
    odd.answer, odd.asked = (200, '{"data": [{"id": "m"}]}'), []
    provider = await plane.provider(kind=kind, base_url=odd.url + path, api_key=KEY)
    assert (await looked_at(plane, provider))["ok"]
    [(where, headers)] = odd.asked
    assert where == asked
    assert KEY in headers[header]


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (200, "<html>"),
        (302, ""),
        (401, f'{{"error": {{"message": "Incorrect API key {KEY}"}}}}'),
        (401, '{"error": {"message": "Incorrect API key sk-u***********Zx9"}}'),
        (404, "nothing"),
        (500, "{" * 100_000),
        (429, '{"message": "slow down"}'),
    ],
)
async def test_whatever_a_provider_answers_is_told_and_no_secret_is(
    plane: Any, odd: Any, status: int, text: str
) -> None:
    odd.answer = (status, text)
    provider = await plane.provider(base_url=f"{odd.url}/v1", api_key=KEY)
    answer = await plane.call("POST", f"/admin/providers/{provider['id']}/test", {})
    shown = answer.json()
    assert (answer.status_code, shown["ok"], shown["status"]) == (200, False, status)
    assert shown["message"]
    for secret in (KEY, "Zx9", odd.url.removeprefix("http://")):
        assert secret not in answer.text


async def test_a_provider_that_is_not_there_or_says_nothing_is_told_of_in_time(
    plane: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider_tests, "WITHIN_S", 0.3)
    gone = await plane.provider(base_url="http://127.0.0.1:9/v1")
    shown = await looked_at(plane, gone)
    assert (shown["ok"], shown["status"]) == (False, None)
    assert "reached" in shown["message"]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        provider = await plane.provider(base_url=f"http://127.0.0.1:{port}/v1")
        shown = await looked_at(plane, provider)
    assert (shown["ok"], shown["status"]) == (False, None)
    assert "within 0.3 s" in shown["message"]
    nowhere = await plane.provider(base_url="http://no-such-host.invalid/v1")
    assert not (await looked_at(plane, nowhere))["ok"]


async def test_what_cannot_be_tested_is_refused(plane: Any) -> None:
    provider = await plane.provider()
    await plane.model("theirs")
    path = f"/admin/providers/{provider['id']}/test"
    for model in ("theirs", "nothing", "white space"):
        assert (await plane.call("POST", path, {"model": model})).status_code == 422
    absent = path.replace(provider["id"], "0197c5a0-0000-7000-8000-000000000000")
    assert (await plane.call("POST", absent, {})).status_code == 404
    assert (await plane.call("POST", path, {"prompt": "hi"})).status_code == 422
