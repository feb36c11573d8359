"""Several processes share a data directory: each has a spool, and finds those of the dead."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from app.core.ledger import AccountKey, Actual, CallFacts, Settlement
from app.ids import uuid7
from app.store.spool import Spool

NOW = datetime(2026, 3, 1, tzinfo=UTC)
ACCOUNT = AccountKey(uuid7(), "allocation", uuid7(), "month", NOW, None)


def settlement() -> Settlement:
    """A settlement of a call of its own."""
    facts = CallFacts(
        uuid7(), "request", uuid7(), uuid7(), uuid7(), "chat", "chat/completions", None, NOW
    )
    return Settlement(facts, "success", 200, Actual({"input_token": 3}, 3, 5), NOW)


def dead(directory: Path, count: int) -> set[str]:
    """Leave a spool as a killed process does; return the calls in it."""
    spool = Spool(directory)
    settlements = [settlement() for _ in range(count)]
    for one in settlements:
        spool.append(one, (ACCOUNT,))
    # Closing the file lets go of its lock, which is all that death does.
    spool._file.close()
    return {one.facts.id for one in settlements}


def calls_of(spool: Spool) -> set[str]:
    """The calls that wait in a spool."""
    return {entry.call_id for entry in spool.take(10_000)}


def test_processes_that_start_together_adopt_every_dead_spool_and_none_fails(
    tmp_path: Path,
) -> None:
    for number in range(40):
        directory = tmp_path / str(number)
        # A living process's spool is its own, and so is one that is just being made.
        alive = Spool(directory)
        alive.append(settlement(), (ACCOUNT,))
        lost: set[str] = set()
        for dead_one in range(4):
            # Each adopts those before it, so only the last is there in the end: keep them apart.
            apart = directory / f"apart-{dead_one}"
            lost |= dead(apart, 3)
            [file] = apart.glob("*.spool")
            file.rename(directory / file.name)
        together = threading.Barrier(4)

        def start(directory: Path = directory, together: threading.Barrier = together) -> Spool:
            together.wait()
            return Spool(directory)

        with ThreadPoolExecutor(4) as pool:
            starts = [pool.submit(start) for _ in range(4)]
            spools = [begun.result() for begun in starts]
        adopted = [call for spool in spools for call in calls_of(spool)]
        assert set(adopted) == lost
        for spool in (alive, *spools):
            assert spool._path.exists(), "what is appended now would be lost"
            spool._file.close()


def test_an_outage_that_comes_and_goes_does_not_fill_the_disk(tmp_path: Path) -> None:
    """A settlement that is replayed in vain is on the disk already."""
    spool = Spool(tmp_path)
    one = settlement()
    spool.append(one, (ACCOUNT,))
    size = spool._path.stat().st_size
    for _ in range(10):
        [entry] = spool.take()
        spool.append(entry.settlement, entry.accounts)
    assert spool._path.stat().st_size == size
    assert calls_of(spool) == {one.facts.id}
    spool._file.close()
