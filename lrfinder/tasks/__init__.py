"""Tasks: what to train. The loss, the data, and how to make a model, its groups and its optimizer afresh.

A range test needs a model, an optimizer, a loss and a loader. A search starts again and again, so
it needs the recipe of these: a `Task`.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import random
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from lrfinder.distributing import spread
from lrfinder.groups import group_names, param_groups

Batch = Any
LossFn = Callable[[nn.Module, Batch], Tensor]
Loader = Iterable[Batch]
LoaderOrMaker = Loader | Callable[[int], Loader]

# Where a shipped task's function lives. An import string, since the rooms above may not be
# imported from here.
SHIPPED = {
    "digits": "lrfinder.shipped:digits",
    "digits-finetune": "lrfinder.shipped:digits_finetune",
    "cifar10": "lrfinder.shipped:cifar10",
    "cifar10-resnet": "lrfinder.shipped:cifar10_resnet",
}


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """How one optimizer step is taken.

    Args:
        accumulation: Batches whose gradients are averaged into one optimizer step, >= 1.
        clip_norm: Gradients are scaled so that their total 2-norm is at most this, > 0; None for
            no clipping.
        autocast: dtype of `torch.autocast` for the forward pass (torch.bfloat16, torch.float16);
            None for none.
        scaler: A `torch.amp.GradScaler` for float16 gradients; None for none.
    """

    accumulation: int = 1
    clip_norm: float | None = None
    autocast: torch.dtype | None = None
    scaler: torch.amp.GradScaler | None = None

    def __post_init__(self) -> None:
        if self.accumulation < 1:
            raise ValueError(
                f"`accumulation >= 1` must hold, but got accumulation={self.accumulation}."
            )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(
                f"`clip_norm > 0` must hold, but got clip_norm={self.clip_norm}. Use None for no clipping."
            )


@dataclass(frozen=True, kw_only=True)
class Started:
    """A task made afresh from one seed: everything that a training needs."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    train_loader: Loader
    val_loader: Loader | None


@dataclass(frozen=True, kw_only=True)
class Task:
    """The recipe of a training: how to make it, what to minimise and what to measure.

    Args:
        name: A short name, for records.
        make_model: Makes a new model; called after the random states are seeded, so a seed fixes
            its weights.
        groups: The spec of `lrfinder.param_groups`.
        make_optimizer: Takes the list of param groups and makes a `torch.optim.Optimizer` of them.
        loss_fn: `loss_fn(model, batch)` -> scalar tensor.
        train_loader: An iterable of batches, or a function `(seed) -> iterable`.
        val_loader: As `train_loader`, of the batches to evaluate on; None for no evaluation.
        metrics: Name -> function `(model, batch)` -> scalar, averaged over samples; higher or
            lower as you like.
        num_epochs: Passes over the training data of a usual training, >= 1.
        options: How one optimizer step is taken.
        threads: CPU threads that torch should use, >= 1; None leaves torch's own number. The
            command line sets it. A tiny model trains fastest on one, above all where others use
            the machine too.
        description: One line on the data and the model, for reports.
    """

    name: str
    make_model: Callable[[], nn.Module]
    groups: Mapping[str, Any]
    make_optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
    loss_fn: LossFn
    train_loader: LoaderOrMaker
    val_loader: LoaderOrMaker | None = None
    metrics: Mapping[str, Callable[[nn.Module, Batch], Tensor]] = field(default_factory=dict)
    num_epochs: int = 10
    options: StepOptions = StepOptions()
    threads: int | None = None
    description: str = ""

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ValueError(
                f"`threads >= 1` must hold for task {self.name!r}, but got {self.threads}."
            )
        if self.num_epochs < 1:
            raise ValueError(
                f"`num_epochs >= 1` must hold for task {self.name!r}, but got {self.num_epochs}."
            )

    def start(self, seed: int, *, device: str | torch.device = "auto") -> Started:
        """Make model, optimizer and loaders afresh. The same seed on the same device gives the same training.

        Args:
            seed: Seeds python's, numpy's and torch's random states, and a loader's own generator.
            device: "auto" (CUDA, then MPS, then CPU) or anything that `torch.device` takes.

        Raises:
            ValueError: If a group pattern matches nothing, a trainable parameter is in no group,
                or the optimizer does not hold the groups that it was given.
        """
        place = resolve_device(device)
        seed_everything(seed)
        model = self.make_model().to(place)
        groups = param_groups(model, self.groups)
        optimizer = self.make_optimizer(groups)
        held = group_names(optimizer)
        if held != list(self.groups):
            raise ValueError(
                f"`make_optimizer` of task {self.name!r} must pass on the groups that it is given "
                f"({', '.join(self.groups)}), but its optimizer holds {held}."
            )
        train_loader = _make_loader(self.train_loader, seed, place)
        val_loader = (
            None if self.val_loader is None else _make_loader(self.val_loader, seed, place)
        )
        train_loader = spread(train_loader)
        return Started(
            model=model, optimizer=optimizer, train_loader=train_loader, val_loader=val_loader
        )


def planned_steps(started: Started, num_epochs: int, options: StepOptions) -> int | None:
    """Optimizer steps of a training of so many epochs; None where the loader has no length.

    Law: num_epochs * ceil(batches / accumulation).
    """
    if not isinstance(started.train_loader, Sized):
        return None
    return num_epochs * math.ceil(len(started.train_loader) / options.accumulation)


def _make_loader(loader: LoaderOrMaker, seed: int, device: torch.device) -> Loader:
    # A loader may be callable too; what can be iterated is one.
    made: Any = loader if isinstance(loader, Iterable) else loader(seed)
    # A loader whose data are resident tensors goes to the device as a whole; a DataLoader has no
    # `to`.
    if hasattr(made, "to"):
        made = made.to(device)
    generator = getattr(made, "generator", None)
    if isinstance(generator, torch.Generator):
        generator.manual_seed(seed)
    return cast("Loader", made)


class supervised:  # noqa: N801 - reads as a function: loss_fn = supervised(nn.CrossEntropyLoss())
    """The loss of `(inputs, targets)` batches: criterion(model(inputs), targets).

    Args:
        criterion: Takes outputs and targets and returns a scalar, as `nn.CrossEntropyLoss()` does
            (a mean over the samples of the batch).

    Example:
        >>> loss_fn = supervised(nn.MSELoss())
        >>> float(loss_fn(nn.Identity(), (torch.zeros(4), torch.ones(4))))
        1.0
    """

    def __init__(self, criterion: Callable[[Any, Any], Tensor]) -> None:
        self.criterion = criterion

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Loss of one batch, a scalar tensor."""
        inputs, targets = _pair(batch)
        return self.criterion(model(inputs), targets)

    def __repr__(self) -> str:
        """The criterion in words."""
        return f"supervised({self.criterion!r})"


def accuracy(model: nn.Module, batch: Batch) -> Tensor:
    """Share of samples whose largest output is the target: mean(argmax(model(inputs), dim=1) == targets), in [0, 1].

    Args:
        model: Gives scores of shape (N, C).
        batch: `(inputs, targets)`, targets of shape (N,) with class indices.
    """
    inputs, targets = _pair(batch)
    correct: Tensor = model(inputs).argmax(dim=1) == targets
    return correct.float().mean()


def _pair(batch: Batch) -> tuple[Any, Any]:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise TypeError(
            "`supervised` and `accuracy` take batches of the form (inputs, targets), but got "
            f"{type(batch).__name__}. For other batches give a function loss_fn(model, batch) of your own."
        )
    return batch[0], batch[1]


# -- devices, seeds and batches
# -----------------------------------------------------------------------------------


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The device to train on: "auto" is CUDA where there is one, then MPS, then the CPU.

    Raises:
        ValueError: If torch does not know the device, or it is not there.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"`device` must be 'auto' or a device of torch, but got {device!r}."
        ) from error
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(place.type, True):
        raise ValueError(
            f"`device` must be there, but torch sees no {place.type}. Use 'auto' or 'cpu'."
        )
    return place


def seed_everything(seed: int) -> None:
    """Seed the random states of python, numpy and torch (all devices)."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"`0 <= seed < 2**32` must hold (numpy's range), but got seed={seed}.")
    random.seed(seed)
    np.random.seed(seed)
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        # For devices that are not there torch would keep a stack trace at each call.
        torch.default_generator.manual_seed(seed)


def move_to(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on the device: tensors, mappings, lists, tuples, and whatever has a `to`."""
    if isinstance(batch, Tensor):
        return batch if batch.device == device else batch.to(device, non_blocking=True)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(move_to(part, device) for part in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(move_to(part, device) for part in batch)
    if hasattr(batch, "to") and not isinstance(batch, type):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: move_to(part, device) for key, part in batch.items()}
    return batch


def batch_size(batch: Batch) -> int:
    """Number of samples: the length of the first tensor found in the batch; 1 where there is none.

    Example:
        >>> batch_size({"ids": torch.zeros(8, 3), "labels": torch.zeros(8)})
        8
    """
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else 1
    parts: Sequence[Any] = []
    if isinstance(batch, Mapping) or hasattr(batch, "values"):
        parts = list(batch.values())
    elif isinstance(batch, (list, tuple)):
        parts = batch
    for part in parts:
        if isinstance(part, (Tensor, Mapping, list, tuple)):
            return batch_size(part)
    return 1


# -- tasks by name
# ------------------------------------------------------------------------------------------------


def load_task(name: str, **options: Any) -> Task:
    """The task of a name, for command lines.

    Args:
        name: A shipped task (`digits`, `digits-finetune`, `cifar10`, `cifar10-resnet`), or
            `module:function`, or `file.py:function` of your own: a function that returns a `Task`.
            Modules are found from the current directory too.
        options: Passed on to that function; None means not given.

    Raises:
        ValueError: If there is no such task, or its function does not take an option.
        TypeError: If the function returns something else than a `Task`.
    """
    function = _find_function(SHIPPED.get(name, name), name)
    given = {key: value for key, value in options.items() if value is not None}
    accepted = inspect.signature(function).parameters
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values())
    unknown = [key for key in given if key not in accepted and not takes_all]
    if unknown:
        takes = f"it takes {', '.join(accepted)}" if accepted else "it takes no options"
        raise ValueError(
            f"Task {name!r} must take the option `{unknown[0]}` for it to be given, but {takes}."
        )
    task = function(**given)
    if not isinstance(task, Task):
        raise TypeError(
            f"The function of task {name!r} must return a Task, but got {type(task).__name__}."
        )
    return task


def _find_function(target: str, name: str) -> Callable[..., Any]:
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
