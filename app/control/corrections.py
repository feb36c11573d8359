"""Corrections: adjustments by hand, and calls priced again, for admins.

Owns the bodies and answers, what of a correction is refused, and the audit events. Owns no SQL (see
`store.corrections`) and no decision on an amount (see `core.corrections`).

Invariants: a call is never edited; whatever is booked names who booked it and why, and leaves its
event in the same transaction; calls are priced again in transactions of a few hundred, so that the
ledger waits for none for long; a dry run says what the real one would book.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from uuid import UUID

import msgspec
from litestar import Router, get, post
from litestar.di import NamedDependency
from litestar.params import FromQuery, JSONBody

from app.control import wire
from app.control.desk import Change, Desk
from app.control.errors import documented, invalid
from app.control.limits import shown
from app.control.wire import Input, Page
from app.core.corrections import Due, Undue, bounds, reprice
from app.core.ledger import Meter, RollingAccount
from app.core.money import AMOUNT_NANO_MAX, nano_to_usd
from app.core.pricing import Price
from app.ids import uuid7
from app.store import catalogue, corrections, usage
from app.store.corrections import AdjustmentDocument, BookedCall, Entry
from app.store.database import Connection


def _reason(value: str) -> str:
    """Check the reason of a correction, which nobody is spared."""
    return wire.text("reason", " ".join(value.split()), most=1000)


async def _book(
    change: Change,
    entries: Sequence[Entry],
    before: Mapping[str, RollingAccount],
    after: Mapping[str, RollingAccount],
    reason: str,
) -> None:
    await corrections.book(
        change.connection,
        entries,
        before,
        after,
        at=change.at,
        day=change.desk.deps.calendar.period("day", change.at),
        actor=change.desk.author.actor,
        note=reason,
    )


# By hand


class AdjustmentInput(Input):
    """What to add to what was used, or (negative) to take back: of one call, or of an allocation.

    `amount` is a whole number of tokens, or a decimal string of USD.
    """

    meter: Meter
    amount: Decimal
    reason: str
    allocation_id: UUID | None = None
    call_id: UUID | None = None


@post("/adjustments", summary="Correct what a call, or an allocation this month, has used")
async def add_adjustment(
    data: JSONBody[AdjustmentInput], desk: NamedDependency[Desk]
) -> AdjustmentDocument:
    """It counts at once in every limit that the call, or a call of the allocation now, counts in.

    The call itself stays as it was booked.
    """
    if (data.allocation_id is None) == (data.call_id is None):
        raise invalid(
            "call_id",
            "call_or_allocation",
            "or allocation_id must be given, and not both",
        )
    amount = _signed(data.meter, data.amount)
    reason = _reason(data.reason)

    async def work(change: Change) -> AdjustmentDocument:
        connection = change.connection
        if data.call_id is not None:
            entry = await _of_call(change, str(data.call_id))
        else:
            entry = await _of_allocation(change, str(data.allocation_id))
        accounts = await corrections.lock(connection, entry.account_ids)
        _check_fits(entry, accounts, data.meter, amount)
        meter = "nano" if data.meter == "usd" else "tokens"
        entry = msgspec.structs.replace(entry, **{meter: amount})
        await _book(change, [entry], accounts, corrections.moved([entry], accounts), reason)
        [booked] = await corrections.adjustments(
            connection,
            below=None,
            limit=1,
            equal={"id": entry.id},
        )
        await change.record(
            "adjustment_booked",
            "allocation" if entry.call_id is None else "call",
            str(entry.call_id or entry.allocation_id),
            after=booked,
            reason=reason,
        )
        return booked

    return await desk.write(work)


def _signed(meter: Meter, amount: Decimal) -> int:
    """Turn a signed amount into tokens or nano-USD, exactly."""
    if not amount.is_finite() or amount == 0:
        raise invalid(
            "amount", "amount_nothing", "must be a number other than 0; a negative one takes back"
        )
    if meter == "usd":
        nano = wire.cap_nano("amount", amount.copy_abs())
        assert nano is not None, "only null is none"
        return -nano if amount < 0 else nano
    # In this order: a number of a million digits is not written out first.
    if amount.copy_abs() > 10**18 or amount != amount.to_integral_value():
        raise invalid(
            "amount", "tokens_digits", "must be a whole number of tokens, of at most 18 digits"
        )
    return int(amount)


async def _of_call(change: Change, call_id: str) -> Entry:
    call = await corrections.find_call(change.connection, call_id)
    if call is None:
        raise invalid("call_id", "no_such_id", "is no {what}'s", what="call")
    if not call.account_ids:
        raise invalid(
            "call_id",
            "call_refused",
            "is that of a call which was refused and counts nowhere",
        )
    opened = await corrections.opened_since(change.connection, [call], change.at)
    return Entry(
        id=uuid7(change.at),
        kind="correction",
        call_id=call.id,
        allocation_id=call.allocation_id,
        account_ids=(*call.account_ids, *opened[call.id]),
    )


async def _of_allocation(change: Change, allocation_id: str) -> Entry:
    connection = change.connection
    record = await catalogue.allocations.find(connection, allocation_id)
    if record is None:
        raise invalid("allocation_id", "no_such_id", "is no {what}'s", what="allocation")
    calendar = change.desk.deps.calendar
    keys = await corrections.standing_accounts(connection, record, calendar, change.at)
    # The month's first call may be yet to come.
    await catalogue.lock_accounts(connection, set(keys))
    return Entry(
        id=uuid7(change.at),
        kind="correction",
        allocation_id=record.id,
        account_ids=tuple(key.id for key in keys),
    )


def _check_fits(
    entry: Entry, accounts: dict[str, RollingAccount], meter: Meter, amount: int
) -> None:
    standing = [
        (account, corrections.has_slid(account, entry.call_id)) for account in accounts.values()
    ]
    least, most = bounds(standing, meter)
    unit = "USD" if meter == "usd" else "tokens"
    if amount < least:
        raise invalid(
            "amount",
            "takes_too_much",
            "would leave less than nothing used: at most {most} {unit} may be taken back",
            most=str(shown(meter, -least)),
            unit=unit,
        )
    if amount > most:
        raise invalid(
            "amount",
            "books_full",
            "is more than the books take: at most {most} {unit}",
            most=str(shown(meter, most)),
            unit=unit,
        )


@get("/adjustments", summary="List what was booked beside calls, newest first")
async def list_adjustments(
    desk: NamedDependency[Desk],
    cursor: FromQuery[str | None] = None,
    limit: FromQuery[int] = wire.PAGE_DEFAULT,
    allocation_id: FromQuery[str | None] = None,
    call_id: FromQuery[str | None] = None,
) -> Page[AdjustmentDocument]:
    below = wire.after(cursor)
    equal = {
        "allocation_id": wire.id_filter("allocation_id", allocation_id),
        "call_id": wire.id_filter("call_id", call_id),
    }
    async with desk.deps.database.snapshot() as connection:
        found = await corrections.adjustments(
            connection, below=below, limit=wire.page_limit(limit) + 1, equal=equal
        )
    return wire.paged(found, limit, lambda one: one.id)


# Pricing again


class RepricingInput(Input):
    """Which calls to price again; those of this billing month so far unless told otherwise."""

    model: str
    reason: str
    since: str | None = msgspec.field(name="from", default=None)
    until: str | None = msgspec.field(name="to", default=None)
    dry_run: bool = True


class RepricedAllocation(msgspec.Struct, frozen=True):
    """What pricing its calls again comes to for one allocation."""

    allocation_id: str | None
    calls_changed: int
    difference_usd: str


class RepricingDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What was booked, or (dry run) what would be."""

    model: str
    since: datetime = msgspec.field(name="from")
    until: datetime = msgspec.field(name="to")
    dry_run: bool
    calls: int
    """That used something."""
    calls_changed: int
    still_unpriced: int
    """The version in force when they began has no rate for what they used."""
    usage_unknown: int
    """Recovered without their usage, or sessions of several models: they stay as they are."""
    difference_usd: str
    allocations: list[RepricedAllocation]


class _Tally:
    """What was found so far."""

    def __init__(self) -> None:
        self.calls = 0
        self.undue: dict[Undue, int] = {"unchanged": 0, "unpriced": 0, "usage_unknown": 0}
        self.changed: dict[str | None, int] = {}
        self.nano: dict[str | None, int] = {}

    def add(self, call: BookedCall, decided: Due | Undue) -> None:
        """Count a call."""
        self.calls += 1
        if isinstance(decided, Due):
            of = call.allocation_id
            self.changed[of] = self.changed.get(of, 0) + 1
            self.nano[of] = self.nano.get(of, 0) + decided.nano
        else:
            self.undue[decided] += 1

    def merge(self, other: "_Tally") -> None:
        """Add what another one counted."""
        self.calls += other.calls
        for what, count in other.undue.items():
            self.undue[what] += count
        for of, count in other.changed.items():
            self.changed[of] = self.changed.get(of, 0) + count
            self.nano[of] = self.nano.get(of, 0) + other.nano[of]

    def allocations(self) -> list[RepricedAllocation]:
        """Show it by allocation."""
        return [
            RepricedAllocation(of, count, nano_to_usd(self.nano[of]))
            for of, count in sorted(self.changed.items(), key=lambda one: one[0] or "")
        ]


@post(
    "/repricing",
    status_code=200,
    summary="Price a model's calls again, by the versions in force when they began",
)
async def reprice_calls(
    data: JSONBody[RepricingInput], desk: NamedDependency[Desk]
) -> RepricingDocument:
    """Each call is priced at the version in force when it began, and the difference booked.

    The calls stay as they were. A second run finds nothing to book; a dry run books nothing.
    """
    calendar, database = desk.deps.calendar, desk.deps.database
    reason = _reason(data.reason)
    model = wire.text("model", data.model)
    since = wire.instant_filter("from", data.since, calendar.zone)
    since = usage.month_so_far(calendar, desk.at) if since is None else since
    until = wire.instant_filter("to", data.until, calendar.zone) or desk.at
    if until <= since:
        raise invalid("to", "not_later", "must be later than from")
    async with database.snapshot() as connection:
        if await catalogue.unknown_models(connection, [model]):
            raise invalid("model", "unknown_slug", "{slug!r} is no model's slug", slug=model)
    tally, after = _Tally(), None
    while True:
        # Calls do not change: only what is booked beside them is read under the locks.
        async with database.snapshot() as connection:
            calls = await corrections.calls_to_reprice(connection, model, since, until, after)
            if calls and data.dry_run:
                versions = await corrections.price_versions(connection, model)
                tally.merge((await _decide(connection, calls, versions))[0])
        if not calls:
            break
        if not data.dry_run:
            tally.merge(await _reprice(desk, model, calls, reason))
        after = calls[-1].id
    return RepricingDocument(
        model=model,
        since=since,
        until=until,
        dry_run=data.dry_run,
        calls=tally.calls,
        calls_changed=sum(tally.changed.values()),
        still_unpriced=tally.undue["unpriced"],
        usage_unknown=tally.undue["usage_unknown"],
        difference_usd=nano_to_usd(sum(tally.nano.values())),
        allocations=tally.allocations(),
    )


async def _decide(
    connection: Connection, calls: Sequence[BookedCall], versions: Sequence[Price]
) -> tuple[_Tally, list[tuple[BookedCall, Due]]]:
    """Decide on calls; return what was found, and what is due."""
    tally, due = _Tally(), []
    for call, priced in await corrections.with_adjustments(connection, calls):
        decided = reprice(priced, versions)
        tally.add(call, decided)
        if isinstance(decided, Due):
            due.append((call, decided))
    return tally, due


async def _reprice(desk: Desk, model: str, calls: Sequence[BookedCall], reason: str) -> _Tally:
    """Book what is due for some calls, in one transaction."""

    async def work(change: Change) -> _Tally:
        connection = change.connection
        opened = await corrections.opened_since(connection, calls, change.at)
        accounts = await corrections.lock(
            connection, {id for call in calls for id in (*call.account_ids, *opened[call.id])}
        )
        versions = await corrections.price_versions(connection, model)
        tally, due = await _decide(connection, calls, versions)
        entries = [entry for call, one in due for entry in _entries(change, call, opened, one)]
        if not due:
            return tally
        moved = corrections.moved(entries, accounts)
        if any(max(one.used_nano, one.overrun_nano) > AMOUNT_NANO_MAX for one in moved.values()):
            raise invalid(
                "model",
                "calls_too_dear",
                "has calls that would cost more than the books take",
            )
        await _book(change, entries, accounts, moved, reason)
        await change.record(
            "calls_repriced",
            "model",
            model,
            after={
                "first_call": calls[0].id,
                "last_call": calls[-1].id,
                "calls_changed": len(due),
                "difference_usd": nano_to_usd(sum(one.nano for _, one in due)),
            },
            reason=reason,
        )
        return tally

    return await desk.write(work)


def _entries(
    change: Change, call: BookedCall, opened: dict[str, tuple[str, ...]], due: Due
) -> list[Entry]:
    """Return what to book for a call: accounts opened after it know its cost, and not itself."""
    later = opened[call.id]
    entry = Entry(
        id=uuid7(change.at),
        kind="repriced",
        call_id=call.id,
        allocation_id=call.allocation_id,
        account_ids=(*call.account_ids, *later),
        nano=due.nano,
        price_id=due.price_id,
    )
    if not due.unpriced:
        return [entry]
    counted = msgspec.structs.replace(entry, account_ids=call.account_ids, unpriced=due.unpriced)
    if not later or not due.nano:
        return [counted]
    return [entry, msgspec.structs.replace(counted, id=uuid7(change.at), nano=0)]


def correction_router() -> Router:
    """Make the router of corrections."""
    handlers = [add_adjustment, list_adjustments, reprice_calls]
    return Router("/", route_handlers=documented(handlers), tags=["Corrections"])
