"""Drawing: the figure of a trace, drawn on its way to the store, of the table that was recorded.

Drawing takes a tenth of a second, which is much for a training that waits for it.
"""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TABLE, FIGURE = ".parquet", ".png"
RAW = ".arrow"  # what both are made of


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
    (draw_trace if path.suffix == FIGURE else _write_table)(table, path)
    return path


def _write_table(table: pyarrow.Table, path: Path) -> None:
    import pyarrow.parquet

    pyarrow.parquet.write_table(table, path)


def draw_trace(table: pyarrow.Table, path: Path) -> None:
    """Every step of a trace, nothing smoothed: a spike of one step can be seen.

    Drawn once, at fixed places and hardly compressed, on axes that stay: a quarter of the time that
    new ones and a layout take. One thread at a time.
    """
    import numpy as np

    columns = {name: table[name].to_numpy() for name in table.column_names}
    steps = columns["step"]
    figure, above, below = _canvas()
    lrs = {name: values for name, values in columns.items() if name.startswith("lr/")}
    scale = "log" if any((values > 0).any() for values in lrs.values()) else "linear"
    if above.get_yscale() != scale:
        above.set_yscale(scale)
        if scale == "log":
            _as_text(above)
    for name, values in lrs.items():
        above.plot(steps, values, label=name.removeprefix("lr/"), linewidth=1.2)
    below.plot(steps, columns["train/loss"], label="train/loss", linewidth=0.6)
    if "val/loss" in columns:
        known = ~np.isnan(columns["val/loss"])
        values = columns["val/loss"][known]
        below.plot(steps[known], values, "o-", label="val/loss", markersize=3)
    for axes in (above, below):
        axes.legend(fontsize="small", loc="upper right")
    figure.savefig(path, format="png", pil_kwargs={"compress_level": 1})
    for axes in (above, below):
        for line in list(axes.lines):
            line.remove()
        axes.set_prop_cycle(None)
        axes.relim()
        axes.autoscale()


def prepare_drawing() -> None:
    """Load what drawing needs, and draw once: that takes half a second."""
    _canvas()[0].savefig(io.BytesIO(), format="png")


@functools.cache
def _canvas() -> tuple[Figure, Axes, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 6.0))
    above, below = figure.subplots(2, 1, sharex=True)
    figure.subplots_adjust(left=0.09, right=0.98, top=0.97, bottom=0.09, hspace=0.08)
    above.set_ylabel("learning rate")
    below.set_ylabel("loss")
    below.set_xlabel("optimizer step")
    return figure, above, below


def _as_text(axes: Axes) -> None:
    """Numbers at the ticks as text: a formula takes three times as long to draw, and there is one at each."""
    from matplotlib.ticker import LogFormatter

    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter())
