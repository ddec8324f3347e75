"""Tests of storages: what is waited for, what is told, and locks that processes share."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

import lrfinder
from benchmarks.servers import Postgres
from lrfinder.searching.storages import StorageError, is_away, lock, open_storage, waiting
from lrfinder.searching.studies import open_study, quiet_optuna
from tests.searching.test_searching import tiny_task

# Of two trials the second finds the disk full; what the first did is kept.
FULL = """
import resource, sys
import lrfinder
from lrfinder.searching.storages import StorageError
from tests.searching.test_searching import tiny_task
storage, made = sys.argv[1], []
def fill(study, trial):
    made.append(trial.number)
    if len(made) == 2:
        exec(sys.argv[2])
try:
    lrfinder.search(
        tiny_task(), 50, storage=storage, study_name="s", device="cpu", num_epochs=1,
        warm_start=lrfinder.RangeTest.load(sys.argv[3]), on_trial=fill,
    )
except StorageError as error:
    print(error)
"""


@contextlib.contextmanager
def tiny_disk(path: Path) -> Iterator[None]:
    """A disk of its own of 4 MB; skips where this user may not mount one."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.parametrize(
    ("kind", "fill", "reason"),
    [
        ("disk", "", "disk is full"),
        ("quota", "resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1))", "disk I/O error"),
    ],
)
def test_a_full_disk_is_told_and_what_was_done_is_kept(
    tmp_path: Path, measured_file: Path, kind: str, fill: str, reason: str
) -> None:
    place = tmp_path / "disk"
    with contextlib.ExitStack() as stack:
        if kind == "disk":
            stack.enter_context(tiny_disk(place))
            fill = f"""
import contextlib
with contextlib.suppress(OSError), open({str(place / "rest")!r}, "wb", buffering=0) as file:
    while file.write(bytes(4096)):
        pass
"""
        else:
            place.mkdir()
        url = f"sqlite:///{place / 'study.db'}"
        done = subprocess.run(
            [sys.executable, "-c", FULL, url, fill, str(measured_file)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        assert done.returncode == 0, done.stderr
        assert reason in done.stdout
        assert "What was done before is kept there" in done.stdout
        if kind == "disk":
            (place / "rest").unlink()  # somebody makes room
        # The same call goes on; the trial that was under way is given up after its grace period.
        study = lrfinder.search(
            tiny_task(), 4, storage=url, study_name="s", num_epochs=1, device="cpu",
            warm_start=lrfinder.RangeTest.load(measured_file), grace_period=0.6,
        )  # fmt: skip
        finished = [t for t in study.trials if t.state.is_finished()]
        assert {0, 1} <= {t.number for t in finished if t.state.name in ("COMPLETE", "PRUNED")}
        assert sum(not t.user_attrs.get("interrupted", False) for t in finished) == 4
        assert not [t for t in study.trials if t.state.name == "RUNNING"]


def test_a_storage_that_is_read_only_is_told(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    with quiet_optuna():
        optuna.create_study(storage=f"sqlite:///{path}", study_name="s")
    url = f"sqlite:///file:{path}?mode=ro&uri=true"
    with (
        pytest.raises(ValueError, match=r"opened and written.* readonly database"),
        quiet_optuna(),
        open_study(url, "other", directions=["minimize"]),
    ):
        pass


@pytest.mark.postgres
def test_a_storage_that_stays_away_is_told_and_not_waited_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(waiting, "PATIENCE", 1.0)
    monkeypatch.setattr(waiting, "_said_at", [float("-inf")])
    with Postgres(tmp_path / "pg") as server, quiet_optuna():
        storage = open_storage(server.uri)
        study = optuna.create_study(storage=storage, study_name="s")
        trial = study.ask()
        server.stop()
        with pytest.raises(StorageError, match=r"answered for 1 s: .*connection.*goes on from"):
            trial.report(1.0, 0)
        assert "is waited for" in caplog.text
        began = time.monotonic()
        with pytest.raises(StorageError):
            study.tell(trial, 1.0)
        assert time.monotonic() - began < 0.8
        server.start()


@pytest.mark.postgres
def test_the_lock_of_postgresql_is_shared_and_free_when_its_owner_is_killed(
    tmp_path: Path,
) -> None:
    code = (
        "import sys, time\nfrom lrfinder.searching.storages import lock\n"
        "with lock(sys.argv[1], 's'):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    with Postgres(tmp_path / "pg") as server:
        owner = subprocess.Popen([sys.executable, "-c", code, server.uri], stdout=subprocess.PIPE)
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"held\n"
        with lock(server.uri, "another study"):
            pass
        began = time.monotonic()
        threading.Timer(0.5, owner.kill).start()
        with lock(server.uri, "s"):
            assert time.monotonic() - began >= 0.5
        owner.communicate()
        # It can be taken again, also after the server was stopped while it was held.
        own = lock(server.uri, "s")
        with own:
            server.stop()
            server.start()
        with own:
            pass


def away(orig: Any, kind: Any = None) -> bool:
    from sqlalchemy.exc import OperationalError

    error = optuna.exceptions.StorageInternalError("during the commit")
    error.__cause__ = (kind or OperationalError)("SELECT 1", {}, orig)
    return is_away(error)


def test_what_passes_by_itself_is_told_from_what_does_not() -> None:
    from sqlalchemy.exc import PendingRollbackError

    psycopg2 = pytest.importorskip("psycopg2")

    class WithCode(psycopg2.OperationalError):  # a code is set by the server alone
        pgcode = None

    def of(code: str | None) -> Exception:
        error = WithCode("from the server")
        error.pgcode = code
        return error

    assert away(of(None))
    assert away(of("57P01"))  # shut down by its administrator
    assert away(of("53300"))  # too many connections
    assert not away(of("53100"))  # disk full
    assert away(sqlite3.OperationalError("database is locked"))
    assert not away(sqlite3.OperationalError("database or disk is full"))
    assert not away(sqlite3.OperationalError("attempt to write a readonly database"))
    lost = optuna.exceptions.StorageInternalError("during the commit")
    lost.__cause__ = PendingRollbackError("reconnect until invalid transaction is rolled back")
    assert is_away(lost)  # the connection ended inside a transaction
    assert not is_away(ValueError("of something else"))
    assert not is_away(KeyError("no such trial"))
