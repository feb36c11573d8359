"""Looks: what it says of a provider how it answers when it is asked for its models.

Owns reading such an answer, of whatever kind of provider. Owns no connection and no credential.

Invariants: whatever a stranger answers, something can be said of it; what is shown is short, and
text.
"""

from typing import Any, Final

import msgspec

from app.core.faults import Fault
from app.core.metering import DECODE_ERRORS

SHOWN_MAX: Final = 300
"""Characters of what a provider says."""

_decode = msgspec.json.Decoder().decode


class Look(msgspec.Struct, frozen=True):
    """What came back: a status and a body without secrets, or why nothing did."""

    status: int | None
    body: bytes = b""
    failure: str = ""


class Verdict(msgspec.Struct, frozen=True):
    """What that says."""

    ok: bool
    message: str
    fault: Fault | None = None
    """What is wrong, if something is."""
    models: int | None = None
    """How many models it lists; None: it lists none that can be read."""
    model_listed: bool | None = None
    """Whether the model that was looked for is among them."""


def wrong(fault: Fault) -> Verdict:
    """Say that a provider cannot be used, and why."""
    return Verdict(False, str(fault), fault)


def judge(look: Look, model: str | None = None) -> Verdict:
    """Say what an answer means; `model` is the name that the provider should know."""
    if look.status is None:
        return wrong(Fault("provider_unreachable", "{said}", said=look.failure))
    said = _said(look.body)
    says = f" It says: {said}" if said else ""
    if look.status in (401, 403):
        return wrong(
            Fault(
                "provider_refuses",
                "The provider refuses the credential ({status}).{says}",
                status=look.status,
                said=said,
                says=says,
            )
        )
    if look.status in (404, 405):
        return wrong(
            Fault(
                "provider_lists_nothing",
                "There is no list of models at this address ({status}): look whether base_url is "
                "right. A provider without such a list may work all the same.{says}",
                status=look.status,
                said=said,
                says=says,
            )
        )
    if not 200 <= look.status < 300:
        return wrong(
            Fault(
                "provider_status",
                "The provider answers with status {status}.{says}",
                status=look.status,
                said=said,
                says=says,
            )
        )
    names = _names(look.body)
    if names is None:
        return wrong(
            Fault(
                "provider_unreadable",
                "The provider answers, but not with a list of models: look at base_url.",
            )
        )
    if model is None:
        return Verdict(
            True,
            f"The provider takes the credential and lists {len(names)} models.",
            models=len(names),
        )
    listed = model in names
    what = "lists" if listed else "does not list"
    return Verdict(
        True,
        f"The provider takes the credential, and {what} {model} among {len(names)} models.",
        models=len(names),
        model_listed=listed,
    )


def _names(body: bytes) -> frozenset[str] | None:
    """Return the names in a list of models; None: it is none."""
    document = _document(body)
    if isinstance(document, dict):
        document = document.get("data", document.get("models"))
    if not isinstance(document, list):
        return None
    names = set()
    for one in document:
        if isinstance(one, dict):
            names |= {name for name in (one.get("id"), one.get("name")) if isinstance(name, str)}
    return frozenset(names)


def _said(body: bytes) -> str:
    """Return what a provider says of an error."""
    said: Any = _document(body)
    for field in ("error", "message", "detail"):
        if isinstance(said, dict) and field in said:
            said = said[field]
            if isinstance(said, dict):
                said = said.get("message")
            break
    if not isinstance(said, str):
        said = ""
    return "".join(c if c.isprintable() else " " for c in said).strip()[:SHOWN_MAX]


def _document(body: bytes) -> Any:
    try:
        return _decode(body)
    except DECODE_ERRORS:
        return None
