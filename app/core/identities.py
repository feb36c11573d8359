"""Identities: whom an identity provider vouches for, and which member that is.

Owns what the claims of an ID token must say, which address counts, who is let in, linked or
registered, and where one may be led afterwards. Owns no signature (see `app.identity_provider`), no
row and no clock.

Invariants:

- Nobody enters as a member whom the provider does not name, by a subject that was linked before, or
  by an address that the provider says it has verified.
- A member has at most one subject of a provider: another one with the same address is not theirs.
- A member who is disabled is neither let in nor linked.
- Addresses are compared as ASCII: two that only look alike are never one.
- One is led only to pages of ours.
"""

import re
from datetime import datetime, timedelta
from typing import Any, Final, Literal, TypeAlias

import msgspec

from app.core.access import MemberStatus

SIGN_IN_LIFE: Final = timedelta(minutes=10)
"""How long one may take at the provider."""

LEEWAY: Final = timedelta(minutes=1)
"""By how much its clock may differ from ours."""

PAGE_LENGTH_MAX: Final = 1000

SignInRefusal: TypeAlias = Literal[
    "again",
    "declined",
    "disabled",
    "expired",
    "taken",
    "unknown",
    "unlinked",
    "unproven",
    "unreachable",
    "unverified",
]
"""Why somebody who comes from their provider is not let in: each has words on the sign-in page."""

_ADDRESS: Final = re.compile(r"[!-?A-~]{1,64}@[A-Za-z0-9.-]{1,189}")
_PAGE: Final = re.compile(r"/(?!/|(api|v1)\b)[!-~]*")


class Claims(msgspec.Struct, frozen=True):
    """What an ID token says."""

    iss: str
    sub: str
    aud: str | list[str]
    exp: float
    iat: float
    nonce: str
    azp: str | None = None
    nbf: float | None = None


class Person(msgspec.Struct, frozen=True):
    """Whom a provider vouches for."""

    issuer: str
    subject: str
    email: str | None
    """An address that the provider says it has verified."""
    name: str


class Known(msgspec.Struct, frozen=True):
    """A member who may be the one: by their subject, or by their address."""

    id: str
    status: MemberStatus
    has_identity: bool
    """Whether some subject of this provider is theirs."""


class Enter(msgspec.Struct, frozen=True):
    """They are this member."""

    member_id: str


class Link(msgspec.Struct, frozen=True):
    """They are this member from now on."""

    member_id: str


class Register(msgspec.Struct, frozen=True):
    """They become a member."""

    email: str


class Refuse(msgspec.Struct, frozen=True):
    """They are not let in."""

    why: SignInRefusal


Decision: TypeAlias = Enter | Link | Register | Refuse


def untrue(
    claims: dict[str, Any], *, issuer: str, client_id: str, nonce: str, at: datetime
) -> str | None:
    """Return what is wrong with the claims of a token whose signature is right; None: nothing."""
    try:
        said = msgspec.convert(claims, Claims)
    except msgspec.ValidationError:
        return "a claim is missing, or is not what it should be"
    now, leeway = at.timestamp(), LEEWAY.total_seconds()
    audience = [said.aud] if isinstance(said.aud, str) else said.aud
    wrong = (
        ("it is another issuer's", said.iss != issuer),
        ("it names nobody", not 1 <= len(said.sub) <= 255 or not said.sub.isprintable()),
        ("it is for somebody else", client_id not in audience),
        ("it was given to somebody else", said.azp not in (None, client_id)),
        # Then only the one it was given to may use it.
        ("it does not say whom it was given to", len(audience) > 1 and said.azp is None),
        ("it is not of this sign-in", said.nonce != nonce),
        ("it has expired", not now - leeway < said.exp),
        ("it is from the future", not said.iat < now + leeway),
        ("it does not hold yet", said.nbf is not None and not said.nbf < now + leeway),
    )
    return next((what for what, is_so in wrong if is_so), None)


def person(issuer: str, claims: dict[str, Any]) -> Person:
    """Read from claims that are true whom they are about."""
    email, verified = claims.get("email"), claims.get("email_verified")
    proven = (
        isinstance(email, str)
        # Some providers write it as text.
        and (verified is True or verified == "true")
        and _ADDRESS.fullmatch(email) is not None
    )
    name = claims.get("name")
    shown = "".join(c for c in name if c.isprintable()) if isinstance(name, str) else ""
    return Person(issuer, claims["sub"], email if proven else None, shown.strip()[:200].strip())


def decide(
    one: Person,
    *,
    holder: Known | None,
    namesake: Known | None,
    domains: tuple[str, ...],
    links: bool,
) -> Decision:
    """Decide who somebody is: `holder` has their subject, `namesake` their address."""
    if holder is not None:
        return Enter(holder.id) if holder.status == "active" else Refuse("disabled")
    if one.email is None:
        return Refuse("unverified")
    if namesake is None:
        ours = one.email.rpartition("@")[2].lower() in domains
        return Register(one.email) if ours else Refuse("unknown")
    if namesake.status != "active":
        return Refuse("disabled")
    if namesake.has_identity:
        return Refuse("taken")
    return Link(namesake.id) if links else Refuse("unlinked")


def own_page(wanted: str | None) -> str:
    """Return the page of ours that an address names; what is none is the first one."""
    # A browser reads `//host`, `/\\host` and control characters in between as another site's.
    if wanted is None or len(wanted) > PAGE_LENGTH_MAX or not _PAGE.fullmatch(wanted):
        return "/"
    return "/" if "\\" in wanted or "#" in wanted else wanted
