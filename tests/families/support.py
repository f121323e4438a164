"""The support table of `docs/`, measured: `python -m tests.families.support` writes it.

Every family runs under every scheduler that its prediction allows, guided on the first and the last
of its steps only, and the rows are counted at the denoiser's first inner layer.
"""

from pathlib import Path

from sdbench.variants.guidance import guided_by
from sdbench.variants.noise import is_flow
from sdbench.variants.schedule import GuidanceSchedule
from tests import families, tiny
from tests.families import schedulers

WRITTEN = Path(__file__).parents[2] / "results" / "pipelines" / "families.md"


def counts(pipe) -> str:
    """Rows evaluated under the schedule over rows of full guidance; a dash if diffusers refuses."""

    def ends(steps):
        return GuidanceSchedule.from_mask([step in (0, steps - 1) for step in range(steps)])

    with tiny.counted_rows(pipe) as full:
        try:
            tiny.run(pipe)
        except AssertionError:  # of DPM++, when Flux sets a shift of the noise
            return "–"
        except ValueError as error:
            if "does not support custom" in str(error):  # sigmas, which the pipeline sets itself
                return "–"
            raise
    try:
        with tiny.counted_rows(pipe) as partial, guided_by(pipe, ends) as trace:
            tiny.run(pipe)
    except ValueError as error:
        if "rescale_betas_zero_snr" in str(error):
            return "–"
        raise
    assert sum(partial) == trace.steps["rows"].sum()
    assert trace.steps["guided"].tolist() == list(ends(len(trace.steps)).mask)
    return f"{sum(partial)}/{sum(full)}"


def table() -> str:
    """One row per family, one column per scheduler, in Markdown."""
    columns = schedulers.DIFFUSION | schedulers.FLOW
    lines = [["family", "guidance", *columns], ["---", "---", *["---:"] * len(columns)]]
    for family in families.FAMILIES:
        pipe = families.make(family)
        usual = pipe.scheduler
        allowed = schedulers.FLOW if is_flow(usual) else schedulers.DIFFUSION
        cells = ["–"] * len(columns)
        for place, name in enumerate(columns):
            if name in allowed:
                pipe.scheduler = allowed[name](usual.config)
                cells[place] = counts(pipe)
        lines.append([family, "two calls" if family in families.TWO_CALLS else "one call", *cells])
    head = (
        "Rows evaluated over rows of full guidance, for 4 latents guided on the first and the last "
        "step only. –: diffusers does not put the two together, or the scheduler cannot end in the "
        "pure noise that the model was trained on.\n\n"
    )
    return head + "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    WRITTEN.write_text(table())
