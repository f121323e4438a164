"""The recipes of the stored results name commands and options that there are."""

import importlib.util

import pytest
import typer

from sdbench.cli import app
from tools.results.__main__ import RESULTS
from tools.results.recipe import in_order, names

COMMANDS = typer.main.get_command(app).commands
PLACES = {"here": "here", "root": "root"}


def test_recipes_stand_in_an_order():
    ordered = [recipe.name for recipe in in_order(RESULTS, names(RESULTS))]
    assert ordered.index("mini-sd/distill") < ordered.index("mini-sd/default")
    assert ordered.index("mini-sd/plan") < ordered.index("mini-sd/students")


def test_every_folder_of_mini_sd_has_one():
    pages = {page.parent.relative_to(RESULTS).as_posix() for page in RESULTS.glob("mini-sd/*/*.md")}
    assert pages == {name for name in names(RESULTS) if name.startswith("mini-sd/")}


@pytest.mark.parametrize("recipe", in_order(RESULTS, names(RESULTS)), ids=lambda own: own.name)
def test_its_commands_are_understood(recipe):
    for part in recipe.parts:
        for program, *words in part.words(PLACES):
            if program == "sdbench":
                name, *options = words
                COMMANDS[name].make_context(name, options)
            else:
                assert words[0] == "-m"
                assert importlib.util.find_spec(words[1])
