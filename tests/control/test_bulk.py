"""Many allocations at once: all or none, and each audited as if it had been alone."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from app.ids import uuid7

HEADER = "email,name,models,quota_cost_usd_per_month,quota_tokens_per_month,pool\n"


def state_of(plane: Any) -> Any:
    """Return all that a change could have left."""
    return plane.sql(
        "SELECT (SELECT json_agg(a) FROM (SELECT * FROM allocations ORDER BY id) a)::text,"
        " (SELECT json_agg(l) FROM (SELECT * FROM limits ORDER BY owner_id, meter) l)::text,"
        " (SELECT json_agg(c) FROM (SELECT * FROM accounts ORDER BY id) c)::text,"
        " (SELECT count(*) FROM audit)"
    )


# Changing many alike


async def test_many_are_changed_alike_and_each_is_audited(plane: Any) -> None:
    tenants = [await plane.tenant("m1", quota_tokens_per_month=10) for _ in range(3)]
    for tenant in tenants:
        plane.account(tenant.allocation["id"], used_tokens=10)
    ids = [tenant.allocation["id"] for tenant in tenants]
    pool = await plane.pool()
    body = {
        "ids": ids,
        "changes": {"quota_tokens_per_month": 100, "pool_id": pool["id"], "unpriced": "deny"},
        "reason": "a new term",
    }
    before = state_of(plane)
    tried = await plane.ok("POST", "/admin/allocations/bulk", body | {"dry_run": True})
    assert (tried["dry_run"], tried["applied"]) == (True, False)
    assert state_of(plane) == before
    done = await plane.ok("POST", "/admin/allocations/bulk", body)
    assert (done["dry_run"], done["applied"]) == (False, True)
    assert done["rows"] == tried["rows"]
    assert [row["id"] for row in done["rows"]] == ids
    for n, row in enumerate(done["rows"]):
        assert (row["row"], row["ok"], row["message"]) == (n, True, None)
        assert (row["state_before"], row["state_after"]) == ("exhausted", "ok")
        card = await plane.ok("GET", f"/admin/allocations/{row['id']}")
        assert (card["quota_tokens_per_month"], card["pool_id"]) == (100, pool["id"])
        assert (card["unpriced"], card["tokens_used_this_month"]) == ("deny", 10)
        changed, capped = (await plane.events(row["id"]))[-2:]
        assert (changed["event"], changed["reason"]) == ("allocation_updated", "a new term")
        assert (capped["event"], capped["before"], capped["after"]) == (
            "allocation_token_quota_updated",
            10,
            100,
        )


async def test_one_that_cannot_be_changed_keeps_all_as_they_are(plane: Any) -> None:
    good = await plane.tenant("m1", quota_tokens_per_month=10)
    # Its key opens two allocations, which may share no model.
    bad = await plane.tenant("m2")
    await plane.model("m3")
    second = await plane.allocation(bad.member["id"], ["m3"])
    await plane.key(bad.member["id"], bad.allocation["id"], second["id"])
    absent = uuid7()
    body = {
        "ids": [good.allocation["id"], bad.allocation["id"], absent],
        "changes": {"models": ["m3"], "quota_tokens_per_month": 5},
    }
    before = state_of(plane)
    answer = await plane.call("POST", "/admin/allocations/bulk", body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert "2 of 3 rows" in problem["detail"]
    assert [error["field"] for error in problem["errors"]] == ["rows[1].models", "rows[2]"]
    assert state_of(plane) == before
    tried = await plane.ok("POST", "/admin/allocations/bulk", body | {"dry_run": True})
    assert [row["ok"] for row in tried["rows"]] == [True, False, False]
    assert tried["rows"][2]["message"] == "There is no such allocation."
    assert state_of(plane) == before


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"ids": []}, "ids"),
        ({"ids": [str(uuid7()) for _ in range(201)]}, "ids"),
        ({"ids": ["0197c5a0-0000-7000-8000-000000000000"] * 2}, "ids"),
        ({"changes": {}}, "changes"),
        ({"changes": {"reason": "x"}}, "changes.reason"),
        ({"changes": {"member_id": str(uuid7())}}, "changes.member_id"),
        ({"changes": {"quota_cost_usd_per_month": "-1"}}, "quota_cost_usd_per_month"),
    ],
)
async def test_what_is_no_bulk_edit_is_refused(plane: Any, change: Any, field: str) -> None:
    body = {"ids": [str(uuid7())], "changes": {"locked": True}} | change
    answer = await plane.call("POST", "/admin/allocations/bulk", body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == field


# Reading a sheet


async def test_a_sheet_is_tried_and_then_taken_and_not_twice(plane: Any) -> None:
    ada = await plane.member(email="Ada@example.org")
    bob = await plane.member(email="bob@example.org")
    for slug in ("m1", "m2"):
        await plane.model(slug)
    pool = await plane.pool(name="Course A")
    sheet = (
        HEADER
        + "ada@example.org,Essays,m1;m2,12.50,1000000,course a\n"
        + "BOB@example.org,,m1  m2,,0,\n"
        + '\nbob@example.org,"Words, mostly",m2,0.000000001,,\n'
    )
    before = state_of(plane)
    tried = await plane.ok("POST", "/admin/allocations/import", {"csv": sheet})
    assert (tried["dry_run"], tried["applied"]) == (True, False)
    assert [(row["row"], row["ok"], row["id"]) for row in tried["rows"]] == [
        (0, True, None),
        (1, True, None),
        (2, True, None),
    ]
    assert state_of(plane) == before
    body = {"csv": sheet, "dry_run": False, "reason": "a new term"}
    done = await plane.ok("POST", "/admin/allocations/import", body)
    assert done["applied"]
    cards = [await plane.ok("GET", f"/admin/allocations/{row['id']}") for row in done["rows"]]
    shown = [
        (
            card["member_id"],
            card["name"],
            card["models"],
            card["quota_cost_usd_per_month"],
            card["quota_tokens_per_month"],
            card["pool_id"],
            card["state"],
        )
        for card in cards
    ]
    assert shown == [
        (ada["id"], "Essays", ["m1", "m2"], "12.50", 1_000_000, pool["id"], "ok"),
        (bob["id"], "m1, m2", ["m1", "m2"], None, 0, None, "exhausted"),
        (bob["id"], "Words, mostly", ["m2"], "0.000000001", None, None, "ok"),
    ]
    events = await plane.events(cards[0]["id"])
    assert events[0]["event"] == "allocation_created"
    assert {event["event"] for event in events} == {
        "allocation_created",
        "allocation_token_quota_updated",
        "allocation_cost_quota_updated",
    }
    assert {event["reason"] for event in events} == {"a new term"}
    after = state_of(plane)
    again = await plane.call("POST", "/admin/allocations/import", body)
    assert again.status_code == 422
    assert [error["field"] for error in again.json()["errors"]] == [
        f"rows[{n}].name" for n in range(3)
    ]
    assert state_of(plane) == after


async def test_a_sheet_with_bad_rows_changes_nothing_and_names_each(plane: Any) -> None:
    await plane.member(email="ada@example.org")
    await plane.model("m1")
    rows = [
        ("ada@example.org,good,m1,1,,", None),
        ("eve@example.org,x,m1,1,,", "email"),
        ("not an address,x,m1,1,,", "email"),
        ("ada@example.org,x,m1 nothing,1,,", "models"),
        ("ada@example.org,x,,1,,", "models"),
        ("ada@example.org,x,m1 m1,1,,", "models"),
        ("ada@example.org,x,m1,-1,,", "quota_cost_usd_per_month"),
        ("ada@example.org,x,m1,1e3,,", "quota_cost_usd_per_month"),
        ("ada@example.org,x,m1,0.0000000001,,", "quota_cost_usd_per_month"),
        ("ada@example.org,x,m1,,1.5,", "quota_tokens_per_month"),
        ("ada@example.org,x,m1,,١٢,", "quota_tokens_per_month"),
        ("ada@example.org,x,m1,,,No pool", "pool"),
        ("ada@example.org,good,m1,1,,", "name"),
        ("ada@example.org,x,m1,1,,,,", None),
    ]
    sheet = HEADER + "\n".join(row for row, _ in rows)
    before = state_of(plane)
    tried = await plane.ok("POST", "/admin/allocations/import", {"csv": sheet})
    assert [row["row"] for row in tried["rows"]] == list(range(len(rows)))
    assert [row["field"] for row in tried["rows"]] == [field for _, field in rows]
    assert [row["ok"] for row in tried["rows"]] == [True] + [False] * 13
    answer = await plane.call("POST", "/admin/allocations/import", {"csv": sheet, "dry_run": False})
    assert answer.status_code == 422
    assert len(answer.json()["errors"]) == 13
    assert answer.json()["errors"][0] == {
        "field": "rows[1].email",
        "message": "email eve@example.org is no member's.",
        "code": "unknown_email",
        "values": {"email": "eve@example.org"},
    }
    assert tried["rows"][1]["code"] == "unknown_email"
    assert state_of(plane) == before


async def test_a_sheet_may_be_the_body_itself(plane: Any) -> None:
    await plane.member(email="ada@example.org")
    await plane.model("m1")
    sheet = ("\ufeff" + "models,email\r\nm1,ada@example.org\r\n").encode()
    path = "/admin/allocations/import"
    tried = await plane.ok("POST", path, content=sheet, content_type="text/csv; charset=utf-8")
    assert (tried["dry_run"], len(tried["rows"])) == (True, 1)
    done = await plane.ok("POST", f"{path}?dry_run=false", content=sheet, content_type="text/csv")
    assert done["applied"]
    refused = await plane.call("POST", path, content=b"\xff", content_type="text/csv")
    assert refused.status_code == 400
    other = await plane.call("POST", "/admin/members", content=sheet, content_type="text/csv")
    assert other.status_code == 415


@pytest.mark.parametrize(
    "sheet",
    [
        "",
        "\n\n",
        HEADER,
        "email\nada@example.org\n",
        "email,models,color\na@b,m1,red\n",
        "email,models,email\na@b,m1,a@b\n",
        HEADER + '"unclosed',
        HEADER + "a@b,\x00,m1",
        HEADER + "a@example.org,x,m1,,,\n" * 501,
    ],
)
async def test_what_is_no_sheet_of_allocations_is_refused(plane: Any, sheet: str) -> None:
    answer = await plane.call("POST", "/admin/allocations/import", {"csv": sheet})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "csv"


# Sheets to download


async def table(plane: Any, path: str) -> list[list[str]]:
    """Download a sheet."""
    answer = await plane.call("GET", path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert "attachment" in answer.headers["content-disposition"]
    return list(csv.reader(io.StringIO(answer.text)))


async def test_allocations_can_be_downloaded_as_their_cards_are(
    plane: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.control.bulk.PAGE", 2)
    empty = await table(plane, "/admin/allocations.csv")
    assert len(empty) == 1
    pool = await plane.pool(name="=1+1")
    tenants = [
        await plane.tenant("m1", "m2", name=name, quota_cost_usd_per_month="1", pool_id=pool["id"])
        for name in ("=cmd()", "plain", "@x")
    ]
    plane.account(tenants[1].allocation["id"], used_nano=950_000_000, used_tokens=7)
    header, *rows = await table(plane, "/admin/allocations.csv")
    shown = [dict(zip(header, row, strict=True)) for row in rows]
    assert [row["name"] for row in shown] == ["'@x", "plain", "'=cmd()"]
    assert {row["pool"] for row in shown} == {"'=1+1"}
    card = await plane.ok("GET", f"/admin/allocations/{tenants[1].allocation['id']}")
    assert shown[1]["id"] == card["id"]
    assert shown[1]["email"] == tenants[1].member["email"]
    assert shown[1]["models"] == "m1 m2"
    assert (shown[1]["state"], shown[1]["cost_used_this_month"]) == ("critical", "0.95")
    assert (shown[1]["tokens_used_this_month"], shown[1]["quota_tokens_per_month"]) == ("7", "")
    only = await table(plane, f"/admin/allocations.csv?member_id={tenants[0].member['id']}")
    assert len(only) == 2
    assert (await plane.call("GET", "/admin/allocations.csv?member_id=x")).status_code == 422


async def test_the_audit_log_can_be_downloaded_and_no_cell_is_a_formula(
    plane: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.control.bulk.PAGE", 2)
    tenant = await plane.tenant("m1")
    path = f"/admin/allocations/{tenant.allocation['id']}"
    for cap in ("1", "2", "3"):
        await plane.ok("PATCH", path, {"quota_cost_usd_per_month": cap, "reason": "=HYPERLINK()"})
    header, *rows = await table(plane, "/admin/audit.csv")
    listed = (await plane.ok("GET", "/admin/audit?limit=1000"))["items"]
    assert [row[0] for row in rows] == [event["id"] for event in listed]
    newest = dict(zip(header, rows[0], strict=True))
    assert newest["event"] == "allocation_cost_quota_updated"
    assert (newest["before"], newest["after"], newest["reason"]) == (
        "2.00",
        "3.00",
        "'=HYPERLINK()",
    )
    created = [row for row in rows if row[header.index("event")] == "allocation_created"]
    assert created[0][header.index("after")].startswith('{"')
    some = await table(plane, f"/admin/audit.csv?object_id={tenant.allocation['id']}")
    assert len(some) == 1 + 4
    assert (await plane.call("GET", "/admin/audit.csv?form=x")).status_code == 400


async def test_who_may_not_write_imports_nothing(town: Any) -> None:
    auditor = await town.inside("auditor")
    for path in ("/admin/allocations/import", "/admin/allocations/bulk"):
        assert await auditor.browser.status("POST", path, {"csv": HEADER}) == 403
    for path in ("/admin/allocations.csv", "/admin/audit.csv"):
        assert await auditor.browser.status("GET", path) == 200
