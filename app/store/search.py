"""Search: allocations and members, by what they are called and by how they stand.

Owns the statement that finds a page of ids in an order. Owns no record (see `catalogue`), no
standing that is shown (see `usage`) and no state's threshold (see `core.ledger`).

Invariants: one statement finds a page, however many rows there are; what is sought is text, never
a pattern; the rows of an order are told apart by id, so that pages neither overlap nor leave out
what has not changed between them.
"""

from datetime import datetime
from typing import Any, Final, Literal

import msgspec
from sqlalchemy import text

from app.core.access import AllocationStatus
from app.core.ledger import CRITICAL, NEAR
from app.core.windows import Calendar
from app.store import catalogue
from app.store.catalogue import AllocationRecord, MemberRecord
from app.store.database import Connection
from app.store.overview import STANDING, months
from app.store.usage import State

Order = Literal["newest", "name", "spend", "tight"]

NO_POOL: Final = "none"

Place = tuple[str, str]
"""Where a page ended: by what it is ordered, and the id."""


class AllocationQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which allocations are sought, and in which order."""

    q: str = ""
    """An id, or words of which each is in a name, an address or a model."""
    member_id: str | None = None
    pool_id: str | None = None
    model: str | None = None
    status: AllocationStatus | None = None
    state: State | None = None
    order: Order = "newest"


# By what each order goes, as text that comes back as it was; and whether it goes down.
_ORDERS: Final[dict[Order, tuple[str, str, bool]]] = {
    "newest": ("CAST('' AS text)", "text", True),
    "name": ("lower(a.name)", "text", False),
    "spend": ("s.nano", "numeric", True),
    "tight": ("coalesce(s.share, -1)", "numeric", True),
}

_STATES: Final[dict[State, str]] = {
    "ok": "a.status = 'active' AND coalesce(s.share, 0) < :near",
    "near": "s.share >= :near AND s.share < :critical",
    "critical": "s.share >= :critical AND s.share < 1",
    "exhausted": "s.share >= 1",
    "paused": "a.status <> 'active'",
}

# An id is sought whole: its digits say nothing, and any two of them stand somewhere.
_SOUGHT: Final = "CAST({id} AS text) = :whole OR lower({called}) LIKE ALL(CAST(:words AS text[]))"
_CALLED: Final = """
concat_ws(E'\\n', a.name, m.display_name, m.email, p.name, array_to_string(a.models, E'\\n'))
"""


async def allocations(
    connection: Connection,
    sought: AllocationQuery,
    calendar: Calendar,
    at: datetime,
    *,
    after: Place | None,
    limit: int,
) -> tuple[list[AllocationRecord], list[Place]]:
    """Return a page of allocations beyond a place, and the place of each."""
    by, kind, down = _ORDERS[sought.order]
    values: dict[str, object] = {"limit": limit}
    conditions = []
    if sought.q:
        conditions.append(f"({_SOUGHT.format(id='a.id', called=_CALLED)})")
        values |= _words(sought.q)
    if sought.pool_id == NO_POOL:
        conditions.append("a.pool_id IS NULL")
    elif sought.pool_id is not None:
        conditions.append("a.pool_id = CAST(:pool_id AS uuid)")
        values["pool_id"] = sought.pool_id
    if sought.member_id is not None:
        conditions.append("a.member_id = CAST(:member_id AS uuid)")
        values["member_id"] = sought.member_id
    if sought.model is not None:
        conditions.append("CAST(:model AS text) = ANY(a.models)")
        values["model"] = sought.model
    if sought.status is not None:
        conditions.append("a.status = :status")
        values["status"] = sought.status
    if sought.state is not None:
        conditions.append(f"({_STATES[sought.state]})")
    if after is not None:
        beyond = "<" if down else ">"
        conditions.append(f"({by}, a.id) {beyond} (CAST(:by AS {kind}), CAST(:id AS uuid))")
        values["by"], values["id"] = after
    head, joined = "", ""
    if sought.state not in (None, "paused") or sought.order in ("spend", "tight"):
        head, joined = STANDING, "JOIN standing s ON s.id = a.id"
        values |= await months(connection, calendar, at)
        if sought.state in ("ok", "near"):
            values["near"] = NEAR
        if sought.state in ("near", "critical"):
            values["critical"] = CRITICAL
    way = "DESC" if down else "ASC"
    found = await connection.execute(
        text(
            f"{head} SELECT a.id, CAST({by} AS text) FROM allocations a {joined}"
            " JOIN members m ON m.id = a.member_id LEFT JOIN pools p ON p.id = a.pool_id"
            f" WHERE {' AND '.join(conditions) or 'true'}"
            f" ORDER BY {by} {way}, a.id {way} LIMIT :limit"
        ),
        values,
    )
    places: list[Place] = [(by, str(id)) for id, by in found]
    return await catalogue.allocations.find_all(connection, [id for _, id in places]), places


async def members(
    connection: Connection,
    q: str,
    *,
    after: str | None,
    limit: int,
    role: str | None = None,
    status: str | None = None,
) -> list[MemberRecord]:
    """Return a page of members, newest first, by what they are called."""
    table = catalogue.members.table.c
    conditions: list[Any] = [
        column == value
        for column, value in ((table.role, role), (table.status, status))
        if value is not None
    ]
    if q:
        called = "concat_ws(E'\\n', display_name, email)"
        found = text(f"({_SOUGHT.format(id='members.id', called=called)})")
        conditions.append(found.bindparams(**_words(q)))
    if after is not None:
        conditions.append(table.id < after)
    return await catalogue.members.where(connection, *conditions, limit=limit)


def _words(q: str) -> dict[str, object]:
    """Return the values of `_SOUGHT`: each word is found by itself, wherever it stands."""
    whole = q.strip().lower()
    escaped = whole.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return {"whole": whole, "words": [f"%{word}%" for word in escaped.split()]}
