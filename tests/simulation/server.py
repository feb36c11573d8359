"""`spendgate serve` that dies, or stalls, at a chosen point of a chosen call.

    python -m tests.simulation.server --at reserve-committed --hit 3 -- --no-migrate

Owns the crash points: each wraps one seam of the product, in this process alone, and sends this
process a signal at the N-th passage. The product carries no hooks; what follows `--` are the
arguments of `spendgate serve`.

With `--nursery` it imports everything once and then forks a server for each line of its standard
input (`Order` as JSON), which saves the seconds that every server spends on importing. It answers
with the process id, and with another line when a server ends.
"""

import argparse
import contextlib
import errno
import os
import selectors
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

import app.main  # noqa: F401 - what a server imports when it starts
from app import cli
from app.gateway import exchange
from app.store import batch, ledger, spool
from app.store.pipe import Pipe
from app.worker import Worker


class Trap:
    """Springs at the N-th passage."""

    def __init__(self, hit: int, number: int) -> None:
        self.left = hit
        self.number = number

    def due(self) -> bool:
        """Count a passage; tell whether it is the one."""
        self.left -= 1
        return self.left == 0

    def spring(self) -> None:
        """Stop here: nothing of this process runs any further (or until it is continued)."""
        os.kill(os.getpid(), self.number)

    def passed(self) -> None:
        """Count a passage, and stop if it is the one."""
        if self.due():
            self.spring()


def at_commit(statement: bytes, when: str) -> Callable[[Trap], None]:
    """Around the round trip that writes `statement` and commits."""

    def install(trap: Trap) -> None:
        send, arrived = Pipe._send, Pipe._arrived
        due: list[Pipe] = []

        def sending(self: Pipe, commands: Sequence[Any]) -> None:
            if not any(sql is statement for sql, _ in commands) or not trap.due():
                send(self, commands)
                return
            if when == "before":
                trap.spring()
            send(self, commands)
            if when == "sent":
                trap.spring()
            due.append(self)

        def arriving(self: Pipe) -> None:
            if self in due:
                trap.spring()
            arrived(self)

        Pipe._send = sending  # type: ignore[method-assign]
        Pipe._arrived = arriving  # type: ignore[method-assign]

    return install


def before_forward(trap: Trap) -> None:
    """After the hold is won, before anything goes to the provider."""
    real = exchange.Exchange._forward

    async def forward(self: Any, *arguments: Any) -> None:
        trap.passed()
        await real(self, *arguments)

    exchange.Exchange._forward = forward  # type: ignore[method-assign]


def at_last_byte(when: str) -> Callable[[Trap], None]:
    """Around the last byte of an answer that was served."""

    def install(trap: Trap) -> None:
        real = exchange.Exchange.handle

        async def handle(
            self: Any, endpoint: Any, scope: Any, receive: Any, send: exchange.Send
        ) -> None:
            served = False

            async def sending(message: exchange.Message) -> None:
                nonlocal served
                served = served or message.get("status") == 200
                last = message["type"] == "http.response.body" and not message.get("more_body")
                if not (served and last) or not trap.due():
                    await send(message)
                    return
                if when == "after":
                    await send(message)
                trap.spring()

            await real(self, endpoint, scope, receive, sending)

        exchange.Exchange.handle = handle  # type: ignore[method-assign]

    return install


def at_chunk(trap: Trap) -> None:
    """In a stream, after the N-th chunk has gone on to the client."""
    real = exchange._Relay._pass

    async def pass_on(self: Any, outs: Any) -> None:
        await real(self, outs)
        trap.passed()

    exchange._Relay._pass = pass_on  # type: ignore[method-assign]


def in_spool_write(fraction: float) -> Callable[[Trap], None]:
    """While a settlement is written to the spool, with so much of it written."""

    def install(trap: Trap) -> None:
        real = spool.Spool._write

        def write(self: Any, entries: Any) -> None:
            if not trap.due():
                real(self, entries)
                return
            data = b"".join(spool._encode(entry) + b"\n" for entry in entries)
            os.write(self._file.fileno(), data[: int(len(data) * fraction)])
            trap.spring()

        spool.Spool._write = write  # type: ignore[method-assign]

    return install


def at_replayed(when: str) -> Callable[[Trap], None]:
    """Around forgetting what was replayed."""

    def install(trap: Trap) -> None:
        real = spool.Spool.replayed

        def replayed(self: Any, entries: Any) -> None:
            due = trap.due()
            if due and when == "before":
                trap.spring()
            real(self, entries)
            if due:
                trap.spring()

        spool.Spool.replayed = replayed  # type: ignore[method-assign]

    return install


def in_adoption(trap: Trap) -> None:
    """After a dead process's spool was copied, before it is removed."""
    real = spool.Spool._write

    def write(self: Any, entries: Any) -> None:
        real(self, entries)
        trap.passed()

    spool.Spool._write = write  # type: ignore[method-assign]


def failing_spool(trap: Trap) -> None:
    """The disk has no room for the N-th settlement that is spooled; nothing dies of it."""
    real = spool.Spool._write

    def write(self: Any, entries: Any) -> None:
        if trap.due():
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, entries)

    spool.Spool._write = write  # type: ignore[method-assign]


def failing_relay(trap: Trap) -> None:
    """A bug of ours, after the N-th chunk of a stream; nothing dies of it."""
    real = exchange._Relay._pass

    async def pass_on(self: Any, outs: Any) -> None:
        await real(self, outs)
        if trap.due():
            raise RuntimeError("a bug")

    exchange._Relay._pass = pass_on  # type: ignore[method-assign]


def in_reap(trap: Trap) -> None:
    """In a round of the reaper, when it has its lock and found the N-th expired hold."""
    real = ledger.Ledger.recover

    async def recover(self: Any, call_id: str, account_ids: Any) -> Any:
        if account_ids:
            trap.passed()
        return await real(self, call_id, account_ids)

    ledger.Ledger.recover = recover  # type: ignore[method-assign]


def reaped(trap: Trap) -> None:
    """After a round of the reaper that settled something."""
    real = Worker.reap

    async def reap(self: Any) -> int:
        settled = await real(self)
        if settled:
            trap.passed()
        return settled

    Worker.reap = reap  # type: ignore[method-assign]


POINTS: dict[str, Callable[[Trap], None]] = {
    "reserve-before-commit": at_commit(batch.WRITE_HOLDS, "before"),
    "reserve-commit-sent": at_commit(batch.WRITE_HOLDS, "sent"),
    "reserve-committed": at_commit(batch.WRITE_HOLDS, "after"),
    "before-forward": before_forward,
    "chunk": at_chunk,
    "settle-before-commit": at_commit(batch.WRITE_CALLS, "before"),
    "settle-commit-sent": at_commit(batch.WRITE_CALLS, "sent"),
    "settle-committed": at_commit(batch.WRITE_CALLS, "after"),
    "before-last-byte": at_last_byte("before"),
    "after-last-byte": at_last_byte("after"),
    "spool-before-write": in_spool_write(0.0),
    "spool-torn-write": in_spool_write(0.5),
    "spool-written": in_spool_write(1.0),
    "spool-replayed": at_replayed("before"),
    "spool-forgotten": at_replayed("after"),
    "spool-adopting": in_adoption,
    "spool-fails": failing_spool,
    "relay-fails": failing_relay,
    "reap-begun": in_reap,
    "reaped": reaped,
}


def serve(arguments: Sequence[str]) -> None:
    """Be the server that the arguments ask for."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.server")
    parser.add_argument("--at", choices=sorted(POINTS))
    parser.add_argument("--hit", type=int, default=1)
    parser.add_argument("--signal", choices=("SIGKILL", "SIGSTOP"), default="SIGKILL")
    parser.add_argument("arguments", nargs="*")
    options = parser.parse_args(arguments)
    if options.at is not None:
        POINTS[options.at](Trap(options.hit, getattr(signal, options.signal)))
    sys.argv = ["spendgate", "serve", *options.arguments]
    cli.main(prog_name="spendgate")


class Order(msgspec.Struct):
    """A server to fork."""

    arguments: list[str]
    environment: dict[str, str]
    log: str


class News(msgspec.Struct, omit_defaults=True):
    """A server was forked (no status), or has ended with a return code as of `subprocess`."""

    pid: int
    status: int | None = None


def nursery() -> None:
    """Fork a server for each order, until the standard input ends."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    # Ctrl-C is for who ordered the servers to deal with.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    selector = selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ)
    selector.register(read, selectors.EVENT_READ)
    pending = b""
    while True:
        ready = {key.fd for key, _ in selector.select()}
        if read in ready:
            os.read(read, 4096)
            with contextlib.suppress(ChildProcessError):
                while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                    say(News(ended[0], os.waitstatus_to_exitcode(ended[1])))
        if 0 in ready:
            data = os.read(0, 65536)
            if not data:
                return
            *orders, pending = (pending + data).split(b"\n")
            for order in orders:
                say(News(fork(msgspec.json.decode(order, type=Order))))


def say(news: News) -> None:
    os.write(1, msgspec.json.encode(news) + b"\n")


def fork(order: Order) -> int:
    """Fork a server; in the child this does not return."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        log = os.open(order.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        for old, new in ((os.open(os.devnull, os.O_RDONLY), 0), (log, 1), (log, 2)):
            os.dup2(old, new)
        os.closerange(3, 256)
        os.environ.clear()
        os.environ.update(order.environment)
        serve(order.arguments)
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    if sys.argv[1:] == ["--nursery"]:
        nursery()
    else:
        serve(sys.argv[1:])
