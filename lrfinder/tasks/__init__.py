"""Tasks: what to train. The loss, the data, and how to make a model, its groups and its optimizer afresh.

A range test needs a model, an optimizer, a loss and a loader. A search starts again and again, so
it needs the recipe of these: a `Task`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from lrfinder.distributing import spread
from lrfinder.groups import group_names, param_groups
from lrfinder.tasks.losses import accuracy, supervised
from lrfinder.tasks.naming import SHIPPED, find_function
from lrfinder.tasks.placing import Batch, batch_size, move_to, resolve_device, seed_everything

__all__ = [
    "SHIPPED",
    "Batch",
    "Loader",
    "LossFn",
    "Started",
    "StepOptions",
    "Task",
    "accuracy",
    "batch_size",
    "load_task",
    "move_to",
    "planned_steps",
    "resolve_device",
    "seed_everything",
    "supervised",
]

LossFn = Callable[[nn.Module, Batch], Tensor]
Loader = Iterable[Batch]
LoaderOrMaker = Loader | Callable[[int], Loader]


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
        compile: Backend of `torch.compile` ("inductor", "cudagraphs") for the steps that replicas
            take in lockstep; None for none. It takes seconds to minutes before the first step, and
            again for each number of replicas in step. A single replica is not compiled: give a
            compiled model for that.
        graph: Whether steps of many replicas together may be taken by CUDA graphs, on a CUDA device:
            where a captured step is found to be the same and faster. Python runs once, when it is
            captured, so the loss must do the same at each step. It has not been run on a GPU yet.
    """

    accumulation: int = 1
    clip_norm: float | None = None
    autocast: torch.dtype | None = None
    scaler: torch.amp.GradScaler | None = None
    compile: str | None = None
    graph: bool = False

    def __post_init__(self) -> None:
        if self.accumulation < 1:
            raise ValueError(
                f"`accumulation >= 1` must hold, but got accumulation={self.accumulation}."
            )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(
                f"`clip_norm > 0` must hold, but got clip_norm={self.clip_norm}. Use None for no clipping."
            )
        if self.compile is not None:
            backends = torch.compiler.list_backends(exclude_tags=())
            if self.compile not in backends:
                raise ValueError(
                    f"`compile` must be a backend of torch.compile ({', '.join(backends)}), "
                    f"but got compile={self.compile!r}."
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
    function = find_function(name)
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
