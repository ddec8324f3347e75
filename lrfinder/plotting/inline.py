"""Axes that a notebook shows. Loaded with matplotlib, on the first plot."""

from __future__ import annotations

from typing import cast

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lrfinder.rendering.figures import figure_svg
from lrfinder.rendering.fragments import html_fragment


def figure_html(figure: Figure) -> str:
    """A figure as a notebook shows it: an SVG in the ink of the page, light or dark."""
    return html_fragment(svgs=[figure_svg(figure)])


class InlineAxes(Axes):
    """Axes whose figure is shown where they are the last line of a notebook's cell.

    Attributes:
        columns: Panels side by side in it, where its figure was made for them; else as many as fit.
    """

    columns: int | None = None

    def _repr_html_(self) -> str:
        return figure_html(cast("Figure", self.figure))


class AxesPair(tuple[Axes, Axes]):
    """Two Axes of one figure, which is shown as that of `InlineAxes` is."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return figure_html(cast("Figure", self[0].figure))
