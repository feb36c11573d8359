"""Delivery: alerts leave the house.

Owns the rounds that route events to destinations and try what is due, and the signing and the
sending of a webhook. Owns no letter's way (see `app.mail`), no queue (see `store.deliveries`), no
decision of when to try again or where one may not go (see `core.alerts`), and no event.

Invariants:

- At least once, and always under the event's id: a receiver that has seen it may forget it.
- A receiver that is slow, or hangs, delays nobody else: some tries at a time for each destination,
  each over within seconds. Calls never wait for any of this.
- A webhook goes to an address that was judged, and to no other: no second look-up, no redirect, no
  proxy. Only the head of the answer counts, and nothing of it is kept but the status.
- No error holds an address, a secret or what a receiver said.
"""

import asyncio
import random
import time
from datetime import timedelta
from typing import Any

import msgspec
import psycopg
import structlog
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from pyreqwest.client import Client, ClientBuilder
from pyreqwest.exceptions import ConnectError, ConnectTimeoutError, PyreqwestError
from pyreqwest.http import Url
from standardwebhooks.webhooks import Webhook

import app
from app.core.alerts import Body, InvalidWebhookUrl, check_webhook_url, next_attempt
from app.core.letters import letter
from app.mail import SEND_S, Mailer, Undelivered
from app.receivers import Forbidden, Receivers, Unknown
from app.store import deliveries
from app.store.deliveries import Due, Outcome
from app.store.vault import Vault
from app.tasks import cancelled

log = structlog.get_logger(__name__)

EVERY_S = 0.5
CONNECT_S = 4.0
"""Of the seconds of a try, so that a name's next address has some as well."""
AT_ONCE = 32
AT_ONCE_EACH = 2
ROUND_S = 15.0
LAST_WORDS_S = 2.0
"""What a try may still take when the process is told to stop."""


class Delivery:
    """The deliveries of one process."""

    def __init__(
        self,
        pool: AsyncConnectionPool[Any],
        vault: Vault,
        receivers: Receivers,
        *,
        retry_s: float,
        mailer: Mailer | None,
    ) -> None:
        self.pool = pool
        self.vault = vault
        self.receivers = receivers
        self.retry_s = retry_s
        self.mailer = mailer
        self._rounds: asyncio.Task[None] | None = None
        self._running: dict[asyncio.Task[None], Due] = {}
        self._awake = asyncio.Event()

    async def start(self) -> None:
        """Start the rounds."""
        self._rounds = asyncio.create_task(self._always(), name="delivery")

    async def stop(self) -> None:
        """Stop: tries under way have a moment, and what they leave undone another may do."""
        await cancelled([self._rounds])
        left = dict(self._running)
        if left:
            await asyncio.wait(left, timeout=LAST_WORDS_S)
            broken_off = [due for task, due in left.items() if not task.done()]
            await cancelled(left)
            try:
                async with asyncio.timeout(LAST_WORDS_S), self.pool.connection() as connection:
                    await deliveries.release(connection, broken_off)
            except (psycopg.Error, PoolTimeout, OSError, TimeoutError):
                log.debug("deliveries_left", count=len(broken_off))

    async def _always(self) -> None:
        while True:
            self._awake.clear()
            try:
                async with asyncio.timeout(ROUND_S):
                    await self._round()
            except (psycopg.Error, PoolTimeout, OSError, TimeoutError) as error:
                log.debug("delivery_broken_off", error=type(error).__name__)
                await asyncio.sleep(EVERY_S)
            except Exception:
                log.exception("delivery_failed")
                await asyncio.sleep(EVERY_S)
            # A hand that is free again looks for work at once.
            try:
                async with asyncio.timeout(EVERY_S):
                    await self._awake.wait()
            except TimeoutError:
                continue

    async def _round(self) -> None:
        """Route what is new, and begin with what is due."""
        async with self.pool.connection() as connection:
            while await deliveries.route(connection) == deliveries.ROUTED_MAX:
                pass
            free = AT_ONCE - len(self._running)
            if free <= 0:
                return
            running = list(self._running.values())
            for due in await deliveries.take(connection, free, AT_ONCE_EACH, running):
                task = asyncio.create_task(self._deliver(due), name=f"delivery {due.id}")
                self._running[task] = due
                task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._awake.set()

    async def _deliver(self, due: Due) -> None:
        """Try once, and write down how it went."""
        began = time.monotonic()
        outcome = await self._tried(due, began)
        next_at = None
        if outcome.error is not None:
            now = due.taken_at + timedelta(seconds=time.monotonic() - began)
            attempt = due.attempts + 1
            next_at = next_attempt(attempt, self.retry_s, due.first_at, now, random.random())
            level = log.warning if next_at is None else log.info
            level(
                "alert_not_delivered",
                delivery_id=due.id,
                destination_id=due.destination_id,
                attempt=attempt,
                error=outcome.error,
                dead=next_at is None,
            )
        try:
            async with asyncio.timeout(ROUND_S), self.pool.connection() as connection:
                await deliveries.write_down(connection, due, outcome, next_at)
        except (psycopg.Error, PoolTimeout, OSError, TimeoutError) as error:
            # The lease runs out, and it is sent again under the same id.
            log.warning("delivery_not_recorded", delivery_id=due.id, error=type(error).__name__)

    async def _tried(self, due: Due, began: float) -> Outcome:
        status_code: int | None = None
        error: str | None = None
        try:
            async with asyncio.timeout(SEND_S):
                send = self._post if due.kind == "webhook" else self._mail
                status_code = await send(due)
        except Undelivered as undelivered:
            status_code, error = undelivered.status_code, str(undelivered)
        except TimeoutError:
            error = f"no answer within {SEND_S:g} seconds"
        except Exception:
            log.exception("delivery_failed", delivery_id=due.id)
            error = "it could not be sent, for a reason that the log tells"
        return Outcome(status_code, error, round((time.monotonic() - began) * 1000))

    async def _post(self, due: Due) -> int:
        """Send a webhook; return the status of the answer. Raises `Undelivered`."""
        try:
            receiver = check_webhook_url(due.address)
            addresses = await self.receivers.addresses(receiver)
        except (InvalidWebhookUrl, Forbidden, Unknown) as error:
            raise Undelivered(str(error)) from None
        # The library must see the very host that was looked up, or it would look up another.
        if Url(due.address).host_str != _bracketed(receiver.host):
            raise Undelivered("the host of the URL can be read in two ways")
        headers = self._headers(due)
        for n, address in enumerate(addresses, start=1):
            client = _client(receiver.host, address, receiver.port)
            try:
                status = await _answered(client, due.address, headers, due.body)
            except PyreqwestError as error:
                if not _unconnected(error):
                    raise Undelivered("the connection broke before an answer came") from None
                # Nothing was sent yet, so that the next address may be tried.
                if n == len(addresses):
                    raise Undelivered("no connection could be made") from None
                continue
            finally:
                await client.close()
            if 300 <= status < 400:
                raise Undelivered(f"the answer was {status}: redirects are not followed", status)
            if not 200 <= status < 300:
                raise Undelivered(f"the answer was {status}", status)
            return status
        raise Undelivered("the host has no address")

    def _headers(self, due: Due) -> dict[str, str]:
        sealed = [(due.secret, due.secret_version)]
        if due.former_version is not None:
            sealed.append((due.former_secret, due.former_version))
        secrets = [
            self.vault.unseal(secret, due.destination_id, version)
            for secret, version in sealed
            if secret is not None
        ]
        at = due.taken_at
        signed = [Webhook(secret).sign(due.event_id, at, due.body) for secret in secrets]
        return {
            "content-type": "application/json",
            "user-agent": f"Spendgate/{app.__version__}",
            "webhook-id": due.event_id,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": " ".join(signed),
        }

    async def _mail(self, due: Due) -> int:
        """Mail a letter; return the mail server's status. Raises `Undelivered`."""
        if self.mailer is None:
            raise Undelivered("no mail server is set (SPENDGATE_SMTP_URL)")
        written = letter(msgspec.json.decode(due.body, type=Body))
        return await self.mailer.send(written, to=due.address, id=due.event_id, at=due.taken_at)


def _client(host: str, address: str, port: int) -> Client:
    """Make a client that finds a host at one address, whatever is said of it elsewhere."""
    return (
        ClientBuilder()
        .http1_only()
        .no_proxy()
        .follow_redirects(False)
        .referer(False)
        .default_cookie_store(False)
        .connect_timeout(timedelta(seconds=CONNECT_S))
        .resolve(host, address, port)
        .build()
    )


async def _answered(client: Client, url: str, headers: dict[str, str], body: str) -> int:
    """Post, and return the status of the answer; what it says besides is not read."""
    request = client.post(url).headers(headers).body_bytes(body.encode())
    async with request.streamed_read_buffer_limit(0).build_streamed() as response:
        return response.status


def _unconnected(error: PyreqwestError) -> bool:
    """Tell whether there was no connection: the library says the same of one that broke."""
    if isinstance(error, ConnectTimeoutError):
        return True
    causes = error.details["causes"] if isinstance(error, ConnectError) else None
    return any(cause["message"] == "client error (Connect)" for cause in causes or ())


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
