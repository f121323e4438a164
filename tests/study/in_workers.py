"""What the workers of Ray do in `test_ray.py`: they note their calls, and come to harm if told."""

import os
import time
from pathlib import Path

FOLDER = "SDBENCH_TEST_FOLDER"


def prepare():
    """Run in every worker's process as it starts."""
    from sdbench.models import registry
    from sdbench.study import local

    folder = Path(os.environ[FOLDER])
    observe = local.observe

    def watched(pipe, unit, work, **how):
        with (folder / f"calls-{os.getpid()}").open("a") as file:
            file.write(f"{unit.id}\n")
        if unit.phase == "measured":
            _harm(folder, unit.variant.name)
        return observe(pipe, unit, work, **how)

    registry.lay_out = lambda pipe: None  # it times layouts, and two workers may choose two
    local.observe = watched


def _harm(folder, variant):
    if (folder / f"dies-{variant}").exists():
        os._exit(1)
    if (folder / f"raises-{variant}").exists():
        raise RuntimeError("out of luck")
    try:  # one worker only can rename the file
        (folder / f"hangs-{variant}").rename(folder / f"hanging-{os.getpid()}")
    except FileNotFoundError:
        return
    time.sleep(600)  # until it is killed
