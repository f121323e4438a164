from dataclasses import replace

import pytest
import torch

from sdbench.study import local, runner
from sdbench.study.call import Call
from sdbench.study.execution import CompileClock, executed, nothing_compiled
from sdbench.study.study import Study
from tests import tiny
from tests.tiny import run

STUDY = Study(
    model="tiny",
    variants=["cfg", "last:50%"],
    prompts=tiny.PROMPTS,
    seeds=[0],
    num_steps=4,
    guidance_scale=5.0,
    repeats=1,
    metrics=[],
)


@pytest.fixture(autouse=True)
def forgetful():
    """Compiled code is kept by torch for the whole process."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_eager_execution_changes_nothing():
    pipe = tiny.stable_diffusion()
    with executed(pipe, "eager"):
        assert pipe.unet._compiled_call_impl is None


def test_afterwards_the_denoiser_is_called_as_before():
    pipe = tiny.stable_diffusion()
    with executed(pipe, "compile"):
        assert pipe.unet._compiled_call_impl is not None
    assert pipe.unet._compiled_call_impl is None


def test_cuda_graphs_need_cuda():
    pipe = tiny.stable_diffusion()
    refused = pytest.raises(
        ValueError, match="execution 'cudagraph' needs a CUDA device, not 'cpu'"
    )
    with refused, executed(pipe, "cudagraph"):
        pass


def test_compiling_anew_is_an_error_where_nothing_may_be_compiled():
    double = torch.compile(lambda x: x * 2, backend="eager", dynamic=False)
    double(torch.ones(2))
    with nothing_compiled():
        double(torch.ones(2))
        with pytest.raises(RuntimeError, match="recompile"):
            double(torch.ones(3))


def test_the_clock_sees_the_compiler_and_nothing_else():
    double = torch.compile(lambda x: x * 2, backend="eager")
    with CompileClock() as first:
        double(torch.ones(2))
    with CompileClock() as second:
        double(torch.ones(2))
    assert first.seconds > 0
    assert second.seconds == 0


@pytest.mark.slow  # Inductor compiles two graphs in C++
def test_a_compiled_study_compiles_in_its_warm_ups_only(tmp_path):
    pipe = tiny.stable_diffusion()
    eager = runner.run(STUDY, tmp_path / "eager", pipe=pipe)
    compiled = runner.run(replace(STUDY, execution="compile"), tmp_path / "compiled", pipe=pipe)
    assert (compiled.runs["status"] == "ok").all(), compiled.runs["message"].tolist()
    seconds = compiled.runs.groupby("phase")["compile_s"].sum()
    assert seconds["warmup"] > 0
    assert seconds["measured"] == 0
    assert eager.runs["compile_s"].isna().all()
    assert compiled.runs["rows"].tolist() == eager.runs["rows"].tolist()


@pytest.mark.parametrize("execution", ["eager", "compile"])
def test_the_record_says_how_the_compiler_is_set_for_a_study(execution):
    study = replace(STUDY, execution=execution)
    with local.Worker(study, tiny.stable_diffusion()) as worker:
        told = worker.environment["settings"]["inductor"]
    assert told["freezing"] is (execution == "compile")


@pytest.mark.slow  # Inductor compiles two graphs in C++
def test_compiled_images_are_those_of_eager_execution():
    pipe = tiny.stable_diffusion()
    expected = run(pipe)
    with executed(pipe, "compile"):
        torch.testing.assert_close(run(pipe), expected, rtol=1e-3, atol=1e-3)


def test_a_guided_step_in_two_calls_makes_the_same_latents():
    pipe = tiny.stable_diffusion()
    study = replace(STUDY, output="latent", height=16, width=16, metrics=None)
    batched = runner.run(replace(study, guidance_execution="batched"), pipe=pipe)
    sequential = runner.run(replace(study, guidance_execution="sequential"), pipe=pipe)
    assert batched.runs["rows"].tolist() == sequential.runs["rows"].tolist()
    assert batched.runs["forwards"].tolist() == [4, 4] * 2
    assert sequential.runs["forwards"].tolist() == [8, 6] * 2


def test_two_calls_cannot_be_batched(monkeypatch):
    pipe = tiny.flux()
    del pipe.call["output_type"]
    # embeddings instead of prompts
    seeded = [torch.Generator().manual_seed(seed) for seed in range(2)]
    monkeypatch.setattr(Call, "arguments", lambda *_: pipe.call | {"generator": seeded})
    study = replace(
        STUDY, guidance_execution="batched", output="latent", height=32, width=32, metrics=None
    )
    with pytest.raises(
        ValueError, match="FluxPipeline guides by two calls, which cannot be batched"
    ):
        runner.run(study, pipe=pipe)


def test_an_execution_that_the_device_lacks_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError, match="needs a CUDA device"):
        runner.run(
            replace(STUDY, execution="cudagraph"), tmp_path / "study", pipe=tiny.stable_diffusion()
        )
    assert not (tmp_path / "study").exists()
