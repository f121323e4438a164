"""Processor time of this machine: of everything that runs, and of this process."""

import os

import psutil

IDLE = ("idle", "iowait", "guest", "guest_nice")  # a guest's time is in the user's as well


def busy_s() -> float:
    """Processor time of all that runs, and of what a hypervisor gave away, in seconds."""
    times = psutil.cpu_times()._asdict()
    return float(sum(seconds for kind, seconds in times.items() if kind not in IDLE))


def own_s() -> float:
    """Processor time of the threads of this process, in seconds."""
    own = os.times()
    return own.user + own.system
