"""A crowd that speaks at real pace: N realtime sessions, 50 appends a second on each.

As an open loop it does not wait for answers: whoever is slower than speech falls behind, and shows
it as delay. Sessions speak one after the other within the 20 ms of a frame. A delay is the time
from writing an append to reading the echo of that very append (exact percentiles); how late the
crowd itself was with its appends is told apart, as `late_p99_us`.

It runs as its own process: `python -m tests.benchmarks.speakers` reads a `Crowd` as the first
line of standard input, then one `Order` a line, and answers each with a `Heard` as a line on
standard output. Between two orders the sessions stay open and are silent. At the end of the input
they are closed with a close frame each, and the process ends when all have been answered.

It does as little as possible per frame: every append exists as masked bytes before the first is
sent, and an echo is compared with the bytes it has to be.
"""

import asyncio
import base64
import gc
import json
import sys
import time
from array import array
from time import perf_counter_ns
from typing import Final, cast

import msgspec
import uvloop

from .listener import (
    CLOSE,
    FRAME_MS,
    FRAMES_PER_S,
    PING,
    PONG,
    RING,
    TEXT,
    accept_key,
    append,
    echo,
    masked,
)
from .load import percentile_us

PATH: Final = "/v1/realtime?intent=transcription"
OPENING_AT_ONCE: Final = 16
OPENING_S: Final = 60.0
SLOTS: Final = FRAME_MS
"""Sessions speak a millisecond apart."""
SLOT_NS: Final = 1_000_000
DRAIN_S: Final = 5.0
"""How long after a window the last echoes may take."""

_APPENDS: Final = [masked(append(number)) for number in range(RING)]
_ECHOES: Final = [echo(number) for number in range(RING)]
_ECHO_SIZE: Final = len(_ECHOES[0])
_KEY: Final = base64.b64encode(b"spendgate bench.")


class Crowd(msgspec.Struct, frozen=True):
    """Who speaks to whom."""

    port: int
    key: str
    model: str


class Order(msgspec.Struct, frozen=True):
    """Open or close sessions until there are so many.

    Then all speak for a while; without a window, each says a single frame.
    """

    sessions: int
    warmup_s: float = 0.0
    window_s: float = 0.0


class Heard(msgspec.Struct, frozen=True):
    """What came of an order. Numbers are of the window, but for `total` and `failures`."""

    sessions: int
    sent: int = 0
    """Appends that were due in the window."""
    answered: int = 0
    """Appends that were sent in the window and echoed, sooner or later."""
    total: int = 0
    """Appends sent since the order began, warm-up included."""
    p50_us: float = 0.0
    p99_us: float = 0.0
    growth_ms_per_s: float = 0.0
    """By how much the median delay grew from the window's first third to its last."""
    late_p99_us: float = 0.0
    own_core: float = 0.0
    """The share of a core that this process used."""
    opening_s: float = 0.0
    opened: int = 0
    """Sessions opened so far, those closed again included."""
    failures: dict[str, int] = {}


class Session(asyncio.Protocol):
    """One session."""

    __slots__ = (
        "_buffer",
        "_room",
        "_transport",
        "answered",
        "closed",
        "opened",
        "phase",
        "sent",
        "sent_ns",
    )

    def __init__(self, room: "Room") -> None:
        loop = asyncio.get_running_loop()
        self._room = room
        self._buffer = b""
        self._transport: asyncio.WriteTransport
        self.phase = "handshake"
        self.sent = 0
        self.answered = 0
        self.sent_ns = array("Q", bytes(8 * RING))
        self.opened: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)
        crowd = self._room.crowd
        self._transport.write(
            f"GET {PATH} HTTP/1.1\r\nhost: 127.0.0.1:{crowd.port}\r\n"
            f"authorization: Bearer {crowd.key}\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
            f"sec-websocket-version: 13\r\nsec-websocket-key: {_KEY.decode()}\r\n\r\n".encode()
        )

    def speak(self) -> None:
        """Say the next 20 ms, unless the other side has stopped listening."""
        number = self.sent
        if number - self.answered >= RING:
            return
        self.sent = number + 1
        at = number % RING
        self.sent_ns[at] = perf_counter_ns()
        self._transport.write(_APPENDS[at])

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        number = self.answered
        at = number % RING
        if data == _ECHOES[at]:
            # What nearly every read is.
            self.answered = number + 1
            self._room.note(self.sent_ns[at])
        else:
            self._frames(data)

    def _frames(self, data: bytes) -> None:
        at = self._handshake(data) if self.phase == "handshake" else 0
        end = len(data)
        while self.phase != "handshake" and end - at >= 2:
            body, size = at + 2, data[at + 1] & 127
            if size == 126:
                body, size = at + 4, data[at + 2] << 8 | data[at + 3]
            elif size == 127:
                body, size = at + 10, int.from_bytes(data[at + 2 : at + 10], "big")
            if end < body + size:
                break
            if data[at : body + size] == _ECHOES[self.answered % RING]:
                self._room.note(self.sent_ns[self.answered % RING])
                self.answered += 1
            else:
                self._other(data[at], data[body : body + size])
            at = body + size
        self._buffer = data[at:]

    def _handshake(self, data: bytes) -> int:
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return 0
        if not data.startswith(b"HTTP/1.1 101 ") or accept_key(_KEY) not in data[:end]:
            self._fail(f"refused: {data[:40]!r}")
            return len(data)
        self.phase = "greeting"
        return end + 4

    def _other(self, opcode: int, payload: bytes) -> None:
        """Take whatever is not the echo that is due."""
        if opcode == PING:
            self._transport.write(masked(payload, PONG))
        elif opcode == CLOSE:
            if self.phase != "closing":
                reason = payload[2:].decode(errors="replace")
                self._fail(f"closed: {int.from_bytes(payload[:2], 'big')} {reason}")
            self._transport.close()
        elif opcode == TEXT:
            event = json.loads(payload)
            kind = event["type"]
            if kind == "session.created" and self.phase == "greeting":
                self.phase = "configuring"
                self._transport.write(masked(self._room.update))
            elif kind == "session.updated" and self.phase == "configuring":
                self.phase = "open"
                self.opened.set_result(None)
            elif kind == "error":
                self._fail(f"{event['error']['code']}: {event['error']['message']}")
            else:
                self._fail(f"unexpected: {payload[:60]!r}")

    def close(self) -> None:
        """Say goodbye."""
        self.phase = "closing"
        self._transport.write(masked((1000).to_bytes(2, "big"), CLOSE))

    def connection_lost(self, exc: Exception | None) -> None:
        if self.phase not in ("closing", "failed"):
            self._fail("the connection broke")
        if not self.closed.done():
            self.closed.set_result(None)

    def _fail(self, why: str) -> None:
        if self.phase == "failed":
            return
        self.phase = "failed"
        self._room.fail(self, why)
        if not self.opened.done():
            self.opened.set_result(None)
        self._transport.close()


class Room:
    """The sessions, and what they heard in the order that runs."""

    def __init__(self, crowd: Crowd) -> None:
        self.crowd = crowd
        self.update = json.dumps(
            {
                "type": "session.update",
                "session": {
                    "type": "transcription",
                    "audio": {
                        "input": {
                            "format": {"type": "audio/pcm", "rate": 24_000},
                            "transcription": {"model": crowd.model, "language": "en"},
                            "turn_detection": {"type": "server_vad"},
                        }
                    },
                },
            }
        ).encode()
        self.sessions: list[Session] = []
        self.slots: list[list[Session]] = []
        self.failures: dict[str, int] = {}
        self.opened = 0
        self._delays_ns = array("Q")
        self._window = (0, 0)

    def note(self, sent_ns: int) -> None:
        """Note an echo."""
        start, end = self._window
        if start <= sent_ns < end:
            self._delays_ns.append(perf_counter_ns() - sent_ns)

    def fail(self, session: Session, why: str) -> None:
        """Note what went wrong; the session says no more."""
        self.failures[why] = self.failures.get(why, 0) + 1
        if session in self.sessions:
            self.sessions.remove(session)
        for slot in self.slots:
            if session in slot:
                slot.remove(session)

    async def do(self, order: Order) -> Heard:
        """Do as ordered."""
        begun = time.monotonic()
        await self._open(order.sessions)
        opening_s = time.monotonic() - begun
        if not order.window_s:
            for session in list(self.sessions):
                session.speak()
            await self._drain()
            heard = Heard(len(self.sessions))
        else:
            heard = await self._speak(order)
        failures, self.failures = self.failures, {}
        return msgspec.structs.replace(
            heard, opening_s=opening_s, opened=self.opened, failures=failures
        )

    async def _open(self, count: int) -> None:
        await self._close(count)
        missing = count - len(self.sessions)

        async def open_some() -> None:
            nonlocal missing
            while missing > 0:
                missing -= 1
                await self._open_one()

        await asyncio.gather(*(open_some() for _ in range(OPENING_AT_ONCE)))

    async def _open_one(self) -> None:
        session = Session(self)
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: session, "127.0.0.1", self.crowd.port)
            async with asyncio.timeout(OPENING_S):
                await session.opened
        except (OSError, TimeoutError) as error:
            self.fail(session, f"not opened: {error!r}")
        if session.phase == "open":
            self.sessions.append(session)
            self.opened += 1

    async def _speak(self, order: Order) -> Heard:
        """Let all speak at real pace through warm-up and window, then wait for the last echoes."""
        self.slots = [self.sessions[at::SLOTS] for at in range(SLOTS)]
        self._delays_ns = array("Q")
        late_ns = array("Q")
        before = sum(session.sent for session in self.sessions)
        begun, cpu = perf_counter_ns(), time.process_time()
        start = begun + int(order.warmup_s * 1e9)
        end = start + int(order.window_s * 1e9)
        self._window = (start, end)
        due, at, sent = begun, 0, 0
        while due < end:
            now = perf_counter_ns()
            while due <= now and due < end:
                slot = self.slots[at]
                if due >= start:
                    sent += len(slot)
                    late_ns.append(max(0, perf_counter_ns() - due))
                for session in slot:
                    session.speak()
                due += SLOT_NS
                at = (at + 1) % SLOTS
            await asyncio.sleep(0.001)
        own_core = (time.process_time() - cpu) * 1e9 / (perf_counter_ns() - begun)
        await self._drain()
        # As they came: what the delay grew by.
        third = len(self._delays_ns) // 3
        first, last = (sorted(self._delays_ns[:third]), sorted(self._delays_ns[-third:]))
        growth_us = percentile_us(last, 0.5) - percentile_us(first, 0.5)
        delays = sorted(self._delays_ns)
        return Heard(
            sessions=len(self.sessions),
            sent=sent,
            answered=len(delays),
            total=sum(session.sent for session in self.sessions) - before,
            p50_us=percentile_us(delays, 0.50),
            p99_us=percentile_us(delays, 0.99),
            growth_ms_per_s=growth_us / 1e3 / (order.window_s * 2 / 3),
            late_p99_us=percentile_us(sorted(late_ns), 0.99),
            own_core=own_core,
        )

    async def _drain(self) -> None:
        until = time.monotonic() + DRAIN_S
        while time.monotonic() < until:
            if all(one.answered == one.sent for one in self.sessions):
                return
            await asyncio.sleep(0.01)

    async def leave(self) -> None:
        """Close every session."""
        await self._close(0)

    async def _close(self, leaving: int) -> None:
        """Close the sessions above a number."""
        closing, self.sessions = self.sessions[leaving:], self.sessions[:leaving]
        for session in closing:
            session.close()
        if closing:
            await asyncio.wait([session.closed for session in closing], timeout=OPENING_S)


async def serve() -> None:
    """Do what standard input says."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    room = Room(msgspec.json.decode(await reader.readline(), type=Crowd))
    while line := await reader.readline():
        heard = await room.do(msgspec.json.decode(line, type=Order))
        sys.stdout.buffer.write(msgspec.json.encode(heard) + b"\n")
        sys.stdout.buffer.flush()
    await room.leave()


def main() -> None:
    gc.disable()  # bounded by the orders; a collection would show up as the server's delay
    uvloop.run(serve())


if __name__ == "__main__":
    assert FRAMES_PER_S * FRAME_MS == 1000
    main()
