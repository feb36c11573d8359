"""Requests in, answers on the wire out: the formats of OpenAI, Mistral and Anthropic.

Owns what every endpoint accepts, answers and reports as usage. Does no I/O, knows no
connection and no fault of one; `server.py` does.

How usage is derived, so that a test can say the number before it calls:

- Text: `max(1, bytes // 4)` tokens, over the UTF-8 bytes of every string value in
  `messages`, `input`, `system`, `instructions`, `prompt`, `tools` and `functions` (a
  directive too), except those under `type`, `role`, `id` and the like. A list of token
  ids counts its length. Add 85 for each image or file part, and 10 per begun second of
  an `input_audio` part, which are reported as audio tokens.
- Answer: `answer_tokens` (16) words, one per token, cut at the request's maximum
  (`max_tokens`, `max_completion_tokens`, `max_output_tokens`) with the reason "length"
  and not otherwise, times `n`. `reasoning` tokens come first, inside the maximum. The
  `text` knob's own length follows the rule for text.
- Embeddings: the text of all inputs together; no output.
- OCR: the pages asked for that exist, else all; an image is one page.
- Transcription: 10 input tokens per begun second, 3 output tokens per begun second;
  models named `whisper...` report begun seconds instead, and text formats nothing.
- Speech: 60 ms of sound per character, no usage; but as SSE, the text's tokens in and
  20 per begun second out. Images: the prompt's tokens in; 272, 1056 or 4160 out by
  quality low, medium or high (default low) for each image.
- Knobs fix or add: `tokens_in`, `tokens_out`, `pages` and `seconds` replace the whole;
  `cached`, `cache_write` and `reasoning` are parts of it; `audio_in` and `audio_out`
  are added to a derived whole and are parts of a fixed one.

Invariants: parts never exceed their whole; the total is the sum of input and output;
the same request is answered with the same text, audio, vectors and usage (ids and
`created` differ, as anywhere). Models named like Mistral's are answered as Mistral
does: usage of a stream on its last choice, asked for or not.
"""

import base64
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Literal, NamedTuple, NoReturn

import msgspec

from app.simulator import media
from app.simulator.knobs import Knobs

ANSWER_TOKENS_DEFAULT = Knobs().answer_tokens
IMAGE_TOKENS = 85
AUDIO_TOKENS_PER_SECOND = 10
TRANSCRIPT_TOKENS_PER_SECOND = 3
SPEECH_TOKENS_PER_SECOND = 20
PICTURE_TOKENS = {"low": 272, "medium": 1056, "high": 4160}
SPEECH_CHARACTERS_MAX = 4096
DIMENSIONS_MAX = 8192
AUDIO_CHUNK_BYTES = 16_384

Family = Literal["openai", "azure", "mistral", "anthropic"]
# What an event is to the faults: it carries the usage, it says that all is done.
Tag = Literal["", "usage", "done", "end"]
Event = tuple[Tag, bytes]

encode = msgspec.json.encode


class Reply(msgspec.Struct, frozen=True):
    """An answer, in one piece (`body`) or many (`events`)."""

    status: int = 200
    media_type: bytes = b"application/json"
    body: bytes = b""
    events: Iterable[Event] | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Refusal(Exception):
    """An error answer, before it is put into a family's envelope."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.kind, self.code, self.param = kind, code, param


class Upload(NamedTuple):
    name: str
    data: bytes


class Request(msgspec.Struct, frozen=True):
    """One request, parsed: JSON, or the fields and files of a multipart form."""

    number: int
    family: Family
    model: str
    body: dict[str, Any]
    knobs: Knobs
    now: int
    files: dict[str, Upload] = {}


# --- Errors -----------------------------------------------------------------------------

_ANTHROPIC_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}

# What OpenAI says at a status: message, type, code.
_STATUS_ERRORS: dict[int, tuple[str, str, str | None]] = {
    400: ("The request was refused.", "invalid_request_error", None),
    401: ("Incorrect API key provided.", "invalid_request_error", "invalid_api_key"),
    403: (
        "You are not allowed to use this model.",
        "invalid_request_error",
        "model_not_available",
    ),
    404: ("The model does not exist.", "invalid_request_error", "model_not_found"),
    429: ("Rate limit reached for requests.", "requests", "rate_limit_exceeded"),
    500: ("The server had an error while processing your request.", "server_error", None),
    503: ("The engine is currently overloaded.", "server_error", None),
}


def status_refusal(status: int) -> Refusal:
    """The error that the `status` knob asks for."""
    message, kind, code = _STATUS_ERRORS.get(status, _STATUS_ERRORS[400 if status < 500 else 500])
    return Refusal(status, message, kind=kind, code=code)


def envelope(family: Family, refusal: Refusal, request_id: str) -> dict[str, Any]:
    """The error as this family writes it."""
    if family == "anthropic":
        kind = _ANTHROPIC_KINDS.get(
            refusal.status, "api_error" if refusal.status >= 500 else "invalid_request_error"
        )
        error = {"type": kind, "message": refusal.message}
        return {"type": "error", "error": error, "request_id": request_id}
    if family == "mistral":
        return {
            "object": "error",
            "message": refusal.message,
            "type": refusal.kind,
            "param": refusal.param,
            "code": refusal.code,
        }
    if family == "azure" and refusal.status in (401, 404):
        return {"error": {"code": str(refusal.status), "message": refusal.message}}
    return {
        "error": {
            "message": refusal.message,
            "type": refusal.kind,
            "param": refusal.param,
            "code": refusal.code,
        }
    }


def _missing(name: str) -> NoReturn:
    raise Refusal(
        400,
        f"Missing required parameter: '{name}'.",
        code="missing_required_parameter",
        param=name,
    )


def _invalid(name: str, wanted: str) -> NoReturn:
    raise Refusal(
        400, f"Invalid value for '{name}': expected {wanted}.", code="invalid_value", param=name
    )


def _integer(body: Mapping[str, Any], name: str, least: int, most: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        _invalid(name, f"an integer from {least} to {most}")
    return int(value)


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if value is None:
        _missing(name)
    if not isinstance(value, str):
        _invalid(name, "a string")
    return str(value)


# --- Tokens -----------------------------------------------------------------------------

_UNCOUNTED = frozenset(
    ("type", "role", "id", "tool_call_id", "call_id", "status", "detail", "format")
)
_IMAGE_PARTS = frozenset(("image_url", "input_image", "image", "file", "input_file", "document"))


def tokens_of_bytes(size: int) -> int:
    """The rule for text."""
    return max(1, size // 4)


class _Prompt:
    """What a prompt is made of; `add` walks any value of a request."""

    def __init__(self) -> None:
        self.text_bytes = self.token_ids = self.images = self.audio_tokens = 0

    def add(self, value: object) -> "_Prompt":
        if isinstance(value, str):
            self.text_bytes += len(value) if value.isascii() else len(value.encode())
        elif isinstance(value, list):
            if value and all(type(item) is int for item in value):
                self.token_ids += len(value)
            else:
                for item in value:
                    self.add(item)
        elif isinstance(value, dict):
            kind = value.get("type")
            if isinstance(kind, str) and kind in _IMAGE_PARTS:
                self.images += 1
            elif kind == "input_audio":
                self.audio_tokens += _audio_part_tokens(value.get("input_audio"))
            else:
                for name, item in value.items():
                    if name not in _UNCOUNTED:
                        self.add(item)
        return self

    @property
    def tokens(self) -> int:
        if self.token_ids and not self.text_bytes:
            return self.token_ids
        rest = self.token_ids + IMAGE_TOKENS * self.images + self.audio_tokens
        return tokens_of_bytes(self.text_bytes) + rest


def _audio_part_tokens(part: object) -> int:
    payload = part.get("data") if isinstance(part, dict) else part
    data = media.base64_bytes(payload) if isinstance(payload, str) else None
    seconds = media.audio_seconds(data) if data else None
    if seconds is None:
        _invalid("input_audio", "a readable audio file in base64")
    return max(1, math.ceil(seconds * AUDIO_TOKENS_PER_SECOND))


def text_bytes(value: object) -> int:
    """The bytes of a value's text, by the rule for text."""
    return _Prompt().add(value).text_bytes


def _prompt_of(body: Mapping[str, Any], *names: str) -> _Prompt:
    prompt = _Prompt()
    for name in names:
        prompt.add(body.get(name))
    return prompt


class _Usage(NamedTuple):
    """Whole quantities and their parts, consistent with each other."""

    tokens_in: int
    cached: int
    cache_write: int
    audio_in: int
    tokens_out: int
    reasoning: int
    audio_out: int

    @property
    def total(self) -> int:
        return self.tokens_in + self.tokens_out


def _usage(prompt: _Prompt, tokens_out: int, knobs: Knobs, reasoning: int = 0) -> _Usage:
    audio_in = knobs.audio_in + prompt.audio_tokens
    whole_in = knobs.tokens_in
    if whole_in is None:
        whole_in = prompt.tokens + knobs.audio_in
    whole_out = knobs.tokens_out
    if whole_out is None:
        whole_out = tokens_out + knobs.audio_out
    cached = min(knobs.cached, whole_in)
    cache_write = min(knobs.cache_write, whole_in - cached)
    reasoning = min(reasoning, whole_out)
    return _Usage(
        tokens_in=whole_in,
        cached=cached,
        cache_write=cache_write,
        audio_in=min(audio_in, whole_in - cached - cache_write),
        tokens_out=whole_out,
        reasoning=reasoning,
        audio_out=min(knobs.audio_out, whole_out - reasoning),
    )


# --- The text of an answer --------------------------------------------------------------

_SENTENCE = (
    "Every token of this answer is counted once and booked once so that the sum of all calls "
    "is the sum of all usage and nothing that was spent is ever lost again"
)
_WORDS = _SENTENCE.split()


@lru_cache(maxsize=64)
def words(count: int) -> tuple[str, ...]:
    """Text of `count` tokens, one a word."""
    return tuple(
        ("" if index == 0 else " ") + _WORDS[index % len(_WORDS)] for index in range(count)
    )


def _pieces_of(text: str) -> tuple[str, ...]:
    """`text` in as many pieces as it has tokens, none splitting a character."""
    if not text:
        return ()
    count = tokens_of_bytes(len(text.encode()))
    return tuple(
        text[index * len(text) // count : (index + 1) * len(text) // count]
        for index in range(count)
    )


class _Answer(NamedTuple):
    pieces: tuple[str, ...]
    reasoning: int
    whole: bool

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def tokens(self) -> int:
        return len(self.pieces) + self.reasoning


def pieces(knobs: Knobs) -> tuple[str, ...]:
    """The text of an answer that no maximum cuts, one piece per token."""
    return words(knobs.answer_tokens) if knobs.text is None else _pieces_of(knobs.text)


def _compose(knobs: Knobs, tokens_max: int | None) -> _Answer:
    wanted = pieces(knobs)
    if tokens_max is None:
        return _Answer(wanted, knobs.reasoning, True)
    reasoning = min(knobs.reasoning, tokens_max)
    kept = wanted[: tokens_max - reasoning]
    whole = len(kept) == len(wanted) and reasoning == knobs.reasoning
    return _Answer(kept, reasoning, whole)


# --- Frames -----------------------------------------------------------------------------


def frame(value: object, knobs: Knobs, event: str | None = None) -> bytes:
    """One server-sent event."""
    data = value if isinstance(value, bytes) else encode(value)
    end = b"\r\n" if knobs.crlf else b"\n"
    name = b"event: " + event.encode() + end if event else b""
    return name + b"data: " + data + end + end


def sse(events: Iterable[Event]) -> Reply:
    return Reply(media_type=b"text/event-stream; charset=utf-8", events=events)


def error_frame(family: Family, path: str, knobs: Knobs, request_id: str) -> bytes:
    """The error a provider sends when it breaks in the middle of a stream."""
    refusal = status_refusal(503)
    if knobs.message is not None:
        refusal.message = knobs.message
    if family == "anthropic":
        refusal.status = 529
        return frame(envelope(family, refusal, request_id), knobs, "error")
    if path == "/responses":
        error = {"type": "error", "code": "server_error", "message": refusal.message}
        return frame(error | {"param": None, "sequence_number": 0}, knobs, "error")
    return frame(envelope("openai", refusal, request_id), knobs)


def _json(value: object) -> Reply:
    return Reply(body=encode(value))


# --- Chat completions -------------------------------------------------------------------


def _chat_usage(usage: _Usage, request: Request) -> dict[str, Any]:
    report: dict[str, Any] = {
        "prompt_tokens": usage.tokens_in,
        "completion_tokens": usage.tokens_out,
        "total_tokens": usage.total,
    }
    if request.family == "mistral":
        if usage.cached:
            report["prompt_tokens_details"] = {"cached_tokens": usage.cached}
        return report
    report["prompt_tokens_details"] = {
        "cached_tokens": usage.cached,
        "audio_tokens": usage.audio_in,
    }
    if usage.cache_write:
        report["prompt_tokens_details"]["cache_write_tokens"] = usage.cache_write
    report["completion_tokens_details"] = {
        "reasoning_tokens": usage.reasoning,
        "audio_tokens": usage.audio_out,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    }
    return report


def _reasons(model: str) -> bool:
    return model.startswith(("o1", "o3", "o4", "gpt-5"))


def chat(request: Request) -> Reply:
    body, knobs = request.body, request.knobs
    messages = body.get("messages")
    if messages is None:
        _missing("messages")
    if not isinstance(messages, list) or not messages:
        _invalid("messages", "a list of at least one message")
    old = _integer(body, "max_tokens", 1, 10**9)
    new = _integer(body, "max_completion_tokens", 1, 10**9)
    if old is not None and new is not None:
        raise Refusal(
            400,
            "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.",
            code="invalid_parameter_combination",
            param="max_tokens",
        )
    if old is not None and _reasons(request.model):
        raise Refusal(
            400,
            "Unsupported parameter: 'max_tokens' is not supported with this model. "
            "Use 'max_completion_tokens' instead.",
            code="unsupported_parameter",
            param="max_tokens",
        )
    n = _integer(body, "n", 1, 128) or 1
    answer = _compose(knobs, new if old is None else old)
    prompt = _prompt_of(body, "messages", "tools", "functions")
    usage = _usage(prompt, n * answer.tokens, knobs, n * answer.reasoning)
    if body.get("stream"):
        return sse(_chat_events(request, answer, n, _chat_usage(usage, request)))
    if body.get("stream_options") is not None and request.family != "mistral":
        raise Refusal(
            400,
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            param="stream_options",
        )
    tool = _tool_name(body) if knobs.tool_call else None
    message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
    if tool:
        call = {"name": tool, "arguments": answer.text}
        message["content"] = None
        message["tool_calls"] = [{"id": "call_0", "type": "function", "function": call}]
    reason = _finish_reason(answer, tool)
    reply = _chat_head(request, "chat.completion") | {
        "choices": [
            {"index": index, "message": message, "logprobs": None, "finish_reason": reason}
            for index in range(n)
        ]
    }
    if knobs.usage != "missing":
        reply["usage"] = _chat_usage(usage, request)
    return _json(reply)


def _chat_head(request: Request, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-sim{request.number:08d}",
        "object": kind,
        "created": request.now,
        "model": request.model,
        "system_fingerprint": "fp_simulator",
    }


def _tool_name(body: Mapping[str, Any]) -> str | None:
    match body.get("tools"):
        case [{"function": {"name": str(name)}}, *_]:
            return name
    return None


def _finish_reason(answer: _Answer, tool: str | None) -> str:
    if not answer.whole:
        return "length"
    return "tool_calls" if tool else "stop"


def _chat_events(
    request: Request, answer: _Answer, n: int, usage: dict[str, Any]
) -> Iterator[Event]:
    knobs = request.knobs
    options = request.body.get("stream_options")
    asked = isinstance(options, dict) and options.get("include_usage") is True
    # Three habits: OpenAI sends a chunk of its own when asked, Azure puts it on the last
    # choice when asked, Mistral puts it there always.
    mistral = request.family == "mistral"
    reports = (asked or mistral) and knobs.usage != "missing"
    on_choice = reports and (mistral or knobs.usage == "on_choices")
    tool = _tool_name(request.body) if knobs.tool_call else None
    head = _chat_head(request, "chat.completion.chunk")
    nulls = {"usage": None} if asked and reports and not mistral else {}

    def chunk(index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return head | {"choices": [choice]} | nulls

    for index in range(n):
        first: dict[str, Any] = {"role": "assistant", "content": None if tool else ""}
        if tool:
            call = {"name": tool, "arguments": ""}
            first["tool_calls"] = [
                {"index": 0, "id": "call_0", "type": "function", "function": call}
            ]
        yield "", frame(chunk(index, first), knobs)
    for piece in answer.pieces:
        for index in range(n):
            delta: dict[str, Any] = {"content": piece}
            if tool:
                delta = {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}
            yield "", frame(chunk(index, delta), knobs)
    for index in range(n):
        last = chunk(index, {}, _finish_reason(answer, tool))
        if on_choice and index == n - 1:
            yield "usage", frame(last | {"usage": usage}, knobs)
        else:
            yield "", frame(last, knobs)
    if reports and not on_choice:
        yield "usage", frame(head | {"choices": [], "usage": usage}, knobs)
    yield "done", frame(b"[DONE]", knobs)


# --- Responses --------------------------------------------------------------------------


def responses(request: Request) -> Reply:
    body, knobs = request.body, request.knobs
    if body.get("input") is None:
        _missing("input")
    answer = _compose(knobs, _integer(body, "max_output_tokens", 1, 10**9))
    prompt = _prompt_of(body, "instructions", "input", "tools")
    usage = _usage(prompt, answer.tokens, knobs, answer.reasoning)
    end = "incomplete" if knobs.end == "completed" and not answer.whole else knobs.end
    item = {
        "id": f"msg_sim{request.number:08d}",
        "type": "message",
        "status": "completed" if end == "completed" else "incomplete",
        "role": "assistant",
        "content": [_output_text(answer.text)],
    }
    started: dict[str, Any] = {
        "id": f"resp_sim{request.number:08d}",
        "object": "response",
        "created_at": request.now,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "metadata": body.get("metadata") or {},
        "model": request.model,
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": body.get("previous_response_id"),
        "store": bool(body.get("store", True)),
        "temperature": body.get("temperature", 1.0),
        "text": {"format": {"type": "text"}},
        "tool_choice": body.get("tool_choice", "auto"),
        "tools": body.get("tools", []),
        "top_p": body.get("top_p", 1.0),
        "truncation": "disabled",
        "usage": None,
    }
    ended = started | {"status": end, "output": [item]}
    if end == "incomplete":
        ended["incomplete_details"] = {"reason": "max_output_tokens"}
    elif end == "failed":
        ended["error"] = {"code": "server_error", "message": "The model failed to answer."}
    if knobs.usage != "missing":
        ended["usage"] = {
            "input_tokens": usage.tokens_in,
            "input_tokens_details": {
                "cached_tokens": usage.cached,
                "cache_write_tokens": usage.cache_write,
            },
            "output_tokens": usage.tokens_out,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning},
            "total_tokens": usage.total,
        }
    if body.get("stream"):
        return sse(_response_events(knobs, answer, started, item, ended))
    return _json(ended)


def _output_text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _response_events(
    knobs: Knobs,
    answer: _Answer,
    started: dict[str, Any],
    item: dict[str, Any],
    ended: dict[str, Any],
) -> Iterator[Event]:
    sequence = 0

    def event(kind: str, **fields: object) -> bytes:
        nonlocal sequence
        value = {"type": kind, "sequence_number": sequence} | fields
        sequence += 1
        return frame(value, knobs, kind)

    place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    yield "", event("response.created", response=started)
    yield "", event("response.in_progress", response=started)
    empty = item | {"status": "in_progress", "content": []}
    yield "", event("response.output_item.added", output_index=0, item=empty)
    yield "", event("response.content_part.added", **place, part=_output_text(""))
    for piece in answer.pieces:
        yield "", event("response.output_text.delta", **place, delta=piece, logprobs=[])
    yield "", event("response.output_text.done", **place, text=answer.text, logprobs=[])
    yield "", event("response.content_part.done", **place, part=_output_text(answer.text))
    yield "", event("response.output_item.done", output_index=0, item=item)
    yield "usage", event(f"response.{ended['status']}", response=ended)


# --- Messages ---------------------------------------------------------------------------


def messages(request: Request) -> Reply:
    body, knobs = request.body, request.knobs
    if not isinstance(body.get("messages"), list) or not body["messages"]:
        raise Refusal(400, "messages: at least one message is required")
    tokens_max = _integer(body, "max_tokens", 1, 10**9)
    if tokens_max is None:
        raise Refusal(400, "max_tokens: Field required")
    answer = _compose(knobs, tokens_max)
    prompt = _prompt_of(body, "system", "messages", "tools")
    usage = _usage(prompt, answer.tokens, knobs, answer.reasoning)
    # Here the input leaves out what was read from and written to the cache.
    report_in = {
        "input_tokens": usage.tokens_in - usage.cached - usage.cache_write,
        "cache_creation_input_tokens": usage.cache_write,
        "cache_read_input_tokens": usage.cached,
    }
    report_out: dict[str, Any] = {"output_tokens": usage.tokens_out}
    if usage.reasoning:
        report_out["output_tokens_details"] = {"thinking_tokens": usage.reasoning}
    message: dict[str, Any] = {
        "id": f"msg_sim{request.number:08d}",
        "type": "message",
        "role": "assistant",
        "model": request.model,
        "content": [{"type": "text", "text": answer.text}],
        "stop_reason": "end_turn" if answer.whole else "max_tokens",
        "stop_sequence": None,
    }
    if body.get("stream"):
        return sse(_message_events(knobs, answer, message, report_in, report_out))
    if knobs.usage != "missing":
        message["usage"] = report_in | report_out | {"service_tier": "standard"}
    return _json(message)


def _message_events(
    knobs: Knobs,
    answer: _Answer,
    message: dict[str, Any],
    report_in: dict[str, Any],
    report_out: dict[str, Any],
) -> Iterator[Event]:
    def event(kind: str, **fields: object) -> bytes:
        return frame({"type": kind} | fields, knobs, kind)

    reports = knobs.usage != "missing"
    started = message | {"content": [], "stop_reason": None}
    ending: dict[str, Any] = {
        "delta": {"stop_reason": message["stop_reason"], "stop_sequence": None}
    }
    if reports:
        begun = {"output_tokens": min(1, report_out["output_tokens"])}
        started["usage"] = report_in | begun | {"service_tier": "standard"}
        ending["usage"] = report_out
    yield "", event("message_start", message=started)
    yield "", event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    yield "", event("ping")
    for piece in answer.pieces:
        delta = {"type": "text_delta", "text": piece}
        yield "", event("content_block_delta", index=0, delta=delta)
    yield "", event("content_block_stop", index=0)
    yield "usage" if reports else "", event("message_delta", **ending)
    yield "done", event("message_stop")


# --- Embeddings, moderations, images ----------------------------------------------------


def embeddings(request: Request) -> Reply:
    body, knobs = request.body, request.knobs
    given = body.get("input")
    if given is None:
        _missing("input")
    if isinstance(given, str) or (
        isinstance(given, list) and given and all(type(item) is int for item in given)
    ):
        given = [given]
    if not isinstance(given, list) or not 1 <= len(given) <= 2048:
        _invalid("input", "text, token ids, or a list of 1 to 2048 of them")
    for item in given:
        ids = isinstance(item, list) and item and all(type(part) is int for part in item)
        if not ids and not (isinstance(item, str) and item):
            _invalid("input", "text, token ids, or a list of 1 to 2048 of them")
    mistral = request.family == "mistral"
    size_name = "output_dimension" if mistral else "dimensions"
    usual = 1024 if mistral else 3072 if request.model.endswith("-large") else 1536
    size = _integer(body, size_name, 1, DIMENSIONS_MAX) or usual
    layout = body.get("encoding_format") or "float"
    if layout not in ("float", "base64"):
        _invalid("encoding_format", "'float' or 'base64'")
    prompt = _Prompt().add(given)
    tokens = prompt.tokens if knobs.tokens_in is None else knobs.tokens_in
    data = []
    for index, item in enumerate(given):
        vector = media.unit_vector(encode(item), size)
        value = (
            base64.b64encode(vector.tobytes()).decode() if layout == "base64" else vector.tolist()
        )
        data.append({"object": "embedding", "index": index, "embedding": value})
    reply: dict[str, Any] = {"object": "list", "data": data, "model": request.model}
    if mistral:
        reply["id"] = f"embd-sim{request.number:08d}"
    if knobs.usage != "missing":
        reply["usage"] = {"prompt_tokens": tokens, "total_tokens": tokens}
        if mistral:
            reply["usage"]["completion_tokens"] = 0
    return _json(reply)


_MODERATION_CATEGORIES = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)


def moderations(request: Request) -> Reply:
    given = request.body.get("input")
    if given is None:
        _missing("input")
    count = len(given) if isinstance(given, list) else 1
    result = {
        "flagged": False,
        "categories": dict.fromkeys(_MODERATION_CATEGORIES, False),
        "category_scores": dict.fromkeys(_MODERATION_CATEGORIES, 0.0),
        "category_applied_input_types": {name: ["text"] for name in _MODERATION_CATEGORIES},
    }
    number = f"modr-sim{request.number:08d}"
    return _json({"id": number, "model": request.model, "results": [result] * count})


def images(request: Request) -> Reply:
    body, knobs = request.body, request.knobs
    prompt = _text(body, "prompt")
    n = _integer(body, "n", 1, 10) or 1
    reply: dict[str, Any] = {"created": request.now}
    gpt = request.model.startswith("gpt-image")
    names = [f"{prompt} {index}" for index in range(n)]
    if gpt or body.get("response_format") == "b64_json":
        reply["data"] = [{"b64_json": base64.b64encode(media.png(name)).decode()} for name in names]
    else:
        reply["data"] = [
            {"url": f"https://images.example/{request.number}/{index}.png"} for index in range(n)
        ]
    if gpt and knobs.usage != "missing":
        each = PICTURE_TOKENS.get(str(body.get("quality")), PICTURE_TOKENS["low"])
        usage = _usage(_Prompt().add(prompt), n * each, knobs)
        reply["output_format"] = "png"
        reply["usage"] = {
            "input_tokens": usage.tokens_in,
            "input_tokens_details": {"text_tokens": usage.tokens_in, "image_tokens": 0},
            "output_tokens": usage.tokens_out,
            "total_tokens": usage.total,
        }
    return _json(reply)


# --- OCR --------------------------------------------------------------------------------


def ocr(request: Request) -> Reply:
    body, knobs = request.body, request.knobs
    document = body.get("document")
    if not isinstance(document, dict):
        raise Refusal(422, "document: Field required")
    count, size = _document(document, knobs)
    chosen = _chosen_pages(body.get("pages"), count)
    pages = [
        {
            "index": index,
            "markdown": knobs.text
            if knobs.text is not None
            else f"# Page {index + 1}\n\n{''.join(words(knobs.answer_tokens))}",
            "images": [],
            "dimensions": {"dpi": 200, "height": 2200, "width": 1700},
        }
        for index in chosen
    ]
    reply: dict[str, Any] = {
        "pages": pages,
        "model": request.model,
        "document_annotation": None,
    }
    if knobs.usage != "missing":
        processed = len(chosen) if knobs.pages is None else knobs.pages
        reply["usage_info"] = {"pages_processed": processed, "doc_size_bytes": size}
    return _json(reply)


def _document(document: Mapping[str, Any], knobs: Knobs) -> tuple[int, int | None]:
    """Pages and bytes of the document; no bytes if it is somewhere else."""
    kind = document.get("type")
    url = document.get("image_url" if kind == "image_url" else "document_url")
    if isinstance(url, dict):
        url = url.get("url")
    if kind == "file" and isinstance(document.get("file_id"), str):
        return knobs.remote_pages, None
    if kind not in ("document_url", "image_url") or not isinstance(url, str):
        raise Refusal(422, "document: expected a document_url, an image_url or a file")
    if not url.startswith("data:"):
        return (1 if kind == "image_url" else knobs.remote_pages), None
    data = media.data_url_bytes(url)
    if data is None:
        raise Refusal(422, "document: the data URL cannot be decoded")
    if not data.startswith(b"%PDF"):
        return 1, len(data)
    count = media.pdf_pages(data)
    if count is None:
        raise Refusal(422, "document: the PDF cannot be read")
    return count, len(data)


def _chosen_pages(asked: object, count: int) -> list[int]:
    """The pages of `[0, 2]` or `"0,2-4"` that exist, in order; all if none were named."""
    if asked is None:
        return list(range(count))
    if isinstance(asked, list) and all(type(page) is int for page in asked):
        return sorted({page for page in asked if 0 <= page < count})
    chosen: set[int] = set()
    if isinstance(asked, str):
        for part in asked.split(","):
            first, dash, last = part.strip().partition("-")
            if not first.isdecimal() or (dash and not last.isdecimal()):
                break
            until = int(last) if dash else int(first)
            chosen.update(range(int(first), min(until + 1, count)))
        else:
            return sorted(page for page in chosen if page < count)
    raise Refusal(422, "pages: expected a list of integers or ranges like '0,2-4'")


# --- Audio ------------------------------------------------------------------------------


def speech(request: Request) -> Reply:
    """Speech; every format but pcm is answered with WAV, and says so."""
    body = request.body
    text = _text(body, "input")
    if not text:
        _invalid("input", "some text")
    if len(text) > SPEECH_CHARACTERS_MAX:
        raise Refusal(
            400,
            f"Invalid 'input': string too long. Expected a string with maximum length "
            f"{SPEECH_CHARACTERS_MAX}, but got a string with length {len(text)} instead.",
            code="string_above_max_length",
            param="input",
        )
    speed = body.get("speed", 1.0)
    if isinstance(speed, bool) or not isinstance(speed, int | float) or not 0.25 <= speed <= 4:
        _invalid("speed", "a number from 0.25 to 4.0")
    layout = body.get("response_format") or "mp3"
    if layout not in ("mp3", "opus", "aac", "flac", "wav", "pcm"):
        _invalid("response_format", "'mp3', 'opus', 'aac', 'flac', 'wav' or 'pcm'")
    pcm = media.speech_pcm(text, speed)
    audio = pcm if layout == "pcm" else media.wav(pcm)
    tokens_out = max(1, math.ceil(len(pcm) / 2 / media.SAMPLE_RATE * SPEECH_TOKENS_PER_SECOND))
    usage = _usage(_Prompt().add(text), tokens_out, request.knobs)
    if request.family == "mistral":
        if not body.get("stream"):
            return _json({"audio_data": base64.b64encode(audio).decode()})
        report = _chat_usage(usage, request)
        return sse(_speech_events(request.knobs, audio, "audio_data", report))
    if body.get("stream_format") == "sse":
        report = {
            "input_tokens": usage.tokens_in,
            "output_tokens": usage.tokens_out,
            "total_tokens": usage.total,
        }
        return sse(_speech_events(request.knobs, audio, "audio", report))
    chunks: Iterator[Event] = (("", chunk) for chunk in _audio_chunks(audio))
    return Reply(media_type=b"audio/pcm" if layout == "pcm" else b"audio/wav", events=chunks)


def _audio_chunks(audio: bytes) -> Iterator[bytes]:
    for start in range(0, len(audio), AUDIO_CHUNK_BYTES):
        yield audio[start : start + AUDIO_CHUNK_BYTES]


def _speech_events(
    knobs: Knobs, audio: bytes, field: str, usage: dict[str, Any]
) -> Iterator[Event]:
    for chunk in _audio_chunks(audio):
        delta = {"type": "speech.audio.delta", field: base64.b64encode(chunk).decode()}
        yield "", frame(delta, knobs, "speech.audio.delta")
    done: dict[str, Any] = {"type": "speech.audio.done"}
    if knobs.usage != "missing":
        done["usage"] = usage
    yield "usage", frame(done, knobs, "speech.audio.done")


def transcriptions(request: Request) -> Reply:
    body, knobs = request.body, request.knobs
    file = request.files.get("file")
    if file is None:
        _missing("file")
    seconds = media.audio_seconds(file.data)
    if seconds is None:
        raise Refusal(400, "Audio file might be corrupted or unsupported", param="file")
    layout = body.get("response_format") or "json"
    if layout not in ("json", "verbose_json", "text", "srt", "vtt"):
        _invalid("response_format", "'json', 'verbose_json', 'text', 'srt' or 'vtt'")
    billed = math.ceil(seconds) if knobs.seconds is None else knobs.seconds
    whisper = request.model.startswith("whisper")
    audio_tokens = max(1, math.ceil(seconds) * AUDIO_TOKENS_PER_SECOND)
    answer = _compose(knobs, None)
    if knobs.text is None:
        count = max(1, math.ceil(seconds) * TRANSCRIPT_TOKENS_PER_SECOND)
        answer = _Answer(words(count), 0, True)
    prompt = _Prompt()
    prompt.add(body.get("prompt"))
    text_tokens = tokens_of_bytes(prompt.text_bytes) if prompt.text_bytes else 0
    tokens_in = text_tokens + audio_tokens if knobs.tokens_in is None else knobs.tokens_in
    tokens_out = len(answer.pieces) if knobs.tokens_out is None else knobs.tokens_out
    text_tokens = min(text_tokens, tokens_in)
    usage: dict[str, Any] = {"type": "duration", "seconds": billed}
    if not whisper:
        usage = {
            "type": "tokens",
            "input_tokens": tokens_in,
            "input_token_details": {
                "text_tokens": text_tokens,
                "audio_tokens": tokens_in - text_tokens,
            },
            "output_tokens": tokens_out,
            "total_tokens": tokens_in + tokens_out,
        }
    reported = {} if knobs.usage == "missing" else {"usage": usage}

    if request.family == "mistral":
        counts = {
            "prompt_audio_seconds": billed,
            "prompt_tokens": tokens_in,
            "completion_tokens": tokens_out,
            "total_tokens": tokens_in + tokens_out,
        }
        heard = {"model": request.model, "text": answer.text, "language": "en", "segments": []}
        return _json(heard | ({"usage": counts} if reported else {}))
    if body.get("stream") == "true" and not whisper:
        return sse(_transcript_events(knobs, answer, reported))
    match layout:
        case "text":
            return Reply(media_type=_PLAIN, body=answer.text.encode() + b"\n")
        case "srt":
            span = f"{_clock(0, ',')} --> {_clock(seconds, ',')}"
            return Reply(media_type=_PLAIN, body=f"1\n{span}\n{answer.text}\n\n".encode())
        case "vtt":
            span = f"{_clock(0, '.')} --> {_clock(seconds, '.')}"
            return Reply(media_type=_PLAIN, body=f"WEBVTT\n\n{span}\n{answer.text}\n\n".encode())
        case "verbose_json":
            segment = {
                "id": 0,
                "seek": 0,
                "start": 0.0,
                "end": seconds,
                "text": answer.text,
                "tokens": [],
                "temperature": 0.0,
                "avg_logprob": -0.1,
                "compression_ratio": 1.0,
                "no_speech_prob": 0.0,
            }
            told = {"task": "transcribe", "language": "english", "duration": seconds}
            return _json(told | {"text": answer.text, "segments": [segment]} | reported)
    return _json({"text": answer.text} | reported)


_PLAIN = b"text/plain; charset=utf-8"


def _clock(seconds: float, point: str) -> str:
    whole = round(seconds * 1000)
    minutes, milliseconds = divmod(whole, 60_000)
    return (
        f"{minutes // 60:02d}:{minutes % 60:02d}:"
        f"{milliseconds // 1000:02d}{point}{milliseconds % 1000:03d}"
    )


def _transcript_events(knobs: Knobs, answer: _Answer, reported: dict[str, Any]) -> Iterator[Event]:
    for piece in answer.pieces:
        delta = {"type": "transcript.text.delta", "delta": piece}
        yield "", frame(delta, knobs, "transcript.text.delta")
    done = {"type": "transcript.text.done", "text": answer.text} | reported
    yield "usage", frame(done, knobs, "transcript.text.done")


# --- Models -----------------------------------------------------------------------------

MODELS: dict[str, Family] = {
    "gpt-4o": "openai",
    "gpt-4o-mini": "openai",
    "gpt-5": "openai",
    "gpt-image-1": "openai",
    "gpt-4o-transcribe": "openai",
    "whisper-1": "openai",
    "tts-1": "openai",
    "text-embedding-3-small": "openai",
    "text-embedding-3-large": "openai",
    "omni-moderation-latest": "openai",
    "mistral-small-latest": "mistral",
    "mistral-ocr-latest": "mistral",
    "mistral-embed": "mistral",
    "claude-sonnet-5": "anthropic",
}

_MISTRAL_NAMES = (
    "mistral",
    "ministral",
    "magistral",
    "codestral",
    "devstral",
    "pixtral",
    "voxtral",
    "open-mistral",
    "open-mixtral",
)


def family_of(model: str) -> Family:
    """How a model is answered where the path leaves it open."""
    return "mistral" if model.startswith(_MISTRAL_NAMES) else "openai"


def model_list(now: int, anthropic: bool) -> Reply:
    if anthropic:
        cards = [_anthropic_card(name) for name, kind in MODELS.items() if kind == "anthropic"]
        ends = {"first_id": cards[0]["id"], "last_id": cards[-1]["id"], "has_more": False}
        return _json({"data": cards} | ends)
    return _json({"object": "list", "data": [_card(name, now) for name in MODELS]})


def model_card(name: str, now: int, anthropic: bool) -> Reply:
    if name not in MODELS:
        raise Refusal(404, f"The model '{name}' does not exist", code="model_not_found")
    return _json(_anthropic_card(name) if anthropic else _card(name, now))


def _card(name: str, now: int) -> dict[str, Any]:
    # OpenAI's four fields; mistralai will not parse a list in which any card lacks the rest.
    return {
        "id": name,
        "object": "model",
        "created": now,
        "owned_by": MODELS[name],
        "type": "base",
        "capabilities": {"completion_chat": True},
    }


def _anthropic_card(name: str) -> dict[str, Any]:
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": "2025-01-01T00:00:00Z",
        "lifecycle": "active",
    }


# --- The registry -----------------------------------------------------------------------


class Endpoint(NamedTuple):
    """One POST endpoint below /v1: who answers, and whether it reads a form."""

    answer: Callable[[Request], Reply]
    multipart: bool = False
    family: Family | None = None


ENDPOINTS: dict[str, Endpoint] = {
    "/chat/completions": Endpoint(chat),
    "/embeddings": Endpoint(embeddings),
    "/ocr": Endpoint(ocr, family="mistral"),
    "/audio/speech": Endpoint(speech),
    "/audio/transcriptions": Endpoint(transcriptions, multipart=True),
    "/responses": Endpoint(responses, family="openai"),
    "/messages": Endpoint(messages, family="anthropic"),
    "/images/generations": Endpoint(images, family="openai"),
    "/moderations": Endpoint(moderations),
}
