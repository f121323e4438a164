"""Puts a trained student where it stays: `python -m tools.results.ship FOLDER [OTHER]`.

It stays where mini-sd's own is, or in the other folder.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from sdbench.models.registry import MODELS


def ship(student: Path, adapter: Path | None = None) -> None:
    """Replace the student that is in a folder; its page stays.

    Args:
        student: the folder of the new one.
        adapter: of the old one; None for that of the one that comes with mini-sd.

    Raises:
        ValueError: the folder holds no student.
    """
    if not any(student.glob("*.safetensors")):
        raise ValueError(f"{student} holds no student")
    if adapter is None:
        own = MODELS["mini-sd"].adapter
        assert own is not None
        adapter = Path(own)
    for weights in adapter.glob("*.safetensors"):
        weights.unlink()
    shutil.copytree(student, adapter, dirs_exist_ok=True)


if __name__ == "__main__":
    ship(*map(Path, sys.argv[1:]))
