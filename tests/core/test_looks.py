"""What a provider's answer says of it."""

from __future__ import annotations

import msgspec
import pytest

from app.core.looks import SHOWN_MAX, Look, judge


def body(document: object) -> bytes:
    return msgspec.json.encode(document)


@pytest.mark.parametrize(
    "listed",
    [
        {"data": [{"id": "a"}, {"id": "b"}, 7, {"id": 5}]},
        {"models": [{"name": "a"}, {"name": "b"}]},
        [{"id": "a"}, {"id": "b", "name": "b"}],
    ],
)
def test_models_are_found_in_every_kind_of_list(listed: object) -> None:
    verdict = judge(Look(200, body(listed)))
    assert (verdict.ok, verdict.models, verdict.model_listed) == (True, 2, None)
    assert judge(Look(200, body(listed)), "a").model_listed is True
    missing = judge(Look(200, body(listed)), "z")
    assert (missing.ok, missing.model_listed) == (True, False)
    assert "does not list z" in missing.message


@pytest.mark.parametrize("answer", [b"", b"<html>", b'{"data": 5}', b"5", b"\xff", b'"text"'])
def test_whatever_is_no_list_is_said_to_be_none(answer: bytes) -> None:
    verdict = judge(Look(200, answer), "a")
    assert (verdict.ok, verdict.models, verdict.model_listed) == (False, None, None)
    assert "base_url" in verdict.message


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (body({"error": {"message": "No such key"}}), "It says: No such key"),
        (body({"error": "No such key"}), "It says: No such key"),
        (body({"message": "No\nsuch\x00key"}), "It says: No such key"),
        (body({"detail": "No such key"}), "It says: No such key"),
        (body("No such key"), "It says: No such key"),
        (body({"error": {"code": 5}}), ""),
        (body({"else": "x"}), ""),
        (body([1]), ""),
        (b"<html>", ""),
    ],
)
def test_what_a_provider_says_is_shown_whatever_the_form(said: bytes, shown: str) -> None:
    for status, words in (
        (401, "refuses the credential"),
        (403, "refuses the credential"),
        (404, "no list of models"),
        (405, "no list of models"),
        (429, "status 429"),
        (302, "status 302"),
        (500, "status 500"),
    ):
        verdict = judge(Look(status, said))
        assert not verdict.ok
        assert words in verdict.message
        assert verdict.message.endswith(shown)
        assert ("It says" in verdict.message) == bool(shown)


def test_what_is_shown_is_short_and_a_failure_is_shown_as_it_is() -> None:
    assert len(judge(Look(500, body("x" * 5000))).message) < SHOWN_MAX + 100
    assert judge(Look(None, failure="It did not answer.")).message == "It did not answer."


@pytest.mark.parametrize(
    ("look", "code", "values"),
    [
        (Look(None, failure="It is away."), "provider_unreachable", {"said": "It is away."}),
        (
            Look(401, body({"error": "No"})),
            "provider_refuses",
            {"status": 401, "said": "No", "says": " It says: No"},
        ),
        (Look(404), "provider_lists_nothing", {"status": 404, "said": "", "says": ""}),
        (Look(500), "provider_status", {"status": 500, "said": "", "says": ""}),
        (Look(200), "provider_unreadable", {}),
    ],
)
def test_what_is_wrong_has_a_code_and_its_values(
    look: Look, code: str, values: dict[str, object]
) -> None:
    fault = judge(look).fault
    assert fault is not None
    assert (fault.code, fault.values) == (code, values)


def test_what_works_has_no_fault() -> None:
    assert judge(Look(200, body([{"id": "a"}]))).fault is None
