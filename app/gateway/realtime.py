"""Realtime: the relay between two sockets, and the watcher that keeps a session within its limits.

Owns the life of a session: who may open it, the two pumps, the watcher's rhythm, how a session
ends and what both sides are told. Owns no metering and no decision (`core.realtime`), no SQL.

Invariants:

- The provider is not connected before a hold is committed (or the allocation allows outages).
- A frame that needs money is not forwarded before the ledger has granted it; while it waits, its
  client is not read from.
- Frames leave in the order in which they came, each before the next is read: what a slow side does
  not take, the other is not asked for.
- Every way out settles, once, before the close frame leaves.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import msgspec
import psycopg
import structlog
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from app.core import access
from app.core.access import Allocation, Grantee, Provider
from app.core.ceilings import BadRequest
from app.core.ledger import NOTHING, Actual, Demand, Grant, Settlement
from app.core.pricing import Price
from app.core.realtime import Kind, Offer, Rejected, Session, Terms
from app.core.refusals import Outcome, Reason, Refusal, exceeded_by
from app.gateway import metrics
from app.gateway.endpoints import SESSIONS, Request, facts_of
from app.gateway.exchange import (
    Call,
    Exchange,
    Plan,
    Receive,
    Refused,
    Scope,
    Send,
    request_id_of,
)
from app.gateway.upstream import credential_headers, redact, session_address
from app.ids import uuid7
from app.problems import (
    Problem,
    bad_request,
    internal_error,
    problem_of,
    upstream_failed,
    upstream_timeout,
)
from app.store.batch import Granted, Stale
from app.store.ledger import LedgerUnavailable
from app.tasks import cancelled

log = structlog.get_logger(__name__)

# At its most talkative the library logs the headers, and so the credential.
_quiet = logging.getLogger("spendgate.realtime.upstream")
_quiet.setLevel(logging.WARNING)

FRAME_BYTES_MAX = 16 * 2**20
CHAT_PARAMETERS = ("chat", "chat_id")
"""What a session's chat may be called in its address; browsers send no headers of their own."""
KEY_SUBPROTOCOL = "openai-insecure-api-key."
BETA_SUBPROTOCOL = "openai-beta.realtime-v1"
ERROR_BYTES_MAX = 64 * 2**10
"""Of an event that may be an error."""
REASON_BYTES_MAX = 123
"""Of a close frame, by the protocol."""
TICK_S = 0.5
RENEW_EVERY_S = 2.0
PATIENCE_S = 1.0
"""How long a frame waits for what other calls hold to come free."""
LINGER_S = 5.0
"""How long to read on for usage when the client has left."""
LINGER_CUT_S = 0.7
"""The same where the client waits to be told why its session was cut."""
PING_S = 10.0
STUCK_PINGS = 1.5
"""How many times as long a side may take no frame: less than a ping and the wait for its answer,
since a provider that we stop reading cannot be heard answering."""
MODEL_WAIT_S = 1.0
"""How long a transcription client may take to name its model before one is assumed."""
AWAY_WAITS = 3
"""How many times as long as a call a frame waits for a ledger that is away."""


class End(msgspec.Struct, frozen=True):
    """How a session ends: what is recorded, and what the client is told."""

    outcome: Outcome
    close_reason: str
    code: int | None
    """Of the close frame; None if there is nobody to send one to."""
    text: str = ""
    problem: Problem | None = None
    message: str | None = None


class Gone(Exception):
    """The client left before the session began."""


class Sessions:
    """The realtime sessions of a process."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.running: dict[str, _Socket] = {}
        self.on_change: Callable[[str, str], None] | None = None
        """Told the call and the member of a session that began, used something, or ended."""
        self._minding: asyncio.Task[None] | None = None
        exchange.directory.on_change = self.look_again
        exchange.directory.on_stop = self.stop
        exchange.ledger.on_stopped = self.stop

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one WebSocket."""
        await _Socket(self, scope, receive, send).serve()

    def enter(self, socket: "_Socket") -> None:
        """Count a session as running."""
        self.running[socket.call.id] = socket
        if self._minding is None or self._minding.done():
            self._minding = asyncio.create_task(self._mind(), name="realtime-sessions")

    def changed(self, socket: "_Socket") -> None:
        """Tell that what is known of a session has changed."""
        if self.on_change is not None:
            self.on_change(socket.call.id, socket.call.key.member_id)

    async def _mind(self) -> None:
        loop = asyncio.get_running_loop()
        while self.running:
            await asyncio.sleep(TICK_S)
            now = loop.time()
            for socket in list(self.running.values()):
                socket.mind(now)

    def stop(self, call_id: str) -> None:
        """End a session of this process because an administrator or its member ordered it."""
        socket = self.running.get(call_id)
        if socket is not None:
            socket.end(End("cut_off", "killed", 1008, "killed", _closed("session_killed")))

    def look_again(self) -> None:
        """End the sessions whose key, member or allocation is active no more."""
        for socket in list(self.running.values()):
            socket.check_access()


class _Socket:
    """One client's WebSocket, from its opening to its settlement."""

    def __init__(self, sessions: Sessions, scope: Scope, receive: Receive, send: Send) -> None:
        self.sessions = sessions
        self.exchange = sessions.exchange
        self.settings = sessions.exchange.settings
        self.ledger = sessions.exchange.ledger
        self.scope = scope
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.request_id = request_id_of(self.headers)
        self.receive = receive
        self.send = send
        self.early: list[str | bytes] = []
        """Frames that came before the session was open."""
        self.call: Call
        self.session: Session
        self.heard = False
        """Whether the client has sent a frame."""
        self.opened: float | None = None
        """When the provider was connected."""
        self.stirred = True
        """Whether anything was said since the watcher last looked."""
        self.unheld = False
        """Let through an outage: there is no hold to extend."""
        self.away = False
        """The ledger is away, and the allocation allows that: no frame waits for it."""
        self.progress = asyncio.Event()
        """Whenever the provider said something."""
        self.asking = asyncio.Lock()
        self.renewed_at = 0.0
        self.checkpoint: Actual = NOTHING
        self.allocation: Allocation | None = None
        """As of when what is held was last checked against its limits."""
        self.ping_s = min(PING_S, self.settings.upstream_timeout_s)
        self.sending_up: float | None = None
        """Since when the provider has not taken a frame."""
        self.sending_down: float | None = None
        """Since when the client has not taken a frame."""
        self.pinged: float | None = None
        """When the provider was sent a ping that it has not answered."""
        self.heard_at = 0.0
        """When the provider last said something, or was listened to again."""
        self.closing: float | None = None
        """Since when the server waits for the client to take what is left, to close it."""
        self.ended: asyncio.Future[End] = asyncio.get_running_loop().create_future()

    # Opening

    async def serve(self) -> None:
        """Open, relay, settle, close."""
        message = await self.receive()
        if message["type"] != "websocket.connect":
            return
        await self.send(
            {
                "type": "websocket.accept",
                # Never the key.
                "subprotocol": "realtime" if "realtime" in self.scope["subprotocols"] else None,
                "headers": [(b"x-request-id", self.request_id.encode())],
            }
        )
        try:
            await self._open()
        except Gone:
            return
        except Refused as refused:
            await self._say_goodbye(refused.problem, 1008, refused.problem.code)
            return
        except BadRequest as error:
            problem = bad_request(str(error), error.param or None)
            await self._say_goodbye(problem, 1008, "invalid_request")
            return
        except Exception:
            log.exception("session_not_opened", request_id=self.request_id)
            # What it may hold lapses.
            self.ledger.live.pop(self.call.id if hasattr(self, "call") else "", None)
            await self._say_goodbye(internal_error(), 1011, "internal_error")
            return
        call = self.call
        self.sessions.enter(self)
        self.sessions.changed(self)
        # What changed while it was admitted.
        self.check_access()
        relayed = asyncio.create_task(self._relay())
        try:
            end = await asyncio.shield(relayed)
        except asyncio.CancelledError:
            # The process leaves: what was accrued is booked all the same.
            self.end(End("cut_off", "draining", 1012, "draining"))
            end = await relayed
        finally:
            self.sessions.running.pop(call.id, None)
        await self._say_goodbye(end.problem, end.code, end.text)

    async def _open(self) -> None:
        """Admit the session: key, model, status, limits. Raises `Refused`, `BadRequest`, `Gone`."""
        query = parse_qs(self.scope["query_string"].decode("latin-1"))
        digest = self._digest()
        key = await self.exchange.key(digest)
        kind, slug = self._wanted(query)
        if slug is None:
            slug = await self._model_of_transcription(key.allocation_ids)
        call = Call(SESSIONS, key, digest, self.request_id)
        named = next((query[name][0] for name in CHAT_PARAMETERS if name in query), None)
        call.chat = await self.exchange.chat(self.headers, key, named)
        call.request = Request(slug, "")
        self.call = call

        def prepare(call: Call, plan: Plan) -> Demand:
            terms = self._terms(call, plan.price, slug)
            if isinstance(terms, Refusal):
                raise _NotRealtime(terms)
            call.facts = self.exchange.facts(call, plan.account_ids, plan.allocation.id)
            self.session = Session(
                kind,
                terms,
                call.path,
                self._terms_of,
                must_cost=call.allocation.unpriced == "deny",
            )
            return self.session.asks(opening=True)[0]

        try:
            await self.exchange.admit(call, prepare, NOTHING)
        except _NotRealtime as refused:
            await self.exchange.refuse(call, refused.refusal)
        if call.grant is None:
            self.unheld = True
        else:
            self.session.granted(call.grant.grant)

    def _digest(self) -> bytes:
        """Return what the key is known by: from the header, or a browser's subprotocol."""
        for offered in self.scope["subprotocols"]:
            if offered.startswith(KEY_SUBPROTOCOL):
                return self.exchange.vault.digest(offered.removeprefix(KEY_SUBPROTOCOL))
        return self.exchange.digest(self.headers)

    def _wanted(self, query: dict[str, list[str]]) -> tuple[Kind, str | None]:
        intent, model = query.get("intent"), query.get("model")
        if intent is not None and intent != ["transcription"]:
            raise BadRequest("`intent` can only be transcription.", "intent")
        if model is not None and (len(model) != 1 or not model[0].isprintable()):
            raise BadRequest("`model` must be given once, in printable characters.", "model")
        slug = model[0][:1000] if model else None
        if intent is not None:
            return "transcription", slug
        if slug is None:
            raise BadRequest("Name the model in the address: `?model=…`.", "model")
        return "conversation", slug

    async def _model_of_transcription(self, allocation_ids: Sequence[str]) -> str:
        """Return the model that a transcription client names in its first update.

        One that waits for us to speak first gets the only model its key opens for this, or the
        first; it may still name another.
        """
        slugs = self._realtime_models(allocation_ids)
        deadline = asyncio.get_running_loop().time() + MODEL_WAIT_S
        while len(slugs) != 1:
            try:
                async with asyncio.timeout_at(deadline):
                    data = await self._next()
            except TimeoutError:
                break
            self.early.append(data)
            named = _model_named(data)
            if named is not None:
                return named
            if len(self.early) > 1:
                break
        if not slugs:
            raise BadRequest("This key opens no model for realtime sessions.", "model")
        return slugs[0]

    def _realtime_models(self, allocation_ids: Sequence[str]) -> list[str]:
        directory = self.exchange.directory
        models = [
            model
            for id in allocation_ids
            if (allocation := directory.allocations.get(id)) is not None
            for slug in allocation.models
            if (model := directory.models.get(slug)) is not None
            and (model.endpoints is None or SESSIONS.name in model.endpoints)
        ]
        said = [model.slug for model in models if model.endpoints is not None]
        return said or [model.slug for model in models]

    def _terms(self, call: Call, price: Price | None, slug: str) -> Terms | Refusal:
        """Return a model as a session may use it; not every model can be."""
        model = self.exchange.directory.models[slug]
        if model.endpoints is not None and SESSIONS.name not in model.endpoints:
            return Refusal(Reason.MODEL_MISMATCH, detail=slug)
        call.model = model
        call.provider = self.exchange.directory.providers.get(model.provider_id)
        return Terms(
            slug,
            model.upstream_model,
            price,
            None if price is None else price.id,
            facts_of(model, self.settings),
        )

    def _terms_of(self, slug: str) -> Terms | Refusal:
        """Return the terms of another model that an update names, if this session may use it."""
        call = self.call
        grantee = self._grantee(slug)
        if isinstance(grantee, Refusal):
            return grantee
        model = self.exchange.directory.models[slug]
        here = call.model
        if grantee.allocation.id != call.allocation.id or model.provider_id != here.provider_id:
            return Refusal(Reason.MODEL_MISMATCH, detail=slug)
        terms = self._terms(call, grantee.price, slug)
        call.model = here
        return terms

    def _grantee(self, slug: str) -> Grantee | Refusal:
        """Decide whether the session's key may still use a model."""
        call, directory = self.call, self.exchange.directory
        key = directory.keys_by_digest.get(call.digest)
        if key is not None:
            # A one-shot key was used up by this very session.
            key = msgspec.structs.replace(key, one_shot=False)
        refusal = access.key_refusal(key, datetime.now(UTC))
        if refusal is not None or key is None:
            return refusal or Refusal(Reason.INVALID_KEY)
        return access.admit(
            key,
            slug,
            directory.members,
            directory.allocations,
            directory.prices.get(slug, ()),
            call.started_at,
        )

    # Relaying

    async def _relay(self) -> End:
        """Relay until something ends the session; settle it."""
        upstream: ClientConnection | None = None
        tasks: list[asyncio.Task[None]] = []
        end = End("upstream_error", "upstream_error", 1011, "internal_error", internal_error())
        try:
            upstream = await self._connect()
            if upstream is not None:
                self.opened = asyncio.get_running_loop().time()
                tasks = [
                    asyncio.create_task(self._guarded(self._from_client(upstream))),
                    asyncio.create_task(self._guarded(self._from_provider(upstream))),
                    asyncio.create_task(self._guarded(self._watch(upstream))),
                    asyncio.create_task(self._guarded(self._ping(upstream))),
                ]
            end = await self.ended
            if upstream is not None:
                await cancelled([tasks[0], *tasks[2:]])
                await self._linger(upstream, tasks[1], end)
        except Exception:
            log.exception("session_failed", call_id=self.call.id)
        finally:
            await cancelled(tasks)
            if upstream is not None:
                # Nobody waits for how the provider says goodbye.
                closing = asyncio.create_task(_closed_politely(upstream))
                _CLOSING.add(closing)
                closing.add_done_callback(_CLOSING.discard)
            await self._settle(end)
        return end

    async def _guarded(self, pump: Any) -> None:
        try:
            await pump
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("session_failed", call_id=self.call.id)
            self.end(
                End("upstream_error", "upstream_error", 1011, "internal_error", internal_error())
            )

    def end(self, end: End) -> None:
        """End the session; the first reason counts."""
        if not self.ended.done():
            self.ended.set_result(end)

    async def _connect(self) -> ClientConnection | None:
        """Open the provider's side; None if it refuses, with the session ended."""
        call, provider = self.call, self.call.provider
        assert provider is not None
        transcribes = self.session.kind == "transcription"
        model = None if transcribes else call.model.upstream_model
        headers = [*credential_headers(provider), ("x-request-id", call.id)]
        beta = self.headers.get(b"openai-beta")
        if BETA_SUBPROTOCOL in self.scope["subprotocols"]:
            beta = b"realtime=v1"
        if beta is not None:
            headers.append(("openai-beta", beta.decode("latin-1")))
        connecting = asyncio.create_task(
            _connected(
                session_address(provider, model),
                additional_headers=headers,
                user_agent_header=None,
                proxy=None,
                compression=None,
                max_size=FRAME_BYTES_MAX,
                max_queue=4,
                open_timeout=self.settings.upstream_connect_timeout_s,
                # See `_ping`.
                ping_interval=None,
                close_timeout=LINGER_CUT_S,
                logger=_quiet,
            )
        )
        hearing = asyncio.create_task(self._hear_early())
        waited: list[asyncio.Future[Any]] = [connecting, self.ended]
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        await cancelled([hearing])
        if not connecting.done():
            await cancelled([connecting])
            return None
        try:
            return connecting.result()
        except InvalidStatus as error:
            status = error.response.status_code
            body = redact(bytes(error.response.body or b""), provider)[:1000]
            said = body.decode("utf-8", "replace").replace("\0", "")
            client_sees = 400 <= status < 500
            problem = Problem(
                status if client_sees else 502,
                "invalid_request_error" if client_sees else "upstream_error",
                "upstream_error",
                f"The provider refused the session with status {status}"
                + (f": {said}" if client_sees and said else "."),
            )
            self._failed(problem, 1008 if client_sees else 1011, f"{status}: {said}")
        except TimeoutError:
            self._failed(upstream_timeout(), 1011)
        except (OSError, InvalidHandshake, ConnectionClosed, EOFError):
            self._failed(upstream_failed("The provider could not be reached."), 1011)
        return None

    def _failed(self, problem: Problem, code: int, message: str | None = None) -> None:
        self.end(
            End(
                "upstream_error",
                "upstream_error",
                code,
                "upstream_error",
                problem,
                message or problem.message,
            )
        )

    async def _next(self) -> str | bytes:
        """Return the client's next frame. Raises `Gone`."""
        message = await self.receive()
        if message["type"] != "websocket.receive":
            self.end(_left(cast(dict[str, Any], message)))
            raise Gone
        self.heard = True
        text = message.get("text")
        return cast(bytes, message["bytes"]) if text is None else cast(str, text)

    async def _hear_early(self) -> None:
        """Hear a client that leaves, having said nothing, before the provider is there."""
        if not self.early:
            with contextlib.suppress(Gone):
                self.early.append(await self._next())

    async def _from_client(self, upstream: ClientConnection) -> None:
        session = self.session
        early = iter(self.early)
        try:
            while True:
                data = next(early, None)
                if data is None:
                    data = await self._next()
                offer = session.read(data)
                if isinstance(offer, Rejected):
                    await self._tell(_rejection(offer.refusal), offer.event_id)
                    continue
                if not self.away and not session.fits(offer) and not await self._cover(offer):
                    return
                self.stirred = True
                for extra in session.take(offer):
                    await self._send_up(upstream, extra)
                await self._send_up(upstream, offer.data)
        except Gone:
            return
        except ConnectionClosed:
            # How it closed is the other pump's to tell.
            return

    async def _from_provider(self, upstream: ClientConnection) -> None:
        session, send = self.session, self._send
        provider = self.call.provider
        assert provider is not None
        credential = provider.credential or ""
        host = urlsplit(provider.base_url).netloc
        loop = asyncio.get_running_loop()
        try:
            while True:
                data = await upstream.recv()
                seen = session.heard(data)
                self.stirred = True
                self.progress.set()
                if self.ended.done():
                    # Only to know what it comes to.
                    continue
                if isinstance(data, bytes):
                    await send({"type": "websocket.send", "bytes": data})
                elif seen:
                    # A provider tells of itself in errors; what it answers is not ours to change,
                    # unless it is our credential.
                    if credential in data or (
                        len(data) < ERROR_BYTES_MAX and '"error"' in data and _telling(data, host)
                    ):
                        data = redact(data.encode(), provider).decode("utf-8", "replace")
                    await send({"type": "websocket.send", "text": data})
                for extra in session.injections():
                    await self._send_up(upstream, extra)
                self.heard_at = loop.time()
        except ConnectionClosed as closed:
            self.end(_provider_closed(closed, provider))

    async def _ping(self, upstream: ClientConnection) -> None:
        """Ask the provider whether it is there.

        The library would not wait for an answer that stands behind what a slow client has not
        taken yet: see `mind`.
        """
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionClosed):
            while True:
                await asyncio.sleep(self.ping_s)
                self.pinged = loop.time()
                await (await upstream.ping())
                self.pinged = None

    async def _send_up(self, upstream: ClientConnection, data: str | bytes) -> None:
        if self.sending_up is None:
            self.sending_up = asyncio.get_running_loop().time()
        await upstream.send(data)
        self.sending_up = None

    async def _send(self, message: dict[str, Any]) -> None:
        self.sending_down = asyncio.get_running_loop().time()
        # If the client's socket is gone, it is the other pump's to tell how.
        with contextlib.suppress(OSError):
            try:
                await self.send(message)
            except RuntimeError:
                # The server closed it, since no ping was answered, and cannot say so.
                self.end(_left({"code": 1006}))
        self.sending_down = None

    # The watcher

    def mind(self, now: float) -> None:
        """Find out that nobody speaks or listens any more."""
        stuck_s = STUCK_PINGS * self.ping_s
        first_frame_s = self.settings.first_frame_s
        if not self.heard and self.opened is not None and now - self.opened >= first_frame_s:
            self.end(_silent(first_frame_s))
        if self.sending_up is not None and now - self.sending_up >= stuck_s:
            self._failed(upstream_timeout(), 1011, "The provider takes no frame.")
        if self.sending_down is not None:
            if now - self.sending_down >= stuck_s:
                self.end(_left({"code": 1006}))
        # As long as it speaks it is there, wherever its answer is.
        elif self.pinged is not None and now - max(self.pinged, self.heard_at) >= self.ping_s:
            self._failed(
                upstream_failed("The provider broke off the session."),
                1011,
                "The provider answers no ping.",
            )
        if _is_closing(self.send):
            self.closing = now if self.closing is None else self.closing
            if now - self.closing >= stuck_s:
                # What it does not take would keep it, and its session, for as long as it likes.
                _hang_up(self.send)
        expires_at = self.call.key.expires_at
        if expires_at is not None and datetime.now(UTC) >= expires_at:
            self.check_access()

    async def _watch(self, upstream: ClientConnection) -> None:
        """Renew what is held ahead, and note what was used."""
        loop = asyncio.get_running_loop()
        self.renewed_at = looked_at = loop.time()
        self.allocation = self._allocation()
        while True:
            await asyncio.sleep(TICK_S)
            now = loop.time()
            # A limit of it may be lower now.
            changed = self.allocation is not self._allocation()
            if not self.stirred and not changed and now - looked_at < RENEW_EVERY_S:
                continue
            self.stirred, looked_at = False, now
            actual = self.session.bill().actual
            aged = now - self.renewed_at >= RENEW_EVERY_S
            if self.unheld:
                if aged:
                    await self._hold(actual)
            else:
                low = self.session.running_low()
                if low or changed or (aged and actual != self.checkpoint):
                    await self._renew(actual, ahead=low)
                    for extra in self.session.injections():
                        with contextlib.suppress(ConnectionClosed):
                            await self._send_up(upstream, extra)

    def _allocation(self) -> Allocation | None:
        return self.exchange.directory.allocations.get(self.call.allocation.id)

    async def _hold(self, actual: Actual) -> None:
        """Hold what a session uses that was let through an outage: is the ledger back?"""
        call = self.call
        async with self.asking:
            self.renewed_at = asyncio.get_running_loop().time()
            result: Granted | Refusal | Stale | None = None
            try:
                # It may have been written although nobody heard of it.
                known = await self.ledger.extend(call.id, self._nothing(), checkpoint=actual)
                if known is not None:
                    self.ledger.live[call.id] = actual
                    self.unheld = False
                if isinstance(known, Grant):
                    self.session.granted(known)
                    self.checkpoint = actual
                for demand in self.session.asks() if self.unheld else ():
                    result = await self.ledger.reserve(
                        call.facts,
                        demand,
                        self.exchange.directory.version,
                        one_shot=call.key.one_shot,
                        checkpoint=actual,
                    )
                    if not isinstance(result, Refusal):
                        break
            except LedgerUnavailable:
                return
            if isinstance(result, Stale):
                await self.exchange.directory.look_again()
            elif isinstance(result, Refusal):
                self.end(_exceeded(result))
            elif result is not None:
                self.unheld = False
                self.session.granted(result.grant)
                self.checkpoint = actual

    async def _renew(self, actual: Actual, *, ahead: bool) -> None:
        """Ask for more before what is held runs out, or else only note what was used."""
        async with self.asking:
            self.renewed_at = asyncio.get_running_loop().time()
            allocation = self._allocation()
            refused: Refusal | None = None
            try:
                for demand in self.session.asks() if ahead else ():
                    result = await self._extend(demand, actual)
                    if not isinstance(result, Refusal):
                        self.allocation = allocation
                        return
                    refused = result
                # The session goes on with what it has, unless a limit was lowered below that.
                result = await self._extend(self._nothing(), actual)
            except LedgerUnavailable:
                return
            self.allocation = allocation
            if isinstance(result, Refusal):
                self.end(_exceeded(result))
            elif refused is not None and not self.session.withheld(None):
                self.end(_exceeded(refused))

    async def _cover(self, offer: Offer) -> bool:
        """Have the ledger grant what a frame needs; False if the session ends instead."""
        loop = asyncio.get_running_loop()
        session = self.session
        began = loop.time()
        while not self.unheld:
            refusal: Refusal | None = None
            async with self.asking:
                if session.fits(offer):
                    return True
                try:
                    for demand in session.asks(offer):
                        result = await self._extend(demand, session.bill().actual)
                        if not isinstance(result, Refusal):
                            return not self.ended.done()
                        refusal = result
                except LedgerUnavailable:
                    if self.call.allocation.ledger_outage == "allow":
                        self.away = True
                        return True
                    if loop.time() - began > AWAY_WAITS * self.settings.ledger_wait_s:
                        self.end(
                            End(
                                "cut_off",
                                "upstream_error",
                                1013,
                                "ledger_unavailable",
                                problem_of(Refusal(Reason.LEDGER_UNAVAILABLE)),
                            )
                        )
                        return False
            if refusal is None:
                await asyncio.sleep(0.2)
                continue
            # What others hold may come free in a moment; what is used will not.
            if self._others_hold(refusal) and loop.time() - began < PATIENCE_S:
                await asyncio.sleep(0.1)
                continue
            if session.withheld(offer):
                return True
            self.end(_exceeded(refusal))
            return False
        return True

    def _others_hold(self, refusal: Refusal) -> bool:
        shortfall = refusal.shortfall
        if shortfall is None or refusal.reason is not Reason.RESERVED:
            return False
        session = self.session
        ours = session.held_tokens if shortfall.meter == "tokens" else session.held_nano
        return shortfall.held > ours

    async def _extend(self, demand: Demand, actual: Actual) -> Grant | Refusal | None:
        result = await self.ledger.extend(self.call.id, demand, checkpoint=actual)
        self.away = False
        self.checkpoint = actual
        self.sessions.changed(self)
        if isinstance(result, Grant):
            self.session.granted(result)
        elif result is None:
            # It was away for so long that another replica has settled it.
            self.end(End("cut_off", "recovered", 1012, "recovered"))
        return result

    def _nothing(self) -> Demand:
        session = self.session
        return Demand(
            accounts=session.path,
            tokens=0,
            counts_tokens=session.held_tokens > 0,
            cost=None if session.terms.price is None else 0,
            denominator=1,
            open=None,
        )

    def check_access(self) -> None:
        """End the session if its key, member or allocation is active no more."""
        found = self._grantee(self.session.terms.slug)
        if isinstance(found, Grantee):
            # What it is charged to may have changed hands.
            same = found.allocation.id == self.call.allocation.id
            found = (
                found if same else Refusal(Reason.MODEL_MISMATCH, detail=self.session.terms.slug)
            )
        if isinstance(found, Refusal):
            self.end(End("cut_off", "revoked", 1008, "revoked", problem_of(found)))

    # Ends

    async def _linger(
        self, upstream: ClientConnection, listening: asyncio.Task[None], end: End
    ) -> None:
        """Wait a little for the usage of what the provider is busy with."""
        alone = end.close_reason in ("normal", "client_disconnected")
        with contextlib.suppress(ConnectionClosed, TimeoutError):
            async with asyncio.timeout(LINGER_S if alone else LINGER_CUT_S):
                if self.session.responding:
                    await upstream.send('{"type":"response.cancel"}')
                while not self.session.idle and not listening.done():
                    self.progress.clear()
                    told = asyncio.create_task(self.progress.wait())
                    try:
                        await asyncio.wait([told, listening], return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        await cancelled([told])

    async def _settle(self, end: End) -> None:
        call, session = self.call, self.session
        bill = session.bill(final=True)
        facts = call.facts
        if session.terms.slug != facts.model:
            # Nothing was used before the client named its model.
            facts = msgspec.structs.replace(
                facts, model=session.terms.slug, price_id=session.terms.price_id
            )
        try:
            await self.ledger.settle(
                Settlement(
                    facts,
                    end.outcome,
                    101,
                    bill.actual,
                    datetime.now(UTC),
                    bill.estimated,
                    end.message or (end.problem.message if end.problem is not None else None),
                    end.close_reason,
                ),
                call.path,
            )
        except (LedgerUnavailable, psycopg.Error):
            # Neither the books nor the spool take it: its hold lapses, and is billed.
            log.critical("session_unsettled", call_id=call.id)
        self.sessions.changed(self)
        metrics.ended(SESSIONS.name, end.outcome)
        if bill.actual.nano is None:
            metrics.UNPRICED.labels(facts.model).inc()

    async def _tell(self, problem: Problem, event_id: str | None = None) -> None:
        """Send the client an error event; the session goes on."""
        event = {
            "type": "error",
            "event_id": f"event_{uuid7().replace('-', '')}",
            "error": {**problem.error(), "event_id": event_id},
        }
        await self._send({"type": "websocket.send", "text": msgspec.json.encode(event).decode()})

    async def _say_goodbye(self, problem: Problem | None, code: int | None, text: str) -> None:
        if code is None:
            return
        reason = text.encode()[:REASON_BYTES_MAX].decode("utf-8", "ignore")
        try:
            async with asyncio.timeout(LINGER_S):
                with contextlib.suppress(OSError, RuntimeError):
                    if problem is not None:
                        await self._tell(problem)
                    await self.send({"type": "websocket.close", "code": code, "reason": reason})
                    # Until the client has closed its side, or is past waiting for.
                    while (await self.receive())["type"] != "websocket.disconnect":
                        pass
        except TimeoutError:
            # It takes nothing, so it would never see the close frame either.
            _hang_up(self.send)


class _NotRealtime(Exception):
    """The model is no realtime model."""

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal


def _rejection(refusal: Refusal | None) -> Problem:
    if refusal is None:
        return bad_request("The event is no readable JSON object, and was not sent on.")
    return problem_of(refusal)


def _exceeded(refusal: Refusal) -> End:
    """End a session because a limit does not pay for more."""
    shortfall = refusal.shortfall
    tokens = shortfall is not None and shortfall.meter == "tokens"
    # Mid-session there is no later: what others hold is as good as used.
    reason = Reason.COST_EXCEEDED
    if shortfall is not None:
        reason = exceeded_by(shortfall.owner, shortfall.meter, shortfall.window)
    problem = problem_of(Refusal(reason, shortfall))
    close_reason = "token_exceeded" if tokens else "cost_exceeded"
    return End("cut_off", close_reason, 1008, close_reason, problem)


def _left(message: dict[str, Any]) -> End:
    """Return how a client that is gone went."""
    code = message.get("code", 1006)
    if code == 1012 and "reason" not in message:
        # Our own server leaves, and has told the client.
        return End("cut_off", "draining", None)
    # A close frame without a code is a farewell, too; a broken connection has no reason at all.
    said_why = code in (1000, 1001) or 3000 <= code < 5000
    if said_why or (code == 1005 and "reason" in message):
        return End("success", "normal", None)
    return End("client_disconnected", "client_disconnected", None)


def _silent(seconds: float) -> End:
    problem = bad_request(f"Nothing was said for {seconds:g} seconds.", code="first_frame_timeout")
    return End(
        "client_disconnected",
        "client_disconnected",
        1008,
        "first_frame_timeout",
        problem,
        "the client sent no frame",
    )


def _provider_closed(closed: ConnectionClosed, provider: Provider) -> End:
    frame = closed.rcvd
    reason = ""
    if frame is not None:
        reason = redact(frame.reason.encode(), provider).decode("utf-8", "replace")
    if frame is not None and frame.code in (1000, 1001, 1005):
        code = 1000 if frame.code == 1005 else frame.code
        return End("success", "normal", code, reason)
    message = "The provider broke off the session."
    if frame is not None:
        message = f"The provider closed the session with {frame.code}: {reason}"[:1000]
    # Codes of applications mean something to their clients; the rest is a failure.
    code = frame.code if frame is not None and 3000 <= frame.code < 5000 else 1011
    problem = upstream_failed("The provider broke off the session.")
    return End("upstream_error", "upstream_error", code, "upstream_error", problem, message)


def _telling(data: str, host: str) -> bool:
    """Tell whether an error may name the provider's address, or echo its credential masked."""
    return host in data or "*" in data


def _transport_of(send: Send) -> Any:
    """Return what carries a client's connection, if the server shows it. ASGI does not."""
    return getattr(getattr(send, "__self__", None), "transport", None)


def _is_closing(send: Send) -> bool:
    """Tell whether the server has closed a client's connection, though it may not be gone yet."""
    transport = _transport_of(send)
    return transport is not None and bool(transport.is_closing())


def _hang_up(send: Send) -> None:
    """Drop a client's connection with what it did not take."""
    transport = _transport_of(send)
    if transport is not None:
        transport.abort()


def _closed(code: str) -> Problem:
    return Problem(403, "permission_error", code, "This session was ended by an administrator.")


class _Named(msgspec.Struct):
    type: str = ""
    session: Any = None


_decode_named = msgspec.json.Decoder(_Named).decode


def _model_named(data: str | bytes) -> str | None:
    """Return the model that an update of a transcription session names."""
    try:
        found: Any = _decode_named(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not found.type.endswith("session.update"):
        return None
    session = found.session
    for path in (("input_audio_transcription",), ("audio", "input", "transcription")):
        value = session
        for name in (*path, "model"):
            value = value.get(name) if isinstance(value, dict) else None
        if isinstance(value, str) and value.isprintable() and 0 < len(value) <= 1000:
            return value
    return None


class _Connect(connect):
    """The library's way to connect, but for redirects: they would take the credential along."""

    def process_redirect(self, exc: Exception) -> Exception:
        """Follow none."""
        return exc


async def _connected(address: str, **options: Any) -> ClientConnection:
    return await _Connect(address, **options)


async def _closed_politely(upstream: ClientConnection) -> None:
    with contextlib.suppress(Exception):
        await upstream.close()


_CLOSING: set[asyncio.Task[None]] = set()
