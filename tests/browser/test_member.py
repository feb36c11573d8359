"""What members do: see what is left, ask for more, make keys and use them, look at their calls."""

from __future__ import annotations

import secrets
import subprocess
import sys
from typing import get_args

import pytest
from playwright.sync_api import expect

from tests.browser.chromium import NARROW, WIDE, Language
from tests.browser.conftest import Open
from tests.browser.people import Person
from tests.browser.words import Words
from tests.gateway.kit import DIME, House, conversation, refused, served

LIVE_MS = 15_000
"""An open page knows by then what has changed, without a reload."""


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("language", get_args(Language))
def test_the_whole_way_from_a_cap_to_its_end_and_on_with_what_was_asked_for(
    house: House, window: Open, language: Language, width: int
) -> None:
    words = Words(language)
    person, admin = Person(house), Person(house, role="admin")
    tenant = person.given(house.model(DIME), usd="9", name=f"Thesis {secrets.token_hex(3)}")
    name = tenant.standing()["name"]
    here = person.enter(window(language=language, width=width))
    page, shown = here.page, here.page.get_by_role("article", name=name)
    expect(shown).to_contain_text(words.usd("9.00"))

    # An admin sets a cap.
    desk = admin.enter(
        window(language=language, width=width), f"/admin/allocations?q={name.replace(' ', '+')}"
    )
    desk.page.get_by_role("button", name=words("adminAllocations.capsOf", name=name)).click()
    caps = desk.page.get_by_role("dialog")
    caps.get_by_label(words("adminAllocations.caps.usd")).fill("1.2")
    caps.get_by_label(words("adminAllocations.caps.reason")).fill("The grant is small")
    caps.get_by_role("button", name=words("adminAllocations.caps.save"), exact=True).click()
    expect(caps).to_be_hidden()
    expect(shown).to_contain_text(words.usd("1.20"), timeout=LIVE_MS)

    # Calls spend it.
    served(tenant.chat(max_tokens=3))
    used = shown.get_by_text(words("meter.usedShare", share="25%"))
    expect(used).to_be_visible(timeout=LIVE_MS)
    expect(shown.get_by_role("meter", name=words("allocations.cost"))).to_have_attribute(
        "aria-valuenow", "25"
    )
    for maximum, state in ((6, "near"), (2, "critical"), (1, "exhausted")):
        served(tenant.chat(max_tokens=maximum))
        expect(shown.get_by_text(words(f"states.{state}"), exact=True)).to_be_visible(
            timeout=LIVE_MS
        )
        assert here.overflow() == []

    # The next one is refused, and shows among the calls.
    refused(tenant.chat(max_tokens=1), 429, "cost_quota_exceeded")
    here.go("/calls")
    refusal = page.get_by_text(words("outcomes.rejected_cost_quota_exceeded"), exact=True)
    expect(refusal.locator("visible=true").first).to_be_visible()
    here.go("/")

    # The member asks for more, the admin approves, and calls work again.
    more = f"+{words.usd('5.00')}"
    shown.get_by_role("button", name=words("ask.action")).click()
    page.get_by_label(words("ask.amount")).fill("5")
    page.get_by_label(words("ask.reason")).fill("Deadline")
    assert here.violations() == []
    page.get_by_role("button", name=words("ask.send")).click()
    expect(shown.get_by_text(words("ask.open", more=more))).to_be_visible()
    [request] = house.api("GET", f"/admin/requests?member_id={person.id}")["items"]
    fields = [request[name] for name in ("meter", "amount", "reason", "expires", "status")]
    assert fields == ["usd", "5.00", "Deadline", "period", "open"]
    desk.go("/admin/requests")
    asked = desk.page.get_by_role("article").filter(has_text=name)
    asked.get_by_role("button", name=words("adminRequests.approve")).click()
    approval = desk.page.get_by_role("dialog")
    approval.get_by_role("button", name=words("adminRequests.approveMore", more=more)).click()
    expect(asked).to_be_hidden()
    expect(shown.get_by_text(words("ask.approved", more=more))).to_be_visible(timeout=LIVE_MS)
    expect(shown).to_have_attribute("data-state", "ok", timeout=LIVE_MS)
    served(tenant.chat(max_tokens=1))
    assert desk.overflow() == here.overflow() == []


def test_a_request_is_withdrawn(house: House, window: Open) -> None:
    person = Person(house)
    person.given(house.model(DIME), tokens=1000, name="Thesis")
    page = person.enter(window()).page
    ask = page.get_by_role("button", name="Ask for more")
    ask.click()
    page.get_by_role("button", name="Send request").click()
    expect(page.get_by_text("Enter an amount above 0.")).to_be_visible()
    page.keyboard.press("Escape")
    expect(ask).to_be_focused()
    ask.click()
    page.get_by_label("How much more").fill("1.5k")
    page.get_by_label("Valid until").select_option("day")
    page.get_by_label("Reason").fill("Tests")
    page.get_by_role("button", name="Send request").click()
    expect(page.get_by_text("You asked for +1,500 tokens")).to_be_visible()
    page.get_by_role("button", name="Withdraw").click()
    page.get_by_role("dialog").get_by_role("button", name="Withdraw").click()
    expect(page.get_by_role("button", name="Ask for more")).to_be_visible()
    [request] = house.api("GET", f"/admin/requests?member_id={person.id}")["items"]
    assert (request["status"], request["amount"]) == ("withdrawn", 1500)


def test_the_card_tells_what_binds_what_was_added_and_what_has_no_price(
    house: House, window: Open
) -> None:
    person = Person(house)
    pool = house.api("POST", "/admin/pools", {"name": "Lab", "quota_cost_usd_per_month": "2.00"})
    model, unpriced = house.model(DIME), house.model(None)
    tenant = person.given(model, unpriced, usd="9.00", name="Thesis", pool_id=pool["id"])
    body = {"allocation_id": tenant.allocation_id, "meter": "usd", "amount": "1.00"}
    house.api("POST", "/admin/top-ups", body | {"reason": "Demo day", "expires": "period"})
    tenant.booked(served(tenant.chat(unpriced, max_tokens=5)))
    tenant.booked(served(tenant.chat(model, max_tokens=10)))
    page = person.enter(window()).page
    shown = page.get_by_role("article", name="Thesis")
    expect(shown).to_contain_text("Pool “Lab”, USD per month")
    expect(shown).to_contain_text("+$1.00 until")
    expect(shown).to_contain_text("Demo day")
    expect(shown).to_contain_text("1 call this month.")
    expect(shown).to_contain_text("$1.00 / $10.00")
    expect(shown).to_contain_text("UTC)")


def test_a_key_is_created_used_as_pasted_tightened_rotated_and_revoked(
    house: House, window: Open
) -> None:
    person = Person(house)
    model = house.model({"input_token": "0.001", "output_token": "0.01"})
    person.given(model, usd="9.00", name="Thesis")
    here = person.enter(window(), "/keys")
    page = here.page
    page.get_by_role("button", name="Create key").click()
    page.get_by_label("Name", exact=True).fill("Notebook")
    page.get_by_label("Token budget").fill("50k")
    page.get_by_role("button", name="Add limit").click()
    page.get_by_label("Window").select_option("day")
    page.get_by_label("Amount").fill("2.50")
    assert here.violations() == []
    page.get_by_role("dialog").get_by_role("button", name="Create key").click()
    secret = page.get_by_test_id("secret").inner_text()
    assert secret.startswith("sg_")

    snippet = page.get_by_label("Example call")
    expect(snippet).to_contain_text(secret)
    answer = subprocess.run(["sh", "-c", snippet.inner_text()], capture_output=True, text=True)
    assert '"choices"' in answer.stdout, answer
    for client in ("openai-python", "mistralai"):
        page.get_by_label("Client").select_option(client)
        expect(snippet).to_contain_text("import OpenAI" if client[0] == "o" else "import Mistral")
        ran = subprocess.run(
            [sys.executable, "-c", snippet.inner_text()], capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.strip()
    page.get_by_role("button", name="I have saved it").click()

    shown = page.get_by_role("article", name="Notebook")
    expect(shown).to_contain_text("USD per day")
    expect(shown).to_contain_text("/ 50,000")
    expect(page.get_by_text(secret)).to_have_count(0)
    keys = house.api("GET", f"/admin/keys?member_id={person.id}")["items"]
    [stored] = [key for key in keys if key["name"] == "Notebook"]
    limits = {(one["meter"], one["window"]): one["amount"] for one in stored["limits"]}
    assert limits == {("usd", "day"): "2.50", ("tokens", "lifetime"): 50000}

    shown.get_by_role("button", name="Tighten").click()
    page.get_by_label("Amount").fill("3")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("dialog").get_by_role("alert").first).to_contain_text(
        "You are not allowed to do this."
    )
    page.get_by_label("Amount").fill("1")
    page.get_by_role("button", name="Save").click()
    expect(shown).to_contain_text("/ $1.00")

    shown.get_by_role("button", name="Rotate").click()
    page.get_by_role("dialog").get_by_role("button", name="Rotate").click()
    fresh = page.get_by_test_id("secret").inner_text()
    assert fresh != secret
    page.get_by_role("button", name="I have saved it").click()

    shown.get_by_role("button", name="Revoke").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    expect(shown).to_have_count(0)
    page.get_by_text("1 revoked key").click()
    expect(page.get_by_text("Notebook", exact=True)).to_be_visible()


def test_refusals_tell_which_limit_and_how_much_was_missing(house: House, window: Open) -> None:
    person = Person(house)
    tenant = person.given(house.model(DIME), usd="1.00", name="Thesis")
    served(tenant.chat(max_tokens=6))
    assert tenant.chat(max_tokens=9).status_code == 429
    here = person.enter(window(), "/calls")
    page = here.page
    table = page.get_by_role("table")
    expect(table).to_contain_text("Refused: spend")
    for words in ("Allocation “Thesis”, USD per month", "Used$0.60", "Held$0.00", "Needed$0.90"):
        expect(table).to_contain_text(words)
    page.get_by_label("Outcome").select_option("success")
    expect(table).not_to_contain_text("Refused: spend")
    expect(page.get_by_text("$0.60")).to_be_visible()
    page.get_by_role("button", name="Details of the call").click()
    expect(page.get_by_role("dialog")).to_contain_text("10 input tokens")
    page.keyboard.press("Escape")
    page.get_by_label("Model", exact=True).select_option(tenant.model)
    page.get_by_label("From").fill("2001-01-01")
    expect(page.get_by_role("row")).to_have_count(2)
    page.get_by_role("button", name="Clear filters").click()
    expect(table).to_contain_text("Refused: spend")


def test_calls_come_page_by_page(house: House, window: Open) -> None:
    person = Person(house)
    tenant = person.given(house.model(DIME), usd="1.00", name="Thesis")
    for _ in range(60):
        tenant.chat(max_tokens=20)
    here = person.enter(window(), "/calls")
    details = here.page.get_by_role("button", name="Details of the call")
    expect(details).to_have_count(50)
    here.page.get_by_role("button", name="Show more").click()
    expect(details).to_have_count(60)


def test_usage_adds_up_and_opens_the_calls_behind_it(house: House, window: Open) -> None:
    person = Person(house)
    chat, read = house.model(DIME), house.model({"page": "0.5"}, "mistral-ocr-latest")
    tenant = person.given(chat, read, usd="9.00", name="Thesis")
    tenant.booked(served(tenant.chat(chat, max_tokens=5)))
    tenant.booked(served(tenant.ocr(3, read)))
    here = person.enter(window(), "/usage?by=model")
    page = here.page
    expect(page.get_by_role("table")).to_contain_text("3 pages")
    expect(page.locator("dl").first).to_contain_text("Spent$2.00")
    page.locator(".recharts-bar-rectangle").first.wait_for()
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV").click()
    assert "cost_usd" in download.value.path().read_text()
    page.get_by_role("link", name=f"Calls: {read}").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Calls")
    expect(page.get_by_role("button", name="Details of the call")).to_have_count(1)
    page.goto("/usage?by=endpoint")
    page.get_by_role("link", name="Calls: ocr").click()
    expect(page.get_by_role("button", name="Details of the call")).to_have_count(1)


def test_a_running_session_shows_its_cost_and_is_stopped(house: House, window: Open) -> None:
    rates = {"input_token": "0", "output_token": "0.0001", "output_audio_token": "0.0001"}
    person = Person(house)
    model = house.model(rates | {"input_audio_token": "0"}, "gpt-realtime", endpoints=["realtime"])
    tenant = person.given(model, usd="9.00", name="Voice")
    here = person.enter(window(), "/sessions")
    expect(here.page.get_by_text("No live sessions")).to_be_visible()
    with conversation(tenant) as socket:
        expect(here.page.get_by_role("table")).to_contain_text(model, timeout=LIVE_MS)
        here.page.get_by_role("button", name="Stop").click()
        here.page.get_by_role("dialog").get_by_role("button", name="Stop").click()
        assert socket.end() == (1008, "killed")
    expect(here.page.get_by_text("No live sessions")).to_be_visible(timeout=LIVE_MS)
