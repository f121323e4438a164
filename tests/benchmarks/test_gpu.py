"""The dry run of what a GPU can show: parts go on where they were, and leave tables on a page."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import distillation, page, parts, training
from benchmarks.gpu.parts import FULL, TINY, Command, Part

WAIT = "import time; time.sleep(60)"
SAYS = "print('measured')"
FAILS = "raise SystemExit(3)"


def python(code, folder=""):
    return Command(folder, f'{{python}} -c "{code}"')


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run made-up parts; the state of each."""

    def runs(*made, minutes=8.0, further=()):
        monkeypatch.setattr(gpu, "parts", lambda scale, device: list(made))
        code = gpu.main(["--out", str(tmp_path), "--minutes", str(minutes), *further])
        record = json.loads((tmp_path / "parts.json").read_text())
        return code, {name: own["state"] for name, own in record.items()}

    return runs


def test_a_part_that_is_done_is_not_run_again(run, tmp_path):
    part = Part("one", "does it?", [python(SAYS)])
    assert run(part) == run(part) == (0, {"one": "done"})
    printed = (tmp_path / "one" / "printed.txt").read_text()
    assert printed.count("\nmeasured\n") == 1
    assert "*does it?* State: done." in (tmp_path / "README.md").read_text()


def test_a_part_ends_in_its_time_and_goes_on_with_what_is_left(run):
    part = Part("long", "does it?", [python(SAYS), python(WAIT), python(SAYS + "; print()")])
    code, states = run(part, minutes=0.02)
    assert (code, states) == (0, {"long": "no time"})
    assert run(Part("long", "does it?", [python(SAYS), python(SAYS)])) == (0, {"long": "done"})


def test_a_failure_stops_no_other_part_and_shows_in_the_exit_code(run):
    code, states = run(Part("bad", "?", [python(FAILS)]), Part("good", "?", [python(SAYS)]))
    assert (code, states) == (1, {"bad": "failed", "good": "done"})


def test_what_needs_cuda_says_so_in_a_dry_run(run):
    part = Part("graph", "?", [python(FAILS)], needs_cuda=True)
    assert run(part, further=["--device", "cpu"]) == (0, {"graph": "needs CUDA"})


def test_wheels_that_are_not_there_are_named(tmp_path):
    with pytest.raises(SystemExit, match="holds no wheels"):
        gpu.main(["--out", str(tmp_path / "out"), "--wheels", str(tmp_path)])


def test_the_command_needs_nothing_but_python():
    """It is what installs the packages, so it must start without any."""
    code = (
        "import sys; sys.path.insert(0, '.'); import benchmarks.gpu.__main__, benchmarks.gpu.parts"
    )
    isolated = [sys.executable, "-I", "-S", "-c", code]
    subprocess.run(isolated, check=True, cwd=Path(gpu.__file__).parents[2])


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("scale", [FULL, TINY], ids=["full", "tiny"])
def test_every_part_has_a_question_and_texts_of_its_own(scale, device):
    made = parts.parts(scale, device)
    assert len({part.name for part in made}) == len(made) == 10
    texts = [(part.name, command.text) for part in made for command in part.commands]
    assert len(set(texts)) == len(texts)
    assert all(part.question for part in made)


@pytest.mark.slow
def test_the_studies_of_a_dry_run_are_on_the_page(tmp_path):
    """The first study and the table of modules, as the command runs them, at their smallest."""
    assert (
        gpu.main(["--out", str(tmp_path), "--tiny", "--device", "cpu", "--parts", "formats"]) == 0
    )
    said = (tmp_path / "README.md").read_text()
    assert "R is not known" in said or "R = " in said
    assert "| precision:int8wo |" in said
    assert "| precision:fp32@last:50% |" in said
    assert str(sys.executable) not in (tmp_path / "parts.json").read_text()


def test_both_ways_to_train_have_a_row(tmp_path, monkeypatch):
    for way in distillation.WAYS:
        distillation.main(tmp_path, model="mini-sd", height=32, steps=1, device="cpu", way=way)
    rows = (tmp_path / "distillation.csv").read_text().splitlines()
    assert rows[0].startswith("way,height,weights_bytes,student_bytes,target_bytes")
    assert [row.split('"')[1] for row in rows[1:]] == list(distillation.WAYS)


def test_training_leaves_a_row_a_turn(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "TURN", 1)
    monkeypatch.setattr(training, "POOL", 8)
    training.main(tmp_path, steps=2, device="cpu")
    assert len((tmp_path / "training.csv").read_text().splitlines()) == 3


def test_a_page_names_what_papers_say():
    assert page._published()["last:20%"] == "8.2 (Selective guidance)"


@pytest.mark.gpu
def test_bytes_of_parts_add_up_to_no_more_than_the_peak(tmp_path):
    row = distillation.measured("distillation, LoRA", "mini-sd", 64, 1, torch.device("cuda"))
    held = sum(
        value for name, value in row.items() if name.endswith("_bytes") and "peak" not in name
    )
    assert 0 < held <= row["peak_bytes"]
