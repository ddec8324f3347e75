"""Tests of drawing: figures that are drawn on their way to the store."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

from lrfinder.delivering.drawing import draw_trace, is_to_be_drawn
from lrfinder.traces import Trace


@pytest.mark.parametrize("lr", [0.1, 0.0])
def test_a_trace_is_drawn_of_its_table_whatever_is_in_it(tmp_path: Path, lr: float) -> None:
    trace = Trace(["body", "head"], name="train")
    for step in range(400):
        trace.append([lr, lr], torch.tensor(math.nan if step == 7 else 1.0))
    trace.add_metric("val/loss", 399, 0.5)
    table = tmp_path / "train.parquet"
    trace.to_frame().to_parquet(table, index=False)
    path = draw_trace(table)
    assert path == tmp_path / "train.png"
    picture = np.asarray(matplotlib.image.imread(path))
    assert picture.shape[:2] == (600, 1000)
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 10  # not blank


def test_only_a_figure_that_is_kept_as_a_table_is_drawn() -> None:
    assert is_to_be_drawn("traces/a.png", Path("files/1/a.parquet"))
    assert not is_to_be_drawn("traces/a.png", Path("files/1/a.png"))
    assert not is_to_be_drawn("traces/a.parquet", Path("files/1/a.parquet"))
