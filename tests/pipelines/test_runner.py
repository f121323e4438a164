"""Classes run each in their own process, once; what does not run is listed with its reason."""

import json
import time

import pytest

from tests.pipelines import toys
from tools.pipelines import runner, small
from tools.pipelines.outcomes import NOT_BUILT, UNCLEAR, WITHOUT, WORKS

ROW = {"batch": 1, "outcome": WORKS, "reason": "", "calls": 1, "order": "unconditional first"}


def recipe(kind):
    return toys.small("one call")


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setattr(runner, "RECIPES", {"Toy": recipe})
    monkeypatch.setattr(runner, "WITHOUT_HALVES", {"Plain": "it does not guide"})
    monkeypatch.setattr(runner, "judged", lambda one, images: ROW | {"batch": images})


def rows(kinds, folder, **changes):
    settings = {"jobs": 1, "again": False} | changes
    return list(runner.results(kinds, folder=folder, **settings))


def test_a_class_runs_once(tmp_path):
    (first,) = rows({"Toy": toys.Toy}, tmp_path)
    assert (first["outcome"], [b["batch"] for b in first["batches"]]) == (WORKS, [1, 2])

    # What is kept is what comes again.
    path = tmp_path / "Toy.json"
    path.write_text(json.dumps(first | {"reason": "kept"}))
    assert rows({"Toy": toys.Toy}, tmp_path)[0]["reason"] == "kept"
    assert rows({"Toy": toys.Toy}, tmp_path, again=True)[0]["reason"] == ""

    path.write_text(json.dumps(first | {"reason": "stale", "key": "of other code"}))
    assert rows({"Toy": toys.Toy}, tmp_path)[0]["reason"] == ""


def test_classes_that_do_not_run_are_listed(tmp_path):
    kinds = {"Plain": toys.Toy, "Other": toys.Toy, "Lacking": "ImportError: no sentencepiece"}
    found = {row["name"]: (row["outcome"], row["reason"]) for row in rows(kinds, tmp_path)}
    assert found == {
        "Plain": (WITHOUT, "it does not guide"),
        "Other": (NOT_BUILT, "no recipe"),
        "Lacking": (NOT_BUILT, "ImportError: no sentencepiece"),
    }


def test_a_recipe_that_fails_is_a_row(monkeypatch):
    def failing(kind):
        raise TypeError("missing argument\nand more")

    monkeypatch.setitem(runner.RECIPES, "Toy", failing)
    row = runner.examined("Toy", toys.Toy)
    assert (row["outcome"], row["reason"]) == (NOT_BUILT, "TypeError: missing argument")


def test_the_gravest_batch_counts(monkeypatch):
    def judged(one, images):
        return ROW | {"batch": images, "outcome": [WORKS, UNCLEAR][images - 1], "reason": "why"}

    monkeypatch.setattr(runner, "judged", judged)
    row = runner.examined("Toy", toys.Toy)
    assert (row["outcome"], row["reason"]) == (UNCLEAR, "why")


def test_a_class_that_takes_too_long_is_stopped(monkeypatch, tmp_path):
    monkeypatch.setattr(runner, "LIMIT_S", 0.2)
    monkeypatch.setattr(runner, "judged", lambda one, images: time.sleep(60))
    (row,) = rows({"Toy": toys.Toy}, tmp_path)
    assert row["outcome"] == UNCLEAR
    assert "within 0.2 s" in row["reason"]


def test_the_hash_knows_the_files_of_a_recipe(monkeypatch):
    files = runner._files_of(small)
    assert [file.name for file in files] == ["small.py"]
