"""A blind test as one page that opens offline: it shows trials and writes answers.

Which trials there are is decided in `sdbench.analysis.perception.trials`. The page names no
variant.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from sdbench.analysis.perception.settings import Settings
from sdbench.analysis.perception.trials import BlindTest, blind_test
from sdbench.records.answers import CODE, FORMAT
from sdbench.records.store import Results
from sdbench.report.trial_images import fitting_blocks

TEMPLATE = Path(__file__).with_name("trial_page.html")
WORDS = {
    "reference": {
        "title": "Which image is the reference?",
        "task": "You see a reference and two images, A and B. One of them is the reference "
        "again. Choose it. If you see no difference, guess.",
        "choice": "is the reference",
    },
    "abx": {
        "title": "Which image is X?",
        "task": "You see an image X and two images, A and B. One of them is X again. Choose "
        "it. If you see no difference, guess.",
        "choice": "is X",
    },
    "preference": {
        "title": "Which image fits the caption better?",
        "task": "You see a caption and two images, A and B. Choose the one that fits the caption "
        "better. If both fit alike, choose the one that you like better.",
        "choice": "fits better",
    },
}


def trial_page(results: Results, settings: Settings) -> str:
    """The page as HTML, below 8 MB.

    Args:
        results: of a study whose images are stored.
        settings: of the test.

    Raises:
        ValueError: the study has no images, is of videos, or has not what the settings name.
    """
    test = blind_test(results, settings)
    trials = pd.concat([test.trials, test.practice], ignore_index=True)
    blocks, form, size = fitting_blocks(results, trials, settings.seed)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        words=WORDS[settings.mode],
        count=len(test.trials),
        practice=len(test.practice),
        limit_s=settings.limit_s,
        form=form.words,
        code=CODE.pattern,
        data=_data(test, trials, blocks) | {"width": size[0], "height": size[1]},
    )


def _data(test: BlindTest, trials: pd.DataFrame, blocks: list[str]) -> dict[str, Any]:
    """What the page's program knows."""
    settings = test.settings
    data = {
        "format": FORMAT,
        "page": test.hash,
        "settings": settings.token(),
        "seed": settings.seed,
        "mode": settings.mode,
        "limit": settings.limit_s,
        "scale": settings.scale,
        "count": len(test.trials),
        "blocks": blocks,
        "captions": None,
    }
    if settings.mode == "preference":
        data["captions"] = list(trials["prompt"])
    return data
