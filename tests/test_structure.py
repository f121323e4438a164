"""The house holds: imports go one way, the light parts stay light, names say what is inside, the README names all."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "sdbench"
WEIGHTS = PACKAGE / "models" / "mini_sd" / "weights"
FILES = sorted(PACKAGE.rglob("*.py"))

ORDER = ["models", "variants", "instruments", "study"]
ALLOWED = {"records": set(), "analysis": {"records"}, "report": {"analysis", "records"}}
ALLOWED |= {stage: {*ORDER[:place], "records"} for place, stage in enumerate(ORDER)}
ALLOWED |= {stage: {*ORDER, "records", "analysis"} for stage in ("experiments", "distill")}


def stage_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(source: str) -> Iterator[str]:
    """Our modules that a source imports, at any depth; a relative import is an error of its own."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (
                alias.name for alias in node.names if alias.name.partition(".")[0] == "sdbench"
            )
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            if node.module == "sdbench":
                yield from (f"sdbench.{alias.name}" for alias in node.names)
            elif (node.module or "").startswith("sdbench."):
                yield str(node.module)


def against_the_order(stage: str, source: str) -> list[str]:
    allowed = ALLOWED[stage] | {stage}
    return [
        name
        for name in imported(source)
        if name.split(".")[1:2] == [] or name.split(".")[1] not in allowed
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_one_way(file):
    if stage_of(file) in ALLOWED:
        assert against_the_order(stage_of(file), file.read_text()) == []


@pytest.mark.parametrize(
    ("stage", "source"),
    [
        ("records", "import sdbench.analysis.stats"),
        ("models", "from sdbench.variants import registry"),
        ("analysis", "def f():\n    from sdbench import report"),
        ("report", "import sdbench"),
    ],
)
def test_an_import_against_the_order_is_seen(stage, source):
    assert len(against_the_order(stage, source)) == 1


def test_every_folder_of_the_package_has_its_place():
    folders = {stage_of(file) for file in FILES if file.parent != PACKAGE}
    assert folders <= {*ALLOWED, "cli"}


def test_names_say_the_job():
    vague = {"base", "common", "helper", "helpers", "manager", "misc", "util", "utils"}
    assert [
        str(file) for file in FILES if vague & {file.stem, *file.relative_to(PACKAGE).parent.parts}
    ] == []


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )


HELP = "from sdbench.cli import app; app(['--help'], standalone_mode=False)"


@pytest.mark.parametrize(
    "code", ["import sdbench", "import sdbench.analysis", "import sdbench.report", HELP]
)
def test_torch_is_not_loaded_before_it_is_needed(code):
    assert (
        python(f"{code}\nimport sys; print('torch' in sys.modules)").stdout.split()[-1] == "False"
    )


@pytest.mark.parametrize(
    ("code", "limit_s"), [("import sdbench", 0.3), (HELP, 1.0)], ids=["import", "help"]
)
def test_starting_is_quick(code, limit_s):
    assert min(cpu_seconds(code) for _ in range(5)) < limit_s


def cpu_seconds(code: str) -> float:
    """Processor time, so that what else the machine does counts little."""
    before = os.times()
    python(code)
    after = os.times()
    return (
        after.children_user - before.children_user + after.children_system - before.children_system
    )


def test_no_large_file_but_the_weights():
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    large = [file for file in files if file.is_file() and file.stat().st_size > 3e6]
    assert [str(file) for file in large if WEIGHTS not in file.parents] == []


def unnamed(names: Iterable[str], page: str) -> list[str]:
    """The names that no code span of a page begins with."""
    return [name for name in names if not re.search(rf"`{re.escape(name)}[`:]", page)]


def test_the_readme_names_every_variant_and_metric():
    from sdbench.instruments.quality import METRICS
    from sdbench.variants.grammar import VARIANTS

    assert unnamed([*VARIANTS, *METRICS], (ROOT / "README.md").read_text()) == []


def test_a_name_that_is_missing_is_seen():
    assert unnamed(["last", "lpips", "cfg"], "`last:20%`, `lpips` and cfg") == ["cfg"]
