"""Tests of how SQLite keeps a study."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import optuna

from lrfinder.searching.storages.journals import QuickConnection
from lrfinder.searching.studies import quiet_optuna

KILLED = """
import os, signal, sys
import optuna
from lrfinder.searching.storages import open_storage
study = optuna.create_study(storage=open_storage(sys.argv[1]), study_name="s")
for value in range(5):
    study.tell(study.ask(), value)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_that_is_killed_loses_nothing_that_it_was_answered(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", KILLED, url],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    with quiet_optuna():  # with Optuna's own connection
        study = optuna.load_study(storage=url, study_name="s")
    assert [trial.value for trial in study.trials] == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_changes_go_to_a_log_where_one_can_be_made(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    with closing(sqlite3.connect(path, factory=QuickConnection)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (1,)
        connection.execute("CREATE TABLE a (b)")
        connection.execute("PRAGMA journal_mode=DELETE")
    uri = f"file:{path}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, factory=QuickConnection)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert connection.execute("SELECT * FROM a").fetchall() == []
