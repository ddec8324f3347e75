"""Running: what commands have in common: exit codes, a clear line for an error, progress."""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from types import FrameType
from typing import Any, ParamSpec

import typer
from rich.console import Console
from tqdm import tqdm
from tqdm.contrib import DummyTqdmFile

import lrfinder

P = ParamSpec("P")

INTERRUPTED = 130  # 128 + SIGINT, as shells say it
TERMINATED = 143  # 128 + SIGTERM

# Set for `--debug`: errors are shown with their traceback.
DEBUG = "LRFINDER_DEBUG"


class Terminated(KeyboardInterrupt):
    """SIGTERM ends a command as Ctrl-C does: its run is KILLED and keeps what was recorded."""


def console() -> Console:
    """Where results are printed; wide enough for a table where it is a file and not a terminal."""
    fixed = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120
    return Console(width=fixed, soft_wrap=False, quiet=not lrfinder.is_main())


def recorder(run_name: str) -> Any:
    """A run in MLflow, of the first of the processes that train together; the others have none."""
    return lrfinder.MlflowRecorder(run_name=run_name) if lrfinder.is_main() else (
        lrfinder.NullRecorder()
    )  # fmt: skip


def command(function: Callable[P, None]) -> Callable[P, None]:
    """A command whose errors are one red line, and which SIGTERM ends as Ctrl-C does.

    Under `torchrun` the processes are joined.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        # MLflow tells of each table that it makes in a fresh store.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        try:
            with _sigterm_raised(), lrfinder.process_group():
                function(*args, **kwargs)
        except KeyboardInterrupt as error:
            terminated = isinstance(error, Terminated)
            _complain("terminated." if terminated else "interrupted.", error)
            raise typer.Exit(TERMINATED if terminated else INTERRUPTED) from None
        except Exception as error:
            if os.environ.get(DEBUG) or not _is_users(error):
                raise
            _complain(str(error) or type(error).__name__, error)
            raise typer.Exit(1) from None

    return run


def _is_users(error: Exception) -> bool:
    """Whether the message alone tells a user what to change."""
    kinds = (ValueError, TypeError, OSError, ImportError)
    return isinstance(error, kinds) or type(error).__module__.startswith("lrfinder")


def _complain(message: str, error: BaseException) -> None:
    stderr = Console(stderr=True, soft_wrap=True, highlight=False)
    stderr.print("lrfinder: ", style="red", end="")
    stderr.print(message, style="red", markup=False)
    for note in getattr(error, "__notes__", ()):
        stderr.print(note, markup=False)


@contextmanager
def _sigterm_raised() -> Iterator[None]:
    """SIGTERM raises `Terminated` in here, so that `finally` and `with` do their work."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals belong to the main thread
        return

    def handle(number: int, frame: FrameType | None) -> None:
        raise Terminated("SIGTERM")

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[str], None]]:
    """A progress bar; call what it gives after each part. Nothing without a terminal."""
    hidden = None if lrfinder.is_main() else True  # tqdm's None: where there is no terminal
    with (
        tqdm(desc=title, total=total, leave=False, disable=hidden) as bar,
        redirect_stdout(DummyTqdmFile(sys.stdout)),  # what is printed comes above the bar
    ):

        def advance(note: str = "") -> None:
            bar.set_postfix_str(note, refresh=False)
            bar.update()

        yield advance


def ui_hint(recorder: Any) -> str:
    """The command that opens MLflow's pages on a run, and the addresses of those that matter."""
    if not lrfinder.is_main():
        return ""
    uri, run_id = str(recorder.tracking_uri), recorder.run_id
    if run_id is None:
        return f"{uri} has not answered; the record waits in {recorder.spool}"
    page = f"#/experiments/{recorder.experiment_id}/runs/{run_id}"
    is_server = uri.startswith(("http://", "https://"))
    lines = [f"{uri.rstrip('/')}/{page}"] if is_server else [
        f"mlflow ui --backend-store-uri {uri}", f"then http://127.0.0.1:5000/{page}"
    ]  # fmt: skip
    return "\n".join([*lines, *(f"{title}: {link}" for title, link in recorder.links.items())])
