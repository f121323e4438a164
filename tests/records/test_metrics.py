import math

import pytest

from sdbench.records.columns import METRICS as STORED
from sdbench.records.metrics import FEW, MANY, SCALES, scale_of


def test_every_metric_that_is_stored_or_registered_has_a_scale():
    from sdbench.instruments.quality import METRICS

    assert set(SCALES) == {*METRICS, *STORED}


def test_directions_are_those_of_the_metrics():
    from sdbench.instruments.quality import METRICS

    assert {name: scale.higher_is_better for name, scale in SCALES.items()} == {
        name: metric.higher_is_better for name, metric in METRICS.items()
    }


def test_only_what_compares_with_a_reference_says_that_an_image_changed():
    from sdbench.instruments.quality import METRICS

    with_threshold = {name for name, scale in SCALES.items() if scale.changed is not None}
    assert with_threshold == {"lpips", "flip", "ssim"}
    assert {METRICS[name].needs for name in with_threshold} == {"reference"}


@pytest.mark.parametrize("name", SCALES)
def test_bounds_hold_the_threshold_and_the_same_image(name):
    scale = SCALES[name]
    least, most = scale.bounds
    assert least < most
    if scale.changed is not None:
        assert least < scale.changed < most


def test_the_difference_of_two_values_has_twice_the_range():
    assert SCALES["alignment"].differences == (-1, 1)
    assert SCALES["ssim"].differences == (-2, 2)


def test_an_own_metric_has_no_range():
    assert scale_of("own").bounds == (-math.inf, math.inf)
    assert (scale_of("own").changed, scale_of("own").prompts) == (None, MANY)


def test_means_that_few_images_decide_need_many_prompts():
    assert {name: scale.prompts for name, scale in SCALES.items() if scale.prompts != MANY} == {
        "alignment": FEW
    }
