"""Tests of the plots: the data that they show, in the Axes that they are given, without a display."""

from __future__ import annotations

import io
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
        assert vertical(panel, "black") == [result.suggestion.control[name]]  # type: ignore[index]
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


def test_the_reason_of_a_refusal_hides_nothing_of_the_curve() -> None:
    ax = tiny_test(start_lr=1e-9, end_lr=1e-8, effort="brackets").plot()
    ax.figure.savefig(io.BytesIO())
    curve = ax.lines[-1].get_path().transformed(ax.transData)
    box = ax.texts[0].get_bbox_patch()
    assert box is not None
    assert curve.get_extents().y1 < box.get_window_extent().y0


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
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


# -- panels, sizes and styles -----------------------------------------------------------------------


def test_panels_are_stacked_where_they_do_not_fit_and_stay_legible(
    result: lrfinder.RangeTest,
) -> None:
    wide, narrow = result.plot(), result.plot(width=3.3)
    for ax, columns in ((wide, 3), (narrow, 1)):
        figure = ax.get_figure(root=True)
        figure.draw_without_rendering()
        boxes = [panel.get_position() for panel in ax.child_axes]
        assert len({round(box.x0, 2) for box in boxes}) == columns
        sizes = [
            label.get_fontsize()
            for panel in ax.child_axes
            for label in (*panel.get_xticklabels(), panel.xaxis.label, panel.title)
        ]
        assert min(sizes) >= 7  # points, at the size that it is shown in
    assert narrow.get_figure(root=True).get_size_inches()[0] == 3.3
    with pytest.raises(ValueError, match=r"`width >= 2` \(inches\) must hold.*width=1"):
        result.plot(width=1)


def test_many_groups_take_rows() -> None:
    from lrfinder.plotting.canvas import panelled_axes, panels_in

    ax = panelled_axes(13, None)
    assert len(panels_in(ax, 13)) == 13
    width, height = ax.get_figure(root=True).get_size_inches()
    assert width < 10 < height


def test_the_best_of_the_race_stand_at_the_foot(result: lrfinder.RangeTest) -> None:
    for panel, name in zip(result.plot().child_axes[1:], ("body", "head"), strict=True):
        (best,) = [line for line in panel.lines if line.get_label() == "best of the race"]
        assert tuple(best.get_xdata()) == result.suggestion.brackets[name].best


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("ground", ["#ffffff", "#0d1117"])
def test_the_first_colours_stand_out_on_white_and_black(ground: str) -> None:
    for shade in COLOURS[:3]:
        low, high = sorted((luminance(shade), luminance(ground)))
        assert (high + 0.05) / (low + 0.05) >= 3  # WCAG 2.1, 1.4.11: graphical objects


def test_dark_figures_by_the_style_in_force(result: lrfinder.RangeTest) -> None:
    import matplotlib.style

    with matplotlib.style.context("dark_background"):
        panel = result.plot().child_axes[1]
    assert vertical(panel, "white") == [result.suggestion.control["body"]]  # type: ignore[index]
    assert panel.get_facecolor()[:3] == (0, 0, 0)
    assert panel.title.get_color() == "white"


# -- searches -------------------------------------------------------------------------------------


def study(direction: str = "minimize") -> Any:
    import optuna

    space = {
        "lr": optuna.distributions.FloatDistribution(1e-4, 1.0, log=True),
        "ratio/head": optuna.distributions.FloatDistribution(0.1, 10.0, log=True),
    }
    made = optuna.create_study(direction=direction)
    for lr, ratio, value in ((0.01, 1.0, 0.5), (0.1, 3.0, 0.02), (1.0, 9.0, float("inf"))):
        made.add_trial(
            optuna.trial.create_trial(
                params={"lr": lr, "ratio/head": ratio}, distributions=space, value=value
            )
        )
    pruned = optuna.trial.create_trial(
        state=optuna.trial.TrialState.PRUNED,
        params={"lr": 0.5, "ratio/head": 0.2},
        distributions=space,
        intermediate_values={0: 3.0, 1: 2.5},
    )
    made.add_trial(pruned)
    return made


@pytest.mark.parametrize(("direction", "best"), [("minimize", 0.02), ("maximize", 0.5)])
def test_a_search_is_objective_against_ratio(direction: str, best: float) -> None:
    ax = lrfinder.plot_search(study(direction))
    ratio, lr = ax.child_axes
    assert (ratio.get_xlabel(), lr.get_xlabel()) == ("ratio/head", "lr")
    dots, crosses, star = ratio.lines
    assert (list(dots.get_xdata()), list(dots.get_ydata())) == ([1.0, 3.0], [0.5, 0.02])
    assert (list(crosses.get_xdata()), list(crosses.get_ydata())) == ([0.2], [2.5])
    assert list(star.get_ydata()) == [best]
    assert ratio.get_xlim() == pytest.approx((0.1 / 100**0.04, 10 * 100**0.04))  # all of it
    assert ratio.get_xscale() == lr.get_xscale() == ratio.get_yscale() == "log"


def test_a_search_without_trials_and_a_wrong_objective() -> None:
    import optuna

    assert not lrfinder.plot_search(optuna.create_study()).lines
    with pytest.raises(ValueError, match=r"`0 <= objective < 1` must hold.*objective=1"):
        lrfinder.plot_search(study(), objective=1)


# -- notebooks ------------------------------------------------------------------------------------


def test_axes_of_new_figures_show_themselves(result: lrfinder.RangeTest) -> None:
    spec = {"name": "ExponentialLR", "gamma": 0.9}
    shown = [
        lrfinder.plot_lr_table(spec, 0.1, 4),
        lrfinder.plot_traces({"a": training(name="a", lr=0.1)}),
        lrfinder.plot_search(study()),
        result.plot(),
    ]
    for one in shown:
        html = one._repr_html_()  # type: ignore[union-attr]
        assert html.count("<svg") == 1
        assert "#ffffff" not in html  # no white ground under ink that may be white
        assert "currentColor" in html
        assert "http" not in html.replace("http://www.w3.org/", "")
