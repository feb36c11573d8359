"""The SDKs as they are: they are served, and refused in one try with the right exception."""

from __future__ import annotations

import io
import time
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest
from mistralai.client import Mistral
from mistralai.client.errors import SDKError

from app.simulator import RunningSimulator
from tests.gateway.kit import (
    DIME,
    KINDS,
    PAGE,
    QUESTION,
    House,
    Tenant,
    eventually,
    pdf,
    wav,
)

DOCUMENT = {"type": "document_url", "document_url": pdf(2)}


class Sdks:
    """A tenant with a model for everything, and both SDKs with its key."""

    def __init__(self, house: House, **caps: Any) -> None:
        self.models = {name: house.model_for(kind) for name, kind in KINDS.items()}
        self.models["mistral"] = house.model(DIME, "mistral-small-latest", kind="mistral")
        self.models["transcribe"] = house.model(
            {"input_audio_token": "0.01", "input_token": "0.01", "output_token": "0.01"},
            "gpt-4o-transcribe",
        )
        self.tenant: Tenant = house.tenant(*self.models.values(), **caps)
        self.url = house.url()
        self.openai = openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.tenant.secret)
        self.mistral = Mistral(server_url=self.url, api_key=self.tenant.secret)

    def last(self) -> Any:
        """Return the call that was made last."""
        return self.tenant.calls()[-1]


@pytest.fixture
def sdks(house: House) -> Iterator[Sdks]:
    yield from _sdks(house, usd="100", tokens=100_000)


def _sdks(house: House, **caps: Any) -> Iterator[Sdks]:
    made = Sdks(house, **caps)
    with made.openai, made.mistral:
        yield made


# openai


def test_openai_chat(sdks: Sdks) -> None:
    answer = sdks.openai.chat.completions.create(
        model=sdks.models["chat"], messages=QUESTION, max_tokens=5
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage
    assert answer.usage.total_tokens == 15
    assert sdks.last()["cost_usd"] == "0.15"


@pytest.mark.parametrize("asked", [True, False])
def test_openai_chat_streamed(sdks: Sdks, asked: bool) -> None:
    more: dict[str, Any] = {"stream_options": {"include_usage": True}} if asked else {}
    stream = sdks.openai.chat.completions.create(
        model=sdks.models["chat"], messages=QUESTION, stream=True, **more
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert len(text.split()) == 16
    reported = [chunk.usage.total_tokens for chunk in chunks if chunk.usage]
    assert reported == ([26] if asked else [])
    assert sdks.last()["tokens"] == 26


def test_openai_chat_with_its_stream_helper(sdks: Sdks) -> None:
    with sdks.openai.chat.completions.stream(
        model=sdks.models["chat"], messages=QUESTION
    ) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content
    assert sdks.last()["outcome"] == "success"


@pytest.mark.parametrize("encoding", [openai.omit, "float"], ids=["as it likes", "float"])
def test_openai_embeddings(sdks: Sdks, encoding: Any) -> None:
    answer = sdks.openai.embeddings.create(
        model=sdks.models["embeddings"],
        input=["x" * 40, "y" * 40],
        dimensions=8,
        encoding_format=encoding,
    )
    assert [len(one.embedding) for one in answer.data] == [8, 8]
    assert sdks.last()["usage"] == {"input_token": 20}


def test_openai_speech_that_plays(sdks: Sdks, sim: RunningSimulator) -> None:
    text = "Nothing is lost. " * 20
    answer = sdks.openai.audio.speech.create(
        model=sdks.models["speech"], voice="alloy", input=text, response_format="wav"
    )
    assert answer.response.headers["content-type"] == "audio/wav"
    with wave.open(io.BytesIO(answer.content)) as sound:
        seconds = sound.getnframes() / sound.getframerate()
        assert any(sound.readframes(sound.getnframes()))
    assert seconds == pytest.approx(0.06 * len(text))
    assert sdks.last()["usage"] == {"character": len(text)}


def test_openai_speech_streamed(sdks: Sdks) -> None:
    with sdks.openai.audio.speech.with_streaming_response.create(
        model=sdks.models["speech"], voice="alloy", input="ż" * 100, response_format="pcm"
    ) as answer:
        pcm = b"".join(answer.iter_bytes())
    assert len(pcm) == 100 * 1440 * 2
    # Characters, not bytes.
    assert sdks.last()["usage"] == {"character": 100}


@pytest.mark.parametrize("layout", ["json", "text", "verbose_json"])
def test_openai_transcription(sdks: Sdks, layout: Any) -> None:
    answer: Any = sdks.openai.audio.transcriptions.create(
        model=sdks.models["transcription"], file=("talk.wav", wav(2)), response_format=layout
    )
    text = answer if isinstance(answer, str) else answer.text
    assert text.startswith("Every token")
    if layout == "verbose_json":
        assert answer.duration == 2
    assert sdks.last()["usage"] == {"second": 2}


def test_openai_transcription_billed_by_tokens(sdks: Sdks) -> None:
    answer = sdks.openai.audio.transcriptions.create(
        model=sdks.models["transcribe"], file=("talk.wav", wav(2)), language="en"
    )
    assert answer.text
    assert sdks.last()["usage"] == {"input_audio_token": 20, "output_token": 6}


def test_openai_models(sdks: Sdks) -> None:
    assert {model.id for model in sdks.openai.models.list()} == set(sdks.models.values())
    assert sdks.openai.models.retrieve(sdks.models["chat"]).id == sdks.models["chat"]
    with pytest.raises(openai.NotFoundError):
        sdks.openai.models.retrieve("no-such-model")


async def test_openai_async(sdks: Sdks) -> None:
    async with openai.AsyncOpenAI(base_url=f"{sdks.url}/v1", api_key=sdks.tenant.secret) as client:
        stream = await client.chat.completions.create(
            model=sdks.models["chat"], messages=QUESTION, stream=True
        )
        assert len([chunk async for chunk in stream]) == 18


# mistralai


def test_mistral_ocr(sdks: Sdks) -> None:
    answer = sdks.mistral.ocr.process(model=sdks.models["ocr"], document=DOCUMENT)
    assert len(answer.pages) == answer.usage_info.pages_processed == 2
    assert sdks.last()["usage"] == {"page": 2}


def test_mistral_ocr_of_some_pages(sdks: Sdks) -> None:
    answer = sdks.mistral.ocr.process(
        model=sdks.models["ocr"],
        document={"type": "document_url", "document_url": pdf(9)},
        pages="0,2-4",
    )
    assert answer.usage_info.pages_processed == 4
    assert sdks.last()["usage"] == {"page": 4}


def test_mistral_chat(sdks: Sdks) -> None:
    answer = sdks.mistral.chat.complete(
        model=sdks.models["mistral"], messages=QUESTION, max_tokens=5
    )
    assert answer.usage.total_tokens == 15
    assert sdks.last()["cost_usd"] == "0.50"


def test_mistral_chat_streamed_with_the_usage_that_it_expects(sdks: Sdks) -> None:
    with sdks.mistral.chat.stream(
        model=sdks.models["mistral"], messages=QUESTION, max_tokens=5
    ) as stream:
        chunks = [event.data for event in stream]
    assert "".join(str(chunk.choices[0].delta.content or "") for chunk in chunks)
    assert chunks[-1].usage
    assert chunks[-1].usage.total_tokens == 15
    assert sdks.last()["tokens"] == 15


def test_mistral_models(sdks: Sdks) -> None:
    listed = sdks.mistral.models.list()
    assert {model.id for model in listed.data or []} == set(sdks.models.values())


# Refusals


def _openai_calls(sdks: Sdks) -> dict[str, Callable[[], object]]:
    client, models = sdks.openai, sdks.models
    return {
        "chat": lambda: client.chat.completions.create(model=models["chat"], messages=QUESTION),
        "stream": lambda: client.chat.completions.create(
            model=models["chat"], messages=QUESTION, stream=True
        ),
        "embeddings": lambda: client.embeddings.create(model=models["embeddings"], input="x"),
        "speech": lambda: client.audio.speech.create(
            model=models["speech"], voice="alloy", input="x"
        ),
        "transcription": lambda: client.audio.transcriptions.create(
            model=models["transcription"], file=("a.wav", wav(1))
        ),
    }


def _mistral_calls(sdks: Sdks) -> dict[str, Callable[[], object]]:
    client, models = sdks.mistral, sdks.models
    return {
        "ocr": lambda: client.ocr.process(model=models["ocr"], document=DOCUMENT),
        "chat": lambda: client.chat.complete(model=models["mistral"], messages=QUESTION),
        "stream": lambda: client.chat.stream(model=models["mistral"], messages=QUESTION),
    }


@contextmanager
def _refused_in_one_try(sdks: Sdks, exception: type[Exception]) -> Iterator[Any]:
    calls = len(sdks.tenant.calls())
    begun = time.monotonic()
    with pytest.raises(exception) as caught:
        yield caught
    assert time.monotonic() - begun < 2, "the client waited"
    assert len(sdks.tenant.calls()) == calls + 1, "the client tried again"


CAPS = [
    ({"usd": 0}, "cost_quota_exceeded"),
    ({"tokens": 0}, "quota_exceeded"),
]


@pytest.mark.parametrize(("caps", "code"), CAPS, ids=["usd", "tokens"])
def test_at_a_cap_openai_raises_rate_limit_error_in_one_try(
    house: House, sim: RunningSimulator, caps: dict[str, Any], code: str
) -> None:
    for sdks in _sdks(house, **caps):
        for name, call in _openai_calls(sdks).items():
            if "tokens" in caps and name in ("speech", "transcription"):
                continue
            with _refused_in_one_try(sdks, openai.RateLimitError) as caught:
                call()
            assert caught.value.code == code
            assert caught.value.type == "insufficient_quota"
            assert caught.value.body["limit"]["owner_id"] == sdks.tenant.allocation_id
    assert sim.app.total == 0


def test_at_a_cap_mistral_raises_sdk_error_in_one_try(house: House, sim: RunningSimulator) -> None:
    for sdks in _sdks(house, usd=0):
        for call in _mistral_calls(sdks).values():
            with _refused_in_one_try(sdks, SDKError) as caught:
                call()
            assert caught.value.status_code == 429
            assert "cost_quota_exceeded" in caught.value.body
    assert sim.app.total == 0


def test_a_paused_allocation_is_permission_denied_in_one_try(sdks: Sdks) -> None:
    sdks.tenant.change(status="paused")
    with _refused_in_one_try(sdks, openai.PermissionDeniedError) as caught:
        sdks.openai.chat.completions.create(model=sdks.models["chat"], messages=QUESTION)
    assert caught.value.code == "allocation_paused"
    with _refused_in_one_try(sdks, SDKError) as caught:
        sdks.mistral.chat.complete(model=sdks.models["mistral"], messages=QUESTION)
    assert caught.value.status_code == 403


def test_another_model_is_permission_denied_in_one_try(sdks: Sdks) -> None:
    with _refused_in_one_try(sdks, openai.PermissionDeniedError):
        sdks.openai.chat.completions.create(model="no-such-model", messages=QUESTION)


def test_a_key_that_is_no_key_is_an_authentication_error(sdks: Sdks) -> None:
    with (
        openai.OpenAI(base_url=f"{sdks.url}/v1", api_key="sg_none") as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.chat.completions.create(model=sdks.models["chat"], messages=QUESTION)
    with Mistral(server_url=sdks.url, api_key="sg_none") as mistral, pytest.raises(SDKError) as no:
        mistral.ocr.process(model=sdks.models["ocr"], document=DOCUMENT)
    assert no.value.status_code == 401


def test_a_bad_request_is_a_bad_request_error(sdks: Sdks, sim: RunningSimulator) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        sdks.openai.chat.completions.create(
            model=sdks.models["chat"], messages=QUESTION, max_tokens=-1
        )
    assert caught.value.param == "max_tokens"
    assert sim.app.total == 0


def test_while_only_holds_stand_in_the_way_openai_waits_a_second_and_is_served(
    house: House, sim: RunningSimulator
) -> None:
    model = house.model(DIME)
    tenant = house.tenant(model, usd="1")
    sim.set(chunk_delay=0.03, answer_tokens=5)
    with (
        openai.OpenAI(base_url=f"{house.url()}/v1", api_key=tenant.secret) as client,
        client.chat.completions.create(
            model=model, messages=QUESTION, max_tokens=10, stream=True
        ) as running,
    ):
        next(running)
        begun = time.monotonic()
        client.chat.completions.create(model=model, messages=QUESTION, max_tokens=5)
        assert 0.9 < time.monotonic() - begun < 5
    eventually(lambda: tenant.standing()["cost_held"] == "0.00")
    outcomes = [call["outcome"] for call in tenant.calls()]
    assert sorted(outcomes) == ["rejected_quota_reserved", "success", "success"]


def test_a_cap_that_a_stream_meets_is_no_surprise_to_the_next_call(
    house: House, sim: RunningSimulator
) -> None:
    model = house.model(PAGE, "mistral-ocr-latest")
    tenant = house.tenant(model, usd="0.20")
    with Mistral(server_url=house.url(), api_key=tenant.secret) as client:
        assert client.ocr.process(model=model, document=DOCUMENT).usage_info.pages_processed == 2
        with pytest.raises(SDKError) as caught:
            client.ocr.process(model=model, document=DOCUMENT)
    assert caught.value.status_code == 429
    assert sim.app.total == 1
