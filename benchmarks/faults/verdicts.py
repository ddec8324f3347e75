"""Verdicts: whether a study that has ended, and its runs in MLflow, are what they must be."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any

import optuna
from optuna.trial import TrialState

import lrfinder
from benchmarks.faults.workers import Workers
from lrfinder.searching.counting import is_counted
from lrfinder.searching.storages import open_storage
from lrfinder.searching.studies import quiet_optuna


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


BAD = ("wrong_total", "running", "not_completed", "finished_and_lost", "counted_twice")
BAD += ("starts_twice", "workers_that_failed")


def runs_disagree(workers: Workers) -> dict[str, int]:
    """Trials without a run of their own, runs without a trial, and runs that say something else."""
    from mlflow import MlflowClient

    with quiet_optuna():
        study = optuna.load_study(storage=open_storage(workers.storage), study_name=workers.study)
    deadline = time.monotonic() + 60.0
    # The processes that follow killed workers may still be sending.
    while left := [item for item in lrfinder.sync(workers.folder / "spool") if not item.complete]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"Not all that was recorded is in the store after a minute: {left}")
        time.sleep(0.5)
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
    # One that waits, to make up for a lost one that turned out not to be needed, has not begun.
    begun = [t for t in study.get_trials(deepcopy=False) if t.state is not TrialState.WAITING]
    for trial in begun:
        run = by_id.get(trial.user_attrs.get("mlflow_run_id", ""))
        # One of the two stores is told first: a worker that is killed between the two leaves a run
        # that is FINISHED of a trial that is made up for.
        wanted = ("FINISHED",) if trial.state is TrialState.COMPLETE else ("KILLED", "FINISHED")
        if run is None or run.info.status not in wanted:
            different.append((trial.number, trial.state, run and run.info.status))
        elif trial.value is not None and run.data.metrics.get("val/loss") != trial.value:
            different.append((trial.number, trial.value, run.data.metrics))
    for item in different[:10]:
        print("differs:", item)
    return {
        "runs": len(runs),
        "trials_without_run": sum(not by_number[t.number] for t in begun),
        "trials_with_two_runs": sum(count > 1 for count in by_number.values()),
        "runs_that_differ": len(different),
    }
