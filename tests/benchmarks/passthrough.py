"""The bare pass-through on our own stack: what the gateway would be if it did nothing.

Litestar's raw `@asgi` mount on uvicorn (uvloop, httptools) and one shared pyreqwest client. It
reads the body, forwards it, and returns status, content type and body. No key, no parsing, no
books. The gateway is held to at least half of its throughput, so it is made honestly fast and
uses the client settings that the gateway uses.

What was tried on one core, at 8 and 64 connections: the single-threaded runtime or the
multi-threaded one, Nagle's algorithm, time-outs, decompression, a prepared `Url` instead of a
string, and the interpreter's switch interval all lie within the noise of a few per cent. `send()`
is a little ahead of `build_streamed()`. Freezing what the garbage collector would walk is
worth about five per cent. Only a pool that keeps fewer idle connections than there are
calls in flight costs much: with room for 8, a third of the throughput at 64 is gone.
"""

import argparse
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import uvicorn
from litestar import Litestar, asgi
from litestar.types import Receive, Scope, Send
from pyreqwest.client import Client, ClientBuilder


def build_client() -> Client:
    """The client as the gateway builds it (`app/gateway/upstream.py`)."""
    return (
        ClientBuilder()
        .runtime_multithreaded(False)
        .http1_only()
        .no_proxy()
        .follow_redirects(False)
        .referer(False)
        .default_cookie_store(False)
        .gzip(False)
        .brotli(False)
        .zstd(False)
        .deflate(False)
        .tcp_nodelay(True)
        .max_connections(None)
        .connect_timeout(timedelta(seconds=10))
        .read_timeout(timedelta(seconds=600))
        .pool_idle_timeout(timedelta(seconds=30))
        .pool_max_idle_per_host(512)
        .build()
    )


def build_app(upstream: str) -> Litestar:
    """Everything below `/v1` goes to the same path of `upstream`."""

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        async with build_client() as client:
            app.state.client = client
            gc.collect()
            gc.freeze()
            yield

    @asgi("/v1", is_mount=True, copy_scope=False)
    async def forward(scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return
            body = body + message["body"] if body else message["body"]
            more = message["more_body"]
        client: Client = scope["litestar_app"].state.client
        request = (
            client.post(upstream + scope["raw_path"].decode())
            .header("authorization", "Bearer sk-benchmark", is_sensitive=True)
            .header("content-type", "application/json")
            .body_bytes(body)
        )
        response = await request.build().send()
        answer = bytes(await response.bytes())
        content_type = response.get_header("content-type") or "application/octet-stream"
        await send(
            {
                "type": "http.response.start",
                "status": response.status,
                "headers": [
                    (b"content-type", content_type.encode("latin-1")),
                    (b"content-length", b"%d" % len(answer)),
                ],
            }
        )
        await send({"type": "http.response.body", "body": answer, "more_body": False})

    return Litestar([forward], lifespan=[lifespan], openapi_config=None, logging_config=None)


def main() -> None:
    parser = argparse.ArgumentParser(description="The bare pass-through on our own stack.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", required=True, help="such as http://127.0.0.1:9000")
    given = parser.parse_args()
    uvicorn.run(
        build_app(given.upstream),
        host="127.0.0.1",
        port=given.port,
        loop="uvloop",
        http="httptools",
        lifespan="on",
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
