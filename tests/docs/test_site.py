"""The site's pages: those that are listed exist, and what is generated covers the code."""

import re

import pytest

import sdbench
from sdbench.cli import app
from sdbench.instruments.quality import METRICS
from sdbench.records.schema import TABLES, columns
from sdbench.variants.grammar import VARIANTS
from tests.docs.blocks import DOCS, pages

ROOT = DOCS.parent
GENERATED = {"reference/commands.md", "reference/api.md"}


@pytest.fixture(scope="module")
def hooks():
    pytest.importorskip("mkdocs", reason="of the extra docs; `nox -s docs` builds the whole site")
    from tools import pages

    return pages


def listed():
    """The pages of the navigation, read without mkdocs' own tags."""
    return set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text().split("\nnav:")[1]))


def test_every_page_is_in_the_navigation_and_exists():
    written = {page.relative_to(DOCS).as_posix() for page in pages()}
    assert listed() == written | GENERATED


def test_a_page_begins_with_its_only_title():
    for page in pages():
        text = re.sub(r"^ *```.*?^ *```$", "", page.read_text("utf-8"), flags=re.M | re.S)
        assert re.findall(r"^# .+", text, flags=re.M) == [text.splitlines()[0]], page


def test_pictures_have_a_text():
    for page in pages():
        assert not re.search(r"!\[\s*\]\(", page.read_text("utf-8")), page


def test_links_between_pages_lead_somewhere():
    drawn = {f"results/{name}.md" for name in ("claims", "conclusions")}
    results = drawn | set(map(site_page, (ROOT / "results").rglob("README.md")))
    known = {page.relative_to(DOCS).as_posix() for page in pages()} | GENERATED | results
    for page in pages():
        for target in re.findall(r"\]\(([^)#\s]+\.md)", page.read_text("utf-8")):
            if "://" not in target:
                there = (page.parent / target).resolve().relative_to(DOCS.resolve()).as_posix()
                assert there in known, f"{page}: {target}"


def site_page(path):
    return f"{path.parent.relative_to(ROOT).as_posix()}.md"


def test_every_command_and_option_is_named(hooks):
    import typer

    text = hooks.commands()
    for name, command in typer.main.get_command(app).commands.items():
        assert f"## `sdbench {name}`" in text
        for option in command.params:
            if option.param_type_name == "option":
                assert f"`{option.opts[0]}`" in text


def test_every_public_name_column_variant_and_metric_is_there(hooks):
    assert all(f"## `sdbench.{name}`" in hooks.api() for name in sdbench.__all__)
    text = hooks.tables()
    assert all(f"| `{name}` |" in text for table in TABLES for name in columns(table))
    assert all(
        f"`{name}" in hooks.on_page_markdown("<!-- generated: variants -->") for name in VARIANTS
    )
    assert all(
        f"`{name}" in hooks.on_page_markdown("<!-- generated: metrics -->") for name in METRICS
    )


def test_links_of_result_pages_hold_on_the_site(hooks):
    text = hooks.result_page(ROOT / "results" / "mini-sd" / "students" / "README.md")
    assert "](distill.md)" in text
    assert "](../claims.md)" in text
    text = hooks.result_page(ROOT / "results" / "mini-sd" / "plan" / "README.md")
    assert "](plan/plan.png)" in text
    text = hooks.result_page(ROOT / "results" / "mini-sd" / "cost" / "README.md")
    assert "(`notebooks/04_cost_model.ipynb`)" in text


def test_the_site_is_built_without_a_warning_and_fetches_nothing(hooks, tmp_path, monkeypatch):
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    monkeypatch.chdir(ROOT)
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path)))
    built = sorted(tmp_path.rglob("*.html"))
    assert len(built) > len(listed())
    for page in built:
        text = page.read_text("utf-8")
        assert not re.search(r'<(?:script|img|iframe)[^>]* src="https?:', text), page
        assert not re.search(r'<link[^>]* rel="stylesheet"[^>]* href="https?:', text), page
