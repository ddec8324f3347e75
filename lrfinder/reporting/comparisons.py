"""Comparisons: recorded runs side by side, as a report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lrfinder.comparing.tables import runs_table, seeds_table
from lrfinder.reporting import Report
from lrfinder.reporting.sections import Section

if TYPE_CHECKING:
    from lrfinder.comparing import Comparison


def comparison_report(comparison: Comparison) -> Report:
    """Recorded runs side by side: the report behind `compare.html`."""
    metric, winner = comparison.metric, comparison.winner
    best = "" if winner is None else f"{winner.name}, {comparison.best(winner)[0]:.4g}"
    picture = Section(
        title="Learning rates and losses",
        figures={
            "A colour is a variant, a line style a param group; a band is the spread over seeds, "
            "from the lowest to the highest.": comparison.plot()[0].figure
        },
    )
    runs = Section(
        title="Runs",
        tables=(runs_table(comparison),),
        notes=["The best one is marked with *."],
    )
    sections = [picture, runs]
    if any(len(variant.runs) > 1 for variant in comparison.variants):
        note = (
            "Runs that differ in their seed alone: mean ± standard deviation over those with a "
            "finite value."
        )
        seeds = Section(title="Over seeds", tables=(seeds_table(comparison),), notes=[note])
        sections.insert(1, seeds)
    return Report(
        title=f"{metric} of {len(comparison.runs)} runs",
        facts={"metric": metric, "runs": str(len(comparison.runs))},
        headline=f"Best {metric}: {best}." if best else "",
        sections=sections,
    )
