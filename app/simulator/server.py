"""The simulator as an ASGI app, and its serving.

Owns routing, credentials, the reading of bodies, faults (when and how an answer goes
wrong on the wire), the record of calls, and servers for it. What an answer says is
`answers.py`, what a realtime session says `realtime.py`.

    /v1/...                                   OpenAI, Mistral, Anthropic
    /openai/deployments/{d}/...?api-version=  Azure; `{d}` is the model
    /openai/v1/...                            Azure's newer paths
    /v1/realtime, /openai/..realtime          WebSocket sessions (`realtime.py`)
    GET /_control                             the knobs in force
    PUT /_control {...}                       change some; DELETE /_control: as constructed
    GET /_control/calls                       what reached us; DELETE: forget it

Invariants: what reached the data plane is recorded before it is answered, refused or
dropped; memory is bounded (the last CALLS_KEPT calls, BODY_KEPT bytes of each); servers
listen on 127.0.0.1 unless told otherwise, and the control paths, which show the
credentials received, answer the same machine only.
"""

import asyncio
import contextlib
import hashlib
import io
import ipaddress
import socket
import threading
import time
import urllib.parse
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any, Literal, cast

import msgspec
import uvicorn
from multipart import (
    MultipartError,
    MultipartParser,
    parse_options_header,
)
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request as Handshake

from app.simulator import answers, knobs, realtime
from app.simulator.answers import Event, Family, Refusal, Reply, Request, Upload
from app.simulator.knobs import Knobs
from app.simulator.realtime import Session

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

CALLS_KEPT = 1_000
BODY_KEPT = 16_384
BODY_MAX = 256 * 2**20
# Parsing more than this would be felt by whoever shares the event loop.
INLINE_MAX = 256 * 2**10
PADDING = b" " * 65_536

# The scope extension by which our own server lends the app its connection; ASGI has no
# way to say "hang up before the headers".
HANG_UP = "spendgate.simulator.hang_up"

Ended = Literal["open", "answered", "cut", "client_left"]


class Call(msgspec.Struct):
    """One request as it reached us, and how it ended.

    A realtime session is one too: `body_bytes` counts its frames, `ended` is "answered"
    where we closed it properly, and `realtime` has the rest.
    """

    number: int
    method: str
    path: str
    query: str
    headers: dict[str, str]
    credential: str | None
    body_bytes: int
    body_sha256: str
    body: str  # its first BODY_KEPT bytes
    started: float
    model: str = ""
    stream: bool = False
    status: int | None = None
    bytes_sent: int = 0
    events_sent: int = 0
    ended: Ended = "open"
    realtime: Session | None = None

    def json(self) -> Any:
        """The decoded body; only of bodies that were kept whole."""
        return msgspec.json.decode(self.body)


class _ClientLeft(Exception):
    """The connection is gone; there is nobody to answer."""


class _Cut(Exception):
    """A knob asked to hang up here."""


class Simulator:
    """The ASGI app. One per provider that a test wants to tell apart."""

    def __init__(self, initial: Knobs) -> None:
        self.initial = initial
        self.knobs = initial
        self.total = 0
        self.by_path: Counter[str] = Counter()
        self.open = 0
        self.open_peak = 0
        self._calls: deque[Call] = deque(maxlen=CALLS_KEPT)
        self._times_left: int | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    # What tests ask and set; the control paths are the same over HTTP.

    @property
    def calls(self) -> list[Call]:
        """The last calls, oldest first."""
        return list(self._calls)

    def set(self, **changes: Any) -> Knobs:
        """Change knobs from now on (for the next `times` calls, if given)."""
        changed = knobs.merged(self.knobs, changes)
        self.knobs, self._times_left = changed, changed.times
        return changed

    def reset(self) -> None:
        """Back to the knobs of the construction."""
        self.knobs, self._times_left = self.initial, None

    def forget(self) -> None:
        """Empty the record."""
        self._calls.clear()
        self.by_path.clear()
        self.total = self.open_peak = 0

    def close(self) -> None:
        """Drop what is in flight, stalled answers above all, so that servers can end."""
        for task in list(self._tasks):
            task.cancel()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if scope["type"] == "websocket":
                await self._serve_session(exchange)
            elif scope["path"].startswith("/_control"):
                await self._control(exchange)
            else:
                await self._serve(exchange)
        except _ClientLeft:
            pass
        except asyncio.CancelledError:
            # Only `close` and a dying server cancel. Propagating would make the server
            # answer 500, which no knob asked for.
            await exchange.hang_up()
        finally:
            self._tasks.discard(task)
            exchange.release()

    async def _serve(self, exchange: "_Exchange") -> None:
        self.open += 1
        self.open_peak = max(self.open_peak, self.open)
        call: Call | None = None
        try:
            raw = await exchange.body()
            setting = self._take_knobs()
            call = self._record(exchange, raw)
            exchange.call = call
            await self._answer(exchange, call, raw, setting)
        except _Cut:
            if call:
                call.ended = "cut"
            await exchange.hang_up()
        except (_ClientLeft, asyncio.CancelledError):
            if call:
                call.ended = "client_left"
            raise
        finally:
            self.open -= 1

    async def _serve_session(self, exchange: "_Exchange") -> None:
        self.open += 1
        self.open_peak = max(self.open_peak, self.open)
        await exchange.connected()
        setting = self._take_knobs()
        call = self._record(exchange, b"")
        exchange.call = call
        try:
            talk = await self._open_session(exchange, call, setting)
            if talk is not None:
                try:
                    call.ended = await talk.run()
                finally:
                    call.body_bytes = talk.record.bytes_received
                    call.events_sent = talk.record.events_sent
        except _Cut:
            call.ended = "cut"
            await exchange.hang_up()
        except (_ClientLeft, asyncio.CancelledError):
            call.ended = "client_left"
            raise
        finally:
            self.open -= 1

    async def _open_session(
        self, exchange: "_Exchange", call: Call, setting: Knobs
    ) -> realtime.Talk | None:
        """Answer the handshake; the session, unless it was refused."""
        family: Family = "azure" if exchange.path.startswith("/openai/") else "openai"
        setting_now = setting
        try:
            try:
                setting_now = knobs.merged(setting, knobs.from_headers(exchange.headers))
                opening = realtime.opening(exchange.path, exchange.query, call.headers)
                setting_now = knobs.merged(setting_now, opening.changes)
            except knobs.KnobError as error:
                raise Refusal(400, str(error), code="simulator_knob") from None
            except Refusal:
                _authorize(call, setting_now, family)
                raise
            call.model, call.stream = opening.model, True
            await _fault_before_headers(exchange, setting_now)
            _authorize(call, setting_now, family)
            if setting_now.status is not None:
                raise answers.status_refusal(setting_now.status)
        except Refusal as refusal:
            request_id = f"req_sim{call.number:08d}"
            reply = _error_reply(exchange, call, refusal, setting_now, family, request_id)
            if setting_now.latency:
                await exchange.pause(setting_now.latency)
            call.status = reply.status
            headers = [
                (b"content-type", reply.media_type),
                (b"content-length", str(len(reply.body)).encode()),
                (b"x-request-id", request_id.encode()),
            ]
            await exchange.start(reply.status, [*headers, *reply.headers])
            await exchange.write(reply.body, more=False)
            return None
        offered: list[str] = exchange.scope.get("subprotocols", [])
        call.realtime = Session(opening.kind, opening.shape, offered)
        call.status = 101
        talk = realtime.Talk(exchange, opening, setting_now, call.number, call.realtime)
        await exchange.accept("realtime" if "realtime" in offered else None)
        return talk

    def _take_knobs(self) -> Knobs:
        setting = self.knobs
        if self._times_left is not None:
            self._times_left -= 1
            if self._times_left == 0:
                self.reset()
        return setting

    def _record(self, exchange: "_Exchange", raw: bytes) -> Call:
        self.total += 1
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in exchange.headers
        }
        call = Call(
            number=self.total,
            method=exchange.method,
            path=exchange.path,
            query=exchange.query.decode("latin-1"),
            headers=headers,
            credential=_credential(headers) or realtime.subprotocol_key(exchange.subprotocols),
            body_bytes=len(raw),
            body_sha256=hashlib.sha256(raw).hexdigest(),
            body=raw[:BODY_KEPT].decode("utf-8", "replace"),
            started=time.time(),
        )
        self._calls.append(call)
        # Counted by endpoint: paths are the client's to invent, and memory is bounded.
        counted_as = _route(exchange).counted_as
        if exchange.is_socket:
            counted_as = "/v1/realtime" if realtime.is_realtime(exchange.path) else "unknown"
        self.by_path[counted_as] += 1
        return call

    async def _answer(self, exchange: "_Exchange", call: Call, raw: bytes, setting: Knobs) -> None:
        route = _route(exchange)
        family = route.family
        setting_now = setting
        request_id = f"req_sim{call.number:08d}"
        try:
            try:
                setting_now = knobs.merged(setting, knobs.from_headers(exchange.headers))
                request = await _parsed(exchange, call, route, raw, setting_now)
                setting_now, family = request.knobs, request.family
                setting_now.check_http()
            except knobs.KnobError as error:
                raise Refusal(400, str(error), code="simulator_knob") from None
            except Refusal:
                # A real provider looks at the credential before the body.
                _authorize(call, setting_now, family)
                raise
            call.model = request.model
            call.stream = request.body.get("stream") in (True, "true")
            if setting_now.latency:
                await exchange.pause(setting_now.latency)
            await _fault_before_headers(exchange, setting_now)
            _authorize(call, setting_now, family)
            for name in setting_now.refused_parameters & request.body.keys():
                raise Refusal(
                    400,
                    f"Unsupported parameter: '{name}' is not supported with this model.",
                    code="unsupported_parameter",
                    param=name,
                )
            if setting_now.status is not None:
                raise answers.status_refusal(setting_now.status)
            reply = await _reply(route, request, len(raw))
        except Refusal as refusal:
            reply = _error_reply(exchange, call, refusal, setting_now, family, request_id)
        await self._write(exchange, call, reply, setting_now, family, route.name, request_id)

    async def _write(
        self,
        exchange: "_Exchange",
        call: Call,
        reply: Reply,
        setting: Knobs,
        family: Family,
        endpoint: str,
        request_id: str,
    ) -> None:
        headers = [
            (b"content-type", reply.media_type),
            (b"x-request-id", request_id.encode()),
            (b"openai-organization", b"simulator"),
            *reply.headers,
        ]
        call.status = reply.status
        body = b"<html><body>no answer</body></html>" if setting.garbage else reply.body
        ordinary = setting.disconnect is None and setting.stall is None and not setting.giant
        if reply.events is None or setting.garbage:
            size = len(body) + (setting.giant if body[:1] == b"{" else 0)
            headers.append((b"content-length", str(size).encode()))
            await exchange.start(reply.status, headers)
            if ordinary and setting.split is None:
                await exchange.write(body, more=False)
                return
            events = _body_events(body, size - len(body))
        else:
            await exchange.start(reply.status, headers)
            events = iter(reply.events)
            if setting.giant and reply.media_type.startswith(b"text/event-stream"):
                events = _padded_stream(events, setting)

        stream = reply.events is not None and not setting.garbage
        if stream:
            exchange.watch()
        sent = 0
        tag: answers.Tag = ""
        for tag, data in events:
            await _fault_at(exchange, setting, sent, tag)
            if stream and setting.error_event and _is_at(setting.error_event, sent, tag):
                await exchange.write(
                    answers.error_frame(family, endpoint, setting, request_id), more=False
                )
                return
            if stream:
                # Also without a delay others get their turn, and a client that left is
                # noticed, between any two events.
                await exchange.pause(setting.chunk_delay)
            sent += 1
            call.events_sent = sent
            for piece in _split(data, setting.split):
                await exchange.write(piece, more=True)
        # A stream whose last event was no "done" has its end here.
        if tag != "done":
            await _fault_at(exchange, setting, sent, "end")
        await exchange.write(b"", more=False)

    async def _control(self, exchange: "_Exchange") -> None:
        if not exchange.is_local():
            await exchange.json(403, {"error": "the control paths answer this machine only"})
            return
        raw = await exchange.body()
        match exchange.method, exchange.path:
            case "GET", "/_control":
                await exchange.json(200, self.knobs)
            case "PUT", "/_control":
                try:
                    changes = msgspec.json.decode(raw, type=dict[str, Any])
                    await exchange.json(200, self.set(**changes))
                except (msgspec.DecodeError, knobs.KnobError) as error:
                    await exchange.json(400, {"error": str(error)})
            case "DELETE", "/_control":
                self.reset()
                await exchange.json(200, self.knobs)
            case "GET", "/_control/calls":
                record = {"total": self.total, "by_path": self.by_path, "calls": self.calls}
                peak = {"open": self.open, "open_peak": self.open_peak}
                await exchange.json(200, record | peak)
            case "DELETE", "/_control/calls":
                self.forget()
                await exchange.json(200, {"total": 0})
            case _:
                await exchange.json(404, {"error": "no such control"})


def create_simulator(**initial: Any) -> Simulator:
    """A simulator with these knobs (see `Knobs`), as an ASGI app."""
    return Simulator(knobs.merged(Knobs(), initial))


# --- Routing and reading ----------------------------------------------------------------


class _Route(msgspec.Struct, frozen=True):
    name: str  # the path below /v1, or "" if there is no such path
    family: Family
    deployment: str = ""

    @property
    def known(self) -> bool:
        return self.name in answers.ENDPOINTS or _is_models(self.name)

    @property
    def counted_as(self) -> str:
        if not self.known:
            return "unknown"
        return "/v1/models" if _is_models(self.name) else f"/v1{self.name}"


def _is_models(name: str) -> bool:
    return name == "/models" or name.startswith("/models/")


def _route(exchange: "_Exchange") -> _Route:
    path = exchange.path
    if path.startswith("/openai/deployments/"):
        deployment, _, rest = path[len("/openai/deployments/") :].partition("/")
        versioned = b"api-version=" in exchange.query
        return _Route(f"/{rest}" if versioned else "", "azure", deployment)
    azure = path.startswith("/openai/v1/")
    if not azure and not path.startswith("/v1/"):
        return _Route("", "openai")
    name = path.removeprefix("/openai").removeprefix("/v1")
    endpoint = answers.ENDPOINTS.get(name)
    family = endpoint.family if endpoint else None
    return _Route(name, "azure" if azure else family or "openai")


async def _parsed(
    exchange: "_Exchange", call: Call, route: _Route, raw: bytes, setting: Knobs
) -> Request:
    """The request with everything decoded, directives included."""
    body: dict[str, Any] = {}
    files: dict[str, Upload] = {}
    endpoint = answers.ENDPOINTS.get(route.name)
    if endpoint is None or exchange.method != "POST":
        if _is_models(route.name) and exchange.method == "GET":
            return Request(call.number, route.family, "", body, setting, int(call.started))
        if route.known:
            raise Refusal(405, f"Not allowed to {exchange.method} on {exchange.path}.")
        raise Refusal(404, f"Invalid URL ({exchange.method} {exchange.path})", code="unknown_url")
    if len(raw) > BODY_MAX:
        raise Refusal(413, "Request body too large.")
    kind = call.headers.get("content-type", "")
    wanted = "multipart/form-data" if endpoint.multipart else "application/json"
    if kind.partition(";")[0].strip().lower() != wanted:
        raise Refusal(
            400,
            f"Unsupported content type: '{kind}'. This API method only accepts "
            f"'{wanted}' requests.",
            code="unsupported_content_type",
        )
    read = _form if endpoint.multipart else _json_body
    if len(raw) > INLINE_MAX:
        body, files = await asyncio.to_thread(read, raw, kind)
    else:
        body, files = read(raw, kind)

    if knobs.DIRECTIVE_MARK_BYTES in raw:
        setting = knobs.merged(setting, knobs.from_texts(body))
    model = route.deployment or body.get("model")
    if not isinstance(model, str) or not model:
        raise Refusal(400, "you must provide a model parameter", param="model")
    model = knobs.without_directives(model)
    family = route.family
    if family == "openai" and endpoint.family is None:
        family = answers.family_of(model)
    return Request(call.number, family, model, body, setting, int(call.started), files)


def _json_body(raw: bytes, _kind: str) -> tuple[dict[str, Any], dict[str, Upload]]:
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise Refusal(
            400,
            "We could not parse the JSON body of your request. (HINT: This likely means you "
            "aren't using your HTTP library correctly.)",
        )
    return body, {}


def _form(raw: bytes, kind: str) -> tuple[dict[str, Any], dict[str, Upload]]:
    fields: dict[str, Any] = {}
    files: dict[str, Upload] = {}
    boundary = parse_options_header(kind)[1].get("boundary", "")
    try:
        if not boundary:
            raise MultipartError("no boundary")
        # One part may be a whole audio file; spooling it to disk would only be slower.
        parser = MultipartParser(
            io.BytesIO(raw), boundary, spool_limit=BODY_MAX, memory_limit=2 * BODY_MAX
        )
        for part in parser:
            if part.filename is None:
                fields[part.name] = part.value
            else:
                files[part.name] = Upload(part.filename, part.raw)
    except (MultipartError, UnicodeDecodeError):
        raise Refusal(400, "We could not parse the form of your request.") from None
    return fields, files


async def _reply(route: _Route, request: Request, size: int) -> Reply:
    endpoint = answers.ENDPOINTS.get(route.name)
    if endpoint is None:
        anthropic = request.family == "anthropic"
        name = route.name.removeprefix("/models").removeprefix("/")
        if name:
            return answers.model_card(urllib.parse.unquote(name), request.now, anthropic)
        return answers.model_list(request.now, anthropic)
    if size > INLINE_MAX:
        return await asyncio.to_thread(endpoint.answer, request)
    return endpoint.answer(request)


# --- Credentials and errors -------------------------------------------------------------


def _credential(headers: dict[str, str]) -> str | None:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return token.strip()
    return headers.get("api-key") or headers.get("x-api-key")


def _masked(credential: str) -> str:
    """As OpenAI echoes it: enough to recognise it by, and so enough to leak."""
    if len(credential) <= 8:
        return credential[:2] + "***"
    return f"{credential[:8]}{'*' * (len(credential) - 12)}{credential[-4:]}"


def _authorize(call: Call, setting: Knobs, family: Family) -> None:
    if setting.api_key is None or call.credential == setting.api_key:
        return
    if family == "mistral":
        message = "Unauthorized"
    elif family == "anthropic":
        message = "invalid x-api-key"
    elif family == "azure":
        message = "Access denied due to invalid subscription key or wrong API endpoint."
    elif call.credential is None:
        message = "You didn't provide an API key."
    else:
        message = (
            f"Incorrect API key provided: {_masked(call.credential)}. You can find your API "
            "key at https://platform.openai.com/account/api-keys."
        )
    code = None if call.credential is None else "invalid_api_key"
    raise Refusal(401, message, code=code)


def _error_reply(
    exchange: "_Exchange",
    call: Call,
    refusal: Refusal,
    setting: Knobs,
    family: Family,
    request_id: str,
) -> Reply:
    if refusal.status == setting.status and setting.message is not None:
        refusal.message = setting.message
    if setting.leak:
        host = call.headers.get("host", "")
        refusal.message += (
            f" (key {call.credential} at {exchange.scope['scheme']}://{host}{call.path})"
        )
    headers: list[tuple[bytes, bytes]] = []
    if setting.retry_after is not None:
        headers.append((b"retry-after", f"{setting.retry_after:g}".encode()))
    if refusal.status < 400:
        headers.append((b"location", b"/v1/models"))
    body = answers.encode(answers.envelope(family, refusal, request_id))
    if refusal.status == 304:
        body = b""
    return Reply(refusal.status, body=body, headers=tuple(headers))


# --- Faults -----------------------------------------------------------------------------


def _is_at(point: str, sent: int, tag: str) -> bool:
    match point:
        case "before-headers":
            return False
        case "before-usage":
            return tag in ("usage", "done", "end")
        case "before-done":
            return tag in ("done", "end")
    # Points of a session were refused; that refusal is an answer too.
    return point.startswith("after:") and sent == int(point.removeprefix("after:"))


async def _fault_before_headers(exchange: "_Exchange", setting: Knobs) -> None:
    if setting.stall == "before-headers":
        await exchange.stall()
    if setting.disconnect == "before-headers":
        raise _Cut


async def _fault_at(exchange: "_Exchange", setting: Knobs, sent: int, tag: str) -> None:
    if setting.stall and _is_at(setting.stall, sent, tag):
        await exchange.stall()
    if setting.disconnect and _is_at(setting.disconnect, sent, tag):
        raise _Cut


def _body_events(body: bytes, padding: int) -> Iterator[Event]:
    """A body in two halves, so that a fault can fall between them; after the first byte
    of a JSON object, as much white space as `giant` asks for."""
    if padding:
        yield "", body[:1]
        body = body[1:]
        for start in range(0, padding, len(PADDING)):
            yield "", PADDING[: padding - start]
    half = len(body) // 2
    yield "", body[:half]
    yield "done", body[half:]


def _padded_stream(events: Iterable[Event], setting: Knobs) -> Iterator[Event]:
    """A comment line of `giant` bytes before the first event."""
    yield "", b":"
    for start in range(0, setting.giant, len(PADDING)):
        yield "", PADDING[: setting.giant - start]
    yield "", b"\r\n\r\n" if setting.crlf else b"\n\n"
    yield from events


def _split(data: bytes, how: str | None) -> Iterator[bytes]:
    if how is None:
        yield data
    elif how == "utf8":
        start = 0
        for index, byte in enumerate(data):
            if byte >= 0xC0:
                yield data[start : index + 1]
                start = index + 1
        yield data[start:]
    else:
        size = int(how)
        for start in range(0, len(data), size):
            yield data[start : start + size]


# --- One exchange -----------------------------------------------------------------------


class _Exchange:
    """One request and its answer on a connection that may go away at any await."""

    def __init__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        self.scope = scope
        self.is_socket = scope["type"] == "websocket"
        self.method: str = scope.get("method", "GET")
        self.path: str = scope["path"]
        self.query: bytes = scope["query_string"]
        self.headers: list[tuple[bytes, bytes]] = scope["headers"]
        self.subprotocols: list[str] = scope.get("subprotocols", [])
        self.call: Call | None = None
        self._receive = receive
        self._send = send
        self._kind = "websocket.http.response" if self.is_socket else "http.response"
        self._gone: asyncio.Task[None] | None = None

    def is_local(self) -> bool:
        client = self.scope.get("client")
        try:
            return client is None or ipaddress.ip_address(client[0]).is_loopback
        except ValueError:
            return False

    async def body(self) -> bytes:
        """The whole body; of one that is too large, just more than BODY_MAX."""
        pieces: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise _ClientLeft
            if size <= BODY_MAX:
                pieces.append(message.get("body", b""))
                size += len(pieces[-1])
            if not message.get("more_body", False):
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    # A session's handshake, and what it needs then.

    async def connected(self) -> None:
        """Take the message that opens every session."""
        await self._receive()

    async def accept(self, subprotocol: str | None) -> None:
        self.release()
        await self._send({"type": "websocket.accept", "subprotocol": subprotocol})

    def lent(self, name: str) -> Callable[[], Any] | None:
        """What our own server lends a session, if it is our own."""
        return cast("dict[str, Callable[[], Any]]", self.scope.get("extensions") or {}).get(name)

    async def receive(self) -> Message:
        return await self._receive()

    async def send(self, message: Message) -> None:
        if self.call and message["type"] == "websocket.send":
            self.call.bytes_sent += len(message["text"])
        await self._send(message)

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        await self._send({"type": f"{self._kind}.start", "status": status, "headers": headers})

    async def write(self, data: bytes, *, more: bool) -> None:
        if self._gone is not None and self._gone.done():
            raise _ClientLeft
        # Recorded first: who has the last byte may look at the record at once.
        if self.call:
            self.call.bytes_sent += len(data)
            if not more:
                self.call.ended = "answered"
        await self._send({"type": f"{self._kind}.body", "body": data, "more_body": more})

    async def json(self, status: int, value: object) -> None:
        body = answers.encode(value)
        size = str(len(body)).encode()
        await self.start(
            status, [(b"content-type", b"application/json"), (b"content-length", size)]
        )
        await self.write(body, more=False)

    def watch(self) -> "asyncio.Task[None]":
        """Notice from now on when the client leaves."""
        if self._gone is None:
            self._gone = asyncio.ensure_future(self._until_gone())
        return self._gone

    async def pause(self, seconds: float) -> None:
        if seconds:
            await self._wait(seconds)
        else:
            await asyncio.sleep(0)

    async def stall(self) -> None:
        """Nothing more, until the client leaves."""
        await self._wait(None)

    async def hang_up(self) -> None:
        """Close the connection where it is; what was written before still arrives."""
        hang_up = self.scope.get("extensions", {}).get(HANG_UP)
        if hang_up is None:
            # Another server than ours: it cuts the connection of an app that fails.
            raise ConnectionAbortedError("the simulator was asked to hang up")
        hang_up()
        # The server takes an unfinished answer for a bug, unless it saw the end first.
        with contextlib.suppress(_ClientLeft):
            await self._wait(1.0)

    def release(self) -> None:
        if self._gone is not None:
            self._gone.cancel()

    async def _wait(self, seconds: float | None) -> None:
        gone = self.watch()
        await asyncio.wait({gone}, timeout=seconds)
        if gone.done():
            raise _ClientLeft

    async def _until_gone(self) -> None:
        while not (await self._receive())["type"].endswith(".disconnect"):
            pass


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


# --- Serving ----------------------------------------------------------------------------


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol, lending the app its connection."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        scope: Any = self.scope
        scope["extensions"] = {HANG_UP: self.transport.close}


class _SocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's protocol, lending a session its connection."""

    silent = False
    pings = 0

    def handle_connect(self, event: Handshake) -> None:
        super().handle_connect(event)
        if hasattr(self, "scope"):
            scope: Any = self.scope
            scope["extensions"] |= {
                HANG_UP: self.transport.close,
                realtime.ABORT: self.transport.abort,
                realtime.SILENCE: self.fall_silent,
                realtime.PINGS: lambda: self.pings,
            }

    def handle_ping(self) -> None:
        self.pings += 1
        super().handle_ping()

    def fall_silent(self) -> None:
        """Answer nothing from now on, pings included; read on, to see the client leave."""
        self.silent = True
        self.stop_keepalive()
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if not self.silent:
            super().data_received(data)


class _Server(uvicorn.Server):
    """A server that leaves the signals to whoever embeds it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def server_config(
    app: Simulator, *, keep_alive_s: int = 60, ping_s: float | None = 20.0
) -> uvicorn.Config:
    """How any of our servers serves the app; sessions are pinged every `ping_s`."""
    return uvicorn.Config(
        app,
        http=_Protocol,
        ws=_SocketProtocol,
        ws_max_size=realtime.FRAME_BYTES_MAX,
        ws_ping_interval=ping_s,
        ws_ping_timeout=ping_s,
        ws_per_message_deflate=False,
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        timeout_keep_alive=keep_alive_s,
        timeout_graceful_shutdown=1,
    )


def listen(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """A bound socket, so that a port in use fails here and not in a task."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the protocol is named; with it every
    # answer takes 40 ms longer.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(2048)
    except BaseException:
        sock.close()
        raise
    return sock


class RunningSimulator:
    """A simulator that is being served."""

    def __init__(self, app: Simulator, host: str, port: int) -> None:
        self.app = app
        self.port = port
        shown = f"[{host}]" if ":" in host else host
        # mistralai, anthropic and Azure take the root; openai takes `/v1`.
        self.base_url = f"http://{shown}:{port}"
        self.openai_url = f"{self.base_url}/v1"
        self.realtime_url = f"ws://{shown}:{port}/v1/realtime"
        self.api_key = app.initial.api_key or ""

    @property
    def calls(self) -> list[Call]:
        return self.app.calls

    def set(self, **changes: Any) -> None:
        self.app.set(**changes)

    def reset(self) -> None:
        """As just started: first knobs, empty record."""
        self.app.reset()
        self.app.forget()


@contextlib.asynccontextmanager
async def running_simulator(
    *, host: str = "127.0.0.1", port: int = 0, keep_alive_s: int = 60, **initial: Any
) -> AsyncIterator[RunningSimulator]:
    """Serve a simulator in this event loop; port 0 is any free one."""
    app = create_simulator(**initial)
    sock = listen(host, port)
    server = _Server(server_config(app, keep_alive_s=keep_alive_s))
    task = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        while not server.started:
            if task.done():
                task.result()
                raise RuntimeError("the simulator did not start")
            await asyncio.sleep(0.001)
        yield RunningSimulator(app, host, sock.getsockname()[1])
    finally:
        server.should_exit = True
        app.close()
        await task
        sock.close()


@contextlib.contextmanager
def serve_in_thread(
    *, host: str = "127.0.0.1", port: int = 0, keep_alive_s: int = 60, **initial: Any
) -> Iterator[RunningSimulator]:
    """Serve a simulator in a thread of its own, for synchronous callers.

    Reading `calls` and setting knobs from outside is safe: they replace or copy whole
    values.
    """
    ready = threading.Event()
    failures: list[BaseException] = []
    found: list[tuple[RunningSimulator, asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def main() -> None:
        stop = asyncio.Event()
        async with running_simulator(
            host=host, port=port, keep_alive_s=keep_alive_s, **initial
        ) as running:
            found.append((running, asyncio.get_running_loop(), stop))
            ready.set()
            await stop.wait()

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:  # handed to the caller below
            failures.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run, name="simulator", daemon=True)
    thread.start()
    ready.wait()
    if failures:
        raise failures[0]
    running, loop, stop = found[0]
    try:
        yield running
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
    if failures:
        raise failures[0]
