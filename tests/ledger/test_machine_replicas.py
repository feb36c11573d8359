"""The state machine on two replicas with one database: each has beliefs of its own.

They take turns, as often as is drawn; or both decide a batch at the same moment, while a limit is
changed. What is answered then has to be what the model answers in some order, and the rows those
that this order leaves. So nothing is admitted that would not fit if replicas stood in line, and
nothing is refused but for what stands in its way.
"""

import copy
import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule, run_state_machine_as_test

from app.core.ledger import AccountKey, Meter
from app.store import beliefs
from tests.ledger import strategies
from tests.ledger.machine import SHRINKING_S, SOAK, bounded
from tests.ledger.model import Model, Operation, Result, State
from tests.ledger.postgres_system import PostgresMachine, PostgresSystem

Change = tuple[AccountKey, Meter, int | None]

changes = st.none() | st.tuples(strategies.owners, strategies.meters, strategies.amounts)


class ReplicasMachine(PostgresMachine):
    """What can happen on one replica, on either of two, and on both at once."""

    @initialize(turns=st.lists(st.integers(0, 1), min_size=1, max_size=12))
    def they_take_turns(self, turns: list[int]) -> None:
        self.system.turns = turns

    @rule(data=st.data(), change=changes)
    def at_once(
        self, data: st.DataObject, change: tuple[strategies.Owner, Meter, int | None] | None
    ) -> None:
        """A call may well be settled by one of them while the other extends or recovers it.

        Which order it is, is not for Hypothesis to say, and what it draws must not depend on it: so
        the books are closed afterwards, and others begun.
        """
        limit: Change | None = None
        if change is not None:
            owner, meter, amount = change
            [key] = strategies.keys_of((owner,), strategies.CALENDAR, self.now)
            limit = key, meter, amount
            self.model.keys[key.id] = key
        batches = [self.a_batch(data), self.a_batch(data)]
        self.model.now = self.now
        self.system.at(self.now)
        answers = self.system.run_at_once(batches, limit)
        said = [list(zip(*part, strict=True)) for part in zip(batches, answers, strict=True)]
        orders = list(_orders(self.model, said, limit))
        state = self.system.snapshot()
        found = next((one for one in orders if _has(one, state)), None)
        assert found is not None, f"in no order ({len(orders)}) is this so: {said}, {limit}"
        self.model = found
        self.look(state)
        self.finish()
        self.begin()


def _orders(
    model: Model, said: Sequence[list[tuple[Operation, Result]]], limit: Change | None
) -> list[Model]:
    """Return how the books may be left by operations that were answered so, in whatever order.

    Those of one replica stay in theirs. Orders that leave the same are followed once.
    """
    [one, two] = said
    begun = {(0, 0, limit is None): [model]}
    for done in itertools.product(range(len(one) + 1), range(len(two) + 1), (False, True)):
        first, second, limited = done
        for known in begun.get(done, ()):
            steps: list[tuple[tuple[int, int, bool], Operation | None, Result]] = []
            if first < len(one):
                steps.append(((first + 1, second, limited), *one[first]))
            if second < len(two):
                steps.append(((first, second + 1, limited), *two[second]))
            if not limited:
                steps.append(((first, second, True), None, None))
            for reached, operation, answer in steps:
                after = copy.deepcopy(known)
                if operation is None:
                    assert limit is not None
                    after.set_limit(*limit)
                elif after.apply(operation) != answer:
                    continue
                others = begun.setdefault(reached, [])
                if not any(vars(after) == vars(other) for other in others):
                    others.append(after)
    return begun.get((len(one), len(two), True), [])


def _has(model: Model, state: State) -> bool:
    """Tell whether these are the rows."""
    return (
        {hold.call_id: hold for hold in state.holds} == model.holds
        and {call.call_id: call for call in state.calls} == model.calls
        and {one.call_id: one for one in state.adjustments} == model.adjustments
    )


@pytest.mark.timeout(0 if SOAK else SHRINKING_S)
def test_two_replicas_on_one_database_are_the_model(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # They believe whatever they once knew, however often it was not so.
    monkeypatch.setattr(beliefs, "TRUSTED", 0)
    monkeypatch.setattr(beliefs, "REFUTED", 0)
    with PostgresSystem(database_url, tmp_path / "one", tmp_path / "two") as postgres:

        class TwoReplicas(ReplicasMachine):
            system = postgres

        run_state_machine_as_test(TwoReplicas, settings=bounded(examples=80, steps=30))
        for ledger in postgres.ledgers:
            assert min(ledger.believed, ledger.refuted) > 0, "else this tests little"
