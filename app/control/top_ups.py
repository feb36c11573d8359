"""Top-ups and requests: more than a cap allows, for a while, and how members ask for it.

Owns the bodies in which both come, what fits the allocation they are for, and how they are shown.
Owns no SQL (see `store.top_ups`) and no rule of when they end (see `core.top_ups`).

Invariants: a top-up raises a cap that there is, and ends within a year; no cap and its top-ups
together are more than a cap may be; an allocation has at most one open request; a request is
decided once; every change leaves its event in the same transaction.
"""

from datetime import datetime
from decimal import Decimal
from uuid import UUID

import msgspec
from litestar import Router, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody

from app.control import records, wire
from app.control.desk import Change, Desk
from app.control.errors import documented, invalid, misfit, taken, unknown
from app.control.limits import read_amount, shown
from app.control.wire import Input, Page
from app.core.alerts import request_event
from app.core.ledger import AccountKey, Meter, account_key
from app.core.money import AMOUNT_NANO_MAX, AMOUNT_TOKENS_MAX
from app.core.top_ups import InvalidExpiry, expiry
from app.ids import uuid7
from app.store import catalogue, journal, top_ups
from app.store.catalogue import AllocationRecord
from app.store.top_ups import RequestRecord, RequestStatus, TopUpRecord


class TopUpInput(Input):
    """A raise of a cap: tokens (a number) or USD (a decimal string), from now on.

    It ends with the `day` or the `period` (the month), at the end of a date, or at an instant.
    """

    allocation_id: UUID
    meter: Meter
    amount: Decimal
    reason: str
    expires: str


class TopUpDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A raise of a cap for a while: USD as decimal strings, tokens as numbers."""

    id: str
    allocation_id: str
    meter: Meter
    amount: int | str
    reason: str
    starts_at: datetime
    expires_at: datetime
    active: bool
    request_id: str | None
    actor: str
    created_at: datetime


class RequestInput(TopUpInput):
    """What a member asks for; `reason` is for whoever decides."""


class ApprovalInput(Input):
    """What is given instead of what was asked for, where that is something else."""

    amount: Decimal | None = None
    expires: str | None = None
    reason: str | None = None


class DeclineInput(Input):
    """Why a request is declined, for whoever asked."""

    reason: str


class RequestDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What a member asked for, and what became of it; the top-up says what was given."""

    id: str
    allocation_id: str
    member_id: str
    meter: Meter
    amount: int | str
    reason: str
    expires: str
    status: RequestStatus
    decided_by: str | None
    decided_at: datetime | None
    decision_reason: str | None
    top_up_id: str | None
    created_at: datetime


# Top-ups


@post("/top-ups", summary="Raise a cap for a while")
async def add_top_up(data: JSONBody[TopUpInput], desk: NamedDependency[Desk]) -> TopUpDocument:
    """It holds for the next call on every replica, and shows on the allocation's card."""
    allocation_id = str(data.allocation_id)
    amount = _amount(data.meter, data.amount)
    reason = _reason(data.reason)

    async def work(change: Change) -> TopUpDocument:
        record = await catalogue.allocations.find(change.connection, allocation_id)
        if record is None:
            raise invalid("allocation_id", "no_such_id", "is no {what}'s", what="allocation")
        expires_at = _expiry(desk, record, data.expires)
        return _top_up(
            await _add(change, record, data.meter, amount, expires_at, reason), change.at
        )

    return await desk.write(work)


@get("/top-ups", summary="List top-ups, newest first")
async def list_top_ups(
    desk: NamedDependency[Desk],
    cursor: FromQuery[str | None] = None,
    limit: FromQuery[int] = wire.PAGE_DEFAULT,
    allocation_id: FromQuery[str | None] = None,
    active: FromQuery[bool | None] = None,
) -> Page[TopUpDocument]:
    allocation = wire.id_filter("allocation_id", allocation_id)
    after = wire.after(cursor)
    async with desk.deps.database.snapshot() as connection:
        found = await top_ups.page(
            connection,
            after=after,
            limit=wire.page_limit(limit) + 1,
            at=desk.at,
            allocation_id=allocation,
            active=active,
        )
    return wire.paged([_top_up(one, desk.at) for one in found], limit, lambda one: one.id)


@delete("/top-ups/{id:str}", summary="End a top-up now")
async def end_top_up(id: FromPath[str], desk: NamedDependency[Desk]) -> None:
    """What was used of it stays used. Ending one that is over changes nothing."""
    top_up_id = wire.path_id(id, "top-up")

    async def work(change: Change) -> None:
        top_up = await top_ups.top_ups.find(change.connection, top_up_id)
        if top_up is None:
            raise unknown("top-up")
        if not top_up.in_force(change.at):
            return
        record = await catalogue.allocations.find(change.connection, top_up.allocation_id)
        assert record is not None, "top-ups are of allocations"
        account = _account(change.desk, record, change.at)
        await top_ups.end(change.connection, account, top_up_id, change.at)
        await change.record(
            "top_up_ended",
            "allocation",
            record.id,
            before={"top_up_id": top_up_id, "expires_at": top_up.expires_at},
            after={"top_up_id": top_up_id, "expires_at": change.at},
        )

    await desk.write(work)


# Requests


@get("/requests", summary="List what members ask for, newest first")
async def list_requests(
    desk: NamedDependency[Desk],
    cursor: FromQuery[str | None] = None,
    limit: FromQuery[int] = wire.PAGE_DEFAULT,
    status: FromQuery[RequestStatus | None] = None,
    allocation_id: FromQuery[str | None] = None,
    member_id: FromQuery[str | None] = None,
) -> Page[RequestDocument]:
    page = await records.page(
        desk,
        top_ups.requests,
        cursor,
        limit,
        status=status,
        allocation_id=wire.id_filter("allocation_id", allocation_id),
        member_id=wire.id_filter("member_id", member_id),
    )
    return Page([_request(one) for one in page.items], page.next)


@post("/requests/{id:str}/approve", status_code=200, summary="Give what a member asked for")
async def approve_request(
    id: FromPath[str], data: JSONBody[ApprovalInput], desk: NamedDependency[Desk]
) -> RequestDocument:
    """As it was asked for, or with another amount or end; a `day` is the day of the approval."""
    request_id = wire.path_id(id, "request")
    reason = wire.reason(data.reason)

    async def work(change: Change) -> RequestDocument:
        request = await _open_request(change, request_id)
        record = await catalogue.allocations.find(change.connection, request.allocation_id)
        assert record is not None, "requests are for allocations"
        amount = request.amount
        if data.amount is not None:
            amount = _amount(request.meter, data.amount)
        expires = request.expires if data.expires is None else data.expires
        expires_at = _expiry(desk, record, expires)
        added = await _add(
            change, record, request.meter, amount, expires_at, request.reason, request_id
        )
        return await _decide(
            change,
            request,
            "approved",
            reason,
            top_up_id=added.id,
            given={"amount": shown(request.meter, amount), "expires_at": expires_at},
        )

    return await desk.write(work)


@post("/requests/{id:str}/decline", status_code=200, summary="Decline what a member asked for")
async def decline_request(
    id: FromPath[str], data: JSONBody[DeclineInput], desk: NamedDependency[Desk]
) -> RequestDocument:
    request_id = wire.path_id(id, "request")
    reason = _reason(data.reason)

    async def work(change: Change) -> RequestDocument:
        request = await _open_request(change, request_id)
        return await _decide(change, request, "declined", reason)

    return await desk.write(work)


# One's own requests


@post("/requests", summary="Ask for more than a cap of one's own allocation")
async def raise_request(
    data: JSONBody[RequestInput], desk: NamedDependency[Desk]
) -> RequestDocument:
    """An allocation has one open request at a time; an admin decides."""
    id = uuid7()
    allocation_id = str(data.allocation_id)
    meter, amount = data.meter, _amount(data.meter, data.amount)
    reason = _reason(data.reason)
    expires = wire.text("expires", data.expires, most=100)

    async def work(change: Change) -> RequestDocument:
        connection = change.connection
        record = await catalogue.allocations.find(connection, allocation_id)
        if record is None or record.member_id != desk.member_id:
            raise unknown("allocation")
        await _fits(change, record, meter, amount)
        expires_at = _expiry(desk, record, expires)
        if await top_ups.open_request(connection, allocation_id) is not None:
            raise taken(
                "allocation_id",
                "request_open",
                "has an open request already: withdraw that one first",
            )
        await top_ups.requests.add(
            connection,
            id=id,
            allocation_id=allocation_id,
            member_id=desk.member_id,
            meter=meter,
            amount=amount,
            reason=reason,
            expires=expires,
            created_at=change.at,
        )
        added = _request(await records.again(change, top_ups.requests, id))
        await change.record("request_raised", "request", id, after=added, reason=reason)
        await journal.announce(
            connection,
            request_event(
                id, desk.member_id, allocation_id, meter, amount, reason, expires_at, change.at
            ),
        )
        return added

    return await desk.write(work)


@get("/requests", summary="List one's own requests, newest first")
async def my_requests(
    desk: NamedDependency[Desk],
    cursor: FromQuery[str | None] = None,
    limit: FromQuery[int] = wire.PAGE_DEFAULT,
    status: FromQuery[RequestStatus | None] = None,
    allocation_id: FromQuery[str | None] = None,
) -> Page[RequestDocument]:
    page = await records.page(
        desk,
        top_ups.requests,
        cursor,
        limit,
        status=status,
        allocation_id=wire.id_filter("allocation_id", allocation_id),
        member_id=desk.member_id,
    )
    return Page([_request(one) for one in page.items], page.next)


@delete("/requests/{id:str}", summary="Withdraw one of one's own open requests")
async def withdraw_request(id: FromPath[str], desk: NamedDependency[Desk]) -> None:
    request_id = wire.path_id(id, "request")

    async def work(change: Change) -> None:
        request = await _open_request(change, request_id, member_id=desk.member_id)
        await _decide(change, request, "withdrawn", None)

    await desk.write(work)


# What they do alike


def _amount(meter: Meter, amount: Decimal) -> int:
    units = read_amount("amount", meter, amount)
    if units == 0:
        raise invalid("amount", "not_positive", "must be more than 0")
    return units


def _reason(value: str) -> str:
    reason = wire.reason(value)
    if reason is None:
        raise invalid("reason", "no_reason", "must say why")
    return reason


def _expiry(desk: Desk, record: AllocationRecord, expires: str) -> datetime:
    calendar = desk.deps.calendar.of(record.billing_timezone)
    try:
        return expiry(expires, desk.at, calendar)
    except InvalidExpiry as error:
        raise misfit("expires", error) from None


def _account(desk: Desk, record: AllocationRecord, at: datetime) -> AccountKey:
    period = desk.deps.calendar.of(record.billing_timezone).period("month", at)
    return account_key("allocation", record.id, "month", period)


async def _fits(change: Change, record: AllocationRecord, meter: Meter, amount: int) -> None:
    cap = record.cap(meter)
    if cap is None:
        raise invalid(
            "meter",
            "no_cap",
            "has nothing to raise: the allocation has no cap of {meter}",
            meter=meter,
        )
    in_force = (await top_ups.in_force(change.connection, [record.id], change.at))[record.id]
    most = AMOUNT_TOKENS_MAX if meter == "tokens" else AMOUNT_NANO_MAX
    if cap + top_ups.in_all(in_force, meter) + amount > most:
        raise invalid(
            "amount",
            "cap_too_much",
            "would raise the cap, with all top-ups, above {most}",
            most=str(shown(meter, most)),
        )


async def _add(
    change: Change,
    record: AllocationRecord,
    meter: Meter,
    amount: int,
    expires_at: datetime,
    reason: str,
    request_id: str | None = None,
) -> TopUpRecord:
    await _fits(change, record, meter, amount)
    id = uuid7()
    await top_ups.add(
        change.connection,
        _account(change.desk, record, change.at),
        id=id,
        meter=meter,
        amount=amount,
        reason=reason,
        at=change.at,
        expires_at=expires_at,
        actor=change.desk.author.actor,
        request_id=request_id,
    )
    added = await top_ups.top_ups.find(change.connection, id)
    assert added is not None, "it has just been added"
    await change.record(
        "top_up_added",
        "allocation",
        record.id,
        after={
            "top_up_id": id,
            "meter": meter,
            "amount": shown(meter, amount),
            "expires_at": expires_at,
            "request_id": request_id,
        },
        reason=reason,
    )
    return added


async def _open_request(
    change: Change, request_id: str, member_id: str | None = None
) -> RequestRecord:
    """Return a request that is about to be decided; `member_id` is whose it must be."""
    request = await top_ups.requests.find(change.connection, request_id)
    if request is None or member_id not in (None, request.member_id):
        raise unknown("request")
    if request.status != "open":
        raise taken(
            "status",
            "decided",
            "is {status} already; only an open request can be decided",
            status=request.status,
        )
    return request


async def _decide(
    change: Change,
    request: RequestRecord,
    status: RequestStatus,
    reason: str | None,
    *,
    top_up_id: str | None = None,
    given: dict[str, object] | None = None,
) -> RequestDocument:
    """Close a request, and record it beside what was asked for."""
    await top_ups.requests.change(
        change.connection,
        request.id,
        {
            "status": status,
            "decided_by": change.desk.author.actor,
            "decided_at": change.at,
            "decision_reason": reason,
            "top_up_id": top_up_id,
        },
    )
    asked = {"amount": shown(request.meter, request.amount), "expires": request.expires}
    await change.record(
        f"request_{status}",
        "request",
        request.id,
        before={"status": request.status} | asked,
        after={"status": status, "top_up_id": top_up_id} | (given or {}),
        reason=reason,
    )
    return _request(await records.again(change, top_ups.requests, request.id))


def _top_up(record: TopUpRecord, at: datetime) -> TopUpDocument:
    fields = msgspec.structs.asdict(record) | {"amount": shown(record.meter, record.amount)}
    return TopUpDocument(**fields, active=record.in_force(at))


def _request(record: RequestRecord) -> RequestDocument:
    fields = msgspec.structs.asdict(record)
    return RequestDocument(**fields | {"amount": shown(record.meter, record.amount)})


def top_up_router() -> Router:
    """Make the router of what admins give."""
    given = Router(
        "/", route_handlers=documented([add_top_up, list_top_ups, end_top_up]), tags=["Top-ups"]
    )
    asked = Router(
        "/",
        route_handlers=documented([list_requests, approve_request, decline_request]),
        tags=["Requests"],
    )
    return Router("/", route_handlers=[given, asked])


def my_requests_router() -> Router:
    """Make the router of what members ask for."""
    handlers = [raise_request, my_requests, withdraw_request]
    return Router("/", route_handlers=documented(handlers), tags=["Me"])
