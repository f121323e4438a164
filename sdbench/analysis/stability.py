"""What the records say of how undisturbed a run was.

How it is watched is in `sdbench.instruments.disturbance`.
"""

import pandas as pd

FOREIGN = 0.1  # cores


def disturbances(runs: pd.DataFrame) -> dict[str, list[str]]:
    """What speaks against the times of every variant, from its measured calls that finished.

    Returns:
        By variant one text for each kind of disturbance; a variant without any is not in it, nor is
        one whose calls did not record it.
    """
    measured = runs[(runs["phase"] == "measured") & (runs["status"] == "ok")]
    disturbed: dict[str, list[str]] = {}
    for variant, calls in measured.groupby("variant"):
        load = calls["foreign_load"].mean()
        shared = int((calls["foreign_processes"].fillna(0) > 0).sum())
        held = int(calls["throttled"].fillna(False).sum())
        reasons = [f"others took {load:.1f} cores"] if load > FOREIGN else []
        reasons += [f"others were on the GPU in {shared} of {len(calls)} calls"] if shared else []
        reasons += [f"the device was held back in {held} of {len(calls)} calls"] if held else []
        if reasons:
            disturbed[str(variant)] = reasons
    return disturbed
