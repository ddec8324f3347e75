"""Drawing: the figure of a trace, drawn on its way to the store, of the table that was recorded.

Drawing takes a tenth of a second, which is much for a training that waits for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

TABLE, FIGURE = ".parquet", ".png"


def is_to_be_drawn(artifact: str, file: Path) -> bool:
    """Whether an artifact is a figure of which the spool holds the table.

    Example:
        >>> is_to_be_drawn("traces/train.png", Path("files/2/train.parquet"))
        True
    """
    return artifact.endswith(FIGURE) and file.suffix == TABLE


def draw_trace(table: Path) -> Path:
    """Every step of a trace, nothing smoothed: a spike of one step can be seen. Beside its table.

    Drawn once, at fixed places and hardly compressed: half of the time that a layout takes.
    """
    import pandas as pd
    from matplotlib.figure import Figure

    frame: Any = pd.read_parquet(table)
    steps = frame["step"].to_numpy()
    figure = Figure(figsize=(10.0, 6.0))
    above, below = figure.subplots(2, 1, sharex=True)
    figure.subplots_adjust(left=0.09, right=0.98, top=0.97, bottom=0.09, hspace=0.08)
    lrs = {name: frame[name].to_numpy() for name in frame.columns if name.startswith("lr/")}
    for name, values in lrs.items():
        above.plot(steps, values, label=name.removeprefix("lr/"), linewidth=1.2)
    if any((values > 0).any() for values in lrs.values()):
        above.set_yscale("log")
    below.plot(steps, frame["train/loss"].to_numpy(), label="train/loss", linewidth=0.6)
    if "val/loss" in frame:
        known = frame["val/loss"].notna().to_numpy()
        values = frame["val/loss"].to_numpy()[known]
        below.plot(steps[known], values, "o-", label="val/loss", markersize=3)
    above.set_ylabel("learning rate")
    below.set_ylabel("loss")
    below.set_xlabel("optimizer step")
    for axes in (above, below):
        axes.legend(fontsize="small", loc="upper right")
    path = table.with_suffix(FIGURE)
    figure.savefig(path, format="png", pil_kwargs={"compress_level": 1})
    return path
