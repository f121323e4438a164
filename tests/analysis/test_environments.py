"""In what two runs differ; a record that is older than an entry differs in nothing by that."""

import json
import time
from pathlib import Path

import pytest

from sdbench.analysis.environments import (
    differing_environment,
    differing_within,
    unrecorded_environment,
)
from sdbench.analysis.regression import NotComparable, compare
from sdbench.records.environment import environment
from sdbench.records.store import Results, read

STORED = Path(__file__).parents[2] / "results" / "baselines" / "mini-sd-bench-mini-sd"
OLD = {"cpu": "x", "packages": {"torch": "2"}, "variables": {}}
NEW = OLD | {
    "packages": {"torch": "2", "triton": "3"},
    "settings": {"governor": "performance", "inductor": {"freezing": False, "cpp.simdlen": None}},
    "components": {"unet": {"dtypes": ["float32"]}},
}


def run(*environments):
    named = {str(place): environment for place, environment in enumerate(environments)}
    return Results(Path("made-up"), None, None, None, environment=named, study={})


def changed(env, name, value):
    new = json.loads(json.dumps(env))
    place = new
    *groups, last = name
    for group in groups:
        place = place[group]
    place[last] = value
    return new


CHANGES = [
    (("cpu",), "y", "cpu"),
    (("packages", "triton"), "4", "packages.triton"),
    (("packages", "kernels"), "1", "packages.kernels"),
    (("variables", "OMP_PROC_BIND"), "true", "variables.OMP_PROC_BIND"),
    (("settings", "governor"), "powersave", "settings.governor"),
    (("settings", "inductor", "freezing"), True, "settings.inductor.freezing"),
    (("settings", "inductor", "cpp.simdlen"), 256, "settings.inductor.cpp.simdlen"),
    (("components", "unet", "dtypes"), ["int8"], "components.unet.dtypes"),
    (("components", "unet", "caches"), ["FirstBlockCacheConfig"], "components.unet.caches"),
    (("uncounted",), "quantised", "uncounted"),
]


@pytest.mark.parametrize(("name", "value", "told"), CHANGES)
def test_what_differs_is_named(name, value, told):
    assert differing_environment(run(NEW), run(changed(NEW, name, value))) == [told]
    assert unrecorded_environment(run(NEW), run(changed(NEW, name, value))) == []


def test_a_record_older_than_an_entry_differs_in_nothing_and_it_is_said():
    assert differing_environment(run(OLD), run(NEW)) == []
    assert unrecorded_environment(run(OLD), run(NEW)) == [
        "components",
        "packages.triton",
        "settings",
    ]
    assert differing_environment(run(OLD), run(changed(NEW, ("cpu",), "y"))) == ["cpu"]


@pytest.mark.parametrize("name", ["governor", "inductor"])
def test_what_could_not_be_asked_is_unknown(name):
    unknown = changed(NEW, ("settings", name), None)
    assert differing_environment(run(unknown), run(NEW)) == []
    assert unrecorded_environment(run(unknown), run(NEW)) == [f"settings.{name}"]
    assert unrecorded_environment(run(unknown), run(unknown)) == []


def test_a_study_that_went_on_elsewhere_tells_in_what_it_differs():
    other = changed(NEW, ("settings", "governor"), "powersave")
    assert differing_within(run(NEW)) == []
    assert differing_within(run(NEW, other)) == ["settings.governor"]


def test_many_environments_are_compared_quickly():
    many = [NEW | {"settings": NEW["settings"] | {"affinity": str(n)}} for n in range(2000)]
    begun = time.process_time()
    assert differing_within(run(*many)) == ["settings.affinity"]
    assert unrecorded_environment(run(NEW), run(*many)) == ["settings.affinity"]
    assert time.process_time() - begun < 2


@pytest.mark.parametrize("settings", ["a text", [1], None, 3.5])
def test_a_record_of_another_form_is_compared_all_the_same(settings):
    assert differing_environment(run(NEW | {"settings": settings}), run(NEW)) == []


def test_times_under_other_settings_are_not_compared(study):
    made = study({"cfg": [1, 1]})
    here = Results(**vars(made) | {"environment": {"a": NEW}})
    frozen = changed(NEW, ("settings", "inductor", "freezing"), True)
    there = Results(**vars(made) | {"environment": {"b": frozen}})
    with pytest.raises(NotComparable, match=r"these differ: settings\.inductor\.freezing"):
        compare(here, there, absolute=True)


def test_a_stored_baseline_compares_with_a_run_of_today():
    before = read(STORED)
    (env,) = before.environment.values()
    today = Results(
        **vars(before)
        | {"environment": {"now": environment() | env | {"settings": {"governor": "performance"}}}}
    )
    assert differing_environment(before, today) == []
    assert unrecorded_environment(before, today) == ["settings"]
