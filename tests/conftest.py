"""What holds for every test: no model hub, no display, and GPU tests only where there is a GPU."""

import os

# Read when the libraries are imported, so they are set before any test module is.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["DIFFUSERS_VERBOSITY"] = "error"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "agg"
os.environ["TQDM_DISABLE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run in several processes, on small tensors

import pytest
from hypothesis import settings

# The same cases in every run, so that a failure is the change's; `nox -s faults` looks for more,
# a quarter of them for each of a dozen readers: over 10,000.
settings.register_profile("sdbench", derandomize=True)
settings.register_profile("faults", max_examples=4_000)
settings.load_profile("sdbench")


# Where the long files are. They come first, so that the short ones fill up the last minute of two
# processes: a file stays in one of them, and makes its fixtures once.
LONG_FIRST = (
    "study",
    "variants",
    "benchmarks",
    "analysis",
    "distill",
    "experiments",
    "cli",
    "faults",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folders = {folder: place for place, folder in enumerate(LONG_FIRST)}
    items.sort(key=lambda item: folders.get(item.path.parent.name, len(folders)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if "gpu" in item.keywords:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
