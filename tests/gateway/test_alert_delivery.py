"""Alerts arrive: signed, retried, under one id, past receivers that fail and processes that die.

The servers here have a database of their own, since every server's worker takes part in sending:
webhooks may go to 127.0.0.2 and nowhere else inside, and a failed try is repeated within moments.
`announced` writes an event as a settlement would, `Receiver` is a webhook's other end, `hook` is a
destination that leads to it, and `arrived` waits for what it is sent. To cross a threshold by real
calls, take `house.tenant(house.model(DIME), key={"alert_threshold": 15, "alert_webhook":
receiver.url})`, let it chat with `max_tokens=10`, and look at `receiver.arrived(1)`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from aiosmtpd.controller import Controller
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from psycopg_pool import AsyncConnectionPool
from pyreqwest.exceptions import ConnectError
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

import app.delivery
from app.ids import uuid7
from app.mail import Mailer, Undelivered
from app.receivers import Receivers
from app.settings import MailServer
from app.simulator import RunningSimulator
from app.store.deliveries import Due
from app.store.postgres import EmbeddedPostgres
from app.store.vault import Vault
from tests.gateway.kit import DIME, House, Json, Server, eventually, served

INSIDE = "127.0.0.2"
"""The one address inside that the settings open."""


class Mailbox:
    """A mail server, and what was handed in."""

    def __init__(self) -> None:
        self.letters: list[Any] = []
        self.refuses: set[str] = set()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._controller = Controller(self, hostname="127.0.0.1", port=self.port)
        self._controller.start()

    async def handle_RCPT(
        self, server: Any, session: Any, envelope: Any, address: str, options: Any
    ) -> str:
        if address in self.refuses:
            return "550 no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.letters.append((envelope, message_from_bytes(envelope.content, policy=policy.default)))
        return "250 accepted"

    def close(self) -> None:
        self._controller.stop()


@pytest.fixture(scope="module")
def mailbox() -> Iterator[Mailbox]:
    mailbox = Mailbox()
    yield mailbox
    mailbox.close()


@pytest.fixture(scope="module")
def estate(
    postgres: EmbeddedPostgres,
    template: str,
    provider: RunningSimulator,
    mailbox: Mailbox,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[House]:
    """A house whose server alone sends alerts."""
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE alerts TEMPLATE {template} STRATEGY file_copy")
    dsn = postgres.dsn_of("alerts")
    server = Server(
        tmp_path_factory.mktemp("alerts") / "server",
        dsn,
        webhook_private_cidrs=f"{INSIDE}/32",
        webhook_retry_s="0.2",
        smtp_url=f"smtp://127.0.0.1:{mailbox.port}",
        smtp_from="gateway@example.org",
    ).start()
    house = House(server, dsn, provider)
    yield house
    house.close()


class Request(NamedTuple):
    """What a receiver was sent."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


class Receiver:
    """The other end of a webhook, which answers as a test wants."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.answer: Callable[[Any], None] = answering(204)
        self.closing = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver.requests.append(Request(self.path, headers, body, time.monotonic()))
                # Who was killed, or gave up, does not listen.
                with contextlib.suppress(OSError):
                    receiver.answer(self)

            def log_message(self, *args: Any) -> None:
                """Say nothing."""

        class Server(ThreadingHTTPServer):
            def handle_error(self, *args: Any) -> None:
                """Say nothing."""

        # On every address, so that a webhook that goes where it may not arrives.
        self._server = Server(("0.0.0.0", 0), Handler)
        self.port = self._server.server_port
        self.url = f"http://{INSIDE}:{self.port}/hook?team=1"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def hang(self, handler: Any) -> None:
        """Take a request, and never answer."""
        self.closing.wait(60)
        handler.close_connection = True

    def arrived(self, count: int, within: float = 10) -> list[Request]:
        """Return so many requests, once they are there."""
        eventually(lambda: len(self.requests) >= count, within=within, what=f"{count} webhooks")
        return self.requests[:count]

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def answering(status: int, **headers: str) -> Callable[[Any], None]:
    def answer(handler: Any) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("content-length", "0")
        handler.end_headers()

    return answer


def hanging_up(handler: Any) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def other() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture(autouse=True)
def quiet(house: House) -> Iterator[None]:
    """Let no test hear of another's events."""
    yield
    with psycopg.connect(house.dsn, autocommit=True) as connection:
        connection.execute("UPDATE destinations SET enabled = false")


# Making things happen


def execute(house: House, statement: str, *values: Any) -> None:
    with psycopg.connect(house.dsn, autocommit=True) as connection:
        connection.execute(statement, values)


def announced(house: House, kind: str = "request_raised", rule_id: str | None = None) -> Json:
    """Write an event as the transaction that it tells of does; return its id and its body."""
    id = uuid7()
    body = {"event": kind, "reason": "Größe: 10 €", "amount": "2.50", "timestamp": "2026-05-20"}
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    execute(
        house,
        "INSERT INTO events (id, kind, rule_id, body) VALUES (%s, %s, %s, %s)",
        id,
        kind,
        rule_id,
        text,
    )
    return {"id": id, "text": text}


def hook(house: House, receiver: Receiver, *events: str, **fields: Any) -> Json:
    """Add a destination that leads to a receiver and lists some events."""
    body = {"name": "ops", "kind": "webhook", "address": receiver.url, "events": events}
    return house.api("POST", "/admin/destinations", body | fields)


def delivery(house: House, destination: Json, number: int = 0) -> Json:
    """Return a delivery to a destination, with its attempts; the newest is the first."""
    path = f"/admin/deliveries?destination_id={destination['id']}"
    found = eventually(lambda: house.api("GET", path)["items"][number:], what="a delivery")
    return house.api("GET", f"/admin/deliveries/{found[0]['id']}")


def once(house: House, destination: Json, status: str, within: float = 10) -> Json:
    """Return the delivery to a destination once it has this status."""

    def found() -> Any:
        shown = delivery(house, destination)
        return shown if shown["status"] == status else None

    return eventually(found, within=within, what=f"a {status} delivery")


def nothing_more(receiver: Receiver, count: int, during: float = 1.2) -> None:
    """Check that no more than `count` requests arrive."""
    time.sleep(during)
    assert len(receiver.requests) == count, receiver.requests


# What arrives


def test_an_event_arrives_once_as_it_was_written_and_signed(
    house: House, receiver: Receiver
) -> None:
    destination = hook(house, receiver, "request_raised")
    event = announced(house)
    [request] = receiver.arrived(1)
    assert (request.path, request.body) == ("/hook?team=1", event["text"].encode())
    assert request.headers["content-type"] == "application/json"
    assert request.headers["host"] == f"{INSIDE}:{receiver.port}"
    assert request.headers["user-agent"].startswith("Spendgate/")
    assert request.id == event["id"]
    assert abs(int(request.headers["webhook-timestamp"]) - time.time()) < 30
    signed = Webhook(destination["webhook_secret"])
    assert signed.verify(request.body, request.headers) == json.loads(event["text"])
    with pytest.raises(WebhookVerificationError):
        signed.verify(request.body + b" ", request.headers)
    shown = once(house, destination, "delivered")
    assert (shown["event_id"], shown["event"]) == (event["id"], "request_raised")
    assert shown["body"] == json.loads(event["text"])
    assert (shown["attempt_count"], shown["last_status_code"], shown["last_error"]) == (
        1,
        204,
        None,
    )
    assert shown["delivered_at"] is not None
    [attempt] = shown["attempts"]
    assert (attempt["status_code"], attempt["error"]) == (204, None)
    assert 0 <= attempt["duration_ms"] < 10_000
    nothing_more(receiver, 1)


def test_events_go_to_whoever_lists_them_and_thresholds_to_the_destination_of_their_rule(
    house: House, receiver: Receiver, other: Receiver
) -> None:
    tenant = house.tenant(house.model(DIME))
    first = hook(house, receiver, "request_raised", "allocation_exhausted")
    second = hook(house, other, "allocation_exhausted")
    off = hook(house, other, "request_raised", "allocation_exhausted", enabled=False)
    rule = house.api(
        "POST",
        "/admin/alert-rules",
        {
            "destination_id": second["id"],
            "owner": "key",
            "owner_id": tenant.key_id,
            "meter": "tokens",
            "threshold": 5,
        },
    )
    raised = announced(house)["id"]
    exhausted = announced(house, "allocation_exhausted")["id"]
    crossed = announced(house, "token_threshold_crossed", rule["id"])["id"]
    announced(house, "unpriced_model_seen")
    announced(house, "token_threshold_crossed", uuid7())
    assert {one.id for one in receiver.arrived(2)} == {raised, exhausted}
    assert {one.id for one in other.arrived(2)} == {exhausted, crossed}
    house.api("PATCH", f"/admin/alert-rules/{rule['id']}", {"enabled": False})
    announced(house, "token_threshold_crossed", rule["id"])
    nothing_more(other, 2)
    nothing_more(receiver, 2, during=0)
    assert house.sql("SELECT count(*) FROM events WHERE routed_at IS NULL") == [(0,)]
    page = house.api("GET", f"/admin/deliveries?destination_id={off['id']}")
    assert page["items"] == []
    assert once(house, first, "delivered")["attempt_count"] == 1


def test_a_trial_arrives_like_everything_else(house: House, receiver: Receiver) -> None:
    destination = hook(house, receiver)
    trial = house.api("POST", f"/admin/destinations/{destination['id']}/test")
    [request] = receiver.arrived(1)
    body = Webhook(destination["webhook_secret"]).verify(request.body, request.headers)
    assert (body["event"], body["destination_id"]) == ("test", destination["id"])
    assert request.id == trial["event_id"]
    assert once(house, destination, "delivered")["id"] == trial["id"]


def test_while_a_secret_is_changed_both_the_new_and_the_former_verify(
    house: House, receiver: Receiver
) -> None:
    destination = hook(house, receiver, "request_raised")
    path = f"/admin/destinations/{destination['id']}/rotate-secret"
    former = Webhook(destination["webhook_secret"])
    current = Webhook(house.api("POST", path)["webhook_secret"])
    announced(house)
    [request] = receiver.arrived(1)
    assert request.headers["webhook-signature"].count("v1,") == 2
    former.verify(request.body, request.headers)
    current.verify(request.body, request.headers)
    execute(house, "UPDATE destinations SET former_until = now() WHERE id = %s", destination["id"])
    announced(house)
    request = receiver.arrived(2)[1]
    current.verify(request.body, request.headers)
    with pytest.raises(WebhookVerificationError):
        former.verify(request.body, request.headers)


# Receivers that fail


@pytest.mark.parametrize(
    ("failing", "status", "error"),
    [
        (answering(500), 500, "the answer was 500"),
        (answering(404), 404, "the answer was 404"),
        (answering(302, location="/elsewhere"), 302, "redirects are not followed"),
        (answering(307, location="/elsewhere"), 307, "redirects are not followed"),
        (hanging_up, None, "the connection broke"),
    ],
    ids=["500", "404", "302", "307", "hangs up"],
)
def test_a_receiver_that_fails_is_tried_again_with_the_same_id(
    house: House,
    receiver: Receiver,
    failing: Callable[[Any], None],
    status: int | None,
    error: str,
) -> None:
    receiver.answer = failing
    destination = hook(house, receiver, "request_raised")
    event = announced(house)
    receiver.arrived(2)
    eventually(lambda: delivery(house, destination)["attempt_count"] >= 2)
    waiting = delivery(house, destination)
    assert waiting["status"] == "pending"
    assert waiting["last_status_code"] == status
    assert error in waiting["last_error"]
    receiver.answer = answering(200)
    done = once(house, destination, "delivered")
    assert (done["last_status_code"], done["last_error"]) == (200, None)
    assert all(one["status_code"] == status for one in done["attempts"][:-1])
    assert all(error in one["error"] for one in done["attempts"][:-1])
    assert {one.id for one in receiver.requests} == {event["id"]}
    assert {one.path for one in receiver.requests} == {"/hook?team=1"}
    assert len(done["attempts"]) == done["attempt_count"] == len(receiver.requests)
    for request in receiver.requests:
        Webhook(destination["webhook_secret"]).verify(request.body, request.headers)


def test_delays_between_tries_grow(house: House, receiver: Receiver) -> None:
    receiver.answer = answering(503)
    hook(house, receiver, "request_raised")
    announced(house)
    times = [one.at for one in receiver.arrived(5)]
    waits = [later - earlier for earlier, later in pairwise(times)]
    # The first delay, doubled, and up to a quarter and a round of the worker more.
    for n, wait in enumerate(waits):
        assert 0.2 * 2**n <= wait <= 0.2 * 2**n * 1.25 + 1.5


def test_a_receiver_that_is_down_gets_it_when_it_is_back(house: House) -> None:
    with socket.socket() as free:
        free.bind((INSIDE, 0))
        port = free.getsockname()[1]
        body = {"name": "down", "kind": "webhook", "address": f"http://{INSIDE}:{port}/"}
        destination = house.api(
            "POST", "/admin/destinations", body | {"events": ["request_raised"]}
        )
        event = announced(house)
        eventually(lambda: delivery(house, destination)["attempt_count"] >= 2)
        assert delivery(house, destination)["last_error"] == "no connection could be made"
    back = Receiver()
    try:
        path = f"/admin/destinations/{destination['id']}"
        house.api("PATCH", path, {"address": back.url})
        assert back.arrived(1)[0].id == event["id"]
        once(house, destination, "delivered")
    finally:
        back.close()


def test_a_receiver_that_hangs_delays_no_other_and_no_call(
    house: House, receiver: Receiver, other: Receiver
) -> None:
    receiver.answer = receiver.hang
    stuck, fine = hook(house, receiver, "request_raised"), hook(house, other, "request_raised")
    tenant = house.tenant(house.model(DIME))
    for _ in range(40):
        announced(house)
    began = time.monotonic()
    assert len({one.id for one in other.arrived(40, within=8)}) == 40
    # It is given two at a time, of which none is over yet.
    assert len(receiver.requests) == 2
    for _ in range(5):
        asked = time.monotonic()
        served(tenant.chat(max_tokens=1))
        assert time.monotonic() - asked < 2
    assert time.monotonic() - began < 10
    assert delivery(house, fine)["status"] == "delivered"
    receiver.arrived(3, within=15)
    path = f"/admin/deliveries?destination_id={stuck['id']}"
    failed = eventually(
        lambda: [one for one in house.api("GET", path)["items"] if one["attempt_count"]]
    )
    assert failed[0]["last_error"] == "no answer within 10 seconds"
    assert failed[0]["status"] == "pending"


def test_an_answer_that_never_ends_counts_by_its_status(house: House, receiver: Receiver) -> None:
    def pour(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not receiver.closing.is_set():
            handler.wfile.write(b"x" * 65_536)

    receiver.answer = pour
    destination = hook(house, receiver, "request_raised")
    announced(house)
    assert once(house, destination, "delivered", within=5)["attempt_count"] == 1


def test_what_fails_for_a_day_is_a_dead_letter_until_it_is_redelivered(
    house: House, receiver: Receiver
) -> None:
    receiver.answer = answering(500)
    destination = hook(house, receiver, "request_raised")
    event = announced(house)
    receiver.arrived(1)
    eventually(lambda: delivery(house, destination)["attempt_count"] == 1)
    execute(
        house,
        "UPDATE deliveries SET first_at = first_at - interval '1 day' WHERE destination_id = %s",
        destination["id"],
    )
    dead = once(house, destination, "dead")
    assert dead["next_at"] is None
    assert dead["last_status_code"] == 500
    tries = len(receiver.requests)
    nothing_more(receiver, tries)
    receiver.answer = answering(200)
    house.api("POST", f"/admin/deliveries/{dead['id']}/redeliver")
    done = once(house, destination, "delivered")
    assert done["attempt_count"] == tries + 1
    assert receiver.requests[-1].id == event["id"]
    # One that arrived can be sent again as well.
    house.api("POST", f"/admin/deliveries/{dead['id']}/redeliver")
    assert receiver.arrived(tries + 2)[-1].id == event["id"]
    assert once(house, destination, "delivered")["event_id"] == event["id"]


def test_while_a_destination_is_disabled_what_is_on_its_way_waits(
    house: House, receiver: Receiver
) -> None:
    receiver.answer = answering(500)
    destination = hook(house, receiver, "request_raised")
    announced(house)
    receiver.arrived(1)
    path = f"/admin/destinations/{destination['id']}"
    house.api("PATCH", path, {"enabled": False})
    eventually(lambda: delivery(house, destination)["attempt_count"] == len(receiver.requests))
    receiver.answer = answering(200)
    tries = len(receiver.requests)
    nothing_more(receiver, tries)
    house.api("PATCH", path, {"enabled": True})
    receiver.arrived(tries + 1)
    once(house, destination, "delivered")


# Processes that die


def test_a_failed_delivery_is_tried_again_by_the_next_process(
    house: House, receiver: Receiver
) -> None:
    receiver.answer = answering(500)
    destination = hook(house, receiver, "request_raised")
    event = announced(house)
    receiver.arrived(1)
    house.server.kill()
    late = announced(house)
    receiver.answer = answering(200)
    tries = len(receiver.requests)
    # The process may have died before it wrote its last try down.
    execute(house, "UPDATE deliveries SET next_at = now() WHERE status = 'pending'")
    house.server.start()
    ids = [one.id for one in receiver.arrived(tries + 2)]
    assert sorted(ids[tries:]) == sorted([event["id"], late["id"]])
    assert once(house, destination, "delivered")["status"] == "delivered"


def test_a_process_killed_while_it_sends_leaves_it_to_the_next_one_under_the_same_id(
    house: House, receiver: Receiver
) -> None:
    receiver.answer = receiver.hang
    destination = hook(house, receiver, "request_raised")
    event = announced(house)
    receiver.arrived(1)
    house.server.kill()
    receiver.answer = answering(200)
    [(ahead,)] = house.sql(
        "SELECT next_at - now() FROM deliveries WHERE destination_id = %s", destination["id"]
    )
    assert timedelta(seconds=10) < ahead <= timedelta(seconds=30)
    house.server.start()
    nothing_more(receiver, 1)
    # The lease runs out.
    execute(house, "UPDATE deliveries SET next_at = now() WHERE status = 'pending'")
    assert [one.id for one in receiver.arrived(2)] == [event["id"]] * 2
    assert once(house, destination, "delivered")["attempt_count"] == 1


def test_a_process_that_is_stopped_while_it_sends_gives_it_back_at_once(
    house: House, receiver: Receiver
) -> None:
    receiver.answer = receiver.hang
    destination = hook(house, receiver, "request_raised")
    event = announced(house)
    receiver.arrived(1)
    house.server.stop()
    receiver.answer = answering(200)
    house.server.start()
    assert [one.id for one in receiver.arrived(2, within=5)] == [event["id"]] * 2
    once(house, destination, "delivered")


# Where it may not go


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("localhost", "localhost is at a loopback address"),
        ("127.0.0.1", "127.0.0.1 is at a loopback address"),
        ("10.1.2.3", "10.1.2.3 is at a private address"),
        ("169.254.169.254", "169.254.169.254 is at the address of a cloud's metadata service"),
        ("[::ffff:127.0.0.1]", "is at a loopback address, 127.0.0.1, inside an IPv6 address"),
        ("no-such-host.invalid", "no-such-host.invalid has no address"),
    ],
)
def test_where_a_name_leads_is_judged_again_when_it_is_sent(
    house: House, receiver: Receiver, host: str, why: str
) -> None:
    destination = hook(house, receiver, "request_raised")
    # As if its name had led to another address when it was saved.
    execute(
        house,
        "UPDATE destinations SET address = %s WHERE id = %s",
        f"http://{host}:{receiver.port}/hook",
        destination["id"],
    )
    announced(house)
    eventually(lambda: delivery(house, destination)["attempt_count"])
    shown = delivery(house, destination)
    assert shown["status"] == "pending"
    assert why in shown["last_error"]
    assert shown["last_status_code"] is None
    assert receiver.requests == []


async def test_the_connection_goes_to_the_address_that_was_judged_under_its_own_name(
    receiver: Receiver, tmp_path: Path
) -> None:
    # The name is known to nobody else: a second look-up would find nothing.
    client = app.delivery._client("hooks.example", "127.0.0.1", receiver.port)
    url = f"http://hooks.example:{receiver.port}/x"
    assert await app.delivery._answered(client, url, {"webhook-id": "e"}, "{}") == 204
    await client.close()
    [request] = receiver.requests
    assert request.headers["host"] == f"hooks.example:{receiver.port}"
    named: list[str] = []
    with tls(tmp_path, named) as port:
        client = app.delivery._client("hooks.example", "127.0.0.1", port)
        # Nobody vouches for its certificate.
        with pytest.raises(ConnectError):
            await app.delivery._answered(client, f"https://hooks.example:{port}/", {}, "{}")
        await client.close()
    assert named == ["hooks.example"]


@contextlib.contextmanager
def tls(directory: Path, named: list[str]) -> Iterator[int]:
    """Listen for one TLS connection, and note by which name it asks."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hooks.example")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = directory / "pem"
    pem.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    context.sni_callback = lambda connection, host, _: named.append(str(host))  # type: ignore[assignment]
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def shake_hands() -> None:
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                context.wrap_socket(connection, server_side=True).close()

        thread = threading.Thread(target=shake_hands)
        thread.start()
        yield listening.getsockname()[1]
        thread.join()


# By mail


def test_an_alert_is_mailed(house: House, mailbox: Mailbox) -> None:
    body = {"name": "on call", "kind": "email", "address": "on.call@example.org"}
    destination = house.api("POST", "/admin/destinations", body)
    trial = house.api("POST", f"/admin/destinations/{destination['id']}/test")
    done = once(house, destination, "delivered")
    assert (done["last_status_code"], done["attempt_count"]) == (250, 1)
    [(envelope, letter)] = mailbox.letters
    assert (envelope.mail_from, envelope.rcpt_tos) == (
        "gateway@example.org",
        ["on.call@example.org"],
    )
    assert letter["subject"] == "Spendgate: a test, and it arrived"
    assert (letter["from"], letter["to"]) == ("gateway@example.org", "on.call@example.org")
    assert letter["message-id"] == f"<{trial['event_id']}@spendgate>"
    assert f"destination_id: {destination['id']}" in letter.get_content()
    mailbox.letters.clear()


def test_a_mail_that_is_refused_is_tried_again(house: House, mailbox: Mailbox) -> None:
    address = "gone@example.org"
    mailbox.refuses.add(address)
    body = {"name": "on call", "kind": "email", "address": address}
    destination = house.api("POST", "/admin/destinations", body)
    house.api("POST", f"/admin/destinations/{destination['id']}/test")
    eventually(lambda: delivery(house, destination)["attempt_count"] >= 2)
    failed = delivery(house, destination)
    assert (failed["status"], failed["last_status_code"]) == ("pending", 550)
    assert failed["last_error"] == "the mail server refused the recipient"
    mailbox.refuses.clear()
    once(house, destination, "delivered")
    assert [envelope.rcpt_tos for envelope, _ in mailbox.letters] == [[address]]
    mailbox.letters.clear()


async def test_a_password_is_not_sent_to_a_mail_server_that_offers_no_tls() -> None:
    heard: list[bytes] = []

    left = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        while line := await reader.readline():
            heard.append(line)
            hello = line.upper().startswith(b"EHLO")
            writer.write(b"250-mail.example\r\n250 AUTH PLAIN\r\n" if hello else b"250 OK\r\n")
        writer.close()
        await writer.wait_closed()
        left.set()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    sending = app.delivery.Delivery(
        AsyncConnectionPool(open=False),
        Vault(b"secret"),
        Receivers(),
        retry_s=1,
        mailer=Mailer(
            MailServer("127.0.0.1", port, False, "spendgate", "hunter2"), "gateway@example.org"
        ),
    )
    now = datetime.now(UTC)
    body = '{"event":"test","destination_id":"d","timestamp":"2026-05-20T00:00:00Z"}'
    address = "on.call@example.org"
    due = Due("d", "e", "t", body, "email", address, None, 1, None, None, 0, now, now, now)
    with pytest.raises(Undelivered, match="could not be reached, or broke off"):
        await sending._mail(due)
    await left.wait()
    listening.close()
    await listening.wait_closed()
    assert heard[0].upper().startswith(b"EHLO")
    assert not any(line.upper().startswith((b"AUTH", b"MAIL")) for line in heard)


# From a call to a receiver


def test_a_key_tells_its_webhook_once_that_its_threshold_is_crossed(
    house: House, receiver: Receiver
) -> None:
    tenant = house.tenant(
        house.model(DIME), key={"alert_threshold": 30, "alert_webhook": receiver.url}
    )
    # Ten tokens of its prompt and ten of its answer.
    served(tenant.chat(max_tokens=10))
    nothing_more(receiver, 0)
    served(tenant.chat(max_tokens=10))
    [request] = receiver.arrived(1)
    body = json.loads(request.body)
    assert list(body) == [
        "event",
        "key_id",
        "allocation_id",
        "service",
        "threshold",
        "total_tokens",
        "limit",
        "window",
        "period",
        "timestamp",
    ]
    assert (body["event"], body["key_id"]) == ("token_threshold_crossed", tenant.key_id)
    assert (body["threshold"], body["total_tokens"], body["window"]) == (30, 40, "lifetime")
    assert (body["limit"], body["period"]) == (None, None)
    served(tenant.chat(max_tokens=10))
    nothing_more(receiver, 1)
    shown = tenant.get("/v1/key").json()
    # Its path may be a secret, which is the admins'.
    assert (shown["alert_threshold"], shown["alert_webhook"]) == (30, f"http://{INSIDE}/…")
