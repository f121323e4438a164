"""Which half of an evaluation is the conditional one."""

import pytest

from sdbench.variants import telling
from sdbench.variants.fitted_scale import fitted, is_swapped
from sdbench.variants.guidance import guided_by
from sdbench.variants.schedule import GuidanceSchedule
from tests import tiny
from tests.tiny import run
from tests.variants.test_rows import WidePipeline, run_under


def rows_of(pipe, schedule=GuidanceSchedule.none, **changes):
    with guided_by(pipe, schedule) as trace:
        run(pipe, **changes)
    return trace.steps.rows.tolist()


def test_the_texts_tell_the_halves_apart_before_anything_is_evaluated():
    assert rows_of(tiny.stable_diffusion()) == [2] * 4


def test_where_both_texts_are_the_same_a_first_evaluation_tells_nothing_and_costs_one():
    pipe = tiny.stable_diffusion()
    same = {"negative_prompt": tiny.PROMPTS}
    plain = run(pipe, **same)
    with guided_by(pipe, GuidanceSchedule.none) as trace:
        latents = run(pipe, **same)
    assert trace.steps.rows.tolist() == [4, 2, 2, 2]
    tiny.assert_same_latents(latents, plain)  # guidance towards the same text does nothing


def test_what_a_call_showed_is_known_to_later_blocks_and_to_no_other_pipeline():
    pipe, other = tiny.flux(), tiny.flux()  # their texts are encoded one at a time
    assert rows_of(pipe, None) == [4] * 4
    assert rows_of(pipe) == [2] * 4
    assert rows_of(other) == [4, 2, 2, 2]


@pytest.mark.parametrize(
    ("scale", "swapped"), [(7.5, False), (0.95, False), (0.5, None), (0.05, True), (-6.5, True)]
)
def test_a_scale_between_both_predictions_tells_no_order(scale, swapped):
    assert is_swapped(scale) is swapped
    assert is_swapped(float("nan")) is None


def test_what_a_call_showed_of_another_kind_of_guidance_holds_until_one_ends_without_it():
    pipe = WidePipeline()
    refused = pytest.raises(ValueError, match="for both halves and again in the same step")
    pipe.evaluations = 2
    run_under(pipe, None)
    with refused:
        run_under(pipe, GuidanceSchedule.none)
    assert len(pipe.outputs) == 2  # of the call that was only observed

    pipe.evaluations = 1
    with refused:  # nothing has shown yet that it is otherwise now
        run_under(pipe, GuidanceSchedule.none)
    run_under(pipe, GuidanceSchedule.full)
    assert run_under(pipe, GuidanceSchedule.none)[0].rows.tolist() == [2, 2]


def test_a_pipeline_is_fitted_once(monkeypatch):
    fits = []
    monkeypatch.setattr(telling, "fitted", lambda *call: fits.append(call) or fitted(*call))
    pipe = WidePipeline(conditional_first=True)
    for schedule in (None, GuidanceSchedule.last(2, 1), GuidanceSchedule.full, None):
        run_under(pipe, schedule)
    assert len(fits) == 1


def test_a_progress_bar_after_a_loop_begins_no_other():
    pipe = tiny.stable_diffusion()
    with guided_by(pipe, GuidanceSchedule.none) as trace:
        for _ in range(2):
            run(pipe)
            with pipe.progress_bar(total=3) as bar:
                bar.update()
    assert trace.steps.rows.tolist() == [2] * 8
    assert trace.calls.complete.all()
