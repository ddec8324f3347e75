"""Tests of drawing: figures that are drawn on their way to the store."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pandas as pd
import pytest
import torch

from lrfinder.delivering.drawing import MOST_POINTS, made_of
from lrfinder.traces import Trace
from lrfinder.tracking.artifacts import trace_file


@pytest.mark.parametrize("lr", [0.1, 0.0])
def test_a_trace_is_drawn_whatever_is_in_it(tmp_path: Path, lr: float) -> None:
    trace = Trace(["body", "head"], name="train")
    for step in range(400):
        trace.append([lr, lr], torch.tensor(math.nan if step == 7 else step * 37 % 100.0))
    trace.add_metric("val/loss", 399, 0.5)
    raw = tmp_path / "train.arrow"
    raw.write_bytes(trace_file(trace))
    path = made_of(raw, "traces/train.svg")
    assert path == tmp_path / "train.svg"
    text = path.read_text()
    for name in ("learning rate", "body", "head", "train/loss", "val/loss", "optimizer step"):
        assert f">{name}</text>" in text
    assert max(map(len, curves(path))) >= 250  # each step of the loss is there, but those in line


def test_a_spike_of_one_step_is_drawn_in_however_long_a_trace(tmp_path: Path) -> None:
    heights = []
    for spike in (None, 12_345):
        trace = Trace(["all"])
        for step in range(20_000):
            noise = (step * 37 % 100) / 100
            trace.append([0.1], torch.tensor(50.0 if step == spike else noise))
        (tmp_path / "a.arrow").write_bytes(trace_file(trace))
        path = made_of(tmp_path / "a.arrow", "a.svg")
        loss = max(curves(path), key=len)
        assert len(loss) <= 1.1 * MOST_POINTS  # matplotlib may add some
        places = sorted(y for _, y in loss)  # from above
        heights.append((places[10] - places[0]) / (places[-1] - places[0]))
    plain, spiked = heights
    assert plain < 0.1
    assert spiked > 0.9


def curves(path: Path) -> list[list[tuple[float, float]]]:
    """The points of each curve of a figure."""
    found = re.findall(r'<path d="([^"]*)" clip-path', path.read_text())
    return [
        [(float(x), float(y)) for x, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", line)]
        for line in found
    ]


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
    for name in ("a.svg", "a.parquet", "a.json", "a.arrow"):
        file = Path("files/1", name)
        assert made_of(file, f"traces/{name}") == file
