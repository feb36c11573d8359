"""The gateway beside a bare pass-through and nginx, in interleaved rounds of one run.

    python -m tests.benchmarks                         the whole comparison, about six minutes
    python -m tests.benchmarks --quick                 one short round of everything
    python -m tests.benchmarks --only passthrough,nginx
    python -m tests.benchmarks --only realtime         realtime sessions beside a bare relay
    python -m tests.benchmarks --history 5000000       also with five million past calls

All servers run for the whole time and are measured one after the other, every round in the
opposite order of the one before, so that whatever else the machine does falls on all of them
alike. Ratios are taken within a round; every number shown is the median over the rounds.

Ends with 1 if an answer was not a 200, if the gateway answered other calls than it booked, or if
`spendgate reconcile` finds the books wrong. The goals of throughput are reported, not enforced:
a busy machine must not fail a build.
"""

import argparse
import contextlib
import http.client
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Final

import msgspec

from . import load, machine, nginx, realtime, upstream
from .machine import ROOT, Busy, Cores, Process, free_port, python

CASES: Final = (
    "nginx",
    "passthrough",
    "gateway-one",
    "gateway-200",
    "history-one",
    "history-200",
    "realtime",
)
BASELINE: Final = "passthrough"
GOAL: Final = 0.5
"""The least share of the pass-through's throughput that the gateway has to reach."""
GOAL_CONNECTIONS: Final = 64
FOREIGN_MAX: Final = 0.1
"""Above this share of the server's core in foreign hands, a window is called disturbed."""
HISTORY_GOAL: Final = 0.95
"""What counts as the same throughput, with many past calls as with none."""


class Options(msgspec.Struct, frozen=True):
    """What to measure, and how long."""

    cases: tuple[str, ...]
    connections: tuple[int, ...]
    rounds: int
    warmup_s: float
    window_s: float
    history: int
    json: Path | None
    realtime: realtime.Options


class Target(msgspec.Struct, frozen=True):
    """One case: a server, and the keys that its calls carry."""

    case: str
    process: Process
    port: int
    keys: list[str]


class Sample(msgspec.Struct, frozen=True):
    """One measured window of one case."""

    case: str
    connections: int
    round: int
    rate: float
    p50_us: float
    p99_us: float
    cpu_us: float
    """CPU time of the server for each call, its children included."""
    server_core: float
    other_core: float
    foreign: float
    """The share of the server's core that went to programs that are not ours."""
    total: int
    failures: dict[int, int]
    ratio: float | None = None
    """Throughput as a share of the pass-through's in the same round."""


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


# ------------------------------------------------------------------------------- measuring


def measure(
    target: Target, connections: int, number: int, options: Options, at: Cores | None
) -> Sample:
    """Drive one case for one window, with the load generator in a process of its own."""
    plan = load.Plan(
        port=target.port,
        connections=connections,
        warmup_s=options.warmup_s,
        window_s=options.window_s,
        keys=target.keys,
    )
    busy = Busy(at)
    begun = time.monotonic()
    cpu_before = target.process.cpu_s()
    done = subprocess.run(
        python("-m", "tests.benchmarks.load"),
        cwd=ROOT,
        input=msgspec.json.encode(plan),
        stdout=subprocess.PIPE,
        timeout=options.warmup_s + options.window_s + 60,
        check=True,
    )
    cpu_s = target.process.cpu_s() - cpu_before
    elapsed_s = time.monotonic() - begun
    server_core, other_core = busy.shares()
    result = msgspec.json.decode(done.stdout, type=load.Result)
    return Sample(
        case=target.case,
        connections=connections,
        round=number,
        rate=result.rate,
        p50_us=result.p50_us,
        p99_us=result.p99_us,
        cpu_us=cpu_s * 1e6 / max(1, result.total),
        server_core=server_core,
        other_core=other_core,
        foreign=max(0.0, server_core - cpu_s / elapsed_s),
        total=result.total,
        failures={status: count for status, count in result.statuses.items() if status != 200},
    )


def probe(target: Target) -> None:
    """Make one call and compare: every case has to give the provider's own answer."""
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=30)
    try:
        connection.request(
            "POST",
            load.PATH,
            load.BODY,
            {"authorization": f"Bearer {target.keys[0]}", "content-type": "application/json"},
        )
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    if answer.status != 200 or body != upstream.ANSWER:
        raise RuntimeError(
            f"{target.case} does not pass the answer through: {answer.status} {body[:500]!r}\n"
            + target.process.tail()
        )


def run_rounds(targets: list[Target], options: Options, at: Cores | None) -> list[Sample]:
    """Measure every case at every number of connections, round by round, in alternating order."""
    samples: list[Sample] = []
    for number in range(options.rounds):
        for connections in options.connections:
            order = targets if number % 2 == 0 else targets[::-1]
            block = [measure(target, connections, number, options, at) for target in order]
            base = next((one.rate for one in block if one.case == BASELINE), None)
            samples += [
                msgspec.structs.replace(one, ratio=one.rate / base if base else None)
                for one in block
            ]
            shown = ", ".join(f"{t.case} {_rate(block, t.case):,.0f}" for t in targets)
            say(f"round {number + 1}/{options.rounds}, {connections:>2} connections: {shown}")
    return samples


def _rate(block: list[Sample], case: str) -> float:
    return next(one.rate for one in block if one.case == case)


# ------------------------------------------------------------------------------- reporting


def median(samples: list[Sample], value: Callable[[Sample], float | None]) -> float | None:
    """The median over the rounds, None where there is none."""
    known = [found for one in samples if (found := value(one)) is not None]
    return statistics.median(known) if known else None


def of(samples: list[Sample], case: str, connections: int) -> list[Sample]:
    """The samples of one line of the table."""
    return [one for one in samples if one.case == case and one.connections == connections]


def table(samples: list[Sample], options: Options) -> str:
    """The medians as a table that reads as Markdown too."""
    lines = [
        "| connections | case | req/s | p50 ms | p99 ms | of pass-through | CPU µs/call "
        "| server core | other core |",
        "|--:|:--|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for connections in options.connections:
        for case in options.cases:
            rows = of(samples, case, connections)
            if not rows:
                continue
            ratio = median(rows, lambda one: one.ratio)
            cells = (
                f"{connections}",
                case,
                f"{median(rows, lambda one: one.rate):,.0f}",
                f"{(median(rows, lambda one: one.p50_us) or 0) / 1e3:.2f}",
                f"{(median(rows, lambda one: one.p99_us) or 0) / 1e3:.2f}",
                "–" if ratio is None else f"{ratio:.2f}",
                f"{median(rows, lambda one: one.cpu_us):.0f}",
                f"{median(rows, lambda one: one.server_core):.0%}",
                f"{median(rows, lambda one: one.other_core):.0%}",
            )
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdicts(samples: list[Sample]) -> list[str]:
    """One sentence for each goal that this run can speak of."""
    lines = []
    for case in ("gateway-one", "gateway-200"):
        ratio = median(of(samples, case, GOAL_CONNECTIONS), lambda one: one.ratio)
        if ratio is not None:
            met = "met" if ratio >= GOAL else "NOT MET"
            lines.append(
                f"{case} at {GOAL_CONNECTIONS} connections: {ratio:.2f} of the pass-through "
                f"(goal {GOAL:.2f}): {met}"
            )
    for many, none in (("history-one", "gateway-one"), ("history-200", "gateway-200")):
        # Compared round by round, like everything else.
        without = {one.round: one.rate for one in of(samples, none, GOAL_CONNECTIONS)}
        shares = [
            one.rate / without[one.round]
            for one in of(samples, many, GOAL_CONNECTIONS)
            if without.get(one.round)
        ]
        if shares:
            ratio = statistics.median(shares)
            met = "met" if ratio >= HISTORY_GOAL else "NOT MET"
            lines.append(
                f"{many} at {GOAL_CONNECTIONS} connections: {ratio:.2f} of {none} "
                f"(goal {HISTORY_GOAL:.2f}): {met}"
            )
    return lines


def disturbances(samples: list[Sample]) -> list[str]:
    """A warning if other programs kept the server's core busy."""
    disturbed = [one for one in samples if one.foreign > FOREIGN_MAX]
    if not disturbed:
        return []
    worst = max(one.foreign for one in disturbed)
    return [
        f"disturbed: in {len(disturbed)} of {len(samples)} windows other programs took more than "
        f"{FOREIGN_MAX:.0%} of the server's core (up to {worst:.0%}); trust CPU per call and "
        "ratios more than req/s"
    ]


def failed_answers(samples: list[Sample]) -> list[str]:
    """One sentence for each window in which an answer was not a 200."""
    return [
        f"{one.case}, {one.connections} connections, round {one.round + 1}: "
        + ", ".join(
            f"{count} × {status or 'no answer'}" for status, count in sorted(one.failures.items())
        )
        for one in samples
        if one.failures
    ]


# ----------------------------------------------------------------------------- the servers


def start_plain(
    case: str, command: list[str], port: int, directory: Path, at: Cores | None
) -> Process:
    """Start a server that is ready as soon as it listens."""
    process = Process(
        case,
        command,
        log=directory / f"{case}.log",
        core=None if at is None else at.server,
    )
    return process.wait_until(lambda: machine.accepts(port))


def run(options: Options, directory: Path) -> int:
    """Measure every case, report what went wrong."""
    at = machine.cores()
    machine.pin_self(at)
    say(description(options, at))
    samples: list[Sample] = []
    problems: list[str] = []
    sessions: realtime.Report | None = None
    if options.cases != ("realtime",):
        with contextlib.ExitStack() as stack:
            samples, problems = run_calls(options, directory, stack, at)
    if "realtime" in options.cases:
        with contextlib.ExitStack() as stack:
            folder = directory / "realtime"
            sessions = realtime.run(options.realtime, folder, stack, at, say)
        problems += sessions.problems
    for problem in problems:
        say(f"FAILED {problem}")
    if options.json is not None:
        written = {"calls": samples, "realtime": sessions}
        options.json.write_text(json.dumps(msgspec.to_builtins(written), indent=1) + "\n")
    return 1 if problems else 0


def run_calls(
    options: Options, directory: Path, stack: contextlib.ExitStack, at: Cores | None
) -> tuple[list[Sample], list[str]]:
    """Start what the cases of calls need, measure, report, check the books."""
    upstream_port = free_port()
    provider = Process(
        "provider",
        python("-m", "tests.benchmarks.upstream", "--port", str(upstream_port)),
        log=directory / "provider.log",
        core=None if at is None else at.others,
    )
    stack.callback(provider.stop)
    provider.wait_until(lambda: machine.accepts(upstream_port))
    targets: list[Target] = []

    if "nginx" in options.cases:
        executable = nginx.program()
        if executable is None:
            say("nginx: not installed, left out")
        else:
            port = free_port()
            command = nginx.command(executable, directory / "nginx", port, upstream_port)
            process = start_plain("nginx", command, port, directory, at)
            stack.callback(process.stop)
            targets.append(Target("nginx", process, port, ["none"]))

    if BASELINE in options.cases:
        port = free_port()
        address = f"http://127.0.0.1:{upstream_port}"
        command = python("-m", "tests.benchmarks.passthrough")
        command += ["--port", str(port), "--upstream", address]
        process = start_plain(BASELINE, command, port, directory, at)
        stack.callback(process.stop)
        targets.append(Target(BASELINE, process, port, ["none"]))

    products = []
    for name, history in (("gateway", 0), ("history", options.history)):
        wanted = [case for case in options.cases if case.startswith(name)]
        if not wanted:
            continue
        # Imported here, so that the other cases do not need the product's own dependencies.
        from .gateway import Product

        say(f"{name}: starting the product and setting it up")
        product = Product(directory / name, at)
        stack.callback(product.stop)
        product.start(upstream_port, history, say)
        products.append((name, product))
        for case in wanted:
            keys = product.keys[:1] if case.endswith("-one") else product.keys
            targets.append(Target(case, product.process, product.port, keys))

    for target in targets:
        probe(target)
    samples = run_rounds(targets, options, at)

    say("\n" + table(samples, options) + "\n")
    for line in (*verdicts(samples), *disturbances(samples)):
        say(line)
    problems = failed_answers(samples)
    if not problems:
        say(f"all {sum(one.total for one in samples):,} answers were 200")
    for name, product in products:
        answered = sum(one.total for one in samples if one.case.startswith(name))
        answered += sum(1 for target in targets if target.case.startswith(name))
        booked = product.booked_calls()
        if booked == answered:
            say(f"{name}: {answered:,} calls answered, {booked:,} booked")
        else:
            problems.append(f"{name}: {answered:,} calls answered, but {booked:,} booked")
        try:
            printed = product.command("reconcile").strip()
        except RuntimeError as error:
            problems.append(f"{name}: the books do not match: {error}")
        else:
            say(f"{name}: the books match: {printed.splitlines()[-1] if printed else 'reconciled'}")
    return samples, problems


def description(options: Options, at: Cores | None) -> str:
    """What is measured on what."""
    pinned = (
        "not pinned: fewer than two cores, or no affinity on this system"
        if at is None
        else f"the server on core {at.server}; load, provider and PostgreSQL on core {at.others}"
    )
    system = (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}; {pinned}"
    )
    if options.cases == ("realtime",):
        return system
    return (
        f"{system}\n{options.rounds} rounds of {options.window_s:g} s after {options.warmup_s:g} s of "
        f"warm-up, request body {len(load.BODY)} B, answer {len(upstream.ANSWER)} B"
    )


# -------------------------------------------------------------------------------- options


def parse(arguments: list[str]) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="one round of short windows")
    parser.add_argument("--rounds", type=_positive(int), help="rounds (3; quick: 1)")
    parser.add_argument("--window", type=_positive(float), help="seconds measured (4; quick: 1.5)")
    parser.add_argument("--warmup", type=_positive(float), help="seconds before (1; quick: 0.5)")
    parser.add_argument("--connections", default="1,8,64", help="with commas between them")
    parser.add_argument("--only", default="", help=f"cases, or how they begin: {', '.join(CASES)}")
    parser.add_argument(
        "--history",
        type=_positive(int),
        default=0,
        metavar="N",
        help="also run the gateway with N past calls (about 1 GB of TMPDIR per million)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample to FILE")
    given = parser.parse_args(arguments)

    cases = tuple(case for case in CASES if given.history or not case.startswith("history"))
    if given.only:
        wanted = tuple(filter(None, given.only.split(",")))
        cases = tuple(case for case in cases if case.startswith(wanted))
        if not cases or not wanted:
            parser.error(f"--only {given.only}: no such case (history needs --history N)")
    try:
        connections = tuple(int(number) for number in given.connections.split(","))
    except ValueError:
        parser.error("--connections takes numbers with commas between them")
    if not all(0 < number <= 512 for number in connections):
        parser.error("--connections must be from 1 to 512")
    return Options(
        cases=cases,
        connections=connections,
        rounds=given.rounds or (1 if given.quick else 3),
        warmup_s=given.warmup or (0.5 if given.quick else 1.0),
        window_s=given.window or (1.5 if given.quick else 4.0),
        history=given.history,
        json=given.json.absolute() if given.json else None,
        realtime=realtime.QUICK if given.quick else realtime.Options(),
    )


def _positive(kind: type[float]) -> Callable[[str], float]:
    def positive(text: str) -> float:
        value = kind(text)
        # The bound keeps a slip of the keyboard from running for days.
        if not 0 < value <= 100_000_000:
            raise argparse.ArgumentTypeError("must be more than 0")
        return value

    return positive


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    options = parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, _interrupt)
    with tempfile.TemporaryDirectory(prefix="spendgate-bench-") as folder:
        try:
            return run(options, Path(folder))
        except KeyboardInterrupt:
            say("interrupted")
            return 130


if __name__ == "__main__":
    sys.exit(main())
