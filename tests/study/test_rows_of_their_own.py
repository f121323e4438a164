"""Calls whose rows are other work than the baseline's: they are named, and their work is counted.

What compares numbers of rows leaves them out.
"""

import pytest

from sdbench.analysis.predicted import has_rows_of_its_own
from sdbench.analysis.tables import summarise
from sdbench.study import runner
from sdbench.study.study import Study
from sdbench.variants.grammar import parse
from tests import tiny
from tests.variants.students import SCALE, saved


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    student = tmp_path_factory.mktemp("student")
    saved(student)
    pipe = tiny.stable_diffusion()
    names = ["cfg", "last:25%", "last:50%", "lora", "last:50%+lora", "deepcache:2"]
    study = Study(
        model="tiny",
        variants=[name.replace("lora", f"lora:{student}") for name in names],
        prompts=tiny.PROMPTS,
        seeds=[0],
        num_steps=4,
        guidance_scale=SCALE,
        repeats=1,
        metrics=("psnr",),
    )
    found = runner.run(study, tmp_path_factory.mktemp("study") / "x", pipe=pipe)
    for table in (found.runs, found.steps, found.images):
        table["variant"] = table["variant"].str.replace(f":{student}", "")
    return found


def test_they_are_named(results):
    assert (results.runs["status"] == "ok").all()
    named = results.runs.groupby("variant")["accelerated"].agg(["min", "max"])
    assert (named["min"] == named["max"]).all()
    apart = set(named.index[named["max"].astype(bool)])
    assert apart == {"last:50%+lora", "deepcache:2"}


def test_a_student_beside_the_weights_is_more_work_than_one_within(results):
    warmups = results.runs[results.runs["phase"] == "warmup"].set_index("variant")
    per_row = (warmups["flop"] / warmups["rows"]).astype(float)
    assert per_row["last:50%+lora"] > 1.001 * per_row["cfg"]
    assert per_row["lora"] == per_row["last:50%"] == per_row["cfg"]


def test_nothing_is_ideal_or_expected_of_them(results):
    own = has_rows_of_its_own(results)
    summary = summarise(results).set_index("variant")
    undefined = summary[["ideal_saving", "predicted_saving"]].isna()
    for column in undefined:
        assert undefined[column].to_dict() == own.to_dict()


@pytest.mark.parametrize(
    ("text", "own"),
    [("cfg", False), ("steps:3", False), ("tgate:2", True), ("last:50%+deepcache:3", True)],
)
def test_a_variant_says_whether_it_has_them(text, own):
    assert parse(text).has_rows_of_its_own == own
