"""Own keys: what members may change of the limits that their own keys have.

Owns the comparison of what a key may with what it is to be allowed. Owns no key and no amount.

Invariant: whatever is let through allows the key no call that it was not allowed before.
"""

from collections.abc import Hashable, Mapping
from datetime import datetime
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)


def loosened(former: Mapping[Name, int], wanted: Mapping[Name, int | None]) -> Name | None:
    """Return the first limit that would be raised or lifted (None); a new one only tightens."""
    for name, amount in wanted.items():
        was = former.get(name)
        if was is not None and (amount is None or amount > was):
            return name
    return None


def outlives(former: datetime | None, wanted: datetime | None) -> bool:
    """Tell whether a key would expire later than before; None: it never expires."""
    return former is not None and (wanted is None or wanted > former)
