"""Pools: what is stored of them, where they and their allocations may go, and which limit binds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event

from app.core.pools import NESTING_MAX
from app.store import usage
from app.store.reconcile import reconcile

ID = "0197c5a0-0000-7000-8000-000000000000"
USD = 10**9


def month_end(zone_offset_h: int = 0) -> str:
    """Return when this month ends, where clocks are that many hours ahead of UTC."""
    ahead = timedelta(hours=zone_offset_h)
    start = (datetime.now(UTC) + ahead).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return written((start + timedelta(days=32)).replace(day=1) - ahead)


def written(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


async def told(plane: Any, object_id: str) -> list[tuple[Any, ...]]:
    events = await plane.events(object_id)
    return [(e["event"], e["before"], e["after"], e["reason"]) for e in events]


# Pools themselves


async def test_a_pool_is_stored_and_shown_with_its_limits(plane: Any) -> None:
    above = await plane.pool(name="Faculty")
    limits = [
        {"meter": "usd", "window": "day", "amount": "2.50"},
        {"meter": "tokens", "window": "lifetime", "amount": 10**12},
    ]
    body = {
        "name": "Course of spring",
        "parent_id": above["id"],
        "limits": limits,
        "quota_tokens_per_month": 10**10,
        "quota_cost_usd_per_month": "99.99",
        "shares_out": True,
        "reason": "new course",
    }
    added = await plane.ok("POST", "/admin/pools", body)
    for field in ("name", "parent_id", "shares_out"):
        assert added[field] == body[field]
    assert added["quota_tokens_per_month"] == 10**10
    assert added["quota_cost_usd_per_month"] == "99.99"
    by_window = {
        (limit["window"], limit["meter"]): (limit["amount"], limit["remaining"], limit["percent"])
        for limit in added["limits"]
    }
    assert by_window == {
        ("day", "usd"): ("2.50", "2.50", 0.0),
        ("lifetime", "tokens"): (10**12, 10**12, 0.0),
        ("month", "tokens"): (10**10, 10**10, 0.0),
        ("month", "usd"): ("99.99", "99.99", 0.0),
    }
    assert added["resets_at"] == month_end()
    assert await plane.ok("GET", f"/admin/pools/{added['id']}") == added
    listed = (await plane.ok("GET", "/admin/pools"))["items"]
    assert listed == [above | {"pools": 1}, added]
    inside = await plane.ok("GET", f"/admin/pools?parent_id={above['id']}")
    assert inside["items"] == [added]
    created, limited = await told(plane, added["id"])
    assert created[0] == "pool_created"
    assert created[2]["name"] == "Course of spring"
    assert limited == (
        "pool_limits_updated",
        dict.fromkeys(limited[2]),
        {
            "usd per day": "2.50",
            "tokens per lifetime": 10**12,
            "tokens per month": 10**10,
            "usd per month": "99.99",
        },
        "new course",
    )


async def test_a_pool_shows_what_was_charged_to_it_and_what_is_in_it(plane: Any) -> None:
    pool = await plane.pool(
        quota_tokens_per_month=1000, limits=[{"meter": "usd", "window": "day", "amount": 1}]
    )
    await plane.pool(parent_id=pool["id"])
    for _ in range(2):
        await plane.tenant("m1", pool_id=pool["id"])
    plane.account(
        pool["id"],
        owner="pool",
        used_tokens=900,
        held_tokens=50,
        used_nano=3 * USD,
        held_nano=1,
        unpriced_calls=2,
    )
    plane.account(pool["id"], owner="pool", window="day", used_nano=USD)
    shown = await plane.ok("GET", f"/admin/pools/{pool['id']}")
    assert (shown["allocations"], shown["pools"]) == (2, 1)
    assert (shown["tokens_used_this_month"], shown["tokens_held"]) == (900, 50)
    assert (shown["cost_used_this_month"], shown["cost_held"]) == ("3.00", "0.000000001")
    assert shown["unpriced_calls_this_month"] == 2
    day, month = sorted(shown["limits"], key=lambda limit: limit["window"])
    assert day["exceeded"] is True
    assert (day["used"], day["remaining"], day["percent"]) == ("1.00", "0.00", 100.0)
    assert month == {
        "meter": "tokens",
        "window": "month",
        "amount": 1000,
        "used": 900,
        "held": 50,
        "remaining": 50,
        "percent": 90.0,
        "exceeded": False,
        "resets_at": month_end(),
        "recovers_at": None,
        "projection": {
            "state": "too_little_data",
            "date": None,
            "at": None,
            "basis": None,
            "per_day": None,
        },
    }


async def test_a_patch_of_a_pool_changes_what_it_names_and_null_clears(plane: Any) -> None:
    above = await plane.pool(name="Faculty")
    pool = await plane.pool(
        name="Course",
        quota_cost_usd_per_month=5,
        limits=[{"meter": "tokens", "window": "day", "amount": 7}],
    )
    path = f"/admin/pools/{pool['id']}"
    body = {"name": "course", "parent_id": above["id"], "shares_out": True, "reason": "moved"}
    changed = await plane.ok("PATCH", path, body)
    assert changed == pool | {name: body[name] for name in body if name != "reason"}
    assert await plane.ok("PATCH", path, body) == changed
    quota = await plane.ok("PATCH", path, {"quota_tokens_per_month": 0})
    assert {(one["window"], one["meter"]) for one in quota["limits"]} == {
        ("day", "tokens"),
        ("month", "tokens"),
        ("month", "usd"),
    }
    assert quota["quota_tokens_per_month"] == 0
    replaced = await plane.ok(
        "PATCH", path, {"limits": [{"meter": "usd", "window": "month", "amount": "6"}]}
    )
    assert replaced["quota_cost_usd_per_month"] == "6.00"
    assert replaced["quota_tokens_per_month"] is None
    assert len(replaced["limits"]) == 1
    cleared = await plane.ok("PATCH", path, {"quota_cost_usd_per_month": None, "parent_id": None})
    assert (cleared["limits"], cleared["parent_id"]) == ([], None)
    assert plane.sql("SELECT * FROM limits WHERE amount IS NOT NULL") == []
    events = (await told(plane, pool["id"]))[2:]
    assert events[0] == (
        "pool_updated",
        {"name": "Course", "parent_id": None, "shares_out": False},
        {"name": "course", "parent_id": above["id"], "shares_out": True},
        "moved",
    )
    assert [event[0] for event in events[1:]] == [
        "pool_limits_updated",
        "pool_limits_updated",
        "pool_updated",
        "pool_limits_updated",
    ]
    assert events[2][1:3] == (
        {"tokens per day": 7, "usd per month": "5.00", "tokens per month": 0},
        {"tokens per day": None, "usd per month": "6.00", "tokens per month": None},
    )


async def test_a_limit_of_a_pool_starts_from_what_was_charged_to_it(plane: Any) -> None:
    pool = await plane.pool()
    account = plane.account(pool["id"], owner="pool", used_tokens=70, held_tokens=7)
    await plane.ok("PATCH", f"/admin/pools/{pool['id']}", {"quota_tokens_per_month": 50})
    rows = plane.sql("SELECT owner, amount, baseline, baseline_account::text FROM limits")
    assert rows == [("pool", 50, 77, account)]


async def test_the_replicas_hear_of_a_pool_that_moves(plane: Any) -> None:
    above, pool = await plane.pool(), await plane.pool()
    version = plane.sql("SELECT directory_version FROM installation")
    await plane.ok("PATCH", f"/admin/pools/{pool['id']}", {"parent_id": above["id"]})
    assert plane.sql("SELECT directory_version FROM installation") > version


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": None}, "name"),
        ({"parent_id": ID}, "parent_id"),
        ({"parent_id": "nope"}, "parent_id"),
        ({"limits": [{"meter": "tokens", "window": "rolling:24h", "amount": 1}]}, "limits[0].window"),
        ({"limits": [{"meter": "tokens", "window": "week", "amount": 1}]}, "limits[0].window"),
        ({"limits": [{"meter": "tokens", "window": "day", "amount": 1.5}]}, "limits[0].amount"),
        ({"limits": [{"meter": "pages", "window": "day", "amount": 1}]}, "limits[0].meter"),
        ({"quota_tokens_per_month": -1}, "quota_tokens_per_month"),
        ({"quota_tokens_per_month": 10**30}, "quota_tokens_per_month"),
        ({"quota_cost_usd_per_month": "NaN"}, "quota_cost_usd_per_month"),
        ({"quota_cost_usd_per_month": "0.0000000001"}, "quota_cost_usd_per_month"),
        (
            {"limits": [{"meter": "tokens", "window": "month", "amount": 5}], "quota_tokens_per_month": 6},
            "quota_tokens_per_month",
        ),
        ({"shares_out": "yes"}, "shares_out"),
        ({"budget": 1}, "budget"),
    ],
)  # fmt: skip
async def test_what_a_pool_cannot_be_is_refused(plane: Any, body: Any, field: str) -> None:
    pool = await plane.pool()
    for method, path in (("POST", "/admin/pools"), ("PATCH", f"/admin/pools/{pool['id']}")):
        answer = await plane.call(method, path, {"name": "n"} | body)
        assert answer.status_code == 422, answer.text
        assert answer.json()["errors"][0]["field"] == field
    assert len((await plane.ok("GET", "/admin/pools"))["items"]) == 1
    assert plane.sql("SELECT * FROM limits") == []


async def test_a_quota_and_the_limit_it_is_short_for_may_say_the_same(plane: Any) -> None:
    limits = [{"meter": "usd", "window": "month", "amount": "5"}]
    pool = await plane.pool(limits=limits, quota_cost_usd_per_month="5.00")
    assert pool["quota_cost_usd_per_month"] == "5.00"
    answer = await plane.call(
        "PATCH",
        f"/admin/pools/{pool['id']}",
        {"limits": limits, "quota_cost_usd_per_month": None},
    )
    assert answer.status_code == 422


async def test_a_name_in_any_case_is_one_pools(plane: Any) -> None:
    await plane.pool(name="Faculty")
    other = await plane.pool(name="Other")
    for method, path in (("POST", "/admin/pools"), ("PATCH", f"/admin/pools/{other['id']}")):
        answer = await plane.call(method, path, {"name": "FACULTY"})
        assert answer.status_code == 409
        assert answer.json()["errors"][0]["field"] == "name"


async def test_a_pool_goes_neither_inside_itself_nor_too_deep(plane: Any) -> None:
    chain = [await plane.pool()]
    for _ in range(NESTING_MAX - 1):
        chain.append(await plane.pool(parent_id=chain[-1]["id"]))
    first, last = chain[0]["id"], chain[-1]["id"]
    for path, parent_id, said in (
        (f"/admin/pools/{first}", first, "the pool itself"),
        (f"/admin/pools/{first}", last, "a pool inside it"),
        ("/admin/pools", last, "9 pools inside one another"),
    ):
        method = "POST" if path == "/admin/pools" else "PATCH"
        answer = await plane.call(method, path, {"name": "n", "parent_id": parent_id})
        assert answer.status_code == 422
        assert said in answer.json()["detail"]
    tenant = await plane.tenant("m1", pool_id=last)
    assert tenant.allocation["pool_id"] == last


async def test_an_edit_of_a_pool_that_has_changed_meanwhile_is_refused(plane: Any) -> None:
    pool = await plane.pool()
    path = f"/admin/pools/{pool['id']}"
    read = (await plane.call("GET", path)).headers["etag"]
    plane.account(pool["id"], owner="pool", used_tokens=7)
    assert (await plane.call("GET", path)).headers["etag"] == read
    body = {"quota_tokens_per_month": 5}
    assert (await plane.call("PATCH", path, body, if_match=read)).status_code == 200
    assert (await plane.call("PATCH", path, {"name": "x"}, if_match=read)).status_code == 412


# Allocations in pools


async def test_an_allocation_goes_into_a_pool_and_out_again(plane: Any) -> None:
    pool = await plane.pool()
    tenant = await plane.tenant("m1")
    await plane.tenant("m1")
    path = f"/admin/allocations/{tenant.allocation['id']}"
    version = plane.sql("SELECT directory_version FROM installation")
    moved = await plane.ok("PATCH", path, {"pool_id": pool["id"], "reason": "joins"})
    assert moved == tenant.allocation | {"pool_id": pool["id"]}
    assert plane.sql("SELECT directory_version FROM installation") > version
    listed = await plane.ok("GET", f"/admin/allocations?pool_id={pool['id']}")
    assert listed["items"] == [moved]
    assert (await plane.ok("PATCH", path, {"pool_id": None}))["pool_id"] is None
    events = (await told(plane, tenant.allocation["id"]))[1:]
    assert events == [
        ("allocation_updated", {"pool_id": None}, {"pool_id": pool["id"]}, "joins"),
        ("allocation_updated", {"pool_id": pool["id"]}, {"pool_id": None}, None),
    ]


async def test_an_allocation_goes_into_no_pool_that_there_is_not(plane: Any) -> None:
    tenant = await plane.tenant("m1")
    body = {"member_id": tenant.member["id"], "models": ["m1"], "pool_id": ID}
    for method, path in (
        ("POST", "/admin/allocations"),
        ("PATCH", f"/admin/allocations/{tenant.allocation['id']}"),
    ):
        sent = body if method == "POST" else {"pool_id": ID}
        answer = await plane.call(method, path, sent)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == "pool_id"
    assert (await plane.call("GET", "/admin/allocations?pool_id=x")).status_code == 422


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("billing_timezone", "Mars/Olympus"),
        ("billing_timezone", ""),
        ("billing_timezone", "../../etc/passwd"),
        ("billing_timezone", "Europe"),
        ("billing_timezone", "Eur\u00f6pe/Berlin"),
        ("billing_timezone", "\u0000"),
        ("billing_timezone", 5),
        ("floor_tokens", -1),
        ("floor_tokens", 10**19),
        ("floor_tokens", 1.5),
        ("floor_tokens", None),
        ("locked", None),
        ("service", "no"),
    ],
)
async def test_what_an_allocation_cannot_be_is_refused(plane: Any, field: str, value: Any) -> None:
    tenant = await plane.tenant("m1")
    body = {"member_id": tenant.member["id"], "models": ["m1"]}
    for method, path, sent in (
        ("POST", "/admin/allocations", body | {field: value}),
        ("PATCH", f"/admin/allocations/{tenant.allocation['id']}", {field: value}),
    ):
        answer = await plane.call(method, path, sent)
        assert answer.status_code == 422, answer.text
        assert answer.json()["errors"][0]["field"] == field


async def test_an_allocation_has_the_months_of_its_own_zone(plane: Any) -> None:
    tenant = await plane.tenant(
        "m1", billing_timezone="Pacific/Kiritimati", quota_tokens_per_month=100
    )
    id = tenant.allocation["id"]
    account = plane.account(id, zone="Pacific/Kiritimati", used_tokens=40)
    plane.account(id, zone="Pacific/Pago_Pago", used_tokens=7)
    [mine] = (await plane.ok("GET", "/me/allocations", bearer=tenant.secret))["items"]
    assert mine["tokens_used_this_month"] == 40
    assert mine["resets_at"] == month_end(14)
    assert mine["binds"]["resets_at"] == month_end(14)
    await plane.ok("PATCH", f"/admin/allocations/{id}", {"quota_tokens_per_month": 50})
    rows = plane.sql("SELECT baseline, baseline_account::text FROM limits")
    assert rows == [(40, account)]
    await plane.ok(
        "PATCH",
        f"/admin/keys/{tenant.key['id']}",
        {"limits": [{"meter": "tokens", "window": "day", "amount": 5}]},
    )
    months = plane.sql("SELECT id::text FROM accounts WHERE owner = 'allocation'")
    assert len(months) == 2, "the key's limit is set under the lock of the zone's month"


async def test_what_was_used_goes_along_into_the_month_of_another_zone(plane: Any) -> None:
    tenant = await plane.tenant("m1", quota_tokens_per_month=100)
    id = tenant.allocation["id"]
    account = plane.account(id, used_tokens=70, used_nano=700)
    now = datetime.now(UTC)
    for _ in range(7):
        plane.book(tenant, tokens=10, cost_nano=100, at=now, price_id=ID, account_ids=[account])
    path = f"/admin/allocations/{id}"
    # Less than was used already: that is nobody's overrun, in whichever account.
    await plane.ok("PATCH", path, {"quota_tokens_per_month": 50})
    moved = await plane.ok("PATCH", path, {"billing_timezone": "Etc/GMT+1", "reason": "moved"})
    assert moved["tokens_used_this_month"] == 70
    assert moved["cost_used_this_month"] == "0.0000007"
    assert moved["resets_at"] == month_end(-1)
    assert (await told(plane, id))[-1] == (
        "allocation_updated",
        {"billing_timezone": None},
        {"billing_timezone": "Etc/GMT+1"},
        "moved",
    )
    back = await plane.ok("PATCH", path, {"billing_timezone": None})
    assert back["tokens_used_this_month"] == 70
    assert await reconcile(plane.url) == []


async def test_a_zone_with_the_same_months_moves_nothing(plane: Any) -> None:
    tenant = await plane.tenant("m1")
    plane.account(tenant.allocation["id"], used_tokens=70)
    path = f"/admin/allocations/{tenant.allocation['id']}"
    moved = await plane.ok("PATCH", path, {"billing_timezone": "Etc/UTC"})
    assert moved["tokens_used_this_month"] == 70
    assert plane.sql("SELECT * FROM adjustments") == []


# The limit that binds


async def binds(plane: Any, tenant: Any) -> Any:
    """Return what binds an allocation, which a member, an admin and a key see alike."""
    await plane.deps.directory.refresh()
    [mine] = (await plane.ok("GET", "/me/allocations", bearer=tenant.secret))["items"]
    shown = await plane.ok("GET", f"/admin/allocations/{tenant.allocation['id']}")
    key = plane.deps.directory.keys_by_digest[plane.deps.vault.digest(tenant.secret)]
    document = await usage.key_document(
        plane.deps.database, plane.deps.calendar, key, datetime.now(UTC)
    )
    [opened] = document["allocations"]
    assert mine["binds"] == shown["binds"]
    limit = mine["binds"]
    assert (opened.binds is None) == (limit is None)
    if limit is not None:
        fields = {name: getattr(opened.binds, name) for name in limit if name != "resets_at"}
        assert fields == {name: limit[name] for name in fields}
    return limit


async def test_nothing_binds_where_nothing_limits(plane: Any) -> None:
    pool = await plane.pool()
    assert await binds(plane, await plane.tenant("m1", pool_id=pool["id"])) is None


async def test_of_all_limits_above_the_one_with_the_least_left_binds(plane: Any) -> None:
    faculty = await plane.pool(
        name="Faculty", limits=[{"meter": "usd", "window": "day", "amount": "4"}]
    )
    course = await plane.pool(
        name="Course", parent_id=faculty["id"], quota_tokens_per_month=1_000_000
    )
    tenant = await plane.tenant("m1", pool_id=course["id"], quota_tokens_per_month=1000)
    id = tenant.allocation["id"]
    own = {
        "owner": "allocation",
        "owner_id": id,
        "owner_name": "m1",
        "meter": "tokens",
        "window": "month",
        "amount": 1000,
        "used": 0,
        "held": 0,
        "remaining": 1000,
        "resets_at": month_end(),
    }
    # Of equals, what refuses first.
    assert await binds(plane, tenant) == own
    plane.account(course["id"], owner="pool", used_tokens=300_000, held_tokens=200_000)
    plane.account(id, used_tokens=499)
    assert await binds(plane, tenant) == own | {
        "owner": "pool",
        "owner_id": course["id"],
        "owner_name": "Course",
        "amount": 1_000_000,
        "used": 300_000,
        "held": 200_000,
        "remaining": 500_000,
    }
    plane.account(id, used_tokens=500)
    assert await binds(plane, tenant) == own | {"used": 500, "remaining": 500}
    plane.account(faculty["id"], owner="pool", window="day", used_nano=3 * USD)
    limit = await binds(plane, tenant)
    assert (limit["owner_name"], limit["meter"], limit["window"]) == ("Faculty", "usd", "day")
    assert (limit["amount"], limit["used"], limit["remaining"]) == ("4.00", "3.00", "1.00")
    tomorrow = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    assert limit["resets_at"] == written(tomorrow + timedelta(days=1))


async def test_a_pool_of_0_binds_whatever_was_used(plane: Any) -> None:
    pool = await plane.pool(name="Closed", quota_cost_usd_per_month=0)
    tenant = await plane.tenant("m1", pool_id=pool["id"], quota_tokens_per_month=10)
    plane.account(tenant.allocation["id"], used_tokens=9)
    assert (await binds(plane, tenant))["owner_name"] == "Closed"


async def test_a_member_learns_of_a_pool_only_what_binds(plane: Any) -> None:
    pool = await plane.pool(
        name="Course", quota_tokens_per_month=10, quota_cost_usd_per_month="7.77"
    )
    tenant = await plane.tenant("m1", pool_id=pool["id"], quota_tokens_per_month=1000)
    plane.account(pool["id"], owner="pool", used_tokens=5, used_nano=1)
    answer = await plane.call("GET", "/me/allocations", bearer=tenant.secret)
    assert '"Course"' in answer.text
    assert "7.77" not in answer.text
    for path in ("/admin/pools", f"/admin/pools/{pool['id']}"):
        assert (await plane.call("GET", path, bearer=tenant.secret)).status_code == 403


async def test_a_page_of_allocations_costs_as_many_statements_as_one(plane: Any) -> None:
    statements: list[str] = []

    def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    async def cost() -> int:
        statements.clear()
        await plane.ok("GET", "/admin/allocations?limit=100")
        return len(statements)

    engine = plane.deps.database.engine.sync_engine
    pools = [await plane.pool(quota_tokens_per_month=9)]
    await plane.tenant("m1", pool_id=pools[0]["id"], quota_tokens_per_month=5)
    event.listen(engine, "before_cursor_execute", note)
    one = await cost()
    for n in range(8):
        pools.append(await plane.pool(parent_id=pools[n // 2]["id"], quota_tokens_per_month=9))
        await plane.tenant("m1", pool_id=pools[-1]["id"], quota_tokens_per_month=5)
    assert await cost() == one
