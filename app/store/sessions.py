"""Sessions: the realtime sessions that run, on all replicas, and the order to stop one.

Owns reading them from their holds, where each keeps what it has used so far, and writing the order
to stop. Owns no session: the replica that runs it hears of the order and ends it.

Invariants: what is shown is what a recovery would book; a session that has ended is not shown.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

import msgspec
from sqlalchemy import ColumnElement, Text, cast, func, select, update

from app.core.ledger import REALTIME
from app.core.metering import Quantity
from app.core.money import nano_to_usd
from app.store import schema
from app.store.database import Connection


class SessionDocument(msgspec.Struct, frozen=True):
    """A running session. `cost_usd` is null if it is unpriced; what it holds comes on top."""

    id: str
    request_id: str
    allocation_id: str | None
    allocation_name: str | None
    key_id: str
    member_id: str
    member_email: str | None
    model: str
    started_at: datetime
    duration_s: int
    usage: Annotated[
        dict[str, Quantity],
        msgspec.Meta(
            description="Quantities by unit, as of at most a few seconds ago.",
            extra_json_schema={"extra": {"additionalProperties": {"type": "number"}}},
        ),
    ]
    tokens: int
    cost_usd: str | None
    tokens_held: int
    cost_held: str
    stopping: bool
    """Whether it has been ordered to stop, and is about to."""


async def running(
    connection: Connection,
    *,
    at: datetime,
    after: str | None,
    limit: int,
    equal: Mapping[str, str | None] = {},
) -> list[SessionDocument]:
    """Return running sessions, the longest running first, from after an id on."""
    holds, members, allocations = schema.holds, schema.members, schema.allocations
    statement = (
        select(holds, members.c.email, allocations.c.name)
        .outerjoin(members, cast(members.c.id, Text) == holds.c.facts["member_id"].astext)
        .outerjoin(
            allocations,
            cast(allocations.c.id, Text) == holds.c.facts["allocation_id"].astext,
        )
        .where(*_are_sessions(equal))
        .order_by(holds.c.call_id)
        .limit(limit)
    )
    if after is not None:
        statement = statement.where(holds.c.call_id > after)
    return [_session(row, at) for row in (await connection.execute(statement)).mappings()]


async def in_flight(connection: Connection, allocation_id: str) -> tuple[int, int]:
    """Count the realtime sessions of an allocation that run, and its other calls in flight."""
    facts = schema.holds.c.facts
    is_session = facts["endpoint"].astext == REALTIME
    statement = select(func.count().filter(is_session), func.count().filter(~is_session)).where(
        facts["allocation_id"].astext == allocation_id
    )
    sessions, calls = (await connection.execute(statement)).one()
    return sessions, calls


async def stop(
    connection: Connection, session_id: str, *, equal: Mapping[str, str | None] = {}
) -> bool:
    """Order a session to stop; False if there is none (any more)."""
    holds = schema.holds
    ordered = await connection.execute(
        update(holds)
        .where(holds.c.call_id == session_id, *_are_sessions(equal))
        .values(stopped=True)
    )
    if not ordered.rowcount:
        return False
    # Its replica hears of this when it is committed; if not, when it next refreshes the hold.
    await connection.execute(select(func.pg_notify("spendgate_stop", session_id)))
    return True


def _are_sessions(equal: Mapping[str, str | None]) -> Sequence[ColumnElement[bool]]:
    facts = schema.holds.c.facts
    wanted = {"endpoint": REALTIME, **equal}
    return [facts[name].astext == value for name, value in wanted.items() if value is not None]


def _session(row: Mapping[Any, Any], at: datetime) -> SessionDocument:
    facts = row["facts"]
    used = row["checkpoint"] or {"usage": {}, "tokens": 0, "nano": 0}
    started_at = datetime.fromisoformat(facts["started_at"])
    nano = used["nano"]
    return SessionDocument(
        id=row["call_id"],
        request_id=facts["request_id"],
        allocation_id=facts["allocation_id"],
        allocation_name=row["name"],
        key_id=facts["key_id"],
        member_id=facts["member_id"],
        member_email=row["email"],
        model=facts["model"],
        started_at=started_at,
        duration_s=max(0, int((at - started_at).total_seconds())),
        usage=used["usage"],
        tokens=used["tokens"],
        cost_usd=None if nano is None else nano_to_usd(nano),
        tokens_held=row["tokens"],
        cost_held=nano_to_usd(row["nano"] or 0),
        stopping=row["stopped"],
    )
