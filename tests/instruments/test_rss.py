import mmap

import pytest

from sdbench.instruments.rss import PeakRss

MIB = 1 << 20


def touch(mib):
    """Take pages that are new: the heap may have old ones."""
    with mmap.mmap(-1, mib * MIB) as pages:
        for _ in range(mib):
            pages.write(b"x" * MIB)


@pytest.mark.skipif(not PeakRss.clear_refs.exists(), reason="needs Linux's /proc")
def test_peak_rss_forgets_what_was_before():
    touch(256)
    with PeakRss() as before:
        pass
    with PeakRss() as during:
        touch(128)
    assert (before.source, during.source) == ("VmHWM", "VmHWM")
    assert during.peak_bytes - before.peak_bytes >= 100 * MIB
    assert before.peak_bytes < during.peak_bytes < before.peak_bytes + 156 * MIB


def test_peak_rss_says_when_it_cannot_be_reset(monkeypatch, tmp_path):
    monkeypatch.setattr(PeakRss, "clear_refs", tmp_path / "absent" / "clear_refs")
    with PeakRss() as rss:
        pass
    assert rss.source == "ru_maxrss"
    assert rss.peak_bytes > 10 * MIB
