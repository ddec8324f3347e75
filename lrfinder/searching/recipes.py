"""Recipes: the task of a trial, where the trial chooses more than learning rates and a schedule."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lrfinder.groups import set_learning_rate
from lrfinder.schedules import Spec
from lrfinder.tasks import Task
from lrfinder.traces import Trace
from lrfinder.training import OnEpoch, StepRecorder, train

TaskMaker = Callable[..., Task]


def train_task(
    task: Task | TaskMaker,
    *,
    lrs: float | Mapping[str, float] | None = None,
    schedule: Spec | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    num_epochs: int | None = None,
    recorder: StepRecorder | None = None,
    checkpoint: str | Path | None = None,
    on_epoch: OnEpoch | None = None,
    verbose: bool = False,
) -> Trace:
    """Train a task, made afresh from a seed, and return what happened.

    Args:
        task: What to train, or a function that makes it of options.
        lrs: One LR for all groups, or one for each or for some; None for the optimizer's own.
        schedule: A spec of `lrfinder.build_scheduler`; None for constant LRs.
        options: Of the optimizer, or of the function that makes the task, as a search chose them.
        seed: Of the weights, the order of the batches and all else that is random.
        device: As in `Task.start`.
        num_epochs: By default the task's.
        recorder: As in `lrfinder.train`.
        checkpoint: As in `lrfinder.train`.
        on_epoch: As in `lrfinder.train`.
        verbose: As in `lrfinder.train`.
    """
    task = Recipe(task).task(options or {})
    started = task.start(seed, device=device)
    if lrs is not None:
        set_learning_rate(started.optimizer, lrs)
    return train(
        started.model,
        started.optimizer,
        task.loss_fn,
        started.train_loader,
        num_epochs=task.num_epochs if num_epochs is None else num_epochs,
        scheduler=schedule,
        val_loader=started.val_loader,
        metrics=task.metrics,
        recorder=recorder,
        checkpoint=checkpoint,
        options=task.options,
        seed=seed,
        on_epoch=on_epoch,
        verbose=verbose,
    )


class Recipe:
    """Makes the task of some options.

    An option that the function takes goes to it; any other is one of the optimizer: of all groups,
    or of one, as "weight_decay/head".

    Args:
        task: A task, or a function that makes one of options, all of which have defaults.

    Raises:
        TypeError: If the function returns something else.
    """

    def __init__(self, task: Task | TaskMaker) -> None:
        self._maker = None if isinstance(task, Task) else task
        self.base = task if isinstance(task, Task) else _made(task, {})
        self._last: tuple[dict[str, Any], Task] = ({}, self.base)

    def task(self, options: Mapping[str, Any]) -> Task:
        """The task of these options; that of none is `base`.

        Raises:
            TypeError: If the function returns something else.
        """
        ours = {name: value for name, value in options.items() if self._takes(name)}
        rest = {name: value for name, value in options.items() if name not in ours}
        if ours != self._last[0]:  # the data of the last one are not made again
            assert self._maker is not None
            self._last = ours, _made(self._maker, ours)
        return _with_optimizer_options(self._last[1], rest)

    def _takes(self, name: str) -> bool:
        if self._maker is None:
            return False
        accepted = inspect.signature(self._maker).parameters
        takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values())
        return takes_all or name in accepted


def _made(maker: TaskMaker, options: Mapping[str, Any]) -> Task:
    task = maker(**options)
    if not isinstance(task, Task):
        raise TypeError(
            f"`task` must be a Task or a function that returns one, but it returned "
            f"{type(task).__name__}."
        )
    return task


def _with_optimizer_options(task: Task, options: Mapping[str, Any]) -> Task:
    if not options:
        return task

    def make_optimizer(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        optimizer = task.make_optimizer(groups)
        for name, value in options.items():
            option, _, group_name = name.partition("/")
            groups_of = [
                group
                for group in optimizer.param_groups
                if not group_name or group.get("name") == group_name
            ]
            if option not in optimizer.defaults or option == "lr" or not groups_of:
                known = [key for key in optimizer.defaults if key != "lr"]
                raise ValueError(
                    "What `hparams` returns must be a parameter of the search, an argument of the "
                    f"function that makes the task, or an option of {type(optimizer).__name__} "
                    f"({', '.join(known)}; of one group as 'weight_decay/head'), "
                    f"but got {name!r}."
                )
            for group in groups_of:
                group[option] = value
        return optimizer

    return replace(task, make_optimizer=make_optimizer)
