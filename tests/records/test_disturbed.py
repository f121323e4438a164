from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sdbench.records import schema
from sdbench.records.disturbed import COLUMNS, disturbed_rounds, rounds
from sdbench.records.store import read

RESULTS = Path(__file__).parents[2] / "results"


@pytest.fixture
def study(rows):
    """`study(levels)`: runs and steps of a baseline's calls, 20 equal steps of a level each."""

    def made(levels, *, scatter=0.0, **named):
        rng = np.random.default_rng(0)
        calls = [
            {
                "unit": f"cfg{repeat}",
                "variant": "cfg",
                "repeat": repeat,
                "phase": "measured",
                "status": "ok",
                "beside": f"cfg{repeat}",
                "latency_s": 20 * level,
                "foreign_load": 0.0,
                "throttled": False,
            }
            | {name: values[repeat] for name, values in named.items()}
            for repeat, level in enumerate(levels)
        ]
        steps = [
            {"unit": f"cfg{repeat}", "step": step, "latency_s": level * (1 + scatter * noise)}
            for repeat, level in enumerate(levels)
            for step, noise in enumerate(rng.uniform(-1, 1, 20))
        ]
        return rows("runs", *calls), rows("steps", *steps)

    return made


def test_equal_calls_are_calm(study):
    assert disturbed_rounds(*study([1.0] * 6)).to_dict() == {f"cfg{i}": False for i in range(6)}


def test_a_call_far_above_the_lowest_quarter_is_disturbed(study):
    found = rounds(*study([1.0, 1.0, 1.1, 1.2, 1.24, 1.3]))
    assert found["disturbed"].tolist() == [False] * 5 + [True]
    assert found["apart"].tolist() == pytest.approx([0, 0, 0.1, 0.2, 0.24, 0.3])


def test_one_fast_call_makes_the_others_no_slower(study):
    assert not disturbed_rounds(*study([0.6, 1.0, 1.0, 1.0, 1.0, 1.0])).any()


def test_steps_of_equal_work_that_scatter_are_disturbed(study):
    assert not disturbed_rounds(*study([1.0] * 6, scatter=0.1)).any()
    assert disturbed_rounds(*study([1.0] * 6, scatter=0.5)).all()


def test_steps_that_differ_in_work_in_every_call_are_calm(study):
    runs, steps = study([1.0, 1.02, 0.98, 1.0, 1.01, 1.0])
    # A second network takes over in the middle of the loop, and takes three times as long.
    steps["latency_s"] = steps["latency_s"].where(steps["step"] < 10, 3 * steps["latency_s"])
    found = rounds(runs, steps)
    assert not found["disturbed"].any()
    assert found["spread"].max() < 0.01


def test_load_counts_from_a_fifth_of_a_core(study):
    runs, steps = study([1.0] * 4, foreign_load=[0.0, 0.19, 0.21, 1.3])
    assert disturbed_rounds(runs, steps).tolist() == [False, False, True, True]


def test_a_few_ticks_of_the_counters_are_no_load(study):
    runs, steps = study([0.002] * 3, foreign_load=[0.9, 0.9, 2.0])
    assert rounds(runs, steps)["load"].tolist() == [0, 0, 2]


def test_load_is_that_of_the_whole_round(study, rows):
    runs, steps = study([1.0, 1.0])
    other = {"variant": "last:20%", "phase": "measured", "status": "ok", "latency_s": 20.0}
    other |= {"unit": "last1", "beside": "cfg1", "foreign_load": 1.0}
    runs = pd.concat([runs, rows("runs", other)], ignore_index=True)
    found = rounds(runs, steps)
    assert found["load"].to_dict() == {"cfg0": 0, "cfg1": 0.5}
    assert found["disturbed"].to_dict() == {"cfg0": False, "cfg1": True}


def test_a_device_that_was_shared_or_held_back_is_disturbed(study):
    runs, steps = study([1.0] * 3, throttled=[True, False, None], foreign_processes=[None, 2, None])
    assert disturbed_rounds(runs, steps).tolist() == [True, True, False]


def test_the_variants_own_time_decides_nothing(study, rows):
    runs, steps = study([1.0, 1.0, 1.0])
    other = {"variant": "lora", "phase": "measured", "status": "ok", "beside": "cfg1"}
    slow = [other | {"unit": f"lora{s}", "latency_s": s, "foreign_load": 0.0} for s in (1.0, 900.0)]
    found = disturbed_rounds(pd.concat([runs, rows("runs", *slow)], ignore_index=True), steps)
    assert found.equals(disturbed_rounds(runs, steps))


def test_companions_are_rounds_and_warm_ups_failures_and_shared_devices_are_none(study):
    phases = ["measured", "companion", "warmup", "measured", "measured"]
    ended = ["ok", "ok", "ok", "failed", "ok"]
    runs, steps = study([1.0] * 5, phase=phases, status=ended, exclusive=[None] * 4 + [False])
    assert list(disturbed_rounds(runs, steps).index) == ["cfg0", "cfg1"]


def test_calls_of_other_work_are_not_compared(study):
    runs, steps = study([1.0, 1.0, 9.0, 9.0], batch=[8, 8, 64, 64])
    assert not disturbed_rounds(runs, steps).any()


def test_a_table_of_today_and_one_that_lacks_the_younger_columns_agree(study):
    runs, steps = study([1.0, 1.0, 1.4])
    old = runs.drop(columns=["beside", "timing", "exclusive", "foreign_processes", "throttled"])
    assert disturbed_rounds(old, steps).equals(disturbed_rounds(runs, steps))


def test_without_steps_the_loop_tells_how_far_calls_are_apart(study):
    runs, steps = study([1.0] * 3, denoise_s=[20.0, 20.0, 30.0])
    assert disturbed_rounds(runs, steps[:0]).tolist() == [False, False, True]


def test_no_call_of_the_baseline_gives_no_round(study):
    runs, steps = study([1.0, 1.0])
    assert disturbed_rounds(runs.assign(variant="lora"), steps).empty
    assert disturbed_rounds(schema.empty("runs"), schema.empty("steps")).empty


def test_calm_noise_disturbs_less_than_one_round_in_a_hundred(study):
    # Sixty studies stand in one table: calls of other sizes are not compared.
    repeats = (6, 8, 12) * 20
    sizes = np.repeat(np.arange(len(repeats)), repeats)
    levels = np.exp(0.06 * np.random.default_rng(3).normal(size=len(sizes)))
    assert disturbed_rounds(*study(levels, scatter=0.05, batch=sizes.tolist())).mean() < 0.01


@pytest.mark.parametrize(
    ("folder", "disturbed", "of"),
    [
        ("mini-sd/default", 1, 13),  # equal steps spread by a third
        ("mini-sd/plan/timing", 6, 6),  # others took a core
        ("mini-sd/methods/time", 3, 9),  # others took 0.2 cores
        ("mini-sd/students/time", 0, 6),
        ("mini-sd/cost/64x64-batch8", 0, 6),
        ("sd15-cpu/methods", 0, 6),
    ],
)
def test_the_stored_studies_are_told_apart(folder, disturbed, of):
    results = read(RESULTS / folder, columns=COLUMNS)
    found = disturbed_rounds(results.runs, results.steps)
    assert (int(found.sum()), len(found)) == (disturbed, of)
