"""Limits of keys: a token budget for good, and what a key may use by the hour, day and month."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from app.simulator import RunningSimulator
from tests.gateway.kit import DIME, House, Server, Tenant, eventually, refused, served

WINDOWS = ("hour", "day", "month", "lifetime")


def limit(tenant: Tenant, window: str, meter: str = "usd") -> Any:
    """Return a limit of the key as the key itself sees it."""
    document = tenant.get("/v1/key").json()
    [found] = [
        one for one in document["limits"] if (one["meter"], one["window"]) == (meter, window)
    ]
    return found


def change(tenant: Tenant, **fields: Any) -> Any:
    return tenant.house.api("PATCH", f"/admin/keys/{tenant.key_id}", fields)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("meter", ["usd", "tokens"])
def test_a_key_is_refused_at_its_limit_and_another_of_the_allocation_is_not(
    house: House, window: str, meter: str
) -> None:
    amount: Any = "1.00" if meter == "usd" else 40
    tenant = house.tenant(
        house.model(DIME), key={"limits": [{"meter": meter, "window": window, "amount": amount}]}
    )
    other = tenant.another_key()
    served(tenant.chat(max_tokens=10))
    answer = tenant.chat(max_tokens=10)
    codes = {"usd": "cost_quota_exceeded", "tokens": "quota_exceeded"}
    code = "token_budget_exceeded" if (meter, window) == ("tokens", "lifetime") else codes[meter]
    error = refused(answer, 429, code)
    assert error["type"] == "insufficient_quota"
    assert error["scope"] == "account_period"
    shown = error["limit"]
    assert (shown["owner"], shown["owner_id"]) == ("key", tenant.key_id)
    assert (shown["window"], shown["meter"], shown["amount"]) == (window, meter, amount)
    assert (shown["resets_at"] is None) == (window == "lifetime")
    outcome = "rejected_quota_exceeded" if meter == "tokens" else "rejected_cost_quota_exceeded"
    assert tenant.booked(answer)["outcome"] == outcome
    served(other.chat(max_tokens=10))
    standing = limit(tenant, window, meter)
    # A call holds more tokens of its prompt than it turns out to have.
    used, percent = ("1.00", 100.0) if meter == "usd" else (20, 50.0)
    assert (standing["used"], standing["amount"], standing["held"]) == (
        used,
        amount,
        "0.00" if meter == "usd" else 0,
    )
    assert (standing["percent"], standing["exceeded"]) == (percent, meter == "usd")
    assert standing["resets_at"] == shown["resets_at"]


def test_a_token_budget_lasts_for_good_and_none_or_0_is_unlimited(house: House) -> None:
    tenant = house.tenant(house.model(DIME), key={"token_budget": 45})
    served(tenant.chat(max_tokens=10))
    error = refused(tenant.chat(max_tokens=10), 429, "token_budget_exceeded")
    assert error["message"].startswith("token budget exceeded")
    assert tenant.get("/v1/key").json()["token_budget"] == 45
    assert change(tenant, token_budget=0)["token_budget"] is None
    served(tenant.chat(max_tokens=10))
    # What was used without a budget counts in the next one.
    assert change(tenant, token_budget=41)["token_budget"] == 41
    refused(tenant.chat(max_tokens=10), 429, "token_budget_exceeded")
    assert limit(tenant, "lifetime", "tokens")["used"] == 40


def test_several_limits_at_once_and_any_one_refuses(house: House) -> None:
    limits = [
        {"meter": "usd", "window": "hour", "amount": "5"},
        {"meter": "usd", "window": "day", "amount": "1"},
        {"meter": "tokens", "window": "month", "amount": 1000},
    ]
    tenant = house.tenant(house.model(DIME), usd="0.50", key={"limits": limits})
    # Limits of the key come before those of the allocation.
    error = refused(tenant.chat(max_tokens=20), 429, "cost_quota_exceeded")
    assert (error["limit"]["owner"], error["limit"]["window"]) == ("key", "day")
    error = refused(tenant.chat(max_tokens=8), 429, "cost_quota_exceeded")
    assert (error["limit"]["owner"], error["limit"]["window"]) == ("allocation", "month")
    served(tenant.chat(max_tokens=5))
    assert [one["used"] for one in tenant.get("/v1/key").json()["limits"]] == ["0.50", "0.50", 15]


def test_a_limit_added_mid_window_starts_from_what_was_used_and_is_held_already(
    house: House, sim: RunningSimulator
) -> None:
    tenant = house.tenant(house.model(DIME))
    served(tenant.chat(max_tokens=4))
    sim.set(chunk_delay=0.1, answer_tokens=6)
    with tenant.stream(max_tokens=10) as running:
        change(tenant, limits=[{"meter": "usd", "window": "day", "amount": "2"}])
        standing = limit(tenant, "day")
        assert (standing["used"], standing["held"], standing["remaining"]) == (
            "0.40",
            "1.00",
            "0.60",
        )
        refused(tenant.chat(max_tokens=8), 429, "quota_reserved")
        running.read()
    # The call that was in flight settles in the new account, too.
    eventually(lambda: limit(tenant, "day")["held"] == "0.00")
    assert limit(tenant, "day")["used"] == "1.00"
    served(tenant.chat(max_tokens=6))
    refused(tenant.chat(max_tokens=10), 429, "cost_quota_exceeded")


def test_a_limit_that_is_lifted_and_set_again_knows_what_was_used_meanwhile(house: House) -> None:
    tenant = house.tenant(
        house.model(DIME), key={"limits": [{"meter": "usd", "window": "day", "amount": "1"}]}
    )
    served(tenant.chat(max_tokens=3))
    assert change(tenant, limits=[])["limits"] == []
    served(tenant.chat(max_tokens=16))
    change(tenant, limits=[{"meter": "usd", "window": "day", "amount": "2"}])
    assert limit(tenant, "day")["used"] == "1.90"
    refused(tenant.chat(max_tokens=2), 429, "cost_quota_exceeded")
    served(tenant.chat(max_tokens=1))


def test_concurrent_calls_on_two_replicas_never_exceed_a_limit_of_the_key(
    house: House, second_server: Server
) -> None:
    tenant = house.tenant(
        house.model(DIME), key={"limits": [{"meter": "usd", "window": "hour", "amount": "1"}]}
    )
    answers: list[Any] = []
    # One client for all threads.
    house.client(second_server)

    def ask(n: int) -> None:
        server = second_server if n % 2 else None
        answers.append(tenant.chat(max_tokens=2, server=server).status_code)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers.count(200) == 5
    assert limit(tenant, "hour")["used"] == "1.00"


def test_a_limit_set_while_calls_stream_in_misses_none_of_them(house: House) -> None:
    """Set, lifted and set again on one replica under load: the audit adds up every account."""
    tenant = house.tenant(house.model(DIME))
    done = threading.Event()

    def load() -> None:
        while not done.is_set():
            served(tenant.chat(max_tokens=1))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            change(tenant, limits=[{"meter": "usd", "window": "day", "amount": "1000"}])
            change(tenant, limits=[])
        change(tenant, limits=[{"meter": "usd", "window": "day", "amount": "1000"}])
    finally:
        done.set()
        for thread in threads:
            thread.join()
    spent = sum(round(float(call["cost_usd"]) * 10) for call in tenant.calls())
    assert limit(tenant, "day")["used"] == f"{spent / 10:.2f}"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"limits": [{"meter": "usd", "window": "week", "amount": "1"}]}, "limits[0].window"),
        ({"limits": [{"meter": "pages", "window": "day", "amount": "1"}]}, "limits[0].meter"),
        ({"limits": [{"meter": "usd", "window": "day", "amount": "-1"}]}, "limits[0].amount"),
        ({"limits": [{"meter": "usd", "window": "day", "amount": "NaN"}]}, "limits[0].amount"),
        ({"limits": [{"meter": "tokens", "window": "day", "amount": 1.5}]}, "limits[0].amount"),
        ({"limits": [{"meter": "tokens", "window": "day", "amount": 10**30}]}, "limits[0].amount"),
        ({"limits": [{"meter": "tokens", "window": "day", "amount": "1e400"}]}, "limits[0].amount"),
        ({"limits": [{"meter": "tokens", "window": "day", "amount": 1}] * 2}, "limits[1]"),
        ({"token_budget": -1}, "token_budget"),
        ({"token_budget": 10**30}, None),
        (
            {
                "token_budget": 5,
                "limits": [{"meter": "tokens", "window": "lifetime", "amount": 4}],
            },
            "token_budget",
        ),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused_and_nothing_is_kept(
    house: House, fields: dict[str, Any], field: str | None
) -> None:
    tenant = house.tenant(house.model(DIME))
    answer = house.client().patch(
        f"/api/admin/keys/{tenant.key_id}",
        json=fields,
        headers={"authorization": f"Bearer {house.token}"},
    )
    assert answer.status_code in (400, 422), answer.text
    if field is not None:
        assert answer.json()["errors"][0]["field"] == field, answer.text
    shown = house.api("GET", f"/admin/keys/{tenant.key_id}")
    assert (shown["limits"], shown["token_budget"]) == ([], None)


def test_changes_of_limits_are_audited_with_before_and_after(house: House) -> None:
    tenant = house.tenant(house.model(DIME))
    change(tenant, limits=[{"meter": "usd", "window": "day", "amount": "1.5"}], reason="a pilot")
    change(tenant, limits=[], token_budget=9)
    events = [
        event
        for event in house.api("GET", f"/admin/audit?object_id={tenant.key_id}")["items"]
        if event["event"] == "key_limits_updated"
    ]
    assert [(event["before"], event["after"], event["reason"]) for event in events[::-1]] == [
        ({"usd per day": None}, {"usd per day": "1.50"}, "a pilot"),
        (
            {"usd per day": "1.50", "tokens per lifetime": None},
            {"usd per day": None, "tokens per lifetime": 9},
            None,
        ),
    ]
