"""Realtime sessions: both shapes, each knob, the record, and the unmodified SDK.

What is asserted about usage are the token rules of `app/simulator/realtime.py`.
"""

import asyncio
import base64
import contextlib
import time
import urllib.parse
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import msgspec
import openai
import pytest
import websockets
from websockets.asyncio.client import ClientConnection

from app.simulator import Call, RunningSimulator, Session, media, running_simulator, serve_in_thread

KEY = {"authorization": "Bearer sim-key"}
MODEL = "model=gpt-realtime"
TRANSCRIBE = "intent=transcription"
BETA = KEY | {"openai-beta": "realtime=v1"}
# A response of two words, as text: two tokens.
TEXT = {"output_modalities": ["text"]}


@pytest.fixture(scope="module")
def served() -> Iterator[RunningSimulator]:
    with serve_in_thread(pace=0, answer_tokens=2) as running:
        yield running


@pytest.fixture
def sim(served: RunningSimulator) -> RunningSimulator:
    served.reset()
    return served


class Client:
    """A session as a client without an SDK has it."""

    def __init__(self, ws: ClientConnection) -> None:
        self.ws = ws

    async def send(self, kind: str, **fields: Any) -> None:
        await self.ws.send(msgspec.json.encode({"type": kind, **fields}).decode())

    async def event(self) -> dict[str, Any]:
        async with asyncio.timeout(5):
            return msgspec.json.decode(await self.ws.recv())

    async def until(self, kind: str) -> list[dict[str, Any]]:
        """The events up to one of this type, which is the last."""
        events = [await self.event()]
        while events[-1]["type"] != kind:
            events.append(await self.event())
        return events

    async def ask(self, kind: str, answer: str, **fields: Any) -> dict[str, Any]:
        await self.send(kind, **fields)
        return (await self.until(answer))[-1]

    async def respond(self, **response: Any) -> dict[str, Any]:
        """The response of a `response.done`."""
        return (await self.ask("response.create", "response.done", response=response))["response"]

    async def refused(self, kind: str, **fields: Any) -> str:
        """The code of the error that answers."""
        return (await self.ask(kind, "error", **fields))["error"]["code"]

    async def configure(self, kind: str = "realtime", **session: Any) -> dict[str, Any]:
        return (
            await self.ask("session.update", "session.updated", session={"type": kind} | session)
        )["session"]

    async def say(self, text: str) -> None:
        part = {"type": "input_text", "text": text}
        item = {"type": "message", "role": "user", "content": [part]}
        await self.ask("conversation.item.create", "conversation.item.done", item=item)

    async def append(self, size: int) -> None:
        sound = base64.b64encode(bytes(size)).decode()
        await self.send("input_audio_buffer.append", audio=sound)

    async def closed(self) -> tuple[list[dict[str, Any]], int | None]:
        """What still arrives, and the code of the close."""
        events = []
        try:
            while True:
                events.append(await self.event())
        except websockets.ConnectionClosed as closed:
            return events, closed.rcvd.code if closed.rcvd else None


@contextlib.asynccontextmanager
async def socket(
    sim: RunningSimulator,
    query: str = MODEL,
    knobs: str = "",
    *,
    path: str = "/v1/realtime",
    headers: dict[str, str] = KEY,
    **options: Any,
) -> AsyncIterator[Client]:
    """A session before its first event."""
    if knobs:
        query += "&sim=" + urllib.parse.quote(knobs)
    url = f"{sim.base_url.replace('http', 'ws')}{path}?{query}"
    options = {"max_size": None, "close_timeout": 0.2, "ping_interval": None} | options
    async with websockets.connect(url, additional_headers=headers, proxy=None, **options) as ws:
        yield Client(ws)


@contextlib.asynccontextmanager
async def session(*args: Any, **options: Any) -> AsyncIterator[Client]:
    """A session after its first event."""
    async with socket(*args, **options) as client:
        created = await client.event()
        assert created["type"].endswith("session.created")
        yield client


async def handshake(sim: RunningSimulator, *args: Any, **options: Any) -> tuple[int, Any]:
    """The status and error of a refused handshake."""
    with pytest.raises(websockets.InvalidStatus) as refused:
        async with socket(sim, *args, **options):
            pass
    response = refused.value.response
    return response.status_code, msgspec.json.decode(response.body)["error"]


async def ended(sim: RunningSimulator) -> tuple[Call, Session]:
    """The record of the last session, once it has ended."""
    for _ in range(500):
        call = sim.calls[-1]
        if call.ended != "open" and sim.app.open == 0:
            assert call.realtime is not None
            return call, call.realtime
        await asyncio.sleep(0.01)
    pytest.fail("the session has not ended")


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


# --- Conversations ----------------------------------------------------------------------


async def test_a_ga_session_says_what_is_in_force(sim: RunningSimulator) -> None:
    async with socket(sim) as client:
        created = await client.event()
    assert created["type"] == "session.created"
    shown = created["session"]
    assert (shown["type"], shown["object"], shown["model"]) == (
        "realtime",
        "realtime.session",
        "gpt-realtime",
    )
    assert shown["audio"]["input"]["format"] == {"type": "audio/pcm", "rate": 24000}
    assert shown["audio"]["input"]["turn_detection"]["type"] == "server_vad"
    assert shown["audio"]["input"]["transcription"] is None
    assert (shown["max_output_tokens"], shown["output_modalities"]) == ("inf", ["audio"])


async def test_a_beta_session_is_flat(sim: RunningSimulator) -> None:
    async with socket(sim, headers=BETA) as client:
        created = await client.event()
        session = {
            "input_audio_format": "g711_ulaw",
            "max_response_output_tokens": 7,
            "modalities": ["text"],
            "turn_detection": None,
            "input_audio_transcription": {"model": "whisper-1"},
        }
        updated = await client.ask("session.update", "session.updated", session=session)
    shown = created["session"]
    assert (shown["model"], shown["modalities"]) == ("gpt-realtime", ["audio", "text"])
    assert (shown["input_audio_format"], shown["output_audio_format"]) == ("pcm16", "pcm16")
    assert (shown["turn_detection"]["type"], shown["input_audio_transcription"]) == (
        "server_vad",
        None,
    )
    assert shown["max_response_output_tokens"] == "inf"
    assert "audio" not in shown
    assert "type" not in shown
    assert shown | session == updated["session"]


GA_AUDIO = [
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
    *(["response.output_audio_transcript.delta", "response.output_audio.delta"] * 2),
    "response.output_audio.done",
    "response.output_audio_transcript.done",
    "response.content_part.done",
    "conversation.item.done",
    "response.output_item.done",
    "response.done",
]
BETA_AUDIO = [
    "response.created",
    "response.output_item.added",
    "conversation.item.created",
    "response.content_part.added",
    *(["response.audio_transcript.delta", "response.audio.delta"] * 2),
    "response.audio.done",
    "response.audio_transcript.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.done",
]


@pytest.mark.parametrize(("headers", "expected"), [(KEY, GA_AUDIO), (BETA, BETA_AUDIO)])
async def test_a_response_of_sound(
    sim: RunningSimulator, headers: dict[str, str], expected: list[str]
) -> None:
    async with session(sim, headers=headers) as client:
        await client.send("response.create")
        events = await client.until("response.done")
    assert types(events) == expected
    sound = b"".join(
        base64.b64decode(event["delta"])
        for event in events
        if event["type"].endswith("audio.delta")
    )
    assert len(sound) == 24000  # 500 ms
    assert any(sound)
    usage = events[-1]["response"]["usage"]
    assert usage["output_token_details"] == {"text_tokens": 2, "audio_tokens": 10}
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (0, 12, 12)
    assert len({event["event_id"] for event in events}) == len(events)


@pytest.mark.parametrize(
    ("headers", "asked", "prefix"),
    [(KEY, TEXT, "response.output_text"), (BETA, {"modalities": ["text"]}, "response.text")],
)
async def test_a_response_of_text(
    sim: RunningSimulator, headers: dict[str, str], asked: dict[str, Any], prefix: str
) -> None:
    async with session(sim, headers=headers) as client:
        await client.send("response.create", response=asked)
        events = await client.until("response.done")
    deltas = [event["delta"] for event in events if event["type"] == f"{prefix}.delta"]
    done = next(event for event in events if event["type"] == f"{prefix}.done")
    assert deltas == ["Every", " token"]
    assert done["text"] == "Every token"
    details = events[-1]["response"]["usage"]["output_token_details"]
    assert details == {"text_tokens": 2, "audio_tokens": 0}


async def test_input_is_the_whole_conversation_by_what_it_is_made_of(sim: RunningSimulator) -> None:
    async with session(sim) as client:
        await client.configure(instructions="i" * 40)
        parts = [
            {"type": "input_text", "text": "x" * 40},
            {"type": "input_audio", "audio": base64.b64encode(bytes(48_001)).decode()},
            {"type": "input_image", "image_url": "data:image/png;base64,AAAA"},
        ]
        item = {"type": "message", "role": "user", "content": parts, "id": "mine"}
        made = await client.ask("conversation.item.create", "conversation.item.done", item=item)
        assert made["item"]["id"] == "mine"
        assert "audio" not in made["item"]["content"][1]
        first = (await client.respond())["usage"]
        second = (await client.respond())["usage"]
        other = (
            await client.respond(
                conversation="none",
                instructions="",
                input=[{"type": "item_reference", "id": "mine"}],
            )
        )["usage"]
        await client.ask("conversation.item.delete", "conversation.item.deleted", item_id="mine")
        fourth = (await client.respond())["usage"]
        assert await client.refused("conversation.item.delete", item_id="mine") == "item_not_found"
    told = first["input_token_details"]
    # 80 bytes; a second and a little of sound; one image.
    assert (told["text_tokens"], told["audio_tokens"], told["image_tokens"]) == (20, 11, 85)
    told = second["input_token_details"]
    # With the answer: two words and 500 ms.
    assert (told["text_tokens"], told["audio_tokens"], told["image_tokens"]) == (22, 16, 85)
    assert second["input_tokens"] == 22 + 16 + 85
    told = other["input_token_details"]
    assert (told["text_tokens"], told["audio_tokens"], told["image_tokens"]) == (10, 11, 85)
    told = fourth["input_token_details"]
    assert (told["text_tokens"], told["audio_tokens"], told["image_tokens"]) == (14, 10, 0)


@pytest.mark.parametrize(
    ("of_session", "of_response", "audio", "expected"),
    [
        ("inf", None, True, (2, 10, "completed")),
        (12, None, True, (2, 10, "completed")),
        (11, None, True, (2, 9, "incomplete")),
        (7, None, True, (2, 5, "incomplete")),
        (6, None, True, (1, 5, "incomplete")),
        (1, None, True, (1, 0, "incomplete")),
        (12, 3, True, (1, 2, "incomplete")),
        (3, 12, True, (2, 10, "completed")),
        (2, None, False, (2, 0, "completed")),
        (1, None, False, (1, 0, "incomplete")),
    ],
)
@pytest.mark.parametrize("shape", ["ga", "beta"])
async def test_responses_keep_to_the_maximum(
    sim: RunningSimulator,
    of_session: Any,
    of_response: Any,
    audio: bool,
    expected: tuple[int, int, str],
    shape: str,
) -> None:
    asked = {} if of_response is None else {"max_output_tokens": of_response}
    modalities = ["audio"] if audio else ["text"]
    async with session(sim, headers=BETA if shape == "beta" else KEY) as client:
        if shape == "ga":
            await client.configure(max_output_tokens=of_session, output_modalities=modalities)
        else:
            update = {"max_response_output_tokens": of_session, "modalities": modalities}
            await client.ask("session.update", "session.updated", session=update)
        done = await client.respond(**asked)
    details = done["usage"]["output_token_details"]
    assert (details["text_tokens"], details["audio_tokens"], done["status"]) == expected
    if done["status"] == "incomplete":
        assert done["status_details"] == {"type": "incomplete", "reason": "max_output_tokens"}


async def test_a_cancelled_response_reports_what_was_sent(sim: RunningSimulator) -> None:
    async with session(sim, knobs="pace=1 answer_tokens=100") as client:
        await client.send("response.create")
        await client.until("response.output_audio.delta")
        assert await client.refused("response.create") == "conversation_already_has_active_response"
        assert (
            await client.refused("response.cancel", response_id="x") == "response_cancel_not_active"
        )
        done = (await client.ask("response.cancel", "response.done"))["response"]
        assert await client.refused("response.cancel") == "response_cancel_not_active"
    assert done["status"] == "cancelled"
    assert done["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
    assert done["usage"]["output_token_details"] == {"text_tokens": 1, "audio_tokens": 5}


async def test_responses_outside_the_conversation_run_beside_it(sim: RunningSimulator) -> None:
    async with session(sim, knobs="pace=1 answer_tokens=100") as client:
        await client.send("response.create")
        await client.until("response.output_audio.delta")
        directive = "[[sim answer_tokens=1]]"
        aside = await client.respond(
            conversation="none", metadata={"a": "b"}, instructions=directive
        )
        assert (aside["status"], aside["metadata"], aside["conversation_id"]) == (
            "completed",
            {"a": "b"},
            None,
        )
        done = (await client.ask("response.cancel", "response.done"))["response"]
        assert done["status"] == "cancelled"
        assert done["id"] != aside["id"]


async def test_sound_is_sent_at_the_pace_it_is_spoken(sim: RunningSimulator) -> None:
    async with session(sim, knobs="pace=5 answer_tokens=5") as client:
        began = time.monotonic()
        await client.respond()
        took = time.monotonic() - began
    assert 0.19 < took < 0.9  # four steps of 250 ms, five times faster


# --- Sound in ---------------------------------------------------------------------------


async def test_speech_becomes_a_turn_and_the_turn_a_response(sim: RunningSimulator) -> None:
    async with session(sim) as client:
        for _ in range(4):
            await client.append(24_000)
        events = await client.until("response.done")
    assert types(events)[:5] == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
    ]
    assert types(events)[5:] == GA_AUDIO
    assert (events[0]["audio_start_ms"], events[1]["audio_end_ms"]) == (0, 2000)
    assert len({event["item_id"] for event in events[:3]}) == 1
    assert events[3]["item"]["id"] == events[0]["item_id"]
    assert events[-1]["response"]["usage"]["input_token_details"]["audio_tokens"] == 20


async def test_a_new_turn_interrupts_the_response_to_the_last(sim: RunningSimulator) -> None:
    async with session(sim, knobs="pace=1 answer_tokens=100 vad_seconds=0.5") as client:
        await client.append(24_000)
        await client.until("response.output_audio.delta")
        await client.append(24_000)
        done = (await client.until("response.done"))[-1]["response"]
        assert done["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
        later = await client.until("response.output_audio.delta")
        assert "response.created" in types(later)
        usage = (await client.ask("response.cancel", "response.done"))["response"]["usage"]
    # Two turns of five tokens, and three of the interrupted answer (250 ms).
    assert usage["input_token_details"]["audio_tokens"] == 13


@pytest.mark.parametrize(
    ("detection", "expected"),
    [
        ({"type": "server_vad", "create_response": False}, True),
        ({"type": "semantic_vad", "create_response": False}, True),
        (None, False),
    ],
)
async def test_turn_detection_does_what_it_is_set_to(
    sim: RunningSimulator, detection: Any, expected: bool
) -> None:
    async with session(sim) as client:
        shown = await client.configure(audio={"input": {"turn_detection": detection}})
        if detection:
            assert (
                shown["audio"]["input"]["turn_detection"] | detection
                == (shown["audio"]["input"]["turn_detection"])
            )
        else:
            assert shown["audio"]["input"]["turn_detection"] is None
        await client.append(96_000)
        await client.send("input_audio_buffer.clear")
        events = await client.until("input_audio_buffer.cleared")
        assert ("input_audio_buffer.committed" in types(events)) is expected
        assert not any(kind.startswith("response.") for kind in types(events))


async def test_commit_wants_a_tenth_of_a_second(sim: RunningSimulator) -> None:
    async with session(sim) as client:
        await client.append(4_799)
        assert await client.refused("input_audio_buffer.commit") == (
            "input_audio_buffer_commit_empty"
        )
        await client.append(1)
        await client.send("input_audio_buffer.commit")
        events = await client.until("conversation.item.done")
        assert types(events)[0] == "input_audio_buffer.committed"
        usage = (await client.respond())["usage"]
    assert usage["input_token_details"]["audio_tokens"] == 1


@pytest.mark.parametrize("law", ["audio/pcmu", "audio/pcma"])
async def test_sound_is_rated_by_the_format_in_force_when_it_came(
    sim: RunningSimulator, law: str
) -> None:
    async with session(sim) as client:
        await client.append(24_000)  # 0.5 s
        await client.configure(audio={"input": {"format": {"type": law}}})
        await client.append(8_000)  # 1 s
        await client.send("input_audio_buffer.commit")
        await client.until("conversation.item.done")
        shown = await client.configure(
            audio={"input": {"format": {"type": "audio/pcm", "rate": 8000}}}
        )
        assert shown["audio"]["input"]["format"] == {"type": "audio/pcm", "rate": 8000}
        await client.append(4_000)  # 0.25 s
        await client.send("input_audio_buffer.commit")
        await client.until("conversation.item.done")
        usage = (await client.respond())["usage"]
    assert usage["input_token_details"]["audio_tokens"] == 15 + 3
    _, record = await ended(sim)
    assert (record.audio_bytes, record.audio_seconds) == (36_000, 1.75)


@pytest.mark.parametrize(
    ("form", "size"),
    [
        ({"type": "audio/pcmu"}, 2_000),
        ({"type": "audio/pcma"}, 2_000),
        ({"type": "audio/pcm", "rate": 16_000}, 8_000),
    ],
)
async def test_the_answers_sound_has_the_format_in_force(
    sim: RunningSimulator, form: dict[str, Any], size: int
) -> None:
    async with session(sim) as client:
        await client.configure(audio={"output": {"format": form}})
        delta = (await client.ask("response.create", "response.output_audio.delta"))["delta"]
    assert len(base64.b64decode(delta)) == size


@pytest.mark.parametrize(
    ("law", "samples", "encoded"),
    [
        # From the tables of G.711.
        ("ulaw", [0, -8, 8031, -8031, 32767, -32768], [0xFF, 0x7E, 0xA0, 0x20, 0x80, 0x00]),
        ("alaw", [0, -1, 8032, -8032, 32767, -32768], [0xD5, 0x55, 0x8A, 0x0A, 0xAA, 0x2A]),
    ],
)
def test_g711(law: Any, samples: list[int], encoded: list[int]) -> None:
    pcm = b"".join(sample.to_bytes(2, "little", signed=True) for sample in samples)
    assert list(media.g711(pcm, law)) == encoded


# --- Transcription ----------------------------------------------------------------------

HEARD = "conversation.item.input_audio_transcription"


async def transcript(client: Client, size: int) -> list[dict[str, Any]]:
    await client.append(size)
    await client.send("input_audio_buffer.commit")
    return await client.until(f"{HEARD}.completed")


async def test_a_ga_transcription_session(sim: RunningSimulator) -> None:
    async with socket(sim, TRANSCRIBE) as client:
        created = await client.event()
        assert created["type"] == "session.created"
        assert created["session"]["type"] == "transcription"
        assert created["session"]["audio"]["input"]["turn_detection"]["type"] == "server_vad"
        shown = await client.configure(
            "transcription",
            audio={"input": {"transcription": {"model": "gpt-4o-transcribe", "prompt": "p" * 40}}},
        )
        assert shown["audio"]["input"]["transcription"]["model"] == "gpt-4o-transcribe"
        events = await transcript(client, 50_000)
        assert await client.refused("response.create") == "invalid_value"
    assert types(events) == [
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        *([f"{HEARD}.delta"] * 6),
        f"{HEARD}.completed",
    ]
    assert events[-1]["transcript"] == "".join(event["delta"] for event in events[3:-1])
    assert (events[-1]["item_id"], events[-1]["content_index"]) == (events[0]["item_id"], 0)
    # 1.04 s of sound, begun seconds of words.
    assert events[-1]["usage"] == {
        "type": "tokens",
        "total_tokens": 10 + 11 + 6,
        "input_tokens": 21,
        "input_token_details": {"text_tokens": 10, "audio_tokens": 11},
        "output_tokens": 6,
    }


async def test_a_beta_transcription_session(sim: RunningSimulator) -> None:
    async with socket(sim, TRANSCRIBE, headers=BETA) as client:
        created = await client.event()
        assert created["type"] == "transcription_session.created"
        update = {
            "input_audio_format": "g711_alaw",
            "input_audio_transcription": {"model": "whisper-1"},
            "turn_detection": None,
        }
        updated = await client.ask(
            "transcription_session.update", "transcription_session.updated", session=update
        )
        assert updated["session"]["input_audio_format"] == "g711_alaw"
        assert updated["session"]["input_audio_transcription"]["model"] == "whisper-1"
        events = await transcript(client, 12_345)
    assert "conversation.item.created" in types(events)
    assert events[-1]["usage"] == {"type": "duration", "seconds": 12_345 / 8_000}


async def test_speech_is_transcribed_turn_by_turn(sim: RunningSimulator) -> None:
    async with session(sim, TRANSCRIBE) as client:
        for _ in range(2):
            await client.append(96_000)
            events = await client.until(f"{HEARD}.completed")
            assert "input_audio_buffer.speech_stopped" in types(events)
            assert events[-1]["usage"]["input_token_details"]["audio_tokens"] == 20
    _, record = await ended(sim)
    assert record.transcriptions == 2
    assert record.reported["transcription"]["input_audio_tokens"] == 40
    assert record.reported["transcription"]["output_tokens"] == 12


async def test_nothing_transcribes_until_the_client_chooses_if_so_told(
    sim: RunningSimulator,
) -> None:
    async with socket(sim, TRANSCRIBE, "transcriber=") as client:
        created = await client.event()
        assert created["session"]["audio"]["input"]["transcription"] is None
        await client.append(96_000)
        await client.until("conversation.item.done")
    _, record = await ended(sim)
    assert record.transcriptions == 0


async def test_conversations_transcribe_too_if_asked(sim: RunningSimulator) -> None:
    async with session(sim) as client:
        await client.configure(audio={"input": {"transcription": {"model": "whisper-1"}}})
        await client.append(96_000)
        events = await client.until("response.done")
        if f"{HEARD}.completed" not in types(events):
            events += await client.until(f"{HEARD}.completed")
    heard = next(event for event in events if event["type"] == f"{HEARD}.completed")
    assert heard["usage"] == {"type": "duration", "seconds": 2.0}
    _, record = await ended(sim)
    assert record.reported["transcription"] == {"seconds": 2.0}
    assert record.reported["response"]["output_tokens"] == 12


# --- The handshake ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "query", "kind"),
    [
        ("/openai/v1/realtime", "model=my-deployment", "session.created"),
        ("/openai/v1/realtime", "intent=transcription", "session.created"),
        ("/openai/realtime", "api-version=2025-04-01-preview&deployment=d", "session.created"),
        (
            "/openai/realtime",
            "api-version=2025-04-01-preview&intent=transcription",
            "session.created",
        ),
    ],
)
@pytest.mark.parametrize("headers", [{"api-key": "sim-key"}, KEY])
async def test_azures_addresses(
    sim: RunningSimulator, path: str, query: str, kind: str, headers: dict[str, str]
) -> None:
    async with socket(sim, query, path=path, headers=headers) as client:
        assert (await client.event())["type"] == kind


@pytest.mark.parametrize(
    ("path", "query", "headers", "expected"),
    [
        ("/v1/realtime", MODEL, {}, (401, None)),
        ("/v1/realtime", MODEL, {"authorization": "Bearer wrong"}, (401, "invalid_api_key")),
        ("/v1/realtime", TRANSCRIBE, {"authorization": "Bearer wrong"}, (401, "invalid_api_key")),
        ("/openai/v1/realtime", MODEL, {"api-key": "wrong"}, (401, "401")),
        ("/openai/v1/realtime", "", KEY, (400, "missing_model")),
        ("/openai/realtime", "deployment=d", KEY, (404, "404")),
        (
            "/openai/realtime",
            "api-version=1&deployment=d&intent=transcription",
            KEY,
            (400, "OperationNotSupported"),
        ),
        ("/v1/elsewhere", MODEL, KEY, (404, "unknown_url")),
        ("/v1/elsewhere", MODEL, {"authorization": "Bearer wrong"}, (401, "invalid_api_key")),
        ("/v1/realtime", MODEL + "&sim=latencey%3D1", KEY, (400, "simulator_knob")),
        ("/v1/realtime", MODEL + "&sim=status%3D503", KEY, (503, None)),
        ("/v1/realtime", MODEL, KEY | {"x-sim-status": "429"}, (429, "rate_limit_exceeded")),
        ("/v1/realtime", "model=m%5B%5Bsim%20status=403%5D%5D", KEY, (403, "model_not_available")),
    ],
)
async def test_refused_handshakes(
    sim: RunningSimulator, path: str, query: str, headers: dict[str, str], expected: tuple[int, Any]
) -> None:
    status, error = await handshake(sim, query, path=path, headers=headers)
    assert (status, error["code"]) == expected
    call = sim.calls[-1]
    assert (call.status, call.ended, call.realtime) == (status, "answered", None)


async def test_a_refusal_is_slow_and_says_what_it_was_told(sim: RunningSimulator) -> None:
    began = time.monotonic()
    status, error = await handshake(sim, knobs='status=500 message="not today" latency=0.1')
    assert (status, error["message"]) == (500, "not today")
    assert time.monotonic() - began > 0.09


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("", "missing_model"),
        ("intent=transcription&model=gpt-4o-transcribe", "invalid_model"),
        ("model=gpt-4o-transcribe", "invalid_model"),
    ],
)
async def test_openai_says_in_the_session_that_a_model_is_wrong(
    sim: RunningSimulator, query: str, code: str
) -> None:
    async with socket(sim, query) as client:
        events, closed = await client.closed()
        assert client.ws.close_reason == f"invalid_request_error.{code}"
    assert (types(events), events[0]["error"]["code"], closed) == (["error"], code, 4000)


async def test_browsers_send_their_key_as_a_subprotocol(sim: RunningSimulator) -> None:
    offered = ["realtime", "openai-insecure-api-key.sim-key"]
    async with session(sim, headers={}, subprotocols=offered) as client:
        assert client.ws.subprotocol == "realtime"
    call, record = await ended(sim)
    assert (call.credential, record.subprotocols) == ("sim-key", offered)


@pytest.mark.parametrize("fault", ["disconnect", "stall"])
async def test_faults_before_the_handshake_is_answered(sim: RunningSimulator, fault: str) -> None:
    with pytest.raises((websockets.InvalidMessage, TimeoutError)):
        async with socket(sim, knobs=f"{fault}=true", open_timeout=0.2):
            pass
    for _ in range(200):
        if sim.app.open == 0:
            break
        await asyncio.sleep(0.01)
    assert sim.calls[-1].ended == ("cut" if fault == "disconnect" else "client_left")


# --- Updates and errors -----------------------------------------------------------------


async def test_updates_merge(sim: RunningSimulator) -> None:
    async with session(sim) as client:
        await client.configure(instructions="be brief", model="gpt-realtime-mini")
        await client.configure(
            audio={"input": {"transcription": {"model": "gpt-4o-transcribe", "language": "de"}}}
        )
        shown = await client.configure(
            audio={"input": {"transcription": {"model": "whisper-1"}}, "output": {"voice": "marin"}}
        )
        gone = await client.configure(audio={"input": {"transcription": None}})
    assert (shown["instructions"], shown["model"]) == ("be brief", "gpt-realtime-mini")
    assert shown["audio"]["input"]["transcription"] == {"model": "whisper-1", "language": "de"}
    assert shown["audio"]["output"]["voice"] == "marin"
    assert gone["audio"]["input"]["transcription"] is None
    _, record = await ended(sim)
    assert record.config["model"] == "gpt-realtime-mini"


@pytest.mark.parametrize(
    ("session_sent", "code"),
    [
        ({}, "missing_required_parameter"),
        ({"type": "transcription"}, "invalid_parameter"),
        ({"type": "other"}, "invalid_value"),
        ({"type": "realtime", "input_audio_format": "pcm16"}, "unknown_parameter"),
        ({"type": "realtime", "max_output_tokens": 0}, "invalid_value"),
        ({"type": "realtime", "max_output_tokens": 4097}, "invalid_value"),
        ({"type": "realtime", "max_output_tokens": True}, "invalid_value"),
        ({"type": "realtime", "output_modalities": ["video"]}, "invalid_value"),
        ({"type": "realtime", "model": 1}, "invalid_value"),
        ({"type": "realtime", "audio": 1}, "invalid_value"),
        ({"type": "realtime", "audio": {"input": None}}, "invalid_value"),
        ({"type": "realtime", "audio": {"input": {"format": {"type": "mp3"}}}}, "invalid_value"),
        ({"type": "realtime", "audio": {"input": {"transcription": {}}}}, "invalid_value"),
        (
            {"type": "realtime", "audio": {"input": {"turn_detection": {"type": "x"}}}},
            "invalid_value",
        ),
    ],
)
async def test_wrong_updates_change_nothing(
    sim: RunningSimulator, session_sent: dict[str, Any], code: str
) -> None:
    async with session(sim) as client:
        before = await client.configure()
        assert await client.refused("session.update", session=session_sent) == code
        assert await client.configure() == before


async def test_what_is_not_understood_is_an_error_and_the_session_goes_on(
    sim: RunningSimulator,
) -> None:
    async with session(sim) as client:
        for sent in ("{", "[]", "nan", b"binary"):
            await client.ws.send(sent)
            assert (await client.event())["error"]["code"] == "invalid_json"
        error = (await client.ask("unheard.of", "error", event_id="mine"))["error"]
        assert (error["type"], error["code"], error["param"], error["event_id"]) == (
            "invalid_request_error",
            "invalid_value",
            "type",
            "mine",
        )
        for fields in ({}, {"audio": 1}, {"audio": "no base64"}):
            assert await client.refused("input_audio_buffer.append", **fields) == "invalid_value"
        for item in (
            None,
            {},
            {"type": "message"},
            {"type": "message", "role": "user", "content": [1]},
        ):
            assert await client.refused("conversation.item.create", item=item) == "invalid_value"
        for response in (1, {"input": 1}, {"max_output_tokens": 5000}):
            assert await client.refused("response.create", response=response) == "invalid_value"
        assert await client.refused("response.create", response={"what": 1}) == "unknown_parameter"
        assert (await client.respond())["status"] == "completed"
    _, record = await ended(sim)
    assert (record.received["unknown"], record.received["binary"]) == (4, 1)


async def test_answers_can_be_truncated(sim: RunningSimulator) -> None:
    async with session(sim) as client:
        item_id = (await client.respond())["output"][0]["id"]
        truncated = await client.ask(
            "conversation.item.truncate",
            "conversation.item.truncated",
            item_id=item_id,
            content_index=0,
            audio_end_ms=200,
        )
        assert truncated["audio_end_ms"] == 200
        usage = (await client.respond())["usage"]
    assert usage["input_tokens"] == 2


# --- Where knobs come from --------------------------------------------------------------


@pytest.mark.parametrize("place", ["query", "header", "model", "instructions", "item", "runtime"])
async def test_knobs_come_from_many_places(sim: RunningSimulator, place: str) -> None:
    query, headers, text = MODEL, KEY, "[[sim answer_tokens=5]]"
    match place:
        case "query":
            query += "&sim=answer_tokens%3D5"
        case "header":
            headers = KEY | {"x-sim-answer-tokens": "5"}
        case "model":
            query += urllib.parse.quote(text)
        case "runtime":
            sim.set(answer_tokens=5)
    async with socket(sim, query, headers=headers) as client:
        assert (await client.event())["session"]["model"] == "gpt-realtime"
        if place == "instructions":
            await client.configure(instructions=text)
        elif place == "item":
            await client.say(text)
        for _ in range(2):
            usage = (await client.respond(**TEXT))["usage"]
            assert usage["output_tokens"] == 5


async def test_a_directive_in_the_prompt_of_a_transcription(sim: RunningSimulator) -> None:
    async with session(sim, TRANSCRIBE) as client:
        chosen = {"model": "gpt-4o-transcribe", "prompt": '[[sim text="just this" tokens_in=99]]'}
        await client.configure("transcription", audio={"input": {"transcription": chosen}})
        completed = (await transcript(client, 48_000))[-1]
    assert completed["transcript"] == "just this"
    assert (completed["usage"]["input_tokens"], completed["usage"]["output_tokens"]) == (99, 2)


async def test_a_directive_in_a_response_is_for_that_response(sim: RunningSimulator) -> None:
    async with session(sim) as client:
        once = await client.respond(instructions="[[sim answer_tokens=5 end=failed]]", **TEXT)
        then = await client.respond(**TEXT)
    assert (once["status"], once["usage"]["output_tokens"]) == ("failed", 5)
    assert (then["status"], then["usage"]["output_tokens"]) == ("completed", 2)


async def test_a_wrong_knob_is_refused_aloud(sim: RunningSimulator) -> None:
    async with session(sim) as client:
        for text in ("[[sim latencey=1]]", "[[sim stall=soon]]", "[[sim close_code=1]]"):
            update = {"type": "realtime", "instructions": text}
            assert await client.refused("session.update", session=update) == "simulator_knob"
            response = {"instructions": text}
            assert await client.refused("response.create", response=response) == "simulator_knob"


@pytest.mark.parametrize(
    "knob", ["close=true", "stall=seconds:1", "disconnect=bytes:1", "usage=twice"]
)
async def test_an_http_request_refuses_what_only_a_session_can_do(
    sim: RunningSimulator, knob: str
) -> None:
    async with httpx2.AsyncClient(base_url=sim.base_url, headers=KEY) as http:
        answer = await http.get("/v1/models", headers={"x-sim": knob})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "simulator_knob")


# --- Faults -----------------------------------------------------------------------------

# Each fault at each point, and how many events arrive before it.
POINTS = {"after:0": 0, "after:3": 3, "seconds:0.05": 1, "bytes:4000": 1, "response:1": 7}


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("fault", ["error_event", "close", "disconnect"])
async def test_a_session_ends_where_it_is_told(
    sim: RunningSimulator, fault: str, point: str
) -> None:
    async with socket(sim, knobs=f"{fault}={point} close_code=4321 pace=1") as client:
        if point == "bytes:4000":
            with contextlib.suppress(websockets.ConnectionClosed):
                await client.append(3_000)
                await client.append(1_000)
        elif point not in ("seconds:0.05", "after:0"):
            await client.send("response.create")
        events, code = await client.closed()
    expected = {"error_event": 1011, "close": 4321, "disconnect": None}
    assert code == expected[fault]
    if fault == "error_event":
        assert events.pop()["error"]["type"] == "server_error"
    assert len(events) == POINTS[point]
    call, record = await ended(sim)
    assert (call.ended, record.fault) == ("cut" if fault == "disconnect" else "answered", fault)
    assert record.close_sent == expected[fault]
    if point == "response:1":
        # What was said is known, though nothing reported it.
        assert record.unreported["response"]["output_tokens"] == 6
    assert record.reported == {}


@pytest.mark.parametrize("point", ["before-usage", "before-done", "response:2"])
async def test_a_fault_on_the_way_to_the_usage(sim: RunningSimulator, point: str) -> None:
    async with session(sim, knobs=f"close={point} answer_tokens=1") as client:
        await client.send("response.create")
        if point == "response:2":
            await client.until("response.done")
            await client.send("response.create")
        events, code = await client.closed()
    assert code == 1000
    assert "response.done" not in types(events)
    assert events[-1]["type"] == (
        "response.output_audio.delta" if point == "response:2" else "response.output_item.done"
    )
    _, record = await ended(sim)
    assert record.responses == (2 if point == "response:2" else 1)
    assert record.unreported["response"]["output_tokens"] == 6


async def test_a_transcription_counts_as_a_response(sim: RunningSimulator) -> None:
    async with session(sim, TRANSCRIBE, knobs="disconnect=response:1") as client:
        await client.append(96_000)
        events, code = await client.closed()
    assert (events[-1]["type"], code) == (f"{HEARD}.delta", None)


async def test_a_directive_can_end_the_session_at_once(sim: RunningSimulator) -> None:
    async with session(sim) as client:
        update = {"type": "realtime", "instructions": "[[sim close=true]]"}
        await client.send("session.update", session=update)
        assert await client.closed() == ([], 1000)


@pytest.mark.parametrize("point", ["after:1", "bytes:1", "response:1"])
async def test_a_stalled_session_answers_nothing_not_even_pings(
    sim: RunningSimulator, point: str
) -> None:
    async with session(sim) as client:
        if point != "after:1":
            pong = await client.ws.ping()
            await asyncio.wait_for(pong, 1)
        await client.say(f"[[sim stall={point} pace=1]]") if point == "response:1" else None
        if point == "response:1":
            await client.ask("response.create", "response.output_audio.delta")
        else:
            update = {"type": "realtime", "instructions": f"[[sim stall={point}]]"}
            await client.send("session.update", session=update)
            await client.append(1)
        await asyncio.sleep(0.05)
        pong = await client.ws.ping()
        await client.send("response.create")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(pong), 0.15)
        assert sim.calls[-1].ended == "open"
        client.ws.transport.abort()
    call, record = await ended(sim)
    assert (call.ended, record.fault, record.close_received) == ("client_left", "stall", 1006)


async def test_the_first_event_can_be_late(sim: RunningSimulator) -> None:
    began = time.monotonic()
    async with socket(sim, knobs="latency=0.4") as client:
        await asyncio.wait_for(await client.ws.ping(), 0.35)
        assert (await client.event())["type"] == "session.created"
    assert time.monotonic() - began > 0.39


# --- Usage and status -------------------------------------------------------------------


async def test_missing_usage(sim: RunningSimulator) -> None:
    async with session(sim, knobs="usage=missing") as client:
        assert "usage" not in await client.respond()
    async with session(sim, TRANSCRIBE, knobs="usage=missing") as client:
        assert "usage" not in (await transcript(client, 48_000))[-1]
    _, record = await ended(sim)
    assert record.reported == {}
    assert record.unreported["transcription"]["total_tokens"] == 13


async def test_usage_that_comes_twice(sim: RunningSimulator) -> None:
    async with session(sim, knobs="usage=twice") as client:
        first = await client.ask("response.create", "response.done")
        assert await client.event() == first
    _, record = await ended(sim)
    assert record.sent["response.done"] == 2
    assert record.reported["response"]["output_tokens"] == 12
    async with session(sim, TRANSCRIBE, knobs="usage=twice") as client:
        completed = (await transcript(client, 48_000))[-1]
        assert await client.event() == completed


async def test_usage_that_comes_late(sim: RunningSimulator) -> None:
    async with session(sim, knobs="usage_delay=0.4") as client:
        await client.ask("response.create", "response.output_item.done")
        began = time.monotonic()
        # The session goes on meanwhile.
        await client.configure()
        assert time.monotonic() - began < 0.35
        await client.until("response.done")
        assert time.monotonic() - began > 0.35


async def test_cached_input(sim: RunningSimulator) -> None:
    async with session(sim, knobs="cached_share=0.5 vad_seconds=0.5") as client:
        await client.say("x" * 44)
        await client.append(24_000)
        usage = (await client.until("response.done"))[-1]["response"]["usage"]
    told = usage["input_token_details"]
    assert (told["text_tokens"], told["audio_tokens"], told["cached_tokens"]) == (11, 5, 7)
    assert told["cached_tokens_details"] == {"text_tokens": 5, "audio_tokens": 2, "image_tokens": 0}


async def test_usage_can_be_fixed_or_added_to(sim: RunningSimulator) -> None:
    async with session(
        sim, knobs="tokens_in=1000 tokens_out=500 audio_in=900 cached=950"
    ) as client:
        usage = (await client.respond(instructions="[[sim audio_out=400]]"))["usage"]
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (
        1000,
        500,
        1500,
    )
    told = usage["input_token_details"]
    assert (told["text_tokens"], told["audio_tokens"], told["cached_tokens"]) == (100, 900, 950)
    assert told["cached_tokens_details"] == {
        "text_tokens": 100,
        "audio_tokens": 850,
        "image_tokens": 0,
    }
    assert usage["output_token_details"] == {"text_tokens": 100, "audio_tokens": 400}
    async with session(sim, knobs="audio_in=7 audio_out=3") as client:
        usage = (await client.respond())["usage"]
    assert usage["input_token_details"]["audio_tokens"] == 7
    assert usage["output_token_details"]["audio_tokens"] == 13


@pytest.mark.parametrize(
    ("end", "details"),
    [
        ("failed", {"type": "failed"}),
        ("incomplete", {"type": "incomplete", "reason": "content_filter"}),
    ],
)
async def test_other_ends_report_usage_too(
    sim: RunningSimulator, end: str, details: dict[str, str]
) -> None:
    async with session(sim, knobs=f"end={end}") as client:
        done = await client.respond()
    assert done["status"] == end
    assert done["status_details"] | details == done["status_details"]
    assert done["usage"]["output_tokens"] == 12


async def test_a_transcription_can_fail(sim: RunningSimulator) -> None:
    async with session(sim, TRANSCRIBE, knobs="end=failed") as client:
        await client.append(96_000)
        failed = (await client.until(f"{HEARD}.failed"))[-1]
    assert failed["error"]["code"] == "transcription_failed"
    _, record = await ended(sim)
    assert (record.reported, record.unreported) == ({}, {})


async def test_the_claimed_model_is_another(sim: RunningSimulator) -> None:
    async with session(sim, knobs="claim_model=gpt-dear") as client:
        assert (await client.configure())["model"] == "gpt-dear"
    async with session(sim, TRANSCRIBE, knobs="claim_model=gpt-dear") as client:
        shown = await client.configure("transcription")
        assert shown["audio"]["input"]["transcription"]["model"] == "gpt-dear"


@pytest.mark.parametrize("name", ["session", "max_output_tokens", "voice"])
async def test_updates_can_be_refused(sim: RunningSimulator, name: str) -> None:
    async with session(sim, knobs=f"refuse={name}") as client:
        update = {"type": "realtime", "max_output_tokens": 5, "audio": {"output": {"voice": "ash"}}}
        error = (await client.ask("session.update", "error", session=update))["error"]
        assert (error["code"], error["param"]) == ("unsupported_parameter", name)
        assert (await client.respond())["status"] == "completed"


# --- The socket and the record ----------------------------------------------------------


async def test_frames_up_to_sixteen_mebibytes(sim: RunningSimulator) -> None:
    async with session(sim, compression="deflate") as client:
        assert client.ws.protocol.extensions == []
        await client.configure(audio={"input": {"turn_detection": None}})
        await client.append(12 * 2**20 - 1_000)
        await client.ask("input_audio_buffer.commit", "conversation.item.done")
        with contextlib.suppress(websockets.ConnectionClosed):
            await client.append(12 * 2**20)
        assert (await client.closed())[1] == 1009
    _, record = await ended(sim)
    assert record.audio_bytes == 12 * 2**20 - 1_000


async def test_the_record(sim: RunningSimulator) -> None:
    async with session(sim, headers=KEY | {"x-mine": "1"}) as client:
        await client.configure(max_output_tokens=5)
        await client.append(48_000)
        await client.respond()
        await asyncio.wait_for(await client.ws.ping(), 1)
        await client.ws.close(4000, "enough")
    call, record = await ended(sim)
    assert (call.path, call.query, call.model) == ("/v1/realtime", MODEL, "gpt-realtime")
    assert (call.status, call.ended, call.credential) == (101, "client_left", "sim-key")
    assert call.headers["x-mine"] == "1"
    assert (record.kind, record.shape, record.responses) == ("conversation", "ga", 1)
    assert [frame.type for frame in record.frames] == [
        "session.update",
        "input_audio_buffer.append",
        "response.create",
    ]
    assert record.frames[0].json()["session"]["max_output_tokens"] == 5
    assert (record.frames[1].text, record.frames[1].bytes > 64_000) == ("", True)
    assert record.frames_received == 3
    assert record.bytes_received == call.body_bytes == sum(frame.bytes for frame in record.frames)
    assert (record.audio_bytes, record.audio_seconds, record.pings) == (48_000, 1.0, 1)
    assert (record.close_received, record.close_reason) == (4000, "enough")
    assert record.events_sent == call.events_sent == sum(record.sent.values())
    assert record.sent["response.done"] == 1
    assert record.reported["response"]["output_tokens"] == 5
    assert record.config["max_output_tokens"] == 5
    assert record.seconds is not None
    async with httpx2.AsyncClient(base_url=sim.base_url) as http:
        shown = (await http.get("/_control/calls")).json()
    assert shown["by_path"] == {"/v1/realtime": 1}
    assert shown["calls"][0]["realtime"]["audio_bytes"] == 48_000


async def test_the_record_is_bounded(sim: RunningSimulator) -> None:
    async with session(sim) as client:
        for _ in range(450):
            await client.send(
                "session.update", session={"type": "realtime", "instructions": "x" * 99}
            )
        for _ in range(450):
            await client.event()
    _, record = await ended(sim)
    assert record.frames_received == 450
    assert 100 <= len(record.frames) <= 200
    assert sum(len(frame.text) for frame in record.frames) <= 16_384


async def test_a_client_that_breaks_off_is_noticed_at_once(sim: RunningSimulator) -> None:
    async with session(sim, knobs="pace=1 answer_tokens=100") as client:
        await client.ask("response.create", "response.output_audio.delta")
        client.ws.transport.abort()
    call, record = await ended(sim)
    assert (call.ended, record.close_received) == ("client_left", 1006)
    assert record.unreported["response"]["output_tokens"] == 6


async def test_a_server_that_ends_does_not_wait_for_its_sessions() -> None:
    began = time.monotonic()
    async with contextlib.AsyncExitStack() as stack:
        async with running_simulator() as sim:
            client = await stack.enter_async_context(session(sim))
            await client.send("response.create")
            await client.until("response.created")
            stalled = await stack.enter_async_context(session(sim, knobs="stall=after:1"))
        await client.closed()
        await stalled.closed()
    assert time.monotonic() - began < 3


# --- The unmodified SDK -----------------------------------------------------------------


@pytest.fixture
async def sdk(sim: RunningSimulator) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=sim.openai_url,
        websocket_base_url=sim.openai_url.replace("http", "ws"),
        api_key="sim-key",
    ) as client:
        yield client


async def test_sdk_conversation(sdk: openai.AsyncOpenAI) -> None:
    async with sdk.realtime.connect(model="gpt-realtime") as connection:
        created = await connection.recv()
        assert created.type == "session.created"
        assert created.session.model == "gpt-realtime"
        await connection.session.update(
            session={"type": "realtime", "output_modalities": ["text"], "max_output_tokens": 1}
        )
        assert (await connection.recv()).session.max_output_tokens == 1
        part = {"type": "input_text", "text": "x" * 40}
        await connection.conversation.item.create(
            item={"type": "message", "role": "user", "content": [part]}
        )
        await connection.response.create()
        text = ""
        async for event in connection:
            if event.type == "response.output_text.delta":
                text += event.delta
            if event.type == "response.done":
                break
        assert text == "Every"
        assert event.response.status == "incomplete"
        assert (event.response.usage.input_tokens, event.response.usage.output_tokens) == (10, 1)


async def test_sdk_transcription(sdk: openai.AsyncOpenAI) -> None:
    async with sdk.realtime.connect(extra_query={"intent": "transcription"}) as connection:
        created = await connection.recv()
        assert created.session.type == "transcription"
        await connection.session.update(
            session={
                "type": "transcription",
                "audio": {"input": {"transcription": {"model": "whisper-1"}}},
            }
        )
        await connection.input_audio_buffer.append(audio=base64.b64encode(bytes(96_000)).decode())
        async for event in connection:
            if event.type == f"{HEARD}.completed":
                break
        assert (event.usage.type, event.usage.seconds) == ("duration", 2.0)


async def test_sdk_beta(sdk: openai.AsyncOpenAI, sim: RunningSimulator) -> None:
    async with sdk.beta.realtime.connect(model="gpt-4o-realtime-preview") as connection:
        created = await connection.recv()
        assert created.session.input_audio_format == "pcm16"
        await connection.response.create(response={"modalities": ["text"]})
        async for event in connection:
            if event.type == "response.done":
                break
        assert event.response.usage.output_token_details.text_tokens == 2
    assert sim.calls[-1].realtime.shape == "beta"


async def test_sdk_azure(sim: RunningSimulator) -> None:
    root = sim.base_url.replace("http", "ws")
    async with (
        openai.AsyncAzureOpenAI(
            azure_endpoint=sim.base_url,
            websocket_base_url=f"{root}/openai",
            api_version="2025-04-01-preview",
            api_key="sim-key",
        ) as client,
        client.realtime.connect(model="my-deployment") as connection,
    ):
        created = await connection.recv()
        assert created.session.model == "my-deployment"
    call = sim.calls[-1]
    assert (call.path, call.headers["api-key"]) == ("/openai/realtime", "sim-key")


async def test_sdk_refusals(sim: RunningSimulator) -> None:
    async with openai.AsyncOpenAI(base_url=sim.openai_url, api_key="wrong") as client:
        with pytest.raises(websockets.InvalidStatus) as refused:
            await client.realtime.connect(model="gpt-realtime").enter()
    assert refused.value.response.status_code == 401
