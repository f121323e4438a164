import json
from pathlib import Path

import pytest

from benchmarks.observers import Observer, simulated, written
from sdbench.analysis.perception.settings import Settings
from sdbench.records.answers import checksum
from sdbench.records.files import read_table
from sdbench.records.schema import validate
from sdbench.records.store import read
from tests.cli.commands import invoke, words

STORED = Path(__file__).parents[2] / "results" / "mini-sd" / "default"
VARIANTS = ("last:20%", "lora")


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("answers")
    settings = Settings(variants=VARIANTS, trials=16)
    paths = []
    for file in simulated(read(STORED), settings, [Observer()] * 2, half=0.01):
        paths.append(folder / f"{file.person}.json")
        paths[-1].write_text(written(file, settings.seed))
    return paths


def test_a_page_is_written(tmp_path):
    page = tmp_path / "test.html"
    options = ["--variants", ",".join(VARIANTS), "--mode", "abx", "--trials", 4, "--limit", 2]
    done = invoke("perceive", STORED, *options, "--html", page)
    assert done.exit_code == 0, done.output
    assert "test.html: 0." in done.output
    assert "Which image is X?" in page.read_text()


def test_answers_are_judged_and_written(answers, tmp_path):
    done = invoke("perceive", *answers, "--study", STORED, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert words(done).startswith("SIMULATED: 2 of 2 who answered are programs, not people.")
    assert "found from %" in done.output
    validate(read_table(tmp_path / "out", "answers"), "answers")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "answers.parquet",
        "perceive.md",
        "perceive.png",
        "psychometric.png",
    }


def test_a_folder_stands_for_its_files(answers, tmp_path):
    done = invoke("perceive", answers[0].parent, "--study", STORED)
    assert done.exit_code == 0, done.output
    assert words(done).startswith("SIMULATED: 2 of 2 ")
    assert "holds no file of answers" in invoke("perceive", tmp_path, "--study", STORED).output


def test_answers_that_cannot_be_judged_are_one_line(answers, tmp_path):
    content = json.loads(answers[0].read_text())
    broken = tmp_path / "broken.json"

    def said(text, study=STORED, *further):
        broken.write_text(text)
        done = invoke("perceive", broken, *further, "--study", study)
        assert done.exit_code == 2
        assert done.output.startswith("error: ")
        assert done.output.count("\n") == 1
        return done.output

    assert "is not readable JSON" in said(answers[0].read_text()[:200])
    assert "its checksum does not fit" in said(json.dumps(content | {"person": "other"}))
    other = content | {"page": "0" * 16}
    signed = json.dumps(other | {"checksum": checksum(other)})
    assert "answers page 0000000000000000; from" in said(signed)
    assert "give the answers of one page at a time" in said(signed, STORED, answers[1])
    assert "are both of 'simulated-01'" in said(answers[0].read_text(), STORED, answers[0])
    of_other = STORED.parent / "selective" / "time"
    assert "answers a page of another study" in said(answers[0].read_text(), of_other)
    assert "is missing" in invoke("perceive", tmp_path / "no.json", "--study", STORED).output


def test_what_no_page_can_show_is_one_line(tmp_path):
    def said(*arguments):
        done = invoke("perceive", *arguments)
        assert done.exit_code == 2
        assert done.output.count("\n") == 1
        return done.output

    page = ["--html", tmp_path / "x.html"]
    bare = STORED.parent / "distances"
    assert "give --html to write a page, or --study" in said(STORED)
    assert "--html needs --variants" in said(STORED, *page)
    assert "a page is of one study, not of 2" in said(STORED, STORED, *page)
    assert "no images of 'nothing'" in said(STORED, "--variants", "nothing", *page)
    assert "unknown mode 'x'" in said(STORED, "--variants", "lora", "--mode", "x", *page)
    assert "was stored without its images" in said(bare, "--variants", "lora", *page)
    assert "--limit takes positive numbers" in said(
        STORED, "--variants", "lora", "--limit", "0", *page
    )
