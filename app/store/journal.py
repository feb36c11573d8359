"""The journal: who changed what, when, why, from what and to what; and what is to be told of it.

Owns the audit events, and writing into the outbox of alerts. Owns no secret: what is recorded of a
credential, a password or a key is that it changed.

Invariants: an event is written in the transaction of the change it tells of, so there is never one
without the other; events are never edited or deleted (the database refuses).
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import insert, select
from sqlalchemy.dialects.postgresql import insert as upsert

from app.core.alerts import Event
from app.ids import uuid7
from app.store import schema
from app.store.database import Connection


class Author(msgspec.Struct, frozen=True):
    """Who makes a change, and with which request."""

    actor: str
    actor_id: str | None
    request_id: str


class AuditEvent(msgspec.Struct, frozen=True):
    """One change. `before` and `after` hold what changed, and nothing that did not."""

    id: str
    at: datetime
    actor: str
    actor_id: str | None
    event: str
    object: str
    object_id: str
    before: Any
    after: Any
    reason: str | None
    request_id: str | None


async def record(
    connection: Connection,
    author: Author,
    event: str,
    object: str,
    object_id: str,
    *,
    at: datetime,
    nth: int = 0,
    before: Any = None,
    after: Any = None,
    reason: str | None = None,
) -> None:
    """Write the `nth` event of a change, in its transaction."""
    await connection.execute(
        insert(schema.audit).values(
            # Ids order events; those of one change happen at one instant.
            id=uuid7(at + timedelta(milliseconds=nth)),
            at=at,
            actor=author.actor,
            actor_id=author.actor_id,
            event=event,
            object=object,
            object_id=object_id,
            before=before,
            after=after,
            reason=reason,
            request_id=author.request_id,
        )
    )


async def announce(connection: Connection, event: Event, rule_id: str | None = None) -> None:
    """Write an event that is to be told of, in its transaction; the same one again is nothing."""
    body = event.body
    await connection.execute(
        upsert(schema.events)
        .values(
            id=event.id,
            kind=body.__struct_config__.tag,
            rule_id=rule_id,
            body=msgspec.json.encode(body).decode(),
        )
        .on_conflict_do_nothing()
    )


async def events(
    connection: Connection,
    *,
    below: str | None,
    limit: int,
    since: datetime | None = None,
    until: datetime | None = None,
    equal: Mapping[str, str | None] = {},
) -> list[AuditEvent]:
    """Return events, newest first, from below an id on; `equal` filters by column."""
    table = schema.audit
    statement = select(table).order_by(table.c.id.desc()).limit(limit)
    if below is not None:
        statement = statement.where(table.c.id < below)
    if since is not None:
        statement = statement.where(table.c.at >= since)
    if until is not None:
        statement = statement.where(table.c.at < until)
    for column, value in equal.items():
        if value is not None:
            statement = statement.where(table.c[column] == value)
    rows = (await connection.execute(statement)).mappings()
    return [AuditEvent(**row) for row in rows]
