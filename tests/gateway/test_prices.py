"""Prices: what calls of every kind use and cost, to the nano-USD, at the price they began with."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx2
import pytest

from app.simulator import RunningSimulator
from tests.gateway.kit import (
    DIME,
    KINDS,
    PAGE,
    House,
    Json,
    Server,
    Tenant,
    eventually,
    refused,
    served,
    wav,
)

# What is metered


@pytest.mark.parametrize(
    ("kind", "usage", "cost"),
    [
        ("chat", {"input_token": 10, "output_token": 5}, "0.15"),
        ("stream", {"input_token": 10, "output_token": 5}, "0.15"),
        ("embeddings", {"input_token": 20}, "0.20"),
        ("ocr", {"page": 2}, "0.20"),
        ("speech", {"character": 11}, "0.11"),
        ("transcription", {"second": 2}, "0.02"),
    ],
)
def test_every_kind_of_call_is_metered_and_billed(
    house: House, kind: str, usage: dict[str, int], cost: str
) -> None:
    tenant = house.tenant(house.model_for(KINDS[kind]), usd="10")
    answer = served(tenant.ask(KINDS[kind]))
    row = tenant.booked(answer)
    assert (row["outcome"], row["status_code"], row["estimated"]) == ("success", 200, False)
    assert row["usage"] == usage
    assert row["cost_usd"] == cost
    assert row["tokens"] == sum(n for unit, n in usage.items() if unit.endswith("token"))
    assert row["price_id"]
    assert tenant.standing()["cost_used_this_month"] == cost


def test_cached_and_reasoning_tokens_are_billed_at_their_own_rates(
    house: House, sim: RunningSimulator
) -> None:
    rates = {"input_token": "0.1", "cached_input_token": "0.01", "output_token": "0.2"}
    tenant = house.tenant(house.model(rates))
    sim.set(cached=4, reasoning=3, answer_tokens=5)
    row = tenant.booked(served(tenant.chat()))
    assert row["usage"] == {
        "input_token": 6,
        "cached_input_token": 4,
        "output_token": 5,
        "reasoning_token": 3,
    }
    # Reasoning has no rate of its own and takes that of output.
    assert row["cost_usd"] == "2.24"


def test_twenty_tokens_at_two_cents_a_million_cost_400_nano(house: House) -> None:
    model = house.model({"input_token": "0.02"}, "text-embedding-3-small", per=10**6)
    tenant = house.tenant(model, usd="1")
    body = {"model": model, "input": "x" * 80, "dimensions": 4}
    answer = served(tenant.post("/v1/embeddings", json=body))
    assert answer.headers["x-spendgate-cost-usd"] == "0.0000004"
    assert answer.headers["x-spendgate-remaining-usd"] == "0.9999996"
    assert tenant.booked(answer)["cost_usd"] == "0.0000004"
    for _ in range(24):
        served(tenant.post("/v1/embeddings", json=body))
    assert tenant.standing()["cost_used_this_month"] == "0.00001"


def test_a_cost_is_rounded_up_once_per_call(house: House) -> None:
    rates = {"input_token": "0.0000000001", "output_token": "0.0000000001"}
    tenant = house.tenant(house.model(rates))
    # Fifteen tokens of a tenth of a nano each.
    answer = served(tenant.chat(max_tokens=5))
    assert answer.headers["x-spendgate-cost-usd"] == "0.000000002"


# Audio


@pytest.mark.parametrize("layout", ["text", "srt", "vtt"])
@pytest.mark.parametrize(
    ("seconds", "quantity", "cost"),
    # A fiftieth of a cent a second, as 0.6 cents a minute are priced.
    [(90, 90, "0.009"), (2.25, 2.25, "0.000225"), (0.001, 0.001, "0.0000001")],
)
def test_transcripts_that_report_nothing_bill_the_seconds_of_the_file_itself(
    house: House, layout: str, seconds: float, quantity: float, cost: str
) -> None:
    model = house.model({"second": "0.006"}, "whisper-1", per=60)
    tenant = house.tenant(model, usd="1")
    answer = served(
        tenant.post(
            "/v1/audio/transcriptions",
            data={"model": model, "response_format": layout},
            files={"file": ("talk.wav", wav(seconds), "audio/wav")},
        )
    )
    assert answer.headers["content-type"].startswith("text/")
    assert answer.headers["x-spendgate-cost-usd"] == cost
    row = tenant.booked(answer)
    assert row["usage"] == {"second": quantity}
    assert (row["cost_usd"], row["tokens"], row["estimated"]) == (cost, 0, False)


def test_a_transcript_with_usage_is_billed_by_what_the_provider_reports(house: House) -> None:
    model = house.model({"second": "0.006"}, "whisper-1", per=60)
    tenant = house.tenant(model)
    files = {"file": ("talk.wav", wav(2.25), "audio/wav")}
    answer = served(tenant.post("/v1/audio/transcriptions", data={"model": model}, files=files))
    assert answer.json()["usage"] == {"type": "duration", "seconds": 3}
    assert tenant.booked(answer)["usage"] == {"second": 3}
    by_token = house.model(
        {"input_audio_token": "0.01", "input_token": "0.01", "output_token": "0.01"},
        "gpt-4o-transcribe",
    )
    other = house.tenant(by_token, usd="100")
    answer = served(other.post("/v1/audio/transcriptions", data={"model": by_token}, files=files))
    row = other.booked(answer)
    assert row["usage"] == {"input_audio_token": 30, "output_token": 9}
    assert row["cost_usd"] == "0.39"


def test_a_header_that_claims_a_second_for_an_hour_is_not_believed(house: House) -> None:
    audio = bytearray(wav(1000))
    audio[40:44] = (16_000).to_bytes(4, "little")
    model = house.model({"second": "0.001"}, "whisper-1")
    tenant = house.tenant(model, usd="0.5")
    answer = tenant.post(
        "/v1/audio/transcriptions",
        data={"model": model, "response_format": "text"},
        files={"file": ("talk.wav", bytes(audio), "audio/wav")},
    )
    error = refused(answer, 429, "cost_quota_exceeded")
    assert error["limit"]["needed"] == "1.00"


# Unpriced


def test_an_unpriced_model_passes_above_the_usd_cap_and_is_counted_apart(house: House) -> None:
    priced, unpriced = house.model(DIME), house.model(None)
    tenant = house.tenant(priced, unpriced, usd="0.10")
    served(tenant.chat(priced, max_tokens=1))
    refused(tenant.chat(priced, max_tokens=1), 429, "cost_quota_exceeded")
    for number in (1, 2):
        answer = served(tenant.chat(unpriced, max_tokens=500))
        assert "x-spendgate-cost-usd" not in answer.headers
        row = tenant.booked(answer)
        assert (row["cost_usd"], row["price_id"], row["tokens"]) == (None, None, 26)
        standing = tenant.standing()
        assert standing["unpriced_calls_this_month"] == number
        assert standing["cost_used_this_month"] == "0.10"


def test_token_caps_refuse_unpriced_calls_too(house: House) -> None:
    tenant = house.tenant(house.model(None), usd="0.10", tokens=60)
    served(tenant.chat(max_tokens=16))
    refused(tenant.chat(max_tokens=40), 429, "quota_exceeded")


def test_a_usage_with_one_unit_without_a_rate_is_unpriced_not_half_priced(
    house: House, sim: RunningSimulator
) -> None:
    tenant = house.tenant(house.model(DIME), usd="10")
    sim.set(audio_in=5)
    answer = served(tenant.chat(max_tokens=5))
    assert "x-spendgate-cost-usd" not in answer.headers
    row = tenant.booked(answer)
    assert row["usage"] == {"input_token": 10, "input_audio_token": 5, "output_token": 5}
    assert row["cost_usd"] is None
    standing = tenant.standing()
    assert standing["unpriced_calls_this_month"] == 1
    assert (standing["cost_used_this_month"], standing["cost_held"]) == ("0.00", "0.00")


def test_a_model_without_a_rate_for_what_the_call_is_metered_in_is_unpriced(house: House) -> None:
    tenant = house.tenant(house.model(DIME, "mistral-ocr-latest"), usd="0.01")
    answer = served(tenant.ocr(3))
    assert tenant.booked(answer)["cost_usd"] is None
    assert tenant.standing()["unpriced_calls_this_month"] == 1


def test_unpriced_deny_refuses_a_model_without_a_price_until_it_has_one(
    house: House, sim: RunningSimulator, second_server: Server
) -> None:
    model = house.model(None)
    tenant = house.tenant(model, unpriced="deny")
    answer = tenant.chat()
    error = refused(answer, 403, "model_unpriced")
    assert (error["type"], error["param"]) == ("permission_error", "model")
    assert tenant.booked(answer)["allocation_id"] == tenant.allocation_id
    assert sim.app.total == 0
    house.price(model, DIME)
    served(tenant.chat(server=second_server))
    served(tenant.chat())


# Changes


def test_a_price_holds_for_the_calls_admitted_after_it_on_every_replica(
    house: House, second_server: Server
) -> None:
    model = house.model(DIME)
    tenant = house.tenant(model, usd="100")
    before = served(tenant.chat(max_tokens=1))
    price = house.price(model, {"input_token": "0", "output_token": "0.25"})
    after = served(tenant.chat(max_tokens=1, server=second_server))
    assert before.headers["x-spendgate-cost-usd"] == "0.10"
    assert after.headers["x-spendgate-cost-usd"] == "0.25"
    assert tenant.booked(after)["price_id"] == price["id"] != tenant.booked(before)["price_id"]
    # A price of next week is not in force, nor one that was out of date when it was entered.
    now = datetime.now(UTC)
    for at in (now + timedelta(days=7), now - timedelta(days=7)):
        house.price(model, {"input_token": "0", "output_token": "9"}, effective_from=at.isoformat())
    again = served(tenant.chat(max_tokens=1))
    assert again.headers["x-spendgate-cost-usd"] == "0.25"
    assert tenant.booked(before)["cost_usd"] == "0.10"
    assert tenant.standing()["cost_used_this_month"] == "0.60"


def test_a_price_that_was_entered_beforehand_holds_from_its_instant(
    house: House, second_server: Server
) -> None:
    model = house.model(DIME)
    tenant = house.tenant(model, usd="100")
    soon = datetime.now(UTC) + timedelta(seconds=3)
    house.price(
        model, {"input_token": "0", "output_token": "0.25"}, effective_from=soon.isoformat()
    )
    for server in (None, second_server):
        before = served(tenant.chat(max_tokens=1, server=server))
        assert before.headers["x-spendgate-cost-usd"] == "0.10"
    assert datetime.now(UTC) < soon
    # Nothing is changed, and nobody is told.
    eventually(lambda: datetime.now(UTC) > soon)
    for server in (None, second_server):
        after = served(tenant.chat(max_tokens=1, server=server))
        assert after.headers["x-spendgate-cost-usd"] == "0.25"


def test_a_call_in_flight_keeps_the_price_it_was_admitted_at(
    house: House, sim: RunningSimulator
) -> None:
    model = house.model(DIME)
    tenant = house.tenant(model, usd="1")
    sim.set(latency=0.4)
    answers: list[httpx2.Response] = []
    caller = threading.Thread(target=lambda: answers.append(tenant.chat(max_tokens=10)))
    caller.start()
    eventually(lambda: sim.app.total == 1)
    house.price(model, {"input_token": "0", "output_token": "5"})
    caller.join()
    assert served(answers[0]).headers["x-spendgate-cost-usd"] == "1.00"
    assert tenant.standing()["cost_used_this_month"] == "1.00"


# Answers without usage


def _chat(tenant: Tenant) -> httpx2.Response:
    return served(tenant.chat(max_tokens=16))


def _embeddings(tenant: Tenant) -> httpx2.Response:
    body = {"model": tenant.model, "input": "x" * 80, "dimensions": 4}
    return served(tenant.post("/v1/embeddings", json=body))


@pytest.mark.parametrize(
    ("upstream", "ask", "least"),
    [
        # The question has 10 tokens and the answer 16; of neither is less billed.
        ("gpt-4o", _chat, {"input_token": 10, "output_token": 16}),
        ("text-embedding-3-small", _embeddings, {"input_token": 20}),
    ],
)
def test_an_answer_without_usage_is_billed_by_an_estimate_that_is_flagged(
    house: House,
    sim: RunningSimulator,
    upstream: str,
    ask: Callable[[Tenant], httpx2.Response],
    least: Json,
) -> None:
    sim.set(usage="missing")
    rates = {"input_token": "0.01", "output_token": "0.01"}
    tenant = house.tenant(house.model(rates, upstream), usd="10")
    row = tenant.booked(ask(tenant))
    assert row["estimated"] is True
    assert row["outcome"] == "success"
    usage: dict[str, Any] = row["usage"]
    assert usage.keys() == least.keys()
    assert all(usage[unit] >= amount for unit, amount in least.items())
    assert Decimal(row["cost_usd"]) == Decimal(sum(usage.values())) / 100


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("maximum", [3, None], ids=["asked for", "granted"])
def test_an_estimate_is_never_above_the_maximum_that_the_provider_was_given(
    house: House, sim: RunningSimulator, maximum: int | None, stream: bool
) -> None:
    sim.set(usage="missing")
    tenant = house.tenant(house.model(DIME), usd="0.30")
    answer = served(tenant.chat(max_tokens=maximum, stream=stream or None))
    row = tenant.booked(answer)
    assert (row["estimated"], row["usage"]["output_token"], row["cost_usd"]) == (True, 3, "0.30")


def test_usage_beyond_the_hold_is_booked_in_full_and_recorded_as_overrun(
    house: House, sim: RunningSimulator
) -> None:
    tenant = house.tenant(house.model(PAGE, "mistral-ocr-latest"), usd="1")
    sim.set(pages=25)
    answer = served(tenant.ocr(2))
    assert answer.headers["x-spendgate-cost-usd"] == "2.50"
    assert answer.headers["x-spendgate-remaining-usd"] == "0.00"
    call_id = answer.headers["x-spendgate-call-id"]
    [(over,)] = house.sql("SELECT overrun_nano FROM calls WHERE id = %s", call_id)
    assert over == 2_300_000_000
    assert tenant.standing()["cost_used_this_month"] == "2.50"
    refused(tenant.ocr(1), 429, "cost_quota_exceeded")


def test_nonsense_from_a_provider_is_booked_without_breaking_the_books(
    house: House, sim: RunningSimulator
) -> None:
    tenant = house.tenant(house.model(DIME))
    sim.set(tokens_in=10**15, tokens_out=10**15)
    for _ in range(2):
        served(tenant.chat())
    sim.reset()
    served(tenant.chat(max_tokens=1))
    assert len(tenant.calls()) == 3
