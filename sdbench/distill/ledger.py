"""What training and inference hold in memory, by part, beside arithmetic (`python -m sdbench.distill.ledger`).

Every byte that torch's CPU allocator holds at the peak is put down to a part by when it was taken and given back, so
the parts sum to the peak. The denoiser is run by itself, on zeros: memory does not depend on values.
"""

from __future__ import annotations

import copy
import gc
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from sdbench.distill.loss import distillation_loss, guided_prediction
from sdbench.distill.student import add_lora
from sdbench.instruments.footprint import LiveBytes, arguments, faked
from sdbench.instruments.memory import AllocatorTrace, parts_held
from sdbench.models.architectures import ARCHITECTURES
from sdbench.models.mini_sd import networks
from sdbench.records.environment import environment
from sdbench.records.schema import LEDGER, frame
from sdbench.records.store import StudyFolder
from sdbench.variants.rows import first_tensor, halves

TRAINING = ("fine-tuning, full", "fine-tuning, LoRA", "distillation, full", "distillation, LoRA")
INFERENCE = ("guided", "student, LoRA fused", "student, LoRA not fused")
STEPS = 2  # the first makes the optimiser's state, in the second all parts are there


def ledger(
    make: Callable[[], Any],
    call: Callable[[Any], dict[str, Any]],
    *,
    methods: Sequence[str] = (*TRAINING, *INFERENCE),
    rank: int,
    targets: Sequence[str],
    checkpoint_gradients: bool = False,
) -> Iterator[list[dict[str, Any]]]:
    """Run every method on a fresh denoiser and put its memory down part by part.

    Args:
        make: makes the denoiser, in the dtype in which it is loaded.
        call: its arguments for a guided step, both halves of the rows.
        methods: of `TRAINING` and `INFERENCE`.
        rank: of the LoRA.
        targets: of the LoRA, as `add_lora` takes them.
        checkpoint_gradients: compute activations anew in the backward pass.

    Yields:
        Per method the rows of the table `ledger`.
    """
    unknown = [method for method in methods if method not in (*TRAINING, *INFERENCE)]
    if unknown:
        raise ValueError(
            f"unknown method '{unknown[0]}'; there are: {'; '.join((*TRAINING, *INFERENCE))}"
        )
    for method in methods:
        rows, predicted = _predicted(
            make, call, method, rank, targets, checkpoint_gradients=checkpoint_gradients
        )
        run = _trained if method in TRAINING else _inferred
        at_peak, most, step_s = run(make, call, method, rank, targets, checkpoint_gradients)
        gc.collect()
        known = {
            "unit": method,
            "method": method,
            "checkpoint_gradients": checkpoint_gradients,
            "step_s": step_s,
        }
        known["rows"] = rows
        yield [
            known
            | {"part": part, "at_peak_bytes": at_peak.get(part, 0), "most_bytes": most.get(part, 0)}
            | {"predicted_bytes": predicted.get(part)}
            for part in dict.fromkeys([*predicted, *most])
        ]


def _trained(
    make: Callable[[], Any],
    arguments_of: Callable[[Any], dict[str, Any]],
    method: str,
    rank: int,
    targets: Sequence[str],
    checkpoint_gradients: bool,
) -> tuple[dict[str, int], dict[str, int], float]:
    """Trace steps of AdamW from before there is a denoiser, then time one more."""
    with AllocatorTrace() as trace:
        denoiser = make()
        trace.mark("weights")
        call = arguments_of(denoiser)
        trace.mark("inputs")
        teacher = _learner(denoiser, method, rank, targets)
        trace.mark("student")
        learnt = [weight for weight in denoiser.parameters() if weight.requires_grad]
        if checkpoint_gradients:
            denoiser.enable_gradient_checkpointing()
        # Fused, because otherwise AdamW takes scratch memory of the size of the weights in every step.
        optimiser = torch.optim.AdamW(learnt, lr=1e-5, fused=True)
        for _ in range(STEPS):
            _step(denoiser, teacher, call, optimiser, trace.mark)
    started = time.perf_counter()
    _step(denoiser, teacher, call, optimiser, lambda label: None)
    step_s = time.perf_counter() - started
    kept = "adapter" if method.endswith("LoRA") else "teacher copy"
    return *parts_held(
        trace.events, trace.labels, lambda taken, back: _part(taken, back, kept)
    ), step_s


def _learner(denoiser: Any, method: str, rank: int, targets: Sequence[str]) -> Any:
    """Make the student in place; the teacher comes back, None in fine-tuning."""
    distilled = method.startswith("distillation")
    if method.endswith("LoRA"):
        add_lora(denoiser, rank=rank, alpha=rank, targets=targets)
        return denoiser if distilled else None
    return copy.deepcopy(denoiser).requires_grad_(False) if distilled else None


def _step(
    denoiser: Any,
    teacher: Any,
    call: Mapping[str, Any],
    optimiser: Any,
    mark: Callable[[str], None],
) -> None:
    student_call = halves(call, len(first_tensor(call)))[1]
    target = (
        torch.zeros_like(first_tensor(student_call))
        if teacher is None
        else _target(teacher, denoiser, call)
    )
    mark("target")
    loss = distillation_loss(first_tensor(denoiser(**student_call)), target)
    mark("forward")
    loss.backward()
    mark("backward")
    optimiser.step()
    mark("optimiser")
    optimiser.zero_grad(set_to_none=True)
    mark("cleared")


@torch.no_grad()
def _target(teacher: Any, denoiser: Any, call: Mapping[str, Any]) -> Tensor:
    shared = teacher is denoiser
    if shared:
        teacher.disable_adapters()
    uncond, cond = first_tensor(teacher(**call)).chunk(2)
    if shared:
        teacher.enable_adapters()
    return guided_prediction(cond, uncond, 7.5)


def _part(taken: str, given_back: str | None, kept: str) -> str:
    """What an allocation was for, by the intervals in which it was taken and given back."""
    if taken in ("weights", "inputs"):
        return taken if given_back is None else "scratch"
    if taken == "student":
        return kept if given_back is None else "scratch"
    if taken == "target":
        return "teacher's pass"
    if taken == "forward":
        return "activations"
    if taken == "backward":
        return "backward's scratch" if given_back == "backward" else "gradients"
    return "optimiser state" if given_back is None else "scratch"


def _inferred(
    make: Callable[[], Any],
    arguments_of: Callable[[Any], dict[str, Any]],
    method: str,
    rank: int,
    targets: Sequence[str],
    checkpoint_gradients: bool,
) -> tuple[dict[str, int], dict[str, int], float]:
    """Trace one step, then time another."""
    with AllocatorTrace() as trace, torch.no_grad():
        denoiser = make()
        trace.mark("weights")
        given = arguments_of(denoiser)
        if method != "guided":
            given = halves(given, len(first_tensor(given)))[1]
        trace.mark("inputs")
        if method != "guided":
            add_lora(denoiser, rank=rank, alpha=rank, targets=targets)
        if method == "student, LoRA fused":
            denoiser.fuse_lora()
            denoiser.unload_lora()
        trace.mark("student")
        denoiser(**given)
        trace.mark("forward")
    started = time.perf_counter()
    with torch.no_grad():
        denoiser(**given)
    step_s = time.perf_counter() - started
    return *parts_held(
        trace.events, trace.labels, lambda taken, back: _part(taken, back, "adapter")
    ), step_s


def _predicted(
    make: Callable[[], Any],
    arguments_of: Callable[[Any], dict[str, Any]],
    method: str,
    rank: int,
    targets: Sequence[str],
    *,
    checkpoint_gradients: bool,
) -> tuple[int, dict[str, int]]:
    """Images of a step, and bytes of every part by arithmetic; activations by following a pass without values."""
    with torch.device("meta"):
        denoiser = make()
        found = {"weights": _bytes(denoiser.parameters())}
        if method in TRAINING:
            _learner(denoiser, method.replace("distillation", "fine-tuning"), rank, targets)
        elif method == "student, LoRA not fused":
            add_lora(denoiser, rank=rank, alpha=rank, targets=targets)
    if method == "distillation, full":
        found["teacher copy"] = found["weights"]
    added = _bytes(denoiser.parameters()) - found["weights"]
    if added:
        found["adapter"] = added
    if method in TRAINING:
        learnt = _bytes(weight for weight in denoiser.parameters() if weight.requires_grad)
        found |= {"gradients": learnt, "optimiser state": 2 * learnt}
    with FakeTensorMode(), torch.device("cpu"):
        fake, held = faked(denoiser, next(denoiser.parameters()).dtype)
        call = arguments_of(fake)
        images = len(first_tensor(call)) // 2
        if method != "guided":
            call = halves(call, 2 * images)[1]
        if method in INFERENCE or not checkpoint_gradients:
            following = LiveBytes([*held, *tree_leaves(call)])
            with torch.set_grad_enabled(method in TRAINING), following:
                fake(**call)
            found["activations"] = following.cpu_peak_bytes
    return images, found


def _bytes(weights: Iterable[Tensor]) -> int:
    return sum(weight.nbytes for weight in weights)


def ledger_of(
    model: str, *, height: int, batch: int, rank: int, targets: Sequence[str], **options: Any
) -> Iterator[pd.DataFrame]:
    """The ledger of a full-size architecture or of mini-sd, in float32 on the CPU.

    Args:
        model: a name in `ARCHITECTURES`, or "mini-sd".
        height: pixels, and as many across.
        batch: images of a step.
        rank: of the LoRA.
        targets: of the LoRA.
        **options: `methods` and `checkpoint_gradients` of `ledger`.

    Yields:
        Per method the rows of the table `ledger`.
    """
    mini = model == "mini-sd"
    parts = {} if mini else ARCHITECTURES[model].networks
    part = None if mini else parts.get("unet") or parts["transformer"]
    size: dict[str, Any] = {
        "height": height,
        "width": height,
        "dtype": torch.float32,
        "vae_factor": 4 if mini else 8,
    }
    if mini:
        size["tokens"] = networks.TOKENS
    for rows in ledger(
        lambda: (networks.denoiser() if part is None else part.make()).eval(),
        lambda denoiser: arguments(denoiser, rows=2 * batch, **size),
        rank=rank,
        targets=targets,
        **options,
    ):
        yield frame("ledger", rows)


def main(
    model: Annotated[str, typer.Option(help="an architecture, or mini-sd")] = "sd15",
    height: Annotated[int, typer.Option(help="pixels, and as many across")] = 256,
    batch: Annotated[int, typer.Option(help="images of a step")] = 1,
    rank: Annotated[int, typer.Option(help="of the LoRA")] = 4,
    targets: Annotated[
        str, typer.Option(help="of the LoRA: attention, feed-forward, convolutions, timestep")
    ] = "attention",
    checkpoint_gradients: Annotated[
        bool, typer.Option("--checkpoint-gradients", help="less memory, slower")
    ] = False,
    methods: Annotated[str, typer.Option(help="with ; between them")] = ";".join(
        (*TRAINING, *INFERENCE)
    ),
    out: Annotated[Path | None, typer.Option(help="gets the table")] = None,
) -> None:
    """Print every method's memory at its peak, part by part, and the seconds of a step, in float32 on the CPU."""
    record: dict[str, Any] = {"height": height, "batch": batch, "rank": rank}
    out = out or Path(tempfile.mkdtemp(prefix="sdbench-"))
    settings = {"model": model, **record, "targets": targets}
    with StudyFolder.create(out, settings, environment=environment(), tables=LEDGER) as folder:
        options: dict[str, Any] = {
            "methods": methods.split(";"),
            "checkpoint_gradients": checkpoint_gradients,
        }
        for table in ledger_of(model, **record, targets=targets.split(","), **options):
            folder.add(str(table["unit"].iloc[0]), ledger=table)
            folder.compact()
            typer.echo(_text(table))


def _text(rows: pd.DataFrame) -> str:
    """One method's lines: its peak and time, then its parts in MB at the peak, at most, and predicted."""
    first, peak = rows.iloc[0], rows["at_peak_bytes"].sum()
    lines = [f"{first['method']}: peak {peak / 1e6:.0f} MB, {first['step_s']:.2f} s a step"]
    for _, row in rows.iterrows():
        predicted = (
            ""
            if pd.isna(row["predicted_bytes"])
            else f", predicted {row['predicted_bytes'] / 1e6:.0f}"
        )
        at_peak, most = row["at_peak_bytes"] / 1e6, row["most_bytes"] / 1e6
        lines.append(f"  {row['part']}: {at_peak:.0f} at the peak, {most:.0f} at most{predicted}")
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
