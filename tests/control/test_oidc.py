"""Members sign in with an identity provider: there and back, and every way in which it is refused."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import httpx2
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from litestar import Litestar
from structlog.testing import capture_logs

from app.control import CONTROL_EXCEPTION_HANDLERS, control_router
from app.control.desk import IdentityRules
from app.identity_provider import ANSWER_BYTES_MAX, AT_ONCE, IdentityProvider
from app.store.database import Database
from tests.control.browser import HOST, PASSWORD, Browser, Town
from tests.control.openid import (
    CLIENT,
    SECRET,
    OpenIdProvider,
    b64,
    ec_jwk,
    es256,
    rs256,
    rsa_jwk,
    rsa_key,
    serve_openid,
)
from tests.gateway.kit import eventually

ID = "0197c5a0-0000-7000-8000-000000000000"
ADA = "ada@example.com"


@pytest.fixture(scope="module")
def running() -> Iterator[OpenIdProvider]:
    with serve_openid() as provider:
        yield provider


@pytest.fixture
def openid(running: OpenIdProvider) -> OpenIdProvider:
    """The provider, honest again."""
    running.secret = SECRET
    running.begin()
    return running


class Doors:
    """Replicas of the control plane that know the provider, and browsers that go there and back."""

    def __init__(self, town: Town, openid: OpenIdProvider) -> None:
        self.town = town
        self.openid = openid
        self.providers: list[IdentityProvider] = []
        self.app = self.replica()

    def replica(
        self,
        *,
        domains: tuple[str, ...] = ("example.com",),
        links: bool = True,
        within_s: float = 5.0,
        clock: Any = None,
        issuer: str | None = None,
        database: Database | None = None,
    ) -> Litestar:
        provider = IdentityProvider(
            issuer or self.openid.issuer,
            CLIENT,
            self.openid.secret,
            name="Example",
            within_s=within_s,
        )
        self.providers.append(provider)
        deps = replace(
            self.town.plane.deps,
            identity_provider=provider,
            identity_rules=IdentityRules(domains, links),
            clock=clock or self.town.plane.deps.clock,
            database=database or self.town.plane.deps.database,
        )
        return Litestar([control_router(deps)], exception_handlers=CONTROL_EXCEPTION_HANDLERS)

    def browser(self, app: Litestar | None = None, **more: Any) -> Browser:
        return self.town.browser(app or self.app, **more)

    async def leave(self, browser: Browser, next: str | None = None) -> httpx2.Response:
        """Begin; the answer leads to the provider."""
        query = "" if next is None else "?" + urlencode({"next": next})
        return await browser.call("GET", f"/auth/oidc/login{query}")

    async def at_provider(self, address: str) -> str:
        """Be who the provider knows; return the address that it leads back to."""
        async with httpx2.AsyncClient() as client:
            answer = await client.get(address)
        assert answer.status_code == 302, answer.text
        return answer.headers["location"]

    async def come_back(self, browser: Browser, location: str) -> httpx2.Response:
        parts = urlsplit(location)
        assert parts.path == "/api/auth/oidc/callback"
        return await browser.client.get(f"{parts.path}?{parts.query}")

    async def through(self, browser: Browser, next: str | None = None) -> httpx2.Response:
        """Go all the way."""
        left = await self.leave(browser, next)
        assert left.status_code == 303
        return await self.come_back(browser, await self.at_provider(left.headers["location"]))

    async def enter(self, browser: Browser, next: str | None = None) -> str:
        """Go all the way, which must succeed; return where it leads."""
        answer = await self.through(browser, next)
        assert answer.status_code == 303
        assert "#" not in answer.headers["location"], answer.headers["location"]
        session = await browser.call("GET", "/auth/session")
        assert session.status_code == 200
        browser.csrf_token = session.json()["csrf_token"]
        return str(answer.headers["location"])

    async def refused(self, browser: Browser, next: str | None = None, page: str = "/") -> str:
        """Go all the way, in vain; return why."""
        return why(await self.through(browser, next), page)


def why(answer: httpx2.Response, page: str = "/") -> str:
    """Return the code with which one is led back to a page."""
    assert answer.status_code == 303
    assert answer.content == b""
    parts = urlsplit(answer.headers["location"])
    assert (parts.scheme, parts.netloc, parts.path) == ("", "", page)
    said = dict(parse_qsl(parts.fragment))
    assert set(said) == {"sign-in", "request-id"}
    assert said["request-id"] == answer.headers["x-request-id"]
    return said["sign-in"]


@pytest.fixture
async def doors(town: Town, openid: OpenIdProvider) -> AsyncIterator[Doors]:
    doors = Doors(town, openid)
    yield doors
    for provider in doors.providers:
        await provider.close()


def members(town: Town) -> list[Any]:
    return town.plane.sql("SELECT email FROM members ORDER BY id")


def without_session(town: Town) -> bool:
    return town.plane.sql("SELECT * FROM member_sessions") == []


# There and back


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_whoever_the_provider_vouches_for_signs_in(doors: Doors, scheme: str) -> None:
    browser = doors.browser(scheme=scheme)
    prefix = "__Host-" if scheme == "https" else ""
    left = await doors.leave(browser, "/calls?outcome=success")
    address = urlsplit(left.headers["location"])
    asked = dict(parse_qsl(address.query))
    assert f"{address.scheme}://{address.netloc}" == doors.openid.issuer
    assert asked["redirect_uri"] == f"{scheme}://{HOST}/api/auth/oidc/callback"
    assert asked["scope"] == "openid email profile"
    assert len({asked["state"], asked["nonce"], asked["code_challenge"]}) == 3
    kept = left.headers["set-cookie"]
    assert kept.startswith(f"{prefix}spendgate-oidc=")
    assert {part.strip().lower() for part in kept.split(";")[1:]} == {
        "path=/", "httponly", "samesite=lax", "max-age=600", *(["secure"] if prefix else [])
    }  # fmt: skip
    # What the browser is told is none of what the provider is to be told later.
    for name in ("state", "nonce"):
        assert asked[name] not in kept
    back = await doors.come_back(browser, await doors.at_provider(left.headers["location"]))
    assert back.status_code == 303
    assert back.headers["location"] == "/calls?outcome=success"
    assert back.headers["cache-control"] == "no-store"
    assert back.headers["referrer-policy"] == "no-referrer"
    assert set(browser.cookies) == {f"{prefix}spendgate"}
    session = (await browser.call("GET", "/auth/session")).json()
    assert session["member"]["email"] == ADA
    assert session["member"]["display_name"] == "Ada Lovelace"
    assert session["member"]["role"] == "member"
    assert session["must_change_password"] is False
    browser.csrf_token = session["csrf_token"]
    assert await browser.status("GET", "/me/allocations") == 200
    assert await browser.status("GET", "/admin/members") == 403
    assert await browser.status("POST", "/auth/logout") == 204
    assert await browser.status("GET", "/auth/session") == 401


async def test_every_way_has_its_own_state_nonce_and_challenge(doors: Doors) -> None:
    seen: set[str] = set()
    for _ in range(3):
        left = await doors.leave(doors.browser())
        asked = dict(parse_qsl(urlsplit(left.headers["location"]).query))
        seen |= {asked["state"], asked["nonce"], asked["code_challenge"]}
    assert len(seen) == 9


async def test_the_page_is_told_whether_there_is_a_provider(doors: Doors) -> None:
    answer = await doors.browser().call("GET", "/auth/oidc")
    assert answer.json() == {"name": "Example"}
    without = doors.town.browser()
    assert (await without.call("GET", "/auth/oidc")).json() == {"name": None}
    for path in ("login", "callback?code=x&state=y"):
        assert await without.status("GET", f"/auth/oidc/{path}") == 404
    # Asking it is not asking the provider.
    assert doors.openid.asked == []


ELSEWHERE: list[str | None] = [
    "//evil.example",
    "/\\evil.example",
    "\\/evil.example",
    "https://evil.example/",
    "/\t/evil.example",
    "javascript:alert(1)",
    "/x\r\nlocation: https://evil.example",
    "/api/auth/oidc/login",
    "",
    None,
]


async def test_nobody_is_led_to_another_site(doors: Doors) -> None:
    for next in ELSEWHERE:
        doors.openid.claims = {}
        assert await doors.enter(doors.browser(), next) == "/", next
        doors.openid.claims = {"nonce": "another"}
        assert await doors.refused(doors.browser(), next) == "unproven", next


async def test_a_cookie_that_somebody_wrote_leads_nowhere(doors: Doors) -> None:
    browser = doors.browser()
    left = await doors.leave(browser, "/keys")
    location = await doors.at_provider(left.headers["location"])
    [(name, value)] = browser.cookies.items()
    token, began, _ = value.split(".")
    for forged in (
        f"{token}.{began}.Ly9ldmls",
        f"{token}.9{began[1:]}.L2tleXM",
        token,
        "",
        "ä.1.x",
    ):
        headers = {"cookie": f"{name}={forged}".encode()}
        answer = await doors.browser().client.get(location.partition(HOST)[2], headers=headers)
        assert why(answer) == "expired"
    assert doors.openid.asked.count("/token") == 0


async def test_another_replica_may_be_the_one_that_is_come_back_to(doors: Doors) -> None:
    browser = doors.browser()
    left = await doors.leave(browser, "/keys")
    location = await doors.at_provider(left.headers["location"])
    other = doors.browser(doors.replica())
    other.client.cookies.update(browser.client.cookies)
    assert (await doors.come_back(other, location)).headers["location"] == "/keys"
    # And what was used at one is used at the other.
    assert why(await doors.come_back(browser, location), "/keys") == "expired"


# States and codes


async def test_the_state_of_another_browser_is_refused(doors: Doors) -> None:
    eve, ada = doors.browser(), doors.browser()
    location = await doors.at_provider((await doors.leave(eve)).headers["location"])
    # Ada has begun nothing, and then something of her own, which goes on.
    assert why(await doors.come_back(ada, location)) == "expired"
    own = await doors.leave(ada)
    assert why(await doors.come_back(ada, location)) == "expired"
    assert without_session(doors.town)
    back = await doors.come_back(ada, await doors.at_provider(own.headers["location"]))
    assert back.headers["location"] == "/"


async def test_a_state_that_is_none_is_refused(doors: Doors) -> None:
    browser = doors.browser()
    await doors.leave(browser)
    for state in (None, "", "x", "ä", "0" * 64):
        query = {"code": "x"} | ({} if state is None else {"state": state})
        answer = await browser.client.get("/api/auth/oidc/callback", params=query)
        assert why(answer) == "expired", state
    for state in ("%ff", "%ed%a0%80", "%00"):
        answer = await browser.client.get(f"/api/auth/oidc/callback?code=x&state={state}")
        assert why(answer) == "expired", state
    assert doors.openid.asked.count("/token") == 0


async def test_parameters_that_come_twice_are_no_failure_of_ours(doors: Doors) -> None:
    browser = doors.browser()
    location = await doors.at_provider((await doors.leave(browser)).headers["location"])
    for more in ("code=x&code=y", "state=x&state=y", "iss=x", "iss=x&iss=y", "error=a&error=b"):
        answer = await doors.come_back(browser, f"{location}&{more}")
        assert answer.status_code in (303, 400), more
    assert without_session(doors.town)


async def test_a_state_and_its_code_are_good_for_once(doors: Doors) -> None:
    browser = doors.browser()
    left = await doors.leave(browser)
    kept = dict(browser.cookies)
    location = await doors.at_provider(left.headers["location"])
    assert (await doors.come_back(browser, location)).headers["location"] == "/"
    assert why(await doors.come_back(browser, location)) == "expired"
    # Nor for a browser that kept its cookie.
    browser.client.cookies.update(kept)
    assert why(await doors.come_back(browser, location)) == "expired"
    assert doors.openid.asked.count("/token") == 1


async def test_of_two_at_the_same_moment_one_comes_back(doors: Doors) -> None:
    browser = doors.browser()
    left = await doors.leave(browser)
    location = await doors.at_provider(left.headers["location"])
    headers = {"cookie": "; ".join(f"{k}={v}" for k, v in browser.cookies.items())}
    path = location.partition(HOST)[2]
    answers = await asyncio.gather(
        *(doors.browser().client.get(path, headers=headers) for _ in range(6))
    )
    led = sorted(answer.headers["location"].partition("&")[0] for answer in answers)
    assert led == ["/", *["/#sign-in=expired"] * 5]
    assert doors.openid.asked.count("/token") == 1


async def test_a_code_that_was_used_is_refused_by_the_provider(doors: Doors) -> None:
    ada, eve = doors.browser(), doors.browser()
    location = await doors.at_provider((await doors.leave(ada)).headers["location"])
    assert (await doors.come_back(ada, location)).headers["location"] == "/"
    await doors.leave(eve)
    # Eve has read the code, and has a state of her own.
    [state] = parse_qs(urlsplit((await doors.leave(eve)).headers["location"]).query)["state"]
    [code] = parse_qs(urlsplit(location).query)["code"]
    answer = await eve.client.get("/api/auth/oidc/callback", params={"code": code, "state": state})
    assert why(answer) == "unproven"
    assert await eve.status("GET", "/auth/session") == 401


async def test_a_code_that_was_stolen_unused_is_of_no_use(doors: Doors) -> None:
    ada, eve = doors.browser(), doors.browser()
    location = await doors.at_provider((await doors.leave(ada)).headers["location"])
    [state] = parse_qs(urlsplit((await doors.leave(eve)).headers["location"]).query)["state"]
    [code] = parse_qs(urlsplit(location).query)["code"]
    answer = await eve.client.get("/api/auth/oidc/callback", params={"code": code, "state": state})
    # The verifier is not the one of the challenge.
    assert why(answer) == "unproven"
    assert without_session(doors.town)


async def test_one_has_ten_minutes(doors: Doors) -> None:
    late = [timedelta()]
    app = doors.replica(clock=lambda: datetime.now(UTC) + late[0])
    for minutes, led in ((9.9, "/"), (10.1, "expired")):
        late[0] = timedelta()
        browser = doors.browser(app)
        left = await doors.leave(browser)
        location = await doors.at_provider(left.headers["location"])
        late[0] = timedelta(minutes=minutes)
        doors.openid.claims = {"exp": 2**40}
        answer = await doors.come_back(browser, location)
        assert led in answer.headers["location"], minutes


async def test_what_was_used_is_forgotten_when_it_has_long_run_out(doors: Doors) -> None:
    await doors.enter(doors.browser())
    doors.town.plane.sql("UPDATE used_states SET at = at - interval '20 minutes'")
    await doors.enter(doors.browser())
    assert doors.town.plane.sql("SELECT count(*) FROM used_states") == [(1,)]


async def test_whoever_changes_their_mind_at_the_provider_is_told(doors: Doors) -> None:
    browser = doors.browser()
    left = await doors.leave(browser, "/keys")
    [state] = parse_qs(urlsplit(left.headers["location"]).query)["state"]
    answer = await browser.client.get(
        "/api/auth/oidc/callback",
        params={
            "state": state,
            "error": "access_denied",
            "error_description": "<script>alert(1)</script>",
        },
    )
    assert why(answer, "/keys") == "declined"
    assert "script" not in str(answer.headers)
    assert browser.cookies == {}


async def test_who_issued_the_code_must_be_the_provider_if_it_says_so(doors: Doors) -> None:
    browser = doors.browser()

    async def with_issuer(issuer: str | None) -> httpx2.Response:
        location = await doors.at_provider((await doors.leave(browser)).headers["location"])
        parts = urlsplit(location)
        query = dict(parse_qsl(parts.query))
        del query["iss"]
        if issuer is not None:
            query["iss"] = issuer
        return await doors.come_back(browser, f"{parts.path}?{urlencode(query)}")

    assert why(await with_issuer("https://evil.example")) == "unproven"
    assert why(await with_issuer("")) == "unproven"
    assert doors.openid.asked.count("/token") == 0
    assert (await with_issuer(None)).headers["location"] == "/"
    # One that says that it always does must do so.
    doors.openid.metadata = {"authorization_response_iss_parameter_supported": True}
    browser = doors.browser(doors.replica())
    assert why(await with_issuer(None)) == "unproven"
    assert (await with_issuer(doors.openid.issuer)).headers["location"] == "/"


# Tokens


UNTRUE: list[dict[str, Any]] = [
    {"nonce": "another"},
    {"nonce": None},
    {"aud": "another"},
    {"aud": None},
    {"aud": [CLIENT, "another"]},
    {"aud": [CLIENT, "another"], "azp": "another"},
    {"iss": "https://evil.example"},
    {"iss": None},
    {"exp": 1_700_000_000},
    {"exp": None},
    {"iat": 4_000_000_000},
    {"iat": None},
    {"sub": ""},
    {"sub": None},
    {"sub": 7},
]


async def test_a_token_that_does_not_say_what_it_must_is_refused(doors: Doors) -> None:
    for claims in UNTRUE:
        doors.openid.claims = claims
        assert await doors.refused(doors.browser()) == "unproven", claims
    assert without_session(doors.town)
    assert members(doors.town) == []


def secret_of_public_key() -> bytes:
    return rsa_key("one").public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def hs256(secret: bytes) -> Callable[[bytes], bytes]:
    return lambda data: hmac.digest(secret, data, "sha256")


FORGED: list[tuple[str, dict[str, Any], Callable[[bytes], bytes]]] = [
    ("none", {"alg": "none"}, lambda _: b""),
    ("none with a key", {"alg": "none", "kid": "one"}, lambda _: b""),
    ("None", {"alg": "None", "kid": "one"}, lambda _: b""),
    ("no alg", {"kid": "one"}, rs256("one")),
    ("HS256, PEM", {"alg": "HS256", "kid": "one"}, hs256(secret_of_public_key())),
    ("HS256, JWK", {"alg": "HS256", "kid": "one"}, hs256(json.dumps(rsa_jwk("one")).encode())),
    ("HS256, client secret", {"alg": "HS256"}, hs256(SECRET.encode())),
    ("another key by the same id", {"alg": "RS256", "kid": "one"}, rs256("two")),
    ("another key", {"alg": "RS256", "kid": "two"}, rs256("two")),
    ("a key of its own", {"alg": "RS256", "kid": "two", "jwk": rsa_jwk("two")}, rs256("two")),
    ("a key elsewhere", {"alg": "RS256", "kid": "x", "jku": "http://127.0.0.1:1"}, rs256("two")),
    ("another algorithm", {"alg": "PS256", "kid": "one"}, rs256("one")),
    ("another kind", {"alg": "ES256", "kid": "one"}, rs256("one")),
    ("no such algorithm", {"alg": "RS1", "kid": "one"}, rs256("one")),
    ("no algorithm at all", {"alg": ["RS256"], "kid": "one"}, rs256("one")),
    ("not signed", {"alg": "RS256", "kid": "one"}, lambda _: b""),
    ("not understood", {"alg": "RS256", "kid": "one", "crit": ["x"], "x": 1}, rs256("one")),
    ("half", {"alg": "RS256", "kid": "one"}, lambda data: rs256("one")(data)[:128]),
]


async def test_a_token_that_the_provider_has_not_signed_is_refused(doors: Doors) -> None:
    for what, header, sign in FORGED:
        doors.openid.header, doors.openid.sign = header, sign
        assert await doors.refused(doors.browser()) == "unproven", what
    assert without_session(doors.town)


async def test_what_is_no_token_is_refused(doors: Doors) -> None:
    for token in ("", "x", "a.b.c", "....", "e30.e30.", "\u0000", "x" * 200_000):
        content = json.dumps({"id_token": token}).encode()
        doors.openid.answers = {"/token": (200, content)}
        assert await doors.refused(doors.browser()) == "unproven", token[:20]


async def test_a_key_that_both_sides_know_is_never_taken(doors: Doors) -> None:
    secret = b"0123456789abcdef0123456789abcdef"
    doors.openid.keys = [
        {"kty": "oct", "kid": "one", "k": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY"}
    ]
    doors.openid.header, doors.openid.sign = {"alg": "HS256", "kid": "one"}, hs256(secret)
    assert await doors.refused(doors.browser()) == "unproven"


async def test_keys_of_the_usual_kinds_are_taken_and_odd_ones_are_no_trouble(doors: Doors) -> None:
    odd = [{"kty": "MLKEM", "kid": "odd"}, {"kty": "RSA", "kid": "half", "n": "AQAB"}, {"kid": "x"}]
    doors.openid.keys = [*odd, rsa_jwk("enc", use="enc"), ec_jwk("curve"), rsa_jwk("one")]
    await doors.enter(doors.browser())
    doors.openid.header, doors.openid.sign = {"alg": "ES256", "kid": "curve"}, es256("curve")
    await doors.enter(doors.browser())
    doors.openid.header, doors.openid.sign = {"alg": "RS256", "kid": "enc"}, rs256("enc")
    assert await doors.refused(doors.browser()) == "unproven"


async def test_a_token_that_names_no_key_is_the_only_ones(doors: Doors) -> None:
    doors.openid.header = {"alg": "RS256"}
    await doors.enter(doors.browser())


async def test_keys_are_remembered_until_one_is_new(doors: Doors) -> None:
    for _ in range(3):
        await doors.enter(doors.browser())
    asked = doors.openid.asked
    assert asked.count("/keys") == asked.count("/.well-known/openid-configuration") == 1
    # It has a new one, and signs with it.
    doors.openid.keys = [rsa_jwk("two")]
    doors.openid.header["kid"], doors.openid.sign = "two", rs256("two")
    await doors.enter(doors.browser())
    assert asked.count("/keys") == 2
    # With the one that it has withdrawn, nobody signs in any more.
    doors.openid.header["kid"], doors.openid.sign = "one", rs256("one")
    assert await doors.refused(doors.browser()) == "unproven"
    assert asked.count("/keys") == 3


# The provider as a server


async def test_the_client_proves_itself_as_the_provider_wants(doors: Doors) -> None:
    doors.openid.metadata = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
    await doors.enter(doors.browser(doors.replica()))
    doors.openid.metadata = {
        "token_endpoint_auth_methods_supported": ["client_secret_post", "client_secret_basic"]
    }
    await doors.enter(doors.browser(doors.replica()))
    doors.openid.secret = None
    await doors.enter(doors.browser(doors.replica()))
    doors.openid.secret = "another"
    assert await doors.refused(doors.browser()) == "unproven"


async def test_what_is_not_in_the_token_is_asked_for(doors: Doors) -> None:
    doors.openid.in_token = False
    browser = doors.browser()
    await doors.enter(browser)
    member = (await browser.call("GET", "/auth/session")).json()["member"]
    assert (member["email"], member["display_name"]) == (ADA, "Ada Lovelace")
    doors.openid.info = {"sub": "eve-1"}
    assert await doors.refused(doors.browser()) == "unproven"


async def test_that_one_address_is_verified_says_nothing_of_another(doors: Doors) -> None:
    doors.openid.claims = {"email": "root@example.com", "email_verified": None}
    browser = doors.browser()
    await doors.enter(browser)
    assert (await browser.call("GET", "/auth/session")).json()["member"]["email"] == ADA


async def test_a_provider_that_is_away_keeps_nobody_from_their_password(
    doors: Doors, openid: OpenIdProvider
) -> None:
    ada = await doors.town.somebody(email=ADA)
    nowhere = doors.browser(doors.replica(issuer="http://127.0.0.1:9"))
    assert why(await doors.leave(nowhere, "/keys"), "/keys") == "unreachable"
    assert (await nowhere.call("GET", "/auth/oidc")).json() == {"name": "Example"}
    assert (await nowhere.log_in(ada.email, PASSWORD)).status_code == 200
    # It goes away while somebody is there.
    browser = doors.browser()
    left = await doors.leave(browser)
    location = await doors.at_provider(left.headers["location"])
    openid.answers = {"/token": (503, b"<h1>down for maintenance</h1>")}
    assert why(await doors.come_back(browser, location)) == "unreachable"
    assert (await browser.log_in(ada.email, PASSWORD)).status_code == 200
    # And comes back.
    openid.answers = {}
    await doors.enter(doors.browser())


NO_ANSWERS = [
    ("/.well-known/openid-configuration", 404, b"{}"),
    ("/.well-known/openid-configuration", 200, b"{}"),
    ("/.well-known/openid-configuration", 200, b"<html>"),
    ("/.well-known/openid-configuration", 200, b"[" * 100_000),
    ("/.well-known/openid-configuration", 200, b" " * (ANSWER_BYTES_MAX + 1)),
    ("/keys", 500, b""),
    ("/keys", 200, b'{"keys": {}}'),
    ("/keys", 200, b"\xff"),
    ("/token", 302, b""),
    ("/token", 200, b"{}"),
    ("/token", 200, b'{"id_token": null}'),
    ("/token", 200, b"x" * (ANSWER_BYTES_MAX + 1)),
]


async def test_an_answer_that_is_none_is_as_good_as_no_answer(doors: Doors) -> None:
    for path, status, content in NO_ANSWERS:
        browser = doors.browser(doors.replica())
        doors.openid.answers = {path: (status, content)}
        if path.startswith("/.well-known"):
            found = why(await doors.leave(browser))
        else:
            found = await doors.refused(browser)
        assert found == "unreachable", f"{path} {content[:20]!r}"
        # It is asked again the next time.
        doors.openid.answers = {}
        await doors.enter(browser)


ASTRAY = [
    {"issuer": "https://evil.example"},
    {"token_endpoint": "http://evil.example/token"},
    {"authorization_endpoint": "javascript:alert(1)"},
    {"jwks_uri": "file:///etc/passwd"},
    {"userinfo_endpoint": "http://10.0.0.1/"},
]


async def test_metadata_that_leads_astray_is_not_followed(doors: Doors) -> None:
    for metadata in ASTRAY:
        doors.openid.metadata = metadata
        assert why(await doors.leave(doors.browser())) == "unreachable", metadata


async def test_a_slow_provider_is_not_waited_for_and_holds_nothing_meanwhile(doors: Doors) -> None:
    app = doors.replica(within_s=2.0)
    ada = await doors.town.somebody(email=ADA)
    browsers = [doors.browser(app) for _ in range(24)]
    back = []
    for browser in browsers:
        left = await doors.leave(browser)
        back.append(await doors.at_provider(left.headers["location"]))
    doors.openid.slow_s = 4.0
    waiting = asyncio.gather(
        *(doors.come_back(b, location) for b, location in zip(browsers, back, strict=True))
    )
    # More than there are connections to the database.
    asked = doors.openid.asked
    await asyncio.to_thread(
        eventually, lambda: asked.count("/token") == AT_ONCE, within=2, what="all turns taken"
    )
    began = asyncio.get_running_loop().time()
    assert (await doors.browser(app).log_in(ada.email, PASSWORD)).status_code == 200
    assert asyncio.get_running_loop().time() - began < 1
    assert {why(answer) for answer in await waiting} == {"unreachable"}


async def test_a_database_that_is_away_is_told_of_on_the_page(doors: Doors) -> None:
    away = Database("postgresql://127.0.0.1:9/nowhere")
    browser = doors.browser(doors.replica(database=away))
    assert await doors.refused(browser, "/keys", "/keys") == "again"
    await away.close()


async def test_nothing_of_the_provider_is_shown_and_errors_are_logged_by_name_alone(
    doors: Doors,
) -> None:
    for body, named in (
        (b'{"error": "invalid_client", "error_description": "hunter2"}', "400, invalid_client"),
        (b'{"error": "hunter2"}', "400, an error of no standard"),
        (b'{"error": ["hunter2"]}', "400, an error of no standard"),
        (b"hunter2 \xff", "400, an error of no standard"),
    ):
        doors.openid.answers = {"/token": (400, body)}
        browser = doors.browser()
        left = await doors.leave(browser)
        location = await doors.at_provider(left.headers["location"])
        with capture_logs() as lines:
            answer = await doors.come_back(browser, location)
        assert why(answer) == "unproven"
        [line] = [line for line in lines if line["event"] == "oidc_refused"]
        assert line["why"] == "unproven"
        assert line["cause"] == f"no token is given for the code: {named}"
        assert line["request_id"] == answer.headers["x-request-id"]
        query = dict(parse_qsl(urlsplit(location).query))
        for secret in (SECRET, query["code"], query["state"], "hunter2"):
            assert secret not in str(lines)
            assert secret not in str(answer.headers)


# Who it is


async def test_a_domain_of_ours_makes_a_member_and_it_is_written_down(doors: Doors) -> None:
    browser = doors.browser()
    await doors.enter(browser)
    [(id, role, has_password)] = doors.town.plane.sql(
        "SELECT id::text, role, password_hash IS NOT NULL FROM members"
    )
    assert (role, has_password) == ("member", False)
    registered, linked = await doors.town.plane.events(id)
    assert (registered["event"], linked["event"]) == ("member_registered", "identity_linked")
    assert registered["after"]["email"] == ADA
    assert linked["after"] == {"issuer": doors.openid.issuer, "subject": "ada-1", "email": ADA}
    for event in (registered, linked):
        assert (event["actor"], event["actor_id"], event["object"]) == (ADA, id, "member")
        assert event["request_id"]
    # The second time is nothing new.
    await doors.enter(doors.browser())
    assert len(await doors.town.plane.events(id)) == 2
    assert len(members(doors.town)) == 1


NO_MEMBERS: list[tuple[dict[str, Any], str]] = [
    ({"email_verified": False}, "unverified"),
    ({"email_verified": None}, "unverified"),
    ({"email": None}, "unverified"),
    ({"email": "ada@example.org"}, "unknown"),
    ({"email": "ada@sub.example.com"}, "unknown"),
    ({"email": "ada@example.com.evil.example"}, "unknown"),
    ({"email": "ada@notexample.com"}, "unknown"),
    ({"email": "eve@evil.example@example.com"}, "unverified"),
    ({"email": "ada@example.com\n"}, "unverified"),
]


async def test_nobody_else_becomes_a_member(doors: Doors) -> None:
    honest = dict(doors.openid.person)
    for person, refused in NO_MEMBERS:
        doors.openid.person = honest | person
        assert await doors.refused(doors.browser()) == refused, person
    assert members(doors.town) == []
    assert doors.town.plane.sql("SELECT * FROM identities") == []


async def test_a_member_is_linked_by_their_verified_address(doors: Doors) -> None:
    ada = await doors.town.somebody("admin", email="Ada@Example.com")
    doors.openid.person["email_verified"] = False
    assert await doors.refused(doors.browser()) == "unverified"
    doors.openid.person["email_verified"] = True
    browser = doors.browser(doors.replica(domains=()))
    await doors.enter(browser)
    assert (await browser.call("GET", "/auth/session")).json()["member"]["id"] == ada.member["id"]
    assert await browser.status("GET", "/admin/members") == 200
    assert [e["event"] for e in await doors.town.plane.events(ada.member["id"])] == [
        "member_created",
        "identity_linked",
    ]
    # Both ways are theirs.
    await ada.log_in()


async def test_whoever_is_linked_is_known_whatever_their_address(doors: Doors) -> None:
    await doors.enter(doors.browser())
    [(id,)] = doors.town.plane.sql("SELECT id::text FROM members")
    doors.openid.person |= {"email": "lovelace@example.org", "email_verified": False}
    browser = doors.browser()
    await doors.enter(browser)
    assert (await browser.call("GET", "/auth/session")).json()["member"]["id"] == id
    # Here it is another one by now, and their old one is somebody else's.
    await doors.town.plane.ok("PATCH", f"/admin/members/{id}", {"email": "new@example.com"})
    await doors.town.plane.member(email=ADA)
    doors.openid.person |= {"email": ADA, "email_verified": True}
    browser = doors.browser()
    await doors.enter(browser)
    assert (await browser.call("GET", "/auth/session")).json()["member"]["id"] == id


async def test_a_second_subject_with_the_same_address_is_refused(doors: Doors) -> None:
    await doors.enter(doors.browser())
    doors.openid.person["sub"] = "eve-1"
    browser = doors.browser()
    assert await doors.refused(browser) == "taken"
    assert await browser.status("GET", "/auth/session") == 401
    assert len(doors.town.plane.sql("SELECT * FROM identities")) == 1


async def test_the_same_subject_of_another_issuer_is_somebody_else(doors: Doors) -> None:
    await doors.enter(doors.browser())
    doors.town.plane.sql("UPDATE identities SET issuer = 'https://former.example'")
    browser = doors.browser(doors.replica(links=False))
    assert await doors.refused(browser) == "unlinked"


async def test_members_are_not_linked_where_that_is_turned_off(doors: Doors) -> None:
    ada = await doors.town.somebody(email=ADA)
    browser = doors.browser(doors.replica(links=False))
    assert await doors.refused(browser) == "unlinked"
    doors.openid.person |= {"sub": "bob-1", "email": "bob@example.com"}
    await doors.enter(doors.browser(doors.replica(links=False)))
    await ada.log_in()


async def test_a_member_who_is_disabled_is_refused(doors: Doors) -> None:
    browser = doors.browser()
    await doors.enter(browser)
    [(id,)] = doors.town.plane.sql("SELECT id::text FROM members")
    await doors.town.plane.ok("PATCH", f"/admin/members/{id}", {"status": "disabled"})
    assert await browser.status("GET", "/auth/session") == 401
    assert await doors.refused(doors.browser()) == "disabled"
    await doors.town.plane.ok("PATCH", f"/admin/members/{id}", {"status": "active"})
    await doors.enter(doors.browser())
    # Nor is one linked who is.
    bob = await doors.town.plane.member(email="bob@example.com")
    await doors.town.plane.ok("PATCH", f"/admin/members/{bob['id']}", {"status": "disabled"})
    doors.openid.person |= {"sub": "bob-1", "email": "bob@example.com"}
    assert await doors.refused(doors.browser()) == "disabled"
    assert len(doors.town.plane.sql("SELECT * FROM identities")) == 1


async def test_many_who_come_for_the_first_time_at_once_are_one_member(doors: Doors) -> None:
    apps = [doors.app, doors.replica()]
    answers = await asyncio.gather(*(doors.through(doors.browser(apps[n % 2])) for n in range(8)))
    assert {answer.headers["location"] for answer in answers} == {"/"}
    assert members(doors.town) == [(ADA,)]


# Sessions


async def test_the_session_of_before_is_not_kept(doors: Doors) -> None:
    eve = await doors.town.somebody()
    browser = doors.browser()
    await browser.log_in(eve.email, PASSWORD)
    before = browser.cookies["spendgate"]
    await doors.enter(browser)
    assert browser.cookies["spendgate"] != before
    for token, status in ((before, 401), (browser.cookies["spendgate"], 200)):
        answer = await doors.browser().call("GET", "/auth/session", cookie=f"spendgate={token}")
        assert answer.status_code == status
    # A cookie that somebody planted becomes nobody's session.
    planted = doors.browser()
    planted.client.cookies.set("spendgate", "planted", domain=HOST)
    await doors.enter(planted)
    answer = await doors.browser().call("GET", "/auth/session", cookie="spendgate=planted")
    assert answer.status_code == 401


async def test_who_comes_in_vain_stays_in_the_session_they_are_in(doors: Doors) -> None:
    eve = await doors.town.somebody()
    browser = doors.browser()
    await browser.log_in(eve.email, PASSWORD)
    doors.openid.claims = {"nonce": "another"}
    assert await doors.refused(browser) == "unproven"
    assert (await browser.call("GET", "/auth/session")).json()["member"]["email"] == eve.email


async def test_sessions_are_listed_and_ended_like_others(doors: Doors) -> None:
    here, there = doors.browser(), doors.browser(address="192.0.2.77")
    await doors.enter(here)
    await doors.enter(there)
    sessions = (await here.call("GET", "/auth/sessions")).json()["items"]
    assert [(s["address"], s["current"]) for s in sessions] == [
        ("192.0.2.77", False),
        ("192.0.2.1", True),
    ]
    assert await here.status("DELETE", f"/auth/sessions/{sessions[0]['id']}", csrf=None) == 403
    assert await here.status("DELETE", f"/auth/sessions/{sessions[0]['id']}") == 204
    assert await there.status("GET", "/auth/session") == 401


async def test_who_has_no_password_is_told_how_they_sign_in(doors: Doors) -> None:
    browser = doors.browser()
    await doors.enter(browser)
    ways = (await browser.call("GET", "/auth/ways")).json()
    [identity] = ways["identities"]
    assert ways["has_password"] is False
    assert (identity["name"], identity["issuer"]) == ("Example", doors.openid.issuer)
    assert identity["subject"] == "ada-1"
    body = {"current_password": "anything at all", "new_password": "another password"}
    answer = await browser.call("POST", "/auth/password", body)
    assert answer.status_code == 409
    assert "you have no password" in answer.json()["detail"]
    # That was no try.
    assert doors.town.plane.sql("SELECT * FROM sign_in_failures") == []
    ada = await doors.town.inside()
    assert (await ada.browser.call("GET", "/auth/ways")).json() == {
        "has_password": True,
        "identities": [],
    }


async def test_a_password_that_must_be_changed_is_no_matter_to_who_came_without_it(
    doors: Doors,
) -> None:
    ada = await doors.town.somebody(email=ADA, must_change_password=True)
    browser = doors.browser()
    await doors.enter(browser)
    assert (await browser.call("GET", "/auth/session")).json()["must_change_password"] is False
    assert await browser.status("GET", "/me/allocations") == 200
    # Who comes with it has to, as before.
    assert (await ada.log_in())["must_change_password"] is True
    assert await ada.browser.status("GET", "/me/allocations") == 403


# What admins see, and take away


async def test_an_admin_takes_an_identity_away_and_its_sessions_end(doors: Doors) -> None:
    ada = await doors.town.inside(email=ADA)
    browser = doors.browser()
    await doors.enter(browser)
    plane, path = doors.town.plane, f"/admin/members/{ada.member['id']}/identities"
    page = await plane.ok("GET", path)
    [identity] = page["items"]
    assert page["next"] is None
    # This replica knows of no provider.
    assert identity["name"] == identity["issuer"] == doors.openid.issuer
    other = await plane.member()
    elsewhere = f"/admin/members/{other['id']}/identities/{identity['id']}"
    assert (await plane.call("DELETE", elsewhere)).status_code == 404
    assert (await plane.call("DELETE", f"{path}/{identity['id']}")).status_code == 204
    assert (await plane.call("DELETE", f"{path}/{identity['id']}")).status_code == 404
    assert await browser.status("GET", "/auth/session") == 401
    assert await ada.browser.status("GET", "/auth/session") == 200
    assert (await plane.ok("GET", path))["items"] == []
    assert (await plane.call("GET", f"/admin/members/{ID}/identities")).status_code == 404
    assert [e["event"] for e in await plane.events(ada.member["id"])] == [
        "member_created",
        "identity_linked",
        "identity_unlinked",
        "sessions_revoked",
    ]
    # Somebody who has a new account there is let in again.
    doors.openid.person["sub"] = "ada-2"
    await doors.enter(doors.browser())


async def test_members_see_and_take_away_no_identities_of_others(doors: Doors) -> None:
    browser = doors.browser()
    await doors.enter(browser)
    [(id, identity)] = doors.town.plane.sql("SELECT member_id::text, id::text FROM identities")
    eve, auditor = await doors.town.inside(), await doors.town.inside("auditor")
    path = f"/admin/members/{id}/identities"
    assert await eve.browser.status("GET", path) == 403
    assert await auditor.browser.status("GET", path) == 200
    for somebody in (eve, auditor):
        assert await somebody.browser.status("DELETE", f"{path}/{identity}") == 403


def test_the_digests_of_tests_are_those_of_the_standard() -> None:
    """The example of RFC 7636, appendix B, so that the provider here is as strict as it says."""
    verifier = b"dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
    assert b64(hashlib.sha256(verifier).digest()) == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
