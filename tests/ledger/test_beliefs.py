"""What a process believes spares a round trip; what is not so any more is never decided on."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID
from zoneinfo import ZoneInfo

import psycopg
import pytest
from msgspec import structs

from app.core.ledger import account_key
from app.core.refusals import Reason, Refusal
from app.core.windows import EPOCH, Calendar, Period
from app.store import top_ups
from app.store.batch import Granted, Operation, Stale
from app.store.catalogue import set_limit
from app.store.database import Database
from app.store.ledger import Ledger
from app.store.pipe import Command
from tests.ledger.world import ALLOCATION, KEY, MEMBER, OTHER, USD, Call, Rows, running, until

CAP = 100 * USD


@pytest.fixture
async def rows(database_url: str) -> Rows:
    rows = Rows(database_url)
    await rows.limit("usd", CAP)
    return rows


@pytest.fixture
async def ledger(rows: Rows, database_url: str, tmp_path: Path) -> AsyncIterator[Ledger]:
    async with running(database_url, tmp_path / "spool") as ledger:
        yield ledger


@pytest.fixture
async def second(rows: Rows, database_url: str, tmp_path: Path) -> AsyncIterator[Ledger]:
    """The ledger of another replica."""
    async with running(database_url, tmp_path / "spool") as ledger:
        yield ledger


async def believing(ledger: Ledger, version: int = 0) -> None:
    """Let it charge the allocation until it believes what it knows of it."""
    before = ledger.believed
    for _ in range(8):
        call = Call(nano=USD)
        assert isinstance(await call.reserve(ledger, version), Granted)
        await call.settle(ledger, 7, USD)
        if ledger.believed >= before + 2:
            return
    raise AssertionError("nothing is believed")


async def used(rows: Rows) -> int:
    amount: int = await rows.one(
        "SELECT used_nano + held_nano FROM accounts WHERE owner_id = %s", ALLOCATION
    )
    return amount


# ------------------------------------------------------------------------------ what it is good for


async def test_what_is_believed_and_verified_is_one_round_trip(
    rows: Rows, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    await believing(ledger)
    batches, believed = ledger.batches, ledger.believed
    pipe = ledger._pipe
    assert pipe is not None
    trips = 0
    send = pipe._send

    def counted(commands: Sequence[Command]) -> None:
        nonlocal trips
        trips += 1
        send(commands)

    monkeypatch.setattr(pipe, "_send", counted)
    for _ in range(5):
        call = Call(nano=USD)
        await call.reserve(ledger)
        await call.settle(ledger, 7, USD)
    assert (ledger.batches - batches, ledger.believed - believed, trips) == (10, 10, 10)
    await rows.assert_sound()


async def test_many_accounts_limits_and_rules_are_believed_together(
    rows: Rows, ledger: Ledger
) -> None:
    """Whatever order they come in, here or in PostgreSQL; no two of them stand alike."""
    await rows.all(
        "INSERT INTO destinations (id, kind, name, address)"
        " VALUES (%s, 'email', 'us', 'us@example.com')",
        KEY,
    )
    everybody = [str(UUID(int=n * 2**100)) for n in range(9, 1, -1)]
    for owner in everybody:
        for meter in ("usd", "tokens"):
            await rows.limit(meter, CAP, "allocation", owner)
        await rows.all(
            "INSERT INTO alert_rules"
            " (id, destination_id, owner, owner_id, meter, window_kind, threshold, percent)"
            " SELECT gen_random_uuid(), %s, 'allocation', %s, 'usd', 'month', n, true"
            " FROM generate_series(50, 52) AS n",
            KEY,
            owner,
        )
    for _ in range(6):
        calls = [Call(owners=(("allocation", owner),), nano=USD) for owner in everybody]
        granted = await asyncio.gather(*(call.reserve(ledger, 0) for call in calls))
        assert all(isinstance(one, Granted) for one in granted)
        ends = (call.settle(ledger, n, USD + n) for n, call in enumerate(calls))
        await asyncio.gather(*ends)
    assert (ledger.batches - ledger.believed <= 4, ledger.refuted) == (True, 0)
    await rows.assert_sound()


async def test_under_load_all_but_the_first_batches_are_believed(
    rows: Rows, ledger: Ledger
) -> None:
    async def several() -> None:
        for _ in range(20):
            call = Call(nano=USD // 1000)
            await call.reserve(ledger)
            await call.settle(ledger, 7, USD // 2000)

    await asyncio.gather(*(several() for _ in range(16)))
    assert ledger.believed > ledger.batches * 0.8
    assert await used(rows) == 320 * USD // 2000
    await rows.assert_sound()


# ----------------------------------------------------------------------- what is not so any more


async def test_what_another_replica_used_is_seen(
    rows: Rows, ledger: Ledger, second: Ledger
) -> None:
    await believing(ledger)
    rest = CAP - await used(rows)
    assert isinstance(await Call(nano=rest).reserve(second), Granted)
    refused = await Call(nano=1).reserve(ledger)
    assert isinstance(refused, Refusal)
    assert refused.reason is Reason.RESERVED
    await rows.assert_sound(at_rest=False)


async def test_what_another_replica_gave_back_is_seen(
    rows: Rows, ledger: Ledger, second: Ledger
) -> None:
    """A refusal, which changes no account, is not decided on what was either."""
    await believing(ledger)
    big = Call(nano=CAP - await used(rows))
    assert isinstance(await big.reserve(ledger), Granted)
    await second.settle(big.settlement(7, USD), big.path)
    believed = ledger.believed
    assert isinstance(await Call(nano=USD).reserve(ledger), Granted)
    assert (ledger.believed, ledger.refuted) == (believed, 1)
    await rows.assert_sound(at_rest=False)


async def test_an_account_that_refused_is_still_believed(rows: Rows, ledger: Ledger) -> None:
    await believing(ledger)
    believed = ledger.believed
    for _ in range(3):
        assert isinstance(await Call(nano=CAP).reserve(ledger), Refusal)
    assert isinstance(await Call(nano=USD).reserve(ledger), Granted)
    assert (ledger.believed, ledger.refuted) == (believed + 4, 0)
    await rows.assert_sound(at_rest=False)


async def test_nothing_is_believed_over_a_new_connection(rows: Rows, ledger: Ledger) -> None:
    """It may lead to another server, on which the numbers of transactions are others."""
    await believing(ledger)
    believed = ledger.believed
    await rows.all(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )
    await until(lambda: _gone(ledger))
    assert isinstance(await Call(nano=USD).reserve(ledger), Granted)
    assert (ledger.believed, ledger.refuted) == (believed, 0)
    await believing(ledger)


async def _gone(ledger: Ledger) -> bool:
    """Whether its connection is known to be gone."""
    return ledger._pipe is None or ledger._pipe.broken


async def test_nothing_is_believed_for_longer_than_numbers_of_transactions_last(
    rows: Rows, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    await believing(ledger)
    believed = ledger.believed
    monkeypatch.setattr(ledger._beliefs, "_clock", lambda: time.monotonic() + 3601)
    assert isinstance(await Call(nano=USD).reserve(ledger), Granted)
    assert (ledger.believed, ledger.refuted) == (believed, 0)
    await believing(ledger)


async def test_a_lowered_cap_refuses_and_a_raised_or_lifted_one_admits(
    rows: Rows, ledger: Ledger
) -> None:
    await believing(ledger)
    await rows.all("UPDATE limits SET amount = %s", await used(rows))
    assert isinstance(await Call(nano=1).reserve(ledger), Refusal)
    for amount in (10 * CAP, None):
        await rows.all("UPDATE limits SET amount = %s", CAP)
        await believing(ledger)
        await rows.all("UPDATE limits SET amount = %s", amount)
        call = Call(nano=CAP)
        assert isinstance(await call.reserve(ledger), Granted)
        await call.void(ledger)
    await rows.assert_sound(at_rest=False)


async def test_a_cap_that_is_added_counts(rows: Rows, ledger: Ledger) -> None:
    await believing(ledger)
    await rows.limit("tokens", 1)
    refused = await Call().reserve(ledger)
    assert isinstance(refused, Refusal)
    assert refused.shortfall is not None
    assert refused.shortfall.meter == "tokens"


async def test_a_top_up_admits_while_it_lasts_and_is_never_believed(
    rows: Rows, ledger: Ledger
) -> None:
    await believing(ledger)
    account = Call().path[0]
    now = datetime.now(UTC)
    database = Database(rows.dsn)
    try:
        await database.transaction(
            lambda connection: top_ups.add(
                connection,
                account,
                id=str(UUID(int=99)),
                meter="usd",
                amount=50 * USD,
                reason="a launch",
                at=now,
                expires_at=now + timedelta(seconds=3),
                actor="admin",
                request_id=None,
            )
        )
    finally:
        await database.close()
    rest = CAP - await used(rows)
    believed = ledger.believed
    held = Call(nano=rest + 40 * USD)
    assert isinstance(await held.reserve(ledger), Granted)
    for _ in range(6):
        call = Call(nano=USD)
        assert isinstance(await call.reserve(ledger), Granted)
        await call.void(ledger)
    assert (ledger.believed, ledger.refuted) == (believed, 1), "only what it had believed before"
    await asyncio.sleep((now + timedelta(seconds=3.1) - datetime.now(UTC)).total_seconds())
    assert isinstance(await Call(nano=1).reserve(ledger), Refusal)


@pytest.mark.parametrize(
    ("change", "admitted"),
    [("expires_at = clock_timestamp()", False), ("starts_at = clock_timestamp()", True)],
)
async def test_a_top_up_that_changes_while_a_call_waits_for_its_locks_has_changed(
    rows: Rows, ledger: Ledger, change: str, admitted: bool
) -> None:
    """It begins and ends under the lock: what counts is when that was won, not waited for."""
    await rows.all(
        "INSERT INTO top_ups (id, owner_id, meter, window_kind, amount, starts_at, expires_at,"
        " reason, actor) VALUES (%s, %s, 'usd', 'month', %s, now() + %s, now() + '1 hour', '', '')",
        str(UUID(int=99)),
        ALLOCATION,
        50 * USD,
        timedelta(minutes=30 if admitted else -30),
    )
    await rows.all("UPDATE limits SET topped_until = now() + interval '1 hour'")
    assert isinstance(await Call(nano=CAP).reserve(ledger), Granted)
    async with await psycopg.AsyncConnection.connect(rows.dsn) as other:
        await other.execute("SELECT FROM accounts FOR UPDATE")
        waiting = asyncio.create_task(Call(nano=USD).reserve(ledger))
        await until(lambda: rows.one("SELECT count(*) FROM pg_locks WHERE NOT granted"))
        await other.execute(f"UPDATE top_ups SET {change}")  # type: ignore[arg-type]
        await other.commit()
    assert isinstance(await waiting, Granted) is admitted
    await rows.assert_sound(at_rest=False)


async def test_a_rolling_window_moves_by_itself_and_is_never_believed(
    rows: Rows, ledger: Ledger
) -> None:
    window = account_key("key", KEY, "rolling:1h", Period(EPOCH, None))
    await rows.all(
        "INSERT INTO limits (owner_id, meter, window_kind, owner, amount)"
        " VALUES (%s, 'usd', 'rolling:1h', 'key', %s)",
        KEY,
        CAP,
    )
    for nano in [USD] * 6 + [CAP] * 6:
        call = Call(nano=nano)
        call.path = (*call.path, window)
        call.facts = structs.replace(call.facts, account_ids=tuple(key.id for key in call.path))
        call.demand = structs.replace(call.demand, accounts=call.path)
        # Who is refused changes nothing, so that the window is found as it was left.
        if isinstance(await call.reserve(ledger), Granted):
            await call.settle(ledger, 7, USD)
    assert (ledger.believed, ledger.refuted) == (0, 0)
    await rows.assert_sound()


async def test_a_call_on_an_outdated_directory_is_sent_back(rows: Rows, ledger: Ledger) -> None:
    await believing(ledger)
    await rows.all("INSERT INTO members (id, email) VALUES (%s, 'ann@example.com')", MEMBER)
    assert await Call().reserve(ledger, 0) == Stale(1)
    assert isinstance(await Call().reserve(ledger, 1), Granted)


async def test_a_threshold_that_is_added_or_changed_is_told(rows: Rows, ledger: Ledger) -> None:
    await believing(ledger)
    await rows.all(
        "INSERT INTO destinations (id, kind, name, address)"
        " VALUES (%s, 'email', 'us', 'us@example.com')",
        KEY,
    )
    await rows.all(
        "INSERT INTO alert_rules"
        " (id, destination_id, owner, owner_id, meter, window_kind, threshold, percent)"
        " VALUES (%s, %s, 'allocation', %s, 'usd', 'month', %s, false)",
        OTHER,
        KEY,
        ALLOCATION,
        await used(rows) + USD,
    )
    call = Call(nano=2 * USD)
    await call.reserve(ledger)
    await call.settle(ledger, 7, 2 * USD)
    assert await rows.one("SELECT count(*) FROM events") == 1
    await believing(ledger)
    await rows.all("UPDATE alert_rules SET threshold = %s", await used(rows) + USD)
    call = Call(nano=2 * USD)
    await call.reserve(ledger)
    await call.settle(ledger, 7, 2 * USD)
    assert await rows.one("SELECT count(*) FROM events") == 2


async def test_a_call_that_was_recovered_elsewhere_is_billed_once(
    rows: Rows, ledger: Ledger, second: Ledger
) -> None:
    await believing(ledger)
    before = await used(rows)
    call = Call(nano=USD)
    await call.reserve(ledger)
    await rows.all("UPDATE holds SET deadline = now() - interval '1 second'")
    assert await second.recover(call.id, call.facts.account_ids) == "booked"
    settled = await call.settle(ledger, 7, USD // 4)
    assert settled.booking == "adjusted"
    assert await used(rows) == before + USD // 4
    await rows.assert_sound()


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM holds",
        "UPDATE holds SET tokens = tokens - 1",
        "UPDATE holds SET nano = nano - 1",
        "UPDATE holds SET nano = NULL",
        "UPDATE holds SET account_ids = '{}'",
    ],
)
async def test_a_hold_that_is_not_as_it_was_left_is_looked_at_again(
    rows: Rows, ledger: Ledger, change: str
) -> None:
    await believing(ledger)
    call = Call(nano=USD)
    await call.reserve(ledger)
    believed = ledger.believed
    await rows.all(change)
    await call.settle(ledger, 7, USD)
    assert (ledger.believed, ledger.refuted) == (believed, 1)
    assert await rows.one("SELECT count(*) FROM calls WHERE id = %s", call.id) == 1


async def test_what_was_decided_and_not_written_is_not_believed(rows: Rows, ledger: Ledger) -> None:
    await believing(ledger)
    call = Call(nano=USD)
    await call.reserve(ledger)
    with pytest.raises(psycopg.DataError):
        await ledger.settle(call.settlement(error_message="\0"), call.path)
    believed = ledger.believed
    assert isinstance(await Call(nano=USD).reserve(ledger), Granted)
    assert (ledger.believed, ledger.refuted) == (believed + 1, 0)


async def test_what_fails_only_when_it_is_committed_has_not_happened(
    rows: Rows, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the round trip commits, after every statement of it has succeeded."""
    await believing(ledger)
    await rows.all(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF NEW.tokens = 77 THEN RAISE EXCEPTION 'not this one'; END IF; RETURN NEW; END $$"
    )
    await rows.all(
        "CREATE CONSTRAINT TRIGGER refused AFTER INSERT ON holds DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    failed: list[Exception] = []
    one_by_one = ledger._one_by_one

    async def told(ops: Sequence[Operation], error: Exception) -> None:
        failed.append(error)
        await one_by_one(ops, error)

    monkeypatch.setattr(ledger, "_one_by_one", told)
    before = await used(rows)
    good, bad = Call(nano=USD), Call(tokens=77, nano=USD)
    granted, refused = await asyncio.gather(
        good.reserve(ledger, 0), bad.reserve(ledger, 0), return_exceptions=True
    )
    assert isinstance(granted, Granted)
    assert isinstance(refused, psycopg.errors.RaiseException)
    # First the batch that was believed, then the call that spoilt it.
    assert len(failed) == 2
    assert await used(rows) == before + USD
    assert [row[0] for row in await rows.all("SELECT call_id::text FROM holds")] == [good.id]
    await good.settle(ledger, 7, USD)
    await rows.assert_sound()


async def test_a_refusal_on_an_outdated_directory_is_recorded(rows: Rows, ledger: Ledger) -> None:
    """It touches no account, so that there is none to be less sure of."""
    await believing(ledger)
    await rows.all("INSERT INTO members (id, email) VALUES (%s, 'ann@example.com')", MEMBER)
    refused = Call(owners=())
    settlement = refused.settlement(0, 0, outcome="rejected_inactive")
    assert (await ledger.settle(settlement, ())).booking == "booked"
    assert (await rows.booked())[refused.id] == "rejected_inactive"


async def test_a_limit_that_is_added_while_a_call_runs_counts_it(
    rows: Rows, ledger: Ledger
) -> None:
    await believing(ledger)
    call = Call(nano=USD)
    await call.reserve(ledger)
    period = Calendar(ZoneInfo("UTC")).period("day", call.facts.started_at)
    day = account_key("allocation", ALLOCATION, "day", period)
    database = Database(rows.dsn)
    try:
        await database.transaction(
            lambda connection: set_limit(
                connection, day, "usd", CAP, datetime.now(UTC), charged=call.path
            )
        )
    finally:
        await database.close()
    await call.settle(ledger, 7, USD // 2)
    spent = dict(await rows.all("SELECT window_kind, used_nano FROM accounts"))
    assert spent["day"] == spent["month"] == await used_in_calls(rows)
    await rows.assert_sound()


async def used_in_calls(rows: Rows) -> int:
    amount: int = await rows.one("SELECT sum(cost_nano)::bigint FROM calls")
    return amount


async def test_what_changes_while_the_locks_are_waited_for_is_seen(
    rows: Rows, ledger: Ledger
) -> None:
    """The rows that were believed were so when PostgreSQL began to look, and not when it got them."""
    await believing(ledger)
    believed = ledger.believed
    async with await psycopg.AsyncConnection.connect(rows.dsn) as other:
        await other.execute("UPDATE accounts SET used_nano = %s", [CAP])
        waiting = asyncio.create_task(Call(nano=1).reserve(ledger))
        await until(lambda: rows.one("SELECT count(*) FROM pg_locks WHERE NOT granted"))
        await other.execute("UPDATE limits SET amount = amount + 1")
        await other.commit()
    assert isinstance(await waiting, Granted), "there is one nano-USD more"
    assert isinstance(await Call(nano=1).reserve(ledger), Refusal)
    assert ledger.believed == believed


async def test_replicas_that_charge_one_account_do_not_go_by_what_they_believe(
    rows: Rows, ledger: Ledger, second: Ledger
) -> None:
    """Nearly every belief would be wrong, and cost a round trip more; the cap holds to the cent."""
    served = 0

    async def several(ledger: Ledger) -> None:
        nonlocal served
        for _ in range(30):
            call = Call(nano=USD)
            if isinstance(await call.reserve(ledger), Granted):
                served += 1
                await call.settle(ledger, 7, USD)

    await asyncio.gather(*(several(one) for one in (ledger, second) for _ in range(4)))
    assert served == 100
    assert await used(rows) == CAP
    await rows.assert_sound()
