"""Who is let in where, and that members see what is theirs and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.control.desk import Actor, Gate
from app.store.vault import new_admin_token, new_key

ID = "0197c5a0-0000-7000-8000-000000000000"


def routes(plane: Any) -> list[tuple[str, str]]:
    """Return every method and path of the control plane."""
    found: list[tuple[str, str]] = []
    for route in plane.app.routes:
        for method in sorted(route.methods - {"OPTIONS"}):
            if route.path.startswith(("/api/admin", "/api/me")):
                path = route.path_format.removeprefix("/api")
                found.append((method, path.replace("{id}", ID).replace("{slug}", "m1")))
    return found


async def test_every_route_asks_who_is_there(plane: Any) -> None:
    tenant = await plane.tenant("m1")
    plane.sql("UPDATE admin_tokens SET revoked_at = NULL")
    revoked = new_admin_token()
    plane.sql(
        "INSERT INTO admin_tokens (id, name, digest, revoked_at) VALUES (%s, 'old', %s, now())",
        ID,
        plane.deps.vault.digest(revoked),
    )
    nobody: list[dict[str, Any]] = [
        {"bearer": None},
        {"bearer": "nonsense"},
        {"bearer": new_key()},
        {"bearer": new_admin_token()},
        {"bearer": revoked},
        {"bearer": tenant.secret + "x"},
        {"authorization": "Basic " + tenant.secret},
        {"authorization": "Bearer"},
        {"authorization": plane.token},
        {"bearer": None, "x_api_key": plane.token},
    ]
    asked = routes(plane)
    assert len(asked) > 30
    for method, path in asked:
        body = {} if method != "GET" else None
        for credential in nobody:
            answer = await plane.call(method, path, body, **credential)
            assert answer.status_code == 401, f"{method} {path} {credential}"
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.headers["content-type"] == "application/problem+json"
        as_member = (await plane.call(method, path, body, bearer=tenant.secret)).status_code
        as_admin = (await plane.call(method, path, body)).status_code
        if path.startswith("/admin"):
            assert as_member == 403, f"{method} {path}"
            assert as_admin in (200, 201, 404, 422), f"{method} {path}"
        else:
            # A key only reads; whoever signs in may also change what is theirs.
            assert as_member == (200 if method == "GET" else 403), f"{method} {path}"
            assert as_admin == 403, f"{method} {path}"


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ("UPDATE keys SET revoked_at = now()", 401),
        ("UPDATE keys SET expires_at = now() - interval '1 second'", 401),
        ("UPDATE keys SET one_shot = true, used_at = now(), expires_at = NULL", 401),
        ("UPDATE members SET status = 'disabled'", 403),
        ("UPDATE allocations SET status = 'revoked'", 200),
    ],
)
async def test_a_key_that_opens_nothing_any_more_reads_nothing(
    plane: Any, change: str, status: int
) -> None:
    tenant = await plane.tenant("m1")
    plane.sql(change)
    await plane.deps.directory.refresh()
    answer = await plane.call("GET", "/me/allocations", bearer=tenant.secret)
    assert answer.status_code == status


@pytest.mark.parametrize("change", ["revoke", "rotate", "expire", "disable"])
async def test_what_ends_a_key_ends_its_reading_before_this_process_has_heard(
    plane: Any, change: str
) -> None:
    tenant = await plane.tenant("m1")
    assert (await plane.call("GET", "/me/keys", bearer=tenant.secret)).status_code == 200
    # Nobody tells it from here on: news of a change may always come after the next request.
    await plane.deps.directory.stop()
    key = f"/admin/keys/{tenant.key['id']}"
    match change:
        case "expire":
            past = datetime.now(UTC) - timedelta(seconds=1)
            await plane.ok("PATCH", key, {"expires_at": past.isoformat()})
        case "disable":
            path = f"/admin/members/{tenant.member['id']}"
            await plane.ok("PATCH", path, {"status": "disabled"})
        case _:
            await plane.ok("POST", f"{key}/{change}")
    answer = await plane.call("GET", "/me/keys", bearer=tenant.secret)
    assert answer.status_code == (403 if change == "disable" else 401)


async def test_a_one_shot_key_reads_until_it_is_used(plane: Any) -> None:
    tenant = await plane.tenant("m1")
    key = await plane.key(tenant.member["id"], tenant.allocation["id"], one_shot=True)
    assert (await plane.call("GET", "/me/keys", bearer=key["key"])).status_code == 200
    plane.sql("UPDATE keys SET used_at = now() WHERE id = %s", key["id"])
    assert (await plane.call("GET", "/me/keys", bearer=key["key"])).status_code == 401


async def test_a_further_way_in_makes_the_same_actor(plane: Any) -> None:
    gate = Gate(plane.deps)

    async def by_cookie(_: Any) -> Actor:
        return Actor("session", ID, "ada@example.org", "auditor", ID)

    gate.ways = (by_cookie,)

    class Connection:
        def __init__(self, method: str) -> None:
            self.scope: dict[str, Any] = {"method": method}

    looking, changing = Connection("GET"), Connection("POST")
    await gate.admin(looking, None)  # type: ignore[arg-type]
    await gate.me(changing, None)  # type: ignore[arg-type]
    assert looking.scope["user"].role == "auditor"
    with pytest.raises(Exception, match="admin"):
        await gate.admin(changing, None)  # type: ignore[arg-type]


async def test_a_member_sees_their_own_rows_and_no_one_elses(plane: Any) -> None:
    ada, bob = await plane.tenant("m1"), await plane.tenant("m1")
    second = await plane.allocation(ada.member["id"], ["m1"], name="second")
    mine = plane.book(ada)
    theirs = plane.book(bob, cost_nano=7)

    async def ids(path: str, tenant: Any) -> list[str]:
        page = await plane.ok("GET", path, bearer=tenant.secret)
        return [item.get("id") or item["allocation_id"] for item in page["items"]]

    assert await ids("/me/allocations", ada) == [second["id"], ada.allocation["id"]]
    assert await ids("/me/allocations", bob) == [bob.allocation["id"]]
    assert await ids("/me/keys", ada) == [ada.key["id"]]
    assert await ids("/me/calls", ada) == [mine]
    assert await ids("/me/calls", bob) == [theirs]
    assert await ids("/me/usage", ada) == [ada.allocation["id"]]
    assert await ids(f"/me/calls?allocation_id={bob.allocation['id']}", ada) == []
    assert await ids(f"/me/calls?key_id={bob.key['id']}", ada) == []
    assert await ids(f"/me/usage?allocation_id={bob.allocation['id']}", ada) == []
    asked = await plane.call("GET", f"/me/calls?member_id={bob.member['id']}", bearer=ada.secret)
    assert asked.status_code == 400
    keys = await plane.call("GET", "/me/keys", bearer=ada.secret)
    assert ada.secret not in keys.text


async def test_my_allocations_have_the_fields_of_the_contract_and_no_others(plane: Any) -> None:
    tenant = await plane.tenant(
        "m1", quota_tokens_per_month=100, quota_cost_usd_per_month="1", name="Course"
    )
    plane.account(
        tenant.allocation["id"],
        used_tokens=80,
        held_tokens=15,
        used_nano=123_000_000,
        held_nano=1,
        unpriced_calls=3,
    )
    [mine] = (await plane.ok("GET", "/me/allocations", bearer=tenant.secret))["items"]
    start = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    resets_at = (start + timedelta(days=32)).replace(day=1)
    # Nobody called yet: the account is all there is.
    unknown = dict.fromkeys(("date", "at", "basis", "per_day")) | {"state": "too_little_data"}
    assert mine == {
        "id": tenant.allocation["id"],
        "name": "Course",
        "models": ["m1"],
        "status": "active",
        "quota_tokens_per_month": 100,
        "tokens_used_this_month": 80,
        "tokens_held": 15,
        "quota_cost_usd_per_month": "1.00",
        "cost_used_this_month": "0.123",
        "cost_held": "0.000000001",
        "unpriced_calls_this_month": 3,
        "resets_at": resets_at.isoformat().replace("+00:00", "Z"),
        "state": "near",
        "cost_projection": unknown,
        "tokens_projection": unknown,
        "effective_tokens_per_month": 100,
        "effective_cost_usd_per_month": "1.00",
        "top_ups": [],
        "binds": {
            "owner": "allocation",
            "owner_id": tenant.allocation["id"],
            "owner_name": "Course",
            "meter": "tokens",
            "window": "month",
            "amount": 100,
            "used": 80,
            "held": 15,
            "remaining": 5,
            "resets_at": resets_at.isoformat().replace("+00:00", "Z"),
        },
    }
