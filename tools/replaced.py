"""Puts variants that were computed again into a stored study.

`python tools/replaced.py OLD NEW OUT NAME...` reads two studies and writes a third one, without
OLD's variants of the methods of the names, and with NEW's of these names; the baseline stays OLD's.
A name that NEW does not have only leaves. Images were compared with the baseline of their own run,
so both runs must have the same settings and the same pairs. How many of the baselines' images are
the same bytes is printed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from sdbench.records.names import BASELINE, split_name
from sdbench.records.schema import STUDY
from sdbench.records.store import Results, StudyFolder, read

SETTINGS = (
    "model", "prompts", "seeds", "num_steps", "guidance_scale", "negative_prompt", "arguments",
)  # fmt: skip


def replaced(old: Results, new: Results, out: Path, names: Sequence[str]) -> str:
    """Write the study with the variants put in; returns what was done.

    Raises:
        ValueError: the studies differ in what they generate.
    """
    differing = [name for name in SETTINGS if old.study[name] != new.study[name]]
    if differing:
        raise ValueError(f"{new.folder} and {old.folder} differ in {', '.join(differing)}")

    kinds = {split_name(name)[0] for name in names}
    names = [name for name in names if name in new.study["variants"]]
    kept = [name for name in old.study["variants"] if split_name(name)[0] not in kinds]
    tables = {
        table: pd.concat(
            [
                frame[frame["variant"].isin(chosen)]
                for results, chosen in ((old, kept), (new, names))
                for frame in (getattr(results, table),)
            ],
            ignore_index=True,
        )
        for table in STUDY
    }
    same = _baseline(old) == _baseline(new)

    study = old.study | {"variants": [*kept, *names]}
    environments = [*old.environment.values(), *new.environment.values()]
    with StudyFolder.create(out, study, environment=environments[0], mode="new") as folder:
        for environment in environments:
            folder.add_environment(environment)
        for table, frame in tables.items():
            folder.rewrite(table, frame)
    gone = [name for name in old.study["variants"] if name not in kept]
    return (
        f"{', '.join(gone)} left, {', '.join(names)} came in; "
        f"{int(same.sum())} of {len(same)} images of {BASELINE} are the same in both runs"
    )


def _baseline(results: Results) -> pd.Series[str]:
    """Hashes of the baseline's images by pair."""
    images = results.images[results.images["variant"] == BASELINE]
    pairs = images.drop_duplicates(["prompt_id", "seed"]).set_index(["prompt_id", "seed"])
    return pairs["sha256"].sort_index()


if __name__ == "__main__":
    stored, again, target = map(Path, sys.argv[1:4])
    sys.stdout.write(f"{replaced(read(stored), read(again), target, sys.argv[4:])}\n")
