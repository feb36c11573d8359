"""Identity provider: whoever members sign in with through OpenID Connect.

Owns what is asked of it over HTTP (its metadata, its keys, a token for a code, what it knows of a
person), and whether it was its key that signed. Owns neither what a token must say nor who that is
(see `core.identities`), and no cookie, no row.

Of the libraries at hand only the one for tokens is used: a client for OAuth would bring a second
HTTP client along, to send one form.

Invariants:

- Only algorithms of public keys are taken, with keys that the provider has published: neither
  `none` nor a key that both sides know.
- Nothing is sent to, or read from, an address that others can listen to on the way.
- Every question is answered or given up within seconds; no answer is read beyond its bound, no
  redirect is followed, and only so many questions are open at a time.
- No error holds a secret, a code, a token, or what the provider wrote but for an error's name.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final, TypeVar
from urllib.parse import quote_plus, urlencode

import msgspec
from joserfc import jwt
from joserfc.errors import InvalidKeyIdError
from joserfc.jwk import JWKRegistry, Key, KeySet
from joserfc.jws import JWSRegistry
from pyreqwest.client import Client, ClientBuilder
from pyreqwest.exceptions import PyreqwestError
from pyreqwest.request import RequestBuilder

from app.settings import is_confidential

T = TypeVar("T")

ALGORITHMS: Final = (
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "ES256",
    "ES384",
    "ES512",
)
KEY_TYPES: Final = ("RSA", "EC")
HEADER_LENGTH_MAX: Final = 8192
"""Of a token: some carry a certificate in it."""

ERRORS: Final = frozenset(
    {
        "access_denied",
        "consent_required",
        "interaction_required",
        "invalid_client",
        "invalid_grant",
        "invalid_request",
        "invalid_scope",
        "login_required",
        "server_error",
        "temporarily_unavailable",
        "unauthorized_client",
        "unsupported_grant_type",
        "unsupported_response_type",
    }
)
"""The standards' own words: of what a provider says, these alone are logged."""

WITHIN_S: Final = 10.0
KEPT_S: Final = 3600.0
ANSWER_BYTES_MAX: Final = 2**20
AT_ONCE: Final = 16


class Unreachable(Exception):
    """The provider does not answer, or not with what it should; the text is safe to log."""


class Unproven(Exception):
    """What came from the provider does not prove who somebody is; the text is safe to log."""


class Metadata(msgspec.Struct, frozen=True):
    """What a provider says of itself (OpenID Connect Discovery)."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str | None = None
    token_endpoint_auth_methods_supported: tuple[str, ...] = ("client_secret_basic",)
    authorization_response_iss_parameter_supported: bool = False


class Keys(msgspec.Struct, frozen=True):
    """The keys that a provider has published."""

    keys: list[dict[str, Any]]


class Tokens(msgspec.Struct, frozen=True):
    """What it gives for a code."""

    id_token: str
    access_token: str = ""


class IdentityProvider:
    """One provider, and what is remembered of it for a while."""

    def __init__(
        self,
        issuer: str,
        client_id: str,
        client_secret: str | None = None,
        *,
        name: str = "SSO",
        scopes: str = "openid email profile",
        within_s: float = WITHIN_S,
    ) -> None:
        self.issuer = issuer
        self.client_id = client_id
        self.name = name
        self._client_secret = client_secret
        self._scopes = scopes
        self._within_s = within_s
        self._metadata: tuple[float, Metadata] | None = None
        self._keys: tuple[float, KeySet] | None = None
        self._learning = asyncio.Lock()
        self._open = asyncio.Semaphore(AT_ONCE)
        self._registry = JWSRegistry(algorithms=ALGORITHMS, strict_check_header=False)
        self._registry.max_header_length = HEADER_LENGTH_MAX
        self._http: Client = (
            ClientBuilder()
            .no_proxy()
            .follow_redirects(False)
            .referer(False)
            .default_cookie_store(False)
            .connect_timeout(timedelta(seconds=within_s))
            .read_timeout(timedelta(seconds=within_s))
            .build()
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._http.close()

    async def address(self, redirect_uri: str, *, state: str, nonce: str, challenge: str) -> str:
        """Return where somebody is sent to sign in. Raises `Unreachable`."""
        async with self._bounded():
            endpoint = (await self._known_metadata()).authorization_endpoint
        query = {
            "response_type": "code",
            "client_id": self.client_id,
            "redirect_uri": redirect_uri,
            "scope": self._scopes,
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(query)}"

    async def redeem(
        self,
        code: str,
        *,
        issuer: str | None,
        verifier: str,
        redirect_uri: str,
        wrong: Callable[[dict[str, Any]], str | None],
    ) -> dict[str, Any]:
        """Return the claims that a code stands for; `issuer` is who says to have issued the code.

        `wrong` tells what is wrong with claims that are signed. Raises `Unreachable` or `Unproven`.
        """
        async with self._bounded():
            metadata = await self._known_metadata()
            named = issuer is not None or metadata.authorization_response_iss_parameter_supported
            if named and issuer != self.issuer:
                raise Unproven("the code is another issuer's")
            tokens = await self._tokens(metadata, code, verifier, redirect_uri)
            claims = await self._signed(metadata, tokens.id_token)
            problem = wrong(claims)
            if problem is not None:
                raise Unproven(f"the ID token is refused: {problem}")
            told = {"email", "email_verified"} <= claims.keys()
            if not told and metadata.userinfo_endpoint is not None and tokens.access_token:
                claims = await self._more(metadata.userinfo_endpoint, tokens, claims)
            return claims

    @asynccontextmanager
    async def _bounded(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._within_s), self._open:
                yield
        except TimeoutError:
            raise Unreachable(f"no answer within {self._within_s:g} s") from None

    async def _tokens(
        self, metadata: Metadata, code: str, verifier: str, redirect_uri: str
    ) -> Tokens:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": verifier,
        }
        request = self._http.post(metadata.token_endpoint)
        methods = metadata.token_endpoint_auth_methods_supported
        if self._client_secret is None:
            form["client_id"] = self.client_id
        elif "client_secret_basic" in methods or "client_secret_post" not in methods:
            # OAuth wants both encoded as in a form first.
            names = quote_plus(self.client_id), quote_plus(self._client_secret)
            request = request.basic_auth(*names)
        else:
            form |= {"client_id": self.client_id, "client_secret": self._client_secret}
        status, body = await self._answer(request.form(form))
        if status in (400, 401, 403):
            raise Unproven(f"no token is given for the code: {status}, {_error_in(body)}")
        return _read(status, body, Tokens)

    async def _signed(self, metadata: Metadata, token: str) -> dict[str, Any]:
        """Return the claims of a token that one of the provider's keys has signed."""
        asked_at = time.monotonic()
        for keys in (await self._known_keys(metadata), None):
            if keys is None:
                # They may have been changed since.
                keys = await self._known_keys(metadata, since=asked_at)
            try:
                return jwt.decode(token, keys, registry=self._registry).claims
            except InvalidKeyIdError:
                continue
            # Whatever a token makes the library stumble over, it is proof of nothing.
            except Exception as error:
                raise Unproven(f"the ID token cannot be read: {type(error).__name__}") from None
        raise Unproven("the ID token is signed with a key that is not published")

    async def _more(self, endpoint: str, tokens: Tokens, claims: dict[str, Any]) -> dict[str, Any]:
        """Return claims with what the provider keeps out of its tokens."""
        request = self._http.get(endpoint).bearer_auth(tokens.access_token)
        said = _read(*await self._answer(request), dict[str, Any])
        if said.get("sub") != claims["sub"]:
            raise Unproven("what is told of the person is about another one")
        # Together: that one address is verified says nothing of another.
        told = {name: said.get(name) for name in ("email", "email_verified")}
        return {"name": said.get("name")} | claims | told

    # What is remembered

    async def _known_metadata(self) -> Metadata:
        async with self._learning:
            now = time.monotonic()
            if self._metadata is None or now - self._metadata[0] > KEPT_S:
                address = f"{self.issuer.removesuffix('/')}/.well-known/openid-configuration"
                found = _read(*await self._answer(self._http.get(address)), Metadata)
                if found.issuer != self.issuer:
                    raise Unreachable("the metadata is another issuer's")
                told = (
                    found.authorization_endpoint,
                    found.token_endpoint,
                    found.jwks_uri,
                    found.userinfo_endpoint or found.jwks_uri,
                )
                if not all(is_confidential(one) for one in told):
                    raise Unreachable("the metadata names an address that is not https")
                self._metadata = now, found
            return self._metadata[1]

    async def _known_keys(self, metadata: Metadata, since: float | None = None) -> KeySet:
        """Return the published keys, as they were at some time; none is older than an hour."""
        async with self._learning:
            now = time.monotonic()
            since = now - KEPT_S if since is None else since
            if self._keys is None or self._keys[0] < since:
                found = _read(*await self._answer(self._http.get(metadata.jwks_uri)), Keys)
                usable = [_key(one) for one in found.keys]
                self._keys = now, KeySet([key for key in usable if key is not None])
            return self._keys[1]

    async def _answer(self, request: RequestBuilder) -> tuple[int, bytes]:
        request = request.header("accept", "application/json")
        try:
            async with request.streamed_read_buffer_limit(0).build_streamed() as response:
                body = b""
                while (chunk := await response.body_reader.read_chunk()) is not None:
                    body += chunk
                    if len(body) > ANSWER_BYTES_MAX:
                        raise Unreachable("an answer is too long")
                return response.status, body
        # The library's messages name the address.
        except (PyreqwestError, ValueError) as error:
            raise Unreachable(type(error).__name__) from None


def error_named(said: object) -> str:
    """Return an error of a provider's, if it is one of the standards'."""
    return said if isinstance(said, str) and said in ERRORS else "an error of no standard"


def _error_in(body: bytes) -> str:
    try:
        return error_named(msgspec.json.decode(body, type=dict[str, Any]).get("error"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return error_named(None)


def _read(status: int, body: bytes, type: type[T]) -> T:
    if status != 200:
        raise Unreachable(f"an answer has status {status}")
    try:
        return msgspec.json.decode(body, type=type)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Unreachable("an answer is not what it should be") from None


def _key(said: dict[str, Any]) -> Key | None:
    """Read a key that signatures can be checked with; None: it is another kind of key."""
    if said.get("kty") not in KEY_TYPES or said.get("use", "sig") != "sig":
        return None
    try:
        return JWKRegistry.import_key(said)
    # One that is broken does not take the others with it.
    except Exception:
        return None
