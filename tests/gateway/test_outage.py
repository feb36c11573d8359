"""PostgreSQL away: what is refused, what is let through, and that nothing of it is lost or doubled."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from app.simulator import RunningSimulator
from app.store.postgres import EmbeddedPostgres
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
)


class Fragile:
    """A gateway on a PostgreSQL of its own, which can be stopped."""

    def __init__(self, postgres: EmbeddedPostgres, house: House) -> None:
        self.postgres = postgres
        self.house = house

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Stop PostgreSQL, and start it again on the same data."""
        self.postgres.stop()
        try:
            yield
        finally:
            self.postgres.start()

    def back(self) -> None:
        """Wait until the server has noticed."""
        eventually(self._ready, within=20, what="readiness")

    def _ready(self) -> bool:
        return self.house.client().get("/readyz").status_code == 200


@pytest.fixture(scope="module")
def fragile_estate(
    tmp_path_factory: pytest.TempPathFactory, provider: RunningSimulator
) -> Iterator[Fragile]:
    directory = tmp_path_factory.mktemp("outage")
    postgres = EmbeddedPostgres(directory / "postgres")
    dsn = postgres.start()
    server = Server(directory / "server", dsn, ledger_wait_s=1, reaper_period_s=0.5).start()
    house = House(server, dsn, provider)
    try:
        yield Fragile(postgres, house)
    finally:
        house.close()
        postgres.stop()


@pytest.fixture
def fragile(fragile_estate: Fragile, sim: RunningSimulator) -> Iterator[Fragile]:
    """The gateway under test; once PostgreSQL is back its books must add up."""
    fragile_estate.house.begin()
    yield fragile_estate
    fragile_estate.back()
    fragile_estate.house.audit()


@pytest.fixture
def models(fragile: Fragile) -> Json:
    return {name: fragile.house.model_for(kind) for name, kind in KINDS.items()}


def _booked(tenant: Tenant, count: int) -> list[Json]:
    """Wait until so many calls of a tenant are booked."""
    return eventually(  # type: ignore[no-any-return]
        lambda: (calls := tenant.calls()) and len(calls) >= count and calls, within=20
    )


def test_deny_refuses_every_kind_of_call_and_records_it_later(
    fragile: Fragile, sim: RunningSimulator, models: Json
) -> None:
    tenant = fragile.house.tenant(*models.values(), usd="100")
    served(tenant.ask(KINDS["chat"], models["chat"]))
    with fragile.away():
        for name, kind in KINDS.items():
            begun = time.monotonic()
            answer = tenant.ask(kind, models[name])
            assert time.monotonic() - begun < 5
            error = refused(answer, 503, "ledger_unavailable")
            assert error["type"] == "service_unavailable"
        assert sim.app.total == 1, "nothing is sent that cannot be booked"
    rows = _booked(tenant, 1 + len(KINDS))
    assert [row["outcome"] for row in rows] == ["success"] + ["rejected_unavailable"] * len(KINDS)
    assert [row["cost_usd"] for row in rows[1:]] == ["0.00"] * len(KINDS)
    fragile.back()
    served(tenant.ask(KINDS["chat"], models["chat"]))


def test_allow_serves_every_kind_of_call_and_books_each_once_later(
    fragile: Fragile, sim: RunningSimulator, models: Json
) -> None:
    tenant = fragile.house.tenant(*models.values(), usd="100", ledger_outage="allow")
    costs = {
        name: tenant.booked(served(tenant.ask(kind, models[name])))["cost_usd"]
        for name, kind in KINDS.items()
    }
    with fragile.away():
        for name, kind in KINDS.items():
            answer = served(tenant.ask(kind, models[name]))
            assert "x-spendgate-remaining-usd" not in answer.headers
    rows = _booked(tenant, 2 * len(KINDS))
    assert [row["outcome"] for row in rows] == ["success"] * 2 * len(KINDS)
    assert {row["model"]: row["cost_usd"] for row in rows[len(KINDS) :]} == {
        models[name]: cost for name, cost in costs.items()
    }
    total = 2 * sum(float(cost) for cost in costs.values())
    assert float(tenant.standing()["cost_used_this_month"]) == pytest.approx(total)


def test_what_was_let_through_counts_against_the_cap_once_the_ledger_is_back(
    fragile: Fragile,
) -> None:
    tenant = fragile.house.tenant(fragile.house.model(DIME), usd="1", ledger_outage="allow")
    served(tenant.chat(max_tokens=10))
    with fragile.away():
        for _ in range(2):
            served(tenant.chat(max_tokens=10))
    _booked(tenant, 3)
    assert tenant.standing()["cost_used_this_month"] == "3.00"
    refused(tenant.chat(max_tokens=1), 429, "cost_quota_exceeded")


def _in_flight(sim: RunningSimulator, ask: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Start a call, and return once the provider has it."""
    answers: list[Any] = []
    reached = sim.app.total
    thread = threading.Thread(target=lambda: answers.append(ask()))
    thread.start()
    eventually(lambda: sim.app.total == reached + 1)
    return thread, answers


@pytest.mark.parametrize("policy", ["deny", "allow"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_call_in_flight_when_postgresql_stops_is_answered_and_booked(
    fragile: Fragile, sim: RunningSimulator, policy: str, stream: bool
) -> None:
    tenant = fragile.house.tenant(fragile.house.model(DIME), usd="1", ledger_outage=policy)
    served(tenant.chat(max_tokens=1))
    sim.set(latency=1.0)
    thread, answers = _in_flight(sim, lambda: tenant.chat(max_tokens=5, stream=stream))
    with fragile.away():
        thread.join()
        answer = served(answers[0])
        if stream:
            assert answer.content.rstrip().endswith(b"data: [DONE]")
    row = _booked(tenant, 2)[1]
    assert (row["outcome"], row["cost_usd"], row["estimated"]) == ("success", "0.50", False)
    standing = eventually(
        lambda: (shown := tenant.standing())["cost_held"] == "0.00" and shown, within=10
    )
    assert standing["cost_used_this_month"] == "0.60"


def test_a_provider_that_fails_while_postgresql_is_away_costs_nothing(
    fragile: Fragile, sim: RunningSimulator
) -> None:
    tenant = fragile.house.tenant(fragile.house.model(DIME), usd="1", ledger_outage="allow")
    served(tenant.chat(max_tokens=1))
    with fragile.away():
        sim.set(status=500)
        refused(tenant.chat(max_tokens=5), 502, "upstream_error")
    row = _booked(tenant, 2)[1]
    assert (row["outcome"], row["cost_usd"]) == ("upstream_error", "0.00")


def test_what_a_killed_process_had_not_booked_is_booked_by_the_next(
    fragile: Fragile, sim: RunningSimulator
) -> None:
    house = fragile.house
    tenant = house.tenant(house.model(PAGE, "mistral-ocr-latest"), ledger_outage="allow")
    assert tenant.get("/v1/key").status_code == 200
    with fragile.away():
        ids = {served(tenant.ocr(2)).headers["x-spendgate-call-id"] for _ in range(4)}
        house.server.kill()
    house.server.start()
    rows = _booked(tenant, 4)
    assert {row["id"] for row in rows} == ids
    assert [row["cost_usd"] for row in rows] == ["0.20"] * 4
    assert tenant.standing()["cost_used_this_month"] == "0.80"


def test_without_postgresql_what_is_not_in_memory_is_a_503(
    fragile: Fragile,
) -> None:
    tenant = fragile.house.tenant(fragile.house.model(DIME))
    call_id = served(tenant.chat(max_tokens=1)).headers["x-spendgate-call-id"]
    with fragile.away():
        # What is known in memory can be told.
        assert tenant.get("/v1/models").status_code == 200
        refused(tenant.get("/v1/key"), 503, "ledger_unavailable")
        refused(tenant.get(f"/v1/calls/{call_id}"), 503, "ledger_unavailable")
        refused(
            tenant.chat(max_tokens=1, headers={"idempotency-key": "x"}), 503, "ledger_unavailable"
        )
        # A key that this process does not know may be a good one, made just before.
        answer = tenant.post("/v1/chat/completions", key="sg_unknown", json={})
        refused(answer, 503, "ledger_unavailable")
        # What is no key at all needs no looking up.
        answer = fragile.house.client().post("/v1/chat/completions", json={})
        refused(answer, 401, "invalid_api_key")
        assert fragile.house.client().get("/readyz").status_code == 503
        assert fragile.house.client().get("/livez").status_code == 200
        headers = {"authorization": f"Bearer {fragile.house.token}"}
        shown = fragile.house.client().get("/api/admin/calls", headers=headers)
        assert shown.status_code == 503
    fragile.back()
    served(tenant.chat(max_tokens=1))


def test_calls_are_served_again_as_soon_as_postgresql_is_back(
    fragile: Fragile, sim: RunningSimulator
) -> None:
    tenant = fragile.house.tenant(fragile.house.model(DIME), usd="10")
    served(tenant.chat(max_tokens=1))
    with fragile.away():
        refused(tenant.chat(max_tokens=1), 503, "ledger_unavailable")
    begun = time.monotonic()

    def again() -> httpx2.Response | None:
        answer: httpx2.Response = tenant.chat(max_tokens=1)
        return answer if answer.status_code == 200 else None

    served(eventually(again, within=10))
    assert time.monotonic() - begun < 5
