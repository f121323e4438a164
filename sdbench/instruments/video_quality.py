"""Quality of videos: metrics of images, over the frames of one video, and its flicker.

A metric is asked frame by frame, so a video has its mean and the value of its worst frame. What
goes from frame to frame no image shows: that is the flicker. What a metric is, is in `metric.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from jaxtyping import Float
from torch import Tensor

from sdbench.instruments.metric import Pixels, Scores
from sdbench.instruments.quality import find_metric, score
from sdbench.records.columns import FLICKER, WORST

Videos = Float[Tensor, "n frames 3 height width"]


def judged(
    names: Iterable[str], video: Pixels, *, prompt: str, reference: Pixels | None = None
) -> dict[str, float]:
    """What metrics say of a video, by column.

    Args:
        names: of metrics, as `score` takes them.
        video: its frames.
        prompt: that they were made from.
        reference: the frames to compare with; without them, metrics that compare have no value.

    Returns:
        By the metric's name its mean over the frames, and with `_worst` behind it that of the worst
        frame. Where LPIPS is among the metrics, the video's flicker, too.

    Raises:
        ValueError: as `score` says.
    """
    columns: dict[str, float] = {}
    for name in names:
        metric, _ = find_metric(name)
        against = prompt if metric.needs == "prompt" else reference
        if against is not None:
            mean, worst = over_frames(name, score_frames(name, video, against))
            columns |= {metric.name: mean, f"{metric.name}{WORST}": worst}
        if metric.name == "lpips":
            columns[FLICKER] = flicker(video)
    return columns


def score_frames(name: str, video: Pixels, against: Pixels | str) -> Scores:
    """Every frame by one metric: against the frame of a reference video, or the one prompt."""
    return score(name, video, [against] * len(video) if isinstance(against, str) else against)


def over_frames(name: str, values: Scores) -> tuple[float, float]:
    """The mean and the worst of the frames that have a value; NaN where none has one.

    PSNR has none of a frame that is identical, as the first one is where a pipeline is given it.
    """
    known = values[~values.isnan()].double()
    if not len(known):
        return math.nan, math.nan
    worst = known.min() if find_metric(name)[0].higher_is_better else known.max()
    return float(known.mean()), float(worst)


def flicker(video: Pixels) -> float:
    """Mean LPIPS between neighbouring frames; NaN of a single frame."""
    if len(video) < 2:
        return math.nan
    return float(score("lpips", video[1:], video[:-1]).double().mean())


def score_videos(name: str, videos: Videos, against: Videos | list[str]) -> list[float]:
    """The mean over the frames of each of some videos."""
    pairs = zip(videos, against, strict=True)
    return [over_frames(name, score_frames(name, *pair))[0] for pair in pairs]
