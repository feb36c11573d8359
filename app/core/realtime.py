"""Realtime without I/O: frames in; out come what to forward, what it cost, what it may yet cost.

Owns the state of one session: which audio was relayed under which set-up, what the provider
reported, which responses run, the most the session can come to (its exposure), and how that
becomes a demand of the ledger. Owns no socket, no clock, no hold: the gateway asks the ledger and
tells the session what it got.

Invariants:

- A client's frame that raises the exposure above what is held is not forwarded before the ledger
  has granted it; and the bill is never above the exposure.
- Audio is metered by the set-up (format, models) in force where the provider reads it. Between a
  claim to change it and the provider's answer the dearer of the two counts; the answer settles the
  audio in between, though never for more than was held as it was relayed, and nothing metered
  before is rated again.
- A response and a transcript are metered once each, however often they are reported.
- What is reported in a unit that the price has no rate for makes the session unpriced, and never
  half-priced; where unpriced calls are not allowed (`must_cost`), it takes the dearest rate of its
  side instead, and the bill is flagged. It is held for at that rate in any case. Models with and
  without a price never meet in one session.
- A client's frame that cannot be read goes nowhere: it might name a model. Every other one is
  forwarded as it came, in order. Only the name of a model and a maximum of output tokens are ever
  written into one (and half a character is replaced, as nobody else can read it either).
- No frame raises, from either side.

How audio is metered follows the price: by `second` if that has a rate, or if there is no price at
all; else by the tokens that the provider reports, and if it never does by 10 tokens a second.

The hold covers, beside what was used: each response that runs or was asked for, at its context
and its maximum of output; one more, since voice activity starts responses by itself; and audio
that the provider has not reported on. Near a limit the maximum of output is what gives way: it is
written into what the client sends, and told to the provider before anything else is sent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from itertools import islice
from math import ceil
from typing import Any, Final, Literal

import msgspec
from msgspec import Raw

from app.core.ceilings import ModelFacts
from app.core.ledger import AccountKey, Actual, Demand, Grant, OpenDemand
from app.core.metering import (
    DECODE_ERRORS,
    TOKEN_UNITS,
    Usage,
    exact,
    members_of,
    meter_responses,
    meter_transcription,
    tokens_of,
    utf8_len,
)
from app.core.preflight import PLAIN
from app.core.pricing import COST_NANO_MAX, Price
from app.core.refusals import Reason, Refusal

Kind = Literal["conversation", "transcription"]
Frame = str | bytes
Exposure = tuple[int, Fraction]
"""Tokens, and exact nano-USD."""

PCM16_24K: Final = 48_000
BYTES_PER_SECOND_LEAST: Final = 8_000
"""Of G.711, and of a format that nobody knows: it is the slowest there is."""
RATE_MAX: Final = 192_000
"""Samples a second; what claims more is no format."""

SLICE_TENTHS: Final = 100
"""Audio is held ten seconds ahead, in tenths of a second."""
RENEW_TENTHS: Final = 30
OPENING_TENTHS: Final = 10
"""A session is not opened for less than a second of audio."""
OUTPUT_TOKENS_MOST: Final = 4096
"""The longest response of a model that does not say: the most that the API lets one ask for."""
OUTPUT_TOKENS_LEAST: Final = 16
"""A response is not begun for less."""
OUTPUT_AUDIO_TOKENS_PER_SECOND: Final = 20
TEXT_TOKENS_PER_SECOND: Final = 25
"""No one speaks faster: what a transcript comes to at the most."""
WINDOW_UNKNOWN: Final = 128_000
FRAME_TOKENS: Final = 8
REMEMBERED: Final = 10_000
"""Reports remembered so that none counts twice."""
RECKONED: Final = 64
"""Claims in doubt that are looked at again when one is answered; later ones keep their worst."""

OUR_EVENT_ID: Final = "spendgate_maximum"
_INPUT_AUDIO: Final = frozenset({"input_audio_token", "cached_input_audio_token"})
_OUTPUT: Final = frozenset(
    {"output_token", "reasoning_token", "output_audio_token", "output_image_token"}
)
_MAXIMA: Final = ("max_output_tokens", "max_response_output_tokens")
_WEIGHTLESS: Final = frozenset(
    {
        "input_audio_buffer.clear",
        "input_audio_buffer.commit",
        "output_audio_buffer.clear",
        "response.cancel",
        "conversation.item.delete",
        "conversation.item.retrieve",
        "conversation.item.truncate",
    }
)
_APPENDS: Final = tuple(
    f'{{"type":{gap}"input_audio_buffer.append",{gap}"audio":{gap}"' for gap in ("", " ")
)
"""How nearly every frame of a session begins; then nothing but base64 and the end."""
_NONE: Final = Fraction(0)


class Terms(msgspec.Struct, frozen=True):
    """A model as a session may use it: our name, the provider's name, its price, its size."""

    slug: str
    upstream_model: str
    price: Price | None
    price_id: str | None
    facts: ModelFacts


class Rejected(msgspec.Struct, frozen=True):
    """A client's frame that is not forwarded; the session goes on."""

    refusal: Refusal | None
    """None: it could not be read, and might have named a model."""
    event_id: str | None = None


class Bill(msgspec.Struct, frozen=True):
    """What a session comes to so far; whether any of it is our estimate."""

    actual: Actual
    estimated: bool


class Offer(msgspec.Struct):
    """A client's frame as it may go upstream, and what it brings.

    What is to be sent is in `data` once the frame was taken: a maximum may be written into it.
    """

    data: Frame
    audio_bytes: int = 0
    weighs: bool = False
    """Whether it brings anything but audio that the hold must cover."""
    text_tokens: int = 0
    images: bool = False
    responds: bool = False
    maximum: int | None = None
    """Of a response that it asks for."""
    aside: bool = False
    """Whether that response reads something else than the conversation."""
    event_id: str | None = None
    commits: bool = False
    claim: _Claim | None = None


class _Event(msgspec.Struct, gc=False):
    """What is looked at of an event, from either side."""

    type: str = ""
    audio: Raw = Raw()
    session: Raw = Raw()
    response: Raw = Raw()
    item: Raw = Raw()
    error: Raw = Raw()
    delta: Raw = Raw()
    response_id: Raw = Raw()
    item_id: Raw = Raw()
    content_index: Raw = Raw()
    event_id: Raw = Raw()


_decode = msgspec.json.Decoder(_Event).decode
_decode_any = msgspec.json.Decoder(Any, float_hook=float).decode
_encode = msgspec.json.Encoder().encode


class _Meter:
    """What one model of a session has used, and what its units cost."""

    def __init__(self, terms: Terms, transcribes: bool) -> None:
        self.terms = terms
        self.transcribes = transcribes
        price = terms.price
        if price is not None and "second" not in price.numerators:
            # Rates of pages or characters price no session.
            price = price if TOKEN_UNITS & price.numerators.keys() else None
        self.price = price
        self.by_seconds = price is None or "second" in price.numerators
        self.seconds = _NONE
        self.disputed = _NONE
        """Seconds more, should updates that the provider seemed to refuse have been accepted."""
        self.reported: Usage = {}
        self.has_reported = False
        self.covered_tokens = 0
        """Of its audio, in tokens: what reports have settled."""
        self.guessed: Usage = {}
        """What ended without a report."""

    def covers(self, unit: str) -> bool:
        """Tell whether the seconds are the meter of this unit too."""
        if not self.by_seconds or self.price is None or unit in self.price.numerators:
            return False
        return self.transcribes or unit in _INPUT_AUDIO

    def _rate(self, rates: dict[str, int], unit: str) -> int:
        if unit in rates:
            return rates[unit]
        if self.covers(unit):
            return 0
        known = {u: rate for u, rate in rates.items() if u in TOKEN_UNITS}
        side = [rate for u, rate in known.items() if (u in _OUTPUT) == (unit in _OUTPUT)]
        # Without a rate for any token, the seconds are the price of the whole session.
        return max(side or known.values(), default=0)

    def worth(self, unit: str) -> Fraction:
        """Return the most that one of a unit can turn out to cost, whatever it is reported as."""
        if self.price is None:
            return _NONE
        rates = self.price.worst
        return Fraction(
            max(self._rate(rates, unit), rates.get(PLAIN.get(unit, ""), 0)),
            self.price.denominator,
        )

    def cost(self, usage: Usage, seconds: Fraction) -> Fraction:
        """Return what a usage costs, beside so many seconds."""
        if self.price is None:
            return _NONE
        rates = self.price.numerators
        cost = sum((Fraction(q) * self._rate(rates, unit) for unit, q in usage.items()), _NONE)
        if self.by_seconds:
            cost += seconds * rates["second"]
        return cost / self.price.denominator

    def unpriced(self, usage: Usage) -> bool:
        """Tell whether a rate is missing. Without one for any token, seconds price it all."""
        price = self.price
        if price is None:
            return bool(usage)
        lacks = any(unit not in price.numerators for unit in usage)
        return lacks and not TOKEN_UNITS.isdisjoint(price.numerators)

    def told(self) -> Usage:
        """Return what was reported, but for what the seconds cover."""
        return {unit: n for unit, n in self.reported.items() if not self.covers(unit)}

    @property
    def reads_reports(self) -> bool:
        """Whether reports of its transcripts matter."""
        return self.transcribes and not self.covers("output_token")

    def audio_tokens(self, seconds: Fraction) -> int:
        return ceil(seconds * self.terms.facts.audio_tokens_per_second)

    def pending_tokens(self, seconds: Fraction) -> int:
        """Return how much of its audio no report has settled yet, in tokens."""
        return max(0, self.audio_tokens(seconds) - self.covered_tokens)

    def transcripts(self, pending: int) -> Exposure:
        """Return what so many tokens of audio can come to, heard and written down."""
        said = -(-pending * TEXT_TOKENS_PER_SECOND // self.terms.facts.audio_tokens_per_second)
        tokens, cost = 0, _NONE
        for unit, quantity in (("input_audio_token", pending), ("output_token", said)):
            tokens += 0 if self.covers(unit) else quantity
            cost += quantity * self.worth(unit)
        return tokens, cost

    @property
    def dearness(self) -> Fraction:
        """What a second of audio and its transcript cost, to compare models by."""
        return (
            self.cost({}, Fraction(1))
            + self.transcripts(self.terms.facts.audio_tokens_per_second)[1]
        )


class _Setup(msgspec.Struct, frozen=True):
    """What the provider goes by."""

    bytes_per_second: int
    main: _Meter
    transcriber: _Meter | None
    vad: bool
    maximum: int | None
    """Of output tokens, as the client wants it; None: the model's."""
    prompt_tokens: int
    """Of each transcript."""

    @property
    def meters(self) -> list[_Meter]:
        """The models that hear the audio."""
        return [self.main] if self.transcriber is None else [self.main, self.transcriber]

    @property
    def writer(self) -> _Meter | None:
        """The model that writes transcripts."""
        return self.main if self.main.transcribes else self.transcriber

    def worse(self, other: _Setup) -> _Setup:
        """Return the dearer of each part: what counts while either may be in force."""
        transcribers = [s.transcriber for s in (self, other) if s.transcriber is not None]
        maxima = (self.maximum, other.maximum)
        return _Setup(
            min(self.bytes_per_second, other.bytes_per_second),
            _dearer(self.main, other.main),
            _dearer(*transcribers) if transcribers else None,
            self.vad or other.vad,
            None if None in maxima else max(m for m in maxima if m is not None),
            max(self.prompt_tokens, other.prompt_tokens),
        )


def _dearer(first: _Meter, *others: _Meter) -> _Meter:
    for other in others:
        if other is not first and other.dearness > first.dearness:
            first = other
    return first


class _Claim(msgspec.Struct, eq=False):
    """A `session.update` that the provider has not answered, and the audio relayed after it."""

    fields: dict[str, Any]
    """Of the set-up."""
    event_id: str | None = None
    written: int | None = None
    """The maximum that we wrote into it."""
    ours: bool = False
    size: int = 0
    most: Fraction = _NONE
    """The seconds that were held for it as it was relayed, whatever the answer turns out to be."""
    after: Any = None
    """The set-up if it is accepted,"""
    worst: Any = None
    """and the dearest that may be in force until it is answered."""

    def seconds(self, setup: _Setup) -> Fraction:
        """Return what its audio comes to under a set-up."""
        return min(Fraction(self.size, setup.bytes_per_second), self.most)


class _Response:
    """A response that was asked for or runs: what it can cost, and what has come of it."""

    __slots__ = (
        "aside", "audio", "audio_bytes", "began", "event_id", "mark", "most", "read", "text",
        "text_bytes",
    )  # fmt: skip

    def __init__(
        self,
        context: tuple[int, int],
        most: int,
        mark: tuple[int, int],
        aside: bool = False,
        event_id: str | None = None,
    ) -> None:
        self.text, self.audio = self.read = context
        """The most that it may have read; and what it has read, should nobody report it."""
        self.most = most
        self.mark = mark
        """What the conversation had come to when the provider cannot yet have begun it."""
        self.began = mark
        """… and when we heard that it had."""
        self.aside = aside
        """Whether what it reads may be something else than the conversation."""
        self.event_id = event_id
        self.text_bytes = 0
        self.audio_bytes = 0


class Session:
    """One realtime session."""

    def __init__(
        self,
        kind: Kind,
        terms: Terms,
        path: tuple[AccountKey, ...],
        terms_of: Callable[[str], Terms | Refusal],
        *,
        must_cost: bool = False,
    ) -> None:
        self.kind: Kind = kind
        self._must_cost = must_cost
        self.path = path
        self.held_tokens = 0
        self.held_nano = 0
        self.limited = False
        """Whether a limit was in force when the ledger last granted something."""
        self.greeted = False
        """Whether the provider has told what session it opened."""
        self._beta = False
        self._terms_of = terms_of
        main = _Meter(terms, kind == "transcription")
        self._meters = [main]
        self._setup = _Setup(PCM16_24K, main, None, kind == "conversation", None, 0)
        self._worst = self._setup
        self._claims: deque[_Claim] = deque()
        self._fresh = 0
        """Bytes of audio relayed and not yet counted anywhere: nothing has changed since."""
        self._free = 0
        """Bytes of audio that are known to fit."""
        self._asking: Offer | None = None
        self._text = 0
        self._audio = 0
        """The conversation in tokens, without audio since it was last counted up."""
        self._audio_seconds = _NONE
        self._images = False
        self._mark = (0, 0)
        """What the conversation had come to when the last response but one had surely ended."""
        self._clamp: int | None = None
        """The longest response that what is held pays for, if it is less than what is wanted."""
        self._told: int | None = None
        """The maximum of output that the provider has from us."""
        self._deaf = False
        """Whether the provider refused to be told."""
        self._asked: deque[_Response] = deque()
        self._running: dict[str, _Response] = {}
        self._commits = 0
        """Commits of the client that the provider has not confirmed."""
        self._uncommitted = _NONE
        self._awaited: dict[str, Fraction] = {}
        """Seconds of audio by the item whose transcript is still to come."""
        self._seen: dict[object, None] = {}
        self._output_bytes_per_second = PCM16_24K

    # What the call is

    @property
    def terms(self) -> Terms:
        """The model of the session, for its record: the last one that the provider confirmed."""
        return self._setup.main.terms

    @property
    def unused(self) -> bool:
        """Whether nothing was used so far: then the model may still change altogether."""
        return not (
            self._fresh
            or any(claim.size for claim in self._claims)
            or any(m.seconds or m.reported or m.guessed for m in self._meters)
        )

    @property
    def responding(self) -> bool:
        """Whether a response runs, or was asked for."""
        return bool(self._running or self._asked)

    @property
    def idle(self) -> bool:
        """Whether nothing is expected from the provider that would be billed."""
        writer = self._worst.writer
        waits = writer is not None and writer.reads_reports
        return not self.responding and not (waits and (self._awaited or self._commits))

    # Frames from the client

    def read(self, frame: Frame) -> Offer | Rejected:
        """Read a client's frame; nothing changes before it is taken."""
        if isinstance(frame, bytes):
            # No provider of ours takes anything but audio in binary.
            return Offer(frame, len(frame))
        for beginning in _APPENDS:
            if frame.startswith(beginning):
                size, begin = len(frame), len(beginning)
                # Nothing else is in it: the next quotation mark is the last but one character.
                if frame.find('"', begin) == size - 2 and frame[-1] == "}" and "\\" not in frame:
                    padding = 2 if frame[-4:-2] == "==" else 1 if frame[-3] == "=" else 0
                    return Offer(frame, (size - begin - 2 - padding) * 3 // 4)
        frame, event = _read(frame)
        if event is None:
            return Rejected(None)
        match event.type:
            case "input_audio_buffer.append":
                return Offer(frame, _base64_size(_text(event.audio)))
            case "session.update" | "transcription_session.update":
                return self._read_update(frame, event)
            case "response.create" if self.kind == "conversation":
                return self._read_create(frame, event)
            case "conversation.item.create":
                offer = Offer(frame, weighs=True)
                self._weigh(event.item, offer)
                return offer
            case kind if kind in _WEIGHTLESS:
                return Offer(frame, commits=kind == "input_audio_buffer.commit")
            case _:
                return Offer(frame, weighs=True, text_tokens=self._text_tokens(len(frame)))

    def _read_update(self, frame: str, event: _Event) -> Offer | Rejected:
        event_id = _text(event.event_id)
        claim = _Claim({}, event_id)
        offer = Offer(frame, weighs=True, claim=claim)
        session = _object(event.session)
        audio = _object(session.get("audio"))
        audio_input = _object(audio.get("input"))
        wanted = self._claims[-1].after if self._claims else self._setup
        rate = format_rate(session.get("input_audio_format") or audio_input.get("format"))
        if rate is not None:
            claim.fields["bytes_per_second"] = rate
        for place in (session, audio_input):
            if "turn_detection" in place and self.kind == "conversation":
                claim.fields["vad"] = bytes(place["turn_detection"]) != b"null"
        for name in _MAXIMA:
            if name in session:
                claim.fields["maximum"] = _whole(session[name])
        changed = False
        called = _text(session.get("model"))
        if called is not None:
            found = self._find(called, "main", wanted.main)
            if isinstance(found, Refusal):
                return Rejected(found, event_id)
            claim.fields["main"] = found
            changed = _rename(session, found.terms)
        for holder, name in (
            (session, "input_audio_transcription"),
            (audio_input, "transcription"),
        ):
            if name not in holder:
                continue
            transcription = _object(holder[name])
            if not transcription:
                if self.kind == "conversation":
                    claim.fields["transcriber"] = None
                continue
            claim.fields["prompt_tokens"] = self._text_tokens(len(bytes(holder[name])))
            model = _text(transcription.get("model"))
            if model is None:
                continue
            role = "main" if self.kind == "transcription" else "transcriber"
            found = self._find(model, role, wanted.main)
            if isinstance(found, Refusal):
                return Rejected(found, event_id)
            claim.fields[role] = found
            if _rename(transcription, found.terms):
                holder[name] = Raw(_encode(transcription))
                changed = True
        if changed:
            if audio_input:
                session["audio"] = Raw(_encode({**audio, "input": audio_input}))
            offer.data = _with(frame, "session", session)
        size = sum(
            len(bytes(session[name]))
            for name in ("instructions", "tools", "prompt")
            if name in session
        )
        offer.text_tokens = self._text_tokens(size) if size else 0
        return offer

    def _find(self, name: str, role: str, main: _Meter) -> _Meter | Refusal:
        """Return the meter of a model that an update names, if the session may use it."""
        transcribes = role == "transcriber" or self.kind == "transcription"
        for meter in self._meters:
            if name in (meter.terms.slug, meter.terms.upstream_model):
                terms = meter.terms
                break
        else:
            found = self._terms_of(name)
            if isinstance(found, Refusal):
                return found
            terms = found
        same = (
            meter
            for meter in self._meters
            if meter.terms.slug == terms.slug and meter.transcribes == transcribes
        )
        meter = next(same, None) or _Meter(terms, transcribes)
        # A transcription session need not have known its model when it was admitted. But what
        # was admitted without a price holds nothing, and never will.
        undecided = role == "main" and transcribes and self.unused and meter.price is None
        if (meter.price is None) is not (main.price is None) and not undecided:
            detail = f"{name}: models with and without a price cannot share a session."
            return Refusal(Reason.MODEL_UNPRICED, detail=detail)
        return meter

    def _read_create(self, frame: str, event: _Event) -> Offer:
        offer = Offer(frame, weighs=True, responds=True)
        response = _object(event.response)
        for name in ("instructions", "input", "tools"):
            if name in response:
                self._weigh(response[name], offer)
        for name in _MAXIMA:
            if name in response:
                offer.maximum = _whole(response[name])
        offer.aside = "input" in response or _text(response.get("conversation")) == "none"
        offer.event_id = _text(event.event_id)
        return offer

    def _weigh(self, raw: Raw, offer: Offer) -> None:
        """Add what an item or an instruction brings to the context: text, images, audio."""
        try:
            rest: list[Any] = [_decode_any(raw)]
        except DECODE_ERRORS:
            offer.text_tokens += self._text_tokens(len(bytes(raw)))
            return
        facts = self._worst.main.terms.facts
        size = 0
        while rest:
            value = rest.pop()
            if isinstance(value, str):
                size += utf8_len(value)
            elif isinstance(value, list):
                rest += value
            elif isinstance(value, dict):
                kind = value.get("type")
                if kind == "input_image":
                    offer.text_tokens += facts.image_tokens_max
                    offer.images = True
                elif kind == "input_audio" and isinstance(value.get("audio"), str):
                    offer.audio_bytes += _base64_size(value["audio"])
                else:
                    rest += value
                    rest += value.values()
        offer.text_tokens += self._text_tokens(size)

    def _text_tokens(self, size: int) -> int:
        return -(-size // self._worst.main.terms.facts.bytes_per_token) + FRAME_TOKENS

    # Frames that are sent

    def fits(self, offer: Offer) -> bool:
        """Tell whether what is held pays for the frame."""
        if not offer.weighs:
            if offer.audio_bytes <= self._free:
                return True
            self._free = self._room()
            if offer.audio_bytes <= self._free:
                return True
        return self._within(self._exposure(offer))

    def take(self, offer: Offer) -> list[str]:
        """Count a frame as relayed; return what must reach the provider before it."""
        before = self.injections()
        self._fresh += offer.audio_bytes
        self._free -= offer.audio_bytes
        if offer.commits:
            self._commits += 1
        if offer.weighs:
            self._take_weight(offer)
        return before

    def _take_weight(self, offer: Offer) -> None:
        self._flow()
        self._free = 0
        self._images = self._images or offer.images
        if offer.responds:
            most = self._most(offer.maximum)
            if self._clamp is not None and (offer.maximum is None or offer.maximum > most):
                offer.data = _limited(offer.data, "response", most)
            context = self._context(offer, _NONE)
            # What it reads for itself does not stay in the conversation.
            mark = (self._text, self._audio_now())
            self._asked.append(_Response(context, most, mark, offer.aside, offer.event_id))
        else:
            self._text += offer.text_tokens
        claim = offer.claim
        if claim is not None:
            if "maximum" in claim.fields:
                wished, clamp = claim.fields["maximum"], self._clamp
                if clamp is not None and (wished is None or wished > clamp):
                    offer.data = _limited(offer.data, "session", clamp)
                    claim.written = clamp
                self._told = claim.written
            for meter in (claim.fields.get("main"), claim.fields.get("transcriber")):
                if meter is not None and meter not in self._meters:
                    self._meters.append(meter)
            self._add_claim(claim)

    def injections(self) -> list[str]:
        """Return the frame that tells the provider another maximum of output, if it needs one."""
        if self._clamp is None and self._told is None:
            return []
        if self._deaf or not self.greeted or not self._worst.vad:
            return []
        wanted = self._wanted(self._worst)
        if self._clamp is None or self._clamp >= wanted:
            # It has room again for what the client wants.
            told, maximum = None, self._after.maximum or "inf"
        else:
            told = maximum = min(self._clamp, self._wanted(self._after))
        if told == self._told:
            return []
        self._told = told
        self._add_claim(_Claim({}, OUR_EVENT_ID, ours=True))
        session: dict[str, object] = {_MAXIMA[self._beta]: maximum}
        if not self._beta:
            session["type"] = "realtime"
        update = {"type": "session.update", "event_id": OUR_EVENT_ID, "session": session}
        return [_encode(update).decode()]

    # Set-ups

    @property
    def _after(self) -> _Setup:
        """What is in force once all that is claimed is granted."""
        return self._claims[-1].after if self._claims else self._setup

    def _add_claim(self, claim: _Claim) -> None:
        self._flow()
        self._reckon(claim, self._after, self._worst)
        self._claims.append(claim)
        self._worst = claim.worst
        self._free = 0

    def _reckon(self, claim: _Claim, before: _Setup, worst: _Setup) -> None:
        claim.after = msgspec.structs.replace(before, **claim.fields)
        claim.worst = worst.worse(claim.after)

    def _settle_claim(self, claim: _Claim | None, setup: _Setup) -> None:
        """Go by a set-up from now on; rate by it the audio that waited for the answer."""
        self._flow()
        self._setup = setup
        if claim is not None and claim.size:
            self._rate(claim.seconds(setup), setup)
        before = worst = setup
        for pending in islice(self._claims, RECKONED):
            self._reckon(pending, before, worst)
            before, worst = pending.after, pending.worst
        self._worst = self._claims[-1].worst if self._claims else setup
        self._free = 0
        self._reconsider()

    def _rate(self, seconds: Fraction, setup: _Setup) -> None:
        for meter in setup.meters:
            meter.seconds += seconds

    def _flow(self) -> None:
        """Count the audio that was relayed since something last changed."""
        size, self._fresh = self._fresh, 0
        if not size:
            return
        seconds = Fraction(size, self._worst.bytes_per_second)
        if self._claims:
            self._claims[-1].size += size
            self._claims[-1].most += seconds
        else:
            self._rate(seconds, self._setup)
        self._audio_seconds += seconds
        self._uncommitted += seconds

    # Frames from the provider

    def heard(self, frame: Frame) -> bool:
        """Meter a provider's frame; tell whether the client gets to see it."""
        if isinstance(frame, bytes):
            return True
        frame, event = _read(frame)
        if event is None:
            return True
        kind = event.type
        if kind.endswith(".delta"):
            self._hear_delta(event)
            return True
        match kind:
            case "response.created":
                self._begin(event)
            case "response.done":
                self._end(event)
            case "input_audio_buffer.committed":
                self._commit(event)
            case "input_audio_buffer.cleared":
                self._flow()
                self._uncommitted = _NONE
            case "conversation.item.input_audio_transcription.completed":
                self._transcribed(event, frame)
            case "conversation.item.input_audio_transcription.failed":
                self._awaited.pop(_text(event.item_id) or "", None)
            case "session.created" | "transcription_session.created":
                self._greet(event)
            case "session.updated" | "transcription_session.updated":
                return self._confirm(event)
            case "error":
                return self._fail(event)
        return True

    def _greet(self, event: _Event) -> None:
        session = _object(event.session)
        self.greeted = True
        shape = _text(session.get("type"))
        self._beta = "audio" not in session and shape not in ("realtime", "transcription")
        self._settle_claim(None, self._echoed(session, self._setup, self._setup, None))

    def _confirm(self, event: _Event) -> bool:
        # What was relayed since the claim waits for this answer: counted while it is the last one.
        self._flow()
        claim = self._claims.popleft() if self._claims else None
        if claim is None:
            # An update that seemed to be refused was not: an error named another event by its id.
            for meter in self._meters:
                meter.seconds += meter.disputed
                meter.disputed = _NONE
        session = _object(event.session)
        setup = self._setup
        if claim is not None:
            # Where the provider does not repeat what is in force, the dearer counts; but it says
            # yes to a format.
            setup = msgspec.structs.replace(
                claim.worst, bytes_per_second=claim.after.bytes_per_second
            )
        wanted = setup if claim is None else claim.after
        self._settle_claim(claim, self._echoed(session, setup, wanted, claim))
        return claim is None or not claim.ours

    def _echoed(
        self, session: dict[str, Raw], setup: _Setup, wanted: _Setup, claim: _Claim | None
    ) -> _Setup:
        """Return a set-up with what the provider says is in force, as it was `wanted`."""
        audio = _object(session.get("audio"))
        heard, spoken = _object(audio.get("input")), _object(audio.get("output"))
        fields: dict[str, Any] = {}
        rate = format_rate(session.get("input_audio_format") or heard.get("format"))
        if rate is not None:
            fields["bytes_per_second"] = rate
        rate = format_rate(session.get("output_audio_format") or spoken.get("format"))
        if rate is not None:
            self._output_bytes_per_second = rate
        for place in (session, heard):
            if "turn_detection" in place and self.kind == "conversation":
                fields["vad"] = bytes(place["turn_detection"]) != b"null"
        for name in _MAXIMA:
            if name in session:
                fields["maximum"] = self._echoed_maximum(_whole(session[name]), claim)
        role = "main" if self.kind == "transcription" else "transcriber"
        models = {"main": session.get("model")} if self.kind == "conversation" else {}
        for holder, name in ((session, "input_audio_transcription"), (heard, "transcription")):
            if name in holder:
                if bytes(holder[name]) == b"null" and role == "transcriber":
                    fields["transcriber"] = None
                models[role] = _object(holder[name]).get("model")
        for role, raw in models.items():
            meter = self._called(_text(raw), role, wanted)
            if meter is not None:
                fields[role] = meter
        return msgspec.structs.replace(setup, **fields)

    def _echoed_maximum(self, told: int | None, claim: _Claim | None) -> int | None:
        """Return what the client wants, where the provider repeats what we told it."""
        if told is None:
            return None
        if claim is not None and claim.written == told:
            wanted: int | None = claim.after.maximum
            return wanted
        return self._setup.maximum if told == self._told else told

    def _called(self, name: str | None, role: str, setup: _Setup) -> _Meter | None:
        """Return the meter of a model as the provider calls it: it may add a date.

        Two of our models may have one name there: then it is the one that was asked for.
        """
        if name is None:
            return None
        transcribes = role == "transcriber" or self.kind == "transcription"
        asked = setup.main if role == "main" else setup.transcriber
        known = [
            (len(called), meter is asked, meter)
            for meter in self._meters
            for called in (meter.terms.upstream_model, meter.terms.slug)
            if meter.transcribes == transcribes and name.startswith(called)
        ]
        return max(known, key=lambda found: found[:2])[2] if known else None

    def _fail(self, event: _Event) -> bool:
        error = _object(event.error)
        about, code = _text(error.get("event_id")), _text(error.get("code")) or ""
        # What is named nowhere is told by what is wrong with it.
        part = (_text(error.get("param")) or "").split(".")[0] if about is None else ""
        if "commit" in code:
            self._commits = max(0, self._commits - 1)
        for response in self._asked:
            named = about is not None and response.event_id == about
            if named or part == "response" or "active_response" in code:
                self._asked.remove(response)
                self._free = 0
                break
        for claim in self._claims:
            if claim.event_id == about and (about is not None or part == "session"):
                self._refuse(claim)
                return not claim.ours
        return True

    def _refuse(self, claim: _Claim) -> None:
        self._flow()
        self._claims.remove(claim)
        # Another event may have the same id, so that the error is not about this one.
        for meter in claim.worst.meters:
            seconds = claim.seconds(claim.worst)
            if meter in self._setup.meters:
                seconds -= claim.seconds(self._setup)
            meter.disputed += max(_NONE, seconds)
        if claim.ours or claim.written is not None:
            self._told = None
        self._deaf = self._deaf or claim.ours
        self._settle_claim(claim, self._setup)

    def _hear_delta(self, event: _Event) -> None:
        response = self._running.get(_text(event.response_id) or "")
        if response is None:
            return
        size = max(0, len(bytes(event.delta)) - 2)
        if event.type.endswith("audio.delta"):
            response.audio_bytes += size * 3 // 4
        else:
            response.text_bytes += size

    def _begin(self, event: _Event) -> None:
        self._flow()
        self._free = 0
        echo = _object(event.response)
        id = _text(echo.get("id")) or ""
        if id in self._running or ("response", id) in self._seen:
            return
        told = next((_whole(echo[name]) for name in _MAXIMA if name in echo), None)
        response = self._asked.popleft() if self._asked else None
        now = self._context(None, _NONE)
        most = self._most(None)
        if response is None:
            response = _Response(now, most, self._mark)
        elif self._worst.vad:
            # It may be one that began by itself, and not the one that was asked for.
            response.text, response.audio = max(response.text, now[0]), max(response.audio, now[1])
            response.most = max(response.most, most)
            response.mark = min(response.mark, self._mark)
        if told is not None:
            response.most = told
        response.began = (self._text, self._audio_now())
        self._running[id] = response

    def _end(self, event: _Event) -> None:
        self._flow()
        self._free = 0
        body = bytes(event.response)
        echo = _object(event.response)
        id = _text(echo.get("id")) or ""
        response = self._running.pop(id, None)
        if id and not self._once(("response", id)):
            return
        if response is None and self._asked:
            response = self._asked.popleft()
        usage = meter_responses(body)
        main = self._setup.main
        if usage is not None:
            main.has_reported = True
            _add(main.reported, usage)
        elif response is not None:
            _add(main.guessed, self._estimate(response))
        self._remember(response, usage)
        self._reconsider()

    def _remember(self, response: _Response | None, usage: Usage | None) -> None:
        """Note what the conversation has come to with a response.

        The provider knows best what it read; but what came meanwhile it may not have read yet.
        """
        now = (self._text, self._audio_now())
        said = [0, 0 if response is None else response.most]
        if usage is not None:
            said[1] = int(usage.get("output_audio_token", 0))
            said[0] = tokens_of({u: n for u, n in usage.items() if u in _OUTPUT}) - said[1]
        context = (now[0] + said[0], now[1] + said[1])
        if response is not None and not response.aside:
            if usage is not None:
                audio = sum(int(n) for unit, n in usage.items() if "audio" in unit)
                text = tokens_of(usage) - audio
                read = (text + now[0] - response.mark[0], audio + now[1] - response.mark[1])
                # Our own count is bounded by what was sent, as long as the provider agrees.
                if sum(read) < sum(context) or text + audio > sum(context):
                    context = read
            self._mark = response.began
        self._text, self._audio = context
        self._audio_seconds = _NONE
        # What came since a mark stays what came since.
        text, audio = self._text - now[0], self._audio_now() - now[1]
        self._mark = (self._mark[0] + text, self._mark[1] + audio)
        for other in (*self._running.values(), *self._asked):
            other.mark = (other.mark[0] + text, other.mark[1] + audio)
            other.began = (other.began[0] + text, other.began[1] + audio)

    def _commit(self, event: _Event) -> None:
        self._flow()
        self._free = 0
        self._commits = max(0, self._commits - 1)
        id = _text(event.item_id)
        if id is not None and self._worst.writer is not None:
            self._awaited[id] = self._uncommitted
            if len(self._awaited) > REMEMBERED:
                self._awaited.pop(next(iter(self._awaited)))
        self._uncommitted = _NONE

    def _transcribed(self, event: _Event, frame: str) -> None:
        self._flow()
        self._free = 0
        id = _text(event.item_id)
        awaited = self._awaited.pop(id or "", _NONE)
        meter = self._worst.writer
        part = bytes(event.content_index)
        if meter is None or (id is not None and not self._once((id, part))):
            return
        usage = meter_transcription(frame.encode())
        if usage is not None and "second" not in usage:
            meter.has_reported = True
            _add(meter.reported, usage)
            heard = sum(int(usage.get(unit, 0)) for unit in _INPUT_AUDIO)
            meter.covered_tokens += heard or int(usage.get("input_token", 0))
        elif not meter.by_seconds and (seconds := Fraction((usage or {}).get("second", awaited))):
            # It says how long it was, or nothing: in tokens that is an estimate.
            tokens = min(meter.audio_tokens(seconds), meter.pending_tokens(self._seconds(meter)))
            meter.has_reported = True
            meter.covered_tokens += tokens
            _add(meter.guessed, {"input_audio_token": tokens} if tokens else {})

    def _once(self, what: object) -> bool:
        if what in self._seen:
            return False
        self._seen[what] = None
        if len(self._seen) > REMEMBERED:
            self._seen.pop(next(iter(self._seen)))
        return True

    # What it comes to

    def bill(self, *, final: bool = False) -> Bill:
        """Return what the session comes to so far; `final` leaves out what nobody will bill."""
        self._flow()
        usage: Usage = {}
        cost = _NONE
        estimated = unpriced = False
        for meter in self._meters:
            seconds = self._seconds(meter)
            guess = {
                u: n for u, n in self._guess(meter, seconds, final).items() if not meter.covers(u)
            }
            part = meter.told()
            lacks = meter.unpriced(part)
            unpriced = unpriced or (lacks and not self._must_cost)
            estimated = estimated or (lacks and self._must_cost)
            _add(part, guess)
            cost += meter.cost(part, seconds)
            estimated = estimated or bool(guess)
            if seconds and meter.by_seconds:
                part["second"] = _decimal(seconds)
            unpriced = unpriced or (bool(part) and meter.price is None)
            _add(usage, part)
        nano = None if unpriced else min(ceil(cost), COST_NANO_MAX)
        return Bill(Actual(usage, tokens_of(usage), nano), estimated)

    def _seconds(self, meter: _Meter) -> Fraction:
        """Return the audio that a model has heard: where that is in doubt, the most."""
        return meter.seconds + sum(
            (
                claim.seconds(claim.worst)
                for claim in self._claims
                if claim.size and meter in claim.worst.meters
            ),
            _NONE,
        )

    def _guess(self, meter: _Meter, seconds: Fraction, final: bool) -> Usage:
        """Return what nobody has reported."""
        guess = dict(meter.guessed)
        if meter is self._setup.main:
            for response in self._running.values():
                _add(guess, self._estimate(response))
        if meter.by_seconds:
            return guess
        if meter.transcribes:
            tokens = meter.pending_tokens(seconds)
            if final and meter.has_reported:
                # Silence is never written down.
                awaited = sum(self._awaited.values(), self._uncommitted if self._commits else _NONE)
                tokens = min(tokens, meter.audio_tokens(awaited))
        elif meter is self._setup.main and not meter.has_reported and not guess:
            tokens = min(meter.audio_tokens(seconds), self._window)
        else:
            tokens = 0
        _add(guess, {"input_audio_token": tokens} if tokens else {})
        return guess

    def _estimate(self, response: _Response) -> Usage:
        """Return what a response comes to that was not reported on."""
        spoken = Fraction(response.audio_bytes, self._output_bytes_per_second)
        facts = self._setup.main.terms.facts
        text = min(-(-response.text_bytes // facts.bytes_per_token), response.most)
        usage: Usage = {
            "input_token": response.read[0],
            "input_audio_token": response.read[1],
            "output_token": text,
            "output_audio_token": min(
                ceil(spoken * OUTPUT_AUDIO_TOKENS_PER_SECOND), response.most - text
            ),
        }
        return {unit: quantity for unit, quantity in usage.items() if quantity}

    def _exposure(
        self, offer: Offer | None = None, tenths: int = 0, cap: int | None = None
    ) -> Exposure:
        """Return the most the session can come to with a frame and so much more audio.

        `cap` is the longest that a response may be which has not been asked for yet.
        """
        self._flow()
        worst = self._worst
        if offer is not None and offer.claim is not None:
            worst = worst.worse(msgspec.structs.replace(self._after, **offer.claim.fields))
        more = Fraction(tenths, 10)
        if offer is not None:
            more += Fraction(offer.audio_bytes, worst.bytes_per_second)
        tokens, cost = 0, _NONE
        hearing = worst.meters
        for meter in (*self._meters, *(m for m in hearing if m not in self._meters)):
            seconds = self._seconds(meter) + meter.disputed + (more if meter in hearing else _NONE)
            usage = meter.told()
            _add(usage, {u: n for u, n in meter.guessed.items() if not meter.covers(u)})
            tokens += tokens_of(usage)
            cost += meter.cost(usage, seconds)
            if meter.transcribes:
                for each in (
                    meter.transcripts(meter.pending_tokens(seconds)),
                    self._prompts(meter, worst),
                ):
                    tokens, cost = tokens + each[0], cost + each[1]
        if self.kind == "conversation":
            for each in self._responses(worst, offer, more, cap):
                tokens, cost = tokens + each[0], cost + each[1]
        return tokens, cost

    def _prompts(self, meter: _Meter, setup: _Setup) -> Exposure:
        """Return what the prompts of transcripts to come can come to."""
        if meter is not setup.writer or meter.covers("input_token"):
            return 0, _NONE
        prompts = setup.prompt_tokens * (len(self._awaited) + 1)
        return prompts, prompts * meter.worth("input_token")

    def _responses(
        self, setup: _Setup, offer: Offer | None, more: Fraction, cap: int | None
    ) -> list[Exposure]:
        """Return what each response can come to that runs, was asked for or may begin."""
        if cap is None:
            cap = self._clamp
        main = setup.main
        output = max(main.worth("output_token"), main.worth("output_audio_token"))
        expected = [(r.text, r.audio, r.most) for r in (*self._running.values(), *self._asked)]
        saying = 0
        if offer is not None and offer.responds:
            most = self._most(offer.maximum, setup, cap)
            expected.append((*self._context(offer, more), most))
            saying = 0 if offer.aside else most
        if setup.vad or not expected:
            context = self._context(offer, more, saying)
            expected.append((*context, self._most(None, setup, cap)))
        text_worth, audio_worth = main.worth("input_token"), main.worth("input_audio_token")
        if self._images or (offer is not None and offer.images):
            text_worth = max(text_worth, main.worth("input_image_token"))
        return [
            (text + audio + most, text * text_worth + audio * audio_worth + most * output)
            for text, audio, most in expected
        ]

    @property
    def _window(self) -> int:
        return self._worst.main.terms.facts.context_window or WINDOW_UNKNOWN

    def _audio_now(self) -> int:
        return self._audio + self._worst.main.audio_tokens(self._audio_seconds)

    def _context(self, offer: Offer | None, more: Fraction, saying: int = 0) -> tuple[int, int]:
        """Return what a response reads that begins now, or once so much is said: text, audio."""
        main, window = self._worst.main, self._window
        text = self._text + (0 if offer is None else offer.text_tokens)
        audio = self._audio + main.audio_tokens(self._audio_seconds + more)
        # What is being said now will have been said by then.
        responses = (*self._running.values(), *self._asked)
        said = saying + sum(r.most for r in responses if not r.aside)
        # If not all of it is read, then the dearer part: audio is never worth less than text.
        audio = min(audio + said, window)
        return min(text, window - audio), audio

    def _model_most(self, setup: _Setup) -> int:
        return setup.main.terms.facts.max_output_tokens or OUTPUT_TOKENS_MOST

    def _wanted(self, setup: _Setup) -> int:
        """Return how long a response may be if nothing limits it but the client and the model."""
        most = self._model_most(setup)
        return most if setup.maximum is None else min(most, setup.maximum)

    def _most(self, asked: int | None, setup: _Setup | None = None, cap: int | None = None) -> int:
        setup = setup or self._worst
        cap = self._clamp if cap is None else cap
        most = self._wanted(setup) if asked is None else min(asked, self._model_most(setup))
        # Who refuses to be told a maximum keeps to none.
        return most if cap is None or (self._deaf and asked is None) else min(most, cap)

    # Demands

    def asks(self, offer: Offer | None = None, *, opening: bool = False) -> list[Demand]:
        """Return what to ask of the ledger, the most comfortable first; the last is the least."""
        self._asking = offer
        if self.kind == "transcription":
            if opening:
                return [self._ask_ahead(None, OPENING_TENTHS)]
            return [self._ask_ahead(offer, 0), self._ask(self._exposure(offer), 0, 0, (0, _NONE))]
        margins = (OPENING_TENTHS,) if opening else (SLICE_TENTHS, OPENING_TENTHS, 0)
        return [self._ask_response(offer, margin) for margin in margins]

    def _ask_ahead(self, offer: Offer | None, least: int) -> Demand:
        """Ask for audio ahead, in tenths of a second: as much as the limits allow."""
        most = self._affordable(least, SLICE_TENTHS, lambda q: self._exposure(offer, q))
        begin = least if most is None else most
        base = self._exposure(offer, begin)
        return self._ask(base, SLICE_TENTHS - begin, OPENING_TENTHS, self._tenth())

    def _ask_response(self, offer: Offer | None, tenths: int) -> Demand:
        """Ask for responses as long as the limits allow, with so much audio ahead."""
        longest = self._longest(offer)
        most = self._affordable_response(offer, tenths)
        begin = min(OUTPUT_TOKENS_LEAST, longest) if most is None else most
        main = self._worst.main
        each = 1, max(main.worth("output_token"), main.worth("output_audio_token"))
        if offer is not None and offer.responds:
            # Both responses, and the first as a part of what the second reads.
            each = 3, 2 * each[1] + main.worth("input_audio_token")
        base = self._exposure(offer, tenths, begin)
        return self._ask(base, longest - begin, OUTPUT_TOKENS_LEAST, each)

    def _ask(self, base: Exposure, most: int, all_below: int, each: Exposure) -> Demand:
        unpriced = self._worst.main.price is None
        denominator = each[1].denominator
        cost = max(_NONE, base[1] - self.held_nano) * denominator
        return Demand(
            accounts=self.path,
            tokens=max(0, base[0] - self.held_tokens),
            counts_tokens=self.kind == "conversation"
            or not self._worst.main.covers("output_token")
            or not self._worst.main.covers("input_audio_token"),
            cost=None if unpriced else cost,
            denominator=denominator,
            open=OpenDemand(most, all_below, 1, each[0], each[1].numerator) if most > 0 else None,
        )

    def _tenth(self) -> Exposure:
        """Return the most that a tenth of a second of audio can add."""
        tokens, cost = 0, _NONE
        for meter in self._worst.meters:
            heard = ceil(Fraction(meter.terms.facts.audio_tokens_per_second, 10))
            cost += meter.cost({}, Fraction(1, 10))
            if meter.transcribes:
                more = meter.transcripts(heard)
            else:
                more = heard, heard * meter.worth("input_audio_token")
            tokens, cost = tokens + more[0], cost + more[1]
        return tokens, cost

    def _room(self) -> int:
        """Return how many bytes of audio what is held surely pays for."""
        exposure = self._exposure()
        each = self._tenth()
        tenths = SLICE_TENTHS
        for left, one in (
            (self.held_tokens - exposure[0], each[0]),
            (self.held_nano - exposure[1], each[1]),
        ):
            if left < 0:
                return 0
            if one:
                tenths = min(tenths, int(left // one))
        return tenths * self._worst.bytes_per_second // 10

    def _within(self, exposure: Exposure) -> bool:
        return exposure[0] <= self.held_tokens and exposure[1] <= self.held_nano

    def _affordable(self, least: int, most: int, exposure: Callable[[int], Exposure]) -> int | None:
        """Return how much up to `most` what is held pays for; None: not even the least."""
        if not self._within(exposure(least)):
            return None
        while least < most:
            middle = (least + most + 1) // 2
            if self._within(exposure(middle)):
                least = middle
            else:
                most = middle - 1
        return least

    def _longest(self, offer: Offer | None) -> int:
        """Return how long a response may be that may begin, or is asked for now."""
        setup = self._worst
        if offer is not None and offer.claim is not None:
            setup = setup.worse(msgspec.structs.replace(self._after, **offer.claim.fields))
        longest = self._wanted(setup)
        if offer is not None and offer.responds and offer.maximum is not None:
            longest = max(longest, min(offer.maximum, self._model_most(setup)))
        return longest

    def _affordable_response(self, offer: Offer | None, tenths: int = 0) -> int | None:
        longest = self._longest(offer)
        least = min(OUTPUT_TOKENS_LEAST, longest)
        return self._affordable(least, longest, lambda q: self._exposure(offer, tenths, q))

    def granted(self, grant: Grant) -> None:
        """Note what the ledger holds for the session now."""
        self.held_tokens, self.held_nano = grant.tokens, grant.nano
        self.limited = grant.limited
        self._free = 0
        if self.kind == "conversation":
            offer, self._asking = self._asking, None
            affordable = self._affordable_response(offer)
            if affordable is None:
                # It was granted for something else.
                offer, affordable = None, self._affordable_response(None) or 1
            self._set_clamp(affordable, self._longest(offer))

    def withheld(self, offer: Offer | None) -> bool:
        """Tell whether a refused session can go on within what it already holds."""
        if self.kind == "transcription":
            return self._within(self._exposure(offer))
        affordable = self._affordable_response(offer)
        if affordable is not None:
            self.limited = True
            self._set_clamp(affordable, self._longest(offer))
        return affordable is not None

    def _set_clamp(self, affordable: int, longest: int) -> None:
        """Limit responses to what is affordable, in steps: each change is told to the provider."""
        self._free = 0
        if not self.limited or affordable >= longest:
            self._clamp = None
        elif self._clamp is None or affordable >= 2 * self._clamp:
            self._clamp = affordable
        elif affordable < self._clamp:
            self._clamp = max(min(OUTPUT_TOKENS_LEAST, affordable), affordable * 3 // 4)

    def _reconsider(self) -> None:
        """Let responses be longer again if there is room for it."""
        if self._clamp is not None:
            affordable = self._affordable_response(None)
            if affordable is not None and affordable > self._clamp:
                self._set_clamp(affordable, self._longest(None))

    def running_low(self) -> bool:
        """Tell whether what is held ahead needs to be renewed before it runs out."""
        return self._clamp is not None or not self._within(self._exposure(None, RENEW_TENTHS))


def _read(frame: str) -> tuple[str, _Event | None]:
    """Read an event; where text in it was cut amid a character, mended."""
    try:
        return frame, _decode(frame)
    except (*DECODE_ERRORS, UnicodeEncodeError):
        pass
    try:
        mended = _encode(members_of(frame.encode("utf-8", "replace"))).decode()
        return mended, _decode(mended)
    except DECODE_ERRORS:
        return frame, None


def _with(frame: Frame, name: str, value: dict[str, Raw]) -> str:
    """Write a member of an event anew."""
    return _encode({**_object(Raw(frame)), name: value}).decode()


def _limited(frame: Frame, name: str, maximum: int) -> str:
    """Write a maximum of output tokens into the session or response of an event."""
    value = _object(_object(Raw(frame)).get(name))
    names = [of for of in _MAXIMA if of in value] or [_MAXIMA[0]]
    return _with(frame, name, value | {of: Raw(str(maximum).encode()) for of in names})


def _rename(holder: dict[str, Raw], terms: Terms) -> bool:
    """Write the provider's name of a model; tell whether it was another."""
    changed = _text(holder["model"]) != terms.upstream_model
    if changed:
        holder["model"] = Raw(_encode(terms.upstream_model))
    return changed


def _base64_size(text: str | None) -> int:
    """Return how many bytes base64 stands for."""
    if text is None:
        return 0
    padding = 2 if text.endswith("==") else 1 if text.endswith("=") else 0
    return (len(text) - padding) * 3 // 4


def format_rate(raw: Raw | None) -> int | None:
    """Return the bytes a second of an audio format as either shape writes it; None if absent."""
    fields = _object(raw)
    name = _text(fields.get("type")) if fields else _text(raw)
    match name:
        case None:
            return None
        case "pcm16" | "audio/pcm":
            rate = _whole(fields.get("rate", Raw())) or 24_000
            return 2 * rate if rate <= RATE_MAX else BYTES_PER_SECOND_LEAST
        case _:
            return BYTES_PER_SECOND_LEAST


def _object(raw: Raw | None) -> dict[str, Raw]:
    return {} if raw is None else members_of(raw) or {}


def _text(raw: Raw | None) -> str | None:
    try:
        value = _decode_any(raw or b"")
    except DECODE_ERRORS:
        return None
    return value if isinstance(value, str) else None


def _whole(raw: Raw) -> int | None:
    data = bytes(raw)
    return int(data) if data.isdigit() and len(data) < 10 and int(data) > 0 else None


def _add(usage: Usage, more: Usage) -> None:
    for unit, quantity in more.items():
        usage[unit] = usage.get(unit, 0) + quantity


def _decimal(seconds: Fraction) -> int | Decimal:
    """Write seconds out: exactly, or rounded up where that has no end (some rates of samples)."""
    rest = seconds.denominator
    for factor in (2, 5):
        while rest % factor == 0:
            rest //= factor
    if rest == 1:
        return exact(Decimal(seconds.numerator) / seconds.denominator)
    return exact(Decimal(ceil(seconds * 10**9)).scaleb(-9))
