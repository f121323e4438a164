from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import sdbench
from benchmarks.observers import written
from sdbench.analysis.perception.answered import answer_table
from sdbench.analysis.perception.perceive import judged
from sdbench.records.schema import validate


@pytest.fixture(scope="module")
def answers(results, files):
    return answer_table(results, files)


@pytest.fixture(scope="module")
def found(answers):
    return judged(answers)


def test_answers_are_a_table_with_the_metrics_of_what_was_tested(answers):
    validate(answers, "answers")
    tests = answers["kind"] == "test"
    assert answers.loc[tests, "lpips"].notna().all()
    assert answers.loc[~tests, "lpips"].isna().all()
    assert answers["simulated"].all()
    right = answers["shown_a"].where(answers["chosen"] == "A", answers["shown_b"]) == "cfg"
    assert (right == answers["correct"])[tests].all()


def test_who_guesses_is_left_out_and_counted(found):
    assert found.people.loc[~found.people["kept"], "person"].tolist() == ["simulated-08"]
    assert (found.variants.loc[found.variants["kind"] == "test", "people"] == 7).all()


def test_shares_are_those_of_plain_counting(found, answers):
    kept = answers[(answers["person"] != "simulated-08") & (answers["kind"] == "test")]
    plain = kept.groupby("variant")["correct"].mean()
    shares = found.variants.set_index("variant")["share"]
    for variant, share in plain.items():
        assert shares[variant] == pytest.approx(share)


def test_what_differs_is_seen_next_to_chance_and_catch_trials(found):
    rows = found.variants.set_index("variant")
    assert rows.loc["unguided", "verdict"] == "seen"
    assert rows.loc["clear", "share"] > 0.95
    assert rows.loc["unguided", "p_identical"] < 0.001
    assert rows.loc["last:20%", "p_clear"] < 0.001
    assert rows.loc["unguided", "dprime"] > rows.loc["last:20%", "dprime"]


def test_each_person_and_variant_has_a_row(found):
    assert len(found.by_person) == 8 * 2
    assert (found.by_person["trials"] == 16).all()


def test_metrics_foretell_answers(found):
    rows = found.foretold.set_index("metric")
    assert set(rows.index) == {"lpips", "flip", "changed"}
    assert (rows["foretells"] > 0.55).all()
    assert 0.005 < rows.loc["lpips", "threshold"] < 0.02
    assert rows.loc["changed", "noticed_changed"] > rows.loc["changed", "noticed_unchanged"]


def test_nobody_left_says_nothing_of_variants(answers):
    found = judged(answers[answers["person"] == "simulated-08"])
    assert found.variants.empty
    assert not found.people["kept"].any()


def test_few_people_have_no_mixed_model(answers):
    some = answers[answers["person"].isin(["simulated-01", "simulated-02"])]
    assert judged(some).variants["mixed"].isna().all()


def test_all_right_is_infinite_with_a_finite_lower_end(answers):
    perfect = answers.assign(correct=True).astype({"correct": "boolean"})
    rows = judged(perfect).variants.set_index("variant")
    assert np.isinf(rows.loc["unguided", "dprime"])
    assert 1 < rows.loc["unguided", "dprime_lo"] < np.inf


def test_files_are_judged_from_python(results, files, tmp_path):
    paths = []
    for file in files[:2]:
        paths.append(tmp_path / f"{file.person}.json")
        paths[-1].write_text(written(file, 0))
    found = sdbench.perceive(paths, results.folder)
    assert found.people["person"].tolist() == ["simulated-01", "simulated-02"]


def test_the_study_need_not_have_its_images_any_more(results, files, tmp_path):
    bare = replace(results, folder=Path(tmp_path))
    pd.testing.assert_frame_equal(answer_table(bare, files), answer_table(results, files))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda one: replace(one, page="0" * 16), "it is another study, or its images"),
        (lambda one: replace(one, answers=one.answers[:-1]), "has 47 answers; its page has 48"),
    ],
)
def test_answers_that_do_not_fit_are_named(results, files, change, said):
    with pytest.raises(ValueError, match=f"simulated-01 .*{said}"):
        answer_table(results, [change(files[0])])


def test_two_files_of_a_person_and_two_pages_are_refused(results, files):
    with pytest.raises(ValueError, match="are both of 'simulated-01'; give one of them"):
        answer_table(results, [files[0], files[0]])
    with pytest.raises(ValueError, match="give the answers of one page at a time"):
        answer_table(results, [files[0], replace(files[1], page="0" * 16)])
    with pytest.raises(ValueError, match="no file of answers"):
        answer_table(results, [])


def test_another_study_is_named(results, files):
    other = replace(results, images=results.images[results.images["variant"] != "last:20%"])
    with pytest.raises(ValueError, match="answers a page of another study"):
        answer_table(other, files)
