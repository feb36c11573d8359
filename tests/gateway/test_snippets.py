"""The snippets that members are shown work when they are pasted."""

from __future__ import annotations

import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.control.snippets import SNIPPETS
from app.gateway.endpoints import ENDPOINTS
from tests.gateway.kit import KINDS, TALK, House, Tenant

UPSTREAM = {
    "chat/completions": ("gpt-4o", KINDS["chat"].rates),
    "embeddings": ("mistral-embed", KINDS["embeddings"].rates),
    "ocr": ("mistral-ocr-latest", KINDS["ocr"].rates),
    "audio/speech": ("tts-1", KINDS["speech"].rates),
    "audio/transcriptions": ("whisper-1", KINDS["transcription"].rates),
    "realtime": ("gpt-realtime", TALK),
}
ODD = 'it\'s-"odd"-$HOME-`x`-{0}'
"""What a model may be called, and languages may stumble over."""


@pytest.fixture
def tenant(house: House) -> Tenant:
    """A member with a model for every endpoint."""
    slugs = []
    for n, (endpoint, (upstream, rates)) in enumerate(UPSTREAM.items()):
        slug = f"{ODD}-{n}-{secrets.token_hex(4)}"
        kind = "mistral" if upstream.startswith("mistral") else "openai"
        slugs.append(house.model(rates, upstream, kind=kind, slug=slug, endpoints=[endpoint]))
    return house.tenant(*slugs, usd="100")


def shown(tenant: Tenant, **asked: str) -> Any:
    """Return the snippets that a member is shown."""
    query = "&".join(f"{name}={value}" for name, value in asked.items())
    answer = tenant.get(f"/api/me/snippets?{query}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_there_are_snippets_for_every_endpoint_of_the_registry(house: House) -> None:
    assert set(SNIPPETS) == set(ENDPOINTS) | {"realtime"}


def test_each_snippet_works_when_it_is_pasted(house: House, tenant: Tenant, tmp_path: Path) -> None:
    document = shown(tenant)
    assert document["base_url"] == house.url()
    assert [one["endpoint"] for one in document["endpoints"]] == list(SNIPPETS)
    run: list[tuple[str, str]] = []
    for one in document["endpoints"]:
        for snippet in one["snippets"]:
            text = snippet["text"].replace(document["key"], tenant.secret)
            assert one["model"] in one["models"]
            path = tmp_path / f"snippet-{len(run)}"
            match snippet["language"]:
                case "curl":
                    command = ["sh", "-c", text.replace("curl ", "curl --fail -sS ", 1)]
                case "python":
                    path.with_suffix(".py").write_text(text)
                    command = [sys.executable, "-W", "error", str(path.with_suffix(".py"))]
                case _:
                    path.with_suffix(".mjs").write_text(text)
                    command = ["node", "--check", str(path.with_suffix(".mjs"))]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
            if snippet["language"] != "javascript":
                run.append((one["endpoint"], snippet["language"]))
                assert done.stdout or (tmp_path / "speech.mp3").stat().st_size > 0
    calls = tenant.calls()
    assert [call["endpoint"] for call in calls] == [endpoint for endpoint, _ in run]
    assert {call["outcome"] for call in calls} <= {"success", "client_disconnected"}


def test_a_library_is_shown_only_where_it_takes_the_answer(house: House) -> None:
    model = house.model({"input_token": "1"}, "text-embedding-3-small", endpoints=["embeddings"])
    [one] = shown(house.tenant(model))["endpoints"]
    assert [snippet["library"] for snippet in one["snippets"]] == [None, "openai", "openai"]


def test_a_key_is_shown_by_its_hint_and_only_what_it_opens(house: House, tenant: Tenant) -> None:
    first, second = tenant.models[:2]
    narrow = house.allocation(tenant.member_id, first)
    key = house.key(narrow)
    document = shown(tenant, key_hint=key["hint"])
    assert document["key"] == key["hint"]
    assert [one["models"] for one in document["endpoints"]] == [[first]]
    assert key["hint"] in document["endpoints"][0]["snippets"][0]["text"]
    assert key["key"] not in str(document)
    others = house.tenant(second)
    for query in (
        f"key_hint={others.house.key(others.standing())['hint']}",
        "model=no-such",
        "endpoint=x",
    ):
        assert tenant.get(f"/api/me/snippets?{query}").status_code == 422
    only = shown(tenant, endpoint="embeddings")
    assert [one["endpoint"] for one in only["endpoints"]] == ["embeddings"]


def test_a_member_is_shown_no_model_of_another(house: House, tenant: Tenant) -> None:
    other = house.tenant(house.model({"page": "1"}, "mistral-ocr-latest"))
    assert {m for one in shown(other)["endpoints"] for m in one["models"]} == set(other.models)
    assert set(tenant.models).isdisjoint(
        {m for one in shown(other)["endpoints"] for m in one["models"]}
    )


def test_the_address_is_the_one_that_the_client_has_of_us(house: House, tenant: Tenant) -> None:
    client = house.client()

    def base_url(**headers: str) -> Any:
        sent = {"authorization": f"Bearer {tenant.secret}"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        answer = client.get("/api/me/snippets", headers=sent)
        return answer.json().get("base_url") if answer.is_success else answer.status_code

    assert base_url(host="ai.example.org", x_forwarded_proto="https") == "https://ai.example.org"
    assert base_url(host="[::1]:8000") == "http://[::1]:8000"
    for host in ("a b", "evil'; rm -rf", "x/y", "user@host"):
        assert base_url(host=host) == 400
