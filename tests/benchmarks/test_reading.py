import pandas as pd
import pyarrow.parquet as pq
import pytest

import sdbench
from benchmarks.reading import STEPS_PER_BATCH, reading, write_study


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scale") / "study"
    write_study(folder, 3 * STEPS_PER_BATCH, block=100)
    return folder


def test_the_made_up_study_is_a_valid_one_of_the_size_asked_for(folder):
    results = sdbench.read(folder)
    assert (len(results.runs), len(results.steps), len(results.images)) == (240, 12_000, 1200)
    assert results.runs["unit"].is_unique
    summary = sdbench.summarise(results).set_index("variant")
    assert summary.loc["last:20%", "ideal_saving"] == pytest.approx(0.1)
    assert (summary[["repeats", "pairs"]] == [8, 120]).all(axis=None)


def test_it_is_written_in_row_groups_that_leave_no_trace_in_the_rows(folder, tmp_path):
    assert pq.ParquetFile(folder / "steps.parquet").num_row_groups == 3
    write_study(tmp_path / "whole", 3 * STEPS_PER_BATCH)
    columns = ["unit", "step", "guided", "rows"]
    whole, parts = (sdbench.read(path).steps[columns] for path in (tmp_path / "whole", folder))
    pd.testing.assert_frame_equal(whole, parts)


def test_a_number_of_rows_that_makes_no_whole_batches_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be a multiple of 4000, not 5000"):
        write_study(tmp_path / "x", 5000)
    assert not (tmp_path / "x").exists()


@pytest.mark.slow  # writes and reads four million rows
def test_time_and_memory_of_a_summary_grow_with_the_rows_and_no_faster(tmp_path):
    took = {}
    for step_rows in (10**6, 3 * 10**6):
        write_study(tmp_path / str(step_rows), step_rows)
        took[step_rows] = reading(tmp_path / str(step_rows))
    small, large = took.values()
    assert large.processor_s < 6 * small.processor_s
    assert (
        large.peak_bytes + 3.5 * (large.peak_bytes - small.peak_bytes) < 2e9
    )  # the line through both, at 10^7 rows
