"""The most a call can use: a table of requests per endpoint, then properties.

To add a scenario, add a `row(name, request, expected)` to the endpoint's table; requests are
JSON text or what becomes it.
"""

import base64
import json
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from app.core import ceilings
from app.core.ceilings import (
    BadRequest,
    Ceiling,
    ModelFacts,
    OpenQuantity,
    chat_ceiling,
    embeddings_ceiling,
    estimate_chat,
    ocr_ceiling,
    output_tokens,
    sliced,
    speech_ceiling,
    transcription_ceiling,
)
from app.core.metering import UNITS, Usage, tokens_of

FACTS = ModelFacts()
SMALL = ModelFacts(context_window=50, max_output_tokens=20)

_decode = msgspec.json.Decoder(dict[str, Raw]).decode


def read(request: object) -> dict[str, Raw]:
    text = request if isinstance(request, str) else json.dumps(request, ensure_ascii=False)
    return _decode(text)


def row(name: str, *values: object) -> Any:
    return pytest.param(*values, id=name)


def says(*messages: object, **more: object) -> dict[str, object]:
    """A chat request with a maximum of 10, so that only the input is at issue."""
    return {"messages": list(messages), "max_tokens": 10, **more}


def parts(*content: object) -> dict[str, object]:
    return says({"role": "user", "content": list(content)})


USER = {"role": "user", "content": "hello"}
# 5 bytes are 3 tokens, the message 4, the answer 3.
USER_TOKENS = 10
FRAME = 7

INPUTS = [
    row("text", says(USER), 10),
    row("two messages", says({"role": "system", "content": "abc"}, USER), 4 + 8 + 3),
    row("non-ASCII text is counted in UTF-8", says({"role": "user", "content": "中文中"}), 5 + FRAME),
    row("names", says({"role": "user", "content": "hello", "name": "bob"}), 4 + FRAME),
    row("no content", says({"role": "assistant", "content": None}), FRAME),
    row("no messages", says(), 3),
    row("tool calls", says({"role": "assistant", "content": None, "tool_calls": [
        {"id": "c1", "function": {"name": "f", "arguments": "12345678"}}]}), 34 // 2 + FRAME),
    row("refusals and whatever else is text", says({"role": "assistant", "refusal": "abcd"}),
        2 + FRAME),
    row("tools by their raw bytes", says(USER, tools=[1, 2]), -(-(5 + 6) // 2) + FRAME),
    row("functions, response format, prediction",
        says(USER, functions=[], response_format={}, prediction={"a": 1}),
        -(-(5 + 2 + 2 + 8) // 2) + FRAME),
    row("null tools", says(USER, tools=None), 10),
    row("text parts", parts({"type": "text", "text": "hello"}, "abc"), 8 // 2 + FRAME),
    row("numbers are not text", '{"max_tokens":10,"messages":[{"x":[1e400,1%s]}]}' % ("0" * 100), FRAME),
    row("a file by its bytes",
        parts({"type": "file", "file": {"filename": "a", "file_data": "A" * 16_000}}),
        6000 + FRAME),
    row("a small file as an image", parts({"type": "file", "file": {"file_data": "AAAA"}}),
        3000 + FRAME),
    row("a document by its bytes",
        parts({"type": "document_url", "document_url": "data:,"  + "A" * 15_994}), 6000 + FRAME),
    row("a file elsewhere", parts({"type": "file", "file": {"file_id": "f"}}), 128_000 + FRAME),
    row("a file elsewhere, Mistral's way", parts({"type": "file", "file_id": "f"}), 128_000 + FRAME),
    row("a document elsewhere", parts({"type": "document_url", "document_url": "https://x/y"}),
        128_000 + FRAME),
    row("a video elsewhere", parts({"type": "video_url", "video_url": {"url": "http://x"}}),
        128_000 + FRAME),
    row("parts nobody knows count as text", parts({"type": 7, "a": {"bc": ["def", 1, None]}}),
        3 + FRAME),
]  # fmt: skip


@pytest.mark.parametrize(("request_", "tokens"), INPUTS)
def test_chat_input(request_: object, tokens: int) -> None:
    ceiling = chat_ceiling(read(request_), FACTS)
    assert ceiling == Ceiling(({"input_token": tokens, "output_token": 10},))


def audio(size: int, **more: object) -> dict[str, object]:
    data = base64.b64encode(bytes(size)).decode()
    return {"type": "input_audio", "input_audio": {"data": data, **more}}


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 9999}}
LOW = {"type": "image_url", "image_url": {"url": "https://x", "detail": "low"}}
MEDIA = [
    row("an image, as text or as an image", parts(IMAGE),
        [{"input_token": 3000 + FRAME}, {"input_image_token": 3000, "input_token": FRAME}]),
    row("an image in low detail", parts(LOW),
        [{"input_token": 100 + FRAME}, {"input_image_token": 100, "input_token": FRAME}]),
    row("low detail, Mistral's way",
        parts({"type": "image_url", "image_url": "https://x", "detail": "low"}),
        [{"input_token": 100 + FRAME}, {"input_image_token": 100, "input_token": FRAME}]),
    row("WAV at 8000 bytes a second, in tokens or seconds", parts(audio(24_000, format="wav")),
        [{"input_audio_token": 30, "input_token": FRAME}, {"second": 3, "input_token": FRAME}]),
    row("MP3 at 1000 bytes a second", parts(audio(24_000, format="mp3")),
        [{"input_audio_token": 240, "input_token": FRAME}, {"second": 24, "input_token": FRAME}]),
    row("audio of unknown format", parts({"type": "input_audio", "input_audio": "A" * 4000}),
        [{"input_audio_token": 30, "input_token": FRAME}, {"second": 3, "input_token": FRAME}]),
    row("audio elsewhere", parts({"type": "audio_url", "audio_url": {"url": "https://x"}}),
        [{"input_audio_token": 15_000, "input_token": FRAME},
         {"second": 1500, "input_token": FRAME}]),
    row("audio without data", parts({"type": "input_audio", "input_audio": {"data": 5}}),
        [{"input_audio_token": 15_000, "input_token": FRAME},
         {"second": 1500, "input_token": FRAME}]),
    row("all at once", parts(LOW, audio(7998, format="wav"), {"type": "text", "text": "ab"}),
        [{"input_audio_token": 10, "input_token": 108},
         {"input_audio_token": 10, "input_image_token": 100, "input_token": 8},
         {"second": 1, "input_token": 108}]),
]  # fmt: skip


@pytest.mark.parametrize(("request_", "bundles"), MEDIA)
def test_chat_media(request_: object, bundles: list[Usage]) -> None:
    ceiling = chat_ceiling(read(request_), FACTS)
    assert ceiling == Ceiling(tuple({**bundle, "output_token": 10} for bundle in bundles))


@pytest.mark.parametrize(
    ("request_", "bundles"),
    [
        row("text", says({"content": "x" * 1000}), [{"input_token": 50}]),
        row("an image and text", parts(IMAGE),
            [{"input_token": 50}, {"input_image_token": 50}]),
        row("audio before text", parts(audio(24_000, format="wav"), "x" * 1000),
            [{"input_audio_token": 30, "input_token": 20}, {"second": 3, "input_token": 50}]),
        row("a file elsewhere is the whole window", parts({"type": "file", "file_id": "f"}),
            [{"input_token": 50}]),
    ],
)  # fmt: skip
def test_no_input_is_above_the_window(request_: object, bundles: list[Usage]) -> None:
    ceiling = chat_ceiling(read(request_), SMALL)
    assert ceiling.bundles == tuple({**bundle, "output_token": 10} for bundle in bundles)


def test_bytes_per_token_is_the_models() -> None:
    ceiling = chat_ceiling(read(says(USER)), ModelFacts(bytes_per_token=1))
    assert ceiling.bundles[0]["input_token"] == 12


def open_tokens(most: int, times: int = 1) -> OpenQuantity:
    return OpenQuantity("output_token", most, 1024, times)


OUTPUTS = [
    row("max_tokens", {"max_tokens": 5}, FACTS, 5, None),
    row("max_completion_tokens", {"max_completion_tokens": 5}, FACTS, 5, None),
    row("the greater of both", {"max_completion_tokens": 5, "max_tokens": 7}, FACTS, 7, None),
    row("null is absent", {"max_completion_tokens": None, "max_tokens": 7}, FACTS, 7, None),
    row("times n", {"max_tokens": 5, "n": 3}, FACTS, 15, None),
    row("n of null", {"max_tokens": 5, "n": None}, FACTS, 5, None),
    row("no more than the model has", {"max_tokens": 500, "n": 2}, SMALL, 40, None),
    row("no more than the window", {"max_tokens": 500}, ModelFacts(context_window=80), 80, None),
    row("the greatest", {"max_tokens": 2**31 - 1, "n": 128}, FACTS, 128 * (2**31 - 1), None),
    row("open, the model's maximum", {}, SMALL, None, open_tokens(20)),
    row("open, the window", {}, ModelFacts(context_window=80), None, open_tokens(80)),
    row("open, nothing known", {"max_tokens": None}, FACTS, None, open_tokens(16384)),
    row("open, n times", {"n": 4}, SMALL, None, open_tokens(20, 4)),
    row("text asked for", {"max_tokens": 5, "modalities": ["text"]}, FACTS, 5, None),
    row("no modalities", {"max_tokens": 5, "modalities": None}, FACTS, 5, None),
]


@pytest.mark.parametrize(("fields", "facts", "output", "open_"), OUTPUTS)
def test_chat_output(
    fields: dict[str, object], facts: ModelFacts, output: int | None, open_: OpenQuantity | None
) -> None:
    usage: Usage = {"input_token": USER_TOKENS}
    if output is not None:
        usage["output_token"] = output
    assert chat_ceiling(read({"messages": [USER], **fields}), facts) == Ceiling((usage,), open_)


def test_output_that_may_be_spoken_is_text_or_audio() -> None:
    spoken = {"messages": [USER], "modalities": ["text", "audio"]}
    assert chat_ceiling(read({**spoken, "max_tokens": 5}), FACTS) == Ceiling(
        (
            {"input_token": USER_TOKENS, "output_token": 5},
            {"input_token": USER_TOKENS, "output_audio_token": 5},
        )
    )
    assert chat_ceiling(read(spoken), SMALL) == Ceiling(
        ({"input_token": USER_TOKENS},), OpenQuantity("output_audio_token", 20, 1024)
    )


NOT_COUNTS = [
    "true", "-1", "0", "1.5", "5.0", "1e400", '"5"', "[]", "{}", str(2**31), "1" + "0" * 30,
    "1" * 5000,
]  # fmt: skip

BAD_CHATS = [
    *(
        row(f"{name} {value[:6]}", f'{{"messages":[],"{name}":{value}}}', name)
        for name in ("max_tokens", "max_completion_tokens", "n")
        for value in NOT_COUNTS
    ),
    row("n too great", '{"messages":[],"n":129}', "n"),
    row("modalities", '{"messages":[],"modalities":"audio"}', "modalities"),
    row("no messages", "{}", "messages"),
    row("null messages", '{"messages":null}', "messages"),
    row("messages is text", '{"messages":"hello"}', "messages"),
    row("messages is an object", '{"messages":{}}', "messages"),
    row("a message is text", '{"messages":["hello"]}', "messages"),
    row("content is a number", '{"messages":[{},{"content":5}]}', "messages[1].content"),
    row("content is an object", '{"messages":[{"content":{}}]}', "messages[0].content"),
    row("content is true", '{"messages":[{"content":true}]}', "messages[0].content"),
    row("a part is a number", '{"messages":[{"content":[5]}]}', "messages[0].content"),
    row("a bad escape", r'{"messages":[{"content":"\q"}]}', "messages"),
]


def refused(reader: Callable[[dict[str, Raw]], Ceiling], request: dict[str, Raw]) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        reader(request)
    assert caught.value.message == str(caught.value)
    assert caught.value.param.split("[")[0] in caught.value.message
    return caught.value


@pytest.mark.parametrize(("request_", "param"), BAD_CHATS)
def test_chat_refuses_what_it_cannot_bound(request_: str, param: str) -> None:
    try:
        members = read(request_)
    except msgspec.DecodeError:
        members = {"messages": Raw(rb'[{"content":"\q"}]')}
    assert refused(partial(chat_ceiling, facts=FACTS), members).param == param


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'[{"content":"\xff"}]', "messages must be readable JSON in UTF-8"),
        (b'[{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}]", "messages is nested too deeply"),
    ],
    ids=["bytes that are no text", "nested too deeply"],
)
def test_chat_refuses_messages_that_cannot_be_read(raw: bytes, message: str) -> None:
    error = refused(partial(chat_ceiling, facts=FACTS), {"messages": Raw(raw)})
    assert error.message == message


@pytest.mark.parametrize(
    ("output_bytes", "expected"),
    [(0, {"input_token": 7, "second": 3}), (5, {"input_token": 7, "second": 3, "output_token": 3})],
)
def test_an_estimate_is_the_ceilings_input_and_the_text_that_was_seen(
    output_bytes: int, expected: Usage
) -> None:
    bundle: Usage = {"input_token": 7, "second": 3, "output_token": 99, "output_audio_token": 9}
    assert estimate_chat(bundle, output_bytes, FACTS) == expected


# Embeddings.


@pytest.mark.parametrize(
    ("input_", "facts", "tokens"),
    [
        row("text", "hello", FACTS, 5),
        row("texts, each rounded up", ["hello", "中", ""], FACTS, 5 + 4 + 2),
        row("tokens count exactly", [5, 6, 7], FACTS, 3),
        row("lists of tokens", [[5, 6], [7], []], FACTS, 3),
        row("each input within the window", ["x" * 200, [1] * 60, "ab"], SMALL, 50 + 50 + 3),
        row("tokens within the window", [1] * 60, SMALL, 50),
    ],
)
def test_embeddings(input_: object, facts: ModelFacts, tokens: int) -> None:
    assert embeddings_ceiling(read({"input": input_}), facts) == Ceiling(({"input_token": tokens},))


def test_embeddings_of_nothing_use_nothing() -> None:
    assert embeddings_ceiling(read({"input": []}), FACTS) == Ceiling(({},))


@pytest.mark.parametrize(
    "input_", ["5", "true", "null", "{}", "[1.5]", "[true]", '[1,"a"]', "[{}]"]
)
def test_embeddings_refuse_what_is_not_text(input_: str) -> None:
    request = read(f'{{"input":{input_}}}')
    assert refused(partial(embeddings_ceiling, facts=FACTS), request).param == "input"
    assert refused(partial(embeddings_ceiling, facts=FACTS), {}).param == "input"


# OCR.

URL = {"type": "document_url", "document_url": "https://x/y.pdf"}
IMAGE_URL = {"type": "image_url", "image_url": "https://x/y.png"}
OPEN_PAGES = OpenQuantity("page", 1000, 1000)


@pytest.mark.parametrize(
    ("request_", "known", "pages"),
    [
        row("those asked for", {"document": URL, "pages": [0, 1, 5]}, None, 3),
        row("each once", {"document": URL, "pages": [0, 1, 1]}, None, 2),
        row("one page by number", {"document": URL, "pages": 7}, None, 1),
        row("ranges", {"document": URL, "pages": "0-3,7"}, None, 5),
        row("ranges that overlap", {"document": URL, "pages": " 4 - 6, 0-4,5,2-3 "}, None, 7),
        row("ranges too long to list", {"document": URL, "pages": "0-999999999"}, None, 1000),
        row("no more than the document has", {"document": URL, "pages": "0-9"}, 4, 4),
        row("fewer than the document has", {"document": URL, "pages": [3]}, 4, 1),
        row("all of a document that was counted", {"document": URL}, 40, 40),
        row("no list is all", {"document": URL, "pages": []}, 40, 40),
        row("no text is all", {"document": URL, "pages": " "}, 40, 40),
        row("null is all", {"document": URL, "pages": None}, 40, 40),
        row("a long document", {"document": URL}, 4000, 4000),
        row("an image", {"document": IMAGE_URL}, None, 1),
        row("an image without a type", {"document": {"image_url": "x"}}, 9, 1),
        row("unknown", {"document": URL}, None, None),
        row("a document that could not be read", {"document": {"type": "file"}}, 0, None),
        row("a document without a type", {"document": {}}, None, None),
    ],
)
def test_ocr(request_: object, known: int | None, pages: int | None) -> None:
    expected = Ceiling(({},), OPEN_PAGES) if pages is None else Ceiling(({"page": pages},))
    assert ocr_ceiling(read(request_), FACTS, known) == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        row("no document", '"pages":[1]', "document"),
        row("null document", '"document":null', "document"),
        row("document is text", '"document":"https://x"', "document"),
        row("document's type is a number", '"document":{"type":5}', "document"),
        *(
            row(f"pages {pages}", f'"document":{{}},"pages":{pages}', "pages")
            for pages in (
                "true", "-1", "[-1]", "1.5", '["1"]', "{}", "[true]", f"[{2**31}]", '"a"', '"1-"',
                '"-1"', '"3-1"', '"1,,2"', '"1-2-3"', '"1234567890"', '"٣"',
            )
        ),
    ],
)  # fmt: skip
def test_ocr_refuses_what_it_cannot_bound(fields: str, param: str) -> None:
    reader = partial(ocr_ceiling, facts=FACTS, document_pages=None)
    assert refused(reader, read(f"{{{fields}}}")).param == param


# Speech and transcription.


def test_speech_is_characters_exactly_or_tokens() -> None:
    assert speech_ceiling(read({"input": "a中😀"}), FACTS) == Ceiling(
        ({"character": 3}, {"input_token": 4 + 7, "output_audio_token": 8 * 4 + 200})
    )


def test_speech_instructions_are_input() -> None:
    request = read({"input": "ab", "instructions": "slowly"})
    assert speech_ceiling(request, FACTS).bundles[1]["input_token"] == 5 + 7


def test_speech_is_within_what_the_model_has() -> None:
    ceiling = speech_ceiling(read({"input": "x" * 500, "instructions": None}), SMALL)
    assert ceiling.bundles == (
        {"character": 500},
        {"input_token": 50, "output_audio_token": 20},
    )


def test_speech_of_nothing_has_no_characters() -> None:
    assert speech_ceiling(read({"input": ""}), FACTS).bundles[0] == {}


@pytest.mark.parametrize("input_", ["5", "null", '["a"]', "{}", "true"])
def test_speech_refuses_what_is_not_text(input_: str) -> None:
    reader = partial(speech_ceiling, facts=FACTS)
    assert refused(reader, read(f'{{"input":{input_}}}')).param == "input"
    assert refused(reader, {}).param == "input"


def spoken(second: int | Decimal, audio_tokens: int, input_: int, output: int) -> Ceiling:
    return Ceiling(
        (
            {"second": second},
            {"input_audio_token": audio_tokens, "input_token": input_, "output_token": output},
        )
    )


@pytest.mark.parametrize(
    ("facts", "seconds", "prompt_bytes", "expected"),
    [
        row("exact seconds", FACTS, Decimal("9.25"), 0, spoken(Decimal("9.25"), 93, 4, 332)),
        row("whole seconds", FACTS, Decimal("10.0"), 5, spoken(10, 100, 7, 350)),
        row("the model's maximum", SMALL, Decimal(10), 0, spoken(10, 100, 4, 20)),
        row("another rate", ModelFacts(audio_tokens_per_second=13), Decimal(10), 0,
            spoken(10, 130, 4, 350)),
        row("unknown", FACTS, None, 0, spoken(1500, 15_000, 4, 37_600)),
        row("no duration", FACTS, Decimal(0), -1, spoken(1500, 15_000, 4, 37_600)),
        row("no number", FACTS, Decimal("NaN"), 0, spoken(1500, 15_000, 4, 37_600)),
        row("below zero", FACTS, Decimal(-3), 0, spoken(1500, 15_000, 4, 37_600)),
    ],
)  # fmt: skip
def test_transcription(
    facts: ModelFacts, seconds: Decimal | None, prompt_bytes: int, expected: Ceiling
) -> None:
    ceiling = transcription_ceiling(facts, seconds, prompt_bytes)
    assert ceiling == expected
    first = ceiling.bundles[0]["second"]
    assert type(first) is type(expected.bundles[0]["second"])


# Properties.

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 10**31)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.sampled_from(["text", "image_url", "input_audio", "file", "document_url", "low", "wav"]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(["role", "content", "type", "text", "image_url", "input_audio", "data",
                         "detail", "file", "format", "x"]),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip
FIELDS = [
    "messages", "input", "document", "pages", "max_tokens", "max_completion_tokens", "n", "tools",
    "modalities", "instructions",
]  # fmt: skip
READERS = [
    partial(chat_ceiling, facts=SMALL),
    partial(embeddings_ceiling, facts=SMALL),
    partial(ocr_ceiling, facts=SMALL, document_pages=None),
    partial(speech_ceiling, facts=SMALL),
]


@pytest.mark.parametrize("reader", READERS, ids=["chat", "embeddings", "ocr", "speech"])
@given(request_=st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_any_request_has_a_ceiling_or_a_reason(
    reader: Callable[[dict[str, Raw]], Ceiling], request_: dict[str, Any]
) -> None:
    param = ""
    ceiling: Ceiling | None
    try:
        ceiling = reader(read(json.dumps(request_)))
    except BadRequest as error:
        ceiling = None
        param = error.param.split(".")[0].split("[")[0]
    if ceiling is None:
        assert param in FIELDS
        return
    assert ceiling.bundles
    for bundle in ceiling.bundles:
        assert bundle.keys() <= UNITS
        assert all(quantity > 0 for quantity in bundle.values())


@given(st.lists(JSON.map(lambda content: {"role": "user", "content": content}), max_size=3))
def test_no_chat_is_above_the_window(messages: list[object]) -> None:
    try:
        ceiling = chat_ceiling(read(json.dumps({"messages": messages})), SMALL)
    except BadRequest:
        return
    assert all(0 < tokens_of(bundle) <= 50 for bundle in ceiling.bundles)


TEXTS = st.text(max_size=50)


@given(st.lists(TEXTS, max_size=4), st.booleans())
def test_a_token_of_one_byte_each_fits_the_ceiling(texts: list[str], as_parts: bool) -> None:
    """With one byte per token the ceiling is a proof, whichever way the text is written."""
    content: list[Any] = [[{"type": "text", "text": t}] if as_parts else t for t in texts]
    request = {"messages": [{"role": "user", "content": c} for c in content]}
    ceiling = chat_ceiling(read(json.dumps(request)), ModelFacts(bytes_per_token=1))
    most = sum(len(text.encode()) + 4 for text in texts)
    assert most <= tokens_of(ceiling.bundles[0])


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), min_size=1, max_size=6))
def test_ranges_count_each_page_once(ranges: list[tuple[int, int]]) -> None:
    text = ",".join(f"{first}-{first + more}" for first, more in ranges)
    pages = {page for first, more in ranges for page in range(first, first + more + 1)}
    ceiling = ocr_ceiling(read({"document": URL, "pages": text}), FACTS, None)
    assert ceiling.bundles == ({"page": len(pages)},)


def test_defaults_are_those_documented() -> None:
    assert (FACTS.bytes_per_token, FACTS.image_tokens_max) == (2, 3000)
    assert ceilings.OPEN_TOKENS_ALL_BELOW == 1024


# Streams whose output is left open.


SLICES = [
    row("a slice of it", OpenQuantity("output_token", 9000, 1024, 2), 2048),
    row("no more than the model has", OpenQuantity("output_token", 500, 1024), 500),
    row("speech cannot be watched", OpenQuantity("output_audio_token", 9000, 1024), 9000),
    row("nor pages", OpenQuantity("page", 9000, 10), 9000),
]


@pytest.mark.parametrize(("opened", "most"), SLICES)
def test_an_open_stream_is_held_slice_by_slice(opened: OpenQuantity, most: int) -> None:
    ceiling = Ceiling(({"input_token": 7},), opened)
    expected = OpenQuantity(opened.unit, most, opened.all_below, opened.times)
    assert sliced(ceiling) == Ceiling(({"input_token": 7},), expected)


def test_a_stream_with_a_maximum_is_held_for_whole() -> None:
    ceiling = Ceiling(({"output_token": 9000},))
    assert sliced(ceiling) is ceiling


@pytest.mark.parametrize(
    ("size", "deltas", "tokens"), [(0, 0, 0), (10, 3, 5), (11, 3, 6), (10, 8, 8)]
)
def test_a_text_is_as_many_tokens_as_its_bytes_allow_or_as_it_came_in_pieces(
    size: int, deltas: int, tokens: int
) -> None:
    assert output_tokens(size, deltas, FACTS) == tokens
