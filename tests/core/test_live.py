"""Who hears of what changes, and what waits to be heard."""

from __future__ import annotations

from app.core.live import WAITING_MAX, Waiting, hears_all


def test_admins_and_auditors_hear_of_everything_and_members_of_what_is_theirs() -> None:
    assert hears_all("admin")
    assert hears_all("auditor")
    assert not hears_all("member")


def test_what_changes_twice_before_it_is_heard_is_heard_once() -> None:
    waiting = Waiting()
    assert not waiting
    waiting.add("allocation", "a")
    waiting.add("key", "k")
    waiting.add("allocation", "b")
    waiting.add("allocation", "a")
    assert waiting
    assert waiting.take() == [("allocation", "a"), ("allocation", "b"), ("key", "k")]
    assert not waiting
    assert waiting.take() == []


def test_any_of_a_kind_is_all_there_is_to_say_of_it() -> None:
    waiting = Waiting()
    waiting.add("allocation", "a")
    waiting.add("allocation", None)
    waiting.add("allocation", "b")
    waiting.add("request", "r")
    assert waiting.take() == [("allocation", None), ("request", "r")]


def test_what_waits_has_a_bound() -> None:
    waiting = Waiting()
    for n in range(WAITING_MAX):
        waiting.add("allocation", str(n))
    waiting.add("allocation", "0")
    assert len(waiting.take()) == WAITING_MAX
    for n in range(WAITING_MAX + 1):
        waiting.add("allocation", str(n))
    assert waiting.take() == [("allocation", None)]
