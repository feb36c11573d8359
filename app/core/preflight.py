"""Preflight: from the facts of a request to what is asked of the ledger, and back.

Owns the step between a ceiling and a demand: what the call can cost at its price, which accounts
it is charged to, what a grant means for the request that goes upstream. Owns neither the limits
(`ledger`) nor who may call (`access`).

Invariants: the demand of a ceiling, at any grant, costs at least what any usage within it does;
a call is unpriced at admission only if no usage within its ceiling has a rate for every unit.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from fractions import Fraction

from app.core.access import Key, OverrunPolicy
from app.core.ceilings import Ceiling
from app.core.ledger import AccountKey, Demand, OpenDemand, OwnerKind, account_key
from app.core.metering import TOKEN_UNITS, Usage, tokens_of
from app.core.pricing import Price
from app.core.windows import EPOCH, LIFETIME, Calendar, Period, Window

BOOK_WINDOW: Window = "month"
"""The window whose accounts every allocation and pool has, limited or not: what the cards show."""

ALWAYS: dict[OwnerKind, Window] = {
    "chat": LIFETIME,
    "allocation": BOOK_WINDOW,
    "pool": BOOK_WINDOW,
}
"""The window in which calls are charged to an owner whether it is limited or not."""

PATHS_KNOWN = 100_000


PLAIN = {
    "input_audio_token": "input_token",
    "input_image_token": "input_token",
    "output_audio_token": "output_token",
}
"""What a provider that tells no kinds of tokens apart reports a part as."""


def _forms(bundle: Usage) -> tuple[Usage, ...]:
    """Return a bundle, and what is reported of the same use by a provider that is less exact."""
    if PLAIN.keys().isdisjoint(bundle):
        return (bundle,)
    plain: Usage = {}
    for unit, quantity in bundle.items():
        name = PLAIN.get(unit, unit)
        plain[name] = plain.get(name, 0) + quantity
    return bundle, plain


def demand_for(
    ceiling: Ceiling, price: Price | None, path: tuple[AccountKey, ...], policy: OverrunPolicy
) -> Demand:
    """Turn the most a call can use into the most it can take from each account."""
    open_ = ceiling.open
    tokens = 0
    cost: int | Fraction | None = None
    for bundle in ceiling.bundles:
        for form in _forms(bundle):
            exact = None if price is None else price.ceiling_exact(form)
            if exact is not None:
                tokens = max(tokens, tokens_of(form))
                cost = exact if cost is None else max(cost, exact)
    if cost is None:
        tokens = max(tokens_of(bundle) for bundle in ceiling.bundles)
    open_counts = open_ is not None and open_.unit in TOKEN_UNITS
    each = 0
    if price is not None and open_ is not None:
        rates = [price.worst.get(open_.unit), price.worst.get(PLAIN.get(open_.unit, ""))]
        known = [rate for rate in rates if rate is not None]
        if known:
            each = max(known)
        else:
            cost = None
    return Demand(
        accounts=path,
        tokens=tokens,
        counts_tokens=open_counts or tokens > 0,
        cost=cost,
        denominator=1 if price is None else price.denominator,
        open=None
        if open_ is None
        else OpenDemand(open_.most, open_.all_below, open_.times, int(open_counts), each),
        policy=policy,
    )


def another_slice(demand: Demand, needed: int) -> Demand:
    """Ask for more of a demand's open quantity: `needed` of it at the least, a slice ahead."""
    opened = demand.open
    assert opened is not None
    return Demand(
        accounts=demand.accounts,
        tokens=opened.tokens_each * needed,
        counts_tokens=demand.counts_tokens,
        cost=None if demand.cost is None else opened.cost_each * needed,
        denominator=demand.denominator,
        open=OpenDemand(opened.most, opened.all_below, 1, opened.tokens_each, opened.cost_each),
    )


def stays(key: Key, prices: Iterable[Price], path: Iterable[AccountKey], at: datetime) -> Period:
    """Return how long around an instant calls find the key open, the same price, the same path."""
    begins = [EPOCH, *(account.start for account in path)]
    ends = [account.end for account in path]
    ends.append(key.expires_at)
    for price in prices:
        (begins if price.effective_from <= at else ends).append(price.effective_from)
    return Period(max(begins), min((end for end in ends if end is not None), default=None))


class Paths:
    """Which accounts a call is charged to, remembered while their period lasts."""

    def __init__(self, calendar: Calendar) -> None:
        self.calendar = calendar
        self._known: dict[tuple[str, Window, str | None], AccountKey] = {}

    def account(
        self,
        owner: OwnerKind,
        owner_id: str,
        at: datetime,
        window: Window = BOOK_WINDOW,
        zone: str | None = None,
    ) -> AccountKey:
        """Return the account of an owner at an instant, by the calendar of a zone."""
        known = self._known.get((owner_id, window, zone))
        if known is not None and known.start <= at and (known.end is None or at < known.end):
            return known
        key = account_key(owner, owner_id, window, self.calendar.of(zone).period(window, at))
        # Chats come and go: what was known of them is not worth keeping.
        if len(self._known) >= PATHS_KNOWN:
            self._known.clear()
        self._known[owner_id, window, zone] = key
        return key

    def of(
        self,
        owners: Iterable[tuple[OwnerKind, str]],
        at: datetime,
        limited: Mapping[str, Sequence[Window]] = {},
        zone: str | None = None,
    ) -> tuple[AccountKey, ...]:
        """Return the accounts of a path of owners, in its order.

        Some always have an account: allocations and pools that of their month, chats that of all
        time. Beside it, an owner has those of the windows in which it is `limited`. `zone` is the
        allocation's own, if it has one.
        """
        path: list[AccountKey] = []
        for owner, owner_id in owners:
            windows = limited.get(owner_id, ())
            always = ALWAYS.get(owner)
            theirs = zone if owner == "allocation" else None
            if always is not None and always not in windows:
                path.append(self.account(owner, owner_id, at, always, theirs))
            path.extend([self.account(owner, owner_id, at, window, theirs) for window in windows])
        return tuple(path)


def dearest(bundles: Sequence[Usage], price: Price | None) -> Usage:
    """Return what a usage that was never reported is billed at: the dearest that has a price."""
    best: Usage | None = None
    most: int | Fraction = -1
    if price is not None:
        for bundle in bundles:
            for form in _forms(bundle):
                exact = price.cost_exact(form)
                if exact is not None and exact > most:
                    best, most = form, exact
    return bundles[0] if best is None else best
