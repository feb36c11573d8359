"""The state machine on `core.ledger.Books`, with dicts for tables."""

from datetime import datetime

import pytest
from hypothesis.stateful import invariant, run_state_machine_as_test

from app.core.ledger import METERS, AccountKey, Actual, Meter
from app.core.windows import EPOCH
from tests.core.dict_store import DictStore
from tests.ledger.machine import SHRINKING_S, SOAK, LedgerMachine, bounded
from tests.ledger.model import (
    AdjustmentRow,
    CallRow,
    Extend,
    HoldRow,
    Operation,
    Recover,
    Reserve,
    Result,
    Settle,
    State,
)


class CoreSystem:
    """`Books` over dicts, one batch in one transaction."""

    now = EPOCH

    def at(self, now: datetime) -> None:
        self.now = now

    def reset(self) -> None:
        self.store = DictStore()

    def run(self, operations: list[Operation]) -> list[Result]:
        accounts: list[str] = []
        calls: list[str] = []
        for operation in operations:
            match operation:
                case Reserve(facts, demand):
                    self.store.open(demand.accounts)
                    accounts += facts.account_ids
                case Extend(call_id, demand):
                    calls.append(call_id)
                    accounts += [key.id for key in demand.accounts]
                case Settle(settlement, path):
                    self.store.open(path)
                    calls.append(settlement.facts.id)
                    accounts += settlement.facts.account_ids
                case Recover(call_id, account_ids):
                    calls.append(call_id)
                    accounts += account_ids
        results: list[Result] = []
        with self.store.transaction(accounts, calls, self.now) as books:
            for operation in operations:
                match operation:
                    case Reserve(facts, demand, checkpoint):
                        results.append(books.reserve(facts, demand, checkpoint))
                    case Extend(call_id, demand, checkpoint):
                        results.append(books.extend(call_id, demand, checkpoint))
                    case Settle(settlement):
                        results.append(books.settle(settlement))
                    case Recover(call_id, _, at):
                        results.append(books.recover(call_id, at))
        return results

    def set_limit(self, key: AccountKey, meter: Meter, amount: int | None) -> None:
        self.store.set_limit(key, meter, amount)

    def checkpoint(self, call_id: str, actual: Actual) -> None:
        self.store.checkpoint(call_id, actual)

    def expire(self, call_id: str) -> None:
        self.store.expire(call_id)

    def snapshot(self) -> State:
        store = self.store
        return State(
            store.accounts,
            [
                HoldRow(h.call_id, h.account_ids, h.tokens, h.nano, h.checkpoint)
                for h in store.holds.values()
            ],
            [
                CallRow(
                    id,
                    row.settlement.facts.account_ids,
                    row.settlement.outcome,
                    row.settlement.close_reason,
                    row.settlement.actual.tokens,
                    row.settlement.actual.nano,
                    row.overrun_tokens,
                    row.overrun_nano,
                    row.settlement.estimated,
                )
                for id, row in store.calls.items()
            ],
            [AdjustmentRow(a.call_id, a.account_ids, a.tokens, a.nano) for a in store.adjustments],
        )

    def rest(self) -> None:
        pass


@pytest.mark.timeout(0 if SOAK else SHRINKING_S)
def test_the_ledger_on_dicts_is_the_model() -> None:
    class CoreMachine(LedgerMachine):
        system = CoreSystem()

        @invariant()
        def every_window_has_used_what_the_model_says(self) -> None:
            store, self.model.now = self.system.store, self.now
            with store.transaction(store.accounts, [], self.now) as books:
                for id, account in books.accounts.items():
                    for meter in METERS:
                        assert account.used(meter) == self.model.used(id, meter), store.keys[id]

    run_state_machine_as_test(CoreMachine, settings=bounded(examples=300, steps=40))
