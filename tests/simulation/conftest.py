"""Houses to wreck: each test has a database of its own, on a server with fsync on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.simulator import RunningSimulator
from tests.simulation.house import House, Nursery, Postgres, provider


@pytest.fixture(scope="session")
def durable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A server that tests share whose victims are gateways. Do not kill it."""
    server = Postgres(tmp_path_factory.mktemp("durable") / "data")
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def simulator() -> Iterator[RunningSimulator]:
    """The provider, in this process: it survives, and its record tells what reached it."""
    with provider() as running:
        yield running


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Where gateways come from."""
    made = Nursery()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def house(
    durable: Postgres, nursery: Nursery, simulator: RunningSimulator, tmp_path: Path
) -> Iterator[House]:
    """A house on a database of its own; gateways are what dies in it."""
    made = House(tmp_path, durable.another(), simulator, nursery)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session")
def _mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    server = Postgres(tmp_path_factory.mktemp("mortal") / "data")
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def mortal(_mortal: Postgres) -> Iterator[Postgres]:
    """A server to kill; one test at a time has it."""
    yield _mortal
    if not _mortal.running():
        _mortal.start()


@pytest.fixture
def own_house(
    mortal: Postgres, nursery: Nursery, simulator: RunningSimulator, tmp_path: Path
) -> Iterator[House]:
    """A house on a database of that server; anything in it may die."""
    made = House(tmp_path, mortal.another(), simulator, nursery)
    try:
        yield made
    finally:
        made.close()
