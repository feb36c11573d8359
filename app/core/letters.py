"""Letters: what an alert says when a person reads it.

Owns the subject and the text of an event as an e-mail. Owns no address and no transport.

Invariants: a subject is one line; a letter tells everything that the event's body does.
"""

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
