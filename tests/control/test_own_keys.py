"""What members do with their own keys, and with nothing else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from app.ids import uuid7
from tests.control.browser import Browser, Somebody, Town
from tests.control.test_reports import hold

LATER = datetime(2099, 1, 1, tzinfo=UTC)


class Owner(msgspec.Struct):
    """Somebody who has signed in, with an allocation and a key to it."""

    somebody: Somebody
    allocation: Any
    key: Any

    @property
    def browser(self) -> Browser:
        return self.somebody.browser

    @property
    def path(self) -> str:
        return f"/me/keys/{self.key['id']}"

    async def ok(self, method: str, path: str, body: Any = None) -> Any:
        answer = await self.browser.call(method, path, body)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None


async def owner(town: Town, **key: Any) -> Owner:
    plane = town.plane
    if not plane.sql("SELECT 1 FROM models WHERE slug = 'm1'"):
        await plane.model("m1")
    somebody = await town.inside()
    allocation = await plane.allocation(somebody.member["id"], ["m1"])
    added = await plane.key(somebody.member["id"], allocation["id"], **key)
    return Owner(somebody, allocation, added)


def by_name(key: Any) -> dict[tuple[str, str], Any]:
    return {(limit["meter"], limit["window"]): limit["amount"] for limit in key["limits"]}


def limit(meter: str, window: str, amount: Any) -> dict[str, Any]:
    return {"meter": meter, "window": window, "amount": amount}


# Adding


async def test_a_member_adds_a_key_whose_secret_is_shown_this_once(town: Town) -> None:
    ada = await owner(town)
    body = {
        "name": "  thesis ",
        "allocation_ids": [ada.allocation["id"]],
        "expires_at": "2099-01-01T00:00:00Z",
        "one_shot": False,
        "token_budget": 5000,
        "limits": [limit("usd", "day", "0.50"), limit("tokens", "hour", 100)],
    }
    answer = await ada.browser.call("POST", "/me/keys", body)
    assert answer.status_code == 201
    made = answer.json()
    secret = made.pop("key")
    assert secret.startswith("sg_")
    assert made["name"] == "thesis"
    assert made["member_id"] == ada.somebody.member["id"]
    assert made["allocation_ids"] == [ada.allocation["id"]]
    assert made["expires_at"] == "2099-01-01T00:00:00Z"
    assert made["token_budget"] == 5000
    assert by_name(made) == {
        ("usd", "day"): "0.50",
        ("tokens", "hour"): 100,
        ("tokens", "lifetime"): 5000,
    }
    listed = await ada.browser.call("GET", "/me/keys")
    assert listed.json()["items"][0] == made
    assert secret not in listed.text
    # It opens what is its member's.
    seen = await town.plane.ok("GET", "/me/keys", bearer=secret)
    assert seen["items"] == listed.json()["items"]
    events = await town.plane.events(made["id"])
    assert [event["event"] for event in events] == ["key_created", "key_limits_updated"]
    assert {event["actor"] for event in events} == {ada.somebody.email}
    assert secret not in str(events)


async def test_a_key_is_added_to_ones_own_allocations_only(town: Town) -> None:
    ada, bob = await owner(town), await owner(town)
    twin = await town.plane.allocation(ada.somebody.member["id"], ["m1"])
    mine, theirs = ada.allocation["id"], bob.allocation["id"]
    for more, field, status in (
        ({"allocation_ids": [theirs]}, "allocation_ids", 422),
        ({"allocation_ids": [mine, theirs]}, "allocation_ids", 422),
        ({"allocation_ids": [str(uuid7())]}, "allocation_ids", 422),
        ({"allocation_ids": []}, "allocation_ids", 422),
        ({"allocation_ids": [mine, twin["id"]]}, "allocation_ids", 409),
        ({"member_id": bob.somebody.member["id"]}, "member_id", 422),
        ({"name": ""}, "name", 422),
        ({"limits": [limit("usd", "week", "1")]}, "limits[0].window", 422),
        ({"token_budget": -1}, "token_budget", 422),
    ):
        body = {"name": "laptop", "allocation_ids": [mine]} | more
        answer = await ada.browser.call("POST", "/me/keys", body)
        assert answer.status_code == status, more
        assert [error["field"] for error in answer.json()["errors"]] == [field]
    assert len((await ada.ok("GET", "/me/keys"))["items"]) == 1


# Tightening


CHANGES = [
    # Less, or more of them.
    ({"name": "renamed"}, None),
    ({"limits": []}, None),
    ({"limits": [limit("usd", "day", "0.50")]}, None),
    ({"limits": [limit("usd", "day", "0.499999999")]}, None),
    ({"limits": [limit("usd", "day", 0)]}, None),
    ({"limits": [limit("usd", "month", "1000")]}, None),
    ({"limits": [limit("tokens", "rolling:24h", 10)]}, None),
    ({"token_budget": 1000}, None),
    ({"token_budget": 999}, None),
    ({"limits": [limit("tokens", "lifetime", 0)]}, None),
    ({"expires_at": "2099-01-01T00:00:00Z"}, None),
    ({"expires_at": "2098-12-31T23:59:59Z"}, None),
    ({"expires_at": "2020-01-01T00:00:00Z"}, None),
    # More, or none.
    ({"limits": [limit("usd", "day", "0.500000001")]}, "0.50 usd per day"),
    ({"limits": [limit("usd", "day", "0.1"), limit("tokens", "hour", 101)]}, "100 tokens"),
    ({"limits": [limit("tokens", "lifetime", 1001)]}, "1000 tokens per lifetime"),
    ({"token_budget": 1001}, "1000 tokens per lifetime"),
    ({"token_budget": 0}, "1000 tokens per lifetime"),
    ({"token_budget": None}, "1000 tokens per lifetime"),
    ({"expires_at": None}, "expires_at"),
    ({"expires_at": "2099-01-01T00:00:00.000001Z"}, "expires_at"),
    ({"name": "renamed", "token_budget": 1, "expires_at": None}, "expires_at"),
]


async def test_a_member_tightens_a_key_but_does_not_loosen_it(town: Town) -> None:
    ada = await owner(town)
    for patch, named in CHANGES:
        ada.key = await town.plane.key(
            ada.somebody.member["id"],
            ada.allocation["id"],
            expires_at="2099-01-01T00:00:00Z",
            token_budget=1000,
            limits=[limit("usd", "day", "0.50"), limit("tokens", "hour", 100)],
        )
        [before, *_] = (await ada.ok("GET", "/me/keys"))["items"]
        assert before["id"] == ada.key["id"]
        events = await town.plane.events(ada.key["id"])
        answer = await ada.browser.call("PATCH", ada.path, patch)
        [after, *_] = (await ada.ok("GET", "/me/keys"))["items"]
        if named is not None:
            assert answer.status_code == 403, patch
            assert answer.headers["content-type"] == "application/problem+json"
            assert named in answer.json()["detail"]
            assert len(answer.json()["errors"]) == 1
            assert after == before
            assert await town.plane.events(ada.key["id"]) == events
            continue
        assert answer.status_code == 200, f"{patch} {answer.text}"
        assert answer.json() == after
        assert answer.headers["etag"]
        # What was named is so, and what was not named stays.
        wanted = {(one["meter"], one["window"]): one["amount"] for one in patch.get("limits", [])}
        if "token_budget" in patch:
            wanted["tokens", "lifetime"] = patch["token_budget"]
        expected = by_name(before) | wanted
        assert {name: float(amount) for name, amount in by_name(after).items()} == {
            name: float(amount) for name, amount in expected.items()
        }
        for field in ("name", "expires_at"):
            assert after[field] == patch.get(field, before[field]), patch
        assert after["hint"] == before["hint"]


async def test_a_key_without_limits_can_be_given_any(town: Town) -> None:
    ada = await owner(town)
    soon = (datetime.now(UTC) + timedelta(hours=1)).replace(microsecond=0)
    patch = {"expires_at": soon.isoformat(), "token_budget": 7}
    key = await ada.ok("PATCH", ada.path, patch)
    assert datetime.fromisoformat(key["expires_at"]) == soon
    assert key["token_budget"] == 7
    assert await ada.browser.status("PATCH", ada.path, {"token_budget": 8}) == 403


REFUSED = [
    {"allocation_ids": []},
    {"one_shot": False},
    {"member_id": str(uuid7())},
    {"revoked_at": None},
    {"name": None},
    {"limits": None},
    {"limits": [limit("usd", "day", None)]},
    {"limits": [limit("usd", "day", "1"), limit("usd", "day", "2")]},
    {"limits": [limit("tokens", "lifetime", 1)], "token_budget": 2},
    {"token_budget": 1.5},
    {"expires_at": "2030-01-01T00:00:00"},
    {"limits": [limit("tokens", f"rolling:{n}h", 1) for n in range(1, 22)]},
]


async def test_what_members_may_not_name_is_refused(town: Town) -> None:
    ada = await owner(town)
    before = await ada.ok("GET", "/me/keys")
    for patch in REFUSED:
        answer = await ada.browser.call("PATCH", ada.path, patch)
        assert answer.status_code == 422, patch
        assert answer.json()["errors"], patch
    assert await ada.ok("GET", "/me/keys") == before


async def test_limits_add_up_to_what_a_key_can_have(town: Town) -> None:
    ada = await owner(town)
    first = [limit("tokens", f"rolling:{n}h", 1) for n in range(1, 20)]
    await ada.ok("PATCH", ada.path, {"limits": first})
    two = [limit("usd", "day", "1"), limit("usd", "month", "1")]
    answer = await ada.browser.call("PATCH", ada.path, {"limits": two})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "limits"
    # The twentieth, and again what there is.
    key = await ada.ok("PATCH", ada.path, {"limits": two[:1]})
    assert len(key["limits"]) == 20
    await ada.ok("PATCH", ada.path, {"limits": first})


async def test_a_key_is_not_changed_under_someone_who_saw_another_state(town: Town) -> None:
    ada = await owner(town)
    old = (await ada.browser.call("PATCH", ada.path, {"name": "one"})).headers["etag"]
    await ada.ok("PATCH", ada.path, {"name": "two"})
    answer = await ada.browser.call("PATCH", ada.path, {"name": "three"}, if_match=old)
    assert answer.status_code == 412


# Rotating and revoking


async def test_a_member_rotates_a_key(town: Town) -> None:
    ada = await owner(town)
    rotated = await ada.ok("POST", f"{ada.path}/rotate")
    assert rotated["key"] != ada.key["key"]
    await town.plane.deps.directory.refresh()
    assert (await town.plane.call("GET", "/me/keys", bearer=ada.key["key"])).status_code == 401
    assert (await town.plane.call("GET", "/me/keys", bearer=rotated["key"])).status_code == 200
    assert [event["event"] for event in await town.plane.events(ada.key["id"])] == [
        "key_created",
        "key_rotated",
    ]


async def test_a_one_shot_key_that_was_used_stays_used(town: Town) -> None:
    ada = await owner(town, one_shot=True)
    fresh = await ada.ok("POST", f"{ada.path}/rotate")
    town.plane.sql("UPDATE keys SET used_at = now()")
    answer = await ada.browser.call("POST", f"{ada.path}/rotate")
    assert answer.status_code == 409
    assert (await town.plane.call("GET", "/me/keys", bearer=fresh["key"])).status_code == 401
    # An admin may, as before.
    admin = await town.plane.ok("POST", f"/admin/keys/{ada.key['id']}/rotate")
    assert admin["used_at"] is None


async def test_a_member_revokes_a_key_for_good(town: Town) -> None:
    ada = await owner(town)
    for _ in range(2):
        answer = await ada.browser.call("DELETE", ada.path)
        assert (answer.status_code, answer.content) == (204, b"")
    await town.plane.deps.directory.refresh()
    assert (await town.plane.call("GET", "/me/keys", bearer=ada.key["key"])).status_code == 401
    [shown] = (await ada.ok("GET", "/me/keys"))["items"]
    assert shown["revoked_at"] is not None
    assert await ada.browser.status("POST", f"{ada.path}/rotate") == 409
    assert [event["event"] for event in await town.plane.events(ada.key["id"])] == [
        "key_created",
        "key_revoked",
    ]


# Nobody else's


TRIES = [
    ("PATCH", "/me/keys/{id}", {"name": "mine now"}),
    ("PATCH", "/me/keys/{id}", {}),
    ("PATCH", "/me/keys/{id}", {"token_budget": 1}),
    ("POST", "/me/keys/{id}/rotate", None),
    ("DELETE", "/me/keys/{id}", None),
]


async def test_the_key_of_someone_else_is_not_there(town: Town) -> None:
    ada = await owner(town)
    before = town.plane.sql("SELECT * FROM keys")
    told = set()
    # Not for an admin either: under /me is one's own.
    for role in ("member", "auditor", "admin"):
        somebody = await town.inside(role)
        for method, path, body in TRIES:
            for id in (ada.key["id"], str(uuid7()), "nonsense"):
                for headers in ({}, {"if_match": '"another state"'}):
                    answer = await somebody.browser.call(
                        method, path.format(id=id), body, **headers
                    )
                    assert answer.status_code == 404, f"{role} {method} {path} {body}"
                    told.add(answer.content)
    assert len(told) == 1
    assert town.plane.sql("SELECT * FROM keys") == before


async def test_a_member_stops_their_own_realtime_sessions_and_no_one_elses(town: Town) -> None:
    plane = town.plane
    ada, eve = await owner(town), await owner(town)

    class Tenant:
        member, allocation, key = ada.somebody.member, ada.allocation, ada.key

    session_id = hold(plane, Tenant)
    path = f"/me/realtime-sessions/{session_id}"
    assert await eve.browser.status("DELETE", path) == 404
    assert [s["stopping"] for s in (await ada.ok("GET", "/me/realtime-sessions"))["items"]] == [
        False
    ]
    assert await ada.browser.status("DELETE", path, csrf=None) == 403
    assert await ada.browser.status("DELETE", path) == 204
    assert [s["stopping"] for s in (await ada.ok("GET", "/me/realtime-sessions"))["items"]] == [
        True
    ]
    [event] = await plane.events(session_id)
    assert (event["event"], event["actor"]) == ("realtime_session_killed", ada.somebody.email)
