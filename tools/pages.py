"""What mkdocs does not know: pages made from the code, and the pages of `results/` (`mkdocs.yml`).

A page has `<!-- generated: NAME -->` where a table comes from a registry, the schema or the command
line. The result pages are the repository's own, with their pictures.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import typer
from mkdocs.structure.files import File, Files

import sdbench
from sdbench.cli import app
from sdbench.records.schema import TABLES, columns
from tools import readme

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
FETCHED = re.compile(r'<script src="https?://[^"]*"></script>')
PLACE = re.compile(r"<!-- generated: ([a-z]+) -->")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the result pages with their pictures, the commands and the Python reference."""
    for page in result_pages():
        files.append(File.generated(config, site_of(page), content=result_page(page)))
        for picture in sorted(page.parent.glob("*.png")):
            place = f"{site_of(page).removesuffix('.md')}/{picture.name}"
            files.append(File.generated(config, place, abs_src_path=str(picture)))
    files.append(File.generated(config, "reference/commands.md", content=commands()))
    files.append(File.generated(config, "reference/api.md", content=api()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill the places of a page that are generated."""
    return PLACE.sub(lambda place: GENERATED[place[1]](), markdown)


def on_post_page(output: str, **_: Any) -> str:
    """Leave out the script that a page would fetch from a host.

    The plugin `offline` adds it for searching in pages that are opened from a folder.
    """
    return FETCHED.sub("", output)


on_post_template = on_post_page


def result_pages() -> list[Path]:
    """The pages of the stored results, and those that are drawn from several."""
    return [*sorted(RESULTS.rglob("README.md")), *sorted(RESULTS.glob("*.md"))]


def site_of(page: Path) -> str:
    """Where a result page is on the site, from the site's root."""
    place = page.relative_to(ROOT)
    return f"{place.parent}.md" if page.name == "README.md" else str(place)


def result_page(page: Path) -> str:
    """A result page with links that hold on the site.

    Links to files that are not on the site become their names.
    """
    text = page.read_text("utf-8")
    if not text.startswith("#"):
        text = f"# {page.parent.relative_to(RESULTS)}\n\n{text}"
    return LINK.sub(lambda link: _moved(link, page), text)


def _moved(link: re.Match[str], page: Path) -> str:
    shown, words, target, part = link[1], link[2], link[3], link[4] or ""
    if "://" in target:
        return link[0]
    there = Path(os.path.normpath(page.parent / target))
    here = PurePosixPath(site_of(page)).parent
    if there in result_pages():
        place = site_of(there)
    elif there.parent == page.parent and there.suffix == ".png":
        place = f"{site_of(page).removesuffix('.md')}/{there.name}"
    else:
        return f"{words} (`{there.relative_to(ROOT).as_posix()}`)"
    return f"{shown}[{words}]({os.path.relpath(place, here)}{part})"


def commands() -> str:
    """Every command with its options, from the command line itself."""
    root: Any = typer.main.get_command(app)
    lines = ["# Commands", "", "What `sdbench COMMAND --help` prints, in one page.", ""]
    for name, command in sorted(root.commands.items()):
        lines += _command(name, command)
    return "\n".join(lines) + "\n"


def _command(name: str, command: Any) -> Iterator[str]:
    help_text = (command.help or "").split("\f")[0]
    yield from (f"## `sdbench {name}`", "", _escaped(help_text), "")
    options = [own for own in command.params if own.param_type_name == "option"]
    arguments = [own for own in command.params if own.param_type_name == "argument"]
    if arguments:
        yield from (f"Takes {', '.join(f'`{own.name.upper()}`' for own in arguments)}.", "")
    yield from ("| option | default | meaning |", "|---|---|---|")
    for own in options:
        names = ", ".join(f"`{text}`" for text in (*own.opts, *own.secondary_opts))
        yield f"| {names} | {_default(own)} | {_cell(own.help or '')} |"
    yield ""


def _default(option: Any) -> str:
    if option.required:
        return "required"
    value = option.default
    return "" if value is None or callable(value) or value is False else f"`{value}`"


def api() -> str:
    """A section for every public name."""
    lines = ["# Python", "", sdbench.__doc__ or "", ""]
    for name, home in sorted(sdbench._HOME.items()):
        lines += [f"## `sdbench.{name}`", "", f"::: {home}.{name}", ""]
    lines += ["## `sdbench.distill`", "", "::: sdbench.distill.trainer.distill", ""]
    return "\n".join(lines)


def tables() -> str:
    """The columns of every table, from the schema."""
    lines = []
    for table in TABLES:
        lines += [f"## {table}", "", "| column | type | unit | meaning |", "|---|---|---|---|"]
        for name, column in columns(table).items():
            meaning = column.meaning + ("; may be missing" if column.nullable else "")
            lines.append(f"| `{name}` | {column.dtype} | {column.unit} | {_cell(meaning)} |")
        lines.append("")
    return "\n".join(lines)


def families() -> str:
    """The families and schedulers of the tests, as `tests.families.support` measured them."""
    return (RESULTS / "pipelines" / "families.md").read_text("utf-8")


GENERATED: dict[str, Callable[[], str]] = {
    "variants": readme.variants,
    "metrics": readme.metrics,
    "pipelines": families,
    "tables": tables,
}


def _cell(text: str) -> str:
    """A text that stands in a cell of a table."""
    return _escaped(" ".join(text.split())).replace("|", "\\|")


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace("[", "\\[")
