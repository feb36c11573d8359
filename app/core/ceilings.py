"""Ceilings: the most a call can use, computed from the request before it is sent.

Owns the estimators of the endpoints, the bounds they rest on, and the checks of the request
fields they read. Does not own prices, what is left of a limit, or how much of an open quantity
is granted (`ledger`); facts that need a file's own header (pages of a PDF, seconds of audio)
are arguments.

Invariants:

- A usage metered from the answer stays within at least one bundle of the ceiling, plus what is
  granted of the open quantity, as long as the bounds below hold. They are proofs where the
  docstring says so and generous otherwise; what exceeds them is booked in full as an overrun.
- Every reader raises `BadRequest` and nothing else, whatever the bytes.
- Fields that no bound depends on are not looked at: the provider judges them.

Bounds on text: UTF-8 bytes divided by `bytes_per_token`, plus 4 tokens a message and 3 an answer
for the frame that chat templates put around them. With `bytes_per_token=1` this is a proof for
byte-level tokenizers, as no token is shorter than a byte.

A ceiling counts input that may be cached, or written to a cache, as `input_token`, and output
that may be reasoning as `output_token`: pricing takes the dearest rate these can turn out at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from math import ceil
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Raw

from app.core.metering import DECODE_ERRORS, Usage, exact, utf8_len

COUNT_MAX: Final = 2**31 - 1
"""The greatest maximum a request may name. Some clients send it for "no limit"."""

CHOICES_MAX: Final = 128
"""The greatest `n`, as the OpenAI API has it."""

OPEN_TOKENS_ALL_BELOW: Final = 1024

STREAM_SLICE_TOKENS: Final = 2048
"""Of an open-ended stream, so much output is held at a time."""

_MESSAGE_TOKENS: Final = 4
_ANSWER_TOKENS: Final = 3
# Marks that some embedding tokenizers put around each input.
_INPUT_MARKS: Final = 2

# The slowest that audio comes: PCM at 8 kHz and 8 bits (as G.711), and 8 kbit/s for whatever
# is compressed, the least that MPEG layer III has.
_PCM_BYTES_PER_SECOND: Final = 8000
_COMPRESSED_BYTES_PER_SECOND: Final = 1000
_PCM_FORMATS: Final = frozenset({"wav", "pcm", "pcm16"})

# A document that only the provider can fetch, for a model whose window is not known.
_DOCUMENT_TOKENS_UNKNOWN: Final = 128_000

# Speech is some 20 audio tokens a second; a byte of text is spoken in 0.2 s, a CJK character
# (three bytes) in 0.6 s. Digits and abbreviations are longer, hence the constant.
_SPEECH_TOKENS_PER_BYTE: Final = 4
_SPEECH_TOKENS_LEAST: Final = 200

# Fast speech is under 10 tokens a second in any language.
_TRANSCRIPT_TOKENS_PER_SECOND: Final = 25
_TRANSCRIPT_TOKENS_LEAST: Final = 100

_OUTPUT_UNITS: Final = frozenset(
    {"output_token", "reasoning_token", "output_audio_token", "output_image_token"}
)


class BadRequest(ValueError):
    """A request whose ceiling cannot be computed; `message` says what to change in `param`."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class OpenQuantity(msgspec.Struct, frozen=True):
    """A quantity that the client left open, so that the ledger may grant less than the most.

    `unit` is what the quantity is priced as: `output_token`, `output_audio_token` if the answer
    may be spoken, or `page`. `most` is per choice, and there are `times` choices. Once half of
    what is left of a limit is below `all_below`, all of it may be granted.
    """

    unit: str
    most: int
    all_below: int
    times: int = 1


class Ceiling(msgspec.Struct, frozen=True):
    """The most a call can use.

    `bundles` are alternatives, never to be added up: the call is metered in the units of one of
    them, and which one depends on how the provider bills the model. `open` comes on top.
    """

    bundles: tuple[Usage, ...]
    open: OpenQuantity | None = None


def sliced(ceiling: Ceiling) -> Ceiling:
    """The ceiling of a stream whose output was left open: one slice of it, to be extended."""
    opened = ceiling.open
    if opened is None or opened.unit != "output_token":
        return ceiling
    return msgspec.structs.replace(
        ceiling,
        open=msgspec.structs.replace(opened, most=min(opened.most, STREAM_SLICE_TOKENS)),
    )


class ModelFacts(msgspec.Struct, frozen=True):
    """What is known of a model, and what is assumed where it is not.

    `image_tokens_low` is an image asked for in low detail. `audio_tokens_per_second` is 10 for
    OpenAI's models; Mistral's use 12.5.
    """

    bytes_per_token: int = 2
    context_window: int | None = None
    max_output_tokens: int | None = None
    image_tokens_max: int = 3000
    output_tokens_default: int = 16384
    ocr_pages_max: int = 1000
    audio_seconds_unknown: int = 1500
    image_tokens_low: int = 100
    audio_tokens_per_second: int = 10


class _PlainMessage(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """A message with nothing but text: what nearly all are. Any other takes the long way."""

    role: str = ""
    content: str | None = None
    name: str | None = None


class _Document(msgspec.Struct, gc=False):
    type: str | None = None
    image_url: Raw = Raw()


class _Media(msgspec.Struct, gc=False):
    """What a walk through messages found, apart from plain text."""

    text_bytes: int = 0
    image_tokens: int = 0
    document_tokens: int = 0
    audio_seconds: int = 0
    audio_tokens: int = 0


_plain_messages_decoder = msgspec.json.Decoder(list[_PlainMessage])
_integer_decoder = msgspec.json.Decoder(int)
_strings_decoder = msgspec.json.Decoder(list[str])
_string_decoder = msgspec.json.Decoder(str)
_embedding_decoder = msgspec.json.Decoder(str | list[str | int | list[int]])
_pages_decoder = msgspec.json.Decoder(int | str | list[int])
# Numbers are not counted: as floats, none is out of range.
_any_decoder = msgspec.json.Decoder(Any, float_hook=float)
_document_decoder = msgspec.json.Decoder(_Document)

_ALSO_TEXT = frozenset(("tools", "functions", "response_format", "prediction"))
"""What a model reads beside the messages."""

_T = TypeVar("_T")


# Fields.


def _given(request: Mapping[str, Raw], name: str) -> Raw | None:
    """The field, or None if it is absent or null."""
    raw = request.get(name)
    # The size comes first so that fields of megabytes are not copied for a comparison.
    return None if raw is None or (_size(raw) == 4 and bytes(raw) == b"null") else raw


def _size(raw: Raw) -> int:
    return memoryview(raw).nbytes


def _decoded(decoder: msgspec.json.Decoder[_T], raw: Raw, param: str, expected: str) -> _T:
    try:
        return decoder.decode(raw)
    except DECODE_ERRORS:
        raise BadRequest(f"{param} must be {expected}", param) from None


def _integer(request: Mapping[str, Raw], name: str, most: int) -> int | None:
    raw = _given(request, name)
    if raw is None:
        return None
    try:
        value = _integer_decoder.decode(raw)
    except DECODE_ERRORS:
        value = 0
    if not 1 <= value <= most:
        raise BadRequest(f"{name} must be an integer from 1 to {most}", name)
    return value


def _tokens(size: int, facts: ModelFacts) -> int:
    """Tokens of `size` bytes of text, rounded up."""
    return -(-size // facts.bytes_per_token)


def _within(tokens: int, most: int | None) -> int:
    return tokens if most is None or tokens < most else most


# Chat.


def chat_ceiling(request: Mapping[str, Raw], facts: ModelFacts) -> Ceiling:
    """The most a chat completion can use; `request` is its top-level JSON object.

    Input: text by its bytes; the raw JSON of tools, functions, response format and prediction
    as text; images at `image_tokens_max` each, or `image_tokens_low` in low detail; audio by its
    bytes at the slowest its format can be; files by their bytes, at least as an image, and the
    whole context window for documents that only the provider can fetch. Never more than the
    window in all.

    Output: the greater of `max_completion_tokens` and `max_tokens`, but no more than the model
    has, times `n`. If neither is given it is `open`. With audio among the `modalities` any
    token of it may turn out spoken.

    Bundles: images as `input_token` or as `input_image_token`; audio as `input_audio_token` or,
    as Mistral has it, as `second`.
    """
    raw = _given(request, "messages")
    if raw is None:
        raise BadRequest("messages is required: a list of messages", "messages")
    media = None
    try:
        messages = _plain_messages_decoder.decode(raw)
    except DECODE_ERRORS:
        media, count = _read_messages(raw, facts)
        size = media.text_bytes
    else:
        count = len(messages)
        size = 0
        for message in messages:
            if message.content is not None:
                size += utf8_len(message.content)
            if message.name is not None:
                size += utf8_len(message.name)
    if not _ALSO_TEXT.isdisjoint(request):
        given = (_given(request, name) for name in _ALSO_TEXT)
        size += sum(_size(raw) for raw in given if raw is not None)
    text = _tokens(size, facts) + _MESSAGE_TOKENS * count + _ANSWER_TOKENS

    choices = 1 if "n" not in request else _integer(request, "n", CHOICES_MAX) or 1
    asked = _integer(request, "max_completion_tokens", COUNT_MAX) or 0
    asked = max(asked, _integer(request, "max_tokens", COUNT_MAX) or 0)
    spoken = "modalities" in request and _asks_audio(request)

    window = facts.context_window
    inputs: list[Usage]
    if media is None:
        inputs = [{"input_token": _within(text, window)}]
    else:
        inputs = _media_bundles(text, media, window)
    if not asked:
        most = facts.max_output_tokens or window or facts.output_tokens_default
        unit = "output_audio_token" if spoken else "output_token"
        return Ceiling(tuple(inputs), OpenQuantity(unit, most, OPEN_TOKENS_ALL_BELOW, choices))
    output = _within(_within(asked, facts.max_output_tokens), window) * choices
    if not spoken:
        for bundle in inputs:
            bundle["output_token"] = output
        return Ceiling(tuple(inputs))
    return Ceiling(
        tuple(
            {**bundle, unit: output}
            for unit in ("output_token", "output_audio_token")
            for bundle in inputs
        )
    )


def _asks_audio(request: Mapping[str, Raw]) -> bool:
    raw = _given(request, "modalities")
    return raw is not None and "audio" in _decoded(
        _strings_decoder, raw, "modalities", "a list of strings"
    )


def _media_bundles(text: int, media: _Media, window: int | None) -> list[Usage]:
    """The ways of metering an input with media, none above the window.

    The window is filled with what costs most first: audio, then images, then text.
    """
    text += media.document_tokens
    bundles = [_bundle(window, audio=media.audio_tokens, text=text + media.image_tokens)]
    if media.image_tokens:
        bundles.append(
            _bundle(window, audio=media.audio_tokens, image=media.image_tokens, text=text)
        )
    if media.audio_seconds:
        bundles.append(
            _bundle(window, text=text + media.image_tokens) | {"second": media.audio_seconds}
        )
    return bundles


def _bundle(window: int | None, *, audio: int = 0, image: int = 0, text: int) -> Usage:
    usage: Usage = {}
    for unit, tokens in (
        ("input_audio_token", audio),
        ("input_image_token", image),
        ("input_token", text),
    ):
        fits = _within(tokens, window)
        if fits:
            usage[unit] = fits
        if window is not None:
            window -= fits
    return usage


def _read_messages(raw: Raw, facts: ModelFacts) -> tuple[_Media, int]:
    """Walk through messages of any shape: what they hold and how many they are."""
    try:
        messages = _any_decoder.decode(raw)
    except RecursionError:
        raise BadRequest("messages is nested too deeply", "messages") from None
    except DECODE_ERRORS:
        raise BadRequest("messages must be readable JSON in UTF-8", "messages") from None
    if not isinstance(messages, list):
        raise BadRequest("messages must be a list of messages", "messages")
    media = _Media()
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise BadRequest(
                f"messages[{index}] must be an object with a role and content", "messages"
            )
        for name, member in message.items():
            if name == "content":
                _read_content(member, f"messages[{index}].content", media, facts)
            elif name != "role":
                media.text_bytes += _strings_bytes(member)
    return media, len(messages)


def _read_content(content: object, param: str, media: _Media, facts: ModelFacts) -> None:
    if content is None:
        return
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            media.text_bytes += utf8_len(part)
        elif isinstance(part, dict) and content is not part:
            _read_part(part, media, facts)
        else:
            raise BadRequest(f"{param} must be text or a list of parts", param)


def _read_part(part: dict[str, object], media: _Media, facts: ModelFacts) -> None:
    kind = part.get("type")
    if kind == "image_url":
        image = part.get("image_url")
        # Mistral and some others put the detail beside the address.
        detail = image.get("detail") if isinstance(image, dict) else part.get("detail")
        media.image_tokens += facts.image_tokens_low if detail == "low" else facts.image_tokens_max
    elif kind == "input_audio" or kind == "audio_url":
        _read_audio(part.get(kind), media, facts)
    elif kind == "file" or (isinstance(kind, str) and kind.endswith("_url")):
        media.document_tokens += _document_tokens(part.get(kind, part), facts)
    else:
        media.text_bytes += _strings_bytes([v for name, v in part.items() if name != "type"])


def _content_size(value: object, *names: str) -> int | None:
    """Bytes of what `value` holds in base64; None if it only refers to something elsewhere."""
    if isinstance(value, dict):
        value = next((value[name] for name in names if isinstance(value.get(name), str)), None)
    if not isinstance(value, str) or value.startswith(("http://", "https://")):
        return None
    return -(-3 * len(value) // 4)


def _read_audio(audio: object, media: _Media, facts: ModelFacts) -> None:
    size = _content_size(audio, "data", "url")
    format = audio.get("format") if isinstance(audio, dict) else None
    pcm = isinstance(format, str) and format in _PCM_FORMATS
    if size is None:
        seconds = facts.audio_seconds_unknown
    else:
        seconds = -(-size // (_PCM_BYTES_PER_SECOND if pcm else _COMPRESSED_BYTES_PER_SECOND))
    media.audio_seconds += seconds
    media.audio_tokens += seconds * facts.audio_tokens_per_second


def _document_tokens(document: object, facts: ModelFacts) -> int:
    size = _content_size(document, "file_data", "url")
    if size is None:
        return facts.context_window or _DOCUMENT_TOKENS_UNKNOWN
    return max(facts.image_tokens_max, _tokens(size, facts))


def _strings_bytes(value: object) -> int:
    """UTF-8 bytes of every string in `value`, member names included."""
    # A list of what is still to be looked at, not recursion: strangers choose the depth.
    size = 0
    rest = [value]
    while rest:
        item = rest.pop()
        if isinstance(item, str):
            size += utf8_len(item)
        elif isinstance(item, dict):
            rest += item
            rest += item.values()
        elif isinstance(item, list):
            rest += item
    return size


def estimate_chat(ceiling_input: Usage, output_bytes: int, facts: ModelFacts) -> Usage:
    """What to bill for an answer whose usage the provider never reported.

    The input of the bundle `ceiling_input` (its output is left out) and the text that was seen,
    `output_bytes` of it, as `output_token`.
    """
    usage = {unit: n for unit, n in ceiling_input.items() if unit not in _OUTPUT_UNITS}
    if output_bytes > 0:
        usage["output_token"] = _tokens(output_bytes, facts)
    return usage


def output_tokens(output_bytes: int, deltas: int, facts: ModelFacts) -> int:
    """The most tokens that a text, come in so many pieces, was generated as."""
    return max(deltas, _tokens(output_bytes, facts))


# The other endpoints.


def embeddings_ceiling(request: Mapping[str, Raw], facts: ModelFacts) -> Ceiling:
    """The most that embeddings can use: token arrays exactly, text by its bytes.

    Each input is limited to the context window by itself. There is no output.
    """
    expected = "text, a list of texts, a list of tokens or a list of lists of tokens"
    raw = _given(request, "input")
    if raw is None:
        raise BadRequest(f"input is required: {expected}", "input")
    value = _decoded(_embedding_decoder, raw, "input", expected)
    window = facts.context_window
    tokens = 0
    single = 0
    for item in [value] if isinstance(value, str) else value:
        if isinstance(item, str):
            tokens += _within(_tokens(utf8_len(item), facts) + _INPUT_MARKS, window)
        elif isinstance(item, list):
            tokens += _within(len(item), window)
        else:
            single += 1
    if single:
        if single != len(value):
            raise BadRequest(f"input must be {expected}, not a mixture", "input")
        tokens = _within(single, window)
    return Ceiling(({"input_token": tokens} if tokens else {},))


_PAGE_RANGE: Final = re.compile(r"\s*([0-9]{1,9})\s*(?:-\s*([0-9]{1,9})\s*)?")


def ocr_ceiling(
    request: Mapping[str, Raw], facts: ModelFacts, document_pages: int | None
) -> Ceiling:
    """The most pages that OCR can process.

    `pages` of the request (a number, a list, or ranges such as `"0-3,7"`; each page counts
    once), at most `document_pages`, the pages of the document if it is in the request and could
    be read. An image is one page. With neither known the pages are `open`.
    """
    raw = _given(request, "document")
    if raw is None:
        raise BadRequest("document is required: an object with a type", "document")
    document = _decoded(_document_decoder, raw, "document", "an object with a type")
    raw = _given(request, "pages")
    asked = 0 if raw is None else _asked_pages(raw)
    if document.type == "image_url" or (document.type is None and _size(document.image_url)):
        return Ceiling(({"page": 1},))
    # A count below 1 comes from a document that could not be read.
    known = document_pages if document_pages is not None and document_pages > 0 else None
    if asked:
        return Ceiling(({"page": min(asked, facts.ocr_pages_max if known is None else known)},))
    if known is not None:
        return Ceiling(({"page": known},))
    return Ceiling(({},), OpenQuantity("page", facts.ocr_pages_max, facts.ocr_pages_max))


def _asked_pages(raw: Raw) -> int:
    """How many distinct pages are asked for; 0 for an empty list or text, which mean all."""
    expected = 'a list of page numbers from 0, or text such as "0-3,7"'
    value = _decoded(_pages_decoder, raw, "pages", expected)
    wrong = BadRequest(f"pages must be {expected}", "pages")
    if isinstance(value, str):
        return _pages_in_ranges(value, wrong) if value.strip() else 0
    pages = {value} if isinstance(value, int) else set(value)
    if pages and not 0 <= min(pages) <= max(pages) <= COUNT_MAX:
        raise wrong
    return len(pages)


def _pages_in_ranges(text: str, wrong: BadRequest) -> int:
    ranges = []
    for part in text.split(","):
        match = _PAGE_RANGE.fullmatch(part)
        if match is None:
            raise wrong
        first = int(match[1])
        last = int(match[2] or first)
        if last < first:
            raise wrong
        ranges.append((first, last))
    # Counted without listing the pages: "0-999999999" is short to write.
    count = 0
    after = 0
    for first, last in sorted(ranges):
        count += max(0, last + 1 - max(first, after))
        after = max(after, last + 1)
    return count


def speech_ceiling(request: Mapping[str, Raw], facts: ModelFacts) -> Ceiling:
    """The most that speech can use.

    First what the characters (code points) of `input` cost, exactly; then, for models that are
    billed by tokens, text in and audio out. The latter is generous but no proof: how long a
    text is spoken depends on the voice and the instructions.
    """
    raw = _given(request, "input")
    if raw is None:
        raise BadRequest("input is required: the text to speak", "input")
    text = _decoded(_string_decoder, raw, "input", "text")
    raw = _given(request, "instructions")
    size = utf8_len(text)
    audio = size * _SPEECH_TOKENS_PER_BYTE + _SPEECH_TOKENS_LEAST
    tokens: Usage = {
        "input_token": _within(
            _tokens(size + (0 if raw is None else _size(raw)), facts)
            + _MESSAGE_TOKENS
            + _ANSWER_TOKENS,
            facts.context_window,
        ),
        "output_audio_token": _within(audio, facts.max_output_tokens),
    }
    return Ceiling(({"character": len(text)} if text else {}, tokens))


def transcription_ceiling(
    model_facts: ModelFacts, seconds: Decimal | None, prompt_bytes: int
) -> Ceiling:
    """The most that a transcription can use.

    `seconds` is the duration that the file's own header states, None (or nothing above zero) if
    it could not be read: then `audio_seconds_unknown`. First the seconds, exactly; then tokens:
    audio at `audio_tokens_per_second`, the prompt by its bytes, and of output 25 tokens a second
    and 100, twice what the fastest speech has, or the model's maximum if that is less.
    """
    if seconds is None or not seconds.is_finite() or seconds <= 0:
        seconds = Decimal(model_facts.audio_seconds_unknown)
    tokens: Usage = {
        "input_audio_token": ceil(seconds * model_facts.audio_tokens_per_second),
        "input_token": _tokens(max(0, prompt_bytes), model_facts) + _MESSAGE_TOKENS,
        "output_token": _within(
            ceil(seconds * _TRANSCRIPT_TOKENS_PER_SECOND) + _TRANSCRIPT_TOKENS_LEAST,
            model_facts.max_output_tokens,
        ),
    }
    return Ceiling(({"second": exact(seconds)}, tokens))
