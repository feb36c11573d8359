"""The commands that do one thing and end."""

from __future__ import annotations

import json
import signal
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import click
import psycopg
import pytest
from argon2 import PasswordHasher

from app.cli import read_prices
from app.ids import uuid7
from app.store.postgres import EmbeddedPostgres
from tests.cli.processes import COMMAND, PATIENCE_S, ROOT, Start, environment, run


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> dict[str, str]:
    """A database of the test's own, and a directory."""
    return {"DATABASE_URL": database_url, "DATA_DIR": str(tmp_path / "data")}


def rows(settings: dict[str, str], query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(settings["DATABASE_URL"]) as connection:
        return connection.execute(query).fetchall()  # type: ignore[arg-type]


# migrate


def test_migrate_says_what_it_does_and_the_second_time_has_nothing_to_do(
    tmp_path: Path, empty_database_url: str
) -> None:
    settings = {"DATABASE_URL": empty_database_url, "DATA_DIR": str(tmp_path)}
    first = run("migrate", **settings)
    assert first.returncode == 0
    assert "Migrating from an empty database" in first.stderr
    assert "Running upgrade  -> 0001" in first.stderr
    assert first.stdout.startswith("The database is at revision ")
    second = run("migrate", **settings)
    assert second.returncode == 0
    assert second.stdout.endswith("already: nothing to do.\n")
    assert second.stderr == ""


@pytest.mark.parametrize(
    "command", [("create-admin-token", "--name", "t"), ("reconcile",)], ids=lambda c: c[0]
)
def test_a_database_that_is_not_migrated_is_told_in_one_line(
    tmp_path: Path, empty_database_url: str, command: tuple[str, ...]
) -> None:
    done = run(*command, DATABASE_URL=empty_database_url, DATA_DIR=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("Error: the database is at revision none, ")
    assert done.stderr.endswith("Run: spendgate migrate\n")


# create-admin


def test_create_admin_takes_the_password_from_standard_input(settings: dict[str, str]) -> None:
    made = run("create-admin", "--email", "Ada@example.org", stdin="correct horse\n", **settings)
    assert (made.returncode, made.stderr) == (0, "")
    assert "correct horse" not in made.stdout
    [(role, hashed)] = rows(settings, "SELECT role, password_hash FROM members")
    assert role == "admin"
    assert PasswordHasher().verify(str(hashed), "correct horse")


def test_create_admin_gives_an_administrator_a_new_password(settings: dict[str, str]) -> None:
    for password in ("correct horse", "battery staple"):
        email = "ada@example.org" if password == "correct horse" else "ADA@example.org"
        assert run("create-admin", "--email", email, stdin=password, **settings).returncode == 0
    [(hashed,)] = rows(settings, "SELECT password_hash FROM members")
    assert PasswordHasher().verify(str(hashed), "battery staple")
    events = rows(settings, "SELECT event, actor FROM audit ORDER BY id")
    assert events == [
        ("member_created", "command line"),
        ("member_password_updated", "command line"),
    ]


def test_create_admin_makes_a_disabled_member_an_active_administrator(
    settings: dict[str, str],
) -> None:
    with psycopg.connect(settings["DATABASE_URL"]) as connection:
        connection.execute(
            "INSERT INTO members (id, email, status) VALUES (%s, 'ada@example.org', 'disabled')",
            [uuid7()],
        )
    done = run("create-admin", "--email", "ada@example.org", stdin="correct horse", **settings)
    assert done.returncode == 0
    assert rows(settings, "SELECT role, status FROM members") == [("admin", "active")]
    query = "SELECT before, after FROM audit WHERE event = 'member_updated'"
    assert rows(settings, query) == [
        ({"role": "member", "status": "disabled"}, {"role": "admin", "status": "active"})
    ]


@pytest.mark.parametrize(
    ("email", "password", "complaint"),
    [
        ("ada@example.org", "", "password must have from 8 to 1024 characters."),
        ("ada@example.org", "short", "password must have from 8 to 1024 characters."),
        ("ada", "correct horse", "email must be an address such as ada@example.org."),
    ],
)
def test_create_admin_refuses_what_the_control_api_would_refuse(
    settings: dict[str, str], email: str, password: str, complaint: str
) -> None:
    done = run("create-admin", "--email", email, stdin=password, **settings)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"Error: {complaint}\n")


# create-admin-token


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_create_admin_refuses_a_password_that_is_no_text(
    settings: dict[str, str], locale: str
) -> None:
    done = subprocess.run(
        [*COMMAND, "create-admin", "--email", "ada@example.org"],
        input=b"\xff\xfe\xfd-horse\n",
        capture_output=True,
        cwd=ROOT,
        env=environment(**settings) | {"LC_ALL": locale},
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"Error: the password is not UTF-8 text\n"


def test_create_admin_token_prints_the_token_alone_and_keeps_only_a_digest(
    settings: dict[str, str],
) -> None:
    made = run("create-admin-token", "--name", "terraform", **settings)
    assert (made.returncode, made.stderr) == (0, "")
    token = made.stdout.removesuffix("\n")
    assert token.startswith("sga_")
    assert "\n" not in token
    [(name, digest)] = rows(settings, "SELECT name, digest FROM admin_tokens")
    assert name == "terraform"
    assert token.encode() not in bytes(digest)  # type: ignore[call-overload]
    assert rows(settings, "SELECT event, after FROM audit") == [
        ("admin_token_created", {"name": "terraform"})
    ]


# import-prices

HEAD = "model,unit,usd,per,effective_from\n"


@pytest.fixture
def models(settings: dict[str, str]) -> dict[str, str]:
    with psycopg.connect(settings["DATABASE_URL"]) as connection:
        provider = uuid7()
        connection.execute(
            "INSERT INTO providers (id, name, kind, base_url) VALUES (%s, 'p', 'openai', 'http://p')",
            [provider],
        )
        for slug in ("gpt", "ocr"):
            connection.execute(
                "INSERT INTO models (slug, provider_id, upstream_model) VALUES (%s, %s, %s)",
                [slug, provider, slug],
            )
    return settings


def prices(settings: dict[str, str]) -> list[tuple[object, ...]]:
    return rows(
        settings, "SELECT model, effective_from::date::text, rates FROM prices ORDER BY model"
    )


def test_prices_come_in_from_csv_and_json_alike_and_only_once(
    models: dict[str, str], tmp_path: Path
) -> None:
    table = tmp_path / "prices.csv"
    table.write_text(
        HEAD
        + "gpt,input_token,0.15,1000000,2026-01-01T00:00:00Z\n"
        + "ocr,page,0.0020,,2026-01-01\n"
        + "gpt,output_token,.6,1000000,2026-01-01T00:00:00Z\n"
    )
    done = run("import-prices", table, **models)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("2 versions added, 0 there already.\n")
    expected = [
        (
            "gpt",
            "2026-01-01",
            [
                {"unit": "input_token", "usd": "0.15", "per": 1000000},
                {"unit": "output_token", "usd": "0.6", "per": 1000000},
            ],
        ),
        ("ocr", "2026-01-01", [{"unit": "page", "usd": "0.002", "per": 1}]),
    ]
    assert prices(models) == expected

    document = tmp_path / "prices.json"
    document.write_text(
        json.dumps(
            [
                {"model": model, "effective_from": f"{since}T00:00:00+00:00", "rates": rates}
                for model, since, rates in expected
            ]
        )
    )
    again = run("import-prices", document, **models)
    assert again.stdout.endswith("0 versions added, 2 there already.\n")
    assert prices(models) == expected


def test_without_an_instant_a_price_is_in_force_from_now_on_unless_it_is_already(
    models: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "prices.csv"
    for usd, added in (("0.002", 1), ("0.002", 0), ("0.003", 1)):
        file.write_text(f"model,unit,usd\nocr,page,{usd}\n")
        done = run("import-prices", file, **models)
        assert f"{added} versions added" in done.stdout
    assert len(prices(models)) == 2


def test_a_dry_run_shows_everything_and_changes_nothing(
    models: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "prices.csv"
    file.write_text(HEAD + "ocr,page,0.002,1,2026-01-01\n")
    done = run("import-prices", file, "--dry-run", **models)
    assert done.returncode == 0
    assert "ocr from 2026-01-01T00:00:00+00:00: page 0.002/1" in done.stdout
    assert done.stdout.endswith("1 versions would be added, 0 there already.\n")
    assert prices(models) == []


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        (
            "p.csv",
            HEAD + "ocr,page,1,1,\nocr,page,2,1,\n",
            "line 2: ocr: unit 'page' has two rates",
        ),
        ("p.csv", HEAD + "ocr,leaf,1,1,\n", "line 2: ocr: unknown unit 'leaf'"),
        ("p.csv", HEAD + "ocr,page,one,1,\n", "line 2: usd and per must be numbers"),
        ("p.csv", HEAD + "ocr,page,1_000,1,\n", "line 2: usd and per must be numbers"),
        ("p.csv", HEAD + "ocr,page,1,１０,\n", "line 2: usd and per must be numbers"),
        ("p.csv", HEAD + "ocr,page,NaN,1,\n", "line 2: ocr: usd of 'page' must be 0 or more"),
        ("p.csv", HEAD + "ocr,page,-1,1,\n", "line 2: ocr: usd of 'page' must be 0 or more"),
        ("p.csv", HEAD + "ocr,page,1\n", "line 2: it has not as many cells as line 1"),
        ("p.csv", HEAD + "ocr,page,1,1,soon\n", "line 2: effective_from must be a date or an"),
        ("p.csv", HEAD + "ocr,page,1,1,2026-01-01T00:00:00\n", "line 2: effective_from must be"),
        ("p.csv", "model,price\nocr,1\n", "line 1: the columns must be"),
        (
            "p.csv",
            HEAD + "ocr,page,1,1,0001-01-01\n",
            "line 2: effective_from must be a date or an",
        ),
        ("p.csv", HEAD + f"ocr,{'x' * 200_000},1,1,\n", "as CSV: field larger than field limit"),
        ("p.csv", HEAD, "has no prices in it"),
        ("p.json", "[" * 100_000, "as JSON: maximum recursion depth exceeded"),
        ("p.json", "{}", "as JSON: Expected `array`, got `object`; it must be a list of prices"),
        ("p.json", "[{]", "as JSON: "),
        ("p.json", '[{"model":"ocr"}]', "item 1: Object missing required field `rates`"),
        (
            "p.json",
            '[{"model":"ocr","rates":[{"unit":"page","usd":true}]}]',
            "item 1: Expected `decimal`, got `bool` - at `$.rates[0].usd`",
        ),
        (
            "p.json",
            '[{"model":"ocr","rates":[{"unit":"page","usd":"1_000"}]}]',
            "item 1: Invalid decimal string - at `$.rates[0].usd`",
        ),
        (
            "p.json",
            '[{"model":"ocr","rates":[{"unit":"page","usd":1}],"price":1}]',
            "item 1: Object contains unknown field `price`",
        ),
    ],
)
def test_what_is_wrong_in_a_file_of_prices_is_told_with_its_place(
    tmp_path: Path, name: str, text: str, complaint: str
) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(click.ClickException) as refused:
        read_prices(file, ZoneInfo("UTC"))
    assert len(refused.value.message.splitlines()) == 1
    assert complaint in refused.value.message
    assert str(file) in refused.value.message


def test_a_file_with_anything_wrong_adds_nothing_and_says_where(
    models: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "prices.csv"
    file.write_text(HEAD + "ocr,page,1,1,\nnone,page,1,1,\n")
    done = run("import-prices", file, **models)
    assert done.returncode == 1
    assert done.stderr == f"Error: {file}, line 3: there is no model 'none'; add it first\n"
    assert prices(models) == []


def test_a_date_is_its_midnight_in_the_billing_time_zone(tmp_path: Path) -> None:
    file = tmp_path / "prices.csv"
    file.write_text(HEAD + "ocr,page,1,1,2026-01-01\n")
    [version], _ = read_prices(file, ZoneInfo("Asia/Taipei"))
    assert version.effective_from == datetime(2025, 12, 31, 16, tzinfo=UTC)


def test_other_rates_from_an_instant_that_has_some_are_refused(
    models: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "prices.csv"
    for usd in (1, 2):
        file.write_text(HEAD + f"ocr,page,{usd},1,2026-01-01\ngpt,input_token,{usd},1,\n")
        done = run("import-prices", file, **models)
    assert done.returncode == 1
    assert "line 2: ocr has other rates from 2026-01-01T00:00:00+00:00 on" in done.stderr
    assert len(prices(models)) == 2


# reconcile


def test_reconcile_exits_0_when_the_books_add_up_and_shows_its_progress(
    settings: dict[str, str],
) -> None:
    done = run("reconcile", **settings)
    assert done.returncode == 0
    assert done.stdout.startswith("The books add up (")
    assert done.stderr.startswith("Checking calls_")


def test_reconcile_names_what_is_wrong_and_exits_1(settings: dict[str, str]) -> None:
    with psycopg.connect(settings["DATABASE_URL"]) as connection:
        connection.execute(
            "INSERT INTO accounts (id, owner, owner_id, window_kind, period_start, used_nano)"
            " VALUES (%s, 'allocation', %s, 'month', now(), 5)",
            [uuid7(), uuid7()],
        )
    done = run("reconcile", **settings)
    assert done.returncode == 1
    assert "I1: " in done.stdout
    assert "The books do not add up: 1 discrepancies" in done.stdout


# worker


def test_the_worker_runs_without_a_server_until_it_is_told_to_stop(
    start: Start, settings: dict[str, str]
) -> None:
    worker = start("worker", **settings)
    worker.until(lambda: '"working"' in worker.output, "working")
    assert worker.stop(signal.SIGTERM) == 0
    assert "Traceback" not in worker.output


# Without a database of one's own


def test_on_an_embedded_database_a_command_makes_it_ready_and_leaves_no_server(
    tmp_path: Path,
) -> None:
    data_dir = tmp_path / "data"
    done = run("create-admin-token", "--name", "first", DATA_DIR=str(data_dir))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("sga_")
    assert EmbeddedPostgres(data_dir).postmaster_pid() is None
