"""The commands: `lrfinder <name>`, `python -m lrfinder <name>`, and the entry points of MLproject.

Records go to MLflow. `MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME` choose where, as for
MLflow itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

import lrfinder
from lrfinder.commands.comparing import compare
from lrfinder.commands.linking import setup
from lrfinder.commands.range_testing import range_test
from lrfinder.commands.running import DEBUG
from lrfinder.commands.searching import search
from lrfinder.commands.story import story
from lrfinder.commands.syncing import sync
from lrfinder.commands.training import train

__all__ = ["app", "main", "run_command"]

_HELP = (
    "A learning rate for each parameter group, a search that starts from it, and a record of both."
)
_EPILOG = (
    "Records go to MLflow: MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME choose where. "
    "--debug shows tracebacks."
)


def _underscores(name: str) -> str:
    """MLproject spells its parameters with underscores; options are found under both spellings."""
    return name.replace("-", "_")


# On the commands too, since each is also started by itself.
_CONTEXT: dict[str, Any] = {
    "token_normalize_func": _underscores,
    "help_option_names": ["-h", "--help"],
}

app = typer.Typer(
    name="lrfinder",
    help=_HELP,
    epilog=_EPILOG,
    context_settings=_CONTEXT,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
_COMMANDS: dict[str, Callable[..., None]] = {
    "main": story,
    "range_test": range_test,
    "train": train,
    "search": search,
    "compare": compare,
    "sync": sync,
    "setup": setup,
}
for _name, _function in _COMMANDS.items():
    app.command(_name, context_settings=_CONTEXT, epilog=_EPILOG)(_function)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"lrfinder {lrfinder.__version__}")
        raise typer.Exit


@app.callback(help=_HELP)
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Options before the command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; an option whose value is empty counts as not given.

    Args:
        argv: Without the program's name; None for that of this process.

    Returns:
        The exit status: 0, 1 after an error, 2 for a command line that is wrong, 130 after Ctrl-C,
        143 after SIGTERM.
    """
    return _run(typer.main.get_command(app), argv, "lrfinder")


def run_command(name: str, argv: Sequence[str] | None = None) -> int:
    """As `main`, of one command by itself: its options and its help alone."""
    group: Any = typer.main.get_command(app)
    return _run(group.commands[name], argv, f"python -m experiments.{name}")


def _run(program: Any, argv: Sequence[str] | None, name: str) -> int:
    words = lrfinder.given_options(sys.argv[1:] if argv is None else argv)
    before = os.environ.get(DEBUG)
    if "--debug" in words:
        words.remove("--debug")
        os.environ[DEBUG] = "1"
    try:
        program.main(args=words, prog_name=name)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        if before is None:
            os.environ.pop(DEBUG, None)
    return 0
