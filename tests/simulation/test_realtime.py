"""Sessions while gateways are killed, hang and leave, and PostgreSQL goes and comes back: each is
billed once, for what was relayed, or up to its last checkpoint if its gateway died."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import signal
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from app.store.batch import WRITE_HOLDS
from tests.simulation.house import (
    LISTEN,
    NANO,
    Audit,
    Gateway,
    House,
    Postgres,
    Row,
    Tenant,
    eventually,
)
from tests.simulation.traffic import Load
from tests.simulation.wire import wired

PCM = 48_000
CENT = NANO // 100
"""What a second of audio costs."""
PATIENT_S = 20
"""A deadline of holds that outlives the outages here, as the real one does most."""


class Talk:
    """The client's side of a transcription session."""

    def __init__(self, house: House, connection: ClientConnection) -> None:
        self.house = house
        self.connection = connection
        self.code = ""
        """Of the last error that it was told."""
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> int:
        try:
            while True:
                event = json.loads(await self.connection.recv())
                if event["type"] == "error":
                    self.code = event["error"]["code"]
        except ConnectionClosed as closed:
            return 1006 if closed.rcvd is None else closed.rcvd.code

    async def append(self, seconds: float) -> None:
        audio = base64.b64encode(bytes(round(seconds * PCM))).decode()
        event = {"type": "input_audio_buffer.append", "audio": audio}
        await self.connection.send(json.dumps(event))

    async def stream(self, *, count: int, seconds: float = 0.1, pause: float = 0.02) -> None:
        """Append until it is closed, or so often."""
        with contextlib.suppress(ConnectionClosed):
            for _ in range(count):
                await self.append(seconds)
                await asyncio.sleep(pause)

    async def end(self, within: float = 20) -> tuple[int, str]:
        """Wait for the end; return how it was closed, and the code of the error before that."""
        async with asyncio.timeout(within):
            return await self.reading, self.code


@contextlib.asynccontextmanager
async def talk(house: House, gateway: Gateway, tenant: Tenant) -> AsyncIterator[Talk]:
    async with connect(
        f"{gateway.url.replace('http', 'ws')}/v1/realtime?intent=transcription&model={LISTEN}",
        additional_headers={"authorization": f"Bearer {tenant.key}"},
        proxy=None,
        compression=None,
        close_timeout=2,
    ) as connection:
        made = Talk(house, connection)
        yield made
        await connection.close()
        await made.reading


def seconds_of_each(house: House) -> list[Decimal]:
    """Seconds of audio that reached the provider, by session."""
    sessions = [call.realtime for call in house.simulator.calls if call.realtime is not None]
    return [Decimal(session.audio_bytes) / PCM for session in sessions]


def heard(house: House) -> Decimal:
    """The same of all sessions."""
    return sum(seconds_of_each(house), Decimal(0))


async def reaches(house: House, seconds: float) -> None:
    await eventually(lambda: heard(house) == Decimal(str(seconds)), within=15)


def checkpoints(house: House) -> list[Any]:
    """Seconds that are in the database as used, of each session that runs."""
    rows = house.rows("SELECT checkpoint FROM holds WHERE facts->>'endpoint' = 'realtime'")
    return [(checkpoint or {}).get("usage", {}).get("second", 0) for (checkpoint,) in rows]


def only(booked: dict[str, Row], house: House) -> tuple[Row, str]:
    """Return the one session that is booked, and its close reason."""
    [(id, reason)] = house.rows("SELECT id::text, close_reason FROM calls")
    return booked[id], reason


async def test_a_session_whose_gateway_is_killed_is_billed_up_to_its_last_checkpoint(
    house: House,
) -> None:
    doomed, survivor = [await house.gateway(name).start() for name in ("doomed", "survivor")]
    tenant = house.tenant(cap_usd="0.1")
    async with talk(house, doomed, tenant) as session:
        await session.append(3)
        await eventually(lambda: checkpoints(house) == [3], within=4)
        await session.append(1)
        await reaches(house, 4)
        doomed.kill()
        assert (await session.end())[0] == 1006
    row, reason = only(await Audit(house, []).check(), house)
    assert (row.outcome, reason, row.estimated) == ("recovered", "recovered", True)
    assert 3 * CENT <= (row.nano or 0) <= 4 * CENT
    # It counts: what is left does not pay for seven seconds more.
    async with talk(house, survivor, tenant) as session:
        await session.append(7.5)
        assert await session.end() == (1008, "cost_quota_exceeded")
    await Audit(house, []).check()


async def test_a_session_whose_hold_was_written_unheard_finds_it_and_goes_on(house: House) -> None:
    tenant = house.tenant(ledger_outage="allow")
    with wired(house) as wire:
        gateway = await house.gateway(ledger_wait_s=1, hold_deadline_s=4).start()
        trap = wire.trap(WRITE_HOLDS, arrives=True, silent=False)
        async with talk(house, gateway, tenant) as session:
            await session.append(3)
            await eventually(trap.sprung.is_set, within=5)
            await eventually(lambda: checkpoints(house) == [3], within=8)
            # Past the deadline of what was written: from then on it lives by being refreshed.
            await asyncio.sleep(6)
            await session.append(1)
            await reaches(house, 4)
            await session.connection.close()
            assert await session.end() == (1000, "")
        row, reason = only(await Audit(house, []).check(), house)
    assert (row.outcome, reason, row.estimated) == ("success", "normal", False)
    assert row.nano == 4 * CENT


async def test_a_session_that_hung_past_its_deadline_is_billed_once(house: House) -> None:
    """Another replica has billed it meanwhile; what it used beyond that is adjusted."""
    sleeper = await house.gateway("sleeper").start()
    await house.gateway("reaper").start()
    tenant = house.tenant()
    async with talk(house, sleeper, tenant) as session:
        await session.append(3)
        await eventually(lambda: checkpoints(house) == [3], within=4)
        await session.append(1)
        await reaches(house, 4)
        sleeper.signal(signal.SIGSTOP)
        await eventually(lambda: not checkpoints(house), within=10, what="it is recovered")
        sleeper.signal(signal.SIGCONT)
        await session.stream(count=60, seconds=0.5)
        assert (await session.end())[0] == 1012
    row, _ = only(await Audit(house, []).check(), house)
    assert row.outcome == "recovered"
    assert (row.nano or 0) + row.adjusted_nano == heard(house) * CENT


async def test_a_session_outlives_a_restart_of_postgresql(
    own_house: House, mortal: Postgres
) -> None:
    house = own_house
    gateway = await house.gateway(hold_deadline_s=PATIENT_S).start()
    deny, allow = house.tenant(), house.tenant(ledger_outage="allow")
    async with talk(house, gateway, deny) as one, talk(house, gateway, allow) as two:
        streams = [asyncio.create_task(each.stream(count=160)) for each in (one, two)]
        await asyncio.sleep(0.5)
        mortal.kill()
        await asyncio.sleep(1)
        mortal.start()
        await asyncio.gather(*streams)
        await reaches(house, 32)
    booked = await Audit(house, []).check()
    assert (
        sorted((row.outcome, row.nano) for row in booked.values()) == [("success", 16 * CENT)] * 2
    )


async def test_a_long_outage_ends_the_session_that_may_not_go_on_without_the_ledger(
    own_house: House, mortal: Postgres
) -> None:
    house = own_house
    gateway = await house.gateway(ledger_wait_s=1, hold_deadline_s=PATIENT_S).start()
    deny, allow = house.tenant(), house.tenant(ledger_outage="allow")
    async with talk(house, gateway, deny) as one, talk(house, gateway, allow) as two:
        for each in (one, two):
            await each.append(1)
        await reaches(house, 2)
        mortal.kill()
        streams = [asyncio.create_task(each.stream(count=200, seconds=0.5)) for each in (one, two)]
        assert await one.end() == (1013, "ledger_unavailable")
        await asyncio.gather(*streams)
        # The other one has gone on all the while.
        await eventually(lambda: 101 in seconds_of_each(house), within=10)
        mortal.start()
    booked = await Audit(house, []).check()
    rows = {row.allocation_id: row for row in booked.values()}
    assert rows[deny.allocation_id].outcome == "cut_off"
    # What was held when PostgreSQL went: ten seconds ahead.
    assert CENT <= (rows[deny.allocation_id].nano or 0) <= 12 * CENT
    assert rows[allow.allocation_id].outcome == "success"
    assert rows[allow.allocation_id].nano == 101 * CENT
    assert sum(row.nano or 0 for row in rows.values()) == heard(house) * CENT


async def test_a_session_opened_without_the_ledger_is_held_when_it_is_back(
    own_house: House, mortal: Postgres
) -> None:
    house = own_house
    gateway = await house.gateway(ledger_wait_s=1, hold_deadline_s=PATIENT_S).start()
    deny, allow = house.tenant(), house.tenant(cap_usd="0.3", ledger_outage="allow")
    for tenant in (deny, allow):
        async with talk(house, gateway, tenant) as session:
            await session.append(1)
    before = Decimal(2)
    await reaches(house, 2)
    mortal.kill()
    async with talk(house, gateway, deny) as session:
        assert await session.end() == (1008, "ledger_unavailable")
    assert len(house.simulator.calls) == 2
    async with talk(house, gateway, allow) as session:
        await session.append(5)
        await eventually(lambda: heard(house) == before + 5, within=10)
        mortal.start()
        await eventually(lambda: checkpoints(house) == [5], within=10, what="it is held")
        # And so it is cut at its cap.
        await session.stream(count=100, seconds=0.5)
        assert await session.end() == (1008, "cost_quota_exceeded")
    booked = await Audit(house, []).check()
    spent = [row.nano or 0 for row in booked.values() if row.allocation_id == allow.allocation_id]
    assert sum(spent) == 30 * CENT


async def test_a_gateway_that_leaves_during_an_outage_spools_its_sessions(
    own_house: House, mortal: Postgres
) -> None:
    house = own_house
    gateway = await house.gateway(ledger_wait_s=1, hold_deadline_s=PATIENT_S).start()
    async with talk(house, gateway, house.tenant()) as session:
        await session.append(3)
        await reaches(house, 3)
        mortal.kill()
        ended = asyncio.create_task(session.end())
        assert await gateway.terminate() == 0
        assert (await ended)[0] == 1012
    assert gateway.spooled() == 1
    mortal.start()
    await gateway.start()
    await eventually(lambda: Audit(house, []).calls(), within=10)
    row, reason = only(await Audit(house, []).check(), house)
    assert (row.outcome, reason, row.nano) == ("cut_off", "draining", 3 * CENT)


async def test_sessions_and_calls_share_a_cap_while_gateways_come_and_go(house: House) -> None:
    gateways = [await house.gateway(name).start() for name in ("one", "two", "three")]
    tenant = house.tenant(cap_usd="1.2")

    async def talking(number: int) -> None:
        gateway = gateways[number % 3]
        with contextlib.suppress(OSError, ConnectionClosed):
            async with talk(house, gateway, tenant) as session:
                await session.stream(count=400, seconds=0.1, pause=0.03)
                await session.end()

    async with Load(gateways, [tenant], callers=4, kinds=("chat", "ocr")) as load:
        sessions = [asyncio.create_task(talking(number)) for number in range(12)]
        await asyncio.sleep(0.7)
        gateways[0].kill()
        await asyncio.sleep(0.7)
        gateways[1].signal(signal.SIGTERM)
        await asyncio.gather(*sessions)
        await gateways[0].start()
    booked = await Audit(house, load.sent).check()
    [(spent,)] = house.rows("SELECT used_nano FROM accounts WHERE used_nano > 0")
    assert 0.9 * NANO < spent <= 1.2 * NANO
    assert {row.outcome for row in booked.values()} >= {"cut_off", "recovered"}
