"""Refusals: why a call is not served, as one closed enum in precedence order.

Owns the reasons, which of them are transient, and the outcome each is recorded under. Owns no
status code and no wire format: `app.problems` is the one place that knows those.

Invariants: the order of `Reason` is the order in which reasons are reported; a refusal by a limit
always carries its `Shortfall`, any other never does.
"""

from datetime import datetime
from enum import Enum
from typing import Literal

import msgspec

from app.core.money import nano_to_usd

Outcome = Literal[
    "success",
    "client_disconnected",
    "cut_off",
    "recovered",
    "upstream_error",
    "rejected_model_mismatch",
    "rejected_inactive",
    "rejected_quota_exceeded",
    "rejected_cost_quota_exceeded",
    "rejected_chat_limit_exceeded",
    "rejected_quota_reserved",
    "rejected_unavailable",
]

DELIVERED: frozenset[str] = frozenset({"success", "client_disconnected", "cut_off", "recovered"})
"""Outcomes of calls that delivered something: billed for what was used, and all count."""


class Reason(Enum):
    """Why a call is refused, the first to be reported first."""

    INVALID_KEY = "invalid_api_key"
    MODEL_MISMATCH = "model_mismatch"
    MODEL_UNPRICED = "model_unpriced"
    MEMBER_DISABLED = "member_disabled"
    ALLOCATION_PAUSED = "allocation_paused"
    ALLOCATION_QUARANTINED = "allocation_quarantined"
    ALLOCATION_REVOKED = "allocation_revoked"
    CHAT_EXCEEDED = "chat_spend_limit_exceeded"
    BUDGET_EXCEEDED = "token_budget_exceeded"
    TOKENS_EXCEEDED = "quota_exceeded"
    COST_EXCEEDED = "cost_quota_exceeded"
    RESERVED = "quota_reserved"
    PROVIDER_UNAVAILABLE = "provider_unavailable"
    LEDGER_UNAVAILABLE = "ledger_unavailable"


OUTCOME_OF: dict[Reason, Outcome | None] = {
    Reason.INVALID_KEY: None,
    Reason.MODEL_MISMATCH: "rejected_model_mismatch",
    Reason.MODEL_UNPRICED: "rejected_model_mismatch",
    Reason.MEMBER_DISABLED: "rejected_inactive",
    Reason.ALLOCATION_PAUSED: "rejected_inactive",
    Reason.ALLOCATION_QUARANTINED: "rejected_inactive",
    Reason.ALLOCATION_REVOKED: "rejected_inactive",
    Reason.CHAT_EXCEEDED: "rejected_chat_limit_exceeded",
    Reason.BUDGET_EXCEEDED: "rejected_quota_exceeded",
    Reason.TOKENS_EXCEEDED: "rejected_quota_exceeded",
    Reason.COST_EXCEEDED: "rejected_cost_quota_exceeded",
    Reason.RESERVED: "rejected_quota_reserved",
    Reason.PROVIDER_UNAVAILABLE: "rejected_unavailable",
    Reason.LEDGER_UNAVAILABLE: "rejected_unavailable",
}
"""The outcome that a refused call is recorded under; None: no call is recorded."""


def exceeded_by(owner: str, meter: str, window: str) -> Reason:
    """Return why a call is refused that a limit has no room for, whatever is held."""
    if owner == "chat":
        return Reason.CHAT_EXCEEDED
    if meter == "usd":
        return Reason.COST_EXCEEDED
    if owner == "key" and window == "lifetime":
        return Reason.BUDGET_EXCEEDED
    return Reason.TOKENS_EXCEEDED


class Shortfall(msgspec.Struct, frozen=True, gc=False):
    """The limit that stood in the way, in its own meter's unit (tokens, or nano-USD)."""

    owner: str
    owner_id: str
    meter: str
    window: str
    amount: int
    used: int
    held: int
    needed: int
    resets_at: datetime | None

    @property
    def remaining(self) -> int:
        """What is neither used nor held."""
        return max(0, self.amount - self.used - self.held)


class LimitDocument(msgspec.Struct, frozen=True):
    """A shortfall as people read it: USD as decimal strings, tokens as numbers."""

    owner: str
    owner_id: str
    meter: str
    window: str
    amount: int | str
    used: int | str
    held: int | str
    needed: int | str
    remaining: int | str
    resets_at: datetime | None


def limit_document(shortfall: Shortfall) -> LimitDocument:
    """Write out a shortfall for an error or a recorded call."""

    def shown(value: int) -> int | str:
        return nano_to_usd(value) if shortfall.meter == "usd" else value

    return LimitDocument(
        shortfall.owner,
        shortfall.owner_id,
        shortfall.meter,
        shortfall.window,
        shown(shortfall.amount),
        shown(shortfall.used),
        shown(shortfall.held),
        shown(shortfall.needed),
        shown(shortfall.remaining),
        shortfall.resets_at,
    )


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """A call that is not served, and why."""

    reason: Reason
    shortfall: Shortfall | None = None
    detail: str = ""
