"""Every family of guided pipelines by name, tiny and random: what differs between them."""

from tests import tiny
from tests.families import concatenated, two_calls, unets

FAMILIES = tiny.FAMILIES | unets.FAMILIES | concatenated.FAMILIES | two_calls.FAMILIES
TWO_CALLS = tiny.TWO_CALLS | set(two_calls.FAMILIES)


def make(family):
    """A pipeline that makes 4 latents of 2 prompts."""
    pipe = FAMILIES[family]()
    call = pipe.call
    if family in ("sd3", "flux"):
        # They repeat the texts that they are given, but not the pooled ones.
        pipe.call = {
            name: rows.repeat_interleave(2, 0) if "embeds" in name else rows
            for name, rows in call.items()
        }
    elif family in tiny.FAMILIES:
        call["num_images_per_prompt"] = 2
    if family == "img2img":
        call["image"] = call["image"].repeat_interleave(2, 0)
    return pipe
