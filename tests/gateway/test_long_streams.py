"""Streams whose output was left open: held slice by slice, extended as they flow, cut at the cap."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from app.simulator import RunningSimulator
from tests.gateway.kit import House, Tenant, events, eventually, served

SLICE = 2048
FLAT = {"input_token": "0", "output_token": "0.001"}
"""A tenth of a cent for each token of output."""


def cut(body: bytes, code: str) -> Any:
    """Check that a stream ends with an error and [DONE]; return the error."""
    *_, last, done = events(body)
    assert done == "[DONE]"
    assert last["error"]["code"] == code, last
    return last["error"]


def long_stream(tenant: Tenant, tokens: int, **fields: Any) -> Any:
    """Ask for an answer of so many tokens, without a maximum."""
    text = f"[[sim answer_tokens={tokens}]]"
    fields = {"messages": [{"role": "user", "content": text}], "max_tokens": None} | fields
    return served(tenant.chat(stream=True, **fields))


@pytest.mark.parametrize(
    ("caps", "code", "meter"),
    [
        ({"tokens": 5000}, "quota_exceeded", "tokens"),
        ({"usd": "5"}, "cost_quota_exceeded", "usd"),
    ],
)
def test_an_open_stream_is_cut_when_its_extension_is_refused(
    house: House, sim: RunningSimulator, caps: dict[str, Any], code: str, meter: str
) -> None:
    tenant = house.tenant(house.model(FLAT), **caps)
    sim.set(chunk_delay=0.0005)
    answer = long_stream(tenant, 20_000)
    error = cut(answer.content, code)
    assert error["limit"]["meter"] == meter
    assert error["scope"] == "account_period"
    call = tenant.booked(answer)
    assert (call["outcome"], call["estimated"], call["status_code"]) == ("cut_off", True, 200)
    # All of the cap was used, and not one token more.
    output = call["usage"]["output_token"]
    assert 4900 <= output <= 5000
    standing = tenant.standing()
    assert standing["tokens_held"] == 0
    if meter == "tokens":
        assert 4900 <= standing["tokens_used_this_month"] <= 5000
    eventually(lambda: sim.calls[-1].ended != "open")
    assert sim.calls[-1].ended == "client_left", "the provider is told to stop"
    assert "max_tokens" not in sim.calls[-1].json()
    assert "max_completion_tokens" not in sim.calls[-1].json()


def test_an_open_stream_that_fits_grows_its_hold_and_arrives_whole(
    house: House, sim: RunningSimulator
) -> None:
    tenant = house.tenant(house.model(FLAT), usd="100", tokens=100_000)
    sim.set(chunk_delay=0.0005)
    held: list[int] = []
    text = "[[sim answer_tokens=6000]]"
    with tenant.stream(messages=[{"role": "user", "content": text}]) as answer:
        for n, _ in enumerate(answer.iter_raw()):
            if n % 200 == 0:
                held.append(tenant.standing()["tokens_held"])
    assert held[0] < SLICE + 100, "a slice and the prompt"
    assert max(held) > SLICE + 100
    call = tenant.booked(answer)
    assert (call["outcome"], call["estimated"]) == ("success", False)
    assert call["usage"]["output_token"] == 6000
    assert tenant.standing()["tokens_held"] == 0


def test_streams_side_by_side_share_what_is_left_and_never_exceed_it(house: House) -> None:
    tenant = house.tenant(house.model(FLAT), tokens=9000)
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda: answers.append(long_stream(tenant, 8000))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    standing = tenant.standing()
    assert 5000 < standing["tokens_used_this_month"] <= 9000
    assert standing["tokens_held"] == 0
    for answer in answers:
        cut(answer.content, "quota_exceeded")


def test_a_lower_cap_cuts_an_open_stream(house: House, sim: RunningSimulator) -> None:
    tenant = house.tenant(house.model(FLAT), usd="100")
    sim.set(chunk_delay=0.001)
    text = "[[sim answer_tokens=20000]]"
    with tenant.stream(messages=[{"role": "user", "content": text}]) as answer:
        chunks = answer.iter_raw()
        body = next(chunks)
        tenant.change(quota_cost_usd_per_month="1")
        body += b"".join(chunks)
    cut(body, "cost_quota_exceeded")
    assert tenant.booked(answer)["usage"]["output_token"] <= SLICE


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        ({"upstream": "o3-mini"}, {}),
        ({}, {"reasoning_effort": "low"}),
        ({}, {"policy": "last_call"}),
    ],
)
def test_a_stream_that_cannot_be_watched_is_held_for_whole(
    house: House, sim: RunningSimulator, model: dict[str, Any], fields: dict[str, Any]
) -> None:
    """What a model thinks is not seen before its usage: only a written maximum bounds it."""
    policy = fields.pop("policy", "strict")
    tenant = house.tenant(house.model(FLAT, **model), usd="3", overrun_policy=policy)
    served(tenant.chat(stream=True, max_tokens=None, **fields))
    sent = sim.calls[-1].json()
    if policy == "strict":
        assert sent["max_completion_tokens"] == 1500
    else:
        assert "max_completion_tokens" not in sent


def test_an_unpriced_stream_is_cut_at_a_token_cap_only(house: House) -> None:
    tenant = house.tenant(house.model(None), usd="0.01", tokens=3000)
    answer = long_stream(tenant, 10_000)
    cut(answer.content, "quota_exceeded")
    call = tenant.booked(answer)
    assert call["cost_usd"] is None
    assert tenant.standing()["tokens_used_this_month"] <= 3000
