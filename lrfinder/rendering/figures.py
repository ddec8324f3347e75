"""Figures as a part of a page: inline SVG whose ink is the colour of the page's text."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
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


@contextmanager
def _open_legends(figure: Figure) -> Iterator[None]:
    """Legends without a ground of their own in here: the page's ink may be as light as theirs."""
    from matplotlib.legend import Legend

    frames = [legend.get_frame() for legend in figure.findobj(Legend)]
    grounds = [frame.get_facecolor() for frame in frames]
    for frame in frames:
        frame.set_facecolor("none")
    try:
        yield
    finally:
        for frame, ground in zip(frames, grounds, strict=True):
            frame.set_facecolor(ground)


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
        with _open_legends(figure):
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
