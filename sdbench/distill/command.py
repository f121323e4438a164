"""The command `sdbench distill`, also `python -m sdbench.distill` for `accelerate launch`: options to one call."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def distill(
    out: Annotated[
        Path, typer.Option(help="the run's folder; the student will be in its folder student/")
    ],
    model: Annotated[str, typer.Option(help="name, hub id or folder of the teacher")] = "mini-sd",
    w: Annotated[
        float | None,
        typer.Option("--w", help="the teacher's guidance scale; the model's by default"),
    ] = None,
    w_range: Annotated[
        tuple[float, float] | None,
        typer.Option(
            "--w-range", help="learn all scales between these two; the student is told which"
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(help="lora, or full: a copy of every weight, as a control")
    ] = "lora",
    data: Annotated[
        str, typer.Option(help="trajectories (the teacher's own) or images (captioned)")
    ] = "trajectories",
    prompts_file: Annotated[
        Path | None, typer.Option(help="prompts to learn from, one per line")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="folder with images and their metadata.jsonl; scaled to the model's own size"
        ),
    ] = None,
    held_out_file: Annotated[
        Path | None, typer.Option(help="prompts that the student is judged on")
    ] = None,
    steps: Annotated[int, typer.Option(help="of the optimiser")] = 2_000,
    rows: Annotated[int, typer.Option(help="of a batch, in each process")] = 8,
    learning_rate: Annotated[float, typer.Option(help="its peak")] = 1e-4,
    warmup: Annotated[int, typer.Option(help="steps in which it rises")] = 50,
    rank: Annotated[int, typer.Option(help="of the low-rank layers")] = 8,
    alpha: Annotated[
        int | None, typer.Option(help="their update is scaled by alpha / rank; by default 1")
    ] = None,
    targets: Annotated[
        str, typer.Option(help="attention, feed-forward, convolutions, timestep")
    ] = "attention,feed-forward",
    num_steps: Annotated[
        int, typer.Option(help="denoising steps of trajectories and of the images judged")
    ] = 50,
    min_snr_gamma: Annotated[
        float | None, typer.Option(help="limit of a row's weight, such as 5")
    ] = None,
    accumulate: Annotated[int, typer.Option(help="batches before each step")] = 1,
    precision: Annotated[
        str, typer.Option(help="of the denoiser's layers: no, fp16 or bf16")
    ] = "no",
    checkpoint_gradients: Annotated[
        bool, typer.Option("--checkpoint-gradients", help="less memory, slower")
    ] = False,
    seed: Annotated[int, typer.Option(help="of everything random")] = 0,
    evaluate_every: Annotated[int, typer.Option(help="steps between two rows of the curve")] = 250,
    save_every: Annotated[int, typer.Option(help="steps between two checkpoints")] = 100,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run in --out")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace the run in --out")
    ] = False,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu or cuda")] = None,
) -> None:
    """Train a student that predicts the guided result in one conditional pass, as a LoRA on the model's own weights."""
    from sdbench.distill import captions as sources
    from sdbench.distill.trainer import Settings
    from sdbench.distill.trainer import distill as train
    from sdbench.models.registry import MODELS, load, own_side
    from sdbench.records.files import read_prompts

    if resume and overwrite:
        raise ValueError("--resume and --overwrite exclude each other")
    own = model == "mini-sd"
    if w is None:
        if model not in MODELS:
            raise ValueError(f"--w is missing: the guidance scale of '{model}' is not known here")
        w = MODELS[model].guidance_scale
    if not own and held_out_file is None:
        raise ValueError(
            "a student needs --held-out-file to be judged on; only mini-sd brings its own prompts"
        )
    if not own and data == "trajectories" and prompts_file is None:
        raise ValueError("trajectories need --prompts-file; only mini-sd brings its own prompts")
    if images is not None and data != "images":
        raise ValueError("--images is for --data images")
    settings = Settings(
        guidance_scale=w,
        w_range=w_range,
        method=method,
        data=data,
        steps=steps,
        rows=rows,
        learning_rate=learning_rate,
        warmup=warmup,
        rank=rank,
        alpha=rank if alpha is None else alpha,
        targets=tuple(target.strip() for target in targets.split(",")),
        num_steps=num_steps,
        min_snr_gamma=min_snr_gamma,
        accumulate=accumulate,
        precision=precision,
        checkpoint_gradients=checkpoint_gradients,
        seed=seed,
        evaluate_every=evaluate_every,
        save_every=save_every,
    )
    captioned = sources.captioned_scenes if own else None
    prompts = sources.scene_captions if own else None
    pipe = load(model, dtype=dtype, device=device)
    folder = train(
        pipe,
        settings,
        out,
        model=model,
        captions=prompts if prompts_file is None else read_prompts(prompts_file),
        captioned=captioned
        if images is None
        else sources.image_folder(images, side=own_side(pipe)),
        held_out=sources.held_out_captions(16)
        if held_out_file is None
        else read_prompts(held_out_file),
        mode="resume" if resume else "overwrite" if overwrite else "new",
    )
    variant = f"full:{folder}" if method == "full" else f"lora:{folder}"
    typer.echo(
        f"The student is in {folder}; try it with: sdbench run --model {model} --variants cfg,{variant}"
    )
