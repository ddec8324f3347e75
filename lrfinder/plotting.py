"""Plotting: range tests, schedules and traces as matplotlib Axes. Never shows, never prints.

Figures are made without pyplot, so nothing global changes and no display is needed.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from lrfinder.schedules import Spec, lr_table
from lrfinder.suggestions import Bracket, Suggestion
from lrfinder.suggestions.curves import smoothed
from lrfinder.sweeping import Ramp
from lrfinder.traces import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito, 2008: told apart by all kinds of colour blindness; without yellow, too light for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
STYLES = ("-", "--", ":", "-.")
BRACKET_COLOUR, SUGGESTED_COLOUR, CONTROL_COLOUR = "#56B4E9", "#D55E00", "#000000"
SMALL = 8  # points: legible where a figure is half a column wide
DRAWN_SMOOTHING = 0.7  # less than for reading, so that the strong line stays near the light ones
WIDE_RANGE = 20.0  # from this ratio on, an axis of positive values is logarithmic


class RangeTestResult(Protocol):
    """What is drawn of a range test."""

    @property
    def suggestion(self) -> Suggestion:
        """The brackets and LRs."""

    @property
    def ramps(self) -> Sequence[Ramp]:
        """The ramps."""


# -- range tests ----------------------------------------------------------------------------------


def plot_range_test(result: RangeTestResult, ax: Axes | None = None) -> Axes:
    """Draw the ramps of a range test, one panel for each group and one for all together.

    Each batch order is a light line and their mean, smoothed, a strong one; losses are those after
    the step at the LR. The bracket is shaded, the suggested LR is a line and the best one LR for
    all groups a dashed one. The reason of a refusal is written in. A validation loss is dotted.

    Args:
        result: A `lrfinder.RangeTest`.
        ax: Where to draw; None for a new figure. Several panels share its place, as its
            `child_axes`; one panel is `ax` itself.

    Returns:
        The Axes; its figure is `ax.figure`.
    """
    groups = list(dict.fromkeys(ramp.group for ramp in result.ramps)) or [None]
    if ax is None:
        ax = _new_axes(3.0 * len(groups) + 0.4, 2.8)
    panels = _panels(ax, len(groups))
    for group, panel in zip(groups, panels, strict=True):
        ramps = [ramp for ramp in result.ramps if ramp.group == group]
        bracket = _bracket_of(result, group, alone=len(groups) == 1)
        control = result.suggestion.control or {}
        lr = control.get(group or next(iter(control), ""), None) if len(groups) > 1 else None
        _draw_ramps(panel, ramps)
        _draw_bracket(panel, bracket, lr)
        title = _title(group, bracket, alone=len(groups) == 1)
        panel.set_title(title, fontsize=SMALL + 1)
    panels[0].set_ylabel("loss after the step", fontsize=SMALL)
    handles: dict[str, Any] = {}
    for panel in panels:
        handles |= {
            label: handle for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
        }
    panels[0].legend(
        list(handles.values()), list(handles), fontsize=SMALL - 1, loc="best", framealpha=0.7
    )
    return ax


def _bracket_of(result: RangeTestResult, group: str | None, *, alone: bool) -> Bracket | None:
    brackets = result.suggestion.brackets
    if group is not None:
        return brackets[group]
    if not alone or not brackets:
        return None  # the joint ramp only places the race
    # A test of all together is told by the LR of the group that has the highest.
    return max(brackets.values(), key=lambda bracket: bracket.high)


def _title(group: str | None, bracket: Bracket | None, *, alone: bool) -> str:
    name = group if group is not None else ("" if alone else "all groups together")
    lr = "" if bracket is None or bracket.suggested is None else f"LR {bracket.suggested:.2g}"
    return ": ".join(part for part in (name, lr) if part)


def _draw_ramps(ax: Axes, ramps: Sequence[Ramp]) -> None:
    curves = [_aligned(ramp) for ramp in ramps]
    for x, y in curves:
        ax.plot(x, y, color=COLOURS[0], alpha=0.3, linewidth=0.8)
    length = min((len(x) for x, _ in curves), default=0)
    if length:
        mean = np.mean([y[:length] for _, y in curves], axis=0)
        _limit_losses(ax, mean, [y for _, y in curves])
        top = ax.get_ylim()[1]
        capped = smoothed(np.minimum(mean, top), weight=DRAWN_SMOOTHING)
        ax.plot(
            curves[0][0][:length], capped, color=COLOURS[0], linewidth=1.8, label="training loss"
        )
    evaluated = [ramp for ramp in ramps if "val/loss" in ramp.trace.metrics]
    for index, ramp in enumerate(evaluated):
        label = "validation loss" if index == 0 else None
        ax.plot(
            *_metric(ramp, "val/loss"), linestyle=":", color=COLOURS[2], linewidth=1.2, label=label
        )
    ax.set_xscale("log")
    ax.set_xlim(ramps[0].lrs[0], ramps[0].lrs[-1])
    ax.set_xlabel("learning rate", fontsize=SMALL)
    ax.tick_params(labelsize=SMALL - 1)


def _aligned(ramp: Ramp) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """LRs and the losses after their steps, up to the first that is not finite."""
    losses = ramp.trace.losses
    finite = np.isfinite(losses)
    end = len(losses) if finite.all() else int(finite.argmin())
    return np.array(ramp.lrs[: max(end - 1, 0)]), losses[1:end]


def _metric(ramp: Ramp, name: str) -> tuple[list[float], NDArray[np.float64]]:
    steps, values = ramp.trace.metrics[name]
    return [ramp.lrs[step] for step in steps.tolist()], values


def _limit_losses(
    ax: Axes, mean: NDArray[np.float64], curves: Sequence[NDArray[np.float64]]
) -> None:
    """Show the curve, not the divergence at its end."""
    start = float(np.median(mean[:8]))
    lowest = min(float(curve.min()) for curve in curves)
    height = max(start - lowest, 1e-12 + 1e-6 * abs(start))
    ax.set_ylim(lowest - 0.1 * height, start + 0.6 * height)


def _draw_bracket(ax: Axes, bracket: Bracket | None, control: float | None) -> None:
    if bracket is not None and (not bracket.refused or bracket.status == "bracket_only"):
        ax.axvspan(
            bracket.low, bracket.high, color=BRACKET_COLOUR, alpha=0.2, lw=0, label="bracket"
        )
    if bracket is not None and bracket.suggested is not None:
        ax.axvline(bracket.suggested, color=SUGGESTED_COLOUR, linewidth=1.6, label="suggested")
    if control is not None:
        ax.axvline(
            control, color=CONTROL_COLOUR, linewidth=1.0, linestyle="--", label="best one LR"
        )
    if bracket is not None and bracket.refused:
        text = "\n".join(textwrap.wrap(f"{bracket.status}: {bracket.message}", 38))
        box = {"boxstyle": "round", "facecolor": "white", "alpha": 0.8, "edgecolor": "#999999"}
        ax.text(0.5, 0.97, text, transform=ax.transAxes, fontsize=SMALL - 1, ha="center", va="top",
                bbox=box, color="#202020")  # fmt: skip


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
    ax = _new_axes(4.2, 2.8) if ax is None else ax
    for index, (name, lrs) in enumerate(table.items()):
        style = STYLES[index % len(STYLES)]
        ax.plot(
            np.arange(num_steps),
            lrs,
            style,
            color=_colour(index),
            drawstyle="steps-post",
            label=name,
        )
    _scale(ax, table.values())
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
        The two Axes.

    Raises:
        ValueError: If there is no trace.
    """
    many = {
        label: [given] if isinstance(given, Trace) else list(given)
        for label, given in traces.items()
    }
    if not many or not all(many.values()):
        raise ValueError(f"Each label must have at least one trace, but got {dict(traces)!r}.")
    above, below = _two_axes() if axes is None else axes
    all_lrs = []
    for index, (label, group) in enumerate(many.items()):
        colour = _colour(index)
        lrs = group[0].lrs
        all_lrs += list(lrs.values())
        for number, (name, values) in enumerate(lrs.items()):
            style = STYLES[number % len(STYLES)]
            text = f"{label}: {name}" if len(lrs) > 1 else label
            above.plot(group[0].steps, values, style, color=colour, label=text, linewidth=1.4)
        _draw_losses(below, group, label, colour)
    _scale(above, all_lrs)
    above.set_ylabel("learning rate", fontsize=SMALL)
    below.set_ylabel("training loss", fontsize=SMALL)
    below.set_xlabel("optimizer step", fontsize=SMALL)
    for ax in (above, below):
        ax.tick_params(labelsize=SMALL - 1)
        ax.legend(fontsize=SMALL - 1)
    return above, below


def _draw_losses(ax: Axes, traces: Sequence[Trace], label: str, colour: str) -> None:
    length = min(len(trace) for trace in traces)
    curves = np.array([_finite_part(trace.losses[:length]) for trace in traces])
    mean = curves.mean(axis=0)
    ax.plot(np.arange(length), mean, color=colour, linewidth=1.4, label=label)
    if len(traces) > 1:
        low, high = curves.min(axis=0), curves.max(axis=0)
        ax.fill_between(np.arange(length), low, high, color=colour, alpha=0.2, lw=0)
    for trace in traces[:1]:
        if "val/loss" in trace.metrics:
            steps, values = trace.metrics["val/loss"]
            ax.plot(steps, values, "o", color=colour, markersize=3)


def _finite_part(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Smoothed up to the first loss that is not finite; NaN, which is not drawn, from there on."""
    finite = np.isfinite(losses)
    end = len(losses) if finite.all() else int(finite.argmin())
    return np.concatenate([smoothed(losses[:end]), np.full(len(losses) - end, math.nan)])


# -- figures --------------------------------------------------------------------------------------


def _new_axes(width: float, height: float) -> Axes:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained").subplots()


def _two_axes() -> tuple[Axes, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    above, below = cast("Any", figure.subplots(2, 1, sharex=True))
    return above, below


def _panels(ax: Axes, count: int) -> list[Axes]:
    """Axes side by side in the place of one; the one itself where it is enough."""
    if count == 1:
        return [ax]
    ax.set_axis_off()
    gap = 0.28 / count
    width = (1 - gap * (count - 1)) / count
    return [ax.inset_axes((i * (width + gap), 0, width, 1)) for i in range(count)]


def _scale(ax: Axes, columns: Iterable[NDArray[np.float64]]) -> None:
    values = np.concatenate([column[np.isfinite(column)] for column in columns])
    positive = values[values > 0]
    if len(positive) and positive.max() > WIDE_RANGE * positive.min():
        ax.set_yscale("log" if (values > 0).all() else "linear")


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]
