"""A student in a pipeline: fused into the denoiser for a while, then restored bitwise.

A student is what `sdbench.distill` writes: a folder with a LoRA in safetensors, or a whole
denoiser, and a card. Any other LoRA file that the pipeline can load works too. Nothing is known of
it, so nothing is checked.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from sdbench.models.bare_weights import bare_module, copied_weights, require_own_weights
from sdbench.models.causes import require_own
from sdbench.models.guidance_embedding import embedded, load_projection, remove_projection
from sdbench.models.pipeline import LoraPipeline, Pipeline, denoiser_of, networks_of
from sdbench.models.student_layers import (
    ADAPTER,
    KeptWeights,
    fuse,
    load_lora,
    low_rank,
    read_weights,
    refuse_adapters,
    unload_lora,
)
from sdbench.models.students import (
    DENOISER_FILE,
    EMBEDDING_FILE,
    LORA_FILE,
    check_base,
    read_card,
    strength_at,
    uses_guidance_input,
)
from sdbench.records.files import first_line
from sdbench.variants.copies import own_copies
from sdbench.variants.holds import held
from sdbench.variants.hooks import call_replaced
from sdbench.variants.rows import first_tensor
from sdbench.variants.schedule import ScheduleRule
from sdbench.variants.trace import Listener, Step

Weights = Sequence[Shaped[Tensor, "*shape"]]
Kept = Callable[[Weights], AbstractContextManager[None]]
"""Lets weights be changed for the length of a block."""


class Turns(Listener):
    """Has the student's layers on in unguided steps only: it is the base that is guided.

    Args:
        denoiser: with the layers.
        rule: says which steps are guided.

    Attributes:
        denoisers: it, and copies of it.
    """

    def __init__(self, denoiser: Any, rule: ScheduleRule) -> None:
        """Start with the layers on, as they are loaded."""
        self.denoisers = [denoiser]
        self.rule = rule
        self.mask: tuple[bool, ...] = ()
        self.on = True

    def loop_begins(self, call: int, iterations: int, images: int) -> None:
        """Know which steps are guided."""
        self.mask = self.rule(iterations).mask

    def denoiser_begins(self, step: Step, rows: int) -> None:
        """Switch where it has to."""
        if self.on == self.mask[step.index]:
            self.on = not self.on
            for own in self.denoisers:
                own.enable_adapters() if self.on else own.disable_adapters()


class MadeForSteps(Listener):
    """Warns where a student of few steps runs with another number of steps.

    Args:
        file: the student's weights.
        num_steps: that it was made for.
    """

    def __init__(self, file: Path, num_steps: int) -> None:
        self.file = file
        self.num_steps = num_steps

    def loop_begins(self, call: int, iterations: int, images: int) -> None:
        """Compare the loop with the student."""
        if iterations != self.num_steps:
            made = f"the student '{self.file}' is made for {self.num_steps} steps"
            warnings.warn(f"{made}; it runs with {iterations}", RuntimeWarning, stacklevel=2)


@contextmanager
def student_in(
    pipe: Pipeline,
    file: str | Path,
    *,
    guidance_scale: float,
    turns: Turns | None = None,
    copies_weights: bool = False,
) -> Iterator[None]:
    """Give a pipeline's denoiser a student's weights; afterwards every weight is bitwise as it was.

    Args:
        pipe: a diffusers pipeline.
        file: the weights, as `weights_file` finds them; a card next to them is held against the
            pipeline.
        guidance_scale: w that is asked for. A student of another scale is refused; one of a range
            is given w.
        turns: switches the layers of a LoRA, which then stay next to the weights. Without it they
            are added to the weights, so that a step costs what it costs without a LoRA; what they
            change is kept on disk meanwhile.
        copies_weights: change copies of the weights instead, which take memory meanwhile. The
            pipeline must be a `PipelineCopy`'s, with whose modules the copies are gone.

    Raises:
        ValueError: weights for another base or another w, or that do not fit; a pipeline that has
            adapters; a denoiser that another pipeline uses for now.
    """
    file = Path(file)
    modules = list(networks_of(pipe).values())
    with ExitStack() as undo:
        undo.enter_context(held(pipe, "student"))
        refuse_adapters(pipe, modules)
        strength = strength_at(file, read_card(file), guidance_scale)
        check_base(denoiser_of(pipe), file)
        require_own_weights(denoiser_of(pipe))

        kept = partial(_copied, modules) if copies_weights else _put_aside
        if file.name == DENOISER_FILE:
            undo.enter_context(_whole_denoiser(bare_module(denoiser_of(pipe)), file, kept))
        else:
            lora_pipe = _lora_pipeline(pipe)
            layers = undo.enter_context(_low_rank_layers(lora_pipe, modules, file))
            undo.enter_context(_given_its_scale(pipe, file, guidance_scale, turns))
            if turns is None:
                undo.enter_context(_fused(lora_pipe, layers, strength, kept))
            else:
                for layer in layers:
                    layer.set_scale(ADAPTER, strength)
        yield


@contextmanager
def _whole_denoiser(denoiser: nn.Module, file: Path, kept: Kept) -> Iterator[None]:
    """Every weight of a denoiser from a file."""
    with kept(list(denoiser.parameters())):
        try:
            denoiser.load_state_dict(copied_weights(denoiser) | read_weights(file))
        except RuntimeError as error:
            require_own(error, f"'{file}' cannot be loaded")
            kind = type(denoiser).__name__
            raise ValueError(f"'{file}' does not fit a {kind}: {first_line(error)}") from None
        yield


def _lora_pipeline(pipe: Pipeline) -> LoraPipeline:
    if not hasattr(pipe, "load_lora_weights"):
        raise ValueError(f"{type(pipe).__name__} takes no LoRA")
    return cast(LoraPipeline, pipe)


@contextmanager
def _low_rank_layers(
    pipe: LoraPipeline, modules: Sequence[nn.Module], file: Path
) -> Iterator[list[Any]]:
    """The layers of a LoRA, loaded next to a pipeline's weights."""
    with ExitStack() as undo:
        # peft freezes what it is put on
        for weight in (weight for module in modules for weight in module.parameters()):
            undo.callback(weight.requires_grad_, weight.requires_grad)
        undo.callback(unload_lora, pipe)

        load_lora(pipe, file)
        layers = low_rank(modules)
        if not layers:
            raise ValueError(f"the adapter '{file}' fits no layer of {type(pipe).__name__}")
        yield layers


@contextmanager
def _fused(
    pipe: LoraPipeline, layers: Sequence[Any], strength: float, kept: Kept
) -> Iterator[None]:
    """The layers of a LoRA added to the weights, and gone themselves."""
    bases = [weight for layer in layers for weight in layer.get_base_layer().parameters()]
    with kept(bases):
        fuse(layers, strength)
        unload_lora(pipe)
        yield


@contextmanager
def _given_its_scale(
    pipe: Pipeline, file: Path, guidance_scale: float, turns: Turns | None
) -> Iterator[None]:
    """Give w to a student of a range of scales: by its projection, or the denoiser's input."""
    projection = file.with_name(EMBEDDING_FILE)
    has_projection = projection.is_file()

    def is_students_turn() -> bool:
        return turns is None or turns.on

    with ExitStack() as undo:
        if has_projection:
            load_projection(pipe, denoiser_of(pipe), projection)
            undo.callback(remove_projection, denoiser_of(pipe))
        if has_projection or uses_guidance_input(file):
            given = given_scale(
                pipe, guidance_scale, by_guidance=not has_projection, when=is_students_turn
            )
            undo.enter_context(given)
        yield


@contextmanager
def given_scale(
    pipe: Pipeline,
    guidance_scale: float,
    *,
    by_guidance: bool = False,
    when: Callable[[], bool] = lambda: True,
) -> Iterator[None]:
    """Give w to every call of a denoiser.

    Args:
        pipe: of the denoiser; it knows nothing of this, and guides as before.
        guidance_scale: w.
        by_guidance: as the denoiser's own input; else as the embedding that it has a projection of.
        when: whether a call is the student's.
    """
    # By number of rows, made once: otherwise a step would wait for it.
    inputs: dict[int, Float[Tensor, "rows ..."]] = {}

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if when():
                sample = first_tensor((args, kwargs))
                rows = len(sample)
                if rows not in inputs:
                    scale = torch.full((rows,), guidance_scale)
                    inputs[rows] = (scale if by_guidance else embedded(pipe, scale)).to(sample)
                kwargs["guidance" if by_guidance else "timestep_cond"] = inputs[rows]
            return original(*args, **kwargs)

        return call

    with call_replaced(denoiser_of(pipe), wrap):
        yield


def listeners_of(file: Path) -> list[Listener]:
    """What watches the loops of the student in a file."""
    num_steps = read_card(file).get("num_steps")
    return [] if num_steps is None else [MadeForSteps(file, num_steps)]


def weights_file(path: str | Path, *, of_lora: bool) -> Path:
    """The file that holds a student's weights: in its folder, or a LoRA by itself.

    Raises:
        ValueError: there is none, or it is no safetensors file.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"there is no file or folder '{path}'")
    if path.is_file() and not of_lora:
        raise ValueError(f"'{path}' is a file: give the folder with the whole denoiser")
    name = LORA_FILE if of_lora else DENOISER_FILE
    file = path if of_lora and path.is_file() else path / name
    if file.suffix != ".safetensors":
        raise ValueError(
            f"'{file}' is no safetensors file; others can run code when they are opened, "
            "so they are not"
        )
    if not file.is_file():
        raise ValueError(
            f"'{path}' holds no {'LoRA' if of_lora else 'whole denoiser'}: {file.name} is missing"
        )
    return file


@contextmanager
def _put_aside(weights: Weights) -> Iterator[None]:
    """Let weights be changed; what they were is in a file meanwhile."""
    kept = KeptWeights(weights)
    try:
        yield
    finally:
        kept.restore()


@contextmanager
def _copied(modules: Sequence[nn.Module], weights: Weights) -> Iterator[None]:
    """Let copies of weights be changed; they are gone with the modules' attributes."""
    own_copies(modules, weights)
    yield
