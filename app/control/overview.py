"""Overview: what an administrator looks at first.

Owns the document. Owns no statement (see `store.overview`) and no standing (see `store.usage`).

Invariants: everything is as of one snapshot; every list has an end, and what is beyond is counted.
"""

from datetime import datetime
from typing import Final

import msgspec
from litestar import Router, get
from litestar.di import NamedDependency

from app.control.desk import Desk
from app.control.errors import documented
from app.core.money import nano_to_usd
from app.store import catalogue, overview, usage
from app.store.overview import Recent
from app.store.usage import State

TIGHT_MAX: Final = 20
SPENDERS_MAX: Final = 10
UNPRICED_MAX: Final = 50
PROVIDERS_MAX: Final = 200


class TightAllocation(msgspec.Struct, frozen=True):
    """An allocation that is near to a cap of its own, or at it."""

    id: str
    name: str
    member_id: str
    member_email: str
    state: State
    cost_used_this_month: str
    cost_held: str
    effective_cost_usd_per_month: str | None
    tokens_used_this_month: int
    tokens_held: int
    effective_tokens_per_month: int | None
    resets_at: datetime | None


class TopSpender(msgspec.Struct, frozen=True):
    """An allocation that spends, and what it did this month."""

    id: str
    name: str
    member_id: str
    member_email: str
    cost_used_this_month: str
    tokens_used_this_month: int


class CallCounts(msgspec.Struct, frozen=True):
    """Calls, and how many of them were refused."""

    calls: int
    refused_calls: int


class UnpricedModel(msgspec.Struct, frozen=True):
    """A model, and how many of its calls this month have no price."""

    model: str
    calls: int


class ProviderHealth(msgspec.Struct, frozen=True):
    """What became of calls to a provider: counts of 15 minutes, instants of a day at most."""

    id: str
    name: str
    calls: int
    upstream_errors: int
    last_success_at: datetime | None
    last_failure_at: datetime | None


class LedgerDocument(msgspec.Struct, frozen=True):
    """How the books are doing: `available` and what is spooled are this process's own."""

    available: bool
    spooled_settlements: int
    open_holds: int
    overdue_holds: int
    """Of calls that went silent: they are about to be settled as recovered."""


class OverviewDocument(msgspec.Struct, frozen=True, kw_only=True):
    """How everything stands."""

    at: datetime
    spend_this_month_usd: str
    """Of every allocation in the month of its own zone, as its caps count it."""
    spend_today_usd: str
    last_hour: CallCounts
    today: CallCounts
    near_allocations: int
    critical_allocations: int
    exhausted_allocations: int
    tight: list[TightAllocation]
    """Those nearest to a cap, or the furthest beyond, first."""
    top_spenders: list[TopSpender]
    unpriced_models: list[UnpricedModel]
    live_sessions: int
    open_requests: int
    dead_deliveries: int
    providers: list[ProviderHealth]
    ledger: LedgerDocument


@get("/overview", summary="Show how everything stands")
async def show_overview(desk: NamedDependency[Desk]) -> OverviewDocument:
    calendar, at = desk.deps.calendar, desk.at
    async with desk.deps.database.snapshot() as connection:
        await overview.be_one_snapshot(connection)
        standing = await overview.standing(
            connection, calendar, at, tight=TIGHT_MAX, spenders=SPENDERS_MAX
        )
        tight = await catalogue.allocations.find_all(connection, standing.tight)
        cards = await usage.standings(connection, tight, calendar, at)
        owners = await catalogue.members.find_all(
            connection, sorted({record.member_id for record in tight})
        )
        recent, adjusted = await overview.recent(connection, calendar, at)
        unpriced = await overview.unpriced(connection, calendar, at, most=UNPRICED_MAX)
        counts = await overview.counts(connection)
        providers = await catalogue.providers.page(connection, after=None, limit=PROVIDERS_MAX)
        models = await catalogue.models.find_all(connection, [one.model for one in recent])
    emails = {owner.id: owner.email for owner in owners}
    served_by = {model.slug: model.provider_id for model in models}
    health = desk.deps.ledger()
    return OverviewDocument(
        at=at,
        spend_this_month_usd=nano_to_usd(standing.nano),
        spend_today_usd=nano_to_usd(sum(one.nano for one in recent) + adjusted),
        last_hour=CallCounts(
            sum(one.hour_calls for one in recent), sum(one.hour_refused for one in recent)
        ),
        today=CallCounts(sum(one.calls for one in recent), sum(one.refused for one in recent)),
        near_allocations=standing.near,
        critical_allocations=standing.critical,
        exhausted_allocations=standing.exhausted,
        tight=[
            TightAllocation(
                id=card.id,
                name=card.name,
                member_id=record.member_id,
                member_email=emails[record.member_id],
                state=card.state,
                cost_used_this_month=card.cost_used_this_month,
                cost_held=card.cost_held,
                effective_cost_usd_per_month=card.effective_cost_usd_per_month,
                tokens_used_this_month=card.tokens_used_this_month,
                tokens_held=card.tokens_held,
                effective_tokens_per_month=card.effective_tokens_per_month,
                resets_at=card.resets_at,
            )
            for record, card in zip(tight, cards, strict=True)
        ],
        top_spenders=[
            TopSpender(
                one.id, one.name, one.member_id, one.email, nano_to_usd(one.nano), one.tokens
            )
            for one in standing.spenders
        ],
        unpriced_models=[UnpricedModel(one.model, one.calls) for one in unpriced],
        live_sessions=counts.sessions,
        open_requests=counts.requests,
        dead_deliveries=counts.dead,
        providers=[
            _health(
                provider.id,
                provider.name,
                [one for one in recent if served_by.get(one.model) == provider.id],
            )
            for provider in sorted(providers, key=lambda provider: provider.name.lower())
        ],
        ledger=LedgerDocument(
            health.available, health.spooled_settlements, counts.holds, counts.overdue
        ),
    )


def _health(id: str, name: str, recent: list[Recent]) -> ProviderHealth:
    return ProviderHealth(
        id=id,
        name=name,
        calls=sum(one.asked for one in recent),
        upstream_errors=sum(one.errors for one in recent),
        last_success_at=_latest([one.succeeded for one in recent]),
        last_failure_at=_latest([one.errored for one in recent]),
    )


def _latest(instants: list[datetime | None]) -> datetime | None:
    return max((instant for instant in instants if instant is not None), default=None)


def overview_router() -> Router:
    """Make the router of the overview."""
    return Router("/", route_handlers=documented([show_overview]), tags=["Overview"])
