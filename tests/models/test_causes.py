"""An error is blamed on what is wrong: the machine, a package, or the input."""

import errno
import importlib

import pytest
import torch

from sdbench.models import registry
from sdbench.models.causes import MissingPackage, is_machines, missing_package, require_own
from sdbench.models.student_layers import load_lora
from sdbench.models.students import LORA_FILE
from tests import tiny
from tests.variants.students import saved

FULL = OSError(errno.ENOSPC, "No space left on device")
DENIED = PermissionError(errno.EACCES, "Permission denied")
ON_CPU = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ...")
ON_CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
MACHINES = [FULL, DENIED, MemoryError(), ON_CPU, ON_CUDA]
NAMES = ["space", "rights", "memory", "cpu", "cuda"]
machines = pytest.mark.parametrize("error", MACHINES, ids=NAMES)


def imported(name):
    """The error of an import that fails."""
    with pytest.raises(ImportError) as caught:
        importlib.import_module(name)
    return caught.value


@machines
def test_what_the_machine_lacks_is_raised_as_it_is(error):
    assert is_machines(error)
    with pytest.raises(type(error)) as caught:
        require_own(error, "reading")
    assert caught.value is error


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file"),
        OSError("no file named weights"),
        RuntimeError("size mismatch for conv_in.weight"),
        ValueError("no key"),
        KeyError("lora_A"),
    ],
)
def test_a_fault_of_the_input_passes(error):
    assert not is_machines(error)
    assert require_own(error, "reading") is None


@pytest.mark.parametrize("name", ["no_such_package", "no_such_package.part"])
def test_a_package_that_is_not_installed_is_named(name):
    with pytest.raises(MissingPackage, match=r"^'x': no_such_package is not installed: "):
        require_own(imported(name), "'x'")


def test_a_module_that_an_installed_package_lacks_is_another_version():
    reason = missing_package(imported("json.no_such_part"))
    assert reason.startswith("a package is missing or of another version: No module named")


def test_a_package_that_is_blocked_counts_as_missing(monkeypatch):
    monkeypatch.setitem(importlib.sys.modules, "peft", None)
    assert missing_package(imported("peft")) == "peft is not installed: pip install peft"


NO_PEFT = ValueError("PEFT backend is required for this method.")
OLD = ImportError("\nBitsAndBytes requires the bitsandbytes library but it was not found")


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (NO_PEFT, MissingPackage, "cannot be loaded: diffusers finds no peft that it can use"),
        (OLD, MissingPackage, "cannot be loaded: .*requires the bitsandbytes library"),
        (ModuleNotFoundError("No module named 'peft_x'", name="peft_x"), MissingPackage, "peft_x"),
        (FULL, OSError, "No space left"),
        (DENIED, PermissionError, "Permission denied"),
        (ON_CUDA, torch.OutOfMemoryError, "out of memory"),
        (ON_CPU, RuntimeError, "can't allocate memory"),
        (KeyError("lora_A"), ValueError, "is no adapter for StableDiffusionPipeline"),
    ],
)
def test_an_adapter_is_called_broken_only_where_it_is(tmp_path, monkeypatch, error, kind, message):
    saved(tmp_path)
    pipe = tiny.stable_diffusion()

    def fails(*args, **options):
        raise error

    monkeypatch.setattr(type(pipe), "load_lora_weights", fails)
    with pytest.raises(kind, match=message):
        load_lora(pipe, tmp_path / LORA_FILE)


def test_loading_without_peft_says_what_to_install(tmp_path, monkeypatch):
    saved(tmp_path)
    pipe = tiny.stable_diffusion()
    monkeypatch.setitem(importlib.sys.modules, "peft", None)
    with pytest.raises(MissingPackage, match="peft is not installed: pip install peft"):
        load_lora(pipe, tmp_path / LORA_FILE)


@machines
def test_a_model_is_not_blamed_for_the_machine(tmp_path, monkeypatch, error):
    def fails(*args, **options):
        raise error

    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    monkeypatch.setattr("diffusers.DiffusionPipeline.from_pretrained", fails)
    with pytest.raises(type(error)) as caught:
        registry.load(tmp_path)
    assert caught.value is error


def test_a_model_whose_package_is_missing_names_it(tmp_path, monkeypatch):
    def fails(*args, **options):
        raise ImportError("\nT5Tokenizer requires the SentencePiece library but it was not found")

    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    monkeypatch.setattr("diffusers.DiffusionPipeline.from_pretrained", fails)
    with pytest.raises(MissingPackage, match=r"cannot be opened: .*the SentencePiece library"):
        registry.load(tmp_path)


def test_an_unknown_device_is_no_matter_of_the_dtype():
    with pytest.raises(ValueError, match=r"^unknown device 'gpu': Expected one of cpu"):
        registry.load("mini-sd", device="gpu")


def test_a_full_device_is_no_matter_of_the_dtype(monkeypatch):
    def fails(*args, **options):
        raise ON_CUDA

    monkeypatch.setattr(torch, "ones", fails)
    with pytest.raises(torch.OutOfMemoryError):
        registry.load("mini-sd")
