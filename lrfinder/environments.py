"""The environments in which ``mlflow run`` runs a project.

``mlflow run .`` without ``--env-manager`` wants an environment of its own, built with pyenv.
Before it builds one it looks for the folder ``$MLFLOW_ENV_ROOT/mlflow-<hash>`` (the hash of
python_env.yaml and the Python version), and where that exists it only sources ``bin/activate`` in
it. `link_environment` puts a folder there whose ``bin/activate`` leads to the environment in which
this package is installed: no pyenv is needed, and torch is not installed a second time.

MLflow gives the same folder to every environment manager. So that ``--env-manager uv`` still gets
an isolated environment after that, our ``bin/activate`` runs this file, which asks the run's
record for the manager and, for uv, lets MLflow build an environment beside the folder.

What is used of MLflow here and is not public: ``_PythonEnv``, ``_get_virtualenv_name``,
``_create_virtualenv`` and ``load_project``, the same from version 3.10 to 3.17. Where they
changed, `EnvironmentLinkError` says so.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

_MARK = "# Made by `lrfinder setup`"
_BUILT = ".built-by-lrfinder"


class EnvironmentLinkError(RuntimeError):
    """The environment for ``mlflow run`` could not be linked; the message says what helps."""


def given_options(argv: Sequence[str]) -> list[str]:
    """Drop the options whose value is the empty string: in an MLproject that means "not given".

    An MLproject's command names every option: one that nobody set arrives as ``--data ''``.

    Args:
        argv: A command line, without the program's name.

    Returns:
        The command line without ``--name ''`` and ``--name=``; a positional empty string stays.

    Examples:
        >>> given_options(["train", "--data", "", "--seed", "0", "--lrs="])
        ['train', '--seed', '0']
    """
    kept: list[str] = []
    words = list(argv)
    position = 0
    while position < len(words):
        word = words[position]
        if word == "--":
            return kept + words[position:]
        if (
            word.startswith("--")
            and "=" not in word
            and words[position + 1 : position + 2] == [""]
        ):
            position += 2
            continue
        if not re.fullmatch(r"--[^=]+=", word):
            kept.append(word)
        position += 1
    return kept


def link_environment(project: str | Path = ".", *, replace: bool = False) -> Path:
    """Let plain ``mlflow run`` use the environment that runs this function.

    Args:
        project: The folder that holds ``MLproject`` and ``python_env.yaml``. Every folder, commit
            or git URL with the same ``python_env.yaml`` and Python version shares the link.
        replace: Delete an environment that MLflow itself has built in that place.

    Returns:
        The folder that MLflow looks for, below ``$MLFLOW_ENV_ROOT`` (default ``~/.mlflow/envs``).
        It holds one small script and may be deleted at any time. Calling again is harmless: the
        environment of the last call is linked.

    Raises:
        FileNotFoundError: `project` holds no ``MLproject``.
        EnvironmentLinkError: This environment lacks what ``python_env.yaml`` lists, MLflow built
            an environment in that place and `replace` is false, the system is not POSIX, or
            MLflow changed.
    """
    folder = Path(project).resolve()
    if not any(item.name.lower() == "mlproject" for item in folder.iterdir()):
        raise FileNotFoundError(
            "`project` must be a folder that holds an MLproject file, but got "
            f"{os.fspath(project)!r}. Run this in the project's folder."
        )
    if os.name != "posix":
        raise EnvironmentLinkError(
            "Linking the environment needs a POSIX system (bash sources a script), but this is "
            f"{sys.platform}. Use `mlflow run . --env-manager local`."
        )
    python_env = _python_env(folder)
    _check_installed(python_env.dependencies)
    place = _place(python_env, folder)
    script = place / "bin" / "activate"
    if place.is_symlink():
        place.unlink()
    elif place.exists() and not _is_link(script):
        if not replace:
            raise EnvironmentLinkError(
                "The place of the link must be free, but MLflow has built an environment there: "
                f"{place}. Plain `mlflow run` works already, and runs in that one. To have it run "
                "in this environment, delete that one: `lrfinder setup --replace`."
            )
        shutil.rmtree(place)
    _write_whole(script, _activation_text())
    return place


def _is_link(script: Path) -> bool:
    return script.is_file() and script.read_text(errors="replace").startswith(_MARK)


def _python_env(folder: Path) -> Any:
    """What MLflow reads of the project's environment: its Python version and its dependencies."""
    try:
        from mlflow.projects.utils import load_project
        from mlflow.utils.environment import _PythonEnv

        path = load_project(str(folder)).env_config_path  # type: ignore[no-untyped-call]
        return _PythonEnv.from_yaml(path) if path else _PythonEnv()  # type: ignore[no-untyped-call]
    except (ImportError, AttributeError, TypeError) as error:
        raise _not_understood(error) from error


def _place(python_env: Any, folder: Path) -> Path:
    """The folder in which MLflow looks for the environment."""
    try:
        from mlflow.environment_variables import MLFLOW_ENV_ROOT
        from mlflow.utils.virtualenv import _get_virtualenv_name

        root = Path(MLFLOW_ENV_ROOT.get())  # type: ignore[no-untyped-call]
        return root / str(_get_virtualenv_name(python_env, folder))  # type: ignore[no-untyped-call]
    except (ImportError, AttributeError, TypeError) as error:
        raise _not_understood(error) from error


def _not_understood(error: Exception) -> EnvironmentLinkError:
    return EnvironmentLinkError(
        "MLflow must name a project's environment as versions 3.10 to 3.17 do, but version "
        f"{metadata.version('mlflow')} does not ({error}). Use `mlflow run . --env-manager local`."
    )


def _check_installed(requirements: Sequence[str]) -> None:
    """Refuse to link an environment in which the project could not run."""
    from packaging.requirements import InvalidRequirement, Requirement

    lacking = []
    for text in requirements:
        try:
            wanted = Requirement(text)
        except InvalidRequirement:
            continue  # a path, a URL or a pip option: only pip can tell
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        try:
            found = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            lacking.append(f"{text} (not installed)")
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            lacking.append(f"{text} (installed: {found})")
    if lacking:
        raise EnvironmentLinkError(
            "The environment must hold what python_env.yaml lists, but it lacks "
            f"{', '.join(lacking)}. Install the project in it: `pip install -e .`."
        )


def _activation_text() -> str:
    """The script that MLflow's bash sources in place of a virtual environment's own."""
    python = shlex.quote(sys.executable)
    here = shlex.quote(os.fspath(Path(__file__).resolve()))
    return (
        f"{_MARK}: `mlflow run` sources this file in place of building an environment.\n"
        "# Delete the folder that holds it to have MLflow build one.\n"
        f"if ! _lrfinder_commands=$({python} -P {here}); then\n"
        "    echo 'The environment linked by `lrfinder setup` cannot be entered: '"
        "'run it again in the environment of your choice.' >&2\n"
        "    return 1\n"
        "fi\n"
        'eval "$_lrfinder_commands"\n'
    )


def _write_whole(path: Path, text: str) -> None:
    """Write by way of a temporary name, for a run may source the file at this moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def _activation_commands() -> str:
    """The shell commands that enter the environment of the current run: this one, or uv's."""
    from mlflow import MlflowClient
    from mlflow.utils.mlflow_tags import MLFLOW_PROJECT_ENV

    run = MlflowClient().get_run(os.environ["MLFLOW_RUN_ID"])
    if run.data.tags.get(MLFLOW_PROJECT_ENV) == "uv":
        script = _isolated_environment(Path.cwd()) / "bin" / "activate"
        return f"source {shlex.quote(os.fspath(script))}"
    # Not the venv's own script: this way serves a conda or a system Python as well.
    lines = [f'export PATH={shlex.quote(os.fspath(Path(sys.executable).parent))}:"$PATH"']
    if sys.prefix != sys.base_prefix:
        lines.append(f"export VIRTUAL_ENV={shlex.quote(sys.prefix)}")
    return "\n".join([*lines, "unset PYTHONHOME"])


def _isolated_environment(folder: Path) -> Path:
    """Have MLflow build uv's environment beside the link, once, and return its folder."""
    from filelock import FileLock
    from mlflow.utils.virtualenv import _create_virtualenv

    python_env = _python_env(folder)
    place = _place(python_env, folder)
    place = place.with_name(f"{place.name}-uv")
    with FileLock(f"{place}.lock"):
        # MLflow takes any folder for a finished environment, even one whose making was killed.
        if place.exists() and not (place / _BUILT).exists():
            shutil.rmtree(place)
        # What the builder prints must not become shell commands.
        saved = os.dup(1)
        os.dup2(2, 1)
        try:
            _create_virtualenv(folder, python_env, place, env_manager="uv")
        finally:
            os.dup2(saved, 1)
            os.close(saved)
        (place / _BUILT).touch()
    return place


if __name__ == "__main__":
    print(_activation_commands())
