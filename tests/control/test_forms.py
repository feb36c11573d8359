"""Every field that can be sent is stored, and shown again: a test for each form.

`FORMS` holds, for every operation that takes a body, bodies that name every field of it, each with
a value that it would not have by itself, and where each is shown again. An operation or a field
that is missing here fails a test, and so does a page that sends to an operation that is not here.
That a page sends no field that an operation does not take is known twice over: the client is typed
by the server's own description, and the server refuses fields that it does not know.

The pages themselves are filled in and read again in `tests/browser`.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.control.browser import PASSWORD, Browser, Town
from tests.control.conftest import Tenant

PAGES = Path(__file__).parents[2] / "frontend" / "src"

SOON = (datetime.now(UTC) + timedelta(days=3)).replace(microsecond=0)
LATER = SOON + timedelta(days=2)
HOOK, OTHER_HOOK = "https://203.0.114.7/hook?team=1", "https://203.0.114.8/other"


class World:
    """What there is before a form is sent, by name: a body says `@pool` for its id."""

    def __init__(self, plane: Any, me: Browser, ids: dict[str, str]) -> None:
        self.plane = plane
        self.me = me
        self.ids = ids
        self.sent: Any = None

    async def ask(self, path: str, *, own: bool = False) -> Any:
        """Read something, as the admin or as oneself."""
        if not own:
            return await self.plane.ok("GET", path)
        answer = await self.me.call("GET", path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def filled(self, value: Any) -> Any:
        """Return a body with ids for their names."""
        if isinstance(value, dict):
            return {name: self.filled(one) for name, one in value.items()}
        if isinstance(value, list):
            return [self.filled(one) for one in value]
        if isinstance(value, str) and value.startswith("@"):
            return self.ids[value[1:]]
        return value.isoformat() if isinstance(value, datetime) else value


Check = Callable[[World, Any, Any], Awaitable[None]]
"""Given what was sent in a field and what was answered, fails unless it is kept."""


class Form(msgspec.Struct, frozen=True):
    """A body that is sent, and where its fields are shown again."""

    body: dict[str, Any]
    read: str | None = None
    """The path; what it lists is looked through for the id. None: the answer itself shows them."""
    checks: dict[str, Check] = {}
    """Of fields that are shown elsewhere, by another name, or not at all."""


def shows(shown: Any, sent: Any) -> bool:
    """Tell whether what is shown has all that was sent, however amounts and instants are written."""
    if isinstance(sent, dict):
        return isinstance(shown, dict) and all(shows(shown.get(k), v) for k, v in sent.items())
    if isinstance(sent, list):
        return all(any(shows(one, each) for one in shown) for each in sent)
    if shown == sent:
        return True
    if isinstance(shown, bool) or isinstance(sent, bool) or shown is None or sent is None:
        return False
    try:
        return Decimal(str(shown)) == Decimal(str(sent))
    except InvalidOperation:
        pass
    try:
        return datetime.fromisoformat(str(shown)) == datetime.fromisoformat(str(sent))
    except ValueError:
        return False


async def _in_audit(world: World, sent: Any, _: Any) -> None:
    events = (await world.ask("/admin/audit?limit=50"))["items"]
    assert sent in [event["reason"] for event in events]


def _as(path: str) -> Check:
    """Shown in the answer by another name: `tokens.new_cap`."""

    async def check(_: World, sent: Any, answer: Any) -> None:
        for name in path.split("."):
            answer = answer[name]
        assert shows(answer, sent), (path, answer, sent)

    return check


def _is(path: str, expected: Any) -> Check:
    """Not shown, but that it is there: `has_password`."""

    async def check(world: World, _: Any, answer: Any) -> None:
        await _as(path)(world, expected, answer)

    return check


async def _signs_in(world: World, sent: Any, answer: Any) -> None:
    email = answer["email"] if answer else world.ids["my_email"]
    answer = await world.plane.call(
        "POST", "/auth/login", {"email": email, "password": sent}, bearer=None
    )
    assert answer.status_code == 200


async def _signed_in(_: World, sent: Any, answer: Any) -> None:
    assert answer["member"]["email"] == sent


async def _had_to_fit(world: World, sent: Any, _: Any) -> None:
    """What is proved by is not kept: another one would have been refused."""
    answer = await world.plane.call(
        "POST", "/auth/login", {"email": world.ids["my_email"], "password": sent + "x"}, bearer=None
    )
    assert answer.status_code == 401


async def _lasts(_: World, sent: Any, answer: Any) -> None:
    issued_at, expires_at = (
        datetime.fromisoformat(answer[name]) for name in ("issued_at", "expires_at")
    )
    assert expires_at - issued_at == timedelta(days=sent)


async def _opens(world: World, _: Any, answer: Any) -> None:
    assert answer["email"] == world.ids["invited"]


async def _is_spent(world: World, sent: Any, _: Any) -> None:
    again = await world.plane.call("POST", "/auth/invitation", {"token": sent}, bearer=None)
    assert again.status_code == 410


async def _signs_in_invited(world: World, sent: Any, answer: Any) -> None:
    await _signs_in(world, sent, answer["member"])


async def _tested_with(world: World, sent: Any, _: Any) -> None:
    events = (await world.ask("/admin/audit?event=provider_tested"))["items"]
    assert events[0]["after"]["model"] == sent


async def _all_changed(world: World, sent: Any, answer: Any) -> None:
    assert [row["id"] for row in answer["rows"]] == sent
    assert answer["applied"]


async def _changed_so(world: World, sent: Any, answer: Any) -> None:
    for row in answer["rows"]:
        shown = await world.ask(f"/admin/allocations/{row['id']}")
        assert shows(shown, sent), (shown, sent)


async def _imported(world: World, sent: str, answer: Any) -> None:
    shown = await world.ask(f"/admin/allocations/{answer['rows'][0]['id']}")
    header, row = (line.split(",") for line in sent.splitlines())
    told = dict(zip(header, row, strict=True))
    assert shown["member_id"] == world.ids["member"]
    assert shown["pool_id"] == world.ids["pool"]
    assert shown["models"] == [told["models"]]
    for name in ("name", "quota_cost_usd_per_month", "quota_tokens_per_month"):
        assert shows(shown[name], told[name])


async def _decided_because(world: World, sent: Any, answer: Any) -> None:
    assert answer["decision_reason"] == sent


def _given(name: str) -> Check:
    """Shown of the top-up that a request has led to."""

    async def check(world: World, sent: Any, answer: Any) -> None:
        topped = (await world.ask("/admin/top-ups"))["items"]
        [given] = [one for one in topped if one["id"] == answer["top_up_id"]]
        assert shows(given[name], sent), given

    return check


async def _booked_because(world: World, sent: Any, _: Any) -> None:
    assert (await world.ask("/admin/adjustments"))["items"][0]["reason"] == sent


def _why(form: str) -> str:
    return f"because of {form}"


PROVIDER = {
    "name": "Upstream",
    "kind": "mistral",
    "base_url": "https://api.mistral.ai",
    "api_key": "sk-new",
}
MODEL = {
    "provider_id": "@other_provider",
    "upstream_model": "their-name",
    "endpoints": ["embeddings", "moderations"],
    "context_window": 1000,
    "max_output_tokens": 10,
    "bytes_per_token": 3,
    "image_tokens_max": 7,
}
MEMBER = {
    "email": "new@example.org",
    "display_name": "New One",
    "role": "auditor",
    "password": "a password of theirs",
    "must_change_password": True,
}
ALLOCATION = {
    "name": "Thesis",
    "models": ["m1", "m2"],
    "pool_id": "@pool",
    "quota_tokens_per_month": 77,
    "quota_cost_usd_per_month": "1.25",
    "overrun_policy": "last_call",
    "ledger_outage": "allow",
    "unpriced": "deny",
    "billing_timezone": "Asia/Taipei",
    "floor_tokens": 5,
    "locked": True,
    "service": True,
}
LIMITS = [
    {"meter": "usd", "window": "day", "amount": "0.50"},
    {"meter": "tokens", "window": "hour", "amount": 9},
]
KEY = {
    "name": "desk",
    "allocation_ids": ["@allocation"],
    "expires_at": SOON,
    "one_shot": True,
    "token_budget": 500,
    "limits": LIMITS,
}
POOL = {
    "name": "Physics",
    "parent_id": "@pool",
    "limits": [{"meter": "usd", "window": "day", "amount": "0.50"}],
    "quota_tokens_per_month": 1000,
    "quota_cost_usd_per_month": "2.50",
    "shares_out": True,
}
RULE = {
    "destination_id": "@destination",
    "owner": "allocation",
    "owner_id": "@allocation",
    "meter": "usd",
    "window": "day",
    "enabled": False,
}
ASKED = {"allocation_id": "@allocation", "meter": "usd", "amount": "0.75", "expires": SOON}
PASSWORD_KEPT: Check = _is("has_password", True)

FORMS: dict[str, list[Form]] = {
    "POST /api/auth/login": [
        Form(
            {"email": "@my_email", "password": PASSWORD},
            checks={"email": _signed_in, "password": _had_to_fit},
        )
    ],
    "POST /api/auth/password": [
        Form(
            {"current_password": PASSWORD, "new_password": "another password"},
            checks={"current_password": _had_to_fit, "new_password": _signs_in},
        )
    ],
    "POST /api/admin/providers": [
        Form(PROVIDER, "/admin/providers/{id}", {"api_key": _is("has_credential", True)})
    ],
    "PATCH /api/admin/providers/{id}": [
        Form(PROVIDER, "/admin/providers/{id}", {"api_key": _is("has_credential", True)}),
        Form({"api_key": None}, "/admin/providers/{id}", {"api_key": _is("has_credential", False)}),
    ],
    "POST /api/admin/providers/{id}/test": [Form({"model": "m1"}, checks={"model": _tested_with})],
    "POST /api/admin/models": [Form({"slug": "new/model", **MODEL}, "/admin/models/new/model")],
    "PATCH /api/admin/models/{slug}": [Form(MODEL, "/admin/models/m1")],
    "POST /api/admin/prices": [
        Form(
            {
                "model": "m1",
                "rates": [{"unit": "output_token", "usd": "0.15", "per": 1000000}],
                "effective_from": SOON,
            },
            "/admin/prices?model=m1",
        )
    ],
    "POST /api/admin/members": [Form(MEMBER, "/admin/members/{id}", {"password": PASSWORD_KEPT})],
    "PATCH /api/admin/members/{id}": [
        Form(
            {**MEMBER, "must_change_password": False},
            "/admin/members/{id}",
            {"password": _signs_in},
        ),
        Form({"status": "disabled", "must_change_password": True}, "/admin/members/{id}"),
    ],
    "POST /api/admin/allocations": [
        Form(
            {**ALLOCATION, "member_id": "@member", "reason": _why("adding")},
            "/admin/allocations/{id}",
            {"reason": _in_audit},
        )
    ],
    "PATCH /api/admin/allocations/{id}": [
        Form(
            {**ALLOCATION, "status": "quarantined", "reason": _why("changing")},
            "/admin/allocations/{id}",
            {"reason": _in_audit},
        )
    ],
    "POST /api/admin/allocations/{id}/preview": [
        Form(
            {"quota_tokens_per_month": 41, "quota_cost_usd_per_month": "4.25"},
            checks={
                "quota_tokens_per_month": _as("tokens.new_cap"),
                "quota_cost_usd_per_month": _as("usd.new_cap"),
            },
        )
    ],
    "POST /api/admin/allocations/bulk": [
        Form(
            {
                "ids": ["@allocation", "@other_allocation"],
                # A time zone is changed one at a time.
                "changes": {k: v for k, v in ALLOCATION.items() if k != "billing_timezone"}
                | {"status": "paused"},
                "reason": _why("many"),
                "dry_run": False,
            },
            checks={"ids": _all_changed, "changes": _changed_so, "reason": _in_audit},
        )
    ],
    "POST /api/admin/allocations/import": [
        Form(
            {
                "csv": "email,name,models,quota_cost_usd_per_month,quota_tokens_per_month,pool\n"
                "their@example.org,Course,m1,1.25,50,the pool\n",
                "dry_run": False,
                "reason": _why("a sheet"),
            },
            checks={"csv": _imported, "reason": _in_audit},
        )
    ],
    "POST /api/admin/keys": [
        Form(
            {**KEY, "member_id": "@me", "alert_threshold": 400, "alert_webhook": HOOK},
            "/admin/keys/{id}",
        )
    ],
    "PATCH /api/admin/keys/{id}": [
        Form(
            {
                **KEY,
                "alert_threshold": 400,
                "alert_webhook": OTHER_HOOK,
                "reason": _why("a key"),
            },
            "/admin/keys/{id}",
            {"reason": _in_audit},
        )
    ],
    "POST /api/me/keys": [Form(KEY, "/me/keys")],
    "PATCH /api/me/keys/{id}": [
        Form({k: KEY[k] for k in ("name", "expires_at", "token_budget", "limits")}, "/me/keys")
    ],
    "POST /api/admin/destinations": [
        Form(
            {
                "name": "ops",
                "kind": "webhook",
                "address": HOOK,
                "events": ["request_raised", "unpriced_model_seen"],
                "enabled": False,
            },
            "/admin/destinations/{id}",
        )
    ],
    "PATCH /api/admin/destinations/{id}": [
        Form(
            {
                "name": "others",
                "address": OTHER_HOOK,
                "events": ["request_raised"],
                "enabled": False,
                "reason": _why("a destination"),
            },
            "/admin/destinations/{id}",
            {"reason": _in_audit},
        )
    ],
    "POST /api/admin/alert-rules": [
        Form({**RULE, "threshold": "0.25"}, "/admin/alert-rules/{id}"),
        Form({**RULE, "percent": "82.5"}, "/admin/alert-rules/{id}"),
    ],
    "PATCH /api/admin/alert-rules/{id}": [
        Form(
            {
                "destination_id": "@other_destination",
                "threshold": 88,
                "enabled": False,
                "reason": _why("a rule"),
            },
            "/admin/alert-rules/{id}",
            {"reason": _in_audit},
        ),
        Form({"percent": "82.5"}, "/admin/alert-rules/{id}"),
    ],
    "POST /api/admin/invitations": [
        Form(
            {
                "email": "carol@example.org",
                "display_name": "Carol",
                "role": "auditor",
                "valid_days": 3,
            },
            "/admin/invitations",
            {"valid_days": _lasts},
        )
    ],
    "POST /api/auth/invitation": [Form({"token": "@token"}, checks={"token": _opens})],
    "POST /api/auth/invitation/accept": [
        Form(
            {"token": "@token", "password": PASSWORD + "9", "display_name": "Dave the Second"},
            checks={
                "token": _is_spent,
                "password": _signs_in_invited,
                "display_name": _as("member.display_name"),
            },
        )
    ],
    "POST /api/admin/adjustments": [
        Form(
            {
                "meter": "usd",
                "amount": "0.35",
                "reason": _why("an allocation"),
                "allocation_id": "@allocation",
            },
            "/admin/adjustments",
            {"meter": _is("cost_usd", "0.35"), "amount": _as("cost_usd")},
        ),
        Form(
            {"meter": "tokens", "amount": 35, "reason": _why("a call"), "call_id": "@call"},
            "/admin/adjustments",
            {"meter": _is("tokens", 35), "amount": _as("tokens")},
        ),
    ],
    "POST /api/admin/repricing": [
        Form(
            {
                "model": "m1",
                "reason": _why("prices"),
                "from": datetime.now(UTC) - timedelta(days=1),
                "to": datetime.now(UTC) + timedelta(days=1),
                "dry_run": False,
            },
            checks={"reason": _booked_because},
        )
    ],
    "POST /api/admin/pools": [
        Form({**POOL, "reason": _why("a pool")}, "/admin/pools/{id}", {"reason": _in_audit})
    ],
    "PATCH /api/admin/pools/{id}": [
        Form(
            {**POOL, "parent_id": "@outer_pool", "reason": _why("another pool")},
            "/admin/pools/{id}",
            {"reason": _in_audit},
        )
    ],
    "POST /api/admin/pools/{id}/rebalance": [
        Form({"dry_run": False, "reason": _why("shares")}, checks={"reason": _in_audit})
    ],
    "POST /api/admin/top-ups": [
        Form(
            {**ASKED, "reason": _why("a top-up")}, "/admin/top-ups", {"expires": _as("expires_at")}
        )
    ],
    "POST /api/me/requests": [Form({**ASKED, "reason": _why("me")}, "/me/requests")],
    "POST /api/admin/requests/{id}/approve": [
        Form(
            {"amount": "0.33", "expires": LATER, "reason": _why("yes")},
            checks={
                "amount": _given("amount"),
                "expires": _given("expires_at"),
                "reason": _decided_because,
            },
        )
    ],
    "POST /api/admin/requests/{id}/decline": [
        Form({"reason": _why("no")}, checks={"reason": _decided_because})
    ],
}

THEIRS = {
    "providers": "provider",
    "models": "model",
    "members": "member",
    "allocations": "allocation",
    "keys": "key",
    "destinations": "destination",
    "alert-rules": "rule",
    "pools": "pool",
    "requests": "request",
}
"""What the id in a path is of."""


@pytest.fixture
async def world(plane: Any, town: Town) -> World:
    """One of everything, and a member who has signed in to ask for more of it."""
    me = await town.inside()
    ids = {"me": me.member["id"], "my_email": me.email, "model": "m1"}

    async def make(name: str, path: str, body: dict[str, Any], **more: Any) -> Any:
        made = await plane.ok("POST", f"/admin/{path}", World(plane, me.browser, ids).filled(body))
        ids[name] = made["id"]
        return made

    for name in ("provider", "other_provider"):
        await make(
            name, "providers", {"name": name, "kind": "openai", "base_url": "https://example.com"}
        )
    for slug in ("m1", "m2"):
        await plane.model(slug, provider_id=ids["provider"])
    await make("member", "members", {"email": "their@example.org", "display_name": "They"})
    ids["invited"] = "dave@example.org"
    invitation = await make("invitation", "invitations", {"email": "dave@example.org"})
    ids["token"] = invitation["link"].partition("#")[2]
    for name in ("outer_pool", "pool"):
        await make(name, "pools", {"name": name})
    await plane.ok("PATCH", f"/admin/pools/{ids['pool']}", {"name": "the pool"})
    given = {"member_id": "@me", "quota_cost_usd_per_month": "9", "quota_tokens_per_month": 900}
    allocation = await make("allocation", "allocations", {**given, "models": ["m1"]})
    await make("other_allocation", "allocations", {**given, "models": ["m2"]})
    # What a pool shares out among.
    await make("pooled", "allocations", {**given, "models": ["m1"], "pool_id": "@pool"})
    key = await make(
        "key",
        "keys",
        {"member_id": "@me", "name": "mine", "allocation_ids": ["@other_allocation"]},
    )
    for name in ("destination", "other_destination"):
        await make(name, "destinations", {"name": name, "kind": "webhook", "address": HOOK})
    await make(
        "rule",
        "alert-rules",
        {
            "destination_id": "@destination",
            "owner": "pool",
            "owner_id": "@pool",
            "meter": "tokens",
            "threshold": 10,
        },
    )
    asked = await me.browser.call(
        "POST",
        "/me/requests",
        World(plane, me.browser, ids).filled({**ASKED, "reason": "more", "meter": "usd"})
        | {"allocation_id": ids["other_allocation"]},
    )
    ids["request"] = asked.json()["id"]
    at = datetime.now(UTC)
    await plane.ok(
        "POST",
        "/admin/prices",
        {
            "model": "m1",
            "effective_from": (at - timedelta(days=2)).isoformat(),
            "rates": [{"unit": "input_token", "usd": "0.01"}],
        },
    )
    account = plane.account(allocation["id"])
    tenant = Tenant(me.member, allocation, key)
    ids["call"] = plane.book(tenant, cost_nano=None, account_ids=[account])
    return World(plane, me.browser, ids)


def operations(plane: Any) -> dict[str, type[msgspec.Struct]]:
    """Return every operation that takes a body, and the body."""
    found = {}
    for route in plane.app.routes:
        for handler in getattr(route, "route_handlers", []):
            body = handler.parsed_data_field
            for method in handler.http_methods if body is not None else ():
                path = re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path)
                found[f"{method} {path}"] = body.annotation
    return found


def test_every_field_of_every_operation_has_its_place_here(plane: Any) -> None:
    known = operations(plane)
    assert set(FORMS) == set(known)
    for name, body in known.items():
        fields = {field.encode_name for field in msgspec.structs.fields(body)}
        named = {field for form in FORMS[name] for field in form.body}
        assert named == fields, name
        for form in FORMS[name]:
            # One that is as it would be anyway shows nothing; that it is done shows by itself.
            for field in msgspec.structs.fields(body):
                if field.encode_name in form.body and field.name != "dry_run":
                    assert form.body[field.encode_name] != field.default, (name, field.name)


def test_pages_send_to_what_has_its_place_here_and_in_no_other_way(plane: Any) -> None:
    source = "\n".join(path.read_text() for path in PAGES.rglob("*.ts*"))
    calls = len(re.findall(r"\bapi\.(?:POST|PUT|PATCH)\b", source))
    sends = re.findall(r"\bapi\.(POST|PUT|PATCH)\(\s*'([^']+)'", source)
    assert calls == len(sends)
    assert re.findall(r"\bfetch\(\s*['`]/api", source) == []
    # The others send nothing but their address.
    bodies = {f"{method} {path}" for method, path in sends} & set(operations(plane))
    assert len(bodies) > 25


@pytest.mark.parametrize(
    ("name", "nth"), [(name, nth) for name, forms in FORMS.items() for nth in range(len(forms))]
)
async def test_what_is_sent_is_stored_and_shown_again(world: World, name: str, nth: int) -> None:
    form, (method, path) = FORMS[name][nth], name.split(" ")
    own = path.startswith(("/api/me/", "/api/auth/"))
    collection = path.split("/")[3]
    id = world.ids.get(THEIRS.get(collection, ""), "")
    body = world.filled(form.body)
    target = re.sub(r"\{\w+\}", id, path.removeprefix("/api"))
    call = world.me.call if own else world.plane.call
    answer = await call(method, target, body)
    assert answer.is_success, answer.text
    shown = answer.json() if answer.content else None
    if shown is not None and form.read is not None:
        id = shown.get("id", id)
        shown = await world.ask(form.read.replace("{id}", id), own=own)
        if "items" in shown:
            [shown] = [one for one in shown["items"] if one["id"] == id]
    for field, sent in body.items():
        check = form.checks.get(field)
        if check is not None:
            await check(world, sent, shown)
        else:
            assert shows(shown[field], sent), f"{field}: {sent!r} is shown as {shown[field]!r}"
