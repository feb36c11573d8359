"""Between a gateway and PostgreSQL the network fails, at exactly the wrong moment."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from app.store import batch
from app.store.directory import QUERY_S
from tests.simulation.house import LOCKS_S, SLACK_S, Audit, Gateway, House, Tenant, eventually
from tests.simulation.traffic import Load, a_client, call
from tests.simulation.wire import wired

RESERVE, SETTLE, LOCKS = batch.WRITE_HOLDS, batch.WRITE_CALLS, batch.LOCK_SQL
WAIT_S = 1
"""How long a call waits for PostgreSQL here; a round trip has two seconds more."""
LEARNED_S = QUERY_S + SLACK_S
"""How long a gateway may go by what is no longer so."""

LOSSES = [
    # Which commit; does it arrive; does the connection then hang, or is it cut.
    pytest.param(statement, arrives, silent, id=f"{name}-{when}-{how}")
    for name, statement in (("reserve", RESERVE), ("settle", SETTLE))
    for when, arrives in (("unheard", True), ("lost", False))
    for how, silent in (("cut", False), ("silent", True))
]


@pytest.mark.parametrize(("statement", "arrives", "silent"), LOSSES)
@pytest.mark.parametrize("ledger_outage", ["deny", "allow"])
async def test_a_commit_whose_acknowledgement_is_lost_counts_once(
    house: House, statement: bytes, arrives: bool, silent: bool, ledger_outage: str
) -> None:
    tenant = house.tenant(ledger_outage=ledger_outage)
    with wired(house) as wire:
        # No hold runs out while its settlement is in doubt.
        gateway = await house.gateway(ledger_wait_s=WAIT_S, hold_deadline_s=30).start()
        sent, doubtful = [], []
        async with a_client() as client:
            sent.append(await call(client, gateway, tenant, "chat"))
            # Waiting for a connection that hangs takes seconds, so once will do.
            for kind in ("stream",) if silent else ("chat", "stream"):
                trap = wire.trap(statement, arrives=arrives, silent=silent)
                doubtful.append(await call(client, gateway, tenant, kind))
                assert trap.sprung.is_set()
                # Once the gateway is over it.
                await eventually(
                    lambda: _whole(client, gateway, tenant, sent), within=10, every=0.1
                )
        if statement == RESERVE and ledger_outage == "deny":
            assert {one.code for one in doubtful} == {"ledger_unavailable"}
        else:
            assert all(one.whole for one in doubtful), "a settlement can wait in the spool"
        sent += doubtful
        booked = await Audit(house, sent).check()
        ends = {row.outcome for row in booked.values()}
        assert ends <= {"success", "rejected_unavailable"}
        assert not any(row.adjustments for row in booked.values())


async def _whole(client: Any, gateway: Any, tenant: Any, sent: list[Any]) -> bool:
    sent.append(await call(client, gateway, tenant, "chat"))
    return bool(sent[-1].whole)


@pytest.mark.parametrize("ledger_outage", ["deny", "allow"])
async def test_a_reserve_that_arrives_when_its_call_is_over_leaves_no_hold(
    house: House, ledger_outage: str
) -> None:
    """Its locks keep the settlement waiting until it has arrived after all."""
    tenant = house.tenant(ledger_outage=ledger_outage)
    with wired(house) as wire:
        gateway = await house.gateway(ledger_wait_s=WAIT_S).start()
        async with a_client() as client:
            sent = [await call(client, gateway, tenant, "chat")]
            trap = wire.trap(RESERVE, arrives=True, silent=True, after_s=WAIT_S + 3)
            sent.append(await call(client, gateway, tenant, "chat"))
            assert sent[-1].whole == (ledger_outage == "allow")
            await eventually(trap.delivered.is_set, within=15)
            await eventually(lambda: len(Audit(house, []).calls()) == 2, within=10)
        booked = await Audit(house, sent).check()
        assert sum(row.outcome == "success" for row in booked.values()) == sum(
            one.whole for one in sent
        )


@pytest.mark.parametrize("mid_sentence", [False, True], ids=["between", "mid-sentence"])
async def test_a_gateway_cut_off_with_locks_in_its_hands_stalls_the_others_for_seconds_only(
    house: House, mid_sentence: bool
) -> None:
    """PostgreSQL waits for what to write; or, with all of it written, for the end of the commit."""
    tenant = house.tenant()
    with wired(house) as wire:
        lost = await house.gateway("lost", ledger_wait_s=WAIT_S).start()
        house.dsn = house.direct
        other = await house.gateway("other").start()
        async with a_client() as client:
            sent = [await call(client, lost, tenant, "chat")]
            if mid_sentence:
                trap = wire.trap(RESERVE, arrives=True, silent=True, short_by=20)
            else:
                # What it believes is not so any more: it has to lock, and look.
                sent.append(await call(client, other, tenant, "chat"))
                trap = wire.trap(LOCKS, arrives=True, silent=True)
            going = asyncio.create_task(call(client, lost, tenant, "chat"))
            await eventually(trap.delivered.is_set, within=5)
            wire.silence()
            began = time.monotonic()
            await eventually(lambda: _whole(client, other, tenant, sent), within=LOCKS_S + SLACK_S)
            assert 2 < time.monotonic() - began < LOCKS_S + SLACK_S
            sent.append(await going)
        assert sent[-1].code == "ledger_unavailable"
        wire.heal()
        await eventually(lambda: lost.spooled() == 0, within=10)
        await Audit(house, sent).check()


@pytest.mark.parametrize("how", ["refuse", "silence"])
async def test_a_gateway_cut_off_under_load_catches_up_while_another_serves_on(
    house: House, how: str
) -> None:
    tenants = [house.tenant(), house.tenant(ledger_outage="allow")]
    with wired(house) as wire:
        cut_off = await house.gateway("cut-off", ledger_wait_s=WAIT_S).start()
        house.dsn = house.direct
        other = await house.gateway("other").start()
        async with (
            Load([cut_off], tenants, callers=8, seed=1) as there,
            Load([other], tenants, callers=8, seed=2) as here,
        ):
            await there.more(40)
            getattr(wire, how)()
            await here.more(40)
            await asyncio.sleep(5)
            await here.more(20)
            wire.heal()
            await there.more(40)
        await eventually(lambda: cut_off.spooled() == 0, within=10)
        await Audit(house, [*here.sent, *there.sent]).check()


async def test_a_call_stays_alive_when_the_refresh_of_its_hold_gets_no_answer(
    house: House,
) -> None:
    tenant = house.tenant()
    with wired(house) as wire:
        gateway = await house.gateway(hold_deadline_s=4).start()
        async with a_client() as client:
            slow = "answer_tokens=64 chunk_delay=0.15"
            trap = wire.trap(b"UPDATE holds h SET deadline", arrives=False, silent=True)
            sent = [await call(client, gateway, tenant, "stream", directive=slow)]
        assert trap.sprung.is_set()
        assert sent[0].whole, sent[0]
        [row] = (await Audit(house, sent).check()).values()
        assert row.outcome == "success", "its hold was kept alive"


async def test_a_gateway_whose_connections_were_forgotten_learns_of_changes(house: House) -> None:
    """Nobody told it that they are gone, and of what it is to learn no call of its own tells it."""
    kept, revoked = house.tenant(), house.tenant()
    with wired(house) as wire:
        gateway = await house.gateway(ledger_wait_s=WAIT_S).start()
        async with a_client() as client:
            sent = [await call(client, gateway, tenant, "chat") for tenant in (kept, revoked)]
            assert all(one.whole for one in sent)
            assert await _got(200, client, gateway, kept, "key")
            # So that there are several to forget.
            await asyncio.gather(*(gateway.ready() for _ in range(16)))
            wire.forget()
            began = time.monotonic()
            house.revoke(revoked)
            await eventually(
                lambda: _got(401, client, gateway, revoked), within=LEARNED_S, every=0.1
            )
            assert time.monotonic() - began < LEARNED_S
            # What is read for an answer is read anew.
            began = time.monotonic()
            assert await _got(200, client, gateway, kept, "key")
            assert time.monotonic() - began < SLACK_S
            # And what it has never heard of it asks for.
            wire.forget()
            late = house.tenant()
            began = time.monotonic()
            await eventually(lambda: _got(200, client, gateway, late), within=LEARNED_S, every=0.1)
            assert time.monotonic() - began < LEARNED_S
            await eventually(lambda: _whole(client, gateway, late, sent), within=10, every=0.1)
        await Audit(house, sent).check()


async def _got(
    status: int, client: Any, gateway: Gateway, tenant: Tenant, what: str = "models"
) -> bool:
    headers = {"authorization": f"Bearer {tenant.key}"}
    answer = await client.get(f"{gateway.url}/v1/{what}", headers=headers)
    return bool(answer.status_code == status)
