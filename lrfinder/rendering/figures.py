"""Figures as a part of a page: inline SVG whose ink is the colour of the page's text."""

from __future__ import annotations

import io
import re
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Text and axes are drawn in this colour and given the page's own after, so that a figure suits
# light and dark pages.
INK = "#010203"
OWN_STYLE = "max-width:100%;height:auto;stroke-linejoin:round;stroke-linecap:butt"


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
        figure: Made under `themed`, or in matplotlib's default style, whose black becomes ink.
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
    # matplotlib's style sheet would be the whole page's: what it says, the figure says of itself.
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = text.replace("<svg ", f'<svg style="{OWN_STYLE}" ', 1)
    for ink in (INK, "#000000", "black"):
        text = text.replace(f": {ink}", ": currentColor").replace(f'"{ink}"', '"currentColor"')
    return text
