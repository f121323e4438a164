"""What a study found, in words."""

import numpy as np
import pandas as pd
import pytest

from sdbench.report.tables import findings


def row(variant, saving=0.086, half=0.01, changed=0.375, pairs=8):
    interval = {"saving_lo": saving - half, "saving_hi": saving + half}
    return {
        "variant": variant,
        "saving": saving,
        "lpips_changed": changed,
        "pairs": pairs,
    } | interval


def said(**changes):
    return findings(pd.DataFrame([row("cfg", saving=0.0), row("last:20%", **changes)]))


def test_a_variant_saves_so_much_and_changes_so_many_images():
    assert said() == ["last:20% saves 8.6 % of the time (7.6 to 9.6 %) and changes 3 of 8 images."]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"half": 0.1}, "shows no saving of time (-1.4 to 18.6 %)"),
        ({"half": 0.11}, "has an undecided saving"),
        ({"saving": -0.2}, "takes 20.0 % more time (19.0 to 21.0 %)"),
        ({"half": np.nan}, "saved 8.6 % of the time in too few rounds to know how surely"),
    ],
)
def test_what_the_interval_does_not_show_is_not_said(changes, words):
    assert said(**changes) == [f"last:20% {words} and changes 3 of 8 images."]


def test_without_images_only_time_is_told():
    assert said(changed=np.nan) == ["last:20% saves 8.6 % of the time (7.6 to 9.6 %)."]


def test_untimed_variants_and_all_but_the_first_few_are_left_to_the_table():
    rows = [row("cfg"), row("scale:4", saving=np.nan), *(row(f"last:{n}") for n in range(7))]
    lines = findings(pd.DataFrame(rows))
    assert [line.split()[0] for line in lines[:-1]] == [f"last:{n}" for n in range(5)]
    assert lines[-1] == "2 more are in the table."


def test_videos_are_called_so():
    table = pd.DataFrame([row("last:2")]).assign(output="video")
    assert "changes 3 of 8 videos." in findings(table)[0]


def test_a_handful_of_images_is_called_a_try_out():
    only = "Only 2 images of each variant: what they show is a try-out, not a result."
    assert said(pairs=2)[-1] == only
    assert len(said(pairs=6)) == 1


def test_times_alone_are_no_try_out():
    assert len(said(pairs=1, changed=np.nan)) == 1
