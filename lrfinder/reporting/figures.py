"""Figures: comparisons and searches as pictures, and pictures as a part of a page."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

from lrfinder.plotting import plot_range_test, plot_search
from lrfinder.plotting.canvas import COLOURS, spans_decades
from lrfinder.rendering.figures import themed
from lrfinder.reporting.arms import ArmComparison

if TYPE_CHECKING:
    import optuna
    from matplotlib.figure import Figure

    from lrfinder.ranging import RangeTest

OTHER, FOUND = COLOURS[:2]


def arms_figure(comparison: ArmComparison) -> Figure:
    """Each seed of each arm as a dot and their mean as a bar, one panel for each measure."""
    from matplotlib.figure import Figure

    measures, arms = comparison.measures, comparison.arms
    with themed():
        figure = Figure(figsize=(4.2 * len(measures), 0.5 * len(arms) + 1.3), layout="constrained")
        panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
        for measure, axes in zip(measures, panels, strict=True):
            for i, arm in enumerate(arms):
                values = [value for value in arm.values[measure.name] if math.isfinite(value)]
                colour = FOUND if arm is comparison.found else OTHER
                axes.plot(values, [i] * len(values), "o", color=colour, alpha=0.7)
                if values:
                    axes.plot([arm.mean(measure.name)] * 2, [i - 0.3, i + 0.3], color=colour, lw=2)
                else:
                    axes.text(0.5, i, "diverged", ha="center", va="center",
                              transform=axes.get_yaxis_transform())  # fmt: skip
            axes.set_xlabel(measure.name)
            if spans_decades([value for arm in arms for value in arm.values[measure.name]]):
                axes.set_xscale("log")
            axes.set_yticks(range(len(arms)), [arm.name for arm in arms])
            axes.set_ylim(len(arms) - 0.5, -0.5)
            axes.grid(axis="x", alpha=0.3)
    return figure


def range_figure(result: RangeTest) -> Figure:
    """The ramps of a range test, as its own plot shows them."""
    with themed():
        return cast("Figure", plot_range_test(result).figure)


def search_figure(study: optuna.Study) -> Figure:
    """The objective of each trial against each thing searched, as `lrfinder.plot_search` shows it."""
    with themed():
        return cast("Figure", plot_search(study).figure)
