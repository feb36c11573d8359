"""Downloads: answers that are written line by line, while they are read.

Owns the CSV and how a stream begins. Owns nothing that is in one.

Invariants: whatever is wrong shows before an answer has begun; no cell is a formula; whoever stops
reading frees what the stream holds.
"""

import contextlib
import csv
import io
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from typing import Any

from litestar.response import Stream

from app.control.reports import cell


async def begun(head: str, rest: AsyncGenerator[str, None]) -> AsyncIterator[str]:
    """Go on with a stream whose beginning has been read."""
    async with contextlib.aclosing(rest):
        yield head
        async for line in rest:
            yield line


async def csv_file(name: str, rows: AsyncGenerator[Iterable[Any], None]) -> Stream:
    """Answer with a CSV, of which the first row is the header."""
    lines = _lines(rows)
    head = await anext(lines)
    return Stream(
        begun(head, lines),
        media_type="text/csv; charset=utf-8",
        headers={"content-disposition": f'attachment; filename="{name}"'},
    )


async def _lines(rows: AsyncGenerator[Iterable[Any], None]) -> AsyncGenerator[str, None]:
    async with contextlib.aclosing(rows):
        async for row in rows:
            written = io.StringIO()
            csv.writer(written).writerow([cell(value) for value in row])
            yield written.getvalue()
