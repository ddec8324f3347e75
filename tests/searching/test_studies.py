"""Tests of studies: samplers and pruners by name, storages that are opened safely."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import optuna
import pytest

from lrfinder.searching.studies import open_study, quiet_optuna


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
    with (
        pytest.raises(ValueError, match=message),
        open_study(storage, "s", directions=["minimize"]),
    ):
        pass


def test_a_file_that_is_no_database_is_told_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    path.write_text("my notes")
    with (
        pytest.raises(ValueError, match="must be a database that can be opened"),
        quiet_optuna(),
        open_study(f"sqlite:///{path}", "s", directions=["minimize"]),
    ):
        pass
    assert path.read_text() == "my notes"


def test_a_password_is_not_shown() -> None:
    url = "postgresql+psycopg2://me:secret@127.0.0.1:1/db"
    with (
        pytest.raises(ValueError, match="postgresql") as caught,
        open_study(url, "s", directions=["minimize"]),
    ):
        pass
    assert "secret" not in str(caught.value)


def test_processes_that_open_a_fresh_database_at_once_all_get_the_study(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from lrfinder.searching.studies import open_study\n"
        "with open_study(sys.argv[1], 'shared', directions=['minimize']) as study:\n"
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
