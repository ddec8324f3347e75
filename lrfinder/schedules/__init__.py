"""Schedules at work: what sets the learning rates while a training runs, and their table before.

Nothing here computes a learning rate: `lr_table` too reads it off one of torch's schedulers.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lrfinder.groups import checked_lr, group_names, lr_groups
from lrfinder.groups.patterns import quoted
from lrfinder.schedules.schedulers import (
    AnyScheduler,
    GroupSchedulers,
    build_scheduler,
    check_metric,
    step_scheduler,
    try_out,
    validate_spec,
)
from lrfinder.schedules.specs import Spec, as_json, is_per_group, parsed, plain, scheduler_names

__all__ = [
    "GroupSchedulers",
    "LRTable",
    "ScheduleDriver",
    "Spec",
    "StepSchedule",
    "build_scheduler",
    "drive",
    "lr_table",
    "scheduler_names",
    "validate_spec",
]


class StepSchedule(Protocol):
    """What sets the LRs while one replica takes its steps."""

    def before_step(self, step: int) -> None:
        """Called before the step with this number, 0-based."""

    def after_step(self) -> None:
        """Called after each step."""


class LRTable:
    """A schedule that is a table: before step t, each group's LR is set to its row t.

    Args:
        optimizer: Any torch optimizer.
        lrs: Group -> LRs of shape (num_steps,), finite and >= 0; one for each group of the
            optimizer, all of one length.

    Raises:
        ValueError: If a group lacks its LRs, a name is no group's, the lengths differ or are 0, or
            an LR is negative or not finite.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> table = LRTable(optimizer, {"group_0": [0.1, 0.2]})
        >>> table.before_step(1)
        >>> optimizer.param_groups[0]["lr"]
        0.2
    """

    def __init__(self, optimizer: Optimizer, lrs: Mapping[str, ArrayLike]) -> None:
        names = group_names(optimizer)
        if set(lrs) != set(names):
            raise ValueError(
                f"A table must have LRs for each group ({quoted(names)}), but got {quoted(lrs)}."
            )
        columns = [np.asarray(lrs[name], dtype=np.float64) for name in names]
        shapes = [column.shape for column in columns]
        if len(set(shapes)) != 1 or len(shapes[0]) != 1 or shapes[0][0] == 0:
            raise ValueError(
                "A table must have the shape (num_steps,), num_steps >= 1, for each group, but "
                "got "
                f"{dict(zip(names, shapes, strict=True))}."
            )
        for name, column in zip(names, columns, strict=True):
            for lr in column[~(np.isfinite(column) & (column >= 0))][:1]:
                checked_lr(float(lr), name)
        _unshare_tensors(optimizer)
        self.num_steps: int = shapes[0][0]
        self._optimizer = optimizer
        # A column for each param group: those of one LR group have one.
        of_each = [columns[names.index(owner)] for owner in lr_groups(optimizer)]
        self._rows: list[list[float]] = np.stack(of_each, axis=1).tolist()

    def before_step(self, step: int) -> None:
        """Set every group's LR; a tensor is filled in place.

        Raises:
            ValueError: If the table has no such step.
        """
        if not 0 <= step < self.num_steps:
            raise ValueError(
                f"`0 <= step < {self.num_steps}` must hold for this table, but got step={step}."
            )
        for group, lr in zip(self._optimizer.param_groups, self._rows[step], strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr

    def after_step(self) -> None:
        """Nothing: the table speaks before each step."""


def _unshare_tensors(optimizer: Optimizer) -> None:
    """An LR that is one tensor in several groups, as torch makes it of a default, becomes each group's own."""
    seen: set[int] = set()
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor) and id(group["lr"]) in seen:
            group["lr"] = group["lr"].clone()
        seen.add(id(group["lr"]))


class ScheduleDriver:
    """Moves a torch scheduler on at the right moments of a training; made by `drive`.

    Attributes:
        scheduler: torch's own, or a `GroupSchedulers`; None for constant LRs.
        spec: What JSON can hold of the schedule, for records; None for constant LRs.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        scheduler: AnyScheduler | None,
        *,
        interval: str = "epoch",
        spec: dict[str, Any] | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.spec = spec
        self._optimizer = optimizer
        self._interval = interval
        self._moved: dict[str, list[LRScheduler]] = {"epoch": [], "step": []}
        if isinstance(scheduler, GroupSchedulers):
            for name, one in scheduler.schedulers.items():
                self._moved[scheduler.intervals[name]].append(one)
        elif scheduler is not None:
            self._moved[interval].append(scheduler)

    @property
    def needs_metric(self) -> bool:
        """Whether `after_epoch` must be given a metric: for ReduceLROnPlateau."""
        return any(isinstance(one, ReduceLROnPlateau) for one in self._moved["epoch"])

    def before_step(self, step: int) -> None:
        """Nothing: torch's schedulers set the LRs of the next step after each step."""

    def after_step(self) -> None:
        """Move on the schedules with the interval "step". Raises as `after_epoch` does."""
        if self._moved["step"]:
            self._move("step", None)

    def after_epoch(self, metric: float | None = None) -> None:
        """Move on the schedules with the interval "epoch".

        Args:
            metric: What ReduceLROnPlateau looks at; one that is not finite is no improvement.

        Raises:
            ValueError: If a ReduceLROnPlateau gets None, torch refuses the step (OneCycleLR past
                its end), or an LR is negative or not finite.
        """
        self._move("epoch", metric)

    def state_dict(self) -> dict[str, Any]:
        """A copy that `torch.load(weights_only=True)` reads, without LambdaLR's functions."""
        state = {} if self.scheduler is None else self.scheduler.state_dict()
        return {"schedule": self._identity(), "state": plain(state)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a state, which is left as it is.

        Raises:
            ValueError: If it is of another schedule: torch would mix the two without a word.
        """
        own = self._identity()
        if state_dict["schedule"] != own:
            raise ValueError(
                f"A state must be of the same schedule, {own}, but got one of "
                f"{state_dict['schedule']}. Give the schedule of the state, or start anew."
            )
        if self.scheduler is not None:
            # Some of torch's schedulers take things out of what they are given.
            self.scheduler.load_state_dict(copy.deepcopy(dict(state_dict["state"])))

    def _move(self, interval: str, metric: float | None) -> None:
        moved = self._moved[interval]
        check_metric(moved, metric)
        # Called after each step of the loop: torch need not warn where a GradScaler skipped it.
        self._optimizer._opt_called = True  # type: ignore[attr-defined]
        for scheduler in moved:
            step_scheduler(scheduler, metric)

    def _identity(self) -> Any:
        """What must agree for a state to be of this schedule."""
        if self.scheduler is None:
            return None
        return {"interval": self._interval, **_described(self.scheduler)}


def drive(optimizer: Optimizer, schedule: Spec | AnyScheduler | None) -> ScheduleDriver:
    """What a training needs of a schedule, however it is given.

    Args:
        optimizer: Any torch optimizer.
        schedule: A spec of `build_scheduler`, which is moved on as its "interval" says; a torch
            scheduler of this optimizer, moved on each epoch; or None for constant LRs.

    Raises:
        TypeError: If it is none of these.
        ValueError: If the spec is wrong, or the scheduler is another optimizer's.
    """
    if schedule is None:
        return ScheduleDriver(optimizer, None)
    if isinstance(schedule, Mapping):
        interval = "epoch" if is_per_group(schedule) else schedule.get("interval", "epoch")
        scheduler = build_scheduler(optimizer, schedule)
        return ScheduleDriver(optimizer, scheduler, interval=interval, spec=as_json(schedule))
    if not isinstance(schedule, (LRScheduler, GroupSchedulers)):
        raise TypeError(
            "A schedule must be a spec, a scheduler of torch.optim.lr_scheduler or None, but got "
            f"{type(schedule).__name__}."
        )
    if schedule.optimizer is not optimizer:
        raise ValueError(
            f"The {type(schedule).__name__} must belong to the optimizer that is trained, but it "
            "belongs to another. Build it from this one, or give a spec."
        )
    return ScheduleDriver(optimizer, schedule, spec=_described(schedule))


def _described(scheduler: AnyScheduler) -> dict[str, Any]:
    """What can be read back from a scheduler: its class and the arguments that it keeps."""
    if isinstance(scheduler, GroupSchedulers):
        return {
            name: {**_described(one), "interval": scheduler.intervals[name]}
            for name, one in scheduler.schedulers.items()
        }
    result: dict[str, Any] = {"name": type(scheduler).__name__}
    for key in inspect.signature(type(scheduler)).parameters:
        value = getattr(scheduler, key, getattr(scheduler, f"_{key}", None))
        if key == "schedulers" and value is not None:
            result[key] = [_described(child) for child in value]
        elif key not in ("optimizer", "last_epoch") and value is not None and not callable(value):
            result[key] = as_json(value)
    return result


def lr_table(
    spec: Spec,
    base_lrs: float | Mapping[str, float],
    *,
    num_steps: int,
    metrics: Sequence[float] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """The learning rates that a schedule gives, without training.

    They are read off the real scheduler, on an optimizer without a model: row t is the LR after t
    of its steps, so what step (or epoch) t uses.

    Args:
        spec: As in `build_scheduler`.
        base_lrs: Group -> LR before its schedule, finite and >= 0; one number for one group, named
            'group_0', or for each group that the spec names.
        num_steps: Scheduler steps, >= 1: epochs or optimizer steps, as the spec's interval says.
        metrics: What ReduceLROnPlateau sees after each step, `num_steps` of them; others ignore
            it.

    Returns:
        Group -> array of shape (num_steps,).

    Raises:
        TypeError: If the spec is not a mapping.
        ValueError: If an argument is out of its bounds, the spec is wrong, an LR turns negative or
            not finite, or a ReduceLROnPlateau lacks its metrics.

    Example:
        >>> lr_table({"name": "StepLR", "step_size": 2, "gamma": 0.5}, 0.8, num_steps=5)
        {'group_0': array([0.8, 0.8, 0.4, 0.4, 0.2])}
    """
    if num_steps < 1:
        raise ValueError(f"`num_steps >= 1` must hold, but got num_steps={num_steps}.")
    if metrics is not None and len(metrics) != num_steps:
        raise ValueError(
            f"`metrics` must have one value for each of the {num_steps} steps, but got "
            f"{len(metrics)}."
        )
    if not isinstance(base_lrs, Mapping):
        names = list(parsed(spec)) if is_per_group(spec) else ["group_0"]
        base_lrs = dict.fromkeys(names, base_lrs)
    lrs = {name: checked_lr(lr, name) for name, lr in base_lrs.items()}
    optimizer, scheduler = try_out(parsed(spec, list(lrs)), lrs)
    table = np.empty((num_steps, len(lrs)))
    for step in range(num_steps):
        table[step] = [group["lr"] for group in optimizer.param_groups]
        if step + 1 < num_steps:  # a schedule of so many steps may refuse one more
            step_scheduler(scheduler, None if metrics is None else float(metrics[step]))
    return {name: table[:, index].copy() for index, name in enumerate(lrs)}
