import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from safetensors.torch import load_file

import sdbench
from sdbench.distill import held_out, optimisation, trainer
from sdbench.distill.captions import captioned_scenes, scene_captions
from sdbench.distill.examples import Examples
from sdbench.distill.low_rank_layers import layers
from sdbench.distill.settings import PRECISIONS, Settings
from sdbench.distill.student import lora_student
from sdbench.distill.trainer import distill
from sdbench.distill.trajectories import Trajectories
from sdbench.instruments.quality import require_size
from sdbench.models import registry
from sdbench.models.grammars import held_out_captions
from sdbench.models.students import CARD_FILE, EMBEDDING_FILE, LORA_FILE
from sdbench.records.files import read_table
from sdbench.variants.rows import joined
from tests import tiny

SETTINGS = Settings(
    guidance_scale=7.5, steps=6, rows=2, rank=2, alpha=2, num_steps=3, warmup=1, learning_rate=1e-2,
    evaluate_every=3, save_every=2, targets=("attention",),
)  # fmt: skip
KNOWN = {
    "model": "tiny",
    "captions": tiny.PROMPTS,
    "held_out": ["a small red star on a white background"],
}


SHORT = {"steps": 2, "evaluate_every": 2}


def leave_out_lpips(patch):
    patch.setattr(trainer, "provenance", lambda metrics: {})
    patch.setattr(trainer, "require_size", lambda *size: None)
    patch.setattr(held_out, "score", lambda name, a, b: (a - b).abs().flatten(1).mean(dim=1))


@pytest.fixture(autouse=True)
def without_lpips(monkeypatch):
    leave_out_lpips(monkeypatch)


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory):
    """A student by the settings as they are, trained by the package's own verb."""
    with pytest.MonkeyPatch.context() as patch:
        leave_out_lpips(patch)
        out = tmp_path_factory.mktemp("plain")
        return sdbench.distill(tiny.stable_diffusion(), SETTINGS, out, **KNOWN)


def train(out, pipe=None, *, mode="new", held_out=KNOWN["held_out"], **changes):
    given = KNOWN | {"held_out": held_out, "mode": mode}
    return distill(pipe or tiny.stable_diffusion(), replace(SETTINGS, **changes), out, **given)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "learning_rate"), [("lora", 3e-3), ("full", 3e-4)])
def test_training_brings_the_student_nearer_to_the_teacher(tmp_path, method, learning_rate):
    """On its own prompts: what random weights make of others cannot be learnt."""
    wide = {
        "rows": 4,
        "rank": 4,
        "alpha": 4,
        "targets": ("attention", "convolutions"),
        "held_out": tiny.PROMPTS,
    }
    train(tmp_path, method=method, learning_rate=learning_rate, steps=40, evaluate_every=20, **wide)
    curve = read_table(tmp_path, "training")
    assert curve["step"].tolist() == [0, 20, 40]
    for name in ("held_out_loss", "lpips"):
        assert curve[name].iloc[-1] < 0.85 * curve[name].iloc[0]


def test_a_student_of_many_scales_learns_and_leaves_the_pipeline_as_it_was(tmp_path):
    pipe = tiny.stable_diffusion()
    plain, known = tiny.run(pipe), set(vars(pipe.unet))
    folder = train(tmp_path, pipe, w_range=(2.0, 10.0), guidance_scale=7.5, **SHORT)
    assert torch.equal(tiny.run(pipe), plain)
    assert set(vars(pipe.unet)) == known
    assert pipe.unet.time_embedding.cond_proj is None
    assert load_file(folder / EMBEDDING_FILE)["weight"].abs().max() > 0
    card = json.loads((folder / CARD_FILE).read_text())
    assert (card["guidance_scale"], card["w_range"]) == (None, [2.0, 10.0])


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_pipeline_is_left_as_it_was(tmp_path, method):
    pipe = tiny.stable_diffusion()
    plain, modules = tiny.run(pipe), [type(module) for module in pipe.unet.modules()]
    train(tmp_path, pipe, method=method, **SHORT)
    assert torch.equal(tiny.run(pipe), plain)
    assert [type(module) for module in pipe.unet.modules()] == modules


def test_lora_learns_without_a_second_copy_of_the_weights():
    pipe = tiny.stable_diffusion()
    before = {id(weight) for weight in pipe.unet.parameters()}
    student = lora_student(pipe, rank=2, alpha=2, targets=("attention",))
    frozen = [weight for weight in student.denoiser.parameters() if not weight.requires_grad]
    assert {id(weight) for weight in frozen} == before
    assert student.denoiser is student.teacher is pipe.unet


def test_the_teacher_is_the_student_with_its_adapter_off():
    pipe = tiny.stable_diffusion()
    plain = tiny.run(pipe)
    student = lora_student(pipe, rank=2, alpha=2, targets=("attention",))
    with torch.no_grad():
        for weight in student.learnt.values():
            weight.add_(0.1)
    changed = tiny.run(pipe)
    with student.teaching():
        assert torch.equal(tiny.run(pipe), plain)
    assert torch.equal(tiny.run(pipe), changed)
    assert not torch.equal(changed, plain)


CHANGES = {
    "full": {"method": "full"},
    "many scales": {"w_range": (2.0, 10.0), "targets": ("convolutions", "timestep")},
    "bf16, accumulated": {"precision": "bf16", "accumulate": 2, "targets": ("convolutions",)},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "layout"),
    [
        ({}, torch.contiguous_format),
        *((changes, torch.channels_last) for changes in CHANGES.values()),
    ],
    ids=["lora", *CHANGES],
)
def test_a_run_that_was_cut_short_ends_with_the_same_weights(
    tmp_path, monkeypatch, changes, layout
):
    changes = {"steps": 4, "save_every": 1, "evaluate_every": 4} | changes
    first = tiny.stable_diffusion()
    first.unet.to(memory_format=layout)
    whole = train(tmp_path / "whole", first, **changes)
    real, taken = optimisation.distillation_loss, []

    def cut(*args, **kwargs):
        taken.append(torch.is_grad_enabled())
        if sum(taken) > 2 * changes.get("accumulate", 1):
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(optimisation, "distillation_loss", cut)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", first, **changes)
    monkeypatch.setattr(optimisation, "distillation_loss", real)
    assert torch.load(tmp_path / "cut" / "checkpoint.pt")["done"] == 2
    second = tiny.stable_diffusion()  # in a format that a resumed run must not go by
    resumed = train(tmp_path / "cut", second, mode="resume", **changes)
    assert second.unet.conv_in.weight.is_contiguous()
    for file in whole.glob("*.safetensors"):
        expected, found = load_file(file), load_file(resumed / file.name)
        assert all(torch.equal(found[key], weight) for key, weight in expected.items())


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    real, taken = optimisation.distillation_loss, []

    def broken(*args, **kwargs):
        taken.append(torch.is_grad_enabled())
        return real(*args, **kwargs) * (float("nan") if sum(taken) > 3 else 1.0)

    monkeypatch.setattr(optimisation, "distillation_loss", broken)
    with pytest.raises(
        ValueError, match=r"the loss is nan in step 4; the checkpoint of step 2 is kept"
    ):
        train(tmp_path)
    saved = torch.load(tmp_path / "checkpoint.pt")["learnt"]
    assert all(torch.isfinite(weight).all() for weight in saved.values())


def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_lost(tmp_path, monkeypatch):
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, loss):
            return loss.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * float("inf")

    real = optimisation.distillation_loss
    monkeypatch.setattr(optimisation, "distillation_loss", lambda *args: Broken.apply(real(*args)))
    with pytest.raises(
        ValueError, match=r"the gradient's norm is (nan|inf) in step 1; there is no checkpoint yet"
    ):
        train(tmp_path)


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    real, saves = torch.save, []

    def full(state, file):
        saves.append(state["done"])
        if len(saves) > 1:
            file.write(b"half of it")
            raise OSError(28, "No space left on device")
        real(state, file)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        train(tmp_path)
    assert torch.load(tmp_path / "checkpoint.pt")["done"] == 2
    assert not list(tmp_path.glob(".sdbench-checkpoint*"))


def test_gradient_checkpointing_learns_the_same_by_running_blocks_again(tmp_path, monkeypatch):
    calls, real = [], ResnetBlock2D.forward

    def counted(*args, **kwargs):
        calls.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(ResnetBlock2D, "forward", counted)
    found = load_file(train(tmp_path / "with", checkpoint_gradients=True, **SHORT) / LORA_FILE)
    with_it = len(calls)
    plain = load_file(train(tmp_path / "without", **SHORT) / LORA_FILE)
    assert with_it > len(calls) - with_it
    for name, weight in plain.items():
        torch.testing.assert_close(found[name], weight, atol=1e-5, rtol=1e-4)


def test_weights_by_signal_to_noise_learn_something_else(tmp_path, plain_run):
    found = load_file(train(tmp_path / "with", min_snr_gamma=5.0) / LORA_FILE)
    plain = load_file(plain_run / LORA_FILE)
    assert not all(torch.allclose(found[name], weight) for name, weight in plain.items())


def test_accumulated_batches_are_one_larger_batch(tmp_path, monkeypatch):
    """Three batches of two rows: the step is that of their mean loss, as of one batch of six."""
    real = Trajectories.at

    def at(self, step, *, teaching):
        if self.seed[1] == 1:  # the judge's
            return real(self, step, teaching=teaching)
        two = [real(self, index, teaching=teaching) for index in ([step] if per == 1 else range(3))]
        if per == 1:
            return two[0]
        return one_batch(two)

    monkeypatch.setattr(Trajectories, "at", at)
    per = 1
    accumulated = load_file(
        train(tmp_path / "accumulated", accumulate=3, steps=1, warmup=0) / LORA_FILE
    )
    per = 3
    whole = load_file(train(tmp_path / "whole", steps=1, warmup=0) / LORA_FILE)
    for name, weight in whole.items():
        torch.testing.assert_close(accumulated[name], weight, atol=1e-5, rtol=1e-3)


def one_batch(batches):
    args, kwargs = (
        functools.reduce(joined, [getattr(b, name) for b in batches]) for name in ("args", "kwargs")
    )
    tensors = (
        torch.cat([getattr(b, name) for b in batches])
        for name in ("cond", "uncond", "sigma", "scale")
    )
    return Examples(args, kwargs, *tensors)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_lower_precision_trains_and_leaves_the_pipeline_as_it_was(tmp_path, method):
    pipe = tiny.stable_diffusion()
    plain, known = tiny.run(pipe), set(vars(pipe.unet))
    train(tmp_path / "first", pipe, method=method, precision="bf16")
    assert torch.equal(tiny.run(pipe), plain)
    assert set(vars(pipe.unet)) == known
    assert all(weight.requires_grad for weight in pipe.unet.parameters())
    again = load_file(
        train(tmp_path / "again", pipe) / LORA_FILE
    )  # in float32, on the same pipeline
    fresh = load_file(train(tmp_path / "fresh") / LORA_FILE)
    assert all(torch.equal(again[name], weight) for name, weight in fresh.items())


def test_a_half_precision_base_learns_in_float32(tmp_path):
    pipe = tiny.stable_diffusion()
    pipe.to(torch.bfloat16)
    found = load_file(train(tmp_path, pipe, **SHORT) / LORA_FILE)
    learnt = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["learnt"]
    assert {weight.dtype for weight in learnt.values()} == {torch.float32}
    assert {weight.dtype for weight in found.values()} == {torch.float16}  # of the file
    assert any(weight.abs().max() > 0 for name, weight in found.items() if "lora_B" in name)
    with pytest.raises(ValueError, match="trains in float32 only"):
        train(tmp_path / "full", pipe, method="full")


@pytest.mark.parametrize("changes", [{}, {"method": "full"}, {"w_range": (2.0, 10.0)}])
def test_a_compiled_network_is_trained_as_the_plain_one(tmp_path, changes):
    plain = train(tmp_path / "plain", **SHORT | changes)
    pipe = tiny.stable_diffusion()
    pipe.unet = network = torch.compile(pipe.unet, backend="eager")
    folder = train(tmp_path / "compiled", pipe, **SHORT | changes)
    assert pipe.unet is network
    for file in plain.glob("*.safetensors"):
        assert_equal(load_file(folder / file.name), load_file(file))
    cards = [json.loads((place / CARD_FILE).read_text()) for place in (folder, plain)]
    assert cards[0]["base"] == cards[1]["base"]


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


@pytest.mark.parametrize("method", ["lora", "full"])
def test_fused_projections_are_not_trained_in_vain(tmp_path, method):
    pipe = tiny.stable_diffusion()
    pipe.fuse_qkv_projections()
    with pytest.raises(ValueError, match=r"call `unfuse_qkv_projections\(\)` first"):
        train(tmp_path / "out", pipe, method=method)
    assert not (tmp_path / "out").exists()


PAIRS = [(dtype, precision) for dtype in registry.DTYPES for precision in PRECISIONS]
ON_CPU = "precision 'fp16' does not train on a CPU; '{}' does"
IN_OTHER = "a base in {} does not train in precision '{}'; its precisions are: no, {}"
REFUSED = {
    ("float32", "fp16"): ON_CPU.format("bf16"),
    ("float16", "bf16"): IN_OTHER.format("float16", "bf16", "fp16"),
    ("float16", "fp16"): ON_CPU.format("no"),
    ("bfloat16", "fp16"): IN_OTHER.format("bfloat16", "fp16", "bf16"),
}


@pytest.mark.parametrize(("dtype", "precision"), PAIRS)
def test_every_dtype_trains_in_every_precision_or_says_why_not(tmp_path, dtype, precision):
    pipe = tiny.stable_diffusion()
    pipe.to(registry.DTYPES[dtype])
    plain = tiny.run(pipe)
    if (dtype, precision) in REFUSED:
        with pytest.raises(ValueError, match=f"^{re.escape(REFUSED[dtype, precision])}$"):
            train(tmp_path / "out", pipe, precision=precision, **SHORT)
        assert not (tmp_path / "out").exists()
        return

    folder = train(tmp_path / "out", pipe, precision=precision, **SHORT)
    assert all(weight.isfinite().all() for weight in load_file(folder / LORA_FILE).values())
    assert np.isfinite(json.loads((folder / CARD_FILE).read_text())["lpips"])
    assert torch.equal(tiny.run(pipe), plain)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize(
    ("changes", "what"),
    [({"method": "full"}, "a whole denoiser"), ({"w_range": (2.0, 10.0)}, "a student of many")],
)
def test_what_trains_in_float32_only_says_so(tmp_path, dtype, precision, changes, what):
    pipe = tiny.stable_diffusion()
    pipe.to(getattr(torch, dtype))
    with pytest.raises(ValueError, match=f"^{what}.* trains in float32 only"):
        train(tmp_path / "out", pipe, precision=precision, **changes)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("changes", [{"method": "full"}, {"w_range": (2.0, 10.0)}])
def test_what_trains_in_float32_only_trains_in_each_precision(tmp_path, precision, changes):
    folder = train(tmp_path, precision=precision, **SHORT | changes)
    assert np.isfinite(json.loads((folder / CARD_FILE).read_text())["held_out_loss"])


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_images_teach_a_base_in_half_precision(tmp_path, precision):
    pipe = tiny.stable_diffusion()
    pipe.to(torch.bfloat16)
    images = np.full((2, 16, 16, 3), 200, np.uint8)
    given = KNOWN | {"captioned": lambda rng, count: (tiny.PROMPTS[:count], images[:count])}
    settings = replace(SETTINGS, data="images", precision=precision, **SHORT)
    folder = distill(pipe, settings, tmp_path, **given)
    assert np.isfinite(json.loads((folder / CARD_FILE).read_text())["held_out_loss"])


def test_an_overwritten_run_keeps_nothing_of_the_older_one(tmp_path):
    train(tmp_path, method="full", **SHORT)
    folder = train(tmp_path, mode="overwrite", **SHORT)
    assert {file.name for file in folder.iterdir()} == {LORA_FILE, CARD_FILE}


def test_images_too_small_to_be_judged_are_refused_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "require_size", require_size)
    with pytest.raises(ValueError, match="lpips needs images of at least 31 pixels a side, not 16"):
        train(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("part", ["scheduler", "text_encoder"])
def test_a_run_is_not_resumed_on_another_pipeline(tmp_path, part):
    train(tmp_path, steps=1, evaluate_every=1)
    other = tiny.stable_diffusion()
    if part == "scheduler":
        other.scheduler.register_to_config(timestep_spacing="trailing")
    else:
        next(other.text_encoder.parameters()).data[0] += 1
    with pytest.raises(ValueError, match=f"it differs in its pipeline's {part}"):
        train(tmp_path, other, mode="resume", steps=1, evaluate_every=1)


def test_a_run_is_not_resumed_on_other_prompts(plain_run):
    with pytest.raises(ValueError, match="differs in learnt_from"):
        distill(
            tiny.stable_diffusion(),
            SETTINGS,
            plain_run.parent,
            **KNOWN | {"captions": ["a"]},
            mode="resume",
        )


def test_the_card_says_what_made_the_student(plain_run):
    card = json.loads((plain_run / CARD_FILE).read_text())
    assert (card["model"], card["method"], card["guidance_scale"], card["steps"]) == (
        "tiny",
        "lora",
        7.5,
        6,
    )
    assert card["settings"]["rank"] == 2
    assert np.isfinite([card["held_out_loss"], card["lpips"]]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance_scale": 1.0}, "a guidance scale of 1 is no guidance to learn"),
        ({"w_range": (8.0, 2.0)}, "goes up from 1 or more, not from 8 to 2"),
        ({"w_range": (2.0, 6.0)}, "judged at w = 7.5, out of its range 2 to 6"),
        ({"w_range": (2.0, 10.0), "method": "full"}, "method 'full' learns one guidance scale"),
        ({"rank": 0}, "rank must be at least 1, not 0"),
        ({"method": "magic"}, "unknown method 'magic'; there are: lora, full"),
        ({"data": "images"}, "there are no captioned images"),
        ({"targets": ("heads",)}, "unknown target 'heads'"),
        ({"learning_rate": 0.0}, "learning_rate must be a positive number"),
        ({"min_snr_gamma": -1.0}, "min_snr_gamma must be a positive number"),
        ({"alpha": 0}, "alpha must be a positive number"),
        ({"seed": -1}, "seed must be at least 0, not -1"),
        ({"targets": ()}, "there are no targets"),
        ({"precision": "fp16"}, "'fp16' does not train on a CPU"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_what_fails_while_the_student_is_made_leaves_the_pipeline_as_it_was(tmp_path):
    pipe = tiny.stable_diffusion_3()
    known, modules = (
        set(vars(pipe.transformer)),
        [type(module) for module in pipe.transformer.modules()],
    )
    for changes in ({"w_range": (2.0, 10.0)}, {"targets": ("attention", "heads")}):
        with pytest.raises(ValueError, match=r"no `time_cond_proj`|unknown target"):
            train(tmp_path, pipe, **changes)
        assert set(vars(pipe.transformer)) == known
        assert [type(module) for module in pipe.transformer.modules()] == modules
        assert all(weight.requires_grad for weight in pipe.transformer.parameters())


def test_the_card_names_what_was_learnt_from_and_not_what_else_was_there(tmp_path):
    both = KNOWN | {"captioned": captioned_scenes}
    folder = distill(tiny.stable_diffusion(), replace(SETTINGS, **SHORT), tmp_path, **both)
    assert json.loads((folder / CARD_FILE).read_text())["learnt_from"] != "captioned_scenes"


def test_a_base_without_attention_is_refused():
    with pytest.raises(ValueError, match="Sequential has no layers for the target 'attention'"):
        layers(torch.nn.Sequential(torch.nn.Linear(2, 2)), "attention")


def test_layers_are_found_by_what_they_are_part_of():
    unet = tiny.stable_diffusion().unet
    kinds = {
        kind: layers(unet, kind)
        for kind in ("attention", "feed-forward", "convolutions", "timestep")
    }
    timed = kinds.pop("timestep")
    assert {name.rsplit(".", 1)[-1] for name in timed} == {"linear_1", "linear_2", "time_emb_proj"}
    assert {name.rsplit(".", 1)[-1] for name in kinds["attention"]} == {"to_q", "to_k", "to_v", "0"}
    assert all(".ff.net." in name for name in kinds["feed-forward"])
    assert "conv_in" in kinds["convolutions"]
    assert not any("time_emb" in name for names in kinds.values() for name in names)


def test_the_package_is_the_verb(plain_run):
    assert (plain_run / LORA_FILE).exists()


COMMAND = (
    "distill --model mini-sd --steps 10 --rows 2 --rank 2 --targets attention --num-steps 3"
    " --save-every 1 --evaluate-every 40"
)
AS_OPENED = """
import runpy
from sdbench.models import registry
registry.lay_out = lambda pipe: None  # which measures, so that two processes may choose otherwise
runpy.run_module("sdbench.cli", run_name="__main__", alter_sys=True)
"""


def start(out, *extra, launch=("-c", AS_OPENED)):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launch, *COMMAND.split(), "--out", str(out), *extra]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process):
    printed, _ = process.communicate(timeout=400)
    assert process.returncode == 0, printed


@pytest.mark.network
@pytest.mark.slow  # loads and trains mini-sd three times
def test_a_killed_run_resumes_to_the_same_weights(tmp_path):
    (tmp_path / "few.txt").write_text("\n".join(held_out_captions(2)))
    few = ("--held-out-file", str(tmp_path / "few.txt"))
    finish(start(tmp_path / "whole", *few))
    killed, checkpoint = start(tmp_path / "killed", *few), tmp_path / "killed" / "checkpoint.pt"
    while not checkpoint.exists():
        assert killed.poll() is None, killed.stdout.read()
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed" / "student").exists()
    finish(start(tmp_path / "killed", *few, "--resume"))
    expected, found = (
        load_file(tmp_path / name / "student" / LORA_FILE) for name in ("whole", "killed")
    )
    assert all(torch.equal(found[key], weight) for key, weight in expected.items())


@pytest.mark.network
@pytest.mark.slow  # two processes that load mini-sd
def test_two_processes_take_the_steps_of_one_with_both_batches(tmp_path, monkeypatch):
    launch = [
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    changes = {"steps": 4, "warmup": 0, "learning_rate": 1e-2}
    options = [
        text
        for name, value in changes.items()
        for text in (f"--{name.replace('_', '-')}", str(value))
    ]
    # Neither measures its layout: sums of another layout differ, and Adam makes much of it.
    script = tmp_path / "as_opened.py"
    script.write_text(AS_OPENED)
    monkeypatch.setattr(registry, "lay_out", lambda pipe: None)
    finish(start(tmp_path / "two", *options, launch=[*launch, str(script)]))
    assert json.loads((tmp_path / "two" / "study.json").read_text())["processes"] == 2

    real = trainer._source

    def both(*arguments, rank):
        sources = [real(*arguments, rank=each) for each in (0, 1)]
        return SimpleNamespace(
            at=lambda step, *, teaching: one_batch([s.at(step, teaching=teaching) for s in sources])
        )

    monkeypatch.setattr(trainer, "_source", both)
    given = {
        "rows": 2,
        "rank": 2,
        "num_steps": 3,
        "targets": ("attention",),
        "evaluate_every": 40,
        "save_every": 1,
    }
    settings = Settings(guidance_scale=5.0, alpha=2, **given, **changes)
    sources = {"captions": scene_captions, "held_out": held_out_captions(16)}
    one = distill(
        sdbench.load("mini-sd", device="cpu"),
        settings,
        tmp_path / "one",
        model="mini-sd",
        **sources,
    )
    expected, found = (
        load_file(folder / LORA_FILE) for folder in (one, tmp_path / "two" / "student")
    )
    assert (
        max(float(weight.abs().max()) for name, weight in expected.items() if ".lora_B." in name)
        > 1e-2
    )
    for (
        name,
        weight,
    ) in expected.items():  # one by one, weights of nearly no gradient go either way under Adam
        assert float((found[name] - weight).norm()) < 0.02 * float(weight.norm())
