"""Drawing: the figure of a trace, drawn on its way to the store, of the table that was recorded.

Drawing takes a tenth of a second, which is much for a training that waits for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow

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

    Drawn once, at fixed places and hardly compressed: a third of the time that a layout takes.
    """
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    columns = {name: table[name].to_numpy() for name in table.column_names}
    steps = columns["step"]
    figure = Figure(figsize=(10.0, 6.0))
    above, below = figure.subplots(2, 1, sharex=True)
    figure.subplots_adjust(left=0.09, right=0.98, top=0.97, bottom=0.09, hspace=0.08)
    lrs = {name: values for name, values in columns.items() if name.startswith("lr/")}
    for name, values in lrs.items():
        above.plot(steps, values, label=name.removeprefix("lr/"), linewidth=1.2)
    if any((values > 0).any() for values in lrs.values()):
        above.set_yscale("log")
        # As text: a formula takes three times as long to draw, and there is one at each tick.
        above.yaxis.set_major_formatter(LogFormatter())
        above.yaxis.set_minor_formatter(LogFormatter())
    below.plot(steps, columns["train/loss"], label="train/loss", linewidth=0.6)
    if "val/loss" in columns:
        known = ~np.isnan(columns["val/loss"])
        values = columns["val/loss"][known]
        below.plot(steps[known], values, "o-", label="val/loss", markersize=3)
    above.set_ylabel("learning rate")
    below.set_ylabel("loss")
    below.set_xlabel("optimizer step")
    for axes in (above, below):
        axes.legend(fontsize="small", loc="upper right")
    figure.savefig(path, format="png", pil_kwargs={"compress_level": 1})
