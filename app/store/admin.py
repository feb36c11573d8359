"""What an operator does to the books from the command line.

Owns the statements behind the commands that no API stands behind: which secret a database belongs
to, administrators, admin tokens, and many prices at once. Owns no check of what it is given, and
no secret: passwords come as hashes, tokens as digests.

Invariants: every change is in the journal, in the transaction of the change; prices come in all
together or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from fractions import Fraction
from typing import Final, Literal

import msgspec
import psycopg
from sqlalchemy import insert, select

from app.core.pricing import Rate
from app.ids import uuid7
from app.store import catalogue, invitations, schema, sign_in
from app.store.database import Connection
from app.store.journal import Author, record

ACTOR: Final = "command line"


def claim(dsn: str, fingerprint: str) -> bool:
    """Bind a database to a secret, unless it is bound; return whether it is bound to this one."""
    with psycopg.connect(dsn, autocommit=True, connect_timeout=5) as connection:
        connection.execute(
            "UPDATE installation SET secret_fingerprint = %s WHERE secret_fingerprint IS NULL",
            [fingerprint],
        )
        row = connection.execute("SELECT secret_fingerprint FROM installation").fetchone()
    return row is not None and row[0] == fingerprint


def _author() -> Author:
    return Author(ACTOR, None, uuid7())


# Administrators


async def password_hash(connection: Connection, email: str) -> str | None:
    """Return the hash of a member's password; None if there is none, or no such member."""
    member_id = await catalogue.member_with(connection, email)
    column = schema.members.c.password_hash
    rows = await connection.execute(select(column).where(schema.members.c.id == member_id))
    found: str | None = rows.scalar_one_or_none()
    return found


async def put_admin(
    connection: Connection, *, email: str, name: str | None, password_hash: str, at: datetime
) -> Literal["created", "updated", "promoted"]:
    """Make a member an active administrator with this password; add them if they are new.

    Whoever was signed in with another password is so no longer, and an open invitation ends.
    """
    author = _author()
    member_id = await catalogue.member_with(connection, email)
    if member_id is None:
        id = uuid7(at)
        await catalogue.members.add(
            connection,
            id=id,
            email=email,
            display_name=name or "",
            role="admin",
            password_hash=password_hash,
        )
        added = await catalogue.members.find(connection, id)
        await record(connection, author, "member_created", "member", id, at=at, after=added)
        return "created"
    member = await catalogue.members.find(connection, member_id)
    assert member is not None, "members are never deleted"
    chosen = {"password_hash": password_hash, "must_change_password": False}
    await catalogue.members.change(connection, member_id, chosen)
    await sign_in.revoke_all(connection, member_id, at)
    await invitations.revoke_open(connection, member_id, at)
    await record(
        connection,
        author,
        "member_password_updated",
        "member",
        member_id,
        at=at,
        before={"has_password": member.has_password},
        after={"has_password": True},
    )
    wanted = {"role": "admin", "status": "active"} | ({"display_name": name} if name else {})
    values = {field: value for field, value in wanted.items() if getattr(member, field) != value}
    if values:
        await catalogue.members.change(connection, member_id, values)
        before = {field: getattr(member, field) for field in values}
        await record(
            connection,
            author,
            "member_updated",
            "member",
            member_id,
            at=at,
            before=before,
            after=values,
        )
    return "updated" if member.role == "admin" else "promoted"


async def add_admin_token(
    connection: Connection, *, name: str, digest: bytes, at: datetime
) -> None:
    """Add a token that opens the whole of the control API."""
    id = uuid7(at)
    await connection.execute(insert(schema.admin_tokens).values(id=id, name=name, digest=digest))
    await record(
        connection,
        _author(),
        "admin_token_created",
        "admin_token",
        id,
        at=at,
        after={"name": name},
    )


# Prices


class PriceVersion(msgspec.Struct, frozen=True):
    """A version of a model's rates to add; without an instant it is in force from now on."""

    model: str
    effective_from: datetime | None
    rates: list[Rate]


class PriceClash(ValueError):
    """A version contradicts what is there; `index` says which of those given."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


async def add_prices(
    connection: Connection, versions: Sequence[PriceVersion], at: datetime
) -> list[bool]:
    """Add versions, and tell of each whether it was new. Raises `PriceClash`.

    One that is there already, at its instant or (if it has none) in force, is left as it is.
    """
    author = _author()
    models = list({version.model for version in versions})
    missing = set(await catalogue.unknown_models(connection, models))
    added = []
    for index, version in enumerate(versions):
        if version.model in missing:
            raise PriceClash(index, f"there is no model {version.model!r}; add it first")
        same = await _is_there(connection, index, version, at)
        added.append(not same)
        if same:
            continue
        id = uuid7(at)
        await catalogue.add_price(
            connection,
            id=id,
            model=version.model,
            effective_from=version.effective_from or at,
            rates=version.rates,
        )
        shown = await catalogue.prices.find(connection, id)
        await record(connection, author, "price_created", "price", id, at=at, after=shown)
    return added


async def _is_there(
    connection: Connection, index: int, version: PriceVersion, at: datetime
) -> bool:
    """Tell whether a version is there already. Raises `PriceClash` if its instant is another's."""
    table = schema.prices
    statement = select(table.c.rates).where(table.c.model == version.model)
    if version.effective_from is None:
        newest = table.c.effective_from.desc()
        statement = statement.where(table.c.effective_from <= at).order_by(newest).limit(1)
    else:
        statement = statement.where(table.c.effective_from == version.effective_from)
    row = (await connection.execute(statement)).first()
    if row is None:
        return False
    known = {rate["unit"]: Fraction(rate["usd"]) / rate["per"] for rate in row.rates}
    same = known == {rate.unit: Fraction(rate.usd) / rate.per for rate in version.rates}
    if not same and version.effective_from is not None:
        raise PriceClash(
            index,
            f"{version.model} has other rates from {version.effective_from.isoformat()} on, and "
            f"prices are never edited: give the new rates a later instant",
        )
    return same
