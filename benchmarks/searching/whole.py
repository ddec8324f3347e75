"""Reported: what a trial takes in a whole search, with all that other processes do beside it.

As `benchmarks.searching.overhead`, but trainings with and without a search are not neighbours: each
process does one kind alone, the kinds in turn. So those who send records and write the study slow
only the trainings that they belong to, where they do. Five minutes on a quiet machine:

    python -m benchmarks.searching.whole
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import lrfinder
from benchmarks.results_file import write_result
from benchmarks.searching.overhead import search, task_and_epochs

KINDS = ("training", "search", "search, recorded")
BEFORE, TRIALS = 12, 24  # those that are not measured, in which the other processes start


def seconds(folder: Path, kind: str) -> float:
    """Mean of the trials; of a process of its own."""
    ended: list[float] = []
    if kind == "training":
        task, num_epochs = task_and_epochs()
        lrs = {"body": 3e-3, "head": 3e-3}
        schedule = {"name": "StepLR", "gamma": 0.5, "step_size": 5}
        for _ in range(BEFORE + TRIALS):
            lrfinder.train_task(
                task, lrs=lrs, schedule=schedule, num_epochs=num_epochs, device="cpu"
            )
            ended.append(time.perf_counter())
    else:
        study = search(
            folder,
            BEFORE + TRIALS,
            lambda study, trial: ended.append(time.perf_counter()),
            record=kind == "search, recorded",
        )
        assert all(trial.state.name == "COMPLETE" for trial in study.trials)
    return (ended[-1] - ended[BEFORE - 1]) / TRIALS


def main() -> None:
    """Measure, print and write `results/searching.whole.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with (
        tempfile.TemporaryDirectory() as name,
        ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool,
    ):
        for number in range(options.rounds):
            for kind in KINDS:
                folder = Path(name, f"{kind}-{number}")
                folder.mkdir()
                found[kind].append(pool.submit(seconds, folder, kind).result())
            print(*(f"{1e3 * found[kind][-1]:.1f}" for kind in KINDS), flush=True)
    rows: list[dict[str, Any]] = []
    for kind in KINDS:
        ratios = [a / b for a, b in zip(found[kind], found[KINDS[0]], strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4)
        rows.append(
            {"what": kind, "milliseconds": 1e3 * statistics.median(found[kind]),
             "ratio": median, "quartile_1": low, "quartile_3": high}
        )  # fmt: skip
        print(*(f"{k}={v:.4g}" if isinstance(v, float) else v for k, v in rows[-1].items()))
    if not options.no_save:
        changed = "" if options.rounds == 8 else f" --rounds {options.rounds}"
        write_result("searching.whole", rows, command=f"searching.whole{changed}")


if __name__ == "__main__":
    main()
