"""What a command says of two runs that were not made under the same conditions."""

from pathlib import Path

import pytest

from sdbench.cli.differing import IMAGES, print_differing
from sdbench.records.store import Results

OLD = {"cpu": "x", "packages": {"torch": "2"}, "variables": {}}
NEW = OLD | {"settings": {"attention_backend": "native"}}
FLASH = OLD | {"settings": {"attention_backend": "flash"}}


def told(capsys, before, after, **how):
    sides = (
        Results(Path("made-up"), None, None, None, environment={"a": env}, study={})
        for env in (before, after)
    )
    print_differing(*sides, **how)
    return " ".join(capsys.readouterr().out.split())


def test_what_differs_is_named_and_what_follows(capsys):
    expected = "or other versions or settings (settings.attention_backend): "
    assert told(capsys, NEW, FLASH).endswith(f"{expected}absolute times do not compare.")
    assert told(capsys, NEW, FLASH, so=IMAGES).endswith(
        f"{expected}images may differ by that, too."
    )


def test_what_an_older_record_lacks_is_named_as_that(capsys):
    assert told(capsys, OLD, NEW) == "Only one of the runs has on record: settings."


@pytest.mark.parametrize("env", [OLD, NEW])
def test_of_runs_under_the_same_conditions_nothing_is_said(capsys, env):
    assert told(capsys, env, env) == ""
