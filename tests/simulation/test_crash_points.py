"""A gateway is killed at each point of a call; a replica takes over, and the books are right."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import pytest

from tests.simulation.house import DEADLINE_S, Audit, Gateway, House, eventually
from tests.simulation.traffic import Sent, a_client, call

SLOW = "latency=30"
"""A provider that is still at work when its client dies."""


async def asked(house: House, gateway: Gateway, kind: str, calls: int, **body: Any) -> list[Sent]:
    """Make so many calls at once with a tenant of their own."""
    tenant = house.tenant()
    async with a_client() as client:
        return await asyncio.gather(
            *(call(client, gateway, tenant, kind, words=n + 1, **body) for n in range(calls))
        )


REACHED, NOT_REACHED = True, False
HELD, FREE, BOOKED = "recovered", None, "success"

POINTS = [
    # Where it dies; whether the call had reached the provider; how it is booked, if at all.
    ("reserve-before-commit", NOT_REACHED, (FREE,)),
    ("reserve-commit-sent", NOT_REACHED, (FREE, HELD)),
    ("reserve-committed", NOT_REACHED, (HELD,)),
    ("before-forward", NOT_REACHED, (HELD,)),
    ("settle-before-commit", REACHED, (HELD,)),
    ("settle-commit-sent", REACHED, (HELD, BOOKED)),
    ("settle-committed", REACHED, (BOOKED,)),
    ("before-last-byte", REACHED, (BOOKED,)),
    ("after-last-byte", REACHED, (BOOKED,)),
]


@pytest.mark.parametrize(("point", "reached", "outcomes"), POINTS, ids=[p[0] for p in POINTS])
async def test_a_call_whose_gateway_is_killed_is_booked_once(
    house: House, point: str, reached: bool, outcomes: tuple[str | None, ...]
) -> None:
    """Every kind of call dies at the point, one gateway after the other, beside one that lives."""
    tenant = house.tenant()
    sent: list[Sent] = []
    replica = await house.gateway("replica").start()
    # The second call of each kind is the one: the first makes the account of the month.
    for kind in ("chat", "stream"):
        doomed = await house.gateway(f"doomed-{kind}").start(point, hit=2)
        async with a_client() as client:
            sent.append(await call(client, doomed, tenant, kind))
            assert sent[-1].whole, sent[-1]
            last = await call(client, doomed, tenant, kind)
            sent.append(last)
            await doomed.died()
            if point != "after-last-byte":
                assert not last.whole, "the client has an answer that should not have left"
    async with a_client() as client:
        sent.append(await call(client, replica, tenant, "chat"))
        assert sent[-1].whole, "the replica serves on"
    booked = await Audit(house, sent).check()
    ended = [row.outcome for row in booked.values()]
    assert ended.count("success") >= 3
    dead = sorted(ended, key=lambda outcome: outcome == "success")
    assert len(house.reached()) == 3 + 2 * reached
    for extra in dead[: len(ended) - 3]:
        assert extra in outcomes
    assert len(ended) == 5 or FREE in outcomes


@pytest.mark.parametrize("kind", ["chat", "stream", "ocr", "unpriced"])
async def test_a_call_killed_while_the_provider_works_is_billed_its_hold(
    house: House, kind: str
) -> None:
    doomed = await house.gateway("doomed").start()
    going = asyncio.create_task(asked(house, doomed, kind, 3, directive=SLOW))
    await eventually(lambda: len(house.simulator.calls) == 3, within=10)
    doomed.kill()
    sent = await going
    assert not any(one.whole for one in sent)
    await house.gateway("replica").start()
    booked = await Audit(house, sent).check()
    assert [row.outcome for row in booked.values()] == ["recovered"] * 3
    assert all(row.estimated for row in booked.values())
    assert all((row.nano is None) == (kind == "unpriced") for row in booked.values())


async def test_a_stream_killed_before_its_first_checkpoint_is_billed_its_hold(
    house: House,
) -> None:
    doomed = await house.gateway("doomed").start("chunk", hit=4)
    going = asyncio.create_task(
        asked(house, doomed, "stream", 1, directive="chunk_delay=0.05", max_tokens=64)
    )
    await doomed.died()
    [sent] = await going
    assert sent.text, "some of it had arrived"
    assert not sent.whole
    await house.gateway("replica").start()
    [row] = (await Audit(house, [sent]).check()).values()
    assert (row.outcome, row.estimated) == ("recovered", True)
    assert row.tokens > 64, "all of what it could use"


async def test_a_stream_killed_after_a_checkpoint_is_billed_what_had_come(house: House) -> None:
    doomed = await house.gateway("doomed").start()
    slow = "answer_tokens=500 chunk_delay=0.03"
    going = asyncio.create_task(asked(house, doomed, "stream", 1, directive=slow, max_tokens=4000))
    checked = "SELECT checkpoint FROM holds WHERE checkpoint IS NOT NULL"
    [[checkpoint]] = await eventually(lambda: house.rows(checked), within=15)
    doomed.kill()
    [sent] = await going
    assert sent.text
    assert not sent.whole
    await house.gateway("replica").start()
    [row] = (await Audit(house, [sent]).check()).values()
    assert (row.outcome, row.estimated) == ("recovered", True)
    assert checkpoint["tokens"] <= row.tokens < 1000, "far below the hold"


async def test_a_stream_that_we_break_off_is_billed_what_had_come(house: House) -> None:
    gateway = await house.gateway().start("relay-fails", hit=8)
    [sent] = await asked(house, gateway, "stream", 1, directive="chunk_delay=0.02")
    assert sent.text, "some of it had arrived"
    assert not sent.whole
    [row] = (await Audit(house, [sent]).check()).values()
    assert row.outcome == "upstream_error"
    assert row.tokens > 0, "it was not free"


async def test_a_long_stream_outlives_its_deadline(house: House) -> None:
    gateway = await house.gateway().start()
    slow = "answer_tokens=64 chunk_delay=0.1"
    sent = await asked(house, gateway, "stream", 2, directive=slow)
    assert all(one.whole for one in sent), sent
    booked = await Audit(house, sent).check()
    assert {row.outcome for row in booked.values()} == {"success"}


REAPS = ["reap-begun", "settle-before-commit", "settle-commit-sent", "settle-committed", "reaped"]


@pytest.mark.parametrize("point", REAPS)
async def test_a_reaper_killed_at_its_work_leaves_it_to_another(house: House, point: str) -> None:
    doomed = await house.gateway("doomed", worker="false").start()
    going = asyncio.create_task(asked(house, doomed, "chat", 5, directive=SLOW))
    await eventually(lambda: len(house.simulator.calls) == 5, within=10)
    doomed.kill()
    sent = await going
    reaper = await house.gateway("reaper").start(point, ready=False)
    await reaper.died(within=DEADLINE_S + 20)
    await house.gateway("replica").start()
    booked = await Audit(house, sent).check()
    assert [row.outcome for row in booked.values()] == ["recovered"] * 5


async def test_a_reaper_that_is_stopped_at_its_work_does_not_keep_others_from_it(
    house: House,
) -> None:
    doomed = await house.gateway("doomed", worker="false").start()
    going = asyncio.create_task(asked(house, doomed, "chat", 3, directive=SLOW))
    await eventually(lambda: len(house.simulator.calls) == 3, within=10)
    doomed.kill()
    sent = await going
    reaper = await house.gateway("reaper").start("reap-begun", signal="SIGSTOP", ready=False)
    await reaper.stalled(within=DEADLINE_S + 20)
    await house.gateway("replica").start()
    await Audit(house, sent).at_rest(within=15)
    reaper.signal(signal.SIGCONT)
    booked = await Audit(house, sent).check()
    assert [row.outcome for row in booked.values()] == ["recovered"] * 3


async def test_a_gateway_that_slept_past_its_deadline_books_the_difference_once(
    house: House,
) -> None:
    """It is stopped with calls at the provider, a replica recovers them, then it goes on."""
    sleeper = await house.gateway("sleeper").start()
    replica = await house.gateway("replica").start()
    tenant = house.tenant()
    async with a_client() as client:
        going = asyncio.gather(
            *(
                call(client, sleeper, tenant, kind, words=n + 1, directive="latency=1")
                for n in range(3)
                for kind in ("chat", "stream", "ocr", "unpriced")
            )
        )
        await eventually(lambda: len(house.simulator.calls) == 12, within=10)
        sleeper.signal(signal.SIGSTOP)
        await Audit(house, []).at_rest(within=15)
        assert {row.outcome for row in Audit(house, []).calls().values()} == {"recovered"}
        sleeper.signal(signal.SIGCONT)
        sent = await going
        sent.append(await call(client, replica, tenant, "chat"))
    assert all(one.whole for one in sent), sent
    booked = await Audit(house, sent).check()
    late = [row for row in booked.values() if row.outcome == "recovered"]
    assert len(late) == 12
    assert all(row.adjustments == 1 for row in late)


async def test_an_idempotent_call_whose_answer_died_on_its_way_is_replayed_not_repeated(
    house: House,
) -> None:
    doomed = await house.gateway("doomed").start("before-last-byte")
    replica = await house.gateway("replica").start()
    tenant = house.tenant()
    once = {"idempotency-key": "once"}
    async with a_client() as client:
        first = await call(client, doomed, tenant, "chat", headers=once)
        await doomed.died()
        again = await call(client, replica, tenant, "chat", headers=once)
    assert not first.whole
    assert again.whole
    [id] = house.reached()
    assert again.call_id == id
    [row] = (await Audit(house, [again]).check()).values()
    assert row.outcome == "success"
