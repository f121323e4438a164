from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdbench.records import schema
from sdbench.records.store import Results

FILLERS = {"string": "text", "Int64": 1, "float64": 1.0, "boolean": True}
GUIDED_S, UNGUIDED_S, AROUND_S = 0.4, 0.25, 1.0

Study = Callable[..., Results]


def filled(table: str, row: dict[str, Any]) -> dict[str, Any]:
    required = {
        name: FILLERS[column.dtype]
        for name, column in schema.TABLES[table].items()
        if not column.nullable
    }
    return required | row


@pytest.fixture
def study() -> Study:
    """A study by masks: `study({"cfg": [1, 1], "last:1": [1, 0]}, repeats=6)`.

    A guided step takes 0.4 s and an unguided one 0.25 s, what is around the loop 1 s; all times of
    a repeat share a random factor, and every call has its own of 1 %. `changed` edits the row of a
    run, `images` adds rows.
    """

    def build(
        masks: dict[str, list[int]],
        *,
        repeats: int = 6,
        batches: int = 1,
        changed: Callable[[dict[str, Any]], dict[str, Any]] = lambda row: row,
        images: list[dict[str, Any]] = [],  # noqa: B006
    ) -> Results:
        generator = np.random.default_rng(0)
        runs, steps = [], []
        for repeat in range(repeats):
            machine = generator.uniform(0.5, 2)
            for batch in range(batches):
                for variant, mask in masks.items():
                    own = machine * generator.normal(1, 0.01)
                    times = [own * (GUIDED_S if guided else UNGUIDED_S) for guided in mask]
                    place = {
                        "unit": f"{variant}/{repeat}/{batch}",
                        "variant": variant,
                        "repeat": repeat,
                        "phase": "measured",
                    }
                    measured = {
                        "latency_s": sum(times) + machine * AROUND_S,
                        "denoise_s": sum(times),
                        "nfe": len(mask) + sum(mask),
                    }
                    runs.append(changed(filled("runs", {"status": "ok"} | place | measured)))
                    steps += [
                        filled(
                            "steps",
                            {"step": step, "guided": bool(guided), "latency_s": time} | place,
                        )
                        for step, (guided, time) in enumerate(zip(mask, times, strict=True))
                    ]
        return Results(
            Path("made-up"),
            schema.frame("runs", runs),
            schema.frame("steps", steps),
            schema.frame("images", [filled("images", row) for row in images]),
            environment={},
            study={},
        )

    return build
