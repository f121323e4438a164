"""Texts that people wrote: what their bytes say, and where their lines end.

What a file of a certain kind must hold is in `files.py` and with its readers.
"""

from __future__ import annotations

import codecs
from pathlib import Path

# UTF-32's little-endian mark begins with UTF-16's.
MARKS = {
    codecs.BOM_UTF8: "UTF-8",
    codecs.BOM_UTF32_LE: "UTF-32-LE",
    codecs.BOM_UTF32_BE: "UTF-32-BE",
    codecs.BOM_UTF16_LE: "UTF-16-LE",
    codecs.BOM_UTF16_BE: "UTF-16-BE",
}


def read_text(path: Path) -> str:
    r"""The text of a file, in UTF-8 or as its byte order mark says, without that mark.

    Lines end in "\n", however the file ends them.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not in that encoding, or holds null characters.
    """
    content = path.read_bytes()
    mark = next((mark for mark in MARKS if content.startswith(mark)), b"")
    encoding = MARKS.get(mark, "UTF-8")

    content = content[len(mark) :]
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = _line_after(content[: error.start].decode(encoding, "replace"))
        offset = len(mark) + error.start
        raise ValueError(
            f"line {line}: byte 0x{content[error.start]:02x} at offset {offset} is not {encoding}; "
            "save the file as UTF-8"
        ) from None

    # UTF-16 without a mark reads as UTF-8 with a null after every letter.
    if "\0" in text:
        line = _line_after(text[: text.index("\0")])
        raise ValueError(f"line {line} holds a null character; save the file as UTF-8")
    return _universal(text)


def lines_of(text: str) -> list[str]:
    r"""The lines of a text, which end in "\n", "\r\n" or "\r" alone.

    `str.splitlines` would also end them at characters that belong to a prompt or to a JSON string,
    such as U+2028 or a form feed.
    """
    return _universal(text).split("\n")


def _universal(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _line_after(before: str) -> int:
    """The number of the line on which a text goes on, counted from 1."""
    return len(lines_of(before))
