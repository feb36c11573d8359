"""The spool: settlements on disk while PostgreSQL is away.

Owns one append-only file per process in the data directory, and adopting the files of processes
that died. Owns no decision: what a replayed settlement means is the ledger's.

Invariants: an appended settlement is on the disk (fsync) before `append` returns; an entry leaves
the disk only after the ledger answered for it; a torn last line, from a crash while appending, was
never acknowledged and is ignored. Replaying twice is harmless: settling is idempotent.
"""

import fcntl
import os
import uuid
from collections.abc import Sequence
from pathlib import Path

import msgspec
import structlog

from app.core.ledger import AccountKey, Settlement

log = structlog.get_logger(__name__)


class Entry(msgspec.Struct, frozen=True):
    """One spooled settlement and the accounts it is charged to."""

    settlement: Settlement
    accounts: tuple[AccountKey, ...]


_encode = msgspec.json.Encoder(decimal_format="number").encode
_decode = msgspec.json.Decoder(Entry).decode


class Spool:
    """The settlements of this process that PostgreSQL has not confirmed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._entries: list[Entry] = []
        self._taken = 0
        self._path = directory / f"{uuid.uuid4().hex}.spool"
        self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 - lives as long as we do
        # Held for life: a spool file that can be locked belongs to a process that is gone.
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._adopt()

    @property
    def pending(self) -> int:
        """How many settlements wait to be replayed."""
        return len(self._entries) - self._taken

    def append(self, settlement: Settlement, accounts: tuple[AccountKey, ...]) -> None:
        """Put a settlement on the disk; when this returns it survives the process."""
        entry = Entry(settlement, accounts)
        self._write([entry])
        self._entries.append(entry)

    def take(self) -> list[Entry]:
        """Return what waits to be replayed; it stays on the disk until `taken`."""
        batch = self._entries[self._taken : self._taken + 256]
        self._taken += len(batch)
        return batch

    def taken(self) -> None:
        """Forget what was taken: the ledger has answered for it."""
        self._entries = self._entries[self._taken :]
        self._taken = 0
        if not self._entries:
            os.ftruncate(self._file.fileno(), 0)
            os.fsync(self._file.fileno())

    def keep_refused(self, entries: Sequence[Entry]) -> None:
        """Set aside settlements that the database will not take, for a person to look at."""
        with open(self.directory / "refused.jsonl", "ab") as file:
            for entry in entries:
                file.write(_encode(entry) + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Release the file; an empty one is removed."""
        if not self._entries:
            self._path.unlink(missing_ok=True)
        self._file.close()

    def _write(self, entries: Sequence[Entry]) -> None:
        self._file.write(b"".join(_encode(entry) + b"\n" for entry in entries))
        os.fsync(self._file.fileno())

    def _adopt(self) -> None:
        """Take over the entries of processes that died with a spool."""
        for path in sorted(self.directory.glob("*.spool")):
            if path == self._path:
                continue
            with open(path, "rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                entries = list(_read(file.read()))
                if entries:
                    self._write(entries)
                    self._entries.extend(entries)
                    log.warning("spool_adopted", entries=len(entries))
                path.unlink()


def _read(data: bytes) -> list[Entry]:
    entries: list[Entry] = []
    for line in data.split(b"\n")[:-1]:
        try:
            entries.append(_decode(line))
        except msgspec.DecodeError:
            log.error("spool_line_unreadable", length=len(line))
    return entries
