"""What is stored of an embedded model was made by the weights that ship, and nobody edited it."""

import json

import pytest

from sdbench.models.grammars import GRAMMARS
from tools.results import made
from tools.results.__main__ import RESULTS
from tools.results.made import Made
from tools.results.recipe import in_order, names

MODELS = {recipe.name: recipe.model for recipe in in_order(RESULTS, names(RESULTS))}
FOLDERS = [name for name, model in MODELS.items() if model in GRAMMARS]
NETWORKS = ("unet", "vae", "text_encoder", "tokenizer")
STUDIES = sorted(path for model in GRAMMARS for path in RESULTS.glob(f"{model}/**/study.json"))


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_was_made_by_the_model_that_ships(name):
    record = Made.read(RESULTS / name)
    assert record is not None, f"run `nox -s results -- {name}`"
    assert record.inputs["model"] == made.model(MODELS[name])
    assert made.edits(RESULTS / name, record) == []


@pytest.mark.parametrize(
    "path", STUDIES, ids=lambda path: path.parent.relative_to(RESULTS).as_posix()
)
def test_a_study_names_the_networks_that_ship(path):
    stored = json.loads(path.read_text("utf-8")).get("pipeline")
    if stored is not None:  # a training names its base in the student's card
        own = made.model(path.relative_to(RESULTS).parts[0])
        assert {name: stored[name] for name in NETWORKS} == {name: own[name] for name in NETWORKS}


def test_another_model_is_seen(monkeypatch):
    record = Made.read(RESULTS / FOLDERS[0])
    assert record is not None
    assert made.changes(record, record.inputs | {"model": {"unet": "another"}}) == ["another model"]
