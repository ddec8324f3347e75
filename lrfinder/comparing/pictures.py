"""Pictures: variants of a training over each other, learning rates above, losses below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lrfinder.comparing.histories import NO_CURVE
from lrfinder.comparing.variants import Variant
from lrfinder.plotting.canvas import (
    COLOURS,
    MARKERS,
    SMALL,
    STYLES,
    WIDE_RANGE,
    colour,
    ink,
    spans_decades,
    two_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_variants(
    variants: Sequence[Variant], metric: str, axes: Sequence[Axes] | None
) -> NDArray[Any]:
    """The picture of `Comparison.plot`, on two Axes or those of a new figure."""
    pair = np.empty(2, dtype=object)
    pair[:] = two_axes(6.4, 5.6, height_ratios=(2, 3)) if axes is None else list(axes)
    _plot_lrs(pair[0], variants)
    _plot_losses(pair[1], variants, metric)
    return pair


def _style(index: int) -> dict[str, Any]:
    marker = MARKERS[index // len(COLOURS) % len(MARKERS)]
    return {"color": colour(index), "marker": marker, "markersize": 4}


def _labels(variants: Sequence[Variant]) -> list[str]:
    """The variants' names, with how many runs they have, or the start of the id where two are equal."""
    names = [variant.name for variant in variants]
    labels = []
    for variant in variants:
        if len(variant.runs) > 1:
            labels.append(f"{variant.name}, {len(variant.runs)} runs")
        elif names.count(variant.name) > 1:
            labels.append(f"{variant.name} ({variant.runs[0].run_id[:6]})")
        else:
            labels.append(variant.name)
    return labels


def _draw(axes: Axes, variant: Variant, metric: str, **style: Any) -> None:
    """One curve, or the mean of several and a band from the lowest to the highest."""
    found = variant.band(metric)
    if found is None:
        return
    steps, (mean, low, high) = found
    axes.plot(steps, mean, **style)
    if len(variant.runs) > 1:
        axes.fill_between(steps, low, high, color=style["color"], alpha=0.2, linewidth=0)


def _plot_lrs(axes: Axes, variants: Sequence[Variant]) -> None:
    from matplotlib.lines import Line2D

    runs = [run for variant in variants for run in variant.runs]
    groups = list(dict.fromkeys(group for run in runs for group in run.lrs))
    for index, variant in enumerate(variants):
        for group in variant.runs[0].lrs:
            line = STYLES[groups.index(group) % len(STYLES)]
            _draw(axes, variant, f"lr/{group}", linestyle=line, markevery=0.1, **_style(index))
    if any(np.any(lrs > 0) for run in runs for _, lrs in run.lrs.values()):
        axes.set_yscale("log")  # an LR of 0 is a gap in it
    axes.set_ylabel("learning rate", fontsize=SMALL)
    axes.tick_params(labelsize=SMALL - 1)
    if groups:
        styles = [STYLES[i % len(STYLES)] for i in range(len(groups))]
        handles = [Line2D([], [], color=ink(), linestyle=style) for style in styles]
        axes.legend(
            handles, groups, title="param group", fontsize=SMALL - 1, title_fontsize=SMALL - 1
        )


def _plot_losses(axes: Axes, variants: Sequence[Variant], metric: str) -> None:
    from matplotlib.lines import Line2D

    for index, variant in enumerate(variants):
        style = _style(index)
        if metric != "train/loss":
            _draw(axes, variant, "train/loss", color=style["color"], linewidth=0.6, alpha=0.35)
        if any(len(run.curves.get(metric, NO_CURVE)[0]) < 3 for run in variant.runs):
            style["marker"] = "o"  # a line of one point cannot be seen
        _draw(axes, variant, metric, linewidth=1.8, markevery=0.1, **style)
    drawn = np.concatenate([[], *(line.get_ydata() for line in axes.lines)]).astype(float)
    if spans_decades(drawn, WIDE_RANGE):
        axes.set_yscale("log")  # else one loss that jumped makes a flat line of all others
    axes.set_xlabel("optimizer step", fontsize=SMALL)
    label = metric if metric == "train/loss" else f"{metric} (thin: train/loss)"
    axes.set_ylabel(label, fontsize=SMALL)
    axes.tick_params(labelsize=SMALL - 1)
    handles = [Line2D([], [], linewidth=1.8, **_style(index)) for index in range(len(variants))]
    axes.legend(handles, _labels(variants), fontsize=SMALL - 1)
