"""Realtime: what is relayed, what it cost, and that it never costs more than is held.

A scene is a list of steps. To add one, add a row to `SCENES`; a step is what the client sends, what
the provider says, or what must have come of it so far. `House` plays the gateway and the ledger.
"""

import base64
import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from math import ceil
from typing import Any, cast
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.ceilings import ModelFacts
from app.core.ledger import (
    NOTHING,
    Account,
    Books,
    CallFacts,
    Demand,
    Grant,
    Limit,
    Settlement,
    account_key,
    owner_terms,
)
from app.core.metering import Usage
from app.core.pricing import COST_NANO_MAX, Price, Rate, make_price
from app.core.realtime import (
    Bill,
    Frame,
    Kind,
    Offer,
    Rejected,
    Session,
    Terms,
)
from app.core.refusals import Reason, Refusal
from app.core.windows import Calendar

NOW = datetime(2026, 5, 5, 12, tzinfo=UTC)
ACCOUNT = account_key("allocation", "a", "month", Calendar(ZoneInfo("UTC")).period("month", NOW))


def price_of(**nano_each: object) -> Price:
    """A price in nano-USD of one unit; `second="2/60"` is 2 for every 60."""
    rates = []
    for unit, nano in nano_each.items():
        amount, _, per = str(nano).partition("/")
        rates.append(Rate(unit, Decimal(amount) / 10**9, int(per or 1)))
    return make_price("p", "m", NOW, rates)


SECOND = price_of(second=100)
MINUTE = price_of(second="34000000/60")
AUDIO = price_of(input_audio_token=6, output_token=10)
TALK = price_of(
    input_token=4,
    output_token=16,
    input_audio_token=32,
    output_audio_token=64,
    cached_input_token=1,
)
MIXED = price_of(second=100, input_token=4, output_token=16, output_audio_token=64)
PLAIN = price_of(input_token=4, output_token=16)
FACTS = ModelFacts(max_output_tokens=1000, context_window=32_000)


def terms_of(price: Price | None, slug: str = "m", facts: ModelFacts = FACTS) -> Terms:
    return Terms(slug, f"up-{slug}", price, None if price is None else price.id, facts)


OTHERS = {
    "t": terms_of(price_of(second=7), "t"),
    "u": terms_of(price_of(input_audio_token=3, output_token=5), "u"),
    "free": terms_of(None, "free"),
    "cheap": terms_of(price_of(second=1), "cheap"),
    "twin": Terms("twin", "up-m", price_of(second=900), "p", FACTS),
    "same": Terms("same", "same", SECOND, "p", FACTS),
}
UNKNOWN = Refusal(Reason.MODEL_MISMATCH, detail="?")


def others(name: str) -> Terms | Refusal:
    return OTHERS.get(name, UNKNOWN)


# Frames


def event(kind: str, **fields: object) -> str:
    return json.dumps({"type": kind, **fields})


def append(size: int) -> str:
    return event("input_audio_buffer.append", audio=base64.b64encode(bytes(size)).decode())


def beta(**session: object) -> str:
    return event("session.update", session=session)


def ga(event_id: str | None = None, **audio_input: object) -> str:
    named = {} if event_id is None else {"event_id": event_id}
    return event("session.update", session={"audio": {"input": audio_input}}, **named)


def pcm(rate: int) -> dict[str, object]:
    return {"type": "audio/pcm", "rate": rate}


def updated(**session: object) -> str:
    return event("session.updated", session=session)


def created(id: str = "r", **response: object) -> str:
    return event("response.created", response={"id": id, **response})


def done(id: str | None = "r", usage: object = None, status: str = "completed") -> str:
    response = {"id": id, "status": status} | ({} if usage is None else {"usage": usage})
    return event("response.done", response=response)


def tokens(
    text: int = 0, audio: int = 0, out: int = 0, spoken: int = 0, cached: int = 0
) -> dict[str, Any]:
    """A report as the API writes it: totals, and the parts of them."""
    return {
        "input_tokens": text + audio,
        "output_tokens": out + spoken,
        "total_tokens": text + audio + out + spoken,
        "input_token_details": {
            "text_tokens": text,
            "audio_tokens": audio,
            "cached_tokens": cached,
        },
        "output_token_details": {"text_tokens": out, "audio_tokens": spoken},
    }


def transcript(usage: object = None, item: str | None = "i", index: int = 0) -> str:
    named: dict[str, object] = {} if item is None else {"item_id": item}
    if usage is not None:
        named["usage"] = usage
    return event(
        "conversation.item.input_audio_transcription.completed", content_index=index, **named
    )


def committed(item: str = "i") -> str:
    return event("input_audio_buffer.committed", item_id=item)


def error(event_id: str | None = None, **more: object) -> str:
    return event("error", error={"event_id": event_id, **more})


GREETING = event("session.created", session={"type": "realtime", "audio": {}})
GREETING_BETA = event("session.created", session={"input_audio_format": "pcm16"})
MUTE = beta(turn_detection=None)
MUTED = updated(turn_detection=None)
TURN: dict[str, Any] = {"type": "message", "role": "user"}


def say(*content: object) -> str:
    return event("conversation.item.create", item={**TURN, "content": list(content)})


def text(size: int) -> dict[str, object]:
    return {"type": "input_text", "text": "x" * size}


# The gateway and the ledger


class House:
    """Plays the gateway to sessions that share one account, and the ledger with it."""

    def __init__(self, usd: int | None = None, tokens: int | None = None) -> None:
        limits = [Limit("a", "usd", "month", usd)] if usd is not None else []
        limits += [Limit("a", "tokens", "month", tokens)] if tokens is not None else []
        self.books = Books([Account(ACCOUNT.id)], owner_terms(limits))
        self.limits = (usd, tokens)
        self.calls: list[Call] = []

    def lift_limits(self) -> None:
        self.books.terms = {}
        self.limits = (None, None)

    def open(self, session: Session) -> "Call | None":
        id = f"c{len(self.calls)}"
        facts = CallFacts(id, id, "a", None, "x", "m", "realtime", None, NOW, (ACCOUNT.id,))
        (demand,) = session.asks(opening=True)
        grant = self.books.reserve(facts, demand, NOTHING)
        if isinstance(grant, Refusal):
            return None
        session.granted(grant)
        self.calls.append(Call(self, session, facts))
        return self.calls[-1]


class Call:
    """One session at work."""

    def __init__(self, house: House, session: Session, facts: CallFacts) -> None:
        self.house = house
        self.session = session
        self.facts = facts
        self.sent: list[Frame] = []
        self.shown: list[bool] = []
        self.withheld: Offer | None = None
        self.rejected: list[Rejected] = []
        self.told: int | None = None
        self.looked_at = True
        """Whether the bill is drawn up after each step. That it is may not make a difference."""
        self.sane = True
        """Whether the provider does no more than was asked of it: so much is held, and no more."""

    def ask(self, offer: Offer | None) -> bool:
        for demand in self.session.asks(offer):
            result = self.house.books.extend(self.facts.id, demand, self.session.bill().actual)
            if isinstance(result, Grant):
                self.session.granted(result)
                return True
        return self.session.withheld(offer)

    def send(self, frame: Frame) -> bool:
        """What the gateway does with a client's frame; False if the session is over."""
        offer = self.session.read(frame)
        if isinstance(offer, Rejected):
            self.rejected.append(offer)
            return True
        if not self.session.fits(offer) and not self.ask(offer):
            self.withheld = offer
            return False
        self.sent += self.session.take(offer)
        self.sent.append(offer.data)
        self.check()
        return True

    def hear(self, frame: Frame) -> None:
        self.shown.append(self.session.heard(frame))
        self.sent += self.session.injections()
        self.check()

    def watch(self) -> bool:
        going = not self.session.running_low() or self.ask(None)
        self.sent += self.session.injections()
        self.check()
        return going

    def check(self) -> None:
        """The bill is never above the hold, nor the hold above the limit."""
        if not self.looked_at:
            return
        hold = self.house.books.holds[self.facts.id]
        for final in (False, True):
            bill = self.session.bill(final=final).actual
            if not self.sane:
                continue
            assert bill.nano is None or hold.nano is None or bill.nano <= hold.nano
            assert bill.tokens <= hold.tokens
        account = self.house.books.accounts[ACCOUNT.id]
        for limit, held, used in (
            (self.house.limits[0], account.held_nano, account.used_nano),
            (self.house.limits[1], account.held_tokens, account.used_tokens),
        ):
            assert limit is None or used + held <= limit

    def settle(self) -> Bill:
        bill = self.session.bill(final=True)
        self.house.books.settle(Settlement(self.facts, "success", 101, bill.actual, NOW))
        row = self.house.books.calls[-1]
        assert (row.overrun_nano, row.overrun_tokens) == (0, 0)
        return bill


def call_of(
    kind: Kind = "transcription",
    price: Price | None = SECOND,
    usd: int | None = None,
    tokens: int | None = None,
    facts: ModelFacts = FACTS,
    must_cost: bool = False,
) -> Call:
    terms = terms_of(price, facts=facts)
    session = Session(kind, terms, (ACCOUNT,), others, must_cost=must_cost)
    call = House(usd, tokens).open(session)
    assert call is not None
    return call


def play(call: Call, *frames: object) -> Call:
    """Client's frames as they are; the provider's in a tuple."""
    for frame in frames:
        if isinstance(frame, tuple):
            for said in frame:
                call.hear(said)
        else:
            assert call.send(cast(Frame, frame))
    return call


# Seconds


def chunks(total: int, size: int, binary: bool) -> Iterator[Frame]:
    for at in range(0, total, size):
        part = min(size, total - at)
        yield bytes(part) if binary else append(part)


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("size", [960, 1000, 4801, 10**9])
@pytest.mark.parametrize(
    ("format", "bytes_per_second", "seconds"),
    [
        (None, 48_000, 90),
        ("pcm16", 48_000, 90),
        (pcm(24_000), 48_000, 90),
        ({"type": "audio/pcm"}, 48_000, 90),
        (pcm(16_000), 32_000, 60),
        (pcm(44_100), 88_200, 30),
        ("g711_ulaw", 8_000, 60),
        ("g711_alaw", 8_000, 60),
        ({"type": "audio/pcmu"}, 8_000, 60),
        ({"type": "audio/pcma"}, 8_000, 60),
        ("opus", 8_000, 60),
        (pcm(10**8), 8_000, 60),
    ],
)
def test_seconds_are_exact(
    format: object, bytes_per_second: int, seconds: int, size: int, binary: bool
) -> None:
    call = call_of()
    if isinstance(format, str):
        play(call, beta(input_audio_format=format), (updated(input_audio_format=format),))
    elif format is not None:
        play(call, ga(format=format), (updated(audio={"input": {"format": format}}),))
    play(call, *chunks(bytes_per_second * seconds, size, binary))
    assert call.settle() == Bill(NOTHING.__class__({"second": seconds}, 0, 100 * seconds), False)


@pytest.mark.parametrize(
    ("price", "size", "second", "nano"),
    [
        (SECOND, 4_800, Decimal("0.1"), 10),
        (SECOND, 2, Decimal(2) / 48_000, 1),
        (MINUTE, 48_000 * 90, 90, 51_000_000),
        (MINUTE, 48_000, 1, 566_667),
        (price_of(second="1/7"), 48_000 * 7, 7, 1),
        (price_of(second=0), 48_000, 1, 0),
        (None, 48_000, 1, None),
        # Rates of pages price no session.
        (price_of(page=5), 48_000, 1, None),
    ],
)
def test_the_cost_is_rounded_up_once(
    price: Price | None, size: int, second: int | Decimal, nano: int | None
) -> None:
    bill = play(call_of(price=price), append(size)).settle()
    if size > 2:
        assert bill.actual.usage == {"second": second}
    assert (bill.actual.nano, bill.actual.tokens) == (nano, 0)
    assert bill.estimated is False


def test_seconds_without_an_end_are_rounded_up_but_their_cost_is_not() -> None:
    format = pcm(44_100)
    call = play(call_of(), beta(input_audio_format=format), (updated(input_audio_format=format),))
    for _ in range(3):
        call.send(bytes(29_400))
    assert call.session.bill().actual.usage == {"second": 1}
    call.send(bytes(2))
    bill = call.settle().actual
    assert bill.usage == {"second": Decimal("1.000022676")}
    assert bill.nano == ceil(100 * (1 + Fraction(2, 88_200)))


@given(st.lists(st.integers(0, 20_000), max_size=20), st.booleans())
def test_no_chunking_matters(sizes: list[int], binary: bool) -> None:
    call = play(call_of(), *(bytes(n) if binary else append(n) for n in sizes))
    seconds = Fraction(sum(sizes), 48_000)
    second = call.session.bill().actual.usage.get("second", 0)
    assert 0 <= Fraction(second) - seconds < Fraction(1, 10**9)
    assert call.settle().actual.nano == ceil(100 * seconds)


@pytest.mark.parametrize(
    ("frame", "size"),
    [
        ('{"type":"input_audio_buffer.append","audio":"AAAA"}', 3),
        ('{"type": "input_audio_buffer.append", "audio": "AAA="}', 2),
        ('{"type": "input_audio_buffer.append", "audio": "AA=="}', 1),
        ('{"type": "input_audio_buffer.append", "audio": "AA"}', 1),
        ('{"type": "input_audio_buffer.append", "audio": ""}', 0),
        ('{"type":"input_audio_buffer.append","audio":"AA\\u003d\\u003d"}', 1),
        ('{"type":"input_audio_buffer.append","audio":"AAAA","event_id":"e"}', 3),
        ('{"event_id":"e","audio":"AAA=","type":"input_audio_buffer.append"}', 2),
        ('{"type":"input_audio_buffer.append","audio":"AAAA"} ', 3),
        ('{"type":"input_audio_buffer.append","audio":5}', 0),
        ('{"type":"input_audio_buffer.append"}', 0),
        (b"AAAA", 4),
    ],
)
def test_audio_is_what_base64_stands_for(frame: Frame, size: int) -> None:
    offer = call_of().session.read(frame)
    assert isinstance(offer, Offer)
    assert (offer.audio_bytes, offer.weighs) == (size, False)
    assert offer.data is frame


def test_nothing_hides_behind_an_append() -> None:
    """Of two members of one name the last counts, to us and to whoever is upstream."""
    frame = '{"type":"input_audio_buffer.append","audio":"AAAA","type":"session.update","session":{"model":"?"}}'
    assert call_of().session.read(frame) == Rejected(UNKNOWN)


# Formats

S16 = {"second": 6}
FORMATS: list[tuple[str, list[object], int | Decimal]] = [
    # 48,000 bytes are 1 s of pcm16 at 24 kHz, 1.5 s at 16 kHz, 6 s of G.711.
    ("audio after a claim is rated by its confirmation",
     [append(48_000), beta(input_audio_format="g711_ulaw"), append(48_000), (updated(input_audio_format="g711_ulaw"),), append(8_000)], 8),
    ("the confirmation counts, not the claim",
     [beta(input_audio_format="g711_ulaw"), append(48_000), (updated(input_audio_format="pcm16"),)], 1),
    ("an answer that nobody asked for, dearer than what was held",
     [ga(format=pcm(16_000)), append(48_000), (updated(audio={"input": {"format": {"type": "audio/pcmu"}}}),), append(8_000)], Decimal("2.5")),
    ("the same, to the first of two claims",
     [ga(format=pcm(16_000)), ga(format=pcm(24_000)), append(48_000), (updated(input_audio_format="g711_ulaw"),), append(8_000),
      (updated(input_audio_format="g711_ulaw"),), append(8_000)], Decimal("3.5")),
    ("a confirmation that repeats nothing",
     [beta(input_audio_format="g711_ulaw"), append(48_000), (updated(),), append(8_000)], 7),
    ("two claims",
     [ga(format=pcm(16_000)), append(48_000), ga(format={"type": "audio/pcmu"}), append(48_000),
      (updated(audio={"input": {"format": pcm(16_000)}}),), append(8_000),
      (updated(audio={"input": {"format": {"type": "audio/pcmu"}}}),), append(8_000)], Decimal("9.5")),
    ("two claims, the first refused by name",
     [ga("a", format={"type": "audio/pcmu"}), append(48_000), ga("b", format=pcm(16_000)), append(48_000),
      (error("a"), updated(audio={"input": {"format": pcm(16_000)}}))], Decimal("2.5")),
    ("two claims, the second refused by name",
     [ga("a", format={"type": "audio/pcmu"}), append(48_000), ga("b", format=pcm(16_000)), append(48_000),
      (updated(audio={"input": {"format": {"type": "audio/pcmu"}}}), error("b"))], 12),
    ("refused without a name, but for what is wrong",
     [ga(format={"type": "audio/pcmu"}), append(48_000), (error(param="session.audio.input.format"),), append(48_000)], 2),
    ("another error is no answer",
     [ga("a", format={"type": "audio/pcmu"}), append(48_000), (error("x"), error(), error(param="item.id"))], 6),
    ("never answered: the slower counts, whichever it is",
     [beta(input_audio_format="g711_ulaw"), append(48_000)], 6),
    ("never answered, from the slower to the faster",
     [beta(input_audio_format="g711_ulaw"), (updated(input_audio_format="g711_ulaw"),), beta(input_audio_format="pcm16"), append(48_000)], 6),
    ("two never answered: the slowest up to each",
     [ga(format=pcm(16_000)), append(48_000), ga(format={"type": "audio/pcmu"}), append(48_000)], Decimal("7.5")),
    ("once answered, what came before is in no doubt any more",
     [ga(format={"type": "audio/pcmu"}), (updated(audio={"input": {"format": {"type": "audio/pcmu"}}}),), ga(format=pcm(16_000)), ga(prompt="x"),
      (updated(audio={"input": {"format": pcm(16_000)}}),), append(48_000)], Decimal("1.5")),
    ("what the session is created with",
     [append(48_000), (event("session.created", session={"audio": {"input": {"format": {"type": "audio/pcmu"}}}}),), append(48_000)], 7),
    ("of the other name",
     [event("transcription_session.update", session={"input_audio_format": "g711_alaw"}), append(48_000),
      (event("transcription_session.updated", session={"input_audio_format": "g711_alaw"}),)], 6),
    # Two events of one id: the error is about the other, and the update is accepted after all.
    ("an error that was about another event of that name",
     [ga("a", format={"type": "audio/pcmu"}), append(48_000), (error("a"), updated(audio={"input": {"format": {"type": "audio/pcmu"}}}))], 6),
    ("a format that is none",
     [beta(input_audio_format=None), beta(input_audio_format=[5]), beta(input_audio_format={"type": 5}), append(48_000)], 1),
    ("an update of nothing", [event("session.update", session=5), event("session.update"), append(48_000)], 1),
]  # fmt: skip


@pytest.mark.parametrize("looked_at", [True, False])
@pytest.mark.parametrize(
    ("steps", "seconds"), [row[1:] for row in FORMATS], ids=[row[0] for row in FORMATS]
)
def test_audio_is_rated_by_the_format_in_force(
    steps: list[object], seconds: int | Decimal, looked_at: bool
) -> None:
    call = call_of()
    call.looked_at = looked_at
    assert play(call, *steps).settle().actual.usage == {"second": seconds}


def test_many_claims_in_doubt_take_no_long_time() -> None:
    def seconds(count: int) -> float:
        call = call_of()
        begun = time.process_time()
        for n in range(count):
            call.session.take(cast(Offer, call.session.read(ga(format=pcm(8_000 + n)))))
        for n in range(count):
            call.session.heard(updated(audio={"input": {"format": pcm(8_000 + n)}}))
        return time.process_time() - begun

    seconds(10)
    # Quadratic time would make the ratio 64.
    assert seconds(1_600) < 30 * max(seconds(200), 0.01)


# Tokens


def test_a_conversation_is_billed_what_each_response_reports_once() -> None:
    call = call_of("conversation", TALK)
    play(call, (GREETING,), say(text(100)), append(48_000))
    usage = tokens(text=60, audio=10, out=5, spoken=20, cached=40)
    for n, status in enumerate(("completed", "cancelled", "incomplete", "failed")):
        play(
            call,
            (created(f"r{n}"),),
            (done(f"r{n}", usage, status), done(f"r{n}", usage, status), created(f"r{n}")),
        )
    # Without an id nothing can be told apart.
    play(call, (created(""), done(None, tokens(out=1))))
    bill = call.settle()
    assert bill.actual.usage == {
        "input_token": 80, "cached_input_token": 160, "input_audio_token": 40, "output_token": 21, "output_audio_token": 80,
    }  # fmt: skip
    assert bill.actual.tokens == 381
    assert bill.actual.nano == 80 * 4 + 160 + 40 * 32 + 21 * 16 + 80 * 64
    assert (bill.estimated, call.session.idle) == (False, True)


def test_a_transcript_is_billed_once_for_each_part() -> None:
    call = play(
        call_of(price=AUDIO), append(480_000), (committed("a"),), append(480_000), (committed("b"),)
    )
    assert call.session.idle is False
    usage = {"type": "tokens", **tokens(audio=100, out=30)}
    play(
        call,
        (
            transcript(usage, "a"),
            transcript(usage, "a"),
            transcript(usage, "a", 1),
            transcript(usage, "b"),
        ),
    )
    assert call.session.idle is True
    bill = call.settle()
    assert bill.actual.usage == {"input_audio_token": 300, "output_token": 90}
    assert (bill.actual.nano, bill.estimated) == (300 * 6 + 90 * 10, False)


UNREPORTED: list[tuple[str, list[object], Usage]] = [
    ("nothing at all", [append(48_000 * 90)], {"input_audio_token": 900}),
    ("a transcript without usage", [append(480_000), (committed(), transcript())], {"input_audio_token": 100}),
    ("a duration", [append(480_000), (committed(), transcript({"type": "duration", "seconds": 7.55}))], {"input_audio_token": 76}),
    ("a duration beyond all that was heard", [append(480_000), (transcript({"type": "duration", "seconds": 75}),)], {"input_audio_token": 100}),
    ("one item of two",
     [append(480_000), (committed("a"),), append(480_000), (committed("b"), transcript(tokens(audio=90, out=1), "a"))],
     {"input_audio_token": 190, "output_token": 1}),
    ("a commit that was not confirmed",
     [append(480_000), (committed("a"), transcript(tokens(audio=90, out=1), "a")), append(240_000), event("input_audio_buffer.commit")],
     {"input_audio_token": 140, "output_token": 1}),
    ("two reports of which one has no tokens",
     [append(960_000), (committed("a"), transcript(tokens(audio=50), "a")), append(480_000), (committed("b"), transcript(None, "b"))],
     {"input_audio_token": 150}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("steps", "usage"), [row[1:] for row in UNREPORTED], ids=[row[0] for row in UNREPORTED]
)
def test_what_is_not_reported_is_estimated_and_flagged(steps: list[object], usage: Usage) -> None:
    bill = play(call_of(price=AUDIO), *steps).settle()
    assert bill.actual.usage == usage
    assert bill.actual.nano == AUDIO.cost_nano(usage)
    assert bill.estimated is True


SETTLED: list[tuple[str, list[object]]] = [
    ("silence after the last turn", [append(480_000)]),
    ("what was cleared", [append(480_000), event("input_audio_buffer.clear"), (event("input_audio_buffer.cleared"),)]),
    ("a transcript that failed", [append(480_000), (committed("b"), event("conversation.item.input_audio_transcription.failed", item_id="b"))]),
    ("a commit of nothing", [event("input_audio_buffer.commit"), (error(code="input_audio_buffer_commit_empty"),)]),
    ("one that has no name", [(event("input_audio_buffer.committed"),)]),
]  # fmt: skip


@pytest.mark.parametrize("steps", [row[1] for row in SETTLED], ids=[row[0] for row in SETTLED])
def test_what_nobody_will_bill_is_left_out_at_the_end(steps: list[object]) -> None:
    call = play(
        call_of(price=AUDIO),
        append(480_000),
        (committed("a"), transcript(tokens(audio=100, out=9), "a")),
    )
    play(call, *steps)
    assert call.session.idle
    if "input_audio" in str(steps[0]) and "append" in str(steps[0]):
        assert call.session.bill().estimated is True
    assert call.settle() == Bill(
        NOTHING.__class__({"input_audio_token": 100, "output_token": 9}, 109, 690), False
    )


def test_a_report_of_nothing_is_a_report() -> None:
    call = play(call_of(price=AUDIO), append(480_000))
    play(call, (transcript({"type": "duration", "seconds": 0}),))
    assert call.settle() == Bill(NOTHING, False)


def test_a_prompt_is_held_for_each_transcript_to_come() -> None:
    transcription = {"model": "m", "prompt": "x" * 1000}
    bare, prompted = call_of(price=PLAIN), call_of(price=PLAIN)
    play(prompted, beta(input_audio_transcription=transcription), (updated(),), append(480))
    play(bare, append(480))
    assert prompted.session.held_tokens > bare.session.held_tokens + 500
    play(prompted, (committed("a"), transcript({**tokens(text=500, audio=1, out=1)}, "a")))


def test_a_response_that_reports_nothing_is_estimated_from_what_was_seen() -> None:
    call = play(
        call_of("conversation", TALK), (GREETING,), say(text(184)), event("response.create")
    )
    assert call.session.responding
    play(
        call,
        (
            created("r", max_output_tokens=100),
            event("response.output_audio_transcript.delta", response_id="r", delta="x" * 20),
            event("response.output_audio.delta", response_id="r", delta="A" * 6400 * 4),
            event("response.output_audio.delta", response_id="other", delta="A"),
            event("response.text.delta", response_id="r"),
        ),
    )
    usage = {"input_token": 122, "output_token": 10, "output_audio_token": 8}
    for _ in range(2):
        bill = call.session.bill()
        assert bill.actual.usage == usage
        assert (bill.actual.nano, bill.estimated) == (TALK.cost_nano(usage), True)
        play(call, (done("r"),))
    assert not call.session.responding
    play(call, (event("response.output_audio.delta", response_id="r", delta="A"),))
    assert call.settle().actual.usage == usage


def test_what_was_spoken_is_estimated_by_its_format() -> None:
    call = play(call_of("conversation", TALK), (updated(output_audio_format="g711_ulaw"),))
    spoken = event("response.audio.delta", response_id="r", delta="A" * 6400)
    play(call, (created("r"), spoken, done("r")))
    assert call.settle().actual.usage == {"output_audio_token": 12}


def test_an_estimate_is_never_more_than_was_allowed() -> None:
    call = play(
        call_of("conversation", TALK), event("response.create", response={"max_output_tokens": 20})
    )
    spoken = event("response.output_audio.delta", response_id="r", delta="A" * 10**6)
    play(
        call,
        (
            created("r", max_output_tokens=20),
            spoken,
            event("response.text.delta", response_id="r", delta="x" * 10),
            spoken,
        ),
    )
    assert call.settle().actual.usage == {
        "output_token": 5,
        "output_audio_token": 15,
    }


def test_audio_of_a_conversation_that_came_to_nothing_is_estimated() -> None:
    bill = play(call_of("conversation", TALK), append(48_000 * 90)).settle()
    assert bill == Bill(NOTHING.__class__({"input_audio_token": 900}, 900, 900 * 32), True)
    call = play(
        call_of("conversation", TALK, facts=ModelFacts(context_window=50)), append(48_000 * 90)
    )
    assert call.settle().actual.usage == {"input_audio_token": 50}


# Prices that lack a rate

REPORT = tokens(text=10, audio=20, out=30, spoken=40)
ALL: Usage = {
    "input_token": 10,
    "input_audio_token": 20,
    "output_token": 30,
    "output_audio_token": 40,
}
LACKING: list[tuple[str, Kind, Price | None, Usage, int | None, bool]] = [
    ("all rated", "conversation", TALK, ALL, 10 * 4 + 20 * 32 + 30 * 16 + 40 * 64, False),
    ("seconds cover the audio heard, and text is billed beside them", "conversation", MIXED,
     {"second": 1, "input_token": 10, "output_token": 30, "output_audio_token": 40}, 100 + 40 + 480 + 2560, False),
    ("a rate for audio heard as well", "conversation", price_of(second=100, input_audio_token=1, output_token=2, input_token=3),
     {"second": 1, **ALL}, None, False),
    ("the seconds are the price of all of it", "conversation", SECOND,
     {"second": 1, "input_token": 10, "output_token": 30, "output_audio_token": 40}, 100, False),
    ("no rate for sound", "conversation", PLAIN, ALL, None, False),
    ("one side alone", "conversation", price_of(output_token=2), ALL, None, False),
    ("no price", "conversation", None, {"second": 1, **ALL}, None, False),
    ("seconds cover all of a transcription", "transcription", SECOND, {"second": 1}, 100, False),
    ("but what has a rate", "transcription", price_of(second=100, output_token=2), {"second": 1, "output_token": 30}, 160, False),
    ("tokens", "transcription", AUDIO, ALL, None, False),
    ("a transcription without a price", "transcription", None, {"second": 1, **ALL}, None, False),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "price", "usage", "nano", "estimated"),
    [row[1:] for row in LACKING],
    ids=[row[0] for row in LACKING],
)
def test_a_unit_without_a_rate_makes_a_session_unpriced_but_for_what_its_seconds_cover(
    kind: Kind, price: Price | None, usage: Usage, nano: int | None, estimated: bool
) -> None:
    call = play(call_of(kind, price), append(48_000))
    play(call, (created(), done("r", REPORT)) if kind == "conversation" else (transcript(REPORT),))
    bill = call.settle()
    assert bill.actual.usage == usage
    assert (bill.actual.nano, bill.estimated) == (nano, estimated)


def test_where_unpriced_calls_are_not_allowed_another_rate_stands_in() -> None:
    """Nobody gets a session for nothing by using what has no rate at its end."""
    call = play(call_of("conversation", PLAIN, must_cost=True), append(48_000))
    play(call, (created(), done("r", REPORT)))
    cost = 10 * 4 + 20 * 4 + 30 * 16 + 40 * 16
    assert call.settle() == Bill(NOTHING.__class__(ALL, 100, cost), True)


def test_two_models_of_one_name_upstream_are_told_apart_by_what_was_asked_for() -> None:
    call = play(call_of("transcription", SECOND), append(48_000))
    play(call, ga(transcription={"model": "twin"}))
    echo = {"input": {"transcription": {"model": "up-m"}}}
    play(call, (updated(audio=echo),), append(48_000))
    assert call.settle().actual.nano == 100 + 900


def test_when_nothing_more_is_granted_responses_become_shorter_before_the_session_ends() -> None:
    call = call_of("conversation", TALK, usd=20_000)
    limit = Limit("a", "usd", "month", call.session.held_nano)
    call.house.books.terms = owner_terms([limit])
    offer = call.session.read(say(text(40)))
    assert isinstance(offer, Offer)
    assert not call.session.fits(offer)
    asks = call.session.asks(offer)
    assert all(isinstance(call.house.books.extend("c0", ask), Refusal) for ask in asks)
    assert call.session.withheld(offer)
    assert call.session.fits(offer)


def test_an_image_without_a_rate_makes_a_session_unpriced() -> None:
    call = play(call_of("conversation", TALK), say({"type": "input_image", "image_url": "data:,"}))
    report = {"input_tokens": 500, "output_tokens": 1, "input_token_details": {"image_tokens": 500}}
    play(call, (created(), done("r", report)))
    assert call.settle() == Bill(
        NOTHING.__class__({"input_image_token": 500, "output_token": 1}, 501, None), False
    )


def test_a_report_of_nonsense_can_be_booked() -> None:
    call = call_of("conversation", price_of(output_token=10**11))
    call.session.heard(done("r", {"output_tokens": 10**12}))
    assert call.session.bill().actual.nano == COST_NANO_MAX


def test_nothing_used_costs_nothing() -> None:
    for price in (SECOND, AUDIO, None):
        call = call_of(price=price)
        assert call.session.unused
        assert call.settle() == Bill(NOTHING, False)


# Models


@pytest.mark.parametrize(
    ("kind", "frame", "names"),
    [
        (
            "conversation",
            event("session.update", event_id="e", session={"model": "m", "x": 1}),
            {"m"},
        ),
        ("transcription", ga(transcription={"model": "m", "language": "de"}), {"m"}),
        ("transcription", beta(input_audio_transcription={"model": "m"}, voice="v"), {"m"}),
        ("conversation", ga(transcription={"model": "t"}, format=pcm(24_000)), {"t"}),
    ],
)
def test_the_name_of_a_model_becomes_the_providers(kind: Kind, frame: str, names: set[str]) -> None:
    offer = call_of(kind, TALK if kind == "conversation" else SECOND).session.read(frame)
    assert isinstance(offer, Offer)
    (name,) = names
    expected = frame.replace(f'"{name}"', f'"up-{name}"')
    assert json.loads(offer.data) == json.loads(expected)


@pytest.mark.parametrize(
    "frame",
    [
        beta(input_audio_transcription={"model": "up-m"}),
        beta(input_audio_transcription={"model": "same"}),
        beta(input_audio_transcription={"language": "de"}),
        beta(input_audio_transcription=None),
        beta(
            instructions="be brief", turn_detection={"type": "server_vad"}, max_output_tokens="inf"
        ),
        event("session.update", session={"model": 5}),
        event("conversation.item.truncate", item_id="x"),
        event("response.cancel"),
        event("response.create"),
        event("input_audio_buffer.commit"),
        event("whatever.there.may.be", x="y"),
        say(text(5)),
        bytes(10),
    ],
)
def test_a_frame_that_needs_no_change_is_the_one_that_came(frame: Frame) -> None:
    for kind, price in (("conversation", SECOND), ("transcription", SECOND)):
        call = call_of(cast(Kind, kind), price)
        assert call.send(frame)
        assert call.sent[-1] is frame


@pytest.mark.parametrize(
    ("kind", "price", "frame", "reason"),
    [
        (
            "conversation",
            TALK,
            event("session.update", event_id="e", session={"model": "?"}),
            Reason.MODEL_MISMATCH,
        ),
        ("conversation", TALK, ga("e", transcription={"model": "?"}), Reason.MODEL_MISMATCH),
        ("transcription", SECOND, ga("e", transcription={"model": "?"}), Reason.MODEL_MISMATCH),
        ("conversation", TALK, ga("e", transcription={"model": "free"}), Reason.MODEL_UNPRICED),
        ("conversation", None, ga("e", transcription={"model": "t"}), Reason.MODEL_UNPRICED),
        (
            "conversation",
            TALK,
            event("session.update", event_id="e", session={"model": "free"}),
            Reason.MODEL_UNPRICED,
        ),
        ("transcription", None, ga("e", transcription={"model": "t"}), Reason.MODEL_UNPRICED),
    ],
)
def test_a_model_that_may_not_be_used_is_rejected(
    kind: Kind, price: Price | None, frame: str, reason: Reason
) -> None:
    rejected = call_of(kind, price).session.read(frame)
    assert isinstance(rejected, Rejected)
    assert (rejected.refusal.reason, rejected.event_id) == (reason, "e")


def test_a_transcription_may_turn_to_a_model_without_a_price_only_at_first() -> None:
    free = ga(transcription={"model": "free"})
    call = play(
        call_of(), free, (updated(audio={"input": {"transcription": {"model": "up-free"}}}),)
    )
    assert call.session.terms.slug == "free"
    play(call, append(48_000), ga(transcription={"model": "m"}))
    assert [r.refusal.reason for r in call.rejected] == [Reason.MODEL_UNPRICED]
    assert call.settle().actual.nano is None
    used = play(call_of(), append(48_000), free)
    assert [r.refusal.reason for r in used.rejected] == [Reason.MODEL_UNPRICED]


MODELS: list[tuple[str, Kind, list[object], int, str]] = [
    ("each second at the price of its model", "transcription",
     [append(48_000), ga(transcription={"model": "t"}), append(48_000),
      (updated(audio={"input": {"transcription": {"model": "up-t"}}}),), append(48_000)], 100 + 7 + 7, "t"),
    ("the provider may add a date", "transcription",
     [ga(transcription={"model": "t"}), (updated(audio={"input": {"transcription": {"model": "up-t-2026"}}}),), append(48_000)], 7, "t"),
    ("one that was refused is not used", "transcription",
     [ga("a", transcription={"model": "cheap"}), append(48_000), (error("a"),)], 100, "m"),
    ("the dearer, while nobody answers", "transcription",
     [ga(transcription={"model": "cheap"}), append(48_000)], 100, "m"),
    ("the dearer, where the answer does not tell", "transcription",
     [ga(transcription={"model": "cheap"}), (updated(), updated(audio={"input": {"transcription": {"model": "unheard"}}})), append(48_000)], 100, "m"),
    ("back again", "transcription",
     [ga(transcription={"model": "t"}), (updated(input_audio_transcription={"model": "up-t"}),), append(48_000),
      ga(transcription={"model": "m"}), (updated(input_audio_transcription={"model": "up-m"}),), append(48_000)], 107, "m"),
    ("a second model writes down a conversation", "conversation",
     [ga(transcription={"model": "t"}), (updated(audio={"input": {"transcription": {"model": "up-t"}}}),), append(48_000), (committed(),)], 107, "m"),
    ("… until it no longer does", "conversation",
     [beta(input_audio_transcription={"model": "t"}), append(48_000), (updated(input_audio_transcription={"model": "up-t"}),),
      beta(input_audio_transcription=None), append(48_000), (updated(input_audio_transcription=None),), append(48_000)], 307, "m"),
    ("… and when in doubt it does", "conversation",
     [beta(input_audio_transcription={"model": "t"}), append(48_000)], 107, "m"),
    ("… by tokens", "conversation",
     [beta(input_audio_transcription={"model": "u"}), (updated(),), append(48_000),
      (committed(), transcript(tokens(audio=10, out=2)))], 100 + 30 + 10, "m"),
    ("… and not if that was refused", "conversation",
     [ga("a", transcription={"model": "t"}), append(48_000), (error("a"),)], 100, "m"),
    ("another model for a conversation", "conversation",
     [append(48_000), event("session.update", session={"model": "cheap"}), (updated(model="up-cheap"),), append(48_000)], 101, "cheap"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "steps", "nano", "slug"), [row[1:] for row in MODELS], ids=[row[0] for row in MODELS]
)
def test_each_model_is_billed_at_its_own_price(
    kind: Kind, steps: list[object], nano: int, slug: str
) -> None:
    call = play(call_of(kind, SECOND), *steps)
    assert call.session.terms.slug == slug
    assert not call.session.unused
    assert call.settle().actual.nano == nano


def test_a_transcript_that_nobody_ordered_is_not_billed() -> None:
    call = play(call_of("conversation", TALK), (transcript(tokens(audio=9)),))
    assert call.session.unused


# Limits


@pytest.mark.parametrize("usd", [100, 101, 250, 999, 12_345])
@pytest.mark.parametrize("size", [480, 960, 4_800, 48_000])
@pytest.mark.parametrize("kind", ["transcription", "conversation"])
def test_a_session_by_seconds_ends_within_one_frame_of_the_cap(
    kind: Kind, usd: int, size: int
) -> None:
    session = Session(kind, terms_of(SECOND), (ACCOUNT,), others)
    call = House(usd).open(session)
    if call is None:
        assert usd < 120
        return
    while call.send(append(size)):
        call.watch()
    assert call.withheld is not None
    before = session.bill().actual
    frame = Fraction(100 * size, 48_000)
    assert 0 <= usd - Fraction(before.usage.get("second", 0)) * 100 < frame
    # What was withheld changed nothing, and a smaller one may still fit.
    assert call.send(append(0))
    assert call.settle().actual == before


def test_a_session_by_tokens_ends_at_a_token_limit() -> None:
    call = call_of(price=AUDIO, tokens=1000)
    while call.send(append(4_800)):
        pass
    # A token heard, and two and a half to write: those are held.
    heard = call.session.bill().actual.tokens
    assert 950 < heard + ceil(heard * 2.5) <= 1000


def test_two_sessions_share_what_is_left() -> None:
    house = House(usd=5_000)
    calls = [
        house.open(Session("transcription", terms_of(SECOND), (ACCOUNT,), others)) for _ in range(2)
    ]
    going = [call for call in calls if call is not None]
    assert len(going) == 2
    while going:
        going = [call for call in going if call.send(append(4_800))]
    total = sum(cast(Call, call).settle().actual.nano or 0 for call in calls)
    assert 4_980 < total <= 5_000


def test_a_frame_worth_more_than_is_left_changes_nothing() -> None:
    call = play(call_of(usd=1_000), append(48_000))
    before = call.session.bill()
    assert call.send(append(48_000 * 60)) is False
    assert call.session.bill() == before
    assert call.send(append(48_000 * 9))
    assert call.settle().actual.nano == 1_000


def test_without_a_limit_holds_do_not_pile_up() -> None:
    call = play(call_of(), append(48_000))
    for _ in range(10):
        call.ask(None)
    assert call.session.held_nano <= 100 * 11
    talk = play(call_of("conversation", TALK), append(48_000))
    held = talk.session.held_tokens
    for _ in range(10):
        talk.ask(None)
    assert talk.session.held_tokens <= held + 101


def test_a_session_renews_what_it_holds_before_it_runs_out() -> None:
    call = call_of(usd=10**6)
    assert not call.session.running_low()
    play(call, append(48_000 * 8))
    assert call.session.running_low()
    assert call.watch()
    assert not call.session.running_low()


def asked_max(frame: Frame) -> Any:
    body = json.loads(frame)
    inner = body.get("response") or body.get("session") or {}
    return inner.get("max_output_tokens", inner.get("max_response_output_tokens"))


def test_without_a_limit_nothing_is_clamped() -> None:
    call = play(
        call_of("conversation", TALK),
        (GREETING,),
        event("response.create"),
        beta(max_output_tokens="inf"),
    )
    assert [asked_max(frame) for frame in call.sent] == [None, "inf"]
    assert not call.session.running_low()


@pytest.mark.parametrize(
    ("greeting", "frame"),
    [
        (GREETING, event("response.create")),
        (GREETING, event("response.create", response={"max_output_tokens": "inf"})),
        (GREETING, event("response.create", response={"max_output_tokens": 900})),
        (GREETING_BETA, event("response.create", response={"max_response_output_tokens": 900})),
        (GREETING, event("session.update", session={"max_output_tokens": 900})),
        (GREETING_BETA, event("session.update", session={"max_response_output_tokens": "inf"})),
    ],
)
def test_near_a_cap_the_maximum_of_output_is_what_gives_way(greeting: str, frame: str) -> None:
    call = play(call_of("conversation", TALK, usd=40_000), (greeting,))
    assert call.session.limited
    told = asked_max(call.sent[0])
    assert 16 <= told < 1000
    play(call, frame)
    assert 16 <= asked_max(call.sent[-1]) <= told
    name = "max_response_output_tokens" if greeting == GREETING_BETA else "max_output_tokens"
    assert name in str(call.sent[0])
    assert call.session.running_low()


def test_a_maximum_that_is_low_enough_stays() -> None:
    call = play(call_of("conversation", TALK, usd=40_000), (GREETING,))
    for frame in (
        event("response.create", response={"max_output_tokens": 20}),
        event("session.update", session={"max_output_tokens": 20}),
    ):
        play(call, frame)
        assert call.sent[-1] is frame


def test_the_provider_is_told_once_and_the_client_not_at_all() -> None:
    call = play(call_of("conversation", TALK, usd=40_000), (GREETING,))
    (told,) = call.sent
    assert json.loads(told)["session"] == {"type": "realtime", "max_output_tokens": asked_max(told)}
    play(call, (updated(max_output_tokens=asked_max(told)), updated()))
    assert call.shown == [True, False, True]
    assert call.sent == [told]


def test_a_client_gets_back_what_it_wanted_once_there_is_room() -> None:
    call = play(call_of("conversation", TALK, usd=40_000), (GREETING,), beta(max_output_tokens=800))
    told = asked_max(call.sent[0])
    assert [asked_max(frame) for frame in call.sent] == [told, told]
    play(call, (updated(max_output_tokens=told), updated(max_output_tokens=told)))
    call.house.lift_limits()
    assert call.watch()
    assert asked_max(call.sent[-1]) == 800
    play(call, (updated(max_output_tokens=800),))
    assert call.shown == [True, False, True, False]
    assert not call.session.running_low()


def test_one_who_never_set_a_maximum_gets_none_back() -> None:
    call = play(call_of("conversation", TALK, usd=40_000), (GREETING,))
    told = asked_max(call.sent[0])
    play(call, (updated(max_output_tokens=told),))
    # Another update says what is in force; that is ours, and not what the client wants.
    play(call, beta(voice="x"), (updated(max_output_tokens=told),))
    call.house.lift_limits()
    assert call.watch()
    assert asked_max(call.sent[-1]) == "inf"


def test_responses_may_be_longer_again_once_one_was_shorter() -> None:
    call = play(
        call_of("conversation", TALK, usd=100_000), (GREETING,), append(4_800), (created("r"),)
    )
    assert call.send(append(4_800))
    play(call, (done("r", tokens(audio=5, spoken=5)),))
    told = [asked_max(frame) for frame in call.sent if "session" in str(frame)]
    # Limited at first, not when the ledger had more, limited beside a response, and not after it.
    assert told == [791, "inf", 41, "inf"]


def test_a_provider_that_will_not_be_told_ends_a_session_that_is_near_its_cap() -> None:
    call = play(call_of("conversation", TALK, usd=40_000), (GREETING,))
    play(call, (error("spendgate_maximum"),))
    assert call.shown[-1] is False
    assert call.send(append(4_800)) is False
    # Who asks for responses is still told in each of them.
    quiet = play(call_of("conversation", TALK, usd=40_000), MUTE, (MUTED, GREETING))
    assert len(quiet.sent) == 1
    play(quiet, event("response.create"))
    assert asked_max(quiet.sent[-1]) < 1000


def test_a_rewritten_update_that_is_refused_is_told_again() -> None:
    call = play(call_of("conversation", TALK, usd=40_000), (GREETING,))
    told = asked_max(call.sent[0])
    play(
        call,
        (updated(),),
        event("session.update", event_id="e", session={"max_output_tokens": 900, "x": 1}),
    )
    play(call, (error("e"),))
    assert [asked_max(frame) for frame in call.sent] == [told, told, told]


def test_responses_side_by_side_are_held_for_each() -> None:
    call = play(call_of("conversation", TALK), MUTE, (MUTED,))
    create = event(
        "response.create",
        response={"conversation": "none", "input": [{"type": "message", "content": [text(20)]}]},
    )
    one = call.session.held_tokens
    play(call, create)
    two = call.session.held_tokens
    play(call, create, create)
    assert call.session.held_tokens >= 3000
    assert two >= one >= 1000
    play(call, (created("a"), created("b"), created("c")))
    for id in "abc":
        play(call, (done(id, tokens(text=10, out=400, spoken=600)),))
    assert call.settle().actual.tokens == 3030


@pytest.mark.parametrize(
    "said",
    [
        error(code="conversation_already_has_active_response"),
        error("e"),
        error(param="response.max_output_tokens"),
    ],
)
def test_a_response_that_was_refused_is_waited_for_no_longer(said: str) -> None:
    call = play(call_of("conversation", TALK), event("response.create", event_id="e"))
    play(call, (error("x"), error()))
    assert not call.session.idle
    play(call, (said,))
    assert call.session.idle


def test_a_response_may_end_that_nobody_heard_begin() -> None:
    call = play(
        call_of("conversation", TALK), event("response.create"), (done("r", tokens(out=3)),)
    )
    assert call.session.idle
    play(call, (done("s"), done("t", "nonsense")))
    assert call.settle().actual.usage == {"output_token": 3}


def test_one_that_began_by_itself_may_be_longer_than_the_one_asked_for() -> None:
    call = play(
        call_of("conversation", TALK),
        say(text(50)),
        event("response.create", response={"max_output_tokens": 1}),
    )
    play(
        call,
        (
            created("by itself"),
            error(code="conversation_already_has_active_response"),
            done("by itself", tokens(text=33, spoken=1000)),
        ),
    )
    assert call.settle().actual.tokens == 1033


def test_the_provider_knows_best_how_long_a_conversation_is() -> None:
    """Silence is not read: an hour of it must not be held for ever."""
    call = call_of("conversation", TALK, facts=ModelFacts(max_output_tokens=100))
    for n in range(4):
        play(
            call,
            append(48_000 * 600),
            (created(f"r{n}"), done(f"r{n}", tokens(audio=50, spoken=20))),
        )
    (demand,) = call.session.asks(append_offer(call, 0))[-1:]
    assert demand.tokens == 0
    # Its last turn and what came since the response before: not the 24,000 tokens of it all.
    exposure = call.session._exposure()[0] - call.session.bill().actual.tokens
    assert exposure < 7_000


def append_offer(call: Call, size: int) -> Offer:
    return cast(Offer, call.session.read(append(size)))


def test_what_is_granted_for_a_frame_is_enough_for_it() -> None:
    call = play(call_of("conversation", TALK, usd=60_000), (GREETING,))
    offer = cast(
        Offer,
        call.session.read(
            say(
                text(2_000),
                {"type": "input_audio", "audio": "A" * 6400 * 40},
                {"type": 5, "x": [1, None]},
            )
        ),
    )
    assert not call.session.fits(offer)
    assert call.ask(offer)
    assert call.session.fits(offer)
    call.session.take(offer)
    call.check()


def test_a_grant_for_something_else_leaves_what_was_refused_refused() -> None:
    call = play(call_of("conversation", TALK, usd=40_000), (GREETING,))
    offer = cast(Offer, call.session.read(say(text(100_000))))
    asks = call.session.asks(offer)
    assert all(isinstance(call.house.books.extend("c0", ask), Refusal) for ask in asks)
    hold = call.house.books.holds["c0"]
    call.session.granted(Grant(hold.tokens, hold.nano or 0, None, True))
    assert not call.session.fits(offer)
    assert call.session.withheld(offer) is False
    assert call.send(append(4_800))


def test_a_context_is_never_longer_than_the_window() -> None:
    for price in (TALK, price_of(input_token=9, input_audio_token=1, output_token=1)):
        call = call_of(
            "conversation", price, facts=ModelFacts(context_window=1000, max_output_tokens=100)
        )
        play(call, say(text(100_000)), append(48_000 * 200))
        assert call.session.held_tokens < 2_200


def test_an_update_is_held_for_before_it_is_sent() -> None:
    cheap = Session(
        "conversation",
        terms_of(price_of(second=1), "cheap"),
        (ACCOUNT,),
        lambda name: terms_of(TALK, name),
    )
    call = House(usd=500).open(cheap)
    assert call is not None
    assert call.send(event("session.update", session={"model": "dear"})) is False
    assert call.rejected == []
    assert cheap.bill().actual == NOTHING


# Frames that cannot be read


@pytest.mark.parametrize(
    "frame",
    [
        "", "{", "[]", "5", "null", '"x"', '{"type":5}', '{"type":NaN}', "\ufeff{}", "\ud800",
        '{"type":"session.update","x":NaN}',
        '{"type":"session.update","x":' + "[" * 100_000,
        '{"type":"session.update","x":' + "[" * 5_000 + "]" * 5_000 + "}",
    ],
)  # fmt: skip
def test_what_cannot_be_read_goes_nowhere(frame: str) -> None:
    call = call_of("conversation", TALK)
    assert call.send(frame)
    assert call.sent == []
    assert call.rejected == [Rejected(None)]
    assert call.session.heard(frame) is True


def test_half_a_character_is_mended() -> None:
    call = call_of("conversation", TALK)
    play(call, r'{"type":"conversation.item.create","item":{"text":"\ud83d"}}')
    assert call.sent == [r'{"type":"conversation.item.create","item":{"text":"\ufffd"}}']
    # Nor does it hide an update, or usage.
    hidden = r'{"type":"session.update","x":"\ud83d","session":{"model":"?"}}'
    assert call.session.read(hidden) == Rejected(UNKNOWN)
    play(call, (created(), done("r", tokens(out=5)).replace('"status"', r'"x":"\udc00","status"')))
    assert call.settle().actual.tokens == 5


def test_odd_items_are_weighed_by_their_size() -> None:
    call = call_of("conversation", TALK)
    deep = '{"type":"conversation.item.create","item":' + '{"a":' * 600 + "1" + "}" * 600 + "}"
    offer = call.session.read(deep)
    assert isinstance(offer, Offer)
    assert offer.text_tokens > 300
    huge = '{"type":"conversation.item.create","item":{"n":1' + "0" * 5_000 + "}}"
    offer = call.session.read(huge)
    assert isinstance(offer, Offer)
    assert offer.text_tokens > 1_000


def test_binary_from_the_provider_passes() -> None:
    assert call_of().session.heard(b"\x00") is True


LEAF = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.just("\ud800")
)
NAMES = st.sampled_from(
    [
        "model",
        "id",
        "usage",
        "format",
        "type",
        "input",
        "item_id",
        "transcription",
        "max_output_tokens",
        "input_tokens",
    ]
)


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4)


JSON = LEAF | nested(LEAF) | nested(LEAF | nested(LEAF | nested(LEAF)))
KINDS = [
    "session.update", "session.updated", "session.created", "transcription_session.update", "response.create",
    "response.created", "response.done", "response.text.delta", "response.audio.delta", "error", "conversation.item.create",
    "input_audio_buffer.append", "input_audio_buffer.committed", "input_audio_buffer.commit", "x",
    "conversation.item.input_audio_transcription.completed", "conversation.item.input_audio_transcription.failed",
]  # fmt: skip
FIELDS = [
    "session",
    "audio",
    "response",
    "item",
    "error",
    "usage",
    "delta",
    "response_id",
    "item_id",
    "event_id",
    "content_index",
]
ODD = st.builds(
    lambda kind, fields: json.dumps({"type": kind, **fields}),
    st.sampled_from(KINDS) | JSON,
    st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4),
)


@given(
    st.lists(ODD | st.text(max_size=20) | st.binary(max_size=20), max_size=12),
    st.sampled_from(["conversation", "transcription"]),
    st.sampled_from([TALK, SECOND, AUDIO, MIXED, None]),
    st.sampled_from([None, 10**6]),
)
def test_no_frame_raises(
    frames: list[Frame], kind: Kind, price: Price | None, usd: int | None
) -> None:
    session = Session(kind, terms_of(price), (ACCOUNT,), others)
    call = House(usd).open(session)
    assert call is not None
    for frame in frames:
        for step in ("client", "provider"):
            if step == "provider":
                session.heard(frame)
            else:
                offer = session.read(frame)
                if isinstance(offer, Offer) and (session.fits(offer) or call.ask(offer)):
                    session.take(offer)
            bill = session.bill()
            assert price is None or bill.actual.nano is not None
            assert all(quantity > 0 for quantity in bill.actual.usage.values())
        session.running_low()
    session.bill(final=True)


# Whatever happens, the bill is within the hold and the hold within the limit


class Provider:
    """One that reports no more than it was allowed, and answers in order."""

    def __init__(self, call: Call, draw: Callable[..., Any]) -> None:
        self.call = call
        self.draw = draw
        self.read = 0
        self.maximum: int | None = None
        self.text = self.audio = 0
        self.bytes_per_second = 48_000
        self.unread: dict[str, int] = {}
        self.buffer = 0
        self.running: tuple[str, int, int, int] | None = None
        self.count = 0

    def out(self, frame: str) -> None:
        self.call.hear(frame)

    def catch_up(self) -> None:
        """Read what was sent meanwhile."""
        while self.read < len(self.call.sent):
            frame = self.call.sent[self.read]
            self.read += 1
            if isinstance(frame, bytes):
                self.heard(len(frame))
                continue
            body = json.loads(frame)
            match body["type"]:
                case "input_audio_buffer.append":
                    self.heard(len(base64.b64decode(body["audio"])))
                case "session.update":
                    self.update(body)
                case "conversation.item.create":
                    self.text += len(body["item"]["content"][0]["text"]) // 2
                case "response.create":
                    if self.running is None:
                        self.begin((body.get("response") or {}).get("max_output_tokens"))
                    else:
                        self.out(error(code="conversation_already_has_active_response"))
                case _:
                    pass

    def heard(self, size: int) -> None:
        self.buffer += size

    def update(self, body: dict[str, Any]) -> None:
        session = body["session"]
        if self.draw(st.integers(0, 5)) == 0 and body.get("event_id") != "spendgate_maximum":
            self.out(error(body.get("event_id"), param="session.x"))
            return
        if "max_output_tokens" in session:
            told = session["max_output_tokens"]
            self.maximum = None if told == "inf" else told
        format = session.get("input_audio_format")
        if format is not None:
            # What it has heard so far, it has heard.
            self.take_in()
            self.bytes_per_second = 8_000 if format == "g711_ulaw" else 48_000
        now = "g711_ulaw" if self.bytes_per_second == 8_000 else "pcm16"
        self.out(updated(input_audio_format=now, max_output_tokens=self.maximum or "inf"))

    def take_in(self) -> None:
        self.audio += self.buffer * 10 // self.bytes_per_second
        self.buffer = 0

    def begin(self, asked: int | None = None) -> None:
        self.take_in()
        self.count += 1
        allowed = min(asked or self.maximum or 1000, 1000)
        self.running = (f"r{self.count}", self.text, self.audio, allowed)
        self.out(created(f"r{self.count}", max_output_tokens=allowed))

    def end(self) -> None:
        assert self.running is not None
        id, text_, audio, allowed = self.running
        self.running = None
        spoken = self.draw(st.sampled_from([0, 1, allowed // 2, allowed]))
        out = allowed - spoken if self.draw(st.booleans()) else 0
        self.text, self.audio = self.text + out, self.audio + spoken
        usage = tokens(text=text_, audio=audio, out=out, spoken=spoken)
        self.out(done(id, usage if self.draw(st.integers(0, 5)) else None))
        self.out(done(id, usage))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_conversation_never_outruns_its_hold(data: st.DataObject) -> None:
    """Whatever the client sends, and however long the responses turn out within their maximum."""
    price = data.draw(st.sampled_from([TALK, MIXED, PLAIN, SECOND, None]))
    usd = data.draw(st.sampled_from([20_000, 70_000, 200_000, 10**7]))
    limit = data.draw(st.sampled_from([None, 3_000, 20_000]))
    call = House(usd, limit).open(Session("conversation", terms_of(price), (ACCOUNT,), others))
    if call is None:
        return
    provider = Provider(call, data.draw)
    provider.out(GREETING)
    client = {
        "audio": lambda: append(data.draw(st.sampled_from([0, 960, 24_000, 480_000]))),
        "binary": lambda: bytes(4_800),
        "text": lambda: say(text(data.draw(st.integers(0, 2_000)))),
        "create": lambda: event("response.create", response=data.draw(st.sampled_from([{}, {"max_output_tokens": 5}, {"max_output_tokens": 5_000}]))),
        "maximum": lambda: event("session.update", event_id=f"e{len(call.sent)}", session={"max_output_tokens": data.draw(st.sampled_from(["inf", 10, 300]))}),
        "format": lambda: beta(input_audio_format=data.draw(st.sampled_from(["pcm16", "g711_ulaw"]))),
    }  # fmt: skip
    steps = st.lists(st.sampled_from([*client, "read", "begin", "end", "watch"]), max_size=30)
    going = True
    for step in data.draw(steps):
        if step in client:
            going = going and call.send(client[step]())
        elif step == "watch":
            going = going and call.watch()
        elif step == "read":
            provider.catch_up()
        elif step == "begin" and provider.running is None:
            provider.catch_up()
            # By itself it only answers what it heard.
            if provider.running is None and provider.buffer:
                provider.begin()
        elif step == "end" and provider.running is not None:
            provider.end()
    provider.catch_up()
    if provider.running is not None:
        provider.end()
    call.check()
    call.settle()


SOUNDS = [{"type": "audio/pcmu"}, pcm(16_000), pcm(24_000)]
HEARD: list[object] = [
    *(append(size) for size in (960, 24_000, 480_000)),
    *(ga(id, format=sound) for sound in SOUNDS for id in ("a", "b")),
    event("input_audio_buffer.commit"),
    ga("c", transcription={"model": "t"}),
    *((updated(audio={"input": {"format": sound}}),) for sound in SOUNDS),
    *((said,) for said in (updated(), error("a"), error("b"), committed(), committed("j"))),
    *((said,) for said in (transcript(), transcript(tokens(audio=30, out=4), "j"))),
    (event("input_audio_buffer.cleared"),),
]
TALKED: list[object] = [
    say(text(40)),
    event("response.create"),
    *((said,) for said in (created("r1"), created("r2"), done("r1"))),
    (done("r2", tokens(text=9, audio=5, out=7, spoken=3)),),
]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_it_makes_no_difference_when_a_bill_is_drawn_up(data: st.DataObject) -> None:
    kind: Kind = data.draw(st.sampled_from(["transcription", "conversation"]))
    price = data.draw(
        st.sampled_from([SECOND, MINUTE, AUDIO] if kind == "transcription" else [TALK, MIXED])
    )
    frames = st.sampled_from(HEARD if kind == "transcription" else HEARD + TALKED)
    steps = data.draw(st.lists(frames, max_size=20))
    looked_at, left_alone = call_of(kind, price), call_of(kind, price)
    left_alone.looked_at = looked_at.sane = False
    bills = [play(call, *steps).settle() for call in (looked_at, left_alone)]
    assert bills[0] == bills[1]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_transcriptions_never_outrun_their_holds(data: st.DataObject) -> None:
    """Two of them on one account, one limit in USD and perhaps one in tokens."""
    price = data.draw(st.sampled_from([SECOND, MINUTE, AUDIO, price_of(second=3, output_token=9)]))
    house = House(
        data.draw(st.sampled_from([2_000, 20_000, 10**8])),
        data.draw(st.sampled_from([None, 300, 3_000])),
    )
    opened = [
        house.open(Session("transcription", terms_of(price), (ACCOUNT,), others)) for _ in range(2)
    ]
    calls = [call for call in opened if call is not None]
    unreported = dict.fromkeys([call.facts.id for call in calls], 0)
    over: set[str] = set()
    for step in data.draw(
        st.lists(st.sampled_from(["audio", "watch", "commit", "report", "format"]), max_size=40)
    ):
        if not calls:
            return
        call = data.draw(st.sampled_from(calls))
        id = call.facts.id
        if step == "report":
            heard = data.draw(st.integers(0, unreported[id]))
            unreported[id] -= heard
            said = data.draw(st.integers(0, heard * 2))
            call.hear(transcript(tokens(audio=heard, out=said), None))
        elif step == "commit":
            call.hear(committed(f"i{len(call.shown)}"))
        elif id in over:
            pass
        elif step == "audio":
            size = data.draw(st.sampled_from([960, 4_800, 48_000, 480_000]))
            if call.send(append(size)):
                unreported[id] += size // 4_800
            else:
                over.add(id)
        elif step == "watch":
            call.watch()
        else:
            format = data.draw(st.sampled_from(["pcm16", "g711_ulaw"]))
            if call.send(beta(input_audio_format=format)) and data.draw(st.booleans()):
                call.hear(updated(input_audio_format="pcm16"))
    for call in calls:
        call.settle()


# Memory and time


def test_what_is_remembered_is_bounded() -> None:
    call = play(call_of(price=AUDIO), append(48_000))
    for n in range(10_050):
        call.session.heard(committed(f"i{n}"))
        call.session.heard(transcript(None, f"j{n}"))
    assert len(call.session._seen) == len(call.session._awaited) == 10_000


def test_a_frame_of_audio_costs_little() -> None:
    call = call_of(usd=10**15)
    session, frame = call.session, append(960)
    call.house.books.extend("c0", Demand((ACCOUNT,), 0, False, 10**9, 1, None))
    session.granted(Grant(0, 10**9, None, True))

    def seconds() -> float:
        begun = time.process_time()
        for _ in range(1_000):
            offer = session.read(frame)
            assert isinstance(offer, Offer)
            assert session.fits(offer)
            session.take(offer)
        return time.process_time() - begun

    # Some 1 µs each; what matters is that nobody makes it 100.
    assert min(seconds() for _ in range(5)) < 0.05
