"""A browser, and a real server with the built dashboard for it to look at.

The browser and the server serve all tests of a worker; windows and members are new for each test.
Every window is looked at once more when its test is over: it may not have complained of anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import psycopg
import pytest
from playwright.sync_api import Browser

from app.dashboard import DOCUMENT, HOMES
from app.simulator import RunningSimulator, serve_in_thread
from app.store.postgres import EmbeddedPostgres
from tests.browser.chromium import Window, chromium
from tests.gateway.kit import PROVIDER_KEY, House, Server


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The browser; tests want `window`."""
    with chromium() as running:
        yield running


@pytest.fixture(scope="session")
def provider() -> Iterator[RunningSimulator]:
    """The simulator behind the gateway."""
    with serve_in_thread(api_key=PROVIDER_KEY) as running:
        yield running


@pytest.fixture(scope="session")
def estate(
    postgres: EmbeddedPostgres,
    template: str,
    provider: RunningSimulator,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[House]:
    """The database and the server on it; tests want `house`."""
    assert any((home / DOCUMENT).is_file() for home in HOMES), "build it first: make dashboard"
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE browser TEMPLATE {template} STRATEGY file_copy")
    dsn = postgres.dsn_of("browser")
    server = Server(tmp_path_factory.mktemp("browser") / "server", dsn).start()
    house = House(server, dsn, provider)
    yield house
    house.close()


@pytest.fixture
def house(estate: House, provider: RunningSimulator) -> Iterator[House]:
    """The gateway that the dashboard is of; afterwards its books must add up."""
    provider.reset()
    estate.begin()
    yield estate
    # In a thread of its own: this one's event loop is the browser's.
    with ThreadPoolExecutor(1) as aside:
        aside.submit(estate.audit).result()


class Open(Protocol):
    """Opens a window on the dashboard."""

    def __call__(self, **more: Any) -> Window: ...


@pytest.fixture
def window(browser: Browser, house: House) -> Iterator[Open]:
    """Opens windows: ``window(language="zh-TW", width=NARROW)``."""
    opened: list[Window] = []

    def window(**more: Any) -> Window:
        opened.append(Window(browser, house.url(), **more))
        return opened[-1]

    yield window
    for one in opened:
        one.context.close()
    for one in opened:
        assert one.complaints == []
