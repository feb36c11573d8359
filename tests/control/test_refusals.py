"""What the control plane refuses: always a clear problem document, never a 5xx, nothing stored."""

from __future__ import annotations

from typing import Any

import pytest

UNKNOWN_ID = "0197c5a0-0000-7000-8000-000000000000"

# A field, what is written there as JSON, and the statuses that are clear enough.

CAPS = [
    ("quota_cost_usd_per_month", "NaN", {400}),
    ("quota_cost_usd_per_month", "Infinity", {400}),
    ("quota_cost_usd_per_month", '"NaN"', {422}),
    ("quota_cost_usd_per_month", '"sNaN"', {422}),
    ("quota_cost_usd_per_month", '"Infinity"', {422}),
    ("quota_cost_usd_per_month", '"-Infinity"', {422}),
    ("quota_cost_usd_per_month", "true", {422}),
    ("quota_cost_usd_per_month", "-1", {422}),
    ("quota_cost_usd_per_month", '"-0.01"', {422}),
    ("quota_cost_usd_per_month", "1e30", {422}),
    ("quota_cost_usd_per_month", "1" + "0" * 30, {422}),
    ("quota_cost_usd_per_month", "1000000000.01", {422}),
    ("quota_cost_usd_per_month", "1e400", {422}),
    ("quota_cost_usd_per_month", "1e99999999999999999999", {422}),
    ("quota_cost_usd_per_month", "1e-10", {422}),
    ("quota_cost_usd_per_month", "1e-999999999", {422}),
    ("quota_cost_usd_per_month", "0.1000000000000000000000000000000000001", {422}),
    ("quota_cost_usd_per_month", '"abc"', {422}),
    ("quota_cost_usd_per_month", '""', {422}),
    ("quota_cost_usd_per_month", '"5 USD"', {422}),
    ("quota_cost_usd_per_month", "[5]", {422}),
    ("quota_cost_usd_per_month", '{"usd": 5}', {422}),
    ("quota_tokens_per_month", "NaN", {400}),
    ("quota_tokens_per_month", "true", {422}),
    ("quota_tokens_per_month", "-1", {422}),
    ("quota_tokens_per_month", "1.5", {422}),
    ("quota_tokens_per_month", '"5"', {422}),
    ("quota_tokens_per_month", "1e400", {422}),
    ("quota_tokens_per_month", "1" + "0" * 30, {422}),
    ("quota_tokens_per_month", "9223372036854775808", {422}),
]


async def test_a_cap_that_is_no_amount_is_refused_by_name(plane: Any) -> None:
    tenant = await plane.tenant("m1")
    wrong: list[str] = []
    for field, written, statuses in CAPS:
        cap = f'"{field}": {written}'
        create = f'{{"member_id": "{tenant.member["id"]}", "models": ["m1"], {cap}}}'
        for method, path, content in (
            ("PATCH", f"/admin/allocations/{tenant.allocation['id']}", f"{{{cap}}}"),
            ("POST", "/admin/allocations", create),
        ):
            answer = await plane.call(method, path, content=content.encode())
            named = [error["field"] for error in answer.json().get("errors", [])]
            clear = answer.status_code == 400 or (
                named == [field] and field in answer.json()["detail"]
            )
            if answer.status_code not in statuses or not clear:
                wrong.append(f"{method} {cap}: {answer.status_code} {answer.text[:200]}")
            assert answer.headers["content-type"] == "application/problem+json"
    assert wrong == []
    assert plane.sql("SELECT * FROM limits") == []
    assert plane.sql("SELECT count(*) FROM allocations") == [(1,)]


async def test_a_cap_that_is_too_high_is_told_so_however_many_digits_it_has(plane: Any) -> None:
    tenant = await plane.tenant("m1")
    for written in ("1e30", "1" * 31, "1000000000.01"):
        answer = await plane.call(
            "PATCH",
            f"/admin/allocations/{tenant.allocation['id']}",
            content=f'{{"quota_cost_usd_per_month": {written}}}'.encode(),
        )
        assert "at most 1000000000 USD" in answer.json()["detail"], written


@pytest.mark.parametrize("said", ["1_000", "１００", "١٢", " 1", "1\n", "+5", "1__0", "0x10", ""])
async def test_an_amount_that_only_python_takes_for_a_number_is_refused_wherever_it_is_written(
    plane: Any, said: str
) -> None:
    tenant = await plane.tenant("m1")
    id = tenant.allocation["id"]
    limits = [{"meter": "usd", "window": "day", "amount": said}]
    of = {"allocation_id": id, "meter": "usd", "amount": said, "reason": "x"}
    asked = [
        ("PATCH", f"allocations/{id}", {"quota_cost_usd_per_month": said}),
        ("POST", "allocations/bulk", {"ids": [id], "changes": {"quota_cost_usd_per_month": said}}),
        ("POST", "prices", {"model": "m1", "rates": [{"unit": "page", "usd": said}]}),
        ("POST", "pools", {"name": "p", "limits": limits}),
        ("PATCH", f"keys/{tenant.key['id']}", {"limits": limits}),
        ("POST", "top-ups", of | {"expires": "day"}),
        ("POST", "adjustments", of),
        ("POST", "adjustments", of | {"meter": "tokens"}),
    ]
    for method, path, body in asked:
        answer = await plane.call(method, f"/admin/{path}", body)
        assert answer.status_code == 422, f"{path}: {answer.text}"
        assert "decimal" in answer.json()["detail"], path
    assert plane.sql("SELECT count(*) FROM limits") == [(0,)]
    assert plane.sql("SELECT count(*) FROM prices") == [(0,)]


async def test_a_number_of_however_many_digits_beside_an_amount_is_no_failure_of_ours(
    plane: Any,
) -> None:
    tenant = await plane.tenant("m1")
    path = f"/admin/allocations/{tenant.allocation['id']}"
    for digits in ("1" * 6000, "-" + "1" * 6000, "1e400", "1." + "1" * 6000):
        body = f'{{"quota_cost_usd_per_month": {digits}}}'.encode()
        assert (await plane.call("PATCH", path, content=body)).status_code == 422, digits[:9]


# Path, body as Python, the field that must be named, the status. `{…}` are ids of the tenant.

BODIES: list[tuple[str, dict[str, Any], str, int]] = [
    ("POST providers", {"name": ""}, "name", 422),
    ("POST providers", {"name": "x" * 201}, "name", 422),
    ("POST providers", {"name": "a\x00b"}, "name", 422),
    ("POST providers", {"name": "taken"}, "name", 409),
    ("POST providers", {"kind": "openapi"}, "kind", 422),
    ("POST providers", {"base_url": "api.example.com/v1"}, "base_url", 422),
    ("POST providers", {"base_url": "ftp://example.com"}, "base_url", 422),
    ("POST providers", {"base_url": "https://"}, "base_url", 422),
    ("POST providers", {"base_url": "https://user:pw@example.com"}, "base_url", 422),
    ("POST providers", {"base_url": "https://@example.com"}, "base_url", 422),
    ("POST providers", {"base_url": "https://example.com/v1?key=1"}, "base_url", 422),
    ("POST providers", {"base_url": "https://example.com/v1?"}, "base_url", 422),
    ("POST providers", {"base_url": "https://example.com/#x"}, "base_url", 422),
    ("POST providers", {"base_url": "https://example.com:99999"}, "base_url", 422),
    ("POST providers", {"base_url": "https://[::1"}, "base_url", 422),
    ("POST providers", {"base_url": "https://example.com/a b"}, "base_url", 422),
    ("POST providers", {"base_url": "https://example.com\\@evil"}, "base_url", 422),
    ("POST providers", {"base_url": "https://example.com\r\nx: y"}, "base_url", 422),
    ("POST providers", {"api_key": "sk-1\r\nx-injected: 1"}, "api_key", 422),
    ("POST providers", {"api_key": "schlüssel"}, "api_key", 422),
    ("POST providers", {"api_key": ""}, "api_key", 422),
    ("POST providers", {"organisation": "x"}, "organisation", 422),
    ("POST models", {"slug": "has space"}, "slug", 422),
    ("POST models", {"slug": "käse"}, "slug", 422),
    ("POST models", {"slug": ""}, "slug", 422),
    ("POST models", {"slug": "x" * 201}, "slug", 422),
    ("POST models", {"slug": "/m"}, "slug", 422),
    ("POST models", {"slug": "a//b"}, "slug", 422),
    ("POST models", {"slug": "a/../b"}, "slug", 422),
    ("POST models", {"slug": "m1"}, "slug", 409),
    ("POST models", {"provider_id": UNKNOWN_ID}, "provider_id", 422),
    ("POST models", {"provider_id": "x"}, "provider_id", 422),
    ("POST models", {"endpoints": []}, "endpoints", 422),
    ("POST models", {"endpoints": ["ocr", "ocr"]}, "endpoints", 422),
    ("POST models", {"endpoints": ["chat"]}, "endpoints[0]", 422),
    ("POST models", {"context_window": 0}, "context_window", 422),
    ("POST models", {"context_window": 2**63}, "context_window", 422),
    ("POST models", {"max_output_tokens": -1}, "max_output_tokens", 422),
    ("POST models", {"max_output_tokens": 1.5}, "max_output_tokens", 422),
    ("POST models", {"bytes_per_token": 0}, "bytes_per_token", 422),
    ("POST models", {"bytes_per_token": 9}, "bytes_per_token", 422),
    ("POST models", {"image_tokens_max": 2**31}, "image_tokens_max", 422),
    ("POST models", {"price": 1}, "price", 422),
    ("PATCH models/m1", {"slug": "m2"}, "slug", 422),
    ("PATCH models/m1", {"bytes_per_token": None}, "bytes_per_token", 422),
    ("POST prices", {"model": "nope"}, "model", 422),
    ("POST prices", {"model": "a\x00"}, "model", 422),
    ("POST prices", {"rates": []}, "rates", 422),
    ("POST prices", {"rates": [{"unit": "token", "usd": 1}]}, "rates", 422),
    ("POST prices", {"rates": [{"unit": "page", "usd": -1}]}, "rates", 422),
    ("POST prices", {"rates": [{"unit": "page", "usd": "NaN"}]}, "rates", 422),
    ("POST prices", {"rates": [{"unit": "page", "usd": "1e-999999999"}]}, "rates", 422),
    ("POST prices", {"rates": [{"unit": "page", "usd": "1e30"}]}, "rates", 422),
    ("POST prices", {"rates": [{"unit": "page", "usd": True}]}, "rates[0].usd", 422),
    ("POST prices", {"rates": [{"unit": "page", "usd": 1, "per": 0}]}, "rates", 422),
    ("POST prices", {"rates": [{"unit": "page", "usd": 1, "per": 10**30}]}, "rates", 422),
    ("POST prices", {"rates": [{"unit": "page"}]}, "rates[0].usd", 422),
    ("POST prices", {"rates": [{"unit": "page", "usd": 1}] * 2}, "rates", 422),
    ("POST prices", {"effective_from": "yesterday"}, "effective_from", 422),
    ("POST prices", {"effective_from": "2026-01-01T00:00:00"}, "effective_from", 422),
    ("POST prices", {"effective_from": "0001-01-01T00:00:00+14:00"}, "effective_from", 422),
    ("POST prices", {"effective_from": "9999-12-31T23:59:59-14:00"}, "effective_from", 422),
    ("POST prices", {"currency": "EUR"}, "currency", 422),
    ("POST members", {"email": "nobody"}, "email", 422),
    ("POST members", {"email": "a@b@c"}, "email", 422),
    ("POST members", {"email": "a\x00@b.org"}, "email", 422),
    ("POST members", {"email": "a" * 300 + "@b.org"}, "email", 422),
    ("POST members", {"email": "a\u200bda@b.org"}, "email", 422),
    ("POST members", {"email": "ada@b.org\u202e"}, "email", 422),
    ("POST members", {"email": "\ufeffada@b.org"}, "email", 422),
    ("POST members", {"role": "owner"}, "role", 422),
    ("POST members", {"password": "short"}, "password", 422),
    ("POST members", {"password": "x" * 2000}, "password", 422),
    ("POST members", {"display_name": "x" * 201}, "display_name", 422),
    ("POST members", {"status": "active"}, "status", 422),
    ("PATCH members/{member}", {"status": "gone"}, "status", 422),
    ("PATCH members/{member}", {"email": None}, "email", 422),
    ("POST allocations", {"member_id": UNKNOWN_ID}, "member_id", 422),
    ("POST allocations", {"member_id": 7}, "member_id", 422),
    ("POST allocations", {"models": []}, "models", 422),
    ("POST allocations", {"models": ["m1", "m1"]}, "models", 422),
    ("POST allocations", {"models": ["m1", "nope"]}, "models", 422),
    ("POST allocations", {"models": ["\x00"]}, "models", 422),
    ("POST allocations", {"models": "m1"}, "models", 422),
    ("POST allocations", {"models": [f"m{n}" for n in range(201)]}, "models", 422),
    ("POST allocations", {"pool_id": UNKNOWN_ID}, "pool_id", 422),
    ("POST allocations", {"overrun_policy": "lenient"}, "overrun_policy", 422),
    ("POST allocations", {"ledger_outage": True}, "ledger_outage", 422),
    ("POST allocations", {"unpriced": "maybe"}, "unpriced", 422),
    ("POST allocations", {"status": "paused"}, "status", 422),
    ("POST allocations", {"reason": "x" * 1001}, "reason", 422),
    ("POST allocations", {"quota": 5}, "quota", 422),
    ("PATCH allocations/{allocation}", {"status": "deleted"}, "status", 422),
    ("PATCH allocations/{allocation}", {"member_id": UNKNOWN_ID}, "member_id", 422),
    ("PATCH allocations/{allocation}", {"models": ["nope"]}, "models", 422),
    ("PATCH allocations/{allocation}", {"name": None}, "name", 422),
    ("PATCH allocations/{allocation}", {"pool_id": UNKNOWN_ID}, "pool_id", 422),
    ("PATCH allocations/{allocation}", {"reason": "a\x07"}, "reason", 422),
    ("POST keys", {"member_id": UNKNOWN_ID}, "member_id", 422),
    ("POST keys", {"allocation_ids": []}, "allocation_ids", 422),
    ("POST keys", {"allocation_ids": [UNKNOWN_ID]}, "allocation_ids", 422),
    ("POST keys", {"allocation_ids": ["{other}"]}, "allocation_ids", 422),
    ("POST keys", {"allocation_ids": ["{allocation}"] * 2}, "allocation_ids", 422),
    ("POST keys", {"allocation_ids": ["{allocation}", "{twin}"]}, "allocation_ids", 409),
    ("POST keys", {"expires_at": "2030-01-01T00:00:00"}, "expires_at", 422),
    ("POST keys", {"expires_at": "9999-01-01T00:00:00Z"}, "expires_at", 422),
    ("POST keys", {"expires_at": 1e300}, "expires_at", 422),
    ("POST keys", {"one_shot": 1}, "one_shot", 422),
    ("POST keys", {"token_budget": -5}, "token_budget", 422),
    ("POST keys", {"token_budget": True}, "token_budget", 422),
    ("POST keys", {"limits": None}, "limits", 422),
    ("POST keys", {"name": " "}, "name", 422),
    ("PATCH keys/{key}", {"allocation_ids": ["{allocation}", "{twin}"]}, "allocation_ids", 409),
    ("PATCH keys/{key}", {"allocation_ids": ["{other}"]}, "allocation_ids", 422),
    ("PATCH keys/{key}", {"one_shot": None}, "one_shot", 422),
    ("PATCH keys/{key}", {"revoked_at": None}, "revoked_at", 422),
]


@pytest.fixture
async def names(plane: Any) -> dict[str, str]:
    """What the `{…}` of the table stand for."""
    tenant, other = await plane.tenant("m1"), await plane.tenant("m1")
    twin = await plane.allocation(tenant.member["id"], ["m1"])
    await plane.provider(name="taken")
    [(provider,)] = plane.sql("SELECT provider_id::text FROM models WHERE slug = 'm1'")
    return {
        "member": tenant.member["id"],
        "allocation": tenant.allocation["id"],
        "key": tenant.key["id"],
        "twin": twin["id"],
        "other": other.allocation["id"],
        "provider": provider,
    }


def filled(value: Any, names: dict[str, str]) -> Any:
    """Put ids in the place of `{…}`."""
    if isinstance(value, str) and value.startswith("{") and value.endswith("}"):
        return names[value[1:-1]]
    return [filled(one, names) for one in value] if isinstance(value, list) else value


def good(path: str, names: dict[str, str]) -> dict[str, Any]:
    """Return a body that would be taken."""
    return {
        "POST providers": {"name": "new", "kind": "openai", "base_url": "https://a.example"},
        "POST models": {"slug": "new", "provider_id": names["provider"]},
        "POST prices": {"model": "m1", "rates": [{"unit": "page", "usd": "1"}]},
        "POST members": {"email": "new@example.org"},
        "POST allocations": {"member_id": names["member"], "models": ["m1"]},
        "POST keys": {
            "member_id": names["member"],
            "name": "new",
            "allocation_ids": [names["allocation"]],
        },
    }.get(path, {})


async def test_every_value_that_cannot_be_taken_is_refused_by_name(
    plane: Any, names: dict[str, str]
) -> None:
    counted = "SELECT count(*), (SELECT directory_version FROM installation) FROM audit"
    before = plane.sql(counted)
    wrong: list[str] = []
    for request, fields, field, status in BODIES:
        method, path = request.format(**names).split()
        body = good(request, names) | {n: filled(v, names) for n, v in fields.items()}
        answer = await plane.call(method, f"/admin/{path}", body)
        document = answer.json()
        named = [error["field"] for error in document.get("errors", [])]
        if (answer.status_code, named) != (status, [field]) or field not in document["detail"]:
            wrong.append(f"{request} {fields}: {answer.status_code} {answer.text[:200]}")
    assert wrong == []
    assert plane.sql(counted) == before


async def test_the_bodies_that_the_table_starts_from_would_be_taken(
    plane: Any, names: dict[str, str]
) -> None:
    for request in ("providers", "models", "prices", "members", "allocations", "keys"):
        await plane.ok("POST", f"/admin/{request}", good(f"POST {request}", names))


@pytest.mark.parametrize(
    ("content", "type_", "status"),
    [
        (b"", "application/json", 400),
        (b"{", "application/json", 400),
        (b'{"email": "a@b.org"} {}', "application/json", 400),
        (b'{"email": "\xff"}', "application/json", 400),
        (b'{"email": "\\ud800"}', "application/json", 400),
        (b'{"email": "a\\ud800b@c.org"}', "application/json", 400),
        (b"[" * 100_000, "application/json", 422),
        (b'{"email": ' + b"[" * 100_000, "application/json", 422),
        (b"[]", "application/json", 422),
        (b"null", "application/json", 422),
        (b'"x"', "application/json", 422),
        (b"{}", "application/json", 422),
        (b'{"email": "a@b.org"}', "text/plain", 415),
        (b"email=a%40b.org", "application/x-www-form-urlencoded", 415),
        (b'{"email": "a@b.org"}', "", 415),
        (b'{"email": "a@b.org"}', "multipart/form-data", 415),
        (b'{"email": "' + b"x" * 2**20 + b'"}', "application/json", 413),
        (b"x" * 50_000_000, "application/json", 413),
    ],
    ids=lambda value: value[:24] if isinstance(value, bytes) else None,
)
async def test_a_body_that_cannot_be_read_is_a_4xx(
    plane: Any, content: bytes, type_: str, status: int
) -> None:
    answer = await plane.call("POST", "/admin/members", content=content, content_type=type_)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"]
    assert answer.json()["detail"]
    assert plane.sql("SELECT * FROM members") == []


NOWHERE = [
    ("GET", "/admin/nothing", 404),
    ("GET", "/nothing", 404),
    ("GET", "/admin/members/x", 404),
    ("GET", f"/admin/members/{UNKNOWN_ID}", 404),
    ("GET", "/admin/members/{0197c5a0-0000-7000-8000-000000000000}", 404),
    ("PATCH", f"/admin/members/{UNKNOWN_ID}", 404),
    ("GET", f"/admin/providers/{UNKNOWN_ID}", 404),
    ("PATCH", "/admin/providers/%00", 404),
    ("GET", "/admin/models/nope", 404),
    ("GET", "/admin/models/%00", 404),
    ("GET", "/admin/models/a%0Ab", 404),
    ("PATCH", "/admin/models/nope/at/all", 404),
    ("GET", f"/admin/allocations/{UNKNOWN_ID}", 404),
    ("PATCH", f"/admin/allocations/{UNKNOWN_ID}", 404),
    ("GET", f"/admin/keys/{UNKNOWN_ID}", 404),
    ("POST", f"/admin/keys/{UNKNOWN_ID}/rotate", 404),
    ("POST", f"/admin/keys/{UNKNOWN_ID}/revoke", 404),
    ("GET", f"/admin/calls/{UNKNOWN_ID}", 404),
    ("GET", "/admin/calls/x", 404),
    ("DELETE", "/admin/members", 405),
    ("PUT", f"/admin/allocations/{UNKNOWN_ID}", 405),
    ("PATCH", "/admin/prices", 405),
    ("POST", "/me/allocations", 405),
    ("GET", "/admin/calls?cursor=x", 400),
    ("GET", "/admin/calls?cursor=%00", 400),
    ("GET", "/admin/calls?cursor=Zm9v", 400),
    ("GET", "/admin/calls?cursor=ä", 400),
    ("GET", "/admin/models?cursor=IA", 400),
    ("GET", "/admin/calls?limit=x", 400),
    ("GET", "/admin/calls?limit=0", 422),
    ("GET", "/admin/calls?limit=1001", 422),
    ("GET", "/admin/calls?limit=-1", 422),
    ("GET", "/admin/calls?limit=1e400", 400),
    ("GET", "/admin/calls?allocation_id=x", 422),
    ("GET", "/admin/calls?model=%00", 422),
    ("GET", "/admin/calls?outcome=fine", 400),
    ("GET", "/admin/calls?from=yesterday", 422),
    ("GET", "/admin/calls?from=2026-01-01T00:00:00", 422),
    ("GET", "/admin/calls?from=2026-13-01", 422),
    ("GET", "/admin/calls?to=0001-01-01T00:00:00%2B14:00", 422),
    ("GET", "/admin/calls?member=x", 400),
    ("GET", "/admin/audit?event=%00", 422),
    ("GET", "/admin/audit?actor_id=x", 422),
    ("GET", "/admin/allocations?status=odd", 400),
    ("GET", "/admin/usage?group_by=", 422),
    ("GET", "/admin/usage?group_by=model,model", 422),
    ("GET", "/admin/usage?group_by=price", 422),
    ("GET", "/admin/usage.csv?group_by=price", 422),
    ("GET", "/admin/usage.csv?from=x", 422),
    ("GET", "/admin/prices?model=%00", 422),
]


async def test_a_request_that_leads_nowhere_is_a_4xx(plane: Any) -> None:
    wrong: list[str] = []
    for method, path, status in NOWHERE:
        answer = await plane.call(method, path, {} if method == "PATCH" else None)
        if answer.status_code != status or answer.json()["status"] != status:
            wrong.append(f"{method} {path}: {answer.status_code} {answer.text[:200]}")
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["x-request-id"]
        assert (status == 405) == ("allow" in answer.headers)
    assert wrong == []


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "naïve", "\x7f"])
async def test_a_request_id_that_cannot_be_kept_is_replaced_by_ours(plane: Any, given: str) -> None:
    path = "http://spendgate.test/api/admin/members"
    for bearer in (plane.token, "nobody"):
        headers = [
            (b"authorization", f"Bearer {bearer}".encode()),
            (b"x-request-id", given.encode()),
        ]
        answer = await plane.client.get(path, headers=headers)
        assert answer.headers["x-request-id"].startswith("req_")


async def test_a_request_id_that_can_be_kept_is_echoed_and_recorded(plane: Any) -> None:
    answer = await plane.call("POST", "/admin/members", {"email": "a@b.org"}, x_request_id="mine-1")
    assert answer.headers["x-request-id"] == "mine-1"
    [event] = await plane.events(answer.json()["id"])
    assert event["request_id"] == "mine-1"


async def test_a_failure_of_ours_says_nothing_and_is_logged_without_secrets(
    plane: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the reason")

    monkeypatch.setattr("app.store.journal.record", broken)
    body = {"email": "a@b.org", "password": "correct horse"}
    answer = await plane.call("POST", "/admin/members", body)
    assert answer.status_code == 500
    assert "reason" not in answer.text
    logged = capsys.readouterr().out
    assert "the reason" in logged
    assert "correct horse" not in logged
    assert plane.sql("SELECT * FROM members") == []


async def test_the_openapi_document_tells_what_is_sent_and_answered(plane: Any) -> None:
    document = plane.app.openapi_schema.to_schema()
    schemas = document["components"]["schemas"]
    create = document["paths"]["/api/admin/allocations"]["post"]
    reference = create["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    fields = schemas[reference.rpartition("/")[2]]["properties"]
    assert {"member_id", "models", "quota_cost_usd_per_month", "reason"} <= set(fields)
    listed = document["paths"]["/api/admin/calls"]["get"]
    parameters = {parameter["name"] for parameter in listed["parameters"]}
    assert {"cursor", "limit", "from", "to", "outcome"} <= parameters
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], f"{method} {path}"
            assert operation["tags"], f"{method} {path}"
            assert "application/problem+json" in operation["responses"]["400"]["content"]
