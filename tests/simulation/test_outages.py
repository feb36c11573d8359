"""PostgreSQL is killed, hangs, and comes back, under load: nothing is lost, nothing booked twice."""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.simulation.house import LOCKS_S, Audit, House, Postgres, eventually, lines
from tests.simulation.traffic import Load, Sent, a_client, call
from tests.simulation.wire import wired


async def test_postgresql_is_killed_under_load_round_after_round(
    own_house: House, mortal: Postgres
) -> None:
    """With allocations that deny and that allow, on two gateways."""
    house = own_house
    gateways = [await house.gateway(name, ledger_wait_s=1).start() for name in ("one", "two")]
    deny, allow = house.tenant(), house.tenant(ledger_outage="allow")
    async with Load(gateways, [deny, allow], callers=12, leaving=0.05) as load:
        for _ in range(3):
            await load.more(60)
            mortal.kill()
            before = load.answered()
            await asyncio.sleep(2)
            assert load.answered() > before, "those that allow an outage are served during it"
            mortal.start()
        await load.more(60)
    assert {sent.code for sent in load.sent} >= {"ledger_unavailable"}
    assert {sent.status for sent in load.sent} <= {200, 503, None}
    await Audit(house, load.sent).check()


async def test_postgresql_hangs_under_load(own_house: House, mortal: Postgres) -> None:
    """It is there, takes connections, and answers nothing for longer than anyone waits."""
    house = own_house
    gateways = [await house.gateway(name, ledger_wait_s=1).start() for name in ("one", "two")]
    tenants = [house.tenant(), house.tenant(ledger_outage="allow")]
    async with Load(gateways, tenants, callers=12) as load:
        await load.more(60)
        with mortal.hung():
            before = load.answered()
            await asyncio.sleep(8)
            assert load.answered() > before + 5, "those that allow an outage are served during it"
        await load.more(60)
    assert {sent.code for sent in load.sent} >= {"ledger_unavailable"}
    await Audit(house, load.sent).check()


async def test_a_gateway_serves_at_once_when_postgresql_restarted_while_it_was_idle(
    own_house: House, mortal: Postgres
) -> None:
    house = own_house
    gateway = await house.gateway().start()
    tenant = house.tenant()
    async with a_client() as client:
        sent = [await call(client, gateway, tenant, "chat")]
        for kind in ("chat", "stream"):
            mortal.kill()
            mortal.start()
            sent.append(await call(client, gateway, tenant, kind))
    assert all(one.whole for one in sent), sent
    await Audit(house, sent).check()


async def test_after_a_long_outage_everything_is_back_within_seconds(
    own_house: House, mortal: Postgres
) -> None:
    """Also what does not go through the ledger: changes of the directory, the reaper."""
    house = own_house
    gateway = await house.gateway().start()
    tenant = house.tenant()
    async with a_client() as client:
        sent = [await call(client, gateway, tenant, "chat")]
        mortal.kill()
        await asyncio.sleep(9)
        mortal.start()
        other = house.tenant()
        answered = await eventually(
            lambda: _served(client, gateway, other, sent), within=10, every=0.1
        )
        assert answered
        await eventually(gateway.ready, within=5)
    await Audit(house, sent).check()


async def _served(client: object, gateway: object, tenant: object, sent: list[Sent]) -> bool:
    sent.append(await call(client, gateway, tenant, "chat"))  # type: ignore[arg-type]
    return sent[-1].whole


SPOOLING = [
    # Where the gateway dies while PostgreSQL is away; None: by our hand, when all is spooled.
    (None, "success"),
    ("spool-before-write", "recovered"),
    ("spool-torn-write", "recovered"),
    ("spool-written", "success"),
]


@pytest.mark.parametrize(("point", "outcome"), SPOOLING, ids=[str(p[0]) for p in SPOOLING])
async def test_a_gateway_killed_with_a_spool_loses_nothing(
    own_house: House, mortal: Postgres, point: str | None, outcome: str
) -> None:
    """Calls are at the provider when PostgreSQL dies; they end, and then the gateway dies."""
    house = own_house
    doomed = await house.gateway("doomed").start(point, hit=4)
    tenant = house.tenant()
    async with a_client() as client:
        going = asyncio.gather(
            *(
                call(client, doomed, tenant, "chat", words=n + 1, directive=f"latency=1.{n}")
                for n in range(4)
            )
        )
        await eventually(lambda: len(house.simulator.calls) == 4, within=10)
        mortal.kill()
        sent = await going
    if point is None:
        assert all(one.whole for one in sent), sent
        doomed.kill()
    else:
        await doomed.died()
        # Those that were spooled just before may not have left yet either.
        assert not all(one.whole for one in sent), sent
    assert doomed.spooled() == (3 if outcome == "recovered" else 4)
    mortal.start()
    await doomed.start()
    booked = await Audit(house, sent).check()
    # The reaper may be faster than the replay: then there is an adjustment. Books are right.
    ends = [(row.outcome, row.adjustments) for row in booked.values()]
    assert ends.count(("recovered", 0)) == (outcome == "recovered")
    assert len(ends) == 4
    assert not any(line.get("level") == "error" for line in lines(doomed.log_path)[:-1]) or (
        point == "spool-torn-write"
    )


async def test_a_settlement_that_nothing_takes_is_not_replaced_by_one_of_nothing(
    own_house: House, mortal: Postgres
) -> None:
    """Neither PostgreSQL nor the disk takes it: its hold stays, and is billed."""
    house = own_house
    gateway = await house.gateway().start("spool-fails")
    tenant = house.tenant()
    async with a_client() as client:
        going = asyncio.create_task(call(client, gateway, tenant, "chat", directive="latency=1"))
        await eventually(lambda: len(house.simulator.calls) == 1, within=10)
        mortal.kill()
        sent = await going
    assert sent.code == "ledger_unavailable"
    mortal.start()
    [row] = (await Audit(house, [sent]).check()).values()
    assert (row.outcome, row.estimated) == ("recovered", True)


REPLAYING = [
    "settle-before-commit",
    "settle-commit-sent",
    "settle-committed",
    "spool-replayed",
    "spool-forgotten",
    "spool-adopting",
]


@pytest.mark.parametrize("point", REPLAYING)
async def test_a_gateway_killed_while_it_replays_its_spool_replays_it_once(
    own_house: House, mortal: Postgres, point: str
) -> None:
    """Let through and held calls are in the spool of one killed; so is the one that adopts it."""
    house = own_house
    first = await house.gateway("doomed", hold_deadline_s=60, ledger_wait_s=1).start()
    deny, allow = house.tenant(), house.tenant(ledger_outage="allow")
    async with a_client() as client:
        going = asyncio.gather(
            *(call(client, first, deny, kind, directive="latency=1") for kind in ("chat", "ocr"))
        )
        await eventually(lambda: len(house.simulator.calls) == 2, within=10)
        mortal.kill()
        sent = [*await going]
        sent += [await call(client, first, allow, kind) for kind in ("chat", "stream", "unpriced")]
    assert all(one.whole for one in sent), sent
    first.kill()
    mortal.start()
    await first.start(point, ready=False)
    await first.died()
    await first.start()
    booked = await Audit(house, sent).check()
    assert [row.outcome for row in booked.values()] == ["success"] * 5
    assert first.spooled() == 0


async def test_a_replay_that_stalls_until_postgresql_ends_its_session_is_not_refused(
    own_house: House, mortal: Postgres
) -> None:
    """It says nothing against the settlement; of a call let through there is nothing but it."""
    house = own_house
    gateway = await house.gateway("sleeper", ledger_wait_s=1).start()
    allow = house.tenant(ledger_outage="allow")
    async with a_client() as client:
        sent = [await call(client, gateway, allow, "chat")]
        mortal.kill()
        sent.append(await call(client, gateway, allow, "chat"))
    assert sent[-1].whole, sent[-1]
    gateway.kill()
    mortal.start()
    # Over TCP its last words are still there to be read.
    with wired(house, tcp=True):
        sleeper = house.gateway("sleeper", ledger_wait_s=LOCKS_S + 20)
        await sleeper.start("settle-before-commit", signal="SIGSTOP", ready=False)
        await sleeper.stalled()
        idle = "SELECT 1 FROM pg_stat_activity WHERE state = 'idle in transaction'"
        await eventually(lambda: not house.rows(idle), within=LOCKS_S + 10, every=0.2)
        sleeper.signal(signal.SIGCONT)
        booked = await Audit(house, sent).check()
    assert [row.outcome for row in booked.values()] == ["success"] * 2


async def test_a_call_let_through_an_outage_is_booked_though_its_gateway_dies_with_it(
    own_house: House, mortal: Postgres
) -> None:
    house = own_house
    doomed = await house.gateway("doomed", ledger_wait_s=1).start()
    allow = house.tenant(ledger_outage="allow")
    async with a_client() as client:
        sent = [await call(client, doomed, allow, "chat")]
        mortal.kill()
        going = asyncio.gather(
            *(
                call(client, doomed, allow, kind, directive="latency=30")
                for kind in ("chat", "stream", "ocr", "unpriced")
            )
        )
        await eventually(lambda: len(house.simulator.calls) == 5, within=20)
        doomed.kill()
        sent += await going
    mortal.start()
    await doomed.start()
    await eventually(lambda: len(Audit(house, []).calls()) == 5, within=10)
    booked = await Audit(house, sent).check()
    ends = sorted(row.outcome for row in booked.values())
    assert ends == ["recovered"] * 4 + ["success"]


async def test_a_gateway_stopped_during_an_outage_keeps_its_spool_for_the_next_start(
    own_house: House, mortal: Postgres
) -> None:
    house = own_house
    gateway = await house.gateway(ledger_wait_s=1).start()
    tenants = [house.tenant(), house.tenant(ledger_outage="allow")]
    async with Load([gateway], tenants, callers=8) as load:
        await load.more(30)
        mortal.kill()
        await asyncio.sleep(2)
        gateway.signal(signal.SIGTERM)
        await load.stop()
    await eventually(lambda: not gateway.running(), within=30)
    assert gateway.process is not None
    assert gateway.process.returncode == 0
    mortal.start()
    await gateway.start()
    await Audit(house, load.sent).check()
    assert gateway.spooled() == 0
