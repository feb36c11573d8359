"""The product itself as a benchmark target, set up only through its command line and control API.

A `Product` is one `spendgate serve` on a core of its own with its own embedded PostgreSQL on the
core of the others: one provider, one model with a price, and 200 members with an allocation and a
key each; for realtime sessions one member, and a price by the second. Both caps of every
allocation are on, and too high to be reached.

`preload_history` is the one place that writes to the tables directly: five million calls through
the front door would take longer than anything that is measured with them. It books them in the
accounts too, so that `spendgate reconcile` holds afterwards.
"""

import json
import os
import secrets
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import psycopg

from app.core.ledger import account_key
from app.core.windows import period_of
from app.store.postgres import EmbeddedPostgres

from .machine import ROOT, Cores, Process, free_port, python

ALLOCATIONS: Final = 200
MODEL: Final = "benchmark-model"
REALTIME_MODEL: Final = "benchmark-transcribe"
QUOTA_TOKENS: Final = 10**12
QUOTA_COST_USD: Final = "1000000"
USD_PER_MILLION: Final = {"input_token": "0.15", "output_token": "0.60"}
USD_PER_MINUTE: Final = "0.006"

HISTORY_DAYS: Final = 150
HISTORY_ZONE: Final = ZoneInfo("UTC")
HISTORY_ENDPOINT: Final = "chat/completions"
HISTORY_STEP: Final = 250_000
HISTORY_USAGE: Final = {"input_token": 20, "output_token": 10}
HISTORY_COST_NANO: Final = 20 * 150 + 10 * 600

COMMAND_TIMEOUT_S: Final = 900.0


class Product:
    """A running gateway, its database and its keys."""

    def __init__(self, directory: Path, at: Cores | None) -> None:
        directory.mkdir(mode=0o700)
        self._at = at
        self._directory = directory
        self._postgres = EmbeddedPostgres(directory / "database")
        self._process: Process | None = None
        self._secret = secrets.token_urlsafe(48)
        self.port = free_port()
        self.dsn = ""
        self.keys: list[str] = []
        self.preloaded = 0

    @property
    def process(self) -> Process:
        """The server process."""
        assert self._process is not None, "started"
        return self._process

    @property
    def _env(self) -> Mapping[str, str]:
        return {
            "SPENDGATE_DATABASE_URL": self.dsn,
            "SPENDGATE_DATA_DIR": str(self._directory / "data"),
            "SPENDGATE_SECRET_KEY": self._secret,
            "SPENDGATE_HOST": "127.0.0.1",
            "SPENDGATE_PORT": str(self.port),
            "SPENDGATE_WORKERS": "1",
        }

    def start(self, upstream_port: int, history: int, say: Callable[[str], None]) -> None:
        """Start the database and the server, set everything up, load the history."""
        self.keys = set_up(self._launch(), upstream_port)
        if history:
            preload_history(self.dsn, history, say)
            self.preloaded = history

    def start_realtime(self, upstream_port: int) -> None:
        """Start the database and the server, set up what realtime sessions need."""
        self.keys = [set_up_realtime(self._launch(), upstream_port)]

    def restart_sampled(self, to: Path) -> None:
        """Start the server anew, so that signals make it sample itself (`sampled.py`)."""
        self.process.stop()
        self._serve("-m", "tests.benchmarks.sampled", str(to), "app.cli", "serve")

    def _launch(self) -> "ControlApi":
        self.dsn = self._postgres.start()
        self.command("migrate")
        self._serve("-m", "app.cli", "serve")
        token = self.command("create-admin-token", "--name", "bench").strip()
        return ControlApi(self.port, token)

    def _serve(self, *arguments: str) -> None:
        self._process = Process(
            "spendgate serve",
            python(*arguments),
            log=self._directory / "serve.log",
            core=None if self._at is None else self._at.server,
            env=self._env,
        )
        self._process.wait_until(self._is_ready)

    def stop(self) -> None:
        """Stop the server, then its database."""
        if self._process is not None:
            self._process.stop()
        self._postgres.stop()

    def command(self, *arguments: str) -> str:
        """Run a `spendgate` command against this product and return what it printed."""
        done = subprocess.run(
            python("-m", "app.cli", *arguments),
            cwd=ROOT,
            env={**os.environ, **self._env},
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(
                f"spendgate {arguments[0]} ended with {done.returncode}:\n"
                f"{done.stdout[-2000:]}{done.stderr[-4000:]}"
            )
        return done.stdout

    def booked_calls(self) -> int:
        """How many successful calls are in the books, the preloaded ones left out."""
        with psycopg.connect(self.dsn) as connection:
            row = connection.execute(
                "SELECT count(*) FROM calls WHERE outcome = 'success'"
            ).fetchone()
        assert row is not None
        return int(row[0]) - self.preloaded

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5):
                return True
        except OSError:  # refused, timed out, or a 503 while it is still starting
            return False


class ControlApi:
    """The few calls of the control API that a set-up needs."""

    def __init__(self, port: int, token: str) -> None:
        self._root = f"http://127.0.0.1:{port}/api/admin/"
        self._token = token

    def create(self, what: str, **fields: Any) -> dict[str, Any]:
        """POST and return the created object; a refusal shows its problem document."""
        request = urllib.request.Request(
            self._root + what,
            data=json.dumps(fields).encode(),
            headers={
                "authorization": f"Bearer {self._token}",
                "content-type": "application/json",
            },
            method="POST",
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                created: dict[str, Any] = json.load(answer)
                return created
        except urllib.error.HTTPError as error:
            raise RuntimeError(
                f"POST /api/admin/{what}: {error.code} {error.read().decode(errors='replace')}"
            ) from None


def set_up(api: ControlApi, upstream_port: int) -> list[str]:
    """Create everything a call needs, and return the keys: one for each allocation."""
    provider = api.create(
        "providers",
        name="benchmark",
        kind="compatible",
        base_url=f"http://127.0.0.1:{upstream_port}/v1",
        api_key="sk-benchmark",
    )
    api.create(
        "models",
        slug=MODEL,
        provider_id=provider["id"],
        context_window=128_000,
        max_output_tokens=16_384,
    )
    rates = [{"unit": unit, "usd": usd, "per": 1_000_000} for unit, usd in USD_PER_MILLION.items()]
    api.create("prices", model=MODEL, rates=rates)
    return [_member_key(api, number, MODEL) for number in range(ALLOCATIONS)]


def set_up_realtime(api: ControlApi, upstream_port: int) -> str:
    """Create what realtime sessions need, and return the key that all of them carry."""
    provider = api.create(
        "providers",
        name="benchmark",
        kind="compatible",
        base_url=f"http://127.0.0.1:{upstream_port}/v1",
        api_key="sk-benchmark",
    )
    api.create("models", slug=REALTIME_MODEL, provider_id=provider["id"], endpoints=["realtime"])
    rate = {"unit": "second", "usd": USD_PER_MINUTE, "per": 60}
    api.create("prices", model=REALTIME_MODEL, rates=[rate])
    return _member_key(api, 0, REALTIME_MODEL)


def _member_key(api: ControlApi, number: int, model: str) -> str:
    """One member with one allocation, both caps on, and the key that opens it."""
    member = api.create(
        "members",
        email=f"member-{number:03}@bench.example",
        display_name=f"Member {number}",
        role="member",
    )
    allocation = api.create(
        "allocations",
        member_id=member["id"],
        name=f"benchmark {number:03}",
        models=[model],
        quota_tokens_per_month=QUOTA_TOKENS,
        quota_cost_usd_per_month=QUOTA_COST_USD,
    )
    key = api.create(
        "keys",
        member_id=member["id"],
        name=f"benchmark {number:03}",
        allocation_ids=[allocation["id"]],
    )
    return str(key["key"])


# ----------------------------------------------------------------------------------- history

CREATE_PAST_ACCOUNTS: Final = """
CREATE TEMPORARY TABLE past_accounts (
    position bigint, allocation_id uuid, key_id uuid, member_id uuid,
    account_id uuid, period_start timestamptz, period_end timestamptz
)
"""

# Half of the calls belong to the one allocation that everything lands on, the rest to all alike.
# Ids are UUIDv7 of the call's own instant: the months are ranges of ids.
INSERT_PAST_CALLS: Final = """
INSERT INTO calls (
    id, request_id, allocation_id, key_id, member_id, model, endpoint, outcome, status_code,
    started_at, finished_at, usage, tokens, cost_nano, price_id, estimated, overrun_tokens,
    overrun_nano, account_ids
)
SELECT
    (lpad(to_hex((extract(epoch FROM past.at) * 1000)::bigint), 12, '0')
        || '7' || substr(past.noise, 1, 3) || '8' || substr(past.noise, 4, 15))::uuid,
    'past-' || past.number, who.allocation_id, who.key_id, who.member_id, %(model)s,
    %(endpoint)s, 'success', 200, past.at, past.at + interval '1 second', %(usage)s::jsonb,
    %(tokens)s, %(nano)s, %(price_id)s, false, 0, 0, ARRAY[who.account_id]
FROM (
    SELECT number, md5(number::text) AS noise,
        %(until)s::timestamptz
            - %(span)s::interval * ((%(count)s - number)::float8 / %(count)s) AS at,
        CASE WHEN number %% 2 = 0 THEN 0 ELSE number / 2 %% %(allocations)s END AS position
    FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS number
) AS past
JOIN past_accounts AS who ON who.position = past.position
    AND who.period_start <= past.at AND past.at < who.period_end
"""

# As the ledger would have left them: what each account used is the sum of its calls.
BOOK_PAST_CALLS: Final = """
INSERT INTO accounts
    (id, owner, owner_id, window_kind, period_start, period_end, used_tokens, used_nano)
SELECT who.account_id, 'allocation', who.allocation_id, 'month', who.period_start, who.period_end,
    booked.tokens, booked.nano
FROM past_accounts AS who
JOIN (
    SELECT account_ids[1] AS account_id, sum(tokens) AS tokens, sum(cost_nano) AS nano
    FROM calls GROUP BY 1
) AS booked USING (account_id)
ON CONFLICT (id) DO UPDATE
    SET used_tokens = excluded.used_tokens, used_nano = excluded.used_nano
"""


def preload_history(dsn: str, count: int, say: Callable[[str], None] = print) -> None:
    """Book `count` past calls over the months before now, as if they had been made.

    To be called while the gateway is idle: the accounts are set to the sums of their calls.
    """
    begun = time.monotonic()
    until = datetime.now(UTC)
    with psycopg.connect(dsn, autocommit=True) as connection:
        who = connection.execute(
            "SELECT a.id::text, k.id::text, a.member_id::text FROM allocations a "
            "JOIN keys k ON k.allocation_ids = ARRAY[a.id] ORDER BY a.name"
        ).fetchall()
        price = connection.execute(
            "SELECT id::text FROM prices WHERE model = %s", (MODEL,)
        ).fetchone()
        assert who, "the allocations are set up first"
        assert price is not None, "the price is set up first"
        periods = {
            period_of("month", until - timedelta(days=day), HISTORY_ZONE)
            for day in range(HISTORY_DAYS + 1)
        }
        connection.execute(CREATE_PAST_ACCOUNTS)
        rows = []
        for period in periods:
            connection.execute("SELECT ensure_calls_partition(%s)", (period.start,))
            for position, (allocation_id, key_id, member_id) in enumerate(who):
                account = account_key("allocation", allocation_id, "month", period)
                ids = (allocation_id, key_id, member_id, account.id)
                rows.append((position, *ids, period.start, period.end))
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO past_accounts VALUES (%s,%s,%s,%s,%s,%s,%s)", rows)
        connection.execute("ANALYZE past_accounts")
        for first in range(1, count + 1, HISTORY_STEP):
            last = min(first + HISTORY_STEP - 1, count)
            connection.execute(
                INSERT_PAST_CALLS,
                {
                    "model": MODEL,
                    "endpoint": HISTORY_ENDPOINT,
                    "usage": json.dumps(HISTORY_USAGE),
                    "tokens": sum(HISTORY_USAGE.values()),
                    "nano": HISTORY_COST_NANO,
                    "price_id": price[0],
                    "until": until,
                    "span": timedelta(days=HISTORY_DAYS),
                    "count": count,
                    "allocations": len(who),
                    "first": first,
                    "last": last,
                },
            )
            say(f"history: {last:,} of {count:,} calls, {time.monotonic() - begun:.0f} s")
        connection.execute(BOOK_PAST_CALLS)
        # What the server does in its own time anyway should not fall into the measured window.
        connection.execute("VACUUM (ANALYZE) calls")
        connection.execute("VACUUM (ANALYZE) accounts")
        connection.execute("CHECKPOINT")
    say(f"history: booked and vacuumed after {time.monotonic() - begun:.0f} s")
