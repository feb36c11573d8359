"""Search: the parameters by which allocations are found, and the cursor of each order.

Owns how they are read, for the list, for its CSV and for whoever shows them. Owns no statement (see
`store.search`).

Invariants: what cannot be found because it is misspelt is refused, not passed over; a cursor is of
the order that it was given in, or refused.
"""

import re
from typing import Annotated, Final

import msgspec
from litestar.di import Provide
from litestar.params import FromQuery, QueryParameter

from app.control import wire
from app.control.errors import Refused
from app.core.access import AllocationStatus
from app.store.search import NO_POOL, AllocationQuery, Order, Place
from app.store.usage import State

Q = Annotated[
    str | None,
    QueryParameter(
        description="An id, or words of which each is part of a name, an address or a model."
    ),
]
PoolId = Annotated[
    str | None, QueryParameter(description=f"The pool that it is in; `{NO_POOL}`: in no pool.")
]
StateNow = Annotated[
    State | None,
    QueryParameter(name="state", description="How near it is to a cap of its own."),
]

_NUMBER: Final = re.compile(r"-?[0-9]{1,40}(\.[0-9]{1,40})?")


def read_q(value: str | None) -> str:
    """Read what is sought."""
    return "" if value is None else wire.text("q", value, least=0)


async def sought_allocations(
    q: Q = None,
    member_id: FromQuery[str | None] = None,
    pool_id: PoolId = None,
    model: FromQuery[str | None] = None,
    status: FromQuery[AllocationStatus | None] = None,
    state_now: StateNow = None,
) -> AllocationQuery:
    """Read the parameters that choose allocations."""
    return AllocationQuery(
        q=read_q(q),
        member_id=wire.id_filter("member_id", member_id),
        pool_id=pool_id if pool_id == NO_POOL else wire.id_filter("pool_id", pool_id),
        model=wire.text_filter("model", model),
        status=status,
        state=state_now,
    )


SOUGHT: Final = {"sought": Provide(sought_allocations)}
"""For handlers that take `sought`."""


def place_key(place: Place) -> str:
    """Write the place that a page ended at, for its cursor."""
    return msgspec.json.encode(place).decode()


def place_after(cursor: str | None, order: Order) -> Place | None:
    """Read the place that the page before ended at. Raises a 400."""
    key = wire.after(cursor, lambda key: _place(key, order) is not None)
    return None if key is None else _place(key, order)


def _place(key: str, order: Order) -> Place | None:
    try:
        by, id = msgspec.json.decode(key, type=tuple[str, str])
        wire.path_id(id, "allocation")
    except (msgspec.DecodeError, Refused):
        return None
    if order in ("spend", "tight") and not _NUMBER.fullmatch(by):
        return None
    if (order == "newest" and by) or "\x00" in by:
        return None
    return by, id
