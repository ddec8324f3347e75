"""The canvas: colours, sizes, and where panels stand. What every plot shares."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lrfinder.plotting.inline import InlineAxes

# Okabe and Ito (2008), "Color Universal Design": told apart by all kinds of colour blindness.
# Without black, which is the ink, and without yellow, which cannot be read on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 4)))
MARKERS = ("", "o", "s", "^", "D")  # for the lines after those that used up the colours
GREY = "#888888"
SMALL = 8  # points: the smallest text is one less
LEAST_PANEL, PANEL_GAP, ROW_GAP = 1.6, 0.45, 0.62  # inches
PANEL_WIDTH, PANEL_HEIGHT, MOST_COLUMNS = 3.0, 2.7, 3
WIDE_RANGE = 20.0  # from this ratio on, an axis of positive values is logarithmic


def colour(index: int) -> str:
    """The colour of the line of that number."""
    return COLOURS[index % len(COLOURS)]


def ink() -> str:
    """The colour of text in matplotlib's style that is in force."""
    import matplotlib

    return cast("str", matplotlib.rcParams["text.color"])


def new_axes(width: float, height: float) -> InlineAxes:
    """The Axes of a new figure, inches; a notebook shows them."""
    from matplotlib.figure import Figure

    from lrfinder.plotting.inline import InlineAxes

    figure = Figure(figsize=(width, height), layout="constrained")
    return cast("InlineAxes", figure.add_subplot(axes_class=InlineAxes))


def two_axes(
    width: float, height: float, height_ratios: tuple[float, float] = (1, 1)
) -> tuple[Axes, Axes]:
    """Two Axes of a new figure, one above the other on the same x axis; a notebook shows them."""
    from matplotlib.figure import Figure

    from lrfinder.plotting.inline import AxesPair

    figure = Figure(figsize=(width, height), layout="constrained")
    above, below = cast(
        "Any", figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": height_ratios})
    )
    return AxesPair((above, below))


def panelled_axes(count: int, width: float | None) -> Axes:
    """The Axes of a new figure with room for panels: at most three side by side, or as many as fit.

    Args:
        count: Panels, >= 1.
        width: Of the figure, inches; None for as wide as the panels want.

    Raises:
        ValueError: If the width has no room for a panel.
    """
    columns = min(count, MOST_COLUMNS)
    if width is not None:
        if not LEAST_PANEL + 0.4 <= width < math.inf:
            raise ValueError(
                f"`width >= {LEAST_PANEL + 0.4:g}` (inches) must hold for a figure of which its "
                f"text can be read, but got width={width!r}."
            )
        columns = max(1, min(count, int((width - 0.4) / (LEAST_PANEL + PANEL_GAP))))
    rows = math.ceil(count / columns)
    wide = PANEL_WIDTH * columns + 0.4 if width is None else width
    ax = new_axes(wide, PANEL_HEIGHT * rows + 0.1)
    ax.columns = columns
    return ax


def panels_in(ax: Axes, count: int) -> list[Axes]:
    """Axes in the place of one, as many side by side as there is room for; the one itself for 1."""
    if count == 1:
        return [ax]
    ax.set_axis_off()
    place = ax.get_window_extent()  # pixels
    wide, high = place.width / ax.figure.dpi, place.height / ax.figure.dpi
    columns = getattr(ax, "columns", None)
    if columns is None:
        fitting = int((wide + PANEL_GAP) / (LEAST_PANEL + PANEL_GAP))
        columns = max(1, min(count, fitting))
    rows = math.ceil(count / columns)
    gap_x, gap_y = PANEL_GAP / wide, ROW_GAP / high
    width = (1 - gap_x * (columns - 1)) / columns
    height = (1 - gap_y * (rows - 1)) / rows
    return [
        ax.inset_axes(
            (
                (i % columns) * (width + gap_x),
                (rows - 1 - i // columns) * (height + gap_y),
                width,
                height,
            )
        )
        for i in range(count)
    ]


def one_legend(panels: Sequence[Axes]) -> None:
    """A legend of all panels' labels, in the first one."""
    handles: dict[str, Any] = {}
    for panel in panels:
        found = zip(*panel.get_legend_handles_labels(), strict=True)
        handles |= {label: handle for handle, label in found}
    if handles:
        panels[0].legend(
            list(handles.values()), list(handles), fontsize=SMALL - 1, loc="best", framealpha=0.7
        )


def spans_decades(values: ArrayLike, ratio: float = 5.0) -> bool:
    """Whether values are told apart better on a log scale: all positive, and far apart."""
    found = np.asarray(values, dtype=float)
    finite = found[np.isfinite(found)]
    return bool(len(finite)) and finite.min() > 0 and finite.max() > ratio * finite.min()


def scale_lrs(ax: Axes, columns: Iterable[ArrayLike]) -> None:
    """A log scale for LRs that lie far apart; one of 0 keeps the scale linear."""
    values = np.concatenate([np.asarray(column, dtype=float) for column in columns])
    ax.set_yscale("log" if spans_decades(values, WIDE_RANGE) else "linear")
