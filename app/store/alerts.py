"""Alerts as rows: destinations, the rules that send to them, and the log of what was sent.

Owns the statements by which the control plane reads and changes them. Owns no rule about what may
be written (see `app.control`), no event (see `journal`), and not the queue (see `deliveries`).

Invariants:

- A record shows no secret. Secrets are stored sealed, each at a version of its own.
- What is deleted is deleted with what hangs on it: a destination with its rules and its log.
"""

from datetime import datetime
from typing import Any, Literal

import msgspec
from sqlalchemy import delete, func, insert, select, update

from app.core.alerts import Event
from app.core.ledger import Meter, OwnerKind
from app.core.windows import Window
from app.ids import uuid7
from app.store import journal, schema
from app.store.catalogue import Collection
from app.store.database import Connection

DestinationKind = Literal["webhook", "email"]
DeliveryStatus = Literal["pending", "delivered", "dead"]


class DestinationRecord(msgspec.Struct, frozen=True):
    """Where alerts go. `events` are those that it is told beside the thresholds of its rules."""

    id: str
    name: str
    kind: DestinationKind
    address: str
    events: list[str]
    key_id: str | None
    """The key whose `alert_webhook` it is."""
    enabled: bool
    former_secret_until: datetime | None
    """Until then, deliveries are signed with the secret before this one as well."""
    created_at: datetime


class RuleRecord(msgspec.Struct, frozen=True):
    """A threshold: tokens or nano-USD or, of a limit, hundredths of a percent."""

    id: str
    destination_id: str
    owner: OwnerKind
    owner_id: str
    meter: Meter
    window: Window
    threshold: int
    percent: bool
    enabled: bool
    created_at: datetime


class DeliveryRecord(msgspec.Struct, frozen=True):
    """An event on its way to a destination, or there."""

    id: str
    event_id: str
    event: str
    destination_id: str
    status: DeliveryStatus
    attempt_count: int
    """All tries so far, also those before a redelivery."""
    next_at: datetime | None
    """When it is tried next; null if it is not."""
    last_status_code: int | None
    last_error: str | None
    delivered_at: datetime | None
    created_at: datetime


class AttemptRecord(msgspec.Struct, frozen=True):
    """One try. `status_code` is the receiver's answer, or the mail server's."""

    at: datetime
    status_code: int | None
    error: str | None
    duration_ms: int


def _destinations() -> Any:
    table = schema.destinations
    names = ("id", "name", "kind", "address", "events", "key_id", "enabled", "created_at")
    return select(
        *(table.c[name] for name in names), table.c.former_until.label("former_secret_until")
    )


def _deliveries() -> Any:
    table, tries = schema.deliveries, schema.delivery_attempts
    names = ("id", "event_id", "destination_id", "status", "last_error", "delivered_at")
    counted = select(func.count()).where(tries.c.delivery_id == table.c.id).scalar_subquery()
    return select(
        *(table.c[name] for name in (*names, "created_at")),
        schema.events.c.kind.label("event"),
        counted.label("attempt_count"),
        table.c.next_at,
        table.c.last_status.label("last_status_code"),
    ).join_from(table, schema.events, table.c.event_id == schema.events.c.id)


destinations = Collection(schema.destinations, DestinationRecord, _destinations())

rules = Collection(
    schema.alert_rules,
    RuleRecord,
    select(schema.alert_rules, schema.alert_rules.c.window_kind.label("window")),
)


# Destinations


async def rotate_secret(
    connection: Connection, id: str, sealed: bytes, version: int, former_until: datetime
) -> None:
    """Give a webhook a secret at its next version, and keep the one before for a while."""
    table = schema.destinations
    values = {
        "secret": sealed,
        "secret_version": version,
        "former_secret": table.c.secret,
        "former_version": table.c.secret_version,
        "former_until": former_until,
    }
    await connection.execute(update(table).where(table.c.id == id).values(**values))


async def secret_version(connection: Connection, id: str) -> int:
    """Return the version at which the secret of a destination is sealed."""
    table = schema.destinations
    found = await connection.execute(select(table.c.secret_version).where(table.c.id == id))
    version: int = found.scalar_one()
    return version


async def remove_destination(connection: Connection, id: str) -> None:
    """Delete a destination with its log; its rules are gone already."""
    table, tries = schema.deliveries, schema.delivery_attempts
    own = select(table.c.id).where(table.c.destination_id == id)
    await connection.execute(delete(tries).where(tries.c.delivery_id.in_(own)))
    await connection.execute(delete(table).where(table.c.destination_id == id))
    await connection.execute(delete(schema.destinations).where(schema.destinations.c.id == id))


async def destination_of_key(connection: Connection, key_id: str) -> DestinationRecord | None:
    """Return the destination that is a key's `alert_webhook`."""
    table = schema.destinations
    found = await connection.execute(select(table.c.id).where(table.c.key_id == key_id))
    id = found.scalar_one_or_none()
    return None if id is None else await destinations.find(connection, id)


# Rules


async def rules_to(connection: Connection, destination_id: str) -> list[RuleRecord]:
    """Return the rules that send to a destination."""
    table = schema.alert_rules
    statement = select(table.c.id).where(table.c.destination_id == destination_id)
    found = (await connection.execute(statement.order_by(table.c.id))).scalars().all()
    return await rules.find_all(connection, found)


async def is_watched(connection: Connection, rule: RuleRecord) -> bool:
    """Tell whether a rule in force is on the same total as this one."""
    table = schema.alert_rules
    statement = select(table.c.id).where(
        table.c.owner_id == rule.owner_id,
        table.c.meter == rule.meter,
        table.c.window_kind == rule.window,
        table.c.enabled,
    )
    return (await connection.execute(statement.limit(1))).first() is not None


async def remove_rule(connection: Connection, id: str) -> None:
    """Delete a rule."""
    await connection.execute(delete(schema.alert_rules).where(schema.alert_rules.c.id == id))


# Deliveries


async def add_trial(connection: Connection, event: Event, destination_id: str) -> str:
    """Write an event for one destination alone, whatever it lists; return the delivery's id."""
    await journal.announce(connection, event)
    events, id = schema.events, uuid7()
    routed = update(events).where(events.c.id == event.id)
    await connection.execute(routed.values(routed_at=func.now()))
    await connection.execute(
        insert(schema.deliveries).values(id=id, event_id=event.id, destination_id=destination_id)
    )
    return id


async def redeliver(connection: Connection, id: str) -> None:
    """Have a delivery tried again from now on, as if it were new."""
    table = schema.deliveries
    values = {
        "status": "pending",
        "attempts": 0,
        "first_at": func.now(),
        "next_at": func.now(),
        "delivered_at": None,
    }
    await connection.execute(update(table).where(table.c.id == id).values(**values))


async def find_delivery(connection: Connection, id: str) -> DeliveryRecord | None:
    """Return the delivery with this id."""
    found = await connection.execute(_deliveries().where(schema.deliveries.c.id == id))
    row = found.mappings().first()
    return None if row is None else _delivery(row)


async def deliveries(
    connection: Connection,
    *,
    below: str | None,
    limit: int,
    destination_id: str | None = None,
    status: str | None = None,
    event: str | None = None,
) -> list[DeliveryRecord]:
    """Return deliveries, newest first, from below an id on."""
    table = schema.deliveries
    statement = _deliveries().order_by(table.c.id.desc()).limit(limit)
    if below is not None:
        statement = statement.where(table.c.id < below)
    for column, value in (
        (table.c.destination_id, destination_id),
        (table.c.status, status),
        (schema.events.c.kind, event),
    ):
        if value is not None:
            statement = statement.where(column == value)
    return [_delivery(row) for row in (await connection.execute(statement)).mappings()]


async def attempts(connection: Connection, delivery_id: str) -> list[AttemptRecord]:
    """Return the tries of a delivery, the first one first."""
    table = schema.delivery_attempts
    names = AttemptRecord.__struct_fields__
    statement = select(*(table.c[name] for name in names)).order_by(table.c.at, table.c.id)
    rows = await connection.execute(statement.where(table.c.delivery_id == delivery_id))
    return [AttemptRecord(**row) for row in rows.mappings()]


async def body_of(connection: Connection, event_id: str) -> str:
    """Return what an event tells, as it is sent."""
    table = schema.events
    body: str = (
        await connection.execute(select(table.c.body).where(table.c.id == event_id))
    ).scalar_one()
    return body


def _delivery(row: Any) -> DeliveryRecord:
    fields = {name: row[name] for name in DeliveryRecord.__struct_fields__}
    if row["status"] != "pending":
        fields["next_at"] = None
    return DeliveryRecord(**fields)
