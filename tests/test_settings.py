"""Settings: every variable is read, checked, and explained where it is wrong."""

from __future__ import annotations

import ipaddress
import os
import stat
import threading
from pathlib import Path

import msgspec
import pytest

from app.settings import (
    VARIABLES,
    MailServer,
    Settings,
    SettingsError,
    psycopg_dsn,
    sqlalchemy_url,
    unknown,
)

HOME = {"HOME": "/home/ada"}
UNSET = {"DATABASE_URL", "SECRET_KEY", "SMTP_URL", "OIDC_ISSUER", "OIDC_CLIENT_SECRET"}


def test_every_field_has_one_variable_and_every_variable_a_field() -> None:
    assert sorted(v.field for v in VARIABLES) == sorted(Settings.__struct_fields__)
    assert len({v.name for v in VARIABLES}) == len(VARIABLES)


def test_with_nothing_set_every_default_is_the_one_that_the_help_shows() -> None:
    settings = Settings.from_env(HOME)
    assert settings.data_dir == Path("/home/ada/.local/share/spendgate")
    for variable in VARIABLES:
        if variable.name in UNSET:
            assert getattr(settings, variable.field) is None
        elif variable.name in {"WEBHOOK_PRIVATE_CIDRS", "TRUSTED_PROXIES", "OIDC_DOMAINS"}:
            assert getattr(settings, variable.field) == ()
        elif variable.name != "DATA_DIR":
            assert getattr(settings, variable.field) == variable.parse(variable.default)


@pytest.mark.parametrize("variable", VARIABLES, ids=lambda v: v.name)
def test_every_example_is_right_and_every_help_is_one_line(variable) -> None:
    assert "\n" not in variable.help
    assert not variable.help.endswith(".")
    settings = Settings.from_env({**HOME, variable.env: variable.example})
    assert getattr(settings, variable.field) == variable.parse(variable.example)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("DATA_DIR", "relative", Path.cwd() / "relative"),
        ("DATABASE_URL", "postgres://u@h/d", "postgresql://u@h/d"),
        ("DATABASE_URL", "postgresql+psycopg://u@h/d", "postgresql://u@h/d"),
        ("PORT", "0", 0),
        ("WORKERS", " 2 ", 2),
        ("BILLING_TIMEZONE", "Asia/Taipei", "Asia/Taipei"),
        ("HOLD_DEADLINE_S", "0.5", 0.5),
        ("MAX_BODY_BYTES", "50 MiB", 50 * 2**20),
        ("MAX_BODY_BYTES", "1048576", 2**20),
        ("WORKER", "off", False),
        ("LOG_LEVEL", "WARNING", "warning"),
        ("SMTP_URL", "smtp://mail", MailServer("mail", 25, False, None, None)),
        ("SMTP_URL", "smtp://u:p%40ss@mail/", MailServer("mail", 587, False, "u", "p@ss")),
        ("SMTP_URL", "smtps://mail", MailServer("mail", 465, True, None, None)),
        ("SMTP_URL", "smtp://[::1]:2525", MailServer("::1", 2525, False, None, None)),
        ("SMTP_FROM", "a.b+c@example.com", "a.b+c@example.com"),
        ("OIDC_ISSUER", "https://id.example.com/realms/a/", "https://id.example.com/realms/a/"),
        ("OIDC_ISSUER", "http://127.0.0.1:9000", "http://127.0.0.1:9000"),
        ("OIDC_ISSUER", "http://localhost:9000", "http://localhost:9000"),
        ("OIDC_ISSUER", "http://[::1]:9000", "http://[::1]:9000"),
        ("OIDC_SCOPES", "openid  email", "openid email"),
        ("OIDC_DOMAINS", " Example.com,, b.example.org ", ("example.com", "b.example.org")),
        (
            "WEBHOOK_PRIVATE_CIDRS",
            "10.0.0.0/8, fd00::/8",
            (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")),
        ),
    ],
)
def test_a_value_is_read(name: str, text: str, value: object) -> None:
    settings = Settings.from_env({**HOME, f"SPENDGATE_{name}": text})
    assert getattr(settings, name.lower()) == value


@pytest.mark.parametrize(
    ("name", "text", "wrong"),
    [
        ("PORT", "eighty", "must be a whole number"),
        ("PORT", "70000", "must be from 0 to 65535"),
        ("PORT", "tcp://10.0.0.1:8000", "enableServiceLinks"),
        ("PORT", "８０００", "must be a whole number"),
        ("WORKERS", "0", "must be from 1"),
        ("WORKERS", "1_0", "must be a whole number"),
        ("BILLING_TIMEZONE", "Mars/Olympus", "time zone"),
        ("BILLING_TIMEZONE", "../../etc/passwd", "time zone"),
        ("HOLD_DEADLINE_S", "0", "must be more than 0"),
        ("HOLD_DEADLINE_S", "nan", "must be a number of seconds"),
        ("HOLD_DEADLINE_S", "-1", "must be a number of seconds"),
        ("MAX_BODY_BYTES", "32MB", "KiB, MiB or GiB"),
        ("MAX_BODY_BYTES", "1", "must be from 1KiB"),
        ("WEBHOOK_PRIVATE_CIDRS", "10.0.0.1/8", "host bits"),
        ("HOST", "http://localhost", "without a port"),
        ("WORKER", "maybe", "must be true or false"),
        ("LOG_FORMAT", "xml", "must be one of json, console"),
        ("DATABASE_URL", "mysql://root:hunter2@h/d", "must begin with postgresql://"),
        ("SECRET_KEY", "hunter", "at least 8 characters"),
        ("SMTP_URL", "mail:25", "must be an address such as smtp://"),
        ("SMTP_URL", "http://u:hunter2@mail", "must be an address such as smtp://"),
        ("SMTP_URL", "smtp://", "must be an address such as smtp://"),
        ("SMTP_URL", "smtp://mail:x", "must be an address such as smtp://"),
        ("SMTP_URL", "smtp://u:hunter2@mail/x", "nothing after the host"),
        ("SMTP_URL", "smtp://hunter2@mail", "a user name and a password, or neither"),
        ("SMTP_FROM", "Spendgate <a@example.com>", "must be an address such as"),
        ("OIDC_ISSUER", "http://id.example.com", "begins with https://"),
        ("OIDC_ISSUER", "http://127.0.0.1.example.com", "begins with https://"),
        ("OIDC_ISSUER", "https://", "begins with https://"),
        ("OIDC_ISSUER", "https://u:p@id.example.com", "begins with https://"),
        ("OIDC_ISSUER", "https://id.example.com:x", "begins with https://"),
        ("OIDC_ISSUER", "https://id.example.com/ä", "begins with https://"),
        ("OIDC_ISSUER", "ftp://localhost", "begins with https://"),
        ("OIDC_ISSUER", "https://id.example.com/?tenant=a", "neither a query nor"),
        ("OIDC_CLIENT_ID", "a\tb", "at most 500 printable"),
        ("OIDC_CLIENT_SECRET", "hunter2\n!", "at most 2000 printable"),
        ("OIDC_NAME", "x" * 61, "at most 60 printable"),
        ("OIDC_SCOPES", "email", "openid among them"),
        ("OIDC_DOMAINS", "@example.com", "must be domains"),
        ("OIDC_DOMAINS", "*.example.com", "must be domains"),
        ("SMTP_FROM", "a@b@c", "must be an address such as"),
        ("DATA_DIR", "~no-such-user-here/x", "not known here"),
    ],
)
def test_a_wrong_value_is_named_explained_and_mended(name: str, text: str, wrong: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_env({**HOME, f"SPENDGATE_{name}": text})
    message = str(caught.value)
    assert message.startswith(f"SPENDGATE_{name} ")
    assert wrong in message
    assert "Right would be: " in message
    assert "hunter2" not in message


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_env({**HOME, "SPENDGATE_PORT": "x", "SPENDGATE_WORKERS": "y"})
    assert len(str(caught.value).splitlines()) == 2


def test_an_empty_variable_counts_as_unset() -> None:
    assert Settings.from_env({**HOME, "SPENDGATE_PORT": ""}).port == 8000


def test_what_a_command_gives_wins_over_the_environment() -> None:
    assert Settings.from_env({**HOME, "SPENDGATE_PORT": "x"}, port=9000).port == 9000


def test_the_data_directory_follows_xdg() -> None:
    assert Settings.from_env({**HOME, "XDG_DATA_HOME": "/data"}).data_dir == Path("/data/spendgate")
    relative = Settings.from_env({**HOME, "XDG_DATA_HOME": "data"})
    assert relative.data_dir == Path("/home/ada/.local/share/spendgate")


def test_settings_do_not_change_and_show_no_secret() -> None:
    settings = Settings.from_env(
        {
            **HOME,
            "SPENDGATE_SECRET_KEY": "hunter2" * 8,
            "SPENDGATE_DATABASE_URL": "postgresql://u:hunter2@h/d",
            "SPENDGATE_SMTP_URL": "smtp://u:hunter2@h",
        }
    )
    with pytest.raises(AttributeError):
        settings.port = 1  # type: ignore[misc]
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in "".join(settings.__rich_repr__())


def test_a_variable_that_is_none_of_ours_is_pointed_out() -> None:
    lines = unknown({"SPENDGATE_BILING_TIMEZONE": "UTC", "SPENDGATE_PORT": "1", "PATH": "/bin"})
    assert lines == [
        "SPENDGATE_BILING_TIMEZONE is not a setting and has no effect; "
        "did you mean SPENDGATE_BILLING_TIMEZONE?"
    ]


def test_a_given_secret_is_used_and_nothing_is_written(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data", secret="s" * 32)
    assert settings.secret_key() == b"s" * 32
    assert not settings.data_dir.exists()


def test_a_secret_is_generated_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    secret = settings.secret_key()
    assert len(secret) >= 64
    assert Settings(data_dir=tmp_path / "data").secret_key() == secret
    assert [path.name for path in settings.data_dir.iterdir()] == ["secret.key"]
    assert stat.S_IMODE((settings.data_dir / "secret.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(settings.data_dir.stat().st_mode) == 0o700


def test_processes_that_start_at_once_agree_on_the_secret(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(settings.secret_key())) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_a_damaged_secret_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "secret.key").write_text("")
    with pytest.raises(SettingsError, match="damaged"):
        Settings(data_dir=tmp_path).secret_key()
    assert os.path.getsize(tmp_path / "secret.key") == 0


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_both_libraries_get_the_address_in_their_own_spelling(scheme: str) -> None:
    rest = "://u:p%40ss@h:5432/d?sslmode=require"
    assert psycopg_dsn(scheme + rest) == "postgresql" + rest
    assert sqlalchemy_url(scheme + rest) == "postgresql+psycopg" + rest


def test_a_socket_address_survives_the_spelling() -> None:
    url = "postgresql:///spendgate?host=/tmp/x%20y&user=spendgate"
    assert sqlalchemy_url(url) == "postgresql+psycopg:///spendgate?host=/tmp/x%20y&user=spendgate"


def test_a_copy_with_changes_is_how_tests_vary_settings() -> None:
    changed = msgspec.structs.replace(Settings.from_env(HOME), port=1)
    assert changed.port == 1


def test_the_readme_has_every_setting_with_its_default() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    for variable in VARIABLES:
        assert f"| `{variable.env}` | {variable.default} | {variable.help} |" in readme
