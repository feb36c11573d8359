"""Acceptance: whoever has the link of an invitation chooses a password, and is signed in.

Owns the bodies and documents of it, and what is done with a link. Owns no SQL, not the making of
links (see `invitations`), and no session for longer than one request (see `auth`).

Invariants:

- A secret comes in a body, never in an address: addresses are logged.
- A link is spent once, whoever else has it and whenever they come: which of two is the first,
  the order of control writes says.
- Links that are nobody's, spent, over or revoked are refused alike. The first are guesses, and
  count like wrong passwords.
- Whoever accepts begins a session of their own, and every other one of that member ends.
"""

from datetime import datetime

import msgspec
from litestar import Response, Router, post
from litestar.di import NamedDependency, Provide
from litestar.params import JSONBody
from msgspec import UNSET, UnsetType

from app.control import browser, passwords, wire
from app.control.auth import Begun, Entrance, SignIn, end_sessions, entrance_for
from app.control.desk import Actor, Change, ControlDeps, Desk
from app.control.errors import Refused, documented
from app.control.wire import Input
from app.core.access import Role
from app.core.faults import Fault
from app.core.invitations import Purpose
from app.store import catalogue, sign_in
from app.store.invitations import InvitationRecord, invitations, with_digest


class InvitationToken(Input):
    """The secret of a link: what comes after its `#`."""

    token: str


class AcceptanceInput(Input):
    """The secret of a link, the password to have, and by what name one goes."""

    token: str
    password: str
    display_name: str | UnsetType = UNSET


class OpenInvitation(msgspec.Struct, frozen=True):
    """What a link is for: who is to `join`, or to choose another password (`reset`)."""

    email: str
    display_name: str
    role: Role
    purpose: Purpose
    invited_by: str | None
    """The address of an admin; null if they used an admin token."""
    expires_at: datetime


@post("/invitation", status_code=200, summary="Show whose invitation a link is")
async def show_invitation(
    data: JSONBody[InvitationToken], entrance: NamedDependency[Entrance]
) -> OpenInvitation:
    """Nothing is changed. Too many links that are none, and one has to wait (429)."""
    browser.check_origin(entrance.request)
    known = await _found(entrance, data.token)
    return OpenInvitation(
        known.email,
        known.display_name,
        known.role,
        known.purpose,
        known.invited_by,
        known.expires_at,
    )


@post("/invitation/accept", status_code=200, summary="Choose a password by a link, and sign in")
async def accept_invitation(
    data: JSONBody[AcceptanceInput], entrance: NamedDependency[Entrance]
) -> Response[SignIn]:
    """The session is in a cookie. The link is spent, and all other sessions of the member end.

    Without `display_name` one's name stays as it is.
    """
    deps, request = entrance.deps, entrance.request
    browser.check_origin(request)
    password = wire.password(data.password)
    name = data.display_name
    if name is not UNSET:
        name = wire.text("display_name", name, least=0)
    known = await _found(entrance, data.token)
    async with deps.sign_ins:
        hash = await passwords.hashed(password)
    digest = deps.vault.digest(data.token)
    # Whoever holds the link acts for the member, in this and in nothing else.
    request.scope["user"] = Actor(
        "invitation", known.member_id, known.email, known.role, known.member_id
    )

    async def work(change: Change) -> tuple[sign_in.Member, Begun]:
        # It may have been spent, revoked or replaced since it was looked at.
        _usable(await with_digest(change.connection, digest), change.at)
        await _choose(change, known.member_id, hash, name)
        await invitations.change(change.connection, known.id, {"accepted_at": change.at})
        await change.record(
            "invitation_accepted",
            "invitation",
            known.id,
            before={"accepted_at": None},
            after={"accepted_at": change.at},
        )
        await end_sessions(change, known.member_id)
        # Whoever was locked out by wrong passwords has a right one now.
        account = deps.vault.digest(f"account {known.member_id}")
        await sign_in.forgive(change.connection, account)
        member = await sign_in.member(change.connection, known.member_id)
        assert member is not None, "members are never deleted"
        begun = await entrance.begin(change.connection, member)
        if begun is None:
            raise Refused(403, Fault("member_disabled", "This member is disabled."))
        return member, begun

    return entrance.enter(*await Desk(deps, request).write(work))


async def _choose(change: Change, member_id: str, hash: str, name: str | UnsetType) -> None:
    """Give a member the password they chose, and the name."""
    former = await catalogue.members.find(change.connection, member_id)
    assert former is not None, "members are never deleted"
    await catalogue.members.change(
        change.connection, member_id, {"password_hash": hash, "must_change_password": False}
    )
    await change.record(
        "member_password_updated",
        "member",
        member_id,
        before={"has_password": former.has_password},
        after={"has_password": True},
    )
    if name is not UNSET and name != former.display_name:
        await catalogue.members.change(change.connection, member_id, {"display_name": name})
        await change.record(
            "member_updated",
            "member",
            member_id,
            before={"display_name": former.display_name},
            after={"display_name": name},
        )


async def _found(entrance: Entrance, token: str) -> InvitationRecord:
    """Return the invitation of a link that can be used. Refuses any other link."""
    return _usable(await entrance.find(token, with_digest), entrance.at)


def _usable(known: InvitationRecord | None, at: datetime) -> InvitationRecord:
    """Refuse what is nobody's, or not good for anything any more."""
    if known is None or known.status_at(at) != "pending":
        raise Refused(
            410,
            Fault(
                "link_unusable",
                "This link cannot be used: it is not complete, or was used, revoked or replaced, "
                "or its time is over. Ask an administrator for a new one; if you have chosen a "
                "password with it, sign in.",
            ),
        )
    return known


def acceptance_router(deps: ControlDeps) -> Router:
    """Make the router of those who come with a link."""
    handlers = documented(
        [show_invitation, accept_invitation],
        and_also={
            410: "The link cannot be used (any more)",
            429: "Too many tries have failed: wait",
        },
    )
    return Router(
        "/auth",
        route_handlers=handlers,
        dependencies={"entrance": Provide(entrance_for(deps))},
        tags=["Auth"],
    )
