"""OpenAI's Realtime API: sessions over a WebSocket, in both shapes.

Owns what a session accepts, answers and reports as usage, its faults, and its record.
Does not own the handshake's credential and refusals, nor the socket; `server.py` does.

    /v1/realtime?model=            conversation; ?intent=transcription: transcription
    /openai/v1/realtime?model=     Azure; `intent` as above, without a model
    /openai/realtime?api-version=  Azure's older address; `&deployment=` is the model

The shape is beta where the request has `OpenAI-Beta: realtime=v1`, else GA. Inside, a
session is always kept as GA writes it; beta's flat names are translated at the edge.

It hears nothing and thinks nothing. How usage is derived (knobs fix or add as in
`answers.py`; `text`, `end`, `tokens_in` and `tokens_out` are about the responses, in a
transcription session about the transcripts):

- Speech: one turn ends when `vad_seconds` of sound have been appended since the last,
  with `turn_detection` on; the sound's seconds are its bytes by the format in force when
  they came. A frame that brings several turns' worth is one turn.
- Input of a response: the text of instructions, tools and items by the rule for text
  (none is 0), 85 for each image, 10 per second of sound rounded up per item. An earlier
  answer counts its words as text and its sound as sound.
- Output: `answer_tokens` words. As text, one token each; as sound, one text token and
  then 5 audio tokens (250 ms) each. The maximum cuts anywhere; what was sent before a
  cancel is what is counted.
- Transcript: the prompt's text and 10 per second of sound rounded up in, 3 per begun
  second out; models named `...whisper...` report the exact seconds.

Invariants: what is sent is recorded before; after a fault nothing more is sent; ids
are unique to the simulator; memory is bounded, and no sound is kept.
"""

import asyncio
import base64
import contextlib
import math
import time
import urllib.parse
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal, Protocol, cast

import msgspec

from app.simulator import answers, knobs, media
from app.simulator.answers import Family, Refusal
from app.simulator.knobs import Knobs

Message = dict[str, Any]
Kind = Literal["conversation", "transcription"]
Shape = Literal["ga", "beta"]
# How a session ended: by our close frame, by a cut connection, by the client.
Ended = Literal["answered", "cut", "client_left"]

FRAME_BYTES_MAX = 16 * 2**20
FRAMES_KEPT = 200
TEXT_KEPT = 16_384
ITEMS_KEPT = 1_000
TASKS_MAX = 64
# Decoding more than this would be felt by whoever shares the event loop.
INLINE_MAX = 256 * 2**10

WORD_MS = 250
WORD_AUDIO_TOKENS = 5
TOKEN_MS = WORD_MS // WORD_AUDIO_TOKENS
COMMIT_SECONDS_MIN = Fraction(1, 10)
OUTPUT_TOKENS_MAX = 4096

# Extensions of the scope: what our own server lends a session beyond ASGI.
ABORT = "spendgate.simulator.abort"
SILENCE = "spendgate.simulator.silence"
PINGS = "spendgate.simulator.pings"


# --- The record -------------------------------------------------------------------------


class Frame(msgspec.Struct):
    """One frame as it arrived; `text` is empty for sound, and once TEXT_KEPT is used up."""

    type: str
    bytes: int
    text: str = ""

    def json(self) -> Any:
        return msgspec.json.decode(self.text)


class Session(msgspec.Struct):
    """What reached us in one session and what we told it, beside its `Call`.

    `reported` sums what the events said, a repetition not counted again; `unreported`
    what was used without an event saying so. Both by "response" and "transcription".
    """

    kind: Kind
    shape: Shape
    subprotocols: list[str]
    frames: list[Frame] = []  # the last FRAMES_KEPT
    frames_received: int = 0
    received: dict[str, int] = {}  # by type
    bytes_received: int = 0
    audio_bytes: int = 0
    audio_seconds: float = 0.0
    pings: int = 0  # counted when it ended
    events_sent: int = 0
    sent: dict[str, int] = {}  # by type
    responses: int = 0
    transcriptions: int = 0
    reported: dict[str, dict[str, float]] = {}
    unreported: dict[str, dict[str, float]] = {}
    config: dict[str, Any] = {}  # the session in force, in its shape
    fault: str = ""  # the knob that ended it
    close_sent: int | None = None
    close_received: int | None = None  # 1006: the connection broke
    close_reason: str = ""
    seconds: float | None = None  # from the first event to the end


def _tally(sums: dict[str, dict[str, float]], what: str, amounts: Mapping[str, float]) -> None:
    total = Counter(sums.get(what, {}))
    for name, amount in amounts.items():
        total[name] += cast(int, amount)
    sums[what] = dict(total)


# --- The handshake ----------------------------------------------------------------------


class Opening(msgspec.Struct, frozen=True):
    """What an address asks for. With an `error`, that is the session's only event."""

    kind: Kind
    shape: Shape
    family: Family
    model: str
    changes: dict[str, str]  # knobs
    error: Refusal | None = None


def is_realtime(path: str) -> bool:
    return path in ("/v1/realtime", "/openai/v1/realtime", "/openai/realtime")


def subprotocol_key(offered: list[str]) -> str | None:
    """The credential that a browser sends for want of headers."""
    for name in offered:
        if name.startswith("openai-insecure-api-key."):
            return name.removeprefix("openai-insecure-api-key.")
    return None


def opening(path: str, query: bytes, headers: Mapping[str, str]) -> Opening:
    parameters = urllib.parse.parse_qs(query.decode("latin-1"))

    def parameter(name: str) -> str:
        return parameters.get(name, [""])[-1]

    azure = path.startswith("/openai/")
    family: Family = "azure" if azure else "openai"
    versioned = path != "/openai/realtime" or parameter("api-version")
    if not is_realtime(path) or not versioned:
        raise Refusal(404, f"Invalid URL (GET {path})", code="unknown_url")
    named = parameter("deployment" if path == "/openai/realtime" else "model")
    changes = knobs.from_assignments(" ".join(parameters.get("sim", [])))
    changes |= knobs.from_texts(named)
    model = knobs.without_directives(named)
    transcribes = parameter("intent") == "transcription"
    error = None
    if transcribes and model:
        if azure:
            raise Refusal(
                400, "A transcription session takes no deployment.", code="OperationNotSupported"
            )
        message = "You must not provide a model parameter for transcription sessions."
        error = Refusal(400, message, code="invalid_model")
    elif not transcribes and not model:
        error = Refusal(400, "You must provide a model parameter.", code="missing_model")
    elif not transcribes and not azure and ("transcribe" in model or "whisper" in model):
        message = (
            f"Model {model} is a transcription model and cannot be used as the realtime session "
            "model. Pass this transcription model as audio.input.transcription.model instead."
        )
        error = Refusal(400, message, code="invalid_model")
    if error and azure:
        raise error
    beta = headers.get("openai-beta", "").replace(" ", "") == "realtime=v1"
    return Opening(
        kind="transcription" if transcribes else "conversation",
        shape="beta" if beta else "ga",
        family=family,
        model=model,
        changes=changes,
        error=error,
    )


# --- The configuration ------------------------------------------------------------------

Path = tuple[str, ...]

_FORMAT_IN: Path = ("audio", "input", "format")
_FORMAT_OUT: Path = ("audio", "output", "format")
_TRANSCRIPTION: Path = ("audio", "input", "transcription")
_TURN_DETECTION: Path = ("audio", "input", "turn_detection")
_MAXIMUM: Path = ("max_output_tokens",)
_MODALITIES: Path = ("output_modalities",)

# Beta's names, and where GA keeps the same.
_BETA_NAMES: dict[str, Path] = {
    "modalities": _MODALITIES,
    "voice": ("audio", "output", "voice"),
    "speed": ("audio", "output", "speed"),
    "input_audio_format": _FORMAT_IN,
    "output_audio_format": _FORMAT_OUT,
    "input_audio_transcription": _TRANSCRIPTION,
    "input_audio_noise_reduction": ("audio", "input", "noise_reduction"),
    "turn_detection": _TURN_DETECTION,
    "max_response_output_tokens": _MAXIMUM,
}
_BETA_FORMATS: dict[str, dict[str, Any]] = {
    "pcm16": {"type": "audio/pcm", "rate": 24_000},
    "g711_ulaw": {"type": "audio/pcmu"},
    "g711_alaw": {"type": "audio/pcma"},
}


def _set(names: str) -> frozenset[str]:
    return frozenset(names.split())


_SAME_NAMES = _set(
    "id object model instructions tools tool_choice tracing include prompt truncation "
    "expires_at reasoning parallel_tool_calls"
)
_TRANSCRIPTION_NAMES = _set(
    "audio include id object expires_at input_audio_format input_audio_transcription "
    "input_audio_noise_reduction turn_detection"
)
_RESPONSE_NAMES = _set(
    "instructions tools tool_choice conversation metadata input prompt "
    "parallel_tool_calls reasoning"
)
_VAD: dict[str, dict[str, Any]] = {
    "server_vad": {
        "type": "server_vad",
        "threshold": 0.5,
        "prefix_padding_ms": 300,
        "silence_duration_ms": 500,
    },
    "semantic_vad": {"type": "semantic_vad", "eagerness": "auto"},
}


def _at(tree: Mapping[str, Any], path: Path) -> Any:
    value: Any = tree
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _put(tree: dict[str, Any], path: Path, value: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def _has(tree: Mapping[str, Any], path: Path) -> bool:
    parent = _at(tree, path[:-1])
    return isinstance(parent, dict) and path[-1] in parent


def _invalid(name: str, wanted: str) -> Refusal:
    message = f"Invalid value for '{name}': expected {wanted}."
    return Refusal(400, message, code="invalid_value", param=name)


def _vad(kind: Kind, values: Mapping[str, Any], before: object) -> dict[str, Any]:
    """Turn detection in full; what is not named stays, or is the default of its type."""
    known = before if isinstance(before, dict) else {}
    name = values.get("type", known.get("type"))
    if name not in _VAD:
        raise _invalid("session.turn_detection.type", "'server_vad' or 'semantic_vad'")
    default = dict(_VAD[name])
    if kind == "conversation":
        default |= {"create_response": True, "interrupt_response": True}
    return default | (known if known.get("type") == name else {}) | dict(values)


class _Config:
    """A session's configuration, kept as GA writes it."""

    def __init__(self, kind: Kind, shape: Shape, model: str, session_id: str, now: Knobs) -> None:
        self.kind, self.shape, self.session_id = kind, shape, session_id
        self.model = model
        self.expires_at = int(time.time()) + 1800
        transcription = None
        if kind == "transcription" and now.transcriber:
            transcription = {"model": now.transcriber, "language": None, "prompt": ""}
        heard: dict[str, Any] = {
            "format": _BETA_FORMATS["pcm16"],
            "transcription": transcription,
            "noise_reduction": None,
            "turn_detection": _vad(kind, _VAD["server_vad"], None),
        }
        self.values: dict[str, Any] = {"audio": {"input": heard}, "include": None}
        if kind == "conversation":
            spoken = {"format": _BETA_FORMATS["pcm16"], "voice": "alloy", "speed": 1.0}
            self.values["audio"]["output"] = spoken
            self.values |= {
                "instructions": "",
                "output_modalities": ["audio"],
                "tools": [],
                "tool_choice": "auto",
                "max_output_tokens": "inf",
                "truncation": "auto",
                "tracing": None,
                "prompt": None,
            }

    # What the session goes by.

    @property
    def input_rate(self) -> int:
        """Bytes per second of the input."""
        return _byte_rate(_at(self.values, _FORMAT_IN))

    @property
    def turn_detection(self) -> dict[str, Any] | None:
        return cast("dict[str, Any] | None", _at(self.values, _TURN_DETECTION))

    @property
    def transcription(self) -> dict[str, Any] | None:
        return cast("dict[str, Any] | None", _at(self.values, _TRANSCRIPTION))

    # In and out.

    def update(self, session: Any) -> None:
        """Merge what a client sent, or refuse all of it."""
        if not isinstance(session, dict):
            raise Refusal(
                400,
                "Missing required parameter: 'session'.",
                code="missing_required_parameter",
                param="session",
            )
        session = dict(session)
        if self.shape == "ga":
            self._check_type(session)
        update = self._nested(session)
        merged = cast("dict[str, Any]", _merged(self.values, update))
        self._settle(merged, update)
        model = update.get("model", self.model)
        if not isinstance(model, str) or (self.kind == "conversation" and not model):
            raise _invalid("session.model", "a model's name")
        self.model = knobs.without_directives(model)
        merged.pop("model", None)
        self.values = merged

    def view(self, claimed: str | None = None) -> dict[str, Any]:
        """The whole session as the client's shape writes it; `claimed` is a false model."""
        values = self.values
        model = self.model
        if claimed is not None:
            model = claimed
            if self.kind == "transcription":
                values = cast(
                    "dict[str, Any]",
                    _merged(values, {"audio": {"input": {"transcription": {"model": claimed}}}}),
                )
        transcribes = self.kind == "transcription"
        head: dict[str, Any] = {
            "id": self.session_id,
            "object": "realtime.transcription_session" if transcribes else "realtime.session",
        }
        if self.shape == "ga":
            head["type"] = "transcription" if transcribes else "realtime"
        if not transcribes:
            head["model"] = model
        head["expires_at"] = self.expires_at
        if self.shape == "ga":
            return head | values
        flat = {name: value for name, value in values.items() if name in _SAME_NAMES}
        for name, path in _BETA_NAMES.items():
            if _has(values, path):
                value = _at(values, path)
                flat[name] = _beta_format(value) if path[-1] == "format" else value
        if flat.get("modalities") == ["audio"]:
            flat["modalities"] = ["audio", "text"]
        if not transcribes:
            flat["temperature"] = 0.8
        return head | flat

    def _check_type(self, session: dict[str, Any]) -> None:
        wanted = "transcription" if self.kind == "transcription" else "realtime"
        found = session.pop("type", None)
        if found is None:
            raise Refusal(
                400,
                "Missing required parameter: 'session.type'.",
                code="missing_required_parameter",
                param="session.type",
            )
        if found not in ("realtime", "transcription"):
            raise _invalid("session.type", "'realtime' or 'transcription'")
        if found != wanted:
            message = (
                f"Passing a {found} session update event to a {wanted} session is not allowed."
            )
            raise Refusal(400, message, code="invalid_parameter", param="session.type")

    def _nested(self, session: dict[str, Any]) -> dict[str, Any]:
        update: dict[str, Any] = {}
        for name, value in session.items():
            path: Path | None = (name,)
            if self.shape == "beta":
                beta_only = ("temperature", "client_secret")
                path = _BETA_NAMES.get(name)
                if path is None and (name in _SAME_NAMES or name in beta_only):
                    path = (name,)
                if path and path[-1] == "format":
                    value = _ga_format(value, f"session.{name}")
                if name == "modalities" and isinstance(value, list) and "audio" in value:
                    value = ["audio"]
            elif name not in _SAME_NAMES | {"audio", "output_modalities", "max_output_tokens"}:
                path = None
            allowed = self.kind == "conversation" or name in _TRANSCRIPTION_NAMES
            if path is None or not allowed:
                message = f"Unknown parameter: 'session.{name}'."
                raise Refusal(400, message, code="unknown_parameter", param=f"session.{name}")
            if path[0] not in ("id", "object", "expires_at", "client_secret", "temperature"):
                _put(update, path, value)
        return update

    def _settle(self, merged: dict[str, Any], update: dict[str, Any]) -> None:
        """Check and complete what an update brought."""
        parents: tuple[Path, ...] = (("audio",), ("audio", "input"), ("audio", "output"))
        for path in parents:
            if _has(merged, path) and not isinstance(_at(merged, path), dict):
                raise _invalid("session." + ".".join(path), "an object")
        for path in (_FORMAT_IN, _FORMAT_OUT):
            if _has(update, path):
                _put(merged, path, _checked_format(_at(update, path), self._name(path)))
        if _has(update, _TURN_DETECTION):
            wanted = _at(update, _TURN_DETECTION)
            if wanted is not None and not isinstance(wanted, dict):
                raise _invalid(self._name(_TURN_DETECTION), "an object or null")
            before = _at(self.values, _TURN_DETECTION)
            found = None if wanted is None else _vad(self.kind, wanted, before)
            _put(merged, _TURN_DETECTION, found)
        if _has(update, _TRANSCRIPTION) and _at(merged, _TRANSCRIPTION) is not None:
            found = _at(merged, _TRANSCRIPTION)
            model = found.get("model") if isinstance(found, dict) else None
            if not isinstance(model, str) or not model:
                raise _invalid(self._name(_TRANSCRIPTION) + ".model", "a model's name")
            _put(merged, (*_TRANSCRIPTION, "model"), knobs.without_directives(model))
        if _MAXIMUM[0] in update:
            _checked_maximum(update[_MAXIMUM[0]], self._name(_MAXIMUM))
        if _MODALITIES[0] in update:
            _checked_modalities(update[_MODALITIES[0]], self._name(_MODALITIES))

    def _name(self, path: Path) -> str:
        if self.shape == "beta":
            for name, found in _BETA_NAMES.items():
                if found == path:
                    return f"session.{name}"
        return "session." + ".".join(path)


def _merged(old: Any, new: Any) -> Any:
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return old | {name: _merged(old.get(name), value) for name, value in new.items()}


def _byte_rate(form: Mapping[str, Any]) -> int:
    return 2 * int(form["rate"]) if form["type"] == "audio/pcm" else 8_000


def _checked_format(form: Any, name: str) -> dict[str, Any]:
    match form:
        case {"type": "audio/pcm"}:
            rate = form.get("rate", media.SAMPLE_RATE)
            if type(rate) is int and 1_000 <= rate <= 192_000:
                return {"type": "audio/pcm", "rate": rate}
            raise _invalid(f"{name}.rate", "a rate in Hz")
        case {"type": "audio/pcmu" | "audio/pcma" as law}:
            return {"type": law}
    raise _invalid(f"{name}.type", "'audio/pcm', 'audio/pcmu' or 'audio/pcma'")


def _ga_format(name: Any, parameter: str) -> dict[str, Any]:
    form = _BETA_FORMATS.get(name) if isinstance(name, str) else None
    if form is None:
        raise _invalid(parameter, "'pcm16', 'g711_ulaw' or 'g711_alaw'")
    return form


def _beta_format(form: Mapping[str, Any]) -> str:
    names = {"audio/pcm": "pcm16", "audio/pcmu": "g711_ulaw", "audio/pcma": "g711_alaw"}
    return names[form["type"]]


def _checked_maximum(value: Any, name: str) -> int | None:
    if value is None or value == "inf":
        return None
    if type(value) is not int or not 1 <= value <= OUTPUT_TOKENS_MAX:
        raise _invalid(name, f"an integer from 1 to {OUTPUT_TOKENS_MAX} or 'inf'")
    return int(value)


def _checked_modalities(value: Any, name: str) -> bool:
    """Whether the answer is sound."""
    if not isinstance(value, list) or not value or not set(map(str, value)) <= {"text", "audio"}:
        raise _invalid(name, "['text'] or ['audio']")
    return "audio" in value


# --- Items, responses and their usage ---------------------------------------------------


class _Item(msgspec.Struct):
    """What an item adds to the input of later responses."""

    text_bytes: int = 0
    text_tokens: int = 0
    audio_tokens: int = 0
    images: int = 0


def _audio_tokens(seconds: Fraction) -> int:
    return math.ceil(seconds * answers.AUDIO_TOKENS_PER_SECOND)


def _read_item(item: Any, byte_rate: int) -> tuple[_Item, dict[str, Any]]:
    """What an item a client creates counts as, and how it is answered: without its sound."""
    if not isinstance(item, dict) or item.get("type") not in (
        "message",
        "function_call",
        "function_call_output",
        "item_reference",
    ):
        raise _invalid("item.type", "'message', 'function_call' or 'function_call_output'")
    counted = _Item()
    shown = dict(item)
    if item["type"] != "message":
        counted.text_bytes = answers.text_bytes([item.get("arguments"), item.get("output")])
        return counted, shown
    if item.get("role") not in ("user", "assistant", "system"):
        raise _invalid("item.role", "'user', 'assistant' or 'system'")
    parts = item.get("content")
    if not isinstance(parts, list):
        raise _invalid("item.content", "a list of parts")
    shown["content"] = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("input_text", "text", "output_text"):
            counted.text_bytes += answers.text_bytes(part.get("text"))
        elif kind in ("input_audio", "audio", "output_audio"):
            payload = part.get("audio")
            sound = media.base64_bytes(payload) if isinstance(payload, str) else b""
            if sound is None:
                raise _invalid("item.content.audio", "sound in base64")
            counted.audio_tokens += _audio_tokens(Fraction(len(sound), byte_rate))
            counted.text_bytes += answers.text_bytes(part.get("transcript"))
            part = {name: value for name, value in part.items() if name != "audio"}
        elif kind == "input_image":
            counted.images += 1
        else:
            raise _invalid("item.content.type", "'input_text', 'input_audio' or 'input_image'")
        shown["content"].append(part)
    return counted, shown


class _Input(msgspec.Struct, frozen=True):
    """The input of a response by what it is made of."""

    text: int
    audio: int
    image: int


def _response_usage(found: _Input, words: int, audio: int, now: Knobs) -> dict[str, Any]:
    """The usage of a response; parts never exceed their whole."""
    text_in, audio_in, image_in = found.text, found.audio + now.audio_in, found.image
    if now.tokens_in is not None:
        audio_in, image_in = min(now.audio_in, now.tokens_in), 0
        text_in = now.tokens_in - audio_in
    text_out, audio_out = words, audio + now.audio_out
    if now.tokens_out is not None:
        audio_out = min(now.audio_out, now.tokens_out)
        text_out = now.tokens_out - audio_out
    cached_text = min(text_in, math.floor(now.cached_share * text_in) + now.cached)
    rest = max(0, now.cached - text_in)
    cached_audio = min(audio_in, math.floor(now.cached_share * audio_in) + rest)
    whole_in, whole_out = text_in + audio_in + image_in, text_out + audio_out
    return {
        "total_tokens": whole_in + whole_out,
        "input_tokens": whole_in,
        "output_tokens": whole_out,
        "input_token_details": {
            "text_tokens": text_in,
            "audio_tokens": audio_in,
            "image_tokens": image_in,
            "cached_tokens": cached_text + cached_audio,
            "cached_tokens_details": {
                "text_tokens": cached_text,
                "audio_tokens": cached_audio,
                "image_tokens": 0,
            },
        },
        "output_token_details": {"text_tokens": text_out, "audio_tokens": audio_out},
    }


def _transcript_usage(
    model: str, prompt: str, seconds: Fraction, words: int, now: Knobs, *, fixed: bool
) -> dict[str, Any]:
    if "whisper" in model:
        billed = float(seconds) if now.seconds is None else now.seconds
        return {"type": "duration", "seconds": billed}
    text = answers.tokens_of_bytes(len(prompt.encode())) if prompt else 0
    audio = max(1, _audio_tokens(seconds))
    if fixed and now.tokens_in is not None:
        text = min(text, now.tokens_in)
        audio = now.tokens_in - text
    out = now.tokens_out if fixed and now.tokens_out is not None else words
    return {
        "type": "tokens",
        "total_tokens": text + audio + out,
        "input_tokens": text + audio,
        "input_token_details": {"text_tokens": text, "audio_tokens": audio},
        "output_tokens": out,
    }


def _amounts(usage: Mapping[str, Any]) -> dict[str, float]:
    """A usage flat, for the record: `input_tokens`, `input_audio_tokens`, `cached_tokens`..."""
    if usage.get("type") == "duration":
        return {"seconds": usage["seconds"]}
    told = usage["input_token_details"]
    found: dict[str, float] = {
        name: usage[name] for name in ("total_tokens", "input_tokens", "output_tokens")
    }
    for name in ("text_tokens", "audio_tokens", "image_tokens"):
        found[f"input_{name}"] = told.get(name, 0)
    found["cached_tokens"] = told.get("cached_tokens", 0)
    for name, amount in told.get("cached_tokens_details", {}).items():
        found[f"cached_{name}"] = amount
    for name, amount in usage.get("output_token_details", {}).items():
        found[f"output_{name}"] = amount
    return found


@lru_cache(maxsize=256)
def _spoken(piece: str, milliseconds: int, kind: str, rate: int) -> str:
    """The first milliseconds of a piece of text, spoken, in base64."""
    text = piece.strip() or " "
    speed = len(text) * media.CHARACTER_SAMPLES * 1000 / (WORD_MS * media.SAMPLE_RATE)
    size = 2 * media.SAMPLE_RATE * WORD_MS // 1000
    pcm = media.speech_pcm(text, speed)[:size].ljust(size, b"\0")
    pcm = pcm[: 2 * media.SAMPLE_RATE * milliseconds // 1000]
    if kind == "audio/pcm":
        sound = media.resampled(pcm, rate)
    else:
        law: Literal["ulaw", "alaw"] = "ulaw" if kind == "audio/pcmu" else "alaw"
        sound = media.g711(media.resampled(pcm, 8_000), law)
    return base64.b64encode(sound).decode()


class _Response:
    """One response on its way."""

    def __init__(
        self,
        *,
        number: int,
        response_id: str,
        item_id: str,
        now: Knobs | None,
        found: _Input,
        maximum: int | None,
        audio: bool,
        form: Mapping[str, Any],
        voice: Any,
        stored: bool,
        metadata: Any,
        after: "_Response | None",
    ) -> None:
        self.number, self.id, self.item_id = number, response_id, item_id
        self.knobs = now  # its own, or else the session's
        self.input, self.maximum, self.audio = found, maximum, audio
        self.form, self.voice = form, voice
        self.stored, self.metadata, self.after = stored, metadata, after
        self.status = "in_progress"
        self.details: dict[str, Any] | None = None
        self.before: str | None = None  # the item before its own
        self.transcript: list[str] = []
        self.audio_tokens = 0
        self.cancelled = asyncio.Event()
        self.cancel_reason = ""
        self.over = asyncio.Event()

    def cancel(self, reason: str) -> None:
        if not self.cancelled.is_set():
            self.cancel_reason = reason
            self.cancelled.set()


# --- The session ------------------------------------------------------------------------


class _Over(Exception):
    """The session has ended; there is nothing more to say."""


class Socket(Protocol):
    """A WebSocket that was accepted, as ASGI speaks it."""

    async def receive(self) -> Message: ...

    async def send(self, message: Message) -> None: ...

    def lent(self, name: str) -> Callable[[], Any] | None: ...


Handler = Callable[[dict[str, Any]], Awaitable[None]]


class Talk:
    """One session, from after its handshake to its end."""

    def __init__(
        self,
        socket: Socket,
        opened: Opening,
        setting: Knobs,
        number: int,
        record: Session,
    ) -> None:
        self.record = record
        self._socket = socket
        self._number = number
        self._opening = opened
        self._knobs = setting
        self._shape = opened.shape
        self._config = _Config(
            opened.kind, opened.shape, opened.model, f"sess_sim{number:08d}", setting
        )
        self._ending: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._opened = asyncio.Event()
        self._opened_at = 0.0
        self._timers: list[asyncio.TimerHandle] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._ids = 0
        self._events = 0
        self._items: dict[str, _Item] = {}
        self._last_item: str | None = None
        # Sound by bytes per second, so that no format change ever rates it anew.
        self._buffer: Counter[int] = Counter()
        self._heard: Counter[int] = Counter()
        self._active: _Response | None = None
        self._handlers: dict[str, Handler] = {
            "input_audio_buffer.append": self._on_append,
            "input_audio_buffer.commit": self._on_commit,
            "input_audio_buffer.clear": self._on_clear,
        }
        if opened.kind == "conversation":
            self._handlers |= {
                "conversation.item.create": self._on_item_create,
                "conversation.item.delete": self._on_item_delete,
                "conversation.item.truncate": self._on_item_truncate,
                "response.create": self._on_response_create,
                "response.cancel": self._on_response_cancel,
            }
        if opened.kind == "transcription" and opened.shape == "beta":
            self._handlers["transcription_session.update"] = self._on_update
        else:
            self._handlers["session.update"] = self._on_update

    async def run(self) -> Ended:
        """The whole session."""
        self._spawn(self._open())
        self._spawn(self._read())
        try:
            how = await self._ending
        finally:
            for timer in self._timers:
                timer.cancel()
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._note_end()
        return await self._end(how)

    def _note_end(self) -> None:
        record = self.record
        if self._opened_at:
            record.seconds = asyncio.get_running_loop().time() - self._opened_at
        pings = self._socket.lent(PINGS)
        record.pings = pings() if pings else 0

    async def _end(self, how: str) -> Ended:
        if how == "left":
            return "client_left"
        if how != "refused":
            self.record.fault = how
        if how == "disconnect":
            abort = self._socket.lent(ABORT)
            if abort is None:
                raise ConnectionAbortedError("the simulator was asked to hang up")
            abort()
            return "cut"
        if how == "stall":
            silence = self._socket.lent(SILENCE)
            if silence is not None:
                silence()
            await self._until_gone()
            return "client_left"
        code, reason = self._knobs.close_code, ""
        with contextlib.suppress(OSError):
            if how == "error_event":
                refusal = answers.status_refusal(500)
                if self._knobs.message is not None:
                    refusal.message = self._knobs.message
                await self._write("error", error=_error(refusal, None))
                code = 1011
            elif how == "refused":
                error = self._opening.error
                assert error is not None
                code, reason = 4000, f"{error.kind}.{error.code}"
            self.record.close_sent = code
            await self._socket.send({"type": "websocket.close", "code": code, "reason": reason})
            await self._until_gone()
        return "answered"

    async def _until_gone(self) -> None:
        while (message := await self._socket.receive())["type"] != "websocket.disconnect":
            pass
        self._note_close(message)

    def _note_close(self, message: Message) -> None:
        if self.record.close_sent is not None:
            return
        # The server says 1005 also where the connection broke without a close frame.
        broke = message.get("reason") is None and message.get("code") in (None, 1005)
        self.record.close_received = 1006 if broke else message.get("code")
        self.record.close_reason = message.get("reason") or ""

    # Faults.

    def _finish(self, how: str) -> None:
        if not self._ending.done():
            self._ending.set_result(how)

    def _reach(self, reached: Callable[[str], bool]) -> None:
        """End the session if a knob named a point that is now reached."""
        for name in knobs.POINT_KNOBS:
            point = getattr(self._knobs, name)
            if point is not None and reached(point):
                self._finish(name)
                raise _Over

    def _reach_sent(self) -> None:
        sent = self.record.events_sent
        self._reach(
            lambda point: point.startswith("after:") and sent >= int(point.removeprefix("after:"))
        )

    def _reach_heard(self) -> None:
        heard = self.record.audio_bytes
        self._reach(
            lambda point: point.startswith("bytes:") and heard >= int(point.removeprefix("bytes:"))
        )

    def _turn(self, setting: Knobs) -> None:
        """Go by these knobs from now on."""
        self._knobs = setting
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        loop = asyncio.get_running_loop()
        for name in knobs.POINT_KNOBS:
            point = getattr(setting, name)
            if point is not None and point.startswith("seconds:"):
                due = self._opened_at + float(point.removeprefix("seconds:"))
                self._timers.append(loop.call_at(due, self._finish, name))
        self._reach(lambda point: point == "before-headers")
        self._reach_sent()
        self._reach_heard()

    # Tasks.

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except (_Over, OSError):
            # A client that left is what `_read` sees by itself.
            pass
        except Exception as error:
            if not self._ending.done():
                self._ending.set_exception(error)

    async def _open(self) -> None:
        if self._knobs.latency:
            await asyncio.sleep(self._knobs.latency)
        self._opened_at = asyncio.get_running_loop().time()
        if self._opening.error is not None:
            await self._send("error", error=_error(self._opening.error, None))
            self._finish("refused")
            return
        self._turn(self._knobs)
        name = "session"
        if self._config.kind == "transcription" and self._shape == "beta":
            name = "transcription_session"
        self.record.config = self._config.view()
        await self._send(f"{name}.created", session=self.record.config)
        self._opened.set()

    async def _read(self) -> None:
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                self._note_close(message)
                self._finish("left")
                return
            await self._opened.wait()
            await self._frame(message)
            while len(self._tasks) > TASKS_MAX:
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)

    # Sending.

    def _id(self, what: str) -> str:
        self._ids += 1
        return f"{what}_sim{self._number:08d}_{self._ids:06d}"

    def _event(self, kind: str, fields: Mapping[str, Any]) -> str:
        self._events += 1
        event_id = f"event_sim{self._number:08d}_{self._events:08d}"
        return answers.encode({"type": kind, "event_id": event_id, **fields}).decode()

    async def _send(self, kind: str, **fields: Any) -> None:
        if self._ending.done():
            raise _Over
        await self._write(kind, **fields)
        self._reach_sent()

    async def _write(self, kind: str, again: int = 1, **fields: Any) -> None:
        text = self._event(kind, fields)
        for _ in range(again):
            self.record.events_sent += 1
            self.record.sent[kind] = self.record.sent.get(kind, 0) + 1
            await self._socket.send({"type": "websocket.send", "text": text})

    async def _report(
        self, kind: str, what: str, usage: dict[str, Any], now: Knobs, fields: dict[str, Any]
    ) -> None:
        """The event that carries a usage, as the knobs want it, and its place in the record."""
        missing = now.usage == "missing"
        sums = self.record.unreported
        try:
            if now.usage_delay:
                await asyncio.sleep(now.usage_delay)
            self._reach(
                lambda point: point == "before-done" or (point == "before-usage" and not missing)
            )
            if self._ending.done():
                raise _Over
            if not missing:
                sums = self.record.reported
        finally:
            _tally(sums, what, _amounts(usage))
        await self._write(kind, again=2 if now.usage == "twice" else 1, **fields)
        self._reach_sent()

    async def _refuse(self, refusal: Refusal, event_id: Any) -> None:
        await self._send("error", error=_error(refusal, event_id))

    # Receiving.

    async def _frame(self, message: Message) -> None:
        text = message.get("text")
        event: Any = None
        if text is not None:
            with contextlib.suppress(msgspec.DecodeError, RecursionError):
                if len(text) > INLINE_MAX:
                    event = await asyncio.to_thread(msgspec.json.decode, text)
                else:
                    event = msgspec.json.decode(text)
        kind = event.get("type") if isinstance(event, dict) else None
        handler = self._handlers.get(kind) if isinstance(kind, str) else None
        self._record_frame(text, message.get("bytes"), kind if handler else None)
        event_id = event.get("event_id") if isinstance(event, dict) else None
        try:
            if not isinstance(event, dict):
                raise Refusal(400, "Your event is no JSON object.", code="invalid_json")
            if handler is None:
                wanted = ", ".join(f"'{name}'" for name in sorted(self._handlers))
                message_text = f"Invalid value: '{kind}'. Supported values are: {wanted}."
                raise Refusal(400, message_text, code="invalid_value", param="type")
            found = {}
            if kind != "input_audio_buffer.append" and knobs.DIRECTIVE_MARK in cast(str, text):
                found = knobs.from_texts(event)
            if found and kind != "response.create":
                self._turn(knobs.merged(self._knobs, found))
            await handler(event)
        except knobs.KnobError as error:
            await self._refuse(Refusal(400, str(error), code="simulator_knob"), event_id)
        except Refusal as refusal:
            await self._refuse(refusal, event_id)

    def _record_frame(self, text: str | None, data: bytes | None, kind: str | None) -> None:
        record = self.record
        size = len(data or b"")
        if text is not None:
            size = len(text) if text.isascii() else len(text.encode())
        name = kind or ("unknown" if text is not None else "binary")
        kept = ""
        if text is not None and name != "input_audio_buffer.append":
            left = TEXT_KEPT - sum(len(frame.text) for frame in record.frames)
            kept = text if len(text) <= left else ""
        record.frames_received += 1
        record.bytes_received += size
        record.received[name] = record.received.get(name, 0) + 1
        record.frames.append(Frame(name, size, kept))
        if len(record.frames) > FRAMES_KEPT:
            del record.frames[: FRAMES_KEPT // 2]

    def _check_refused(self, where: str, values: object) -> None:
        for name in self._knobs.refused_parameters & ({where} | set(_names(values))):
            raise Refusal(
                400,
                f"Unsupported parameter: '{name}' is not supported with this model.",
                code="unsupported_parameter",
                param=name,
            )

    async def _on_update(self, event: dict[str, Any]) -> None:
        session = event.get("session")
        self._check_refused("session", session)
        self._config.update(session)
        self.record.config = self._config.view()
        kind = str(event["type"]) + "d"
        await self._send(kind, session=self._config.view(self._knobs.claim_model))

    async def _on_append(self, event: dict[str, Any]) -> None:
        payload = event.get("audio")
        if not isinstance(payload, str):
            raise _invalid("audio", "sound in base64")
        if len(payload) > INLINE_MAX:
            sound = await asyncio.to_thread(media.base64_bytes, payload)
        else:
            sound = media.base64_bytes(payload)
        if sound is None:
            raise _invalid("audio", "sound in base64")
        rate = self._config.input_rate
        self._buffer[rate] += len(sound)
        self._heard[rate] += len(sound)
        self.record.audio_bytes += len(sound)
        heard = _seconds(self._heard)
        self.record.audio_seconds = float(heard)
        self._reach_heard()
        detection = self._config.turn_detection
        if detection is None or _seconds(self._buffer) < self._knobs.vad_seconds or not sound:
            return
        item_id = self._id("item")
        start_ms = math.floor((heard - _seconds(self._buffer)) * 1000)
        await self._send(
            "input_audio_buffer.speech_started", audio_start_ms=start_ms, item_id=item_id
        )
        if self._active is not None and detection.get("interrupt_response", True):
            self._active.cancel("turn_detected")
        await self._send(
            "input_audio_buffer.speech_stopped",
            audio_end_ms=math.floor(heard * 1000),
            item_id=item_id,
        )
        await self._commit(item_id)
        waits = self._active is not None and not self._active.cancelled.is_set()
        if (
            self._config.kind == "conversation"
            and detection.get("create_response", True)
            and not waits
        ):
            self._start({}, None, after=self._active)

    async def _on_commit(self, event: dict[str, Any]) -> None:
        if _seconds(self._buffer) < COMMIT_SECONDS_MIN:
            held = float(_seconds(self._buffer) * 1000)
            raise Refusal(
                400,
                "Error committing input audio buffer: buffer too small. Expected at least 100ms "
                f"of audio, but buffer only has {held:.2f}ms of audio.",
                code="input_audio_buffer_commit_empty",
            )
        await self._commit(self._id("item"))

    async def _on_clear(self, event: dict[str, Any]) -> None:
        self._buffer.clear()
        await self._send("input_audio_buffer.cleared")

    async def _commit(self, item_id: str) -> None:
        seconds = _seconds(self._buffer)
        self._buffer.clear()
        await self._send(
            "input_audio_buffer.committed", previous_item_id=self._last_item, item_id=item_id
        )
        part = {"type": "input_audio", "transcript": None}
        shown = {"type": "message", "role": "user", "content": [part]}
        await self._add_item(item_id, _Item(audio_tokens=_audio_tokens(seconds)), shown)
        if self._config.transcription is not None:
            self.record.transcriptions += 1
            number = self.record.transcriptions
            self._spawn(self._transcribe(item_id, seconds, self._config.transcription, number))

    async def _add_item(self, item_id: str, item: _Item, shown: dict[str, Any]) -> None:
        """Add an item that is whole, and say so."""
        before = self._keep(item_id, item)
        fields = {
            "previous_item_id": before,
            "item": {"id": item_id, "object": "realtime.item", "status": "completed"} | shown,
        }
        if self._shape == "beta":
            await self._send("conversation.item.created", **fields)
        else:
            await self._send("conversation.item.added", **fields)
            await self._send("conversation.item.done", **fields)

    def _keep(self, item_id: str, item: _Item) -> str | None:
        if len(self._items) >= ITEMS_KEPT:
            # As a full context does: the oldest goes.
            del self._items[next(iter(self._items))]
        self._items[item_id] = item
        before, self._last_item = self._last_item, item_id
        return before

    async def _on_item_create(self, event: dict[str, Any]) -> None:
        item, shown = _read_item(event.get("item"), self._config.input_rate)
        item_id = shown.pop("id", None) or self._id("item")
        if not isinstance(item_id, str) or len(item_id) > 64 or item_id in self._items:
            raise _invalid("item.id", "a new id of at most 64 characters")
        await self._add_item(item_id, item, shown)

    async def _on_item_delete(self, event: dict[str, Any]) -> None:
        item_id = self._known_item(event)
        del self._items[item_id]
        await self._send("conversation.item.deleted", item_id=item_id)

    async def _on_item_truncate(self, event: dict[str, Any]) -> None:
        item_id = self._known_item(event)
        end_ms = event.get("audio_end_ms")
        if type(end_ms) is not int or end_ms < 0:
            raise _invalid("audio_end_ms", "milliseconds")
        item = self._items[item_id]
        item.audio_tokens = min(item.audio_tokens, _audio_tokens(Fraction(end_ms, 1000)))
        item.text_tokens = item.text_bytes = 0
        await self._send(
            "conversation.item.truncated",
            item_id=item_id,
            content_index=event.get("content_index", 0),
            audio_end_ms=end_ms,
        )

    def _known_item(self, event: dict[str, Any]) -> str:
        item_id = event.get("item_id")
        if not isinstance(item_id, str) or item_id not in self._items:
            message = f"Item with item_id '{item_id}' not found."
            raise Refusal(400, message, code="item_not_found", param="item_id")
        return item_id

    # Responses.

    async def _on_response_create(self, event: dict[str, Any]) -> None:
        wanted = event.get("response") or {}
        if not isinstance(wanted, dict):
            raise _invalid("response", "an object")
        self._check_refused("response", wanted)
        found = knobs.from_texts(wanted)
        own = knobs.merged(self._knobs, found) if found else None
        stored = wanted.get("conversation", "auto") != "none"
        if stored and self._active is not None:
            raise Refusal(
                400,
                "Conversation already has an active response in progress: "
                f"{self._active.id}. Wait until the response is finished before creating a new "
                "one.",
                code="conversation_already_has_active_response",
            )
        self._start(wanted, own)

    async def _on_response_cancel(self, event: dict[str, Any]) -> None:
        response = self._active
        wanted = event.get("response_id")
        if response is None or (wanted is not None and wanted != response.id):
            raise Refusal(
                400,
                "Cancellation failed: no active response found",
                code="response_cancel_not_active",
            )
        response.cancel("client_cancelled")

    def _start(
        self, wanted: Mapping[str, Any], own: Knobs | None, after: _Response | None = None
    ) -> None:
        """Begin a response with what a `response.create` asks for, else as the session is."""
        values = self._config.values
        beta = self._shape == "beta"
        allowed = _RESPONSE_NAMES | (
            {"modalities", "voice", "output_audio_format", "temperature", "max_output_tokens"}
            | {"max_response_output_tokens"}
            if beta
            else {"output_modalities", "audio", "max_output_tokens"}
        )
        for name in wanted:
            if name not in allowed:
                message = f"Unknown parameter: 'response.{name}'."
                raise Refusal(400, message, code="unknown_parameter", param=f"response.{name}")
        maximum = _checked_maximum(values["max_output_tokens"], "max_output_tokens")
        for name in ("max_output_tokens", "max_response_output_tokens"):
            if wanted.get(name) is not None:
                maximum = _checked_maximum(wanted[name], f"response.{name}")
        modalities = wanted.get("modalities" if beta else "output_modalities")
        if modalities is None:
            modalities = values["output_modalities"]
        audio = _checked_modalities(modalities, "response.output_modalities")
        form, voice = _at(values, _FORMAT_OUT), _at(values, ("audio", "output", "voice"))
        if beta and wanted.get("output_audio_format") is not None:
            form = _ga_format(wanted["output_audio_format"], "response.output_audio_format")
        elif _at(wanted, _FORMAT_OUT) is not None:
            form = _checked_format(_at(wanted, _FORMAT_OUT), "response.audio.output.format")
        voice = wanted.get("voice") or _at(wanted, ("audio", "output", "voice")) or voice
        found = self._input_of(wanted)
        response = _Response(
            number=0,
            response_id=self._id("resp"),
            item_id=self._id("item"),
            now=own,
            found=found,
            maximum=maximum,
            audio=audio,
            form=form,
            voice=voice,
            stored=wanted.get("conversation", "auto") != "none",
            metadata=wanted.get("metadata"),
            after=after,
        )
        if response.stored:
            self._active = response
        self._spawn(self._respond(response))

    def _input_of(self, wanted: Mapping[str, Any]) -> _Input:
        items = list(self._items.values())
        if wanted.get("input") is not None:
            if not isinstance(wanted["input"], list):
                raise _invalid("response.input", "a list of items")
            items = []
            for entry in wanted["input"]:
                item, shown = _read_item(entry, self._config.input_rate)
                if shown["type"] == "item_reference":
                    item = self._items[self._known_item({"item_id": shown.get("id")})]
                items.append(item)
        values = self._config.values
        size = sum(item.text_bytes for item in items)
        for name in ("instructions", "tools"):
            value = wanted.get(name)
            size += answers.text_bytes(values[name] if value is None else value)
        text = answers.tokens_of_bytes(size) if size else 0
        return _Input(
            text=text + sum(item.text_tokens for item in items),
            audio=sum(item.audio_tokens for item in items),
            image=answers.IMAGE_TOKENS * sum(item.images for item in items),
        )

    async def _respond(self, response: _Response) -> None:
        reported = started = False
        try:
            if response.after is not None:
                await response.after.over.wait()
                if response.cancelled.is_set():
                    return
                response.input = self._input_of({})
            started = True
            self.record.responses += 1
            response.number = self.record.responses
            await self._begin(response)
            whole = await self._utter(response)
            self._conclude(response, whole)
            await self._close_item(response)
            now = response.knobs or self._knobs
            usage = self._usage(response)
            shown = self._shown(response)
            if now.usage != "missing":
                shown["usage"] = usage
            reported = True
            await self._report("response.done", "response", usage, now, {"response": shown})
        finally:
            if started and not reported:
                _tally(self.record.unreported, "response", _amounts(self._usage(response)))
            if self._active is response:
                self._active = None
            response.over.set()

    def _usage(self, response: _Response) -> dict[str, Any]:
        words = len(response.transcript)
        now = response.knobs or self._knobs
        return _response_usage(response.input, words, response.audio_tokens, now)

    def _shown(self, response: _Response) -> dict[str, Any]:
        beta = self._shape == "beta"
        over = response.status != "in_progress"
        shown: dict[str, Any] = {
            "object": "realtime.response",
            "id": response.id,
            "status": response.status,
            "status_details": response.details,
            "output": [self._shown_item(response)] if over else [],
            "conversation_id": f"conv_sim{self._number:08d}" if response.stored else None,
            "max_output_tokens": response.maximum or "inf",
            "metadata": response.metadata,
            "usage": None,
        }
        if beta:
            shown["modalities"] = ["audio", "text"] if response.audio else ["text"]
            shown["voice"] = response.voice
            shown["output_audio_format"] = _beta_format(response.form)
            shown["temperature"] = 0.8
        else:
            shown["output_modalities"] = ["audio"] if response.audio else ["text"]
            shown["audio"] = {"output": {"format": response.form, "voice": response.voice}}
        if over:
            del shown["usage"]
        return shown

    def _shown_item(self, response: _Response, *, empty: bool = False) -> dict[str, Any]:
        prefix = "" if self._shape == "beta" else "output_"
        text = "".join(response.transcript)
        part = {"type": f"{prefix}text", "text": text}
        if response.audio:
            part = {"type": f"{prefix}audio", "transcript": text}
        status = "completed" if response.status == "completed" else "incomplete"
        return {
            "id": response.item_id,
            "object": "realtime.item",
            "type": "message",
            "status": "in_progress" if response.status == "in_progress" else status,
            "role": "assistant",
            "content": [] if empty else [part],
        }

    async def _begin(self, response: _Response) -> None:
        await self._send("response.created", response=self._shown(response))
        item = self._shown_item(response, empty=True)
        await self._send(
            "response.output_item.added", response_id=response.id, output_index=0, item=item
        )
        if response.stored:
            response.before = self._keep(response.item_id, _Item())
            kind = "created" if self._shape == "beta" else "added"
            await self._send(
                f"conversation.item.{kind}", previous_item_id=response.before, item=item
            )
        part = {"type": "audio", "transcript": ""} if response.audio else _text_part("")
        await self._send("response.content_part.added", **self._place(response), part=part)

    def _place(self, response: _Response) -> dict[str, Any]:
        return {
            "response_id": response.id,
            "item_id": response.item_id,
            "output_index": 0,
            "content_index": 0,
        }

    async def _utter(self, response: _Response) -> bool:
        """The deltas; whether the answer got to its end."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        prefix = "response." if self._shape == "beta" else "response.output_"
        place = self._place(response)
        left = math.inf if response.maximum is None else response.maximum
        pieces = answers.pieces(response.knobs or self._knobs)
        for index, piece in enumerate(pieces):
            if left < 1:
                return False
            now = response.knobs or self._knobs
            due = began
            if response.audio and now.pace:
                due += index * WORD_MS / 1000 / now.pace
            await _pause(response.cancelled, max(due - loop.time(), 0.0) + now.chunk_delay)
            if response.cancelled.is_set():
                return False
            left -= 1
            response.transcript.append(piece)
            if response.audio:
                await self._send(f"{prefix}audio_transcript.delta", **place, delta=piece)
                tokens = int(min(WORD_AUDIO_TOKENS, left))
                left -= tokens
                if tokens:
                    kind, rate = response.form["type"], response.form.get("rate", 8_000)
                    sound = _spoken(piece, tokens * TOKEN_MS, kind, rate)
                    response.audio_tokens += tokens
                    await self._send(f"{prefix}audio.delta", **place, delta=sound)
                if tokens < WORD_AUDIO_TOKENS:
                    self._reach_number(response.number)
                    return False
            else:
                await self._send(f"{prefix}text.delta", **place, delta=piece)
            if index == 0:
                self._reach_number(response.number)
        if not pieces:
            self._reach_number(response.number)
        return True

    def _reach_number(self, number: int) -> None:
        self._reach(
            lambda point: (
                point.startswith("response:") and number >= int(point.removeprefix("response:"))
            )
        )

    def _conclude(self, response: _Response, whole: bool) -> None:
        """The status a response ends with."""
        end = (response.knobs or self._knobs).end
        if response.cancelled.is_set() and not whole:
            response.status = "cancelled"
            response.details = {"type": "cancelled", "reason": response.cancel_reason}
        elif not whole:
            response.status = "incomplete"
            response.details = {"type": "incomplete", "reason": "max_output_tokens"}
        elif end == "incomplete":
            response.status = "incomplete"
            response.details = {"type": "incomplete", "reason": "content_filter"}
        elif end == "failed":
            response.status = "failed"
            error = {
                "type": "server_error",
                "code": "server_error",
                "message": answers.status_refusal(500).message,
            }
            response.details = {"type": "failed", "error": error}
        else:
            response.status = "completed"

    async def _close_item(self, response: _Response) -> None:
        words = len(response.transcript)
        seconds = Fraction(response.audio_tokens * TOKEN_MS, 1000)
        if response.item_id in self._items:
            self._items[response.item_id] = _Item(
                text_tokens=words, audio_tokens=_audio_tokens(seconds)
            )
        prefix = "response." if self._shape == "beta" else "response.output_"
        place = self._place(response)
        text = "".join(response.transcript)
        if response.audio:
            await self._send(f"{prefix}audio.done", **place)
            await self._send(f"{prefix}audio_transcript.done", **place, transcript=text)
            part = {"type": "audio", "transcript": text}
        else:
            await self._send(f"{prefix}text.done", **place, text=text)
            part = _text_part(text)
        await self._send("response.content_part.done", **place, part=part)
        item = self._shown_item(response)
        if response.stored and self._shape == "ga":
            await self._send("conversation.item.done", previous_item_id=response.before, item=item)
        await self._send(
            "response.output_item.done", response_id=response.id, output_index=0, item=item
        )

    # Transcripts.

    async def _transcribe(
        self, item_id: str, seconds: Fraction, chosen: dict[str, Any], number: int
    ) -> None:
        own = self._config.kind == "transcription"
        now = self._knobs
        model, prompt = str(chosen["model"]), str(chosen.get("prompt") or "")
        if own and now.text is not None:
            pieces = answers.pieces(now)
        else:
            rate = answers.TRANSCRIPT_TOKENS_PER_SECOND
            pieces = answers.words(max(1, math.ceil(seconds) * rate))
        usage = _transcript_usage(model, prompt, seconds, len(pieces), now, fixed=own)
        text = "".join(pieces)
        name = "conversation.item.input_audio_transcription"
        place = {"item_id": item_id, "content_index": 0}
        reported = False
        try:
            for index, piece in enumerate((text,) if "whisper" in model else pieces):
                await asyncio.sleep(now.chunk_delay)
                await self._send(f"{name}.delta", **place, delta=piece)
                if own and index == 0:
                    self._reach_number(number)
            if own and now.end == "failed":
                error = {
                    "type": "server_error",
                    "code": "transcription_failed",
                    "message": answers.status_refusal(500).message,
                    "param": None,
                }
                reported = True  # that it failed, and so used nothing
                await self._send(f"{name}.failed", **place, error=error)
                return
            fields: dict[str, Any] = place | {"transcript": text}
            if now.usage != "missing":
                fields["usage"] = usage
            reported = True
            await self._report(f"{name}.completed", "transcription", usage, now, fields)
        finally:
            if not reported:
                _tally(self.record.unreported, "transcription", _amounts(usage))


def _seconds(sound: Mapping[int, int]) -> Fraction:
    return sum((Fraction(size, rate) for rate, size in sound.items()), Fraction(0))


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _names(value: object) -> set[str]:
    """Every name at any depth of an object."""
    if not isinstance(value, dict):
        return set()
    return set(value).union(*(_names(item) for item in value.values()))


def _error(refusal: Refusal, event_id: Any) -> dict[str, Any]:
    return {
        "type": refusal.kind,
        "code": refusal.code,
        "message": refusal.message,
        "param": refusal.param,
        "event_id": event_id,
    }


async def _pause(until: asyncio.Event, seconds: float) -> None:
    """Wait so long, or until the event; at least let others have their turn."""
    if seconds <= 0:
        await asyncio.sleep(0)
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await until.wait()
