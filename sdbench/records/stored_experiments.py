"""The stored tables of experiments: plans, budgets, trainings, distances and blind tests."""

from sdbench.records.columns import (
    METRICS,
    PAIR,
    Column,
    Format,
    count,
    flag,
    real,
    seconds,
    text,
)
from sdbench.records.names import BASELINE, TRIAL_KINDS, TRIAL_MODES

DRAW = count(
    "1",
    "number of the draw, of a variant that stands for several (`random:50%@0..7`)",
    nullable=True,
)
STEPS = ("guided", "unguided", "text", "decode")
"""Where a row of the table `modules` belongs: to a kind of step, or around the loop."""
EXPERIMENTS: dict[str, dict[str, Column]] = {
    "judged": {
        "unit": text("identifier of the plan"),
        "unguided": count("steps", "unguided steps of the plan"),
        "variant": text("way of running the pipeline; `plan` is the planned schedule"),
        **PAIR,
        "draw": DRAW,
        "nfe": count("rows", "denoiser rows per image"),
        **METRICS,
    },
    "spending": {
        "unit": text("identifier of the budget"),
        "budget": real("1", "what an image may cost, in `budget_unit`", minimum=0),
        "budget_unit": text("what the budget counts", choices=("nfe", "seconds")),
        "method": text("way of spending it, such as `steps`, `mask` or `lora`"),
        "scheduler": text("its name behind `scheduler:`, or its class"),
        "variant": text("way of running the pipeline"),
        "tuning_loss": real(
            "1", "weighted sum of the metrics on the tuning pairs, lower is better"
        ),
        **PAIR,
        "nfe": real("rows", "denoiser rows per image", minimum=0),
        **METRICS,
    },
    "modules": {
        "unit": text("the step, again"),
        "step": text("kind of step, or what is before or after the loop", choices=STEPS),
        "part": text("component of the pipeline; `scheduler`; `pipeline` is what is in none"),
        "block": text("dotted name of the block in it; empty outside of all blocks"),
        "kind": text("kind of layer; `other` is what lies between layers"),
        "seconds": seconds(
            "time in this place without what watching took; mean of the middle half of the "
            "watched steps",
            nullable=True,
        ),
        "watch_s": seconds(
            "time that watching the layers took in this place: what it added to the step, the same "
            "at every entrance of a place",
            nullable=True,
        ),
        "plain_s": seconds("the same of a whole step where no layer is watched", nullable=True),
        "flop": count("FLOP", "work in this place, 2 per multiply-add", nullable=True),
        "moved_bytes": count("bytes", "what operations in this place read and wrote"),
        "peak_flop_s": real(
            "FLOP/s", "the most that a matrix product reached on this device", nullable=True
        ),
        "peak_copy_s": real(
            "bytes/s", "the most that a copy read and wrote on this device", nullable=True
        ),
    },
    "training": {
        "unit": text("identifier of the row"),
        "step": count("1", "steps that the optimiser has taken"),
        "loss": real(
            "1", "mean training loss since the last row, missing in the first", nullable=True
        ),
        "held_out_loss": real("1", "the same loss on prompts that are not learnt from"),
        "lpips": real("1", "mean LPIPS of the student's images to the teacher's", nullable=True),
        "learning_rate": real("1", "learning rate of the next step", minimum=0),
        "seconds": seconds("time of the training so far, judging included"),
    },
    "distances": {
        "variant": text("way of running the pipeline"),
        "features": text("features in which images are compared"),
        "distance": text("kind of distance between the sets", choices=("frechet", "kernel")),
        "images": count("images", "images in the variant's set"),
        "reference_images": count("images", "images in the reference set"),
        "value": real("1", "the distance", label="value"),
        "value_lo": real(
            "1", "lower end of its 95 % interval; a Fréchet distance has none", nullable=True
        ),
        "value_hi": real("1", "upper end of its 95 % interval", nullable=True),
        "floor": real(
            "1",
            "the distance of as many reference images to the others: mean of several draws",
            nullable=True,
            label="floor",
        ),
        "floor_lo": real("1", "the lowest of these draws", nullable=True),
        "floor_hi": real("1", "the highest of these draws", nullable=True),
        "difference": real(
            "1",
            "distance less the baseline's: above 0 where the baseline is nearer",
            label=f"more than {BASELINE}",
            form=Format("+.4g"),
        ),
        "difference_lo": real("1", "lower end of its 95 % interval", nullable=True),
        "difference_hi": real("1", "upper end of its 95 % interval", nullable=True),
    },
    "answers": {
        "page": text("hash of the page that asked"),
        "mode": text("what it asked", choices=TRIAL_MODES),
        "person": text("code that the person chose"),
        "simulated": flag("whether a program answered, not a person"),
        "trial": count("1", "number of the trial in the page"),
        "place": count("1", "place of the trial in the person's order"),
        "kind": text(
            "a variant, or a catch trial: images that differ clearly, or twice the same image",
            choices=TRIAL_KINDS,
        ),
        "variant": text("variant of one image"),
        "against": text(
            "variant of the other image; the reference, unless the page asked which "
            "of any two variants fits the caption better"
        ),
        **PAIR,
        "shown_a": text("variant whose image stood at A"),
        "shown_b": text("variant whose image stood at B"),
        "chosen": text("the choice", choices=("A", "B")),
        "correct": flag("whether the choice is right; missing where neither is", nullable=True),
        "preferred": text(
            "variant of the chosen image, where the page asked which fits better", nullable=True
        ),
        "response_s": seconds("time from the showing of the images to the choice"),
        "scale": real("1", "pixels of the screen for a pixel of the image", minimum=0),
        **METRICS,
    },
}
