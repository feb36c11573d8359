"""Pictures of every page and dialog: both languages, light and dark, wide and narrow, into
`screenshots/`.

Runs the demo on a directory of its own, with something in every list. Words choose pictures:
`make screenshots ARGS='en dark 360 caps'` takes those whose names hold all of them.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, get_args

import httpx2
from playwright.sync_api import Browser, Page
from websockets.sync.client import connect

from tests.browser.chromium import NARROW, WIDE, Json, Language, Theme, Window, chromium

FOLDER = Path("screenshots")
WORDS = Path(__file__).parents[2] / "frontend" / "src" / "i18n"
BEYOND_NAVIGATION = ("/account", "/admin/setup")

Words = Callable[..., str]


class Scene(NamedTuple):
    """What is seen after some clicks."""

    name: str
    path: str
    act: Callable[[Page, Words], Any]
    admin: bool = True


def press(key: str, *, last: bool = False) -> Callable[[Page, Words], Any]:
    """Press the button that is called by a word."""

    def act(page: Page, words: Words) -> None:
        found = page.get_by_role("button", name=words(key))
        (found.last if last else found.first).click()

    return act


def choose(menu: str, item: str) -> Callable[[Page, Words], Any]:
    """Choose from the first menu of that name."""

    def act(page: Page, words: Words) -> None:
        page.get_by_role("button", name=words(menu)).first.click()
        page.get_by_role("menuitem", name=words(item)).click()

    return act


def _caps(page: Page, words: Words) -> None:
    page.get_by_role("button", name=words("adminAllocations.capsOf", name="Course reader")).click()
    page.get_by_role("dialog").locator("input").first.fill("0.5")
    page.wait_for_timeout(600)


def _bulk(page: Page, words: Words) -> None:
    page.locator("tbody input[type=checkbox]").nth(2).check()
    page.locator("tbody input[type=checkbox]").nth(3).check()
    press("adminAllocations.bulk.action")(page, words)
    dialog = page.get_by_role("dialog")
    dialog.locator("input[type=checkbox]").first.check()
    dialog.locator("input[type=text], input:not([type])").first.fill("1")
    dialog.locator("textarea").last.fill("The term has ended")
    press("adminAllocations.bulk.check")(page, words)
    dialog.get_by_role("status").wait_for()


def _import(page: Page, words: Words) -> None:
    press("adminAllocations.import.action")(page, words)
    rows = ["email,name,models,quota_cost_usd_per_month", "maya@example.com,Course,gpt-4o-mini,5"]
    rows += ["nobody@example.com,Course,gpt-4o-mini,5", "maya@example.com,Course,gpt-9,-3"]
    dialog = page.get_by_role("dialog")
    dialog.locator("textarea").first.fill("\n".join(rows))
    press("adminAllocations.bulk.check")(page, words)
    dialog.get_by_role("status").wait_for()


def _key_once(page: Page, words: Words) -> None:
    press("keys.create")(page, words)
    dialog = page.get_by_role("dialog")
    dialog.locator("input").first.fill("Notebook")
    for box in dialog.locator("fieldset input[type=checkbox]").all()[:1]:
        box.check()
    dialog.locator("button[type=submit]").click()
    page.get_by_role("button", name=words("keys.copy")).wait_for()


def _away(page: Page, words: Words) -> None:
    page.context.set_offline(True)
    page.get_by_text(words("errors.status.0")).first.wait_for(timeout=30_000)


def _broken(page: Page, words: Words) -> None:
    problem = {"title": "Internal Server Error", "status": 500}
    kind = "application/problem+json"
    page.route(
        "**/api/me/allocations*",
        lambda route: route.fulfill(
            status=500,
            headers={"content-type": kind, "x-request-id": "req_0123456789"},
            body=json.dumps(problem),
        ),
    )
    page.reload()
    page.get_by_role("alert").first.wait_for(timeout=30_000)


def _wrong_password(page: Page, words: Words) -> None:
    page.locator("input[type=password]").first.fill("something else")
    for field in page.locator("input[type=password]").all()[1:]:
        field.fill("short")
    page.locator("main button[type=submit]").click()


SCENES = (
    Scene("ask", "/allocations", press("ask.action", last=True), admin=False),
    Scene(
        "ask-errors",
        "/allocations",
        lambda page, words: (
            press("ask.action", last=True)(page, words),
            press("ask.send")(page, words),
        ),
        admin=False,
    ),
    Scene("withdraw", "/allocations", press("ask.withdraw"), admin=False),
    Scene("away", "/allocations", _away, admin=False),
    Scene("broken", "/allocations", _broken, admin=False),
    Scene("forbidden", "/admin/overview", lambda page, words: None, admin=False),
    Scene("not-found", "/no/such/page", lambda page, words: None, admin=False),
    Scene("usage-models", "/usage?by=model", lambda page, words: None, admin=False),
    Scene("calls-none", "/calls?outcome=recovered", lambda page, words: None, admin=False),
    Scene("call-refused", "/calls", press("calls.details"), admin=False),
    Scene("key-new", "/keys", press("keys.create"), admin=False),
    Scene("key-once", "/keys", _key_once, admin=False),
    Scene("key-use", "/keys", press("keys.use"), admin=False),
    Scene("key-tighten", "/keys", press("keys.tighten"), admin=False),
    Scene("key-revoke", "/keys", press("keys.revoke"), admin=False),
    Scene("session-stop", "/sessions", press("sessions.stop"), admin=False),
    Scene("account-errors", "/account", _wrong_password, admin=False),
    Scene(
        "menu",
        "/allocations",
        lambda page, words: page.locator("header button[aria-haspopup=menu]").last.click(),
        admin=False,
    ),
    Scene("caps", "/admin/allocations", _caps),
    Scene("allocation-new", "/admin/allocations", press("adminAllocations.add")),
    Scene("bulk", "/admin/allocations", _bulk),
    Scene("import", "/admin/allocations", _import),
    Scene(
        "allocation-revoke",
        "/admin/allocations",
        lambda page, words: (
            page.locator("button[aria-haspopup=menu]").last.click(),
            page.get_by_role("menuitem", name=words("adminAllocations.to.revoked")).click(),
        ),
    ),
    Scene("approve", "/admin/requests", press("adminRequests.approve")),
    Scene("decline", "/admin/requests", press("adminRequests.decline")),
    Scene("pool-new", "/admin/pools", press("adminPools.add")),
    Scene("provider-new", "/admin/models", press("adminModels.addProvider")),
    Scene(
        "provider-test",
        "/admin/models",
        lambda page, words: (press("adminModels.test")(page, words), page.wait_for_timeout(800)),
    ),
    Scene("model-new", "/admin/models", press("adminModels.addModel")),
    Scene("price", "/admin/prices?model=gpt-realtime", lambda page, words: None),
    Scene("price-none", "/admin/prices?model=experimental-unpriced", lambda page, words: None),
    Scene(
        "reprice",
        "/admin/prices?model=experimental-unpriced",
        lambda page, words: (
            page.get_by_role("button", name=words("adminPrices.preview")).first.click(),
            page.wait_for_timeout(800),
        ),
    ),
    Scene(
        "member",
        "/admin/members",
        lambda page, words: (
            page.get_by_role("link", name="Maya Lindqvist").click(),
            page.wait_for_timeout(800),
        ),
    ),
    Scene("member-new", "/admin/members", press("adminMembers.add")),
    Scene("session-end", "/admin/sessions", press("adminSessions.kill")),
    Scene("destination-new", "/admin/alerts", press("adminAlerts.addDestination")),
    Scene("destination-delete", "/admin/alerts", choose("adminSetup.moreOf", "adminSetup.remove")),
    Scene("rule-new", "/admin/alerts", press("adminAlerts.addRule")),
    Scene(
        "delivery",
        "/admin/alerts",
        lambda page, words: (
            page.get_by_role("button", name=words("adminAlerts.details")).first.click(),
            page.wait_for_timeout(500),
        ),
    ),
)


def main(*wanted: str) -> None:
    """Take them all, or those whose names hold all that is wanted."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    axes = (get_args(Language), get_args(Theme), (str(WIDE), str(NARROW)))
    chosen = [[one for one in axis if one in wanted] or axis for axis in axes]
    parts = [part for part in wanted if all(part not in axis for axis in axes)]
    with (
        tempfile.TemporaryDirectory() as directory,
        chromium() as browser,
        _demo(directory) as sample,
        _sample(browser, sample),
    ):
        for language, theme, width in product(*chosen):
            _pictures(browser, sample, language, theme, int(width), parts)


@contextlib.contextmanager
def _demo(directory: str) -> Iterator[Json]:
    credentials = Path(directory) / "credentials.json"
    demo = subprocess.Popen(
        [
            Path(sys.executable).with_name("spendgate"),
            *("demo", "--port", "0", "--data-dir", f"{directory}/data"),
            *("--credentials", str(credentials)),
        ],
        stdout=subprocess.DEVNULL,
    )
    try:
        while not credentials.exists():
            assert demo.poll() is None, "the demo ended"
            time.sleep(0.2)
        yield json.loads(credentials.read_text())
    finally:
        demo.terminate()
        demo.wait()


@contextlib.contextmanager
def _sample(browser: Browser, sample: Json) -> Iterator[None]:
    """Put something into every list, and keep a live session open."""
    with httpx2.Client(base_url=sample["base_url"], timeout=30) as client:
        key = {"authorization": f"Bearer {sample['member_key']}"}

        def admin(method: str, path: str, body: Json | None = None) -> Json:
            authorization = {"authorization": f"Bearer {sample['admin_token']}"}
            answer = client.request(method, f"/api/admin{path}", json=body, headers=authorization)
            answer.raise_for_status()
            found: Json = answer.json()
            return found

        allocations = {one["name"]: one for one in admin("GET", "/allocations")["items"]}
        lab = {"name": "Physics lab", "quota_cost_usd_per_month": "40", "shares_out": True}
        pool = admin("POST", "/pools", lab)
        admin("POST", "/pools", {"name": "Thesis students", "parent_id": pool["id"]})
        for name, tokens in (("Course reader", 2_000_000), ("Archive", 500_000)):
            body = {"pool_id": pool["id"], "quota_tokens_per_month": tokens, "reason": "The lab"}
            admin("PATCH", f"/allocations/{allocations[name]['id']}", body)
        hook = {"name": "Ops channel", "kind": "webhook", "address": "https://hooks.example.com/x"}
        hook = admin("POST", "/destinations", hook)
        admin("POST", f"/destinations/{hook['id']}/test")
        rule = {"destination_id": hook["id"], "owner": "pool", "owner_id": pool["id"]}
        admin("POST", "/alert-rules", {**rule, "meter": "usd", "percent": "80"})
        own = {"member_id": sample["member_id"]}
        for name, share in (("Seminar", "0.80"), ("Reading group", "0.95"), ("Side project", "1")):
            given = {"models": ["gpt-4o-mini"], "quota_cost_usd_per_month": "1"}
            made = admin("POST", "/allocations", {**own, **given, "name": name})
            opened = {"name": name, "allocation_ids": [made["id"]]}
            secret = admin("POST", "/keys", {**own, **opened})["key"]
            asked = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello!"}]}
            bearer = {"authorization": f"Bearer {secret}"}
            client.post("/v1/chat/completions", headers=bearer, json=asked)
            used = Decimal(admin("GET", f"/allocations/{made['id']}")["cost_used_this_month"])
            cap = {"quota_cost_usd_per_month": f"{used / Decimal(share):.9f}", "reason": "Try it"}
            admin("PATCH", f"/allocations/{made['id']}", cap)
            client.post("/v1/chat/completions", headers=bearer, json=asked)
        body = {"model": "tts-9", "messages": [{"role": "user", "content": "Hello!"}]}
        client.post("/v1/chat/completions", headers=key, json=body)
    for amount in ("5", "12.50"):
        with Window(browser, sample["base_url"]) as window:
            _enter(window, sample, "member")
            window.go("/allocations")
            window.page.get_by_role("button", name="Ask for more").last.click()
            window.page.get_by_label("How much more").fill(amount)
            window.page.get_by_label("Reason").fill("The deadline moved to Friday")
            window.page.get_by_role("button", name="Send request").click()
            window.page.get_by_role("dialog").wait_for(state="detached")
    url = sample["base_url"].replace("http", "ws", 1) + "/v1/realtime?model=gpt-realtime"
    with connect(url, additional_headers=key) as socket:
        socket.send('{"type": "response.create"}')
        # What is not read would hold the session up.
        threading.Thread(target=lambda: [None for _ in socket], daemon=True).start()
        time.sleep(2)
        yield


def _words(language: Language) -> Words:
    """Return what finds words by their keys, as the pages do."""
    files = [WORDS / f"{language}.json", WORDS / f"{language}.admin.json"]
    known = {name: part for file in files for name, part in json.loads(file.read_text()).items()}

    def words(key: str, **given: str) -> Any:
        found: Any = known
        for name in key.split("."):
            found = found[name]
        text = re.sub(r"\{\{(\w+)\}\}", lambda hole: given.get(hole[1], "\0"), found)
        # What is not given may be anything.
        return re.compile(re.escape(text).replace("\0", ".*")) if "\0" in text else text

    return words


def _enter(window: Window, sample: Json, who: str) -> None:
    window.page.goto("/")
    window.page.locator("h1").wait_for()
    window.sign_in(sample[f"{who}_email"], sample[f"{who}_password"])


def _pictures(
    browser: Browser, sample: Json, language: Language, theme: Theme, width: int, parts: list[str]
) -> None:
    words = _words(language)
    for who in ("member", "admin"):
        with Window(
            browser, sample["base_url"], width=width, language=language, theme=theme, still=True
        ) as window:

            def take(name: str, *, whole: bool) -> None:
                path = FOLDER / f"{language}-{theme}-{width}-{name}.png"
                window.page.screenshot(path=path, full_page=whole)

            window.page.goto("/")
            window.page.locator("h1").wait_for()
            if who == "member" and all(part in "sign-in" for part in parts):
                take("sign-in", whole=True)
            _enter(window, sample, who)
            paths = window.page.evaluate(_PATHS, width == NARROW)
            for path in [*paths, *BEYOND_NAVIGATION]:
                name = path.strip("/").replace("/", "-")
                if path.startswith("/admin") == (who == "admin") and all(p in name for p in parts):
                    window.go(path)
                    take(name, whole=True)
            for scene in SCENES:
                name = f"{who}-{scene.name}"
                if scene.admin == (who == "admin") and all(part in name for part in parts):
                    window.go(scene.path)
                    scene.act(window.page, words)
                    window.page.wait_for_timeout(300)
                    take(name, whole=not window.page.get_by_role("dialog").count())
                    window.context.set_offline(False)
                    window.page.unroute_all()


_PATHS = """(narrow) => {
  if (narrow) document.querySelector('header button').click()
  return new Promise((done) => setTimeout(() => done(
    [...new Set([...document.querySelectorAll('nav a')].map((one) => one.pathname))]), 300))
}"""


if __name__ == "__main__":
    main(*sys.argv[1:])
