"""Identities: a token says what it must, and who comes with it is one member, or none."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from app.core.identities import (
    Enter,
    Known,
    Link,
    Person,
    Refuse,
    Register,
    decide,
    own_page,
    person,
    untrue,
)

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOW = int(AT.timestamp())
ISSUER = "https://id.example.com"
TRUE: dict[str, Any] = {
    "iss": ISSUER,
    "sub": "ada-1",
    "aud": "spendgate",
    "exp": NOW + 300,
    "iat": NOW,
    "nonce": "n",
}


def wrong_with(**claims: Any) -> str | None:
    said = {k: v for k, v in (TRUE | claims).items() if v is not ...}
    return untrue(said, issuer=ISSUER, client_id="spendgate", nonce="n", at=AT)


@pytest.mark.parametrize(
    "claims",
    [
        {},
        {"aud": ["spendgate"]},
        {"azp": "spendgate"},
        {"aud": ["a project", "spendgate"], "azp": "spendgate"},
        {"exp": NOW - 59},
        {"exp": NOW + 0.5},
        {"iat": NOW + 59},
        {"nbf": NOW + 59},
        {"sub": "x" * 255},
        {"anything": {"else": 1}},
    ],
)
def test_claims_that_are_true(claims: dict[str, Any]) -> None:
    assert wrong_with(**claims) is None


@pytest.mark.parametrize(
    ("claims", "wrong"),
    [
        ({"iss": "https://id.example.com/"}, "another issuer's"),
        ({"iss": "https://evil.example"}, "another issuer's"),
        ({"sub": ""}, "names nobody"),
        ({"sub": "x" * 256}, "names nobody"),
        ({"sub": "a\x00b"}, "names nobody"),
        ({"aud": "another"}, "for somebody else"),
        ({"aud": []}, "for somebody else"),
        ({"aud": ["another", "spendgate2"]}, "for somebody else"),
        ({"azp": "another"}, "given to somebody else"),
        ({"aud": ["spendgate", "another"], "azp": "another"}, "given to somebody else"),
        ({"aud": ["spendgate", "another"]}, "does not say whom"),
        ({"nonce": "m"}, "not of this sign-in"),
        ({"nonce": ""}, "not of this sign-in"),
        ({"exp": NOW - 60}, "has expired"),
        ({"exp": 0}, "has expired"),
        ({"iat": NOW + 60}, "from the future"),
        ({"nbf": NOW + 60}, "does not hold yet"),
        *(({name: ...}, "missing") for name in TRUE),
        *(({name: None}, "missing") for name in TRUE),
        ({"sub": 1}, "missing"),
        ({"aud": [1]}, "missing"),
        ({"exp": "soon"}, "missing"),
        ({"exp": True}, "missing"),
        ({"azp": ["spendgate"]}, "missing"),
    ],
)
def test_claims_that_are_not(claims: dict[str, Any], wrong: str) -> None:
    found = wrong_with(**claims)
    assert found is not None
    assert wrong in found


@pytest.mark.parametrize(
    ("claims", "email"),
    [
        ({"email": "ada@example.com", "email_verified": True}, "ada@example.com"),
        ({"email": "ada@example.com", "email_verified": "true"}, "ada@example.com"),
        ({"email": "Ada+x@example.com", "email_verified": True}, "Ada+x@example.com"),
        ({"email": "ada@example.com", "email_verified": False}, None),
        ({"email": "ada@example.com", "email_verified": "false"}, None),
        ({"email": "ada@example.com", "email_verified": 1}, None),
        ({"email": "ada@example.com"}, None),
        ({"email_verified": True}, None),
        ({"email": None, "email_verified": True}, None),
        ({"email": ["ada@example.com"], "email_verified": True}, None),
        ({"email": "ada", "email_verified": True}, None),
        ({"email": "ada@", "email_verified": True}, None),
        ({"email": "eve@evil.example@example.com", "email_verified": True}, None),
        ({"email": "ada@example.com\n", "email_verified": True}, None),
        ({"email": " ada@example.com", "email_verified": True}, None),
        # A Kelvin sign is a k in lower case, and somebody else's address.
        ({"email": "\u212aate@example.com", "email_verified": True}, None),
        ({"email": "ada@exampl\u0435.com", "email_verified": True}, None),
    ],
)
def test_an_address_counts_when_the_provider_has_verified_it(
    claims: dict[str, Any], email: str | None
) -> None:
    assert person(ISSUER, TRUE | claims).email == email


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Ada Lovelace", "Ada Lovelace"),
        (" Ada\n\u202eecalevoL ", "AdaecalevoL"),
        ("y" * 300, "y" * 200),
        (None, ""),
        (7, ""),
    ],
)
def test_a_name_is_what_can_be_shown_of_it(name: Any, shown: str) -> None:
    assert person(ISSUER, TRUE | {"name": name}) == Person(ISSUER, "ada-1", None, shown)


ADA = Person(ISSUER, "ada-1", "ada@example.com", "Ada")
NO_ADDRESS = Person(ISSUER, "ada-1", None, "Ada")
ACTIVE = Known("m1", "active", False)
LINKED = Known("m1", "active", True)
DISABLED = Known("m1", "disabled", False)
OURS, NOT_OURS = ("example.com",), ("example.org", "le.com", "sub.example.com", "com")

# who               holder    namesake  domains   links  then
SCENARIOS: list[tuple[Any, ...]] = [
    (ADA, LINKED, None, (), True, Enter("m1")),
    # A subject is enough: the address may be another one by now, or nobody's.
    (NO_ADDRESS, LINKED, None, (), False, Enter("m1")),
    (ADA, LINKED, Known("m2", "active", True), (), False, Enter("m1")),
    (ADA, Known("m1", "disabled", True), None, OURS, True, Refuse("disabled")),
    (ADA, None, ACTIVE, (), True, Link("m1")),
    (ADA, None, ACTIVE, OURS, True, Link("m1")),
    (ADA, None, ACTIVE, OURS, False, Refuse("unlinked")),
    (ADA, None, LINKED, OURS, True, Refuse("taken")),
    (ADA, None, LINKED, OURS, False, Refuse("taken")),
    (ADA, None, DISABLED, OURS, True, Refuse("disabled")),
    (ADA, None, Known("m1", "disabled", True), OURS, True, Refuse("disabled")),
    (ADA, None, None, OURS, True, Register("ada@example.com")),
    (ADA, None, None, OURS, False, Register("ada@example.com")),
    (ADA, None, None, (), True, Refuse("unknown")),
    (ADA, None, None, NOT_OURS, True, Refuse("unknown")),
    (NO_ADDRESS, None, None, OURS, True, Refuse("unverified")),
]


@pytest.mark.parametrize(("one", "holder", "namesake", "domains", "links", "then"), SCENARIOS)
def test_who_somebody_is(
    one: Person,
    holder: Known | None,
    namesake: Known | None,
    domains: tuple[str, ...],
    links: bool,
    then: object,
) -> None:
    assert decide(one, holder=holder, namesake=namesake, domains=domains, links=links) == then


def test_a_domain_is_the_same_in_whatever_case_it_is_written() -> None:
    one = Person(ISSUER, "ada-1", "Ada@EXAMPLE.com", "")
    found = decide(one, holder=None, namesake=None, domains=OURS, links=True)
    assert found == Register("Ada@EXAMPLE.com")


@pytest.mark.parametrize(
    "wanted",
    ["/", "/calls?outcome=success", "/admin/members?id=1&next=//x", "/apiary", "/a//b", "/%2F%2Fx"],
)
def test_a_page_of_ours_is_led_to(wanted: str) -> None:
    assert own_page(wanted) == wanted


@pytest.mark.parametrize(
    "wanted",
    [
        None,
        "",
        "calls",
        "//evil.example",
        "///evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "/x\\y",
        "https://evil.example",
        "https:evil.example",
        "javascript:alert(1)",
        "/\t/evil.example",
        "\t//evil.example",
        " //evil.example",
        "/\n/evil.example",
        "/x\r\nset-cookie: a=b",
        "/ä",
        "/x#sign-in=disabled",
        "/api/auth/oidc/login",
        "/api",
        "/v1/models",
        "/" + "x" * 1000,
    ],
)
def test_what_is_no_page_of_ours_is_the_first_one(wanted: str | None) -> None:
    assert own_page(wanted) == "/"
