"""A student in a pipeline: its weights are fused into the denoiser for a while, and the base is restored bitwise.

A student is what `sdbench.distill` writes: a folder with a LoRA in safetensors, or a whole denoiser, and a card. Any
other LoRA file that the pipeline can load works too; nothing is known of it, so nothing is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdbench.models.registry import own_adapter
from sdbench.models.students import (
    ADAPTER,
    DENOISER_FILE,
    EMBEDDING_FILE,
    LORA_FILE,
    KeptWeights,
    check_base,
    embedded,
    fuse,
    load_lora,
    load_projection,
    low_rank,
    read_card,
    read_weights,
    remove_projection,
    strength_at,
    told_by_guidance,
)
from sdbench.records.files import first_line
from sdbench.variants.external import ACCELERATORS, accelerated
from sdbench.variants.guidance import call_replaced, denoiser_of, guided_by
from sdbench.variants.registry import Variant
from sdbench.variants.rows import first_tensor
from sdbench.variants.schedule import GuidanceSchedule, ScheduleRule
from sdbench.variants.trace import Listener, Step, Trace


@contextmanager
def applied(
    pipe: Any,
    variant: Variant,
    *,
    guidance_scale: float,
    listeners: Sequence[Listener] = (),
    sequential: bool = False,
) -> Iterator[Trace]:
    """Run a pipeline as a variant says: with its student's weights and accelerator, if it has them, and guided its way.

    Args:
        pipe: a guided diffusers pipeline.
        variant: what to carry out; its number of steps and its scale are the caller's to ask for.
        guidance_scale: w that is asked for.
        listeners: as `guided_by` takes them.
        sequential: as `guided_by` takes it.

    Raises:
        ValueError: as `student_in`, `accelerated` and `guided_by` say; an accelerator with halves one after the other.
    """
    listeners = list(listeners)
    with ExitStack() as undo:
        if variant.student is not None:
            file = Path(variant.student or weights_file(own_adapter(pipe), of_lora=True))
            turns = (
                None
                if variant.rule == GuidanceSchedule.none
                else _InTurn(denoiser_of(pipe), variant.rule)
            )
            undo.enter_context(student_in(pipe, file, guidance_scale=guidance_scale, turns=turns))
            if turns is not None:
                listeners.insert(0, turns)
        schedule: Any = variant.rule if variant.policy is None else variant.policy(guidance_scale)
        if variant.accelerator is not None:
            name, number = variant.accelerator
            if sequential:
                raise ValueError(
                    f"{name} keeps what one call computed, so both halves must be in it"
                )
            undo.enter_context(accelerated(pipe, name, number))
            schedule = None if ACCELERATORS[name].guides else schedule
        yield undo.enter_context(
            guided_by(pipe, schedule, listeners=listeners, sequential=sequential)
        )


class _InTurn(Listener):
    """Has the student's layers on in unguided steps only, so that the base is guided and the student is not."""

    def __init__(self, denoiser: Any, rule: ScheduleRule) -> None:
        self.denoiser, self.rule = denoiser, rule
        self.mask: tuple[bool, ...] = ()
        self.on = True

    def loop_begins(self, call: int, iterations: int, images: int) -> None:
        """Know which steps are guided."""
        self.mask = self.rule(iterations).mask

    def denoiser_begins(self, step: Step, rows: int) -> None:
        """Switch where it has to."""
        if self.on == self.mask[step.index]:
            self.on = not self.on
            self.denoiser.enable_adapters() if self.on else self.denoiser.disable_adapters()


@contextmanager
def student_in(
    pipe: Any, file: str | Path, *, guidance_scale: float, turns: _InTurn | None = None
) -> Iterator[None]:
    """Give a pipeline's denoiser a student's weights; afterwards every weight is bitwise as it was.

    Args:
        pipe: a diffusers pipeline.
        file: the weights, as `weights_file` finds them; a card beside them is held against the pipeline.
        guidance_scale: w that is asked for; a student made for another one is refused, one made for a range is told it.
        turns: switches the layers of a LoRA, which then stay beside the weights. Without it they are added to the
            weights, so that a step costs what it costs without a LoRA; what they change is kept on disk meanwhile.

    Raises:
        ValueError: weights for another base or another w, or that do not fit; a pipeline with adapters of its own.
    """
    file = Path(file)
    modules = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    if low_rank(modules):
        raise ValueError(
            f"{type(pipe).__name__} already has adapters loaded: fuse or unload them first"
        )
    share = strength_at(file, read_card(file), guidance_scale)
    check_base(denoiser_of(pipe), file)
    if file.name == DENOISER_FILE:
        with _kept(list(denoiser_of(pipe).parameters())):
            try:
                denoiser_of(pipe).load_state_dict(read_weights(file))
            except RuntimeError as error:
                kind = type(denoiser_of(pipe)).__name__
                raise ValueError(f"'{file}' does not fit a {kind}: {first_line(error)}") from None
            yield
        return
    if not hasattr(pipe, "load_lora_weights"):
        raise ValueError(f"{type(pipe).__name__} takes no LoRA")
    with ExitStack() as undo:
        for weight in (weight for module in modules for weight in module.parameters()):
            undo.callback(
                weight.requires_grad_, weight.requires_grad
            )  # peft freezes what it is put on
        undo.callback(pipe.unload_lora_weights)
        load_lora(pipe, file)
        layers = low_rank(modules)
        if not layers:
            raise ValueError(f"the adapter '{file}' fits no layer of {type(pipe).__name__}")
        undo.enter_context(
            _told_its_way(pipe, file, guidance_scale, when=lambda: turns is None or turns.on)
        )
        if turns is None:
            undo.enter_context(
                _kept(
                    [weight for layer in layers for weight in layer.get_base_layer().parameters()]
                )
            )
            fuse(layers, share)
            pipe.unload_lora_weights()
        else:
            for layer in layers:
                layer.set_scale(ADAPTER, share)
        yield


@contextmanager
def _told_its_way(
    pipe: Any, file: Path, guidance_scale: float, *, when: Callable[[], bool]
) -> Iterator[None]:
    """Tell a student of a range of scales w, by its projection or by the denoiser's own input."""
    projection = file.with_name(EMBEDDING_FILE)
    with ExitStack() as undo:
        if projection.is_file():
            load_projection(pipe, denoiser_of(pipe), projection)
            undo.callback(remove_projection, denoiser_of(pipe))
        if projection.is_file() or told_by_guidance(file):
            undo.enter_context(
                told(pipe, guidance_scale, by_guidance=not projection.is_file(), when=when)
            )
        yield


@contextmanager
def told(
    pipe: Any,
    guidance_scale: float,
    *,
    by_guidance: bool = False,
    when: Callable[[], bool] = lambda: True,
) -> Iterator[None]:
    """Tell every call of a denoiser w.

    Args:
        pipe: of the denoiser; it knows nothing of this, and guides as before.
        guidance_scale: w.
        by_guidance: as the denoiser's own input; else as the embedding that it has a projection of.
        when: whether a call is the student's.
    """
    known: dict[int, Tensor] = {}  # by number of rows: made once, so that no step waits for it

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if when():
                sample = first_tensor((args, kwargs))
                if len(sample) not in known:
                    scale = torch.full((len(sample),), guidance_scale)
                    known[len(sample)] = (scale if by_guidance else embedded(pipe, scale)).to(
                        sample
                    )
                kwargs["guidance" if by_guidance else "timestep_cond"] = known[len(sample)]
            return original(*args, **kwargs)

        return call

    with call_replaced(denoiser_of(pipe), wrap):
        yield


def weights_file(path: str | Path, *, of_lora: bool) -> Path:
    """The file that holds a student's weights: in its folder, or a LoRA by itself.

    Raises:
        ValueError: there is none, or it is no safetensors file.
    """
    path = Path(path)
    file = path if of_lora and path.is_file() else path / (LORA_FILE if of_lora else DENOISER_FILE)
    if file.suffix != ".safetensors":
        raise ValueError(
            f"'{file}' is no safetensors file; others can run code when they are opened, so they are not"
        )
    if not file.is_file():
        raise ValueError(
            f"'{path}' holds no {'LoRA' if of_lora else 'whole denoiser'}: {file.name} is missing"
        )
    return file


@contextmanager
def _kept(weights: Sequence[Tensor]) -> Iterator[None]:
    kept = KeptWeights(weights)
    try:
        yield
    finally:
        kept.restore()
