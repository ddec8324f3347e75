"""Claim: asking, telling, reporting and recording a trial take little beside a trial of 500 steps.

The digits' MLP, 128 wide, is searched one trial after the other; after each trial the same training
is done once more without a search. So each share is that of two neighbours in time, whatever else
the machine does. What the search still waits for at its end, the records that are on their way, is
divided among its trials. Four minutes on a quiet machine:

    python -m benchmarks.searching.overhead
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial

import lrfinder
from benchmarks.results_file import write_result
from benchmarks.servers import Postgres

STEPS = 500
TRIALS = 24


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


def shares(folder: Path, storage: str | None, *, record: bool, n_trials: int) -> dict[str, Any]:
    """What a search's trials take more than the same trainings without one."""
    task = lrfinder.load_task("digits")
    batches = lrfinder.planned_steps(task.start(0, device="cpu"), 1, task.options)
    assert batches is not None
    num_epochs = round(STEPS / batches)
    searched: list[float] = []
    bare: list[float] = []
    since = 0.0

    def on_trial(study: optuna.Study, trial: FrozenTrial) -> None:
        nonlocal since
        ended = time.perf_counter()
        hparams = trial.user_attrs["hparams"]
        lrfinder.train_task(task, **hparams, num_epochs=num_epochs, device="cpu")
        trained = time.perf_counter()
        if since:  # the first trial has the beginning of the search in it
            searched.append(ended - since)
            bare.append(trained - ended)
        since = time.perf_counter()

    with contextlib.ExitStack() as stack:
        recorder = None
        if record:
            uri = f"sqlite:///{folder / 'mlflow.db'}"
            recorder = stack.enter_context(
                lrfinder.MlflowRecorder("overhead", tracking_uri=uri, spool=folder / "spool")
            )
        study = lrfinder.search(
            task, n_trials + 1, warm_start=False, hparams=chosen, num_epochs=num_epochs,
            pruner="NopPruner", engine="stepping", device="cpu", confirm=0, storage=storage,
            study_name=f"recorded: {record}", recorder=recorder, on_trial=on_trial,
        )  # fmt: skip
    end = (time.perf_counter() - since) / n_trials
    assert all(trial.state.name == "COMPLETE" for trial in study.trials)
    base = statistics.median(bare)
    pairs = [(a - b + end) / b for a, b in zip(searched, bare, strict=True)]
    low, median, high = statistics.quantiles(pairs, n=4)
    return {
        "milliseconds": 1e3 * median * base, "share": median, "quartile_1": low,
        "quartile_3": high, "end_milliseconds": 1e3 * end, "trial_seconds": base,
    }  # fmt: skip


def main() -> None:
    """Measure, print and write `results/searching.overhead.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for record in (False, True):
        with tempfile.TemporaryDirectory() as name, storages(Path(name)) as kinds:
            for kind, storage in kinds.items():
                folder = Path(name, kind.replace(" ", "-"))
                folder.mkdir()
                found = shares(folder, storage, record=record, n_trials=options.trials)
                row = {"study": kind, "recorded": record, **found, "bar": 0.03}
                rows.append(row)
                print(*(f"{k}={v:.4g}" if isinstance(v, float) else v for k, v in row.items()),
                      flush=True)  # fmt: skip
    if not options.no_save:
        changed = "" if options.trials == TRIALS else f" --trials {options.trials}"
        write_result("searching.overhead", rows, command=f"searching.overhead{changed}")


if __name__ == "__main__":
    main()
