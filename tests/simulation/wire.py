"""What stands between gateways and PostgreSQL: a socket that forwards, until it does not.

Owns a proxy that knows just enough of PostgreSQL's protocol to tell a round trip by the statements
in it. So a test can lose exactly the commit of a reserve, on its way there or its way back; and it
can cut connections, refuse new ones, or keep them and let nothing through.

It runs in a thread of its own, so that tests may block.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SOCKET = ".s.PGSQL.5432"


@dataclass
class Trap:
    """What happens to a round trip with a statement that contains `statement`."""

    statement: bytes
    arrives: bool
    """Whether it gets to PostgreSQL at all; the answer gets lost in any case."""
    silent: bool
    """Whether the connection then stays, and nothing comes over it; else it is cut."""
    after_s: float = 0.0
    """How late it arrives, if it does; then whoever sent it may have gone."""
    short_by: int = 0
    """How many bytes of it are missing at its end, if it arrives."""
    left: int = 1
    sprung: threading.Event = field(default_factory=threading.Event)
    delivered: threading.Event = field(default_factory=threading.Event)


class Frontend:
    """The messages of a client, gathered into round trips."""

    def __init__(self) -> None:
        self._started = False
        self._pending = b""
        self._round = b""
        self._statements: dict[bytes, bytes] = {}
        self._bound: set[bytes] = set()

    def feed(self, data: bytes) -> Iterator[tuple[bytes, set[bytes]]]:
        """Take bytes; yield what can go on, with the statements bound in it."""
        self._pending += data
        while (message := self._message()) is not None:
            kind = message[:1]
            self._round += message
            if kind == b"P":
                name, sql = message[5:].split(b"\0")[:2]
                self._statements[name] = sql
            elif kind == b"B":
                self._bound.add(self._statements.get(message[5:].split(b"\0")[1], b""))
            if kind not in b"PBDEC":
                yield self._round, self._bound
                self._round, self._bound = b"", set()

    def _message(self) -> bytes | None:
        # The first message has no kind, only a length.
        skipped = 1 if self._started else 0
        if len(self._pending) < skipped + 4:
            return None
        length = skipped + int.from_bytes(self._pending[skipped : skipped + 4], "big")
        if len(self._pending) < length:
            return None
        self._started = True
        message, self._pending = self._pending[:length], self._pending[length:]
        return message


class Link:
    """One connection through the wire."""

    def __init__(self, client: Any, server: Any) -> None:
        self.client: asyncio.StreamWriter = client
        self.server: asyncio.StreamWriter = server
        self.silent = False
        self.deaf = False
        """Answers of the server get lost."""

    def cut(self) -> None:
        """Both ends learn that it is gone."""
        for writer in (self.client, self.server):
            writer.transport.abort()


class Wire:
    """The proxy; `dsn` is what a gateway is given."""

    def __init__(self, dsn: str, *, tcp: bool = False) -> None:
        self._parts = urllib.parse.urlsplit(dsn)
        self._query = dict(urllib.parse.parse_qsl(self._parts.query))
        self._target = str(Path(self._query["host"]) / SOCKET)
        self._directory = Path(tempfile.mkdtemp(prefix="spendgate-wire-"))
        self._tcp = tcp
        self._links: set[Link] = set()
        self._traps: list[Trap] = []
        self._refusing = False
        self._silent = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=[ready], daemon=True, name="wire")
        self._thread.start()
        ready.wait()

    @property
    def dsn(self) -> str:
        """The address of this end."""
        query = urllib.parse.urlencode(self._query, safe="/")
        return f"{self._parts.scheme}://{self._parts.path}?{query}"

    # What tests do to it

    def trap(self, statement: bytes, **how: Any) -> Trap:
        """Wait for the next round trip with a statement in it."""
        trap = Trap(statement, **how)
        self._call(lambda: self._traps.append(trap))
        return trap

    def cut(self) -> None:
        """Cut every connection; new ones are taken."""
        self._call(self._cut)

    def refuse(self) -> None:
        """Cut every connection, and those to come at once."""
        self._call(lambda: self._set(refusing=True, silent=False))

    def silence(self) -> None:
        """Let nothing through, of old connections and new ones; none is closed."""
        self._call(lambda: self._set(refusing=False, silent=True))

    def forget(self) -> None:
        """Let nothing through over the connections there are, ever; new ones work."""
        self._call(lambda: self._set(refusing=False, silent=False))

    def heal(self) -> None:
        """Cut what had fallen silent, and work again."""
        self._call(self._heal)

    def close(self) -> None:
        """Stop."""
        self._call(self._stop.set)
        self._thread.join()
        shutil.rmtree(self._directory, ignore_errors=True)

    # How it does that

    def _call(self, function: Callable[[], Any]) -> None:
        done = threading.Event()

        def run() -> None:
            function()
            done.set()

        self._loop.call_soon_threadsafe(run)
        assert done.wait(10)

    def _set(self, *, refusing: bool, silent: bool) -> None:
        self._refusing, self._silent = refusing, silent
        if refusing:
            self._cut()
            return
        for link in self._links:
            link.silent = True

    def _heal(self) -> None:
        self._refusing = self._silent = False
        for link in [link for link in self._links if link.silent]:
            # Over a silent connection the server did not learn that the client is gone.
            self._links.discard(link)
            link.cut()

    def _cut(self) -> None:
        for link in list(self._links):
            link.cut()

    def _run(self, ready: threading.Event) -> None:
        async def main() -> None:
            server: asyncio.Server
            if self._tcp:
                server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
                port = str(server.sockets[0].getsockname()[1])
                # Encryption is negotiated before the messages that we know.
                self._query |= {"host": "127.0.0.1", "port": port}
                self._query |= {"sslmode": "disable", "gssencmode": "disable"}
            else:
                path = str(self._directory / SOCKET)
                server = await asyncio.start_unix_server(self._accept, path, backlog=512)
                self._query["host"] = str(self._directory)
            ready.set()
            await self._stop.wait()
            server.close()
            self._cut()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        self._loop.run_until_complete(main())
        self._loop.close()

    async def _accept(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self._refusing:
            client.transport.abort()
            return
        try:
            backend, server = await asyncio.open_unix_connection(self._target)
        except OSError:
            client.transport.abort()
            return
        link = Link(client, server)
        link.silent = self._silent
        self._links.add(link)
        try:
            async with asyncio.TaskGroup() as group:
                back = group.create_task(self._back(backend, link))
                await self._forth(reader, link)
                back.cancel()
        except* OSError:
            pass
        finally:
            link.client.transport.abort()
            if not link.silent:
                self._links.discard(link)
                link.cut()

    async def _forth(self, reader: asyncio.StreamReader, link: Link) -> None:
        frontend = Frontend()
        while data := await reader.read(65536):
            if link.silent:
                continue
            for round_trip, bound in frontend.feed(data):
                trap = self._trap_for(bound)
                if trap is None:
                    link.server.write(round_trip)
                    continue
                trap.sprung.set()
                await self._spring(trap, link, round_trip)
                if not trap.silent:
                    return
            await link.server.drain()

    def _trap_for(self, bound: set[bytes]) -> Trap | None:
        for trap in self._traps:
            if trap.left and any(trap.statement in sql for sql in bound):
                trap.left -= 1
                return trap
        return None

    async def _spring(self, trap: Trap, link: Link, round_trip: bytes) -> None:
        link.silent = trap.silent
        link.deaf = True
        if trap.arrives:
            await asyncio.sleep(trap.after_s)
            link.server.write(round_trip[: len(round_trip) - trap.short_by])
            await link.server.drain()
            # What it answers is lost; it has to have had the time to do it, though.
            await asyncio.sleep(0.3)
        trap.delivered.set()

    async def _back(self, backend: asyncio.StreamReader, link: Link) -> None:
        while data := await backend.read(65536):
            if not (link.silent or link.deaf):
                link.client.write(data)
                await link.client.drain()
        if not link.silent:
            # What it said last still gets there.
            link.client.close()


@contextlib.contextmanager
def wired(house: Any, *, tcp: bool = False) -> Iterator[Wire]:
    """Put a wire between the gateways of a house and its PostgreSQL."""
    wire = Wire(house.direct, tcp=tcp)
    house.dsn = wire.dsn
    try:
        yield wire
    finally:
        house.close()
        wire.close()
