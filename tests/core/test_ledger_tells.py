"""What a settlement tells of: thresholds, used-up limits, unknown costs, sessions that were cut.

The bodies of events are `test_alerts`'s; here is which of them a settlement sets off.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from app.core.alerts import Rule
from app.core.ledger import (
    Account,
    AccountKey,
    Actual,
    Books,
    CallFacts,
    Demand,
    Grant,
    Hold,
    Limit,
    RollingAccount,
    Settlement,
    Surroundings,
    account_key,
    owner_terms,
)
from app.core.refusals import Outcome, Refusal
from app.core.windows import EPOCH, Period

NOW = datetime(2026, 5, 5, 12, tzinfo=UTC)
MAY = Period(datetime(2026, 5, 1, tzinfo=UTC), datetime(2026, 6, 1, tzinfo=UTC))
ALWAYS = Period(EPOCH, None)
CALL = "019df000-0000-7000-8000-000000000001"

ALLOCATION = account_key("allocation", "a", "month", MAY)
KEY = account_key("key", "k", "lifetime", ALWAYS)
ROLLING = account_key("key", "k", "rolling:24h", ALWAYS)


def books(
    *keys: AccountKey,
    used: int = 0,
    limits: dict[str, int] | None = None,
    rules: list[Rule] | None = None,
    booked: Any = (),
    holds: Any = (),
) -> Books:
    """Books of some accounts that have all used so many tokens, and as many nano-USD."""
    accounts = [
        (RollingAccount if key.window.startswith("rolling") else Account)(
            key.id, used_tokens=used, used_nano=used
        )
        for key in keys
    ]
    return Books(
        accounts,
        owner_terms(
            [
                Limit(key.owner_id, "tokens", key.window, amount)
                for key in keys
                for amount in (limits or {}).values()
            ],
            rules or (),
        ),
        holds,
        booked,
        keys={key.id: key for key in keys},
        around=Surroundings(lambda model: f"provider of {model}"),
    )


def settled(
    on: Books,
    tokens: int = 1,
    nano: int | None = 0,
    *,
    call: str = CALL,
    close_reason: str | None = None,
    outcome: Outcome = "success",
) -> list[Any]:
    """Settle a call that is charged to all accounts of the books; return the bodies told."""
    facts = CallFacts(call, "r", "a", "k", "m", "gpt", "realtime", None, NOW, tuple(on.accounts))
    before = len(on.told)
    usage = {"output_token": tokens}
    on.settle(
        Settlement(facts, outcome, 200, Actual(usage, tokens, nano), NOW, close_reason=close_reason)
    )
    return [told.event.body for told in on.told[before:]]


def rule(threshold: int, key: AccountKey = KEY, *, percent: bool = False, id: str = "rule") -> Rule:
    return Rule(id, key.owner_id, "tokens", key.window, threshold, percent)


@pytest.mark.parametrize(
    ("used", "tokens", "fires"),
    [
        (0, 101, True),
        (0, 100, True),
        (0, 99, False),
        (99, 1, True),
        (100, 1, False),
        (150, 10, False),
    ],
)
def test_a_threshold_of_100_is_told_when_it_is_crossed(used: int, tokens: int, fires: bool) -> None:
    on = books(KEY, used=used, rules=[rule(100)])
    told = settled(on, tokens)
    assert [type(body).__name__ for body in told] == ["TokenThresholdCrossed"] * fires
    if fires:
        [body] = told
        assert (body.key_id, body.allocation_id, body.service) == ("k", "a", "provider of gpt")
        assert (body.threshold, body.total_tokens, body.limit) == (100, used + tokens, None)
        assert (body.window, body.period) == ("lifetime", None)
        assert on.told[0].rule_id == "rule"


def test_two_calls_of_one_batch_cross_it_once() -> None:
    on = books(KEY, used=90, rules=[rule(100)])
    assert settled(on, 10, call=CALL) != []
    assert settled(on, 10, call=CALL[:-1] + "2") == []


def test_a_duplicate_tells_nothing() -> None:
    on = books(KEY, rules=[rule(100)])
    assert len(settled(on, 150)) == 1
    assert settled(on, 150) == []


def test_a_late_settlement_can_cross_a_threshold() -> None:
    on = books(KEY, rules=[rule(100)])
    assert settled(on, 50, outcome="recovered") == []
    [body] = settled(on, 120)
    assert body.total_tokens == 120


def test_each_owner_has_its_own_total_and_rules() -> None:
    rules = [rule(100, id="key"), rule(100, ALLOCATION, id="allocation"), rule(5, id="low")]
    on = books(KEY, ALLOCATION, rules=rules)
    assert len(settled(on, 60)) == 1
    told = settled(on, 60, call=CALL[:-1] + "2")
    assert [(body.window, body.total_tokens) for body in told] == [
        ("lifetime", 120),
        ("month", 120),
    ]
    assert [one.rule_id for one in on.told] == ["low", "key", "allocation"]


def test_a_part_of_a_limit_is_a_threshold() -> None:
    on = books(ALLOCATION, limits={"tokens": 1000}, rules=[rule(8000, ALLOCATION, percent=True)])
    assert settled(on, 799) == []
    [body] = settled(on, 1, call=CALL[:-1] + "2")
    assert (body.threshold, body.limit, body.period) == (800, 1000, MAY.start)


def test_an_allocation_that_is_used_up_is_told_without_a_rule() -> None:
    on = books(ALLOCATION, KEY, limits={"tokens": 100})
    assert settled(on, 99) == []
    [body] = settled(on, 1, call=CALL[:-1] + "2")
    assert type(body).__name__ == "AllocationExhausted"
    assert (body.allocation_id, body.total, body.limit, body.resets_at) == ("a", 100, 100, MAY.end)


def test_what_slides_out_of_a_rolling_window_crosses_nothing_and_counts_no_more() -> None:
    on = books(ROLLING, used=90, rules=[rule(100, ROLLING)])
    on.slide(ROLLING.id, NOW, 50, 50)
    assert on.slid == {ROLLING.id}
    assert on.accounts[ROLLING.id].used("tokens") == 40
    assert on.accounts[ROLLING.id].used("usd") == 40
    [body] = settled(on, 60, call="019e3000-0000-7000-8000-000000000001")
    assert (body.total_tokens, body.period) == (100, datetime(2026, 5, 5, tzinfo=UTC))


def test_a_call_from_before_a_rolling_window_slides_out_as_it_settles() -> None:
    on = books(ROLLING, used=90, rules=[rule(100, ROLLING)])
    on.accounts[ROLLING.id].slid_to = NOW - timedelta(seconds=59)  # type: ignore[attr-defined]
    on.slide(ROLLING.id, NOW, 0, 0)
    assert on.slid == set(), "nothing has slid out that need be written"
    assert settled(on, 60, 60, call="019d0000-0000-7000-8000-000000000001") == []
    account = on.accounts[ROLLING.id]
    assert (account.used("tokens"), account.used("usd"), account.used_tokens) == (90, 90, 150)
    assert on.slid == {ROLLING.id}


def test_how_far_a_window_has_moved_is_written_also_if_nothing_slid_out() -> None:
    """Or calls that used nothing would be looked through again and again."""
    for since in (None, NOW - timedelta(minutes=1)):
        on = books(ROLLING)
        on.accounts[ROLLING.id].slid_to = since  # type: ignore[attr-defined]
        on.slide(ROLLING.id, NOW, 0, 0)
        assert on.slid == {ROLLING.id}


def test_a_limit_that_was_added_while_a_call_runs_has_a_say_in_its_extensions() -> None:
    """Its account is on the hold, and not on the path that the call set out with."""
    on = books(
        ALLOCATION, KEY, limits={"tokens": 10}, holds=[Hold(CALL, (ALLOCATION.id, KEY.id), 5, 0)]
    )
    for account in on.accounts.values():
        account.held_tokens = 5
    on.terms = {KEY.owner_id: on.terms[KEY.owner_id]}
    asked = Demand((ALLOCATION,), 6, True, 0, 1, None)
    refused = on.extend(CALL, asked)
    assert isinstance(refused, Refusal)
    assert refused.shortfall is not None
    assert (refused.shortfall.owner, refused.shortfall.amount) == ("key", 10)
    granted = on.extend(CALL, msgspec.structs.replace(asked, tokens=5))
    assert isinstance(granted, Grant)
    assert [account.held_tokens for account in on.accounts.values()] == [10, 10]


def test_a_limit_of_dollars_is_used_up_by_dollars() -> None:
    on = books(ALLOCATION)
    on.terms = owner_terms([Limit("a", "usd", "day", 1), Limit("a", "usd", "month", 5)])
    [body] = settled(on, 1, 5)
    assert (body.meter, body.total, body.window) == ("usd", "0.000000005", "month")


def test_what_gives_back_crosses_nothing() -> None:
    on = books(KEY, used=120, rules=[rule(100)])
    settled(on, 50, outcome="recovered")
    assert settled(on, 10) == []
    assert on.accounts[KEY.id].used("tokens") == 130


def test_a_window_that_never_slid_has_nothing_behind_it() -> None:
    assert not RollingAccount("x").lies_behind(CALL)


def test_a_model_of_unknown_cost_is_told_by_the_day() -> None:
    on = books(ALLOCATION)
    [body] = settled(on, 5, None)
    assert (type(body).__name__, body.model) == ("UnpricedModelSeen", "gpt")
    assert body.period == datetime(2026, 5, 5, tzinfo=UTC)
    first = on.told[0].event.id
    settled(on, 5, None, call=CALL[:-1] + "2")
    assert on.told[1].event.id == first, "one event, whoever writes it"


@pytest.mark.parametrize(
    ("close_reason", "told"),
    [("cost_exceeded", True), ("killed", True), ("normal", False), (None, False)],
)
def test_a_session_that_was_cut_is_told(close_reason: str | None, told: bool) -> None:
    on = books(ALLOCATION)
    found = settled(on, 5, 7, close_reason=close_reason, outcome="cut_off")
    assert [type(body).__name__ for body in found] == ["RealtimeSessionCut"] * told


def test_without_surroundings_events_name_no_provider_and_days_are_utcs() -> None:
    hold = Hold(CALL, (ALLOCATION.id,), 5, None)
    plain = Books(
        [Account(ALLOCATION.id, held_tokens=5)], {}, [hold], keys={ALLOCATION.id: ALLOCATION}
    )
    [body] = settled(plain, 5, None)
    assert (body.service, body.period) == (None, datetime(2026, 5, 5, tzinfo=UTC))
