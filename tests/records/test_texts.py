import pytest

from sdbench.records.texts import lines_of, read_text

TEXT = "ein grüner Stern\nb\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_an_encoding_is_known_by_its_mark(tmp_path, encoding):
    file = tmp_path / "a.txt"
    file.write_bytes(TEXT.encode(encoding))
    assert read_text(file) == TEXT


@pytest.mark.parametrize("order", ["le", "be"])
@pytest.mark.parametrize("width", [16, 32])
def test_either_order_of_bytes_is_known_by_its_mark(tmp_path, width, order):
    file = tmp_path / "a.txt"
    file.write_bytes(f"\ufeff{TEXT}".encode(f"utf-{width}-{order}"))
    assert read_text(file) == TEXT


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_three_ends_of_a_line_are_read_as_one(tmp_path, end):
    file = tmp_path / "a.txt"
    file.write_bytes(TEXT.replace("\n", end).encode())
    assert read_text(file) == TEXT
    assert lines_of(TEXT.replace("\n", end)) == ["ein grüner Stern", "b", ""]


@pytest.mark.parametrize("inner", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e"])
def test_nothing_else_ends_a_line(inner):
    assert lines_of(f"a{inner}b\nc") == [f"a{inner}b", "c"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\ncafé\n".encode("cp1252"), "line 2: byte 0xe9 at offset 5 is not UTF-8"),
        ("a\r\né".encode("cp1252"), "line 2: byte 0xe9 at offset 3 is not UTF-8"),
        ("a\n".encode("utf-16") + b"\xff", "line 2: byte 0xff at offset 6 is not UTF-16-LE"),
        ("a\nb".encode("utf-16-le"), "line 1 holds a null character; save the file as UTF-8"),
        (b"a\nb\0c", "line 2 holds a null character"),
    ],
)
def test_what_is_in_no_known_encoding_is_refused_with_its_line(tmp_path, content, message):
    file = tmp_path / "a.txt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_text(file)
