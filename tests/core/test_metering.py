"""What each provider's answer meters to: a table of scenarios per reader, then properties.

To add a scenario, add a `case(name, usage object, expected usage)` to the reader's table.
"""

import json
import sys
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core import metering
from app.core.metering import (
    QUANTITY_MAX,
    TOKEN_UNITS,
    UNITS,
    ChatUsageWire,
    MessagesUsageWire,
    Metered,
    Usage,
    chat_usage,
    output_of,
    tokens_of,
)

HUGE = QUANTITY_MAX + 1

READERS: dict[str, Callable[[bytes], Usage | None]] = {
    "chat": metering.meter_chat,
    "embeddings": metering.meter_embeddings,
    "ocr": metering.meter_ocr,
    "transcription": metering.meter_transcription,
    "responses": metering.meter_responses,
    "messages": metering.meter_messages,
    "images": metering.meter_images,
}


def case(name: str, usage: object, expected: Usage | None) -> Any:
    """One row: the usage object (or its JSON text) and what it meters to."""
    text = usage if isinstance(usage, str) else json.dumps(usage)
    return pytest.param(text, expected, id=name)


def with_usage(text: str, member: str = "usage") -> bytes:
    """An answer with that usage, and with text that half of a surrogate pair makes odd."""
    return b'{"object":"x","choices":["\\ud83d"],"%s":%s}' % (member.encode(), text.encode())


def test_units_are_the_glossarys() -> None:
    assert len(UNITS) == 16
    assert TOKEN_UNITS < UNITS
    assert {"page", "character", "second", "image", "query", "request"} == UNITS - TOKEN_UNITS


def test_tokens_of_a_usage_leave_out_what_is_no_token() -> None:
    usage: Usage = {"input_token": 3, "reasoning_token": 4, "second": Decimal("1.5"), "page": 9}
    assert tokens_of(usage) == 7
    assert tokens_of({}) == 0


def test_output_of_a_usage_is_what_was_generated_alone() -> None:
    assert output_of({"output_token": 3, "reasoning_token": 2, "input_token": 9, "page": 1}) == 5
    assert output_of({}) == 0


def test_a_metering_is_the_providers_word_unless_it_says_otherwise() -> None:
    assert Metered({"page": 1}).estimated is False


@pytest.mark.parametrize(
    ("text", "expected"),
    [("12", 12), ("12.00", 12), ("9.319999694824219", Decimal("9.319999694824219"))],
)
def test_exact_quantities_are_integers_if_whole(text: str, expected: object) -> None:
    quantity = metering.exact(Decimal(text))
    assert quantity == expected
    assert type(quantity) is type(expected)


CHAT = [
    case("plain", {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21},
         {"input_token": 9, "output_token": 12}),
    case("zero is a report", {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, {}),
    case("no output", {"prompt_tokens": 9, "completion_tokens": None}, {"input_token": 9}),
    case("no prompt", {"completion_tokens": 9}, {"output_token": 9}),
    case("cached, written, reasoning",
         {"prompt_tokens": 100, "completion_tokens": 50,
          "prompt_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 30},
          "completion_tokens_details": {"reasoning_tokens": 20, "rejected_prediction_tokens": 5}},
         {"input_token": 10, "cached_input_token": 60, "cache_write_token": 30,
          "output_token": 30, "reasoning_token": 20}),
    case("cache creation, the other name",
         {"prompt_tokens": 10, "prompt_tokens_details": {"cache_creation_tokens": 4}},
         {"input_token": 6, "cache_write_token": 4}),
    case("audio and images both ways",
         {"prompt_tokens": 100, "completion_tokens": 50,
          "prompt_tokens_details": {"audio_tokens": 30, "image_tokens": 20},
          "completion_tokens_details": {"audio_tokens": 30, "image_tokens": 10,
                                        "reasoning_tokens": 4}},
         {"input_token": 50, "input_audio_token": 30, "input_image_token": 20,
          "output_token": 6, "output_audio_token": 30, "output_image_token": 10,
          "reasoning_token": 4}),
    case("cached beyond the text is cached audio",
         {"prompt_tokens": 100, "prompt_tokens_details": {"audio_tokens": 80, "cached_tokens": 50}},
         {"cached_input_token": 20, "cached_input_audio_token": 30, "input_audio_token": 50}),
    case("cached beyond text and audio is an image at full price",
         {"prompt_tokens": 100, "prompt_tokens_details": {"image_tokens": 90, "cached_tokens": 50}},
         {"cached_input_token": 10, "input_image_token": 90}),
    case("cached kinds told apart",
         {"prompt_tokens": 100,
          "prompt_tokens_details": {
              "audio_tokens": 40, "image_tokens": 20, "cached_tokens": 50,
              "cached_tokens_details": {"audio_tokens": 30, "image_tokens": 5}}},
         {"cached_input_audio_token": 30, "input_audio_token": 10, "cached_input_token": 15,
          "input_token": 25, "input_image_token": 20}),
    case("empty details", {"prompt_tokens": 9, "prompt_tokens_details": {},
                           "completion_tokens_details": {}}, {"input_token": 9}),
    case("null details", {"prompt_tokens": 9, "prompt_tokens_details": None}, {"input_token": 9}),
    case("DeepSeek's cache hits", {"prompt_tokens": 9, "prompt_cache_hit_tokens": 4},
         {"input_token": 5, "cached_input_token": 4}),
    case("Moonshot's cached tokens, details without",
         {"prompt_tokens": 9, "cached_tokens": 4, "prompt_tokens_details": {"audio_tokens": 0}},
         {"input_token": 5, "cached_input_token": 4}),
    case("reasoning only in the total (Gemini)",
         {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 115},
         {"input_token": 10, "output_token": 105}),
    case("reasoning beside the completion (Grok)",
         {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 115,
          "completion_tokens_details": {"reasoning_tokens": 100}},
         {"input_token": 10, "output_token": 5, "reasoning_token": 100}),
    case("the input from the total", {"completion_tokens": 5, "total_tokens": 15},
         {"input_token": 10, "output_token": 5}),
    case("the total alone is output", {"total_tokens": 15}, {"output_token": 15}),
    case("a total too small", {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 1},
         {"input_token": 9, "output_token": 9}),
    case("Mistral's audio is billed by the second, its tokens are not billed again",
         {"prompt_audio_seconds": 203, "prompt_tokens": 4, "completion_tokens": 635,
          "total_tokens": 3264},
         {"second": 203, "input_token": 4, "output_token": 635}),
    case("audio seconds alone", {"prompt_audio_seconds": 203}, {"second": 203}),
    case("parts greater than their totals",
         {"prompt_tokens": 10, "completion_tokens": 5,
          "prompt_tokens_details": {"cached_tokens": 99, "cache_write_tokens": 99},
          "completion_tokens_details": {"reasoning_tokens": 99}},
         {"cached_input_token": 10, "reasoning_token": 5}),
    case("all parts greater than their totals",
         {"prompt_tokens": 10, "completion_tokens": 5,
          "prompt_tokens_details": {"cached_tokens": 99, "audio_tokens": 99, "image_tokens": 99},
          "completion_tokens_details": {"reasoning_tokens": 9, "audio_tokens": 9,
                                        "image_tokens": 9}},
         {"cached_input_audio_token": 10, "output_audio_token": 5}),
    case("negative", {"prompt_tokens": -5, "completion_tokens": 5,
                      "prompt_tokens_details": {"cached_tokens": -3}}, {"output_token": 5}),
    case("huge", {"prompt_tokens": HUGE, "completion_tokens": 10**40, "total_tokens": 10**5},
         {"output_token": 10**5}),
    case("longer than a number may be", '{"prompt_tokens": 1%s, "completion_tokens": 2}' % ("0" * 5000),
         {"output_token": 2}),
    case("beyond every float", '{"prompt_tokens": 1e400, "completion_tokens": 2}',
         {"output_token": 2}),
    case("beyond every decimal", '{"prompt_tokens": 1e99999999999999999999, "completion_tokens": 2}',
         {"output_token": 2}),
    case("too fine", '{"prompt_tokens": 1e-999999, "completion_tokens": 2}', {"output_token": 2}),
    case("strings, booleans, lists",
         {"prompt_tokens": "9", "completion_tokens": True, "total_tokens": 7, "cached_tokens": []},
         {"output_token": 7}),
    case("whole floats", '{"prompt_tokens": 9.0, "completion_tokens": 1e1}',
         {"input_token": 9, "output_token": 10}),
    case("a fraction of a token is a token", '{"prompt_tokens": 8.5, "completion_tokens": 1}',
         {"input_token": 9, "output_token": 1}),
    case("odd details lose nothing else",
         {"prompt_tokens": 9, "completion_tokens": 5.0, "prompt_tokens_details": 7,
          "completion_tokens_details": {"reasoning_tokens": 2, "audio_tokens": "x"}},
         {"input_token": 9, "output_token": 3, "reasoning_token": 2}),
    case("nested where it ends",
         '{"prompt_tokens": 9.0, "prompt_tokens_details": {"cached_tokens_details": '
         '{"cached_tokens_details": {"cached_tokens_details": {}}}}}', {"input_token": 9}),
    case("nothing readable", {"prompt_tokens": None}, None),
    case("nothing readable, oddly", {"prompt_tokens": "x"}, None),
    case("null", None, None),
    case("a list", [1], None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), CHAT)
def test_chat(text: str, expected: Usage | None) -> None:
    assert metering.meter_chat(with_usage(text)) == expected


def test_chat_usage_of_nothing_readable_is_empty() -> None:
    assert chat_usage(ChatUsageWire()) == {}
    assert chat_usage(ChatUsageWire(prompt_tokens=2)) == {"input_token": 2}


EMBEDDINGS = [
    case("plain", {"prompt_tokens": 5, "total_tokens": 5}, {"input_token": 5}),
    case("the total is input too", {"prompt_tokens": 5, "total_tokens": 7}, {"input_token": 7}),
    case("the total alone", {"total_tokens": 7}, {"input_token": 7}),
    case("the prompt alone", {"prompt_tokens": 7}, {"input_token": 7}),
    case("no output whatever it says", {"prompt_tokens": 5, "completion_tokens": 9},
         {"input_token": 5}),
    case("images", {"prompt_tokens": 9, "prompt_tokens_details": {"image_tokens": 4}},
         {"input_token": 5, "input_image_token": 4}),
    case("zero", {"prompt_tokens": 0, "total_tokens": 0}, {}),
    case("odd", {"prompt_tokens": "5", "total_tokens": 6}, {"input_token": 6}),
    case("empty", {}, None),
    case("null", None, None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), EMBEDDINGS)
def test_embeddings(text: str, expected: Usage | None) -> None:
    assert metering.meter_embeddings(with_usage(text)) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param('{"usage_info":{"pages_processed":3},"pages":[{}]}', {"page": 3}, id="usage"),
        pytest.param('{"usage_info":{"pages_processed":0},"pages":[{}]}', {}, id="zero"),
        pytest.param(
            '{"usage_info":{"pages_processed":"3"},"pages":[{},{}]}', {"page": 2}, id="odd"
        ),
        pytest.param('{"usage_info":{"pages_processed":3.0}}', {"page": 3}, id="whole float"),
        pytest.param('{"usage_info":null,"pages":[{},{}]}', {"page": 2}, id="count the pages"),
        pytest.param('{"pages":[{"markdown":"\\ud83d"}]}', {"page": 1}, id="half a surrogate pair"),
        pytest.param('{"pages":[]}', {}, id="no pages"),
        pytest.param('{"usage_info":{}}', None, id="neither"),
        pytest.param('{"pages":5}', None, id="pages are no list"),
    ],
)
def test_ocr(body: str, expected: Usage | None) -> None:
    assert metering.meter_ocr(body.encode()) == expected


TRANSCRIPTION = [
    case("tokens", {"type": "tokens", "input_tokens": 14,
                    "input_token_details": {"text_tokens": 4, "audio_tokens": 10},
                    "output_tokens": 45, "total_tokens": 59},
         {"input_audio_token": 10, "input_token": 4, "output_token": 45}),
    case("tokens without details", {"type": "tokens", "input_tokens": 14, "output_tokens": 45},
         {"input_token": 14, "output_token": 45}),
    case("tokens before seconds", {"type": "tokens", "input_tokens": 1, "seconds": 9},
         {"input_token": 1}),
    case("untyped tokens", {"input_tokens": 14, "output_tokens": 5},
         {"input_token": 14, "output_token": 5}),
    case("whole seconds", {"type": "duration", "seconds": 9}, {"second": 9}),
    case("exact seconds", '{"type":"duration","seconds":9.3199996948242190001}',
         {"second": Decimal("9.3199996948242190001")}),
    case("seconds in scientific notation", '{"type":"duration","seconds":1.5e1}', {"second": 15}),
    case("no time", {"type": "duration", "seconds": 0.0}, {}),
    case("Mistral", {"prompt_audio_seconds": 203, "prompt_tokens": 4, "total_tokens": 3264},
         {"second": 203}),
    case("seconds as text", {"type": "duration", "seconds": "9"}, None),
    case("negative seconds", {"type": "duration", "seconds": -9}, None),
    case("seconds beyond reason", '{"type":"duration","seconds":1e400}', None),
    case("seconds too long to write", '{"type":"duration","seconds":0.%s1}' % ("0" * 80), None),
    case("odd tokens", {"type": "tokens", "input_tokens": "x", "output_tokens": 3},
         {"output_token": 3}),
    case("odd tokens beside seconds", {"type": 7, "input_tokens": "x", "seconds": 3},
         {"second": 3}),
    case("empty", {}, None),
    case("null", None, None),
    case("a number", 5, None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), TRANSCRIPTION)
def test_transcription(text: str, expected: Usage | None) -> None:
    metered = metering.meter_transcription(with_usage(text))
    assert metered == expected
    if metered:
        assert type(metered.get("second")) is type((expected or {}).get("second"))


RESPONSES = [
    case("plain", {"input_tokens": 100, "input_tokens_details": {"cached_tokens": 40},
                   "output_tokens": 50, "output_tokens_details": {"reasoning_tokens": 20},
                   "total_tokens": 150},
         {"input_token": 60, "cached_input_token": 40, "output_token": 30,
          "reasoning_token": 20}),
    case("realtime's spelling",
         {"input_tokens": 10, "input_token_details": {"audio_tokens": 4},
          "output_tokens": 5, "output_token_details": {"audio_tokens": 5}},
         {"input_token": 6, "input_audio_token": 4, "output_audio_token": 5}),
    case("zero output", {"input_tokens": 10, "output_tokens": 0}, {"input_token": 10}),
    case("odd", {"input_tokens": 10, "output_tokens": "5"}, {"input_token": 10}),
    case("empty", {}, None),
    case("null", None, None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), RESPONSES)
def test_responses(text: str, expected: Usage | None) -> None:
    assert metering.meter_responses(with_usage(text)) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(
            {"usage": {"input_tokens": 60, "input_tokens_details": {"image_tokens": 10},
                       "output_tokens": 1000}},
            {"input_token": 50, "input_image_token": 10, "output_image_token": 1000},
            id="all output is images"),
        pytest.param(
            {"usage": {"output_tokens": 10, "output_tokens_details": {"image_tokens": 6}}},
            {"output_image_token": 6, "output_token": 4},
            id="text told apart"),
        pytest.param({"data": [{}, {}]}, {"image": 2}, id="count the images"),
        pytest.param({"usage": {}, "data": [{}]}, {"image": 1}, id="empty usage"),
        pytest.param({"data": []}, {}, id="no images"),
        pytest.param({"data": 5}, None, id="data is no list"),
        pytest.param({}, None, id="neither"),
    ],
)  # fmt: skip
def test_images(body: object, expected: Usage | None) -> None:
    assert metering.meter_images(json.dumps(body).encode()) == expected


MESSAGES = [
    case("plain", {"input_tokens": 10, "output_tokens": 5}, {"input_token": 10, "output_token": 5}),
    case("the input leaves out what the cache served and took",
         {"input_tokens": 10, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 30,
          "output_tokens": 50, "output_tokens_details": {"thinking_tokens": 20}},
         {"input_token": 10, "cached_input_token": 100, "cache_write_token": 30,
          "output_token": 30, "reasoning_token": 20}),
    case("cache writes by time to live",
         {"input_tokens": 1, "cache_creation": {"ephemeral_5m_input_tokens": 2,
                                                "ephemeral_1h_input_tokens": 3}},
         {"input_token": 1, "cache_write_token": 5}),
    case("searches", {"output_tokens": 5, "server_tool_use": {"web_search_requests": 2}},
         {"output_token": 5, "query": 2}),
    case("no searches", {"output_tokens": 5, "server_tool_use": {"web_search_requests": 0}},
         {"output_token": 5}),
    case("odd", {"input_tokens": 10, "output_tokens": "5", "server_tool_use": 3},
         {"input_token": 10}),
    case("zero", {"input_tokens": 0}, {}),
    case("empty", {}, None),
    case("null", None, None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), MESSAGES)
def test_messages(text: str, expected: Usage | None) -> None:
    assert metering.meter_messages(with_usage(text)) == expected


def test_reports_of_one_stream_merge_field_by_field_into_the_greater() -> None:
    start = MessagesUsageWire(input_tokens=25, cache_read_input_tokens=7, output_tokens=8)
    delta = MessagesUsageWire(input_tokens=0, output_tokens=5, cache_creation_input_tokens=3)
    assert metering.merge_messages_usage(None, start) is start
    merged = metering.merge_messages_usage(start, delta)
    assert metering.read_messages_usage(merged) == {
        "input_token": 25,
        "cached_input_token": 7,
        "cache_write_token": 3,
        "output_token": 8,
    }


@pytest.mark.parametrize(
    ("text", "size"),
    [("", 0), ("abc", 3), ("é", 2), ("\u4e2d", 3), ("\U0001f600", 4), ("\ud83d", 3)],
)
def test_text_is_measured_in_bytes_of_utf8(text: str, size: int) -> None:
    assert metering.utf8_len(text) == size


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"plain text",
        b"[]",
        b"null",
        b"{}",
        b'{"usage":',
        b"\xff\xfe",
        b'{"\xff":1}',
        b'{"a":' + b"[" * 100_000,
        b'{"usage":{"input_tokens":' + b'{"input_tokens_details":' * 100_000,
    ],
    ids=[
        "empty",
        "text",
        "list",
        "null",
        "object",
        "cut",
        "bytes",
        "bad name",
        "deep",
        "deep usage",
    ],
)
def test_an_answer_without_usage_meters_to_nothing(
    reader: Callable[[bytes], Usage | None], body: bytes
) -> None:
    assert reader(body) is None


def wild() -> st.SearchStrategy[Any]:
    """What a field of a usage object might be."""
    return st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-5, 200),
        st.sampled_from([HUGE, 10**30, -(10**30), 10**5000]),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=3),
        st.lists(st.integers(), max_size=2),
    )


def objects(names: list[str], values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.dictionaries(st.sampled_from(names), values, max_size=6)


PARTS = [
    "cached_tokens", "cache_write_tokens", "cache_creation_tokens", "audio_tokens",
    "image_tokens", "reasoning_tokens", "thinking_tokens", "text_tokens",
]  # fmt: skip
DETAILS = objects(PARTS, wild()) | objects(["cached_tokens_details"], objects(PARTS, wild()))
USAGES = st.builds(
    lambda a, b: {**a, **b},
    objects(
        [
            "prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens",
            "cached_tokens", "prompt_cache_hit_tokens", "cache_read_input_tokens",
            "cache_creation_input_tokens", "seconds", "type", "pages_processed",
        ],
        wild(),
    ),
    objects(
        [
            "prompt_tokens_details", "completion_tokens_details", "input_tokens_details",
            "input_token_details", "output_tokens_details", "server_tool_use", "cache_creation",
        ],
        DETAILS | wild(),
    ),
)  # fmt: skip


def dumps(value: object) -> bytes:
    """JSON of any value, with integers longer than Python would print."""
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(value).encode()
    finally:
        sys.set_int_max_str_digits(limit)


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@given(usage=USAGES)
def test_any_usage_meters_to_positive_quantities_of_known_units(
    reader: Callable[[bytes], Usage | None], usage: object
) -> None:
    metered = reader(dumps({"usage": usage, "usage_info": usage}))
    for unit, quantity in (metered or {}).items():
        assert unit in UNITS
        assert 0 < quantity <= 2 * QUANTITY_MAX


COUNTS = st.integers(0, 500)
CHAT_DETAILS = st.fixed_dictionaries({}, optional=dict.fromkeys(PARTS, COUNTS))


@given(
    prompt=COUNTS, completion=COUNTS, total=st.none() | COUNTS, inputs=CHAT_DETAILS,
    outputs=CHAT_DETAILS,
)  # fmt: skip
def test_chat_tokens_add_up_to_the_total_whatever_the_details(
    prompt: int, completion: int, total: int | None, inputs: object, outputs: object
) -> None:
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": total,
        "prompt_tokens_details": inputs,
        "completion_tokens_details": outputs,
    }
    metered = metering.meter_chat(dumps({"usage": usage}))
    assert metered is not None
    assert tokens_of(metered) == max(prompt + completion, total or 0)
    output = {u: n for u, n in metered.items() if u in {"output_token", "reasoning_token"}}
    assert all(n > 0 for n in output.values())


@given(st.binary(max_size=200))
def test_no_bytes_raise(body: bytes) -> None:
    for reader in READERS.values():
        reader(body)
