from collections.abc import Callable
from functools import cache
from typing import Any

import pandas as pd
import pytest

from sdbench.records import schema

FILLERS = {"string": "text", "Int64": 1, "float64": 0.5, "boolean": True}

Frames = Callable[..., pd.DataFrame]


def _rows(table: str, *named: dict[str, Any]) -> pd.DataFrame:
    required = {
        name: column.choices[0] if column.choices else FILLERS[column.dtype]
        for name, column in schema.TABLES[table].items()
        if not column.nullable
    }
    return schema.frame(table, [required | row for row in named])


@cache
def _parts(unit: str, num_steps: int = 2, **run: Any) -> dict[str, pd.DataFrame]:
    return {
        "runs": _rows("runs", {"unit": unit, **run}),
        "steps": _rows("steps", *({"unit": unit, "step": step} for step in range(num_steps))),
        "images": _rows("images", {"unit": unit}),
    }


@pytest.fixture
def rows() -> Frames:
    """`rows("runs", {"unit": "a"})`: a valid frame, what the test does not name filled in."""
    return _rows


@pytest.fixture
def parts() -> Callable[..., dict[str, pd.DataFrame]]:
    """`parts("a", num_steps=2, status="ok")`: the three frames of one unit.

    Further words are the run's columns.
    """
    return _parts
