"""All that a GPU can show, in parts: `python -m benchmarks.gpu --out results/gpu-NAME`."""
