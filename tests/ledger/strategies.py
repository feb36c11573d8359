"""What the machine draws: small numbers, so that limits are met often."""

from datetime import UTC, datetime
from fractions import Fraction
from uuid import UUID
from zoneinfo import ZoneInfo

import hypothesis.strategies as st
import msgspec

from app.core.ledger import AccountKey, Actual, Demand, Meter, OpenDemand, OwnerKind, account_key
from app.core.refusals import Outcome
from app.core.windows import Calendar, Window

Owner = tuple[OwnerKind, str, Window]

CALENDAR = Calendar(ZoneInfo("UTC"))
START = datetime(2026, 1, 30, 23, 50, tzinfo=UTC)
"""When the machine's clock begins: before it has gone far, a day and a month end."""


def _owner(owner: OwnerKind, number: int, window: Window) -> Owner:
    return owner, str(UUID(int=number << 64 | 4 << 76 | 2 << 62)), window


TEAM = _owner("allocation", 1, "month")
SOLO = _owner("allocation", 2, "month")
POOL = _owner("pool", 3, "month")
ABOVE = _owner("pool", 4, "month")
BUDGET = _owner("key", 5, "lifetime")
DAILY = _owner("key", 5, "day")
CHAT = _owner("chat", 6, "lifetime")
ROLLING = _owner("key", 7, "rolling:2h")
"""A key of its own: whatever a key with a rolling window calls is in that window."""
PLAIN_KEY = _owner("key", 8, "lifetime")[1]
"""A key without any limit, and so without accounts."""

OWNERS: list[Owner] = [TEAM, SOLO, POOL, ABOVE, BUDGET, DAILY, CHAT, ROLLING]

PATHS: list[tuple[Owner, ...]] = [
    (TEAM,),
    (SOLO,),
    (TEAM, POOL),
    (SOLO, POOL, ABOVE),
    (BUDGET, DAILY, TEAM, POOL, ABOVE),
    (CHAT, BUDGET, DAILY, TEAM),
    (ROLLING, TEAM),
    (CHAT, ROLLING, SOLO, POOL),
]
"""In precedence order, as admission puts them together: with all windows of an owner."""

TOKENS_MAX = 5_000
NANO_MAX = 5_000


def keys_of(owners: tuple[Owner, ...], calendar: Calendar, at: datetime) -> tuple[AccountKey, ...]:
    """The accounts of a path at an instant."""
    return tuple(account_key(*owner, calendar.period(owner[2], at)) for owner in owners)


def call_id(at: datetime, number: int) -> str:
    """A UUIDv7 that is the same each time an example is run."""
    return str(UUID(int=int(at.timestamp() * 1000) << 80 | 7 << 76 | 2 << 62 | number))


owners = st.sampled_from(OWNERS)
meters: st.SearchStrategy[Meter] = st.sampled_from(["tokens", "usd"])

amounts = st.none() | st.just(0) | st.integers(0, 100) | st.integers(1, 4 * TOKENS_MAX)
"""Of a limit, in either meter; None takes it away."""

_opens = st.builds(
    OpenDemand,
    most=st.integers(1, TOKENS_MAX),
    all_below=st.sampled_from([1, 8, 1024]),
    times=st.integers(1, 2),
    tokens_each=st.sampled_from([1, 1, 0]),
    cost_each=st.integers(0, 3),
)


@st.composite
def demands(draw: st.DrawFn, path: tuple[AccountKey, ...]) -> Demand:
    """What a call may ask for: with tokens or without, priced or not, open or not."""
    open_ = draw(st.none() | _opens)
    tokens = draw(st.just(0) | st.integers(0, TOKENS_MAX))
    counts = tokens > 0 or (open_ is not None and open_.tokens_each > 0)
    whole = st.just(0) | st.integers(0, NANO_MAX)
    cost = draw(st.none() | whole | whole.map(lambda n: Fraction(n, 3)))
    policy = draw(st.sampled_from(["strict", "strict", "last_call"]))
    return Demand(path, tokens, counts, cost, draw(st.sampled_from([1, 1, 7])), open_, policy)


@st.composite
def extensions(draw: st.DrawFn, path: tuple[AccountKey, ...], tokens: int) -> Demand:
    """What a call in flight that holds so many tokens may ask for beyond them.

    Also nothing at all; and a cost where it had none so far, or none where it had one.
    """
    demand = draw(demands(path) | st.just(Demand(path, 0, False, 0, 1, None)))
    return msgspec.structs.replace(demand, counts_tokens=demand.counts_tokens or tokens > 0)


@st.composite
def actuals(draw: st.DrawFn, tokens: int, nano: int | None) -> Actual:
    """What a call that held so much may turn out to have used: less, exactly that, or more."""
    used = draw(st.integers(0, tokens) | st.just(tokens) | st.integers(0, 2 * TOKENS_MAX))
    cost = draw(
        st.integers(0, nano or 0) | st.just(nano) | st.integers(0, 2 * NANO_MAX) | st.none()
    )
    return Actual({"output_token": used} if used else {}, used, cost)


endpoints = st.sampled_from(["chat/completions", "realtime"])
delivered: st.SearchStrategy[Outcome] = st.sampled_from(
    ["success", "client_disconnected", "cut_off"]
)
again: st.SearchStrategy[Outcome] = st.sampled_from(["success", "cut_off", "recovered"])
"""How a call that is booked may be said to have ended: `recovered` is a replayed intent."""

batches = st.lists(st.sampled_from(["settle", "void", "again", "recover", "extend", "reserve", "reserve"]), min_size=2, max_size=8)  # fmt: skip
