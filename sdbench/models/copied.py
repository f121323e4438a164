"""Copies of a pipeline, which share its networks: each knows whose copy it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdbench.models.pipeline import Pipeline

OWNER = "_sdbench_owner"
"""Attribute of a pipeline's copy: the pipeline."""


def owner_of(pipe: Pipeline) -> Pipeline:
    """The pipeline, or the one that it is a copy of."""
    owner: Pipeline = getattr(pipe, "__dict__", {}).get(OWNER, pipe)
    return owner
