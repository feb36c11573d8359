"""The door: which request under `/v1` goes where.

Owns the paths of the data plane, the reads (`/v1/models`, `/v1/key`, `/v1/calls/{id}`) and the way
to `/v1/chats`. Calls go through the exchange. A raw ASGI application: typed handlers cost more than
the rest of a call.

Invariants: unknown paths are 404 and never proxied; nothing leaves as a stack trace.
"""

import asyncio
from datetime import UTC, datetime
from typing import Any

import msgspec
import psycopg
import structlog
from sqlalchemy.exc import SQLAlchemyError

from app.core.access import Key
from app.core.ceilings import BadRequest
from app.core.refusals import Reason, Refusal
from app.core.windows import Calendar
from app.gateway.chats import create_chat, delete_chat, show_chat
from app.gateway.endpoints import ENDPOINTS
from app.gateway.exchange import (
    ClientGone,
    Exchange,
    Receive,
    Refused,
    Scope,
    Send,
    read_body,
    request_id_of,
    send_problem,
    send_whole_answer,
)
from app.ids import is_id
from app.problems import (
    bad_request,
    internal_error,
    method_not_allowed,
    not_found,
    problem_of,
    upgrade_required,
)
from app.store.database import Database
from app.store.usage import call_document, key_document

log = structlog.get_logger(__name__)

CHAT_BYTES_MAX = 10_000


class Door:
    """The ASGI application of everything under `/v1/`."""

    def __init__(self, exchange: Exchange, database: Database, calendar: Calendar) -> None:
        self.exchange = exchange
        self.database = database
        self.calendar = calendar
        self.chats = exchange.chats
        self._endpoints = {f"/v1/{name}": endpoint for name, endpoint in ENDPOINTS.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        path: str = scope["path"].rstrip("/")
        try:
            endpoint = self._endpoints.get(path)
            if endpoint is not None and scope["method"] == "POST":
                await self.exchange.handle(endpoint, scope, receive, send)
            else:
                await self._read(path, scope, receive, send, known=endpoint is not None)
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("request_failed", path=path)
            headers = dict(scope["headers"])
            await send_problem(send, internal_error(), request_id_of(headers))

    async def _read(
        self, path: str, scope: Scope, receive: Receive, send: Send, *, known: bool
    ) -> None:
        headers = dict(scope["headers"])
        request_id = request_id_of(headers)
        method: str = scope["method"]
        try:
            if known:
                raise Refused(method_not_allowed(method, path, "POST"))
            if path == "/v1/chats" or path.startswith("/v1/chats/"):
                document = await self._chat(path, method, headers, receive)
            else:
                document = await self._document(path, method, headers)
        except Refused as refused:
            await send_problem(send, refused.problem, request_id)
            return
        except BadRequest as error:
            await send_problem(send, bad_request(str(error), error.param or None), request_id)
            return
        except ClientGone:
            return
        except (psycopg.Error, SQLAlchemyError, OSError):
            problem = problem_of(Refusal(Reason.LEDGER_UNAVAILABLE))
            await send_problem(send, problem, request_id)
            return
        await send_whole_answer(
            send,
            201 if method == "POST" else 200,
            [(b"content-type", b"application/json"), (b"x-request-id", request_id.encode())],
            _encode(document),
        )

    async def _document(self, path: str, method: str, headers: dict[bytes, bytes]) -> Any:
        parts = path.split("/")[2:]
        match parts:
            case ["realtime"]:
                raise Refused(upgrade_required("Open a WebSocket at /v1/realtime."))
            case ["models"] | ["models", *_] | ["key"] | ["calls", _]:
                if method not in ("GET", "HEAD"):
                    raise Refused(method_not_allowed(method, path, "GET"))
            case _:
                raise Refused(not_found(f"There is nothing at {method} {path[:200]}."))
        key = await self.exchange.authenticate(headers)
        match parts:
            case ["models"]:
                return {"object": "list", "data": self._models(key)}
            case ["models", *slug]:
                name = "/".join(slug)
                for model in self._models(key):
                    if model["id"] == name:
                        return model
                raise Refused(not_found(f"This key does not open the model {name[:200]!r}."))
            case ["key"]:
                return await key_document(self.database, self.calendar, key, datetime.now(UTC))
            case _:
                return await self._call(parts[1], key)

    async def _chat(
        self, path: str, method: str, headers: dict[bytes, bytes], receive: Receive
    ) -> Any:
        """Make, show or delete a chat of the key's member."""
        parts = path.split("/")[3:]
        allowed = {0: ("POST",), 1: ("GET", "HEAD", "DELETE")}.get(len(parts))
        if allowed is None:
            raise Refused(not_found(f"There is nothing at {method} {path[:200]}."))
        if method not in allowed:
            raise Refused(method_not_allowed(method, path, " or ".join(allowed)))
        key = await self.exchange.authenticate(headers)
        match method:
            case "POST":
                body = await read_body(headers, receive, CHAT_BYTES_MAX)
                return await create_chat(self.chats, key, body)
            case "DELETE":
                return await delete_chat(self.chats, key, parts[0])
            case _:
                return await show_chat(self.chats, key, parts[0])

    async def _call(self, call_id: str, key: Key) -> Any:
        document = None
        if is_id(call_id):
            document = await call_document(self.database, call_id, key_id=key.id)
        if document is None:
            raise Refused(not_found("This key made no call with that id."))
        return document

    def _models(self, key: Key) -> list[dict[str, object]]:
        directory = self.exchange.directory
        slugs: list[str] = []
        for allocation_id in key.allocation_ids:
            allocation = directory.allocations.get(allocation_id)
            if allocation is not None and allocation.status == "active":
                slugs.extend(allocation.models)
        return [
            {
                "id": slug,
                "object": "model",
                "created": model.created,
                "owned_by": provider.name if provider is not None else "",
                # Mistral's SDK takes no card without these two.
                "type": "base",
                "capabilities": {},
            }
            for slug in slugs
            if (model := directory.models.get(slug)) is not None
            for provider in [directory.providers.get(model.provider_id)]
        ]


_encode = msgspec.json.Encoder(decimal_format="number").encode
