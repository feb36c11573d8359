"""Rules: how destinations and thresholds are read from a body, set, watched, and recorded.

Owns the checks of addresses and thresholds, what hangs on a rule (its total is kept), and the short
way of a key: `alert_threshold` and `alert_webhook`. Owns no handler (see `alerts`), no SQL, and no
judgement of an address (see `core.alerts`).

Invariants:

- A total is kept while a rule in force is on it, and no longer on its account.
- A key has one webhook at most, with one rule at most, which are changed on the key.
- A webhook's secret leaves in the answer that makes it, only.
"""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from app.control import wire
from app.control.desk import Change, ControlDeps
from app.control.errors import invalid, misfit
from app.control.limits import read_amount
from app.core.alerts import (
    InvalidThreshold,
    InvalidWebhookUrl,
    check_absolute,
    check_percent,
    check_webhook_url,
)
from app.core.ledger import AccountKey, Meter, OwnerKind, account_key
from app.ids import uuid7
from app.receivers import Forbidden, Unknown
from app.store import alerts, catalogue
from app.store.alerts import DestinationKind, DestinationRecord, RuleRecord
from app.store.catalogue import KeyRecord
from app.store.vault import Vault, new_webhook_secret

LOOK_UP_S: Final = 3.0
SIGNED_WITH_BOTH: Final = timedelta(days=1)
"""How long deliveries are signed with the secret before as well: receivers change theirs then."""


# Values


async def read_webhook(deps: ControlDeps, field: str, url: str) -> str:
    """Check a webhook's URL, and where it leads now.

    A name that leads nowhere now is taken: it is looked up and judged again whenever it is used.
    """
    try:
        receiver = check_webhook_url(url)
        async with asyncio.timeout(LOOK_UP_S):
            await deps.receivers.addresses(receiver)
    except InvalidWebhookUrl as error:
        raise misfit(field, error) from None
    except Forbidden as error:
        raise invalid(
            field,
            "host_forbidden",
            "must lead to a public address, but {host} is at {address}; if it is meant to be "
            "reached, list its network in SPENDGATE_WEBHOOK_PRIVATE_CIDRS",
            **error.values,
        ) from None
    except (Unknown, TimeoutError):
        pass
    return url


async def read_address(deps: ControlDeps, kind: DestinationKind, value: str) -> str:
    """Check where a destination is."""
    if kind == "webhook":
        return await read_webhook(deps, "address", value)
    if not wire.MAILBOX.fullmatch(value):
        raise invalid("address", "not_email", "must be an e-mail address such as ops@example.org")
    return value


def read_threshold(
    meter: Meter, threshold: Decimal | None, percent: Decimal | None
) -> tuple[int, bool]:
    """Check a threshold: tokens or nano-USD or, if it is of a limit, hundredths of a percent."""
    if (threshold is None) == (percent is None):
        raise invalid("threshold", "threshold_or_percent", "or percent is needed, and not both")
    try:
        if percent is not None:
            return check_percent(percent), True
        assert threshold is not None, "one of the two is there"
        return check_absolute(meter, read_amount("threshold", meter, threshold)), False
    except InvalidThreshold as error:
        raise misfit("threshold" if percent is None else "percent", error) from None


def read_key_threshold(value: int | None) -> int | None:
    """Check the lifetime tokens at which a key alerts."""
    try:
        return None if value is None else check_absolute("tokens", value)
    except InvalidThreshold as error:
        raise misfit("alert_threshold", error) from None


class NewSecret(msgspec.Struct, frozen=True):
    """A secret for a webhook that may come to be, and the id that it would have."""

    destination_id: str = msgspec.field(default_factory=uuid7)
    plain: str = msgspec.field(default_factory=new_webhook_secret)

    def sealed(self, vault: Vault) -> bytes:
        """Return it as it is stored."""
        return vault.seal(self.plain, self.destination_id, 1)


# Rules


async def add_rule(
    change: Change,
    destination_id: str,
    owner: OwnerKind,
    owner_id: str,
    meter: Meter,
    window: str,
    threshold: int,
    percent: bool,
    enabled: bool,
) -> RuleRecord:
    """Add a rule, and keep its total."""
    id = uuid7(change.at)
    await alerts.rules.add(
        change.connection,
        id=id,
        destination_id=destination_id,
        owner=owner,
        owner_id=owner_id,
        meter=meter,
        window_kind=window,
        threshold=threshold,
        percent=percent,
        enabled=enabled,
    )
    added = await alerts.rules.find(change.connection, id)
    assert added is not None, "it has just been added"
    await watch(change, added)
    return added


async def remove_rule(change: Change, rule: RuleRecord) -> None:
    """Delete a rule; its total is kept no longer, unless another needs it."""
    await alerts.remove_rule(change.connection, rule.id)
    await watch(change, rule)


async def watch(change: Change, rule: RuleRecord) -> None:
    """Have the total that a rule is on kept if any rule in force is on it, else no longer."""
    connection = change.connection
    if rule.owner != "key" and rule.window == "month":
        # The months of allocations and pools are kept anyway.
        return
    if not await alerts.is_watched(connection, rule):
        await catalogue.unwatch(connection, rule.owner_id, rule.meter, rule.window)
        return
    calendar, zone, charged = change.desk.deps.calendar, None, []
    if rule.owner == "key":
        key = await catalogue.keys.find(connection, rule.owner_id)
        assert key is not None, "keys are never deleted"
        opened = await catalogue.allocations.find_all(connection, key.allocation_ids)
        charged = [_month(change, "allocation", one.id, one.billing_timezone) for one in opened]
    else:
        if rule.owner == "allocation":
            allocation = await catalogue.allocations.find(connection, rule.owner_id)
            assert allocation is not None, "allocations are never deleted"
            zone = allocation.billing_timezone
        charged = [_month(change, rule.owner, rule.owner_id, zone)]
    period = calendar.of(zone).period(rule.window, change.at)
    account = account_key(rule.owner, rule.owner_id, rule.window, period)
    await catalogue.watch(connection, account, rule.meter, change.at, charged)


def _month(change: Change, owner: OwnerKind, owner_id: str, zone: str | None) -> AccountKey:
    period = change.desk.deps.calendar.of(zone).period("month", change.at)
    return account_key(owner, owner_id, "month", period)


# Destinations


async def add_destination(
    change: Change,
    new: NewSecret,
    *,
    name: str,
    kind: DestinationKind,
    address: str,
    events: Sequence[str] = (),
    key_id: str | None = None,
    enabled: bool = True,
) -> None:
    """Add a destination; a webhook gets the secret."""
    await alerts.destinations.add(
        change.connection,
        id=new.destination_id,
        name=name,
        kind=kind,
        address=address,
        events=list(events),
        secret=new.sealed(change.desk.deps.vault) if kind == "webhook" else None,
        secret_version=1,
        key_id=key_id,
        enabled=enabled,
    )


async def remove_destination(change: Change, destination: DestinationRecord) -> list[RuleRecord]:
    """Delete a destination with its log and its rules; return those."""
    rules = await alerts.rules_to(change.connection, destination.id)
    for rule in rules:
        await remove_rule(change, rule)
    await alerts.remove_destination(change.connection, destination.id)
    return rules


# The short way of a key


async def set_key_alert(
    change: Change,
    key: KeyRecord,
    threshold: int | UnsetType | None,
    webhook: str | UnsetType | None,
    new: NewSecret,
    reason: str | None,
) -> str | UnsetType:
    """Set where a key alerts, and at how many tokens; return the secret if the webhook is new."""
    wanted = key.alert_threshold if threshold is UNSET else threshold
    told = key.alert_webhook if webhook is UNSET else webhook
    if wanted is not None and told is None:
        raise invalid(
            "alert_threshold",
            "alert_nowhere",
            "needs alert_webhook, the URL that is told; without one, set both to null",
        )
    former = {"alert_threshold": key.alert_threshold, "alert_webhook": key.alert_webhook}
    after = {"alert_threshold": wanted, "alert_webhook": told}
    changed = [name for name in after if former[name] != after[name]]
    if not changed:
        return UNSET
    secret = await _set_key_webhook(change, key, told, new)
    await _set_key_threshold(change, key, wanted)
    await change.record(
        "key_alert_updated",
        "key",
        key.id,
        before={name: former[name] for name in changed},
        after={name: after[name] for name in changed},
        reason=reason,
    )
    return secret


async def _set_key_webhook(
    change: Change, key: KeyRecord, webhook: str | None, new: NewSecret
) -> str | UnsetType:
    connection = change.connection
    destination = await alerts.destination_of_key(connection, key.id)
    if destination is None and webhook is not None:
        name = f"key {key.name}"[:200]
        await add_destination(
            change, new, name=name, kind="webhook", address=webhook, key_id=key.id
        )
        return new.plain
    if destination is not None and webhook is None:
        await remove_destination(change, destination)
    elif destination is not None:
        await alerts.destinations.change(connection, destination.id, {"address": webhook})
    return UNSET


async def _set_key_threshold(change: Change, key: KeyRecord, threshold: int | None) -> None:
    connection = change.connection
    destination = await alerts.destination_of_key(connection, key.id)
    if destination is None:
        return
    rules = await alerts.rules_to(connection, destination.id)
    if threshold is None:
        for rule in rules:
            await remove_rule(change, rule)
    elif rules:
        await alerts.rules.change(connection, rules[0].id, {"threshold": threshold})
    else:
        await add_rule(
            change, destination.id, "key", key.id, "tokens", "lifetime", threshold, False, True
        )
