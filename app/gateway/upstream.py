"""Upstream: one shared HTTP client, and how each kind of provider is addressed.

Owns addresses, credential headers and the client's settings; turns the library's errors into two
of ours. Owns no retry: a call that may have reached a provider is not sent twice.

Invariants: the client's key, cookies and query never go upstream; no error of this module carries
an address or a credential.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from urllib.parse import urlencode, urlsplit

from pyreqwest.client import Client, ClientBuilder
from pyreqwest.exceptions import (
    ConnectError,
    PyreqwestError,
    RequestTimeoutError,
)
from pyreqwest.http import Url
from pyreqwest.request import RequestBuilder
from pyreqwest.response import Response, ResponseBodyReader

from app.core.access import Provider
from app.core.looks import Look

AZURE_API_VERSION = "2025-04-01-preview"

LOOK_BYTES_MAX = 4 * 2**20
"""Of a list of models; some have thousands."""


class UpstreamFailed(Exception):
    """The provider could not be reached, or broke off; the text is safe to show."""


class UpstreamTimedOut(Exception):
    """The provider was silent for too long."""


class Upstream:
    """The client that all calls of a process share: connections are pooled per provider."""

    def __init__(self, *, connect_timeout_s: float = 10, silence_s: float = 600) -> None:
        self._client: Client = (
            ClientBuilder()
            .http1_only()
            .no_proxy()
            .follow_redirects(False)
            .referer(False)
            .default_cookie_store(False)
            # Bodies are asked for as they are, and unpacked where they are compressed all the same:
            # what cannot be read cannot be metered, and hides secrets.
            .default_headers({"accept-encoding": "identity"})
            .tcp_nodelay(True)
            .max_connections(None)
            .connect_timeout(timedelta(seconds=connect_timeout_s))
            .read_timeout(timedelta(seconds=silence_s))
            .pool_idle_timeout(timedelta(seconds=30))
            .pool_max_idle_per_host(512)
            .build()
        )
        self._targets: dict[tuple[str, str, str, str], Url] = {}

    async def look(self, provider: Provider, within_s: float) -> Look:
        """Ask a provider which models it has: it costs nothing, and needs the credential."""
        try:
            async with asyncio.timeout(within_s):
                request = self._client.get(models_address(provider))
                for name, value in credential_headers(provider):
                    request = request.header(name, value, is_sensitive=True)
                async with send_streamed(request) as (response, chunks):
                    body = b""
                    while len(body) < LOOK_BYTES_MAX and (chunk := await chunks.next()) is not None:
                        body += chunk
                    return Look(response.status, redact(body, provider))
        except (UpstreamTimedOut, TimeoutError):
            return Look(None, failure=f"The provider did not answer within {within_s:g} s.")
        except UpstreamFailed as error:
            return Look(None, failure=str(error))
        except (PyreqwestError, ValueError):
            return Look(None, failure="The provider's address cannot be called.")

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    def request(
        self,
        provider: Provider,
        path: str,
        model: str,
        headers: Sequence[tuple[str, str]],
        body: bytes,
    ) -> RequestBuilder:
        """Prepare a POST of `body` to an endpoint's path (such as `/chat/completions`)."""
        assert provider.credential is not None, "checked in the exchange"
        where = (provider.kind, provider.base_url, path, model)
        target = self._targets.get(where)
        if target is None:
            # Reading an address costs as much as all else here.
            target = self._targets[where] = Url(address(provider, path, model))
        request = self._client.post(target)
        for name, value in credential_headers(provider):
            request = request.header(name, value, is_sensitive=True)
        for name, value in headers:
            request = request.header(name, value)
        return request.body_bytes(body)


async def send_whole(request: RequestBuilder) -> tuple[Response, bytes]:
    """Send, and read the answer to its end."""
    try:
        response = await request.build().send()
        return response, bytes(await response.bytes())
    except PyreqwestError as error:
        raise _translated(error) from None


@asynccontextmanager
async def send_streamed(request: RequestBuilder) -> AsyncIterator[tuple[Response, "Chunks"]]:
    """Send, and hand over the answer as it comes; leaving closes the connection at once."""
    streamed = request.streamed_read_buffer_limit(0).build_streamed()
    try:
        response = await streamed.__aenter__()
    except PyreqwestError as error:
        raise _translated(error) from None
    try:
        yield response, Chunks(response.body_reader)
    finally:
        await streamed.__aexit__(None, None, None)


def header_of(response: Response, name: str) -> str | None:
    """Return the first header of a name; one that is not ASCII counts as absent."""
    try:
        return response.get_header(name)
    except ValueError:
        # The library shows it in no other way, and no answer is worth less for it.
        return None


class Chunks:
    """The body of a streamed answer, chunk by chunk."""

    def __init__(self, reader: ResponseBodyReader) -> None:
        self._reader = reader

    async def next(self) -> bytes | None:
        """Return the next chunk, or None at the end."""
        try:
            chunk = await self._reader.read_chunk()
        except PyreqwestError as error:
            raise _translated(error) from None
        return None if chunk is None else bytes(chunk)

    async def rest(self) -> bytes:
        """Read what is left."""
        try:
            return bytes(await self._reader.bytes())
        except PyreqwestError as error:
            raise _translated(error) from None


def _translated(error: PyreqwestError) -> UpstreamFailed | UpstreamTimedOut:
    # The library's messages name the address, so none of them goes on.
    # Any silence before the answer begins is to the library one while connecting.
    if isinstance(error, RequestTimeoutError):
        return UpstreamTimedOut()
    if isinstance(error, ConnectError):
        return UpstreamFailed("The provider could not be reached.")
    return UpstreamFailed("The provider closed the connection before the answer was complete.")


def address(provider: Provider, path: str, model: str) -> str:
    """Return the address of an endpoint at a provider.

    A base URL may end in a version (`…/v1`) or be the bare host, to which `/v1` is added. Azure's
    older form puts the deployment into the path; its newer one ends in `/openai/v1`.
    """
    base = provider.base_url.rstrip("/")
    if provider.kind == "azure" and not base.endswith("/v1"):
        root = base if base.endswith("/openai") else f"{base}/openai"
        return f"{root}/deployments/{model}{path}?api-version={AZURE_API_VERSION}"
    return base + path if urlsplit(base).path else f"{base}/v1{path}"


def models_address(provider: Provider) -> str:
    """Return the address at which a provider lists its models."""
    base = provider.base_url.rstrip("/")
    if provider.kind == "azure" and not base.endswith("/v1"):
        root = base if base.endswith("/openai") else f"{base}/openai"
        return f"{root}/models?api-version={AZURE_API_VERSION}"
    return address(provider, "/models", "")


def session_address(provider: Provider, model: str | None) -> str:
    """Return the address of a realtime session; without a model, of one that transcribes.

    OpenAI takes a model or an intent, not both. Azure's older form names the deployment, and none
    for a transcription.
    """
    base = provider.base_url.rstrip("/")
    base = "ws" + base.removeprefix("http")
    query = {"intent": "transcription"} if model is None else {"model": model}
    if provider.kind == "azure" and not base.endswith("/v1"):
        root = base if base.endswith("/openai") else f"{base}/openai"
        if model is not None:
            query = {"deployment": model}
        return f"{root}/realtime?{urlencode({'api-version': AZURE_API_VERSION, **query})}"
    root = base if urlsplit(base).path else f"{base}/v1"
    return f"{root}/realtime?{urlencode(query)}"


def credential_headers(provider: Provider) -> list[tuple[str, str]]:
    """Return the headers that carry the credential of a provider."""
    credential = provider.credential or ""
    match provider.kind:
        case "azure":
            return [("api-key", credential)]
        case "anthropic":
            return [("x-api-key", credential), ("anthropic-version", "2023-06-01")]
        case _:
            return [("authorization", f"Bearer {credential}")]


def redact(data: bytes, provider: Provider) -> bytes:
    """Take the provider's credential and address out of what it said."""
    host = urlsplit(provider.base_url).netloc
    for secret in (provider.credential, provider.base_url, host):
        if secret and secret.encode() in data:
            data = data.replace(secret.encode(), b"[redacted]")
    if provider.credential is not None:
        data = _redact_echo(data, provider.credential.encode())
    return data


def _redact_echo(data: bytes, credential: bytes) -> bytes:
    """Take out a masked echo of the credential, such as `sk-ab***wxyz`."""
    if len(credential) < 8 or b"*" not in data:
        return data
    words = data.split(b"*")
    head, tail = credential[:4], credential[-4:]
    if not any(head in word for word in words) and not any(tail in word for word in words):
        return data
    import re

    pattern = re.compile(re.escape(head) + rb"[^\s\"']*\*+[^\s\"'.,]*")
    data = pattern.sub(b"[redacted]", data)
    return re.sub(rb"\*{2,}[^\s\"']*" + re.escape(tail), b"[redacted]", data)
