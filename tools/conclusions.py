"""Writes `results/conclusions.md`, what holds on both models: `python tools/conclusions.py`.

A test fails where it is stale.
"""

from __future__ import annotations

from pathlib import Path

import sdbench
from sdbench.analysis.conclusions import Evidence, conclusions
from sdbench.records.files import read_table
from sdbench.report.tables import conclusions_markdown

RESULTS = Path(__file__).parents[1] / "results"
WRITTEN = RESULTS / "conclusions.md"
FOLDERS = {
    "mini-sd": ("methods/quality", "selective/quality", "sensitivity-single"),
    "emoji-sd": ("methods", "methods", "sensitivity-single"),
}
"""Below each model's results: what `Evidence` holds, in its order."""
HEAD = """# What holds on both models

mini-sd draws scenes that this project made up; [emoji-sd](../docs/explanation/embedded-models.md)
draws emoji that people drew. A conclusion that holds on both hangs less on one toy. Written by
`python tools/conclusions.py` from the stored results.

A conclusion *holds* where its first side is nearer (in LPIPS to the fully guided image) or better
(in alignment) than each rival, in the mean and in most images or in one of the two while the other
shows nothing. It *does not hold* where a rival is so. Brackets are 95 % intervals over captions.
The share is of the captions whose two images differ; of several rivals the one that comes nearest
to refuting the conclusion is shown.

"""


def evidence(model: str) -> Evidence:
    """What is stored of a model."""
    methods, scales, single = (RESULTS / model / folder for folder in FOLDERS[model])
    return Evidence(sdbench.read(methods), sdbench.read(scales), read_table(single, "sensitivity"))


def written() -> str:
    """What `conclusions.md` should hold."""
    table = conclusions({model: evidence(model) for model in FOLDERS})
    return HEAD + conclusions_markdown(table) + "\n"


if __name__ == "__main__":
    WRITTEN.write_text(written(), "utf-8")
