"""Claim: the LRs that a range test suggests for two or three groups beat the best single LR of a grid.

Every suggestion, from several finder seeds (each with its own initial weights and batches), is
trained on fresh seeds and compared with the best single LR on the same seeds. So is the test's own
best single LR, and what it suggests for a training 4 times longer.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import lrfinder
from benchmarks.range_test.tasks import Problem
from benchmarks.range_test.training import final_losses
from benchmarks.range_test.truth import LONGER, Row, fresh_seeds, joint_gain, merged, truth_of
from benchmarks.results_file import write_result

NAME = "range_test_groups"
CLOSE = 1.03
NOISE = 2.0  # standard errors beyond which a joint gain counts as one


def run(
    problems: Sequence[Problem], *, num_seeds: int, options: Mapping[str, Any], save: bool
) -> None:
    """Measure, print and, unless told not to, put the rows in the place of those of the same tasks."""
    rows: list[Row] = []
    for problem in problems:
        truth = truth_of(problem)
        rows += measure(problem, truth, num_seeds, options)
        print(told(problem, truth, rows), flush=True)
        if save:
            every = merged(NAME, rows)
            write_result(
                NAME, every, command="range_test groups", compact=True, summary=summary(every)
            )
    for key, value in summary(rows).items():
        print(f"{key:32s} {value:.4g}")


def measure(problem: Problem, truth: Row, num_seeds: int, options: Mapping[str, Any]) -> list[Row]:
    """Each finder seed of a task, and its suggestion's loss over that of the best single LR."""
    seeds = range(min(num_seeds, 2) if problem.slow else num_seeds)
    rows = [_suggest(problem, seed, problem.num_steps, options) for seed in seeds]
    _judge(problem, rows, truth["fresh"]["one_lr"], problem.num_steps)
    if "long" in truth:
        steps = LONGER * problem.num_steps
        long = [_suggest(problem, seed, steps, options) for seed in seeds]
        _judge(problem, long, truth["long"]["fresh"]["one_lr"], steps)
        rows += long
    _add_share(rows, truth)
    return rows


def _suggest(problem: Problem, seed: int, num_steps: int, options: Mapping[str, Any]) -> Row:
    """One range test, at its defaults but for `options`."""
    task = problem.task()
    started = task.start(seed, device="cpu")
    began = time.perf_counter()
    result = lrfinder.range_test(
        started.model,
        started.optimizer,
        task.loss_fn,
        started.train_loader,
        groups="each",
        planned_steps=num_steps,
        seed=seed,
        **options,
    )
    suggestion = result.suggestion
    return {
        "task": problem.name,
        "title": problem.title,
        "num_steps": num_steps,
        "long": num_steps != problem.num_steps,
        "seed": seed,
        "lrs": _short(suggestion.lrs),
        "control": _short(suggestion.control or {}),
        "status": {name: bracket.status for name, bracket in suggestion.brackets.items()},
        "steps": result.cost.steps,
        "seconds": round(time.perf_counter() - began, 3),
    }


def _short(lrs: Mapping[str, float]) -> dict[str, float]:
    return {name: float(f"{lr:.5g}") for name, lr in lrs.items()}


def _judge(problem: Problem, rows: list[Row], best: list[float], num_steps: int) -> None:
    """Add the loss of the suggestion and of the control over the best single LR's, paired."""
    for key, name in (("lrs", "ratio"), ("control", "control_ratio")):
        given = [row for row in rows if set(row[key]) == set(problem.groups)]
        vectors = [[row[key][group] for group in problem.groups] for row in given]
        losses = final_losses(problem, vectors, fresh_seeds(problem), num_steps) if vectors else []
        for row, values in zip(given, losses, strict=True):
            row[name] = round(float(np.mean(values) / np.mean(best)), 4)


def _add_share(rows: list[Row], truth: Row) -> None:
    """The share of the joint gain that was recovered, where there is one beyond its noise."""
    if "vector" not in truth:
        return
    gain, error = joint_gain(truth)
    if gain > NOISE * error:
        for row in rows:
            if not row["long"] and "ratio" in row:
                row["recovered"] = round((1 - row["ratio"]) / gain, 3)


# -- in sum ---------------------------------------------------------------------------------------


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """What the bars are set for; each task counts alike, and its runs within it."""
    found: dict[str, float] = {}
    for long in (False, True):
        part = [row for row in rows if row["long"] == long]
        prefix = "long_" if long else ""
        for key in ("ratio", "control_ratio"):
            tasks = per_task(part, key)
            if not tasks:
                continue
            runs = np.concatenate(list(tasks.values()))
            means = [geometric(values) for values in tasks.values()]
            name = prefix + key
            found[f"{name}"] = geometric(means)
            found[f"{name}_worst_task"] = max(means)
            found[f"{name}_worst_run"] = float(runs.max())
            found[f"{name}_close"] = float((runs <= CLOSE).mean())
    shares = per_task([row for row in rows if not row["long"]], "recovered")
    if shares:
        found["recovered"] = float(np.median([values.mean() for values in shares.values()]))
    two = [row for row in rows if len(row["status"]) == 2]
    found["refused"] = float(np.mean(["ratio" not in row for row in rows]))
    for key in ("steps", "seconds"):
        found[f"{key}_two_groups"] = float(np.median([row[key] for row in two])) if two else np.nan
    return {key: round(value, 4) for key, value in found.items()}


def per_task(rows: Sequence[Row], key: str) -> dict[str, NDArray[np.float64]]:
    """Task -> the values of its runs that have one."""
    names = dict.fromkeys(row["task"] for row in rows if key in row)
    return {
        name: np.array([row[key] for row in rows if row["task"] == name and key in row])
        for name in names
    }


def geometric(values: Sequence[float] | NDArray[np.float64]) -> float:
    """The geometric mean."""
    return float(np.exp(np.mean(np.log(values))))


def told(problem: Problem, truth: Row, rows: Sequence[Row]) -> str:
    """A task's result as a line for the terminal."""
    own = [row for row in rows if row["task"] == problem.name]
    text = f"{problem.title:40s}"
    for label, long in (("", False), ("  4 x longer:", True)):
        part = [row for row in own if row["long"] == long]
        ratios, controls = per_task(part, "ratio"), per_task(part, "control_ratio")
        if ratios:
            values, control = ratios[problem.name], controls.get(problem.name, np.array([np.nan]))
            text += f"{label} {geometric(values):.3f} (worst {values.max():.3f}), one LR {geometric(control):.3f}"
    if "vector" in truth:
        text += f"  grid {1 - joint_gain(truth)[0]:.3f}"
    return (
        text
        + f"  {np.median([row['steps'] for row in own]):.0f} steps, {np.median([row['seconds'] for row in own]):.1f} s"
    )
