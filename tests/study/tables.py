"""Whether two runs of a study have the same tables, wherever their calls ran."""

import pandas as pd

KEYS = {"runs": ["unit"], "steps": ["unit", "step"], "images": ["unit", "prompt_id", "seed"]}
TIMED = [
    "latency_s",
    "text_s",
    "denoise_s",
    "decode_s",
    "denoiser_s",
    "scheduler_s",
    "rss_peak_bytes",
]
TIMED += ["foreign_load", "foreign_processes", "throttled", "disturbed", "energy_j", "idle_w"]


def assert_same(found, expected, *, without=()):
    """Equal tables but for times, load, memory, and columns that differ by intent."""
    for table, key in KEYS.items():
        frames = [
            getattr(results, table)
            .drop(columns=[*TIMED, *without], errors="ignore")
            .sort_values(key, ignore_index=True)
            for results in (found, expected)
        ]
        pd.testing.assert_frame_equal(*frames)
