"""Chats: trees of conversations, and the spend limit of each tree.

Owns the rows of chats and setting the limit of a root, once. Owns no total and no decision: a root
is an owner like any other, whose calls the ledger charges to one account for good.

Invariants: a chat has the root of its parent, and the member of its root; a limit is set when its
root is made and never changes; deleting a chat gives nothing back, and no call can name it again.
"""

from datetime import datetime
from typing import Any

import msgspec
from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool

from app.core.ledger import account_key
from app.core.money import nano_to_usd
from app.core.windows import EPOCH, LIFETIME, Period
from app.store.database import hung_up_after

QUERY_S = 5.0
"""How long a statement may take once there is a connection."""

CREATE_SQL = """
WITH made AS (
    INSERT INTO chats (id, root_id, parent_id, member_id, key_id, created_at)
    SELECT %(id)s, coalesce(parent.root_id, %(id)s), parent.id, %(member)s, %(key)s, %(at)s
    FROM (SELECT) AS one LEFT JOIN chats parent ON parent.id = %(parent)s
        AND parent.member_id = %(member)s AND parent.deleted_at IS NULL
    WHERE %(parent)s::uuid IS NULL OR parent.id IS NOT NULL
    RETURNING id, root_id
), kept AS (
    -- The first call of the tree need not make it.
    INSERT INTO accounts (id, owner, owner_id, window_kind, period_start)
    SELECT %(account)s, 'chat', id, 'lifetime', %(epoch)s FROM made WHERE id = root_id
)
INSERT INTO limits (owner_id, meter, window_kind, owner, amount, set_at)
SELECT id, 'usd', 'lifetime', 'chat', %(nano)s, %(at)s FROM made WHERE %(nano)s::bigint IS NOT NULL
"""
ROOT_SQL = """
SELECT root_id::text FROM chats WHERE id = %s AND member_id = %s AND deleted_at IS NULL
"""
FIND_SQL = """
SELECT c.id::text, c.parent_id::text, c.root_id::text, c.created_at, c.deleted_at,
       l.amount, coalesce(a.used_nano, 0)::bigint AS used, coalesce(a.held_nano, 0)::bigint AS held
FROM chats c
LEFT JOIN limits l ON l.owner_id = c.root_id AND l.meter = 'usd' AND l.window_kind = 'lifetime'
LEFT JOIN accounts a ON a.owner_id = c.root_id AND a.window_kind = 'lifetime'
WHERE c.id = %s AND c.member_id = %s
"""
DELETE_SQL = """
UPDATE chats SET deleted_at = coalesce(deleted_at, %s) WHERE id = %s AND member_id = %s
"""


class _Row(msgspec.Struct):
    id: str
    parent_id: str | None
    root_id: str
    created_at: datetime
    deleted_at: datetime | None
    amount: int | None
    used: int
    held: int


class ChatDocument(msgspec.Struct, frozen=True):
    """A chat; the figures are those of its whole tree, for good."""

    id: str
    parent_id: str | None
    root_id: str
    spend_limit_usd: str | None
    """The most that the tree may ever cost; null: there is no such limit."""
    spent_usd: str
    held_usd: str
    remaining_usd: str | None
    created_at: datetime
    deleted_at: datetime | None


class Chats:
    """The chats of all members."""

    def __init__(self, pool: AsyncConnectionPool[Any]) -> None:
        self.pool = pool

    async def create(
        self,
        *,
        id: str,
        member_id: str,
        key_id: str,
        parent_id: str | None,
        limit_nano: int | None,
        at: datetime,
    ) -> ChatDocument | None:
        """Make a chat; None if the parent is not one of the member's. Raises psycopg's errors."""
        values = {
            "id": id,
            "member": member_id,
            "key": key_id,
            "parent": parent_id,
            "nano": limit_nano,
            "at": at,
            "account": account_key("chat", id, LIFETIME, Period(EPOCH, None)).id,
            "epoch": EPOCH,
        }
        async with self.pool.connection(timeout=2) as connection:
            with hung_up_after(connection, QUERY_S):
                await connection.execute(CREATE_SQL, values)
        return await self.find(id, member_id)

    async def root(self, chat_id: str, member_id: str) -> str | None:
        """Return the root of a chat that calls of a member may name; None: they may not."""
        async with self.pool.connection(timeout=2) as connection:
            with hung_up_after(connection, QUERY_S):
                row = await (await connection.execute(ROOT_SQL, [chat_id, member_id])).fetchone()
        return None if row is None else row[0]

    async def find(self, chat_id: str, member_id: str) -> ChatDocument | None:
        """Return a chat of a member, deleted or not."""
        async with self.pool.connection(timeout=2) as connection:
            with hung_up_after(connection, QUERY_S):
                cursor = connection.cursor(row_factory=class_row(_Row))
                row = await (await cursor.execute(FIND_SQL, [chat_id, member_id])).fetchone()
        if row is None:
            return None
        left = None if row.amount is None else max(0, row.amount - row.used - row.held)
        return ChatDocument(
            id=row.id,
            parent_id=row.parent_id,
            root_id=row.root_id,
            spend_limit_usd=None if row.amount is None else nano_to_usd(row.amount),
            spent_usd=nano_to_usd(row.used),
            held_usd=nano_to_usd(row.held),
            remaining_usd=None if left is None else nano_to_usd(left),
            created_at=row.created_at,
            deleted_at=row.deleted_at,
        )

    async def delete(self, chat_id: str, member_id: str, at: datetime) -> bool:
        """Let no call name a chat any more; False if the member has no such chat."""
        async with self.pool.connection(timeout=2) as connection:
            with hung_up_after(connection, QUERY_S):
                done = await connection.execute(DELETE_SQL, [at, chat_id, member_id])
        return bool(done.rowcount)
