"""Comparing: recorded runs side by side, as a frame, a table and a picture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lrfinder.comparing.histories import NO_CURVE, RecordedRun, read_runs
from lrfinder.comparing.pictures import plot_variants
from lrfinder.comparing.tables import runs_table, seeds_table
from lrfinder.comparing.variants import SEEDS, TRIAL, Variant, find_variants, mean_and_spread
from lrfinder.rendering.figures import figure_svg, themed
from lrfinder.rendering.fragments import html_fragment
from lrfinder.rendering.tables import terminal_table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from rich.table import Table as RichTable

Direction: TypeAlias = Literal["minimize", "maximize"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs side by side.

    Attributes:
        runs: In the order in which they were named, else the newest first.
        metric: What they are compared by.
        direction: Whether it is better low or high.
    """

    runs: tuple[RecordedRun, ...]
    metric: str
    direction: Direction = "minimize"

    def final(self, run: RecordedRun) -> float:
        """The last value of the metric; NaN where the run has none."""
        _, values = run.curves.get(self.metric, NO_CURVE)
        return float(values[-1]) if len(values) else math.nan

    def best(self, run: RecordedRun) -> tuple[float, int | None]:
        """The best finite value of the metric, and its step; (NaN, None) where there is none."""
        steps, values = run.curves.get(self.metric, NO_CURVE)
        finite = np.flatnonzero(np.isfinite(values))
        if not len(finite):
            return math.nan, None
        signed = values[finite] if self.direction == "minimize" else -values[finite]
        index = finite[np.argmin(signed)]
        return float(values[index]), int(steps[index])

    @property
    def winner(self) -> RecordedRun | None:
        """The run with the best value of the metric; None where no run has a finite one."""
        rated = [(self.best(run)[0], run) for run in self.runs if self.best(run)[1] is not None]
        choose = min if self.direction == "minimize" else max
        return choose(rated, key=lambda pair: pair[0])[1] if rated else None

    @property
    def differing(self) -> list[str]:
        """The hparams that are not the same in every run; not Optuna's numbers that they are made of."""
        found = {name for run in self.runs for name in run.hparams}
        names = sorted(name for name in found if not name.startswith(TRIAL))
        return [name for name in names if len({run.hparams.get(name) for run in self.runs}) > 1]

    def to_frame(self) -> pd.DataFrame:
        """One row for each run.

        Columns: run, name, the hparams that differ, final, best and best_step of the metric, steps
        and status.
        """
        import pandas as pd

        rows = []
        for run in self.runs:
            best, best_step = self.best(run)
            rows.append(
                {
                    "run": run.run_id,
                    "name": run.name,
                    **{name: _number(run.hparams.get(name)) for name in self.differing},
                    "final": self.final(run),
                    "best": best,
                    "best_step": best_step,
                    "steps": run.num_steps,
                    "status": run.status,
                }
            )
        return pd.DataFrame(rows).astype({"best_step": "Int64"})

    @property
    def variants(self) -> list[Variant]:
        """Runs that differ in their seed alone, taken together."""
        return find_variants(self.runs)

    def summary(self) -> pd.DataFrame:
        """One row for each variant: what differs, and mean and spread over its seeds.

        Columns: variant, the hparams that differ (without the seed), runs, diverged (runs without a
        finite last value), and `final`, `final_sd`, `best`, `best_sd`: means and standard
        deviations over the runs with a finite value.
        """
        import pandas as pd

        rows = []
        for variant in self.variants:
            finals = [self.final(run) for run in variant.runs]
            final, final_sd = mean_and_spread(finals)
            best, best_sd = mean_and_spread([self.best(run)[0] for run in variant.runs])
            hparams = variant.runs[0].hparams
            rows.append(
                {
                    "variant": variant.name,
                    **{name: _number(hparams.get(name)) for name in self.differing_but_seed},
                    "runs": len(finals),
                    "diverged": sum(not math.isfinite(value) for value in finals),
                    "final": final,
                    "final_sd": final_sd,
                    "best": best,
                    "best_sd": best_sd,
                }
            )
        return pd.DataFrame(rows)

    @property
    def differing_but_seed(self) -> list[str]:
        """The hparams that make the variants."""
        return [
            name
            for name in self.differing
            if name not in SEEDS and len({v.runs[0].hparams.get(name) for v in self.variants}) > 1
        ]

    def table(self) -> RichTable:
        """The frame as a rich table; the best run is marked with `*`."""
        return terminal_table(runs_table(self), f"{self.metric} of {len(self.runs)} runs")

    def _repr_html_(self) -> str:
        """Table and curves, as a notebook shows them; nothing outside is referred to."""
        with themed():
            figure = self.plot()[0].figure
        tables = [runs_table(self)]
        if any(len(variant.runs) > 1 for variant in self.variants):
            tables.insert(0, seeds_table(self))
        return html_fragment(tables=tables, svgs=[figure_svg(figure)])

    def plot(self, axes: Sequence[Axes] | None = None) -> NDArray[Any]:
        """LR trajectories above, losses below, on one axis of optimizer steps. Shows nothing.

        A colour is a variant, a line style is a param group. Runs that differ in their seed alone
        are drawn as their mean and a band from the lowest to the highest. Below, the thin lines
        are `train/loss`.

        Args:
            axes: Two Axes to draw on; None for those of a new figure.

        Returns:
            The two Axes, shape (2,); `axes[0].figure` is the figure.
        """
        return plot_variants(self.variants, self.metric, axes)


def compare(
    runs: str | Iterable[str] | None = None,
    *,
    experiment: str | None = None,
    study: str | None = None,
    metric: str = "val/loss",
    direction: Direction = "minimize",
    filter: str | None = None,
    tracking_uri: str | None = None,
) -> Comparison:
    """Read runs back from MLflow, with their whole curves, and put them side by side.

    Args:
        runs: Ids or names. An id of a run with children stands for its children, and a name for
            all runs of that name. None for the 12 newest runs of the experiment with the metric.
        experiment: The name of the experiment in which names are looked for; None for the one of
            MLflow's environment, else "Default".
        study: The name of a study of `lrfinder.search`: its trials in that experiment, the
            12 best of them.
        metric: What they are compared by.
        direction: Whether it is better low ("minimize") or high ("maximize").
        filter: An expression of MLflow's search which every run must satisfy too, as
            "params.`cfg/seed` = '0'".
        tracking_uri: None for `mlflow.get_tracking_uri()`.

    Raises:
        ValueError: If there is no such experiment, run or metric; what there is is listed.
        RecordError: If the store cannot be read.
    """
    if direction not in ("minimize", "maximize"):
        raise ValueError(f"`direction` must be 'minimize' or 'maximize', but got {direction!r}.")
    read = read_runs(
        runs,
        experiment=experiment,
        study=study,
        metric=metric,
        direction=direction,
        filter=filter,
        tracking_uri=tracking_uri,
    )
    return Comparison(runs=read, metric=metric, direction=direction)


def _number(text: str | None) -> Any:
    """A param as a number, if it is one."""
    for kind in (int, float):
        try:
            return kind(text)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            pass
    return text
