"""One trace for every variant of a study, outside of its timed calls."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from sdbench.instruments.ranges import Ranges
from sdbench.models.pipeline import Pipeline
from sdbench.study.call import Call, ready
from sdbench.study.check import loaded, prepare
from sdbench.study.study import Study


def write_traces(study: Study, folder: Path, pipe: Pipeline | None = None) -> Mapping[str, Path]:
    """Run the first batch of every variant once under torch's profiler, after a warm-up.

    The files open in Perfetto and in Chrome (`chrome://tracing`). They name the text, every step as
    guided or unguided, its denoiser calls and scheduler, and the decoding.

    Args:
        study: whose variants run; the more steps, the larger the files.
        folder: gets `VARIANT.json.gz`.
        pipe: a pipeline to use instead of `study.model`.

    Returns:
        The file of every variant that the pipeline supports.

    Raises:
        ValueError: anything that cannot run, before the first call.
        OSError: the folder cannot be written.
    """
    pipe = loaded(study) if pipe is None else pipe
    work = prepare(pipe, replace(study, metrics=()))
    folder.mkdir(parents=True, exist_ok=True)
    pairs = tuple(study.pairs[: study.batch])

    files: dict[str, Path] = {}
    for variant in study.variants:
        if variant.name in work.unsupported:
            continue
        call = Call(study.generation, variant, pairs)
        with ready(pipe, call, output=work.output) as warm_up:
            warm_up()
        file = folder / f"{_file_name(variant.name, len(files))}.json.gz"
        ranges = Ranges()
        with (
            ready(pipe, call, output=work.output, listeners=[ranges]) as run,
            ranges.written(file, pipe.device),
        ):
            run()
        files[variant.name] = file
    return files


def _file_name(text: str, number: int) -> str:
    """A text as the name of a file; the number tells apart what looks alike."""
    plain = re.sub(r"[^\w.+%@-]", "_", text)
    return plain if plain == text else f"{number:02d}-{plain[:80]}"
