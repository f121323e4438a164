from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from sdbench.analysis.contrast import contrast
from sdbench.analysis.ranking import ranking
from sdbench.analysis.shared import image_differences, shared_pairs

CAPTIONS = [f"caption {number}" for number in range(80)]


@pytest.fixture
def make(study):
    """A study with a variant `one` and another `other`, whose LPIPS is `more` on each pair."""

    def build(captions=CAPTIONS, *, more=0.05, settings=None):
        generator = np.random.default_rng(0)
        images = [
            {
                "unit": f"{variant}/0/0",
                "variant": variant,
                "prompt_id": f"{place:03d}",
                "prompt": caption,
                "seed": 0,
                "lpips": 0.1 + (more if variant == "other" else 0) + 0.01 * generator.uniform(),
            }
            for place, caption in enumerate(captions)
            for variant in ("one", "other")
        ]
        made = study({name: [1, 1] for name in ("cfg", "one", "other")}, images=images)
        return replace(
            made, study={"model": "m", "num_steps": 2, "guidance_scale": 5.0} | (settings or {})
        )

    return build


def test_pairs_are_joined_by_caption_and_not_by_identifier(make):
    first, second = make(), make(CAPTIONS[::-1])
    values, left_out = shared_pairs((first, "one"), (second, "one"), "lpips")
    images = first.images[first.images["variant"] == "one"].set_index("prompt")["lpips"]
    assert left_out == ""
    assert len(values) == 80
    pd.testing.assert_series_equal(
        values["first"].droplevel("seed"), images.loc[values.index.get_level_values(0)],
        check_names=False, check_dtype=False, check_index_type=False,
    )  # fmt: skip
    assert (values["first"] != values["second"]).any()


def test_other_captions_under_the_same_identifiers_are_refused_and_named(make):
    first, second = make(), make([f"other {number}" for number in range(80)])
    for some in (False, True):
        with pytest.raises(ValueError, match=r"0 of 80 pairs of .*prompt '000' has another text"):
            shared_pairs((first, "one"), (second, "one"), "lpips", some=some)


def test_part_of_the_pairs_is_refused_unless_it_is_asked_for(make):
    studies = (make(), "one"), (make(CAPTIONS[:50]), "other")
    with pytest.raises(ValueError, match="seed of 50 of 80 pairs of 'one'; expected all"):
        shared_pairs(*studies, "lpips")
    values, left_out = shared_pairs(*studies, "lpips", some=True)
    assert (len(values), left_out) == (50, "50 of 80 pairs of 'one'")


def test_studies_of_other_steps_share_no_pairs(make):
    with pytest.raises(ValueError, match=r"has num_steps 2, .* has 50"):
        shared_pairs((make(), "one"), (make(settings={"num_steps": 50}), "one"), "lpips")


def test_studies_with_other_references_share_no_distance(make):
    others = ((make(), "one"), (make(settings={"reference": "steps:200"}), "one"))
    with pytest.raises(ValueError, match="compared with cfg, those of the other with steps:200"):
        shared_pairs(*others, "lpips")


def test_a_variant_that_is_not_there_is_named(make):
    with pytest.raises(ValueError, match="'two' has no lpips; there are one, other"):
        shared_pairs((make(), "two"), (make(), "one"), "lpips")


def compared(make, margin=None, **options):
    made = make(**options)
    return contrast(
        shared_pairs((made, "one"), (made, "other"), "lpips")[0], "lpips", margin=margin
    )


def test_a_clear_difference_has_its_figures(make):
    told = compared(make, margin=0.02)
    assert told.verdict == "nearer"
    assert told.difference.estimate == pytest.approx(-0.05, abs=0.002)
    assert (told.better.estimate, told.pairs, told.prompts) == (1, 80, 80)
    assert told.p < 0.001
    assert not told.within
    assert told.sentence("one", "other").startswith(
        "one against other in lpips: nearer; equivalence within 0.02 not shown. Mean difference -"
    )


def test_the_direction_of_the_metric_turns_the_words(make):
    made = make()
    values = shared_pairs((made, "one"), (made, "other"), "lpips")[0]
    assert contrast(values, "alignment").verdict == "worse"
    turned = contrast(values, "alignment").difference
    assert turned == pytest.approx(contrast(values, "lpips").difference, abs=1e-6)


def test_no_difference_is_shown_within_a_margin_that_the_pairs_allow(make):
    assert {margin: compared(make, margin, more=0.0).within for margin in (0.01, 0.1)} == {
        0.01: False,  # of 80 pairs, images that are seen in one of 100 may have been missed
        0.1: True,
    }


def test_equivalence_is_rarely_shown_where_rare_images_make_the_margin():
    """The true difference is the margin: equivalence is shown in at most 5 % of draws."""
    rare = 0.02
    generator = np.random.default_rng(0)
    pairs = pd.MultiIndex.from_product(
        [[f"{n:03d}" for n in range(128)], [0]], names=["prompt_id", "seed"]
    )
    wrong = 0
    for _ in range(20):
        first = np.where(generator.uniform(size=128) < rare, 0.5, 0.0)
        values = pd.DataFrame({"first": first, "second": 0.0}, pairs)
        wrong += contrast(values, "lpips", margin=0.5 * rare).within
    assert wrong <= 3  # of 20, with 98 %


def test_a_margin_is_positive(make):
    with pytest.raises(
        ValueError, match="margin must be a positive difference of the metric, not 0"
    ):
        compared(make, 0.0)


def with_draws(made, moved):
    """The study with the variant `one` drawn four times, each time moved by as much."""
    one = made.images[made.images["variant"] == "one"]
    drawn = [one.assign(draw=draw, lpips=one["lpips"] + move) for draw, move in enumerate(moved)]
    others = made.images[made.images["variant"] != "one"]
    return replace(made, images=pd.concat([*drawn, others]).astype(made.images.dtypes))


@pytest.mark.parametrize(
    ("moved", "clear"), [([0, 0.001, -0.001, 0], True), ([0.4, -0.1, -0.1, -0.1], False)]
)
def test_what_is_clear_over_prompts_has_to_be_clear_over_masks_too(make, moved, clear):
    made = with_draws(make(), moved)
    of = (made, "one"), (made, "other")
    images = image_differences(*of, "lpips")
    assert len(images) == 4 * 80
    told = contrast(shared_pairs(*of, "lpips")[0], "lpips", images=images)
    assert (told.p < 0.05) == clear
    assert (told.verdict == "nearer") == clear
    table = ranking(made, "lpips", higher_is_better=False).set_index("variant")
    assert (table.loc["other", "best_rank"] == 2) == clear


def test_draws_stand_beside_each_other_whatever_the_order(make):
    made = with_draws(make(), [0.4, -0.1, -0.1, -0.1])
    one, other = (
        image_differences(*of, "lpips")
        for of in (((made, "one"), (made, "other")), ((made, "other"), (made, "one")))
    )
    pd.testing.assert_series_equal(one.sort_index(), -other.sort_index())
    assert image_differences((made, "other"), (made, "other"), "lpips") is None
