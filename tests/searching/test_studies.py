"""Tests of studies: samplers and pruners by name, storages that are opened safely."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import optuna
import pytest

from lrfinder.searching.studies import make_pruner, make_sampler, open_study, quiet_optuna


@pytest.mark.parametrize(
    "name", [None, "TPESampler", "RandomSampler", "CmaEsSampler", "QMCSampler"]
)
def test_samplers_by_name_work_and_are_seeded(name) -> None:
    def draws() -> list[float]:
        with quiet_optuna():
            study = optuna.create_study(sampler=make_sampler(name, seed=3, n_trials=6))
            study.optimize(lambda t: (t.suggest_float("x", 0, 1) - 0.3) ** 2, n_trials=6)
        return [trial.params["x"] for trial in study.trials]

    assert draws() == draws()
    if name in (None, "TPESampler"):
        assert isinstance(make_sampler(name, seed=0, n_trials=6), optuna.samplers.TPESampler)


@pytest.mark.parametrize("name", ["MedianPruner", "NopPruner", "HyperbandPruner", None])
def test_pruners_by_name(name) -> None:
    assert type(make_pruner(name, num_epochs=3)).__name__ == name or "MedianPruner"


def test_objects_are_taken_as_they_are() -> None:
    sampler, pruner = optuna.samplers.RandomSampler(), optuna.pruners.ThresholdPruner(upper=1.0)
    assert make_sampler(sampler, seed=0, n_trials=1) is sampler
    assert make_pruner(pruner, num_epochs=1) is pruner


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_sampler("Tpe", seed=0, n_trials=1), r"one of .*TPESampler.*'Tpe'"),
        (lambda: make_pruner("Median", num_epochs=1), r"one of .*MedianPruner.*'Median'"),
        (lambda: make_sampler("GridSampler", seed=0, n_trials=1), "given as an object"),
        (lambda: make_pruner("ThresholdPruner", num_epochs=1), "given as an object"),
    ],
)
def test_a_bad_name_is_told_with_those_that_are_there(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_quiet_optuna_gives_the_verbosity_back_and_hides_experimental_warnings() -> None:
    before = optuna.logging.get_verbosity()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with quiet_optuna():
            assert optuna.logging.get_verbosity() == optuna.logging.ERROR
            optuna.samplers.TPESampler(multivariate=True, group=True)
            optuna.pruners.PatientPruner(None, patience=1)
    assert optuna.logging.get_verbosity() == before


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("study.db", "must be the URL of a database"),
        ("nosuchdb:///x", "must be the URL of a database"),
        ("sqlite:////no/such/folder/study.db", "/no/such/folder does not exist"),
    ],
)
def test_a_bad_storage_is_told(storage, message) -> None:
    with pytest.raises(ValueError, match=message), open_study(storage, "s", direction="minimize"):
        pass


def test_a_file_that_is_no_database_is_told_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    path.write_text("my notes")
    with (
        pytest.raises(ValueError, match="must be a database that can be opened"),
        quiet_optuna(),
        open_study(f"sqlite:///{path}", "s", direction="minimize"),
    ):
        pass
    assert path.read_text() == "my notes"


def test_a_password_is_not_shown() -> None:
    url = "postgresql+psycopg2://me:secret@127.0.0.1:1/db"
    with (
        pytest.raises(ValueError, match="postgresql") as caught,
        open_study(url, "s", direction="minimize"),
    ):
        pass
    assert "secret" not in str(caught.value)


def test_processes_that_open_a_fresh_database_at_once_all_get_the_study(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from lrfinder.searching.studies import open_study\n"
        "with open_study(sys.argv[1], 'shared', direction='minimize') as study:\n"
        "    print(study.study_name)\n"
    )
    command = [sys.executable, "-c", code, f"sqlite:///{tmp_path / 'study.db'}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
        )
        for _ in range(3)
    ]
    for worker in workers:
        output, errors = worker.communicate()
        assert worker.returncode == 0, errors
        assert output == "shared\n"
