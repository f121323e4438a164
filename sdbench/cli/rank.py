"""`sdbench rank`: variants in the order of a metric, with the differences that are clear."""

from __future__ import annotations

from sdbench.cli.console import command, console
from sdbench.cli.options import Metric, Results


@command
def rank(results: Results, metric: Metric = "lpips") -> None:
    """Order a study's variants by a metric, and say which differences between them are clear."""
    from sdbench.analysis.ranking import ranking
    from sdbench.analysis.tables import PAIRS
    from sdbench.instruments.quality import find_metric
    from sdbench.records.store import read
    from sdbench.report.tables import ranking_text

    kind, _ = find_metric(metric)
    pairs = read(results, columns=PAIRS)
    ranked = ranking(pairs, kind.name, higher_is_better=bool(kind.higher_is_better))
    console.print(ranking_text(ranked, kind.name))
