from pathlib import Path

import pandas as pd
import pytest

from benchmarks.few_steps import COMPARED, Way, table, ways
from sdbench.models.students import CARD_FILE
from sdbench.records.files import write_json


def test_every_way_spends_as_many_evaluations(tmp_path):
    compared = list(ways(COMPARED, [tmp_path]))
    assert {way.evaluations for way in compared} == {COMPARED}
    assert [way.variant for way in compared] == [
        f"lora:{tmp_path}", "lora", "cfg", "cfg", "unguided", "cached:2", "cached:3",
    ]  # fmt: skip
    odd = {way.variant: way.evaluations for way in ways(25, [])}
    assert odd == {"lora": 25, "cfg": 24}


def test_a_student_is_named_by_its_card(tmp_path):
    write_json(tmp_path / CARD_FILE, {"num_steps": 8})
    assert next(ways(12, [tmp_path])).name == "ddim, lora of 8 steps, 12 steps"
    assert Way("lora", 8, 8).name == "ddim, lora, 8 steps"
    assert Way("cfg", 4, 8, "dpmpp-2m").name == "dpmpp-2m, cfg, 4 steps"
    assert Way(f"lora:{Path('a') / 'b'}", 8, 8).folder == "ddim, lora:a_b, 8 steps"


def test_the_table_compares_with_the_first_way_of_a_budget():
    captions = [f"caption {index}" for index in range(64)]
    own = pd.DataFrame({"budget": 25, "evaluations": 25, "way": "own", "caption": captions})
    own["lpips_50"] = [0.01] * 32 + [0.02] * 32
    own["lpips_200"] = 0.5
    other = own.assign(way="other", evaluations=24, lpips_50=[0.02] * 48 + [0.01] * 16)
    lines = table(pd.concat([own.assign(budget=4), own, other])).iloc[1:].set_index("way")
    assert lines.loc["own", "LPIPS to 50"].startswith("0.015 [")
    assert lines.loc["own", "changed % to 50"].startswith("50 [")
    assert lines.loc["other", "median to 50"].startswith("0.020 [")
    assert lines.loc["other", "LPIPS to 200"].startswith("0.500 [")
    # Nearer in the first 32, farther in the last 16, alike between.
    assert lines.loc["other", "student nearer %"].startswith("67 [")
    mean = float(lines.loc["other", "student less this"].split()[0])
    assert mean == pytest.approx((32 * -0.01 + 16 * 0.01) / 64, abs=6e-4)
