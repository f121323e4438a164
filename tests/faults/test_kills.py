import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KILLS = os.environ.get("SDBENCH_KILLS", "3")


@pytest.mark.slow  # about a minute each, most of it the writers' own start
@pytest.mark.parametrize("family", ["store", "runner", "sensitivity", "distillation"])
def test_a_writer_killed_at_random_moments_loses_and_repeats_nothing(tmp_path, family):
    """`python -m tests.faults.driver FAMILY KILLS SEED FOLDER` kills at the same moments again."""
    arguments = [family, KILLS, str(secrets.randbelow(2**32)), str(tmp_path)]
    command = [sys.executable, "-m", "tests.faults.driver", *arguments]
    quiet = os.environ | {"KINETO_LOG_LEVEL": "99"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True)
    sys.stdout.write(f"{' '.join(arguments)}\n{done.stdout}")
    assert done.returncode == 0, done.stderr
