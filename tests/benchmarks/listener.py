"""A provider of realtime sessions that is never the bottleneck, and the frames both ends know.

A raw `asyncio.Protocol` on uvloop that takes every WebSocket, greets it as a transcription session
is greeted, confirms every update, and answers each `input_audio_buffer.append` at once with a tiny
event that echoes its `event_id`. No provider does the latter; it is how the other end knows when
its frame arrived. An append is as long as every other, so it is known by its length, and of its
1.3 KB only the four digits of the `event_id` are unmasked.

The frames are written as OpenAI's own client writes them: 20 ms of pcm16 at 24 kHz in base64.
"""

import argparse
import asyncio
import base64
import json
import random
import signal
from hashlib import sha1
from typing import Any, Final, cast

import uvloop

FRAME_MS: Final = 20
FRAMES_PER_S: Final = 1000 // FRAME_MS
RING: Final = 256
"""How many appends differ, and so how many of a session may be on their way at once."""

GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT: Final = 0x81
CLOSE: Final = 0x88
PING: Final = 0x89
PONG: Final = 0x8A

_AUDIO: Final = base64.b64encode(random.Random(1).randbytes(24_000 * 2 * FRAME_MS // 1000)).decode()


def append(number: int) -> bytes:
    """The append with this number, as JSON."""
    event = {
        "type": "input_audio_buffer.append",
        "audio": _AUDIO,
        "event_id": f"{number % RING:04}",
    }
    return json.dumps(event).encode()


APPEND_SIZE: Final = len(append(0))
ID_AT: Final = append(1234 % RING).index(b'"event_id": "') + len(b'"event_id": "')
_TURN: Final = ID_AT % 4
"""Where in the mask the digits begin."""


def frame(payload: bytes, opcode: int = TEXT) -> bytes:
    """A whole frame as a server sends it."""
    size = len(payload)
    if size < 126:
        return bytes((opcode, size)) + payload
    return bytes((opcode, 126)) + size.to_bytes(2, "big") + payload


def masked(payload: bytes, opcode: int = TEXT, mask: bytes = b"\x3a\xc5\x91\x6e") -> bytes:
    """A whole frame as a client sends it."""
    size = len(payload)
    head = bytes((opcode, 128 | size)) if size < 126 else bytes((opcode, 254))
    if size >= 126:
        head += size.to_bytes(2, "big")
    return head + mask + unmask(payload, mask)


def unmask(payload: bytes, mask: bytes) -> bytes:
    """Take the mask off, or put it on."""
    size = len(payload)
    key = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(size, "big")


def accept_key(key: bytes) -> bytes:
    """What proves to a client that its handshake was understood."""
    return base64.b64encode(sha1(key + GUID, usedforsecurity=False).digest())


_ECHO_START: Final = b'{"type":"benchmark.echo","event_id":"'
_ECHO_END: Final = b'"}'
_ECHO_HEAD: Final = frame(_ECHO_START + b"0000" + _ECHO_END)[: 2 + len(_ECHO_START)]


def echo(number: int) -> bytes:
    """The answer to an append, as a frame."""
    return _ECHO_HEAD + f"{number % RING:04}".encode() + _ECHO_END


_SESSION: Final[dict[str, Any]] = {
    "object": "realtime.transcription_session",
    "id": "sess_benchmark",
    "type": "transcription",
    "expires_at": 0,
    "audio": {
        "input": {
            "format": {"type": "audio/pcm", "rate": 24_000},
            "transcription": None,
            "noise_reduction": None,
            "turn_detection": {"type": "server_vad"},
        }
    },
}


def _event(kind: str, session: dict[str, Any]) -> bytes:
    event = {"type": kind, "event_id": f"event_{kind}", "session": session}
    return frame(json.dumps(event, separators=(",", ":")).encode())


_CREATED: Final = _event("session.created", _SESSION)


def _updated(event: Any) -> bytes:
    """Say yes to an update, with all of the session that is now in force."""
    changes = event.get("session", {}).get("audio", {}).get("input", {})
    audio_input = {**_SESSION["audio"]["input"], **changes}
    return _event("session.updated", {**_SESSION, "audio": {"input": audio_input}})


class Listener(asyncio.Protocol):
    """One session."""

    __slots__ = ("_buffer", "_open", "_transport")

    def __init__(self) -> None:
        self._buffer = b""
        self._open = False
        self._transport: asyncio.WriteTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        at = 0 if self._open else self._handshake(data)
        answers: list[bytes] = []
        end = len(data)
        while self._open and end - at >= 6:
            size = data[at + 1] & 127
            body = at + 6
            if size == 126:
                size = data[at + 2] << 8 | data[at + 3]
                body = at + 8
            elif size == 127:
                # Nothing here is so long.
                self._transport.close()
                return
            if end < body + size:
                break
            if size == APPEND_SIZE:
                key = data[body - 4 : body]
                digits = data[body + ID_AT : body + ID_AT + 4]
                turned = key[_TURN:] + key[:_TURN]
                plain = int.from_bytes(digits, "big") ^ int.from_bytes(turned, "big")
                answers.append(_ECHO_HEAD + plain.to_bytes(4, "big") + _ECHO_END)
            else:
                payload = unmask(data[body : body + size], data[body - 4 : body])
                answers += self._other(data[at], payload)
            at = body + size
        self._buffer = data[at:]
        if answers:
            self._transport.write(answers[0] if len(answers) == 1 else b"".join(answers))

    def _handshake(self, data: bytes) -> int:
        """Take the session; return where its frames begin."""
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return 0
        key = b""
        for line in data[:end].split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"sec-websocket-key":
                key = value.strip()
        self._transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
            b"sec-websocket-accept: " + accept_key(key) + b"\r\n\r\n" + _CREATED
        )
        self._open = True
        return end + 4

    def _other(self, opcode: int, payload: bytes) -> list[bytes]:
        """Answer whatever is not an append."""
        if opcode == PING:
            return [frame(payload, PONG)]
        if opcode == CLOSE:
            self._transport.write(frame(payload, CLOSE))
            self._transport.close()
        elif opcode == TEXT:
            event = json.loads(payload)
            if event["type"].endswith("session.update"):
                return [_updated(event)]
        return []


async def serve(port: int) -> None:
    """Listen on the loopback interface until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    server = await loop.create_server(Listener, "127.0.0.1", port, backlog=1024)
    await stopped.wait()
    server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
