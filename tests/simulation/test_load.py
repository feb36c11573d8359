"""Gateways are killed, drained and left by their clients, under load."""

from __future__ import annotations

import asyncio
import signal

from tests.simulation.house import Audit, House, eventually
from tests.simulation.traffic import Load


async def test_one_of_two_gateways_is_killed_under_load_again_and_again(house: House) -> None:
    survivor = await house.gateway("survivor").start()
    victim = await house.gateway("victim").start()
    tenants = [house.tenant() for _ in range(3)]

    def slow(rng: object, kind: str) -> str:
        # At any time most of the callers wait for an answer, so that each kill meets some.
        return "latency=0.1"

    async with Load([survivor, victim], tenants, callers=16, directive=slow) as load:
        for _ in range(3):
            await load.more(80)
            victim.kill()
            await load.more(40)
            await victim.start()
    booked = await Audit(house, load.sent).check()
    assert "recovered" in {row.outcome for row in booked.values()}


async def test_a_gateway_drained_under_load_loses_nothing(house: House) -> None:
    staying = await house.gateway("staying").start()
    leaving = await house.gateway("leaving").start()
    tenant = house.tenant()
    async with (
        Load([staying], [tenant], callers=4, seed=1) as here,
        Load(
            [leaving], [tenant], callers=12, seed=2, directive=lambda rng, kind: "latency=0.3"
        ) as there,
    ):
        await there.more(40)
        leaving.signal(signal.SIGTERM)
        await eventually(lambda: not leaving.running(), within=30)
        await here.more(20)
    assert leaving.process is not None
    assert leaving.process.returncode == 0, leaving.log()[-2000:]
    booked = await Audit(house, [*here.sent, *there.sent]).check()
    assert {row.outcome for row in booked.values()} == {"success"}
    # Whoever was being served got the whole answer; the others could not connect.
    assert not [sent for sent in there.sent if sent.status is not None and not sent.whole]


async def test_clients_that_leave_by_the_hundred_are_all_billed_once(house: House) -> None:
    gateways = [await house.gateway(name).start() for name in ("one", "two")]
    tenants = [house.tenant() for _ in range(2)]

    def slow(rng: object, kind: str) -> str:
        return "chunk_delay=0.01" if kind == "stream" else "latency=0.02"

    async with Load(gateways, tenants, callers=32, leaving=0.7, directive=slow) as load:
        while len(load.sent) < 600:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.05)
    booked = await Audit(house, load.sent).check(within=10)
    ends = {row.outcome for row in booked.values()}
    assert ends <= {"success", "client_disconnected"}
    assert "client_disconnected" in ends
