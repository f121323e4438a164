"""Strategies of hypothesis for values, texts and bytes of a file that are nearly right."""

import json

from hypothesis import strategies as st

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
DEEP = "[" * 100_000


@st.composite
def spoiled(draw, valid):
    """A JSON value with a few of its entries replaced, missing or added, at any depth."""
    value = json.loads(json.dumps(valid))
    for _ in range(draw(st.integers(1, 3))):
        value = draw(_changed(value))
    return value


@st.composite
def _changed(draw, value):
    keys = (
        list(value)
        if isinstance(value, dict)
        else list(range(len(value)))
        if isinstance(value, list)
        else []
    )
    if not keys or draw(st.integers(0, 9)) == 0:
        return draw(VALUES)
    key = draw(st.sampled_from(keys))
    if isinstance(value, dict) and draw(st.integers(0, 3)) == 0:
        return {name: entry for name, entry in value.items() if name != key}
    changed = value.copy()
    changed[key] = draw(_changed(value[key]))
    return changed


@st.composite
def json_texts(draw, valid):
    """The text of a spoiled JSON value, or one that is no JSON."""
    text = json.dumps(draw(spoiled(valid)))
    return (
        draw(st.sampled_from([text, text[: len(text) // 2], DEEP, "\ufeff" + text, ""]))
        if draw(rarely)
        else text
    )


rarely = st.integers(0, 9).map(lambda number: number == 0)


@st.composite
def damaged(draw, content):
    """Bytes with some overwritten, cut off or put in, most often at a file's beginning and end."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 6))):
        near = draw(st.sampled_from([64, 1024, len(found) or 1]))
        place = draw(st.integers(-near, near)) % (len(found) or 1)
        piece = draw(st.binary(min_size=1, max_size=4))
        how = draw(st.sampled_from(["over", "over", "over", "in", "out", "cut"]))
        if how == "over":
            found[place : place + len(piece)] = piece
        elif how == "in":
            found[place:place] = piece
        elif how == "out":
            del found[place : place + len(piece)]
        else:
            del found[place:]
    return bytes(found)


def toml(fields):
    """A TOML text of fields by name; None has no form there and is left out."""
    return "".join(
        f"{_quoted(name)} = {_toml(value)}\n" for name, value in fields.items() if value is not None
    )


def _toml(value):
    if isinstance(value, dict):
        return (
            "{"
            + ", ".join(
                f"{_quoted(name)} = {_toml(v)}" for name, v in value.items() if v is not None
            )
            + "}"
        )
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(entry) for entry in value if entry is not None) + "]"
    if isinstance(value, str):
        return _quoted(value)
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _quoted(text):
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
