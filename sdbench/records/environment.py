"""What a measurement ran on: hardware, versions and settings that move numbers.

No host name, user name or path goes in, so that a results folder can be published. What a caller
chose of a pipeline (memory format, threads, quantisation) it adds to the dictionary itself.
"""

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from sdbench.records.settings import process_settings

PACKAGES = (
    "sdbench",
    "torch",
    "torchvision",
    "diffusers",
    "huggingface_hub",
    "transformers",
    "peft",
    "accelerate",
    "torchao",
    "optimum-quanto",
    "bitsandbytes",
    "gguf",
    "triton",
    "kernels",
    "xformers",
    "flash-attn",
    "sageattention",
    "DeepCache",
    "tgate",
    "safetensors",
    "lpips",
    "torchmetrics",
    "flip-evaluator",
    "numpy",
    "scipy",
    "pandas",
    "pyarrow",
)
YOUNGER_PACKAGES = frozenset(
    {"huggingface_hub", "gguf", "triton", "kernels", "xformers", "flash-attn", "sageattention"}
)
"""That records without `settings` were not asked for."""
VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "OMP_PLACES",
    "OMP_PROC_BIND",
    "GOMP_CPU_AFFINITY",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    "DNNL_MAX_CPU_ISA",
    "ATEN_CPU_CAPABILITY",
    "DIFFUSERS_ATTN_CHECKS",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_LAUNCH_BLOCKING",
    "CUBLAS_WORKSPACE_CONFIG",
    "NVIDIA_TF32_OVERRIDE",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
)


def environment() -> dict[str, Any]:
    """Describe this process's machine and software; torch is asked only if it is imported already.

    Returns:
        `python`, `os`, `machine`, `cpu`, `cores` (usable by this process), `threads`, `ram_bytes`,
        `gpus`, `cuda`, `driver`, `packages`, `commit`, `variables`, and `settings` as
        `process_settings` tells them. What cannot be known is None.
    """
    # Importing torch here would take seconds, and this library promises to do without.
    torch = sys.modules.get("torch")
    cuda = torch is not None and torch.cuda.is_available()

    return {
        "python": platform.python_version(),
        "os": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cpu": _cpu(),
        "cores": _cores(),
        "threads": torch.get_num_threads() if torch is not None else None,
        "ram_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": _gpus(torch) if cuda else [],
        "cuda": torch.version.cuda if torch is not None and cuda else None,
        "driver": _driver() if cuda else None,
        "packages": _versions(),
        "commit": _commit(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "settings": process_settings(),
    }


def environment_key(env: Mapping[str, Any]) -> str:
    """Short hash of an environment: equal exactly when every entry is equal."""
    return hashlib.sha256(json.dumps(env, sort_keys=True).encode()).hexdigest()[:12]


def _cores() -> int | None:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _cpu() -> str | None:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text())
        if model:
            return model[1]
    return platform.processor() or None


def _gpus(torch: Any) -> list[dict[str, Any]]:
    properties = [
        torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())
    ]
    return [
        {
            "name": gpu.name,
            "capability": f"{gpu.major}.{gpu.minor}",
            "memory_bytes": gpu.total_memory,
        }
        for gpu in properties
    ]


def _driver() -> str | None:
    file = Path("/proc/driver/nvidia/version")
    if not file.exists():
        return None
    version = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", file.read_text())
    return version[1] if version else None


def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _commit() -> str | None:
    """Commit of the checkout that this file is in, with `-dirty` behind it where files differ."""
    # An installed package is in no checkout, and the one around it may be somebody else's.
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = [
        "git",
        "-C",
        str(root),
        "describe",
        "--always",
        "--dirty",
        "--exclude=*",
        "--abbrev=40",
    ]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
