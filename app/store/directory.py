"""The directory: keys, allocations, members, models, prices and providers, in memory.

Owns reading them from PostgreSQL and keeping them fresh; decides nothing (see `core.access`).

Every row that admission depends on carries the revision it last changed at, handed out by the
database in commit order, so freshening reads only what changed since. LISTEN/NOTIFY makes that
prompt. Correctness does not hang on it: each reserve names the version it was prepared on, and the
ledger sends it back if the database's is newer.

Invariants: the version never runs ahead of the rows; a row is replaced whole, between two awaits.
"""

import asyncio
import contextlib
from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec
import psycopg
import structlog
from psycopg.rows import class_row, dict_row
from psycopg_pool import AsyncConnectionPool

from app.core.access import Allocation, Key, Member, Model, Provider
from app.core.pools import pools_above
from app.core.pricing import Price, Rate, make_price
from app.core.windows import Window, window_order
from app.store.database import hung_up_after
from app.tasks import cancelled

log = structlog.get_logger(__name__)

QUERY_S = 5.0
"""How long a reading may take."""
LISTEN_S = 5.0
"""How long the listener takes silence for no news; then it looks for itself."""

_decode_rates = msgspec.json.Decoder(list[Rate]).decode


class Directory:
    """What admission needs to know, as of `version`."""

    def __init__(
        self, pool: AsyncConnectionPool[Any], dsn: str, unseal: Callable[[bytes, str, int], str]
    ) -> None:
        self.pool = pool
        self.dsn = dsn
        self._unseal = unseal
        self.version = -1
        self.on_change: Callable[[], None] | None = None
        """Told after every reading that brought something new."""
        self.on_stop: Callable[[str], None] | None = None
        """Told the id of a call that is ordered to stop, on whichever replica it runs."""
        self.keys_by_digest: dict[bytes, Key] = {}
        self.members: dict[str, Member] = {}
        self.allocations: dict[str, Allocation] = {}
        self.models: dict[str, Model] = {}
        self.prices: dict[str, tuple[Price, ...]] = {}
        self.providers: dict[str, Provider] = {}
        self.limited: dict[str, tuple[Window, ...]] = {}
        """The windows in which an owner is limited or watched."""
        self.pools: dict[str, str | None] = {}
        """The parent of each pool; None: it is at the top."""
        self._limits: dict[str, set[tuple[str, Window]]] = {}
        self._digest_of_key: dict[str, bytes] = {}
        self._above: dict[str, tuple[str, ...]] = {}
        self._refresh: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load everything, then listen for changes."""
        with contextlib.suppress(psycopg.Error, OSError):
            await self.refresh()
        self._task = asyncio.create_task(self._listen(), name="directory")

    async def stop(self) -> None:
        """Stop listening."""
        await cancelled((self._task, self._refresh, self._next))

    async def refresh(self) -> None:
        """Read what changed since `version`, as of no earlier than this call.

        Callers at the same time share one reading: the next one to start. Raises psycopg's errors
        when PostgreSQL is away; what is known then stays as it is.
        """
        if self._refresh is None or self._refresh.done():
            self._refresh = asyncio.create_task(self._load())
            await asyncio.shield(self._refresh)
            return
        if self._next is None:
            self._next = asyncio.create_task(self._load_after(self._refresh))
        await asyncio.shield(self._next)

    async def refresh_to(self, version: int) -> None:
        """Read until at least `version` is known."""
        while self.version < version:
            await self.refresh()

    async def look_again(self) -> None:
        """Refresh if PostgreSQL can be reached."""
        with contextlib.suppress(psycopg.Error, OSError):
            await self.refresh()

    def pools_above(self, allocation: Allocation) -> tuple[str, ...]:
        """Return the pools that an allocation is in, from the nearest up."""
        nearest = allocation.pool_id
        if nearest is None:
            return ()
        known = self._above.get(nearest)
        if known is None:
            known = self._above[nearest] = tuple(pools_above(nearest, self.pools))
        return known

    def service_of(self, model: str) -> str | None:
        """Return the name of the provider that serves a model."""
        known = self.models.get(model)
        provider = None if known is None else self.providers.get(known.provider_id)
        return None if provider is None else provider.name

    def mark_used(self, digest: bytes, at: datetime) -> None:
        """Note that a one-shot key is used up; the ledger knows for sure, on every replica."""
        key = self.keys_by_digest.get(digest)
        if key is not None:
            self.keys_by_digest[digest] = msgspec.structs.replace(key, used_at=at)

    async def _load_after(self, running: asyncio.Task[None]) -> None:
        await asyncio.wait([running])
        self._refresh, self._next = self._next, None
        await self._load()

    async def _load(self) -> None:
        async with self.pool.connection(timeout=2) as connection:
            # A connection that hangs is a connection that is gone.
            with hung_up_after(connection, QUERY_S):
                await self._read_since(connection)

    async def _read_since(self, connection: psycopg.AsyncConnection[Any]) -> None:
        async with connection.transaction():
            await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            since = [self.version]
            row = await (
                await connection.execute("SELECT directory_version FROM installation")
            ).fetchone()
            assert row is not None
            version: int = row[0]
            if version == self.version:
                return
            members = await (
                await connection.cursor(row_factory=class_row(Member)).execute(
                    "SELECT id::text, status FROM members WHERE revision > %s", since
                )
            ).fetchall()
            allocations = await (
                await connection.cursor(row_factory=dict_row).execute(
                    "SELECT id::text, member_id::text, models, status, pool_id::text,"
                    " overrun_policy, ledger_outage, unpriced, billing_timezone"
                    " FROM allocations WHERE revision > %s",
                    since,
                )
            ).fetchall()
            keys = await (
                await connection.cursor(row_factory=dict_row).execute(
                    "SELECT id::text, member_id::text, allocation_ids::text[], digest, expires_at,"
                    " revoked_at, one_shot, used_at FROM keys WHERE revision > %s",
                    since,
                )
            ).fetchall()
            providers = await (
                await connection.execute(
                    "SELECT id::text, name, kind, base_url, credential, credential_version"
                    " FROM providers WHERE revision > %s",
                    since,
                )
            ).fetchall()
            models = await (
                await connection.cursor(row_factory=dict_row).execute(
                    "SELECT slug, provider_id::text, upstream_model, endpoints, context_window,"
                    " max_output_tokens, bytes_per_token, image_tokens_max,"
                    " extract(epoch FROM created_at)::bigint AS created"
                    " FROM models WHERE revision > %s",
                    since,
                )
            ).fetchall()
            prices = await (
                await connection.execute(
                    "SELECT id::text, model, effective_from, rates::text"
                    " FROM prices WHERE revision > %s",
                    since,
                )
            ).fetchall()
            limits = await (
                await connection.execute(
                    "SELECT owner_id::text, meter, window_kind, amount IS NOT NULL OR watched"
                    " FROM limits WHERE revision > %s",
                    since,
                )
            ).fetchall()
            pools = await (
                await connection.execute(
                    "SELECT id::text, parent_id::text FROM pools WHERE revision > %s", since
                )
            ).fetchall()
        self._replace(members, allocations, keys, providers, models, prices)
        self._limit(limits)
        self.pools.update(pools)
        self._above.clear()
        self.version = version
        if self.on_change is not None:
            self.on_change()

    def _replace(
        self,
        members: list[Member],
        allocations: list[dict[str, Any]],
        keys: list[dict[str, Any]],
        providers: list[tuple[Any, ...]],
        models: list[dict[str, Any]],
        prices: list[tuple[Any, ...]],
    ) -> None:
        for member in members:
            self.members[member.id] = member
        for row in allocations:
            self.allocations[row["id"]] = Allocation(**{**row, "models": tuple(row["models"])})
        for row in keys:
            digest = row.pop("digest")
            key = Key(**{**row, "allocation_ids": tuple(row["allocation_ids"])})
            # A rotated key has a new digest: the old one must open nothing from now on.
            former = self._digest_of_key.pop(key.id, None)
            if former is not None:
                self.keys_by_digest.pop(former, None)
            self._digest_of_key[key.id] = digest
            self.keys_by_digest[digest] = key
        for id, name, kind, base_url, sealed, sealed_version in providers:
            credential = None
            if sealed is not None:
                try:
                    credential = self._unseal(sealed, id, sealed_version)
                except ValueError:
                    log.error("credential_unreadable", provider=name)
            self.providers[id] = Provider(id, name, kind, base_url, credential)
        for row in models:
            endpoints = row["endpoints"]
            self.models[row["slug"]] = Model(
                **{**row, "endpoints": None if endpoints is None else tuple(endpoints)}
            )
        for id, slug, effective_from, rates in prices:
            price = make_price(id, slug, effective_from, read_rates(rates))
            versions = [*self.prices.get(slug, ()), price]
            self.prices[slug] = tuple(sorted(versions, key=lambda p: p.effective_from))

    def _limit(self, limits: list[tuple[str, str, Window, bool]]) -> None:
        for owner_id, meter, window, stands in limits:
            of_owner = self._limits.setdefault(owner_id, set())
            (of_owner.add if stands else of_owner.discard)((meter, window))
            windows = {limited for _, limited in of_owner}
            self.limited[owner_id] = tuple(sorted(windows, key=window_order))
            if not windows:
                del self._limits[owner_id], self.limited[owner_id]

    async def _listen(self) -> None:
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(
                    self.dsn, autocommit=True, connect_timeout=3
                ) as connection:
                    with hung_up_after(connection, QUERY_S):
                        await connection.execute(
                            "LISTEN spendgate_directory; LISTEN spendgate_stop"
                        )
                    while True:
                        # What we were told of, or what changed while nobody told us.
                        await self.refresh()
                        # A connection that died in silence is found out here.
                        with hung_up_after(connection, QUERY_S):
                            await connection.execute("SELECT 1")
                        async for told in connection.notifies(timeout=LISTEN_S, stop_after=1):
                            if told.channel == "spendgate_stop" and self.on_stop is not None:
                                self.on_stop(told.payload)
            except (psycopg.Error, OSError) as error:
                log.debug("directory_away", error=type(error).__name__)
                await asyncio.sleep(0.2)


def read_rates(rates: str | bytes) -> list[Rate]:
    """Read the rates of a price as the database keeps them: exact decimals as strings."""
    return _decode_rates(rates)


def rates_json(rates: list[Rate]) -> str:
    """Write rates for the database, as they are shown: digits, without an exponent."""
    written = [{"unit": one.unit, "usd": format(one.usd, "f"), "per": one.per} for one in rates]
    return msgspec.json.encode(written).decode()


__all__ = ["Directory", "rates_json", "read_rates"]
