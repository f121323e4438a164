"""A denoiser in another number format, in all steps of a loop or in some of them.

A copy of the denoiser is in the format (`models/number_formats.py`). It answers in the steps that
are its own, from the same inputs and with outputs of the pipeline's dtype. The scheduler, the text
encoder and the autoencoder stay as they are. So does a network that feeds the denoiser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from sdbench.models.number_formats import FORMATS, in_format
from sdbench.models.pipeline import TIMES, Pipeline, denoisers_of, networks_of
from sdbench.models.registry import require_dtype
from sdbench.models.settings import settings_of
from sdbench.models.stored_weights import stored_bytes
from sdbench.models.student_layers import KeptWeights
from sdbench.variants.holds import held
from sdbench.variants.hooks import MODULE_CALL, below_ours, call_replaced
from sdbench.variants.rows import UNBATCHED, map_tensors
from sdbench.variants.schedule import ScheduleRule
from sdbench.variants.trace import Listener, Step, Unsupported

REFUSED = ("quantisation", "casting", "caches", "hooks", "patched_by")
"""Settings of a denoiser that a copy would not have, or that it would have twice."""


class Switch:
    """Which of a pipeline's denoisers answer: its own, or the copies.

    Attributes:
        is_on: whether it is the copies.
        copies: of the pipeline's denoisers, in their order.
        weights_bytes: of the weights that answer in any step.
    """

    def __init__(self, copies: Sequence[nn.Module], weights_bytes: int) -> None:
        """On: the copies answer."""
        self.is_on = True
        self.copies = copies
        self.weights_bytes = weights_bytes


Follow = Callable[[Switch], Listener]
"""From a switch to what sets it while the loop runs."""


@dataclass(frozen=True)
class Precision:
    """A number format, and the steps in which the denoiser is in it.

    Args:
        form: name in `FORMATS`.
        rule: says which steps keep the pipeline's own format; None where it is no step.
        follow: sets the switch, instead of the rule.
    """

    form: str
    rule: ScheduleRule | None = None
    follow: Follow | None = None

    @property
    def in_all_steps(self) -> bool:
        """Whether the denoiser is in the format all the time."""
        return self.rule is None and self.follow is None


class InSteps(Listener):
    """Lets the copies answer in the steps that a rule does not keep.

    Args:
        rule: says which steps are kept.
        switch: of the pipeline.
    """

    def __init__(self, rule: ScheduleRule, switch: Switch) -> None:
        """Settle nothing yet: the loop's length is known when it begins."""
        self.rule = rule
        self.switch = switch
        self.kept: tuple[bool, ...] = ()

    def loop_begins(self, call: int, iterations: int, images: int) -> None:
        """Know the steps."""
        self.kept = self.rule(iterations).mask

    def denoiser_begins(self, step: Step, rows: int) -> None:
        """Set the switch."""
        self.switch.is_on = not self.kept[step.index]


@contextmanager
def in_precision(
    pipe: Pipeline, precision: Precision, *, leaves_own: bool = False
) -> Iterator[tuple[Switch, Listener]]:
    """Let a copy of a pipeline's denoiser answer in another number format.

    Args:
        pipe: a diffusers pipeline.
        precision: the format, and its steps.
        leaves_own: leave the pipeline's own weights in memory also where no step needs them, as
            other calls may be in progress on them. Else they are in a file meanwhile.

    Yields:
        The switch, and the listener that sets it.

    Raises:
        Unsupported: a denoiser that is compiled or quantised, casts its layers, or has hooks or
            caches; a format that the device lacks, or that the pipeline has already.
        MissingPackage: a package that the format needs is missing.
        ValueError: a denoiser that another pipeline uses for now.
    """
    form = FORMATS[precision.form]
    denoisers = denoisers_of(pipe)
    with ExitStack() as undo:
        undo.enter_context(held(pipe, "precision"))
        _require_plain(pipe, precision.form)
        copies = [in_format(own, form, _dtype(own)) for own in denoisers]
        in_use = copies if precision.in_all_steps else [*copies, *denoisers]
        switch = Switch(copies, stored_bytes(in_use))

        for own, copied in zip(denoisers, copies, strict=True):
            undo.enter_context(call_replaced(own, partial(_answering, switch, copied, form.name)))
        if precision.in_all_steps and not leaves_own:
            undo.enter_context(_weights_in_a_file(denoisers))

        follow = precision.follow
        if follow is None and precision.rule is not None:
            follow = partial(InSteps, precision.rule)
        yield switch, Listener() if follow is None else follow(switch)


def _require_plain(pipe: Pipeline, form: str) -> None:
    """Refuse denoisers of which no copy can be put into a format."""
    dtype = FORMATS[form].computes_in
    if dtype is not None:
        try:
            require_dtype(str(dtype).removeprefix("torch."), str(pipe.device))
        except ValueError as error:
            raise Unsupported(str(error)) from None

    components = settings_of(pipe)["components"]
    denoisers = denoisers_of(pipe)
    for name, network in networks_of(pipe).items():
        if not any(network is own for own in denoisers):
            continue
        settings = components[name]
        there = [f"has {word}: {settings[word]}" for word in REFUSED if settings.get(word)]
        if _is_compiled(network):
            there.append("is compiled")
        if there:
            raise Unsupported(f"precision:{form} takes a plain {name}, but this one {there[0]}")
        if dtype is not None and settings["dtypes"] == [str(dtype).removeprefix("torch.")]:
            raise Unsupported(f"the {name} is in {settings['dtypes'][0]} already")


def _is_compiled(network: nn.Module) -> bool:
    """Whether torch compiled a network or a part of it; our own wrappers are in the same place."""
    return any(
        hasattr(part, "_orig_mod") or below_ours(part, MODULE_CALL) is not None
        for part in network.modules()
    )


def _dtype(network: nn.Module) -> torch.dtype:
    """In which a network computes."""
    return next(weight.dtype for weight in network.parameters() if weight.is_floating_point())


def _answering(
    switch: Switch, copied: nn.Module, form: str, original: Callable[..., Any]
) -> Callable[..., Any]:
    """What calling a denoiser runs: itself, or its copy."""
    dtype = FORMATS[form].computes_in

    def answer(*args: Any, **kwargs: Any) -> Any:
        if not switch.is_on:
            return original(*args, **kwargs)
        if dtype is None:
            return copied(*args, **kwargs)
        given, named = _in_dtype(args, dtype), _named_in_dtype(kwargs, dtype)
        own = _first_dtype((args, kwargs))
        return map_tensors(copied(*given, **named), lambda made: _cast(made, own))

    return answer


def _in_dtype(args: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    return tuple(map_tensors(value, lambda tensor: _batched_cast(tensor, dtype)) for value in args)


def _named_in_dtype(kwargs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    # Times and places keep their precision, as in a pipeline that was loaded in this dtype.
    kept = {*TIMES, *UNBATCHED}
    return {
        name: value if name in kept else _in_dtype((value,), dtype)[0]
        for name, value in kwargs.items()
    }


def _batched_cast(tensor: Shaped[Tensor, "*shape"], dtype: torch.dtype) -> Shaped[Tensor, "*shape"]:
    """One number per row is a time, or a scale."""
    return tensor if tensor.ndim < 2 else _cast(tensor, dtype)


def _cast(tensor: Shaped[Tensor, "*shape"], dtype: torch.dtype) -> Shaped[Tensor, "*shape"]:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _first_dtype(arguments: Any) -> torch.dtype:
    """That of the latents."""
    found: list[torch.dtype] = []
    map_tensors(
        arguments,
        lambda tensor: found.append(tensor.dtype) if tensor.is_floating_point() else None,
    )
    return found[0]


@contextmanager
def _weights_in_a_file(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Take the memory of weights that no call needs; afterwards each is bitwise as it was."""
    weights = list({id(own): own for network in networks for own in network.parameters()}.values())
    forms = [(own.shape, own.stride(), own.dtype, own.device) for own in weights]
    kept = KeptWeights(weights)
    for own in weights:
        own.data = own.data.new_empty(0)
    try:
        yield
    finally:
        for own, (shape, stride, dtype, device) in zip(weights, forms, strict=True):
            own.data = torch.empty_strided(shape, stride, dtype=dtype, device=device)
        kept.restore()
