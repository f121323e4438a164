"""What a page shows of videos."""

import base64
import io
import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sdbench.records.animations import FRAME_MS, write_animation
from sdbench.report.page import page
from sdbench.report.pictures import MAX_VIDEO_PROMPTS, PICTURES_BYTES, fitting_videos, pictures
from sdbench.study import runner
from sdbench.study.study import Study
from tests import alexnet, tiny
from tests.families import decoding
from tests.report.browsers import opened

FRAMES = 9
VARIANTS = ["cfg", "last:50%", "unguided"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    size = {"height": decoding.SIDE, "width": decoding.SIDE}
    study = Study(
        model="tiny",
        variants=VARIANTS,
        prompts=["a red <b>ring</b> & a star", "a blue ring"],
        seeds=[0, 1],
        num_steps=4,
        guidance_scale=5.0,
        repeats=1,
        metrics=["lpips"],
        arguments=decoding.ARGUMENTS | {"num_frames": FRAMES},
        name="film",
        **size,
    )
    with alexnet.made_up():
        return runner.run(study, tmp_path_factory.mktemp("film") / "study", pipe=decoding.wan())


@pytest.fixture(scope="module")
def html(results):
    return page(results)


def decoded(data):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))), float)


def test_every_video_is_in_the_page_by_all_of_its_frames(html):
    found = json.loads(re.search(r'id="pictures">(.*?)</script>', html, re.DOTALL)[1])
    assert found["places"] == list(range(FRAMES))
    assert (found["frames"], found["frame_ms"]) == (FRAMES, FRAME_MS)
    videos = {(one["variant"], one["prompt"], one["seed"]) for one in found["images"]}
    assert len(videos) == len(found["images"]) == len(VARIANTS) * 4
    assert {len(one["frames"]) for one in found["images"]} == {FRAMES}


def test_frames_are_shown_in_their_order(tmp_path):
    levels = np.arange(0, 250, 50, dtype=np.uint8)
    frames = np.broadcast_to(levels[:, None, None, None], (5, 32, 32, 3))
    write_animation(tmp_path / "one.webp", frames)
    (shown,) = fitting_videos([tmp_path / "one.webp"])
    assert [decoded(data).mean() for data in shown] == pytest.approx(levels, abs=2)


def test_a_video_is_told_in_words(results):
    for one in pictures(results)["images"]:
        assert one["text"].startswith(f"{FRAMES} frames")
        assert "LPIPS between neighbouring frames 0." in one["text"]
        is_baseline = one["variant"] == "cfg"
        assert ("LPIPS to cfg 0." in one["text"]) == (not is_baseline)


def test_the_scrubber_is_there_for_videos_alone(html, tmp_path):
    assert '<input id="frame" type="range" min="0" max="8"' in html
    assert "<h2>Videos</h2>" in html
    study = Study(
        model="tiny",
        variants=["cfg"],
        prompts=["a"],
        seeds=[0],
        num_steps=2,
        guidance_scale=5.0,
        repeats=1,
        metrics=[],
    )
    images = page(runner.run(study, tmp_path / "study", pipe=tiny.stable_diffusion()))
    assert 'id="frame"' not in images
    assert "<h2>Images</h2>" in images


def test_long_videos_are_shown_by_some_of_their_frames(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (100, 80, 60, 3), dtype=np.uint8)
    write_animation(tmp_path / "one.webp", frames)
    (few,) = fitting_videos([tmp_path / "one.webp"])
    assert len(few) == 48
    many = fitting_videos([tmp_path / "one.webp"] * 20)
    assert sum(len(frame) for video in many for frame in video) <= PICTURES_BYTES
    assert 16 <= len(many[0]) < 48


def test_as_many_prompts_are_shown_as_there_is_room_for(results):
    more = pd.concat([results.images.assign(prompt_id=f"{number:03d}") for number in range(2, 9)])
    shown = pictures(replace(results, images=more))
    assert len(shown["prompts"]) == MAX_VIDEO_PROMPTS


@pytest.mark.browser
def test_the_scrubber_works_in_a_browser_by_keyboard_and_without_a_network(html, tmp_path):
    with opened(html, tmp_path) as tab:
        _scrubs(tab)
        _plays(tab)
        tab.select_option("#right", "unguided")
        assert tab.locator("#said").inner_text().count(f"{FRAMES} frames") == 2


def _scrubs(tab):
    left, frame = tab.locator("#image-left"), tab.locator("#frame")
    first = left.get_attribute("src")
    assert left.get_attribute("alt") == f"cfg, frame 1 of {FRAMES}: a red <b>ring</b> & a star"
    frame.focus()
    tab.keyboard.press("ArrowRight")
    assert left.get_attribute("src") != first
    assert frame.get_attribute("aria-valuetext") == f"frame 2 of {FRAMES}"
    tab.keyboard.press("End")
    assert tab.locator("#frame-text").inner_text() == f"frame {FRAMES} of {FRAMES}"
    alts = tab.locator("#grid img").evaluate_all("images => images.map(image => image.alt)")
    assert alts == [f"{variant}, frame {FRAMES} of {FRAMES}" for variant in VARIANTS]
    tab.keyboard.press("Home")
    assert left.get_attribute("src") == first


def _plays(tab):
    from playwright.sync_api import expect

    play = tab.locator("#play")
    play.focus()
    tab.keyboard.press("Enter")
    assert play.get_attribute("aria-pressed") == "true"
    expect(tab.locator("#frame")).not_to_have_value("0")
    tab.keyboard.press("Enter")
    assert play.get_attribute("aria-pressed") == "false"
