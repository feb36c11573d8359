"""The command line: ``spendgate`` and its commands.

Owns what a command is called, its options and help, what it prints and the code it exits with;
and, for ``serve``, the life of the process: the database first, then the server, and at the end
the two in the opposite order. Owns no setting (``app.settings`` has the list that the options are
made of), no SQL (``app.store``) and no part of the server (``app.main``).

Invariants:

* The standard output carries what was asked for, and nothing else; progress, logs and errors go to
  the error stream.
* What can go wrong outside of our code (a port, a file, a secret, a database) ends in one line that
  says what to do, not in a traceback.
* The first SIGTERM or Ctrl-C ends a server in order: calls in flight finish, the ledger settles,
  then the embedded PostgreSQL stops. A second one stops waiting for calls, never for the ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import click
import structlog
import uvicorn
from uvicorn.supervisors import Multiprocess

import app
from app import log as logging
from app.settings import VARIABLES, Settings, SettingsError, Variable, psycopg_dsn, unknown
from app.store import migrate as migrations
from app.store.postgres import EmbeddedPostgres, PostgresUnavailable

if TYPE_CHECKING:
    from litestar import Litestar

log = structlog.get_logger(__name__)

DRAIN_S: Final = 30
"""How long calls in flight may take to finish once the server is asked to stop."""

# ------------------------------------------------------------------------------------ the shape


class _Commands(click.Group):
    """The commands, in the order of this file; errors that are nobody's bug take one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            message = _explained(error)
            if message is None:
                raise
            raise click.ClickException(message) from None


def _explained(error: Exception) -> str | None:
    """What to tell of an error that is not a bug of ours; None for those that are."""
    import alembic.util
    import psycopg

    from app.main import SecretMismatch
    from app.store.database import DatabaseUnavailable

    match error:
        case SettingsError() | PostgresUnavailable():
            return str(error)
        case SecretMismatch() | migrations.MigrationLocked() | alembic.util.CommandError():
            return _one_line(error)
        case psycopg.OperationalError() | DatabaseUnavailable():
            return f"the database does not answer: {_one_line(error)}"
        case OSError():
            return _one_line(error)
        case _:
            return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _setting(variable: Variable) -> Callable[[Any], Any]:
    return click.option(
        "--" + variable.name.lower().replace("_", "-"),
        variable.env,
        metavar="VALUE",
        help=f"{variable.help[0].upper()}{variable.help[1:]}.  "
        f"[env: {variable.env}; default: {variable.default}]",
    )


def _settings(*names: str) -> Callable[[Any], Any]:
    """Options for the settings of these names, or for every one."""

    def decorate(command: Any) -> Any:
        for variable in reversed(VARIABLES):
            if not names or variable.name in names:
                command = _setting(variable)(command)
        return command

    return decorate


def _example(*lines: str) -> str:
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


def _environment(options: Mapping[str, str | None]) -> dict[str, str]:
    """The environment with a command's options in it, which win."""
    return {**os.environ, **{env: text for env, text in options.items() if text is not None}}


def _read_settings(options: Mapping[str, str | None]) -> Settings:
    settings = Settings.from_env(_environment(options))
    logging.configure(settings.log_level, settings.log_format)
    return settings


def _say(line: str) -> None:
    click.echo(line, err=True)


# ------------------------------------------------------------------------------------- signals


class Signals:
    """What SIGTERM and Ctrl-C do to a process that has something to stop in order.

    The first raises ``KeyboardInterrupt``, unless a server is there to take it; the others do
    nothing, because by then the process is stopping.
    """

    def __init__(self) -> None:
        self.stopping = False
        self._held_back = False

    def install(self) -> None:
        """Take over both signals, for the rest of the process's life."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.stopping:
            self.stopping = True
            if not self._held_back:
                raise KeyboardInterrupt

    @contextlib.contextmanager
    def held_back(self) -> Iterator[None]:
        """Let what is inside finish, then be interrupted."""
        self._held_back = True
        try:
            yield
        except Exception:
            # The signal went to our children as well, and took what is inside down with them.
            if not self.stopping:
                raise
        finally:
            self._held_back = False
        if self.stopping:
            raise KeyboardInterrupt


@contextlib.contextmanager
def database(settings: Settings, signals: Signals | None = None) -> Iterator[str]:
    """Lend the address of the configured database, or else of the embedded one, running."""
    if settings.database_url is not None:
        yield psycopg_dsn(settings.database_url)
        return
    server = EmbeddedPostgres(settings.ensure_data_dir())
    try:
        with signals.held_back() if signals else contextlib.nullcontext():
            server.start()
        yield server.dsn
    finally:
        server.stop()


# ------------------------------------------------------------------------------------ commands


@click.group(cls=_Commands, context_settings={"max_content_width": 100})
@click.version_option(app.__version__, prog_name="spendgate")
def main() -> None:
    """Spendgate: an AI gateway that never overspends.

    Settings are environment variables SPENDGATE_*; every one is also an option of "serve" and
    explained in its help. "spendgate demo" shows the whole of it with sample data.
    """


@main.command(epilog=_example("spendgate serve --port 8080 --data-dir /var/lib/spendgate"))
@click.option(
    "--migrate/--no-migrate", default=True, show_default=True, help="Migrate the database first."
)
@_settings()
def serve(migrate: bool, **options: str | None) -> None:
    """Run the gateway until it is told to stop (SIGTERM or Ctrl-C).

    Without a database of your own, an embedded PostgreSQL runs with it, in the data directory.
    Secrets are better given by the environment: other users of a machine can see options.
    """
    settings = _read_settings(options)
    for line in unknown():
        log.warning("setting_unknown", message=line)
    signals = Signals()
    signals.install()
    try:
        with listening(settings) as sockets, database(settings, signals) as dsn:
            prepare(settings, dsn, migrate=migrate)
            os.environ.update(_for_processes(options, settings, dsn))
            failed = run_server(settings, sockets, signals)
    except KeyboardInterrupt:
        failed = False
    log.info("stopped")
    if failed:
        raise click.exceptions.Exit(1)


# -------------------------------------------------------------------------------------- serving


def prepare(settings: Settings, dsn: str, *, migrate: bool) -> None:
    """Have a database ready for this version, and be sure that it goes with our secret."""
    from app.main import SecretMismatch
    from app.store import admin
    from app.store.vault import Vault

    if not migrate:
        # Then PostgreSQL need not be there yet either; each process checks once it is.
        return
    before = migrations.current(dsn)
    migrations.upgrade(dsn, progress=lambda line: log.info("migrating", message=line))
    if before != (after := migrations.head()):
        log.info("migrated", before=before, after=after)
    if not admin.claim(dsn, Vault(settings.secret_key()).fingerprint):
        raise SecretMismatch(
            "SPENDGATE_SECRET_KEY is not the secret this database was set up with; every replica "
            "needs the same one"
        )


def _for_processes(
    options: Mapping[str, str | None], settings: Settings, dsn: str
) -> dict[str, str]:
    """What the serving processes find in their environment."""
    given = {env: text for env, text in options.items() if text is not None}
    return {
        **given,
        "SPENDGATE_DATABASE_URL": dsn,
        # Absolute, and the same whatever becomes of HOME.
        "SPENDGATE_DATA_DIR": str(settings.data_dir),
    }


@contextlib.contextmanager
def listening(settings: Settings) -> Iterator[list[socket.socket]]:
    """Take the port, before anything slow is done; connections are accepted only later."""
    sockets: list[socket.socket] = []
    port = settings.port
    try:
        for family, _, _, _, address in dict.fromkeys(
            socket.getaddrinfo(
                settings.host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        ):
            # Naming the protocol makes asyncio turn Nagle's algorithm off.
            sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address[0], port, *address[2:]))
            # Port 0 is any free one, but the same on every address.
            port = sock.getsockname()[1]
        yield sockets
    except (OSError, OverflowError) as error:
        if sockets and sockets[-1].fileno() >= 0 and _is_bound(sockets[-1]):
            raise
        reason = os.strerror(error.errno).lower() if _has_errno(error) else str(error)
        raise click.ClickException(
            f"cannot listen on {settings.host} port {settings.port}: {reason}. "
            f"Choose another with --port (SPENDGATE_PORT)"
        ) from None
    finally:
        for sock in sockets:
            sock.close()
