"""Every block of every page runs as it stands, at a small size."""

import re

import pytest

from sdbench.cli import app
from tests.docs import blocks
from tests.docs.blocks import Block

PAGES = {page.relative_to(blocks.DOCS).as_posix(): page for page in blocks.pages()}
RUNNING = {
    name: page for name, page in PAGES.items() if any(not b.needs for b in blocks.blocks(page))
}


def run(block, folder, namespace):
    if block.kind == "toml":
        named = re.match(r"# (\S+\.toml)\n", block.code)
        if named:
            (folder / named[1]).write_text(block.text(), "utf-8")
    elif block.kind == "python":
        exec(compile(block.text(), "<page>", "exec"), namespace)
    else:
        for program, *words in block.commands():
            assert program == "sdbench", f"{program} stands in a bash block"
            status = app(words, standalone_mode=False)
            assert not status, " ".join(words)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", RUNNING)
def test_the_blocks_of_a_page_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for block in blocks.blocks(PAGES[name]):
        if not block.needs:
            run(block, tmp_path, namespace)


@pytest.mark.parametrize("name", PAGES)
def test_what_is_not_run_says_what_it_needs(name):
    needs = {block.needs for block in blocks.blocks(PAGES[name])} - {""}
    assert needs <= blocks.NEEDS


def test_blocks_are_found_and_made_small(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- small: --num-steps 4 -->\n```console\nsdbench run \\\n  --seeds 0  # a note\n```\n"
        "<!-- needs: gpu -->\n```python\nx\n```\n"
        "<!-- small: 50 => 4; a => b -->\n    ```python\n    a = 50\n    ```\n"
        "```text\nnothing\n```\n"
    )
    found = list(blocks.blocks(page))
    assert [block.kind for block in found] == ["console", "python", "python"]
    assert found[0].commands() == [["sdbench", "run", "--seeds", "0", "--num-steps", "4"]]
    assert found[1].needs == "gpu"
    assert found[2].text() == "b = 4\n"
    with pytest.raises(ValueError, match="is not in the block"):
        Block("python", "a = 1", small="b => c").text()
