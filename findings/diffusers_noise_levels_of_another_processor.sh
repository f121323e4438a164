#!/usr/bin/env bash
# diffusers 0.42.1, any scheduler with `beta_schedule="scaled_linear"` (torch 2.14.1, CPU).
#
# The guess: a scheduler's noise levels are computed from four constants, so `betas` and
# `alphas_cumprod` are the same bits on every x86 machine.
#
# What happens: their last digits depend on the instruction set for which torch picks its kernels.
# Here one process is told to use none beyond the plain one, as torch does on an old processor, and
# one uses AVX2. A tenth of the values differ. An AMD and an Intel processor, each left to itself,
# had different tables, too. Near the end of a schedule of zero terminal SNR the betas come from
# differences of nearly equal numbers, so there it is more than the last digit.
#
# Output seen (differences are shares of a value):
#   diffusers 0.42.1 torch 2.14.1
#   betas: 75 of 1000 values differ, at most 1.1e-04
#   alphas_cumprod: 96 of 1000 values differ, at most 5.9e-07
#   settings: equal
#
# What to do: never hash or compare a scheduler's computed tables to tell whether two runs had the
# same one, as caches of latents, run folders and `torch.equal` in tests do. Compare its settings.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 diffusers==0.42.1 numpy==2.4.6
cat > "$folder/levels.py" <<'PY'
import json
import sys

import diffusers
import torch

scheduler = diffusers.DDIMScheduler(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=True
)
settings = {name: value for name, value in scheduler.config.items() if name[0] != "_"}
tables = {name: getattr(scheduler, name) for name in ("betas", "alphas_cumprod")}
torch.save({"versions": f"diffusers {diffusers.__version__} torch {torch.__version__}",
            "settings": json.dumps(settings, sort_keys=True), **tables}, sys.argv[1])
PY
cat > "$folder/finding.py" <<'PY'
import sys

import torch

plain, vector = (torch.load(path, weights_only=True) for path in sys.argv[1:])
print(plain["versions"].split("+")[0])
differ = {}
for name in ("betas", "alphas_cumprod"):
    one, other = plain[name].double(), vector[name].double()
    differ[name] = int((one != other).sum())
    most = ((one - other).abs() / other.abs().clamp(min=1e-30)).max()
    print(f"{name}: {differ[name]} of {len(one)} values differ, at most {most:.1e}")
same = plain["settings"] == vector["settings"]
print("settings:", "equal" if same else "differ")
sys.exit(0 if same and all(differ.values()) else 1)
PY
for capability in default avx2; do
    ATEN_CPU_CAPABILITY=$capability "$folder/venv/bin/python" "$folder/levels.py" "$folder/$capability.pt"
done
"$folder/venv/bin/python" "$folder/finding.py" "$folder/default.pt" "$folder/avx2.pt"
