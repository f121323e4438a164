"""The page of a blind test: what it holds, and how it works in a browser.

Scripted observers read the pixels of the canvases, as an eye would, and nothing else.
"""

import base64
import json
import re
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sdbench
from sdbench.analysis.perception.detection import SEEN, UNSEEN
from sdbench.analysis.perception.settings import Settings, masked
from sdbench.analysis.perception.trials import blind_test
from sdbench.records.names import TRIAL_MODES
from sdbench.records.store import read
from sdbench.report import trial_images
from sdbench.report.trial_page import trial_page

STORED = Path(__file__).parents[2] / "results" / "mini-sd" / "default"
SETTINGS = Settings(variants=("last:20%", "unguided"), trials=16, seed=4)


@pytest.fixture(scope="module")
def results():
    return read(STORED)


@pytest.fixture(scope="module")
def html(results):
    return trial_page(results, SETTINGS)


def data_of(html):
    return json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1])


def test_the_page_names_no_variant_and_asks_no_network(html):
    without_blocks = re.sub(r'"blocks": \[.*?\]', "", html)
    for name in ("last:20%", "unguided", "cfg", ".png", "http:", "https:", "src="):
        assert name not in without_blocks


def test_a_block_holds_both_images_and_which_is_x(results, html):
    data = data_of(html)
    trials = blind_test(results, SETTINGS).trials
    for place in (0, 7, len(trials) - 1):
        block = masked(base64.b64decode(data["blocks"][place]), SETTINGS.seed + place)
        row = trials.iloc[place]
        assert block[0] == row["right"]
        first, second = (int.from_bytes(block[at : at + 3], "little") for at in (1, 4))
        for start, size, side in ((7, first, 0), (7 + first, second, 1)):
            content = trial_images.io.BytesIO(block[start : start + size])
            with Image.open(content) as shown, Image.open(STORED / row[f"path_{side}"]) as stored:
                assert np.array_equal(np.asarray(shown.convert("RGB")), np.asarray(stored))


def test_no_length_tells_trials_apart(html):
    assert len({len(block) for block in data_of(html)["blocks"]}) == 1


def test_the_place_in_the_page_tells_nothing(results):
    """Neither the kind of a trial nor which image is X follows from its number."""
    trials = blind_test(results, replace(SETTINGS, trials=200)).trials
    for what in (trials["kind"] == "test", trials["right"] == 1):
        assert abs(np.corrcoef(trials["trial"], what.astype(float))[0, 1]) < 0.2


@pytest.mark.parametrize("mode", TRIAL_MODES)
def test_a_page_of_48_trials_is_below_8_mb(results, mode):
    page = trial_page(results, Settings(mode, ("last:20%", "lora")))
    assert len(page.encode()) < 8e6
    assert (data_of(page)["captions"] is not None) == (mode == "preference")


@pytest.fixture
def noise(results, tmp_path):
    """The study with images that no form makes small."""
    (tmp_path / "images").mkdir()
    generator = np.random.default_rng(0)
    trials = blind_test(results, SETTINGS).trials
    for path in {*trials["path_0"], *trials["path_1"]}:
        pixels = generator.integers(0, 256, (224, 224, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / path)
    return replace(results, folder=tmp_path), trials


def test_large_images_are_stored_with_loss_then_smaller(noise, monkeypatch):
    for budget, lossless, side in ((14_000_000, True, 224), (7_000_000, False, 224)):
        monkeypatch.setattr(trial_images, "PAGE_BYTES", budget)
        blocks, form, size = trial_images.fitting_blocks(*noise, 0)
        assert (form.quality is None) == lossless
        assert size == (side, side)
        assert sum(map(len, blocks)) <= 1.001 * budget
    monkeypatch.setattr(trial_images, "PAGE_BYTES", 1_000_000)
    with pytest.raises(ValueError, match="do not fit into a page"):
        trial_images.fitting_blocks(*noise, 0)


def test_a_study_without_stored_images_is_refused(results, tmp_path):
    with pytest.raises(ValueError, match="was stored without its images"):
        trial_page(replace(results, folder=tmp_path), SETTINGS)


def test_images_of_several_sizes_are_refused(results, tmp_path):
    shutil.copytree(STORED / "images", tmp_path / "images")
    path = tmp_path / blind_test(results, SETTINGS).trials["path_0"].iloc[0]
    Image.new("RGB", (32, 32)).save(path)
    with pytest.raises(ValueError, match="not of one size"):
        trial_page(replace(results, folder=tmp_path), SETTINGS)


def test_a_caption_is_text(results):
    hostile = "</script><b>a ring"
    images = results.images.assign(prompt=hostile)
    page = trial_page(replace(results, images=images), replace(SETTINGS, mode="preference"))
    assert hostile not in page
    assert set(data_of(page)["captions"]) == {hostile}


@contextmanager
def opened(html, folder, *, width=390, height=800):
    """A tab with the page; what it says to the console and asks of a network fails afterwards."""
    from playwright.sync_api import sync_playwright

    file = folder / "page.html"
    file.write_text(html, encoding="utf-8")
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        tab = browser.new_page(viewport={"width": width, "height": height})
        said, asked = [], []
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(file.as_uri())
        yield tab

        assert said == []
        assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
        assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        browser.close()


LOOK = """() => {
  const pixels = name => {
    const seen = document.getElementById(name), copy = new OffscreenCanvas(seen.width, seen.height);
    const context = copy.getContext("2d", {willReadFrequently: true});
    context.drawImage(seen, 0, 0);
    return context.getImageData(0, 0, seen.width, seen.height).data;
  };
  const [x, a, b] = ["x", "a", "b"].map(pixels);
  const apart = other =>
    x.reduce((sum, value, i) => sum + Math.abs(value - other[i]), 0) / x.length;
  return [apart(a), apart(b)];
}"""
"""How far A and B are from the reference, in levels of a pixel."""


def start(tab, code):
    tab.fill("#code", code)
    tab.keyboard.press("Enter")
    for number in (1, 2, 3):
        tab.wait_for_selector(f'#trial[data-ready^="Practice {number} "]')
        tab.keyboard.press("1")
        tab.wait_for_selector("#next:not([hidden])")
        assert " is right." in tab.inner_text("#feedback")
        tab.keyboard.press(" ")


def answer(tab, first, last, observer):
    """Answer trials by what is seen."""
    for number in range(first, last + 1):
        tab.wait_for_selector(f'#trial[data-ready^="Trial {number} "]')
        tab.keyboard.press(observer(*tab.evaluate(LOOK)))


def downloaded(tab, path):
    tab.wait_for_selector("#done:not([hidden])")
    with tab.expect_download() as download:
        tab.click("#download")
    download.value.save_as(path)
    return path


CLEARLY = 8
"""Levels of a pixel, on average: images that differ clearly lie farther apart."""


def scripted(generator, accuracy):
    """An observer who is right with a known share, and always where images differ clearly."""

    def choose(to_a, to_b):
        sure = abs(to_a - to_b) > CLEARLY
        is_right = sure or generator.random() < accuracy
        return ("a", "ArrowRight")[(to_a < to_b) != is_right]

    return choose


@pytest.mark.browser
def test_an_observer_who_reads_pixels_is_judged_rightly_and_a_reload_loses_nothing(
    results, tmp_path
):
    html = trial_page(results, Settings(variants=("last:50%",), trials=20, seed=4))
    count, given = data_of(html)["count"], []
    choose = scripted(np.random.default_rng(0), 0.9)

    def counting(to_a, to_b):
        key = choose(to_a, to_b)
        given.append((key == "a") == (to_a < to_b) and to_a != to_b)
        return key

    with opened(html, tmp_path) as tab:
        start(tab, "sharp-1")
        answer(tab, 1, 12, counting)
        tab.wait_for_selector('#trial[data-ready^="Trial 13 "]')
        tab.reload()
        assert f"12 of {count} trials are answered, by sharp-1" in tab.inner_text("#so-far")
        tab.keyboard.press(" ")
        answer(tab, 13, count, counting)
        found = sdbench.perceive([downloaded(tab, tmp_path / "a.json")], results)
        tab.reload()
        assert tab.is_visible("#download")

    told = found.answers["kind"] != "identical"
    assert found.answers["correct"].where(told, False).tolist() == given
    row = found.variants.set_index("variant").loc["last:50%"]
    assert row["verdict"] == SEEN
    assert row["share_lo"] < 0.9 < row["share_hi"]


@pytest.mark.browser
def test_an_observer_who_sees_no_difference_is_called_blind(results, tmp_path):
    html = trial_page(results, Settings(variants=("last:20%",), trials=16, seed=2))
    with opened(html, tmp_path, width=1400, height=900) as tab:
        start(tab, "dim-1")
        answer(tab, 1, data_of(html)["count"], scripted(np.random.default_rng(2), 0.5))
        found = sdbench.perceive([downloaded(tab, tmp_path / "a.json")], results)
    assert found.people["kept"].all()
    rows = found.variants.set_index("variant")
    assert rows.loc["last:20%", "verdict"] == UNSEEN
    assert rows.loc["clear", "share"] == 1


@pytest.mark.browser
def test_images_are_whole_pixels_and_go_after_the_limit(results, tmp_path):
    html = trial_page(results, replace(SETTINGS, limit_s=0.3))
    with opened(html, tmp_path) as tab:
        tab.fill("#code", "quick")
        tab.click("button[type=submit]")
        tab.wait_for_selector('#trial[data-ready^="Practice 1 "]')
        width = tab.evaluate("document.getElementById('a').getBoundingClientRect().width")
        assert width % 64 == 0
        assert width >= 64
        assert sum(tab.evaluate(LOOK)) > 0
        tab.wait_for_timeout(500)
        assert sum(tab.evaluate(LOOK)) == 0
        tab.click("#choose-b")
        tab.wait_for_selector("#next:not([hidden])")


@pytest.mark.browser
def test_images_are_arranged_so_that_whole_pixels_are_large(html, tmp_path):
    cases = {
        (64, 3, 1376, 600, 1): {"row": True, "scale": 6},  # a desk: in a row they are larger
        (512, 3, 1896, 780, 1): {"row": True, "scale": 1},
        (512, 3, 1376, 600, 1): {"row": False, "scale": 1},  # scrolled
        (64, 3, 366, 500, 3): {"row": False, "scale": 7},  # a phone
        (512, 3, 366, 500, 3): {"row": False, "scale": 1},
        (512, 3, 366, 500, 1): {"row": False, "scale": 0.5},
        (512, 2, 1376, 600, 1): {"row": False, "scale": 1},
    }
    with opened(html, tmp_path) as tab:
        for (side, images, width, height, ratio), found in cases.items():
            space = [width, height]
            call = "([side, images, space, ratio]) => arrange(side, side, images, space, ratio)"
            assert tab.evaluate(call, [side, images, space, ratio]) == found


@pytest.mark.browser
def test_a_test_pauses_and_is_given_to_another_person(html, tmp_path):
    with opened(html, tmp_path) as tab:
        tab.fill("#code", "not a code!")
        tab.keyboard.press("Enter")
        assert tab.is_visible("#intro")
        start(tab, "first")
        tab.wait_for_selector('#trial[data-ready^="Trial 1 "]')
        tab.keyboard.press(" ")
        assert tab.evaluate("document.activeElement.textContent") == "Pause"
        assert sum(tab.evaluate(LOOK)) == 0
        tab.click("#resume")
        tab.wait_for_selector('#trial[data-ready^="Trial 1 "]')
        assert tab.inner_text("#status") == "Trial 1 of 32"
        tab.click("#pause")
        tab.on("dialog", lambda dialog: dialog.accept())
        tab.click("#restart")
        assert tab.is_visible("#intro")
        assert tab.evaluate("localStorage.length") == 0


@pytest.mark.browser
def test_abx_asks_which_x_is(results, tmp_path):
    html = trial_page(results, Settings("abx", ("last:20%",), trials=1, seed=1))
    with opened(html, tmp_path) as tab:
        start(tab, "one")
        choose = scripted(np.random.default_rng(0), 1.0)
        answer(tab, 1, data_of(html)["count"], choose)
        found = sdbench.perceive([downloaded(tab, tmp_path / "a.json")], results)
    told = found.answers[found.answers["kind"] != "identical"]
    assert told["correct"].all()


@pytest.mark.browser
def test_preference_shows_a_caption_and_no_reference(results, tmp_path):
    html = trial_page(results, Settings("preference", ("last:20%",), trials=1, seed=1))
    data = data_of(html)
    with opened(html, tmp_path) as tab:
        start(tab, "one")
        answer(tab, 1, 2, lambda *_: "2")
        tab.wait_for_selector('#trial[data-ready^="Trial 3 "]')
        assert tab.is_hidden("#x")
        assert tab.inner_text("#caption") in data["captions"]
        assert [one["chosen"] for one in tab.evaluate("state.answers")] == ["B", "B"]
