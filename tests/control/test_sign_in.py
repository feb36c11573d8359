"""Members sign in: what opens a session, what a session opens, and what ends it."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from typing import Any

import argon2
import pytest
from litestar import Litestar

from app.control import CONTROL_EXCEPTION_HANDLERS, control_router, passwords
from app.store import admin
from app.store.database import Database
from tests.control.browser import HOST, PASSWORD, Somebody, Town

ID = "0197c5a0-0000-7000-8000-000000000000"
PROBLEM = "application/problem+json"


# Signing in


async def test_a_member_signs_in_and_uses_what_is_theirs(town: Town) -> None:
    ada = await town.somebody(display_name="Ada")
    assert await ada.browser.status("GET", "/me/allocations") == 401
    before = datetime.now(UTC)
    answer = await ada.browser.log_in(ada.email.upper(), PASSWORD)
    document = answer.json()
    expires_at = datetime.fromisoformat(document.pop("expires_at"))
    assert before + timedelta(hours=12) <= expires_at <= datetime.now(UTC) + timedelta(hours=12)
    assert document == {
        "member": {
            "id": ada.member["id"],
            "email": ada.email,
            "display_name": "Ada",
            "role": "member",
        },
        "csrf_token": ada.browser.csrf_token,
        "must_change_password": False,
    }
    assert len(ada.browser.csrf_token) >= 43
    assert answer.headers["cache-control"] == "no-store"
    assert await ada.browser.status("GET", "/me/allocations") == 200
    shown = (await ada.browser.call("GET", "/auth/session")).json()
    shown.pop("expires_at")
    assert shown == document


@pytest.mark.parametrize(
    ("scheme", "headers", "name", "secure"),
    [
        ("http", {}, "spendgate", False),
        ("https", {}, "__Host-spendgate", True),
        ("http", {"x_forwarded_proto": "https"}, "__Host-spendgate", True),
        ("http", {"x_forwarded_proto": "HTTPS, http"}, "__Host-spendgate", True),
        ("http", {"x_forwarded_proto": "http"}, "spendgate", False),
    ],
)
async def test_the_cookie_is_out_of_reach_and_over_https_bound_to_the_host(
    town: Town, scheme: str, headers: dict[str, str], name: str, secure: bool
) -> None:
    ada = await town.somebody()
    browser = town.browser(scheme=scheme)
    answer = await browser.log_in(ada.email, PASSWORD, **headers)
    [cookie] = answer.headers.get_list("set-cookie")
    said = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert cookie.split("=")[0] == name
    assert said == {"httponly", "path=/", "samesite=lax", "max-age=604800"} | (
        {"secure"} if secure else set()
    )
    token = cookie.split(";")[0].partition("=")[2]
    assert len(token) == 43
    stored = town.plane.sql("SELECT digest, row_to_json(s)::text FROM member_sessions s")
    assert [token in row for _, row in stored] == [False]
    assert [bytes(digest) for digest, _ in stored] == [town.plane.deps.vault.digest(token)]
    # By its own name it opens the session, by the other it opens nothing.
    other = "spendgate" if secure else "__Host-spendgate"
    for sent, status in ((name, 200), (other, 401)):
        found = await town.browser(scheme=scheme).call(
            "GET", "/auth/session", cookie=f"{sent}={token}", **headers
        )
        assert found.status_code == status, sent


async def test_the_cookie_that_came_along_is_never_the_session_afterwards(town: Town) -> None:
    ada, eve = await town.somebody(), await town.inside()
    [planted] = eve.browser.cookies.values()
    for cookie in (planted, "of-my-own-choice"):
        answer = await town.browser().log_in(ada.email, PASSWORD, cookie=f"spendgate={cookie}")
        given = answer.headers["set-cookie"].split(";")[0].partition("=")[2]
        assert given not in (planted, "of-my-own-choice")
        used = await town.browser().call("GET", "/auth/session", cookie=f"spendgate={cookie}")
        assert used.status_code == 401


async def test_every_sign_in_is_a_session_of_its_own(town: Town) -> None:
    ada = await town.inside()
    first = ada.browser.cookies["spendgate"]
    other = town.browser()
    await other.log_in(ada.email, PASSWORD)
    assert other.csrf_token != ada.browser.csrf_token
    assert await ada.browser.status("GET", "/auth/session") == 200
    assert await other.status("GET", "/auth/session") == 200
    # In the same browser, the new one takes the place of the old one.
    await ada.log_in()
    assert ada.browser.cookies["spendgate"] != first
    old = await town.browser().call("GET", "/auth/session", cookie=f"spendgate={first}")
    assert old.status_code == 401
    assert await other.status("GET", "/auth/session") == 200


async def test_who_cannot_sign_in_is_not_told_why(town: Town) -> None:
    ada = await town.somebody()
    without = await town.plane.member()
    disabled = await town.somebody()
    change = {"status": "disabled"}
    await town.plane.ok("PATCH", f"/admin/members/{disabled.member['id']}", change)
    told = set()
    for email, password in (
        (ada.email, "wrong password"),
        (ada.email, PASSWORD + " "),
        (ada.email, ""),
        (ada.email, "x" * 5000),
        (without["email"], PASSWORD),
        (disabled.email, "wrong password"),
        ("nobody@example.org", PASSWORD),
    ):
        answer = await town.browser().log_in(email, password)
        assert answer.status_code == 401
        assert "set-cookie" not in answer.headers
        told.add(answer.content)
    assert len(told) == 1
    # Only who knows the password hears that the member is disabled.
    answer = await disabled.browser.log_in(disabled.email, PASSWORD)
    assert answer.status_code == 403
    assert "disabled" in answer.json()["detail"]
    assert town.plane.sql("SELECT * FROM member_sessions") == []


async def test_a_password_is_compared_for_addresses_that_are_nobodys(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passwords, "HASHER", argon2.PasswordHasher())
    compared: list[str] = []
    verify = argon2.PasswordHasher.verify

    def counting(hasher: Any, hash: str, password: str) -> Any:
        compared.append(hash)
        return verify(hasher, hash, password)

    monkeypatch.setattr(argon2.PasswordHasher, "verify", counting)
    ada, without = await town.somebody(), await town.plane.member()
    for email in (ada.email, without["email"], "nobody@example.org"):
        assert (await town.browser().log_in(email, "wrong password")).status_code == 401
    # Once each, at the same cost.
    assert len(compared) == 3
    assert {hash.rpartition("$")[0].rpartition("$")[0] for hash in compared} == {
        "$argon2id$v=19$m=65536,t=3,p=4"
    }


async def test_a_password_is_hashed_again_where_parameters_are_others_by_now(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = await town.somebody()
    monkeypatch.setattr(passwords, "HASHER", argon2.PasswordHasher())
    await ada.log_in()
    [(stored,)] = town.plane.sql(
        "SELECT password_hash FROM members WHERE id = %s", ada.member["id"]
    )
    assert stored.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    await ada.log_in()
    assert town.plane.sql("SELECT password_hash FROM members WHERE password_hash = %s", stored)


NO_TRIES = [
    (b"", 400),
    (b"{", 400),
    (b"[]", 422),
    (b"{}", 422),
    (b'{"email": "ada@example.org"}', 422),
    (b'{"email": "ada@example.org", "password": 12345678}', 422),
    (b'{"email": "ada", "password": "correct horse"}', 422),
    (b'{"email": "a\\u0000@example.org", "password": "correct horse"}', 422),
    (b'{"email": "ada@example.org", "password": "correct horse", "totp": "1"}', 422),
    (b'{"email": "ada@example.org", "password": "\\ud800 correct horse"}', 400),
    (b'{"email": "ada@example.org", "password": "\\u0000 correct horse"}', 401),
]


async def test_what_is_no_try_is_told_what_is_wrong(town: Town) -> None:
    for content, status in NO_TRIES:
        answer = await town.plane.call("POST", "/auth/login", bearer=None, content=content)
        assert answer.status_code == status, f"{content!r} {answer.text}"
        assert answer.headers["content-type"] == PROBLEM
        form = await town.plane.call(
            "POST", "/auth/login", bearer=None, content=content, content_type="text/plain"
        )
        assert form.status_code in (400, 415)


# Too many tries


async def test_five_failures_lock_an_account_for_a_quarter_of_an_hour(town: Town) -> None:
    ada, bob = await town.somebody(), await town.somebody()
    for n in range(5):
        # Whatever the address they come from, and however it is written.
        email = ada.email.upper() if n % 2 else ada.email
        failed = await town.browser(address=f"192.0.2.{n}").log_in(email, "wrong password")
        assert failed.status_code == 401
    before = datetime.now(UTC)
    locked = await ada.browser.log_in(ada.email, PASSWORD)
    assert locked.status_code == 429
    assert locked.headers["content-type"] == PROBLEM
    seconds = int(locked.headers["retry-after"])
    assert 14 * 60 < seconds <= 15 * 60
    [shown] = re.findall(r"\d{4}-\S+Z", locked.json()["detail"])
    again = datetime.fromisoformat(shown)
    assert abs(again - before - timedelta(seconds=seconds)) < timedelta(seconds=5)
    # Others are not kept out, and further tries do not make it longer.
    await bob.log_in()
    assert (await ada.browser.log_in(ada.email, "wrong password")).status_code == 429
    town.plane.sql("UPDATE sign_in_failures SET at = at - interval '15 min'")
    await ada.log_in()


async def test_addresses_that_are_nobodys_are_locked_like_others(town: Town) -> None:
    for _ in range(5):
        assert (await town.browser().log_in("nobody@example.org", "a guess")).status_code == 401
    assert (await town.browser().log_in("NOBODY@example.org", "a guess")).status_code == 429
    # What was typed is not kept: it may be a password.
    [(kept,)] = town.plane.sql("SELECT string_agg(f::text, ' ') FROM sign_in_failures f")
    assert "nobody" not in kept


async def test_success_clears_the_count_of_the_account(town: Town) -> None:
    ada = await town.somebody()
    for _ in range(3):
        for _ in range(4):
            assert (await ada.browser.log_in(ada.email, "wrong password")).status_code == 401
        await ada.log_in()


async def test_twenty_failures_lock_a_client_address(town: Town) -> None:
    ada = await town.somebody()
    here: dict[str, Any] = {"address": "198.51.100.7"}
    for n in range(20):
        # Its own account does not free an address to try others.
        if n == 10:
            assert (await town.browser(**here).log_in(ada.email, PASSWORD)).status_code == 200
        email = f"nobody{n // 4}@example.org"
        # What a client says of its address is not believed.
        failed = await town.browser(**here).log_in(
            email, "a guess", x_forwarded_for=f"203.0.113.{n}"
        )
        assert failed.status_code == 401
    locked = await town.browser(**here).log_in(ada.email, PASSWORD)
    assert locked.status_code == 429
    assert (await town.browser(address="198.51.100.8").log_in(ada.email, PASSWORD)).is_success


async def test_all_of_an_ipv6_network_is_one_address(town: Town) -> None:
    ada = await town.somebody()
    for n in range(20):
        browser = town.browser(address=f"2001:db8:1:2:{n}::1")
        assert (await browser.log_in(f"nobody{n // 4}@example.org", "a guess")).status_code == 401
    neighbour, stranger = (
        town.browser(address="2001:db8:1:2:ffff::1"),
        town.browser(address="2001:db8:1:3::1"),
    )
    assert (await neighbour.log_in(ada.email, PASSWORD)).status_code == 429
    assert (await stranger.log_in(ada.email, PASSWORD)).is_success


FORWARDED = [
    ("10.1.0.1", "203.0.113.5", "203.0.113.5"),
    ("::ffff:10.1.0.1", "203.0.113.5", "203.0.113.5"),
    # What was said before the first proxy of ours, anybody may have said.
    ("10.1.0.1", "192.0.2.66, 203.0.113.5", "203.0.113.5"),
    ("10.1.0.1", "192.0.2.66, 203.0.113.5, 10.1.0.2", "203.0.113.5"),
    ("10.1.0.1", "2001:db8::5", "2001:db8::5"),
    ("10.1.0.1", "nonsense", "10.1.0.1"),
    ("10.1.0.1", "", "10.1.0.1"),
    ("203.0.113.9", "192.0.2.66", "203.0.113.9"),
    ("", "192.0.2.66", ""),
]


async def test_a_proxy_of_ours_tells_who_signs_in(town: Town) -> None:
    deps = replace(town.plane.deps, trusted_proxies=(ip_network("10.1.0.0/16"),))
    app = Litestar([control_router(deps)], exception_handlers=CONTROL_EXCEPTION_HANDLERS)
    ada = await town.somebody()
    for peer, forwarded, address in FORWARDED:
        browser = town.browser(app, address=peer)
        assert (await browser.log_in(ada.email, PASSWORD, x_forwarded_for=forwarded)).is_success
        [session, *_] = (await browser.call("GET", "/auth/sessions")).json()["items"]
        assert session["address"] == address, f"{peer} {forwarded}"


async def test_tries_at_the_same_moment_on_two_replicas_are_counted_one_by_one(
    town: Town,
) -> None:
    ada = await town.somebody()
    database = Database(town.plane.url)
    replica = Litestar(
        [
            control_router(
                replace(town.plane.deps, database=database, sign_ins=asyncio.Semaphore(4))
            )
        ],
        exception_handlers=CONTROL_EXCEPTION_HANDLERS,
    )
    try:
        browsers = [town.browser(app) for app in (town.plane.app, replica) for _ in range(8)]
        answers = await asyncio.gather(*(b.log_in(ada.email, "wrong password") for b in browsers))
        assert sorted(answer.status_code for answer in answers) == [401] * 5 + [429] * 11
    finally:
        await database.close()


async def test_who_knows_the_password_may_come_from_many_places_at_once(town: Town) -> None:
    ada = await town.somebody()
    answers = await asyncio.gather(*(town.browser().log_in(ada.email, PASSWORD) for _ in range(12)))
    assert {answer.status_code for answer in answers} == {200}


# What a session opens


async def test_what_a_session_opens_is_what_the_role_opens(town: Town) -> None:
    admin_, auditor, member = (
        await town.inside("admin"),
        await town.inside("auditor"),
        await town.inside("member"),
    )
    new = {"email": "new@example.org"}
    for somebody, reads, writes in ((member, 403, 403), (auditor, 200, 403), (admin_, 200, 201)):
        browser = somebody.browser
        assert await browser.status("GET", "/admin/members") == reads
        assert await browser.status("POST", "/admin/members", new) == writes
        assert await browser.status("GET", "/me/allocations") == 200
        assert await browser.status("DELETE", f"/me/keys/{ID}") == 404
    [event] = [
        event
        for event in (await town.plane.ok("GET", "/admin/audit?event=member_created"))["items"]
        if event["after"]["email"] == "new@example.org"
    ]
    assert (event["actor"], event["actor_id"]) == (admin_.email, admin_.member["id"])
    # Another role holds for the next request.
    path = f"/admin/members/{admin_.member['id']}"
    await town.plane.ok("PATCH", path, {"role": "auditor"})
    assert await admin_.browser.status("POST", "/admin/members", {}) == 403
    assert await admin_.browser.status("GET", "/admin/members") == 200


@pytest.mark.parametrize("change", [{"role": "member"}, {"status": "disabled"}])
async def test_nobody_takes_the_admins_role_from_themselves(
    town: Town, change: dict[str, str]
) -> None:
    admin_, other = await town.inside("admin"), await town.inside("admin")
    path = f"/admin/members/{admin_.member['id']}"
    assert await admin_.browser.status("PATCH", path, {"display_name": "Ada", **change}) == 409
    member = await town.plane.ok("GET", path)
    assert (member["role"], member["status"]) == ("admin", "active")
    assert await admin_.browser.status("PATCH", path, {"display_name": "Ada"}) == 200
    assert await other.browser.status("PATCH", path, change) == 200


async def test_every_route_lets_in_whom_the_role_lets_in(town: Town) -> None:
    people = {role: await town.inside(role) for role in ("admin", "auditor", "member")}
    people["nobody"] = Somebody({}, town.browser())
    # What ends one's own session would end the walk, and what never ends has tests of its own.
    left_out = ("/auth/logout", "/events")
    asked = [(method, path) for method, path in routes(town.plane) if path not in left_out]
    assert len(asked) > 40
    for method, path in asked:
        for role, somebody in people.items():
            body = None if method == "GET" else {}
            found = await somebody.browser.status(method, path, body)
            let_in = path.startswith(("/me", "/auth")) or role == "admin"
            if role == "nobody":
                expected = {401}
            elif let_in or (role == "auditor" and method == "GET"):
                expected = {200, 201, 404, 422}
            else:
                expected = {403}
            assert found in expected, f"{role} {method} {path}: {found}"


def named(path: str) -> str:
    """Return a path with names in it, of things that there are not."""
    return re.sub(r"\{slug[^}]*\}", "m1", re.sub(r"\{id[^}]*\}", ID, path))


DOORS = ("/api/auth/login", "/api/auth/invitation", "/api/auth/oidc")
"""What opens a session needs none: see above, `test_invitations` and `test_oidc`."""


def routes(plane: Any) -> list[tuple[str, str]]:
    """Return every method and path of the control plane, but for the doors."""
    return [
        (method, named(route.path_format.removeprefix("/api")))
        for route in plane.app.routes
        if route.path.startswith("/api") and not route.path.startswith(DOORS)
        for method in sorted(route.methods - {"OPTIONS", "HEAD"})
    ]


async def test_every_write_refuses_a_session_that_our_page_did_not_ask_for(town: Town) -> None:
    ada = await town.inside("admin")
    asked = [(method, path) for method, path in routes(town.plane) if method != "GET"]
    assert len(asked) > 20
    assert ("POST", "/auth/logout") in asked
    assert ("DELETE", f"/me/keys/{ID}") in asked
    foreign = {"origin": "https://evil.example"}
    before = town.plane.sql("SELECT count(*) FROM audit")
    for method, path in asked:
        for more in ({"csrf": None}, {"csrf": "0" * 64}, foreign):
            answer = await ada.browser.call(method, path, {}, **more)
            assert answer.status_code == 403, f"{method} {path} {more}"
            assert answer.headers["content-type"] == PROBLEM
            assert "comes from" in answer.text or "X-CSRF-Token" in answer.text
    assert town.plane.sql("SELECT count(*) FROM audit") == before
    assert await ada.browser.status("GET", "/auth/session") == 200


ASKED = [
    ("http", {}, 404),
    ("http", {"origin": f"http://{HOST}"}, 404),
    ("https", {"origin": f"https://{HOST}"}, 404),
    ("https", {"origin": f"https://{HOST}", "host": f"{HOST}:443"}, 404),
    ("http", {"origin": f"http://{HOST}:8000", "host": f"{HOST}:8000"}, 404),
    ("http", {"origin": f"http://{HOST.upper()}"}, 404),
    ("http", {"origin": f"https://{HOST}"}, 403),
    ("https", {"origin": f"http://{HOST}"}, 403),
    ("http", {"origin": f"http://{HOST}:8000"}, 403),
    ("http", {"origin": f"http://{HOST}.evil.example"}, 403),
    ("http", {"origin": "null"}, 403),
    ("http", {"origin": ""}, 403),
    ("http", {"csrf": None}, 403),
    ("http", {"csrf": "wrong"}, 403),
    ("http", {"csrf": None, "x_csrf_token": "täuschend"}, 403),
    ("http", {"csrf": None, "x_csrf_token": ""}, 403),
]


async def test_a_write_needs_the_token_and_no_other_sites_page(town: Town) -> None:
    ada = await town.somebody()
    browsers = {scheme: town.browser(scheme=scheme) for scheme in ("http", "https")}
    for browser in browsers.values():
        await browser.log_in(ada.email, PASSWORD)
    # Nothing is there to be found: whoever gets that far is let in.
    path = f"/auth/sessions/{ID}"
    for scheme, headers, status in ASKED:
        found = await browsers[scheme].status("DELETE", path, **headers)
        assert found == status, f"{scheme} {headers}"


async def test_the_token_of_another_session_is_not_this_ones(town: Town) -> None:
    ada, eve = await town.inside(), await town.inside()
    stolen = eve.browser.csrf_token
    assert await ada.browser.status("POST", "/auth/logout", csrf=stolen) == 403


async def test_signing_in_is_for_our_own_page_too(town: Town) -> None:
    ada = await town.somebody()
    answer = await ada.browser.log_in(ada.email, PASSWORD, origin="https://evil.example")
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


async def test_a_bearer_needs_no_csrf_token_and_is_not_helped_by_a_cookie(town: Town) -> None:
    ada = await town.inside("admin")
    bearer = {"authorization": f"Bearer {town.plane.token}"}
    new = {"email": "new@example.org"}
    assert await ada.browser.status("POST", "/admin/members", new, csrf=None, **bearer) == 201
    for wrong in ("nonsense", "sga_nonsense"):
        bearer = {"authorization": f"Bearer {wrong}"}
        assert await ada.browser.status("GET", "/admin/members", **bearer) == 401
    # A page behind a password of a proxy's sends that along, too.
    assert await ada.browser.status("GET", "/admin/members", authorization="Basic eDp5") == 200


async def test_what_is_about_signing_in_is_for_who_has(town: Town) -> None:
    tenant = await town.plane.tenant("m1")
    for bearer in (town.plane.token, tenant.secret):
        answer = await town.plane.call("GET", "/auth/session", bearer=bearer)
        assert answer.status_code == 403
    assert (await town.plane.call("GET", "/auth/session", bearer=None)).status_code == 401


# What ends a session


async def test_signing_out_ends_the_session_for_good(town: Town) -> None:
    ada = await town.inside()
    [token] = ada.browser.cookies.values()
    answer = await ada.browser.call("POST", "/auth/logout")
    assert (answer.status_code, answer.content) == (204, b"")
    assert ada.browser.cookies == {}
    for path in ("/auth/session", "/me/allocations"):
        replayed = await ada.browser.call("GET", path, cookie=f"spendgate={token}")
        assert replayed.status_code == 401
    assert await ada.browser.status("POST", "/auth/logout", cookie=f"spendgate={token}") == 401


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ("last_seen_at = now() - interval '12 hours'", 401),
        ("last_seen_at = now() - interval '11 hours 59 minutes'", 200),
        ("expires_at = now()", 401),
        ("expires_at = now() + interval '1 minute'", 200),
        ("revoked_at = now()", 401),
        ("digest = 'another'", 401),
    ],
)
async def test_a_session_ends_when_nothing_is_done_in_it_and_after_a_week(
    town: Town, change: str, status: int
) -> None:
    ada = await town.inside()
    town.plane.sql(f"UPDATE member_sessions SET {change}")
    assert await ada.browser.status("GET", "/auth/session") == status


async def test_a_session_in_use_goes_on(town: Town) -> None:
    ada = await town.inside()
    late = "UPDATE member_sessions SET last_seen_at = now() - interval '11 hours 59 minutes'"
    for _ in range(3):
        town.plane.sql(late)
        document = (await ada.browser.call("GET", "/auth/session")).json()
        left = datetime.fromisoformat(document["expires_at"]) - datetime.now(UTC)
        assert timedelta(hours=11, minutes=59) < left <= timedelta(hours=12)


@pytest.mark.parametrize(
    "change",
    [
        {"status": "disabled"},
        {"password": "another password"},
        {"password": PASSWORD},
        {"password": None},
    ],
)
async def test_the_sessions_of_a_member_end_with_what_an_admin_takes_from_them(
    town: Town, change: dict[str, Any]
) -> None:
    ada, bob = await town.inside(), await town.inside()
    path = f"/admin/members/{ada.member['id']}"
    await town.plane.ok("PATCH", path, change)
    assert await ada.browser.status("GET", "/auth/session") == 401
    # And do not come back with it.
    await town.plane.ok("PATCH", path, {"status": "active"})
    assert await ada.browser.status("GET", "/auth/session") == 401
    assert await bob.browser.status("GET", "/auth/session") == 200
    [event] = [e for e in await town.plane.events(ada.member["id"]) if "session" in e["event"]]
    assert event["event"] == "sessions_revoked"
    assert len(event["before"]["sessions"]) == 1


@pytest.mark.parametrize("change", [{"display_name": "Ada"}, {"status": "active"}])
async def test_other_changes_of_a_member_end_no_session(town: Town, change: dict[str, Any]) -> None:
    ada = await town.inside()
    await town.plane.ok("PATCH", f"/admin/members/{ada.member['id']}", change)
    assert await ada.browser.status("GET", "/auth/session") == 200


async def test_a_password_from_the_command_line_ends_the_sessions_too(town: Town) -> None:
    ada = await town.inside("admin", must_change_password=True)
    hash = argon2.PasswordHasher().hash("another password")
    await town.plane.deps.database.transaction(
        lambda connection: admin.put_admin(
            connection, email=ada.email, name=None, password_hash=hash, at=datetime.now(UTC)
        )
    )
    assert await ada.browser.status("GET", "/auth/session") == 401
    # An operator's own choice is not asked for again.
    assert (await ada.log_in("another password"))["must_change_password"] is False


async def test_an_admin_who_gives_themselves_a_password_stays_signed_in(town: Town) -> None:
    ada = await town.inside("admin")
    elsewhere = town.browser()
    await elsewhere.log_in(ada.email, PASSWORD)
    path = f"/admin/members/{ada.member['id']}"
    assert await ada.browser.status("PATCH", path, {"password": "another password"}) == 200
    assert await ada.browser.status("GET", "/auth/session") == 200
    assert await elsewhere.status("GET", "/auth/session") == 401


async def test_a_session_does_not_begin_with_a_password_that_was_changed_meanwhile(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = await town.somebody()
    verify = argon2.PasswordHasher.verify

    def beaten(hasher: Any, hash: str, password: str) -> Any:
        fits = verify(hasher, hash, password)
        town.plane.sql("UPDATE members SET password_hash = 'x' WHERE id = %s", ada.member["id"])
        return fits

    monkeypatch.setattr(argon2.PasswordHasher, "verify", beaten)
    assert (await ada.browser.log_in(ada.email, PASSWORD)).status_code == 401
    assert town.plane.sql("SELECT * FROM member_sessions") == []


# One's own password


async def test_whoever_changes_their_password_ends_their_other_sessions(town: Town) -> None:
    ada, bob = await town.inside(), await town.inside()
    elsewhere = town.browser()
    await elsewhere.log_in(ada.email, PASSWORD)
    body = {"current_password": PASSWORD, "new_password": "another password"}
    answer = await ada.browser.call("POST", "/auth/password", body)
    assert (answer.status_code, answer.content) == (204, b"")
    assert await ada.browser.status("GET", "/auth/session") == 200
    assert await elsewhere.status("GET", "/auth/session") == 401
    assert await bob.browser.status("GET", "/auth/session") == 200
    assert (await elsewhere.log_in(ada.email, PASSWORD)).status_code == 401
    assert (await elsewhere.log_in(ada.email, "another password")).status_code == 200
    events = await town.plane.events(ada.member["id"])
    assert [event["event"] for event in events] == [
        "member_created",
        "member_password_updated",
        "sessions_revoked",
    ]
    assert {event["actor"] for event in events[1:]} == {ada.email}
    assert "another password" not in str(events)


@pytest.mark.parametrize(
    ("current", "new", "field"),
    [
        ("wrong password", "another password", "current_password"),
        (PASSWORD, PASSWORD, "new_password"),
        (PASSWORD, "short", "new_password"),
        (PASSWORD, "x" * 1025, "new_password"),
    ],
)
async def test_a_password_is_not_changed_to_one_that_will_not_do(
    town: Town, current: str, new: str, field: str
) -> None:
    ada = await town.inside()
    body = {"current_password": current, "new_password": new}
    answer = await ada.browser.call("POST", "/auth/password", body)
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [field]
    await ada.log_in()


async def test_the_current_password_cannot_be_guessed_from_within_either(town: Town) -> None:
    ada = await town.inside()
    body = {"current_password": "a guess", "new_password": "another password"}
    tries = [await ada.browser.status("POST", "/auth/password", body) for _ in range(6)]
    assert tries == [422] * 5 + [429]


async def test_whoever_has_to_change_their_password_does_that_first(town: Town) -> None:
    ada = await town.somebody("admin", must_change_password=True)
    assert ada.member["must_change_password"] is True
    assert (await ada.log_in())["must_change_password"] is True
    for path in ("/admin/members", "/me/allocations"):
        answer = await ada.browser.call("GET", path)
        assert answer.status_code == 403
        assert "/api/auth/password" in answer.json()["detail"]
    assert await ada.browser.status("GET", "/auth/session") == 200
    body = {"current_password": PASSWORD, "new_password": "another password"}
    assert await ada.browser.status("POST", "/auth/password", body) == 204
    assert await ada.browser.status("GET", "/admin/members") == 200
    shown = (await ada.browser.call("GET", "/auth/session")).json()
    assert shown["must_change_password"] is False
    # Asked for again, it holds for the next request.
    path = f"/admin/members/{ada.member['id']}"
    await town.plane.ok("PATCH", path, {"must_change_password": True})
    assert await ada.browser.status("GET", "/me/allocations") == 403
    assert await ada.browser.status("POST", "/auth/logout") == 204


# One's own sessions


async def test_members_see_and_end_their_own_sessions_and_no_one_elses(town: Town) -> None:
    ada, eve = await town.somebody(), await town.inside()
    phone, laptop = town.browser(address="203.0.113.5"), town.browser()
    for browser, agent in ((phone, "Phone\x1b[31m"), (laptop, "Laptop " + "x" * 500)):
        assert (await browser.log_in(ada.email, PASSWORD, user_agent=agent)).is_success
    listed = (await phone.call("GET", "/auth/sessions")).json()
    laptop_session, phone_session = listed["items"]
    assert listed["next"] is None
    assert set(phone_session) == {
        "id", "user_agent", "address", "created_at", "last_seen_at", "expires_at", "current",
    }  # fmt: skip
    assert [one["current"] for one in listed["items"]] == [False, True]
    assert phone_session["user_agent"] == "Phone[31m"
    assert laptop_session["user_agent"] == ("Laptop " + "x" * 500)[:300]
    assert phone_session["address"] == "203.0.113.5"
    first = (await phone.call("GET", "/auth/sessions?limit=1")).json()
    rest = (await phone.call("GET", f"/auth/sessions?limit=1&cursor={first['next']}")).json()
    assert first["items"] + rest["items"] == listed["items"]

    path = f"/auth/sessions/{laptop_session['id']}"
    assert await eve.browser.status("DELETE", path) == 404
    assert await phone.status("DELETE", "/auth/sessions/nonsense") == 404
    assert await laptop.status("GET", "/auth/session") == 200
    assert await phone.status("DELETE", path) == 204
    assert await laptop.status("GET", "/auth/session") == 401
    assert await phone.status("DELETE", path) == 404
    assert [one["id"] for one in (await phone.call("GET", "/auth/sessions")).json()["items"]] == [
        phone_session["id"]
    ]
    [event] = await town.plane.events(laptop_session["id"])
    assert (event["event"], event["object"], event["actor"]) == (
        "session_revoked",
        "session",
        ada.email,
    )


async def test_sessions_that_are_over_are_not_shown_and_not_kept_for_ever(town: Town) -> None:
    ada = await town.somebody()
    for change in (
        "last_seen_at = now() - interval '12 hours'",
        "expires_at = now()",
        "revoked_at = now()",
    ):
        await town.browser().log_in(ada.email, PASSWORD)
        town.plane.sql(
            f"UPDATE member_sessions SET {change} WHERE id = (SELECT max(id::text)::uuid"
            " FROM member_sessions)"
        )
    assert town.plane.sql("SELECT count(*) FROM member_sessions") == [(2,)]
    await ada.log_in()
    assert len((await ada.browser.call("GET", "/auth/sessions")).json()["items"]) == 1
    assert town.plane.sql("SELECT count(*) FROM member_sessions") == [(3,)]
