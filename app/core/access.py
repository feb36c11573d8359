"""Access: who may call what, and which allocation pays.

Owns the facts of members, allocations, keys, models and providers that admission needs, and the
decisions key -> scope -> status. Owns no limit (see `ledger`), no secret and no storage.

Invariants: every call is charged to exactly one allocation; no two allocations of one key share a
model, so the model of a request picks it; the first refusal in the order of `Reason` is reported.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Literal

import msgspec

from app.core.pricing import Price, price_at
from app.core.refusals import Reason, Refusal

AllocationStatus = Literal["active", "paused", "quarantined", "revoked"]
MemberStatus = Literal["active", "disabled"]
Role = Literal["admin", "auditor", "member"]
ProviderKind = Literal["openai", "azure", "mistral", "anthropic", "cohere", "compatible"]
OverrunPolicy = Literal["strict", "last_call"]
OutagePolicy = Literal["deny", "allow"]
UnpricedPolicy = Literal["allow", "deny"]


class Member(msgspec.Struct, frozen=True):
    """A person; only the status matters for a call."""

    id: str
    status: MemberStatus = "active"


class Allocation(msgspec.Struct, frozen=True):
    """What a member may use. Its caps are limits in the ledger, not fields here."""

    id: str
    member_id: str
    models: tuple[str, ...]
    status: AllocationStatus = "active"
    pool_id: str | None = None
    overrun_policy: OverrunPolicy = "strict"
    ledger_outage: OutagePolicy = "deny"
    unpriced: UnpricedPolicy = "allow"
    billing_timezone: str | None = None
    """Whose months its caps count; None: those of the installation."""


class Key(msgspec.Struct, frozen=True):
    """A bearer secret of a member; the secret itself is known only as a digest, elsewhere."""

    id: str
    member_id: str
    allocation_ids: tuple[str, ...]
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    one_shot: bool = False
    used_at: datetime | None = None


class Model(msgspec.Struct, frozen=True):
    """A model by the name that clients use, and what is known of its size."""

    slug: str
    provider_id: str
    upstream_model: str
    endpoints: tuple[str, ...] | None = None
    context_window: int | None = None
    max_output_tokens: int | None = None
    bytes_per_token: int = 2
    image_tokens_max: int = 3000
    created: int = 0
    """Seconds since 1970, for `GET /v1/models`."""


class Provider(msgspec.Struct, frozen=True):
    """An upstream account; `credential` is the decrypted secret and goes nowhere but upstream."""

    id: str
    name: str
    kind: ProviderKind
    base_url: str
    credential: str | None

    def __repr__(self) -> str:
        """Leave the credential out: representations end up in logs."""
        return f"Provider(id={self.id!r}, name={self.name!r}, kind={self.kind!r})"


class Grantee(msgspec.Struct, frozen=True):
    """A call that may go on to the ledger: who pays for it and at which price."""

    key: Key
    allocation: Allocation
    price: Price | None


_STATUS_REASON: dict[AllocationStatus, Reason] = {
    "paused": Reason.ALLOCATION_PAUSED,
    "quarantined": Reason.ALLOCATION_QUARANTINED,
    "revoked": Reason.ALLOCATION_REVOKED,
}


def key_refusal(key: Key | None, at: datetime) -> Refusal | None:
    """Refuse a key that is unknown, revoked, expired, or one-shot and used."""
    if (
        key is None
        or key.revoked_at is not None
        or (key.expires_at is not None and key.expires_at <= at)
        or (key.one_shot and key.used_at is not None)
    ):
        return Refusal(Reason.INVALID_KEY)
    return None


def member_refusal(key: Key, members: Mapping[str, Member]) -> Refusal | None:
    """Refuse the key of a member who is not active, whatever it is for."""
    member = members.get(key.member_id)
    if member is None or member.status != "active":
        return Refusal(Reason.MEMBER_DISABLED)
    return None


def open_allocation(
    key: Key, model: str, allocations: Mapping[str, Allocation]
) -> Allocation | None:
    """Return the allocation of the key that opens a model, whatever its status."""
    for allocation_id in key.allocation_ids:
        allocation = allocations.get(allocation_id)
        if allocation is not None and model in allocation.models:
            return allocation
    return None


def admit(
    key: Key,
    model: str,
    members: Mapping[str, Member],
    allocations: Mapping[str, Allocation],
    prices: Sequence[Price],
    at: datetime,
) -> Grantee | Refusal:
    """Decide scope, then status; `key` has passed `key_refusal`. The ledger comes after."""
    allocation = open_allocation(key, model, allocations)
    if allocation is None:
        return Refusal(Reason.MODEL_MISMATCH, detail=model)
    price = price_at(prices, at)
    if price is None and allocation.unpriced == "deny":
        return Refusal(Reason.MODEL_UNPRICED, detail=model)
    refusal = member_refusal(key, members)
    if refusal is not None:
        return refusal
    if allocation.status != "active":
        return Refusal(_STATUS_REASON[allocation.status])
    return Grantee(key, allocation, price)


def shared_model(allocations: Iterable[Allocation]) -> str | None:
    """Return a model that two of the allocations open: such allocations fit no one key."""
    seen: set[str] = set()
    for allocation in allocations:
        for model in allocation.models:
            if model in seen:
                return model
            seen.add(model)
    return None
