"""Tests of the plots: the data that they show, in the Axes that they are given, without a display."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import lrfinder
from lrfinder.plotting import COLOURS
from lrfinder.traces import Trace
from tests.helpers import TinyNet, cross_entropy, tiny_loader, tiny_optimizer


def tiny_test(**options: Any) -> lrfinder.RangeTest:
    torch.manual_seed(0)
    model = TinyNet()
    options = {"effort": "quick", "num_steps": 30} | options
    return lrfinder.range_test(
        model, tiny_optimizer(model), cross_entropy, tiny_loader(), **options
    )


@pytest.fixture(scope="module")
def result() -> lrfinder.RangeTest:
    return tiny_test(val_loader=tiny_loader(shuffle=False))


def vertical(ax: Any, colour: str) -> list[float]:
    """Where vertical lines of a colour stand."""
    return [
        float(line.get_xdata()[0])
        for line in ax.lines
        if len(line.get_xdata()) == 2
        and line.get_xdata()[0] == line.get_xdata()[1]
        and line.get_color() == colour
    ]


def test_a_panel_for_each_group_and_one_for_all(result: lrfinder.RangeTest) -> None:
    ax = result.plot()
    panels = ax.child_axes
    titles = [panel.get_title() for panel in panels]
    assert titles[0] == "all groups together"
    assert titles[1].startswith("body: LR")
    assert titles[2].startswith("head: LR")
    for panel, name in zip(panels[1:], ("body", "head"), strict=True):
        bracket = result.suggestion.brackets[name]
        assert panel.get_xscale() == "log"
        assert vertical(panel, "#D55E00") == [bracket.suggested]
        assert vertical(panel, "#000000") == [result.suggestion.control[name]]  # type: ignore[index]
        (span,) = panel.patches
        assert (span.get_x(), span.get_x() + span.get_width()) == pytest.approx(
            (bracket.low, bracket.high)
        )
    labels = [text.get_text() for text in panels[0].get_legend().get_texts()]
    assert {"training loss", "validation loss", "bracket", "suggested", "best one LR"} <= set(
        labels
    )


def test_light_lines_are_the_losses_after_the_steps(result: lrfinder.RangeTest) -> None:
    panel = result.plot().child_axes[0]
    light = [line for line in panel.lines if line.get_alpha() == 0.3]
    ramps = [ramp for ramp in result.ramps if ramp.group is None]
    assert len(light) == len(ramps) == 2
    for line, ramp in zip(light, ramps, strict=True):
        finite = np.isfinite(ramp.trace.losses)
        length = len(finite) if finite.all() else int(finite.argmin())
        assert line.get_xdata().tolist() == list(ramp.lrs[: length - 1])
        assert line.get_ydata().tolist() == ramp.trace.losses[1:length].tolist()


def test_it_draws_where_it_is_told_and_changes_nothing_global(
    result: lrfinder.RangeTest, tmp_path: Path
) -> None:
    figure = Figure(figsize=(8, 3), layout="constrained")
    ax = figure.subplots()
    assert result.plot(ax) is ax
    assert ax.figure is figure
    figure.savefig(tmp_path / "x.png")
    assert (
        "matplotlib.pyplot" not in sys.modules
        or not sys.modules["matplotlib.pyplot"].get_fignums()
    )


def test_one_panel_is_the_axes_itself() -> None:
    result = tiny_test(groups="together")
    ax = lrfinder.plot_range_test(result)
    assert ax.child_axes == []
    assert ax.get_title() == f"LR {result.suggestion.lrs['body']:.2g}"
    assert vertical(ax, "#D55E00") == [result.suggestion.lrs["body"]]


def test_the_reason_of_a_refusal_is_written_in() -> None:
    result = tiny_test(start_lr=1e-9, end_lr=1e-8, effort="brackets")
    ax = result.plot()
    (text,) = [text.get_text() for text in ax.texts]
    assert text.startswith("flat:")
    assert not ax.patches


def test_schedules() -> None:
    spec = {"name": "StepLR", "step_size": 2, "gamma": 0.1}
    ax = lrfinder.plot_lr_table(spec, {"a": 1e-3, "b": 1e-1}, 6)
    table = lrfinder.lr_table(spec, {"a": 1e-3, "b": 1e-1}, num_steps=6)
    assert [line.get_label() for line in ax.lines] == ["a", "b"]
    for line in ax.lines:
        assert line.get_ydata().tolist() == table[line.get_label()].tolist()
    assert ax.get_yscale() == "log"
    own = Figure().subplots()
    assert lrfinder.plot_lr_table({"name": "ConstantLR"}, 0.1, 3, own) is own


def training(*, name: str, lr: float, diverges: bool = False, steps: int = 20) -> Trace:
    trace = Trace(["body", "head"], name=name)
    for step in range(steps):
        loss = float("nan") if diverges and step >= 10 else 1.0 / (1 + step)
        trace.append([lr, 2 * lr], loss)
    trace.add_metric("val/loss", 9, 0.5)
    return trace


def test_traces_on_one_step_axis() -> None:
    traces = {
        "a": training(name="a", lr=0.1),
        "b": [training(name="b", lr=0.2, steps=s) for s in (20, 15)],
    }
    above, below = lrfinder.plot_traces(traces)
    assert above.figure is below.figure
    assert [line.get_label() for line in above.lines] == [
        "a: body",
        "a: head",
        "b: body",
        "b: head",
    ]
    assert above.lines[1].get_ydata().tolist() == [0.2] * 20
    assert above.lines[0].get_color() == above.lines[1].get_color() == COLOURS[0]
    drawn = [line for line in below.lines if line.get_label() in ("a", "b")]
    assert [len(line.get_xdata()) for line in drawn] == [20, 15]  # as far as all seeds go
    assert len(below.collections) == 1  # the band of the seeds
    assert above.get_shared_x_axes().joined(above, below)


def test_a_diverged_trace_ends_where_it_did() -> None:
    _, below = lrfinder.plot_traces({"a": training(name="a", lr=0.1, diverges=True)})
    losses = below.lines[0].get_ydata()
    assert np.isfinite(losses).tolist() == [True] * 10 + [False] * 10


def test_no_traces_is_an_error() -> None:
    for traces in ({}, {"a": []}):
        with pytest.raises(ValueError, match="at least one trace"):
            lrfinder.plot_traces(traces)  # type: ignore[arg-type]


def test_importing_lrfinder_loads_no_matplotlib() -> None:
    code = (
        "import sys, lrfinder, lrfinder.ranging, lrfinder.plotting\n"
        "bad = {'matplotlib', 'pandas', 'rich', 'mlflow', 'optuna'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)
