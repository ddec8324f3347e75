"""Searches as pictures: the objective against each thing that was searched, the ratios first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lrfinder.plotting.canvas import (
    COLOURS,
    GREY,
    SMALL,
    ink,
    one_legend,
    panelled_axes,
    panels_in,
    spans_decades,
)

if TYPE_CHECKING:
    import optuna
    from matplotlib.axes import Axes
    from optuna.distributions import BaseDistribution

MARKS = (("COMPLETE", "completed", "o", COLOURS[0]), ("PRUNED", "pruned", "x", GREY))

MARGIN = 0.04  # of the range that was searched, at either side


def plot_search(
    study: optuna.Study,
    ax: Axes | None = None,
    *,
    width: float | None = None,
    objective: int = 0,
) -> Axes:
    """Draw the objective of each trial against each hparam searched, one panel for each.

    Ratios of groups come first, then the others as they were proposed. A trial that was completed
    is a dot, the best of them a star, one that was pruned a cross at the last value that it
    reported. Trials without a finite value are not drawn. A panel is as wide as what was searched,
    and logarithmic where the search is; so is the objective where it spans decades.

    Args:
        study: Of `lrfinder.search`, or any study of Optuna; it needs no trials.
        ax: Where to draw; None for a new figure. The panels share its place, as its `child_axes`.
        width: Of the new figure, inches, >= 2; None for as wide as the panels want.
        objective: Which of a study's several objectives, 0-based.

    Returns:
        The Axes; its figure is `ax.figure`. A notebook shows it.

    Raises:
        ValueError: If the study has no such objective, or the width has no room for a panel.
    """
    if not 0 <= objective < len(study.directions):
        raise ValueError(
            f"`0 <= objective < {len(study.directions)}` must hold for this study, but got "
            f"objective={objective}."
        )
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.params]
    found = {trial.number: _last_value(trial, objective) for trial in trials}
    values = {number: value for number, value in found.items() if value is not None}
    shown = [trial for trial in trials if trial.number in values]
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    names.sort(key=lambda name: not name.startswith("ratio/"))  # the ratios first
    if ax is None:
        ax = panelled_axes(max(1, len(names)), width)
    panels = panels_in(ax, max(1, len(names)))
    completed = [trial for trial in shown if trial.state.name == "COMPLETE"]
    sign = -1.0 if study.directions[objective].name == "MAXIMIZE" else 1.0
    best = min(completed, key=lambda trial: sign * values[trial.number], default=None)
    for name, panel in zip(names, panels, strict=False):
        for state, label, mark, shade in MARKS:
            chosen = [t for t in shown if name in t.params and t.state.name == state]
            if chosen:
                panel.plot(
                    [trial.params[name] for trial in chosen],
                    [values[trial.number] for trial in chosen],
                    mark,
                    color=shade,
                    alpha=0.8,
                    markersize=4,
                    label=label,
                )
        if best is not None and name in best.params:
            star = ([best.params[name]], [values[best.number]])
            panel.plot(*star, "*", color=COLOURS[1], markeredgecolor=ink(), markeredgewidth=0.5,
                       markersize=11, label=f"best, trial {best.number}")  # fmt: skip
        _show_range(panel, [t.distributions[name] for t in trials if name in t.distributions])
        if spans_decades(list(values.values())):
            panel.set_yscale("log")
        panel.set_xlabel(name, fontsize=SMALL)
    for panel in panels:
        panel.grid(alpha=0.3)
        panel.tick_params(labelsize=SMALL - 1, which="both")
    panels[0].set_ylabel("objective", fontsize=SMALL)
    one_legend(panels)
    return ax


def _show_range(panel: Axes, distributions: Sequence[BaseDistribution]) -> None:
    """The whole range that was searched, so that a trial at its edge is seen to be there."""
    bounds = [(d.low, d.high) for d in distributions if hasattr(d, "low") and hasattr(d, "high")]
    if not bounds:
        return  # choices by name
    low, high = min(low for low, _ in bounds), max(high for _, high in bounds)
    if not high > low:
        return
    if any(getattr(one, "log", False) for one in distributions):
        from matplotlib.ticker import NullFormatter

        panel.set_xscale("log")
        margin = (high / low) ** MARGIN
        panel.set_xlim(low / margin, high * margin)
        if high >= 10 * low:
            panel.xaxis.set_minor_formatter(NullFormatter())  # powers of ten are enough
    else:
        panel.set_xlim(low - MARGIN * (high - low), high + MARGIN * (high - low))


def _last_value(trial: optuna.trial.FrozenTrial, objective: int) -> float | None:
    """The objective, or the last that a pruned trial reported; None where none is finite."""
    if trial.values is not None:
        value: float | None = trial.values[objective]
    else:
        value = trial.intermediate_values.get(trial.last_step or 0)
    return value if value is not None and math.isfinite(value) else None
