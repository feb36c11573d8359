"""Invitations: an admin makes a link, and whoever has it chooses a password and is in."""

from __future__ import annotations

import secrets
from typing import Any, get_args

import pytest
from playwright.sync_api import Page, expect

from tests.browser.chromium import NARROW, WIDE, Language, Theme, Window
from tests.browser.conftest import Open
from tests.browser.people import PASSWORD, Person
from tests.gateway.kit import House

NEW = "a password of my own"

WORDS: dict[str, dict[str, str]] = {
    "en": {
        "invite": "Invite",
        "email": "Email",
        "name": "Display name",
        "role": "Role",
        "make": "Make the link",
        "link": "Link",
        "copy": "Copy",
        "copied": "Copied",
        "done": "Done",
        "no_mail": "No mail server is set",
        "invited": "You are invited",
        "own_name": "Your name",
        "fresh": "New password",
        "again": "New password, again",
        "short": "This is too short.",
        "differs": "The two new passwords differ.",
        "accept": "Save password and sign in",
        "gone": "This link cannot be used",
        "sign_in": "Sign in",
        "allocations": "Allocations",
        "account": "Account of Robert",
        "invitations": "Invitations",
        "which": "Show",
        "accepted": "Accepted",
    },
    "zh-TW": {
        "invite": "邀請",
        "email": "電子郵件",
        "name": "顯示名稱",
        "role": "角色",
        "make": "建立連結",
        "link": "連結",
        "copy": "複製",
        "copied": "已複製",
        "done": "完成",
        "no_mail": "尚未設定郵件伺服器",
        "invited": "您已受邀",
        "own_name": "您的名稱",
        "fresh": "新密碼",
        "again": "再次輸入新密碼",
        "short": "密碼太短。",
        "differs": "兩次輸入的新密碼不一致。",
        "accept": "儲存密碼並登入",
        "gone": "無法使用此連結",
        "sign_in": "登入",
        "allocations": "配額",
        "account": "Robert 的帳號",
        "invitations": "邀請",
        "which": "顯示",
        "accepted": "已接受",
    },
}


def clean(here: Window) -> None:
    """Wait until nothing moves any more; then nothing may be wrong with the page."""
    expect(here.page.locator(".animate-pulse")).to_have_count(0)
    here.page.wait_for_load_state("networkidle")
    here.page.evaluate("Promise.allSettled(document.getAnimations().map((one) => one.finished))")
    assert here.overflow() == []
    assert here.violations() == []


def link_of(page: Page) -> str:
    """Copy the link that is shown once."""
    page.get_by_role("dialog").get_by_role("button", name="Copy").click()
    return str(page.evaluate("navigator.clipboard.readText()"))


def choose(page: Page, password: str = NEW) -> None:
    page.get_by_label("New password", exact=True).fill(password)
    page.get_by_label("New password, again").fill(password)
    page.get_by_role("button", name="Save password and sign in").click()


@pytest.mark.parametrize("theme", get_args(Theme))
@pytest.mark.parametrize(("language", "width"), [("en", WIDE), ("zh-TW", NARROW)])
def test_an_admin_invites_and_whoever_opens_the_link_is_signed_in_as_that_member(
    house: House, window: Open, language: Language, width: int, theme: Theme
) -> None:
    words, look = WORDS[language], {"language": language, "width": width, "theme": theme}
    email = f"{secrets.token_hex(6)}@example.org"
    admin = Person(house, role="admin", name="Grace Hopper")
    here = admin.enter(window(**look), "/admin/members")
    page, dialog = here.page, here.page.get_by_role("dialog")
    page.get_by_role("button", name=words["invite"], exact=True).click()
    dialog.get_by_label(words["email"]).fill(email)
    dialog.get_by_label(words["name"]).fill("Bob")
    dialog.get_by_label(words["role"]).select_option("auditor")
    clean(here)
    dialog.get_by_role("button", name=words["make"]).click()
    expect(dialog.get_by_text(words["no_mail"])).to_be_visible()
    clean(here)
    link = dialog.get_by_label(words["link"], exact=True).inner_text()
    dialog.get_by_role("button", name=words["copy"]).click()
    expect(dialog.get_by_role("button", name=words["copied"])).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == link
    dialog.get_by_role("button", name=words["done"]).click()
    expect(dialog).to_have_count(0)
    assert link.partition("#")[2] not in page.content(), "shown once"
    row = (
        page.get_by_role("table", name=words["invitations"])
        .get_by_role("row")
        .filter(has_text=email)
    )
    expect(row).to_have_count(1)
    clean(here)

    there: Any = window(**look)
    asked: list[str] = []
    there.page.on("request", lambda one: asked.append(f"{one.url} {one.headers}"))
    there.page.goto(link)
    expect(there.page.get_by_role("heading", level=1)).to_have_text(words["invited"])
    expect(there.page.get_by_label(words["email"])).to_have_value(email)
    expect(there.page.get_by_text(admin.email)).to_be_visible()
    clean(there)
    there.page.get_by_label(words["own_name"]).fill("Robert")
    there.page.get_by_label(words["fresh"], exact=True).fill("short")
    there.page.get_by_label(words["again"]).fill("other")
    # By keyboard from here on.
    there.page.keyboard.press("Enter")
    expect(there.page.get_by_text(words["short"])).to_be_visible()
    there.page.get_by_label(words["fresh"], exact=True).fill(NEW)
    there.page.keyboard.press("Enter")
    expect(there.page.get_by_text(words["differs"])).to_be_visible()
    clean(there)
    there.page.get_by_label(words["again"]).fill(NEW)
    there.page.keyboard.press("Tab")
    expect(there.page.get_by_role("button", name=words["accept"])).to_be_focused()
    there.page.keyboard.press("Enter")
    expect(there.page.get_by_role("button", name=words["account"])).to_be_visible()
    assert there.page.evaluate("location.hash") == ""
    token = link.partition("#")[2]
    assert not any(token in one for one in asked), "in no address and no header"

    again = window(**look)
    again.page.goto(link)
    expect(again.page.get_by_role("heading", level=1)).to_have_text(words["gone"])
    clean(again)
    again.page.get_by_role("link", name=words["sign_in"]).click()
    again.sign_in(email, NEW)
    page.get_by_label(words["which"], exact=True).select_option("accepted")
    expect(page.get_by_text(email).first).to_be_visible()
    clean(here)


def test_a_member_who_forgot_their_password_is_given_a_link_to_another_one(
    house: House, window: Open
) -> None:
    admin = Person(house, role="admin", name="Grace Hopper")
    ada = Person(house, name="Ada Lovelace")
    inside = ada.enter(window())
    here = admin.enter(window(), f"/admin/members?id={ada.id}")
    here.page.get_by_role("button", name="Reset link").click()
    expect(here.page.get_by_role("dialog")).to_contain_text("all of their other sign-ins end")
    here.page.get_by_role("button", name="Make the link").click()
    link = link_of(here.page)
    # Opened where somebody else is signed in, it says so.
    there = Person(house, name="Eve").enter(window())
    there.page.goto(link)
    expect(there.page.get_by_text("You are signed in as")).to_be_visible()
    choose(there.page)
    expect(there.page.get_by_role("button", name="Account of Ada Lovelace")).to_be_visible()
    inside.page.reload()
    expect(inside.page.get_by_role("heading", level=1)).to_have_text("Sign in")
    inside.sign_in(ada.email, NEW)


def test_an_invitation_is_renewed_and_revoked_with_its_effect_told_first(
    house: House, window: Open
) -> None:
    admin = Person(house, role="admin", name="Grace Hopper")
    email = f"{secrets.token_hex(6)}@example.org"
    first = house.api("POST", "/admin/invitations", {"email": email})["link"]
    here = admin.enter(window(), "/admin/members")
    dialog = here.page.get_by_role("dialog")
    here.page.get_by_role("button", name=f"Renew the link of {email}").click()
    expect(dialog).to_contain_text("stops working at once")
    dialog.get_by_role("button", name="Renew").click()
    second = link_of(here.page)
    dialog.get_by_role("button", name="Done").click()
    there = window()
    # Half a link is told so as well, and is no guess.
    there.page.goto(first.partition("#")[0])
    expect(there.page.get_by_role("heading", level=1)).to_have_text("This link cannot be used")
    there.page.goto(first)
    expect(there.page.get_by_role("heading", level=1)).to_have_text("This link cannot be used")
    # In the same tab only what is after the `#` changes.
    there.page.goto(second)
    expect(there.page.get_by_role("heading", level=1)).to_have_text("You are invited")
    here.page.get_by_role("button", name=f"Revoke {email}").click()
    expect(dialog).to_contain_text("for good")
    dialog.get_by_role("button", name="Revoke").click()
    expect(here.page.get_by_role("button", name=f"Revoke {email}")).to_have_count(0)
    choose(there.page)
    expect(there.page.get_by_role("alert")).to_contain_text("Ask an administrator for a new link")


def test_auditors_see_invitations_and_make_none(house: House, window: Open) -> None:
    email = f"{secrets.token_hex(6)}@example.org"
    house.api("POST", "/admin/invitations", {"email": email})
    here = Person(house, role="auditor").enter(window(), "/admin/members")
    expect(here.page.get_by_role("table", name="Invitations").get_by_text(email)).to_be_visible()
    for name in ("Invite", f"Renew the link of {email}", f"Revoke {email}"):
        expect(here.page.get_by_role("button", name=name)).to_have_count(0)


def test_every_field_that_the_form_sends_is_stored_and_shown_again(
    house: House, window: Open
) -> None:
    admin = Person(house, role="admin", name="Grace Hopper")
    email = f"{secrets.token_hex(6)}@example.org"
    here = admin.enter(window(), "/admin/members")
    here.page.get_by_role("button", name="Invite", exact=True).click()
    dialog = here.page.get_by_role("dialog")
    dialog.get_by_label("Email").fill(email)
    dialog.get_by_label("Display name").fill("Bob")
    dialog.get_by_label("Role").select_option("admin")
    dialog.get_by_label("The link is valid for").select_option("14")
    with here.page.expect_request("**/api/admin/invitations") as sent:
        dialog.get_by_role("button", name="Make the link").click()
    said = sent.value.post_data_json
    assert said == {"email": email, "display_name": "Bob", "role": "admin", "valid_days": 14}
    expect(dialog.get_by_label("Link", exact=True)).to_be_visible()
    [stored] = [
        one for one in house.api("GET", "/admin/invitations")["items"] if one["email"] == email
    ]
    lasts = house.sql(
        "SELECT extract(day FROM expires_at - issued_at)::int FROM invitations WHERE id = %s",
        stored["id"],
    )
    assert lasts == [(said.pop("valid_days"),)]
    assert {name: stored[name] for name in said} == said
    dialog.get_by_role("button", name="Done").click()
    row = here.page.get_by_role("row").filter(has_text=email).last
    expect(row).to_contain_text("Bob")
    expect(row).to_contain_text("Administrator")
    # Said of somebody who is a member already it would be dropped: the form says so.
    other = Person(house, name="Ada Lovelace")
    here.page.get_by_role("button", name="Invite", exact=True).click()
    dialog.get_by_label("Email").fill(other.email)
    dialog.get_by_label("Role").select_option("admin")
    dialog.get_by_role("button", name="Make the link").click()
    expect(dialog.get_by_role("alert")).to_be_visible()
    expect(dialog.get_by_label("Role")).to_have_attribute("aria-invalid", "true")
    assert PASSWORD not in str(said)
