"""Invitations as rows: who was invited by whom, until when, and what became of it.

Owns the statements that read and change them. Owns no decision of what one is worth (see
`core.invitations`), and no secret: links come as digests.

Invariant: a record shows no digest.
"""

from datetime import datetime

import msgspec
from sqlalchemy import ColumnElement, and_, select, update

from app.core.access import Role
from app.core.invitations import InvitationStatus, Purpose, status_of
from app.store import schema
from app.store.catalogue import Collection
from app.store.database import Connection


class InvitationRecord(msgspec.Struct, frozen=True):
    """A link that a member was given; whose it is, as they are known now."""

    id: str
    member_id: str
    email: str
    display_name: str
    role: Role
    purpose: Purpose
    invited_by: str | None
    created_at: datetime
    issued_at: datetime
    """When its present link was made."""
    expires_at: datetime
    accepted_at: datetime | None
    revoked_at: datetime | None

    def status_at(self, at: datetime) -> InvitationStatus:
        """Return what it is worth at an instant."""
        return status_of(self.accepted_at, self.revoked_at, self.expires_at, at)


_OWN = (
    "id",
    "member_id",
    "purpose",
    "invited_by",
    "created_at",
    "issued_at",
    "expires_at",
    "accepted_at",
    "revoked_at",
)

invitations = Collection(
    schema.invitations,
    InvitationRecord,
    select(
        *(schema.invitations.c[name] for name in _OWN),
        *(schema.members.c[name] for name in ("email", "display_name", "role")),
    ).join_from(
        schema.invitations, schema.members, schema.invitations.c.member_id == schema.members.c.id
    ),
)


async def with_digest(connection: Connection, digest: bytes) -> InvitationRecord | None:
    """Return the invitation whose link has this digest."""
    found = await invitations.where(connection, schema.invitations.c.digest == digest)
    return found[0] if found else None


async def listed(
    connection: Connection,
    *,
    at: datetime,
    below: str | None,
    limit: int,
    status: InvitationStatus | None = None,
    member_id: str | None = None,
) -> list[InvitationRecord]:
    """Return invitations, newest first, from below an id on; `status` is that at an instant."""
    table = schema.invitations
    conditions: list[ColumnElement[bool]] = []
    if below is not None:
        conditions.append(table.c.id < below)
    if member_id is not None:
        conditions.append(table.c.member_id == member_id)
    if status is not None:
        conditions.append(_in(status, at))
    return await invitations.where(connection, *conditions, limit=limit)


async def revoke_open(
    connection: Connection, member_id: str, at: datetime, *, but: str | None = None
) -> list[str]:
    """Revoke those of a member that could still be accepted, but for one; return which."""
    table = schema.invitations
    statement = update(table).where(table.c.member_id == member_id, _in("pending", at))
    if but is not None:
        statement = statement.where(table.c.id != but)
    ended = await connection.execute(statement.values(revoked_at=at).returning(table.c.id))
    return list(ended.scalars())


def _in(status: InvitationStatus, at: datetime) -> ColumnElement[bool]:
    table = schema.invitations
    neither = and_(table.c.accepted_at.is_(None), table.c.revoked_at.is_(None))
    return {
        "accepted": table.c.accepted_at.is_not(None),
        "revoked": and_(table.c.accepted_at.is_(None), table.c.revoked_at.is_not(None)),
        "expired": and_(neither, table.c.expires_at <= at),
        "pending": and_(neither, table.c.expires_at > at),
    }[status]
