"""Live: who hears of what has changed, and what a listener that is busy has yet to hear.

Owns both. Owns no connection, no clock and no figure: what is told are kinds and ids, and whoever
hears of something asks for it again.

Invariants: a member hears of what is theirs and of nothing else; what waits to be heard has a bound
however much happens; news that come twice before they are heard are heard once.
"""

from typing import Final, Literal

from app.core.access import Role

Kind = Literal["allocation", "session", "request", "key", "overview"]

WAITING_MAX: Final = 500
"""Things of one kind of which each is told; of more, only that there are many."""

News = tuple[Kind, str | None]
"""What has changed; None: any of that kind may have."""


def hears_all(role: Role) -> bool:
    """Tell whether someone of a role hears of everything, and not just of what is theirs."""
    return role != "member"


class Waiting:
    """What a listener has yet to hear."""

    def __init__(self) -> None:
        self._ids: dict[Kind, dict[str, None] | None] = {}

    def __bool__(self) -> bool:
        return bool(self._ids)

    def add(self, kind: Kind, id: str | None) -> None:
        """Note that something has changed."""
        known = self._ids.setdefault(kind, {})
        if id is None or (known is not None and len(known) >= WAITING_MAX and id not in known):
            self._ids[kind] = None
        elif known is not None:
            known[id] = None

    def take(self) -> list[News]:
        """Return what has changed, in the order in which it did; then nothing waits."""
        taken, self._ids = self._ids, {}
        news: list[News] = []
        for kind, ids in taken.items():
            news.extend([(kind, id) for id in ids] if ids else [(kind, None)])
        return news
