"""Corrections: exact, once, on every account that counts, explained, and never more than there is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from app.core.ledger import account_key
from app.core.windows import Calendar
from app.ids import uuid7
from app.store import corrections
from app.store.rolling import slid_out
from tests.control.books import USD, Books, books_of

TWO = {"input_token": 2}


@pytest.fixture
async def books(plane: Any, tmp_path: Path) -> AsyncIterator[Books]:
    async with books_of(plane, tmp_path) as books:
        yield books


def ago(**time: float) -> datetime:
    return datetime.now(UTC) - timedelta(**time)


async def adjust(plane: Any, meter: str, amount: Any, **of: str) -> Any:
    body = {"meter": meter, "amount": amount, "reason": "counted twice"} | of
    return await plane.ok("POST", "/admin/adjustments", body)


async def refused(plane: Any, meter: str, amount: Any, **of: Any) -> str:
    body = {"meter": meter, "amount": amount, "reason": "counted twice"} | of
    answer = await plane.call("POST", "/admin/adjustments", body)
    assert answer.status_code == 422, answer.text
    return str(answer.json()["detail"])


async def reprice(plane: Any, model: str, **more: Any) -> Any:
    body = {"model": model, "reason": "the price was missing"} | more
    return await plane.ok("POST", "/admin/repricing", body)


# By hand


async def test_a_correction_of_a_call_counts_in_every_account_that_the_call_counts_in(
    plane: Any, books: Books
) -> None:
    tenant = await plane.tenant("m1", quota_cost_usd_per_month=5)
    await plane.ok(
        "PATCH",
        f"/admin/keys/{tenant.key['id']}",
        {"limits": [{"meter": "usd", "window": "day", "amount": 5}], "token_budget": 100},
    )
    top = books.pool()
    team = books.pool(top)
    price = await books.price("m1", input_token="1")
    other = await books.spend(tenant, TWO, 2 * USD, pools=[team, top], price_id=price)
    id = await books.spend(tenant, TWO, 2 * USD, pools=[team, top], price_id=price)
    booked = await adjust(plane, "usd", "-0.500000001", call_id=id)
    actor = "admin token ops"
    assert datetime.fromisoformat(booked.pop("created_at")) > ago(minutes=1)
    [found] = (await plane.ok("GET", f"/admin/adjustments?call_id={id}"))["items"]
    assert found.pop("created_at")
    assert booked == found
    assert booked.pop("id")
    assert booked == {
        "call_id": id,
        "allocation_id": tenant.allocation["id"],
        "kind": "correction",
        "tokens": 0,
        "cost_usd": "-0.500000001",
        "unpriced_calls": 0,
        "price_id": None,
        "actor": actor,
        "reason": "counted twice",
    }
    await adjust(plane, "tokens", -1, call_id=id)
    for owner, window in (
        (tenant.key["id"], "day"),
        (tenant.key["id"], "lifetime"),
        (tenant.allocation["id"], "month"),
        (team, "month"),
        (top, "month"),
    ):
        assert books.used(owner, window) == [(3, Decimal("3.499999999"))], (owner, window)
    call = await plane.ok("GET", f"/admin/calls/{id}")
    assert (call["cost_usd"], call["tokens"]) == ("2.00", 2)
    assert (await plane.ok("GET", f"/admin/adjustments?call_id={other}"))["items"] == []
    [first, second] = await plane.events(id)
    assert (first["event"], first["actor"], first["reason"]) == (
        "adjustment_booked",
        actor,
        "counted twice",
    )
    assert first["after"]["cost_usd"] == "-0.500000001"
    assert second["after"]["tokens"] == -1


async def test_a_correction_of_an_allocation_counts_this_month_and_in_its_pools_and_windows(
    plane: Any, books: Books
) -> None:
    tenant, other = await plane.tenant("m1"), await plane.tenant("m1")
    top = books.pool()
    team = books.pool(top)
    books.join(tenant, team)
    for owner, owner_id, window, watched in (
        ("allocation", tenant.allocation["id"], "day", False),
        ("pool", team, "lifetime", True),
    ):
        plane.sql(
            "INSERT INTO limits (owner, owner_id, meter, window_kind, amount, watched)"
            " VALUES (%s, %s, 'usd', %s, %s, %s)",
            owner,
            owner_id,
            window,
            None if watched else 10 * USD,
            watched,
        )
    # Nothing was called yet: the month's accounts begin with it.
    await adjust(plane, "usd", "3.5", allocation_id=tenant.allocation["id"])
    await books.spend(tenant, TWO, USD, pools=[team, top], price_id=uuid7())
    await adjust(plane, "tokens", 7, allocation_id=tenant.allocation["id"])
    for owner, window in (
        (tenant.allocation["id"], "month"),
        (tenant.allocation["id"], "day"),
        (team, "month"),
        (team, "lifetime"),
        (top, "month"),
    ):
        assert books.used(owner, window) == [(9, Decimal("4.5"))], (owner, window)
    assert books.used(tenant.key["id"]) == []
    assert books.used(other.allocation["id"]) == []
    card = await plane.ok("GET", f"/admin/allocations/{tenant.allocation['id']}")
    assert (card["cost_used_this_month"], card["tokens_used_this_month"]) == ("4.50", 9)
    page = f"/admin/adjustments?allocation_id={tenant.allocation['id']}"
    shown = (await plane.ok("GET", page))["items"]
    assert [(one["tokens"], one["cost_usd"], one["call_id"]) for one in shown] == [
        (7, "0.00", None),
        (0, "3.50", None),
    ]
    events = [event["event"] for event in await plane.events(tenant.allocation["id"])]
    assert events.count("adjustment_booked") == 2


async def test_a_limit_that_a_correction_passes_refuses_and_the_books_add_up(
    plane: Any, books: Books
) -> None:
    tenant = await plane.tenant("m1", quota_cost_usd_per_month=2)
    id = await books.spend(tenant, TWO, USD, price_id=uuid7())
    await adjust(plane, "usd", "4", call_id=id)
    await adjust(plane, "usd", "-2", allocation_id=tenant.allocation["id"])
    await books.assert_sound()
    card = await plane.ok("GET", f"/admin/allocations/{tenant.allocation['id']}")
    assert (card["cost_used_this_month"], card["state"]) == ("3.00", "exhausted")
    [(overrun,)] = plane.sql("SELECT overrun_nano FROM accounts WHERE owner = 'allocation'")
    assert overrun == 4 * USD


async def test_no_more_is_taken_back_than_was_used_anywhere(plane: Any, books: Books) -> None:
    tenant = await plane.tenant("m1")
    price = await books.price("m1", input_token="1")
    early = await books.spend(tenant, TWO, 2 * USD, price_id=price)
    await books.spend(tenant, TWO, 2 * USD, price_id=price)
    # A key's limit counts from where it was put: all of the day so far.
    await plane.ok(
        "PATCH",
        f"/admin/keys/{tenant.key['id']}",
        {"limits": [{"meter": "usd", "window": "day", "amount": 5}]},
    )
    said = await refused(plane, "usd", "-4.000000001", call_id=early)
    assert "at most 4.00 USD may be taken back" in said
    said = await refused(plane, "tokens", -5, allocation_id=tenant.allocation["id"])
    assert "at most 4 tokens may be taken back" in said
    assert (await plane.ok("GET", "/admin/adjustments"))["items"] == []
    await adjust(plane, "usd", "-4", call_id=early)
    assert books.used(tenant.allocation["id"]) == [(4, Decimal(0))]
    # That of the key was opened after the call, and counts it nevertheless.
    assert books.used(tenant.key["id"], "day") == [(4, Decimal(0))]


async def test_what_is_in_nobodys_books_is_not_corrected(plane: Any) -> None:
    tenant = await plane.tenant("m1")
    rejected = plane.book(tenant, outcome="rejected_inactive", usage="{}", tokens=0, cost_nano=0)
    of, nobody = {"allocation_id": tenant.allocation["id"]}, uuid7()
    assert "counts nowhere" in await refused(plane, "usd", "1", call_id=rejected)
    assert "is no call's" in await refused(plane, "usd", "1", call_id=nobody)
    assert "is no allocation's" in await refused(plane, "usd", "1", allocation_id=nobody)
    assert "not both" in await refused(plane, "usd", "1", call_id=rejected, **of)
    assert "must be given" in await refused(plane, "usd", "1")
    for amount in (
        "0",
        "NaN",
        "-Infinity",
        "0.0000000001",
        "1e9999",
        "-1e-9999",
        10**30,
        True,
        "x",
    ):
        assert await refused(plane, "usd", amount, **of)
    for amount in (0, "1.5", "NaN", 10**19, "-1e99999", True, [1]):
        assert await refused(plane, "tokens", amount, **of)
    assert "must have from 1" in await refused(plane, "usd", "1", reason="  ", **of)
    assert await refused(plane, "usd", "1", reason="\x00", **of)
    assert await refused(plane, "usd", "1", reason=None, **of)
    assert await refused(plane, "usd", "1", note="x", **of)
    assert await refused(plane, "seconds", "1", **of)
    for query in ("call_id=x", "allocation_id=1", "limit=0"):
        assert (await plane.call("GET", f"/admin/adjustments?{query}")).status_code == 422
    assert (await plane.call("GET", "/admin/adjustments?cursor=x")).status_code == 400
    assert (await plane.call("GET", "/admin/adjustments?member_id=x")).status_code == 400


async def test_the_books_take_no_more_than_fits_however_often(plane: Any, books: Books) -> None:
    tenant = await plane.tenant("m1")
    of = {"allocation_id": tenant.allocation["id"]}
    await adjust(plane, "usd", "1000000000", **of)
    assert "at most 0.00 USD" in await refused(plane, "usd", "0.01", **of)
    await adjust(plane, "usd", "-1000000000", **of)
    assert "at most 0.00 USD" in await refused(plane, "usd", "0.01", **of)
    await adjust(plane, "tokens", 10**18, **of)
    assert "at most 0 tokens" in await refused(plane, "tokens", 1, **of)


async def test_only_admins_correct_and_auditors_look(plane: Any) -> None:
    tenant = await plane.tenant("m1")
    body = {"meter": "usd", "amount": "1", "reason": "x", "call_id": uuid7()}
    for path in ("/admin/adjustments", "/admin/repricing"):
        for bearer in (tenant.secret, None):
            answer = await plane.call("POST", path, body, bearer=bearer)
            assert answer.status_code in (401, 403)
    answer = await plane.call("GET", "/admin/adjustments", bearer=tenant.secret)
    assert answer.status_code == 403


async def test_adjustments_are_walked_in_the_order_in_which_they_were_made(
    plane: Any, books: Books
) -> None:
    tenant = await plane.tenant("m1")
    price = await books.price("m1", input_token="1")
    held = await books.hold(tenant, 5, 5 * USD, price_id=price)
    id = held[0].id
    plane.sql("UPDATE holds SET deadline = now() WHERE call_id = %s", id)
    assert await books.ledger.recover(id, held[0].account_ids) == "booked"
    made = [(await adjust(plane, "tokens", n, call_id=id))["id"] for n in range(1, 4)]
    await books.settle(held, TWO, 2 * USD)
    made.append((await adjust(plane, "tokens", 9, allocation_id=tenant.allocation["id"]))["id"])
    seen: list[Any] = []
    cursor = ""
    while True:
        page = await plane.ok("GET", f"/admin/adjustments?limit=2{cursor}")
        seen += page["items"]
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    seen.reverse()
    assert [one["kind"] for one in seen] == ["correction"] * 3 + ["late_settlement", "correction"]
    assert [one["id"] for one in seen if one["kind"] == "correction"] == made
    assert (seen[3]["tokens"], seen[3]["cost_usd"]) == (-3, "-3.00")
    assert {one["allocation_id"] for one in seen} == {tenant.allocation["id"]}


async def test_what_has_slid_out_of_a_rolling_window_is_corrected_where_it_went(
    plane: Any, books: Books
) -> None:
    tenant = await plane.tenant("m1")
    price = await books.price("m1", input_token="1")
    calendar = Calendar(plane.zone)
    key = account_key(
        "key", tenant.key["id"], "rolling:2h", calendar.period("rolling:2h", plane.month.start)
    )
    plane.sql(
        "INSERT INTO limits (owner, owner_id, meter, window_kind, amount)"
        " VALUES ('key', %s, 'usd', 'rolling:2h', %s)",
        tenant.key["id"],
        50 * USD,
    )
    now = datetime.now(UTC)
    gone = await books.spend(tenant, TWO, 2 * USD, price_id=price, at=now - timedelta(hours=3))
    await books.spend(tenant, {"input_token": 3}, 3 * USD, price_id=price, at=now)
    plane.sql(
        "UPDATE accounts SET slid_to = %s, slid_tokens = 2, slid_nano = %s WHERE id = %s",
        now - timedelta(hours=2),
        2 * USD,
        key.id,
    )
    assert "at most 2.00 USD" in await refused(plane, "usd", "-2.01", call_id=gone)
    await adjust(plane, "usd", "-0.5", call_id=gone)
    await adjust(plane, "tokens", 4, call_id=gone)
    slid = plane.sql("SELECT slid_tokens, slid_nano FROM accounts WHERE id = %s", key.id)
    assert slid == [(6, 3 * USD // 2)]
    assert books.used(tenant.key["id"], "rolling:2h") == [(3, Decimal(3))]


async def test_what_a_correction_crosses_is_told_once_as_of_the_topped_up_limit(
    plane: Any, books: Books
) -> None:
    tenant = await plane.tenant("m1", quota_cost_usd_per_month=2)
    of = tenant.allocation["id"]
    destination, rules = uuid7(), {"half": uuid7(), "full": uuid7(), "off": uuid7()}
    plane.sql(
        "INSERT INTO destinations (id, name, kind, address) VALUES (%s, 'x', 'email', 'a@b.c')",
        destination,
    )
    for name, threshold in (("half", 5000), ("full", 10_000), ("off", 100)):
        plane.sql(
            "INSERT INTO alert_rules (id, destination_id, owner, owner_id, meter, window_kind,"
            " threshold, percent, enabled) VALUES (%s, %s, 'allocation', %s, 'usd', 'month', %s,"
            " true, %s)",
            rules[name],
            destination,
            of,
            threshold,
            name != "off",
        )
    plane.sql(
        "INSERT INTO top_ups (id, owner_id, meter, amount, starts_at, expires_at, reason, actor)"
        " VALUES (%s, %s, 'usd', %s, now(), now() + interval '1 hour', 'x', 'x')",
        uuid7(),
        of,
        2 * USD,
    )

    def events() -> list[Any]:
        return plane.sql("SELECT kind, rule_id::text, body::jsonb FROM events ORDER BY 1, 2")

    await adjust(plane, "usd", "1.99", allocation_id=of)
    assert events() == []
    await adjust(plane, "usd", "0.01", allocation_id=of)
    [(kind, rule, body)] = events()
    assert (kind, rule) == ("cost_threshold_crossed", rules["half"])
    assert (body["total_cost_usd"], body["limit"], body["threshold"]) == ("2.00", "4.00", "2.00")
    assert (body["allocation_id"], body["key_id"]) == (of, None)
    await adjust(plane, "usd", "-1", allocation_id=of)
    await adjust(plane, "usd", "5", allocation_id=of)
    assert [(kind, rule) for kind, rule, _ in events()] == [
        ("allocation_exhausted", None),
        *(("cost_threshold_crossed", rule) for rule in sorted((rules["half"], rules["full"]))),
    ]


# Pricing again


async def test_an_unpriced_model_is_priced_previewed_and_booked_once(
    plane: Any, books: Books
) -> None:
    ada, bob = await plane.tenant("m1", quota_cost_usd_per_month=5), await plane.tenant("m1")
    calls = [await books.spend(ada, TWO, None) for _ in range(2)]
    await books.spend(bob, {"input_token": 1, "page": 1}, None)
    await books.spend(bob, {"input_token": 4}, None)
    assert (await reprice(plane, "m1"))["still_unpriced"] == 4
    price = await books.price("m1", at=ago(hours=1), input_token="0.5")
    expected = {
        "model": "m1",
        "dry_run": True,
        "calls": 4,
        "calls_changed": 3,
        "still_unpriced": 1,
        "usage_unknown": 0,
        "difference_usd": "4.00",
        "allocations": [
            {"allocation_id": tenant.allocation["id"], "calls_changed": n, "difference_usd": "2.00"}
            for tenant, n in ((ada, 2), (bob, 1))
        ],
    }
    preview = await reprice(plane, "m1")
    assert datetime.fromisoformat(preview.pop("from")) == plane.month.start
    assert datetime.fromisoformat(preview.pop("to")) > ago(minutes=1)
    assert preview == expected
    assert (await plane.ok("GET", "/admin/adjustments"))["items"] == []
    assert books.used(ada.allocation["id"]) == [(4, Decimal(0))]
    done = await reprice(plane, "m1", dry_run=False)
    assert {name: done[name] for name in expected} == expected | {"dry_run": False}
    for tenant, tokens, unpriced in ((ada, 4, 0), (bob, 5, 1)):
        card = await plane.ok("GET", f"/admin/allocations/{tenant.allocation['id']}")
        assert card["cost_used_this_month"] == "2.00"
        assert card["tokens_used_this_month"] == tokens
        assert card["unpriced_calls_this_month"] == unpriced
    [shown] = (await plane.ok("GET", f"/admin/adjustments?call_id={calls[0]}"))["items"]
    assert (shown["kind"], shown["cost_usd"], shown["unpriced_calls"], shown["price_id"]) == (
        "repriced",
        "1.00",
        -1,
        price,
    )
    assert (shown["reason"], shown["actor"]) == ("the price was missing", "admin token ops")
    call = await plane.ok("GET", f"/admin/calls/{calls[0]}")
    assert (call["cost_usd"], call["price_id"]) == (None, None)
    [event] = (await plane.events("m1"))[-1:]
    assert (event["event"], event["after"]["calls_changed"], event["after"]["difference_usd"]) == (
        "calls_repriced",
        3,
        "4.00",
    )
    again = await reprice(plane, "m1", dry_run=False)
    assert (again["calls"], again["calls_changed"], again["difference_usd"]) == (4, 0, "0.00")
    assert len(await plane.events("m1")) == 2


async def test_a_wrong_price_is_made_good_in_the_month_and_windows_the_calls_are_of(
    plane: Any, books: Books
) -> None:
    tenant = await plane.tenant("m1")
    wrong = await books.price("m1", at=plane.month.start - timedelta(days=40), input_token="2")
    last = plane.month.start - timedelta(days=3)
    for at in (last, datetime.now(UTC)):
        await books.spend(tenant, TWO, 4 * USD, price_id=wrong, at=at)
    await plane.ok(
        "PATCH",
        f"/admin/keys/{tenant.key['id']}",
        {"limits": [{"meter": "usd", "window": "lifetime", "amount": 50}]},
    )
    assert books.used(tenant.key["id"], "lifetime") == [(4, Decimal(8))]
    await books.price("m1", at=plane.month.start - timedelta(days=39), input_token="1.5")
    this_month = await reprice(plane, "m1", dry_run=False)
    assert (this_month["calls"], this_month["difference_usd"]) == (1, "-1.00")
    assert books.used(tenant.allocation["id"]) == [(2, Decimal(4)), (2, Decimal(3))]
    everything = {
        "from": (plane.month.start - timedelta(days=40)).date().isoformat(),
        "dry_run": False,
    }
    assert (await reprice(plane, "m1", **everything))["calls_changed"] == 1
    assert books.used(tenant.allocation["id"]) == [(2, Decimal(3)), (2, Decimal(3))]
    # Opened after both calls: it counts them, so it counts what is corrected of them.
    assert books.used(tenant.key["id"], "lifetime") == [(4, Decimal(6))]
    until = {"to": last.date().isoformat()} | everything
    assert (await reprice(plane, "m1", **until))["calls"] == 0


async def test_a_rolling_window_that_was_opened_after_the_calls_slides_by_what_was_corrected(
    plane: Any, books: Books
) -> None:
    tenant = await plane.tenant("m1")
    await books.spend(tenant, TWO, None, at=ago(minutes=59))
    body = {"limits": [{"meter": "usd", "window": "rolling:1h", "amount": 50}]}
    await plane.ok("PATCH", f"/admin/keys/{tenant.key['id']}", body)
    await books.price("m1", at=ago(hours=2), input_token="1")
    everything = {"from": ago(days=1).isoformat(), "dry_run": False}
    assert (await reprice(plane, "m1", **everything))["difference_usd"] == "2.00"
    assert books.used(tenant.key["id"], "rolling:1h") == [(2, Decimal(2))]
    card = await plane.ok("GET", f"/admin/allocations/{tenant.allocation['id']}")
    assert card["unpriced_calls_this_month"] == 0
    shown = await plane.ok("GET", f"/admin/adjustments?allocation_id={tenant.allocation['id']}")
    assert sorted((one["cost_usd"], one["unpriced_calls"]) for one in shown["items"]) == [
        ("0.00", -1),
        ("2.00", 0),
    ]
    usage = (await plane.ok("GET", f"/admin/usage?from={ago(days=1).date()}"))["items"]
    assert [(row["cost_usd"], row["unpriced_calls"]) for row in usage] == [("2.00", 0)]
    # As if an hour had passed: the call is of an hour before, and so is what was booked for it.
    plane.sql(
        "UPDATE accounts SET slid_to = slid_to - interval '1 hour' WHERE window_kind = 'rolling:1h'"
    )
    plane.sql("UPDATE accounts SET window_kind = 'rolling:0h' WHERE window_kind = 'rolling:1h'")
    [(id,)] = plane.sql("SELECT id::text FROM accounts WHERE window_kind = 'rolling:0h'")
    async with plane.deps.database.snapshot() as connection:
        assert await slid_out(connection, [id]) == {id: (2, 2 * USD)}


async def test_a_call_that_was_free_all_along_is_unpriced_no_more(plane: Any, books: Books) -> None:
    tenant = await plane.tenant("m1")
    id = await books.spend(tenant, TWO, None)
    await books.price("m1", at=ago(hours=1), input_token="0")
    for changed in (1, 0):
        done = await reprice(plane, "m1", dry_run=False)
        assert (done["calls_changed"], done["difference_usd"]) == (changed, "0.00")
    [shown] = (await plane.ok("GET", f"/admin/adjustments?call_id={id}"))["items"]
    assert (shown["cost_usd"], shown["unpriced_calls"]) == ("0.00", -1)
    card = await plane.ok("GET", f"/admin/allocations/{tenant.allocation['id']}")
    assert card["unpriced_calls_this_month"] == 0


async def test_calls_whose_usage_is_not_known_are_told_of_and_left(
    plane: Any, books: Books
) -> None:
    tenant = await plane.tenant("m1")
    price = await books.price("m1", at=ago(hours=2), input_token="1")
    recovered = [await books.hold(tenant, 5, 5 * USD, price_id=price) for _ in range(2)]
    for facts, _ in recovered:
        plane.sql("UPDATE holds SET deadline = now() WHERE call_id = %s", facts.id)
        assert await books.ledger.recover(facts.id, facts.account_ids) == "booked"
    await books.settle(recovered[0], TWO, 2 * USD)
    await books.spend(
        tenant, {"output_token": 3, "second": 9}, 99, price_id=price, endpoint="realtime"
    )
    await books.price("m1", at=ago(hours=1), input_token="3")
    done = await reprice(plane, "m1", dry_run=False)
    assert (done["calls"], done["usage_unknown"], done["calls_changed"]) == (3, 3, 0)
    assert books.used(tenant.allocation["id"]) == [(10, Decimal("7.000000099"))]


async def test_two_runs_at_once_over_many_batches_book_each_call_once(
    plane: Any, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corrections, "BATCH", 7)
    tenant = await plane.tenant("m1")
    for _ in range(30):
        await books.spend(tenant, TWO, None)
    await books.price("m1", at=ago(hours=1), input_token="0.01")
    runs = [reprice(plane, "m1", dry_run=False) for _ in range(2)]
    calls = [books.spend(tenant, TWO, None) for _ in range(10)]
    first, second, *_ = await asyncio.gather(*runs, *calls)
    assert first["calls_changed"] + second["calls_changed"] >= 30
    rest = await reprice(plane, "m1", dry_run=False)
    changed = sum(run["calls_changed"] for run in (first, second, rest))
    assert changed == 40
    assert books.used(tenant.allocation["id"]) == [(80, Decimal("0.8"))]
    twice = "SELECT call_id FROM adjustments GROUP BY 1 HAVING count(*) > 1"
    assert plane.sql(twice) == []


async def test_a_repricing_that_cannot_be_is_refused(plane: Any, books: Books) -> None:
    tenant = await plane.tenant("m1")
    for body in (
        {"model": "m2"},
        {"model": ""},
        {"model": "m1", "reason": " "},
        {"model": "m1", "from": "yesterday"},
        {"model": "m1", "from": "2026-02-01", "to": "2026-02-01"},
        {"model": "m1", "from": "2200-02-01"},
        {"model": "m1", "dry_run": 1},
        {"model": "m1", "since": "2026-02-01"},
    ):
        sent = {"reason": "x"} | body
        answer = await plane.call("POST", "/admin/repricing", sent)
        assert answer.status_code == 422, body
    for _ in range(12):
        await books.spend(tenant, {"page": 9 * 10**11}, None)
    await books.price("m1", at=ago(hours=1), page="1000")
    answer = await plane.call(
        "POST", "/admin/repricing", {"model": "m1", "reason": "x", "dry_run": False}
    )
    assert answer.status_code == 422
    assert "more than the books take" in answer.json()["detail"]
    assert books.used(tenant.allocation["id"]) == [(0, Decimal(0))]
