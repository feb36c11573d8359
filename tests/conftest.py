"""What every test may ask for: a PostgreSQL server, and a database of its own on it.

Each xdist worker has one embedded server, in a directory that goes away with it. A test's database
is copied from a template that was migrated once, so a test starts from a clean, current schema and
may do to it what it likes; see tests/README.md.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import psycopg
import pytest
from psycopg import sql

from app.store import migrate
from app.store.postgres import EmbeddedPostgres

TEMPLATE = "spendgate_template"

# A slow machine must not fail a property, and a failure must tell how to see it again.
hypothesis.settings.register_profile("spendgate", deadline=None, print_blob=True)
hypothesis.settings.load_profile("spendgate")


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """The server of this worker. Do not stop or kill it: other tests use it.

    Without fsync, which only the loss of the whole machine would tell from a real one and which
    makes a fresh database cost a fifth. A test that kills servers starts an ``EmbeddedPostgres`` of
    its own, in its ``tmp_path``.
    """
    data_dir = Path(tempfile.mkdtemp(prefix="spendgate-test-"))
    server = EmbeddedPostgres(data_dir, {"fsync": "off"})
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(data_dir)


@pytest.fixture(scope="session")
def template(postgres: EmbeddedPostgres) -> str:
    """The name of a database migrated to head, which nobody connects to."""
    _create(postgres, TEMPLATE, source="template0")
    migrate.upgrade(postgres.dsn_of(TEMPLATE))
    return TEMPLATE


@pytest.fixture
def database_url(postgres: EmbeddedPostgres, template: str) -> Iterator[str]:
    """A database of the test's own, migrated to head, as ``postgresql://…``."""
    yield from _database(postgres, template)


@pytest.fixture
def empty_database_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """A database of the test's own with nothing in it, as ``postgresql://…``."""
    yield from _database(postgres, "template0")


def _database(server: EmbeddedPostgres, source: str) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex}"
    _create(server, name, source)
    yield server.dsn_of(name)
    # Forced, since a test that failed may have left connections behind.
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def _create(server: EmbeddedPostgres, name: str, source: str) -> None:
    # For a database this small, copying files is quicker than logging their pages.
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy")
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute(statement.format(sql.Identifier(name), sql.Identifier(source)))
