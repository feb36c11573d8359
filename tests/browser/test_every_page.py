"""Every page there is: readable, reachable, within the window, in both languages and themes."""

from __future__ import annotations

from typing import get_args

import pytest
from playwright.sync_api import Page, expect

from tests.browser.chromium import NARROW, WIDE, Language, Theme, Window
from tests.browser.conftest import Open
from tests.browser.people import Person
from tests.browser.screenshots import BEYOND_NAVIGATION
from tests.gateway.kit import DIME, House, served

FIRST_LOAD_MS = 1000
LIGHT, DARK = "rgb(245, 247, 246)", "rgb(13, 19, 18)"
"""The paper of each theme."""


@pytest.mark.parametrize("language", get_args(Language))
def test_nothing_is_wrong_with_any_page(house: House, window: Open, language: Language) -> None:
    person = Person(house, role="admin", name="Wilhelmina Featherstonehaugh-Cholmondeley")
    model = house.model(DIME)
    tenant = person.given(model, usd="1.00", tokens=10_000, name="名稱很長的配額 " + "x" * 60)
    tenant.another_key(name="A key", limits=[{"meter": "usd", "window": "day", "amount": "3"}])
    tenant.chat(max_tokens=8)
    tenant.chat(max_tokens=8)
    here = window(language=language, still=True)
    here.page.goto("/")
    here.page.locator("h1").wait_for()
    _look(here, "sign-in")
    person.enter(here)
    paths = here.page.locator("nav a").evaluate_all("all => all.map((one) => one.pathname)")
    assert "/allocations" in paths
    for path in [*paths, *BEYOND_NAVIGATION]:
        here.go(path)
        _look(here, path)


def _look(here: Window, path: str) -> None:
    """Look at a page wide and narrow, light and dark, in one visit."""
    for width in (NARROW, WIDE):
        here.resize(width)
        assert here.overflow() == [], (path, width)
        for theme in get_args(Theme):
            here.page.emulate_media(color_scheme=theme)
            # What is dark differs from what is light in nothing but its colours.
            only = () if theme == "light" else ("color-contrast",)
            assert here.violations(only) == [], (path, width, theme)


def test_a_page_is_used_by_keyboard_alone(house: House, window: Open) -> None:
    person = Person(house)
    person.given(house.model(DIME), usd="1.00", name="Thesis")
    here = person.enter(window())
    page = here.page
    here.go("/allocations")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("main")).to_be_focused()
    page.keyboard.press("Tab")
    ask = page.get_by_role("button", name="Ask for more")
    expect(ask).to_be_focused()
    outline = ask.evaluate("one => getComputedStyle(one).outlineStyle")
    assert outline == "solid", "focus is visible"
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(ask).to_be_focused()
    page.get_by_role("link", name="Usage").first.press("Enter")
    expect(page.get_by_role("heading", level=1, name="Usage")).to_be_focused()


def test_focus_comes_back_from_a_dialog_also_when_what_opened_it_is_gone(
    house: House, window: Open
) -> None:
    person = Person(house)
    person.given(house.model(DIME), usd="1.00", name="Thesis")
    page = person.enter(window(), "/keys").page
    revoke = page.get_by_role("button", name="Revoke")
    revoke.press("Enter")
    cancel = page.get_by_role("dialog").get_by_role("button", name="Cancel")
    expect(cancel).to_be_focused()
    cancel.press("Enter")
    expect(revoke).to_be_focused()
    revoke.press("Enter")
    page.get_by_role("dialog").get_by_role("button", name="Revoke").press("Enter")
    expect(revoke).to_have_count(0)
    expect(page.get_by_role("main")).to_be_focused()


def test_nothing_moves_for_who_asks_for_less_motion(house: House, window: Open) -> None:
    person = Person(house)
    served(person.given(house.model(DIME), usd="1.00", name="Thesis").chat(max_tokens=1))
    here = person.enter(window(still=True))
    page = here.page
    page.get_by_role("button", name="Ask for more").click()
    dialog = page.get_by_role("dialog")
    assert dialog.evaluate(_MOVES) == []
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Language").click()
    assert page.get_by_role("menu").evaluate(_MOVES) == []
    page.goto("/usage", wait_until="commit")
    page.locator(".recharts-rectangle").first.wait_for()
    assert page.locator("body").evaluate(_MOVES) == []

    page.emulate_media(reduced_motion="no-preference")
    here.go("/allocations")
    page.get_by_role("button", name="Ask for more").click()
    assert "appear" in dialog.evaluate(_MOVES), "else this test would see nothing"


# All that runs, and what would run again.
_MOVES = """(node) => [...new Set(
  [node, ...node.querySelectorAll('*')].flatMap((one) => [
    getComputedStyle(one).animationName,
    ...one.getAnimations().map((move) => move.animationName ?? move.transitionProperty),
  ]),
)].filter((name) => name !== 'none')"""


def test_dark_follows_the_system_until_the_reader_chooses(house: House, window: Open) -> None:
    here = Person(house).enter(window(theme="dark"))
    page, root = here.page, here.page.locator("html")

    def choose(theme: str) -> None:
        page.get_by_role("button", name="Theme").click()
        page.get_by_role("menuitemradio", name=theme).click()

    expect(root).to_have_css("background-color", DARK)
    page.emulate_media(color_scheme="light")
    expect(root).to_have_css("background-color", LIGHT)
    choose("Dark")
    expect(root).to_have_css("background-color", DARK)
    page.reload()
    expect(root).to_have_css("background-color", DARK)
    choose("System")
    expect(root).to_have_css("background-color", LIGHT)
    page.emulate_media(color_scheme="dark")
    expect(root).to_have_css("background-color", DARK)


def test_the_first_page_is_there_within_a_second(house: House, window: Open) -> None:
    person = Person(house)
    person.given(house.model(DIME), usd="1.00", name="Thesis")
    here = person.enter(window())
    took = min(_first_load(here.page) for _ in range(3))
    assert took < FIRST_LOAD_MS


def _first_load(page: Page) -> float:
    page.goto("about:blank")
    page.goto("/allocations", wait_until="commit")
    page.get_by_role("button", name="Ask for more").wait_for()
    return float(page.evaluate("performance.now()"))


def test_the_gateway_away_is_told_and_back_is_seen(house: House, window: Open) -> None:
    person = Person(house)
    person.given(house.model(DIME), usd="1.00", name="Thesis")
    here = person.enter(window())
    here.context.set_offline(True)
    expect(here.page.get_by_text("Cannot reach the gateway.")).to_be_visible(timeout=20_000)
    expect(here.page.get_by_role("article", name="Thesis")).to_be_visible()
    here.context.set_offline(False)
    expect(here.page.get_by_text("Cannot reach the gateway.")).to_be_hidden(timeout=20_000)
