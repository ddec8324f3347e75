from __future__ import annotations

import json
import math
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lrfinder import Trace
from lrfinder.traces import BLOCK


def test_append_keeps_every_row() -> None:
    trace = Trace(["body", "head"])
    for step in range(5):
        trace.append([0.1 * step, 1.0], torch.tensor(float(step)))
    assert trace.steps.tolist() == [0, 1, 2, 3, 4]
    assert trace.losses.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert trace.lrs["body"].tolist() == [0.1 * step for step in range(5)]
    assert trace.lrs["head"].tolist() == [1.0] * 5


def test_tensor_lr_is_copied_when_recorded() -> None:
    lr = torch.tensor(0.5)
    trace = Trace(["all"])
    trace.append([lr], 1.0)
    lr.fill_(0.25)
    trace.append([lr], 1.0)
    assert trace.lrs["all"].tolist() == [0.5, 0.25]


def test_losses_on_an_accelerator_are_fetched_in_blocks_and_in_order() -> None:
    # The meta device stands for one here: its losses would raise if a value were asked for at each
    # step.
    trace = Trace(["all"])
    for _ in range(BLOCK - 1):
        trace.append([0.1], torch.zeros((), device="meta"))
    assert len(trace.settled_losses) == 0
    assert len(trace) == BLOCK - 1


def test_diverged_at_is_the_first_non_finite_loss() -> None:
    trace = Trace(["all"])
    for loss in (1.0, math.inf, math.nan):
        trace.append([0.1], loss)
    assert trace.diverged_at == 1


def test_frame_has_a_column_for_each_group_and_metric() -> None:
    trace = Trace(["body", "head"])
    for _ in range(3):
        trace.append([0.1, 0.2], 1.0)
    trace.add_metric("val/loss", 2, 0.5)
    frame = trace.to_frame()
    assert list(frame.columns) == ["step", "train/loss", "lr/body", "lr/head", "val/loss"]
    assert frame["val/loss"].isna().tolist() == [True, True, False]
    assert trace.last("val/loss") == 0.5
    assert math.isnan(trace.last("val/accuracy"))


floats = st.floats(allow_nan=True, allow_infinity=True)


@given(
    rows=st.lists(st.tuples(floats, st.floats(0, 10), st.floats(0, 10)), max_size=20),
    values=st.lists(floats),
)
def test_json_round_trip_is_exact(
    rows: list[tuple[float, float, float]], values: list[float]
) -> None:
    trace = Trace(["a", "b"], name="x")
    for loss, *lrs in rows:
        trace.append(lrs, loss)
    for step, value in enumerate(values):
        trace.add_metric("val/loss", step, value)
    trace.set_status("stopped", "because")
    text = json.dumps(trace.to_dict(), allow_nan=False)
    again = Trace.from_dict(json.loads(text))
    assert json.dumps(again.to_dict()) == text
    assert again.losses.tobytes() == trace.losses.tobytes() or any(map(math.isnan, trace.losses))
    assert (again.status, again.message, again.diverged_at) == (
        "stopped",
        "because",
        trace.diverged_at,
    )


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one group and different names"):
        Trace([])
    with pytest.raises(ValueError, match="different names"):
        Trace(["a", "a"])
    with pytest.raises(
        ValueError, match=r"One LR for each group must be given \(a, b\), but got 1\."
    ):
        Trace(["a", "b"]).append([0.1], 1.0)
    with pytest.raises(ValueError, match="`status` must be one of"):
        Trace(["a"]).set_status("done")  # type: ignore[arg-type]


def test_rows_and_their_times_can_be_read_as_they_grow() -> None:
    trace = Trace(["body", "head"])
    trace.append([0.1, 0.2], 5.0)
    before = time.time_ns()
    times = trace.keep_times()
    for step in range(1, 4):
        trace.append([0.1, torch.tensor(0.25)], torch.tensor(float(step)))
        assert len(times) == step
    assert before <= times[0] <= times[1] <= times[2] <= time.time_ns()
    losses, lrs = trace.settled_rows(1, 3)
    assert losses == [1.0, 2.0]
    assert [[float(lr) for lr in row] for row in lrs] == [[0.1, 0.25]] * 2
    assert trace.settled_rows(4, 9) == ([], [])
