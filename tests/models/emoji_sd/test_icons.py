import json

import numpy as np
import pytest

from sdbench.models.emoji_sd import catalogue, icons

SHAPES = {
    "apple": "circle",
    "police-car-light": "rect",
    **{f"woman{tone}": f"w{tone}" for tone in ("", "-light", "-medium", "-dark")},
    **{f"woman{tone}": f"w{tone}" for tone in ("-medium-light", "-medium-dark")},
    "red-apple": "circle",
    "couple-dark-skin-tone-light-skin-tone": "two",
}


@pytest.fixture
def folder(tmp_path):
    package = tmp_path / icons.PACKAGES["fluent"]
    package.mkdir()
    drawings = {icon: {"body": f"<{shape}/>"} for icon, shape in SHAPES.items()}
    listed = {"Food & Drink": ["apple", "red-apple"], "People & Body": [*SHAPES][1:-2]}
    listed["People & Body"].append("couple-dark-skin-tone-light-skin-tone")
    whole = {"icons": drawings | {"hidden": {"body": "<old/>"}}, "width": 32, "height": 32}
    (package / "icons.json").write_text(json.dumps(whole))
    (package / "metadata.json").write_text(json.dumps({"categories": listed}))
    return tmp_path


def test_tones_are_read_off_names_that_have_all_five(folder):
    drawings = icons.read(folder, "fluent")
    assert {tone for name, tone in drawings if name == "woman"} == set(range(6))
    assert drawings["woman", 4][1].count("w-medium-dark") == 1
    assert ("police car light", 0) in drawings


def test_second_names_hidden_icons_and_two_tones_are_left_out(folder):
    names = {name for name, _ in icons.read(folder, "fluent")}
    assert names == {"apple", "police car light", "woman"}


def test_a_drawing_has_its_category_and_its_box(folder):
    category, svg = icons.read(folder, "fluent")["apple", 0]
    assert category == "food and drink"
    assert 'viewBox="0 0 32 32"' in svg


def test_pictures_are_drawn_on_white(folder):
    pytest.importorskip("resvg_py")
    shape = '<rect width="16" height="32" fill="#f00"/>'
    svg = icons._svg({"width": 32, "height": 32}, {"body": shape})
    picture = icons._rasterised(svg)
    assert picture.shape == (catalogue.SIDE, catalogue.SIDE, 3)
    assert (picture[32, 0] == [255, 0, 0]).all()
    assert (picture[32, 63] == 255).all()


def test_a_package_without_a_drawing_is_refused(folder, monkeypatch):
    other = folder / icons.PACKAGES["noto"]
    (folder / icons.PACKAGES["fluent"]).rename(other)
    for file in ("icons.json", "metadata.json"):
        (folder / icons.PACKAGES["fluent"]).mkdir(exist_ok=True)
        (folder / icons.PACKAGES["fluent"] / file).write_text((other / file).read_text())
    monkeypatch.setattr(catalogue, "pictures", lambda: np.array([[0, 0, 0, 0]]))
    with pytest.raises(ValueError, match="fluent-emoji-flat has no '1st place medal'"):
        icons.draw(folder)
