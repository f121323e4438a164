import numpy as np
import pytest
import torch

from sdbench.models.emoji_sd import catalogue, reader
from sdbench.models.emoji_sd.catalogue import CATEGORY, NAME, STYLE, TONE

ROWS = np.stack(
    [
        catalogue.parse("penguin, animals and nature, fluent style"),
        catalogue.parse("man student, dark skin tone, people and body, noto style"),
    ]
)


class Told(torch.nn.Module):
    """A reader that sees what it is told."""

    def __init__(self, rows):
        super().__init__()
        self.rows = torch.from_numpy(rows)

    def forward(self, images):
        return [
            torch.nn.functional.one_hot(self.rows[:, field], count).float()
            for field, count in enumerate(reader.classes())
        ]


def shares(seen):
    images = torch.zeros(len(ROWS), 3, 64, 64)
    return reader.shares(ROWS, reader.shown(ROWS, images, Told(seen)))


def changed(field, row=1):
    seen = ROWS.copy()
    seen[row, field] = (seen[row, field] + 1) % reader.classes()[field]
    return seen


def test_what_shows_all_parts_is_fully_aligned():
    assert shares(ROWS).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("field", [STYLE, CATEGORY, TONE])
def test_a_wrong_part_costs_a_quarter_where_a_tone_is_named(field):
    assert shares(changed(field)).tolist() == [1.0, 0.75]


def test_a_tone_that_no_caption_names_is_not_judged():
    assert shares(changed(TONE, row=0))[0] == 1.0


def test_a_name_that_stands_behind_one_other_counts_half():
    told = Told(ROWS)
    scores = told(None)
    other = int(reader.others(int(ROWS[1, NAME]))[0])
    scores[NAME][1, other] = 2
    told.forward = lambda images: scores
    is_shown = reader.shown(ROWS, torch.zeros(2, 3, 64, 64), told)
    assert reader.shares(ROWS, is_shown).tolist() == [1.0, 0.875]


def test_the_other_names_are_199_always_the_same_and_never_the_right_one():
    for name in (0, 700, len(catalogue.names()) - 1):
        others = reader.others(name)
        assert len(set(others.tolist())) == reader.AMONG - 1
        assert name not in others
        assert others.max() < len(catalogue.names())
    assert (reader.others(3) == reader.others.__wrapped__(3)).all()


def test_shares_by_part_judge_tones_only_where_they_are_named():
    is_shown = reader.shown(ROWS, torch.zeros(2, 3, 64, 64), Told(changed(TONE)))
    assert reader.share_by_part(ROWS, is_shown)["tone"] == 0
    assert reader.share_by_part(ROWS, is_shown)["style"] == 1


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match="64 x 64"):
        reader.shown(ROWS, torch.zeros(2, 3, 32, 32), reader.Reader())


def test_a_number_of_captions_that_is_not_the_images_is_refused():
    with pytest.raises(ValueError, match="1 images but 2 captions"):
        reader.alignment(torch.zeros(1, 3, 64, 64), ["a", "b"])


def test_a_caption_outside_the_grammar_has_no_alignment():
    assert reader.alignment(torch.zeros(1, 3, 64, 64), ["a penguin"]).isnan().all()
