"""Run a module and sample what it spends its CPU time on: for the watcher's share of the gateway.

`python -m tests.benchmarks.sampled FILE MODULE ARGUMENT…` runs the module as `python -m` would. At
the first SIGUSR1 it begins to sample, at the second it stops and writes the samples to FILE as
JSON: `[[["file:function", …], count], …]`, the innermost function first.

The clock is CPU time (`ITIMER_PROF`), so waiting is not sampled. A signal is handled between two
bytecodes: time spent below Python counts for the function that called it or, where the event loop
is between two callbacks, for the next one to run.
"""

import os
import runpy
import signal
import sys
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Final

import msgspec

from .machine import ROOT

PERIOD_S: Final = 0.002
_HERE: Final = f"{ROOT}{os.sep}"
_LIBRARY: Final = f"{os.path.dirname(os.__file__)}{os.sep}"
_PACKAGES: Final = f"site-packages{os.sep}"


class Sampler:
    """Counts the stacks of the main thread."""

    def __init__(self, to: Path) -> None:
        self._to = to
        self._stacks: Counter[tuple[CodeType, ...]] = Counter()
        self._running = False

    def toggle(self, number: int, frame: FrameType | None) -> None:
        """Begin, or stop and write down what was seen."""
        self._running = not self._running
        period = PERIOD_S if self._running else 0.0
        signal.setitimer(signal.ITIMER_PROF, period, period)
        if not self._running:
            self._write()

    def sample(self, number: int, frame: FrameType | None) -> None:
        """Count where the program is."""
        stack: list[CodeType] = []
        while frame is not None:
            stack.append(frame.f_code)
            frame = frame.f_back
        self._stacks[tuple(stack)] += 1

    def _write(self) -> None:
        rows = [([_name(code) for code in stack], n) for stack, n in self._stacks.items()]
        self._stacks.clear()
        temporary = self._to.with_suffix(".new")
        temporary.write_bytes(msgspec.json.encode(rows))
        temporary.rename(self._to)


def _name(code: CodeType) -> str:
    name = code.co_filename
    _, packages, inside = name.rpartition(_PACKAGES)
    short = inside if packages else name.removeprefix(_HERE).removeprefix(_LIBRARY)
    return f"{short}:{code.co_name}"


def main() -> None:
    to, module, *arguments = sys.argv[1:]
    sampler = Sampler(Path(to))
    signal.signal(signal.SIGUSR1, sampler.toggle)
    signal.signal(signal.SIGPROF, sampler.sample)
    # A system call that was interrupted goes on by itself.
    signal.siginterrupt(signal.SIGPROF, False)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
