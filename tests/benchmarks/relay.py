"""The bare relay on our own stack: what a realtime session would cost if the gateway did nothing.

Raw ASGI on uvicorn (uvloop, websockets-sansio, no compression) and the client of `websockets`,
with the settings of the gateway. It opens the provider's side, then two pumps move the frames. No
key, no parsing, no books, no watcher. The gateway is held to at least 60 % of its sessions, so
it is made honestly fast.
"""

import argparse
import asyncio
import contextlib
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Relay:
    """The ASGI application."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Relay one WebSocket."""
        if scope["type"] != "websocket":
            raise RuntimeError("this relays WebSockets only")
        await receive()
        query = scope["query_string"].decode()
        upstream = await connect(
            f"{self._upstream}{scope['path']}?{query}",
            additional_headers=[("authorization", "Bearer sk-benchmark")],
            user_agent_header=None,
            proxy=None,
            compression=None,
            max_size=16 * 2**20,
            max_queue=4,
            ping_interval=10,
            ping_timeout=10,
        )
        await send({"type": "websocket.accept"})
        listening = asyncio.create_task(_from_provider(upstream, send))
        try:
            await _from_client(receive, upstream)
        finally:
            listening.cancel()
            await upstream.close()


async def _from_client(receive: Receive, upstream: ClientConnection) -> None:
    with contextlib.suppress(ConnectionClosed):
        while (message := await receive())["type"] == "websocket.receive":
            text = message.get("text")
            await upstream.send(message["bytes"] if text is None else text)


async def _from_provider(upstream: ClientConnection, send: Send) -> None:
    with contextlib.suppress(ConnectionClosed):
        while True:
            data = await upstream.recv()
            if isinstance(data, bytes):
                await send({"type": "websocket.send", "bytes": data})
            else:
                await send({"type": "websocket.send", "text": data})
    await send({"type": "websocket.close", "code": 1011})


def main() -> None:
    parser = argparse.ArgumentParser(description="The bare relay on our own stack.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", required=True, help="such as ws://127.0.0.1:9000")
    given = parser.parse_args()
    # As the gateway does once it has started.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    uvicorn.run(
        Relay(given.upstream),
        host="127.0.0.1",
        port=given.port,
        loop="uvloop",
        http="httptools",
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        lifespan="off",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
