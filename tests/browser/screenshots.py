"""Pictures of every page: both languages, light and dark, wide and narrow, into `screenshots/`.

Runs the demo on a directory of its own, so the pictures show what a visitor of it sees.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import get_args

import httpx2
from playwright.sync_api import Browser

from tests.browser.chromium import NARROW, WIDE, Json, Language, Theme, Window, chromium

FOLDER = Path("screenshots")
BEYOND_NAVIGATION = ("/account",)


def main(only: str = "") -> None:
    """Take them all, or those whose path holds `only`."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    with tempfile.TemporaryDirectory() as directory, chromium() as browser:
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
            sample = json.loads(credentials.read_text())
            _spend(sample)
            for language in get_args(Language):
                for theme in get_args(Theme):
                    for width in (WIDE, NARROW):
                        _pictures(browser, sample, language, theme, width, only)
        finally:
            demo.terminate()
            demo.wait()


def _spend(sample: Json) -> None:
    """Leave a call that was refused, and a request."""
    with httpx2.Client(base_url=sample["base_url"], timeout=30) as client:
        key = {"authorization": f"Bearer {sample['member_key']}"}
        for model in ("gpt-4o-mini", "tts-9"):
            body = {"model": model, "messages": [{"role": "user", "content": "Hello!"}]}
            client.post("/v1/chat/completions", headers=key, json=body)


def _pictures(
    browser: Browser, sample: Json, language: Language, theme: Theme, width: int, only: str
) -> None:
    url = sample["base_url"]
    for who in ("member", "admin"):
        with Window(browser, url, width=width, language=language, theme=theme) as window:
            window.page.goto("/")
            window.page.locator("h1").wait_for()
            if who == "member":
                _take(window, f"{language}-{theme}-{width}-sign-in")
            window.sign_in(sample[f"{who}_email"], sample[f"{who}_password"])
            paths = window.page.evaluate(_PATHS, width == NARROW)
            for path in [*paths, *BEYOND_NAVIGATION]:
                if only not in path or (who == "admin" and not path.startswith("/admin")):
                    continue
                window.go(path)
                name = path.strip("/").replace("/", "-")
                _take(window, f"{language}-{theme}-{width}-{name}")


_PATHS = """(narrow) => {
  if (narrow) document.querySelector('header button').click()
  return new Promise((done) => setTimeout(() => done(
    [...new Set([...document.querySelectorAll('nav a')].map((one) => one.pathname))]), 300))
}"""


def _take(window: Window, name: str) -> None:
    window.page.screenshot(path=FOLDER / f"{name}.png", full_page=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
