"""Tests of drawing: figures that are drawn on their way to the store."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch

from lrfinder.delivering.drawing import made_of
from lrfinder.traces import Trace
from lrfinder.tracking.artifacts import trace_file


@pytest.mark.parametrize("lr", [0.1, 0.0])
def test_a_trace_is_drawn_whatever_is_in_it(tmp_path: Path, lr: float) -> None:
    trace = Trace(["body", "head"], name="train")
    for step in range(400):
        trace.append([lr, lr], torch.tensor(math.nan if step == 7 else 1.0))
    trace.add_metric("val/loss", 399, 0.5)
    raw = tmp_path / "train.arrow"
    raw.write_bytes(trace_file(trace))
    path = made_of(raw, "traces/train.png")
    assert path == tmp_path / "train.png"
    picture = np.asarray(matplotlib.image.imread(path))
    assert picture.shape[:2] == (600, 1000)
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 10  # not blank


def test_the_table_of_a_trace_is_its_frame_to_the_bit(tmp_path: Path) -> None:
    trace = Trace(["body", "head"])
    for step, loss in enumerate([0.1, math.inf, math.nan, -1e-300]):
        trace.append([0.1 / (step + 3), torch.tensor(0.5)], loss)
    trace.add_metric("val/loss", 2, 1 / 3)
    raw = tmp_path / "a.arrow"
    raw.write_bytes(trace_file(trace))
    path = made_of(raw, "traces/a.parquet")
    assert path == tmp_path / "a.parquet"
    pd.testing.assert_frame_equal(pd.read_parquet(path), trace.to_frame(), check_exact=True)


def test_any_other_file_is_sent_as_it_is() -> None:
    for name in ("a.png", "a.parquet", "a.json", "a.arrow"):
        file = Path("files/1", name)
        assert made_of(file, f"traces/{name}") == file
