"""Many calls at once: as many are served as the cap pays for, on any number of processes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

import httpx2
import pytest

from app.simulator import RunningSimulator
from tests.gateway.kit import DIME, KINDS, PAGE, House, Server, Tenant, refused, served

CALLERS = 64


@pytest.fixture(params=["one process", "two processes", "two servers"])
def urls(request: pytest.FixtureRequest, house: House) -> list[str]:
    """Where to send calls, in turn."""
    if request.param == "one process":
        return [house.server.url]
    if request.param == "two processes":
        double: Server = request.getfixturevalue("two_processes")
        return [double.url]
    second: Server = request.getfixturevalue("second_server")
    return [house.server.url, second.url]


async def _at_once(
    house: House, urls: Sequence[str], tenant: Tenant, path: str, body: dict[str, object], n: int
) -> tuple[Counter[str], int]:
    """Send a call n times at once; who is told `quota_reserved` asks again.

    Return how the calls ended, and how often one was told to ask again.
    """
    ends: Counter[str] = Counter()
    asked_again = 0
    headers = {"authorization": f"Bearer {tenant.secret}"}

    async def caller(url: str) -> None:
        nonlocal asked_again
        # A connection of its own for each: processes share connections, not requests.
        async with httpx2.AsyncClient(base_url=url, timeout=60) as client:
            while True:
                answer = await client.post(path, json=body, headers=headers)
                house.saw(answer)
                if answer.status_code == 200:
                    ends["served"] += 1
                    return
                error = answer.json()["error"]
                if error["code"] != "quota_reserved":
                    ends[error["code"]] += 1
                    return
                limit = error["limit"]
                used, held = float(limit["used"]), float(limit["held"])
                assert used + held + float(limit["needed"]) > float(limit["amount"]) + 1e-9, limit
                assert held > 0
                asked_again += 1
                await asyncio.sleep(0.03)

    await asyncio.gather(*(caller(urls[index % len(urls)]) for index in range(n)))
    return ends, asked_again


def _run(
    house: House, urls: Sequence[str], tenant: Tenant, path: str, n: int = CALLERS, **body: object
) -> tuple[Counter[str], int]:
    body["model"] = tenant.model
    return asyncio.run(_at_once(house, urls, tenant, path, body, n))


def test_of_64_calls_of_a_dollar_at_once_a_cap_of_10_dollars_serves_10(
    house: House, sim: RunningSimulator, urls: list[str]
) -> None:
    sim.set(latency=0.05)
    tenant = house.tenant(house.model({"page": "1"}, "mistral-ocr-latest"), usd="10")
    image = {"type": "image_url", "image_url": "data:image/png;base64,iVBORw0KGgo="}
    ends, _ = _run(house, urls, tenant, "/v1/ocr", document=image)
    assert ends == {"served": 10, "cost_quota_exceeded": CALLERS - 10}
    assert sim.app.total == 10
    standing = tenant.standing()
    assert (standing["cost_used_this_month"], standing["cost_held"]) == ("10.00", "0.00")
    outcomes = Counter(call["outcome"] for call in tenant.calls())
    assert outcomes["success"] == 10
    assert outcomes["rejected_cost_quota_exceeded"] == CALLERS - 10


def test_calls_that_use_less_than_they_hold_are_all_served_in_the_end(
    house: House, sim: RunningSimulator, urls: list[str]
) -> None:
    # Each may cost a dollar and costs twenty cents: forty fit, though only ten at a time.
    sim.set(latency=0.02, answer_tokens=2)
    tenant = house.tenant(house.model(DIME), usd="10")
    ends, asked_again = _run(
        house,
        urls,
        tenant,
        "/v1/chat/completions",
        n=40,
        messages=[{"role": "user", "content": "?"}],
        max_tokens=10,
    )
    assert ends == {"served": 40}
    assert asked_again > 0
    standing = tenant.standing()
    assert (standing["cost_used_this_month"], standing["cost_held"]) == ("8.00", "0.00")


def test_no_call_is_refused_while_neither_use_nor_holds_stand_in_its_way(
    house: House, sim: RunningSimulator, urls: list[str]
) -> None:
    sim.set(latency=0.05)
    tenant = house.tenant(house.model({"page": "1"}, "mistral-ocr-latest"), usd=str(CALLERS))
    image = {"type": "image_url", "image_url": "data:image/png;base64,iVBORw0KGgo="}
    ends, asked_again = _run(house, urls, tenant, "/v1/ocr", document=image)
    assert ends == {"served": CALLERS}
    assert asked_again == 0
    assert tenant.standing()["cost_used_this_month"] == f"{CALLERS}.00"
    refused(tenant.ocr(1), 429, "cost_quota_exceeded")


def test_calls_of_every_kind_at_once_add_up_to_the_cent(
    house: House, sim: RunningSimulator, second_server: Server
) -> None:
    sim.set(latency=0.02)
    models = {name: house.model_for(kind) for name, kind in KINDS.items()}
    tenant = house.tenant(*models.values(), usd="100", tokens=10_000)
    alone = {
        name: float(tenant.booked(served(tenant.ask(kind, models[name])))["cost_usd"])
        for name, kind in KINDS.items()
    }

    async def work() -> None:
        async with (
            httpx2.AsyncClient(base_url=house.server.url, timeout=60) as one,
            httpx2.AsyncClient(base_url=second_server.url, timeout=60) as other,
        ):
            headers = {"authorization": f"Bearer {tenant.secret}"}
            answers = await asyncio.gather(
                *(
                    client.post(kind.path, headers=headers, **kind.body(models[name]))
                    for client in (one, other)
                    for name, kind in KINDS.items()
                    for _ in range(5)
                )
            )
        for answer in answers:
            house.saw(answer)
            assert answer.status_code == 200, answer.text

    asyncio.run(work())
    total = 11 * sum(alone.values())
    assert float(tenant.standing()["cost_used_this_month"]) == pytest.approx(total, abs=1e-9)
    per_call = {"chat": 15, "stream": 15, "embeddings": 20}
    assert tenant.standing()["tokens_used_this_month"] == 11 * sum(per_call.values())


def test_a_one_shot_key_serves_one_of_many_calls_at_once(
    house: House, sim: RunningSimulator, second_server: Server
) -> None:
    tenant = house.tenant(house.model(PAGE, "mistral-ocr-latest"), key={"one_shot": True})
    image = {"type": "image_url", "image_url": "data:image/png;base64,iVBORw0KGgo="}
    ends, _ = _run(
        house, [house.server.url, second_server.url], tenant, "/v1/ocr", n=16, document=image
    )
    assert ends == {"served": 1, "invalid_api_key": 15}
    assert sim.app.total == 1
    assert [call["outcome"] for call in tenant.calls()] == ["success"]
