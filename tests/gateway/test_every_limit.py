"""Every owner, every window, every kind of call: one mechanism, so one table of tests.

An owner is limited in one window; calls of a known price are made up to it, exactly to it and past
it. What is special to one kind of limit is tested where that kind is.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple

import httpx2
import pytest

from tests.gateway.kit import (
    CENT,
    DIME,
    KINDS,
    House,
    Json,
    Server,
    Tenant,
    only_call,
    refused,
    served,
    session,
    transcriber,
)


class Bound(NamedTuple):
    """A limit on something that a call is charged to."""

    owner: str
    window: str
    status: int = 429
    code: str = "cost_quota_exceeded"


BOUNDS = [
    *(Bound("key", window) for window in ("hour", "day", "month", "rolling:3h", "lifetime")),
    Bound("allocation", "month"),
    *(Bound("pool", window) for window in ("hour", "day", "month", "lifetime")),
    *(Bound("the pool above", window) for window in ("day", "month", "lifetime")),
    Bound("chat", "lifetime", 409, "chat_spend_limit_exceeded"),
]


class Caller:
    """A tenant in a pool in a pool, with a chat, and one limit somewhere."""

    def __init__(
        self, house: House, model: str, bound: Bound | None, amount: Any, meter: str = "usd"
    ) -> None:
        limits = (
            [] if bound is None else [{"meter": meter, "window": bound.window, "amount": amount}]
        )
        owner = None if bound is None else bound.owner
        self.house = house
        self.above = self.pool(limits if owner == "the pool above" else [])
        self.below = self.pool(limits if owner == "pool" else [], parent_id=self.above)
        caps = {meter: amount} if owner == "allocation" else {}
        self.tenant = house.tenant(
            model, pool_id=self.below, key={"limits": limits if owner == "key" else []}, **caps
        )
        body = {"spend_limit_usd": amount} if owner == "chat" else {}
        self.chat: str = (
            self.tenant.post("/v1/chats", json=body).json()["id"]
            if amount != 0 or owner != "chat"
            else ""
        )

    def pool(self, limits: list[Json], **fields: Any) -> str:
        body = {"name": f"pool {secrets.token_hex(4)}", "limits": limits} | fields
        id: str = self.house.api("POST", "/admin/pools", body)["id"]
        return id

    @property
    def headers(self) -> dict[str, str]:
        return {"X-Spendgate-Chat": self.chat}

    def spend(self, tokens: int, **more: Any) -> httpx2.Response:
        """Make a call of so many dimes."""
        answer: httpx2.Response = self.tenant.chat(max_tokens=tokens, headers=self.headers, **more)
        answer.read()
        return answer

    def owner_id(self, bound: Bound) -> str:
        return {
            "key": self.tenant.key_id,
            "allocation": self.tenant.allocation_id,
            "pool": self.below,
            "the pool above": self.above,
            "chat": self.chat,
        }[bound.owner]


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda bound: f"{bound.owner} by {bound.window}")
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_just_under_exactly_at_and_over_a_limit(house: House, bound: Bound, stream: bool) -> None:
    caller = Caller(house, house.model(DIME), bound, "1.00")
    served(caller.spend(9, stream=stream))
    error = refused(caller.spend(2, stream=stream), bound.status, bound.code)
    limit = error["limit"]
    assert limit["owner"] == bound.owner.split()[-1].replace("above", "pool")
    assert limit["owner_id"] == caller.owner_id(bound)
    assert (limit["window"], limit["meter"]) == (bound.window, "usd")
    assert (limit["amount"], limit["used"], limit["held"]) == ("1.00", "0.90", "0.00")
    assert limit["remaining"] == "0.10"
    assert error["scope"] == ("chat_lifetime" if bound.owner == "chat" else "account_period")
    assert (limit["resets_at"] is None) == (bound.window in ("lifetime", "rolling:3h"))
    served(caller.spend(1, stream=stream))
    refused(caller.spend(1, stream=stream), bound.status, bound.code)
    outcomes = [call["outcome"] for call in caller.tenant.calls()]
    assert outcomes.count("success") == 2
    refusals = {"chat": "rejected_chat_limit_exceeded"}
    assert outcomes.count(refusals.get(bound.owner, "rejected_cost_quota_exceeded")) == 2


@pytest.mark.parametrize(
    "bound", [b for b in BOUNDS if b.owner != "chat"], ids=lambda b: f"{b.owner} by {b.window}"
)
@pytest.mark.parametrize("meter", ["usd", "tokens"])
def test_a_limit_of_0_blocks_everything_it_meters(house: House, bound: Bound, meter: str) -> None:
    caller = Caller(house, house.model(DIME), bound, 0, meter)
    code = {"usd": "cost_quota_exceeded", "tokens": "quota_exceeded"}[meter]
    if (bound.owner, bound.window, meter) == ("key", "lifetime", "tokens"):
        code = "token_budget_exceeded"
    refused(caller.spend(1), 429, code)


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda bound: f"{bound.owner} by {bound.window}")
def test_64_calls_at_once_on_two_replicas_stay_within_a_limit(
    house: House, second_server: Server, bound: Bound
) -> None:
    caller = Caller(house, house.model(DIME), bound, "1.00")
    house.client(second_server)
    answers: list[int] = []

    def ask(n: int) -> None:
        answer = caller.spend(2, server=second_server if n % 2 else None)
        answers.append(answer.status_code)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 64
    assert answers.count(200) == 5, answers
    assert set(answers) <= {200, 429, bound.status}


ONCE: dict[str, Callable[[House, str], str]] = {
    "key": lambda house, id: house.api("GET", f"/admin/keys/{id}")["limits"][0]["used"],
    "allocation": lambda house, id: house.api("GET", f"/admin/allocations/{id}")[
        "cost_used_this_month"
    ],
    "pool": lambda house, id: house.api("GET", f"/admin/pools/{id}")["limits"][0]["used"],
    "the pool above": lambda house, id: house.api("GET", f"/admin/pools/{id}")["limits"][0]["used"],
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
@pytest.mark.parametrize(
    "bound",
    [
        Bound("key", "hour"),
        Bound("key", "rolling:3h"),
        Bound("pool", "day"),
        Bound("the pool above", "lifetime"),
        Bound("chat", "lifetime", 409, "chat_spend_limit_exceeded"),
    ],
    ids=lambda bound: f"{bound.owner} by {bound.window}",
)
def test_every_kind_of_call_keeps_every_limit(house: House, kind: Any, bound: Bound) -> None:
    model = house.model_for(kind)
    caller = Caller(house, model, bound, "1000")
    served(caller.tenant.ask(kind, headers=caller.headers))
    [call] = caller.tenant.calls()
    if bound.owner == "chat":
        spent = caller.tenant.get(f"/v1/chats/{caller.chat}").json()["spent_usd"]
    else:
        spent = ONCE[bound.owner](house, caller.owner_id(bound))
    assert Decimal(spent) == Decimal(call["cost_usd"]) > 0
    tight = Caller(house, model, bound, "0.000001")
    refused(tight.tenant.ask(kind, headers=tight.headers), bound.status, bound.code)


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda bound: f"{bound.owner} by {bound.window}")
def test_a_realtime_session_is_cut_at_every_limit(house: House, bound: Bound) -> None:
    caller = Caller(house, transcriber(house, CENT), bound, "0.05")
    query = f"intent=transcription&model={caller.tenant.model}&chat={caller.chat}"
    with session(caller.tenant, query) as socket:
        socket.until("session.created")
        socket.flood(0.5, frames=40)
        socket.refused(bound.code)
    call = only_call(caller.tenant)
    assert (call["outcome"], call["cost_usd"]) == ("cut_off", "0.05")
    with session(caller.tenant, query) as socket:
        socket.refused(bound.code)


def test_a_call_is_held_on_its_whole_path_or_nowhere(house: House) -> None:
    """Chat, key, allocation and two pools: whichever refuses, none of them holds anything."""
    for bound in (BOUNDS[0], *(b for b in BOUNDS if b.window in ("month", "lifetime"))):
        caller = Caller(house, house.model(DIME), bound, "0.50")
        served(caller.spend(2))
        refused(caller.spend(4), bound.status, bound.code)
        ids = [caller.owner_id(b) for b in BOUNDS]
        standing = house.sql(
            "SELECT DISTINCT used_nano, held_nano FROM accounts WHERE owner_id = ANY(%s::uuid[])",
            ids,
        )
        assert standing == [(200_000_000, 0)], bound


def test_whose_limits_stand_in_the_way_is_told_in_order(house: House) -> None:
    """Chat, key, allocation tokens, allocation USD, the nearest pool, the pool above."""
    tenant_of: list[Tenant] = []
    limit = [{"meter": "usd", "window": "day", "amount": "0.10"}]
    above = house.api("POST", "/admin/pools", {"name": secrets.token_hex(4), "limits": limit})["id"]
    below = house.api(
        "POST", "/admin/pools", {"name": secrets.token_hex(4), "limits": limit, "parent_id": above}
    )["id"]
    tenant = house.tenant(
        house.model(DIME), pool_id=below, usd="0.10", tokens=5, key={"limits": limit}
    )
    tenant_of.append(tenant)
    chat = tenant.post("/v1/chats", json={"spend_limit_usd": "0.10"}).json()["id"]
    seen = []

    def ask(**headers: str) -> None:
        error = tenant.chat(max_tokens=2, headers=headers).json()["error"]
        seen.append((error["code"], error["limit"]["owner"], error["limit"]["owner_id"]))

    ask(**{"X-Spendgate-Chat": chat})
    ask()
    house.api("PATCH", f"/admin/keys/{tenant.key_id}", {"limits": []})
    ask()
    tenant.change(quota_tokens_per_month=None)
    ask()
    tenant.change(quota_cost_usd_per_month=None)
    ask()
    house.api("PATCH", f"/admin/pools/{below}", {"limits": []})
    ask()
    house.api("PATCH", f"/admin/pools/{above}", {"limits": []})
    assert seen == [
        ("chat_spend_limit_exceeded", "chat", chat),
        ("cost_quota_exceeded", "key", tenant.key_id),
        ("quota_exceeded", "allocation", tenant.allocation_id),
        ("cost_quota_exceeded", "allocation", tenant.allocation_id),
        ("cost_quota_exceeded", "pool", below),
        ("cost_quota_exceeded", "pool", above),
    ]
    served(tenant.chat(max_tokens=2))


def test_limits_of_a_pool_change_for_the_next_call_also_in_the_middle_of_a_window(
    house: House, second_server: Server
) -> None:
    caller = Caller(house, house.model(DIME), None, "1")
    served(caller.spend(4))
    for window in ("hour", "day", "month", "lifetime"):
        path = f"/admin/pools/{caller.above}"

        def limit(amount: str, path: str = path, window: str = window) -> Any:
            limits = [{"meter": "usd", "window": window, "amount": amount}]
            return house.api("PATCH", path, {"limits": limits})["limits"][0]

        used = Decimal(limit("0.10")["used"])
        assert used == Decimal(limit("0.10")["used"]) > 0
        refused(caller.spend(1, server=second_server), 429, "cost_quota_exceeded")
        limit(str(used + Decimal("0.1")))
        served(caller.spend(1, server=second_server))
        refused(caller.spend(1), 429, "cost_quota_exceeded")
        house.api("PATCH", path, {"limits": []})
        served(caller.spend(1))


def test_an_allocation_that_changes_pools_is_charged_to_the_new_one(house: House) -> None:
    """What was spent in the old pool stays there: each dollar counts in one pool of a level."""
    caller = Caller(house, house.model(DIME), None, "1")
    other = caller.pool([{"meter": "usd", "window": "month", "amount": "0.50"}])
    served(caller.spend(4))
    caller.tenant.change(pool_id=other)
    served(caller.spend(5))
    error = refused(caller.spend(1), 429, "cost_quota_exceeded")
    assert error["limit"]["owner_id"] == other
    old = house.api("GET", f"/admin/pools/{caller.below}")
    assert old["cost_used_this_month"] == "0.40"
    caller.tenant.change(pool_id=None)
    served(caller.spend(1))
