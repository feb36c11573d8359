"""Real books for the control plane: a ledger on its database, and calls that count in accounts."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from app.core.ledger import AccountKey, Actual, CallFacts, Demand, OwnerKind, Settlement
from app.core.metering import Usage, tokens_of
from app.core.preflight import Paths
from app.core.refusals import Outcome
from app.core.windows import Calendar, Window
from app.ids import uuid7
from app.store.batch import Granted
from app.store.ledger import Ledger
from app.store.reconcile import reconcile
from app.store.spool import Spool

USD = 10**9


class Books:
    """A ledger beside the control plane under test."""

    def __init__(self, plane: Any, ledger: Ledger) -> None:
        self.plane = plane
        self.ledger = ledger
        self.paths = Paths(Calendar(plane.zone))

    def path(self, tenant: Any, at: datetime, pools: Sequence[str] = ()) -> tuple[AccountKey, ...]:
        """Return the accounts that a call is charged to: as the rows of limits say by now."""
        owners: list[tuple[OwnerKind, str]] = [
            ("key", tenant.key["id"]),
            ("allocation", tenant.allocation["id"]),
            *(("pool", pool) for pool in pools),
        ]
        limited: dict[str, tuple[Window, ...]] = dict.fromkeys(pools, ("month",))
        rows = self.plane.sql(
            "SELECT owner_id::text, array_agg(DISTINCT window_kind) FROM limits"
            " WHERE amount IS NOT NULL OR watched GROUP BY 1"
        )
        for owner, windows in rows:
            limited[owner] = tuple(dict.fromkeys((*limited.get(owner, ()), *windows)))
        return self.paths.of(owners, at, limited)

    async def hold(
        self, tenant: Any, tokens: int, nano: int | None, *, at: datetime | None = None, **more: Any
    ) -> tuple[CallFacts, tuple[AccountKey, ...]]:
        """Reserve a call."""
        began = at or datetime.now(UTC)
        path = self.path(tenant, began, more.pop("pools", ()))
        facts = CallFacts(
            uuid7(began),
            "req_test",
            tenant.allocation["id"],
            tenant.key["id"],
            tenant.member["id"],
            more.get("model", tenant.allocation["models"][0]),
            more.get("endpoint", "chat/completions"),
            more.get("price_id"),
            began,
            tuple(key.id for key in path),
        )
        [(version,)] = self.plane.sql("SELECT directory_version FROM installation")
        demand = Demand(path, tokens, True, nano, 1, None)
        granted = await self.ledger.reserve(facts, demand, version)
        assert isinstance(granted, Granted), granted
        return facts, path

    async def settle(
        self,
        held: tuple[CallFacts, tuple[AccountKey, ...]],
        usage: Usage,
        nano: int | None,
        outcome: Outcome = "success",
    ) -> str:
        """Settle a call that was reserved; return its id."""
        facts, path = held
        actual = Actual(usage, tokens_of(usage), nano)
        await self.ledger.settle(Settlement(facts, outcome, 200, actual, datetime.now(UTC)), path)
        return facts.id

    async def spend(self, tenant: Any, usage: Usage, nano: int | None, **more: Any) -> str:
        """Have a call use something; return its id."""
        held = await self.hold(tenant, tokens_of(usage), nano, **more)
        return await self.settle(held, usage, nano)

    async def price(self, model: str, *, at: datetime | None = None, **rates: str) -> str:
        """Add a version of a model's rates; return its id."""
        listed = [{"unit": unit, "usd": usd} for unit, usd in rates.items()]
        body: dict[str, Any] = {"model": model, "rates": listed}
        if at is not None:
            body["effective_from"] = at.isoformat()
        return str((await self.plane.ok("POST", "/admin/prices", body))["id"])

    def pool(self, parent_id: str | None = None) -> str:
        """Add a pool."""
        id = uuid7()
        self.plane.sql(
            "INSERT INTO pools (id, parent_id, name) VALUES (%s, %s, %s)", id, parent_id, id
        )
        return id

    def join(self, tenant: Any, pool_id: str) -> None:
        """Put an allocation into a pool."""
        self.plane.sql(
            "UPDATE allocations SET pool_id = %s WHERE id = %s", pool_id, tenant.allocation["id"]
        )

    def used(self, owner_id: str, window: Window = "month") -> list[tuple[int, Decimal]]:
        """Return what is used by the accounts of an owner, the latest last: tokens and USD."""
        rows = self.plane.sql(
            "SELECT used_tokens - slid_tokens, used_nano - slid_nano FROM accounts"
            " WHERE owner_id = %s AND window_kind = %s ORDER BY period_start",
            owner_id,
            window,
        )
        return [(tokens, Decimal(nano) / USD) for tokens, nano in rows]

    async def assert_sound(self) -> None:
        """Check that the books add up, but for calls that a test wrote past the ledger."""
        past = self.plane.sql(
            "SELECT 'call ' || id FROM calls WHERE request_id = 'req_test' AND account_ids = '{}'"
        )
        found = [one for one in await reconcile(self.plane.url) if (one.subject,) not in past]
        assert found == [], [str(one) for one in found]


@contextlib.asynccontextmanager
async def books_of(plane: Any, directory: Path) -> AsyncIterator[Books]:
    """Start a ledger; afterwards the books must add up."""
    ledger = Ledger(plane.url, Spool(directory))
    await ledger.start()
    try:
        books = Books(plane, ledger)
        yield books
        await books.assert_sound()
    finally:
        await ledger.stop()
        ledger.spool.close()
