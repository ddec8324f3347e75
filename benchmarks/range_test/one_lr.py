"""Claim: with one LR for all parameters, the range test is nearer to the best LR than its peers are.

Every finder is at its defaults and runs from several seeds. Its LR is compared with those of the
grid that come within 5 % of the best loss, and a training with it on fresh seeds with one at the
grid's best LR.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import lrfinder
from benchmarks.range_test import peers
from benchmarks.range_test.tasks import Problem
from benchmarks.range_test.training import final_losses
from benchmarks.range_test.truth import Row, fresh_seeds, merged, region, truth_of
from benchmarks.results_file import RESULTS, write_result

NAME = "range_test_one_lr"
# Beside the default: told how long the training will be, and no race, which costs what peers cost.
OURS = ("lrfinder", "lrfinder, length given", "lrfinder, ramps only")


def run(
    problems: Sequence[Problem],
    *,
    num_seeds: int,
    peers_env: str | None,
    data: str | None,
    save: bool,
) -> None:
    """Measure, print and write. Without `peers_env` the rows of the peers in the file stay."""
    for problem in problems:
        truth = truth_of(problem)
        found = [_suggest(problem, seed, arm) for arm in OURS for seed in range(num_seeds)]
        if peers_env is not None:
            python = peers.make_environment(Path(peers_env))
            found += peers.suggestions(python, [problem], range(num_seeds), data)
        rows = judged(problem, truth, found)
        if peers_env is None:
            rows += _peers_of(problem)
        print(told(problem, rows), flush=True)
        if save:
            command = "range_test one-lr --peers-env FOLDER --data FOLDER"
            write_result(NAME, merged(NAME, rows), command=command, compact=True)


def _peers_of(problem: Problem) -> list[Row]:
    """What the file says of the peers."""
    path = RESULTS / f"{NAME}.json"
    rows: list[Row] = json.loads(path.read_text())["rows"] if path.exists() else []
    return [row for row in rows if row["task"] == problem.name and row["method"] not in OURS]


def _suggest(problem: Problem, seed: int, arm: str) -> dict[str, Any]:
    """What lrfinder says, as the peers say it."""
    options: dict[str, Any] = {
        "lrfinder": {},
        "lrfinder, length given": {"planned_steps": problem.num_steps},
        "lrfinder, ramps only": {"effort": "brackets"},
    }[arm]
    task = problem.task(one_lr=True)
    started = task.start(seed, device="cpu")
    began = time.perf_counter()
    result = lrfinder.range_test(
        started.model,
        started.optimizer,
        task.loss_fn,
        started.train_loader,
        groups="together",
        seed=seed,
        **options,
    )
    bracket = result.suggestion.brackets["all"]
    return {
        "method": arm,
        "seed": seed,
        "lr": result.suggestion.lrs.get("all"),
        "steps": result.cost.steps,
        "seconds": time.perf_counter() - began,
        "message": bracket.message,
    }


def judged(problem: Problem, truth: Row, found: Sequence[dict[str, Any]]) -> list[Row]:
    """One row for each method: error, spread, loss at the suggestion over the grid's best, refusals."""
    # There are a hundred suggestions, and a training of those that are not batched takes long.
    seeds = fresh_seeds(problem)[: 24 if problem.batched else 2]
    best = np.mean(truth["fresh"]["one_lr"][: len(seeds)])
    low, high = region(truth)
    given = [item for item in found if item["lr"] is not None]
    lrs, which = np.unique([item["lr"] for item in given], return_inverse=True)
    vectors = np.repeat(lrs[:, None], len(problem.groups), axis=1)
    losses = final_losses(problem, vectors, seeds, problem.num_steps).mean(axis=1)[which] / best
    rows = []
    for method in dict.fromkeys(item["method"] for item in found):
        own = [item for item in found if item["method"] == method]
        x = np.array([math.log10(item["lr"]) for item in own if item["lr"] is not None])
        ratios = [
            ratio for item, ratio in zip(given, losses, strict=True) if item["method"] == method
        ]
        row: Row = {
            "task": problem.name,
            "title": problem.title,
            "method": method,
            "runs": len(own),
        }
        row["refused"] = len(own) - len(x)
        row["decades"] = [round(float(value), 3) for value in x]
        if len(x):
            errors = np.maximum(np.maximum(low - x, x - high), 0)
            row["error"] = round(float(np.median(errors)), 3)
            row["ratio"] = round(float(np.exp(np.mean(np.log(ratios)))), 4)
            row["worst_ratio"] = round(float(np.max(ratios)), 4)
        if len(x) > 1:
            row["spread"] = round(float(x.std(ddof=1)), 3)
        row["steps"] = int(np.median([item["steps"] for item in own]))
        row["seconds"] = round(float(np.median([item["seconds"] for item in own])), 3)
        reasons = {item["message"] for item in own if item["lr"] is None}
        row["reasons"] = sorted(reason for reason in reasons if reason)
        rows.append(row)
    return rows


def told(problem: Problem, rows: Sequence[Row]) -> str:
    """A task's result for the terminal."""
    lines = [problem.title]
    for row in rows:
        numbers = [f"{row.get(key, math.nan):7.3f}" for key in ("error", "spread", "ratio")]
        lines.append(
            f"  {row['method']:24s} {' '.join(numbers)}  refused {row['refused']} of {row['runs']}"
        )
    return "\n".join(lines)
