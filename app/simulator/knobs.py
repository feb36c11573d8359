"""Knobs: everything that can be asked of the simulator beyond an ordinary answer.

Owns the closed set of knobs, their ranges, and the four places they are set, each
overriding the one before: construction (`create_simulator(latency=0.2)`), runtime
(`PUT /_control {"latency": 0.2}`), headers of a request (`x-sim-chunk-delay: 0.05`,
or several in one `x-sim: latency=0.2 status=500`), and a directive in any text of the
request, because a gateway passes text through and headers not:

    [[sim latency=0.2 disconnect=after:3 text="two words"]]

A directive works in a message, an `input`, a document URL, a multipart field or the
model's name (an upstream model `gpt-4o[[sim usage=missing]]` is answered as `gpt-4o`).
Values are quoted like in a shell. It counts as prompt text like any other text.

Invariant: an unknown knob or a value out of range is refused aloud (status 400, code
`simulator_knob`), since a misspelt knob would make a test pass for the wrong reason.

Points. `disconnect`, `stall` and `error_event` name a point of the answer:
`before-headers`, `after:N` (N events or audio chunks were sent), `before-usage` (just
before what carries the usage, else before the end) or `before-done` (before `[DONE]`
or the last event). A JSON answer counts as two events, its halves; the usage is in the
second. `true` stands for `before-headers`.

A realtime session has the same points and three more: `seconds:N` (since its first
event), `bytes:N` (so much audio was appended) and `response:N` (the first delta of its
Nth response, in a transcription session its Nth transcript, was sent). There `close`
takes a point too, `before-headers` is before the handshake is answered (for `close` and
`error_event`, which need the socket, and in a directive: at once), and knobs come also
from a `sim` parameter of the address (`?model=m&sim=latency%3D0.2`). A directive holds
from the frame that brings it to the end of the session, one in a `response.create` for
that response. An HTTP request refuses what only a session can do.
"""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Seconds = Annotated[float, Meta(ge=0, le=86_400)]
Quantity = Annotated[int, Meta(ge=0, le=10**15)]
Point = Annotated[
    str,
    Meta(
        pattern=r"^(before-headers|before-usage|before-done|after:\d{1,9}"
        r"|seconds:\d{1,5}(\.\d{1,6})?|bytes:\d{1,12}|response:\d{1,9})$"
    ),
]

POINT_KNOBS = ("disconnect", "stall", "error_event", "close")
SESSION_POINTS = ("seconds:", "bytes:", "response:")


class Knobs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One consistent setting; the defaults are an ordinary, prompt provider."""

    # Who may call. None lets everybody in.
    api_key: str | None = "sim-key"

    # Time: before the headers, and before each event of a stream or chunk of audio.
    latency: Seconds = 0.0
    chunk_delay: Seconds = 0.0

    # Failure. `status` answers with that error (3xx redirects to /v1/models);
    # `message` replaces its text; `leak` puts the whole credential and the
    # simulator's own address into it; `refuse` names parameters to refuse, by commas.
    status: Annotated[int, Meta(ge=300, le=599)] | None = None
    message: str | None = None
    retry_after: Seconds | None = None
    leak: bool = False
    refuse: str = ""
    disconnect: Point | None = None
    stall: Point | None = None
    error_event: Point | None = None
    garbage: bool = False
    giant: Annotated[int, Meta(ge=0, le=2**30)] = 0

    # How a stream's bytes are written: line ends, and pieces of N bytes or, with
    # `utf8`, a cut inside every character of more than one byte.
    crlf: bool = False
    split: Annotated[str, Meta(pattern=r"^(utf8|[1-9]\d{0,6})$")] | None = None

    # What is answered. `answer_tokens` is the length an answer has if the request's
    # maximum leaves it room; `text` replaces the answer's text (and so its length).
    answer_tokens: Annotated[int, Meta(ge=0, le=1_000_000)] = 16
    text: str | None = None
    tool_call: bool = False
    end: Literal["completed", "incomplete", "failed"] = "completed"

    # What is reported. `tokens_in`, `tokens_out`, `pages` and `seconds` are reported
    # exactly, even above the request's maximum; the others are parts of the whole.
    usage: Literal["normal", "missing", "on_choices", "twice"] = "normal"
    tokens_in: Quantity | None = None
    tokens_out: Quantity | None = None
    cached: Quantity = 0
    cache_write: Quantity = 0
    reasoning: Quantity = 0
    audio_in: Quantity = 0
    audio_out: Quantity = 0
    seconds: Seconds | None = None
    pages: Quantity | None = None

    # A realtime session (with `usage=twice`: the event that carries it comes again).
    # `close` ends it with `close_code`. `pace` is how many times faster than it is
    # spoken sound is sent, 0 at once. Speech ends after `vad_seconds` of sound.
    # `usage_delay` holds back the event that carries the usage. `cached_share` is the
    # part of each input, text and sound alike, that was cached. `claim_model` is named
    # by `session.updated` instead of the model in force. `transcriber` transcribes in a
    # transcription session until the client chooses; with "" nothing does.
    close: Point | None = None
    close_code: Annotated[int, Meta(ge=1000, le=4999)] = 1000
    pace: Annotated[float, Meta(ge=0, le=1_000_000)] = 1.0
    vad_seconds: Seconds = 2.0
    usage_delay: Seconds = 0.0
    cached_share: Annotated[float, Meta(ge=0, le=1)] = 0.0
    claim_model: str | None = None
    transcriber: str = "gpt-4o-transcribe"

    # Length of a document that cannot be looked into (a remote URL, a file id).
    remote_pages: Annotated[int, Meta(ge=0, le=100_000)] = 3

    # Only with `PUT /_control`: what was put holds for this many calls, then the
    # knobs of the construction return.
    times: Annotated[int, Meta(ge=1)] | None = None

    @property
    def refused_parameters(self) -> frozenset[str]:
        return frozenset(name.strip() for name in self.refuse.split(",") if name.strip())

    def check_http(self) -> None:
        """Refuse aloud what only a realtime session can do."""
        if self.close is not None or self.usage == "twice":
            raise KnobError("simulator knob: `close` and `usage=twice` are for realtime sessions")
        for name in POINT_KNOBS:
            point = getattr(self, name)
            if point is not None and point.startswith(SESSION_POINTS):
                raise KnobError(f"simulator knob: {name}={point} is for realtime sessions")


class KnobError(ValueError):
    """A knob that does not exist or a value it does not take."""


def merged(base: Knobs, changes: Mapping[str, Any]) -> Knobs:
    """`base` with `changes`, whose values may be text (`"0.2"`, `"true"`)."""
    values = msgspec.structs.asdict(base)
    for name, value in changes.items():
        if name in POINT_KNOBS and value in (True, "true"):
            value = "before-headers"
        values[name] = value
    try:
        return msgspec.convert(values, Knobs, strict=False)
    except msgspec.ValidationError as error:
        raise KnobError(f"simulator knob: {error}") from None


_DIRECTIVE = re.compile(r"\[\[sim\s+(.*?)\]\]", re.DOTALL)
DIRECTIVE_MARK = "[[sim"
DIRECTIVE_MARK_BYTES = DIRECTIVE_MARK.encode()


def without_directives(text: str) -> str:
    return _DIRECTIVE.sub("", text).strip() if DIRECTIVE_MARK in text else text


def from_assignments(text: str) -> dict[str, str]:
    """The changes that `latency=0.2 text="two words"` asks for."""
    changes = {}
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise KnobError(f"simulator knob: {error} in {text!r}") from None
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise KnobError(f"simulator knob: {word!r} is not name=value")
        changes[name.replace("-", "_")] = value
    return changes


def from_texts(value: object) -> dict[str, str]:
    """The changes that directives anywhere inside a decoded body ask for."""
    changes: dict[str, str] = {}
    for text in _strings(value):
        if DIRECTIVE_MARK in text:
            for match in _DIRECTIVE.finditer(text):
                changes.update(from_assignments(match[1]))
    return changes


def from_headers(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    changes: dict[str, str] = {}
    for name, value in headers:
        if name == b"x-sim":
            changes.update(from_assignments(value.decode("latin-1")))
        elif name.startswith(b"x-sim-"):
            changes[name[6:].decode("latin-1").replace("-", "_")] = value.decode("latin-1")
    return changes


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
