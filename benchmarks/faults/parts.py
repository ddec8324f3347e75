"""What is done to a study, each part a function that returns a row of the result file."""

from __future__ import annotations

import contextlib
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from benchmarks.faults.verdicts import runs_disagree, verdict
from benchmarks.faults.workers import Workers, waiting_task
from benchmarks.servers import Postgres
from lrfinder.searching.budgets import Budget
from lrfinder.searching.storages import lock, open_storage
from lrfinder.searching.studies import quiet_optuna
from lrfinder.searching.workers import Worker


def kills(
    folder: Path,
    storage: str,
    mlflow_uri: str,
    *,
    count: int = 100,
    n_trials: int = 440,
    pause: float = 0.06,
    others: int = 0,
) -> dict[str, Any]:
    """`kill -9` of one of three workers at random moments; another one is started in its place.

    Beside so many processes that take all the CPU that they can get: whoever is slow then looks
    like one that was killed, and is taken for lost while it lives.
    """
    random.seed(0)
    done = 0
    with (
        busy(others),
        Workers(
            folder, storage, n_trials, pause=pause, mlflow_uri=mlflow_uri, grace_period=70 * pause
        ) as workers,
    ):
        workers.start(3)
        while workers.processes:
            time.sleep(random.uniform(10 * pause, 80 * pause))
            workers.reap()
            if done < count and workers.processes and not all_ended(workers):
                workers.kill_one()
                done += 1
    row = {"what": "kill -9 of a worker", "kills": done, "busy": others, **verdict(workers)}
    return row | runs_disagree(workers)


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes count in here."""
    counting = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in counting:
            process.kill()
            process.wait()


def all_ended(workers: Workers) -> bool:
    """Whether the workers say so; a kill after that hits nobody at work."""
    return len({row["number"] for row in workers.ended()}) >= workers.n_trials


def outage(
    folder: Path, server: Postgres, *, seconds: float = 20.0, n_trials: int = 40
) -> dict[str, Any]:
    """PostgreSQL is stopped in the middle of a study, and started again."""
    with Workers(folder, server.uri, n_trials, pause=0.06, grace_period=30.0) as workers:
        workers.start(3)
        # All are to be at work by then: one that begins while the database is away is told so, and ends.
        wait_for(
            lambda: (
                len({row["process"] for row in workers.ended()}) == 3
                or len(workers.ended()) >= n_trials // 2
            )
        )
        server.stop()
        time.sleep(seconds)
        before = len(workers.ended())
        server.start()
        back = time.monotonic()
        wait_for(lambda: len(workers.ended()) > before)
        again = time.monotonic() - back
        workers.reap(wait=True)
    row = {"what": "PostgreSQL stopped", "seconds": seconds, "again_after_seconds": again}
    return {**row, **verdict(workers)}


def at_once(
    folder: Path,
    storage: str,
    name: str,
    count: int,
    *,
    n_trials: int = 64,
    pause: float = 1 / 17,
    study: str = "shared",
) -> dict[str, Any]:
    """Workers that begin a fresh study at the same time."""
    with Workers(folder, storage, n_trials, pause=pause, study=study) as workers:
        began = time.monotonic()
        workers.start(count)
        workers.reap(wait=True)
        seconds = time.monotonic() - began
    shares = Counter(row["process"] for row in workers.ended())
    row = {"what": "workers at once", "storage": name, "workers": count, "seconds": seconds}
    row |= {"seconds_of_a_trial": 17 * pause}
    row |= {"per_worker_per_minute": 60 * n_trials / count / seconds}
    row |= {"least": min(shares.values()), "most": max(shares.values())}
    return {**row, **verdict(workers)}


def cost(storage: str, name: str, others: int) -> dict[str, Any]:
    """What a trial of 10 epochs costs in the storage, beside others that run, and how long it holds the lock."""
    task = waiting_task()
    with quiet_optuna():
        with lock(storage):
            study = optuna.create_study(storage=open_storage(storage), study_name=f"cost {others}")
        study.sampler = optuna.samplers.RandomSampler(seed=0)
        running = optuna.create_trial(state=TrialState.RUNNING)
        study.add_trials([running] * others)
        timed = Timed(lock(storage, study.study_name))
        worker = Worker(study, timed, grace_period=1e6)  # the others do not live
        seconds = []
        for trial in worker.trials(Budget(n_trials=others + 20)):
            assert trial is not None
            began = time.perf_counter()
            for group in task.groups:
                trial.suggest_float(group, 1e-3, 1.0, log=True)
            trial.set_user_attr("hparams", {"lrs": dict.fromkeys(task.groups, 0.1)})
            for epoch in range(10):
                trial.report(1.0, epoch)
                trial.should_prune()
            study.tell(trial, 1.0)
            worker.end(trial)
            seconds.append(time.perf_counter() - began)
            if len(seconds) == 20:
                break
    return {
        "what": "cost of a trial",
        "storage": name,
        "others": others,
        "ms_in_lock": 1000 * statistics.median(timed.seconds),
        "ms": 1000 * (statistics.median(seconds) + statistics.median(timed.seconds)),
    }


class Timed:
    """A lock that says how long it was held."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self.seconds: list[float] = []

    def __enter__(self) -> None:
        self._lock.__enter__()
        self._began = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.seconds.append(time.perf_counter() - self._began)
        self._lock.__exit__(*error)


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("It did not happen.")
        time.sleep(0.05)
