"""What a point of a cost sweep says, as text: one line on its steps, and a table of savings."""

import pandas as pd
from rich.table import Table


def cost_heading(point: pd.DataFrame) -> str:
    """The point's size and batch, what its steps take, and R.

    Args:
        point: as `sdbench.experiments.cost.sweep` yields it.
    """
    row = point.iloc[0]
    compiled = f", compiled in {row['compile_s']:.0f} s" if row["compile_s"] > 0 else ""
    return (
        f"{row['height']} x {row['width']}, batch {row['batch']}: guided step {row['guided_s']:.4g} s, "
        f"unguided {row['unguided_s']:.4g} s, R = {row['ratio']:.3f} {_ends(row, 'ratio', '.3f')}, "
        f"loop {row['denoise_share']:.1%} of a call{compiled}"
    )


def cost_table(point: pd.DataFrame) -> Table:
    """Savings of the denoising loop and of the whole call: ideal, predicted from R, measured.

    Args:
        point: as `sdbench.experiments.cost.sweep` yields it.
    """
    headings = (
        "ideal",
        "loop predicted",
        "loop measured",
        "of ideal",
        "call predicted",
        "call measured",
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("variant", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right")
    for _, row in point.iterrows():
        table.add_row(
            row["variant"],
            f"{row['ideal_saving']:.1%}",
            f"{row['predicted_denoise_saving']:.1%}",
            f"{row['denoise_saving']:.1%} {_ends(row, 'denoise_saving', '.1%')}",
            f"{row['share_of_ideal']:.0%}",
            f"{row['predicted_saving']:.1%}",
            f"{row['saving']:.1%} {_ends(row, 'saving', '.1%')}",
        )
    return table


def _ends(row: "pd.Series[float]", name: str, form: str) -> str:
    """The interval in brackets; nothing where there are too few samples for one."""
    lo, hi = row[f"{name}_lo"], row[f"{name}_hi"]
    return "" if pd.isna(lo) else f"[{lo:{form}}, {hi:{form}}]"
