"""Reconcile: books that add up raise no alarm, and each way of not adding up is named.

To add a way, add a row to `CORRUPTIONS`: what is done to sound books by SQL, and what must be said.
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import psycopg
import pytest

from app.core.ledger import OwnerKind, account_key
from app.core.windows import EPOCH, Period
from app.ids import uuid7
from app.store.batch import Granted
from app.store.catalogue import set_limit
from app.store.database import Database
from app.store.ledger import Ledger, LedgerUnavailable
from app.store.reconcile import NAMED_MAX, Discrepancy, reconcile
from tests.ledger.world import ALLOCATION, KEY, POOL, USD, Call, Rows, running

TEAM: tuple[tuple[OwnerKind, str], ...] = (("allocation", ALLOCATION), ("pool", POOL))


@pytest.fixture
def rows(database_url: str) -> Rows:
    return Rows(database_url)


@pytest.fixture
async def ledger(rows: Rows, tmp_path: Path) -> AsyncIterator[Ledger]:
    async with running(rows.dsn, tmp_path) as ledger:
        yield ledger


async def sound_books(rows: Rows, ledger: Ledger) -> None:
    """A bit of everything: settled, in flight, overrun, unpriced, recovered, adjusted; two months."""
    await rows.limit("usd", 5 * USD)
    await rows.limit("tokens", 1000, "pool", POOL)
    last_month = datetime.now(UTC).replace(day=1) - timedelta(days=1)
    for at in (last_month, datetime.now(UTC)):
        settled, over, free, late, flying = (Call(owners=TEAM, at=at) for _ in range(5))
        unpriced = Call(owners=TEAM, at=at, nano=None)
        for call in (settled, over, free, late, unpriced):
            await call.reserve(ledger)
            if call is late:
                await rows.all("UPDATE holds SET deadline = now() WHERE call_id = %s", call.id)
                assert await ledger.recover(call.id, call.facts.account_ids) == "booked"
                assert (await call.settle(ledger, 12, USD + 1)).booking == "adjusted"
            elif call is not settled:
                await call.settle(
                    ledger, *((11, USD) if call is over else (5, 0 if call is free else None))
                )
        await settled.settle(ledger)
        await flying.reserve(ledger)


ANY_ACCOUNT = "(SELECT id FROM accounts WHERE owner = 'pool' ORDER BY period_start DESC LIMIT 1)"
ANY_CALL = "(SELECT id FROM calls WHERE outcome = 'success' AND cost_nano = 500000000 ORDER BY id DESC LIMIT 1)"

CORRUPTIONS: list[tuple[str, str, str, str, str, str]] = [
    # What is done -> invariant, kind of subject, what, expected, found
    (f"UPDATE accounts SET used_tokens = used_tokens + 1 WHERE id = {ANY_ACCOUNT}",
     "I1", "account", "used by its calls", "40 tokens", "41 tokens"),
    (f"UPDATE accounts SET used_nano = used_nano - 1 WHERE id = {ANY_ACCOUNT}",
     "I1", "account", "used by its calls", "2.500000001 USD", "2.50 USD"),
    (f"UPDATE accounts SET unpriced_calls = 0 WHERE id = {ANY_ACCOUNT}",
     "I1", "account", "unpriced", "1 calls", "0 calls"),
    (f"DELETE FROM calls WHERE id = {ANY_CALL}",
     "I1", "account", "used by its calls", "33 tokens", "40 tokens"),
    (f"INSERT INTO adjustments (account_ids, tokens, nano, unpriced, reason) VALUES"
     f" (ARRAY[{ANY_ACCOUNT}], 0, 0, -1, 'repriced')",
     "I1", "account", "unpriced", "0 calls", "1 calls"),
    (f"INSERT INTO adjustments (account_ids, tokens, nano, reason) VALUES"
     f" (ARRAY[{ANY_ACCOUNT}], 4, 0, 'correction'), (ARRAY[{ANY_ACCOUNT}], -4, 0, 'correction'),"
     f" (ARRAY[{ANY_ACCOUNT}], 5, 0, 'limit_opened'), (ARRAY[{ANY_ACCOUNT}], -5, 0, 'limit_opened')",
     "I3", "account", "recorded overrun", "7 tokens", "3 tokens"),
    ("DELETE FROM adjustments",
     "I1", "account", "used by its calls", "38 tokens", "40 tokens"),
    (f"UPDATE calls SET tokens = 8 WHERE id = {ANY_CALL}",
     "I1", "account", "used by its calls", "41 tokens", "40 tokens"),
    (f"DELETE FROM accounts WHERE id = {ANY_ACCOUNT}",
     "I1", "account", "used by its calls", "40 tokens", "no account"),
    (f"UPDATE accounts SET held_tokens = 11 WHERE id = {ANY_ACCOUNT}",
     "I2", "account", "held by calls in flight", "10 tokens", "11 tokens"),
    (f"UPDATE accounts SET held_nano = 0 WHERE id = {ANY_ACCOUNT}",
     "I2", "account", "held by calls in flight", "1.00 USD", "0.00 USD"),
    ("DELETE FROM holds",
     "I2", "account", "held by calls in flight", "0 tokens", "10 tokens"),
    (f"DELETE FROM accounts WHERE id = {ANY_ACCOUNT}",
     "I2", "account", "held by calls in flight", "10 tokens", "no account"),
    ("UPDATE holds SET deadline = now() - interval '1 minute'",
     "I2", "hold", "age", "settled or recovered within 10 s of its deadline", "60 s past"),
    ("UPDATE limits SET amount = 40, baseline = 0 WHERE meter = 'tokens'",
     "I3", "account", f"used and held under the tokens limit by month of pool {POOL}", "at most 43 tokens", "50 tokens"),
    ("UPDATE limits SET amount = 3000000000 WHERE meter = 'usd'",
     "I3", "account", f"used and held under the usd limit by month of allocation {ALLOCATION}", "at most 3.000000001 USD", "3.500000001 USD"),
    (f"UPDATE accounts SET overrun_tokens = 99 WHERE id = {ANY_ACCOUNT}",
     "I3", "account", "recorded overrun", "3 tokens", "99 tokens"),
    (f"UPDATE accounts SET overrun_nano = 0 WHERE id = {ANY_ACCOUNT}",
     "I3", "account", "recorded overrun", "0.000000001 USD", "0.00 USD"),
    (f"UPDATE calls SET price_id = NULL WHERE id = {ANY_CALL}",
     "I4", "call", "price version", "one, or no cost", "none, and 0.50 USD"),
    (f"UPDATE calls SET outcome = 'rejected_inactive' WHERE id = {ANY_CALL}",
     "I4", "call", "used", "nothing", "7 tokens, 0.50 USD"),
    (f"UPDATE calls SET tokens = -7 WHERE id = {ANY_CALL}",
     "I4", "call", "used", "nothing or more", "-7 tokens, 0.50 USD"),
    (f"UPDATE calls SET cost_nano = -1 WHERE id = {ANY_CALL}",
     "I4", "call", "used", "nothing or more", "7 tokens, -0.000000001 USD"),
    (f"UPDATE calls SET account_ids = '{{}}' WHERE id = {ANY_CALL}",
     "I4", "call", "accounts it counts in", "its allocation's", "none, of 7 tokens, 0.50 USD"),
    ("INSERT INTO holds SELECT id, account_ids, 0, 0, '{}', NULL, now() + interval '1 day' FROM calls"
     f" WHERE id = {ANY_CALL}",
     "I4", "hold", "call", "in flight", "booked as success"),
]  # fmt: skip


@pytest.mark.parametrize(("done", "invariant", "subject", "what", "expected", "found"), CORRUPTIONS)
async def test_books_that_do_not_add_up_are_named(
    rows: Rows,
    ledger: Ledger,
    done: str,
    invariant: str,
    subject: str,
    what: str,
    expected: str,
    found: str,
) -> None:
    await sound_books(rows, ledger)
    assert await reconcile(rows.dsn) == []
    await rows.all(done)
    wrong = await reconcile(rows.dsn)
    said = [
        (one.invariant, one.subject.split()[0], one.what.split(" (")[0], one.expected, one.found)
        for one in wrong
    ]
    assert (invariant, subject, what, expected, found) in said
    first = wrong[0]
    assert (
        str(first)
        == f"{first.invariant}: {first.subject}: {first.what}: expected {first.expected}, found {first.found}"
    )


async def test_a_call_that_is_there_twice_is_named(rows: Rows, ledger: Ledger) -> None:
    """Only a broken index can let it in."""
    await sound_books(rows, ledger)
    await rows.all("ALTER TABLE calls DROP CONSTRAINT calls_pkey")
    [(id,)] = await rows.all(f"SELECT {ANY_CALL}::text")
    await rows.all("INSERT INTO calls SELECT * FROM calls WHERE id = %s", id)
    wrong = await reconcile(rows.dsn)
    assert Discrepancy("I4", f"call {id}", "times booked", "1", "2") in wrong
    assert {one.invariant for one in wrong} == {"I1", "I4"}


async def test_at_rest_nothing_may_be_held(rows: Rows, ledger: Ledger) -> None:
    await sound_books(rows, ledger)
    wrong = await reconcile(rows.dsn, at_rest=True)
    assert {one.invariant for one in wrong} == {"I5"}
    holds = [one for one in wrong if one.subject.startswith("hold")]
    accounts = [one for one in wrong if one.subject.startswith("account")]
    assert {(one.expected, one.found) for one in holds} == {("no hold", "10 tokens, 1.00 USD")}
    assert {(one.expected, one.found) for one in accounts} == {("nothing", "10 tokens, 1.00 USD")}
    assert (len(holds), len(accounts)) == (2, 4)


async def test_a_hold_may_be_as_old_as_the_reaper_needs(rows: Rows, ledger: Ledger) -> None:
    await Call().reserve(ledger)
    await rows.all("UPDATE holds SET deadline = now() - interval '20 seconds'")
    assert [one.invariant for one in await reconcile(rows.dsn)] == ["I2"]
    assert await reconcile(rows.dsn, reaper_period_s=30) == []


@pytest.mark.parametrize(
    ("setting", "sound"),
    [
        # Lowered below what was used: what was used then is nobody's fault.
        ("amount = 1, baseline = 17, baseline_account = (SELECT id FROM accounts)", True),
        ("amount = 1, baseline = 16, baseline_account = (SELECT id FROM accounts)", False),
        # Set in another period, which says nothing about this one.
        ("amount = 1, baseline = 17, baseline_account = gen_random_uuid()", False),
        ("amount = 1, baseline = 17", False),
        ("amount = 17", True),
        # A period that was over when the limit was set is not judged by it.
        ("amount = 1, set_at = now() + interval '40 days'", True),
        # One that was lifted judges nothing.
        ("amount = NULL, baseline = 1", True),
        # Another window is another matter.
        ("amount = 1, window_kind = 'day'", True),
    ],
)
async def test_a_limit_is_kept_but_for_what_was_there_before_it(
    rows: Rows, ledger: Ledger, setting: str, sound: bool
) -> None:
    await rows.limit("tokens", 10**6)
    settled, flying = Call(), Call()
    for call in (settled, flying):
        await call.reserve(ledger)
    await settled.settle(ledger)
    await rows.all(f"UPDATE limits SET {setting}")
    wrong = await reconcile(rows.dsn)
    assert [(one.invariant, one.found) for one in wrong] == ([] if sound else [("I3", "17 tokens")])


END = "(date_trunc('month', now(), 'UTC') + interval '1 month')"
TOPPED_UP = """
INSERT INTO top_ups (id, owner_id, meter, window_kind, amount, starts_at, expires_at, reason, actor)
SELECT gen_random_uuid(), owner_id, {}, {}, n, {}, {}, 'more', 'ops'
FROM limits, generate_series(7, 9, 2) AS n
"""


@pytest.mark.parametrize(
    ("meter", "window", "starts_at", "expires_at", "sound"),
    [
        ("meter", "window_kind", "now()", "now() + interval '1 day'", True),
        # Over by now, or not begun yet when most was used: it was there at some moment.
        ("meter", "window_kind", "now() - interval '9 days'", "now()", True),
        ("meter", "window_kind", END + " - interval '1 us'", END + " + interval '9 days'", True),
        # In another month, for another meter, in another window.
        ("meter", "window_kind", "now() - interval '70 days'", "now() - interval '40 days'", False),
        ("meter", "window_kind", END, END + " + interval '9 days'", False),
        ("'usd'", "window_kind", "now()", "now() + interval '1 day'", False),
        ("meter", "'day'", "now()", "now() + interval '1 day'", False),
    ],
)
async def test_a_limit_is_kept_with_what_topped_it_up_in_the_period(
    rows: Rows,
    ledger: Ledger,
    meter: str,
    window: str,
    starts_at: str,
    expires_at: str,
    sound: bool,
) -> None:
    await rows.limit("tokens", 10**6)
    settled, flying = Call(), Call()
    for call in (settled, flying):
        await call.reserve(ledger)
    await settled.settle(ledger)
    await rows.all("UPDATE limits SET amount = 1, baseline = 0")
    await rows.all(TOPPED_UP.format(meter, window, starts_at, expires_at))
    found = [] if sound else ["I3"]
    assert [one.invariant for one in await reconcile(rows.dsn)] == found
    # One token more than the cap and both top-ups is one too many.
    await rows.all("UPDATE limits SET amount = 0")
    assert [one.invariant for one in await reconcile(rows.dsn)] == ["I3"]


async def test_a_month_that_was_left_for_another_zones_is_not_judged(
    rows: Rows, ledger: Ledger
) -> None:
    await rows.limit("tokens", 10**6)
    call = Call()
    await call.reserve(ledger)
    await rows.all("UPDATE limits SET amount = 1, baseline = 0, baseline_account = %s", POOL)
    assert [one.invariant for one in await reconcile(rows.dsn)] == ["I3"]
    of_zone = (
        "INSERT INTO accounts (id, owner, owner_id, window_kind, period_start, period_end)"
        " SELECT %s, owner, {}, window_kind, period_start + interval '5 hours', period_end"
        " FROM accounts"
    )
    await rows.all(of_zone.format("gen_random_uuid()"), POOL)
    assert [one.invariant for one in await reconcile(rows.dsn)] == ["I3"], "it is someone else's"
    await rows.all("DELETE FROM accounts WHERE id = %s", POOL)
    await rows.all(of_zone.format("owner_id"), POOL)
    assert await reconcile(rows.dsn) == []
    await rows.all(
        "UPDATE accounts SET period_start = period_start - interval '40 days',"
        " period_end = period_end - interval '40 days' WHERE id = %s",
        POOL,
    )
    assert [one.invariant for one in await reconcile(rows.dsn)] == ["I3"], "it was another month"


async def test_a_lifetime_is_never_over(rows: Rows) -> None:
    await rows.all(
        "INSERT INTO accounts (id, owner, owner_id, window_kind, period_start, held_tokens)"
        " VALUES (gen_random_uuid(), 'key', %s, 'lifetime', to_timestamp(0), 0)",
        POOL,
    )
    await rows.all(
        "INSERT INTO limits (owner_id, meter, window_kind, owner, amount)"
        " VALUES (%s, 'tokens', 'lifetime', 'key', 5)",
        POOL,
    )
    await rows.all("UPDATE accounts SET used_tokens = 6")
    assert {one.invariant for one in await reconcile(rows.dsn)} == {"I1", "I3"}


async def test_an_empty_ledger_is_sound_and_says_how_far_it_is(rows: Rows) -> None:
    steps: list[tuple[int, int, str]] = []
    partitions = [
        name
        for (name,) in await rows.all(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'calls'::regclass ORDER BY 1"
        )
    ]
    assert await reconcile(rows.dsn, lambda *step: steps.append(step), at_rest=True) == []
    names = [*partitions, "accounts", "holds", "done"]
    assert steps == [(done, len(partitions) + 2, name) for done, name in enumerate(names)]


async def test_not_every_one_of_a_million_is_named(rows: Rows) -> None:
    await rows.all(
        "INSERT INTO accounts (id, owner, owner_id, window_kind, period_start, used_tokens)"
        " SELECT gen_random_uuid(), 'pool', gen_random_uuid(), 'month', now(), 1"
        " FROM generate_series(1, %s)",
        NAMED_MAX + 5,
    )
    assert len(await reconcile(rows.dsn)) == NAMED_MAX


async def test_books_add_up_at_every_moment_of_a_busy_system(rows: Rows, ledger: Ledger) -> None:
    """One snapshot is enough: no alarm while calls come and go."""
    await rows.limit("usd", 20 * USD)
    stop = asyncio.Event()

    async def load() -> None:
        while not stop.is_set():
            call = Call(owners=TEAM)
            try:
                await call.reserve(ledger)
            except LedgerUnavailable:
                continue
            await call.settle(ledger, nano=1)

    tasks = [asyncio.create_task(load()) for _ in range(16)]
    for _ in range(15):
        assert await reconcile(rows.dsn) == []
    stop.set()
    await asyncio.gather(*tasks)
    await rows.assert_sound()
    assert ledger.operations > 100


async def test_it_changes_nothing_and_leaves_nothing_behind(rows: Rows, ledger: Ledger) -> None:
    await sound_books(rows, ledger)
    tables = ("accounts", "limits", "holds", "calls", "adjustments")

    async def everything() -> list[object]:
        return [await rows.all(f"SELECT * FROM {table} ORDER BY 1") for table in tables]

    before = await everything()
    await reconcile(rows.dsn, at_rest=True)
    assert await everything() == before
    assert await rows.one("SELECT to_regclass('reconcile_sums')") is None


async def test_a_database_that_is_not_there_is_an_error(rows: Rows) -> None:
    with pytest.raises(psycopg.OperationalError):
        await reconcile(rows.dsn.replace("/test_", "/no_"))


MANY_CALLS = """
INSERT INTO calls
SELECT overlay(uuid7_floor(now())::text PLACING lpad(to_hex(n), 12, '0') FROM 25)::uuid, 'r', NULL,
       id, id, 'model', 'embeddings', 'success', NULL, 200, now(), now(), '{}', 7, 400, id, false,
       0, 0, NULL, NULL, ARRAY[id]
FROM generate_series(1, 100000) AS n, (SELECT %s::uuid AS id) AS one
"""
THEIR_ACCOUNT = """
INSERT INTO accounts
    (id, owner, owner_id, window_kind, period_start, used_tokens, used_nano)
SELECT id, 'allocation', id, 'month', now(), 700000, 40000000 FROM (SELECT %s::uuid AS id) AS one
"""


async def test_a_hundred_thousand_calls_take_a_moment(rows: Rows) -> None:
    """They are added up by the database: no call comes to Python."""
    account = uuid7()
    await rows.all(MANY_CALLS, account)
    await rows.all(THEIR_ACCOUNT, account)
    async with asyncio.timeout(10):
        await rows.assert_sound()


async def test_what_is_inside_a_rolling_window_is_what_its_calls_used(
    rows: Rows, ledger: Ledger
) -> None:
    """One call slid out, one is inside; then the account forgets that the first has."""
    now = datetime.now(UTC)
    key = account_key("key", KEY, "rolling:1h", Period(EPOCH, None))
    database = Database(rows.dsn)
    try:
        await database.transaction(lambda c: set_limit(c, key, "usd", 5 * USD, now))
    finally:
        await database.close()
    await rows.all("UPDATE accounts SET slid_to = slid_to - interval '5 hours'")
    version = await rows.one("SELECT directory_version FROM installation")
    for at in (now - timedelta(hours=2), now):
        call = Call(at=at)
        call.path = (key, *call.path)
        ids = tuple(one.id for one in call.path)
        call.facts = msgspec.structs.replace(call.facts, account_ids=ids)
        call.demand = msgspec.structs.replace(call.demand, accounts=call.path)
        assert isinstance(await call.reserve(ledger, version), Granted)
        await call.settle(ledger, 7, USD)
    used = "SELECT used_nano, used_nano - slid_nano, slid_tokens FROM accounts WHERE owner = 'key'"
    assert await rows.all(used) == [(2 * USD, USD, 7)]
    assert await reconcile(rows.dsn, at_rest=True) == []
    await rows.all("UPDATE accounts SET slid_nano = 0, slid_tokens = 0 WHERE owner = 'key'")
    said = [(one.invariant, one.what, one.expected, one.found) for one in await reconcile(rows.dsn)]
    assert said == [
        ("I1", "used within the window", "7 tokens", "14 tokens"),
        ("I1", "used within the window", "1.00 USD", "2.00 USD"),
    ]
