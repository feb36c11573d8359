"""A closed-loop load generator: N connections, one request in flight on each.

As a closed loop it cannot overrun the server: a slower server is simply asked less often, so
throughput and latency belong together. Every latency in the timed window is kept (microseconds,
exact percentiles), every answer is counted by its status code, and an answer that did not come
(connection refused or closed early) is counted under status 0.

It runs as its own process, so that it can be pinned to a core of its own:
`python -m tests.benchmarks.load` reads a `Plan` as JSON on standard input and writes a `Result`
as JSON on standard output. It does as little as possible per request: requests are built
beforehand, and one `data_received` frames the answer, notes the time and sends the next.
"""

import asyncio
import gc
import sys
from array import array
from collections import Counter
from collections.abc import Callable
from time import perf_counter_ns
from typing import Final, cast

import msgspec
import uvloop

PATH: Final = "/v1/chat/completions"
BODY: Final = msgspec.json.encode(
    {
        "model": "benchmark-model",
        "messages": [
            {"role": "system", "content": "You are a careful bookkeeper. Answer in one line."},
            {
                "role": "user",
                "content": "A gateway admits calls under a monthly cap. When should the money be "
                "set aside: before a call is forwarded, or after its answer has come back?",
            },
        ],
        "max_tokens": 64,
    }
)

GRACE_S: Final = 10.0
"""How long after the window the last answers may take before the run is given up."""


class Plan(msgspec.Struct, frozen=True):
    """What to ask, how often at once, and for how long."""

    port: int
    connections: int
    warmup_s: float
    window_s: float
    keys: list[str]


class Result(msgspec.Struct, frozen=True):
    """What came of it. `requests` and the latencies are of the window; `total` is of the run."""

    requests: int
    total: int
    window_s: float
    statuses: dict[int, int]
    p50_us: float
    p99_us: float

    @property
    def rate(self) -> float:
        """Answers per second within the window."""
        return self.requests / self.window_s


def request_bytes(port: int, key: str) -> bytes:
    """One complete request as it goes over the wire."""
    return (
        f"POST {PATH} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(BODY)}\r\n\r\n"
    ).encode() + BODY


def one(requests: list[bytes]) -> Callable[[], bytes]:
    """Always the first request: everything lands on one key."""
    first = requests[0]
    return lambda: first


def spread(requests: list[bytes]) -> Callable[[], bytes]:
    """Every request in turn, so that concurrent calls carry different keys."""
    at = -1

    def following() -> bytes:
        nonlocal at
        at = at + 1 if at + 1 < len(requests) else 0
        return requests[at]

    return following


def answer_length(data: bytes) -> int | None:
    """The length of the HTTP answer that `data` begins with, None while it is not yet known.

    A chunked answer is known once it has ended: the loop has one request in flight, so whatever
    ends in the last chunk is whole.
    """
    head_end = data.find(b"\r\n\r\n")
    if head_end < 0:
        return None
    head = data[:head_end].lower()
    at = head.find(b"\r\ncontent-length:")
    if at >= 0:
        line_end = head.find(b"\r\n", at + 17)
        return head_end + 4 + int(head[at + 17 : line_end if line_end > 0 else head_end])
    if b"\r\ntransfer-encoding: chunked" in head:
        return len(data) if data.endswith(b"\r\n0\r\n\r\n") else None
    return head_end + 4


class Run:
    """The counters that all connections of one run share."""

    def __init__(self, plan: Plan, following: Callable[[], bytes]) -> None:
        self.following = following
        self.latencies_ns = array("Q")
        self.statuses: Counter[int] = Counter()
        begun = perf_counter_ns()
        self.window_start = begun + int(plan.warmup_s * 1e9)
        self.window_end = self.window_start + int(plan.window_s * 1e9)
        self.open = 0
        self.done = asyncio.Event()


class Connection(asyncio.Protocol):
    """One connection: send, wait for the whole answer, send again until the window ends."""

    __slots__ = ("_buffer", "_run", "_sent_at", "_transport", "_waiting")

    def __init__(self, run: Run) -> None:
        self._run = run
        self._buffer = b""
        self._sent_at = 0
        self._waiting = False
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)
        self._run.open += 1
        self._waiting = True
        self._sent_at = perf_counter_ns()
        self._transport.write(self._run.following())

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        length = answer_length(data)
        if length is None or len(data) < length:
            self._buffer = data
            return
        now = perf_counter_ns()
        run = self._run
        self._buffer = b""
        # More bytes than one answer would mean that the framing is wrong: not a success.
        run.statuses[int(data[9:12]) if len(data) == length else 0] += 1
        if run.window_start <= now < run.window_end:
            run.latencies_ns.append(now - self._sent_at)
        transport = self._transport
        assert transport is not None
        if now >= run.window_end:
            self._waiting = False
            transport.close()
            return
        self._sent_at = now
        transport.write(run.following())

    def connection_lost(self, exc: Exception | None) -> None:
        run = self._run
        if self._waiting:
            run.statuses[0] += 1
        run.open -= 1
        if run.open == 0:
            run.done.set()


def percentile_us(ordered_ns: list[int], share: float) -> float:
    """The latency that `share` of the answers did not exceed."""
    if not ordered_ns:
        return 0.0
    return ordered_ns[min(len(ordered_ns) - 1, int(len(ordered_ns) * share))] / 1e3


async def generate(plan: Plan) -> Result:
    """Run the plan; the last answers may come after the window and are then not counted in it."""
    requests = [request_bytes(plan.port, key) for key in plan.keys]
    run = Run(plan, one(requests) if len(requests) == 1 else spread(requests))
    loop = asyncio.get_running_loop()
    for _ in range(plan.connections):
        try:
            await loop.create_connection(lambda: Connection(run), "127.0.0.1", plan.port)
        except OSError:
            run.statuses[0] += 1
    if run.open:
        try:
            await asyncio.wait_for(run.done.wait(), plan.warmup_s + plan.window_s + GRACE_S)
        except TimeoutError:
            run.statuses[0] += run.open
    ordered = sorted(run.latencies_ns)
    return Result(
        requests=len(ordered),
        total=run.statuses.total(),
        window_s=plan.window_s,
        statuses=dict(run.statuses),
        p50_us=percentile_us(ordered, 0.50),
        p99_us=percentile_us(ordered, 0.99),
    )


def main() -> None:
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    gc.disable()  # bounded by the window; a collection would show up as the server's latency
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(generate(plan))))


if __name__ == "__main__":
    main()
