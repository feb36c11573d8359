"""PostgreSQL away, processes killed: what was acknowledged is in the books, once, in the end."""

import asyncio
import fcntl
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from psycopg_pool import AsyncConnectionPool

from app.core.ledger import Actual, Settlement
from app.store import migrate
from app.store.batch import Granted, Settled
from app.store.ledger import Ledger, LedgerUnavailable
from app.store.postgres import EmbeddedPostgres
from app.store.spool import Entry, Spool
from app.worker import Worker
from tests.ledger.world import Call, Rows, running, until


@pytest.fixture
def rows(database_url: str) -> Rows:
    return Rows(database_url)


# ------------------------------------------------------------------------------------- the spool


def spooled(directory: Path) -> list[Entry]:
    """Adopt what a directory holds, as the next process would, and hand it back."""
    spool = Spool(directory)
    entries = spool.take()
    spool.replayed(entries)
    spool.close()
    return entries


def leave(directory: Path, *calls: Call) -> Path:
    """Leave a spool behind as a killed process would, with a settlement of each call."""
    spool = Spool(directory)
    for call in calls:
        spool.append(call.settlement(), call.path)
    path: Path = spool._path
    spool._file.close()
    return path


def test_a_spooled_settlement_comes_back_as_it_was(tmp_path: Path) -> None:
    call = Call()
    usage: dict[str, int | Decimal] = {"second": Decimal("12.345678901234567890"), "page": 3}
    settlement = Settlement(
        call.facts,
        "cut_off",
        200,
        Actual(usage, 0, None),
        call.facts.started_at,
        True,
        "é\n\0",
        "normal",
    )
    spool = Spool(tmp_path)
    spool.append(settlement, call.path)
    spool._file.close()
    [entry] = spooled(tmp_path)
    assert entry == Entry(settlement, call.path)
    assert spooled(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_torn_last_line_is_ignored(tmp_path: Path) -> None:
    first, second = Call(), Call()
    path = leave(tmp_path, first, second)
    whole = path.read_bytes()
    line = whole.index(b"\n") + 1
    for length in (line, line + 1, len(whole) - 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert [entry.call_id for entry in spooled(tmp_path)] == [first.id]
    path.write_bytes(whole)
    assert [entry.call_id for entry in spooled(tmp_path)] == [first.id, second.id]


def test_a_line_that_is_damaged_takes_no_other_along(tmp_path: Path) -> None:
    first, second = Call(), Call()
    path = leave(tmp_path, first, second)
    path.write_bytes(b"garbage\n" + path.read_bytes() + b"\xff{}\n")
    assert [entry.call_id for entry in spooled(tmp_path)] == [first.id, second.id]
    # It may have been written by another version, and be money all the same.
    assert (tmp_path / "refused.jsonl").read_bytes() == b"garbage\n\xff{}\n"


def test_the_spool_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    living = Spool(tmp_path)
    call = Call()
    living.append(call.settlement(), call.path)
    assert spooled(tmp_path) == []
    living._file.close()
    assert [entry.call_id for entry in spooled(tmp_path)] == [call.id]


def test_a_spool_that_another_process_finds_before_it_is_locked_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes start at once: one finds the other's file made, and not locked yet."""
    lock, meddled = fcntl.flock, False

    def flock(file: Any, operation: int) -> None:
        nonlocal meddled
        if not meddled:
            meddled = True
            spooled(tmp_path)
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    call = Call()
    leave(tmp_path, call)
    assert [entry.call_id for entry in spooled(tmp_path)] == [call.id]


def test_processes_that_start_at_once_adopt_a_dead_ones_settlements_once(tmp_path: Path) -> None:
    calls = [Call() for _ in range(30)]
    for call in calls:
        leave(tmp_path, call)
    with ThreadPoolExecutor(8) as starting:
        spools = list(starting.map(Spool, [tmp_path] * 8))
    adopted = [entry.call_id for spool in spools for entry in spool.take()]
    assert sorted(adopted) == sorted(call.id for call in calls)
    for spool in spools:
        spool.replayed(spool.take())
        spool.close()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_fails_the_settlement_and_spoils_no_later_one(tmp_path: Path) -> None:
    """A line that was cut short must not swallow the one that follows it."""
    calls = [Call() for _ in range(3)]
    spool = Spool(tmp_path)
    spool.append(calls[0].settlement(), calls[0].path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    room = os.fstat(spool._file.fileno()).st_size + 100
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            spool.append(calls[1].settlement(), calls[1].path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert spool.pending == 1
    spool.append(calls[2].settlement(), calls[2].path)
    spool._file.close()
    assert [entry.call_id for entry in spooled(tmp_path)] == [calls[0].id, calls[2].id]


def test_a_new_spool_is_on_the_disk_by_name_before_anything_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").resolve())
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    spool = Spool(tmp_path)
    assert synced == [tmp_path.resolve()]
    call = Call()
    spool.append(call.settlement(), call.path)
    assert synced[1:] == [spool._path.resolve()]
    spool._file.close()


def test_an_intent_counts_until_its_call_is_settled(tmp_path: Path) -> None:
    dead, ended, booked = Call(), Call(), Call()
    spool = Spool(tmp_path)
    for call in (dead, ended, booked):
        spool.intend(call.settlement(outcome="recovered"), call.path)
    assert spool.pending == 0, "what may yet end properly is not replayed"
    spool.append(ended.settlement(), ended.path)
    spool.settled(booked.id)
    spool._file.close()
    found = {entry.call_id: entry.settlement.outcome for entry in spooled(tmp_path)}
    # That `booked` comes again is harmless: the books have it.
    assert found == {dead.id: "recovered", ended.id: "success", booked.id: "recovered"}


async def test_what_the_database_will_not_take_is_set_aside_and_holds_up_nothing(
    rows: Rows, tmp_path: Path
) -> None:
    poison, fine = Call(), Call()
    spool = Spool(tmp_path)
    spool.append(poison.settlement(error_message="\0"), poison.path)
    spool.append(fine.settlement(), fine.path)
    spool._file.close()
    async with running(rows.dsn, tmp_path) as ledger:
        await until(lambda: not ledger.spool.pending)
    assert await rows.booked() == {fine.id: "success"}
    assert poison.id in (tmp_path / "refused.jsonl").read_text()
    assert os.listdir(tmp_path) == ["refused.jsonl"]


async def test_replaying_twice_books_once(rows: Rows, tmp_path: Path) -> None:
    call = Call()
    path = leave(tmp_path, call)
    again = path.read_bytes()
    for name in ("a.spool", "b.spool"):
        async with running(rows.dsn, tmp_path) as ledger:
            await until(lambda ledger=ledger: not ledger.spool.pending)
        (tmp_path / name).write_bytes(again)
    assert await rows.booked() == {call.id: "success"}
    await rows.assert_sound()


# ---------------------------------------------------------------------------- killed processes


class Process:
    """One of `tests.ledger.process`, and the lines that it has printed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self.reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, mode: str, dsn: str, directory: Path, *count: int) -> "Process":
        command = [sys.executable, "-m", "tests.ledger.process", mode, dsn, str(directory)]
        pipe = asyncio.subprocess.PIPE
        process = cls(
            await asyncio.create_subprocess_exec(
                *command, *map(str, count), stdin=pipe, stdout=pipe
            )
        )
        await until(lambda: process.lines)
        return process

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            # A last line that was torn by the kill acknowledges nothing.
            if line.endswith(b"\n"):
                self.lines.append(line.decode().strip())

    async def printed(self, count: int) -> None:
        """Wait until so many lines came after the first."""
        await until(lambda: len(self.lines) > count)

    async def kill(self) -> list[str]:
        """Kill it, as the kernel does, and return what it printed after `ready`."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self.reading
        return self.lines[1:]


async def test_spooled_settlements_survive_a_kill_and_are_adopted(
    rows: Rows, tmp_path: Path
) -> None:
    spooling = await Process.start("spool", rows.dsn, tmp_path, 50)
    await spooling.printed(50)
    ids = await spooling.kill()
    async with running(rows.dsn, tmp_path) as ledger:
        await until(lambda: not ledger.spool.pending)
    assert await rows.booked() == dict.fromkeys(ids, "success")
    assert os.listdir(tmp_path) == []
    await rows.assert_sound()


async def test_a_replay_that_is_killed_again_and_again_books_everything_once(
    rows: Rows, tmp_path: Path
) -> None:
    spooling = await Process.start("spool", rows.dsn, tmp_path, 2000)
    await spooling.printed(2000)
    ids = await spooling.kill()
    left = []
    for _ in range(4):
        replaying = await Process.start("replay", rows.dsn, tmp_path)
        left.append(int(replaying.lines[0].split()[1]))
        booked = len(await rows.booked())
        # In the middle: some are booked in this turn, and some are left.
        await until(partial(more_than, rows, booked))
        if "booked" in await replaying.kill():
            break
    assert len(left) > 2, "it was killed before it was done"
    assert left[0] == 2000
    async with running(rows.dsn, tmp_path) as ledger:
        await until(lambda: not ledger.spool.pending)
    assert await rows.booked() == dict.fromkeys(ids, "success")
    assert await rows.one("SELECT used_tokens FROM accounts") == 7 * 2000
    await rows.assert_sound()


async def more_than(rows: Rows, count: int) -> bool:
    booked = len(await rows.booked())
    return booked > count or booked == 2000


async def reap_all(ledger: Ledger, rows: Rows) -> None:
    async with AsyncConnectionPool(rows.dsn, min_size=1, open=False) as pool:
        worker = Worker(pool, ledger, reaper_period_s=0.2)
        await worker.start()
        try:
            await until(lambda: none_held(rows))
        finally:
            await worker.stop()


async def none_held(rows: Rows) -> bool:
    return await rows.one("SELECT count(*) FROM holds") == 0


def acknowledged(lines: list[str]) -> tuple[set[str], set[str]]:
    """The calls that were said to hold something, and those said to be settled."""
    said = [line.split() for line in lines]
    return {id for word, id in said if word == "held"}, {
        id for word, id in said if word == "settled"
    }


async def test_a_process_killed_under_load_leaves_every_call_booked_once(
    rows: Rows, tmp_path: Path
) -> None:
    processes = [await Process.start("load", rows.dsn, tmp_path / "spool") for _ in range(2)]
    for process in processes:
        await process.printed(300)
    lines = [line for process in processes for line in await process.kill()]
    held, settled = acknowledged(lines)
    async with running(rows.dsn, tmp_path / "spool") as ledger:
        await reap_all(ledger, rows)
        await until(lambda: not ledger.spool.pending)
    booked = await rows.booked()
    assert {booked.get(id) for id in settled} == {"success"}
    assert {booked.get(id) for id in held - settled} <= {"success", "recovered"}
    assert held <= booked.keys(), "who held something was billed"
    await rows.assert_sound()


# ---------------------------------------------------------------------------- a killed PostgreSQL


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A server to be killed: durable, and nobody else's."""
    server = EmbeddedPostgres(tmp_path / "data")
    migrate.upgrade(server.start())
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
async def ledger(server: EmbeddedPostgres, tmp_path: Path) -> AsyncIterator[Ledger]:
    async with running(server.dsn, tmp_path / "spool", wait_s=1) as ledger:
        yield ledger


async def kill(server: EmbeddedPostgres) -> None:
    """Stop a server the way `pg_ctl -m immediate` does, which is a crash."""
    pid = server.postmaster_pid()
    assert pid is not None
    os.kill(pid, signal.SIGQUIT)
    await until(lambda: server.postmaster_pid() is None)
    await asyncio.to_thread(server.stop)


async def test_while_postgresql_is_away_calls_are_refused_and_endings_spooled(
    server: EmbeddedPostgres, ledger: Ledger
) -> None:
    held, other = Call(), Call()
    assert isinstance(await held.reserve(ledger), Granted)
    await kill(server)
    async with asyncio.timeout(5):
        assert (await held.settle(ledger)).booking == "spooled"
        assert (await other.settle(ledger)).booking == "spooled"
        with pytest.raises(LedgerUnavailable):
            await Call().reserve(ledger)
        with pytest.raises(LedgerUnavailable):
            await ledger.extend(held.id, held.more(1, 1))
        assert not ledger.available
    await asyncio.to_thread(server.start)
    await until(lambda: ledger.available and not ledger.spool.pending)
    rows = Rows(server.dsn)
    assert await rows.booked() == {held.id: "success", other.id: "success"}
    await rows.assert_sound()
    assert isinstance(await Call().reserve(ledger), Granted)


async def test_postgresql_killed_under_load_loses_and_doubles_nothing(
    server: EmbeddedPostgres, ledger: Ledger
) -> None:
    """Whatever was acknowledged is booked with what it said; what was not, at most once."""
    settled: dict[str, str] = {}
    held: set[str] = set()
    stop = asyncio.Event()

    async def load() -> None:
        while not stop.is_set():
            call = Call()
            try:
                await call.reserve(ledger)
            except LedgerUnavailable:
                await asyncio.sleep(0.02)
                continue
            held.add(call.id)
            result: Settled = await call.settle(ledger)
            settled[call.id] = result.booking

    tasks = [asyncio.create_task(load()) for _ in range(32)]
    for _ in range(3):
        count = len(settled)
        await until(lambda count=count: len(settled) > count + 300)
        call = Call()
        assert isinstance(await call.reserve(ledger), Granted)
        held.add(call.id)
        await kill(server)
        await until(lambda: not ledger.available)
        settled[call.id] = (await call.settle(ledger)).booking
        assert settled[call.id] == "spooled"
        await asyncio.to_thread(server.start)
        await until(lambda: ledger.available)
    stop.set()
    await asyncio.gather(*tasks)
    await until(lambda: not ledger.spool.pending)
    rows = Rows(server.dsn)
    # A reserve that committed just before the kill was never confirmed, so its call did not happen.
    ledger.live.clear()
    await rows.all("UPDATE holds SET deadline = now() - interval '1 second'")
    await reap_all(ledger, rows)
    booked = await rows.booked()
    assert held == settled.keys()
    assert {booked.get(id) for id in settled} == {"success"}
    assert {booked[id] for id in booked.keys() - settled.keys()} <= {"recovered"}
    await rows.assert_sound()


async def test_both_killed_at_once_lose_and_double_nothing(
    server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """PostgreSQL goes, settlements are spooled, then the process goes, too."""
    process = await Process.start("load", server.dsn, tmp_path / "spool")
    await process.printed(300)
    await kill(server)
    await until(lambda: any(file.stat().st_size for file in (tmp_path / "spool").iterdir()))
    held, settled = acknowledged(await process.kill())
    await asyncio.to_thread(server.start)
    rows = Rows(server.dsn)
    async with running(server.dsn, tmp_path / "spool") as ledger:
        adopted = ledger.spool.pending
        await until(lambda: not ledger.spool.pending)
        await reap_all(ledger, rows)
    assert adopted, "something was in the spool when the process went"
    booked = await rows.booked()
    assert {booked.get(id) for id in settled} == {"success"}
    assert held <= booked.keys()
    await rows.assert_sound()
