"""Booting: processes of this package's own, which load a part of it and not torch with the rest."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# A package is its folder here: what its `__init__` would load is not needed.
_BOOT = """
import importlib, sys, types
root, packages, place, *arguments = sys.argv[1:]
for name in packages.split(","):
    package = sys.modules[name] = types.ModuleType(name)
    package.__path__ = ["/".join([root, *name.split(".")])]
module, function = place.split(":")
getattr(importlib.import_module(module), function)(*arguments)
"""


def start_python(
    place: str,
    arguments: Sequence[str],
    *,
    fake: Sequence[str],
    environment: Mapping[str, str] | None = None,
    **options: Any,
) -> subprocess.Popen[bytes]:
    """Start a process that calls a function of this package.

    It has a session of its own on the terminal: Ctrl-C and a hangup are for the training alone.

    Args:
        place: "module:function".
        arguments: Of the function.
        fake: Packages whose `__init__` is not to be run.
        environment: Variables beside those of this process; by default none.
        options: Of `subprocess.Popen`.

    Raises:
        OSError: If this Python cannot start another.
    """
    if not sys.executable:
        raise OSError("this Python does not know its own executable")
    ours = {k: v for k, v in os.environ.items() if k != "MLFLOW_RUN_ID"}
    root = str(Path(__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-c", _BOOT, root, ",".join(fake), place, *arguments],
        env=ours | {"OMP_NUM_THREADS": "1"} | dict(environment or {}),
        start_new_session=True,
        **options,
    )
