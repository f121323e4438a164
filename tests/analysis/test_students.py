from dataclasses import replace

import pandas as pd
import pytest

from sdbench.analysis.students import rank_curve, scale_curve

MASKS = {"cfg": [1, 1], "lora:small": [0, 0], "lora:large": [0, 0]}


@pytest.fixture
def results(study):
    """Eight pairs; the large student is nearer to the teacher than the small one."""
    distances = {"lora:small": 0.2, "lora:large": 0.1}
    images = [
        {
            "unit": f"{variant}/0/0",
            "variant": variant,
            "prompt_id": f"{pair}",
            "seed": 0,
            "alignment": 0.9,
        }
        | (
            {"lpips": distances[variant] + 0.001 * pair}
            if variant in distances
            else {"lpips": None}
        )
        for variant in MASKS
        for pair in range(8)
    ]
    return replace(study(MASKS, images=images), study={"guidance_scale": 3})


def test_a_rank_has_its_quality_size_and_memory(results):
    ledgers = {rank: pd.DataFrame({"at_peak_bytes": [10 * rank, 5]}) for rank in (1, 8)}
    table = rank_curve(results, {"lora:large": 8, "lora:small": 1}, {1: 100, 8: 800}, ledgers)
    assert table["rank"].tolist() == [1, 8]
    assert table["lpips"].tolist() == pytest.approx([0.2035, 0.1035])
    assert table[["adapter_bytes", "peak_bytes"]].to_numpy().tolist() == [[100, 15], [800, 85]]
    assert table["lpips_lo"].isna().all()  # of so few prompts


def test_scales_stand_in_order_with_the_teacher_at_distance_zero(results):
    table = scale_curve([replace(results, study={"guidance_scale": 7.5}), results])
    assert table["guidance_scale"].tolist() == [3.0] * 3 + [7.5] * 3
    assert table["variant"].tolist()[:3] == ["cfg", "lora:small", "lora:large"]
    assert table.loc[table["variant"] == "cfg", "lpips"].tolist() == [0.0, 0.0]
