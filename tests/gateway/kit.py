"""What the tests of the data plane are made of: real servers, tenants on them, real requests.

Owns starting `spendgate serve` as an operator would, setting tenants up through the control API,
one request of every kind, and the audit that follows every test. Knows no module of the gateway:
everything goes over the wire, but for reading rows that no API shows.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import os
import re
import secrets
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import wave
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import psycopg
import pypdf
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection, serve

from app.simulator import Call, RunningSimulator
from app.store.reconcile import reconcile

SPENDGATE = Path(sys.executable).with_name("spendgate")
SECRET = "a secret of more than thirty-two characters"
PROVIDER_KEY = "sk-upstream-7Qm2-credential-of-the-provider-Zx9"

QUESTION = [{"role": "user", "content": "x" * 40}]
"""Ten tokens by the simulator's rule (a quarter of the bytes)."""

Json = dict[str, Any]


def eventually(
    check: Callable[[], Any], *, within: float = 10, every: float = 0.02, what: str = ""
) -> Any:
    """Return what `check` returns once that is true; fail if it is not within the deadline."""
    deadline = time.monotonic() + within
    while not (found := check()):
        assert time.monotonic() < deadline, f"not within {within} s: {what or check}"
        time.sleep(every)
    return found


# Documents


def pdf(pages: int) -> str:
    """Return a PDF of blank pages as a data URL."""
    writer = pypdf.PdfWriter()
    for _ in range(pages):
        writer.add_blank_page(width=100, height=100)
    file = io.BytesIO()
    writer.write(file)
    return "data:application/pdf;base64," + base64.b64encode(file.getvalue()).decode()


def wav(seconds: float, rate: int = 8000) -> bytes:
    """Return silence as a WAV file: 16 bits, mono."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes(bytes(2 * round(seconds * rate)))
    return file.getvalue()


# Rates of which sums are easily told: ten cents an output token, a page, a character, a second.

DIME = {"input_token": "0", "output_token": "0.1"}
"""Chat that costs ten cents an output token, so that a maximum is a price: exact in advance."""
PAGE = {"page": "0.1"}


class Kind(NamedTuple):
    """One kind of call: the model it asks for upstream, its rates, and the request."""

    name: str
    upstream: str
    rates: Mapping[str, str]
    path: str
    body: Callable[[str], Json]
    """The arguments of `httpx2`'s `post`, for a model."""


def _json(**fields: Any) -> Callable[[str], Json]:
    return lambda model: {"json": {"model": model} | fields}


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "chat",
            "gpt-4o",
            {"input_token": "0.01", "output_token": "0.01"},
            "/v1/chat/completions",
            _json(messages=QUESTION, max_tokens=5),
        ),
        Kind(
            "stream",
            "gpt-4o",
            {"input_token": "0.01", "output_token": "0.01"},
            "/v1/chat/completions",
            _json(messages=QUESTION, max_tokens=5, stream=True),
        ),
        Kind(
            "embeddings",
            "text-embedding-3-small",
            {"input_token": "0.01"},
            "/v1/embeddings",
            _json(input="x" * 80, dimensions=4),
        ),
        Kind(
            "ocr",
            "mistral-ocr-latest",
            PAGE,
            "/v1/ocr",
            _json(document={"type": "document_url", "document_url": pdf(2)}),
        ),
        Kind(
            "speech",
            "tts-1",
            {"character": "0.01"},
            "/v1/audio/speech",
            _json(input="Hello there", voice="alloy", response_format="wav"),
        ),
        Kind(
            "transcription",
            "whisper-1",
            {"second": "0.01"},
            "/v1/audio/transcriptions",
            lambda model: {
                "data": {"model": model},
                "files": {"file": ("talk.wav", wav(2), "audio/wav")},
            },
        ),
    )
}
"""Every kind of call, by name."""


# Servers


class Server:
    """A `spendgate serve` process and what it writes."""

    def __init__(self, directory: Path, dsn: str, **settings: object) -> None:
        self.directory = directory
        self.settings = {name.upper(): str(value) for name, value in settings.items()}
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("SPENDGATE_")
        } | {
            "SPENDGATE_DATABASE_URL": dsn,
            "SPENDGATE_DATA_DIR": str(directory / "data"),
            "SPENDGATE_SECRET_KEY": SECRET,
            "SPENDGATE_PORT": "0",
            "SPENDGATE_LOG_LEVEL": "debug",
            **{f"SPENDGATE_{name}": value for name, value in self.settings.items()},
        }
        self.log_path = directory / "log"
        self.url = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._read_to = 0

    def start(self) -> Server:
        """Start serving, on any free port."""
        self.directory.mkdir(parents=True, exist_ok=True)
        begins = self.log_path.stat().st_size if self.log_path.exists() else 0
        with open(self.log_path, "ab") as log:
            self._process = subprocess.Popen(
                [SPENDGATE, "serve"],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

        def address() -> str | None:
            assert self._process is not None
            assert self._process.poll() is None, f"the server ended: {self.log()}"
            with open(self.log_path, "rb") as log:
                log.seek(begins)
                found = re.search(rb'"address": "([^"]+)"', log.read())
            return found and found[1].decode()

        def ready() -> bool:
            with contextlib.suppress(httpx2.TransportError):
                return httpx2.get(f"{self.url}/readyz").status_code == 200
            return False

        self.url = eventually(address, within=60, what="an address in the log")
        eventually(ready, within=60, what="readiness")
        return self

    def stop(self) -> None:
        """Stop in order."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            process.wait(60)

    def kill(self) -> None:
        """End at once, as a crash would."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGKILL)
            process.wait(60)

    def log(self) -> str:
        """Return all that was written to either output."""
        return self.log_path.read_text("utf-8", "replace")

    def news(self) -> str:
        """Return what was written since this was last asked."""
        with open(self.log_path, "rb") as log:
            log.seek(self._read_to)
            data = log.read()
        self._read_to += len(data)
        return data.decode("utf-8", "replace")


class Tenant:
    """A member with an allocation and a key: who calls."""

    def __init__(self, house: House, allocation: Json, key: Json) -> None:
        self.house = house
        self.member_id: str = allocation["member_id"]
        self.allocation_id: str = allocation["id"]
        self.models: list[str] = allocation["models"]
        self.key_id: str = key["id"]
        self.secret: str = key["key"]

    @property
    def model(self) -> str:
        """The (first) model of the allocation."""
        return self.models[0]

    def post(
        self, path: str, *, server: Server | None = None, key: str | None = None, **more: Any
    ) -> httpx2.Response:
        """Send a request with the key."""
        headers = {"authorization": f"Bearer {key or self.secret}"} | more.pop("headers", {})
        return self.house.client(server).post(path, headers=headers, **more)

    def get(self, path: str, *, server: Server | None = None) -> httpx2.Response:
        """Read something with the key."""
        headers = {"authorization": f"Bearer {self.secret}"}
        return self.house.client(server).get(path, headers=headers)

    def chat(self, model: str | None = None, *, server: Server | None = None, **fields: Any) -> Any:
        """Send a chat completion; None leaves a field out."""
        headers = fields.pop("headers", {})
        body = {"model": model or self.model, "messages": QUESTION} | fields
        body = {name: value for name, value in body.items() if value is not None}
        return self.post("/v1/chat/completions", server=server, headers=headers, json=body)

    def ocr(self, pages: int, model: str | None = None, **more: Any) -> httpx2.Response:
        """Have a document of so many pages read."""
        document = {"type": "document_url", "document_url": pdf(pages)}
        body = {"model": model or self.model, "document": document}
        return self.post("/v1/ocr", json=body, **more)

    def ask(self, kind: Kind, model: str | None = None, **more: Any) -> httpx2.Response:
        """Send a call of a kind."""
        return self.post(kind.path, **kind.body(model or self.model), **more)

    @contextlib.contextmanager
    def stream(self, server: Server | None = None, **fields: Any) -> Iterator[httpx2.Response]:
        """Open a streamed chat completion; leaving closes the connection."""
        headers = {"authorization": f"Bearer {self.secret}"} | fields.pop("headers", {})
        body = {"model": self.model, "messages": QUESTION, "stream": True} | fields
        # A client of its own: leaving must close the connection, not keep it.
        with (
            httpx2.Client(base_url=self.house.url(server), timeout=60) as client,
            client.stream("POST", "/v1/chat/completions", headers=headers, json=body) as answer,
        ):
            self.house.saw(answer)
            yield answer

    def change(self, **fields: Any) -> Json:
        """Edit the allocation."""
        return self.house.api("PATCH", f"/admin/allocations/{self.allocation_id}", fields)

    def standing(self) -> Json:
        """Return the allocation as the control API shows it."""
        return self.house.api("GET", f"/admin/allocations/{self.allocation_id}")

    def calls(self) -> list[Json]:
        """Return the calls made with the key, oldest first."""
        path = f"/admin/calls?key_id={self.key_id}&limit=500"
        return self.house.api("GET", path)["items"][::-1]

    def booked(self, answer: httpx2.Response) -> Json:
        """Return the call behind an answer, once it is booked."""
        return self.house.call(answer.headers["x-spendgate-call-id"])

    def another_key(self, **fields: Any) -> Tenant:
        """Add a key to the same allocation."""
        allocation = self.standing()
        return Tenant(self.house, allocation, self.house.key(allocation, **fields))


class House:
    """A database with servers on it, and the simulator as their provider."""

    def __init__(self, server: Server, dsn: str, sim: RunningSimulator) -> None:
        self.server = server
        self.servers = [server]
        self.dsn = dsn
        self.sim = sim
        self.expected_in_log: list[str] = []
        self.renamed: set[str] = set()
        """Calls that a test has given other ids: to the books they are others now."""
        self._seen: set[str] = set()
        self._clients: dict[str, httpx2.Client] = {}
        self._providers: dict[str, str] = {}
        made = subprocess.run(
            [SPENDGATE, "create-admin-token", "--name", "tests"],
            env=server.environment,
            capture_output=True,
            text=True,
        )
        assert made.returncode == 0, made.stderr
        self.token = made.stdout.strip()

    # Talking to it

    def url(self, server: Server | None = None) -> str:
        """Return the address of a server: the first, unless told."""
        return (server or self.server).url

    def client(self, server: Server | None = None) -> httpx2.Client:
        """Return a client of a server."""
        url = self.url(server)
        if url not in self._clients:
            hooks = {"response": [self.saw]}
            self._clients[url] = httpx2.Client(base_url=url, timeout=60, event_hooks=hooks)
        return self._clients[url]

    def saw(self, answer: httpx2.Response) -> None:
        """Remember a call that an answer names: the books must have it."""
        call_id = answer.headers.get("x-spendgate-call-id")
        if call_id is not None:
            self._seen.add(call_id)

    def api(
        self, method: str, path: str, body: Json | None = None, *, server: Server | None = None
    ) -> Any:
        """Ask something of the control API that must succeed."""
        answer = self.client(server).request(
            method, f"/api{path}", json=body, headers={"authorization": f"Bearer {self.token}"}
        )
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json()

    def sql(self, statement: str, *values: Any) -> list[Any]:
        """Read rows that no API shows."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            return connection.execute(statement, values).fetchall()

    def call(self, call_id: str) -> Json:
        """Return a call, once it is booked."""

        def found() -> Any:
            path = f"/api/admin/calls/{call_id}"
            headers = {"authorization": f"Bearer {self.token}"}
            answer = self.client().get(path, headers=headers)
            return answer.json() if answer.is_success else None

        return eventually(found, within=15, what=f"call {call_id} in the books")

    # Setting it up

    def provider(self, kind: str = "openai", **fields: Any) -> str:
        """Return a provider of a kind; one of its own if anything else is said."""
        if not fields and kind in self._providers:
            return self._providers[kind]
        body = {
            "name": f"{kind} {secrets.token_hex(4)}",
            "kind": kind,
            "base_url": self.sim.base_url if kind == "mistral" else self.sim.openai_url,
            "api_key": PROVIDER_KEY,
        } | fields
        id: str = self.api("POST", "/admin/providers", body)["id"]
        if not fields:
            self._providers[kind] = id
        return id

    def model(
        self,
        rates: Mapping[str, str] | None,
        upstream: str = "gpt-4o",
        *,
        kind: str = "openai",
        per: int = 1,
        **fields: Any,
    ) -> str:
        """Add a model with these rates (None: unpriced); return its slug."""
        slug: str = fields.pop("slug", f"model-{secrets.token_hex(4)}")
        provider_id = fields.pop("provider_id", None) or self.provider(kind)
        body = {"slug": slug, "provider_id": provider_id, "upstream_model": upstream} | fields
        self.api("POST", "/admin/models", body)
        if rates is not None:
            self.price(slug, rates, per)
        return slug

    def price(self, model: str, rates: Mapping[str, str], per: int = 1, **fields: Any) -> Json:
        """Add a version of a model's rates."""
        listed = [{"unit": unit, "usd": usd, "per": per} for unit, usd in rates.items()]
        return self.api("POST", "/admin/prices", {"model": model, "rates": listed} | fields)

    def model_for(self, kind: Kind, **fields: Any) -> str:
        """Add a model for a kind of call."""
        return self.model(kind.rates, kind.upstream, **fields)

    def allocation(self, member_id: str, *models: str, **fields: Any) -> Json:
        """Add an allocation."""
        body = {"member_id": member_id, "models": models, **_caps(fields)}
        return self.api("POST", "/admin/allocations", body)

    def key(self, *allocations: Json, server: Server | None = None, **fields: Any) -> Json:
        """Add a key to allocations of one member."""
        body = {
            "member_id": allocations[0]["member_id"],
            "name": "test",
            "allocation_ids": [allocation["id"] for allocation in allocations],
        } | fields
        return self.api("POST", "/admin/keys", body, server=server)

    def member(self) -> str:
        """Add a member; return the id."""
        body = {"email": f"{secrets.token_hex(6)}@example.org", "display_name": "Ada"}
        id: str = self.api("POST", "/admin/members", body)["id"]
        return id

    def tenant(self, *models: str, key: Json | None = None, **fields: Any) -> Tenant:
        """Add a member with an allocation (`usd` and `tokens` are its caps) and a key."""
        allocation = self.allocation(self.member(), *models, **fields)
        return Tenant(self, allocation, self.key(allocation, **(key or {})))

    # The audit

    def begin(self) -> None:
        """Begin a test: what happened before is not its business."""
        self._seen.clear()
        self.expected_in_log.clear()
        for server in self.servers:
            server.news()

    def audit(self) -> None:
        """Check that the books add up, that no call is missing, and that nobody saw a secret."""
        held = "SELECT count(*) FROM holds"
        eventually(lambda: self.sql(held)[0][0] == 0, within=15, what="no holds at rest")
        # The gateway gives the provider its own id of each call.
        sent = {call.headers["x-request-id"] for call in self.sim.calls if _ours(call)} | self._seen
        sent -= self.renamed
        eventually(
            lambda: self._rows_of(sent) == dict.fromkeys(sent, 1),
            within=15,
            what="exactly one row for every call",
        )
        found = asyncio.run(reconcile(self.dsn, lambda *step: None, at_rest=True))
        assert found == [], [str(one) for one in found]
        for server in self.servers:
            self._audit_log(server.news())

    def _rows_of(self, call_ids: set[str]) -> dict[str, int]:
        counted = "SELECT id::text, count(*) FROM calls WHERE id = ANY(%s::uuid[]) GROUP BY id"
        return dict(self.sql(counted, list(call_ids)))

    def _audit_log(self, log: str) -> None:
        assert PROVIDER_KEY not in log
        assert f"127.0.0.1:{self.sim.port}" not in log
        assert not re.search(r"sg_[A-Za-z0-9_-]{20}", log), "a client's key in the log"
        for line in log.splitlines():
            if '"level": "error"' in line or "Traceback" in line:
                expected = any(event in line for event in self.expected_in_log)
                assert expected, f"an error in the log: {line}"

    def close(self) -> None:
        """Stop the servers."""
        for client in self._clients.values():
            client.close()
        for server in self.servers:
            server.stop()


def _ours(call: Call) -> bool:
    """Tell whether a call reached the provider through the gateway."""
    return call.credential == PROVIDER_KEY and "x-request-id" in call.headers


def _caps(fields: Json) -> Json:
    names = {"usd": "quota_cost_usd_per_month", "tokens": "quota_tokens_per_month"}
    return {names.get(name, name): value for name, value in fields.items()}


# Sessions

PCM = 48_000
"""Bytes of a second of pcm16 at 24 kHz."""
G711 = 8_000

Closed = tuple[int, str]


class Socket:
    """The client's side of a realtime session."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.seen: list[Json] = []
        self.closed: Closed | None = None

    def send(self, type: str, **fields: Any) -> None:
        """Send an event."""
        self.connection.send(json.dumps({"type": type} | fields))

    def append(self, seconds: float, rate: int = PCM) -> None:
        """Append silence."""
        audio = base64.b64encode(bytes(round(seconds * rate))).decode()
        self.send("input_audio_buffer.append", audio=audio)

    def flood(self, seconds: float, *, frames: int, pause: float = 0) -> None:
        """Append frames of silence until it is closed, or that many."""
        with contextlib.suppress(ConnectionClosed):
            for _ in range(frames):
                self.append(seconds)
                time.sleep(pause)
                # Who does not read is not read from either, in the end.
                with contextlib.suppress(TimeoutError):
                    while self.next(0) is not None:
                        pass

    def next(self, timeout: float = 10) -> Json | None:
        """Return the next event; None once the connection is closed."""
        try:
            event: Json = json.loads(self.connection.recv(max(0.0, timeout)))
        except ConnectionClosed as closed:
            frame = closed.rcvd
            self.closed = (1006, "") if frame is None else (frame.code, frame.reason)
            return None
        self.seen.append(event)
        return event

    def until(self, type: str, timeout: float = 10) -> Json:
        """Read on until an event of a type."""
        deadline = time.monotonic() + timeout
        while (event := self.next(deadline - time.monotonic())) is not None:
            if event["type"] == type:
                return event
        raise AssertionError(f"closed {self.closed} before {type}: {self.seen[-3:]}")

    def end(self, timeout: float = 15) -> Closed:
        """Read to the end; return how it was closed."""
        deadline = time.monotonic() + timeout
        while self.next(deadline - time.monotonic()) is not None:
            pass
        assert self.closed is not None
        return self.closed

    def refused(self, code: str, timeout: float = 15) -> Json:
        """Read to the end, which an error event explains; return the error."""
        assert self.end(timeout)[0] == 1008, self.closed
        assert self.seen, "no event before the close"
        assert self.seen[-1]["type"] == "error"
        error: Json = self.seen[-1]["error"]
        assert error["code"] == code, error
        assert {"type", "message", "param", "event_id"} <= error.keys()
        return error

    def abort(self) -> None:
        """Vanish: reset the TCP connection, without a word."""
        linger = struct.pack("ii", 1, 0)
        self.connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.socket.shutdown(socket.SHUT_RD)
        self.connection.socket.close()


@contextlib.contextmanager
def session(
    tenant: Tenant,
    query: str | None = None,
    *,
    server: Server | None = None,
    headers: Mapping[str, str] | None = None,
    **options: Any,
) -> Iterator[Socket]:
    """Open a realtime session with the key of a tenant."""
    url = tenant.house.url(server).replace("http", "ws")
    query = f"model={tenant.model}" if query is None else query
    if headers is None:
        headers = {"authorization": f"Bearer {tenant.secret}"}
    options = {"proxy": None, "compression": None, "max_size": 2**24, "close_timeout": 1} | options
    with connect(f"{url}/v1/realtime?{query}", additional_headers=headers, **options) as connection:
        yield Socket(connection)


def only_call(tenant: Tenant, within: float = 10) -> Json:
    """Return the one call of a tenant, once it is booked."""
    [call] = eventually(tenant.calls, within=within, what="a call in the books")
    return dict(call)


CENT = {"second": "0.01"}
TALK = {
    "input_token": "0.001",
    "output_token": "0.001",
    "input_audio_token": "0.001",
    "output_audio_token": "0.001",
}
REALTIME = {"endpoints": ["realtime"]}


def transcriber(
    house: House, rates: Any = CENT, upstream: str = "gpt-4o-transcribe", **fields: Any
) -> str:
    """Add a model that transcribes."""
    return house.model(rates, upstream, **REALTIME | fields)


def talker(house: House, rates: Any = TALK, **fields: Any) -> str:
    """Add a model that converses."""
    return house.model(rates, "gpt-realtime", **REALTIME | {"max_output_tokens": 200} | fields)


@contextlib.contextmanager
def transcription(
    tenant: Tenant, model: str | None = None, *, update: Any = None, **more: Any
) -> Iterator[Socket]:
    """Open a transcription session, greeted and configured."""
    with session(tenant, f"intent=transcription&model={model or tenant.model}", **more) as socket:
        socket.until("session.created")
        if update is not None:
            configure(socket, update)
        yield socket


@contextlib.contextmanager
def conversation(tenant: Tenant, **more: Any) -> Iterator[Socket]:
    """Open a conversation that is greeted."""
    with session(tenant, **more) as socket:
        socket.until("session.created")
        yield socket


def configure(socket: Socket, audio_input: Any) -> None:
    """Update the input of a transcription session."""
    socket.send(
        "session.update", session={"type": "transcription", "audio": {"input": audio_input}}
    )
    socket.until("session.updated")


def say(socket: Socket, text: str = "Hello there", **response: Any) -> None:
    """Ask for a response in text."""
    part = {"type": "input_text", "text": text}
    item = {"type": "message", "role": "user", "content": [part]}
    socket.send("conversation.item.create", item=item)
    socket.send("response.create", response={"output_modalities": ["text"]} | response)


def used(tenant: Tenant) -> Decimal:
    """Return what the allocation has used."""
    return Decimal(tenant.standing()["cost_used_this_month"])


def last_session(house: House) -> Any:
    """Return what the provider knows of the last session."""
    return house.sim.calls[-1].realtime


class Wild:
    """A provider that does what a test wants with each session."""

    def __init__(self) -> None:
        self.sessions: list[ServerConnection] = []
        self.act: Callable[[ServerConnection], None] = lambda connection: None
        self._server = serve(
            self._serve,
            "127.0.0.1",
            0,
            compression=None,
            max_size=2**24,
            max_queue=1,
            ping_interval=None,
            close_timeout=1,
        )
        self.port = self._server.socket.getsockname()[1]
        self.thread = threading.Thread(target=self._server.serve_forever)
        self.thread.start()

    def _serve(self, connection: ServerConnection) -> None:
        self.sessions.append(connection)
        connection.send(json.dumps({"type": "session.created", "session": {"type": "realtime"}}))
        try:
            self.act(connection)
        except ConnectionClosed:
            return

    def tenant(self, house: House, **fields: Any) -> Tenant:
        """Add a tenant whose model is at this provider."""
        provider = house.provider("compatible", base_url=f"http://127.0.0.1:{self.port}/v1")
        return house.tenant(house.model(CENT, provider_id=provider, **REALTIME), **fields)

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self.thread.join()


# Reading answers


def refused(answer: httpx2.Response, status: int, code: str | None) -> Json:
    """Check an error in OpenAI's envelope; return it."""
    answer.read()
    assert answer.status_code == status, f"{answer.status_code} {answer.text[:500]}"
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    assert answer.headers["x-should-retry"] in ("true", "false")
    [(name, error)] = answer.json().items()
    assert name == "error"
    assert {"message", "type", "param", "code"} <= error.keys()
    assert isinstance(error["message"], str)
    assert error["message"]
    assert error["code"] == code, error
    if code != "quota_reserved":
        assert "retry-after" not in answer.headers
    return error


def served(answer: httpx2.Response) -> httpx2.Response:
    """Check that a call was served."""
    answer.read()
    assert answer.status_code == 200, f"{answer.status_code} {answer.text[:500]}"
    assert answer.headers["x-request-id"]
    assert answer.headers["x-spendgate-call-id"]
    return answer


def next_month() -> str:
    """Return when the caps of this month (UTC) are refilled."""
    now = datetime.now(UTC)
    year, month = (now.year + 1, 1) if now.month == 12 else (now.year, now.month + 1)
    return f"{year}-{month:02}-01T00:00:00Z"


def events(body: bytes) -> list[Any]:
    """Return the data of server-sent events: decoded, or `[DONE]`."""
    datas = [
        line.removeprefix("data: ")
        for line in body.decode().replace("\r\n", "\n").split("\n")
        if line.startswith("data: ")
    ]
    return [data if data == "[DONE]" else json.loads(data) for data in datas]
