"""What the project says of two variants is backed by stored tests."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from sdbench.analysis.contrast import contrast
from tools import claims

KNOWN = claims.claims((claims.RESULTS / "claims.toml").read_text("utf-8"))
FILES = list(dict.fromkeys(claim.file for claim in KNOWN))
SMALL = [f"results/mini-sd/{name}/README.md" for name in ("distill-full", "students", "ranks")]


def of_file(file):
    return [claim for claim in KNOWN if claim.file == file]


def test_claims_of_a_file_stand_together():
    """So that they are corrected for together."""
    files = [claim.file for claim in KNOWN]
    assert files == sorted(files, key=FILES.index)


@pytest.mark.parametrize("file", FILES)
def test_the_words_of_a_claim_are_in_its_file(file):
    text = claims.text_of(file)
    missing = [claim.says for claim in of_file(file) if " ".join(claim.says.split()) not in text]
    assert missing == [], "reworded: say in claims.toml what is said now, and of what"


@pytest.mark.parametrize("file", SMALL)
def test_what_is_written_of_a_file_is_not_stale(file):
    text = claims.WRITTEN.read_text("utf-8")
    assert claims.section(file, of_file(file)) in text, "stale: run `python tools/claims.py`"


@pytest.mark.slow  # some two hundred tests
def test_what_is_written_is_not_stale():
    assert claims.WRITTEN.read_text("utf-8") == claims.written(KNOWN)


def compared(more, *, count=80):
    """A metric that is `more` in the second of two variants."""
    pairs = pd.MultiIndex.from_product(
        [[f"{n:03d}" for n in range(count)], [0]], names=["prompt_id", "seed"]
    )
    first = np.random.default_rng(0).uniform(0.1, 0.11, count)
    values = pd.DataFrame({"first": first, "second": first[::-1] + more}, pairs)
    return contrast(values, "lpips", margin=0.1)


@pytest.mark.parametrize(
    ("verdict", "more", "holds"),
    [
        ("nearer", 0.1, True),
        ("nearer", -0.1, False),
        ("farther", -0.1, True),
        ("nearer", 0.0, False),
        ("nearer in most images", 0.1, True),
        ("nearer in most images", 0.0, False),
        ("farther in most images", 0.1, False),
        ("no clear difference", 0.0, True),
        ("no clear difference", 0.1, False),
        ("equivalent", 0.0, True),
        ("equivalent", 0.1, False),
    ],
)
def test_a_claim_is_borne_out_by_what_it_says(verdict, more, holds):
    found = compared(more)
    outcome = claims.Outcome([found], [""], found.p)
    assert claims.borne_out(replace(KNOWN[0], verdict=verdict), outcome) == holds


def test_every_test_of_a_claim_has_to_hold_and_after_correction():
    near, same = compared(0.1), compared(0.0)
    claim = replace(KNOWN[0], verdict="nearer")
    assert claims.borne_out(claim, claims.Outcome([near, near], ["", ""], 0.04))
    assert not claims.borne_out(claim, claims.Outcome([near, same], ["", ""], 0.04))
    assert not claims.borne_out(claim, claims.Outcome([near, near], ["", ""], 0.06))


def test_of_lists_each_place_is_a_test():
    text = """
    [[claim]]
    file = "a"
    says = "b"
    study = "s"
    first = "x"
    second = ["y", "z"]
    metric = "lpips"
    verdict = "nearer"
    """
    (claim,) = claims.claims(text)
    assert claim.tests == (claims.Test("s", "x", "y", "s"), claims.Test("s", "x", "z", "s"))
    with pytest.raises(ValueError, match="shorter"):
        claims.claims(text.replace('"x"', '["x", "y", "z"]'))


def test_a_notebook_is_read_by_its_texts_and_answers():
    assert "**Answer.** On mini-sd" in claims.text_of("notebooks/01_selective_guidance.ipynb")
