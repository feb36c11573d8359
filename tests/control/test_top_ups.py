"""Top-ups: a cap is raised for a while, shows on the card as a line of its own, and ends."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest

from app.core.windows import Calendar
from app.store import usage

ID = "0197c5a0-0000-7000-8000-000000000000"
TOKENS_MAX = 10**18


def written(at: datetime | None) -> str:
    assert at is not None
    return at.isoformat().replace("+00:00", "Z")


def end_of(window: str, zone: str = "UTC") -> str:
    """Return when today, or this month, ends in a zone."""
    return written(Calendar(ZoneInfo(zone)).period(window, datetime.now(UTC)).end)


async def top_up(plane: Any, tenant: Any, **more: Any) -> Any:
    body = {
        "allocation_id": tenant.allocation["id"],
        "meter": "tokens",
        "amount": 50,
        "reason": "exam week",
        "expires": "period",
    }
    return await plane.ok("POST", "/admin/top-ups", body | more)


async def card(plane: Any, tenant: Any) -> Any:
    [mine] = (await plane.ok("GET", "/me/allocations", bearer=tenant.secret))["items"]
    shown = await plane.ok("GET", f"/admin/allocations/{tenant.allocation['id']}")
    assert shown | mine == shown
    return mine


async def test_a_top_up_is_stored_and_shown_and_audited(plane: Any) -> None:
    tenant = await plane.tenant("m1", quota_tokens_per_month=100)
    added = await top_up(plane, tenant, reason=" exam\n week ")
    assert added == {
        "id": added["id"],
        "allocation_id": tenant.allocation["id"],
        "meter": "tokens",
        "amount": 50,
        "reason": "exam week",
        "starts_at": added["created_at"],
        "expires_at": end_of("month"),
        "active": True,
        "request_id": None,
        "actor": "admin token ops",
        "created_at": added["created_at"],
    }
    assert (await plane.ok("GET", "/admin/top-ups"))["items"] == [added]
    told = (await plane.events(tenant.allocation["id"]))[-1]
    assert (told["event"], told["before"], told["reason"]) == ("top_up_added", None, "exam week")
    assert told["after"] == {
        "top_up_id": added["id"],
        "meter": "tokens",
        "amount": 50,
        "expires_at": end_of("month"),
        "request_id": None,
    }
    rows = plane.sql("SELECT meter, window_kind, topped_until, amount FROM limits")
    assert rows == [("tokens", "month", datetime.fromisoformat(end_of("month")), 100)]
    rows = plane.sql("SELECT window_kind, amount, actor FROM top_ups")
    assert rows == [("month", 50, "admin token ops")]


async def test_a_card_shows_the_cap_what_tops_it_up_and_both_together(plane: Any) -> None:
    tenant = await plane.tenant(
        "m1", quota_tokens_per_month=100, quota_cost_usd_per_month="1", name="Course"
    )
    plane.account(tenant.allocation["id"], used_tokens=100, used_nano=500_000_000)
    assert (await card(plane, tenant))["state"] == "exhausted"
    tokens = await top_up(plane, tenant, amount=400)
    usd = await top_up(plane, tenant, meter="usd", amount="0.500000001", expires="day")
    more = await top_up(plane, tenant, amount="1e2")
    shown = await card(plane, tenant)
    assert shown["quota_tokens_per_month"] == 100
    assert shown["quota_cost_usd_per_month"] == "1.00"
    assert shown["effective_tokens_per_month"] == 600
    assert shown["effective_cost_usd_per_month"] == "1.500000001"
    assert shown["state"] == "ok"
    line = ("id", "meter", "amount", "reason", "expires_at")
    assert shown["top_ups"] == [{name: one[name] for name in line} for one in (more, usd, tokens)]
    assert shown["top_ups"][1]["amount"] == "0.500000001"
    # A third of the USD is used, a sixth of the tokens.
    binds = shown["binds"]
    assert (binds["meter"], binds["amount"], binds["remaining"]) == (
        "usd",
        "1.500000001",
        "1.000000001",
    )
    key = plane.deps.directory.keys_by_digest[plane.deps.vault.digest(tenant.secret)]
    document = await usage.key_document(
        plane.deps.database, plane.deps.calendar, key, datetime.now(UTC)
    )
    [opened] = document["allocations"]
    assert (opened.tokens_remaining, opened.cost_remaining) == (500, "1.000000001")


async def test_a_top_up_of_one_allocation_is_not_anothers(plane: Any) -> None:
    ada, bob = [await plane.tenant("m1", quota_tokens_per_month=5) for _ in range(2)]
    added = await top_up(plane, ada)
    assert (await card(plane, bob))["effective_tokens_per_month"] == 5
    listed = await plane.ok("GET", f"/admin/top-ups?allocation_id={bob.allocation['id']}")
    assert listed["items"] == []
    listed = await plane.ok("GET", f"/admin/top-ups?allocation_id={ada.allocation['id']}")
    assert listed["items"] == [added]


async def test_a_cap_of_0_can_be_topped_up(plane: Any) -> None:
    tenant = await plane.tenant("m1", quota_tokens_per_month=0)
    await top_up(plane, tenant, amount=1)
    shown = await card(plane, tenant)
    assert (shown["effective_tokens_per_month"], shown["state"]) == (1, "ok")


async def test_without_a_cap_any_more_there_is_nothing_effective(plane: Any) -> None:
    tenant = await plane.tenant("m1", quota_tokens_per_month=5)
    await top_up(plane, tenant)
    path = f"/admin/allocations/{tenant.allocation['id']}"
    lifted = await plane.ok("PATCH", path, {"quota_tokens_per_month": None})
    assert lifted["effective_tokens_per_month"] is None
    assert len(lifted["top_ups"]) == 1
    again = await plane.ok("PATCH", path, {"quota_tokens_per_month": 7})
    assert again["effective_tokens_per_month"] == 57


async def test_a_top_up_ends_when_an_admin_says_so_and_only_once(plane: Any) -> None:
    tenant = await plane.tenant("m1", quota_tokens_per_month=5)
    added = await top_up(plane, tenant)
    other = await top_up(plane, tenant, amount=3)
    path = f"/admin/top-ups/{added['id']}"
    for _ in range(2):
        assert (await plane.call("DELETE", path)).status_code == 204
    assert (await card(plane, tenant))["effective_tokens_per_month"] == 8
    ended = (await plane.ok("GET", "/admin/top-ups?active=false"))["items"]
    assert [one["id"] for one in ended] == [added["id"]]
    assert ended[0]["active"] is False
    assert ended[0]["expires_at"] < added["expires_at"]
    assert (await plane.ok("GET", "/admin/top-ups?active=true"))["items"] == [other]
    events = await plane.events(tenant.allocation["id"])
    assert [event["event"] for event in events][-3:] == [
        "top_up_added",
        "top_up_added",
        "top_up_ended",
    ]
    assert events[-1]["before"] == {"top_up_id": added["id"], "expires_at": added["expires_at"]}
    assert events[-1]["after"]["expires_at"] == ended[0]["expires_at"]
    assert (await plane.call("DELETE", f"/admin/top-ups/{ID}")).status_code == 404


async def test_a_top_up_begins_and_ends_under_the_lock_of_the_month(plane: Any) -> None:
    tenant = await plane.tenant("m1", quota_tokens_per_month=5)

    async def while_a_batch_decides(change: Coroutine[Any, Any, Any]) -> None:
        """Have the ledger hold the account: the change must wait for it."""
        with psycopg.connect(plane.url) as ledger:
            ledger.execute("SELECT * FROM accounts FOR UPDATE")
            task = asyncio.create_task(change)
            deadline = asyncio.get_running_loop().time() + 10
            while not plane.sql("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
                assert asyncio.get_running_loop().time() < deadline
                await asyncio.sleep(0.01)
            assert not task.done()
        await task

    await while_a_batch_decides(top_up(plane, tenant))
    [(id,)] = plane.sql("SELECT id::text FROM top_ups WHERE expires_at > now()")
    await while_a_batch_decides(plane.call("DELETE", f"/admin/top-ups/{id}"))
    assert (await card(plane, tenant))["effective_tokens_per_month"] == 5


async def test_a_top_up_that_is_over_tops_nothing_up(plane: Any) -> None:
    tenant = await plane.tenant("m1", quota_tokens_per_month=5)
    await top_up(plane, tenant)
    plane.sql("UPDATE top_ups SET starts_at = now() - interval '2 s', expires_at = now()")
    shown = await card(plane, tenant)
    assert (shown["effective_tokens_per_month"], shown["top_ups"]) == (5, [])
    assert len((await plane.ok("GET", "/admin/top-ups?active=false"))["items"]) == 1


async def test_the_longest_of_two_says_until_when_the_ledger_looks(plane: Any) -> None:
    tenant = await plane.tenant("m1", quota_tokens_per_month=5, quota_cost_usd_per_month=1)
    later = written(datetime.now(UTC).replace(microsecond=0) + timedelta(days=90))
    await top_up(plane, tenant, expires=later)
    await top_up(plane, tenant, expires="day")
    rows = plane.sql("SELECT meter, topped_until FROM limits ORDER BY meter")
    assert rows == [("tokens", datetime.fromisoformat(later)), ("usd", None)]


@pytest.mark.parametrize("own", [None, "Pacific/Kiritimati", "America/Los_Angeles"])
async def test_days_and_months_are_the_allocations_own(plane: Any, own: str | None) -> None:
    tenant = await plane.tenant("m1", quota_tokens_per_month=5, billing_timezone=own)
    today = datetime.now(ZoneInfo(own or "UTC")).date()
    instant = (datetime.now(UTC) + timedelta(days=9)).replace(microsecond=0)
    for expires, end in (
        ("day", end_of("day", own or "UTC")),
        ("period", end_of("month", own or "UTC")),
        (today.isoformat(), end_of("day", own or "UTC")),
        (instant.astimezone(ZoneInfo("Asia/Kathmandu")).isoformat(), written(instant)),
    ):
        assert (await top_up(plane, tenant, expires=expires))["expires_at"] == end


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"allocation_id": ID}, "allocation_id"),
        ({"allocation_id": "x"}, "allocation_id"),
        ({"meter": "usd"}, "meter"),
        ({"meter": "pages"}, "meter"),
        ({"amount": 0}, "amount"),
        ({"amount": -1}, "amount"),
        ({"amount": 1.5}, "amount"),
        ({"amount": None}, "amount"),
        ({"amount": "NaN"}, "amount"),
        ({"amount": 10**30}, "amount"),
        ({"amount": TOKENS_MAX}, "amount"),
        ({"reason": ""}, "reason"),
        ({"reason": " \n "}, "reason"),
        ({"reason": None}, "reason"),
        ({"reason": "x" * 1001}, "reason"),
        ({"expires": "month"}, "expires"),
        ({"expires": "2020-01-01"}, "expires"),
        ({"expires": "9999-12-31"}, "expires"),
        ({"expires": "2026-12-01T00:00:00"}, "expires"),
        ({"expires": None}, "expires"),
        ({"window": "month"}, "window"),
    ],
)
async def test_what_a_top_up_cannot_be_is_refused(plane: Any, body: Any, field: str) -> None:
    tenant = await plane.tenant("m1", quota_tokens_per_month=1)
    sent = {
        "allocation_id": tenant.allocation["id"],
        "meter": "tokens",
        "amount": 5,
        "reason": "r",
        "expires": "day",
    }
    answer = await plane.call("POST", "/admin/top-ups", sent | body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"] == field
    for name in sent:
        missing = {key: value for key, value in sent.items() if key != name}
        assert (await plane.call("POST", "/admin/top-ups", missing)).status_code == 422
    assert plane.sql("SELECT * FROM top_ups") == []
    assert plane.sql("SELECT topped_until FROM limits") == [(None,)]


async def test_a_cap_and_all_its_top_ups_are_no_more_than_a_cap_may_be(plane: Any) -> None:
    tenant = await plane.tenant("m1", quota_tokens_per_month=1)
    await top_up(plane, tenant, amount=TOKENS_MAX - 11)
    await top_up(plane, tenant, amount=10)
    body = {"meter": "tokens", "amount": 1, "reason": "r", "expires": "day"}
    answer = await plane.call(
        "POST", "/admin/top-ups", body | {"allocation_id": tenant.allocation["id"]}
    )
    assert answer.status_code == 422
    assert str(TOKENS_MAX) in answer.json()["detail"]
    assert (await card(plane, tenant))["effective_tokens_per_month"] == TOKENS_MAX


async def test_top_ups_come_in_pages(plane: Any) -> None:
    tenant = await plane.tenant("m1", quota_tokens_per_month=1)
    added = [(await top_up(plane, tenant, amount=n))["id"] for n in range(1, 6)]
    seen: list[str] = []
    path = "/admin/top-ups?limit=2&active=true"
    page = await plane.ok("GET", path)
    while True:
        seen += [one["id"] for one in page["items"]]
        if page["next"] is None:
            break
        page = await plane.ok("GET", f"{path}&cursor={page['next']}")
    assert seen == sorted(added, reverse=True)
