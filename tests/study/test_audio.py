"""Studies of pipelines that make sound: time, memory and work, and no metric."""

import dataclasses

import pytest

from sdbench.analysis.tables import summarise
from sdbench.experiments.planning import Target, plan
from sdbench.experiments.sensitivity import sensitivity
from sdbench.report.page import page
from sdbench.report.tables import legend, markdown
from sdbench.study import runner
from sdbench.study.estimate import estimate
from sdbench.study.study import METRICS, Study
from tests import tiny
from tests.families import decoding

STUDY = Study(
    model="tiny-audio",
    variants=["cfg", "last:50%"],
    prompts=tiny.PROMPTS,
    seeds=[0],
    num_steps=4,
    guidance_scale=5.0,
    repeats=2,
    arguments={"audio_end_in_s": 1.0},
    name="sound",
)


@pytest.fixture(scope="module")
def pipe():
    return decoding.stable_audio()


@pytest.fixture(scope="module")
def results(pipe, tmp_path_factory):
    study = dataclasses.replace(STUDY, metrics=[])
    return runner.run(study, tmp_path_factory.mktemp("sound") / "study", pipe=pipe)


def test_time_memory_and_work_are_measured(results):
    assert set(results.runs["status"]) == {"ok"}
    measured = results.runs[results.runs["phase"] == "measured"]
    assert measured[["latency_s", "decode_s", "rows", "flop"]].notna().all(axis=None)
    assert summarise(results)["peak_bytes"].notna().all()
    assert summarise(results).set_index("variant").loc["last:50%", "nfe"] == 6
    assert results.study["output"] == "audio"


def test_nothing_is_stored_but_its_digest(results):
    assert results.images.empty
    assert not (results.folder / "images").exists()
    digests = results.runs.groupby("variant")["sha256"].nunique()
    assert digests.tolist() == [1, 1]
    assert results.runs["sha256"].nunique() == 2
    assert results.runs[["height", "width"]].isna().all(axis=None)


def test_metrics_that_are_asked_for_are_refused_before_anything_runs(pipe, tmp_path):
    asked = dataclasses.replace(STUDY, metrics=["lpips", "ssim"])
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sdbench.study.runner.provenance", lambda names: {name: {} for name in names})
        patch.setattr("sdbench.study.local.observe", lambda *args, **how: calls.append(args))
        with pytest.raises(ValueError, match=r"lpips, ssim cannot be measured: .* makes audio"):
            runner.run(asked, tmp_path / "study", pipe=pipe)
    assert calls == []
    assert not (tmp_path / "study").exists()


def test_metrics_that_nobody_named_are_left_out():
    assert STUDY.metrics == METRICS
    assert STUDY.making("audio").metrics == ()
    assert Study(**STUDY.settings, variants=["cfg"], output="audio").metrics == ()
    with pytest.raises(ValueError, match="psnr cannot be measured"):
        Study(**STUDY.settings, variants=["cfg"], output="audio", metrics=["psnr"])


def test_tables_and_the_page_say_what_a_call_makes(results):
    summary = summarise(results)
    assert "/2 clips" in markdown(summary)
    assert "Of audio only time and memory are measured" in legend(summary, wide=True)
    html = page(results)
    assert '<div class="pair">' not in html
    assert "Time of every step" in html


def test_an_estimate_and_controls_need_no_metric(pipe, results):
    with_controls = dataclasses.replace(STUDY, metrics=[], controls=True)
    assert estimate(with_controls, pipe=pipe).seconds > 0


def test_a_sweep_and_a_plan_are_refused(pipe, tmp_path):
    call = {"num_steps": 4, "guidance_scale": 5.0}
    with pytest.raises(ValueError, match=r"lpips cannot be measured: .* makes audio"):
        sensitivity(pipe, tiny.PROMPTS, [0], **call)
    with pytest.raises(ValueError, match="makes audio: no metric says what guidance does"):
        sensitivity(pipe, tiny.PROMPTS, [0], **call, metrics=[])
    tuning = dataclasses.replace(STUDY, prompts=["a"], metrics=[]).generation
    held_out = dataclasses.replace(STUDY, prompts=["b"], seeds=[1], metrics=[]).generation
    with pytest.raises(ValueError, match="makes audio"):
        plan(pipe, tuning, held_out, Target((2,)), tmp_path / "out")
    assert not (tmp_path / "out").exists()
