"""Commands that a test starts end with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.processes import Process, Start


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a command: ``start("serve", "--port", 0, DATA_DIR=…)``."""
    started: list[Process] = []

    def start(*arguments: object, **settings: str) -> Process:
        process = Process(tmp_path / f"{len(started)}.log", *arguments, **settings)
        started.append(process)
        return process

    yield start
    for process in reversed(started):
        process.end()
