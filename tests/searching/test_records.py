"""Tests of the records of trials that no worker ends."""

from __future__ import annotations

import optuna
from mlflow import MlflowClient

from lrfinder.searching.records import Records
from lrfinder.tracking import MlflowRecorder


def test_a_run_that_was_made_just_before_its_worker_was_lost_is_ended(mlflow_uri: str) -> None:
    study = optuna.create_study(study_name="demo")
    lost, never_made = study.ask(), study.ask()
    with MlflowRecorder("demo", tracking_uri=mlflow_uri) as recorder:
        client = MlflowClient(mlflow_uri)
        # As its recorder made it, which was killed before there was a spool.
        tags = {"optuna.trial_number": "0", "optuna.study_name": "demo"}
        made = client.create_run(str(recorder.experiment_id), tags=tags)
        records = Records(recorder, ["val/loss"], grace_period=60.0)
        for trial in (lost, never_made):
            records.of_lost(study, study.trials[trial.number])
    ended = client.get_run(made.info.run_id)
    assert ended.info.status == "KILLED"
    assert "worker was lost" in ended.data.tags["lrfinder.ending"]
    assert study.trials[0].user_attrs["mlflow_run_id"] == made.info.run_id
    other = client.get_run(study.trials[1].user_attrs["mlflow_run_id"])
    assert other.info.status == "KILLED"
    assert other.info.run_id != made.info.run_id
