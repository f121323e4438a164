from sdbench.cli.console import console
from tests.cli.commands import invoke


def test_a_study_without_times_is_reported(untimed):
    done = invoke("report", untimed)
    assert done.exit_code == 0, done.output


def test_every_column_is_printed_whole_where_it_is_asked_for(small, monkeypatch):
    monkeypatch.setattr(console, "width", 40)
    narrow, wide = invoke("report", small[0]), invoke("report", small[0], "--wide")
    assert (narrow.exit_code, wide.exit_code) == (0, 0)
    assert "ideal %" not in narrow.output
    (head,) = [line for line in wide.output.splitlines() if "ideal %" in line]
    assert "memory MB" in head
    assert console.width == 40


def test_a_study_without_times_has_a_page(untimed, tmp_path):
    done = invoke("report", untimed, "--html", tmp_path / "page.html")
    assert done.exit_code == 0, done.output
    assert "page.html: " in done.output


def test_a_table_is_written_in_every_form(small, tmp_path):
    files = [tmp_path / name for name in ("t.md", "t.csv", "t.tex")]
    options = zip(("--markdown", "--csv", "--latex"), files, strict=True)
    done = invoke("report", small[0], *(part for option in options for part in option))
    assert done.exit_code == 0, done.output
    assert all("last:50" in file.read_text() for file in files)
