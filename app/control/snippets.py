"""Snippets: for each endpoint that one's models open, lines that call it when they are pasted.

Owns their texts. Owns no model and no key: a key is shown by its hint, or by a word to replace.

Invariants: a snippet says what is asked for and nothing more; whatever a model is called, it is
quoted as its language wants it; only models of one's own are named.
"""

import json
import shlex
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

import msgspec
from litestar import Request, Router, get
from litestar.di import NamedDependency
from litestar.params import FromQuery

from app.control import browser
from app.control.desk import Desk
from app.control.errors import documented, invalid
from app.core.access import Allocation, ProviderKind
from app.store import catalogue

Language = Literal["curl", "python", "javascript"]

DOCUMENT: Final = "https://arxiv.org/pdf/2201.04234"
SPEECH: Final = "speech.mp3"
KEYS_MAX: Final = 1000


class Snippet(msgspec.Struct, frozen=True):
    """Lines to paste; `library` is what they need beside the language itself."""

    language: Language
    library: str | None
    text: str


class EndpointSnippets(msgspec.Struct, frozen=True):
    """How to call an endpoint."""

    endpoint: str
    model: str
    """The one that the snippets call."""
    models: list[str]
    """All of one's own that may be called so."""
    snippets: list[Snippet]


class SnippetsDocument(msgspec.Struct, frozen=True):
    """Snippets for the endpoints of one's models; where `key` stands, the secret belongs."""

    base_url: str
    key: str
    endpoints: list[EndpointSnippets]


class _Call:
    """What a snippet calls, and how each language writes it."""

    def __init__(self, base_url: str, key: str, model: str, kind: ProviderKind) -> None:
        self.base_url = base_url
        self.key = key
        self.model = model
        self.kind = kind

    def curl(self, path: str, **fields: Any) -> str:
        """Write a call with a JSON body."""
        body = json.dumps({"model": self.model} | fields, indent=2)
        return (
            f"{self._curl(path)} \\\n  -H 'Content-Type: application/json' \\\n"
            f"  -d {shlex.quote(body)}"
        )

    def form(self, path: str, **fields: str) -> str:
        """Write a call with a form."""
        parts = [f"  -F {shlex.quote(f'{name}={value}')}" for name, value in fields.items()]
        # A form's own syntax must not see the model.
        model = f"  --form-string {shlex.quote(f'model={self.model}')}"
        return " \\\n".join([self._curl(path), model, *parts])

    def _curl(self, path: str) -> str:
        url = shlex.quote(f"{self.base_url}/v1/{path}")
        return f"curl {url} \\\n  -H {shlex.quote(f'Authorization: Bearer {self.key}')}"

    def openai(self, *lines: str) -> str:
        """Write lines for OpenAI's library in Python."""
        opening = f"client = OpenAI(base_url={self._text('/v1')}, api_key={_quoted(self.key)})"
        return "\n".join(["from openai import OpenAI", "", opening, *lines])

    def mistral(self, *lines: str) -> str:
        """Write lines for Mistral's library in Python."""
        opening = f"client = Mistral(server_url={self._text()}, api_key={_quoted(self.key)})"
        return "\n".join(["from mistralai.client import Mistral", "", opening, *lines])

    def openai_js(self, *lines: str, more: Sequence[str] = ()) -> str:
        """Write lines for OpenAI's library in JavaScript."""
        options = f"{{ baseURL: {self._text('/v1')}, apiKey: {_quoted(self.key)} }}"
        opening = f"const client = new OpenAI({options});"
        return "\n".join(['import OpenAI from "openai";', *more, "", opening, *lines])

    def mistral_js(self, *lines: str) -> str:
        """Write lines for Mistral's library in JavaScript."""
        options = f"{{ serverURL: {self._text()}, apiKey: {_quoted(self.key)} }}"
        opening = f"const client = new Mistral({options});"
        return "\n".join(['import { Mistral } from "@mistralai/mistralai";', "", opening, *lines])

    @property
    def name(self) -> str:
        """The model, as Python and JavaScript write it."""
        return _quoted(self.model)

    def _text(self, path: str = "") -> str:
        return _quoted(self.base_url + path)


def _quoted(text: str) -> str:
    return json.dumps(text)


QUESTION: Final = [{"role": "user", "content": "Say hello in three languages."}]


def _chat(call: _Call) -> list[Snippet]:
    messages = json.dumps(QUESTION)
    return [
        Snippet("curl", None, call.curl("chat/completions", messages=QUESTION)),
        Snippet(
            "python",
            "openai",
            call.openai(
                "answer = client.chat.completions.create(",
                f"    model={call.name},",
                f"    messages={messages},",
                ")",
                "print(answer.choices[0].message.content)",
            ),
        ),
        Snippet(
            "python",
            "mistralai",
            call.mistral(
                "answer = client.chat.complete(",
                f"    model={call.name},",
                f"    messages={messages},",
                ")",
                "print(answer.choices[0].message.content)",
            ),
        ),
        Snippet(
            "javascript",
            "openai",
            call.openai_js(
                "const answer = await client.chat.completions.create({",
                f"  model: {call.name},",
                f"  messages: {messages},",
                "});",
                "console.log(answer.choices[0].message.content);",
            ),
        ),
    ]


def _embeddings(call: _Call) -> list[Snippet]:
    mistral = Snippet(
        "python",
        "mistralai",
        call.mistral(
            "answer = client.embeddings.create(",
            f"    model={call.name},",
            '    inputs=["A text to compare."],',
            ")",
            "print(answer.data[0].embedding)",
        ),
    )
    return [
        Snippet("curl", None, call.curl("embeddings", input="A text to compare.")),
        Snippet(
            "python",
            "openai",
            call.openai(
                "answer = client.embeddings.create(",
                f"    model={call.name},",
                '    input="A text to compare.",',
                ")",
                "print(answer.data[0].embedding)",
            ),
        ),
        # Its library takes no other provider's answer.
        *([mistral] if call.kind == "mistral" else []),
        Snippet(
            "javascript",
            "openai",
            call.openai_js(
                "const answer = await client.embeddings.create({",
                f"  model: {call.name},",
                '  input: "A text to compare.",',
                "});",
                "console.log(answer.data[0].embedding);",
            ),
        ),
    ]


def _ocr(call: _Call) -> list[Snippet]:
    document = {"type": "document_url", "document_url": DOCUMENT}
    return [
        Snippet("curl", None, call.curl("ocr", document=document)),
        Snippet(
            "python",
            "mistralai",
            call.mistral(
                "answer = client.ocr.process(",
                f"    model={call.name},",
                f"    document={json.dumps(document)},",
                ")",
                "for page in answer.pages:",
                "    print(page.markdown)",
            ),
        ),
        Snippet(
            "javascript",
            "@mistralai/mistralai",
            call.mistral_js(
                "const answer = await client.ocr.process({",
                f"  model: {call.name},",
                f'  document: {{ type: "document_url", documentUrl: {_quoted(DOCUMENT)} }},',
                "});",
                "for (const page of answer.pages) console.log(page.markdown);",
            ),
        ),
    ]


def _speech(call: _Call) -> list[Snippet]:
    said = "Nothing is spent that is not there."
    return [
        Snippet(
            "curl",
            None,
            call.curl("audio/speech", voice="alloy", input=said) + f" \\\n  --output {SPEECH}",
        ),
        Snippet(
            "python",
            "openai",
            call.openai(
                "answer = client.audio.speech.create(",
                f"    model={call.name},",
                '    voice="alloy",',
                f"    input={_quoted(said)},",
                ")",
                f"answer.write_to_file({_quoted(SPEECH)})",
            ),
        ),
        Snippet(
            "javascript",
            "openai",
            call.openai_js(
                "const answer = await client.audio.speech.create({",
                f"  model: {call.name},",
                '  voice: "alloy",',
                f"  input: {_quoted(said)},",
                "});",
                f"await writeFile({_quoted(SPEECH)}, Buffer.from(await answer.arrayBuffer()));",
                more=['import { writeFile } from "node:fs/promises";'],
            ),
        ),
    ]


def _transcriptions(call: _Call) -> list[Snippet]:
    return [
        Snippet("curl", None, call.form("audio/transcriptions", file=f"@{SPEECH}")),
        Snippet(
            "python",
            "openai",
            call.openai(
                f'with open({_quoted(SPEECH)}, "rb") as file:',
                "    answer = client.audio.transcriptions.create(",
                f"        model={call.name},",
                "        file=file,",
                "    )",
                "print(answer.text)",
            ),
        ),
        Snippet(
            "javascript",
            "openai",
            call.openai_js(
                "const answer = await client.audio.transcriptions.create({",
                f"  model: {call.name},",
                f"  file: createReadStream({_quoted(SPEECH)}),",
                "});",
                "console.log(answer.text);",
                more=['import { createReadStream } from "node:fs";'],
            ),
        ),
    ]


def _realtime(call: _Call) -> list[Snippet]:
    session = '{"type": "realtime", "output_modalities": ["text"]}'
    item = json.dumps(
        {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "Say hello in three languages."}],
        }
    )
    options = f"base_url={_quoted(call.base_url + '/v1')}, api_key={_quoted(call.key)}"
    return [
        Snippet(
            "python",
            "openai[realtime]",
            "\n".join(
                [
                    "import asyncio",
                    "",
                    "from openai import AsyncOpenAI",
                    "",
                    f"client = AsyncOpenAI({options})",
                    "",
                    "",
                    "async def main():",
                    f"    async with client.realtime.connect(model={call.name}) as connection:",
                    f"        await connection.session.update(session={session})",
                    "        await connection.conversation.item.create(",
                    f"            item={item}",
                    "        )",
                    "        await connection.response.create()",
                    "        async for event in connection:",
                    '            if event.type == "response.output_text.delta":',
                    '                print(event.delta, end="", flush=True)',
                    '            elif event.type == "error":',
                    "                raise SystemExit(event.error.message)",
                    '            elif event.type == "response.done":',
                    "                break",
                    "",
                    "",
                    "asyncio.run(main())",
                ]
            ),
        ),
        Snippet(
            "javascript",
            "openai, ws",
            call.openai_js(
                f"const connection = new OpenAIRealtimeWS({{ model: {call.name} }}, client);",
                'connection.socket.on("open", () => {',
                f'  connection.send({{ type: "session.update", session: {session} }});',
                f'  connection.send({{ type: "conversation.item.create", item: {item} }});',
                '  connection.send({ type: "response.create" });',
                "});",
                'connection.on("response.output_text.delta", (event) => {',
                "  process.stdout.write(event.delta);",
                "});",
                'connection.on("response.done", () => connection.close());',
                'connection.on("error", (error) => { throw error; });',
                more=['import { OpenAIRealtimeWS } from "openai/realtime/ws";'],
            ),
        ),
    ]


SNIPPETS: Final[dict[str, Callable[[_Call], list[Snippet]]]] = {
    "chat/completions": _chat,
    "embeddings": _embeddings,
    "ocr": _ocr,
    "audio/speech": _speech,
    "audio/transcriptions": _transcriptions,
    "realtime": _realtime,
}
"""One for every row of the data plane's registry (a test compares the two)."""


@get("/snippets", summary="Show how to call one's own models, in lines to paste")
async def my_snippets(
    request: Request[Any, Any, Any],
    desk: NamedDependency[Desk],
    key_hint: FromQuery[str | None] = None,
    model: FromQuery[str | None] = None,
    endpoint: FromQuery[str | None] = None,
) -> SnippetsDocument:
    """`key_hint` narrows it to what one of one's keys opens, and stands where its secret belongs.

    Each endpoint is shown with one model: `model` if it may be called so, or else the first.
    """
    if endpoint is not None and endpoint not in SNIPPETS:
        raise invalid("endpoint", "one_of", "must be one of {known}", known=", ".join(SNIPPETS))
    directory = desk.deps.directory
    await directory.look_again()
    mine = [
        allocation
        for allocation in directory.allocations.values()
        if allocation.member_id == desk.member_id and allocation.status != "revoked"
    ]
    if key_hint is not None:
        opened = await _opened_by(desk, key_hint)
        mine = [allocation for allocation in mine if allocation.id in opened]
    slugs = _models_of(mine)
    if model is not None:
        if model not in slugs:
            raise invalid("model", "model_not_yours", "is no model of yours")
        slugs = [model]
    base_url, key = browser.base_url(request), key_hint or "YOUR_KEY"
    shown: list[EndpointSnippets] = []
    for name, snippets in SNIPPETS.items():
        fit = [slug for slug in slugs if _may_be_called(desk, slug, name)]
        if fit and endpoint in (None, name):
            kind = directory.providers[directory.models[fit[0]].provider_id].kind
            call = _Call(base_url, key, fit[0], kind)
            shown.append(EndpointSnippets(name, fit[0], fit, snippets(call)))
    return SnippetsDocument(base_url, key, shown)


def _models_of(allocations: Sequence[Allocation]) -> list[str]:
    return sorted({slug for allocation in allocations for slug in allocation.models})


def _may_be_called(desk: Desk, slug: str, endpoint: str) -> bool:
    known = desk.deps.directory.models.get(slug)
    return known is not None and (known.endpoints is None or endpoint in known.endpoints)


async def _opened_by(desk: Desk, hint: str) -> set[str]:
    """Return which allocations those keys of one's own open that have this hint."""
    async with desk.deps.database.snapshot() as connection:
        keys = await catalogue.keys.page(
            connection, after=None, limit=KEYS_MAX, equal={"member_id": desk.member_id}
        )
    named = [key for key in keys if key.hint == hint and key.revoked_at is None]
    if not named:
        raise invalid("key_hint", "key_not_yours", "is that of no key of yours")
    return {id for key in named for id in key.allocation_ids}


def snippet_router() -> Router:
    """Make the router of snippets."""
    return Router("/", route_handlers=documented([my_snippets]), tags=["Me"])
