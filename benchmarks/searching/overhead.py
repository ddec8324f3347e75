"""Claim: asking, telling, reporting and recording a trial take little beside a trial of 500 steps.

The digits' MLP, 128 wide, is searched one trial after the other; after each trial the same training
is done once more without a search. So each share is that of two neighbours in time, whatever else
the machine does. How fast a training is depends by a percent on where its memory happens to lie. So
the neighbour is trained before the next trial is asked for, when the memory of the last one is free
again; and several processes search, in turn for each kind of study.

What the search waits for at its end, the records that are on their way, does not grow with its
trials. It is told by itself, and as a share of a search of so many trials. What other processes do
meanwhile (they send the records, and write the study) is told by their CPU time; both neighbours
bear with it. A quarter of an hour on a quiet machine:

    python -m benchmarks.searching.overhead
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial

import lrfinder
from benchmarks.results_file import command_of, write_result
from benchmarks.servers import Postgres

STEPS = 500
TRIALS = 48  # of each process
PROCESSES = 6
SEARCH = 64  # trials among which the wait at the end is divided


def chosen(trial: optuna.Trial) -> dict[str, Any]:
    """LRs with which no training diverges: all trials take as many steps."""
    return {
        f"lr/{group}": trial.suggest_float(f"lr/{group}", 1e-3, 1e-2, log=True)
        for group in ("body", "head")
    }


@contextlib.contextmanager
def storages(folder: Path) -> Iterator[dict[str, str | None]]:
    """One of each kind, by name."""
    with Postgres(folder / "pg") as server:
        yield {
            "in memory": None,
            "SQLite": f"sqlite:///{folder / 'study.db'}",
            "PostgreSQL": server.uri,
        }


def task_and_epochs() -> tuple[lrfinder.Task, int]:
    """The digits' MLP, and how many epochs come to so many steps; on one thread."""
    torch.set_num_threads(1)
    task = lrfinder.load_task("digits")
    batches = lrfinder.planned_steps(task.start(0, device="cpu"), 1, task.options)
    assert batches is not None
    return task, round(STEPS / batches)


def search(
    folder: Path,
    n_trials: int,
    *,
    between: Callable[[], None],
    on_trial: Callable[[optuna.Study, FrozenTrial], None],
    record: bool,
    storage: str | None = None,
) -> optuna.Study:
    """Search one trial after the other, none of which diverges or is pruned; until all is recorded.

    Args:
        folder: For the record; its name is the study's.
        n_trials: How many.
        between: Called before a trial is proposed; nothing of the one before is in memory then.
        on_trial: Called with each trial that has ended.
        record: Whether to record them.
        storage: Of the study.
    """
    task, num_epochs = task_and_epochs()

    def proposed(trial: optuna.Trial) -> dict[str, Any]:
        between()
        return chosen(trial)

    with contextlib.ExitStack() as stack:
        recorder = None
        if record:
            uri = f"sqlite:///{folder / 'mlflow.db'}"
            recorder = stack.enter_context(
                lrfinder.MlflowRecorder("overhead", tracking_uri=uri, spool=folder / "spool")
            )
        study = lrfinder.search(
            task, n_trials, warm_start=False, hparams=proposed, num_epochs=num_epochs,
            pruner="NopPruner", engine="stepping", device="cpu", confirm=0, storage=storage,
            study_name=folder.name, recorder=recorder, on_trial=on_trial,
        )  # fmt: skip
    return study


def measured(folder: Path, storage: str | None, record: bool, n_trials: int) -> dict[str, Any]:
    """Seconds of a search's trials, and of the same trainings without one; of a process of its own."""
    task, num_epochs = task_and_epochs()
    searched: list[float] = []
    bare: list[float] = []
    last: FrozenTrial | None = None
    since = 0.0  # when the last trial ended, but for what was trained after it

    def between() -> None:
        nonlocal since
        if last is not None:
            began = time.perf_counter()
            lrfinder.train_task(
                task, **last.user_attrs["hparams"], num_epochs=num_epochs, device="cpu"
            )
            took = time.perf_counter() - began
            bare.append(took)
            since += took

    def on_trial(study: optuna.Study, trial: FrozenTrial) -> None:
        nonlocal since, last
        ended = time.perf_counter()
        searched.append(ended - since)
        last, since = trial, ended

    # The first trial has the beginning of the search in it, and nobody is a neighbour of the last.
    study = search(
        folder, n_trials + 2, between=between, on_trial=on_trial, record=record, storage=storage
    )
    end = time.perf_counter() - since
    assert all(trial.state.name == "COMPLETE" for trial in study.trials)
    assert len(bare) + 1 == len(searched) == n_trials + 2
    time.sleep(0.5)  # processes that were not waited for are over
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    elsewhere = used.ru_utime + used.ru_stime
    return {
        "searched": searched[1:-1], "bare": bare[1:], "end": end, "elsewhere": elsewhere / n_trials,
    }  # fmt: skip


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """What trials take more than trainings, over all processes."""
    shares = [
        [(a - b) / b for a, b in zip(one["searched"], one["bare"], strict=True)] for one in found
    ]
    base = statistics.median(b for one in found for b in one["bare"])
    low, share, high = statistics.quantiles(itertools.chain.from_iterable(shares), n=4)
    end = statistics.median(one["end"] for one in found)
    each = [statistics.median(one) for one in shares]
    return {
        "share": share, "milliseconds": 1e3 * share * base, "quartile_1": low, "quartile_3": high,
        "least_of_processes": min(each), "most_of_processes": max(each),
        "end_milliseconds": 1e3 * end, "share_with_end": share + end / SEARCH / base,
        "elsewhere_milliseconds": 1e3 * statistics.median(one["elsewhere"] for one in found),
        "trial_milliseconds": 1e3 * base,
    }  # fmt: skip


def main() -> None:
    """Measure, print and write `results/searching.overhead.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--processes", type=int, default=PROCESSES)
    parser.add_argument("--only", default="", help="these studies alone: memory, SQLite, ...")
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    found: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    with (
        tempfile.TemporaryDirectory() as name,
        storages(Path(name)) as kinds,
        ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool,
    ):
        cases = itertools.product(range(options.processes), (False, True), kinds)
        for number, record, kind in cases:
            if options.only in kind:
                folder = Path(name, f"{kind}-{record}-{number}".replace(" ", "-"))
                folder.mkdir()
                case = pool.submit(measured, folder, kinds[kind], record, options.trials)
                found.setdefault((kind, record), []).append(case.result())
    rows = []
    for (kind, record), several in found.items():
        row = {"study": kind, "recorded": record, **summary(several), "bar": 0.03}
        rows.append(row)
        print(*(f"{k}={v:.4g}" if isinstance(v, float) else v for k, v in row.items()))
    if not options.no_save:
        command = command_of("searching.overhead", parser, options, ("trials", "processes"))
        write_result("searching.overhead", rows, command=command)


if __name__ == "__main__":
    main()
