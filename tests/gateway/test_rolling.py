"""Rolling windows of keys: what was used in the last hours, call by call.

Nobody waits for hours: calls are made older than they are.
"""

from __future__ import annotations

import random
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.simulator import RunningSimulator
from tests.gateway.kit import DIME, House, Server, Tenant, eventually, refused, served
from tests.gateway.test_key_limits import change, limit

HOUR = timedelta(hours=1)


def rolling(amount: Any, hours: int = 1, meter: str = "usd") -> list[dict[str, Any]]:
    return [{"meter": meter, "window": f"rolling:{hours}h", "amount": amount}]


def admitted(call_id: str) -> datetime:
    return datetime.fromtimestamp(int(call_id.replace("-", "")[:12], 16) / 1000, UTC)


def age(tenant: Tenant, call_id: str, by: timedelta) -> None:
    """Make a call older, as if it had been made earlier; its id says when it was made."""
    milliseconds = int(call_id.replace("-", "")[:12], 16) - by // timedelta(milliseconds=1)
    text = f"{milliseconds:012x}" + call_id.replace("-", "")[12:]
    older = f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
    house = tenant.house
    house.sql("SELECT ensure_calls_partition(%s)", admitted(older))
    house.sql(
        "UPDATE calls SET id = %s, started_at = started_at - %s WHERE id = %s RETURNING 1",
        older,
        by,
        call_id,
    )
    # As if nothing had slid out yet: what the account has of the key's calls, old and new.
    house.sql(
        "UPDATE accounts SET slid_to = '2000-01-01', slid_tokens = used_tokens - sums.tokens,"
        " slid_nano = used_nano - sums.nano"
        " FROM (SELECT sum(tokens) AS tokens, sum(cost_nano) AS nano FROM calls"
        "       WHERE key_id = %s) AS sums"
        " WHERE owner_id = %s AND window_kind LIKE 'rolling%%' RETURNING 1",
        tenant.key_id,
        tenant.key_id,
    )
    house.renamed.add(call_id)


def call(tenant: Tenant, tokens: int = 1, **more: Any) -> str:
    answer = served(tenant.chat(max_tokens=tokens, **more))
    id: str = answer.headers["x-spendgate-call-id"]
    return id


@pytest.mark.parametrize("meter", ["usd", "tokens"])
def test_what_was_used_an_hour_ago_is_not_held_against_the_key(house: House, meter: str) -> None:
    amount: Any = "1.00" if meter == "usd" else 50
    tenant = house.tenant(house.model(DIME), key={"limits": rolling(amount, meter=meter)})
    first = call(tenant, 5)
    second = call(tenant, 5)
    code = "cost_quota_exceeded" if meter == "usd" else "quota_exceeded"
    error = refused(tenant.chat(max_tokens=10), 429, code)
    assert error["limit"]["window"] == "rolling:1h"
    assert error["limit"]["resets_at"] is None
    age(tenant, first, HOUR)
    assert limit(tenant, "rolling:1h", meter)["used"] == ("0.50" if meter == "usd" else 15)
    call(tenant, 5)
    age(tenant, second, HOUR)
    assert limit(tenant, "rolling:1h", meter)["used"] == ("0.50" if meter == "usd" else 15)
    call(tenant, 5)
    refused(tenant.chat(max_tokens=10), 429, code)


def test_the_edge_of_the_window_is_exact(house: House) -> None:
    tenant = house.tenant(house.model(DIME), key={"limits": rolling("0.10")})
    first = call(tenant)
    age(tenant, first, HOUR - timedelta(seconds=3))
    refused(tenant.chat(max_tokens=1), 429, "cost_quota_exceeded")
    standing = limit(tenant, "rolling:1h")
    assert (standing["used"], standing["exceeded"], standing["resets_at"]) == ("0.10", True, None)
    leaves = datetime.fromisoformat(standing["recovers_at"])
    [booked] = [one for one in tenant.calls() if one["outcome"] == "success"]
    assert leaves == admitted(booked["id"]) + HOUR + timedelta(milliseconds=1)
    time.sleep(max(0, (leaves - datetime.now(UTC)).total_seconds() - 0.4))
    refused(tenant.chat(max_tokens=1), 429, "cost_quota_exceeded")
    time.sleep(max(0, (leaves - datetime.now(UTC)).total_seconds() + 0.05))
    call(tenant)


def test_it_recovers_when_enough_has_slid_out_and_not_before(house: House) -> None:
    tenant = house.tenant(house.model(DIME), key={"limits": rolling("0.50", 24)})
    for tokens, minutes in ((2, 600), (3, 300)):
        age(tenant, call(tenant, tokens), timedelta(minutes=minutes))
    change(tenant, limits=rolling("0.20", 24))
    standing = limit(tenant, "rolling:24h")
    # The first to leave leaves 0.30, which is still too much.
    second = tenant.calls()[1]
    expected = admitted(second["id"]) + timedelta(hours=24, milliseconds=1)
    assert standing["exceeded"]
    assert datetime.fromisoformat(standing["recovers_at"]) == expected
    change(tenant, limits=rolling("0.40", 24))
    first = tenant.calls()[0]
    expected = admitted(first["id"]) + timedelta(hours=24, milliseconds=1)
    assert datetime.fromisoformat(limit(tenant, "rolling:24h")["recovers_at"]) == expected
    change(tenant, limits=rolling(0, 24))
    assert limit(tenant, "rolling:24h")["recovers_at"] is None
    refused(tenant.chat(max_tokens=1), 429, "cost_quota_exceeded")


def test_a_window_opened_later_knows_the_hours_before_and_no_more(house: House) -> None:
    tenant = house.tenant(house.model(DIME))
    old, recent = call(tenant, 4), call(tenant, 3)
    age(tenant, old, 2 * HOUR)
    age(tenant, recent, HOUR / 2)
    change(tenant, limits=rolling("0.50"))
    assert limit(tenant, "rolling:1h")["used"] == "0.30"
    refused(tenant.chat(max_tokens=3), 429, "cost_quota_exceeded")
    call(tenant, 2)
    # What came in when it was opened slides out like the rest.
    recent = tenant.calls()[1]["id"]
    age(tenant, recent, HOUR / 2)
    assert limit(tenant, "rolling:1h")["used"] == "0.20"
    call(tenant, 3)
    refused(tenant.chat(max_tokens=1), 429, "cost_quota_exceeded")


def test_a_window_that_is_lifted_and_set_again_knows_what_was_used_meanwhile(house: House) -> None:
    tenant = house.tenant(house.model(DIME), key={"limits": rolling("9")})
    age(tenant, call(tenant, 5), 2 * HOUR)
    call(tenant, 2)
    change(tenant, limits=[])
    call(tenant, 3)
    change(tenant, limits=rolling("0.60"))
    assert limit(tenant, "rolling:1h")["used"] == "0.50"
    call(tenant, 1)
    refused(tenant.chat(max_tokens=1), 429, "cost_quota_exceeded")


def test_a_call_that_outlives_the_window_counts_in_it_no_more(
    house: House, sim: RunningSimulator
) -> None:
    """It holds until it ends; then what it used is as old as its beginning."""
    tenant = house.tenant(house.model(DIME), key={"limits": rolling("1.00")})
    sim.set(chunk_delay=0.2, answer_tokens=6)
    with tenant.stream(max_tokens=10) as running:
        assert limit(tenant, "rolling:1h")["held"] == "1.00"
        # As if it had begun an hour ago: everything before this moment has slid out.
        house.sql(
            "UPDATE accounts SET slid_to = now() WHERE owner_id = %s AND window_kind LIKE 'rolling%%'"
            " RETURNING 1",
            tenant.key_id,
        )
        refused(tenant.chat(max_tokens=1), 429, "quota_reserved")
        running.read()
    eventually(lambda: limit(tenant, "rolling:1h")["held"] == "0.00")
    assert limit(tenant, "rolling:1h")["used"] == "0.00"


def test_sixteen_calls_at_once_on_two_replicas_stay_within_a_rolling_window(
    house: House, second_server: Server
) -> None:
    tenant = house.tenant(house.model(DIME), key={"limits": rolling("1.00")})
    age(tenant, call(tenant, 4), 2 * HOUR)
    house.client(second_server)
    answers: list[int] = []

    def ask(n: int) -> None:
        server = second_server if n % 2 else None
        answers.append(tenant.chat(max_tokens=2, server=server).status_code)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers.count(200) == 5, answers
    assert limit(tenant, "rolling:1h")["used"] == "1.00"


@pytest.mark.parametrize("seed", range(4))
def test_at_any_moment_the_window_has_used_what_its_calls_have(house: House, seed: int) -> None:
    """Calls of any age, in any order, with the limit lifted and set in between."""
    rng = random.Random(seed)
    tenant = house.tenant(house.model(DIME), key={"limits": rolling("100", 2)})
    for _ in range(12):
        what = rng.random()
        if what < 0.6:
            id = call(tenant, rng.randint(1, 9))
            if rng.random() < 0.7:
                # Never so near to the edge that the test's own time matters.
                age(tenant, id, timedelta(minutes=rng.choice([10, 50, 100, 130, 200, 500])))
        elif what < 0.8:
            change(tenant, limits=[])
            call(tenant, rng.randint(1, 9))
            change(tenant, limits=rolling("100", 2))
        else:
            change(tenant, limits=rolling(str(rng.randint(50, 100)), 2))
        since = datetime.now(UTC) - 2 * HOUR
        expected = sum(
            round(float(one["cost_usd"]) * 10)
            for one in tenant.calls()
            if admitted(one["id"]) >= since
        )
        assert limit(tenant, "rolling:2h")["used"] == f"{expected / 10:.2f}"
