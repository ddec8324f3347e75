from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from torch import nn

import lrfinder
from lrfinder.delivering.spools import find_spools
from lrfinder.tracking import MlflowRecorder, RecordError
from lrfinder.tracking.facts import SlowFacts
from lrfinder.tracking.links import compare_page, metric_page
from tests.helpers import TinyNet, cross_entropy, tiny_data, tiny_loader, tiny_optimizer


def read_run(recorder: MlflowRecorder) -> Any:
    assert recorder.run_id is not None
    return MlflowClient().get_run(recorder.run_id)


def git(folder: Path, *words: str) -> str:
    options = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(
        ["git", "-C", str(folder), *options, *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_commit_and_whether_files_differ_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    git(repository, "init", "-q")
    (repository / "a.py").write_text("1")
    git(repository, "add", "a.py")
    git(repository, "commit", "-q", "-m", "one")
    monkeypatch.chdir(repository)
    commit = git(repository, "rev-parse", "HEAD")
    clean = SlowFacts().get(timeout=60)
    assert clean == {"lrfinder.git_commit": commit, "lrfinder.git_dirty": "false"}
    (repository / "a.py").write_text("2")
    dirty = SlowFacts().get(timeout=60)
    assert dirty == {"lrfinder.git_commit": commit, "lrfinder.git_dirty": "true"}


SCRIPT = """
import lrfinder
with lrfinder.MlflowRecorder("demo"):
    pass
"""


def test_a_run_says_what_ran_and_how_to_repeat_it(mlflow_uri: str, tmp_path: Path) -> None:
    script = tmp_path / "train it.py"
    script.write_text(SCRIPT)
    subprocess.run([sys.executable, str(script), "--lr", "0.1"], check=True, timeout=240)
    client = MlflowClient(mlflow_uri)
    (run,) = client.search_runs([client.get_experiment_by_name("demo").experiment_id])
    tags = run.data.tags
    python = Path(sys.executable).name
    assert tags["lrfinder.command"] == f"{python} '{script}' --lr 0.1"
    assert tags["lrfinder.torch"] == torch.__version__
    assert tags["lrfinder.version"] == lrfinder.__version__
    assert tags["lrfinder.python"] == sys.version.split()[0]


def test_a_training_records_its_data_its_schedule_and_every_step(mlflow_uri: str) -> None:
    model = TinyNet()
    optimizer = tiny_optimizer(model)
    spec = {"name": "StepLR", "step_size": 1, "gamma": 0.5}
    with MlflowRecorder() as recorder:
        recorder.watch(optimizer, every=2)
        trace = lrfinder.train(
            model, optimizer, cross_entropy, tiny_loader(), num_epochs=3, scheduler=spec,
            val_loader=[tiny_data()], recorder=recorder, verbose=False, seed=1,
        )  # fmt: skip
        recorder.log_model(model)
    run = read_run(recorder)
    data = {item.tags[0].value: item.dataset for item in run.inputs.dataset_inputs}
    assert data.keys() == {"training", "validation"}
    assert json.loads(data["training"].profile)["samples"] == 24
    assert {key: run.data.params[f"cfg/schedule/{key}"] for key in spec} == {
        "name": "StepLR", "step_size": "1", "gamma": "0.5",
    }  # fmt: skip
    assert run.data.params["cfg/seed"] == "1"
    client = MlflowClient()
    norms = client.get_metric_history(recorder.run_id, "grad_norm/head")
    assert [row.step for row in norms] == [0, 2, 4, 6, 8]
    assert all(row.value > 0 for row in norms)
    assert len(client.get_metric_history(recorder.run_id, "lr/head")) == len(trace) == 9
    names = {item.path for item in client.list_artifacts(recorder.run_id, "traces")}
    assert names == {"traces/train.json", "traces/train.parquet"}  # short: charts show it whole
    state = torch.load(client.download_artifacts(recorder.run_id, "model.pt"))
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("status", "ending"),
    [("diverged", "FAILED"), ("pruned", "KILLED"), ("stopped", "FINISHED")],
)
def test_how_a_training_ended_is_how_its_run_ends(
    mlflow_uri: str, status: str, ending: str
) -> None:
    model = TinyNet()
    optimizer = tiny_optimizer(model, lr=math.inf if status == "diverged" else 0.1)

    def stop(*_: Any) -> None:
        raise lrfinder.StopTraining("enough", status=status)  # type: ignore[arg-type]

    if status == "diverged":
        for group in optimizer.param_groups:
            group["lr"] = 1e30
    with MlflowRecorder() as recorder:
        trace = lrfinder.train(
            model, optimizer, cross_entropy, tiny_loader(), num_epochs=3, recorder=recorder,
            on_epoch=stop, verbose=False,
        )  # fmt: skip
    assert trace.status == status
    run = read_run(recorder)
    assert (run.info.status, run.data.tags["lrfinder.status"]) == (ending, status)
    assert run.data.tags["lrfinder.message"] == trace.message


def test_the_load_of_the_machine_and_the_speed(
    mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrfinder.tracking.systems.INTERVAL", 0.5)
    optimizer = tiny_optimizer(TinyNet())
    with MlflowRecorder() as recorder:
        began = time.monotonic()
        step = 0
        while time.monotonic() - began < 2.5:
            recorder.log_step(step, 1.0, optimizer)
            step += 1
            time.sleep(0.01)
        seconds = time.monotonic() - began
    metrics = read_run(recorder).data.metrics
    assert 0 < metrics["system/process_memory_megabytes"] < 1e6
    assert metrics["system/process_peak_memory_megabytes"] > 10
    assert 0 <= metrics["system/cpu_utilization_percentage"] <= 100
    speeds = MlflowClient().get_metric_history(recorder.run_id, "system/steps_per_second")
    assert len(speeds) >= 2
    middle = float(np.median([row.value for row in speeds]))
    assert step / seconds / 5 < middle < step / seconds * 5


def test_files_are_kept_as_they_were(mlflow_uri: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.pt"
    checkpoint.write_bytes(b"first")
    with MlflowRecorder() as recorder:
        recorder.log_file(checkpoint, "checkpoints/run.pt")
        # As checkpoints are replaced: a new file takes the name.
        (tmp_path / "new").write_bytes(b"second")
        os.replace(tmp_path / "new", checkpoint)
        with pytest.raises(ValueError, match="`path` must be a file that exists"):
            recorder.log_file(tmp_path / "none")
    client = MlflowClient()
    assert recorder.run_id is not None
    kept = Path(client.download_artifacts(recorder.run_id, "checkpoints/run.pt"))
    assert kept.read_bytes() == b"first"
    assert checkpoint.read_bytes() == b"second"


def test_links_are_kept_with_the_run(mlflow_uri: str) -> None:
    with MlflowRecorder() as recorder:
        links = recorder.log_links(["a" * 32, "b" * 32], ["lr/head", "val/loss"], filter="x = 'y'")
    note = read_run(recorder).data.tags["mlflow.note.content"]
    assert list(links) == [
        "charts of all runs", "the best 2 side by side", "lr/head of the best 2",
        "val/loss of the best 2",
    ]  # fmt: skip
    assert all(
        link.startswith("http://127.0.0.1:5000/#/") and link in note for link in links.values()
    )
    many = [f"{i:032x}" for i in range(100)]
    assert len(compare_page("http://127.0.0.1:5000", "1", many)) < 2000
    assert "y_axis_scale=log" in metric_page("", "1", many, "lr/head")
    assert "y_axis_scale=linear" in metric_page("", "1", many, "val/loss")


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["/proc/nowhere", "{tmp}/file", "/dev/null/x"])
def test_a_spool_that_cannot_be_written_is_said(
    mlflow_uri: str, tmp_path: Path, folder: str
) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RecordError, match=r"folder of the spool must be writable.*LRFINDER_SPOOL"):
        MlflowRecorder(spool=folder.replace("{tmp}", str(tmp_path)))
    assert MlflowClient().search_runs(["0"]) == []


def test_two_recorders_share_a_folder_and_keep_their_runs_apart(
    mlflow_uri: str, tmp_path: Path
) -> None:
    optimizer = tiny_optimizer(TinyNet())
    with (
        MlflowRecorder(spool=tmp_path / "s") as one,
        MlflowRecorder(spool=tmp_path / "s") as two,
    ):
        for step in range(50):
            one.log_step(step, 1.0, optimizer)
            two.log_step(step, 2.0, optimizer)
    client = MlflowClient()
    for recorder, value in ((one, 1.0), (two, 2.0)):
        rows = client.get_metric_history(recorder.run_id, "train/loss")
        assert sorted((row.step, row.value) for row in rows) == [(s, value) for s in range(50)]
    assert list((tmp_path / "s").iterdir()) == []


def test_steps_may_go_backwards(mlflow_uri: str) -> None:
    with MlflowRecorder() as recorder:
        for step in (5, 6, 5, 7):
            recorder.log_metrics(step, {"a": step})
            time.sleep(0.002)
    rows = MlflowClient().get_metric_history(recorder.run_id, "a")
    assert [row.step for row in rows] == [5, 6, 5, 7]
    assert read_run(recorder).data.metrics["a"] == 7.0


def test_records_that_wait_are_pointed_at(
    mlflow_uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with MlflowRecorder() as recorder:
        recorder.log_metrics(0, {"a": 1})
        recorder._outbox.write()
        spool = find_spools(tmp_path / "spool")[0]
        os.rename(spool.path.parent, tmp_path / "kept")
        os.makedirs(tmp_path / "other")
        os.rename(tmp_path / "kept", tmp_path / "other" / "old")
        (tmp_path / "other" / "old" / "recording.lock").unlink()
        with MlflowRecorder(spool=tmp_path / "other"):
            pass
        assert f"`lrfinder sync {tmp_path / 'other'}` sends them" in caplog.text
        os.rename(tmp_path / "other" / "old", spool.path.parent)


def test_a_full_disk_is_said_and_nothing_is_lost(mlflow_uri: str, tmp_path: Path) -> None:
    # In a process of its own, whose files may not grow: what a full disk does. Its store is another's.
    import resource

    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-c", FULL], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "cannot be written" in done.stderr
    assert "lost if this process is killed" in done.stderr
    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("full").experiment_id])
    rows = client.get_metric_history(run.info.run_id, "lr/head")
    assert sorted(row.step for row in rows) == list(range(20_000))
    assert run.info.status == "FINISHED"


FULL = """
import resource, time, torch, lrfinder
from lrfinder.tracking import sessions
sessions.FOLLOW_AFTER = sessions.SAMPLE_AFTER = 1e6
groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "name": "head"}]
optimizer = torch.optim.SGD(groups, lr=0.1)
with lrfinder.MlflowRecorder("full") as recorder:
    recorder.flush()
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, most))
    for step in range(20_000):
        recorder.log_step(step, 1.0, optimizer)
    time.sleep(1.5)
    for end in (recorder.flush, recorder.close):  # one that could not be closed is open
        try:
            end()
        except lrfinder.RecordError as error:
            assert "in the memory of this process alone" in str(error), error
        else:
            raise AssertionError
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
"""


def test_a_model_of_another_kind_is_kept_too(mlflow_uri: str) -> None:
    with MlflowRecorder() as recorder:
        recorder.log_model(nn.Linear(2, 1), "models/linear.pt")
        with pytest.raises(ValueError, match="at most 36 characters"):
            recorder.log_dataset("x", digest="0" * 37)
    client = MlflowClient()
    assert recorder.run_id is not None
    state = torch.load(client.download_artifacts(recorder.run_id, "models/linear.pt"))
    assert set(state) == {"weight", "bias"}
