"""Whatever a file holds, a reader gives it or raises a ValueError that names the file.

Commands say one line.

`nox -s faults` runs a thousand cases of each.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from typer.testing import CliRunner

from sdbench.cli import app
from sdbench.distill.captions import image_folder
from sdbench.distill.student import lora_student
from sdbench.models.students import (
    CARD_FILE,
    LORA_FILE,
    base_record,
    check_base,
    read_card,
    strength_at,
    uses_guidance_input,
)
from sdbench.records.files import read_image, read_prompts
from sdbench.records.schema import STUDY
from sdbench.study import estimate as estimating
from sdbench.study import runner
from sdbench.study.study import Study
from sdbench.variants.grammar import VARIANTS, parse
from sdbench.variants.schedule import GuidanceSchedule
from sdbench.variants.student_weights import student_in
from tests import tiny
from tests.faults import broken

pytestmark = pytest.mark.filterwarnings("ignore")  # of numbers that no study holds
fuzzed = settings(
    max_examples=settings.default.max_examples // 4,
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)
slowly = settings(fuzzed, max_examples=settings.default.max_examples // 16)  # a case draws figures
SMALL = {
    "model": "tiny",
    "variants": ["cfg", "last:50%", "steps:3"],
    "prompts": tiny.PROMPTS,
    "seeds": [0],
    "num_steps": 4,
    "guidance_scale": 7.5,
    "repeats": 2,
    "metrics": ["ssim", "psnr"],
}
MORE = {
    "dtype": "float32",
    "height": 64,
    "width": 64,
    "output": "image",
    "execution": "eager",
    "controls": True,
}
MORE |= {
    "arguments": {"eta": 0.5},
    "negative_prompt": "grey",
    "device": "cpu",
    "name": "mine",
    "batch": 2,
    "warmups": 1,
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The folder of a finished study."""
    folder = tmp_path_factory.mktemp("study") / "valid"
    runner.run(Study(**SMALL), folder, pipe=tiny.stable_diffusion())
    return folder


@pytest.fixture
def copied(study, tmp_path):
    """Makes a new copy of it for every case."""

    def copy():
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        return Path(shutil.copytree(study, tmp_path / "copy"))

    return copy


def says_one_line(*arguments, names=""):
    """A command ends well or with a verdict, or with exit code 2 and one line."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exit_code in (0, 1, 3) and (
        done.exception is None or isinstance(done.exception, SystemExit)
    ):
        return
    if done.exit_code != 2:
        raise AssertionError(f"{arguments}: {done.output}") from done.exception
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert names in done.stderr


def gives_or_names(read, path):
    said = error_of(read)
    assert said is None or path.name in said


def error_of(read):
    try:
        read()
    except (ValueError, OSError) as error:
        return str(error)
    return None


def commands(folder, study):
    """Every command that reads the folder of a study."""
    html = folder.parent / "page.html"
    return [
        ("report", folder),
        ("report", folder, "--html", html),
        ("report", folder, "--latex", html, "--markdown", html, "--csv", html),
        ("rank", folder, "--metric", "psnr"),
        ("frontier", folder, "--metric", "psnr", "--out", folder.parent),
        ("compare", folder, study),
        ("compare", study, folder),
        ("distances", folder),
    ]


@slowly
@given(data=st.data())
def test_records_of_a_study(study, copied, data):
    folder, name = copied(), data.draw(st.sampled_from(["study.json", "environment.json"]))
    valid = json.loads((folder / name).read_text())
    (folder / name).write_text(data.draw(broken.json_texts(valid)), encoding="utf-8")
    says_one_line(*data.draw(st.sampled_from(commands(folder, study))))


@slowly
@given(data=st.data())
def test_tables_with_damaged_bytes(study, copied, data):
    folder, table = copied(), data.draw(st.sampled_from(STUDY))
    path = folder / f"{table}.parquet"
    path.write_bytes(data.draw(broken.damaged(path.read_bytes())))
    says_one_line(*data.draw(st.sampled_from(commands(folder, study))))


ODD = {
    "int8": lambda n: pa.array([1] * n, pa.int8()),
    "float32": lambda n: pa.array([0.5] * n, pa.float32()),
    "null": lambda n: pa.nulls(n),
    "list": lambda n: pa.array([[1]] * n),
    "struct": lambda n: pa.array([{"a": 1}] * n),
    "dictionary": lambda n: pa.array(["a"] * n).dictionary_encode(),
    "binary": lambda n: pa.array([b"\xff"] * n),
    "timestamp": lambda n: pa.array([2**40] * n, pa.timestamp("s")),
    "duration": lambda n: pa.array([1] * n, pa.duration("ns")),
    "int": lambda n: pa.array(range(n), pa.int64()),
    "float": lambda n: pa.array([float("nan")] * n),
    "text": lambda n: pa.array([str(i) for i in range(n)]),
    "missing": lambda n: pa.array([None] * n, pa.string()),
    "flag": lambda n: pa.array([True] * n),
}


@slowly
@given(data=st.data())
def test_tables_with_other_columns(study, copied, data):
    folder, table = copied(), data.draw(st.sampled_from(STUDY))
    path = folder / f"{table}.parquet"
    arrow = pq.read_table(path)
    for _ in range(data.draw(st.integers(1, 2))):
        name = data.draw(st.sampled_from(arrow.schema.names) | broken.TEXT)
        odd = ODD[data.draw(st.sampled_from(list(ODD)))](len(arrow))
        index = arrow.schema.get_field_index(name)
        how = data.draw(st.sampled_from(["replace", "append", "remove"]))
        if how == "append" or index < 0:
            arrow = arrow.append_column(name, odd)
        else:
            arrow = (
                arrow.remove_column(index)
                if how == "remove"
                else arrow.set_column(index, name, odd)
            )
    pq.write_table(arrow, path)
    says_one_line(*data.draw(st.sampled_from(commands(folder, study))))


EXTREMES = {
    "string": [
        "",
        "cfg",
        "<script>",
        "[/]",
        "../../x.png",
        "ok",
        "failed",
        "unsupported",
        "warmup",
        "\x00",
        None,
    ],
    "Int64": [0, 1, 2, 2**62, None],
    "float64": [0.0, 1e-308, 1e308, float("nan"), float("inf"), -1.0],
    "boolean": [True, False],
}


@slowly
@given(data=st.data())
def test_tables_with_other_rows(study, copied, data):
    folder, table = copied(), data.draw(st.sampled_from(STUDY))
    path = folder / f"{table}.parquet"
    rows = pd.read_parquet(path, dtype_backend="numpy_nullable")
    kept = data.draw(
        st.lists(st.sampled_from(range(len(rows))), max_size=len(rows), unique=True) | st.none()
    )
    rows = rows if kept is None else rows.iloc[kept].reset_index(drop=True)
    for _ in range(data.draw(st.integers(0, 3))):
        name = data.draw(st.sampled_from(list(rows)))
        kind = {"Float64": "float64"}.get(str(rows[name].dtype), str(rows[name].dtype))
        value = data.draw(st.sampled_from(EXTREMES[kind]))
        part = (
            slice(None)
            if data.draw(st.booleans())
            else slice(data.draw(st.integers(0, len(rows))), None)
        )
        rows.loc[rows.index[part], name] = value
    arrow = pa.Table.from_pandas(rows, preserve_index=False)
    pq.write_table(arrow.replace_schema_metadata(None), path)
    says_one_line(*data.draw(st.sampled_from(commands(folder, study))))


@pytest.fixture
def without_running(monkeypatch):
    monkeypatch.setattr(
        estimating, "estimate", lambda planned: estimating.Estimate(1, 1.0, 1, 1.0, 1)
    )


@fuzzed
@given(data=st.data())
def test_study_files(tmp_path, without_running, data):
    path = tmp_path / "mine.toml"
    (tmp_path / "prompts.txt").write_text("a red ring\n")
    own = data.draw(
        st.sampled_from(
            [SMALL, SMALL | MORE, {**SMALL, "prompts_file": "prompts.txt", "prompts": None}]
        )
    )
    fields = data.draw(broken.spoiled(own))
    path.write_text(
        broken.toml(fields) if isinstance(fields, dict) else str(fields), encoding="utf-8"
    )
    says_one_line("run", path, "--dry-run", names=path.name)


@fuzzed
@given(data=st.data())
def test_study_files_with_damaged_bytes(tmp_path, without_running, data):
    path = tmp_path / "mine.toml"
    valid = broken.toml(SMALL | MORE).encode()
    path.write_bytes(data.draw(broken.damaged(valid) | st.just(b"x = " + broken.DEEP.encode())))
    says_one_line("run", path, "--dry-run", names=path.name)


@fuzzed
@given(text=broken.json_texts({"eta": 0.5, "guidance_rescale": 0.7}))
def test_arguments(without_running, text):
    says_one_line("run", "--dry-run", "--arguments", text)


@fuzzed
@given(
    text=broken.json_texts(
        {"mask": "1101", "scheduler": "DDIMScheduler", "guided_scale": 6.5, "evidence": {}}
    )
)
def test_schedule_files(tmp_path, text):
    path = tmp_path / "plan.json"
    path.write_text(text, encoding="utf-8")
    gives_or_names(lambda: GuidanceSchedule.load(path).nfe, path)
    gives_or_names(lambda: parse(f"plan:{path}").rule(4), path)


@pytest.fixture(scope="module")
def pipe():
    return tiny.stable_diffusion()


@fuzzed
@given(data=st.data())
def test_cards_of_students(pipe, tmp_path, data):
    card = {
        "model": "tiny",
        "guidance_scale": 7.5,
        "w_range": [2.0, 8.0],
        "base": base_record(pipe.unet),
        "steps": 6,
    }
    file = tmp_path / LORA_FILE
    file.with_name(CARD_FILE).write_text(data.draw(broken.json_texts(card)), encoding="utf-8")
    for read in (lambda: read_card(file), lambda: uses_guidance_input(file)):
        gives_or_names(read, file.with_name(CARD_FILE))
    for check in (
        lambda: strength_at(file, read_card(file), 7.5),
        lambda: check_base(pipe.unet, file),
    ):
        said = error_of(check)
        assert said is None or str(tmp_path) in said


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    lora_student(tiny.stable_diffusion(), rank=1, alpha=1, targets=("attention",)).save(folder)
    return (folder / LORA_FILE).read_bytes()


@fuzzed
@given(data=st.data())
def test_weights_of_students(pipe, lora, tmp_path, data):
    """The pipeline is as before, whether they fit or not."""
    file, before = (
        tmp_path / LORA_FILE,
        {name: weight.clone() for name, weight in pipe.unet.state_dict().items()},
    )
    content = data.draw(broken.damaged(lora) | _headers())
    file.write_bytes(content)
    gives_or_names(lambda: put_in(pipe, file), file)
    after = pipe.unet.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def put_in(pipe, file):
    with student_in(pipe, file, guidance_scale=7.5):
        pass


def _headers():
    """Whole safetensors files with other names, shapes and metadata."""
    names = st.sampled_from(
        [
            "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight",
            "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_B.weight",
            "unet.conv_in.alpha",
            "lora_unet_down_blocks_0_attentions_0.lora_up.weight",
            "text_encoder.a.lora_A.weight",
        ]
    )
    shapes = st.lists(st.integers(0, 16), max_size=4)
    metadata = st.dictionaries(
        st.sampled_from(["format", "lora_adapter_metadata", "alpha"]), broken.json_texts({"r": 1})
    )
    tensors = st.dictionaries(names | broken.TEXT, shapes.map(torch.zeros), max_size=3)
    return st.builds(save, tensors, metadata=metadata)


@fuzzed
@given(data=st.data())
def test_lists_of_prompts(tmp_path, data):
    path = tmp_path / "prompts.txt"
    path.write_bytes(
        data.draw(
            broken.damaged("a red ring\nein grüner Stern\n".encode()) | st.binary(max_size=40)
        )
    )
    gives_or_names(lambda: read_prompts(path), path)


@fuzzed
@given(data=st.data())
def test_lists_of_captioned_images(tmp_path, data):
    path = tmp_path / "metadata.jsonl"
    path.write_text(
        data.draw(broken.json_texts({"file_name": "a.png", "text": "a ring"})), encoding="utf-8"
    )
    (tmp_path / "a.png").touch()
    gives_or_names(lambda: image_folder(tmp_path, side=8), path)


@fuzzed
@given(data=st.data())
def test_images(study, tmp_path, data):
    valid = sorted((study / "images").glob("*.png"))[0].read_bytes()
    path = tmp_path / "a.png"
    path.write_bytes(data.draw(broken.damaged(valid)))
    gives_or_names(lambda: np.asarray(read_image(path)), path)


names = st.sampled_from([part for kind in VARIANTS.values() for part in kind.grammar.split("|")])


@fuzzed
@given(
    st.lists(names | st.text("0123456789.%:+@^,-einfcg٣ ", max_size=8), min_size=1, max_size=4),
    st.text(":+,", max_size=1),
)
def test_variants(parts, between):
    """Their rules are held against a loop of four steps."""
    assert error_of(lambda: parse(between.join(parts)).rule(4)) != ""
