"""Reading usage: from the provider's answer to disjoint quantities by unit.

Owns the wire shapes of the usage objects that providers send and the arithmetic that turns
them into the glossary's units. Does not own prices (`pricing`), estimates for answers without
usage (`ceilings.estimate_chat`), streams (`sse`), or facts that need a file's own header
(the duration of an audio file, the pages of a PDF: the gateway reads those).

Invariants, for any bytes whatever:

- No reader raises. `None` means that nothing readable was reported: the caller bills its
  estimate. `{}` means that the provider reported zero.
- Quantities are positive, at most `QUANTITY_MAX`, exact (`int`, or `Decimal` if not whole) and
  disjoint; units with a quantity of zero are left out.
- The tokens of a usage add up to no less than the total the provider reported, even where
  its parts contradict each other. What cannot be told apart is put into the unit that costs
  more: parts are discounts on a total, so a part that does not fit is cut, never the total.

An odd usage object (strings, booleans, fractions, 1e400, nested where a number should be) is
read number by number on a slow path, so that one odd field does not lose the others. The
fast path is one typed decode that skips the rest of the body without building it.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from math import ceil
from typing import Final, TypeVar

import msgspec
from msgspec import Raw

Quantity = int | Decimal
"""An exact amount of one unit; `int` whenever it is whole."""

Usage = dict[str, Quantity]
"""Disjoint, positive quantities by unit (`UNITS`)."""

UNITS: Final[frozenset[str]] = frozenset(
    {
        "input_token",
        "cached_input_token",
        "cache_write_token",
        "output_token",
        "reasoning_token",
        "input_audio_token",
        "cached_input_audio_token",
        "output_audio_token",
        "input_image_token",
        "output_image_token",
        "page",
        "character",
        "second",
        "image",
        "query",
        "request",
    }
)
"""Every unit of the glossary."""

TOKEN_UNITS: Final[frozenset[str]] = frozenset(u for u in UNITS if u.endswith("_token"))
"""The units that count against token limits."""

OUTPUT_TOKEN_UNITS: Final = (
    "output_token",
    "reasoning_token",
    "output_audio_token",
    "output_image_token",
)

QUANTITY_MAX: Final = 10**12
"""A reported number above this is not a quantity but a fault, and read as absent."""

_FRACTION_DIGITS_MAX: Final = 30
_NUMBER_CHARS_MAX: Final = 64
_DEPTH_MAX: Final = 2

DECODE_ERRORS: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""All that decoding bytes from a stranger can raise; `ValidationError` is a `DecodeError`."""


class Metered(msgspec.Struct, frozen=True):
    """What a finished call used, and whether that is the provider's word or our estimate."""

    usage: Usage
    estimated: bool = False


class CachedDetails(msgspec.Struct, gc=False):
    """`cached_tokens_details`: which kinds the cached tokens were (realtime)."""

    audio_tokens: int | None = None
    image_tokens: int | None = None


class InputDetails(msgspec.Struct, gc=False):
    """`prompt_tokens_details` / `input_tokens_details`: parts of the input's total."""

    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    cache_creation_tokens: int | None = None
    audio_tokens: int | None = None
    image_tokens: int | None = None
    cached_tokens_details: CachedDetails | None = None


class OutputDetails(msgspec.Struct, gc=False):
    """`completion_tokens_details` / `output_tokens_details`: parts of the output's total.

    Predicted tokens, accepted or rejected, are ordinary output and need no field.
    """

    reasoning_tokens: int | None = None
    thinking_tokens: int | None = None
    audio_tokens: int | None = None
    image_tokens: int | None = None


class ChatUsageWire(msgspec.Struct, gc=False):
    """`usage` of chat completions and embeddings: OpenAI, Azure, Mistral and compatible.

    `prompt_cache_hit_tokens` (DeepSeek) and a bare `cached_tokens` (Moonshot) say what
    OpenAI says in the details. `prompt_audio_seconds` is Mistral's.
    """

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: InputDetails | None = None
    completion_tokens_details: OutputDetails | None = None
    prompt_cache_hit_tokens: int | None = None
    cached_tokens: int | None = None
    prompt_audio_seconds: int | None = None


class TokensUsageWire(msgspec.Struct, gc=False):
    """`usage` of the Responses API, of images, of transcriptions and of realtime.

    The details are spelt `input_tokens_details` (Responses, images) or `input_token_details`
    (transcriptions, realtime).
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    input_tokens_details: InputDetails | None = None
    input_token_details: InputDetails | None = None
    output_tokens_details: OutputDetails | None = None
    output_token_details: OutputDetails | None = None


class TranscriptionUsageWire(TokensUsageWire, gc=False):
    """`usage` of a transcription: `type` says whether it is tokens or `duration`.

    `prompt_audio_seconds` is Mistral's, and comes without a type. Seconds stay raw, because
    only their text is exact.
    """

    type: Raw = Raw()
    seconds: Raw = Raw()
    prompt_audio_seconds: Raw = Raw()


class CacheCreation(msgspec.Struct, gc=False):
    """Anthropic's cache writes by time to live."""

    ephemeral_5m_input_tokens: int | None = None
    ephemeral_1h_input_tokens: int | None = None


class ServerToolUse(msgspec.Struct, gc=False):
    """Anthropic's own tools, charged by the query."""

    web_search_requests: int | None = None


class MessagesUsageWire(msgspec.Struct, gc=False):
    """`usage` of Anthropic messages: `input_tokens` leaves out what the cache served or took."""

    input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_creation: CacheCreation | None = None
    output_tokens: int | None = None
    output_tokens_details: OutputDetails | None = None
    server_tool_use: ServerToolUse | None = None


_NESTED: Final = frozenset(
    {
        "prompt_tokens_details",
        "completion_tokens_details",
        "input_tokens_details",
        "input_token_details",
        "output_tokens_details",
        "output_token_details",
        "cached_tokens_details",
        "cache_creation",
        "server_tool_use",
    }
)


class _ChatBody(msgspec.Struct, gc=False):
    usage: ChatUsageWire | None = None


class _TokensBody(msgspec.Struct, gc=False):
    usage: TokensUsageWire | None = None


class _TranscriptionBody(msgspec.Struct, gc=False):
    usage: TranscriptionUsageWire | None = None


class _MessagesBody(msgspec.Struct, gc=False):
    usage: MessagesUsageWire | None = None


class _OcrUsage(msgspec.Struct, gc=False):
    pages_processed: int | None = None


class _OcrBody(msgspec.Struct, gc=False):
    usage_info: _OcrUsage | None = None


_chat_decoder = msgspec.json.Decoder(_ChatBody)
_tokens_decoder = msgspec.json.Decoder(_TokensBody)
_transcription_decoder = msgspec.json.Decoder(_TranscriptionBody)
_messages_decoder = msgspec.json.Decoder(_MessagesBody)
_ocr_decoder = msgspec.json.Decoder(_OcrBody)
_list_decoder = msgspec.json.Decoder(list[Raw])
_object_decoder = msgspec.json.Decoder(dict[str, Raw])

_Wire = TypeVar("_Wire", bound=msgspec.Struct)


def tokens_of(usage: Usage) -> int:
    """The tokens that `usage` counts against token limits: the sum of all token units."""
    tokens = 0
    for unit, quantity in usage.items():
        if unit in TOKEN_UNITS:
            tokens += int(quantity)
    return tokens


def output_of(usage: Usage) -> int:
    """The tokens of `usage` that were generated."""
    return sum(int(usage.get(unit, 0)) for unit in OUTPUT_TOKEN_UNITS)


def exact(value: Decimal) -> Quantity:
    """`value` as a quantity: an `int` if it is whole."""
    whole = int(value)
    return whole if whole == value else value


def utf8_len(text: str) -> int:
    """Bytes of `text` in UTF-8; half of a surrogate pair counts three, as it does on the wire."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


# Reading numbers that strangers wrote.


def _count(value: int | None) -> int | None:
    return value if value is not None and 0 <= value <= QUANTITY_MAX else None


def _part(value: int | None, most: int) -> int:
    """A part of a total, cut to what is left of the total."""
    return 0 if value is None or value <= 0 else min(value, most)


def _number(raw: bytes) -> Decimal | None:
    """The JSON number `raw` exactly, if it is a quantity."""
    if not raw[:1].isdigit() or len(raw) > _NUMBER_CHARS_MAX:
        return None
    try:
        value = Decimal(raw.decode("ascii"))
    except (InvalidOperation, UnicodeDecodeError):
        return None
    exponent = value.as_tuple().exponent
    # The exponent is looked at before anything is computed: 1e-999999 compares and converts
    # only at great cost, and no meter measures that finely.
    if not isinstance(exponent, int) or exponent < -_FRACTION_DIGITS_MAX:
        return None
    return value if value <= QUANTITY_MAX else None


# Half of a surrogate pair: some providers cut text between the two, and msgspec refuses the
# whole body for it, even where it skips the text.
_LONE_SURROGATE: Final = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)


def members_of(raw: bytes | Raw) -> dict[str, Raw] | None:
    """The members of the JSON object `raw`, undecoded; None if it is no readable object.

    Lone surrogates in it are replaced by U+FFFD, which has as many bytes.
    """
    try:
        return _object_decoder.decode(raw)
    except DECODE_ERRORS:
        pass
    try:
        return _object_decoder.decode(_LONE_SURROGATE.sub(rb"\\ufffd", bytes(raw)))
    except DECODE_ERRORS:
        return None


def _loose_members(raw: bytes | Raw, depth: int) -> dict[str, object] | None:
    members = members_of(raw)
    if members is None:
        return None
    read: dict[str, object] = {}
    for name, member in members.items():
        if name in _NESTED:
            read[name] = _loose_members(member, depth - 1) if depth else None
        else:
            number = _number(bytes(member))
            # Whole tokens only: a fraction of one is billed as one.
            read[name] = None if number is None else ceil(number)
    return read


def read_loosely(raw: bytes | Raw, wire: type[_Wire]) -> _Wire | None:
    """The usage object `raw` as `wire`, with every unreadable field absent.

    None if `raw` is not a JSON object. The slow path behind every typed decode.
    """
    members = _loose_members(raw, _DEPTH_MAX)
    return None if members is None else msgspec.convert(members, wire)


def _read_member_loosely(body: bytes, name: str, wire: type[_Wire]) -> _Wire | None:
    members = members_of(body)
    return read_loosely(members[name], wire) if members and name in members else None


# Usage objects.


def _add_input(usage: Usage, total: int, details: InputDetails | None, cached: int) -> None:
    """Split `total` input tokens into their units.

    Cached tokens may be text, audio or image, and mostly nobody says which: they are taken as
    text as far as there is text, then as audio, because a discount on text is worth least. A
    cached image has no unit of its own and is billed as an image.
    """
    if details is None:
        audio = image = written = 0
        cached_details = None
    else:
        audio = _part(details.audio_tokens, total)
        image = _part(details.image_tokens, total - audio)
        cached = _part(details.cached_tokens, total) or cached
        written = _part(details.cache_write_tokens, total) or _part(
            details.cache_creation_tokens, total
        )
        cached_details = details.cached_tokens_details
    text = total - audio - image
    if cached_details is None:
        cached_text = min(cached, text)
        cached_audio = min(cached - cached_text, audio)
    else:
        cached_audio = _part(cached_details.audio_tokens, min(audio, cached))
        cached_image = _part(cached_details.image_tokens, cached - cached_audio)
        cached_text = min(cached - cached_audio - cached_image, text)
    written = min(written, text - cached_text)
    if text := text - cached_text - written:
        usage["input_token"] = text
    if cached_text:
        usage["cached_input_token"] = cached_text
    if written:
        usage["cache_write_token"] = written
    if audio := audio - cached_audio:
        usage["input_audio_token"] = audio
    if cached_audio:
        usage["cached_input_audio_token"] = cached_audio
    if image:
        usage["input_image_token"] = image


def _add_output(usage: Usage, total: int, details: OutputDetails | None) -> None:
    """Split `total` output tokens into their units; the dearest part is kept whole."""
    if details is not None:
        if audio := _part(details.audio_tokens, total):
            usage["output_audio_token"] = audio
            total -= audio
        if image := _part(details.image_tokens, total):
            usage["output_image_token"] = image
            total -= image
        if reasoning := _part(details.reasoning_tokens, total) or _part(
            details.thinking_tokens, total
        ):
            usage["reasoning_token"] = reasoning
            total -= reasoning
    if total:
        usage["output_token"] = total


def _totals(input_: int | None, output: int | None, total: int | None) -> tuple[int, int] | None:
    """Input and output tokens that add up to no less than `total`; None if all are absent.

    Several providers leave reasoning out of the output and only count it in the total, so
    what neither side claims is output, unless it was the input that is missing.
    """
    if input_ is None and output is None and total is None:
        return None
    missing = (total or 0) - (input_ or 0) - (output or 0)
    if missing <= 0:
        return input_ or 0, output or 0
    if input_ is None and output is not None:
        return missing, output
    return input_ or 0, (output or 0) + missing


def read_chat_usage(wire: ChatUsageWire) -> Usage | None:
    """`wire` as usage; None if it reports no readable count."""
    prompt = _count(wire.prompt_tokens)
    completion = _count(wire.completion_tokens)
    seconds = _count(wire.prompt_audio_seconds)
    # Mistral bills audio by the second and counts its tokens in the total alone. The seconds
    # are the meter: counting those tokens as well would bill the audio twice.
    totals = _totals(prompt, completion, None if seconds else _count(wire.total_tokens))
    if totals is None:
        return {"second": seconds} if seconds else None
    prompt, completion = totals
    usage: Usage = {}
    cached = _part(wire.prompt_cache_hit_tokens, prompt) or _part(wire.cached_tokens, prompt)
    details = wire.prompt_tokens_details
    if cached or details is not None:
        _add_input(usage, prompt, details, cached)
    elif prompt:
        usage["input_token"] = prompt
    _add_output(usage, completion, wire.completion_tokens_details)
    if seconds:
        usage["second"] = seconds
    return usage


def chat_usage(usage: ChatUsageWire) -> Usage:
    """Chat `usage` as disjoint quantities; `{}` if it reports nothing readable.

    Tokens add up to `max(prompt + completion, total)`, except that Mistral's audio is metered
    as `second` in place of its tokens.
    """
    return read_chat_usage(usage) or {}


def read_tokens_usage(wire: TokensUsageWire, output_unit: str = "output_token") -> Usage | None:
    """`wire` as usage; None if it reports no readable count.

    `output_unit` is the unit of output that the details do not name.
    """
    totals = _totals(
        _count(wire.input_tokens), _count(wire.output_tokens), _count(wire.total_tokens)
    )
    if totals is None:
        return None
    usage: Usage = {}
    _add_input(usage, totals[0], wire.input_tokens_details or wire.input_token_details, 0)
    output_details = wire.output_tokens_details or wire.output_token_details
    if output_details is None:
        if totals[1]:
            usage[output_unit] = totals[1]
    else:
        _add_output(usage, totals[1], output_details)
    return usage


def read_messages_usage(wire: MessagesUsageWire) -> Usage | None:
    """Anthropic's `wire` as usage; None if it reports no readable count.

    Searches the provider ran are `query`: without a rate for them the call is unpriced
    rather than half-priced.
    """
    input_ = _count(wire.input_tokens)
    output = _count(wire.output_tokens)
    read = _count(wire.cache_read_input_tokens)
    written = _count(wire.cache_creation_input_tokens)
    if written is None and wire.cache_creation is not None:
        written = _part(wire.cache_creation.ephemeral_5m_input_tokens, QUANTITY_MAX) + _part(
            wire.cache_creation.ephemeral_1h_input_tokens, QUANTITY_MAX
        )
    if input_ is None and output is None and read is None and written is None:
        return None
    usage: Usage = {}
    if input_:
        usage["input_token"] = input_
    if read:
        usage["cached_input_token"] = read
    if written:
        usage["cache_write_token"] = written
    _add_output(usage, output or 0, wire.output_tokens_details)
    tools = wire.server_tool_use
    if tools is not None and (queries := _count(tools.web_search_requests)):
        usage["query"] = queries
    return usage


def merge_messages_usage(
    earlier: MessagesUsageWire | None, later: MessagesUsageWire
) -> MessagesUsageWire:
    """Two reports of one Anthropic stream as one.

    `message_start` has the input, `message_delta` what was put out so far, and either may
    repeat or leave out a field. Counts are cumulative: the greater stands, never the sum.
    """
    if earlier is None:
        return later
    return MessagesUsageWire(
        input_tokens=_greater(earlier.input_tokens, later.input_tokens),
        cache_read_input_tokens=_greater(
            earlier.cache_read_input_tokens, later.cache_read_input_tokens
        ),
        cache_creation_input_tokens=_greater(
            earlier.cache_creation_input_tokens, later.cache_creation_input_tokens
        ),
        cache_creation=later.cache_creation or earlier.cache_creation,
        output_tokens=_greater(earlier.output_tokens, later.output_tokens),
        output_tokens_details=later.output_tokens_details or earlier.output_tokens_details,
        server_tool_use=later.server_tool_use or earlier.server_tool_use,
    )


def _greater(a: int | None, b: int | None) -> int | None:
    a, b = _count(a), _count(b)
    if a is None or b is None:
        return b if a is None else a
    return max(a, b)


# Whole answers. Each takes the body as the provider sent it.


def meter_chat(body: bytes) -> Usage | None:
    """Usage of a chat completion: `usage.prompt_tokens`, `completion_tokens` and details."""
    try:
        wire = _chat_decoder.decode(body).usage
    except DECODE_ERRORS:
        wire = _read_member_loosely(body, "usage", ChatUsageWire)
    return None if wire is None else read_chat_usage(wire)


def meter_embeddings(body: bytes) -> Usage | None:
    """Usage of embeddings: there is no output, so the greater of prompt and total is input."""
    try:
        wire = _chat_decoder.decode(body).usage
    except DECODE_ERRORS:
        wire = _read_member_loosely(body, "usage", ChatUsageWire)
    if wire is None:
        return None
    tokens = _greater(wire.prompt_tokens, wire.total_tokens)
    if tokens is None:
        return None
    usage: Usage = {}
    _add_input(usage, tokens, wire.prompt_tokens_details, 0)
    return usage


def meter_ocr(body: bytes) -> Usage | None:
    """Pages of an OCR answer: `usage_info.pages_processed`, else the pages it holds."""
    try:
        wire = _ocr_decoder.decode(body).usage_info
    except DECODE_ERRORS:
        wire = _read_member_loosely(body, "usage_info", _OcrUsage)
    pages = None if wire is None else _count(wire.pages_processed)
    if pages is None:
        pages = _listed(body, "pages")
    if pages is None:
        return None
    return {"page": pages} if pages else {}


def _listed(body: bytes, name: str) -> int | None:
    """How many values the list `name` of the answer holds; None if there is no such list."""
    try:
        return len(_list_decoder.decode((members_of(body) or {}).get(name, b"")))
    except DECODE_ERRORS:
        return None


def meter_transcription(body: bytes) -> Usage | None:
    """Usage of a transcription: tokens, or `{"second": …}` exactly as the provider wrote it.

    None for text formats and for answers without usage: meter the file's own duration then.
    """
    try:
        wire = _transcription_decoder.decode(body).usage
    except DECODE_ERRORS:
        raw = (members_of(body) or {}).get("usage", b"")
        given = members_of(raw)
        if given is None:
            return None
        seconds = (given.get("seconds", b""), given.get("prompt_audio_seconds", b""))
        tokens = read_loosely(raw, TokensUsageWire) or TokensUsageWire()
        return _transcription_usage(given.get("type", b""), seconds, tokens)
    if wire is None:
        return None
    return _transcription_usage(wire.type, (wire.seconds, wire.prompt_audio_seconds), wire)


def _transcription_usage(
    kind: Raw | bytes, durations: tuple[Raw | bytes, ...], tokens: TokensUsageWire
) -> Usage | None:
    # Mistral counts the audio's tokens in the total alone and bills seconds.
    if bytes(kind) != b'"tokens"':
        for raw in durations:
            seconds = _number(bytes(raw))
            if seconds is not None:
                return {"second": exact(seconds)} if seconds else {}
    return read_tokens_usage(tokens)


def meter_responses(body: bytes) -> Usage | None:
    """Usage of a Responses API answer: `input_tokens`, `output_tokens` and details."""
    wire = _tokens_wire(body)
    return None if wire is None else read_tokens_usage(wire)


def meter_images(body: bytes) -> Usage | None:
    """Usage of generated images: tokens if reported, else `{"image": n}` by counting `data`.

    Output that the details do not name is `output_image_token`: that is all images put out.
    """
    wire = _tokens_wire(body)
    usage = None if wire is None else read_tokens_usage(wire, "output_image_token")
    if usage is not None:
        return usage
    images = _listed(body, "data")
    if images is None:
        return None
    return {"image": images} if images else {}


def _tokens_wire(body: bytes) -> TokensUsageWire | None:
    try:
        return _tokens_decoder.decode(body).usage
    except DECODE_ERRORS:
        return _read_member_loosely(body, "usage", TokensUsageWire)


def meter_messages(body: bytes) -> Usage | None:
    """Usage of an Anthropic message: input, cache reads and cache writes are already apart."""
    try:
        wire = _messages_decoder.decode(body).usage
    except DECODE_ERRORS:
        wire = _read_member_loosely(body, "usage", MessagesUsageWire)
    return None if wire is None else read_messages_usage(wire)
