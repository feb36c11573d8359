"""How PostgreSQL runs the ledger's statements: by id, however large or small a table just is."""

import re
from collections.abc import Iterator

import psycopg
import pytest

from app.store import batch, beliefs, ledger
from app.store.ledger import OPTIONS

STATEMENTS = {
    name: sql
    for room in (batch, beliefs, ledger)
    for name, sql in vars(room).items()
    if isinstance(sql, bytes) and re.search(rb"SELECT|INSERT|UPDATE|DELETE", sql)
}


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True, options=OPTIONS) as connection:
        # An empty table is read as a whole in no time: if only it stayed empty.
        connection.execute("VACUUM (ANALYZE) holds, accounts, limits, calls, keys, alert_rules")
        yield connection


def plan_of(connection: psycopg.Connection, statement: bytes) -> str:
    result = connection.pgconn.exec_(b"EXPLAIN (GENERIC_PLAN) " + statement)
    assert not result.error_message, result.error_message
    return "\n".join((result.get_value(row, 0) or b"").decode() for row in range(result.ntuples))


def test_there_are_statements_to_look_at() -> None:
    assert {"LOCK_SQL", "WRITE_ACCOUNTS", "WRITE_CALLS", "REFRESH_HOLDS"} <= STATEMENTS.keys()


@pytest.mark.parametrize("name", sorted(STATEMENTS))
def test_no_statement_of_the_ledger_reads_a_whole_table(
    connection: psycopg.Connection, name: str
) -> None:
    plan = plan_of(connection, STATEMENTS[name])
    # The installation is one row.
    assert set(re.findall(r"Seq Scan on (\w+)", plan)) <= {"installation"}, plan
    # Nor are the rows that are handed in, of which there may be many, compared with as many others.
    assert "Function Scan" not in plan or "Join Filter" not in plan, plan
    # An index that is read from end to end is no better.
    assert len(re.findall(r"Index (?:Only )?Scan", plan)) == plan.count("Index Cond"), plan


def test_accounts_are_written_in_the_order_in_which_everyone_locks_them(
    connection: psycopg.Connection,
) -> None:
    plan = plan_of(connection, beliefs.WRITE_ACCOUNTS)
    # It begins with what it is given, and that is in the order of the ids.
    assert re.search(r"Nested Loop.*\n\s*-> +Function Scan on v .*\n\s*-> +Index Scan", plan), plan
