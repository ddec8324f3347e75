"""Schedules and trainings as pictures: learning rates over steps, losses below on the same axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from lrfinder.plotting.canvas import SMALL, STYLES, colour, new_axes, scale_lrs, two_axes
from lrfinder.rendering.figures import figure_svg, themed
from lrfinder.rendering.fragments import html_fragment
from lrfinder.rendering.tables import Column, Row, Table, format_number
from lrfinder.schedules import Spec, lr_table
from lrfinder.suggestions.smoothing import smoothed
from lrfinder.traces import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# -- schedules ------------------------------------------------------------------------------------


def plot_lr_table(
    spec: Spec,
    base_lrs: float | Mapping[str, float],
    num_steps: int,
    ax: Axes | None = None,
) -> Axes:
    """Draw the learning rates that a schedule gives, one line for each group. Trains nothing.

    Args:
        spec: As of `lrfinder.build_scheduler`.
        base_lrs: Group -> LR before its schedule, or one number.
        num_steps: Scheduler steps, >= 1: epochs, or optimizer steps where the spec says so.
        ax: Where to draw; None for a new figure.

    Raises:
        ValueError: As `lrfinder.lr_table`.
    """
    table = lr_table(spec, base_lrs, num_steps=num_steps)
    ax = new_axes(4.2, 2.8) if ax is None else ax
    for index, (name, lrs) in enumerate(table.items()):
        style = STYLES[index % len(STYLES)]
        ax.plot(
            np.arange(num_steps),
            lrs,
            linestyle=style,
            color=colour(index),
            drawstyle="steps-post",
            label=name,
        )
    scale_lrs(ax, table.values())
    ax.set_xlabel("scheduler step", fontsize=SMALL)
    ax.set_ylabel("learning rate", fontsize=SMALL)
    ax.tick_params(labelsize=SMALL - 1)
    if len(table) > 1:
        ax.legend(fontsize=SMALL - 1)
    return ax


# -- traces ---------------------------------------------------------------------------------------


def plot_traces(
    traces: Mapping[str, Trace | Sequence[Trace]], axes: tuple[Axes, Axes] | None = None
) -> tuple[Axes, Axes]:
    """Draw trainings over each other: learning rates above, losses below, on the same step axis.

    Losses are smoothed without a lag. Several traces of one label (seeds) are drawn as their mean
    and a band from the lowest to the highest, as far as all of them go.

    Args:
        traces: Label -> a trace, or several of the same groups.
        axes: Where to draw the LRs and the losses; None for a new figure.

    Returns:
        The two Axes. A notebook shows them.

    Raises:
        ValueError: If there is no trace.
    """
    many = {
        label: [given] if isinstance(given, Trace) else list(given)
        for label, given in traces.items()
    }
    if not many or not all(many.values()):
        raise ValueError(f"Each label must have at least one trace, but got {dict(traces)!r}.")
    pair = two_axes(4.6, 4.2) if axes is None else axes
    above, below = pair
    all_lrs = []
    for index, (label, group) in enumerate(many.items()):
        shade = colour(index)
        lrs = group[0].lrs
        all_lrs += list(lrs.values())
        for number, (name, values) in enumerate(lrs.items()):
            style = STYLES[number % len(STYLES)]
            text = f"{label}: {name}" if len(lrs) > 1 else label
            above.plot(
                group[0].steps, values, linestyle=style, color=shade, label=text, linewidth=1.4
            )
        _draw_losses(below, group, label, shade)
    scale_lrs(above, all_lrs)
    above.set_ylabel("learning rate", fontsize=SMALL)
    below.set_ylabel("training loss", fontsize=SMALL)
    below.set_xlabel("optimizer step", fontsize=SMALL)
    for ax in (above, below):
        ax.tick_params(labelsize=SMALL - 1)
        ax.legend(fontsize=SMALL - 1)
    return pair


def trace_html(trace: Trace) -> str:
    """A trace as a notebook shows it: what it began and ended with, and its curves where it has steps."""
    columns = {f"lr/{name}": values for name, values in trace.lrs.items()}
    columns["train/loss"] = trace.losses
    columns |= {name: values for name, (_, values) in trace.metrics.items()}
    rows = [
        Row((name, *(format_number(float(v)) for v in (values[0], values[-1]))))
        for name, values in columns.items()
        if len(values)
    ]
    heads = (Column(trace.name), Column("first", number=True), Column("last", number=True))
    svgs = []
    if len(trace):
        with themed():
            above, _ = plot_traces({trace.name or "trace": trace})
        svgs = [figure_svg(cast("Figure", above.figure))]
    return html_fragment(
        tables=[Table(heads, tuple(rows))] if rows else (),
        texts=[f"{len(trace)} steps, {trace.status}. {trace.message}".rstrip()],
        svgs=svgs,
    )


def _draw_losses(ax: Axes, traces: Sequence[Trace], label: str, shade: str) -> None:
    length = min(len(trace) for trace in traces)
    curves = np.array([_finite_part(trace.losses[:length]) for trace in traces])
    mean = curves.mean(axis=0)
    ax.plot(np.arange(length), mean, color=shade, linewidth=1.4, label=label)
    if len(traces) > 1:
        low, high = curves.min(axis=0), curves.max(axis=0)
        ax.fill_between(np.arange(length), low, high, color=shade, alpha=0.2, lw=0)
    for trace in traces[:1]:
        if "val/loss" in trace.metrics:
            steps, values = trace.metrics["val/loss"]
            ax.plot(steps, values, "o", color=shade, markersize=3)


def _finite_part(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Smoothed up to the first loss that is not finite; NaN, which is not drawn, from there on."""
    finite = np.isfinite(losses)
    end = len(losses) if finite.all() else int(finite.argmin())
    return np.concatenate([smoothed(losses[:end]), np.full(len(losses) - end, math.nan)])
