import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdbench.records import files, schema, store
from sdbench.records.store import StudyFolder, read

STUDY = {"model": "mini-sd", "seeds": [0, 1]}


def create(path, study=STUDY, environment=None, mode="new"):
    return StudyFolder.create(path, study, environment=environment or {"cores": 2}, mode=mode)


def listing(path):
    return {
        str(file.relative_to(path))
        for file in path.rglob("*")
        if not file.is_dir() and "lock" not in file.name
    }


@pytest.fixture
def path(tmp_path):
    return tmp_path / "study"


def test_new_study_reads_back_empty(path):
    create(path).close()
    results = read(path)
    assert (results.study, list(results.environment.values())) == (STUDY, [{"cores": 2}])
    for table in schema.STUDY:
        pd.testing.assert_frame_equal(getattr(results, table), schema.empty(table))


def test_units_read_the_same_before_and_after_compaction(path, parts):
    with create(path) as folder:
        for unit in "abc":
            folder.add(unit, **parts(unit))
        before = read(path)
        folder.compact()
    for table in schema.STUDY:
        pd.testing.assert_frame_equal(getattr(before, table), getattr(read(path), table))
    assert list(before.runs["unit"]) == ["a", "b", "c"]
    assert not (path / "parts").exists()


NEEDED = {"runs": ["variant", "latency_s"], "images": ["variant", "lpips"]}


def test_some_columns_come_with_the_key_and_text_as_ordered_categories(path, parts):
    with create(path) as folder:
        for unit in "ba":
            folder.add(unit, **parts(unit, latency_s=0.5))
        folder.compact()
    whole, some = read(path), read(path, columns=NEEDED)
    assert list(some.runs) == ["unit", "variant", "latency_s"]
    assert list(some.steps) == ["unit", "step"]
    assert list(some.images) == ["unit", "variant", "prompt_id", "seed", "lpips"]
    assert list(some.runs["unit"].cat.categories) == ["a", "b"]
    for table in schema.STUDY:
        found = getattr(some, table)
        text = found.select_dtypes("category").columns
        pd.testing.assert_frame_equal(
            found.astype(dict.fromkeys(text, "string")), getattr(whole, table)[list(found)]
        )


def test_some_columns_read_the_same_before_and_after_compaction(path, parts):
    with create(path) as folder:
        folder.add("b", **parts("b", message="first"))
        folder.compact()
        folder.add("b", **parts("b", num_steps=3))
        folder.add("a", **parts("a", message="last"))
        before = read(path, columns=NEEDED | {"runs": ["message"]})
        folder.compact()
    after = read(path, columns=NEEDED | {"runs": ["message"]})
    assert list(after.runs["message"].dropna()) == ["last"]
    for table in schema.STUDY:
        pd.testing.assert_frame_equal(
            getattr(before, table), getattr(after, table), check_categorical=False
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda steps: steps.assign(latency_s=-1.0), "'latency_s' holds -1.0; expected at least 0"),
        (lambda steps: steps.assign(latency_s=1), "'latency_s' is Int64.*; expected float64"),
        (
            lambda steps: steps.assign(phase="rest"),
            "'phase' holds 'rest'; expected one of warmup, measured",
        ),
        (lambda steps: steps.assign(variant=pd.NA), "'variant' is null; expected .*string"),
        (lambda steps: steps.assign(step=0), "a row is there twice; unit, step must differ"),
        (lambda steps: steps.assign(unit="ghost"), "'unit' holds 'ghost', not in runs"),
        (lambda steps: steps.drop(columns="phase"), "'phase' is missing; expected string"),
        (lambda steps: steps.assign(colour=1.0), "'colour' is not one of the table's"),
    ],
)
def test_what_is_read_of_a_table_is_checked_as_ever(path, parts, change, message):
    with create(path) as folder:
        folder.add("a", **parts("a"))
        folder.compact()
    change(read(path).steps).to_parquet(path / "steps.parquet")
    with pytest.raises(ValueError, match=rf"steps\.parquet: .*{message}"):
        read(path, columns={"steps": ["variant", "phase", "latency_s"]})


def test_a_column_that_is_not_read_is_not_missed(path, parts):
    with create(path) as folder:
        folder.add("a", **parts("a"))
        folder.compact()
    read(path).steps.drop(columns="sigma").to_parquet(path / "steps.parquet")
    assert len(read(path, columns={"steps": ["latency_s"]}).steps) == 2


def test_a_metric_that_the_schema_does_not_know_is_always_read(path, parts):
    with create(path) as folder:
        folder.add("a", **parts("a"))
        folder.rewrite("images", read(path).images.assign(sharpness=2.0))
    assert list(read(path, columns={}).images["sharpness"]) == [2.0]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"runs": ["lpips"]}, "runs has no column 'lpips'; there are study"),
        ({"walks": []}, "unknown table 'walks'"),
    ],
)
def test_columns_that_there_are_not_are_named(path, columns, message):
    create(path).close()
    with pytest.raises(ValueError, match=message):
        read(path, columns=columns)


row = st.fixed_dictionaries(
    {
        "message": st.none() | st.text(st.characters(exclude_categories=["Cs"])),
        "flop": st.none() | st.integers(0, 2**63 - 1),
        "latency_s": st.none() | st.floats(0, allow_nan=False),
    }
)


@settings(deadline=None, max_examples=15)
@given(drawn=st.lists(row, max_size=4))
def test_round_trip_keeps_values_and_dtypes(tmp_path_factory, drawn):
    runs = pd.concat(
        [schema.empty("runs"), pd.DataFrame(drawn, columns=["message", "flop", "latency_s"])]
    )
    runs = runs.astype(
        {name: column.dtype for name, column in schema.TABLES["runs"].items()}
    ).reset_index(drop=True)
    folder = tmp_path_factory.mktemp("study")
    files.write_table(folder, "runs", runs)
    pd.testing.assert_frame_equal(files.read_table(folder, "runs"), runs)


def test_retried_unit_replaces_its_failure_in_every_table(path, parts):
    with create(path) as folder:
        folder.add("a", **parts("a", num_steps=1, status="failed", message="out of memory"))
        folder.add("b", **parts("b"))
        folder.compact()
        assert folder.finished() == {"b"}
        folder.add("a", **parts("a"))
        assert folder.finished() == {"a", "b"}
    results = read(path)
    assert sorted(results.runs["unit"]) == ["a", "b"]
    assert (results.steps["unit"] == "a").sum() == 2


@pytest.mark.parametrize("survivors", range(4))
def test_crash_during_compaction_loses_and_doubles_nothing(path, parts, survivors, monkeypatch):
    def crash(*_):
        raise KeyboardInterrupt

    with create(path) as folder:
        folder.add("a", **parts("a", status="failed", num_steps=1))
        folder.compact()
        folder.add("a", **parts("a"))
        folder.add("b", **parts("b"))
        before = read(path)
        tables = iter([files.write_table] * survivors + [crash] * 3)
        monkeypatch.setattr(store, "write_table", lambda *arguments: next(tables)(*arguments))
        monkeypatch.setattr(Path, "rename", crash)
        with pytest.raises(KeyboardInterrupt):
            folder.compact()
    for table in schema.STUDY:
        pd.testing.assert_frame_equal(getattr(before, table), getattr(read(path), table))


def test_killed_writer_leaves_a_readable_study_that_resumes(path, parts):
    with create(path) as folder:
        folder.add("a", **parts("a"))
    shutil.copytree(path / "parts" / "000001", path / "parts" / ".sdbench-000002")
    (path / ".sdbench-runs.parquet").write_bytes(b"PAR1")
    assert list(read(path).runs["unit"]) == ["a"]
    with create(path, mode="resume") as folder:
        assert folder.finished() == {"a"}
    assert listing(path) == {f"parts/000001/{t}.parquet" for t in schema.STUDY} | {
        "study.json",
        "environment.json",
        *(f"{t}.parquet" for t in schema.STUDY),
    }


@pytest.mark.parametrize("mode", store.MODES)
@pytest.mark.parametrize("gone", [["runs.parquet"], ["study.json", "steps.parquet"]])
def test_what_was_killed_while_it_started_is_no_study_and_starts_anew(path, parts, mode, gone):
    with create(path) as folder:
        folder.add("a", **parts("a"))
    (path / ".sdbench-starting").touch()
    (path / "mine.bin").touch()
    for name in gone:
        (path / name).unlink()
    with pytest.raises(ValueError, match="study holds no study yet"):
        read(path)
    StudyFolder.create(
        path, {"model": "other"}, environment={"cores": 2}, mode=mode, companions=("mine.bin",)
    ).close()
    assert (len(read(path).runs), read(path).study) == (0, {"model": "other"})
    assert {file.name for file in path.glob("*") if "parquet" not in file.name} == {
        ".sdbench-lock",
        "environment.json",
        "study.json",
    }


@pytest.mark.parametrize("action", ["add", "compact", "rewrite"])
def test_full_disk_leaves_tables_intact_and_nothing_unfinished(path, parts, action, monkeypatch):
    with create(path) as folder:
        folder.add("a", **parts("a"))
        before, there = read(path), set(path.rglob("*"))

        def full(arrow, file):
            file.write(b"PAR1")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(files.pq, "write_table", full)
        act = {
            "add": lambda: folder.add("b", **parts("b")),
            "compact": folder.compact,
            "rewrite": lambda: folder.rewrite("images", before.images),
        }
        with pytest.raises(OSError, match="No space"):
            act[action]()
    assert set(path.rglob("*")) == there
    pd.testing.assert_frame_equal(read(path).runs, before.runs)


def test_full_disk_at_creation_leaves_no_study(path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.pq, "write_table", full)
    with pytest.raises(OSError, match="No space"):
        create(path)
    assert listing(path) == set()


def test_rewrite_replaces_one_table(path, parts):
    with create(path) as folder:
        folder.add("a", **parts("a"))
        folder.rewrite("images", read(path).images.assign(lpips=0.25, sharpness=2.0))
    results = read(path)
    assert list(results.images["sharpness"]) == [2.0]
    assert list(results.runs["unit"]) == ["a"]


def test_unit_must_match_its_frames(path, parts):
    with (
        create(path) as folder,
        pytest.raises(ValueError, match="unit 'a': runs must hold rows of this unit only"),
    ):
        folder.add("a", **parts("b"))


def test_new_refuses_a_folder_that_holds_a_study(path):
    create(path).close()
    with pytest.raises(ValueError, match=r"already holds a study; --resume .*, --overwrite"):
        create(path)


@pytest.mark.parametrize("mode", store.MODES)
def test_folder_with_something_else_is_refused_untouched(path, mode):
    path.mkdir()
    (path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty and holds no study"):
        create(path, mode=mode)
    assert [file.name for file in path.iterdir()] == ["thesis.txt"]


def test_resume_refuses_another_study_and_names_the_difference(path):
    create(path).close()
    with pytest.raises(ValueError, match="holds another study; it differs in seeds, num_steps"):
        create(path, {"model": "mini-sd", "seeds": [0], "num_steps": 50}, mode="resume")


def test_resume_keeps_units_and_every_environment(path, parts):
    with create(path) as folder:
        folder.add("a", **parts("a"))
    with create(path, {"model": "mini-sd", "seeds": (0, 1)}, {"cores": 4}, mode="resume") as folder:
        assert folder.finished() == {"a"}
    assert list(read(path).environment.values()) == [{"cores": 2}, {"cores": 4}]


def test_overwrite_removes_the_study_and_nothing_else(path, parts):
    with create(path) as folder:
        folder.add("a", **parts("a"))
    (path / "images" / "cfg").mkdir(parents=True)
    (path / "images" / "cfg" / "0.png").touch()
    (path / "images" / "note.txt").touch()
    (path / "thesis.txt").touch()
    create(path, {"model": "other"}, mode="overwrite").close()
    assert len(read(path).runs) == 0
    assert read(path).study == {"model": "other"}
    assert {"thesis.txt", "images/note.txt"} == {
        name for name in listing(path) if name.endswith(("txt", "png"))
    }
    assert not (path / "images" / "cfg").exists()


def test_second_writer_is_refused_until_the_first_closes(path):
    with create(path), pytest.raises(ValueError, match="is being written by another process"):
        create(path, mode="resume")
    create(path, mode="resume").close()


def test_lock_ends_with_its_process(path):
    program = (
        "import os, sys; from sdbench.records.store import StudyFolder\n"
        "StudyFolder.create(sys.argv[1], {}, environment={}); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", program, path], check=False).returncode == 9
    create(path, {}, mode="resume").close()


def test_missing_folder_and_foreign_folder_are_named(path, tmp_path):
    with pytest.raises(ValueError, match="study: no such folder"):
        read(path)
    with pytest.raises(ValueError, match=r"study.json is missing"):
        read(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"not parquet at all", None], ids=["empty", "foreign", "truncated"]
)
def test_broken_parquet_is_named(path, content):
    create(path).close()
    file = path / "steps.parquet"
    file.write_bytes(file.read_bytes()[:-20] if content is None else content)
    with pytest.raises(ValueError, match=r"steps\.parquet is not a readable Parquet file: .+"):
        read(path)


def test_foreign_table_is_named_with_its_column(path):
    create(path).close()
    pd.DataFrame({"x": [1]}).to_parquet(path / "images.parquet")
    with pytest.raises(
        ValueError, match=r"images\.parquet: column 'unit' is missing; expected string"
    ):
        read(path)


def test_lists_in_place_of_texts_are_named(path):
    create(path).close()
    pd.DataFrame({"unit": [["a"]]}).to_parquet(path / "runs.parquet")
    for columns in (None, {"runs": ("unit",)}):
        with pytest.raises(ValueError, match=r"runs\.parquet: column 'unit' is list"):
            read(path, columns=columns)


def test_missing_table_is_named(path):
    create(path).close()
    (path / "images.parquet").unlink()
    with pytest.raises(ValueError, match=r"images\.parquet is missing"):
        read(path)


def test_step_without_a_run_is_named(path, rows):
    create(path).close()
    files.write_table(path, "steps", rows("steps", {"unit": "ghost"}))
    with pytest.raises(
        ValueError, match=r"steps\.parquet: column 'unit' holds 'ghost', not in runs"
    ):
        read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not readable JSON"),
        ("[]", "holds a list"),
        ('{"schema_version": 99}', "schema_version is 99; expected 1"),
    ],
)
def test_broken_study_is_named(path, content, message):
    create(path).close()
    (path / "study.json").write_text(content)
    with pytest.raises(ValueError, match=rf"study\.json.*{message}"):
        read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "describes no environment"),
        ('{"a": 5}', "'a' is 5; expected dict"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_broken_environments_are_named(path, content, message):
    create(path).close()
    (path / "environment.json").write_text(content)
    with pytest.raises(ValueError, match=rf"environment\.json.*{message}"):
        read(path)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([[1]]), r"column 'unit' is list<.*>; expected int64"),
        (pa.array([b"\xff"]).cast(pa.binary()).view(pa.string()), "is not a readable Parquet file"),
    ],
)
def test_columns_that_cannot_be_compared_are_named(path, column, message):
    create(path).close()
    files.pq.write_table(pa.table({"unit": column}), path / "images.parquet")
    with pytest.raises(ValueError, match=rf"images\.parquet.* {message}"):
        read(path)


def test_study_file_carries_its_schema_version(path):
    create(path).close()
    assert (
        json.loads((path / "study.json").read_text())
        == {"schema_version": store.SCHEMA_VERSION} | STUDY
    )
