"""The state machine on PostgreSQL, through the real group-commit loop."""

from pathlib import Path

import pytest
from hypothesis.stateful import run_state_machine_as_test

from tests.ledger.machine import SHRINKING_S, SOAK, bounded
from tests.ledger.postgres_system import PostgresMachine, PostgresSystem


@pytest.mark.timeout(0 if SOAK else SHRINKING_S)
def test_the_ledger_on_postgresql_is_the_model(database_url: str, tmp_path: Path) -> None:
    with PostgresSystem(database_url, tmp_path / "spool") as postgres:

        class OneReplica(PostgresMachine):
            system = postgres

        run_state_machine_as_test(OneReplica, settings=bounded(examples=200, steps=35))
