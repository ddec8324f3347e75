"""Driving: a torch scheduler is moved on at the right moments of a training, and goes on from a checkpoint."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lrfinder.schedules.schedulers import (
    AnyScheduler,
    GroupSchedulers,
    build_scheduler,
    check_metric,
    step_scheduler,
)
from lrfinder.schedules.specs import Spec, as_json, is_per_group, plain


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
