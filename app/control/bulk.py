"""Bulk: many allocations at once, changed alike or read from a sheet; and sheets to download.

Owns the bodies, the sheet's columns, and that it is all or nothing. Owns no way of its own to
change an allocation (see `admin`), and no SQL.

Invariants:

- A run with a row that cannot be taken changes nothing, and names every such row.
- A dry run does what the run would do, to the last check, and takes it back.
- What is done to a row is audited as if it had been done to it alone.
"""

import csv
import io
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, cast
from uuid import UUID

import msgspec
from litestar import Router, get, post
from litestar.di import NamedDependency
from litestar.params import FromQuery, JSONBody
from litestar.response import Stream

from app.control import wire
from app.control.admin import (
    AllocationPatch,
    configured,
    edit_allocation,
    read_edit,
    set_caps,
    unknown_models,
)
from app.control.desk import Change, Desk
from app.control.download import csv_file
from app.control.errors import FieldError, Refused, documented, invalid
from app.control.reports import Since, Until
from app.control.search import SOUGHT
from app.control.wire import Input, Sheet
from app.core.faults import Fault, Value
from app.core.ledger import Meter
from app.ids import uuid7
from app.store import bulk, catalogue, journal, overview, usage
from app.store.catalogue import AllocationRecord
from app.store.search import AllocationQuery, Place
from app.store.search import allocations as find_allocations
from app.store.usage import State

IDS_MAX: Final = 200
"""Whose calls may have to wait while they are changed."""
ROWS_MAX: Final = 500
PAGE: Final = 500

COLUMNS: Final = (
    "email",
    "name",
    "models",
    "quota_cost_usd_per_month",
    "quota_tokens_per_month",
    "pool",
)
REQUIRED: Final = ("email", "models")


class BulkInput(Input):
    """What to change of many allocations alike."""

    ids: list[UUID]
    changes: AllocationPatch
    reason: str | None = None
    dry_run: bool = False


class ImportInput(Sheet):
    """Allocations to add: a sheet with the columns `email`, `name`, `models` (with spaces or `;`
    between them), `quota_cost_usd_per_month`, `quota_tokens_per_month` and `pool`."""

    dry_run: bool = True
    reason: str | None = None


class BulkRow(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of one row: of a request's ids, or of a sheet's lines below its header."""

    row: int
    ok: bool
    id: str | None = None
    """Of the allocation; a dry run adds none."""
    name: str | None = None
    field: str | None = None
    message: str | None = None
    code: str | None = None
    """Of what is wrong, for programs; `values` are what varies in the message."""
    values: dict[str, Value] = {}
    state_before: State | None = None
    state_after: State | None = None


class BulkDocument(msgspec.Struct, frozen=True):
    """What was done or, by a dry run, what would be."""

    dry_run: bool
    applied: bool
    rows: list[BulkRow]


class _Undone(Exception):
    """Takes a transaction back; what it came to is known all the same."""

    def __init__(self, document: BulkDocument) -> None:
        super().__init__()
        self.document = document


async def _settled(desk: Desk, work: Any) -> BulkDocument:
    """Run it, and take it back if it was a dry run or has a bad row."""
    try:
        return cast(BulkDocument, await desk.write(work))
    except _Undone as undone:
        document = undone.document
    if not document.dry_run:
        raise _refused(document.rows)
    return document


def _closed(rows: list[BulkRow], *, dry_run: bool) -> BulkDocument:
    applied = not dry_run and all(row.ok for row in rows)
    document = BulkDocument(dry_run, applied, rows)
    if not applied:
        raise _Undone(document)
    return document


def _refused(rows: Sequence[BulkRow]) -> Refused:
    bad = [row for row in rows if not row.ok]
    return Refused(
        422,
        Fault(
            "rows_refused",
            "{bad} of {rows} rows cannot be taken; nothing was changed.",
            bad=len(bad),
            rows=len(rows),
        ),
        errors=[
            FieldError(
                f"rows[{row.row}]" + (f".{row.field}" if row.field else ""),
                row.message or "",
                row.code or "",
                row.values,
            )
            for row in bad
        ],
    )


def _bad(row: int, error: Refused, **more: Any) -> BulkRow:
    return BulkRow(
        row=row,
        ok=False,
        field=error.field,
        message=error.detail,
        code=error.fault.code,
        values=error.fault.values,
        **more,
    )


# Changing many alike


@post("/allocations/bulk", status_code=200, summary="Change many allocations alike, or none")
async def change_allocations(
    data: JSONBody[BulkInput], desk: NamedDependency[Desk]
) -> BulkDocument:
    """If one of them cannot be changed so, none is (422, naming each). A dry run only tells."""
    ids = wire.distinct("ids", [str(id) for id in data.ids], IDS_MAX)
    if data.changes.reason is not None:
        raise invalid("changes.reason", "reason_beside", "belongs beside changes")
    edit, reason = read_edit(data.changes), wire.reason(data.reason)
    if not edit.values and not edit.caps:
        raise invalid("changes", "changes_none", "must name something to change")
    if "billing_timezone" in edit.values:
        raise invalid(
            "changes.billing_timezone",
            "timezone_alone",
            "takes what was used along: change it one at a time",
        )
    but_caps = msgspec.structs.replace(edit, caps={})

    async def work(change: Change) -> BulkDocument:
        before = await _states(change, ids)
        rows: list[BulkRow] = []
        edited: list[AllocationRecord] = []
        for n, id in enumerate(ids):
            try:
                record = await edit_allocation(change, id, but_caps, reason)
            except Refused as error:
                rows.append(_bad(n, error, id=id, state_before=before.get(id)))
            else:
                edited.append(record)
                rows.append(
                    BulkRow(row=n, ok=True, id=id, name=record.name, state_before=before[id])
                )
        await set_caps(change, [(record, edit.caps) for record in edited], reason)
        after = await _states(change, ids)
        rows = [
            msgspec.structs.replace(row, state_after=after[row.id or ""]) if row.ok else row
            for row in rows
        ]
        return _closed(rows, dry_run=data.dry_run)

    return await _settled(desk, work)


async def _states(change: Change, ids: Sequence[str]) -> dict[str, State]:
    found = await catalogue.allocations.find_all(change.connection, ids)
    calendar = change.desk.deps.calendar
    standings = await usage.standings(change.connection, found, calendar, change.at)
    return {standing.id: standing.state for standing in standings}


# Reading a sheet


class _Line(msgspec.Struct, frozen=True):
    """A row that can be read."""

    row: int
    email: str
    name: str
    models: list[str]
    caps: dict[Meter, int | None]
    pool: str


@post(
    "/allocations/import", status_code=200, summary="Add allocations from a sheet, or try it first"
)
async def import_allocations(
    data: JSONBody[ImportInput],
    desk: NamedDependency[Desk],
    dry_run: FromQuery[bool | None] = None,
) -> BulkDocument:
    """A dry run unless told otherwise: each row is answered with what is wrong with it.

    A run with a bad row adds nothing (422, naming each). The sheet may also be the body itself, as
    `text/csv` with `?dry_run=false`. Members, models and pools are there already; a member's
    allocations have names of their own, so a sheet that comes twice adds nothing twice.
    """
    trying = data.dry_run if dry_run is None else dry_run
    reason = wire.reason(data.reason)
    lines, bad = _read(data.csv)

    async def work(change: Change) -> BulkDocument:
        rows = [*bad]
        fit: list[tuple[_Line, str, str | None]] = []
        check = await _Check.of(change, lines)
        for line in lines:
            try:
                member_id, pool_id = check.line(line)
            except Refused as error:
                rows.append(_bad(line.row, error, name=line.name))
            else:
                fit.append((line, member_id, pool_id))
        if not bad and len(fit) == len(lines):
            rows += await _add(change, fit, reason)
        else:
            rows += [BulkRow(row=line.row, ok=True, name=line.name) for line, _, _ in fit]
        rows.sort(key=lambda row: row.row)
        if trying:
            # What was added is taken back: there is no such id.
            rows = [msgspec.structs.replace(row, id=None) for row in rows]
        return _closed(rows, dry_run=trying)

    return await _settled(desk, work)


def _read(sheet: str) -> tuple[list[_Line], list[BulkRow]]:
    """Read a sheet: the lines that can be read, and the others. Refuses what is no such sheet."""
    if "\x00" in sheet:
        raise invalid("csv", "csv_nul", "must not contain NUL characters")
    reader = csv.reader(io.StringIO(sheet.removeprefix("\ufeff"), newline=""), strict=True)
    try:
        table = [row for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise invalid(
            "csv",
            "csv_unreadable",
            "cannot be read in line {line}: {said}",
            line=reader.line_num,
            said=str(error),
        ) from None
    header = [name.strip().lower() for name in table[0]] if table else []
    for name in header:
        if name not in COLUMNS:
            raise invalid(
                "csv",
                "csv_unknown_column",
                "has the unknown column {column!r}; known: {known}",
                column=name[:50],
                known=", ".join(COLUMNS),
            )
        if header.count(name) > 1:
            raise invalid("csv", "csv_column_twice", "has the column {column} twice", column=name)
    for name in REQUIRED:
        if name not in header:
            raise invalid(
                "csv",
                "csv_column_missing",
                "needs a first line that names the columns; {column} is missing",
                column=name,
            )
    if not 1 <= len(table) - 1 <= ROWS_MAX:
        raise invalid(
            "csv", "csv_rows", "must have from 1 to {most} rows below its header", most=ROWS_MAX
        )
    lines: list[_Line] = []
    bad: list[BulkRow] = []
    for n, row in enumerate(table[1:]):
        try:
            if len(row) > len(header):
                raise Refused(
                    422,
                    Fault(
                        "csv_cells",
                        "The row has {cells} cells, and the header {columns}.",
                        cells=len(row),
                        columns=len(header),
                    ),
                )
            cells = [*row, *[""] * (len(header) - len(row))]
            lines.append(_line(n, dict(zip(header, map(str.strip, cells), strict=True))))
        except Refused as error:
            bad.append(_bad(n, error))
    return lines, bad


def _line(row: int, cells: dict[str, str]) -> _Line:
    models = wire.distinct("models", cells["models"].replace(";", " ").split())
    name = cells.get("name") or ", ".join(models)[:200]
    caps: dict[Meter, int | None] = {}
    usd, tokens = cells.get("quota_cost_usd_per_month"), cells.get("quota_tokens_per_month")
    if usd:
        nano = wire.cap_nano("quota_cost_usd_per_month", _number("quota_cost_usd_per_month", usd))
        assert nano is not None, "only null is none"
        caps["usd"] = nano
    if tokens:
        count = _number("quota_tokens_per_month", tokens)
        if count != count.to_integral_value():
            raise invalid("quota_tokens_per_month", "whole", "must be a whole number")
        most = wire.cap_tokens("quota_tokens_per_month", int(count))
        assert most is not None, "only null is none"
        caps["tokens"] = most
    return _Line(
        row,
        wire.email(cells["email"]),
        wire.text("name", name),
        [wire.slug("models", slug) for slug in models],
        caps,
        wire.text("pool", cells.get("pool", ""), least=0),
    )


def _number(field: str, written: str) -> Decimal:
    digits = written.replace(".", "", 1)
    if not (digits.isascii() and digits.isdigit() and len(written) <= 50):
        raise invalid(
            field, "cap_unreadable", "must be a number such as 12.50, or nothing for no cap"
        )
    return Decimal(written)


class _Check:
    """What the lines of a sheet must fit."""

    def __init__(
        self,
        members: dict[str, str],
        pools: dict[str, str],
        unknown_models: set[str],
        names: set[tuple[str, str]],
    ) -> None:
        self.members = members
        self.pools = pools
        self.unknown_models = unknown_models
        self.names = names

    @classmethod
    async def of(cls, change: Change, lines: Sequence[_Line]) -> "_Check":
        """Read it."""
        connection = change.connection
        slugs = sorted({slug for line in lines for slug in line.models})
        members = await bulk.members_by_email(connection, [line.email for line in lines])
        return cls(
            members,
            await bulk.pools_by_name(connection, [line.pool for line in lines if line.pool]),
            set(await catalogue.unknown_models(connection, slugs)),
            await bulk.names_of(connection, sorted(members.values())),
        )

    def line(self, line: _Line) -> tuple[str, str | None]:
        """Return whose allocation a line is of, and its pool."""
        member_id = self.members.get(line.email.lower())
        if member_id is None:
            raise invalid("email", "unknown_email", "{email} is no member's", email=line.email)
        missing = [slug for slug in line.models if slug in self.unknown_models]
        if missing:
            raise unknown_models(missing)
        pool_id = None
        if line.pool:
            pool_id = self.pools.get(line.pool.lower())
            if pool_id is None:
                raise invalid(
                    "pool", "unknown_pool_name", "{name!r} is no pool's name", name=line.pool
                )
        if (member_id, line.name) in self.names:
            raise invalid(
                "name",
                "allocation_named",
                "{name!r} is another allocation's of {email}",
                name=line.name,
                email=line.email,
            )
        self.names.add((member_id, line.name))
        return member_id, pool_id


async def _add(
    change: Change, fit: Iterable[tuple[_Line, str, str | None]], reason: str | None
) -> list[BulkRow]:
    rows: list[BulkRow] = []
    caps: dict[str, Mapping[Meter, int | None]] = {}
    for line, member_id, pool_id in fit:
        id = uuid7()
        await catalogue.allocations.add(
            change.connection,
            id=id,
            member_id=member_id,
            name=line.name,
            models=line.models,
            pool_id=pool_id,
        )
        caps[id] = line.caps
        rows.append(BulkRow(row=line.row, ok=True, id=id, name=line.name))
    added = await catalogue.allocations.find_all(change.connection, list(caps))
    for record in added:
        await change.record(
            "allocation_created",
            "allocation",
            record.id,
            after=configured(record),
            reason=reason,
        )
    await set_caps(change, [(record, caps[record.id]) for record in added], reason)
    return rows


# Sheets to download


@get(
    "/allocations.csv",
    summary="List allocations, and how they stand, as CSV",
    media_type="text/csv",
    dependencies=SOUGHT,
)
async def download_allocations(
    desk: NamedDependency[Desk], sought: NamedDependency[AllocationQuery]
) -> Stream:
    return await csv_file("allocations.csv", _allocation_rows(desk, sought))


_ALLOCATION_COLUMNS: Final = (
    "id",
    *COLUMNS,
    "status",
    "state",
    "cost_used_this_month",
    "cost_held",
    "tokens_used_this_month",
    "tokens_held",
    "effective_cost_usd_per_month",
    "effective_tokens_per_month",
    "unpriced_calls_this_month",
    "resets_at",
    "created_at",
)


async def _allocation_rows(
    desk: Desk, sought: AllocationQuery
) -> AsyncGenerator[Iterable[Any], None]:
    async with desk.deps.database.snapshot() as connection:
        await overview.be_one_snapshot(connection)
        await usage.be_patient(connection)
        after: Place | None = None
        first = True
        while True:
            page, places = await find_allocations(
                connection, sought, desk.deps.calendar, desk.at, after=after, limit=PAGE
            )
            cards = await usage.standings(connection, page, desk.deps.calendar, desk.at)
            owners = await catalogue.members.find_all(connection, [one.member_id for one in page])
            pool_ids = sorted({one.pool_id for one in page if one.pool_id is not None})
            pools = await catalogue.pools.find_all(connection, pool_ids)
            emails = {owner.id: owner.email for owner in owners}
            names = {pool.id: pool.name for pool in pools}
            if first:
                first = False
                yield _ALLOCATION_COLUMNS
            for record, card in zip(page, cards, strict=True):
                known: dict[str, object] = {
                    "email": emails[record.member_id],
                    "models": " ".join(record.models),
                    "pool": names.get(record.pool_id or ""),
                    "created_at": record.created_at.isoformat(),
                    "resets_at": None if card.resets_at is None else card.resets_at.isoformat(),
                }
                yield [
                    known[name] if name in known else getattr(card, name)
                    for name in _ALLOCATION_COLUMNS
                ]
            if len(page) < PAGE:
                return
            after = places[-1]


@get("/audit.csv", tags=["Audit"], summary="List changes as CSV", media_type="text/csv")
async def download_audit(
    desk: NamedDependency[Desk],
    event: FromQuery[str | None] = None,
    actor_id: FromQuery[str | None] = None,
    object: FromQuery[str | None] = None,
    object_id: FromQuery[str | None] = None,
    since: Since = None,
    until: Until = None,
) -> Stream:
    zone = desk.deps.calendar.zone
    chosen = {
        "since": wire.instant_filter("from", since, zone),
        "until": wire.instant_filter("to", until, zone),
        "equal": {
            "event": wire.text_filter("event", event),
            "actor_id": wire.id_filter("actor_id", actor_id),
            "object": wire.text_filter("object", object),
            "object_id": wire.object_filter("object_id", object_id),
        },
    }
    return await csv_file("audit.csv", _audit_rows(desk, chosen))


async def _audit_rows(desk: Desk, chosen: Any) -> AsyncGenerator[Iterable[Any], None]:
    columns = journal.AuditEvent.__struct_fields__
    async with desk.deps.database.snapshot() as connection:
        await overview.be_one_snapshot(connection)
        await usage.be_patient(connection)
        below: str | None = None
        first = True
        while True:
            events = await journal.events(connection, below=below, limit=PAGE, **chosen)
            if first:
                first = False
                yield columns
            for event in events:
                yield [_audit_cell(getattr(event, name)) for name in columns]
            if len(events) < PAGE:
                return
            below = events[-1].id


def _audit_cell(value: Any) -> Any:
    if isinstance(value, dict | list | bool):
        return msgspec.json.Encoder(decimal_format="number").encode(value).decode()
    return value.isoformat() if hasattr(value, "isoformat") else value


def bulk_router() -> Router:
    """Make the router of many at once."""
    allocations = documented([change_allocations, import_allocations, download_allocations])
    return Router(
        "/",
        route_handlers=[
            Router("/", route_handlers=allocations, tags=["Allocations"]),
            Router("/", route_handlers=documented([download_audit])),
        ],
    )
