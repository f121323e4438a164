import torch

from sdbench.instruments.quality import score


def test_alignment_hands_images_and_prompts_to_the_reader(monkeypatch):
    from sdbench.models.mini_sd import reader

    monkeypatch.setattr(
        reader, "alignment", lambda images, captions: images[:, 0, 0, 0] + len(captions[0])
    )
    images = torch.full((2, 3, 16, 16), 0.5)
    assert score("alignment", images, ["a", "bb"], batch=1).tolist() == [1.5, 2.5]
