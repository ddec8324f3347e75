from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST

from lrfinder.delivering.spools import find_spools
from lrfinder.delivering.stores import open_store
from lrfinder.traces import Trace
from lrfinder.tracking import MlflowRecorder, NullRecorder, RecordError
from lrfinder.tracking.names import Names, clean_name, flatten
from lrfinder.training import train

matplotlib.use("agg")


def make_optimizer(*names: str | None, lrs: tuple[Any, ...] = ()) -> torch.optim.Optimizer:
    lrs = lrs or tuple(0.1 * (i + 1) for i in range(len(names)))
    groups = []
    for name, lr in zip(names, lrs, strict=True):
        group: dict[str, Any] = {"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr}
        groups.append(group if name is None else group | {"name": name})
    return torch.optim.SGD(groups, lr=0.1)


def history(client: MlflowClient, run_id: str, key: str) -> list[tuple[int, float]]:
    rows = client.get_metric_history(run_id, key)
    return sorted((row.step, row.value) for row in rows)


def only_run(uri: str, experiment: str = "demo") -> Run:
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return run


def artifact(client: MlflowClient, run_id: str, name: str) -> Path:
    return Path(client.download_artifacts(run_id, name))


# -- steps ----------------------------------------------------------------------------------------


def test_every_step_is_in_the_store_in_order_with_the_time_it_was_recorded(
    mlflow_uri: str,
) -> None:
    optimizer = make_optimizer("body", "head")
    before = time.time_ns() // 1_000_000
    with MlflowRecorder("demo", tracking_uri=mlflow_uri) as recorder:
        for step in range(3000):
            optimizer.param_groups[0]["lr"] = 0.001 * step
            recorder.log_step(step, torch.tensor(float(step), requires_grad=True), optimizer)
        logged = time.time_ns() // 1_000_000
    client = MlflowClient(mlflow_uri)
    losses = client.get_metric_history(recorder.run_id, "train/loss")
    assert [(row.step, row.value) for row in losses] == [
        (step, float(step)) for step in range(3000)
    ]
    assert all(before <= row.timestamp <= logged for row in losses)
    assert history(client, recorder.run_id, "lr/body") == [(s, 0.001 * s) for s in range(3000)]
    assert history(client, recorder.run_id, "lr/head") == [(s, 0.2) for s in range(3000)]
    run = client.get_run(recorder.run_id)
    assert (run.info.status, run.info.end_time is not None) == ("FINISHED", True)


def test_rows_are_sent_while_the_training_goes_on(mlflow_uri: str) -> None:
    recorder = MlflowRecorder("demo", tracking_uri=mlflow_uri)
    recorder.log_step(0, 1.0, make_optimizer("all"))
    client = MlflowClient(mlflow_uri)
    deadline = time.monotonic() + 30
    while not client.get_metric_history(recorder.run_id, "train/loss"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert client.get_run(recorder.run_id).info.status == "RUNNING"
    recorder.close()


def test_tensors_are_recorded_as_they_are_at_the_call(mlflow_uri: str) -> None:
    lr = torch.tensor(0.5)
    loss = torch.tensor(2.0)
    optimizer = make_optimizer("all", lrs=(lr,))
    with MlflowRecorder("demo", tracking_uri=mlflow_uri) as recorder:
        recorder.log_step(0, loss, optimizer, grad_norm=torch.tensor([3.0], dtype=torch.float64))
        optimizer.param_groups[0]["lr"].fill_(0.25)
        loss.fill_(1.0)
        recorder.log_step(1, loss, optimizer, **{"grad/norm": 4})
        recorder.log_metrics(1, {"val/loss": torch.tensor(0.75), "epoch": 1})
    client = MlflowClient(mlflow_uri)
    read = {
        key: history(client, recorder.run_id, key)
        for key in ("train/loss", "lr/all", "grad_norm", "grad/norm", "val/loss", "epoch")
    }
    assert read == {
        "train/loss": [(0, 2.0), (1, 1.0)],
        "lr/all": [(0, 0.5), (1, 0.25)],
        "grad_norm": [(0, 3.0)],
        "grad/norm": [(1, 4.0)],
        "val/loss": [(1, 0.75)],
        "epoch": [(1, 1.0)],
    }


def test_a_group_that_joins_later_is_recorded_from_then_on(mlflow_uri: str) -> None:
    optimizer = make_optimizer("head", None)
    with MlflowRecorder("demo", tracking_uri=mlflow_uri) as recorder:
        recorder.log_step(0, 1.0, optimizer)
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "name": "body"})
        recorder.log_step(1, 1.0, optimizer)
    client = MlflowClient(mlflow_uri)
    assert len(history(client, recorder.run_id, "lr/head")) == 2
    assert len(history(client, recorder.run_id, "lr/group_1")) == 2
    assert history(client, recorder.run_id, "lr/body") == [(1, 0.1)]


def test_a_log_step_never_waits_for_the_store(mlflow_uri: str) -> None:
    optimizer = make_optimizer("body", "head")
    with MlflowRecorder("demo", tracking_uri=mlflow_uri) as recorder:
        lock = sqlite3.connect(mlflow_uri.removeprefix("sqlite:///"), isolation_level=None)
        lock.execute("BEGIN EXCLUSIVE")  # the store answers nobody
        start = time.monotonic()
        for step in range(2000):
            recorder.log_step(step, 1.0, optimizer)
        recorder.set_tags({"a": 1})
        recorder.log_text("x", "x.txt")
        assert time.monotonic() - start < 2  # MLflow waits 20 s for this lock
        with pytest.raises(
            RecordError,
            match=r"there is not: 6000 metrics \(steps 0 to 1999\); "
            r"tags a.*; artifacts x\.txt\. Reason: no answer within 0\.2 s",
        ):
            recorder.flush(timeout=0.2)
        lock.execute("ROLLBACK")
        lock.close()
        recorder.flush()
        assert len(history(MlflowClient(mlflow_uri), recorder.run_id, "lr/head")) == 2000


@pytest.mark.parametrize("wait", [True, False])
def test_an_interrupt_while_a_run_is_made_leaves_none_that_runs(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait: bool
) -> None:
    made = MlflowClient.create_run

    def interrupted(self: MlflowClient, *args: Any, **kwargs: Any) -> Run:
        made(self, *args, **kwargs)
        raise KeyboardInterrupt

    with MlflowRecorder(experiment="demo") as recorder:
        monkeypatch.setattr(MlflowClient, "create_run", interrupted)
        with (
            pytest.raises(KeyboardInterrupt),
            recorder.child("trial 0", wait=wait) as child,
        ):
            _ = child.run_id
        monkeypatch.undo()
    client = MlflowClient(mlflow_uri)
    experiment = client.get_experiment_by_name("demo").experiment_id
    statuses = {run.info.run_name: run.info.status for run in client.search_runs([experiment])}
    assert statuses.pop("trial 0") == "KILLED"
    assert list(statuses.values()) == ["FINISHED"]


def test_a_child_that_does_not_wait_is_sent_meanwhile_and_waited_for_by_its_parent(
    mlflow_uri: str,
) -> None:
    optimizer = make_optimizer("body", "head")
    with MlflowRecorder("demo", tracking_uri=mlflow_uri) as recorder:
        children = [recorder.child(f"trial {i}", wait=False) for i in range(2)]
        lock = sqlite3.connect(mlflow_uri.removeprefix("sqlite:///"), isolation_level=None)
        lock.execute("BEGIN EXCLUSIVE")  # the store answers nobody
        start = time.monotonic()
        for child, status in zip(children, ("FINISHED", "FAILED"), strict=True):
            for step in range(10):
                child.log_step(step, 1.0, optimizer)
            child.close(status)
        assert time.monotonic() - start < 2
        with pytest.raises(RecordError, match="was closed"):
            children[0].log_step(10, 1.0, optimizer)
        with pytest.raises(RecordError, match="there is not: "):
            recorder.flush(timeout=0.2)
        lock.execute("ROLLBACK")
        lock.close()
    client = MlflowClient(mlflow_uri)
    for child, status in zip(children, ("FINISHED", "FAILED"), strict=True):
        assert len(history(client, child.run_id, "lr/head")) == 10
        assert client.get_run(child.run_id).info.status == status
        assert not child.spool.exists()


def test_the_run_of_a_child_that_does_not_wait_is_made_by_who_follows(mlflow_uri: str) -> None:
    with MlflowRecorder("demo", tracking_uri=mlflow_uri) as recorder:
        with recorder.child("trial 0", wait=False, number=0) as child:
            assert child.known_run_id is None
            deadline = time.monotonic() + 60
            while child.known_run_id is None:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            child.log_metrics(0, {"a": 1.0})
        began = time.monotonic()
        with recorder.child("trial 1", wait=False) as quick:
            assert quick.run_id is not None  # by who follows, or here
        assert time.monotonic() - began < 5
    client = MlflowClient(mlflow_uri)
    run = client.get_run(child.run_id)
    assert run.info.run_name == "trial 0"
    assert run.data.tags["number"] == "0"
    assert run.data.tags["lrfinder.parent"] == recorder.run_id
    assert run.data.metrics["a"] == 1.0
    assert client.get_run(quick.run_id).info.status == "FINISHED"


def test_the_id_of_a_run_that_the_store_refuses_is_not_known_and_the_record_is_kept(
    mlflow_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = MlflowRecorder("demo", tracking_uri=mlflow_uri)
    MlflowClient(mlflow_uri).delete_experiment(recorder.experiment_id)
    child = recorder.child("trial 0", wait=False)
    assert child.run_id is None
    assert "The store must make a run" in caplog.text
    child.close()
    with pytest.raises(RecordError, match="its end"):
        recorder.close(timeout=1)
    assert child.spool.exists()


# -- traces ---------------------------------------------------------------------------------------


class StepByStep(NullRecorder):
    """An `MlflowRecorder` that is told each step."""

    def __init__(self, inner: MlflowRecorder) -> None:
        self.log_step = inner.log_step  # type: ignore[method-assign]
        self.log_metrics = inner.log_metrics  # type: ignore[method-assign]
        self.log_trace = inner.log_trace  # type: ignore[method-assign]


@pytest.mark.parametrize("lr", [0.1, 1e30])  # which diverges
def test_steps_that_are_read_from_a_trace_are_those_that_are_told_one_by_one(
    mlflow_uri: str, lr: float
) -> None:
    client, read = MlflowClient(mlflow_uri), {}
    for kind in ("followed", "told"):
        torch.manual_seed(0)
        body, head = torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)
        groups: list[dict[str, Any]] = [
            {"params": body.parameters(), "name": "body", "lr": lr},
            {"params": head.parameters(), "name": "head", "lr": lr / 2},
        ]
        batches = [(torch.randn(8, 3), torch.randint(2, (8,))) for _ in range(70)]
        with MlflowRecorder("demo", tracking_uri=mlflow_uri) as recorder:
            before = time.time_ns() // 1_000_000
            train(
                torch.nn.Sequential(body, head),
                torch.optim.SGD(groups, lr=0.1),
                lambda model, batch: torch.nn.functional.cross_entropy(model(batch[0]), batch[1]),
                batches,
                num_epochs=3,
                scheduler={"name": "ExponentialLR", "gamma": 0.5, "interval": "step"},
                val_loader=batches[:2],
                recorder=recorder if kind == "followed" else StepByStep(recorder),
                verbose=False,
            )
            after = time.time_ns() // 1_000_000
        run = client.get_run(recorder.run_id)
        keys = sorted(key for key in run.data.metrics if not key.startswith("system/"))
        assert {"train/loss", "lr/body", "lr/head"} <= {*keys}
        rows = client.get_metric_history(recorder.run_id, "train/loss")
        assert all(before <= row.timestamp <= after for row in rows)
        assert [row.timestamp for row in rows] == sorted(row.timestamp for row in rows)
        tags = {key: tag for key, tag in run.data.tags.items() if key.endswith(".nonfinite")}
        assert bool(tags) == (lr > 1)
        read[kind] = repr(([history(client, recorder.run_id, key) for key in keys], keys, tags))
    assert read["followed"] == read["told"]


def test_a_trace_is_followed_until_the_optimizer_is_watched(mlflow_uri: str) -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([{"params": [weight], "name": "all"}], lr=0.1)
    model = torch.nn.ParameterList([weight])
    with MlflowRecorder("demo", tracking_uri=mlflow_uri) as recorder:
        train(
            model,
            optimizer,
            lambda model, batch: model[0].square().sum(),
            [torch.zeros(1)] * 5,
            num_epochs=4,
            recorder=recorder,
            on_epoch=lambda epoch, values, trace: (
                recorder.watch(optimizer, every=1, what=["grad_norm"]) if epoch == 1 else None
            ),
            verbose=False,
        )
    client = MlflowClient(mlflow_uri)
    assert [s for s, _ in history(client, recorder.run_id, "train/loss")] == list(range(20))
    assert [s for s, _ in history(client, recorder.run_id, "grad_norm/all")] == list(range(10, 20))


def test_a_recorder_that_is_closed_during_a_training_says_so(mlflow_uri: str) -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    recorder = MlflowRecorder("demo", tracking_uri=mlflow_uri)
    with pytest.raises(RecordError, match="was closed"):
        train(
            torch.nn.ParameterList([weight]),
            torch.optim.SGD([weight], lr=0.1),
            lambda model, batch: model[0].square().sum(),
            [torch.zeros(1)] * 5,
            num_epochs=4,
            recorder=recorder,
            on_epoch=lambda epoch, values, trace: recorder.close(),
            verbose=False,
        )
    client = MlflowClient(mlflow_uri)
    assert [s for s, _ in history(client, recorder.run_id, "train/loss")] == list(range(5))


def test_flush_says_what_the_store_refused_and_sends_it_when_it_is_back(mlflow_uri: str) -> None:
    client = MlflowClient(mlflow_uri)
    recorder = MlflowRecorder("demo", tracking_uri=mlflow_uri)
    recorder.log_metrics(0, {"a": 0})
    recorder.flush()
    client.delete_run(recorder.run_id)
    recorder.log_metrics(7, {"a": 1, "b": 2})
    with pytest.raises(
        RecordError, match=r"there is not: 2 metrics \(steps 7 to 7\)\. Reason: .*deleted"
    ):
        recorder.flush()
    with pytest.raises(RecordError, match=r"its end \(FINISHED\).*`lrfinder sync") as caught:
        recorder.close()
    assert str(recorder.spool) in str(caught.value)
    client.restore_run(recorder.run_id)
    recorder.flush()
    assert history(client, recorder.run_id, "a") == [(0, 0.0), (7, 1.0)]
    assert client.get_run(recorder.run_id).info.status == "FINISHED"
    assert not recorder.spool.exists()


@pytest.mark.parametrize("times", [1, 2])
def test_a_data_set_that_two_runs_name_at_once_is_sent_again(
    mlflow_uri: str, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    log_inputs, failures = MlflowClient.log_inputs, [0]

    def breaks(self: MlflowClient, *args: Any, **kwargs: Any) -> None:
        if failures[0] < times:
            failures[0] += 1
            raise MlflowException("UNIQUE constraint failed: datasets", error_code=BAD_REQUEST)
        log_inputs(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_inputs", breaks)
    recorder = MlflowRecorder("demo", tracking_uri=mlflow_uri)
    recorder.log_dataset("digits", digest="abc")
    if times == 1:
        recorder.close()
    else:
        with pytest.raises(RecordError, match="data set digits"):
            recorder.close(timeout=1)
    (run,) = MlflowClient(mlflow_uri).search_runs([recorder.experiment_id])
    names = [item.dataset.name for item in run.inputs.dataset_inputs]
    assert names == (["digits"] if times == 1 else [])


def test_one_run_that_fails_keeps_no_other_from_its_store(mlflow_uri: str) -> None:
    client = MlflowClient(mlflow_uri)
    with MlflowRecorder("demo", tracking_uri=mlflow_uri) as recorder:
        child = recorder.child("lost")
        client.delete_run(child.run_id)
        child.log_metrics(0, {"a": 1})
        recorder.log_metrics(0, {"a": 1})
        recorder.flush()
        assert history(client, recorder.run_id, "a") == [(0, 1.0)]
        client.restore_run(child.run_id)
        child.close()


@pytest.mark.parametrize(
    ("step", "loss", "message"),
    [
        (1.5, 1.0, r"`step` must be an integer >= 0, .* but got 1\.5"),
        (-1, 1.0, r"`step` must be an integer >= 0"),
        (2**63, 1.0, r"`step` must be an integer >= 0"),
        (0, torch.ones(2), r"must be a scalar, but got a tensor of shape \(2,\)"),
    ],
)
def test_a_wrong_step_or_loss_is_refused_at_once(
    mlflow_uri: str, step: Any, loss: Any, message: str
) -> None:
    with (
        MlflowRecorder("demo", tracking_uri=mlflow_uri) as recorder,
        pytest.raises(ValueError, match=message),
    ):
        recorder.log_step(step, loss, make_optimizer("all"))
    assert not MlflowClient(mlflow_uri).get_run(recorder.run_id).data.metrics


def test_nonfinite_values_are_nan_and_a_tag_says_what_they_were(mlflow_uri: str) -> None:
    optimizer = make_optimizer("all")
    with MlflowRecorder("demo", tracking_uri=mlflow_uri) as recorder:
        for step, loss in enumerate([1.0, math.inf, math.nan, -math.inf]):
            recorder.log_step(step, torch.tensor(loss), optimizer)
    client = MlflowClient(mlflow_uri)
    values = dict(history(client, recorder.run_id, "train/loss"))
    assert values[0] == 1.0
    assert [step for step, value in values.items() if math.isnan(value)] == [1, 2, 3]
    tags = client.get_run(recorder.run_id).data.tags
    assert tags["train/loss.nonfinite"] == "first at step 1: inf"


def test_values_of_a_lost_device_are_said_and_the_rest_is_kept(mlflow_uri: str) -> None:
    # The meta device stands for one that broke: its tensors cannot be read.
    with MlflowRecorder("demo", tracking_uri=mlflow_uri) as recorder:
        recorder._outbox.rows.append((1, 0, ("loss", "lr"), torch.ones((), device="meta"), 0.5))
        with pytest.raises(RecordError, match="could not be read from their device"):
            recorder.flush()
    client = MlflowClient(mlflow_uri)
    assert history(client, recorder.run_id, "lr") == [(0, 0.5)]
    assert math.isnan(history(client, recorder.run_id, "loss")[0][1])


# -- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("lr/encoder.layer[0]", "lr/encoder.layer_0_"),
        ("a(b)=c%,d", "a_b__c__d"),
        ("//a//b/", "a/b"),
        ("a/../b/./c", "a/b/c"),
        ("..", "_"),
        ("größe µ:1", "größe µ:1"),
    ],
)
def test_clean_names(mlflow_uri: str, name: str, cleaned: str) -> None:
    assert clean_name(name) == cleaned
    with MlflowRecorder("demo", tracking_uri=mlflow_uri) as recorder:
        recorder.log_metrics(0, {name: 1.0})
        recorder.set_tags({name: 1.0})
        recorder.log_params({name: 1.0})
    data = MlflowClient(mlflow_uri).get_run(recorder.run_id).data
    assert cleaned in data.metrics
    assert data.tags[cleaned] == "1.0"
    assert data.params == {clean_name(f"cfg/{name}"): "1.0"}


def test_a_long_name_is_cut_and_stays_different() -> None:
    one, two = clean_name("x" * 300 + "1"), clean_name("x" * 300 + "2")
    assert len(one) == len(two) == 250
    assert one != two


def test_names_that_become_equal_are_an_error(mlflow_uri: str) -> None:
    with MlflowRecorder("demo", tracking_uri=mlflow_uri) as recorder:
        with pytest.raises(ValueError, match=r"'lr/a\[' and 'lr/a\(' both become 'lr/a_'"):
            recorder.log_step(0, 1.0, make_optimizer("a[", "a("))
        with pytest.raises(ValueError, match="a name of its own"):
            recorder.log_step(0, 1.0, make_optimizer("a"), **{"lr/a": 1.0})
    assert Names().clean("a") == "a"


# -- params, tags, artifacts ----------------------------------------------------------------------


def test_params_are_flat_prefixed_and_may_be_logged_again(mlflow_uri: str) -> None:
    params = {
        "lrs": {"body": 0.1, "head": 1.0},
        "betas": (0.9, 0.999),
        "seed": None,
        "note": "x = [1]",
    }
    with MlflowRecorder("demo", tracking_uri=mlflow_uri) as recorder:
        recorder.log_params(params)
        recorder.log_params(params | {"more": math.inf})
        with pytest.raises(
            ValueError, match=r"must keep its value, but 'cfg/lrs/body' is '0\.1' and got '0\.2'"
        ):
            recorder.log_params({"lrs": {"body": 0.2}})
    assert MlflowClient(mlflow_uri).get_run(recorder.run_id).data.params == {
        "cfg/lrs/body": "0.1",
        "cfg/lrs/head": "1.0",
        "cfg/betas": "[0.9, 0.999]",
        "cfg/seed": "None",
        "cfg/note": "x = [1]",
        "cfg/more": "inf",
    }


def test_flatten_refuses_a_name_that_is_there_twice() -> None:
    with pytest.raises(ValueError, match="'cfg/a/b' is there twice"):
        flatten({"a": {"b": 1}, "a/b": 2}, "cfg")


def test_a_long_param_is_kept_whole_as_an_artifact(mlflow_uri: str) -> None:
    text = "0123456789" * 1000
    with MlflowRecorder("demo", tracking_uri=mlflow_uri) as recorder:
        recorder.log_params({"notes": text})
        recorder.log_params({f"p{i}": i for i in range(250)})
    client = MlflowClient(mlflow_uri)
    params = client.get_run(recorder.run_id).data.params
    assert len(params["cfg/notes"]) == 6000
    assert params["cfg/notes"].endswith("... (cut, of 10000 characters)")
    assert artifact(client, recorder.run_id, "params/notes.txt").read_text() == text
    assert len(params) == 251


def test_tags_take_their_last_value(mlflow_uri: str) -> None:
    with MlflowRecorder("demo", tracking_uri=mlflow_uri, tags={"task": "digits"}) as recorder:
        recorder.set_tags({"lrfinder.status": "running", "long": "x" * 9000})
        recorder.set_tags({"lrfinder.status": "diverged"})
    run = MlflowClient(mlflow_uri).get_run(recorder.run_id)
    assert run.data.tags["lrfinder.status"] == "diverged"
    assert run.data.tags["task"] == "digits"
    assert len(run.data.tags["long"]) == 5000
    assert run.data.tags["mlflow.user"]
    assert run.data.tags["mlflow.source.type"] == "LOCAL"
    assert "mlflow.source.name" in run.data.tags


@pytest.mark.parametrize("size", [0, 1, 99_999, 100_001, 3_000_000])
def test_an_artifact_of_any_size_arrives_whole(mlflow_uri: str, size: int) -> None:
    text = ("abcdefg\n" * (size // 8 + 1))[:size]
    with MlflowRecorder("demo", tracking_uri=mlflow_uri) as recorder:
        recorder.log_text("first", "below/a.txt")
        recorder.log_text(text, "below/a.txt")
    assert artifact(MlflowClient(mlflow_uri), recorder.run_id, "below/a.txt").read_text() == text


def test_artifacts(mlflow_uri: str, tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    trace = Trace(["body", "head"], name="train")
    for loss in (2.0, 1.0, math.inf):
        trace.append([0.1, 0.2], loss)
    trace.add_metric("val/loss", 1, 0.5)
    trace.set_status("diverged", "too fast")
    long = Trace(["all"])
    for step in range(321):
        long.append([0.1], float(step == 100))
    figure = Figure()
    figure.subplots().plot([1, 2])
    with MlflowRecorder("demo", tracking_uri=mlflow_uri) as recorder:
        recorder.log_figure(figure, "plots/lr")
        recorder.log_figure(figure, "plots/lr.svg")
        recorder.log_text("<p>ü</p>", "report.html")
        recorder.log_dict({"a": [1.0, math.nan]}, "curves")
        recorder.log_trace(trace)
        recorder.log_trace(Trace(["all"]), "empty")
        recorder.log_trace(long, "long")
        for name in ("", "/etc/x", "../x", "a//b", "a/../../b"):
            with pytest.raises(ValueError, match="must be a relative path"):
                recorder.log_text("x", name)
    client = MlflowClient(mlflow_uri)

    def read(name: str) -> Path:
        return artifact(client, recorder.run_id, name)

    assert read("plots/lr.png").read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in read("plots/lr.svg").read_text()
    assert read("report.html").read_text() == "<p>ü</p>"
    assert json.loads(read("curves.json").read_text()) == {"a": [1.0, "nan"]}
    pd.testing.assert_frame_equal(pd.read_parquet(read("traces/train.parquet")), trace.to_frame())
    summary = json.loads(read("traces/train.json").read_text())
    assert summary == {
        "name": "train",
        "groups": ["body", "head"],
        "steps": 3,
        "status": "diverged",
        "message": "too fast",
        "diverged_at": 2,
        "last": {"train/loss": "inf", "val/loss": 0.5},
    }
    assert len(pd.read_parquet(read("traces/empty.parquet"))) == 0
    assert len(pd.read_parquet(read("traces/long.parquet"))) == 321
    pictures = [item.path for item in client.list_artifacts(recorder.run_id, "traces")]
    assert [path for path in pictures if path.endswith(".svg")] == ["traces/long.svg"]
    # Beside the database, wherever this ran.
    assert client.get_run(recorder.run_id).info.artifact_uri.startswith(
        (tmp_path / "mlruns").as_uri()
    )


# -- runs -----------------------------------------------------------------------------------------


def spool_threads() -> int:
    return sum(thread.name == "lrfinder-spool" for thread in threading.enumerate())


def test_children_are_linked_and_open_at_once(mlflow_uri: str) -> None:
    with MlflowRecorder("demo", tracking_uri=mlflow_uri, run_name="study") as study:
        children = [study.child(f"trial-{i}", number=i) for i in range(3)]
        for step in range(5):
            for i, child in enumerate(children):
                child.log_metrics(step, {"val/loss": step + i})
        threads = spool_threads()
        for child in children:
            child.close()
        outside = MlflowRecorder(tracking_uri=mlflow_uri, experiment="demo", parent=study.run_id)
        assert spool_threads() == threads + 1  # children share their parent's thread
        outside.close()
    client = MlflowClient(mlflow_uri)
    found = client.search_runs(
        [study.experiment_id],
        filter_string=f"tags.lrfinder.parent = '{study.run_id}'",
        order_by=["tags.number"],
    )
    assert {run.info.run_name for run in found} == {
        "trial-0",
        "trial-1",
        "trial-2",
        outside.run_name,
    }
    for run in found:
        assert "mlflow.parentRunId" not in run.data.tags  # it would hide the run from the charts
        assert run.info.status == "FINISHED"
    assert {run.data.tags.get("number") for run in found} == {"0", "1", "2", None}
    assert history(client, children[2].run_id, "val/loss") == [(s, s + 2.0) for s in range(5)]


def test_a_child_outlives_its_parent(mlflow_uri: str) -> None:
    parent = MlflowRecorder("demo", tracking_uri=mlflow_uri)
    parent.close()
    child = parent.child()
    child.log_metrics(0, {"a": 1})
    child.close()
    assert history(MlflowClient(mlflow_uri), child.run_id, "a") == [(0, 1.0)]


def test_a_closed_recorder_refuses_more(mlflow_uri: str) -> None:
    recorder = MlflowRecorder("demo", tracking_uri=mlflow_uri)
    with pytest.raises(ValueError, match="`status` must be 'FINISHED', 'FAILED' or 'KILLED'"):
        recorder.close("DONE")  # type: ignore[arg-type]
    recorder.close("KILLED")
    recorder.close()
    recorder.flush()
    assert MlflowClient(mlflow_uri).get_run(recorder.run_id).info.status == "KILLED"
    for call in (
        lambda: recorder.log_step(0, 1.0, make_optimizer("all")),
        lambda: recorder.log_metrics(0, {"a": 1}),
        lambda: recorder.set_tags({"a": 1}),
        lambda: recorder.log_text("a", "a.txt"),
    ):
        with pytest.raises(RecordError, match="A closed recorder takes no more"):
            call()


def test_a_recorder_cannot_be_pickled(mlflow_uri: str) -> None:
    with (
        MlflowRecorder("demo", tracking_uri=mlflow_uri) as recorder,
        pytest.raises(TypeError, match="cannot be pickled"),
    ):
        pickle.dumps(recorder)


def test_an_exception_leaves_the_run_failed_with_its_text(mlflow_uri: str) -> None:
    optimizer = make_optimizer("all")

    def work() -> None:
        with MlflowRecorder("demo", tracking_uri=mlflow_uri) as recorder:
            recorder.log_step(0, 1.0, optimizer)
            raise ArithmeticError("x" * 9000)

    with pytest.raises(ArithmeticError):
        work()
    run = only_run(mlflow_uri)
    assert run.info.status == "FAILED"
    assert run.data.tags["error"].startswith("ArithmeticError: xxx")
    assert len(run.data.tags["error"]) == 5000
    assert run.data.metrics["train/loss"] == 1.0


def test_an_exception_is_not_hidden_by_a_store_that_fails(mlflow_uri: str) -> None:
    client = MlflowClient(mlflow_uri)

    def work(recorder: MlflowRecorder) -> None:
        with recorder:
            client.delete_run(recorder.run_id)
            raise ArithmeticError("the cause")

    recorder = MlflowRecorder("demo", tracking_uri=mlflow_uri)
    with pytest.raises(ArithmeticError, match="the cause") as caught:
        work(recorder)
    assert "Its record is not complete either" in caught.value.__notes__[0]
    client.restore_run(recorder.run_id)
    recorder.close("FAILED")


SCRIPT = """
import sys, time, torch
from lrfinder.tracking import MlflowRecorder
optimizer = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.ones(1))], "name": "all"}], lr=0.1)
"""


# A fork has the recorder's memory but not its thread: it must neither wait nor end the run.
FORK = """
import os
import shutil
from mlflow import MlflowClient
from lrfinder.tracking import RecordError
child = os.fork()
if child == 0:
    try:
        recorder.flush()
    except RecordError as error:
        sys.exit(7 if "belongs to the process that made it" in str(error) else 8)
    sys.exit(9)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
recorder.flush()
assert MlflowClient().get_run(recorder.run_id).info.status == "RUNNING"
"""


def run_script(body: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT + body],
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


@pytest.mark.parametrize(
    ("ending", "status", "code"),
    [
        (FORK, "FINISHED", 0),
        ("raise ArithmeticError('boom')", "FAILED", 1),
        ("raise KeyboardInterrupt", "KILLED", -signal.SIGINT),
    ],
)
def test_a_program_that_ends_without_close_loses_nothing(
    mlflow_uri: str, ending: str, status: str, code: int
) -> None:
    done = run_script(f"""
recorder = MlflowRecorder("demo")
for step in range(1000):
    recorder.log_step(step, torch.tensor(float(step)), optimizer)
recorder.set_tags({{"last": "yes"}})
{ending}
""")
    assert done.returncode == code, done.stderr
    assert "lrfinder:" not in done.stderr
    run = only_run(mlflow_uri)
    assert run.info.status == status
    assert run.data.tags["last"] == "yes"
    assert ("boom" in run.data.tags.get("error", "")) == ("boom" in ending)
    losses = history(MlflowClient(mlflow_uri), run.info.run_id, "train/loss")
    assert losses == [(step, float(step)) for step in range(1000)]


def test_ctrl_c_in_a_with_block_ends_as_killed(mlflow_uri: str) -> None:
    body = """
with MlflowRecorder("demo") as recorder:
    recorder.log_step(0, 1.0, optimizer)
    print("ready", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT + body],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=240)
    assert "KeyboardInterrupt" in stderr
    run = only_run(mlflow_uri)
    assert run.info.status == "KILLED"
    assert run.data.metrics["train/loss"] == 1.0


# -- under `mlflow run` ---------------------------------------------------------------------------


@pytest.fixture
def made_run(mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run as `mlflow run` makes it, and the environment that it gives to its command."""
    client = MlflowClient(mlflow_uri)
    run = client.create_run(client.create_experiment("lab"), run_name="made by mlflow")
    client.log_param(run.info.run_id, "lrs", "'[0.1, 0.2]'")  # shell-quoted, as `mlflow run` does
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", run.info.experiment_id)
    return run


def test_the_run_of_mlflow_run_is_adopted_once(made_run: Run, mlflow_uri: str) -> None:
    with MlflowRecorder("other", run_name="mine", tags={"k": "v"}) as recorder:
        assert "MLFLOW_RUN_ID" not in os.environ
        recorder.log_params({"lrs": [0.1, 0.2]})
        recorder.log_step(0, 1.0, make_optimizer("all"))
        with recorder.child("below") as child:
            assert child.experiment_id == made_run.info.experiment_id
        with MlflowRecorder() as second:
            assert second.run_id != recorder.run_id
            assert second.experiment_id == made_run.info.experiment_id
    client = MlflowClient(mlflow_uri)
    run = client.get_run(made_run.info.run_id)
    assert recorder.run_id == made_run.info.run_id
    assert (run.info.status, run.info.run_name) == ("FINISHED", "made by mlflow")
    assert run.data.params == {"lrs": "'[0.1, 0.2]'", "cfg/lrs": "[0.1, 0.2]"}
    assert run.data.metrics["train/loss"] == 1.0
    assert run.data.tags["lrfinder.experiment"] == "other"
    assert run.data.tags["lrfinder.run_name"] == "mine"
    assert run.data.tags["k"] == "v"
    assert client.get_experiment_by_name("other") is None


def test_its_own_experiment_is_no_difference(made_run: Run, mlflow_uri: str) -> None:
    with MlflowRecorder("lab") as recorder:
        pass
    run = MlflowClient(mlflow_uri).get_run(made_run.info.run_id)
    assert recorder.run_id == made_run.info.run_id
    assert "lrfinder.experiment" not in run.data.tags


def test_another_store_or_a_given_parent_adopts_nothing(
    made_run: Run, mlflow_uri: str, mlflow_template: Path, tmp_path: Path
) -> None:
    other = shutil.copy(mlflow_template, tmp_path / "other.db")
    with MlflowRecorder("demo", tracking_uri=f"sqlite:///{other}") as elsewhere:
        pass
    with MlflowRecorder(parent=made_run.info.run_id) as below:
        pass
    assert made_run.info.run_id not in (elsewhere.run_id, below.run_id)
    assert os.environ["MLFLOW_RUN_ID"] == made_run.info.run_id


def test_a_run_that_is_not_there_cannot_be_adopted(
    mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with pytest.raises(RecordError, match=r"0000.*not found"):
        MlflowRecorder()


# -- stores ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("sqlite:////proc/nowhere/mlflow.db", "/proc/nowhere"),
        ("sqlite:///{tmp}/file/mlflow.db", "{tmp}/file"),
        ("sqlite:///{tmp}/file", "file is not a database"),
        ("sqlite://", "must be a file"),
        ("http://no-such-host.invalid:5000", "no-such-host.invalid"),
        ("postgresql://me:secret@no-such-host.invalid/db", "me:\\*\\*\\*@no-such-host"),
        ("nonsense://x", "nonsense://x"),
    ],
)
def test_a_store_that_cannot_be_used_is_said_quickly(
    tmp_path: Path, uri: str, message: str
) -> None:
    (tmp_path / "file").write_text("not a database, but a text of some length" * 50)
    start = time.monotonic()
    with pytest.raises(RecordError, match=message.replace("{tmp}", str(tmp_path))) as caught:
        MlflowRecorder("demo", tracking_uri=uri.replace("{tmp}", str(tmp_path)))
    assert time.monotonic() - start < 20  # MLflow by itself takes 100 s to 250 s
    assert "secret" not in str(caught.value)


def test_a_server_that_does_not_answer_is_waited_for_and_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    import socket

    monkeypatch.setattr("lrfinder.delivering.stores.REACH_TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:  # it hangs: it takes no connection up
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        start = time.monotonic()
        recorder = MlflowRecorder("demo", tracking_uri=uri, spool=tmp_path)
        assert time.monotonic() - start < 20
        assert "does not answer" in caplog.text
        assert recorder.run_id is None
        recorder.log_step(0, 1.0, make_optimizer("all"))
        child = recorder.child("below")
        with pytest.raises(
            RecordError, match=r"run \(not made yet\) there is not: .*its end .*`lrfinder sync"
        ):
            child.close(timeout=0.5)
        with pytest.raises(RecordError, match=r"metrics \(steps 0 to 0\); .*its end"):
            recorder.close(timeout=0.5)
    assert {spool.header().experiment for spool in find_spools(tmp_path)} == {"demo"}


def test_reading_makes_no_store(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"There is no MLflow store at .*does not exist"):
        open_store(f"sqlite:///{tmp_path}/none/mlflow.db", create=False)
    assert not list(tmp_path.iterdir())


def test_a_deleted_experiment_is_said(mlflow_uri: str) -> None:
    client = MlflowClient(mlflow_uri)
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(
        RecordError, match=r"'gone' is\. Restore it with `mlflow experiments restore"
    ):
        MlflowRecorder("gone", tracking_uri=mlflow_uri)


def test_an_older_schema_is_said(mlflow_uri: str) -> None:
    path = mlflow_uri.removeprefix("sqlite:///")
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0584bdc529eb'")
    connection.close()
    with pytest.raises(RecordError, match="out-of-date database schema"):
        MlflowRecorder("demo", tracking_uri=mlflow_uri)


# -- nothing --------------------------------------------------------------------------------------


def test_the_null_recorder_takes_everything() -> None:
    with NullRecorder() as recorder:
        recorder.log_step(0, torch.ones(()), make_optimizer("all"), x=1)
        recorder.log_metrics(0, {"a": 1})
        recorder.log_params({"a": 1})
        recorder.set_tags({"a": 1})
        recorder.log_text("a", "a")
        recorder.log_dict({}, "a")
        recorder.log_figure(None, "a")  # type: ignore[arg-type]
        recorder.log_trace(Trace(["a"]))
        assert recorder.child("x", y=1) is recorder
        recorder.flush()
        recorder.close("FAILED")
    assert recorder.run_id is None
