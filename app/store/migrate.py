"""Schema migrations: to head, back, and where a database stands.

Owns finding the migrations (beside ``app`` in a checkout, inside it in an installed wheel) and
running them one process at a time. Does not own their content, which is in ``alembic/``.

Invariants: whoever migrates holds an advisory lock on the database, so any number of replicas may
start at once, on any number of machines: one migrates, the others wait and then find nothing to
do. The lock belongs to the connection that migrates, so it cannot outlive it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

import app
from app.settings import sqlalchemy_url

# "spendgat" in ASCII: the one advisory lock of ours that is about the schema.
LOCK_ID: Final = 0x7370656E64676174
LOCK_TIMEOUT_S: Final = 600.0


class MigrationLocked(RuntimeError):
    """Another process has been migrating this database for longer than is believable."""


def script_location() -> Path:
    """The folder with the migrations."""
    package = Path(app.__file__).parent
    for folder in (package / "_alembic", package.parent / "alembic"):
        if (folder / "env.py").is_file():
            return folder
    raise FileNotFoundError(f"no migrations beside {package}, nor in it: reinstall Spendgate")


def head() -> str:
    """The newest revision that this version knows."""
    found = ScriptDirectory.from_config(_config()).get_current_head()
    if found is None:
        raise LookupError(f"no migrations in {script_location()}")
    return found


def current(dsn: str) -> str | None:
    """The revision that a database is at; None where there is nothing of ours yet."""
    with _connection(dsn) as connection:
        return MigrationContext.configure(connection).get_current_revision()


def upgrade(
    dsn: str, revision: str = "head", progress: Callable[[str], None] | None = None
) -> None:
    """Bring a database to a newer revision. Where it is there already, nothing happens.

    ``progress`` is told, in words, of a wait for another process.
    """
    with _connection(dsn) as connection, _locked(connection, progress):
        command.upgrade(_config(connection), revision)
        connection.commit()


def downgrade(dsn: str, revision: str, progress: Callable[[str], None] | None = None) -> None:
    """Take a database back to an older revision; ``base`` takes everything of ours out of it."""
    with _connection(dsn) as connection, _locked(connection, progress):
        command.downgrade(_config(connection), revision)
        connection.commit()


def _config(connection: sqlalchemy.Connection | None = None) -> Config:
    config = Config()
    # ConfigParser reads a % as the start of a reference.
    config.set_main_option("script_location", str(script_location()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


@contextlib.contextmanager
def _connection(dsn: str) -> Iterator[sqlalchemy.Connection]:
    engine = sqlalchemy.create_engine(sqlalchemy_url(dsn), poolclass=sqlalchemy.NullPool)
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


@contextlib.contextmanager
def _locked(
    connection: sqlalchemy.Connection, progress: Callable[[str], None] | None
) -> Iterator[None]:
    # Asked for again and again rather than waited for: a statement that waits holds a snapshot,
    # and a CREATE INDEX CONCURRENTLY of whoever has the lock would wait for that in turn.
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    waited = False
    while not _ask(connection, "SELECT pg_try_advisory_lock(:id)"):
        if time.monotonic() > deadline:
            raise MigrationLocked(
                f"another process has held the migration lock for {LOCK_TIMEOUT_S:g} s"
            )
        if progress is not None and not waited:
            progress("another process is migrating this database; waiting for it")
        waited = True
        time.sleep(0.1)
    yield
    # Not after a failure: there may be nothing left to unlock with, and the lock ends with the
    # connection anyway.
    _ask(connection, "SELECT pg_advisory_unlock(:id)")


def _ask(connection: sqlalchemy.Connection, question: str) -> bool:
    answer = connection.execute(sqlalchemy.text(question), {"id": LOCK_ID}).scalar_one()
    connection.commit()
    return bool(answer)
