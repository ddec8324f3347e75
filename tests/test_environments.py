"""The environment that plain ``mlflow run`` uses, and the command lines of an MLproject."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lrfinder.environments import EnvironmentLinkError, given_options, link_environment


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project that needs only what is installed, and an empty place for its environment."""
    monkeypatch.setenv("MLFLOW_ENV_ROOT", str(tmp_path / "envs"))
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "MLproject").write_text("name: toy\n")
    (folder / "python_env.yaml").write_text('dependencies:\n  - "torch>=2.0"\n')
    return folder


@pytest.mark.parametrize(
    ("argv", "given"),
    [
        ([], []),
        (["train", "--data", "", "--seed", "0"], ["train", "--seed", "0"]),
        (["--data", ""], []),
        (["--data="], []),
        (["--lrs", "", "--gamma", "", "--task", "a b"], ["--task", "a b"]),
        (["--name", "--data", ""], ["--name"]),
        (["sync", ""], ["sync", ""]),
        (["--data=x=", "--flag"], ["--data=x=", "--flag"]),
        (["--", "--data", ""], ["--", "--data", ""]),
    ],
)
def test_an_empty_option_was_not_given(argv: list[str], given: list[str]) -> None:
    assert given_options(argv) == given


def test_link_is_where_mlflow_looks(project: Path) -> None:
    from mlflow.utils.environment import _PythonEnv
    from mlflow.utils.virtualenv import _create_virtualenv, _get_virtualenv_name

    place = link_environment(project)
    python_env = _PythonEnv.from_yaml(project / "python_env.yaml")
    assert place.name == _get_virtualenv_name(python_env, project)
    assert place.parent == project.parent / "envs"
    # MLflow itself: the folder is there, so it builds nothing and says what bash is to source.
    command = _create_virtualenv(project, python_env, place, env_manager="virtualenv")
    assert command == f"source {place}/bin/activate"


def test_link_again_links_this_environment(project: Path) -> None:
    script = link_environment(project) / "bin" / "activate"
    text = script.read_text()
    assert sys.executable in text
    script.write_text(text.replace(sys.executable, "/nowhere/python"))
    assert link_environment(project) / "bin" / "activate" == script
    assert script.read_text() == text
    assert [path.name for path in script.parent.iterdir()] == ["activate"]


def test_what_mlflow_built_is_replaced_only_on_request(project: Path) -> None:
    place = link_environment(project)
    (place / "bin" / "activate").write_text("# a virtual environment's own script\n")
    (place / "lib").mkdir()
    with pytest.raises(EnvironmentLinkError, match="setup --replace"):
        link_environment(project)
    assert (place / "lib").exists()
    link_environment(project, replace=True)
    assert not (place / "lib").exists()
    assert sys.executable in (place / "bin" / "activate").read_text()


def test_a_link_to_nowhere_says_what_helps(project: Path) -> None:
    script = link_environment(project) / "bin" / "activate"
    script.write_text(script.read_text().replace(sys.executable, "/nowhere/python"))
    done = subprocess.run(
        ["bash", "-c", f"source {script} && echo entered"], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "entered" not in done.stdout
    assert "lrfinder setup" in done.stderr


def test_project_must_hold_an_mlproject(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="must be a folder that holds an MLproject file"):
        link_environment(tmp_path)
    with pytest.raises(FileNotFoundError, match="no-such"):
        link_environment(tmp_path / "no-such")


def test_environment_must_hold_what_the_project_needs(project: Path) -> None:
    (project / "python_env.yaml").write_text(
        'dependencies:\n  - "torch>=99"\n  - "no-such-package"\n  - "x; python_version < \'3\'"\n'
    )
    with pytest.raises(
        EnvironmentLinkError, match=r"lacks torch>=99 .*, no-such-package"
    ) as caught:
        link_environment(project)
    assert "pip install -e ." in str(caught.value)
    assert not (project.parent / "envs").exists()


@pytest.mark.parametrize("name", ["_get_virtualenv_name", "_PythonEnv"])
def test_a_changed_mlflow_is_noticed(
    project: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import mlflow.utils.environment
    import mlflow.utils.virtualenv

    module = mlflow.utils.environment if name == "_PythonEnv" else mlflow.utils.virtualenv
    monkeypatch.delattr(module, name)
    with pytest.raises(
        EnvironmentLinkError, match=r"but version .* Use `mlflow run . --env-manager"
    ):
        link_environment(project)
