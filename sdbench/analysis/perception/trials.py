"""Which trials a blind test has: frame in, frame out, and the same test from the same settings.

The page (`sdbench.report.trial_page`) shows them, and the analysis of the answers makes them again
from the study and the page's settings. So neither page nor answers say which image is whose.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, cycle, islice, permutations, zip_longest
from typing import Any

import pandas as pd

from sdbench.analysis.perception.settings import PRACTICE, Settings, drawn
from sdbench.records.names import BASELINE, CLEAR, IDENTICAL, TEST
from sdbench.records.store import Results

CLEAR_LPIPS = 0.1
"""From which LPIPS an unguided image is clearly another one: eight times where images change."""
UNGUIDED = "unguided"
HASH = 16  # letters of a page's hash
PRACTICE_KIND = "practice"

Row = dict[str, Any]
_SIDES = ("0", "1")


@dataclass(frozen=True)
class BlindTest:
    """A blind test.

    Attributes:
        trials: one row per trial in the order of the page's source: `trial`, `kind`, `prompt_id`,
            `prompt`, `seed`, of each image `variant_0`, `path_0`, `sha256_0` and of the other the
            same with 1, `variant` and `against` (the tested one first), and `right`: the image that
            X is, or that fits the caption; missing where neither is right.
        practice: the same of the trials for practice.
        settings: of the test.
        reference: the variant whose images are the reference.
    """

    trials: pd.DataFrame
    practice: pd.DataFrame
    settings: Settings
    reference: str

    @property
    def hash(self) -> str:
        """What this test is called: of its settings, trials and images."""
        rows = [*records(self.trials), *records(self.practice)]
        named = [{name: row[name] for name in sorted(row) if "path" not in name} for row in rows]
        text = json.dumps([asdict(self.settings), named], default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:HASH]


def records(table: pd.DataFrame) -> list[Row]:
    """The rows of a table by the names of its columns."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def blind_test(results: Results, settings: Settings) -> BlindTest:
    """The trials of a test.

    Args:
        results: of a study; its images need not be stored any more.
        settings: of the test.

    Raises:
        ValueError: the study has no images, is of videos, or has not what the settings name.
    """
    images = _one_per_pair(results, settings.variants)
    reference = str(results.study.get("reference", BASELINE))
    if reference in settings.variants:
        raise ValueError(f"'{reference}' is the reference that all variants are compared with")

    by_variant = {str(name): rows for name, rows in images.groupby("variant", sort=False)}
    own = records(by_variant[reference])
    differing = _differing(by_variant, reference, settings)
    catch = settings.catch_trials
    rows = [
        *_tests(by_variant, reference, settings),
        *[_pair(CLEAR, first, second) for first, second in islice(cycle(differing), catch)],
        *[_pair(IDENTICAL, one, one) for one in islice(cycle(_shuffled(own, settings)), catch)],
    ]
    # Practice takes pairs that no catch trial has, where there are enough.
    further = islice(cycle(differing), catch, catch + PRACTICE)
    practice = [_pair(PRACTICE_KIND, first, second) for first, second in further]
    return BlindTest(_frame(rows, settings), _frame(practice, settings), settings, reference)


def _one_per_pair(results: Results, variants: Sequence[str]) -> pd.DataFrame:
    """The first image that each variant made of a pair."""
    images = results.images
    if not len(images):
        raise ValueError(f"{results.folder} has no images, so nothing can be shown")
    if "frames" in images and images["frames"].notna().any():
        raise ValueError(f"{results.folder} holds videos; a blind test shows images")
    known = [str(name) for name in images["variant"].unique()]
    reference = str(results.study.get("reference", BASELINE))
    for name in (*variants, reference):
        if name not in known:
            raise ValueError(
                f"{results.folder} has no images of '{name}'; it has {', '.join(known)}"
            )

    flagged = images["flagged"].fillna(False).astype(bool)
    kept = images[~flagged & images["sha256"].notna()]
    ordered = kept.merge(results.runs[["unit", "repeat"]], on="unit").sort_values(
        ["repeat", "draw"], kind="stable"
    )
    return ordered.drop_duplicates(["variant", "prompt_id", "seed"]).sort_values(
        ["prompt_id", "seed"], kind="stable"
    )


def _tests(by_variant: dict[str, pd.DataFrame], reference: str, settings: Settings) -> list[Row]:
    """The trials of variants: as many of each, over all pairs in turn."""
    names = settings.variants
    meetings = [(name, reference) for name in names]
    if settings.mode == "preference":
        meetings += list(combinations(names, 2))

    rows = []
    for place, (name, other) in enumerate(meetings):
        count = len(range(place, settings.trials, len(meetings)))
        both = by_variant[name].merge(by_variant[other], on=["prompt_id", "seed"])
        if both.empty:
            raise ValueError(f"'{name}' and '{other}' have no image of the same caption and seed")
        keys = [(row["prompt_id"], row["seed"]) for row in records(both)]
        keys.sort(key=lambda key: drawn(settings.seed, "pair", name, other, *key))
        own, theirs = (
            {(row["prompt_id"], row["seed"]): row for row in records(by_variant[variant])}
            for variant in (name, other)
        )
        rows += [_pair(TEST, own[key], theirs[key]) for key in islice(cycle(keys), count)]
    return rows


def _differing(
    by_variant: dict[str, pd.DataFrame], reference: str, settings: Settings
) -> list[tuple[Row, Row]]:
    """Pairs of images that everybody tells apart; the second is the reference's.

    Another seed of the same caption, else an unguided image far from the reference, else the image
    of another caption. Which fits its caption better is clear for the last alone.
    """
    own = _shuffled(records(by_variant[reference]), settings)
    by_caption = {False: _two_of(own, same_caption=False), True: _two_of(own, same_caption=True)}
    found = by_caption[False]
    if settings.mode != "preference":
        found = by_caption[True] or _far(by_variant, own) or found
    if not found:
        raise ValueError("one caption with one seed has no catch trials; the study needs more")

    # One pair of every reference image first.
    by_image: dict[tuple[str, int], list[tuple[Row, Row]]] = {}
    for other, one in found:
        by_image.setdefault((one["prompt_id"], one["seed"]), []).append((other, one))
    turns = zip_longest(*by_image.values())
    return [pair for turn in turns for pair in turn if pair is not None]


def _two_of(own: Sequence[Row], *, same_caption: bool) -> list[tuple[Row, Row]]:
    """Every two different images of one caption, or of two."""
    return [
        (other, one)
        for one, other in permutations(own, 2)
        if (other["prompt_id"] == one["prompt_id"]) == same_caption
        and other["sha256"] != one["sha256"]
    ]


def _far(by_variant: dict[str, pd.DataFrame], own: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Unguided images far from the reference, each with it."""
    unguided = by_variant.get(UNGUIDED)
    if unguided is None or "lpips" not in unguided:
        return []
    far = unguided[unguided["lpips"] >= CLEAR_LPIPS]
    by_pair = {(row["prompt_id"], row["seed"]): row for row in records(far)}
    keys = [(one["prompt_id"], one["seed"]) for one in own]
    return [(by_pair[key], one) for key, one in zip(keys, own, strict=True) if key in by_pair]


def _shuffled(rows: list[Row], settings: Settings) -> list[Row]:
    return sorted(
        rows, key=lambda row: drawn(settings.seed, "image", row["prompt_id"], row["seed"])
    )


def _pair(kind: str, first: Row, second: Row) -> Row:
    """A trial: its tested image first, then the reference's."""
    return {"kind": kind, "images": (first, second)}


def _frame(rows: Sequence[Row], settings: Settings) -> pd.DataFrame:
    """Trials in an order that tells nothing, with their two images in one that tells nothing."""
    keys = [drawn(settings.seed, "trial", place, row["kind"]) for place, row in enumerate(rows)]
    order = sorted(range(len(rows)), key=keys.__getitem__)
    return pd.DataFrame(
        [
            {"trial": trial} | _columns(rows[place], keys[place], settings)
            for trial, place in enumerate(order)
        ]
    ).astype({"right": "Int64"})


def _columns(row: Row, key: bytes, settings: Settings) -> Row:
    tested, other = row["images"]
    swapped = key[-1] & 1
    shown = (other, tested) if swapped else (tested, other)

    # X is the reference, in ABX either; of a caption its own image is right.
    right: Any = swapped ^ 1
    if settings.mode == "abx" or row["kind"] == IDENTICAL:
        right = key[-2] & 1
    if settings.mode == "preference" and row["kind"] in (TEST, IDENTICAL):
        right = pd.NA
    found = {
        "kind": row["kind"],
        "prompt_id": other["prompt_id"],
        "prompt": other["prompt"],
        "seed": other["seed"],
        "variant": tested["variant"],
        "against": other["variant"],
        "right": right,
    }
    for side, image in zip(_SIDES, shown, strict=True):
        found |= {f"{name}_{side}": image[name] for name in ("variant", "path", "sha256")}
    return found
