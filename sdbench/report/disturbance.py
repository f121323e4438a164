"""What every table, figure and page says of its times: first whether the run was disturbed.

Then which savings are undecided, and which variants were not timed.
"""

import pandas as pd

from sdbench.analysis.stability import UNDECIDED_FROM, undecided, untimed
from sdbench.records.names import BASELINE

SAVING = "saving"
"""How the names of columns end that hold a saving of time."""
WORD = "undecided"
"""What stands instead of a saving whose interval is too wide."""
UNDECIDED_LEGEND = (
    f"{WORD}: the 95 % interval of the saving is wider than {100 * UNDECIDED_FROM:.0f} points."
)
UNTIMED_LEGEND = (
    "without a measured saving: not timed, as its steps cost what those of other variants do; its "
    "saving is predicted from them, and stands in brackets where that has no column."
)
SHORT_UNTIMED_LEGEND = "(saving): predicted, not timed: its steps cost what those of others do."


def disturbance_note(table: pd.DataFrame) -> str:
    """What disturbed the run that a table is of, and which of its rows not to trust.

    Args:
        table: from `sdbench.analysis`; what is made of a study's times has `disturbance`, and where
            it has savings these are judged by their intervals.

    Returns:
        A line; empty for a calm run, and for a table without times.
    """
    texts = table.get("disturbance", pd.Series(dtype=str)).dropna().unique()
    told = [text for text in texts if text]
    if not told:
        return ""

    doubtful = ", ".join(_doubtful(table))
    which = f", and the savings of {doubtful}" if doubtful else ""
    return f"DISTURBED: {'; '.join(told)}. Not to trust: times in seconds{which}."


def time_legend(table: pd.DataFrame) -> list[str]:
    """A line for what stands instead of a measured saving, where the table has such rows."""
    names = [str(name) for name in table if str(name).endswith(SAVING) and f"{name}_lo" in table]
    lines = [UNDECIDED_LEGEND] if any(undecided(table, name).any() for name in names) else []
    measured = [name for name in names if f"predicted_{name}" in table]
    return lines + [UNTIMED_LEGEND] * any(untimed(table, name).any() for name in measured)


def short_time_legend(table: pd.DataFrame) -> list[str]:
    """The same in fewer words, for a table whose only intervals of a time are those of `saving`."""
    hidden = [name for name in table if str(name).endswith("_saving_lo")]
    lines = time_legend(table.drop(columns=hidden))
    return [SHORT_UNTIMED_LEGEND if line == UNTIMED_LEGEND else line for line in lines]


def in_markdown(text: str, table: pd.DataFrame) -> str:
    """A table in Markdown, with what is said first above it, and its legend of times below."""
    note = disturbance_note(table)
    return "\n\n".join([*([f"**{note}**"] if note else []), text, *time_legend(table)])


def _doubtful(table: pd.DataFrame) -> list[str]:
    """Variants whose measured saving is undecided, or has no interval that says how sure it is."""
    savings = [name for name in ("saving", "denoise_saving") if f"{name}_lo" in table]
    doubtful = pd.Series(False, table.index)
    for name in savings:
        doubtful |= table[name].notna() & (undecided(table, name) | table[f"{name}_lo"].isna())
    return [str(name) for name in table.loc[doubtful, "variant"].unique() if name != BASELINE]
