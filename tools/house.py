"""Measures the code: `python tools/house.py [ROOT]`; `tests/test_structure.py` has the bars."""

from __future__ import annotations

import ast
import io
import re
import statistics
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from radon.complexity import cc_visit

ORDER = ("models", "variants", "instruments", "study")
ALLOWED = {"records": set(), "analysis": {"records"}, "report": {"analysis", "records"}}
ALLOWED |= {stage: {*ORDER[:place], "records"} for place, stage in enumerate(ORDER)}
ALLOWED |= {stage: {*ORDER, "records", "analysis"} for stage in ("experiments", "distill")}

GRAMMAR = re.compile(r"sdbench/(variants/(registry|grammar|methods/\w+)|records/names)\.py")
KINDS = "cfg|unguided|last|first|window|every|random|mask|interval|adaptive|cached|steps|scale|lora"
CUTS = {"startswith", "endswith", "removeprefix", "removesuffix", "partition", "rpartition"}
CUTS |= {"split", "rsplit", "match", "fullmatch", "search", "findall", "finditer", "sub"}


@dataclass(frozen=True)
class Source:
    """One file: its path below the root, and its text."""

    path: str
    text: str

    @cached_property
    def nodes(self) -> list[Any]:
        """The nodes of the syntax tree; the first is the module."""
        return list(ast.walk(ast.parse(self.text)))

    def all(self, *kinds: type) -> list[Any]:
        """The nodes of some kinds, at any depth."""
        return [node for node in self.nodes if isinstance(node, kinds)]

    def at(self, node: Any, what: object) -> str:
        """A place, as it is printed."""
        return f"{self.path}:{node.lineno} {what}"


def read(root: Path) -> list[Source]:
    """The files below a root; of a folder that is missing, none."""
    files = [f for part in ("benchmarks", "sdbench") for f in sorted((root / part).rglob("*.py"))]
    return [Source(file.relative_to(root).as_posix(), file.read_text("utf-8")) for file in files]


def functions(source: Source) -> list[tuple[str, int, list[str]]]:
    """Of each function its place, its lines without the docstring, and its body, stripped.

    The options of a command are declarations, one per line, and count nothing.
    """
    found = []
    for node in source.all(ast.FunctionDef):
        first = node.body[0]
        documented = first.end_lineno - first.lineno + 1 if ast.get_docstring(node) else 0
        lines = source.text.splitlines()[first.lineno - 1 + documented : node.end_lineno]
        is_command = any(ast.unparse(own) == "command" for own in node.decorator_list)
        begins = first.lineno if is_command else node.lineno
        length = node.end_lineno - begins + 1 - documented
        found.append((source.at(node, node.name), length, [line.strip() for line in lines]))
    return found


def comments(source: Source) -> tuple[int, int]:
    """How many comments there are, and how many lines of code; a comment for a tool is none."""
    tokens = list(tokenize.generate_tokens(io.StringIO(source.text).readline))
    texts = [token.string for token in tokens if token.type == tokenize.COMMENT]
    code = {t.start[0] for t in tokens if t.type in (tokenize.NAME, tokenize.NUMBER, tokenize.OP)}
    return sum(not re.match(r"# *(noqa|type:|fmt:)", text) for text in texts), len(code)


def imports(source: Source) -> Iterator[tuple[Any, list[str]]]:
    """The modules of ours that are imported, at any depth but not for type checkers only."""
    guards = [node for node in source.all(ast.If) if "TYPE_CHECKING" in ast.unparse(node.test)]
    unseen = {inner for guard in guards for part in guard.body for inner in ast.walk(part)}
    for node in source.all(ast.Import, ast.ImportFrom):
        module = "sdbench" if getattr(node, "level", 0) else getattr(node, "module", "")
        paths = [f"{module}.{alias.name}".strip(".") for alias in node.names if node not in unseen]
        ours = [path for path in paths if re.match(r"(sdbench|benchmarks)\b", path)]
        yield from ((node, path.split(".")) for path in ours)


def against_the_order(source: Source) -> list[str]:
    """The imports of what stands later than the file's own stage, and of benchmarks."""
    package, stage = source.path.split("/")[:2]
    allowed = {stage, *ALLOWED.get(stage, ())}
    found = [(node, parts) for node, parts in imports(source) if package == "sdbench"]
    late = [node for node, parts in found if stage in ALLOWED and not {*parts[1:2]} & allowed]
    late += [node for node, parts in found if parts[0] == "benchmarks"]
    return [source.at(node, ast.unparse(node)) for node in dict.fromkeys(late)]


def circles(sources: Iterable[Source]) -> list[str]:
    """The groups of modules each of which imports itself by way of the others."""
    modules = {s.path[:-3].removesuffix("/__init__").replace("/", "."): s for s in sources}
    reached: dict[str, set[str]] = {}
    for module, source in modules.items():
        names = [(".".join(parts), ".".join(parts[:-1])) for _, parts in imports(source)]
        nearest = {name if name in modules else outer for name, outer in names}
        reached[module] = nearest & modules.keys() - {module}

    for middle in modules:
        for names_reached in reached.values():
            names_reached |= reached[middle] if middle in names_reached else set()
    groups = {tuple(n for n in sorted(to) if m in reached[n]) for m, to in reached.items()}
    return [" <-> ".join(group) for group in sorted(groups) if group]


def subject(node: Any) -> str:
    """The word for what is held: "variant" of `unit.variant.name` and of `row["variant"]`."""
    match node:
        case ast.Name(id=word) | ast.Subscript(slice=ast.Constant(value=str(word))):
            return word
        case ast.Attribute(value=inner, attr="name" | "str") | ast.Subscript(value=inner):
            return subject(inner)
        case ast.Attribute(attr=word):
            return word
        case ast.Call(func=ast.Name(id="parse")) | ast.Call(args=[ast.Name(id="parse"), _]):
            return "variants"
        case ast.Call(func=ast.Name(id="sorted" | "str" | "list" | "enumerate"), args=[inner, *_]):
            return subject(inner)
    return ""


def inspected_names(source: Source) -> list[str]:
    """The places outside of the grammar that cut a variant's name up or compare it with a literal.

    To pick a table's rows of the baseline is none; to ask a variant for the baseline's name is one.
    """
    places: list[str] = []
    for function in source.all(ast.FunctionDef):
        nodes: list[Any] = list(ast.walk(function))
        bound = [(n.target, n.iter) for n in nodes if isinstance(n, (ast.For, ast.comprehension))]
        bound += [(n.targets[0], n.value) for n in nodes if isinstance(n, ast.Assign)]
        held: set[str] = set()
        for _ in range(2):  # `found = map(parse, names)`, then `for one in found`
            held |= {subject(target) for target, value in bound if _of_variant(value, held)}
        asking = [n for n in nodes if _cuts(n, held) or _compares(n, held)]
        places += [source.at(node, ast.unparse(node)) for node in asking]
    return [] if GRAMMAR.fullmatch(source.path) else list(dict.fromkeys(places))


def _of_variant(node: Any, held: set[str]) -> bool:
    return "variant" in subject(node).lower() or subject(node) in held


def _cuts(node: Any, held: set[str]) -> bool:
    if not isinstance(node, ast.Call) or getattr(node.func, "attr", None) not in CUTS:
        return False
    kinds = [re.match(rf"({KINDS})\b", text) for part in node.args for text in _texts(part)]
    return any(kinds) or any(_of_variant(asked, held) for asked in (node.func.value, *node.args))


def _compares(node: Any, held: set[str]) -> bool:
    sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
    words = [subject(side) for side in sides]
    names = [side for side in sides if _of_variant(side, held)]
    texts = [text for side in sides for text in _texts(side)]
    if texts:
        return bool(names) or ("name" in words and any(re.fullmatch(KINDS, text) for text in texts))
    return "BASELINE" in words and any(getattr(side, "attr", "") == "name" for side in names)


def _texts(node: Any) -> list[str]:
    values = [getattr(part, "value", None) for part in getattr(node, "elts", [node])]
    return [value for value in values if isinstance(value, str)]


def pipeline_calls(source: Source) -> list[str]:
    """The places that call a pipeline."""
    calls = [(node, ast.unparse(node.func)) for node in source.all(ast.Call)]
    return [
        source.at(n, f"{name}(...)") for n, name in calls if re.search(r"\b_?pipe(line)?$", name)
    ]


def annotated(source: Source, pattern: str) -> list[str]:
    """Parameters, returns and attributes of an annotation, written as `name: one of a union`."""
    pairs = [(node, node.arg, node.annotation) for node in source.all(ast.arg)]
    pairs += [(node, node.name, node.returns) for node in source.all(ast.FunctionDef)]
    bodies = {part for kind in source.all(ast.ClassDef) for part in kind.body}
    notes_alone = source.all(ast.AnnAssign)
    fields = [n for n in notes_alone if n in bodies or isinstance(n.target, ast.Attribute)]
    pairs += [(node, ast.unparse(node.target), node.annotation) for node in fields]
    notes = [(node, name, ast.unparse(note).split(" | ")) for node, name, note in pairs if note]
    fit = [row for row in notes if any(re.fullmatch(pattern, f"{row[1]}: {k}") for k in row[2])]
    return [source.at(node, name) for node, name, _ in fit]


def undocumented(source: Source) -> list[str]:
    """The public functions, classes and methods without a docstring."""
    parts = [(part.name, part) for part in source.nodes[0].body if hasattr(part, "name")]
    classes = [(name, part.body) for name, part in parts if isinstance(part, ast.ClassDef)]
    parts += [(f"{name}.{n.name}", n) for name, body in classes for n in body if hasattr(n, "name")]
    missing = [(name, part) for name, part in parts if not ast.get_docstring(part)]
    return [source.at(part, name) for name, part in missing if not re.search(r"\b_", name)]


def faults(sources: list[Source]) -> dict[str, list[str]]:
    """By measure, the places of which a good house has none; of calls of a pipeline, one."""
    found: dict[str, list[str]] = {"import circles": circles(sources)}
    for source in sources:
        lines = source.text.splitlines()
        wide = [n for n, line in enumerate(lines, 1) if len(line) > 100]
        spans = [(place, n) for place, n, _ in functions(source)]
        knots = [b for b in cc_visit(source.text) if b.letter != "C" and b.complexity > 12]
        places = {
            "functions above 45 lines": [f"{place} {n}" for place, n in spans if n > 45],
            "complexity above 12": [source.at(b, f"{b.name} {b.complexity}") for b in knots],
            "files above 350 lines": [f"{source.path} {len(lines)}"] * (len(lines) > 350),
            "lines above 100 columns": [f"{source.path}:{n}" for n in wide],
            "imports against the order": against_the_order(source),
            "inspected names of variants": inspected_names(source),
            "calls of a pipeline": pipeline_calls(source),
            "pipelines annotated as Any": annotated(source, r"(.*\.)?_?pipe(line)?: Any"),
            "tensors without a shape": annotated(source, r".*: (torch\.)?Tensor"),
            "public without a docstring": undocumented(source),
        }
        for measure, more in places.items():
            found.setdefault(measure, []).extend(more)
    return found


def report(sources: list[Source]) -> Iterator[str]:
    """All measures, one a line; the places stand below their count."""
    rows = sorted((row for s in sources for row in functions(s)), key=lambda row: -row[1])
    values = [length for _, length, _ in rows]
    p90 = statistics.quantiles(values, n=10, method="inclusive")[-1]
    yield f"functions: {len(values)}, lines: median {statistics.median(values):g}, 90 % {p90:g}"
    yield "\n  ".join(["ten longest functions:", *(f"{place} {n}" for place, n, _ in rows[:10])])

    bodies = [body for _, _, body in rows if len(body) >= 20]
    air = [sum(line[:1] in ("", "#") for line in body) for body in bodies]
    yield f"bodies of 20 lines and more: {len(bodies)}, those of code only: {air.count(0)}"
    yield f"blank and comment lines in them: {sum(air) / sum(map(len, bodies)):.1%}"
    texts, code = (sum(column) for column in zip(*map(comments, sources), strict=True))
    yield f"comments per 100 lines of code: {100 * texts / code:.1f}"

    for measure, places in faults(sources).items():
        yield "\n  ".join([f"{measure}: {len(places)}", *places])


if __name__ == "__main__":
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1]
    sys.stdout.write("\n".join(report(read(root))) + "\n")
