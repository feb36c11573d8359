"""Realtime sessions: how many one core holds at real pace, beside a bare relay in the same run.

Every session is a transcription: 50 appends a second of 20 ms each, and an echo of each. A number
of sessions is held if p99 of the delay that the relay adds stays within `BOUND_MS`, the delay does
not grow, and no append is lost. Each relay climbs from step to step until one is not held; then
the numbers between are tried. What the crowd and the provider take themselves is measured without
a relay, at the number of sessions that the gateway held, and subtracted.

All sessions land on one allocation with both caps on, and on a model priced by the second. A first
round finds the gateway's number, so that the bare relay and no relay at all are measured at that
number too. Before that, a fresh gateway holds a thousand silent sessions; after it, another one
samples where its CPU time goes.
"""

import contextlib
import math
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from . import machine, speakers
from .listener import FRAMES_PER_S
from .machine import ROOT, Busy, Cores, Process, free_port, python

if TYPE_CHECKING:
    from .gateway import Product

GATEWAY: Final = "gateway"
BARE: Final = "bare relay"
DIRECT: Final = "no relay"

GOAL: Final = 0.6
"""The least share of the bare relay's sessions that the gateway has to hold."""
BOUND_MS: Final = 100.0
"""Above this delay at p99, added by the relay, a number of sessions is not held."""
GROWTH_MS_PER_S: Final = 20.0
"""A delay that grows by more is that of a relay that falls behind: by two frames in a hundred."""
ANSWERED_MIN: Final = 0.99
IDLE_GOAL_MB: Final = 300.0

FIRST: Final = 100
LEAP: Final = 0.9
"""Of what the last step's CPU time a frame promises: less far than that no step need be tried."""
MOST: Final = 2000
FOREIGN_MAX: Final = 0.1
"""Above this share of the server's core in foreign hands, a step is called disturbed."""
DISTURBED_MAX: Final = 0.25
"""With more of its steps disturbed, a run says nothing of how many sessions are held."""
SATURATED: Final = 0.85
"""With this much of the core, a server that fails a step fails it by itself."""
LATE_MS: Final = 20.0
"""Above this at p99, the crowd missed the pace itself."""
OTHERS_MAX: Final = 0.9
"""With the other core as busy as this, the crowd or the provider may be what is measured."""
PROFILE_AFTER_S: Final = 2.5
"""Until the sessions are old enough for the watcher to be at work."""
BOOKING_S: Final = 10.0

WATCHER: Final = ("_watch", "_mind")
"""The tasks of the watcher (`app/gateway/realtime.py`): all they await counts as its time."""
RELAY_FILE: Final = "app/gateway/realtime.py"
PARTS: Final = (
    "watcher",
    "ledger",
    "metering",
    "gateway",
    "client's socket",
    "provider's socket",
    "rest",
)


class Options(msgspec.Struct, frozen=True):
    """How long to measure."""

    rounds: int = 2
    warmup_s: float = 0.4
    window_s: float = 2.0
    """As long as the watcher's rhythm: what it does falls into every window."""
    step: float = 1.1
    idle: int = 1000
    settle_s: float = 2.0
    profile_s: float = 6.0
    climb_s: float = 13.0
    """After so long no further step is begun: on a disturbed machine a climb might not end."""
    resolution: float = 1.08
    """How far apart the last number that was held and the first that was not may stay."""


QUICK: Final = Options(
    rounds=1,
    warmup_s=0.3,
    window_s=0.8,
    step=1.2,
    settle_s=1.0,
    profile_s=2.0,
    climb_s=5.0,
    resolution=1.2,
)


class Step(msgspec.Struct, frozen=True):
    """One measured number of sessions on one relay."""

    relay: str
    round: int
    sessions: int
    heard: speakers.Heard
    cpu_us: float
    """CPU time of the relay for each append and its echo."""
    cpu_share: float
    """Of a core, by the relay."""
    server_core: float
    other_core: float
    foreign: float
    added_p99_ms: float
    held: bool


class Idle(msgspec.Struct, frozen=True):
    """Silent sessions on one server."""

    sessions: int
    before_mb: float
    after_mb: float
    opening_s: float
    cpu_share: float


class Profile(msgspec.Struct, frozen=True):
    """Where the gateway's CPU time went at a number of sessions: shares, and µs a frame."""

    sessions: int
    samples: int
    cpu_us: float
    cpu_share: float
    shares: dict[str, float]
    hottest: list[tuple[str, float]]
    """Functions by their own time."""


class Report(msgspec.Struct):
    """All that was measured."""

    steps: list[Step] = []
    idle: Idle | None = None
    profile: Profile | None = None
    unfinished: list[tuple[str, int]] = []
    """Climbs, by relay and round, for which there was not enough time."""
    problems: list[str] = []

    def held(self, relay: str, round: int) -> int:
        """The largest number of sessions that a relay held in a round; 0 if none."""
        numbers = [
            one.sessions
            for one in self.steps
            if one.relay == relay and one.round == round and one.held
        ]
        return max(numbers, default=0)

    def at(self, relay: str, sessions: int) -> list[Step]:
        """The steps of a relay at a number of sessions."""
        return [one for one in self.steps if one.relay == relay and one.sessions == sessions]


# ------------------------------------------------------------------------------- measuring


class Crowd:
    """The load generator, in a process of its own on the core of the others."""

    def __init__(self, port: int, key: str) -> None:
        from .gateway import REALTIME_MODEL

        self._process = subprocess.Popen(
            python("-m", "tests.benchmarks.speakers"),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._tell(speakers.Crowd(port=port, key=key, model=REALTIME_MODEL))
        self.opened = 0
        """How many sessions it has opened so far, those it has closed again included."""

    def order(self, order: speakers.Order) -> speakers.Heard:
        """Have it do something, and wait for what came of it."""
        self._tell(order)
        assert self._process.stdout is not None, "a pipe"
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the load generator ended with {self._process.wait()}")
        heard = msgspec.json.decode(line, type=speakers.Heard)
        self.opened = heard.opened
        return heard

    def leave(self) -> None:
        """Close its sessions, and wait until it is gone."""
        assert self._process.stdin is not None, "a pipe"
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(90)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _tell(self, what: msgspec.Struct) -> None:
        assert self._process.stdin is not None, "a pipe"
        self._process.stdin.write(msgspec.json.encode(what) + b"\n")
        self._process.stdin.flush()


class Bench:
    """The servers of one run, and what was measured on them."""

    def __init__(
        self,
        options: Options,
        at: Cores | None,
        product: "Product",
        bare: Process,
        ports: dict[str, int],
        say: Callable[[str], None],
    ) -> None:
        self.options = options
        self.at = at
        self.product = product
        self.bare = bare
        self.ports = ports
        self.say = say
        self.report = Report()
        self.opened = 0
        """Sessions of the gateway, which have to be in its books."""
        self._direct_p99_us = 0.0

    @contextlib.contextmanager
    def crowd(self, relay: str) -> Iterator[Crowd]:
        """A crowd that speaks to one of the servers, and leaves in the end."""
        crowd = Crowd(self.ports[relay], self.product.keys[0])
        try:
            yield crowd
        finally:
            crowd.leave()
            if relay == GATEWAY:
                self.opened += crowd.opened

    def server(self, relay: str) -> Process | None:
        """The process that is measured."""
        return {GATEWAY: self.product.process, BARE: self.bare}.get(relay)

    def step(self, crowd: Crowd, relay: str, number: int, round: int) -> Step:
        """Let so many sessions speak through a relay."""
        opened = crowd.order(speakers.Order(number))
        server = self.server(relay)
        busy, begun = Busy(self.at), time.monotonic()
        cpu_before = server.cpu_s() if server is not None else 0.0
        heard = crowd.order(speakers.Order(number, self.options.warmup_s, self.options.window_s))
        heard = msgspec.structs.replace(
            heard, opening_s=opened.opening_s, failures=opened.failures | heard.failures
        )
        cpu_s = server.cpu_s() - cpu_before if server is not None else 0.0
        share = cpu_s / (time.monotonic() - begun)
        server_core, other_core = busy.shares()
        if relay == DIRECT:
            self._direct_p99_us = heard.p99_us
        added_ms = max(0.0, heard.p99_us - self._direct_p99_us) / 1e3
        keeps_up = heard.growth_ms_per_s <= GROWTH_MS_PER_S
        whole = heard.sessions == number and heard.answered >= heard.sent * ANSWERED_MIN
        step = Step(
            relay=relay,
            round=round,
            sessions=number,
            heard=heard,
            cpu_us=cpu_s * 1e6 / max(1, heard.total),
            cpu_share=share,
            server_core=server_core,
            other_core=other_core,
            foreign=max(0.0, server_core - share),
            added_p99_ms=added_ms,
            held=whole and keeps_up and added_ms <= BOUND_MS,
        )
        self.report.steps.append(step)
        for why, count in heard.failures.items():
            problem = f"realtime, {relay}, {number} sessions: {count} × {why}"
            self.report.problems.append(problem)
        return step

    def climb(self, relay: str, start: int, round: int) -> None:
        """Find the largest number of sessions that a relay holds; `start` is one it may well."""
        options = self.options
        number, best, worst = FIRST, 0, MOST
        until = time.monotonic() + options.climb_s
        with self.crowd(relay) as crowd:
            while number > 0 and worst > best * options.resolution:
                if time.monotonic() > until:
                    self.report.unfinished.append((relay, round))
                    break
                step = self.step(crowd, relay, number, round)
                if not step.held and not step.heard.failures and step.cpu_share < SATURATED:
                    # Something else may have been at work.
                    step = self.step(crowd, relay, number, round)
                if step.heard.failures:
                    break
                if step.held:
                    best = number
                else:
                    worst = number
                if best and worst < MOST:
                    number = (best + worst) // 2
                elif best:
                    further = max(math.ceil(number * options.step), _promised(step))
                    # The number at which all are compared is not left out.
                    number = start if number < start < further else min(MOST, further)
                else:
                    number = min(int(number / options.step), _promised(step))

    def hold_idle(self) -> None:
        """Open many sessions that say one frame each, and see what memory they take."""
        server = self.product.process
        before = server.rss_bytes()
        with self.crowd(GATEWAY) as crowd:
            heard = crowd.order(speakers.Order(self.options.idle))
            time.sleep(self.options.settle_s)
            cpu, begun = server.cpu_s(), time.monotonic()
            time.sleep(self.options.settle_s)
            share = (server.cpu_s() - cpu) / (time.monotonic() - begun)
            self.report.idle = Idle(
                sessions=heard.sessions,
                before_mb=before / 1e6,
                after_mb=server.rss_bytes() / 1e6,
                opening_s=heard.opening_s,
                cpu_share=share,
            )
            for why, count in heard.failures.items():
                self.report.problems.append(f"realtime, idle sessions: {count} × {why}")

    def sample(self, directory: Path, number: int) -> None:
        """Have a gateway sample itself while so many sessions speak."""
        to = directory / "samples.json"
        self.product.restart_sampled(to)
        server = self.product.process
        with self.crowd(GATEWAY) as crowd:
            crowd.order(speakers.Order(number, 0.0, PROFILE_AFTER_S))
            cpu, begun = server.cpu_s(), time.monotonic()
            server.signal(signal.SIGUSR1)
            heard = crowd.order(speakers.Order(number, 0.0, self.options.profile_s))
            server.signal(signal.SIGUSR1)
            cpu_s, elapsed_s = server.cpu_s() - cpu, time.monotonic() - begun
            until = time.monotonic() + 10
            while not to.exists() and time.monotonic() < until:
                time.sleep(0.05)
        rows = msgspec.json.decode(to.read_bytes(), type=list[tuple[list[str], int]])
        self.report.profile = profile_of(
            rows, number, cpu_s * 1e6 / max(1, heard.total), cpu_s / elapsed_s
        )

    def run(self, directory: Path) -> None:
        """All of it."""
        self.hold_idle()
        common = FIRST
        with self.crowd(DIRECT) as crowd:
            self.step(crowd, DIRECT, FIRST, 0)
        for round in range(self.options.rounds):
            order = (GATEWAY, BARE) if round % 2 == 0 else (BARE, GATEWAY)
            for relay in order:
                self.climb(relay, common, round)
                if round == 0 and relay == GATEWAY:
                    common = self.report.held(GATEWAY, 0) or common
            with self.crowd(DIRECT) as crowd:
                self.step(crowd, DIRECT, common, round)
            shown = ", ".join(f"{one} {self.report.held(one, round)}" for one in (BARE, GATEWAY))
            self.say(f"realtime, round {round + 1}/{self.options.rounds}: sessions held: {shown}")
        self.sample(directory, max(1, common * 3 // 4))


def _promised(step: Step) -> int:
    """Return how many sessions there is surely time for, by what a frame takes."""
    return int(LEAP * 1e6 / (FRAMES_PER_S * max(1.0, step.cpu_us)))


def profile_of(
    rows: list[tuple[list[str], int]], sessions: int, cpu_us: float, cpu_share: float
) -> Profile:
    """Say what part of the gateway each sample belongs to."""
    parts = dict.fromkeys(PARTS, 0)
    own: dict[str, int] = {}
    total = 0
    for stack, count in rows:
        total += count
        parts[part_of(stack)] += count
        if stack:
            own[stack[0]] = own.get(stack[0], 0) + count
    hottest = sorted(own.items(), key=lambda pair: -pair[1])[:12]
    return Profile(
        sessions=sessions,
        samples=total,
        cpu_us=cpu_us,
        cpu_share=cpu_share,
        shares={name: count / max(1, total) for name, count in parts.items()},
        hottest=[(name, count / max(1, total)) for name, count in hottest],
    )


def part_of(stack: list[str]) -> str:
    """Return the part that a stack belongs to, the innermost function first."""
    if any(f"{RELAY_FILE}:{name}" in stack for name in WATCHER):
        return "watcher"
    if any(one.startswith(("app/store/ledger.py:", "app/core/ledger.py:")) for one in stack):
        return "ledger"
    for one in stack:
        if one.startswith("app/core/"):
            return "metering"
        if one.startswith("app/"):
            return "gateway"
        if one.startswith("uvicorn/"):
            return "client's socket"
        if one.startswith("websockets/asyncio/"):
            return "provider's socket"
    return "rest"


# ------------------------------------------------------------------------------- reporting


def median(steps: list[Step], value: Callable[[Step], float]) -> float:
    """The median over steps; 0 if there are none."""
    return statistics.median(map(value, steps)) if steps else 0.0


def table(report: Report) -> str:
    """Every number of sessions that was tried, by relay, as a table that reads as Markdown too."""
    lines = [
        "| sessions | relay | held | p50 ms | p99 ms | growth ms/s | CPU µs/frame | server core | other core "
        "| crowd late p99 ms | crowd core |",
        "|--:|:--|:--|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for relay in (DIRECT, BARE, GATEWAY):
        for number in sorted({one.sessions for one in report.steps if one.relay == relay}):
            steps = report.at(relay, number)
            held = sum(one.held for one in steps)
            cells = (
                f"{number}",
                relay,
                f"{held} of {len(steps)}",
                f"{median(steps, lambda one: one.heard.p50_us) / 1e3:.2f}",
                f"{median(steps, lambda one: one.heard.p99_us) / 1e3:.2f}",
                f"{median(steps, lambda one: one.heard.growth_ms_per_s):.1f}",
                "–" if relay == DIRECT else f"{median(steps, lambda one: one.cpu_us):.0f}",
                f"{median(steps, lambda one: one.server_core):.0%}",
                f"{median(steps, lambda one: one.other_core):.0%}",
                f"{median(steps, lambda one: one.heard.late_p99_us) / 1e3:.2f}",
                f"{median(steps, lambda one: one.heard.own_core):.0%}",
            )
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdicts(report: Report, rounds: int) -> list[str]:
    """One sentence for each goal and each number that belongs to it."""
    lines = []
    pairs = [(report.held(GATEWAY, one), report.held(BARE, one)) for one in range(rounds)]
    # A climb that was disturbed until its time was over says nothing.
    pairs = [pair for pair in pairs if all(pair)]
    ratios = [ours / bare for ours, bare in pairs]
    if ratios:
        ratio = statistics.median(ratios)
        ours, bare = (statistics.median(one) for one in zip(*pairs, strict=True))
        met = "met" if ratio >= GOAL else "NOT MET"
        if len(_foreign(report)) > DISTURBED_MAX * len(report.steps):
            met = "not judged, other programs were at work"
        lines.append(
            f"sessions held by a core: {ours:.0f}, by the bare relay {bare:.0f}: {ratio:.2f} "
            f"(goal {GOAL:.2f}): {met}"
        )
    for number in dict.fromkeys((FIRST, report.held(GATEWAY, 0))):
        for relay in (GATEWAY, BARE):
            lines += _delay(report, relay, number)
    # Not at the limit: a relay that is behind takes several frames at once, which is cheaper.
    ours, bare = (
        median(report.at(relay, FIRST), lambda one: one.cpu_us) for relay in (GATEWAY, BARE)
    )
    if ours and bare:
        lines.append(
            f"the bare relay's CPU a frame is {bare / ours:.2f} of the gateway's at {FIRST} "
            "sessions; a busy machine changes this least"
        )
    profile = report.profile
    if profile is not None and profile.samples:
        watcher, ledger = profile.shares["watcher"], profile.shares["ledger"]
        lines.append(
            f"watcher: {watcher:.1%} of the gateway's CPU at {profile.sessions} sessions, and "
            f"{ledger:.1%} in the ledger's code beside it"
        )
        parts = (f"{name} {share * profile.cpu_us:.0f}" for name, share in profile.shares.items())
        lines.append(f"CPU µs a frame: {profile.cpu_us:.0f}, of it " + ", ".join(parts))
        hottest = (f"{name} {share * profile.cpu_us:.1f}" for name, share in profile.hottest)
        lines.append("functions by their own time, CPU µs a frame: " + ", ".join(hottest))
    idle = report.idle
    if idle is not None:
        met = "met" if idle.after_mb < IDLE_GOAL_MB else "NOT MET"
        lines.append(
            f"{idle.sessions:,} idle sessions: {idle.after_mb:.0f} MB, {idle.before_mb:.0f} MB "
            f"before them (goal under {IDLE_GOAL_MB:.0f} MB): {met}; opened in "
            f"{idle.opening_s:.1f} s, {idle.cpu_share:.0%} of a core while idle"
        )
    return lines


def _delay(report: Report, relay: str, sessions: int) -> list[str]:
    steps, direct = report.at(relay, sessions), report.at(DIRECT, sessions)
    steps = [one for one in steps if one.held] or steps
    if not steps or not direct:
        return []
    p50, p99 = (
        max(0.0, median(steps, value) - median(direct, value)) / 1e3
        for value in (lambda one: one.heard.p50_us, lambda one: one.heard.p99_us)
    )
    return [
        f"delay that the {relay} adds at {sessions} sessions: p50 {p50:.2f} ms, p99 {p99:.2f} ms; "
        f"CPU {median(steps, lambda one: one.cpu_us):.0f} µs a frame"
    ]


def _foreign(report: Report) -> list[Step]:
    """Return the steps in which a relay did not have its core to itself."""
    return [one for one in report.steps if one.relay != DIRECT and one.foreign > FOREIGN_MAX]


def disturbances(report: Report) -> list[str]:
    """A warning if it was not the relay that was measured."""
    lines = []
    late = [one for one in report.steps if one.heard.late_p99_us > LATE_MS * 1e3]
    if late:
        lines.append(
            f"disturbed: in {len(late)} of {len(report.steps)} steps the load generator missed its "
            f"pace by more than {LATE_MS:.0f} ms at p99"
        )
    full = [one for one in report.steps if one.other_core > OTHERS_MAX]
    if full:
        lines.append(
            f"disturbed: in {len(full)} of {len(report.steps)} steps the core of the load generator "
            f"and the provider was busy for more than {OTHERS_MAX:.0%}"
        )
    if report.unfinished:
        named = ", ".join(f"{relay} in round {round + 1}" for relay, round in report.unfinished)
        lines.append(f"no time to climb to the end: {named}; what is held may be more")
    foreign = _foreign(report)
    if foreign:
        lines.append(
            f"disturbed: in {len(foreign)} of {len(report.steps)} steps other programs took more "
            f"than {FOREIGN_MAX:.0%} of the server's core (up to "
            f"{max(one.foreign for one in foreign):.0%}); trust CPU a frame most"
        )
    return lines


# ----------------------------------------------------------------------------- the servers


def run(
    options: Options,
    directory: Path,
    stack: contextlib.ExitStack,
    at: Cores | None,
    say: Callable[[str], None],
) -> Report:
    """Start what is needed, measure, report, check the books."""
    from .gateway import Product

    machine.allow_files()
    directory.mkdir(mode=0o700)
    say("realtime: starting the relays and the product")
    ports = {DIRECT: free_port()}
    listener = Process(
        "realtime provider",
        python("-m", "tests.benchmarks.listener", "--port", str(ports[DIRECT])),
        log=directory / "listener.log",
        core=None if at is None else at.others,
    )
    stack.callback(listener.stop)
    listener.wait_until(lambda: machine.accepts(ports[DIRECT]))
    ports[BARE] = free_port()
    command = python("-m", "tests.benchmarks.relay", "--port", str(ports[BARE]))
    bare = Process(
        BARE,
        [*command, "--upstream", f"ws://127.0.0.1:{ports[DIRECT]}"],
        log=directory / "relay.log",
        core=None if at is None else at.server,
    )
    stack.callback(bare.stop)
    bare.wait_until(lambda: machine.accepts(ports[BARE]))
    product = Product(directory / "product", at)
    stack.callback(product.stop)
    product.start_realtime(ports[DIRECT])
    ports[GATEWAY] = product.port

    bench = Bench(options, at, product, bare, ports, say)
    report = bench.report
    bench.run(directory)
    say("\n" + table(report) + "\n")
    for line in (*verdicts(report, options.rounds), *disturbances(report)):
        say(f"realtime: {line}")
    until = time.monotonic() + BOOKING_S
    while (booked := product.booked_calls()) != bench.opened and time.monotonic() < until:
        time.sleep(0.2)
    if booked == bench.opened:
        say(f"realtime: {bench.opened:,} sessions opened, {booked:,} booked")
    else:
        report.problems.append(f"realtime: {bench.opened:,} sessions opened, {booked:,} booked")
    try:
        printed = product.command("reconcile").strip()
    except RuntimeError as error:
        report.problems.append(f"realtime: the books do not match: {error}")
    else:
        last = printed.splitlines()[-1] if printed else "reconciled"
        say(f"realtime: the books match: {last}")
    return report
