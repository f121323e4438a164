"""Which half of an evaluation is the conditional one."""

import pytest

from sdbench.variants.fitted_scale import is_swapped
from sdbench.variants.guidance import guided_by
from sdbench.variants.schedule import GuidanceSchedule
from tests import families, tiny
from tests.tiny import run


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
    pipe, other = families.make("wan"), families.make("wan")
    both, half = [8] * 4, [4] * 4
    assert rows_of(pipe, None) == both
    assert rows_of(pipe) == half
    assert rows_of(other) in ([8, 4, 4, 4], half)


@pytest.mark.parametrize(
    ("scale", "swapped"), [(7.5, False), (0.95, False), (0.5, None), (0.05, True), (-6.5, True)]
)
def test_a_scale_between_both_predictions_tells_no_order(scale, swapped):
    assert is_swapped(scale) is swapped
    assert is_swapped(float("nan")) is None
