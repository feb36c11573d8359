"""Invitations: admins give members a link by which they choose a password.

One mechanism for two needs: whoever has no password yet joins by such a link, and whoever forgot
theirs chooses another one. Owns the bodies and documents of it, and the audit events. Owns no SQL
(see `store.invitations`), no status of a link (see `core.invitations`), and not what is done with
one (see `acceptance`).

Invariants:

- A link is in the answer that makes it, and in the letter of that moment; only its digest is kept.
  So the letter goes out at once, beside the outbox: what waits there is stored and shown.
- A member has one link at a time: the next one ends the one before.
- Whoever is disabled is given none.
"""

import asyncio
from typing import Any, Final

import msgspec
import structlog
from litestar import Request, Router, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody
from msgspec import UNSET, UnsetType

from app.control import browser, records, wire
from app.control.admin import create_member
from app.control.auth import end_invitations
from app.control.desk import Change, Desk
from app.control.errors import documented, taken
from app.control.wire import Input, Page
from app.core.access import Role
from app.core.invitations import (
    DAYS_DEFAULT,
    DAYS_MAX,
    InvitationStatus,
    expiry,
    may_renew,
    purpose_of,
    renewed_expiry,
)
from app.core.letters import invitation_letter
from app.ids import uuid7
from app.mail import SEND_S, Undelivered
from app.store import catalogue, invitations
from app.store.catalogue import MemberRecord
from app.store.invitations import InvitationRecord
from app.store.vault import new_invitation_token

log = structlog.get_logger(__name__)

PATH: Final = "/invitation"
"""The page of the dashboard that a link leads to. The secret comes after a `#`: browsers send that
to no server, and name it to no other page."""


class InvitationInput(Input):
    """Who is invited. Whoever is a member already stays as they are: the address is enough."""

    email: str
    display_name: str | UnsetType = UNSET
    role: Role | UnsetType = UNSET
    valid_days: int = DAYS_DEFAULT


class InvitationDocument(InvitationRecord, frozen=True, kw_only=True):
    """A link that a member was given, without the link; `status` is what it is worth now."""

    status: InvitationStatus


class InvitationWithLink(InvitationDocument, frozen=True, kw_only=True):
    """A link that was made just now. It is shown here, and never again.

    `mailed`: the mail server took it for the member's address; `mail_error` says why it did not,
    and is null as well if no mail server is set.
    """

    link: str
    mailed: bool
    mail_error: str | None


@post("/invitations", summary="Invite somebody, or let a member choose another password")
async def add_invitation(
    data: JSONBody[InvitationInput],
    request: Request[Any, Any, Any],
    desk: NamedDependency[Desk],
) -> InvitationWithLink:
    """Adds the member if there is none with this address. Their former link ends.

    To who has a password already the link is one to another password (`purpose` is `reset`); it
    ends their sessions when it is used.
    """
    id, member_id, token = uuid7(), uuid7(), new_invitation_token()
    base_url = browser.base_url(request)
    email = wire.email(data.email)
    name = data.display_name
    if name is not UNSET:
        name = wire.text("display_name", name, least=0)
    days = wire.whole("valid_days", data.valid_days, 1, DAYS_MAX)

    async def work(change: Change) -> InvitationRecord:
        known = await catalogue.member_with(change.connection, email)
        if known is None:
            member = await create_member(
                change,
                id=member_id,
                email=email,
                display_name="" if name is UNSET else name,
                role="member" if data.role is UNSET else data.role,
            )
        else:
            member = await records.again(change, catalogue.members, known)
            _agree(member, name, data.role)
        _check_active(member)
        await end_invitations(change, member.id)
        await invitations.invitations.add(
            change.connection,
            id=id,
            member_id=member.id,
            purpose=purpose_of(member.has_password),
            digest=desk.deps.vault.digest(token),
            invited_by=_inviter(desk),
            created_at=change.at,
            issued_at=change.at,
            expires_at=expiry(change.at, days),
        )
        added = await records.again(change, invitations.invitations, id)
        await change.record("invitation_created", "invitation", id, after=added)
        return added

    return await _with_link(desk, await desk.write(work), f"{base_url}{PATH}#{token}")


@get("/invitations", summary="List invitations, newest first")
async def list_invitations(
    desk: NamedDependency[Desk],
    cursor: FromQuery[str | None] = None,
    limit: FromQuery[int] = wire.PAGE_DEFAULT,
    status: FromQuery[InvitationStatus | None] = None,
    member_id: FromQuery[str | None] = None,
) -> Page[InvitationDocument]:
    below, member = wire.after(cursor), wire.id_filter("member_id", member_id)
    async with desk.deps.database.snapshot() as connection:
        found = await invitations.listed(
            connection,
            at=desk.at,
            below=below,
            limit=wire.page_limit(limit) + 1,
            status=status,
            member_id=member,
        )
    return wire.paged([_shown(desk, one) for one in found], limit, lambda one: one.id)


@post("/invitations/{id:str}/renew", status_code=200, summary="Make another link, and end this one")
async def renew_invitation(
    id: FromPath[str], request: Request[Any, Any, Any], desk: NamedDependency[Desk]
) -> InvitationWithLink:
    """It lasts as long as the one before did."""
    invitation_id = wire.path_id(id, "invitation")
    base_url, token = browser.base_url(request), new_invitation_token()

    async def work(change: Change) -> InvitationRecord:
        known = await records.current(change, invitations.invitations, invitation_id, "invitation")
        if not may_renew(known.status_at(change.at)):
            raise taken(
                "id",
                "invitation_over",
                "is that of an invitation that is over: invite the member anew",
            )
        _check_active(await records.again(change, catalogue.members, known.member_id))
        await end_invitations(change, known.member_id, but=known.id)
        expires_at = renewed_expiry(known.issued_at, known.expires_at, change.at)
        await invitations.invitations.change(
            change.connection,
            known.id,
            {
                "digest": desk.deps.vault.digest(token),
                "invited_by": _inviter(desk),
                "issued_at": change.at,
                "expires_at": expires_at,
            },
        )
        await change.record(
            "invitation_renewed",
            "invitation",
            known.id,
            before={"issued_at": known.issued_at, "expires_at": known.expires_at},
            after={"issued_at": change.at, "expires_at": expires_at},
        )
        return await records.again(change, invitations.invitations, known.id)

    return await _with_link(desk, await desk.write(work), f"{base_url}{PATH}#{token}")


@post("/invitations/{id:str}/revoke", status_code=200, summary="Revoke an invitation, for good")
async def revoke_invitation(id: FromPath[str], desk: NamedDependency[Desk]) -> InvitationDocument:
    """Its link opens nothing from now on. Revoking it again changes nothing."""
    invitation_id = wire.path_id(id, "invitation")

    async def work(change: Change) -> InvitationRecord:
        known = await records.current(change, invitations.invitations, invitation_id, "invitation")
        status = known.status_at(change.at)
        if status == "accepted":
            raise taken(
                "id",
                "invitation_accepted",
                "is that of an invitation that was accepted: disable the member",
            )
        if status != "revoked":
            await invitations.invitations.change(
                change.connection, known.id, {"revoked_at": change.at}
            )
            await change.record(
                "invitation_revoked",
                "invitation",
                known.id,
                before={"revoked_at": None},
                after={"revoked_at": change.at},
            )
        return await records.again(change, invitations.invitations, known.id)

    return _shown(desk, await desk.write(work))


def _agree(member: MemberRecord, name: str | UnsetType, role: Role | UnsetType) -> None:
    """Refuse what would change a member, or be dropped."""
    for field, said, known in (
        ("display_name", name, member.display_name),
        ("role", role, member.role),
    ):
        if said is not UNSET and said != known:
            raise taken(
                field,
                "member_otherwise",
                "is '{known}' of the member with this address: leave it out, or change the member",
                known=known,
            )


def _check_active(member: MemberRecord) -> None:
    if member.status != "active":
        raise taken("email", "email_of_disabled", "is a disabled member's: enable them first")


def _inviter(desk: Desk) -> str | None:
    """Return whom the invited are told of: a person, or nobody."""
    return desk.actor.label if desk.actor.kind == "session" else None


def _shown(desk: Desk, record: InvitationRecord) -> InvitationDocument:
    return InvitationDocument(**msgspec.structs.asdict(record), status=record.status_at(desk.at))


async def _with_link(desk: Desk, record: InvitationRecord, link: str) -> InvitationWithLink:
    error = await _mail(desk, record, link)
    return InvitationWithLink(
        **msgspec.structs.asdict(_shown(desk, record)),
        link=link,
        mailed=error is None and desk.deps.mailer is not None,
        mail_error=error,
    )


async def _mail(desk: Desk, record: InvitationRecord, link: str) -> str | None:
    """Mail a link, once: whoever made it sees whether that went well, and has it at hand."""
    mailer = desk.deps.mailer
    if mailer is None:
        return None
    if not wire.MAILBOX.fullmatch(record.email):
        return "the address is none that letters are sent to"
    letter = invitation_letter(record.purpose, link, record.invited_by, record.expires_at)
    try:
        # Each step has its time, and there are many of them.
        async with asyncio.timeout(SEND_S):
            await mailer.send(letter, to=record.email, id=uuid7(), at=desk.at)
    except Undelivered as undelivered:
        error = str(undelivered)
    except TimeoutError:
        error = f"no answer within {SEND_S:g} seconds"
    else:
        return None
    log.warning("invitation_not_mailed", invitation_id=record.id, error=error)
    return error


def invitation_router() -> Router:
    """Make the router of invitations, for admins."""
    handlers = [add_invitation, list_invitations, renew_invitation, revoke_invitation]
    return Router("/", route_handlers=documented(handlers), tags=["Invitations"])
