from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from sdbench.analysis.conclusions import COMPARED, LATER_STEPS, Evidence, conclusions
from sdbench.report.tables import conclusions_markdown

PROMPTS = 40
NAMES = sorted({name for one in COMPARED for name in (one.first, *one.others)})


@pytest.fixture
def evidence(study):
    """A model whose variants have the given LPIPS, and whose last steps have that of `later`."""

    def build(later=0.1, **lpips):
        rng = np.random.default_rng(0)
        noise = rng.uniform(0, 0.01, size=PROMPTS)
        images = [
            {
                "unit": f"{name}/{prompt}/0",
                "variant": name,
                "prompt_id": f"{prompt:03d}",
                "prompt": f"caption {prompt}",
                "seed": 0,
                "lpips": lpips.get(name, 0.2) + noise[prompt],
                "alignment": 0.5 + (0.3 if "scale" in name else 0),
            }
            for name in NAMES
            for prompt in range(PROMPTS)
        ]
        made = study({name: [1, 1] for name in ("cfg", *NAMES)}, images=images)
        made = replace(made, study={"model": "m", "num_steps": 2, "guidance_scale": 5.0})
        single = pd.DataFrame(
            [
                {
                    "kind": "single",
                    "start": start,
                    "prompt_id": f"{prompt:03d}",
                    "seed": 0,
                    "lpips": (later if start > 2 else 0.2) + noise[prompt],
                }
                for start in range(5)
                for prompt in range(PROMPTS)
            ]
        )
        return Evidence(made, made, single)

    return build


def test_verdicts_follow_the_images(evidence):
    first = evidence(**{"last:50%": 0.1, "lora": 0.3, "steps:14": 0.1})
    table = conclusions({"first": first, "second": evidence(later=0.3)})
    assert list(table["model"]) == ["first", "second"] * 5
    verdicts = table.pivot_table("verdict", "conclusion", "model", aggfunc="first", sort=False)
    assert list(verdicts["first"]) == [
        "holds", "holds", "does not hold", "holds", "holds",
    ]  # fmt: skip
    assert list(verdicts["second"]) == [
        "does not hold", "undecided", "undecided", "undecided", "holds",
    ]  # fmt: skip


def test_one_nearer_rival_refutes_the_lead(evidence):
    model = evidence(**{"steps:14": 0.1, "tgate:8": 0.05, "compressed:8": 0.1})
    row = conclusions({"m": model}).set_index("first").loc["steps:14"]
    assert (row["verdict"], row["against"]) == ("does not hold", "tgate:8")
    assert row["share"] == 0
    assert row["difference"] == pytest.approx(0.05)


def test_the_step_in_the_middle_is_in_neither_half(evidence):
    model = evidence()
    single = model.single.copy()
    single.loc[single["start"] == 2, "lpips"] = 9.0
    row = conclusions({"m": model._replace(single=single)}).set_index("conclusion").loc[LATER_STEPS]
    assert row["difference"] == pytest.approx(-0.1)


def test_the_table_has_a_column_per_model(evidence):
    text = conclusions_markdown(conclusions({"first": evidence(), "second": evidence()}))
    head, rule, *lines = text.splitlines()
    assert head == "| conclusion | first | second |"
    assert len(lines) == 5
    assert all(line.count(" | ") == rule.count(" | ") for line in lines)
    assert "**holds**: `later steps` against `earlier steps` is nearer" in lines[0]
