"""The ways in which people start the project with ``mlflow run``, each in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from lrfinder.environments import link_environment

ROOT = Path(__file__).parent.parent
# A task of the user's own, outside the package, that tells where it ran.
TASK = """
import json, os, sys
import torch
from torch import nn
import lrfinder

def make_task():
    seen = {"prefix": sys.prefix, "package": lrfinder.__file__, "folder": os.getcwd()}
    with open(os.environ["LRFINDER_TEST_REPORT"], "w") as file:
        json.dump(seen, file)
    batches = [(torch.randn(8, 4), torch.randint(0, 2, (8,))) for _ in range(3)]
    return lrfinder.Task(
        name="toy",
        make_model=lambda: nn.Linear(4, 2),
        groups={"all": "*"},
        make_optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1),
        loss_fn=lrfinder.supervised(nn.CrossEntropyLoss()),
        train_loader=batches,
        num_epochs=1,
    )
"""


class Place:
    """A folder with its own store, environments and task; starts ``mlflow run`` as users do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = f"sqlite:///{folder / 'mlflow.db'}"
        self.report = folder / "report.json"
        self.task = folder / "own_task.py"
        self.task.write_text(TASK)
        # As `source bin/activate` leaves it, less pyenv, which most machines do not have.
        rest = [
            p for p in os.environ["PATH"].split(os.pathsep) if not (Path(p) / "pyenv").exists()
        ]
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PYENV_"))},
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), *rest]),
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_ENV_ROOT": str(folder / "envs"),
            "LRFINDER_TEST_REPORT": str(self.report),
        }
        self.environment.pop("PYTHONPATH", None)

    def mlflow_run(self, project: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "mlflow", "run", project, *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )

    def train(self, project: str, *arguments: str) -> dict[str, str]:
        """Run the entry point ``train`` on the own task; it must succeed. Returns where it ran."""
        task = f"task={self.task}:make_task"
        done = self.mlflow_run(project, "-e", "train", "-P", task, "-P", "device=cpu", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        assert self.last_run().info.status == "FINISHED"
        seen: dict[str, str] = json.loads(self.report.read_text())
        self.report.unlink()
        return seen

    def last_run(self) -> Run:
        """The run that `mlflow run` made last; child runs do not count."""
        runs = MlflowClient(self.uri).search_runs(["0"], order_by=["attributes.start_time DESC"])
        return next(run for run in runs if run.data.tags.get("mlflow.source.type") == "PROJECT")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setenv("MLFLOW_ENV_ROOT", str(tmp_path / "envs"))
    yield Place(tmp_path)
    shutil.rmtree(tmp_path / "envs", ignore_errors=True)


@pytest.fixture
def git_url(tmp_path: Path) -> str:
    """The URL of a bare clone of this working tree.

    Without the suffix ``.git``, which git finds by itself: MLflow takes a file URL of a path that
    exists for a folder and not for a repository.
    """
    source = tmp_path / "source"
    source.mkdir()
    for name in ("MLproject", "python_env.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, source)
    for name in ("lrfinder", "experiments"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    git = ["git", "-C", str(source), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "--quiet", "--initial-branch=main"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "--quiet", "-m", "All"], check=True)
    bare = tmp_path / "bare" / "lrfinder.git"
    subprocess.run(["git", "clone", "--quiet", "--bare", str(source), str(bare)], check=True)
    return f"file://{bare.with_suffix('')}#"


def test_local(place: Place) -> None:
    seen = place.train(str(ROOT), "--env-manager", "local")
    assert seen["prefix"] == sys.prefix
    assert Path(seen["package"]).parent == ROOT / "lrfinder"
    assert not (place.folder / "envs").exists()


def test_a_failing_command_is_a_failed_run(place: Place) -> None:
    done = place.mlflow_run(
        str(ROOT), "-e", "train", "--env-manager", "local", "-P", "task=no_such_task"
    )
    assert done.returncode != 0
    assert "no_such_task" in done.stderr
    assert place.last_run().info.status == "FAILED"


def test_an_option_that_does_not_exist_fails(place: Place) -> None:
    done = place.mlflow_run(
        str(ROOT), "-e", "compare", "--env-manager", "local", "-P", "no_such_option=1"
    )
    assert done.returncode != 0
    assert "no_such_option" in done.stderr
    assert place.last_run().info.status == "FAILED"


@pytest.mark.parametrize("pyenv", ["absent", "broken"])
def test_plain_after_setup(place: Place, pyenv: str) -> None:
    """No flag: the environment at hand runs it; pyenv is not called, even if it is there."""
    link_environment(ROOT)
    if pyenv == "broken":
        script = place.folder / "bin" / "pyenv"
        script.parent.mkdir()
        script.write_text(f"#!/bin/sh\ntouch '{place.folder}/called'\nexit 1\n")
        script.chmod(0o755)
        place.environment["PATH"] = f"{script.parent}{os.pathsep}{place.environment['PATH']}"
    seen = place.train(str(ROOT))
    assert seen["prefix"] == sys.prefix
    assert Path(seen["package"]).parent == ROOT / "lrfinder"
    assert not (place.folder / "called").exists()
    assert place.last_run().data.tags["mlflow.project.env"] == "virtualenv"


def test_git_url_runs_the_code_of_the_repository(place: Place, git_url: str) -> None:
    link_environment(ROOT)
    seen = place.train(git_url)
    assert seen["prefix"] == sys.prefix
    # Not this working tree and not an installed copy: what MLflow fetched.
    assert Path(seen["package"]).parent == Path(seen["folder"]) / "lrfinder"
    assert Path(seen["folder"]) != ROOT
    assert len(place.last_run().data.tags["mlflow.source.git.commit"]) == 40


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_uv_builds_an_isolated_environment(place: Place) -> None:
    """Even where plain `mlflow run` was set up, whose place MLflow gives to uv as well."""
    require_index(place)
    linked = link_environment(ROOT)
    seen = place.train(str(ROOT), "--env-manager", "uv")
    assert seen["prefix"] == f"{linked}-uv"
    assert Path(seen["package"]).parent == ROOT / "lrfinder"
    assert place.last_run().data.tags["mlflow.project.env"] == "uv"
    # Without the link MLflow builds the environment in that place itself.
    shutil.rmtree(linked)
    seen = place.train(str(ROOT), "--env-manager", "uv")
    assert seen["prefix"] == str(linked)


def require_index(place: Place) -> None:
    """Skip where uv reaches no package index, as it must to build anything."""
    done = subprocess.run(
        ["uv", "pip", "install", "--dry-run", "--python", sys.executable, "--reinstall", "torch"],
        env=place.environment,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        pytest.skip("uv reaches no package index")
