"""Where alerts go and at which thresholds: what is kept, refused, shown once, and recorded."""

from __future__ import annotations

import base64
import dataclasses
from ipaddress import ip_network
from typing import Any

import pytest
from litestar import Litestar

from app.control import CONTROL_EXCEPTION_HANDLERS, control_router
from app.ids import uuid7
from app.mail import Mailer
from app.receivers import Receivers
from app.settings import MailServer

HOOK = {"name": "ops", "kind": "webhook", "address": "https://203.0.114.7/hook?team=1"}
MAIL = {"name": "on call", "kind": "email", "address": "on.call+ai@example.org"}
MAILER = Mailer(MailServer("mail.invalid", 25, False, None, None), "spendgate@example.org")
UNKNOWN_ID = "0197c5a0-0000-7000-8000-000000000000"


def with_settings(plane: Any, **deps: Any) -> None:
    """Serve with other settings from now on."""
    plane.deps = dataclasses.replace(plane.deps, **deps)
    app = Litestar([control_router(plane.deps)], exception_handlers=CONTROL_EXCEPTION_HANDLERS)
    plane.client._transport.app = app


async def destination(plane: Any, **fields: Any) -> Any:
    return await plane.ok("POST", "/admin/destinations", HOOK | fields)


async def rule(plane: Any, tenant: Any, **fields: Any) -> Any:
    """Add a rule, on the allocation unless told otherwise."""
    if "destination_id" not in fields:
        fields["destination_id"] = (await destination(plane))["id"]
    body = {"owner": "allocation", "owner_id": tenant.allocation["id"], "meter": "usd"}
    return await plane.ok("POST", "/admin/alert-rules", body | fields)


async def refused(
    plane: Any, method: str, path: str, body: Any, status: int, field: str | None = None
) -> str:
    """Send what must be refused, naming the field; return what was said."""
    answer = await plane.call(method, path, body)
    assert answer.status_code == status, f"{answer.status_code} {answer.text}"
    if field is not None:
        assert [error["field"] for error in answer.json()["errors"]] == [field], answer.text
    return str(answer.json()["detail"])


def watched(plane: Any, owner_id: str) -> list[Any]:
    """Return the totals of an owner that are kept for alerts."""
    return plane.sql(
        "SELECT meter, window_kind FROM limits WHERE owner_id = %s AND watched ORDER BY 1, 2",
        owner_id,
    )


def queued(plane: Any, destination_id: str, status: str = "pending") -> str:
    """Queue an event for a destination, as the worker would; return the delivery's id."""
    event, delivery = uuid7(), uuid7()
    plane.sql(
        "INSERT INTO events (id, kind, body, routed_at) VALUES (%s, 'request_raised', %s, now())",
        event,
        '{"event":"request_raised","amount":"2.50"}',
    )
    plane.sql(
        "INSERT INTO deliveries (id, event_id, destination_id, status) VALUES (%s, %s, %s, %s)",
        delivery,
        event,
        destination_id,
        status,
    )
    return delivery


# Destinations


async def test_a_webhook_is_stored_and_shows_its_secret_once(plane: Any) -> None:
    events = ["request_raised", "allocation_exhausted"]
    added = await destination(plane, events=events)
    secret = added.pop("webhook_secret")
    assert secret.startswith("whsec_")
    assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 32
    assert {name: added[name] for name in HOOK} == HOOK
    assert (added["events"], added["enabled"], added["key_id"]) == (events, True, None)
    assert await plane.ok("GET", f"/admin/destinations/{added['id']}") == added
    assert (await plane.ok("GET", "/admin/destinations"))["items"] == [added]
    everything = (await plane.call("GET", "/admin/audit")).text
    assert secret not in everything
    assert secret.removeprefix("whsec_") not in everything
    [(sealed, version)] = plane.sql("SELECT secret, secret_version FROM destinations")
    assert secret.encode() not in sealed
    assert plane.deps.vault.unseal(sealed, added["id"], version) == secret
    with pytest.raises(ValueError, match="another secret or row"):
        plane.deps.vault.unseal(sealed, UNKNOWN_ID, version)


async def test_an_email_destination_needs_a_mail_server_and_has_no_secret(plane: Any) -> None:
    said = await refused(plane, "POST", "/admin/destinations", MAIL, 422, "kind")
    assert "SPENDGATE_SMTP_URL" in said
    with_settings(plane, mailer=MAILER)
    added = await plane.ok("POST", "/admin/destinations", MAIL)
    assert "webhook_secret" not in added
    assert added["address"] == MAIL["address"]
    path = f"/admin/destinations/{added['id']}"
    await refused(plane, "POST", f"{path}/rotate-secret", None, 409, "id")
    await refused(plane, "PATCH", path, {"address": "https://203.0.114.7/"}, 422, "address")


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("http://127.0.0.1/", "a loopback address"),
        ("http://127.0.0.1:8000/x", "a loopback address"),
        ("https://localhost/hook", "a loopback address"),
        ("http://[::1]/", "a loopback address"),
        ("http://10.1.2.3/", "a private address"),
        ("http://192.168.0.1/", "a private address"),
        ("http://[fd00::1]/", "a private address"),
        ("http://169.254.169.254/latest/meta-data", "a cloud's metadata service"),
        ("http://[::ffff:169.254.169.254]/", "a cloud's metadata service"),
        ("http://169.254.1.1/", "a link-local address"),
        ("http://[64:ff9b::a00:1]/", "a private address"),
        ("http://0.0.0.0/", "the unspecified address"),
        ("http://2130706433/", "four decimal numbers"),
        ("http://127.1/", "four decimal numbers"),
        ("ftp://example.org/", "https:// or http://"),
        ("https://user:pw@example.org/", "no user name"),
        ("https://example.org/#x", "no fragment"),
        ("https://exa mple.org/", "without spaces"),
        ("https://example.org\\@127.0.0.1/", "backslashes"),
        ("", "URL"),
    ],
)
async def test_a_webhook_that_leads_inside_is_refused_when_it_is_saved(
    plane: Any, address: str, why: str
) -> None:
    body = HOOK | {"address": address}
    said = await refused(plane, "POST", "/admin/destinations", body, 422, "address")
    assert why in said
    known = await destination(plane)
    path = f"/admin/destinations/{known['id']}"
    assert why in await refused(plane, "PATCH", path, {"address": address}, 422, "address")
    tenant = await plane.tenant("m1")
    key = f"/admin/keys/{tenant.key['id']}"
    body = {"alert_webhook": address}
    assert why in await refused(plane, "PATCH", key, body, 422, "alert_webhook")
    assert plane.sql("SELECT count(*) FROM destinations") == [(1,)]


async def test_networks_that_the_settings_list_are_open_but_not_metadata_services(
    plane: Any,
) -> None:
    networks = [ip_network("127.0.0.0/8"), ip_network("169.254.0.0/16")]
    with_settings(plane, receivers=Receivers(networks))
    await destination(plane, address="http://127.0.0.1:9/hook")
    await destination(plane, address="http://169.254.7.7/hook")
    body = HOOK | {"address": "http://169.254.169.254/"}
    await refused(plane, "POST", "/admin/destinations", body, 422, "address")


async def test_a_name_that_leads_nowhere_now_is_taken(plane: Any) -> None:
    address = "https://no-such-host.invalid/hook"
    assert (await destination(plane, address=address))["address"] == address


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": ""}, "name"),
        ({"kind": "sms"}, "kind"),
        ({"events": ["token_threshold_crossed"]}, "events[0]"),
        ({"events": ["request_raised"] * 2}, "events"),
        ({"secret": "mine"}, "secret"),
        ({"enabled": 1}, "enabled"),
    ],
)
async def test_a_destination_that_makes_no_sense_is_refused(
    plane: Any, body: dict[str, Any], field: str
) -> None:
    await refused(plane, "POST", "/admin/destinations", HOOK | body, 422, field)
    assert plane.sql("SELECT * FROM destinations") == []


@pytest.mark.parametrize(
    "address", ["ops", "a b@example.org", "a@b@c", "Ops <o@example.org>", "a,b@example.org", "é@x"]
)
async def test_an_email_address_must_be_one(plane: Any, address: str) -> None:
    with_settings(plane, mailer=MAILER)
    body = MAIL | {"address": address}
    await refused(plane, "POST", "/admin/destinations", body, 422, "address")


async def test_a_patch_changes_what_it_names_and_a_change_is_recorded(plane: Any) -> None:
    added = await destination(plane, events=["request_raised"])
    del added["webhook_secret"]
    path = f"/admin/destinations/{added['id']}"
    patch = {"name": "night", "events": [], "enabled": False, "address": "http://203.0.114.8/"}
    changed = await plane.ok("PATCH", path, patch | {"reason": "moved"})
    assert changed == added | patch
    assert await plane.ok("PATCH", path, {}) == changed
    created, updated = await plane.events(added["id"])
    assert (created["event"], updated["event"]) == ("destination_created", "destination_updated")
    assert updated["before"] == {name: added[name] for name in patch}
    assert (updated["after"], updated["reason"]) == (patch, "moved")
    await refused(plane, "PATCH", path, {"kind": "email"}, 422, "kind")


async def test_a_change_expects_the_destination_that_was_read(plane: Any) -> None:
    path = f"/admin/destinations/{(await destination(plane))['id']}"
    etag = (await plane.call("GET", path)).headers["etag"]
    assert (await plane.call("PATCH", path, {"name": "b"}, if_match=etag)).status_code == 200
    assert (await plane.call("PATCH", path, {"name": "c"}, if_match=etag)).status_code == 412
    assert (await plane.call("DELETE", path, if_match=etag)).status_code == 412


async def test_a_rotated_secret_is_shown_once_and_the_former_kept_for_a_day(plane: Any) -> None:
    added = await destination(plane)
    path = f"/admin/destinations/{added['id']}"
    rotated = await plane.ok("POST", f"{path}/rotate-secret")
    assert rotated["webhook_secret"].startswith("whsec_")
    assert rotated["webhook_secret"] != added["webhook_secret"]
    assert rotated["former_secret_until"] is not None
    del rotated["webhook_secret"]
    assert await plane.ok("GET", path) == rotated
    [row] = plane.sql(
        "SELECT secret_version, former_secret, former_version,"
        " former_until - now() BETWEEN interval '23h' AND interval '24h' FROM destinations"
    )
    assert (row[0], row[2], row[3]) == (2, 1, True)
    assert plane.deps.vault.unseal(row[1], added["id"], 1) == added["webhook_secret"]
    event = (await plane.events(added["id"]))[-1]
    assert event["event"] == "destination_secret_rotated"
    assert (event["before"], event["after"]) == ({"secret_version": 1}, {"secret_version": 2})


async def test_a_deleted_destination_takes_its_rules_and_its_log_along(plane: Any) -> None:
    tenant = await plane.tenant("m1")
    hook = await destination(plane)
    kept = await rule(plane, tenant, window="day", threshold="1")
    gone = await rule(plane, tenant, window="hour", threshold="1", destination_id=hook["id"])
    plane.sql(
        "INSERT INTO delivery_attempts (id, delivery_id, duration_ms) VALUES (%s, %s, 1)",
        uuid7(),
        queued(plane, hook["id"]),
    )
    path = f"/admin/destinations/{hook['id']}"
    assert (await plane.call("DELETE", path)).status_code == 204
    assert (await plane.call("GET", path)).status_code == 404
    assert (await plane.call("DELETE", path)).status_code == 404
    assert plane.sql("SELECT * FROM deliveries") == []
    assert [one["id"] for one in (await plane.ok("GET", "/admin/alert-rules"))["items"]] == [
        kept["id"]
    ]
    assert watched(plane, tenant.allocation["id"]) == [("usd", "day")]
    assert (await plane.events(gone["id"]))[-1]["event"] == "alert_rule_deleted"
    assert (await plane.events(hook["id"]))[-1]["event"] == "destination_deleted"


# Rules


@pytest.mark.parametrize(
    ("meter", "body", "shown"),
    [
        ("tokens", {"threshold": 100}, {"threshold": 100, "percent": None}),
        ("usd", {"threshold": "4.9"}, {"threshold": "4.90", "percent": None}),
        ("usd", {"threshold": 5}, {"threshold": "5.00", "percent": None}),
        ("usd", {"percent": 80}, {"threshold": None, "percent": 80}),
        ("tokens", {"percent": "99.95"}, {"threshold": None, "percent": 99.95}),
    ],
)
async def test_a_rule_is_kept_exactly_and_shown_again(
    plane: Any, meter: str, body: dict[str, Any], shown: dict[str, Any]
) -> None:
    tenant = await plane.tenant("m1")
    added = await rule(plane, tenant, meter=meter, **body)
    assert {name: added[name] for name in shown} == shown
    assert (added["owner_id"], added["window"]) == (tenant.allocation["id"], "month")
    path = f"/admin/alert-rules/{added['id']}"
    assert await plane.ok("GET", path) == added
    page = await plane.ok("GET", f"/admin/alert-rules?owner_id={tenant.allocation['id']}")
    assert page["items"] == [added]
    assert (await plane.ok("GET", f"/admin/alert-rules?owner_id={UNKNOWN_ID}"))["items"] == []
    [event] = await plane.events(added["id"])
    assert (event["event"], event["object"]) == ("alert_rule_created", "alert_rule")
    assert event["after"] == added


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "threshold"),
        ({"threshold": 1, "percent": 1}, "threshold"),
        ({"threshold": 0}, "threshold"),
        ({"threshold": -1}, "threshold"),
        ({"threshold": "NaN"}, "threshold"),
        ({"threshold": "1e400"}, "threshold"),
        ({"threshold": 10**30}, "threshold"),
        ({"threshold": "0.0000000001"}, "threshold"),
        ({"threshold": True}, "threshold"),
        ({"threshold": 1.5, "meter": "tokens"}, "threshold"),
        ({"percent": 0}, "percent"),
        ({"percent": "99.999"}, "percent"),
        ({"percent": 1001}, "percent"),
        ({"percent": "Infinity"}, "percent"),
        ({"threshold": 1, "window": "week"}, "window"),
        ({"threshold": 1, "window": "rolling:0h"}, "window"),
        ({"threshold": 1, "meter": "pages"}, "meter"),
        ({"threshold": 1, "owner": "chat"}, "owner"),
        ({"threshold": 1, "owner": "key"}, "owner_id"),
        ({"threshold": 1, "owner": "pool"}, "owner_id"),
        ({"threshold": 1, "owner_id": UNKNOWN_ID}, "owner_id"),
        ({"threshold": 1, "destination_id": UNKNOWN_ID}, "destination_id"),
    ],
)
async def test_a_rule_that_makes_no_sense_is_refused(
    plane: Any, body: dict[str, Any], field: str
) -> None:
    tenant = await plane.tenant("m1")
    known = {
        "destination_id": (await destination(plane))["id"],
        "owner": "allocation",
        "owner_id": tenant.allocation["id"],
        "meter": "usd",
    }
    await refused(plane, "POST", "/admin/alert-rules", known | body, 422, field)
    assert plane.sql("SELECT * FROM alert_rules") == []
    assert watched(plane, tenant.allocation["id"]) == []


async def test_a_total_is_kept_while_a_rule_in_force_is_on_it(plane: Any) -> None:
    tenant = await plane.tenant("m1")
    key_id = tenant.key["id"]
    plane.book(tenant, tokens=30, cost_nano=500)
    first = await rule(plane, tenant, owner="key", owner_id=key_id, window="day", threshold="1")
    second = await rule(plane, tenant, owner="key", owner_id=key_id, window="day", percent=50)
    assert watched(plane, key_id) == [("usd", "day")]
    # The total knows what was used before there was a rule on it.
    assert plane.sql(
        "SELECT used_tokens, used_nano FROM accounts WHERE owner_id = %s AND window_kind = 'day'",
        key_id,
    ) == [(30, 500)]
    assert (await plane.ok("GET", f"/admin/keys/{key_id}"))["limits"] == []
    await plane.ok("PATCH", f"/admin/alert-rules/{first['id']}", {"enabled": False})
    assert watched(plane, key_id) == [("usd", "day")]
    assert (await plane.call("DELETE", f"/admin/alert-rules/{second['id']}")).status_code == 204
    assert watched(plane, key_id) == []
    await plane.ok("PATCH", f"/admin/alert-rules/{first['id']}", {"enabled": True})
    assert watched(plane, key_id) == [("usd", "day")]


async def test_rules_are_on_any_window_of_keys_allocations_and_pools(plane: Any) -> None:
    tenant, pool = await plane.tenant("m1"), uuid7()
    plane.sql("INSERT INTO pools (id, name) VALUES (%s, 'lab')", pool)
    owners = {"key": tenant.key["id"], "allocation": tenant.allocation["id"], "pool": pool}
    windows = ["day", "hour", "lifetime", "month", "rolling:36h"]
    hook = (await destination(plane))["id"]
    for owner, owner_id in owners.items():
        for window in windows:
            fields = {"owner": owner, "owner_id": owner_id, "window": window, "meter": "tokens"}
            if owner != "key" and window == "rolling:36h":
                body = {"destination_id": hook, "threshold": 5} | fields
                refused = await plane.call("POST", "/admin/alert-rules", body)
                assert refused.json()["errors"][0]["field"] == "window"
                continue
            await rule(plane, tenant, destination_id=hook, threshold=5, **fields)
        # Months of allocations and pools are kept anyway, and only keys have windows that roll.
        kept = [w for w in windows if owner == "key" or w not in ("month", "rolling:36h")]
        assert watched(plane, owner_id) == [("tokens", window) for window in kept]


async def test_a_rule_is_changed_and_the_change_recorded(plane: Any) -> None:
    tenant, other = await plane.tenant("m1"), await destination(plane)
    added = await rule(plane, tenant, threshold="5")
    path = f"/admin/alert-rules/{added['id']}"
    patch = {"percent": 80, "destination_id": other["id"]}
    changed = await plane.ok("PATCH", path, patch | {"reason": "softer"})
    assert changed == added | patch | {"threshold": None}
    assert await plane.ok("PATCH", path, {"threshold": "2", "percent": None}) == changed | {
        "threshold": "2.00",
        "percent": None,
    }
    await refused(plane, "PATCH", path, {"threshold": None}, 422, "threshold")
    await refused(plane, "PATCH", path, {"threshold": 1, "percent": 1}, 422, "threshold")
    await refused(plane, "PATCH", path, {"destination_id": UNKNOWN_ID}, 422, "destination_id")
    await refused(plane, "PATCH", path, {"meter": "tokens"}, 422, "meter")
    _, first, _ = await plane.events(added["id"])
    assert first["event"] == "alert_rule_updated"
    assert first["before"] == {
        "destination_id": added["destination_id"],
        "threshold": "5.00",
        "percent": None,
    }
    assert (first["after"], first["reason"]) == (patch | {"threshold": None}, "softer")


# The short way of a key


async def test_a_key_alerts_at_a_threshold_and_its_webhook_shows_its_secret_once(
    plane: Any,
) -> None:
    tenant = await plane.tenant("m1")
    alert = {"alert_threshold": 100, "alert_webhook": HOOK["address"]}
    added = await plane.key(tenant.member["id"], tenant.allocation["id"], **alert)
    secret = added["webhook_secret"]
    assert secret.startswith("whsec_")
    shown = await plane.ok("GET", f"/admin/keys/{added['id']}")
    assert {name: shown[name] for name in alert} == alert
    assert "webhook_secret" not in shown
    again = await plane.ok("PATCH", f"/admin/keys/{added['id']}", alert | {"name": "desk"})
    assert "webhook_secret" not in again
    assert secret not in (await plane.call("GET", "/admin/audit")).text
    [made] = (await plane.ok("GET", f"/admin/destinations?key_id={added['id']}"))["items"]
    assert (made["kind"], made["address"]) == ("webhook", HOOK["address"])
    [its] = (await plane.ok("GET", f"/admin/alert-rules?destination_id={made['id']}"))["items"]
    assert {name: its[name] for name in ("owner", "owner_id", "meter", "window", "threshold")} == {
        "owner": "key",
        "owner_id": added["id"],
        "meter": "tokens",
        "window": "lifetime",
        "threshold": 100,
    }
    assert watched(plane, added["id"]) == [("tokens", "lifetime")]
    _, event, _ = await plane.events(added["id"])
    assert event["event"] == "key_alert_updated"
    assert event["before"] == {"alert_threshold": None, "alert_webhook": None}
    assert event["after"] == alert
    mine = (await plane.ok("GET", "/me/keys", bearer=added["key"]))["items"]
    assert {one["id"]: one["alert_threshold"] for one in mine}[added["id"]] == 100


async def test_a_threshold_needs_a_webhook_and_null_clears_either(plane: Any) -> None:
    tenant = await plane.tenant("m1")
    path = f"/admin/keys/{tenant.key['id']}"
    said = await refused(plane, "PATCH", path, {"alert_threshold": 5}, 422, "alert_threshold")
    assert "alert_webhook" in said
    body = {"member_id": tenant.member["id"], "name": "x", "alert_threshold": 5}
    body["allocation_ids"] = [tenant.allocation["id"]]
    await refused(plane, "POST", "/admin/keys", body, 422, "alert_threshold")
    first = await plane.ok("PATCH", path, {"alert_webhook": HOOK["address"]})
    assert first["webhook_secret"].startswith("whsec_")
    assert plane.sql("SELECT * FROM alert_rules") == []
    assert "webhook_secret" not in await plane.ok("PATCH", path, {"alert_threshold": 5})
    moved = await plane.ok("PATCH", path, {"alert_webhook": "https://203.0.114.9/"})
    assert (moved["alert_threshold"], moved["alert_webhook"]) == (5, "https://203.0.114.9/")
    assert "webhook_secret" not in moved
    changed = await plane.ok("PATCH", path, {"alert_threshold": 7})
    assert changed["alert_threshold"] == 7
    assert plane.sql("SELECT threshold FROM alert_rules") == [(7,)]
    await refused(plane, "PATCH", path, {"alert_webhook": None}, 422, "alert_threshold")
    await plane.ok("PATCH", path, {"alert_threshold": None})
    assert plane.sql("SELECT * FROM alert_rules") == []
    assert watched(plane, tenant.key["id"]) == []
    await plane.ok("PATCH", path, {"alert_threshold": 7})
    cleared = await plane.ok("PATCH", path, {"alert_webhook": None, "alert_threshold": None})
    assert (cleared["alert_threshold"], cleared["alert_webhook"]) == (None, None)
    assert plane.sql("SELECT * FROM destinations") == []
    assert watched(plane, tenant.key["id"]) == []
    second = await plane.ok("PATCH", path, {"alert_webhook": HOOK["address"]})
    assert second["webhook_secret"] != first["webhook_secret"]


@pytest.mark.parametrize("threshold", [0, -1, 10**30, 1.5, "5", True])
async def test_a_key_threshold_that_makes_no_sense_is_refused(plane: Any, threshold: Any) -> None:
    tenant = await plane.tenant("m1")
    body = {"alert_threshold": threshold, "alert_webhook": HOOK["address"]}
    path = f"/admin/keys/{tenant.key['id']}"
    await refused(plane, "PATCH", path, body, 422, "alert_threshold")
    assert plane.sql("SELECT * FROM destinations") == []


async def test_what_is_a_keys_is_changed_on_the_key(plane: Any) -> None:
    tenant = await plane.tenant("m1")
    alert = {"alert_threshold": 100, "alert_webhook": HOOK["address"]}
    key = f"/admin/keys/{tenant.key['id']}"
    await plane.ok("PATCH", key, alert)
    [hook] = (await plane.ok("GET", "/admin/destinations"))["items"]
    [its] = (await plane.ok("GET", "/admin/alert-rules"))["items"]
    path = f"/admin/alert-rules/{its['id']}"
    assert "alert_threshold" in await refused(plane, "PATCH", path, {"percent": 5}, 409, "id")
    await refused(plane, "DELETE", path, None, 409, "id")
    body = {"owner": "key", "owner_id": tenant.key["id"], "meter": "usd", "threshold": 1}
    body["destination_id"] = hook["id"]
    await refused(plane, "POST", "/admin/alert-rules", body, 422, "destination_id")
    # But it can be rotated, tried out, and taken away there.
    await plane.ok("POST", f"/admin/destinations/{hook['id']}/rotate-secret")
    await plane.ok("POST", f"/admin/destinations/{hook['id']}/test")
    assert (await plane.call("DELETE", f"/admin/destinations/{hook['id']}")).status_code == 204
    shown = await plane.ok("GET", key)
    assert (shown["alert_threshold"], shown["alert_webhook"]) == (None, None)
    assert watched(plane, tenant.key["id"]) == []


# Deliveries


async def test_a_trial_is_queued_for_one_destination_and_recorded(plane: Any) -> None:
    hook = await destination(plane)
    await destination(plane, name="another")
    path = f"/admin/destinations/{hook['id']}"
    answer = await plane.call("POST", f"{path}/test")
    assert answer.status_code == 201
    delivery = answer.json()
    assert (delivery["event"], delivery["status"]) == ("test", "pending")
    assert (delivery["destination_id"], delivery["attempt_count"]) == (hook["id"], 0)
    shown = await plane.ok("GET", f"/admin/deliveries/{delivery['id']}")
    assert shown["attempts"] == []
    assert shown["body"] == {
        "event": "test",
        "destination_id": hook["id"],
        "timestamp": shown["body"]["timestamp"],
    }
    assert plane.sql("SELECT count(*), count(routed_at) FROM events") == [(1, 1)]
    event = (await plane.events(hook["id"]))[-1]
    assert (event["event"], event["after"]) == (
        "destination_tested",
        {"delivery_id": delivery["id"]},
    )
    second = await plane.ok("POST", f"{path}/test")
    assert second["event_id"] != delivery["event_id"]
    await plane.ok("PATCH", path, {"enabled": False})
    await refused(plane, "POST", f"{path}/test", None, 409, "enabled")


async def test_deliveries_are_listed_in_pages_and_by_what_is_asked(plane: Any) -> None:
    hook, other = await destination(plane), await destination(plane)
    mine = [queued(plane, hook["id"], status) for status in ("delivered", "dead", "pending")]
    theirs = queued(plane, other["id"])
    trial = (await plane.ok("POST", f"/admin/destinations/{hook['id']}/test"))["id"]

    async def listed(query: str) -> list[str]:
        page = await plane.ok("GET", f"/admin/deliveries?{query}")
        return [one["id"] for one in page["items"]]

    everything = [trial, theirs, *mine[::-1]]
    assert await listed("") == everything
    assert await listed(f"destination_id={other['id']}") == [theirs]
    assert await listed("status=dead") == [mine[1]]
    assert await listed("event=test") == [trial]
    assert await listed(f"event=request_raised&destination_id={hook['id']}") == mine[::-1]
    first = await plane.ok("GET", "/admin/deliveries?limit=2")
    rest = await plane.ok("GET", f"/admin/deliveries?cursor={first['next']}")
    assert [one["id"] for one in first["items"] + rest["items"]] == everything
    assert [one["next_at"] is None for one in first["items"] + rest["items"]] == [
        False,
        False,
        False,
        True,
        True,
    ]
    await refused(plane, "GET", "/admin/deliveries?status=lost", None, 422, "status")
    await refused(plane, "GET", "/admin/deliveries?destination_id=x", None, 422, "destination_id")


@pytest.mark.parametrize("status", ["delivered", "dead", "pending"])
async def test_whatever_became_of_a_delivery_it_is_sent_again_under_the_same_id(
    plane: Any, status: str
) -> None:
    hook = await destination(plane)
    id = queued(plane, hook["id"], status)
    plane.sql(
        "UPDATE deliveries SET attempts = 9, first_at = now() - interval '2 days',"
        " next_at = now() + interval '1 hour', delivered_at = now()"
    )
    before = await plane.ok("GET", f"/admin/deliveries/{id}")
    again = await plane.ok("POST", f"/admin/deliveries/{id}/redeliver")
    assert (again["status"], again["event_id"]) == ("pending", before["event_id"])
    assert again["delivered_at"] is None
    assert plane.sql(
        "SELECT attempts, next_at <= now(), first_at > now() - interval '1 minute' FROM deliveries"
    ) == [(0, True, True)]
    [event] = await plane.events(id)
    assert (event["event"], event["before"]) == ("delivery_redelivered", {"status": status})
    await plane.ok("PATCH", f"/admin/destinations/{hook['id']}", {"enabled": False})
    await refused(plane, "POST", f"/admin/deliveries/{id}/redeliver", None, 409, "enabled")


async def test_what_there_is_not_is_404(plane: Any) -> None:
    for method, path in [
        ("GET", f"destinations/{UNKNOWN_ID}"),
        ("PATCH", f"destinations/{UNKNOWN_ID}"),
        ("DELETE", f"destinations/{UNKNOWN_ID}"),
        ("POST", f"destinations/{UNKNOWN_ID}/test"),
        ("POST", f"destinations/{UNKNOWN_ID}/rotate-secret"),
        ("GET", f"alert-rules/{UNKNOWN_ID}"),
        ("PATCH", f"alert-rules/{UNKNOWN_ID}"),
        ("DELETE", f"alert-rules/{UNKNOWN_ID}"),
        ("GET", f"deliveries/{UNKNOWN_ID}"),
        ("GET", "deliveries/x"),
        ("POST", f"deliveries/{UNKNOWN_ID}/redeliver"),
    ]:
        body = {} if method == "PATCH" else None
        answer = await plane.call(method, f"/admin/{path}", body)
        assert answer.status_code == 404, f"{method} {path}: {answer.text}"
    moved = {"address": "https://203.0.114.7/"}
    await refused(plane, "PATCH", f"/admin/destinations/{UNKNOWN_ID}", moved, 404)
