"""The demo: sample data, made the way anybody would make it, and its simulated provider.

Owns the directory that the demo keeps between runs, what the sample members, models and
allocations are, and the calls that give them a past. Owns no process (``app.cli`` runs the server)
and no way of its own into the books: apart from the first administrator and token, which the
command line makes for any installation, everything goes through the control API, and every cent
was spent by a real call through the gateway.

Invariants:

* Running it again on the same directory goes on with what is there: nothing is made twice, nothing
  that a visitor changed is undone, and what the credentials file says is right again. Where a
  secret no longer works, a new one is made.
* One demo at a time uses a directory.
* Secrets are in files that only their owner can read, and files are replaced whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import os
import secrets
import shutil
import tempfile
import unicodedata
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import msgspec
from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from app.simulator import RunningSimulator, serve_in_thread
from app.store import admin, catalogue
from app.store.database import Connection, Database
from app.store.postgres import EmbeddedPostgres
from app.store.vault import Vault, new_admin_token

SETTINGS_OF_ITS_OWN: Final = frozenset({"SPENDGATE_DATABASE_URL", "SPENDGATE_SECRET_KEY"})

Say = Callable[[str], None]


class DemoFailed(Exception):
    """The demo cannot go on; the message says why."""


# --------------------------------------------------------------------------------- sample data

CHAT: Final = "gpt-4o-mini"
EMBEDDINGS: Final = "text-embedding-3-small"
OCR: Final = "mistral-ocr"
SPEECH: Final = "tts-1"
REALTIME: Final = "gpt-realtime"
UNPRICED: Final = "experimental-unpriced"
OCR_USD_PER_PAGE: Final = Decimal("0.002")
PAGES_MAX: Final = 500


class SampleModel(msgspec.Struct, frozen=True):
    """A model, and its rates: unit, USD, per how many."""

    slug: str
    rates: tuple[tuple[str, str, int], ...] = ()
    context_window: int | None = None
    max_output_tokens: int | None = None
    endpoints: tuple[str, ...] | None = None


MODELS: Final = (
    SampleModel(
        CHAT,
        (
            ("input_token", "0.15", 1_000_000),
            ("cached_input_token", "0.075", 1_000_000),
            ("output_token", "0.60", 1_000_000),
        ),
        context_window=128_000,
        max_output_tokens=16_384,
    ),
    SampleModel(EMBEDDINGS, (("input_token", "0.02", 1_000_000),), context_window=8_192),
    SampleModel(OCR, (("page", "2", 1_000),)),
    SampleModel(SPEECH, (("character", "15", 1_000_000),)),
    SampleModel("whisper-1", (("second", "0.006", 60),)),
    SampleModel(
        "gpt-4o-transcribe",
        (
            ("input_token", "2.50", 1_000_000),
            ("input_audio_token", "6", 1_000_000),
            ("output_token", "10", 1_000_000),
        ),
        context_window=16_000,
        max_output_tokens=2_000,
        endpoints=("audio/transcriptions", "realtime"),
    ),
    SampleModel(
        REALTIME,
        (
            ("input_token", "4", 1_000_000),
            ("cached_input_token", "0.40", 1_000_000),
            ("output_token", "16", 1_000_000),
            ("input_audio_token", "32", 1_000_000),
            ("cached_input_audio_token", "0.40", 1_000_000),
            ("output_audio_token", "64", 1_000_000),
        ),
        context_window=32_000,
        max_output_tokens=4_096,
        endpoints=("realtime",),
    ),
    SampleModel(UNPRICED, context_window=128_000, max_output_tokens=16_384),
)


class SampleMember(msgspec.Struct, frozen=True):
    """A member with one allocation, and how much of it is spent."""

    email: str
    name: str
    allocation: str
    models: tuple[str, ...]
    usd: str
    tokens: int | None = None
    spend: str = "0"
    """Brought up to this each month, at the first start in it."""
    paused: bool = False


ADMIN_EMAIL: Final = "admin@example.com"
ADMIN_NAME: Final = "Demo Administrator"
GUEST: Final = SampleMember(
    "maya@example.com",
    "Maya Lindqvist",
    "Playground",
    tuple(model.slug for model in MODELS),
    usd="50",
    tokens=10_000_000,
)
"""Whom the visitor is: the member whose sign-in and key are shown."""

MEMBERS: Final = (
    GUEST,
    SampleMember(
        "yijun@example.com", "陳怡君", "研究助理", (CHAT, EMBEDDINGS, OCR), "5", spend="4.00"
    ),
    SampleMember("tomas@example.com", "Tomás Rivera", "Archive", (CHAT, OCR), "10", spend="9.50"),
    SampleMember(
        "amara@example.com",
        "Amara Okafor",
        "Course reader",
        (CHAT, EMBEDDINGS, OCR, SPEECH),
        "20",
        tokens=2_000_000,
        spend="1.60",
    ),
    SampleMember("priya@example.com", "Priya Nair", "Thesis scans", (OCR,), "1", spend="1.00"),
    SampleMember(
        "jonas@example.com",
        "Jonas Weber",
        "Internship",
        (CHAT, OCR),
        "3",
        spend="0.40",
        paused=True,
    ),
)

PROMPTS: Final = (
    "Summarise the second law of thermodynamics for a poster.",
    "用三句話介紹台北的夜市。",
    "Which of these two abstracts is clearer, and why?",
    "Draft a polite reminder about the reading list.",
    "Explain group commit to a first-year student.",
)


# ------------------------------------------------------------------------- what is kept of a run


class Memory(msgspec.Struct):
    """What a run leaves for the next one, apart from the books."""

    provider_key: str
    admin_password: str
    member_password: str
    admin_token: str = ""
    provider_port: int = 0
    keys: dict[str, str] = {}
    """By the member's address: secrets are shown once, so the demo has to keep its own."""
    complete: bool = False


def _new_memory() -> Memory:
    return Memory(
        provider_key=f"sim-{secrets.token_urlsafe(24)}",
        admin_password=secrets.token_urlsafe(12),
        member_password=secrets.token_urlsafe(12),
    )


class Home:
    """The demo's directory, while one demo has it to itself."""

    # All that a demo ever makes in there, but for the lock.
    CONTENTS: Final = (
        "demo.json",
        "postgres",
        "postgres.init",
        "postgres.lock",
        "postgres.log",
        "postgres.log.1",
        "postgres.socket",
        "postgres.start.lock",
        "secret.key",
        "spool",
    )

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.memory = _new_memory()
        self.guest_locked_out = True
        """Whether the guest's password is not the one that is shown."""
        self._lock: int | None = None

    def __enter__(self) -> Home:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(self.directory / "demo.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise DemoFailed(
                f"another demo is running in {self.directory}: stop it, or choose another "
                f"--data-dir"
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)

    def reset(self) -> None:
        """Delete what former runs left."""
        server = EmbeddedPostgres(self.directory)
        if server.postmaster_pid() is not None:
            # Left behind by a demo that was killed: nobody else is here.
            server.start()
            server.stop()
        if server.postmaster_pid() is not None:
            raise DemoFailed(f"the database in {self.directory} is in use: stop its users first")
        for name in self.CONTENTS:
            path = self.directory / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def recall(self) -> None:
        """Read what the last run left, if one did."""
        # What cannot be read is made anew, like any secret that no longer works.
        with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
            self.memory = msgspec.json.decode(self._path.read_bytes(), type=Memory)

    def remember(self) -> None:
        """Write what the next run needs."""
        write_secret(self._path, self.memory)

    @property
    def _path(self) -> Path:
        return self.directory / "demo.json"

    @contextlib.contextmanager
    def provider(self) -> Iterator[RunningSimulator]:
        """Run the simulated provider, on the port it had the last time if that is free."""
        with contextlib.ExitStack() as stack:
            key = self.memory.provider_key
            try:
                wanted = self.memory.provider_port
                running = stack.enter_context(serve_in_thread(port=wanted, api_key=key))
            except OSError:
                running = stack.enter_context(serve_in_thread(api_key=key))
            self.memory.provider_port = running.port
            yield running

    async def enter(self, dsn: str, vault: Vault) -> None:
        """Have an administrator and an admin token that work, as the command line makes them."""
        memory = self.memory
        token, hasher = memory.admin_token, PasswordHasher()

        async def work(connection: Connection) -> None:
            at = datetime.now(UTC)
            known = await admin.password_hash(connection, ADMIN_EMAIL)
            if not _fits(hasher, known, memory.admin_password):
                hashed = hasher.hash(memory.admin_password)
                await admin.put_admin(
                    connection, email=ADMIN_EMAIL, name=ADMIN_NAME, password_hash=hashed, at=at
                )
            if not token or await catalogue.admin_token(connection, vault.digest(token)) is None:
                memory.admin_token = new_admin_token()
                digest = vault.digest(memory.admin_token)
                await admin.add_admin_token(connection, name="demo", digest=digest, at=at)
            guest = await admin.password_hash(connection, GUEST.email)
            self.guest_locked_out = not _fits(hasher, guest, memory.member_password)

        books = Database(dsn, pool_size=1)
        try:
            await books.transaction(work)
        finally:
            await books.close()
        self.remember()


def _fits(hasher: PasswordHasher, hashed: str | None, password: str) -> bool:
    try:
        return hashed is not None and hasher.verify(hashed, password)
    except (Argon2Error, InvalidHashError):
        return False


def write_secret(path: Path, document: object) -> None:
    """Write a JSON document that only its owner can read, at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(document)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise


# ----------------------------------------------------------------------------------- the client


class Client:
    """One caller of the demo's own server, with its bearer secret."""

    def __init__(self, base_url: str, bearer: str) -> None:
        parts = urllib.parse.urlsplit(base_url)
        assert parts.hostname is not None, "we made it"
        # Connects anew by itself when the server has closed a connection.
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
        self._bearer = bearer

    def send(
        self, method: str, path: str, body: bytes | None = None, type: str = "application/json"
    ) -> tuple[int, bytes]:
        """Return status and body of the answer."""
        headers = {"Authorization": f"Bearer {self._bearer}"}
        if body is not None:
            headers["Content-Type"] = type
        self._connection.request(method, path, body, headers)
        answer = self._connection.getresponse()
        return answer.status, answer.read()

    def json(self, method: str, path: str, document: object = None) -> Any:
        """Return the document of an answer that is a success. Raises :class:`DemoFailed`."""
        body = None if document is None else msgspec.json.encode(document)
        status, answer = self.send(method, path, body)
        if status >= 300:
            said = answer.decode(errors="replace")[:500]
            raise DemoFailed(f"{method} {path} was answered with {status}: {said}")
        return msgspec.json.decode(answer) if answer.startswith((b"{", b"[")) else answer

    def every(self, path: str) -> Iterator[dict[str, Any]]:
        """Walk through all pages of a list."""
        query = "&" if "?" in path else "?"
        cursor = ""
        while True:
            page = self.json("GET", f"{path}{query}limit=500{cursor}")
            yield from page["items"]
            if page["next"] is None:
                return
            cursor = f"&cursor={page['next']}"


# ------------------------------------------------------------------------------------ the scene


class Credentials(msgspec.Struct, frozen=True):
    """What the credentials file says."""

    base_url: str
    admin_email: str
    admin_password: str
    admin_token: str
    member_email: str
    member_password: str
    member_id: str
    member_key: str
    allocation_id: str


class Scene:
    """The sample data of a running server: what is missing is made, what is there is left."""

    def __init__(self, home: Home, base_url: str, provider_url: str, say: Say) -> None:
        self.home = home
        self.memory = home.memory
        self.base_url = base_url
        self.provider_url = provider_url
        self.say = say
        self.admin = Client(base_url, home.memory.admin_token)

    def set(self) -> Credentials:
        """Make it, and return how to get in."""
        self.say("Setting up the provider, the models and their prices …")
        self._models(self._provider())
        self.say("Setting up members, allocations and keys …")
        members = {member["email"]: member for member in self.admin.every("/api/admin/members")}
        guest_allocation = guest_id = ""
        for sample in MEMBERS:
            member_id = self._member(sample, members.get(sample.email))
            allocation = self._allocation(sample, member_id)
            client = self._key(sample, member_id, allocation["id"])
            if allocation["status"] == "active":
                self._past(sample, allocation, client)
            if sample is GUEST:
                guest_id, guest_allocation = member_id, allocation["id"]
        self.memory.complete = True
        self.home.remember()
        return Credentials(
            base_url=self.base_url,
            admin_email=ADMIN_EMAIL,
            admin_password=self.memory.admin_password,
            admin_token=self.memory.admin_token,
            member_email=GUEST.email,
            member_password=self.memory.member_password,
            member_id=guest_id,
            member_key=self.memory.keys[GUEST.email],
            allocation_id=guest_allocation,
        )

    def standings(self) -> list[tuple[str, str, str, str]]:
        """How the allocations stand: member, allocation, spent of the cap, state."""
        names = {m["id"]: m["display_name"] for m in self.admin.every("/api/admin/members")}
        rows = [
            (
                names.get(one["member_id"], ""),
                one["name"],
                f"${one['cost_used_this_month']} of ${one['quota_cost_usd_per_month']}"
                if one["quota_cost_usd_per_month"] is not None
                else f"${one['cost_used_this_month']}",
                one["state"],
            )
            for one in self.admin.every("/api/admin/allocations")
        ]
        return rows[::-1]

    def _provider(self) -> str:
        document = {
            "name": "Simulator",
            "kind": "compatible",
            "base_url": self.provider_url,
            "api_key": self.memory.provider_key,
        }
        for provider in self.admin.every("/api/admin/providers"):
            if provider["name"] == document["name"]:
                id: str = provider["id"]
                if provider["base_url"] != self.provider_url or not self.memory.complete:
                    self.admin.json("PATCH", f"/api/admin/providers/{id}", document)
                return id
        made: str = self.admin.json("POST", "/api/admin/providers", document)["id"]
        return made

    def _models(self, provider_id: str) -> None:
        known = {model["slug"] for model in self.admin.every("/api/admin/models")}
        priced = {price["model"] for price in self.admin.every("/api/admin/prices")}
        for model in MODELS:
            if model.slug not in known:
                self.admin.json(
                    "POST",
                    "/api/admin/models",
                    {
                        "slug": model.slug,
                        "provider_id": provider_id,
                        "context_window": model.context_window,
                        "max_output_tokens": model.max_output_tokens,
                        "endpoints": model.endpoints,
                    },
                )
            if model.rates and model.slug not in priced:
                rates = [{"unit": unit, "usd": usd, "per": per} for unit, usd, per in model.rates]
                self.admin.json("POST", "/api/admin/prices", {"model": model.slug, "rates": rates})

    def _member(self, sample: SampleMember, known: Mapping[str, Any] | None) -> str:
        document: dict[str, str] = {}
        if known is None:
            document = {"email": sample.email, "display_name": sample.name}
        if sample is GUEST and self.home.guest_locked_out:
            document["password"] = self.memory.member_password
        if sample is GUEST and known is not None and known["status"] != "active":
            document["status"] = "active"
        if known is None:
            made: str = self.admin.json("POST", "/api/admin/members", document)["id"]
            return made
        id: str = known["id"]
        if document:
            self.admin.json("PATCH", f"/api/admin/members/{id}", document)
        return id

    def _allocation(self, sample: SampleMember, member_id: str) -> dict[str, Any]:
        for allocation in self.admin.every(f"/api/admin/allocations?member_id={member_id}"):
            # The guest's has to work; the others may have become whatever a visitor made of them.
            if allocation["name"] == sample.allocation and (
                sample is not GUEST or allocation["status"] == "active"
            ):
                return allocation
        made: dict[str, Any] = self.admin.json(
            "POST",
            "/api/admin/allocations",
            {
                "member_id": member_id,
                "name": sample.allocation,
                "models": sample.models,
                "quota_cost_usd_per_month": sample.usd,
                "quota_tokens_per_month": sample.tokens,
                "reason": "sample data",
            },
        )
        return made

    def _key(self, sample: SampleMember, member_id: str, allocation_id: str) -> Client:
        secret = self.memory.keys.get(sample.email)
        if secret is not None:
            client = Client(self.base_url, secret)
            status, answer = client.send("GET", "/v1/key")
            if status == 200 and allocation_id.encode() in answer:
                return client
        made = self.admin.json(
            "POST",
            "/api/admin/keys",
            {"member_id": member_id, "name": "Demo", "allocation_ids": [allocation_id]},
        )
        self.memory.keys[sample.email] = made["key"]
        self.home.remember()
        return Client(self.base_url, made["key"])

    # What the members did this month.

    def _past(self, sample: SampleMember, allocation: Mapping[str, Any], client: Client) -> None:
        used, target = Decimal(allocation["cost_used_this_month"]), Decimal(sample.spend)
        if used == 0 or target - used >= OCR_USD_PER_PAGE:
            self.say(f"Making calls as {sample.name} …")
            if used == 0:
                self._ordinary_calls(sample, client)
            self._scans(client, target)
            if target and target == Decimal(sample.usd):
                # One more than fits, so that there is a refusal to look at.
                client.send("POST", "/v1/ocr", _scan(1))
        if sample.paused and not self.memory.complete:
            path = f"/api/admin/allocations/{allocation['id']}"
            self.admin.json("PATCH", path, {"status": "paused", "reason": "sample data"})

    def _ordinary_calls(self, sample: SampleMember, client: Client) -> None:
        for slug in sample.models:
            match slug:
                case "gpt-4o-mini":
                    for number, prompt in enumerate(PROMPTS):
                        client.json("POST", "/v1/chat/completions", _chat(slug, prompt, number % 2))
                case "experimental-unpriced":
                    client.json("POST", "/v1/chat/completions", _chat(slug, PROMPTS[0], False))
                case "text-embedding-3-small":
                    client.json("POST", "/v1/embeddings", {"model": slug, "input": list(PROMPTS)})
                case "tts-1":
                    self._speech(sample, client)
                case "mistral-ocr":
                    client.send("POST", "/v1/ocr", _scan(5))

    def _speech(self, sample: SampleMember, client: Client) -> None:
        """Have a sentence spoken, and what was spoken written down again."""
        speech = {"model": SPEECH, "voice": "alloy", "input": PROMPTS[0], "response_format": "wav"}
        _, audio = client.send("POST", "/v1/audio/speech", msgspec.json.encode(speech))
        for slug in ("whisper-1", "gpt-4o-transcribe"):
            if slug in sample.models:
                client.send("POST", "/v1/audio/transcriptions", *_transcription(slug, audio))

    def _scans(self, client: Client, target: Decimal) -> None:
        """Spend up to an amount, on pages: what they cost is known beforehand."""
        while True:
            [allocation] = client.json("GET", "/api/me/allocations")["items"]
            left = target - Decimal(allocation["cost_used_this_month"])
            pages = min(int(left / OCR_USD_PER_PAGE), PAGES_MAX)
            if pages <= 0:
                return
            status, answer = client.send("POST", "/v1/ocr", _scan(pages))
            if status != 200:
                # A visitor has made it something else; then it is what it is.
                self.say(f"  (answered with {status}: {answer.decode(errors='replace')[:200]})")
                return


def _chat(model: str, prompt: str, stream: object) -> dict[str, Any]:
    document = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": 200,
    }
    return {**document, "stream": True} if stream else document


def _scan(pages: int) -> bytes:
    # What is in double brackets is for the simulator; to a real provider it is part of a name.
    address = f"https://example.com/archive.pdf [[sim remote_pages={pages} answer_tokens=1]]"
    return msgspec.json.encode(
        {
            "model": OCR,
            "document": {"type": "document_url", "document_url": address},
            "pages": list(range(pages)),
        }
    )


def _transcription(model: str, audio: bytes) -> tuple[bytes, str]:
    boundary = secrets.token_hex(16)
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="model"\r\n\r\n{model}\r\n'
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="speech.wav"\r\n'
        f"Content-Type: audio/wav\r\n\r\n"
    )
    body = head.encode() + audio + f"\r\n--{boundary}--\r\n".encode()
    return body, f"multipart/form-data; boundary={boundary}"


# ------------------------------------------------------------------------------------- the card


def card(access: Credentials, standings: Sequence[Sequence[str]], directory: Path) -> str:
    """What the demo prints once it is ready."""
    url = access.base_url
    body = f'{{"model":"{CHAT}","messages":[{{"role":"user","content":"Hello!"}}]}}'
    key = f"Authorization: Bearer {access.member_key}"
    lines = [
        f"Spendgate is running at {url}",
        "",
        f"  dashboard      {url}",
        f"  for clients    {url}/v1",
        f"  described at   {url}/api/schema",
        "",
        "Sign-ins for the dashboard, and secrets",
        *table(
            [
                ["administrator", access.admin_email, access.admin_password],
                ["member", access.member_email, access.member_password],
            ]
        ),
        f"  admin token    {access.admin_token}",
        f"  member's key   {access.member_key}",
        "",
        "Try it: a call, and what it has cost",
        f"curl {url}/v1/chat/completions -H '{key}' "
        f"-H 'Content-Type: application/json' -d '{body}'",
        f"curl {url}/api/me/allocations -H '{key}'",
        "",
        "Sample allocations, this month",
        *table(standings),
        "",
        f"Data is kept in {directory}; --reset begins anew. Ctrl-C stops it.",
    ]
    rule = "─" * 78
    return "\n".join([rule, *lines, rule])


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with the cells of each column below each other."""
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(
            cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def _width(text: str) -> int:
    """Columns on a terminal: Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
