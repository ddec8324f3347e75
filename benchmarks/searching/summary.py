"""Summary: what all seeds of a task and an arm come to."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.searching.settings import TRIALS

SAME = 1.0001  # one training beside others and beside other ones differs by rounding


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each task and arm, over seeds.

    `share` is the steps to reach what cold TPE has at its end, as a share of all of its steps
    (median; None where more than half of the searches never do); `ratio` the loss at the end over
    cold TPE's, with the worst seed.
    """
    out = []
    for task in dict.fromkeys(row["task"] for row in rows):
        of_task = [row for row in rows if row["task"] == task]
        colds = {row["seed"]: row["final"] for row in of_task if row["arm"] == "cold TPE"}
        for arm in dict.fromkeys(row["arm"] for row in of_task):
            mine = [row for row in of_task if row["arm"] == arm]
            item: dict[str, Any] = {"task": task, "arm": arm, "seeds": len(mine)}
            if colds:
                mine = [row for row in mine if row["seed"] in colds]
                shares = [
                    _reached(row, colds[row["seed"]]) / (TRIALS * row["trial_steps"])
                    for row in mine
                ]
                median = float(statistics.median(shares))
                item["share"] = median if np.isfinite(median) else None
                item["reached"] = int(np.isfinite(shares).sum())
                ratios = [row["final"] / colds[row["seed"]] for row in mine]
                item["ratio"] = float(np.exp(np.mean(np.log(ratios))))
                item["worst_ratio"] = max(ratios)
            item["loss"] = float(np.exp(np.mean([np.log(row["final"]) for row in mine])))
            item["trials"] = statistics.median(row["trials"] for row in mine)
            out.append(item)
    return out


def _reached(row: dict[str, Any], target: float) -> float:
    """Steps until the best trial so far was worth as much."""
    return next((at for at, loss in row["path"] if loss <= target * SAME), np.inf)
