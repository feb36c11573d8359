"""The one state machine: everything that can happen to the ledger, in any order.

It does each thing to a system under test and to the dict model, demands the same answer of both,
and checks the invariants after every step. What the system is, `test_machine_core` (dicts) and
`test_machine_postgres` (a server) say.
"""

import os
from datetime import datetime, timedelta
from typing import Any, Protocol

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.core.ledger import NOTHING, AccountKey, Actual, CallFacts, Meter, Settlement
from tests.ledger import invariants, strategies
from tests.ledger.model import Extend, Model, Operation, Recover, Reserve, Result, Settle, State

SOAK = os.environ.get("HYPOTHESIS_PROFILE") == "soak"
"""Run for as long as it is worth, rather than as long as one waits for tests."""

SHRINKING_S = 600
"""A run that passes takes well under a minute; one that fails looks for its simplest example."""


class System(Protocol):
    """A ledger that the machine can drive."""

    def at(self, now: datetime) -> None:
        """Let it be now."""

    def reset(self) -> None:
        """Forget everything."""

    def run(self, operations: list[Operation]) -> list[Result]:
        """Do all of that in one batch: endings, then extensions, then reserves."""

    def set_limit(self, key: AccountKey, meter: Meter, amount: int | None) -> None:
        """Limit an owner in the window of an account; None: no longer."""

    def checkpoint(self, call_id: str, actual: Actual) -> None:
        """Note what a call in flight has used so far."""

    def expire(self, call_id: str) -> None:
        """Let the process of a call be dead, and its deadline past."""

    def snapshot(self) -> State:
        """Show every row."""

    def rest(self) -> None:
        """Check whatever else can be checked once no call is in flight."""


def bounded(examples: int, steps: int) -> settings:
    """Settings for a normal run, or fifty times that for a long one."""
    return settings(
        max_examples=examples * (50 if SOAK else 1),
        stateful_step_count=steps * (2 if SOAK else 1),
        deadline=None,
    )


class LedgerMachine(RuleBasedStateMachine):
    """Calls begin, grow, end, end again, die and come back, under limits that change."""

    system: System

    def __init__(self) -> None:
        super().__init__()
        self.now = strategies.START
        self.count = 0
        self.begin()

    def begin(self) -> None:
        """Start with empty books."""
        self.model = Model()
        # It is there before its first call: when its limit is opened, its past is looked through.
        [rolls] = strategies.keys_of((strategies.ROLLING,), strategies.CALENDAR, self.now)
        self.model.keys[rolls.id] = rolls
        self.system.reset()

    # What can happen

    @initialize(data=st.data())
    def some_limits_are_there(self, data: st.DataObject) -> None:
        pairs = st.tuples(strategies.owners, strategies.meters)
        for owner, meter in data.draw(st.lists(pairs, max_size=6)):
            self.limit(owner, meter, data.draw(strategies.amounts))

    @rule(data=st.data())
    def reserve(self, data: st.DataObject) -> None:
        self.do(self.a_reserve(data))

    @precondition(lambda self: self.model.holds)
    @rule(data=st.data())
    def extend(self, data: st.DataObject) -> None:
        self.do(self.an_extend(data))

    @precondition(lambda self: self.model.holds)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        self.do(self.a_settle(data))

    @precondition(lambda self: self.model.holds)
    @rule(data=st.data())
    def void(self, data: st.DataObject) -> None:
        self.do(self.a_void(data))

    @precondition(lambda self: self.model.calls)
    @rule(data=st.data())
    def settle_again(self, data: st.DataObject) -> None:
        """A duplicate; or the real end of a call that was recovered meanwhile."""
        self.do(self.an_again(data))

    @precondition(lambda self: any(c.outcome == "recovered" for c in self.model.calls.values()))
    @rule(data=st.data())
    def settle_late(self, data: st.DataObject) -> None:
        recovered = [c.call_id for c in self.model.calls.values() if c.outcome == "recovered"]
        self.do(self.an_again(data, recovered))

    @rule(data=st.data())
    def let_through(self, data: st.DataObject) -> None:
        """A call that was served while the ledger was away ends without ever having had a hold."""
        facts, path = self.a_call(data)
        actual = data.draw(strategies.actuals(100, 100))
        self.do(
            Settle(Settlement(facts, data.draw(strategies.delivered), 200, actual, self.now), path)
        )

    @precondition(lambda self: set(self.model.calls) - set(self.model.holds))
    @rule(data=st.data())
    def land_late(self, data: st.DataObject) -> None:
        """A reserve reaches the database after its call was settled without it."""
        ended = [id for id in self.model.calls if id not in self.model.holds]
        flight = self.model.settled[data.draw(st.sampled_from(ended))]
        self.do(Reserve(flight.facts, data.draw(strategies.demands(flight.path))))

    @precondition(lambda self: self.model.holds)
    @rule(data=st.data())
    def checkpoint(self, data: st.DataObject) -> None:
        hold = self.model.holds[self.in_flight(data)]
        actual = data.draw(strategies.actuals(hold.tokens, hold.nano))
        self.system.checkpoint(hold.call_id, actual)
        hold.checkpoint = actual

    @precondition(lambda self: self.model.holds)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        """The process of a call dies, and the deadline of its hold passes."""
        call = self.in_flight(data)
        self.system.expire(call)
        self.model.flights[call].expired = True

    @precondition(lambda self: any(flight.expired for flight in self.model.flights.values()))
    @rule()
    def reap(self) -> None:
        """The reaper settles whatever is past its deadline, as one batch."""
        self.do(
            *(self.a_recover(id) for id, flight in self.model.flights.items() if flight.expired)
        )

    @precondition(lambda self: self.model.holds)
    @rule(data=st.data())
    def recover(self, data: st.DataObject) -> None:
        """The reaper comes for a call, which may be alive."""
        self.do(self.a_recover(self.in_flight(data)))

    @rule(owner=strategies.owners, meter=strategies.meters, amount=strategies.amounts)
    def limit(self, owner: strategies.Owner, meter: Meter, amount: int | None) -> None:
        """A limit is set, raised, lowered or taken away."""
        [key] = strategies.keys_of((owner,), strategies.CALENDAR, self.now)
        self.model.keys[key.id] = key
        self.model.now = self.now
        self.system.at(self.now)
        self.system.set_limit(key, meter, amount)
        self.model.set_limit(key, meter, amount)

    @rule(minutes=st.sampled_from([1, 10, 59, 60 * 24]))
    def wait(self, minutes: int) -> None:
        self.now += timedelta(minutes=minutes)

    @precondition(lambda self: self.now.month < 4)
    @rule()
    def next_month(self) -> None:
        self.now = (self.now.replace(day=1) + timedelta(days=32)).replace(day=1, hour=0, minute=0)

    @rule(data=st.data())
    def batch(self, data: st.DataObject) -> None:
        """Much at once. A call ends, or is recovered, but not both in one batch: who is first then
        is the database's to choose, and `test_group_commit` shows that the books are right anyway.
        """
        self.do(*self.a_batch(data))

    # What must hold

    @invariant()
    def the_invariants_hold(self) -> None:
        self.look(self.system.snapshot())

    def look(self, state: State) -> None:
        """Compare the rows with the model's, and check what must hold of them."""
        invariants.check(state, self.model)

    def teardown(self) -> None:
        self.finish()

    def finish(self) -> None:
        """Let every call that is still in flight die, and look at the books at rest."""
        for call in self.model.holds:
            self.system.expire(call)
            self.model.flights[call].expired = True
        self.do(*(self.a_recover(id) for id in self.model.holds))
        state = self.system.snapshot()
        self.look(state)
        invariants.at_rest(state)
        self.system.rest()

    # Parts

    def do(self, *operations: Operation) -> None:
        """Do it to both, and compare what they answer."""
        self.model.now = self.now
        self.system.at(self.now)
        if operations:
            answers = self.system.run(list(operations))
            assert answers == [self.model.apply(operation) for operation in operations]

    def in_flight(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(list(self.model.holds)))

    def a_call(self, data: st.DataObject) -> tuple[CallFacts, tuple[AccountKey, ...]]:
        owners = data.draw(st.sampled_from(strategies.PATHS))
        path = strategies.keys_of(owners, strategies.CALENDAR, self.now)
        self.count += 1
        id = strategies.call_id(self.now, self.count)
        ids = tuple(key.id for key in path)
        nobody = strategies.TEAM[1]
        keys = [key.owner_id for key in path if key.owner == "key"]
        key_id = keys[0] if keys else strategies.PLAIN_KEY
        endpoint = data.draw(strategies.endpoints)
        return CallFacts(
            id, "r", nobody, key_id, nobody, "m", endpoint, nobody, self.now, ids
        ), path

    def a_batch(self, data: st.DataObject) -> list[Operation]:
        operations: list[Operation] = []
        ending: set[str] = set()
        for kind in data.draw(strategies.batches):
            if kind == "reserve":
                operations.append(self.a_reserve(data))
            elif kind == "again" and self.model.calls:
                again = self.an_again(data)
                if again.settlement.facts.id not in ending:
                    operations.append(again)
            elif kind == "extend" and self.model.holds:
                operations.append(self.an_extend(data))
            elif self.model.holds and kind in ("settle", "void", "recover"):
                one: Any = getattr(
                    self, {"settle": "a_settle", "void": "a_void"}.get(kind, ""), None
                )
                operation = one(data) if one else self.a_recover(self.in_flight(data))
                call = (
                    operation.call_id
                    if isinstance(operation, Recover)
                    else operation.settlement.facts.id
                )
                if call not in ending:
                    ending.add(call)
                    operations.append(operation)
        order = [Settle | Recover, Extend, Reserve]
        return [one for kinds in order for one in operations if isinstance(one, kinds)]

    def a_reserve(self, data: st.DataObject) -> Reserve:
        facts, path = self.a_call(data)
        checkpoint = data.draw(st.none() | strategies.actuals(0, 0))
        return Reserve(facts, data.draw(strategies.demands(path)), checkpoint)

    def an_extend(self, data: st.DataObject) -> Extend:
        call = self.in_flight(data)
        hold, path = self.model.holds[call], self.model.flights[call].path
        return Extend(
            call,
            data.draw(strategies.extensions(path, hold.tokens)),
            data.draw(st.none() | strategies.actuals(hold.tokens, hold.nano)),
        )

    def a_settle(self, data: st.DataObject) -> Settle:
        call = self.in_flight(data)
        hold, flight = self.model.holds[call], self.model.flights[call]
        actual = data.draw(strategies.actuals(hold.tokens, hold.nano))
        outcome = data.draw(strategies.delivered)
        return Settle(Settlement(flight.facts, outcome, 200, actual, self.now), flight.path)

    def a_void(self, data: st.DataObject) -> Settle:
        flight = self.model.flights[self.in_flight(data)]
        return Settle(
            Settlement(flight.facts, "upstream_error", 502, NOTHING, self.now), flight.path
        )

    def an_again(self, data: st.DataObject, among: list[str] | None = None) -> Settle:
        booked = self.model.calls[data.draw(st.sampled_from(among or list(self.model.calls)))]
        flight = self.model.settled[booked.call_id]
        actual = data.draw(strategies.actuals(booked.tokens, booked.nano))
        return Settle(
            Settlement(flight.facts, data.draw(strategies.again), 200, actual, self.now),
            flight.path,
        )

    def a_recover(self, call: str) -> Recover:
        return Recover(call, self.model.flights[call].facts.account_ids, self.now)
