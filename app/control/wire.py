"""The wire: how bodies and parameters are read, and how documents and pages are written.

Owns strict JSON (types are not guessed, fields are not dropped, numbers are exact), the checks of
single values, and cursors. Owns no check that needs a row.

Invariants: a body with a field that we do not keep is refused; a number is never a float; text that
PostgreSQL cannot keep never reaches it; a cursor is opaque and stands for the last key of a page.
"""

import base64
import binascii
import functools
import re
import unicodedata
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any, Final, Generic, Literal, TypeVar, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, available_timezones

import msgspec
from litestar import Request, Response

from app.control.errors import Refused, invalid, misfit, unknown
from app.core import written
from app.core.faults import Fault
from app.core.money import AMOUNT_NANO_MAX, AMOUNT_TOKENS_MAX, InvalidAmount, usd_to_nano

T = TypeVar("T")

PAGE_DEFAULT: Final = 50
PAGE_MAX: Final = 1000

PASSWORD_LENGTH_MIN: Final = 8
PASSWORD_LENGTH_MAX: Final = 1024

_SLUG: Final = re.compile(r"[\x21-\x7e]{1,200}")
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_EMAIL: Final = re.compile(r"[^@\s]{1,64}@[^@\s]{1,189}")
MAILBOX: Final = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9.-]{1,189}")
"""An address that a letter reaches, and nobody else's."""
_INSTANT_MIN: Final = datetime(2000, 1, 1, tzinfo=UTC)
_INSTANT_MAX: Final = datetime(2200, 1, 1, tzinfo=UTC)


class Input(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A body. A field that it does not name is refused."""


class Sheet(Input):
    """A body that may as well come as `text/csv`, and is just that then."""

    csv: str


class Page(msgspec.Struct, Generic[T], frozen=True):
    """Some of many; `next` is the cursor of the rest, or null."""

    items: list[T]
    next: str | None


class StrictRequest(Request[Any, Any, Any]):
    """A request whose JSON is read straight into the handler's type, guessing nothing."""

    async def json(self) -> Any:
        """Read the body. Raises `Refused`."""
        field = self.route_handler.parsed_data_field
        assert field is not None, "only asked of handlers that take a body"
        kind = self.content_type[0]
        if kind == "text/csv" and _is_sheet(field.annotation):
            return field.annotation(csv=_text(await self.body()))
        if kind != "application/json":
            raise Refused(
                415, Fault("not_json", "Send the body as `Content-Type: application/json`.")
            )
        body = await self.body()
        try:
            return written.decode(body, field.annotation)
        except msgspec.ValidationError as error:
            raise _unfit(str(error), field.annotation) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise Refused(400, Fault("json_unreadable", "The body is not valid JSON.")) from None


class Document(Response[Any]):
    """An answer with exact numbers: quantities are JSON numbers, never floats on the way."""

    def render(
        self, content: Any, media_type: str, enc_hook: Callable[[Any], Any] | None = None
    ) -> bytes:
        """Write the body."""
        if isinstance(content, bytes):
            return content
        return msgspec.json.Encoder(enc_hook=enc_hook, decimal_format="number").encode(content)


def _is_sheet(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Sheet)


def _text(body: bytes) -> str:
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Refused(400, Fault("csv_not_utf8", "The CSV is not text in UTF-8.")) from None


def _unfit(message: str, expected: Any) -> Refused:
    """Turn msgspec's words into ours: which field, and what to change."""
    said, _, place = message.partition(" - at `$")
    path = place.rstrip("`").lstrip(".")
    if match := re.match(r"Object (?:contains unknown|missing required) field `(.*)`", said):
        field = f"{path}.{match[1]}".lstrip(".")
        if "missing" in said:
            return _misfit(field, Fault("required", "is required"))
        return _misfit(field, Fault("unknown_field", "unknown field"))
    if not path:
        return Refused(422, Fault("not_an_object", "The body must be a JSON object."))
    said = said.replace("`", "")
    options = _options(expected, re.split(r"[.\[]", path)[0])
    if options and said.startswith("Invalid enum value"):
        return _misfit(
            path,
            Fault("not_one_of", "{said}; use one of {known}", said=said, known=", ".join(options)),
        )
    if match := re.fullmatch(r"Expected (.+), got (.+)", said):
        return _misfit(
            path,
            Fault("wrong_type", "Expected {expected}, got {got}", expected=match[1], got=match[2]),
        )
    return _misfit(path, Fault("unreadable", "{said}", said=said))


def _misfit(field: str, fault: Fault) -> Refused:
    return Refused(422, fault, field=field, detail=f"{field}: {fault}.")


def _options(expected: Any, field: str) -> list[str]:
    """Return what a field may be, if that is one of a few words."""
    found: list[str] = []

    def look(annotation: Any) -> None:
        if get_origin(annotation) is Literal:
            found.extend(get_args(annotation))
        else:
            for part in get_args(annotation):
                look(part)

    look(get_type_hints(expected).get(field))
    return found


# Values


def text(field: str, value: str, *, most: int = 200, least: int = 1) -> str:
    """Check text that people write and read: no control characters, not too long."""
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in value):
        raise invalid(field, "control_characters", "must not contain control characters")
    value = value.strip()
    if not least <= len(value) <= most:
        raise invalid(
            field, "length", "must have from {least} to {most} characters", least=least, most=most
        )
    return value


def reason(value: str | None) -> str | None:
    """Check the reason of a change."""
    if value is None:
        return None
    return text("reason", " ".join(value.split()), most=1000, least=0) or None


def email(value: str) -> str:
    """Check an address, and spell it in one way: two that look alike are one."""
    value = unicodedata.normalize("NFC", text("email", value, most=254))
    hidden = any(unicodedata.category(character) == "Cf" for character in value)
    if hidden or not _EMAIL.fullmatch(value):
        raise invalid("email", "not_email", "must be an address such as ada@example.org")
    return value


def password(value: str, field: str = "password") -> str:
    """Check a password that is to be somebody's."""
    if not PASSWORD_LENGTH_MIN <= len(value) <= PASSWORD_LENGTH_MAX:
        raise invalid(
            field,
            "length",
            "must have from {least} to {most} characters",
            least=PASSWORD_LENGTH_MIN,
            most=PASSWORD_LENGTH_MAX,
        )
    return value


def secret(field: str, value: str) -> str:
    """Check a credential that is sent in a header."""
    if not re.fullmatch(r"[\x21-\x7e]{1,4096}", value):
        raise invalid(
            field, "secret", "must be from 1 to 4096 printable ASCII characters without spaces"
        )
    return value


def is_slug(value: str) -> bool:
    """Tell whether a model can have this name: it must survive being part of a path."""
    return bool(_SLUG.fullmatch(value)) and not any(
        part in ("", ".", "..") for part in value.split("/")
    )


def slug(field: str, value: str) -> str:
    """Check a model's name."""
    if not is_slug(value):
        raise invalid(
            field,
            "slug",
            "must be from 1 to 200 printable ASCII characters without spaces, "
            "and without empty parts between slashes",
        )
    return value


def base_url(value: str) -> str:
    """Check a provider's address: private ones are welcome, credentials in it are not."""
    try:
        if not re.fullmatch(r"[\x21-\x7e]{1,2000}", value) or "\\" in value:
            raise ValueError
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise invalid(
            "base_url", "base_url", "must be an address such as https://api.example.com/v1"
        ) from None
    if parts.scheme not in ("http", "https") or not host:
        raise invalid(
            "base_url",
            "base_url_scheme",
            "must begin with http:// or https:// and name a host, "
            "such as https://api.example.com/v1",
        )
    if "@" in parts.netloc:
        raise invalid(
            "base_url",
            "base_url_user",
            "must not contain a user name or password; use api_key",
        )
    if "?" in value or "#" in value:
        raise invalid("base_url", "base_url_query", "must not have a query or a fragment")
    return value


def whole(field: str, value: int, least: int, most: int) -> int:
    """Check a whole number."""
    if not least <= value <= most:
        raise invalid(field, "between", "must be from {least} to {most}", least=least, most=most)
    return value


def cap_tokens(field: str, value: int | None) -> int | None:
    """Check a token cap; 0 blocks, null is none."""
    return None if value is None else whole(field, value, 0, AMOUNT_TOKENS_MAX)


def cap_nano(field: str, value: Decimal | None) -> int | None:
    """Check a USD cap and turn it into nano-USD; 0 blocks, null is none."""
    if value is None:
        return None
    if value.is_finite() and 0 < value <= AMOUNT_NANO_MAX:
        _, digits, exponent = value.as_tuple()
        # Beyond 28 digits the default context rounds.
        if len(digits) > 28 or int(exponent) < -28:
            raise invalid(field, "decimals", "must have at most {most} decimal places", most=9)
    try:
        return usd_to_nano(value)
    except InvalidAmount as error:
        raise misfit(field, error) from None


@functools.cache
def _timezones() -> frozenset[str]:
    # Looked up in a list: some names that are none make the lookup itself fail in odd ways.
    return frozenset(available_timezones())


def timezone(field: str, value: str | None) -> str | None:
    """Check the name of a time zone; null is none of its own."""
    if value is not None and value not in _timezones():
        raise invalid(
            field, "timezone", "must be a time zone of the IANA database, such as Europe/Berlin"
        )
    return value


def instant(field: str, value: datetime) -> datetime:
    """Check an instant, and turn it to UTC."""
    if value.tzinfo is None:
        raise invalid(
            field, "no_offset", "must name its offset from UTC, such as 2026-01-31T00:00:00Z"
        )
    if not _INSTANT_MIN <= value < _INSTANT_MAX:
        raise invalid(field, "instant_between", "must lie between the years 2000 and 2200")
    return value.astimezone(UTC)


def distinct(field: str, values: Sequence[str], most: int = 200) -> list[str]:
    """Check a list of names: some, not too many, none twice."""
    if not 1 <= len(values) <= most:
        raise invalid(field, "names_between", "must name from 1 to {most}", most=most)
    for value in values:
        if values.count(value) > 1:
            raise invalid(field, "named_twice", "names {value!r} twice", value=value[:200])
    return list(values)


# Parameters


def path_id(value: str, what: str) -> str:
    """Read an id in a path: one that cannot be an id names nothing."""
    if not _UUID.fullmatch(value):
        raise unknown(what)
    return value.lower()


def path_slug(value: str) -> str:
    """Read a model's name in a path."""
    value = value.removeprefix("/")
    if not is_slug(value):
        raise unknown("model")
    return value


def id_filter(field: str, value: str | None) -> str | None:
    """Read an id to filter by, in the letters that ids are kept in."""
    if value is None:
        return None
    if not _UUID.fullmatch(value):
        raise invalid(field, "not_id", "must be an id such as 0197c5a0-0000-7000-8000-000000000000")
    return value.lower()


def object_filter(field: str, value: str | None) -> str | None:
    """Read what may be an id to filter by, or else is a name."""
    named = text_filter(field, value)
    return named.lower() if named is not None and _UUID.fullmatch(named) else named


def text_filter(field: str, value: str | None) -> str | None:
    """Read a text to filter by."""
    return None if value is None else text(field, value, most=1000, least=0)


def instant_filter(field: str, value: str | None, zone: ZoneInfo) -> datetime | None:
    """Read an instant to filter by; a date is its midnight in the billing time zone."""
    if value is None:
        return None
    try:
        if re.fullmatch(r"\d{4}-\d\d-\d\d", value):
            midnight = datetime.combine(date.fromisoformat(value), time(), zone)
            return instant(field, midnight)
        return instant(field, msgspec.convert(value, datetime))
    except (msgspec.ValidationError, ValueError, OverflowError):
        raise invalid(
            field,
            "instant_unreadable",
            "must be a date or an instant such as 2026-01-31T00:00:00Z (`+` written as %2B)",
        ) from None


def page_limit(value: int) -> int:
    """Read how many items a page shall have."""
    return whole("limit", value, 1, PAGE_MAX)


def paged(items: list[T], limit: int, key: Callable[[T], str]) -> Page[T]:
    """Make a page of up to `limit` items from one more than that."""
    if len(items) <= limit:
        return Page(items, None)
    shown = items[:limit]
    return Page(shown, base64.urlsafe_b64encode(key(shown[-1]).encode()).decode().rstrip("="))


def after(cursor: str | None, is_key: Callable[[str], object] = _UUID.fullmatch) -> str | None:
    """Read a cursor: the key that the page before ended with. Raises a 400."""
    if cursor is None:
        return None
    try:
        key = base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        key = ""
    if not is_key(key):
        raise Refused(
            400, Fault("cursor", "The cursor is not one that we gave: begin again without it.")
        )
    return key
