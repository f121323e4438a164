"""`sdbench distill`: a student is trained.

In several processes it is `accelerate launch -m sdbench.cli distill`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdbench.cli.console import command, resumable
from sdbench.cli.options import (
    Device,
    Dtype,
    Overwrite,
    Resume,
    WeightsVariant,
    running,
    written,
)
from sdbench.cli.values import given_fields, write_mode

if TYPE_CHECKING:
    from sdbench.distill.settings import Settings
    from sdbench.models.pipeline import Pipeline

taught = partial(typer.Option, rich_help_panel="What is taught")
trained = partial(typer.Option, rich_help_panel="How it is trained")

# What is taught.
_Model = Annotated[str, taught(help="name, hub id or folder of the teacher")]
_Stage = Annotated[
    str, taught(help="guidance (one pass for two) or steps (one step for two of --from)")
]
_Teacher = Annotated[
    str,
    taught(help="teacher of the stage steps: student (--from), or guided (the model itself)"),
]
_From = Annotated[
    str | None,
    taught("--from", help="student that the stage steps starts from: its folder, or lora"),
]
_W = Annotated[
    float | None,
    taught(
        "--w",
        help="guidance scale of the teacher; required for models that `sdbench models` lacks",
    ),
]
_WRange = Annotated[
    tuple[float, float] | None,
    taught("--w-range", help="learn all scales between these two; the student is given w"),
]
_Data = Annotated[str, taught(help="trajectories (the teacher's own) or images (captioned)")]
_PromptsFile = Annotated[Path | None, taught(help="prompts to learn from, one per line")]
_Images = Annotated[
    Path | None,
    taught(help="folder with images and their metadata.jsonl; scaled to the model's own size"),
]
_HeldOutFile = Annotated[Path | None, taught(help="prompts that the student is judged on")]
_NumSteps = Annotated[int, taught(help="denoising steps of trajectories and of the images judged")]
_Seed = Annotated[int, taught(help="seed of everything random")]

# How it is trained.
_Method = Annotated[str, trained(help="lora, or full: a copy of every weight, as a control")]
_Rank = Annotated[int | None, trained(help="rank of the low-rank layers; 8 by default")]
_Alpha = Annotated[
    int | None,
    trained(help="their update is scaled by alpha / rank; by default alpha is the rank"),
]
_Targets = Annotated[
    str | None,
    trained(
        help="attention, feed-forward, convolutions, timestep: layers; by default the first two"
    ),
]
_Steps = Annotated[int, trained(help="number of optimiser steps")]
_Rows = Annotated[int, trained(help="rows of a batch, in each process")]
_LearningRate = Annotated[float, trained(help="peak learning rate")]
_Warmup = Annotated[int, trained(help="steps over which the learning rate rises to its peak")]
_MinSnrGamma = Annotated[float | None, trained(help="limit of a row's loss weight, such as 5")]
_Accumulate = Annotated[int, trained(help="batches whose gradients add up to one optimiser step")]

# How it runs.
_Precision = Annotated[str, running(help="mixed precision of the denoiser: no, fp16 or bf16")]
_CheckpointGradients = Annotated[
    bool, running("--checkpoint-gradients", help="keep fewer activations: less memory, slower")
]

# What is left.
_Out = Annotated[Path, written(help="folder of the run; the student is in its subfolder student/")]
_EvaluateEvery = Annotated[int, written(help="steps between two evaluations")]
_SaveEvery = Annotated[int, written(help="steps between two checkpoints")]


@command
def distill(
    out: _Out,
    model: _Model = "mini-sd",
    stage: _Stage = "guidance",
    start: _From = None,
    teacher: _Teacher = "student",
    w: _W = None,
    w_range: _WRange = None,
    data: _Data = "trajectories",
    prompts_file: _PromptsFile = None,
    images: _Images = None,
    held_out_file: _HeldOutFile = None,
    num_steps: _NumSteps = 50,
    seed: _Seed = 0,
    method: _Method = "lora",
    rank: _Rank = None,
    alpha: _Alpha = None,
    targets: _Targets = None,
    steps: _Steps = 2_000,
    rows: _Rows = 8,
    learning_rate: _LearningRate = 1e-4,
    warmup: _Warmup = 50,
    min_snr_gamma: _MinSnrGamma = None,
    accumulate: _Accumulate = 1,
    precision: _Precision = "no",
    checkpoint_gradients: _CheckpointGradients = False,
    dtype: Dtype[str] = "float32",
    device: Device = None,
    weights_variant: WeightsVariant = None,
    evaluate_every: _EvaluateEvery = 250,
    save_every: _SaveEvery = 100,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a student that predicts the guided result in one conditional pass, or in fewer steps.

    The student is a LoRA on the model's own weights.
    """
    mode = write_mode(resume=resume, overwrite=overwrite, out=out)
    settings = _settings(locals())
    _require_sources(model, data, prompts_file, images, held_out_file)

    from sdbench.distill.trainer import distill as train

    with resumable(out):
        pipe = _teacher(settings, model, dtype, device, weights_variant)
        sources = _sources(pipe, model, prompts_file, images, held_out_file)
        folder = train(pipe, settings, out, model=model, start=start, mode=mode, **sources)
    typer.echo(f"The student is in {folder}; try it with: {_trial(settings, model, folder)}")


def _trial(settings: Settings, model: str, folder: Path) -> str:
    """A command that runs the student; one of few steps runs with these."""
    few = f"--num-steps {settings.num_steps} " if settings.halves_steps else ""
    return f"sdbench run --model {model} {few}--variants cfg,{settings.method}:{folder}"


def _teacher(
    settings: Settings, model: str, dtype: str, device: str | None, weights_variant: str | None
) -> Pipeline:
    """The teacher's pipeline; what it could not be used for is refused before it is opened."""
    from sdbench.models.registry import default_device, load

    settings.check_base(dtype, on_cpu=(device or default_device()) == "cpu")
    pipe: Pipeline = load(model, dtype=dtype, device=device, weights_variant=weights_variant)
    return pipe


def _settings(options: dict[str, Any]) -> Settings:
    """The options that are settings; the scale is the model's and alpha the rank by default."""
    from sdbench.distill.settings import Settings
    from sdbench.models.registry import MODELS

    scale = options["w"]
    if scale is None:
        model = options["model"]
        if model not in MODELS:
            raise ValueError(f"--w is missing: the guidance scale of '{model}' is not known here")
        scale = MODELS[model].guidance_scale

    given = given_fields(Settings, options) | {"guidance_scale": scale}
    _require_own_layers(given)
    if "rank" in given:
        given = {"alpha": given["rank"]} | given
    if "targets" in given:
        given["targets"] = tuple(target.strip() for target in given["targets"].split(","))
    return Settings(**given)


def _require_own_layers(given: dict[str, Any]) -> None:
    """Refuse options of the layers where these are those of another student."""
    layers = [name for name in ("rank", "alpha", "targets") if name in given]
    if given["stage"] == "steps" and layers:
        raise ValueError(
            f"--{layers[0]} is for new layers; --stage steps goes on with those of --from"
        )


def _require_sources(
    model: str,
    data: str,
    prompts_file: Path | None,
    images: Path | None,
    held_out_file: Path | None,
) -> None:
    """Refuse what leaves the student without prompts or images."""
    from sdbench.distill.captions import OWN_CAPTIONS

    known = " and ".join(OWN_CAPTIONS)
    has_own = model in OWN_CAPTIONS
    if not has_own and held_out_file is None:
        raise ValueError(
            f"a student needs --held-out-file to be judged on; only {known} bring their own prompts"
        )
    if not has_own and data == "trajectories" and prompts_file is None:
        raise ValueError(f"trajectories need --prompts-file; only {known} bring their own prompts")
    if images is not None and data != "images":
        raise ValueError("--images is for --data images")


def _sources(
    pipe: Pipeline,
    model: str,
    prompts_file: Path | None,
    images: Path | None,
    held_out_file: Path | None,
) -> dict[str, Any]:
    """What the student learns from and is judged on: files, or what an embedded model brings."""
    from sdbench.distill import captions
    from sdbench.models.grammars import held_out_captions
    from sdbench.models.registry import own_side
    from sdbench.records.files import read_prompts

    sources: dict[str, Any] = {}
    if model in captions.OWN_CAPTIONS:
        sources["captions"] = captions.OWN_CAPTIONS[model]
        sources["held_out"] = held_out_captions(16, model)
    if model == "mini-sd":
        sources["captioned"] = captions.captioned_scenes

    # A file goes before what the model brings.
    if prompts_file is not None:
        sources["captions"] = read_prompts(prompts_file, distinct=False)
    if images is not None:
        sources["captioned"] = captions.image_folder(images, side=own_side(pipe))
    if held_out_file is not None:
        sources["held_out"] = read_prompts(held_out_file)
    return sources
