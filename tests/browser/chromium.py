"""Chromium, driven from outside: windows of given sizes, languages and themes, and what is wrong in
them.

Knows no page. The browser is the system's own; where it is missing, whoever needs it fails.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
AXE = Path(__file__).parents[2] / "frontend" / "node_modules" / "axe-core" / "axe.min.js"

Language = Literal["en", "zh-TW"]
Theme = Literal["light", "dark"]
WIDE, NARROW = 1280, 360
HEIGHT = {WIDE: 900, NARROW: 780}

Json = dict[str, Any]


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Run a browser without a screen."""
    if not CHROMIUM.exists():
        raise FileNotFoundError(
            f"The browser tests need Chromium at {CHROMIUM} (Debian: apt install chromium), "
            "or its path in CHROMIUM."
        )
    with sync_playwright() as playwright:
        # Containers give neither a sandbox of its own nor much shared memory to root.
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        try:
            yield browser
        finally:
            browser.close()


class Window(contextlib.AbstractContextManager["Window"]):
    """A browser window of its own, with its own cookies; it remembers what its pages complain of."""

    def __init__(
        self,
        browser: Browser,
        url: str,
        *,
        width: int = WIDE,
        language: Language = "en",
        theme: Theme = "light",
        still: bool = False,
    ) -> None:
        self.url = url
        self.language = language
        self.context = browser.new_context(
            base_url=url,
            viewport={"width": width, "height": HEIGHT[width]},
            locale="en-GB" if language == "en" else language,
            timezone_id="Asia/Taipei",
            color_scheme=theme,
            reduced_motion="reduce" if still else "no-preference",
            has_touch=width == NARROW,
            permissions=["clipboard-read", "clipboard-write"],
        )
        self.context.set_default_timeout(10_000)
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._on_console)

    def _on_console(self, message: Any) -> None:
        # Refusals by the server are shown on the page, and chromium logs each as an error.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.complaints.append(message.text)

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def go(self, path: str) -> None:
        """Open a page of the dashboard, and wait until it shows what it is for."""
        self.page.goto(path)
        self.settle()

    def settle(self) -> None:
        """Wait until nothing is on its way any more."""
        self.page.locator("h1").first.wait_for()
        self.page.wait_for_load_state("networkidle")
        self.page.wait_for_function("document.querySelectorAll('.animate-pulse').length === 0")

    def sign_in(self, email: str, password: str) -> None:
        """Fill in the form that stands before every page."""
        self.page.locator("input[type=email]").fill(email)
        self.page.locator("input[type=password]").fill(password)
        self.page.locator("button[type=submit]").click()
        self.page.locator("input[type=email]").wait_for(state="detached")
        self.page.locator("main h1").wait_for()

    def resize(self, width: int) -> None:
        """Make it as wide as another one."""
        self.page.set_viewport_size({"width": width, "height": HEIGHT[width]})

    # What is wrong

    def overflow(self) -> list[str]:
        """What reaches beyond the window's right edge, or out of its own box."""
        found: list[str] = self.page.evaluate(_OVERFLOW)
        return found

    def violations(self, only: tuple[str, ...] = ()) -> list[str]:
        """What axe finds that is serious or critical, by all of its rules or by some."""
        if not self.page.evaluate("'axe' in window"):
            self.page.evaluate(AXE.read_text())
        results: Json = self.page.evaluate(
            """(only) => axe.run(document, {
              resultTypes: ['violations'],
              ...(only.length ? {runOnly: only} : {}),
            })""",
            only,
        )
        return [
            f"{one['id']}: {one['help']} ({node['html'][:200]}) {node['failureSummary'][:300]}"
            for one in results["violations"]
            if one["impact"] in ("serious", "critical")
            for node in one["nodes"]
        ]


_OVERFLOW = """() => {
  const wide = document.documentElement.clientWidth
  const found = []
  if (document.documentElement.scrollWidth > wide) found.push('the page scrolls sideways')
  const clipped = (node) => {
    for (let up = node.parentElement; up; up = up.parentElement) {
      const style = getComputedStyle(up)
      if (style.overflowX !== 'visible') return true
    }
    return false
  }
  for (const node of document.querySelectorAll('body *')) {
    const box = node.getBoundingClientRect()
    if (box.width === 0 || getComputedStyle(node).position === 'fixed') continue
    if (node.closest('.sr-only, svg, pre')) continue
    if (box.right > wide + 1 && !clipped(node)) found.push('beyond the edge: ' + node.outerHTML.slice(0, 200))
    const style = getComputedStyle(node)
    const text = [...node.childNodes].some((one) => one.nodeType === 3 && one.data.trim())
    if (text && style.overflowX !== 'auto' && !node.classList.contains('truncate')
        && node.tagName !== 'SELECT' && node.tagName !== 'OPTION'
        && style.display !== 'inline' && node.scrollWidth > node.clientWidth + 1) {
      found.push('text wider than its box: ' + node.outerHTML.slice(0, 200))
    }
  }
  return found
}"""
