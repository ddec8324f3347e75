"""What the best learning rates are, found by grids: the truth that suggestions are compared with.

It does not depend on any finder, so it is measured once. The grids choose on some seeds, and what
they chose is measured again on fresh ones: the lowest of a hundred noisy numbers is too low.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.range_test.tasks import Problem, problems
from benchmarks.range_test.training import final_losses
from benchmarks.results_file import RESULTS, write_result

NAME = "range_test_truth"
FIRST_SEED, FIRST_FRESH_SEED = 1000, 2000
FEW_SEEDS, FINALISTS = 4, 8  # seeds on which a whole grid of vectors is tried; how many go on
LONGER = 4
LONG_LINE = (-1.75, 0.75)  # decades around the best LR of the usual length
Row = dict[str, Any]


def choice_seeds(problem: Problem) -> list[int]:
    """On which grids choose."""
    return list(range(FIRST_SEED, FIRST_SEED + problem.num_seeds))


def fresh_seeds(problem: Problem) -> list[int]:
    """On which what was chosen is compared, by every benchmark: many where they cost little.

    One training's loss differs from seed to seed by up to a sixth. With 24 the ratio of two means has a
    standard error of .03, and the largest of a hundred such ratios is mostly noise.
    """
    count = 8 * problem.num_seeds if problem.batched else min(problem.num_seeds, 8)
    return list(range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + count))


# -- grids ----------------------------------------------------------------------------------------


def line(problem: Problem, decades: tuple[float, float], num_steps: int) -> Row:
    """Every quarter decade of one LR for all groups: the mean loss, and the best."""
    points = np.arange(decades[0], decades[1] + 1e-9, 0.25)
    losses = _losses(problem, [[x] * len(problem.groups) for x in points], num_steps)
    best = points[losses.mean(axis=1).argmin()]
    return {
        "decades": points.tolist(),
        "losses": _rounded(losses.mean(axis=1)),
        "best": float(best),
    }


def best_vector(problem: Problem, one_lr: float) -> list[float]:
    """The best LR vector in steps of half a decade, first on a few seeds, then the best on all."""
    few = choice_seeds(problem)[:FEW_SEEDS]
    low, high = problem.decades
    count = len(problem.groups)
    if count == 2:
        grid = list(itertools.product(np.arange(low, high + 1e-9, 0.5), repeat=count))
        tried = _try(problem, grid, few)
    else:
        # Too many for a full grid: in decades around the best one LR, then around the best three.
        around = np.arange(-2.0, 1.1, 1.0) + round(2 * one_lr) / 2
        tried = _try(problem, itertools.product(around, repeat=count), few)
        steps = [np.array(step) for step in itertools.product((-0.5, 0.0, 0.5), repeat=count)]
        near = {tuple(np.array(point) + step) for point, _ in tried[:3] for step in steps}
        tried += _try(problem, sorted(near - {point for point, _ in tried}), few)
        tried.sort(key=lambda pair: pair[1])
    finalists = [point for point, _ in tried[:FINALISTS]]
    means = _losses(problem, finalists, problem.num_steps).mean(axis=1)
    return [float(x) for x in finalists[int(means.argmin())]]


def _try(
    problem: Problem, points: Iterable[Sequence[float]], seeds: Sequence[int]
) -> list[tuple[tuple[float, ...], float]]:
    """Points with their mean losses, the best first."""
    grid = [tuple(float(x) for x in point) for point in points]
    means = _losses(problem, grid, problem.num_steps, seeds).mean(axis=1)
    return sorted(zip(grid, means.tolist(), strict=True), key=lambda pair: pair[1])


def _losses(
    problem: Problem,
    decades: Sequence[Sequence[float]],
    num_steps: int,
    seeds: Sequence[int] | None = None,
) -> NDArray[np.float64]:
    chosen = choice_seeds(problem) if seeds is None else seeds
    return final_losses(problem, 10.0 ** np.array(decades), chosen, num_steps)


# -- one task -------------------------------------------------------------------------------------


def measure(problem: Problem) -> Row:
    """The truth of a task."""
    row: Row = {"task": problem.name, "title": problem.title, "num_steps": problem.num_steps}
    row["seeds"] = len(choice_seeds(problem))
    row["line"] = line(problem, problem.decades, problem.num_steps)
    one_lr = row["line"]["best"]
    if "groups" in problem.uses and not problem.slow:
        row["vector"] = best_vector(problem, one_lr)
    if "long" in problem.uses:
        steps = LONGER * problem.num_steps
        decades = (one_lr + LONG_LINE[0], one_lr + LONG_LINE[1])
        row["long"] = {"num_steps": steps, "line": line(problem, decades, steps)}
    add_fresh(problem, row)
    return row


def add_fresh(problem: Problem, row: Row) -> None:
    """Measure on fresh seeds what the grids chose."""
    parts = [row, row["long"]] if "long" in row else [row]
    for part in parts:
        points = {"one_lr": [part["line"]["best"]] * len(problem.groups)}
        if "vector" in row:  # that of the usual length for a longer training too, not chosen anew
            points["vector"] = row["vector"]
        part["fresh"] = _on_fresh(problem, points, part["num_steps"])


def _on_fresh(problem: Problem, points: dict[str, list[float]], num_steps: int) -> Row:
    losses = _losses(problem, list(points.values()), num_steps, fresh_seeds(problem))
    return {name: _rounded(values) for name, values in zip(points, losses, strict=True)}


def _rounded(values: NDArray[np.float64]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


# -- the file -------------------------------------------------------------------------------------


def run(chosen: Sequence[Problem], *, fresh: bool = False) -> None:
    """Measure the truth of some tasks; the others in the file stay.

    Args:
        chosen: The tasks.
        fresh: Whether to keep what the grids chose, and measure that on the fresh seeds alone.
    """
    for problem in chosen:
        row = truth_of(problem) if fresh else measure(problem)
        if fresh:
            add_fresh(problem, row)
        write_rows([row])
        print(summary(row), flush=True)


def write_rows(rows: Sequence[Row]) -> None:
    """Put rows into the file, in the places of those of the same tasks."""
    every = merged(NAME, rows)
    write_result(NAME, every, command="range_test truth --data FOLDER", compact=True)


def merged(name: str, rows: Sequence[Row]) -> list[Row]:
    """These rows, and those of other tasks that a result file has, in the order of the tasks."""
    path = RESULTS / f"{name}.json"
    known: list[Row] = json.loads(path.read_text())["rows"] if path.exists() else []
    new = {row["task"] for row in rows}
    every = [*rows, *(row for row in known if row["task"] not in new)]
    order = list(problems())
    return sorted(every, key=lambda row: order.index(row["task"]))


def truth_rows() -> dict[str, Row]:
    """Task -> its truth, of every task that was measured."""
    path = RESULTS / f"{NAME}.json"
    rows: list[Row] = json.loads(path.read_text())["rows"] if path.exists() else []
    return {row["task"]: row for row in rows}


def truth_of(problem: Problem) -> Row:
    """The truth of a task.

    Raises:
        ValueError: If it was not measured.
    """
    rows = truth_rows()
    if problem.name not in rows:
        raise ValueError(
            f"The truth of task {problem.name!r} must be measured before. Run "
            f"`python -m benchmarks.range_test truth --tasks {problem.name}`."
        )
    return rows[problem.name]


def joint_gain(row: Row, *, long: bool = False) -> tuple[float, float]:
    """By how much the best vector beats the best one LR on fresh seeds, and its standard error.

    Law: 1 - mean(vector) / mean(one LR); the error is that of the mean of paired differences.
    """
    fresh = row["long"]["fresh"] if long else row["fresh"]
    one, vector = np.array(fresh["one_lr"]), np.array(fresh["vector"])
    error = float((one - vector).std(ddof=1) / len(one) ** 0.5 / one.mean())
    return float(1 - vector.mean() / one.mean()), error


def region(row: Row, within: float = 1.05) -> tuple[float, float]:
    """log10 LRs around the best of the line between which the loss stays within 5 % of its own.

    Linear between the points of the grid, in log LR.
    """
    x, y = np.array(row["line"]["decades"]), np.array(row["line"]["losses"])
    limit, best = within * y.min(), int(y.argmin())
    ends = []
    for path in (range(best, -1, -1), range(best, len(x))):
        stop = next((i for i, index in enumerate(path) if y[index] > limit), None)
        if stop is None:
            ends.append(float(x[path[-1]]))
            continue
        a, b = path[stop - 1], path[stop]
        ends.append(float(x[a] + (x[b] - x[a]) * (limit - y[a]) / (y[b] - y[a])))
    return ends[0], ends[1]


def summary(row: Row) -> str:
    """One line for the terminal."""
    text = f"{row['title']:40s} one LR 1e{row['line']['best']:+.2f} {np.mean(row['fresh']['one_lr']):.4f}"
    if "vector" in row:
        gain, error = joint_gain(row)
        vector = ", ".join(f"{x:+.1f}" for x in row["vector"])
        text += f"  vector [{vector}] gain {100 * gain:.1f} +- {100 * error:.1f} %"
    if "long" in row:
        gain, error = joint_gain(row, long=True)
        text += f"  long: 1e{row['long']['line']['best']:+.2f}, {100 * gain:.1f} +- {100 * error:.1f} %"
    return text
