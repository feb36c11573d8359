"""Alerts: where they go, at which thresholds, and what became of each.

Owns the bodies and documents of destinations, rules and deliveries, and the audit events of their
changes. Owns no check of an address or a threshold (see `rules`), no SQL (see `store.alerts`), and
sends nothing: that is the worker's.

Invariants:

- A webhook's secret is in the answer that makes it, only, and a destination's kind stays.
- A rule is on an owner that there is. What it is on stays; another total is another rule.
- Whatever is sent goes through the queue, a trial and a redelivery like everything else.
"""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, Literal, get_args
from uuid import UUID

import msgspec
from litestar import Router, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery, JSONBody
from msgspec import UNSET, UnsetType

from app.control import records, rules, wire
from app.control.desk import Change, Desk
from app.control.errors import documented, invalid, taken, unknown
from app.control.limits import read_window, shown
from app.control.wire import Input, Page
from app.core.alerts import ListedKind, trial_event
from app.core.ledger import Meter
from app.core.windows import Window
from app.ids import uuid7
from app.store import alerts, catalogue
from app.store.alerts import (
    AttemptRecord,
    DeliveryRecord,
    DeliveryStatus,
    DestinationKind,
    DestinationRecord,
    RuleRecord,
)
from app.store.vault import new_webhook_secret

WatchedOwner = Literal["key", "allocation", "pool"]


# Destinations


class DestinationInput(Input):
    """A destination to add. `events` are those that it is told beside its rules' thresholds."""

    name: str
    kind: DestinationKind
    address: str
    events: tuple[ListedKind, ...] = ()
    enabled: bool = True


class DestinationPatch(Input):
    """What to change of a destination; its kind stays."""

    name: str | UnsetType = UNSET
    address: str | UnsetType = UNSET
    events: list[ListedKind] | UnsetType = UNSET
    enabled: bool | UnsetType = UNSET
    reason: str | None = None


class DestinationWithSecret(DestinationRecord, frozen=True, kw_only=True):
    """A destination and, of a webhook, the secret it is signed with, which is shown this once."""

    webhook_secret: str | UnsetType = UNSET


def _events(events: Sequence[ListedKind]) -> list[str]:
    return wire.distinct("events", events) if events else []


@post("/destinations", summary="Add a destination; the answer alone shows a webhook's secret")
async def add_destination(
    data: JSONBody[DestinationInput], desk: NamedDependency[Desk]
) -> DestinationWithSecret:
    """A webhook must lead to a public address, unless a setting lists its network."""
    new = rules.NewSecret()
    name, events = wire.text("name", data.name), _events(data.events)
    if data.kind == "email" and desk.deps.mailer is None:
        raise invalid("kind", "no_mail_server", "email needs a mail server: set SPENDGATE_SMTP_URL")
    address = await rules.read_address(desk.deps, data.kind, data.address)

    async def work(change: Change) -> DestinationWithSecret:
        await rules.add_destination(
            change,
            new,
            name=name,
            kind=data.kind,
            address=address,
            events=events,
            enabled=data.enabled,
        )
        added = await records.again(change, alerts.destinations, new.destination_id)
        await change.record("destination_created", "destination", added.id, after=added)
        return _with_secret(added, new.plain if data.kind == "webhook" else UNSET)

    return await desk.write(work)


@get("/destinations", summary="List destinations, newest first")
async def list_destinations(
    desk: NamedDependency[Desk],
    cursor: FromQuery[str | None] = None,
    limit: FromQuery[int] = wire.PAGE_DEFAULT,
    key_id: FromQuery[str | None] = None,
) -> Page[DestinationRecord]:
    key = wire.id_filter("key_id", key_id)
    return await records.page(desk, alerts.destinations, cursor, limit, key_id=key)


@get("/destinations/{id:str}", summary="Show a destination")
async def show_destination(id: FromPath[str], desk: NamedDependency[Desk]) -> DestinationRecord:
    return await records.found(
        desk, alerts.destinations, wire.path_id(id, "destination"), "destination"
    )


@patch("/destinations/{id:str}", summary="Change a destination")
async def change_destination(
    id: FromPath[str], data: JSONBody[DestinationPatch], desk: NamedDependency[Desk]
) -> DestinationRecord:
    """While it is disabled nothing new is meant for it, and what is on its way waits."""
    destination_id = wire.path_id(id, "destination")
    values = records.given(enabled=data.enabled)
    if data.name is not UNSET:
        values["name"] = wire.text("name", data.name)
    if data.events is not UNSET:
        values["events"] = _events(data.events)
    if data.address is not UNSET:
        async with desk.deps.database.snapshot() as connection:
            known = await alerts.destinations.find(connection, destination_id)
        if known is None:
            raise unknown("destination")
        values["address"] = await rules.read_address(desk.deps, known.kind, data.address)
    reason = wire.reason(data.reason)

    async def work(change: Change) -> DestinationRecord:
        known = await records.current(change, alerts.destinations, destination_id, "destination")
        return await records.update(
            change, alerts.destinations, "destination", known, values, reason=reason
        )

    return await desk.write(work)


@delete("/destinations/{id:str}", summary="Delete a destination, with its rules and its log")
async def delete_destination(id: FromPath[str], desk: NamedDependency[Desk]) -> None:
    """What is on its way to it is not sent any more. Of a key, it was the `alert_webhook`."""
    destination_id = wire.path_id(id, "destination")

    async def work(change: Change) -> None:
        known = await records.current(change, alerts.destinations, destination_id, "destination")
        for rule in await rules.remove_destination(change, known):
            await change.record("alert_rule_deleted", "alert_rule", rule.id, before=_rule(rule))
        await change.record("destination_deleted", "destination", known.id, before=known)

    await desk.write(work)


@post(
    "/destinations/{id:str}/rotate-secret",
    status_code=200,
    summary="Give a webhook a new secret; the answer alone shows it",
)
async def rotate_secret(id: FromPath[str], desk: NamedDependency[Desk]) -> DestinationWithSecret:
    """For 24 hours deliveries are signed with both, the new secret and the one before."""
    destination_id, secret = wire.path_id(id, "destination"), new_webhook_secret()

    async def work(change: Change) -> DestinationWithSecret:
        known = await records.current(change, alerts.destinations, destination_id, "destination")
        if known.kind != "webhook":
            raise taken(
                "id", "no_webhook", "is no webhook's; only deliveries to webhooks are signed"
            )
        version = await alerts.secret_version(change.connection, destination_id) + 1
        sealed = desk.deps.vault.seal(secret, destination_id, version)
        until = change.at + rules.SIGNED_WITH_BOTH
        await alerts.rotate_secret(change.connection, destination_id, sealed, version, until)
        await change.record(
            "destination_secret_rotated",
            "destination",
            destination_id,
            before={"secret_version": version - 1},
            after={"secret_version": version},
        )
        rotated = await records.again(change, alerts.destinations, destination_id)
        return _with_secret(rotated, secret)

    return await desk.write(work)


@post("/destinations/{id:str}/test", summary="Send a test to a destination, through the queue")
async def test_destination(id: FromPath[str], desk: NamedDependency[Desk]) -> DeliveryRecord:
    """The answer is the delivery, which `GET /api/admin/deliveries/{id}` shows the progress of."""
    destination_id, trial_id = wire.path_id(id, "destination"), uuid7()

    async def work(change: Change) -> DeliveryRecord:
        known = await alerts.destinations.find(change.connection, destination_id)
        if known is None:
            raise unknown("destination")
        _reachable(known)
        event = trial_event(trial_id, destination_id, change.at)
        delivery_id = await alerts.add_trial(change.connection, event, destination_id)
        after = {"delivery_id": delivery_id}
        await change.record("destination_tested", "destination", destination_id, after=after)
        return await _found(change, delivery_id)

    return await desk.write(work)


def _reachable(destination: DestinationRecord) -> None:
    if not destination.enabled:
        raise taken(
            "enabled", "destination_disabled", "is false for this destination: enable it first"
        )


def _with_secret(record: DestinationRecord, secret: str | UnsetType) -> DestinationWithSecret:
    return DestinationWithSecret(**msgspec.structs.asdict(record), webhook_secret=secret)


# Rules


class RuleInput(Input):
    """A threshold to add: tokens (a number), USD (a decimal string), or percent of the limit."""

    destination_id: UUID
    owner: WatchedOwner
    owner_id: UUID
    meter: Meter
    window: str = "month"
    threshold: Decimal | None = None
    percent: Decimal | None = None
    enabled: bool = True


class RulePatch(Input):
    """What to change of a rule; the total that it is on stays."""

    destination_id: UUID | UnsetType = UNSET
    threshold: Decimal | UnsetType | None = UNSET
    percent: Decimal | UnsetType | None = UNSET
    enabled: bool | UnsetType = UNSET
    reason: str | None = None


class RuleDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A threshold on the total of an owner, meter and window; null is the other way to say it."""

    id: str
    destination_id: str
    owner: WatchedOwner
    owner_id: str
    meter: Meter
    window: Window
    threshold: int | str | None
    percent: float | None
    enabled: bool
    created_at: datetime


_OWNERS: Final[dict[WatchedOwner, Any]] = {
    "key": catalogue.keys,
    "allocation": catalogue.allocations,
    "pool": catalogue.pools,
}


@post("/alert-rules", summary="Add a threshold that a destination is told of")
async def add_alert_rule(data: JSONBody[RuleInput], desk: NamedDependency[Desk]) -> RuleDocument:
    """Told once in each period, when the total used reaches the threshold or goes past it.

    What is over already is not told. `percent` is of the limit as it is at that moment, top-ups
    included; without a limit there is nothing to tell.
    """
    window = read_window("window", data.window, data.owner)
    threshold, percent = rules.read_threshold(data.meter, data.threshold, data.percent)
    owner_id = str(data.owner_id)

    async def work(change: Change) -> RuleDocument:
        await _known_destination(change, str(data.destination_id))
        if await _OWNERS[data.owner].find(change.connection, owner_id) is None:
            raise invalid("owner_id", "no_such_id", "is no {what}'s", what=data.owner)
        added = await rules.add_rule(
            change,
            str(data.destination_id),
            data.owner,
            owner_id,
            data.meter,
            window,
            threshold,
            percent,
            data.enabled,
        )
        desk.tag(added)
        await change.record("alert_rule_created", "alert_rule", added.id, after=_rule(added))
        return _rule(added)

    return await desk.write(work)


@get("/alert-rules", summary="List thresholds, newest first")
async def list_alert_rules(
    desk: NamedDependency[Desk],
    cursor: FromQuery[str | None] = None,
    limit: FromQuery[int] = wire.PAGE_DEFAULT,
    destination_id: FromQuery[str | None] = None,
    owner_id: FromQuery[str | None] = None,
) -> Page[RuleDocument]:
    page = await records.page(
        desk,
        alerts.rules,
        cursor,
        limit,
        destination_id=wire.id_filter("destination_id", destination_id),
        owner_id=wire.id_filter("owner_id", owner_id),
    )
    return Page([_rule(rule) for rule in page.items], page.next)


@get("/alert-rules/{id:str}", summary="Show a threshold")
async def show_alert_rule(id: FromPath[str], desk: NamedDependency[Desk]) -> RuleDocument:
    return _rule(await records.found(desk, alerts.rules, wire.path_id(id, "rule"), "rule"))


@patch("/alert-rules/{id:str}", summary="Change a threshold")
async def change_alert_rule(
    id: FromPath[str], data: JSONBody[RulePatch], desk: NamedDependency[Desk]
) -> RuleDocument:
    """Another threshold is told anew; one that is over already waits for the next period."""
    rule_id, reason = wire.path_id(id, "rule"), wire.reason(data.reason)
    named = data.threshold is not UNSET or data.percent is not UNSET
    threshold = None if data.threshold is UNSET else data.threshold
    percent = None if data.percent is UNSET else data.percent

    async def work(change: Change) -> RuleDocument:
        rule = await records.current(change, alerts.rules, rule_id, "rule")
        await _not_of_a_key(change, rule)
        values = records.given(enabled=data.enabled)
        if data.destination_id is not UNSET:
            values["destination_id"] = str(data.destination_id)
            await _known_destination(change, str(data.destination_id))
        if named:
            value, is_percent = rules.read_threshold(rule.meter, threshold, percent)
            values |= {"threshold": value, "percent": is_percent}
        values = {name: value for name, value in values.items() if value != getattr(rule, name)}
        if not values:
            return _rule(await records.again(change, alerts.rules, rule_id))
        await alerts.rules.change(change.connection, rule_id, values)
        changed = await records.again(change, alerts.rules, rule_id)
        if changed.enabled != rule.enabled:
            await rules.watch(change, changed)
        was, now = msgspec.structs.asdict(_rule(rule)), msgspec.structs.asdict(_rule(changed))
        differs = [name for name in now if was[name] != now[name]]
        await change.record(
            "alert_rule_updated",
            "alert_rule",
            rule_id,
            before={name: was[name] for name in differs},
            after={name: now[name] for name in differs},
            reason=reason,
        )
        return _rule(changed)

    return await desk.write(work)


@delete("/alert-rules/{id:str}", summary="Delete a threshold")
async def delete_alert_rule(id: FromPath[str], desk: NamedDependency[Desk]) -> None:
    """What it has told stays in the log."""
    rule_id = wire.path_id(id, "rule")

    async def work(change: Change) -> None:
        rule = await records.current(change, alerts.rules, rule_id, "rule")
        await _not_of_a_key(change, rule)
        await rules.remove_rule(change, rule)
        await change.record("alert_rule_deleted", "alert_rule", rule_id, before=_rule(rule))

    await desk.write(work)


async def _known_destination(change: Change, id: str) -> None:
    destination = await alerts.destinations.find(change.connection, id)
    if destination is None:
        raise invalid("destination_id", "no_such_id", "is no {what}'s", what="destination")
    if destination.key_id is not None:
        raise invalid(
            "destination_id",
            "destination_of_key",
            "is a key's alert_webhook; add a destination for the rule",
        )


async def _not_of_a_key(change: Change, rule: RuleRecord) -> None:
    destination = await alerts.destinations.find(change.connection, rule.destination_id)
    if destination is not None and destination.key_id is not None:
        raise taken("id", "rule_of_key", "is that of a key's alert_threshold; change it on the key")


def _rule(record: RuleRecord) -> RuleDocument:
    fields = msgspec.structs.asdict(record)
    if record.percent:
        fields |= {"threshold": None, "percent": record.threshold / 100}
    else:
        fields |= {"threshold": shown(record.meter, record.threshold), "percent": None}
    return RuleDocument(**fields)


# Deliveries


class DeliveryDocument(DeliveryRecord, frozen=True, kw_only=True):
    """An event on its way to a destination, or there; what it tells, and each try."""

    body: dict[str, Any]
    attempts: list[AttemptRecord]


@get("/deliveries", summary="List deliveries, newest first")
async def list_deliveries(
    desk: NamedDependency[Desk],
    cursor: FromQuery[str | None] = None,
    limit: FromQuery[int] = wire.PAGE_DEFAULT,
    destination_id: FromQuery[str | None] = None,
    status: FromQuery[str | None] = None,
    event: FromQuery[str | None] = None,
) -> Page[DeliveryRecord]:
    """A delivery that failed for a day is `dead`, until it is redelivered."""
    if status is not None and status not in get_args(DeliveryStatus):
        raise invalid(
            "status",
            "one_of",
            "must be one of {known}",
            known=", ".join(get_args(DeliveryStatus)),
        )
    below, most = wire.after(cursor), wire.page_limit(limit) + 1
    destination, kind = wire.id_filter("destination_id", destination_id), event
    async with desk.deps.database.snapshot() as connection:
        found = await alerts.deliveries(
            connection,
            below=below,
            limit=most,
            destination_id=destination,
            status=status,
            event=wire.text_filter("event", kind),
        )
    return wire.paged(found, limit, lambda delivery: delivery.id)


@get("/deliveries/{id:str}", summary="Show a delivery, with what it tells and each try")
async def show_delivery(id: FromPath[str], desk: NamedDependency[Desk]) -> DeliveryDocument:
    delivery_id = wire.path_id(id, "delivery")
    async with desk.deps.database.snapshot() as connection:
        delivery = await alerts.find_delivery(connection, delivery_id)
        if delivery is None:
            raise unknown("delivery")
        tries = await alerts.attempts(connection, delivery_id)
        body = await alerts.body_of(connection, delivery.event_id)
    return DeliveryDocument(
        **msgspec.structs.asdict(delivery), body=msgspec.json.decode(body), attempts=tries
    )


@post("/deliveries/{id:str}/redeliver", status_code=200, summary="Send a delivery again, now")
async def redeliver(id: FromPath[str], desk: NamedDependency[Desk]) -> DeliveryRecord:
    """Under the same event id, whether it arrived, is dead, or waits for its next try."""
    delivery_id = wire.path_id(id, "delivery")

    async def work(change: Change) -> DeliveryRecord:
        known = await alerts.find_delivery(change.connection, delivery_id)
        if known is None:
            raise unknown("delivery")
        destination = await alerts.destinations.find(change.connection, known.destination_id)
        assert destination is not None, "a destination is deleted with its log"
        _reachable(destination)
        await alerts.redeliver(change.connection, delivery_id)
        await change.record(
            "delivery_redelivered",
            "delivery",
            delivery_id,
            before={"status": known.status},
            after={"status": "pending"},
        )
        return await _found(change, delivery_id)

    return await desk.write(work)


async def _found(change: Change, delivery_id: str) -> DeliveryRecord:
    delivery = await alerts.find_delivery(change.connection, delivery_id)
    assert delivery is not None, "it has just been written"
    return delivery


def alert_router() -> Router:
    """Make the router of alerts."""
    handlers: list[HTTPRouteHandler] = [
        add_destination,
        list_destinations,
        show_destination,
        change_destination,
        delete_destination,
        rotate_secret,
        test_destination,
        add_alert_rule,
        list_alert_rules,
        show_alert_rule,
        change_alert_rule,
        delete_alert_rule,
        list_deliveries,
        show_delivery,
        redeliver,
    ]
    return Router("/", route_handlers=documented(handlers), tags=["Alerts"])
