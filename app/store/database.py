"""The database as the control plane uses it: transactions for writes, snapshots for reads.

Owns the engine and its connections, the order of control writes, the retry of a write that lost a
race, and what it means that PostgreSQL is away. Owns as well how to give up on a connection that
has fallen silent, and the pool for single statements. Owns no statement about any table but the one
that puts writes in order; the ledger has connections of its own.

Invariants:

- Control writes are serial, over all replicas: each locks the row of `installation` first. So what
  a write has read cannot change under it, and two writes cannot lock each other out. The ledger
  never waits for that row, so a write that waits for the ledger waits for something that ends. What
  goes beside them (see `aside`) leaves alone what they read and write in more than one statement.
- A write is committed whole or not at all, and its answer leaves after the commit.
- Times come back in UTC; numbers in JSON come back exact.
- Nobody waits longer than seconds to be lent a connection that the network has not forgotten.
"""

import asyncio
import contextlib
import functools
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from decimal import Decimal
from typing import Any, TypeVar

import msgspec
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import event, select
from sqlalchemy.engine import AdaptedConnection
from sqlalchemy.exc import (
    DBAPIError,
    IntegrityError,
    InterfaceError,
    InvalidatePoolError,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from app.settings import psycopg_dsn, sqlalchemy_url
from app.store.schema import installation

Connection = AsyncConnection
"""What the functions of the store take, whether inside a transaction or a snapshot."""

T = TypeVar("T")

OPTIONS = (
    "-c timezone=UTC -c lock_timeout=5s -c statement_timeout=60s"
    # A replica that stalls with locks in its hands must not stall the others.
    " -c idle_in_transaction_session_timeout=5s"
    # Who waited for a row is to see what was committed meanwhile, whatever the database's default.
    " -c default_transaction_isolation=read\\ committed"
)
"""Of every session but the ledger's, which has stricter ones."""

CHECK_S = 1.0
"""How long a connection may take to show that it is still there, before anybody is lent it."""

_KEEPALIVE = {
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
"""Over TCP the kernel finds out, within seconds, that nobody is at the other end any more."""

_RETRIED = {"40001", "40P01"}
"""Serialization failure and deadlock: nothing happened, and a second try may well succeed."""


class DatabaseUnavailable(OSError):
    """PostgreSQL did not answer, or not in time; nothing was written."""


class Conflict(Exception):
    """What was written contradicts a row that another writer has just put in its way."""


def kept_alive(dsn: str) -> str:
    """Return an address that has the kernel look after its connections; what it says itself wins.

    What is not TCP knows no such thing, and takes no notice.
    """
    return make_conninfo(dsn, **_unsaid(dsn))


def _unsaid(dsn: str) -> dict[str, str]:
    said = conninfo_to_dict(dsn)
    return {name: value for name, value in _KEEPALIVE.items() if name not in said}


@contextlib.contextmanager
def hung_up_after(connection: psycopg.AsyncConnection[Any], seconds: float) -> Iterator[None]:
    """Within this, what waits for PostgreSQL fails with `OperationalError` when the time is up.

    A timeout of asyncio's does not do that: psycopg then asks PostgreSQL to cancel the statement
    and waits for it to confirm, each for seconds, over a connection that may be gone.
    """
    # A socket of our own: libpq may close its one, and another may then have the number.
    line = socket.socket(fileno=os.dup(connection.fileno()))
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def time_is_up() -> None:
        # If it was us who stalled, the answer may be there and only has to be read.
        nonlocal timer
        timer = loop.call_later(0.05, hang_up)

    def hang_up() -> None:
        # It may have been closed at the other end meanwhile.
        with contextlib.suppress(OSError):
            line.shutdown(socket.SHUT_RDWR)

    timer = loop.call_later(seconds, time_is_up)
    try:
        yield
    finally:
        timer.cancel()
        line.close()


async def _answers(connection: psycopg.AsyncConnection[Any]) -> None:
    """Raise one of psycopg's errors if the connection does not answer soon."""
    with hung_up_after(connection, CHECK_S):
        await AsyncConnectionPool.check_connection(connection)


class Pool(AsyncConnectionPool[psycopg.AsyncConnection[Any]]):
    """Connections for single statements, in autocommit; it waits to be opened."""

    def __init__(self, dsn: str) -> None:
        super().__init__(
            dsn,
            min_size=1,
            max_size=8,
            open=False,
            timeout=5,
            kwargs={"autocommit": True, "connect_timeout": 3, "options": OPTIONS},
            check=self._ask,
        )
        self._renewed = 0.0

    async def _ask(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Raise if the connection does not answer."""
        began = time.monotonic()
        try:
            await _answers(connection)
        except psycopg.Error:
            # What has become of one has become of the others: they need not be tried in turn.
            if self._renewed < began:
                self._renewed = time.monotonic()
                await self.drain()
            raise


class Database:
    """A pool of connections to one database."""

    def __init__(self, url: str, *, pool_size: int = 5) -> None:
        self.engine = create_async_engine(
            sqlalchemy_url(url),
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=5,
            # Hashes and sealed credentials are among them, and errors are logged.
            hide_parameters=True,
            connect_args={
                "options": OPTIONS,
                "connect_timeout": 3,
                **_unsaid(psycopg_dsn(url)),
            },
            json_serializer=lambda value: msgspec.json.encode(value).decode(),
            json_deserializer=functools.partial(json.loads, parse_float=Decimal),
        )
        # PostgreSQL may have been restarted since a connection was last used.
        event.listen(self.engine.sync_engine, "checkout", _check)

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

    @contextlib.asynccontextmanager
    async def aside(self) -> AsyncIterator[Connection]:
        """Lend a transaction that does not wait for control writes, nor they for it.

        It is committed when the block ends. Raises `Conflict`, or `DatabaseUnavailable`.
        """
        with _translated():
            async with self.engine.begin() as connection:
                yield connection

    async def _once(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        async with self.engine.begin() as connection:
            await connection.execute(select(installation.c.id).with_for_update())
            return await work(connection)


def _check(connection: AdaptedConnection, record: ConnectionPoolEntry, *_: object) -> None:
    """What `pool_pre_ping` is for, but it would wait for an answer for as long as it takes."""
    # What is kept there goes with the connection: a new one has just answered.
    if not record.info.get("lent"):
        record.info["lent"] = True
        return
    try:
        connection.run_async(_answers)
    except psycopg.Error as error:
        raise InvalidatePoolError from error


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except IntegrityError as error:
        raise Conflict from error
    except (OperationalError, InterfaceError, PoolTimeout) as error:
        raise DatabaseUnavailable("PostgreSQL did not answer") from error
