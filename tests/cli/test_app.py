"""What holds for all commands: where each stands, what it is called, how its options are shown."""

from dataclasses import fields
from pathlib import Path

import pytest
import typer

import sdbench.cli
from sdbench.cli.values import study_fields
from sdbench.study.study import Study
from tests.cli.commands import invoke

COMMANDS = typer.main.get_command(sdbench.cli.app).commands
SHARED = {"__init__", "__main__", "console", "differing", "options", "pictures", "values"}


def names(command):
    return {parameter.name for parameter in COMMANDS[command].params}


def test_every_command_is_a_file_of_its_name():
    files = {file.stem for file in Path(sdbench.cli.__file__).parent.glob("*.py")}
    assert files - SHARED == set(COMMANDS)


def test_the_commands_are_listed_in_the_order_of_work():
    order = (
        "run gather cost sensitivity plan budget distill compare bench history report rank frontier"
    )
    rest = "distances known perceive models variants weights env"
    assert list(COMMANDS) == f"{order} {rest}".split()


def test_every_field_of_a_study_is_an_option_of_run():
    assert {field.name for field in fields(Study)} - {"prompts"} <= names("run")


@pytest.mark.parametrize(
    "command", ["run", "sensitivity", "plan", "budget", "cost", "distill", "bench", "perceive"]
)
def test_every_option_stands_in_a_named_panel(command):
    options = [option for option in COMMANDS[command].params if option.param_type_name == "option"]
    assert [option.name for option in options if option.rich_help_panel is None] == []


@pytest.mark.parametrize("command", ["run", "sensitivity", "plan", "budget", "cost", "distill"])
def test_every_command_that_opens_a_model_takes_a_variant_of_its_weights(command):
    assert "weights_variant" in names(command)


def test_help_shows_the_panels():
    printed = invoke("run", "--help").output
    panels = ("What is compared", "What is generated", "How it runs", "Output")
    assert sorted(panels, key=printed.index) == list(panels)


def test_the_fields_of_a_study_are_the_options_that_were_given():
    variants = "cfg,cached:5,from=20,steps:35,stock"
    options = {"seeds": "0, 1", "variants": variants, "dtype": None, "out": "x"}
    found = study_fields(options | {"prompt": ["a red circle"], "arguments": '{"eta": 1}'})
    assert found == {
        "seeds": [0, 1],
        "variants": ["cfg", "cached:5,from=20", "steps:35,stock"],
        "prompts": ["a red circle"],
        "arguments": {"eta": 1},
    }
