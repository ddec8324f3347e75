"""Reported: what a trial takes in a search, with all that other processes do beside it.

In `benchmarks.searching.overhead` a trial and the training it is compared with are neighbours in
time, and both bear with the processes that send records and write the study. Here the search goes
on for a few trials; then it is waited until the others have nothing more to do, and as many
trainings follow without a search. So the search alone bears with them. All in one process: another
one may be several percent faster or slower for the same steps. Five minutes on a quiet machine:

    python -m benchmarks.searching.whole
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

import lrfinder
from benchmarks.results_file import command_of, write_result
from benchmarks.searching.overhead import search, task_and_epochs

BLOCK = 6  # trials, and then as many trainings; the first of each is not counted
BLOCKS = 10
PROCESSES = 4
IDLE = 1.5  # seconds after which other processes have nothing more to do


def measured(folder: Path, record: bool, blocks: int) -> list[dict[str, float]]:
    """Seconds of a trial in the search and out of it, for each block; of a process of its own."""
    task, num_epochs = task_and_epochs()
    ended: list[float] = []
    found: list[dict[str, float]] = []
    last: FrozenTrial | None = None

    def on_trial(study: optuna.Study, trial: FrozenTrial) -> None:
        nonlocal last
        ended.append(time.perf_counter())
        last = trial

    def between() -> None:
        if last is None or len(ended) < BLOCK:
            return
        searched = (ended[-1] - ended[0]) / (BLOCK - 1)
        time.sleep(IDLE)
        ended.clear()
        for _ in range(BLOCK):
            lrfinder.train_task(
                task, **last.user_attrs["hparams"], num_epochs=num_epochs, device="cpu"
            )
            ended.append(time.perf_counter())
        found.append({"searched": searched, "bare": (ended[-1] - ended[0]) / (BLOCK - 1)})
        ended.clear()

    n_trials = blocks * BLOCK + 1  # the last block is followed by one more trial
    study = search(folder, n_trials, between=between, on_trial=on_trial, record=record)
    assert all(trial.state.name == "COMPLETE" for trial in study.trials)
    return found[1:]  # other processes start in the first one


def main() -> None:
    """Measure, print and write `results/searching.whole.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=BLOCKS, help=">= 3")
    parser.add_argument("--processes", type=int, default=PROCESSES)
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    if options.blocks < 3:  # the first is not counted, and quartiles take two
        parser.error(f"`--blocks` must be 3 or more, but got {options.blocks}.")
    found: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    with (
        tempfile.TemporaryDirectory() as name,
        ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool,
    ):
        for number, record in itertools.product(range(options.processes), found):
            folder = Path(name, f"{record}-{number}")
            folder.mkdir()
            blocks = pool.submit(measured, folder, record, options.blocks).result()
            found[record] += blocks
            print(record, *(f"{b['searched'] / b['bare']:.3f}" for b in blocks), flush=True)
    rows: list[dict[str, Any]] = []
    for record, blocks in found.items():
        ratios = [block["searched"] / block["bare"] for block in blocks]
        low, median, high = statistics.quantiles(ratios, n=4)
        rows.append(
            {"recorded": record, "ratio": median, "quartile_1": low, "quartile_3": high,
             "milliseconds": 1e3 * statistics.median(block["searched"] for block in blocks),
             "training_milliseconds": 1e3 * statistics.median(block["bare"] for block in blocks)}
        )  # fmt: skip
        print(*(f"{k}={v:.4g}" if isinstance(v, float) else v for k, v in rows[-1].items()))
    if not options.no_save:
        command = command_of("searching.whole", parser, options, ("blocks", "processes"))
        write_result("searching.whole", rows, command=command)


if __name__ == "__main__":
    main()
