"""Tasks are ended for good, also those in which a library swallows the first cancellation."""

import asyncio

from app.tasks import cancelled


async def test_a_cancellation_that_is_swallowed_is_sent_again() -> None:
    heard = 0

    async def deaf() -> None:
        nonlocal heard
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                heard += 1
                if heard == 2:
                    raise

    task = asyncio.create_task(deaf())
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await cancelled([task, None])
    assert (heard, task.cancelled()) == (2, True)


async def test_a_task_that_failed_before_is_no_trouble() -> None:
    async def broken() -> None:
        raise RuntimeError("long ago")

    task = asyncio.create_task(broken())
    await asyncio.wait([task])
    await cancelled([task])
