"""Calls, usage and audit: exact, complete, in a stable order, and safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest

from app.control.download import cell
from app.core.access import Key
from app.core.metering import UNITS
from app.ids import uuid7
from app.store.usage import call_document, key_document


async def walk(plane: Any, path: str, limit: int) -> list[Any]:
    """Follow the cursors to the end."""
    items: list[Any] = []
    cursor = ""
    while True:
        separator = "&" if "?" in path else "?"
        page = await plane.ok("GET", f"{path}{separator}limit={limit}{cursor}")
        assert len(page["items"]) <= limit
        items += page["items"]
        if page["next"] is None:
            return items
        cursor = f"&cursor={page['next']}"


async def test_a_call_is_shown_as_the_contract_says(plane: Any) -> None:
    tenant = await plane.tenant("m1")
    at = plane.month.start + timedelta(seconds=5)
    call_id = plane.book(
        tenant,
        at=at,
        finished_at=at + timedelta(milliseconds=1500),
        usage='{"input_token": 20, "second": 12.345678901234567890}',
        cost_nano=1_234_567,
        estimated=True,
        close_reason="normal",
        error_message="said the provider",
    )
    answer = await plane.call("GET", f"/admin/calls/{call_id}")
    assert '"second":12.345678901234567890' in answer.text
    shown = msgspec.json.decode(answer.content)
    assert shown.pop("usage")["input_token"] == 20
    assert shown == {
        "id": call_id,
        "request_id": "req_test",
        "allocation_id": tenant.allocation["id"],
        "key_id": tenant.key["id"],
        "member_id": tenant.member["id"],
        "model": "m1",
        "endpoint": "chat/completions",
        "outcome": "success",
        "close_reason": "normal",
        "status_code": 200,
        "started_at": at.isoformat().replace("+00:00", "Z"),
        "finished_at": (at + timedelta(milliseconds=1500)).isoformat().replace("+00:00", "Z"),
        "tokens": 20,
        "cost_usd": "0.001234567",
        "price_id": None,
        "estimated": True,
        "error_message": "said the provider",
        "limit": None,
    }


async def test_an_unpriced_call_costs_null_and_a_refused_one_names_its_limit(plane: Any) -> None:
    tenant = await plane.tenant("m1")
    unpriced = plane.book(tenant, cost_nano=None)
    limit = {
        "owner": "allocation",
        "owner_id": tenant.allocation["id"],
        "meter": "usd",
        "window": "month",
        "amount": 5_000_000_000,
        "used": 4_900_000_000,
        "held": 0,
        "needed": 200_000_000,
        "resets_at": "2026-02-01T00:00:00Z",
    }
    refused = plane.book(
        tenant,
        outcome="rejected_cost_quota_exceeded",
        status_code=429,
        usage="{}",
        tokens=0,
        cost_nano=0,
        shortfall=msgspec.json.encode(limit).decode(),
    )
    assert (await plane.ok("GET", f"/admin/calls/{unpriced}"))["cost_usd"] is None
    shown = await plane.ok("GET", f"/admin/calls/{refused}")
    assert shown["cost_usd"] == "0.00"
    assert shown["limit"] == limit | {
        "amount": "5.00",
        "used": "4.90",
        "held": "0.00",
        "needed": "0.20",
        "remaining": "0.10",
    }


async def test_the_key_that_made_a_call_reads_it_and_another_does_not(plane: Any) -> None:
    ada, bob = await plane.tenant("m1"), await plane.tenant("m1")
    call_id = plane.book(ada)
    database = plane.deps.database
    shown = await call_document(database, call_id, key_id=ada.key["id"])
    assert shown is not None
    assert shown["cost_usd"] == "0.0000004"
    assert msgspec.json.encode(shown)
    assert await call_document(database, call_id) == shown
    assert await call_document(database, call_id, key_id=bob.key["id"]) is None
    assert await call_document(database, ada.key["id"], key_id=ada.key["id"]) is None


async def test_a_key_reads_its_allocations_and_what_it_used_itself(plane: Any) -> None:
    tenant = await plane.tenant("m1", quota_tokens_per_month=100)
    other = await plane.key(tenant.member["id"], tenant.allocation["id"], name="other")
    plane.account(tenant.allocation["id"], used_tokens=60, held_tokens=50, used_nano=900)
    plane.book(tenant)
    plane.book(tenant, cost_nano=None, tokens=1)
    plane.book(tenant, key_id=other["id"])
    plane.book(tenant, at=plane.month.start - timedelta(milliseconds=1))
    key = Key(tenant.key["id"], tenant.member["id"], (tenant.allocation["id"],))
    shown = await key_document(plane.deps.database, plane.deps.calendar, key, datetime.now(UTC))
    assert (shown["id"], shown["name"], shown["hint"]) == (
        key.id,
        "laptop",
        tenant.key["hint"],
    )
    assert shown["tokens_used_this_month"] == 21
    assert shown["cost_used_this_month"] == "0.0000004"
    assert shown["unpriced_calls_this_month"] == 1
    [allocation] = msgspec.to_builtins(shown)["allocations"]
    assert allocation["tokens_used_this_month"] == 60
    assert allocation["tokens_remaining"] == 0
    assert allocation["quota_cost_usd_per_month"] is None
    assert allocation["cost_remaining"] is None
    unused = Key(other["id"], tenant.member["id"], ())
    nothing = await key_document(
        plane.deps.database, plane.deps.calendar, unused, datetime.now(UTC) + timedelta(days=40)
    )
    assert nothing["tokens_used_this_month"] == 0
    assert nothing["allocations"] == []


async def test_pages_of_calls_show_each_call_once_while_others_are_booked(plane: Any) -> None:
    tenant = await plane.tenant("m1")
    # Over a month's end, so that two partitions are read as one; and all before those to come.
    end = (plane.month.start - timedelta(days=1)).replace(day=1)
    booked = [plane.book(tenant, at=end + timedelta(hours=n - 6)) for n in range(13)]
    seen: list[str] = []
    cursor = ""
    while True:
        page = await plane.ok("GET", f"/admin/calls?limit=4{cursor}")
        seen += [call["id"] for call in page["items"]]
        plane.book(tenant)
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    assert seen == booked[::-1]


async def test_a_full_last_page_has_no_next(plane: Any) -> None:
    tenant = await plane.tenant("m1")
    for _ in range(4):
        plane.book(tenant)
    page = await plane.ok("GET", "/admin/calls?limit=4")
    assert (len(page["items"]), page["next"]) == (4, None)


@pytest.mark.parametrize(
    "path", ["providers", "models", "prices", "members", "allocations", "keys", "audit"]
)
async def test_every_list_is_walked_in_a_stable_order(plane: Any, path: str) -> None:
    tenants = [await plane.tenant(f"m/{n}") for n in range(5)]
    for tenant in tenants:
        slug = tenant.allocation["models"][0]
        body = {"model": slug, "rates": [{"unit": "page", "usd": 1}]}
        await plane.ok("POST", "/admin/prices", body)
    whole = await walk(plane, f"/admin/{path}", 500)
    assert len(whole) >= 5
    assert await walk(plane, f"/admin/{path}", 2) == whole
    key = "slug" if path == "models" else "id"
    order = [item[key] for item in whole]
    assert order == sorted(order, reverse=path != "models")


async def test_calls_are_found_by_what_they_are(plane: Any) -> None:
    ada, bob = await plane.tenant("m1"), await plane.tenant("m2")
    early = plane.book(ada, at=plane.month.start - timedelta(days=3))
    last = plane.book(
        ada, at=plane.month.start - timedelta(milliseconds=1), outcome="upstream_error"
    )
    first = plane.book(bob, at=plane.month.start)

    async def found(query: str) -> list[str]:
        return [call["id"] for call in (await plane.ok("GET", f"/admin/calls?{query}"))["items"]]

    date, instant = (
        plane.month.start.date().isoformat(),
        plane.month.start.isoformat().replace("+", "%2B"),
    )
    assert await found("") == [first, last, early]
    assert await found(f"from={date}") == [first]
    assert await found(f"to={instant}") == [last, early]
    assert await found(f"from={date}&to={instant}") == []
    assert await found(f"allocation_id={ada.allocation['id']}") == [last, early]
    assert await found(f"member_id={bob.member['id'].upper()}") == [first]
    assert await found(f"key_id={ada.key['id']}&outcome=success") == [early]
    assert await found("model=m2") == [first]
    assert await found("model=%20") == []
    assert await found("outcome=recovered") == []


async def test_usage_sums_exactly_and_includes_adjustments(plane: Any) -> None:
    ada, bob = await plane.tenant("m1"), await plane.tenant("m1", name="=cmd|'/c calc'!A1")
    for _ in range(3):
        plane.book(ada, cost_nano=333_333_333)
    plane.book(ada, cost_nano=None, tokens=7)
    plane.book(ada, outcome="rejected_quota_exceeded", cost_nano=0, tokens=0)
    late = plane.book(bob, cost_nano=2**62, outcome="recovered")
    plane.book(bob, cost_nano=2**62)
    plane.book(bob, at=plane.month.start - timedelta(seconds=1))
    plane.sql(
        "INSERT INTO adjustments (call_id, account_ids, tokens, nano, reason)"
        " VALUES (%s, '{}', -5, 1, 'late_settlement')",
        late,
    )
    page = await plane.ok("GET", "/admin/usage")
    assert (page["group_by"], page["next"], page["to"]) == (["allocation"], None, None)
    assert page["from"] == plane.month.start.isoformat().replace("+00:00", "Z")
    rows = {row["allocation_id"]: row for row in page["items"]}
    assert rows[ada.allocation["id"]] == {
        "allocation_id": ada.allocation["id"],
        "allocation_name": "m1",
        "calls": 5,
        "refused_calls": 1,
        "unpriced_calls": 1,
        "tokens": 67,
        "cost_usd": "0.999999999",
        "units": {"input_token": 100},
    }
    assert rows[bob.allocation["id"]]["cost_usd"] == "9223372036.854775809"
    assert rows[bob.allocation["id"]]["tokens"] == 35
    all_time = await plane.ok("GET", "/admin/usage?from=2000-01-01&group_by=member")
    counted = {row["member_id"]: row["calls"] for row in all_time["items"]}
    assert counted == {ada.member["id"]: 5, bob.member["id"]: 3}
    assert {row["member_email"] for row in all_time["items"]} == {
        ada.member["email"],
        bob.member["email"],
    }


async def test_usage_is_grouped_by_all_there_is(plane: Any) -> None:
    tenant = await plane.tenant("m1")
    plane.book(tenant, at=plane.month.start)
    plane.book(tenant, at=plane.month.start + timedelta(hours=23))
    plane.book(
        tenant, at=plane.month.start, endpoint="ocr", model="typed by a client", allocation_id=None
    )
    group_by = "day,member,allocation,key,model,endpoint"
    page = await plane.ok("GET", f"/admin/usage?group_by={group_by}")
    assert [(row["day"], row["model"], row["endpoint"]) for row in page["items"]] == [
        (plane.month.start.date().isoformat(), "m1", "chat/completions"),
        (plane.month.start.date().isoformat(), "typed by a client", "ocr"),
    ]
    assert [row["calls"] for row in page["items"]] == [2, 1]
    assert page["items"][1]["allocation_id"] is None
    assert page["items"][0]["key_name"] == "laptop"
    only = await plane.ok("GET", "/admin/usage?group_by=model&model=m1")
    assert [row["model"] for row in only["items"]] == ["m1"]


class TestInAnotherZone:
    @pytest.fixture
    def zone(self) -> ZoneInfo:
        return ZoneInfo("Asia/Tokyo")

    async def test_days_and_months_are_those_of_the_billing_zone(self, plane: Any) -> None:
        tenant = await plane.tenant("m1")
        start = plane.deps.calendar.period("month", datetime.now(UTC)).start
        plane.book(tenant, at=start)
        plane.book(tenant, at=start - timedelta(seconds=1))
        local = start.astimezone(plane.zone)
        page = await plane.ok("GET", "/admin/usage?group_by=day")
        assert [row["day"] for row in page["items"]] == [local.date().isoformat()]
        calls = await plane.ok("GET", f"/admin/calls?from={local.date().isoformat()}")
        assert len(calls["items"]) == 1


FORMULAS = ["=1+1", "+1", "-1+1", "@SUM(A1)", "\t=1", "  =1", "＝1", "-cmd", "|x", "%0A"]


@pytest.mark.parametrize("value", FORMULAS)
def test_a_cell_that_a_spreadsheet_would_run_is_quoted(value: str) -> None:
    assert cell(value) == f"'{value}"


@pytest.mark.parametrize("value", ["", "m1", "a=b", "0.05", "-0.05", "a@example.org", "12"])
def test_a_harmless_cell_is_let_be(value: str) -> None:
    assert cell(value) == value


async def test_the_csv_has_what_the_json_has_and_runs_nothing(plane: Any) -> None:
    tenant = await plane.tenant("m1", name='=HYPERLINK("http://evil","x"),y')
    plane.book(tenant, model="=cmd|' /C calc'!A0", cost_nano=1_500_000_000)
    plane.book(tenant, cost_nano=None)
    group_by = "group_by=allocation,model"
    answer = await plane.call("GET", f"/admin/usage.csv?{group_by}")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert "attachment" in answer.headers["content-disposition"]
    assert answer.headers["x-request-id"]
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    page = (await plane.ok("GET", f"/admin/usage?{group_by}"))["items"]
    units = [row.pop("units") for row in page]
    assert [{n: v.removeprefix("'") for n, v in row.items()} for row in rows] == [
        {name: str(value) for name, value in row.items()}
        | {unit: str(used.get(unit, 0)) for unit in UNITS}
        for row, used in zip(page, units, strict=True)
    ]
    assert list(rows[0]) == [
        "allocation_id",
        "allocation_name",
        "model",
        "calls",
        "refused_calls",
        "unpriced_calls",
        "tokens",
        "cost_usd",
        *sorted(UNITS),
    ]
    assert {row["model"] for row in rows} == {"'=cmd|' /C calc'!A0", "m1"}
    assert rows[0]["allocation_name"].startswith("'=HYPERLINK")


async def test_a_csv_of_nothing_is_its_header(plane: Any) -> None:
    answer = await plane.call("GET", "/admin/usage.csv?group_by=day,endpoint")
    units = ",".join(sorted(UNITS))
    totals = "calls,refused_calls,unpriced_calls,tokens,cost_usd"
    assert answer.text == f"day,endpoint,{totals},{units}\r\n"


async def test_a_csv_of_many_groups_is_whole(plane: Any) -> None:
    tenant = await plane.tenant("m1")
    plane.sql(
        "INSERT INTO calls SELECT overlay(uuid7_floor(%s)::text placing lpad(to_hex(n), 12, '0')"
        " from 25)::uuid, 'r', %s, %s, %s, 'model ' || n, 'ocr', 'success', NULL, 200, now(), now(),"
        " '{}', 1, n, NULL, false, 0, 0, NULL, NULL, '{}' FROM generate_series(1, 12000) n",
        plane.month.start,
        tenant.allocation["id"],
        tenant.key["id"],
        tenant.member["id"],
    )
    answer = await plane.call("GET", "/admin/usage.csv?group_by=model")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert len(rows) == 12_000
    assert (await plane.call("GET", "/admin/usage?group_by=model")).status_code == 422


async def test_the_audit_log_is_found_by_what_happened(plane: Any) -> None:
    tenant = await plane.tenant("m1", quota_cost_usd_per_month=1)
    id = tenant.allocation["id"]

    async def found(query: str) -> list[str]:
        return [e["event"] for e in (await plane.ok("GET", f"/admin/audit?{query}"))["items"]]

    cap = "allocation_cost_quota_updated"
    assert await found(f"object_id={id}") == [cap, "allocation_created"]
    assert await found(f"object_id={id.upper()}") == [cap, "allocation_created"]
    table = await plane.call("GET", f"/admin/audit.csv?object_id={id.upper()}")
    assert len(table.text.splitlines()) == 3
    assert await found("object_id=m1") == ["model_created"]
    assert await found("object_id=M1") == []
    assert await found(f"event={cap}") == [cap]
    assert await found("object=key") == ["key_created"]
    assert await found("to=2001-01-01") == []
    assert len(await found(f"from={plane.month.start.date().isoformat()}")) == 6
    [(actor_id,)] = plane.sql("SELECT id::text FROM admin_tokens")
    assert len(await found(f"actor_id={actor_id}")) == 6


def hold(plane: Any, tenant: Any, *, endpoint: str = "realtime", **more: Any) -> str:
    """Hold something for a call in flight, as the ledger would."""
    at: datetime = more.pop("at", None) or datetime.now(UTC)
    id = uuid7(at)
    facts = {
        "id": id,
        "request_id": "req_test",
        "allocation_id": tenant.allocation["id"],
        "key_id": tenant.key["id"],
        "member_id": tenant.member["id"],
        "model": tenant.allocation["models"][0],
        "endpoint": endpoint,
        "price_id": None,
        "started_at": at,
        "account_ids": [],
    }
    row = {"tokens": 50, "nano": 100_000_000, "checkpoint": None} | more
    plane.sql(
        "INSERT INTO holds (call_id, account_ids, facts, deadline, tokens, nano, checkpoint)"
        " VALUES (%s, '{}', %s, now() + interval '1 minute', %s, %s, %s)",
        id,
        msgspec.json.encode(facts).decode(),
        *row.values(),
    )
    return str(id)


async def test_a_running_session_is_shown_as_the_contract_says(plane: Any) -> None:
    tenant = await plane.tenant("m1", name="Team A")
    at = datetime.now(UTC) - timedelta(seconds=90)
    checkpoint = '{"usage": {"second": 82.125, "input_token": 3}, "tokens": 3, "nano": 1234567}'
    id = hold(plane, tenant, at=at, checkpoint=checkpoint)
    hold(plane, tenant, endpoint="chat/completions")
    [shown] = (await plane.ok("GET", "/admin/realtime-sessions"))["items"]
    assert 90 <= shown.pop("duration_s") < 100
    assert shown == {
        "id": id,
        "request_id": "req_test",
        "allocation_id": tenant.allocation["id"],
        "allocation_name": "Team A",
        "key_id": tenant.key["id"],
        "member_id": tenant.member["id"],
        "member_email": tenant.member["email"],
        "model": "m1",
        "started_at": at.isoformat().replace("+00:00", "Z"),
        "usage": {"second": 82.125, "input_token": 3},
        "tokens": 3,
        "cost_usd": "0.001234567",
        "tokens_held": 50,
        "cost_held": "0.10",
        "stopping": False,
    }


async def test_running_sessions_are_paged_filtered_and_each_members_own(plane: Any) -> None:
    tenants = [await plane.tenant("m1"), await plane.tenant("m1", "m2")]
    began = datetime.now(UTC) - timedelta(hours=1)
    unpriced = '{"usage": {"second": 9}, "tokens": 0, "nano": null}'
    ids = [
        hold(plane, tenants[n % 2], at=began + timedelta(seconds=n), nano=None, checkpoint=unpriced)
        for n in range(5)
    ]
    assert [one["id"] for one in await walk(plane, "/admin/realtime-sessions", 2)] == ids
    for field, value in (
        ("member_id", tenants[1].member["id"]),
        ("key_id", tenants[1].key["id"]),
        ("allocation_id", tenants[1].allocation["id"]),
    ):
        found = await walk(plane, f"/admin/realtime-sessions?{field}={value}", 50)
        assert [one["id"] for one in found] == ids[1::2]
        assert [one["cost_usd"] for one in found] == [None, None]
        # An id is the same one in capital letters.
        assert await walk(plane, f"/admin/realtime-sessions?{field}={value.upper()}", 50) == found
    assert await walk(plane, "/admin/realtime-sessions?model=m2", 50) == []
    answer = await plane.call("GET", "/admin/realtime-sessions?member_id=me")
    assert answer.status_code == 422
    # Whatever is asked for.
    mine = "/me/realtime-sessions"
    for query in ("", f"?allocation_id={tenants[0].allocation['id']}"):
        page = await plane.ok("GET", mine + query, bearer=tenants[0].secret)
        assert [one["id"] for one in page["items"]] == ids[::2]
    other = f"{mine}?allocation_id={tenants[1].allocation['id']}"
    assert (await plane.ok("GET", other, bearer=tenants[0].secret))["items"] == []


async def test_a_session_is_told_to_stop_by_an_admin_but_by_no_key_and_that_is_in_the_log(
    plane: Any,
) -> None:
    tenant = await plane.tenant("m1")
    id, call = hold(plane, tenant), hold(plane, tenant, endpoint="chat/completions")
    for area in ("me", "admin"):
        path = f"/{area}/realtime-sessions/{id}"
        assert (await plane.call("DELETE", path, bearer=tenant.secret)).status_code in (401, 403)
    for nothing, status in ((call, 404), (uuid7(), 404), ("x", 404)):
        answer = await plane.call("DELETE", f"/admin/realtime-sessions/{nothing}")
        assert answer.status_code == status
    assert await plane.events(id) == []
    assert (await plane.call("DELETE", f"/admin/realtime-sessions/{id}")).status_code == 204
    [shown] = (await plane.ok("GET", "/admin/realtime-sessions"))["items"]
    assert shown["stopping"] is True
    assert [event["event"] for event in await plane.events(id)] == ["realtime_session_killed"]


async def test_members_download_their_own_usage_and_nobody_elses(plane: Any) -> None:
    mine, theirs = await plane.tenant("m1"), await plane.tenant("m1")
    plane.book(mine, cost_nano=5)
    plane.book(theirs, cost_nano=7)
    asked = "group_by=allocation,model"
    for own in (mine, theirs):
        shown = await plane.ok("GET", f"/me/usage?{asked}", bearer=own.secret)
        assert [row["allocation_id"] for row in shown["items"]] == [own.allocation["id"]]
        answer = await plane.call("GET", f"/me/usage.json?{asked}", bearer=own.secret)
        assert answer.headers["content-disposition"] == 'attachment; filename="usage.json"'
        assert answer.json() == shown
        table = await plane.call("GET", f"/me/usage.csv?{asked}", bearer=own.secret)
        [row] = csv.DictReader(io.StringIO(table.text))
        assert row["cost_usd"] == shown["items"][0]["cost_usd"]
    for path in ("usage", "usage.csv", "usage.json", "calls"):
        other = f"/me/{path}?member_id={theirs.member['id']}"
        assert (await plane.call("GET", other, bearer=mine.secret)).status_code == 400
