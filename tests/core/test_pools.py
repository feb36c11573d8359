"""Pools: none lies inside itself or too deep, and the limit with the least left binds.

To add a nesting, add a row to `NESTINGS`: the pools as `pool<parent`, the one that moves, where to,
and what is said of it (nothing: it may). To add a choice, add one to `CHOICES`: the limits of each
owner, the allocation's first, as `meter window amount used held`, and which of them binds.
"""

from datetime import UTC, datetime

import pytest

from app.core.ledger import Meter, OwnerKind
from app.core.pools import (
    NESTING_MAX,
    Bound,
    InvalidNesting,
    binding,
    check_nesting,
    pools_above,
)

CHAIN = "b<a c<b d<c e<d f<e g<f h<g"
"""Eight pools inside one another, `a` above all."""

NESTINGS: list[tuple[str, str, str | None, str]] = [
    ("", "new", None, ""),
    ("a", "new", "a", ""),
    ("a b", "a", "b", ""),
    ("b<a", "b", None, ""),
    # A pool inside itself, at any distance.
    ("a", "a", "a", "itself"),
    ("b<a", "a", "b", "inside it"),
    ("b<a c<b", "a", "c", "inside it"),
    (CHAIN, "a", "h", "inside it"),
    ("b<a c<b", "c", "a", ""),
    # Eight are the most, whether one is added or many are moved.
    (CHAIN, "new", "g", ""),
    (CHAIN, "new", "h", "9 pools"),
    (CHAIN + " z", "a", "z", "9 pools"),
    (CHAIN + " z", "b", "z", ""),
    (CHAIN + " y<x z<y", "e", "z", ""),
    (CHAIN + " y<x z<y", "c", "z", "9 pools"),
    (CHAIN + " y<x z<y", "x", "e", ""),
    (CHAIN + " y<x z<y", "x", "f", "9 pools"),
    # Brothers do not add up.
    ("b<a c<a d<a e<a f<a g<a h<a i<a", "new", "i", ""),
]


def tree(written: str) -> dict[str, str | None]:
    parents: dict[str, str | None] = {}
    for pool, _, parent in (one.partition("<") for one in written.split()):
        if parent:
            parents.setdefault(parent, None)
        parents[pool] = parent or None
    return parents


@pytest.mark.parametrize(("pools", "pool", "parent", "said"), NESTINGS)
def test_a_pool_goes_anywhere_but_inside_itself_or_too_deep(
    pools: str, pool: str, parent: str | None, said: str
) -> None:
    if not said:
        check_nesting(pool, parent, tree(pools))
        return
    with pytest.raises(InvalidNesting, match=said):
        check_nesting(pool, parent, tree(pools))


def test_the_pools_above_come_from_the_nearest_up() -> None:
    assert pools_above(None, tree(CHAIN)) == []
    assert pools_above("c", tree(CHAIN)) == ["c", "b", "a"]
    assert len(pools_above("h", tree(CHAIN))) == NESTING_MAX


def test_books_with_a_circle_in_them_still_end() -> None:
    assert len(pools_above("a", {"a": "b", "b": "a"})) == NESTING_MAX


CHOICES: dict[str, tuple[list[list[str]], str | None]] = {
    "nothing limits": ([], None),
    "nothing limits, though there are owners": ([[], []], None),
    "the only one": ([["tokens month 10 0 0"]], "tokens month 10 0 0"),
    "the least left in share of its amount, not in size": (
        [["tokens month 1000 500 0"], ["tokens month 100 40 0"]],
        "tokens month 1000 500 0",
    ),
    "meters are compared by their shares": (
        [["tokens month 100 50 0", "usd month 5000000000 2600000000 0"]],
        "usd month 5000000000 2600000000 0",
    ),
    "what is held is not left": (
        [["tokens month 100 50 0"], ["tokens month 100 40 11"]],
        "tokens month 100 40 11",
    ),
    "a limit of 0 has nothing left": (
        [["tokens month 100 99 0"], ["usd day 0 0 0"]],
        "usd day 0 0 0",
    ),
    "of equals, tokens before USD": (
        [["usd month 100 50 0", "tokens month 10 5 0"]],
        "tokens month 10 5 0",
    ),
    "of equals, the allocation before its pool": (
        [["usd month 100 50 0"], ["tokens month 10 5 0"]],
        "usd month 100 50 0",
    ),
    "of equals, the nearest pool up": (
        [[], ["usd month 100 50 0"], ["tokens month 10 5 0"]],
        "usd month 100 50 0",
    ),
    "of equals in one pool, the shortest window": (
        [[], ["tokens lifetime 10 5 0", "tokens month 10 5 0", "usd hour 10 5 0"]],
        "usd hour 10 5 0",
    ),
    "over is over: by how much says nothing": (
        [["tokens month 10 11 0"], ["tokens month 10 99 0"]],
        "tokens month 10 11 0",
    ),
    "exact beyond what a float can tell": (
        [["tokens month 1000000000000000000 1 0"], ["tokens month 1000000000000000000 2 0"]],
        "tokens month 1000000000000000000 2 0",
    ),
}


def bound(owner: OwnerKind, written: str) -> Bound:
    meter, window, *numbers = written.split()
    amount, used, held = map(int, numbers)
    kind: Meter = "tokens" if meter == "tokens" else "usd"
    resets_at = datetime(2026, 2, 1, tzinfo=UTC)
    return Bound(owner, "id", "name", kind, window, amount, used, held, resets_at)


@pytest.mark.parametrize("name", CHOICES)
def test_the_limit_with_the_least_left_binds(name: str) -> None:
    owners, expected = CHOICES[name]
    path = [
        [bound("allocation" if n == 0 else "pool", one) for one in limits]
        for n, limits in enumerate(owners)
    ]
    chosen = binding(path)
    if expected is None:
        assert chosen is None
        return
    assert chosen in [one for limits in path for one in limits]
    kind = "allocation" if expected in owners[0] else "pool"
    assert chosen == bound(kind, expected)


@pytest.mark.parametrize(
    ("written", "remaining"),
    [("tokens month 10 4 3", 3), ("tokens month 10 9 9", 0), ("tokens month 0 0 0", 0)],
)
def test_what_remains_is_never_less_than_nothing(written: str, remaining: int) -> None:
    assert bound("pool", written).remaining == remaining
