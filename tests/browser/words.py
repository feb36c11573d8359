"""What the dashboard says in a language, by the names that its own files have for it.

Tests that run in every language ask for words by name, so that they find what readers see.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.browser.chromium import NARROW, WIDE, Language

BOTH_WAYS = [("en", WIDE), ("zh-TW", NARROW)]
"""Every language, and every width, once."""

I18N = Path(__file__).parents[2] / "frontend" / "src" / "i18n"


def _flat(words: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for name, value in words.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield path + name, value


class Words:
    """``words("ask.open", more="+$5.00")``; of a `count`, in the form that goes with it."""

    def __init__(self, language: Language) -> None:
        self.language = language
        self._known: dict[str, str] = {}
        for part in ("", ".admin", ".errors"):
            self._known |= _flat(json.loads((I18N / f"{language}{part}.json").read_text()))

    def __call__(self, name: str, /, **values: Any) -> str:
        if "count" in values:
            name += "_one" if values["count"] == 1 and f"{name}_one" in self._known else "_other"
        text = self._known[name]
        for slot, value in values.items():
            text = text.replace("{{" + slot + "}}", str(value))
        return text

    def beginning(self, name: str) -> str:
        """Return what stands before the first value."""
        return self._known[name].partition("{{")[0].strip()

    def usd(self, amount: str) -> str:
        """Write an amount of money."""
        return f"${amount}" if self.language == "en" else f"US${amount}"
