"""Requests as they come: broken, huge, strange. A clear 4xx each, nothing charged, nothing sent on."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from app.simulator import RunningSimulator
from tests.gateway.kit import (
    DIME,
    KINDS,
    PAGE,
    QUESTION,
    House,
    Tenant,
    pdf,
    refused,
    served,
    wav,
)

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


def _tenant(house: House) -> Tenant:
    """Add a tenant of one model that may be called in every way."""
    return house.tenant(
        house.model(DIME | PAGE | {"character": "0.1", "second": "0.1"}), usd="1000"
    )


@pytest.fixture
def tenant(house: House) -> Tenant:
    return _tenant(house)


@pytest.fixture(scope="session")
def idle(estate: House) -> Tenant:
    """A tenant for the requests that come to nothing: all of them together leave no trace."""
    return _tenant(estate)


@pytest.fixture
def bystander(house: House, idle: Tenant) -> Tenant:
    return idle


def _nothing_happened(tenant: Tenant, sim: RunningSimulator) -> None:
    assert sim.app.total == 0, "the provider was called"
    assert tenant.calls() == []
    standing = tenant.standing()
    assert (standing["cost_used_this_month"], standing["cost_held"]) == ("0.00", "0.00")
    assert (standing["tokens_used_this_month"], standing["tokens_held"]) == (0, 0)


def _invalid(answer: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    error = refused(answer, status, code)
    assert error["type"] == "invalid_request_error"
    assert answer.headers["x-should-retry"] == "false"
    assert "x-spendgate-call-id" not in answer.headers, "there is no such call"
    return error


def _chat(**fields: Any) -> dict[str, Any]:
    return {"model": "MODEL", "messages": QUESTION} | fields


# Every endpoint, every field that decides what a call may cost: what a client may get wrong in it.
WRONG_FIELDS: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {"messages": QUESTION}, "model"),
    (CHAT, _chat(model=None), "model"),
    (CHAT, _chat(model=7), "model"),
    (CHAT, _chat(model=["MODEL"]), "model"),
    (CHAT, _chat(model=""), "model"),
    (CHAT, _chat(model="m" * 1001), "model"),
    (CHAT, _chat(model="gpt\0"), "model"),
    (CHAT, _chat(model="gpt-4o\r\nx-evil: 1"), "model"),
    (CHAT, {"model": "MODEL"}, "messages"),
    (CHAT, _chat(messages=None), "messages"),
    (CHAT, _chat(messages="hello"), "messages"),
    (CHAT, _chat(messages={"role": "user"}), "messages"),
    (CHAT, _chat(messages=["hello"]), "messages"),
    (CHAT, _chat(messages=[{"role": "user", "content": 7}]), "messages[0].content"),
    (CHAT, _chat(messages=[{"role": "user", "content": {"a": "x"}}]), "messages[0].content"),
    (CHAT, _chat(stream="yes"), "stream"),
    (CHAT, _chat(stream=1), "stream"),
    (CHAT, _chat(stream=True, stream_options=True), "stream_options"),
    (CHAT, _chat(stream=True, stream_options={"include_usage": "yes"}), "stream_options"),
    (CHAT, _chat(n=0), "n"),
    (CHAT, _chat(n=-1), "n"),
    (CHAT, _chat(n=129), "n"),
    (CHAT, _chat(n=1.5), "n"),
    (CHAT, _chat(n=True), "n"),
    (CHAT, _chat(max_tokens=0), "max_tokens"),
    (CHAT, _chat(max_tokens=-1), "max_tokens"),
    (CHAT, _chat(max_tokens=1.5), "max_tokens"),
    (CHAT, _chat(max_tokens="x"), "max_tokens"),
    (CHAT, _chat(max_tokens=True), "max_tokens"),
    (CHAT, _chat(max_tokens=10**30), "max_tokens"),
    (CHAT, _chat(max_tokens=2**63), "max_tokens"),
    (CHAT, _chat(max_completion_tokens=-1), "max_completion_tokens"),
    (CHAT, _chat(max_completion_tokens=10**30), "max_completion_tokens"),
    (CHAT, _chat(max_tokens=5, max_completion_tokens=0), "max_completion_tokens"),
    (CHAT, _chat(modalities="audio"), "modalities"),
    ("/v1/embeddings", {"model": "MODEL"}, "input"),
    ("/v1/embeddings", {"model": "MODEL", "input": None}, "input"),
    ("/v1/embeddings", {"model": "MODEL", "input": 7}, "input"),
    ("/v1/embeddings", {"model": "MODEL", "input": {"a": 1}}, "input"),
    ("/v1/embeddings", {"model": "MODEL", "input": ["x", 7]}, "input"),
    ("/v1/embeddings", {"input": "x"}, "model"),
    ("/v1/ocr", {"model": "MODEL"}, "document"),
    ("/v1/ocr", {"model": "MODEL", "document": None}, "document"),
    ("/v1/ocr", {"model": "MODEL", "document": "https://documents.example/a.pdf"}, "document"),
    ("/v1/ocr", {"document": {"type": "document_url", "document_url": pdf(1)}}, "model"),
    *(
        (
            "/v1/ocr",
            {"model": "MODEL", "document": {"type": "document_url"}, "pages": pages},
            "pages",
        )
        for pages in (-1, [-1], "3-1", "x", 1.5, [10**30], {"from": 1}, "1,,2", True)
    ),
    ("/v1/audio/speech", {"model": "MODEL", "voice": "alloy"}, "input"),
    ("/v1/audio/speech", {"model": "MODEL", "voice": "alloy", "input": 7}, "input"),
    ("/v1/audio/speech", {"voice": "alloy", "input": "x"}, "model"),
]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    WRONG_FIELDS,
    ids=[f"{path} {json.dumps(body)[:60]}" for path, body, _ in WRONG_FIELDS],
)
def test_a_field_that_cannot_be_right_is_a_400_that_names_it(
    bystander: Tenant, sim: RunningSimulator, path: str, body: dict[str, Any], param: str
) -> None:
    body = {name: bystander.model if field == "MODEL" else field for name, field in body.items()}
    error = _invalid(bystander.post(path, json=body), 400, "invalid_request")
    assert error["param"] == param
    assert param in error["message"]
    _nothing_happened(bystander, sim)


BROKEN_BODIES: dict[str, bytes] = {
    "empty": b"",
    "white space": b"  \n ",
    "a word": b"hello",
    "cut": b'{"model": "gpt-4o", "mess',
    "an array": b'[{"model": "gpt-4o"}]',
    "a string": b'"gpt-4o"',
    "a number": b"12",
    "null": b"null",
    "two objects": b'{"model": "gpt-4o"}{"model": "gpt-4o"}',
    "a comma too many": b'{"model": "gpt-4o",}',
    "single quotes": b"{'model': 'gpt-4o'}",
    "NaN": b'{"model": "gpt-4o", "messages": [], "temperature": NaN}',
    "NUL bytes": b"\0\0\0\0",
    "a NUL after it": b'{"model": "gpt-4o"}\0',
    "a byte order mark": b'\xef\xbb\xbf{"model": "gpt-4o"}',
    "UTF-16": '{"model": "gpt-4o"}'.encode("utf-16"),
    "not UTF-8 in a name": b'{"\xff\xfe": 1, "model": "gpt-4o"}',
    "not UTF-8 in the model": b'{"model": "gpt-\xff"}',
    "half a surrogate pair": b'{"model": "gpt-\\ud800"}',
    "a name that is no string": b'{1: "gpt-4o"}',
}


@pytest.mark.parametrize("body", BROKEN_BODIES.values(), ids=BROKEN_BODIES)
def test_a_body_that_is_no_json_object_is_a_400(
    bystander: Tenant, sim: RunningSimulator, body: bytes
) -> None:
    for path in (CHAT, "/v1/embeddings", "/v1/ocr", "/v1/audio/speech"):
        _invalid(bystander.post(path, content=body, headers=JSON), 400, "invalid_request")
    _nothing_happened(bystander, sim)


@pytest.mark.parametrize(
    "nested",
    [
        '"messages": %s',
        '"messages": [{"role": "user", "content": %s}]',
        '"messages": [{"role": "user", "content": "x", "tool_calls": %s}]',
        '"messages": [], "tools": %s',
    ],
)
def test_deep_nesting_is_no_500(tenant: Tenant, nested: str) -> None:
    for opening, closed in (("[", "]"), ('{"a":', "}")):
        for depth in (1_000, 100_000):
            inner = opening * depth + "1" + closed * depth
            body = f'{{"model": "{tenant.model}", "max_tokens": 1, {nested % inner}}}'
            answer = tenant.post(CHAT, content=body.encode(), headers=JSON)
            # Either we refuse to read it, or the provider's word on it is passed on.
            refused(answer, 400, answer.json()["error"]["code"])
    assert tenant.standing()["cost_used_this_month"] == "0.00"


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, b'"messages": [{"role": "user", "content": "\xff"}]'),
        (CHAT, b'"messages": [{"role": "user", "content": "x", "name": ["\xff"]}]'),
        (CHAT, b'"messages": [], "user": "\xff", "max_tokens": 1'),
        (CHAT, b'"messages": [], "stream": true, "stream_options": {"\xff": 1}'),
        ("/v1/embeddings", b'"input": ["\xff"]'),
        ("/v1/ocr", b'"document": {"type": "document_url", "document_url": "\xff"}'),
        ("/v1/audio/speech", b'"input": "\xff", "voice": "alloy"'),
    ],
    ids=ascii,
)
def test_text_that_is_not_utf_8_is_no_500(tenant: Tenant, path: str, fields: bytes) -> None:
    body = b'{"model": "%s", %s}' % (tenant.model.encode(), fields)
    answer = tenant.post(path, content=body, headers=JSON)
    # Where we need not read it, the provider judges; Mistral has a status of its own for it.
    assert answer.status_code in (400, 422), answer.text
    assert answer.headers["x-request-id"]
    assert tenant.standing()["cost_used_this_month"] == "0.00"


@pytest.mark.parametrize("text", ["\0", "a\0b", "\ufffe", "\u202e", "\x7f"], ids=ascii)
def test_odd_characters_in_a_message_are_the_providers_business(tenant: Tenant, text: str) -> None:
    served(tenant.chat(messages=[{"role": "user", "content": text}], max_tokens=1))


@pytest.mark.parametrize(
    "model",
    ["模型", "m" * 1000, "../../admin", "a b", "\U0001f98a", "'; DROP TABLE calls; --", "{detail}"],
    ids=ascii,
)
def test_a_model_of_any_name_that_the_key_does_not_open_is_a_403_and_recorded(
    tenant: Tenant, sim: RunningSimulator, model: str
) -> None:
    answer = tenant.chat(model)
    error = refused(answer, 403, "model_mismatch")
    assert (error["type"], error["param"]) == ("permission_error", "model")
    row = tenant.booked(answer)
    assert row["outcome"] == "rejected_model_mismatch"
    assert row["model"] == model
    assert sim.app.total == 0


def test_of_a_name_that_comes_twice_the_last_one_counts_here_and_upstream(
    house: House, sim: RunningSimulator
) -> None:
    cheap = house.model({"input_token": "0", "output_token": "0.001"}, "gpt-cheap")
    dear = house.model(DIME, "gpt-dear")
    tenant = house.tenant(cheap, dear, usd="100")
    for first, last, upstream, cost in (
        (cheap, dear, "gpt-dear", "1.60"),
        (dear, cheap, "gpt-cheap", "0.016"),
    ):
        body = (
            f'{{"model": "{first}", "max_tokens": 999, "messages": %s,'
            f' "max_tokens": 16, "model": "{last}"}}' % json.dumps(QUESTION)
        )
        answer = served(tenant.post(CHAT, content=body.encode(), headers=JSON))
        row = tenant.booked(answer)
        assert (row["model"], row["cost_usd"]) == (last, cost)
        sent = sim.calls[-1].body
        assert sent.count('"model"') == sent.count('"max_tokens"') == 1
        assert sim.calls[-1].model == upstream


# Content types


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json"],
)
def test_another_content_type_than_json_is_a_415(
    bystander: Tenant, sim: RunningSimulator, content_type: str
) -> None:
    body = json.dumps(_chat(model=bystander.model)).encode()
    answer = bystander.post(CHAT, content=body, headers={"content-type": content_type})
    _invalid(answer, 415, "unsupported_media_type")
    _nothing_happened(bystander, sim)


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=utf-8", "Application/JSON", "application/json;"]
)
def test_json_may_be_spelled_in_any_way(tenant: Tenant, content_type: str) -> None:
    body = json.dumps(_chat(model=tenant.model, max_tokens=1)).encode()
    served(tenant.post(CHAT, content=body, headers={"content-type": content_type}))


def test_json_sent_where_a_form_is_wanted_is_a_415(
    bystander: Tenant, sim: RunningSimulator
) -> None:
    answer = bystander.post("/v1/audio/transcriptions", json={"model": bystander.model})
    _invalid(answer, 415, "unsupported_media_type")
    _nothing_happened(bystander, sim)


def test_a_compressed_body_is_a_415(bystander: Tenant, sim: RunningSimulator) -> None:
    body = gzip.compress(json.dumps(_chat(model=bystander.model)).encode())
    answer = bystander.post(CHAT, content=body, headers=JSON | {"content-encoding": "gzip"})
    _invalid(answer, 415, "unsupported_media_type")
    _nothing_happened(bystander, sim)


# Forms

FILE = {"file": ("talk.wav", wav(1), "audio/wav")}
FORMS: dict[str, tuple[dict[str, Any], str]] = {
    "no file": ({"data": {"model": "MODEL"}, "files": {"other": ("a", b"b")}}, "file"),
    "no model": ({"files": FILE}, "model"),
    "a stream": ({"data": {"model": "MODEL", "stream": "true"}, "files": FILE}, "stream"),
    "two models": ({"data": {"model": ["MODEL", "other"]}, "files": FILE}, "model"),
    "two files": (
        {"data": {"model": "MODEL"}, "files": [("file", FILE["file"]), ("file", FILE["file"])]},
        "file",
    ),
    "a model that is no text": ({"data": {"model": b"\xff\xfe"}, "files": FILE}, "model"),
    "a long model": ({"data": {"model": "m" * 1001}, "files": FILE}, "model"),
}


@pytest.mark.parametrize(("form", "param"), FORMS.values(), ids=FORMS)
def test_a_form_that_cannot_be_right_is_a_400_that_names_the_field(
    bystander: Tenant, sim: RunningSimulator, form: dict[str, Any], param: str
) -> None:
    data = {
        name: [bystander.model if one == "MODEL" else one for one in value]
        if isinstance(value, list)
        else bystander.model
        if value == "MODEL"
        else value
        for name, value in form.get("data", {}).items()
    }
    answer = bystander.post("/v1/audio/transcriptions", data=data, files=form["files"])
    error = _invalid(answer, 400, "invalid_request")
    assert error["param"] == param
    _nothing_happened(bystander, sim)


BROKEN_FORMS: dict[str, tuple[str, bytes]] = {
    "no boundary": ("multipart/form-data", b"--x\r\n\r\n--x--\r\n"),
    "an empty boundary": ("multipart/form-data; boundary=", b"--\r\n\r\n----\r\n"),
    "an empty body": ("multipart/form-data; boundary=x", b""),
    "another boundary": ("multipart/form-data; boundary=y", b"--x\r\n\r\n--x--\r\n"),
    "no end": (
        "multipart/form-data; boundary=x",
        b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\ngpt',
    ),
    "no headers": ("multipart/form-data; boundary=x", b"--x\r\n\r\ngpt-4o\r\n--x--\r\n"),
    "no name": (
        "multipart/form-data; boundary=x",
        b"--x\r\ncontent-disposition: form-data\r\n\r\ngpt-4o\r\n--x--\r\n",
    ),
    "noise": ("multipart/form-data; boundary=x", bytes(range(256)) * 40),
    "a hundred parts": (
        "multipart/form-data; boundary=x",
        b'--x\r\ncontent-disposition: form-data; name="a"\r\n\r\nb\r\n' * 100 + b"--x--\r\n",
    ),
    "a boundary that is no text": ("multipart/form-data; boundary=\xff\xfe", b"--\xff\xfe--\r\n"),
}


@pytest.mark.parametrize(("content_type", "body"), BROKEN_FORMS.values(), ids=BROKEN_FORMS)
def test_a_broken_form_is_a_400(
    bystander: Tenant, sim: RunningSimulator, content_type: str, body: bytes
) -> None:
    headers = {"content-type": content_type.encode("latin-1")}
    answer = bystander.post("/v1/audio/transcriptions", content=body, headers=headers)
    _invalid(answer, 400, "invalid_request")
    _nothing_happened(bystander, sim)


def test_a_form_goes_upstream_part_by_part_with_the_providers_name_of_the_model(
    house: House, sim: RunningSimulator
) -> None:
    model = house.model({"second": "0.001"}, "whisper-1")
    tenant = house.tenant(model, usd="1")
    served(
        tenant.post(
            "/v1/audio/transcriptions",
            data={"model": model, "language": "pl", "prompt": "Zażółć 🦊", "temperature": "0"},
            files={"file": ('gęś "1".wav', wav(1), "audio/wav")},
        )
    )
    call = sim.calls[-1]
    assert call.model == "whisper-1"
    assert model not in call.body
    for piece in ("Zażółć 🦊", 'name="language"', "\r\n\r\npl\r\n", "gęś"):
        assert piece in call.body or piece.encode().decode("latin-1") in call.body, piece


AUDIO: dict[str, bytes] = {
    "empty": b"",
    "noise": bytes(range(256)) * 20,
    "only a header": wav(1)[:44],
    "a cut header": wav(1)[:20],
    "RIFF of nothing": b"RIFF\xff\xff\xff\xffWAVE",
    "no channels": wav(1)[:22] + b"\0\0" + wav(1)[24:],
    "no rate": wav(1)[:24] + b"\0\0\0\0" + wav(1)[28:],
    "an Ogg page": b"OggS" + bytes(100),
    "an MP3 frame": b"\xff\xfb\x90\x00" + bytes(100),
    "an MP4 box": b"\0\0\0\x18ftypM4A \0\0\0\0" + bytes(100),
    "a FLAC": b"fLaC\0\0\0\x22" + bytes(34),
}


@pytest.mark.parametrize("audio", AUDIO.values(), ids=AUDIO)
def test_audio_that_cannot_be_read_is_no_500(house: House, audio: bytes) -> None:
    model = house.model({"second": "0.001"}, "whisper-1")
    tenant = house.tenant(model, usd="100")
    answer = tenant.post(
        "/v1/audio/transcriptions", data={"model": model}, files={"file": ("a.wav", audio)}
    )
    assert answer.status_code in (200, 400), answer.text
    assert tenant.booked(answer)["outcome"] in ("success", "upstream_error")


DOCUMENTS = {
    "not base64": "data:application/pdf;base64,!!!!",
    "no PDF": "data:application/pdf;base64,aGVsbG8=",
    "a cut PDF": pdf(3)[:400],
    "nothing": "data:application/pdf;base64,",
    "no comma": "data:application/pdf",
    "an empty address": "",
}


@pytest.mark.parametrize("address", DOCUMENTS.values(), ids=DOCUMENTS)
def test_a_document_that_cannot_be_read_is_the_providers_business(
    house: House, address: str
) -> None:
    model = house.model(PAGE, "mistral-ocr-latest")
    tenant = house.tenant(model, usd="1000")
    document = {"type": "document_url", "document_url": address}
    answer = tenant.post("/v1/ocr", json={"model": model, "document": document})
    assert answer.status_code in (200, 400, 422), answer.text
    assert tenant.booked(answer)["outcome"] in ("success", "upstream_error")


# Size

TOO_LARGE = 50 * 2**20


def _in_chunks(size: int) -> Iterator[bytes]:
    for _ in range(size // 2**20):
        yield b" " * 2**20


@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
def test_a_body_of_50_mb_is_a_413_that_the_client_receives(
    tenant: Tenant, sim: RunningSimulator, chunked: bool
) -> None:
    body: Any = _in_chunks(TOO_LARGE) if chunked else b" " * TOO_LARGE
    _invalid(tenant.post(CHAT, content=body, headers=JSON), 413, "request_too_large")
    _nothing_happened(tenant, sim)
    # The connection is still good.
    served(tenant.chat(max_tokens=1))


def test_a_form_of_50_mb_is_a_413(bystander: Tenant, sim: RunningSimulator) -> None:
    files = {"file": ("a.wav", bytes(TOO_LARGE))}
    answer = bystander.post(
        "/v1/audio/transcriptions", data={"model": bystander.model}, files=files
    )
    _invalid(answer, 413, "request_too_large")
    _nothing_happened(bystander, sim)


def test_a_body_of_30_mb_is_served(house: House) -> None:
    model = house.model(PAGE, "mistral-ocr-latest")
    image = "data:image/png;base64," + "A" * (30 * 2**20)
    document = {"type": "image_url", "image_url": image}
    tenant = house.tenant(model, usd="1")
    answer = served(tenant.post("/v1/ocr", json={"model": model, "document": document}))
    assert tenant.booked(answer)["usage"] == {"page": 1}


def test_a_client_that_leaves_in_the_middle_of_its_body_leaves_no_trace(
    house: House, bystander: Tenant, sim: RunningSimulator
) -> None:
    host = urlsplit(house.url())
    assert host.hostname
    assert host.port
    with socket.create_connection((host.hostname, host.port)) as raw:
        head = (
            f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {bystander.secret}\r\n"
            "content-type: application/json\r\ncontent-length: 1000\r\n\r\n"
        )
        raw.sendall(head.encode() + b'{"model": ')
    assert bystander.get("/v1/models").status_code == 200
    _nothing_happened(bystander, sim)


# Request ids


@pytest.mark.parametrize(
    "given",
    [b"x" * 300, b"x" * 129, "żółw".encode(), b"\xff\xfe", b"two words", b"tab\there", b""],
    ids=ascii,
)
def test_a_request_id_that_cannot_be_recorded_is_replaced_by_ours(
    tenant: Tenant, given: bytes
) -> None:
    answer = tenant.chat(max_tokens=1, headers={"x-request-id": given})
    served(answer)
    ours = answer.headers["x-request-id"]
    assert ours.startswith("req_")
    row = tenant.booked(answer)
    assert (row["request_id"], row["outcome"]) == (ours, "success")


@pytest.mark.parametrize("given", ["x" * 128, "req-7", 'a"b\\c/{}'])
def test_a_request_id_that_can_be_recorded_is_echoed(tenant: Tenant, given: str) -> None:
    answer = served(tenant.chat(max_tokens=1, headers={"x-request-id": given}))
    assert answer.headers["x-request-id"] == given
    assert tenant.booked(answer)["request_id"] == given
    error = tenant.post(CHAT, content=b"", headers=JSON | {"x-request-id": given})
    assert error.headers["x-request-id"] == given


def test_calls_may_share_a_request_id(tenant: Tenant) -> None:
    for _ in range(2):
        served(tenant.chat(max_tokens=1, headers={"x-request-id": "same"}))
    assert [row["request_id"] for row in tenant.calls()] == ["same", "same"]


# Paths


@pytest.mark.parametrize(
    "path",
    [
        "/v1/",
        "/v1/completions",
        "/v1/chat",
        "/v1/chat/completions/x",
        "/v1/files",
        "/v1/../v1/unknown",
        "/v1/%2e%2e/api/admin/keys",
        "/v1/assistants",
        "/v1/chat%2Fcompletions%00",
    ],
)
def test_an_unknown_path_is_a_404_and_never_passed_on(
    house: House, bystander: Tenant, sim: RunningSimulator, path: str
) -> None:
    headers = {"authorization": f"Bearer {bystander.secret}"}
    for method in ("GET", "POST", "DELETE"):
        answer = house.client().request(method, path, headers=headers)
        _invalid(answer, 404, "not_found")
    assert sim.app.total == 0


H2C = {
    "Connection": "Upgrade, HTTP2-Settings",
    "Upgrade": "h2c",
    "HTTP2-Settings": "AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
}
"""What Java's own client says on a connection without TLS, with its first request."""


@pytest.mark.parametrize("at_once", [True, False], ids=["in one packet", "the body by itself"])
@pytest.mark.parametrize("upgrade", [H2C, H2C | {"Upgrade": "websocket"}], ids=["h2c", "websocket"])
def test_an_offer_to_speak_another_protocol_is_passed_over(
    house: House, tenant: Tenant, upgrade: dict[str, str], at_once: bool
) -> None:
    address = urlsplit(house.url())
    body = json.dumps(_chat(model=tenant.model)).encode()
    headers = {
        "Authorization": f"Bearer {tenant.secret}",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
    }
    with closing(
        http.client.HTTPConnection(str(address.hostname), address.port, timeout=10)
    ) as connection:
        for offer in (upgrade, {}, upgrade):
            connection.putrequest("POST", "/v1/chat/completions")
            for name, value in (headers | offer).items():
                connection.putheader(name, value)
            if at_once:
                connection.endheaders(body)
            else:
                connection.endheaders()
                time.sleep(0.05)
                connection.send(body)
            answer = connection.getresponse()
            assert (answer.status, answer.read()[:1]) == (200, b"{")
    assert len(tenant.calls()) == 3


def test_asking_for_the_options_of_the_whole_server_is_no_500(house: House) -> None:
    address = house.url().removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1])), 10) as connection:
        connection.sendall(b"OPTIONS * HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 405 ")


@pytest.mark.parametrize("path", sorted({kind.path for kind in KINDS.values()}))
def test_a_wrong_method_is_a_405(
    house: House, bystander: Tenant, sim: RunningSimulator, path: str
) -> None:
    headers = {"authorization": f"Bearer {bystander.secret}"}
    for method in ("GET", "PUT", "PATCH", "DELETE"):
        answer = house.client().request(method, path, headers=headers)
        _invalid(answer, 405, "method_not_allowed")
    assert sim.app.total == 0


@pytest.mark.parametrize("path", ["/v1/models", "/v1/key", "/v1/calls/x", "/v1/models/gpt-4o"])
def test_what_can_only_be_read_cannot_be_posted_to(bystander: Tenant, path: str) -> None:
    _invalid(bystander.post(path, json={}), 405, "method_not_allowed")


def test_a_model_is_served_only_at_its_endpoints(house: House, sim: RunningSimulator) -> None:
    model = house.model(DIME | PAGE, endpoints=["chat/completions"])
    tenant = house.tenant(model)
    answer = tenant.post("/v1/embeddings", json={"model": model, "input": "x"})
    _invalid(answer, 400, "invalid_request")
    assert sim.app.total == 0
    served(tenant.chat(max_tokens=1))
