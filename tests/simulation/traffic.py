"""What clients do: calls of every kind, what came of them, and load.

Owns the clients' side of the truth: a call is `whole` when its client has all of the answer, and
then `usage` is what the answer says was used. The audit compares it with the books.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import httpx2

if TYPE_CHECKING:
    from tests.simulation.house import Gateway, Tenant

KINDS = ("chat", "stream", "ocr", "unpriced")
WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "the",
    "lazy",
    "dog",
    "and",
    "runs",
    "away",
]


@dataclass
class Sent:
    """One call, as its client knows it."""

    kind: str
    status: int | None = None
    code: str | None = None
    call_id: str = ""
    whole: bool = False
    usage: dict[str, Decimal] = field(default_factory=dict)
    text: str = ""
    error: str = ""

    @property
    def tokens(self) -> int:
        """What token limits count."""
        return sum(int(n) for unit, n in self.usage.items() if unit.endswith("token"))

    @property
    def nano(self) -> int | None:
        """What it costs at the rates of the house; None: nobody knows."""
        if self.kind == "unpriced":
            return None
        rates = {"input_token": 150_000, "output_token": 600_000, "page": 10_000_000}
        return sum(int(n * rates[unit]) for unit, n in self.usage.items())


def body_of(kind: str, *, directive: str = "", words: int = 8, max_tokens: int = 64) -> Any:
    """Return the request of a kind; `directive` is the simulator's."""
    if kind == "ocr":
        # A document elsewhere: how many pages it has is the provider's to say.
        url = f"https://documents.example/{words}.pdf"
        if directive:
            url += f"#[[sim {directive}]]"
        document = {"type": "document_url", "document_url": url}
        return {"model": "ocr", "document": document, "pages": list(range(1 + words % 3))}
    text = " ".join(WORDS[i % len(WORDS)] for i in range(words))
    if directive:
        text += f" [[sim {directive}]]"
    body: dict[str, Any] = {
        "model": "unpriced" if kind == "unpriced" else "chat",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": max_tokens,
    }
    if kind == "stream":
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body


async def call(
    client: httpx2.AsyncClient,
    gateway: Gateway,
    tenant: Tenant,
    kind: str,
    *,
    leave_after: int | None = None,
    headers: dict[str, str] | None = None,
    **body: Any,
) -> Sent:
    """Make one call; what goes wrong on the way is in the result. `leave_after`: so many lines."""
    sent = Sent(kind)
    path = "/v1/ocr" if kind == "ocr" else "/v1/chat/completions"
    if not gateway.url:
        sent.error = "nobody listens"
        return sent
    try:
        async with client.stream(
            "POST",
            gateway.url + path,
            headers={"authorization": f"Bearer {tenant.key}", **(headers or {})},
            json=body_of(kind, **body),
        ) as answer:
            sent.status = answer.status_code
            sent.call_id = answer.headers.get("x-spendgate-call-id", "")
            if kind == "stream" and answer.status_code == 200:
                await _read_stream(answer, sent, leave_after)
            else:
                _read_whole(await answer.aread(), sent)
    except httpx2.HTTPError as error:
        sent.error = f"{type(error).__name__}: {error}"
    return sent


async def _read_stream(answer: httpx2.Response, sent: Sent, leave_after: int | None) -> None:
    seen = 0
    async for line in answer.aiter_lines():
        if leave_after is not None and seen >= leave_after:
            return
        seen += 1
        if not line.startswith("data: "):
            continue
        if line == "data: [DONE]":
            sent.whole = not sent.error
            return
        chunk = json.loads(line[6:])
        if "error" in chunk:
            sent.error = str(chunk["error"])
            continue
        for choice in chunk.get("choices", ()):
            sent.text += choice.get("delta", {}).get("content") or ""
        _read_usage(chunk.get("usage"), sent)


def _read_whole(data: bytes, sent: Sent) -> None:
    answer = json.loads(data)
    if sent.status != 200:
        sent.code = answer.get("error", {}).get("code")
        return
    if sent.kind == "ocr":
        sent.usage = {"page": Decimal(answer["usage_info"]["pages_processed"])}
    else:
        _read_usage(answer["usage"], sent)
    sent.whole = True


def _read_usage(usage: Any, sent: Sent) -> None:
    if usage:
        sent.usage = {
            "input_token": Decimal(usage["prompt_tokens"]),
            "output_token": Decimal(usage["completion_tokens"]),
        }


def a_client() -> httpx2.AsyncClient:
    """Return a client with a connection for every call at once."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=64)
    return httpx2.AsyncClient(timeout=60, limits=limits)


class Load:
    """Callers who go on until they are told to stop, whatever becomes of their calls."""

    def __init__(
        self,
        gateways: Sequence[Gateway],
        tenants: Sequence[Tenant],
        *,
        callers: int = 16,
        seed: int = 0,
        kinds: Sequence[str] = KINDS,
        leaving: float = 0.0,
        directive: Callable[[random.Random, str], str] = lambda rng, kind: "",
    ) -> None:
        self.gateways = gateways
        self.tenants = tenants
        self.callers = callers
        self.random = random.Random(seed)
        self.kinds = kinds
        self.leaving = leaving
        self.directive = directive
        self.sent: list[Sent] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    async def __aenter__(self) -> Load:
        self.client = a_client()
        self._tasks = [
            asyncio.create_task(self._caller(random.Random(self.random.random())))
            for _ in range(self.callers)
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Let what is under way come to its end."""
        self._stopping = True
        await asyncio.gather(*self._tasks)
        self._tasks = []
        await self.client.aclose()

    async def more(self, count: int, within: float = 30) -> None:
        """Wait until so many more calls were answered in full."""
        goal = self.answered() + count
        deadline = asyncio.get_running_loop().time() + within
        while self.answered() < goal:
            assert asyncio.get_running_loop().time() < deadline, (
                f"{goal - self.answered()} of {count} calls were not served in {within:g} s; "
                f"last: {self.sent[-5:]}"
            )
            await asyncio.sleep(0.02)

    def answered(self) -> int:
        """How many were answered in full."""
        return sum(sent.whole for sent in self.sent)

    async def _caller(self, rng: random.Random) -> None:
        while not self._stopping:
            kind = rng.choice(self.kinds)
            leave = rng.random() < self.leaving
            sent = await self._one(rng, kind, leave)
            self.sent.append(sent)
            if not sent.whole and not leave:
                await asyncio.sleep(0.05)

    async def _one(self, rng: random.Random, kind: str, leave: bool) -> Sent:
        going = call(
            self.client,
            rng.choice(self.gateways),
            rng.choice(self.tenants),
            kind,
            words=rng.randint(1, 40),
            max_tokens=rng.choice((1, 8, 64)),
            directive=self.directive(rng, kind),
            leave_after=rng.randint(0, 6) if leave and kind == "stream" else None,
        )
        if not leave or kind == "stream":
            return await going
        # Gone before the answer: the connection closes under it.
        sent = Sent(kind, error="left")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(rng.uniform(0.0, 0.03)):
                sent = await going
        return sent
