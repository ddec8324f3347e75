"""Range tests as pictures: one panel for each group, with its bracket and the spread of its ramps."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from lrfinder.plotting.canvas import COLOURS, SMALL, ink, one_legend, panelled_axes, panels_in
from lrfinder.suggestions import Bracket, Suggestion
from lrfinder.suggestions.smoothing import smoothed
from lrfinder.sweeping import Ramp

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOSS_COLOUR, SUGGESTED_COLOUR, VALIDATION_COLOUR = COLOURS[:3]
BRACKET_COLOUR = "#56B4E9"
BEST_HEIGHT = 0.03  # of the panel
DRAWN_SMOOTHING = 0.7  # less than for reading, so that the strong line stays near the light ones


class RangeTestResult(Protocol):
    """What is drawn of a range test."""

    @property
    def suggestion(self) -> Suggestion:
        """The brackets and LRs."""

    @property
    def ramps(self) -> Sequence[Ramp]:
        """The ramps."""


def plot_range_test(
    result: RangeTestResult, ax: Axes | None = None, *, width: float | None = None
) -> Axes:
    """Draw the ramps of a range test, one panel for each group and one for all together.

    Each batch order is a light line and their mean, smoothed, a strong one; losses are those after
    the step at the LR. The bracket is shaded, the suggested LR is a line, with the range of the
    best three of the race at its foot, and the best one LR for all groups is a dashed one. The
    reason of a refusal is written in. A validation loss is dotted.

    Args:
        result: A `lrfinder.RangeTest`.
        ax: Where to draw; None for a new figure. Several panels share its place, as its
            `child_axes`, as many side by side as there is room for; one panel is `ax` itself.
        width: Of the new figure, inches, >= 2; None for as wide as the panels want.

    Returns:
        The Axes; its figure is `ax.figure`. A notebook shows it.

    Raises:
        ValueError: If the width has no room for a panel.
    """
    groups = list(dict.fromkeys(ramp.group for ramp in result.ramps)) or [None]
    if ax is None:
        ax = panelled_axes(len(groups), width)
    panels = panels_in(ax, len(groups))
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
    one_legend(panels)
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
        ax.plot(x, y, color=LOSS_COLOUR, alpha=0.3, linewidth=0.8)
    length = min((len(x) for x, _ in curves), default=0)
    if length:
        mean = np.mean([y[:length] for _, y in curves], axis=0)
        _limit_losses(ax, mean, [y for _, y in curves])
        top = ax.get_ylim()[1]
        capped = smoothed(np.minimum(mean, top), weight=DRAWN_SMOOTHING)
        ax.plot(
            curves[0][0][:length], capped, color=LOSS_COLOUR, linewidth=1.8, label="training loss"
        )
    evaluated = [ramp for ramp in ramps if "val/loss" in ramp.trace.metrics]
    for index, ramp in enumerate(evaluated):
        label = "validation loss" if index == 0 else None
        ax.plot(
            *_metric(ramp, "val/loss"),
            linestyle=":",
            color=VALIDATION_COLOUR,
            linewidth=1.2,
            label=label,
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
    if bracket is not None and bracket.known:
        ax.axvspan(
            bracket.low, bracket.high, color=BRACKET_COLOUR, alpha=0.2, lw=0, label="bracket"
        )
    if bracket is not None and bracket.suggested is not None:
        ax.axvline(bracket.suggested, color=SUGGESTED_COLOUR, linewidth=1.6, label="suggested")
        if bracket.best is not None:
            ax.plot(
                bracket.best,
                (BEST_HEIGHT, BEST_HEIGHT),
                color=SUGGESTED_COLOUR,
                linewidth=4,
                alpha=0.6,
                solid_capstyle="butt",
                transform=ax.get_xaxis_transform(),
                label="best of the race",
            )
    if control is not None:
        ax.axvline(control, color=ink(), linewidth=1.0, linestyle="--", label="best one LR")
    if bracket is not None and bracket.refused:
        lines = textwrap.wrap(f"{bracket.status}: {bracket.message}", 38)
        _make_room(ax, len(lines))
        box = {"boxstyle": "round", "facecolor": "white", "alpha": 0.8, "edgecolor": "#999999"}
        ax.text(0.5, 0.97, "\n".join(lines), transform=ax.transAxes, fontsize=SMALL - 1,
                ha="center", va="top", bbox=box, color="#202020")  # fmt: skip


def _make_room(ax: Axes, lines: int) -> None:
    """Leave the top of the panel to so many lines of text, so that they hide nothing of the curve."""
    height = ax.get_position().height * ax.figure.bbox.height / ax.figure.dpi * 72  # in points
    share = min((1.3 * lines + 1.5) * (SMALL - 1) / height, 0.6)
    low, high = ax.get_ylim()
    ax.set_ylim(low, low + (high - low) / (1 - share))
