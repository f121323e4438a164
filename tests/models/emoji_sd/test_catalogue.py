import numpy as np
import pytest

from sdbench.models.emoji_sd import catalogue
from sdbench.models.emoji_sd.catalogue import CATEGORY, NAME, STYLE, TONE


@pytest.fixture(scope="module")
def rows():
    return catalogue.pictures()


def test_captions_read_back_as_the_pictures_they_describe(rows):
    captions = catalogue.captions(rows)
    assert len(set(captions)) == len(rows)
    assert all(
        (catalogue.parse(text) == row).all() for text, row in zip(captions, rows, strict=True)
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "penguin",
        "a large circle on a blue background",
        "penguin, animals and nature, pixel style",
        "penguin, striped skin tone, animals and nature, noto style",
        "one, two, three, four, five",
    ],
)
def test_other_texts_have_no_row(text):
    assert catalogue.parse(text) is None


def test_every_held_out_name_is_seen_in_the_other_style(rows):
    seen = catalogue.split(rows)
    hidden = rows[catalogue.held_out_name(rows)]
    pairs = {(row[NAME], row[STYLE]) for row in rows[seen]}
    assert len(hidden) > 150
    assert all((name, 1 - style) in pairs for name, _, _, style in hidden)
    assert not any((name, style) in pairs for name, _, _, style in hidden)


def test_a_held_out_tone_is_the_only_one_that_its_figure_lacks(rows):
    hidden = rows[catalogue.held_out_tone(rows)]
    assert len(hidden) > 50
    assert (hidden[:, TONE] > 0).all()
    seen = rows[catalogue.split(rows)]
    for name, tone, _, style in hidden:
        tones = seen[(seen[:, NAME] == name) & (seen[:, STYLE] == style), TONE]
        assert len(tones) >= 4
        assert tone not in tones


def test_held_out_captions_are_the_same_every_time_and_none_is_seen():
    rows = catalogue.held_out(seed=4)
    assert (rows == catalogue.held_out(seed=4)).all()
    assert (rows != catalogue.held_out(seed=5)).any()
    assert len(np.unique(rows, axis=0)) == len(rows) >= 256
    assert not catalogue.split(rows).any()


def test_captions_to_learn_from_are_of_what_training_sees():
    rows = catalogue.sample(500, np.random.default_rng(0))
    assert catalogue.split(rows).all()
    assert len(np.unique(rows[:, NAME])) > 300


def test_a_figure_with_tones_has_half_the_weight_in_each(rows):
    weights = catalogue.weights(rows)
    assert weights.sum() == pytest.approx(1)
    assert weights.max() == pytest.approx(2 * weights.min())


def test_corruption_replaces_about_the_asked_share_and_gives_no_tone_where_there_is_none(rows):
    out = catalogue.corrupt(rows, 0.3, np.random.default_rng(0))
    assert 0.25 < (out[:, NAME] != rows[:, NAME]).mean() < 0.32
    assert (out[rows[:, TONE] == 0, TONE] == 0).all()
    assert (out[rows[:, TONE] > 0, TONE] > 0).all()
    assert out[:, CATEGORY].max() < len(catalogue.CATEGORIES)


def test_every_field_may_have_its_own_chance(rows):
    out = catalogue.corrupt(rows, [0.0, 0.0, 0.0, 0.5], np.random.default_rng(0))
    assert (out[:, :STYLE] == rows[:, :STYLE]).all()
    assert 0.2 < (out[:, STYLE] != rows[:, STYLE]).mean() < 0.3


def test_nothing_is_corrupted_at_chance_zero(rows):
    assert (catalogue.corrupt(rows, 0.0, np.random.default_rng(0)) == rows).all()
