"""Processes, cores and ports: what keeps the measured server apart from everything around it.

The server under test gets one core to itself; the load generator, the provider and PostgreSQL
share another. Where there is only one core, or the system knows no affinity, nothing is pinned
and the report says so. Only processes started here are ever stopped.
"""

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Self

import psutil

ROOT: Final = Path(__file__).resolve().parents[2]
READY_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 30.0
FILES: Final = 20_000
"""Enough for a thousand sessions, with a socket to either side."""


class Cores(NamedTuple):
    """The core of the server under test, and the core of everything else."""

    server: int
    others: int


def cores() -> Cores | None:
    """Pick two cores of those we may use; None where pinning is not possible."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    allowed = sorted(os.sched_getaffinity(0))
    return Cores(allowed[0], allowed[1]) if len(allowed) > 1 else None


def pin_self(to: Cores | None) -> None:
    """Move this process, and what it will start unpinned, to the core of the others."""
    if to is not None:
        os.sched_setaffinity(0, {to.others})


def allow_files() -> None:
    """Let this process, and what it will start, open as many files as the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def free_port() -> int:
    """A port of the loopback interface that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def python(*arguments: str) -> list[str]:
    """The command line of a module or script in this interpreter."""
    return [sys.executable, *arguments]


class Process:
    """One server process with its log, on the core it was given."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        core: int | None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.log = log
        pin: Callable[[], None] | None = None
        if core is not None:

            def pin() -> None:
                os.sched_setaffinity(0, {core})

        with log.open("ab") as output:
            # The child gets a group of its own: Ctrl-C is ours to handle, in our order.
            self._popen = subprocess.Popen(
                command,
                cwd=ROOT,
                env=None if env is None else {**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=pin,
                start_new_session=True,
            )

    def wait_until(self, ready: Callable[[], bool]) -> Self:
        """Wait for the server to serve; an early death is reported with the end of its log."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not ready():
            if self._popen.poll() is not None:
                raise RuntimeError(
                    f"{self.name} ended with {self._popen.returncode}:\n{self.tail()}"
                )
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} does not answer:\n{self.tail()}")
            time.sleep(0.05)
        return self

    def tail(self) -> str:
        """The end of what it wrote."""
        return self.log.read_bytes()[-4000:].decode(errors="replace")

    def cpu_s(self) -> float:
        """CPU seconds spent so far by the process and its children."""
        process = psutil.Process(self._popen.pid)
        total = 0.0
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = one.cpu_times()
                total += times.user + times.system
        return total

    def rss_bytes(self) -> int:
        """The resident memory of the process and its children."""
        process = psutil.Process(self._popen.pid)
        total = 0
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += one.memory_info().rss
        return total

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._popen.send_signal(number)

    def stop(self) -> None:
        """End it politely, then firmly; its children end with it."""
        if self._popen.poll() is not None:
            return
        children = psutil.Process(self._popen.pid).children(recursive=True)
        self._popen.send_signal(signal.SIGTERM)
        try:
            self._popen.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


def accepts(port: int) -> bool:
    """Tell whether something listens on the port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=0.5).close()
    except OSError:
        return False
    return True


class Busy:
    """How busy each of the two cores was between two moments, as shares from 0 to 1."""

    def __init__(self, of: Cores | None) -> None:
        self._cores = of
        self._before = psutil.cpu_times(percpu=True)

    def shares(self) -> tuple[float, float]:
        """The server's core and the others'; zeros where nothing is pinned."""
        if self._cores is None:
            return 0.0, 0.0
        after = psutil.cpu_times(percpu=True)
        shares = []
        for core in self._cores:
            # `guest` is already part of `user`.
            old, new = self._before[core]._asdict(), after[core]._asdict()
            spent = {k: new[k] - old[k] for k in new if not k.startswith("guest")}
            total = sum(spent.values())
            idle = spent["idle"] + spent.get("iowait", 0.0)
            shares.append(1 - idle / total if total else 0.0)
        return shares[0], shares[1]
