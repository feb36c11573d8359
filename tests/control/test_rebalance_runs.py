"""Sharing out: a pool's token caps by last month's use, on demand and once every month."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from psycopg_pool import AsyncConnectionPool

from app.core.windows import Calendar
from app.monthly import Monthly
from app.store.ledger import Ledger
from app.store.spool import Spool
from app.worker import Worker

ID = "0197c5a0-0000-7000-8000-000000000000"


def sharer(plane: Any) -> Callable[..., Any]:
    """Return a way to add an allocation to a pool, with what it used last month."""

    async def add(
        pool: Any, cap: int | None, used: int = 0, *, at: datetime = plane.last_month, **more: Any
    ) -> Any:
        tenant = await plane.tenant("m1", pool_id=pool["id"], quota_tokens_per_month=cap, **more)
        if used:
            zone = more.get("billing_timezone")
            plane.account(tenant.allocation["id"], zone=zone, at=at, used_tokens=used)
        return tenant.allocation

    return add


async def caps(plane: Any, *allocations: Any) -> list[int | None]:
    """Return the token caps of allocations as they are now."""
    found = []
    for one in allocations:
        shown = await plane.ok("GET", f"/admin/allocations/{one['id']}")
        found.append(shown["quota_tokens_per_month"])
    return found


async def run(plane: Any, pool: Any, **body: Any) -> Any:
    return await plane.ok("POST", f"/admin/pools/{pool['id']}/rebalance", body)


def changes(document: Any) -> dict[str, tuple[int | None, int | None]]:
    return {
        one["allocation_id"]: (one["before_tokens"], one["after_tokens"])
        for one in document["changes"]
    }


# On demand


async def test_a_dry_run_says_what_a_run_would_do_and_writes_nothing(plane: Any) -> None:
    pool = await plane.pool()
    add = sharer(plane)
    ann, bob = await add(pool, 100, 300, name="Ann's"), await add(pool, 300, 100)
    tables = "limits", "audit", "rebalances", "accounts"
    before = [plane.sql(f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables]
    said = await run(plane, pool)
    assert [plane.sql(f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables] == before
    assert said | {"changes": []} == {
        "id": None,
        "pool_id": pool["id"],
        "dry_run": True,
        "automatic": False,
        "month": plane.month.start.isoformat().replace("+00:00", "Z"),
        "total_tokens": 400,
        "changes": [],
        "actor": None,
        "created_at": None,
    }
    assert changes(said) == {ann["id"]: (100, 300), bob["id"]: (300, 100)}
    [anns] = [one for one in said["changes"] if one["allocation_id"] == ann["id"]]
    assert (anns["allocation_name"], anns["used_tokens"]) == ("Ann's", 300)
    assert anns["reason"] == "used 300 of 400 tokens last month: its part"
    assert await run(plane, pool, dry_run=True, reason="let us see") == said
    # It is what a run then does.
    done = await run(plane, pool, dry_run=False)
    assert (done["changes"], done["total_tokens"]) == (said["changes"], said["total_tokens"])


async def test_a_run_sets_the_caps_and_is_on_record(plane: Any) -> None:
    pool = await plane.pool(name="Course")
    add = sharer(plane)
    ann, bob, cyd = await add(pool, 100, 300), await add(pool, 300, 100), await add(pool, 7)
    account = plane.account(bob["id"], used_tokens=250, held_tokens=9)
    await plane.ok("PATCH", f"/admin/allocations/{cyd['id']}", {"locked": True})
    done = await run(plane, pool, dry_run=False, reason="new term")
    assert await caps(plane, ann, bob, cyd) == [300, 100, 7]
    assert (done["dry_run"], done["automatic"], done["actor"]) == (False, False, "admin token ops")
    log = await plane.ok("GET", f"/admin/pools/{pool['id']}/rebalances")
    assert log == {"items": [done], "next": None}
    # What was used and held beyond the smaller cap is nobody's overrun.
    rows = plane.sql(
        "SELECT amount, baseline, baseline_account::text FROM limits WHERE owner_id = %s", bob["id"]
    )
    assert rows == [(100, 259, account)]
    told = (await plane.events(bob["id"]))[-1]
    assert (told["event"], told["before"], told["after"]) == (
        "allocation_token_quota_updated",
        300,
        100,
    )
    assert told["actor"] == "admin token ops"
    assert told["reason"] == (
        "shared out in pool Course, used 100 of 400 tokens last month: its part: new term"
    )
    assert [event["event"] for event in await plane.events(cyd["id"])][2:] == ["allocation_updated"]
    told = (await plane.events(pool["id"]))[-1]
    assert (told["event"], told["reason"]) == ("pool_shared_out", "new term")
    assert told["after"] == {
        "rebalance_id": done["id"],
        "total_tokens": 400,
        "allocations_changed": 2,
    }


async def test_runs_on_demand_may_be_many_and_come_in_pages(plane: Any) -> None:
    pool, other = await plane.pool(), await plane.pool()
    await sharer(plane)(pool, 100, 5)
    done = [(await run(plane, pool, dry_run=False))["id"] for _ in range(3)]
    path = f"/admin/pools/{pool['id']}/rebalances?limit=2"
    first = await plane.ok("GET", path)
    second = await plane.ok("GET", f"{path}&cursor={first['next']}")
    assert [one["id"] for one in first["items"] + second["items"]] == done[::-1]
    assert (await plane.ok("GET", f"/admin/pools/{other['id']}/rebalances"))["items"] == []


async def test_usd_caps_are_never_touched(plane: Any) -> None:
    pool = await plane.pool(quota_cost_usd_per_month="9")
    add = sharer(plane)
    ann = await add(pool, 100, 300, quota_cost_usd_per_month="1.5")
    bob = await add(pool, 300, 100, quota_cost_usd_per_month="0")
    free = await add(pool, None, 100, quota_cost_usd_per_month="2")
    usd = plane.sql("SELECT * FROM limits WHERE meter = 'usd' ORDER BY owner_id")
    assert len(usd) == 4
    await run(plane, pool, dry_run=False)
    assert await caps(plane, ann, bob, free) == [300, 100, None]
    assert plane.sql("SELECT * FROM limits WHERE meter = 'usd' ORDER BY owner_id") == usd
    events = await plane.ok("GET", "/admin/audit?event=allocation_cost_quota_updated")
    assert len(events["items"]) == 3, "those of setting them up"


async def test_floors_locks_and_services_are_minded(plane: Any) -> None:
    pool = await plane.pool()
    add = sharer(plane)
    shared = [
        await add(pool, 100, 0, floor_tokens=40),
        await add(pool, 100, 10),
        await add(pool, 100, 30),
        await add(pool, 5000, 999, locked=True),
        await add(pool, 7000, 999, service=True),
        await add(pool, None, 999),
    ]
    inside = await plane.pool(parent_id=pool["id"])
    others = [await add(inside, 11, 999), await add(await plane.pool(), 12, 999)]
    done = await run(plane, pool, dry_run=False)
    assert done["total_tokens"] == 300
    assert await caps(plane, *shared) == [40, 65, 195, 5000, 7000, None]
    assert await caps(plane, *others) == [11, 12]
    assert len(done["changes"]) == 6


async def test_nobody_used_anything_so_caps_stay(plane: Any) -> None:
    pool = await plane.pool()
    ann, bob = [await sharer(plane)(pool, cap) for cap in (100, 300)]
    plane.account(ann["id"], used_tokens=99)
    plane.account(bob["id"], at=plane.last_month - timedelta(days=31), used_tokens=99)
    await run(plane, pool, dry_run=False)
    assert await caps(plane, ann, bob) == [100, 300]
    assert len(await plane.events(ann["id"])) == 2


@pytest.mark.parametrize("scale", [10**10, 10**17])
async def test_ten_billion_tokens_and_more_are_shared_out_exactly(plane: Any, scale: int) -> None:
    pool = await plane.pool()
    add = sharer(plane)
    ann, bob, cyd = await add(pool, scale, scale), await add(pool, 0, scale), await add(pool, 0, 1)
    await run(plane, pool, dry_run=False)
    # Of two equal users one gets what is left over by the division.
    shared = [cap or 0 for cap in await caps(plane, ann, bob, cyd)]
    assert sorted(shared) == [0, scale // 2 - 1, scale // 2 + 1]
    assert sum(shared) == scale


async def test_more_allocations_than_fit_into_a_statement_are_shared_out_at_once(
    plane: Any,
) -> None:
    pool = await plane.pool()
    tenant = await plane.tenant("m1")
    plane.sql(
        "INSERT INTO allocations (id, member_id, name, models, pool_id)"
        " SELECT gen_random_uuid(), %s, 'one of many', '{m1}', %s FROM generate_series(1, 1201)",
        tenant.member["id"],
        pool["id"],
    )
    plane.sql(
        "INSERT INTO limits (owner_id, meter, window_kind, owner, amount)"
        " SELECT id, 'tokens', 'month', 'allocation', 601 FROM allocations WHERE pool_id = %s",
        pool["id"],
    )
    plane.sql(
        "INSERT INTO accounts"
        " (id, owner, owner_id, window_kind, period_start, period_end, used_tokens)"
        " SELECT gen_random_uuid(), 'allocation', id, 'month', %s, %s,"
        " row_number() OVER (ORDER BY id) FROM allocations WHERE pool_id = %s",
        plane.last_month - timedelta(days=9),
        plane.month.start,
        pool["id"],
    )
    done = await run(plane, pool, dry_run=False)
    assert done["total_tokens"] == 601 * 1201
    # The use adds up to what the caps do, so that each gets what it used.
    counted = "SELECT count(*), sum(amount), min(amount), max(amount) FROM limits"
    assert plane.sql(counted) == [(1201, 601 * 1201, 1, 1201)]
    [(events,)] = plane.sql("SELECT count(*) FROM audit WHERE reason LIKE 'shared out%%'")
    # The one in the middle has what it had.
    assert events == 1200


async def test_an_empty_pool_is_shared_out_among_nobody(plane: Any) -> None:
    pool = await plane.pool()
    done = await run(plane, pool, dry_run=False)
    assert (done["changes"], done["total_tokens"]) == ([], 0)


async def test_last_month_is_that_of_each_allocations_zone(plane: Any) -> None:
    pool = await plane.pool()
    add = sharer(plane)

    def last_month(zone: str) -> datetime:
        month = Calendar(ZoneInfo(zone)).period("month", datetime.now(UTC))
        return month.start - timedelta(days=14)

    def there(zone: str) -> dict[str, Any]:
        return {"billing_timezone": zone, "at": last_month(zone)}

    east = await add(pool, 100, 30, **there("Pacific/Kiritimati"))
    west = await add(pool, 100, 10, **there("America/Los_Angeles"))
    # An account of another zone's this month, which begins while ours still is last month.
    plane.account(west["id"], zone="America/Los_Angeles", used_tokens=10**6)
    # It was in no zone of its own last month, and moved since.
    moved = await add(pool, 100, 60, at=last_month("Asia/Kathmandu"))
    path = f"/admin/allocations/{moved['id']}"
    await plane.ok("PATCH", path, {"billing_timezone": "Asia/Kathmandu"})
    done = await run(plane, pool, dry_run=False)
    assert changes(done) == {
        east["id"]: (100, 90),
        west["id"]: (100, 30),
        moved["id"]: (100, 180),
    }
    # The caps that are judged are those of each one's own month.
    assert await caps(plane, east, west, moved) == [90, 30, 180]
    months = {
        row[0] for row in plane.sql("SELECT baseline_account::text FROM limits WHERE amount > 0")
    }
    assert months == {
        plane.account(one["id"], zone=zone)
        for one, zone in (
            (east, "Pacific/Kiritimati"),
            (west, "America/Los_Angeles"),
            (moved, "Asia/Kathmandu"),
        )
    }


async def test_what_cannot_be_shared_out_is_refused_and_changes_nothing(plane: Any) -> None:
    pool = await plane.pool()
    add = sharer(plane)
    ann, bob = await add(pool, 10, 5, floor_tokens=8), await add(pool, 0, 5, floor_tokens=4)
    path = f"/admin/pools/{pool['id']}/rebalance"
    for dry_run in (True, False):
        answer = await plane.call("POST", path, {"dry_run": dry_run})
        assert answer.status_code == 422
        assert "the floors add up to 12 tokens and the caps to 10" in answer.json()["detail"]
    assert await caps(plane, ann, bob) == [10, 0]
    assert plane.sql("SELECT * FROM rebalances") == []


async def test_more_tokens_than_there_can_be_are_refused(plane: Any) -> None:
    pool = await plane.pool()
    for _ in range(10):
        await sharer(plane)(pool, 10**18, floor_tokens=10**18)
    answer = await plane.call("POST", f"/admin/pools/{pool['id']}/rebalance", {"dry_run": False})
    assert answer.status_code == 422
    assert "10000000000000000000 tokens" in answer.json()["detail"]


@pytest.mark.parametrize("body", [{"dry_run": None}, {"dry_run": "no"}, {"usd": True}])
async def test_what_is_no_order_to_share_out_is_refused(plane: Any, body: Any) -> None:
    pool = await plane.pool()
    answer = await plane.call("POST", f"/admin/pools/{pool['id']}/rebalance", body)
    assert answer.status_code == 422
    assert (await plane.call("POST", f"/admin/pools/{ID}/rebalance", {})).status_code == 404
    assert (await plane.call("GET", f"/admin/pools/{ID}/rebalances")).status_code == 404


# Every month


def monthly(plane: Any, after: timedelta = timedelta(hours=1)) -> Monthly:
    """The monthly work, that long after this month's start."""
    return Monthly(plane.deps.database, plane.deps.calendar, lambda: plane.month.start + after)


async def test_a_month_is_shared_out_once_however_many_try(plane: Any) -> None:
    wants = await plane.pool(shares_out=True, name="Course")
    other = await plane.pool()
    add = sharer(plane)
    ann, bob = await add(wants, 100, 300), await add(wants, 300, 100)
    cyd = await add(other, 100, 300)
    assert sum(await asyncio.gather(*(monthly(plane).share_out() for _ in range(4)))) == 1
    assert await monthly(plane, timedelta(hours=30)).share_out() == 0
    assert await caps(plane, ann, bob, cyd) == [300, 100, 100]
    [done] = (await plane.ok("GET", f"/admin/pools/{wants['id']}/rebalances"))["items"]
    assert (done["automatic"], done["actor"], done["total_tokens"]) == (True, "monthly job", 400)
    [told] = [one for one in await plane.events(ann["id"]) if one["actor"] == "monthly job"]
    assert (told["event"], told["actor_id"]) == ("allocation_token_quota_updated", None)
    assert (told["before"], told["after"]) == (100, 300)
    assert told["reason"].startswith("shared out in pool Course, used 300 of 400")


async def test_a_run_on_demand_does_not_stand_for_the_months(plane: Any) -> None:
    pool = await plane.pool(shares_out=True)
    await sharer(plane)(pool, 100, 300)
    await run(plane, pool, dry_run=False)
    assert await monthly(plane).share_out() == 1
    assert len((await plane.ok("GET", f"/admin/pools/{pool['id']}/rebalances"))["items"]) == 2


@pytest.mark.parametrize("after", [timedelta(days=2), timedelta(days=20)])
async def test_a_month_that_is_no_longer_young_is_left_alone(plane: Any, after: timedelta) -> None:
    pool = await plane.pool(shares_out=True)
    ann, bob = [await sharer(plane)(pool, 100, used) for used in (1, 3)]
    assert await monthly(plane, after).share_out() == 0
    assert await caps(plane, ann, bob) == [100, 100]


async def test_a_month_waits_until_it_has_begun_for_everyone(plane: Any) -> None:
    pool = await plane.pool(shares_out=True)
    add = sharer(plane)
    ann = await add(pool, 100, 1, billing_timezone="Etc/GMT+8")
    bob = await add(pool, 100, 3)
    assert await monthly(plane, timedelta(hours=7, minutes=59)).share_out() == 0
    assert await caps(plane, ann, bob) == [100, 100]
    assert await monthly(plane, timedelta(hours=8)).share_out() == 1
    assert await caps(plane, ann, bob) == [50, 150]


async def test_a_pool_that_cannot_be_shared_out_keeps_no_other_from_it(plane: Any) -> None:
    add = sharer(plane)
    broken, sound = [await plane.pool(shares_out=True) for _ in range(2)]
    ann = await add(broken, 10, 5, floor_tokens=11)
    bob, cyd = await add(sound, 100, 1), await add(sound, 100, 3)
    assert await monthly(plane).share_out() == 1
    assert await caps(plane, ann, bob, cyd) == [10, 50, 150]
    # It is tried again, and once what stood in the way is gone, it is done.
    await plane.ok("PATCH", f"/admin/allocations/{ann['id']}", {"floor_tokens": 10})
    assert await monthly(plane, timedelta(hours=2)).share_out() == 1
    assert len(plane.sql("SELECT * FROM rebalances WHERE automatic")) == 2


async def test_next_month_is_another_month(plane: Any) -> None:
    pool = await plane.pool(shares_out=True)
    ann, bob = [await sharer(plane)(pool, 100, used) for used in (1, 3)]
    assert await monthly(plane).share_out() == 1
    plane.account(ann["id"], used_tokens=9)
    plane.account(bob["id"], used_tokens=1)
    assert plane.month.end is not None
    assert await monthly(plane, plane.month.end - plane.month.start).share_out() == 1
    assert await caps(plane, ann, bob) == [180, 20]


async def test_the_worker_does_it_without_being_asked(plane: Any, tmp_path: Path) -> None:
    pool = await plane.pool(shares_out=True)
    ann, bob = [await sharer(plane)(pool, 100, used) for used in (1, 3)]
    spool = Spool(tmp_path)
    async with AsyncConnectionPool(plane.url, open=False, kwargs={"autocommit": True}) as lines:
        worker = Worker(
            lines,
            Ledger(plane.url, spool),
            reaper_period_s=60,
            share_out=monthly(plane).share_out,
        )
        await worker.start()
        try:
            deadline = asyncio.get_running_loop().time() + 10
            while await caps(plane, ann, bob) != [50, 150]:
                assert asyncio.get_running_loop().time() < deadline
                await asyncio.sleep(0.05)
        finally:
            await worker.stop()
            spool.close()
