"""Letters: what an alert or an invitation says when a person reads it.

Owns the subject and the text of an event, or of an invitation, as an e-mail. Owns no address and no
transport.

Invariants: a subject is one line; a letter tells everything that the event's body does; an
invitation is written in both languages, because nobody knows yet which one its reader speaks.
"""

from datetime import UTC, datetime
from typing import assert_never

import msgspec

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


class Letter(msgspec.Struct, frozen=True):
    """What is mailed."""

    subject: str
    text: str


def letter(body: Body) -> Letter:
    """Write an event out."""
    said = _said(body)
    fields = msgspec.to_builtins(body).items()
    listed = [f"{name}: {value}" for name, value in fields if value is not None]
    return Letter(f"Spendgate: {said}", f"{_sentence(said)}\n\n" + "\n".join(listed) + "\n")


def invitation_letter(
    purpose: Purpose, link: str, invited_by: str | None, expires_at: datetime
) -> Letter:
    """Write to a member whose link it is."""
    until = f"{expires_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    who, who_zh = invited_by or "An administrator", invited_by or "管理員"
    if purpose == "join":
        subject = "You are invited to Spendgate / Spendgate 邀請函"
        asks = f"{who} invites you to Spendgate. Open this link to choose a password:"
        asks_zh = f"{who_zh} 邀請您使用 Spendgate。請開啟以上連結設定密碼。"
    else:
        subject = "Choose a new password for Spendgate / 重設 Spendgate 密碼"
        asks = f"{who} sends you a link to choose a new password for Spendgate:"
        asks_zh = f"{who_zh} 提供您重設 Spendgate 密碼的連結，請開啟以上連結。"
    ends = f"It works once, until {until}. Whoever has it can use it: do not pass it on."
    ends_zh = f"連結僅能使用一次，有效至 {until}。任何人持有此連結都能使用，請勿轉寄。"
    return Letter(subject, f"{asks}\n\n{link}\n\n{ends}\n\n{asks_zh}\n{ends_zh}\n")


def _said(body: Body) -> str:
    match body:
        case TokenThresholdCrossed():
            total, threshold = f"{body.total_tokens} tokens", str(body.threshold)
            return f"{total} used, the threshold is {threshold} ({body.window})"
        case CostThresholdCrossed():
            total, threshold = f"{body.total_cost_usd} USD", body.threshold
            return f"{total} used, the threshold is {threshold} ({body.window})"
        case AllocationExhausted():
            unit = "tokens" if body.meter == "tokens" else "USD"
            return f"an allocation is exhausted at {body.limit} {unit} ({body.window})"
        case UnpricedModelSeen():
            return f"the model {body.model} was used and has no price"
        case RealtimeSessionCut():
            return f"a realtime session was cut ({body.close_reason})"
        case RequestRaised():
            unit = "tokens" if body.meter == "tokens" else "USD"
            return f"a member asks for {body.amount} {unit} more"
        case Trial():
            return "a test, and it arrived"
        case _:
            assert_never(body)


def _sentence(said: str) -> str:
    return f"{said[0].upper()}{said[1:]}."
