"""The invariants of the ledger (I1 to I5), over the rows as they are."""

from app.core.ledger import METERS, Account, Meter
from tests.ledger.model import Model, State


def check(state: State, model: Model) -> None:
    """Assert I1 to I4, and that the rows are those that the model has."""
    used_is_what_calls_used(state)
    held_is_what_holds_hold(state)
    limits_are_kept(state, model)
    calls_are_booked_once(state, model)
    rows_are_the_models(state, model)


def used_is_what_calls_used(state: State) -> None:
    """I1: an account has used the sum of its calls and adjustments."""
    for account in state.accounts.values():
        calls = [call for call in state.calls if account.id in call.account_ids]
        adjusted = [one for one in state.adjustments if account.id in one.account_ids]
        rows = [*calls, *adjusted]
        assert account.used_tokens == sum(row.tokens for row in rows), f"I1, tokens: {account}"
        assert account.used_nano == sum(row.nano or 0 for row in rows), f"I1, USD: {account}"
        unpriced = sum(call.nano is None for call in calls)
        assert account.unpriced_calls == unpriced, f"I1, unpriced: {account}"
        over_tokens = sum(c.overrun_tokens for c in calls) + sum(max(0, a.tokens) for a in adjusted)
        over_nano = sum(c.overrun_nano for c in calls) + sum(max(0, a.nano) for a in adjusted)
        overrun = (account.overrun_tokens, account.overrun_nano)
        assert overrun == (over_tokens, over_nano), f"I3, overrun: {account}"


def held_is_what_holds_hold(state: State) -> None:
    """I2: an account holds the sum of its open holds."""
    for account in state.accounts.values():
        holds = [hold for hold in state.holds if account.id in hold.account_ids]
        assert account.held_tokens == sum(hold.tokens for hold in holds), f"I2, tokens: {account}"
        assert account.held_nano == sum(hold.nano or 0 for hold in holds), f"I2, USD: {account}"


def limits_are_kept(state: State, model: Model) -> None:
    """I3: no more is used and held than a limit allows, a lowered one and overrun aside."""
    for account in state.accounts.values():
        key = model.keys[account.id]
        for meter in METERS:
            limit = model.limits.get((key.owner_id, meter, key.window))
            if limit is None or key.start < model.keys[limit.baseline_account].start:
                # There is none; or it was set when this period was over.
                continue
            most = limit.amount
            if limit.baseline_account == account.id:
                most = max(most, limit.baseline)
            total = account.used(meter) + account.held(meter)
            assert total <= most + _overrun(account, meter), f"I3, {meter}: {account}, {limit}"


def calls_are_booked_once(state: State, model: Model) -> None:
    """I4: every admitted call is either in flight or settled once, and adjusted at most once."""
    calls = [call.call_id for call in state.calls]
    adjusted = [adjustment.call_id for adjustment in state.adjustments]
    assert len(set(calls)) == len(calls), "I4: a call is booked twice"
    assert len(set(adjusted)) == len(adjusted), "I4: a call is adjusted twice"
    assert set(adjusted) <= {call.call_id for call in state.calls if call.outcome == "recovered"}
    assert set(model.settled) | set(model.flights) == set(calls) | {h.call_id for h in state.holds}


def rows_are_the_models(state: State, model: Model) -> None:
    """Every row, field by field, is what the model says."""
    assert {hold.call_id: hold for hold in state.holds} == model.holds
    assert {call.call_id: call for call in state.calls} == model.calls
    assert {one.call_id: one for one in state.adjustments} == model.adjustments


def at_rest(state: State) -> None:
    """I5: with no call in flight, there are no holds and nothing is held."""
    assert state.holds == [], "I5: a hold was left behind"
    for account in state.accounts.values():
        assert (account.held_tokens, account.held_nano) == (0, 0), f"I5: {account}"


def _overrun(account: Account, meter: Meter) -> int:
    return account.overrun_tokens if meter == "tokens" else account.overrun_nano
