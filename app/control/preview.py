"""Preview: what an edit of an allocation's caps will do, before it is made.

Owns the document. Owns no rule (the state is `core.ledger`'s, what binds is `core.pools`'s) and
changes nothing.

Invariant: it says what the edit, made at that moment, would lead to; calls go on meanwhile.
"""

from datetime import datetime
from decimal import Decimal

import msgspec
from litestar import Router, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from msgspec import UNSET, UnsetType

from app.control import wire
from app.control.desk import Desk
from app.control.errors import documented, unknown
from app.control.wire import Input
from app.core.ledger import METERS, Account, Meter, account_state
from app.store import catalogue, sessions, usage
from app.store.catalogue import AllocationRecord
from app.store.usage import BindingLimit, Cards, State, in_meter


class CapsInput(Input):
    """Caps as they would be set: absent is unchanged, null is none, 0 blocks."""

    quota_tokens_per_month: int | UnsetType | None = UNSET
    quota_cost_usd_per_month: Decimal | UnsetType | None = UNSET


class CapPreview(msgspec.Struct, frozen=True, kw_only=True):
    """One cap, as it is and as it would be; the effective ones are with top-ups."""

    used: int | str
    held: int | str
    cap: int | str | None
    effective: int | str | None
    new_cap: int | str | None
    new_effective: int | str | None
    new_remaining: int | str | None
    blocks_now: bool
    """Whether the new cap is used up already."""


class PreviewDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What an edit will do."""

    id: str
    tokens: CapPreview
    usd: CapPreview
    state: State
    new_state: State
    blocks_now: bool
    """Whether its next call would be refused by one of its own caps."""
    live_sessions: int
    calls_in_flight: int
    """Beside the sessions. They are let finish within what they hold."""
    sessions_ending: int
    """Those that would end once they have used what they hold: there is no room for more."""
    binds: BindingLimit | None
    """The limit that would bind, of its own and of the pools above."""
    resets_at: datetime | None


@post("/allocations/{id:str}/preview", status_code=200, summary="Tell what an edit of caps will do")
async def preview_caps(
    id: FromPath[str], data: JSONBody[CapsInput], desk: NamedDependency[Desk]
) -> PreviewDocument:
    """Nothing is changed. The numbers are those of the allocation's card."""
    allocation_id = wire.path_id(id, "allocation")
    caps: dict[str, int | None] = {}
    if data.quota_tokens_per_month is not UNSET:
        tokens = wire.cap_tokens("quota_tokens_per_month", data.quota_tokens_per_month)
        caps["cap_tokens"] = tokens
    if data.quota_cost_usd_per_month is not UNSET:
        nano = wire.cap_nano("quota_cost_usd_per_month", data.quota_cost_usd_per_month)
        caps["cap_nano"] = nano
    cards = Cards(desk.deps.calendar, desk.at)
    async with desk.deps.database.snapshot() as connection:
        record = await catalogue.allocations.find(connection, allocation_id)
        if record is None:
            raise unknown("allocation")
        await cards.read(connection, [record])
        live_sessions, calls = await sessions.in_flight(connection, allocation_id)
    edited = msgspec.structs.replace(record, **caps)
    account, effective, binds = cards.account(record), cards.caps(edited), cards.binds(edited)
    blocked = [meter for meter in METERS if _is_used_up(meter, effective, account)]
    full = any(
        account.used(meter) + account.held(meter) >= amount for meter, amount in effective.items()
    )
    return PreviewDocument(
        id=allocation_id,
        tokens=_preview(cards, "tokens", record, edited, blocks="tokens" in blocked),
        usd=_preview(cards, "usd", record, edited, blocks="usd" in blocked),
        state=account_state(record.status, cards.caps(record), account),
        new_state=account_state(record.status, effective, account),
        blocks_now=bool(blocked),
        live_sessions=live_sessions,
        calls_in_flight=calls,
        sessions_ending=live_sessions if full else 0,
        binds=None if binds is None else usage.binding_limit(binds),
        resets_at=cards.period(record).end,
    )


def _is_used_up(meter: Meter, caps: dict[Meter, int], account: Account) -> bool:
    alone = {meter: caps[meter]} if meter in caps else {}
    return account_state("active", alone, account) == "exhausted"


def _preview(
    cards: Cards, meter: Meter, record: AllocationRecord, edited: AllocationRecord, *, blocks: bool
) -> CapPreview:
    account = cards.account(record)
    used, held = account.used(meter), account.held(meter)
    then = cards.caps(edited).get(meter)

    def shown(value: int | None) -> int | str | None:
        return None if value is None else in_meter(meter, value)

    return CapPreview(
        used=in_meter(meter, used),
        held=in_meter(meter, held),
        cap=shown(record.cap(meter)),
        effective=shown(cards.caps(record).get(meter)),
        new_cap=shown(edited.cap(meter)),
        new_effective=shown(then),
        new_remaining=shown(None if then is None else max(0, then - used - held)),
        blocks_now=blocks,
    )


def preview_router() -> Router:
    """Make the router of previews."""
    return Router("/", route_handlers=documented([preview_caps]), tags=["Allocations"])
