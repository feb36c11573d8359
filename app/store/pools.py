"""Pools: how they nest, and what is in them, as rows.

Owns the statements that walk the tree of pools. Owns neither the rule of its shape (see
`core.pools`) nor their records and limits (see `catalogue`) nor any total (see `usage`).

Invariant: whatever is asked of many pools is asked in one statement.
"""

from collections.abc import Iterable

import msgspec
from sqlalchemy import func, select

from app.store import catalogue, schema
from app.store.catalogue import PoolRecord
from app.store.database import Connection


class Contents(msgspec.Struct, frozen=True):
    """How many allocations and pools are in a pool itself, not counting those further down."""

    allocations: int = 0
    pools: int = 0


async def named(connection: Connection, name: str) -> str | None:
    """Return the id of the pool with this name, in whatever case it is written."""
    table = schema.pools
    statement = select(table.c.id).where(func.lower(table.c.name) == func.lower(name))
    found: str | None = (await connection.execute(statement)).scalar_one_or_none()
    return found


async def parents(connection: Connection) -> dict[str, str | None]:
    """Return every pool, with the one that it lies in."""
    table = schema.pools
    rows = await connection.execute(select(table.c.id, table.c.parent_id))
    return {row.id: row.parent_id for row in rows}


async def above(connection: Connection, pool_ids: Iterable[str]) -> dict[str, PoolRecord]:
    """Return these pools and all that they lie in, by id."""
    wanted = sorted(set(pool_ids))
    if not wanted:
        return {}
    table = schema.pools
    chain = select(table.c.id, table.c.parent_id).where(table.c.id.in_(wanted)).cte(recursive=True)
    # Not UNION ALL: what two pools lie in is looked up once.
    chain = chain.union(
        select(table.c.id, table.c.parent_id).join(chain, table.c.id == chain.c.parent_id)
    )
    return {
        record.id: record
        for record in await catalogue.pools.where(connection, table.c.id.in_(select(chain.c.id)))
    }


async def contents(connection: Connection, pool_ids: list[str]) -> dict[str, Contents]:
    """Return how much is in each of these pools."""
    inside = schema.pools.alias("inside")
    table, allocations = schema.pools, schema.allocations
    counted = select(
        table.c.id,
        select(func.count())
        .select_from(allocations)
        .where(allocations.c.pool_id == table.c.id)
        .scalar_subquery()
        .label("allocations"),
        select(func.count())
        .select_from(inside)
        .where(inside.c.parent_id == table.c.id)
        .scalar_subquery()
        .label("pools"),
    ).where(table.c.id.in_(pool_ids))
    rows = await connection.execute(counted)
    return {row.id: Contents(row.allocations, row.pools) for row in rows}
