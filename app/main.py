"""Composition: one process of the gateway.

Owns which parts there are, what each is given, and the order in which they start and stop. Owns
nothing else.
"""

import asyncio
import contextlib
import gc
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import structlog
from litestar import Litestar, Response, get
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import SwaggerRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

import app
from app.control import CONTROL_EXCEPTION_HANDLERS, ControlDeps, control_router
from app.control.browser import COOKIE, CSRF_HEADER, SECURE_COOKIE
from app.control.desk import IdentityRules, LedgerHealth
from app.core.ledger import Surroundings
from app.core.preflight import Paths
from app.core.windows import Calendar
from app.dashboard import Dashboard
from app.delivery import Delivery
from app.gateway.door import Door
from app.gateway.exchange import Exchange
from app.gateway.realtime import Sessions
from app.gateway.upstream import Upstream
from app.identity_provider import IdentityProvider
from app.mail import Mailer
from app.monthly import Monthly
from app.receivers import Receivers
from app.settings import Settings, psycopg_dsn
from app.store.answers import Answers
from app.store.chats import Chats
from app.store.database import Database, Pool, hung_up_after, kept_alive
from app.store.directory import Directory
from app.store.ledger import Ledger
from app.store.live import Live
from app.store.spool import Spool
from app.store.vault import Vault
from app.worker import Worker

log = structlog.get_logger(__name__)

# The modes say how the gauges of several processes make one.
SPOOLED = Gauge(
    "spendgate_spooled_settlements",
    "Settlements waiting for PostgreSQL",
    multiprocess_mode="livesum",
)
LEDGER_UP = Gauge(
    "spendgate_ledger_available",
    "1 if the last contact with PostgreSQL went well",
    multiprocess_mode="livemin",
)
BATCHES = Gauge(
    "spendgate_ledger_batches", "Committed batches of the ledger", multiprocess_mode="sum"
)
OPERATIONS = Gauge(
    "spendgate_ledger_operations", "Operations in committed batches", multiprocess_mode="sum"
)

OBSERVED_EVERY_S = 2.0


class SecretMismatch(RuntimeError):
    """The database belongs to an installation with another secret."""


class Gateway:
    """The parts of one process, wired together."""

    def __init__(self, settings: Settings, database_url: str) -> None:
        self.settings = settings
        dsn = kept_alive(psycopg_dsn(database_url))
        self.dsn = dsn
        self.calendar = Calendar(ZoneInfo(settings.billing_timezone))
        self.vault = Vault(settings.secret_key())
        self.pool = Pool(dsn)
        self.database = Database(database_url)
        self.spool = Spool(settings.data_dir / "spool")
        self.directory = Directory(self.pool, dsn, self.vault.unseal)
        self.ledger = Ledger(
            dsn,
            self.spool,
            hold_deadline_s=settings.hold_deadline_s,
            wait_s=settings.ledger_wait_s,
            batch_max=settings.batch_max,
            around=Surroundings(
                self.directory.service_of, lambda at: self.calendar.period("day", at)
            ),
        )
        self.live = Live(self.pool, dsn, self.directory)
        self.ledger.on_booked = self.live.booked
        self.upstream = Upstream(
            connect_timeout_s=settings.upstream_connect_timeout_s,
            silence_s=settings.upstream_timeout_s,
        )
        self.exchange = Exchange(
            settings,
            self.directory,
            self.ledger,
            self.vault,
            self.upstream,
            Paths(self.calendar),
            Answers(self.pool),
            Chats(self.pool),
        )
        self.sessions = Sessions(self.exchange)
        self.sessions.on_change = self.live.session
        self.door = Door(self.exchange, self.database, self.calendar)
        self.monthly = Monthly(self.database, self.calendar, lambda: datetime.now(UTC))
        self.worker = Worker(
            self.pool,
            self.ledger,
            reaper_period_s=settings.reaper_period_s,
            share_out=self.monthly.share_out,
        )
        self.identity_provider = _identity_provider(settings)
        self.receivers = Receivers(settings.webhook_private_cidrs)
        self.mailer = (
            None if settings.smtp_url is None else Mailer(settings.smtp_url, settings.smtp_from)
        )
        self.delivery = Delivery(
            self.pool,
            self.vault,
            self.receivers,
            retry_s=settings.webhook_retry_s,
            mailer=self.mailer,
        )

    async def start(self) -> None:
        """Start every part; PostgreSQL may come later."""
        await self.pool.open()
        with contextlib.suppress(psycopg.Error, OSError):
            await self._check_secret()
        await self.directory.start()
        await self.ledger.start()
        await self.live.start()
        if self.settings.worker:
            await self.worker.start()
            await self.delivery.start()
        # What has been loaded so far stays: collecting garbage need not look at it again.
        gc.collect()
        gc.freeze()
        # A call makes hundreds of objects and no cycles: look for garbage less often.
        gc.set_threshold(20_000, 20, 50)

    async def stop(self) -> None:
        """Stop in the order in which parts need each other; queued settlements are finished."""
        await self.worker.stop()
        await self.delivery.stop()
        self.receivers.close()
        await self.live.stop()
        await self.ledger.stop()
        await self.directory.stop()
        await self.upstream.close()
        if self.identity_provider is not None:
            await self.identity_provider.close()
        await self.database.close()
        await self.pool.close()
        self.spool.close()

    async def _check_secret(self) -> None:
        """Refuse a database whose digests and credentials another secret made."""
        async with self.pool.connection() as connection:
            row = await (
                await connection.execute(
                    "UPDATE installation SET secret_fingerprint ="
                    " coalesce(secret_fingerprint, %s) RETURNING secret_fingerprint",
                    [self.vault.fingerprint],
                )
            ).fetchone()
        if row is not None and row[0] != self.vault.fingerprint:
            raise SecretMismatch(
                "SPENDGATE_SECRET_KEY is not the secret this database was set up with; "
                "every replica needs the same one."
            )


def _identity_provider(settings: Settings) -> IdentityProvider | None:
    if settings.oidc_issuer is None:
        return None
    return IdentityProvider(
        settings.oidc_issuer,
        settings.oidc_client_id,
        settings.oidc_client_secret,
        name=settings.oidc_name,
        scopes=settings.oidc_scopes,
    )


APIS = frozenset({"api", "v1", "livez", "readyz", "metrics"})
"""What a path begins with that is not the dashboard's."""


class Front:
    """The ASGI application: `/v1` straight to the data plane, other APIs to Litestar, the rest to
    the dashboard.

    Litestar's routing costs a call as much as its admission does (measured: 15 to 20 % of a bare
    pass-through), and the data plane uses none of it.
    """

    def __init__(
        self, door: Door, sessions: Sessions, live: Live, apis: Litestar, dashboard: Dashboard
    ) -> None:
        self.door = door
        self.live = live
        self.sessions = sessions
        self.apis = apis
        self.dashboard = dashboard

    def drain(self) -> None:
        """End what would go on for ever: the server waits for what is being answered."""
        self.live.close()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request, or the lifespan."""
        if scope["type"] == "http" and scope["path"].startswith("/v1/"):
            await self.door(scope, receive, send)
        elif scope["type"] == "websocket" and scope["path"].rstrip("/") == "/v1/realtime":
            await self.sessions.handle(scope, receive, send)
        elif scope["type"] == "http" and _first(scope["path"]) not in APIS:
            await self.dashboard(scope, receive, send)
        else:
            await self.apis(scope, receive, send)


def _first(path: str) -> str:
    # `OPTIONS *` has a path without a slash.
    return path.partition("/")[2].partition("/")[0]


def create_app(settings: Settings, database_url: str) -> Front:
    """Make the ASGI application of one process."""
    gateway = Gateway(settings, database_url)

    @get("/livez", include_in_schema=False, sync_to_thread=False)
    def livez() -> dict[str, str]:
        return {"status": "alive"}

    @get("/readyz", include_in_schema=False)
    async def readyz() -> Response[dict[str, str]]:
        try:
            async with gateway.pool.connection(timeout=2) as connection:
                with hung_up_after(connection, 2):
                    await connection.execute("SELECT 1")
        except (psycopg.Error, OSError):
            return Response({"status": "the database is away"}, status_code=503)
        if gateway.directory.version < 0:
            return Response({"status": "loading"}, status_code=503)
        return Response({"status": "ready"})

    @get("/metrics", include_in_schema=False, sync_to_thread=False)
    def metrics() -> Response[bytes]:
        _observe(gateway)
        return Response(_exposition(), media_type=CONTENT_TYPE_LATEST)

    @contextlib.asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        await gateway.start()
        observing = asyncio.create_task(_observe_always(gateway), name="metrics")
        try:
            yield
        finally:
            observing.cancel()
            await gateway.stop()

    control = control_router(
        ControlDeps(
            database=gateway.database,
            vault=gateway.vault,
            calendar=gateway.calendar,
            directory=gateway.directory,
            clock=lambda: datetime.now(UTC),
            live=gateway.live,
            ledger=lambda: LedgerHealth(gateway.ledger.available, gateway.spool.pending),
            look=gateway.upstream.look,
            receivers=gateway.receivers,
            mailer=gateway.mailer,
            trusted_proxies=settings.trusted_proxies,
            identity_provider=gateway.identity_provider,
            identity_rules=IdentityRules(settings.oidc_domains, settings.oidc_link_members),
        )
    )
    apis = Litestar(
        route_handlers=[control, livez, readyz, metrics],
        lifespan=[lifespan],
        openapi_config=OpenAPIConfig(
            title="Spendgate",
            version=app.__version__,
            description="An AI gateway that never overspends.",
            path="/api/schema",
            components=Components(
                security_schemes={
                    "bearer": SecurityScheme(type="http", scheme="bearer"),
                    "session": SecurityScheme(
                        type="apiKey",
                        security_scheme_in="cookie",
                        name=COOKIE,
                        description=(
                            f"Over https it is named {SECURE_COOKIE}. Whatever changes something "
                            f"needs the session's `csrf_token` in the header {CSRF_HEADER}."
                        ),
                    ),
                }
            ),
            render_plugins=[SwaggerRenderPlugin()],
        ),
        # What routing itself refuses under /api never reaches the router.
        exception_handlers=CONTROL_EXCEPTION_HANDLERS,
        logging_config=None,
        debug=False,
    )
    return Front(gateway.door, gateway.sessions, gateway.live, apis, Dashboard())


def _observe(gateway: Gateway) -> None:
    SPOOLED.set(gateway.spool.pending)
    LEDGER_UP.set(gateway.ledger.available)
    BATCHES.set(gateway.ledger.batches)
    OPERATIONS.set(gateway.ledger.operations)


async def _observe_always(gateway: Gateway) -> None:
    """Keep the gauges current: with several processes, another one may be asked for ours."""
    while True:
        _observe(gateway)
        await asyncio.sleep(OBSERVED_EVERY_S)


def _exposition() -> bytes:
    """The metrics of this process or, if it is one of several, of all of them."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest()
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def from_environment() -> Front:
    """Make the application from the environment: how each serving process starts."""
    settings = Settings.from_env()
    assert settings.database_url is not None, "the parent process sets the database's address"
    return create_app(settings, settings.database_url)
