from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from sdbench.analysis.frontier import frontier

MASKS = {"cfg": [1, 1, 1], "fast": [0, 0, 0], "good": [1, 1, 0], "bad": [1, 1, 0]}
LPIPS = {"fast": 0.3, "good": 0.1, "bad": 0.4}
ALIGNMENT = {"cfg": 0.5, "fast": 0.4, "good": 0.9, "bad": 0.3}


def images(of, metric):
    generator = np.random.default_rng(0)
    place = {"seed": 0, "prompt": "a star"}
    return [
        {"unit": f"{name}/0/0", "variant": name, "prompt_id": f"{pair:03d}"} | place
        | {metric: value + 0.01 * generator.uniform()}
        for name, value in of.items()
        for pair in range(64)
    ]  # fmt: skip


@pytest.fixture
def results(study):
    """`fast` is the fastest, `good` is good, and `bad` takes the time of `good`."""
    return study(MASKS, images=images(LPIPS, "lpips"))


def verdicts(results, metric="lpips", *, higher_is_better=False, **options):
    table = frontier(results, metric, higher_is_better=higher_is_better, **options)
    return table.set_index("variant")["verdict"].to_dict()


def test_what_is_beaten_in_time_and_quality_is_not_efficient(results):
    table = frontier(results, "lpips", higher_is_better=False).set_index("variant")
    assert table.index[0] == "fast"
    assert table.index[-1] == "cfg"
    assert table["verdict"].to_dict() == {
        "fast": "efficient",
        "good": "efficient",
        "bad": "beaten",
        "cfg": "efficient",
    }
    assert table.loc["bad", "rival"] in {"good", "fast"}
    assert table.loc["cfg", "lpips"] == 0


def test_where_high_is_good_the_baseline_can_be_beaten(study):
    results = study(MASKS, images=images(ALIGNMENT, "alignment"))
    assert verdicts(results, "alignment", higher_is_better=True) == {
        "fast": "efficient",
        "good": "efficient",
        "bad": "beaten",
        "cfg": "beaten",
    }


def test_a_saving_that_was_not_shown_is_none(study):
    """`good` saves a third of the guided steps, which six repeats cannot see in such noise."""
    generator = np.random.default_rng(0)

    def jittered(row):
        factor = generator.lognormal(0, 1)
        return row | {name: factor * row[name] for name in ("denoise_s", "latency_s")}

    noisy = study(MASKS, changed=jittered)
    results = replace(noisy, images=study(MASKS, images=images(LPIPS, "lpips")).images)
    assert verdicts(results)["good"] == "open"


def test_times_come_from_the_study_of_time(results, study):
    slow = study(MASKS, changed=lambda row: row | late(row))
    assert verdicts(results, timing=slow) == verdicts(results) | {"fast": "beaten"}
    table = frontier(results, "lpips", higher_is_better=False, timing=slow).set_index("variant")
    assert table.loc["fast", "denoise_saving"] == pytest.approx(-0.25, abs=0.02)


def late(row):
    """Twice the time of the loop for `fast`."""
    more = row["denoise_s"] if row["variant"] == "fast" else 0
    return {name: row[name] + more for name in ("denoise_s", "latency_s")}


def test_a_variant_without_a_time_is_named(results, study):
    timing = study({name: mask for name, mask in MASKS.items() if name != "bad"})
    with pytest.raises(ValueError, match="the study of times has no variant 'bad'"):
        frontier(results, "lpips", higher_is_better=False, timing=timing)


def test_a_metric_that_no_image_has_is_refused(results):
    with pytest.raises(ValueError, match="made-up: no image has a value of ssim"):
        frontier(results, "ssim", higher_is_better=True)


def test_without_times_the_baseline_is_alone(results):
    runs = results.runs.assign(exclusive=pd.array([False] * len(results.runs), "boolean"))
    assert verdicts(replace(results, runs=runs)) == {"cfg": "efficient"}


def test_what_was_not_timed_comes_last_and_nothing_is_tested_of_it(study):
    def untimed(row):
        return row | ({"phase": "untimed"} if row["variant"] == "bad" else {})

    results = study(MASKS, images=images(LPIPS, "lpips"), changed=untimed)
    table = frontier(results, "lpips", higher_is_better=False)
    assert table["variant"].tolist() == ["fast", "good", "cfg", "bad"]
    last = table.iloc[-1]
    assert (last["verdict"], last["rival"]) == ("untimed", "")
    assert np.isnan(last["denoise_saving"])
    assert last["predicted_denoise_saving"] > 0
    assert "untimed" not in table["verdict"].iloc[:3].tolist()
