"""A control plane to talk to: the real router on a real database, without a server in between."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import httpx2
import msgspec
import psycopg
import pytest
from argon2 import PasswordHasher
from litestar import Litestar
from psycopg_pool import AsyncConnectionPool

from app.control import CONTROL_EXCEPTION_HANDLERS, ControlDeps, control_router, passwords
from app.control.desk import LedgerHealth
from app.core.ledger import OwnerKind, account_key
from app.core.windows import Calendar, Period, Window
from app.gateway.upstream import Upstream
from app.ids import uuid7
from app.store.database import Database
from app.store.directory import Directory
from app.store.live import Live
from app.store.vault import Vault, new_admin_token
from tests.control.browser import Town

CHEAP = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
SECRET = "a secret of more than thirty-two characters"


class Plane:
    """The control plane under test, and short ways to fill it."""

    def __init__(self, app: Litestar, deps: ControlDeps, url: str, zone: ZoneInfo) -> None:
        self.app = app
        self.deps = deps
        self.url = url
        self.zone = zone
        self.token = ""
        self.client = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app), base_url="http://spendgate.test"
        )

    @property
    def month(self) -> Period:
        """The month as the test asks: what was imported in the last one says another."""
        return Calendar(self.zone).period("month", datetime.now(UTC))

    @property
    def last_month(self) -> datetime:
        """An instant of the month before."""
        return self.month.start - timedelta(days=14)

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        bearer: str | None = "",
        content: bytes | None = None,
        **headers: str,
    ) -> httpx2.Response:
        """Send a request, as the admin unless told otherwise (`bearer=None`: as nobody)."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if bearer is not None:
            sent.setdefault("authorization", f"Bearer {bearer or self.token}")
        if body is not None:
            content = msgspec.json.encode(body)
        if content is not None:
            sent.setdefault("content-type", "application/json")
        return await self.client.request(method, f"/api{path}", content=content, headers=sent)

    async def ok(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        """Send a request that must succeed; return its document."""
        answer = await self.call(method, path, body, **more)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        assert answer.headers["x-request-id"]
        return answer.json()

    def sql(self, statement: str, *values: Any) -> list[Any]:
        """Run a statement behind the control plane's back."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    async def provider(self, **more: Any) -> Any:
        """Add a provider."""
        body = {
            "name": f"provider {uuid7()}",
            "kind": "openai",
            "base_url": "https://api.example.com/v1",
            "api_key": "sk-upstream-secret",
        }
        return await self.ok("POST", "/admin/providers", body | more)

    async def model(self, slug: str, **more: Any) -> Any:
        """Add a model, and a provider for it."""
        if "provider_id" not in more:
            more["provider_id"] = (await self.provider())["id"]
        return await self.ok("POST", "/admin/models", {"slug": slug} | more)

    async def member(self, **more: Any) -> Any:
        """Add a member."""
        body = {"email": f"{uuid7()}@example.org", "display_name": "Ada"}
        return await self.ok("POST", "/admin/members", body | more)

    async def allocation(self, member_id: str, models: list[str], **more: Any) -> Any:
        """Add an allocation."""
        body = {"member_id": member_id, "models": models}
        return await self.ok("POST", "/admin/allocations", body | more)

    async def pool(self, **more: Any) -> Any:
        """Add a pool."""
        return await self.ok("POST", "/admin/pools", {"name": f"pool {uuid7()}"} | more)

    async def key(self, member_id: str, *allocation_ids: str, **more: Any) -> Any:
        """Add a key."""
        body = {"member_id": member_id, "name": "laptop", "allocation_ids": allocation_ids}
        return await self.ok("POST", "/admin/keys", body | more)

    async def tenant(self, *models: str, **more: Any) -> Tenant:
        """Add a member with one allocation and a key to it."""
        for model in models:
            if not self.sql("SELECT 1 FROM models WHERE slug = %s", model):
                await self.model(model)
        member = await self.member()
        allocation = await self.allocation(member["id"], list(models), **more)
        return Tenant(member, allocation, await self.key(member["id"], allocation["id"]))

    def book(self, tenant: Tenant, **more: Any) -> str:
        """Book a call of a tenant, as the ledger would have."""
        at: datetime = more.pop("at", None) or datetime.now(UTC)
        row = {
            "id": uuid7(at),
            "request_id": "req_test",
            "allocation_id": tenant.allocation["id"],
            "key_id": tenant.key["id"],
            "member_id": tenant.member["id"],
            "model": tenant.allocation["models"][0],
            "endpoint": "chat/completions",
            "outcome": "success",
            "status_code": 200,
            "started_at": at,
            "finished_at": at,
            "usage": '{"input_token": 20}',
            "tokens": 20,
            "cost_nano": 400,
            "price_id": None,
            "estimated": False,
            "overrun_tokens": 0,
            "overrun_nano": 0,
            "error_message": None,
            "shortfall": None,
            "account_ids": [],
        } | more
        names, marks = ", ".join(row), ", ".join(["%s"] * len(row))
        self.sql("SELECT ensure_calls_partition(%s)", at)
        self.sql(f"INSERT INTO calls ({names}) VALUES ({marks})", *row.values())
        return str(row["id"])

    def account(
        self,
        owner_id: str,
        *,
        owner: OwnerKind = "allocation",
        window: Window = "month",
        zone: str | None = None,
        at: datetime | None = None,
        **totals: int,
    ) -> str:
        """Write an account of an owner, an allocation's of this month unless told otherwise."""
        period = Calendar(self.zone).of(zone).period(window, at or datetime.now(UTC))
        key = account_key(owner, owner_id, window, period)
        row: dict[str, Any] = {
            "id": key.id,
            "owner": key.owner,
            "owner_id": key.owner_id,
            "window_kind": key.window,
            "period_start": key.start,
            "period_end": key.end,
        } | totals
        names, marks = ", ".join(row), ", ".join(["%s"] * len(row))
        changes = ", ".join(f"{name} = excluded.{name}" for name in row)
        self.sql(
            f"INSERT INTO accounts ({names}) VALUES ({marks})"
            f" ON CONFLICT (id) DO UPDATE SET {changes}",
            *row.values(),
        )
        return key.id

    async def events(self, object_id: str) -> list[Any]:
        """Return the audit events of one object, the oldest first."""
        page = await self.ok("GET", f"/admin/audit?object_id={object_id}&limit=500")
        return sorted(page["items"], key=lambda event: event["id"])


class Tenant(msgspec.Struct):
    """A member, their allocation, and their key with its secret."""

    member: Any
    allocation: Any
    key: Any

    @property
    def secret(self) -> str:
        """The bearer secret."""
        return str(self.key["key"])


@pytest.fixture
def zone() -> ZoneInfo:
    """The billing time zone; a test module may have its own."""
    return ZoneInfo("UTC")


@pytest.fixture
async def plane(database_url: str, zone: ZoneInfo) -> AsyncIterator[Plane]:
    """The control plane, and an admin token for it."""
    vault, database = Vault(SECRET.encode()), Database(database_url)
    pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
        database_url, min_size=1, max_size=4, open=False, kwargs={"autocommit": True}
    )
    await pool.open()
    directory = Directory(pool, database_url, vault.unseal)
    await directory.start()
    upstream = Upstream()
    live = Live(pool, database_url, directory)
    await live.start()
    deps = ControlDeps(
        database=database,
        vault=vault,
        calendar=Calendar(zone),
        directory=directory,
        clock=lambda: datetime.now(UTC),
        live=live,
        ledger=lambda: LedgerHealth(available=True, spooled_settlements=0),
        look=upstream.look,
    )
    app = Litestar([control_router(deps)], exception_handlers=CONTROL_EXCEPTION_HANDLERS)
    plane = Plane(app, deps, database_url, zone)
    plane.token = new_admin_token()
    plane.sql(
        "INSERT INTO admin_tokens (id, name, digest) VALUES (%s, 'ops', %s)",
        uuid7(),
        vault.digest(plane.token),
    )
    try:
        yield plane
    finally:
        await plane.client.aclose()
        await live.stop()
        await upstream.close()
        await directory.stop()
        await pool.close()
        await database.close()


@pytest.fixture
async def town(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Town]:
    """Members with passwords, which cost little to compare, and browsers to sign in with."""
    monkeypatch.setattr(passwords, "HASHER", CHEAP)
    town = Town(plane)
    yield town
    for browser in town.browsers:
        await browser.client.aclose()
