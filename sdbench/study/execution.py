"""How a denoiser is executed: operation by operation, compiled, or as a recorded CUDA graph."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Self

import torch
from torch import Tensor
from torch._dynamo.callback import callback_handler

from sdbench.models.pipeline import Pipeline, denoisers_of
from sdbench.variants.rows import map_tensors


@contextmanager
def executed(pipe: Pipeline, execution: str) -> Iterator[None]:
    """Compile a pipeline's denoiser in place; afterwards it is called as before.

    A graph is made for each number of rows, at its first call. On the CPU the weights are frozen
    into the graph, so that they are packed for the kernels once and not at every call; that keeps a
    second copy of them.

    Args:
        pipe: a diffusers pipeline.
        execution: "eager", "compile" (Inductor) or "cudagraph" (Inductor, its kernels launched as
            one recorded graph).

    Raises:
        ValueError: CUDA graphs on another device.
    """
    if execution == "eager":
        yield
        return
    on_cpu = pipe.device.type == "cpu"
    if execution == "cudagraph" and pipe.device.type != "cuda":
        raise ValueError(f"execution 'cudagraph' needs a CUDA device, not '{pipe.device.type}'")
    denoisers = denoisers_of(pipe)
    before = [denoiser._compiled_call_impl for denoiser in denoisers]
    mode = "reduce-overhead" if execution == "cudagraph" else "default"
    try:
        for denoiser in denoisers:
            denoiser.compile(mode=mode, dynamic=False)
            if execution == "cudagraph":
                denoiser._compiled_call_impl = _outputs_kept(denoiser._compiled_call_impl)
        with torch._inductor.config.patch(freezing=True) if on_cpu else nullcontext():
            yield
    finally:
        for denoiser, call in zip(denoisers, before, strict=True):
            denoiser._compiled_call_impl = call


def _outputs_kept(graph: Any) -> Any:
    """Copies: a replay overwrites a graph's last outputs, which the step still needs."""

    def call(*args: Any, **kwargs: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return map_tensors(graph(*args, **kwargs), Tensor.clone)

    return call


@contextmanager
def nothing_compiled() -> Iterator[None]:
    """Refuse to compile anything again: a timed call would hold the compiler's time."""
    with torch.compiler.set_stance("fail_on_recompile"):
        yield


class CompileClock:
    """Seconds that torch's compiler took within a block: `seconds`."""

    def __enter__(self) -> Self:
        """Begin."""
        self.seconds = 0.0
        self._started = 0.0
        callback_handler.register_start_callback(self._start)
        callback_handler.register_end_callback(self._end)
        return self

    def __exit__(self, *exc: object) -> None:
        """End."""
        callback_handler.remove_start_callback(self._start)
        callback_handler.remove_end_callback(self._end)

    def _start(self, _: Any) -> None:
        self._started = time.perf_counter()

    def _end(self, _: Any) -> None:
        self.seconds += time.perf_counter() - self._started
