import json

import pytest

from sdbench.records.files import read_json, read_prompts


def prompts_of(tmp_path, content, encoding="utf-8", **how):
    file = tmp_path / "prompts.txt"
    file.write_bytes(content.encode(encoding))
    return read_prompts(file, **how)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_prompts_come_without_a_byte_order_mark(tmp_path, encoding):
    assert prompts_of(tmp_path, "a red circle\r\nb\r\n", encoding) == ("a red circle", "b")


def test_joined_files_leave_no_mark_inside_of_the_list(tmp_path):
    assert prompts_of(tmp_path, "\ufeffa\n\ufeffb\n") == ("a", "b")


@pytest.mark.parametrize("inner", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e"])
def test_a_prompt_may_hold_what_splitlines_cuts_at(tmp_path, inner):
    assert prompts_of(tmp_path, f"a red{inner}circle\nb\n") == (f"a red{inner}circle", "b")


def test_blank_lines_and_blanks_around_a_prompt_are_no_part_of_it(tmp_path):
    assert prompts_of(tmp_path, "\n  a \t\n \n\rb\r\n\n") == ("a", "b")


@pytest.mark.parametrize("content", ["", "\ufeff", " \n\n\t\r\n"])
def test_a_file_without_any_prompt_is_refused(tmp_path, content):
    with pytest.raises(ValueError, match=r"prompts\.txt' has no prompt"):
        prompts_of(tmp_path, content)


def test_a_prompt_that_is_there_twice_is_named_with_its_lines(tmp_path):
    with pytest.raises(ValueError, match="twice, on lines 2 and 5: 'a ring'"):
        prompts_of(tmp_path, "b\na ring\n\nc\n a ring \n")


def test_a_long_prompt_is_shortened_in_the_error(tmp_path):
    with pytest.raises(ValueError, match=f"on lines 1 and 2: '{'a' * 60}\\.\\.\\.'$"):
        prompts_of(tmp_path, f"{'a' * 200}\n{'a' * 200}\n")


def test_prompts_to_learn_from_may_repeat(tmp_path):
    assert prompts_of(tmp_path, "a\nb\na\n", distinct=False) == ("a", "b", "a")


def test_a_file_of_prompts_that_is_not_utf_8_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="cannot be read: line 2: byte 0xe9 at offset 5") as caught:
        prompts_of(tmp_path, "a\ncafé\n", "cp1252")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_an_object_is_read_past_its_byte_order_mark(tmp_path, encoding):
    file = tmp_path / "card.json"
    file.write_bytes(json.dumps({"a": "\u2028"}, ensure_ascii=False).encode(encoding))
    assert read_json(file) == {"a": "\u2028"}
