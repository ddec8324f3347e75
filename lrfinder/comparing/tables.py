"""Tables: recorded runs side by side, as rows of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lrfinder.rendering.tables import Column, Row, Table, format_number

if TYPE_CHECKING:
    from lrfinder.comparing import Comparison


def runs_table(comparison: Comparison) -> Table:
    """One row for each run: the hparams that differ, last and best of the metric; `*` is the best."""
    differing, winner = comparison.differing, comparison.winner
    heads = [Column("run"), *hparam_columns(differing)]
    heads += [Column(title, number=True) for title in ("last", "best", "at step", "steps")]
    rows = []
    for row in comparison.to_frame().to_dict("records"):
        is_best = winner is not None and row["run"] == winner.run_id
        cells = [f"{row['name']} *" if is_best else row["name"]]
        cells += [cell_text(row[name]) for name in differing]
        cells += [format_number(row["final"]), format_number(row["best"])]
        cells += [cell_text(row["best_step"]), cell_text(row["steps"]), row["status"]]
        rows.append(Row(tuple(cells)))
    return Table((*heads, Column("status")), tuple(rows))


def seeds_table(comparison: Comparison) -> Table:
    """One row for each variant: mean ± standard deviation over its seeds."""
    differing, metric = comparison.differing_but_seed, comparison.metric
    heads = [Column("variant"), *hparam_columns(differing)]
    heads += [Column(f"{kind} {metric}", number=True) for kind in ("last", "best")]
    heads += [Column(title, number=True) for title in ("runs", "diverged")]
    rows = []
    for row in comparison.summary().to_dict("records"):
        cells = [row["variant"], *(cell_text(row[name]) for name in differing)]
        cells += [_mean(row["final"], row["final_sd"]), _mean(row["best"], row["best_sd"])]
        rows.append(Row((*cells, str(row["runs"]), str(row["diverged"]))))
    return Table(tuple(heads), tuple(rows))


def hparam_columns(names: Sequence[str]) -> list[Column]:
    """Columns of hparams, without the prefix that their records have."""
    return [Column(name.removeprefix("cfg/")) for name in names]


def cell_text(value: object) -> str:
    """A value of the frame as text; a dash where there is none."""
    if value is None or value != value or str(value) == "<NA>":
        return "-"
    return format_number(value) if isinstance(value, float) else str(value)


def _mean(mean: float, spread: float) -> str:
    return format_number(mean) + (f" ± {spread:.2g}" if spread == spread else "")
