"""The table of conclusions is drawn from what is stored."""

from tools import conclusions


def test_what_is_written_is_not_stale():
    stored = conclusions.WRITTEN.read_text("utf-8")
    assert stored == conclusions.written(), "stale: run `python tools/conclusions.py`"
