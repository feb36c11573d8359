"""The database as the control plane uses it: transactions for writes, snapshots for reads.

Owns the engine and its connections, the order of control writes, the retry of a write that lost a
race, and what it means that PostgreSQL is away. Owns no statement about any table but the one that
puts writes in order; the ledger and the directory have connections of their own.

Invariants:

- Control writes are serial, over all replicas: each locks the row of `installation` first. So what
  a write has read cannot change under it, and two writes cannot lock each other out. The ledger
  never waits for that row, so a write that waits for the ledger waits for something that ends.
- A write is committed whole or not at all, and its answer leaves after the commit.
- Times come back in UTC; numbers in JSON come back exact.
"""

import contextlib
import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from decimal import Decimal
from typing import TypeVar

import msgspec
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from app.settings import sqlalchemy_url
from app.store.schema import installation

Connection = AsyncConnection
"""What the functions of the store take, whether inside a transaction or a snapshot."""

T = TypeVar("T")

OPTIONS = (
    "-c timezone=UTC -c lock_timeout=5s -c statement_timeout=60s"
    # A replica that stalls with locks in its hands must not stall the others.
    " -c idle_in_transaction_session_timeout=5s"
)
"""Of every session but the ledger's, which has stricter ones."""

_RETRIED = {"40001", "40P01"}
"""Serialization failure and deadlock: nothing happened, and a second try may well succeed."""


class DatabaseUnavailable(OSError):
    """PostgreSQL did not answer, or not in time; nothing was written."""


class Conflict(Exception):
    """What was written contradicts a row that another writer has just put in its way."""


class Database:
    """A pool of connections to one database."""

    def __init__(self, url: str, *, pool_size: int = 5) -> None:
        self.engine = create_async_engine(
            sqlalchemy_url(url),
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=5,
            # PostgreSQL may have been restarted since the connection was last used.
            pool_pre_ping=True,
            # Hashes and sealed credentials are among them, and errors are logged.
            hide_parameters=True,
            connect_args={"options": OPTIONS, "connect_timeout": 3},
            json_serializer=lambda value: msgspec.json.encode(value).decode(),
            json_deserializer=functools.partial(json.loads, parse_float=Decimal),
        )

    async def close(self) -> None:
        """Close every connection."""
        await self.engine.dispose()

    async def transaction(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run a control write as one transaction and return what it returns, once committed.

        `work` may run twice: it does nothing but read and write this database. Raises `Conflict`,
        or `DatabaseUnavailable`.
        """
        with _translated():
            try:
                return await self._once(work)
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) not in _RETRIED:
                    raise
            return await self._once(work)

    @contextlib.asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Connection]:
        """Lend a connection to read on. Raises `DatabaseUnavailable`."""
        with _translated():
            async with self.engine.connect() as connection:
                yield connection

    async def _once(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        async with self.engine.begin() as connection:
            await connection.execute(select(installation.c.id).with_for_update())
            return await work(connection)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except IntegrityError as error:
        raise Conflict from error
    except (OperationalError, InterfaceError, PoolTimeout) as error:
        raise DatabaseUnavailable("PostgreSQL did not answer") from error
