"""Caps: what they admit, what they refuse, and what is written into requests to stay inside."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from app.simulator import RunningSimulator
from tests.gateway.kit import (
    DIME,
    KINDS,
    PAGE,
    QUESTION,
    House,
    Server,
    Tenant,
    eventually,
    next_month,
    refused,
    served,
)

# Reaching a cap


def test_chat_and_ocr_reach_the_cap_and_then_no_kind_of_call_passes(
    house: House, sim: RunningSimulator
) -> None:
    chat, ocr = house.model(DIME), house.model(PAGE, "mistral-ocr-latest")
    others = {name: house.model_for(kind) for name, kind in KINDS.items()}
    tenant = house.tenant(chat, ocr, *others.values(), usd="1.00")

    first = served(tenant.chat(chat, max_tokens=6))
    assert first.headers["x-spendgate-cost-usd"] == "0.60"
    assert first.headers["x-spendgate-remaining-usd"] == "0.40"
    second = served(tenant.ocr(4, ocr))
    assert second.headers["x-spendgate-cost-usd"] == "0.40"
    assert second.headers["x-spendgate-remaining-usd"] == "0.00"
    standing = tenant.standing()
    assert standing["cost_used_this_month"] == "1.00"
    assert standing["state"] == "exhausted"

    reached_provider = sim.app.total
    for name, kind in KINDS.items():
        answer = tenant.ask(kind, others[name])
        error = refused(answer, 429, "cost_quota_exceeded")
        assert error["type"] == "insufficient_quota", name
        assert error["scope"] == "account_period"
        needed = error["limit"].pop("needed")
        assert float(needed) > 0, name
        assert error["limit"] == {
            "owner": "allocation",
            "owner_id": tenant.allocation_id,
            "meter": "usd",
            "window": "month",
            "amount": "1.00",
            "used": "1.00",
            "held": "0.00",
            "remaining": "0.00",
            "resets_at": next_month(),
        }
        assert answer.headers["x-should-retry"] == "false"
        row = tenant.booked(answer)
        assert row["outcome"] == "rejected_cost_quota_exceeded"
        assert row["allocation_id"] == tenant.allocation_id
        assert row["status_code"] == 429
        assert row["endpoint"] == kind.path.removeprefix("/v1/")
        assert row["model"] == others[name]
        assert (row["cost_usd"], row["tokens"], row["usage"]) == ("0.00", 0, {})
        assert row["limit"]["owner_id"] == tenant.allocation_id
    assert sim.app.total == reached_provider, "the provider was called for a refused call"
    assert len(tenant.calls()) == 2 + len(KINDS)
    assert tenant.standing()["cost_used_this_month"] == "1.00"


def _at_4_90_of_5(house: House, sim: RunningSimulator, policy: str) -> Tenant:
    sim.set(answer_tokens=100)
    tenant = house.tenant(house.model(DIME), usd="5", overrun_policy=policy)
    assert served(tenant.chat(max_tokens=49)).headers["x-spendgate-cost-usd"] == "4.90"
    return tenant


def test_at_4_90_of_5_dollars_strict_refuses_a_call_that_may_cost_20_cents(
    house: House, sim: RunningSimulator
) -> None:
    tenant = _at_4_90_of_5(house, sim, "strict")
    error = refused(tenant.chat(max_tokens=2), 429, "cost_quota_exceeded")
    shown = {name: error["limit"][name] for name in ("amount", "used", "needed", "remaining")}
    assert shown == {"amount": "5.00", "used": "4.90", "needed": "0.20", "remaining": "0.10"}
    assert sim.app.total == 1
    # What does fit is served, to the last cent.
    served(tenant.chat(max_tokens=1))
    assert tenant.standing()["cost_used_this_month"] == "5.00"
    refused(tenant.chat(max_tokens=1), 429, "cost_quota_exceeded")


def test_at_4_90_of_5_dollars_last_call_admits_it_and_records_the_overrun(
    house: House, sim: RunningSimulator
) -> None:
    tenant = _at_4_90_of_5(house, sim, "last_call")
    answer = served(tenant.chat(max_tokens=2))
    assert answer.headers["x-spendgate-cost-usd"] == "0.20"
    assert answer.headers["x-spendgate-remaining-usd"] == "0.00"
    assert tenant.standing()["cost_used_this_month"] == "5.10"
    call_id = answer.headers["x-spendgate-call-id"]
    [(over,)] = house.sql("SELECT overrun_nano FROM calls WHERE id = %s", call_id)
    assert over == 100_000_000
    error = refused(tenant.chat(max_tokens=1), 429, "cost_quota_exceeded")
    assert (error["limit"]["used"], error["limit"]["remaining"]) == ("5.10", "0.00")


def test_a_token_cap_alone_refuses_what_may_not_fit(house: House, sim: RunningSimulator) -> None:
    tenant = house.tenant(house.model(None), tokens=70)
    answer = served(tenant.chat(max_tokens=16))
    assert answer.headers["x-spendgate-remaining-tokens"] == str(70 - 26)
    assert "x-spendgate-remaining-usd" not in answer.headers
    answer = tenant.chat(max_tokens=44)
    error = refused(answer, 429, "quota_exceeded")
    assert error["type"] == "insufficient_quota"
    assert error["scope"] == "account_period"
    limit = error["limit"]
    assert (limit["meter"], limit["window"], limit["amount"]) == ("tokens", "month", 70)
    assert (limit["used"], limit["held"], limit["remaining"]) == (26, 0, 44)
    assert tenant.booked(answer)["outcome"] == "rejected_quota_exceeded"
    assert sim.app.total == 1


def test_a_usd_cap_alone_lets_any_number_of_free_tokens_pass(house: House) -> None:
    tenant = house.tenant(house.model({"input_token": "0", "output_token": "0"}), usd="0.01")
    for _ in range(3):
        answer = served(tenant.chat(max_tokens=1000))
        assert answer.headers["x-spendgate-cost-usd"] == "0.00"
        assert answer.headers["x-spendgate-remaining-usd"] == "0.01"


@pytest.mark.parametrize(
    ("tokens", "usd", "code", "meter"),
    [
        (30, "100", "quota_exceeded", "tokens"),
        (1000, "2", "cost_quota_exceeded", "usd"),
        # Both are in the way: the token cap is reported.
        (30, "1.60", "quota_exceeded", "tokens"),
    ],
)
def test_of_two_caps_the_first_that_does_not_fit_refuses(
    house: House, tokens: int, usd: str, code: str, meter: str
) -> None:
    tenant = house.tenant(house.model(DIME, bytes_per_token=8), tokens=tokens, usd=usd)
    # Twelve input tokens at most (ten in fact) and sixteen output tokens at most.
    served(tenant.chat(max_tokens=16))
    assert refused(tenant.chat(max_tokens=16), 429, code)["limit"]["meter"] == meter


@pytest.mark.parametrize("policy", ["strict", "last_call"])
def test_a_usd_cap_of_0_blocks_what_has_a_price_and_nothing_else(house: House, policy: str) -> None:
    priced, free = house.model(DIME), house.model({"input_token": "0", "output_token": "0"})
    unpriced = house.model(None)
    tenant = house.tenant(priced, free, unpriced, usd=0, overrun_policy=policy)
    refused(tenant.chat(priced, max_tokens=1), 429, "cost_quota_exceeded")
    refused(tenant.chat(free, max_tokens=1), 429, "cost_quota_exceeded")
    served(tenant.chat(unpriced, max_tokens=1))


@pytest.mark.parametrize("policy", ["strict", "last_call"])
def test_a_token_cap_of_0_blocks_what_uses_tokens_and_nothing_else(
    house: House, policy: str
) -> None:
    chat, ocr = house.model(DIME), house.model(PAGE, "mistral-ocr-latest")
    tenant = house.tenant(chat, ocr, tokens=0, overrun_policy=policy)
    refused(tenant.chat(chat, max_tokens=1), 429, "quota_exceeded")
    served(tenant.ocr(2, ocr))


def test_a_cap_of_null_blocks_nothing(house: House) -> None:
    tenant = house.tenant(house.model(DIME), tokens=None, usd=None)
    answer = served(tenant.chat(max_tokens=16))
    assert answer.headers["x-spendgate-cost-usd"] == "1.60"
    assert "x-spendgate-remaining-usd" not in answer.headers
    assert "x-spendgate-remaining-tokens" not in answer.headers


def test_an_exhausted_token_cap_does_not_stop_calls_without_tokens(house: House) -> None:
    chat, ocr = house.model(DIME), house.model(PAGE, "mistral-ocr-latest")
    tenant = house.tenant(chat, ocr, tokens=60)
    served(tenant.chat(chat, max_tokens=16))
    refused(tenant.chat(chat, max_tokens=40), 429, "quota_exceeded")
    served(tenant.ocr(3, ocr))


# Holds


def test_what_calls_in_flight_hold_is_shown_apart_and_refused_for_a_moment_only(
    house: House, sim: RunningSimulator
) -> None:
    tenant = house.tenant(house.model(DIME), usd="1.00")
    sim.set(chunk_delay=0.1, answer_tokens=4)
    with tenant.stream(max_tokens=10) as running:
        assert running.headers["x-spendgate-remaining-usd"] == "0.00"
        standing = tenant.standing()
        assert (standing["cost_held"], standing["cost_used_this_month"]) == ("1.00", "0.00")
        answer = tenant.chat(max_tokens=1)
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["x-should-retry"] == "true"
        error = refused(answer, 429, "quota_reserved")
        assert error["type"] == "rate_limit_exceeded"
        limit = error["limit"]
        assert (limit["used"], limit["held"], limit["remaining"]) == ("0.00", "1.00", "0.00")
        assert tenant.booked(answer)["outcome"] == "rejected_quota_reserved"
        running.read()
    # It used less than it held: the rest is free again.
    served(tenant.chat(max_tokens=6))
    assert tenant.standing()["cost_used_this_month"] == "0.80"
    assert tenant.standing()["cost_held"] == "0.00"


# What is written upstream


def _sent(sim: RunningSimulator) -> Any:
    return sim.calls[-1].json()


MAXIMA = ("max_tokens", "max_completion_tokens")


@pytest.mark.parametrize(
    ("usd", "model", "fields", "written"),
    [
        # At ten cents a token, a dollar is ten tokens: half of what is left …
        ("1000", {}, {}, 5000),
        # … no more than is assumed of a model without a maximum, or known of one with it …
        ("1000000", {}, {}, 16384),
        ("1000", {"max_output_tokens": 4000}, {}, None),
        ("1000", {"max_output_tokens": 8000}, {}, 5000),
        ("1000", {"context_window": 4000}, {}, None),
        # … and all that is left once half is less than 1,024 …
        ("204.80", {}, {}, 1024),
        ("150", {}, {}, 1500),
        ("0.30", {}, {}, 3),
        # … shared between the choices.
        ("1000", {}, {"n": 2}, 2500),
        # A stream is held slice by slice, and watched.
        ("1000", {}, {"stream": True}, None),
    ],
)
def test_an_open_maximum_under_a_cap_is_written_upstream(
    house: House,
    sim: RunningSimulator,
    usd: str,
    model: dict[str, Any],
    fields: dict[str, Any],
    written: int | None,
) -> None:
    tenant = house.tenant(house.model(DIME, **model), usd=usd)
    served(tenant.chat(**fields))
    sent = _sent(sim)
    assert sent.get("max_completion_tokens") == written
    assert "max_tokens" not in sent


def test_an_open_maximum_under_a_token_cap_counts_the_input_first(
    house: House, sim: RunningSimulator
) -> None:
    tenant = house.tenant(house.model(None, bytes_per_token=8), tokens=112)
    answer = served(tenant.chat())
    assert _sent(sim)["max_completion_tokens"] == 100
    assert answer.headers["x-spendgate-remaining-tokens"] == str(112 - 26)


def test_mistral_is_given_the_name_of_the_maximum_that_it_knows(
    house: House, sim: RunningSimulator
) -> None:
    tenant = house.tenant(house.model(DIME, "mistral-small-latest", kind="mistral"), usd="100")
    served(tenant.chat())
    assert _sent(sim)["max_tokens"] == 1000
    assert "max_completion_tokens" not in _sent(sim)


def test_nothing_is_written_into_a_request_without_caps(
    house: House, sim: RunningSimulator
) -> None:
    model = house.model(DIME)
    served(house.tenant(model).chat())
    assert _sent(sim) == {"model": "gpt-4o", "messages": QUESTION}


@pytest.mark.parametrize("field", MAXIMA)
def test_a_maximum_of_the_clients_own_is_left_as_it_is(
    house: House, sim: RunningSimulator, field: str
) -> None:
    tenant = house.tenant(house.model(DIME), usd="1000")
    served(tenant.chat(**{field: 700}))
    assert _sent(sim) == {"model": "gpt-4o", "messages": QUESTION, field: 700}


def test_last_call_writes_no_maximum(house: House, sim: RunningSimulator) -> None:
    tenant = house.tenant(house.model(DIME), usd="1", overrun_policy="last_call")
    served(tenant.chat())
    assert not set(MAXIMA) & _sent(sim).keys()


def test_a_body_goes_upstream_as_it_came_but_for_the_model(
    house: House, sim: RunningSimulator
) -> None:
    tenant = house.tenant(house.model(DIME), usd="1000")
    numbers = '"temperature": 0.10, "seed": 12345678901234567890, "top_p": 1e-2, "x_unknown": [ ]'
    body = f'{{"model": "{tenant.model}", "max_tokens": 3, {numbers}, "messages": %s}}'
    content = (body % json.dumps(QUESTION)).encode()
    headers = {"content-type": "application/json"}
    served(tenant.post("/v1/chat/completions", content=content, headers=headers))
    got = sim.calls[-1].body
    for piece in ("0.10", "12345678901234567890", "1e-2", "[ ]"):
        assert piece in got, got


@pytest.mark.parametrize(
    ("usd", "granted"), [("10", 100), ("10.05", 100), ("21", 210), ("99.99", 999)]
)
def test_a_document_of_unknown_length_is_given_pages(
    house: House, sim: RunningSimulator, usd: str, granted: int
) -> None:
    sim.set(remote_pages=1200)
    tenant = house.tenant(house.model(PAGE, "mistral-ocr-latest"), usd=usd)
    document = {"type": "document_url", "document_url": "https://documents.example/a.pdf"}
    answer = served(tenant.post("/v1/ocr", json={"model": tenant.model, "document": document}))
    assert _sent(sim)["pages"] == list(range(granted))
    assert answer.json()["usage_info"]["pages_processed"] == granted
    assert float(answer.headers["x-spendgate-cost-usd"]) == granted / 10 <= float(usd)


def test_a_document_of_unknown_length_is_not_given_pages_when_the_setting_is_paid_for(
    house: House, sim: RunningSimulator
) -> None:
    # A shorter document might be refused for pages that it does not have.
    sim.set(remote_pages=700)
    tenant = house.tenant(house.model(PAGE, "mistral-ocr-latest"), usd="100")
    document = {"type": "document_url", "document_url": "https://documents.example/a.pdf"}
    answer = served(tenant.post("/v1/ocr", json={"model": tenant.model, "document": document}))
    assert "pages" not in _sent(sim)
    assert answer.headers["x-spendgate-cost-usd"] == "70.00"


def test_a_document_of_known_length_or_without_a_cap_is_not_given_pages(
    house: House, sim: RunningSimulator
) -> None:
    model = house.model(PAGE, "mistral-ocr-latest")
    served(house.tenant(model, usd="10").ocr(7))
    assert "pages" not in _sent(sim)
    sim.set(remote_pages=2)
    free = house.tenant(model)
    document = {"type": "document_url", "document_url": "https://documents.example/a.pdf"}
    answer = served(free.post("/v1/ocr", json={"model": model, "document": document}))
    assert "pages" not in _sent(sim)
    assert answer.headers["x-spendgate-cost-usd"] == "0.20"


# Edits


def test_a_cap_edit_holds_for_the_next_call_on_every_replica(
    house: House, second_server: Server
) -> None:
    tenant = house.tenant(house.model(DIME), usd="1")
    replicas = [None, second_server]

    def both(check: Callable[[httpx2.Response], object]) -> None:
        for server in replicas:
            check(tenant.chat(max_tokens=1, server=server))

    both(served)
    tenant.change(quota_cost_usd_per_month="0.20", reason="lower")
    both(lambda answer: refused(answer, 429, "cost_quota_exceeded"))
    tenant.change(quota_cost_usd_per_month="0.40", reason="raise")
    both(served)
    both(lambda answer: refused(answer, 429, "cost_quota_exceeded"))
    tenant.change(quota_cost_usd_per_month=None, reason="remove")
    both(served)
    tenant.change(quota_tokens_per_month=1, reason="another one")
    both(lambda answer: refused(answer, 429, "quota_exceeded"))
    tenant.change(quota_tokens_per_month=None)
    both(served)
    # A cap that is added to what was already used starts from there.
    tenant.change(quota_cost_usd_per_month="0.80")
    both(lambda answer: refused(answer, 429, "cost_quota_exceeded"))
    tenant.change(quota_cost_usd_per_month="0.90")
    served(tenant.chat(max_tokens=1, server=second_server))
    refused(tenant.chat(max_tokens=1), 429, "cost_quota_exceeded")


def test_a_cap_edit_is_audited_with_actor_before_after_and_reason(house: House) -> None:
    tenant = house.tenant(house.model(DIME), usd="1")
    tenant.change(quota_cost_usd_per_month="2.50", reason="a new term")
    path = f"/admin/audit?object_id={tenant.allocation_id}"
    found = [
        event
        for event in house.api("GET", path)["items"]
        if event["event"] == "allocation_cost_quota_updated"
    ]
    event = found[0]
    assert (event["before"], event["after"], event["reason"]) == ("1.00", "2.50", "a new term")
    assert "tests" in str(event["actor"])


def test_a_lower_cap_does_not_touch_the_call_in_flight(house: House, sim: RunningSimulator) -> None:
    tenant = house.tenant(house.model(DIME), usd="1")
    sim.set(chunk_delay=0.05, answer_tokens=6)
    with tenant.stream(max_tokens=10) as running:
        tenant.change(quota_cost_usd_per_month="0.10")
        assert running.read().rstrip().endswith(b"data: [DONE]")
    eventually(lambda: tenant.standing()["cost_used_this_month"] == "0.60")
    refused(tenant.chat(max_tokens=1), 429, "cost_quota_exceeded")
