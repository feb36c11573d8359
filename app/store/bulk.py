"""Bulk: what many rows are checked against, read at once.

Owns these statements. Owns no check.

Invariants: however many rows there are, each statement runs once.
"""

from collections.abc import Sequence

from sqlalchemy import func, select

from app.store import schema
from app.store.database import Connection


async def members_by_email(connection: Connection, emails: Sequence[str]) -> dict[str, str]:
    """Return the ids of members by their addresses, in lower case."""
    table = schema.members
    lowered = func.lower(table.c.email)
    rows = await connection.execute(
        select(lowered, table.c.id).where(lowered.in_([email.lower() for email in emails]))
    )
    return {row[0]: row[1] for row in rows}


async def pools_by_name(connection: Connection, names: Sequence[str]) -> dict[str, str]:
    """Return the ids of pools by their names, in lower case."""
    table = schema.pools
    lowered = func.lower(table.c.name)
    rows = await connection.execute(
        select(lowered, table.c.id).where(lowered.in_([name.lower() for name in names]))
    )
    return {row[0]: row[1] for row in rows}


async def names_of(connection: Connection, member_ids: Sequence[str]) -> set[tuple[str, str]]:
    """Return the names of members' allocations, each with its member; not of revoked ones."""
    table = schema.allocations
    rows = await connection.execute(
        select(table.c.member_id, table.c.name).where(
            table.c.member_id.in_(member_ids), table.c.status != "revoked"
        )
    )
    return {(member_id, name) for member_id, name in rows}
