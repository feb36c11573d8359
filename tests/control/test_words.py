"""What is wrong is said in the reader's language: every code has words in every language."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import app.control
from app.control.wire import Input
from tests.control.conftest import Plane
from tests.control.faults import sites, things

I18N = Path(__file__).parents[2] / "frontend" / "src" / "i18n"
LANGUAGES = ("en", "zh-TW")


def _words(language: str) -> dict[str, dict[str, str]]:
    document: dict[str, dict[str, str]] = json.loads((I18N / f"{language}.errors.json").read_text())
    return document


def _inputs(kind: type[Input] = Input) -> Iterator[type[Input]]:
    for module in pkgutil.iter_modules(app.control.__path__):
        importlib.import_module(f"app.control.{module.name}")
    for one in kind.__subclasses__():
        yield one
        yield from _inputs(one)


def test_a_fault_gives_the_values_that_its_words_leave_open() -> None:
    found = sites()
    assert len(found) > 150
    for site in found:
        assert site.slots <= site.values, site.where
        assert re.fullmatch(r"[a-z][a-z0-9_]*", site.code), site.where


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_code_has_words_and_no_words_are_of_no_code(language: str) -> None:
    words = _words(language)["faults"]
    assert set(words) == {site.code for site in sites()}
    for site in sites():
        # A slot that stays empty would be shown with its braces.
        slots = set(re.findall(r"\{\{(\w+)\}\}", words[site.code]))
        assert slots <= site.values, f"{site.where}: {words[site.code]}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_there_is_none_of_is_called_by_its_name(language: str) -> None:
    assert len(things()) > 10
    assert things() <= set(_words(language)["things"])


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_field_of_every_body_has_a_name(language: str) -> None:
    named = {field.encode_name for one in _inputs() for field in msgspec.structs.fields(one)}
    assert len(named) > 50
    assert named <= set(_words(language)["fields"])


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "expected"),
    [
        (
            "POST",
            "/admin/members",
            {"email": "ada"},
            422,
            ("email", "email must be an address such as ada@example.org.", "not_email", {}),
        ),
        (
            "POST",
            "/admin/pools",
            {"name": "x" * 201},
            422,
            (
                "name",
                "name must have from 1 to 200 characters.",
                "length",
                {"least": 1, "most": 200},
            ),
        ),
        (
            "POST",
            "/admin/pools",
            {"name": "x", "limits": [{"meter": "usd", "window": "day", "amount": "-1"}]},
            422,
            ("limits[0].amount", "limits[0].amount must be 0 or more USD.", "usd_negative", {}),
        ),
        (
            "POST",
            "/admin/pools",
            {"name": 5},
            422,
            (
                "name",
                "name: Expected str, got int.",
                "wrong_type",
                {"expected": "str", "got": "int"},
            ),
        ),
        ("POST", "/admin/pools", {}, 422, ("name", "name: is required.", "required", {})),
        (
            "POST",
            "/admin/pools",
            {"name": "x", "colour": 1},
            422,
            ("colour", "colour: unknown field.", "unknown_field", {}),
        ),
        (
            "POST",
            "/admin/members",
            {"email": "ada@example.org", "role": "king"},
            422,
            (
                "role",
                "role: Invalid enum value 'king'; use one of admin, auditor, member.",
                "not_one_of",
                {"said": "Invalid enum value 'king'", "known": "admin, auditor, member"},
            ),
        ),
        (
            "GET",
            "/admin/pools?limit=many",
            None,
            400,
            ("limit", None, "unreadable", None),
        ),
    ],
)
async def test_a_field_that_is_wrong_has_a_code_and_its_values(
    plane: Plane, method: str, path: str, body: Any, status: int, expected: tuple[Any, ...]
) -> None:
    answer = await plane.call(method, path, body)
    document = answer.json()
    field, message, code, values = expected
    [error] = document["errors"]
    assert (answer.status_code, error["field"], error["code"]) == (status, field, code)
    assert message is None or error["message"] == document["detail"] == message
    assert values is None or error["values"] == document["values"] == values


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "values"),
    [
        ("GET", "/admin/nothing", 404, "no_path", {"path": "/api/admin/nothing"}),
        ("GET", "/admin/pools/none", 404, "no_such", {"what": "pool"}),
        ("PUT", "/admin/pools", 405, "method", {"path": "/api/admin/pools", "method": "PUT"}),
        ("GET", "/admin/pools?cursor=1", 400, "cursor", {}),
    ],
)
async def test_what_concerns_no_field_has_a_code_as_well(
    plane: Plane, method: str, path: str, status: int, code: str, values: dict[str, Any]
) -> None:
    answer = await plane.call(method, path)
    document = answer.json()
    assert (answer.status_code, document["code"], document["values"]) == (status, code, values)
    assert "errors" not in document
