"""Reconcile: do the books add up?

Owns the five invariants of the ledger as statements that look for what breaks them. Repairs
nothing and decides nothing: what is wrong is named for a person to look at.

It reads one snapshot, so it may run at any time beside the system it checks, and never waits for
it or makes it wait. All adding up is done by the database, a partition of calls at a time.

Invariants that it checks, for every account, hold and call there is:

- I1: an account has used the sum of its calls and adjustments, in tokens and nano-USD, and counts
  its unpriced calls, but for those that were priced after all;
- I2: an account holds the sum of its open holds, and no hold is older than its deadline plus the
  time in which the reaper comes by;
- I3: no more is used and held than a limit allows with the top-ups of the period, but for what was
  there when it was set and for the recorded overrun, which is what calls used beyond their holds,
  and what was added later;
- I4: a call is booked once and not in flight any more, counts somewhere if it delivered anything,
  and has a price version or is unpriced; it used nothing if it was refused, and never less;
- I5, if nothing should be in flight: there are no holds, and nothing is held.
"""

from collections.abc import Callable
from typing import Any, Literal, LiteralString

import msgspec
import psycopg
from psycopg import sql

from app.core.money import nano_to_usd
from app.core.refusals import DELIVERED

Invariant = Literal["I1", "I2", "I3", "I4", "I5"]

Progress = Callable[[int, int, str], None]
"""Told how many steps are done, of how many, and which comes next."""

NAMED_MAX = 1000
"""How many discrepancies of one kind are named: one more accident would not say more."""

REAPER_SLACK_S = 5.0
"""What a round of the reaper may take, beyond its period: it settles what it finds."""


class Discrepancy(msgspec.Struct, frozen=True):
    """One thing in the books that cannot be right."""

    invariant: Invariant
    subject: str
    """`account …`, `call …` or `hold …`, with its id."""
    what: str
    """Which of its figures or properties, in plain words."""
    expected: str
    found: str

    def __str__(self) -> str:
        """Say it in one line."""
        return (
            f"{self.invariant}: {self.subject}: {self.what}: "
            f"expected {self.expected}, found {self.found}"
        )


# What calls and adjustments say, by account; filled partition by partition.
SUMS = """
CREATE TEMPORARY TABLE reconcile_sums (
    account_id uuid, tokens numeric, nano numeric, unpriced bigint,
    over_tokens numeric, over_nano numeric
) ON COMMIT DROP
"""
SUM_CALLS = """
INSERT INTO reconcile_sums
SELECT account_id, sum(tokens), coalesce(sum(cost_nano), 0),
       count(*) FILTER (WHERE cost_nano IS NULL), sum(overrun_tokens), sum(overrun_nano)
FROM {calls}, unnest(account_ids) AS account_id GROUP BY account_id
"""
SUM_ADJUSTMENTS = """
INSERT INTO reconcile_sums
SELECT account_id, sum(tokens), sum(nano), sum(unpriced),
       sum(greatest(0, tokens)) FILTER (WHERE reason <> 'limit_opened'),
       sum(greatest(0, nano)) FILTER (WHERE reason <> 'limit_opened')
FROM adjustments, unnest(account_ids) AS account_id GROUP BY account_id
"""
PARTITIONS = """
SELECT c.oid::regclass::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'calls'::regclass ORDER BY 1
"""

# Each of these names what is wrong: subject, which figure, what it is in, expected, found.
USED = """
WITH sums AS (
    SELECT account_id, sum(tokens) AS tokens, sum(nano) AS nano, sum(unpriced) AS unpriced,
           sum(over_tokens) AS over_tokens, sum(over_nano) AS over_nano
    FROM reconcile_sums GROUP BY account_id
)
SELECT invariant, coalesce(a.id, s.account_id)::text, what, meter, expected::bigint, found
FROM accounts a FULL JOIN sums s ON s.account_id = a.id
CROSS JOIN LATERAL (VALUES
    ('I1', 'used by its calls', 'tokens', coalesce(s.tokens, 0), a.used_tokens),
    ('I1', 'used by its calls', 'usd', coalesce(s.nano, 0), a.used_nano),
    ('I1', 'unpriced', 'calls', coalesce(s.unpriced, 0), a.unpriced_calls),
    ('I3', 'recorded overrun', 'tokens', coalesce(s.over_tokens, 0), a.overrun_tokens),
    ('I3', 'recorded overrun', 'usd', coalesce(s.over_nano, 0), a.overrun_nano)
) AS v(invariant, what, meter, expected, found)
WHERE found IS DISTINCT FROM expected
    -- Once is enough for an account that is not there.
    AND (a.id IS NOT NULL OR (invariant, meter) = ('I1', 'tokens'))
ORDER BY 1, 2, 3, 4 LIMIT %(most)s
"""
HELD = """
WITH sums AS (
    SELECT account_id, sum(tokens) AS tokens, sum(nano) AS nano
    FROM holds, unnest(account_ids) AS account_id GROUP BY account_id
)
SELECT 'I2', coalesce(a.id, s.account_id)::text, 'held by calls in flight', meter,
       expected::bigint, found
FROM accounts a FULL JOIN sums s ON s.account_id = a.id
CROSS JOIN LATERAL (VALUES
    ('tokens', coalesce(s.tokens, 0), a.held_tokens), ('usd', coalesce(s.nano, 0), a.held_nano)
) AS v(meter, expected, found)
WHERE found IS DISTINCT FROM expected AND (a.id IS NOT NULL OR meter = 'tokens')
ORDER BY 2, 4 LIMIT %(most)s
"""
# As of the snapshot: now() is when it was taken, however long the checks before this one took.
OLD = """
SELECT call_id::text, deadline::text, round(extract(epoch FROM now() - deadline))::bigint
FROM holds WHERE deadline < now() - make_interval(secs => %(grace)s)
ORDER BY deadline LIMIT %(most)s
"""
# A period that was over when the limit was set is not judged by it; nor is one that its owner left
# for that of another time zone, which took everything along. Top-ups were in force at some moment.
LIMITS = """
SELECT a.id::text, l.owner, l.owner_id::text, l.meter, l.window_kind,
       (most + overrun)::bigint, (used + held)::bigint
FROM limits l
JOIN accounts a ON a.owner_id = l.owner_id AND a.window_kind = l.window_kind
    AND (a.period_end IS NULL OR a.period_end > l.set_at)
CROSS JOIN LATERAL (
    SELECT greatest(l.amount, CASE WHEN l.baseline_account = a.id THEN l.baseline END) + (
               SELECT coalesce(sum(t.amount), 0) FROM top_ups t
               WHERE t.owner_id = l.owner_id AND t.meter = l.meter
                   AND t.window_kind = l.window_kind AND t.expires_at > a.period_start
                   AND (a.period_end IS NULL OR t.starts_at < a.period_end)
           ) AS most,
           CASE l.meter WHEN 'tokens' THEN a.used_tokens - a.slid_tokens
               ELSE a.used_nano - a.slid_nano END::numeric AS used,
           CASE l.meter WHEN 'tokens' THEN a.held_tokens ELSE a.held_nano END::numeric AS held,
           CASE l.meter WHEN 'tokens' THEN a.overrun_tokens ELSE a.overrun_nano END::numeric
               AS overrun
) AS v
WHERE l.amount IS NOT NULL AND used + held > most + overrun
    AND NOT EXISTS (
        SELECT FROM accounts b
        WHERE b.id = l.baseline_account AND b.id <> a.id
            AND (b.owner_id, b.window_kind) = (a.owner_id, a.window_kind)
            AND b.period_start < a.period_end AND a.period_start < b.period_end
    )
ORDER BY a.id, l.meter LIMIT %(most)s
"""
# The calls of a key since its window began, whether they were charged to the account themselves or
# came in when its limit was opened.
ROLLED = """
SELECT 'I1', a.id::text, 'used within the window', meter, expected::bigint, found
FROM accounts a
CROSS JOIN LATERAL (
    SELECT coalesce(sum(tokens), 0) AS tokens, coalesce(sum(nano), 0) AS nano FROM (
        SELECT c.tokens, c.cost_nano AS nano FROM calls c
        WHERE c.key_id = a.owner_id AND c.id >= uuid7_floor(a.slid_to)
        UNION ALL
        SELECT late.tokens, late.nano FROM calls c JOIN adjustments late ON late.call_id = c.id
        WHERE c.key_id = a.owner_id AND c.id >= uuid7_floor(a.slid_to)
            AND (a.id = ANY(late.account_ids) OR late.created_at < a.opened_at)
    ) AS parts
) sums
CROSS JOIN LATERAL (VALUES
    ('tokens', sums.tokens, a.used_tokens - a.slid_tokens),
    ('usd', sums.nano, a.used_nano - a.slid_nano)
) AS v(meter, expected, found)
WHERE a.slid_to IS NOT NULL AND found IS DISTINCT FROM expected
    AND EXISTS (SELECT FROM limits l WHERE l.owner_id = a.owner_id
        AND l.window_kind = a.window_kind AND (l.amount IS NOT NULL OR l.watched))
ORDER BY 2, 4 LIMIT %(most)s
"""
PRICELESS = """
SELECT id::text, cost_nano FROM {calls}
WHERE cost_nano IS NOT NULL AND price_id IS NULL AND outcome = ANY(%(delivered)s) LIMIT %(most)s
"""
# Sums do not show it: two such calls may add up to nothing.
ABSURD = """
SELECT id::text, outcome, tokens, cost_nano FROM {calls}
WHERE tokens < 0 OR cost_nano < 0
    OR outcome LIKE 'rejected%%' AND (tokens > 0 OR cost_nano > 0) LIMIT %(most)s
"""
NOWHERE = """
SELECT id::text, tokens, cost_nano FROM {calls}
WHERE account_ids = '{{}}' AND outcome = ANY(%(delivered)s) LIMIT %(most)s
"""
TWICE = "SELECT id::text, count(*) FROM {calls} GROUP BY id HAVING count(*) > 1 LIMIT %(most)s"
BOOKED_AND_HELD = """
SELECT h.call_id::text, c.outcome FROM holds h JOIN calls c ON c.id = h.call_id
ORDER BY 1 LIMIT %(most)s
"""
NOT_AT_REST = """
SELECT call_id::text, tokens, nano FROM holds ORDER BY call_id LIMIT %(most)s
"""
HELD_AT_REST = """
SELECT id::text, held_tokens, held_nano FROM accounts
WHERE held_tokens <> 0 OR held_nano <> 0 ORDER BY id LIMIT %(most)s
"""


def no_progress(done: int, total: int, what: str) -> None:
    """Tell nobody."""


async def reconcile(
    dsn: str,
    progress: Progress = no_progress,
    *,
    at_rest: bool = False,
    reaper_period_s: float = 5.0,
) -> list[Discrepancy]:
    """Return everything in the books that breaks an invariant; an empty list is good news.

    `at_rest` says that no call should be in flight (I5). Raises psycopg's errors.
    """
    async with await psycopg.AsyncConnection.connect(dsn, connect_timeout=10) as connection:
        await connection.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        checks = _Checks(connection, progress, reaper_period_s)
        await checks.run(at_rest)
        # The scratch table goes; there is nothing to keep.
        await connection.rollback()
        return checks.found


class _Checks:
    """The checks of one snapshot, and what they found."""

    def __init__(
        self,
        connection: psycopg.AsyncConnection[Any],
        progress: Progress,
        reaper_period_s: float,
    ) -> None:
        self.connection = connection
        self.progress = progress
        self.grace_s = reaper_period_s + REAPER_SLACK_S
        self.found: list[Discrepancy] = []

    async def run(self, at_rest: bool) -> None:
        partitions = [name for (name,) in await self._rows(PARTITIONS)]
        total = len(partitions) + 2
        await self.connection.execute(SUMS)
        for done, partition in enumerate(partitions):
            self.progress(done, total, partition)
            await self._calls(sql.SQL(partition))
        self.progress(total - 2, total, "accounts")
        await self.connection.execute(SUM_ADJUSTMENTS)
        await self._accounts()
        self.progress(total - 1, total, "holds")
        await self._holds()
        if at_rest:
            await self._rest()
        self.progress(total, total, "done")

    async def _rows(self, query: LiteralString | sql.Composed) -> list[tuple[Any, ...]]:
        values = {"most": NAMED_MAX, "grace": self.grace_s, "delivered": list(DELIVERED)}
        return await (await self.connection.execute(query, values)).fetchall()

    def _say(
        self, invariant: Invariant, subject: str, what: str, expected: object, found: object
    ) -> None:
        self.found.append(Discrepancy(invariant, subject, what, str(expected), str(found)))

    async def _calls(self, calls: sql.Composable) -> None:
        """Sum up a partition, and look at each of its calls by itself."""
        await self.connection.execute(sql.SQL(SUM_CALLS).format(calls=calls))
        for id, nano in await self._rows(sql.SQL(PRICELESS).format(calls=calls)):
            cost = _in("usd", nano)
            self._say("I4", f"call {id}", "price version", "one, or no cost", f"none, and {cost}")
        for id, outcome, tokens, nano in await self._rows(sql.SQL(ABSURD).format(calls=calls)):
            expected = "nothing" if outcome.startswith("rejected") else "nothing or more"
            used = f"{_in('tokens', tokens)}, {_in('usd', nano or 0)}"
            self._say("I4", f"call {id}", f"used ({outcome})", expected, used)
        for id, tokens, nano in await self._rows(sql.SQL(NOWHERE).format(calls=calls)):
            used = f"none, of {_in('tokens', tokens)}, {_in('usd', nano or 0)}"
            self._say("I4", f"call {id}", "accounts it counts in", "its allocation's", used)
        for id, count in await self._rows(sql.SQL(TWICE).format(calls=calls)):
            self._say("I4", f"call {id}", "times booked", 1, count)

    async def _accounts(self) -> None:
        for query in (USED, HELD, ROLLED):
            for invariant, id, what, meter, expected, found in await self._rows(query):
                self._say(invariant, f"account {id}", what, _in(meter, expected), _in(meter, found))
        for id, owner, owner_id, meter, window, most, total in await self._rows(LIMITS):
            what = f"used and held under the {meter} limit by {window} of {owner} {owner_id}"
            self._say("I3", f"account {id}", what, f"at most {_in(meter, most)}", _in(meter, total))

    async def _holds(self) -> None:
        for id, deadline, late_s in await self._rows(OLD):
            within = f"settled or recovered within {self.grace_s:g} s of its deadline"
            self._say("I2", f"hold {id}", f"age (deadline {deadline})", within, f"{late_s} s past")
        for id, outcome in await self._rows(BOOKED_AND_HELD):
            self._say("I4", f"hold {id}", "call", "in flight", f"booked as {outcome}")

    async def _rest(self) -> None:
        for id, tokens, nano in await self._rows(NOT_AT_REST):
            held = f"{_in('tokens', tokens)}, {_in('usd', nano or 0)}"
            self._say("I5", f"hold {id}", "held at rest", "no hold", held)
        for id, tokens, nano in await self._rows(HELD_AT_REST):
            held = f"{_in('tokens', tokens)}, {_in('usd', nano)}"
            self._say("I5", f"account {id}", "held at rest", "nothing", held)


def _in(meter: str, amount: int | None) -> str:
    """Write an amount as people read it; None: there is no such account."""
    if amount is None:
        return "no account"
    return f"{nano_to_usd(amount)} USD" if meter == "usd" else f"{amount} {meter}"
