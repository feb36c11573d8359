"""A provider that is never the bottleneck.

A raw `asyncio.Protocol` on uvloop that answers every `POST …/chat/completions` with the same
OpenAI chat completion (20 prompt tokens, 10 completion tokens) and anything else with a 404. It
reads just enough HTTP/1.1 to be correct for what the benchmark sends: requests framed by
`Content-Length`, kept alive, pipelined or split anywhere. A request it cannot frame (chunked)
gets a 411 and the connection is closed, so that a mistake shows as an error, not as a hang.
"""

import argparse
import asyncio
import json
import signal
from typing import Final, cast

import uvloop

ANSWER: Final = json.dumps(
    {
        "id": "chatcmpl-benchmark",
        "object": "chat.completion",
        "created": 1750000000,
        "model": "benchmark-model",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "Spending is counted before it happens, not after.",
                },
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30},
    },
    separators=(",", ":"),
).encode()


def _response(status: bytes, body: bytes, *extra: bytes) -> bytes:
    """The whole response as one write."""
    lines = [
        b"HTTP/1.1 " + status,
        b"content-type: application/json",
        b"content-length: %d" % len(body),
        *extra,
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


_OK: Final = _response(b"200 OK", ANSWER)
_NOT_FOUND: Final = _response(b"404 Not Found", b'{"error":{"message":"no such path"}}')
_LENGTH_REQUIRED: Final = _response(
    b"411 Length Required", b'{"error":{"message":"no content-length"}}', b"connection: close"
)


class Provider(asyncio.Protocol):
    """One kept-alive connection."""

    __slots__ = ("_buffer", "_transport")

    def __init__(self) -> None:
        self._buffer = b""
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        answers: list[bytes] = []
        start = 0
        while start < len(data):
            head_end = data.find(b"\r\n\r\n", start)
            if head_end < 0:
                break
            head = data[start:head_end].lower()
            at = head.find(b"\r\ncontent-length:")
            if at >= 0:
                line_end = head.find(b"\r\n", at + 17)
                length = int(head[at + 17 : line_end if line_end > 0 else len(head)])
            elif b"\r\ntransfer-encoding:" in head:
                self._write(b"".join((*answers, _LENGTH_REQUIRED)))
                self._close()
                return
            else:
                length = 0
            end = head_end + 4 + length
            if len(data) < end:
                break
            target = head[: head.find(b" http/1.")]
            good = target.startswith(b"post ") and target.endswith(b"/chat/completions")
            answers.append(_OK if good else _NOT_FOUND)
            start = end
        self._buffer = data[start:]
        if answers:
            self._write(answers[0] if len(answers) == 1 else b"".join(answers))

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()


async def serve(port: int) -> None:
    """Answer on the loopback interface until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    server = await loop.create_server(Provider, "127.0.0.1", port, backlog=1024)
    await stopped.wait()
    server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
