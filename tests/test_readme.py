import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def readme():
    spec = importlib.util.spec_from_file_location("readme", ROOT / "tools" / "readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_those_of_the_registries_and_results(readme):
    text = readme.README.read_text(encoding="utf-8")
    assert readme.written(text) == text, "stale: run `python tools/readme.py`"


SMALL = (
    *("emoji-sd/default", "emoji-sd/distill", "emoji-sd/methods", "mini-sd/ranks"),
    *("mini-sd/distill", "mini-sd/distill-full", "mini-sd/cost", "mini-sd/perceive"),
)
LARGE = (
    *("mini-sd/default", "mini-sd/methods", "mini-sd/selective", "mini-sd/students"),
    *("mini-sd/plan", "mini-sd/distances", "mini-sd/steps", "mini-sd/budget"),
    *("mini-sd/precision", "mini-sd/w-student"),
)


@pytest.mark.parametrize(
    "folder",
    [
        *SMALL,
        *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE),
    ],
)
def test_the_tables_of_the_results_are_those_of_their_studies(readme, folder):
    page = readme.RESULTS / folder / "README.md"
    text = page.read_text(encoding="utf-8")
    made = readme.filled(text, readme.STUDIES[folder], file=str(page))
    assert made == text, "stale: run `python tools/readme.py`"


def test_every_page_with_tables_is_tested(readme):
    assert set(readme.STUDIES) == {*SMALL, *LARGE}


def test_a_stale_table_is_seen(readme):
    text = readme.README.read_text(encoding="utf-8")
    assert readme.written(text.replace("median time of one call", "something else")) == text


def test_it_is_short(readme):
    assert len(readme.README.read_bytes()) <= 8000


def test_a_table_without_a_place_is_named(readme):
    with pytest.raises(ValueError, match="no place for 'default study'"):
        readme.written("nothing")
