"""The answers of a blind test as its page writes them: one JSON file per person, checked.

What was right is not in the file: `sdbench.analysis.perception` knows it from the study.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdbench.records.files import NUMBER, read_json, require

FORMAT = 1
CODE = re.compile(r"[A-Za-z0-9_\-]{1,24}")
"""What a person may choose as a code."""
MOST_SCALE = 1000
MOST_MS = 10**10  # four months: a page that stayed open
_FIELDS: dict[str, tuple[type, ...]] = {
    "page": (str,),
    "settings": (str,),
    "seed": (int,),
    "person": (str,),
    "simulated": (bool,),
    "scale": NUMBER,
    "answers": (list,),
    "checksum": (str,),
}
_ANSWER: dict[str, tuple[type, ...]] = {
    "trial": (int,),
    "shown": (list,),
    "chosen": (str,),
    "milliseconds": (int,),
}
_OFFSET, _PRIME, _WORD = 0x811C9DC5, 0x01000193, 0xFFFFFFFF  # of FNV-1a in 32 bits


@dataclass(frozen=True)
class Answer:
    """One choice.

    Attributes:
        trial: its number in the page.
        shown: which of the trial's two images stood at A, and which at B: (0, 1) or (1, 0).
        chosen: "A" or "B".
        milliseconds: from the showing of the images to the choice.
    """

    trial: int
    shown: tuple[int, int]
    chosen: str
    milliseconds: int

    @property
    def image(self) -> int:
        """Which of the trial's two images was chosen."""
        return self.shown["AB".index(self.chosen)]


@dataclass(frozen=True)
class AnswerFile:
    """What one person answered.

    Attributes:
        path: the file.
        page: hash of the page.
        settings: of the page, as `Settings.token` writes them.
        person: the code that the person chose.
        simulated: whether a program answered.
        scale: pixels of the screen for a pixel of the image.
        answers: in the order in which they were given.
    """

    path: Path
    page: str
    settings: str
    person: str
    simulated: bool
    scale: float
    answers: tuple[Answer, ...]


def read_answers(path: Path) -> AnswerFile:
    """Read and check a file of answers.

    Raises:
        ValueError: the file is no readable JSON, is of another form, or does not fit its checksum;
            names the file.
    """
    content = read_json(path)
    if content.get("sdbench_answers") != FORMAT:
        raise ValueError(
            f"{path} holds no answers of a blind test: 'sdbench_answers' is "
            f"{content.get('sdbench_answers')!r}; expected {FORMAT}"
        )
    require(content, _FIELDS, source=str(path))
    if checksum(content) != content["checksum"]:
        raise ValueError(f"{path} was changed after the page wrote it: its checksum does not fit")
    if not CODE.fullmatch(content["person"]):
        raise ValueError(
            f"{path}: the code {content['person']!r} is not 1 to 24 letters, digits, - and _"
        )
    if not 0 < content["scale"] <= MOST_SCALE:
        raise ValueError(f"{path}: 'scale' is {content['scale']!r}; expected 0 to {MOST_SCALE}")

    answers = tuple(_answer(one, str(path)) for one in content["answers"])
    trials = [answer.trial for answer in answers]
    if len(set(trials)) < len(trials):
        raise ValueError(f"{path}: a trial is answered twice")
    return AnswerFile(
        path,
        page=content["page"],
        settings=content["settings"],
        person=content["person"],
        simulated=content["simulated"],
        scale=float(content["scale"]),
        answers=answers,
    )


def checksum(content: Mapping[str, Any]) -> str:
    """The checksum of a file of answers, over all else that it holds.

    It shows a file that was cut off or changed by mistake. It is no signature: whoever reads the
    page's program can compute it as well.

    Source: Fowler, Noll and Vo, the hash FNV-1a in 32 bits, of the compact JSON in UTF-8.
    """
    rest = {name: value for name, value in content.items() if name != "checksum"}
    try:
        text = json.dumps(rest, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half of a character, which no page writes
        return ""
    return f"{fnv(text):08x}"


def fnv(text: bytes) -> int:
    """The hash FNV-1a of some bytes, in 32 bits."""
    value = _OFFSET
    for byte in text:
        value = (value ^ byte) * _PRIME & _WORD
    return value


def _answer(content: Any, source: str) -> Answer:
    """One entry of the list of answers."""
    if not isinstance(content, dict):
        raise ValueError(f"{source}: an answer is {content!r}; expected an object")
    require(content, _ANSWER, source=source)
    shown, chosen = content["shown"], content["chosen"]
    if shown not in ([0, 1], [1, 0]) or any(isinstance(one, bool) for one in shown):
        raise ValueError(f"{source}: 'shown' is {shown!r}; expected [0, 1] or [1, 0]")
    if chosen not in ("A", "B"):
        raise ValueError(f"{source}: 'chosen' is {chosen!r}; expected A or B")
    if not 0 <= content["milliseconds"] <= MOST_MS or content["trial"] < 0:
        raise ValueError(f"{source}: a trial's number or time is below 0, or the time is no time")
    return Answer(content["trial"], (shown[0], shown[1]), chosen, content["milliseconds"])
