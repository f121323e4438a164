import json

import pytest
from PIL import Image

from sdbench.distill.captions import image_folder


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_list_of_captions_is_read_past_its_byte_order_mark(tmp_path, encoding, end):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    line = json.dumps({"file_name": "a.png", "text": "ein grüner Stern"}, ensure_ascii=False)
    (tmp_path / "metadata.jsonl").write_bytes((line + end).encode(encoding))
    assert [text for _, text in image_folder(tmp_path, side=4).listed] == ["ein grüner Stern"]


@pytest.mark.parametrize("inner", ["\u2028", "\u2029", "\x85"])
def test_a_caption_may_hold_what_splitlines_cuts_at(tmp_path, inner):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    line = json.dumps({"file_name": "a.png", "text": f"a{inner}ring"}, ensure_ascii=False)
    (tmp_path / "metadata.jsonl").write_text(f"{line}\n", encoding="utf-8")
    assert [text for _, text in image_folder(tmp_path, side=4).listed] == [f"a{inner}ring"]


def test_a_list_that_is_not_utf_8_says_where(tmp_path):
    (tmp_path / "metadata.jsonl").write_bytes('{"text": "café"}'.encode("cp1252"))
    with pytest.raises(ValueError, match="line 1: byte 0xe9 at offset 13"):
        image_folder(tmp_path, side=4)


def test_a_list_that_is_missing_is_not_called_malformed(tmp_path):
    with pytest.raises(ValueError, match=r"metadata.jsonl' cannot be read: No such file"):
        image_folder(tmp_path, side=4)


GOOD = '{"file_name": "a.png", "text": "a ring"}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file_name": "a.png", "text": null}', "text must be a text, not None"),
        ('{"file_name": "a.png", "text": ["a", "b"]}', "text must be a text, not"),
        ('{"file_name": "a.png", "text": NaN}', "text must be a text, not nan"),
        ('{"file_name": "a.png"}', "text must be a text, not None"),
        ('{"file_name": 3, "text": "a ring"}', "file_name must be a text, not 3"),
        ('["a.png", "a ring"]', "an image is named by an object"),
        ('{"file_name": "a.png"', "Expecting"),
    ],
)
def test_a_line_that_names_no_image_is_refused_with_its_number(tmp_path, line, message):
    (tmp_path / "metadata.jsonl").write_text(f"{GOOD}\n\n{line}\n")
    with pytest.raises(ValueError, match=f"line 3: {message}"):
        image_folder(tmp_path, side=8)


def test_lists_that_were_put_together_may_have_marks_within(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(f"\ufeff{GOOD}\n\ufeff{GOOD}\n", encoding="utf-8")
    assert len(image_folder(tmp_path, side=8).listed) == 2
