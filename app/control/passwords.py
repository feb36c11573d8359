"""Passwords: how they are hashed, and how one is compared with a hash.

Owns the parameters. Owns neither who may try how often (see `auth`) nor where hashes are kept.

Invariants: neither keeps the event loop from others; a comparison with no hash takes as long as
one with a hash, so that it does not tell who has a password.
"""

import asyncio
from functools import cache

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

HASHER = PasswordHasher()
"""A password takes it 64 MiB, and about a tenth of a second."""


async def hashed(password: str) -> str:
    """Hash a password: meant to take long."""
    return await asyncio.to_thread(HASHER.hash, password)


async def fits(hash: str | None, password: str) -> bool:
    """Tell whether a hash is a password's; None is nobody's."""

    def compare() -> bool:
        try:
            HASHER.verify(hash or _nobodys(HASHER), password)
        except (Argon2Error, InvalidHashError):
            return False
        return hash is not None

    return await asyncio.to_thread(compare)


def is_dated(hash: str) -> bool:
    """Tell whether a hash was made with other parameters than today's."""
    return HASHER.check_needs_rehash(hash)


@cache
def _nobodys(hasher: PasswordHasher) -> str:
    return hasher.hash("nobody's password")
