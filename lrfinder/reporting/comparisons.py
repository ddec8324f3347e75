"""Comparisons: recorded runs side by side, as a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lrfinder.reporting import Report, Section
from lrfinder.reporting.tables import Column, Row, Table, format_number

if TYPE_CHECKING:
    from lrfinder.comparing import Comparison


def comparison_report(comparison: Comparison) -> Report:
    """Recorded runs side by side: the report behind `compare.html`."""
    metric = comparison.metric
    differing = comparison.differing_but_seed
    heads = [Column("runs that differ in their seed alone"), *_hparam_columns(differing)]
    heads += [Column(f"{kind} {metric}", number=True) for kind in ("last", "best")]
    heads += [Column(title, number=True) for title in ("runs", "diverged")]
    rows = []
    for row in comparison.summary().to_dict("records"):
        cells = [row["variant"], *(_text(row[name]) for name in differing)]
        cells += [_mean(row["final"], row["final_sd"]), _mean(row["best"], row["best_sd"])]
        rows.append(Row((*cells, str(row["runs"]), str(row["diverged"]))))
    each = [Column("run"), *_hparam_columns(comparison.differing)]
    each += [Column(title, number=True) for title in ("last", "best", "at step", "steps")]
    runs = []
    for row in comparison.to_frame().to_dict("records"):
        cells = [row["name"], *(_text(row[name]) for name in comparison.differing)]
        cells += [format_number(row["final"]), format_number(row["best"])]
        runs.append(Row((*cells, _text(row["best_step"]), _text(row["steps"]), row["status"])))
    sections = [
        Section(
            title="Learning rates and losses",
            figures={
                "A colour is a variant, a line style a param group; a band is the spread over "
                "seeds, from the lowest to the highest.": comparison.plot()[0].figure
            },
        ),
        Section(title="Means", tables=(Table(tuple(heads), tuple(rows)),),
                notes=["Mean ± standard deviation over the runs with a finite value."]),
        Section(title="Runs", tables=(Table((*each, Column("status")), tuple(runs)),)),
    ]  # fmt: skip
    winner = comparison.winner
    best = (
        ""
        if winner is None
        else f"Best {metric}: {winner.name}, {comparison.best(winner)[0]:.4g}."
    )
    facts = {"metric": metric, "runs": str(len(comparison.runs))}
    return Report(title=f"{metric} of {len(comparison.runs)} runs", facts=facts, headline=best,
                  sections=sections)  # fmt: skip


def _hparam_columns(names: Sequence[str]) -> list[Column]:
    return [Column(name.removeprefix("cfg/")) for name in names]


def _text(value: object) -> str:
    if value is None or value != value or str(value) == "<NA>":
        return "-"
    return format_number(value) if isinstance(value, float) else str(value)


def _mean(mean: float, spread: float) -> str:
    return format_number(mean) + (f" ± {spread:.2g}" if spread == spread else "")
