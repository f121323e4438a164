"""Puts a trained student where it stays: `python -m tools.results.ship FOLDER [OTHER]`.

It stays where mini-sd's own is, where that of another model is, or in another folder.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from sdbench.models.registry import MODELS


def ship(student: Path, adapter: Path | str = "mini-sd") -> None:
    """Replace the student that is in a folder; its page stays.

    Args:
        student: the folder of the new one.
        adapter: of the old one, or the name of the model that it comes with.

    Raises:
        ValueError: the folder holds no student.
    """
    if not any(student.glob("*.safetensors")):
        raise ValueError(f"{student} holds no student")
    spec = MODELS.get(str(adapter))
    folder = Path(spec.adapter if spec is not None and spec.adapter is not None else adapter)
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    shutil.copytree(student, folder, dirs_exist_ok=True)


if __name__ == "__main__":
    ship(Path(sys.argv[1]), *sys.argv[2:])
