"""A pipe to PostgreSQL for the ledger's loop: many statements, one round trip, one wake-up.

Owns one libpq connection in pipeline mode and its prepared statements. Owns no SQL and no meaning.

psycopg's own pipeline takes several turns of the event loop for each round trip, and each turn
waits behind whatever else the loop has to do. The ledger's latency is counted in such turns, so it
talks to libpq (through psycopg's wrapper) itself: one write, one wake-up when everything is there.

Invariants: one round trip at a time; a failed statement fails the round trip, with psycopg's typed
error, after everything up to the sync has been read; after any error of the connection itself,
and after words of PostgreSQL that end it, the pipe is broken for good and nobody waits for it.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import psycopg
from psycopg import pq
from psycopg.errors import error_from_result
from psycopg.pq.abc import PGresult

Command = tuple[bytes, Sequence[bytes | None]]
"""One statement with `$n` parameters, and their values in text format."""

Following = Callable[[list[PGresult]], Sequence[Command] | None]
"""What to send once the results of a round trip are there."""


def array(texts: Iterable[str]) -> bytes:
    """Write an array as a parameter: of ids, numbers and names, none of which needs quoting."""
    return b"{" + ",".join(texts).encode() + b"}"


_GOOD = (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK)


class Pipe:
    """One connection; `await Pipe.open(...)` makes it."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection
        self._pg = connection.pgconn
        self._pg.enter_pipeline_mode()
        self._names: dict[bytes, bytes] = {}
        self._named = 0
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[list[PGresult]] | None = None
        self._then: Following | None = None
        self._results: list[PGresult] = []
        self._preparing: dict[int, bytes] = {}
        self._position = 0
        self._fd = self._pg.socket
        self._loop.add_reader(self._fd, self._readable)

    @classmethod
    async def open(cls, dsn: str, *, options: str) -> "Pipe":
        """Connect. Raises psycopg's errors."""
        connection = await psycopg.AsyncConnection.connect(
            dsn,
            autocommit=True,
            connect_timeout=3,
            options=options,
            target_session_attrs="read-write",
        )
        return cls(connection)

    async def run(
        self, commands: Sequence[Command], then: Following | None = None
    ) -> list[PGresult]:
        """Send the statements in one go; return their results in order.

        `then` is called with the results as soon as they are there, before anything else of the
        event loop runs; the statements that it returns go out at once as a second round trip, and
        their results are returned instead. It returns None to leave it at the first.

        Raises the first statement's error that failed (none after it was executed), or
        `OperationalError` if the connection is gone.
        """
        assert self._waiter is None, "one round trip at a time"
        self._then = then
        self._waiter = self._loop.create_future()
        try:
            self._send(commands)
            results = await self._waiter
        finally:
            self._waiter = None
        for result in results:
            if result.status not in _GOOD:
                raise error_from_result(result)
        return results

    def _send(self, commands: Sequence[Command]) -> None:
        """Hand the statements to the kernel."""
        pg = self._pg
        self._results = []
        self._preparing = preparing = {}
        self._position = position = 0
        for sql, values in commands:
            name = self._names.get(sql)
            if name is None:
                self._named += 1
                name = self._names[sql] = b"s%d" % self._named
                pg.send_prepare(name, sql)
                preparing[position] = sql
                position += 1
            pg.send_query_prepared(name, values)
            position += 1
        pg.pipeline_sync()
        self._flush()

    def _arrived(self) -> None:
        """Everything of a round trip is there: go on with the next one, or wake the waiter."""
        if self._waiter is None or self._waiter.done():
            return
        then, self._then = self._then, None
        if then is not None and all(result.status in _GOOD for result in self._results):
            try:
                following = then(self._results)
            except Exception as error:
                self._waiter.set_exception(error)
                return
            if following is not None:
                self._send(following)
                return
        self._waiter.set_result(self._results)

    @property
    def server_version(self) -> int:
        """PostgreSQL's version as libpq writes it, such as 180006."""
        return self._pg.server_version

    @property
    def broken(self) -> bool:
        """Whether the connection is known to be gone."""
        return self._fd < 0

    async def close(self) -> None:
        """Close the connection, whatever state it is in."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            self._fd = -1
        await self._connection.close()

    def _flush(self) -> None:
        try:
            if self._pg.flush():
                self._loop.add_writer(self._fd, self._flush)
            else:
                self._loop.remove_writer(self._fd)
        except psycopg.OperationalError as error:
            self._fail(error)

    def _readable(self) -> None:
        try:
            self._pg.consume_input()
            if self._answered():
                return
            # Words and the end of the connection may come together, of which the loop tells once.
            self._pg.consume_input()
            if self._answered():
                return
        except psycopg.OperationalError as error:
            self._fail(self._last_words(error))
            return
        if self._pg.status == pq.ConnStatus.BAD:
            # libpq has closed the socket, so nobody would call us again.
            self._fail(self._last_words(psycopg.OperationalError("the connection is gone")))

    def _answered(self) -> bool:
        """Take the results there are; tell whether that was the whole round trip."""
        pg = self._pg
        nothing = 0
        # One None stands between the results of two statements; two mean that none are left.
        while nothing < 2 and not pg.is_busy():
            result = pg.get_result()
            if result is None:
                nothing += 1
                continue
            nothing = 0
            if result.status == pq.ExecStatus.PIPELINE_SYNC:
                self._arrived()
                return True
            self._take(result)
        return False

    def _last_words(self, error: psycopg.Error) -> psycopg.Error:
        """Return why PostgreSQL ended the session, if it said so, else `error`."""
        for result in self._results:
            severity = result.error_field(pq.DiagnosticField.SEVERITY_NONLOCALIZED)
            if severity in (b"FATAL", b"PANIC"):
                return error_from_result(result)
        return error

    def _take(self, result: PGresult) -> None:
        prepared = self._preparing.get(self._position)
        self._position += 1
        if result.status in _GOOD:
            if prepared is None:
                self._results.append(result)
            return
        if prepared is not None:
            # Not prepared after all: the next round trip tries again.
            self._names.pop(prepared, None)
        self._results.append(result)

    def _fail(self, error: Exception) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            self._fd = -1
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)
