"""The embedded server: whose it is, who stops it, and what no crash can take from it.

Real servers in real processes. A "user" below is another process that uses the same data
directory; it says ``ready`` once it does, and leaves when its standard input ends.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import psycopg
import pytest

from app.store import migrate, postgres
from app.store.postgres import EmbeddedPostgres, PostgresUnavailable

USER = """
import sys
from pathlib import Path
from app.store.postgres import EmbeddedPostgres
with EmbeddedPostgres(Path(sys.argv[1])) as dsn:
    print("ready", dsn, flush=True)
    sys.stdin.read()
"""

AS_NOBODY = """
import os, sys
from pathlib import Path
import psycopg
from app.store.postgres import EmbeddedPostgres
with EmbeddedPostgres(Path(sys.argv[1])) as dsn, psycopg.connect(dsn) as connection:
    pid = EmbeddedPostgres(Path(sys.argv[1])).postmaster_pid()
    print(os.geteuid(), os.stat(f"/proc/{pid}").st_uid, connection.execute("SELECT 42").fetchone())
"""


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    """A data directory whose server, if a test leaves one running, is put down."""
    path = tmp_path / "data"
    yield path
    pid = EmbeddedPostgres(path).postmaster_pid()
    if pid is not None:
        os.kill(pid, signal.SIGQUIT)
        _gone(path)


def _gone(data_dir: Path) -> None:
    deadline = time.monotonic() + 30
    while EmbeddedPostgres(data_dir).postmaster_pid() is not None:
        assert time.monotonic() < deadline, "the server is still there"
        time.sleep(0.02)


def _user(data_dir: Path, *, wait: bool = True) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", USER, str(data_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    if wait:
        _ready(process)
    return process


def _ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline().startswith("ready postgresql:///")


def _leave(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=60)
    assert process.returncode == 0


def _write(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 'still here' AS word")


def _read(dsn: str) -> str:
    with psycopg.connect(dsn) as connection:
        row = connection.execute("SELECT word FROM kept").fetchone()
    assert row is not None
    return str(row[0])


def test_data_outlives_a_clean_stop(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir)
    with server as dsn:
        _write(dsn)
    assert server.postmaster_pid() is None
    assert "database system is shut down" in (data_dir / "postgres.log").read_text()
    with server as dsn:
        assert _read(dsn) == "still here"


def test_it_is_durable_private_and_off_the_network(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir)
    with server as dsn, psycopg.connect(dsn) as connection:
        shown = {
            name: connection.execute("SELECT current_setting(%s)", [name]).fetchone()
            for name in (
                "fsync", "synchronous_commit", "full_page_writes", "data_checksums",
                "listen_addresses", "server_encoding",
            )
        }  # fmt: skip
        assert shown == {
            "fsync": ("on",),
            "synchronous_commit": ("on",),
            "full_page_writes": ("on",),
            "data_checksums": ("on",),
            "listen_addresses": ("",),
            "server_encoding": ("UTF8",),
        }
        for path in (data_dir, server.cluster, server.socket_dir):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert connection.execute("SELECT lower('ÄÖ')").fetchone() == ("äö",)


def test_start_and_stop_may_be_repeated(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir)
    assert server.start() == server.start()
    server.stop()
    server.stop()
    assert server.postmaster_pid() is None


def test_a_second_user_neither_starts_nor_stops_the_server(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir)
    with server as dsn:
        pid = server.postmaster_pid()
        with psycopg.connect(dsn) as connection:
            _leave(_user(data_dir))
            assert server.postmaster_pid() == pid
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_the_first_user_leaves_the_server_to_the_second(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir)
    server.start()
    pid = server.postmaster_pid()
    second = _user(data_dir)
    server.stop()
    assert server.postmaster_pid() == pid
    _leave(second)
    assert server.postmaster_pid() is None


def test_users_that_start_at_once_share_one_server(data_dir: Path) -> None:
    users = [_user(data_dir, wait=False) for _ in range(4)]
    for user in users:
        _ready(user)
    assert (data_dir / "postgres.log").read_text().count("ready to accept connections") == 1
    for user in users:
        _leave(user)
    assert EmbeddedPostgres(data_dir).postmaster_pid() is None


def test_a_killed_user_leaves_its_server_for_the_next_to_adopt(data_dir: Path) -> None:
    user = _user(data_dir)
    pid = EmbeddedPostgres(data_dir).postmaster_pid()
    assert pid is not None
    user.kill()
    # Ends at once only if the server does not hold the killed process's output open.
    user.communicate(timeout=10)
    server = EmbeddedPostgres(data_dir)
    with server as dsn:
        assert server.postmaster_pid() == pid
        _write(dsn)
    assert server.postmaster_pid() is None


def test_ctrl_c_in_the_terminal_does_not_reach_the_server(data_dir: Path) -> None:
    user = _user(data_dir)
    pid = EmbeddedPostgres(data_dir).postmaster_pid()
    assert pid is not None
    assert os.getsid(pid) != os.getsid(user.pid)
    assert os.getpgid(pid) != os.getpgid(user.pid)
    _leave(user)


@pytest.mark.parametrize("how", [signal.SIGQUIT, signal.SIGKILL])
def test_what_was_committed_outlives_a_crash_of_the_server(
    data_dir: Path, how: signal.Signals
) -> None:
    server = EmbeddedPostgres(data_dir)
    _write(server.start())
    pid = server.postmaster_pid()
    assert pid is not None
    os.kill(pid, how)
    _gone(data_dir)
    # The user that saw the crash, and one that comes later, both get a server again.
    server.stop()
    with server as dsn:
        assert _read(dsn) == "still here"


def test_a_stale_pid_file_is_no_obstacle(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir)
    with server as dsn:
        _write(dsn)
    # After a reboot the number may belong to any process, of any user: here, to us.
    lines = [str(os.getpid()), str(server.cluster), "1", "5432", "/gone", "", "1 1", "ready"]
    (server.cluster / "postmaster.pid").write_text("\n".join(lines) + "\n")
    assert server.postmaster_pid() is None
    with server as dsn:
        assert _read(dsn) == "still here"


def test_a_first_start_that_was_interrupted_is_begun_again(data_dir: Path) -> None:
    half = data_dir / "postgres.init"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    with EmbeddedPostgres(data_dir) as dsn:
        _write(dsn)
    assert not half.exists()


@pytest.mark.parametrize("name", ["long/" * 20 + "data", "a path, with 'odd' signs: % \\ 中文"])
def test_any_path_will_do(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    server = EmbeddedPostgres(path)
    with server as dsn:
        _write(dsn)
        assert not server.socket_dir.is_relative_to(tmp_path)
        assert stat.S_IMODE(server.socket_dir.stat().st_mode) == 0o700
        with EmbeddedPostgres(path) as again:
            assert _read(again) == "still here"
    assert not server.socket_dir.exists()


def test_a_second_user_finds_the_socket_wherever_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "with, a comma"
    with EmbeddedPostgres(path) as dsn:
        _write(dsn)
        monkeypatch.setattr(postgres.tempfile, "gettempdir", lambda: "/elsewhere")
        with EmbeddedPostgres(path) as again:
            assert again == dsn


def test_a_socket_directory_of_someone_else_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trap").symlink_to(tmp_path)
    server = EmbeddedPostgres(tmp_path / "data")
    server.socket_dir = tmp_path / "trap"
    with pytest.raises(PostgresUnavailable, match="belongs to someone else"):
        server.start()


def test_it_runs_below_closed_directories_and_changes_no_mode_of_theirs(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    below = closed / "deeper"
    below.mkdir(mode=0o700)
    before = [(path.stat().st_mode, path.stat().st_uid) for path in (tmp_path, closed, below)]
    server = EmbeddedPostgres(below / "data")
    with server as dsn:
        _write(dsn)
        owner = Path(f"/proc/{server.postmaster_pid()}").stat().st_uid
        # As whoever starts it, but never as root.
        assert owner != 0
        assert os.geteuid() in (0, owner)
    after = [(path.stat().st_mode, path.stat().st_uid) for path in (tmp_path, closed, below)]
    assert after == before


def test_it_runs_as_the_ordinary_user_who_starts_it(tmp_path: Path) -> None:
    """Where the tests run as root, a child becomes nobody and starts it from there."""
    data_dir = tmp_path / "data"
    data_dir.mkdir(mode=0o700)
    uid = os.geteuid() or 65534
    os.chown(data_dir, uid, -1)
    # What the child may read below root's closed directories, the server's own runner knows.
    runner = postgres._Runner.choose(data_dir / "postgres", postgres.binaries(), [data_dir])
    assert runner.uid == uid
    done = subprocess.run(
        [*runner.prefix, sys.executable, "-c", AS_NOBODY, str(data_dir)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == f"{uid} {uid} (42,)", done.stderr
    # Root may use the same data afterwards, and leaves it usable for its owner.
    with EmbeddedPostgres(data_dir):
        pass
    assert {path.stat().st_uid for path in data_dir.iterdir()} == {uid}


def test_a_server_that_cannot_start_says_why(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir, {"shared_buffers": "plenty"})
    with pytest.raises(PostgresUnavailable, match="shared_buffers") as caught:
        server.start()
    assert caught.value.log_tail
    # It left nothing locked behind.
    with EmbeddedPostgres(data_dir) as dsn:
        _write(dsn)


def test_a_data_directory_that_cannot_be_one_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PostgresUnavailable, match=r"cannot use .*/file/data"):
        EmbeddedPostgres(tmp_path / "file" / "data").start()


def test_root_without_setpriv_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres.os, "geteuid", lambda: 0)
    monkeypatch.setattr(postgres.os, "fchown", lambda *_: None)
    monkeypatch.setattr(postgres.shutil, "which", lambda _: None)
    with pytest.raises(PostgresUnavailable, match=r"util-linux.*SPENDGATE_DATABASE_URL"):
        EmbeddedPostgres(tmp_path / "data").start()


def test_a_database_per_test_is_migrated_and_empty(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)


def test_migrations_go_from_nothing_to_head_and_back(empty_database_url: str) -> None:
    assert migrate.current(empty_database_url) is None
    migrate.upgrade(empty_database_url)
    assert migrate.current(empty_database_url) == migrate.head()
    migrate.upgrade(empty_database_url)
    migrate.downgrade(empty_database_url, "base")
    assert migrate.current(empty_database_url) is None
    with psycopg.connect(empty_database_url) as connection:
        left = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
            " AND relkind IN ('r', 'p', 'S', 'v', 'm') AND relname <> 'alembic_version'"
        ).fetchall()
    assert left == []
    migrate.upgrade(empty_database_url)
    assert migrate.current(empty_database_url) == migrate.head()


def test_replicas_that_migrate_at_once_all_end_at_head(empty_database_url: str) -> None:
    with futures.ThreadPoolExecutor(4) as replicas:
        for done in [replicas.submit(migrate.upgrade, empty_database_url) for _ in range(4)]:
            done.result()
    assert migrate.current(empty_database_url) == migrate.head()


def test_who_waits_for_another_migration_is_told(empty_database_url: str) -> None:
    said: list[str] = []
    with psycopg.connect(empty_database_url) as other, futures.ThreadPoolExecutor(1) as replica:
        other.execute("SELECT pg_advisory_lock(%s)", [migrate.LOCK_ID])
        waiting = replica.submit(migrate.upgrade, empty_database_url, progress=said.append)
        while not said:
            assert not waiting.done()
            time.sleep(0.01)
        other.execute("SELECT pg_advisory_unlock(%s)", [migrate.LOCK_ID])
        waiting.result()
    assert said == ["another process is migrating this database; waiting for it"]


def test_the_address_reaches_the_server_by_socket(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir)
    with server as dsn:
        assert dsn.startswith("postgresql:///spendgate?host=/")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(server.socket_dir / ".s.PGSQL.5432"))
