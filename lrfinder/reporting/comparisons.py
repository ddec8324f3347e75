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
    metric, winner = comparison.metric, comparison.winner
    best = "" if winner is None else f"{winner.name}, {comparison.best(winner)[0]:.4g}"
    picture = Section(
        title="Learning rates and losses",
        figures={
            "A colour is a variant, a line style a param group; a band is the spread over seeds, "
            "from the lowest to the highest.": comparison.plot()[0].figure
        },
    )
    sections = [picture, _runs_section(comparison)]
    if any(len(variant.runs) > 1 for variant in comparison.variants):
        sections.insert(1, _seeds_section(comparison))
    return Report(
        title=f"{metric} of {len(comparison.runs)} runs",
        facts={"metric": metric, "runs": str(len(comparison.runs))},
        headline=f"Best {metric}: {best}." if best else "",
        sections=sections,
    )


def _seeds_section(comparison: Comparison) -> Section:
    differing, metric = comparison.differing_but_seed, comparison.metric
    heads = [Column("variant"), *_hparam_columns(differing)]
    heads += [Column(f"{kind} {metric}", number=True) for kind in ("last", "best")]
    heads += [Column(title, number=True) for title in ("runs", "diverged")]
    rows = []
    for row in comparison.summary().to_dict("records"):
        cells = [row["variant"], *(_text(row[name]) for name in differing)]
        cells += [_mean(row["final"], row["final_sd"]), _mean(row["best"], row["best_sd"])]
        rows.append(Row((*cells, str(row["runs"]), str(row["diverged"]))))
    note = (
        "Runs that differ in their seed alone: mean ± standard deviation over those with a finite "
        "value."
    )
    return Section(title="Over seeds", tables=(Table(tuple(heads), tuple(rows)),), notes=[note])


def _runs_section(comparison: Comparison) -> Section:
    differing, winner = comparison.differing, comparison.winner
    heads = [Column("run"), *_hparam_columns(differing)]
    heads += [Column(title, number=True) for title in ("last", "best", "at step", "steps")]
    rows = []
    for row in comparison.to_frame().to_dict("records"):
        is_best = winner is not None and row["run"] == winner.run_id
        cells = [f"{row['name']} *" if is_best else row["name"]]
        cells += [_text(row[name]) for name in differing]
        cells += [format_number(row["final"]), format_number(row["best"])]
        rows.append(Row((*cells, _text(row["best_step"]), _text(row["steps"]), row["status"])))
    table = Table((*heads, Column("status")), tuple(rows))
    return Section(title="Runs", tables=(table,), notes=["The best one is marked with *."])


def _hparam_columns(names: Sequence[str]) -> list[Column]:
    return [Column(name.removeprefix("cfg/")) for name in names]


def _text(value: object) -> str:
    if value is None or value != value or str(value) == "<NA>":
        return "-"
    return format_number(value) if isinstance(value, float) else str(value)


def _mean(mean: float, spread: float) -> str:
    return format_number(mean) + (f" ± {spread:.2g}" if spread == spread else "")
