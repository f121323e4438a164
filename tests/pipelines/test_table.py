"""The support table is of the form that the code writes, and counts what is in it."""

from tools.pipelines import table
from tools.pipelines.outcomes import NOT_BUILT, SILENT, WORKS


def row(name, *outcomes, reason=""):
    batches = [
        {"batch": i, "outcome": outcome, "reason": reason, "calls": 2, "order": "conditional first"}
        for i, outcome in enumerate(outcomes, 1)
    ]
    outcome = outcomes[0] if outcomes else NOT_BUILT
    return {"name": name, "family": "b", "outcome": outcome, "reason": reason, "batches": batches}


def made():
    rows = [row("A", WORKS, SILENT, reason="a|b"), row("B", WORKS, WORKS), row("C", reason="none")]
    return table.frame(rows, "1.0")


def test_a_class_has_a_line_per_batch_and_counts_by_its_gravest():
    assert made()[["class", "batch"]].to_numpy().tolist() == [
        ["A", 1],
        ["A", 2],
        ["B", 1],
        ["B", 2],
        ["C", 0],
    ]
    assert table.by_class(made())["outcome"].tolist() == [SILENT, WORKS, NOT_BUILT]


def test_counts_are_by_kind_and_outcome():
    counts = table.counts(made()).set_index("guides by")
    assert counts.loc["two calls, conditional first", SILENT] == 1
    assert counts.loc["not known", NOT_BUILT] == 1
    assert counts.loc["all", "all"] == 3
    assert "Of 2 classes that guide by halves, 1 work (50.0%); 1 more" in table.summary(made())


def test_a_table_comes_back_as_it_was_written(tmp_path):
    table.write(made(), tmp_path)
    assert table.markdown(table.read(tmp_path)) == (tmp_path / "README.md").read_text()
    assert "a\\|b" in (tmp_path / "README.md").read_text()


def test_the_committed_table_is_of_the_form_that_the_code_writes():
    kept = table.read()
    assert table.markdown(kept) == (table.FOLDER / "README.md").read_text()
    assert list(kept.columns) == table.COLUMNS
