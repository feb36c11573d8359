"""The spool: settlements on disk while PostgreSQL is away.

Owns one append-only file per process in the data directory, and adopting the files of processes
that died. Owns no decision: what a replayed settlement means is the ledger's.

Invariants: an appended settlement is on the disk (fsync) before `append` returns; an entry leaves
the disk only after the ledger answered for it; a torn last line, from a crash while appending, was
never acknowledged and is ignored; a whole line that cannot be read is set aside for a person to
look at. Replaying twice is harmless: settling is idempotent.
"""

import fcntl
import os
import uuid
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import msgspec
import structlog

from app.core.ledger import AccountKey, Settlement

log = structlog.get_logger(__name__)


class Answer(msgspec.Struct, frozen=True):
    """What an Idempotency-Key replays."""

    status_code: int
    headers: list[tuple[str, str]]
    body: bytes


class Entry(msgspec.Struct, frozen=True):
    """One spooled settlement and the accounts it is charged to."""

    settlement: Settlement
    accounts: tuple[AccountKey, ...]
    answer: Answer | None = None
    """What an Idempotency-Key of the call is to replay."""
    intent: bool = False
    """What to book if the process dies before the call's real settlement."""

    @property
    def call_id(self) -> str:
        """The call that it settles."""
        return self.settlement.facts.id


_encode = msgspec.json.Encoder(decimal_format="number").encode
_decode = msgspec.json.Decoder(Entry).decode


class Spool:
    """The settlements of this process that PostgreSQL has not confirmed, by call."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._entries: dict[str, Entry] = {}
        self._intents: dict[str, Entry] = {}
        self._create()
        self._adopt()

    @property
    def pending(self) -> int:
        """How many settlements wait to be replayed."""
        return len(self._entries)

    def append(
        self,
        settlement: Settlement,
        accounts: tuple[AccountKey, ...],
        answer: Answer | None = None,
    ) -> None:
        """Put a settlement on the disk; when this returns it survives the process."""
        entry = Entry(settlement, accounts, answer)
        if self._entries.get(entry.call_id) != entry:
            # Else it was replayed in vain, and is on the disk already.
            self._write([entry])
            self._entries[entry.call_id] = entry
        self._intents.pop(entry.call_id, None)

    def intend(self, settlement: Settlement, accounts: tuple[AccountKey, ...]) -> None:
        """Put on the disk what to book if the process dies before the call's real settlement."""
        entry = Entry(settlement, accounts, intent=True)
        self._write([entry])
        self._intents[entry.call_id] = entry

    def settled(self, call_id: str) -> None:
        """Forget the intent of a call that is in the books."""
        if self._intents.pop(call_id, None) is not None:
            self._empty()

    def take(self, most: int = 256) -> list[Entry]:
        """Return what waits to be replayed; it stays until `replayed`."""
        return list(islice(self._entries.values(), most))

    def replayed(self, entries: Sequence[Entry]) -> None:
        """Forget entries that the ledger has answered for."""
        for entry in entries:
            # Another settlement of the call, spooled in the meantime, stays.
            if self._entries.get(entry.call_id) is entry:
                del self._entries[entry.call_id]
        self._empty()

    def keep_refused(self, entries: Sequence[Entry]) -> None:
        """Set aside settlements that the database will not take, for a person to look at."""
        self._set_aside([_encode(entry) for entry in entries])

    def close(self) -> None:
        """Release the file; an empty one is removed."""
        if not self._entries and not self._intents:
            self._path.unlink(missing_ok=True)
        self._file.close()

    def _create(self) -> None:
        """Make the file of this process, and lock it for as long as we live.

        A spool file that can be locked belongs to a process that is gone. So another process may
        take ours for such a one before we have it locked, and remove it: then we make another.
        """
        while True:
            self._path = self.directory / f"{uuid.uuid4().hex}.spool"
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 - lives as long as we do
            fcntl.flock(self._file, fcntl.LOCK_EX)
            if self._path.exists():
                break
            self._file.close()
        # What is in a file is safe only once its name is, too.
        descriptor = os.open(self.directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _empty(self) -> None:
        """Empty the file once nothing in it matters any more."""
        if not self._entries and not self._intents:
            os.ftruncate(self._file.fileno(), 0)
            os.fsync(self._file.fileno())

    def _set_aside(self, lines: Sequence[bytes]) -> None:
        with open(self.directory / "refused.jsonl", "ab") as file:
            file.writelines(line + b"\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())

    def _write(self, entries: Sequence[Entry]) -> None:
        data = b"".join(_encode(entry) + b"\n" for entry in entries)
        end = os.fstat(self._file.fileno()).st_size
        try:
            while data:
                data = data[self._file.write(data) :]
            os.fsync(self._file.fileno())
        except OSError:
            # Half a line would swallow the next one.
            os.ftruncate(self._file.fileno(), end)
            raise

    def _adopt(self) -> None:
        """Take over the entries of processes that died with a spool."""
        for path in sorted(self.directory.glob("*.spool")):
            if path == self._path:
                continue
            try:
                file = open(path, "rb")  # noqa: SIM115 - closed below
            except FileNotFoundError:
                # Another process that has just started was faster.
                continue
            with file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                if not path.exists():
                    continue
                # Of a call's lines the last one counts: a settlement follows its intent.
                read, unreadable = _read(file.read())
                entries = {entry.call_id: entry for entry in read}
                if unreadable:
                    self._set_aside(unreadable)
                    log.error("spool_lines_unreadable", count=len(unreadable))
                if entries:
                    self._write(list(entries.values()))
                    self._entries.update(entries)
                    log.warning("spool_adopted", entries=len(entries))
                path.unlink()


def _read(data: bytes) -> tuple[list[Entry], list[bytes]]:
    """Return the entries of a file, and the lines that are none, such as another version's."""
    entries: list[Entry] = []
    unreadable: list[bytes] = []
    for line in data.split(b"\n")[:-1]:
        try:
            entries.append(_decode(line))
        except (msgspec.DecodeError, RecursionError):
            unreadable.append(line)
    return entries, unreadable
