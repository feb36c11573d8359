"""Limits that change while calls run: nothing is missed, nobody waits for long, nothing locks out.

Each test is a way in which this went wrong once, or could.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from sqlalchemy import event

from app.core.ledger import Actual, CallFacts, Demand, Refusal, Settlement
from app.ids import uuid7
from app.store.ledger import Ledger
from app.store.reconcile import reconcile
from app.store.spool import Spool
from tests.control.books import Books


@pytest.fixture
async def books(plane: Any, tmp_path: Path) -> AsyncIterator[Books]:
    ledger = Ledger(plane.url, Spool(tmp_path))
    await ledger.start()
    yield Books(plane, ledger)
    await ledger.stop()
    ledger.spool.close()


async def limit(plane: Any, tenant: Any, *limits: tuple[str, str, Any]) -> Any:
    """Set the limits of a tenant's key."""
    listed = [{"meter": meter, "window": window, "amount": n} for meter, window, n in limits]
    return await plane.ok("PATCH", f"/admin/keys/{tenant.key['id']}", {"limits": listed})


def tokens(books: Books, owner_id: str, window: str = "month") -> int:
    """Return what an owner has used, all told."""
    [(used, _)] = books.used(owner_id, window)
    return int(used)


@contextlib.contextmanager
def statements(plane: Any) -> Iterator[list[str]]:
    """Collect what the control plane asks of the database."""
    said: list[str] = []
    engine = plane.deps.database.engine.sync_engine

    def note(_: Any, __: Any, statement: str, *more: Any) -> None:
        said.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield said
    finally:
        event.remove(engine, "before_cursor_execute", note)


async def sound(plane: Any) -> None:
    found = await reconcile(plane.url, at_rest=True)
    # Prices are nothing to these calls.
    assert [str(one) for one in found if one.what != "price version"] == []


def facts_of(tenant: Any, path: Any, at: datetime) -> CallFacts:
    return CallFacts(
        uuid7(at),
        "req",
        tenant.allocation["id"],
        tenant.key["id"],
        tenant.member["id"],
        "m1",
        "chat/completions",
        None,
        at,
        tuple(key.id for key in path),
    )


async def test_a_limit_that_is_added_while_a_call_runs_holds_for_its_extensions(
    plane: Any, books: Books
) -> None:
    tenant = await plane.tenant("m1")
    held = await books.hold(tenant, 5, 5)
    facts, path = held
    await limit(plane, tenant, ("tokens", "day", 10))
    refused = await books.ledger.extend(facts.id, Demand(path, 1000, True, 1000, 1, None))
    assert isinstance(refused, Refusal)
    assert refused.shortfall is not None
    assert (refused.shortfall.owner, refused.shortfall.held) == ("key", 5)
    assert not isinstance(
        await books.ledger.extend(facts.id, Demand(path, 5, True, 5, 1, None)), Refusal
    )
    await books.settle(held, {"input_token": 10}, 10)
    assert tokens(books, tenant.key["id"], "day") == 10
    await sound(plane)


async def test_a_call_that_was_let_through_counts_in_a_limit_added_before_it_is_booked(
    plane: Any, books: Books
) -> None:
    """It has no hold that the limit could join: it is looked for when it is booked."""
    tenant = await plane.tenant("m1")
    at = datetime.now(UTC)
    path = books.path(tenant, at)
    facts = facts_of(tenant, path, at)
    await limit(plane, tenant, ("tokens", "rolling:1h", 10), ("tokens", "day", 10))
    actual = Actual({"input_token": 100}, 100, 100)
    await books.ledger.settle(Settlement(facts, "success", 200, actual, datetime.now(UTC)), path)
    assert tokens(books, tenant.key["id"], "rolling:1h") == 100
    assert tokens(books, tenant.key["id"], "day") == 100
    [(counted,)] = plane.sql("SELECT cardinality(account_ids) FROM calls")
    assert counted == 3
    await sound(plane)


async def test_a_call_let_through_by_a_replica_that_knows_of_no_limit_counts_in_it(
    plane: Any, books: Books
) -> None:
    """Cut off from the database, it goes by a directory in which there is none yet."""
    tenant = await plane.tenant("m1")
    former = books.path(tenant, datetime.now(UTC))
    await limit(plane, tenant, ("tokens", "rolling:1h", 10), ("tokens", "day", 10))
    at = datetime.now(UTC)
    facts = facts_of(tenant, former, at)
    actual = Actual({"input_token": 100}, 100, 100)
    await books.ledger.settle(Settlement(facts, "success", 200, actual, at), former)
    assert tokens(books, tenant.key["id"], "rolling:1h") == 100
    assert tokens(books, tenant.key["id"], "day") == 100
    await sound(plane)


async def test_a_late_settlement_reaches_a_limit_added_after_the_recovery(
    plane: Any, books: Books
) -> None:
    tenant = await plane.tenant("m1")
    held = await books.hold(tenant, 100, 0)
    facts, _ = held
    books.ledger.live.pop(facts.id, None)
    plane.sql("UPDATE holds SET deadline = now() - interval '1 minute'")
    assert await books.ledger.recover(facts.id, facts.account_ids) == "booked"
    await limit(plane, tenant, ("tokens", "day", 1000))
    assert tokens(books, tenant.key["id"], "day") == 100
    await books.settle(held, {"input_token": 900}, 0)
    assert tokens(books, tenant.allocation["id"]) == 900
    assert tokens(books, tenant.key["id"], "day") == 900
    await sound(plane)


async def test_edits_of_many_limits_and_calls_never_wait_for_each_other_in_a_circle(
    plane: Any, books: Books
) -> None:
    tenant = await plane.tenant("m1")
    windows = ("hour", "day", "month", "lifetime", "rolling:5h", "rolling:24h")

    async def edit(n: int) -> None:
        await limit(plane, tenant, *(("tokens", window, 10**9 + n) for window in windows))

    await edit(0)
    done = False

    async def traffic() -> int:
        made = 0
        while not done:
            try:
                held = await books.hold(tenant, 1, 1)
            except AssertionError:
                # Prepared on what was known before the edit.
                continue
            await books.settle(held, {"input_token": 1}, 1)
            made += 1
        return made

    running = [asyncio.create_task(traffic()) for _ in range(4)]
    for n in range(1, 16):
        await edit(n)
        await asyncio.sleep(0.02)
    done = True
    made = await asyncio.gather(*running)
    assert sum(made) > 15
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    await asyncio.sleep(1.1)
    assert plane.sql(deadlocks) == [(0,)]
    await sound(plane)


async def test_many_windows_are_opened_with_one_look_at_what_was_called(
    plane: Any, books: Books
) -> None:
    tenant = await plane.tenant("m1")
    plane.sql("SELECT ensure_calls_partition(now() - interval '2 hours')")
    plane.sql(
        "INSERT INTO calls (id, request_id, allocation_id, key_id, member_id, model, endpoint,"
        " outcome, status_code, started_at, finished_at, usage, tokens, cost_nano, estimated,"
        " account_ids, overrun_tokens, overrun_nano)"
        " SELECT uuid7(at), 'r', %s, %s, %s, 'm1', 'chat/completions', 'success', 200, at, at,"
        " '{\"input_token\": 1}', 1, 1, false, '{}', 0, 0"
        " FROM (SELECT now() - g * interval '60 millisecond' AS at"
        "       FROM generate_series(1, 100000) g) x",
        tenant.allocation["id"],
        tenant.key["id"],
        tenant.member["id"],
    )

    with statements(plane) as said:
        windows = [("tokens", f"rolling:{n}h", 10**9) for n in range(1, 21)]
        await limit(plane, tenant, *windows)
    # What is said of the pace of its spending afterwards is another look, at a week.
    looks = [one for one in said if "FILTER" in one and "usd_week" not in one]
    assert len(looks) == 1, looks
    # 60 ms apart: an hour has 60,000, two have all.
    assert tokens(books, tenant.key["id"], "rolling:2h") == 100_000
    used = tokens(books, tenant.key["id"], "rolling:1h")
    assert used == pytest.approx(60_000, abs=1000)


async def test_however_many_caps_are_changed_calls_wait_for_a_few_statements(
    plane: Any, books: Books
) -> None:
    """Accounts are locked last, all at once: not one after the other while rows are worked on."""
    tenants = [await plane.tenant("m1") for _ in range(12)]
    body = {
        "ids": [tenant.allocation["id"] for tenant in tenants],
        "changes": {"quota_tokens_per_month": 100, "quota_cost_usd_per_month": "5"},
        "reason": "a new term",
    }
    with statements(plane) as said:
        done = await plane.ok("POST", "/admin/allocations/bulk", body)
    assert done["applied"]
    locks = [n for n, one in enumerate(said) if "FROM accounts" in one and "FOR UPDATE" in one]
    assert len(locks) == 1
    # The limits, and how it stands afterwards.
    assert len(said) - locks[0] < 12, said[locks[0] :]
    caps = plane.sql("SELECT meter, amount, count(*) FROM limits GROUP BY 1, 2 ORDER BY 1")
    assert caps == [("tokens", 100, 12), ("usd", 5 * 10**9, 12)]
    body["changes"] = {"quota_tokens_per_month": None}
    await plane.ok("POST", "/admin/allocations/bulk", body)
    assert plane.sql("SELECT count(amount) FROM limits WHERE meter = 'tokens'") == [(0,)]
    body["changes"] = {"billing_timezone": "Asia/Tokyo"}
    refused = await plane.call("POST", "/admin/allocations/bulk", body)
    assert refused.json()["errors"][0]["field"] == "changes.billing_timezone"


async def test_calls_that_used_nothing_are_not_looked_through_again_and_again(
    plane: Any, books: Books
) -> None:
    tenant = await plane.tenant("m1")
    await limit(plane, tenant, ("tokens", "rolling:1h", 0))
    plane.sql("UPDATE accounts SET slid_to = now() - interval '3 hours' WHERE slid_to IS NOT NULL")
    at = datetime.now(UTC)
    path = books.path(tenant, at)
    [(version,)] = plane.sql("SELECT directory_version FROM installation")
    demand = Demand(path, 1, True, 1, 1, None)
    assert isinstance(
        await books.ledger.reserve(facts_of(tenant, path, at), demand, version), Refusal
    )
    [(begins,)] = plane.sql("SELECT slid_to FROM accounts WHERE slid_to IS NOT NULL")
    assert at - begins < timedelta(hours=1, seconds=5)


async def test_a_key_that_changes_allocations_and_limits_at_once_misses_no_call(
    plane: Any, books: Books
) -> None:
    """A call through the allocation that it leaves begins before the edit, or is sent back."""
    tenant = await plane.tenant("m1")
    other = await plane.allocation(tenant.member["id"], ["m1"], name="second")
    blocker = await psycopg.AsyncConnection.connect(plane.url)
    await blocker.execute("LOCK TABLE limits IN SHARE MODE")
    body = {
        "allocation_ids": [other["id"]],
        "limits": [{"meter": "tokens", "window": "rolling:1h", "amount": 10}],
    }
    edit = asyncio.create_task(plane.ok("PATCH", f"/admin/keys/{tenant.key['id']}", body))
    await asyncio.sleep(0.7)
    begins = asyncio.create_task(books.hold(tenant, 100, 0))
    await asyncio.sleep(0.3)
    await blocker.rollback()
    await blocker.close()
    await edit
    with pytest.raises(AssertionError):
        # The directory that it was prepared on is out of date.
        await begins
    await sound(plane)


async def test_a_change_of_zone_takes_watched_days_along(plane: Any, books: Books) -> None:
    tenant = await plane.tenant("m1")
    body = {"name": "d", "kind": "webhook", "address": "https://8.8.8.8/x", "enabled": False}
    destination = await plane.ok("POST", "/admin/destinations", body)
    await plane.ok(
        "POST",
        "/admin/alert-rules",
        {
            "destination_id": destination["id"],
            "owner": "allocation",
            "owner_id": tenant.allocation["id"],
            "meter": "tokens",
            "window": "day",
            "threshold": 100,
        },
    )
    await books.spend(tenant, {"input_token": 90}, 0)
    # Where the day did not begin just now: so all of it falls into the day that it is there.
    names = ("Pacific/Kiritimati", "Pacific/Niue")
    name = next(one for one in names if datetime.now(ZoneInfo(one)).hour > 0)
    zone = {"billing_timezone": name}
    await plane.ok("PATCH", f"/admin/allocations/{tenant.allocation['id']}", zone)
    days = plane.sql("SELECT used_tokens FROM accounts WHERE window_kind = 'day'")
    assert days == [(90,), (90,)]
    await sound(plane)


async def test_after_a_change_of_zone_a_correction_reaches_what_counts_the_call(
    plane: Any, books: Books
) -> None:
    tenant = await plane.tenant("m1", quota_tokens_per_month=1000)
    await books.spend(tenant, {"input_token": 50}, 0)
    zone = {"billing_timezone": "Asia/Tokyo"}
    await plane.ok("PATCH", f"/admin/allocations/{tenant.allocation['id']}", zone)
    at = datetime.now(UTC)
    owners = [("key", tenant.key["id"]), ("allocation", tenant.allocation["id"])]
    path = books.paths.of(owners, at, {}, "Asia/Tokyo")
    facts = facts_of(tenant, path, at)
    [(version,)] = plane.sql("SELECT directory_version FROM installation")
    await books.ledger.reserve(facts, Demand(path, 200, True, 0, 1, None), version)
    actual = Actual({"input_token": 200}, 200, 0)
    await books.ledger.settle(Settlement(facts, "success", 200, actual, at), path)
    body = {"meter": "tokens", "amount": -150, "reason": "a refund", "call_id": facts.id}
    await plane.ok("POST", "/admin/adjustments", body)
    used = dict(plane.sql("SELECT id::text, used_tokens FROM accounts WHERE owner = 'allocation'"))
    assert used.pop(path[-1].id) == 100
    assert list(used.values()) == [50], "the month that was left has never counted the call"
    await sound(plane)


async def test_replicas_that_tell_the_same_events_do_not_lock_each_other_out(
    plane: Any, books: Books, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = Ledger(plane.url, Spool(tmp_path / "other"))
    await other.start()
    tenants = [await plane.tenant("m1"), await plane.tenant("m1")]
    for batch in range(10):
        models = [f"unpriced-{batch}-{n}" for n in range(60)]
        jobs = []
        sides = ((books.ledger, tenants[0], models), (other, tenants[1], models[::-1]))
        for ledger, tenant, named in sides:
            for model in named:
                at = datetime.now(UTC)
                path = books.path(tenant, at)
                facts = facts_of(tenant, path, at)
                fields = {name: getattr(facts, name) for name in CallFacts.__struct_fields__}
                facts = CallFacts(**{**fields, "model": model})
                actual = Actual({"input_token": 1}, 1, None)
                jobs.append(ledger.settle(Settlement(facts, "success", 200, actual, at), path))
        await asyncio.gather(*jobs)
    await other.stop()
    other.spool.close()
    [(told,)] = plane.sql("SELECT count(*) FROM events WHERE kind = 'unpriced_model_seen'")
    assert told == 600
    await asyncio.sleep(1.1)
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    assert plane.sql(deadlocks) == [(0,)]


@pytest.mark.parametrize(
    "amount", ["1e1000000", "-1e1000000", "1e-1000000", "9e999999999999", "1" * 400, "NaN", "-0.5"]
)
@pytest.mark.parametrize("meter", ["tokens", "usd"])
async def test_amounts_of_any_size_are_refused_at_once(plane: Any, meter: str, amount: str) -> None:
    tenant = await plane.tenant("m1", quota_tokens_per_month=5, quota_cost_usd_per_month="5")
    one = {"meter": meter, "window": "day", "amount": amount}
    of_allocation = {"allocation_id": tenant.allocation["id"], "meter": meter, "reason": "x"}
    began = time.monotonic()
    for method, path, body in (
        ("PATCH", f"/admin/keys/{tenant.key['id']}", {"limits": [one]}),
        ("POST", "/admin/pools", {"name": "p", "limits": [one]}),
        ("POST", "/admin/top-ups", of_allocation | {"expires": "day", "amount": amount}),
    ):
        answer = await plane.call(method, path, body)
        assert answer.status_code in (400, 422), f"{path}: {answer.status_code} {answer.text}"
    answer = await plane.call("POST", "/admin/adjustments", of_allocation | {"amount": amount})
    assert answer.status_code in (400, 422), answer.text
    assert time.monotonic() - began < 5


async def test_a_member_does_not_see_what_may_be_a_secret_of_a_webhook(plane: Any) -> None:
    tenant = await plane.tenant("m1")
    url = "https://8.8.8.8/services/T0/SECRETSECRET?token=SECRETSECRET"
    alert = {"alert_threshold": 100, "alert_webhook": url}
    shown = await plane.ok("PATCH", f"/admin/keys/{tenant.key['id']}", alert)
    assert shown["alert_webhook"] == url
    keys = await plane.ok("GET", "/me/keys", bearer=tenant.secret)
    assert "SECRETSECRET" not in str(keys)
    assert keys["items"][0]["alert_webhook"] == "https://8.8.8.8/…"
