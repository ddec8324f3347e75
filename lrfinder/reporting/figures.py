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
        figure = Figure(figsize=(3.0 * max(1, len(names)), 2.8), layout="constrained")
        panels = figure.subplots(1, max(1, len(names)), sharey=True, squeeze=False)[0]
        for name, axes in zip(names, panels, strict=False):
            for state, mark, colour in (("COMPLETE", "o", OTHER), ("PRUNED", "x", GREY)):
                points = [
                    (trial.params[name], value)
                    for trial in trials
                    if name in trial.params
                    and trial.state.name == state
                    and (value := _last_value(trial)) is not None
                ]
                if points:
                    axes.plot(*zip(*points, strict=True), mark, color=colour, alpha=0.8)
            if any(getattr(trial.distributions.get(name), "log", False) for trial in trials):
                axes.set_xscale("log")
            axes.set_xlabel(name)
            axes.grid(alpha=0.3)
        panels[0].set_ylabel("objective")
        values = [value for trial in trials if (value := _last_value(trial)) is not None]
        if _spans_decades(values):
            panels[0].set_yscale("log")
    return figure


def _spans_decades(values: Sequence[float]) -> bool:
    """Whether values are told apart better on a log scale."""
    finite = [value for value in values if math.isfinite(value)]
    return bool(finite) and min(finite) > 0 and max(finite) > 5 * min(finite)


def _last_value(trial: optuna.trial.FrozenTrial) -> float | None:
    """The objective, or the last that a pruned trial reported; None where none is finite."""
    value = (
        trial.values[0]
        if trial.values is not None
        else trial.intermediate_values.get(trial.last_step or 0)
    )
    return value if value is not None and math.isfinite(value) else None


def themed() -> AbstractContextManager[None]:
    """Figures made in here suit light and dark pages once `figure_svg` wrote them."""
    import matplotlib

    ink = ["text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor"]
    ink += ["xtick.color", "ytick.color"]
    settings: dict[Any, Any] = {"svg.fonttype": "none", "font.size": 9}
    return matplotlib.rc_context(settings | dict.fromkeys(ink, INK))


def figure_svg(figure: Figure, name: str = "figure") -> str:
    """A figure as inline SVG whose ink is the colour of the page's text.

    Args:
        figure: Made under `themed`.
        name: Its own on the page, so that no two figures share the names of their parts.

    Fonts are the page's, and nothing outside is referred to.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for ink in (INK, "#000000", "black"):
        text = text.replace(f": {ink}", ": currentColor").replace(f'"{ink}"', '"currentColor"')
    return text
