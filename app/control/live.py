"""Live: the stream of events on which a page hears that what it shows has changed.

Owns the protocol (server-sent events) and how many streams one credential has. Owns neither who
hears what (see `core.live`) nor where it is heard from (see `store.live`).

Invariants: an event says what to ask for again, and no figure; a stream ends with the credential
that opened it; a page of another site opens none.
"""

from collections.abc import AsyncGenerator
from typing import Final

import msgspec
from litestar import Router, get
from litestar.di import NamedDependency
from litestar.response import Stream as Streamed

from app.control.desk import Desk, Gate
from app.control.download import begun
from app.control.errors import Refused, documented
from app.core.faults import Fault
from app.core.live import News

STREAMS_MAX: Final = 20
"""Of one credential at a time, on one process: pages of a browser."""
HEARTBEAT_S: Final = 15.0
RETRY_MS: Final = 1000


@get(
    "/events",
    summary="Hear of what changes, as server-sent events",
    media_type="text/event-stream",
)
async def hear(desk: NamedDependency[Desk]) -> Streamed:
    """Events are `allocation`, `session` (realtime), `request`, `key`, and for who sees everything
    `overview`; `data` is `{"id": …}`, or `{}`: any of them may have changed. Ask for them again.

    When a stream opens, ask for everything: what happened before is not told. A stream that ends is
    to be opened again; if that is refused, the session has ended.
    """
    live = desk.deps.live
    credential = desk.session_id or desk.actor.id
    if live.count(credential) >= STREAMS_MAX:
        raise Refused(
            429,
            Fault(
                "streams",
                "There are {most} streams open already; close one first.",
                most=STREAMS_MAX,
            ),
            headers={"Retry-After": "5"},
        )
    lines = _told(desk, frozenset({credential, desk.actor.id}))
    # It listens before it says so.
    head = await anext(lines)
    return Streamed(
        begun(head, lines),
        media_type="text/event-stream",
        headers={"x-accel-buffering": "no"},
    )


async def _told(desk: Desk, credentials: frozenset[str]) -> AsyncGenerator[str, None]:
    live, clock, actor = desk.deps.live, desk.deps.clock, desk.actor
    ends_at = None if desk.session_id is None else desk.session.ends_at
    stream = live.open(actor.role, actor.member_id, credentials)
    try:
        await live.say_here()
        yield f"retry: {RETRY_MS}\n\n"
        while True:
            within = HEARTBEAT_S
            if ends_at is not None:
                # If the session goes on by then, the stream is opened again.
                within = min(within, (ends_at - clock()).total_seconds())
                if within <= 0:
                    return
            news = await stream.next(within)
            if news is None:
                return
            yield "".join(map(_event, news)) or ": still here\n\n"
    finally:
        live.leave(stream)


def _event(news: News) -> str:
    kind, id = news
    data = msgspec.json.encode({} if id is None else {"id": id}).decode()
    return f"event: {kind}\ndata: {data}\n\n"


def live_router(gate: Gate) -> Router:
    """Make the router of what is heard."""
    handlers = documented([hear], and_also={429: "Too many streams are open"})
    return Router("/", route_handlers=handlers, guards=[gate.live], tags=["Live"])
