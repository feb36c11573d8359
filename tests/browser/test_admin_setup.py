"""What admins set up and look after: models, prices, members, live sessions, alerts, the audit, and
the first run. Every form stores what was filled in, and shows it again."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect

from app.simulator import RunningSimulator
from tests.browser.chromium import NARROW, WIDE, Language, Theme, Window
from tests.browser.conftest import Open
from tests.browser.people import PASSWORD, Person
from tests.browser.words import BOTH_WAYS, Words
from tests.gateway.kit import DIME, PROVIDER_KEY, House, Server, conversation, served

TAIPEI = timedelta(hours=8)
"""The clock of the windows."""


def admin(house: House, window: Window, path: str) -> Page:
    """Sign an admin in on a page."""
    return Person(house, role="admin", name="Grace Hopper").enter(window, path).page


def dialog(page: Page) -> Locator:
    """Return the dialog that is open."""
    return page.get_by_role("dialog")


def row(page: Page, name: str) -> Locator:
    """Return the row of a table that names something."""
    return page.get_by_role("row").filter(has_text=name).first


# The first run


@pytest.fixture
def bare(provider: RunningSimulator, database_url: str, tmp_path: Path) -> Iterator[House]:
    """A gateway on which nothing was set up."""
    provider.reset()
    house = House(Server(tmp_path / "server", database_url).start(), database_url, provider)
    house.begin()
    yield house
    with ThreadPoolExecutor(1) as aside:
        aside.submit(house.audit).result()
    house.close()


@pytest.mark.parametrize(("language", "width"), BOTH_WAYS)
def test_the_first_run_leads_from_no_provider_to_a_key_that_works(
    bare: House, browser: Browser, language: Language, width: int
) -> None:
    with Window(browser, bare.url(), language=language, width=width) as here:
        _first_run(bare, here, Words(language))
    assert here.complaints == []


def _first_run(bare: House, here: Window, words: Words) -> None:
    page = admin(bare, here, "/admin/models")
    page.get_by_role("link", name=words("wizard.start")).click()

    page.get_by_label(words("adminModels.name"), exact=True).fill("My provider")
    page.get_by_label(words("adminModels.kind")).select_option("compatible")
    page.get_by_label(words("adminModels.baseUrl")).fill(bare.sim.openai_url)
    page.get_by_label(words("adminModels.credential")).fill(PROVIDER_KEY)
    page.get_by_role("button", name=words("adminModels.addProvider")).click()
    expect(page.get_by_text(words("adminModels.testOk"))).to_be_visible()
    page.get_by_role("button", name=words("wizard.next")).click()

    page.get_by_label(words("adminModels.slug")).fill("gpt-4o-mini")
    page.get_by_role("button", name=words("adminModels.addModel")).click()

    page.get_by_role("button", name=words("adminPrices.take")).click()
    expect(page.get_by_label(words("meters.usd"), exact=True).first).to_have_value("0.15")
    page.get_by_role("button", name=words("adminPrices.add")).click()

    page.get_by_role("button", name=words("wizard.another")).click()
    page.get_by_label(words("auth.email")).fill("first@example.org")
    page.get_by_label(words("adminMembers.displayName")).fill("First Member")
    page.get_by_role("button", name=words("adminMembers.add")).click()

    expect(page.get_by_label(words("adminAllocations.name"), exact=True)).to_have_value(
        "First Member"
    )
    page.get_by_label(words("limits.usd.month")).fill("2.50")
    page.get_by_role("button", name=words("wizard.addAllocation")).click()

    page.get_by_role("button", name=words("adminMembers.addKey")).click()
    secret = page.get_by_label(words("adminMembers.keySecret"), exact=True).inner_text()
    assert secret.startswith("sg_")
    page.get_by_role("button", name=words("wizard.call")).click()
    expect(page.get_by_text(words("wizard.works"))).to_be_visible()

    [allocation] = bare.api("GET", "/admin/allocations")["items"]
    assert allocation["quota_cost_usd_per_month"] == "2.50"
    assert allocation["models"] == ["gpt-4o-mini"]
    assert float(allocation["cost_used_this_month"]) > 0
    page.get_by_role("link", name=words("wizard.seeMember")).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("First Member")


# Providers and models


def test_a_provider_is_stored_as_filled_in_tested_and_its_credential_is_never_shown(
    house: House, window: Open
) -> None:
    house.provider()
    page = admin(house, window(), "/admin/models")
    name = f"Provider {secrets.token_hex(4)}"
    page.get_by_role("button", name="Add provider").click()
    page.get_by_label("Name", exact=True).fill(name)
    page.get_by_label("Kind").select_option("mistral")
    expect(page.get_by_label("Base URL")).to_have_value("https://api.mistral.ai")
    page.get_by_label("Base URL").fill("nowhere")
    page.get_by_label("API key").fill("not-the-key")
    dialog(page).get_by_role("button", name="Add provider").click()
    expect(page.get_by_text("Enter an address that begins with")).to_be_visible()
    page.get_by_label("Base URL").fill(house.sim.base_url)
    dialog(page).get_by_role("button", name="Add provider").click()
    expect(row(page, name)).to_contain_text("Mistral")
    expect(row(page, name)).to_contain_text(house.sim.base_url)
    page.get_by_role("button", name=f"Test {name}").click()
    expect(page.get_by_text("The test failed")).to_be_visible()

    page.get_by_role("button", name=f"Edit {name}").click()
    expect(page.get_by_label("Name", exact=True)).to_have_value(name)
    expect(page.get_by_label("Kind")).to_have_value("mistral")
    expect(page.get_by_label("Base URL")).to_have_value(house.sim.base_url)
    expect(page.get_by_label("API key", exact=True)).to_have_value("")
    page.get_by_label("API key", exact=True).fill(PROVIDER_KEY)
    page.get_by_role("button", name="Save").click()
    expect(dialog(page)).to_have_count(0)
    page.get_by_role("button", name=f"Test {name}").click()
    expect(page.get_by_text("It answers, and takes the API key")).to_be_visible()

    page.get_by_role("button", name=f"Edit {name}").click()
    page.get_by_label("Remove the stored API key").check()
    page.get_by_role("button", name="Save").click()
    expect(row(page, name)).to_contain_text("None")


def test_a_model_is_stored_as_filled_in(house: House, window: Open) -> None:
    provider = house.api("GET", f"/admin/providers/{house.provider()}")["name"]
    page = admin(house, window(), "/admin/models")
    slug = f"team/{secrets.token_hex(4)}"
    page.get_by_role("button", name="Add model").first.click()
    form = dialog(page)
    page.get_by_label("Name in requests").fill(slug)
    form.get_by_label("Provider", exact=True).select_option(label=provider)
    page.get_by_label("Name at the provider").fill("gpt-4o")
    page.get_by_label("Context window").fill("128k")
    page.get_by_label("Maximum output").fill("16,384")
    page.get_by_label("chat/completions").check()
    page.get_by_label("realtime").check()
    page.get_by_text("Estimates for holds").click()
    page.get_by_label("Bytes of a token").select_option("3")
    page.get_by_label("Tokens of an image").fill("1500")
    form.get_by_role("button", name="Add model").click()
    expect(form).to_have_count(0)
    stored = house.api("GET", f"/admin/models/{slug}")
    assert stored == {
        "slug": slug,
        "provider_id": house.provider(),
        "upstream_model": "gpt-4o",
        "endpoints": ["chat/completions", "realtime"],
        "context_window": 128_000,
        "max_output_tokens": 16_384,
        "bytes_per_token": 3,
        "image_tokens_max": 1500,
        "created_at": stored["created_at"],
    }

    page.get_by_label("Search").fill(slug)
    page.get_by_role("button", name=f"Edit {slug}").click()
    expect(page.get_by_label("Name at the provider")).to_have_value("gpt-4o")
    expect(page.get_by_label("Context window")).to_have_value("128000")
    expect(page.get_by_label("Maximum output")).to_have_value("16384")
    expect(page.get_by_label("realtime")).to_be_checked()
    expect(page.get_by_label("embeddings")).not_to_be_checked()
    page.get_by_text("Estimates for holds").click()
    expect(page.get_by_label("Bytes of a token")).to_have_value("3")
    expect(page.get_by_label("Tokens of an image")).to_have_value("1500")
    page.get_by_label("Context window").fill("")
    page.get_by_label("realtime").uncheck()
    page.get_by_label("chat/completions").uncheck()
    page.get_by_role("button", name="Save").click()
    expect(form).to_have_count(0)
    stored = house.api("GET", f"/admin/models/{slug}")
    assert stored["context_window"] is None
    assert stored["endpoints"] is None
    assert stored["max_output_tokens"] == 16_384
    expect(row(page, slug)).to_contain_text("not known")


# Prices


def test_a_price_is_stored_to_the_last_digit_and_takes_over_when_it_is_told_to(
    house: House, window: Open
) -> None:
    slug = house.model(None)
    page = admin(house, window(), f"/admin/prices?model={slug}")
    page.get_by_label("USD", exact=True).first.fill("0.000000000123456789")
    page.get_by_label("Per", exact=True).first.fill("1")
    page.get_by_label("Unit", exact=True).nth(1).select_option("input_token")
    page.get_by_label("USD", exact=True).nth(1).fill("2.50")
    page.get_by_label("Per", exact=True).nth(1).fill("1M")
    page.get_by_role("button", name="Add version").click()
    expect(page.get_by_text("This unit already has a rate.")).to_be_visible()
    page.get_by_label("Unit", exact=True).nth(1).select_option("page")
    page.get_by_role("button", name="Add version").click()
    expect(page.get_by_text(f"{slug} has a new price")).to_be_visible()
    [price] = house.api("GET", f"/admin/prices?model={slug}")["items"]
    rates = {one["unit"]: (one["usd"], one["per"]) for one in price["rates"]}
    assert rates == {"input_token": ("0.000000000123456789", 1), "page": ("2.5", 1_000_000)}
    assert price["in_force"]
    expect(page.get_by_text("$2.50 / 1M").first).to_be_visible()

    # The next version begins with what is in force, and waits for its instant.
    expect(page.get_by_label("USD", exact=True).first).to_have_value("0.000000000123456789")
    page.get_by_role("button", name="Remove the rate of Pages").click()
    tomorrow = (datetime.now(UTC) + TAIPEI + timedelta(days=1)).strftime("%Y-%m-%dT12:00")
    page.get_by_label("In force from").fill(tomorrow)
    page.get_by_role("button", name="Add version").click()
    expect(page.get_by_text("Scheduled")).to_be_visible()
    newest = house.api("GET", f"/admin/prices?model={slug}")["items"][0]
    assert [one["unit"] for one in newest["rates"]] == ["input_token"]
    assert newest["effective_from"] == f"{tomorrow[:11]}04:00:00Z"
    assert not newest["in_force"]


@pytest.mark.parametrize(("language", "width"), BOTH_WAYS)
def test_an_unpriced_model_is_priced_from_a_suggestion_and_its_calls_priced_again(
    house: House, window: Open, language: Language, width: int
) -> None:
    words = Words(language)
    person = Person(house)
    slug = house.model(None, "gpt-4o-mini")
    tenant = person.given(slug, usd="9.00", name="Thesis")
    tenant.booked(served(tenant.chat(max_tokens=5)))
    page = admin(house, window(language=language, width=width), "/admin/prices")
    unpriced = row(page, slug)
    expect(unpriced).to_contain_text(words("adminPrices.noPrice"))
    unpriced.get_by_role("link", name=words("adminModels.setPrice")).click()
    expect(page.get_by_text(words("adminPrices.unpricedOf", count=1)).first).to_be_visible()

    expect(row(page, words("adminPrices.units.output_token"))).to_contain_text(
        words("adminPrices.changes.added")
    )
    page.get_by_role("button", name=words("adminPrices.take")).click()
    expect(page.get_by_label(words("meters.usd"), exact=True).first).to_have_value("0.15")
    before = (datetime.now(UTC) + TAIPEI - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M")
    page.get_by_label(words("adminPrices.effectiveFrom")).fill(before)
    page.get_by_role("button", name=words("adminPrices.add")).click()
    expect(page.get_by_text(words("adminPrices.sameAsSuggested"))).to_be_visible()

    page.get_by_role("button", name=words("adminPrices.preview")).click()
    expect(page.get_by_text(words("adminSetup.errors.reason"))).to_be_visible()
    page.get_by_label(words("adminSetup.reason")).fill("the price came late")
    page.get_by_role("button", name=words("adminPrices.preview")).click()
    result = page.get_by_role("region", name=words("adminPrices.result"))
    expect(result).to_contain_text(words("adminPrices.wouldBook"))
    expect(row(page, "Thesis")).to_be_visible()
    assert tenant.standing()["unpriced_calls_this_month"] == 1, "a preview books nothing"
    page.get_by_role("button", name=words("adminPrices.book", difference="+")).click()
    dialog(page).get_by_role("button", name=words("adminPrices.bookAction")).click()
    expect(result).to_contain_text(words("adminPrices.booked", count=1))
    standing = tenant.standing()
    assert standing["unpriced_calls_this_month"] == 0
    assert float(standing["cost_used_this_month"]) > 0
    [adjustment] = house.api("GET", f"/admin/adjustments?allocation_id={tenant.allocation_id}")[
        "items"
    ]
    assert adjustment["reason"] == "the price came late"
    page.get_by_role("link", name=words("adminPrices.all")).click()
    expect(page.get_by_role("table").last).to_contain_text(slug)


# Members


def test_a_member_is_stored_as_filled_in_changed_and_shut_out(house: House, window: Open) -> None:
    here = window()
    page = admin(house, here, "/admin/members")
    email = f"{secrets.token_hex(6)}@example.org"
    page.get_by_role("button", name="Add member").click()
    form = dialog(page)
    form.get_by_label("Email").fill(email)
    form.get_by_label("Display name").fill("Emmy Noether")
    form.get_by_label("Role").select_option("auditor")
    form.get_by_label("Password").fill("short")
    form.get_by_role("button", name="Add member").click()
    expect(form).to_contain_text("This is too short.")
    form.get_by_label("Password").fill(PASSWORD)
    expect(form.get_by_label("Must change it")).to_be_checked()
    form.get_by_role("button", name="Add member").click()
    # Nobody can reach what is behind it before; and there is nothing to find yet.
    expect(form).to_be_hidden()
    page.get_by_label("Search").fill(email)
    shown = row(page, email)
    expect(shown).to_contain_text("Auditor")
    expect(shown).to_contain_text("To be changed")
    shown.get_by_role("link", name="Emmy Noether").click()

    page.get_by_role("button", name="Edit").click()
    expect(form.get_by_label("Email")).to_have_value(email)
    expect(form.get_by_label("Display name")).to_have_value("Emmy Noether")
    expect(form.get_by_label("Role")).to_have_value("auditor")
    expect(form.get_by_label("New password")).to_have_value("")
    form.get_by_label("Display name").fill("Amalie Noether")
    form.get_by_label("Role").select_option("member")
    form.get_by_label("Must change it").uncheck()
    form.get_by_role("button", name="Save").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Amalie Noether")
    member_id = page.url.rpartition("id=")[2]
    stored = house.api("GET", f"/admin/members/{member_id}")
    assert (stored["role"], stored["must_change_password"]) == ("member", False)

    theirs = window()
    theirs.page.goto("/")
    theirs.sign_in(email, PASSWORD)
    allocation = house.allocation(member_id, house.model(DIME), usd="1.00", name="Algebra")
    house.key(allocation)
    page.reload()
    expect(row(page, "Algebra")).to_contain_text("OK")
    page.get_by_role("button", name="Disable").click()
    expect(form).to_contain_text("1 key stops working at once")
    form.get_by_role("button", name="Disable").click()
    expect(page.get_by_text("Disabled").first).to_be_visible()
    assert house.api("GET", f"/admin/members/{member_id}")["status"] == "disabled"
    theirs.page.reload()
    expect(theirs.page.get_by_role("heading", level=1)).to_have_text("Sign in")
    page.get_by_role("button", name="Enable").click()
    expect(page.get_by_role("button", name="Disable")).to_be_visible()


def test_a_key_is_stored_as_filled_in_shown_once_rotated_and_revoked(
    house: House, window: Open
) -> None:
    person = Person(house)
    allocation = house.allocation(person.id, house.model(DIME), usd="1.00", name="Thesis")
    page = admin(house, window(), f"/admin/members?id={person.id}")
    page.get_by_role("button", name="Add key").click()
    form = dialog(page)
    form.get_by_label("Name", exact=True).fill("Notebook")
    expect(form.get_by_label("Thesis")).to_be_checked()
    form.get_by_label("Expires").fill("2031-01-31T12:00")
    form.get_by_label("Token budget").fill("50k")
    form.get_by_label("Single use").check()
    form.get_by_role("button", name="Add key").click()
    expect(form).to_contain_text("Copy it now")
    secret = page.get_by_label("Key", exact=True).inner_text()
    page.get_by_role("button", name="Done").click()
    [key] = house.api("GET", f"/admin/keys?member_id={person.id}")["items"]
    assert key["allocation_ids"] == [allocation["id"]]
    assert key["expires_at"] == "2031-01-31T04:00:00Z"
    assert (key["token_budget"], key["one_shot"]) == (50_000, True)
    shown = row(page, "Notebook")
    expect(shown).to_contain_text("31 Jan 2031, 12:00")
    expect(shown).to_contain_text("50,000")
    expect(shown).to_contain_text("Single use")
    expect(page.get_by_text(secret)).to_have_count(0)

    page.get_by_role("button", name="Rotate Notebook").click()
    form.get_by_role("button", name="Rotate").click()
    fresh = page.get_by_label("Key", exact=True).inner_text()
    assert fresh.startswith("sg_")
    assert fresh != secret
    page.get_by_role("button", name="Done").click()
    page.get_by_role("button", name="Revoke Notebook").click()
    form.get_by_role("button", name="Revoke").click()
    expect(shown).to_contain_text("Revoked")


# Live sessions


@pytest.mark.parametrize(("language", "width"), BOTH_WAYS)
def test_a_running_session_is_seen_with_its_cost_and_killed(
    house: House, window: Open, language: Language, width: int
) -> None:
    words = Words(language)
    rates = {"input_token": "0", "output_token": "0.0001", "output_audio_token": "0.0001"}
    person = Person(house)
    model = house.model(rates | {"input_audio_token": "0"}, "gpt-realtime", endpoints=["realtime"])
    tenant = person.given(model, usd="9.00", name="Voice")
    page = admin(house, window(language=language, width=width), "/admin/sessions")
    expect(page.get_by_text(words("adminSessions.none"))).to_be_visible()
    with conversation(tenant) as socket:
        shown = row(page, person.email)
        expect(shown).to_contain_text(model)
        expect(shown).to_contain_text("Voice")
        expect(shown).to_contain_text("$")
        page.get_by_role("button", name=words("adminSessions.killOf", name=person.email)).click()
        expect(dialog(page)).to_contain_text(
            words("adminSessions.killEffect", name=person.email, model=model)
        )
        dialog(page).get_by_role("button", name=words("adminSessions.kill")).click()
        assert socket.end() == (1008, "killed")
    expect(page.get_by_text(words("adminSessions.none"))).to_be_visible()


# Alerts


def test_a_destination_is_stored_as_filled_in_tested_and_its_secret_shown_once(
    house: House, window: Open
) -> None:
    page = admin(house, window(), "/admin/alerts")
    name = f"Hook {secrets.token_hex(4)}"
    page.get_by_role("button", name="Add destination").click()
    form = dialog(page)
    form.get_by_label("Name", exact=True).fill(name)
    form.get_by_label("URL").fill("https://hooks.example.invalid/alerts")
    form.get_by_label("Allocation used up").check()
    form.get_by_label("Unpriced model called").check()
    form.get_by_role("button", name="Add destination").click()
    secret = page.locator('pre[aria-label="Signing secret"]').inner_text()
    assert secret.startswith("whsec_")
    page.get_by_role("button", name="Done").click()
    shown = row(page, name)
    expect(shown).to_contain_text("https://hooks.example.invalid/alerts")
    expect(shown).to_contain_text("Allocation used up")
    expect(page.get_by_text(secret)).to_have_count(0)

    page.get_by_role("button", name=f"More for {name}").click()
    page.get_by_role("menuitem", name="Rotate secret").click()
    form.get_by_role("button", name="Rotate secret").click()
    assert page.locator('pre[aria-label="Signing secret"]').inner_text() not in ("", secret)
    page.get_by_role("button", name="Done").click()
    expect(shown).to_contain_text("signed with both secrets until")

    page.get_by_role("button", name=f"Send test to {name}").click()
    page.get_by_role("button", name=f"Details: Test to {name}").click()
    expect(form).to_contain_text("Payload")
    expect(form.get_by_role("table", name="Attempts")).to_be_visible(timeout=15_000)
    form.get_by_role("button", name="Send again now").click()
    expect(page.get_by_text("Sending again")).to_be_visible()
    page.keyboard.press("Escape")

    page.get_by_role("button", name=f"More for {name}").click()
    page.get_by_role("menuitem", name="Edit").click()
    expect(form.get_by_label("Name", exact=True)).to_have_value(name)
    expect(form.get_by_label("URL")).to_have_value("https://hooks.example.invalid/alerts")
    expect(form.get_by_label("Unpriced model called")).to_be_checked()
    expect(form.get_by_label("Request for more")).not_to_be_checked()
    form.get_by_label("Unpriced model called").uncheck()
    form.get_by_label("Enabled").uncheck()
    form.get_by_role("button", name="Save").click()
    expect(shown).to_contain_text("Off")
    [stored] = [
        one for one in house.api("GET", "/admin/destinations")["items"] if one["name"] == name
    ]
    assert (stored["events"], stored["enabled"]) == (["allocation_exhausted"], False)

    page.get_by_role("button", name=f"More for {name}").click()
    page.get_by_role("menuitem", name="Delete").click()
    expect(form).to_contain_text("delivery log are deleted too")
    form.get_by_role("button", name="Delete").click()
    expect(shown).to_have_count(0)


def test_a_rule_is_stored_as_filled_in(house: House, window: Open) -> None:
    person = Person(house)
    tenant = person.given(house.model(DIME), usd="9.00", name="Watched")
    hook = house.api(
        "POST",
        "/admin/destinations",
        {"name": "Ops", "kind": "webhook", "address": "https://ops.example.invalid/"},
    )
    page = admin(house, window(), "/admin/alerts")
    form = dialog(page)
    page.get_by_role("button", name="Add rule").click()
    form.get_by_role("button", name="Add rule").click()
    expect(form).to_contain_text("This is needed.")
    form.get_by_label("Applies to").select_option(label=f"Watched · {person.email}")
    form.get_by_label("Percent", exact=True).fill("87.5")
    form.get_by_role("button", name="Add rule").click()
    expect(form).to_have_count(0)
    shown = row(page, f"Watched · {person.email}")
    expect(shown).to_contain_text("87.5% of the limit")
    page.get_by_role("button", name="Add rule").click()
    form.get_by_label("Kind").select_option("key")
    form.get_by_label("Applies to").select_option(label=f"test · {person.email}")
    form.get_by_label("Unit", exact=True).select_option("tokens")
    form.get_by_label("Period").select_option("rolling")
    form.get_by_label("Hours").fill("5")
    form.get_by_label("Threshold as").select_option("threshold")
    form.get_by_label("Tokens", exact=True).fill("1.5M")
    form.get_by_label("Enabled").uncheck()
    form.get_by_role("button", name="Add rule").click()
    expect(form).to_have_count(0)

    rules = house.api("GET", f"/admin/alert-rules?destination_id={hook['id']}")["items"]
    said = [
        (one["owner"], one["owner_id"], one["meter"], one["window"], one["threshold"])
        for one in rules
    ]
    assert said == [
        ("key", tenant.key_id, "tokens", "rolling:5h", 1_500_000),
        ("allocation", tenant.allocation_id, "usd", "month", None),
    ]
    assert [(one["percent"], one["enabled"]) for one in rules] == [(None, False), (87.5, True)]

    page.get_by_role("button", name=f"Edit Watched · {person.email}").click()
    expect(form.get_by_label("Percent", exact=True)).to_have_value("87.5")
    form.get_by_label("Threshold as").select_option("threshold")
    form.get_by_label("USD", exact=True).fill("4.20")
    form.get_by_role("button", name="Save").click()
    expect(shown).to_contain_text("$4.20")
    page.get_by_role("button", name=f"Delete Watched · {person.email}").click()
    form.get_by_role("button", name="Delete").click()
    expect(shown).to_have_count(0)


# The audit, and who may only look


def test_the_audit_tells_what_was_and_what_is_and_is_downloaded_as_filtered(
    house: House, window: Open
) -> None:
    person = Person(house)
    tenant = person.given(house.model(DIME), usd="5.00", name="Thesis")
    tenant.change(quota_cost_usd_per_month="7.25", reason="the deadline")
    page = admin(house, window(), f"/admin/audit?object_id={tenant.allocation_id}")
    change = page.get_by_role("row").filter(has_text="the deadline")
    expect(change).to_contain_text("Spend cap changed")
    expect(page.get_by_text("5.00 → 7.25")).to_be_visible()
    page.get_by_role("button", name="Spend cap changed").first.click()
    expect(page.get_by_role("button", name="Allocation added")).to_have_count(0)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download CSV").click()
    written = download.value.path().read_text()
    assert "the deadline" in written
    assert "allocation_created" not in written
    page.get_by_role("button", name="Change: allocation_cost_quota_updated").click()
    page.get_by_label("Subject").select_option("key")
    expect(page.get_by_text("Nothing matches these filters")).to_be_visible()


def test_auditors_see_it_all_and_are_offered_no_change(house: House, window: Open) -> None:
    person = Person(house)
    slug = house.model(DIME)
    person.given(slug, usd="1.00", name="Thesis")
    here = Person(house, role="auditor").enter(window(), "/admin/models")
    offers = ("Add", "Edit", "Test", "Disable", "Rotate", "Revoke", "Preview", "Send")
    for path in (
        "/admin/models",
        f"/admin/prices?model={slug}",
        "/admin/members",
        f"/admin/members?id={person.id}",
        "/admin/alerts",
    ):
        here.go(path)
        for name in here.page.get_by_role("button").all_inner_texts():
            assert not name.startswith(offers), f"{path} offers {name!r}"
    here.go("/admin/setup")
    expect(here.page.get_by_text("Only administrators set things up")).to_be_visible()


def test_what_goes_wrong_is_told_with_the_id_that_finds_it(house: House, window: Open) -> None:
    here = window()
    page = admin(house, here, "/admin/members")
    taken = Person(house).email
    page.get_by_role("button", name="Add member").click()
    dialog(page).get_by_label("Email").fill(taken)
    dialog(page).get_by_role("button", name="Add member").click()
    alert = dialog(page).get_by_role("alert")
    expect(alert).to_contain_text("This conflicts with what is already there.")
    expect(alert).to_contain_text("req_")

    def broken(route: Route) -> None:
        route.fulfill(status=503, headers={"x-request-id": "req_of_the_test"}, json={})

    page.route("**/api/admin/providers*", broken)
    page.goto("/admin/models")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("The database is not responding at the moment")
    expect(alert).to_contain_text("req_of_the_test")
    page.unroute("**/api/admin/providers*")
    alert.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("heading", name="Providers", exact=True)).to_be_visible()


# Every page


@pytest.mark.parametrize(
    ("language", "width", "theme"),
    [
        ("en", WIDE, "light"),
        ("zh-TW", NARROW, "light"),
        ("zh-TW", WIDE, "dark"),
        ("en", NARROW, "dark"),
    ],
)
def test_nothing_is_wrong_with_any_page_of_setting_up(
    house: House, window: Open, language: Language, width: int, theme: Theme
) -> None:
    person = Person(house, name="Wilhelmina Featherstonehaugh-Cholmondeley")
    slug = house.model({"input_token": "0.15", "output_token": "0.60"}, "gpt-4o-mini", per=10**6)
    unpriced = house.model(None, slug=f"a-model-of-a-very-long-name/{secrets.token_hex(20)}")
    tenant = person.given(slug, unpriced, usd="5.00", name="名稱很長的配額 " + "x" * 60)
    tenant.change(quota_cost_usd_per_month="7.25", reason="the deadline " * 5)
    destination = house.api(
        "POST",
        "/admin/destinations",
        {
            "name": "Operations of the department",
            "kind": "webhook",
            "address": "https://ops.example.invalid/a/long/path/" + "x" * 80,
            "events": ["allocation_exhausted", "unpriced_model_seen"],
        },
    )
    house.api(
        "POST",
        "/admin/alert-rules",
        {
            "destination_id": destination["id"],
            "owner": "allocation",
            "owner_id": tenant.allocation_id,
            "meter": "usd",
            "percent": "80",
        },
    )
    house.api("POST", f"/admin/destinations/{destination['id']}/test")
    here = window(language=language, width=width, theme=theme)
    page = admin(house, here, "/admin/models")
    found = []
    for path in (
        "/admin/models",
        "/admin/prices",
        f"/admin/prices?model={slug}",
        "/admin/members",
        f"/admin/members?id={person.id}",
        "/admin/sessions",
        "/admin/alerts",
        "/admin/audit",
        "/admin/setup",
    ):
        here.go(path)
        found += [f"{path}: {one}" for one in here.violations() + here.overflow()]
    # The forms, each opened by the button that heads its card: in either language and width.
    for path in ("/admin/models", "/admin/members", "/admin/alerts") if theme == "light" else ():
        here.go(path)
        buttons = page.locator("main section > header button, main header button")
        for n in range(buttons.count()):
            buttons.nth(n).focus()
            page.keyboard.press("Enter")
            dialog(page).wait_for()
            # What is half faded in has too little contrast.
            page.evaluate("Promise.all(document.getAnimations().map((one) => one.finished))")
            found += [f"{path}, form {n}: {one}" for one in here.violations() + here.overflow()]
            page.keyboard.press("Escape")
            dialog(page).wait_for(state="detached")
            expect(buttons.nth(n)).to_be_focused()
    assert found == [], "\n".join(found)
