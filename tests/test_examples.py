"""Every example runs as a user would run it, and shows what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}
    environment.pop("MLFLOW_RUN_ID", None)
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:lrfinder", str(EXAMPLES / name), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_learning_rates(tmp_path: Path) -> None:
    out = run("two_learning_rates.py", tmp_path)
    assert "features.0.weight: |step| / |gradient| = 1e-05" in out
    assert "classifier.0.weight: |step| / |gradient| = 1e-02" in out
    assert "Parameter Group 0" in out  # torch's own print
    table = [line for line in out.splitlines() if "features" in line or "classifier" in line]
    assert any("0.0005" in line for line in table)


def test_learning_rates_by_hand(tmp_path: Path) -> None:
    lines = run("learning_rates_by_hand.py", tmp_path).splitlines()
    assert lines[19] == "Epoch [20/35], Learning Rate: body 0.100000, head 0.200000"
    assert lines[20] == "Epoch [21/35], Learning Rate: body 0.010000, head 0.010000"
    assert lines[25] == "Epoch [26/35], Learning Rate: body 0.010000, head 0.020000"
    assert lines[30] == "Epoch [31/35], Learning Rate: body 0.001000, head 0.002000"


def test_train_model_prints_the_lr_that_the_epoch_used(tmp_path: Path) -> None:
    lines = run("train_model.py", tmp_path).splitlines()
    assert lines == [
        f"Epoch [{epoch}/20], Learning Rate: {0.1 if epoch <= 10 else 0.01:.6f}"
        for epoch in range(1, 21)
    ]


def test_every_scheduler(tmp_path: Path) -> None:
    out = run("every_scheduler.py", tmp_path, "lrs.png")
    for name in ("StepLR", "OneCycleLR", "ReduceLROnPlateau", "SequentialLR"):
        assert name in out
    assert "OneCycleLR, by step  features: 4e-05 .. 4e-09" in out  # OneCycleLR from a 25th of it
    assert (tmp_path / "lrs.png").stat().st_size > 5000


def test_range_test(tmp_path: Path) -> None:
    out = run("range_test.py", tmp_path, "curves.png")
    assert "body" in out
    assert "head" in out
    assert (tmp_path / "curves.png").stat().st_size > 5000


def test_record_your_own_loop(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    out = run("record_your_own_loop.py", tmp_path)
    run_id = out.split()[1].rstrip(":")
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert client.get_run(run_id).info.status == "FINISHED"
    for key in ("train/loss", "lr/body", "lr/head"):
        assert [m.step for m in client.get_metric_history(run_id, key)] == list(range(100))


def test_my_task_is_a_task() -> None:
    import lrfinder

    task = lrfinder.load_task(f"{EXAMPLES / 'my_task.py'}:make_task", batch_size=8)
    started = task.start(0, device="cpu")
    assert len(next(iter(started.train_loader))[0]) == 8


@pytest.mark.parametrize(
    "path",
    sorted(EXAMPLES.glob("*.py")) + sorted(EXAMPLES.glob("*.ipynb")),
    ids=lambda path: path.name,
)
def test_each_example_is_in_the_table(path: Path) -> None:
    assert f"({path.name})" in (EXAMPLES / "README.md").read_text()
