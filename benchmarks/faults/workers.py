"""Workers of a study: real processes, forks of this one, that can be killed."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial

import lrfinder
from lrfinder.datasets import TensorLoader

GROUPS = {"body": "0.*", "head": "2.*"}


def waiting_task(pause: float = 0.0, num_epochs: int = 4) -> lrfinder.Task:
    """A tiny network whose every step waits: for a device, say, which is not this machine's CPU."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(48, 6, generator=generator)
    loader = TensorLoader(inputs, (inputs[:, 0] > 0).long(), batch_size=12)
    criterion = lrfinder.supervised(torch.nn.CrossEntropyLoss())

    def loss_fn(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        time.sleep(pause)
        return criterion(model, batch)

    return lrfinder.Task(
        name="waiting",
        make_model=lambda: torch.nn.Sequential(
            torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)
        ),
        groups=GROUPS,
        make_optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1),
        loss_fn=loss_fn,
        train_loader=loader,
        val_loader=[(inputs[:12], (inputs[:12, 0] > 0).long())],
        num_epochs=num_epochs,
    )


def quick_range_test(task: lrfinder.Task) -> lrfinder.RangeTest:
    """A range test of a tiny task, for its searches to begin with."""
    started = task.start(0, device="cpu")
    return lrfinder.range_test(
        started.model,
        started.optimizer,
        task.loss_fn,
        started.train_loader,
        effort="quick",
        replicas=1,
    )


def measure(path: Path) -> None:
    """The range test that all studies begin with, in a file; and what a search imports, imported.

    Both are made in a fork, since workers are forks of this process, which must not use autograd.
    """
    names = path.with_suffix(".modules")
    process = os.fork()
    if process == 0:
        try:
            task = waiting_task()
            result = quick_range_test(task)
            result.save(path)
            storage = f"sqlite:///{path.with_suffix('.db')}"
            lrfinder.search(task, 14, warm_start=result, storage=storage, device="cpu", confirm=0)
            names.write_text("\n".join(sys.modules))
        finally:
            os._exit(0)
    os.waitpid(process, 0)
    for name in names.read_text().split():
        with contextlib.suppress(ImportError):  # some are made by others, and no files
            importlib.import_module(name)


class Workers:
    """Processes that search the same study, forked from this one.

    Args:
        folder: With the range test; gets a line of `ended.jsonl` for each trial that has ended.
        storage: URL.
        n_trials: In all.
        pause: Of each of a trial's 17 losses.
        mlflow_uri: Where the trials are recorded; None for nowhere.
        grace_period: As in `lrfinder.search`.
        study: Its name.
    """

    def __init__(
        self,
        folder: Path,
        storage: str,
        n_trials: int,
        *,
        pause: float,
        mlflow_uri: str | None = None,
        grace_period: float = 60.0,
        study: str = "shared",
    ) -> None:
        self.folder = folder
        self.storage = storage
        self.n_trials = n_trials
        self.pause = pause
        self.mlflow_uri = mlflow_uri
        self.grace_period = grace_period
        self.study = study
        self.processes: set[int] = set()
        self.failures: list[int] = []
        self.log = folder / "ended.jsonl"
        self.log.touch()

    def start(self, count: int = 1) -> None:
        """Start some at once."""
        for _ in range(count):
            process = os.fork()
            if process == 0:
                status = 1
                try:
                    self._search()
                    status = 0
                except BaseException as error:
                    print(
                        f"worker {os.getpid()}: {type(error).__name__}: {error}"[:2000], flush=True
                    )
                finally:
                    os._exit(status)
            self.processes.add(process)

    def _search(self) -> None:
        log = os.open(self.log, os.O_WRONLY | os.O_APPEND)

        def ended(study: optuna.Study, trial: FrozenTrial) -> None:
            row = {"process": os.getpid(), "number": trial.number, "state": trial.state.name}
            os.write(log, (json.dumps({**row, "value": trial.value}) + "\n").encode())

        recorder: Any = contextlib.nullcontext()
        if self.mlflow_uri is not None:
            recorder = lrfinder.MlflowRecorder(
                "faults", tracking_uri=self.mlflow_uri, spool=self.folder / "spool"
            )
        with recorder as kept:
            lrfinder.search(
                waiting_task(self.pause),
                self.n_trials,
                warm_start=lrfinder.RangeTest.load(self.folder.parent / "measured.json"),
                storage=self.storage,
                study_name=self.study,
                pruner="NopPruner",
                confirm=0,
                recorder=kept,
                engine="stepping",
                device="cpu",
                grace_period=self.grace_period,
                on_trial=ended,
            )

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:  # some are left where something went wrong
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)

    def reap(self, *, wait: bool = False) -> None:
        """Note which have ended."""
        for process in sorted(self.processes):
            done, status = os.waitpid(process, 0 if wait else os.WNOHANG)
            if done:
                self.processes.discard(process)
                if status not in (0, signal.SIGKILL):
                    self.failures.append(status)

    def kill_one(self) -> None:
        """`kill -9` of one of them, and another in its place; every other time of one that is well under way."""
        at_work = self.processes & {row["process"] for row in self.ended()}
        chosen = at_work if at_work and random.random() < 0.5 else self.processes
        process = random.choice(sorted(chosen))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        self.processes.discard(process)
        self.start()

    def ended(self) -> list[dict[str, Any]]:
        """What the workers themselves say has ended."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]
