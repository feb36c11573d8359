"""The overview: the same numbers that the cards and the reports show, as of one instant."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from app.control.desk import LedgerHealth
from app.ids import uuid7


async def overview(plane: Any) -> Any:
    """Return the overview."""
    return await plane.ok("GET", "/admin/overview")


async def test_an_empty_house_has_an_overview(plane: Any) -> None:
    shown = await overview(plane)
    assert shown.pop("at")
    assert shown == {
        "spend_this_month_usd": "0.00",
        "spend_today_usd": "0.00",
        "last_hour": {"calls": 0, "refused_calls": 0},
        "today": {"calls": 0, "refused_calls": 0},
        "near_allocations": 0,
        "critical_allocations": 0,
        "exhausted_allocations": 0,
        "tight": [],
        "top_spenders": [],
        "unpriced_models": [],
        "live_sessions": 0,
        "open_requests": 0,
        "dead_deliveries": 0,
        "providers": [],
        "ledger": {
            "available": True,
            "spooled_settlements": 0,
            "open_holds": 0,
            "overdue_holds": 0,
        },
    }


async def test_what_is_near_and_who_spends_are_as_their_cards_say(plane: Any) -> None:
    states = {}
    for used, cap in (
        (740, 1000),
        (750, 1000),
        (899, 1000),
        (900, 1000),
        (1000, 1000),
        (1200, 1000),
    ):
        tenant = await plane.tenant("m1", quota_tokens_per_month=cap)
        plane.account(tenant.allocation["id"], used_tokens=used, used_nano=used * 10**6)
        states[tenant.allocation["id"]] = used
    zero = await plane.tenant("m1", quota_cost_usd_per_month="0")
    elsewhere = await plane.tenant(
        "m1", quota_cost_usd_per_month="1", billing_timezone="Pacific/Kiritimati"
    )
    plane.account(elsewhere.allocation["id"], used_nano=950_000_000, zone="Pacific/Kiritimati")
    paused = await plane.tenant("m1", quota_tokens_per_month=1)
    plane.account(paused.allocation["id"], used_tokens=5)
    await plane.ok("PATCH", f"/admin/allocations/{paused.allocation['id']}", {"status": "paused"})
    topped = await plane.tenant("m1", quota_cost_usd_per_month="1")
    plane.account(topped.allocation["id"], used_nano=900_000_000)
    top_up = {
        "allocation_id": topped.allocation["id"],
        "meter": "usd",
        "amount": "9",
        "expires": "period",
        "reason": "exams",
    }
    await plane.ok("POST", "/admin/top-ups", top_up)
    shown = await overview(plane)
    assert shown["spend_this_month_usd"] == f"{(5489 + 950 + 900) / 1000:.3f}"
    assert (
        shown["near_allocations"],
        shown["critical_allocations"],
        shown["exhausted_allocations"],
    ) == (2, 2, 3)
    assert [one["state"] for one in shown["tight"]] == [
        "exhausted",
        "exhausted",
        "exhausted",
        "critical",
        "critical",
        "near",
        "near",
    ]
    assert shown["tight"][0]["tokens_used_this_month"] == 1200
    assert zero.allocation["id"] in {one["id"] for one in shown["tight"][1:3]}
    assert shown["tight"][3]["id"] == elsewhere.allocation["id"]
    for one in shown["tight"]:
        card = await plane.ok("GET", f"/admin/allocations/{one['id']}")
        assert {name: card[name] for name in one if name in card} == {
            name: value for name, value in one.items() if name in card
        }
        member = await plane.ok("GET", f"/admin/members/{card['member_id']}")
        assert one["member_email"] == member["email"]
    spenders = shown["top_spenders"]
    assert [one["cost_used_this_month"] for one in spenders] == [
        "1.20", "1.00", "0.95", "0.90", "0.90", "0.899", "0.75", "0.74",
    ]  # fmt: skip
    assert spenders[0]["id"] == next(id for id, used in states.items() if used == 1200)


async def test_lists_have_an_end_and_the_rest_is_counted(plane: Any) -> None:
    first = await plane.tenant("m1", quota_tokens_per_month=10)
    plane.account(first.allocation["id"], used_tokens=10, used_nano=1)
    for n in range(24):
        more = await plane.allocation(first.member["id"], ["m1"], quota_tokens_per_month=100)
        plane.account(more["id"], used_tokens=80, used_nano=10 + n)
    shown = await overview(plane)
    assert (len(shown["tight"]), len(shown["top_spenders"])) == (20, 10)
    assert (shown["near_allocations"], shown["exhausted_allocations"]) == (24, 1)
    assert shown["tight"][0]["id"] == first.allocation["id"]


async def test_calls_are_counted_by_hour_and_day_and_agree_with_the_report(plane: Any) -> None:
    tenant = await plane.tenant("m1")
    now = datetime.now(UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    twice = [now, now - timedelta(minutes=59), now - timedelta(minutes=61), midnight]
    for at in twice:
        plane.book(tenant, at=at, cost_nano=10**9)
        plane.book(tenant, at=at, cost_nano=0, outcome="rejected_quota_exceeded", status_code=429)
    once = [midnight - timedelta(seconds=1), midnight + timedelta(milliseconds=1)]
    _, late = [plane.book(tenant, at=at, cost_nano=10**9) for at in once]
    plane.sql(
        "INSERT INTO adjustments (id, call_id, account_ids, tokens, nano, reason)"
        " VALUES (%s, %s, '{}', 0, -500000000, 'correction')",
        uuid7(),
        late,
    )
    shown = await overview(plane)
    # At night the first calls of today, and the last of yesterday, are of the last hour as well.
    hour = datetime.fromisoformat(shown["at"]) - timedelta(hours=1)
    refused = sum(at >= hour for at in twice)
    assert shown["last_hour"] == {
        "calls": 2 * refused + sum(at >= hour for at in once),
        "refused_calls": refused,
    }
    report = await plane.ok("GET", f"/admin/usage?group_by=day&from={midnight:%Y-%m-%d}")
    today = [row for row in report["items"] if row["day"] == f"{midnight:%Y-%m-%d}"]
    assert shown["spend_today_usd"] == today[0]["cost_usd"]
    assert shown["today"] == {
        "calls": today[0]["calls"],
        "refused_calls": today[0]["refused_calls"],
    }


async def test_unpriced_models_are_those_whose_calls_still_have_no_price(plane: Any) -> None:
    tenant = await plane.tenant("m1", "m2", "m3")
    for model, times in (("m1", 1), ("m2", 3), ("m3", 1)):
        for _ in range(times):
            last = plane.book(tenant, model=model, cost_nano=None)
    plane.book(tenant, model="m1", at=datetime.now(UTC) - timedelta(days=40), cost_nano=None)
    plane.book(tenant, model="m1", cost_nano=0, outcome="rejected_quota_exceeded")
    plane.sql(
        "INSERT INTO adjustments (id, call_id, account_ids, tokens, nano, reason, unpriced)"
        " VALUES (%s, %s, '{}', 0, 5, 'repriced', -1)",
        uuid7(),
        last,
    )
    shown = await overview(plane)
    assert shown["unpriced_models"] == [
        {"model": "m2", "calls": 3},
        {"model": "m1", "calls": 1},
    ]


async def test_providers_are_as_well_as_their_last_calls_were(plane: Any) -> None:
    good, bad, idle = [await plane.provider(name=name) for name in ("good", "bad", "idle")]
    await plane.model("m1", provider_id=good["id"])
    await plane.model("m2", provider_id=bad["id"])
    tenant = await plane.tenant("m1", "m2")
    now = datetime.now(UTC).replace(microsecond=0)

    def ago(minutes: int, **more: Any) -> None:
        at = now - timedelta(minutes=minutes)
        plane.book(tenant, at=at, finished_at=at, **more)

    ago(1, model="m1")
    ago(20, model="m1", outcome="upstream_error", status_code=502, cost_nano=0)
    ago(2, model="m2", outcome="upstream_error", status_code=502, cost_nano=0)
    ago(3, model="m2", outcome="upstream_error", status_code=502, cost_nano=0)
    ago(4, model="m2", outcome="rejected_quota_exceeded", status_code=429, cost_nano=0)
    ago(60 * 23, model="m2")
    health = {one["name"]: one for one in (await overview(plane))["providers"]}

    def shown(minutes: int) -> str:
        return (now - timedelta(minutes=minutes)).isoformat().replace("+00:00", "Z")

    assert health["good"] == {
        "id": good["id"],
        "name": "good",
        "calls": 1,
        "upstream_errors": 0,
        "last_success_at": shown(1),
        "last_failure_at": shown(20),
    }
    assert (health["bad"]["calls"], health["bad"]["upstream_errors"]) == (2, 2)
    assert health["bad"]["last_failure_at"] == shown(2)
    assert health["bad"]["last_success_at"] == shown(60 * 23)
    assert health["idle"] == {
        "id": idle["id"],
        "name": "idle",
        "calls": 0,
        "upstream_errors": 0,
        "last_success_at": None,
        "last_failure_at": None,
    }


async def test_what_waits_and_runs_is_counted(plane: Any) -> None:
    tenant = await plane.tenant("m1", quota_cost_usd_per_month="1")
    for endpoint, late in (("realtime", False), ("realtime", True), ("ocr", False)):
        plane.sql(
            "INSERT INTO holds (call_id, account_ids, tokens, nano, facts, deadline)"
            " VALUES (%s, '{}', 0, 0, %s, now() + %s * interval '1 minute')",
            uuid7(),
            f'{{"endpoint": "{endpoint}"}}',
            -1 if late else 1,
        )
    plane.sql(
        "INSERT INTO top_up_requests (id, allocation_id, member_id, meter, amount, reason, expires)"
        " VALUES (%s, %s, %s, 'usd', 1, 'exams', 'day')",
        uuid7(),
        tenant.allocation["id"],
        tenant.member["id"],
    )
    destination = uuid7()
    plane.sql(
        "INSERT INTO destinations (id, name, kind, address) VALUES (%s, 'ops', 'webhook', 'x')",
        destination,
    )
    for status in ("dead", "delivered", "dead"):
        event = uuid7()
        plane.sql("INSERT INTO events (id, kind, body) VALUES (%s, 'test', '{}')", event)
        plane.sql(
            "INSERT INTO deliveries (id, event_id, destination_id, status) VALUES (%s, %s, %s, %s)",
            uuid7(),
            event,
            destination,
            status,
        )
    shown = await overview(plane)
    assert (shown["live_sessions"], shown["open_requests"], shown["dead_deliveries"]) == (2, 1, 2)
    assert (shown["ledger"]["open_holds"], shown["ledger"]["overdue_holds"]) == (3, 1)


async def test_the_ledger_says_itself_how_it_is(plane: Any) -> None:
    health = LedgerHealth(available=False, spooled_settlements=7)
    object.__setattr__(plane.deps, "ledger", lambda: health)
    shown = (await overview(plane))["ledger"]
    assert (
        msgspec.convert({name: shown[name] for name in shown if "holds" not in name}, LedgerHealth)
        == health
    )


async def test_an_auditor_may_look_and_a_member_may_not(town: Any) -> None:
    assert await (await town.inside("auditor")).browser.status("GET", "/admin/overview") == 200
    assert await (await town.inside()).browser.status("GET", "/admin/overview") == 403
