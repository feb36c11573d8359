"""Passwords: how they are hashed, and how one is compared with a hash.

Owns the parameters. Owns neither who may try how often (see `auth`) nor where hashes are kept.

Invariants: neither keeps the event loop from others; a comparison with no hash takes as long as
one with a hash, so that it does not tell who has a password.
"""

import asyncio
from functools import cache
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

_hasher: Final = PasswordHasher()


async def hashed(password: str) -> str:
    """Hash a password: meant to take long."""
    return await asyncio.to_thread(_hasher.hash, password)


async def fits(hash: str | None, password: str) -> bool:
    """Tell whether a hash is a password's; None is nobody's."""

    def compare() -> bool:
        try:
            _hasher.verify(hash or _nobodys(), password)
        except (Argon2Error, InvalidHashError):
            return False
        return hash is not None

    return await asyncio.to_thread(compare)


def is_dated(hash: str) -> bool:
    """Tell whether a hash was made with other parameters than today's."""
    return _hasher.check_needs_rehash(hash)


@cache
def _nobodys() -> str:
    return _hasher.hash("nobody's password")
