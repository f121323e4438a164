"""Each setting of the process that is changed changes the key of the environment."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torch._inductor.config
from diffusers.models import attention_dispatch

from sdbench.records import environment as module
from sdbench.records import settings
from sdbench.records.environment import environment, environment_key
from sdbench.records.settings import process_settings


def key():
    return environment_key(environment())


def patched(owner, name, value):
    return lambda: mock.patch.object(owner, name, value)


def inductor(**values):
    return lambda: torch._inductor.config.patch(**values)


@contextmanager
def switched(switch, on, off):
    """A setting of torch's that only a call of its own changes."""
    switch(on)
    try:
        yield
    finally:
        switch(off)


def cudnn(name):
    return partial(setattr, torch.backends.cudnn, name)


CHANGES = {
    "attention backend": patched(
        attention_dispatch._AttentionBackendRegistry,
        "_active_backend",
        attention_dispatch.AttentionBackendName._NATIVE_MATH,
    ),
    "kernels of attention": partial(
        switched, torch.backends.cuda.enable_flash_sdp, on=False, off=True
    ),
    "freezing": inductor(freezing=True),
    "max_autotune": inductor(max_autotune=True),
    "coordinate descent": inductor(coordinate_descent_tuning=True),
    "matmul precision": partial(
        switched, torch.set_float32_matmul_precision, on="medium", off="highest"
    ),
    "TF32 of convolutions": partial(switched, cudnn("allow_tf32"), on=False, off=True),
    "cudnn benchmark": partial(switched, cudnn("benchmark"), on=True, off=False),
    "cudnn deterministic": partial(switched, cudnn("deterministic"), on=True, off=False),
    "deterministic": partial(switched, torch.use_deterministic_algorithms, on=True, off=False),
    "affinity": patched(os, "sched_getaffinity", lambda pid: {5, 7}),
    "threads": patched(torch, "get_num_threads", lambda: 77),
    "threads between operations": patched(torch, "get_num_interop_threads", lambda: 77),
    "OpenMP's places": lambda: mock.patch.dict(os.environ, OMP_PROC_BIND="spread"),
    "governor": patched(settings, "_governor", lambda root: "powersave"),
    "malloc": patched(settings, "_malloc", lambda root: "jemalloc"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_setting_that_is_changed_changes_the_key(name):
    before = key()
    with CHANGES[name]():
        assert key() != before
    assert key() == before


@pytest.mark.parametrize(
    "package", ["huggingface_hub", "torchao", "triton", "kernels", "bitsandbytes"]
)
def test_another_version_of_a_package_changes_the_key(package, monkeypatch):
    before, version = key(), module.metadata.version
    monkeypatch.setattr(
        module.metadata, "version", lambda name: "9.9" if name == package else version(name)
    )
    assert key() != before


def test_the_allocator_is_what_torch_took_and_not_what_a_variable_says(monkeypatch):
    told = {"expandable_segments": False, "max_split_size": -1}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda.memory, "_snapshot", lambda: {"allocator_settings": told})
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: "native")
    before = process_settings()["allocator"]
    assert before["backend"] == "native"
    assert before["max_split_size"] == -1
    told["expandable_segments"] = True
    assert process_settings()["allocator"] != before


def test_a_setting_of_another_version_of_torch_is_missing():
    old = SimpleNamespace(backends=SimpleNamespace(cuda=SimpleNamespace(matmul=object())))
    assert set(settings._fp32_precision(old).values()) == {None}
    assert set(settings._reduced_precision(old).values()) == {None}
    assert set(settings._attention_kernels(old).values()) == {None}


def test_the_governor_is_read_where_a_machine_tells_it(tmp_path):
    assert process_settings(tmp_path)["governor"] is None
    for core, governor in enumerate(["performance", "performance", "powersave"]):
        file = tmp_path / f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor"
        file.parent.mkdir(parents=True)
        file.write_text(f"{governor}\n")
    assert process_settings(tmp_path)["governor"] == "performance, powersave"


def test_an_allocator_in_front_of_the_c_library_is_named(tmp_path):
    assert process_settings(tmp_path)["malloc"] is None
    (tmp_path / "proc/self").mkdir(parents=True)
    maps = tmp_path / "proc/self/maps"
    maps.write_text("7f00-7f01 r-xp 0 08:01 1 /usr/lib/libc.so.6\n")
    assert process_settings(tmp_path)["malloc"] == "libc"
    maps.write_text("7f00-7f01 r-xp 0 08:01 1 /usr/lib/libtcmalloc_minimal.so.4\n")
    assert process_settings(tmp_path)["malloc"] == "tcmalloc"


@pytest.mark.parametrize(
    ("cores", "text"), [({0, 1, 2, 3}, "0-3"), ({0, 2}, "0,2"), ({8, 1, 0}, "0-1,8")]
)
def test_cores_are_written_as_ranges(cores, text, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: cores)
    assert process_settings()["affinity"] == text


def test_settings_are_json_and_of_what_is_not_imported_there_is_none():
    assert json.loads(json.dumps(process_settings())) == process_settings()
    program = (
        "from sdbench.records.settings import process_settings\n"
        "told = process_settings(); print(told['attention_backend'], told['inductor'])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert printed.split() == ["None", "None"]
