"""Tests of the commands: as people start them, in this process and in processes of their own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from lrfinder.commands import main, options, run_command
from lrfinder.delivering.stores import store_uri

ROOT = Path(__file__).parent.parent
COMMANDS = ["main", "range_test", "train", "search", "compare"]

# A task of the user's own, outside the package.
TASK = """
import time
import torch
from torch import nn
import lrfinder

def make_task(data=None, pause=0.0):
    inputs = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    batches = list(zip(inputs.split(16), (inputs[:, 0] > 0).long().split(16)))
    return lrfinder.Task(
        name="toy",
        make_model=lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)),
        groups={"body": "0.*", "head": "2.*"},
        make_optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1),
        loss_fn=lrfinder.supervised(nn.CrossEntropyLoss()),
        train_loader=batches,
        val_loader=batches,
        metrics={"accuracy": lrfinder.accuracy},
        num_epochs=2,
    )

class Slow:
    def __init__(self, batches):
        self.batches = batches
    def __iter__(self):
        for batch in self.batches:
            time.sleep(0.02)
            yield batch

def slow_task():
    import dataclasses
    task = make_task()
    slow = Slow(task.train_loader)
    return dataclasses.replace(task, name="slow", train_loader=slow, num_epochs=1000)

def no_task():
    return 3

def broken_task():
    import dataclasses
    def loss_fn(model, batch):
        raise RuntimeError("shapes do not match")
    return dataclasses.replace(make_task(), name="broken", loss_fn=loss_fn)

def exploding_task():
    import dataclasses
    return dataclasses.replace(
        make_task(), name="exploding",
        loss_fn=lambda model, batch: 1e30 * model(batch[0]).square().sum(),
    )
"""


@pytest.fixture
def place(
    tmp_path: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MlflowClient]:
    """A folder with a task of its own and a store; the client of that store."""
    (tmp_path / "own_tasks.py").write_text(TASK)
    monkeypatch.chdir(tmp_path)
    yield MlflowClient(mlflow_uri)
    sys.modules.pop("own_tasks", None)


def runs(client: MlflowClient) -> list[Run]:
    """All runs, the newest first."""
    return list(client.search_runs(["0"], order_by=["attributes.start_time DESC"]))


def parent(client: MlflowClient) -> Run:
    return next(run for run in runs(client) if "lrfinder.parent" not in run.data.tags)


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command in a process of its own, which does not outlive the test."""
    started: list[subprocess.Popen[str]] = []

    def begin(*words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "lrfinder", *words],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        with process:
            pass


# -- the commands ---------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["own_tasks.py:make_task", "own_tasks:make_task"])
def test_train_uses_the_lrs_and_the_schedule_that_it_is_given(
    place: MlflowClient, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--task", task, "--lrs", "body=1e-3,head=0.2", "--schedule", "StepLR"]
    assert main([*words, "--step_size", "1", "--gamma", "0.5", "--num-epochs", "3"]) == 0
    (run,) = runs(place)
    assert run.info.status == "FINISHED"
    assert run.data.tags["lrfinder.status"] == "completed"
    for name, first in {"lr/body": 1e-3, "lr/head": 0.2}.items():
        history = place.get_metric_history(run.info.run_id, name)
        values = [row.value for row in sorted(history, key=lambda row: row.step)]
        expected = [first * 0.5**epoch for epoch in range(3) for _ in range(4)]
        assert values == pytest.approx(expected)
    output = capsys.readouterr().out
    assert "Epoch [3/3], Learning Rate: body 0.000250, head 0.050000" in output
    assert "toy: completed after 12 steps." in output
    assert "mlflow ui --backend-store-uri sqlite:////" in output
    assert run.info.run_id in output


def test_train_goes_on_from_its_checkpoint(place: MlflowClient) -> None:
    words = ["train", "--task", "own_tasks.py:make_task", "--checkpoint", "run.pt"]
    assert main([*words, "--num_epochs", "2"]) == 0
    assert main([*words, "--num_epochs", "4"]) == 0
    newest, _ = runs(place)
    assert newest.data.tags["lrfinder.resumed_at_step"] == "8"
    assert Path("run.pt").exists()


def test_a_training_that_diverges_is_a_result(
    place: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--task", "own_tasks.py:exploding_task", "--lrs", "1e9"]) == 0
    (run,) = runs(place)
    assert run.info.status == "FAILED"
    assert run.data.tags["lrfinder.status"] == "diverged"
    assert "diverged after" in capsys.readouterr().out


def test_range_test_prints_the_brackets_and_records_them(
    place: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["range_test", "--task", "own_tasks.py:make_task", "--num_steps", "20"]
    assert main([*words, "--replicas", "1", "--effort", "brackets"]) == 0
    output = capsys.readouterr().out
    assert "body" in output
    assert "head" in output
    run = parent(place)
    assert run.info.status == "FINISHED"
    names = {item.path for item in place.list_artifacts(run.info.run_id)}
    assert {"range_test.png", "report.html"} <= names


def test_search_goes_on_and_prints_the_best(
    place: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["search", "--task", "own_tasks.py:make_task", "--storage", "sqlite:///s.db"]
    words += ["--sampler", "RandomSampler", "--pruner", "NopPruner"]
    assert main([*words, "--n-trials", "2"]) == 0
    assert main([*words, "--n-trials", "3", "--confirm", "1"]) == 0
    output = capsys.readouterr().out
    assert "new seeds" in output  # the column of the trial that was trained again
    assert main([*words, "--n-steps", "1", "--confirm", "0"]) == 0  # all that is spent
    assert "best: {'lrs'" in output
    trials = [run for run in runs(place) if "optuna.trial_number" in run.data.tags]
    assert sorted(run.data.tags["optuna.trial_number"] for run in trials) == ["0", "1", "2"]


def test_main_tells_the_whole_story(
    place: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["main", "--task", "own_tasks.py:make_task", "--n_trials", "2", "--n_seeds", "3"]
    assert main([*words, "--num_epochs", "2"]) == 0
    output = capsys.readouterr().out
    run = parent(place)
    assert run.info.status == "FINISHED"
    children = [r for r in runs(place) if r.data.tags.get("lrfinder.parent") == run.info.run_id]
    assert all(child.info.status == "FINISHED" for child in children)
    arms = {r.data.tags["lrfinder.arm"] for r in children if "lrfinder.arm" in r.data.tags}
    assert {
        "found",
        "default",
        "own",
    } <= arms  # torch's default for SGD is 1e-3, and the task's 0.1
    seeds = [
        r.data.params["cfg/seed"] for r in children if r.data.tags.get("lrfinder.arm") == "found"
    ]
    assert sorted(seeds) == ["1", "2", "3"]
    names = {item.path for item in place.list_artifacts(run.info.run_id)}
    assert {"report.html", "comparison.png", "best_hparams.json"} <= names
    assert run.data.tags["lrfinder.result"].startswith("In val/loss, found is ")
    assert run.data.tags["lrfinder.result"] in " ".join(output.split())
    assert "found against default" in output
    assert f"runs/{run.info.run_id}" in output


def test_compare_reads_runs_back(place: MlflowClient, capsys: pytest.CaptureFixture[str]) -> None:
    for lr in ("0.01", "0.3"):
        assert main(["train", "--task", "own_tasks.py:make_task", "--lrs", lr]) == 0
    ids = [run.info.run_id for run in runs(place)]
    capsys.readouterr()
    assert main(["compare", "--runs", ",".join(ids), "--output", "all.png"]) == 0
    output = capsys.readouterr().out
    assert "Runs" in output
    assert "0.01" in output
    assert Path("all.png").read_bytes().startswith(b"\x89PNG")
    assert len(runs(place)) == 2  # comparing makes no run


@pytest.mark.parametrize("name", COMMANDS)
def test_each_experiment_shows_the_options_of_its_command_alone(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", "--help"],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"python -m experiments.{name}" in done.stdout
    assert "Commands" not in done.stdout
    assert ("--checkpoint" in done.stdout) == (name == "train")
    assert ("--task" in done.stdout) == (name != "compare")


def test_the_program_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in [*COMMANDS, "sync", "setup"]:
        assert name in shown
    assert main(["--version"]) == 0
    assert re.match(r"lrfinder \d+\.\d+\.\d+", capsys.readouterr().out)
    assert main(["no_such_command"]) == 2


def test_both_spellings_and_empty_values_are_understood(place: MlflowClient) -> None:
    words = ["--task", "own_tasks.py:make_task", "--num-epochs", "1", "--lrs", "", "--data="]
    assert run_command("train", words) == 0
    assert run_command("train", [*words[:2], "--num_epochs", "1"]) == 0
    assert main(["range-test", "--help"]) == 0


# -- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--task", "nope"], "`task` must be one of digits, "),
        (["train", "--task", "nope.py:make"], "nope.py"),
        (["train", "--task", "no_such_module:make"], "no_such_module"),
        (["train", "--task", "own_tasks.py:nope"], "`nope` must be a function"),
        (["train", "--task", "own_tasks.py:no_task"], "must return a Task, but got int"),
        (["train", "--task", "digits", "--data", "x"], "option `data`"),
        (["train", "--task", "cifar10", "--data", "/no/such/folder"], "/no/such/folder"),
        (["train", "--lrs", "nan"], "must be a finite number >= 0, but got 'nan'"),
        (["train", "--lrs", "-1"], "must be a finite number >= 0, but got '-1'"),
        (["train", "--lrs", "fast"], "`lrs` must be one number, or one for each group"),
        (["train", "--lrs", "body=1,body=2"], "`lrs` must be one number"),
        (["train", "--lrs", "tail=0.1"], "tail"),
        (["train", "--schedule", "NopeLR"], "NopeLR"),
        (["train", "--schedule", "StepLR", "--milestones", "1"], "milestones"),
        (["train", "--schedule", "{bad"], "valid JSON"),
        (["train", "--gamma", "0.1"], "`gamma` needs a `schedule`"),
        (
            ["train", "--schedule", "MultiStepLR", "--milestones", "a,b"],
            "`milestones` must be whole",
        ),
        (["train", "--keep", "all"], "`keep` must be nothing or checkpoints"),
        (["train", "--keep", "checkpoints"], "`keep` checkpoints needs a `checkpoint` path"),
        (["sync", "no/such/folder"], "`path` must be a spool or a folder of spools"),
        (["train", "--num_epochs", "0"], "`num_epochs >= 1` must hold"),
        (["train", "--seed", "-1"], "seed"),
        (["train", "--device", "tpu9"], "`device` must be"),
        (["range_test", "--start_lr", "1", "--end_lr", "0.1"], "start_lr"),
        (["range_test", "--start_lr", "nan"], "start_lr"),
        (["range_test", "--groups", "tail"], "tail"),
        (["range_test", "--effort", "lots"], "effort"),
        (["search", "--n_trials", "0"], "`n_trials >= 1` must hold"),
        (["search", "--schedule", "NopeLR"], "`schedule` must be one that can be searched"),
        (["search", "--storage", "nope"], "`storage` must be the URL of a database"),
        (["search", "--sampler", "Nope"], "`sampler` must be one of"),
        (["search", "--gamma", "some"], "`gamma` must be 'one' or 'each'"),
        (["search", "--warm-up", "99"], "`warm_up < num_epochs` must hold"),
        (["search", "--n-steps", "0"], "`n_steps >= 1` must hold"),
        (["search", "--metric", "val/loss,val/nope"], "`metric` must be one of"),
        (["main", "--n_seeds", "2"], "`n_seeds >= 3` must hold"),
        (["compare", "--runs", "0123"], "0123"),
        (["compare", "--experiment", "nope"], "nope"),
        (["compare", "--output", "no/folder/a.png"], "`output` must lie in a folder"),
        (["setup", "--project", "."], "MLproject"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_status_1(
    place: MlflowClient, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--task" not in words and words[0] in ("train", "range_test", "search", "main"):
        words = [words[0], "--task", "own_tasks.py:make_task", *words[1:]]
    assert main(words) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("lrfinder: ")
    assert "Traceback" not in captured.err
    assert all(run.info.status == "FAILED" for run in runs(place))


@pytest.mark.parametrize(
    "words",
    [["train", "--no_such_option", "1"], ["train", "--num_epochs", "many"], ["train", "x"]],
)
def test_a_command_line_that_is_wrong_is_exit_status_2(words, place: MlflowClient) -> None:
    assert main(words) == 2
    assert runs(place) == []


def test_an_error_of_the_users_own_code_keeps_its_traceback_and_fails_the_run(
    place: MlflowClient, start: Callable[..., subprocess.Popen[str]]
) -> None:
    process = start("train", "--task", "own_tasks.py:broken_task")
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "own_tasks.py" in errors
    assert "RuntimeError: shapes do not match" in errors
    (run,) = runs(place)
    assert run.info.status == "FAILED"
    assert "shapes do not match" in run.data.tags["error"]


def test_debug_shows_the_traceback(place: MlflowClient) -> None:
    with pytest.raises(ValueError, match="NopeLR"):
        main(["train", "--task", "own_tasks.py:make_task", "--schedule", "NopeLR", "--debug"])
    assert "LRFINDER_DEBUG" not in os.environ


def test_a_store_that_cannot_be_opened_is_told(
    place: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("notes.txt").write_text("no folder")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{Path.cwd()}/notes.txt/mlflow.db")
    assert main(["train", "--task", "own_tasks.py:make_task"]) == 1
    assert "notes.txt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
def test_a_signal_kills_the_run_and_keeps_what_was_recorded(
    place: MlflowClient,
    start: Callable[..., subprocess.Popen[str]],
    number: signal.Signals,
    status: int,
) -> None:
    process = start("train", "--task", "own_tasks.py:slow_task")
    assert process.stdout is not None
    assert process.stdout.readline().startswith("Epoch [1/1000]")
    process.send_signal(number)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == status, errors
    assert "Traceback" not in errors
    (run,) = runs(place)
    assert run.info.status == "KILLED"
    assert run.data.tags["lrfinder.status"] == "interrupted"
    steps = [row.step for row in place.get_metric_history(run.info.run_id, "train/loss")]
    assert len(steps) >= 4
    assert sorted(steps) == list(range(len(steps)))


def test_a_signal_during_a_search_kills_parent_and_trial(
    place: MlflowClient, start: Callable[..., subprocess.Popen[str]]
) -> None:
    words = [
        "--task",
        "own_tasks.py:slow_task",
        "--storage",
        "sqlite:///s.db",
        "--num_epochs",
        "50",
    ]
    process = start("search", *words)
    deadline = time.monotonic() + 120
    while not any("optuna.trial_number" in run.data.tags for run in runs(place)):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    try:
        _, errors = process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        # Python loses an interrupt that comes while it collects garbage; whoever waits presses again.
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=240)
    assert process.returncode == 130, errors
    assert "the same call goes on" in errors
    statuses = [run.info.status for run in runs(place)]
    assert len(statuses) >= 2  # the search and its trials that were under way
    assert set(statuses) == {"KILLED"}


# -- small parts ----------------------------------------------------------------------------------


def test_a_schedule_may_be_any_spec_in_json() -> None:
    text = '{"name": "OneCycleLR", "max_lr": 0.1, "total_steps": 30, "interval": "step"}'
    spec = options.read_schedule(text)
    assert spec is not None
    assert spec["interval"] == "step"
    assert options.read_schedule("MultiStepLR", milestones="[2, 4]", gamma=0.1) == {
        "name": "MultiStepLR",
        "gamma": 0.1,
        "milestones": [2, 4],
    }
    assert options.read_schedule(None) is None


def test_a_relative_store_is_told_as_an_absolute_one(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert store_uri("sqlite:///mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"
    assert store_uri("http://127.0.0.1:5000") == "http://127.0.0.1:5000"
