"""Writes are serial and whole, and a database that is away is a clear answer."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest
from sqlalchemy import select, text, types
from sqlalchemy.exc import DBAPIError

from app.settings import sqlalchemy_url
from app.store import schema
from app.store.database import Database, DatabaseUnavailable


async def test_every_column_that_statements_name_is_the_databases(plane: Any) -> None:
    kinds = {
        types.BigInteger: "bigint",
        types.Integer: "integer",
        types.Boolean: "boolean",
        types.Text: "text",
        types.DateTime: "timestamp with time zone",
        types.LargeBinary: "bytea",
    }
    rows = plane.sql(
        "SELECT table_name, column_name, data_type FROM information_schema.columns"
        " WHERE table_schema = 'public'"
    )
    real = {(table, column): kind for table, column, kind in rows}
    for table in schema.metadata.sorted_tables:
        for column in table.columns:
            named = type(column.type).__name__.lower()
            expected = kinds.get(type(column.type), named)
            assert real[table.name, column.name].lower() == expected, f"{table.name}.{column.name}"


async def test_writes_wait_for_each_other(plane: Any) -> None:
    database, inside = plane.deps.database, 0

    async def work(connection: Any) -> None:
        nonlocal inside
        inside += 1
        assert inside == 1
        await connection.execute(text("SELECT pg_sleep(0.01)"))
        inside -= 1

    await asyncio.gather(*(database.transaction(work) for _ in range(8)))


@pytest.mark.parametrize(("sqlstate", "tries"), [("40P01", 2), ("40001", 2), ("55P03", 1)])
async def test_a_write_that_lost_a_race_is_tried_once_more(
    plane: Any, sqlstate: str, tries: int
) -> None:
    tried = 0

    async def work(connection: Any) -> str:
        nonlocal tried
        tried += 1
        await connection.execute(text("UPDATE admin_tokens SET name = name || 'x'"))
        if tried == 1:
            raised = f"DO $$ BEGIN RAISE EXCEPTION 'lost' USING ERRCODE = '{sqlstate}'; END $$"
            await connection.execute(text(raised))
        return "written"

    try:
        assert await plane.deps.database.transaction(work) == "written"
    except (DatabaseUnavailable, DBAPIError):
        assert tries == 1
    assert tried == tries
    assert plane.sql("SELECT name FROM admin_tokens") == [("opsx" if tries == 2 else "ops",)]


async def test_a_database_that_is_away_is_a_503_and_changes_nothing(plane: Any) -> None:
    tenant = await plane.tenant("m1")
    away = Database("postgresql://nobody@127.0.0.1:1/nothing")
    object.__setattr__(plane.deps, "database", away)
    for method, path in (
        ("GET", "/admin/members"),
        ("POST", "/admin/members"),
        ("GET", "/admin/usage.csv"),
    ):
        body = {"email": "a@b.org"} if method == "POST" else None
        answer = await plane.call(method, path, body)
        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/problem+json"
    answer = await plane.call("GET", "/me/calls", bearer=tenant.secret)
    assert answer.status_code == 503
    await away.close()


async def test_a_connection_that_died_meanwhile_is_replaced(plane: Any) -> None:
    await plane.ok("GET", "/admin/members")
    plane.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE pid <> pg_backend_pid() AND datname = current_database()"
    )
    await plane.ok("GET", "/admin/members")
    await plane.ok("POST", "/admin/members", {"email": "a@b.org"})


async def test_a_write_that_waits_too_long_is_given_up_cleanly(plane: Any) -> None:
    tenant = await plane.tenant("m1")
    with psycopg.connect(plane.url) as blocker:
        blocker.execute("SELECT * FROM installation FOR UPDATE")
        path = f"/admin/allocations/{tenant.allocation['id']}"
        answer = await plane.call("PATCH", path, {"name": "x"})
        assert answer.status_code == 503
    assert (await plane.ok("PATCH", path, {"name": "x"}))["name"] == "x"


async def test_numbers_in_json_come_back_exact_and_times_in_utc(database_url: str) -> None:
    database = Database(sqlalchemy_url(database_url))
    async with database.snapshot() as connection:
        statement = select(text("'{\"second\": 0.1234567890123456789}'::jsonb"), text("now()"))
        row = (await connection.execute(statement)).one()
    assert str(row[0]["second"]) == "0.1234567890123456789"
    assert row[1].utcoffset().total_seconds() == 0
    await database.close()
