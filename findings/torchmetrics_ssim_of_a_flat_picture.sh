#!/usr/bin/env bash
# torchmetrics 1.9.0, functional.image.structural_similarity_index_measure (torch 2.14.1, CPU).
#
# The guess: a picture compared with itself scores exactly 1, whatever it shows.
#
# What happens: a picture of one grey scores less than 1 against itself, down to 0.9967. Means of
# squares and squared means cancel in single precision. A variance that rounds below 0 is then set
# to 0, and a covariance that rounds below 0 is not, so that the two no longer agree. Flat parts of
# any picture are affected; random pixels are not. No warning is given.
#
# Output seen:
#   torchmetrics 1.9.0
#   256 grey pictures against themselves: 160 below 1, the least 0.9967 (grey 213)
#   the same in double precision: 0 below 1, the least 1.0000
#
# What to do: give it `images.double()`. "1 is identical" is no test of equality in single
# precision, and a loss of 0.003 on flat backgrounds may be none.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 torchmetrics==1.9.0 numpy==2.4.6
cat > "$folder/finding.py" <<'PY'
import torch
import torchmetrics
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

print("torchmetrics", torchmetrics.__version__)


def of_itself(level, dtype):
    picture = torch.full((1, 3, 64, 64), level / 255, dtype=dtype)
    return ssim(picture, picture.clone(), data_range=1.0).item()


single = [of_itself(level, torch.float32) for level in range(256)]
double = [of_itself(level, torch.float64) for level in range(256)]
below = sum(value < 1 for value in single)
least = min(range(256), key=single.__getitem__)
print(
    f"256 grey pictures against themselves: {below} below 1, "
    f"the least {single[least]:.4f} (grey {least})"
)
wrong = sum(value < 1 - 1e-9 for value in double)
print(f"the same in double precision: {wrong} below 1, the least {min(double):.4f}")
assert below > 10, "no longer as stated"
assert single[least] < 0.9990, "no longer as stated"
assert wrong == 0, "no longer as stated"
PY
"$folder/venv/bin/python" "$folder/finding.py"
