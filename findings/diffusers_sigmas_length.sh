#!/usr/bin/env bash
# diffusers 0.42.1: what a list of `sigmas` means to each scheduler (torch 2.14.1).
#
# The guess: `set_timesteps(sigmas=[five values])` gives five steps, whatever the scheduler.
#
# What happens: eleven schedulers take `sigmas`, and they differ. Three flow matching ones add a 0
# to the list and make five steps. EulerDiscreteScheduler takes the last value for the end and
# makes four. MiniMaxH3Scheduler makes four too, and refuses a list that does not end at 0.
# LTXEulerAncestralRFScheduler sets num_inference_steps to 4, but gives five timesteps: a loop over
# them calls the model a fifth time, and step() returns the sample as it was. Others read no list:
# UniPC (with use_flow_sigmas, though its type says list) and Helios (with one stage) need a NumPy
# array. Helios with its default of three stages passes over what it is given, without a word.
# EDMEuler (its type says list too) needs a tensor, and takes the values for places on its own
# Karras curve: a falling list gives a rising schedule, 0.002 up to 24.4. Piflow refuses.
#
# Output seen for [1.0, 0.8, 0.6, 0.4, 0.2] (two columns here to save room):
#   EDMEulerScheduler               AttributeError  EulerDiscreteScheduler          4
#   FlowMapEulerDiscreteScheduler   5               FlowMatchEulerDiscreteScheduler 5
#   FlowMatchLCMScheduler           5               LTXEulerAncestralRFScheduler    5
#   HeliosScheduler                 3 (asked for)   HeliosDMDScheduler              3 (asked for)
#   MiniMaxH3Scheduler              ValueError      MiniMaxH3, ending at 0          4
#   PiflowScheduler                 ValueError      UniPCMultistepScheduler         ValueError
#   EDMEuler, tensor                5               UniPC, flow, list               TypeError
#   UniPC, flow, array              5               Helios, one stage, array        5
#   HeliosDMD, one stage, array     4 (the last value is replaced by 0)
#
# What to do: after set_timesteps look at len(scheduler.timesteps) and scheduler.sigmas. With Euler
# give the end yourself (0.0 as the last value); with flow matching leave the 0 out. Count the
# model's calls, not the list, when two schedulers are compared.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 diffusers==0.42.1 transformers==5.24.0 numpy==2.4.6
cat > "$folder/finding.py" <<'PY'
import inspect

import diffusers
import numpy as np
import torch

diffusers.utils.logging.set_verbosity_error()
print("torch", torch.__version__, "diffusers", diffusers.__version__)
five = [1.0, 0.8, 0.6, 0.4, 0.2]
ending_at_zero = [1.0, 0.75, 0.5, 0.25, 0.0]


def steps(name, sigmas=five, **config):
    scheduler = getattr(diffusers, name)(**config)
    more = {"num_inference_steps": 3, "stage_index": 0} if name.startswith("Helios") else {}
    try:
        scheduler.set_timesteps(sigmas=sigmas, **more)
    except Exception as error:
        return type(error).__name__
    print(" ", name, config or "", "sigmas:", [round(float(s), 3) for s in scheduler.sigmas])
    return len(scheduler.timesteps)


of_class = [getattr(diffusers, n) for n in sorted(dir(diffusers)) if n.endswith("Scheduler")]
takes_sigmas = [
    c.__name__
    for c in of_class
    if issubclass(c, diffusers.SchedulerMixin)
    and "sigmas" in inspect.signature(c.set_timesteps).parameters
]
seen = {name: steps(name) for name in takes_sigmas}
array, unipc = np.array(five, dtype=np.float32), "UniPCMultistepScheduler"
seen["MiniMaxH3, ending at 0"] = steps("MiniMaxH3Scheduler", ending_at_zero)
seen["EDMEuler, tensor"] = steps("EDMEulerScheduler", torch.tensor(five))
seen["UniPC, flow, list"] = steps(unipc, use_flow_sigmas=True)
seen["UniPC, flow, array"] = steps(unipc, array, use_flow_sigmas=True)
seen["Helios, one stage, array"] = steps("HeliosScheduler", array, stages=1)
seen["HeliosDMD, one stage, array"] = steps("HeliosDMDScheduler", array, stages=1)
for name, count in seen.items():
    print(f"{name:32}{count}")
no_list = ["AttributeError", 4, 5, 5, 5, 3, 3, 5, "ValueError", "ValueError", "ValueError"]
assert list(seen.values()) == [*no_list, 4, 5, "TypeError", 5, 5, 4], "no longer as stated"
PY
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/finding.py"
