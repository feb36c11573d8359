"""Who may come in, and what they see while they may not."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from tests.browser.chromium import NARROW
from tests.browser.conftest import Open
from tests.browser.people import PASSWORD, Person
from tests.gateway.kit import House


def test_a_member_signs_in_and_out(house: House, window: Open) -> None:
    person, here = Person(house), window()
    person.enter(here)
    expect(here.page.get_by_role("heading", level=1)).to_have_text("Allocations")
    here.page.get_by_role("button", name="Account of Ada Lovelace").click()
    here.page.get_by_role("menuitem", name="Sign out").click()
    expect(here.page.get_by_role("heading", level=1)).to_have_text("Sign in")
    here.page.reload()
    expect(here.page.get_by_label("Password")).to_be_visible()


def test_a_wrong_password_is_told_and_a_lockout_too_in_the_readers_language(
    house: House, window: Open
) -> None:
    person, here = Person(house), window(language="zh-TW")
    here.page.goto("/")
    for _ in range(20):
        here.page.get_by_label("電子郵件").fill(person.email)
        here.page.get_by_label("密碼").fill("something else")
        here.page.get_by_role("button", name="登入").click()
        alert = here.page.get_by_role("alert")
        expect(alert).to_contain_text(re.compile("密碼錯誤|登入失敗次數過多"))
        if "過多" in alert.inner_text():
            break
    else:
        raise AssertionError("nobody was locked out")
    assert re.search(r"\d+ 分鐘", alert.inner_text())


def test_the_address_one_came_for_is_where_one_is_after_signing_in(
    house: House, window: Open
) -> None:
    here = Person(house).enter(window(), "/calls?outcome=success")
    expect(here.page.get_by_role("heading", level=1)).to_have_text("Calls")
    expect(here.page.get_by_label("Outcome")).to_have_value("success")


def test_a_session_that_ends_leads_to_the_sign_in_and_back_to_the_page(
    house: House, window: Open
) -> None:
    person = Person(house)
    here = person.enter(window(), "/keys")
    house.api("PATCH", f"/admin/members/{person.id}", {"status": "disabled"})
    house.api("PATCH", f"/admin/members/{person.id}", {"status": "active"})
    # Nobody touches the page: what it asks by itself finds out.
    expect(here.page.get_by_role("heading", level=1)).to_have_text("Sign in", timeout=15_000)
    here.sign_in(person.email, PASSWORD)
    expect(here.page.get_by_role("heading", level=1)).to_have_text("Keys")


def test_a_password_is_changed_and_other_sessions_end(house: House, window: Open) -> None:
    person = Person(house)
    other = person.enter(window())
    here = person.enter(window(), "/account")
    assert here.page.get_by_role("button", name="Sign out").count() == 1, "the other window's"
    here.page.get_by_label("Current password").fill(PASSWORD)
    here.page.get_by_label("New password", exact=True).fill("short")
    here.page.get_by_label("New password, again").fill("other")
    here.page.get_by_role("button", name="Change password").click()
    expect(here.page.get_by_text("This is too short.")).to_be_visible()
    here.page.get_by_label("New password", exact=True).fill("a longer secret of mine")
    here.page.get_by_label("New password, again").fill("a longer secret of mine")
    here.page.get_by_role("button", name="Change password").click()
    expect(here.page.get_by_text("Password changed")).to_be_visible()
    other.page.reload()
    expect(other.page.get_by_role("heading", level=1)).to_have_text("Sign in")


def test_a_bootstrap_password_opens_nothing_but_its_change(house: House, window: Open) -> None:
    person, here = Person(house), window()
    house.api("PATCH", f"/admin/members/{person.id}", {"must_change_password": True})
    asked = "fetch('/api/me/allocations').then((answer) => answer.status)"
    page, heading = here.page, here.page.get_by_role("heading", level=1)
    page.goto("/keys")
    here.sign_in(person.email, PASSWORD)
    expect(heading).to_have_text("Choose a new password")
    page.goto("/allocations")
    expect(heading).to_have_text("Choose a new password")
    expect(page.get_by_role("link")).to_have_count(0)
    assert page.evaluate(asked) == 403
    page.get_by_label("Current password").fill(PASSWORD)
    for label in ("New password", "New password, again"):
        page.get_by_label(label, exact=True).fill(PASSWORD)
    page.get_by_role("button", name="Change password").click()
    expect(page.get_by_text("This password cannot be used.")).to_be_visible()
    for label in ("New password", "New password, again"):
        page.get_by_label(label, exact=True).fill("a longer secret of mine")
    page.get_by_role("button", name="Change password").click()
    expect(heading).to_have_text("Allocations")
    assert page.evaluate(asked) == 200
    again = window()
    again.page.goto("/keys")
    again.sign_in(person.email, "a longer secret of mine")
    expect(again.page.get_by_role("heading", level=1)).to_have_text("Keys")


def test_another_browser_is_signed_out_from_the_account_page(house: House, window: Open) -> None:
    person = Person(house)
    other = person.enter(window(width=NARROW))
    here = person.enter(window(), "/account")
    here.page.get_by_role("button", name="Sign out").click()
    here.page.get_by_role("dialog").get_by_role("button", name="Sign out").click()
    expect(here.page.get_by_role("dialog")).to_have_count(0)
    other.page.reload()
    expect(other.page.get_by_role("heading", level=1)).to_have_text("Sign in")


def test_members_see_no_administration_and_unknown_addresses_say_so(
    house: House, window: Open
) -> None:
    here = Person(house).enter(window(), "/no/such/page")
    expect(here.page.get_by_role("heading", level=1)).to_have_text("Not found")
    links = here.page.locator("nav a").evaluate_all("all => all.map((one) => one.pathname)")
    assert links == ["/allocations", "/usage", "/calls", "/keys", "/sessions"]


def test_the_language_and_the_theme_are_kept(house: House, window: Open) -> None:
    here = Person(house).enter(window())
    here.page.get_by_role("button", name="Language").click()
    here.page.get_by_role("menuitemradio", name="繁體中文").click()
    expect(here.page.get_by_role("heading", level=1)).to_have_text("配額")
    here.page.get_by_role("button", name="佈景主題").click()
    here.page.get_by_role("menuitemradio", name="深色").click()
    here.page.reload()
    expect(here.page.get_by_role("heading", level=1)).to_have_text("配額")
    root = here.page.locator("html")
    expect(root).to_have_attribute("data-theme", "dark")
    expect(root).to_have_attribute("lang", "zh-Hant-TW")
