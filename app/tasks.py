"""Ending tasks: a cancellation that is swallowed on its way is sent again."""

import asyncio
from collections.abc import Iterable
from typing import Any

AGAIN_S = 0.5


async def cancelled(tasks: Iterable["asyncio.Task[Any] | None"]) -> None:
    """Cancel tasks, and return once they have ended, however they did.

    psycopg answers a cancellation by cancelling the query, and may raise what PostgreSQL says to
    that instead: to a loop that goes on after an error, nothing has happened.
    """
    known = [task for task in tasks if task is not None]
    pending = {task for task in known if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=AGAIN_S)
    # What they failed of they have told themselves.
    await asyncio.gather(*known, return_exceptions=True)
