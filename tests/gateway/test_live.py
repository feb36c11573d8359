"""Live: a page hears within a second, on any replica, that what it shows has changed."""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.gateway.kit import DIME, House, Server, conversation, eventually, talker

PASSWORD = "correct horse battery"
WITHIN_S = 1.0

News = tuple[str, str | None]


class Page:
    """A page that is open in a browser, or whatever else listens: it notes what it hears."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        self.heard: queue.Queue[News] = queue.Queue()
        self.ended = False
        self.began = threading.Event()
        self.status = 0
        self.headers: dict[str, str] = {}
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
        self._connection.request("GET", "/api/events", headers=headers)
        # Kept, or nobody could end what another thread reads.
        self._socket = self._connection.sock
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()
        assert self.began.wait(10)

    def _listen(self) -> None:
        try:
            answer = self._connection.getresponse()
            self.status = answer.status
            self.headers = {name.lower(): value for name, value in answer.getheaders()}
            event = ""
            for line in (line.decode().rstrip() for line in answer):
                if line.startswith("retry:"):
                    self.began.set()
                elif line.startswith("event: "):
                    event = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    data = json.loads(line.removeprefix("data: "))
                    assert data.keys() <= {"id"}
                    self.heard.put((event, data.get("id")))
        except (OSError, http.client.HTTPException):
            pass
        self.ended = True
        self.began.set()

    def hears(self, news: News, *, within: float = WITHIN_S) -> None:
        """Check that it hears of something in time."""
        deadline = time.monotonic() + within
        heard: list[News] = []
        while True:
            try:
                one = self.heard.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"not {news}, but {heard}") from None
            if one == news:
                return
            heard.append(one)

    def settled(self, quiet: float = 0.7) -> list[News]:
        """Return what it heard, once it has heard nothing for a while."""
        heard: list[News] = []
        while True:
            try:
                heard.append(self.heard.get(timeout=quiet))
            except queue.Empty:
                return heard

    def ends(self, *, within: float = WITHIN_S) -> None:
        """Check that it ends in time."""
        eventually(lambda: self.ended, within=within, what="the end of a stream")

    def close(self) -> None:
        """Close it."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(20)
        self._connection.close()


Opens = Callable[..., Page]


@pytest.fixture
def opens(house: House) -> Iterator[Opens]:
    """Open pages, which are closed in the end."""
    pages: list[Page] = []

    def opened(server: Server | None = None, **headers: str) -> Page:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        pages.append(Page(house.url(server), sent))
        return pages[-1]

    yield opened
    for page in pages:
        page.close()


@pytest.fixture
def admin(house: House) -> dict[str, str]:
    """The headers of an admin."""
    return {"authorization": f"Bearer {house.token}"}


class Visitor:
    """A member who has signed in."""

    def __init__(self, house: House, member_id: str, *, new: bool = True) -> None:
        if new:
            house.api("PATCH", f"/admin/members/{member_id}", {"password": PASSWORD})
        email = house.api("GET", f"/admin/members/{member_id}")["email"]
        self.url = house.url()
        answer = httpx2.post(
            f"{self.url}/api/auth/login", json={"email": email, "password": PASSWORD}
        )
        assert answer.status_code == 200, answer.text
        self.headers = {
            "cookie": "; ".join(f"{name}={value}" for name, value in answer.cookies.items())
        }
        self.csrf = {"x-csrf-token": answer.json()["csrf_token"]}

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Ask for something, as the page does."""
        answer = httpx2.request(
            method, f"{self.url}/api{path}", json=body, headers=self.headers | self.csrf
        )
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None


def test_a_call_on_one_replica_is_heard_of_on_another(
    house: House, second_server: Server, opens: Opens, admin: dict[str, str]
) -> None:
    tenant = house.tenant(house.model(DIME), usd="10")
    visitor = Visitor(house, tenant.member_id)
    member, watching = opens(**visitor.headers), opens(**admin)
    assert member.headers["content-type"].startswith("text/event-stream")
    assert member.headers["cache-control"] == "no-store"
    member.settled()
    for server in (second_server, house.server, second_server):
        tenant.chat(server=server, max_tokens=2)
        member.hears(("allocation", tenant.allocation_id))
        watching.hears(("allocation", tenant.allocation_id))
    watching.hears(("overview", None), within=3)


def test_a_refused_call_is_heard_of(house: House, second_server: Server, opens: Opens) -> None:
    tenant = house.tenant(house.model(DIME), usd="0")
    member = opens(**Visitor(house, tenant.member_id).headers)
    member.settled()
    assert tenant.chat(server=second_server, max_tokens=2).status_code == 429
    [shown] = [call for call in tenant.calls() if call["outcome"].startswith("rejected")]
    assert shown
    # Of the last that there is to say of it, too.
    assert member.settled()[-1] == ("allocation", tenant.allocation_id)


def test_what_an_admin_changes_is_heard_of_by_whose_it_is(
    house: House, second_server: Server, opens: Opens, admin: dict[str, str]
) -> None:
    tenant = house.tenant(house.model(DIME), usd="1")
    visitor = Visitor(house, tenant.member_id)
    member = opens(second_server, **visitor.headers)
    member.settled()
    tenant.change(quota_cost_usd_per_month="5")
    member.hears(("allocation", tenant.allocation_id))
    house.api("PATCH", f"/admin/keys/{tenant.key_id}", {"name": "renamed"})
    member.hears(("key", tenant.key_id))
    asked = {
        "allocation_id": tenant.allocation_id,
        "meter": "usd",
        "amount": "2",
        "reason": "exams",
        "expires": "period",
    }
    watching = opens(second_server, **admin)
    request = visitor.call("POST", "/me/requests", asked)
    watching.hears(("request", request["id"]))
    member.hears(("request", request["id"]))
    house.api("POST", f"/admin/requests/{request['id']}/approve", {})
    member.hears(("request", request["id"]))
    new = house.allocation(tenant.member_id, house.model(DIME))
    member.hears(("allocation", new["id"]))


def test_a_pool_is_heard_of_by_those_in_it(house: House, opens: Opens) -> None:
    pool = house.api("POST", "/admin/pools", {"name": f"pool {time.monotonic_ns()}"})
    model = house.model(DIME)
    inside, outside = house.tenant(model, pool_id=pool["id"]), house.tenant(model)
    pages = [opens(**Visitor(house, one.member_id).headers) for one in (inside, outside)]
    for page in pages:
        page.settled()
    limits = [{"meter": "usd", "window": "month", "amount": "3"}]
    house.api("PATCH", f"/admin/pools/{pool['id']}", {"limits": limits})
    pages[0].hears(("allocation", inside.allocation_id))
    assert pages[1].settled() == []


def test_a_member_hears_of_nobody_else(house: House, second_server: Server, opens: Opens) -> None:
    model = house.model(DIME)
    mine, theirs = house.tenant(model, usd="10"), house.tenant(model, usd="10")
    member = opens(**Visitor(house, mine.member_id).headers)
    member.settled()
    theirs.chat(server=second_server, max_tokens=2)
    theirs.change(quota_cost_usd_per_month="9")
    house.api("PATCH", f"/admin/keys/{theirs.key_id}", {"name": "renamed"})
    house.price(model, DIME)
    visitor = Visitor(house, theirs.member_id)
    asked = {"meter": "usd", "amount": "2", "reason": "exams", "expires": "day"}
    visitor.call("POST", "/me/requests", asked | {"allocation_id": theirs.allocation_id})
    assert member.settled(1.2) == []
    mine.chat(max_tokens=2)
    member.hears(("allocation", mine.allocation_id))


def test_a_realtime_session_is_heard_of_from_its_beginning_to_its_end(
    house: House, opens: Opens, admin: dict[str, str]
) -> None:
    tenant = house.tenant(talker(house), usd="10")
    member = opens(**Visitor(house, tenant.member_id).headers)
    watching = opens(**admin)
    member.settled()
    with conversation(tenant):
        [running] = house.api("GET", "/admin/realtime-sessions")["items"]
        member.hears(("session", running["id"]))
        watching.hears(("session", running["id"]))
        member.settled()
    member.hears(("session", running["id"]), within=3)


def test_a_stream_ends_with_the_session_that_opened_it(
    house: House, second_server: Server, opens: Opens
) -> None:
    tenant = house.tenant(house.model(DIME))
    left = Visitor(house, tenant.member_id)
    kept = Visitor(house, tenant.member_id, new=False)
    pages = [opens(second_server, **kept.headers), opens(second_server, **left.headers)]
    left.call("POST", "/auth/logout")
    pages[1].ends()
    again = opens(second_server, **left.headers)
    assert again.status == 401
    assert not pages[0].ended
    house.api("PATCH", f"/admin/members/{tenant.member_id}", {"status": "disabled"})
    pages[0].ends()
    assert opens(second_server, **kept.headers).status == 401


def test_a_stream_ends_when_its_member_may_hear_less(house: House, opens: Opens) -> None:
    member_id = house.member()
    house.api("PATCH", f"/admin/members/{member_id}", {"role": "auditor"})
    visitor = Visitor(house, member_id)
    page = opens(**visitor.headers)
    tenant = house.tenant(house.model(DIME), usd="10")
    page.hears(("allocation", tenant.allocation_id))
    house.api("PATCH", f"/admin/members/{member_id}", {"role": "member"})
    page.ends()
    page = opens(**visitor.headers)
    tenant.chat(max_tokens=2)
    assert page.settled(1.2) == []


def test_nobody_hears_who_may_not(house: House, opens: Opens, admin: dict[str, str]) -> None:
    tenant = house.tenant(house.model(DIME))
    visitor = Visitor(house, tenant.member_id)
    own = house.url()
    assert opens().status == 401
    assert opens(authorization=f"Bearer {tenant.secret}").status == 403
    assert opens(**visitor.headers, origin="https://evil.example").status == 403
    assert opens(**admin, origin="https://evil.example").status == 403
    assert opens(**visitor.headers, origin=own).status == 200


def test_a_credential_has_so_many_streams_and_no_more(house: House, opens: Opens) -> None:
    visitor = Visitor(house, house.member())
    pages = [opens(**visitor.headers) for _ in range(20)]
    assert {page.status for page in pages} == {200}
    refused = opens(**visitor.headers)
    assert refused.status == 429
    pages[0].close()
    eventually(lambda: opens(**visitor.headers).status == 200, every=0.2)


def test_who_does_not_read_delays_nobody_and_costs_little(
    house: House, opens: Opens, admin: dict[str, str]
) -> None:
    tenant = house.tenant(house.model(DIME), usd="10")
    with deaf(house.url(), admin):
        page = opens(**admin)
        page.settled()
        for _ in range(5):
            tenant.chat(max_tokens=1)
            page.hears(("allocation", tenant.allocation_id))


def test_streams_end_when_their_server_stops_whether_they_are_read_or_not(
    house: House, servers_dir: Path, opens: Opens, admin: dict[str, str]
) -> None:
    for workers in (1, 2):
        server = Server(servers_dir / f"leaving-{workers}", house.dsn, workers=workers).start()
        page = opens(server, **admin)
        with deaf(server.url, admin):
            began = time.monotonic()
            server.stop()
            assert time.monotonic() - began < 8
        page.ends(within=0.1)


def test_streams_are_opened_anew_after_what_may_have_been_missed(
    house: House, opens: Opens, admin: dict[str, str]
) -> None:
    page = opens(**admin)
    house.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND query = 'SELECT 1'"
    )
    page.ends(within=5)
    page = opens(**admin)
    tenant = house.tenant(house.model(DIME), usd="10")
    page.hears(("allocation", tenant.allocation_id))


def deaf(url: str, headers: dict[str, str]) -> Any:
    """Open a stream and read nothing of it; its window is as small as can be."""
    parts = urlsplit(url)
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    line.connect((parts.hostname, parts.port))
    sent = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    line.sendall(f"GET /api/events HTTP/1.1\r\nhost: {parts.netloc}\r\n{sent}\r\n".encode())
    return line
