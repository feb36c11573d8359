"""Signing in with an identity provider, as people see it: there, back, and why not."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.chromium import NARROW, WIDE, Window
from tests.browser.people import PASSWORD, Person
from tests.control.openid import SECRET, OpenIdProvider, serve_openid
from tests.gateway.kit import House, Server

Open = Callable[..., Window]


@pytest.fixture(scope="module")
def running() -> Iterator[OpenIdProvider]:
    """The provider, which is another site than ours."""
    with serve_openid("localhost") as provider:
        yield provider


@pytest.fixture(scope="module")
def replica(
    estate: House, running: OpenIdProvider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server on the same database that knows the provider."""
    directory: Path = tmp_path_factory.mktemp("oidc") / "server"
    server = Server(
        directory,
        estate.dsn,
        oidc_issuer=running.issuer,
        oidc_client_secret=SECRET,
        oidc_name="Example",
        oidc_domains="example.com",
    ).start()
    yield server
    server.stop()


@pytest.fixture
def openid(running: OpenIdProvider) -> OpenIdProvider:
    """The provider, and somebody there whom we have never seen."""
    running.begin()
    name = secrets.token_hex(6)
    running.person |= {"sub": name, "email": f"{name}@example.com"}
    return running


@pytest.fixture
def window(browser: Browser, replica: Server, house: House) -> Iterator[Open]:
    """Opens windows on that server."""
    opened: list[Window] = []

    def window(**more: Any) -> Window:
        opened.append(Window(browser, replica.url, **more))
        return opened[-1]

    yield window
    for one in opened:
        one.context.close()
    for one in opened:
        assert one.complaints == []


def test_the_button_leads_to_the_provider_and_back_to_the_page_one_came_for(
    openid: OpenIdProvider, window: Open
) -> None:
    here = window()
    here.page.goto("/calls?outcome=success")
    here.page.get_by_role("link", name="Sign in with Example").click()
    expect(here.page.get_by_role("heading", level=1)).to_have_text("Calls")
    expect(here.page.get_by_label("Outcome")).to_have_value("success")
    assert "/authorize" in openid.asked
    here.page.reload()
    expect(here.page.get_by_role("heading", level=1)).to_have_text("Calls")
    # Nobody asks them for a password that they do not have.
    here.go("/account")
    expect(here.page.get_by_text("You have no password here, and need none.")).to_be_visible()
    expect(here.page.get_by_label("Current password")).to_have_count(0)
    here.page.get_by_role("button", name="Account of Ada Lovelace").click()
    here.page.get_by_role("menuitem", name="Sign out").click()
    expect(here.page.get_by_role("link", name="Sign in with Example")).to_be_visible()


@pytest.mark.parametrize(("language", "width"), [("en", WIDE), ("zh-TW", NARROW)])
def test_why_one_is_not_let_in_is_told_in_the_readers_language(
    openid: OpenIdProvider, window: Open, language: Any, width: int
) -> None:
    words = {
        "en": ("Sign in with Example", "has not verified your email", "Email", "Password"),
        "zh-TW": ("以 Example 登入", "尚未驗證您的電子郵件", "電子郵件", "密碼"),
    }[language]
    openid.person["email_verified"] = False
    here = window(language=language, width=width)
    here.page.goto("/keys")
    here.page.get_by_role("link", name=words[0]).click()
    alert = here.page.get_by_role("alert")
    expect(alert).to_contain_text(words[1])
    expect(alert).to_contain_text(re.compile(r"req_[0-9a-f-]{36}"))
    assert here.overflow() == []
    assert here.violations() == []
    # It is told once, and the page that one came for is still the one.
    assert here.page.url.endswith("/keys")
    here.page.reload()
    expect(here.page.get_by_label(words[2])).to_be_visible()
    expect(alert).to_have_count(0)
    openid.person["email_verified"] = True
    here.page.get_by_role("link", name=words[0]).click()
    expect(here.page.get_by_role("heading", level=1)).not_to_have_text(words[0])
    assert here.page.url.endswith("/keys")


def test_who_has_a_password_signs_in_with_either_until_an_admin_unlinks_them(
    house: House, openid: OpenIdProvider, window: Open
) -> None:
    person, admin = Person(house), Person(house, "admin")
    openid.person["email"] = person.email
    theirs = window()
    theirs.page.goto("/account")
    theirs.page.get_by_role("link", name="Sign in with Example").click()
    expect(theirs.page.get_by_text("with Example, or with your password")).to_be_visible()
    expect(theirs.page.get_by_label("Current password")).to_be_visible()
    here = window()
    admin.enter(here, f"/admin/members?id={person.id}")
    here.page.get_by_role("button", name="Unlink Example").click()
    here.page.get_by_role("dialog").get_by_role("button", name="Unlink", exact=True).click()
    expect(here.page.get_by_role("button", name="Unlink Example")).to_have_count(0)
    theirs.page.reload()
    theirs.sign_in(person.email, PASSWORD)
    expect(theirs.page.get_by_label("Current password")).to_be_visible()
    expect(theirs.page.get_by_text("with Example, or with your password")).to_have_count(0)


def test_a_provider_that_is_away_is_told_of_and_the_password_works(
    house: House, openid: OpenIdProvider, window: Open
) -> None:
    person = Person(house)
    here = window()
    here.page.goto("/keys")
    openid.answers = {"/token": (503, b"")}
    here.page.get_by_role("link", name="Sign in with Example").click()
    expect(here.page.get_by_role("alert")).to_contain_text("cannot be reached")
    here.sign_in(person.email, PASSWORD)
    expect(here.page.get_by_role("heading", level=1)).to_have_text("Keys")
