"""``serve``: the life of a server, from an empty directory to a clean end."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from app.simulator import serve_in_thread
from app.store.postgres import EmbeddedPostgres
from tests.cli.processes import Process, Start, request, run

SECRET = "the secret of an installation that is a test"


def setup(url: str, token: str, provider_url: str, provider_key: str) -> str:
    """Set up one provider, model, member, allocation and key, and return the key."""

    def add(what: str, **document: Any) -> Any:
        status, made = request(f"{url}/api/admin/{what}", "POST", token, document)
        assert status == 201, made
        return made

    provider = add(
        "providers", name="p", kind="compatible", base_url=provider_url, api_key=provider_key
    )
    add("models", slug="m", provider_id=provider["id"], max_output_tokens=1000)
    rates = [{"unit": unit, "usd": "1", "per": 1000} for unit in ("input_token", "output_token")]
    add("prices", model="m", rates=rates)
    member = add("members", email="ada@example.org")
    allocation = add(
        "allocations", member_id=member["id"], models=["m"], quota_cost_usd_per_month="10"
    )
    key = add("keys", member_id=member["id"], name="k", allocation_ids=[allocation["id"]])
    return str(key["key"])


def chat(url: str, key: str, text: str, *, stream: bool = False) -> tuple[int, Any]:
    message = {"role": "user", "content": text}
    document = {"model": "m", "max_tokens": 50, "messages": [message], "stream": stream}
    return request(f"{url}/v1/chat/completions", "POST", key, document)


def admin_token(**settings: str) -> str:
    made = run("create-admin-token", "--name", "test", **settings)
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


def test_it_starts_while_its_identity_provider_is_away_and_tells_nobody_its_secret(
    start: Start, database_url: str, tmp_path: Path
) -> None:
    secret = "the secret of a client"
    server = start(
        "serve",
        "--port",
        0,
        DATABASE_URL=database_url,
        DATA_DIR=str(tmp_path),
        SECRET_KEY=SECRET,
        OIDC_ISSUER="http://127.0.0.1:9",
        OIDC_CLIENT_SECRET=secret,
        OIDC_NAME="Example",
        LOG_LEVEL="debug",
    )
    url = server.address()
    assert request(f"{url}/api/auth/oidc") == (200, {"name": "Example"})
    answer = http.client.HTTPConnection(url.removeprefix("http://"))
    answer.request("GET", "/api/auth/oidc/login?next=/keys")
    location = answer.getresponse().getheader("location") or ""
    answer.close()
    assert location.startswith("/keys#sign-in=unreachable&request-id=req_")
    assert server.stop() == 0
    assert "oidc_refused" in server.output
    assert secret not in server.output


class Call(threading.Thread):
    """A call in flight, and what became of it."""

    def __init__(self, url: str, key: str, text: str, *, stream: bool = False) -> None:
        super().__init__()
        self._arguments = (url, key, text)
        self._stream = stream
        self.answer: tuple[int, Any] | None = None
        self.start()

    def run(self) -> None:
        try:
            self.answer = chat(*self._arguments, stream=self._stream)
        except (OSError, http.client.HTTPException):
            self.answer = None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_on_an_embedded_postgresql_and_a_signal_stops_both(
    start: Start, tmp_path: Path, number: int
) -> None:
    data_dir = tmp_path / "data"
    server = start("serve", "--port", 0, DATA_DIR=str(data_dir))
    url = server.address()
    assert request(f"{url}/livez")[0] == 200
    assert EmbeddedPostgres(data_dir).postmaster_pid() is not None
    assert server.stop(number) == 0
    assert EmbeddedPostgres(data_dir).postmaster_pid() is None
    assert "Traceback" not in server.output


def test_a_signal_while_it_starts_stops_it_cleanly_too(start: Start, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    server = start("serve", "--port", 0, DATA_DIR=str(data_dir))
    server.until(lambda: (data_dir / "postgres.start.lock").exists(), "starting PostgreSQL")
    assert server.stop() == 0
    assert EmbeddedPostgres(data_dir).postmaster_pid() is None
    assert "Traceback" not in server.output


def test_calls_in_flight_are_answered_and_booked_before_it_stops(
    start: Start, tmp_path: Path
) -> None:
    settings = {"DATA_DIR": str(tmp_path / "data")}
    server = start("serve", "--port", 0, **settings)
    url = server.address()
    with serve_in_thread() as provider:
        key = setup(url, admin_token(**settings), provider.base_url, provider.api_key)
        call = Call(url, key, "[[sim latency=1.5]] hello")
        server.until(lambda: provider.calls, "calling the provider")
        assert server.stop() == 0
        call.join()
    assert call.answer is not None
    assert call.answer[0] == 200
    books = run("reconcile", "--at-rest", **settings)
    assert books.returncode == 0, books.stdout
    with EmbeddedPostgres(tmp_path / "data") as dsn, psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT outcome FROM calls").fetchall() == [("success",)]


def test_a_second_ctrl_c_breaks_a_stream_off_and_books_what_came(
    start: Start, tmp_path: Path
) -> None:
    settings = {"DATA_DIR": str(tmp_path / "data")}
    server = start("serve", "--port", 0, **settings)
    url = server.address()
    with serve_in_thread() as provider:
        key = setup(url, admin_token(**settings), provider.base_url, provider.api_key)
        call = Call(url, key, "[[sim stall=after:4]] hello", stream=True)
        server.until(lambda: any(c.events_sent == 4 for c in provider.calls), "streaming")
        server.send(signal.SIGINT)
        server.until(lambda: not _accepts(url), "closing its port")
        assert server.stop(signal.SIGINT) == 0
        call.join()
    books = run("reconcile", "--at-rest", **settings)
    assert books.returncode == 0, books.stdout
    with EmbeddedPostgres(tmp_path / "data") as dsn, psycopg.connect(dsn) as connection:
        [(tokens,)] = connection.execute("SELECT tokens FROM calls").fetchall()
    assert tokens > 0


def _accepts(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def test_a_token_made_beside_a_running_server_opens_its_control_api(
    start: Start, tmp_path: Path
) -> None:
    settings = {"DATA_DIR": str(tmp_path / "data")}
    url = start("serve", "--port", 0, **settings).address()
    made = run("create-admin-token", "--name", "terraform", **settings)
    assert made.returncode == 0
    # The token alone, so that $(…) is all a script needs.
    assert made.stdout.startswith("sga_")
    assert made.stdout == made.stdout.strip() + "\n"
    assert request(f"{url}/api/admin/members", bearer=made.stdout.strip())[0] == 200
    assert request(f"{url}/api/admin/members", bearer="sga_not")[0] == 401


def test_two_servers_share_a_database(
    start: Start, tmp_path: Path, empty_database_url: str
) -> None:
    settings = {"DATABASE_URL": empty_database_url, "SECRET_KEY": SECRET}
    # At once: both find the database empty, and one of them migrates it.
    servers = [
        start("serve", "--port", 0, DATA_DIR=str(tmp_path / name), **settings)
        for name in ("one", "two")
    ]
    urls = [server.address() for server in servers]
    token = admin_token(DATA_DIR=str(tmp_path / "one"), **settings)
    with serve_in_thread() as provider:
        key = setup(urls[0], token, provider.base_url, provider.api_key)
        assert [chat(url, key, "hello")[0] for url in urls] == [200, 200]
    assert [server.stop() for server in servers] == [0, 0]


def test_a_server_with_another_secret_is_refused_in_one_line(
    tmp_path: Path, database_url: str
) -> None:
    settings = {"DATABASE_URL": database_url, "DATA_DIR": str(tmp_path)}
    assert run("create-admin-token", "--name", "t", SECRET_KEY=SECRET, **settings).returncode == 0
    other = run("serve", "--port", 0, SECRET_KEY=SECRET.upper(), **settings)
    assert other.returncode == 1
    assert _error(other.stderr).startswith("Error: SPENDGATE_SECRET_KEY is not the secret")


def test_without_migrating_it_refuses_an_empty_database_and_another_secret(
    tmp_path: Path, empty_database_url: str
) -> None:
    settings = {"DATABASE_URL": empty_database_url, "DATA_DIR": str(tmp_path)}
    empty = run("serve", "--port", 0, "--no-migrate", **settings)
    assert empty.returncode == 1
    assert _error(empty.stderr).endswith("Run: spendgate migrate")
    assert run("migrate", **settings).returncode == 0
    assert run("create-admin-token", "--name", "t", SECRET_KEY=SECRET, **settings).returncode == 0
    other = run("serve", "--port", 0, "--no-migrate", SECRET_KEY=SECRET.upper(), **settings)
    assert other.returncode == 1
    assert _error(other.stderr).startswith("Error: SPENDGATE_SECRET_KEY is not the secret")


def test_without_migrating_it_starts_before_its_database_does(start: Start, tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / "database") as dsn:
        assert run("migrate", DATABASE_URL=dsn, DATA_DIR=str(tmp_path)).returncode == 0
    server = start(
        "serve", "--port", 0, "--no-migrate", DATABASE_URL=dsn, DATA_DIR=str(tmp_path / "data")
    )
    server.until(lambda: '"serving"' in server.output, "serving")
    with EmbeddedPostgres(tmp_path / "database"):
        server.address()
        assert server.stop() == 0


def test_a_port_in_use_is_refused_in_one_line(start: Start, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        other = run("serve", "--port", port, DATA_DIR=str(tmp_path))
    assert other.returncode == 1
    assert _error(other.stderr).startswith(f"Error: cannot listen on 127.0.0.1, port {port}: ")
    # Found out before anything else was done.
    assert not (tmp_path / "postgres").exists()


def test_settings_that_cannot_be_used_are_named_a_line_each(tmp_path: Path) -> None:
    done = run("serve", "--port", "99999", WORKERS="many", DATA_DIR=str(tmp_path))
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert "SPENDGATE_PORT" in lines[0]
    assert "SPENDGATE_WORKERS" in lines[1]


def test_a_database_that_does_not_answer_is_told_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    done = run(
        "serve",
        "--port",
        0,
        DATABASE_URL=f"postgresql://ada:password@127.0.0.1:{port}/books",
        DATA_DIR=str(tmp_path),
    )
    assert done.returncode == 1
    assert _error(done.stderr).startswith("Error: the database does not answer: ")
    assert "password@" not in done.stderr


def _error(stderr: str) -> str:
    """The one line; what comes before it are log lines, in JSON."""
    lines = [line for line in stderr.splitlines() if not line.startswith("{")]
    assert len(lines) == 1, stderr
    return lines[0]


# Several processes


def _workers(server: Process) -> list[int]:
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in _command(child)]


def _command(pid: str) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_several_processes_serve_one_port_count_together_and_stop_together(
    start: Start, tmp_path: Path
) -> None:
    settings = {"DATA_DIR": str(tmp_path / "data")}
    server = start("serve", "--port", 0, "--workers", 2, **settings)
    url = server.address()
    workers = _workers(server)
    assert len(workers) == 2
    for _ in range(20):
        assert chat(url, "sg_not_a_key", "hello")[0] == 401

    def counted() -> list[float]:
        lines = str(request(f"{url}/metrics")[1]).splitlines()
        return [float(x.split()[1]) for x in lines if x.startswith("spendgate_refused_keys_total")]

    # Whichever process answers, and however the refusals were spread over them.
    assert [counted() for _ in range(5)] == [[20.0]] * 5
    up = "spendgate_ledger_available 1.0"
    server.until(lambda: up in str(request(f"{url}/metrics")[1]), "in touch with the ledger")
    assert server.stop() == 0
    assert not any(os.path.exists(f"/proc/{pid}") for pid in workers)
    assert EmbeddedPostgres(tmp_path / "data").postmaster_pid() is None


def test_serving_processes_do_not_outlive_their_supervisor(start: Start, tmp_path: Path) -> None:
    server = start("serve", "--port", 0, "--workers", 2, DATA_DIR=str(tmp_path / "data"))
    url = server.address()
    workers = _workers(server)
    server.stop(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while any(os.path.exists(f"/proc/{pid}") for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _accepts(url)
    # PostgreSQL was left running; the next server adopts and stops it.
    again = start("serve", "--port", url.rpartition(":")[2], DATA_DIR=str(tmp_path / "data"))
    assert again.address() == url
    assert again.stop() == 0
    assert EmbeddedPostgres(tmp_path / "data").postmaster_pid() is None
