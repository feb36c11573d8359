"""Letters: every kind of event reads well, and says all that its body says."""

from datetime import UTC, datetime
from typing import get_args

import msgspec
import pytest

from app.core.alerts import (
    AllocationExhausted,
    Body,
    CostThresholdCrossed,
    RealtimeSessionCut,
    RequestRaised,
    TokenThresholdCrossed,
    Trial,
    UnpricedModelSeen,
)
from app.core.invitations import Purpose
from app.core.letters import invitation_letter, letter

NOW = datetime(2026, 5, 20, 8, 45, tzinfo=UTC)

LETTERS: list[tuple[Body, str]] = [
    (
        TokenThresholdCrossed("k", "a", "Mistral", 100, 101, None, "lifetime", None, NOW),
        "101 tokens used, the threshold is 100 (lifetime)",
    ),
    (
        CostThresholdCrossed("k", "a", "Mistral", "4.00", "4.10", "5.00", "month", NOW, NOW),
        "4.10 USD used, the threshold is 4.00 (month)",
    ),
    (
        AllocationExhausted("k", "a", None, "usd", "5.00", "5.00", "month", NOW, NOW, NOW),
        "an allocation is exhausted at 5.00 USD (month)",
    ),
    (
        AllocationExhausted("k", "a", None, "tokens", 9, 9, "day", NOW, NOW, NOW),
        "an allocation is exhausted at 9 tokens (day)",
    ),
    (
        UnpricedModelSeen("k", "a", None, "ocr-9", NOW, NOW),
        "the model ocr-9 was used and has no price",
    ),
    (
        RealtimeSessionCut("k", "a", None, "c", "rt", "cost_exceeded", 5, None, NOW),
        "a realtime session was cut (cost_exceeded)",
    ),
    (
        RequestRaised("m", "a", "q", "usd", "2.50", "thesis", None, NOW),
        "a member asks for 2.50 USD more",
    ),
    (
        RequestRaised("m", "a", "q", "tokens", 7, "thesis", NOW, NOW),
        "a member asks for 7 tokens more",
    ),
    (Trial("d", NOW), "a test, and it arrived"),
]


@pytest.mark.parametrize(("body", "said"), LETTERS)
def test_a_letter_says_what_happened_and_lists_all_that_is_known(body: Body, said: str) -> None:
    written = letter(body)
    assert written.subject == f"Spendgate: {said}"
    first, _, *lines = written.text.splitlines()
    assert first.lower() == f"{said}.".lower()
    assert first[0] == first[0].upper()
    known = msgspec.to_builtins(body)
    assert lines == [f"{name}: {value}" for name, value in known.items() if value is not None]


def test_every_kind_of_event_has_a_letter() -> None:
    assert {type(body) for body, _ in LETTERS} == set(get_args(Body))


@pytest.mark.parametrize("purpose", get_args(Purpose))
@pytest.mark.parametrize("invited_by", ["root@example.org", None])
def test_an_invitation_is_written_in_both_languages_and_says_until_when(
    purpose: Purpose, invited_by: str | None
) -> None:
    link = "https://gateway.example/invitation#sgi_secret"
    written = invitation_letter(purpose, link, invited_by, NOW)
    assert "Spendgate / " in written.subject
    assert "\n" not in written.subject
    # Alone on its line, or a mail program takes what follows for a part of it.
    assert written.text.splitlines().count(link) == 1
    assert written.text.count("2026-05-20 08:45 UTC") == 2
    assert written.text.count("root@example.org") == (2 if invited_by else 0)
    assert ("invites you" in written.text) is (purpose == "join")
    assert ("重設" in written.text) is (purpose == "reset")
    assert "sgi_secret" not in written.subject
