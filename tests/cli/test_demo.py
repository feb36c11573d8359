"""``demo``: what it prints works, and works again the next time."""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from app.demo import MEMBERS, MODELS
from app.store.postgres import EmbeddedPostgres
from tests.cli.processes import Process, Start, request, run

FIELDS = {
    "base_url",
    "admin_email",
    "admin_password",
    "admin_token",
    "member_email",
    "member_password",
    "member_id",
    "member_key",
    "allocation_id",
}


class Demo:
    """A demo on a directory; started and stopped as often as a test likes."""

    def __init__(self, start: Start, directory: Path) -> None:
        self._start = start
        self.data_dir = directory / "demo"
        self.file = directory / "credentials.json"

    def begin(self, *options: str) -> Process:
        arguments = ("--port", 0, "--data-dir", self.data_dir, "--credentials", self.file)
        return self._start("demo", *arguments, *options)

    def ready(self, process: Process) -> dict[str, str]:
        process.until(lambda: "Ready after" in process.output, "ready")
        found: dict[str, str] = json.loads(self.file.read_text())
        return found


@pytest.fixture
def demo(start: Start, tmp_path: Path) -> Demo:
    return Demo(start, tmp_path)


@contextlib.contextmanager
def signed_in(url: str, email: str, password: str) -> Iterator[httpx2.Client]:
    """A client that a member has signed in with, as their browser would."""
    with httpx2.Client(base_url=url, headers={"Origin": url}, trust_env=False) as client:
        answer = client.post("/api/auth/login", json={"email": email, "password": password})
        assert answer.status_code == 200, answer.text
        assert answer.json()["must_change_password"] is False
        client.headers["X-CSRF-Token"] = answer.json()["csrf_token"]
        yield client


def allocations(access: dict[str, str]) -> dict[str, dict[str, Any]]:
    status, page = request(
        f"{access['base_url']}/api/admin/allocations", bearer=access["admin_token"]
    )
    assert status == 200
    return {allocation["name"]: allocation for allocation in page["items"]}


def test_everything_that_it_prints_and_writes_works(demo: Demo) -> None:
    process = demo.begin()
    access = demo.ready(process)
    url = access["base_url"]

    # The file: the contract's fields, for its owner's eyes.
    assert set(access) == FIELDS
    assert stat.S_IMODE(demo.file.stat().st_mode) == 0o600
    assert url == f"http://127.0.0.1:{url.rpartition(':')[2]}"

    # The curl line.
    [line, *_] = [line for line in process.output.splitlines() if line.startswith("curl ")]
    words = shlex.split(line)
    assert words[0] == "curl"
    assert words[1] == f"{url}/v1/chat/completions"
    assert f"Authorization: Bearer {access['member_key']}" in words
    body = json.loads(words[words.index("-d") + 1])
    status, answer = request(words[1], "POST", access["member_key"], body)
    assert status == 200
    assert answer["choices"][0]["message"]["content"]

    # Every model of the guest's, by an SDK that knows nothing of us.
    with openai.OpenAI(base_url=f"{url}/v1", api_key=access["member_key"]) as client:
        assert {model.id for model in client.models.list()} == {model.slug for model in MODELS}
        assert client.embeddings.create(model="text-embedding-3-small", input="hello").data
        speech = client.audio.speech.create(
            model="tts-1", voice="alloy", input="hello", response_format="wav"
        ).read()
        for model in ("whisper-1", "gpt-4o-transcribe"):
            file = ("speech.wav", speech)
            assert client.audio.transcriptions.create(model=model, file=file).text
        unpriced = client.chat.completions.create(
            model="experimental-unpriced", messages=[{"role": "user", "content": "hello"}]
        )
        assert unpriced.usage is not None
    status, _ = request(
        f"{url}/v1/ocr",
        "POST",
        access["member_key"],
        {
            "model": "mistral-ocr",
            "document": {"type": "document_url", "document_url": "https://example.com/a.pdf"},
        },
    )
    assert status == 200

    # The sign-ins.
    with signed_in(url, access["admin_email"], access["admin_password"]) as admin:
        pause = {"status": "paused"}
        path = f"/api/admin/allocations/{access['allocation_id']}"
        assert admin.patch(path, json=pause, headers={"X-CSRF-Token": ""}).status_code == 403
        assert admin.patch(path, json=pause).json()["status"] == "paused"
        assert admin.patch(path, json={"status": "active"}).json()["status"] == "active"
    with signed_in(url, access["member_email"], access["member_password"]) as member:
        assert member.get("/api/auth/session").json()["member"]["id"] == access["member_id"]
        assert member.get("/api/admin/members").status_code == 403
        opened = {"name": "laptop", "allocation_ids": [access["allocation_id"]]}
        key = member.post("/api/me/keys", json=opened).json()
        assert request(words[1], "POST", key["key"], body)[0] == 200
        nothing = {"limits": [{"meter": "tokens", "window": "day", "amount": 0}]}
        assert member.patch(f"/api/me/keys/{key['id']}", json=nothing).status_code == 200
        status, refused = request(words[1], "POST", key["key"], body)
        assert (status, refused["error"]["code"]) == (429, "quota_exceeded")
        assert member.delete(f"/api/me/keys/{key['id']}").status_code == 204
        assert request(words[1], "POST", key["key"], body)[0] == 401
        cookie = {"Cookie": f"spendgate={member.cookies['spendgate']}"}
        assert member.post("/api/auth/logout").status_code == 204
        assert member.get("/api/auth/session", headers=cookie).status_code == 401

    # The sample data is there, and was really spent.
    standing = allocations(access)
    assert {name: one["state"] for name, one in standing.items()} == {
        "Playground": "ok",
        "研究助理": "near",
        "Archive": "critical",
        "Course reader": "ok",
        "Thesis scans": "exhausted",
        "Internship": "paused",
    }
    assert standing["Playground"]["id"] == access["allocation_id"]
    assert standing["Playground"]["unpriced_calls_this_month"] == 2
    _, refused = request(
        f"{url}/api/admin/calls?outcome=rejected_cost_quota_exceeded", bearer=access["admin_token"]
    )
    assert len(refused["items"]) == 1
    _, members = request(f"{url}/api/admin/members", bearer=access["admin_token"])
    assert len(members["items"]) == len(MEMBERS) + 1
    books = run("reconcile", DATA_DIR=str(demo.data_dir))
    assert books.returncode == 0, books.stdout

    assert process.stop(signal.SIGINT) == 0
    assert process.output.endswith("Stopped.\n")
    assert EmbeddedPostgres(demo.data_dir).postmaster_pid() is None


def test_it_goes_on_with_the_same_data_even_after_it_was_killed(demo: Demo) -> None:
    process = demo.begin()
    before = demo.ready(process)
    standing = allocations(before)

    # A second one on this data has to wait.
    second = run("demo", "--port", 0, "--data-dir", demo.data_dir)
    assert second.returncode == 1
    assert second.stderr == (
        f"Error: another demo is running in {demo.data_dir}: stop it, or choose another "
        f"--data-dir\n"
    )

    process.stop(signal.SIGKILL)
    process = demo.begin()
    # From the last run; that it is there must mean that this one is ready.
    process.until(lambda: "Starting the server" in process.output, "starting")
    after = demo.ready(process)
    assert {**after, "base_url": ""} == {**before, "base_url": ""}
    again = allocations(after)
    assert {n: a["cost_used_this_month"] for n, a in again.items()} == {
        n: a["cost_used_this_month"] for n, a in standing.items()
    }
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}
    url = f"{after['base_url']}/v1/chat/completions"
    assert request(url, "POST", after["member_key"], body)[0] == 200

    # A key that a visitor revoked is replaced.
    admin = {"bearer": after["admin_token"]}
    _, keys = request(f"{after['base_url']}/api/admin/keys?member_id={after['member_id']}", **admin)
    key_id = keys["items"][0]["id"]
    assert request(f"{after['base_url']}/api/admin/keys/{key_id}/revoke", "POST", **admin)[0] == 200
    assert process.stop() == 0
    process = demo.begin()
    third = demo.ready(process)
    assert third["member_key"] != after["member_key"]
    url = f"{third['base_url']}/v1/chat/completions"
    assert request(url, "POST", third["member_key"], body)[0] == 200
    assert process.stop() == 0


def test_reset_begins_anew(demo: Demo) -> None:
    process = demo.begin()
    before = demo.ready(process)
    process.stop(signal.SIGKILL)
    process = demo.begin("--reset")
    after = demo.ready(process)
    for field in ("admin_token", "admin_password", "member_key", "member_id", "allocation_id"):
        assert before[field] != after[field]
    assert len(allocations(after)) == len(MEMBERS)
    assert process.stop() == 0


def test_a_port_in_use_is_told_in_one_line(start: Start, tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run("demo", "--port", port, "--data-dir", tmp_path / "demo")
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith(f"Error: cannot listen on 127.0.0.1, port {port}: ")
