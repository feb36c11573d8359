"""Reports: calls, usage, running sessions and the audit log for admins; their own for members.

Owns the parameters that choose what is shown. Owns no SQL and no sum (see
`store.usage`); writes nothing but the order that stops a session.

Invariants: what is under `/api/me` is narrowed to the caller's own member whatever is asked for;
no cell of a CSV can be a formula; a file is streamed, never held whole.
"""

import contextlib
from collections.abc import AsyncGenerator, Mapping
from datetime import datetime
from typing import Annotated, Final, cast

import msgspec
from litestar import Router, delete, get
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, FromQuery, QueryParameter
from litestar.response import Stream

from app.control import wire
from app.control.desk import Change, Desk
from app.control.download import cell, download, line
from app.control.errors import Refused, documented, invalid, unknown
from app.control.wire import Page
from app.core.faults import Fault
from app.core.refusals import Outcome
from app.store import catalogue, journal, sessions, usage
from app.store.journal import AuditEvent
from app.store.sessions import SessionDocument
from app.store.usage import (
    DIMENSIONS,
    UNIT_COLUMNS,
    CallDocument,
    Dimension,
    KeyView,
    Standing,
    UsageQuery,
    UsageRow,
)

GROUPS_MAX: Final = 10_000
"""Groups in one JSON answer; the CSV has no such end."""

Since = Annotated[
    str | None,
    QueryParameter(name="from", description="A date or an instant: from then on."),
]
Until = Annotated[
    str | None,
    QueryParameter(name="to", description="A date or an instant: until just before then."),
]
GroupBy = Annotated[
    str,
    QueryParameter(description=f"Some of {', '.join(DIMENSIONS)}, with commas between them."),
]

PoolId = Annotated[
    str | None,
    QueryParameter(description="Of the allocations that are in this pool itself now."),
]


class UsageDocument(msgspec.Struct, frozen=True):
    """Sums over the calls admitted from `from` until just before `to` (null: until now)."""

    since: datetime = msgspec.field(name="from")
    until: datetime | None = msgspec.field(name="to")
    group_by: list[Dimension]
    items: list[UsageRow]
    next: str | None = None


# Calls


class CallsQuery(msgspec.Struct, frozen=True):
    """Which calls to list."""

    since: datetime | None
    until: datetime | None
    equal: dict[str, str | None]


async def _calls_asked(
    desk: NamedDependency[Desk],
    allocation_id: FromQuery[str | None] = None,
    key_id: FromQuery[str | None] = None,
    model: FromQuery[str | None] = None,
    endpoint: FromQuery[str | None] = None,
    outcome: FromQuery[Outcome | None] = None,
    since: Since = None,
    until: Until = None,
) -> CallsQuery:
    """Read the parameters that choose calls, whosever they are."""
    zone = desk.deps.calendar.zone
    equal = {
        "allocation_id": allocation_id,
        "key_id": key_id,
        "model": model,
        "endpoint": endpoint,
        "outcome": outcome,
    }
    return CallsQuery(
        wire.instant_filter("from", since, zone),
        wire.instant_filter("to", until, zone),
        _filters(equal),
    )


_CALLS: Final = {"asked": Provide(_calls_asked)}


def _filters(equal: Mapping[str, str | None]) -> dict[str, str | None]:
    """Read what columns are to be equal to."""
    read: dict[str, str | None] = {}
    for field, value in equal.items():
        check = wire.id_filter if field.endswith("_id") else wire.text_filter
        read[field] = check(field, value)
    return read


async def _calls(
    desk: Desk, asked: CallsQuery, member_id: str | None, cursor: str | None, limit: int
) -> Page[CallDocument]:
    below = wire.after(cursor)
    async with desk.deps.database.snapshot() as connection:
        calls = await usage.calls(
            connection,
            below=below,
            limit=wire.page_limit(limit) + 1,
            since=asked.since,
            until=asked.until,
            equal=asked.equal | {"member_id": member_id},
        )
    return wire.paged(calls, limit, lambda call: call.id)


@get("/calls", tags=["Calls"], summary="List calls, newest first", dependencies=_CALLS)
async def list_calls(
    desk: NamedDependency[Desk],
    asked: NamedDependency[CallsQuery],
    cursor: FromQuery[str | None] = None,
    limit: FromQuery[int] = wire.PAGE_DEFAULT,
    member_id: FromQuery[str | None] = None,
) -> Page[CallDocument]:
    return await _calls(desk, asked, wire.id_filter("member_id", member_id), cursor, limit)


@get("/calls/{id:str}", tags=["Calls"], summary="Show a call")
async def show_call(id: FromPath[str], desk: NamedDependency[Desk]) -> CallDocument:
    call_id = wire.path_id(id, "call")
    async with desk.deps.database.snapshot() as connection:
        call = await usage.find_call(connection, call_id)
    if call is None:
        raise unknown("call")
    return call


# Usage


async def _usage_asked(
    desk: NamedDependency[Desk],
    group_by: GroupBy = "allocation",
    since: Since = None,
    until: Until = None,
    allocation_id: FromQuery[str | None] = None,
    pool_id: PoolId = None,
    key_id: FromQuery[str | None] = None,
    model: FromQuery[str | None] = None,
    endpoint: FromQuery[str | None] = None,
) -> UsageQuery:
    """Read the parameters that choose what is summed up, and how; not whose it is."""
    equal = {
        "allocation_id": allocation_id,
        "pool_id": pool_id,
        "key_id": key_id,
        "model": model,
        "endpoint": endpoint,
    }
    names = [name.strip() for name in group_by.split(",")]
    for name in names:
        if name not in DIMENSIONS:
            raise invalid(
                "group_by", "some_of", "must name some of {known}", known=", ".join(DIMENSIONS)
            )
    calendar = desk.deps.calendar
    first = wire.instant_filter("from", since, calendar.zone)
    return UsageQuery(
        tuple(cast(list[Dimension], wire.distinct("group_by", names))),
        usage.month_so_far(calendar, desk.at) if first is None else first,
        wire.instant_filter("to", until, calendar.zone),
        _filters(equal),
        str(calendar.zone),
    )


_SUMS: Final = {"asked": Provide(_usage_asked)}


def _of(asked: UsageQuery, member_id: str | None) -> UsageQuery:
    """Narrow it to one member, if one is named."""
    member = wire.id_filter("member_id", member_id)
    return msgspec.structs.replace(asked, equal={**asked.equal, "member_id": member})


async def _usage(desk: Desk, query: UsageQuery) -> UsageDocument:
    async with desk.deps.database.snapshot() as connection:
        rows = usage.usage_rows(connection, query, most=GROUPS_MAX + 1)
        items = [row async for row in rows]
    if len(items) > GROUPS_MAX:
        raise Refused(
            422,
            Fault(
                "too_many_groups",
                "These are more than {most} groups: ask for a shorter time, "
                "or for usage.csv or usage.json, which have no end.",
                most=GROUPS_MAX,
            ),
        )
    return UsageDocument(query.since, query.until, list(query.group_by), items)


@get(
    "/usage",
    tags=["Usage"],
    summary="Sum up usage; from this month's start if not told otherwise",
    dependencies=_SUMS,
)
async def show_usage(
    desk: NamedDependency[Desk],
    asked: NamedDependency[UsageQuery],
    member_id: FromQuery[str | None] = None,
) -> UsageDocument:
    """`units` are quantities by unit, each summed by itself; USD are summed across all."""
    return await _usage(desk, _of(asked, member_id))


@get(
    "/usage.csv",
    tags=["Usage"],
    summary="The same as CSV, with a column for every unit",
    media_type="text/csv",
    dependencies=_SUMS,
)
async def download_usage(
    desk: NamedDependency[Desk],
    asked: NamedDependency[UsageQuery],
    member_id: FromQuery[str | None] = None,
) -> Stream:
    return await _csv_file(desk, _of(asked, member_id))


@get("/usage.json", tags=["Usage"], summary="The same as JSON without end", dependencies=_SUMS)
async def export_usage(
    desk: NamedDependency[Desk],
    asked: NamedDependency[UsageQuery],
    member_id: FromQuery[str | None] = None,
) -> Stream:
    return await _json_file(desk, _of(asked, member_id))


async def _csv_file(desk: Desk, query: UsageQuery) -> Stream:
    return await download(_csv(desk, query), "usage.csv", "text/csv; charset=utf-8")


async def _json_file(desk: Desk, query: UsageQuery) -> Stream:
    return await download(_json(desk, query), "usage.json", "application/json")


async def _csv(desk: Desk, query: UsageQuery) -> AsyncGenerator[str, None]:
    named = [
        name
        for name in UsageRow.__struct_fields__
        if name in _TOTALS or name.rpartition("_")[0] in query.group_by or name in query.group_by
    ]

    def cells(row: UsageRow) -> list[str]:
        shown = [cell(getattr(row, name)) for name in named]
        # Zeros, not gaps: a column of numbers can be summed up.
        return [*shown, *(cell(row.units.get(unit, 0)) for unit in UNIT_COLUMNS)]

    async with contextlib.aclosing(_rows(desk, query)) as rows:
        first = await anext(rows, None)
        yield line([*named, *UNIT_COLUMNS])
        if first is None:
            return
        yield line(cells(first))
        async for row in rows:
            yield line(cells(row))


async def _json(desk: Desk, query: UsageQuery) -> AsyncGenerator[str, None]:
    encode = msgspec.json.Encoder(decimal_format="number").encode
    empty = UsageDocument(query.since, query.until, list(query.group_by), [])
    head, tail = encode(empty).decode().split('"items":[]')
    async with contextlib.aclosing(_rows(desk, query)) as rows:
        first = await anext(rows, None)
        yield f'{head}"items":['
        if first is not None:
            yield encode(first).decode()
        async for row in rows:
            yield f",\n{encode(row).decode()}"
        yield f"]{tail}"


async def _rows(desk: Desk, query: UsageQuery) -> AsyncGenerator[UsageRow, None]:
    async with desk.deps.database.snapshot() as connection:
        await usage.be_patient(connection)
        async with contextlib.aclosing(usage.usage_rows(connection, query)) as rows:
            async for row in rows:
                yield row


_TOTALS: Final = ("calls", "refused_calls", "unpriced_calls", "tokens", "cost_usd")


# Sessions


async def _sessions(
    desk: Desk, cursor: str | None, limit: int, **equal: str | None
) -> Page[SessionDocument]:
    after, equal = wire.after(cursor), _filters(equal)
    async with desk.deps.database.snapshot() as connection:
        running = await sessions.running(
            connection, at=desk.at, after=after, limit=wire.page_limit(limit) + 1, equal=equal
        )
    return wire.paged(running, limit, lambda session: session.id)


async def _stop(desk: Desk, id: str, **equal: str) -> None:
    session_id = wire.path_id(id, "realtime session")

    async def work(change: Change) -> None:
        if not await sessions.stop(change.connection, session_id, equal=equal):
            raise unknown("realtime session")
        await change.record("realtime_session_killed", "realtime_session", session_id)

    await desk.write(work)


@get(
    "/realtime-sessions",
    tags=["Realtime sessions"],
    summary="List the realtime sessions that run, on all replicas, the longest running first",
)
async def list_sessions(
    desk: NamedDependency[Desk],
    cursor: FromQuery[str | None] = None,
    limit: FromQuery[int] = wire.PAGE_DEFAULT,
    allocation_id: FromQuery[str | None] = None,
    member_id: FromQuery[str | None] = None,
    key_id: FromQuery[str | None] = None,
    model: FromQuery[str | None] = None,
) -> Page[SessionDocument]:
    return await _sessions(
        desk,
        cursor,
        limit,
        allocation_id=allocation_id,
        member_id=member_id,
        key_id=key_id,
        model=model,
    )


@delete("/realtime-sessions/{id:str}", tags=["Realtime sessions"], summary="Kill a session")
async def kill_session(id: FromPath[str], desk: NamedDependency[Desk]) -> None:
    """It is closed with 1008 `killed` within a moment, and billed for what it used."""
    await _stop(desk, id)


# Audit


@get("/audit", tags=["Audit"], summary="List changes, newest first")
async def list_audit(
    desk: NamedDependency[Desk],
    cursor: FromQuery[str | None] = None,
    limit: FromQuery[int] = wire.PAGE_DEFAULT,
    event: FromQuery[str | None] = None,
    actor_id: FromQuery[str | None] = None,
    object: FromQuery[str | None] = None,
    object_id: FromQuery[str | None] = None,
    since: Since = None,
    until: Until = None,
) -> Page[AuditEvent]:
    zone = desk.deps.calendar.zone
    below = wire.after(cursor)
    first, last = wire.instant_filter("from", since, zone), wire.instant_filter("to", until, zone)
    equal = {
        "event": wire.text_filter("event", event),
        "actor_id": wire.id_filter("actor_id", actor_id),
        "object": wire.text_filter("object", object),
        "object_id": wire.object_filter("object_id", object_id),
    }
    async with desk.deps.database.snapshot() as connection:
        events = await journal.events(
            connection,
            below=below,
            limit=wire.page_limit(limit) + 1,
            since=first,
            until=last,
            equal=equal,
        )
    return wire.paged(events, limit, lambda event: event.id)


# One's own


@get("/allocations", summary="List one's own allocations, and how they stand")
async def my_allocations(
    desk: NamedDependency[Desk],
    cursor: FromQuery[str | None] = None,
    limit: FromQuery[int] = wire.PAGE_DEFAULT,
) -> Page[Standing]:
    after = wire.after(cursor)
    async with desk.deps.database.snapshot() as connection:
        records = await catalogue.allocations.page(
            connection,
            after=after,
            limit=wire.page_limit(limit) + 1,
            equal={"member_id": desk.member_id},
        )
        standings = await usage.standings(connection, records, desk.deps.calendar, desk.at)
    return wire.paged(standings, limit, lambda standing: standing.id)


@get("/keys", summary="List one's own keys")
async def my_keys(
    desk: NamedDependency[Desk],
    cursor: FromQuery[str | None] = None,
    limit: FromQuery[int] = wire.PAGE_DEFAULT,
) -> Page[KeyView]:
    after = wire.after(cursor)
    async with desk.deps.database.snapshot() as connection:
        records = await catalogue.keys.page(
            connection,
            after=after,
            limit=wire.page_limit(limit) + 1,
            equal={"member_id": desk.member_id},
        )
        views = await usage.key_views(connection, records, desk.deps.calendar, desk.at)
    shown = [usage.discreet(view) for view in views]
    return wire.paged(shown, limit, lambda view: view.id)


@get("/calls", summary="List one's own calls, newest first", dependencies=_CALLS)
async def my_calls(
    desk: NamedDependency[Desk],
    asked: NamedDependency[CallsQuery],
    cursor: FromQuery[str | None] = None,
    limit: FromQuery[int] = wire.PAGE_DEFAULT,
) -> Page[CallDocument]:
    return await _calls(desk, asked, desk.member_id, cursor, limit)


@get(
    "/usage",
    summary="Sum up one's own usage; from this month's start if not told otherwise",
    dependencies=_SUMS,
)
async def my_usage(
    desk: NamedDependency[Desk], asked: NamedDependency[UsageQuery]
) -> UsageDocument:
    return await _usage(desk, _of(asked, desk.member_id))


@get(
    "/usage.csv",
    summary="The same as CSV, with a column for every unit",
    media_type="text/csv",
    dependencies=_SUMS,
)
async def download_my_usage(
    desk: NamedDependency[Desk], asked: NamedDependency[UsageQuery]
) -> Stream:
    return await _csv_file(desk, _of(asked, desk.member_id))


@get("/usage.json", summary="The same as JSON without end", dependencies=_SUMS)
async def export_my_usage(
    desk: NamedDependency[Desk], asked: NamedDependency[UsageQuery]
) -> Stream:
    return await _json_file(desk, _of(asked, desk.member_id))


@get("/realtime-sessions", summary="List one's own running realtime sessions")
async def my_sessions(
    desk: NamedDependency[Desk],
    cursor: FromQuery[str | None] = None,
    limit: FromQuery[int] = wire.PAGE_DEFAULT,
    allocation_id: FromQuery[str | None] = None,
    key_id: FromQuery[str | None] = None,
    model: FromQuery[str | None] = None,
) -> Page[SessionDocument]:
    return await _sessions(
        desk,
        cursor,
        limit,
        allocation_id=allocation_id,
        member_id=desk.member_id,
        key_id=key_id,
        model=model,
    )


@delete("/realtime-sessions/{id:str}", summary="Stop one of one's own realtime sessions")
async def stop_session(id: FromPath[str], desk: NamedDependency[Desk]) -> None:
    await _stop(desk, id, member_id=desk.member_id)


def report_router() -> Router:
    """Make the router of what admins look at."""
    handlers = [
        list_calls,
        show_call,
        show_usage,
        download_usage,
        export_usage,
        list_audit,
        list_sessions,
        kill_session,
    ]
    return Router("/", route_handlers=documented(handlers))


def me_router() -> Router:
    """Make the router of what is one's own."""
    handlers = [
        my_allocations,
        my_keys,
        my_calls,
        my_usage,
        download_my_usage,
        export_my_usage,
        my_sessions,
        stop_session,
    ]
    return Router("/", route_handlers=documented(handlers), tags=["Me"])
