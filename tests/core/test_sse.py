"""Streams: cut anywhere, forwarded untouched, metered whole, and never complete before the books.

The scenarios of the chat meter are a table of events; to add one, add a `Scene`.
"""

import json
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core import sse
from app.core.metering import Usage
from app.core.sse import (
    ChatStreamMeter,
    MessagesStreamMeter,
    Out,
    ResponsesStreamMeter,
    SseSplitter,
    data_of,
    null_usage,
)

ENDS = [b"\n", b"\r\n", b"\r"]


def split(chunks: Iterable[bytes]) -> tuple[list[bytes], bytes]:
    splitter = SseSplitter()
    events = [event for chunk in chunks for event in splitter.feed(chunk)]
    return events, splitter.flush()


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


# Splitting.


@pytest.mark.parametrize(
    ("stream", "events", "rest"),
    [
        pytest.param(b"data: a\n\ndata: b\n\n", [b"data: a\n\n", b"data: b\n\n"], b"", id="LF"),
        pytest.param(b"data: a\r\n\r\nx", [b"data: a\r\n\r\n"], b"x", id="CRLF"),
        pytest.param(b"a\r\rb\r\r", [b"a\r\r"], b"b\r\r", id="CR, the last may yet be a CRLF"),
        pytest.param(b"a\n\r\nb\r\n\nc\r\r\nd", [b"a\n\r\n", b"b\r\n\n", b"c\r\r\n"], b"d", id="mixed"),
        pytest.param(b"a\r\nb\r\n\r\n", [b"a\r\nb\r\n\r\n"], b"", id="two lines"),
        pytest.param(b": ping\n\n\n\ndata: a\n\n", [b": ping\n\n", b"\n\n", b"data: a\n\n"], b"",
                     id="surplus empty lines"),
        pytest.param(b"\ndata: a\n\n", [b"\ndata: a\n\n"], b"", id="an empty line first"),
        pytest.param(b"data: a", [], b"data: a", id="unfinished"),
        pytest.param(b"", [], b"", id="nothing"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_events_end_with_their_empty_line_wherever_the_stream_is_cut(
    stream: bytes, events: list[bytes], rest: bytes, size: int
) -> None:
    assert split(cut(stream, size)) == (events, rest)


def test_a_flushed_splitter_begins_anew() -> None:
    splitter = SseSplitter()
    splitter.feed(b"data: abc")
    assert splitter.flush() == b"data: abc"
    assert splitter.flush() == b""
    assert splitter.feed(b"a\n\n") == [b"a\n\n"]


STREAMS = st.lists(
    st.sampled_from([b"\r", b"\n", b"\r\n", b"data: ", b"x", "中".encode(), b'{"usage":', b":"]),
    max_size=30,
).map(b"".join)


@given(STREAMS, st.integers(1, 7), st.data())
def test_no_byte_is_lost_and_no_cut_matters(stream: bytes, size: int, data: st.DataObject) -> None:
    whole, rest = split([stream])
    assert b"".join([*whole, rest]) == stream
    at = data.draw(st.integers(0, len(stream)))
    assert split([stream[:at], stream[at:]]) == (whole, rest)
    assert split(cut(stream, size)) == (whole, rest)


def test_time_is_linear_in_the_bytes() -> None:
    def seconds(size: int) -> float:
        stream = b"data: " + b"x" * size + b"\n\n"
        begun = time.process_time()
        events, rest = split(cut(stream, 1))
        taken = time.process_time() - begun
        assert (events, rest) == ([stream], b"")
        return taken

    # Quadratic time would make the ratio 64.
    assert min(seconds(160_000) for _ in range(2)) < 30 * min(seconds(20_000) for _ in range(3))


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: a\n\n", b"a"),
        (b"data:a\n\n", b"a"),
        (b"data:  a\n\n", b" a"),
        (b"data: a\r\n\r\n", b"a"),
        (b"data: a\r\r", b"a"),
        (b"data: a\ndata: b\n\n", b"a\nb"),
        (b"data: a\rdata: b\n\n", b"a\nb"),
        (b"event: x\ndata: a\nid: 1\n\n", b"a"),
        (b"data\n\n", b""),
        (b"data: \n\n", b""),
        (b"\ndata: a\n\n", b"a"),
        (b"\xef\xbb\xbfdata: a\n\n", b"a"),
        (b"data: a", b"a"),
        (b"data: \xc2\x85\xe2\x80\xa8\n\n", b"\xc2\x85\xe2\x80\xa8"),
        (b": comment\n\n", None),
        (b"datum: a\n\n", None),
        (b"event: x\n\n", None),
        (b"\n\n", None),
        (b"", None),
    ],
)
def test_data_of_an_event(event: bytes, data: bytes | None) -> None:
    assert data_of(event) == data


# Chat.


def event(data: object, end: bytes = b"\n\n") -> bytes:
    text = data if isinstance(data, bytes) else json.dumps(data, ensure_ascii=False).encode()
    return b"data: " + text + end


def chunk(delta: object, **more: object) -> bytes:
    return event({"model": "m-1", "choices": [{"index": 0, "delta": delta}], **more})


USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
METERED: Usage = {"input_token": 9, "output_token": 2}
HELLO = chunk({"role": "assistant", "content": "hello"})
NULL = chunk({"content": "x"}, usage=None)
USAGE_ONLY = event({"choices": [], "usage": USAGE})
BESIDE = chunk({"content": "x"}, usage=USAGE)
BESIDE_NULLED = event(
    json.dumps({"model": "m-1", "choices": [{"index": 0, "delta": {"content": "x"}}]})[:-1].encode()
    + b', "usage": null}'
)
DONE = b"data: [DONE]\n\n"
ERROR = event({"error": {"message": "overloaded"}})
ERROR_USAGE = event({"error": {"message": "overloaded"}, "usage": USAGE})
NAMED_ERROR = b'event: error\ndata: {"message": "overloaded"}\n\n'
PING = b": ping\n\n"


class Scene(NamedTuple):
    name: str
    events: list[bytes]
    now: bytes
    final: bytes
    usage: Usage | None = None
    hide: bool = True
    done: bool = True
    error: bool = False
    output_bytes: int = 0


SCENES = [
    Scene("usage nobody asked for is swallowed", [HELLO, USAGE_ONLY, DONE], HELLO, DONE, METERED,
          output_bytes=5),
    Scene("usage asked for waits for the settlement", [HELLO, USAGE_ONLY, DONE], HELLO,
          USAGE_ONLY + DONE, METERED, hide=False, output_bytes=5),
    Scene("usage beside choices becomes null (Azure)", [BESIDE, DONE], BESIDE_NULLED, DONE, METERED,
          output_bytes=1),
    Scene("usage beside choices, asked for", [BESIDE, DONE], BESIDE, DONE, METERED, hide=False,
          output_bytes=1),
    Scene("null usage stays as it is", [NULL, DONE], NULL, DONE, output_bytes=1),
    Scene("usage in the midst is not the end", [USAGE_ONLY, HELLO, DONE], USAGE_ONLY + HELLO, DONE,
          METERED, hide=False, output_bytes=5),
    Scene("a comment does not release what waits", [USAGE_ONLY, PING, DONE], b"",
          USAGE_ONLY + PING + DONE, METERED, hide=False),
    Scene("comments pass", [PING, HELLO, PING, DONE], PING + HELLO + PING, DONE, output_bytes=5),
    Scene("the last report counts",
          [event({"choices": [], "usage": {"prompt_tokens": 1}}), USAGE_ONLY, DONE], b"", DONE,
          METERED),
    Scene("an unreadable report does not undo a readable one",
          [USAGE_ONLY, event({"choices": [], "usage": {}}),
           event({"choices": [], "usage": {"prompt_tokens": "x"}}), DONE], b"", DONE, METERED),
    Scene("usage without choices at all", [event({"usage": USAGE}), DONE], b"", DONE, METERED),
    Scene("all that follows the end is final", [HELLO, DONE, PING, HELLO], HELLO,
          DONE + PING + HELLO, output_bytes=5),
    Scene("no end: the rest is final", [HELLO, USAGE_ONLY], HELLO, USAGE_ONLY, METERED, hide=False,
          done=False, output_bytes=5),
    Scene("an end that nothing terminates", [HELLO, b"data: [DONE]"], HELLO, b"data: [DONE]",
          output_bytes=5),
    Scene("usage that nothing terminates", [HELLO, USAGE_ONLY[:-2]], HELLO, b"", METERED,
          done=False, output_bytes=5),
    Scene("usage that nothing terminates, asked for", [HELLO, USAGE_ONLY[:-1]], HELLO,
          USAGE_ONLY[:-1], METERED, hide=False, done=False, output_bytes=5),
    Scene("broken off inside an event", [HELLO, b'data: {"choices"'], HELLO, b'data: {"choices"',
          done=False, output_bytes=5),
    Scene("CRLF", [HELLO.replace(b"\n", b"\r\n"), USAGE_ONLY.replace(b"\n", b"\r\n"),
                   DONE.replace(b"\n", b"\r\n")],
          HELLO.replace(b"\n", b"\r\n"), DONE.replace(b"\n", b"\r\n"), METERED, output_bytes=5),
    Scene("an error", [HELLO, ERROR], HELLO + ERROR, b"", done=False, error=True, output_bytes=5),
    Scene("an error with usage is not swallowed", [ERROR_USAGE, DONE],
          ERROR_USAGE.replace(json.dumps(USAGE).encode(), b"null"), DONE, METERED, error=True),
    Scene("an odd error", [event(b'{"error": "x", "model": 5}')], event(b'{"error": "x", "model": 5}'),
          b"", done=False, error=True),
    Scene("an error that only its event's name tells", [NAMED_ERROR, DONE], NAMED_ERROR, DONE,
          error=True),
    Scene("no error", [event(b'{"error": null, "choices": 7}'), DONE],
          event(b'{"error": null, "choices": 7}'), DONE),
    Scene("garbage passes", [event(b"{nonsense"), event(b"[1]"), event(b"5"), event(b"\xff"), DONE],
          event(b"{nonsense") + event(b"[1]") + event(b"5") + event(b"\xff"), DONE),
    Scene("usage that is no object stays",
          [event(b'{"choices": [], "usage": 5}'), event(b'{"choices": [], "usage": [{}]}'), DONE],
          event(b'{"choices": [], "usage": 5}') + event(b'{"choices": [], "usage": [{}]}'), DONE),
    Scene("odd usage is metered and hidden all the same",
          [event(b'{"choices": [], "usage": {"prompt_tokens": 9.0, "completion_tokens": 2}}'), DONE],
          b"", DONE, METERED),
    Scene("odd usage beside odd choices",
          [event(b'{"choices": [7, {}], "usage": {"prompt_tokens": 9}}'), DONE],
          event(b'{"choices": [7, {}], "usage": null}'), DONE, {"input_token": 9}),
]  # fmt: skip


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize("scene", SCENES, ids=[scene.name for scene in SCENES])
def test_chat_stream(scene: Scene, size: int) -> None:
    meter = ChatStreamMeter(scene.hide)
    outs: list[Out] = []
    for piece in cut(b"".join(scene.events), size):
        outs += meter.feed(piece)
    outs += meter.end()
    assert b"".join(data for data, final in outs if not final) == scene.now
    assert b"".join(data for data, final in outs if final) == scene.final
    assert [out.final for out in outs] == sorted(out.final for out in outs)
    assert meter.usage == scene.usage
    assert (meter.done, meter.error) == (scene.done, scene.error)
    assert meter.output_bytes == scene.output_bytes


def test_one_feed_gives_at_most_one_output_of_each_kind() -> None:
    meter = ChatStreamMeter(hide_usage=True)
    assert meter.feed(HELLO + PING + USAGE_ONLY + DONE) == [
        Out(HELLO + PING, False),
        Out(DONE, True),
    ]
    assert meter.end() == []


DELTAS: list[tuple[str, Any, int]] = [
    ("content", {"content": "中文é"}, 8),
    ("empty", {"content": ""}, 0),
    ("role only", {"role": "assistant"}, 0),
    ("null", {"content": None, "refusal": None, "tool_calls": None}, 0),
    ("reasoning", {"reasoning_content": "abc"}, 3),
    ("the same reasoning twice", {"reasoning_content": "abc", "reasoning": "abc"}, 3),
    ("reasoning, the other name", {"reasoning": "abc", "content": "d"}, 4),
    ("refusal", {"refusal": "no"}, 2),
    ("tool calls", {"tool_calls": [{"index": 0, "id": "call_1",
                                    "function": {"name": "f", "arguments": '{"a":1}'}},
                                   {"index": 1, "function": {"arguments": "b"}}, {}]}, 9),
    ("function call", {"function_call": {"name": "f", "arguments": "xy"}}, 3),
    ("spoken", {"audio": {"id": "a", "data": "AAAA", "transcript": "hi"}}, 2),
    ("spoken without words", {"audio": {"data": "AAAA"}}, 0),
    ("parts", {"content": [{"type": "text", "text": "ab"},
                           {"type": "thinking", "thinking": [{"type": "text", "text": "cd"}, {}]},
                           {"type": "thinking", "thinking": "e"}]}, 5),
    ("arguments as an object", {"tool_calls": [{"id": "1", "function": {
        "name": "f", "arguments": {"a": "xyz", "n": 10**400, "f": 1.5}}}]}, 4),
    ("odd delta", {"content": [["ab"], 7, None, {"text": "c"}]}, 3),
]  # fmt: skip


@pytest.mark.parametrize(
    ("delta", "size"), [row[1:] for row in DELTAS], ids=[row[0] for row in DELTAS]
)
def test_generated_text_is_counted_in_bytes(delta: object, size: int) -> None:
    meter = ChatStreamMeter()
    sent = chunk(delta)
    assert meter.feed(sent) == [Out(sent, False)]
    assert meter.output_bytes == size
    assert meter.delta_count == bool(size)
    assert meter.model == "m-1"


def test_all_choices_count() -> None:
    meter = ChatStreamMeter()
    meter.feed(event({"choices": [{"delta": {"content": "ab"}}, {"delta": {"content": "c"}}, {}]}))
    assert (meter.output_bytes, meter.delta_count, meter.model) == (3, 2, None)


def test_a_character_cut_in_two_deltas_counts_and_passes() -> None:
    meter = ChatStreamMeter()
    halves = [
        event(rb'{"model":"","choices":[{"delta":{"content":"\ud83d"}}]}'),
        event(rb'{"model":"m","choices":[{"delta":{"content":"\ude00"}}]}'),
    ]
    assert meter.feed(b"".join(halves)) == [Out(b"".join(halves), False)]
    assert meter.output_bytes == 6
    assert meter.model == "m"


def test_text_that_is_not_utf8_counts_and_passes() -> None:
    meter = ChatStreamMeter()
    sent = event(b'{"model":"m","choices":[{"delta":{"content":"ab\xff"}}]}')
    assert meter.feed(sent) == [Out(sent, False)]
    assert meter.output_bytes == 5


def test_deep_nesting_passes() -> None:
    meter = ChatStreamMeter(hide_usage=True)
    sent = event(b'{"usage":{},"choices":' + b"[" * 100_000)
    assert meter.feed(sent) == [Out(sent, False)]
    deep = event(
        b'{"choices":[{"delta":{"content":' + b'[{"thinking":' * 400 + b"1" + b"}]" * 400 + b"}}]}"
    )
    assert meter.feed(deep) == [Out(deep, False)]


@pytest.mark.parametrize(
    ("sent", "nulled"),
    [
        (b'data: {"usage":{"a":{"b":[1]}},"x":1}\n\n', b'data: {"usage":null,"x":1}\n\n'),
        (b'data:{"x":1, "usage" : {} }\r\n\r\n', b'data:{"x":1, "usage" : null }\r\n\r\n'),
        (b'data: {"usage":{},"usage":{"a":1}}\n\n', b'data: {"usage":null,"usage":null}\n\n'),
        (b'data: {"x":{"usage":{}},"y":"\\"usage\\":{}","z":"usage"}\n\n', None),
        (b'data: {"x":"usage","usage":null}\n\n', None),
        (b'data: {"usage":{"usage":{}}}\n\n', b'data: {"usage":null}\n\n'),
        (b'event: {"usage":{\ndata: {"usage":{}}\nid: {"usage":{}}\n\n',
         b'event: {"usage":{\ndata: {"usage":null}\nid: {"usage":{}}\n\n'),
        (b'data: {"x":[],\ndata: "usage":{\ndata: "a":1},\ndata: "z":2}\n\n',
         b'data: {"x":[],\ndata: "usage":null,\ndata: "z":2}\n\n'),
        (b'event: x\rdata: {"usage":{}}\r\r', b'event: x\rdata: {"usage":null}\r\r'),
        (b'data: {"usage":{"a"\n\n', None),
        (b"data: [DONE]\n\n", None),
    ],
)  # fmt: skip
def test_null_usage_changes_nothing_else(sent: bytes, nulled: bytes | None) -> None:
    assert null_usage(sent) == (sent if nulled is None else nulled)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["usage", "choices", "a", '"usage":{}']), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["choices", "x", '{"usage":']), JSON, max_size=3), JSON)
def test_null_usage_of_any_object_differs_in_usage_alone(data: dict[str, Any], usage: Any) -> None:
    sent = {**data, "usage": {"value": usage}, "after": 1}
    assert json.loads(data_of(null_usage(event(sent))) or b"") == {**sent, "usage": None}


EVENTS = st.sampled_from(
    [HELLO, NULL, USAGE_ONLY, BESIDE, DONE, ERROR, PING, event(b"{"), b"\n", b"x", b"\r\n\r\n"]
)


@given(st.lists(EVENTS, max_size=8).map(b"".join), st.integers(1, 60), st.booleans())
def test_no_cut_changes_what_a_client_gets_or_pays(stream: bytes, size: int, hide: bool) -> None:
    def run(pieces: list[bytes]) -> tuple[object, ...]:
        meter = ChatStreamMeter(hide)
        outs = [out for piece in pieces for out in meter.feed(piece)]
        outs += meter.end()
        flags = [out.final for out in outs]
        assert flags == sorted(flags)
        forwarded = b"".join(out.data for out in outs)
        if not hide:
            assert forwarded == stream
        return forwarded, meter.usage, meter.done, meter.error, meter.output_bytes

    assert run(cut(stream, size)) == run([stream])


# The Responses API.

RESPONSE_USAGE = {
    "input_tokens": 9,
    "input_tokens_details": {"cached_tokens": 4},
    "output_tokens": 5,
    "output_tokens_details": {"reasoning_tokens": 2},
}
RESPONSE_METERED: Usage = {
    "input_token": 5,
    "cached_input_token": 4,
    "output_token": 3,
    "reasoning_token": 2,
}


def named(kind: str, **more: object) -> bytes:
    return b"event: " + kind.encode() + b"\n" + event({"type": kind, **more})


CREATED = named("response.created", response={"model": "m-1", "usage": None})
TEXT = named("response.output_text.delta", delta="中x")
ARGUMENTS = named("response.function_call_arguments.delta", delta="abc")
AUDIO = named("response.output_audio.delta", delta="AAAA")


@pytest.mark.parametrize("kind", ["completed", "incomplete", "failed"])
@pytest.mark.parametrize("size", [1, 100_000])
def test_each_end_of_a_response_carries_usage_and_is_final(kind: str, size: int) -> None:
    end = named(f"response.{kind}", response={"model": "m-2", "usage": RESPONSE_USAGE})
    meter = ResponsesStreamMeter()
    outs = [
        out
        for piece in cut(CREATED + TEXT + PING + ARGUMENTS + AUDIO + end, size)
        for out in meter.feed(piece)
    ]
    now = b"".join(out.data for out in outs if not out.final)
    assert now == CREATED + TEXT + PING + ARGUMENTS + AUDIO
    assert b"".join(out.data for out in outs if out.final) == end
    assert meter.usage == RESPONSE_METERED
    assert (meter.output_bytes, meter.delta_count, meter.model) == (7, 2, "m-1")
    assert (meter.done, meter.error) == (True, kind == "failed")


RESPONSE_ODDITIES: list[tuple[str, bytes, dict[str, Any]]] = [
    ("an error", named("error", message="x"), {"error": True}),
    ("an end without usage", named("response.failed", response={"usage": None}),
     {"error": True, "done": True}),
    ("an end without a response", named("response.completed"), {"done": True}),
    ("empty usage", named("response.completed", response={"usage": {}}), {"done": True}),
    ("odd usage", named("response.completed", response={"usage": {"input_tokens": 9.0}}),
     {"done": True, "usage": {"input_token": 9}}),
    ("an odd response", named("response.completed", response=7), {"done": True}),
    ("an odd type", event({"type": 7, "response": {"model": "m"}}), {"model": "m"}),
    ("an odd delta", named("response.x.delta", delta={"a": ["bc", 1.5]}), {"output_bytes": 2}),
    ("half a character", event(rb'{"type":"response.x.delta","delta":"\ud83d"}'),
     {"output_bytes": 3}),
    ("bytes that are not text", event(b'{"type":"response.x.delta","delta":"\xff"}'),
     {"output_bytes": 3}),
    ("a delta without delta", named("response.x.delta"), {}),
    ("garbage", event(b"{"), {}),
    ("a number", event(b"5"), {}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("sent", "expected"),
    [row[1:] for row in RESPONSE_ODDITIES],
    ids=[row[0] for row in RESPONSE_ODDITIES],
)
def test_odd_events_of_responses(sent: bytes, expected: dict[str, Any]) -> None:
    meter = ResponsesStreamMeter(hide_usage=True)
    outs = meter.feed(sent)
    assert outs == [Out(sent, bool(expected.get("done")))]
    defaults = {"usage": None, "done": False, "error": False, "output_bytes": 0, "model": None}
    assert {name: getattr(meter, name) for name in defaults} == {**defaults, **expected}


# Anthropic's messages.

START = named(
    "message_start",
    message={
        "model": "m-1",
        "usage": {"input_tokens": 25, "cache_read_input_tokens": 7, "output_tokens": 1},
    },
)
BLOCK = named("content_block_start", index=0, content_block={"type": "text", "text": ""})
BLOCK_TEXT = named("content_block_delta", delta={"type": "text_delta", "text": "hi"})
THINKING = named("content_block_delta", delta={"type": "thinking_delta", "thinking": "hmm"})
SIGNATURE = named("content_block_delta", delta={"type": "signature_delta", "signature": "EqQB"})
TOOL = named("content_block_delta", delta={"type": "input_json_delta", "partial_json": '{"a"'})
DELTA = named("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 15})
STOP = named("message_stop")


@pytest.mark.parametrize("size", [1, 100_000])
def test_an_anthropic_stream_merges_its_reports(size: int) -> None:
    meter = MessagesStreamMeter()
    before = START + BLOCK + BLOCK_TEXT + THINKING + SIGNATURE + TOOL
    outs = [out for piece in cut(before + DELTA + STOP, size) for out in meter.feed(piece)]
    assert b"".join(out.data for out in outs if not out.final) == before
    assert b"".join(out.data for out in outs if out.final) == DELTA + STOP
    assert meter.usage == {"input_token": 25, "cached_input_token": 7, "output_token": 15}
    assert (meter.output_bytes, meter.delta_count, meter.model) == (9, 3, "m-1")
    assert (meter.done, meter.error) == (True, False)


def test_an_anthropic_stream_that_breaks_off_has_the_input_it_reported() -> None:
    meter = MessagesStreamMeter()
    assert meter.feed(START + BLOCK_TEXT + DELTA[:20]) == [Out(START + BLOCK_TEXT, False)]
    assert meter.end() == [Out(DELTA[:20], True)]
    assert meter.usage == {"input_token": 25, "cached_input_token": 7, "output_token": 1}
    assert meter.done is False


MESSAGE_ODDITIES: list[tuple[str, bytes, dict[str, Any]]] = [
    ("an error", named("error", error={"type": "overloaded_error"}), {"error": True}),
    ("an odd start", named("message_start", message={"model": 5, "usage": {"input_tokens": 9.0}}),
     {"usage": {"input_token": 9}}),
    ("an odd model", event(rb'{"type":"message_start","message":{"model":"m","usage":5},"x":"\ud83d"}'),
     {"model": "m"}),
    ("an odd message", named("message_start", message=7), {}),
    ("odd usage", named("ping", usage={"output_tokens": "x", "input_tokens": 3}),
     {"usage": {"input_token": 3}}),
    ("half a character", event(rb'{"type":"content_block_delta","delta":{"text":"\ud83d"}}'),
     {"output_bytes": 3}),
    ("an odd type", event({"type": 7}), {}),
    ("garbage", event(b"{"), {}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("sent", "expected"),
    [row[1:] for row in MESSAGE_ODDITIES],
    ids=[row[0] for row in MESSAGE_ODDITIES],
)
def test_odd_events_of_messages(sent: bytes, expected: dict[str, Any]) -> None:
    meter = MessagesStreamMeter(hide_usage=True)
    assert meter.feed(sent) == [Out(sent, False)]
    defaults = {"usage": None, "done": False, "error": False, "output_bytes": 0, "model": None}
    assert {name: getattr(meter, name) for name in defaults} == {**defaults, **expected}


@pytest.mark.parametrize(
    "meter_type", [sse.ChatStreamMeter, sse.ResponsesStreamMeter, sse.MessagesStreamMeter]
)
@given(st.lists(st.binary(max_size=20) | JSON.map(event) | STREAMS, max_size=6))
def test_no_bytes_raise_and_none_are_lost(meter_type: type[Any], pieces: list[bytes]) -> None:
    meter = meter_type(False)
    outs = [out for piece in pieces for out in meter.feed(piece)]
    outs += meter.end()
    assert b"".join(out.data for out in outs) == b"".join(pieces)
