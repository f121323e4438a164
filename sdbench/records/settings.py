"""The settings of this process that move numbers, asked of those who act on them.

A variable of the environment says what was wished; what is here was asked of torch and diffusers
themselves. Neither is imported for that. How a pipeline is set is in `sdbench.models.settings`.
"""

import os
import re
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

INDUCTOR = (
    "conv_1x1_as_mm",
    "coordinate_descent_check_all_directions",
    "coordinate_descent_tuning",
    "cpp.enable_unsafe_math_opt_flag",
    "cpp.simdlen",
    "cpp.threads",
    "cpp.weight_prepack",
    "cpp_wrapper",
    "emulate_precision_casts",
    "epilogue_fusion",
    "force_fuse_int_mm_with_mul",
    "freezing",
    "layout_optimization",
    "max_autotune",
    "max_autotune_gemm",
    "max_autotune_gemm_backends",
    "max_autotune_pointwise",
    "shape_padding",
    "triton.cudagraphs",
    "use_fast_math",
)
"""Of the compiler: what changes its kernels, or their last digits."""
PRECISIONS = ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv")
"""What torch may compute in less than float32 where float32 is asked for."""
REDUCED = (
    "allow_bf16_reduced_precision_reduction",
    "allow_fp16_accumulation",
    "allow_fp16_reduced_precision_reduction",
)
"""Whether a GPU may sum products of half precision in half precision."""
KERNELS = ("flash", "mem_efficient", "math", "cudnn")
"""Of torch's own attention; each may be switched off."""
ALLOCATORS = ("jemalloc", "tcmalloc", "mimalloc")
"""That may stand in for the C library's."""


def process_settings(root: Path = Path("/")) -> dict[str, Any]:
    """How this process computes, as far as that can be changed.

    Args:
        root: where the system's own files are.

    Returns:
        `affinity` (its cores), `governor` (of the processor's frequency), `malloc`;
        `attention_backend` (diffusers', which holds for all models); of torch `fp32_precision`,
        `reduced_precision`, `attention_kernels`, `deterministic`, `cudnn`, `mkldnn`,
        `interop_threads`, `allocator` and `inductor`. What cannot be known is None, and so is all
        of a library that is not imported.
    """
    torch = sys.modules.get("torch")
    return {
        "affinity": _affinity(),
        "governor": _governor(root),
        "malloc": _malloc(root),
        "attention_backend": attention_backend(),
        **{name: None if torch is None else ask(torch) for name, ask in _OF_TORCH.items()},
    }


def _affinity() -> str | None:
    """The cores that the process may use, such as `0-3,8`; None where the system does not tell."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))
    runs: list[list[int]] = []
    for core in cores:
        if runs and core == runs[-1][-1] + 1:
            runs[-1].append(core)
        else:
            runs.append([core])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _governor(root: Path) -> str | None:
    """Who decides the processor's frequency; several where cores differ."""
    files = root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")
    try:
        return ", ".join(sorted({file.read_text().strip() for file in files})) or None
    except OSError:
        return None


def _malloc(root: Path) -> str | None:
    """The library that hands out memory; `libc` where none was put in front of it."""
    try:
        mapped = (root / "proc/self/maps").read_text()
    except OSError:
        return None
    found = [name for name in ALLOCATORS if re.search(rf"/lib{name}[^/\n]*\.so", mapped)]
    return ", ".join(found) or "libc"


def attention_backend() -> str | None:
    """Diffusers' active backend of attention; None where it is not imported.

    A model that sets one sets it for all, and resets only its own.
    """
    dispatch = sys.modules.get("diffusers.models.attention_dispatch")
    active = getattr(getattr(dispatch, "_AttentionBackendRegistry", None), "_active_backend", None)
    return None if active is None else str(getattr(active, "value", active))


def _fp32_precision(torch: Any) -> dict[str, Any]:
    told = _attributes(torch.backends, [f"{place}.fp32_precision" for place in PRECISIONS])
    # Where nobody asked for less, torch says none, or ieee if that was asked for.
    precisions = ("ieee" if value == "none" else value for value in told.values())
    return dict(zip(PRECISIONS, precisions, strict=True))


def _reduced_precision(torch: Any) -> dict[str, Any]:
    return _attributes(torch.backends.cuda.matmul, REDUCED)


def _attention_kernels(torch: Any) -> dict[str, Any]:
    """Which kernels torch's own attention may choose from."""
    told = {kind: getattr(torch.backends.cuda, f"{kind}_sdp_enabled", None) for kind in KERNELS}
    return {kind: None if ask is None else ask() for kind, ask in told.items()}


def _deterministic(torch: Any) -> bool:
    return bool(torch.are_deterministic_algorithms_enabled())


def _cudnn(torch: Any) -> dict[str, Any]:
    return _attributes(torch.backends.cudnn, ("enabled", "benchmark", "deterministic"))


def _mkldnn(torch: Any) -> dict[str, Any]:
    return _attributes(torch.backends.mkldnn, ("enabled", "deterministic"))


def _interop_threads(torch: Any) -> int:
    return int(torch.get_num_interop_threads())


def _allocator(torch: Any) -> dict[str, Any] | None:
    """The allocator of a GPU's memory, and its settings as torch took them."""
    if not torch.cuda.is_available():
        return None
    told = _asked(lambda: torch.cuda.memory._snapshot()["allocator_settings"])
    settings = {str(name): _plain(value) for name, value in (told or {}).items()}
    text = _asked(lambda: torch._C._accelerator_getAllocatorSettings())
    return {"backend": torch.cuda.get_allocator_backend(), "text": text, **settings}


def _inductor(torch: Any) -> dict[str, Any] | None:
    """The compiler's settings, where it was imported: compiling does that."""
    config = sys.modules.get("torch._inductor.config")
    return None if config is None else _attributes(config, INDUCTOR)


def _attributes(owner: Any, names: Iterable[str]) -> dict[str, Any]:
    """Attributes by name; `a.b` is the attribute b of a."""
    return {name: _asked(partial(_read, owner, name)) for name in names}


def _read(owner: Any, name: str) -> Any:
    for part in name.split("."):
        owner = getattr(owner, part)
    return _plain(owner)


def _asked(ask: Callable[[], Any]) -> Any:
    """An answer; None where this version of a library has none."""
    try:
        return ask()
    except (AttributeError, KeyError, RuntimeError):
        return None


def _plain(value: Any) -> Any:
    """A setting that JSON has a form for."""
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)


_OF_TORCH: dict[str, Callable[[Any], Any]] = {
    "fp32_precision": _fp32_precision,
    "reduced_precision": _reduced_precision,
    "attention_kernels": _attention_kernels,
    "deterministic": _deterministic,
    "cudnn": _cudnn,
    "mkldnn": _mkldnn,
    "interop_threads": _interop_threads,
    "allocator": _allocator,
    "inductor": _inductor,
}
