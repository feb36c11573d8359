"""The registry: one row per endpoint of the data plane.

Owns what differs between endpoints: how the request is read, the most it can use, how the answer
is metered, what is billed when the provider reports nothing, and how a granted maximum is written
into the request. The path that all of them take is `exchange`.

Invariants: every row meters into units of the glossary; reading raises nothing but `BadRequest`;
a request is rebuilt only for the model's name, a clamped maximum and forced usage reporting.
"""

import asyncio
import base64
import binascii
import re
import secrets
import wave
from collections.abc import Awaitable, Callable
from decimal import Decimal
from io import BytesIO
from typing import Any, Literal

import msgspec
import multipart
from msgspec import Raw
from pypdf import PdfReader
from pypdf.errors import PyPdfError
from tinytag import TinyTag
from tinytag.tinytag import TinyTagException

from app.core import ceilings, metering, sse
from app.core.access import Model, Provider
from app.core.ceilings import BadRequest, Ceiling, ModelFacts
from app.core.ledger import REALTIME
from app.core.metering import DECODE_ERRORS, Usage
from app.settings import Settings

THREAD_ABOVE_BYTES = 200_000
"""Audio above this is looked into in a thread: the event loop has other calls to serve."""

_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_text = msgspec.json.Decoder(str).decode
_encode = msgspec.json.Encoder().encode


class Request:
    """A request as far as its endpoint needs to understand it."""

    __slots__ = (
        "content_type",
        "document",
        "fields",
        "forces_usage",
        "model",
        "parts",
        "stream",
        "wants_usage",
    )

    def __init__(self, model: str, content_type: str) -> None:
        self.model = model
        self.content_type = content_type
        self.stream = False
        self.wants_usage = False
        """Whether the client itself asked a stream to report its usage."""
        self.forces_usage = False
        """Whether we ask for it in the client's stead, and so hide it again."""
        self.fields: dict[str, Raw] = {}
        self.parts: list[Part] = []
        self.document: int | Decimal | None = None
        """What the document says of itself: its pages, or its seconds."""


class Part(msgspec.Struct):
    """One part of a multipart form, as it came."""

    name: str
    headers: list[tuple[str, str]]
    data: bytes


class Endpoint(msgspec.Struct, frozen=True):
    """One row of the registry."""

    name: str
    """As `models.endpoints` and the calls name it."""
    reader: Literal["json", "form", "frames"]
    answer: Literal["json", "binary", "frames"]
    ceiling: Callable[[Request, ModelFacts], Ceiling]
    meter: Callable[[bytes], Usage | None]
    """Usage from a whole answer, or None if it reports none."""
    estimate: Callable[[bytes, Usage, ModelFacts], Usage]
    """What to bill for a whole answer without usage, given the ceiling's dearest bundle."""
    stream_meter: Callable[[bool], sse.ChatStreamMeter] | None = None
    document: Callable[[Request], Awaitable[None]] | None = None
    """Looks into the document of a request, where the ceiling depends on it."""
    extendable: Callable[[Request, str], bool] | None = None
    """Whether all that a stream generates can be seen, so that its hold can grow as it flows."""
    clamp: Callable[[Request, Provider, str, int], None] | None = None
    """Writes the granted maximum into the request, as the provider's model understands it."""

    @property
    def path(self) -> str:
        """The path below a provider's `/v1`, and ours."""
        return f"/{self.name}"


def facts_of(model: Model, settings: Settings) -> ModelFacts:
    """Return what a ceiling needs to know of a model."""
    return ModelFacts(
        bytes_per_token=model.bytes_per_token,
        context_window=model.context_window,
        max_output_tokens=model.max_output_tokens,
        image_tokens_max=model.image_tokens_max,
        output_tokens_default=settings.output_tokens_default,
        ocr_pages_max=settings.ocr_pages_max,
        audio_seconds_unknown=settings.audio_seconds_unknown,
    )


# Reading


def read_json(body: bytes, content_type: str) -> Request:
    """Read a JSON object; of a name that comes twice the last one counts, here and upstream."""
    try:
        fields = _decode_fields(body)
    except DECODE_ERRORS as error:
        raise BadRequest(f"The body must be a JSON object: {_reason(error)}.", "") from None
    request = Request(_model_of(fields.get("model")), content_type)
    request.fields = fields
    stream = fields.get("stream")
    if stream is not None:
        flag = bytes(stream)
        if flag not in (b"true", b"false", b"null"):
            raise BadRequest("`stream` must be true or false.", "stream")
        request.stream = flag == b"true"
    if request.stream:
        request.wants_usage = _wants_usage(fields.get("stream_options"))
    return request


def read_form(body: bytes, content_type: str) -> Request:
    """Read a multipart form; fields that decide about the call may come only once."""
    kind, options = multipart.parse_options_header(content_type)
    boundary = options.get("boundary")
    if kind != "multipart/form-data" or not boundary:
        raise BadRequest("The body must be multipart/form-data with a boundary.", "")
    parts: list[Part] = []
    try:
        with multipart.PushMultipartParser(
            boundary, max_segment_count=64, max_segment_size=len(body) + 1, strict=False
        ) as parser:
            for event in parser.parse(body):
                if isinstance(event, multipart.MultipartSegment):
                    parts.append(Part(event.name, list(event.headerlist), b""))
                elif event:
                    parts[-1].data += bytes(event)
    except multipart.MultipartError as error:
        raise BadRequest(f"The multipart body is broken: {error}.", "") from None
    single: dict[str, Part] = {}
    for part in parts:
        if part.name in ("model", "file", "stream", "response_format", "prompt"):
            if part.name in single:
                raise BadRequest(f"`{part.name}` may be given only once.", part.name)
            single[part.name] = part
    if "file" not in single:
        raise BadRequest("`file` is missing.", "file")
    if "model" not in single:
        raise BadRequest("`model` is missing.", "model")
    request = Request(_checked_model(_text_of(single["model"])), content_type)
    request.parts = parts
    if "stream" in single and _text_of(single["stream"]).lower() not in ("false", "0", ""):
        raise BadRequest("Streamed transcriptions are not served; leave `stream` out.", "stream")
    return request


def _text_of(part: Part) -> str:
    try:
        return part.data.decode()
    except UnicodeDecodeError:
        raise BadRequest(f"`{part.name}` must be text in UTF-8.", part.name) from None


def _model_of(raw: Raw | None) -> str:
    if raw is None:
        raise BadRequest("`model` is missing.", "model")
    try:
        model = _decode_text(raw)
    except DECODE_ERRORS:
        raise BadRequest("`model` must be a string.", "model") from None
    return _checked_model(model)


def _checked_model(model: str) -> str:
    # It is recorded with a refusal, and a database takes no control characters.
    if not 1 <= len(model) <= 1000 or not model.isprintable():
        raise BadRequest("`model` must have from 1 to 1000 printable characters.", "model")
    return model


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


_decode_options = msgspec.json.Decoder(_StreamOptions | None).decode


def _wants_usage(raw: Raw | None) -> bool:
    if raw is None:
        return False
    try:
        options = _decode_options(raw)
    except DECODE_ERRORS:
        raise BadRequest(
            '`stream_options` must be an object such as {"include_usage": true}.',
            "stream_options",
        ) from None
    return options is not None and options.include_usage is True


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".")[:200] if str(error) else "it cannot be read"


# Rebuilding


def body_for(request: Request, endpoint: Endpoint, upstream_model: str) -> tuple[bytes, str]:
    """Return the body and content type to send upstream."""
    if endpoint.reader == "form":
        return _form_bytes(request, upstream_model)
    fields = request.fields
    if upstream_model != request.model:
        fields["model"] = Raw(_encode(upstream_model))
    if request.forces_usage:
        fields["stream_options"] = Raw(_forced_usage(fields.get("stream_options")))
    return _encode(fields), "application/json"


def _forced_usage(raw: Raw | None) -> bytes:
    try:
        options = msgspec.json.decode(raw, type=dict[str, Raw]) if raw is not None else {}
    except DECODE_ERRORS:
        options = {}
    options["include_usage"] = Raw(b"true")
    return _encode(options)


def _form_bytes(request: Request, upstream_model: str) -> tuple[bytes, str]:
    boundary = secrets.token_hex(16)
    pieces: list[bytes] = []
    for part in request.parts:
        pieces.append(f"--{boundary}\r\n".encode())
        for name, value in part.headers:
            pieces.append(f"{name}: {value}\r\n".encode("utf-8", "surrogateescape"))
        data = upstream_model.encode() if part.name == "model" else part.data
        pieces += [b"\r\n", data, b"\r\n"]
    pieces.append(f"--{boundary}--\r\n".encode())
    return b"".join(pieces), f"multipart/form-data; boundary={boundary}"


_NEW_NAME = re.compile(r"(openai/)?(o[1-9]|gpt-[5-9])")


def _shows_all(request: Request, model: str) -> bool:
    # These think where nobody sees it: a maximum must bound what cannot be watched.
    hidden = _NEW_NAME.match(model) is not None or "reasoning_effort" in request.fields
    return not hidden and "reasoning" not in request.fields


def _clamp_tokens(request: Request, provider: Provider, model: str, granted: int) -> None:
    # OpenAI's newer models refuse the old name; other providers know no other.
    new = provider.kind in ("openai", "azure") or _NEW_NAME.match(model) is not None
    request.fields["max_completion_tokens" if new else "max_tokens"] = Raw(str(granted).encode())


def _clamp_pages(request: Request, provider: Provider, model: str, granted: int) -> None:
    request.fields["pages"] = Raw(_encode(list(range(granted))))


# Documents


async def _count_pages(request: Request) -> None:
    raw = request.fields.get("document")
    if raw is None:
        raise BadRequest("`document` is missing.", "document")
    address = _document_address(raw)
    if address is None or not address.startswith("data:"):
        return
    header, _, payload = address.partition(",")
    if "image/" in header:
        request.document = 1
    elif "pdf" in header:
        # Never on the loop: a small file can describe a very large tree of pages.
        request.document = await asyncio.to_thread(_pdf_pages, payload)


class _Document(msgspec.Struct):
    document_url: str | None = None


_decode_document = msgspec.json.Decoder(_Document).decode


def _document_address(raw: Raw) -> str | None:
    try:
        return _decode_document(raw).document_url
    except DECODE_ERRORS:
        return None


def _pdf_pages(payload: str) -> int | None:
    try:
        return len(PdfReader(BytesIO(base64.b64decode(payload))).pages) or None
    except (PyPdfError, binascii.Error, ValueError, KeyError, TypeError, RecursionError):
        # Whatever it is, the provider decides; the ceiling falls back to the setting.
        return None
    except Exception:
        return None


async def _measure_audio(request: Request) -> None:
    part = next(part for part in request.parts if part.name == "file")
    filename = next(
        (
            match[1]
            for name, value in part.headers
            if name.lower() == "content-disposition"
            and (match := re.search(r'filename="?([^";]*)', value))
        ),
        "",
    )
    if len(part.data) <= THREAD_ABOVE_BYTES:
        request.document = audio_seconds(part.data, filename)
    else:
        request.document = await asyncio.to_thread(audio_seconds, part.data, filename)


def audio_seconds(data: bytes, filename: str = "") -> Decimal | None:
    """Return how long an audio file plays by its own header, or None if it does not say.

    A WAV header that claims far less than the file holds is not believed.
    """
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        try:
            with wave.open(BytesIO(data)) as file:
                bytes_per_second: int = (
                    file.getframerate() * file.getnchannels() * file.getsampwidth()
                )
                start = data.find(b"data") + 8
                held = max(0, len(data) - start)
                claimed = file.getnframes() * file.getnchannels() * file.getsampwidth()
                # A length not yet known is written as all ones or 0, and anyone can write 1 second
                # before an hour: then the file itself is the measure. A little more is metadata.
                honest = claimed <= held <= 2 * claimed + 65_536
                size = claimed if honest else held
                if bytes_per_second > 0:
                    return Decimal(size) / bytes_per_second
        except (wave.Error, EOFError):
            pass
    try:
        tag = TinyTag.get(filename=filename or None, file_obj=BytesIO(data))
    except (TinyTagException, OSError, ValueError, KeyError, IndexError, TypeError):
        return None
    except Exception:
        return None
    if tag.duration is None or not 0 < tag.duration < 10**7:
        return None
    return Decimal(str(float(tag.duration)))


# Ceilings and estimates


def _chat_ceiling(request: Request, facts: ModelFacts) -> Ceiling:
    return ceilings.chat_ceiling(request.fields, facts)


def _embeddings_ceiling(request: Request, facts: ModelFacts) -> Ceiling:
    return ceilings.embeddings_ceiling(request.fields, facts)


def _ocr_ceiling(request: Request, facts: ModelFacts) -> Ceiling:
    pages = request.document
    return ceilings.ocr_ceiling(request.fields, facts, None if pages is None else int(pages))


def _speech_ceiling(request: Request, facts: ModelFacts) -> Ceiling:
    return ceilings.speech_ceiling(request.fields, facts)


def _transcription_ceiling(request: Request, facts: ModelFacts) -> Ceiling:
    prompt = next((len(part.data) for part in request.parts if part.name == "prompt"), 0)
    seconds = None if request.document is None else Decimal(request.document)
    return ceilings.transcription_ceiling(facts, seconds, prompt)


def _chat_estimate(body: bytes, dearest: Usage, facts: ModelFacts) -> Usage:
    return ceilings.estimate_chat(dearest, _chat_text_bytes(body), facts)


class _Message(msgspec.Struct):
    content: Any = None
    reasoning_content: Any = None
    tool_calls: Any = None


class _Choice(msgspec.Struct):
    message: _Message | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice] = []


_decode_completion = msgspec.json.Decoder(_Completion).decode


def _chat_text_bytes(body: bytes) -> int:
    try:
        completion = _decode_completion(body)
    except DECODE_ERRORS:
        return len(body)
    return sum(
        len(_encode(part))
        for choice in completion.choices
        if (said := choice.message) is not None
        for part in (said.content, said.reasoning_content, said.tool_calls)
        if part is not None
    )


def _dearest(body: bytes, dearest: Usage, facts: ModelFacts) -> Usage:
    return dearest


def _pages_estimate(body: bytes, dearest: Usage, facts: ModelFacts) -> Usage:
    # An answer that tells no pages had one at least.
    return dearest or {"page": 1}


def _nothing(body: bytes) -> Usage | None:
    return None


def _as_it_goes(request: Request, facts: ModelFacts) -> Ceiling:
    # A session is held for slice by slice: see `core.realtime`.
    return Ceiling(({},))


ENDPOINTS: dict[str, Endpoint] = {
    row.name: row
    for row in (
        Endpoint(
            name="chat/completions",
            reader="json",
            answer="json",
            ceiling=_chat_ceiling,
            meter=metering.meter_chat,
            estimate=_chat_estimate,
            stream_meter=sse.ChatStreamMeter,
            extendable=_shows_all,
            clamp=_clamp_tokens,
        ),
        Endpoint(
            name="embeddings",
            reader="json",
            answer="json",
            ceiling=_embeddings_ceiling,
            meter=metering.meter_embeddings,
            estimate=_dearest,
        ),
        Endpoint(
            name="ocr",
            reader="json",
            answer="json",
            ceiling=_ocr_ceiling,
            meter=metering.meter_ocr,
            estimate=_pages_estimate,
            document=_count_pages,
            clamp=_clamp_pages,
        ),
        Endpoint(
            name="audio/speech",
            reader="json",
            answer="binary",
            ceiling=_speech_ceiling,
            meter=_nothing,
            estimate=_dearest,
        ),
        Endpoint(
            name="audio/transcriptions",
            reader="form",
            answer="json",
            ceiling=_transcription_ceiling,
            meter=metering.meter_transcription,
            estimate=_dearest,
            document=_measure_audio,
        ),
    )
}
"""By name. Another endpoint is another row."""

SESSIONS = Endpoint(
    name=REALTIME,
    reader="frames",
    answer="frames",
    ceiling=_as_it_goes,
    meter=_nothing,
    estimate=_dearest,
)
"""The one endpoint that is no request and answer: `/v1/realtime`."""
