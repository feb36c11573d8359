"""The group-commit loop on PostgreSQL: concurrent calls, batches, and operations that go wrong."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool

from app.core.ledger import NOTHING, Actual, Grant, OpenDemand, OwnerKind, account_key
from app.core.refusals import Reason, Refusal
from app.core.windows import Calendar
from app.ids import uuid7
from app.store.batch import Granted, Settled, Stale, Standing
from app.store.catalogue import set_limit
from app.store.database import Database
from app.store.ledger import Ledger, LedgerUnavailable
from app.store.spool import Answer
from app.worker import Worker
from tests.ledger.world import ALLOCATION, KEY, MEMBER, OTHER, POOL, USD, Call, Rows, running, until

TEAM: tuple[tuple[OwnerKind, str], ...] = (("allocation", ALLOCATION), ("pool", POOL))


@pytest.fixture
def rows(database_url: str) -> Rows:
    return Rows(database_url)


@pytest.fixture
async def ledger(database_url: str, tmp_path: Path) -> AsyncIterator[Ledger]:
    async with running(database_url, tmp_path / "spool") as ledger:
        yield ledger


@pytest.fixture
async def second(database_url: str, tmp_path: Path) -> AsyncIterator[Ledger]:
    """The ledger of another replica."""
    async with running(database_url, tmp_path / "spool") as ledger:
        yield ledger


def granted(results: list[Any]) -> int:
    return sum(isinstance(result, Granted) for result in results)


# ----------------------------------------------------------------------------- one cap, many calls


async def assert_ten_of_64(rows: Rows, count: int) -> None:
    assert count == 10
    assert await rows.one("SELECT held_nano FROM accounts") == 10 * USD
    assert await rows.one("SELECT count(*) FROM holds") == 10
    await rows.assert_sound(at_rest=False)


async def test_64_concurrent_dollars_under_a_cap_of_ten_are_ten(rows: Rows, ledger: Ledger) -> None:
    await rows.limit("usd", 10 * USD)
    results = await asyncio.gather(*(Call().reserve(ledger) for _ in range(64)))
    await assert_ten_of_64(rows, granted(results))
    refused = [result for result in results if isinstance(result, Refusal)]
    assert {refusal.reason for refusal in refused} == {Reason.RESERVED}


async def test_64_concurrent_dollars_on_two_ledgers_are_ten(
    rows: Rows, ledger: Ledger, second: Ledger
) -> None:
    await rows.limit("usd", 10 * USD)
    calls = (Call().reserve(one) for _ in range(32) for one in (ledger, second))
    await assert_ten_of_64(rows, granted(await asyncio.gather(*calls)))


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_a_database_whose_transactions_are_stricter_by_default_changes_nothing(
    rows: Rows, database_url: str, tmp_path: Path, level: str
) -> None:
    name = await rows.one("SELECT current_database()")
    # Locks are waited for, and what was committed meanwhile is to be seen once they are won.
    await rows.all(f"ALTER DATABASE \"{name}\" SET default_transaction_isolation = '{level}' ")
    await rows.limit("usd", 10 * USD)
    async with (
        running(database_url, tmp_path / "spool") as ledger,
        running(database_url, tmp_path / "spool") as second,
    ):
        for _ in range(3):
            calls = [Call() for _ in range(64)]
            results = await asyncio.gather(
                *(call.reserve(one) for call, one in zip(calls, [ledger, second] * 32, strict=True))
            )
            assert granted(results) == 10
            assert sum(isinstance(result, Refusal) for result in results) == 54
            await asyncio.gather(
                *(
                    call.void(ledger)
                    for call, result in zip(calls, results, strict=True)
                    if isinstance(result, Granted)
                )
            )


async def test_64_concurrent_dollars_of_two_processes_are_ten(
    rows: Rows, database_url: str, tmp_path: Path
) -> None:
    await rows.limit("usd", 10 * USD)
    command = [
        sys.executable,
        "-m",
        "tests.ledger.process",
        "reserve",
        database_url,
        str(tmp_path),
        "32",
    ]
    pipe = asyncio.subprocess.PIPE
    processes = [
        await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe) for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
    printed = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
    assert [process.returncode for process in processes] == [0, 0]
    await assert_ten_of_64(rows, sum(int(out) for out, _ in printed))


async def test_a_batch_is_one_transaction_for_many_calls(rows: Rows, ledger: Ledger) -> None:
    await Call().reserve(ledger)
    batches, operations = ledger.batches, ledger.operations
    await asyncio.gather(*(Call().reserve(ledger) for _ in range(64)))
    assert ledger.operations - operations == 64
    assert ledger.batches - batches <= 2


async def test_what_a_settlement_frees_admits_a_call_of_its_batch(
    rows: Rows, ledger: Ledger
) -> None:
    await rows.limit("usd", USD)
    first, second = Call(), Call()
    assert isinstance(await first.reserve(ledger), Granted)
    reserved, settled = await asyncio.gather(second.reserve(ledger), first.void(ledger))
    assert isinstance(reserved, Granted)
    assert settled.booking == "booked"


async def test_an_answer_tells_what_is_left_under_the_tightest_limit(
    rows: Rows, ledger: Ledger
) -> None:
    await rows.limit("usd", 10 * USD)
    await rows.limit("usd", 3 * USD, "pool", POOL)
    await rows.limit("tokens", 100)
    call = Call(owners=TEAM)
    reserved = await call.reserve(ledger)
    assert isinstance(reserved, Granted)
    assert reserved.standing == Standing(remaining_tokens=90, remaining_nano=2 * USD)
    settled = await call.settle(ledger, tokens=7, nano=5 * USD)
    assert settled.standing == Standing(remaining_tokens=93, remaining_nano=0)
    alone = Call(owners=(("allocation", OTHER),))
    assert (await alone.settle(ledger)).standing == Standing(None, None)


async def test_accounts_of_a_months_first_calls_are_made_by_many_at_once(
    rows: Rows, database_url: str, tmp_path: Path
) -> None:
    """Every call brings new accounts that others bring too, in another order."""
    ids = [uuid7() for _ in range(12)]

    async def load(ledger: Ledger, turn: int) -> None:
        for n in range(10):
            owners = [ids[(turn * 5 + n * step) % 12] for step in (1, 5, 7)]
            path = tuple(("pool", id) for id in dict.fromkeys(owners))
            call = Call(owners=path, at=datetime(2026, 1 + n, 5, tzinfo=UTC))  # type: ignore[arg-type]
            assert isinstance(await call.reserve(ledger), Granted)
            assert (await call.settle(ledger)).booking == "booked"

    spool = tmp_path / "spool"
    async with (
        running(database_url, spool) as a,
        running(database_url, spool) as b,
        running(database_url, spool) as c,
    ):
        async with asyncio.timeout(30):
            await asyncio.gather(*(load((a, b, c)[n % 3], n) for n in range(24)))
    assert await rows.one("SELECT count(*) FROM calls") == 240
    await rows.assert_sound()


# --------------------------------------------------------------------------- what admission saw


async def test_a_reserve_on_an_outdated_directory_is_sent_back(
    rows: Rows, database_url: str, tmp_path: Path
) -> None:
    async with running(database_url, tmp_path) as ledger:
        version = await rows.one("SELECT directory_version FROM installation")
        call = Call()
        await rows.all("INSERT INTO members (id, email) VALUES (%s, 'ann@example.com')", MEMBER)
        assert await call.reserve(ledger, version) == Stale(version + 1)
        assert await rows.one("SELECT count(*) FROM holds") == 0
        assert isinstance(await call.reserve(ledger, version + 1), Granted)


async def one_shot_key(rows: Rows) -> int:
    """Make `KEY` and return the version of the directory with it."""
    await rows.all("INSERT INTO members (id, email) VALUES (%s, 'ann@example.com')", MEMBER)
    await rows.all(
        "INSERT INTO keys (id, member_id, name, digest, hint, allocation_ids, one_shot)"
        " VALUES (%s, %s, 'once', 'digest', 'sg_', '{}', true)",
        KEY,
        MEMBER,
    )
    version: int = await rows.one("SELECT directory_version FROM installation")
    return version


async def test_a_one_shot_key_opens_one_call_of_32(
    rows: Rows, ledger: Ledger, second: Ledger
) -> None:
    version = await one_shot_key(rows)
    calls = (
        Call().reserve(one, version, one_shot=True) for _ in range(16) for one in (ledger, second)
    )
    results = await asyncio.gather(*calls)
    assert granted(results) == 1
    refused = [result for result in results if isinstance(result, Refusal)]
    assert {refusal.reason for refusal in refused} == {Reason.INVALID_KEY}
    assert await rows.one("SELECT used_at IS NOT NULL FROM keys") is True
    assert await rows.one("SELECT directory_version FROM installation") == version


async def test_a_refused_call_does_not_use_up_a_one_shot_key(rows: Rows, ledger: Ledger) -> None:
    version = await one_shot_key(rows)
    await rows.limit("usd", USD)
    dear, cheap = Call(nano=2 * USD), Call(nano=USD)
    assert isinstance(await dear.reserve(ledger, version, one_shot=True), Refusal)
    assert isinstance(await cheap.reserve(ledger, version, one_shot=True), Granted)


async def test_a_revoked_one_shot_key_opens_nothing(rows: Rows, ledger: Ledger) -> None:
    await one_shot_key(rows)
    await rows.all("UPDATE keys SET revoked_at = now()")
    version = await rows.one("SELECT directory_version FROM installation")
    result = await Call().reserve(ledger, version, one_shot=True)
    assert isinstance(result, Refusal)
    assert result.reason is Reason.INVALID_KEY


# --------------------------------------------------------------------------------- odd operations


async def test_an_operation_that_postgresql_refuses_fails_alone(rows: Rows, ledger: Ledger) -> None:
    calls = [Call() for _ in range(5)]
    await asyncio.gather(*(call.reserve(ledger) for call in calls))
    poison = calls[2]
    settlements = [
        ledger.settle(call.settlement(error_message="\0" if call is poison else None), call.path)
        for call in calls
    ]
    also = Call()
    *results, reserved = await asyncio.gather(
        *settlements, also.reserve(ledger), return_exceptions=True
    )
    assert isinstance(results.pop(2), psycopg.DataError)
    assert [one.booking for one in results if isinstance(one, Settled)] == ["booked"] * 4
    assert isinstance(reserved, Granted)
    assert set(await rows.booked()) == {call.id for call in calls if call is not poison}
    await rows.assert_sound(at_rest=False)
    # The call that could not be booked still holds what it held, and ends when it ends properly.
    assert (await poison.settle(ledger)).booking == "booked"


async def test_an_operation_on_accounts_that_are_gone_fails_alone(
    rows: Rows, ledger: Ledger
) -> None:
    """A hold names accounts that nobody has and, from the hold alone, nobody can make."""
    lost, fine = Call(), Call()
    await lost.reserve(ledger)
    recover = ledger.recover(lost.id, (uuid7(),))
    async with asyncio.timeout(10):
        failed, reserved = await asyncio.gather(
            recover, fine.reserve(ledger), return_exceptions=True
        )
    assert isinstance(failed, Exception)
    assert isinstance(reserved, Granted)


async def test_a_month_without_a_partition_gets_one(
    rows: Rows, ledger: Ledger, second: Ledger
) -> None:
    months = [datetime(2031, month, 1, tzinfo=UTC) for month in (1, 2, 3)]
    calls = [
        Call(at=month - offset)
        for month in months
        for offset in (timedelta(0), timedelta(milliseconds=1))
    ]
    results = await asyncio.gather(
        *(call.settle(one) for call in calls for one in (ledger, second))
    )
    assert sorted(result.booking for result in results) == ["booked"] * 6 + ["duplicate"] * 6
    assert set(await rows.booked()) == {call.id for call in calls}


async def test_a_partition_that_cannot_be_made_stops_nothing_else(
    rows: Rows, ledger: Ledger
) -> None:
    """Say, for want of a privilege."""
    await rows.all(
        "CREATE FUNCTION no_partitions() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$"
    )
    await rows.all(
        "CREATE EVENT TRIGGER no_partitions ON ddl_command_start WHEN tag IN ('CREATE TABLE') EXECUTE FUNCTION no_partitions()"
    )
    early, now = Call(at=datetime(2031, 5, 5, tzinfo=UTC)), Call()
    async with asyncio.timeout(10):
        failed, settled = await asyncio.gather(
            early.settle(ledger), now.settle(ledger), return_exceptions=True
        )
    assert isinstance(failed, psycopg.Error)
    assert isinstance(settled, Settled)
    assert settled.booking == "booked"
    await rows.all("DROP EVENT TRIGGER no_partitions")
    assert (await early.settle(ledger)).booking == "booked"


async def test_a_call_that_settles_and_is_recovered_in_one_batch_is_billed_once(
    rows: Rows, ledger: Ledger
) -> None:
    """Whoever is first: in the end the account has what the call really used."""
    for turn in range(10):
        call = Call()
        await call.reserve(ledger)
        ledger.live.clear()
        await rows.all("UPDATE holds SET deadline = now() - interval '1 second'")
        both = [
            call.settle(ledger, tokens=3, nano=3),
            ledger.recover(call.id, call.facts.account_ids),
        ]
        await asyncio.gather(*(both if turn % 2 else reversed(both)))
        assert await rows.one("SELECT used_tokens FROM accounts") == 3 * (turn + 1)
    await rows.assert_sound()


async def test_a_duplicate_settlement_on_another_replica_changes_nothing(
    rows: Rows, ledger: Ledger, second: Ledger
) -> None:
    calls = [Call() for _ in range(20)]
    await asyncio.gather(*(call.reserve(ledger) for call in calls))
    results = await asyncio.gather(
        *(call.settle(one) for call in calls for one in (ledger, second, ledger))
    )
    assert sorted(result.booking for result in results) == ["booked"] * 20 + ["duplicate"] * 40
    assert await rows.one("SELECT used_tokens FROM accounts") == 140
    await rows.assert_sound()


async def test_a_hold_that_lands_after_its_call_was_settled_is_dropped_and_not_billed(
    rows: Rows, ledger: Ledger
) -> None:
    call = Call()
    assert (await call.void(ledger)).booking == "booked"
    assert isinstance(await call.reserve(ledger), Granted)
    ledger.live.clear()
    await rows.all("UPDATE holds SET deadline = now() - interval '1 second'")
    assert await reap(rows.dsn, ledger) == 0
    assert await rows.booked() == {call.id: "upstream_error"}
    assert await rows.one("SELECT used_tokens FROM accounts") == 0
    await rows.assert_sound()


async def test_a_waiter_that_goes_away_takes_no_settlement_along(
    rows: Rows, ledger: Ledger
) -> None:
    call = Call()
    await call.reserve(ledger)
    waiter = asyncio.create_task(call.settle(ledger))
    await asyncio.sleep(0)
    waiter.cancel()
    await until(rows.booked)
    await rows.assert_sound()


async def test_a_waiter_that_goes_away_before_its_reserve_is_taken_holds_nothing(
    rows: Rows, ledger: Ledger
) -> None:
    waiter = asyncio.create_task(Call().reserve(ledger))
    await asyncio.sleep(0)
    waiter.cancel()
    assert isinstance(await Call().reserve(ledger), Granted)
    assert await rows.one("SELECT count(*) FROM holds") == 1


async def test_an_answer_is_kept_with_its_call_or_not_at_all(rows: Rows, ledger: Ledger) -> None:
    call = Call()
    await rows.all(
        "INSERT INTO answers (key_id, idempotency_key, body_digest, call_id)"
        " VALUES (%s, 'name', 'digest', %s)",
        KEY,
        call.id,
    )
    first = Answer(200, [("content-type", "application/json")], b'{"answer":1}\x00\xff')
    for answer in (first, Answer(500, [], b"another")):
        await ledger.settle(call.settlement(), call.path, answer=answer)
    [kept] = await rows.all("SELECT status_code, headers, body FROM answers")
    assert kept == (200, [["content-type", "application/json"]], first.body)


async def test_stopping_finishes_what_is_queued_and_takes_no_more(
    rows: Rows, database_url: str, tmp_path: Path
) -> None:
    async with running(database_url, tmp_path) as ledger:
        calls = [Call() for _ in range(300)]
        waiters = [asyncio.create_task(call.settle(ledger)) for call in calls]
        await asyncio.sleep(0)
        await ledger.stop()
        assert {(await waiter).booking for waiter in waiters} == {"booked"}
        with pytest.raises(LedgerUnavailable):
            await Call().reserve(ledger)
        late = Call()
        assert (await late.settle(ledger)).booking == "spooled"
    assert len(await rows.booked()) == 300
    async with running(database_url, tmp_path):
        await until(lambda: has(rows, late))
    await rows.assert_sound()


async def has(rows: Rows, call: Call) -> bool:
    return call.id in await rows.booked()


# ---------------------------------------------------------------------------- living and dead calls


async def reap(dsn: str, ledger: Ledger) -> int:
    async with AsyncConnectionPool(dsn, min_size=1, open=False) as pool:
        return await Worker(pool, ledger, reaper_period_s=5).reap()


async def test_the_hold_of_a_living_call_is_refreshed_and_of_a_dead_one_is_not(
    rows: Rows, database_url: str, tmp_path: Path
) -> None:
    async with running(database_url, tmp_path, hold_deadline_s=1) as ledger:
        living, dead = Call(), Call()
        await living.reserve(ledger)
        await dead.reserve(ledger)
        del ledger.live[dead.id]
        expired = "SELECT call_id::text FROM holds WHERE deadline < now()"
        assert await until(lambda: rows.all(expired)) == [(dead.id,)]
        assert await reap(database_url, ledger) == 1
        assert await rows.booked() == {dead.id: "recovered"}
        assert await reap(database_url, ledger) == 0
        assert (await living.settle(ledger)).booking == "booked"
    await rows.assert_sound()


async def test_thousands_of_living_calls_are_refreshed_before_they_could_expire(
    rows: Rows, database_url: str, tmp_path: Path
) -> None:
    async with running(database_url, tmp_path, hold_deadline_s=4) as ledger:
        calls = [Call() for _ in range(5000)]
        await asyncio.gather(*(call.reserve(ledger) for call in calls))
        refreshed = "SELECT min(deadline) > %s FROM holds"
        since = await rows.one("SELECT max(deadline) FROM holds")
        assert await until(lambda: rows.one(refreshed, since))
        assert await reap(database_url, ledger) == 0
        await asyncio.gather(*(call.settle(ledger) for call in calls))
    await rows.assert_sound()


async def test_a_dead_call_is_billed_at_its_last_checkpoint(
    rows: Rows, database_url: str, tmp_path: Path
) -> None:
    async with running(database_url, tmp_path, hold_deadline_s=0.4) as ledger:
        call = Call()
        await call.reserve(ledger)
        usage: dict[str, int | Decimal] = {
            "second": Decimal("1.234567890123456789"),
            "output_token": 4,
        }
        ledger.live[call.id] = Actual(usage, 4, 1234)
        await until(lambda: rows.one("SELECT checkpoint IS NOT NULL FROM holds"))
        ledger.live.clear()
        await until(lambda: reap(database_url, ledger))
    [booked] = await rows.all(
        "SELECT outcome, estimated, tokens, cost_nano, usage::text, overrun_tokens FROM calls"
    )
    assert booked == (
        "recovered",
        True,
        4,
        1234,
        '{"second": 1.234567890123456789, "output_token": 4}',
        0,
    )
    await rows.assert_sound()


async def test_a_hold_that_cannot_be_recovered_keeps_no_other_waiting(
    rows: Rows, ledger: Ledger
) -> None:
    lost, fine = Call(owners=(("allocation", OTHER),)), Call()
    for call in (lost, fine):
        await call.reserve(ledger)
    ledger.live.clear()
    await rows.all("UPDATE holds SET deadline = now() - interval '1 second'")
    await rows.all("DELETE FROM accounts WHERE owner_id = %s", OTHER)
    assert await reap(rows.dsn, ledger) == 1
    assert await rows.booked() == {fine.id: "recovered"}


async def test_two_reapers_at_once_book_a_dead_call_once(
    rows: Rows, ledger: Ledger, second: Ledger
) -> None:
    calls = [Call() for _ in range(40)]
    await asyncio.gather(*(call.reserve(ledger) for call in calls))
    ledger.live.clear()
    await rows.all("UPDATE holds SET deadline = now() - interval '1 second'")
    settled = await asyncio.gather(*(reap(rows.dsn, one) for one in (ledger, second) * 2))
    assert sum(settled) == 40
    assert await rows.booked() == dict.fromkeys((call.id for call in calls), "recovered")
    await rows.assert_sound()


async def test_even_without_their_lock_two_reapers_book_a_dead_call_once(
    rows: Rows, ledger: Ledger, second: Ledger
) -> None:
    calls = [Call() for _ in range(40)]
    await asyncio.gather(*(call.reserve(ledger) for call in calls))
    ledger.live.clear()
    await rows.all("UPDATE holds SET deadline = now() - interval '1 second'")
    results = await asyncio.gather(
        *(
            one.recover(call.id, call.facts.account_ids)
            for call in calls
            for one in (ledger, second)
        )
    )
    assert sorted(map(str, results)) == ["None"] * 40 + ["booked"] * 40
    await rows.assert_sound()


async def test_a_call_that_is_extended_is_alive(rows: Rows, ledger: Ledger) -> None:
    await rows.limit("tokens", 100)
    call = Call()
    await call.reserve(ledger)
    await rows.all("UPDATE holds SET deadline = now() - interval '1 second'")
    extended = await ledger.extend(call.id, call.more(90, 0))
    assert extended == Grant(100, USD, None, True)
    assert await ledger.recover(call.id, call.facts.account_ids) is None
    assert await ledger.extend(uuid7(), call.more(1, 0)) is None
    await rows.all("UPDATE holds SET deadline = now() - interval '1 second'")
    refused = await ledger.extend(call.id, call.more(1, 0))
    assert isinstance(refused, Refusal)
    assert await ledger.recover(call.id, call.facts.account_ids) is None


HELD = "SELECT tokens, nano FROM holds"
TENTHS = OpenDemand(most=600, all_below=50, times=1, tokens_each=1, cost_each=USD // 1000)
"""A minute in tenths of a second; five seconds are not halved any more."""


async def test_a_call_is_extended_by_half_of_what_is_left_then_by_all_of_a_small_rest(
    rows: Rows, ledger: Ledger
) -> None:
    await rows.limit("usd", USD)
    await rows.limit("tokens", 10_000)
    call = Call(tokens=0, nano=USD // 2)
    await call.reserve(ledger)
    # 500 thousandths of a dollar are left: 250, 125, 62, then 63 of which half is too little.
    for granted_, held in ((250, 750), (125, 875), (62, 937), (63, 1000)):
        extended = await ledger.extend(call.id, call.more(0, 0, TENTHS))
        nano = held * USD // 1000
        assert extended == Grant(held - 500, nano, granted_, True)
        assert await rows.all(HELD) == [(held - 500, nano)]
    refused = await ledger.extend(call.id, call.more(0, 0, TENTHS))
    assert isinstance(refused, Refusal)
    assert refused.reason is Reason.RESERVED
    assert await rows.all(HELD) == [(500, USD)]
    await rows.assert_sound(at_rest=False)
    await call.settle(ledger)
    await rows.assert_sound()


async def test_what_many_calls_are_extended_by_at_once_is_never_more_than_there_is(
    rows: Rows, ledger: Ledger, second: Ledger
) -> None:
    await rows.limit("tokens", 1000)
    calls = [Call(tokens=1) for _ in range(32)]
    await asyncio.gather(*(call.reserve(ledger) for call in calls))
    results = await asyncio.gather(
        *(
            one.extend(call.id, call.more(0, 0, TENTHS))
            for call in calls
            for one in (ledger, second)
        )
    )
    grants = [result for result in results if isinstance(result, Grant)]
    assert sum(grant.granted or 0 for grant in grants) == 1000 - 32
    assert len(grants) < len(results)
    assert await rows.one("SELECT held_tokens FROM accounts") == 1000
    await rows.assert_sound(at_rest=False)


async def test_a_call_that_asks_for_nothing_is_refused_once_its_limit_is_too_low(
    rows: Rows, ledger: Ledger
) -> None:
    await rows.limit("usd", USD)
    call = Call()
    await call.reserve(ledger)
    assert isinstance(await ledger.extend(call.id, call.more(0, 0)), Grant)
    for amount, reason in ((USD - 1, Reason.RESERVED), (0, Reason.COST_EXCEEDED)):
        await rows.all("UPDATE limits SET amount = %s", amount)
        refused = await ledger.extend(call.id, call.more(0, 0))
        assert isinstance(refused, Refusal)
        assert refused.reason is reason
    assert await rows.all(HELD) == [(10, USD)]


SO_FAR = "SELECT checkpoint->'tokens' FROM holds"


async def recovered(rows: Rows, ledger: Ledger) -> tuple[Any, ...]:
    """Let the process of every call be dead, and return how the only one is booked."""
    ledger.live.clear()
    await rows.all("UPDATE holds SET deadline = now() - interval '1 second'")
    assert await reap(rows.dsn, ledger) == 1
    [booked] = await rows.all(
        "SELECT outcome, close_reason, tokens, cost_nano, usage, overrun_tokens FROM calls"
    )
    await rows.assert_sound()
    return booked


async def test_a_call_that_reports_as_it_goes_is_booked_at_what_it_said_at_first(
    rows: Rows, ledger: Ledger
) -> None:
    call = Call(endpoint="realtime")
    await ledger.reserve(call.facts, call.demand, 0, checkpoint=NOTHING)
    assert ledger.live == {call.id: NOTHING}
    assert await recovered(rows, ledger) == ("recovered", "recovered", 0, 0, {}, 0)


async def test_a_call_that_was_extended_is_booked_at_what_it_said_then(
    rows: Rows, ledger: Ledger
) -> None:
    call = Call()
    await ledger.reserve(call.facts, call.demand, 0, checkpoint=NOTHING)
    said = Actual({"output_token": 8, "second": Decimal("1.5")}, 8, 80)
    assert isinstance(await ledger.extend(call.id, call.more(10, 10), checkpoint=said), Grant)
    assert ledger.live == {call.id: said}
    # Who says nothing of it keeps it as it is.
    assert isinstance(await ledger.extend(call.id, call.more(10, 10)), Grant)
    assert ledger.live == {call.id: said}
    assert await rows.all("SELECT tokens, checkpoint->'tokens' FROM holds") == [(30, 8)]
    assert await recovered(rows, ledger) == (
        "recovered",
        None,
        8,
        80,
        {"output_token": 8, "second": 1.5},
        0,
    )


async def test_a_call_whose_extension_was_refused_is_booked_at_what_it_said_then(
    rows: Rows, ledger: Ledger
) -> None:
    await rows.limit("tokens", 10)
    call = Call(endpoint="realtime")
    await ledger.reserve(call.facts, call.demand, 0, checkpoint=NOTHING)
    said = Actual({"output_token": 12}, 12, 120)
    assert isinstance(await ledger.extend(call.id, call.more(1, 0), checkpoint=said), Refusal)
    assert await rows.one(SO_FAR) == 12
    assert isinstance(await ledger.extend(call.id, call.more(1, 0)), Refusal)
    assert await rows.one(SO_FAR) == 12
    assert await rows.all(HELD) == [(10, USD)]
    booked = ("recovered", "recovered", 12, 120, {"output_token": 12}, 2)
    assert await recovered(rows, ledger) == booked


async def test_a_refresh_says_again_what_was_said_with_an_extension(
    rows: Rows, database_url: str, tmp_path: Path
) -> None:
    await rows.limit("tokens", 10)
    async with running(database_url, tmp_path, hold_deadline_s=0.4) as ledger:
        call = Call()
        await ledger.reserve(call.facts, call.demand, 0, checkpoint=NOTHING)
        said = Actual({"output_token": 3}, 3, 30)
        assert isinstance(await ledger.extend(call.id, call.more(1, 0), checkpoint=said), Refusal)
        await rows.all("UPDATE holds SET checkpoint = NULL")
        assert await until(lambda: rows.one(SO_FAR)) == 3
        # One that has no hold any more is not kept alive for it.
        await call.settle(ledger)
        assert await ledger.extend(call.id, call.more(1, 0), checkpoint=said) is None
        assert ledger.live == {}
    await rows.assert_sound()


async def test_who_is_ordered_to_stop_is_told_with_each_refresh(
    rows: Rows, database_url: str, tmp_path: Path
) -> None:
    """Whether or not anyone listened when the order was given."""
    order = "UPDATE holds SET stopped = true WHERE call_id = %s"
    async with running(database_url, tmp_path, hold_deadline_s=0.4) as ledger:
        stopped, other = Call(endpoint="realtime"), Call(endpoint="realtime")
        for call in (stopped, other):
            await call.reserve(ledger)
        await rows.all(order, stopped.id)
        # Nobody is there to be told: the holds are refreshed all the same.
        await asyncio.sleep(0.5)
        await until(lambda: rows.one("SELECT bool_and(deadline > now()) FROM holds"))
        told: list[str] = []
        ledger.on_stopped = told.append
        await until(lambda: len(told) > 2)
        assert set(told) == {stopped.id}
        # What is asked of the ledger meanwhile does not make it forget.
        said = Actual({}, 1, 1)
        await ledger.extend(stopped.id, stopped.more(1, 1), checkpoint=said)
        assert await rows.one("SELECT stopped FROM holds WHERE call_id = %s", stopped.id) is True
        told.clear()
        await until(lambda: told)
        for call in (stopped, other):
            assert (await call.settle(ledger)).booking == "booked"
    await rows.assert_sound()


# -------------------------------------------------------------------------- connections that break


async def cut(rows: Rows) -> None:
    """Cut every connection to the database."""
    await rows.all(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


async def backend_of(rows: Rows) -> int:
    """Return the process that serves the only ledger there is."""
    pid: int = await rows.one(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
        " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    return pid


async def assert_all_booked(rows: Rows, settled: dict[str, int], ledger: Ledger) -> None:
    """Every settlement that was acknowledged is in the books with what it said, once."""
    await until(lambda: ledger.available and not ledger.spool.pending)
    booked = dict(await rows.all("SELECT id::text, tokens FROM calls"))
    assert {id: booked.get(id) for id in settled} == settled


async def make_calls(ledger: Ledger, until_: asyncio.Event, settled: dict[str, int], n: int) -> int:
    """Make calls until told to stop; note what the ledger acknowledged; return how many were not admitted."""
    refused = 0
    while not until_.is_set():
        call = Call()
        try:
            reserved = await call.reserve(ledger)
            assert isinstance(reserved, Granted)
        except LedgerUnavailable:
            refused += 1
            await call.void(ledger)
            settled[call.id] = 0
            await asyncio.sleep(0.01)
            continue
        await call.settle(ledger, tokens=n)
        settled[call.id] = n
    return refused


async def test_connections_that_are_cut_under_load_lose_and_double_nothing(
    rows: Rows, database_url: str, tmp_path: Path
) -> None:
    settled: dict[str, int] = {}
    stop = asyncio.Event()
    async with running(database_url, tmp_path) as ledger:
        load = [asyncio.create_task(make_calls(ledger, stop, settled, n)) for n in range(16)]
        for _ in range(12):
            count = len(settled)
            await until(lambda count=count: len(settled) > count + 50)
            await cut(rows)
        stop.set()
        await asyncio.gather(*load)
        await assert_all_booked(rows, settled, ledger)
        # What a cut reserve may have held was released by the void that followed it.
        await rows.assert_sound()


async def test_a_connection_that_was_cut_while_idle_refuses_nobody(
    rows: Rows, ledger: Ledger
) -> None:
    for _ in range(5):
        call = Call()
        assert isinstance(await call.reserve(ledger), Granted)
        assert (await call.settle(ledger)).booking == "booked"
        await cut(rows)
        # The kernel tells us that it is closed; give the loop a turn to hear it.
        await asyncio.sleep(0.05)
    await rows.assert_sound()


async def test_a_ledger_that_is_stopped_while_it_hangs_spools_what_it_had(
    rows: Rows, database_url: str, tmp_path: Path
) -> None:
    call = Call()
    async with running(database_url, tmp_path, wait_s=0.2) as ledger:
        await call.reserve(ledger)
        backend = await backend_of(rows)
        os.kill(backend, signal.SIGSTOP)
        try:
            settled = asyncio.create_task(call.settle(ledger))
            await asyncio.sleep(0)
            async with asyncio.timeout(10):
                await ledger.stop()
                assert (await settled).booking == "spooled"
        finally:
            os.kill(backend, signal.SIGCONT)
    async with running(database_url, tmp_path) as ledger:
        await assert_all_booked(rows, {call.id: 7}, ledger)
    await rows.assert_sound()


async def test_a_settlement_that_neither_database_nor_disk_takes_is_not_acknowledged(
    rows: Rows, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    async with running(database_url, tmp_path, wait_s=0.2) as ledger:
        call = Call()
        await call.reserve(ledger)
        backend = await backend_of(rows)
        monkeypatch.setattr(ledger.spool, "append", full)
        os.kill(backend, signal.SIGSTOP)
        try:
            with pytest.raises(LedgerUnavailable):
                await asyncio.wait_for(call.settle(ledger), 10)
        finally:
            os.kill(backend, signal.SIGCONT)
        # The loop lives on.
        await until(lambda: ledger.available)
        # What had been sent may have been done when PostgreSQL woke up: it is not done again.
        assert (await call.settle(ledger)).booking in ("booked", "duplicate")
        await assert_all_booked(rows, {call.id: 7}, ledger)
    await rows.assert_sound()


async def test_an_account_that_someone_keeps_locked_refuses_in_time_and_recovers(
    rows: Rows, ledger: Ledger
) -> None:
    first = Call()
    await first.reserve(ledger)
    async with await psycopg.AsyncConnection.connect(rows.dsn) as other:
        await other.execute("SELECT 1 FROM accounts FOR UPDATE")
        async with asyncio.timeout(12):
            settled = asyncio.create_task(first.settle(ledger))
            with pytest.raises(LedgerUnavailable):
                await Call().reserve(ledger)
            assert (await settled).booking == "spooled"
    assert isinstance(await asyncio.wait_for(Call().reserve(ledger), 15), Granted)
    await assert_all_booked(rows, {first.id: 7}, ledger)
    await rows.assert_sound(at_rest=False)


async def test_a_connection_that_hangs_is_given_up(
    rows: Rows, database_url: str, tmp_path: Path
) -> None:
    async with running(database_url, tmp_path, wait_s=1) as ledger:
        call = Call()
        await call.reserve(ledger)
        backend = await backend_of(rows)
        os.kill(backend, signal.SIGSTOP)
        try:
            async with asyncio.timeout(25):
                settled = asyncio.create_task(call.settle(ledger))
                with pytest.raises(LedgerUnavailable):
                    await Call().reserve(ledger)
                assert (await settled).booking == "spooled"
                # A new connection serves, while the old one still hangs.
                await until(lambda: ledger.available and not ledger.spool.pending)
                assert isinstance(await Call().reserve(ledger), Granted)
        finally:
            os.kill(backend, signal.SIGCONT)
        await assert_all_booked(rows, {call.id: 7}, ledger)
        await rows.assert_sound(at_rest=False)


async def test_a_connection_that_hangs_at_its_beginning_is_given_up(
    rows: Rows, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what it says in the end is taken for the answer to what is asked next, for ever."""
    name = "app.store.ledger.LIMIT_TRANSACTIONS"
    with monkeypatch.context() as hanging:
        hanging.setattr(name, b"SELECT pg_sleep(1)")
        async with running(database_url, tmp_path / "spool", wait_s=0.3) as ledger:
            with pytest.raises(LedgerUnavailable):
                await Call().reserve(ledger)
            hanging.undo()
            await until(lambda: ledger.available)
            call = Call()
            assert isinstance(await call.reserve(ledger), Granted)
            assert (await call.settle(ledger)).booking == "booked"
    await rows.assert_sound()


async def test_a_connection_cut_while_a_spoilt_batch_is_sorted_out_loses_nothing(
    rows: Rows, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(database_url, tmp_path) as ledger:
        calls = [Call() for _ in range(6)]
        await asyncio.gather(*(call.reserve(ledger) for call in calls))
        commit, count = Ledger._commit, 0

        async def cut_short(self: Ledger, batch: list[Any]) -> None:
            nonlocal count
            count += 1
            if count == 4:
                await cut(rows)
            await commit(self, batch)

        monkeypatch.setattr(Ledger, "_commit", cut_short)
        poison = calls[0]
        results = await asyncio.gather(
            *(
                ledger.settle(c.settlement(error_message="\0" if c is poison else None), c.path)
                for c in calls
            ),
            return_exceptions=True,
        )
        assert isinstance(results[0], psycopg.DataError)
        assert {one.booking for one in results[1:] if isinstance(one, Settled)} == {
            "booked",
            "spooled",
        }
        await assert_all_booked(rows, {call.id: 7 for call in calls[1:]}, ledger)


async def test_a_late_settlement_also_reaches_a_limit_that_was_added_meanwhile(
    rows: Rows, ledger: Ledger
) -> None:
    """Recovered, a call counts in the account of a limit that it did not set out with."""
    call = Call(tokens=10, nano=USD)
    await call.reserve(ledger)
    calendar = Calendar(ZoneInfo("UTC"))
    day = account_key("key", KEY, "day", calendar.period("day", call.facts.started_at))
    database = Database(rows.dsn)
    try:
        await database.transaction(
            lambda connection: set_limit(
                connection, day, "usd", 5 * USD, datetime.now(UTC), charged=call.path
            )
        )
    finally:
        await database.close()
    assert await recovered(rows, ledger) == ("recovered", None, 10, USD, {}, 0)
    await call.settle(ledger, 4, USD // 4)
    used = "SELECT used_tokens, used_nano, held_nano FROM accounts ORDER BY window_kind"
    assert await rows.all(used) == [(4, USD // 4, 0)] * 2
    await rows.assert_sound()
