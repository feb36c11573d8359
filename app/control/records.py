"""Records: what handlers do with the rows of a table, whichever it is.

Owns the pages, the look at one record, and the change that is audited with what differs. Owns no
SQL (see `store.catalogue`) and no check of a value (see `wire`).

Invariants: a record is changed only as the client expects it to be; a change of nothing leaves no
event.
"""

from collections.abc import Mapping
from typing import TypeVar

import msgspec
from msgspec import UNSET

from app.control import wire
from app.control.desk import Change, Desk
from app.control.errors import unknown
from app.control.wire import Page
from app.store.catalogue import Collection

Record = TypeVar("Record", bound=msgspec.Struct)


async def page_of(
    desk: Desk,
    collection: Collection[Record],
    cursor: str | None,
    limit: int,
    **equal: str | None,
) -> Page[Record]:
    """Return a page of a collection."""
    by_slug = collection.key.key == "slug"
    key = str(collection.key.key)
    after = wire.after(cursor, wire.is_slug) if by_slug else wire.after(cursor)
    async with desk.deps.database.snapshot() as connection:
        records = await collection.page(
            connection, after=after, limit=wire.page_limit(limit) + 1, equal=equal
        )
    return wire.paged(records, limit, lambda record: str(getattr(record, key)))


async def show(desk: Desk, collection: Collection[Record], key: str, what: str) -> Record:
    """Return one record of a collection."""
    async with desk.deps.database.snapshot() as connection:
        record = await collection.find(connection, key)
    if record is None:
        raise unknown(what)
    desk.tag(record)
    return record


async def current(change: Change, collection: Collection[Record], key: str, what: str) -> Record:
    """Return a record that is about to be changed, as the client expects it to be."""
    record = await collection.find(change.connection, key)
    if record is None:
        raise unknown(what)
    change.expect(record)
    return record


async def again(change: Change, collection: Collection[Record], key: str) -> Record:
    """Return what is stored now."""
    record = await collection.find(change.connection, key)
    assert record is not None, "rows of the catalogue are never deleted"
    change.desk.tag(record)
    return record


async def update(
    change: Change,
    collection: Collection[Record],
    what: str,
    record: Record,
    values: Mapping[str, object],
    *,
    reason: str | None = None,
) -> Record:
    """Store what differs, record `<what>_updated` with just that, and return what is stored."""
    key = str(getattr(record, str(collection.key.key)))
    values = {name: value for name, value in values.items() if value != getattr(record, name)}
    if values:
        await collection.change(change.connection, key, values)
        before = {name: getattr(record, name) for name in values}
        await change.record(
            f"{what}_updated", what, key, before=before, after=values, reason=reason
        )
    return await again(change, collection, key)


def given(**values: object) -> dict[str, object]:
    """Return the fields that a PATCH names."""
    return {name: value for name, value in values.items() if value is not UNSET}
