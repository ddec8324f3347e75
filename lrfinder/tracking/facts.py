"""Facts: what ran where, with which versions, from which commit: so that a run can be repeated."""

from __future__ import annotations

import functools
import os
import platform
import shlex
import subprocess
import sys
import threading
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

GIT_TIMEOUT = 20.0  # seconds; the state of a large repository on a slow disk takes some


@functools.cache
def run_facts() -> dict[str, str]:
    """Tags that are known at once: versions, the device, the command that repeats the run."""
    try:
        own = version("lrfinder")
    except PackageNotFoundError:
        own = "not installed"
    facts = {
        "lrfinder.version": own,
        "lrfinder.command": _command(),
        "lrfinder.python": platform.python_version(),
        "lrfinder.torch": str(torch.__version__),
        "lrfinder.host": platform.node(),
    }
    if torch.version.cuda is not None:
        facts["lrfinder.cuda"] = torch.version.cuda
    if torch.cuda.is_available():
        facts["lrfinder.device"] = torch.cuda.get_device_name()
    return facts


class SlowFacts:
    """Tags that take a while, so that a thread looks for them.

    The git commit, whether files differ from it, the GPU's driver.
    """

    def __init__(self) -> None:
        self._found: dict[str, str] = {}
        self._thread = threading.Thread(target=self._look, name="lrfinder-facts", daemon=True)
        self._thread.start()

    def get(self, *, timeout: float = 0.0) -> dict[str, str] | None:
        """The tags; None where they are still looked for after `timeout` seconds."""
        self._thread.join(timeout)
        return None if self._thread.is_alive() else dict(self._found)

    def _look(self) -> None:
        found = _git_facts(Path.cwd())
        main = getattr(sys.modules.get("__main__"), "__file__", None)
        if not found and main is not None:
            found = _git_facts(Path(main).resolve().parent)
        if torch.cuda.is_available():
            found["lrfinder.driver"] = _driver()
        self._found = found


def _driver() -> str:
    try:
        import pynvml

        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except Exception as error:  # not installed, or no NVIDIA driver: it has its own exceptions
        return f"unknown: {error}"


def _command() -> str:
    """As it was typed; the interpreter by its name alone, for another machine has another."""
    words = list(sys.orig_argv) or [sys.executable]
    return shlex.join([Path(words[0]).name, *words[1:]])


def _git_facts(folder: Path) -> dict[str, str]:
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {}
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    facts = {"lrfinder.git_commit": commit}
    if changed is not None:
        facts["lrfinder.git_dirty"] = str(bool(changed)).lower()
    return facts


def _git(folder: Path, *words: str) -> str | None:
    """What git says; None where there is no git or no repository."""
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}  # a reader disturbs nobody
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            timeout=GIT_TIMEOUT,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
