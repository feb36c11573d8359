"""The unmodified SDKs straight against the simulator: it must pass for the real thing.

What is asserted about usage are the token rules of `app/simulator/answers.py`.
"""

import base64
import io
import math
import wave
from collections.abc import AsyncIterator, Iterator

import anthropic
import openai
import pypdf
import pytest
from mistralai.client import Mistral
from mistralai.client.errors import HTTPValidationError

from app.simulator import RunningSimulator, serve_in_thread

QUESTION = [{"role": "user", "content": "x" * 40}]  # 10 tokens


@pytest.fixture(scope="module")
def served() -> Iterator[RunningSimulator]:
    with serve_in_thread() as running:
        yield running


@pytest.fixture
def sim(served: RunningSimulator) -> RunningSimulator:
    served.reset()
    return served


@pytest.fixture
async def client(sim: RunningSimulator) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=sim.openai_url, api_key="sim-key") as client:
        yield client


@pytest.fixture
async def mistral(sim: RunningSimulator) -> AsyncIterator[Mistral]:
    async with Mistral(server_url=sim.base_url, api_key="sim-key") as client:
        yield client


@pytest.fixture
async def claude(sim: RunningSimulator) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=sim.base_url, api_key="sim-key") as client:
        yield client


def pdf(pages: int) -> str:
    writer = pypdf.PdfWriter()
    for _ in range(pages):
        writer.add_blank_page(width=100, height=100)
    file = io.BytesIO()
    writer.write(file)
    return "data:application/pdf;base64," + base64.b64encode(file.getvalue()).decode()


def silence(seconds: float) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(8000)
        writer.writeframes(bytes(2 * round(8000 * seconds)))
    return file.getvalue()


# --- openai -----------------------------------------------------------------------------


async def test_chat_answers_sixteen_tokens_unless_told_otherwise(
    client: openai.AsyncOpenAI,
) -> None:
    answer = await client.chat.completions.create(model="gpt-4o", messages=QUESTION)
    assert answer.choices[0].finish_reason == "stop"
    assert len(answer.choices[0].message.content.split()) == 16
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (10, 16)
    assert answer.usage.total_tokens == 26


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_chat_keeps_to_the_maximum_for_each_choice(
    client: openai.AsyncOpenAI, name: str
) -> None:
    answer = await client.chat.completions.create(
        model="gpt-4o", messages=QUESTION, n=3, extra_body={name: 5}
    )
    assert [choice.finish_reason for choice in answer.choices] == ["length"] * 3
    assert answer.usage.completion_tokens == 15


async def test_reasoning_comes_first_and_inside_the_maximum(
    client: openai.AsyncOpenAI, sim: RunningSimulator
) -> None:
    sim.set(reasoning=7)
    answer = await client.chat.completions.create(
        model="gpt-5", messages=QUESTION, max_completion_tokens=10
    )
    assert answer.usage.completion_tokens == 10
    assert answer.usage.completion_tokens_details.reasoning_tokens == 7
    assert len(answer.choices[0].message.content.split()) == 3


async def test_reasoning_models_refuse_the_old_maximum_as_they_do(
    client: openai.AsyncOpenAI,
) -> None:
    with pytest.raises(openai.BadRequestError, match="max_completion_tokens"):
        await client.chat.completions.create(model="o3", messages=QUESTION, max_tokens=10)
    with pytest.raises(openai.BadRequestError, match="at the same time"):
        await client.chat.completions.create(
            model="gpt-4o", messages=QUESTION, max_tokens=10, max_completion_tokens=10
        )


async def test_stream_reports_usage_only_when_asked(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model="gpt-4o", messages=QUESTION, stream=True)
    chunks = [chunk async for chunk in stream]
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    assert len(chunks) == 1 + 16 + 1

    stream = await client.chat.completions.create(
        model="gpt-4o", messages=QUESTION, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = [chunk async for chunk in stream]
    assert all("usage" in chunk.model_fields_set and chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage.total_tokens == 26


async def test_stream_says_what_the_whole_answer_says(client: openai.AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(model="gpt-4o", messages=QUESTION)
    stream = await client.chat.completions.create(model="gpt-4o", messages=QUESTION, stream=True)
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == whole.choices[0].message.content


async def test_images_audio_and_tools_count_as_prompt(client: openai.AsyncOpenAI) -> None:
    audio = base64.b64encode(silence(1.0)).decode()
    parts = [
        {"type": "text", "text": "x" * 40},
        {"type": "image_url", "image_url": {"url": "https://images.example/a.png"}},
        {"type": "input_audio", "input_audio": {"data": audio, "format": "wav"}},
    ]
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {}}}
    answer = await client.chat.completions.create(
        model="gpt-4o", messages=[{"role": "user", "content": parts}], tools=[tool]
    )
    assert answer.usage.prompt_tokens == (40 + len("look_up")) // 4 + 85 + 10
    assert answer.usage.prompt_tokens_details.audio_tokens == 10


async def test_tool_calls_whole_and_streamed(
    client: openai.AsyncOpenAI, sim: RunningSimulator
) -> None:
    sim.set(tool_call=True, text='{"query":"weather"}')
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {}}}
    answer = await client.chat.completions.create(model="gpt-4o", messages=QUESTION, tools=[tool])
    call = answer.choices[0].message.tool_calls[0]
    assert (call.function.name, call.function.arguments) == ("look_up", '{"query":"weather"}')
    async with client.chat.completions.stream(
        model="gpt-4o", messages=QUESTION, tools=[tool]
    ) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.tool_calls[0].function.arguments == '{"query":"weather"}'
    assert final.choices[0].finish_reason == "tool_calls"


async def test_embeddings_are_the_same_unit_vectors_in_either_encoding(
    client: openai.AsyncOpenAI,
) -> None:
    default = await client.embeddings.create(
        model="text-embedding-3-small", input=["x" * 30, "y" * 10], dimensions=64
    )
    floats = await client.embeddings.create(
        model="text-embedding-3-small",
        input=["x" * 30, "y" * 10],
        dimensions=64,
        encoding_format="float",
    )
    assert default.usage.prompt_tokens == default.usage.total_tokens == 10
    for encoded, plain in zip(default.data, floats.data, strict=True):
        assert len(plain.embedding) == 64
        assert list(encoded.embedding) == pytest.approx(plain.embedding)
        assert math.hypot(*plain.embedding) == pytest.approx(1, abs=1e-5)
    assert floats.data[0].embedding != floats.data[1].embedding


async def test_embeddings_count_token_ids(client: openai.AsyncOpenAI) -> None:
    answer = await client.embeddings.create(
        model="text-embedding-3-small", input=[[1, 2, 3], [4, 5]]
    )
    assert answer.usage.prompt_tokens == 5
    assert len(answer.data[0].embedding) == 1536


@pytest.mark.parametrize("layout", ["wav", "mp3", None])
async def test_speech_is_a_wav_that_plays_as_long_as_its_text(
    client: openai.AsyncOpenAI, layout: str | None
) -> None:
    text = "Hello there, world!"
    answer = await client.audio.speech.create(
        model="tts-1",
        voice="alloy",
        input=text,
        response_format=layout or openai.omit,
    )
    assert answer.response.headers["content-type"] == "audio/wav"
    with wave.open(io.BytesIO(answer.content)) as sound:
        assert (sound.getnchannels(), sound.getsampwidth(), sound.getframerate()) == (1, 2, 24000)
        assert sound.getnframes() / sound.getframerate() == pytest.approx(0.06 * len(text))
        assert any(sound.readframes(sound.getnframes()))


async def test_speech_streams_raw_samples(client: openai.AsyncOpenAI) -> None:
    async with client.audio.speech.with_streaming_response.create(
        model="tts-1", voice="alloy", input="x" * 100, response_format="pcm", speed=2.0
    ) as answer:
        assert answer.headers["content-type"] == "audio/pcm"
        pcm = b"".join([chunk async for chunk in answer.iter_bytes()])
    assert len(pcm) == 100 * 1440 * 2 / 2


async def test_transcription_reports_tokens_or_begun_seconds_by_model(
    client: openai.AsyncOpenAI,
) -> None:
    file = ("talk.wav", silence(2.25))
    tokens = await client.audio.transcriptions.create(model="gpt-4o-transcribe", file=file)
    assert tokens.usage.type == "tokens"
    assert (tokens.usage.input_tokens, tokens.usage.output_tokens) == (30, 9)
    assert tokens.usage.input_token_details.audio_tokens == 30
    seconds = await client.audio.transcriptions.create(model="whisper-1", file=file)
    assert (seconds.usage.type, seconds.usage.seconds) == ("duration", 3)
    verbose = await client.audio.transcriptions.create(
        model="whisper-1", file=file, response_format="verbose_json"
    )
    assert verbose.duration == 2.25
    assert verbose.usage.seconds == 3


@pytest.mark.parametrize(
    ("layout", "start"), [("text", "Every"), ("srt", "1\n00:00:00,000"), ("vtt", "WEBVTT")]
)
async def test_text_transcripts_carry_no_usage(
    client: openai.AsyncOpenAI, layout: str, start: str
) -> None:
    answer = await client.audio.transcriptions.create(
        model="whisper-1", file=("talk.wav", silence(2.25)), response_format=layout
    )
    assert answer.startswith(start)


async def test_transcription_streams(client: openai.AsyncOpenAI) -> None:
    stream = await client.audio.transcriptions.create(
        model="gpt-4o-transcribe", file=("talk.wav", silence(1.0)), stream=True
    )
    *deltas, done = [event async for event in stream]
    assert "".join(event.delta for event in deltas) == done.text
    assert done.usage.total_tokens == 13


async def test_transcription_understands_its_own_speech(client: openai.AsyncOpenAI) -> None:
    speech = await client.audio.speech.create(model="tts-1", voice="alloy", input="x" * 50)
    heard = await client.audio.transcriptions.create(
        model="whisper-1", file=("a.wav", speech.content)
    )
    assert heard.usage.seconds == 3
    with pytest.raises(openai.BadRequestError, match="corrupted"):
        await client.audio.transcriptions.create(model="whisper-1", file=("a.wav", b"noise"))


async def test_models_are_listed_and_retrieved(client: openai.AsyncOpenAI) -> None:
    names = [model.id async for model in client.models.list()]
    assert {"gpt-4o", "mistral-ocr-latest", "whisper-1"} <= set(names)
    assert (await client.models.retrieve("gpt-4o")).id == "gpt-4o"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("gpt-none")


async def test_responses_whole_and_streamed(
    client: openai.AsyncOpenAI, sim: RunningSimulator
) -> None:
    sim.set(cached=4, reasoning=3)
    whole = await client.responses.create(model="gpt-5", input="x" * 40)
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (10, 19)
    assert whole.usage.input_tokens_details.cached_tokens == 4
    assert whole.usage.output_tokens_details.reasoning_tokens == 3
    async with client.responses.stream(model="gpt-5", input="x" * 40) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_response()
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert final.output_text == whole.output_text
    assert final.usage == whole.usage


@pytest.mark.parametrize("end", ["incomplete", "failed"])
async def test_responses_that_end_badly_carry_usage_too(
    client: openai.AsyncOpenAI, sim: RunningSimulator, end: str
) -> None:
    sim.set(end=end)
    stream = await client.responses.create(model="gpt-5", input="x" * 40, stream=True)
    last = [event async for event in stream][-1]
    assert last.type == f"response.{end}"
    assert last.response.usage.total_tokens == 26


async def test_images_are_pngs_and_only_gpt_image_reports_usage(
    client: openai.AsyncOpenAI,
) -> None:
    answer = await client.images.generate(model="gpt-image-1", prompt="x" * 40, n=2)
    assert base64.b64decode(answer.data[0].b64_json).startswith(b"\x89PNG\r\n")
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (10, 2 * 272)
    older = await client.images.generate(
        model="dall-e-3", prompt="x" * 40, response_format="b64_json"
    )
    assert older.usage is None
    assert older.data[0].b64_json


async def test_moderations(client: openai.AsyncOpenAI) -> None:
    answer = await client.moderations.create(model="omni-moderation-latest", input=["a", "b"])
    assert [result.flagged for result in answer.results] == [False, False]


async def test_azure_client(sim: RunningSimulator) -> None:
    async with openai.AsyncAzureOpenAI(
        azure_endpoint=sim.base_url, api_key="sim-key", api_version="2025-01-01"
    ) as client:
        answer = await client.chat.completions.create(model="my-gpt", messages=QUESTION)
        assert answer.model == "my-gpt"
        assert answer.usage.total_tokens == 26
    call = sim.calls[-1]
    assert call.path == "/openai/deployments/my-gpt/chat/completions"
    assert call.headers["api-key"] == call.credential == "sim-key"
    async with openai.AsyncAzureOpenAI(
        azure_endpoint=sim.base_url, api_key="wrong", api_version="2025-01-01"
    ) as client:
        with pytest.raises(openai.AuthenticationError):
            await client.chat.completions.create(model="my-gpt", messages=QUESTION)
    async with openai.AsyncOpenAI(
        base_url=f"{sim.base_url}/openai/v1", api_key="sim-key"
    ) as client:
        answer = await client.chat.completions.create(model="my-gpt", messages=QUESTION)
        assert answer.usage.total_tokens == 26


async def test_wrong_key_is_refused_in_one_try_and_echoed_in_part(sim: RunningSimulator) -> None:
    async with openai.AsyncOpenAI(
        base_url=sim.openai_url, api_key="sk-verysecret-0123456789"
    ) as client:
        with pytest.raises(openai.AuthenticationError, match="sk-verys") as caught:
            await client.chat.completions.create(model="gpt-4o", messages=QUESTION)
    assert caught.value.code == "invalid_api_key"
    assert "0123456789" not in str(caught.value)
    assert len(sim.calls) == 1


# --- mistralai --------------------------------------------------------------------------


async def test_mistral_chat_whole_and_streamed(mistral: Mistral) -> None:
    whole = await mistral.chat.complete_async(
        model="mistral-small-latest", messages=QUESTION, max_tokens=5
    )
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (10, 5)
    assert whole.choices[0].finish_reason == "length"
    stream = await mistral.chat.stream_async(model="mistral-small-latest", messages=QUESTION)
    chunks = [event.data async for event in stream]
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.total_tokens == 26


@pytest.mark.parametrize(
    ("pages", "wanted"),
    [(None, 5), ([0, 2], 2), ("0-3", 4), ("0,2-9", 4), ("1", 1), ([7], 0)],
)
async def test_ocr_counts_the_pages_of_the_document(
    mistral: Mistral, pages: list[int] | str | None, wanted: int
) -> None:
    url = pdf(5)
    answer = await mistral.ocr.process_async(
        model="mistral-ocr-latest",
        document={"type": "document_url", "document_url": url},
        pages=pages,
    )
    assert len(answer.pages) == answer.usage_info.pages_processed == wanted
    assert answer.usage_info.doc_size_bytes == len(base64.b64decode(url.partition(",")[2]))


async def test_ocr_of_images_and_of_documents_elsewhere(mistral: Mistral) -> None:
    async def pages(document: dict[str, str]) -> int:
        answer = await mistral.ocr.process_async(model="mistral-ocr-latest", document=document)
        return answer.usage_info.pages_processed

    image = "data:image/png;base64," + base64.b64encode(b"\x89PNG").decode()
    away = "https://documents.example/a.pdf"
    assert await pages({"type": "image_url", "image_url": image}) == 1
    assert await pages({"type": "document_url", "document_url": away}) == 3
    assert await pages({"type": "document_url", "document_url": away + " [[sim pages=7]]"}) == 7


async def test_ocr_refuses_what_it_cannot_read(mistral: Mistral) -> None:
    broken = "data:application/pdf;base64," + base64.b64encode(b"%PDF-1.4 no").decode()
    with pytest.raises(HTTPValidationError) as caught:
        await mistral.ocr.process_async(
            model="mistral-ocr-latest", document={"type": "document_url", "document_url": broken}
        )
    assert caught.value.status_code == 422


async def test_mistral_embeddings_models_speech_and_transcription(mistral: Mistral) -> None:
    vectors = await mistral.embeddings.create_async(model="mistral-embed", inputs=["x" * 40])
    assert vectors.usage.prompt_tokens == 10
    assert len(vectors.data[0].embedding) == 1024
    listed = await mistral.models.list_async()
    assert "mistral-small-latest" in [model.id for model in listed.data]
    spoken = await mistral.audio.speech.complete_async(model="voxtral-tts", input="x" * 50)
    audio = base64.b64decode(spoken.audio_data)
    with wave.open(io.BytesIO(audio)) as sound:
        assert sound.getnframes() / sound.getframerate() == pytest.approx(3.0)
    heard = await mistral.audio.transcriptions.complete_async(
        model="voxtral-mini-latest", file={"file_name": "a.wav", "content": audio}
    )
    assert heard.usage.prompt_audio_seconds == 3


# --- anthropic --------------------------------------------------------------------------


async def test_messages_whole_and_streamed(
    claude: anthropic.AsyncAnthropic, sim: RunningSimulator
) -> None:
    sim.set(cached=4, cache_write=2)
    whole = await claude.messages.create(model="claude-sonnet-5", max_tokens=5, messages=QUESTION)
    assert whole.stop_reason == "max_tokens"
    assert whole.usage.input_tokens == 10 - 4 - 2
    assert whole.usage.cache_read_input_tokens == 4
    assert whole.usage.cache_creation_input_tokens == 2
    assert whole.usage.output_tokens == 5
    async with claude.messages.stream(
        model="claude-sonnet-5", max_tokens=5, messages=QUESTION
    ) as stream:
        final = await stream.get_final_message()
    assert final.content[0].text == whole.content[0].text
    assert (final.usage.input_tokens, final.usage.output_tokens) == (4, 5)


async def test_anthropic_errors_are_its_own(
    claude: anthropic.AsyncAnthropic, sim: RunningSimulator
) -> None:
    with pytest.raises(anthropic.BadRequestError, match="max_tokens: Field required"):
        await claude.post(
            "/v1/messages", cast_to=object, body={"model": "claude", "messages": QUESTION}
        )
    async with anthropic.AsyncAnthropic(base_url=sim.base_url, api_key="wrong") as other:
        with pytest.raises(anthropic.AuthenticationError) as caught:
            await other.messages.create(model="claude", max_tokens=5, messages=QUESTION)
    assert caught.value.body["error"]["type"] == "authentication_error"
