"""Many allocations and members are found page by page; what is wrong is said in one's language."""

from __future__ import annotations

import re
import secrets

import pytest
from playwright.sync_api import expect

from tests.browser.chromium import NARROW, WIDE, Language
from tests.browser.conftest import Open
from tests.browser.people import Person
from tests.gateway.kit import DIME, House


def test_allocations_are_searched_by_the_server_page_by_page(house: House, window: Open) -> None:
    admin, member = Person(house, role="admin"), Person(house, name="Barbara Liskov")
    model, mark = house.model(DIME), secrets.token_hex(4)
    for n in range(27):
        house.allocation(member.id, model, name=f"{mark} n{n:02}", usd="1")
    house.allocation(member.id, model, name="newest of all", usd="1")
    here = admin.enter(window(), "/admin/allocations")
    page = here.page
    page.get_by_role("searchbox", name="Search").fill(f"{mark} liskov")
    rows = page.get_by_role("row").filter(has_text=mark)
    # Until it is gone, what is shown was not searched yet.
    expect(page.get_by_role("row").filter(has_text="newest of all")).to_have_count(0)
    expect(page.get_by_text("The first 25 allocations")).to_be_visible()
    expect(rows).to_have_count(25)
    page.get_by_role("button", name="Show more").click()
    expect(rows).to_have_count(27)
    expect(page.get_by_text("27 allocations")).to_be_visible()
    page.get_by_label("Sort by", exact=True).select_option("name")
    expect(rows.first).to_contain_text(f"{mark} n00")

    page.get_by_role("checkbox", name=f"Select “{mark} n03”").check()
    page.get_by_role("searchbox", name="Search").fill(f"{mark} n26")
    expect(rows).to_have_count(1)
    assert re.search(rf"q={mark}(\+|%20)n26", page.url)
    page.get_by_role("checkbox", name=f"Select “{mark} n26”").check()
    expect(page.get_by_role("region", name="Selected allocations")).to_contain_text("2")
    sheet = page.get_by_role("link", name="Export CSV").get_attribute("href")
    assert sheet is not None
    assert f"q={mark}+n26" in sheet

    page.reload()
    here.settle()
    expect(rows).to_have_count(1)
    page.get_by_role("searchbox", name="Search").fill(f"{mark} none")
    expect(rows).to_have_count(0)
    page.get_by_role("button", name="Clear filters").first.click()
    expect(page.get_by_role("searchbox", name="Search")).to_have_value("")


def test_members_are_searched_by_the_server(house: House, window: Open) -> None:
    admin, mark = Person(house, role="admin"), secrets.token_hex(4)
    for n in range(52):
        house.api("POST", "/admin/members", {"email": f"{mark}-{n}@example.org"})
    page = admin.enter(window(), f"/admin/members?q={mark}").page
    rows = page.get_by_role("row").filter(has_text=mark)
    expect(rows).to_have_count(50)
    page.get_by_role("button", name="Show more").click()
    expect(rows).to_have_count(52)
    page.get_by_role("searchbox", name="Search").fill(f"{mark}-51@")
    expect(rows).to_have_count(1)


@pytest.mark.parametrize(
    ("language", "width", "field", "box"),
    [
        ("en", WIDE, "Another pool is named “{name}”.", "Name: Another pool is named “{name}”."),
        (
            "zh-TW",
            NARROW,
            "已有另一個名為「{name}」的共用池。",
            "名稱：已有另一個名為「{name}」的共用池。",
        ),
    ],
)
def test_what_the_server_finds_wrong_is_said_in_the_readers_language(
    house: House, window: Open, language: Language, width: int, field: str, box: str
) -> None:
    admin, name = Person(house, role="admin"), f"Pool {secrets.token_hex(4)}"
    house.api("POST", "/admin/pools", {"name": name})
    here = admin.enter(window(language=language, width=width), "/admin/pools")
    page = here.page
    adding, named = ("Add pool", "Name") if language == "en" else ("新增共用池", "名稱")
    page.get_by_role("button", name=adding).first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label(named, exact=True).fill(name)
    dialog.get_by_role("button", name=adding).click()
    expect(dialog.get_by_text(field.format(name=name), exact=True)).to_be_visible()
    expect(dialog.get_by_role("alert")).to_contain_text(box.format(name=name))
    assert here.violations() == []
    assert here.overflow() == []


def test_a_code_without_words_is_told_in_the_servers_own(house: House, window: Open) -> None:
    admin = Person(house, role="admin")
    page = admin.enter(window(language="zh-TW"), "/admin/pools").page
    said = "The moon is in the wrong phase."
    page.route(
        "**/api/admin/pools",
        lambda route: (
            route.fulfill(
                status=422,
                content_type="application/problem+json",
                json={
                    "type": "about:blank",
                    "status": 422,
                    "title": "Unprocessable Content",
                    "detail": said,
                    "code": "moon_phase",
                    "values": {},
                },
            )
            if route.request.method == "POST"
            else route.continue_()
        ),
    )
    page.get_by_role("button", name="新增共用池").first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("名稱", exact=True).fill("x")
    dialog.get_by_role("button", name="新增共用池").click()
    expect(dialog.get_by_role("alert").get_by_text(said)).to_be_visible()
