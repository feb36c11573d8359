"""Downloads: answers that are written line by line, while they are read.

Owns how such an answer begins, and the cells of a CSV. Owns nothing that is in one.

Invariants: whatever is wrong shows before an answer has begun; no cell is a formula; whoever stops
reading frees what the stream holds.
"""

import contextlib
import csv
import io
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from datetime import datetime
from typing import Any, Final

from litestar.response import Stream


async def begun(head: str, rest: AsyncGenerator[str, None]) -> AsyncIterator[str]:
    """Go on with a stream whose beginning has been read."""
    async with contextlib.aclosing(rest):
        yield head
        async for part in rest:
            yield part


async def download(parts: AsyncGenerator[str, None], name: str, media_type: str) -> Stream:
    """Answer with a file that is written while it is read."""
    # Whatever is wrong with what was asked for shows before the answer has begun.
    head = await anext(parts)
    return Stream(
        begun(head, parts),
        media_type=media_type,
        headers={"content-disposition": f'attachment; filename="{name}"'},
    )


async def csv_file(name: str, rows: AsyncGenerator[Iterable[Any], None]) -> Stream:
    """Answer with a CSV, of which the first row is the header."""
    return await download(_lines(rows), name, "text/csv; charset=utf-8")


async def _lines(rows: AsyncGenerator[Iterable[Any], None]) -> AsyncGenerator[str, None]:
    async with contextlib.aclosing(rows):
        async for row in rows:
            yield line([cell(value) for value in row])


def line(cells: list[str]) -> str:
    """Write a line of a CSV."""
    written = io.StringIO()
    csv.writer(written).writerow(cells)
    return written.getvalue()


def cell(value: Any) -> str:
    """Write a cell that no spreadsheet takes for a formula; our own numbers are let be."""
    if value is None:
        return ""
    shown = value.isoformat() if isinstance(value, datetime) else str(value)
    if _is_number(shown):
        return shown
    risky = shown.lstrip()[:1] in _FORMULA_STARTS or shown[:1] in ("\t", "\r", "\n")
    return f"'{shown}" if risky else shown


_FORMULA_STARTS: Final = frozenset("=+-@|%＝＋－＠")


def _is_number(shown: str) -> bool:
    digits = shown.removeprefix("-")
    return digits.isascii() and digits.replace(".", "", 1).isdigit()
