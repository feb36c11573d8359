"""Sign-in: the sessions of members, and the tries that failed, as rows.

Owns the statements that read and write both, and the order in which tries for one account and from
one address take turns. Owns no decision about them (see `core.sign_in`), no password and no token:
passwords come as hashes, tokens and accounts as digests.

Invariants:

- Tries for one account take turns, over all replicas, and so do those from one address: none is let
  through beside others that have not failed yet.
- A session begins only while its member is active and the hash that was verified still is theirs.
- A session that was revoked stays revoked.
"""

from datetime import datetime
from hashlib import blake2b

import msgspec
from sqlalchemy import ColumnElement, Select, delete, func, insert, or_, select, update

from app.core.access import MemberStatus, Role
from app.ids import uuid7
from app.store import schema
from app.store.database import Connection

TURNS = 0x5160
"""Sets these advisory locks apart from others."""


class Member(msgspec.Struct, frozen=True):
    """Who would sign in, as they are known."""

    id: str
    email: str
    display_name: str
    role: Role
    status: MemberStatus
    password_hash: str | None
    must_change_password: bool


class Session(msgspec.Struct, frozen=True):
    """A session; whether it has ended is for `core.sign_in` to say."""

    id: str
    member_id: str
    user_agent: str
    address: str
    created_at: datetime
    last_seen_at: datetime
    expires_at: datetime
    revoked_at: datetime | None
    with_password: bool
    """Or else by an identity provider."""


# Members


async def member_by_email(connection: Connection, email: str) -> Member | None:
    """Return the member with this address, in whatever case it is written."""
    return await _member(connection, func.lower(schema.members.c.email) == func.lower(email))


async def member(connection: Connection, member_id: str) -> Member | None:
    """Return a member."""
    return await _member(connection, schema.members.c.id == member_id)


async def _member(connection: Connection, condition: ColumnElement[bool]) -> Member | None:
    columns = [schema.members.c[name] for name in Member.__struct_fields__]
    row = (await connection.execute(select(*columns).where(condition))).mappings().first()
    return None if row is None else Member(**row)


async def change_password(
    connection: Connection, member_id: str, *, verified: str, password_hash: str
) -> bool:
    """Give a member the password they chose, if the verified one still is theirs."""
    table = schema.members
    changed = await connection.execute(
        update(table)
        .where(table.c.id == member_id, table.c.password_hash == verified)
        .values(password_hash=password_hash, must_change_password=False)
    )
    return bool(changed.rowcount)


# Failures


async def take_turn(connection: Connection, account: bytes, address: str) -> None:
    """Wait for the tries for this account, and from this address, that came before."""
    numbers = {
        int.from_bytes(blake2b(name, digest_size=4).digest(), signed=True)
        for name in (b"account" + account, b"address" + address.encode())
    }
    # In one order, or two tries could wait for each other.
    for number in sorted(numbers):
        await connection.execute(select(func.pg_advisory_xact_lock(TURNS, number)))


async def failures(
    connection: Connection, account: bytes, address: str, since: datetime
) -> tuple[list[datetime], list[datetime]]:
    """Return when tries failed for an account, and from an address."""
    table = schema.sign_in_failures
    statement = select(table).where(
        or_(table.c.account == account, table.c.address == address), table.c.at > since
    )
    rows = (await connection.execute(statement)).all()
    return (
        [row.at for row in rows if row.account == account],
        [row.at for row in rows if row.address == address],
    )


async def add_failure(
    connection: Connection, account: bytes, address: str, *, at: datetime, since: datetime
) -> None:
    """Note that a try failed, and forget those from before `since`."""
    table = schema.sign_in_failures
    # Another try may be at it: it is enough that one of them does it.
    over = select(table.c.id).where(table.c.at <= since).with_for_update(skip_locked=True)
    await connection.execute(delete(table).where(table.c.id.in_(over)))
    await connection.execute(
        insert(table).values(id=uuid7(at), account=account, address=address, at=at)
    )


async def forgive(connection: Connection, account: bytes) -> None:
    """Forget the failures for an account."""
    table = schema.sign_in_failures
    await connection.execute(delete(table).where(table.c.account == account))


# Sessions


def _sessions() -> Select[tuple[object, ...]]:
    return select(*(schema.member_sessions.c[name] for name in Session.__struct_fields__))


async def begin(
    connection: Connection,
    member: Member,
    *,
    rehashed: str | None,
    digest: bytes,
    user_agent: str,
    address: str,
    at: datetime,
    expires_at: datetime,
    with_password: bool = True,
) -> Session | None:
    """Begin a session, unless the member was disabled or has another password by now.

    `rehashed` is their password under newer parameters, if it needs any.
    """
    members, table = schema.members, schema.member_sessions
    still = select(members.c.id).where(
        members.c.id == member.id,
        members.c.status == "active",
        members.c.password_hash == member.password_hash,
    )
    if (await connection.execute(still.with_for_update())).first() is None:
        return None
    if rehashed is not None:
        await connection.execute(
            update(members).where(members.c.id == member.id).values(password_hash=rehashed)
        )
    await connection.execute(
        delete(table).where(table.c.member_id == member.id, table.c.expires_at <= at)
    )
    session = Session(
        id=uuid7(at),
        member_id=member.id,
        user_agent=user_agent,
        address=address,
        created_at=at,
        last_seen_at=at,
        expires_at=expires_at,
        revoked_at=None,
        with_password=with_password,
    )
    await connection.execute(insert(table).values(**msgspec.structs.asdict(session), digest=digest))
    return session


async def session_with(connection: Connection, digest: bytes) -> Session | None:
    """Return the session whose token has this digest."""
    table = schema.member_sessions
    rows = await connection.execute(_sessions().where(table.c.digest == digest))
    row = rows.mappings().first()
    return None if row is None else Session(**row)


async def see(connection: Connection, session_id: str, at: datetime) -> None:
    """Note that a session is in use."""
    table = schema.member_sessions
    await connection.execute(
        update(table)
        .where(table.c.id == session_id)
        .values(last_seen_at=func.greatest(table.c.last_seen_at, at))
    )


async def sessions_of(
    connection: Connection,
    member_id: str,
    *,
    at: datetime,
    seen_since: datetime,
    below: str | None,
    limit: int,
) -> list[Session]:
    """Return the sessions of a member that have not ended, newest first, from below an id on."""
    table = schema.member_sessions
    statement = (
        _sessions()
        .where(
            table.c.member_id == member_id,
            table.c.revoked_at.is_(None),
            table.c.expires_at > at,
            table.c.last_seen_at > seen_since,
        )
        .order_by(table.c.id.desc())
        .limit(limit)
    )
    if below is not None:
        statement = statement.where(table.c.id < below)
    return [Session(**row) for row in (await connection.execute(statement)).mappings()]


async def revoke(connection: Connection, session_id: str, member_id: str, at: datetime) -> bool:
    """End a session of a member; False if there is none that goes on."""
    table = schema.member_sessions
    ended = await connection.execute(
        update(table)
        .where(
            table.c.id == session_id, table.c.member_id == member_id, table.c.revoked_at.is_(None)
        )
        .values(revoked_at=at)
    )
    return bool(ended.rowcount)


async def revoke_all(
    connection: Connection,
    member_id: str,
    at: datetime,
    *,
    but: str | None = None,
    with_password: bool | None = None,
) -> list[str]:
    """End the sessions of a member, but for one, or of one kind only; return which."""
    table = schema.member_sessions
    statement = update(table).where(table.c.member_id == member_id, table.c.revoked_at.is_(None))
    if but is not None:
        statement = statement.where(table.c.id != but)
    if with_password is not None:
        statement = statement.where(table.c.with_password == with_password)
    ended = await connection.execute(statement.values(revoked_at=at).returning(table.c.id))
    return list(ended.scalars())
