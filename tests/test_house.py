"""The tool that measures the code's shape finds each fault, where it is planted, and only there."""

import pytest

from tools import house
from tools.house import Source


def found(measure, text, path="sdbench/report/page.py"):
    return house.faults([Source(path, text)])[measure]


LINE = "    print()\n"
LONG = "def long():\n" + LINE * 45
BRANCHES = "def knotty(a):\n" + "    if a:\n        print()\n" * 12

PLANTED = {
    "functions above 45 lines": (LONG, LONG.removesuffix(LINE)),
    "complexity above 12": (BRANCHES, BRANCHES.replace("if a:", "with a:", 1)),
    "files above 350 lines": ("x = 1\n" * 351, "x = 1\n" * 350),
    "lines above 100 columns": ("x" * 101, "x" * 100),
    "imports against the order": (
        "def f():\n    from sdbench.study import local",
        "from sdbench.analysis import stats",
    ),
    "pipelines annotated as Any": (
        "def f(pipe: Any): ...",
        "def f(pipe: Pipeline, more: Any): ...",
    ),
    "tensors without a shape": (
        "def f() -> torch.Tensor | None: ...",
        "def f() -> Float[Tensor, 'batch'] | None: ...",
    ),
    "public without a docstring": ("class A: ...", "class _A:\n    def f(self): ..."),
}


@pytest.mark.parametrize("measure", PLANTED)
def test_a_planted_fault_is_found(measure):
    assert len(found(measure, PLANTED[measure][0])) == 1


def test_options_of_a_command_are_no_lines_of_its_function():
    options = "@command\ndef run(\n" + "    a: A = None,\n" * 50 + ") -> None:\n"
    assert found("functions above 45 lines", options + LINE * 45) == []
    assert len(found("functions above 45 lines", options + LINE * 46)) == 1


@pytest.mark.parametrize("measure", PLANTED)
def test_what_keeps_the_bar_is_no_fault(measure):
    assert found(measure, PLANTED[measure][1]) == []


@pytest.mark.parametrize(
    "line",
    [
        "variant.partition(':')",
        "unit.variant.name.startswith('last')",
        "re.fullmatch('[a-z]+:.*', variant.name)",
        "PATTERN.match(study.variants[0])",
        "table['variant'].str.split(':')",
        "[name for name in study.variants if name.endswith('%')]",
        "{name: mask for name, mask in shapes.items() if name.startswith('interval')}",
        "[one for one in map(parse, names) if one.name.rpartition(':')]",
        "row['variant'] == 'plan'",
        "variant in ('steps', 'scale')",
        "'cfg' in study.variants",
        "name != 'unguided'",
        "self.variant.name == BASELINE",
        "parse(text).name == BASELINE",
    ],
)
def test_a_place_that_inspects_a_variants_name_is_found(line):
    assert len(found("inspected names of variants", f"def f():\n    return {line}")) == 1


@pytest.mark.parametrize(
    "line",
    [
        "variant.kind == 'last'",
        "variant.policy is None",
        "runs['variant'] == BASELINE",
        "heading in ('variant', 'verdict')",
        "'variant' in table",
        "path.name.endswith('.png')",
        "text.split(',')",
        "name == 'weight'",
        "study.metrics[0].partition(':')",
        "len(variants) == 2",
    ],
)
def test_a_place_that_asks_something_else_is_none(line):
    assert found("inspected names of variants", f"def f():\n    return {line}") == []


def test_variants_are_followed_through_a_variable():
    text = "def f(names):\n    read = map(parse, names)\n    {v for v in read if v.name == 'cfg'}"
    assert found("inspected names of variants", text) == [
        "sdbench/report/page.py:3 v.name == 'cfg'"
    ]


@pytest.mark.parametrize(
    "file", ["variants/grammar.py", "variants/methods/masks.py", "records/names.py"]
)
def test_the_grammar_may_look_into_names(file):
    text = "def f(variant):\n    return variant.partition(':')"
    assert found("inspected names of variants", text, f"sdbench/{file}") == []


@pytest.mark.parametrize(
    "call",
    ["pipe(**arguments)", "self.pipe(prompt)", "self._pipe()", "group.pipe(prompt)", "pipe()[0]"],
)
def test_a_call_of_a_pipeline_is_found(call):
    assert len(found("calls of a pipeline", call)) == 1


@pytest.mark.parametrize("call", ["pipe.to('cuda')", "denoiser_of(pipe)", "load_pipe(name)"])
def test_other_calls_are_none(call):
    assert found("calls of a pipeline", call) == []


@pytest.mark.parametrize(
    ("stage", "line"),
    [
        ("records", "import sdbench.analysis.stats"),
        ("models", "from sdbench.variants import registry"),
        ("study", "from sdbench import analysis"),
        ("report", "import sdbench"),
        ("report", "from ..study import local"),
        ("cli", "from benchmarks import soak"),
    ],
)
def test_an_import_against_the_order_is_found(stage, line):
    assert len(found("imports against the order", line, f"sdbench/{stage}/a.py")) == 1


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("sdbench/study/a.py", "from sdbench.models import registry"),
        ("sdbench/cli/a.py", "import sdbench.report"),
        ("benchmarks/a.py", "import sdbench"),
        ("sdbench/models/a.py", "if TYPE_CHECKING:\n    from sdbench.study import study"),
    ],
)
def test_an_import_in_the_order_is_none(path, line):
    assert found("imports against the order", line, path) == []


def modules(**lines):
    return [Source(f"sdbench/{name}.py", line) for name, line in lines.items()]


def test_a_circle_of_imports_is_found_also_within_functions():
    a, b = "from sdbench.b import x", "def f():\n    from sdbench import c"
    sources = modules(a=a, b=b, c="import sdbench.a", d="import sdbench.a")
    assert house.circles(sources) == ["sdbench.a <-> sdbench.b <-> sdbench.c"]


def test_imports_one_way_or_for_a_type_checker_are_no_circle():
    guarded = "if TYPE_CHECKING:\n    from sdbench.a import X"
    assert house.circles(modules(a="from sdbench import b", b=guarded)) == []


def test_a_functions_length_leaves_its_docstring_out():
    text = 'def f():\n    """One.\n\n    Two.\n    """\n\n    # why\n    return 1\n'
    assert house.functions(Source("a.py", text)) == [("a.py:1 f", 4, ["", "# why", "return 1"])]


def test_comments_for_tools_and_docstrings_do_not_count():
    text = '"""Text."""\n# why\nx = 1  # unit\ny = (\n    2,\n)  # noqa: E501\n'
    assert house.comments(Source("a.py", text)) == (2, 4)


def test_the_report_has_a_line_for_every_measure(tmp_path):
    (tmp_path / "sdbench").mkdir()
    airy = "def airy():\n" + "    x = 1\n\n" * 11
    (tmp_path / "sdbench" / "a.py").write_text(airy + LONG + "def short(): ...\n")
    lines = list(house.report(house.read(tmp_path)))
    assert lines[0] == "functions: 3, lines: median 22, 90 % 41.2"
    assert lines[2:4] == [
        "bodies of 20 lines and more: 2, those of code only: 1",
        "blank and comment lines in them: 15.2%",
    ]
    assert "functions above 45 lines: 1\n  sdbench/a.py:24 long 46" in lines
    measures = house.faults(house.read(tmp_path)).keys()
    assert {line.partition(":")[0] for line in lines} >= measures
