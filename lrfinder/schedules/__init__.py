"""Schedules at work: what sets the learning rates while a training runs, and their table before.

Nothing here computes a learning rate: `lr_table` too reads it off one of torch's schedulers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.optim import Optimizer

from lrfinder.groups import checked_lr, group_names, lr_groups
from lrfinder.groups.patterns import quoted
from lrfinder.schedules.driving import ScheduleDriver, drive
from lrfinder.schedules.schedulers import (
    GroupSchedulers,
    build_scheduler,
    step_scheduler,
    try_out,
    validate_spec,
)
from lrfinder.schedules.specs import Spec, is_per_group, parsed, scheduler_names

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
