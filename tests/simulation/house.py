"""What crashes here: PostgreSQL servers, gateway processes, the books they keep; and the audit.

Owns starting and hurting them, setting up who may call (by SQL: the control API has tests of its
own), and `Audit`, which says whether the books are right after all that. The provider lives in the
process of the test, so that its record of what reached it survives everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import psutil
import psycopg
from psycopg import sql

from app.core.pricing import Rate
from app.ids import uuid7
from app.simulator import RunningSimulator, serve_in_thread
from app.store import migrate
from app.store.directory import rates_json
from app.store.postgres import DATABASE, EmbeddedPostgres
from app.store.reconcile import reconcile
from app.store.vault import Vault, hint_of, new_key
from tests.simulation.traffic import Sent

ROOT = Path(__file__).parents[2]
SECRET = "a secret of the simulation, long enough"
DEADLINE_S = 2.0
REAPER_PERIOD_S = 0.5
SLACK_S = 4.0
"""What two cores, shared with another test, may add."""
LOCKS_S = 5.0
"""How long PostgreSQL keeps the locks of a client that has fallen silent without leaving."""

CHAT = "chat"
OCR = "ocr"
UNPRICED = "unpriced"
LISTEN = "listen"
MODELS = {
    CHAT: "gpt-4o",
    OCR: "mistral-ocr-latest",
    UNPRICED: "gpt-4o",
    LISTEN: "gpt-4o-transcribe",
}
RATES = {
    CHAT: [Rate("input_token", Decimal("0.15"), 1000), Rate("output_token", Decimal("0.6"), 1000)],
    OCR: [Rate("page", Decimal("0.01"), 1)],
    LISTEN: [Rate("second", Decimal("0.01"), 1)],
}
NANO = 1_000_000_000


async def eventually(
    check: Callable[[], Any], *, within: float, what: str = "", every: float = 0.02
) -> Any:
    """Return what `check` returns once that is true; fail if it is not within the deadline."""
    deadline = time.monotonic() + within
    while True:
        found = check()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {within:g} s: {what or check}"
        await asyncio.sleep(every)


# PostgreSQL


class Postgres:
    """A PostgreSQL server that can be killed, hung and started again; fsync is on."""

    def __init__(self, directory: Path) -> None:
        self.server = EmbeddedPostgres(directory)
        self.server.start()
        migrate.upgrade(self.dsn)

    def another(self) -> str:
        """Make another database like the first, and return its address."""
        name = f"house_{secrets.token_hex(6)}"
        with psycopg.connect(self.server.dsn_of("postgres"), autocommit=True) as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(
                    sql.Identifier(name), sql.Identifier(DATABASE)
                )
            )
        return self.server.dsn_of(name)

    @property
    def dsn(self) -> str:
        """Address of the database."""
        return self.server.dsn

    def running(self) -> bool:
        """Tell whether there is a server."""
        return self.server.postmaster_pid() is not None

    def kill(self) -> None:
        """What `pg_ctl stop -m immediate` does: no checkpoint, no goodbye."""
        pid = self.server.postmaster_pid()
        assert pid is not None
        postmaster = psutil.Process(pid)
        family = [postmaster, *postmaster.children(recursive=True)]
        os.kill(pid, signal.SIGQUIT)
        psutil.wait_procs(family, timeout=10)

    def start(self) -> None:
        """Start again on the same data: crash recovery."""
        self.server.stop()
        self.server.start()

    @contextlib.contextmanager
    def hung(self) -> Iterator[None]:
        """Stop every process of the server: connections stay open, nothing answers."""
        pid = self.server.postmaster_pid()
        assert pid is not None
        stopped: list[psutil.Process] = []
        postmaster = psutil.Process(pid)
        try:
            postmaster.suspend()
            for process in postmaster.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.suspend()
                    stopped.append(process)
            yield
        finally:
            for process in [*stopped, postmaster]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.resume()

    def close(self) -> None:
        """Stop for good."""
        self.server.stop()


# Processes


class Child:
    """A process that the nursery forked; looks like `subprocess.Popen` where that is needed."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self.nursery = nursery
        self.pid = pid

    @property
    def returncode(self) -> int | None:
        """How it ended, if it has."""
        return self.nursery.ended.get(self.pid)

    def wait(self, within: float = 20) -> None:
        """Wait, blocking, until it has ended."""
        deadline = time.monotonic() + within
        while self.returncode is None:
            assert time.monotonic() < deadline, f"process {self.pid} does not end"
            time.sleep(0.005)


class Nursery:
    """Forks servers from a process that has imported everything already (see `server.py`)."""

    def __init__(self) -> None:
        self.ended: dict[int, int] = {}
        self._born: queue.Queue[int] = queue.Queue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.simulation.server", "--nursery"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._reader = threading.Thread(target=self._read, name="nursery", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            news = json.loads(line)
            if "status" in news:
                self.ended[news["pid"]] = news["status"]
            else:
                self._born.put(news["pid"])

    def fork(self, arguments: list[str], environment: dict[str, str], log: Path) -> Child:
        """Have a server forked."""
        order = {"arguments": arguments, "environment": environment, "log": str(log)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        return Child(self, self._born.get(timeout=60))

    def close(self) -> None:
        """Fork no more."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._reader.join(20)
        assert self._process.stdout is not None
        self._process.stdout.close()


# Gateways


class Gateway:
    """One `spendgate serve` process; started again, it finds the data directory it left."""

    def __init__(self, house: House, name: str, **settings: object) -> None:
        self.house = house
        self.name = name
        self.directory = house.directory / name
        self.directory.mkdir(exist_ok=True)
        self.log_path = self.directory / "log"
        self.settings = {name.upper(): value for name, value in settings.items()}
        self.dsn = house.dsn
        self.url = ""
        self._begins = 0
        self.process: Child | None = None

    @property
    def pid(self) -> int:
        """The process, which runs (or has just died)."""
        assert self.process is not None
        return self.process.pid

    @property
    def spool(self) -> Path:
        """Where its spool is."""
        return self.directory / "data" / "spool"

    def spooled(self) -> int:
        """How many lines its spool files have."""
        return sum(path.read_bytes().count(b"\n") for path in self.spool.glob("*.spool"))

    async def start(
        self,
        at: str | None = None,
        hit: int = 1,
        signal: str = "SIGKILL",
        *,
        ready: bool = True,
    ) -> Gateway:
        """Start; with `at`, to die there (see `server.py`)."""
        settings = {
            "DATABASE_URL": self.dsn,
            "DATA_DIR": self.directory / "data",
            "SECRET_KEY": SECRET,
            "PORT": 0,
            "HOLD_DEADLINE_S": DEADLINE_S,
            "REAPER_PERIOD_S": REAPER_PERIOD_S,
            "LOG_LEVEL": "info",
            **self.settings,
        }
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SPENDGATE_")}
        environment |= {f"SPENDGATE_{name}": str(value) for name, value in settings.items()}
        arguments = [] if at is None else ["--at", at, "--hit", str(hit), "--signal", signal]
        self.log_path.touch()
        self._begins = self.log_path.stat().st_size
        self.url = ""
        self.process = self.house.nursery.fork(
            [*arguments, "--", "--no-migrate"], environment, self.log_path
        )
        if ready:
            await eventually(self.listens, within=60, what=f"{self.name} listens")
            await eventually(self.ready, within=30, what=f"{self.name} is ready")
        return self

    def listens(self) -> bool:
        """Tell whether it has said where it listens (or has died already, as it was told to)."""
        with open(self.log_path, "rb") as file:
            file.seek(self._begins)
            found = re.search(rb'"address": "([^"]+)"', file.read())
        if found:
            self.url = found[1].decode()
            return True
        assert self.process is not None
        assert self.process.returncode in (None, -signal.SIGKILL), self.log()[-3000:]
        return not self.running()

    async def ready(self) -> bool:
        """Tell whether it says that it is ready."""
        with contextlib.suppress(httpx2.HTTPError):
            async with httpx2.AsyncClient(timeout=5) as client:
                return (await client.get(f"{self.url}/readyz")).status_code == 200
        return False

    def running(self) -> bool:
        """Tell whether the process is there."""
        return self.process is not None and self.process.returncode is None

    async def died(self, within: float = 20) -> None:
        """Wait until the process has killed itself."""
        assert self.process is not None
        await eventually(lambda: not self.running(), within=within, what=f"{self.name} dies")
        assert self.process.returncode == -signal.SIGKILL, self.log()[-3000:]

    async def stalled(self, within: float = 20) -> None:
        """Wait until the process has stopped itself."""
        process = psutil.Process(self.pid)
        await eventually(
            lambda: process.status() == psutil.STATUS_STOPPED,
            within=within,
            what=f"{self.name} stops",
        )

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None and self.running():
            # A stopped process dies of it as well.
            self.signal(signal.SIGKILL)
            self.process.wait()

    async def terminate(self, within: float = 30) -> int:
        """SIGTERM; return the exit code."""
        self.signal(signal.SIGTERM)
        assert self.process is not None
        await eventually(lambda: not self.running(), within=within, what=f"{self.name} ends")
        assert self.process.returncode is not None
        return self.process.returncode

    def log(self) -> str:
        """All that it wrote."""
        return self.log_path.read_text("utf-8", "replace")


# Who calls


class Tenant(NamedTuple):
    """An allocation and the key that opens it."""

    key: str
    allocation_id: str
    cap_nano: int | None
    strict: bool


class House:
    """A database, the provider, and the gateways between them."""

    def __init__(
        self, directory: Path, dsn: str, simulator: RunningSimulator, nursery: Nursery
    ) -> None:
        self.nursery = nursery
        self.directory = directory
        self.direct = dsn
        self.dsn = dsn
        """What gateways are given; a test may put something between."""
        self.simulator = simulator
        self.vault = Vault(SECRET.encode())
        self.gateways: list[Gateway] = []
        self.tenants: list[Tenant] = []
        self._set_up()

    def _set_up(self) -> None:
        provider, self.member = uuid7(), uuid7()
        with psycopg.connect(self.direct) as connection:
            connection.execute(
                "INSERT INTO members (id, email) VALUES (%s, 'member@example.org')", [self.member]
            )
            connection.execute(
                "INSERT INTO providers (id, name, kind, base_url, credential)"
                " VALUES (%s, 'simulator', 'compatible', %s, %s)",
                [
                    provider,
                    self.simulator.openai_url,
                    self.vault.seal(self.simulator.api_key, provider, 1),
                ],
            )
            for slug, upstream in MODELS.items():
                connection.execute(
                    "INSERT INTO models (slug, provider_id, upstream_model, max_output_tokens)"
                    " VALUES (%s, %s, %s, 4096)",
                    [slug, provider, upstream],
                )
            for slug, rates in RATES.items():
                connection.execute(
                    "INSERT INTO prices (id, model, effective_from, rates)"
                    " VALUES (%s, %s, '2020-01-01Z', %s)",
                    [uuid7(), slug, rates_json(rates)],
                )

    def tenant(
        self,
        *,
        cap_usd: str | None = "1000000",
        cap_tokens: int | None = 10**12,
        ledger_outage: str = "deny",
        overrun_policy: str = "strict",
    ) -> Tenant:
        """Add an allocation of all models, with a key."""
        allocation, key = uuid7(), new_key()
        nano = None if cap_usd is None else int(Decimal(cap_usd) * NANO)
        with psycopg.connect(self.direct) as connection:
            connection.execute(
                "INSERT INTO allocations"
                " (id, member_id, name, models, ledger_outage, overrun_policy)"
                " VALUES (%s, %s, 'simulated', %s, %s, %s)",
                [allocation, self.member, list(MODELS), ledger_outage, overrun_policy],
            )
            for meter, amount in (("usd", nano), ("tokens", cap_tokens)):
                if amount is not None:
                    connection.execute(
                        "INSERT INTO limits (owner, owner_id, meter, window_kind, amount)"
                        " VALUES ('allocation', %s, %s, 'month', %s)",
                        [allocation, meter, amount],
                    )
            connection.execute(
                "INSERT INTO keys (id, member_id, name, digest, hint, allocation_ids)"
                " VALUES (%s, %s, 'simulated', %s, %s, %s::uuid[])",
                [uuid7(), self.member, self.vault.digest(key), hint_of(key), [allocation]],
            )
        tenant = Tenant(key, allocation, nano, overrun_policy == "strict")
        self.tenants.append(tenant)
        return tenant

    def revoke(self, tenant: Tenant) -> None:
        """Revoke the key of a tenant."""
        with psycopg.connect(self.direct) as connection:
            connection.execute(
                "UPDATE keys SET revoked_at = now() WHERE digest = %s",
                [self.vault.digest(tenant.key)],
            )

    def gateway(self, name: str = "", **settings: object) -> Gateway:
        """Name a gateway process, which is not started yet."""
        gateway = Gateway(self, name or f"gateway-{secrets.token_hex(3)}", **settings)
        self.gateways.append(gateway)
        return gateway

    def reached(self) -> dict[str, Any]:
        """What reached the provider, by call id."""
        return {call.headers["x-request-id"]: call for call in self.simulator.calls}

    def rows(self, statement: str, *values: Any) -> list[Any]:
        """Read the database, past whatever a test has put between."""
        with psycopg.connect(self.direct, autocommit=True) as connection:
            return connection.execute(statement, values).fetchall()

    def close(self) -> None:
        """Kill what still runs."""
        for gateway in self.gateways:
            gateway.kill()


@contextlib.contextmanager
def provider() -> Iterator[RunningSimulator]:
    """Run a provider that remembers everything."""
    with serve_in_thread() as running:
        running.app._calls = deque()
        yield running


# The audit


class Row(NamedTuple):
    """A call as it is booked, adjustments included."""

    outcome: str
    usage: dict[str, Any]
    tokens: int
    nano: int | None
    estimated: bool
    adjusted_tokens: int
    adjusted_nano: int
    adjustments: int
    allocation_id: str


REFUSED = ("rejected_", "upstream_error")


class Audit:
    """Whether the books are right: what must hold after any fault whatsoever."""

    def __init__(self, house: House, sent: Iterable[Sent]) -> None:
        self.house = house
        self.sent = list(sent)
        self.wrong: list[str] = []

    def calls(self) -> dict[str, Row]:
        """Return everything booked, by call id."""
        return {
            id: Row(*rest)
            for id, *rest in self.house.rows(
                "SELECT c.id::text, c.outcome, c.usage, c.tokens, c.cost_nano, c.estimated,"
                " coalesce(sum(a.tokens), 0)::bigint, coalesce(sum(a.nano), 0)::bigint,"
                " count(a.id), c.allocation_id::text"
                " FROM calls c LEFT JOIN adjustments a ON a.call_id = c.id GROUP BY c.id"
            )
        }

    async def at_rest(self, within: float) -> float:
        """Wait until nothing is held, nor waits in a spool; return how long it took."""
        began = time.monotonic()
        left = "SELECT call_id::text, deadline - now() FROM holds"
        try:
            await eventually(lambda: not self.house.rows(left), within=within, every=0.05)
        except AssertionError:
            raise AssertionError(
                f"holds are left after {within:g} s: {self.house.rows(left)}"
            ) from None
        for gateway in self.house.gateways:
            await eventually(
                lambda gateway=gateway: not gateway.running() or not gateway.spooled(),
                within=within,
                what=f"the spool of {gateway.name} is empty",
            )
        return time.monotonic() - began

    async def check(self, within: float = DEADLINE_S + REAPER_PERIOD_S + SLACK_S) -> dict[str, Row]:
        """Wait for rest, then assert that every call is booked exactly once and for what it used."""
        await self.at_rest(within)
        booked = self.calls()
        self._provider_side(booked)
        self._client_side(booked)
        self._caps()
        found = await reconcile(self.house.direct, at_rest=True, reaper_period_s=REAPER_PERIOD_S)
        self.wrong += [str(discrepancy) for discrepancy in found]
        assert not self.wrong, "the books are wrong:\n" + "\n".join(self.wrong[:40])
        return booked

    def _provider_side(self, booked: dict[str, Row]) -> None:
        """What reached the provider is booked; what did not is not billed, unless recovered."""
        reached = self.house.reached()
        for id, call in reached.items():
            row = booked.get(id)
            if row is None:
                self.wrong.append(f"call {id} reached the provider and is not booked")
            elif row.outcome.startswith("rejected_"):
                self.wrong.append(f"call {id} reached the provider, booked as {row.outcome}")
            elif row.outcome == "success" and call.ended != "answered" and not call.realtime:
                self.wrong.append(f"call {id} is a success, but at the provider: {call.ended}")
        for id, row in booked.items():
            if id in reached or row.outcome == "recovered":
                continue
            if not row.outcome.startswith(REFUSED) or row.tokens or row.nano:
                self.wrong.append(f"call {id} never reached the provider, and is booked as {row}")

    def _client_side(self, booked: dict[str, Row]) -> None:
        """Who got a whole answer finds exactly that booked."""
        for sent in self.sent:
            if not sent.whole:
                continue
            row = booked.get(sent.call_id)
            if row is None:
                self.wrong.append(f"the client has the answer of {sent}, which is not booked")
                continue
            tokens = row.tokens + row.adjusted_tokens
            nano = None if row.nano is None else row.nano + row.adjusted_nano
            if (tokens, nano) != (sent.tokens, sent.nano):
                self.wrong.append(f"{sent} was billed {tokens} tokens, {nano} nano-USD: {row}")
            if row.outcome == "success":
                if {unit: Decimal(str(n)) for unit, n in row.usage.items()} != sent.usage:
                    self.wrong.append(f"{sent} is booked with the usage {row.usage}")
                if row.estimated or row.adjustments:
                    self.wrong.append(f"{sent} is booked as an estimate: {row}")
            elif row.outcome != "recovered" or row.adjustments != 1:
                self.wrong.append(f"{sent} was answered in full, and is booked as {row}")

    def _caps(self) -> None:
        """No strict cap is passed but by overrun that is recorded."""
        used = {
            id: (nano, over)
            for id, nano, over in self.house.rows(
                "SELECT owner_id::text, used_nano, overrun_nano FROM accounts"
            )
        }
        for tenant in self.house.tenants:
            nano, over = used.get(tenant.allocation_id, (0, 0))
            if tenant.strict and tenant.cap_nano is not None and nano > tenant.cap_nano + over:
                self.wrong.append(f"{tenant} has used {nano}, of which {over} as overrun")


def lines(path: Path) -> list[Any]:
    """The JSON lines of a log that can be read."""
    found = []
    for line in path.read_text("utf-8", "replace").splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found
