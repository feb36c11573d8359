"""Chats over the wire: making one, looking at it, deleting it, with a key.

Owns the bodies and answers of `/v1/chats`. Owns no SQL (see `store.chats`) and no limit: a call
that names a chat is charged to its root by the exchange, like to any owner.

Invariants: a limit is more than 0, exact to the nano-USD, and a root's alone; whose chat it is
not, for them there is no such chat.
"""

from datetime import UTC, datetime
from decimal import Decimal

import msgspec

from app.core import written
from app.core.access import Key
from app.core.ceilings import BadRequest
from app.core.money import InvalidAmount, usd_to_nano
from app.gateway.exchange import Refused
from app.ids import is_id, uuid7
from app.problems import not_found
from app.store.chats import ChatDocument, Chats


class _Wanted(msgspec.Struct, forbid_unknown_fields=True):
    spend_limit_usd: Decimal | None = None
    parent_id: str | None = None


async def create_chat(chats: Chats, key: Key, body: bytes) -> ChatDocument:
    """Make a chat of the key's member. Raises `BadRequest`, `Refused`."""
    wanted = _read(body)
    limit_nano = None
    if wanted.spend_limit_usd is not None:
        if wanted.parent_id is not None:
            raise BadRequest(
                "Only the root of a tree carries a limit: leave `spend_limit_usd` out, or "
                "`parent_id`.",
                "spend_limit_usd",
            )
        try:
            limit_nano = usd_to_nano(wanted.spend_limit_usd)
        except InvalidAmount as error:
            raise BadRequest(f"`spend_limit_usd` {error}.", "spend_limit_usd") from None
        if limit_nano == 0:
            raise BadRequest(
                "`spend_limit_usd` must be more than 0; leave it out for no limit.",
                "spend_limit_usd",
            )
    made = None
    if wanted.parent_id is None or is_id(wanted.parent_id):
        at = datetime.now(UTC)
        made = await chats.create(
            id=uuid7(at),
            member_id=key.member_id,
            key_id=key.id,
            parent_id=wanted.parent_id,
            limit_nano=limit_nano,
            at=at,
        )
    if made is None:
        raise Refused(not_found("You have no chat with the id in `parent_id`."))
    return made


async def show_chat(chats: Chats, key: Key, id: str) -> ChatDocument:
    """Return a chat of the key's member. Raises `Refused`."""
    found = await chats.find(id, key.member_id) if is_id(id) else None
    if found is None:
        raise Refused(not_found("You have no chat with that id."))
    return found


async def delete_chat(chats: Chats, key: Key, id: str) -> ChatDocument:
    """Let no call name a chat any more; what it cost counts for its tree as before."""
    if is_id(id):
        await chats.delete(id, key.member_id, datetime.now(UTC))
    return await show_chat(chats, key, id)


def _read(body: bytes) -> _Wanted:
    try:
        return written.decode(body or b"{}", _Wanted)
    except msgspec.ValidationError as error:
        raise BadRequest(f"The body is no chat: {str(error).replace('`', '')}.", "") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadRequest("The body is not valid JSON.", "") from None
