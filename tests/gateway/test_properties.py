"""Any calls under any caps: never above a cap, and the account is the sum of what was told."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, NamedTuple

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.simulator import RunningSimulator
from tests.gateway.kit import PAGE, QUESTION, House, Tenant

RATES = {"input_token": "0.001", "cached_input_token": "0.0005", "output_token": "0.01"}


class Step(NamedTuple):
    """One call, and how its provider behaves."""

    kind: str
    maximum: int | None
    answer_tokens: int
    cached: int
    fault: str | None
    pages: int


steps = st.builds(
    Step,
    kind=st.sampled_from(["chat", "stream", "ocr"]),
    maximum=st.one_of(st.none(), st.integers(1, 60)),
    answer_tokens=st.integers(0, 60),
    cached=st.integers(0, 10),
    fault=st.sampled_from([None, None, None, "status", "disconnect", "missing"]),
    pages=st.integers(1, 5),
)
caps = st.one_of(st.none(), st.decimals("0", "3", places=2))


def _knobs(step: Step) -> dict[str, Any]:
    knobs: dict[str, Any] = {"answer_tokens": step.answer_tokens, "cached": step.cached}
    match step.fault:
        case "status":
            knobs["status"] = 500
        case "disconnect":
            knobs["disconnect"] = "after:1"
        case "missing":
            knobs["usage"] = "missing"
    return knobs


def _send(tenant: Tenant, step: Step, models: dict[str, str]) -> Any:
    if step.kind == "ocr":
        document = {"type": "document_url", "document_url": "https://documents.example/a.pdf"}
        pages = list(range(step.pages))
        body = {"model": models["ocr"], "document": document, "pages": pages}
        return tenant.post("/v1/ocr", json=body)
    return tenant.chat(
        models["chat"],
        messages=QUESTION,
        max_tokens=step.maximum,
        stream=True if step.kind == "stream" else None,
    )


@settings(
    max_examples=12,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    sequence=st.lists(steps, min_size=1, max_size=8),
    usd=caps,
    tokens=st.none() | st.integers(0, 400),
)
def test_any_calls_stay_under_the_caps_and_add_up(
    house: House,
    sim: RunningSimulator,
    sequence: list[Step],
    usd: Decimal | None,
    tokens: int | None,
) -> None:
    sim.app.reset()
    models = {"chat": house.model(RATES), "ocr": house.model(PAGE, "mistral-ocr-latest")}
    tenant = house.tenant(*models.values(), usd=None if usd is None else str(usd), tokens=tokens)
    cost, used, told = Decimal(0), 0, 0
    for step in sequence:
        sim.app.reset()
        sim.set(**_knobs(step), remote_pages=5)
        reached = sim.app.total
        answer = _send(tenant, step, models)
        row = tenant.booked(answer)
        told += 1
        cost += Decimal(row["cost_usd"])
        used += row["tokens"]
        if answer.status_code == 429:
            assert row["outcome"] in ("rejected_quota_exceeded", "rejected_cost_quota_exceeded")
            assert sim.app.total == reached
        if answer.status_code != 200:
            assert row["cost_usd"] == "0.00"
        header = answer.headers.get("x-spendgate-cost-usd")
        assert header in (None, row["cost_usd"])
        assert usd is None or cost <= usd
        assert tokens is None or used <= tokens
        standing = tenant.standing()
        assert Decimal(standing["cost_used_this_month"]) == cost
        assert standing["tokens_used_this_month"] == used
        assert (standing["cost_held"], standing["tokens_held"]) == ("0.00", 0)
    assert len(tenant.calls()) == told
