"""The command line: arguments to one library call, results to text and pictures.

Each command has the file of its name. It imports the library when it runs, so that
`sdbench --help` loads no torch. Bad input ends in one line and exit code 2.
"""

from sdbench.cli import (
    bench,
    budget,
    compare,
    cost,
    distances,
    distill,
    env,
    frontier,
    gather,
    history,
    known,
    models,
    perceive,
    plan,
    rank,
    report,
    run,
    sensitivity,
    variants,
    weights,
)
from sdbench.cli.console import app

__all__ = ["app"]

# The order of `sdbench --help`.
for _command in (
    run.run,
    gather.gather,
    cost.cost,
    sensitivity.sensitivity,
    plan.plan,
    budget.budget,
    distill.distill,
    compare.compare,
    bench.bench,
    history.history,
    report.report,
    rank.rank,
    frontier.frontier,
    distances.distances,
    known.known,
    perceive.perceive,
    models.models,
    variants.variants,
    weights.weights,
    env.env,
):
    app.command()(_command)
