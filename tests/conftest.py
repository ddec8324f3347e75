"""Fixtures that are shared by the tests."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import pytest

# Models of tests are tiny: threads that wait for each other on a busy machine cost them a factor of
# thirty. Set before torch is imported, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Records that a test leaves behind are not to be found in the folder of whoever runs it.
os.environ["LRFINDER_SPOOL"] = tempfile.mkdtemp(prefix="lrfinder-tests-")

# A shell starts what it puts in the background with SIGINT ignored, which the processes that tests
# start, and send a SIGINT to, would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite store with MLflow's tables, which take seconds to make: tests copy it."""
    from lrfinder.delivering.stores import open_store

    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    open_store(f"sqlite:///{path}")
    return path


@pytest.fixture
def mlflow_uri(mlflow_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a fresh MLflow store under tmp_path, which is also MLflow's default here."""
    path = tmp_path / "mlflow.db"
    shutil.copy(mlflow_template, path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "UPDATE experiments SET artifact_location = ?", (str(tmp_path / "mlruns" / "0"),)
        )
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    uri = f"sqlite:///{path}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("LRFINDER_SPOOL", str(tmp_path / "spool"))
    return uri
