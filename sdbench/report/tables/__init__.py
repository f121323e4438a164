"""Tables from frames: for the terminal, Markdown, LaTeX and a page; one table per file.

Headings, units and formats stand with the columns in `sdbench.records`; nothing is computed here.
"""

from sdbench.report.tables.comparison import comparison_markdown, comparison_text, undecided_text
from sdbench.report.tables.conclusions import conclusions_markdown
from sdbench.report.tables.cost import cost_heading, cost_table
from sdbench.report.tables.distances import distances_text
from sdbench.report.tables.findings import findings
from sdbench.report.tables.frontier import LEGEND as FRONTIER_LEGEND
from sdbench.report.tables.frontier import frontier_markdown, verdict_text
from sdbench.report.tables.known import known_legend, known_text, mark_legend
from sdbench.report.tables.modules import module_text, schedule_text
from sdbench.report.tables.perception import (
    perception_legend,
    perception_markdown,
    perception_table,
    perception_words,
)
from sdbench.report.tables.plan import plan_text
from sdbench.report.tables.ranking import ranking_note, ranking_text
from sdbench.report.tables.spending import spending_markdown, spending_text
from sdbench.report.tables.summary import (
    Cell,
    latex,
    legend,
    markdown,
    remarks,
    summary_cells,
    summary_table,
)

__all__ = [
    "FRONTIER_LEGEND",
    "Cell",
    "comparison_markdown",
    "comparison_text",
    "conclusions_markdown",
    "cost_heading",
    "cost_table",
    "distances_text",
    "findings",
    "frontier_markdown",
    "known_legend",
    "known_text",
    "latex",
    "legend",
    "mark_legend",
    "markdown",
    "module_text",
    "perception_legend",
    "perception_markdown",
    "perception_table",
    "perception_words",
    "plan_text",
    "ranking_note",
    "ranking_text",
    "remarks",
    "schedule_text",
    "spending_markdown",
    "spending_text",
    "summary_cells",
    "summary_table",
    "undecided_text",
    "verdict_text",
]
