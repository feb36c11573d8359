"""A hostile schedule: two gateways, mixed calls, and faults in an order that a seed decides.

Owns which faults there are, when they come, and that everything is whole again in the end; then
the audit decides. The seed decides what happens in which order; how the processes interleave with
it, the machine does, so a seed makes a failure likely again, not certain.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

from app.store import batch
from tests.simulation.house import Audit, Gateway, House, Postgres, Row, eventually
from tests.simulation.traffic import Load
from tests.simulation.wire import Wire

DYING = (
    "reserve-before-commit",
    "reserve-commit-sent",
    "reserve-committed",
    "before-forward",
    "chunk",
    "settle-before-commit",
    "settle-commit-sent",
    "settle-committed",
    "before-last-byte",
    "after-last-byte",
    "spool-torn-write",
    "spool-replayed",
    "reaped",
)
BACK_S = 30.0
"""How long anything may take to be whole again at the end, on a busy machine."""


class Schedule:
    """One run of it."""

    def __init__(
        self,
        house: House,
        postgres: Postgres,
        seed: int,
        *,
        callers: int = 10,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.house = house
        self.postgres = postgres
        self.seed = seed
        self.random = random.Random(seed)
        self.callers = callers
        self.say = say
        self.faults: Counter[str] = Counter()
        self._began = time.monotonic()
        self.wires = [Wire(house.direct) for _ in range(2)]
        self.gateways: list[Gateway] = []
        for number, wire in enumerate(self.wires):
            house.dsn = wire.dsn
            self.gateways.append(house.gateway(f"gateway-{number}", ledger_wait_s=1))
            self.gateways[-1].dsn = wire.dsn
        house.tenant(cap_usd="2")
        house.tenant(cap_tokens=20_000)
        house.tenant(cap_usd="1.5", overrun_policy="last_call")
        house.tenant()
        house.tenant(ledger_outage="allow")
        house.tenant(cap_usd="3", ledger_outage="allow")

    async def run(self, seconds: float) -> dict[str, Row]:
        """Let it happen for so long, make everything whole, and return the audited books."""
        for gateway in self.gateways:
            await gateway.start()
        load = Load(
            self.gateways,
            self.house.tenants,
            callers=self.callers,
            seed=self.seed,
            leaving=0.1,
            directive=_directive,
        )
        try:
            async with load:
                await self._faults(time.monotonic() + seconds)
                await self._mend()
                # Served again, whatever there was; some of the caps have been reached by now.
                await load.more(20, within=BACK_S)
            return await Audit(self.house, load.sent).check(within=BACK_S)
        finally:
            self.house.close()
            for wire in self.wires:
                wire.close()

    async def _faults(self, until: float) -> None:
        faults: list[Callable[[], Awaitable[None]]] = [
            self._kill,
            self._kill,
            self._die,
            self._die,
            self._die,
            self._drain,
            self._sleep,
            self._crash_postgres,
            self._crash_postgres,
            self._hang_postgres,
            self._cut,
            self._refuse,
            self._silence,
            self._forget,
            self._lose,
            self._lose,
            self._lose,
        ]
        while time.monotonic() < until:
            await asyncio.sleep(self.random.uniform(0.1, 1.0))
            fault = self.random.choice(faults)
            self.faults[fault.__name__.strip("_")] += 1
            await fault()

    def _tell(self, what: str) -> None:
        self.say(f"{time.monotonic() - self._began:6.2f} s  {what}")

    async def _mend(self) -> None:
        self._tell("the end: everything is mended")
        if not self.postgres.running():
            await asyncio.to_thread(self.postgres.start)
        for wire in self.wires:
            wire.heal()
        for gateway in self.gateways:
            # A death that has not come by now is not to come any more.
            await self._restart(gateway)

    async def _restart(self, gateway: Gateway, at: str | None = None, hit: int = 1) -> None:
        gateway.kill()
        await gateway.start(at, hit, ready=False)
        await eventually(gateway.listens, within=BACK_S, what=f"{gateway.name} listens")

    # Faults of gateways

    def _one(self) -> Gateway:
        return self.random.choice(self.gateways)

    async def _kill(self) -> None:
        gateway = self._one()
        self._tell(f"{gateway.name} is killed")
        gateway.kill()
        await asyncio.sleep(self.random.uniform(0, 1))
        await self._restart(gateway)

    async def _die(self) -> None:
        gateway, point = self._one(), self.random.choice(DYING)
        hit = self.random.randint(1, 30)
        self._tell(f"{gateway.name} is killed, to die again at the {hit}. {point}")
        await self._restart(gateway, point, hit)
        with contextlib.suppress(AssertionError):
            await eventually(lambda: not gateway.running(), within=3)
            self._tell(f"{gateway.name} has died at {point}")
            await self._restart(gateway)

    async def _drain(self) -> None:
        gateway = self._one()
        self._tell(f"{gateway.name} is drained")
        if gateway.running():
            gateway.signal(signal.SIGTERM)
            with contextlib.suppress(AssertionError):
                await eventually(lambda: not gateway.running(), within=10)
                assert gateway.process is not None
                if gateway.process.returncode not in (0, -signal.SIGKILL):
                    raise RuntimeError(f"{gateway.name} did not stop well: {gateway.log()[-3000:]}")
        await self._restart(gateway)

    async def _sleep(self) -> None:
        gateway, seconds = self._one(), self.random.uniform(0.5, 4)
        self._tell(f"{gateway.name} sleeps for {seconds:.1f} s")
        if gateway.running():
            gateway.signal(signal.SIGSTOP)
            await asyncio.sleep(seconds)
            with contextlib.suppress(ProcessLookupError):
                gateway.signal(signal.SIGCONT)

    # Faults of PostgreSQL

    async def _crash_postgres(self) -> None:
        seconds = self.random.choice((0.0, 0.5, 2.0))
        self._tell(f"PostgreSQL is killed, and started after {seconds:.1f} s")
        await asyncio.to_thread(self.postgres.kill)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(self.postgres.start)

    async def _hang_postgres(self) -> None:
        seconds = self.random.uniform(0.5, 5)
        self._tell(f"PostgreSQL hangs for {seconds:.1f} s")
        with self.postgres.hung():
            await asyncio.sleep(seconds)

    # Faults between them

    def _wire(self) -> Wire:
        return self.random.choice(self.wires)

    async def _cut(self) -> None:
        self._tell("connections are cut")
        self._wire().cut()

    async def _refuse(self) -> None:
        self._tell("connections are refused")
        wire = self._wire()
        wire.refuse()
        await asyncio.sleep(self.random.uniform(0.5, 3))
        wire.heal()

    async def _silence(self) -> None:
        self._tell("connections fall silent")
        wire = self._wire()
        wire.silence()
        await asyncio.sleep(self.random.uniform(0.5, 4))
        wire.heal()

    async def _forget(self) -> None:
        self._tell("connections are forgotten")
        self._wire().forget()

    async def _lose(self) -> None:
        statement = self.random.choice((batch.WRITE_HOLDS, batch.WRITE_CALLS))
        how = {
            "arrives": self.random.random() < 0.5,
            "silent": self.random.random() < 0.3,
            "after_s": self.random.choice((0.0, 0.0, 1.0)),
        }
        what = "reserve" if statement is batch.WRITE_HOLDS else "settlement"
        self._tell(f"the acknowledgement of a {what} is lost: {how}")
        self._wire().trap(statement, **how)


def _directive(rng: random.Random, kind: str) -> str:
    """How the provider behaves: mostly well."""
    dice = rng.random()
    if dice < 0.05:
        return "status=500"
    if dice < 0.10:
        return "status=429"
    if kind == "stream":
        return (
            f"answer_tokens={rng.choice((4, 30, 60))} chunk_delay={rng.choice((0.0, 0.01, 0.06))}"
        )
    return f"latency={rng.choice((0.0, 0.02, 0.3, 1.0))}"


@contextlib.asynccontextmanager
async def told(schedule: Schedule, lines: list[str]) -> AsyncIterator[None]:
    """Put what happened into the failure, if it comes to that."""
    try:
        yield
    except AssertionError as error:
        story = "\n".join(lines)
        raise AssertionError(
            f"with SPENDGATE_SIM_SEED={schedule.seed}:\n{story}\n{error}"
        ) from error
