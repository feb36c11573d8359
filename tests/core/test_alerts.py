"""Alerts: what is crossed and what is told, when a delivery is tried again, and where it may go.

To add a scenario of crossings, add a row: the threshold (`80%` of the limit, else absolute), the
limit, the totals after each settlement, and the thresholds told after each.
"""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from ipaddress import IPv4Address, IPv6Address, ip_network
from itertools import pairwise
from typing import get_args
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.core.alerts import (
    CUT,
    RETRY_FOR,
    WHOLE,
    Body,
    Cause,
    Crossing,
    Event,
    InvalidThreshold,
    InvalidWebhookUrl,
    ListedKind,
    Meter,
    Movement,
    Receiver,
    Rule,
    check_absolute,
    check_percent,
    check_webhook_url,
    crossings,
    exhausted_event,
    forbidden_address,
    next_attempt,
    request_event,
    session_cut_event,
    threshold_event,
    threshold_of,
    trial_event,
    unpriced_event,
)
from app.core.ledger import Meter as LedgerMeter
from app.core.money import AMOUNT_NANO_MAX, AMOUNT_TOKENS_MAX, NANO_PER_USD
from app.core.windows import EPOCH, Period

MAY = Period(datetime(2026, 5, 1, tzinfo=UTC), datetime(2026, 6, 1, tzinfo=UTC))
JUNE = Period(datetime(2026, 6, 1, tzinfo=UTC), datetime(2026, 7, 1, tzinfo=UTC))
EVER = Period(EPOCH, None)
# Half past two in Kathmandu; receivers see UTC.
NOW = datetime(2026, 5, 20, 14, 30, 0, 250_000, timezone(timedelta(hours=5, minutes=45)))
CAUSE = Cause("k-1", "a-1", "Mistral EU")


def rule(threshold: str | int, id: str = "r", meter: Meter = "tokens") -> Rule:
    text = str(threshold)
    if text.endswith("%"):
        return Rule(id, "a-1", meter, "month", check_percent(text[:-1]), percent=True)
    return Rule(id, "a-1", meter, "month", check_absolute(meter, int(text)))


def moved(
    before: int, after: int, limit: int | None, period: Period = MAY, meter: Meter = "tokens"
) -> Movement:
    window = "lifetime" if period is EVER else "month"
    return Movement("a-1", meter, window, period, before, after, limit)


def body_of(event: Event) -> dict[str, object]:
    """The body as a receiver reads it, names in the order sent."""
    return msgspec.json.decode(msgspec.json.encode(event.body))  # type: ignore[no-any-return]


# -------------------------------------------------------------------------------------- crossings


@pytest.mark.parametrize(
    ("threshold", "limit", "totals", "told"),
    [
        # threshold, limit, totals after each settlement, threshold told after each
        (100, 1000, [101], [100]),
        (100, 1000, [99], [None]),
        (100, 1000, [100], [100]),
        (100, 1000, [99, 100, 101], [None, 100, None]),
        # Two calls of 10 from 90, whichever is booked first.
        (100, 1000, [90, 100, 110], [None, 100, None]),
        # Nothing used, or a correction downwards, crosses nothing; up again is told again, and is
        # the same event.
        (100, 1000, [0, 100, 100, 90, 95, 105], [None, 100, None, None, None, 100]),
        # A rule on an allocation needs no limit; a part of no limit is none.
        (100, None, [101], [100]),
        ("80%", None, [10**18], [None]),
        # To the last token: the part is reached by the first whole total that is not below it.
        ("80%", 1000, [799, 800], [None, 800]),
        ("33.33%", 100, [33, 34], [None, 34]),
        ("0.01%", 10_000, [0, 1], [None, 1]),
        ("0.01%", 1, [1], [1]),
        ("99.99%", 10**18, [999_900_000_000_000_000 - 1, 999_900_000_000_000_000], [None, 999_900_000_000_000_000]),
        ("100%", 1000, [999, 1000, 1001], [None, 1000, None]),
        # A last call may overrun its limit by as much as it likes.
        ("150%", 1000, [1000, 1500], [None, 1500]),
        # A limit of 0 is used up from the start.
        ("80%", 0, [0, 5], [None, None]),
    ],
    ids=str,
)  # fmt: skip
def test_a_threshold_is_crossed_once_on_the_way_up(
    threshold: str | int, limit: int | None, totals: list[int], told: list[int | None]
) -> None:
    seen = []
    for before, after in pairwise([0, *totals]):
        crossed = crossings([rule(threshold)], moved(before, after, limit))
        seen.append(crossed[0].threshold if crossed else None)
    assert seen == told


def test_a_threshold_in_percent_moves_with_the_limit() -> None:
    rules = [rule("80%")]

    def told(before: int, after: int, limit: int) -> list[int]:
        return [crossing.threshold for crossing in crossings(rules, moved(before, after, limit))]

    assert told(70, 85, 100) == [80]
    assert told(85, 120, 200) == [], "the limit was raised, and 120 is not 80 % of it"
    assert told(120, 160, 200) == [160], "80 % of the raised limit is another threshold"
    assert told(160, 165, 100) == [], "the limit was lowered below the total: already over"
    assert told(60, 61, 70) == [], "… also where the threshold came down past the total"


def test_a_rule_made_when_the_total_is_over_waits_for_the_next_period() -> None:
    late = [rule(100)]
    assert crossings(late, moved(150, 400, 1000)) == []
    assert len(crossings(late, moved(0, 100, 1000, JUNE))) == 1


def test_several_thresholds_are_told_from_the_lowest_up() -> None:
    rules = [rule("100%", "c"), rule(90, "b"), rule("50%", "a"), rule(90, "B"), rule(101, "d")]
    assert crossings(rules, moved(0, 100, 100)) == [
        Crossing("a", 50, moved(0, 100, 100)),
        Crossing("B", 90, moved(0, 100, 100)),
        Crossing("b", 90, moved(0, 100, 100)),
        Crossing("c", 100, moved(0, 100, 100)),
    ]


@pytest.mark.parametrize(
    "other",
    [
        Rule("r", "a-2", "tokens", "month", 100),
        Rule("r", "a-1", "usd", "month", 100),
        Rule("r", "a-1", "tokens", "day", 100),
    ],
    ids=["owner", "meter", "window"],
)
def test_a_rule_is_on_one_total(other: Rule) -> None:
    assert crossings([other], moved(0, 500, 1000)) == []


@given(
    steps=st.lists(st.integers(0, 10**6), max_size=30),
    percents=st.lists(st.integers(1, 10 * WHOLE), min_size=1, max_size=5),
    limit=st.integers(1, 10**7),
)
def test_each_threshold_is_told_once_however_the_total_gets_there(
    steps: list[int], percents: list[int], limit: int
) -> None:
    rules = [
        Rule(str(n), "a-1", "tokens", "month", p, percent=True) for n, p in enumerate(percents)
    ]
    total, told = 0, []
    for step in steps:
        told += [c.rule_id for c in crossings(rules, moved(total, total + step, limit))]
        total += step
    reached = [r.id for r in rules if Fraction(total) >= Fraction(limit * r.threshold, WHOLE)]
    assert sorted(told) == sorted(reached)


@given(st.integers(0, AMOUNT_NANO_MAX), st.integers(1, 10 * WHOLE))
def test_a_part_of_a_limit_is_exact(limit: int, percent: int) -> None:
    threshold = threshold_of(Rule("r", "o", "usd", "month", percent, percent=True), limit)
    assert threshold is not None
    exact = Fraction(limit) * percent / WHOLE
    assert threshold - 1 < exact <= threshold


@pytest.mark.parametrize(
    ("written", "hundredths"),
    [
        ("80", 8000),
        ("99.5", 9950),
        ("0.01", 1),
        (Decimal("33.33"), 3333),
        (75, 7500),
        ("1e2", 10_000),
        ("1000", 100_000),
        ("80." + 400 * "0", 8000),
        ("1000.01", None),
        ("0.001", None),
        ("80.0000000000000000000000000000000000001", None),
        ("1e-999999", None),
        ("0", None),
        ("-5", None),
        ("NaN", None),
        ("Infinity", None),
        ("1e999999999", None),
        (10**30, None),
        (True, None),
        ("80%", None),
        ("", None),
        (None, None),
        ([1], None),
        (0.1, None),
    ],
    ids=repr,
)
def test_a_percentage_is_taken_as_written_or_refused(
    written: object, hundredths: int | None
) -> None:
    if hundredths is None:
        with pytest.raises(InvalidThreshold, match=r"^must "):
            check_percent(written)  # type: ignore[arg-type]
    else:
        assert check_percent(written) == hundredths  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("meter", "threshold", "refused"),
    [
        ("tokens", 1, None),
        ("tokens", AMOUNT_TOKENS_MAX, None),
        ("usd", AMOUNT_NANO_MAX, None),
        ("tokens", 0, "must be more than 0"),
        ("usd", -1, "must be more than 0"),
        ("tokens", AMOUNT_TOKENS_MAX + 1, "must be at most 1000000000000000000$"),
        ("usd", AMOUNT_NANO_MAX + 1, r"must be at most 1000000000\.00$"),
    ],
)
def test_an_absolute_threshold_can_be_crossed(
    meter: Meter, threshold: int, refused: str | None
) -> None:
    if refused is None:
        assert check_absolute(meter, threshold) == threshold
    else:
        with pytest.raises(InvalidThreshold, match=refused):
            check_absolute(meter, threshold)


def test_meters_are_the_ledgers() -> None:
    assert get_args(Meter) == get_args(LedgerMeter)


# ----------------------------------------------------------------------------------------- events


def crossed(threshold: str | int, movement: Movement, id: str = "r", cause: Cause = CAUSE) -> Event:
    one = rule(threshold, id, movement.meter)
    one = msgspec.structs.replace(one, window=movement.window)
    (crossing,) = crossings([one], movement)
    return threshold_event(crossing, cause, NOW)


def test_a_token_threshold_is_told_as_receivers_know_it() -> None:
    event = crossed(100, moved(0, 101, 1000))
    assert list(body_of(event).items()) == [
        ("event", "token_threshold_crossed"),
        ("key_id", "k-1"),
        ("allocation_id", "a-1"),
        ("service", "Mistral EU"),
        ("threshold", 100),
        ("total_tokens", 101),
        ("limit", 1000),
        ("window", "month"),
        ("period", "2026-05-01T00:00:00Z"),
        ("timestamp", "2026-05-20T08:45:00.250000Z"),
    ]


def test_a_cost_threshold_is_told_in_decimal_strings() -> None:
    movement = moved(0, 4_010_000_001, 5 * NANO_PER_USD, meter="usd")
    assert list(body_of(crossed("80%", movement)).items()) == [
        ("event", "cost_threshold_crossed"),
        ("key_id", "k-1"),
        ("allocation_id", "a-1"),
        ("service", "Mistral EU"),
        ("threshold", "4.00"),
        ("total_cost_usd", "4.010000001"),
        ("limit", "5.00"),
        ("window", "month"),
        ("period", "2026-05-01T00:00:00Z"),
        ("timestamp", "2026-05-20T08:45:00.250000Z"),
    ]


def test_what_is_unknown_or_without_end_is_null() -> None:
    tokens = body_of(crossed(5, moved(0, 9, None, EVER), cause=Cause()))
    assert tokens == {
        "event": "token_threshold_crossed",
        "key_id": None,
        "allocation_id": None,
        "service": None,
        "threshold": 5,
        "total_tokens": 9,
        "limit": None,
        "window": "lifetime",
        "period": None,
        "timestamp": "2026-05-20T08:45:00.250000Z",
    }
    assert body_of(crossed(5, moved(0, 9, None, meter="usd")))["limit"] is None


def test_a_crossing_is_one_event_per_rule_period_and_threshold() -> None:
    event = crossed(100, moved(0, 101, 1000))
    assert event.id == "9ca61a9f-80b1-83be-4431-d2ee7b4051a4", (
        "ids are in the books: they must never change"
    )
    same = [
        crossed(100, moved(99, 500, 2000)),
        crossed(100, moved(0, 101, 1000), cause=Cause("k-2", "a-1", "other")),
        crossed("10%", moved(0, 101, 1000)),
        crossed(100, moved(0, 101, 1000, Period(MAY.start.astimezone(NOW.tzinfo), MAY.end))),
    ]
    assert {one.id for one in same} == {event.id}
    others = [
        crossed(100, moved(0, 101, 1000), id="r2"),
        crossed(101, moved(0, 101, 1000)),
        crossed(100, moved(0, 101, 1000, JUNE)),
        crossed("10%", moved(0, 201, 2000)),
    ]
    assert len({event.id, *(one.id for one in others)}) == 5


def test_an_allocation_is_exhausted_when_its_limit_is_reached() -> None:
    assert exhausted_event(moved(0, 999, 1000), CAUSE, NOW) is None
    assert exhausted_event(moved(1000, 1001, 1000), CAUSE, NOW) is None
    assert exhausted_event(moved(0, 1, 0), CAUSE, NOW) is None, "0 is used up from the start"
    assert exhausted_event(moved(0, 10**18, None), CAUSE, NOW) is None
    event = exhausted_event(moved(999, 1004, 1000), CAUSE, NOW)
    assert event is not None
    assert list(body_of(event).items()) == [
        ("event", "allocation_exhausted"),
        ("key_id", "k-1"),
        ("allocation_id", "a-1"),
        ("service", "Mistral EU"),
        ("meter", "tokens"),
        ("total", 1004),
        ("limit", 1000),
        ("window", "month"),
        ("period", "2026-05-01T00:00:00Z"),
        ("resets_at", "2026-06-01T00:00:00Z"),
        ("timestamp", "2026-05-20T08:45:00.250000Z"),
    ]
    again = exhausted_event(moved(0, 1000, 1000), CAUSE, NOW)
    raised = exhausted_event(moved(1004, 2000, 2000), CAUSE, NOW)
    usd = exhausted_event(moved(0, NANO_PER_USD, NANO_PER_USD, EVER, "usd"), CAUSE, NOW)
    assert again is not None
    assert raised is not None
    assert usd is not None
    assert again.id == event.id
    assert len({event.id, raised.id, usd.id}) == 3
    body = body_of(usd)
    assert (body["total"], body["limit"]) == ("1.00", "1.00")
    assert (body["period"], body["resets_at"]) == (None, None)


def test_an_unpriced_model_is_told_once_a_day() -> None:
    day = Period(datetime(2026, 5, 20, tzinfo=UTC), datetime(2026, 5, 21, tzinfo=UTC))
    event = unpriced_event("ocr-9", day, CAUSE, NOW)
    assert list(body_of(event).items()) == [
        ("event", "unpriced_model_seen"),
        ("key_id", "k-1"),
        ("allocation_id", "a-1"),
        ("service", "Mistral EU"),
        ("model", "ocr-9"),
        ("period", "2026-05-20T00:00:00Z"),
        ("timestamp", "2026-05-20T08:45:00.250000Z"),
    ]
    next_day = Period(datetime(2026, 5, 21, tzinfo=UTC), datetime(2026, 5, 22, tzinfo=UTC))
    later = NOW + timedelta(hours=1)
    assert unpriced_event("ocr-9", day, Cause("k-2"), later).id == event.id
    assert unpriced_event("ocr-9", next_day, CAUSE, NOW).id != event.id
    assert unpriced_event("ocr-8", day, CAUSE, NOW).id != event.id


def test_a_session_that_was_cut_is_told_and_one_that_ended_is_not() -> None:
    for reason in ("normal", "client_disconnected", "upstream_error", "draining", "recovered"):
        assert session_cut_event("c-1", "rt", reason, 5, 7, CAUSE, NOW) is None
    events = [session_cut_event("c-1", "rt", reason, 5, None, CAUSE, NOW) for reason in CUT]
    assert len({event.id for event in events if event is not None}) == 1
    event = session_cut_event("c-1", "rt", "cost_exceeded", 5, 7_000_000, CAUSE, NOW)
    assert event is not None
    assert list(body_of(event).items()) == [
        ("event", "realtime_session_cut"),
        ("key_id", "k-1"),
        ("allocation_id", "a-1"),
        ("service", "Mistral EU"),
        ("call_id", "c-1"),
        ("model", "rt"),
        ("close_reason", "cost_exceeded"),
        ("tokens", 5),
        ("cost_usd", "0.007"),
        ("timestamp", "2026-05-20T08:45:00.250000Z"),
    ]
    unpriced = session_cut_event("c-2", "rt", "killed", 5, None, CAUSE, NOW)
    assert unpriced is not None
    assert body_of(unpriced)["cost_usd"] is None
    assert unpriced.id != event.id


def test_a_request_for_more_is_told() -> None:
    event = request_event("q-1", "m-1", "a-1", "usd", 2_500_000_000, "thesis", NOW, NOW)
    assert list(body_of(event).items()) == [
        ("event", "request_raised"),
        ("member_id", "m-1"),
        ("allocation_id", "a-1"),
        ("top_up_request_id", "q-1"),
        ("meter", "usd"),
        ("amount", "2.50"),
        ("reason", "thesis"),
        ("expires_at", "2026-05-20T08:45:00.250000Z"),
        ("timestamp", "2026-05-20T08:45:00.250000Z"),
    ]
    open_ended = request_event("q-1", "m-1", "a-1", "tokens", 9, "", None, NOW)
    body = body_of(open_ended)
    assert (body["amount"], body["expires_at"]) == (9, None)
    assert open_ended.id == event.id


def test_a_body_is_flat_and_reads_back_the_same() -> None:
    day = Period(MAY.start, MAY.start + timedelta(days=1))
    events = [
        crossed(100, moved(0, 101, 1000)),
        crossed(100, moved(0, 101, None, meter="usd")),
        exhausted_event(moved(0, 9, 9), CAUSE, NOW),
        unpriced_event("m", day, CAUSE, NOW),
        session_cut_event("c", "m", "revoked", 1, 1, CAUSE, NOW),
        request_event("q", "m", "a", "tokens", 1, "r", NOW, NOW),
        trial_event("t", "d", NOW),
    ]
    names = set()
    for event in events:
        assert event is not None
        body = body_of(event)
        names.add(body["event"])
        assert all(isinstance(value, str | int | None) for value in body.values())
        assert msgspec.json.decode(msgspec.json.encode(event.body), type=Body) == event.body
    assert len(names) == len(get_args(Body)) == len(events)
    told_by_rules = {"token_threshold_crossed", "cost_threshold_crossed"}
    assert set(get_args(ListedKind)) == names - told_by_rules - {"test"}


def test_each_trial_is_an_event_of_its_own() -> None:
    event = trial_event("t-1", "d-1", NOW)
    assert list(body_of(event).items()) == [
        ("event", "test"),
        ("destination_id", "d-1"),
        ("timestamp", "2026-05-20T08:45:00.250000Z"),
    ]
    assert trial_event("t-1", "d-1", NOW).id == event.id
    assert trial_event("t-2", "d-1", NOW).id != event.id


# ------------------------------------------------------------------------------------- deliveries


def delays(first: float, jitter: float, spent: float = 0) -> list[float]:
    """The seconds between the tries of a delivery that never succeeds, each taking `spent`."""
    at, attempt, waits = NOW, 0, []
    while True:
        attempt += 1
        failed = at + timedelta(seconds=spent)
        due = next_attempt(attempt, first, NOW, failed, jitter)
        if due is None:
            return waits
        waits.append((due - failed).total_seconds())
        at = due


def test_delays_double_up_to_an_hour_for_a_day() -> None:
    waits = delays(5, 0)
    assert waits[:12] == [5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600]
    assert sum(waits) == RETRY_FOR.total_seconds()
    assert len(waits) == 33


def test_jitter_makes_a_delay_longer_by_a_quarter_at_most() -> None:
    assert delays(4, 0.5)[:3] == [4.5, 9, 18]
    assert delays(4, 1)[:3] == [5, 10, 20]
    assert delays(4, 7)[:3] == [5, 10, 20]
    assert delays(4, -7)[:3] == [4, 8, 16]


@pytest.mark.parametrize(
    ("attempt", "first", "after_s", "due_s"),
    [
        # tries so far, first delay, seconds since the event, and when the next is due
        (1, 5, 0, 5),
        (1, 0.25, 10, 10.25),
        (2, 7200, 0, 7200),
        (1, 86_400, 10, 86_400),
        (1, 86_400, 0, 86_400),
        (10**9, 5, 0, 3600),
        (10**9, 0.000001, 0, 3600),
        (33, 5, 86_399, 86_400),
        (33, 5, 86_400, None),
        # The worker was down for two days: what failed then has had its try.
        (1, 5, 2 * 86_400, None),
    ],
)
def test_a_delivery_is_tried_again_within_its_day(
    attempt: int, first: float, after_s: float, due_s: float | None
) -> None:
    due = next_attempt(attempt, first, NOW, NOW + timedelta(seconds=after_s), 0)
    assert due == (None if due_s is None else NOW + timedelta(seconds=due_s))


def test_a_day_of_tries_has_24_hours_whatever_the_clocks_do() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    started = datetime(2026, 3, 28, 12, 0, tzinfo=berlin)
    last = datetime(2026, 3, 29, 13, 0, tzinfo=berlin)
    assert next_attempt(1, 86_400, started, started, 0) == last
    assert next_attempt(2, 5, started, last, 0) is None


@given(st.floats(0.000001, 86_400), st.floats(0, 1), st.floats(0, 10))
@example(0.000001, 0, 0)
@example(86_400, 1, 10)
def test_a_delivery_ends_in_its_day(first: float, jitter: float, spent: float) -> None:
    waits = delays(first, jitter, spent)
    assert 1 <= len(waits) <= 64
    assert all(wait > 0 for wait in waits)
    assert sum(waits) <= RETRY_FOR.total_seconds() + 0.001
    # All but the last, which the day's end cuts short, grow until they are an hour long.
    for wait, longer in pairwise(waits[:-1]):
        assert longer >= wait or longer >= 3600


# -------------------------------------------------------------------------------------- addresses

PUBLIC = [
    "8.8.8.8",
    "1.1.1.1",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.1.0",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
    "2a00:1450:4001:80b::200e",
    "2606:4700::1111",
    "2001:200::1",
    "3ffe::1",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
    "2002:808:808::1",
    "2a00::1%eth0",
]


@pytest.mark.parametrize("ip", PUBLIC)
def test_a_public_address_is_allowed(ip: str) -> None:
    assert forbidden_address(ip) is None


@pytest.mark.parametrize(
    ("ip", "why"),
    [
        ("0.0.0.0", "the unspecified address"),
        ("0.1.2.3", "a reserved address"),
        ("10.0.0.0", "a private address"),
        ("10.255.255.255", "a private address"),
        ("100.64.0.0", "a carrier's shared address"),
        ("100.127.255.255", "a carrier's shared address"),
        ("127.0.0.1", "a loopback address"),
        ("127.255.255.255", "a loopback address"),
        ("169.254.0.1", "a link-local address"),
        ("172.16.0.0", "a private address"),
        ("172.31.255.255", "a private address"),
        ("192.0.0.1", "a reserved address"),
        ("192.0.2.1", "an address for documentation"),
        ("192.88.99.1", "a reserved address"),
        ("192.168.0.1", "a private address"),
        ("198.18.0.1", "an address for benchmarks"),
        ("198.51.100.1", "an address for documentation"),
        ("203.0.113.1", "an address for documentation"),
        ("224.0.0.1", "a multicast address"),
        ("239.255.255.255", "a multicast address"),
        ("240.0.0.1", "a reserved address"),
        ("255.255.255.255", "a reserved address"),
        ("169.254.169.254", "the address of a cloud's metadata service"),
        ("169.254.170.2", "the address of a cloud's metadata service"),
        ("168.63.129.16", "the address of a cloud's metadata service"),
        ("100.100.100.200", "the address of a cloud's metadata service"),
        ("fd00:ec2::254", "the address of a cloud's metadata service"),
        ("::", "the unspecified address"),
        ("::1", "a loopback address"),
        ("::1%lo", "a loopback address"),
        ("fc00::1", "a private address"),
        ("fdff::1", "a private address"),
        ("fe80::1", "a link-local address"),
        ("fe80::1%eth0", "a link-local address"),
        ("fec0::1", "a private address"),
        ("ff02::1", "a multicast address"),
        ("2001:db8::1", "an address for documentation"),
        ("3fff::1", "an address for documentation"),
        ("2001:2::1", "a reserved address"),
        ("100::1", "a reserved address"),
        ("5f00::1", "a reserved address"),
        ("4000::1", "a reserved address"),
        # What hides an IPv4 address is judged as that.
        ("::ffff:127.0.0.1", "a loopback address, 127.0.0.1, inside an IPv6 address"),
        ("::ffff:a00:1", "a private address, 10.0.0.1, inside an IPv6 address"),
        ("::ffff:169.254.169.254", "the address of a cloud's metadata service, 169.254.169.254, inside an IPv6 address"),
        ("::ffff:0.0.0.0", "the unspecified address, 0.0.0.0, inside an IPv6 address"),
        ("::ffff:10.0.0.1%eth0", "a private address, 10.0.0.1, inside an IPv6 address"),
        ("::10.0.0.1", "a private address, 10.0.0.1, inside an IPv6 address"),
        ("::2", "a reserved address, 0.0.0.2, inside an IPv6 address"),
        ("64:ff9b::10.0.0.1", "a private address, 10.0.0.1, inside an IPv6 address"),
        ("64:ff9b::a9fe:a9fe", "the address of a cloud's metadata service, 169.254.169.254, inside an IPv6 address"),
        ("2002:a00:1::1", "a private address, 10.0.0.1, inside an IPv6 address"),
        ("2002:7f00:1:ffff:ffff:ffff:ffff:ffff", "a loopback address, 127.0.0.1, inside an IPv6 address"),
        # Forms that hide it too well, or that no receiver has.
        ("64:ff9b:1::8.8.8.8", "a local NAT64 address"),
        ("64:ff9b:1:fffe:a00:1::", "a local NAT64 address"),
        ("64:ff9b:0:0:1::1", "a reserved address"),
        ("2001:0:808:808::1", "a Teredo address"),
        ("2001::f5ff:fffe", "a Teredo address"),
        ("::ffff:0:808:808", "a reserved address"),
        ("localhost", "no IP address"),
        ("127.1", "no IP address"),
        ("010.0.0.1", "no IP address"),
        ("8.8.8.8%eth0", "no IP address"),
        ("", "no IP address"),
    ],
)  # fmt: skip
def test_an_address_that_is_not_public_is_forbidden(ip: str, why: str) -> None:
    assert forbidden_address(ip) == why


@pytest.mark.parametrize(
    ("ip", "listed", "allowed"),
    [
        ("10.1.2.3", ["10.0.0.0/8"], True),
        ("10.1.2.3", ["192.168.0.0/16", "10.1.2.3/32"], True),
        ("10.1.2.3", ["10.2.0.0/16", "fd00::/8"], False),
        ("127.0.0.1", ["127.0.0.0/8"], True),
        ("::1", ["127.0.0.0/8"], False),
        ("::1", ["::1/128"], True),
        ("fd12:3456::1", ["fd12:3456::/32"], True),
        ("fd12:3456::1%eth0", ["fd12:3456::/32"], True),
        ("fd12:3457::1", ["fd12:3456::/32"], False),
        # What counts is the address inside.
        ("::ffff:10.1.2.3", ["10.0.0.0/8"], True),
        ("64:ff9b::10.1.2.3", ["10.0.0.0/8"], True),
        ("64:ff9b::10.1.2.3", ["64:ff9b::/96"], False),
        ("::ffff:127.0.0.1", ["::/0"], False),
        ("2002:a00:1::1", ["2002::/16"], False),
        ("64:ff9b:1::8.8.8.8", ["64:ff9b:1::/48"], True),
        # A metadata service is opened by name alone.
        ("169.254.169.254", ["169.254.0.0/16"], False),
        ("169.254.169.254", ["0.0.0.0/0"], False),
        ("169.254.169.254", ["169.254.169.254/32"], True),
        ("169.254.1.1", ["169.254.0.0/16"], True),
        ("fd00:ec2::254", ["fd00::/8"], False),
        ("fd00:ec2::254", ["fd00:ec2::254/128"], True),
        ("::ffff:169.254.169.254", ["169.254.0.0/16"], False),
        ("8.8.8.8", ["10.0.0.0/8"], True),
        ("nonsense", ["0.0.0.0/0", "::/0"], False),
    ],
)
def test_a_listed_network_is_allowed(ip: str, listed: list[str], allowed: bool) -> None:
    networks = [ip_network(one) for one in listed]
    assert (forbidden_address(ip, networks) is None) == allowed


@given(st.ip_addresses(v=4))
@example(IPv4Address("169.254.169.254"))
@example(IPv4Address("8.8.8.8"))
@example(IPv4Address("0.0.0.1"))
def test_an_address_is_judged_alike_in_every_form(address: IPv4Address) -> None:
    plain = forbidden_address(address)
    if not address.is_global or address.is_multicast or address.is_reserved:
        assert plain is not None, "what the library knows to be special is"
    value = int(address)
    forms = [0xFFFF << 32 | value, 0x64_FF9B << 96 | value, 0x2002 << 112 | value << 80 | 7]
    if value > 1:
        forms.append(value)
    for form in forms:
        hidden = forbidden_address(IPv6Address(form))
        assert (hidden is None) == (plain is None)


@given(st.ip_addresses(v=6))
def test_only_global_unicast_is_allowed(address: IPv6Address) -> None:
    if address not in ip_network("2000::/3"):
        assert (
            forbidden_address(address) is not None
            or forbidden_address(IPv4Address(int(address) & 0xFFFF_FFFF)) is None
        )


# ------------------------------------------------------------------------------------------- URLs


@pytest.mark.parametrize(
    ("url", "host", "port", "tls"),
    [
        ("https://example.com/hook", "example.com", 443, True),
        ("http://example.com", "example.com", 80, False),
        ("HTTPS://EXAMPLE.com:8443/a/b?token=x&y=%20", "example.com", 8443, True),
        ("https://example.com?x=1", "example.com", 443, True),
        ("http://receiver:9000/", "receiver", 9000, False),
        ("http://my_receiver.internal:1/", "my_receiver.internal", 1, False),
        ("http://127.0.0.1:65535/hook", "127.0.0.1", 65535, False),
        ("http://[::1]:8080/hook", "::1", 8080, False),
        ("https://[2A00:0:0::1]/", "2a00::1", 443, True),
        ("https://xn--bcher-kva.example/", "xn--bcher-kva.example", 443, True),
        ("https://hooks.example.com/path@home/colon:too", "hooks.example.com", 443, True),
        ("https://1e100.net/", "1e100.net", 443, True),
        ("https://" + ".".join(["a" * 63] * 3) + ".com/", ".".join(["a" * 63] * 3) + ".com", 443, True),
    ],
)  # fmt: skip
def test_a_webhook_url_is_taken_apart(url: str, host: str, port: int, tls: bool) -> None:
    assert check_webhook_url(url) == Receiver(url, host, port, tls)


@pytest.mark.parametrize(
    ("url", "change"),
    [
        ("", "must be a URL"),
        ("https://example.com/a b", "must be a URL"),
        ("https://example.com/\n", "must be a URL"),
        (" https://example.com/", "must be a URL"),
        ("https://exa\tmple.com/", "must be a URL"),
        ("https://example.com\\@evil.example/", "must be a URL"),
        ("https://bücher.example/", "must be a URL"),
        ("https://example.com/\x00", "must be a URL"),
        ("https://ⓔxample.com/", "must be a URL"),
        ("https://example.com/" + "a" * 2048, "must be at most 2048 characters"),
        ("example.com/hook", "must begin with https://"),
        ("//example.com/hook", "must begin with https://"),
        ("ftp://example.com/", "must begin with https://"),
        ("file:///etc/passwd", "must begin with https://"),
        ("javascript:alert(1)", "must begin with https://"),
        ("gopher://example.com:70/", "must begin with https://"),
        ("https://example.com/#part", "must have no fragment"),
        ("https://example.com/#", "must have no fragment"),
        ("https://ann:secret@example.com/", "must have no user name"),
        ("https://ann@example.com/", "must have no user name"),
        ("https://@example.com/", "must have no user name"),
        ("https://", "must have a host"),
        ("https:///hook", "must have a host"),
        ("https:example.com", "must begin with https://"),
        ("https://:443/", "must have a host"),
        ("https://[::1", "must have a host"),
        ("https://[::1]x/", "must have a host"),
        ("https://2a00::1/", "must have a host"),
        ("https://example.com:/", "must have a host"),
        ("https://example.com:http/", "must have a host"),
        ("https://example.com:+80/", "must have a host"),
        ("https://example.com:-1/", "must have a host"),
        ("https://example.com:0/", "must have a port from 1"),
        ("https://example.com:65536/", "must have a port from 1"),
        ("https://example.com:99999/", "must have a port from 1"),
        ("https://example.com:100000/", "must have a host"),
        ("https://[::g]/", "must have a host"),
        ("https://[fe80::1%25eth0]/", "must have a host"),
        ("https://[1::2::3]/", "must have an IPv6 address"),
        ("https://2130706433/", "must write an IPv4 address"),
        ("https://127.1/", "must write an IPv4 address"),
        ("https://0177.0.0.1/", "must write an IPv4 address"),
        ("https://0x7f000001/", "must write an IPv4 address"),
        ("https://127.0.0.0x1/", "must write an IPv4 address"),
        ("https://256.1.1.1/", "must write an IPv4 address"),
        ("https://example.com./", "must have a host name"),
        ("https://example..com/", "must have a host name"),
        ("https://-example.com/", "must have a host name"),
        ("https://exa%6dple.com/", "must have a host name"),
        ("https://*.example.com/", "must have a host name"),
        ("https://" + "a" * 64 + ".com/", "must have a host name"),
        ("https://" + ".".join(["a" * 63] * 4) + "/", "must have a host name"),
    ],
)  # fmt: skip
def test_a_url_that_no_webhook_can_go_to_is_refused(url: str, change: str) -> None:
    with pytest.raises(InvalidWebhookUrl) as refused:
        check_webhook_url(url)
    assert str(refused.value).startswith(change)
    assert "secret" not in str(refused.value)


@given(
    st.text() | st.builds("https://{}".format, st.text(alphabet="[]:@%./#?\\x0a1-_", max_size=20))
)
def test_no_text_breaks_the_check(url: str) -> None:
    try:
        receiver = check_webhook_url(url)
    except InvalidWebhookUrl:
        return
    assert receiver.host
    assert 0 < receiver.port < 2**16
