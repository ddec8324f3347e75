"""Draws the pages' figures: each task's test above the grid's losses, and curves to learn reading by.

All are of real trainings. A curve that no longer shows what its page says is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import lrfinder
from benchmarks.range_test.tasks import Problem
from benchmarks.range_test.truth import Row, region, truth_of

FOLDER = Path(__file__).parents[2] / "docs" / "figures"
DPI = 100
SMALL = 8


def run(problems: Sequence[Problem]) -> None:
    """Draw what can be drawn of these tasks."""
    FOLDER.mkdir(exist_ok=True)
    by_name = {problem.name: problem for problem in problems}
    for problem in problems:
        path = draw_task(problem, truth_of(problem))
        print(f"{path.name} {path.stat().st_size / 1e3:.0f} kB", flush=True)
    for example in EXAMPLES:
        if example.task in by_name:
            path = draw_example(example, by_name[example.task])
            print(f"{path.name} {path.stat().st_size / 1e3:.0f} kB", flush=True)


# -- a figure for each task -----------------------------------------------------------------------


def draw_task(problem: Problem, truth: Row) -> Path:
    """The test of one LR, and under it the grid's losses on the same axis."""
    result = _test(problem, {"groups": "together"}, one_lr=True)
    figure = Figure(figsize=(5.0, 4.6), layout="constrained")
    above, below = cast("Any", figure.subplots(2, 1, sharex=True))
    result.plot(above)
    above.set_title(problem.title, fontsize=SMALL + 1)
    above.set_xlabel("")
    draw_grid(below, truth, result.suggestion.lrs.get("all"))
    return _save(figure, f"range_test_{problem.name}")


def draw_grid(ax: Axes, truth: Row, suggested: float | None) -> None:
    """Final validation loss at each LR of the grid, and the LRs within 5 % of the lowest."""
    lrs, losses = 10 ** np.array(truth["line"]["decades"]), np.array(truth["line"]["losses"])
    low, high = (10**x for x in region(truth))
    ax.axvspan(low, high, color="#009E73", alpha=0.2, lw=0, label="within 5 % of the best")
    ax.plot(
        lrs, losses, "o-", color="#202020", markersize=3, linewidth=1.0, label="trained to the end"
    )
    if suggested is not None:
        ax.axvline(suggested, color="#D55E00", linewidth=1.6, label="suggested")
    ax.set_yscale("log" if losses.max() > 5 * losses.min() else "linear")
    ax.set_xlabel("learning rate", fontsize=SMALL)
    ax.set_ylabel(f"validation loss after {truth['num_steps']} steps", fontsize=SMALL)
    ax.tick_params(labelsize=SMALL - 1, which="both")
    ax.legend(fontsize=SMALL - 1)


# -- curves to learn reading by -------------------------------------------------------------------


@dataclass(frozen=True)
class Example:
    """A picture of docs/how-to-read-a-range-test.md.

    Args:
        name: Of the file.
        task: Of the benchmark's tasks.
        options: Of `lrfinder.range_test`.
        shows: The status of every group that is read.
        batch_size: In the place of the task's own.
        apart: Least ratio of the highest LR that is suggested to the lowest.
    """

    name: str
    task: str
    options: Mapping[str, Any]
    shows: tuple[str, ...]
    batch_size: int | None = None
    apart: float = 1.0


ONE: Mapping[str, Any] = {"groups": "together"}
EXAMPLES = (
    Example("good", "mlp-sgd", ONE, ("ok",)),
    Example("flat", "mlp-sgd", {**ONE, "start_lr": 1e-9, "end_lr": 1e-6}, ("flat",)),
    Example("noisy", "fine-tune", {**ONE, "replicas": 4}, ("ok", "noisy"), batch_size=4),
    Example("too_short", "mlp-sgd", {**ONE, "num_steps": 10}, ("too_short",)),
    Example("edge", "chars-adamw", {**ONE, "start_lr": 1e-6, "end_lr": 1e-4}, ("edge",)),
    Example("groups", "large-body", {}, ("ok", "noisy"), apart=30.0),
)


def draw_example(example: Example, problem: Problem) -> Path:
    """Its picture.

    Raises:
        RuntimeError: If it does not show what the page says of it.
    """
    one_lr = "groups" in example.options
    result = _test(problem, example.options, one_lr=one_lr, batch_size=example.batch_size)
    found = {bracket.status for bracket in result.suggestion.brackets.values()}
    if not found <= set(example.shows):
        raise RuntimeError(
            f"The picture {example.name!r} must show {' or '.join(example.shows)}, but its curve "
            f"was read as {', '.join(sorted(found))}. Choose another curve, or change the page."
        )
    lrs = result.suggestion.lrs.values()
    if lrs and max(lrs) < example.apart * min(lrs):
        raise RuntimeError(
            f"The LRs of the picture {example.name!r} must be {example.apart:g} x apart, but got "
            f"{', '.join(f'{lr:.2g}' for lr in lrs)}. Choose another task, or change the page."
        )
    return _save(cast("Figure", result.plot().figure), f"reading_{example.name}")


def _test(
    problem: Problem, options: Mapping[str, Any], *, one_lr: bool, batch_size: int | None = None
) -> lrfinder.RangeTest:
    task = problem.task(one_lr=one_lr)
    started = task.start(0, device="cpu")
    loader = started.train_loader
    if batch_size is not None:
        data = problem.data[0]
        loader = lrfinder.TensorLoader(*data, batch_size=batch_size, shuffle=True, seed=0)
    return lrfinder.range_test(
        started.model, started.optimizer, task.loss_fn, loader, seed=0, **options
    )


def _save(figure: Figure, name: str) -> Path:
    path = FOLDER / f"{name}.png"
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    if path.stat().st_size > 100_000:
        raise RuntimeError(f"A figure must have at most 100 kB, but {path.name} is larger.")
    return path
