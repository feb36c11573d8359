"""A small OpenID provider on loopback: it does as the standards say, unless told to lie.

It signs by hand, with none of the libraries that the tokens are read with, and is as strict about
codes, addresses, clients and PKCE as a provider has to be.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote_plus, urlencode, urlsplit

from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

CLIENT = "spendgate"
SECRET = "a secret + that & needs: encoding"

Json = dict[str, Any]
Signature = Callable[[bytes], bytes]


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


@functools.cache
def rsa_key(name: str) -> rsa.RSAPrivateKey:
    """A key of this name; they are costly to make."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def rsa_jwk(name: str, **more: Any) -> Json:
    numbers = rsa_key(name).public_key().public_numbers()
    size = (numbers.n.bit_length() + 7) // 8
    modulus, exponent = numbers.n.to_bytes(size), numbers.e.to_bytes(3)
    return {"kty": "RSA", "kid": name, "use": "sig", "n": b64(modulus), "e": b64(exponent)} | more


def rs256(name: str) -> Signature:
    return lambda data: rsa_key(name).sign(data, padding.PKCS1v15(), SHA256())


@functools.cache
def ec_key(name: str) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def ec_jwk(name: str) -> Json:
    point = ec_key(name).public_key().public_numbers()
    x, y = point.x.to_bytes(32), point.y.to_bytes(32)
    return {"kty": "EC", "crv": "P-256", "kid": name, "x": b64(x), "y": b64(y)}


def es256(name: str) -> Signature:
    def sign(data: bytes) -> bytes:
        r, s = decode_dss_signature(ec_key(name).sign(data, ec.ECDSA(SHA256())))
        return r.to_bytes(32) + s.to_bytes(32)

    return sign


def token(header: Json, claims: Json, sign: Signature) -> str:
    """Sign claims, whatever they are."""
    text = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(claims).encode())}"
    return f"{text}.{b64(sign(text.encode()))}"


class OpenIdProvider:
    """The provider: who signs in, and what it is to say instead of the truth."""

    def __init__(self) -> None:
        self.secret: str | None = SECRET
        self.issuer = ""
        self.begin()

    def begin(self) -> None:
        """Be honest, with one key, and somebody who signs in at once."""
        self.person: Json = {
            "sub": "ada-1",
            "email": "ada@example.com",
            "email_verified": True,
            "name": "Ada Lovelace",
        }
        self.keys: list[Json] = [rsa_jwk("one")]
        self.header: Json = {"alg": "RS256", "kid": "one", "typ": "JWT"}
        self.sign: Signature = rs256("one")
        self.claims: Json = {}
        """Instead of the true ones; None leaves one out."""
        self.metadata: Json = {}
        self.answers: dict[str, tuple[int, bytes]] = {}
        """By path, instead of the true ones."""
        self.in_token = True
        """Whether the person is described in the token, or only to who asks further."""
        self.info: Json = {}
        self.slow_s = 0.0
        self.asked: list[str] = []
        self.grants: dict[str, Json] = {}

    # What it answers

    def get(self, path: str, query: Json, headers: Any) -> tuple[int, Json | str]:
        match path:
            case "/.well-known/openid-configuration":
                return 200, self._metadata()
            case "/keys":
                return 200, {"keys": self.keys}
            case "/authorize":
                return self._authorize(query)
            case "/userinfo":
                bearer = headers.get("authorization", "")
                known = bearer == "Bearer " + hashlib.sha256(b"access").hexdigest()
                return (200, self.person | self.info) if known else (401, {})
        return 404, {}

    def _metadata(self) -> Json:
        return {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "userinfo_endpoint": f"{self.issuer}/userinfo",
            "jwks_uri": f"{self.issuer}/keys",
            "response_types_supported": ["code"],
            "code_challenge_methods_supported": ["S256"],
        } | self.metadata

    def _authorize(self, query: Json) -> tuple[int, Json | str]:
        fits = (
            query.get("response_type") == "code"
            and query.get("client_id") == CLIENT
            and "openid" in query.get("scope", "").split()
            and query.get("code_challenge_method") == "S256"
            and len(query.get("code_challenge", "")) == 43
            and query.get("redirect_uri", "").endswith("/api/auth/oidc/callback")
        )
        if not fits:
            return 400, {"error": "invalid_request"}
        code = secrets.token_urlsafe(16)
        self.grants[code] = query
        answer = {"code": code, "state": query["state"], "iss": self.issuer}
        return 302, f"{query['redirect_uri']}?{urlencode(answer)}"

    def post(self, path: str, form: Json, headers: Any) -> tuple[int, Json]:
        if path != "/token" or not self._is_client(form, headers):
            return 401, {"error": "invalid_client", "error_description": "<b>who are you</b>"}
        # A code is good for one try.
        grant = self.grants.pop(form.get("code", ""), None)
        challenge = b64(hashlib.sha256(form.get("code_verifier", "").encode()).digest())
        if (
            grant is None
            or form.get("grant_type") != "authorization_code"
            or form.get("redirect_uri") != grant["redirect_uri"]
            or challenge != grant["code_challenge"]
        ):
            return 400, {"error": "invalid_grant"}
        now = int(time.time())
        person = self.person if self.in_token else {"sub": self.person["sub"]}
        true = {
            "iss": self.issuer,
            "aud": CLIENT,
            "iat": now,
            "exp": now + 300,
            "nonce": grant["nonce"],
        }
        claims = {k: v for k, v in (true | person | self.claims).items() if v is not None}
        return 200, {
            "access_token": hashlib.sha256(b"access").hexdigest(),
            "token_type": "Bearer",
            "id_token": token(self.header, claims, self.sign),
        }

    def _is_client(self, form: Json, headers: Any) -> bool:
        methods = self.metadata.get("token_endpoint_auth_methods_supported", [])
        if self.secret is None:
            return form.get("client_id") == CLIENT and "client_secret" not in form
        if methods == ["client_secret_post"]:
            return (form.get("client_id"), form.get("client_secret")) == (CLIENT, self.secret)
        scheme, _, encoded = headers.get("authorization", "").partition(" ")
        said = base64.b64decode(encoded).decode().split(":") if scheme == "Basic" else []
        return [unquote_plus(part) for part in said] == [CLIENT, self.secret]


@contextmanager
def serve_openid(host: str = "127.0.0.1") -> Iterator[OpenIdProvider]:
    """Run a provider in a thread; `localhost` is another site to a browser."""
    provider = OpenIdProvider()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            self.answer(
                lambda: provider.get(parts.path, dict(parse_qsl(parts.query)), self.headers)
            )

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            form = dict(parse_qsl(body, keep_blank_values=True))
            self.answer(lambda: provider.post(self.path, form, self.headers))

        def answer(self, answer: Callable[[], tuple[int, Json | str]]) -> None:
            path = urlsplit(self.path).path
            provider.asked.append(path)
            time.sleep(provider.slow_s)
            status, content = provider.answers.get(path) or answer()
            if isinstance(content, dict):
                content = json.dumps(content).encode()
            location = content if isinstance(content, str) else None
            body = b"" if isinstance(content, str) else content
            self.send_response(status)
            if location is not None:
                self.send_header("location", location)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        # Who hangs up in the middle is no concern of the tests'.
        def handle_error(self, *_: Any) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    provider.issuer = f"http://{host}:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield provider
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
