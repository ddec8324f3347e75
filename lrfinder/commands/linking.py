"""The command `setup`: plain `mlflow run .` uses the environment at hand."""

from __future__ import annotations

from typing import Annotated

import typer

import lrfinder
from lrfinder.commands.running import command, console


@command
def setup(
    project: Annotated[str, typer.Option(help="The folder that holds the MLproject file.")] = ".",
    replace: Annotated[
        bool, typer.Option("--replace", help="Delete an environment that MLflow built there.")
    ] = False,
) -> None:
    """Let plain `mlflow run .` use this environment, with no flag and no pyenv."""
    place = lrfinder.link_environment(project, replace=replace)
    console().print(
        f"`mlflow run {project}` now uses this environment ({place}).",
        markup=False,
        soft_wrap=True,
    )
