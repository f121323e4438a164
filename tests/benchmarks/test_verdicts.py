import numpy as np

from benchmarks import verdicts as module
from benchmarks.populations import Population, populations
from benchmarks.verdicts import verdicts
from sdbench.analysis.pairs import paired_verdict


def made(name, values):
    return Population("made up", name, "lpips", values)


def test_plain_verdicts_of_rare_flips_hold_of_all_images():
    names = ("steps:10", "deepcache:3", "scale:4.5", "last:20%", "guider:cfg-zero")
    chosen = [
        one
        for one in populations()
        if one.metric == "lpips" and one.study.endswith("methods/quality") and one.variant in names
    ]
    found = verdicts(chosen, prompts=128, draws=20)
    assert found.contradictory >= 2
    assert found.wrong <= 0.05 * found.words.total()


def test_a_verdict_against_all_images_is_counted_as_wrong(monkeypatch):
    base = np.linspace(0.1, 0.2, 256)
    better = made("better", base - 0.1)
    found = verdicts([better, made("worse", base + 0.2)], prompts=128, draws=5)
    assert (found.plain, found.wrong) == (5, 0)

    def reversed_verdict(sample, metric, *, words):
        return paired_verdict(-sample, metric, words=words)

    monkeypatch.setattr(module, "paired_verdict", reversed_verdict)
    found = verdicts([better, made("worse", base + 0.2)], prompts=128, draws=5)
    assert (found.plain, found.wrong) == (5, 5)


def test_mean_and_most_images_can_contradict_each_other():
    flips = np.r_[np.full(250, 0.01), np.full(6, 0.9)]
    found = verdicts([made("flips", flips), made("even", np.full(256, 0.012))], prompts=64, draws=3)
    assert (found.pairs, found.contradictory, found.plain) == (1, 1, 0)
