"""Projections: each limit says when it is reached, at the pace of its own owner alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from sqlalchemy import event

from app.core.access import Key
from app.core.projection import Pace, project
from app.core.windows import DAY, HOUR, Calendar
from app.store.pace import paces
from app.store.usage import key_document
from tests.control.books import USD, Books, books_of


@pytest.fixture
async def books(plane: Any, tmp_path: Path) -> AsyncIterator[Books]:
    async with books_of(plane, tmp_path) as books:
        yield books


def ago(**time: float) -> datetime:
    return datetime.now(UTC) - timedelta(**time)


async def pace(plane: Any, owner: Any, id: str, meter: Any) -> Pace:
    async with plane.deps.database.snapshot() as connection:
        return (await paces(connection, owner, [id], datetime.now(UTC)))[id, meter]


async def test_the_pace_of_an_owner_is_that_of_its_calls_and_their_corrections(
    plane: Any, books: Books
) -> None:
    tenant, other = await plane.tenant("m1"), await plane.tenant("m1")
    price = await books.price("m1", input_token="1")
    more = {"price_id": price}
    first = ago(days=40)
    await books.spend(tenant, {"input_token": 100}, 100 * USD, at=first, **more)
    for days, tokens in ((7.01, 50), (6.99, 20), (1.01, 3), (0.99, 4)):
        at = ago(days=days)
        await books.spend(tenant, {"input_token": tokens}, tokens * USD, at=at, **more)
    id = await books.spend(tenant, {"input_token": 1}, USD, **more)
    late = await books.spend(tenant, {"input_token": 2}, 2 * USD, at=ago(days=2), **more)
    await books.spend(tenant, {"input_token": 5}, None)
    await books.spend(other, {"input_token": 999}, 999 * USD, **more)
    for body in (
        {"amount": "0.5", "call_id": id},
        {"amount": "-0.25", "call_id": late},
        {"amount": "10", "allocation_id": tenant.allocation["id"]},
    ):
        sent = {"meter": "usd", "reason": "x"} | body
        await plane.ok("POST", "/admin/adjustments", sent)
    shown = await pace(plane, "allocation", tenant.allocation["id"], "usd")
    day, week = 5 * USD + USD // 2 + 10 * USD, 30 * USD + USD // 4 + 10 * USD
    assert (shown.day, shown.week) == (day, week)
    assert shown.since is not None
    assert abs(shown.since - first) < timedelta(seconds=1)
    by_key = await pace(plane, "key", tenant.key["id"], "usd")
    # What names no call is nobody's key's.
    assert (by_key.day, by_key.week) == (day - 10 * USD, week - 10 * USD)
    tokens = await pace(plane, "allocation", tenant.allocation["id"], "tokens")
    assert (tokens.day, tokens.week) == (10, 35)
    new = await plane.tenant("m1")
    async with plane.deps.database.snapshot() as connection:
        assert await paces(connection, "key", [new.key["id"]], datetime.now(UTC)) == {}
        assert await paces(connection, "key", [], datetime.now(UTC)) == {}


async def test_the_pace_of_a_pool_is_that_of_all_allocations_below_it(
    plane: Any, books: Books
) -> None:
    top = books.pool()
    team = books.pool(top)
    tenants = [await plane.tenant("m1") for _ in range(4)]
    for tenant, pool in zip(tenants, (top, team, team, books.pool()), strict=True):
        books.join(tenant, pool)
    price = await books.price("m1", input_token="1")
    for n, tenant in enumerate(tenants):
        at = ago(days=n)
        await books.spend(tenant, {"input_token": 10**n}, 10**n * USD, at=at, price_id=price)
    body = {"meter": "usd", "reason": "x", "amount": "0.5"}
    body["allocation_id"] = tenants[2].allocation["id"]
    await plane.ok("POST", "/admin/adjustments", body)
    async with plane.deps.database.snapshot() as connection:
        known = await paces(connection, "pool", [top, team], datetime.now(UTC))
    half = USD // 2
    assert (known[top, "usd"].day, known[top, "usd"].week) == (USD + half, 111 * USD + half)
    assert (known[team, "usd"].day, known[team, "usd"].week) == (half, 110 * USD + half)
    assert known[team, "tokens"].week == 110
    since = known[top, "usd"].since
    assert since is not None
    assert abs(since - ago(days=2)) < timedelta(minutes=1)


async def test_a_limit_of_a_pool_is_reached_at_the_pace_of_its_allocations(
    plane: Any, books: Books
) -> None:
    pool = await plane.pool()
    tenants = [await plane.tenant("m1", pool_id=pool["id"]) for _ in range(2)]
    price = await books.price("m1", input_token="1")
    more = {"pools": [pool["id"]], "price_id": price}
    await books.spend(tenants[0], {"input_token": 1}, USD, at=ago(days=5), **more)
    for tenant in tenants:
        await books.spend(tenant, {"input_token": 12}, 12 * USD, at=ago(hours=1), **more)
    limits = [{"meter": "usd", "window": "lifetime", "amount": "73"}]
    changed = await plane.ok("PATCH", f"/admin/pools/{pool['id']}", {"limits": limits})
    [limit] = changed["limits"]
    assert limit["used"] == "25.00"
    told = limit["projection"]
    assert (told["state"], told["basis"], told["per_day"]) == ("projected", "day", "24.00")
    # 48 USD are left, at 24 a day.
    assert abs(datetime.fromisoformat(told["at"]) - ago(days=-2)) < timedelta(minutes=1)


async def test_a_cap_says_when_it_is_reached_wherever_it_is_shown(plane: Any, books: Books) -> None:
    tenant = await plane.tenant("m1", quota_cost_usd_per_month=1000)
    card = await plane.ok("GET", f"/admin/allocations/{tenant.allocation['id']}")
    assert card["tokens_projection"] is None
    assert card["cost_projection"] == {
        "state": "too_little_data",
        "date": None,
        "at": None,
        "basis": None,
        "per_day": None,
    }
    price = await books.price("m1", input_token="1")
    await books.spend(tenant, {"input_token": 1}, USD, at=ago(days=10), price_id=price)
    # So much of the cap that it is reached within the hour, whatever day of the month it is.
    await books.spend(tenant, {"input_token": 990}, 990 * USD, price_id=price)
    now = datetime.now(UTC)
    month = Calendar(plane.zone).period("month", now)
    [(_, used)] = books.used(tenant.allocation["id"])[-1:]
    pace = Pace(now - 10 * DAY, 990 * USD, 990 * USD)
    expected = project(1000 * USD, int(used * USD), pace, month, now, plane.zone)
    paths = {
        f"/admin/allocations/{tenant.allocation['id']}": None,
        "/admin/allocations": None,
        "/me/allocations": tenant.secret,
    }
    for path, bearer in paths.items():
        page = await plane.ok("GET", path, bearer=bearer or "")
        shown = page["items"][0] if "items" in page else page
        told = shown["cost_projection"]
        assert (told["state"], told["basis"], told["per_day"]) == (
            expected.outlook,
            "day",
            "990.00",
        )
        if expected.at is not None:
            assert abs(datetime.fromisoformat(told["at"]) - expected.at) < timedelta(minutes=1)
            assert told["date"] == datetime.fromisoformat(told["at"]).date().isoformat()
    key = Key(tenant.key["id"], tenant.member["id"], (tenant.allocation["id"],))
    document = await key_document(plane.deps.database, plane.deps.calendar, key, now)
    [own] = msgspec.to_builtins(document)["allocations"]
    assert own["cost_projection"]["per_day"] == "990.00"
    # What a change answers is what is shown after it.
    changed = await plane.ok(
        "PATCH", f"/admin/allocations/{tenant.allocation['id']}", {"quota_tokens_per_month": 5}
    )
    assert changed["tokens_projection"]["state"] == "reached"
    assert changed["cost_projection"]["per_day"] == "990.00"


async def test_each_limit_of_a_key_has_a_projection_of_its_own(plane: Any, books: Books) -> None:
    tenant = await plane.tenant("m1")
    price = await books.price("m1", input_token="1")
    await books.spend(
        tenant, {"input_token": 70}, 70 * USD, at=ago(days=7, hours=1), price_id=price
    )
    await books.spend(tenant, {"input_token": 24}, 24 * USD, at=ago(hours=2), price_id=price)
    shown = await plane.ok(
        "PATCH",
        f"/admin/keys/{tenant.key['id']}",
        {
            "token_budget": 118,
            "limits": [
                {"meter": "usd", "window": "lifetime", "amount": "1000000"},
                {"meter": "usd", "window": "rolling:12h", "amount": "48"},
                {"meter": "usd", "window": "rolling:48h", "amount": "48"},
                {"meter": "tokens", "window": "rolling:48h", "amount": 24},
                {"meter": "tokens", "window": "day", "amount": 10**9},
            ],
        },
    )
    [view] = (await plane.ok("GET", "/me/keys", bearer=tenant.secret))["items"]
    assert [one["projection"]["state"] for one in view["limits"]] == [
        one["projection"]["state"] for one in shown["limits"]
    ]
    limits = {(one["window"], one["meter"]): one["projection"] for one in view["limits"]}
    budget = limits["lifetime", "tokens"]
    assert (budget["state"], budget["basis"], budget["per_day"]) == ("projected", "day", 24)
    # 24 tokens are left, at 24 a day.
    assert abs(datetime.fromisoformat(budget["at"]) - ago(days=-1)) < timedelta(minutes=1)
    assert limits["lifetime", "usd"]["state"] == "not_in_sight"
    # All that is used now slides out of the shorter one before the rest could be used.
    assert limits["rolling:12h", "usd"]["state"] == "not_before_reset"
    assert limits["rolling:48h", "usd"]["state"] == "projected"
    assert limits["rolling:48h", "tokens"]["state"] == "reached"
    assert limits["day", "tokens"]["state"] == "not_before_reset"
    assert limits["day", "tokens"]["per_day"] == 24


async def test_a_page_of_many_owners_costs_one_more_statement_and_none_without_limits(
    plane: Any,
) -> None:
    member = await plane.member()
    await plane.model("m1")
    statements: list[str] = []
    event.listen(
        plane.deps.database.engine.sync_engine,
        "before_cursor_execute",
        lambda connection, cursor, statement, *rest: statements.append(statement),
    )

    async def cost(path: str) -> int:
        await plane.ok("GET", path)
        statements.clear()
        await plane.ok("GET", path)
        return len(statements)

    for _ in range(3):
        allocation = await plane.allocation(member["id"], ["m1"])
        await plane.key(member["id"], allocation["id"])
    without = await cost("/admin/allocations"), await cost("/admin/keys")
    for _ in range(5):
        caps = {"quota_tokens_per_month": 5, "quota_cost_usd_per_month": 1}
        allocation = await plane.allocation(member["id"], ["m1"], **caps)
        await plane.key(member["id"], allocation["id"], token_budget=5)
    assert await cost("/admin/allocations") == without[0] + 1
    # The accounts of limits are one as well.
    assert await cost("/admin/keys") == without[1] + 2


class TestInAnotherZone:
    @pytest.fixture
    def zone(self) -> ZoneInfo:
        return ZoneInfo("Pacific/Kiritimati")

    async def test_the_date_is_that_of_the_billing_zone(self, plane: Any, books: Books) -> None:
        tenant = await plane.tenant("m1")
        price = await books.price("m1", input_token="1")
        await books.spend(tenant, {"input_token": 1}, USD, at=ago(days=4), price_id=price)
        await books.spend(tenant, {"input_token": 24}, 24 * USD, at=ago(hours=1), price_id=price)
        body = {"token_budget": 37}
        shown = await plane.ok("PATCH", f"/admin/keys/{tenant.key['id']}", body)
        [limit] = shown["limits"]
        at = datetime.fromisoformat(limit["projection"]["at"])
        assert abs(at - ago(hours=-12)) < HOUR
        assert limit["projection"]["at"].endswith("Z")
        assert limit["projection"]["date"] == at.astimezone(plane.zone).date().isoformat()
        assert Decimal(limit["used"]) == 25
