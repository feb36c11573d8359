"""Requests: a member asks for more, an admin decides once, and everybody can see what became of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest

from app.control.desk import Actor, AnyConnection, Gate

ID = "0197c5a0-0000-7000-8000-000000000000"


def gate_of(plane: Any) -> Gate:
    """Return the gate that lets members in."""
    route = next(one for one in plane.app.routes if one.path == "/api/me/requests")
    handler, _ = route.route_handler_map["GET"]
    [guard] = handler.resolve_guards()
    gate: Gate = guard.__self__
    return gate


@pytest.fixture(autouse=True)
def signed_in(plane: Any) -> None:
    """Let members in who say in a header who they are, as if they had signed in."""

    async def by_header(connection: AnyConnection) -> Actor | None:
        member_id = connection.headers.get("x-test-member")
        if member_id is None:
            return None
        return Actor("session", member_id, f"member {member_id}", "member", member_id)

    gate = gate_of(plane)
    gate.ways = (by_header, *gate.ways)


def asking(tenant: Any, **more: Any) -> dict[str, Any]:
    return {
        "allocation_id": tenant.allocation["id"],
        "meter": "tokens",
        "amount": 500,
        "reason": "my thesis is due",
        "expires": "period",
    } | more


async def ask(plane: Any, tenant: Any, **more: Any) -> Any:
    """Ask for more, as the tenant's member."""
    answer = await send(plane, "POST", "/me/requests", tenant, asking(tenant, **more))
    assert answer.status_code == 201, answer.text
    return answer.json()


async def send(plane: Any, method: str, path: str, tenant: Any, body: Any = None) -> Any:
    return await plane.call(method, path, body, bearer=None, x_test_member=tenant.member["id"])


async def told(plane: Any, object_id: str) -> list[tuple[str, str, Any]]:
    events = await plane.events(object_id)
    return [(e["event"], e["actor"], e["reason"]) for e in events]


async def test_a_member_asks_and_an_admin_approves(plane: Any) -> None:
    tenant = await plane.tenant("m1", quota_tokens_per_month=100)
    raised = await ask(plane, tenant)
    assert raised == asking(tenant) | {
        "id": raised["id"],
        "member_id": tenant.member["id"],
        "status": "open",
        "decided_by": None,
        "decided_at": None,
        "decision_reason": None,
        "top_up_id": None,
        "created_at": raised["created_at"],
    }
    assert (await plane.ok("GET", "/admin/requests?status=open"))["items"] == [raised]
    path = f"/admin/requests/{raised['id']}/approve"
    approved = await plane.ok("POST", path, {"reason": "good luck"})
    [top_up] = (await plane.ok("GET", "/admin/top-ups"))["items"]
    assert approved == raised | {
        "status": "approved",
        "decided_by": "admin token ops",
        "decided_at": approved["decided_at"],
        "decision_reason": "good luck",
        "top_up_id": top_up["id"],
    }
    assert top_up["request_id"] == raised["id"]
    assert (top_up["amount"], top_up["reason"]) == (500, "my thesis is due")
    mine = (await send(plane, "GET", "/me/requests", tenant)).json()["items"]
    assert mine == [approved]
    [card] = (await send(plane, "GET", "/me/allocations", tenant)).json()["items"]
    assert card["effective_tokens_per_month"] == 600
    assert await told(plane, raised["id"]) == [
        ("request_raised", f"member {tenant.member['id']}", "my thesis is due"),
        ("request_approved", "admin token ops", "good luck"),
    ]
    assert (await told(plane, tenant.allocation["id"]))[-1] == (
        "top_up_added",
        "admin token ops",
        "my thesis is due",
    )
    events = await plane.events(raised["id"])
    assert events[1]["before"] == {"status": "open", "amount": 500, "expires": "period"}
    assert events[1]["after"] == {
        "status": "approved",
        "top_up_id": top_up["id"],
        "amount": 500,
        "expires_at": top_up["expires_at"],
    }


async def test_a_request_that_is_raised_is_told_to_whoever_listens(plane: Any) -> None:
    tenant = await plane.tenant("m1", quota_cost_usd_per_month=1)
    until = (datetime.now(UTC) + timedelta(days=9)).replace(microsecond=0)
    expires = until.astimezone(timezone(timedelta(hours=5))).isoformat()
    raised = await ask(plane, tenant, meter="usd", amount="2.5", expires=expires)
    assert (raised["amount"], raised["expires"]) == ("2.50", expires)
    [(kind, body)] = plane.sql("SELECT kind, body FROM events")
    assert kind == "request_raised"
    assert msgspec.json.decode(body) == {
        "event": "request_raised",
        "member_id": tenant.member["id"],
        "allocation_id": tenant.allocation["id"],
        "top_up_request_id": raised["id"],
        "meter": "usd",
        "amount": "2.50",
        "reason": "my thesis is due",
        "expires_at": until.isoformat().replace("+00:00", "Z"),
        "timestamp": raised["created_at"],
    }
    await plane.ok("POST", f"/admin/requests/{raised['id']}/approve", {})
    assert len(plane.sql("SELECT * FROM events")) == 1


async def test_an_admin_may_give_another_amount_until_another_time(plane: Any) -> None:
    tenant = await plane.tenant("m1", quota_tokens_per_month=100)
    raised = await ask(plane, tenant)
    until = (datetime.now(UTC) + timedelta(days=3)).replace(microsecond=0)
    body = {"amount": 20, "expires": until.isoformat()}
    approved = await plane.ok("POST", f"/admin/requests/{raised['id']}/approve", body)
    [top_up] = (await plane.ok("GET", "/admin/top-ups"))["items"]
    assert top_up["amount"] == 20
    assert datetime.fromisoformat(top_up["expires_at"]) == until
    # What was asked for stays what it was.
    assert (approved["amount"], approved["expires"]) == (500, "period")


async def test_an_admin_declines_and_says_why(plane: Any) -> None:
    tenant = await plane.tenant("m1", quota_tokens_per_month=100)
    raised = await ask(plane, tenant)
    path = f"/admin/requests/{raised['id']}/decline"
    for body in ({}, {"reason": ""}, {"reason": None}):
        answer = await plane.call("POST", path, body)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == "reason"
    declined = await plane.ok("POST", path, {"reason": "use the small model"})
    assert (declined["status"], declined["top_up_id"]) == ("declined", None)
    assert declined["decision_reason"] == "use the small model"
    assert plane.sql("SELECT * FROM top_ups") == []
    assert (await told(plane, raised["id"]))[-1] == (
        "request_declined",
        "admin token ops",
        "use the small model",
    )


async def test_a_member_withdraws_what_they_asked_for_and_asks_again(plane: Any) -> None:
    tenant = await plane.tenant("m1", quota_tokens_per_month=100)
    first = await ask(plane, tenant)
    answer = await send(plane, "POST", "/me/requests", tenant, asking(tenant, amount=5))
    assert answer.status_code == 409
    assert answer.json()["errors"][0]["field"] == "allocation_id"
    assert (await send(plane, "DELETE", f"/me/requests/{first['id']}", tenant)).status_code == 204
    second = await ask(plane, tenant, amount=5)
    mine = (await send(plane, "GET", "/me/requests", tenant)).json()["items"]
    assert [(one["id"], one["status"]) for one in mine] == [
        (second["id"], "open"),
        (first["id"], "withdrawn"),
    ]
    assert (await told(plane, first["id"]))[-1][:2] == (
        "request_withdrawn",
        f"member {tenant.member['id']}",
    )
    listed = await plane.ok("GET", "/admin/requests?status=withdrawn")
    assert [one["id"] for one in listed["items"]] == [first["id"]]


async def test_two_allocations_may_each_have_an_open_request(plane: Any) -> None:
    ada, bob = [await plane.tenant("m1", quota_tokens_per_month=1) for _ in range(2)]
    mine, theirs = await ask(plane, ada), await ask(plane, bob)
    listed = (await plane.ok("GET", "/admin/requests?status=open"))["items"]
    assert listed == [theirs, mine]
    path = f"/admin/requests?allocation_id={ada.allocation['id']}"
    assert (await plane.ok("GET", path))["items"] == [mine]


@pytest.mark.parametrize("decision", ["approve", "decline", "withdraw"])
async def test_a_request_is_decided_once(plane: Any, decision: str) -> None:
    tenant = await plane.tenant("m1", quota_tokens_per_month=100)
    raised = await ask(plane, tenant)
    admin, mine = f"/admin/requests/{raised['id']}", f"/me/requests/{raised['id']}"

    async def decide(how: str) -> int:
        if how == "withdraw":
            return int((await send(plane, "DELETE", mine, tenant)).status_code)
        body = {"reason": "no"} if how == "decline" else {}
        return int((await plane.call("POST", f"{admin}/{how}", body)).status_code)

    assert await decide(decision) in (200, 204)
    for how in ("approve", "decline", "withdraw"):
        assert await decide(how) == 409
    assert len(await plane.events(raised["id"])) == 2
    assert len(plane.sql("SELECT * FROM top_ups")) == (decision == "approve")


async def test_nobody_asks_for_or_withdraws_what_is_anothers(plane: Any) -> None:
    ada, bob = [await plane.tenant("m1", quota_tokens_per_month=1) for _ in range(2)]
    raised = await ask(plane, ada)
    assert (await send(plane, "POST", "/me/requests", bob, asking(ada))).status_code == 404
    gone = asking(ada, allocation_id=ID)
    assert (await send(plane, "POST", "/me/requests", ada, gone)).status_code == 404
    path = f"/me/requests/{raised['id']}"
    assert (await send(plane, "DELETE", path, bob)).status_code == 404
    assert (await send(plane, "DELETE", f"/me/requests/{ID}", ada)).status_code == 404
    assert (await send(plane, "GET", "/me/requests", bob)).json()["items"] == []
    for decision in ("approve", "decline"):
        path = f"/admin/requests/{ID}/{decision}"
        assert (await plane.call("POST", path, {"reason": "r"})).status_code == 404
        path = f"/admin/requests/{raised['id']}/{decision}"
        assert (await send(plane, "POST", path, ada, {"reason": "r"})).status_code == 403
    by_key = await plane.call("POST", "/me/requests", asking(bob), bearer=bob.secret)
    assert by_key.status_code == 403
    shown = await plane.ok("GET", "/me/requests", bearer=ada.secret)
    assert shown["items"] == [raised]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"meter": "usd"}, "meter"),
        ({"amount": 0}, "amount"),
        ({"amount": 1.5}, "amount"),
        ({"amount": 10**18}, "amount"),
        ({"reason": " "}, "reason"),
        ({"expires": "never"}, "expires"),
        ({"expires": ""}, "expires"),
        ({"expires": "2020-01-01"}, "expires"),
        ({"expires": "day\u0000"}, "expires"),
        ({"status": "approved"}, "status"),
    ],
)
async def test_what_cannot_be_asked_for_is_refused(plane: Any, body: Any, field: str) -> None:
    tenant = await plane.tenant("m1", quota_tokens_per_month=100)
    answer = await send(plane, "POST", "/me/requests", tenant, asking(tenant, **body))
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"] == field
    assert plane.sql("SELECT * FROM top_up_requests") == []
    assert plane.sql("SELECT * FROM events") == []


async def test_what_cannot_be_given_any_more_leaves_the_request_open(plane: Any) -> None:
    tenant = await plane.tenant("m1", quota_tokens_per_month=100)
    raised = await ask(plane, tenant)
    path = f"/admin/requests/{raised['id']}/approve"
    for body, field in (
        ({"amount": 0}, "amount"),
        ({"amount": "0.5"}, "amount"),
        ({"expires": ""}, "expires"),
        ({"expires": "2020-01-01"}, "expires"),
        ({"meter": "usd"}, "meter"),
    ):
        answer = await plane.call("POST", path, body)
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)
    # The date that it was for has gone by.
    plane.sql("UPDATE top_up_requests SET expires = '2020-01-01'")
    answer = await plane.call("POST", path, {})
    assert answer.json()["errors"][0]["field"] == "expires"
    # The cap that it was for has gone.
    cap = {"quota_tokens_per_month": None}
    await plane.ok("PATCH", f"/admin/allocations/{tenant.allocation['id']}", cap)
    answer = await plane.call("POST", path, {"expires": "day"})
    assert answer.json()["errors"][0]["field"] == "meter"
    assert plane.sql("SELECT status FROM top_up_requests") == [("open",)]
    assert plane.sql("SELECT * FROM top_ups") == []
