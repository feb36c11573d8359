"""Faults: a code for programs, words for people, and the same values for both."""

from app.core.faults import Fault


def test_a_fault_says_its_words_and_keeps_its_values() -> None:
    fault = Fault("between", "must be from {least} to {most}", least=0, most="{most}")
    assert str(fault) == "must be from 0 to {most}"
    assert (fault.code, fault.values) == ("between", {"least": 0, "most": "{most}"})
