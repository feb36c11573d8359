"""How realtime sessions end, whoever ends them: billed once, with the reason, and told why."""

from __future__ import annotations

import contextlib
import socket as sockets
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection

from app.gateway import exchange, realtime
from app.main import create_app
from app.settings import Settings
from tests.gateway.kit import (
    CENT,
    PROVIDER_KEY,
    REALTIME,
    SECRET,
    Closed,
    House,
    Json,
    Server,
    Tenant,
    Wild,
    conversation,
    eventually,
    last_session,
    only_call,
    say,
    session,
    talker,
    transcriber,
    transcription,
)


def ended(call: Json) -> tuple[str, str]:
    return call["outcome"], call["close_reason"]


@contextlib.contextmanager
def in_this_process(
    house: House, directory: Path, *, environment: dict[str, str] | None = None, **options: Any
) -> Iterator[tuple[Server, uvicorn.Server]]:
    """Serve from a thread of this process: what is in it can be looked at, and put in its way."""
    variables = {"SPENDGATE_SECRET_KEY": SECRET, "SPENDGATE_DATA_DIR": str(directory)}
    settings = Settings.from_env(variables | (environment or {}))
    config = uvicorn.Config(
        create_app(settings, house.dsn), port=0, ws="websockets-sansio", log_config=None, **options
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    eventually(lambda: server.started)
    found = Server(directory, house.dsn)
    port = server.servers[0].sockets[0].getsockname()[1]
    found.url = f"http://127.0.0.1:{port}"
    try:
        yield found, server
    finally:
        server.should_exit = True
        thread.join()


# The client


def test_a_client_that_closes_cleanly_has_ended_normally(house: House) -> None:
    for code in (1000, 1001, 4000):
        tenant = house.tenant(transcriber(house), usd="1")
        with transcription(tenant) as socket:
            socket.append(2.5)
            eventually(lambda: last_session(house).audio_seconds == 2.5)
            socket.connection.close(code)
        call = only_call(tenant)
        assert ended(call) == ("success", "normal")
        assert (call["cost_usd"], call["status_code"]) == ("0.025", 101)
        eventually(lambda: house.sim.calls[-1].ended == "client_left")


def test_a_client_that_vanishes_pays_for_what_was_relayed(house: House) -> None:
    tenant = house.tenant(transcriber(house), usd="1")
    with transcription(tenant) as socket:
        socket.append(2.5)
        eventually(lambda: last_session(house).audio_seconds == 2.5)
        socket.abort()
        call = only_call(tenant)
    assert ended(call) == ("client_disconnected", "client_disconnected")
    assert call["cost_usd"] == "0.025"
    eventually(lambda: house.sim.calls[-1].ended == "client_left")


def test_a_client_that_says_nothing_is_closed(house: House, impatient: Server) -> None:
    tenant = house.tenant(transcriber(house), talker(house), usd="1")
    hears, talks = tenant.models
    for query in (f"intent=transcription&model={hears}", f"model={talks}", "intent=transcription"):
        began = time.monotonic()
        with session(tenant, query, server=impatient) as socket:
            socket.refused("first_frame_timeout")
        assert 0.9 < time.monotonic() - began < 3
    assert [ended(call) for call in tenant.calls()] == [("client_disconnected",) * 2] * 3


def test_a_client_that_stops_listening_is_dropped(
    house: House, wild: Wild, impatient: Server
) -> None:
    """With what it has not taken: else it would be kept for as long as it likes."""
    flooding = threading.Event()

    def flood(connection: ServerConnection) -> None:
        try:
            while True:
                connection.send('{"type":"x","data":"' + "z" * 100_000 + '"}')
        except ConnectionClosed:
            flooding.set()

    wild.act = flood
    tenant = wild.tenant(house, usd="1")
    with session(tenant, server=impatient, max_queue=1, ping_interval=None) as socket:
        socket.append(1)
        call = only_call(tenant)
        assert ended(call) == ("client_disconnected",) * 2
        assert call["cost_usd"] == "0.01"
        assert flooding.wait(5)
        assert socket.end()[0] == 1006


def test_a_client_that_stops_listening_does_not_keep_its_session_by_what_it_has_not_taken(
    house: House, wild: Wild, tmp_path: Path
) -> None:
    """Too little is left for anybody to wait until it is taken, and the provider says no more."""
    carriers: list[Any] = []
    full = threading.Event()

    def left() -> bool:
        return any(carrier.get_write_buffer_size() for carrier in carriers)

    def fill(connection: ServerConnection) -> None:
        looks = 0
        while looks < 60:
            looks = looks + 1 if left() else 0
            if not looks:
                connection.send('{"type":"x","data":"' + "z" * 10_000 + '"}')
            time.sleep(0.01)
        full.set()
        connection.recv()
        connection.recv()

    wild.act = fill
    tenant = wild.tenant(house, usd="1")
    waits = {"SPENDGATE_UPSTREAM_TIMEOUT_S": "1"}
    pings = {"ws_ping_interval": 2.0, "ws_ping_timeout": 2.0}
    with (
        in_this_process(house, tmp_path, environment=waits, **pings) as (found, server),
        sockets.socket() as small,
    ):
        small.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
        small.connect(server.servers[0].sockets[0].getsockname())
        with session(tenant, server=found, sock=small, max_queue=1, ping_interval=None) as socket:
            socket.append(1)
            carriers += [c.transport for c in server.server_state.connections]
            for carrier in carriers:
                carrier.get_extra_info("socket").setsockopt(
                    sockets.SOL_SOCKET, sockets.SO_SNDBUF, 4096
                )
            assert full.wait(10)
            call = only_call(tenant)
            assert ended(call) == ("client_disconnected",) * 2
            assert call["cost_usd"] == "0.01"


def test_a_client_that_listens_slowly_is_not_taken_for_a_provider_that_is_gone(
    house: House, wild: Wild, impatient: Server
) -> None:
    """The answers to our pings stand behind what the client has yet to take."""
    frames = 120

    def pour(connection: ServerConnection) -> None:
        for _ in range(frames):
            connection.send('{"type":"x","data":"' + "z" * 100_000 + '"}')
        connection.recv()
        connection.recv()

    wild.act = pour
    tenant = wild.tenant(house, usd="1")
    with sockets.socket() as small:
        small.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 2**16)
        small.connect(("127.0.0.1", int(impatient.url.rpartition(":")[2])))
        with session(tenant, server=impatient, sock=small, max_queue=1) as socket:
            socket.append(1)
            socket.until("session.created")
            for _ in range(frames):
                assert socket.next() is not None, socket.closed
                time.sleep(0.05)
    call = only_call(tenant)
    assert ended(call) == ("success", "normal")
    assert call["cost_usd"] == "0.01"


# The provider

PROVIDER_ENDS: dict[str, tuple[dict[str, Any], Closed, tuple[str, str]]] = {
    "closes cleanly": ({"close": "bytes:48000"}, (1000, ""), ("success", "normal")),
    "goes away": (
        {"close": "bytes:48000", "close_code": 1001},
        (1001, ""),
        ("success", "normal"),
    ),
    "closes in anger": (
        {"close": "bytes:48000", "close_code": 1008},
        (1011, "upstream_error"),
        ("upstream_error", "upstream_error"),
    ),
    "closes with a code of its own": (
        {"close": "bytes:48000", "close_code": 4001},
        (4001, "upstream_error"),
        ("upstream_error", "upstream_error"),
    ),
    "hangs up": (
        {"disconnect": "bytes:48000"},
        (1011, "upstream_error"),
        ("upstream_error", "upstream_error"),
    ),
    "falls silent": (
        {"stall": "bytes:48000"},
        (1011, "upstream_error"),
        ("upstream_error", "upstream_error"),
    ),
    "fails": (
        {"error_event": "bytes:48000", "leak": True},
        (1011, "upstream_error"),
        ("upstream_error", "upstream_error"),
    ),
}


@pytest.mark.parametrize("how", PROVIDER_ENDS)
def test_when_the_provider_ends_a_session_it_is_billed(
    house: House, impatient: Server, how: str
) -> None:
    knobs, close, end = PROVIDER_ENDS[how]
    house.sim.set(**knobs)
    tenant = house.tenant(transcriber(house), usd="1")
    with transcription(tenant, server=impatient) as socket:
        socket.append(1)
        assert socket.end() == close
    if end[0] != "success":
        assert socket.seen[-1]["error"]["code"] == "upstream_error"
    call = only_call(tenant)
    assert ended(call) == end
    assert call["cost_usd"] == "0.01"


def test_a_provider_that_refuses_the_handshake_is_quoted_without_its_secrets(
    house: House,
) -> None:
    for status, close in ((401, 1008), (429, 1008), (503, 1011)):
        tenant = house.tenant(talker(house), usd="1")
        house.sim.set(status=status, message=f"no, said {PROVIDER_KEY}", leak=True)
        with session(tenant) as socket:
            assert socket.end() == (close, "upstream_error")
        [event] = socket.seen
        assert str(status) in event["error"]["message"]
        call = only_call(tenant)
        for said in (event["error"]["message"], call["error_message"]):
            assert PROVIDER_KEY not in said
            assert f":{house.sim.port}" not in said
        assert "no, said [redacted]" in call["error_message"]
        assert ended(call) == ("upstream_error", "upstream_error")
        assert call["cost_usd"] == "0.00"


def test_a_redirect_is_not_followed_with_the_credential(house: House) -> None:
    tenant = house.tenant(talker(house), usd="1")
    house.sim.set(status=302)
    with session(tenant) as socket:
        assert socket.end() == (1011, "upstream_error")
    assert len(house.sim.calls) == 1
    assert "302" in only_call(tenant)["error_message"]


def test_what_a_provider_says_of_itself_is_redacted(house: House, wild: Wild) -> None:
    port = 0

    def leak(connection: ServerConnection) -> None:
        connection.send('{"type":"x","data":"' + PROVIDER_KEY + '"}')
        connection.send(f'{{"type":"error","error":{{"message":"at 127.0.0.1:{port}"}}}}')
        connection.send(f'{{"type":"error","error":{{"message":"{PROVIDER_KEY[:5]}***Zx9"}}}}')
        connection.send(f'{{"type":"x","data":"127.0.0.1:{port}"}}')
        connection.close(1011, f"127.0.0.1:{port} {PROVIDER_KEY}")

    wild.act = leak
    tenant = wild.tenant(house, usd="1")
    port = wild.port
    with session(tenant) as socket:
        assert socket.end() == (1011, "upstream_error")
    shown = str(socket.seen)
    assert PROVIDER_KEY not in shown
    assert PROVIDER_KEY[:5] not in shown
    assert shown.count(f"127.0.0.1:{port}") == 1, "what is no error is not ours to change"
    message = only_call(tenant)["error_message"]
    assert "[redacted] [redacted]" in message


def test_a_provider_that_cannot_be_reached_or_does_not_answer(
    house: House, impatient: Server
) -> None:
    with sockets.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for url in (f"http://127.0.0.1:{silent.getsockname()[1]}/v1", "http://127.0.0.1:9/v1"):
            provider = house.provider("compatible", base_url=url)
            model = house.model(CENT, provider_id=provider, **REALTIME)
            tenant = house.tenant(model, usd="1")
            with session(tenant, server=impatient) as socket:
                assert socket.end() == (1011, "upstream_error")
            assert url not in str(socket.seen)
            assert socket.seen[-1]["error"]["code"].startswith("upstream_")
            call = only_call(tenant)
            assert ended(call) == ("upstream_error", "upstream_error")
            assert call["cost_usd"] == "0.00"


def test_a_provider_without_a_credential_is_not_connected(house: House) -> None:
    tenant = house.tenant(talker(house, provider_id=house.provider(api_key=None)))
    with session(tenant) as socket:
        socket.refused("provider_unavailable")
    assert only_call(tenant)["outcome"] == "rejected_unavailable"
    assert house.sim.calls == []


# The administrator


def _revoke(tenant: Tenant) -> None:
    tenant.house.api("POST", f"/admin/keys/{tenant.key_id}/revoke", {})


def _rotate(tenant: Tenant) -> None:
    tenant.house.api("POST", f"/admin/keys/{tenant.key_id}/rotate", {})


def _disable(tenant: Tenant) -> None:
    tenant.house.api("PATCH", f"/admin/members/{tenant.member_id}", {"status": "disabled"})


def _pause(tenant: Tenant) -> None:
    tenant.change(status="paused")


def _take_the_model_away(tenant: Tenant) -> None:
    tenant.change(models=[transcriber(tenant.house)])


TURNED_OFF = {
    _revoke: "invalid_api_key",
    _rotate: "invalid_api_key",
    _disable: "member_disabled",
    _pause: "allocation_paused",
    _take_the_model_away: "model_mismatch",
}


@pytest.mark.parametrize("act", TURNED_OFF, ids=lambda act: act.__name__[1:])
@pytest.mark.parametrize("rates", [CENT, None], ids=["priced", "unpriced"])
def test_a_session_ends_when_its_key_member_or_allocation_does(
    house: House, second_server: Server, act: Any, rates: Any
) -> None:
    tenant = house.tenant(transcriber(house, rates), usd="1")
    with transcription(tenant, server=second_server) as socket:
        socket.append(1)
        eventually(lambda: last_session(house).audio_seconds == 1)
        act(tenant)
        told = time.monotonic()
        socket.refused(TURNED_OFF[act])
        assert socket.closed == (1008, "revoked")
        assert time.monotonic() - told < 2
    call = only_call(tenant)
    assert ended(call) == ("cut_off", "revoked")
    assert call["usage"]["second"] == 1
    assert call["cost_usd"] == (None if rates is None else "0.01")


def test_an_unpriced_session_ends_when_that_is_allowed_no_more(house: House) -> None:
    tenant = house.tenant(transcriber(house, None))
    with transcription(tenant) as socket:
        socket.append(1)
        eventually(lambda: last_session(house).audio_seconds == 1)
        tenant.change(unpriced="deny")
        socket.refused("model_unpriced")
        assert socket.closed == (1008, "revoked")
    assert ended(only_call(tenant)) == ("cut_off", "revoked")


def test_a_session_is_killed_while_its_provider_is_still_being_connected(house: House) -> None:
    with sockets.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        provider = house.provider("compatible", base_url=url)
        tenant = house.tenant(house.model(CENT, provider_id=provider, **REALTIME), usd="1")
        with session(tenant) as socket:
            [found] = eventually(lambda: listed(house))
            _delete(house, found["id"], house.server)
            socket.refused("session_killed", timeout=3)
    call = only_call(tenant)
    assert (ended(call), call["cost_usd"]) == (("cut_off", "killed"), "0.00")


def test_a_session_ends_when_its_key_expires(house: House) -> None:
    tenant = house.tenant(transcriber(house), usd="1")
    soon = datetime.now(UTC) + timedelta(seconds=1.5)
    key = tenant.another_key(expires_at=soon.isoformat().replace("+00:00", "Z"))
    with transcription(key) as socket:
        socket.append(1)
        socket.refused("invalid_api_key", timeout=5)
        assert socket.closed == (1008, "revoked")
    assert ended(only_call(key)) == ("cut_off", "revoked")


def test_a_one_shot_key_opens_one_session_that_other_changes_do_not_end(house: House) -> None:
    tenant = house.tenant(transcriber(house), usd="1")
    key = tenant.another_key(one_shot=True)
    with transcription(key) as socket:
        socket.append(1)
        tenant.change(name="another name")
        tenant.another_key()
        time.sleep(1)
        socket.append(1)
        eventually(lambda: last_session(house).audio_seconds == 2)
    assert ended(only_call(key)) == ("success", "normal")
    with session(key) as socket:
        socket.refused("invalid_api_key")


def listed(house: House, path: str = "/admin/realtime-sessions", **more: Any) -> list[Json]:
    items: list[Json] = house.api("GET", path, **more)["items"]
    return items


def test_sessions_are_shown_with_what_they_cost_so_far_and_killed_on_any_replica(
    house: House, second_server: Server
) -> None:
    tenant = house.tenant(transcriber(house), usd="10", name="Team A")
    other = house.tenant(talker(house), tokens=10_000)
    with (
        transcription(tenant, server=second_server) as heard,
        conversation(other, server=house.server) as talked,
    ):
        heard.append(42)
        say(talked, "x" * 40)
        talked.until("response.done")

        def shown() -> Any:
            found = {found["allocation_id"]: found for found in listed(house)}
            first, second = found[tenant.allocation_id], found[other.allocation_id]
            return first["cost_usd"] == "0.42" and second["tokens"] == 26 and (first, second)

        first, second = eventually(shown, within=4)
        assert first["usage"] == {"second": 42}
        assert (first["model"], first["member_id"]) == (tenant.model, tenant.member_id)
        assert first["allocation_name"] == "Team A"
        assert "@example.org" in first["member_email"]
        assert 0 <= first["duration_s"] < 10
        assert Decimal(first["cost_held"]) >= Decimal("0.42")
        assert second["cost_usd"] == "0.026"
        assert second["tokens_held"] >= 26
        # What it has cost is held, not used yet.
        assert tenant.standing()["cost_used_this_month"] == "0.00"
        for server in house.servers:
            assert len(listed(house, server=server)) == 2
        only = listed(house, f"/admin/realtime-sessions?member_id={tenant.member_id}")
        assert [found["id"] for found in only] == [first["id"]]

        # A member's key sees its own, and stops nothing.
        mine = tenant.get("/api/me/realtime-sessions").json()["items"]
        assert [found["id"] for found in mine] == [first["id"]]
        asked = house.client()
        bearer = {"authorization": f"Bearer {tenant.secret}"}
        for path in ("me", "admin"):
            answer = asked.delete(f"/api/{path}/realtime-sessions/{first['id']}", headers=bearer)
            assert answer.status_code in (401, 403), answer.text
        assert asked.get("/api/admin/realtime-sessions", headers=bearer).status_code in (401, 403)

        # Killed through the replica that does not run it.
        killed = time.monotonic()
        _delete(house, first["id"], house.server)
        assert heard.refused("session_killed")
        assert heard.closed == (1008, "killed")
        assert time.monotonic() - killed < 2
        _delete(house, second["id"], second_server)
        talked.refused("session_killed")
    for whose, cost in ((tenant, "0.42"), (other, "0.026")):
        call = only_call(whose)
        assert ended(call) == ("cut_off", "killed")
        assert call["cost_usd"] == cost
    assert listed(house) == []
    events = house.api("GET", "/admin/audit?limit=2")["items"]
    assert [event["event"] for event in events] == ["realtime_session_killed"] * 2
    again = house.client().delete(
        f"/api/admin/realtime-sessions/{first['id']}",
        headers={"authorization": f"Bearer {house.token}"},
    )
    assert again.status_code == 404


def _delete(house: House, session_id: str, server: Server) -> None:
    answer = house.client(server).delete(
        f"/api/admin/realtime-sessions/{session_id}",
        headers={"authorization": f"Bearer {house.token}"},
    )
    assert answer.status_code == 204, answer.text


def test_an_unpriced_session_is_shown_without_a_cost_and_can_be_killed(house: House) -> None:
    tenant = house.tenant(transcriber(house, None))
    with transcription(tenant) as socket:
        socket.append(3)
        [found] = eventually(
            lambda: [one for one in listed(house) if one["usage"].get("second") == 3], within=4
        )
        assert found["cost_usd"] is None
        _delete(house, found["id"], house.server)
        socket.refused("session_killed")
    call = only_call(tenant)
    assert (call["usage"]["second"], call["cost_usd"]) == (3, None)
    assert ended(call) == ("cut_off", "killed")


def test_a_response_under_way_when_its_session_is_killed_is_billed(house: House) -> None:
    tenant = house.tenant(talker(house), usd="10")
    house.sim.set(chunk_delay=0.1)
    with conversation(tenant) as socket:
        say(socket, "x" * 40)
        socket.until("response.output_text.delta")
        [found] = listed(house)
        _delete(house, found["id"], house.server)
        socket.refused("session_killed")
    call = only_call(tenant)
    assert call["tokens"] == last_session(house).reported["response"]["total_tokens"]
    assert call["estimated"] is False


# The server


def test_a_server_that_stops_drains_its_sessions(house: House, tmp_path: Path) -> None:
    server = Server(tmp_path / "leaving", house.dsn).start()
    tenant = house.tenant(transcriber(house), usd="1")
    talks = house.tenant(talker(house), usd="1")
    house.sim.set(chunk_delay=0.2)
    with (
        transcription(tenant, server=server) as heard,
        conversation(talks, server=server) as talked,
    ):
        heard.append(3)
        say(talked, "x" * 40)
        talked.until("response.output_text.delta")
        eventually(lambda: house.sim.calls[0].realtime.audio_seconds == 3)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 5
        assert heard.end()[0] == talked.end()[0] == 1012
    call = only_call(tenant)
    assert ended(call) == ("cut_off", "draining")
    assert call["cost_usd"] == "0.03"
    call = only_call(talks)
    assert ended(call) == ("cut_off", "draining")
    assert 10 < call["tokens"] < 26
    house._audit_log(server.news())


@pytest.mark.parametrize("who", ["client", "gateway"])
def test_who_leaves_while_the_provider_is_being_connected_does_not_wait_for_it(
    house: House, tmp_path: Path, who: str
) -> None:
    server = Server(tmp_path / "leaving", house.dsn).start()
    with sockets.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        provider = house.provider("compatible", base_url=url)
        tenant = house.tenant(house.model(CENT, provider_id=provider, **REALTIME), usd="1")
        with session(tenant, server=server) as socket:
            eventually(lambda: listed(house))
            began = time.monotonic()
            if who == "gateway":
                server.stop()
                assert socket.end()[0] == 1012
            else:
                socket.connection.close()
        call = only_call(tenant)
        assert time.monotonic() - began < 5
    server.stop()
    assert ended(call) == {"client": ("success", "normal"), "gateway": ("cut_off", "draining")}[who]
    assert call["cost_usd"] == "0.00"


# The month


class Clock:
    """What the gateway takes for the time."""

    def __init__(self, now: datetime) -> None:
        self.at = now

    def now(self, zone: Any) -> datetime:
        return self.at.astimezone(zone)


@pytest.fixture
def clocked(house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server in this process, whose time is the test's to say."""
    clock = Clock(datetime(2031, 12, 31, 23, 59, 58, tzinfo=UTC))
    monkeypatch.setattr(exchange, "datetime", clock)
    monkeypatch.setattr(realtime, "datetime", clock)
    with in_this_process(house, tmp_path) as (found, _):
        yield found, clock


def test_a_session_bills_to_the_month_it_began_in(house: House, clocked: Any) -> None:
    server, clock = clocked
    tenant = house.tenant(transcriber(house), usd="0.1")
    with transcription(tenant, server=server) as socket:
        socket.append(4)
        eventually(lambda: last_session(house).audio_seconds == 4)
        clock.at = datetime(2032, 1, 1, 0, 10, tzinfo=UTC)
        socket.append(4)
        eventually(lambda: last_session(house).audio_seconds == 8)
        socket.append(4)
        socket.refused("cost_quota_exceeded")
    call = only_call(tenant)
    assert call["started_at"].startswith("2031-12-31T23:59:58")
    assert call["finished_at"].startswith("2032-01-01T00:10:00")
    assert call["cost_usd"] == "0.08"
    booked = house.sql(
        "SELECT period_start, used_nano FROM accounts WHERE owner_id = %s AND used_nano > 0",
        tenant.allocation_id,
    )
    assert booked == [(datetime(2031, 12, 1, tzinfo=UTC), 80_000_000)]
    # The new month has a cap of its own.
    with transcription(tenant, server=server) as socket:
        socket.append(10)
        eventually(lambda: last_session(house).audio_seconds == 10)
