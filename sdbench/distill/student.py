"""The weights that learn: low-rank layers on the teacher's own denoiser, or a whole copy of it.

With LoRA teacher and student are one module: with the adapter off it is the teacher, and there is no second copy of the
weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save
from torch import Tensor, nn

from sdbench.distill.examples import Examples
from sdbench.models.students import (
    ADAPTER,
    DENOISER_FILE,
    EMBEDDING_FILE,
    LORA_FILE,
    add_projection,
    embedded,
    low_rank,
    place_of_projection,
    strength,
    takes_guidance,
)
from sdbench.records.files import write_whole
from sdbench.variants.adapters import told
from sdbench.variants.guidance import denoisers_of, replaced

TARGETS = ("attention", "feed-forward", "convolutions", "timestep")
_KINDS = {"attention": "Attention", "feed-forward": "FeedForward", "timestep": "TimestepEmbedding"}
"""How the class of the module that holds a target's linear layers ends."""


class Strength:
    """Has low-rank layers for a range of scales count in every row as much as its w asks for.

    Args:
        denoiser: with these layers.
        w_range: the lowest and the highest scale.

    Attributes:
        scale: w of every row of the next call, or one for all of them.
    """

    scale: Float[Tensor, " rows"]

    def __init__(self, denoiser: nn.Module, w_range: tuple[float, float]) -> None:
        self.w_range = w_range
        for layer in low_rank([denoiser]):
            layer.lora_B[ADAPTER].register_forward_hook(self._scaled)

    def _scaled(self, layer: nn.Module, given: Any, out: Tensor) -> Tensor:
        share: Any = strength(self.w_range, self.scale)
        return out * share.to(out).reshape(-1, *[1] * (out.ndim - 1))


@dataclass(frozen=True)
class Student:
    """What is trained.

    Args:
        pipe: the pipeline that it was made for.
        denoiser: the module whose call is the student's prediction.
        teacher: the module that is frozen; the same one for LoRA.
        alpha: of the LoRA, over its rank; None for a whole copy.
        projection: of the embedding of w, where the student is told it that way.
        by_guidance: it is told w by the denoiser's own `guidance` input.
        strength: how much of the LoRA counts in each row, where it learns many scales.
    """

    pipe: Any
    denoiser: nn.Module
    teacher: nn.Module
    alpha: float | None
    projection: nn.Linear | None = None
    by_guidance: bool = False
    strength: Strength | None = None

    @property
    def learnt(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name."""
        return {
            name: weight
            for name, weight in self.denoiser.named_parameters()
            if weight.requires_grad
        }

    def teaching(self) -> AbstractContextManager[Any]:
        """While it holds the pipeline is the teacher's, and nothing is recorded for gradients."""
        return _adapter_off(self.denoiser) if self.alpha is not None else torch.no_grad()

    def given(self, examples: Examples) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the student's call gets, which is to be the next one."""
        if self.strength is not None:
            self.strength.scale = examples.scale
        if self.by_guidance:
            return examples.args, examples.kwargs | {"guidance": examples.scale.to(examples.cond)}
        if self.projection is None:
            return examples.args, examples.kwargs
        told_scale = embedded(self.pipe, examples.scale).to(examples.cond.device)
        return examples.args, examples.kwargs | {"timestep_cond": told_scale}

    def in_place(self, guidance_scale: float) -> AbstractContextManager[None]:
        """While it holds the pipeline runs the student, which is told this w where it learns many."""
        if self.strength is not None:
            self.strength.scale = torch.tensor([guidance_scale])
            return told(self.pipe, guidance_scale, by_guidance=self.by_guidance)
        if self.alpha is not None:
            return nullcontext()
        name = next(
            name
            for name in ("unet", "transformer")
            if getattr(self.pipe, name, None) is self.teacher
        )
        return replaced(self.pipe, name, self.denoiser)

    def save(self, folder: Path) -> None:
        """Write the weights as `student_in` reads them; a LoRA also as stock `load_lora_weights` does, in float16."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.alpha is None:
            weights = {
                name: weight.detach().contiguous()
                for name, weight in self.denoiser.state_dict().items()
            }
            write_whole(
                folder / DENOISER_FILE,
                lambda file: file.write(save(weights, metadata={"format": "pt"})),
            )
            return
        prefix = "unet" if getattr(self.pipe, "unet", None) is self.denoiser else "transformer"
        found: dict[str, Tensor] = get_peft_model_state_dict(self.denoiser, adapter_name=ADAPTER)
        # Loaders take W + B A where no alpha stands beside it.
        scaled = {
            key: weight * self.alpha if ".lora_B." in key else weight
            for key, weight in found.items()
        }
        weights = {
            f"{prefix}.{key}": weight.detach().half().contiguous() for key, weight in scaled.items()
        }
        write_whole(
            folder / LORA_FILE, lambda file: file.write(save(weights, metadata={"format": "pt"}))
        )
        if self.projection is not None:
            state = {"weight": self.projection.weight.detach().contiguous()}
            write_whole(
                folder / EMBEDDING_FILE,
                lambda file: file.write(save(state, metadata={"format": "pt"})),
            )


def lora_student(
    pipe: Any,
    *,
    rank: int,
    alpha: int,
    targets: Sequence[str],
    w_range: tuple[float, float] | None = None,
) -> Student:
    """Put low-rank layers on a pipeline's denoiser, at first without effect; see `add_lora`.

    Args:
        pipe: the teacher's.
        rank: of every layer.
        alpha: as `add_lora` takes it.
        targets: as `add_lora` takes them.
        w_range: it learns all scales between these two. It is told w by the denoiser's own `guidance` input where that
            has one (Flux), else by a projection of the embedding of w, at first without effect.

    Raises:
        ValueError: as `add_lora` and `add_projection` say; a projection for a base in half precision.
    """
    denoiser: Any = _only_denoiser(pipe)
    if w_range is not None and denoiser.dtype != torch.float32:
        raise ValueError(
            "a student of many scales trains in float32 only; give a lower precision to its layers instead"
        )
    by_guidance = w_range is not None and takes_guidance(denoiser)
    projected = w_range is not None and not by_guidance
    if projected:
        place_of_projection(pipe, denoiser)  # refuses before anything is changed
    add_lora(denoiser, rank=rank, alpha=alpha, targets=targets)
    projection = add_projection(pipe, denoiser) if projected else None
    shares = None if w_range is None else Strength(denoiser, w_range)
    return Student(pipe, denoiser, denoiser, alpha / rank, projection, by_guidance, shares)


def add_lora(denoiser: Any, *, rank: int, alpha: int, targets: Sequence[str]) -> None:
    """Freeze a denoiser and put trainable low-rank layers on it, at first without effect.

    Args:
        denoiser: of diffusers.
        rank: of every layer, at least 1.
        alpha: the update is scaled by alpha / rank.
        targets: of `TARGETS`.

    Raises:
        ValueError: a rank below 1, an unknown target, or a denoiser without layers of that kind.
    """
    if rank < 1:
        raise ValueError(f"a LoRA's rank must be at least 1, not {rank}")
    require_bare(denoiser)
    chosen = [layer for target in targets for layer in layers(denoiser, target)]
    denoiser.requires_grad_(False)
    adapter = LoraConfig(r=rank, lora_alpha=alpha, target_modules=chosen, init_lora_weights=True)
    denoiser.add_adapter(adapter, adapter_name=ADAPTER)
    for weight in denoiser.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()  # an optimiser's steps are lost in half precision


def require_bare(denoiser: nn.Module) -> None:
    """Refuse a denoiser that has adapters already."""
    if low_rank([denoiser]):
        raise ValueError(
            f"{type(denoiser).__name__} already has adapters loaded: fuse or unload them first"
        )


def full_student(pipe: Any) -> Student:
    """Copy the denoiser whole: what conventional distillation trains, beside a frozen teacher."""
    denoiser = _only_denoiser(pipe)
    if any(weight.dtype != torch.float32 for weight in denoiser.parameters()):
        raise ValueError(
            "a whole denoiser trains in float32 only; give a lower precision to its layers instead"
        )
    denoiser.requires_grad_(False)
    return Student(pipe, copy.deepcopy(denoiser).requires_grad_(True), denoiser, None)


def layers(denoiser: nn.Module, target: str) -> list[str]:
    """Names of the layers of one kind.

    Raises:
        ValueError: an unknown kind, or none of it.
    """
    if target not in TARGETS:
        raise ValueError(f"unknown target '{target}'; there are: {', '.join(TARGETS)}")
    found = []
    for name, module in denoiser.named_modules():
        if target == "convolutions" and isinstance(module, nn.Conv2d):
            if module.groups == 1:  # others have no low-rank form of any rank
                found.append(name)
        elif target != "convolutions" and isinstance(module, nn.Linear):
            above = [
                denoiser.get_submodule(name.rsplit(".", depth)[0])
                for depth in range(1, name.count(".") + 1)
            ]
            # An attention layer's own projections, not those of a whole block that has one.
            named = any(type(module).__name__.endswith(_KINDS[target]) for module in above)
            if named or (target == "timestep" and name.endswith("time_emb_proj")):
                found.append(name)
    if not found:
        raise ValueError(f"{type(denoiser).__name__} has no layers for the target '{target}'")
    return found


def _only_denoiser(pipe: Any) -> nn.Module:
    denoisers = denoisers_of(pipe)
    if len(denoisers) > 1:
        raise ValueError(f"{type(pipe).__name__} has two denoisers: only one can be distilled")
    return denoisers[0]


@contextmanager
def _adapter_off(denoiser: Any) -> Iterator[None]:
    denoiser.disable_adapters()
    try:
        with torch.no_grad():
            yield
    finally:
        denoiser.enable_adapters()
