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
  then the embedded PostgreSQL stops. A second one breaks calls off, but waits for the ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import UTC, date, datetime
from datetime import time as time_of_day
from decimal import Decimal, InvalidOperation
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, TypeVar
from zoneinfo import ZoneInfo

import click
import msgspec
import structlog
import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

import app
from app.core import written
from app.core.metering import UNITS
from app.core.pricing import InvalidRates, Rate, check_rates
from app.log import configure as configure_log
from app.settings import VARIABLES, Settings, SettingsError, Variable, psycopg_dsn, unknown
from app.store.postgres import EmbeddedPostgres, PostgresUnavailable

# Alembic and SQLAlchemy take a second to import. What needs them imports them where it does, so
# that help and refusals come at once.
if TYPE_CHECKING:
    from app import demo as sample
    from app.main import Front
    from app.store.admin import PriceVersion
    from app.store.database import Connection
    from app.store.vault import Vault

T = TypeVar("T")

log = structlog.get_logger(__name__)

DRAIN_S: Final = 30
"""How long calls in flight may take to finish once the server is asked to stop."""
BACKLOG: Final = 2048

# ------------------------------------------------------------------------------------ the shape


class WrongSecret(Exception):
    """The database was set up with another secret."""


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
    import sqlalchemy.exc

    from app.store.database import DatabaseUnavailable
    from app.store.migrate import MigrationLocked

    match error:
        case SettingsError() | PostgresUnavailable():
            return str(error)
        case WrongSecret() | MigrationLocked() | alembic.util.CommandError():
            return _one_line(error)
        case sqlalchemy.exc.OperationalError():
            return f"the database does not answer: {_one_line(error.orig or error)}"
        case psycopg.OperationalError():
            return f"the database does not answer: {_one_line(error)}"
        case DatabaseUnavailable():
            return f"the database does not answer: {_one_line(error.__cause__ or error)}"
        case OSError():
            return _one_line(error)
        case _:
            return None


def _one_line(error: BaseException) -> str:
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
    configure_log(settings.log_level, settings.log_format)
    return settings


def _say(line: str) -> None:
    click.echo(line, err=True)


# ------------------------------------------------------------------------------------- signals


class Signals:
    """What SIGTERM and Ctrl-C do to a process that has something to stop in order.

    The first raises ``KeyboardInterrupt``, unless a server is there to take it; the others do
    nothing, because by then the process is stopping.
    """

    NUMBERS: Final = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.stopping = False
        self._held_back = False

    def install(self) -> None:
        """Take over both signals, for the rest of the process's life."""
        for number in self.NUMBERS:
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
    def awaited(self) -> Iterator[asyncio.Event]:
        """Instead of raising, set an event of the running loop."""
        event, loop = asyncio.Event(), asyncio.get_running_loop()

        def tell(number: int, frame: FrameType | None) -> None:
            self.stopping = True
            loop.call_soon_threadsafe(event.set)

        for number in self.NUMBERS:
            signal.signal(number, tell)
        try:
            yield event
        finally:
            self.install()


@contextlib.contextmanager
def database(settings: Settings, signals: Signals) -> Iterator[str]:
    """Lend the address of the configured database, or else of the embedded one, running."""
    if settings.database_url is not None:
        yield psycopg_dsn(settings.database_url)
        return
    server = EmbeddedPostgres(settings.ensure_data_dir())
    try:
        # Interrupted half-way, it would leave a server behind.
        with signals.held_back():
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
            if migrate:
                prepare(settings, dsn)
            else:
                _look_at(settings, dsn)
            os.environ.update(_for_processes(options, settings, dsn))
            failed = run_server(settings, sockets, signals)
    except KeyboardInterrupt:
        failed = False
    log.info("stopped")
    if failed:
        raise click.exceptions.Exit(1)


@main.command(epilog=_example("spendgate worker --database-url postgresql://db.internal/spendgate"))
@_settings()
def worker(**options: str | None) -> None:
    """Run the reaper, the alerts and the jobs alone, without serving.

    For installations whose serving processes have SPENDGATE_WORKER=false. Any number may run.
    """
    settings = _read_settings(options)
    signals = Signals()
    signals.install()
    try:
        with database(settings, signals) as dsn:
            _look_at(settings, dsn)
            asyncio.run(_work(settings, dsn, signals))
    except KeyboardInterrupt:
        pass
    log.info("stopped")


async def _work(settings: Settings, dsn: str, signals: Signals) -> None:
    from app.main import Gateway

    gateway = Gateway(settings, dsn)
    with signals.awaited() as stop:
        await gateway.pool.open()
        await gateway.ledger.start()
        await gateway.worker.start()
        await gateway.delivery.start()
        log.info("working", reaper_period_s=settings.reaper_period_s)
        await stop.wait()
        await gateway.stop()


@main.command(
    epilog=_example("spendgate migrate --database-url postgresql://db.internal/spendgate")
)
@_settings("DATABASE_URL", "DATA_DIR")
def migrate(**options: str | None) -> None:
    """Bring the database to the schema of this version.

    "serve" does so by itself; run it apart from that where the serving processes may not change
    the schema (serve --no-migrate), or to see how long it takes.
    """
    from app.store import migrate as migrations

    settings = _read_settings(options)
    with _opened(settings) as dsn, _revisions_shown():
        started = time.monotonic()
        before, head = migrations.current(dsn), migrations.head()
        if before == head:
            click.echo(f"The database is at revision {head} already: nothing to do.")
            return
        _say(f"Migrating from {before or 'an empty database'} to revision {head} …")
        migrations.upgrade(dsn, progress=_say)
        click.echo(f"The database is at revision {head} ({time.monotonic() - started:.1f} s).")


@contextlib.contextmanager
def _revisions_shown() -> Iterator[None]:
    """Print what Alembic tells of each step."""

    class Steps(logging.Handler):
        def emit(self, entry: logging.LogRecord) -> None:
            if entry.getMessage().startswith("Running"):
                _say(f"  {entry.getMessage()}")

    steps, library = Steps(), logging.getLogger("alembic.runtime.migration")
    library.addHandler(steps)
    library.setLevel(logging.INFO)
    library.propagate = False
    try:
        yield
    finally:
        library.removeHandler(steps)


@main.command(
    epilog=_example(
        "spendgate create-admin --email ada@example.org --name 'Ada Lovelace'",
        "spendgate create-admin --email ada@example.org < password.txt",
    )
)
@click.option("--email", required=True, metavar="E", help="Whom; how they sign in.")
@click.option("--name", metavar="N", help="How they are shown.")
@_settings("DATABASE_URL", "DATA_DIR")
def create_admin(email: str, name: str | None, **options: str | None) -> None:
    """Create an administrator, or give one a new password.

    The password is read from the standard input: its first line, or a prompt at a terminal. A
    member of that address is made an active administrator.
    """
    from app.control import wire
    from app.store import admin

    settings = _read_settings(options)
    with _checked():
        email = wire.email(email)
        name = None if name is None else wire.text("name", name)
        password = wire.password(_read_password())
    done = _in_transaction(
        settings,
        lambda connection, at: admin.put_admin(
            connection, email=email, name=name, password_hash=_hashed(password), at=at
        ),
    )
    click.echo(
        {
            "created": f"{email} is an administrator now.",
            "promoted": f"The member {email} is an administrator now, with the new password.",
            "updated": f"The administrator {email} has the new password now.",
        }[done]
    )


def _read_password() -> str:
    if sys.stdin.isatty():
        prompted: str = click.prompt(
            "Password", hide_input=True, confirmation_prompt=True, err=True
        )
        return prompted
    try:
        given = sys.stdin.readline().rstrip("\r\n")
        # Where the locale has bytes that are no text pass, no hash can be made of them.
        given.encode()
    except UnicodeError:
        raise click.ClickException("the password is not UTF-8 text") from None
    return given


def _hashed(password: str) -> str:
    from argon2 import PasswordHasher

    return PasswordHasher().hash(password)


@main.command(epilog=_example("TOKEN=$(spendgate create-admin-token --name terraform)"))
@click.option("--name", required=True, metavar="N", help="What it is for; shown in the audit log.")
@_settings("DATABASE_URL", "DATA_DIR", "SECRET_KEY")
def create_admin_token(name: str, **options: str | None) -> None:
    """Create a token for the control API, and print it.

    It is shown this once, alone on the standard output, and opens everything that an
    administrator may do: "Authorization: Bearer <token>".
    """
    from app.control import wire
    from app.store import admin
    from app.store.vault import Vault, new_admin_token

    settings = _read_settings(options)
    with _checked():
        name = wire.text("name", name)
    vault, token = Vault(settings.secret_key()), new_admin_token()
    _in_transaction(
        settings,
        lambda connection, at: admin.add_admin_token(
            connection, name=name, digest=vault.digest(token), at=at
        ),
        vault=vault,
    )
    click.echo(token)


@main.command(
    epilog=_example(
        "spendgate import-prices prices.csv --dry-run",
        "",
        "prices.csv:",
        "  model,unit,usd,per,effective_from",
        "  gpt-4o-mini,input_token,0.15,1000000,2026-01-01T00:00:00Z",
        "  gpt-4o-mini,output_token,0.60,1000000,2026-01-01T00:00:00Z",
        "",
        "The same as prices.json:",
        '  [{"model": "gpt-4o-mini", "effective_from": "2026-01-01T00:00:00Z",',
        '    "rates": [{"unit": "input_token", "usd": "0.15", "per": 1000000},',
        '              {"unit": "output_token", "usd": "0.60", "per": 1000000}]}]',
    )
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--dry-run", is_flag=True, help="Check and show everything, change nothing.")
@_settings("DATABASE_URL", "DATA_DIR")
def import_prices(file: Path, dry_run: bool, **options: str | None) -> None:
    """Add price versions from a JSON or CSV file: all of them or, if one is wrong, none.

    Without effective_from a price is in force from now on. A date is its midnight in the billing
    time zone. Versions that are there already are skipped, so a file can be imported again.
    """
    from app.store import admin

    settings = _read_settings(options)
    versions, places = read_prices(file, ZoneInfo(settings.billing_timezone))

    async def work(connection: Connection, at: datetime) -> list[bool]:
        added = await admin.add_prices(connection, versions, at)
        if dry_run:
            raise _DryRun(added)
        return added

    try:
        added = _in_transaction(settings, work)
    except admin.PriceClash as clash:
        raise click.ClickException(f"{file}, {places[clash.index]}: {clash}") from None
    except _DryRun as done:
        added = done.added
    for version, new in zip(versions, added, strict=True):
        rates = ", ".join(f"{r.unit} {r.usd}/{r.per}" for r in version.rates)
        since = "now" if version.effective_from is None else version.effective_from.isoformat()
        click.echo(f"{'added  ' if new else 'skipped'}  {version.model} from {since}: {rates}")
    would = "would be " if dry_run else ""
    click.echo(f"{sum(added)} versions {would}added, {added.count(False)} there already.")


class _DryRun(Exception):
    """Rolls the transaction back, with what it would have done."""

    def __init__(self, added: list[bool]) -> None:
        super().__init__("dry run")
        self.added = added


@main.command(epilog=_example("spendgate reconcile --at-rest || echo 'the books do not add up'"))
@click.option("--at-rest", is_flag=True, help="Nothing is in flight, so nothing may be held.")
@_settings("DATABASE_URL", "DATA_DIR", "REAPER_PERIOD_S")
def reconcile(at_rest: bool, **options: str | None) -> None:
    """Check that the books add up, account by account and call by call.

    Prints each discrepancy. Exits with 0 if there is none, else with 1. It reads one snapshot, so
    it may run at any time, also beside a running server.
    """
    from app.store.reconcile import reconcile as check

    settings = _read_settings(options)
    with _opened(settings) as dsn:
        _check_revision(dsn)
        started = time.monotonic()
        period_s = settings.reaper_period_s
        found = asyncio.run(check(dsn, _progress, at_rest=at_rest, reaper_period_s=period_s))
    for discrepancy in found:
        click.echo(str(discrepancy))
    took = f"({time.monotonic() - started:.1f} s)"
    if found:
        click.echo(f"The books do not add up: {len(found)} discrepancies {took}.")
        raise click.exceptions.Exit(1)
    click.echo(f"The books add up {took}.")


def _progress(done: int, total: int, what: str) -> None:
    if done < total:
        _say(f"Checking {what} ({done + 1} of {total}) …")


@main.command(
    epilog=_example(
        "spendgate demo --port 8080",
        "spendgate demo --data-dir /tmp/demo --credentials /tmp/demo.json --reset",
    )
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen on; 0 is any free one.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".data/demo"),
    show_default=True,
    help="Where its database and its secrets are kept between runs.",
)
@click.option(
    "--credentials",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write address, sign-ins, token and key to this file, once it is ready to serve.",
)
@click.option("--reset", is_flag=True, help="Begin anew: delete what former runs left.")
def demo(port: int, host: str, data_dir: Path, credentials: Path | None, reset: bool) -> None:
    """Show the whole of it: sample data, a simulated provider, an embedded PostgreSQL.

    Runs in the foreground until Ctrl-C. A further run goes on with the same data. Other settings
    are taken from the environment as usual, but for those of the database, the secret and the
    number of processes: the demo has its own.
    """
    from app import demo as sample

    signals = Signals()
    signals.install()
    started = time.monotonic()
    try:
        with sample.Home(data_dir.expanduser().absolute()) as home:
            failure = _run_demo(home, port, host, credentials, reset, signals, started)
    except KeyboardInterrupt:
        failure = None
    except sample.DemoFailed as error:
        failure = str(error)
    if failure is not None:
        raise click.ClickException(failure)
    _say("Stopped.")


def _run_demo(
    home: sample.Home,
    port: int,
    host: str,
    credentials: Path | None,
    reset: bool,
    signals: Signals,
    started: float,
) -> str | None:
    """Run the demo until it is stopped; return why it failed, if it did."""
    from app import demo as sample
    from app.store.vault import Vault

    kept = {k: v for k, v in os.environ.items() if k not in sample.SETTINGS_OF_ITS_OWN}
    given = {"HOST": host, "PORT": str(port), "DATA_DIR": str(home.directory), "WORKERS": "1"}
    quiet = {"SPENDGATE_LOG_LEVEL": "warning", "SPENDGATE_LOG_FORMAT": "console"}
    environ = {**quiet, **kept, **{f"SPENDGATE_{name}": text for name, text in given.items()}}
    settings = Settings.from_env(environ)
    configure_log(settings.log_level, settings.log_format)
    if credentials is not None:
        # That it is there says that the demo is ready.
        credentials.unlink(missing_ok=True)
    with listening(settings) as sockets, contextlib.ExitStack() as stack:
        if reset:
            _say("Deleting what former runs left …")
            home.reset()
        home.recall()
        _say(f"Starting the embedded PostgreSQL in {home.directory} …")
        dsn = stack.enter_context(database(settings, signals))
        prepare(settings, dsn)
        asyncio.run(home.enter(dsn, Vault(settings.secret_key())))
        provider = stack.enter_context(home.provider())
        for name in sample.SETTINGS_OF_ITS_OWN:
            os.environ.pop(name, None)
        os.environ.update({**environ, "SPENDGATE_DATABASE_URL": dsn})
        failures: list[Exception] = []
        url = address_of(sockets)

        def set_the_scene(stop: Callable[[], None]) -> None:
            try:
                scene = sample.Scene(home, url, provider.base_url, _say)
                access = scene.set()
                card = sample.card(access, scene.standings(), home.directory)
                if credentials is not None:
                    sample.write_secret(credentials, access)
                click.echo(card)
                _say(f"Ready after {time.monotonic() - started:.1f} s.")
            except Exception as error:
                # Once the server is stopping it is no wonder that it does not answer.
                if not signals.stopping:
                    failures.append(error)
                    stop()

        def on_ready(stop: Callable[[], None]) -> None:
            threading.Thread(target=set_the_scene, args=[stop], name="scene", daemon=True).start()

        _say("Starting the server …")
        if run_server(settings, sockets, signals, on_ready):
            return "the server did not start; the reason is above"
        if failures and not isinstance(failures[0], OSError | sample.DemoFailed):
            raise failures[0]
        return str(failures[0]) if failures else None


# ---------------------------------------------------------------------------------- price files


class _RateRow(msgspec.Struct, forbid_unknown_fields=True):
    unit: str
    usd: Decimal
    per: int = 1


class _PriceRow(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    rates: list[_RateRow]
    effective_from: str | None = None


def read_prices(file: Path, zone: ZoneInfo) -> tuple[list[PriceVersion], list[str]]:
    """Read a file of prices: the versions in it, and where in the file each is."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise click.ClickException(f"{file} is not UTF-8 text") from None
    rows = _csv_rows if file.suffix.lower() == ".csv" else _json_rows
    versions, places = [], []
    problems = []
    try:
        for place, row in rows(text):
            try:
                versions.append(_version(row, zone))
                places.append(place)
            except ValueError as error:
                problems.append(f"{place}: {error}")
    except csv.Error as error:
        problems.append(f"as CSV: {error}")
    except ValueError as error:
        problems.append(str(error))
    if problems:
        raise click.ClickException("\n".join(f"{file}, {problem}" for problem in problems))
    if not versions:
        raise click.ClickException(f"{file} has no prices in it")
    return versions, places


def _json_rows(text: str) -> Iterator[tuple[str, _PriceRow]]:
    try:
        items = msgspec.json.decode(text, type=list[msgspec.Raw])
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"as JSON: {error}; it must be a list of prices") from None
    for number, item in enumerate(items, 1):
        try:
            yield f"item {number}", written.decode(item, _PriceRow)
        except msgspec.DecodeError as error:
            raise ValueError(f"item {number}: {error}") from None


def _csv_rows(text: str) -> Iterator[tuple[str, _PriceRow]]:
    """Rows of one model and one instant are the rates of one version."""
    reader = csv.DictReader(io.StringIO(text, newline=""))
    columns = {"model", "unit", "usd", "per", "effective_from"}
    given = {name.strip() for name in reader.fieldnames or ()}
    if not {"model", "unit", "usd"} <= given <= columns:
        raise ValueError(f"line 1: the columns must be {', '.join(sorted(columns))}")
    found: dict[tuple[str, str], tuple[str, _PriceRow]] = {}
    for cells in reader:
        line = f"line {reader.line_num}"
        if None in cells or None in cells.values():
            raise ValueError(f"{line}: it has not as many cells as line 1")
        row = {name.strip(): cell.strip() for name, cell in cells.items()}
        try:
            if not all(map(written.is_number, (row["usd"], row.get("per") or "1"))):
                raise ValueError
            rate = _RateRow(row["unit"], Decimal(row["usd"]), int(row.get("per") or 1))
        except (InvalidOperation, ValueError):
            raise ValueError(f"{line}: usd and per must be numbers") from None
        since = row.get("effective_from") or None
        place = found.setdefault(
            (row["model"], since or ""), (line, _PriceRow(row["model"], [], since))
        )
        place[1].rates.append(rate)
    yield from found.values()


def _version(row: _PriceRow, zone: ZoneInfo) -> PriceVersion:
    from app.store.admin import PriceVersion

    rates = [Rate(rate.unit, rate.usd, rate.per) for rate in row.rates]
    try:
        check_rates(rates, UNITS)
    except InvalidRates as error:
        raise ValueError(f"{row.model}: {error}") from None
    rates = [Rate(r.unit, Decimal(format(r.usd.normalize(), "f")), r.per) for r in rates]
    since = None if row.effective_from is None else _instant(row.effective_from, zone)
    return PriceVersion(row.model, since, rates)


def _instant(text: str, zone: ZoneInfo) -> datetime:
    """Read an instant, or a date as its midnight."""
    try:
        if len(text) == len("2026-01-01"):
            at = datetime.combine(date.fromisoformat(text), time_of_day(), zone)
        else:
            at = datetime.fromisoformat(text)
        if at.tzinfo is not None and 2000 <= at.year < 2200:
            return at.astimezone(UTC)
    except ValueError:
        pass
    raise ValueError(
        f"effective_from must be a date or an instant such as 2026-01-31T00:00:00Z, not {text!r}"
    )


# ------------------------------------------------------------------------------- one-off changes


@contextlib.contextmanager
def _opened(settings: Settings) -> Iterator[str]:
    """Lend a database to a command that ends by itself."""
    signals = Signals()
    signals.install()
    with database(settings, signals) as dsn:
        yield dsn


def _check_revision(dsn: str) -> None:
    from app.store import migrate as migrations

    at, head = migrations.current(dsn), migrations.head()
    if at != head:
        raise click.ClickException(
            f"the database is at revision {at or 'none'}, and this version of Spendgate needs "
            f"{head}. Run: spendgate migrate"
        )


@contextlib.contextmanager
def _checked() -> Iterator[None]:
    """What the control API would refuse, the command line refuses in the same words."""
    from app.control.errors import Refused

    try:
        yield
    except Refused as refused:
        raise click.ClickException(refused.detail) from None


def _in_transaction(
    settings: Settings,
    work: Callable[[Connection, datetime], Awaitable[T]],
    *,
    vault: Vault | None = None,
) -> T:
    """Run a change on the database, which is made ready if it is our own."""
    from app.store import migrate as migrations
    from app.store.database import Database

    async def run(dsn: str) -> T:
        books = Database(dsn, pool_size=1)
        try:
            return await books.transaction(lambda connection: work(connection, datetime.now(UTC)))
        finally:
            await books.close()

    with _opened(settings) as dsn:
        if settings.database_url is None:
            migrations.upgrade(dsn, progress=_say)
        else:
            _check_revision(dsn)
        if vault is not None:
            _claim(dsn, vault)
        return asyncio.run(run(dsn))


# -------------------------------------------------------------------------------------- serving


def prepare(settings: Settings, dsn: str) -> None:
    """Have a database ready for this version, and be sure that it goes with our secret."""
    from app.store import migrate as migrations
    from app.store.vault import Vault

    before = migrations.current(dsn)
    migrations.upgrade(dsn, progress=lambda line: log.info("migrating", message=line))
    if before != (after := migrations.head()):
        log.info("migrated", before=before, after=after)
    _claim(dsn, Vault(settings.secret_key()))


def _look_at(settings: Settings, dsn: str) -> None:
    """Refuse a database that cannot be ours; one that is away may come later."""
    from sqlalchemy.exc import OperationalError

    from app.store import migrate as migrations
    from app.store.vault import Vault

    try:
        # A newer revision is all right: that is how one replica after the other is upgraded.
        if migrations.current(dsn) is None:
            _check_revision(dsn)
    except OperationalError:
        log.warning("database_away")
    else:
        _claim(dsn, Vault(settings.secret_key()))


def _claim(dsn: str, vault: Vault) -> None:
    from app.store import admin

    if not admin.claim(dsn, vault.fingerprint):
        raise WrongSecret(
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
    """Take the port before anything slow is done; who calls waits until :func:`run_server`."""
    with contextlib.ExitStack() as stack:
        try:
            sockets = _bind(settings.host, settings.port, stack)
        except OSError as error:
            raise click.ClickException(
                f"cannot listen on {settings.host}, port {settings.port}: {_reason(error)}. "
                f"Choose another with --port or --host (SPENDGATE_PORT, SPENDGATE_HOST)"
            ) from None
        yield sockets


def _reason(error: OSError) -> str:
    # Errors of names have numbers of their own, below zero.
    known = error.errno is not None and error.errno > 0
    said = os.strerror(error.errno or 0) if known else error.strerror or str(error)
    return said[0].lower() + said[1:]


def _bind(host: str, port: int, stack: contextlib.ExitStack) -> list[socket.socket]:
    sockets = []
    # A name such as localhost may stand for several addresses.
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, _, _, _, address in dict.fromkeys(found):
        # Naming the protocol makes asyncio turn Nagle's algorithm off.
        sock = stack.enter_context(socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address[0], port, *address[2:]))
        # Of two that are bound to one port only one can listen, so this tells who is late.
        sock.listen(BACKLOG)
        # Port 0 is any free one, but the same on every address.
        port = sock.getsockname()[1]
        sockets.append(sock)
    return sockets


def address_of(sockets: list[socket.socket]) -> str:
    """The address that a person on this machine would open."""
    host, port = sockets[0].getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run_server(
    settings: Settings,
    sockets: list[socket.socket],
    signals: Signals,
    on_ready: Callable[[Callable[[], None]], None] | None = None,
) -> bool:
    """Serve until told to stop; return whether it failed to start.

    ``on_ready`` is called once the server answers, with what stops it.
    """
    config = uvicorn.Config(
        "app.cli:application",
        factory=True,
        workers=settings.workers,
        loop="uvloop",
        http="app.protocol:Connection",
        ws="websockets-sansio",
        # Audio does not compress, and deflating it costs a core.
        ws_per_message_deflate=False,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        # Who calls is known by the key; what a client says of its address is never believed.
        proxy_headers=False,
        backlog=BACKLOG,
        # Longer than the minute for which load balancers and SDKs keep a connection in store:
        # who closes first must not be us, or a request may be on its way.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=DRAIN_S,
    )
    if settings.workers > 1:
        return _run_processes(config, sockets, signals)
    server = _Server(config, signals, on_ready, address_of(sockets))
    try:
        server.run(sockets=sockets)
    except SystemExit:
        # How uvicorn reports that the application did not start; why is in the log.
        return True
    return not server.started


class _Server(uvicorn.Server):
    """uvicorn's server in a process that has more to do once it has stopped."""

    def __init__(
        self,
        config: uvicorn.Config,
        signals: Signals,
        on_ready: Callable[[Callable[[], None]], None] | None,
        address: str,
    ) -> None:
        super().__init__(config)
        self._signals = signals
        self._on_ready = on_ready
        self._address = address

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            log.info("serving", address=self._address)
            if self._on_ready is not None:
                self._on_ready(self.stop)

    def stop(self) -> None:
        """Ask the server to stop, from whatever thread."""
        self._signals.stopping = True
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            # Impatience: what is in flight is broken off, and booked as far as it is known. Leaving
            # at once, as uvicorn would, leaves all of it to the reaper.
            for task in list(self.server_state.tasks):
                task.cancel()
        self.stop()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn's own would raise the signal once more when the server has stopped, which ends
        # the process before the database is stopped.
        before = {number: signal.signal(number, self.handle_exit) for number in Signals.NUMBERS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Processes(Multiprocess):
    """uvicorn's supervisor, remembering whether it gave up because no process would start."""

    def run(self) -> None:
        super().run()
        for number in Signals.NUMBERS:
            signal.signal(number, signal.SIG_IGN)

    def keep_subprocess_alive(self) -> None:
        from prometheus_client.multiprocess import mark_process_dead

        before = {process.pid for process in self.processes}
        super().keep_subprocess_alive()
        for gone in before - {process.pid for process in self.processes}:
            # What it counted stays counted; what it was at the time is no more.
            mark_process_dead(gone)  # type: ignore[no-untyped-call]

    @property
    def failed(self) -> bool:
        return any(process.exitcode == STARTUP_FAILURE for process in self.processes)


def _run_processes(config: uvicorn.Config, sockets: list[socket.socket], signals: Signals) -> bool:
    # Each process counts for itself; files are how /metrics adds the counts of all of them up.
    counts = tempfile.mkdtemp(prefix="spendgate-metrics-")
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = counts
    try:
        log.info("listening", address=address_of(sockets), processes=config.workers)
        processes = _Processes(config, sockets)
        processes.run()
        signals.stopping = True
        return processes.failed
    finally:
        shutil.rmtree(counts, ignore_errors=True)


def application() -> Front:
    """Make the application of one serving process, from the environment."""
    settings = Settings.from_env()
    configure_log(settings.log_level, settings.log_format)
    _stop_with_parent()
    from app.main import from_environment

    return from_environment()


def _stop_with_parent() -> None:
    """In a process of a supervisor: do not outlive it, or the port stays taken."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


if __name__ == "__main__":
    main(prog_name="spendgate")
