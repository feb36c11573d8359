"""Written: JSON with numbers in it that people and programs wrote.

Owns which text is a decimal number. Owns no body and no range.

Invariants: Python's own notation is none of ours: what has underscores, spaces, a plus or digits of
other scripts in it is refused, wherever a number may be written as text, rather than taken for what
it may have been meant to be.
"""

import functools
import re
from typing import Any, Final, TypeVar, cast

import msgspec
from msgspec import inspect

T = TypeVar("T")

_NUMBER: Final = re.compile(
    # What is not finite is refused by whoever knows what it is for.
    r"-?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|nan|inf|infinity)",
    re.IGNORECASE | re.ASCII,
)
# The numbers themselves are read with their type, and exactly.
_texts: Final = msgspec.json.Decoder(float_hook=lambda _: None).decode


def is_number(text: str) -> bool:
    """Tell whether a text is written as a decimal number, such as -12.50 or 1e-7."""
    return _NUMBER.fullmatch(text) is not None


def decode(body: bytes | msgspec.Raw, kind: type[T]) -> T:
    """Read JSON into a type. Raises msgspec's errors."""
    read = msgspec.json.decode(body, type=kind)
    shape = _shape(cast(Any, kind))
    if _has_decimals(shape):
        _check(_texts(body), shape, "$")
    return read


@functools.cache
def _shape(kind: Any) -> inspect.Type:
    return inspect.type_info(kind)


def _parts(shape: inspect.Type) -> tuple[inspect.Type, ...]:
    if isinstance(shape, inspect.StructType):
        return tuple(field.type for field in shape.fields)
    if isinstance(shape, inspect.UnionType):
        return shape.types
    if isinstance(shape, inspect.ListType | inspect.VarTupleType):
        return (shape.item_type,)
    return ()


def _has_decimals(shape: inspect.Type) -> bool:
    return isinstance(shape, inspect.DecimalType) or any(map(_has_decimals, _parts(shape)))


def _check(value: Any, shape: inspect.Type, place: str) -> None:
    if isinstance(shape, inspect.UnionType):
        for one in shape.types:
            _check(value, one, place)
    elif isinstance(shape, inspect.StructType) and isinstance(value, dict):
        for field in shape.fields:
            _check(value.get(field.encode_name), field.type, f"{place}.{field.encode_name}")
    elif isinstance(value, list):
        for part in _parts(shape):
            for n, item in enumerate(value):
                _check(item, part, f"{place}[{n}]")
    elif isinstance(value, str) and isinstance(shape, inspect.DecimalType) and not is_number(value):
        raise msgspec.ValidationError(f"Invalid decimal string - at `{place}`")
