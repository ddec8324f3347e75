"""Claim: asking, telling, reporting and recording a trial take little beside a trial of 500 steps.

Trials of a task whose steps cost next to nothing (20 epochs of 25 steps) are searched, and trained
without a search, in turns; what the search takes more, for each trial, is set against a trial of
500 steps of the digits' MLP, 128 wide. Two minutes on a quiet machine:

    python -m benchmarks.searching.overhead
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lrfinder
from benchmarks.results_file import interleave, write_result

EPOCHS, STEPS = 20, 25
HPARAMS: dict[str, Any] = {
    "lrs": {"body": 0.01, "head": 0.01},
    "schedule": {"name": "StepLR", "step_size": 10, "gamma": 0.5},
}


def small_task() -> lrfinder.Task:
    """Two numbers on batches of one sample."""
    inputs = torch.randn(STEPS, 1)
    return lrfinder.Task(
        name="small",
        make_model=lambda: nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)),
        groups={"body": "0.*", "head": "1.*"},
        make_optimizer=lambda groups: torch.optim.SGD(groups, lr=0.01),
        loss_fn=lrfinder.supervised(nn.MSELoss()),
        train_loader=lrfinder.TensorLoader(inputs, inputs, batch_size=1),
        val_loader=lrfinder.TensorLoader(inputs, inputs, batch_size=STEPS),
        num_epochs=EPOCHS,
    )


def searched(n_trials: int, *, database: bool, record: bool) -> float:
    """Seconds of a search, from its first trial to its last."""
    with tempfile.TemporaryDirectory() as folder:
        storage = f"sqlite:///{Path(folder) / 'study.db'}" if database else None
        options: dict[str, Any] = {
            "warm_start": False, "pruner": "NopPruner", "engine": "stepping", "device": "cpu",
            "confirm": 0, "storage": storage, "hparams": lambda trial: {"lr/body": 1e-3},
        }  # fmt: skip
        ended: list[float] = []
        options["on_trial"] = lambda study, trial: ended.append(time.perf_counter())
        if not record:
            lrfinder.search(small_task(), n_trials + 1, **options)
        else:
            uri = f"sqlite:///{Path(folder) / 'mlflow.db'}"
            with lrfinder.MlflowRecorder(experiment="overhead", tracking_uri=uri) as recorder:
                lrfinder.search(small_task(), n_trials + 1, recorder=recorder, **options)
        return ended[-1] - ended[0]


def trained(task: lrfinder.Task, count: int, num_epochs: int) -> float:
    """Seconds of as many trainings without a search."""
    began = time.perf_counter()
    for _ in range(count):
        lrfinder.train_task(task, **HPARAMS, num_epochs=num_epochs, device="cpu")
    return time.perf_counter() - began


def main() -> None:
    """Measure, print and write `results/searching.overhead.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    digits, count = lrfinder.load_task("digits"), options.trials
    epochs = round(EPOCHS * STEPS / 26)  # of 26 steps
    arms: dict[str, Callable[[], float]] = {
        "bare": lambda: trained(small_task(), count, EPOCHS),
        "digits": lambda: trained(digits, count, epochs),
    }
    kinds = {
        "in memory": (False, False),
        "SQLite": (True, False),
        "in memory, recorded in MLflow": (False, True),
        "SQLite, recorded in MLflow": (True, True),
    }
    for name, (database, record) in kinds.items():
        arms[name] = lambda database=database, record=record: searched(
            count, database=database, record=record
        )
    seconds = interleave(arms, rounds=options.rounds)
    rows = []
    for name in kinds:
        extra = [(a - b) / count for a, b in zip(seconds[name], seconds["bare"], strict=True)]
        shares = [e * count / d for e, d in zip(extra, seconds["digits"], strict=True)]
        low, median, high = statistics.quantiles(shares, n=4)
        rows.append({
            "study": name, "milliseconds": 1e3 * statistics.median(extra), "share": median,
            "quartile_1": low, "quartile_3": high, "bar": 0.03,
        })  # fmt: skip
        print(f"{name:32s} {rows[-1]['milliseconds']:.1f} ms a trial, {100 * median:.1f} % "
              f"[{100 * low:.1f}, {100 * high:.1f}]")  # fmt: skip
    write_result(
        "searching.overhead", rows, command="searching.overhead", trials=count,
        digits_seconds=statistics.median(seconds["digits"]) / count,
    )  # fmt: skip


if __name__ == "__main__":
    main()
