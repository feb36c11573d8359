"""Usage as read models: by whatever it is grouped, it is what the books say, and opens anywhere."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import chain, combinations
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from app.core.metering import UNITS
from app.core.windows import period_of
from app.ids import uuid7
from app.store.usage import DIMENSIONS
from tests.control.books import USD, Books, books_of


@pytest.fixture
async def books(plane: Any, tmp_path: Path) -> AsyncIterator[Books]:
    async with books_of(plane, tmp_path) as books:
        yield books


async def rows_of(plane: Any, query: str, **more: Any) -> list[Any]:
    rows: list[Any] = (await plane.ok("GET", f"/admin/usage?{query}", **more))["items"]
    return rows


async def busy_month(plane: Any, books: Books) -> tuple[list[Any], str]:
    """Two tenants, one of them in a pool, with all that can happen to calls; and the pool."""
    ada, bob = [await plane.tenant("m1", "m2", name=name) for name in ("Ada's", "Bob's")]
    pool = books.pool()
    books.join(ada, pool)
    price = await books.price(
        "m1", at=plane.month.start - timedelta(days=9), input_token="0.000000333"
    )
    more = {"pools": [pool], "price_id": price}
    await books.spend(ada, {"input_token": 7}, 2331, **more)
    corrected = await books.spend(ada, {"input_token": 3, "second": Decimal("0.125")}, 99, **more)
    await books.spend(bob, {"output_token": 5}, None, model="m2")
    await books.spend(bob, {"output_token": 2}, None, model="m2", endpoint="responses")
    held = await books.hold(bob, 50, USD, price_id=price)
    plane.sql("UPDATE holds SET deadline = now() WHERE call_id = %s", held[0].id)
    await books.ledger.recover(held[0].id, held[0].account_ids)
    await books.settle(held, {"input_token": 9}, USD // 3)
    await books.price("m2", at=plane.month.start - timedelta(days=9), output_token="0.000000007")
    for body in (
        {"meter": "usd", "amount": "1.000000001", "call_id": corrected},
        {"meter": "usd", "amount": "2.5", "allocation_id": ada.allocation["id"]},
        {"meter": "tokens", "amount": 40, "allocation_id": ada.allocation["id"]},
        {"meter": "usd", "amount": "-0.000000010", "allocation_id": bob.allocation["id"]},
    ):
        await plane.ok("POST", "/admin/adjustments", body | {"reason": "x"})
    done = await plane.ok(
        "POST", "/admin/repricing", {"model": "m2", "reason": "x", "dry_run": False}
    )
    assert done["calls_changed"] == 2
    return [ada, bob], pool


async def test_sums_over_any_grouping_are_what_the_accounts_have(plane: Any, books: Books) -> None:
    tenants, pool = await busy_month(plane, books)
    accounts = {}
    for tenant in tenants:
        [(tokens, usd)] = books.used(tenant.allocation["id"])
        accounts[tenant.allocation["id"]] = (tokens, usd)
    ada = tenants[0].allocation["id"]
    assert accounts[ada] == (50, Decimal("3.500002431"))
    assert books.used(pool) == [accounts[ada]]
    everything = tuple(
        sum(one, start=type(one[0])()) for one in zip(*accounts.values(), strict=True)
    )
    groupings = chain(combinations(DIMENSIONS, 1), combinations(DIMENSIONS, 2), [DIMENSIONS])
    for grouping in groupings:
        rows = await rows_of(plane, f"group_by={','.join(grouping)}")
        tokens = sum(row["tokens"] for row in rows)
        usd = sum(Decimal(row["cost_usd"]) for row in rows)
        assert (tokens, usd) == everything, grouping
        assert sum(row["unpriced_calls"] for row in rows) == 0, grouping
        assert sum(row["calls"] for row in rows) == 5, grouping
    for filtered, row in (
        (f"pool_id={pool}", accounts[ada]),
        (f"allocation_id={ada}", accounts[ada]),
        (f"member_id={tenants[0].member['id']}", accounts[ada]),
        (f"key_id={tenants[0].key['id']}", (10, Decimal("1.000002431"))),
        ("model=m2", (7, Decimal("0.000000049"))),
        ("endpoint=responses", (2, Decimal("0.000000014"))),
        ("endpoint=ocr", None),
    ):
        found = await rows_of(plane, f"group_by=endpoint,allocation&{filtered}")
        if row is None:
            assert found == []
        else:
            tokens = sum(one["tokens"] for one in found)
            assert (tokens, sum(Decimal(one["cost_usd"]) for one in found)) == row, filtered


async def test_quantities_are_summed_within_one_unit_and_usd_across_all(
    plane: Any, books: Books
) -> None:
    tenants, pool = await busy_month(plane, books)
    answer = await plane.call("GET", f"/admin/usage?group_by=pool&pool_id={pool}")
    assert '"second":0.125' in answer.text
    [row] = answer.json()["items"]
    assert row == {
        "pool_id": pool,
        "pool_name": pool,
        "calls": 2,
        "refused_calls": 0,
        "unpriced_calls": 0,
        "tokens": 50,
        "cost_usd": "3.500002431",
        "units": {"input_token": 10, "second": 0.125},
    }
    rows = {row["pool_id"]: row for row in await rows_of(plane, "group_by=pool")}
    # The recovered call was booked without its usage.
    assert rows[None]["units"] == {"output_token": 7}
    assert rows[None]["pool_name"] is None
    for seconds in ("12.345678901234567891", "0.654321098765432110"):
        usage = f'{{"second": {seconds}, "page": 999999999999}}'
        plane.book(tenants[0], usage=usage, price_id=uuid7())
    answer = await plane.call("GET", f"/admin/usage?key_id={tenants[0].key['id']}")
    [row] = json.loads(answer.text, parse_float=Decimal)["items"]
    assert row["units"] == {
        "input_token": 10,
        "page": 1999999999998,
        "second": Decimal("13.125000000000000001"),
    }


async def test_a_correction_without_a_call_is_of_its_allocation_and_the_day_it_was_made(
    plane: Any, books: Books
) -> None:
    tenant = await plane.tenant("m1")
    body = {"meter": "usd", "amount": "1", "reason": "x"}
    await plane.ok("POST", "/admin/adjustments", body | {"allocation_id": tenant.allocation["id"]})
    [row] = await rows_of(plane, f"group_by={','.join(DIMENSIONS)}")
    hour = datetime.fromisoformat(row.pop("hour"))
    assert hour <= datetime.now(UTC) < hour + timedelta(minutes=61)
    assert row == {
        "day": hour.date().isoformat(),
        "member_id": tenant.member["id"],
        "member_email": tenant.member["email"],
        "allocation_id": tenant.allocation["id"],
        "allocation_name": "m1",
        "pool_id": None,
        "pool_name": None,
        "key_id": None,
        "key_name": None,
        "model": None,
        "endpoint": None,
        "calls": 0,
        "refused_calls": 0,
        "unpriced_calls": 0,
        "tokens": 0,
        "cost_usd": "1.00",
        "units": {},
    }
    answer = await plane.call("GET", "/admin/usage.csv?group_by=key,model,hour")
    [row] = csv.DictReader(io.StringIO(answer.text))
    assert (row["key_id"], row["model"], row["cost_usd"]) == ("", "", "1.00")
    assert datetime.fromisoformat(row["hour"]) == hour
    assert await rows_of(plane, "to=2025-01-01") == []
    assert await rows_of(plane, f"from={(hour + timedelta(days=2)).date().isoformat()}") == []


async def test_members_see_their_own_sums_and_nobody_elses(plane: Any, books: Books) -> None:
    [ada, bob], pool = await busy_month(plane, books)
    mine = (await plane.ok("GET", "/me/usage?group_by=member,pool", bearer=ada.secret))["items"]
    assert [(row["member_id"], row["pool_id"], row["tokens"]) for row in mine] == [
        (ada.member["id"], pool, 50)
    ]
    for filtered in (f"allocation_id={bob.allocation['id']}", "endpoint=responses", "model=m2"):
        page = await plane.ok("GET", f"/me/usage?{filtered}", bearer=ada.secret)
        assert page["items"] == []
    answer = await plane.call("GET", "/me/usage.csv?group_by=model", bearer=ada.secret)
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [(row["model"], row["tokens"], row["input_token"]) for row in rows] == [
        ("m1", "10", "10"),
        ("", "40", "0"),
    ]
    for path in ("/me/usage", "/me/usage.csv"):
        answer = await plane.call("GET", f"{path}?member_id={bob.member['id']}", bearer=ada.secret)
        assert answer.status_code == 400
    for path in ("/admin/usage", "/admin/usage.csv", "/admin/usage.json"):
        assert (await plane.call("GET", path, bearer=ada.secret)).status_code == 403


@pytest.mark.parametrize("path", ["/admin/usage", "/admin/usage.csv", "/admin/usage.json"])
@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("pool_id=x", 422),
        ("endpoint=%00", 422),
        ("group_by=pool,pool", 422),
        ("group_by=week", 422),
        ("group_by=", 422),
        ("from=never", 422),
        ("pool=x", 400),
    ],
)
async def test_a_query_that_makes_no_sense_is_refused_before_anything_is_sent(
    plane: Any, path: str, query: str, status: int
) -> None:
    answer = await plane.call("GET", f"{path}?{query}")
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


async def test_the_json_file_has_what_the_page_has_and_no_end(plane: Any, books: Books) -> None:
    await busy_month(plane, books)
    query = "group_by=hour,allocation,model"
    answer = await plane.call("GET", f"/admin/usage.json?{query}")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["content-disposition"] == 'attachment; filename="usage.json"'
    page = await plane.ok("GET", f"/admin/usage?{query}")
    assert answer.json() == page
    assert len(page["items"]) > 2
    nothing = "/admin/usage.json?group_by=day&to=2020-01-01&from=2019-01-01"
    assert (await plane.call("GET", nothing)).json()["items"] == []
    tenant = await plane.tenant("m1")
    plane.sql(
        "INSERT INTO calls SELECT overlay(uuid7_floor(%s)::text placing lpad(to_hex(n), 12, '0')"
        " from 25)::uuid, 'req_test', %s, %s, %s, 'model ' || n, 'ocr', 'success', NULL, 200, now(), now(),"
        " '{\"page\": 2}', 1, n, %s, false, 0, 0, NULL, NULL, '{}' FROM generate_series(1, 12000) n",
        plane.month.start,
        tenant.allocation["id"],
        tenant.key["id"],
        tenant.member["id"],
        uuid7(),
    )
    query = f"group_by=model&key_id={tenant.key['id']}"
    items = (await plane.call("GET", f"/admin/usage.json?{query}")).json()["items"]
    assert len(items) == 12_000
    assert sum(item["units"]["page"] for item in items) == 24_000
    refused = await plane.call("GET", f"/admin/usage?{query}")
    assert "usage.json" in refused.json()["detail"]


async def test_a_pool_whose_name_is_a_formula_is_a_name_in_the_file(
    plane: Any, books: Books
) -> None:
    tenant = await plane.tenant("m1")
    pool = books.pool()
    books.join(tenant, pool)
    plane.sql("UPDATE pools SET name = '=1+1' WHERE id = %s", pool)
    plane.book(tenant, endpoint="@SUM(A1)", usage='{"page": 3, "second": 0.5}', price_id=uuid7())
    answer = await plane.call("GET", "/admin/usage.csv?group_by=pool,endpoint")
    [row] = csv.DictReader(io.StringIO(answer.text))
    assert (row["pool_name"], row["endpoint"]) == ("'=1+1", "'@SUM(A1)")
    assert (row["page"], row["second"], row["input_token"]) == ("3", "0.5", "0")
    assert row.keys() > UNITS


class TestWhereClocksChange:
    @pytest.fixture
    def zone(self) -> ZoneInfo:
        return ZoneInfo("America/New_York")

    @pytest.mark.parametrize(
        ("day", "hours"), [("2026-03-08", 23), ("2026-03-09", 24), ("2026-11-01", 25)]
    )
    async def test_a_day_has_the_hours_that_it_has(
        self, plane: Any, zone: ZoneInfo, day: str, hours: int
    ) -> None:
        tenant = await plane.tenant("m1")
        midnight = datetime.fromisoformat(day).replace(tzinfo=zone).astimezone(UTC)
        instants = [midnight + timedelta(minutes=20 * n) for n in range(-1, 26 * 3)]
        for at in instants:
            plane.book(tenant, at=at)
        query = f"group_by=day,hour&from={midnight.isoformat().replace('+', '%2B')}"
        rows = [row for row in await rows_of(plane, query) if row["day"] == day]
        assert len(rows) == hours
        assert [row["calls"] for row in rows] == [3] * hours
        expected = sorted({period_of("hour", at, zone).start for at in instants[1:]})[:hours]
        assert [datetime.fromisoformat(row["hour"]) for row in rows] == expected


class TestWhereHoursBeginAtHalfPast:
    @pytest.fixture
    def zone(self) -> ZoneInfo:
        return ZoneInfo("Asia/Kolkata")

    async def test_hours_are_those_of_the_billing_zone(self, plane: Any, zone: ZoneInfo) -> None:
        tenant = await plane.tenant("m1")
        for minute in (29, 30, 59):
            plane.book(tenant, at=datetime(2026, 1, 5, 7, minute, tzinfo=UTC))
        rows = await rows_of(plane, "group_by=hour&from=2026-01-01")
        assert [(row["hour"], row["calls"]) for row in rows] == [
            ("2026-01-05T06:30:00Z", 1),
            ("2026-01-05T07:30:00Z", 2),
        ]


async def test_what_an_account_was_brought_up_to_counts_once(plane: Any, books: Books) -> None:
    """The adjustment of a limit that was put in mid-month moves an account, and no usage."""
    tenant = await plane.tenant("m1")
    await books.spend(tenant, {"input_token": 2}, USD, price_id=uuid7())
    await plane.ok(
        "PATCH",
        f"/admin/keys/{tenant.key['id']}",
        {"limits": [{"meter": "usd", "window": "month", "amount": 5}]},
    )
    [row] = await rows_of(plane, "group_by=allocation")
    assert (row["cost_usd"], row["tokens"], row["calls"]) == ("1.00", 2, 1)
