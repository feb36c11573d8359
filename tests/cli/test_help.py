"""What the command line says of itself."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from app.cli import main
from app.settings import VARIABLES

COMMANDS = (
    "demo",
    "serve",
    "migrate",
    "create-admin",
    "create-admin-token",
    "import-prices",
    "reconcile",
    "worker",
)


def help_of(*arguments: str) -> str:
    done = CliRunner().invoke(main, [*arguments, "--help"], terminal_width=100)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_commands_are_these_and_no_others() -> None:
    assert sorted(main.commands) == sorted(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_says_what_it_does_and_shows_an_example(name: str) -> None:
    shown = help_of(name)
    assert "Example:" in shown
    example = shown.split("Example:")[1]
    assert f"spendgate {name}" in example
    # The second line of the help, after the usage, is a sentence.
    assert shown.split("\n\n")[1].strip().endswith(".")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name: str) -> None:
    for parameter in main.commands[name].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts}"


def test_the_help_of_serve_names_every_setting_with_its_variable_and_its_default() -> None:
    shown = " ".join(help_of("serve").split())
    for variable in VARIABLES:
        option = "--" + variable.name.lower().replace("_", "-")
        assert f"{option} VALUE" in shown
        assert f"[env: {variable.env}; default: {variable.default}]" in shown


def test_an_unknown_command_and_an_unknown_option_are_usage_errors() -> None:
    for arguments in (["serv"], ["serve", "--prot", "1"]):
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 2
        assert "No such" in done.output
