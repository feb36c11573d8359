"""Answers kept for Idempotency-Keys.

Owns claiming a key for a call and reading what it is to be answered with. The answer itself is
written by the ledger, in the transaction that books its call.

Invariants: one call at a time holds a key; a key of a call that was not booked is free again; an
answer is replayed for a day.
"""

from typing import Any

import msgspec
from psycopg_pool import AsyncConnectionPool

from app.store.database import hung_up_after
from app.store.spool import Answer

CLAIM_S = 5.0
"""How long claiming a key, or freeing it, may take once there is a connection."""


class Fresh(msgspec.Struct, frozen=True):
    """The key is this call's."""


class Replay(msgspec.Struct, frozen=True):
    """The key's call is booked: answer with this."""

    answer: Answer


class Running(msgspec.Struct, frozen=True):
    """Another call holds the key."""


class Mismatch(msgspec.Struct, frozen=True):
    """The key came with another body."""


Claim = Fresh | Replay | Running | Mismatch

CLAIM_SQL = """
WITH stale AS (
    -- A booked answer lasts a day; an unbooked claim lasts as long as its call holds something.
    DELETE FROM answers a WHERE key_id = %(key)s AND idempotency_key = %(name)s
        AND (created_at < now() - interval '1 day'
             OR (status_code IS NULL AND created_at < now() - interval '30 seconds'
                 AND NOT EXISTS (SELECT FROM holds h WHERE h.call_id = a.call_id)))
)
SELECT 1
"""
INSERT_SQL = """
INSERT INTO answers (key_id, idempotency_key, body_digest, call_id)
VALUES (%(key)s, %(name)s, %(digest)s, %(call)s) ON CONFLICT DO NOTHING RETURNING call_id
"""
READ_SQL = """
SELECT body_digest, status_code, headers, body, call_id::text FROM answers
WHERE key_id = %(key)s AND idempotency_key = %(name)s
"""
RELEASE_SQL = """
DELETE FROM answers WHERE key_id = %s AND idempotency_key = %s AND call_id = %s
    AND status_code IS NULL
"""


class Answers:
    """The answers of all replicas, by key and Idempotency-Key."""

    def __init__(self, pool: AsyncConnectionPool[Any]) -> None:
        self._pool = pool

    async def claim(self, key_id: str, name: str, digest: bytes, call_id: str) -> Claim:
        """Claim a name for a call, or tell what stands there. Raises psycopg's errors."""
        values = {"key": key_id, "name": name, "digest": digest, "call": call_id}
        async with self._pool.connection() as connection:
            with hung_up_after(connection, CLAIM_S):
                await connection.execute(CLAIM_SQL, values)
                inserted = await (await connection.execute(INSERT_SQL, values)).fetchone()
                if inserted is not None:
                    return Fresh()
                row = await (await connection.execute(READ_SQL, values)).fetchone()
        if row is None:
            # Released between the two statements: whoever asks again will get it.
            return Running()
        body_digest, status_code, headers, body, booked_call = row
        if bytes(body_digest) != digest:
            return Mismatch()
        if status_code is None:
            return Running()
        shown = [(name, value) for name, value in headers]
        shown.append(("x-spendgate-call-id", booked_call))
        return Replay(Answer(status_code, shown, bytes(body)))

    async def release(self, key_id: str, name: str, call_id: str) -> None:
        """Free the name of a call that was not booked; without PostgreSQL it frees itself."""
        try:
            async with self._pool.connection(timeout=2) as connection:
                with hung_up_after(connection, CLAIM_S):
                    await connection.execute(RELEASE_SQL, [key_id, name, call_id])
        except Exception:
            return
