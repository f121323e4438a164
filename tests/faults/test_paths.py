"""What a foreign table or list names lies within its folder, or is refused."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sdbench.distill.captions import image_folder
from sdbench.records import schema
from sdbench.records.files import inside
from sdbench.records.store import Results, StudyFolder
from sdbench.report.figures import image_grid
from sdbench.report.pictures import pictures
from sdbench.study.images import read_images
from sdbench.study.study import Study


@pytest.fixture
def folder(tmp_path):
    """A results folder beside an image that is not its own, with a link that leads there."""
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "private.png")
    folder = tmp_path / "results"
    (folder / "images").mkdir(parents=True)
    Image.fromarray(np.full((4, 4, 3), 255, np.uint8)).save(folder / "images" / "own.png")
    (folder / "images" / "link.png").symlink_to(tmp_path / "private.png")
    (folder / "elsewhere").symlink_to(tmp_path)
    return folder


def outside(folder):
    absolute = str(folder.parent / "private.png")
    return [
        "../private.png",
        "images/../../private.png",
        absolute,
        "images/link.png",
        "elsewhere/private.png",
        "a\0b",
    ]


def shown(folder, path):
    image = {
        "unit": "a",
        "variant": "cfg",
        "prompt_id": "0",
        "prompt": "a ring",
        "seed": 0,
        "path": path,
    }
    runs = pd.DataFrame({"unit": ["a"], "variant": ["cfg"], "repeat": [0]})
    images = schema.frame("images", [image])
    return Results(folder, runs, schema.empty("steps"), images, environment={}, study={})


def listed(folder, path):
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": path, "text": "a ring"}))
    return image_folder(folder, side=4)(np.random.default_rng(0), 1)


OPENERS = {
    "metrics and distances": lambda folder, path: read_images(folder, [path]),
    "grid": lambda folder, path: image_grid(shown(folder, path), pairs=[("0", 0)]),
    "page": lambda folder, path: pictures(shown(folder, path)),
    "captioned images": listed,
}


@pytest.mark.parametrize("opener", OPENERS)
def test_a_path_out_of_the_folder_is_refused_wherever_images_are_opened(folder, opener):
    OPENERS[opener](folder, "images/own.png")
    for path in outside(folder):
        with pytest.raises(ValueError, match="leads out of the folder"):
            OPENERS[opener](folder, path)


def test_a_folder_that_is_itself_behind_a_link_holds_its_own(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert inside(tmp_path / "link", "images/own.png").is_file()


def test_a_study_is_not_named_out_of_its_folder():
    fields = {
        "model": "mini-sd",
        "variants": ["cfg"],
        "prompts": ["a"],
        "seeds": [0],
        "num_steps": 4,
    }
    with pytest.raises(ValueError, match="name must be fit for the name of a folder"):
        Study(**fields, guidance_scale=5.0, name="../../elsewhere")


def test_overwriting_a_study_removes_nothing_behind_a_link(folder, tmp_path):
    study = tmp_path / "study"
    StudyFolder.create(study, {}, environment={}).close()
    (study / "images").symlink_to(folder / "images")
    with pytest.raises(ValueError, match="is a link"):
        StudyFolder.create(study, {}, environment={}, mode="overwrite")
    assert (folder / "images" / "own.png").exists()


def test_every_image_is_opened_in_one_place():
    package = Path(schema.__file__).parents[1]
    opening = {file.name for file in package.rglob("*.py") if "Image.open(" in file.read_text()}
    # icons.py opens what it has just drawn itself.
    assert opening == {"files.py", "icons.py"}
