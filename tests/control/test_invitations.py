"""Invitations: who makes a link, what it is good for, and what ends it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest
from litestar import Litestar

from app.control import CONTROL_EXCEPTION_HANDLERS, control_router
from app.control.desk import ControlDeps
from app.core.invitations import InvitationStatus
from app.mail import Mailer
from app.settings import MailServer
from tests.control.browser import HOST, PASSWORD, Browser, Town

NEW = "a password of my own"
DAY = timedelta(days=1)


def serving(plane: Any, **changed: Any) -> Litestar:
    """Return the same control plane with other parts."""
    deps: ControlDeps = replace(plane.deps, **changed)
    return Litestar([control_router(deps)], exception_handlers=CONTROL_EXCEPTION_HANDLERS)


def later(plane: Any, by: timedelta) -> Litestar:
    """Return the control plane as it will be."""
    return serving(plane, clock=lambda: datetime.now(UTC) + by)


async def invite(plane: Any, email: str = "new@example.org", **more: Any) -> Any:
    return await plane.ok("POST", "/admin/invitations", {"email": email} | more)


def secret(made: Any) -> str:
    return str(made["link"].partition("#")[2])


async def look(browser: Browser, token: str) -> Any:
    return await browser.call("POST", "/auth/invitation", {"token": token})


async def accept(browser: Browser, token: str, password: str = NEW, **more: Any) -> Any:
    body = {"token": token, "password": password} | more
    answer = await browser.call("POST", "/auth/invitation/accept", body)
    if answer.status_code == 200:
        browser.csrf_token = answer.json()["csrf_token"]
    return answer


def events_of(events: list[Any]) -> list[str]:
    return [event["event"] for event in events]


# Joining


async def test_somebody_is_invited_chooses_a_password_and_is_signed_in(town: Town) -> None:
    admin = await town.inside("admin")
    before = datetime.now(UTC)
    answer = await admin.browser.call(
        "POST",
        "/admin/invitations",
        {"email": "Bob@example.org", "display_name": "Bob", "role": "auditor"},
    )
    assert answer.status_code == 201
    made = answer.json()
    link, token = made.pop("link"), secret(answer.json())
    assert link == f"http://{HOST}/invitation#{token}"
    assert token.startswith("sgi_")
    assert len(token) == 47
    expires_at = datetime.fromisoformat(made["expires_at"])
    assert timedelta() <= expires_at - before - 7 * DAY < timedelta(seconds=5)
    member = await town.plane.ok("GET", f"/admin/members/{made['member_id']}")
    assert {name: member[name] for name in ("email", "display_name", "role", "status")} == {
        "email": "Bob@example.org",
        "display_name": "Bob",
        "role": "auditor",
        "status": "active",
    }
    assert (member["has_password"], member["must_change_password"]) == (False, False)

    bob = town.browser()
    shown = (await look(bob, token)).json()
    assert shown == {
        "email": "Bob@example.org",
        "display_name": "Bob",
        "role": "auditor",
        "purpose": "join",
        "invited_by": admin.email,
        "expires_at": made["expires_at"],
    }
    assert "set-cookie" not in (await look(bob, token)).headers
    accepted = await accept(bob, token, display_name="Robert")
    assert accepted.status_code == 200
    document = accepted.json()
    assert document["member"] == {
        "id": member["id"],
        "email": "Bob@example.org",
        "display_name": "Robert",
        "role": "auditor",
    }
    assert document["must_change_password"] is False
    [cookie] = accepted.headers.get_list("set-cookie")
    said = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert said == {"httponly", "path=/", "samesite=lax", "max-age=604800"}
    assert (await bob.call("GET", "/auth/session")).json() == document
    assert await bob.status("GET", "/admin/members") == 200
    assert await bob.status("POST", "/auth/logout", csrf=None) == 403
    assert (await town.browser().log_in("bob@example.org", NEW)).status_code == 200


async def test_who_did_what_is_recorded_and_the_secret_is_nowhere(town: Town) -> None:
    admin = await town.inside("admin")
    body = {"email": "bob@example.org"}
    made = (await admin.browser.call("POST", "/admin/invitations", body)).json()
    path = f"/admin/invitations/{made['id']}"
    renewed = (await admin.browser.call("POST", f"{path}/renew")).json()
    bob = town.browser()
    assert (await accept(bob, secret(renewed), display_name="Bob")).status_code == 200
    events = await town.plane.events(made["id"])
    assert [(event["event"], event["actor"]) for event in events] == [
        ("invitation_created", admin.email),
        ("invitation_renewed", admin.email),
        ("invitation_accepted", "bob@example.org"),
    ]
    of_member = await town.plane.events(made["member_id"])
    assert [(event["event"], event["actor"]) for event in of_member] == [
        ("member_created", admin.email),
        ("member_password_updated", "bob@example.org"),
        ("member_updated", "bob@example.org"),
    ]
    assert of_member[-1]["actor_id"] == made["member_id"]
    assert of_member[-1]["before"] == {"display_name": ""}
    assert of_member[-1]["after"] == {"display_name": "Bob"}
    # Each secret was in one answer, and is in no other and in no row.
    listed = await town.plane.call("GET", "/admin/invitations")
    audited = await town.plane.call("GET", "/admin/audit?limit=500")
    rows = [str(row) for row in town.plane.sql("SELECT i::text FROM invitations i")]
    rows += [str(row) for row in town.plane.sql("SELECT a::text FROM audit a")]
    for token in (secret(made), secret(renewed)):
        for text in (listed.text, audited.text, *rows):
            assert token not in text
            assert token.removeprefix("sgi_") not in text
    assert NEW not in audited.text
    [(digest,)] = town.plane.sql("SELECT digest FROM invitations")
    assert bytes(digest) == town.plane.deps.vault.digest(secret(renewed))


async def test_of_two_who_accept_at_once_one_wins(town: Town) -> None:
    made = await invite(town.plane)
    browsers = [town.browser() for _ in range(4)]
    answers = await asyncio.gather(
        *(accept(one, secret(made), f"password number {n}") for n, one in enumerate(browsers))
    )
    assert sorted(answer.status_code for answer in answers) == [200, 410, 410, 410]
    for n, (one, answer) in enumerate(zip(browsers, answers, strict=True)):
        won = answer.status_code == 200
        assert (await one.status("GET", "/auth/session")) == (200 if won else 401)
        again = await town.browser().log_in("new@example.org", f"password number {n}")
        assert again.status_code == (200 if won else 401)
    assert town.plane.sql("SELECT count(*) FROM member_sessions") == [(2,)]


@pytest.mark.parametrize("way", ["spent", "revoked", "renewed", "replaced", "expired", "wrong"])
async def test_a_link_that_cannot_be_used_is_refused_alike_and_says_what_to_do(
    town: Town, way: str
) -> None:
    plane = town.plane
    made = await invite(plane)
    path, app = f"/admin/invitations/{made['id']}", plane.app
    token = secret(made)
    match way:
        case "spent":
            assert (await accept(town.browser(), token)).status_code == 200
        case "revoked":
            assert (await plane.ok("POST", f"{path}/revoke"))["status"] == "revoked"
        case "renewed":
            await plane.ok("POST", f"{path}/renew")
        case "replaced":
            await invite(plane)
        case "expired":
            almost = town.browser(later(plane, 7 * DAY - timedelta(minutes=1)))
            assert (await look(almost, token)).status_code == 200
            app = later(plane, 7 * DAY)
        case _:
            token += "x"
    for answer in (await look(town.browser(app), token), await accept(town.browser(app), token)):
        assert answer.status_code == 410
        assert answer.headers["content-type"] == "application/problem+json"
        assert "Ask an administrator for a new one" in answer.json()["detail"]
        assert "sign in" in answer.json()["detail"]
        assert "set-cookie" not in answer.headers
    if way != "spent":
        assert plane.sql("SELECT password_hash FROM members") == [(None,)]
        assert plane.sql("SELECT * FROM member_sessions") == []


async def test_the_cookie_that_came_along_is_never_the_session_afterwards(town: Town) -> None:
    eve, made = await town.inside(), await invite(town.plane)
    [planted] = eve.browser.cookies.values()
    answer = await accept(town.browser(), secret(made))
    assert answer.status_code == 200
    for cookie in (planted, "of-my-own-choice"):
        reset = await invite(town.plane)
        body = {"token": secret(reset), "password": NEW}
        answer = await town.browser().call(
            "POST", "/auth/invitation/accept", body, cookie=f"spendgate={cookie}"
        )
        given = answer.headers["set-cookie"].split(";")[0].partition("=")[2]
        assert given not in (planted, "of-my-own-choice")
        used = await town.browser().call("GET", "/auth/session", cookie=f"spendgate={cookie}")
        assert used.status_code == 401


async def test_another_sites_page_accepts_nothing(town: Town) -> None:
    made = await invite(town.plane)
    for path, body in (
        ("/auth/invitation", {"token": secret(made)}),
        ("/auth/invitation/accept", {"token": secret(made), "password": NEW}),
    ):
        foreign = await town.browser().call("POST", path, body, origin="https://evil.example")
        assert foreign.status_code == 403
    assert (await accept(town.browser(), secret(made))).status_code == 200


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"password": "short"}, "password"),
        ({"password": "x" * 1025}, "password"),
        ({"display_name": "x" * 201}, "display_name"),
        ({"display_name": "a\nb"}, "display_name"),
        ({"display_name": None}, "display_name"),
        ({"role": "admin"}, "role"),
        ({"token": 5}, "token"),
    ],
)
async def test_a_password_or_name_that_will_not_do_spends_nothing(
    town: Town, more: dict[str, Any], field: str
) -> None:
    made = await invite(town.plane)
    body = {"token": secret(made), "password": NEW} | more
    answer = await town.browser().call("POST", "/auth/invitation/accept", body)
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [field]
    assert (await accept(town.browser(), secret(made))).status_code == 200


# Guessing


async def test_twenty_guesses_lock_a_client_address_here_as_at_signing_in(town: Town) -> None:
    made, ada = await invite(town.plane), await town.somebody()
    here: dict[str, Any] = {"address": "198.51.100.7"}
    for n in range(20):
        guessed = await look(town.browser(**here), f"sgi_{n}")
        assert guessed.status_code == 410
    for answer in (
        await look(town.browser(**here), secret(made)),
        await accept(town.browser(**here), secret(made)),
        await town.browser(**here).log_in(ada.email, PASSWORD),
    ):
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) > 0
    other = town.browser(address="198.51.100.8")
    assert (await accept(other, secret(made))).status_code == 200
    # What was guessed is not kept.
    [(kept,)] = town.plane.sql("SELECT string_agg(f::text, ' ') FROM sign_in_failures f")
    assert "sgi_" not in kept


async def test_a_link_that_was_used_is_no_guess(town: Town) -> None:
    made = await invite(town.plane)
    browser = town.browser()
    assert (await accept(browser, secret(made))).status_code == 200
    for _ in range(25):
        assert (await look(browser, secret(made))).status_code == 410
    assert town.plane.sql("SELECT * FROM sign_in_failures") == []


# Forgotten passwords


async def test_a_reset_link_ends_the_sessions_of_its_member_when_it_is_used(town: Town) -> None:
    ada, bob = await town.inside(display_name="Ada"), await town.inside()
    made = await invite(town.plane, ada.email.upper())
    assert (made["purpose"], made["member_id"]) == ("reset", ada.member["id"])
    # Until then nothing changes.
    assert await ada.browser.status("GET", "/auth/session") == 200
    elsewhere = town.browser()
    assert (await look(elsewhere, secret(made))).json()["purpose"] == "reset"
    assert (await accept(elsewhere, secret(made))).status_code == 200
    assert await ada.browser.status("GET", "/auth/session") == 401
    assert await bob.browser.status("GET", "/auth/session") == 200
    assert await elsewhere.status("GET", "/auth/session") == 200
    assert (await ada.browser.log_in(ada.email, PASSWORD)).status_code == 401
    assert (await ada.log_in(NEW))["member"]["display_name"] == "Ada"
    assert events_of(await town.plane.events(ada.member["id"])) == [
        "member_created",
        "member_password_updated",
        "sessions_revoked",
    ]


async def test_whoever_locked_themselves_out_gets_in_by_a_reset_link(town: Town) -> None:
    ada = await town.somebody(must_change_password=True)
    for _ in range(5):
        assert (await ada.browser.log_in(ada.email, "a guess")).status_code == 401
    assert (await ada.browser.log_in(ada.email, PASSWORD)).status_code == 429
    made = await invite(town.plane, ada.email)
    answer = await accept(ada.browser, secret(made))
    # They have just chosen one: they are not asked to do it again.
    assert (answer.status_code, answer.json()["must_change_password"]) == (200, False)
    await ada.log_in(NEW)


@pytest.mark.parametrize(
    "change",
    [{"password": "another password"}, {"status": "disabled"}, {"email": "right@example.org"}],
)
async def test_what_an_admin_changes_of_a_member_ends_their_open_link(
    town: Town, change: dict[str, Any]
) -> None:
    made = await invite(town.plane)
    await town.plane.ok("PATCH", f"/admin/members/{made['member_id']}", change)
    assert (await accept(town.browser(), secret(made))).status_code == 410
    events = await town.plane.events(made["id"])
    assert events_of(events) == ["invitation_created", "invitation_revoked"]


async def test_a_change_of_name_or_role_leaves_the_link_as_it_is(town: Town) -> None:
    made = await invite(town.plane)
    path = f"/admin/members/{made['member_id']}"
    change = {"display_name": "Bob", "role": "auditor", "email": "new@example.org"}
    await town.plane.ok("PATCH", path, change)
    shown = (await look(town.browser(), secret(made))).json()
    assert (shown["display_name"], shown["role"]) == ("Bob", "auditor")


async def test_whoever_remembers_and_changes_their_password_ends_the_link(town: Town) -> None:
    ada = await town.inside()
    made = await invite(town.plane, ada.email)
    body = {"current_password": PASSWORD, "new_password": "another password"}
    assert await ada.browser.status("POST", "/auth/password", body) == 204
    assert (await look(town.browser(), secret(made))).status_code == 410


async def test_a_disabled_member_is_given_no_link_and_uses_none(town: Town) -> None:
    plane = town.plane
    made = await invite(plane)
    plane.sql("UPDATE members SET status = 'disabled'")
    answer = await accept(town.browser(), secret(made))
    assert answer.status_code == 403
    assert "disabled" in answer.json()["detail"]
    assert plane.sql("SELECT password_hash FROM members") == [(None,)]
    for path, body in (
        ("/admin/invitations", {"email": "new@example.org"}),
        (f"/admin/invitations/{made['id']}/renew", None),
    ):
        refused = await plane.call("POST", path, body)
        assert refused.status_code == 409
        assert "enable them first" in refused.json()["detail"]


# Looking after them


async def test_a_renewed_link_lasts_as_long_as_the_one_before_and_that_one_is_dead(
    town: Town,
) -> None:
    plane = town.plane
    made = await invite(plane, valid_days=2)
    tomorrow = later(plane, 3 * DAY)
    admin = await town.somebody("admin")
    ops = town.browser(tomorrow)
    await ops.log_in(admin.email, PASSWORD)
    # Also one whose time is over.
    [expired] = (await ops.call("GET", "/admin/invitations")).json()["items"]
    assert expired["status"] == "expired"
    renewed = (await ops.call("POST", f"/admin/invitations/{made['id']}/renew")).json()
    assert (renewed["id"], renewed["status"]) == (made["id"], "pending")
    assert renewed["invited_by"] == admin.email
    assert secret(renewed) != secret(made)
    lasts = datetime.fromisoformat(renewed["expires_at"]) - datetime.fromisoformat(
        renewed["issued_at"]
    )
    assert lasts == 2 * DAY
    assert renewed["created_at"] == made["created_at"]
    assert (await look(town.browser(tomorrow), secret(made))).status_code == 410
    assert (await accept(town.browser(tomorrow), secret(renewed))).status_code == 200


async def test_a_member_has_one_open_link(town: Town) -> None:
    plane = town.plane
    first = await invite(plane, valid_days=1)
    # One whose time is over stays what it was; renewed, it takes the place of the second.
    ops = Browser(later(plane, 2 * DAY))
    town.browsers.append(ops)
    bearer = {"authorization": f"Bearer {plane.token}"}
    body = {"email": "new@example.org", "valid_days": 30}
    second = (await ops.call("POST", "/admin/invitations", body, **bearer)).json()
    assert (await look(ops, secret(second))).status_code == 200
    path = f"/admin/invitations/{first['id']}/renew"
    third = (await ops.call("POST", path, **bearer)).json()
    assert (await look(ops, secret(second))).status_code == 410
    assert (await look(ops, secret(third))).status_code == 200


async def test_what_is_over_for_good_is_neither_renewed_nor_revoked(town: Town) -> None:
    plane = town.plane
    accepted, revoked = await invite(plane), await invite(plane, "other@example.org")
    assert (await accept(town.browser(), secret(accepted))).status_code == 200
    path = f"/admin/invitations/{revoked['id']}"
    once = await plane.ok("POST", f"{path}/revoke")
    assert await plane.ok("POST", f"{path}/revoke") == once
    assert events_of(await plane.events(revoked["id"])) == [
        "invitation_created",
        "invitation_revoked",
    ]
    for id, what in (
        (accepted["id"], "renew"),
        (accepted["id"], "revoke"),
        (revoked["id"], "renew"),
    ):
        answer = await plane.call("POST", f"/admin/invitations/{id}/{what}")
        assert answer.status_code == 409
        assert [error["field"] for error in answer.json()["errors"]] == ["id"]
    for id in ("nonsense", revoked["member_id"]):
        for what in ("renew", "revoke"):
            assert (await plane.call("POST", f"/admin/invitations/{id}/{what}")).status_code == 404


async def test_they_are_listed_by_what_they_are_worth(town: Town) -> None:
    plane = town.plane
    made = {
        status: await invite(
            plane, f"{status}@example.org", valid_days=1 if status == "expired" else 7
        )
        for status in get_args(InvitationStatus)
    }
    assert (await accept(town.browser(), secret(made["accepted"]))).status_code == 200
    await plane.ok("POST", f"/admin/invitations/{made['revoked']['id']}/revoke")
    auditor = await town.somebody("auditor")
    reader = town.browser(later(plane, 2 * DAY))
    await reader.log_in(auditor.email, PASSWORD)

    async def listed(query: str = "") -> Any:
        answer = await reader.call("GET", f"/admin/invitations{query}")
        assert answer.status_code == 200
        return answer.json()

    everything = (await listed())["items"]
    assert [one["email"] for one in everything] == [
        f"{status}@example.org" for status in reversed(get_args(InvitationStatus))
    ]
    for status in get_args(InvitationStatus):
        [one] = (await listed(f"?status={status}"))["items"]
        assert one in everything
        assert (one["status"], one["email"]) == (status, f"{status}@example.org")
    [one] = (await listed(f"?member_id={made['pending']['member_id']}"))["items"]
    assert one["status"] == "pending"
    assert set(one) == {
        "id", "member_id", "email", "display_name", "role", "purpose", "invited_by", "created_at",
        "issued_at", "expires_at", "accepted_at", "revoked_at", "status",
    }  # fmt: skip
    assert one["invited_by"] is None, "an admin token is nobody"
    first = await listed("?limit=3")
    rest = await listed(f"?limit=3&cursor={first['next']}")
    assert first["items"] + rest["items"] == everything
    assert rest["next"] is None
    for query in ("?status=lost", "?member_id=1", "?cursor=!", "?limit=0", "?state=pending"):
        assert (await reader.call("GET", f"/admin/invitations{query}")).status_code in (400, 422)


async def test_only_admins_invite_auditors_look_and_members_do_neither(town: Town) -> None:
    made = await invite(town.plane)
    auditor, member = await town.inside("auditor"), await town.inside()
    path = f"/admin/invitations/{made['id']}"
    writes = [
        ("/admin/invitations", {"email": "eve@example.org", "role": "admin"}),
        (f"{path}/renew", None),
        (f"{path}/revoke", None),
    ]
    for who in (auditor, member):
        for to, body in writes:
            assert await who.browser.status("POST", to, body) == 403
    assert await auditor.browser.status("GET", "/admin/invitations") == 200
    assert await member.browser.status("GET", "/admin/invitations") == 403
    assert (await look(town.browser(), secret(made))).status_code == 200
    admin = await town.inside("admin")
    for to, body in writes:
        assert await admin.browser.status("POST", to, body, csrf=None) == 403


# What an invitation says


async def test_every_field_of_an_invitation_is_stored_and_shown_again(plane: Any) -> None:
    said = {"email": "bob@example.org", "display_name": "Bob", "role": "admin"}
    made = await invite(plane, **said, valid_days=3)
    [listed] = (await plane.ok("GET", "/admin/invitations"))["items"]
    member = await plane.ok("GET", f"/admin/members/{made['member_id']}")
    for shown in (made, listed, member):
        assert {name: shown[name] for name in said} == said
    lasts = datetime.fromisoformat(listed["expires_at"]) - datetime.fromisoformat(
        listed["issued_at"]
    )
    assert lasts == 3 * DAY
    # Said again it is as before; said otherwise it would be dropped, and is refused.
    await invite(plane, **said)
    for field, value in (("display_name", "Eve"), ("role", "member")):
        answer = await plane.call("POST", "/admin/invitations", said | {field: value})
        assert answer.status_code == 409
        assert [error["field"] for error in answer.json()["errors"]] == [field]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ({"email": "nobody"}, 422),
        ({"email": "a\u0000@example.org"}, 422),
        ({"email": "a@example.org", "role": "root"}, 422),
        ({"email": "a@example.org", "valid_days": 0}, 422),
        ({"email": "a@example.org", "valid_days": 31}, 422),
        ({"email": "a@example.org", "valid_days": 1.5}, 422),
        ({"email": "a@example.org", "password": "correct horse"}, 422),
        ({"email": "a@example.org", "display_name": None}, 422),
        ([], 422),
    ],
)
async def test_what_cannot_be_an_invitation_is_refused_and_adds_nobody(
    plane: Any, body: Any, status: int
) -> None:
    assert (await plane.call("POST", "/admin/invitations", body)).status_code == status
    assert plane.sql("SELECT * FROM members") == []


async def test_a_link_leads_where_the_admin_came_to_and_nowhere_odd(plane: Any) -> None:
    body = {"email": "a@example.org"}
    there = await plane.ok(
        "POST", "/admin/invitations", body, host="gate.example", x_forwarded_proto="https"
    )
    assert there["link"].startswith("https://gate.example/invitation#sgi_")
    odd = await plane.call("POST", "/admin/invitations", body, host="evil.example/?")
    assert odd.status_code == 400


# Letters


async def mail_server(*, takes: bool) -> tuple[asyncio.Server, list[str], MailServer]:
    """Serve as a mail server that remembers letters, or takes none."""
    letters: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        while line := (await reader.readline()).decode().strip():
            verb = line.upper()
            if verb.startswith("RCPT") and not takes:
                writer.write(b"550 no such mailbox\r\n")
            elif verb == "DATA":
                writer.write(b"354 go on\r\n")
                lines: list[str] = []
                while (one := (await reader.readline()).decode().rstrip("\r\n")) != ".":
                    lines.append(one)
                letters.append("\n".join(lines))
                writer.write(b"250 OK\r\n")
            else:
                writer.write(b"221 bye\r\n" if verb == "QUIT" else b"250 mail.example\r\n")
        writer.close()

    serving = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = serving.sockets[0].getsockname()[1]
    return serving, letters, MailServer("127.0.0.1", port, False, None, None)


async def test_the_link_is_mailed_where_a_mail_server_is_set(town: Town) -> None:
    plane = town.plane
    serving_mail, letters, server = await mail_server(takes=True)
    plane.client._transport.app = serving(plane, mailer=Mailer(server, "gate@example.org"))
    async with serving_mail:
        made = await invite(plane)
        assert (made["mailed"], made["mail_error"]) == (True, None)
        odd = await invite(plane, "a,b@example.org")
        assert odd["mailed"] is False
        assert "none that letters are sent to" in odd["mail_error"]
    [letter] = letters
    assert "To: new@example.org" in letter
    assert "From: gate@example.org" in letter
    # What waits in the outbox is kept and shown; this is neither.
    assert plane.sql("SELECT * FROM events") == []


async def test_a_letter_that_is_not_taken_is_told_and_the_link_works_all_the_same(
    town: Town,
) -> None:
    plane = town.plane
    without = await invite(plane)
    assert (without["mailed"], without["mail_error"]) == (False, None)
    serving_mail, letters, server = await mail_server(takes=False)
    plane.client._transport.app = serving(plane, mailer=Mailer(server, "gate@example.org"))
    async with serving_mail:
        made = await invite(plane)
    assert (made["mailed"], letters) == (False, [])
    assert made["mail_error"] == "the mail server refused the recipient"
    assert (await accept(town.browser(), secret(made))).status_code == 200
