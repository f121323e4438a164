import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sdbench.analysis.frontier import frontier
from sdbench.analysis.tables import summarise
from sdbench.records.store import read
from sdbench.report.page import _figures, page
from sdbench.report.pictures import fitting
from sdbench.report.tables import verdict_text
from sdbench.study import runner
from sdbench.study.study import Study
from tests import tiny
from tests.report.browsers import opened

HOSTILE = "</script><script>document.title = 'taken'</script>"
PROMPTS = [HOSTILE, "a red <b>ring</b> & a star"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    variants = ["cfg", "last:50%", "steps:2", "pab:2"]
    fields = {
        "num_steps": 4,
        "guidance_scale": 7.5,
        "repeats": 2,
        "metrics": ["ssim", "psnr"],
        "name": "page",
    }
    study = Study(model="tiny", variants=variants, prompts=PROMPTS, seeds=[0, 1], **fields)
    folder = tmp_path_factory.mktemp("study")
    runner.run(study, folder, pipe=tiny.stable_diffusion())
    return read(folder)


@pytest.fixture(scope="module")
def html(results):
    return page(results)


def test_a_prompt_is_text_wherever_it_stands(html):
    assert HOSTILE not in html
    pictures = json.loads(re.search(r'id="pictures">(.*?)</script>', html, re.DOTALL)[1])
    assert pictures["prompts"] == {"000": HOSTILE, "001": PROMPTS[1]}


def test_every_variant_prompt_and_seed_is_in_the_comparer(html):
    pictures = json.loads(re.search(r'id="pictures">(.*?)</script>', html, re.DOTALL)[1])
    found = {(one["variant"], one["prompt"], one["seed"]) for one in pictures["images"]}
    assert found == {
        (v, p, s) for v in ("cfg", "last:50%", "steps:2") for p in ("000", "001") for s in "01"
    }
    assert len(pictures["images"]) == len(found)
    assert all(one["data"].startswith("data:image/webp;base64,") for one in pictures["images"])


def test_a_variant_has_one_colour_in_all_figures(results):
    summary = summarise(results).assign(
        lpips=[0.0, 0.1, 0.2, np.nan],
        saving=[np.nan, 0.1, 0.2, np.nan],
        predicted_saving=np.nan,
    )
    tested = pd.DataFrame({"verdict": ["beaten"], "rival": ["cfg"]}, index=["last:50%"])
    figures = _figures(summary, results, tested)
    frontier, steps, _ = (figure["content"]["data"] for figure in figures)
    colours = {trace["name"]: trace["line"]["color"] for trace in steps}
    assert {trace["name"]: trace["marker"]["color"] for trace in frontier} == {
        name: colours[name] for name in ("last:50%", "steps:2")
    }
    assert len(set(colours.values())) == 3


def test_the_page_says_first_that_a_run_was_disturbed(results):
    calm = replace(results, runs=results.runs.assign(foreign_load=0.0, throttled=pd.NA))
    steps = results.steps.assign(latency_s=1.0)
    runs = calm.runs.assign(denoise_s=4.0, latency_s=4.0)
    assert 'role="alert"' not in page(replace(calm, runs=runs, steps=steps))

    busy = page(replace(calm, runs=runs.assign(foreign_load=1.5), steps=steps))
    above, _, below = busy.partition('role="alert"')
    assert "<table" not in above
    assert below[1:].startswith(
        "DISTURBED: 2 of 2 rounds of calls: others took up to 1.5 cores. "
        "Not to trust: times in seconds"
    )


def test_the_page_draws_what_was_not_timed_and_names_what_is_undecided(results):
    summary = summarise(results).assign(
        lpips=[0.0, 0.1, 0.2, np.nan],
        saving=[0.0, np.nan, -3.0, np.nan],
        saving_lo=[np.nan, np.nan, -9.0, np.nan],
        saving_hi=[np.nan, np.nan, 0.5, np.nan],
        predicted_saving=[0.0, 0.25, 0.5, np.nan],
    )
    figure = _figures(summary, results, pd.DataFrame({"verdict": [], "rival": []}))[0]
    points = {trace["name"]: trace for trace in figure["content"]["data"]}
    assert list(points) == ["cfg", "last:50%"]
    assert points["last:50%"]["x"] == [25]
    assert points["last:50%"]["marker"]["symbol"] == "diamond-tall-open"
    assert figure["title"].endswith(
        "diamonds: not timed, at the predicted saving; undecided, not drawn: steps:2)"
    )


def test_what_tests_say_of_a_variant_is_in_table_and_figure(results):
    """Of alignment, which one variant has less of in every image."""
    full = (results.images["variant"] == "cfg").astype(float)
    images = results.images.assign(alignment=0.5 + 0.5 * full)
    made = replace(results, images=images)
    html = page(made)
    tested = frontier(made, "alignment", higher_is_better=True).set_index("variant")
    assert '<button type="button">verdict</button>' in html
    for name, row in tested.iterrows():
        cells = re.search(f'<tr><td data-value="{name}" class="(.*?)">.*?</tr>', html, re.DOTALL)
        assert cells[1] == row["verdict"]
        assert verdict_text(row) in cells[0]
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', html, re.DOTALL)[1])
    drawn = {trace["name"]: trace for trace in figures[0]["data"]}
    for name, row in tested.iterrows():
        trace = drawn[name]
        assert (trace["marker"]["symbol"] >= 100) == (row["verdict"] == "open")
        assert (trace["opacity"] < 1) == (row["verdict"] == "beaten")


class Parsed(HTMLParser):
    """The elements of a page with their attributes, the content of its scripts, and its text."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.scripts, self.text, self.open = [], [], "", None
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.open = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        self.open = None

    def handle_data(self, data):
        if self.open == "script":
            attrs, content = self.scripts[-1]
            self.scripts[-1] = (attrs, content + data)
        else:
            self.text += data


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        HOSTILE,
        '"><img src=x onerror=alert(1)>',
        "<!--<script>",
        "{{ 7 * 7 }}",
    ],
)
def test_whatever_a_study_holds_is_text(results, html, text):
    """A prompt, every name and a message: in the page, its plots and its pictures."""
    renamed = {"last:50%": text}
    frames = {
        name: getattr(results, name).replace({"variant": renamed})
        for name in ("runs", "steps", "images")
    }
    frames["images"]["prompt"] = text
    frames["runs"].loc[frames["runs"]["status"] != "ok", "message"] = text
    frames["runs"][["dtype", "scheduler"]] = text
    machine = {
        "cpu": text,
        "cores": text,
        "os": text,
        "gpus": [{"name": text}],
        "packages": {"torch": text},
    }
    told = {"study": results.study | {"name": text, "model": text}, "environment": {text: machine}}
    plain, hostile = Parsed(html), Parsed(page(replace(results, **frames, **told)))

    assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in plain.elements]
    assert not [name for _, attrs in hostile.elements for name in attrs if name.startswith("on")]
    assert hostile.text.count(text) >= 8
    code, data = (
        [s for s in hostile.scripts if ("type" in s[0]) == typed] for typed in (False, True)
    )
    assert [s for s in plain.scripts if "type" not in s[0]] == code
    figures, pictures = (json.loads(content) for _, content in data)
    assert pictures["prompts"] == {"000": text, "001": text}
    assert text in pictures["variants"]
    escaped = (
        text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    )  # as plotly reads text
    assert [escaped in {trace["name"] for trace in figure["data"]} for figure in figures] == [
        True,
        False,
    ]


def test_a_study_that_went_on_under_other_settings_says_in_which(results, html):
    assert "machines differ in" not in html
    key, here = next(iter(results.environment.items()))
    there = here | {"settings": here["settings"] | {"attention_backend": "flash"}}
    several = replace(results, environment={key: here, "other": there})
    assert "settings.attention_backend" in page(several)


def test_a_study_of_another_form_is_named(results):
    with pytest.raises(ValueError, match=r"study\.json: 'prompts' is 5; expected list"):
        page(replace(results, study=results.study | {"prompts": 5}))
    with pytest.raises(ValueError, match=r"environment\.json, 'a': 'gpus' is None; expected list"):
        page(replace(results, environment={"a": {}}))


def test_what_cannot_run_is_said(html):
    assert "unsupported: pab:2: diffusers has no caches for UNet2DConditionModel" in html


def test_a_page_without_images_has_no_comparer(results, tmp_path):
    bare = replace(results, folder=tmp_path)
    assert '<div class="pair">' not in page(bare)
    assert "Time of every step" in page(bare)


def test_images_that_are_too_many_bytes_are_shown_smaller(monkeypatch, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    for budget, side in ((1_000_000, 256), (40_000, 128), (0, 64)):
        monkeypatch.setattr("sdbench.report.pictures.PICTURES_BYTES", budget)
        data = fitting([tmp_path / "noise.png"] * 2)
        assert budget == 0 or sum(map(len, data)) <= budget
        assert Image.open(io.BytesIO(base64.b64decode(data[0].partition(",")[2]))).size == (
            side,
            side,
        )


@pytest.mark.browser
def test_the_page_works_in_a_browser(html, tmp_path):
    with opened(html, tmp_path) as tab:
        assert "page: 4 variants of tiny" in tab.title()
        assert tab.locator(".figure .main-svg").count() >= 2
        _sorts(tab)
        _slides_by_keyboard(tab)
        _compares(tab)


def _sorts(tab):
    def column():
        return tab.locator("#summary tbody tr td:nth-child(2)").all_inner_texts()

    heading = tab.locator("#summary th button").nth(1)
    heading.focus()
    tab.keyboard.press("Enter")
    rising = [float(text) for text in column() if text != "-"]
    assert rising == sorted(rising)
    heading.click()
    assert [float(text) for text in column() if text != "-"] == rising[::-1]
    assert column()[-1] == "-"


def _slides_by_keyboard(tab):
    tab.locator("#slider").focus()
    tab.keyboard.press("End")
    assert (
        tab.evaluate("document.getElementById('image-right').style.clipPath")
        == "inset(0px 0px 0px 100%)"
    )
    tab.keyboard.press("Home")
    assert tab.evaluate("document.querySelector('.edge').style.left") == "0%"


def _compares(tab):
    assert tab.locator("#grid figure").count() == 3
    tab.select_option("#prompt", "001")
    assert tab.locator("#image-left").get_attribute("alt") == f"cfg: {PROMPTS[1]}"
    tab.select_option("#right", "steps:2")
    tab.locator("#difference").click()
    pixels = "map.getContext('2d').getImageData(0, 0, map.width, map.height).data"
    drawn = f"[...{pixels}].some((v, i) => i % 4 < 3 && v)"
    assert tab.evaluate(drawn)
    tab.select_option("#right", "cfg")
    tab.wait_for_function(f"!{drawn}")
