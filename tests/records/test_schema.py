import numpy as np
import pandas as pd
import pytest

from sdbench.records import schema


@pytest.mark.parametrize("table", schema.TABLES)
def test_empty_table_is_valid_and_typed(table):
    assert dict(schema.empty(table).dtypes.astype(str)) == {
        name: column.dtype for name, column in schema.TABLES[table].items()
    }


@pytest.mark.parametrize("table", schema.TABLES)
def test_every_column_has_a_meaning_and_every_number_a_unit(table):
    described = schema.describe(table)
    numbers = described["dtype"].isin(["Int64", "float64"])
    of_videos = schema.OF_VIDEOS.get(table, {})
    assert list(described["name"]) == [*schema.TABLES[table], *of_videos]
    assert (described["meaning"] != "").all()
    assert ((described["unit"] != "") == numbers).all()


def test_unnamed_nullable_columns_are_missing(rows):
    runs = rows("runs", {"unit": "a"})
    assert runs["flop"].isna().all()
    assert np.isnan(runs["latency_s"]).all()


def test_concatenation_keeps_dtypes(rows):
    images = rows("images", {"unit": "a"})
    joined = pd.concat([images, rows("images", {"unit": "b", "sharpness": 0.5})], ignore_index=True)
    pd.testing.assert_frame_equal(schema.validate(joined, "images"), joined)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda runs: runs.drop(columns="nfe"), "'nfe' is missing; expected float64"),
        (lambda runs: runs.assign(colour=1.0), "'colour' is not one of the table's"),
        (lambda runs: runs.assign(batch=1.5), "'batch' is dtype.*; expected Int64"),
        (lambda runs: runs.assign(latency_s=-1.0), "'latency_s' holds -1.0; expected at least 0"),
        (
            lambda runs: runs.assign(rows=runs["rows"].sub(2)),
            "'rows' holds -1; expected at least 0",
        ),
        (
            lambda runs: runs.assign(model=runs["model"].where(runs["unit"] == "b")),
            "'model' has missing values",
        ),
        (
            lambda runs: runs.assign(phase=runs["unit"]),
            "'phase' holds 'a'; expected one of warmup, measured",
        ),
        (lambda runs: runs.assign(unit=runs["model"]), "twice; unit must differ"),
    ],
)
def test_wrong_frame_names_source_and_column(rows, change, message):
    runs = change(rows("runs", {"unit": "a", "rows": 1}, {"unit": "b", "rows": 1}))
    with pytest.raises(ValueError, match=f"^here: .*{message}"):
        schema.validate(runs, "runs", source="here")


def test_images_take_further_metrics_but_only_float64(rows):
    images = rows("images", {"unit": "a", "sharpness": 2})
    assert images["sharpness"].dtype == "float64"
    with pytest.raises(ValueError, match=r"'sharpness' is .*; expected float64"):
        schema.validate(images.assign(sharpness="high"), "images")


@pytest.mark.parametrize(
    ("row", "message"),
    [({"colour": 1}, "unexpected column 'colour'"), ({"batch": 1.5}, "'batch' must be Int64")],
)
def test_rows_that_do_not_fit_are_refused(row, message):
    with pytest.raises(ValueError, match=message):
        schema.frame("runs", [row])


def test_unknown_table_names_what_exists():
    with pytest.raises(ValueError, match="unknown table 'walks'; there are runs, steps, images"):
        schema.empty("walks")


def test_a_choice_of_columns_has_the_key_and_the_unit_in_the_order_of_the_table():
    assert schema.with_key("images", ["lpips", "variant"]) == (
        "unit",
        "variant",
        "prompt_id",
        "seed",
        "lpips",
    )
    assert schema.with_key("growth", [])[0] == "unit"


def test_of_a_choice_of_columns_the_others_are_not_missed(rows):
    asked = schema.with_key("runs", ["batch"])
    runs = rows("runs", {"unit": "a"})[["batch", "unit"]].astype({"unit": "category"})
    assert list(schema.validate(runs, "runs", asked=asked)) == ["unit", "batch"]
    with pytest.raises(ValueError, match=r"'unit' is .*StringDtype.*; expected string"):
        schema.validate(runs.astype({"unit": "string"}), "runs", asked=asked)
