import numpy as np
import pytest
import torch

from sdbench.models.mini_sd import reader, scenes


def rows(*captions):
    return np.stack([scenes.parse(caption) for caption in captions])


def shown(wanted, seen):
    return reader.share_shown(rows(wanted), rows(seen)).item()


def drawn(count, seed=0):
    rng = np.random.default_rng(seed)
    wanted = scenes.sample(count, rng, split="test")
    return wanted, torch.from_numpy(scenes.draw(wanted, rng)).permute(0, 3, 1, 2).float() / 255


def test_the_shipped_reader_reads_held_out_scenes():
    wanted, images = drawn(1024)
    assert reader.attribute_accuracy(reader.read(images), wanted) >= 0.99


def test_alignment_of_drawn_scenes_with_their_own_captions_is_nearly_one():
    wanted, images = drawn(256, seed=1)
    values = reader.alignment(images, scenes.captions(wanted))
    assert values.shape == (256,)
    assert values.mean() > 0.98


def test_alignment_of_drawn_scenes_with_other_captions_is_low():
    wanted, images = drawn(256, seed=1)
    assert reader.alignment(images, scenes.captions(np.roll(wanted, 1, axis=0))).mean() < 0.6


def test_a_prompt_outside_the_grammar_has_no_alignment():
    wanted, images = drawn(2)
    values = reader.alignment(images, [scenes.captions(wanted)[0], "a photo of a dog"])
    assert values[0] > 0.5
    assert values[1].isnan()


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match="3 x 64 x 64, not 3 x 32 x 32"):
        reader.read(torch.zeros(1, 3, 32, 32))


TWO = "a large red circle left of a small blue ring on a white background"


@pytest.mark.parametrize(
    ("seen", "share"),
    [
        (TWO, 1.0),
        (
            "a small blue ring right of a large red circle on a white background",
            1.0,
        ),  # the same scene
        (
            "a small blue ring left of a large red circle on a white background",
            0.9,
        ),  # swapped: the relation is lost
        ("a large red circle above a small blue ring on a white background", 0.9),
        ("a large red circle left of a small blue ring on a black background", 0.9),
        ("a large striped red circle left of a small blue ring on a white background", 0.9),
        (
            "a small blue ring on a white background",
            0.5,
        ),  # a missing object loses its four and the relation
    ],
)
def test_share_shown_of_two_objects(seen, share):
    assert shown(TWO, seen) == pytest.approx(share)


def test_share_shown_of_one_object_ignores_a_second_one():
    wanted = "a small blue ring on a white background"
    assert shown(wanted, TWO) == 1
    assert shown(wanted, "a small blue ring on a black background") == pytest.approx(0.8)


def test_telling_a_scene_from_the_other_side_is_the_same_scene():
    same = rows(TWO, "a small blue ring right of a large red circle on a white background")
    first, second = reader.canonical(same)
    assert (first == second).all()


def test_shares_by_kind_are_those_of_the_attributes():
    wanted = rows(TWO, "a small blue ring on a white background")
    seen = rows(
        "a large striped red circle above a small blue ring on a white background",
        "a small blue star on a black background",
    )
    assert reader.share_by_kind(wanted, seen) == {
        "size": 1.0,
        "texture": pytest.approx(2 / 3),
        "colour": 1.0,
        "shape": pytest.approx(2 / 3),
        "relation": 0.0,
        "background": 0.5,
    }
    assert (
        reader.shown(wanted, seen).sum(axis=1) / [10, 5] == reader.share_shown(wanted, seen)
    ).all()


def test_exchanged_objects_are_counted_in_their_own_place():
    swapped = rows("a small blue ring left of a large red circle on a white background")
    assert reader.share_by_kind(rows(TWO), swapped) == {
        **dict.fromkeys(("size", "texture", "colour", "shape", "background"), 1.0),
        "relation": 0.0,
    }
