"""Folders of results are made from their recipes, and only where something has changed."""

import json
from dataclasses import replace

import pytest

from sdbench.models.registry import MODELS
from tools.results import __main__ as command
from tools.results import build, made, ship
from tools.results.recipe import in_order, read

RECIPE = """
[[part]]
out = "."
command = ["sdbench run {here}/study.toml", "sdbench distances {out}"]

[[part]]
each = [1, 2]
out = "rank-{each}"
command = "sdbench distill --rank {each}"
scratch = true

[[part]]
out = "quality"
command = "sdbench run --variants rank-1,rank-2 --prompts-file {root}/prompts.txt"
"""


class Commands:
    """Stands for the program: every command writes a file that holds its words."""

    def __init__(self, die_at=None):
        self.ran = []
        self.die_at = die_at

    def __call__(self, words, folder):
        self.ran.append(words)
        if len(self.ran) == self.die_at:
            raise KeyboardInterrupt
        out = folder / (words[words.index("--out") + 1] if "--out" in words else words[2])
        (out / "images").mkdir(parents=True, exist_ok=True)
        (out / "images" / "a.png").write_text("an image")
        (out / "runs.parquet").write_text(" ".join(words[:2]))
        return 0


@pytest.fixture(autouse=True)
def small_model(monkeypatch):
    """What mini-sd is, without opening it."""
    found = {"unet": "first"}
    monkeypatch.setattr(made, "model", lambda name: found)
    return found


@pytest.fixture
def project(tmp_path):
    add(tmp_path, "a", RECIPE)
    return tmp_path


def add(root, name, recipe):
    folder = root / "results" / name
    folder.mkdir(parents=True)
    (root / "prompts.txt").write_text("a prompt")
    (folder / "recipe.toml").write_text(recipe)
    (folder / "README.md").write_text("by hand")
    (folder / "study.toml").write_text("name = 'a'")


def build_all(root, run=None):
    run = run or Commands()
    builder = build.Builder(root / "results", root / "runs", run)
    planned = command.plan(root / "results", [])
    for one in planned:
        builder.build(one.recipe, made.inputs(root / "results", one.recipe))
    return [one.recipe.name for one in planned], run


def quality(root):
    prompts = ["--prompts-file", f"{root}/prompts.txt"]
    return ["sdbench", "run", "--variants", "rank-1,rank-2", *prompts, "--out", "quality"]


def stored(root, name):
    folder = root / "results" / name
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_a_folder_holds_what_its_parts_made_without_scratch_and_images(project):
    _, run = build_all(project)
    authored = ["README.md", "made.json", "recipe.toml", "study.toml"]
    assert stored(project, "a") == sorted([*authored, "quality/runs.parquet", "runs.parquet"])
    assert run.ran == [
        ["sdbench", "run", f"{project}/results/a/study.toml", "--out", "self"],
        ["sdbench", "distances", "self"],
        ["sdbench", "distill", "--rank", "1", "--out", "rank-1"],
        ["sdbench", "distill", "--rank", "2", "--out", "rank-2"],
        quality(project),
    ]


def test_what_is_up_to_date_is_not_made_again(project):
    build_all(project)
    names, run = build_all(project)
    assert (names, run.ran) == ([], [])


@pytest.mark.parametrize("change", ["model", "recipe", "study", "captions"])
def test_another_input_makes_it_again(project, change, small_model):
    build_all(project)
    if change == "model":
        small_model["unet"] = "second"
    if change == "recipe":
        (project / "results" / "a" / "recipe.toml").write_text(RECIPE.replace("[1, 2]", "[1]"))
    if change == "captions":
        (project / "prompts.txt").write_text("another")
    if change == "study":
        (project / "results" / "a" / "study.toml").write_text("name = 'other'")
    (planned,) = command.plan(project / "results", [])
    assert planned.why == [f"another {'model' if change == 'model' else 'recipe'}"]
    assert planned.seconds is not None
    assert build_all(project)[0] == ["a"]


def test_a_folder_follows_what_it_needs(project, small_model):
    add(project, "0-before", f'needs = ["a"]\nuses = {{"x.parquet" = "a/runs.parquet"}}\n{RECIPE}')
    assert build_all(project)[0] == ["a", "0-before"]
    (project / "results" / "a" / "study.toml").write_text("name = 'other'")
    planned = command.plan(project / "results", [])
    assert [one.why for one in planned] == [["another recipe"], ["a is made again"]]


def test_a_killed_run_goes_on_where_it_was(project):
    killed = Commands(die_at=4)
    with pytest.raises(KeyboardInterrupt):
        build_all(project, killed)
    assert stored(project, "a") == ["README.md", "recipe.toml", "study.toml"]
    _, run = build_all(project)
    assert run.ran == [
        ["sdbench", "distill", "--rank", "2", "--out", "rank-2"],
        quality(project),
    ]


def test_a_study_in_progress_is_resumed(project):
    with pytest.raises(KeyboardInterrupt):
        build_all(project, Commands(die_at=5))
    (work,) = (project / "runs" / "a").iterdir()
    (work / "quality").mkdir()
    _, run = build_all(project)
    assert [words[-1] for words in run.ran] == ["--resume"]


def test_a_failed_command_is_named_and_stores_nothing(project):
    with pytest.raises(ValueError, match=r"a: part '.' failed with status 3: sdbench run"):
        build_all(project, lambda words, folder: 3)
    assert stored(project, "a") == ["README.md", "recipe.toml", "study.toml"]


def test_a_full_disk_leaves_what_was_stored(project, monkeypatch, small_model):
    build_all(project)
    before = {name: (project / "results" / "a" / name).read_text() for name in stored(project, "a")}
    small_model["unet"] = "second"

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build.shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        build_all(project)
    monkeypatch.undo()
    assert {n: (project / "results" / "a" / n).read_text() for n in stored(project, "a")} == before


def test_storing_that_was_cut_off_is_done_again(project, monkeypatch, small_model):
    small_model["unet"] = "second"
    build_all(project)
    folder = project / "results" / "a"
    (folder / ".new").mkdir()
    (folder / "runs.parquet").unlink()
    (planned,) = command.plan(project / "results", [])
    assert planned.why == ["storing it was cut off"]
    names, run = build_all(project)
    assert (names, run.ran) == (["a"], [])
    assert "runs.parquet" in stored(project, "a")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda folder: (folder / "runs.parquet").write_text("mine"), "runs.parquet was changed"),
        (lambda folder: (folder / "runs.parquet").unlink(), "runs.parquet is missing"),
        (lambda folder: (folder / "mine.csv").write_text("mine"), "mine.csv was added"),
    ],
)
def test_an_edited_folder_is_refused(project, edit, words):
    build_all(project)
    edit(project / "results" / "a")
    with pytest.raises(ValueError, match=f"results/a was edited since it was made .{words}"):
        command.plan(project / "results", [])
    (planned,) = command.plan(project / "results", [], overwrite=True)
    assert planned.why == [words]


def test_prose_may_be_edited(project):
    build_all(project)
    (project / "results" / "a" / "README.md").write_text("other words")
    assert command.plan(project / "results", []) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"no \[\[part\]\]"),
        ("part = 3", "'part' cannot be 3"),
        ("captions = true", "'captions' cannot be True"),
        ("parts = []", "unknown 'parts'"),
        ("[[part]]\nout = 'a'", "needs `out` and `command`"),
        ("[[part]]\nout = 'a'\ncommand = 'rm -r /'", "begins with sdbench or python"),
        ("[[part]]\nout = '../a'\ncommand = 'sdbench run'", "not below the folder"),
        ("[[part]]\nout = 'a'\ncommand = 'sdbench run'\n" * 2, "two parts write 'a'"),
        ("needs = ['b']\n" + RECIPE, "needs b, which has no recipe.toml"),
        ("needs = ['a']\n" + RECIPE, "need each other"),
        ("not toml", "cannot be read"),
    ],
)
def test_a_wrong_recipe_is_refused_in_a_line(tmp_path, text, words):
    add(tmp_path, "a", text)
    with pytest.raises(ValueError, match=words) as refused:
        in_order(tmp_path / "results", ["a"])
    assert "\n" not in str(refused.value)


def test_a_folder_without_a_recipe_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"results/b/recipe.toml is missing"):
        read(tmp_path / "results", "b")


def test_a_study_that_is_missing_is_named(project):
    (project / "results" / "a" / "study.toml").unlink()
    with pytest.raises(
        ValueError, match=r"results/a/study.toml is missing, which .*results/a/recipe.toml reads"
    ):
        command.plan(project / "results", [])


def test_a_broken_record_is_named(project):
    (project / "results" / "a" / "made.json").write_text("{")
    with pytest.raises(ValueError, match=r"made.json cannot be read"):
        command.plan(project / "results", [])


def test_the_estimate_is_that_of_the_last_time(project, small_model):
    build_all(project)
    path = project / "results" / "a" / "made.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": {".": 600, "b": 60}}))
    small_model["unet"] = "second"
    planned = command.plan(project / "results", [])
    assert command._estimate(planned) == (
        "results/a: another model (11 min, as last time)\n1 to make: 11 min, as last time"
    )
    never = [replace(planned[0], seconds=None)]
    assert "never timed" in command._estimate(never)


@pytest.fixture
def here(project, monkeypatch):
    """The command line on the small project; what ran."""
    run = Commands()
    monkeypatch.setattr(command, "RESULTS", project / "results")
    monkeypatch.setattr(command, "WORK", project / "runs")
    monkeypatch.setattr(build, "run_command", run)
    return run


def test_check_and_dry_run_make_nothing_and_check_fails(here, project, capsys):
    assert command.main(["--check"]) == 1
    assert command.main(["--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("results/a: never made (never timed)\n")
    assert here.ran == []
    assert command.main([]) == 0
    assert command.main(["--check"]) == 0
    assert "everything is up to date" in capsys.readouterr().out


def test_what_is_wrong_is_one_line_and_exit_code_1(here, capsys):
    assert command.main(["b"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_command_runs_in_its_folder_and_finds_the_project(tmp_path):
    words = ["python", "-c", "import tools.results, pathlib; pathlib.Path('seen').touch()"]
    assert build.run_command(words, tmp_path) == 0
    assert (tmp_path / "seen").exists()
    assert build.run_command(["sdbench", "run", "--seeds", "x"], tmp_path) == 2


def test_a_student_is_put_in_the_place_of_the_models_own(tmp_path, monkeypatch):
    own, student = tmp_path / "adapter", tmp_path / "student"
    for folder, name in ((own, "old.safetensors"), (student, "new.safetensors")):
        folder.mkdir()
        (folder / name).touch()
    (own / "README.md").touch()
    monkeypatch.setitem(ship.MODELS, "mini-sd", replace(MODELS["mini-sd"], adapter=str(own)))
    ship.ship(student)
    assert sorted(path.name for path in own.iterdir()) == ["README.md", "new.safetensors"]
    with pytest.raises(ValueError, match="holds no student"):
        ship.ship(tmp_path)
