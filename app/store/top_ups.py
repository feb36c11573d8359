"""Top-ups: temporary raises of caps, and what members ask for, as rows.

Owns the statements that read, add and end them. Owns no rule of who may have how much until when
(see `app.control.top_ups`, `core.top_ups`), and no cap: the ledger adds what is in force to it.

Invariants: a top-up begins and ends under the lock of the account that it gives room in, so that no
call is admitted by what is not yet, or no longer, there; one that is over stays in the books.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Literal, get_args

import msgspec
from sqlalchemy import Select, func, insert, select, update

from app.core.ledger import AccountKey, Meter
from app.store import schema
from app.store.catalogue import Collection, lock_account
from app.store.database import Connection

RequestStatus = Literal["open", "approved", "declined", "withdrawn"]

REQUEST_STATUSES: tuple[RequestStatus, ...] = get_args(RequestStatus)


class TopUpRecord(msgspec.Struct, frozen=True):
    """A raise of an allocation's monthly cap for a while, in tokens or nano-USD."""

    id: str
    allocation_id: str
    meter: Meter
    amount: int
    starts_at: datetime
    expires_at: datetime
    reason: str
    request_id: str | None
    actor: str
    created_at: datetime

    def in_force(self, at: datetime) -> bool:
        """Tell whether it raises the cap at an instant."""
        return self.starts_at <= at < self.expires_at


class RequestRecord(msgspec.Struct, frozen=True):
    """What a member asked for, in tokens or nano-USD, and what became of it."""

    id: str
    allocation_id: str
    member_id: str
    meter: Meter
    amount: int
    reason: str
    expires: str
    """As it was asked for: `day`, `period`, a date or an instant."""
    status: RequestStatus
    decided_by: str | None
    decided_at: datetime | None
    decision_reason: str | None
    top_up_id: str | None
    created_at: datetime


def _top_ups() -> Select[Any]:
    table = schema.top_ups
    others = [table.c[name] for name in TopUpRecord.__struct_fields__ if name != "allocation_id"]
    return select(table.c.owner_id.label("allocation_id"), *others)


top_ups = Collection(schema.top_ups, TopUpRecord, _top_ups())

requests = Collection(schema.top_up_requests, RequestRecord, select(schema.top_up_requests))


async def page(
    connection: Connection,
    *,
    after: str | None,
    limit: int,
    at: datetime,
    allocation_id: str | None = None,
    active: bool | None = None,
) -> list[TopUpRecord]:
    """Return top-ups, newest first, from below an id on; `active` ones are in force at `at`."""
    table = schema.top_ups
    conditions = []
    if after is not None:
        conditions.append(table.c.id < after)
    if allocation_id is not None:
        conditions.append(table.c.owner_id == allocation_id)
    if active is not None:
        in_force = (table.c.starts_at <= at) & (table.c.expires_at > at)
        conditions.append(in_force if active else ~in_force)
    return await top_ups.where(connection, *conditions, limit=limit)


async def in_force(
    connection: Connection, allocation_ids: Iterable[str], at: datetime
) -> dict[str, list[TopUpRecord]]:
    """Return the top-ups that raise the caps of allocations at an instant, newest first."""
    table = schema.top_ups
    found: dict[str, list[TopUpRecord]] = {id: [] for id in allocation_ids}
    for record in await top_ups.where(
        connection,
        table.c.owner_id.in_(list(found)),
        table.c.starts_at <= at,
        table.c.expires_at > at,
    ):
        found[record.allocation_id].append(record)
    return found


async def add(
    connection: Connection,
    account: AccountKey,
    *,
    id: str,
    meter: Meter,
    amount: int,
    reason: str,
    at: datetime,
    expires_at: datetime,
    actor: str,
    request_id: str | None,
) -> None:
    """Raise the cap that an account is judged by, from now on, for a while."""
    await lock_account(connection, account)
    await connection.execute(
        insert(schema.top_ups).values(
            id=id,
            owner_id=account.owner_id,
            meter=meter,
            window_kind=account.window,
            amount=amount,
            starts_at=at,
            expires_at=expires_at,
            reason=reason,
            request_id=request_id,
            actor=actor,
            created_at=at,
        )
    )
    limits = schema.limits
    await connection.execute(
        update(limits)
        .where(
            limits.c.owner_id == account.owner_id,
            limits.c.meter == meter,
            limits.c.window_kind == account.window,
        )
        # Until then the ledger looks for top-ups.
        .values(topped_until=func.greatest(limits.c.topped_until, expires_at))
    )


async def end(connection: Connection, account: AccountKey, id: str, at: datetime) -> None:
    """Let a top-up be over now."""
    await lock_account(connection, account)
    await top_ups.change(connection, id, {"expires_at": at})


async def open_request(connection: Connection, allocation_id: str) -> str | None:
    """Return the id of the request of an allocation that waits for an answer."""
    table = schema.top_up_requests
    statement = select(table.c.id).where(
        table.c.allocation_id == allocation_id, table.c.status == "open"
    )
    found: str | None = (await connection.execute(statement)).scalar_one_or_none()
    return found


def in_all(records: Sequence[TopUpRecord], meter: Meter) -> int:
    """Add up what top-ups raise the cap in one meter by."""
    return sum(record.amount for record in records if record.meter == meter)
