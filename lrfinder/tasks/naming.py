"""Naming: the function that a task's name on a command line stands for."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

# Where a shipped task's function lives. An import string, since the rooms above may not be
# imported from here.
SHIPPED = {
    "digits": "lrfinder.shipped:digits",
    "digits-finetune": "lrfinder.shipped:digits_finetune",
    "cifar10": "lrfinder.shipped:cifar10",
    "cifar10-resnet": "lrfinder.shipped:cifar10_resnet",
}


def find_function(name: str) -> Callable[..., Any]:
    """The function of a shipped name, of `module:function`, or of `file.py:function`.

    Raises:
        ValueError: If there is none.
    """
    target = SHIPPED.get(name, name)
    place, _, function_name = target.rpartition(":")
    if not place or not function_name:
        raise ValueError(
            f"`task` must be one of {', '.join(SHIPPED)}, or 'module:function', or 'file.py:function', "
            f"but got {name!r}."
        )
    module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise ValueError(
            f"`{function_name}` must be a function of {place}, but it has none of that name. "
            f"Its functions: {', '.join(known) or 'none'}."
        )
    return cast("Callable[..., Any]", function)


def _load_module(place: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        # A console script does not have the current directory on its path, `python -m` does: make
        # them agree.
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not place.startswith(error.name):
            raise  # the user's module was found; one that it imports was not, and its own message says so
        raise ValueError(
            f"`task` must name a module that can be imported, but there is no module {place!r} here "
            f"({Path.cwd()}) or among the installed packages."
        ) from error


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(
            f"`task` must name a file that exists, but there is no file {str(path)!r}."
        )
    # A name of its own: a user's `json.py` must not take the place of the real one.
    name = f"lrfinder_task_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(
            f"`task` must name a Python file, but {str(path)!r} cannot be loaded as one."
        )
    module = importlib.util.module_from_spec(spec)
    # Registered before it runs, so that pickling and dataclasses inside it find their module.
    sys.modules[name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module
