"""What dropping guidance saves on a model, a size and a batch.

The measured saving stands next to the ideal and the predicted one. Each point is a study in its own
folder, so that all of it stands in the usual tables. Why the saving falls short is worked out in
`analysis/cost.py`, what a call needs without running it in `instruments/footprint.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from sdbench.analysis.cost import cost_point, reason, saving_table, step_cost
from sdbench.analysis.tables import summarise
from sdbench.experiments.counted_work import STEPS
from sdbench.instruments.footprint import footprint, meta_denoiser
from sdbench.instruments.peaks import read_bandwidth
from sdbench.models.architectures import ARCHITECTURES, VAE_FACTOR
from sdbench.models.pipeline import denoiser_of
from sdbench.models.registry import DTYPES
from sdbench.models.stored_weights import stored_bytes
from sdbench.records.names import BASELINE
from sdbench.records.store import Results
from sdbench.study.check import loaded
from sdbench.study.runner import run
from sdbench.study.study import Study
from sdbench.variants.grammar import parse

COUNTED = ("flop", "weights_bytes", "activation_peak_bytes")
PROMPT = "a large striped red star left of a small blue ring on a white background"


def cost_study(
    model: str,
    *,
    height: int,
    width: int,
    num_steps: int,
    guidance_scale: float,
    repeats: int,
    fractions: Sequence[str] = ("20%", "50%", "100%"),
    **fields: Any,
) -> Study:
    """A study of nothing but time and memory: full guidance, and none at the end of the loop.

    Args:
        model: as `Study` takes it.
        height: in pixels.
        width: in pixels.
        num_steps: of the loop.
        guidance_scale: w, above 1.
        repeats: at least 6 for intervals.
        fractions: of the steps, unguided at the end; R needs one below 100 %.
        **fields: further fields of `Study`; calls stop at latents unless `output` says otherwise.
    """
    return Study(
        model=model,
        variants=tuple(map(parse, (BASELINE, *(f"last:{share}" for share in fractions)))),
        prompts=(PROMPT,),
        seeds=(0,),
        num_steps=num_steps,
        guidance_scale=guidance_scale,
        repeats=repeats,
        height=height,
        width=width,
        name="cost",
        **{"metrics": (), "output": "latent", **fields},
    )


def sweep(
    study: Study,
    *,
    batches: Sequence[int],
    sides: Sequence[tuple[int, int]],
    out: Path | None = None,
) -> Iterator[pd.DataFrame]:
    """Measure a study at every batch and size, one after the other, on one pipeline.

    Args:
        study: as `cost_study` makes it.
        batches: images per call.
        sides: (height, width) in pixels.
        out: gets a study folder per point; temporary ones when not given.

    Yields:
        Per point the rows of `saving_table`, with the columns of `cost_point`, `compile_s` and
        `reason`.

    Raises:
        ValueError: anything that cannot run, before the first call of its point; a point in which a
            call failed.
    """
    # The least that a step can take is one reading of the weights.
    pipe = loaded(study)
    weights_bytes = stored_bytes([denoiser_of(pipe)])
    read_s = weights_bytes / read_bandwidth(pipe.device)

    for (height, width), batch in product(sides, batches):
        parent = out or Path(tempfile.mkdtemp(prefix="sdbench-"))
        folder = parent / f"{height}x{width}-batch{batch}"
        point = replace(study, seeds=tuple(range(batch)), batch=batch, height=height, width=width)
        yield _savings(run(point, folder, pipe=pipe), read_s)


def _savings(results: Results, read_s: float) -> pd.DataFrame:
    """The rows of a point.

    Raises:
        ValueError: a call failed.
    """
    failed = results.runs[results.runs["status"] == "failed"]
    if len(failed):
        raise ValueError(f"{results.folder.name}: {failed['message'].iloc[0]}")

    cost = step_cost(results)
    return saving_table(summarise(results)).assign(
        **cost_point(results),
        compile_s=results.runs["compile_s"].sum(),
        reason=reason(cost, read_s=read_s),
    )


def footprint_table(
    models: Sequence[str], *, sides: Sequence[tuple[int, int]], batches: Sequence[int], dtype: str
) -> pd.DataFrame:
    """What a guided and an unguided step of full-size denoisers take.

    It is counted: nothing runs and nothing is loaded.

    Args:
        models: names in `ARCHITECTURES`.
        sides: (height, width) in pixels.
        batches: images per call.
        dtype: of weights and activations, "float32", "float16" or "bfloat16".

    Returns:
        Per model, size, batch and step ("guided" or "unguided"): `model`, `height`, `width`,
        `batch`, `step`, `rows`, `flop` (2 per multiply-add), `weights_bytes`,
        `activation_peak_bytes`.
    """
    rows = []
    for model in models:
        denoiser = meta_denoiser(ARCHITECTURES[model])

        for (height, width), batch, (step, rows_per_image) in product(sides, batches, STEPS):
            size: dict[str, Any] = {"height": height, "width": width}
            evaluated = rows_per_image * batch
            counted = footprint(
                denoiser, rows=evaluated, dtype=DTYPES[dtype], vae_factor=VAE_FACTOR, **size
            )

            about = {"model": model, **size, "batch": batch, "step": step, "rows": evaluated}
            rows.append(about | {name: getattr(counted, name) for name in COUNTED})
    return pd.DataFrame(rows)
