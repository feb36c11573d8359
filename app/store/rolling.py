"""Rolling windows: what has slid out of them, and when enough will have.

Owns the two statements that look at the calls of a stretch of time. Owns no total: the account of a
rolling window goes on for ever (see `core.ledger.RollingAccount`), and the ledger takes off what
slides out, each call once.

Invariants: ids tell when a call was admitted, to the millisecond; a call is in the window for its
whole length, and up to a millisecond longer, never shorter; what a limit took in of its key's past
when it was opened slides out as well. Only keys have rolling windows: their calls are indexed.
"""

from datetime import UTC, datetime, timedelta

from sqlalchemy import text

from app.core.ledger import Meter
from app.core.windows import Window, rolling
from app.store.database import Connection

SLIDE_SQL = """
SELECT a.id, (extract(epoch FROM f.edge) * 1000)::bigint, a.slid_tokens, a.slid_nano,
       gone.tokens, gone.nano, (extract(epoch FROM coalesce(a.slid_to, f.edge)) * 1000)::bigint
FROM accounts a
CROSS JOIN LATERAL (
    SELECT greatest(a.slid_to, date_trunc('milliseconds', clock_timestamp()
        - make_interval(hours => substring(a.window_kind FROM '[0-9]+')::integer))) AS edge
) f
CROSS JOIN LATERAL (
    SELECT coalesce(sum(tokens), 0)::bigint AS tokens, coalesce(sum(nano), 0)::bigint AS nano
    FROM (
        SELECT c.tokens, c.cost_nano AS nano FROM calls c
        WHERE c.key_id = a.owner_id
            AND c.id >= uuid7_floor(a.slid_to) AND c.id < uuid7_floor(f.edge)
        UNION ALL
        SELECT late.tokens, late.nano FROM calls c JOIN adjustments late ON late.call_id = c.id
        WHERE c.key_id = a.owner_id
            AND c.id >= uuid7_floor(a.slid_to) AND c.id < uuid7_floor(f.edge)
            AND (a.id = ANY(late.account_ids) OR late.created_at < a.opened_at)
    ) AS parts
) gone
WHERE a.id = ANY({ids})
"""
"""Account, where its window begins (milliseconds), what is written to have slid out of it, what has
since, and where it began when that was written; `{ids}` stands for the accounts. The edge never
goes back, whatever the clock does."""

RECOVERS_SQL = """
SELECT ('x' || left(replace(id::text, '-', ''), 12))::bit(48)::bigint FROM (
    SELECT id, sum(used) OVER (ORDER BY id) AS gone FROM (
        SELECT c.id, CASE WHEN :meter = 'tokens' THEN c.tokens ELSE c.cost_nano END AS used
        FROM calls c WHERE c.key_id = :key AND c.id >= uuid7_floor(:start)
        UNION ALL
        SELECT c.id, CASE WHEN :meter = 'tokens' THEN late.tokens ELSE late.nano END
        FROM calls c JOIN adjustments late ON late.call_id = c.id
        WHERE c.key_id = :key AND c.id >= uuid7_floor(:start)
    ) AS parts
) AS sums WHERE gone > :over ORDER BY id LIMIT 1
"""


async def slid_out(connection: Connection, account_ids: list[str]) -> dict[str, tuple[int, int]]:
    """Return the tokens and nano-USD that have slid out of accounts since that was written."""
    if not account_ids:
        return {}
    statement = text(SLIDE_SQL.format(ids="cast(:ids AS uuid[])"))
    rows = await connection.execute(statement, {"ids": account_ids})
    return {str(row[0]): (row[4], row[5]) for row in rows}


async def recovers_at(
    connection: Connection, key_id: str, meter: Meter, window: Window, over: int, at: datetime
) -> datetime | None:
    """Return when more than `over` will have slid out of a key's window; None: never."""
    length = rolling(window)
    assert length is not None
    row = (
        await connection.execute(
            text(RECOVERS_SQL),
            {"key": key_id, "meter": meter, "start": at - length, "over": over},
        )
    ).first()
    if row is None:
        return None
    admitted = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=row[0])
    return admitted + length + timedelta(milliseconds=1)
