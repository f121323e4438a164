"""Guided diffusion inference, measured step by step. Importing this loads no torch yet."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdbench import distill as distill
    from sdbench.analysis.perception.perceive import perceive as perceive
    from sdbench.analysis.tables import summarise as summarise
    from sdbench.experiments.profiling import profile as profile
    from sdbench.experiments.sensitivity import sensitivity as sensitivity
    from sdbench.instruments.quality import register_metric as register_metric
    from sdbench.instruments.quality import score as score
    from sdbench.models.registry import load as load
    from sdbench.records.store import Results as Results
    from sdbench.records.store import read as read
    from sdbench.study.generation import Generation as Generation
    from sdbench.study.runner import run as run
    from sdbench.study.shards import gather as gather
    from sdbench.study.study import Study as Study
    from sdbench.variants.grammar import register_variant as register_variant
    from sdbench.variants.guidance import guided_by as guided_by
    from sdbench.variants.schedule import GuidanceSchedule as GuidanceSchedule

_HOME = {
    "Generation": "sdbench.study.generation",
    "GuidanceSchedule": "sdbench.variants.schedule",
    "Results": "sdbench.records.store",
    "Study": "sdbench.study.study",
    "gather": "sdbench.study.shards",
    "guided_by": "sdbench.variants.guidance",
    "load": "sdbench.models.registry",
    "perceive": "sdbench.analysis.perception.perceive",
    "profile": "sdbench.experiments.profiling",
    "read": "sdbench.records.store",
    "register_metric": "sdbench.instruments.quality",
    "register_variant": "sdbench.variants.grammar",
    "run": "sdbench.study.runner",
    "score": "sdbench.instruments.quality",
    "sensitivity": "sdbench.experiments.sensitivity",
    "summarise": "sdbench.analysis.tables",
}
__all__ = sorted([*_HOME, "distill"])


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    if name == "distill":  # a package that is called
        return import_module("sdbench.distill")
    if name not in _HOME:
        raise AttributeError(f"module 'sdbench' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """The public names."""
    return __all__
