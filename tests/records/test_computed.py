import pandas as pd
import pytest

from sdbench.records import computed
from sdbench.records.columns import MILLISECONDS, PERCENT

TABLES = [computed.SUMMARY, computed.FRONTIER, computed.PLAN, computed.COST]
TABLES += [computed.STEP_COST, computed.COMPARISON]


@pytest.mark.parametrize("columns", TABLES)
def test_every_computed_column_says_what_it_is_and_in_which_unit(columns):
    assert all(column.meaning and column.unit and column.label for column in columns.values())


def test_a_format_writes_a_number_in_its_unit():
    assert (PERCENT.text(0.1234), MILLISECONDS.text(0.2504)) == ("12.3", "250")


def test_a_figure_shows_what_a_table_writes():
    seconds = pd.Series([0.25, 2.0])
    assert MILLISECONDS.shown(seconds).tolist() == [250.0, 2000.0]


def test_a_heading_has_a_unit_only_where_there_is_one():
    headings = [computed.SUMMARY[name].heading for name in ("saving", "peak_bytes", "lpips")]
    assert headings == ["saving %", "memory MB", "LPIPS"]
