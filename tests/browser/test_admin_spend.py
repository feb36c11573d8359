"""What admins do about spending, and what members see of it: caps, requests, pools, many at once."""

from __future__ import annotations

import secrets
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.chromium import NARROW, Language
from tests.browser.conftest import Open
from tests.browser.people import Person
from tests.browser.words import BOTH_WAYS, Words
from tests.gateway.kit import DIME, House, refused, served

LIVE_MS = 15_000
"""An open page knows by then what has changed, without a reload."""

PATHS = ["/admin/allocations", "/admin/pools", "/admin/token-pool"]


def found(page: Page, name: str) -> Any:
    """Return the row of the table with this name in it."""
    return page.get_by_role("row").filter(has_text=name)


def test_a_cap_that_is_set_shows_on_the_open_card_and_says_before_what_it_will_do(
    house: House, window: Open
) -> None:
    admin, member = Person(house, role="admin"), Person(house, name="Grace Hopper")
    tenant = member.given(house.model(DIME), usd="10", name=f"Thesis {secrets.token_hex(3)}")
    name = tenant.standing()["name"]
    served(tenant.chat(max_tokens=6))
    theirs = member.enter(window())
    card = theirs.page.get_by_role("article", name=name)
    expect(card).to_have_attribute("data-state", "ok")

    page = admin.enter(window(), f"/admin/allocations?q={name.replace(' ', '+')}").page
    caps = page.get_by_role("button", name=f"Caps of “{name}”")
    caps.click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_text("$0.60 used: $9.40 left")).to_be_visible()
    dialog.get_by_label("Spend cap per month (USD)").fill("0.5")
    expect(dialog.get_by_text("$0.60 used: blocks now")).to_be_visible()
    save = dialog.get_by_role("button", name="Save and block")
    save.click()
    expect(dialog.get_by_text("Say why: it is kept in the audit log.")).to_be_visible()
    assert tenant.standing()["quota_cost_usd_per_month"] == "10.00"
    dialog.get_by_label("Why").fill("The grant has ended")
    save.click()
    expect(dialog).to_be_hidden()
    expect(caps).to_be_focused()
    expect(found(page, name).get_by_text("Used up")).to_be_visible()

    expect(card).to_have_attribute("data-state", "exhausted", timeout=LIVE_MS)
    refused(tenant.chat(max_tokens=1), 429, "cost_quota_exceeded")
    [event] = house.api(
        "GET",
        f"/admin/audit?event=allocation_cost_quota_updated&object_id={tenant.standing()['id']}"
        "&limit=1",
    )["items"]
    assert (event["before"], event["after"]) == ("10.00", "0.50")
    assert event["reason"] == "The grant has ended"


def test_a_member_asks_an_admin_gives_and_calls_work_again(house: House, window: Open) -> None:
    admin, member = Person(house, role="admin"), Person(house, name="Barbara Liskov")
    tenant = member.given(house.model(DIME), usd="0.5", name="Evaluation")
    served(tenant.chat(max_tokens=5))
    refused(tenant.chat(max_tokens=1), 429, "cost_quota_exceeded")
    page = admin.enter(window(), "/admin/requests").page
    theirs = member.enter(window()).page
    theirs.get_by_role("button", name="Ask for more").click()
    theirs.get_by_label("How much more").fill("5")
    theirs.get_by_label("Reason").fill("The last chapter")
    theirs.get_by_role("button", name="Send request").click()

    asked = page.get_by_role("article", name="Barbara Liskov: +$5.00")
    expect(asked.get_by_text("The last chapter")).to_be_visible(timeout=LIVE_MS)
    asked.get_by_role("button", name="Approve").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Amount (USD)").fill("2.50")
    dialog.get_by_label("Note").fill("Half for now")
    dialog.get_by_role("button", name="Approve +$2.50").click()
    expect(asked).to_be_hidden()
    expect(found(page, "Half for now").get_by_text("Approved")).to_be_visible()

    card = theirs.get_by_role("article", name="Evaluation")
    expect(card).to_have_attribute("data-state", "ok", timeout=LIVE_MS)
    expect(card.get_by_text("+$2.50")).to_be_visible()
    served(tenant.chat(max_tokens=1))
    [top_up] = tenant.standing()["top_ups"]
    assert (top_up["amount"], top_up["reason"]) == ("2.50", "The last chapter")


def test_a_request_is_declined_with_a_reason_or_not_at_all(house: House, window: Open) -> None:
    admin, member = Person(house, role="admin"), Person(house, name="Ken Thompson")
    tenant = member.given(house.model(DIME), tokens=50, name="Notes")
    theirs = member.enter(window()).page
    theirs.get_by_role("button", name="Ask for more").click()
    theirs.get_by_label("How much more").fill("1k")
    theirs.get_by_label("Reason").fill("To play")
    theirs.get_by_role("button", name="Send request").click()
    page = admin.enter(window(), "/admin/requests").page
    page.get_by_role("article", name="Ken Thompson").get_by_role("button", name="Decline").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Decline").click()
    expect(dialog.get_by_text("Enter a reason; the member will read it.")).to_be_visible()
    dialog.get_by_label("Why").fill("Not this term")
    dialog.get_by_role("button", name="Decline").click()
    expect(found(page, "Not this term").get_by_text("Declined")).to_be_visible()
    expect(theirs.get_by_text("Not this term")).to_be_visible(timeout=LIVE_MS)
    assert tenant.standing()["top_ups"] == []


@pytest.mark.parametrize(("language", "width"), BOTH_WAYS)
def test_a_sheet_with_two_bad_rows_adds_nothing_and_without_them_all(
    house: House, window: Open, language: Language, width: int
) -> None:
    words = Words(language)
    admin, member = Person(house, role="admin"), Person(house)
    model = house.model(DIME)
    header = "email,name,models,quota_cost_usd_per_month,quota_tokens_per_month\n"
    good = f"{member.email},Course,{model},10,5000\n{member.email},Lab,{model},0,\n"
    bad = f"nobody@example.org,Ghost,{model},1,\n{member.email},Odd,{model},ten,\n"
    page = admin.enter(window(language=language, width=width), "/admin/allocations").page
    page.get_by_role("button", name=words("adminAllocations.import.action")).click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label(words("adminAllocations.import.csv")).fill(header + good + bad)
    dialog.get_by_role("button", name=words("adminAllocations.bulk.check")).click()
    expect(dialog.get_by_text(words("adminAllocations.bulk.bad", count=2, all=4))).to_be_visible()
    expect(found(page, words("faults.unknown_email", email="nobody@example.org"))).to_contain_text(
        "4"
    )
    expect(found(page, words("faults.cap_unreadable"))).to_contain_text("5")
    expect(
        dialog.get_by_role("button", name=words.beginning("adminAllocations.import.apply_other"))
    ).to_have_count(0)
    assert house.api("GET", f"/admin/allocations?member_id={member.id}")["items"] == []

    dialog.get_by_label(words("adminAllocations.import.csv")).fill(header + good)
    dialog.get_by_role("button", name=words("adminAllocations.bulk.check")).click()
    expect(dialog.get_by_text(words("adminAllocations.bulk.fine", count=2))).to_be_visible()
    assert house.api("GET", f"/admin/allocations?member_id={member.id}")["items"] == []
    dialog.get_by_role("button", name=words("adminAllocations.import.apply", count=2)).click()
    expect(dialog).to_be_hidden()
    added = house.api("GET", f"/admin/allocations?member_id={member.id}")["items"]
    caps = {one["name"]: one["quota_cost_usd_per_month"] for one in added}
    assert caps == {"Course": "10.00", "Lab": "0.00"}


def test_chosen_rows_are_changed_alike_after_a_look(house: House, window: Open) -> None:
    admin, member = Person(house, role="admin"), Person(house, name="Edsger Dijkstra")
    tenants = [member.given(house.model(DIME), usd="1", name=f"Part {n}") for n in range(3)]
    page = admin.enter(window(), f"/admin/allocations?member_id={member.id}").page
    for n in (0, 2):
        page.get_by_role("checkbox", name=f"Select “Part {n}”").check()
    page.get_by_role("button", name="Change…").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("checkbox", name="Spend cap per month (USD)").check()
    dialog.get_by_role("textbox", name="Spend cap per month (USD)").fill("0")
    dialog.get_by_label("Why").fill("Closed over the summer")
    dialog.get_by_role("button", name="Check").click()
    expect(dialog.get_by_text("All 2 rows are fine")).to_be_visible()
    expect(dialog.get_by_text("Used up")).to_have_count(2)
    assert [one.standing()["quota_cost_usd_per_month"] for one in tenants] == ["1.00"] * 3
    dialog.get_by_role("button", name="Change 2").click()
    expect(dialog).to_be_hidden()
    caps = [one.standing()["quota_cost_usd_per_month"] for one in tenants]
    assert caps == ["0.00", "1.00", "0.00"]


def test_every_field_of_an_allocation_is_kept_and_shown_again(house: House, window: Open) -> None:
    admin, member = Person(house, role="admin"), Person(house)
    model, pool = house.model(DIME), f"Lab {secrets.token_hex(4)}"
    pool_id = house.api("POST", "/admin/pools", {"name": pool})["id"]
    page = admin.enter(window(), "/admin/allocations").page
    page.get_by_role("button", name="Add allocation").first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Member").select_option(member.id)
    dialog.get_by_label("Name", exact=True).fill("Everything")
    dialog.get_by_role("checkbox", name=model).check()
    dialog.get_by_label("Spend cap per month (USD)").fill("12.50")
    dialog.get_by_label("Token cap per month").fill("1.5M")
    dialog.get_by_label("Pool", exact=True).select_option(pool_id)
    dialog.get_by_label("Unpriced calls").select_option("deny")
    dialog.get_by_text("More settings").click()
    dialog.get_by_label("Last call before the cap").select_option("last_call")
    dialog.get_by_label("When the ledger is unreachable").select_option("allow")
    dialog.get_by_label("Time zone for its months").fill("Asia/Taipei")
    dialog.get_by_label("Token floor").fill("5k")
    dialog.get_by_role("checkbox", name="Lock its token cap").check()
    dialog.get_by_role("checkbox", name="service").check()
    dialog.get_by_label("Reason").fill("A new course")
    dialog.get_by_role("button", name="Add allocation").click()
    expect(dialog).to_be_hidden()
    [kept] = house.api("GET", f"/admin/allocations?member_id={member.id}")["items"]
    assert {
        "name": "Everything",
        "models": [model],
        "quota_cost_usd_per_month": "12.50",
        "quota_tokens_per_month": 1_500_000,
        "pool_id": pool_id,
        "unpriced": "deny",
        "overrun_policy": "last_call",
        "ledger_outage": "allow",
        "billing_timezone": "Asia/Taipei",
        "floor_tokens": 5000,
        "locked": True,
        "service": True,
    }.items() <= kept.items()

    page.goto(f"/admin/allocations?id={kept['id']}")
    page.get_by_role("button", name="More for “Everything”").click()
    page.get_by_role("menuitem", name="Edit").click()
    dialog.get_by_text("More settings").click()
    expect(dialog.get_by_label("Name", exact=True)).to_have_value("Everything")
    expect(dialog.get_by_label("Token floor")).to_have_value("5000")
    expect(dialog.get_by_label("Time zone for its months")).to_have_value("Asia/Taipei")
    expect(dialog.get_by_role("checkbox", name="Lock its token cap")).to_be_checked()
    dialog.get_by_label("Name", exact=True).fill("Everything else")
    dialog.get_by_role("button", name="Save").click()
    expect(dialog).to_be_hidden()
    again = house.api("GET", f"/admin/allocations/{kept['id']}")
    for named in (kept, again):
        del named["binds"]
    assert again == kept | {"name": "Everything else"}

    page.get_by_role("button", name="More for “Everything else”").click()
    page.get_by_role("menuitem", name="Quarantine").click()
    dialog.get_by_label("Reason").fill("A leak")
    dialog.get_by_role("button", name="Quarantine").click()
    expect(dialog).to_be_hidden()
    assert house.api("GET", f"/admin/allocations/{kept['id']}")["status"] == "quarantined"


def test_a_pool_keeps_its_limits_and_is_shared_out_after_a_look(house: House, window: Open) -> None:
    admin, member = Person(house, role="admin"), Person(house)
    name = f"Institute {secrets.token_hex(4)}"
    page = admin.enter(window(), "/admin/pools").page
    page.get_by_role("button", name="Add pool").first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name", exact=True).fill(name)
    for meter, window_name, amount in (("usd", "month", "100"), ("tokens", "day", "50k")):
        dialog.get_by_role("button", name="Add limit").click()
        dialog.get_by_label("Unit").last.select_option(meter)
        dialog.get_by_label("Window").last.select_option(window_name)
        dialog.get_by_label("Amount").last.fill(amount)
    dialog.get_by_role("checkbox", name="Share out token caps every month").check()
    dialog.get_by_label("Reason").fill("A grant")
    dialog.get_by_role("button", name="Add pool").click()
    expect(dialog).to_be_hidden()
    pool = next(
        one for one in house.api("GET", "/admin/pools?limit=1000")["items"] if one["name"] == name
    )
    limits = {(one["meter"], one["window"]): one["amount"] for one in pool["limits"]}
    assert limits == {("usd", "month"): "100.00", ("tokens", "day"): 50_000}
    assert (pool["shares_out"], pool["parent_id"]) == (True, None)

    # Nobody used any last month, and a floor has to be kept: the other gives.
    floored = member.given(house.model(DIME), tokens=10, name="Floored")
    giving = member.given(house.model(DIME), tokens=90, name="Giving")
    floored.change(pool_id=pool["id"], floor_tokens=40)
    giving.change(pool_id=pool["id"])
    page.goto(f"/admin/token-pool?pool_id={pool['id']}")
    expect(page.get_by_text("2 caps would change.")).to_be_visible()
    expect(found(page, "Floored")).to_contain_text("+30")
    assert floored.standing()["quota_tokens_per_month"] == 10
    page.get_by_role("button", name="Share out now").click()
    dialog.get_by_label("Reason").fill("A start")
    dialog.get_by_role("button", name="Share out now").click()
    expect(page.get_by_text("Nothing would change.")).to_be_visible()
    page.get_by_role("button", name="Details").click()
    expect(page.get_by_text("Its floor").first).to_be_visible()
    caps = [one.standing()["quota_tokens_per_month"] for one in (floored, giving)]
    assert caps == [40, 60]


def test_each_figure_of_the_overview_leads_to_the_rows_behind_it(
    house: House, window: Open
) -> None:
    admin, member = Person(house, role="admin"), Person(house)
    name = f"Reader {secrets.token_hex(4)}"
    unpriced = house.model(None)
    tenant = member.given(house.model(DIME), usd="0.3", name=name)
    member.given(unpriced, name="Free").chat(unpriced)
    served(tenant.chat(max_tokens=3))
    refused(tenant.chat(max_tokens=1), 429, "cost_quota_exceeded")
    page = admin.enter(window(), "/admin/overview").page
    page.get_by_role("link", name="Refused today").click()
    row = found(page, name)
    expect(row.first).to_be_visible()
    page.go_back()
    page.get_by_role("row").filter(has_text=unpriced).get_by_role("link", name="1").click()
    expect(page.get_by_role("row").filter(has_text=unpriced)).to_have_count(1)
    page.go_back()
    page.get_by_role("link", name="used up").and_(page.locator("[href*=exhausted]")).click()
    expect(found(page, name)).to_be_visible()


def test_an_auditor_sees_it_and_is_offered_no_change(house: House, window: Open) -> None:
    member = Person(house, name="Alan Kay")
    tenant = member.given(house.model(DIME), usd="1", name="Slides")
    house.api("POST", "/admin/pools", {"name": f"Pool {secrets.token_hex(4)}"})
    here = Person(house, role="auditor").enter(
        window(), f"/admin/allocations?id={tenant.standing()['id']}"
    )
    page = here.page
    expect(found(page, "Slides")).to_be_visible()
    for path in PATHS:
        here.go(path)
        expect(page.get_by_role("alert")).to_have_count(0)
        for action in ("Add", "Edit", "Import", "Caps", "Approve", "Share out now"):
            expect(page.get_by_role("main").get_by_role("button", name=action)).to_have_count(0)


@pytest.mark.parametrize("language", ["en", "zh-TW"])
def test_the_dialogs_fit_a_phone_and_are_read_aloud(
    house: House, window: Open, language: Language
) -> None:
    admin, member = Person(house, role="admin"), Person(house, name="Wilhelmina von Featherstone")
    tenant = member.given(house.model(DIME), usd="1", tokens=100, name="名稱很長 " + "x" * 50)
    id = tenant.standing()["id"]
    here = admin.enter(window(language=language, width=NARROW), f"/admin/allocations?id={id}")
    page = here.page
    main, dialog = page.get_by_role("main"), page.get_by_role("dialog")
    row = main.get_by_role("row").filter(has_text="名稱很長")

    def sound() -> None:
        expect(dialog).to_be_visible()
        page.wait_for_timeout(200)
        assert here.overflow() == []
        if language == "en":
            assert here.violations() == []
        page.keyboard.press("Escape")
        expect(dialog).to_be_hidden()

    row.get_by_role("button").first.click()
    expect(dialog.get_by_role("meter")).to_have_count(2)
    sound()
    for header in range(2):
        main.locator("header button").nth(header).click()
        sound()
    for item in (0, 3):
        row.get_by_role("button").last.click()
        page.get_by_role("menuitem").nth(item).click()
        sound()
        expect(row.get_by_role("button").last).to_be_focused()
    row.get_by_role("checkbox").check()
    main.get_by_role("region").get_by_role("button").last.click()
    sound()
    here.go("/admin/pools")
    main.locator("header button").first.click()
    sound()
