"""Progressing: a bar for what takes long, in a terminal or a notebook. Nothing where neither is there."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

# The stage, what is done in all (steps, trials), and the most that will be.
Progress = Callable[[str, int, int], None]
FORMAT = "{desc}|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]"


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar on the standard error; call what it gives after each part of the work."""
    with warnings.catch_warnings():
        # A notebook without ipywidgets: tqdm says so, and draws its bar as text.
        warnings.filterwarnings("ignore", message="IProgress not found")
        from tqdm.auto import tqdm

    # tqdm's None: none where the standard error is no terminal.
    hidden = False if in_notebook() else None
    with tqdm(total=0, bar_format=FORMAT, leave=False, disable=hidden) as bar:
        drawn = ""

        def show(stage: str, done: int, total: int) -> None:
            nonlocal drawn
            bar.total = total
            bar.update(done - bar.n)
            if stage != drawn:
                drawn = stage
                bar.set_description(stage)  # which draws at once

        yield show


def shown(progress: Progress | bool | None) -> AbstractContextManager[Progress | None]:
    """What a function's argument `progress` asks for: a bar (True), a caller's own function, or nothing."""
    if isinstance(progress, bool):
        return progress_bar() if progress else nullcontext()
    return nullcontext(progress)
