"""The files of examples/many-machines: what can be run here is run, and what cannot is read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from mlflow import MlflowClient
from optuna.trial import TrialState

from benchmarks.servers import Postgres
from lrfinder.commands import main
from lrfinder.searching.counting import count_done

FOLDER = Path(__file__).parent.parent / "examples" / "many-machines"
ROOT = str(FOLDER.parents[1])
TASK = "tests.searching.test_searching:tiny_task"
QUIET = {"PYTHONWARNINGS": "ignore"}


def environment(**more: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": ROOT, **more}


def names_of(command: list[str]) -> list[str]:
    return [part.partition("=")[0] for part in command if part.startswith("--")]


def worker_commands() -> dict[str, list[str]]:
    compose: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    job: dict[str, Any] = yaml.safe_load((FOLDER / "kubernetes.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    script = (FOLDER / "slurm.sh").read_text().partition("exec ")[2].replace("\\\n", " ")
    return {
        "compose.yaml": compose["services"]["worker"]["command"],
        "kubernetes.yaml": container["command"],
        "slurm.sh": script.split(),
    }


def test_every_worker_is_started_by_the_same_command_with_options_that_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    commands = worker_commands()
    assert main(["search", "--help"]) == 0
    known = capsys.readouterr().out
    for name, command in commands.items():
        assert command[:2] == ["lrfinder", "search"], name
        assert names_of(command) == ["--task", "--n-trials", "--study-name", "--storage"], name
        for option in names_of(command):
            assert option in known


def test_the_server_is_started_with_options_that_it_has() -> None:
    compose: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    command = compose["services"]["mlflow"]["command"]
    done = subprocess.run(
        [sys.executable, "-m", "mlflow", "server", "--help"],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert command[:2] == ["mlflow", "server"]
    assert len(names_of(command)) == 5
    for option in names_of(command):
        assert option in done.stdout
    # One database each, of which the second is made by a script that lies where it is looked for.
    studies = compose["services"]["database"]["environment"]["POSTGRES_DB"]
    assert [part for part in command if part.endswith("/mlflow")]
    assert studies == "studies"
    assert "CREATE DATABASE mlflow;" in (FOLDER / "databases.sql").read_text()
    for service in ("mlflow", "worker"):
        build = compose["services"][service]["build"]
        assert (FOLDER / build["context"] / build["dockerfile"]).resolve() == FOLDER / "Dockerfile"


def test_what_services_need_of_each_other_is_there() -> None:
    compose: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    services, volumes = compose["services"], compose["volumes"]
    needed = {
        other: condition["condition"]
        for service in services.values()
        for other, condition in service.get("depends_on", {}).items()
    }
    assert needed == {"database": "service_healthy", "mlflow": "service_healthy"}
    for name in needed:  # Compose waits for ever for one that cannot say that it is healthy
        assert services[name]["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    mounts = [mount for service in services.values() for mount in service.get("volumes", [])]
    assert len(mounts) == 3
    for mount in mounts:
        source = mount.partition(":")[0]
        assert source in volumes or (FOLDER / source).is_file(), mount


def test_a_job_of_kubernetes_has_the_fields_that_the_others_have_too() -> None:
    job: dict[str, Any] = yaml.safe_load((FOLDER / "kubernetes.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    assert job["spec"]["parallelism"] <= job["spec"]["completions"]
    pod = job["spec"]["template"]["spec"]
    assert pod["restartPolicy"] in ("OnFailure", "Never")  # a Job refuses any other
    (container,) = pod["containers"]
    variables = {variable["name"] for variable in container["env"]}
    used = {part[2:-1] for arg in container["command"] for part in arg.split("=") if "$(" in part}
    assert used == {"STORAGE"}
    assert used <= variables


@pytest.mark.parametrize("name", ["slurm.sh", "torchrun.sh"])
def test_scripts_are_bash_and_their_options_come_before_the_first_command(name: str) -> None:
    path = FOLDER / name
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = path.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    options = [number for number, line in enumerate(lines) if line.startswith("#SBATCH --")]
    commands = [number for number, line in enumerate(lines) if line and line[0] != "#"]
    assert options
    assert max(options) < min(commands)  # sbatch reads none after it
    assert lines[min(commands)] == "set -euo pipefail"


@pytest.mark.postgres
def test_two_jobs_of_the_array_make_one_study(tmp_path: Path, mlflow_uri: str) -> None:
    with Postgres(tmp_path / "pg") as server:
        variables = environment(STORAGE=server.uri, N_TRIALS="3", STUDY="array", TASK=TASK)
        jobs = [
            subprocess.Popen(
                ["bash", str(FOLDER / "slurm.sh")],
                cwd=tmp_path,
                env={**variables, "SLURM_ARRAY_TASK_ID": str(number)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for number in range(2)
        ]
        for job in jobs:
            output, _ = job.communicate()
            assert job.returncode == 0, output
            assert "best:" in output
        study = optuna.load_study(storage=server.uri, study_name="array")
        begun = [trial for trial in study.trials if trial.state is not TrialState.WAITING]
        assert count_done(study) == len(begun) == 3
        ids = {trial.user_attrs["mlflow_run_id"] for trial in begun}
        runs = MlflowClient(mlflow_uri).search_runs(["0"], "tags.`optuna.trial_number` LIKE '%'")
        assert ids <= {run.info.run_id for run in runs}
        assert len(ids) == 3


def test_torchrun_trains_by_two_processes(tmp_path: Path, mlflow_uri: str) -> None:
    done = subprocess.run(
        ["bash", str(FOLDER / "torchrun.sh")],
        cwd=tmp_path,
        env=environment(GPUS="2", DEVICE="cpu", COMMAND="range_test", TASK=TASK, **QUIET),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Range test: ") >= 1
    (run,) = MlflowClient(mlflow_uri).search_runs(["0"])
    assert run.info.status == "FINISHED"
