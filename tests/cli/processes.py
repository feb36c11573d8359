"""Real processes of the command line, started as a user would and ended whatever happens."""

from __future__ import annotations

import atexit
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "app.cli"]
PATIENCE_S = 90

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def environment(**settings: str) -> dict[str, str]:
    """Ours without settings of Spendgate's, and then these."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SPENDGATE_", "PROMETHEUS_"))}
    if kept.pop("PYTHONDONTWRITEBYTECODE", ""):
        # Or each of many processes would compile everything again.
        kept["PYTHONPYCACHEPREFIX"] = _bytecode()
    return {**kept, **{f"SPENDGATE_{name}": value for name, value in settings.items()}}


@cache
def _bytecode() -> str:
    directory = tempfile.mkdtemp(prefix="spendgate-test-bytecode-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def run(*arguments: object, stdin: str = "", **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(**settings),
        timeout=PATIENCE_S,
        check=False,
    )


def request(
    url: str, method: str = "GET", bearer: str = "", document: object = None
) -> tuple[int, Any]:
    """Return status and document of an answer."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {bearer}"}
    body = None if document is None else json.dumps(document).encode()
    try:
        with _opener.open(
            urllib.request.Request(url, body, headers, method=method), timeout=30
        ) as answer:
            status, text = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            status, text = error.code, error.read()
    return status, json.loads(text) if text.startswith((b"{", b"[")) else text.decode()


class Process:
    """A command that goes on until it is told to stop."""

    def __init__(self, log: Path, *arguments: object, **settings: str) -> None:
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [*COMMAND, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=ROOT,
                env=environment(**settings),
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> str:
        return self.log.read_text()

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait until something is so, while the process runs."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if found := condition():
                return found
            assert self._process.poll() is None, f"ended before {what}:\n{self.output}"
            time.sleep(0.05)
        pytest.fail(f"not {what} after {PATIENCE_S} s:\n{self.output}")

    def address(self) -> str:
        """Wait until a server is ready, and return where."""
        found = self.until(
            lambda: re.search(r'"(http://127\.0\.0\.1:\d+)"', self.output), "listening"
        )
        url: str = found[1]

        def is_ready() -> bool:
            try:
                return request(f"{url}/readyz")[0] == 200
            except OSError:
                return False

        self.until(is_ready, "ready")
        return url

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Tell it to stop, and return what it exits with."""
        self._process.send_signal(number)
        return self._process.wait(PATIENCE_S)

    def wait(self) -> int:
        return self._process.wait(PATIENCE_S)

    def end(self) -> None:
        """End it if it still runs."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


Start = Callable[..., Process]
