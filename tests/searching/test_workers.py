"""Tests of workers: exactly `n_trials`, whoever is killed; no trial is lost, doubled or left running."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

import lrfinder
from benchmarks.faults.verdicts import BAD
from lrfinder.searching.budgets import Budget
from lrfinder.searching.counting import count_done, is_counted
from lrfinder.searching.studies import quiet_optuna
from lrfinder.searching.workers import HEARTBEAT, MAX_RETRIES, Worker
from tests.searching.test_searching import tiny_task

ROOT = str(Path(__file__).parents[2])

# What a benchmark measures at length, in short, in a process whose forks are the workers.
DRIVER = """
import json, pathlib, sys
import mlflow, torch
from benchmarks.faults import parts, workers
from benchmarks.servers import Postgres, grpc_proxy
torch.set_num_threads(1)
root = pathlib.Path(sys.argv[1])
workers.measure(root / "measured.json")
folders = [root / name for name in ("kills", "outage", "grpc", "sqlite")]
for folder in folders:
    folder.mkdir()
with Postgres(root / "pg") as server, Postgres(root / "pg-2") as second:
    rows = [parts.kills(folders[0], server.uri, sys.argv[2], count=4, n_trials=10, pause=0.03)]
    with grpc_proxy(server.uri) as proxy:
        rows += [parts.at_once(folders[2], proxy, "grpc", 4, n_trials=8, pause=0.01, study="b")]
    rows += [parts.outage(folders[1], second, seconds=3.0, n_trials=20)]
sqlite = f"sqlite:///{root}/study.db"
rows += [parts.at_once(folders[3], sqlite, "SQLite", 4, n_trials=8, pause=0.01)]
print(json.dumps(rows))
"""


@pytest.fixture(scope="module")
def driven(
    tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path
) -> dict[str, dict[str, Any]]:
    """What became of the studies, by what happened to them."""
    folder = tmp_path_factory.mktemp("driven")
    shutil.copy(mlflow_template, folder / "mlflow.db")
    done = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-c", DRIVER),
            *(str(folder), f"sqlite:///{folder / 'mlflow.db'}"),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ROOT},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    print(done.stdout)  # says which runs differ, where some do
    return {row.get("storage", row["what"]): row for row in rows}


def assert_good(row: dict[str, Any]) -> None:
    assert row["counted"] == row["n_trials"] > 0
    assert {key: row[key] for key in BAD} == dict.fromkeys(BAD, 0), row


@pytest.mark.postgres
def test_killed_workers_lose_nothing_double_nothing_and_leave_nothing_running(driven) -> None:
    row = driven["kill -9 of a worker"]
    assert_good(row)
    assert row["kills"] == 4
    assert row["runs"] == row["n_trials"] + row["made_up"] - row["waiting"]
    assert not row["trials_without_run"] + row["trials_with_two_runs"] + row["runs_that_differ"]


@pytest.mark.postgres
def test_workers_wait_for_a_database_that_is_stopped_and_go_on(driven) -> None:
    row = driven["PostgreSQL stopped"]
    assert_good(row)
    assert row["made_up"] == 0
    assert row["again_after_seconds"] < 30  # some two on a machine that is not busy


@pytest.mark.postgres
@pytest.mark.parametrize("kind", ["SQLite", "grpc"])
def test_workers_that_begin_at_once_make_exactly_n_trials(driven, kind: str) -> None:
    row = driven[kind]
    assert_good(row)
    assert row["workers"] == 4
    assert row["made_up"] == 0


def test_of_two_that_search_different_spaces_under_one_name_one_is_told(
    tmp_path: Path, measured_file: Path
) -> None:
    code = (
        "import sys, lrfinder\nfrom tests.searching.test_searching import tiny_task\n"
        "lrfinder.search(tiny_task(), 2, storage=sys.argv[1], study_name='s', device='cpu',\n"
        "    warm_start=lrfinder.RangeTest.load(sys.argv[2]), num_epochs=int(sys.argv[3]))\n"
    )
    url = f"sqlite:///{tmp_path / 's.db'}"
    environment = {**os.environ, "PYTHONPATH": ROOT}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, url, str(measured_file), epochs],
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
        )
        for epochs in ("1", "2")
    ]
    said = [worker.communicate()[1] for worker in workers]
    assert sorted(worker.returncode for worker in workers) == [0, 1]
    (error,) = [text for text in said if text]
    assert "must search the same space to go on with, but num_epochs is" in error
    assert count_done(optuna.load_study(storage=url, study_name="s")) == 2


# -- one process that plays several workers -------------------------------------------------------


@pytest.fixture
def study() -> optuna.Study:
    """In memory, and of nobody yet."""
    with quiet_optuna():
        return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))


def worker_of(study: optuna.Study, **options: Any) -> Worker:
    return Worker(study, nullcontext(), **({"grace_period": 0.2} | options))


def take(worker: Worker, n_trials: int = 4) -> optuna.Trial:
    trial = next(worker.trials(Budget(n_trials=n_trials)))
    assert trial is not None
    trial.suggest_float("x", 0.0, 1.0)
    return trial


def do_all(worker: Worker, n_trials: int) -> None:
    for trial in worker.trials(Budget(n_trials=n_trials)):
        assert trial is not None
        worker.study.tell(trial, trial.suggest_float("x", 0.0, 1.0))
        worker.end(trial)


def test_the_trial_of_a_lost_worker_is_done_again_with_its_parameters(study) -> None:
    study.enqueue_trial({"x": 0.25})
    lost: list[int] = []
    gone = take(worker_of(study))
    do_all(worker_of(study, on_lost=lambda study, trial: lost.append(trial.number)), 4)
    assert lost == [0]
    first = study.trials[0]
    assert first.state is TrialState.FAIL
    assert "no sign of life for 0.2 s" in first.user_attrs["reason"]
    (again,) = [t for t in study.trials if t.user_attrs.get("lrfinder.retry_of") == gone.number]
    assert again.params == first.params == {"x": 0.25}
    assert again.state is TrialState.COMPLETE
    assert count_done(study) == 4
    assert len(study.trials) == 5


def test_a_worker_that_lives_keeps_its_trial_however_long_it_takes(study) -> None:
    with worker_of(study, grace_period=0.3) as slow:
        trial = take(slow)
        began = time.monotonic()
        other = worker_of(study, grace_period=0.3)
        for theirs in other.trials(Budget(n_trials=2)):
            assert theirs is not None
            assert theirs.number == 1
            study.tell(theirs, 1.0)
            other.end(theirs)
            break
        while time.monotonic() - began < 1.0:
            assert other._ask(Budget(n_trials=2)) == (None, False)
            time.sleep(0.05)
        assert study.trials[0].state is TrialState.RUNNING
        assert study.trials[0].user_attrs[HEARTBEAT] > 1
        study.tell(trial, 1.0)
        slow.end(trial)
    assert other._ask(Budget(n_trials=2)) == (None, True)


def test_while_the_storage_was_away_nobody_was_lost(study, monkeypatch) -> None:
    trial = take(worker_of(study))
    other = worker_of(study)
    assert other._ask(Budget(n_trials=1)) == (None, False)
    time.sleep(0.25)
    monkeypatch.setattr(study._storage, "outages", 3, raising=False)
    assert other._ask(Budget(n_trials=1)) == (None, False)
    assert study.trials[trial.number].state is TrialState.RUNNING
    time.sleep(0.25)
    found, _ = other._ask(Budget(n_trials=1))
    assert found is not None
    assert found.number == 1


def test_what_kills_its_workers_again_and_again_is_given_up(study) -> None:
    for _ in range(MAX_RETRIES + 1):
        worker = worker_of(study, grace_period=0.05)
        trial = take(worker, 1)
        time.sleep(0.1)
    do_all(worker_of(study, grace_period=0.05), 1)
    assert trial.number == MAX_RETRIES
    assert len(study.trials) == MAX_RETRIES + 1
    assert "not tried again" in study.trials[-1].user_attrs["reason"]
    assert count_done(study) == 1


def test_where_no_lock_reaches_a_surplus_trial_is_withdrawn(study) -> None:
    """Two machines look at once, and each sees room for one more."""
    first, second = worker_of(study), worker_of(study)

    class Late:
        def __enter__(self) -> None:
            pass

        def __exit__(self, *error: object) -> None:
            pass

    ask = study.ask

    def both_ask() -> optuna.Trial:
        study.ask = ask
        trial, _ = second._ask(Budget(n_trials=1))  # between the other's look and its asking
        assert trial is not None
        return ask()

    study.ask = both_ask
    assert first._ask(Budget(n_trials=1)) == (None, False)
    assert [is_counted(t) for t in study.trials] == [True, False]
    assert "another worker was quicker" in study.trials[1].user_attrs["reason"]


def test_a_worker_that_was_taken_for_lost_and_comes_back_is_not_counted_twice(
    measured_file: Path, tmp_path: Path
) -> None:
    storage = f"sqlite:///{tmp_path / 's.db'}"
    ends: list[tuple[int, str]] = []

    def taken_away() -> None:
        study = optuna.load_study(storage=storage, study_name="s")
        running = [t for t in study.trials if t.state is TrialState.RUNNING]
        if running and running[0].number == 0:
            other = worker_of(study, grace_period=0.01)
            assert not other._give_up_lost(study.get_trials(deepcopy=False))
            time.sleep(0.05)
            assert other._give_up_lost(study.get_trials(deepcopy=False))

    class Slow(lrfinder.NullRecorder):
        def log_metrics(self, step: int, metrics: Any) -> None:
            taken_away()

    with quiet_optuna():
        study = lrfinder.search(
            tiny_task(), 2, storage=storage, study_name="s", device="cpu",
            warm_start=lrfinder.RangeTest.load(measured_file), recorder=Slow(), engine="stepping",
            on_trial=lambda study, trial: ends.append((trial.number, trial.state.name)),
        )  # fmt: skip
    assert study.trials[0].state is TrialState.FAIL
    assert ends[0] == (0, "FAIL")
    counted = [t for t in study.trials if is_counted(t)]
    assert len(counted) == 2
    assert all(t.state is TrialState.COMPLETE for t in counted)


@pytest.mark.parametrize("moment", ["attribute", "tell"])
def test_a_worker_that_ends_its_trial_while_it_is_taken_for_lost_harms_nobody(
    study, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = take(worker_of(study))

    def end(*args: Any) -> None:
        study.tell(trial.number, 0.5, skip_if_finished=True)

    options = {"on_lost": end} if moment == "tell" else {}
    if moment == "attribute":
        monkeypatch.setattr("lrfinder.searching.workers.requeue", end)
    other = worker_of(study, grace_period=0.01, **options)
    assert other._ask(Budget(n_trials=1)) == (None, False)
    time.sleep(0.05)
    other._ask(Budget(n_trials=1))
    assert study.trials[trial.number].state is TrialState.COMPLETE
    assert study.trials[trial.number].value == 0.5


def test_a_trial_that_another_worker_took_before_it_was_begun_gets_no_second_run(
    measured_file: Path, tmp_path: Path
) -> None:
    storage, made = f"sqlite:///{tmp_path / 's.db'}", []

    class Counting(lrfinder.NullRecorder):
        def child(self, run_name: str | None = None, **options: Any) -> lrfinder.NullRecorder:
            made.append(run_name)
            return self

    def hparams(trial: optuna.Trial) -> dict[str, Any]:
        if trial.number == 1:
            optuna.load_study(storage=storage, study_name="s").tell(1, state=TrialState.FAIL)
        return {}

    with quiet_optuna():
        lrfinder.search(
            tiny_task(), 3, storage=storage, study_name="s", device="cpu", confirm=0,
            warm_start=lrfinder.RangeTest.load(measured_file), recorder=Counting(),
            hparams=hparams, engine="stepping",
        )  # fmt: skip
    assert made == ["trial 0", "trial 2"]


def test_an_interrupted_trial_is_made_up_with_its_parameters(
    measured_file: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"storage": f"sqlite:///{tmp_path / 's.db'}", "study_name": "s"}
    calls: list[int] = []

    def make_model() -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return tiny_task().make_model()

    task = tiny_task(make_model=make_model)
    warm = lrfinder.RangeTest.load(measured_file)
    with pytest.raises(KeyboardInterrupt):
        lrfinder.search(task, 9, warm_start=warm, device="cpu", **options)
    study = lrfinder.search(task, 9, warm_start=warm, device="cpu", **options)
    (again,) = [t for t in study.trials if t.user_attrs.get("lrfinder.retry_of") == 1]
    assert again.params == study.trials[1].params
    assert count_done(study) == 9
    starts = [t for t in study.trials if is_counted(t) and "fixed_params" in t.system_attrs]
    assert len({str(t.params) for t in starts}) == len(starts) >= 3


def test_a_grace_period_that_is_not_positive_is_told(study) -> None:
    make: Callable[[], Worker] = lambda: worker_of(study, grace_period=0.0)  # noqa: E731
    with pytest.raises(ValueError, match="`grace_period > 0` must hold"):
        make()
