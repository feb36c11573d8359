"""What admins set up: providers, models, prices, members, allocations and keys.

Owns the bodies they send, which of them fit what there is, and the audit events of each change.
Owns no SQL (see `store.catalogue`), no check of a single value (see `wire`) and no secret for
longer than one request.

Invariants:

- Every field of a body is stored and shown again, or the body is refused. PATCH: an absent field is
  unchanged, null clears.
- Every change leaves its event in the same transaction, and a change of nothing leaves none.
- A provider's credential is in no answer. A key's secret is in the answer that makes it, only.
- No two allocations of one key share a model, whichever of the two is changed.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, Literal
from uuid import UUID

import msgspec
from litestar import Router, get, patch, post
from litestar.di import NamedDependency
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery, JSONBody
from msgspec import UNSET, UnsetType

from app.control import passwords, search, wire
from app.control.auth import end_invitations, end_sessions
from app.control.desk import Change, Desk
from app.control.errors import Refused, documented, invalid, misfit, taken, unknown
from app.control.limits import (
    BUDGET,
    LimitInput,
    LimitName,
    read_budget,
    read_limits,
    read_quotas,
    set_limits,
    shown,
)
from app.control.records import again as _again
from app.control.records import current as _current
from app.control.records import found as _shown
from app.control.records import given as _given
from app.control.records import page as _page
from app.control.records import update as _update
from app.control.rules import NewSecret, read_key_threshold, read_webhook, set_key_alert
from app.control.wire import Input, Page
from app.core.access import (
    Allocation,
    AllocationStatus,
    MemberStatus,
    OutagePolicy,
    OverrunPolicy,
    ProviderKind,
    Role,
    UnpricedPolicy,
    shared_model,
)
from app.core.ledger import METERS, AccountKey, Meter, account_key
from app.core.metering import UNITS
from app.core.money import AMOUNT_TOKENS_MAX
from app.core.pricing import InvalidRates, Rate, check_rates
from app.ids import uuid7
from app.store import catalogue, usage
from app.store.catalogue import (
    AllocationRecord,
    KeyRecord,
    MemberRecord,
    ModelRecord,
    PriceRecord,
    ProviderRecord,
)
from app.store.search import AllocationQuery, Order
from app.store.search import allocations as find_allocations
from app.store.search import members as find_members
from app.store.usage import KeyView
from app.store.vault import hint_of, new_key

EndpointName = Literal[
    "chat/completions",
    "embeddings",
    "ocr",
    "audio/speech",
    "audio/transcriptions",
    "realtime",
    "responses",
    "messages",
    "images/generations",
    "moderations",
]

TOKENS_MAX: Final = 10**9
IMAGE_TOKENS_MAX: Final = 10**6


# Providers


class ProviderInput(Input):
    """A provider to add."""

    name: str
    kind: ProviderKind
    base_url: str
    api_key: str | None = None


class ProviderPatch(Input):
    """What to change of a provider."""

    name: str | UnsetType = UNSET
    kind: ProviderKind | UnsetType = UNSET
    base_url: str | UnsetType = UNSET
    api_key: str | UnsetType | None = UNSET


@post("/providers", summary="Add a provider")
async def add_provider(
    data: JSONBody[ProviderInput], desk: NamedDependency[Desk]
) -> ProviderRecord:
    """The credential is stored encrypted and never shown again."""
    id = uuid7()
    name = wire.text("name", data.name)
    base_url = wire.base_url(data.base_url)
    sealed: bytes | None = None
    if data.api_key is not None:
        sealed = desk.deps.vault.seal(wire.secret("api_key", data.api_key), id, 1)

    async def work(change: Change) -> ProviderRecord:
        await _free_provider_name(change, name)
        await catalogue.providers.add(
            change.connection,
            id=id,
            name=name,
            kind=data.kind,
            base_url=base_url,
            credential=sealed,
            credential_version=1,
        )
        added = await _again(change, catalogue.providers, id)
        await change.record("provider_created", "provider", id, after=added)
        return added

    return await desk.write(work)


@get("/providers", summary="List providers, newest first")
async def list_providers(
    desk: NamedDependency[Desk],
    cursor: FromQuery[str | None] = None,
    limit: FromQuery[int] = wire.PAGE_DEFAULT,
) -> Page[ProviderRecord]:
    return await _page(desk, catalogue.providers, cursor, limit)


@get("/providers/{id:str}", summary="Show a provider")
async def show_provider(id: FromPath[str], desk: NamedDependency[Desk]) -> ProviderRecord:
    return await _shown(desk, catalogue.providers, wire.path_id(id, "provider"), "provider")


@patch("/providers/{id:str}", summary="Rename or move a provider, or rotate its credential")
async def change_provider(
    id: FromPath[str], data: JSONBody[ProviderPatch], desk: NamedDependency[Desk]
) -> ProviderRecord:
    provider_id = wire.path_id(id, "provider")
    values = _given(kind=data.kind)
    if data.name is not UNSET:
        values["name"] = wire.text("name", data.name)
    if data.base_url is not UNSET:
        values["base_url"] = wire.base_url(data.base_url)
    api_key = data.api_key
    if isinstance(api_key, str):
        wire.secret("api_key", api_key)

    async def work(change: Change) -> ProviderRecord:
        provider = await _current(change, catalogue.providers, provider_id, "provider")
        if values.get("name", provider.name) != provider.name:
            await _free_provider_name(change, str(values["name"]))
        if api_key is not UNSET:
            await _rotate_credential(change, provider, api_key)
        return await _update(change, catalogue.providers, "provider", provider, values)

    return await desk.write(work)


async def _free_provider_name(change: Change, name: str) -> None:
    if await catalogue.provider_named(change.connection, name) is not None:
        raise taken(
            "name", "name_taken", "{name!r} is another {what}'s", name=name, what="provider"
        )


async def _rotate_credential(change: Change, provider: ProviderRecord, api_key: str | None) -> None:
    version = await catalogue.credential_version(change.connection, provider.id) + 1
    vault = change.desk.deps.vault
    sealed = None if api_key is None else vault.seal(api_key, provider.id, version)
    await catalogue.providers.change(
        change.connection, provider.id, {"credential": sealed, "credential_version": version}
    )
    await change.record(
        "provider_credential_updated",
        "provider",
        provider.id,
        before={"has_credential": provider.has_credential},
        after={"has_credential": sealed is not None},
    )


# Models


class ModelInput(Input):
    """A model to add. No `endpoints`: it may be called by any."""

    slug: str
    provider_id: UUID
    upstream_model: str | None = None
    endpoints: list[EndpointName] | None = None
    context_window: int | None = None
    max_output_tokens: int | None = None
    bytes_per_token: int = 2
    image_tokens_max: int = 3000


class ModelPatch(Input):
    """What to change of a model; its name stays."""

    provider_id: UUID | UnsetType = UNSET
    upstream_model: str | UnsetType | None = UNSET
    endpoints: list[EndpointName] | UnsetType | None = UNSET
    context_window: int | UnsetType | None = UNSET
    max_output_tokens: int | UnsetType | None = UNSET
    bytes_per_token: int | UnsetType = UNSET
    image_tokens_max: int | UnsetType = UNSET


@post("/models", summary="Add a model")
async def add_model(data: JSONBody[ModelInput], desk: NamedDependency[Desk]) -> ModelRecord:
    """Without `upstream_model` the provider knows the model by its slug."""
    slug = wire.slug("slug", data.slug)
    values = _model_values(slug, {f: getattr(data, f) for f in ModelPatch.__struct_fields__})

    async def work(change: Change) -> ModelRecord:
        await _known_provider(change, values)
        if await catalogue.models.find(change.connection, slug) is not None:
            raise taken(
                "slug", "name_taken", "{name!r} is another {what}'s", name=slug, what="model"
            )
        await catalogue.models.add(change.connection, slug=slug, **values)
        added = await _again(change, catalogue.models, slug)
        await change.record("model_created", "model", slug, after=added)
        return added

    return await desk.write(work)


@get("/models", summary="List models, by name")
async def list_models(
    desk: NamedDependency[Desk],
    cursor: FromQuery[str | None] = None,
    limit: FromQuery[int] = wire.PAGE_DEFAULT,
    provider_id: FromQuery[str | None] = None,
) -> Page[ModelRecord]:
    provider = wire.id_filter("provider_id", provider_id)
    return await _page(desk, catalogue.models, cursor, limit, provider_id=provider)


@get("/models/{slug:path}", summary="Show a model")
async def show_model(slug: FromPath[str], desk: NamedDependency[Desk]) -> ModelRecord:
    return await _shown(desk, catalogue.models, wire.path_slug(slug), "model")


@patch("/models/{slug:path}", summary="Change a model")
async def change_model(
    slug: FromPath[str], data: JSONBody[ModelPatch], desk: NamedDependency[Desk]
) -> ModelRecord:
    name = wire.path_slug(slug)
    values = _model_values(name, _given(**msgspec.structs.asdict(data)))

    async def work(change: Change) -> ModelRecord:
        model = await _current(change, catalogue.models, name, "model")
        await _known_provider(change, values)
        return await _update(change, catalogue.models, "model", model, values)

    return await desk.write(work)


def _model_values(slug: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Check what is said of a model."""
    values: dict[str, Any] = {}
    for field, value in given.items():
        match field:
            case "provider_id":
                values[field] = str(value)
            case "upstream_model":
                values[field] = slug if value is None else wire.text(field, value)
            case "endpoints":
                values[field] = None if value is None else wire.distinct(field, value)
            case "bytes_per_token":
                values[field] = wire.whole(field, value, 1, 8)
            case "image_tokens_max":
                values[field] = wire.whole(field, value, 1, IMAGE_TOKENS_MAX)
            case _:
                values[field] = None if value is None else wire.whole(field, value, 1, TOKENS_MAX)
    return values


async def _known_provider(change: Change, values: Mapping[str, Any]) -> None:
    provider_id = values.get("provider_id")
    if provider_id is None:
        return
    if await catalogue.providers.find(change.connection, provider_id) is None:
        raise invalid("provider_id", "no_such_id", "is no {what}'s", what="provider")


# Prices


class RateInput(Input):
    """`usd` for every `per` of one unit, exactly as written: a decimal string or a number."""

    unit: str
    usd: Decimal
    per: int = 1


class PriceInput(Input):
    """A version of a model's rates, from now on or from another instant."""

    model: str
    rates: list[RateInput]
    effective_from: datetime | None = None


class PriceDocument(PriceRecord, frozen=True, kw_only=True):
    """A version of a model's rates, and whether calls are priced by it now."""

    in_force: bool


@post("/prices", summary="Add a version of a model's rates")
async def add_price(data: JSONBody[PriceInput], desk: NamedDependency[Desk]) -> PriceDocument:
    """Prices are never edited: a wrong one is followed by a right one."""
    id = uuid7()
    rates = [Rate(rate.unit, rate.usd, rate.per) for rate in data.rates]
    try:
        check_rates(rates, UNITS)
    except InvalidRates as error:
        raise misfit("rates", error, "cannot make a price: ") from None
    rates = [Rate(rate.unit, _plain(rate.usd), rate.per) for rate in rates]
    from_ = desk.at
    if data.effective_from is not None:
        from_ = wire.instant("effective_from", data.effective_from)

    async def work(change: Change) -> PriceDocument:
        connection = change.connection
        if await catalogue.unknown_models(connection, [wire.text("model", data.model)]):
            raise invalid(
                "model", "unknown_slug", "{slug!r} is no model's slug", slug=data.model[:200]
            )
        if await catalogue.has_price(connection, data.model, from_):
            raise taken("effective_from", "price_instant", "is that of another price of this model")
        await catalogue.add_price(
            connection, id=id, model=data.model, effective_from=from_, rates=rates
        )
        added = await _again(change, catalogue.prices, id)
        await change.record("price_created", "price", id, after=added)
        in_force = await catalogue.prices_in_force(connection, [data.model], change.at)
        return _price(added, in_force)

    return await desk.write(work)


@get("/prices", summary="List prices, newest first")
async def list_prices(
    desk: NamedDependency[Desk],
    cursor: FromQuery[str | None] = None,
    limit: FromQuery[int] = wire.PAGE_DEFAULT,
    model: FromQuery[str | None] = None,
) -> Page[PriceDocument]:
    page = await _page(
        desk, catalogue.prices, cursor, limit, model=wire.text_filter("model", model)
    )
    slugs = sorted({price.model for price in page.items})
    async with desk.deps.database.snapshot() as connection:
        in_force = await catalogue.prices_in_force(connection, slugs, desk.at)
    return Page([_price(price, in_force) for price in page.items], page.next)


def _price(price: PriceRecord, in_force: frozenset[str]) -> PriceDocument:
    return PriceDocument(**msgspec.structs.asdict(price), in_force=price.id in in_force)


def _plain(usd: Decimal) -> Decimal:
    """Write a rate without an exponent and without zeros that say nothing."""
    return Decimal(format(usd.normalize(), "f"))


# Members


class MemberInput(Input):
    """A member to add; without a password they cannot sign in with one.

    Who `must_change_password` chooses one of their own before they do anything else.
    """

    email: str
    display_name: str = ""
    role: Role = "member"
    password: str | None = None
    must_change_password: bool = False


class MemberPatch(Input):
    """What to change of a member."""

    email: str | UnsetType = UNSET
    display_name: str | UnsetType = UNSET
    role: Role | UnsetType = UNSET
    status: MemberStatus | UnsetType = UNSET
    password: str | UnsetType | None = UNSET
    must_change_password: bool | UnsetType = UNSET


@post("/members", summary="Add a member")
async def add_member(data: JSONBody[MemberInput], desk: NamedDependency[Desk]) -> MemberRecord:
    id = uuid7()
    email = wire.email(data.email)
    display_name = wire.text("display_name", data.display_name, least=0)
    password_hash = await _password_hash(data.password)

    async def work(change: Change) -> MemberRecord:
        await _free_email(change, email, None)
        return await create_member(
            change,
            id=id,
            email=email,
            display_name=display_name,
            role=data.role,
            password_hash=password_hash,
            must_change_password=data.must_change_password,
        )

    return await desk.write(work)


async def create_member(change: Change, *, id: str, **values: object) -> MemberRecord:
    """Add a member whose address is nobody else's."""
    await catalogue.members.add(change.connection, id=id, **values)
    added = await _again(change, catalogue.members, id)
    await change.record("member_created", "member", id, after=added)
    return added


@get("/members", summary="List members, newest first")
async def list_members(
    desk: NamedDependency[Desk],
    cursor: FromQuery[str | None] = None,
    limit: FromQuery[int] = wire.PAGE_DEFAULT,
    q: search.Q = None,
    role: FromQuery[Role | None] = None,
    status: FromQuery[MemberStatus | None] = None,
) -> Page[MemberRecord]:
    after, called = wire.after(cursor), search.read_q(q)
    async with desk.deps.database.snapshot() as connection:
        found = await find_members(
            connection,
            called,
            after=after,
            limit=wire.page_limit(limit) + 1,
            role=role,
            status=status,
        )
    return wire.paged(found, limit, lambda member: member.id)


@get("/members/{id:str}", summary="Show a member")
async def show_member(id: FromPath[str], desk: NamedDependency[Desk]) -> MemberRecord:
    return await _shown(desk, catalogue.members, wire.path_id(id, "member"), "member")


@patch("/members/{id:str}", summary="Change a member")
async def change_member(
    id: FromPath[str], data: JSONBody[MemberPatch], desk: NamedDependency[Desk]
) -> MemberRecord:
    """The keys of a disabled member stop working at once, everywhere.

    Their sessions end, as do those of a member who is given another password. Whatever invitation
    is still open ends as well, also if it went to another address. Nobody takes the admin's role
    from themselves, so that one who can give it back is always left.
    """
    member_id = wire.path_id(id, "member")
    values = _given(
        role=data.role, status=data.status, must_change_password=data.must_change_password
    )
    if data.email is not UNSET:
        values["email"] = wire.email(data.email)
    if data.display_name is not UNSET:
        values["display_name"] = wire.text("display_name", data.display_name, least=0)
    password_hash = UNSET if data.password is UNSET else await _password_hash(data.password)

    async def work(change: Change) -> MemberRecord:
        member = await _current(change, catalogue.members, member_id, "member")
        if desk.actor.member_id == member_id:
            _keeps_own_role(member, values)
        if "email" in values:
            await _free_email(change, str(values["email"]), member_id)
        if password_hash is not UNSET:
            await catalogue.members.change(
                change.connection, member_id, {"password_hash": password_hash}
            )
            await change.record(
                "member_password_updated",
                "member",
                member_id,
                before={"has_password": member.has_password},
                after={"has_password": password_hash is not None},
            )
        if password_hash is not UNSET or values.get("status") == "disabled":
            await end_sessions(change, member_id)
            await end_invitations(change, member_id)
        elif values.get("email", member.email) != member.email:
            await end_invitations(change, member_id)
        return await _update(change, catalogue.members, "member", member, values)

    return await desk.write(work)


async def _password_hash(password: str | None) -> str | None:
    return None if password is None else await passwords.hashed(wire.password(password))


def _keeps_own_role(member: MemberRecord, values: Mapping[str, object]) -> None:
    given: tuple[tuple[str, str, str], ...] = (
        ("role", member.role, "admin"),
        ("status", member.status, "active"),
    )
    for field, former, kept in given:
        if values.get(field, former) != kept:
            raise taken(
                field,
                "own_role",
                "nobody takes the admin's role from themselves: ask another admin",
            )


async def _free_email(change: Change, email: str, member_id: str | None) -> None:
    owner = await catalogue.member_with(change.connection, email)
    if owner is not None and owner != member_id:
        raise taken("email", "email_taken", "{email} is another member's", email=email)


# Allocations


class AllocationInput(Input):
    """An allocation to add. A cap of 0 blocks, null is none."""

    member_id: UUID
    models: list[str]
    name: str | None = None
    pool_id: UUID | None = None
    quota_tokens_per_month: int | None = None
    quota_cost_usd_per_month: Decimal | None = None
    overrun_policy: OverrunPolicy = "strict"
    ledger_outage: OutagePolicy = "deny"
    unpriced: UnpricedPolicy = "allow"
    billing_timezone: str | None = None
    floor_tokens: int = 0
    locked: bool = False
    service: bool = False
    reason: str | None = None


class AllocationPatch(Input):
    """What to change of an allocation; whose it is stays."""

    name: str | UnsetType = UNSET
    models: list[str] | UnsetType = UNSET
    status: AllocationStatus | UnsetType = UNSET
    pool_id: UUID | UnsetType | None = UNSET
    quota_tokens_per_month: int | UnsetType | None = UNSET
    quota_cost_usd_per_month: Decimal | UnsetType | None = UNSET
    overrun_policy: OverrunPolicy | UnsetType = UNSET
    ledger_outage: OutagePolicy | UnsetType = UNSET
    unpriced: UnpricedPolicy | UnsetType = UNSET
    billing_timezone: str | UnsetType | None = UNSET
    floor_tokens: int | UnsetType = UNSET
    locked: bool | UnsetType = UNSET
    service: bool | UnsetType = UNSET
    reason: str | None = None


class AllocationDocument(usage.Standing, frozen=True, kw_only=True):
    """An allocation, how it stands, and what holds for its calls."""

    member_id: str
    pool_id: str | None
    overrun_policy: OverrunPolicy
    ledger_outage: OutagePolicy
    unpriced: UnpricedPolicy
    billing_timezone: str | None
    """Whose months its caps count; null: those of the installation."""
    floor_tokens: int
    """The least that sharing out a pool leaves of its token cap."""
    locked: bool
    """Whether sharing out a pool leaves its token cap as it is; so it does a `service`'s."""
    service: bool
    created_at: datetime


@post("/allocations", summary="Add an allocation")
async def add_allocation(
    data: JSONBody[AllocationInput], desk: NamedDependency[Desk]
) -> AllocationDocument:
    """Without a name it is called by its models."""
    id = uuid7()
    member_id = str(data.member_id)
    models = wire.distinct("models", data.models)
    name = ", ".join(models)[:200] if data.name is None else wire.text("name", data.name)
    caps = read_quotas(data.quota_tokens_per_month, data.quota_cost_usd_per_month)
    pool_id = None if data.pool_id is None else str(data.pool_id)
    timezone = wire.timezone("billing_timezone", data.billing_timezone)
    floor_tokens = wire.whole("floor_tokens", data.floor_tokens, 0, AMOUNT_TOKENS_MAX)
    reason = wire.reason(data.reason)

    async def work(change: Change) -> AllocationRecord:
        if await catalogue.members.find(change.connection, member_id) is None:
            raise invalid("member_id", "no_such_id", "is no {what}'s", what="member")
        await _known_models(change, models)
        await _known_pool(change, pool_id)
        await catalogue.allocations.add(
            change.connection,
            id=id,
            member_id=member_id,
            name=name,
            models=models,
            pool_id=pool_id,
            overrun_policy=data.overrun_policy,
            ledger_outage=data.ledger_outage,
            unpriced=data.unpriced,
            billing_timezone=timezone,
            floor_tokens=floor_tokens,
            locked=data.locked,
            service=data.service,
        )
        added = await _again(change, catalogue.allocations, id)
        await change.record(
            "allocation_created", "allocation", id, after=configured(added), reason=reason
        )
        await set_caps(change, [(added, caps)], reason)
        return await _again(change, catalogue.allocations, id)

    return (await _allocations(desk, [await desk.write(work)]))[0]


@get(
    "/allocations",
    summary="Find allocations, newest first if not told otherwise",
    dependencies=search.SOUGHT,
)
async def list_allocations(
    desk: NamedDependency[Desk],
    sought: NamedDependency[AllocationQuery],
    cursor: FromQuery[str | None] = None,
    limit: FromQuery[int] = wire.PAGE_DEFAULT,
    sort: FromQuery[Order] = "newest",
) -> Page[AllocationDocument]:
    """`spend` is this month's, the most first; `tight` are those nearest to a cap of their own.

    A cursor is of the same `sort`. What moves in its order between two pages may show on both, or
    on neither.
    """
    after = search.place_after(cursor, sort)
    query = msgspec.structs.replace(sought, order=sort)
    async with desk.deps.database.snapshot() as connection:
        records, places = await find_allocations(
            connection,
            query,
            desk.deps.calendar,
            desk.at,
            after=after,
            limit=wire.page_limit(limit) + 1,
        )
    page = wire.paged(
        list(zip(records, places, strict=True)), limit, lambda one: search.place_key(one[1])
    )
    return Page(await _allocations(desk, [record for record, _ in page.items]), page.next)


@get("/allocations/{id:str}", summary="Show an allocation")
async def show_allocation(id: FromPath[str], desk: NamedDependency[Desk]) -> AllocationDocument:
    allocation_id = wire.path_id(id, "allocation")
    record = await _shown(desk, catalogue.allocations, allocation_id, "allocation")
    return (await _allocations(desk, [record]))[0]


@patch("/allocations/{id:str}", summary="Change an allocation or its caps")
async def change_allocation(
    id: FromPath[str], data: JSONBody[AllocationPatch], desk: NamedDependency[Desk]
) -> AllocationDocument:
    """A new cap holds for the next call on every replica."""
    allocation_id = wire.path_id(id, "allocation")
    edit, reason = read_edit(data), wire.reason(data.reason)

    async def work(change: Change) -> AllocationRecord:
        return await edit_allocation(change, allocation_id, edit, reason)

    return (await _allocations(desk, [await desk.write(work)]))[0]


class Edit(msgspec.Struct, frozen=True):
    """A change of an allocation, as far as it can be checked without one."""

    values: dict[str, object]
    models: list[str] | None
    pool_id: str | None
    caps: dict[Meter, int | None]


def read_edit(data: AllocationPatch) -> Edit:
    """Check what is to be changed of an allocation."""
    values = _given(
        status=data.status,
        overrun_policy=data.overrun_policy,
        ledger_outage=data.ledger_outage,
        unpriced=data.unpriced,
        locked=data.locked,
        service=data.service,
    )
    if data.name is not UNSET:
        values["name"] = wire.text("name", data.name)
    if data.billing_timezone is not UNSET:
        values["billing_timezone"] = wire.timezone("billing_timezone", data.billing_timezone)
    if data.floor_tokens is not UNSET:
        floor_tokens = wire.whole("floor_tokens", data.floor_tokens, 0, AMOUNT_TOKENS_MAX)
        values["floor_tokens"] = floor_tokens
    pool_id: str | None = None
    if data.pool_id is not UNSET:
        values["pool_id"] = pool_id = None if data.pool_id is None else str(data.pool_id)
    models: list[str] | None = None
    if data.models is not UNSET:
        values["models"] = models = wire.distinct("models", data.models)
    caps = read_quotas(data.quota_tokens_per_month, data.quota_cost_usd_per_month)
    return Edit(values, models, pool_id, caps)


async def edit_allocation(
    change: Change, allocation_id: str, edit: Edit, reason: str | None
) -> AllocationRecord:
    """Change an allocation or its caps."""
    record = await _current(change, catalogue.allocations, allocation_id, "allocation")
    await _known_pool(change, edit.pool_id)
    if edit.models is not None and edit.models != record.models:
        await _known_models(change, edit.models)
        await _fits_its_keys(change, record, edit.models)
    former = record
    record = await _update(
        change, catalogue.allocations, "allocation", record, edit.values, reason=reason
    )
    if record.billing_timezone != former.billing_timezone:
        await _go_over(change, former, record)
    await set_caps(change, [(record, edit.caps)], reason)
    return await _again(change, catalogue.allocations, allocation_id)


_CAP_EVENT: Final[dict[Meter, str]] = {
    "tokens": "allocation_token_quota_updated",
    "usd": "allocation_cost_quota_updated",
}


def month_account(desk: Desk, record: AllocationRecord, at: datetime) -> AccountKey:
    """Name the account of an allocation's month, which its zone decides."""
    period = desk.deps.calendar.of(record.billing_timezone).period("month", at)
    return account_key("allocation", record.id, "month", period)


async def _go_over(change: Change, former: AllocationRecord, record: AllocationRecord) -> None:
    """Take what was used into the periods of another zone; caps are judged from there on."""
    windows = await catalogue.kept_windows(change.connection, record.id) | {"month"}
    left, entered = (
        [
            account_key("allocation", record.id, window, calendar.period(window, change.at))
            for window in sorted(windows)
        ]
        for calendar in (
            change.desk.deps.calendar.of(one.billing_timezone) for one in (former, record)
        )
    )
    await catalogue.go_over(change.connection, left, entered, change.at)
    month = month_account(change.desk, record, change.at)
    caps = {(month, meter): cap for meter in METERS if (cap := record.cap(meter)) is not None}
    await catalogue.set_limits(change.connection, caps, change.at, charged=[month])


async def set_caps(
    change: Change,
    wanted: Iterable[tuple[AllocationRecord, Mapping[Meter, int | None]]],
    reason: str | None,
) -> None:
    """Set those caps of allocations that differ from what they are."""
    amounts: dict[tuple[AccountKey, Meter], int | None] = {}
    for record, caps in wanted:
        for meter, amount in caps.items():
            if amount == record.cap(meter):
                continue
            amounts[month_account(change.desk, record, change.at), meter] = amount
            await change.record(
                _CAP_EVENT[meter],
                "allocation",
                record.id,
                before=shown(meter, record.cap(meter)),
                after=shown(meter, amount),
                reason=reason,
            )
    # Last of all: calls of these allocations wait from here on until it is committed.
    accounts = {account for account, _ in amounts}
    await catalogue.set_limits(change.connection, amounts, change.at, charged=accounts)


async def _known_models(change: Change, models: Sequence[str]) -> None:
    for slug in models:
        wire.slug("models", slug)
    missing = await catalogue.unknown_models(change.connection, models)
    if missing:
        raise unknown_models(missing)


def unknown_models(slugs: Sequence[str]) -> Refused:
    """Refuse names of models that there are not."""
    return invalid(
        "models",
        "unknown_models",
        "names unknown models: {models}",
        models=", ".join(map(repr, slugs)),
    )


async def _known_pool(change: Change, pool_id: str | None) -> None:
    if pool_id is not None and await catalogue.pools.find(change.connection, pool_id) is None:
        raise invalid("pool_id", "no_such_id", "is no {what}'s", what="pool")


async def _fits_its_keys(change: Change, record: AllocationRecord, models: Sequence[str]) -> None:
    changed = msgspec.structs.replace(record, models=list(models))
    for key in await catalogue.keys_opening(change.connection, record.id):
        others = [id for id in key.allocation_ids if id != record.id]
        opened = await catalogue.allocations.find_all(change.connection, others)
        model = _shared([*opened, changed])
        if model is not None:
            raise taken(
                "models",
                "key_shares_model",
                "would give the key {key!r} ({id}) two allocations with the model "
                "{model!r}; take one of them off the key first",
                key=key.name,
                id=key.id,
                model=model,
            )


def _shared(records: Sequence[AllocationRecord]) -> str | None:
    return shared_model(
        Allocation(record.id, record.member_id, tuple(record.models)) for record in records
    )


async def _allocations(desk: Desk, records: Sequence[AllocationRecord]) -> list[AllocationDocument]:
    async with desk.deps.database.snapshot() as connection:
        standings = await usage.standings(connection, records, desk.deps.calendar, desk.at)
    return [_document(record, one) for record, one in zip(records, standings, strict=True)]


def _document(record: AllocationRecord, standing: usage.Standing) -> AllocationDocument:
    return AllocationDocument(
        **msgspec.structs.asdict(standing),
        member_id=record.member_id,
        pool_id=record.pool_id,
        overrun_policy=record.overrun_policy,
        ledger_outage=record.ledger_outage,
        unpriced=record.unpriced,
        billing_timezone=record.billing_timezone,
        floor_tokens=record.floor_tokens,
        locked=record.locked,
        service=record.service,
        created_at=record.created_at,
    )


def configured(record: AllocationRecord) -> dict[str, object]:
    """Return an allocation without its caps, which have events of their own."""
    fields = msgspec.structs.asdict(record)
    return {name: value for name, value in fields.items() if not name.startswith("cap_")}


# Keys


class OwnKeyInput(Input):
    """A key to add. A limit of 0 blocks; a token budget of 0, or none, is unlimited."""

    name: str
    allocation_ids: list[UUID]
    expires_at: datetime | None = None
    one_shot: bool = False
    token_budget: int | None = None
    limits: tuple[LimitInput, ...] = ()


class KeyInput(OwnKeyInput, kw_only=True):
    """The same, for whichever member it is to be, and whom it tells at how many tokens."""

    member_id: UUID
    alert_threshold: int | None = None
    alert_webhook: str | None = None


class KeyPatch(Input):
    """What to change of a key; whose it is stays. `limits` replaces all but the token budget."""

    name: str | UnsetType = UNSET
    allocation_ids: list[UUID] | UnsetType = UNSET
    expires_at: datetime | UnsetType | None = UNSET
    one_shot: bool | UnsetType = UNSET
    token_budget: int | UnsetType | None = UNSET
    limits: list[LimitInput] | UnsetType = UNSET
    alert_threshold: int | UnsetType | None = UNSET
    alert_webhook: str | UnsetType | None = UNSET
    reason: str | None = None


class ChangedKey(KeyView, frozen=True, kw_only=True):
    """A key and, if its webhook is new, the secret that is signed with, shown this once."""

    webhook_secret: str | UnsetType = UNSET


class KeyWithSecret(ChangedKey, frozen=True, kw_only=True):
    """A key with its secret, which is shown this once."""

    key: str


async def key_to_change(change: Change, key_id: str, owner_id: str | None = None) -> KeyRecord:
    """Return a key that is about to be changed; one that is not its owner's is not there."""
    record = await catalogue.keys.find(change.connection, key_id)
    if record is None or owner_id not in (None, record.member_id):
        raise unknown("key")
    change.expect(record)
    return record


async def store_key(
    change: Change,
    key: KeyRecord,
    values: Mapping[str, object],
    limits: Mapping[LimitName, int | None],
    reason: str | None = None,
) -> KeyRecord:
    """Store what differs of a key and of its limits, and return what is stored."""
    former = key.allocation_ids
    key = await _update(change, catalogue.keys, "key", key, values, reason=reason)
    # Calls through an allocation that is taken off begin until this is committed.
    await _set_limits(change, key, limits, reason, {*former, *key.allocation_ids})
    return await _again(change, catalogue.keys, key.id)


async def _set_limits(
    change: Change,
    record: KeyRecord,
    wanted: Mapping[LimitName, int | None],
    reason: str | None,
    allocation_ids: Iterable[str],
) -> None:
    opened = await catalogue.allocations.find_all(change.connection, sorted(allocation_ids))
    charged = [month_account(change.desk, one, change.at) for one in opened]
    await set_limits(
        change, "key", record.id, record.limits, wanted, charged=charged, reason=reason
    )


@post("/keys", summary="Add a key; the answer alone shows its secret")
async def add_key(data: JSONBody[KeyInput], desk: NamedDependency[Desk]) -> KeyWithSecret:
    """The model of a call picks the allocation, so no two of a key may share one."""
    threshold, webhook = read_key_threshold(data.alert_threshold), data.alert_webhook
    if webhook is not None:
        await read_webhook(desk.deps, "alert_webhook", webhook)
    return await make_key(desk, str(data.member_id), data, threshold, webhook)


async def make_key(
    desk: Desk,
    member_id: str,
    data: OwnKeyInput,
    threshold: int | None = None,
    webhook: str | None = None,
) -> KeyWithSecret:
    """Add a key of a member, and where it alerts at how many tokens, if it does."""
    id, secret = uuid7(), new_key()
    name = wire.text("name", data.name)
    limits: dict[LimitName, int | None] = {**read_limits(data.limits, "key")}
    budget = read_budget(data.token_budget, limits)
    if budget is not None:
        limits[BUDGET] = budget
    expires_at = None
    if data.expires_at is not None:
        expires_at = wire.instant("expires_at", data.expires_at)
    allocation_ids = wire.distinct("allocation_ids", [str(one) for one in data.allocation_ids])
    new = NewSecret()

    async def work(change: Change) -> tuple[KeyRecord, str | UnsetType]:
        if await catalogue.members.find(change.connection, member_id) is None:
            raise invalid("member_id", "no_such_id", "is no {what}'s", what="member")
        await _fit_one_key(change, member_id, allocation_ids)
        await catalogue.keys.add(
            change.connection,
            id=id,
            member_id=member_id,
            name=name,
            digest=desk.deps.vault.digest(secret),
            hint=hint_of(secret),
            allocation_ids=allocation_ids,
            expires_at=expires_at,
            one_shot=data.one_shot,
        )
        added = await _again(change, catalogue.keys, id)
        await change.record("key_created", "key", id, after=added)
        await _set_limits(change, added, limits, None, added.allocation_ids)
        signed_with = await set_key_alert(change, added, threshold, webhook, new, None)
        return await _again(change, catalogue.keys, id), signed_with

    record, signed_with = await desk.write(work)
    return await _with_secret(desk, record, secret, signed_with)


@get("/keys", summary="List keys, newest first")
async def list_keys(
    desk: NamedDependency[Desk],
    cursor: FromQuery[str | None] = None,
    limit: FromQuery[int] = wire.PAGE_DEFAULT,
    member_id: FromQuery[str | None] = None,
) -> Page[KeyView]:
    member = wire.id_filter("member_id", member_id)
    page = await _page(desk, catalogue.keys, cursor, limit, member_id=member)
    return Page(await _key_views(desk, page.items), page.next)


@get("/keys/{id:str}", summary="Show a key")
async def show_key(id: FromPath[str], desk: NamedDependency[Desk]) -> KeyView:
    record = await _shown(desk, catalogue.keys, wire.path_id(id, "key"), "key")
    return await key_view(desk, record)


async def _with_secret(
    desk: Desk, record: KeyRecord, secret: str, signed_with: str | UnsetType = UNSET
) -> KeyWithSecret:
    view = await key_view(desk, record)
    return KeyWithSecret(**msgspec.structs.asdict(view), key=secret, webhook_secret=signed_with)


async def key_view(desk: Desk, record: KeyRecord) -> KeyView:
    """Show a key; not within a change, where others would wait for the sums."""
    return (await _key_views(desk, [record]))[0]


async def _key_views(desk: Desk, records: Sequence[KeyRecord]) -> list[KeyView]:
    async with desk.deps.database.snapshot() as connection:
        return await usage.key_views(connection, records, desk.deps.calendar, desk.at)


@patch("/keys/{id:str}", summary="Change a key")
async def change_key(
    id: FromPath[str], data: JSONBody[KeyPatch], desk: NamedDependency[Desk]
) -> ChangedKey:
    """A new limit holds for the next call on every replica, and counts what was used before."""
    key_id = wire.path_id(id, "key")
    values = _given(one_shot=data.one_shot)
    if data.name is not UNSET:
        values["name"] = wire.text("name", data.name)
    if data.expires_at is not UNSET:
        until = data.expires_at
        values["expires_at"] = None if until is None else wire.instant("expires_at", until)
    allocation_ids: list[str] = []
    if data.allocation_ids is not UNSET:
        named = [str(one) for one in data.allocation_ids]
        allocation_ids = wire.distinct("allocation_ids", named)
        values["allocation_ids"] = allocation_ids

    asked = None if data.limits is UNSET else read_limits(data.limits, "key")
    budget = UNSET if data.token_budget is UNSET else read_budget(data.token_budget, asked or {})
    threshold, webhook = data.alert_threshold, data.alert_webhook
    if isinstance(threshold, int):
        read_key_threshold(threshold)
    if isinstance(webhook, str):
        await read_webhook(desk.deps, "alert_webhook", webhook)
    new = NewSecret()
    reason = wire.reason(data.reason)

    async def work(change: Change) -> tuple[KeyRecord, str | UnsetType]:
        key = await key_to_change(change, key_id)
        if allocation_ids:
            await _fit_one_key(change, key.member_id, allocation_ids)
        wanted: dict[LimitName, int | None] = {}
        if asked is not None:
            names = [(limit.meter, limit.window) for limit in key.limits]
            wanted = {name: None for name in names if name != BUDGET}
            wanted |= asked
        if budget is not UNSET and wanted.get(BUDGET) is None:
            wanted[BUDGET] = budget
        key = await store_key(change, key, values, wanted, reason)
        signed_with = await set_key_alert(change, key, threshold, webhook, new, reason)
        return await _again(change, catalogue.keys, key_id), signed_with

    record, signed_with = await desk.write(work)
    view = msgspec.structs.asdict(await key_view(desk, record))
    return ChangedKey(**view, webhook_secret=signed_with)


@post("/keys/{id:str}/rotate", status_code=200, summary="Give a key a new secret")
async def rotate_key(id: FromPath[str], desk: NamedDependency[Desk]) -> KeyWithSecret:
    """The old secret stops working at once. A one-shot key can be used once more."""
    return await give_secret(desk, wire.path_id(id, "key"))


async def give_secret(desk: Desk, key_id: str, owner_id: str | None = None) -> KeyWithSecret:
    """Give a key a new secret; its owner cannot make a used one-shot key fit for use again."""
    secret = new_key()

    async def work(change: Change) -> KeyRecord:
        key = await key_to_change(change, key_id, owner_id)
        if key.revoked_at is not None:
            raise taken("id", "key_revoked", "is a revoked key's; add a new key instead")
        if key.used_at is not None and owner_id is not None:
            raise taken(
                "id", "key_used", "is a one-shot key's that was used; add a new key instead"
            )
        await catalogue.keys.change(
            change.connection,
            key_id,
            {
                "digest": desk.deps.vault.digest(secret),
                "hint": hint_of(secret),
                "used_at": None,
            },
        )
        rotated = await _again(change, catalogue.keys, key_id)
        await change.record(
            "key_rotated",
            "key",
            key_id,
            before={"hint": key.hint},
            after={"hint": rotated.hint},
        )
        return rotated

    return await _with_secret(desk, await desk.write(work), secret)


@post("/keys/{id:str}/revoke", status_code=200, summary="Revoke a key, for good")
async def revoke_key(id: FromPath[str], desk: NamedDependency[Desk]) -> KeyView:
    """Revoking it again changes nothing."""
    return await end_key(desk, wire.path_id(id, "key"))


async def end_key(desk: Desk, key_id: str, owner_id: str | None = None) -> KeyView:
    """Revoke a key."""

    async def work(change: Change) -> KeyRecord:
        key = await key_to_change(change, key_id, owner_id)
        if key.revoked_at is not None:
            return await _again(change, catalogue.keys, key_id)
        await catalogue.keys.change(change.connection, key_id, {"revoked_at": change.at})
        await change.record(
            "key_revoked",
            "key",
            key_id,
            before={"revoked_at": None},
            after={"revoked_at": change.at},
        )
        return await _again(change, catalogue.keys, key_id)

    return await key_view(desk, await desk.write(work))


async def _fit_one_key(change: Change, member_id: str, allocation_ids: Sequence[str]) -> None:
    records = await catalogue.allocations.find_all(change.connection, allocation_ids)
    known = {record.id for record in records}
    for id in allocation_ids:
        if id not in known:
            raise invalid(
                "allocation_ids",
                "names_no_allocation",
                "names {id}, which is no allocation's",
                id=id,
            )
    for record in records:
        if record.member_id != member_id:
            raise invalid(
                "allocation_ids",
                "names_anothers",
                "names {id}, which is another member's",
                id=record.id,
            )
    model = _shared(records)
    if model is not None:
        raise taken(
            "allocation_ids",
            "allocations_share_model",
            "names two allocations that both open the model {model!r}; a call must have one payer",
            model=model,
        )


def admin_routers() -> list[Router]:
    """Make the routers of what admins set up."""
    tables: dict[str, list[HTTPRouteHandler]] = {
        "Providers": [add_provider, list_providers, show_provider, change_provider],
        "Models": [add_model, list_models, show_model, change_model],
        "Prices": [add_price, list_prices],
        "Members": [add_member, list_members, show_member, change_member],
        "Allocations": [add_allocation, list_allocations, show_allocation, change_allocation],
        "Keys": [add_key, list_keys, show_key, change_key, rotate_key, revoke_key],
    }
    return [
        Router("/", route_handlers=documented(handlers), tags=[tag])
        for tag, handlers in tables.items()
    ]
