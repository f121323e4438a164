import numpy as np
import pytest

from benchmarks.changed import against_baseline, at, best
from sdbench.records.metrics import SCALES


def test_the_best_threshold_tells_two_groups_apart():
    loss = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    found, first, last = best(loss, np.array([False, False, True, True, True]))
    assert (found.value, found.youden, first, last) == (0.2, 1, 0.2, 0.2)


def test_a_threshold_counts_what_lies_beyond():
    found = at(0.2, np.array([0.1, 0.2, 0.3, 0.4]), np.array([False, True, True, False]))
    assert (found.sensitivity, found.specificity, found.youden) == (0.5, 0.5, 0)


def test_equal_values_lie_on_one_side():
    found, *_ = best(np.array([0.0, 0, 0, 1]), np.array([False, True, False, True]))
    assert (found.value, found.sensitivity, found.specificity) == (0, 0.5, 1)


@pytest.mark.parametrize("metric", [name for name, scale in SCALES.items() if scale.changed])
def test_the_stated_thresholds_are_as_good_as_the_best(metric):
    images = against_baseline().dropna(subset=[metric])
    scale = SCALES[metric]
    sign = -1 if scale.higher_is_better else 1
    loss, differs = sign * images[metric].to_numpy(), images["differs"].to_numpy()
    found, first, last = best(loss, differs)
    assert first <= sign * scale.changed <= last
    assert at(sign * scale.changed, loss, differs).youden > found.youden - 0.01 > 0.45
