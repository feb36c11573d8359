"""Identifiers: UUIDv7, so that ids sort by time and months of calls are ranges of ids.

They are unique, not secret: Python's generator, seeded by the system in every process, will do, and
spares a call two system calls.
"""

import random
import re
import time
from datetime import datetime

_VERSION_AND_VARIANT = 7 << 76 | 2 << 62
_OPEN = ~(15 << 76 | 3 << 62)
"""All bits but those of the version and the variant."""
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def is_id(text: str) -> bool:
    """Tell whether a text can be an id at all."""
    return _ID.fullmatch(text) is not None


def uuid7(at: datetime | None = None) -> str:
    """Return a new UUIDv7 as text; its time is `at`, else now (in milliseconds)."""
    milliseconds = time.time_ns() // 1_000_000 if at is None else int(at.timestamp() * 1000)
    number = (milliseconds << 80 | random.getrandbits(80)) & _OPEN | _VERSION_AND_VARIANT
    text = number.to_bytes(16).hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
