"""Own keys: what members do with the keys that are theirs.

Owns the bodies they send, and which change of a key is not theirs to make. Owns no SQL, and no way
of its own to store a key: it is the admins' (see `admin`), narrowed.

Invariants: another member's key is not there; whatever members change of their keys, the keys may
no more than before, and limits that they do not name stay.
"""

from datetime import datetime

from litestar import Router, delete, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from msgspec import UNSET, UnsetType

from app.control import wire
from app.control.admin import (
    KeyWithSecret,
    OwnKeyInput,
    end_key,
    give_secret,
    key_to_change,
    key_view,
    make_key,
    store_key,
)
from app.control.desk import Change, Desk
from app.control.errors import Refused, documented, invalid
from app.control.limits import (
    BUDGET,
    LIMITS_MAX,
    LimitInput,
    LimitName,
    read_budget,
    read_limits,
    shown,
)
from app.control.wire import Input
from app.core.faults import Fault
from app.core.own_keys import loosened, outlives
from app.store.catalogue import KeyRecord
from app.store.usage import KeyView, discreet


class OwnKeyPatch(Input):
    """What to change of one's own key: to less, never to more. Limits not named stay."""

    name: str | UnsetType = UNSET
    expires_at: datetime | UnsetType | None = UNSET
    token_budget: int | UnsetType | None = UNSET
    limits: list[LimitInput] | UnsetType = UNSET


@post("/keys", summary="Add a key of one's own; the answer alone shows its secret")
async def add_own_key(data: JSONBody[OwnKeyInput], desk: NamedDependency[Desk]) -> KeyWithSecret:
    """It opens allocations of one's own, of which no two may share a model."""
    return discreet(await make_key(desk, desk.member_id, data))


@patch("/keys/{id:str}", summary="Rename one's own key, or tighten its limits")
async def tighten_own_key(
    id: FromPath[str], data: JSONBody[OwnKeyPatch], desk: NamedDependency[Desk]
) -> KeyView:
    """A limit can be added or lowered; to raise or to lift one, ask an administrator."""
    key_id = wire.path_id(id, "key")
    values: dict[str, object] = {}
    if data.name is not UNSET:
        values["name"] = wire.text("name", data.name)
    expires_at = data.expires_at
    if isinstance(expires_at, datetime):
        expires_at = wire.instant("expires_at", expires_at)
    wanted: dict[LimitName, int | None] = {}
    if data.limits is not UNSET:
        wanted |= read_limits(data.limits, "key")
    if data.token_budget is not UNSET:
        budget = read_budget(data.token_budget, wanted)
        if wanted.get(BUDGET) is None:
            wanted[BUDGET] = budget

    async def work(change: Change) -> KeyRecord:
        key = await key_to_change(change, key_id, desk.member_id)
        if expires_at is not UNSET:
            if outlives(key.expires_at, expires_at):
                raise Refused(
                    403,
                    Fault("only_earlier", "may only become earlier; ask an admin"),
                    field="expires_at",
                )
            values["expires_at"] = expires_at
        former = {(limit.meter, limit.window): limit.amount for limit in key.limits}
        looser = loosened(former, wanted)
        if looser is not None:
            raise _looser(looser, former[looser])
        if len(former | wanted) > LIMITS_MAX:
            raise invalid("limits", "limits_at_most", "would be more than {most}", most=LIMITS_MAX)
        return await store_key(change, key, values, wanted)

    return discreet(await key_view(desk, await desk.write(work)))


def _looser(limit: LimitName, amount: int) -> Refused:
    meter, window = limit
    field = "token_budget" if limit == BUDGET else "limits"
    fault = Fault(
        "only_lower",
        "The limit of {amount} {meter} per {window} may be lowered, but neither "
        "raised nor lifted; ask an admin.",
        amount=str(shown(meter, amount)),
        meter=meter,
        window=window,
    )
    return Refused(403, fault, field=field, detail=str(fault))


@post(
    "/keys/{id:str}/rotate", status_code=200, summary="Give one's own key a new secret, shown once"
)
async def rotate_own_key(id: FromPath[str], desk: NamedDependency[Desk]) -> KeyWithSecret:
    """The old secret stops working at once."""
    return discreet(await give_secret(desk, wire.path_id(id, "key"), desk.member_id))


@delete("/keys/{id:str}", summary="Revoke one's own key, for good")
async def revoke_own_key(id: FromPath[str], desk: NamedDependency[Desk]) -> None:
    """Revoking it again changes nothing."""
    await end_key(desk, wire.path_id(id, "key"), desk.member_id)


def own_keys_router() -> Router:
    """Make the router of what members do with their keys."""
    handlers = [add_own_key, tighten_own_key, rotate_own_key, revoke_own_key]
    return Router("/", route_handlers=documented(handlers), tags=["Me"])
