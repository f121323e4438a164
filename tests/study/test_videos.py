"""Studies of pipelines that make videos: rows, scores, files, and what is refused."""

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from sdbench.analysis.known import answer_table
from sdbench.analysis.tables import summarise
from sdbench.cli import app
from sdbench.experiments.distances import distances
from sdbench.instruments.quality import score
from sdbench.records.files import read_pixels, write_table
from sdbench.records.names import ANSWERS, STILL
from sdbench.records.schema import OF_VIDEOS, columns
from sdbench.records.store import read
from sdbench.report.figures import image_grid
from sdbench.report.tables import known_text, legend, markdown, summary_table
from sdbench.study import runner
from sdbench.study.estimate import estimate
from sdbench.study.shards import gather
from sdbench.study.study import Study
from tests import alexnet, tiny
from tests.families import decoding, videos

SIZE = {"height": decoding.SIDE, "width": decoding.SIDE}
STUDY = Study(
    model="tiny-wan",
    variants=["cfg", "last:50%", "unguided"],
    prompts=tiny.PROMPTS,
    seeds=[0],
    num_steps=4,
    guidance_scale=5.0,
    batch=1,
    repeats=2,
    arguments=decoding.ARGUMENTS,
    name="videos",
    **SIZE,
)
METRICS = ("lpips", "flip", "ssim", "psnr")


@pytest.fixture(scope="module", autouse=True)
def lpips():
    with alexnet.made_up():
        yield


@pytest.fixture(scope="module")
def pipe():
    return decoding.wan()


@pytest.fixture(scope="module")
def results(pipe, tmp_path_factory):
    return runner.run(STUDY, tmp_path_factory.mktemp("videos") / "study", pipe=pipe)


def test_every_call_is_ok_and_says_how_large_its_frames_are(results):
    assert set(results.runs["status"]) == {"ok"}
    assert results.runs["message"].isna().all()
    assert set(results.runs["height"]) == set(results.runs["width"]) == {decoding.SIDE}
    assert (results.runs["batch"] == 1).all()
    assert results.study["output"] == "video"


def test_a_sample_is_one_row_with_one_file_that_holds_its_frames(results):
    """Two prompts under three variants, and the baseline again: its second repeat is kept."""
    assert len(results.images) == 2 * (3 + 1)
    assert results.images["frames"].tolist() == [decoding.FRAMES] * 8
    assert results.images["path"].str.endswith(".webp").all()
    shapes = {read_pixels(results.folder / path).shape for path in results.images["path"]}
    assert shapes == {(decoding.FRAMES, decoding.SIDE, decoding.SIDE, 3)}


def test_the_file_holds_what_the_pipeline_makes_alone(results, pipe):
    row = results.images[results.images["variant"] == "cfg"].iloc[0]
    call = decoding.ARGUMENTS | SIZE | {"num_inference_steps": 4, "guidance_scale": 5.0}
    generator = torch.Generator("cpu").manual_seed(int(row["seed"]))
    made = pipe(prompt=row["prompt"], generator=generator, output_type="np", **call).frames[0]
    assert np.array_equal(read_pixels(results.folder / row["path"]), (made * 255).round())


def test_mean_and_worst_are_over_the_frames_of_baseline_and_variant(results):
    def frames(row):
        pixels = read_pixels(results.folder / row["path"])
        return torch.from_numpy(pixels).movedim(-1, 1).float() / 255

    rows = results.images[results.images["prompt_id"] == "001"].set_index("variant")
    first = rows.loc["cfg"].iloc[0]
    other = rows.loc["unguided"]
    for name in METRICS:
        values = score(name, frames(other), frames(first))
        worst = values.min() if name in ("ssim", "psnr") else values.max()
        assert other[name] == pytest.approx(float(values.mean()), rel=1e-6)
        assert other[f"{name}_worst"] == pytest.approx(float(worst), rel=1e-6)
        assert values.std() > 0
    own = frames(other)
    assert other["flicker"] == pytest.approx(
        float(score("lpips", own[1:], own[:-1]).mean()), rel=1e-6
    )


def test_the_baseline_has_a_flicker_and_a_noise_floor(results):
    first, again = (
        results.images[results.images["variant"] == "cfg"].iloc[places]
        for places in (slice(None, 2), slice(2, None))
    )
    assert first[["lpips", "lpips_worst"]].isna().all(axis=None)
    assert (again[["lpips", "lpips_worst"]] == 0).all(axis=None)
    assert first["flicker"].tolist() == again["flicker"].tolist()
    assert (first["flicker"] > 0).all()


def test_the_columns_are_those_that_the_schema_has_for_videos(results):
    stored = read(results.folder).images
    further = [name for name in stored if name not in columns("images")]
    assert set(further) <= set(OF_VIDEOS["images"])
    assert {"frames", "flicker", *(f"{name}_worst" for name in METRICS)} <= set(further)
    assert {name: str(stored[name].dtype) for name in further} == {
        name: OF_VIDEOS["images"][name].dtype for name in further
    }


def test_a_study_of_images_has_none_of_them(tmp_path):
    study = dataclasses.replace(
        STUDY, model="tiny", metrics=["ssim"], arguments={}, repeats=1, height=16, width=16
    )
    found = runner.run(study, tmp_path / "study", pipe=tiny.stable_diffusion())
    assert set(found.images) == set(columns("images"))
    assert found.study["output"] == "image"
    assert "output" not in summarise(found)
    assert not {"flicker_difference", "lpips_worst"} & set(summarise(found))


def test_the_summary_has_means_worst_frames_and_the_change_of_flicker(results):
    summary = summarise(results).set_index("variant")
    means = results.images.groupby("variant")[["lpips", "lpips_worst", "flicker"]].mean()
    for name in ("lpips", "lpips_worst", "flicker"):
        assert summary.loc["last:50%", name] == pytest.approx(means.loc["last:50%", name])
    change = means.loc["unguided", "flicker"] - means.loc["cfg", "flicker"]
    assert summary.loc["unguided", "flicker_difference"] == pytest.approx(change)
    assert set(summary["output"]) == {"video"}


def test_tables_say_that_samples_are_videos(results):
    summary = summarise(results)
    text = markdown(summary)
    assert "/video" in text
    assert "/image" not in text
    for heading in ("worst", "flicker", "flicker change"):
        assert f" {heading} |" in text
    assert "a metric is the mean over the frames of a video" in legend(summary, wide=True)
    assert summary_table(summary).row_count == 3


def test_known_answers_of_videos_have_a_still_one(results):
    known = results.known
    assert set(known["answer"]) == {*ANSWERS, STILL}
    assert set(known["metric"]) == set(METRICS)
    table = answer_table(known).set_index(["metric", "answer"])
    for metric in ("lpips", "flip"):
        assert table.loc[(metric, "black"), "value"] > table.loc[(metric, "again"), "value"] == 0
        assert table.loc[(metric, STILL), "value"] > 0
    headings = [str(column.header) for column in known_text(known).columns]
    assert headings[-2:] == [STILL, "pairs"]


def test_the_grid_shows_the_first_the_middle_and_the_last_frame(results):
    figure = image_grid(results, pairs=[("000", 0)])
    row = results.images[results.images["variant"] == "unguided"].iloc[0]
    frames = read_pixels(results.folder / row["path"])
    shown = figure.axes[2].images[0].get_array()
    side = decoding.SIDE
    for place, frame in ((0, frames[0]), (side + 1, frames[2]), (2 * side + 2, frames[-1])):
        assert np.allclose(shown[:, place : place + side] * 255, frame, atol=0.01)


def test_an_interrupted_study_goes_on(pipe, results, tmp_path):
    shutil.copytree(results.folder, tmp_path / "study")
    shorter = read(tmp_path / "study")
    kept = shorter.images[shorter.images["variant"] != "last:50%"]
    lost = shorter.runs[shorter.runs["variant"] == "last:50%"]["unit"]
    for name, frame in (("runs", shorter.runs), ("steps", shorter.steps), ("images", kept)):
        rows = frame[~frame["unit"].isin(lost)]
        write_table(tmp_path / "study", name, rows)
    found = runner.run(STUDY, tmp_path / "study", pipe=pipe, mode="resume")
    key = ["unit", "prompt_id", "seed"]
    pd.testing.assert_frame_equal(
        found.images.sort_values(key, ignore_index=True),
        results.images.sort_values(key, ignore_index=True),
        check_like=True,
    )


def test_an_overwritten_study_leaves_no_video_behind(pipe, results, tmp_path):
    shutil.copytree(results.folder, tmp_path / "study")
    smaller = dataclasses.replace(STUDY, prompts=tiny.PROMPTS[:1], repeats=1, metrics=[])
    found = runner.run(smaller, tmp_path / "study", pipe=pipe, mode="overwrite")
    there = {f"images/{file.name}" for file in (tmp_path / "study" / "images").iterdir()}
    assert there == set(found.images["path"])
    assert "flicker" not in found.images


def test_shards_make_the_same_videos(pipe, results, tmp_path):
    for number in ("1", "2"):
        runner.run(STUDY, tmp_path / number, pipe=pipe, shard=f"{number}/2")
    gathered = gather(tmp_path / "gathered", [tmp_path / "1", tmp_path / "2"])
    key = ["unit", "prompt_id", "seed"]
    pd.testing.assert_frame_equal(
        gathered.images.sort_values(key, ignore_index=True),
        results.images.sort_values(key, ignore_index=True),
        check_like=True,
    )
    assert all((gathered.folder / path).is_file() for path in gathered.images["path"])


def test_a_batch_of_videos_is_that_many_rows(pipe):
    both = dataclasses.replace(STUDY, batch=2, repeats=1, metrics=["ssim"], variants=["cfg"])
    found = runner.run(both, pipe=pipe)
    assert len(found.images) == 2
    assert set(found.runs["batch"]) == {2}


def test_the_number_of_frames_is_an_argument(pipe):
    arguments = decoding.ARGUMENTS | {"num_frames": 9}
    longer = dataclasses.replace(
        STUDY, arguments=arguments, prompts=tiny.PROMPTS[:1], repeats=1, metrics=[]
    )
    assert set(runner.run(longer, pipe=pipe).images["frames"]) == {9}


def test_an_estimate_knows_videos(pipe):
    expected = estimate(STUDY, pipe=pipe)
    assert expected.calls == 2 * 3 * 2 + 3
    assert expected.seconds > 0


def test_frames_that_reach_the_scheduler_as_rows_make_a_study(tmp_path):
    """AnimateDiff: its autoencoder makes images, which the pipeline puts together."""
    study = dataclasses.replace(
        STUDY, arguments={"num_frames": videos.FRAMES}, repeats=1, metrics=["ssim"]
    )
    found = runner.run(study, tmp_path / "study", pipe=videos.animatediff())
    assert set(found.runs["status"]) == {"ok"}
    assert set(found.images["frames"]) == {videos.FRAMES}


def test_frames_that_are_too_small_for_a_metric_are_refused(pipe, tmp_path):
    small = dataclasses.replace(STUDY, height=16, width=16)
    with pytest.raises(ValueError, match=r"lpips needs images of at least 31 .* not 16 x 16"):
        runner.run(small, tmp_path / "study", pipe=pipe)
    assert not (tmp_path / "study").exists()


def test_an_output_that_the_pipeline_does_not_make_is_refused(pipe):
    with pytest.raises(ValueError, match="output 'audio' cannot be: the pipeline's is 'video'"):
        runner.run(dataclasses.replace(STUDY, output="audio", metrics=[]), pipe=pipe)
    asked = dataclasses.replace(STUDY, output="video", metrics=[], repeats=1)
    assert runner.run(asked, pipe=pipe).study["output"] == "video"


def test_distances_are_of_images(results):
    with pytest.raises(ValueError, match="holds videos: distances are between sets of images"):
        distances(results, features="inception", fewest=1)


def test_the_command_line_reports_videos(results, capsys):
    app(["report", str(results.folder), "--wide"], standalone_mode=False)
    said = capsys.readouterr().out
    assert "videos" in said
    assert "still: the video's first frame all along" in " ".join(said.split())
