"""Auth: members sign in with a password, and see to their sessions and their password.

Owns the bodies and documents of it, the turn that each try takes, and the audit events of what is
changed. Owns no SQL (see `store.sign_in`), no limit of tries and no end of a session (see
`core.sign_in`), and no password for longer than one request.

Invariants:

- Nobody is told whether there is a member with some address: not by words, and not by the time it
  takes.
- A try that may not be made is refused before anything is compared; one that failed counts on
  every replica, whatever was tried beside it.
- Signing in makes a new session, whatever cookie came along, and ends the one of that cookie.
- Whoever changes their password ends all of their sessions but the one they do it in, and whatever
  else they could choose a password by.
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import Any, Final, TypeVar

import msgspec
from litestar import Request, Response, Router, delete, get, post
from litestar.datastructures import Cookie
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, FromQuery, JSONBody
from prometheus_client import Counter

from app.control import browser, passwords, wire
from app.control.desk import Change, ControlDeps, Desk, Gate
from app.control.errors import Refused, documented, invalid, taken, unknown
from app.control.wire import Document, Input, Page
from app.core.access import Role
from app.core.faults import Fault
from app.core.sign_in import (
    FAILURES_WITHIN,
    SESSION_IDLE,
    SESSION_LIFE,
    locked_until,
    session_end,
)
from app.store import invitations, sign_in
from app.store.database import Connection
from app.store.vault import new_session_token

T = TypeVar("T")

FAILURES: Final = Counter("spendgate_sign_in_failures", "Tries to sign in that failed")


class LoginInput(Input):
    """Who signs in."""

    email: str
    password: str


class PasswordInput(Input):
    """One's password, and the one to have instead."""

    current_password: str
    new_password: str


class SignedInMember(msgspec.Struct, frozen=True):
    """Whose session it is."""

    id: str
    email: str
    display_name: str
    role: Role


class SignIn(msgspec.Struct, frozen=True):
    """A session: `csrf_token` belongs into the header `X-CSRF-Token` of everything that changes
    something, and `expires_at` is when it ends if nothing more is done in it.

    Who `must_change_password` can do just that, and sign out.
    """

    member: SignedInMember
    csrf_token: str
    expires_at: datetime
    must_change_password: bool


class OwnSession(msgspec.Struct, frozen=True):
    """One of one's own sessions; `current` is the one that asks."""

    id: str
    user_agent: str
    address: str
    created_at: datetime
    last_seen_at: datetime
    expires_at: datetime
    current: bool


class Entrance:
    """Where whoever has a password, or another secret, has it compared and is let in."""

    def __init__(self, deps: ControlDeps, request: Request[Any, Any, Any]) -> None:
        self.deps = deps
        self.request = request
        self.at = deps.clock()
        self.address = browser.client_address(request, deps.trusted_proxies)

    async def find(
        self, secret: str, look: Callable[[Connection, bytes], Awaitable[T | None]]
    ) -> T | None:
        """Return what a secret's digest leads to; if it is nothing, that was a guess.

        Refuses an address that has guessed too often, whatever it has now. A secret has no account
        that could be locked: it is its address alone that counts.
        """
        digest = self.deps.vault.digest(secret)
        block = browser.block_of(self.address)
        since = self.at - FAILURES_WITHIN
        async with self.deps.sign_ins, self.deps.database.aside() as connection:
            await sign_in.take_turn(connection, digest, block)
            _, of_address = await sign_in.failures(connection, digest, block, since)
            until = locked_until((), of_address, self.at)
            if until is not None:
                raise _locked(until, self.at)
            found = await look(connection, digest)
            if found is None:
                await sign_in.add_failure(connection, digest, block, at=self.at, since=since)
        if found is None:
            FAILURES.inc()
        return found

    async def prove(self, account: str, hash: str | None, password: str) -> bool:
        """Tell whether a password is an account's. Refuses if too many were not."""
        digest = self.deps.vault.digest(f"account {account}")
        block = browser.block_of(self.address)
        since = self.at - FAILURES_WITHIN
        # Each holds a connection meanwhile, and others need some as well.
        async with self.deps.sign_ins, self.deps.database.aside() as connection:
            await sign_in.take_turn(connection, digest, block)
            failed = await sign_in.failures(connection, digest, block, since)
            until = locked_until(*failed, self.at)
            if until is not None:
                raise _locked(until, self.at)
            if len(password) <= wire.PASSWORD_LENGTH_MAX and await passwords.fits(hash, password):
                await sign_in.forgive(connection, digest)
                return True
            await sign_in.add_failure(connection, digest, block, at=self.at, since=since)
        FAILURES.inc()
        return False

    async def begin(
        self,
        connection: Connection,
        member: sign_in.Member,
        *,
        rehashed: str | None = None,
        with_password: bool = True,
    ) -> "Begun | None":
        """Begin a session in place of the one that the browser is in.

        None: the member was disabled, or has another password by now.
        """
        deps, token, former = self.deps, new_session_token(), browser.session_token(self.request)
        # The member first, then their sessions: as whoever disables them does.
        session = await sign_in.begin(
            connection,
            member,
            rehashed=rehashed,
            digest=deps.vault.digest(token),
            user_agent=browser.user_agent(self.request),
            address=self.address,
            at=self.at,
            expires_at=self.at + SESSION_LIFE,
            with_password=with_password,
        )
        if session is None:
            return None
        if former is not None:
            left = await sign_in.session_with(connection, deps.vault.digest(former))
            if left is not None:
                await sign_in.revoke(connection, left.id, left.member_id, self.at)
        return Begun(
            token,
            browser.session_cookie(self.request, token, SESSION_LIFE),
            session_end(session.expires_at, session.last_seen_at),
        )

    def enter(self, member: sign_in.Member, begun: "Begun") -> Response[SignIn]:
        """Answer with a session that has begun, and its cookie."""
        csrf_token = self.deps.vault.csrf_token(begun.token)
        return Document(
            _document(member, csrf_token, begun.ends_at, member.must_change_password),
            status_code=200,
            cookies=[begun.cookie],
        )


class Begun(msgspec.Struct, frozen=True):
    """A session that has just begun."""

    token: str
    cookie: Cookie
    ends_at: datetime


def _locked(until: datetime, at: datetime) -> Refused:
    seconds = ceil((until - at).total_seconds())
    shown = (at + timedelta(seconds=seconds)).astimezone(UTC).isoformat(timespec="seconds")
    return Refused(
        429,
        Fault(
            "too_many_tries",
            "Too many tries to sign in have failed. Try again at {at}, in {minutes} min.",
            at=shown.replace("+00:00", "Z"),
            minutes=ceil(seconds / 60),
        ),
        headers={"Retry-After": str(seconds)},
    )


def _document(
    member: sign_in.Member, csrf_token: str, expires_at: datetime, must_change_password: bool
) -> SignIn:
    return SignIn(
        SignedInMember(member.id, member.email, member.display_name, member.role),
        csrf_token,
        expires_at,
        must_change_password,
    )


def _wrong() -> Refused:
    return Refused(401, Fault("sign_in_wrong", "The address or the password is wrong."))


@post("/login", status_code=200, summary="Sign in with a password")
async def log_in(
    data: JSONBody[LoginInput], entrance: NamedDependency[Entrance]
) -> Response[SignIn]:
    """The session is in a cookie. Too many wrong passwords, and one has to wait (429)."""
    deps = entrance.deps
    browser.check_origin(entrance.request)
    email = wire.email(data.email)
    async with deps.database.snapshot() as connection:
        member = await sign_in.member_by_email(connection, email)
    # By what the database takes for one address, or other spellings would be further tries.
    account = email.lower() if member is None else member.id
    hash = None if member is None else member.password_hash
    if not await entrance.prove(account, hash, data.password):
        raise _wrong()
    assert member is not None, "nobody's password fits"
    assert hash is not None, "nobody's password fits"
    if member.status != "active":
        raise Refused(403, Fault("member_disabled", "This member is disabled."))
    rehashed = await passwords.hashed(data.password) if passwords.is_dated(hash) else None
    async with deps.database.aside() as connection:
        begun = await entrance.begin(connection, member, rehashed=rehashed)
    if begun is None:
        raise _wrong()
    return entrance.enter(member, begun)


@get("/session", summary="Show the session, and its CSRF token")
async def show_session(desk: NamedDependency[Desk]) -> SignIn:
    async with desk.deps.database.snapshot() as connection:
        member = await sign_in.member(connection, desk.member_id)
    assert member is not None, "members are never deleted"
    here = desk.session
    return _document(member, here.csrf_token, here.ends_at, here.must_change_password)


@post("/logout", status_code=204, summary="Sign out")
async def log_out(
    desk: NamedDependency[Desk], entrance: NamedDependency[Entrance]
) -> Response[None]:
    async with desk.deps.database.aside() as connection:
        await sign_in.revoke(connection, desk.session.id, desk.member_id, desk.at)
    gone = browser.session_cookie(entrance.request, "", timedelta())
    return Response(None, status_code=204, cookies=[gone])


@post("/password", status_code=204, summary="Change one's own password")
async def change_password(
    data: JSONBody[PasswordInput],
    desk: NamedDependency[Desk],
    entrance: NamedDependency[Entrance],
) -> None:
    """All of one's other sessions end, and so does an invitation that is still open."""
    password = wire.password(data.new_password, "new_password")
    async with desk.deps.database.snapshot() as connection:
        member = await sign_in.member(connection, desk.member_id)
    assert member is not None, "members are never deleted"
    known = member.password_hash
    if known is None:
        raise taken(
            "current_password",
            "password_none",
            "does not exist: you have no password, and need none",
        )
    if not await entrance.prove(member.id, known, data.current_password):
        raise invalid("current_password", "password_wrong", "is wrong")
    if password == data.current_password:
        raise invalid("new_password", "password_same", "is the one you have: choose another one")
    hash = await passwords.hashed(password)

    async def work(change: Change) -> None:
        changed = await sign_in.change_password(
            change.connection, member.id, verified=known, password_hash=hash
        )
        if not changed:
            raise taken("current_password", "password_changed", "was changed at the same moment")
        await change.record(
            "member_password_updated",
            "member",
            member.id,
            before={"has_password": True},
            after={"has_password": True},
        )
        await end_sessions(change, member.id)
        await end_invitations(change, member.id)

    await desk.write(work)


async def end_sessions(
    change: Change, member_id: str, *, with_password: bool | None = None
) -> None:
    """End the sessions of a member, or those of one kind, but for the one in which it is done."""
    mine = change.desk.session_id
    ended = await sign_in.revoke_all(
        change.connection, member_id, change.at, but=mine, with_password=with_password
    )
    if ended:
        await change.record("sessions_revoked", "member", member_id, before={"sessions": ended})


async def end_invitations(change: Change, member_id: str, *, but: str | None = None) -> None:
    """Revoke what a member could still choose a password by, but for one invitation."""
    for id in await invitations.revoke_open(change.connection, member_id, change.at, but=but):
        await change.record(
            "invitation_revoked",
            "invitation",
            id,
            before={"revoked_at": None},
            after={"revoked_at": change.at},
        )


@get("/sessions", summary="List one's own sessions that go on, newest first")
async def list_sessions(
    desk: NamedDependency[Desk],
    cursor: FromQuery[str | None] = None,
    limit: FromQuery[int] = wire.PAGE_DEFAULT,
) -> Page[OwnSession]:
    below = wire.after(cursor)
    async with desk.deps.database.snapshot() as connection:
        sessions = await sign_in.sessions_of(
            connection,
            desk.member_id,
            at=desk.at,
            seen_since=desk.at - SESSION_IDLE,
            below=below,
            limit=wire.page_limit(limit) + 1,
        )
    shown = [
        OwnSession(
            session.id,
            session.user_agent,
            session.address,
            session.created_at,
            session.last_seen_at,
            session_end(session.expires_at, session.last_seen_at),
            session.id == desk.session.id,
        )
        for session in sessions
    ]
    return wire.paged(shown, limit, lambda session: session.id)


@delete("/sessions/{id:str}", summary="End one of one's own sessions")
async def revoke_session(id: FromPath[str], desk: NamedDependency[Desk]) -> None:
    session_id = wire.path_id(id, "session")

    async def work(change: Change) -> None:
        revoked = await sign_in.revoke(change.connection, session_id, desk.member_id, change.at)
        if not revoked:
            raise unknown("session")
        await change.record("session_revoked", "session", session_id)

    await desk.write(work)


def entrance_for(
    deps: ControlDeps,
) -> Callable[[Request[Any, Any, Any]], Awaitable[Entrance]]:
    """Make the dependency that handlers take as `entrance`."""

    async def entrance(request: Request[Any, Any, Any]) -> Entrance:
        return Entrance(deps, request)

    return entrance


def auth_router(gate: Gate) -> Router:
    """Make the router of signing in."""
    tries = documented(
        [log_in, change_password], and_also={429: "Too many tries have failed: wait"}
    )
    inside = documented([show_session, log_out, list_sessions, revoke_session])
    return Router(
        "/auth",
        route_handlers=[
            tries[0],
            Router(
                "/",
                route_handlers=[*inside, tries[1]],
                guards=[gate.session],
                security=[{"session": []}],
            ),
        ],
        dependencies={"entrance": Provide(entrance_for(gate.deps))},
        tags=["Auth"],
    )
