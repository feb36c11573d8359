"""The desk: who asks, and what a handler works with while it serves them.

Owns how a request becomes an actor, which actor may enter where, and the one way of changing
something: a transaction in which each change leaves its audit event. Owns no SQL, and nothing of
what is changed.

Invariants:

- No handler runs for someone who is not let in: `/api/admin/*` takes admins (and, to read,
  auditors), `/api/me/*` takes members, and a member's key only reads there.
- What a session changes is asked for by our own page: a cookie alone changes nothing.
- Whoever has to change their password, and came in with it, does that first.
- Whatever way someone came in, the handlers see an `Actor` and nothing else. A further way is a
  further function in `Gate.ways`.
- A change that an `If-Match` forbids is not made.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Any, Final, Literal, TypeVar

import msgspec
from litestar import Request
from litestar.enums import ScopeType
from litestar.handlers.base import BaseRouteHandler
from litestar.middleware import ASGIMiddleware
from litestar.params import QueryParameter
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from app.control import browser
from app.control.browser import AnyConnection
from app.control.errors import Refused, request_id_of
from app.core.access import Provider, Role, key_refusal
from app.core.faults import Fault
from app.core.looks import Look
from app.core.sign_in import session_end
from app.core.windows import Calendar
from app.identity_provider import IdentityProvider
from app.mail import Mailer
from app.receivers import Receivers
from app.settings import Network
from app.store import catalogue, journal, sign_in
from app.store.database import Connection, Database
from app.store.directory import Directory
from app.store.live import Live
from app.store.vault import ADMIN_TOKEN_PREFIX, Vault

T = TypeVar("T")

SIGN_INS_AT_ONCE: Final = 4
"""Each takes 64 MiB, a core, and a connection to the database."""

SEEN_EVERY: Final = timedelta(minutes=1)
"""How often it is written down that a session is in use."""


class LedgerHealth(msgspec.Struct, frozen=True):
    """How the ledger of this process is doing."""

    available: bool
    """Whether its last contact with the database went well."""
    spooled_settlements: int
    """Those that wait on the disk of this process for the database."""


class IdentityRules(msgspec.Struct, frozen=True):
    """Whom an identity provider brings in whom it has not brought before."""

    domains: tuple[str, ...] = ()
    """Whose addresses make a member."""
    links: bool = True
    """Whether members are known by their address."""


@dataclass(frozen=True)
class ControlDeps:
    """What the control plane is given."""

    database: Database
    vault: Vault
    calendar: Calendar
    directory: Directory
    clock: Callable[[], datetime]
    live: Live
    ledger: Callable[[], LedgerHealth]
    look: Callable[[Provider, float], Awaitable[Look]]
    """Asks a provider, within so many seconds, which models it has."""
    receivers: Receivers = field(default_factory=Receivers)
    mailer: Mailer | None = None
    """Hands letters in at the mail server; None: there is none, and nothing can be mailed."""
    trusted_proxies: tuple[Network, ...] = ()
    """Whose word on the address of a client is taken."""
    identity_provider: IdentityProvider | None = None
    """Whom members may sign in with, beside their passwords."""
    identity_rules: IdentityRules = field(default_factory=IdentityRules)
    sign_ins: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(SIGN_INS_AT_ONCE))


class Actor(msgspec.Struct, frozen=True):
    """Who asks."""

    kind: Literal["admin_token", "key", "session", "invitation"]
    id: str
    """Of the token, of the key, or of the member who signed in or was invited."""
    label: str
    """As the audit log names them."""
    role: Role
    member_id: str | None
    """None for an admin token, which belongs to nobody."""


class Session(msgspec.Struct, frozen=True):
    """What a member came in with: one who has to change their password does that first."""

    id: str
    csrf_token: str
    ends_at: datetime
    must_change_password: bool


class Gate:
    """Turns a request into an actor, and lets them in or not."""

    def __init__(self, deps: ControlDeps) -> None:
        self.deps = deps
        self.ways: tuple[Callable[[AnyConnection], Awaitable[Actor | None]], ...] = (
            self._by_admin_token,
            self._by_key,
            self._by_session,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> "Gate":
        """Litestar copies the routers that it nests; there is still one gate."""
        return self

    async def admin(self, connection: AnyConnection, _: BaseRouteHandler) -> None:
        """Let admins in, and auditors who only look."""
        actor = await self._identify(connection)
        looks = _only_looks(connection)
        if actor.role != "admin" and not (actor.role == "auditor" and looks):
            raise Refused(
                403, Fault("needs_admin", "This needs an administrator, or an admin token.")
            )
        connection.scope["user"] = actor

    async def me(self, connection: AnyConnection, _: BaseRouteHandler) -> None:
        """Let members in to what is theirs."""
        actor = await self._identify(connection)
        if actor.member_id is None:
            raise Refused(
                403,
                Fault(
                    "needs_member",
                    "An admin token belongs to no member; use a member's own key.",
                ),
            )
        if actor.kind == "key" and not _only_looks(connection):
            raise Refused(
                403, Fault("key_reads", "A key only reads here; sign in to change something.")
            )
        connection.scope["user"] = actor

    async def session(self, connection: AnyConnection, _: BaseRouteHandler) -> None:
        """Let in who has signed in, to what is about that."""
        actor = await self._identify(connection, changing_password=True)
        if actor.kind != "session":
            raise Refused(403, Fault("needs_session", "This is for members who have signed in."))
        connection.scope["user"] = actor

    async def live(self, connection: AnyConnection, _: BaseRouteHandler) -> None:
        """Let in who hears of changes: whoever has signed in, or has an admin token."""
        # Nothing is changed, but what is read goes on being read.
        browser.check_origin(connection)
        actor = await self._identify(connection)
        if actor.kind == "key":
            raise Refused(
                403, Fault("key_hears", "A key hears nothing; sign in to hear of what changes.")
            )
        connection.scope["user"] = actor

    async def _identify(
        self, connection: AnyConnection, *, changing_password: bool = False
    ) -> Actor:
        for way in self.ways:
            actor = await way(connection)
            if actor is None:
                continue
            session: Session | None = connection.scope.get("auth")
            if session is not None and session.must_change_password and not changing_password:
                raise Refused(
                    403,
                    Fault(
                        "must_change_password",
                        "Choose a password of your own first: `POST /api/auth/password`.",
                    ),
                )
            return actor
        raise Refused(
            401,
            Fault(
                "no_credential",
                "The credential is missing, unknown, expired or revoked. Sign in, or "
                "send `Authorization: Bearer` with an admin token or a member's key.",
            ),
            headers={"WWW-Authenticate": "Bearer"},
        )

    async def _by_admin_token(self, connection: AnyConnection) -> Actor | None:
        bearer = _bearer(connection)
        if bearer is None or not bearer.startswith(ADMIN_TOKEN_PREFIX):
            return None
        digest = self.deps.vault.digest(bearer)
        async with self.deps.database.snapshot() as snapshot:
            token = await catalogue.admin_token(snapshot, digest)
        if token is None:
            return None
        return Actor("admin_token", token[0], f"admin token {token[1]}", "admin", None)

    async def _by_key(self, connection: AnyConnection) -> Actor | None:
        bearer = _bearer(connection)
        if bearer is None or bearer.startswith(ADMIN_TOKEN_PREFIX):
            return None
        directory = self.deps.directory
        # No ledger looks at a key that only reads: what may have ended it is asked for first.
        await directory.look_again()
        key = directory.keys_by_digest.get(self.deps.vault.digest(bearer))
        if key is None or key_refusal(key, self.deps.clock()) is not None:
            return None
        if key.one_shot:
            # That a key was used up is known to the database first.
            async with self.deps.database.snapshot() as snapshot:
                record = await catalogue.keys.find(snapshot, key.id)
            if record is None or record.used_at is not None:
                return None
        member = directory.members.get(key.member_id)
        if member is None or member.status != "active":
            raise Refused(403, Fault("member_disabled", "This member is disabled."))
        return Actor("key", key.id, f"key {key.id}", "member", key.member_id)

    async def _by_session(self, connection: AnyConnection) -> Actor | None:
        token = browser.session_token(connection)
        # A bearer that opens nothing is told so, whatever cookie comes with it.
        if token is None or _bearer(connection) is not None:
            return None
        deps, at = self.deps, self.deps.clock()
        digest = deps.vault.digest(token)
        async with deps.database.snapshot() as snapshot:
            session = await sign_in.session_with(snapshot, digest)
            if session is None or session.revoked_at is not None:
                return None
            member = await sign_in.member(snapshot, session.member_id)
        if session_end(session.expires_at, session.last_seen_at) <= at:
            return None
        if member is None or member.status != "active":
            return None
        csrf_token = deps.vault.csrf_token(token)
        if not _only_looks(connection):
            browser.check_origin(connection)
            browser.check_csrf(connection, csrf_token)
        seen_at = session.last_seen_at
        if at - seen_at >= SEEN_EVERY:
            seen_at = at
            async with deps.database.aside() as seen:
                await sign_in.see(seen, session.id, at)
        connection.scope["auth"] = Session(
            session.id,
            csrf_token,
            session_end(session.expires_at, seen_at),
            member.must_change_password and session.with_password,
        )
        return Actor("session", member.id, member.email, member.role, member.id)


def _bearer(connection: AnyConnection) -> str | None:
    scheme, _, bearer = connection.headers.get("authorization", "").partition(" ")
    return bearer.strip() or None if scheme.lower() == "bearer" else None


def _only_looks(connection: AnyConnection) -> bool:
    return connection.scope.get("method") in ("GET", "HEAD")


class Change:
    """One transaction of one actor: what it writes, and the events that tell of it."""

    def __init__(self, connection: Connection, desk: "Desk") -> None:
        self.connection = connection
        self.desk = desk
        self.at = desk.at
        self._events = 0

    async def record(
        self,
        event: str,
        object: str,
        object_id: str,
        *,
        before: Any = None,
        after: Any = None,
        reason: str | None = None,
    ) -> None:
        """Write an audit event."""
        await journal.record(
            self.connection,
            self.desk.author,
            event,
            object,
            object_id,
            at=self.at,
            nth=self._events,
            before=before,
            after=after,
            reason=reason,
        )
        self._events += 1

    def expect(self, record: msgspec.Struct) -> None:
        """Refuse to change a record that is not the one the client had in mind."""
        wanted = self.desk.if_match
        if wanted is None or wanted.strip() == "*":
            return
        if etag(record) not in (one.strip().removeprefix("W/") for one in wanted.split(",")):
            raise Refused(
                412,
                Fault("changed_since", "This has been changed since you read it: read it again."),
            )


class Desk:
    """What a handler works with for one request."""

    def __init__(self, deps: ControlDeps, request: Request[Any, Any, Any]) -> None:
        self.deps = deps
        self.actor: Actor = request.user
        self.at = deps.clock()
        self.if_match: str | None = request.headers.get("if-match")
        self.author = journal.Author(self.actor.label, self.actor.id, request_id_of(request.scope))
        self._scope = request.scope

    @property
    def member_id(self) -> str:
        """Whose rows `/api/me` is about."""
        assert self.actor.member_id is not None, "the gate lets only members in"
        return self.actor.member_id

    @property
    def session(self) -> Session:
        """The session that asks."""
        session: Session | None = self._scope.get("auth")
        assert session is not None, "the gate lets only sessions in"
        return session

    @property
    def session_id(self) -> str | None:
        """Which session asks; None: who asks has not signed in."""
        return None if self._scope.get("auth") is None else self.session.id

    async def write(self, work: Callable[[Change], Awaitable[T]]) -> T:
        """Run a change as one transaction; `work` may run twice."""
        return await self.deps.database.transaction(
            lambda connection: work(Change(connection, self))
        )

    def tag(self, record: msgspec.Struct) -> None:
        """Answer with the record's ETag, for the client's next `If-Match`."""
        self._scope["state"]["etag"] = etag(record)


def etag(record: msgspec.Struct) -> str:
    """Name this state of a record."""
    return f'"{blake2b(msgspec.json.encode(record), digest_size=8).hexdigest()}"'


def desk_for(deps: ControlDeps) -> Callable[[Request[Any, Any, Any]], Awaitable[Desk]]:
    """Make the dependency that handlers take as `desk`."""

    async def desk(request: Request[Any, Any, Any]) -> Desk:
        handler = request.route_handler
        needed = handler.resolve_dependencies()
        taken = handler.parsed_fn_signature.parameters
        signatures = [
            taken,
            *(needed[n].parsed_fn_signature.parameters for n in needed if n in taken),
        ]
        known = {
            definition.kwarg_definition.name or name
            for signature in signatures
            for name, definition in signature.items()
            if isinstance(definition.kwarg_definition, QueryParameter)
        }
        # A filter that is misspelt and ignored would show everything.
        for name in request.query_params:
            if name not in known:
                takes = ", ".join(sorted(known)) or "no parameters"
                raise Refused(
                    400,
                    Fault(
                        "unknown_parameter",
                        "Unknown parameter {name!r}; this takes {known}.",
                        name=name[:50],
                        known=takes,
                    ),
                )
        return Desk(deps, request)

    return desk


class Envelope(ASGIMiddleware):
    """Puts on every answer what is not in its body: request id, ETag, and that nobody keeps it."""

    scopes = (ScopeType.HTTP,)

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Serve one request."""
        request_id = request_id_of(scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                state: dict[str, Any] = scope["state"]
                added = {
                    b"x-request-id": request_id.encode(),
                    b"cache-control": b"no-store",
                    b"x-content-type-options": b"nosniff",
                }
                if "etag" in state and message["status"] < 300:
                    added[b"etag"] = state["etag"].encode()
                kept = [pair for pair in message["headers"] if pair[0].lower() not in added]
                message["headers"] = [*kept, *added.items()]
            await send(message)

        await next_app(scope, receive, send_with_headers)
