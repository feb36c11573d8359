"""What an edit of caps will do is told before it is made, and then it does just that."""

from __future__ import annotations

from typing import Any

import pytest

from app.ids import uuid7


async def preview(plane: Any, tenant: Any, **caps: Any) -> Any:
    """Ask what an edit will do."""
    return await plane.ok("POST", f"/admin/allocations/{tenant.allocation['id']}/preview", caps)


def hold(plane: Any, tenant: Any, endpoint: str) -> None:
    """Have a call in flight."""
    facts = f'{{"endpoint": "{endpoint}", "allocation_id": "{tenant.allocation["id"]}"}}'
    plane.sql(
        "INSERT INTO holds (call_id, account_ids, tokens, nano, facts, deadline)"
        " VALUES (%s, '{}', 5, 5, %s, now() + interval '1 minute')",
        uuid7(),
        facts,
    )


async def test_a_cap_below_what_is_used_blocks_and_ends_sessions(plane: Any) -> None:
    tenant, other = (
        await plane.tenant("m1", quota_cost_usd_per_month="10"),
        await plane.tenant("m1"),
    )
    plane.account(tenant.allocation["id"], used_nano=6_100_000_000, held_nano=10**9, used_tokens=70)
    for endpoint in ("realtime", "realtime", "chat/completions"):
        hold(plane, tenant, endpoint)
    hold(plane, other, "realtime")
    shown = await preview(plane, tenant, quota_cost_usd_per_month="5")
    resets_at = shown.pop("resets_at")
    assert shown.pop("binds") == {
        "owner": "allocation",
        "owner_id": tenant.allocation["id"],
        "owner_name": "m1",
        "meter": "usd",
        "window": "month",
        "amount": "5.00",
        "used": "6.10",
        "held": "1.00",
        "remaining": "0.00",
        "resets_at": resets_at,
    }
    assert shown == {
        "id": tenant.allocation["id"],
        "tokens": {
            "used": 70,
            "held": 0,
            "cap": None,
            "effective": None,
            "new_cap": None,
            "new_effective": None,
            "new_remaining": None,
            "blocks_now": False,
        },
        "usd": {
            "used": "6.10",
            "held": "1.00",
            "cap": "10.00",
            "effective": "10.00",
            "new_cap": "5.00",
            "new_effective": "5.00",
            "new_remaining": "0.00",
            "blocks_now": True,
        },
        "state": "ok",
        "new_state": "exhausted",
        "blocks_now": True,
        "live_sessions": 2,
        "calls_in_flight": 1,
        "sessions_ending": 2,
    }
    card = await plane.ok("GET", f"/admin/allocations/{tenant.allocation['id']}")
    assert (card["quota_cost_usd_per_month"], card["state"]) == ("10.00", "ok")


@pytest.mark.parametrize(
    ("caps", "state", "blocks", "ending"),
    [
        ({}, "near", False, 0),
        ({"quota_tokens_per_month": 84}, "critical", False, 1),
        ({"quota_tokens_per_month": 85}, "critical", False, 1),
        ({"quota_tokens_per_month": 86}, "critical", False, 0),
        ({"quota_tokens_per_month": 0}, "exhausted", True, 1),
        ({"quota_tokens_per_month": None}, "ok", False, 0),
        ({"quota_tokens_per_month": 1000, "quota_cost_usd_per_month": "0"}, "exhausted", True, 1),
        ({"quota_tokens_per_month": 80}, "exhausted", True, 1),
    ],
)
async def test_the_edit_then_does_what_was_told(
    plane: Any, caps: Any, state: str, blocks: bool, ending: int
) -> None:
    tenant = await plane.tenant("m1", quota_tokens_per_month=100)
    hold(plane, tenant, "realtime")
    plane.account(tenant.allocation["id"], used_tokens=80, held_tokens=5)
    told = await preview(plane, tenant, **caps)
    assert (told["new_state"], told["blocks_now"]) == (state, blocks)
    assert (told["live_sessions"], told["sessions_ending"]) == (1, ending)
    done = await plane.ok("PATCH", f"/admin/allocations/{tenant.allocation['id']}", caps)
    assert done["state"] == told["new_state"]
    assert done["binds"] == told["binds"]
    assert done["quota_tokens_per_month"] == told["tokens"]["new_cap"]
    assert done["effective_cost_usd_per_month"] == told["usd"]["new_effective"]


async def test_top_ups_count_and_a_paused_one_stays_paused(plane: Any) -> None:
    tenant = await plane.tenant("m1", quota_cost_usd_per_month="1")
    plane.account(tenant.allocation["id"], used_nano=10**9)
    top_up = {
        "allocation_id": tenant.allocation["id"],
        "meter": "usd",
        "amount": "9",
        "expires": "day",
        "reason": "exams",
    }
    await plane.ok("POST", "/admin/top-ups", top_up)
    shown = await preview(plane, tenant, quota_cost_usd_per_month="2")
    assert (shown["usd"]["effective"], shown["usd"]["new_effective"]) == ("10.00", "11.00")
    assert (shown["usd"]["new_remaining"], shown["blocks_now"]) == ("10.00", False)
    path = f"/admin/allocations/{tenant.allocation['id']}"
    await plane.ok("PATCH", path, {"status": "paused"})
    assert (await preview(plane, tenant, quota_cost_usd_per_month="0"))["new_state"] == "paused"


async def test_what_cannot_be_set_cannot_be_previewed(plane: Any) -> None:
    tenant = await plane.tenant("m1")
    path = f"/admin/allocations/{tenant.allocation['id']}/preview"
    for body in (
        {"quota_tokens_per_month": -1},
        {"quota_tokens_per_month": 1.5},
        {"quota_cost_usd_per_month": "0.0000000001"},
        {"status": "paused"},
    ):
        assert (await plane.call("POST", path, body)).status_code == 422
    absent = path.replace(tenant.allocation["id"], uuid7())
    assert (await plane.call("POST", absent, {})).status_code == 404
