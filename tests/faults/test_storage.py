"""A closed folder, a full disk, two processes on one study: one line each, and nothing is lost."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from sdbench.cli import app
from sdbench.experiments.branch_choice import BranchChoice
from sdbench.experiments.sensitivity import sweep
from sdbench.models import registry
from sdbench.records.store import StudyFolder, read, read_sweep
from sdbench.study.generation import Generation
from tests import tiny

ROOT = Path(__file__).parents[2]
QUICK = [
    "run",
    "--num-steps",
    "2",
    "--repeats",
    "1",
    "--variants",
    "cfg,last:50%",
    "--metrics",
    "ssim",
    "--out",
]


@pytest.fixture(autouse=True)
def layout_as_it_is(monkeypatch):
    """Choosing a memory format takes seconds when the model is opened; it has its own tests."""
    monkeypatch.setattr(registry, "lay_out", lambda pipe: None)


def refused(*arguments):
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def start(program, *arguments, **options):
    """A Python program in a process of its own, which has said its first line."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, **options
    )
    assert process.stdout.readline().strip() == "ready"
    return process


HOLD = """
import sys
from sdbench.records.store import StudyFolder
with StudyFolder.create(sys.argv[1], {"name": "held"}, environment={}):
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_told_and_goes_on_when_the_first_was_killed(tmp_path):
    folder = tmp_path / "study"
    holding = start(HOLD, folder)
    try:
        for options in ([], ["--resume"], ["--overwrite"]):
            assert f"{folder} is being written by another process" in refused(
                *QUICK, folder, *options
            )
        with pytest.raises(ValueError, match="is being written by another process"):
            StudyFolder.create(folder, {"name": "held"}, environment={}, mode="resume")
    finally:
        holding.send_signal(signal.SIGKILL)
        holding.communicate()
    StudyFolder.create(folder, {"name": "held"}, environment={}, mode="resume").close()


READ_ONLY = """
import os, sys
from sdbench.records.store import StudyFolder, read
print("ready", flush=True)
read(sys.argv[1])
if os.geteuid() == 0:
    os.setuid(65534)  # root may write anywhere
read(sys.argv[1])
for folder in sys.argv[2:]:
    try:
        StudyFolder.create(folder, {}, environment={}, mode="resume")
    except ValueError as error:
        print(error)
"""


def test_a_read_only_folder_is_named_and_its_study_is_still_read():
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        folder = Path(name)
        study, bare = folder / "study", folder / "bare"
        StudyFolder.create(study, {}, environment={"cores": 1}).close()
        (study / ".sdbench-lock").unlink()  # its owner could still open it
        bare.mkdir()
        for closed in (study, bare, folder):
            closed.chmod(0o555)
        try:
            said, _ = start(READ_ONLY, study, study, bare, folder / "new").communicate()
        finally:
            for closed in (folder, study, bare):
                closed.chmod(0o755)
    assert said.splitlines() == [
        f"{path} cannot be written to: Permission denied" for path in (study, bare, folder / "new")
    ]


def test_a_command_says_that_a_folder_cannot_be_written(tmp_path):
    """The kernel's own folders are closed even to root."""
    for parent in ("/proc", "/sys"):
        assert f"{parent}/study cannot be written to: " in refused(*QUICK, f"{parent}/study")


FULL = """
import resource, sys
import pandas as pd
from sdbench.records.store import StudyFolder, read
from tests.faults.driver import rows
print("ready", flush=True)
with StudyFolder.create(sys.argv[1], {}, environment={"cores": 1}) as folder:
    images = rows("images", {"unit": "a"})
    steps = rows("steps", {"unit": "a"})
    folder.add("a", runs=rows("runs", {"unit": "a"}), steps=steps, images=images)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**15, 2**15))
    numbers = [(f"{i}", f"{i * 7919:x}" * 20) for i in range(5_000)]
    images = rows("images", *({"unit": "b", "prompt_id": i, "prompt": text} for i, text in numbers))
    try:
        folder.add("b", runs=rows("runs", {"unit": "b"}), steps=rows("steps"), images=images)
    except OSError as error:
        print(type(error).__name__, error.errno)
"""


def test_a_write_that_stops_halfway_leaves_what_was_there(tmp_path):
    """The system lets no file grow further, as on a full disk, in the middle of a table."""
    said, _ = start(FULL, tmp_path / "study").communicate()
    assert said.split()[0] == "OSError"
    assert list(read(tmp_path / "study").runs["unit"]) == ["a"]
    assert not list((tmp_path / "study").rglob(".sdbench-0*"))


def full(add, calls):
    """The disk is full when as many units were recorded."""

    def adding(folder, unit, **tables):
        if calls[0] == 0:
            raise OSError(28, os.strerror(28))
        calls[0] -= 1
        add(folder, unit, **tables)

    return adding


def test_a_full_disk_ends_a_command_with_one_line_and_it_resumes(tmp_path, monkeypatch):
    add = StudyFolder.add
    monkeypatch.setattr(StudyFolder, "add", full(add, [2]))
    assert "No space left on device" in refused(*QUICK, tmp_path / "study")
    before = read(tmp_path / "study").runs
    assert len(before) == 2
    monkeypatch.setattr(StudyFolder, "add", add)
    done = CliRunner().invoke(app, [*QUICK, str(tmp_path / "study"), "--resume"])
    assert done.exit_code == 0, done.output
    after = read(tmp_path / "study").runs
    assert len(after) == 6
    pd.testing.assert_frame_equal(
        after[after["unit"].isin(before["unit"])], before, check_exact=True
    )


def test_a_full_disk_ends_a_sweep_and_keeps_what_was_finished(tmp_path, monkeypatch):
    monkeypatch.setattr(StudyFolder, "add", full(StudyFolder.add, [2]))
    fields = {"prompts": tiny.PROMPTS, "seeds": [0], "num_steps": 4, "guidance_scale": 7.5}
    pipe, generation = tiny.stable_diffusion(), Generation(model="tiny", **fields)
    with pytest.raises(OSError, match="No space left"):
        sweep(pipe, generation, BranchChoice(max_rows=2), tmp_path, metrics=["psnr"])
    assert read_sweep(tmp_path).sensitivity["mask"].nunique() == 2
