"""Every page there is: readable, reachable, within the window, in both languages and themes."""

from __future__ import annotations

from typing import get_args

import pytest
from playwright.sync_api import Page, expect

from tests.browser.chromium import NARROW, WIDE, Language, Theme
from tests.browser.conftest import Open
from tests.browser.people import Person
from tests.browser.screenshots import BEYOND_NAVIGATION
from tests.gateway.kit import DIME, House

FIRST_LOAD_MS = 1000


@pytest.mark.parametrize("theme", get_args(Theme))
@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("language", get_args(Language))
def test_nothing_is_wrong_with_any_page(
    house: House, window: Open, language: Language, width: int, theme: Theme
) -> None:
    person = Person(house, role="admin", name="Wilhelmina Featherstonehaugh-Cholmondeley")
    model = house.model(DIME)
    tenant = person.given(model, usd="1.00", tokens=10_000, name="名稱很長的配額 " + "x" * 60)
    tenant.another_key(name="A key", limits=[{"meter": "usd", "window": "day", "amount": "3"}])
    tenant.chat(max_tokens=8)
    tenant.chat(max_tokens=8)
    here = window(language=language, width=width, theme=theme)
    here.page.goto("/")
    here.page.locator("h1").wait_for()
    assert here.violations() == []
    assert here.overflow() == []
    person.enter(here)
    if width == NARROW:
        here.page.locator("header button").first.click()
    paths = here.page.locator("nav a").evaluate_all("all => all.map((one) => one.pathname)")
    assert "/allocations" in paths
    for path in [*paths, *BEYOND_NAVIGATION]:
        here.go(path)
        assert here.overflow() == [], path
        assert here.violations() == [], path


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
    expect(here.page.get_by_text("The gateway cannot be reached.")).to_be_visible(timeout=20_000)
    expect(here.page.get_by_role("article", name="Thesis")).to_be_visible()
    here.context.set_offline(False)
    expect(here.page.get_by_text("The gateway cannot be reached.")).to_be_hidden(timeout=20_000)
