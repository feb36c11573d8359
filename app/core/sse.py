"""Server-sent events without I/O: splitting a byte stream, reading usage, saying what may leave.

Owns the event framing and, for each API that streams, which bytes go to the client now, which
only after settlement, and what the stream has used so far. Does not own sockets, time-outs,
the hold of the call, or what to bill when `usage` stays None (`ceilings.estimate_chat`).

Invariants:

- Bytes are forwarded as the provider sent them, in order, one event at a time. Only two things
  are ever withheld from a client, both because it did not ask for usage: an event that holds
  nothing else, and the value of the `usage` member of an event that does.
- Once an output is `final`, all later outputs are: a client has never seen the end of an answer
  that is not in the books.
- No bytes raise; an event that cannot be read is forwarded and meters nothing.
- Time is linear in the bytes, however they are cut.

An unfinished event is kept in memory until it ends: the gateway bounds what it reads.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from typing import Any, Final, Literal, NamedTuple

import msgspec
from msgspec import Raw

from app.core import metering
from app.core.metering import (
    DECODE_ERRORS,
    ChatUsageWire,
    MessagesUsageWire,
    TokensUsageWire,
    Usage,
    utf8_len,
)

# A line ends with CRLF, LF or CR and an event with an empty line. Atomic, so that a CRLF is
# never taken for two ends of line.
_EVENT_END: Final = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_EVENT_END_MOST: Final = 4

_CR: Final = 0x0D


class SseSplitter:
    """Cuts a stream of bytes into raw events, each with the empty line that ends it.

    The concatenation of everything `feed` and `flush` return is the input. Surplus empty lines
    become events without data, or the beginning of the next event.
    """

    __slots__ = ("_buffer", "_has_cr", "_scan")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._scan = 0  # where the end of the buffered event may begin, at the earliest
        self._has_cr = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events that `chunk` completes."""
        buffer = self._buffer
        # Most chunks are whole events: they are cut without passing through the buffer.
        data: bytes | bytearray = chunk
        if buffer:
            buffer += chunk
            data = buffer
        if not self._has_cr and _CR in chunk:
            self._has_cr = True
        events: list[bytes] = []
        start = 0
        scan = self._scan
        while True:
            end = self._end(data, scan)
            if end < 0:
                break
            events.append(bytes(data[start:end]))
            start = scan = end
        if data is buffer:
            del buffer[:start]
        else:
            buffer += chunk[start:]
        self._scan = max(0, len(buffer) - _EVENT_END_MOST + 1)
        return events

    def flush(self) -> bytes:
        """What is left when the stream has ended: an event that nothing terminated, or b""."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        self._scan = 0
        return rest

    def _end(self, data: bytes | bytearray, scan: int) -> int:
        if not self._has_cr:
            found = data.find(b"\n\n", scan)
            return found + 2 if found >= 0 else -1
        match = _EVENT_END.search(data, scan)
        if match is None:
            return -1
        end = match.end()
        # A CR that is the last byte may be half of a CRLF: the next byte tells.
        return -1 if end == len(data) and data[-1] == _CR else end


def data_of(event: bytes) -> bytes | None:
    """The event's data lines joined by LF, or None if it has none (a comment, an id)."""
    # One data line ended by LF LF, as nearly all events are.
    if (
        event.startswith(b"data: ")
        and event.find(b"\n", 6) == len(event) - 2
        and event.find(b"\r") < 0
    ):
        return event[6:-2]
    lines = [
        line[6:] if line.startswith(b"data: ") else line[5:]
        for line in event.removeprefix(b"\xef\xbb\xbf").splitlines()
        if line.startswith(b"data:") or line == b"data"
    ]
    return b"\n".join(lines) if lines else None


class Out(NamedTuple):
    """Bytes for the client. `final`: only after the settlement has committed."""

    data: bytes
    final: bool


# Where an event goes: on; on, unless the stream ends right after it; or behind the settlement.
_Place = Literal["pass", "hold", "last"]


class _StreamMeter(ABC):
    """What the meters of all streams share: framing, order, and the wait for the settlement."""

    def __init__(self, hide_usage: bool = False) -> None:
        self.hide_usage: Final = hide_usage
        self.usage: Usage | None = None
        """The usage last reported; None until then."""
        self.done = False
        """The provider said that the answer is complete."""
        self.error = False
        """The provider sent an error inside the stream."""
        self.output_bytes = 0
        """UTF-8 bytes of the text generated so far, reasoning and tool calls included."""
        self.delta_count = 0
        """How many deltas carried generated text."""
        self.bytes_reported = 0
        self.deltas_reported = 0
        """How much of both there was when usage was last reported: it knows of no more."""
        self.model: str | None = None
        """The model that answers, in the provider's words."""
        self._splitter = SseSplitter()
        self._held: list[bytes] = []

    def feed(self, chunk: bytes) -> list[Out]:
        """What the provider's next bytes let through: at most one output of each kind."""
        now: list[bytes] = []
        final: list[bytes] = []
        for event in self._splitter.feed(chunk):
            self._take(event, now, final)
        outs = []
        if now:
            outs.append(Out(now[0] if len(now) == 1 else b"".join(now), False))
        if final:
            outs.append(Out(b"".join(final), True))
        return outs

    def end(self) -> list[Out]:
        """What is left when the provider has closed the stream: all of it is final."""
        pieces: list[bytes] = []
        if rest := self._splitter.flush():
            self._take(rest, pieces, pieces)
        # Not before the rest is read: it may have released what is held.
        pieces += self._held
        self._held.clear()
        return [Out(b"".join(pieces), True)] if pieces else []

    def _take(self, event: bytes, now: list[bytes], final: list[bytes]) -> None:
        if self.done:
            final.append(event)
            return
        data = data_of(event)
        if data is None:
            # A comment says nothing about whether the answer goes on.
            (self._held if self._held else now).append(event)
            return
        place, forward = self._read(event, data)
        if place == "hold":
            self._held.append(forward)
            return
        if place == "last":
            self.done = True
            now = final
        if self._held:
            now += self._held
            self._held.clear()
        if forward:
            now.append(forward)

    @abstractmethod
    def _read(self, event: bytes, data: bytes) -> tuple[_Place, bytes]:
        """Meter one event; say where it goes and which of its bytes."""

    def _generated(self, size: int) -> None:
        if size:
            self.output_bytes += size
            self.delta_count += 1

    def _reported(self, usage: Usage | None) -> None:
        self.usage = usage
        self.bytes_reported = self.output_bytes
        self.deltas_reported = self.delta_count

    def _name_model(self, model: object) -> None:
        if self.model is None and isinstance(model, str) and model:
            self.model = model


def _text_bytes(value: object) -> int:
    """UTF-8 bytes of every string in a decoded delta, but for its labels."""
    # A list of what is still to be looked at, not recursion: strangers choose the depth.
    size = 0
    rest = [value]
    while rest:
        item = rest.pop()
        if isinstance(item, str):
            size += utf8_len(item)
        elif isinstance(item, dict):
            rest += [v for name, v in item.items() if name not in _LABELS]
        elif isinstance(item, list):
            rest += item
    return size


# Members of a delta that name things and are not generated, and what is not text: audio and
# signatures.
_LABELS: Final = frozenset({"role", "type", "id", "index", "data", "signature"})


def _loads(data: bytes | Raw) -> object:
    """The JSON value `data`, however odd, with numbers as floats; None if it is none.

    The standard library reads what msgspec refuses, such as half of a surrogate pair: some
    providers cut their deltas between the two.
    """
    text = bytes(data).decode("utf-8", "replace")
    try:
        return json.loads(text, parse_int=float)
    except (ValueError, RecursionError):
        return None


def _members(data: bytes | Raw) -> dict[str, Raw]:
    return metering.members_of(data) or {}


def _text(members: dict[str, Raw], name: str) -> str | None:
    value = _loads(members.get(name, b""))
    return value if isinstance(value, str) else None


# OpenAI-style chat.


class _Thought(msgspec.Struct, gc=False):
    text: str | None = None


class _Content(msgspec.Struct, gc=False):
    """A part of a delta's content (Mistral)."""

    text: str | None = None
    thinking: str | list[_Thought] | None = None


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct, gc=False):
    function: _Function | None = None


class _Audio(msgspec.Struct, gc=False):
    transcript: str | None = None


class _Delta(msgspec.Struct, gc=False):
    content: str | list[_Content] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None
    function_call: _Function | None = None
    audio: _Audio | None = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta | None = None


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: ChatUsageWire | None = None
    model: str | None = None
    error: Any = None


_chunk_decoder = msgspec.json.Decoder(_Chunk)


def _content_bytes(content: list[_Content]) -> int:
    size = 0
    for part in content:
        size += utf8_len(part.text or "")
        if isinstance(part.thinking, str):
            size += utf8_len(part.thinking)
        elif part.thinking is not None:
            size += sum(utf8_len(thought.text or "") for thought in part.thinking)
    return size


def _function_bytes(function: _Function | None) -> int:
    if function is None:
        return 0
    return utf8_len(function.name or "") + utf8_len(function.arguments or "")


def _delta_bytes(delta: _Delta) -> int:
    content = delta.content
    size = utf8_len(content) if isinstance(content, str) else _content_bytes(content or [])
    # Some servers send the same reasoning under both names.
    if reasoning := delta.reasoning_content or delta.reasoning:
        size += utf8_len(reasoning)
    if delta.refusal:
        size += utf8_len(delta.refusal)
    if delta.tool_calls:
        size += sum(_function_bytes(call.function) for call in delta.tool_calls)
    if delta.function_call is not None:
        size += _function_bytes(delta.function_call)
    if delta.audio is not None:
        size += utf8_len(delta.audio.transcript or "")
    return size


_ERROR_EVENT: Final = re.compile(rb"(?:^|[\r\n])event: ?error(?=[\r\n])")


class ChatStreamMeter(_StreamMeter):
    """Meters an OpenAI-style chat stream (OpenAI, Azure, Mistral and compatible).

    `hide_usage`: the client did not ask for usage, so an event with usage and no choices is
    swallowed and a usage object beside choices becomes null. Without it, an event with usage
    and no choices waits for the settlement, unless more of the answer follows.

    `usage` is the last readable report: providers that report on every chunk report running
    totals. `done` is `[DONE]`.
    """

    def _read(self, event: bytes, data: bytes) -> tuple[_Place, bytes]:
        if data[:1] != b"{" and data.strip() == b"[DONE]":
            return "last", event
        if b"event:" in event and _ERROR_EVENT.search(event):
            # Some say so in the name of the event alone.
            self.error = True
        try:
            chunk = _chunk_decoder.decode(data)
        except DECODE_ERRORS:
            return self._read_odd(event, data)
        if self.model is None:
            self._name_model(chunk.model)
        if chunk.error is not None:
            self.error = True
        choices = chunk.choices
        if choices:
            for choice in choices:
                if choice.delta is not None:
                    self._generated(_delta_bytes(choice.delta))
        if chunk.usage is None:
            return "pass", event
        return self._report(event, chunk.usage, bool(choices) or chunk.error is not None)

    def _read_odd(self, event: bytes, data: bytes) -> tuple[_Place, bytes]:
        members = _members(data)
        self._name_model(_text(members, "model"))
        error = bytes(members.get("error", b"null")) != b"null"
        if error:
            self.error = True
        choices = _loads(members.get("choices", b""))
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                self._generated(_text_bytes(choice.get("delta")))
        usage = members.get("usage", b"")
        if metering.members_of(usage) is None:
            return "pass", event
        return self._report(
            event, metering.read_loosely(usage, ChatUsageWire), bool(choices) or error
        )

    def _report(
        self, event: bytes, wire: ChatUsageWire | None, says_more: bool
    ) -> tuple[_Place, bytes]:
        usage = None if wire is None else metering.read_chat_usage(wire)
        if usage is not None:
            self._reported(usage)
        if says_more:
            return "pass", null_usage(event) if self.hide_usage else event
        return ("pass", b"") if self.hide_usage else ("hold", event)


_TOKEN: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\]]', re.DOTALL)
_DATA_OBJECT: Final = re.compile(rb"(?:^|[\r\n])data:\s*(?=\{)")
_OBJECT_VALUE: Final = re.compile(rb"\s*:\s*(?=\{)")


def null_usage(event: bytes) -> bytes:
    """`event` with the object of its top-level `usage` member replaced by null.

    Every other byte is as it was. An event whose data is no object comes back unchanged.
    """
    data = _DATA_OBJECT.search(event)
    if data is None:
        return event
    kept: list[bytes] = []
    copied = depth = 0
    value_at = -1
    for token in _TOKEN.finditer(event, data.end()):
        text = token[0]
        if text in b"{[":
            depth += 1
        elif text in b"}]":
            depth -= 1
            if depth == 1 and value_at >= 0:
                kept += (event[copied:value_at], b"null")
                copied = token.end()
                value_at = -1
            if depth == 0:
                break
        elif depth == 1 and text == b'"usage"':
            value = _OBJECT_VALUE.match(event, token.end())
            if value is not None:
                value_at = value.end()
    return b"".join((*kept, event[copied:])) if kept else event


# The Responses API.


class _ResponseBody(msgspec.Struct, gc=False):
    usage: TokensUsageWire | None = None
    model: str | None = None


class _ResponsesEvent(msgspec.Struct, gc=False):
    type: str = ""
    delta: Raw = Raw()
    response: _ResponseBody | None = None


_responses_decoder = msgspec.json.Decoder(_ResponsesEvent)
_any_decoder = msgspec.json.Decoder(Any, float_hook=float)

_RESPONSE_ENDS: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})


class ResponsesStreamMeter(_StreamMeter):
    """Meters a Responses API stream.

    `response.completed`, `response.incomplete` and `response.failed` each end the answer and
    carry its usage; from there on outputs are final. Clients always get usage here, so
    `hide_usage` changes nothing.
    """

    def _read(self, event: bytes, data: bytes) -> tuple[_Place, bytes]:
        try:
            read = _responses_decoder.decode(data)
        except DECODE_ERRORS:
            read = _odd_response(data)
        kind = read.type
        if kind.endswith(".delta"):
            # Media in base64 are not text.
            if not kind.endswith(("audio.delta", "image.delta")):
                self._generated(_raw_text_bytes(read.delta))
            return "pass", event
        if kind == "error" or kind == "response.failed":
            self.error = True
        response = read.response
        if response is not None:
            self._name_model(response.model)
            if response.usage is not None:
                usage = metering.read_tokens_usage(response.usage)
                if usage is not None:
                    self._reported(usage)
        return ("last" if kind in _RESPONSE_ENDS else "pass"), event


def _raw_text_bytes(raw: Raw) -> int:
    try:
        return _text_bytes(_any_decoder.decode(raw))
    except DECODE_ERRORS:
        return _text_bytes(_loads(raw))


def _odd_response(data: bytes) -> _ResponsesEvent:
    members = _members(data)
    response = _members(members.get("response", b""))
    return _ResponsesEvent(
        _text(members, "type") or "",
        members.get("delta", Raw()),
        _ResponseBody(
            metering.read_loosely(response.get("usage", b""), TokensUsageWire),
            _text(response, "model"),
        ),
    )


# Anthropic's Messages API.


class _Message(msgspec.Struct, gc=False):
    usage: MessagesUsageWire | None = None
    model: str | None = None


class _MessagesEvent(msgspec.Struct, gc=False):
    type: str = ""
    message: _Message | None = None
    usage: MessagesUsageWire | None = None
    delta: Raw = Raw()


_messages_decoder = msgspec.json.Decoder(_MessagesEvent)


class MessagesStreamMeter(_StreamMeter):
    """Meters an Anthropic messages stream.

    `message_start` reports the input, each `message_delta` the output so far; the reports are
    merged field by field. A `message_delta` waits for the settlement unless more of the answer
    follows; `message_stop` ends the answer. `hide_usage` changes nothing: clients always get
    usage here.
    """

    def __init__(self, hide_usage: bool = False) -> None:
        super().__init__(hide_usage)
        self._wire: MessagesUsageWire | None = None

    def _read(self, event: bytes, data: bytes) -> tuple[_Place, bytes]:
        try:
            read = _messages_decoder.decode(data)
        except DECODE_ERRORS:
            read = _odd_message(data)
        kind = read.type
        if kind == "content_block_delta":
            self._generated(_raw_text_bytes(read.delta))
            return "pass", event
        if kind == "message_stop":
            return "last", event
        if kind == "error":
            self.error = True
        if read.message is not None:
            self._name_model(read.message.model)
            self._merge(read.message.usage)
        self._merge(read.usage)
        return ("hold" if kind == "message_delta" else "pass"), event

    def _merge(self, wire: MessagesUsageWire | None) -> None:
        if wire is not None:
            self._wire = metering.merge_messages_usage(self._wire, wire)
            self._reported(metering.read_messages_usage(self._wire))


def _odd_message(data: bytes) -> _MessagesEvent:
    members = _members(data)
    message = _members(members.get("message", b""))
    return _MessagesEvent(
        _text(members, "type") or "",
        _Message(
            metering.read_loosely(message.get("usage", b""), MessagesUsageWire),
            _text(message, "model"),
        ),
        metering.read_loosely(members.get("usage", b""), MessagesUsageWire),
        members.get("delta", Raw()),
    )
