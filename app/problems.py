"""Problems: the one map from refusal to wire error.

Owns status codes, error types, codes, messages and `x-should-retry` of the data plane, in OpenAI's
envelope (Anthropic's on `/v1/messages`), and RFC 9457 documents for the control plane. Owns no
decision.

Invariants: every `Reason` has exactly one row; no message holds a secret, a provider's address or
a stack trace; only `quota_reserved` carries `Retry-After`, because SDKs sleep on long ones.
"""

from collections.abc import Mapping, Sequence

import msgspec

from app.core.faults import Value
from app.core.money import nano_to_usd
from app.core.refusals import LimitDocument, Reason, Refusal, Shortfall, limit_document

Headers = list[tuple[bytes, bytes]]


class Problem(msgspec.Struct, frozen=True):
    """An error as the data plane answers it."""

    status: int
    type: str
    code: str
    message: str
    param: str | None = None
    retry: bool = False
    retry_after: str | None = None
    scope: str | None = None
    limit: LimitDocument | None = None

    def error(self) -> dict[str, object]:
        """Return the error as OpenAI's envelope and its realtime events carry it."""
        error: dict[str, object] = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        if self.limit is not None:
            error["scope"] = self.scope
            error["limit"] = self.limit
        return error

    def openai(self) -> bytes:
        """Return the body in OpenAI's envelope."""
        return msgspec.json.encode({"error": self.error()})

    def event(self) -> bytes:
        """Return the error as one server-sent event."""
        return b"data: " + self.openai() + b"\n\n"

    def headers(self) -> Headers:
        """Return what every error answer carries beside its ids."""
        headers = [
            (b"content-type", b"application/json"),
            (b"x-should-retry", b"true" if self.retry else b"false"),
        ]
        if self.retry_after is not None:
            headers.append((b"retry-after", self.retry_after.encode()))
        return headers


_REASONS: dict[Reason, tuple[int, str, str]] = {
    Reason.INVALID_KEY: (
        401,
        "authentication_error",
        "The API key is missing, unknown, expired, revoked or used up. "
        "Send `Authorization: Bearer sg_…` with a key from your dashboard.",
    ),
    Reason.MODEL_MISMATCH: (
        403,
        "permission_error",
        "This key does not open the model {detail!r}. `GET /v1/models` lists those it opens.",
    ),
    Reason.MODEL_UNPRICED: (
        403,
        "permission_error",
        "The model {detail!r} has no price, and this allocation does not allow unpriced calls.",
    ),
    Reason.MEMBER_DISABLED: (403, "permission_error", "This member is disabled."),
    Reason.ALLOCATION_PAUSED: (403, "permission_error", "This allocation is paused."),
    Reason.ALLOCATION_QUARANTINED: (403, "permission_error", "This allocation is quarantined."),
    Reason.ALLOCATION_REVOKED: (403, "permission_error", "This allocation has been revoked."),
    Reason.CHAT_EXCEEDED: (
        409,
        "insufficient_quota",
        "The spend limit of this chat and its descendants does not allow this call.",
    ),
    Reason.BUDGET_EXCEEDED: (
        429,
        "insufficient_quota",
        "token budget exceeded: the {limit} does not allow this call.",
    ),
    Reason.TOKENS_EXCEEDED: (429, "insufficient_quota", "The {limit} does not allow this call."),
    Reason.COST_EXCEEDED: (429, "insufficient_quota", "The {limit} does not allow this call."),
    Reason.RESERVED: (
        429,
        "rate_limit_exceeded",
        "The {limit} is held by calls in flight; try again in a moment.",
    ),
    Reason.PROVIDER_UNAVAILABLE: (
        503,
        "service_unavailable",
        "The provider of this model has no usable credential.",
    ),
    Reason.LEDGER_UNAVAILABLE: (
        503,
        "service_unavailable",
        "Spending cannot be checked at the moment, so nothing was sent.",
    ),
}

_RETRY = {Reason.RESERVED, Reason.LEDGER_UNAVAILABLE}


def problem_of(refusal: Refusal) -> Problem:
    """Return the wire error of a refusal."""
    status, type_, message = _REASONS[refusal.reason]
    shortfall = refusal.shortfall
    if shortfall is not None:
        message = message.format(limit=_limit_in_words(shortfall)) + _numbers(shortfall)
    else:
        message = message.format(detail=refusal.detail)
    return Problem(
        status=status,
        type=type_,
        code=refusal.reason.value,
        message=message,
        param="model" if refusal.detail else None,
        retry=refusal.reason in _RETRY,
        retry_after="1" if refusal.reason is Reason.RESERVED else None,
        scope=None if shortfall is None else _scope(shortfall),
        limit=None if shortfall is None else limit_document(shortfall),
    )


def bad_request(message: str, param: str | None = None, code: str = "invalid_request") -> Problem:
    """Return a 400: the message says what to change."""
    return Problem(400, "invalid_request_error", code, message, param)


def too_large(limit_bytes: int) -> Problem:
    """Return a 413."""
    return Problem(
        413,
        "invalid_request_error",
        "request_too_large",
        f"The request body is larger than {limit_bytes} bytes.",
    )


def not_found(what: str) -> Problem:
    """Return a 404."""
    return Problem(404, "invalid_request_error", "not_found", what)


def upgrade_required(message: str) -> Problem:
    """Return a 426."""
    return Problem(426, "invalid_request_error", "upgrade_required", message)


def method_not_allowed(method: str, path: str, allowed: str) -> Problem:
    """Return a 405."""
    return Problem(
        405,
        "invalid_request_error",
        "method_not_allowed",
        f"{path} takes {allowed}, not {method}.",
    )


def upstream_failed(message: str) -> Problem:
    """Return a 502: the provider failed or could not be reached; nothing is billed."""
    return Problem(502, "upstream_error", "upstream_error", message, retry=True)


def upstream_timeout() -> Problem:
    """Return a 504: the provider did not answer in time; nothing is billed."""
    return Problem(504, "upstream_error", "upstream_timeout", "The provider timed out.", retry=True)


def internal_error() -> Problem:
    """Return the 500 that should never be seen; it says nothing but that."""
    return Problem(500, "server_error", "internal_error", "Something went wrong on our side.")


def control_problem(
    status: int,
    title: str,
    detail: str,
    code: str,
    values: Mapping[str, Value],
    errors: Sequence[Mapping[str, object]] = (),
) -> dict[str, object]:
    """Return an RFC 9457 document; `errors` names fields and what to change in each.

    `detail` is English; `code` and `values` say the same to programs, and in other languages.
    """
    document: dict[str, object] = {
        "type": "about:blank",
        "status": status,
        "title": title,
        "detail": detail,
        "code": code,
        "values": values,
    }
    if errors:
        document["errors"] = list(errors)
    return document


def _scope(shortfall: Shortfall) -> str:
    return "chat_lifetime" if shortfall.owner == "chat" else "account_period"


def _limit_in_words(shortfall: Shortfall) -> str:
    meter = "USD" if shortfall.meter == "usd" else "token"
    window = {"month": "monthly", "day": "daily", "hour": "hourly"}.get(
        shortfall.window, shortfall.window.replace("rolling:", "rolling ")
    )
    return f"{window} {meter} limit of this {shortfall.owner}"


def _numbers(shortfall: Shortfall) -> str:
    def shown(value: int) -> str:
        return f"${nano_to_usd(value)}" if shortfall.meter == "usd" else f"{value} tokens"

    return (
        f" Used {shown(shortfall.used)}, held {shown(shortfall.held)} of "
        f"{shown(shortfall.amount)}; this call may need {shown(shortfall.needed)}."
    )
