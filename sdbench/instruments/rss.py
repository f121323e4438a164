"""Peak resident memory of the process; memory within it is in `memory.py`. Loads no torch."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Self


class PeakRss:
    """Peak resident memory of this process during a block, and where the figure comes from.

    After exit `peak_bytes` and `source`: `VmHWM` is the peak since the block began (Linux, counter
    reset on entry); `ru_maxrss` is the peak since the process began, where the system allows no
    reset.
    """

    status = Path("/proc/self/status")
    clear_refs = Path("/proc/self/clear_refs")

    def __enter__(self) -> Self:
        """Begin."""
        try:
            self.clear_refs.write_text("5")  # proc(5): 5 resets the peak to the present size
            self.source = "VmHWM"
        except OSError:
            self.source = "ru_maxrss"
        return self

    def __exit__(self, *exc: object) -> None:
        """Sum up."""
        if self.source == "VmHWM":
            peak = re.search(r"^VmHWM:\s+(\d+) kB$", self.status.read_text(), re.MULTILINE)
            assert peak, f"{self.status} has no VmHWM"
            self.peak_bytes = int(peak[1]) * 1024
        else:
            import resource  # absent on Windows

            unit_bytes = 1 if sys.platform == "darwin" else 1024
            self.peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes
