"""Figures from frames, one per file, all in the one style of `style.py`.

Every function returns a `matplotlib.figure.Figure` to save or show; none touches pyplot's state.
"""

from sdbench.report.figures.curves import curves_figure
from sdbench.report.figures.frontier import frontier_figure
from sdbench.report.figures.history import history_figure
from sdbench.report.figures.images import image_grid
from sdbench.report.figures.ledger import ledger_figure
from sdbench.report.figures.modules import module_figure
from sdbench.report.figures.perception import perception_figure, psychometric_figure
from sdbench.report.figures.plan import plan_figure
from sdbench.report.figures.saving import saving_figure
from sdbench.report.figures.sensitivity import sensitivity_figure
from sdbench.report.figures.spending import spending_figure
from sdbench.report.figures.steps import step_figure

__all__ = [
    "curves_figure",
    "frontier_figure",
    "history_figure",
    "image_grid",
    "ledger_figure",
    "module_figure",
    "perception_figure",
    "plan_figure",
    "psychometric_figure",
    "saving_figure",
    "sensitivity_figure",
    "spending_figure",
    "step_figure",
]
