"""OpenID Connect: members sign in with an identity provider, and are told how they sign in.

Owns the way to the provider and back (state, nonce, PKCE, the cookie that holds them together), the
audit events of who is linked and registered, and the documents of identities. Owns no token of the
provider's (see `app.identity_provider`), no decision of who somebody is (see `core.identities`), no
session (see `auth`) and no SQL.

A way begins with a value in a cookie: random, and bound to when it began and where it leads. State,
nonce and verifier are digests of it under the installation's secret, so that no row is needed to
know them again, on any replica.

Invariants:

- Only the browser that was sent to the provider comes back from it, within minutes, once; and with
  the state goes where it is led in the end, which is a page of ours.
- The provider is asked while nothing of the database is held.
- Coming back makes a new session, as a password does, and ends the one that the browser is in.
- Whatever goes wrong on the way, one comes back to the sign-in with a code from a closed list and
  the request's id; nothing that the provider wrote is shown, and only errors by name are logged.
"""

import base64
import binascii
import hmac
import re
import secrets
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Annotated, Any, Final, assert_never
from urllib.parse import urlencode

import msgspec
import structlog
from litestar import Request, Response, Router, delete, get
from litestar.datastructures import Cookie
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, FromQuery, QueryParameter
from prometheus_client import Counter

from app.control import browser, wire
from app.control.auth import Entrance, end_sessions, entrance_for
from app.control.desk import Change, ControlDeps, Desk, Gate
from app.control.errors import Refused, documented, request_id_of, unknown
from app.core.faults import Fault
from app.core.identities import (
    SIGN_IN_LIFE,
    Enter,
    Link,
    Person,
    Refuse,
    Register,
    SignInRefusal,
    decide,
    own_page,
    person,
    untrue,
)
from app.identity_provider import IdentityProvider, Unproven, Unreachable, error_named
from app.ids import uuid7
from app.store import catalogue, identities, journal, sign_in
from app.store.database import Conflict, Connection, DatabaseUnavailable
from app.store.identities import IdentityRecord
from app.store.vault import Vault

log = structlog.get_logger(__name__)

REFUSED: Final = Counter(
    "spendgate_oidc_refusals", "People who came from the identity provider in vain", ["why"]
)

CALLBACK: Final = "/api/auth/oidc/callback"
CODE_LENGTH_MAX: Final = 4096


class IdentityProviderDocument(msgspec.Struct, frozen=True):
    """Whether members can sign in with an identity provider, and what it is called; else null."""

    name: str | None


class IdentityDocument(msgspec.Struct, frozen=True):
    """Who a member is to an identity provider, which is called `name`."""

    id: str
    name: str
    issuer: str
    subject: str
    created_at: datetime


class Ways(msgspec.Struct, frozen=True):
    """How one signs in."""

    has_password: bool
    identities: list[IdentityDocument]


class Way(msgspec.Struct, frozen=True):
    """One way to the provider and back: what the cookie holds, and what is in that."""

    value: str
    began_at: datetime
    page: str

    @classmethod
    def new(cls, at: datetime, page: str) -> "Way":
        """Begin a way that leads to a page."""
        shown = base64.urlsafe_b64encode(page.encode()).decode().rstrip("=")
        seconds = int(at.timestamp())
        value = f"{secrets.token_urlsafe(32)}.{seconds}.{shown}"
        return cls(value, datetime.fromtimestamp(seconds, UTC), page)

    @classmethod
    def read(cls, value: str | None) -> "Way | None":
        """Read what a cookie holds; that it is ours, its state proves."""
        match = re.fullmatch(r"[\w-]{43}\.(\d{1,11})\.([\w-]+)", value or "", re.ASCII)
        if value is None or match is None:
            return None
        try:
            shown = base64.urlsafe_b64decode(match[2] + "=" * (-len(match[2]) % 4)).decode()
        except (binascii.Error, UnicodeDecodeError):
            return None
        return cls(value, datetime.fromtimestamp(int(match[1]), UTC), own_page(shown))

    def state(self, vault: Vault) -> str:
        """Return what comes back from the provider."""
        return vault.digest(f"oidc state {self.value}").hex()

    def nonce(self, vault: Vault) -> str:
        """Return what comes back in the token."""
        return vault.digest(f"oidc nonce {self.value}").hex()

    def verifier(self, vault: Vault) -> str:
        """Return what only whoever began can redeem the code with (PKCE)."""
        return vault.digest(f"oidc verifier {self.value}").hex()

    def challenge(self, vault: Vault) -> str:
        """Return what the provider knows it by."""
        digest = sha256(self.verifier(vault).encode()).digest()
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")


class NotLetIn(Exception):
    """Somebody is not let in. The cause is safe to log."""

    def __init__(self, why: SignInRefusal, cause: str) -> None:
        super().__init__(cause)
        self.why: SignInRefusal = why


# There and back


@get("", summary="Tell whether one can sign in with an identity provider")
async def show_provider(entrance: NamedDependency[Entrance]) -> IdentityProviderDocument:
    provider = entrance.deps.identity_provider
    return IdentityProviderDocument(None if provider is None else provider.name)


@get("/login", status_code=303, summary="Go to the identity provider to sign in")
async def leave(
    entrance: NamedDependency[Entrance],
    wanted: Annotated[
        str | None, QueryParameter(name="next", description="The page to be led to in the end.")
    ] = None,
) -> Response[bytes]:
    """Leads to the provider, or back to the page with why not."""
    provider, vault = _provider(entrance.deps), entrance.deps.vault
    way = Way.new(entrance.at, own_page(wanted))
    try:
        address = await provider.address(
            _redirect_uri(entrance.request),
            state=way.state(vault),
            nonce=way.nonce(vault),
            challenge=way.challenge(vault),
        )
    except Unreachable as error:
        return _back(entrance.request, way.page, NotLetIn("unreachable", str(error)))
    return _led(address, browser.flow_cookie(entrance.request, way.value, SIGN_IN_LIFE))


@get("/callback", status_code=303, summary="Come back from the identity provider")
async def come_back(
    entrance: NamedDependency[Entrance],
    given_state: Annotated[str | None, QueryParameter(name="state")] = None,
    code: FromQuery[str | None] = None,
    error: FromQuery[str | None] = None,
    iss: FromQuery[str | None] = None,
) -> Response[bytes]:
    """Leads to the page that one wanted: in a session, or with why there is none."""
    deps, request = entrance.deps, entrance.request
    provider = _provider(deps)
    way = Way.read(browser.flow_token(request))
    state = "" if way is None else way.state(deps.vault)
    if way is None or not hmac.compare_digest(
        (given_state or "").encode("utf-8", "replace"), state.encode()
    ):
        # Another way of this browser's may still go on: its cookie stays.
        return _back(request, "/", NotLetIn("expired", "the state is not this browser's"))
    gone = browser.flow_cookie(request, "", timedelta())
    try:
        await _use(entrance, way, state)
        if code is None or error is not None:
            raise NotLetIn("declined", f"the provider gave no code: {error_named(error)}")
        cookie = await _enter(entrance, provider, way, code, iss)
    except NotLetIn as refused:
        return _back(request, way.page, refused, gone)
    except (Conflict, DatabaseUnavailable) as failed:
        return _back(request, way.page, NotLetIn("again", type(failed).__name__), gone)
    return _led(way.page, gone, cookie)


async def _use(entrance: Entrance, way: Way, state: str) -> None:
    """See to it that a way is come back on once, and in time."""
    deps, at = entrance.deps, entrance.at
    if at - way.began_at > SIGN_IN_LIFE:
        raise NotLetIn("expired", "it took too long")
    digest = deps.vault.digest(state)
    # What is forgotten has run out as well, whatever differs between the clocks of replicas.
    over = at - 2 * SIGN_IN_LIFE
    async with deps.database.aside() as connection:
        first = await identities.use_state(connection, digest, at=at, over=over)
    if not first:
        raise NotLetIn("expired", "the state was used before")


async def _enter(
    entrance: Entrance, provider: IdentityProvider, way: Way, code: str, issuer: str | None
) -> Cookie:
    """Find out who comes back, and begin their session; return its cookie."""
    deps = entrance.deps

    def wrong(claims: dict[str, Any]) -> str | None:
        nonce = way.nonce(deps.vault)
        return untrue(
            claims,
            issuer=provider.issuer,
            client_id=provider.client_id,
            nonce=nonce,
            at=entrance.at,
        )

    try:
        claims = await provider.redeem(
            code[:CODE_LENGTH_MAX],
            issuer=issuer,
            verifier=way.verifier(deps.vault),
            redirect_uri=_redirect_uri(entrance.request),
            wrong=wrong,
        )
    except Unreachable as error:
        raise NotLetIn("unreachable", str(error)) from None
    except Unproven as error:
        raise NotLetIn("unproven", str(error)) from None
    member_id = await _member_of(entrance, person(provider.issuer, claims))
    async with deps.database.aside() as connection:
        member = await sign_in.member(connection, member_id)
        assert member is not None, "members are never deleted"
        begun = await entrance.begin(connection, member, with_password=False)
    if begun is None:
        raise NotLetIn("again", "the member was changed meanwhile")
    return begun.cookie


async def _member_of(entrance: Entrance, one: Person) -> str:
    """Return which member somebody is; whoever becomes one, or is linked, is so from then on."""
    deps, rules = entrance.deps, entrance.deps.identity_rules

    async def decided(connection: Connection) -> Enter | Link | Register:
        holder = await identities.holder(connection, one.issuer, one.subject)
        namesake = None
        if holder is None and one.email is not None:
            namesake = await identities.namesake(connection, one.issuer, one.email)
        decision = decide(
            one, holder=holder, namesake=namesake, domains=rules.domains, links=rules.links
        )
        if isinstance(decision, Refuse):
            raise NotLetIn(decision.why, "the rules let nobody in who is not known")
        return decision

    async def work(connection: Connection) -> str:
        # Once more: somebody else may just have come.
        decision = await decided(connection)
        match decision:
            case Enter():
                pass
            case Link():
                await _link(entrance, connection, one, decision.member_id)
            case Register():
                return await _register(entrance, connection, one, decision.email)
            case _:
                assert_never(decision)
        return decision.member_id

    async with deps.database.snapshot() as connection:
        decision = await decided(connection)
    if isinstance(decision, Enter):
        return decision.member_id
    return await deps.database.transaction(work)


async def _register(entrance: Entrance, connection: Connection, one: Person, email: str) -> str:
    id = uuid7()
    await catalogue.members.add(
        connection, id=id, email=email, display_name=one.name, role="member"
    )
    added = await catalogue.members.find(connection, id)
    author = journal.Author(email, id, request_id_of(entrance.request.scope))
    await journal.record(
        connection, author, "member_registered", "member", id, at=entrance.at, after=added
    )
    await _link(entrance, connection, one, id, nth=1)
    return id


async def _link(
    entrance: Entrance, connection: Connection, one: Person, member_id: str, *, nth: int = 0
) -> None:
    identity = IdentityRecord(uuid7(), member_id, one.issuer, one.subject, entrance.at)
    await identities.add(connection, identity)
    author = journal.Author(one.email or "", member_id, request_id_of(entrance.request.scope))
    await journal.record(
        connection,
        author,
        "identity_linked",
        "member",
        member_id,
        at=entrance.at,
        nth=nth,
        after={"issuer": one.issuer, "subject": one.subject, "email": one.email},
    )


def _provider(deps: ControlDeps) -> IdentityProvider:
    if deps.identity_provider is None:
        raise Refused(
            404,
            Fault(
                "no_identity_provider", "No identity provider is set up (SPENDGATE_OIDC_ISSUER)."
            ),
        )
    return deps.identity_provider


def _redirect_uri(request: Request[Any, Any, Any]) -> str:
    return browser.base_url(request) + CALLBACK


def _led(address: str, *cookies: Cookie) -> Response[bytes]:
    # Where one comes from has a code in it, or a state.
    headers = {"location": address, "referrer-policy": "no-referrer"}
    return Response(b"", status_code=303, media_type="text/plain", headers=headers, cookies=cookies)


def _back(
    request: Request[Any, Any, Any], page: str, refused: NotLetIn, *cookies: Cookie
) -> Response[bytes]:
    """Lead back to a page; whoever has no session sees the sign-in there, and why."""
    request_id = request_id_of(request.scope)
    log.warning("oidc_refused", why=refused.why, cause=str(refused), request_id=request_id)
    REFUSED.labels(refused.why).inc()
    # Behind the `#`: nobody but the page is told.
    said = urlencode({"sign-in": refused.why, "request-id": request_id})
    return _led(f"{page}#{said}", *cookies)


# How one signs in


@get("/ways", summary="Show how one signs in")
async def list_ways(desk: NamedDependency[Desk]) -> Ways:
    async with desk.deps.database.snapshot() as connection:
        member = await sign_in.member(connection, desk.member_id)
        found = await identities.of_member(connection, desk.member_id)
    assert member is not None, "members are never deleted"
    return Ways(member.password_hash is not None, [_shown(desk, one) for one in found])


@get("/members/{id:str}/identities", summary="List who a member is to identity providers")
async def list_identities(
    id: FromPath[str], desk: NamedDependency[Desk]
) -> wire.Page[IdentityDocument]:
    member_id = wire.path_id(id, "member")
    async with desk.deps.database.snapshot() as connection:
        member = await catalogue.members.find(connection, member_id)
        found = await identities.of_member(connection, member_id)
    if member is None:
        raise unknown("member")
    return wire.Page([_shown(desk, one) for one in found], None)


@delete(
    "/members/{id:str}/identities/{identity_id:str}",
    summary="Take from a member who they are to an identity provider",
)
async def remove_identity(
    id: FromPath[str], identity_id: FromPath[str], desk: NamedDependency[Desk]
) -> None:
    """Sessions that began there end. With the next sign-in there they may be linked again."""
    member_id = wire.path_id(id, "member")
    identity_id = wire.path_id(identity_id, "identity")

    async def work(change: Change) -> None:
        removed = await identities.remove(change.connection, identity_id, member_id)
        if removed is None:
            raise unknown("identity")
        before = {"issuer": removed.issuer, "subject": removed.subject}
        await change.record("identity_unlinked", "member", member_id, before=before)
        await end_sessions(change, member_id, with_password=False)

    await desk.write(work)


def _shown(desk: Desk, one: IdentityRecord) -> IdentityDocument:
    provider = desk.deps.identity_provider
    ours = provider is not None and provider.issuer == one.issuer
    name = provider.name if provider is not None and ours else one.issuer
    return IdentityDocument(one.id, name, one.issuer, one.subject, one.created_at)


def oidc_router(gate: Gate) -> Router:
    """Make the router of signing in with an identity provider."""
    outside = documented([show_provider, leave, come_back])
    return Router(
        "/auth",
        route_handlers=[
            Router("/oidc", route_handlers=outside),
            Router(
                "/",
                route_handlers=documented([list_ways]),
                guards=[gate.session],
                security=[{"session": []}],
            ),
        ],
        dependencies={"entrance": Provide(entrance_for(gate.deps))},
        tags=["Auth"],
    )


def identity_router() -> Router:
    """Make the router of what admins see and take away of it."""
    handlers = documented([list_identities, remove_identity])
    return Router("/", route_handlers=handlers, tags=["Members"])
