"""Drawing: the figure of a trace, drawn on its way to the store, of the table that was recorded.

Drawing takes a tenth of a second, which is much for a training that waits for it.
"""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    import pyarrow
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

TABLE, FIGURE = ".parquet", ".svg"
RAW = ".arrow"  # what both are made of
MOST_POINTS = 4000  # of a curve


def made_of(file: Path, artifact: str) -> Path:
    """The file of an artifact, made beside the one in the spool where that is a trace's.

    Example:
        >>> made_of(Path("files/2/notes.txt"), "notes.txt").as_posix()
        'files/2/notes.txt'
    """
    if file.suffix != RAW or artifact.endswith(RAW):
        return file
    import pyarrow

    table = pyarrow.ipc.open_stream(file.read_bytes()).read_all()
    path = file.with_suffix(Path(artifact).suffix)
    (_write_table if path.suffix == TABLE else draw_trace)(table, path)
    return path


def _write_table(table: pyarrow.Table, path: Path) -> None:
    import pyarrow.parquet

    pyarrow.parquet.write_table(table, path)


def draw_trace(table: pyarrow.Table, path: Path) -> None:
    """Every step of a trace, nothing smoothed: a spike of one step can be seen.

    Drawn at fixed places, with few ticks, on axes that stay, and as SVG, whose text need not be
    drawn: a tenth of the time that a new figure takes. One thread at a time.
    """
    import matplotlib
    import numpy as np

    columns = {name: table[name].to_numpy() for name in table.column_names}
    steps = columns["step"]
    figure, above, below = _canvas()
    lrs = {name: values for name, values in columns.items() if name.startswith("lr/")}
    _scale(above, "log" if any((values > 0).any() for values in lrs.values()) else "linear")
    for name, values in lrs.items():
        above.plot(*_thinned(steps, values), label=name.removeprefix("lr/"), linewidth=1.2)
    below.plot(*_thinned(steps, columns["train/loss"]), label="train/loss", linewidth=0.6)
    if "val/loss" in columns:
        known = ~np.isnan(columns["val/loss"])
        values = columns["val/loss"][known]
        below.plot(*_thinned(steps[known], values), "o-", label="val/loss", markersize=3)
    for axes in (above, below):
        axes.legend(fontsize="small", loc="upper right")
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(path)
    for axes in (above, below):
        for line in list(axes.lines):
            line.remove()
        axes.set_prop_cycle(None)
        axes.relim()
        axes.autoscale()


def _thinned(
    steps: NDArray[np.int64], values: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The lowest and the highest of each part of a long curve, of which a page shows no more."""
    import numpy as np

    if len(values) <= MOST_POINTS:
        return steps, values
    edges = np.linspace(0, len(values), MOST_POINTS // 2, endpoint=False).astype(np.int64)
    places = [
        start + choose(np.where(np.isnan(part), worst, part))
        for start, part in zip(edges, np.split(values, edges[1:]), strict=True)
        for choose, worst in ((np.argmin, np.inf), (np.argmax, -np.inf))
    ]
    kept = np.unique(places)
    return steps[kept], values[kept]


def prepare_drawing() -> None:
    """Load what drawing needs, and draw once: that takes half a second."""
    _canvas()[0].savefig(io.BytesIO(), format="svg")


@functools.cache
def _canvas() -> tuple[Figure, Axes, Axes]:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10.0, 6.0))
    above, below = figure.subplots(2, 1, sharex=True)
    figure.subplots_adjust(left=0.09, right=0.98, top=0.97, bottom=0.09, hspace=0.08)
    _scale(above, "log")
    above.set_ylabel("learning rate")
    below.set_ylabel("loss")
    below.set_xlabel("optimizer step")
    below.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    below.yaxis.set_major_locator(MaxNLocator(5))
    return figure, above, below


def _scale(axes: Axes, scale: Literal["log", "linear"]) -> None:
    """Numbers at few ticks, as text: a formula takes three times as long to draw."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullLocator

    if axes.get_yscale() == scale:
        return
    axes.set_yscale(scale)
    is_log = scale == "log"
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)) if is_log else MaxNLocator(5))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_locator(NullLocator())
