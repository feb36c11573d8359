"""Identities: which subject of which issuer is which member, and what came back from it, as rows.

Owns the statements that read and write both. Owns no decision about them (see `core.identities`)
and no session (see `sign_in`).

Invariants: a subject is one member's, a member has one subject of an issuer at most, and what was
used once is used (the database refuses anything else).
"""

from datetime import datetime

import msgspec
from sqlalchemy import ColumnElement, delete, exists, func, insert, select
from sqlalchemy.dialects.postgresql import insert as upsert

from app.core.identities import Known
from app.store import schema
from app.store.database import Connection


class IdentityRecord(msgspec.Struct, frozen=True):
    """Who a member is to an identity provider."""

    id: str
    member_id: str
    issuer: str
    subject: str
    created_at: datetime


async def holder(connection: Connection, issuer: str, subject: str) -> Known | None:
    """Return the member whose subject it is."""
    table = schema.identities
    owner = select(table.c.member_id).where(table.c.issuer == issuer, table.c.subject == subject)
    return await _known(connection, issuer, schema.members.c.id == owner.scalar_subquery())


async def namesake(connection: Connection, issuer: str, email: str) -> Known | None:
    """Return the member with this address, in whatever case it is written."""
    same = func.lower(schema.members.c.email) == func.lower(email)
    return await _known(connection, issuer, same)


async def _known(
    connection: Connection, issuer: str, condition: ColumnElement[bool]
) -> Known | None:
    members, table = schema.members, schema.identities
    linked = exists().where(table.c.member_id == members.c.id, table.c.issuer == issuer)
    statement = select(members.c.id, members.c.status, linked.label("linked")).where(condition)
    row = (await connection.execute(statement)).first()
    return None if row is None else Known(row.id, row.status, row.linked)


async def of_member(connection: Connection, member_id: str) -> list[IdentityRecord]:
    """Return the identities of a member, oldest first."""
    table = schema.identities
    statement = select(table).where(table.c.member_id == member_id).order_by(table.c.id)
    return [IdentityRecord(**row) for row in (await connection.execute(statement)).mappings()]


async def add(connection: Connection, identity: IdentityRecord) -> None:
    """Add an identity."""
    await connection.execute(insert(schema.identities).values(**msgspec.structs.asdict(identity)))


async def remove(connection: Connection, id: str, member_id: str) -> IdentityRecord | None:
    """Remove an identity of a member, and return it; None: there is no such one."""
    table = schema.identities
    removed = await connection.execute(
        delete(table).where(table.c.id == id, table.c.member_id == member_id).returning(table)
    )
    row = removed.mappings().first()
    return None if row is None else IdentityRecord(**row)


async def use_state(connection: Connection, digest: bytes, *, at: datetime, over: datetime) -> bool:
    """Note that somebody came back with a state, and forget those from before `over`.

    False: somebody has before.
    """
    table = schema.used_states
    # Another one may be at it: it is enough that one of them does it.
    old = select(table.c.digest).where(table.c.at <= over).with_for_update(skip_locked=True)
    await connection.execute(delete(table).where(table.c.digest.in_(old)))
    used = upsert(table).values(digest=digest, at=at).on_conflict_do_nothing()
    return (await connection.execute(used.returning(table.c.digest))).first() is not None
