"""A gateway to call: a real server on a database of this worker's own, and the simulator behind it.

Servers take seconds to start, so they serve all tests of a worker; tenants are new for each test.
After each test the books must add up.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from app.simulator import RunningSimulator, serve_in_thread
from app.store.postgres import EmbeddedPostgres
from tests.gateway.kit import PROVIDER_KEY, House, Server, Wild


@pytest.fixture(scope="session")
def provider() -> Iterator[RunningSimulator]:
    """The simulator; tests want `sim`."""
    with serve_in_thread(api_key=PROVIDER_KEY) as running:
        yield running


@pytest.fixture
def sim(provider: RunningSimulator) -> Iterator[RunningSimulator]:
    """The provider, as just started."""
    provider.reset()
    yield provider
    provider.reset()


@pytest.fixture(scope="session")
def servers_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="session")
def estate(
    postgres: EmbeddedPostgres, template: str, provider: RunningSimulator, servers_dir: Path
) -> Iterator[House]:
    """The database and the first server on it; tests want `house`."""
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE gateway TEMPLATE {template} STRATEGY file_copy")
    dsn = postgres.dsn_of("gateway")
    house = House(Server(servers_dir / "first", dsn).start(), dsn, provider)
    yield house
    house.close()


@pytest.fixture(scope="session")
def second_server(estate: House, servers_dir: Path) -> Server:
    """Another replica on the same database, which waits a second at most for a provider."""
    server = Server(servers_dir / "second", estate.dsn, upstream_timeout_s=1).start()
    estate.servers.append(server)
    return server


@pytest.fixture(scope="session")
def two_processes(estate: House, servers_dir: Path) -> Server:
    """A server of two processes on the same database."""
    server = Server(servers_dir / "double", estate.dsn, workers=2).start()
    estate.servers.append(server)
    return server


@pytest.fixture(scope="session")
def impatient(estate: House, servers_dir: Path) -> Server:
    """A replica that waits a second for a first frame, for a provider, and for PostgreSQL."""
    server = Server(
        servers_dir / "impatient",
        estate.dsn,
        first_frame_s=1,
        upstream_timeout_s=1,
        upstream_connect_timeout_s=1,
    ).start()
    estate.servers.append(server)
    return server


@pytest.fixture
def house(estate: House, sim: RunningSimulator) -> Iterator[House]:
    """The gateway under test; afterwards its books must add up."""
    estate.begin()
    yield estate
    estate.audit()


@pytest.fixture
def wild() -> Iterator[Wild]:
    """A provider of realtime sessions that does what the test wants with them."""
    provider = Wild()
    try:
        yield provider
    finally:
        provider.close()
