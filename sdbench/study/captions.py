"""What is said before a study runs whose prompts its model's reader cannot judge."""

from __future__ import annotations

import warnings

from sdbench.models.grammars import ALIGNMENT, doubts
from sdbench.study.study import Study


def warn_of_doubts(study: Study) -> None:
    """Warn of what an embedded model cannot make of the prompts, where alignment is asked for."""
    if ALIGNMENT in (study.metrics or ()):
        for doubt in doubts(study.model, study.prompts):
            warnings.warn(doubt, RuntimeWarning, stacklevel=3)
