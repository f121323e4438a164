"""What there is to show on a GPU: its parts, the most valuable first, as commands.

Standard library only: packages may have to be installed first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PYTHON = "{python}"
SDBENCH = f"{PYTHON} -m sdbench.cli"
PROMPT = "a photo of a person dancing in the rain"


@dataclass(frozen=True)
class Command:
    """One command of a part.

    Args:
        folder: that it writes, below the part's; empty where it only prints.
        text: `{python}` in it stands for the interpreter, `{out}` for that folder.
        resumes: how it goes on where it was ended; without it the folder is made again.
    """

    folder: str
    text: str
    resumes: str = ""


@dataclass(frozen=True)
class Part:
    """A question that a GPU answers.

    Args:
        name: also of its folder.
        question: one line.
        commands: in order.
        needs_cuda: whether another device cannot run it.
    """

    name: str
    question: str
    commands: Sequence[Command]
    needs_cuda: bool = False


@dataclass(frozen=True)
class Scale:
    """How large the work is.

    Args:
        sd15: options that name the smaller model and its size.
        sdxl: the same of the larger one.
        architecture: of the smaller one, for what takes the denoiser alone.
        height: of its images, in pixels.
        batches: images per call.
        num_steps: of a loop.
        fewer: steps of the control with fewer steps.
        repeats: measured calls.
        training_steps: of each way to train, timed.
    """

    sd15: str
    sdxl: str
    architecture: str
    height: int
    batches: Sequence[int]
    num_steps: int
    fewer: int
    repeats: int
    training_steps: int


FULL = Scale(
    sd15="--model sd15 --random-weights --height 512 --width 512",
    sdxl="--model sdxl --random-weights --height 1024 --width 1024",
    architecture="sd15",
    height=512,
    batches=(1, 4, 8),
    num_steps=50,
    fewer=40,
    repeats=8,
    training_steps=20,
)
TINY = Scale(
    sd15="--model mini-sd --height 64 --width 64",
    sdxl="--model mini-sd --height 64 --width 64",
    architecture="mini-sd",
    height=64,
    batches=(1, 2),
    num_steps=4,
    fewer=3,
    repeats=2,
    training_steps=2,
)
"""For a dry run on any device: the same commands, on the embedded model."""


QUESTIONS = {
    "tests": "do clock, allocator, graphs and restoring hold on this device?",
    "sd15": "what do the papers' schedules save on SD 1.5?",
    "distillation": "what do LoRA and full distillation take in memory and time?",
    "formats": "what do number formats take and save?",
    "modules": "where does the time of a step go?",
    "sdxl": "what do the papers' schedules save on SDXL?",
    "sd15-cudagraph": "the same on SD 1.5, its kernels launched as one graph",
    "sdxl-cudagraph": "the same on SDXL, its kernels launched as one graph",
    "lockstep": "do calls that take turns say the same as calls one after another?",
    "training": "how fast does mini-sd learn?",
}
"""Of the parts, the most valuable first."""


def parts(scale: Scale, device: str) -> list[Part]:
    """Every part, in the order of `QUESTIONS`.

    Args:
        scale: of the work.
        device: "cuda", or "cpu" for a dry run.
    """
    commands = _studies(scale, device) | _others(scale, device)
    return [
        Part(name, question, commands[name], needs_cuda=name.endswith("-cudagraph"))
        for name, question in QUESTIONS.items()
    ]


def _studies(scale: Scale, device: str) -> dict[str, list[Command]]:
    """Studies of time, memory and energy."""
    variants = f"cfg,last:20%,last:50%,unguided,steps:{scale.fewer}"
    formats = ["cfg", *(f"precision:{form}" for form in ("int8wo", "float8wo", "float8cast"))]
    formats += [f"precision:fp32{steps}" for steps in ("", "@first:50%", "@last:50%")]

    def studies(model: str, names: str, batches: Sequence[int], further: str = "") -> list[Command]:
        return [_study(scale, device, model, names, batch, further) for batch in batches]

    eager, graph = f"{variants},deepcache:3", "--execution cudagraph"
    return {
        "sd15": studies(scale.sd15, eager, scale.batches),
        "formats": studies(scale.sd15, ",".join(formats), scale.batches[:1]),
        "sdxl": studies(scale.sdxl, eager, scale.batches),
        "sd15-cudagraph": studies(scale.sd15, variants, scale.batches, graph),
        "sdxl-cudagraph": studies(scale.sdxl, variants, scale.batches, graph),
    }


def _others(scale: Scale, device: str) -> dict[str, list[Command]]:
    """What is no study."""
    modules = (
        f"{SDBENCH} cost {scale.sd15.replace(' --random-weights', '')} --num-steps 8 --by module "
        f"--dtype bfloat16 --device {device} --out {{out}}"
    )
    distils = (
        f"{PYTHON} -m benchmarks.gpu.distillation --model {scale.architecture} "
        f"--height {scale.height} --steps {scale.training_steps} --device {device} --out {{out}}"
    )
    clocks = (
        f"{PYTHON} -m benchmarks.lockstep --equal --repeats {5 * scale.repeats} "
        f"--steps {scale.num_steps} --batch 1"
    )
    trains = (
        f"{PYTHON} -m benchmarks.gpu.training --steps {100 * scale.training_steps} "
        f"--device {device} --out {{out}}"
    )
    return {
        "tests": [Command("", f"{PYTHON} -m pytest -m gpu -n 0 -q tests")],
        "distillation": [Command("table", distils)],
        "modules": [Command("table", modules)],
        "lockstep": [Command("", clocks)],
        "training": [Command("table", trains)],
    }


def _study(
    scale: Scale, device: str, model: str, names: str, batch: int, further: str = ""
) -> Command:
    """A study of time, memory and energy at one batch."""
    seeds = ",".join(map(str, range(batch)))
    text = (
        f"{SDBENCH} run {model} --variants {names} --prompt '{PROMPT}' --seeds {seeds} "
        f"--num-steps {scale.num_steps} --guidance-scale 7.5 --batch {batch} "
        f"--repeats {scale.repeats} --metrics '' --dtype bfloat16 --device {device} {further} "
        "--out {out}"
    )
    return Command(f"batch{batch}", text, resumes="--resume")
