"""What people answered, next to what was right: files and their study in, a table out."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from sdbench.analysis.perception.settings import Settings
from sdbench.analysis.perception.trials import BlindTest, blind_test, records
from sdbench.records.answers import AnswerFile
from sdbench.records.columns import METRICS
from sdbench.records.schema import columns, frame
from sdbench.records.store import Results


def answer_table(results: Results, files: Sequence[AnswerFile]) -> pd.DataFrame:
    """The table `answers`: one row per answer, in the order of people and of their answers.

    Args:
        results: of the study that the page was made from; its images need not be stored any more.
        files: of one page.

    Raises:
        ValueError: no file, a file of another page or study, one that is cut off, or two of one
            person.
    """
    if not files:
        raise ValueError("no file of answers was given")
    first = files[0]
    for file in files[1:]:
        if (file.page, file.settings) != (first.page, first.settings):
            raise ValueError(
                f"{file.path} answers page {file.page}, and {first.path} page {first.page}; "
                "give the answers of one page at a time"
            )
    settings = Settings.of_token(first.settings, source=str(first.path))
    try:
        test = blind_test(results, settings)
    except ValueError as error:
        raise ValueError(f"{first.path} answers a page of another study: {error}") from None
    if test.hash != first.page:
        raise ValueError(
            f"{first.path} answers page {first.page}; from {results.folder} the same settings make "
            f"page {test.hash}: it is another study, or its images were made again"
        )
    _require_whole(files, len(test.trials))
    rows = pd.concat([_rows(file, test) for file in files], ignore_index=True)
    measured = _measured(results, test)
    joined = rows.merge(measured, on=["variant", "prompt_id", "seed"], how="left")
    of_tests = joined["kind"] == "test"
    joined[measured.columns[3:]] = joined[measured.columns[3:]].where(of_tests)
    names = columns("answers")
    return frame("answers", records(joined.reindex(columns=list(names))))


def _require_whole(files: Sequence[AnswerFile], trials: int) -> None:
    """Refuse files with too few answers, and two of the same person."""
    by_person: dict[str, AnswerFile] = {}
    for file in files:
        given = {answer.trial for answer in file.answers}
        if given != set(range(trials)):
            raise ValueError(
                f"{file.path} has {len(given)} answers; its page has {trials} trials; it was "
                "cut off or changed"
            )
        if other := by_person.get(file.person):
            raise ValueError(
                f"{other.path} and {file.path} are both of '{file.person}'; give one of them"
            )
        by_person[file.person] = file


def _rows(file: AnswerFile, test: BlindTest) -> pd.DataFrame:
    """One person's answers with what was right."""
    given = pd.DataFrame(
        {
            "trial": [answer.trial for answer in file.answers],
            "place": range(len(file.answers)),
            "at_a": [answer.shown[0] for answer in file.answers],
            "chosen": [answer.chosen for answer in file.answers],
            "image": [answer.image for answer in file.answers],
            "response_s": [answer.milliseconds / 1000 for answer in file.answers],
        }
    )
    rows = given.merge(test.trials, on="trial")
    first, second = rows["variant_0"], rows["variant_1"]
    rows["shown_a"] = first.where(rows["at_a"] == 0, second)
    rows["shown_b"] = second.where(rows["at_a"] == 0, first)
    rows["correct"] = (rows["image"] == rows["right"]).astype("boolean")
    rows.loc[rows["right"].isna(), "correct"] = pd.NA
    if test.settings.mode == "preference":
        rows["preferred"] = first.where(rows["image"] == 0, second)
    return rows.assign(
        page=file.page,
        mode=test.settings.mode,
        person=file.person,
        simulated=file.simulated,
        scale=file.scale,
    )


def _measured(results: Results, test: BlindTest) -> pd.DataFrame:
    """The metrics of the images that were tested, by variant and pair."""
    metrics = [name for name in METRICS if name in results.images]
    images = results.images.rename(columns={"path": "path_of"})
    keys = ["variant", "prompt_id", "seed"]
    used = pd.concat(
        [
            test.trials[[f"{name}_{side}" for name in ("variant", "sha256")]].set_axis(
                ["variant", "sha256"], axis=1
            )
            for side in "01"
        ]
    ).drop_duplicates()
    return (
        images.merge(used, on=["variant", "sha256"])
        .drop_duplicates(keys)[[*keys, *metrics]]
        .reset_index(drop=True)
    )
