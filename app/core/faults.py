"""Faults: what is wrong with something that was asked for, for programs and in words.

Owns the shape. Owns no code and no words: whoever finds a fault says what to change. A program, and
a page that speaks another language, go by the code and its values; the words are English.

Invariants: a code means one thing, whoever says it; whatever varies in the words is a value.
"""

Value = str | int


class Fault(ValueError):
    """Something to change: a code, English words with its values in braces, and those."""

    def __init__(self, code: str, words: str, /, **values: Value) -> None:
        super().__init__(words.format(**values))
        self.code = code
        self.values = values
