"""What other projects' accelerators share: attached for a while, then every module is as it was.

They save work inside an evaluation where guidance schedules save evaluations, so most combine with
one. Nothing is implemented again here. What a package needs to live next to the seam stands with it
in `methods/`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

from sdbench.models.causes import missing_module
from sdbench.models.pipeline import Pipeline, denoisers_of
from sdbench.variants.arguments import matched
from sdbench.variants.holds import held
from sdbench.variants.hooks import MODULE_CALL
from sdbench.variants.schedule import GuidanceSchedule
from sdbench.variants.trace import MissingPackage, Unsupported
from sdbench.variants.variant import Accelerator, Variant

ONE_DENOISER = "{} changes the denoiser itself, of which only a copy has another number format"
"""Why an accelerator and a precision exclude each other."""
Attach = Callable[[Any, float], AbstractContextManager[None]]
"""Attaches a method to a pipeline for the length of a block, with the variant's number."""


def accelerator(
    kind: str,
    pattern: str,
    grammar: str,
    attach: Attach,
    *,
    guides: bool = False,
    constant_rows: bool = False,
) -> Callable[[str, str | None], Variant]:
    """The `build` of a method that takes one number.

    Args:
        kind: name of the method.
        pattern: of the number.
        grammar: how to write it.
        attach: of the method.
        guides: as `Accelerator` takes it.
        constant_rows: as `Accelerator` takes it.
    """

    def build(name: str, argument: str | None) -> Variant:
        (number,) = matched(argument, pattern, grammar)
        method = Accelerator(
            kind,
            lambda pipe: attach(pipe, float(number)),
            guides=guides,
            constant_rows=constant_rows,
        )
        return Variant(name, GuidanceSchedule.full, accelerator=method)

    return build


def add_accelerator(first: Variant, accelerated: Variant) -> Variant:
    """A variant with an accelerator in all of its steps.

    Raises:
        ValueError: the two exclude each other.
    """
    method = accelerated.accelerator
    assert method is not None
    if first.precision is not None:
        raise ValueError(ONE_DENOISER.format(method.name))
    if first.accelerator is not None:
        raise ValueError(
            "two accelerators exclude each other: both replace what the denoiser computes"
        )
    if method.guides and not first.is_baseline:
        raise ValueError(f"{method.name} decides itself which steps are guided")
    if method.constant_rows and (first.policy is not None or not first.guides_all):
        raise ValueError(
            f"{method.name} keeps what a call of as many rows computed, "
            "so every step must be guided"
        )
    return replace(first, accelerator=method)


@contextmanager
def accelerated(pipe: Pipeline, method: Accelerator) -> Iterator[None]:
    """Attach an accelerator to a pipeline; afterwards every module has its old attributes.

    Raises:
        MissingPackage: its package is not installed.
        Unsupported: it does not work on this pipeline.
        ValueError: a denoiser that another pipeline uses for now.
    """
    with held(pipe, "accelerator"), _attributes_kept(pipe), method.attach(pipe):
        yield


@contextmanager
def _attributes_kept(pipe: Pipeline) -> Iterator[None]:
    """Put back what a package leaves on the modules of a pipeline's denoisers."""
    modules = [module for denoiser in denoisers_of(pipe) for module in denoiser.modules()]
    before = [_attributes(module) for module in modules]
    try:
        yield
    finally:
        for module, attributes in zip(modules, before, strict=True):
            for attribute in set(_attributes(module)) - set(attributes):
                delattr(module, attribute)
            vars(module).update(attributes)


def _attributes(module: Any) -> dict[str, Any]:
    """Those of a module itself, without the wrappers of its call, which take care of themselves."""
    return {name: value for name, value in vars(module).items() if name != MODULE_CALL}


def import_package(name: str) -> Any:
    """A method's package.

    Raises:
        MissingPackage: it is not installed, or something that it needs is not.
        Unsupported: it does not import with the versions that are.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if error.name == name and isinstance(error, ModuleNotFoundError):
            raise MissingPackage(
                f"{name} is not installed: pip install 'sdbench[accelerators]'"
            ) from None
        if missing := missing_module(error):
            raise MissingPackage(f"{name} does not import: {missing}") from None
        raise Unsupported(f"{name} does not import with the installed packages: {error}") from None


def unet_of(pipe: Pipeline, name: str) -> Any:
    """The UNet of a pipeline, for a method that works on nothing else.

    Raises:
        Unsupported: it has none.
    """
    unet = getattr(pipe, "unet", None)
    if unet is None or not hasattr(unet, "mid_block"):
        raise Unsupported(f"{name} works on UNets, but {type(pipe).__name__} has none")
    return unet
