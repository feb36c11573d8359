"""Written: a number in a text is what anybody would write, and what is none is named."""

from decimal import Decimal

import msgspec
import pytest

from app.core.written import decode, is_number


class Part(msgspec.Struct):
    amount: Decimal
    name: str = ""


class Whole(msgspec.Struct):
    usd: Decimal | None = None
    parts: list[Part] = []
    more: tuple[Part, ...] = ()
    lone: Part | None = None


class Plain(msgspec.Struct):
    name: str


@pytest.mark.parametrize("text", ["0", "-12.50", "5.", ".5", "1e3", "1E-7", "007"])
def test_what_people_and_programs_write_is_a_number(text: str) -> None:
    assert is_number(text)
    body = msgspec.json.encode({"parts": [{"amount": text}]})
    assert decode(body, Whole).parts == [Part(Decimal(text))]


@pytest.mark.parametrize("text", ["1_000", "１００", "١٢", " 1", "1 ", "1\n", "+5", "", ".", "1e"])
def test_what_python_alone_takes_for_a_number_is_none(text: str) -> None:
    assert not is_number(text)
    part = [{"amount": "1"}, {"amount": text}]
    bodies: list[tuple[str, object]] = [
        ("usd", {"usd": text}),
        ("parts[1].amount", {"parts": part}),
        ("more[1].amount", {"more": part}),
        ("lone.amount", {"lone": {"amount": text}}),
    ]
    for place, body in bodies:
        with pytest.raises(msgspec.ValidationError) as refused:
            decode(msgspec.json.encode(body), Whole)
        assert str(refused.value) in (
            f"Invalid decimal string - at `$.{place}`",
            f"Invalid decimal string - at `$.{place.replace('[1]', '[...]')}`",
        )


def test_numbers_that_are_no_text_are_read_exactly() -> None:
    body = b'{"usd": 0.034000000000000001, "parts": [{"amount": 12}, {"amount": 1e30}]}'
    read = decode(body, Whole)
    assert read.usd == Decimal("0.034000000000000001")
    assert [part.amount for part in read.parts] == [12, Decimal("1e30")]
    assert decode(b'{"usd": null, "lone": null}', Whole) == Whole()


def test_text_that_need_not_be_a_number_is_let_be() -> None:
    assert decode(b'{"amount": "1", "name": "1_000"}', Part).name == "1_000"
    assert decode(b'{"name": "1_000"}', Plain).name == "1_000"


def test_what_is_not_finite_is_left_to_whoever_knows_what_it_is_for() -> None:
    for text in ("NaN", "-Infinity", "inf"):
        amount = decode(msgspec.json.encode({"usd": text}), Whole).usd
        assert amount is not None
        assert not amount.is_finite()
