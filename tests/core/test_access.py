"""Access: who may call what, and which allocation pays.

One small world serves every table; to add a scenario, add a row.
"""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from app.core.access import (
    Allocation,
    Grantee,
    Key,
    Member,
    Provider,
    admit,
    key_refusal,
    open_allocation,
    shared_model,
)
from app.core.pricing import make_price
from app.core.refusals import Reason, Refusal

NOW = datetime(2026, 5, 5, 12, tzinfo=UTC)
TICK = timedelta(microseconds=1)

PRICE = make_price("p", "chat", NOW, [])
OLDER = make_price("o", "chat", NOW - timedelta(days=1), [])
LATER = make_price("l", "chat", NOW + TICK, [])

MEMBERS = {
    "ann": Member("ann"),
    "bob": Member("bob", "disabled"),
}
ALLOCATIONS = {
    "team": Allocation("team", "ann", ("chat", "mini")),
    "voice": Allocation("voice", "ann", ("speech",)),
    "thrifty": Allocation("thrifty", "ann", ("scan",), unpriced="deny"),
    "paused": Allocation("paused", "ann", ("p",), "paused"),
    "quarantined": Allocation("quarantined", "ann", ("q",), "quarantined"),
    "revoked": Allocation("revoked", "ann", ("r",), "revoked"),
    "paused-thrifty": Allocation("paused-thrifty", "ann", ("pt",), "paused", unpriced="deny"),
}
EVERYTHING = tuple(ALLOCATIONS)


@pytest.mark.parametrize(
    ("key", "valid"),
    [
        (None, False),
        (Key("k", "ann", ("team",)), True),
        (Key("k", "ann", ()), True),
        (Key("k", "ann", ("team",), revoked_at=NOW - TICK), False),
        # A revocation needs no clock: it holds as soon as it is known.
        (Key("k", "ann", ("team",), revoked_at=NOW + TICK), False),
        (Key("k", "ann", ("team",), expires_at=NOW + TICK), True),
        (Key("k", "ann", ("team",), expires_at=NOW), False),
        (Key("k", "ann", ("team",), one_shot=True), True),
        (Key("k", "ann", ("team",), one_shot=True, used_at=NOW), False),
        (Key("k", "ann", ("team",), one_shot=False, used_at=NOW), True),
    ],
)
def test_a_key_is_known_unrevoked_unexpired_and_unused(key: Key | None, valid: bool) -> None:
    assert key_refusal(key, NOW) == (None if valid else Refusal(Reason.INVALID_KEY))


@pytest.mark.parametrize(
    ("member", "opens", "model", "prices", "expected"),
    [
        # The model of the request picks the allocation, and the instant its price.
        ("ann", EVERYTHING, "chat", [OLDER, PRICE, LATER], ("team", "p")),
        ("ann", EVERYTHING, "chat", [OLDER, LATER], ("team", "o")),
        ("ann", EVERYTHING, "mini", [], ("team", None)),
        ("ann", EVERYTHING, "chat", [LATER], ("team", None)),
        ("ann", EVERYTHING, "speech", [PRICE], ("voice", "p")),
        # Scope
        ("ann", EVERYTHING, "unknown", [PRICE], Reason.MODEL_MISMATCH),
        ("ann", ("voice",), "chat", [PRICE], Reason.MODEL_MISMATCH),
        ("ann", (), "chat", [PRICE], Reason.MODEL_MISMATCH),
        ("ann", ("gone", "team"), "chat", [PRICE], ("team", "p")),
        ("ann", ("gone",), "chat", [PRICE], Reason.MODEL_MISMATCH),
        # An allocation that allows no unpriced calls
        ("ann", EVERYTHING, "scan", [PRICE], ("thrifty", "p")),
        ("ann", EVERYTHING, "scan", [LATER], Reason.MODEL_UNPRICED),
        ("ann", EVERYTHING, "scan", [], Reason.MODEL_UNPRICED),
        # Status
        ("bob", EVERYTHING, "chat", [PRICE], Reason.MEMBER_DISABLED),
        ("nobody", EVERYTHING, "chat", [PRICE], Reason.MEMBER_DISABLED),
        ("ann", EVERYTHING, "p", [PRICE], Reason.ALLOCATION_PAUSED),
        ("ann", EVERYTHING, "q", [PRICE], Reason.ALLOCATION_QUARANTINED),
        ("ann", EVERYTHING, "r", [PRICE], Reason.ALLOCATION_REVOKED),
        # The first reason in order of precedence
        ("bob", EVERYTHING, "unknown", [PRICE], Reason.MODEL_MISMATCH),
        ("bob", EVERYTHING, "p", [PRICE], Reason.MEMBER_DISABLED),
        ("ann", EVERYTHING, "pt", [], Reason.MODEL_UNPRICED),
        ("ann", EVERYTHING, "pt", [PRICE], Reason.ALLOCATION_PAUSED),
    ],
)
def test_a_call_is_admitted_to_one_allocation_at_one_price(
    member: str,
    opens: tuple[str, ...],
    model: str,
    prices: list,
    expected: tuple[str, str | None] | Reason,
) -> None:
    key = Key("k", member, opens)
    decided = admit(key, model, MEMBERS, ALLOCATIONS, prices, NOW)
    if isinstance(expected, Reason):
        assert isinstance(decided, Refusal)
        assert decided.reason is expected
        named = expected in (Reason.MODEL_MISMATCH, Reason.MODEL_UNPRICED)
        assert decided.detail == (model if named else "")
    else:
        assert isinstance(decided, Grantee)
        price = decided.price
        assert (decided.allocation.id, price and price.id) == expected
        assert decided.key is key


def test_an_allocation_is_found_whatever_its_status() -> None:
    found = open_allocation(Key("k", "ann", EVERYTHING), "r", ALLOCATIONS)
    assert found is ALLOCATIONS["revoked"]


@pytest.mark.parametrize(
    ("scopes", "shared"),
    [
        ([], None),
        ([("a", "b")], None),
        ([("a", "b"), ("c",), ()], None),
        ([("a", "b"), ("c", "b")], "b"),
        ([("a",), ("b",), ("a",)], "a"),
    ],
)
def test_allocations_that_share_a_model_fit_no_one_key(
    scopes: list[tuple[str, ...]], shared: str | None
) -> None:
    allocations = [Allocation(str(n), "ann", models) for n, models in enumerate(scopes)]
    assert shared_model(allocations) == shared


def test_a_providers_credential_is_in_no_representation_of_it() -> None:
    provider = Provider("id", "openai", "openai", "https://secret.example", "sk-secret")
    assert repr(provider) == "Provider(id='id', name='openai', kind='openai')"
    assert "secret" not in f"{provider} {[provider]!r} {msgspec.structs.replace(provider)!r}"
