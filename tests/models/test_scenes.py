import numpy as np
import pytest

from sdbench.models.mini_sd import scenes
from sdbench.models.mini_sd.scenes import ABSENT, BACKGROUND, FIRST, RELATION, SECOND, WORDS


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("split", ["train", "test"])
def test_captions_read_back_as_the_scenes_they_describe(rng, split):
    rows = scenes.sample(500, rng, split=split)
    assert all(
        (scenes.parse(text) == row).all()
        for text, row in zip(scenes.captions(rows), rows, strict=True)
    )


def test_no_training_scene_has_an_object_of_the_held_out_set(rng):
    rows = scenes.sample(5000, rng, split="train")
    assert not scenes.held_out(rows[:, FIRST]).any()
    assert not scenes.held_out(rows[:, SECOND]).any()


def test_every_test_caption_names_an_object_that_training_never_drew(rng):
    train = {tuple(row[1:4]) for row in scenes.sample(20_000, rng, split="train")}
    test = {tuple(row[1:4]) for row in scenes.sample(2000, rng, split="test")}
    assert len(test) == 18
    assert not train & test
    assert len(train) == 3 * 8 * 6 - 18


def test_every_word_of_every_field_is_drawn(rng):
    rows = scenes.sample(5000, rng, split="train")
    seen = [set(column[column != ABSENT]) for column in rows.T]
    assert seen == [set(range(len(words))) for words in WORDS]


def test_an_object_never_has_the_colour_of_its_background(rng):
    rows = scenes.sample(5000, rng, split="train")
    assert not (rows[:, 2] == rows[:, BACKGROUND]).any()
    assert not (rows[:, 7] == rows[:, BACKGROUND]).any()


def test_corruption_changes_a_field_as_often_as_asked(rng):
    rows = scenes.sample(20_000, rng, split="train")
    changed = (scenes.corrupt(rows, 0.4, rng) != rows)[:, BACKGROUND].mean()
    assert changed == pytest.approx(
        0.4 * 7 / 8, abs=0.01
    )  # one draw in eight repeats the old colour


def test_corruption_never_makes_a_held_out_caption_or_another_number_of_objects(rng):
    rows = scenes.sample(20_000, rng, split="train")
    noisy = scenes.corrupt(rows, 0.5, rng)
    assert not scenes.held_out(noisy[:, FIRST]).any()
    assert not scenes.held_out(noisy[:, SECOND]).any()
    assert ((noisy[:, RELATION] == 0) == (rows[:, RELATION] == 0)).all()


def test_drawing_repeats_for_the_same_generator():
    rows = scenes.sample(20, np.random.default_rng(1), split="train")
    first, second = (scenes.draw(rows, np.random.default_rng(2)) for _ in range(2))
    assert (first == second).all()
    assert first.shape == (20, 64, 64, 3)


def test_a_scene_shows_its_colours(rng):
    row = scenes.parse("a large red circle on a white background")
    image = (
        scenes.draw(np.repeat(row[None], 50, axis=0), rng).reshape(50, -1, 3).astype(float) / 255
    )
    red = (np.abs(image - scenes.RGB[0]).max(axis=2) < 0.2).mean()
    white = (np.abs(image - scenes.RGB[7]).max(axis=2) < 0.2).mean()
    assert 0.1 < red < 0.2
    assert white > 0.7


def test_an_object_is_the_same_pattern_wherever_it_stands(rng):
    row = scenes.parse("a small dotted red star on a white background")
    images = scenes.draw(np.repeat(row[None], 40, axis=0), rng).astype(float)
    patterns, corners = [], set()
    for image in images:
        covered = np.ptp(image, axis=2) > 60  # the background is grey
        top, left = covered.any(axis=1).argmax(), covered.any(axis=0).argmax()
        patterns.append(covered[top : top + 18, left : left + 18])
        corners.add((top % scenes.GRID, left % scenes.GRID))
    assert len(corners) == 1
    assert np.mean([(pattern == patterns[0]).mean() for pattern in patterns]) > 0.99


@pytest.mark.parametrize(
    "caption",
    [
        "a red circle on a white background",
        "a large red circle",
        "a large pink circle on a white background",
        "a large red circle near a small blue ring on a white background",
        "",
    ],
)
def test_captions_outside_the_grammar_are_not_scenes(caption):
    assert scenes.parse(caption) is None
