"""A process with a ledger of its own, for tests to race and to kill.

    python -m tests.ledger.process reserve DSN DIRECTORY COUNT
    python -m tests.ledger.process load DSN DIRECTORY
    python -m tests.ledger.process spool DSN DIRECTORY COUNT
    python -m tests.ledger.process replay DSN DIRECTORY

It prints `ready`, and then what it did, a line at a time.
"""

import asyncio
import sys
from pathlib import Path

import structlog

from app.store.batch import Granted
from app.store.ledger import LedgerUnavailable
from app.store.spool import Spool
from tests.ledger.world import Call, running, until


def say(text: object) -> None:
    """Print a line at once: whoever reads it may kill us for it."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def reserve(dsn: str, directory: Path, count: int) -> None:
    """Once told to, reserve a dollar for so many calls at once; print how many were admitted."""
    async with running(dsn, directory) as ledger:
        say("ready")
        await asyncio.to_thread(sys.stdin.readline)
        results = await asyncio.gather(*(Call().reserve(ledger) for _ in range(count)))
        say(sum(isinstance(result, Granted) for result in results))


async def load(dsn: str, directory: Path) -> None:
    """Make calls until killed; print `held ID` and `settled ID` once they are acknowledged."""
    async with running(dsn, directory, hold_deadline_s=2) as ledger:
        say("ready")

        async def calls(caller: int) -> None:
            while True:
                call = Call()
                try:
                    await call.reserve(ledger)
                except LedgerUnavailable:
                    await asyncio.sleep(0.05)
                    continue
                say(f"held {call.id}")
                # Of different lengths: at any moment some have reserved, and not settled yet.
                await asyncio.sleep(0.01 * caller)
                await call.settle(ledger)
                say(f"settled {call.id}")

        await asyncio.gather(*(calls(caller) for caller in range(16)))


async def spool(dsn: str, directory: Path, count: int) -> None:
    """Spool settlements, print their ids, and wait to be killed."""
    one = Spool(directory)
    say("ready")
    for _ in range(count):
        call = Call()
        one.append(call.settlement(), call.path)
        say(call.id)
    await asyncio.Event().wait()


async def replay(dsn: str, directory: Path) -> None:
    """Adopt what is spooled and replay it; print `booked` when that is done."""
    async with running(dsn, directory) as ledger:
        say(f"ready {ledger.spool.pending}")
        await until(lambda: not ledger.spool.pending)
        say("booked")


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    mode, dsn, directory, *count = sys.argv[1:]
    modes = {"reserve": reserve, "load": load, "spool": spool, "replay": replay}
    asyncio.run(modes[mode](dsn, Path(directory), *map(int, count)))  # type: ignore[operator]
