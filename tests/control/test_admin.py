"""What admins set up: every field that is taken is stored and shown again, and every change audited."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from argon2 import PasswordHasher

from tests.control.browser import PASSWORD, Town

PROVIDER = {
    "name": "OpenAI Europe",
    "kind": "azure",
    "base_url": "http://10.0.0.7:8080/openai/v1",
    "api_key": "sk-live-0123456789",
}


def shown(document: Any, body: Any) -> Any:
    """Return of a document what a body had said."""
    return {name: document[name] for name in body if name in document}


# Providers


async def test_a_provider_is_stored_and_shown_without_its_credential(plane: Any) -> None:
    answer = await plane.call("POST", "/admin/providers", PROVIDER)
    added = answer.json()
    assert answer.status_code == 201
    said = {name: value for name, value in PROVIDER.items() if name != "api_key"}
    assert shown(added, said) == said
    assert added["has_credential"] is True
    assert await plane.ok("GET", f"/admin/providers/{added['id']}") == added
    assert (await plane.ok("GET", "/admin/providers"))["items"] == [added]
    everything = answer.text + (await plane.call("GET", "/admin/audit")).text
    assert "0123456789" not in everything
    [(sealed, version)] = plane.sql("SELECT credential, credential_version FROM providers")
    assert b"0123456789" not in sealed
    assert plane.deps.vault.unseal(sealed, added["id"], version) == PROVIDER["api_key"]


async def test_a_rotated_credential_is_sealed_under_a_new_version(plane: Any) -> None:
    provider = await plane.provider()
    path = f"/admin/providers/{provider['id']}"
    await plane.ok("PATCH", path, {"api_key": "sk-second"})
    [(sealed, version)] = plane.sql("SELECT credential, credential_version FROM providers")
    assert version == 2
    assert plane.deps.vault.unseal(sealed, provider["id"], 2) == "sk-second"
    cleared = await plane.ok("PATCH", path, {"api_key": None})
    assert cleared["has_credential"] is False
    events = [event["event"] for event in await plane.events(provider["id"])]
    assert events == ["provider_created", *["provider_credential_updated"] * 2]


async def test_a_patch_of_a_provider_changes_what_it_names_and_nothing_else(plane: Any) -> None:
    provider = await plane.provider()
    patch = {"name": "Renamed", "base_url": "https://other.example.com/v1", "kind": "mistral"}
    path = f"/admin/providers/{provider['id']}"
    assert await plane.ok("PATCH", path, patch) == provider | patch
    assert await plane.ok("PATCH", path, {}) == provider | patch
    assert await plane.ok("PATCH", path, patch) == provider | patch
    _, updated = await plane.events(provider["id"])
    assert updated["event"] == "provider_updated"
    assert updated["before"] == {name: provider[name] for name in patch}
    assert updated["after"] == patch


# Models


MODEL = {
    "slug": "mistral/ocr-4:latest",
    "upstream_model": "mistral-ocr-2512",
    "endpoints": ["ocr", "chat/completions"],
    "context_window": 128_000,
    "max_output_tokens": 16_384,
    "bytes_per_token": 1,
    "image_tokens_max": 1_500,
}


async def test_a_model_with_slashes_and_colons_is_stored_and_shown_by_its_slug(plane: Any) -> None:
    body = MODEL | {"provider_id": (await plane.provider())["id"]}
    added = await plane.ok("POST", "/admin/models", body)
    assert shown(added, body) == body
    assert await plane.ok("GET", f"/admin/models/{MODEL['slug']}") == added
    assert await plane.ok("GET", "/admin/models/mistral%2Focr-4%3Alatest") == added
    assert (await plane.ok("GET", "/admin/models"))["items"] == [added]


async def test_what_a_model_does_not_say_has_defaults_and_null_clears(plane: Any) -> None:
    model = await plane.model("m1")
    assert model["upstream_model"] == "m1"
    assert model["endpoints"] is None
    assert (model["bytes_per_token"], model["image_tokens_max"]) == (2, 3000)
    fields = {name: value for name, value in MODEL.items() if name != "slug"}
    changed = await plane.ok("PATCH", "/admin/models/m1", fields)
    assert shown(changed, fields) == fields
    nulls = {"endpoints": None, "context_window": None, "max_output_tokens": None}
    cleared = await plane.ok("PATCH", "/admin/models/m1", nulls | {"upstream_model": None})
    assert cleared == changed | nulls | {"upstream_model": "m1"}
    assert (await plane.events("m1"))[-1]["event"] == "model_updated"


# Prices


async def test_a_price_is_kept_exactly_and_tells_whether_it_is_in_force(plane: Any) -> None:
    await plane.model("m1")
    later = (datetime.now(UTC) + timedelta(days=9)).isoformat().replace("+00:00", "Z")
    first = await plane.ok(
        "POST",
        "/admin/prices",
        content=b'{"model":"m1","rates":[{"unit":"input_token","usd":0.15,"per":1000000},'
        b'{"unit":"second","usd":"0.034000000000000001","per":60},{"unit":"page","usd":2}]}',
    )
    assert first["rates"] == [
        {"unit": "input_token", "usd": "0.15", "per": 1_000_000},
        {"unit": "second", "usd": "0.034000000000000001", "per": 60},
        {"unit": "page", "usd": "2", "per": 1},
    ]
    assert first["in_force"] is True
    rates = [{"unit": "page", "usd": "1e-3", "per": 1}]
    second = await plane.ok(
        "POST", "/admin/prices", {"model": "m1", "rates": rates, "effective_from": later}
    )
    assert second["in_force"] is False
    assert second["effective_from"] == later
    assert second["rates"][0]["usd"] == "0.001"
    listed = (await plane.ok("GET", "/admin/prices?model=m1"))["items"]
    assert listed == [second, first]
    await plane.deps.directory.refresh()
    price = plane.deps.directory.prices["m1"][0]
    assert price.cost_nano({"input_token": 20}) == 3000


async def test_a_price_at_an_instant_that_is_taken_is_a_conflict(plane: Any) -> None:
    await plane.model("m1")
    body = {
        "model": "m1",
        "effective_from": "2026-01-01T01:00:00+01:00",
        "rates": [{"unit": "page", "usd": "0.002"}],
    }
    added = await plane.ok("POST", "/admin/prices", body)
    assert added["effective_from"] == "2026-01-01T00:00:00Z"
    answer = await plane.call(
        "POST", "/admin/prices", body | {"effective_from": "2026-01-01T00:00:00Z"}
    )
    assert answer.status_code == 409
    assert answer.json()["errors"][0]["field"] == "effective_from"


# Members


async def test_a_member_is_stored_with_a_hash_of_their_password(plane: Any) -> None:
    body = {
        "email": "Ada@Example.org",
        "display_name": "Ada Lovelace 👩‍💻",
        "role": "auditor",
        "password": "correct horse",
    }
    added = await plane.ok("POST", "/admin/members", body)
    assert shown(added, body) == {n: v for n, v in body.items() if n != "password"}
    assert (added["status"], added["has_password"]) == ("active", True)
    assert await plane.ok("GET", f"/admin/members/{added['id']}") == added
    [(hashed,)] = plane.sql("SELECT password_hash FROM members")
    assert PasswordHasher().verify(hashed, "correct horse")
    patch = {"display_name": "Ada", "role": "admin", "status": "disabled", "email": "ada@b.org"}
    changed = await plane.ok("PATCH", f"/admin/members/{added['id']}", patch | {"password": None})
    assert changed == added | patch | {"has_password": False}
    events = {event["event"]: event for event in await plane.events(added["id"])}
    assert set(events) == {"member_created", "member_updated", "member_password_updated"}
    assert "horse" not in str(events)
    assert hashed not in str(events)


async def test_an_address_is_taken_in_whatever_case_it_is_written(plane: Any) -> None:
    ada = await plane.member(email="ada@example.org")
    bob = await plane.member(email="bob@example.org")
    answer = await plane.call("POST", "/admin/members", {"email": "ADA@example.ORG"})
    assert answer.status_code == 409
    path = f"/admin/members/{bob['id']}"
    assert (await plane.call("PATCH", path, {"email": "aDa@example.org"})).status_code == 409
    own = await plane.ok("PATCH", f"/admin/members/{ada['id']}", {"email": "Ada@example.org"})
    assert own["email"] == "Ada@example.org"


async def test_an_address_is_one_however_its_accents_are_encoded(town: Town) -> None:
    plane = town.plane
    whole, parts = "zo\u00eb@ex\u00e1mple.org", "zoe\u0308@exa\u0301mple.org"
    zoe = await town.somebody(email=parts)
    assert zoe.email == whole
    for said in (parts, whole, parts.upper()):
        answer = await plane.call("POST", "/admin/members", {"email": said})
        assert answer.status_code == 409, said
        assert (await town.browser().log_in(said, PASSWORD)).status_code == 200
        invited = await plane.ok("POST", "/admin/invitations", {"email": said})
        assert invited["member_id"] == zoe.member["id"]
    await plane.model("m1")
    sheet = f"email,models\n{parts},m1\n"
    done = await plane.ok("POST", "/admin/allocations/import", {"csv": sheet, "dry_run": False})
    assert done["applied"] is True


async def test_two_equal_requests_at_once_make_one_row(plane: Any) -> None:
    body = {"email": "ada@example.org"}
    answers = await asyncio.gather(*(plane.call("POST", "/admin/members", body) for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [201, *[409] * 7]


# Allocations


async def test_an_allocation_is_stored_and_shown_with_its_caps(plane: Any) -> None:
    await plane.model("m1")
    await plane.model("m2")
    body = {
        "member_id": (await plane.member())["id"],
        "name": "Spring course",
        "models": ["m2", "m1"],
        "pool_id": None,
        "quota_tokens_per_month": 50_000,
        "quota_cost_usd_per_month": "4.90",
        "overrun_policy": "last_call",
        "ledger_outage": "allow",
        "unpriced": "deny",
        "billing_timezone": "Asia/Kathmandu",
        "floor_tokens": 10**10,
        "locked": True,
        "service": True,
    }
    added = await plane.ok("POST", "/admin/allocations", body)
    assert shown(added, body) == body
    assert added["status"] == "active"
    assert added["state"] == "ok"
    assert added["tokens_used_this_month"] == added["tokens_held"] == 0
    assert added["cost_used_this_month"] == added["cost_held"] == "0.00"
    assert await plane.ok("GET", f"/admin/allocations/{added['id']}") == added
    assert (await plane.ok("GET", "/admin/allocations"))["items"] == [added]
    assert (await plane.ok("GET", "/admin/allocations?status=paused"))["items"] == []


async def test_a_patch_of_an_allocation_changes_what_it_names_and_null_clears(plane: Any) -> None:
    tenant = await plane.tenant("m1", quota_tokens_per_month=5, quota_cost_usd_per_month=1)
    await plane.model("m2")
    path = f"/admin/allocations/{tenant.allocation['id']}"
    patch = {
        "name": "Autumn",
        "models": ["m1", "m2"],
        "status": "quarantined",
        "overrun_policy": "last_call",
        "ledger_outage": "allow",
        "unpriced": "deny",
        "floor_tokens": 7,
        "locked": True,
        "service": True,
        "quota_tokens_per_month": None,
    }
    changed = await plane.ok("PATCH", path, patch)
    limited = {"effective_tokens_per_month": None, "binds": changed["binds"]}
    unlimited = {"tokens_projection": None}
    expected = tenant.allocation | patch | {"state": "paused"} | limited | unlimited
    assert changed == expected
    assert changed["binds"]["owner_name"] == "Autumn"
    assert changed["quota_cost_usd_per_month"] == "1.00"
    cleared = await plane.ok("PATCH", path, {"quota_cost_usd_per_month": None, "status": "active"})
    assert cleared["quota_cost_usd_per_month"] is None
    assert plane.sql("SELECT * FROM limits WHERE amount IS NOT NULL") == []


async def test_a_cap_starts_from_what_is_used_and_held_at_that_moment(plane: Any) -> None:
    tenant = await plane.tenant("m1")
    id = tenant.allocation["id"]
    account = plane.account(
        id, used_tokens=70, held_tokens=7, used_nano=3_000_000_000, held_nano=500_000_000
    )
    body = {"quota_tokens_per_month": 100, "quota_cost_usd_per_month": "3.25"}
    changed = await plane.ok("PATCH", f"/admin/allocations/{id}", body)
    assert changed["state"] == "critical"
    assert (changed["tokens_used_this_month"], changed["tokens_held"]) == (70, 7)
    assert (changed["cost_used_this_month"], changed["cost_held"]) == ("3.00", "0.50")
    rows = plane.sql(
        "SELECT meter, amount, baseline, baseline_account::text, owner, window_kind FROM limits"
        " ORDER BY meter"
    )
    assert rows == [
        ("tokens", 100, 77, account, "allocation", "month"),
        ("usd", 3_250_000_000, 3_500_000_000, account, "allocation", "month"),
    ]


async def test_a_cap_waits_for_the_ledger_and_starts_from_what_it_booked(plane: Any) -> None:
    tenant = await plane.tenant("m1")
    id = tenant.allocation["id"]
    plane.account(id, held_tokens=50)
    with psycopg.connect(plane.url) as ledger:
        ledger.execute("SELECT * FROM accounts FOR UPDATE")
        body = {"quota_tokens_per_month": 10}
        patch = asyncio.create_task(plane.ok("PATCH", f"/admin/allocations/{id}", body))
        deadline = asyncio.get_running_loop().time() + 10
        while not plane.sql("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.01)
        ledger.execute("UPDATE accounts SET held_tokens = 0, used_tokens = 33")
    assert (await patch)["tokens_used_this_month"] == 33
    assert plane.sql("SELECT baseline FROM limits") == [(33,)]


async def test_a_cap_set_before_the_first_call_locks_the_account_that_call_will_use(
    plane: Any,
) -> None:
    tenant = await plane.tenant("m1", quota_cost_usd_per_month="0.60")
    [(amount, baseline, account)] = plane.sql(
        "SELECT amount, baseline, baseline_account::text FROM limits"
    )
    assert (amount, baseline) == (600_000_000, 0)
    assert account == plane.account(tenant.allocation["id"])


async def test_every_cap_that_changes_leaves_one_event_with_actor_before_after_and_reason(
    plane: Any,
) -> None:
    tenant = await plane.tenant("m1", quota_cost_usd_per_month="5", reason="course starts")
    id = tenant.allocation["id"]
    path = f"/admin/allocations/{id}"
    for body in (
        {"quota_cost_usd_per_month": "10.50", "reason": "more students"},
        {"quota_cost_usd_per_month": 10.5, "reason": "the same amount"},
        {"quota_tokens_per_month": 0},
        {"quota_cost_usd_per_month": None, "quota_tokens_per_month": 0},
    ):
        await plane.ok("PATCH", path, body, x_request_id="req-caps")
    events = await plane.events(id)
    assert events[0]["event"] == "allocation_created"
    told = [(e["event"], e["before"], e["after"], e["reason"]) for e in events[1:]]
    cost, tokens = "allocation_cost_quota_updated", "allocation_token_quota_updated"
    assert told == [
        (cost, None, "5.00", "course starts"),
        (cost, "5.00", "10.50", "more students"),
        (tokens, None, 0, None),
        (cost, "10.50", None, None),
    ]
    assert {event["actor"] for event in events} == {"admin token ops"}
    assert all(event["actor_id"] for event in events)
    assert events[2]["request_id"] == "req-caps"
    assert events[2]["object"] == "allocation"


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        (b"0", "0.00"),
        (b'"0"', "0.00"),
        (b"0.000000001", "0.000000001"),
        (b'"4.9"', "4.90"),
        (b"1e2", "100.00"),
        (b"1000000000", "1000000000.00"),
        (b"0.1", "0.10"),
        (b"-0", "0.00"),
    ],
)
async def test_a_cost_cap_is_taken_exactly_as_written(
    plane: Any, written: bytes, stored: str
) -> None:
    tenant = await plane.tenant("m1")
    changed = await plane.ok(
        "PATCH",
        f"/admin/allocations/{tenant.allocation['id']}",
        content=b'{"quota_cost_usd_per_month": ' + written + b"}",
    )
    assert changed["quota_cost_usd_per_month"] == stored


async def test_a_cap_of_0_is_exhausted_and_no_cap_is_not(plane: Any) -> None:
    blocked = await plane.tenant("m1", quota_tokens_per_month=0)
    free = await plane.tenant("m1")
    assert blocked.allocation["quota_tokens_per_month"] == 0
    assert blocked.allocation["state"] == "exhausted"
    assert free.allocation["quota_tokens_per_month"] is None
    assert free.allocation["state"] == "ok"


async def test_a_change_of_models_that_gives_a_key_two_payers_is_a_conflict(plane: Any) -> None:
    tenant = await plane.tenant("m1")
    await plane.model("m2")
    other = await plane.allocation(tenant.member["id"], ["m2"])
    key = await plane.key(tenant.member["id"], tenant.allocation["id"], other["id"], name="both")
    path = f"/admin/allocations/{other['id']}"
    answer = await plane.call("PATCH", path, {"models": ["m2", "m1"]})
    assert answer.status_code == 409
    assert "'both'" in answer.json()["detail"]
    assert "'m1'" in answer.json()["detail"]
    await plane.ok("POST", f"/admin/keys/{key['id']}/revoke")
    assert (await plane.ok("PATCH", path, {"models": ["m2", "m1"]}))["models"] == ["m2", "m1"]


# Keys


async def test_a_key_shows_its_secret_when_it_is_made_and_never_again(plane: Any) -> None:
    tenant = await plane.tenant("m1")
    body = {
        "member_id": tenant.member["id"],
        "name": "CI",
        "allocation_ids": [tenant.allocation["id"]],
        "expires_at": "2030-01-01T00:00:00Z",
        "one_shot": True,
    }
    answer = await plane.call("POST", "/admin/keys", body)
    added = answer.json()
    assert answer.status_code == 201
    assert shown(added, body) == body
    secret = added.pop("key")
    assert secret.startswith("sg_")
    assert added["hint"].endswith(secret[-4:])
    assert await plane.ok("GET", f"/admin/keys/{added['id']}") == added
    everything = [
        (await plane.call("GET", path)).text
        for path in ("/admin/keys", f"/admin/keys/{added['id']}", "/admin/audit")
    ]
    assert secret not in "".join(everything)
    [(digest,)] = plane.sql("SELECT digest FROM keys WHERE id = %s", added["id"])
    assert digest == plane.deps.vault.digest(secret)


async def test_a_patch_of_a_key_changes_what_it_names_and_null_clears(plane: Any) -> None:
    tenant = await plane.tenant("m1")
    await plane.model("m2")
    second = await plane.allocation(tenant.member["id"], ["m2"])
    key = await plane.key(
        tenant.member["id"], tenant.allocation["id"], expires_at="2030-01-01T00:00:00Z"
    )
    del key["key"]
    path = f"/admin/keys/{key['id']}"
    patch = {
        "name": "renamed",
        "allocation_ids": [second["id"], tenant.allocation["id"]],
        "expires_at": None,
    }
    assert await plane.ok("PATCH", path, patch) == key | patch
    version = plane.sql("SELECT directory_version FROM installation")
    assert (await plane.ok("PATCH", path, {"one_shot": True}))["one_shot"] is True
    assert plane.sql("SELECT directory_version FROM installation") > version


async def test_rotating_a_key_changes_its_secret_and_only_that(plane: Any) -> None:
    tenant = await plane.tenant("m1")
    rotated = await plane.ok("POST", f"/admin/keys/{tenant.key['id']}/rotate")
    assert rotated["key"] != tenant.secret
    hint = {"hint": rotated["hint"], "key": rotated["key"]}
    assert rotated == tenant.key | hint
    await plane.deps.directory.refresh()
    assert (await plane.call("GET", "/me/keys", bearer=tenant.secret)).status_code == 401
    assert (await plane.call("GET", "/me/keys", bearer=rotated["key"])).status_code == 200


async def test_revoking_a_key_twice_is_revoking_it_once(plane: Any) -> None:
    tenant = await plane.tenant("m1")
    path = f"/admin/keys/{tenant.key['id']}"
    revoked = await plane.ok("POST", f"{path}/revoke")
    assert revoked["revoked_at"] is not None
    assert await plane.ok("POST", f"{path}/revoke") == revoked
    assert (await plane.call("POST", f"{path}/rotate")).status_code == 409
    events = [event["event"] for event in await plane.events(tenant.key["id"])]
    assert events == ["key_created", "key_revoked"]


# Edits that clash


@pytest.mark.parametrize("kind", ["providers", "models", "members", "allocations", "keys"])
async def test_an_edit_of_what_has_changed_meanwhile_is_refused(plane: Any, kind: str) -> None:
    tenant = await plane.tenant("m1")
    provider = (await plane.ok("GET", "/admin/providers"))["items"][0]
    path, first, second = {
        "providers": (f"/admin/providers/{provider['id']}", {"name": "a"}, {"name": "b"}),
        "models": ("/admin/models/m1", {"bytes_per_token": 3}, {"bytes_per_token": 4}),
        "members": (
            f"/admin/members/{tenant.member['id']}",
            {"display_name": "a"},
            {"display_name": "b"},
        ),
        "allocations": (
            f"/admin/allocations/{tenant.allocation['id']}",
            {"quota_tokens_per_month": 1},
            {"quota_tokens_per_month": 2},
        ),
        "keys": (f"/admin/keys/{tenant.key['id']}", {"name": "a"}, {"name": "b"}),
    }[kind]
    read = (await plane.call("GET", path)).headers["etag"]
    changed = await plane.call("PATCH", path, first, if_match=read)
    assert changed.status_code == 200
    assert changed.headers["etag"] != read
    stale = await plane.call("PATCH", path, second, if_match=read)
    assert stale.status_code == 412
    current = (await plane.call("GET", path)).headers["etag"]
    assert current == changed.headers["etag"]
    for good in (f'"other", W/{current}', "*"):
        assert (await plane.call("PATCH", path, {}, if_match=good)).status_code == 200


async def test_using_an_allocation_does_not_change_its_etag(plane: Any) -> None:
    tenant = await plane.tenant("m1")
    path = f"/admin/allocations/{tenant.allocation['id']}"
    before = (await plane.call("GET", path)).headers["etag"]
    plane.account(tenant.allocation["id"], used_tokens=7)
    after = await plane.call("GET", path)
    assert after.json()["tokens_used_this_month"] == 7
    assert after.headers["etag"] == before


async def test_what_is_refused_leaves_neither_a_row_nor_an_event(plane: Any) -> None:
    tenant = await plane.tenant("m1")
    counted = "SELECT (SELECT count(*) FROM audit), (SELECT count(*) FROM keys)"
    before = plane.sql(counted)
    body = {"member_id": tenant.member["id"], "name": "k", "allocation_ids": [tenant.key["id"]]}
    assert (await plane.call("POST", "/admin/keys", body)).status_code == 422
    path = f"/admin/allocations/{tenant.allocation['id']}"
    answer = await plane.call("PATCH", path, {"models": ["nope"], "quota_tokens_per_month": 5})
    assert answer.status_code == 422
    assert plane.sql(counted) == before
    assert plane.sql("SELECT * FROM limits WHERE amount IS NOT NULL") == []
