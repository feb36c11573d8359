"""The exchange: admit -> forward -> meter -> settle, the one path of every HTTP call.

Owns the order of these steps and what happens when one of them fails: which outcome is recorded,
what is billed, what the client is told. Owns no rule (`app.core`), no SQL (`app.store`), no wire
detail of an endpoint (`endpoints`) or of a provider (`upstream`).

Invariants:

- Nothing goes upstream before its hold is committed (or its allocation allows outages).
- After that, every way out settles: an answer, an error, a client that leaves, a cancellation.
- The last byte of an answer leaves only when its settlement is in the books or in the spool.
- No upstream call happens inside a transaction.
"""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, MutableMapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, NoReturn

import msgspec
import psycopg
import structlog

from app.core import access
from app.core.access import Allocation, Key, Model, Provider
from app.core.ceilings import (
    STREAM_SLICE_TOKENS,
    BadRequest,
    Ceiling,
    ModelFacts,
    estimate_chat,
    output_tokens,
    sliced,
)
from app.core.ledger import (
    NOTHING,
    AccountKey,
    Actual,
    CallFacts,
    Demand,
    Grant,
    OwnerKind,
    Settlement,
)
from app.core.metering import Quantity, Usage, members_of, output_of, tokens_of
from app.core.money import nano_to_usd
from app.core.preflight import Paths, another_slice, dearest, demand_for, stays
from app.core.pricing import COST_NANO_MAX, Price
from app.core.refusals import OUTCOME_OF, Outcome, Reason, Refusal, exceeded_by
from app.core.windows import Period
from app.gateway import metrics
from app.gateway.endpoints import (
    Endpoint,
    Request,
    body_for,
    facts_of,
    read_form,
    read_json,
)
from app.gateway.upstream import (
    Chunks,
    Upstream,
    UpstreamFailed,
    UpstreamTimedOut,
    header_of,
    redact,
    send_streamed,
    send_whole,
)
from app.ids import is_id, uuid7
from app.problems import (
    Problem,
    bad_request,
    internal_error,
    not_found,
    problem_of,
    too_large,
    upstream_failed,
    upstream_timeout,
)
from app.settings import Settings
from app.store.answers import Answers, Fresh, Mismatch, Replay, Running
from app.store.batch import Granted, Stale, Standing
from app.store.chats import Chats
from app.store.directory import Directory
from app.store.ledger import Ledger, LedgerUnavailable
from app.store.spool import Answer
from app.store.vault import Vault

log = structlog.get_logger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

REQUEST_ID_LENGTH_MAX = 128
LINGER_S = 5.0
"""How long to read on for the usage of a stream whose client has left."""
NO_CONTENT = 204
ENDING_S = 1.0
"""How long a provider that said that its answer is complete is given to close it."""
CHECKPOINT_S = 1.0
PATIENCE = timedelta(seconds=0.25)
"""How long a client surely waits for an answer."""
ANSWER_BYTES_MAX = 8 * 2**20
"""The largest answer kept for an Idempotency-Key."""
EVENT_BYTES_MAX = 32 * 2**20
"""The largest server-sent event taken from a provider."""
DRAIN_BYTES_MAX = 128 * 2**20
PLANS_KNOWN = 10_000
SLICE_LEAST = STREAM_SLICE_TOKENS * 3 // 10
"""With less than that left, a stream asks for its next slice."""
RESERVED_S = 1.5
"""How long a stream waits for what other calls hold to come free."""

_OUTPUT = ("output_token", "output_audio_token")

PASSED_HEADERS = ("content-type", "openai-processing-ms", "content-disposition")
"""What of a provider's headers reaches the client. Not `retry-after`: SDKs sleep on it."""


class Refused(Exception):
    """The call is answered with a problem instead."""

    def __init__(self, problem: Problem, call_id: str | None = None) -> None:
        self.problem = problem
        self.call_id = call_id
        """The call that is recorded with this end; None if none is."""


class Call:
    """One call on its way through the exchange."""

    __slots__ = (
        "_actual",
        "allocation",
        "answer_key",
        "begun",
        "ceiling",
        "chat",
        "demand",
        "digest",
        "endpoint",
        "facts",
        "grant",
        "id",
        "key",
        "model",
        "model_facts",
        "paid",
        "path",
        "price",
        "provider",
        "request",
        "request_id",
        "standing",
        "started_at",
    )

    allocation: Allocation
    ceiling: Ceiling
    facts: CallFacts
    model: Model
    model_facts: ModelFacts
    provider: Provider | None
    request: Request

    def __init__(self, endpoint: Endpoint, key: Key, digest: bytes, request_id: str | None) -> None:
        self.endpoint = endpoint
        self.key = key
        self.digest = digest
        self.started_at = datetime.now(UTC)
        self.id = uuid7(self.started_at)
        self.request_id = request_id or f"req_{self.id}"
        self.path: tuple[AccountKey, ...] = ()
        self.price: Price | None = None
        self.standing: Standing | None = None
        self.answer_key: str | None = None
        self.chat: str | None = None
        """The root of the tree of conversations that the call belongs to."""
        self.begun = False
        """Whether the client has the head of the answer: then no other can follow."""
        self.grant: Granted | None = None
        self.demand: Demand | None = None
        """What was asked of the ledger, of a stream that is held slice by slice."""
        self.paid = 0
        """Output tokens that such a stream has been granted so far."""
        self._actual: Actual | None = None

    def actual(self, usage: Usage) -> Actual:
        """Return what a usage comes to at the price of the call."""
        if self._actual is None or self._actual.usage is not usage:
            nano = 0 if not usage else None if self.price is None else self.price.cost_nano(usage)
            self._actual = Actual(usage, tokens_of(usage), nano)
        return self._actual

    def bounded(self, usage: Usage) -> Usage:
        """Return an estimate with no more output than the provider was allowed."""
        output = usage.get("output_token")
        opened = self.ceiling.open
        most: Quantity | None
        if self.demand is not None:
            most = self.paid
        elif opened is None:
            allowed = [b[u] for b in self.ceiling.bundles for u in _OUTPUT if u in b]
            most = max(allowed, default=None)
        else:
            granted = self.grant.grant.granted if self.grant is not None else None
            most = (opened.most if granted is None else granted) * opened.times
        if output is None or most is None or output <= most:
            return usage
        return {**usage, "output_token": most}


class Plan(msgspec.Struct, frozen=True, gc=False):
    """What the directory says of a call before its size is known: who pays, for what, to whom."""

    version: int
    """Of the directory that says so."""
    period: Period
    """In which it says so."""
    key: Key
    allocation: Allocation
    price: Price | None
    model: Model
    model_facts: ModelFacts
    provider: Provider | None
    path: tuple[AccountKey, ...]
    account_ids: tuple[str, ...]


class Exchange:
    """What all calls of a process share."""

    def __init__(
        self,
        settings: Settings,
        directory: Directory,
        ledger: Ledger,
        vault: Vault,
        upstream: Upstream,
        paths: Paths,
        answers: Answers,
        chats: Chats,
    ) -> None:
        self.settings = settings
        self.directory = directory
        self.ledger = ledger
        self.vault = vault
        self.upstream = upstream
        self.paths = paths
        self.answers = answers
        self.chats = chats
        self._plans: dict[tuple[bytes, str, str], Plan] = {}

    # The path of a call

    async def handle(self, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one POST to an endpoint."""
        headers = dict(scope["headers"])
        call: Call | None = None
        try:
            digest = self.digest(headers)
            key = await self.key(digest)
            body = await read_body(headers, receive, self.settings.max_body_bytes)
            call = Call(endpoint, key, digest, given_request_id(headers))
            call.request = self._read(endpoint, headers, body)
            if endpoint.document is not None:
                await endpoint.document(call.request)
            if b"x-spendgate-chat" in headers:
                call.chat = await self.chat(headers, key)
            idempotency_key = headers.get(b"idempotency-key")
            if idempotency_key is not None:
                answer = await self._replay(call, idempotency_key, body)
                if answer is not None:
                    await _send_answer(send, call, answer)
                    return
            try:
                await self.admit(call)
                await self._forward(call, receive, send)
            finally:
                if call.answer_key is not None:
                    await self._free(call)
        except Refused as refused:
            request_id = request_id_of(headers) if call is None else call.request_id
            await send_problem(send, refused.problem, request_id, refused.call_id)
        except BadRequest as error:
            problem = bad_request(str(error), error.param or None)
            request_id = request_id_of(headers) if call is None else call.request_id
            await send_problem(send, problem, request_id, None)
        except ClientGone:
            return

    async def authenticate(self, headers: dict[bytes, bytes]) -> Key:
        """Return the key of a request that makes no call, or refuse it.

        No reserve tells that the directory is out of date, so it is freshened first; while
        PostgreSQL is away, what is known has to do.
        """
        digest = self.digest(headers)
        if digest:
            await self.directory.look_again()
        key = await self.key(digest)
        refusal = access.member_refusal(key, self.directory.members)
        if refusal is not None:
            raise Refused(problem_of(refusal))
        return key

    def digest(self, headers: dict[bytes, bytes]) -> bytes:
        """Return what a request's bearer secret is known by; empty if it has none."""
        bearer = bearer_of(headers)
        return b"" if bearer is None else self.vault.digest(bearer)

    async def key(self, digest: bytes) -> Key:
        """Return the key of a digest, or refuse it."""
        now = datetime.now(UTC)
        key = None
        if digest:
            key = self.directory.keys_by_digest.get(digest)
            if key is None:
                try:
                    await self.directory.refresh()
                except (psycopg.Error, OSError):
                    # It may be a good key, of which this process has not heard yet.
                    raise Refused(problem_of(Refusal(Reason.LEDGER_UNAVAILABLE))) from None
                key = self.directory.keys_by_digest.get(digest)
        refusal = access.key_refusal(key, now)
        if refusal is not None or key is None:
            metrics.REFUSED_KEYS.inc()
            raise Refused(problem_of(refusal or Refusal(Reason.INVALID_KEY)))
        return key

    async def chat(
        self, headers: dict[bytes, bytes], key: Key, named: str | None = None
    ) -> str | None:
        """Return the root of the chat that a call names, or refuse it; None: it names none."""
        raw = headers.get(b"x-spendgate-chat")
        name = named if raw is None else raw.decode("latin-1")
        if name is None:
            return None
        root = None
        if is_id(name):
            try:
                root = await self.chats.root(name, key.member_id)
            except (psycopg.Error, OSError):
                raise Refused(problem_of(Refusal(Reason.LEDGER_UNAVAILABLE))) from None
        if root is None:
            raise Refused(not_found("You have no chat with that id: make one at POST /v1/chats."))
        return root

    def _read(self, endpoint: Endpoint, headers: dict[bytes, bytes], body: bytes) -> Request:
        content_type, kind = kind_of(headers.get(b"content-type", b"application/json"))
        expected = "application/json" if endpoint.reader == "json" else "multipart/form-data"
        if kind != expected:
            raise Refused(
                Problem(
                    415,
                    "invalid_request_error",
                    "unsupported_media_type",
                    f"/v1/{endpoint.name} takes {expected}, not {kind[:100]!r}.",
                )
            )
        if b"content-encoding" in headers:
            raise Refused(
                Problem(
                    415,
                    "invalid_request_error",
                    "unsupported_media_type",
                    "Send the body without a Content-Encoding.",
                )
            )
        read = read_json if endpoint.reader == "json" else read_form
        return read(body, content_type)

    async def _replay(self, call: Call, raw_key: bytes, body: bytes) -> Answer | None:
        """Return the booked answer of an Idempotency-Key, or claim the key for this call."""
        if not 1 <= len(raw_key) <= 255 or not _printable(raw_key):
            raise BadRequest(
                "`Idempotency-Key` must have from 1 to 255 printable ASCII characters.",
                "Idempotency-Key",
            )
        key = raw_key.decode("ascii")
        digest = hashlib.sha256(call.endpoint.name.encode() + b"\0" + body).digest()
        try:
            claimed = await self.answers.claim(call.key.id, key, digest, call.id)
        except (psycopg.Error, OSError):
            raise Refused(problem_of(Refusal(Reason.LEDGER_UNAVAILABLE))) from None
        match claimed:
            case Fresh():
                call.answer_key = key
                return None
            case Replay(answer=answer):
                return answer
            case Running():
                raise Refused(
                    Problem(
                        409,
                        "invalid_request_error",
                        "idempotency_key_in_use",
                        "A call with this Idempotency-Key is still running.",
                        retry=True,
                    )
                )
            case Mismatch():
                raise Refused(
                    Problem(
                        422,
                        "invalid_request_error",
                        "idempotency_key_reused",
                        "This Idempotency-Key came with another body before; use a new one.",
                    )
                )

    async def _free(self, call: Call) -> None:
        """Give back the Idempotency-Key of a call that keeps no answer."""
        name, call.answer_key = call.answer_key, None
        if name is not None:
            await self.answers.release(call.key.id, name, call.id)

    async def admit(
        self,
        call: Call,
        prepare: Callable[[Call, Plan], Demand] | None = None,
        checkpoint: Actual | None = None,
    ) -> None:
        """Hold what the call may use, or raise `Refused` after recording the refusal."""
        while True:
            version = self.directory.version
            plan = self.plan(call)
            if isinstance(plan, Refusal):
                # Before refusing for what the directory says: is it out of date?
                await self.directory.look_again()
                if self.directory.version != version:
                    continue
                await self.refuse(call, plan)
            demand = (prepare or self._prepare)(call, plan)
            if demand.cost is None and call.allocation.unpriced == "deny":
                await self.refuse(call, Refusal(Reason.MODEL_UNPRICED, detail=call.request.model))
            try:
                result = await self.ledger.reserve(
                    call.facts,
                    demand,
                    version,
                    one_shot=call.key.one_shot,
                    checkpoint=checkpoint,
                )
            except LedgerUnavailable:
                if call.allocation.ledger_outage == "allow" and self._let_through(call, demand):
                    break
                await self.refuse(call, Refusal(Reason.LEDGER_UNAVAILABLE))
            if isinstance(result, Stale):
                try:
                    await self.directory.refresh_to(result.version)
                except (psycopg.Error, OSError):
                    await self.refuse(call, Refusal(Reason.LEDGER_UNAVAILABLE))
                continue
            if isinstance(result, Refusal):
                await self.refuse(call, result)
            assert isinstance(result, Granted)
            call.grant = result
            call.standing = result.standing
            if call.demand is not None and call.demand.open is not None:
                call.paid = (result.grant.granted or 0) * call.demand.open.times
            if call.key.one_shot:
                self.directory.mark_used(call.digest, call.started_at)
            break
        if call.provider is None or not call.provider.credential:
            await self.refuse(call, Refusal(Reason.PROVIDER_UNAVAILABLE))

    def _let_through(self, call: Call, demand: Demand) -> bool:
        """Note a call on the disk that goes upstream without a hold, in case we die with it.

        False if the disk does not take it either: then nothing may go upstream.
        """
        log.warning("call_let_through", call_id=call.id)
        most = demand.open.most if demand.open is not None else 0
        nano = None if demand.cost is None else min(demand.nano_at(most), COST_NANO_MAX)
        assumed = Actual({}, demand.tokens_at(most), nano)
        try:
            self.ledger.spool.intend(
                Settlement(call.facts, "recovered", 200, assumed, call.started_at, estimated=True),
                call.path,
            )
        except OSError:
            log.critical("spool_not_written", call_id=call.id)
            return False
        return True

    def plan(self, call: Call) -> Plan | Refusal:
        """Decide who pays for a call, and who serves it, or refuse it; note that with the call.

        What is decided serves the key's next calls, while the directory and the period last.
        """
        directory, slug = self.directory, call.request.model
        name = (call.digest, slug, call.endpoint.name)
        plan = self._plans.get(name)
        if (
            plan is None
            or plan.version != directory.version
            or not plan.period.holds(call.started_at)
            or call.chat is not None
        ):
            found = self._plan(call, slug)
            if isinstance(found, Refusal):
                return found
            plan = found
            # A key that is used up by its first call, and a chat, are soon of no more use.
            if not plan.key.one_shot and call.chat is None:
                if len(self._plans) >= PLANS_KNOWN:
                    self._plans.clear()
                self._plans[name] = plan
        call.key, call.allocation, call.price = plan.key, plan.allocation, plan.price
        call.model, call.provider, call.path = plan.model, plan.provider, plan.path
        return plan

    def _plan(self, call: Call, slug: str) -> Plan | Refusal:
        directory, at = self.directory, call.started_at
        # The directory may have been freshened since the request was authenticated: by its
        # secret, which may have been rotated away.
        key = directory.keys_by_digest.get(call.digest)
        refusal = access.key_refusal(key, at)
        if refusal is not None or key is None:
            return refusal or Refusal(Reason.INVALID_KEY)
        call.key = key
        prices = directory.prices.get(slug, ())
        grantee = access.admit(key, slug, directory.members, directory.allocations, prices, at)
        if isinstance(grantee, Refusal):
            return grantee
        path = self.path(call, grantee.allocation)
        model = directory.models[slug]
        return Plan(
            directory.version,
            stays(key, prices, path, at),
            key,
            grantee.allocation,
            grantee.price,
            model,
            facts_of(model, self.settings),
            directory.providers.get(model.provider_id),
            path,
            tuple([account.id for account in path]),
        )

    def _prepare(self, call: Call, plan: Plan) -> Demand:
        """Work out the ceiling of a call that may be admitted."""
        endpoints = plan.model.endpoints
        if endpoints is not None and call.endpoint.name not in endpoints:
            raise BadRequest(
                f"The model {plan.model.slug!r} is not served at /v1/{call.endpoint.name}.", "model"
            )
        call.model_facts = plan.model_facts
        ceiling = call.endpoint.ceiling(call.request, plan.model_facts)
        if plan.price is None and call.endpoint.answer == "binary":
            # Nothing but the request itself can meter it, so no other bundle can come true.
            ceiling = Ceiling(ceiling.bundles[:1], ceiling.open)
        call.facts = self.facts(call, plan.account_ids, plan.allocation.id)
        policy = plan.allocation.overrun_policy
        extendable = call.endpoint.extendable
        opened = ceiling.open
        slice_by_slice = (
            call.request.stream
            and policy == "strict"
            and opened is not None
            and opened.unit == "output_token"
            and extendable is not None
            and extendable(call.request, plan.model.upstream_model)
        )
        call.ceiling = sliced(ceiling) if slice_by_slice else ceiling
        demand = demand_for(call.ceiling, plan.price, plan.path, policy)
        call.demand = demand if slice_by_slice else None
        return demand

    def path(self, call: Call, allocation: Allocation) -> tuple[AccountKey, ...]:
        """Return the accounts that a call is charged to."""
        owners: list[tuple[OwnerKind, str]] = [
            ("key", call.key.id),
            ("allocation", allocation.id),
        ]
        if call.chat is not None:
            owners.insert(0, ("chat", call.chat))
        if allocation.pool_id is not None:
            owners += [("pool", pool) for pool in self.directory.pools_above(allocation)]
        return self.paths.of(
            owners, call.started_at, self.directory.limited, allocation.billing_timezone
        )

    def facts(
        self, call: Call, account_ids: tuple[str, ...], allocation_id: str | None
    ) -> CallFacts:
        """Return what is known of a call that may be admitted, or was refused."""
        return CallFacts(
            call.id,
            call.request_id,
            allocation_id,
            call.key.id,
            call.key.member_id,
            call.request.model,
            call.endpoint.name,
            call.price.id if call.price is not None else None,
            call.started_at,
            account_ids,
        )

    async def refuse(self, call: Call, refusal: Refusal) -> NoReturn:
        """Record a refusal, release what the call may hold, and raise."""
        problem = problem_of(refusal)
        outcome = OUTCOME_OF[refusal.reason]
        if outcome is None:
            metrics.REFUSED_KEYS.inc()
            raise Refused(problem)
        # An unconfirmed reserve may have left a hold: then the accounts are locked and it goes.
        held = refusal.reason in (Reason.LEDGER_UNAVAILABLE, Reason.PROVIDER_UNAVAILABLE)
        path = call.path if held else ()
        ids = call.key.allocation_ids
        # A refusal is recorded for the allocation that opens the model, or else for the only one.
        opens = access.open_allocation(call.key, call.request.model, self.directory.allocations)
        allocation_id = opens.id if opens is not None else ids[0] if len(ids) == 1 else None
        facts = self.facts(call, tuple(key.id for key in path), allocation_id)
        await self.ledger.settle(
            Settlement(
                facts,
                outcome,
                problem.status,
                NOTHING,
                datetime.now(UTC),
                error_message=problem.message,
                shortfall=refusal.shortfall,
            ),
            path,
        )
        metrics.ended(call.endpoint.name, outcome)
        raise Refused(problem, call.id)

    # Forwarding

    async def _forward(self, call: Call, receive: Receive, send: Send) -> None:
        try:
            request, provider = call.request, call.provider
            assert provider is not None
            self._clamp(call)
            # Mistral reports usage by itself and refuses to be asked.
            request.forces_usage = (
                request.stream
                and call.endpoint.stream_meter is not None
                and not request.wants_usage
                and provider.kind != "mistral"
            )
            body, content_type = body_for(request, call.endpoint, call.model.upstream_model)
            prepared = self.upstream.request(
                provider,
                call.endpoint.path,
                call.model.upstream_model,
                [("content-type", content_type), ("x-request-id", call.id)],
                body,
            )
            if request.stream and call.endpoint.stream_meter is not None:
                await self._stream(call, prepared, receive, send)
            elif call.endpoint.answer == "binary":
                await self._binary(call, prepared, send)
            else:
                await self._whole(call, prepared, receive, send)
        except UpstreamFailed as error:
            await self._fail(call, upstream_failed(str(error)))
        except UpstreamTimedOut:
            await self._fail(call, upstream_timeout())
        except (Refused, ClientGone):
            raise
        except Unsettled:
            if call.begun:
                raise ClientGone from None
            raise Refused(problem_of(Refusal(Reason.LEDGER_UNAVAILABLE)), call.id) from None
        except Exception:
            log.exception("call_failed", call_id=call.id)
            await self._fail(call, internal_error())
        except asyncio.CancelledError:
            # What reached the provider is not known: the hold lapses, and is billed as after a
            # crash.
            self.ledger.live.pop(call.id, None)
            raise

    def _clamp(self, call: Call) -> None:
        """Write the granted maximum into the request, where it is less than the model's own."""
        opened, grant = call.ceiling.open, call.grant
        if opened is None or grant is None or not grant.grant.limited or call.demand is not None:
            return
        granted = grant.grant.granted
        clamp = call.endpoint.clamp
        if granted is None or clamp is None or call.allocation.overrun_policy != "strict":
            return
        # What is assumed of a model binds nobody until it is written; what a model cannot exceed
        # need not be, and some providers refuse a maximum as large as the window. Nor need the most
        # pages: a document that is shorter might be refused for them.
        model = call.model
        known = opened.unit == "page" or bool(model.max_output_tokens or model.context_window)
        if granted < opened.most or not known:
            assert call.provider is not None
            clamp(call.request, call.provider, model.upstream_model, granted)

    async def _whole(self, call: Call, prepared: Any, receive: Receive, send: Send) -> None:
        response, body = await send_whole(prepared)
        status: int = response.status
        if status >= 300:
            await self._provider_error(call, status, body, response, send)
            return
        await self._answer(call, status, _passed(response), body, receive, send)

    async def _answer(
        self,
        call: Call,
        status: int,
        headers: Headers,
        body: bytes,
        receive: Receive,
        send: Send,
    ) -> None:
        """Meter, settle and pass on an answer in one piece."""
        usage = call.endpoint.meter(body)
        estimated = False
        if usage is None:
            usage, estimated = self._estimate(call, body)
        # Nobody leaves sooner, and looking costs a twentieth of a short call.
        patient = datetime.now(UTC) - call.started_at > PATIENCE
        gone = patient and await _left(receive)
        body = _without_secrets(body, call.provider)
        standing = await self._settle(
            call,
            "client_disconnected" if gone else "success",
            status,
            usage,
            estimated=estimated,
            answer=self._kept(call, status, headers, body),
        )
        await send_whole_answer(
            send, status, [*headers, *self._call_headers(call, usage, standing)], body
        )

    async def _binary(self, call: Call, prepared: Any, send: Send) -> None:
        """Pass on an answer whose cost is known beforehand, its last chunk after settling."""
        usage, estimated = self._estimate(call, b"")
        async with send_streamed(prepared) as (response, chunks):
            status: int = response.status
            if status >= 300:
                await self._provider_error(call, status, await chunks.rest(), response, send)
                return
            chunk = await chunks.next()
            if chunk is None:
                raise UpstreamFailed("The provider answered with nothing.")
            if "json" in (header_of(response, "content-type") or "").lower():
                # Some speak in JSON; some say with a good status why they do not.
                pieces = [chunk]
                while (piece := await chunks.next()) is not None:
                    pieces.append(piece)
                chunk = b"".join(pieces)
                _check_no_error(members_of(chunk) or {})
            headers = [*_passed(response), *self._call_headers(call, usage, call.standing)]
            call.begun = True
            await send({"type": "http.response.start", "status": status, "headers": headers})
            kept: list[bytes] = []
            broken = False
            while True:
                try:
                    following = await chunks.next()
                except (UpstreamFailed, UpstreamTimedOut):
                    broken = True
                    following = None
                chunk = _without_secrets(chunk, call.provider)
                if call.answer_key is not None:
                    kept.append(chunk)
                if following is None:
                    break
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                chunk = following
        answer = None if broken else self._kept(call, status, _passed(response), b"".join(kept))
        await self._settle(
            call,
            "upstream_error" if broken else "success",
            status,
            usage,
            estimated=estimated or broken,
            answer=answer,
        )
        if broken:
            # The client must see that the answer is cut: the body ends without its end.
            raise ClientGone
        await send({"type": "http.response.body", "body": chunk, "more_body": False})

    async def _stream(self, call: Call, prepared: Any, receive: Receive, send: Send) -> None:
        async with send_streamed(prepared) as (response, chunks):
            status: int = response.status
            content_type = (header_of(response, "content-type") or "").lower()
            if status >= 300:
                await self._provider_error(call, status, await chunks.rest(), response, send)
                return
            if "text/event-stream" not in content_type or status == NO_CONTENT:
                # Asked for a stream, answered in one piece: metered like one.
                body = await chunks.rest()
                await self._answer(call, status, _passed(response), body, receive, send)
                return
            await _Relay(self, call, chunks, receive, send).run(status, _passed(response))

    # Ends

    def _estimate(self, call: Call, body: bytes) -> tuple[Usage, bool]:
        """Return what to bill for a whole answer without usage, and whether that is a guess.

        Characters are counted from the request and seconds from the file's own header: facts.
        """
        endpoint = call.endpoint
        if (endpoint.reader, endpoint.answer) == ("json", "json"):
            members = members_of(body)
            if members is None:
                raise UpstreamFailed("The provider's answer could not be read.")
            _check_no_error(members)
        most = dearest(call.ceiling.bundles, call.price)
        usage = call.bounded(endpoint.estimate(body, most, call.model_facts))
        known = "character" in usage or ("second" in usage and call.request.document is not None)
        return usage, not known

    def _kept(self, call: Call, status: int, headers: Headers, body: bytes) -> Answer | None:
        if call.answer_key is None or len(body) > ANSWER_BYTES_MAX:
            return None
        text = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
        return Answer(status, text, body)

    async def _settle(
        self,
        call: Call,
        outcome: Outcome,
        status: int,
        usage: Usage,
        *,
        estimated: bool = False,
        answer: Answer | None = None,
        error_message: str | None = None,
    ) -> Standing | None:
        actual = call.actual(usage)
        settlement = Settlement(
            call.facts, outcome, status, actual, datetime.now(UTC), estimated, error_message
        )
        try:
            # Queued before the first await: a cancelled waiter does not take it along.
            settled = await self.ledger.settle(settlement, call.path, answer=answer)
        except (LedgerUnavailable, psycopg.Error) as error:
            raise Unsettled from error
        if answer is not None and settled.booking in ("booked", "spooled"):
            # The answer is in the books with the call: nothing to release.
            call.answer_key = None
        elif call.answer_key is not None:
            # Before the last byte leaves: whoever has it may ask again at once.
            await self._free(call)
        metrics.ended(call.endpoint.name, outcome)
        if actual.nano is None:
            metrics.UNPRICED.labels(call.request.model).inc()
        return settled.standing

    async def _fail(self, call: Call, problem: Problem) -> NoReturn:
        """Record a call that came to nothing, release its hold, and answer with the problem."""
        await self._settle(
            call, "upstream_error", problem.status, {}, error_message=problem.message
        )
        if call.begun:
            raise ClientGone
        raise Refused(problem, call.id)

    async def _provider_error(
        self, call: Call, status: int, body: bytes, response: Any, send: Send
    ) -> None:
        """Record a provider's refusal; a 4xx is the client's to see, anything else is a 502."""
        assert call.provider is not None
        shown = redact(body, call.provider)
        text = shown[:1000].decode("utf-8", "replace").replace("\0", "")
        client_sees = 400 <= status < 500
        await self._settle(
            call,
            "upstream_error",
            status if client_sees else 502,
            {},
            error_message=f"{status}: {text}",
        )
        if not client_sees:
            raise Refused(upstream_failed(f"The provider failed with status {status}."), call.id)
        headers = [
            *_passed(response),
            (b"x-should-retry", b"true" if status in (408, 429) else b"false"),
            *_ids(call),
        ]
        await send_whole_answer(send, status, headers, shown)

    def _call_headers(self, call: Call, usage: Usage | None, standing: Standing | None) -> Headers:
        headers = _ids(call)
        if usage is not None:
            nano = call.actual(usage).nano
            if nano is not None:
                headers.append((b"x-spendgate-cost-usd", nano_to_usd(nano).encode()))
        if standing is not None:
            if standing.remaining_nano is not None:
                left = nano_to_usd(standing.remaining_nano).encode()
                headers.append((b"x-spendgate-remaining-usd", left))
            if standing.remaining_tokens is not None:
                left = str(standing.remaining_tokens).encode()
                headers.append((b"x-spendgate-remaining-tokens", left))
        return headers


class Unsettled(Exception):
    """Nothing takes the settlement of a call, neither the books nor the spool.

    It is not replaced by another, which would book something else: the hold lapses, and is billed
    as after a crash.
    """


class ClientGone(Exception):
    """The connection is of no more use: nothing can be answered on it."""


class CutOff(Exception):
    """A limit does not pay for more of a stream."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem


class _Relay:
    """One streamed answer: bytes on to the client, a copy to the meter, then the settlement."""

    def __init__(
        self, exchange: Exchange, call: Call, chunks: Chunks, receive: Receive, send: Send
    ) -> None:
        self.exchange = exchange
        self.call = call
        self.chunks = chunks
        self.receive = receive
        self.send = send
        assert call.endpoint.stream_meter is not None
        self.meter = call.endpoint.stream_meter(call.request.forces_usage)
        self.gone = False
        self.ending = False
        self.final: list[bytes] = []
        self.kept: list[bytes] = []
        self.kept_bytes = 0
        self.checked_at = time.monotonic()
        self.timer: asyncio.Timeout | None = None
        self.extending: asyncio.Task[Refusal | None] | None = None
        self.covered_bytes = 0
        """The output that was paid for when last looked."""

    async def run(self, status: int, headers: Headers) -> None:
        """Relay until the provider ends, breaks, or lingers on without a client."""
        call = self.call
        watch = asyncio.create_task(self._watch())
        broken: Problem | None = None
        try:
            started = [*headers, *self.exchange._call_headers(call, None, call.standing)]
            call.begun = True
            await self.send({"type": "http.response.start", "status": status, "headers": started})
            try:
                # Let the watch look once: the client may have left before the answer began.
                await asyncio.sleep(0)
                async with asyncio.timeout(LINGER_S if self.gone else None) as self.timer:
                    unfinished = 0
                    while (chunk := await self.chunks.next()) is not None:
                        outs = self.meter.feed(chunk)
                        unfinished = 0 if outs else unfinished + len(chunk)
                        if unfinished > EVENT_BYTES_MAX:
                            raise UpstreamFailed("The provider sent an event without end.")
                        await self._cover()
                        await self._pass(outs)
                        if self.meter.done and not self.ending:
                            self.ending = True
                            self._end_within(ENDING_S)
            except TimeoutError:
                pass
            except CutOff as cut:
                await self._settle(status, headers, cut.problem, cut_off=True)
                return
            except (UpstreamFailed, UpstreamTimedOut) as error:
                # With an answer that is complete nothing is lost but the end of the connection.
                if not self.meter.done:
                    timed_out = isinstance(error, UpstreamTimedOut)
                    broken = upstream_timeout() if timed_out else upstream_failed(str(error))
            except Exception:
                # What has come so far is billed all the same.
                log.exception("stream_failed", call_id=call.id)
                broken = internal_error()
            self.timer = None
            await self._pass(self.meter.end())
            await self._settle(status, headers, broken)
        except asyncio.CancelledError:
            await asyncio.shield(self._settle(status, headers, None))
            raise
        finally:
            watch.cancel()
            if self.extending is not None:
                self.extending.cancel()

    # The watcher of a stream that is held slice by slice

    async def _cover(self) -> None:
        """Have what has come paid for before it goes on, and the next slice before it is needed."""
        call, meter = self.call, self.meter
        if call.demand is None or meter.done:
            return
        if meter.usage is not None and meter.output_bytes == self.covered_bytes:
            # The last report comes when there is no more output: it is booked as it is.
            return
        self.covered_bytes = meter.output_bytes
        output = output_of(meter.usage or {}) + output_tokens(
            meter.output_bytes - meter.bytes_reported,
            meter.delta_count - meter.deltas_reported,
            call.model_facts,
        )
        low = output > call.paid - SLICE_LEAST
        if low and self.extending is None:
            self.extending = asyncio.create_task(self._extend(max(0, output - call.paid)))
        began = time.monotonic()
        while output > call.paid:
            if self.extending is None:
                self.extending = asyncio.create_task(self._extend(output - call.paid))
            extending = self.extending
            refusal = await extending
            self.extending = None
            if refusal is None or output <= call.paid:
                continue
            # What others hold may come free in a moment.
            if time.monotonic() - began > self._patience(refusal):
                raise CutOff(_no_more(refusal))
            await asyncio.sleep(0.1)
        if self.extending is not None and self.extending.done():
            self.extending = None

    def _patience(self, refusal: Refusal) -> float:
        if refusal.reason is Reason.LEDGER_UNAVAILABLE:
            return self.exchange.settings.ledger_wait_s
        return RESERVED_S if refusal.reason is Reason.RESERVED else 0

    async def _extend(self, needed: int) -> Refusal | None:
        """Ask for another slice; return why there is none."""
        call = self.call
        assert call.demand is not None
        demand = another_slice(call.demand, needed)
        usage, _ = self._usage()
        checkpoint = call.actual(usage) if usage else None
        try:
            result = await self.exchange.ledger.extend(call.id, demand, checkpoint=checkpoint)
        except LedgerUnavailable:
            if call.allocation.ledger_outage == "deny":
                return Refusal(Reason.LEDGER_UNAVAILABLE)
            call.paid += needed + STREAM_SLICE_TOKENS
            return None
        if isinstance(result, Grant):
            call.paid += needed + (result.granted or 0)
            return None
        # Without a hold it has been settled elsewhere, after we were away for too long.
        return result or Refusal(Reason.LEDGER_UNAVAILABLE)

    async def _settle(
        self, status: int, headers: Headers, broken: Problem | None, *, cut_off: bool = False
    ) -> None:
        call, meter = self.call, self.meter
        usage, estimated = self._usage()
        if not usage and broken is None and not meter.done and not self.gone:
            broken = upstream_failed("The provider ended the stream before any output.")
        outcome: Outcome = "success"
        if cut_off:
            outcome = "cut_off"
        elif self.gone:
            outcome = "client_disconnected"
        elif broken is not None or (meter.error and not (meter.done and usage)):
            outcome = "upstream_error"
        answer = None
        if broken is None and meter.done and self.kept_bytes <= ANSWER_BYTES_MAX:
            body = b"".join([*self.kept, *self.final])
            answer = self.exchange._kept(call, status, headers, body)
        await self.exchange._settle(
            call,
            outcome,
            status if broken is None or cut_off else broken.status,
            usage,
            estimated=estimated,
            answer=answer,
            error_message=broken.message if broken is not None else None,
        )
        if broken is not None:
            # The error must not become part of an event that was cut.
            self.final = [_whole_events(b"".join(self.final)), broken.event()]
            if cut_off:
                self.final.append(b"data: [DONE]\n\n")
        if not self.gone:
            await self.send(
                {"type": "http.response.body", "body": b"".join(self.final), "more_body": False}
            )

    def _usage(self) -> tuple[Usage, bool]:
        """Return the usage so far: the provider's word, else an estimate of what came."""
        meter, call = self.meter, self.call
        if meter.usage is not None:
            unreported = meter.output_bytes - meter.bytes_reported
            if not unreported:
                return meter.usage, False
            # Some report from the first chunk on: what came after the last report is on top.
            said = meter.usage.get("output_token", 0)
            more = said + output_tokens(unreported, 0, call.model_facts)
            allowed = call.bounded({"output_token": more})["output_token"]
            return {**meter.usage, "output_token": max(said, allowed)}, True
        if meter.output_bytes == 0 and (meter.error or not (meter.done or self.gone)):
            return {}, False
        most = dearest(call.ceiling.bundles, call.price)
        estimate = estimate_chat(most, meter.output_bytes, call.model_facts)
        return call.bounded(estimate), True

    async def _pass(self, outs: Any) -> None:
        provider = self.call.provider
        assert provider is not None
        for out in outs:
            if self.meter.error:
                data = redact(out.data, provider)
            else:
                data = _without_secrets(out.data, provider)
            if out.final:
                self.final.append(data)
                continue
            if self.call.answer_key is not None and self.kept_bytes <= ANSWER_BYTES_MAX:
                self.kept.append(data)
                self.kept_bytes += len(data)
            if not self.gone:
                await self.send({"type": "http.response.body", "body": data, "more_body": True})
        now = time.monotonic()
        if now - self.checked_at >= CHECKPOINT_S:
            self.checked_at = now
            usage, _ = self._usage()
            if usage and self.call.id in self.exchange.ledger.live:
                self.exchange.ledger.live[self.call.id] = self.call.actual(usage)

    async def _watch(self) -> None:
        """Notice that the client has left; then the provider has a few seconds to report usage."""
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        self._end_within(LINGER_S)

    def _end_within(self, seconds: float) -> None:
        """Read on for so long at most."""
        if self.timer is not None:
            end, set_before = asyncio.get_running_loop().time() + seconds, self.timer.when()
            self.timer.reschedule(end if set_before is None else min(end, set_before))


# The wire


async def read_body(headers: dict[bytes, bytes], receive: Receive, most: int) -> bytes:
    """Read a body of at most `most` bytes; a larger one is read past, so that 413 arrives."""
    declared = headers.get(b"content-length")
    large = declared is not None and declared.isdigit() and int(declared) > most
    first = await receive()
    if first["type"] == "http.disconnect":
        raise ClientGone
    if not first.get("more_body") and not large:
        body: bytes = first.get("body", b"")
        if len(body) > most:
            raise Refused(too_large(most))
        return body
    pieces = [first.get("body", b"")]
    size = len(pieces[0])
    more = first.get("more_body", False)
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece = message.get("body", b"")
        more = message.get("more_body", False)
        size += len(piece)
        if size > most or large:
            pieces.clear()
            if size > DRAIN_BYTES_MAX:
                break
        else:
            pieces.append(piece)
    if size > most or large:
        raise Refused(too_large(most))
    return b"".join(pieces)


async def _left(receive: Receive) -> bool:
    """Tell whether the client has closed the connection, without waiting for it to."""
    waiting = receive()
    assert isinstance(waiting, Coroutine)
    try:
        # One step: either the disconnect is there already, or there is something to wait for.
        waiting.send(None)
    except StopIteration as stop:
        message: Message = stop.value
        return bool(message["type"] == "http.disconnect")
    waiting.close()
    return False


def _check_no_error(members: Mapping[str, object]) -> None:
    """Refuse an answer that is an error whatever its status says."""
    if "error" in members and not members.keys() & {"choices", "data", "pages", "audio_data"}:
        raise UpstreamFailed("The provider answered with an error.")


def _no_more(refusal: Refusal) -> Problem:
    """Say why a stream is cut: to one that runs, what others hold is as good as used."""
    reason, shortfall = refusal.reason, refusal.shortfall
    if reason is Reason.RESERVED and shortfall is not None:
        reason = exceeded_by(shortfall.owner, shortfall.meter, shortfall.window)
    return problem_of(Refusal(reason, shortfall))


def _without_secrets(data: bytes, provider: Provider | None) -> bytes:
    """Take the credential and the address out of an answer that, against all manners, has them."""
    assert provider is not None
    if provider.credential and provider.credential.encode() in data:
        return redact(data, provider)
    return redact(data, provider) if provider.base_url.encode() in data else data


@lru_cache(maxsize=100)
def kind_of(content_type: bytes) -> tuple[str, str]:
    """Return a content type as text, and without its parameters."""
    text = content_type.decode("latin-1")
    return text, text.partition(";")[0].strip().lower()


def bearer_of(headers: dict[bytes, bytes]) -> str | None:
    """Return the bearer secret of a request."""
    value = headers.get(b"authorization")
    if value is None:
        return None
    scheme, _, bearer = value.decode("latin-1").partition(" ")
    return bearer.strip() or None if scheme.lower() == "bearer" else None


def given_request_id(headers: dict[bytes, bytes]) -> str | None:
    """Return the client's request id if it can be recorded and echoed."""
    value = headers.get(b"x-request-id")
    if value is not None and 0 < len(value) <= REQUEST_ID_LENGTH_MAX and _printable(value):
        return value.decode("ascii")
    return None


def request_id_of(headers: dict[bytes, bytes]) -> str:
    """Return the client's request id if it can be recorded and echoed, else one of ours."""
    return given_request_id(headers) or f"req_{uuid7()}"


def _whole_events(data: bytes) -> bytes:
    """Return the events of a stream without one that has no end."""
    ends = (b"\n\n", b"\r\n\r\n", b"\r\r")
    return data[: max(data.rfind(end) + len(end) if end in data else 0 for end in ends)]


def _printable(value: bytes) -> bool:
    return all(0x21 <= byte <= 0x7E for byte in value)


def _ids(call: Call) -> Headers:
    return [
        (b"x-request-id", call.request_id.encode()),
        (b"x-spendgate-call-id", call.id.encode()),
    ]


def _passed(response: Any) -> Headers:
    passed: Headers = []
    for name in PASSED_HEADERS:
        value = header_of(response, name)
        if value is not None:
            passed.append((name.encode(), value.encode("latin-1", "replace")))
    return passed


async def send_problem(
    send: Send, problem: Problem, request_id: str, call_id: str | None = None
) -> None:
    """Answer with a problem, in OpenAI's envelope."""
    headers = [*problem.headers(), (b"x-request-id", request_id.encode())]
    if call_id is not None:
        headers.append((b"x-spendgate-call-id", call_id.encode()))
    await send_whole_answer(send, problem.status, headers, problem.openai())


async def send_whole_answer(send: Send, status: int, headers: Headers, body: bytes) -> None:
    """Answer in one piece."""
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _send_answer(send: Send, call: Call, answer: Answer) -> None:
    """Replay a booked answer: no provider is called and nothing is billed."""
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
    headers += [(b"x-request-id", call.request_id.encode()), (b"idempotent-replayed", b"true")]
    await send_whole_answer(send, answer.status_code, headers, answer.body)
