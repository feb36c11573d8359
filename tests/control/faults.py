"""Every fault that the source can find: its code, its English words, and what varies in them."""

from __future__ import annotations

import ast
import string
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import app

SOURCE = Path(app.__file__).parent
WORDS_AT = {"Fault": 0, "invalid": 1, "taken": 1}
"""Which argument is the code; the words come after it."""


class Site(NamedTuple):
    """A place in the source that finds a fault."""

    where: str
    code: str
    words: str
    values: frozenset[str]

    @property
    def slots(self) -> frozenset[str]:
        """What the words leave open."""
        return frozenset(name for _, name, _, _ in string.Formatter().parse(self.words) if name)


def _trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        yield path, ast.parse(path.read_text())


def _calls() -> Iterator[tuple[Path, ast.Call, str]]:
    for path, tree in _trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                yield path, node, name


def _kinds() -> dict[str, int]:
    """Names of the functions and classes that make a fault, and where its code stands."""
    classes = [
        node.name
        for _, tree in _trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and any(getattr(base, "id", "") == "Fault" for base in node.bases)
    ]
    return WORDS_AT | dict.fromkeys(classes, 0)


def _literal(node: ast.expr | None) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def sites() -> list[Site]:
    """Return them all. Raises if one does not spell out its code and its words."""
    kinds, found = _kinds(), []
    for path, call, name in _calls():
        if name not in kinds or (path.name == "errors.py" and _is_a_rule_of_thumb(call, name)):
            continue
        where = f"{path.relative_to(SOURCE)}:{call.lineno}"
        at = kinds[name]
        code, words = (_literal(call.args[n] if n < len(call.args) else None) for n in (at, at + 1))
        assert code is not None, f"{where}: {name} does not spell out its code"
        assert words is not None, f"{where}: {name} does not spell out its words"
        values = frozenset(keyword.arg for keyword in call.keywords if keyword.arg)
        if any(keyword.arg is None for keyword in call.keywords):
            values |= Site(where, code, words, frozenset()).slots
        found.append(Site(where, code, words, values))
    return found


def _is_a_rule_of_thumb(call: ast.Call, name: str) -> bool:
    """Tell the makers of faults themselves, which pass on what they are given."""
    return name == "Fault" and isinstance(call.args[0], ast.Name)


def things() -> set[str]:
    """Return what the source says that there is none of."""
    found = set()
    for _, call, name in _calls():
        at = {"unknown": 0, "path_id": 1, "current": 3, "_current": 3, "_shown": 3}.get(name)
        said = [call.args[at]] if at is not None and at < len(call.args) else []
        said += [keyword.value for keyword in call.keywords if keyword.arg == "what"]
        found |= {thing for one in said if (thing := _literal(one)) is not None}
    return found
