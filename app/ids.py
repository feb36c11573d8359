"""Identifiers: UUIDv7, so that ids sort by time and months of calls are ranges of ids."""

import os
import time
from datetime import datetime
from uuid import UUID


def uuid7(at: datetime | None = None) -> str:
    """Return a new UUIDv7 as text; its time is `at`, else now (in milliseconds)."""
    milliseconds = time.time_ns() // 1_000_000 if at is None else int(at.timestamp() * 1000)
    random = int.from_bytes(os.urandom(10), "big")
    value = milliseconds << 80 | 0x7 << 76 | (random >> 68 & 0xFFF) << 64
    value |= 0b10 << 62 | random & (1 << 62) - 1
    return str(UUID(int=value))
