"""The code blocks of a page, and how they are run: `docs/` shows nothing that was not tried.

A block is quick because of the line above it: `<!-- small: ... -->` gives options that are added to
its commands, or `old => new; ...` for Python and study files. `<!-- needs: gpu -->` (or hub, ray,
slurm, s3) says why a block is not run.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
RUN = ("console", "python", "toml")
NEEDS = frozenset({"gpu", "hub", "ray", "s3", "slurm"})
_BLOCK = re.compile(
    r"(?:<!-- (?P<how>small|needs): (?P<what>[^\n]*) -->\n+)?"
    r"^(?P<indent> *)```(?P<kind>\w+)[^\n]*\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One block: its kind, its text, and what is needed or made small."""

    kind: str
    code: str
    needs: str = ""
    small: str = ""

    def commands(self) -> list[list[str]]:
        """The words of every command, with the options that make it quick."""
        joined = re.sub(r"\\\n\s*", " ", self.code)
        lines = [shlex.split(line, comments=True) for line in joined.splitlines()]
        return [words + shlex.split(self.small) for words in lines if words]

    def text(self) -> str:
        """The code of Python or of a study file, made small.

        Raises:
            ValueError: a replacement is of nothing.
        """
        code = self.code
        for change in filter(None, map(str.strip, self.small.split(";"))):
            old, new = map(str.strip, change.split("=>"))
            if old not in code:
                raise ValueError(f"'{old}' is not in the block")
            code = code.replace(old, new)
        return code


def pages() -> list[Path]:
    """Every page that people write."""
    return sorted(DOCS.rglob("*.md"))


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page that can be run, in order."""
    for found in _BLOCK.finditer(page.read_text("utf-8")):
        indent = len(found["indent"])
        code = "".join(line[indent:] for line in found["code"].splitlines(keepends=True))
        if found["kind"] in RUN:
            how = {found["how"]: found["what"]} if found["how"] else {}
            yield Block(found["kind"], code, how.get("needs", ""), how.get("small", ""))
