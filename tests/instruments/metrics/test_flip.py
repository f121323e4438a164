import pytest
from flip_evaluator import evaluate
from torchvision.transforms.functional import to_pil_image

from sdbench.instruments.quality import score


def test_flip_agrees_with_its_own_reading_of_files(pair, tmp_path):
    for name, image in (("test", pair[0][2]), ("reference", pair[1][2])):
        to_pil_image(image).save(tmp_path / f"{name}.png")
    _, expected, _ = evaluate(str(tmp_path / "reference.png"), str(tmp_path / "test.png"), "LDR")
    assert score("flip", *pair)[2].item() == pytest.approx(expected, rel=1e-5)
