"""Records: what handlers of every kind of record do alike.

Owns how a collection is paged, one record is shown, changed and recorded. Owns no kind of record
and no SQL.

Invariants: a PATCH stores and records what differs, and nothing else; what was read is tagged for
`If-Match`, and what is about to be changed is compared with it.
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


async def page(
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


async def found(desk: Desk, collection: Collection[Record], key: str, what: str) -> Record:
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
