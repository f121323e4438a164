#!/usr/bin/env bash
# diffusers 0.42.1: an edited copy of a scheduler's config (torch 2.14.1).
#
# The guess: `from_config({**scheduler.config, "timestep_spacing": "trailing"})` makes a scheduler
# with trailing timesteps, as `from_config(scheduler.config, timestep_spacing="trailing")` does.
#
# What happens: the edit is dropped without a word where the first scheduler was made without that
# argument. The config lists such arguments in `_use_default_values`, and `from_config` leaves out
# what stands there, whatever the value is now. So another class gets its own default (Euler:
# linspace), and the same class the old one (DDIM: leading). The same edit of an argument that was
# given is taken over.
#
# Output seen:
#   a copy, edited, for Euler      linspace  [999.0, 888.0]
#   a copy, edited, for DDIM       leading   [900, 800]
#   the same, given before         trailing  [999.0, 899.0]
#   a keyword                      trailing  [999.0, 899.0]
#   without the list, edited       trailing  [999.0, 899.0]
#
# What to do: give changes as keywords, or take `_use_default_values` out of the copy. Then look at
# the new scheduler's config: a comparison of spacings may otherwise compare one with itself.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 diffusers==0.42.1 transformers==5.24.0 numpy==2.4.6
cat > "$folder/finding.py" <<'PY'
import diffusers
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

print("torch", torch.__version__, "diffusers", diffusers.__version__)
EDIT = {"timestep_spacing": "trailing"}
config = dict(DDIMScheduler(beta_schedule="scaled_linear").config)
given = dict(DDIMScheduler(timestep_spacing="leading").config)
bare = {name: value for name, value in config.items() if name != "_use_default_values"}
made = {
    "a copy, edited, for Euler": EulerDiscreteScheduler.from_config(config | EDIT),
    "a copy, edited, for DDIM": DDIMScheduler.from_config(config | EDIT),
    "the same, given before": EulerDiscreteScheduler.from_config(given | EDIT),
    "a keyword": EulerDiscreteScheduler.from_config(config, **EDIT),
    "without the list, edited": EulerDiscreteScheduler.from_config(bare | EDIT),
}
seen = []
for name, scheduler in made.items():
    scheduler.set_timesteps(10)
    seen.append((scheduler.config.timestep_spacing, scheduler.timesteps[:2].tolist()))
    print(f"{name:30} {seen[-1][0]:9} {seen[-1][1]}")
trailing = ("trailing", [999.0, 899.0])
expected = [("linspace", [999.0, 888.0]), ("leading", [900, 800]), trailing, trailing, trailing]
assert seen == expected, "no longer as stated"
PY
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/finding.py"
